"""Votes, comments, submissions, saved searches and what trends, as a browser without scripts sees them."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urlsplit
from xml.etree import ElementTree

import pytest
from sqlalchemy import Engine, event, update
from starlette.testclient import TestClient

from tests.daily.test_arxiv import atom as arxiv_feed
from tests.daily.test_arxiv import entry as arxiv_entry
from tests.web.test_pages import outline
from tests.web.visitors import ORIGIN, Reader
from working_papers.daily.catalogue import get_paper, paper_count
from working_papers.daily.community import submissions
from working_papers.daily.community.comments import list_comments, write_comment
from working_papers.daily.community.models import VoteRow
from working_papers.daily.community.saved_searches import list_saved_searches
from working_papers.daily.community.votes import vote
from working_papers.daily.importing import import_papers
from working_papers.daily.records import PaperRecord
from working_papers.database import now
from working_papers.web import site as site_module
from working_papers.web.routes import community, search

NORMUON = "/papers/2510.05491"
NASTY_PAPER = "/papers/2401.01234"
ATOM = "{http://www.w3.org/2005/Atom}"
PAYLOADS = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'><svg/onload=alert(1)>",
    "</textarea><script>alert(1)</script>",
    "]]></summary><script xmlns='http://www.w3.org/1999/xhtml'>alert(1)</script>",
    "{{ 7 * 7 }} {% raw %}",
    "[x](javascript:alert(1)) ![x](javascript:alert(1)) <javascript:alert(1)>",
    "\u202e\ufffe\x01 &lt;b&gt; &#60;script&#62;",
)


@pytest.fixture
def ada(client: TestClient, engine: Engine) -> Reader:
    return Reader(client, engine, "ada@example.org")


@pytest.fixture
def grace(client: TestClient, engine: Engine) -> Reader:
    return Reader(client, engine, "grace@example.org")


@pytest.fixture
def root(client: TestClient, engine: Engine) -> Reader:
    return Reader(client, engine, "root@example.org", administrator=True)


@pytest.fixture
def anybody(client: TestClient, engine: Engine) -> Reader:
    return Reader(client, engine)


def number_of(engine: Engine, page: str) -> int:
    paper = get_paper(engine, page.removeprefix("/papers/"))
    assert paper is not None
    return paper.number


@dataclass
class HtmlForm:
    """A form as a browser reads it."""

    action: str
    method: str
    fields: dict[str, str] = field(default_factory=dict)
    button: str = ""


class _Forms(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[HtmlForm] = []
        self._open: HtmlForm | None = None
        self._area = self._in_button = False
        self._name = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "form":
            self._open = HtmlForm(given.get("action", ""), given.get("method", "get"))
            self.found.append(self._open)
        if self._open is None:
            return
        if tag == "input" and given.get("type") != "checkbox" and "name" in given:
            self._open.fields[given["name"]] = given.get("value", "")
        elif tag == "textarea":
            self._area, self._name = True, given["name"]
            self._open.fields[self._name] = ""
        elif tag == "button":
            self._in_button = True

    def handle_data(self, data: str) -> None:
        if self._open is not None and self._area:
            self._open.fields[self._name] += data
        if self._open is not None and self._in_button:
            self._open.button += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self._open = None
        self._area = self._area and tag != "textarea"
        self._in_button = self._in_button and tag != "button"


def forms(text: str, action: str) -> list[HtmlForm]:
    """The forms of a page that go to an address."""
    parser = _Forms()
    parser.feed(text)
    return [form for form in parser.found if re.fullmatch(action, form.action)]


def send(reader: Reader, page: str, action: str, changes: dict[str, str] | None = None) -> Any:
    """Open a page, fill the form in and press its button, as a browser without scripts does.

    Like a browser under the site's policy it tells nobody where it came from.
    """
    (form,) = forms(reader.get(page).text, action)
    assert form.method == "post"
    headers = {"Origin": "null", "Sec-Fetch-Site": "same-origin"}
    return reader.browser.post(form.action, data={**form.fields, **(changes or {})}, headers=headers)


def entry_of(text: str, page: str) -> str:
    """The part of a list that is about one paper."""
    (found,) = [part for part in re.findall(r"<article class=\"entry.*?</article>", text, re.DOTALL) if page in part]
    return str(found)


# Votes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "page", ["/feed", "/feed?period=month&topic=symmetry", "/", "/search?q=orthogonalized+muon", NORMUON]
)
def test_a_vote_without_scripts_comes_back_to_where_the_reader_was(
    page: str, ada: Reader, anybody: Reader, engine: Engine
) -> None:
    text = ada.get(page).text
    form = forms(text, r"/papers/.+/vote")[0]
    paper = form.action.removesuffix("/vote")
    anchor = "" if page == paper else f"#paper-{number_of(engine, paper)}"
    answer = ada.browser.post(form.action, data=form.fields, headers={"Origin": "null"})
    assert answer.status_code == 303
    assert answer.headers["location"] == page + anchor
    assert not anchor or f'id="{anchor[1:]}"' in text
    voted = ada.get(page).text
    part = voted if page == paper else entry_of(voted, paper)
    assert 'aria-pressed="true"' in part and f'action="{paper}/unvote"' in part
    assert "votes: </span><span data-count>1</span>" in part
    assert 'aria-pressed="true"' not in anybody.get(page).text, "others see the count, not whose it is"
    back = ada.browser.post(f"{paper}/unvote", data=form.fields, headers={"Origin": "null"})
    assert back.headers["location"] == page + anchor
    assert 'aria-pressed="true"' not in ada.get(page).text


@pytest.mark.parametrize(
    "next_", ["https://evil.org/", "//evil.org", "/\\evil.org", "javascript:alert(1)", "/a\nb", ""]
)
def test_a_vote_leads_nowhere_else(next_: str, ada: Reader) -> None:
    answer = ada.post(f"{NORMUON}/vote", {"next": next_})
    assert answer.status_code == 303
    assert answer.headers["location"] in ("/", NORMUON)


def test_scripts_get_the_count(ada: Reader, grace: Reader, anybody: Reader) -> None:
    json = {"Accept": "application/json"}
    first = ada.post(f"{NORMUON}/vote", headers=json)
    assert first.json() == {"votes": 1, "voted": True} and first.headers["cache-control"] == "no-store"
    assert grace.post(f"{NORMUON}/vote", headers=json).json() == {"votes": 2, "voted": True}
    assert grace.post(f"{NORMUON}/vote", headers=json).json() == {"votes": 2, "voted": True}
    assert ada.post(f"{NORMUON}/unvote", headers=json).json() == {"votes": 1, "voted": False}
    assert anybody.browser.post(f"{NORMUON}/vote", headers=json).status_code == 401


def test_counts_stand_on_every_list(ada: Reader, grace: Reader, anybody: Reader, engine: Engine) -> None:
    for reader in (ada, grace):
        reader.post(f"{NORMUON}/vote")
    write_comment(engine, ada.id, number_of(engine, NORMUON), "One")
    for page in ("/", "/feed?period=month&start=2025-10-07", "/feed?period=trending", "/search?q=2510.05491"):
        part = entry_of(anybody.get(page).text, NORMUON)
        assert "votes: </span>2</a>" in part and "1 comment<" in part, page
    text = anybody.get(NORMUON).text
    assert "votes: </span>2</a>" in text and "1 comment<" in text
    assert f'href="{NORMUON}#comments"' in text
    json = anybody.get(f"{NORMUON}.json").json()
    assert (json["votes"], json["comments"], json["submitted_by"]) == (2, 1, None)


def test_who_is_not_signed_in_is_led_to_it_and_back(anybody: Reader, engine: Engine) -> None:
    text = anybody.get("/feed?period=month&start=2025-10-07").text
    assert not forms(text, r".*vote")
    anchor = f"%23paper-{number_of(engine, NORMUON)}"
    assert f'href="/sign-in?next=%2Ffeed%3Fperiod%3Dmonth%26start%3D2025-10-07{anchor}"' in text
    for path in (f"{NORMUON}/vote", f"{NORMUON}/comments", "/submit", "/searches"):
        answer = anybody.browser.post(path, headers=ORIGIN)
        assert answer.status_code == 303 and answer.headers["location"].startswith("/sign-in")
    for path in ("/submit", "/comments/1/edit"):
        answer = anybody.get(path)
        assert answer.status_code == 303 and answer.headers["location"].startswith("/sign-in?next=")


def test_votes_for_what_is_not_there(ada: Reader) -> None:
    for paper in ("2510.99999", "nothing", "a%00b", "x" * 3000, "..%2f..%2fetc%2fpasswd"):
        for action in ("vote", "unvote", "comments"):
            assert ada.post(f"/papers/{paper}/{action}", {"body": "x"}).status_code == 404
    assert ada.post("/papers/normuon/vote", headers={"Accept": "application/json"}).json()["votes"] == 1, "by its room"


def test_too_many_votes_are_refused(ada: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(community, "VOTES", (2, 60))
    token = {"form_token": ada.token()}
    codes = [ada.browser.post(f"{NORMUON}/vote", data=token, headers=ORIGIN).status_code for _ in range(3)]
    assert codes == [303, 303, 429]


def test_what_a_source_counted_is_kept_apart(client: TestClient, engine: Engine) -> None:
    record = PaperRecord(
        title="A paper that was liked elsewhere", arxiv="2501.00001", upvotes=1234, comment_count=5,
        published=dt.date(2025, 1, 2),
    )  # fmt: skip
    import_papers(engine, "hf", "x", [record])
    text = client.get("/papers/2501.00001").text
    assert "1\u202f234 upvotes where it was found" in text and "5 comments where it was found" in text
    assert "votes: </span>0</a>" in text and ">0 comments<" in text
    part = entry_of(client.get("/feed?period=day&start=2025-01-02").text, "/papers/2501.00001")
    assert "234" not in part and "votes: </span>0</a>" in part


def test_a_list_costs_as_many_queries_however_long_it_is(ada: Reader, engine: Engine) -> None:
    def queries(page: str) -> int:
        count = 0

        def note(*_: Any) -> None:
            nonlocal count
            count += 1

        ada.get(page)  # what is remembered for a while is remembered now
        event.listen(engine_of(ada), "before_cursor_execute", note)
        ada.get(page)
        event.remove(engine_of(ada), "before_cursor_execute", note)
        return count

    def engine_of(reader: Reader) -> Engine:
        found: Engine = reader.browser.app.state.site.engine  # type: ignore[attr-defined]
        return found

    assert [len(re.findall('<article class="entry"', ada.get(f"/feed?page={page}").text)) for page in (1, 3)] == [30, 8]
    assert 0 < queries("/feed") == queries("/feed?page=3") <= 20


# Trending ---------------------------------------------------------------------------------------------------------


def test_trending_in_every_form(ada: Reader, anybody: Reader, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site_module, "TRENDING_SECONDS", 0.0)
    voted = ("2103.03230", "2401.01234", "cs/0112017")
    for age, id in enumerate(voted):
        vote(engine, ada.id, number_of(engine, id))
        with engine.begin() as connection:
            query = update(VoteRow).where(VoteRow.number == number_of(engine, id))
            connection.execute(query.values(created=now() - dt.timedelta(days=age)))
    text = anybody.get("/feed?period=trending").text
    assert re.findall(r'class="entry-title"><a href="/papers/([^"]+)"', text)[:3] == list(voted)
    assert "each worth half as much after three days" in text and 'aria-current="page">Trending</a>' in text
    json = anybody.get("/feed.json?period=trending").json()
    assert [paper["id"] for paper in json["papers"]][:3] == list(voted) and json["period"] == "trending"
    feed = ElementTree.fromstring(anybody.get("/feed.atom?period=trending").content)
    links = [entry.find(f"{ATOM}link").get("href", "") for entry in feed.iter(f"{ATOM}entry")]  # type: ignore[union-attr]
    assert [urlsplit(link).path.removeprefix("/papers/") for link in links][:3] == list(voted)
    bib = anybody.get("/feed.bib?period=trending").text
    assert bib.index("2103.03230") < bib.index("2401.01234") < bib.index("cs/0112017")
    for form in ("atom", "json", "bib"):
        assert f'href="/feed.{form}?period=trending"' in text
    with_topic = anybody.get("/feed.json?period=trending&topic=stat.ML").json()["papers"]
    assert [paper["id"] for paper in with_topic] == ["2401.01234"]


def test_trending_is_turned_page_by_page(ada: Reader, anybody: Reader, engine: Engine) -> None:
    vote(engine, ada.id, number_of(engine, "cs/0112017"))
    seen: list[str] = []
    page = "/feed?period=trending"
    for _ in range(10):
        text = anybody.get(page).text
        seen += re.findall(r'class="entry-title"><a href="/papers/([^"]+)"', text)
        more = re.search(r'rel="next" href="([^"]+)">More papers', text)
        if more is None:
            break
        page = more[1].replace("&amp;", "&")
    assert seen[0] == "cs/0112017" and len(seen) == len(set(seen)) == paper_count(engine)
    assert "There are no papers this far back" in anybody.get("/feed?period=trending&page=300").text
    for wrong in ("0", "-1", "x", "1e9", "99999999999999999999"):
        assert anybody.get(f"/feed?period=trending&page={wrong}").status_code == 200


# Comments ---------------------------------------------------------------------------------------------------------


def test_a_comment_from_writing_to_deleting(ada: Reader, grace: Reader, anybody: Reader, engine: Engine) -> None:
    made = send(ada, NORMUON, f"{NORMUON}/comments", {"body": "It **holds**: see https://example.org/x_y."})
    (comment,) = list_comments(engine, number_of(engine, NORMUON))
    place = f"#comment-{comment.id}"
    assert (made.status_code, made.headers["location"]) == (303, NORMUON + place)
    text = anybody.get(NORMUON).text
    assert f'<li id="comment-{comment.id}">' in text and "<strong>ada</strong>" in text
    assert 'It <strong>holds</strong>: see <a href="https://example.org/x_y" rel="nofollow noopener ugc">' in text
    assert "/edit" not in text and "/delete" not in text, "who is not its author finds no button"
    assert f"/comments/{comment.id}/edit" not in grace.get(NORMUON).text
    assert anybody.get(f"/comments/{comment.id}").headers["location"] == NORMUON + place
    changed = send(ada, f"/comments/{comment.id}/edit", r"/comments/\d+/edit", {"body": "It *seems* to hold."})
    assert changed.headers["location"] == NORMUON + place
    text = anybody.get(NORMUON).text
    assert "It <em>seems</em> to hold." in text and "(changed " in text
    outline(ada.get(NORMUON).text)
    assert send(ada, NORMUON, r"/comments/\d+/delete").headers["location"] == f"{NORMUON}#comments"
    assert "seems" not in anybody.get(NORMUON).text and "None yet." in anybody.get(NORMUON).text
    assert anybody.get(f"/comments/{comment.id}").status_code == 404
    assert ada.get(f"/comments/{comment.id}/edit").status_code == 404


def test_others_comments_are_left_alone(ada: Reader, grace: Reader, root: Reader, engine: Engine) -> None:
    paper = number_of(engine, NORMUON)
    comment = write_comment(engine, ada.id, paper, "Mine")
    for reader in (grace, root):
        assert reader.get(f"/comments/{comment}/edit").status_code == 403
        assert reader.post(f"/comments/{comment}/edit", {"body": "Yours"}).status_code == 403
        assert reader.post(f"/comments/{comment}/delete").status_code == 403
    assert (
        grace.post(f"/comments/{comment}/hide").status_code
        == 403
        == grace.post(f"/comments/{comment}/show").status_code
    )
    assert [each.body for each in list_comments(engine, paper)] == ["Mine"]
    for id in (0, 999, 2**31, 2**63, 10**30):
        for action in ("edit", "delete"):
            assert ada.post(f"/comments/{id}/{action}", {"body": "x"}).status_code == 404
        assert root.post(f"/comments/{id}/hide").status_code == 404 == ada.get(f"/comments/{id}").status_code
        assert ada.post(f"/account/searches/{id}/delete").status_code == 404


def test_administrators_hide_and_show(
    ada: Reader, grace: Reader, anybody: Reader, root: Reader, engine: Engine
) -> None:
    comment = write_comment(engine, ada.id, number_of(engine, NORMUON), "Something rude")
    assert send(root, NORMUON, r"/comments/\d+/hide").headers["location"] == f"{NORMUON}#comment-{comment}"
    for reader in (anybody, grace):
        text = reader.get(NORMUON).text
        assert "rude" not in text and ">0 comments<" in text
        assert reader.get(f"/comments/{comment}").status_code == 404
        assert "rude" not in reader.get(f"{NORMUON}.json").text
    for reader in (ada, root):
        assert "Something rude" in reader.get(NORMUON).text and "Hidden by an administrator" in reader.get(NORMUON).text
        assert reader.get(f"/comments/{comment}").status_code == 303
    send(root, NORMUON, r"/comments/\d+/show")
    assert "Something rude" in anybody.get(NORMUON).text


def test_a_comment_that_cannot_be_taken_comes_back(
    ada: Reader, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = "word " * 2_001
    answer = ada.post(f"{NORMUON}/comments", {"body": long})
    assert answer.status_code == 422 and "at most 10,000 characters" in answer.text
    (form,) = forms(answer.text, f"{NORMUON}/comments")
    assert form.fields["body"].strip() == long.strip() and 'aria-describedby="problem"' in answer.text
    outline(answer.text)
    assert ada.post(f"{NORMUON}/comments", {"body": " \n "}).status_code == 422
    monkeypatch.setattr(community, "COMMENTS", (3, 600))
    assert ada.post(f"{NORMUON}/comments", {"body": "One"}).status_code == 303
    late = ada.post(f"{NORMUON}/comments", {"body": "Two </textarea><b>"})
    assert late.status_code == 429 and int(late.headers["retry-after"]) > 0 and late.headers["ratelimit"]
    assert "Two &lt;/textarea&gt;&lt;b&gt;" in late.text and "too often" in late.text
    (comment,) = list_comments(engine, number_of(engine, NORMUON))
    refused = ada.post(f"/comments/{comment.id}/edit", {"body": "Three"})
    assert (
        refused.status_code == 429 and forms(refused.text, f"/comments/{comment.id}/edit")[0].fields["body"] == "Three"
    )


def test_comments_are_turned_page_by_page(ada: Reader, anybody: Reader, engine: Engine) -> None:
    paper = number_of(engine, NORMUON)
    ids = [write_comment(engine, ada.id, paper, f"Number {number}.") for number in range(52)]
    first = anybody.get(NORMUON).text
    assert first.count('<li id="comment-') == 50 and f'href="{NORMUON}?page=2#comments"' in first
    assert "Earlier comments" not in first and ">52 comments<" in first
    second = anybody.get(f"{NORMUON}?page=2").text
    assert "Number 51." in second and "Number 49." not in second and f'href="{NORMUON}#comments"' in second
    assert f'rel="canonical" href="http://testserver{NORMUON}"' in second
    assert anybody.get(f"/comments/{ids[-1]}").headers["location"] == f"{NORMUON}?page=2#comment-{ids[-1]}"
    assert anybody.get(f"/comments/{ids[49]}").headers["location"] == f"{NORMUON}#comment-{ids[49]}"
    made = ada.post(f"{NORMUON}/comments", {"body": "The newest."})
    assert made.headers["location"] == f"{NORMUON}?page=2#comment-{ids[-1] + 1}"
    assert "None this far on." in anybody.get(f"{NORMUON}?page=9").text
    assert "was left out" in anybody.get(f"{NORMUON}?page=x").text


# Submissions ------------------------------------------------------------------------------------------------------

HAND = {
    "title": "Slow features emerge late in the training of small transformers",
    "authors": "Ada Lovelace\r\nAlan Turing",
    "abstract": "We look.\r\n\r\nWe find.",
    "address": "https://example.org/slow",
    "date": "2020-02-29",
}
Serve = Callable[[Callable[[str], tuple[int, bytes]]], Any]


def test_by_hand(ada: Reader, anybody: Reader, engine: Engine) -> None:
    hand = forms(ada.get("/submit").text, "/submit")[1]
    assert set(hand.fields) == {"form_token", "kind", *HAND}
    made = ada.post("/submit", {**hand.fields, **HAND})
    page = "/papers/slow-features-emerge-late-in-the-training-of-small-transformers"
    assert (made.status_code, made.headers["location"]) == (303, page)
    text = anybody.get(page).text
    assert "Submitted by ada, " in text and 'href="https://example.org/slow"' in text
    assert '<p class="abstract">We look.</p>' in text and '<p class="abstract">We find.</p>' in text
    part = entry_of(anybody.get("/feed").text, page)
    assert "29 February 2020" in part and "submitted by ada" in part, "it is in today's feed"
    assert page in anybody.get("/search?q=late+slow+features").text, "it is found at once"
    assert anybody.get(f"{page}.json").json()["submitted_by"] == "ada"


def test_a_paper_that_is_here_is_shown_instead(ada: Reader, grace: Reader, engine: Engine) -> None:
    count = paper_count(engine)
    for given in (
        {"kind": "arxiv", "arxiv": "https://arxiv.org/abs/2510.05491v2"},
        {
            **HAND,
            "kind": "hand",
            "title": "NorMuon - making Muon more efficient, and scalable",
            "authors": "Zichong Li",
        },
    ):
        answer = ada.post("/submit", given)
        assert answer.headers.get("location") == f"{NORMUON}?known=1", answer.text[:500]
    assert '<p class="notice" role="status">This paper is here already.</p>' in ada.get(f"{NORMUON}?known=1").text
    assert "here already" not in ada.get(NORMUON).text
    assert paper_count(engine) == count


def test_where_only_titles_are_alike_the_reader_decides(ada: Reader, engine: Engine) -> None:
    count = paper_count(engine)
    near = {**HAND, "kind": "hand", "title": "NorMuon: Making Muon more efficient & scalable", "authors": "Eve Else"}
    asked = ada.post("/submit", near)
    assert asked.status_code == 409 and paper_count(engine) == count
    assert f'<a href="{NORMUON}">' in asked.text and "has nearly the same title" in asked.text
    hand = forms(asked.text, "/submit")[1]
    assert hand.fields["title"] == near["title"] and 'name="another" type="checkbox"' in asked.text
    outline(asked.text)
    made = ada.post("/submit", {**hand.fields, "another": "1"})
    assert made.status_code == 303 and "known" not in made.headers["location"] and paper_count(engine) == count + 1


@pytest.mark.parametrize(
    ("changes", "name", "message"),
    [
        ({"title": "!!!"}, "title", "Title has 1 to 300 characters"),
        ({"authors": " "}, "authors", "Authors are 1 to 200 names"),
        ({"date": "29.2.2020"}, "date", "Date is &#39;29.2.2020&#39;; expected a day such as 2025-10-07."),
        ({"date": "1066-10-14"}, "date", "Date is 1066-10-14"),
        ({"address": "javascript:alert(1)"}, "address", "Address is"),
        ({"abstract": "x" * 10_001}, "abstract", "Abstract has at most 10,000 characters"),
        ({"kind": "arxiv", "arxiv": "<b>"}, "arxiv", "&#39;&lt;b&gt;&#39; is not an arXiv id"),
    ],
)
def test_fields_that_cannot_be_used_are_named_and_kept(
    changes: dict[str, str], name: str, message: str, ada: Reader, engine: Engine
) -> None:
    count = paper_count(engine)
    answer = ada.post("/submit", {"kind": "hand", **HAND, **changes})
    assert answer.status_code == 422 and message in answer.text
    marked = re.findall(
        r'<(?:input|textarea) id="([a-z]+)"[^>]*aria-invalid="true" aria-describedby="problem"', answer.text
    )
    assert marked == [name]
    kept = forms(answer.text, "/submit")
    given = kept[0].fields if changes.get("kind") == "arxiv" else kept[1].fields
    assert given[name].strip() == changes[name].strip()
    outline(answer.text)
    assert paper_count(engine) == count


@pytest.fixture
def arxiv(serve: Serve, client: TestClient, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An arXiv that has number 7 only; the site asks it."""
    monkeypatch.setattr(submissions, "ARXIV_SECONDS", 0.0)
    server = serve(lambda path: (200, arxiv_feed(arxiv_entry(7)) if "2510.00007" in path else arxiv_feed()))
    site = client.app.state.site  # type: ignore[attr-defined]
    monkeypatch.setattr(site, "settings", site.settings.model_copy(update={"arxiv_url": server.address}))
    return server


