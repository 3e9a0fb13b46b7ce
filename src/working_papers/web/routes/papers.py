"""Paper pages: what a paper claims, what its study found, how to use it."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

from fastapi import APIRouter
from sqlalchemy import select
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from working_papers.bench.jobs import list_jobs
from working_papers.bench.store import FAILED, Run
from working_papers.daily.catalogue import StoredPaper, get_paper
from working_papers.database import reading
from working_papers.web.bibtex import bibtex
from working_papers.web.citation import citation_tags
from working_papers.web.community import DEEPEST_PAGE, comment_views, shared_views
from working_papers.web.contexts import Alternate, PaperPage, RunView
from working_papers.web.markdown import paper_markdown, prefers_markdown
from working_papers.web.middleware import FIGURE_POLICY
from working_papers.web.papers import PaperView, room_json, with_activity, with_rooms
from working_papers.web.parameters import Parameters
from working_papers.web.site import Site, cached, file_response, html, json, site_of
from working_papers.web.text import lead
from working_papers.web.verdicts import State, figure_of
from working_papers.web.visitors import visitor_of

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import Engine

SIMILAR = 5
RUNS = 10
"""Runs of this installation that a paper's page lists."""

LONGEST_LOG = 4_000

router = APIRouter(include_in_schema=False)


@router.get("/papers/{paper_id:path}/runs/{run_id:int}.svg")
def run_figure(request: Request, paper_id: str, run_id: int) -> Response:
    """The figure of a run of this installation."""
    paper = found_paper(site_of(request), paper_id)
    file = run_figure_file(site_of(request), paper.room.slug, run_id) if paper.room else None
    if file is None:
        raise HTTPException(404, f"There is no figure of a run {run_id} of this paper.")
    return _figure(request, file)


@router.get("/papers/{paper_id:path}/figure.svg")
def figure(request: Request, paper_id: str) -> Response:
    """The figure of the reference verdict."""
    paper = found_paper(site_of(request), paper_id)
    if paper.room is None or paper.room.figure is None:
        raise HTTPException(404, "This paper has no figure yet.")
    return _figure(request, paper.room.figure.file)


def _figure(request: Request, file: Path) -> Response:
    return file_response(request, file, figure_of(file).version, "image/svg+xml", FIGURE_POLICY)


@router.get("/papers/{paper_id:path}.json")
def paper_json(request: Request, paper_id: str) -> Response:
    """The paper, its claims and its whole record as JSON."""
    site = site_of(request)
    (paper,) = with_activity(site.engine, [found_paper(site, paper_id)], None)
    content = paper.as_json()
    if paper.room is not None:
        content["room"] = room_json(paper.room, full=True)
    content["similar"] = [
        {"id": other.id, "title": other.title, "page": other.href} for other in similar_papers(site, paper)
    ]
    return json(request, content)


@router.get("/papers/{paper_id:path}.bib")
def paper_bibtex(request: Request, paper_id: str) -> Response:
    """The paper as BibTeX."""
    paper = found_paper(site_of(request), paper_id)
    return cached(request, bibtex([paper]).encode(), "application/x-bibtex; charset=utf-8")


@router.get("/papers/{paper_id:path}.md")
def paper_as_markdown(request: Request, paper_id: str) -> Response:
    """The paper as Markdown, for people and programs; `hf papers read` asks for it."""
    return _markdown(request, found_paper(site_of(request), paper_id))


def _markdown(request: Request, paper: PaperView) -> Response:
    site = site_of(request)
    (paper,) = with_activity(site.engine, [paper], None)
    text = paper_markdown(paper, similar_papers(site, paper), site.absolute(request, paper.href))
    return cached(request, text.encode("utf-8", "replace"), "text/markdown; charset=utf-8")


