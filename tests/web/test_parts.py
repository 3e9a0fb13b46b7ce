"""The parts of which pages are made: text, BibTeX, what a room offers, intervals."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from working_papers.bench.record import CheckRecord
from working_papers.bench.rooms import Room
from working_papers.web.bibtex import bibtex
from working_papers.web.methods import method_of
from working_papers.web.routes.feed import period_label
from working_papers.web.text import highlighted, lead, mathml, prose, snippet
from working_papers.web.verdicts import claim_region, interval_plot, quantity, typographic


def test_formulas_are_typeset_and_prices_are_not() -> None:
    assert "<msqrt>" in prose(r"cost $O(\sqrt{n})$")
    assert prose("from $5 and $6 each") == "from $5 and $6 each"
    assert '<math display="block"' in prose("$$x$$")
    assert prose(r"100\% \emph{sure}") == "100% <em>sure</em>"
    assert prose("see https://example.org/a?b=1&c. ok") == (
        'see <a href="https://example.org/a?b=1&amp;c" rel="nofollow noopener">https://example.org/a?b=1&amp;c</a>. ok'
    )
    assert prose(r"$\unknown{x}$") == r'<span class="tex">$\unknown{x}$</span>'


@given(st.text(alphabet="ab<>&\"'$\\{}^_ ()=/", max_size=60))
def test_no_text_becomes_markup(text: str) -> None:
    shown = prose(f"{text} $x {text}$ <script>")
    assert "<script" not in shown
    assert "onerror" not in shown
    assert isinstance(shown, Markup)


def test_mathematics_keeps_only_known_attributes() -> None:
    assert "href" not in mathml(r"\href{javascript:alert(1)}{x}").replace("alttext", "").split(">", 1)[1]
    assert "style" not in mathml(r"\color{red}{x}").split(">", 1)[1].replace("mstyle", "")


def test_matches_are_marked_with_their_endings() -> None:
    marked = highlighted(
        "Equivariance of equivariant nets; states, statistical <i>", frozenset({"equivariant", "state"})
    )
    assert marked == (
        "<mark>Equivariance</mark> of <mark>equivariant</mark> nets; <mark>states</mark>, statistical &lt;i&gt;"
    )


def test_snippets_keep_formulas_whole() -> None:
    text = "word " * 60 + "$a + b + c + d + e$ target " + "tail " * 90
    found = snippet(text, frozenset({"target"}))
    assert found.startswith("… ")
    assert found.endswith(" …")
    assert "target" in found
    assert found.count("$") in {0, 2}
    assert lead("short text") == "short text"
    assert lead("w " * 139 + "$x + y + z$ and more " * 9).count("$") % 2 == 0


@given(st.text(max_size=400), st.sets(st.text(max_size=8), max_size=4))
def test_snippets_of_anything(text: str, words: set[str]) -> None:
    assert isinstance(highlighted(snippet(text, frozenset(words)), frozenset(words)), Markup)


@dataclass(frozen=True)
class Cited:
    id: str = "2510.05491"
    title: str = "On the {N}orm & 50% of $x_1$"
    authors: tuple[str, ...] = ("Zoë Müller",)
    author_count: int = 3
    published: dt.date | None = dt.date(2025, 10, 7)
    doi: str = ""
    venue: str = ""
    link: str = ""


def test_bibtex_escapes_and_names_keys_apart() -> None:
    text = bibtex(
        [Cited(), Cited(), Cited(id="a-slug", title="A {broken title", authors=(), published=None, link="https://x")]
    )
    assert text.startswith("@misc{muller2025norm,")
    assert "@misc{muller2025norma," in text
    assert r"title = {{On the {N}orm \& 50\% of $x_1$}}" in text
    assert "author = {Zoë Müller and others}" in text
    assert "title = {{A broken title}}" in text
    assert "url = {https://x}" in text
    assert text.count("{") == text.count("}")


ROOM = """
from working_papers.papers.newroom.method import LIMIT, Layer as Block, step
__all__ = ["LIMIT", "Block", "step"]
raise RuntimeError("imported")
"""
METHOD = """
LIMIT = 3
class Layer:
    '''A layer.

    More.'''
    def __init__(self, width: int, *, bias: bool = True) -> None: ...
