"""Bring the generated parts of README.md and docs/architecture.md up to date: `python docs/readme.py [--check]`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from working_papers.cli.studies import verdict_table
from working_papers.config import Settings

ROOT = Path(__file__).parent.parent


def settings_table() -> str:
    """Every setting with its meaning and default, as table rows."""
    rows = []
    for name, field in Settings.model_fields.items():
        default = "the platform's user-data folder" if name == "home" else repr(field.default)
        rows.append(f"| `WORKING_PAPERS_{name.upper()}` | {field.description} Default: {default}. |")
    return "\n".join(rows) + "\n"


def replaced(text: str, marker: str, content: str) -> str:
    """The text with what stands between the marker's comments replaced."""
    pattern = re.compile(rf"(<!-- {marker} -->\n).*?(<!-- /{marker} -->)", re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"the marker {marker!r} is missing")
    return pattern.sub(lambda match: match[1] + content + match[2], text)


def pages() -> dict[Path, str]:
    """The files as they should be."""
    readme, architecture = ROOT / "README.md", ROOT / "docs" / "architecture.md"
    return {
        readme: replaced(readme.read_text(encoding="utf-8"), "verdicts", verdict_table()),
        architecture: replaced(architecture.read_text(encoding="utf-8"), "settings", settings_table()),
    }


if __name__ == "__main__":
    stale = [path for path, text in pages().items() if path.read_text(encoding="utf-8") != text]
    if "--check" in sys.argv:
        if stale:
            sys.exit(f"{', '.join(path.name for path in stale)}: out of date; run `python docs/readme.py`")
    else:
        for path, text in pages().items():
            path.write_text(text, encoding="utf-8")
