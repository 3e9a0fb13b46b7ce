"""Feeds, exports, the tags that citation programs read, the site map: each read as its readers read it."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urlsplit
from xml.etree import ElementTree

import pytest
from sqlalchemy import Engine, func, insert, select, update
from starlette.testclient import TestClient

from tests.web.conftest import FAILS, HOLDS, OPEN
from tests.web.visitors import Reader
from working_papers.bench.rooms import Room
from working_papers.config import Settings
from working_papers.daily.catalogue import PAPERS, get_paper, sync_rooms
from working_papers.daily.community.saved_searches import save_search
from working_papers.daily.community.votes import vote
from working_papers.daily.importing import import_papers
from working_papers.daily.records import PaperRecord
from working_papers.web.app import create_app
from working_papers.web.citation import citation_tags
from working_papers.web.feeds import xml
from working_papers.web.papers import PaperView
from working_papers.web.routes import site_map

ATOM = "{http://www.w3.org/2005/Atom}"
MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")
NORMUON = "/papers/2510.05491"


# Atom -------------------------------------------------------------------------------------------------------------


def valid_atom(content: bytes) -> ElementTree.Element:
    """The feed, after what RFC 4287 demands of it has been checked."""
    feed = ElementTree.fromstring(content)
    assert feed.tag == f"{ATOM}feed"
    assert all(element.tag.startswith(ATOM) for element in feed.iter()), "an element of no namespace"
    _one_each(feed, "id", "title", "updated")  # 4.1.1
    entries = feed.findall(f"{ATOM}entry")
    assert feed.find(f"{ATOM}author") is not None, "needed where an entry has no author"
    ids = [_iri(entry.findtext(f"{ATOM}id")) for entry in entries]
    assert len(ids) == len(set(ids)), "two entries with one id"
    links = feed.findall(f"{ATOM}link")
    assert [link.get("rel") for link in links].count("self") == 1
    kinds = [(link.get("rel"), link.get("type"), link.get("hreflang")) for link in links]
    assert len(kinds) == len(set(kinds)), "two links of one kind"
    for entry in entries:
        _one_each(entry, "id", "title", "updated")  # 4.1.2
        assert len(entry.findall(f"{ATOM}published")) <= 1 and len(entry.findall(f"{ATOM}summary")) <= 1
        links = entry.findall(f"{ATOM}link")
        assert any(link.get("rel", "alternate") == "alternate" for link in links), "without content there is a link"
        published, updated = (_moment(entry.findtext(f"{ATOM}{name}")) for name in ("published", "updated"))
        assert published <= updated
    for link in feed.iter(f"{ATOM}link"):
        _iri(link.get("href"))
        assert re.fullmatch(r"[a-z]+/[a-z+]+", link.get("type", "text/html"))
    for person in feed.iter(f"{ATOM}author"):
        _one_each(person, "name")
        assert (person.findtext(f"{ATOM}name") or "").strip()
    for category in feed.iter(f"{ATOM}category"):
        assert category.get("term")
    for text in [*feed.iter(f"{ATOM}title"), *feed.iter(f"{ATOM}summary")]:
        assert text.get("type", "text") == "text" and len(text) == 0, "text holds no elements"
    latest = max((_moment(entry.findtext(f"{ATOM}updated")) for entry in entries), default=None)
    assert latest is None or _moment(feed.findtext(f"{ATOM}updated")) == latest
    return feed


def _one_each(element: ElementTree.Element, *names: str) -> None:
    for name in names:
        assert len(element.findall(f"{ATOM}{name}")) == 1, f"{element.tag} has not one {name}"


def _iri(text: str | None) -> str:
    parts = urlsplit(text or "")
    assert parts.scheme in ("http", "https", "urn"), text
    assert not re.search(r"[\s<>\"{}|\\^`]", text or ""), text
    return text or ""


def _moment(text: str | None) -> dt.datetime:
    assert text is not None and MOMENT.fullmatch(text), text
    return dt.datetime.fromisoformat(text)


def links_of(feed: ElementTree.Element) -> dict[str, str]:
    return {link.get("rel") or "alternate": link.get("href") or "" for link in feed.findall(f"{ATOM}link")}


def titles_of(feed: ElementTree.Element) -> list[str]:
    return [entry.findtext(f"{ATOM}title") or "" for entry in feed.findall(f"{ATOM}entry")]


LISTS = (
    "/feed",
    "/feed?period=day",
    "/feed?period=week&start=2025-10-06",
    "/feed?period=month&start=2025-10-01",
    "/feed?period=trending",
    "/feed?topic=cs.LG",
    "/feed?period=month&start=1900-01-01",
    "/rooms",
    "/rooms?verdict=holds",
    "/search?q=attention",
    "/search?q=zzzzzz&runnable=1",
    "/search?topic=stat.ML",
)


def form(path: str, ending: str) -> str:
    """The address of a list in another form."""
    parts = urlsplit(path)
    return f"{parts.path}.{ending}" + (f"?{parts.query}" if parts.query else "")


@pytest.mark.parametrize("path", LISTS)
def test_every_list_has_its_forms(client: TestClient, path: str) -> None:
    answer = client.get(form(path, "atom"))
    assert answer.status_code == 200 and answer.headers["content-type"] == "application/atom+xml; charset=utf-8"
    feed = valid_atom(answer.content)
    assert links_of(feed)["self"] == f"http://testserver{form(path, 'atom')}"
    assert client.get(links_of(feed)["alternate"]).status_code == 200
    content = client.get(form(path, "json")).json()
    listed = content if isinstance(content, list) else content["papers"]
    bib = client.get(form(path, "bib"))
    assert bib.headers["content-type"] == "application/x-bibtex; charset=utf-8"
    keys = re.findall(r"^@misc\{([^,\s]+),$", bib.text, re.MULTILINE)
    assert len(keys) == len(set(keys)) == len(listed), "an entry a paper, each with a key of its own"
    assert {each["title"] for each in listed} == set(titles_of(feed)) or path.startswith("/search?q=attention")
    page = client.get(path).text
    for ending in ("atom", "json", "bib"):
        assert f'href="{form(path, ending).replace("&", "&amp;")}"' in page or not listed


def test_feeds_of_long_lists_come_in_parts(client: TestClient) -> None:
    path, seen, names = "/feed.atom", [], set()
    while path:
        feed = valid_atom(client.get(path).content)
        seen += [entry.findtext(f"{ATOM}id") for entry in feed.findall(f"{ATOM}entry")]
        names.add(feed.findtext(f"{ATOM}id"))
        links = links_of(feed)
        if path != "/feed.atom":
            assert links["first"] == "http://testserver/feed.atom" and "previous" in links
        path = links.get("next", "").removeprefix("http://testserver")
    assert len(seen) == len(set(seen)) == 68
    assert names == {"http://testserver/feed.atom"}, "its parts are one feed"
    content = client.get("/feed.json").json()
    following = client.get(content["next"]).json()
    assert len({paper["id"] for paper in [*content["papers"], *following["papers"]]}) == 60


def ids_by_title(client: TestClient, host: str = "testserver") -> dict[str, str]:
    feed = ElementTree.fromstring(client.get("/rooms.atom", headers={"Host": host}).content)
    return {
        entry.findtext(f"{ATOM}title") or "": entry.findtext(f"{ATOM}id") or ""
        for entry in feed.findall(f"{ATOM}entry")
    }


def test_entries_keep_their_ids(
    client: TestClient, filled: Engine, settings: Settings, sample_rooms: dict[str, Room]
) -> None:
    before = ids_by_title(client)
    assert len(set(before.values())) == len(before) == 66
    assert ids_by_title(client, "papers.example.org:8443") == before, "by whatever name the site is reached"
    with filled.begin() as connection:
        connection.execute(update(PAPERS).where(PAPERS.c.room == HOLDS).values(id="2999.00001"))
    assert ids_by_title(client) == before, "whatever id the paper gets"
    with TestClient(create_app(settings, sample_rooms)) as again:
        assert ids_by_title(again) == before, "after a restart"


def test_another_installation_has_other_ids(client: TestClient, tmp_path: Any, sample_rooms: dict[str, Room]) -> None:
    from working_papers.database import open_database

    other = Settings(home=tmp_path / "other", database="")
    engine = open_database(other)
    sync_rooms(engine)
    engine.dispose()
    with TestClient(create_app(other, sample_rooms)) as there:
        assert not set(ids_by_title(there).values()) & set(ids_by_title(client).values())


def test_verdicts_come_first_and_change_their_entries(client: TestClient, sample_rooms: dict[str, Room]) -> None:
    feed = valid_atom(client.get("/rooms.atom").content)
    newest = feed.findall(f"{ATOM}entry")[:3]
    assert {entry.findtext(f"{ATOM}title") for entry in newest} == {
        sample_rooms[slug].paper.title for slug in (HOLDS, FAILS, OPEN)
    }
    assert {entry.findtext(f"{ATOM}updated") for entry in newest} == {"2026-03-01T12:00:00Z"}
    (summary,) = [
        entry.findtext(f"{ATOM}summary") or ""
        for entry in newest
        if entry.findtext(f"{ATOM}title") == sample_rooms[HOLDS].paper.title
    ]
    assert summary.startswith("Holds: ")
    assert len(valid_atom(client.get("/rooms.atom?verdict=fails").content).findall(f"{ATOM}entry")) == 1


HOSTILE = (
    "]]></title><script>alert(1)</script>",
    '"/><entry/>',
    "&amp;&lt;&#0;&nbsp;&undefined;",
    "<!DOCTYPE x [<!ENTITY e SYSTEM 'file:///etc/passwd'>]>&e;",
    "control \x01\x08\x0b\x0c\x1f characters \x7f\x85 and \ufffe\uffff",
    "right\u202eleft, \U0001f600, \U0010ffff",
    "\u0000 and line\r\nbreaks\tand\u2028separators",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_breaks_out_of_a_feed(client: TestClient, filled: Engine, text: str) -> None:
    stored = text.replace("\x00", " ")
    with filled.begin() as connection:
        values = {"title": stored, "abstract": stored, "summary": stored, "authors": [stored, " ", "\x01"]}
        connection.execute(update(PAPERS).where(PAPERS.c.id == "2401.01234").values(**values, categories=[stored]))
    paths = ("/feed.atom?period=month&start=2024-01-03", "/feed.atom?period=day&start=2024-01-03")
    for path in paths:
        (entry,) = [
            entry
            for entry in valid_atom(client.get(path).content).findall(f"{ATOM}entry")
            if links_of(entry)["alternate"].endswith("/papers/2401.01234")
        ]
        allowed = "".join(character for character in stored if character in xml_characters(stored))
        assert _same(entry.findtext(f"{ATOM}title"), allowed) and _same(entry.findtext(f"{ATOM}summary"), allowed)
        assert len(entry.findall(f"{ATOM}author")) == 1
    for path in ("/feed.atom", "/search.atom", "/rooms.atom"):
        valid_atom(client.get(path, params={"topic": text, "q": text, "start": text, "period": text}).content)


def xml_characters(text: str) -> set[str]:
    """What XML 1.0 allows (its production 2)."""

    def allowed(code: int) -> bool:
        return code in (9, 10, 13) or 0x20 <= code <= 0xD7FF or 0xE000 <= code <= 0xFFFD or code >= 0x10000

    return {character for character in text if allowed(ord(character))}


def _same(shown: str | None, stored: str) -> bool:
    """Whether a reader gets the text; line breaks may be normalised."""
    return " ".join((shown or "").split()) == " ".join(stored.split())


def test_characters_that_xml_cannot_hold_are_left_out() -> None:
    every = "".join(map(chr, [*range(0x250), *range(0xD7F0, 0xE010), *range(0xFFF0, 0x10010), 0x10FFFE, 0x10FFFF]))
    element = ElementTree.fromstring(f'<a b="{xml(every)}">{xml(every)}</a>')
    expected = [character for character in every if character in xml_characters(every)]
    assert element.text == "".join(expected).replace("\r", "\n")
    assert element.get("b") == re.sub("[\t\n\r]", " ", "".join(expected))


def test_a_feed_is_not_sent_twice(client: TestClient) -> None:
    first = client.get("/feed.atom")
    again = client.get("/feed.atom", headers={"If-None-Match": first.headers["etag"]})
    assert again.status_code == 304 and not again.content


def test_trending_and_saved_searches_are_feeds(client: TestClient, filled: Engine) -> None:
    ada = Reader(client, filled, "ada@example.org")
    paper = get_paper(filled, "cs/0112017")
    assert paper is not None
    vote(filled, ada.id, paper.number)
    assert titles_of(valid_atom(client.get("/feed.atom?period=trending").content))[0] == "An old paper"
    search = save_search(filled, ada.id, {"q": "trees"})
    feed = valid_atom(client.get(f"/searches/{search.key}.atom").content)
    assert "An old paper" in titles_of(feed)


# JSON, BibTeX -----------------------------------------------------------------------------------------------------


def test_bibtex_of_any_paper_can_be_read_back(client: TestClient, filled: Engine) -> None:
    import bibtexparser

    with filled.begin() as connection:
        values = {"title": "50 % of {A} & B_c #1 $x_i$ }", "authors": ["Ö. Ü {x", "Li, and"], "author_count": 2}
        connection.execute(update(PAPERS).where(PAPERS.c.id == "2401.01234").values(**values))
    path, count = "/feed", 0
    while path:
        library = bibtexparser.parse_string(client.get(form(path, "bib")).text)
        assert not library.failed_blocks
        count += len(library.entries)
        for entry in library.entries:
            assert entry["title"].count("{") == entry["title"].count("}") and not re.search(
                r"(?<!\\)[&%#]", entry["title"]
            )
        path = (client.get(form(path, "json")).json()["next"] or "").replace("/feed.json", "/feed")
    assert count == 68


# What citation programs read --------------------------------------------------------------------------------------


class Head(HTMLParser):
    """The meta tags of a page, as a browser sees them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "meta":
            self.tags.append((given.get("name") or given.get("property", ""), given.get("content", "")))


