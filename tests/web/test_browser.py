"""Pages in a real browser: no errors, no request elsewhere, nothing sideways; dark, light, with and without scripts."""

from __future__ import annotations

import asyncio
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
import uvicorn
from sqlalchemy import Engine

from working_papers.bench.rooms import Room
from working_papers.config import Settings
from working_papers.web.app import create_app

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PAGES = {
    "front": "/",
    "feed": "/feed?period=month",
    "rooms": "/rooms",
    "holds": "/papers/2510.05491",
    "fails": "/papers/2110.03336",
    "waiting": "/papers/2103.03230",
    "imported": "/papers/2401.01234",
    "search": "/search?q=equivariant+networks",
    "status": "/status",
}
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture
def address(settings: Settings, filled: Engine, sample_rooms: dict[str, Room]) -> Iterator[str]:
    """The site on a free port of this machine."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        server = uvicorn.Server(uvicorn.Config(create_app(settings, sample_rooms), log_level="warning"))
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@pytest.fixture
def browser() -> Iterator[Any]:
    """Debian's Chromium."""
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield opened
        opened.close()


def test_pages_in_a_browser(address: str, browser: Any) -> None:
    """One browser for all of it, because starting one takes longer than looking at a page."""
    for viewport, scheme, scripts in ((DESK, "light", True), (PHONE, "dark", True), (PHONE, "light", False)):
        context = browser.new_context(viewport=viewport, color_scheme=scheme, java_script_enabled=scripts)
        page = context.new_page()
        troubles: list[str] = []
        page.on("console", lambda message, found=troubles: found.append(message.text))
        page.on("pageerror", lambda error, found=troubles: found.append(str(error)))
        page.on(
            "requestfailed",
            # A request that the next page cut off (the icon is fetched late) is none that was refused.
            lambda request, found=troubles: (
                None if request.failure == "net::ERR_ABORTED" else found.append(f"failed: {request.url}")
            ),
        )
        page.on(
            "request",
            lambda request, found=troubles: None if request.url.startswith(address) else found.append(request.url),
        )
        for name, path in PAGES.items():
            page.goto(address + path, wait_until="load")
            where = f"{name}, {viewport['width']} wide, {scheme}, scripts {scripts}"
            assert troubles == [], where
            assert page.locator("h1").is_visible(), where
            if not scripts:
                continue
            wide = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
            assert wide <= 0, f"{where}: {wide} pixels too wide"
            broken = page.evaluate("[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)")
            assert broken == [], where
        context.close()


CONTRAST = """
() => {
  const parse = (text) => {
    const numbers = text.match(/[\\d.]+/g).map(Number);
    const scaled = text.startsWith("color(") ? numbers.slice(0, 3).map((part) => part * 255) : numbers.slice(0, 3);
    return [...scaled, numbers.length > 3 ? numbers[3] : 1];
  };
  const light = (rgb) => {
    const parts = rgb.map((part) => part / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
  };
  const over = (top, below) => [0, 1, 2].map((i) => top[3] * top[i] + (1 - top[3]) * below[i]);
  const behind = (element) => {
    const layers = [];
    for (let each = element; each; each = each.parentElement) {
      layers.push(parse(getComputedStyle(each).backgroundColor));
    }
    return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255]);
  };
  const weak = [];
  for (const element of document.querySelectorAll("main *, header *, footer *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    const style = getComputedStyle(element);
    const hidden = element.closest(".hidden, .dot, svg, option, math") || style.visibility === "hidden";
    if (!own || hidden || !element.getClientRects().length) continue;
    const ground = behind(element);
    const ink = over(parse(style.color), ground);
    const [a, b] = [light(ink), light(ground)];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) weak.push(`${element.tagName}.${element.className}: ${ratio.toFixed(2)}`);
  }
  return [...new Set(weak)];
}
"""


def test_contrast_is_enough(address: str, browser: Any) -> None:
    for scheme in ("light", "dark"):
        context = browser.new_context(viewport=DESK, color_scheme=scheme)
        page = context.new_page()
        for name in ("front", "rooms", "holds", "fails", "search", "status"):
            page.goto(address + PAGES[name], wait_until="load")
            assert page.evaluate(CONTRAST) == [], f"{name}, {scheme}"
        context.close()


def test_keyboard(address: str, browser: Any) -> None:
    page = browser.new_context(viewport=DESK).new_page()
    page.goto(address + "/")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.locator(".skip").bounding_box()["x"] >= 0, "the skip link shows when it has the focus"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "q"
    page.keyboard.type("normuon/")
    page.keyboard.press("Enter")
    page.wait_for_url("**/search?q=normuon%2F")
    assert page.locator("article.entry").first.is_visible()


def test_forms_work_without_scripts(address: str, browser: Any) -> None:
    page = browser.new_context(viewport=PHONE, java_script_enabled=False).new_page()
    page.goto(address + "/rooms")
    page.select_option("#verdict", "fails")
    page.click("#table button")
    assert "verdict=fails" in page.url
    assert page.locator("table.rooms tbody tr").count() == 1
    page.click("table.rooms tbody th a")
    assert page.locator("section.verdict h2").inner_text().strip() == "Does not hold"
    page.click("details summary >> nth=0")
    assert page.locator("details[open]").count() == 1
