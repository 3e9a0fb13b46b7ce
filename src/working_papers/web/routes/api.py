"""The site's own API: papers, search, rooms, verdicts, trials, runs, votes. `/api/v1/openapi.json` describes it."""

from __future__ import annotations

import datetime as dt
import re
from functools import cache
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path, Query
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from sqlalchemy import select
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from working_papers.bench.jobs import Job, SharedRunRow, cancel_job, enqueue_job, get_job
from working_papers.bench.record import Record
from working_papers.bench.sharing import receive_run
from working_papers.bench.store import Run, TrialRow
from working_papers.daily.accounts.accounts import Account
from working_papers.daily.catalogue import papers_by_numbers
from working_papers.daily.community.votes import unvote, vote
from working_papers.daily.search import IndexDamaged
from working_papers.database import reading
from working_papers.errors import UserError
from working_papers.web.contexts import ApiPage, Operation
from working_papers.web.limits import limit
from working_papers.web.papers import (
    CURSOR,
    PaperView,
    numbers_of_rooms,
    page_of_papers,
    search_titles,
    with_activity,
    with_rooms,
)
from working_papers.web.routes.papers import found_paper, similar_papers
from working_papers.web.site import Site, html, json, site_of
from working_papers.web.verdicts import RoomView
from working_papers.web.visitors import api_account, visitor_of

PREFIX = "/api/v1"
MOST = 100
CALLS = (600, 60)
LARGEST_RUN = 5 * 2**20
LARGEST_NUMBER = 2**31 - 1
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)


class Error(BaseModel):
    """What went wrong, in a sentence."""

    error: str


def _within_limit(request: Request) -> None:
    limit(request, "api_v1", *CALLS)


ALWAYS: dict[int | str, dict[str, Any]] = {
    422: {"model": Error, "description": "A parameter cannot be used."},
    429: {"model": Error, "description": "Too many requests; Retry-After says how long to wait."},
    503: {"model": Error, "description": "The database cannot be read just now."},
}
TOO_LARGE: dict[int | str, dict[str, Any]] = {413: {"model": Error, "description": "The body is too large."}}
NO_TEXT: dict[int | str, dict[str, Any]] = {400: {"model": Error, "description": "The body is no text."}}
NOT_FOUND: dict[int | str, dict[str, Any]] = {404: {"model": Error, "description": "There is none."}}
NEEDS_TOKEN: dict[int | str, dict[str, Any]] = {
    401: {"model": Error, "description": "A token of this site is needed: `Authorization: Bearer wp_…`."}
}
NEEDS_ADMINISTRATOR: dict[int | str, dict[str, Any]] = {
    **NEEDS_TOKEN,
    403: {"model": Error, "description": "The token is no administrator's."},
}

router = APIRouter(prefix=PREFIX, dependencies=[Depends(_within_limit)], responses=ALWAYS)
pages = APIRouter(include_in_schema=False)


# Models -----------------------------------------------------------------------------------------------------------


class RoomBrief(BaseModel):
    """Where a room stands."""

    slug: str
    title: str
    arxiv: str | None
    runnable: bool
    verdict: Literal["holds", "does not hold", "inconclusive"] | None
    finding: str | None
    stale: str | None = Field(description="Why the verdict no longer speaks of the installed code; null when it does.")


class Paper(BaseModel):
    """A paper of the catalogue."""

    id: str
    title: str
    authors: list[str]
    author_count: int
    published: dt.date | None
    day: dt.date = Field(description="The day of the feed.")
    topics: list[str]
    summary: str = Field(description="In plain words; empty without a room.")
    abstract: str
    doi: str | None
    url: str | None
    votes: int
    comments: int
    submitted_by: str | None
    page: str
    room: RoomBrief | None


class Papers(BaseModel):
    """A part of a list, and where the next one begins."""

    papers: list[Paper]
    next_cursor: str | None


class Found(BaseModel):
    """A paper that was found, and by what."""

    why: str
    paper: Paper


class SearchResult(BaseModel):
    """What was found, best first."""

    query: str
    total: int
    mode: str
    results: list[Found]