def as_zotero(text: str) -> dict[str, Any]:
    """What Zotero's translator Embedded Metadata makes of a page (its rules as of 2026, for the tags that we send).

    The item's type is told by the tag that names where it appeared. Values of tags that stand twice are joined by
    commas, so that all but authors must stand once. A single author tag with commas would be split.
    """
    tags = Head(text).tags
    kinds = {
        "citation_journal_title": "journalArticle",
        "citation_conference_title": "conferencePaper",
        "citation_technical_report_institution": "report",
        "citation_book_title": "bookSection",
        "citation_dissertation_institution": "thesis",
    }
    fields = {
        "citation_title": "title",
        "citation_date": "date",
        "citation_journal_title": "publicationTitle",
        "citation_conference_title": "conferenceName",
        "citation_publisher": "publisher",
        "citation_abstract": "abstractNote",
        "citation_doi": "DOI",
        "citation_public_url": "url",
        "citation_pdf_url": "pdf",
    }
    item: dict[str, Any] = {"itemType": "journalArticle"}  # its guess for what has a title
    for name, _ in tags:
        item["itemType"] = kinds.get(name, item["itemType"])
    for name, field in fields.items():
        # A tag fits by how its name ends, e.g. dc.citation_title, too.
        item[field] = ", ".join(content for given, content in tags if given.endswith(name))
    item["creators"] = [
        author for given, content in tags if given == "citation_author" for author in re.split(r"\s*;\s*", content)
    ]
    item["tags"] = [
        tag for given, content in tags if given == "citation_keywords" for tag in re.split(r"\s*;\s*", content)
    ]
    return item


