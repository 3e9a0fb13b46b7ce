"""Lists of papers as Atom feeds (RFC 4287), in parts that follow one another (RFC 5005)."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Sequence
from uuid import UUID, uuid5
from xml.sax.saxutils import escape

from starlette.requests import Request
from starlette.responses import Response

from working_papers.daily.accounts.secrets import site_secret
from working_papers.web.papers import PaperView
from working_papers.web.site import Site, cached

MEDIA_TYPE = "application/atom+xml; charset=utf-8"
_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def xml(text: str) -> str:
    """Escaped, for an element or an attribute, without the characters that XML cannot hold."""
    return escape(_NOT_IN_XML.sub("", text), {'"': "&quot;"})


def atom(
    request: Request,
    site: Site,
    *,
    heading: str,
    here: str,
    page: str,
    papers: Sequence[PaperView],
    first: str = "",
    older: str = "",
    newer: str = "",
) -> Response:
    """A list of papers as a feed.

    Args:
        request: the present one.
        site: the site.
        heading: what the list is.
        here: path of this part of the feed.
        page: path of the same list as a page.
        papers: its papers.
        first: path of the feed's first part, by which all its parts are known; `here` by default.
        older: path of its next part.
        newer: path of its previous part.
    """
    name = xml(site.settings.site_name)
    own, first = xml(site.absolute(request, here)), xml(site.absolute(request, first or here))
    installation = UUID(bytes=site_secret(site.engine, "feeds")[:16])
    updated = max((changed(paper) for paper in papers), default=dt.datetime(2000, 1, 1, tzinfo=dt.UTC))
    links = [f'<link rel="self" type="application/atom+xml" href="{own}"/>']
    links.append(f'<link rel="alternate" type="text/html" href="{xml(site.absolute(request, page))}"/>')
    links += [f'<link rel="first" href="{first}"/>'] if first != own else []
    links += [f'<link rel="next" href="{xml(site.absolute(request, older))}"/>'] if older else []
    links += [f'<link rel="previous" href="{xml(site.absolute(request, newer))}"/>'] if newer else []
    parts = [
        '<?xml version="1.0" encoding="utf-8"?>\n<feed xmlns="http://www.w3.org/2005/Atom">\n',
        f"<title>{name}: {xml(heading)}</title>\n<id>{first}</id>\n",
        "\n".join(links) + "\n",
        f"<updated>{moment(updated)}</updated>\n<author><name>{name}</name></author>\n",
        *(_entry(_id(installation, paper), site.absolute(request, paper.href), paper) for paper in papers),
        "</feed>\n",
    ]
    return cached(request, "".join(parts).encode("utf-8", "replace"), MEDIA_TYPE)


def changed(paper: PaperView) -> dt.datetime:
    """When a reader would want to look again: when the paper came or was revised, or its verdict was reached."""
    day = max(day for day in (paper.stored.day, paper.stored.updated, paper.published) if day is not None)
    latest = dt.datetime.combine(day, dt.time(), dt.UTC)
    if paper.room is not None and paper.room.record is not None:
        latest = max(latest, paper.room.record.date.astimezone(dt.UTC))
    return latest


def moment(when: dt.datetime) -> str:
    """As RFC 3339 writes it."""
    return when.astimezone(dt.UTC).replace(microsecond=0, tzinfo=None).isoformat() + "Z"


def _id(installation: UUID, paper: PaperView) -> str:
    """The same for ever, whatever name the site is reached by and whatever id the paper gets."""
    return uuid5(installation, f"paper {paper.stored.number}").urn


def _entry(id: str, link: str, paper: PaperView) -> str:
    names = [name for name in map(xml, paper.authors) if name.strip()]
    authors = "".join(f"<author><name>{name}</name></author>" for name in names)
    verdict = f"{paper.room.state.word}: {paper.room.finding}\n\n" if paper.room and paper.room.record else ""
    topics = "".join(f'<category term="{xml(topic)}"/>' for topic in paper.topics)
    published = dt.datetime.combine(paper.date, dt.time(), dt.UTC)
    return (
        f"<entry><title>{xml(paper.title)}</title><id>{id}</id>"
        f'<link rel="alternate" type="text/html" href="{xml(link)}"/>'
        f"<published>{moment(published)}</published><updated>{moment(changed(paper))}</updated>{authors}{topics}"
        f"<summary>{xml(verdict + (paper.summary or paper.abstract))}</summary></entry>\n"
    )