def test_from_arxiv(ada: Reader, anybody: Reader, arxiv: Any) -> None:
    (form, _) = forms(ada.get("/submit").text, "/submit")
    made = ada.post("/submit", {**form.fields, "arxiv": "https://arxiv.org/abs/2510.00007v2"})
    assert (made.status_code, made.headers["location"]) == (303, "/papers/2510.00007")
    assert "/papers/2510.00007" in anybody.get("/search?q=Schrödinger+study").text
    missing = ada.post("/submit", {**form.fields, "arxiv": "2510.00008"})
    assert missing.status_code == 422 and "ArXiv has no paper 2510.00008" in missing.text
    assert [path.partition("id_list=")[2].partition("&")[0] for path in arxiv.paths] == ["2510.00007", "2510.00008"]


@pytest.mark.parametrize("field", ["arxiv", "address"])
@pytest.mark.parametrize("shape", ["{0}/abs/2510.00007", "http://arxiv.org@{1}/abs/2510.00007", "{0}"])
def test_addresses_that_are_typed_are_never_fetched(
    field: str, shape: str, ada: Reader, arxiv: Any, serve: Serve
) -> None:
    bait = serve(lambda _: (200, arxiv_feed(arxiv_entry(7))))
    address = shape.format(bait.address, urlsplit(bait.address).netloc)
    answer = ada.post("/submit", {**HAND, "kind": "hand" if field == "address" else "arxiv", field: address})
    assert answer.status_code == (422 if field == "arxiv" or "@" in address else 303)
    if answer.status_code == 303:
        ada.get(answer.headers["location"])
    assert bait.paths == [] == arxiv.paths


