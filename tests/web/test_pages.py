"""Pages as a reader gets them, without a browser."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import Engine, insert
from starlette.testclient import TestClient

from working_papers.bench.rooms import Room
from working_papers.bench.store import Run
from working_papers.config import Settings
from working_papers.daily.importing import ImportFailed, import_papers
from working_papers.daily.records import PaperRecord
from working_papers.daily.search import SearchIndex
from working_papers.database import now
from working_papers.errors import UserError
from working_papers.web.app import create_app

PAGES = (
    "/",
    "/feed",
    "/feed?period=day",
    "/feed?period=week&start=2024-01-03",
    "/feed?period=month&topic=symmetry",
    "/rooms",
    "/rooms?sort=title&order=down&verdict=holds",
    "/papers/2510.05491",
    "/papers/2110.03336",
    "/papers/2103.03230",
    "/papers/2401.01234",
    "/papers/cs/0112017",
    "/search",
    "/search?q=equivariant+networks",
    "/search?q=nothing+like+zzyzx&runnable=1",
    "/status",
)
OLD_STYLE = PaperRecord(title="An old paper", arxiv="cs/0112017", abstract="About trees.")
NORMUON = "/papers/2510.05491"
NAMES = ["q", "topic", "from", "to", "verdict", "page", "period", "start", "sort", "order", "runnable"]
READING = ["/search", "/feed", "/rooms", "/status", "/feed.json", "/search.json"]
VOID = {"meta", "link", "input", "img", "br", "hr", "path", "rect", "circle", "line"}


class Outline(HTMLParser):
    """Checks that elements nest and collects what the tests look at."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id" and value]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1] == tag, f"</{tag}> closes <{self.open[-1]}>"
        self.open.pop()


def outline(text: str) -> Outline:
    parsed = Outline()
    parsed.feed(text)
    assert parsed.open == []
    return parsed


@pytest.mark.parametrize("address", PAGES)
def test_pages_are_sound(client: TestClient, address: str) -> None:
    response = client.get(address)
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    page = outline(response.text)
    assert len(page.ids) == len(set(page.ids)), "an id stands twice"
    headings = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert headings.count(1) == 1
    assert headings[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(headings)), headings
    for tag, attributes in page.elements:
        assert "style" not in attributes, f"<{tag}> has an inline style, which the policy forbids"
        assert not any(name.startswith("on") for name in attributes), f"<{tag}> has an inline script"
        if tag == "img":
            assert attributes.get("width")
            assert "alt" in attributes
        if tag in {"input", "select"} and attributes.get("type") != "hidden":
            assert f'for="{attributes["id"]}"' in response.text, f"{attributes['id']} has no label"
        target = attributes.get("src") or attributes.get("href") or ""
        if tag in {"img", "script"} or (tag == "link" and attributes.get("rel") in {"stylesheet", "icon"}):
            assert re.match("/[^/]", target), f"<{tag}> asks another server: {target}"
        assert not target.lower().startswith(("javascript:", "data:"))


@pytest.mark.parametrize("address", PAGES)
def test_links_lead_somewhere(client: TestClient, address: str) -> None:
    page = outline(client.get(address).text)
    links = {attributes["href"] for tag, attributes in page.elements if tag in {"a", "link"} and attributes.get("href")}
    links |= {attributes["src"] for tag, attributes in page.elements if tag in {"img", "script"}}
    here = sorted(link for link in links if link and link.startswith("/"))
    assert len(here) > 5
    for link in here[:40]:
        assert client.get(link).status_code == 200, link
    anchors = [link[1:] for link in links if link and link.startswith("#")]
    assert set(anchors) <= set(page.ids)


@pytest.mark.parametrize("address", [*PAGES, "/static/style.css", "/papers/none", "/rooms.json", f"{NORMUON}.bib"])
def test_security_headers(client: TestClient, address: str) -> None:
    headers = client.get(address).headers
    assert headers["content-security-policy"].startswith("default-src 'none'; style-src 'self'; script-src 'self'")
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert "camera=()" in headers["permissions-policy"]
    assert "server-timing" in headers


