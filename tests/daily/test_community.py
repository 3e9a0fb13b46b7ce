"""Votes, comments, submissions, saved searches and what trends, on the database."""

from __future__ import annotations

import datetime as dt
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import Engine, event, insert, select, update

from tests.daily.test_arxiv import atom, entry
from working_papers.config import Settings
from working_papers.daily.accounts.accounts import Account, make_account
from working_papers.daily.catalogue import StoredPaper, get_paper, paper_count, papers_by_numbers
from working_papers.daily.community import submissions
from working_papers.daily.community.activity import NOTHING, Activity, activity_of, voted_by
from working_papers.daily.community.comments import (
    LONGEST,
    comments_before,
    delete_comment,
    edit_comment,
    get_comment,
    hide_comment,
    list_comments,
    write_comment,
)
from working_papers.daily.community.markdown import comment_html
from working_papers.daily.community.models import CommentRow, SubmissionRow, VoteRow
from working_papers.daily.community.saved_searches import (
    MOST,
    delete_saved_search,
    list_saved_searches,
    rename_saved_search,
    save_search,
    saved_search_by_key,
)
from working_papers.daily.community.submissions import (
    checked_address,
    find_duplicate,
    similar_titles,
    submissions_since,
    submit_arxiv,
    submit_by_hand,
)
from working_papers.daily.community.trending import (
    COMMENT_WEIGHT,
    DEEPEST,
    HALF_LIFE,
    WINDOW,
    ranking,
    trending,
    weight,
)
from working_papers.daily.community.votes import unvote, vote
from working_papers.daily.importing import import_papers
from working_papers.daily.records import PaperRecord, SourceError
from working_papers.daily.search import SearchIndex
from working_papers.database import now
from working_papers.errors import UserError

MOMENT = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)
TITLE = "Deep networks forget their initial weights at an exponential rate"


@pytest.fixture
def papers(engine: Engine) -> list[int]:
    """Five papers, the later ones newer; numbers 1 to 5."""
    records = [
        PaperRecord(
            title=f"Paper {name}",
            arxiv=f"2510.0000{number}",
            published=dt.date(2025, 10, number),
            categories=("cs.LG",) if number % 2 else ("cs.CV",),
        )
        for number, name in enumerate(("one", "two", "three", "four", "five"), start=1)
    ]
    import_papers(engine, "arxiv", "x", records)
    return [1, 2, 3, 4, 5]


@pytest.fixture
def people(engine: Engine) -> list[Account]:
    return [make_account(engine, f"reader{number}@example.org") for number in range(16)]


@pytest.fixture
def ada(engine: Engine) -> Account:
    return make_account(engine, "ada@example.org", "Ada")


@pytest.fixture
def root(engine: Engine) -> Account:
    return make_account(engine, "root@example.org", administrator=True)


@contextmanager
def queries(engine: Engine) -> Iterator[list[str]]:
    """The queries that are made meanwhile."""
    found: list[str] = []

    def note(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if not statement.startswith("BEGIN"):
            found.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    yield found
    event.remove(engine, "before_cursor_execute", note)


# Votes ------------------------------------------------------------------------------------------------------------


def test_one_vote_an_account(engine: Engine, papers: list[int], people: list[Account]) -> None:
    ada, grace = people[:2]
    assert [vote(engine, ada.id, 1), vote(engine, ada.id, 1), vote(engine, grace.id, 1)] == [1, 1, 2]
    assert voted_by(engine, ada.id, papers) == {1}
    assert [unvote(engine, ada.id, 1), unvote(engine, ada.id, 1)] == [1, 1]
    assert voted_by(engine, ada.id, papers) == set()
    assert activity_of(engine, papers)[1] == Activity(votes=1)


def test_votes_are_exact_under_16_threads(engine: Engine, papers: list[int], people: list[Account]) -> None:
    """Every thread votes and takes back at random for an account of its own; the last word of each counts."""
    last: dict[tuple[int, int], bool] = {}
    together = threading.Barrier(len(people))

    def go(account: Account) -> list[int]:
        dice = random.Random(account.id)
        together.wait()
        counts = []
        for _ in range(20):
            number, wanted = dice.choice(papers[:2]), dice.random() < 0.6
            counts.append((vote if wanted else unvote)(engine, account.id, number))
            last[account.id, number] = wanted
        return counts

    with ThreadPoolExecutor(len(people)) as pool:
        counts = [count for some in pool.map(go, people) for count in some]
    assert all(0 <= count <= len(people) for count in counts)
    found = activity_of(engine, papers)
    for number in papers:
        assert found[number].votes == sum(wanted for (_, each), wanted in last.items() if each == number)
    for account in people:
        assert voted_by(engine, account.id, papers) == {
            number for (id, number), wanted in last.items() if wanted and id == account.id
        }


def test_one_account_in_16_windows_has_one_vote(engine: Engine, papers: list[int], ada: Account) -> None:
    together = threading.Barrier(16)

    def go(_: int) -> int:
        together.wait()
        return vote(engine, ada.id, 3)

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(go, range(16))) == [1] * 16
    assert unvote(engine, ada.id, 3) == 0


