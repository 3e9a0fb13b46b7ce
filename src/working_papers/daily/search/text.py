"""What a reader typed, taken apart: words, phrases, authors, exclusions, identifiers. Nothing typed is an error."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field

LONGEST_QUERY = 4_000
"""Characters of a query that are read; the rest is left out."""

MOST_TERMS = 64
"""Different words of a query that are looked up; the rest is left out."""

LONGEST_KEY = 400
"""Characters of a normalised title that are compared."""

PROSE = 16
"""From this many words on a query is running text, whose quotation marks and dashes ask for nothing.

Queries of CISI and CACM quote in passing: taken for operators, the marks cost .03 and .07 of BM25's nDCG@10.
"""

_STOP_WORDS = """
a about also an and any are as at be been but by can could did do does for from had has have how i if in
into is it its may me more most my no not of on or other our should so some such than that the their them then there
these they this those to via was we were what when where whether which while who whom whose why will with would you
your"""
STOP_WORDS = frozenset(_STOP_WORDS.split())
"""Words too common to tell papers apart. They stay in the index (phrases need them) and are dropped from queries."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f]+")
_ASCII_WORD = re.compile(r"[a-z0-9]+")
_ARXIV_ID = re.compile(r"(?<![\w.])(\d{4}\.\d{4,5}|[a-z-]+(?:\.[a-z]{2})?/\d{7})(?:v\d+)?(?![\w])", re.IGNORECASE)
_ADDRESS = re.compile(
    r"^(?:https?://)?(?:[\w-]+\.)*(?:arxiv\.org/(?:abs|pdf|html|format)|alphaxiv\.org/\w+|huggingface\.co/papers|hf\.co/papers)/"
    r"(?P<id>[^?#\s]+?)(?:\.pdf)?/?(?:[?#]\S*)?$",
    re.IGNORECASE,
)
_PART = re.compile(r'(?P<minus>-?)(?:(?P<field>authors?|au):)?(?:"(?P<quoted>[^"]*)"|(?P<plain>\S+))', re.IGNORECASE)


@dataclass(frozen=True)
class ParsedQuery:
    """A query's parts; each is plain text, not yet analysed.

    Attributes:
        words: words that a paper should have; the more, the better.
        phrases: phrases that a paper must have, word for word.
        authors: names that its authors must have.
        without: words or phrases that it must not have.
        without_authors: names that its authors must not have.
        prose: the words and phrases as running text, for the embedding.
        ids: what the query may be as a paper's identifier, best first, in lower case.
        title_key: the query as a normalised title; empty when it holds no letter or digit.
    """

    words: tuple[str, ...] = ()
    phrases: tuple[str, ...] = ()
    authors: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    without_authors: tuple[str, ...] = ()
    prose: str = ""
    ids: tuple[str, ...] = field(default=())
    title_key: str = ""


def clean(text: str) -> str:
    """Make text fit for UTF-8 and on one line: no lone surrogates, no control characters, single spaces.

    Args:
        text: any text.

    Returns:
        The text in Unicode normal form C.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFC", text.encode("utf-8", "replace").decode("utf-8"))
    return " ".join(_CONTROL.sub(" ", text).split())


def title_key(title: str) -> str:
    """Normalise a title for exact comparison: letters and digits only, no accents, no case.

    Args:
        title: a title.

    Returns:
        The words joined by single spaces, at most `LONGEST_KEY` characters.
    """
    if title.isascii():
        return " ".join(_ASCII_WORD.findall(title.lower()))[:LONGEST_KEY].strip()
    decomposed = unicodedata.normalize("NFKD", clean(title)).casefold()
    kept = (
        "" if unicodedata.combining(character) else character if character.isalnum() else " "
        for character in decomposed
    )
    return " ".join("".join(kept).split())[:LONGEST_KEY].strip()


def identifiers(query: str) -> tuple[str, ...]:
    """What a query may mean as a paper's identifier.

    Args:
        query: cleaned text, e.g. "arXiv:1706.03762v5", "https://arxiv.org/abs/1706.03762", "1706.03762".

    Returns:
        Identifiers in lower case, the likeliest first, without repetition.
    """
    found: list[str] = []
    if len(query) <= 300:
        address = _ADDRESS.match(query)
        whole = address["id"] if address else query
        whole = re.sub(r"^arxiv:\s*", "", whole, flags=re.IGNORECASE)
        found = [query, whole, re.sub(r"v\d+$", "", whole)]
    found.extend(match[1] for match in _ARXIV_ID.finditer(query))
    return tuple(dict.fromkeys(identifier.lower() for identifier in found if identifier))[:12]


def parse(query: str) -> ParsedQuery:
    """Take a query apart.

    Understood: words, "phrases", author:name, author:"first last", and a minus before any of these. Everything else is
    words, and so are phrases and exclusions in text of `PROSE` words or more.

    Args:
        query: any text.

    Returns:
        Its parts; of text longer than `LONGEST_QUERY` characters, those of the beginning.
    """
    text = clean(query[: 4 * LONGEST_QUERY])[:LONGEST_QUERY]
    plain = text.replace("“", '"').replace("”", '"').replace("„", '"')
    words: list[str] = []
    phrases: list[str] = []
    authors: list[str] = []
    without: list[str] = []
    without_authors: list[str] = []
    prose: list[str] = []
    position = 0
    while (part := _PART.search(plain, position)) is not None:
        position = part.end()
        quoted, bare = part["quoted"], part["plain"]
        content = quoted if quoted is not None else bare or ""
        # A minus excludes only where a word begins: "state-of-the-art" and a lone dash are words.
        starts = part.start() == 0 or plain[part.start() - 1] == " "
        minus = bool(part["minus"]) and starts and any(character.isalnum() for character in content[:1] or "-")
        if part["field"] and any(character.isalnum() for character in content):
            (without_authors if minus else authors).append(content)
        elif minus:
            without.append(content)
        elif quoted is not None:
            phrases.append(content)
            prose.append(content)
        else:
            words.append(content)
            prose.append(content)
    if len(text.split()) >= PROSE:
        words, phrases, without = [*words, *phrases, *without], [], []
        prose = [plain] if not (authors or without_authors) else words
    if not (words or phrases or authors):  # nothing is wanted, so the minus was only a dash
        words, without = without, []
        authors, without_authors = without_authors, []
        prose = list(words)
    return ParsedQuery(
        words=tuple(words),
        phrases=tuple(phrases),
        authors=tuple(authors),
        without=tuple(without),
        without_authors=tuple(without_authors),
        prose=" ".join(prose),
        ids=identifiers(text),
        title_key=title_key(text),
    )
