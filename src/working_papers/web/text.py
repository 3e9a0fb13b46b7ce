"""Text of papers made into safe HTML: escaped, with mathematics as MathML, and snippets with their matches marked."""

from __future__ import annotations

import re
from functools import lru_cache
from xml.etree import ElementTree

from markupsafe import Markup, escape

SNIPPET_CHARACTERS = 280

_MATHML = "{http://www.w3.org/1998/Math/MathML}"
_ELEMENTS = re.compile(
    "math|mrow|mi|mn|mo|mtext|mspace|msqrt|mroot|mfrac|msub|msup|msubsup|munder|mover|munderover|"
    "mtable|mtr|mtd|mstyle|mpadded|mphantom"
)
_ATTRIBUTES = re.compile(
    "display|stretchy|fence|separator|accent|accentunder|mathvariant|linethickness|displaystyle|scriptlevel|"
    "width|height|depth|lspace|rspace|minsize|maxsize|columnalign"
)
_FORMULA = re.compile(
    r"\$\$(?P<display>[^$]{1,600})\$\$"
    # "$5 and $6" are prices: a formula does not begin like one, nor end before a digit.
    r"|(?<!\\)\$(?!\d[\d.,]*[kKmMbB]?\s+[A-Za-z]{2})(?P<inline>(?:[^$\\]|\\.){1,600})\$(?!\d)"
    r"|\\\((?P<round>.{1,600}?)\\\)",
    re.DOTALL,
)
_ADDRESS = re.compile(r"https?://[^\s<>\"'{}|\\^`\[\]]+")
_COMMANDS = {"emph": "em", "textit": "em", "textsl": "em", "textbf": "strong", "texttt": "code", "textsc": "span"}
_COMMAND = re.compile(r"\\(" + "|".join(_COMMANDS) + r")\s*\{([^{}]*)\}")
_TEXT_REPLACEMENTS = (
    (re.compile(r"\\([%&#_$])"), r"\1"),
    (re.compile(r"(?<=\w)~(?=\w)"), "\N{NO-BREAK SPACE}"),
    (re.compile(r"(?<=\w)---(?=\w)|(?<=\s)---?(?=\s)"), "–"),
    (re.compile(r"``|(?<!')''(?!')"), '"'),
)


@lru_cache(maxsize=8192)
def mathml(tex: str, display: bool = False) -> Markup:
    """Typeset a formula.

    Args:
        tex: LaTeX mathematics without its dollar signs; from anywhere, so nothing in it is trusted.
        display: on a line of its own.

    Returns:
        A `<math>` element of known elements and attributes only, or the escaped source where it cannot be typeset.
    """
    import latex2mathml.converter

    source = Markup('<span class="tex">{}</span>').format(f"${tex}$")
    # The converter copies these into its output as they are.
    guarded = tex.replace("<", r"\lt ").replace(">", r"\gt ")
    try:
        written = latex2mathml.converter.convert(guarded, display="block" if display else "inline")
        root = ElementTree.fromstring(written)
    except Exception:  # noqa: BLE001 - formulas come from anywhere; the converter has an exception for each mistake
        return source
    if not _tidy(root):
        return source
    root.set("alttext", tex)
    ElementTree.register_namespace("", "http://www.w3.org/1998/Math/MathML")
    return Markup(
        ElementTree.tostring(root, encoding="unicode").replace(' xmlns="http://www.w3.org/1998/Math/MathML"', "")
    )


def _tidy(root: ElementTree.Element) -> bool:
    """Keep known attributes; False when there is an unknown element, or a command that was not understood."""
    for element in root.iter():
        name = element.tag.removeprefix(_MATHML)
        if not _ELEMENTS.fullmatch(name) or (element.text or "").startswith("\\"):
            return False
        for attribute in list(element.attrib):
            if not _ATTRIBUTES.fullmatch(attribute):
                del element.attrib[attribute]
    return True


@lru_cache(maxsize=4096)
def prose(text: str, *, links: bool = True) -> Markup:
    """A title, summary or abstract as HTML: escaped, formulas typeset, simple LaTeX commands and addresses understood.

    Args:
        text: plain text with LaTeX in it, as arXiv has it.
        links: whether addresses become links (not inside another link).
    """
    return _render(text, None, links)


def highlighted(text: str, words: frozenset[str]) -> Markup:
    """As `prose`, without links, with the words that were searched for marked."""
    return _render(text, _word_pattern(words), False)