def test_the_activity_of_a_page_costs_three_queries(
    engine: Engine, papers: list[int], ada: Account, people: list[Account]
) -> None:
    for account in people:
        vote(engine, account.id, 2)
    write_comment(engine, ada.id, 2, "one")
    gone = write_comment(engine, ada.id, 2, "two")
    hidden = write_comment(engine, ada.id, 3, "three")
    delete_comment(engine, ada.id, gone)
    hide_comment(engine, ada.id, hidden, hide=True)
    with engine.begin() as connection:
        connection.execute(insert(SubmissionRow).values(number=4, account_id=ada.id, created=MOMENT))
    with queries(engine) as made:
        found = activity_of(engine, papers)
    assert len(made) == 3
    assert found == {1: NOTHING, 2: Activity(16, 1), 3: NOTHING, 4: Activity(0, 0, "Ada", MOMENT), 5: NOTHING}
    with queries(engine) as made:
        assert voted_by(engine, people[0].id, papers) == {2}
    assert len(made) == 1
    with queries(engine) as made:
        assert activity_of(engine, []) == {} and voted_by(engine, 1, []) == set()
    assert made == []


# Comments ---------------------------------------------------------------------------------------------------------


def test_comments_are_written_changed_and_deleted_by_their_author(
    engine: Engine, papers: list[int], ada: Account, people: list[Account]
) -> None:
    other = people[0]
    first = write_comment(engine, ada.id, 1, "  Hello \r\n there\x00 ")
    second = write_comment(engine, other.id, 1, "Good morning")
    assert [(each.id, each.author, each.body, each.edited) for each in list_comments(engine, 1)] == [
        (first, "Ada", "Hello \n there", None),
        (second, "reader0", "Good morning", None),
    ]
    assert not edit_comment(engine, other.id, first, "Mine") and not delete_comment(engine, other.id, first)
    assert edit_comment(engine, ada.id, first, "Hello again")
    changed = get_comment(engine, first)
    assert changed is not None and changed.body == "Hello again" and changed.edited is not None
    assert delete_comment(engine, ada.id, first) and not delete_comment(engine, ada.id, first)
    assert not edit_comment(engine, ada.id, first, "Back") and get_comment(engine, first) is None
    with engine.connect() as connection:
        assert connection.execute(select(CommentRow.body).where(CommentRow.id == first)).scalar_one() == ""
    assert [each.id for each in list_comments(engine, 1)] == [second]


def test_hidden_comments_are_seen_by_author_and_administrators(
    engine: Engine, papers: list[int], ada: Account, root: Account, people: list[Account]
) -> None:
    number = write_comment(engine, ada.id, 1, "Rude")
    later = write_comment(engine, people[0].id, 1, "Kind")
    assert hide_comment(engine, root.id, number, hide=True)
    comment = get_comment(engine, later)
    assert comment is not None
    seen = {None: [later], people[0]: [later], ada: [number, later], root: [number, later]}
    for reader, ids in seen.items():
        assert [each.id for each in list_comments(engine, 1, reader)] == ids
        assert comments_before(engine, comment, reader) == len(ids) - 1
    assert hide_comment(engine, root.id, number, hide=False)
    assert len(list_comments(engine, 1)) == 2
    delete_comment(engine, ada.id, number)
    assert not hide_comment(engine, root.id, number, hide=True)


@pytest.mark.parametrize("body", ["", "  \n ", "\x00", "x" * (LONGEST + 1)])
def test_bodies_that_cannot_be_used(engine: Engine, papers: list[int], ada: Account, body: str) -> None:
    number = write_comment(engine, ada.id, 1, "x" * LONGEST)
    with pytest.raises(UserError, match="a comment has"):
        write_comment(engine, ada.id, 1, body)
    with pytest.raises(UserError, match="a comment has"):
        edit_comment(engine, ada.id, number, body)
    assert [each.body for each in list_comments(engine, 1)] == ["x" * LONGEST]


