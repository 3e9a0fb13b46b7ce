"""Take the README's pictures again: `python docs/pictures.py` (needs Playwright and a Chromium).

The site is served from an empty home folder of its own, the terminal is what `working-papers show` prints.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

IMAGES = Path(__file__).parent / "images"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]


def terminal(slug: str) -> str:
    """A room's verdict as a terminal shows it, as an SVG page."""
    import io

    from rich.console import Console

    from working_papers.bench.rooms import get_room
    from working_papers.cli.studies import print_record

    room = get_room(slug)
    assert room.reference is not None
    console = Console(record=True, width=104, file=io.StringIO(), force_terminal=True)
    console.print(f"[green]$[/] working-papers run {slug}", highlight=False)
    print_record(console, room, room.reference)
    picture = console.export_svg(title="working-papers")
    # The font that Rich names lies on another host; a monospace of this machine serves as well.
    picture = re.sub(r"@font-face \{.*?\}", "", picture, flags=re.DOTALL)
    return picture.replace("Fira Code", "DejaVu Sans Mono")


def main() -> None:
    """Serve, look, save."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        sys.exit("chromium is not installed")
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as home, sync_playwright() as playwright:
        environment = os.environ | {"WORKING_PAPERS_HOME": home}
        command = [sys.executable, "-m", "working_papers.cli", "serve", "--port", "8765"]
        server = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            while "http" not in (line := server.stdout.readline()):
                if not line:
                    sys.exit("the site did not start")
            browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
            page = browser.new_page(viewport={"width": 1180, "height": 1790})
            page.goto("http://127.0.0.1:8765/papers/normuon")
            page.screenshot(path=IMAGES / "site.png")
            page = browser.new_page(viewport={"width": 1300, "height": 900}, device_scale_factor=1.2)
            page.set_content("<style>body{margin:0}svg{width:1240px}</style>" + terminal("normuon"))
            page.locator("svg").screenshot(path=IMAGES / "verdict.png", omit_background=True)
            browser.close()
        finally:
            server.terminate()
            server.wait(10)


if __name__ == "__main__":
    main()
