"""Comments as HTML: Markdown without HTML, headings and images, and of the result only what is harmless."""

from __future__ import annotations

import re
from functools import cache, lru_cache

import nh3
from markdown_it import MarkdownIt
from markdown_it.rules_core import StateCore
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token

TAGS = {"p", "br", "em", "strong", "s", "code", "pre", "blockquote", "ul", "ol", "li", "a", "hr"}
ATTRIBUTES = {"a": {"href", "title"}, "ol": {"start"}}
SCHEMES = {"http", "https", "mailto"}

_FORMULA = re.compile(r"\$\$[^$]+\$\$|\$(?=\S)(?:[^$\\\n]|\\.)+(?<=\S)\$(?!\d)")
_ADDRESS = re.compile(r"https?://[^\s<>\"'{}|\\^`\[\]]+")


@cache
def _parser() -> MarkdownIt:
    made = MarkdownIt("commonmark", {"html": False, "breaks": True, "maxNesting": 20})
    made.enable("strikethrough").disable(["image", "heading", "lheading", "html_block", "html_inline"])
    made.inline.ruler.before("escape", "formula", _keep_formula)
    made.core.ruler.push("addresses", _link_addresses)
    return made


def _keep_formula(state: StateInline, silent: bool) -> bool:
    """Leave a formula as it was typed: its stars, underscores and backslashes are not Markdown's."""
    found = _FORMULA.match(state.src, state.pos, state.posMax)
    if found is None:
        return False
    if not silent:
        state.push("text", "", 0).content = found[0]
    state.pos = found.end()
    return True


def _link_addresses(state: StateCore) -> None:
    """Make links of addresses that stand in the text as they are."""
    for block in state.tokens:
        made: list[Token] = []
        links = 0
        for token in block.children or ():
            links += {"link_open": 1, "link_close": -1}.get(token.type, 0)
            made += _linked(token.content) if token.type == "text" and not links else [token]
        if block.children:
            block.children = made


def _linked(text: str) -> list[Token]:
    def words(content: str) -> Token:
        return Token("text", "", 0, content=content)

    made: list[Token] = []
    position = 0
    for found in _ADDRESS.finditer(text):
        address = _without_punctuation(found[0])
        made += [
            words(text[position : found.start()]),
            Token("link_open", "a", 1, attrs={"href": address}),
            words(address),
            Token("link_close", "a", -1),
        ]
        position = found.start() + len(address)
    return [*made, words(text[position:])]


def _without_punctuation(address: str) -> str:
    """An address without what belongs to the sentence around it, a bracket that it does not open included."""
    while True:
        shorter = address.rstrip(".,;:!?*_~")
        if shorter.endswith(")") and shorter.count(")") > shorter.count("("):
            shorter = shorter[:-1]
        if shorter == address:
            return address
        address = shorter


@lru_cache(maxsize=512)
def comment_html(body: str) -> str:
    """A comment as HTML that may stand in any page.

    Args:
        body: Markdown as it was typed.
    """
    return nh3.clean(
        _parser().render(body),
        tags=TAGS,
        attributes=ATTRIBUTES,
        url_schemes=SCHEMES,
        link_rel="nofollow noopener ugc",
        url_relative="deny",
        set_tag_attribute_values={"pre": {"tabindex": "0"}},  # long lines are scrolled by keyboard, too
    )