def test_a_form_that_was_sent_twice_is_one_comment(
    engine: Engine, papers: list[int], ada: Account, people: list[Account]
) -> None:
    together = threading.Barrier(8)

    def go(_: int) -> int:
        together.wait()
        return write_comment(engine, ada.id, 1, "Once")

    with ThreadPoolExecutor(8) as pool:
        (only,) = set(pool.map(go, range(8)))
    assert write_comment(engine, ada.id, 2, "Once") != only, "on another paper it is another one"
    assert write_comment(engine, people[0].id, 1, "Once") != only
    with engine.begin() as connection:
        connection.execute(update(CommentRow).where(CommentRow.id == only).values(created=now() - DAY))
    assert write_comment(engine, ada.id, 1, "Once") != only, "a day later it is meant"


def test_comments_come_in_pages(engine: Engine, papers: list[int], ada: Account) -> None:
    ids = [write_comment(engine, ada.id, 1, f"Number {number}") for number in range(7)]
    assert [each.id for each in list_comments(engine, 1, limit=3)] == ids[:3]
    assert [each.id for each in list_comments(engine, 1, limit=3, offset=6)] == ids[6:]
    last = get_comment(engine, ids[-1])
    assert last is not None and comments_before(engine, last) == 6


@pytest.mark.parametrize("id", [0, -1, 2**31, 2**63, 10**30])
def test_numbers_that_no_row_can_have(engine: Engine, ada: Account, id: int) -> None:
    assert get_comment(engine, id) is None
    assert not delete_saved_search(engine, ada.id, id) and not rename_saved_search(engine, ada.id, id, "x")


@pytest.mark.parametrize(
    ("body", "html"),
    [
        ("*a* **b** `c` ~~d~~", "<p><em>a</em> <strong>b</strong> <code>c</code> <s>d</s></p>"),
        ("a\nb\n\nc", "<p>a<br>\nb</p>\n<p>c</p>"),
        ("> said", "<blockquote>\n<p>said</p>\n</blockquote>"),
        ("3. c\n4. d", '<ol start="3">\n<li>c</li>\n<li>d</li>\n</ol>'),
        ("```py\n<x>\n```", '<pre tabindex="0"><code>&lt;x&gt;\n</code></pre>'),
        ("# no heading", "<p># no heading</p>"),
        ("<b onclick='x()'>b</b>", "<p>&lt;b onclick='x()'&gt;b&lt;/b&gt;</p>"),
        ("$a_1 *b* \\{c\\}$ and $5 or *6* $7", "<p>$a_1 *b* \\{c\\}$ and $5 or <em>6</em> $7</p>"),
        ("$$a\n*b*$$", "<p>$$a\n*b*$$</p>"),
    ],
)
def test_markdown(body: str, html: str) -> None:
    assert comment_html(body).strip() == html


LINK = ' rel="nofollow noopener ugc"'


@pytest.mark.parametrize(
    ("body", "html"),
    [
        ("[a](https://a.org 'b')", f'<a href="https://a.org" title="b"{LINK}>a</a>'),
        ("[a](http://a.org)", f'<a href="http://a.org"{LINK}>a</a>'),
        ("[a](mailto:a@b.org)", f'<a href="mailto:a@b.org"{LINK}>a</a>'),
        ("<https://a.org/b>", f'<a href="https://a.org/b"{LINK}>https://a.org/b</a>'),
        ("see https://a.org/b.", f'see <a href="https://a.org/b"{LINK}>https://a.org/b</a>.'),
        ("(https://a.org/b_(c))", f'(<a href="https://a.org/b_(c)"{LINK}>https://a.org/b_(c)</a>)'),
        ("`https://a.org`", "<code>https://a.org</code>"),
        ("[https://a.org](https://b.org)", f'<a href="https://b.org"{LINK}>https://a.org</a>'),
        ("![a](https://a.org/b.png)", f'!<a href="https://a.org/b.png"{LINK}>a</a>'),
        ("[a](/papers/1)", f"<a{LINK}>a</a>"),
        ("[a](//evil.org)", f"<a{LINK}>a</a>"),
        ("[a](ftp://a.org)", f"<a{LINK}>a</a>"),
        ("[a](javascript:alert(1))", "[a](javascript:alert(1))"),
        ("[a](JaVaScript&colon;alert(1))", None),
        ("[a](data:text/html;base64,PHNjcmlwdD4=)", None),
        ("[a](vbscript:x)", None),
        ("[a](&#x6A;avascript:alert(1))", None),
        ("[a](\tjava\nscript:alert(1))", None),
        ("[a][b]\n\n[b]: javascript:alert(1)", None),
        ("<javascript:alert(1)>", None),
        ('[a](https://a.org" onmouseover="x)', None),
        ('https://a.org/"onmouseover="x', None),
    ],
)
def test_links_lead_to_harmless_addresses(body: str, html: str | None) -> None:
    made = comment_html(body).strip()
    if html is not None:
        assert made == f"<p>{html}</p>"
    for start in made.split("<a ")[1:]:
        tag = start.partition(">")[0]
        assert 'href="' not in tag or tag.startswith(('href="https:', 'href="http:', 'href="mailto:'))
        assert "onmouseover=" not in tag.replace("&quot;", '"').partition('" ')[2] or "%22" in tag