class ClaimOut(BaseModel):
    """A claim of the paper, with the numbers that it reports."""

    model_config = ConfigDict(extra="allow")

    id: str
    statement: str


class RoomOut(RoomBrief):
    """A room with its claims and what it takes to use it."""

    topics: list[str]
    summary: str
    claims: list[ClaimOut]
    import_line: str | None


class VerdictOut(BaseModel):
    """A room's reference verdict, with everything that was measured."""

    slug: str
    stale: str | None
    record: Record


class Trial(BaseModel):
    """One trial: what one arm measured with one seed."""

    arm: str
    seed: int
    phase: str
    setting: dict[str, float | int | str]
    status: str
    measures: dict[str, float]
    costs: dict[str, float]
    error: str | None = None


class RunOut(BaseModel):
    """A run of this installation."""

    id: int
    slug: str
    scale: str
    sham: bool
    seeds: int
    status: str
    started: dt.datetime
    finished: dt.datetime | None
    answer: str | None
    summary: str | None
    code_hash: str


class Runs(BaseModel):
    """A part of the runs, newest first."""

    runs: list[RunOut]
    next_cursor: int | None


class JobOut(BaseModel):
    """A run that was asked for, and how far it is."""

    id: int
    slug: str
    scale: str
    sham: bool
    status: Literal["queued", "running", "finished", "failed", "cancelled"]
    progress: dict[str, Any] | None
    run_id: int | None
    error: str | None
    created: dt.datetime
    started: dt.datetime | None
    finished: dt.datetime | None


class RunWish(BaseModel):
    """Which study to run."""

    model_config = ConfigDict(extra="forbid")

    slug: str = Field(max_length=80)
    scale: Literal["smoke", "laptop", "paper"] = "laptop"
    seeds: int | None = Field(default=None, ge=1, le=1000)
    sham: bool = False


class Votes(BaseModel):
    """A paper's votes, one's own included."""

    votes: int
    voted: bool = Field(description="Whether the token's account votes for it.")


class SharedRun(BaseModel):
    """A run that was made on another machine."""

    id: int
    slug: str
    answer: str
    same_code: bool
    code_hash: str
    received: dt.datetime
    record: Record


class ReceivedRun(BaseModel):
    """What came of a run that was sent."""

    id: int
    new: bool
    same_code: bool


# Views ------------------------------------------------------------------------------------------------------------


def _room(room: RoomView) -> RoomBrief:
    return RoomBrief.model_validate(_room_fields(room))


def _room_fields(room: RoomView) -> dict[str, Any]:
    return {
        "slug": room.slug,
        "title": room.paper.title,
        "arxiv": room.paper.arxiv,
        "runnable": room.runnable,
        "verdict": room.record.answer if room.record else None,
        "finding": " ".join(str(room.finding).split()) or None if room.record else None,
        "stale": room.stale or None,
    }


def _paper(paper: PaperView) -> Paper:
    return Paper(
        id=paper.id,
        title=paper.title,
        authors=list(paper.authors),
        author_count=paper.author_count,
        published=paper.published,
        day=paper.stored.day,
        topics=list(paper.topics),
        summary=paper.summary,
        abstract=paper.abstract,
        doi=paper.doi or None,
        url=paper.link or None,
        votes=paper.activity.votes,
        comments=paper.activity.comments,
        submitted_by=paper.activity.submitted_by,
        page=paper.href,
        room=_room(paper.room) if paper.room else None,
    )


def _room_named(site: Site, slug: str) -> RoomView:
    room = site.rooms.get(slug)
    if room is None:
        raise HTTPException(404, f"There is no room {slug[:80]!r}.")
    return room


def _iso_day(value: Any) -> Any:
    """Days are written in one way; numbers, which pydantic would take for seconds, are none."""
    if isinstance(value, str) and not _DAY.fullmatch(value):
        raise ValueError("expected a day such as 2025-10-07")
    return value


def _account(request: Request) -> Account:
    """Whose token the request brings; a browser's session does not count here."""
    visitor = visitor_of(request)
    if visitor.account is None or not visitor.by_token:
        raise HTTPException(401, "A token of this site is needed.", {"WWW-Authenticate": "Bearer"})
    return visitor.account