def test_zotero_reads_a_paper_page(client: TestClient, sample_rooms: dict[str, Room]) -> None:
    paper = sample_rooms[HOLDS].paper
    item = as_zotero(client.get(NORMUON).text)
    assert item["title"] == paper.title
    assert item["creators"] == list(paper.authors)
    assert item["date"] == "2025/10/07"
    assert item["url"] == "https://arxiv.org/abs/2510.05491" and item["pdf"] == "https://arxiv.org/pdf/2510.05491"
    assert item["tags"] == list(paper.topics)
    nasty = as_zotero(client.get("/papers/2401.01234").text)
    assert nasty["title"] == 'Shapes & <script>alert("title")</script> of $\\mathcal{O}(n^2)$ attention'
    assert nasty["creators"] == ['Eve "<b>Bold</b>" Example', "Grace Hopper"] and nasty["DOI"] == "10.1000/<x>"
    assert nasty["itemType"] == "journalArticle" and nasty["publicationTitle"] == ""


def test_scholar_finds_what_it_needs(client: TestClient, filled: Engine) -> None:
    """Title, authors one a tag, a date that begins with the year, an address of the full text."""
    with filled.connect() as connection:
        ids = list(connection.execute(select(PAPERS.c.id)).scalars())
    for id in ids:
        tags = Head(client.get(f"/papers/{id}").text).tags
        names = [name for name, _ in tags]
        for name in ("citation_title", "citation_publication_date", "citation_date"):
            assert names.count(name) == 1, f"{id}: {name}"
        given = dict(tags)
        assert re.fullmatch(r"\d{4}/\d\d/\d\d", given["citation_publication_date"])
        assert all(content.strip() for name, content in tags if name.startswith("citation_"))
        assert names.count("citation_journal_title") + names.count("citation_conference_title") <= 1
        assert given.get("citation_pdf_url", "https://arxiv.org/pdf/").startswith("https://arxiv.org/pdf/")