@hypothesis_settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(alphabet=st.sampled_from("<>/\"'`*_[]()!#&;:=$\\ \n\tajsonclickscripthf.@0"), max_size=120))
def test_whatever_is_typed_is_harmless(body: str) -> None:
    from html.parser import HTMLParser

    class Check(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            assert tag in {"p", "br", "em", "strong", "s", "code", "pre", "blockquote", "ul", "ol", "li", "a", "hr"}
            for name, value in attrs:
                assert name in {"href", "title", "rel", "start", "tabindex"}
                assert name != "href" or (value or "").partition(":")[0] in {"http", "https", "mailto"}

    Check().feed(comment_html(body))


# Trending ---------------------------------------------------------------------------------------------------------


def test_a_vote_is_worth_half_after_three_days() -> None:
    assert weight(dt.timedelta()) == 1.0 == weight(-DAY)
    assert weight(3 * DAY) == 0.5 and weight(6 * DAY) == 0.25 and weight(1.5 * DAY) == pytest.approx(2**-0.5)
    assert weight(30 * DAY) == 2.0**-10 and weight(30 * DAY + dt.timedelta(seconds=1)) == 0.0
    assert (HALF_LIFE, WINDOW, COMMENT_WEIGHT) == (3 * DAY, 30 * DAY, 0.5), "docs/feed.md says so"


def cast(engine: Engine, number: int, account: Account, age: dt.timedelta) -> None:
    with engine.begin() as connection:
        connection.execute(insert(VoteRow).values(number=number, account_id=account.id, created=MOMENT - age))


def said(engine: Engine, number: int, account: Account, age: dt.timedelta) -> int:
    id = write_comment(engine, account.id, number, f"{number}, {age}")
    with engine.begin() as connection:
        connection.execute(update(CommentRow).where(CommentRow.id == id).values(created=MOMENT - age))
    return id


def test_the_formula(engine: Engine, papers: list[int], people: list[Account], root: Account) -> None:
    for account, age in zip(people, (0, 3, 6, 31), strict=False):
        cast(engine, 1, account, age * DAY)
    cast(engine, 2, people[0], 0 * DAY)
    said(engine, 2, people[1], 3 * DAY)
    said(engine, 2, people[1], 9 * DAY)  # one account counts once, at its latest comment
    said(engine, 2, people[2], 6 * DAY)
    delete_comment(engine, people[3].id, said(engine, 2, people[3], 0 * DAY))
    hide_comment(engine, root.id, said(engine, 2, people[4], 0 * DAY), hide=True)
    said(engine, 3, people[0], 31 * DAY)
    cast(engine, 4, people[0], -DAY)  # later than the moment that is asked for
    cast(engine, 5, people[0], 12 * DAY)
    assert ranking(engine, MOMENT) == [(1, 1.75), (2, 1 + 0.5 * 0.5 + 0.5 * 0.25), (5, 0.0625)]
    assert [number for number, _ in ranking(engine, MOMENT + 29 * DAY)] == [4, 2, 1], "what was, fades"
    unvote(engine, people[0].id, 1)
    assert ranking(engine, MOMENT)[0][0] == 2


def test_of_equal_scores_the_newer_paper_is_first(engine: Engine, papers: list[int], people: list[Account]) -> None:
    for number in (2, 5, 3):
        cast(engine, number, people[0], DAY)
    assert [number for number, _ in ranking(engine, MOMENT)] == [5, 3, 2]


def test_after_what_trends_come_the_newest(engine: Engine, papers: list[int], people: list[Account]) -> None:
    def numbers(limit: int, offset: int, topic: str | None = None) -> list[int]:
        return [paper.number for paper in trending(engine, limit, offset, topic, moment=MOMENT)]

    assert numbers(9, 0) == [5, 4, 3, 2, 1], "nobody has voted"
    cast(engine, 2, people[0], DAY)
    cast(engine, 3, people[0], 0 * DAY)
    assert numbers(9, 0) == [3, 2, 5, 4, 1]
    assert [numbers(2, at) for at in (0, 2, 4, 6)] == [[3, 2], [5, 4], [1], []]
    assert numbers(3, 1) == [2, 5, 4]
    assert numbers(9, 0, "cs.LG") == [3, 5, 1] and numbers(2, 1, "cs.LG") == [5, 1]
    assert numbers(9, 0, "cs.CV") == [2, 4] and numbers(9, 0, "math.AT") == []
    assert numbers(0, 0) == []


def test_only_what_is_recent_is_read(engine: Engine, papers: list[int], people: list[Account]) -> None:
    with queries(engine) as made:
        ranked = ranking(engine, MOMENT)
        trending(engine, 3, 0, ranked=ranked)
    assert len(made) == 4
    assert all("created >=" in statement for statement in made[:2])
    assert DEEPEST == 1_000


# Saved searches ---------------------------------------------------------------------------------------------------


def test_saved_searches(engine: Engine, ada: Account, people: list[Account]) -> None:
    other = people[0]
    made = save_search(engine, ada.id, {"q": " neural collapse ", "topic": "cs.LG", "page": "3", "evil": "1"})
    assert made.query == {"q": "neural collapse", "topic": "cs.LG"} and made.name == "neural collapse · cs.LG"
    assert made.href == "/search?q=neural+collapse&topic=cs.LG" and len(made.key) == 24
    assert save_search(engine, ada.id, {"q": "neural collapse", "topic": "cs.LG"}, "again") == made
    runs = save_search(engine, ada.id, {"runnable": "1", "verdict": "fails"})
    assert runs.name == "runs · does not hold"
    assert save_search(engine, other.id, {"q": "neural collapse", "topic": "cs.LG"}).key != made.key
    assert saved_search_by_key(engine, made.key) == made
    for key in ("", "x", "x" * 40, "é", "a\x00b", "' OR 1=1 --", made.key[:-1]):
        assert saved_search_by_key(engine, key) is None
    assert not rename_saved_search(engine, other.id, made.id, "Mine") and not delete_saved_search(
        engine, other.id, made.id
    )
    assert rename_saved_search(engine, ada.id, made.id, "  A \n name\x00 ")
    assert [each.name for each in list_saved_searches(engine, ada.id)] == ["A name", "runs · does not hold"]
    for name in ("", " \n", "x" * 81):
        with pytest.raises(UserError, match="1 to 80 characters"):
            rename_saved_search(engine, ada.id, made.id, name)
    assert delete_saved_search(engine, ada.id, made.id) and saved_search_by_key(engine, made.key) is None
    for query in ({}, {"q": "  "}, {"page": "2"}, {"q": "x" * 1_001}):
        with pytest.raises(UserError):
            save_search(engine, ada.id, query)


def test_an_account_has_so_many_saved_searches_and_no_more(engine: Engine, ada: Account) -> None:
    together = threading.Barrier(4)

    def go(part: int) -> None:
        together.wait()
        for number in range(part, MOST, 4):
            save_search(engine, ada.id, {"q": f"query {number}"})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(go, range(4)))
    assert len(list_saved_searches(engine, ada.id)) == MOST
    with pytest.raises(UserError, match="at most 100 saved searches"):
        save_search(engine, ada.id, {"q": "one more"})
    assert save_search(engine, ada.id, {"q": "query 7"}).name == "query 7"