def _administrator(request: Request) -> Account:
    account = _account(request)
    if not account.administrator:
        raise HTTPException(403, "The token is no administrator's.")
    return account


TokenOf = Annotated[Account, Depends(_account)]
AdministratorsToken = Annotated[Account, Depends(_administrator)]
Limit = Annotated[int, Query(ge=1, le=MOST, description="At most so many.")]
Number = Annotated[int, Path(ge=1, le=LARGEST_NUMBER)]
PaperId = Annotated[str, Path(description="arXiv id, or another id of the paper.", max_length=300)]
Day = Annotated[dt.date, BeforeValidator(_iso_day)]
Slug = Annotated[str, Path(max_length=80)]


# Papers -----------------------------------------------------------------------------------------------------------


@router.get("/papers", summary="Papers, newest first")
def list_papers(
    request: Request,
    topic: Annotated[str, Query(max_length=100, description="Only of this topic or category.")] = "",
    first: Annotated[Day | None, Query(alias="from", description="Feed days from this one on.")] = None,
    last: Annotated[Day | None, Query(alias="to", description="Feed days up to this one.")] = None,
    runnable: Annotated[bool, Query(description="Only papers whose study runs here.")] = False,
    limit: Limit = 30,
    cursor: Annotated[
        str,
        Query(pattern=f"^({CURSOR})?$", description="next_cursor of the last answer."),
    ] = "",
) -> Papers:
    """Papers of the catalogue with filters, page by page."""
    site = site_of(request)
    slugs = [room.slug for room in site.rooms if room.runnable]
    stored, following = page_of_papers(
        site.engine,
        limit=limit,
        cursor=cursor,
        topic=topic.replace("\x00", " "),
        days=(first, last),
        only=numbers_of_rooms(site.engine, slugs) if runnable else None,
    )
    views = with_activity(site.engine, with_rooms(stored, site.rooms), None)
    return Papers(papers=[_paper(view) for view in views], next_cursor=following)


@router.get("/papers/{paper_id:path}/similar", responses=NOT_FOUND, summary="Papers like one")
def list_similar(request: Request, paper_id: PaperId) -> list[Paper]:
    """Papers whose abstracts mean something close to this one's."""
    site = site_of(request)
    views = similar_papers(site, found_paper(site, paper_id))
    return [_paper(view) for view in with_activity(site.engine, views, None)]


@router.get("/papers/{paper_id:path}/vote", responses=NOT_FOUND, summary="A paper's votes")
def get_vote(request: Request, paper_id: PaperId) -> Votes:
    """How many vote for it, and whether the token's account is among them; without a token it is not."""
    site = site_of(request)
    (view,) = with_activity(site.engine, [found_paper(site, paper_id)], api_account(request))
    return Votes(votes=view.activity.votes, voted=view.voted)


@router.put("/papers/{paper_id:path}/vote", responses={**NOT_FOUND, **NEEDS_TOKEN}, summary="Vote for a paper")
def put_vote(request: Request, paper_id: PaperId, account: TokenOf) -> Votes:
    """One vote an account; a second time changes nothing."""
    site = site_of(request)
    number = found_paper(site, paper_id).stored.number
    return Votes(votes=vote(site.engine, account.id, number), voted=True)


@router.delete("/papers/{paper_id:path}/vote", responses={**NOT_FOUND, **NEEDS_TOKEN}, summary="Take a vote back")
def delete_vote(request: Request, paper_id: PaperId, account: TokenOf) -> Votes:
    """Takes the account's vote back; without one nothing changes."""
    site = site_of(request)
    number = found_paper(site, paper_id).stored.number
    return Votes(votes=unvote(site.engine, account.id, number), voted=False)


@router.get("/papers/{paper_id:path}", responses=NOT_FOUND, summary="One paper")
def get_one_paper(request: Request, paper_id: PaperId) -> Paper:
    """A paper by its arXiv id, an older id, or its room's slug."""
    site = site_of(request)
    (view,) = with_activity(site.engine, [found_paper(site, paper_id)], None)
    return _paper(view)


