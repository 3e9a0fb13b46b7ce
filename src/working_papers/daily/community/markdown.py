"""Comments as HTML: Markdown without HTML, headings and images, and of the result only what is harmless."""

from __future__ import annotations

from functools import cache

import nh3
from markdown_it import MarkdownIt

TAGS = {"p", "br", "em", "strong", "s", "code", "pre", "blockquote", "ul", "ol", "li", "a", "hr"}
SCHEMES = {"http", "https", "mailto"}


@cache
def _parser() -> MarkdownIt:
    made = MarkdownIt("commonmark", {"html": False, "breaks": True, "maxNesting": 20})
    return made.enable(["strikethrough"]).disable(["image", "heading", "lheading", "html_block", "html_inline"])


def comment_html(body: str) -> str:
    """A comment as HTML that may stand in any page.

    Args:
        body: Markdown as it was typed.
    """
    return nh3.clean(
        _parser().render(body),
        tags=TAGS,
        attributes={"a": {"href", "title"}},
        url_schemes=SCHEMES,
        link_rel="nofollow noopener ugc",
        url_relative="deny",
    )
