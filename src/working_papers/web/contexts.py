"""What each template is given: one dataclass a page."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from markupsafe import Markup

    from working_papers.bench.jobs import Job
    from working_papers.daily.accounts.accounts import Account
    from working_papers.daily.accounts.sessions import Session
    from working_papers.daily.accounts.tokens import ApiToken
    from working_papers.daily.catalogue import StoredImport
    from working_papers.daily.community.saved_searches import SavedSearch
    from working_papers.daily.digest.subscriptions import Subscription, Wish
    from working_papers.daily.mail.queue import Mail
    from working_papers.daily.records import BadRecord
    from working_papers.daily.search import IndexStatus
    from working_papers.web.papers import PaperView
    from working_papers.web.verdicts import Figure, RoomView, State
    from working_papers.web.visitors import Visitor


@dataclass(frozen=True)
class Alternate:
    """Another form of the same page."""

    href: str
    media_type: str
    title: str


@dataclass(frozen=True, kw_only=True)
class Page:
    """What every page has.

    Attributes:
        site_name: name of the site.
        title: of the page, for the window and for links to it.
        description: one sentence for links to it.
        canonical: its full address.
        section: which entry of the navigation is current.
        query: what stands in the search box.
        notices: what was left out of the request, and other things to say above the page.
        alternates: other forms of the page.
        visitor: who looks; None on pages that are made when nobody can be looked up.
        here: the page's own address with its parameters, for coming back to it.
    """

    template: ClassVar[str]

    site_name: str
    title: str
    description: str = ""
    canonical: str
    section: str = ""
    query: str = ""
    notices: tuple[str, ...] = ()
    alternates: tuple[Alternate, ...] = ()
    visitor: Visitor | None = None
    here: str = "/"

    @property
    def account(self) -> Account | None:
        """Who is signed in."""
        return self.visitor.account if self.visitor else None


@dataclass(frozen=True)
class Tally:
    """How many rooms stand where, in the order of the states."""

    counts: Mapping[State, int]
    stale: int

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    @property
    def decided(self) -> int:
        """Rooms with a verdict."""
        return sum(count for state, count in self.counts.items() if state.key in {"holds", "fails", "open"})


@dataclass(frozen=True)
class TopicChoice:
    """Topics to choose from, in groups."""

    groups: tuple[tuple[str, tuple[str, ...]], ...]
    chosen: str


@dataclass(frozen=True)
class Pager:
    """Neighbouring pages; an empty address where there is none."""

    newer: str
    newer_label: str
    older: str
    older_label: str


@dataclass(frozen=True, kw_only=True)
class HomePage(Page):
    """The front page."""

    template: ClassVar[str] = "home.html"

    tally: Tally
    tiles: tuple[RoomView, ...]
    tested: tuple[PaperView, ...]
    papers: tuple[PaperView, ...]
    topics: TopicChoice
    paper_count: int


@dataclass(frozen=True, kw_only=True)
class FeedPage(Page):
    """Papers of a period, or the newest ones."""

    template: ClassVar[str] = "feed.html"

    heading: str
    period: str
    start: dt.date | None
    papers: tuple[PaperView, ...]
    total: int | None
    topics: TopicChoice
    periods: Pager
    pages: Pager
    shown_from: int


@dataclass(frozen=True, kw_only=True)
class PaperPage(Page):
    """One paper."""

    template: ClassVar[str] = "paper.html"

    paper: PaperView
    similar: tuple[PaperView, ...]
    bibtex: str
    runs: tuple[RunView, ...]
    meta: tuple[tuple[str, str], ...]
    comments: tuple[CommentView, ...]
    comment_pages: Pager
    jobs: tuple[Job, ...]
    shared: tuple[SharedView, ...]


@dataclass(frozen=True)
class CommentView:
    """A comment as readers see it, and what the present one may do with it."""

    id: int
    author: str
    created: dt.datetime
    edited: dt.datetime | None
    hidden: bool
    html: Markup
    own: bool


@dataclass(frozen=True)
class SharedView:
    """A run that was made on another machine."""

    id: int
    sent_by: str
    received: dt.datetime
    made: dt.datetime
    scale: str
    state: State
    summary: str
    same_code: bool
    machine: str
    versions: str


@dataclass(frozen=True)
class RunView:
    """A run of this installation."""

    id: int
    started: dt.datetime
    scale: str
    sham: bool
    outcome: str
    state: State | None
    error: str
    figure: Figure | None


@dataclass(frozen=True)
class Column:
    """A column of the table of rooms, with the address that sorts by it."""

    key: str
    label: str
    href: str
    direction: str


@dataclass(frozen=True, kw_only=True)
class RoomsPage(Page):
    """All verdicts."""

    template: ClassVar[str] = "rooms.html"

    tally: Tally
    wall: tuple[tuple[str, tuple[RoomView, ...]], ...]
    rooms: tuple[RoomView, ...]
    columns: tuple[Column, ...]
    topics: TopicChoice
    verdict: str
    sort: str
    descending: bool


@dataclass(frozen=True)
class Found:
    """A paper that was found, with the part of it that matches."""

    paper: PaperView
    title: Markup
    snippet: Markup
    why: str


@dataclass(frozen=True, kw_only=True)
class SearchPage(Page):
    """Search with its results."""

    template: ClassVar[str] = "search.html"

    asked: bool
    found: tuple[Found, ...]
    total: int
    milliseconds: float
    mode: str
    problem: str
    topics: TopicChoice
    first_day: dt.date | None
    last_day: dt.date | None
    runnable: bool
    verdict: str
    pages: Pager
    shown_from: int
    savable: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class StatusPage(Page):
    """Imports and index."""

    template: ClassVar[str] = "status.html"

    paper_count: int
    imports: tuple[StoredImport, ...]
    rejections: Mapping[int, tuple[BadRecord, ...]]
    index: IndexStatus | None
    index_problem: str
    revision: int
    tally: Tally
    room_problems: tuple[str, ...]
    versions: Mapping[str, str]
    pages: Pager


@dataclass(frozen=True, kw_only=True)
class ErrorPage(Page):
    """Something was not found, or went wrong."""

    template: ClassVar[str] = "error.html"

    status: int
    heading: str
    sentences: tuple[str, ...] = field(default=())
    more: tuple[str, str] = ("/", "To the front page")


# Accounts ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SignInPage(Page):
    """Asks for an address, or says that the link is on its way."""

    template: ClassVar[str] = "sign_in.html"

    next: str
    sent_to: str
    problem: str
    given: str
    outbox: str


@dataclass(frozen=True, kw_only=True)
class SignInLinkPage(Page):
    """Where a link leads."""

    template: ClassVar[str] = "sign_in_link.html"

    token: str
    next: str
    email: str


@dataclass(frozen=True, kw_only=True)
class AccountPage(Page):
    """One's own account."""

    template: ClassVar[str] = "account.html"

    this_session: int | None
    sessions: tuple[Session, ...]
    tokens: tuple[ApiToken, ...]
    new_token: str
    problem: str
    searches: tuple[SavedSearch, ...]
    subscription: Subscription | None