@router.get("/search", summary="Search by words and meaning")
def search(
    request: Request,
    q: Annotated[str, Query(max_length=4000, description="Words, a title, author:name or an arXiv id.")] = "",
    topic: Annotated[str, Query(max_length=100)] = "",
    first: Annotated[Day | None, Query(alias="from")] = None,
    last: Annotated[Day | None, Query(alias="to")] = None,
    limit: Limit = 20,
    offset: Annotated[int, Query(ge=0, le=1000)] = 0,
) -> SearchResult:
    """The search of the page: exact titles and ids first, then words and meaning together."""
    site = site_of(request)
    query = q.replace("\x00", " ").encode("utf-8", "replace").decode().strip()
    index = site.index()
    days = None if first is None and last is None else (first, last)
    if index is not None:
        try:
            found = index.search(
                query, limit=limit, offset=offset, days=days, categories=[topic.replace("\x00", " ")] if topic else None
            )
            stored = papers_by_numbers(site.engine, [hit.number for hit in found.hits])
            views = with_activity(site.engine, with_rooms(stored, site.rooms), None)
            why = {hit.number: hit.why for hit in found.hits}
            results = [Found(why=why[view.stored.number], paper=_paper(view)) for view in views]
            return SearchResult(query=query, total=found.total, mode=found.mode, results=results)
        except IndexDamaged as error:
            site.index_failed(error)
    stored = search_titles(site.engine, query, days=(first, last), only=None, limit=limit)
    views = with_activity(site.engine, with_rooms(stored, site.rooms), None)
    results = [Found(why="title", paper=_paper(view)) for view in views if not topic or topic in view.topics]
    return SearchResult(query=query, total=len(results), mode="titles", results=results)


# Rooms and verdicts -----------------------------------------------------------------------------------------------


@router.get("/rooms", summary="All rooms")
def list_rooms(request: Request) -> list[RoomBrief]:
    """Every paper that has a room, and where it stands."""
    return [_room(room) for room in site_of(request).rooms]


@router.get("/rooms/{slug}", responses=NOT_FOUND, summary="One room")
def get_room(request: Request, slug: Slug) -> RoomOut:
    """A room with its claims and what to import."""
    room = _room_named(site_of(request), slug)
    return RoomOut(
        **_room_fields(room),
        topics=list(room.paper.topics),
        summary=room.paper.summary,
        claims=[ClaimOut.model_validate(claim.model_dump(mode="json")) for claim in room.paper.claims],
        import_line=room.method.import_line if room.method else None,
    )


@router.get("/rooms/{slug}/verdict", responses=NOT_FOUND, summary="A room's reference verdict")
def get_verdict(request: Request, slug: Slug) -> VerdictOut:
    """The verdict with its checks, numbers per arm and seed, costs, versions and machine."""
    room = _room_named(site_of(request), slug)
    if room.record is None:
        raise HTTPException(404, f"The room {slug} has no verdict yet.")
    return VerdictOut(slug=room.slug, stale=room.stale or None, record=room.record)


@router.get("/rooms/{slug}/trials", responses=NOT_FOUND, summary="The trials behind a reference verdict")
def reference_trials(request: Request, slug: Slug) -> list[Trial]:
    """What each arm measured with each seed in the run that ships with the room."""
    room = _room_named(site_of(request), slug)
    if room.record is None:
        raise HTTPException(404, f"The room {slug} has no verdict yet.")
    trials = []
    for name, arm in room.record.arms.items():
        for seed in range(room.record.seeds):
            trials.append(
                Trial(
                    arm=name,
                    seed=seed,
                    phase="report",
                    setting=dict(arm.setting),
                    status="finished",
                    measures={measure: values[seed] for measure, values in arm.measures.items()},
                    costs={cost: values[seed] for cost, values in arm.costs.items()},
                )
            )
    return trials


@router.get("/verdicts", summary="All reference verdicts")
def list_verdicts(request: Request) -> list[VerdictOut]:
    """Every room that has a verdict, with everything that was measured."""
    found = [(room, room.record) for room in site_of(request).rooms]
    return [VerdictOut(slug=room.slug, stale=room.stale or None, record=record) for room, record in found if record]


