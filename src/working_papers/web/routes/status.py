"""Status: every import, the search index, the rooms; and the address that a supervisor asks."""

from __future__ import annotations

from fastapi import APIRouter
from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from working_papers.bench.record import installed_versions
from working_papers.daily.catalogue import last_revision, list_imports, list_rejections, paper_count
from working_papers.daily.search import IndexDamaged, IndexStatus
from working_papers.web.contexts import Pager, StatusPage
from working_papers.web.parameters import Parameters, address
from working_papers.web.site import Site, html, site_of

router = APIRouter(include_in_schema=False)

PAGE = 50
REJECTIONS = 20
"""Rejected records that are shown of an import."""


@router.get("/status")
def status_page(request: Request) -> Response:
    """What came in, from where, what was refused and why; how far the index is."""
    site, asked = site_of(request), Parameters(request.query_params)
    number = asked.page(10_000)
    found = list_imports(site.engine, PAGE + 1, (number - 1) * PAGE)
    shown = found[:PAGE]
    index = _index_status(site)
    page = StatusPage(
        **site.common(request),
        title="Status",
        description="Imports, search index and rooms of this site.",
        section="status",
        notices=tuple(asked.notices),
        paper_count=paper_count(site.engine),
        imports=tuple(shown),
        rejections={
            each.id: tuple(list_rejections(site.engine, each.id, REJECTIONS)) for each in shown if each.rejected
        },
        index=index,
        index_problem=site.index_problem if index is None else index.problem,
        revision=last_revision(site.engine),
        tally=site.tally(),
        room_problems=tuple(site.rooms.problems),
        versions=installed_versions(),
        pages=Pager(
            address("/status", page=number - 1 if number > 2 else "") if number > 1 else "",
            "Newer imports",
            address("/status", page=number + 1) if len(found) > PAGE else "",
            "Older imports",
        ),
    )
    return html(request, page)


@router.get("/healthz")
def health(request: Request) -> Response:
    """Whether database and index answer: 200, or 503 without a database. Search is a part that may fail alone."""
    site = site_of(request)
    try:
        papers: int | None = paper_count(site.engine)
    except SQLAlchemyError:
        papers = None
    index = _index_status(site)
    content = {
        "status": "ok" if papers is not None else "the database cannot be read",
        "papers": papers,
        "search": "ok" if index is not None and not index.problem else (index.problem if index else site.index_problem),
    }
    return JSONResponse(content, 200 if papers is not None else 503, headers={"Cache-Control": "no-store"})


def _index_status(site: Site) -> IndexStatus | None:
    index = site.index()
    if index is None:
        return None
    try:
        return index.status()
    except IndexDamaged as error:
        site.index_failed(error)
        return None