@pytest.mark.parametrize(
    ("venue", "tag"),
    [
        ("NeurIPS 2025 spotlight", ("citation_conference_title", "NeurIPS 2025")),
        ("ICLR 2020 (spotlight)", ("citation_conference_title", "ICLR 2020")),
        ("CVPR 2020 oral (conference version, arXiv 1911.06971)", ("citation_conference_title", "CVPR 2020")),
        ("IEEE DySPAN 2024", ("citation_conference_title", "IEEE DySPAN 2024")),
        ("IEEE Access 2022", ("citation_journal_title", "IEEE Access")),
        (
            "Computer Methods in Applied Mechanics and Engineering 404 (2023)",
            ("citation_journal_title", "Computer Methods in Applied Mechanics and Engineering"),
        ),
        ("Phys.Rev.D76:013009,2007", ("citation_journal_title", "Phys.Rev.D")),
        ("Cambridge University Press 2022 (book)", ("citation_publisher", "Cambridge University Press")),
        ("2022", None),
        ("", None),
    ],
)
def test_where_a_paper_appeared(filled: Engine, venue: str, tag: tuple[str, str] | None) -> None:
    with filled.begin() as connection:
        connection.execute(update(PAPERS).where(PAPERS.c.id == "2401.01234").values(journal=venue or None))
    stored = get_paper(filled, "2401.01234")
    assert stored is not None
    kinds = ("citation_journal_title", "citation_conference_title", "citation_publisher")
    found = [(name, content) for name, content in citation_tags(PaperView(stored, None)) if name in kinds]
    assert found == ([tag] if tag else [])