# Runs -------------------------------------------------------------------------------------------------------------


def _run(row: Any) -> RunOut:
    record = row.record or {}
    return RunOut(
        id=row.id,
        slug=row.slug,
        scale=row.scale,
        sham=row.sham,
        seeds=row.seeds,
        status=row.status,
        started=row.started,
        finished=row.finished,
        answer=record.get("answer"),
        summary=record.get("summary"),
        code_hash=row.code_hash,
    )


RUN_COLUMNS = (
    Run.id,
    Run.slug,
    Run.scale,
    Run.sham,
    Run.seeds,
    Run.status,
    Run.started,
    Run.finished,
    Run.record,
    Run.code_hash,
)


@router.get("/runs", summary="Runs of this installation")
def list_runs(
    request: Request,
    slug: Annotated[str, Query(max_length=80, description="Only of this room.")] = "",
    limit: Limit = 30,
    cursor: Annotated[int | None, Query(ge=1, le=LARGEST_NUMBER, description="next_cursor of the last answer.")] = None,
) -> Runs:
    """Runs newest first, those that failed or were stopped included."""
    query = select(*RUN_COLUMNS).order_by(Run.id.desc()).limit(limit + 1)
    if slug:
        query = query.where(Run.slug == slug.replace("\x00", " "))
    if cursor is not None:
        query = query.where(Run.id < cursor)
    with reading(site_of(request).engine) as connection:
        rows = connection.execute(query).all()
    return Runs(runs=[_run(row) for row in rows[:limit]], next_cursor=rows[limit - 1].id if len(rows) > limit else None)


@router.get("/runs/{run_id}", responses=NOT_FOUND, summary="One run")
def get_run(request: Request, run_id: Number) -> RunOut:
    """A run by its number."""
    with reading(site_of(request).engine) as connection:
        row = connection.execute(select(*RUN_COLUMNS).where(Run.id == run_id)).one_or_none()
    if row is None:
        raise HTTPException(404, f"There is no run {run_id}.")
    return _run(row)


@router.get("/runs/{run_id}/trials", responses=NOT_FOUND, summary="The trials of a run")
def run_trials(request: Request, run_id: Number) -> list[Trial]:
    """The trials that this run itself made; those that it found in the store belong to earlier runs."""
    names = ("arm", "seed", "phase", "setting", "status", "numbers", "costs", "error")
    columns = [TrialRow.__table__.c[name] for name in names]
    with reading(site_of(request).engine) as connection:
        if connection.execute(select(Run.id).where(Run.id == run_id)).scalar() is None:
            raise HTTPException(404, f"There is no run {run_id}.")
        rows = connection.execute(select(*columns).where(TrialRow.run_id == run_id).order_by(TrialRow.id)).all()
    return [
        Trial(
            arm=row.arm,
            seed=row.seed,
            phase=row.phase,
            setting=row.setting,
            status=row.status,
            measures=row.numbers,
            costs=row.costs,
            error=row.error,
        )
        for row in rows
    ]


def _job(job: Job) -> JobOut:
    return JobOut.model_validate({name: getattr(job, name) for name in JobOut.model_fields})


@router.post(
    "/runs",
    status_code=202,
    responses={**NOT_FOUND, **NEEDS_ADMINISTRATOR, **NO_TEXT, **TOO_LARGE},
    summary="Ask for a run",
)
def ask_for_run(request: Request, wish: RunWish, account: AdministratorsToken) -> JobOut:
    """A worker takes it up; what waits or runs already is not asked for twice."""
    site = site_of(request)
    room = site.rooms.get(wish.slug)
    if room is None or not room.runnable:
        raise HTTPException(404, f"There is no study {wish.slug[:80]!r} here.")
    number = enqueue_job(site.engine, wish.slug, wish.scale, seeds=wish.seeds, sham=wish.sham, asked_by=account.id)
    found = get_job(site.engine, number)
    assert found is not None
    return _job(found)


@router.get("/jobs/{job_id}", responses=NOT_FOUND, summary="How far a run is that was asked for")
def get_one_job(request: Request, job_id: Number) -> JobOut:
    """A run that was asked for, with its progress."""
    found = get_job(site_of(request).engine, job_id)
    if found is None:
        raise HTTPException(404, f"There is no job {job_id}.")
    return _job(found)