def step(x: "Tensor", /, rate=0.1):
    "One step."
"""


def test_public_names_are_read_without_importing(tmp_path: Path) -> None:
    folder = tmp_path / "newroom"
    folder.mkdir()
    (folder / "__init__.py").write_text(ROOM)
    (folder / "method.py").write_text(METHOD)
    method = method_of(Room("newroom", folder, "working_papers.papers.newroom"))
    assert method is not None
    assert method.import_line == "from working_papers.papers.newroom import Block, step, LIMIT"
    block, step, limit = method.names
    assert (block.kind, block.signature, block.about) == ("class", "(width, *, bias=True)", "A layer.")
    assert (step.kind, step.signature, step.about) == ("function", "(x, /, rate=0.1)", "One step.")
    assert limit.kind == "value"
    (folder / "method.py").write_text("def broken(:\n")
    assert method_of(Room("newroom", folder, "working_papers.papers.newroom")) is None


@pytest.mark.parametrize(
    ("rule", "relative", "region"),
    [
        ("beats('a', over='b', on='x')", True, (0.0, None)),
        ("beats('a', over='b', on='x', by=0.05)", True, (0.05, None)),
        ("matches('a', 'b', on='x', margin=0.2)", True, (-0.2, pytest.approx(0.25))),
        ("matches('a', 'b', on='x', margin=2)", False, (-2.0, 2.0)),
        ("within('a', on='x', low=-1.5, high=2)", False, (-1.5, 2.0)),
        ("within('a', on='x', high=2)", False, (None, 2.0)),
        ("something new(", False, None),
    ],
)
def test_region_of_a_rule(rule: str, relative: bool, region: object) -> None:
    assert claim_region(rule, relative) == region


@given(
    effect=st.floats(allow_nan=True, allow_infinity=True),
    low=st.none() | st.floats(-1e15, 1e15),
    high=st.none() | st.floats(-1e15, 1e15),
    rule=st.sampled_from(["beats('a', over='b', on='x')", "within('a', on='x', low=0, high=1)", "?"]),
)
def test_intervals_stay_on_their_axis(effect: float, low: float | None, high: float | None, rule: str) -> None:
    check = CheckRecord(
        rule=rule,
        claim="c",
        arms=["a", "b"],
        on="x",
        answer="holds",
        sentence="",
        effect=effect,
        interval=(low, high),
        level=0.95,
        relative=True,
        effect_size=None,
        p_value=None,
    )
    plot = interval_plot(check, "")
    if plot is not None:
        places = [plot.low, plot.high, plot.effect, *(tick.x for tick in plot.ticks), *(plot.region or ())]
        assert all(0 <= place <= 100 for place in places)


def test_numbers_and_periods_in_words() -> None:
    assert quantity(-1234567) == "−1\N{NARROW NO-BREAK SPACE}234\N{NARROW NO-BREAK SPACE}567"
    assert quantity(21.74, "%") == "21.74\N{NO-BREAK SPACE}%"
    assert typographic("3.1e-07 (2e-07 to -4e+5), 1e-05") == (
        "3.1\N{NO-BREAK SPACE}×\N{NO-BREAK SPACE}10⁻⁷ (2\N{NO-BREAK SPACE}×\N{NO-BREAK SPACE}10⁻⁷ to "
        "−4\N{NO-BREAK SPACE}×\N{NO-BREAK SPACE}10⁵), 10⁻⁵"
    )
    assert period_label("week", dt.date(2024, 12, 30), dt.date(2025, 1, 5)) == "30 December 2024 – 5 January 2025"
    assert period_label("week", dt.date(2024, 1, 29), dt.date(2024, 2, 4)) == "29 January – 4 February 2024"
    assert period_label("month", dt.date(2024, 2, 1), dt.date(2024, 2, 29)) == "February 2024"