_ENDINGS = "ations|ation|ances|ance|ants|ant|ences|ence|ents|ent|ings|ing|ers|er|ies|ied|ally|ly|al|ed|es|e|s|y"
_ENDING = re.compile(f"(?:{_ENDINGS})$")


@lru_cache(maxsize=64)
def _word_pattern(words: frozenset[str]) -> re.Pattern[str] | None:
    """Matches the words and their inflections: the search compares stems, so an ending may differ."""
    stems = set()
    for word in words:
        stem = _ENDING.sub("", word)
        stems.add(stem if len(stem) > 2 else word)
    stems.discard("")
    if not stems:
        return None
    longest_first = sorted(stems, key=len, reverse=True)
    return re.compile(rf"\b(?:{'|'.join(map(re.escape, longest_first))})(?:{_ENDINGS})?\b", re.IGNORECASE)


def _render(text: str, marks: re.Pattern[str] | None, links: bool) -> Markup:
    parts: list[Markup] = []
    position = 0
    for match in _FORMULA.finditer(text):
        parts.append(_plain(text[position : match.start()], marks, links))
        tex = match["display"] or match["inline"] or match["round"]
        parts.append(mathml(tex.strip(), bool(match["display"])) if tex.strip() else escape(match[0]))
        position = match.end()
    parts.append(_plain(text[position:], marks, links))
    return Markup("").join(parts)


def _plain(text: str, marks: re.Pattern[str] | None, links: bool) -> Markup:
    """Text without formulas."""
    parts: list[Markup] = []
    position = 0
    for match in _COMMAND.finditer(text):
        parts.append(_addresses(text[position : match.start()], marks, links))
        tag = Markup(_COMMANDS[match[1]])
        parts.append(Markup("<{}>{}</{}>").format(tag, _addresses(match[2], marks, links), tag))
        position = match.end()
    parts.append(_addresses(text[position:], marks, links))
    return Markup("").join(parts)


def _addresses(text: str, marks: re.Pattern[str] | None, links: bool) -> Markup:
    parts: list[Markup] = []
    position = 0
    for match in _ADDRESS.finditer(text) if links else ():
        address = match[0].rstrip(".,;:!?)")
        parts.append(_marked(text[position : match.start()], marks))
        parts.append(Markup('<a href="{}" rel="nofollow noopener">{}</a>').format(address, address))
        position = match.start() + len(address)
    parts.append(_marked(text[position:], marks))
    return Markup("").join(parts)


def _marked(text: str, marks: re.Pattern[str] | None) -> Markup:
    for pattern, replacement in _TEXT_REPLACEMENTS:
        text = pattern.sub(replacement, text)
    if marks is None:
        return escape(text)
    parts: list[Markup] = []
    position = 0
    for match in marks.finditer(text):
        parts += [escape(text[position : match.start()]), Markup("<mark>{}</mark>").format(match[0])]
        position = match.end()
    parts.append(escape(text[position:]))
    return Markup("").join(parts)


def lead(text: str, characters: int = SNIPPET_CHARACTERS) -> str:
    """The beginning of a text, cut between words and never inside a formula."""
    text = " ".join(text.split())
    return text if len(text) <= characters else _cut(text, 0, characters)


def snippet(text: str, words: frozenset[str], characters: int = SNIPPET_CHARACTERS) -> str:
    """The part of a text in which most of the words stand, cut between words and never inside a formula."""
    text = " ".join(text.split())
    pattern = _word_pattern(words)
    if len(text) <= characters or pattern is None:
        return lead(text, characters)
    places = [(match.start(), match[0].casefold()) for match in pattern.finditer(text)]
    best, start = 0, 0
    for place, _ in places:
        covered = {word for other, word in places if place <= other < place + characters - 40}
        if len(covered) > best:
            best, start = len(covered), place
    if start < characters // 2:
        return lead(text, characters)
    return _cut(text, max(0, start - 60), characters)


def _cut(text: str, start: int, characters: int) -> str:
    end = min(len(text), start + characters)
    for match in _FORMULA.finditer(text):
        if match.start() < start < match.end():
            start = match.start()
        if match.start() < end < match.end():
            end = match.end()
    while start > 0 and not text[start - 1].isspace():
        start -= 1
    if end < len(text) and not text[end].isspace():
        space = text.rfind(" ", start, end)
        end = space if space > start + characters // 2 else end
    before, after = "… " if start > 0 else "", " …" if end < len(text) else ""
    return before + text[start:end].strip(" ,;:") + after