@router.delete("/jobs/{job_id}", responses={**NOT_FOUND, **NEEDS_ADMINISTRATOR}, summary="Stop a run")
def stop_job(request: Request, job_id: Number, account: AdministratorsToken) -> JobOut:
    """Stops it within seconds; its finished trials are kept."""
    site = site_of(request)
    cancel_job(site.engine, job_id)
    found = get_job(site.engine, job_id)
    if found is None:
        raise HTTPException(404, f"There is no job {job_id}.")
    return _job(found)


@router.get("/shared-runs", summary="Runs of other machines")
def list_shared(
    request: Request,
    slug: Annotated[str, Query(max_length=80, description="Only of this room.")] = "",
    limit: Limit = 30,
) -> list[SharedRun]:
    """Runs that were sent here, newest first; none of them is a reference verdict."""
    query = select(*SharedRunRow.__table__.c).order_by(SharedRunRow.id.desc()).limit(limit)
    if slug:
        query = query.where(SharedRunRow.slug == slug.replace("\x00", " "))
    with reading(site_of(request).engine) as connection:
        rows = connection.execute(query).all()
    return [
        SharedRun(
            id=row.id,
            slug=row.slug,
            answer=row.answer,
            same_code=row.same_code,
            code_hash=row.code_hash,
            received=row.received,
            record=Record.model_validate(row.record),
        )
        for row in rows
    ]


async def _run_body(request: Request) -> bytes:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > LARGEST_RUN:
            raise HTTPException(413, f"A run has at most {LARGEST_RUN >> 20} MiB.")
    return body


@router.post(
    "/shared-runs",
    status_code=201,
    responses={
        **NEEDS_TOKEN,
        **TOO_LARGE,
        200: {"model": ReceivedRun, "description": "The same run was sent before."},
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Record"}}},
        }
    },
    summary="Send a run of another machine",
)
def share_run(
    request: Request, response: Response, account: TokenOf, body: Annotated[bytes, Depends(_run_body)]
) -> ReceivedRun:
    """Takes the record of a run, in the form of reference.json; `working-papers run SLUG --share` sends it."""
    limit(request, "shared-runs", 60, 3600, key=str(account.id))
    site = site_of(request)
    try:
        received = receive_run(site.engine, site.rooms.installed, account.id, body)
    except UserError as error:
        raise HTTPException(422, str(error)) from error
    response.status_code = 201 if received.new else 200
    return ReceivedRun(id=received.id, new=received.new, same_code=received.same_code)


# Its description --------------------------------------------------------------------------------------------------


@cache
def openapi() -> dict[str, Any]:
    """The API as OpenAPI 3.1."""
    from working_papers import __version__

    described = get_openapi(
        title="Working Papers",
        version=__version__,
        summary="Papers, and whether their claims hold when they are run.",
        routes=router.routes,
    )
    described.setdefault("components", {})["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    for operations in described["paths"].values():
        for operation in operations.values():
            if "401" in operation["responses"]:
                operation["security"] = [{"token": []}]
    return described


@pages.get(f"{PREFIX}/openapi.json")
def openapi_json(request: Request) -> Response:
    """The description for programs."""
    return json(request, openapi())


@pages.get("/api/docs")
def api_page(request: Request) -> Response:
    """The description for people."""
    described = openapi()
    operations = []
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            parameters = tuple(
                (each["name"], each["in"], each.get("description", ""), bool(each.get("required")))
                for each in operation.get("parameters", [])
            )
            operations.append(
                Operation(
                    method=method.upper(),
                    path=path,
                    summary=operation.get("summary", ""),
                    about=operation.get("description", ""),
                    parameters=parameters,
                    needs_token="security" in operation,
                )
            )
    page = ApiPage(
        **site_of(request).common(request, "/api/docs"),
        title="API",
        section="api",
        description="How programs read this site.",
        operations=tuple(operations),
        base=site_of(request).absolute(request, ""),
    )
    return html(request, page)
