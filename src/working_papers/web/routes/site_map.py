"""What crawlers ask for: which addresses there are, and which they should leave alone."""

from __future__ import annotations

from collections.abc import Iterator

from fastapi import APIRouter
from sqlalchemy import select
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from working_papers.daily.catalogue import PAPERS
from working_papers.database import reading
from working_papers.web.feeds import xml
from working_papers.web.papers import href_of
from working_papers.web.site import Site, cached, site_of

router = APIRouter(include_in_schema=False)

PART = 49_000
"""Numbers of papers in one part; more than 50,000 addresses are not allowed, and the first part has some others."""

AT_ONCE = 2_000
FIXED = ("/", "/feed", "/rooms", "/api/docs")
CLOSED = ("/account", "/api/", "/comments/", "/digest/", "/outbox", "/runs/", "/search", "/sign-in", "/submit")
_OPEN = '<?xml version="1.0" encoding="UTF-8"?>\n'
_NAMESPACE = 'xmlns="http://www.sitemaps.org/schemas/sitemap/0.9"'


@router.get("/robots.txt")
def robots(request: Request) -> Response:
    """Pages are welcome to be read; searching and what belongs to accounts is left out."""
    lines = ["User-agent: *", *(f"Disallow: {path}" for path in CLOSED), "Allow: /api/docs"]
    lines.append(f"Sitemap: {site_of(request).absolute(request, '/sitemap.xml')}")
    return PlainTextResponse("\n".join(lines) + "\n")


@router.get("/sitemap.xml")
def index(request: Request) -> Response:
    """The parts: papers by their numbers."""
    site = site_of(request)
    parts = [f"/sitemap-{part}.xml" for part in range(_last(site) + 1)]
    entries = "".join(f"<sitemap><loc>{xml(site.absolute(request, part))}</loc></sitemap>\n" for part in parts)
    body = f"{_OPEN}<sitemapindex {_NAMESPACE}>\n{entries}</sitemapindex>\n"
    return cached(request, body.encode(), "application/xml; charset=utf-8")


@router.get("/sitemap-{part:int}.xml")
def part_of_it(request: Request, part: int) -> Response:
    """One part, written as it is read: three million papers need no more memory than a few thousand."""
    site = site_of(request)
    if part > _last(site):
        raise HTTPException(404, "There is no such part of the site map.")
    base = site.absolute(request, "")
    return StreamingResponse(_lines(site, base, part), media_type="application/xml; charset=utf-8")


def _last(site: Site) -> int:
    """The last part, counted from 0; the first one is there even without papers."""
    with reading(site.engine) as connection:
        last = connection.execute(select(PAPERS.c.number).order_by(PAPERS.c.number.desc()).limit(1)).scalar() or 0
    return int(last) // PART


def _lines(site: Site, base: str, part: int) -> Iterator[str]:
    yield f"{_OPEN}<urlset {_NAMESPACE}>\n"
    if part == 0:
        yield "".join(f"<url><loc>{xml(base + path)}</loc></url>\n" for path in FIXED)
    after, end = part * PART - 1, (part + 1) * PART
    columns = (PAPERS.c.number, PAPERS.c.id, PAPERS.c.updated, PAPERS.c.day)
    while True:
        query = select(*columns).where(PAPERS.c.number > after, PAPERS.c.number < end)
        with reading(site.engine) as connection:
            rows = connection.execute(query.order_by(PAPERS.c.number).limit(AT_ONCE)).all()
        if not rows:
            break
        after = rows[-1].number
        yield "".join(
            f"<url><loc>{xml(base + href_of(row.id))}</loc><lastmod>{row.updated or row.day}</lastmod></url>\n"
            for row in rows
        )
    yield "</urlset>\n"