# Submissions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "same"),
    [
        ("DEEP NETWORKS FORGET THEIR INITIAL WEIGHTS AT AN EXPONENTIAL RATE.", True),
        ("Deep Networks Forget Their Initial Weights: At an Exponential Rate", True),
        ("Deep networks forget their initial weights at exponential rate", True),
        ("Deep netwroks forget their initial weigths at an exponential rate", True),
        ("Deep networks forget initial weights at exponential rates", True),
        ("Deep networks forget their initial weights at an exponential rate: Part II", False),
        ("Deep networks forget their training data at a polynomial rate", False),
        ("Shallow networks remember", False),
        ("", False),
    ],
)
def test_titles_that_are_nearly_the_same(other: str, same: bool) -> None:
    assert similar_titles(TITLE, other) is same and similar_titles(other, TITLE) is same


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Scaling laws for large language models, part I", "Scaling laws for large language models, part II"),
        ("Language models are learners: GPT-3 examined", "Language models are learners: GPT-4 examined"),
        ("The robustness benchmark of the year 2023", "The robustness benchmark of the year 2024"),
    ],
)
def test_another_number_is_another_paper(one: str, other: str) -> None:
    assert similar_titles(one, one) and not similar_titles(one, other)


def by_hand(engine: Engine, settings: Settings, account: Account, title: str = TITLE, **other: Any) -> Any:
    given = {"authors": ["Ada Lovelace", "Alan Turing"], **other}
    return submit_by_hand(engine, settings, account.id, title=title, **given)


