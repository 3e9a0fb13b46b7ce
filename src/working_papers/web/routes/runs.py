"""Runs from the page: asked for by administrators, watched live by everybody; and runs of other machines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson
from fastapi import APIRouter
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse

from working_papers.bench.jobs import Job, cancel_job, enqueue_job, get_job, list_jobs
from working_papers.bench.store import FAILED, Run
from working_papers.bench.study import Scale
from working_papers.daily.accounts.accounts import accounts_by_ids
from working_papers.database import reading
from working_papers.web.contexts import JobPage, JobsPage, JobView, Pager, RunView
from working_papers.web.parameters import Parameters, address
from working_papers.web.routes.papers import run_figure_file
from working_papers.web.site import Site, html, site_of
from working_papers.web.verdicts import State, figure_of
from working_papers.web.visitors import Administrator, Form

router = APIRouter(include_in_schema=False)

PAGE = 50
TICK_SECONDS = 1.0
"""How often a live page is told how far the run is."""

MOST_WATCHERS = 200
"""Live pages that one process serves at a time."""


@router.get("/runs")
def jobs_page(request: Request) -> Response:
    """Runs that were asked for, newest first."""
    site, asked = site_of(request), Parameters(request.query_params)
    number = asked.page(10_000)
    found = list_jobs(site.engine, limit=PAGE + 1, offset=(number - 1) * PAGE)
    page = JobsPage(
        **site.common(request),
        title="Runs",
        section="runs",
        notices=tuple(asked.notices),
        jobs=_views(site, found[:PAGE]),
        rooms=tuple(room for room in site.rooms if room.runnable),
        pages=Pager(
            address("/runs", page=number - 1 if number > 2 else "") if number > 1 else "",
            "Newer runs",
            address("/runs", page=number + 1) if len(found) > PAGE else "",
            "Older runs",
        ),
    )
    return html(request, page)


def _views(site: Site, jobs: list[Job]) -> tuple[JobView, ...]:
    names = accounts_by_ids(site.engine, [job.asked_by for job in jobs if job.asked_by is not None])
    views = []
    for job in jobs:
        room = site.rooms.get(job.slug)
        asker = names.get(job.asked_by) if job.asked_by is not None else None
        title = room.paper.title if room else job.slug
        views.append(JobView(job, title, f"/papers/{room.key}" if room else "/rooms", asker.name if asker else ""))
    return tuple(views)


@router.post("/runs")
def start(request: Request, account: Administrator, form: Form) -> Response:
    """Asks for a run."""
    site = site_of(request)
    slug, scale = str(form.get("slug", "")), str(form.get("scale", ""))
    room = site.rooms.get(slug)
    if room is None or not room.runnable:
        raise HTTPException(422, f"There is no study “{slug[:80]}” here.")
    if scale not in set(Scale):
        raise HTTPException(422, f"There is no scale “{scale[:40]}”; the scales are {', '.join(Scale)}.")
    number = enqueue_job(site.engine, slug, scale, sham=bool(form.get("sham")), asked_by=account.id)
    return RedirectResponse(f"/runs/{number}", 303)


@router.post("/runs/{job_id:int}/cancel")
def cancel(request: Request, job_id: int, account: Administrator, form: Form) -> Response:
    """Stops a run; its finished trials are kept."""
    site = site_of(request)
    _found(site, job_id)
    cancel_job(site.engine, job_id)
    return RedirectResponse(f"/runs/{job_id}", 303)


def _found(site: Site, job_id: int) -> Job:
    job = get_job(site.engine, job_id) if job_id < 2**31 else None
    if job is None:
        raise HTTPException(404, "There is no such run.")
    return job


def job_json(job: Job) -> dict[str, Any]:
    """A job for programs and live pages; which machine runs it is nobody's business."""
    return {
        "id": job.id,
        "slug": job.slug,
        "scale": job.scale,
        "sham": job.sham,
        "status": job.status,
        "active": job.active,
        "cancel": job.cancel,
        "attempts": job.attempts,
        "progress": job.progress,
        "run_id": job.run_id,
        "error": job.error,
        "created": job.created,
        "started": job.started,
        "finished": job.finished,
    }


@router.get("/runs/{job_id:int}.json")
def job_as_json(request: Request, job_id: int) -> Response:
    """How far a run is, as JSON."""
    body = orjson.dumps(job_json(_found(site_of(request), job_id)))
    return Response(body, media_type="application/json", headers={"Cache-Control": "no-store"})


@router.get("/runs/{job_id:int}")
def job_page(request: Request, job_id: int) -> Response:
    """A run, live while it runs."""
    site = site_of(request)
    job = _found(site, job_id)
    (view,) = _views(site, [job])
    run, summary = _run(site, job)
    page = JobPage(
        **site.common(request),
        title=f"Run {job.id}: {view.title}",
        section="runs",
        view=view,
        run=run,
        figure=f"{view.href}/runs/{run.id}.svg" if run and run.figure else "",
        summary=summary,
    )
    return html(request, page, headers={"Cache-Control": "no-store"})


def _run(site: Site, job: Job) -> tuple[RunView | None, str]:
    """What the run came to, once it has ended."""
    if job.run_id is None or job.active:
        return None, ""
    query = select(Run.id, Run.started, Run.scale, Run.sham, Run.status, Run.record).where(Run.id == job.run_id)
    with reading(site.engine) as connection:
        row = connection.execute(query).one_or_none()
    if row is None:
        return None, ""
    answer = row.record.get("answer") if row.record else None
    state = State(answer) if answer in set(State) else None
    file = run_figure_file(site, job.slug, row.id)
    view = RunView(
        id=row.id,
        started=row.started,
        scale=row.scale,
        sham=row.sham,
        outcome=state.value if state else "could not run" if row.status == FAILED else row.status,
        state=state,
        error="",
        figure=figure_of(file) if file else None,
    )
    return view, str(row.record.get("summary", "")) if row.record else ""


@router.get("/runs/{job_id:int}/events")
async def events(request: Request, job_id: int) -> Response:
    """The run's progress as server-sent events, until it has ended."""
    site = site_of(request)
    await run_in_threadpool(_found, site, job_id)
    if site.watchers >= MOST_WATCHERS:
        raise HTTPException(503, "Very many pages are watching runs; load this one again.", {"Retry-After": "5"})
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no", "Content-Encoding": "identity"}
    return StreamingResponse(_stream(request, site, job_id), media_type="text/event-stream", headers=headers)


async def _stream(request: Request, site: Site, job_id: int) -> AsyncIterator[bytes]:
    site.watchers += 1
    try:
        last = b""
        quiet = 0
        yield b"retry: 3000\n\n"
        while not site.closing:
            job = await run_in_threadpool(get_job, site.engine, job_id)
            if job is None:
                return
            data = orjson.dumps(job_json(job))
            if data != last:
                yield b"event: job\ndata: " + data + b"\n\n"
                last, quiet = data, 0
            else:
                quiet += 1
                if quiet % 15 == 0:
                    yield b": still here\n\n"  # so that proxies keep the connection, and a reader who left is noticed
            if not job.active or await request.is_disconnected():
                return
            await asyncio.sleep(TICK_SECONDS)
    finally:
        site.watchers -= 1
