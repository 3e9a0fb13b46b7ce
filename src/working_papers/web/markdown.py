"""A paper as Markdown: what it claims, what its study found, how to use it, how to cite it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from working_papers.web.bibtex import bibtex
from working_papers.web.papers import PaperView
from working_papers.web.verdicts import RoomView

_WEIGHT = re.compile(r"[01](\.[0-9]{0,3})?")
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|])")


def plain(text: str) -> str:
    """The text so that Markdown shows it as it is; formulas between dollars stay formulas."""
    parts = re.split(r"(\$[^$\n]+\$)", " ".join(text.split()))
    return "".join(part if index % 2 else _SPECIAL.sub(r"\\\1", part) for index, part in enumerate(parts))


def prefers_markdown(accept: str) -> bool:
    """Whether an Accept header asks for Markdown, and rather than for a page."""
    weights: dict[str, float] = {}
    for each in accept.split(","):
        kind, *parameters = (part.strip().lower() for part in each.split(";"))
        found = next((part[2:] for part in parameters if part.startswith("q=")), "1")
        weights[kind] = float(found) if _WEIGHT.fullmatch(found) else 0.0
    markdown = weights.get("text/markdown", 0.0)
    return markdown > 0.0 and markdown >= weights.get("text/html", 0.0)


def paper_markdown(paper: PaperView, similar: Sequence[PaperView], address: str) -> str:
    """The whole page as Markdown.

    Args:
        paper: the paper.
        similar: papers like it.
        address: of its page.
    """
    lines = [f"# {plain(paper.title)}", ""]
    if paper.authors:
        more = paper.author_count - len(paper.authors)
        lines += [plain(", ".join(paper.authors)) + (f" and {more} more" if more > 0 else ""), ""]
    elif paper.byline:
        lines += [paper.byline, ""]
    facts = [f"Published: {paper.date.isoformat()}"]
    facts += [f"Venue: {plain(paper.venue)}"] if paper.venue else []
    facts += [f"Paper: <{paper.link}>"] if paper.link else []
    facts += [f"PDF: <{paper.pdf}>"] if paper.pdf else []
    if paper.room is not None and paper.room.paper.code is not None:
        facts.append(f"Authors' code: <{paper.room.paper.code.url}>")
    facts.append(f"Page: <{address}>")
    facts += [f"Topics: {plain(', '.join(paper.topics))}"] if paper.topics else []
    facts.append(f"Votes: {paper.activity.votes}, comments: {paper.activity.comments}")
    lines += [f"- {fact}" for fact in facts]
    if paper.summary:
        lines += ["", "## In plain words", "", plain(paper.summary)]
    if paper.abstract:
        lines += ["", "## Abstract"]
        for paragraph in paper.abstract.split("\n\n"):
            lines += ["", plain(paragraph)]
    if paper.room is not None:
        lines += _room(paper.room)
    lines += ["", "## Cite", "", "```bibtex", bibtex([paper]).strip(), "```"]
    if similar:
        lines += ["", "## Similar papers", ""]
        lines += [f"- {plain(other.title)} ({other.date.year}), `{other.id}`" for other in similar]
    return "\n".join(lines) + "\n"


def _room(room: RoomView) -> list[str]:
    lines = ["", "## Verdict", ""]
    record = room.record
    if record is None:
        word = "This room has a study and ships no verdict yet." if room.runnable else "Not yet running."
        return [*lines, word, *_claims(room), *_use(room)]
    lines += [f"**{room.state.word}.** {plain(record.summary)}", "", plain(record.question), ""]
    lines += [f"- {check.state.word}: {plain(str(check.sentence))}" for check in room.checks]
    if room.stale:
        lines += ["", f"Stale: {plain(room.stale)}."]
    labels = [label for label, _ in room.arm_labels]
    rows = [*room.measure_table, *room.cost_table]
    if rows:
        lines += ["", "| | " + " | ".join(plain(label) for label in labels) + " |"]
        lines += ["| --- |" + " ---: |" * len(labels)]
        lines += [
            "| " + " | ".join([plain(row.name), *(plain(str(cell)) for cell in row.cells)]) + " |" for row in rows
        ]
    lines += ["", f"{record.scale} scale, {record.seeds} seeds, {record.date.date().isoformat()}."]
    lines += ["", "### How it was tested", "", plain(record.budget)] if record.budget else []
    lines += ["", "### What differs from the paper", "", plain(record.notes)] if record.notes else []
    return [*lines, *_claims(room), *_use(room)]


def _claims(room: RoomView) -> list[str]:
    return ["", "## What the paper claims", "", *(f"- {plain(claim.statement)}" for claim in room.paper.claims)]


def _use(room: RoomView) -> list[str]:
    if not room.runnable:
        return []
    lines = ["", "## Use it", ""]
    if room.method is not None:
        lines += ["```python", room.method.import_line, "```", ""]
    return [*lines, "```console", f"$ working-papers run {room.slug}", "```"]