# Crawlers ---------------------------------------------------------------------------------------------------------

SITE_MAP = "{http://www.sitemaps.org/schemas/sitemap/0.9}"


def addresses(content: bytes) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(content).iter(f"{SITE_MAP}loc")]


def test_site_map_names_every_paper_once(client: TestClient, filled: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site_map, "PART", 10)
    monkeypatch.setattr(site_map, "AT_ONCE", 3)
    parts = addresses(client.get("/sitemap.xml").content)
    with filled.connect() as connection:
        ids = set(connection.execute(select(PAPERS.c.id)).scalars())
        last = connection.execute(select(func.max(PAPERS.c.number))).scalar_one()
    assert len(parts) == last // 10 + 1
    found: list[str] = []
    for part in parts:
        answer = client.get(part)
        assert answer.headers["content-type"] == "application/xml; charset=utf-8"
        here = addresses(answer.content)
        assert len(here) <= 10 + len(site_map.FIXED)
        found += here
    assert len(found) == len(set(found))
    assert {address for address in found if "/papers/" in address} == {f"http://testserver/papers/{id}" for id in ids}
    assert {f"http://testserver{path}" for path in site_map.FIXED} <= set(found)
    dates = ElementTree.fromstring(client.get(parts[0]).content).iter(f"{SITE_MAP}lastmod")
    assert all(dt.date.fromisoformat(element.text or "") for element in dates)
    assert client.get(f"/sitemap-{len(parts)}.xml").status_code == 404
    for address in [address for address in found if "/papers/" not in address]:
        assert client.get(address).status_code == 200