@router.get("/papers/{paper_id:path}")
def paper_page(request: Request, paper_id: str) -> Response:
    """The page of one paper; other ids of it (a room's slug, a version, an older id) lead there."""
    site = site_of(request)
    paper = found_paper(site, paper_id)
    if paper.id != paper_id:
        return RedirectResponse(paper.href, 308)
    if prefers_markdown(request.headers.get("accept", "")):
        return _varying(_markdown(request, paper))
    reader, asked = visitor_of(request).account, Parameters(request.query_params)
    (paper,) = with_activity(site.engine, [paper], reader)
    comments, comment_pages = comment_views(site.engine, paper, reader, asked.page(DEEPEST_PAGE))
    room = paper.room
    about = room.finding if room and room.record else paper.lead
    page = PaperPage(
        **site.common(request, paper.href),
        title=paper.title,
        description=lead(about, 200),
        section="papers",
        notices=(*asked.notices, *(("This paper is here already.",) if asked.flag("known") else ())),
        alternates=(
            Alternate(f"{paper.href}.json", "application/json", "JSON"),
            Alternate(f"{paper.href}.bib", "application/x-bibtex", "BibTeX"),
            Alternate(f"{paper.href}.md", "text/markdown", "Markdown"),
        ),
        paper=paper,
        similar=similar_papers(site, paper),
        bibtex=bibtex([paper]),
        runs=_runs(site, paper) if room and room.runnable else (),
        meta=tuple(citation_tags(paper)),
        comments=comments,
        comment_pages=comment_pages,
        jobs=tuple(list_jobs(site.engine, slug=room.slug, active=True)) if room and room.runnable else (),
        shared=shared_views(site.engine, room.slug) if room and room.runnable else (),
    )
    return _varying(html(request, page))


def _varying(response: Response) -> Response:
    """Says to caches that the page has two forms under one address."""
    response.headers.add_vary_header("Accept")
    return response


def found_paper(site: Site, paper_id: str) -> PaperView:
    """The paper with that id, or with an older id, or of the room with that slug.

    Raises:
        HTTPException: 404 when there is none.
    """
    stored: StoredPaper | None = get_paper(site.engine, paper_id) if paper_id else None
    if stored is None:
        room = site.rooms.by_key(paper_id)
        stored = get_paper(site.engine, room.paper.arxiv or room.slug) if room else None
    if stored is None:
        raise HTTPException(404, "No paper here has that id. Papers are found by their arXiv id, or by searching.")
    return PaperView(stored, site.rooms.get(stored.room))


def similar_papers(site: Site, paper: PaperView) -> tuple[PaperView, ...]:
    """Papers like it."""
    return with_rooms(site.similar(paper.stored, SIMILAR), site.rooms)


# Runs of this installation ----------------------------------------------------------------------------------------


def latest_runs(engine: Engine, slug: str, limit: int) -> list[Run]:
    """The newest runs of a room, newest first."""
    from sqlalchemy.orm import Session

    with reading(engine) as connection, Session(connection, expire_on_commit=False) as session:
        return list(session.scalars(select(Run).where(Run.slug == slug).order_by(Run.id.desc()).limit(limit)))


def _runs(site: Site, paper: PaperView) -> tuple[RunView, ...]:
    assert paper.room is not None
    slug = paper.room.slug
    views = []
    for run in latest_runs(site.engine, slug, RUNS):
        answer = run.record.get("answer") if run.record else None
        state = State(answer) if answer in set(State) else None
        outcome = state.value if state else "could not run" if run.status == FAILED else run.status
        file = run_figure_file(site, slug, run.id)
        views.append(
            RunView(
                id=run.id,
                started=run.started,
                scale=run.scale,
                sham=run.sham,
                outcome=outcome,
                state=state,
                error=(run.error or "")[-LONGEST_LOG:],
                figure=figure_of(file) if file else None,
            )
        )
    return tuple(views)


def run_figure_file(site: Site, slug: str, run_id: int) -> Path | None:
    """The figure of a run of this installation, if it has one."""
    file = site.settings.figures_folder / quote(slug, safe="") / f"{run_id}.svg"
    return file if file.is_file() else None