def found(engine: Engine, settings: Settings, text: str) -> list[StoredPaper]:
    with closing(SearchIndex.open(settings)) as index:
        return papers_by_numbers(engine, [hit.number for hit in index.search(text).hits])


def test_by_hand(engine: Engine, settings: Settings, ada: Account) -> None:
    made = by_hand(
        engine,
        settings,
        ada,
        f"  {TITLE}\n",
        authors=["Ada  Lovelace", "", " Alan Turing"],
        abstract=" First\r\nline.\r\n\r\n  Second. ",
        address=" https://example.org/paper.pdf ",
        published=dt.date(2020, 2, 29),
    )
    paper = made.paper
    assert made.new and made.certain
    assert (paper.title, paper.authors) == (TITLE, ("Ada Lovelace", "Alan Turing"))
    assert (paper.abstract, paper.url) == ("First line.\n\nSecond.", "https://example.org/paper.pdf")
    assert (paper.published, paper.day, paper.source) == (dt.date(2020, 2, 29), now().date(), "submission")
    assert [each.number for each in found(engine, settings, "exponential forgetting of initial weights")] == [
        paper.number
    ], "it is searchable at once"
    seen = activity_of(engine, [paper.number])[paper.number]
    assert seen.submitted_by == "Ada" and seen.submitted is not None
    assert submissions_since(engine, ada.id, now() - DAY) == 1 and submissions_since(engine, ada.id, now() + DAY) == 0


def test_a_paper_that_is_here_is_shown_instead(
    engine: Engine, settings: Settings, ada: Account, people: list[Account]
) -> None:
    paper = by_hand(engine, settings, ada).paper
    for title, authors in (
        (TITLE, ["Ada Lovelace"]),
        (TITLE.upper() + "!", ["Somebody Else"]),
        ("Deep netwroks forget their initial weights at exponential rate", ["A. Lovelace"]),
        ('"Deep networks" forget: -their initial weights at an exponential rate', ["Turing"]),
    ):
        again = by_hand(engine, settings, people[0], title, authors=authors)
        assert (again.paper.number, again.new, again.certain) == (paper.number, False, True), title
    assert paper_count(engine) == 1
    assert activity_of(engine, [paper.number])[paper.number].submitted_by == "Ada", "the first one counts"
    assert submissions_since(engine, people[0].id, now() - DAY) == 0