def test_front_page_shows_what_runs_first(client: TestClient) -> None:
    text = client.get("/").text
    assert text.index("Put to the test") < text.index("Latest papers")
    assert "NorMuon: Making Muon more efficient and scalable" in text
    assert "does not hold" in text
    assert text.count('class="tile ') == 66


def test_paper_page_shows_the_verdict(client: TestClient) -> None:
    text = client.get(NORMUON).text
    assert "Is the error lower?" in text
    assert "What came of it, in a sentence." in text
    assert "9.4\N{NO-BREAK SPACE}% better" in text
    assert "0.2 ± 0.01" in text
    assert "Our &lt;method&gt;" in text
    assert "1.3 times as long as Baseline" in text
    assert "Both arms take 100 steps." in text
    assert "The paper uses larger data." in text
    assert "from working_papers.papers.normuon import" in text
    assert "working-papers run normuon" in text
    assert "21.74\N{NO-BREAK SPACE}%" in text, "the paper's own number"
    assert "https://github.com/zichongli5/NorMuon" in text
    assert "Stale" not in text
    assert '<svg class="interval"' in text
    assert f'<img src="{NORMUON}/figure.svg?v=' in text


def test_stale_verdict_says_why(client: TestClient, sample_rooms: dict[str, Room]) -> None:
    text = client.get(f"/papers/{sample_rooms['benign_overfitting'].paper.arxiv}").text
    assert "Stale:" in text
    assert "code has changed since" in text
    assert ">Stale</span>" in client.get("/rooms").text


def test_citation_tags_and_bibtex(client: TestClient) -> None:
    page = outline(client.get(NORMUON).text)
    meta = [(each["name"], each["content"]) for tag, each in page.elements if tag == "meta" and each.get("name")]
    assert ("citation_title", "NorMuon: Making Muon more efficient and scalable") in meta
    assert next(content for name, content in meta if name == "citation_author") == "Zichong Li"
    assert ("citation_publication_date", "2025/10/07") in meta
    assert ("citation_arxiv_id", "2510.05491") in meta
    assert ("citation_pdf_url", "https://arxiv.org/pdf/2510.05491") in meta
    entry = client.get(f"{NORMUON}.bib").text
    assert entry.startswith("@misc{li2025normuon,\n")
    assert "  eprint = {2510.05491},\n" in entry
    assert "Zichong Li and Liming Liu" in entry
    bulk = client.get("/feed.bib").text
    keys = re.findall(r"@misc\{([^,]+),", bulk)
    assert len(keys) == 30
    assert len(set(keys)) == 30


@pytest.mark.parametrize(
    "other", ["normuon", "arXiv:2510.05491", "2510.05491v2", "https://arxiv.org/abs/2510.05491v1", "NorMuon"]
)
def test_other_ids_lead_to_the_page(client: TestClient, other: str) -> None:
    response = client.get(f"/papers/{other}", follow_redirects=False)
    assert response.status_code == 308
    assert response.headers["location"] == NORMUON


def test_markup_in_papers_is_text(client: TestClient) -> None:
    for address in ("/papers/2401.01234", "/feed", "/search?q=shapes+script+alert", "/status"):
        text = client.get(address).text
        for tag, attributes in outline(text).elements:
            if tag == "script":
                assert (attributes.get("src") or "").startswith("/static/site.js")
            assert "onerror" not in attributes
            if tag == "img":
                assert (attributes.get("src") or "").startswith("/papers/")
        assert "<b>Bold" not in text
        assert "<missing>" not in text
    page = client.get("/papers/2401.01234").text
    assert "&lt;script&gt;alert(" in page
    assert page.count("<math") >= 2, "title and abstract are typeset"
    assert "$\\frac{1}{$" in page, "what cannot be typeset stays as it was written"
    atom = client.get("/feed.atom")
    ElementTree.fromstring(atom.content)


@pytest.mark.parametrize(
    "query",
    [
        "<script>alert(1)</script>",
        '"><img src=x onerror=alert(1)>',
        "' OR 1=1 --",
        "title:(((",
        "\x00\ud800\uffff",
        "a" * 20_000,
        '"',
        "-",
        "*:*",
        "%00",
    ],
)
def test_search_takes_any_text(client: TestClient, query: str) -> None:
    response = client.get("/search", params={"q": query.encode("utf-8", "surrogatepass").decode("utf-8", "replace")})
    assert response.status_code == 200
    for tag, attributes in outline(response.text).elements:
        assert tag != "img"
        assert tag != "script" or (attributes.get("src") or "").startswith("/static/")


