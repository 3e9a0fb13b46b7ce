"""The site for assistants: a Model Context Protocol server with the verbs search, read, similar, verdict and run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import ToolAnnotations
from pydantic import Field
from starlette.exceptions import HTTPException

from working_papers import __version__
from working_papers.bench.jobs import enqueue_job, get_job
from working_papers.bench.study import Scale
from working_papers.daily.accounts.tokens import account_of_token
from working_papers.web.markdown import paper_markdown
from working_papers.web.papers import PaperView, with_activity, with_rooms
from working_papers.web.routes.hub import search as find
from working_papers.web.routes.papers import found_paper, similar_papers

if TYPE_CHECKING:
    from working_papers.daily.accounts.accounts import Account
    from working_papers.web.site import Site

MOST = 50
INSTRUCTIONS = (
    "Machine-learning papers, and whether their claims hold when they are run. Papers are named by arXiv id, by the "
    "slug of their room, or by the id that search returns. A verdict is 'holds', 'does not hold' or 'inconclusive' in "
    "a study at laptop scale; `verdict` tells what was measured and what differs from the paper."
)
READ_ONLY = ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=False)

PaperName = Annotated[str, Field(description="arXiv id, room's slug, or an id from search.", max_length=300)]


def mcp_server(site: Site, token: str = "") -> MCPServer[Any]:
    """The server for one installation.

    Args:
        site: the database, the index and the rooms.
        token: of the account for which it works where the transport carries none (standard input and output).
    """
    server: MCPServer[Any] = MCPServer(
        "working-papers", title=site.settings.site_name, instructions=INSTRUCTIONS, version=__version__
    )
    base = site.settings.base_url.rstrip("/")

    def paper_named(name: str) -> PaperView:
        try:
            (view,) = with_activity(site.engine, [found_paper(site, name.strip())], None)
        except HTTPException as error:
            raise ToolError(
                f"there is no paper {name[:100]!r} here; search finds papers by words and titles"
            ) from error
        return view

    def brief(paper: PaperView) -> dict[str, Any]:
        room = paper.room
        return {
            "id": paper.id,
            "title": paper.title,
            "authors": list(paper.authors[:5]),
            "date": paper.date.isoformat(),
            "summary": paper.lead,
            "room": room.slug if room else None,
            "verdict": room.record.answer if room and room.record else None,
            "votes": paper.activity.votes,
            "page": base + paper.href,
        }

    @server.tool(description="Find papers by words, title, author:name or arXiv id.", annotations=READ_ONLY)
    def search(
        query: Annotated[str, Field(description="What to look for; empty for the newest papers.", max_length=4000)],
        limit: Annotated[int, Field(ge=1, le=MOST)] = 10,
    ) -> list[dict[str, Any]]:
        stored = find(site, query.replace("\x00", " ").strip(), limit)
        return [brief(paper) for paper in with_activity(site.engine, with_rooms(stored, site.rooms), None)]

    @server.tool(
        description="A paper as Markdown: summary, abstract, claims, verdict, how to import it.", annotations=READ_ONLY
    )
    def read(paper: PaperName) -> str:
        found = paper_named(paper)
        return paper_markdown(found, similar_papers(site, found), base + found.href)

    @server.tool(description="Papers that mean something close to one.", annotations=READ_ONLY)
    def similar(paper: PaperName) -> list[dict[str, Any]]:
        views = similar_papers(site, paper_named(paper))
        return [brief(view) for view in with_activity(site.engine, views, None)]

    @server.tool(
        description="A paper's verdict: every check with its interval, numbers per arm, costs, what differs.",
        annotations=READ_ONLY,
    )
    def verdict(paper: PaperName) -> dict[str, Any]:
        found = paper_named(paper)
        if found.room is None or found.room.record is None:
            raise ToolError(
                f"{found.title!r} has no verdict; {'its study runs' if _runs(found) else 'it does not run'} here"
            )
        record = found.room.record
        return {
            "paper": brief(found),
            "stale": found.room.stale or None,
            "record": record.model_dump(mode="json"),
        }

    @server.tool(
        description="Start a study on this installation. Needs an administrator's token. Returns the job; ask `job` "
        "for its progress.",
        annotations=ToolAnnotations(read_only_hint=False, destructive_hint=False, idempotent_hint=True),
    )
    def run(
        paper: PaperName,
        ctx: Context[Any, Any],
        scale: Annotated[Scale, Field(description="smoke (seconds), laptop (minutes) or paper.")] = Scale.LAPTOP,
    ) -> dict[str, Any]:
        account = _account(site, ctx, token)
        if account is None or not account.administrator:
            raise ToolError(
                "starting a study needs an administrator's token: in WORKING_PAPERS_TOKEN, or over HTTP in the header "
                "Authorization: Bearer …"
            )
        found = paper_named(paper)
        if found.room is None or not _runs(found):
            raise ToolError(f"{found.title!r} has no study that runs here")
        return job(enqueue_job(site.engine, found.room.slug, scale.value, asked_by=account.id))

    @server.tool(description="How far a study is that was started with `run`.", annotations=READ_ONLY)
    def job(number: Annotated[int, Field(ge=1, le=2**31 - 1)]) -> dict[str, Any]:
        found = get_job(site.engine, number)
        if found is None:
            raise ToolError(f"there is no job {number}")
        return {
            "job": found.id,
            "room": found.slug,
            "scale": found.scale,
            "status": found.status,
            "progress": found.progress,
            "run": found.run_id,
            "error": found.error,
        }

    return server


def _runs(paper: PaperView) -> bool:
    return paper.room is not None and paper.room.runnable


def _account(site: Site, context: Context[Any, Any], token: str) -> Account | None:
    """For whom a call is made: over HTTP whoever's token comes with it, else whose the server's own is."""
    headers = context.headers
    if headers is None:
        return account_of_token(site.engine, token) if token else None
    scheme, _, given = headers.get("authorization", "").partition(" ")
    return account_of_token(site.engine, given.strip()) if scheme.lower() == "bearer" else None