def test_where_only_the_titles_are_alike_the_reader_is_asked(engine: Engine, settings: Settings, ada: Account) -> None:
    paper = by_hand(engine, settings, ada, "A survey on graph neural networks", authors=["Ada Lovelace"]).paper
    other: dict[str, Any] = {"title": "A survey of graph neural networks", "authors": ["Grace Hopper"]}
    asked = by_hand(engine, settings, ada, **other)
    assert (asked.paper.number, asked.new, asked.certain) == (paper.number, False, False)
    assert paper_count(engine) == 1
    made = by_hand(engine, settings, ada, **other, another=True)
    assert made.new and made.paper.number != paper.number and paper_count(engine) == 2
    short = by_hand(engine, settings, ada, "Trees", authors=["Ada Lovelace"]).paper
    assert by_hand(engine, settings, ada, "Trees", authors=["Grace Hopper"]).certain is False
    second = by_hand(engine, settings, ada, "Trees", authors=["Grace Hopper"], another=True).paper
    assert second.id != short.id and second.title == short.title
    assert by_hand(engine, settings, ada, "trees", authors=["G. Hopper"]).paper.number == second.number


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"title": ""}, "title has 1 to 300"),
        ({"title": "—!?"}, "title has 1 to 300"),
        ({"title": "x" * 301}, "title has 1 to 300"),
        ({"authors": ["", " "]}, "authors are 1 to 200"),
        ({"authors": ["x"] * 201}, "authors are 1 to 200"),
        ({"authors": ["x" * 101]}, "authors: a name"),
        ({"abstract": "x" * 10_001}, "abstract has at most 10,000"),
        ({"published": dt.date(1899, 12, 31)}, "date is 1899-12-31"),
        ({"published": now().date() + 3 * DAY}, "date is"),
        ({"address": "javascript:alert(1)"}, "address is 'javascript"),
    ],
)
def test_fields_that_cannot_be_used(
    engine: Engine, settings: Settings, ada: Account, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        by_hand(engine, settings, ada, **given)
    assert paper_count(engine) == 0


@pytest.mark.parametrize(
    "text",
    [
        "javascript:alert(1)",
        "ftp://example.org/x",
        "//example.org",
        "example.org",
        "https://",
        "https://user:secret@example.org",
        "https://exa mple.org",
        "https://example.org/\nSet-Cookie: x",
        "https://example.org/\u202eevil",
        "https://[::1",
        "https://example.org/" + "x" * 500,
        "file:///etc/passwd",
    ],
)
def test_addresses_that_cannot_be_used(text: str) -> None:
    with pytest.raises(UserError, match="address is"):
        checked_address(text)


def test_addresses_that_can() -> None:
    assert checked_address("  ") == "" and checked_address(" https://example.org/a?b#c ") == "https://example.org/a?b#c"
    assert checked_address("http://127.0.0.1/x") == "http://127.0.0.1/x", "it is a link and is never fetched"


Serve = Callable[[Callable[[str], tuple[int, bytes]]], Any]


@pytest.fixture
def arxiv(serve: Serve, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Settings]:
    """An arXiv that has number 7 only, and settings that name it."""
    monkeypatch.setattr(submissions, "ARXIV_SECONDS", 0.0)
    server = serve(lambda path: (200, atom(entry(7)) if "2510.00007" in path else atom()))
    return server, settings.model_copy(update={"arxiv_url": f"{server.address}/api/query"})


@pytest.mark.parametrize("text", ["2510.00007", " arXiv:2510.00007v3 ", "https://arxiv.org/pdf/2510.00007v2.pdf"])
def test_from_arxiv(engine: Engine, arxiv: tuple[Any, Settings], ada: Account, text: str) -> None:
    server, settings = arxiv
    made = submit_arxiv(engine, settings, ada.id, text)
    assert made.new and made.paper.id == "2510.00007" and made.paper.title == "Paper number 7: a Schrödinger study"
    assert (made.paper.published, made.paper.day) == (dt.date(2025, 10, 7), now().date()), "it is in today's feed"
    assert len(server.paths) == 1 and "id_list=2510.00007" in server.paths[0]
    assert activity_of(engine, [made.paper.number])[made.paper.number].submitted_by == "Ada"
    again = submit_arxiv(engine, settings, ada.id, "2510.00007")
    assert not again.new and again.paper == made.paper and len(server.paths) == 1, "it is not asked for twice"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "attention",
        "http://127.0.0.1:9/abs/2510.00007",
        "https://evil.org/arxiv.org/abs/2510.00007",
        "https://arxiv.org.evil.org/abs/2510.00007",
        "https://arxiv.org@evil.org/abs/2510.00007",
        "file:///etc/passwd",
        "2510.00007&id_list=2510.00008",
        "2510.00007\n2510.00008",
        "x" * 100_000,
    ],
)
def test_what_is_typed_is_never_fetched(engine: Engine, arxiv: tuple[Any, Settings], ada: Account, text: str) -> None:
    server, settings = arxiv
    with pytest.raises(UserError, match="is not an arXiv id") as error:
        submit_arxiv(engine, settings, ada.id, text)
    assert server.paths == [] and len(str(error.value)) < 200