@dataclass(frozen=True)
class MailView:
    """A file of the outbox."""

    name: str
    to: str
    subject: str
    date: str


@dataclass(frozen=True, kw_only=True)
class OutboxPage(Page):
    """E-mails, for administrators."""

    template: ClassVar[str] = "outbox.html"

    server: str
    folder: str
    files: tuple[MailView, ...]
    mails: tuple[Mail, ...]
    counts: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class MailPage(Page):
    """One e-mail of the outbox."""

    template: ClassVar[str] = "mail.html"

    name: str
    headers: tuple[tuple[str, str], ...]
    text: str
    has_html: bool


# What accounts do -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class CommentPage(Page):
    """Changes a comment, or gives one back that could not be taken."""

    template: ClassVar[str] = "comment.html"

    action: str
    button: str
    body: str
    problem: str
    paper: PaperView


@dataclass(frozen=True, kw_only=True)
class SubmitPage(Page):
    """Brings a paper."""

    template: ClassVar[str] = "submit.html"

    problem: str
    field: str
    given: Mapping[str, str]
    doubt: PaperView | None


@dataclass(frozen=True, kw_only=True)
class DigestPage(Page):
    """Subscribes, or changes a subscription."""

    template: ClassVar[str] = "digest.html"

    wish: Wish
    email: str
    secret: str
    problem: str
    choice: tuple[tuple[str, tuple[str, ...]], ...]
    searches: tuple[SavedSearch, ...]


@dataclass(frozen=True, kw_only=True)
class DigestActionPage(Page):
    """A button or a sentence: confirm, unsubscribe, and what came of it."""

    template: ClassVar[str] = "digest_action.html"

    heading: str
    sentence: str
    action: str
    label: str


@dataclass(frozen=True)
class Operation:
    """One thing that the API does.

    Attributes:
        parameters: name, where it stands, what it is, whether it is needed.
    """

    method: str
    path: str
    summary: str
    about: str
    parameters: tuple[tuple[str, str, str, bool], ...]
    needs_token: bool


@dataclass(frozen=True, kw_only=True)
class ApiPage(Page):
    """How programs read the site."""

    template: ClassVar[str] = "api.html"

    operations: tuple[Operation, ...]
    base: str


# Runs -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class JobView:
    """A run that was asked for."""

    job: Job
    title: str
    href: str
    asked_by: str


@dataclass(frozen=True, kw_only=True)
class JobsPage(Page):
    """Runs that were asked for."""

    template: ClassVar[str] = "jobs.html"

    jobs: tuple[JobView, ...]
    rooms: tuple[RoomView, ...]
    pages: Pager


@dataclass(frozen=True, kw_only=True)
class JobPage(Page):
    """One of them, while it runs and afterwards."""

    template: ClassVar[str] = "job.html"

    view: JobView
    run: RunView | None
    figure: str
    summary: str