def test_no_part_of_the_site_map_is_too_long() -> None:
    assert site_map.PART + len(site_map.FIXED) <= 50_000


def test_site_map_is_written_as_it_is_read(client: TestClient, filled: Engine) -> None:
    """A part is read in pieces: what is held at once does not grow with the part."""
    with filled.begin() as connection:
        row = connection.execute(select(*PAPERS.c).limit(1)).one()._mapping
        values = dict(row) | {"room": None}
        more = [
            values | {"number": 1000 + each, "id": f"x{each}", "revision": 10**6 + each}
            for each in range(3 * site_map.AT_ONCE)
        ]
        connection.execute(insert(PAPERS), more)
    pieces: Iterator[str] = site_map._lines(client.app.state.site, "http://x", 0)  # type: ignore[attr-defined]
    lengths = [piece.count("<url>") for piece in pieces]
    assert sum(lengths) == 68 + len(more) + len(site_map.FIXED)
    assert max(lengths) <= site_map.AT_ONCE


def test_robots(client: TestClient) -> None:
    from urllib.robotparser import RobotFileParser

    answer = client.get("/robots.txt")
    assert answer.headers["content-type"].startswith("text/plain")
    assert "Sitemap: http://testserver/sitemap.xml" in answer.text
    rules = RobotFileParser()
    rules.parse(answer.text.splitlines())
    for path in ("/", "/feed", "/rooms", NORMUON, f"{NORMUON}.md"):
        assert rules.can_fetch("crawler", path), path
    for path in ("/search?q=x", "/account", "/api/v1/papers", "/sign-in", "/digest/x", "/outbox"):
        assert not rules.can_fetch("crawler", path), path


def test_addresses_are_the_public_ones(settings: Settings, filled: Engine, sample_rooms: dict[str, Room]) -> None:
    public = settings.model_copy(update={"base_url": "https://papers.example.org/"})
    with TestClient(create_app(public, sample_rooms)) as reader:
        for path in ("/feed.atom", "/rooms.atom", "/sitemap.xml", "/sitemap-0.xml", "/robots.txt", f"{NORMUON}.md"):
            text = reader.get(path).text
            assert "https://papers.example.org/" in text and "testserver" not in text, path
            assert "example.org//" not in text


def test_new_papers_come_into_the_feed(client: TestClient, filled: Engine) -> None:
    before = valid_atom(client.get("/feed.atom?topic=cs.NE").content)
    assert titles_of(before) == []
    record = PaperRecord(
        title="Quite new", arxiv="2601.00001", abstract="x", published=dt.date(2026, 1, 2), categories=("cs.NE",)
    )
    import_papers(filled, "jsonl", "x", [record])
    assert titles_of(valid_atom(client.get("/feed.atom?topic=cs.NE").content)) == ["Quite new"]