@hypothesis_settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(NAMES),
    value=st.text(max_size=60),
    page=st.sampled_from(READING),
)
def test_parameters_never_break_a_page(client: TestClient, name: str, value: str, page: str) -> None:
    response = client.get(page, params={name: value, "q": "networks"} if name != "q" else {name: value})
    assert response.status_code == 200


def test_wrong_parameters_are_named(client: TestClient) -> None:
    text = client.get("/feed?period=year&start=yesterday&page=-3").text
    assert "“year” was left out: period is one of trending, day, week, month." in text
    assert "“yesterday” was left out: start is a day such as 2025-10-07." in text
    assert "“-3” was left out" in text


def test_search_finds_filters_and_marks(client: TestClient) -> None:
    text = client.get("/search?q=Muon").text
    assert "<mark>Muon</mark>" in text
    found = client.get("/search.json?q=2510.05491").json()
    assert found["papers"][0]["id"] == "2510.05491"
    held = client.get("/search.json?verdict=holds").json()
    assert [paper["room"]["slug"] for paper in held["papers"]] == ["normuon"]
    runnable = client.get("/search.json?q=network&runnable=1").json()
    assert all(paper["room"]["runnable"] for paper in runnable["papers"])
    topical = client.get("/search.json?topic=symmetry").json()
    assert topical["papers"]
    assert all("symmetry" in paper["topics"] for paper in topical["papers"])
    dated = client.get("/search.json?from=2001-01-01&to=2002-01-01").json()
    assert [paper["id"] for paper in dated["papers"]] == ["cs/0112017"]
    assert "Nothing found" in client.get("/search?q=zzyzx&verdict=fails").text


def test_search_pages_do_not_repeat(client: TestClient) -> None:
    pages = [client.get(f"/search.json?q=learning+network+model&page={number}").json() for number in (1, 2)]
    ids = [paper["id"] for page in pages for paper in page["papers"]]
    assert len(ids) > 20
    assert len(ids) == len(set(ids))


def test_feed_of_periods(client: TestClient) -> None:
    day = client.get("/feed.json?period=day&start=2024-01-03").json()
    assert [paper["id"] for paper in day["papers"]] == ["2401.01234"]
    empty = client.get("/feed?period=day&start=1990-05-05").text
    assert "No papers in this day" in empty
    assert "Neighbouring periods" in empty
    assert "1 – 7 January 2024" in client.get("/feed?period=week&start=2024-01-03").text
    newest = client.get("/feed.json").json()["papers"]
    days = [paper["day"] for paper in newest]
    assert days == sorted(days, reverse=True)
    second = client.get("/feed.json?page=2").json()["papers"]
    assert not {paper["id"] for paper in newest} & {paper["id"] for paper in second}


def test_rooms_sort_and_filter(client: TestClient) -> None:
    titles = [room["title"].casefold() for room in client.get("/rooms.json?sort=title").json()]
    assert titles == sorted(titles)
    assert len(titles) == 66
    backwards = [room["title"].casefold() for room in client.get("/rooms.json?sort=title&order=down").json()]
    assert backwards == sorted(titles, reverse=True)
    default = [room["state"] for room in client.get("/rooms.json").json()]
    assert default[:3] == ["holds", "does not hold", "inconclusive"]
    stale = client.get("/rooms.json?verdict=stale").json()
    assert [room["slug"] for room in stale] == ["benign_overfitting"]
    assert stale[0]["stale"]
    graphs = client.get("/rooms.json?topic=graphs").json()
    assert 0 < len(graphs) < 66


def test_json_of_a_paper_holds_the_record(client: TestClient) -> None:
    content = client.get(f"{NORMUON}.json").json()
    assert content["room"]["verdict"] == "holds"
    assert content["room"]["record"]["arms"]["ours"]["measures"]["test error"] == pytest.approx([0.19, 0.2, 0.21])
    assert content["room"]["claims"]
    assert client.get("/papers/cs/0112017.json").json()["room"] is None