def test_an_arxiv_that_does_not_answer(
    ada: Reader, client: TestClient, monkeypatch: pytest.MonkeyPatch, closed_address: str
) -> None:
    monkeypatch.setattr(submissions, "ARXIV_SECONDS", 0.0)
    site = client.app.state.site  # type: ignore[attr-defined]
    monkeypatch.setattr(site, "settings", site.settings.model_copy(update={"arxiv_url": closed_address}))
    answer = ada.post("/submit", {"kind": "arxiv", "arxiv": "2510.00008"})
    assert answer.status_code == 502 and "ArXiv does not answer just now" in answer.text
    assert closed_address not in answer.text and forms(answer.text, "/submit")[0].fields["arxiv"] == "2510.00008"


def test_so_many_a_day(ada: Reader, grace: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(community, "SUBMISSIONS_A_DAY", 2)
    names = ("On the habits of owls", "Why rivers bend as they do", "The chemistry of rust")
    codes = [ada.post("/submit", {**HAND, "kind": "hand", "title": name}).status_code for name in names]
    assert codes == [303, 303, 422]
    assert grace.post("/submit", {**HAND, "kind": "hand", "title": names[2]}).status_code == 303
    monkeypatch.setattr(community, "SUBMISSIONS", (3, 600))
    assert ada.post("/submit", {"kind": "arxiv", "arxiv": "x"}).status_code == 429


# Saved searches ---------------------------------------------------------------------------------------------------


def test_a_saved_search_from_saving_to_deleting(ada: Reader, grace: Reader, anybody: Reader, engine: Engine) -> None:
    page = "/search?q=equivariant+networks&topic=symmetry&runnable=1&page=1&from=2000-01-01"
    saved = send(ada, page, "/searches")
    assert saved.status_code == 303 and saved.headers["location"].startswith("/account?done=search")
    (kept,) = list_saved_searches(engine, ada.id)
    assert kept.query == {"q": "equivariant networks", "topic": "symmetry", "runnable": "1"}
    text = ada.get("/account?done=search").text
    assert "The search is saved." in text and "equivariant networks · symmetry · runs" in text
    assert f"/searches/{kept.key}.atom" in text and "equivariant networks" not in grace.get("/account").text
    assert anybody.get(f"/searches/{kept.key}").headers["location"] == kept.href
    assert send(ada, "/account", r"/account/searches/\d+/name", {"name": "Symmetry <b>"}).status_code == 303
    assert "Symmetry &lt;b&gt;" in ada.get("/account").text
    assert ada.post(f"/account/searches/{kept.id}/name", {"name": " "}).status_code == 422
    for action in ("name", "delete"):
        assert grace.post(f"/account/searches/{kept.id}/{action}", {"name": "Mine"}).status_code == 404
    feed = ElementTree.fromstring(anybody.get(f"/searches/{kept.key}.atom").content)
    assert feed.findtext(f"{ATOM}title") == "Working Papers: Symmetry <b>"
    assert send(ada, "/account", r"/account/searches/\d+/delete").status_code == 303
    assert list_saved_searches(engine, ada.id) == []
    for ending in ("", ".atom", ".json", ".bib"):
        assert anybody.get(f"/searches/{kept.key}{ending}").status_code == 404


def test_feeds_of_a_saved_search_bring_what_is_new(ada: Reader, anybody: Reader, engine: Engine) -> None:
    ada.post("/searches", {"q": "attention"})
    (kept,) = list_saved_searches(engine, ada.id)
    today = now().date()
    records = [
        PaperRecord(title=title, arxiv=f"2501.0{number:04}", published=today - dt.timedelta(days=age))
        for number, (age, title) in enumerate(
            (age, f"Attention in the {name} of insects")
            for name, age in (("eye", 400), ("wing", 3), ("leg", 0), ("ear", 90))
        )
    ]
    import_papers(engine, "jsonl", "x", records)
    ada.post("/submit", {**HAND, "kind": "hand"})  # takes the index along
    json = anybody.get(f"/searches/{kept.key}.json").json()
    assert json["name"] == "attention" and json["query"] == {"q": "attention"}
    titles = [paper["title"] for paper in json["papers"]]
    wanted = [f"Attention in the {name} of insects" for name in ("leg", "wing", "ear", "eye")]
    assert [title for title in titles if title in wanted] == wanted, "the newest first"
    feed = ElementTree.fromstring(anybody.get(f"/searches/{kept.key}.atom").content)
    assert [entry.findtext(f"{ATOM}title") for entry in feed.iter(f"{ATOM}entry")] == titles
    (own,) = [link.get("href") for link in feed.findall(f"{ATOM}link") if link.get("rel") == "self"]
    assert own == f"http://testserver/searches/{kept.key}.atom"
    bib = anybody.get(f"/searches/{kept.key}.bib")
    assert bib.headers["content-type"].startswith("application/x-bibtex") and "2501.00002" in bib.text
    plain = ElementTree.fromstring(anybody.get("/search.atom?q=attention").content)
    assert [entry.findtext(f"{ATOM}title") for entry in plain.iter(f"{ATOM}entry")] == titles
    old = ElementTree.fromstring(anybody.get(f"/search.atom?q=attention&to={today - dt.timedelta(days=200)}").content)
    found = [entry.findtext(f"{ATOM}title") for entry in old.iter(f"{ATOM}entry")]
    assert wanted[3] in found and wanted[0] not in found


def test_a_feed_looks_at_the_last_month_first(
    ada: Reader, anybody: Reader, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A paper of today is in the feed although older ones match better."""
    monkeypatch.setattr(search, "PAGE", 2)
    today = now().date()
    records = [
        PaperRecord(title=title, arxiv=f"2502.0{number:04}", published=today - dt.timedelta(days=age))
        for number, (age, title) in enumerate(
            ((2, "A remark on lichens and stones"), (9, "Notes on stones, moss and lichens"), (100, "Lichens"))
        )
    ]
    import_papers(engine, "jsonl", "x", records)
    ada.post("/submit", {**HAND, "kind": "hand"})  # takes the index along
    ada.post("/searches", {"q": "lichens"})
    (saved,) = list_saved_searches(engine, ada.id)

    def found() -> list[str]:
        return [paper["id"] for paper in anybody.get(f"/searches/{saved.key}.json").json()["papers"]]

    assert found() == ["2502.00000", "2502.00001"], "two of the last month fill the page"
    monkeypatch.setattr(search, "SPANS", (5,))
    assert "2502.00002" in found(), "one of the last five days does not, so all papers are searched"


def test_searches_that_cannot_be_saved(ada: Reader, anybody: Reader) -> None:
    assert ada.post("/searches", {"page": "2"}).status_code == 422
    assert not forms(ada.get("/search").text, "/searches")
    text = anybody.get("/search?q=trees").text
    assert not forms(text, "/searches") and "/sign-in?next=%2Fsearch%3Fq%3Dtrees" in text
    for key in ("x", "%00", "x" * 200, "..%2faccount", "'%20OR%201=1"):
        for ending in ("", ".atom", ".json", ".bib"):
            assert anybody.get(f"/searches/{key}{ending}").status_code == 404


# What is typed is text --------------------------------------------------------------------------------------------


class Harmless(HTMLParser):
    """Fails where a page has an element or attribute that runs something and is not the site's own."""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        assert tag not in {"iframe", "object", "embed", "base", "style"}, tag
        assert tag != "script" or (given.get("src") or "").startswith("/static/site.js?v="), given
        assert tag != "img" or "/figure.svg?v=" in (given.get("src") or ""), given
        for name, value in attrs:
            assert not name.startswith("on"), given
            assert name not in ("href", "src", "action") or re.match(r"(https?://|mailto:|/|#|\?)", value or "/"), given


@pytest.mark.parametrize("payload", PAYLOADS)
def test_what_is_typed_never_runs(payload: str, ada: Reader, anybody: Reader, root: Reader, engine: Engine) -> None:
    ada.post("/account/name", {"name": payload[:60]})
    made = ada.post("/submit", {"kind": "hand", "title": f"Payload {payload}", "authors": payload, "abstract": payload,
                                "address": "https://example.org/?" + re.sub(r"[^!-~]", "", payload)})  # fmt: skip
    assert made.status_code == 303, made.text
    paper = made.headers["location"]
    ada.post(f"{paper}/comments", {"body": payload})
    ada.post(f"{paper}/vote", {"next": payload})
    ada.post("/searches", {"q": payload, "topic": payload, "name": payload})
    (kept,) = list_saved_searches(engine, ada.id)
    (comment,) = list_comments(engine, number_of(engine, paper))
    pages = (
        paper, "/feed", "/", "/feed?period=trending", "/account", f"/comments/{comment.id}/edit", "/submit",
        kept.href, "/status",
    )  # fmt: skip
    for reader in (ada, anybody, root):
        for page in pages:
            answer = reader.get(page)
            Harmless().feed(answer.text)
            assert "script-src 'self'" in answer.headers["content-security-policy"]
    errors = (
        ada.post("/submit", {"kind": "hand", "title": payload, "authors": "", "abstract": payload, "date": payload}),
        ada.post("/submit", {"kind": "arxiv", "arxiv": payload}),
        ada.post(f"{paper}/comments", {"body": payload + "x" * 10_000}),
        ada.post(f"/comments/{comment.id}/edit", {"body": payload + "x" * 10_000}),
        anybody.get("/feed", params={"topic": payload, "start": payload, "page": payload}),
    )
    for answer in errors:
        assert answer.status_code in (200, 422)
        Harmless().feed(answer.text)
    for path in ("/feed.atom", "/feed.atom?period=trending", f"/searches/{kept.key}.atom", "/search.atom?q=payload"):
        feed = ElementTree.fromstring(anybody.get(path).content)
        assert {each.tag.partition("}")[0] for each in feed.iter()} == {"{http://www.w3.org/2005/Atom"}
    for path in ("/feed.json", f"{paper}.json", f"/searches/{kept.key}.json"):
        answer = anybody.get(path)
        assert answer.headers["content-type"] == "application/json" and answer.json()
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_pages_of_readers_are_not_kept_for_others(ada: Reader, anybody: Reader) -> None:
    for page in ("/feed", NORMUON, "/submit"):
        assert "private" in ada.get(page).headers["cache-control"], page
    first = anybody.get(NORMUON)
    ada.post(f"{NORMUON}/vote")
    again = anybody.get(NORMUON, headers={"If-None-Match": first.headers["etag"]})
    assert again.status_code == 200 and "votes: </span>1</a>" in again.text, "a vote is seen at once"


def test_long_comments_in_other_scripts_arrive(ada: Reader, engine: Engine) -> None:
    body = "深層学習" * 1_250
    assert ada.post(f"{NASTY_PAPER}/comments", {"body": body}).status_code == 303
    assert [each.body for each in list_comments(engine, number_of(engine, NASTY_PAPER))] == [body]