def test_what_arxiv_does_not_have_or_say(
    engine: Engine, arxiv: tuple[Any, Settings], ada: Account, closed_address: str, serve: Serve
) -> None:
    _, settings = arxiv
    with pytest.raises(UserError, match=r"arXiv has no paper 2510\.00008"):
        submit_arxiv(engine, settings, ada.id, "2510.00008")
    wrong = serve(lambda _: (200, atom(entry(9))))
    with pytest.raises(UserError, match=r"arXiv has no paper 2510\.00008"):
        submit_arxiv(engine, settings.model_copy(update={"arxiv_url": wrong.address}), ada.id, "2510.00008")
    broken = serve(lambda _: (200, b"<html>"))
    for address in (closed_address, broken.address):
        with pytest.raises(SourceError, match="arXiv does not answer just now") as error:
            submit_arxiv(engine, settings.model_copy(update={"arxiv_url": address}), ada.id, "2510.00008")
        assert address not in str(error.value)
    assert paper_count(engine) == 0


def test_an_arxiv_address_by_hand_is_taken_from_arxiv(
    engine: Engine, arxiv: tuple[Any, Settings], ada: Account
) -> None:
    _, settings = arxiv
    made = by_hand(engine, settings, ada, "My own words", address="https://arxiv.org/abs/2510.00007")
    assert made.paper.title == "Paper number 7: a Schrödinger study" and made.paper.arxiv == "2510.00007"


def test_arxivs_description_joins_what_was_brought_by_hand(
    engine: Engine, arxiv: tuple[Any, Settings], ada: Account, people: list[Account]
) -> None:
    _, settings = arxiv
    title = "Paper number 7: a Schrödinger study"
    paper = by_hand(engine, settings, ada, title, authors=["Anna Example"], published=dt.date(2025, 10, 1)).paper
    joined = submit_arxiv(engine, settings, people[0].id, "2510.00007")
    assert not joined.new and joined.paper.number == paper.number and joined.paper.id == "2510.00007"
    assert joined.paper.abstract == "We study number 7, and find it."
    assert activity_of(engine, [paper.number])[paper.number].submitted_by == "Ada"
    assert get_paper(engine, paper.id) == joined.paper, "its old id leads there"


def test_arxiv_is_asked_slowly(
    engine: Engine, arxiv: tuple[Any, Settings], ada: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, settings = arxiv
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    monkeypatch.setattr(submissions, "ARXIV_SECONDS", 3.0)
    monkeypatch.setattr(submissions, "_arxiv", submissions._Arxiv())
    for number in (8, 9):
        with pytest.raises(UserError, match="no paper"):
            submit_arxiv(engine, settings, ada.id, f"2510.0000{number}")
    assert waited[0] == 0.0 and 2.0 < waited[1] <= 3.0
    monkeypatch.setattr(submissions, "PATIENCE", 0.01)
    with submissions._arxiv._turn, pytest.raises(SourceError, match="being asked for other papers"):
        submit_arxiv(engine, settings, ada.id, "2510.00008")


def test_another_writer_of_the_index_does_not_hold_a_reader_up(
    engine: Engine, settings: Settings, ada: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submissions, "INDEX_PATIENCE", 0.05)
    SearchIndex.open(settings).close()
    with FileLock(settings.index_folder / "write.lock"):
        made = by_hand(engine, settings, ada)
    assert made.new and found(engine, settings, TITLE) == []
    with closing(SearchIndex.open(settings)) as index:
        assert index.catch_up(engine) == 1, "the background process does this"
    assert found(engine, settings, TITLE) == [made.paper]


def test_without_an_index_papers_are_taken_and_the_same_titles_known(
    engine: Engine, settings: Settings, ada: Account
) -> None:
    SearchIndex.open(settings).close()
    (settings.index_folder / "index.json").write_text("broken")
    paper = by_hand(engine, settings, ada).paper
    again = by_hand(engine, settings, ada, TITLE.lower())
    assert again.paper.number == paper.number and not again.new
    assert find_duplicate(engine, None, TITLE) is not None and find_duplicate(engine, None, "…") is None


def test_what_cannot_be_kept_leaves_nothing_behind(
    engine: Engine, settings: Settings, ada: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The paper and who brought it are one transaction."""

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("killed")

    monkeypatch.setattr(submissions, "insert", broken)
    with pytest.raises(RuntimeError, match="killed"):
        by_hand(engine, settings, ada)
    assert paper_count(engine) == 0
    monkeypatch.undo()
    assert by_hand(engine, settings, ada).new