def test_figure_may_style_itself_and_nothing_else(client: TestClient) -> None:
    response = client.get(f"{NORMUON}/figure.svg")
    assert response.headers["content-type"] == "image/svg+xml"
    assert response.headers["content-security-policy"].startswith(
        "default-src 'none'; style-src 'unsafe-inline'; sandbox"
    )
    assert client.get("/papers/2103.03230/figure.svg").status_code == 404


def test_new_verdict_appears_without_a_restart(
    client: TestClient, sample_rooms: dict[str, Room], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("working_papers.web.verdicts.REFRESH_SECONDS", 0.0)
    assert "No verdict yet" not in client.get(NORMUON).text
    (sample_rooms["normuon"].folder / "reference.json").unlink()
    assert "No verdict yet" in client.get(NORMUON).text


def test_broken_verdict_is_named_and_breaks_nothing(
    client: TestClient, sample_rooms: dict[str, Room], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("working_papers.web.verdicts.REFRESH_SECONDS", 0.0)
    (sample_rooms["normuon"].folder / "reference.json").write_text("{}")
    assert client.get(NORMUON).status_code == 200
    assert "reference.json" in client.get("/status").text


def test_runs_of_this_installation(client: TestClient, filled: Engine, settings: Settings) -> None:
    common = {"slug": "normuon", "scale": "smoke", "sham": False, "seeds": 2, "code_hash": "0", "started": now()}
    with filled.begin() as connection:
        connection.execute(insert(Run).values(**common, status="failed", error="Traceback\nValueError: <too> hot"))
        made = connection.execute(
            insert(Run).values(**common, status="finished", record={"answer": "inconclusive"}).returning(Run.id)
        )
        number = made.scalar_one()
    figures = settings.figures_folder / "normuon"
    figures.mkdir(parents=True)
    (figures / f"{number}.svg").write_text('<svg viewBox="0 0 10 10"></svg>')
    text = client.get(NORMUON).text
    assert "Could not run" in text
    assert "ValueError: &lt;too&gt; hot" in text
    assert client.get(f"{NORMUON}/runs/{number}.svg").status_code == 200
    assert client.get(f"{NORMUON}/runs/{number + 1}.svg").status_code == 404


# Whole responses --------------------------------------------------------------------------------------------------


def test_errors_are_pages(client: TestClient) -> None:
    for address in (
        "/nothing",
        "/papers/",
        "/papers/0000.00000",
        "/static/../app.py",
        "/papers/%00",
        "/papers/..%2f..%2fetc",
    ):
        response = client.get(address)
        assert response.status_code == 404, address
        assert "<h1>Not found</h1>" in response.text
        assert "Traceback" not in response.text
    response = client.post("/feed")
    assert response.status_code == 405
    assert "<h1>Not that way</h1>" in response.text
    assert "GET" in response.headers["allow"]
    assert client.get("/papers/none.json").json()["error"]
    assert client.get("/papers/none/runs/x.svg").status_code == 404


def test_own_fault_is_a_page_without_a_traceback(
    settings: Settings, filled: Engine, sample_rooms: dict[str, Room], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr("working_papers.web.routes.feed.latest_papers", broken)
    with TestClient(create_app(settings, sample_rooms), raise_server_exceptions=False) as client:
        response = client.get("/")
    assert response.status_code == 500
    assert "The fault is the site" in response.text
    assert "secret detail" not in response.text
    assert response.headers["content-security-policy"].startswith("default-src 'none'")


def test_head_is_get_without_the_body(client: TestClient) -> None:
    response = client.head("/rooms")
    assert response.status_code == 200
    assert response.content == b""
    assert response.headers["content-type"].startswith("text/html")


def test_pages_are_compressed_and_not_sent_twice(client: TestClient) -> None:
    first = client.get("/rooms", headers={"accept-encoding": "gzip"})
    assert first.headers["content-encoding"] == "gzip"
    assert len(gzip.compress(first.content)) < 30_000
    again = client.get("/rooms", headers={"if-none-match": first.headers["etag"]})
    assert again.status_code == 304
    style = re.search(r'href="(/static/style\.css\?v=\w+)"', first.text)
    assert style is not None
    kept = client.get(style[1])
    assert "immutable" in kept.headers["cache-control"]
    assert "immutable" not in client.get("/static/style.css").headers["cache-control"]
    assert client.get(style[1], headers={"if-none-match": kept.headers["etag"]}).status_code == 304


def test_status_shows_imports(client: TestClient, filled: Engine) -> None:
    def breaks() -> Iterator[PaperRecord]:
        yield OLD_STYLE
        raise UserError("the source <said> no")

    with pytest.raises(ImportFailed):
        import_papers(filled, "arxiv", "category cs.LG", breaks())
    text = client.get("/status").text
    assert "the source &lt;said&gt; no" in text
    assert "papers.jsonl" in text
    assert "line 3: the title is &lt;missing&gt;" in text
    assert client.get("/healthz").json() == {"status": "ok", "papers": 68, "search": "ok"}


def test_empty_site(settings: Settings) -> None:
    with TestClient(create_app(settings, {})) as client:
        for address in ("/", "/feed", "/rooms", "/search?q=x", "/status", "/feed.atom", "/feed.bib", "/rooms.json"):
            assert client.get(address).status_code == 200, address
        assert "No papers here yet" in client.get("/").text


def test_damaged_index_is_said_and_titles_are_searched(
    settings: Settings, filled: Engine, sample_rooms: dict[str, Room]
) -> None:
    (settings.index_folder / "index.json").write_text("not json")
    with TestClient(create_app(settings, sample_rooms)) as client:
        response = client.get("/search?q=normuon")
        assert response.status_code == 200
        assert "working-papers index rebuild" in response.text
        assert "Making Muon more efficient" in response.text
        assert client.get("/search.json?q=100%25_").json()["papers"] == []
        assert client.get(NORMUON).status_code == 200
        assert "index rebuild" in client.get("/status").text
        health = client.get("/healthz")
        assert health.status_code == 200
        assert "damaged" in health.json()["search"]


def test_lost_database_is_a_page(settings: Settings, filled: Engine, sample_rooms: dict[str, Room]) -> None:
    if filled.dialect.name != "sqlite":
        pytest.skip("a SQLite file is damaged here")
    with TestClient(create_app(settings, sample_rooms)) as client:
        assert client.get("/").status_code == 200
        client.app.state.site.engine.dispose()  # type: ignore[attr-defined]
        filled.dispose()
        for file in settings.home.glob("working-papers.db*"):
            file.write_bytes(b"this is no database " * 500)
        response = client.get("/")
        assert response.status_code == 503
        assert "working-papers.db" in response.text
        assert "Traceback" not in response.text
        assert client.get("/healthz").status_code == 503


def test_serving_all_pages_never_imports_torch(settings: Settings, filled: Engine) -> None:
    program = f"""
import sys
from starlette.testclient import TestClient
from working_papers.config import load_settings
from working_papers.web.app import create_app
with TestClient(create_app(load_settings())) as client:
    for address in {[*PAGES, "/rooms.json", f"{NORMUON}.json", f"{NORMUON}.bib", "/feed.atom", "/healthz"]!r}:
        assert client.get(address).status_code == 200, address
found = [name for name in ("torch", "matplotlib", "working_papers.papers.normuon") if name in sys.modules]
assert not found, found
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_two_sites_over_one_index(settings: Settings, client: TestClient, filled: Engine) -> None:
    before = client.get("/search.json?q=zebrafish").json()["papers"]
    import_papers(filled, "jsonl", "more", iter([PaperRecord(title="Zebrafish counting", arxiv="2402.00001")]))
    with closing(SearchIndex.open(settings)) as index:
        index.catch_up(filled)
    after = client.get("/search.json?q=zebrafish").json()["papers"]
    assert "2402.00001" not in [paper["id"] for paper in before]
    assert after[0]["id"] == "2402.00001"
    assert json.loads(client.get("/feed.json?period=day&start=2402-01-01").text)["papers"] == []


def test_templates_and_static_files_are_installed() -> None:
    import working_papers.web

    folder = Path(working_papers.web.__file__).parent
    assert (folder / "templates" / "base.html").is_file()
    assert (folder / "static" / "style.css").is_file()
