"""Comments and replications as pages show them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from markupsafe import Markup
from sqlalchemy import select

from working_papers.bench.jobs import SharedRunRow
from working_papers.daily.accounts.accounts import accounts_by_ids
from working_papers.daily.community.comments import SHOWN, comments_before, list_comments
from working_papers.daily.community.markdown import comment_html
from working_papers.database import reading
from working_papers.web.contexts import CommentView, Pager, SharedView
from working_papers.web.parameters import address
from working_papers.web.verdicts import State

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from working_papers.daily.accounts.accounts import Account
    from working_papers.daily.community.comments import Comment
    from working_papers.web.papers import PaperView

SHARED = 20
"""Runs of other machines that a page shows, the newest."""


DEEPEST_PAGE = 1_000
"""Pages of comments that can be turned."""


def comment_views(
    engine: Engine, paper: PaperView, reader: Account | None, page: int = 1
) -> tuple[tuple[CommentView, ...], Pager]:
    """A page of a paper's comments, rendered for a reader, and its neighbours."""
    found = list_comments(engine, paper.stored.number, reader, SHOWN + 1, (page - 1) * SHOWN)
    views = tuple(
        CommentView(
            id=comment.id,
            author=comment.author,
            created=comment.created,
            edited=comment.edited,
            hidden=comment.hidden is not None,
            html=Markup(comment_html(comment.body)),
            own=reader is not None and comment.account_id == reader.id,
        )
        for comment in found[:SHOWN]
    )
    earlier = comments_address(paper, page - 1) if page > 1 else ""
    later = comments_address(paper, page + 1) if len(found) > SHOWN and page < DEEPEST_PAGE else ""
    return views, Pager(earlier, "Earlier comments", later, "Later comments")


def comments_address(paper: PaperView, page: int, anchor: str = "comments") -> str:
    """The address of a page of comments."""
    return f"{address(paper.href, page=page if page > 1 else '')}#{anchor}"


def comment_address(engine: Engine, paper: PaperView, comment: Comment, reader: Account | None) -> str:
    """Where a comment stands for a reader."""
    page = 1 + comments_before(engine, comment, reader) // SHOWN
    return comments_address(paper, page, f"comment-{comment.id}")


def shared_views(engine: Engine, slug: str) -> tuple[SharedView, ...]:
    """Runs of a room that were made on other machines, newest first."""
    import datetime as dt

    table = SharedRunRow
    query = select(table.id, table.account_id, table.same_code, table.answer, table.record, table.received)
    with reading(engine) as connection:
        rows = connection.execute(query.where(table.slug == slug).order_by(table.id.desc()).limit(SHARED)).all()
    names = accounts_by_ids(engine, [row.account_id for row in rows])
    views = []
    for row in rows:
        record = row.record
        machine, versions = record["machine"], record["versions"]
        sender = names.get(row.account_id)
        views.append(
            SharedView(
                id=row.id,
                sent_by=sender.name if sender else "an account that is gone",
                received=row.received,
                made=dt.datetime.fromisoformat(record["date"]),
                scale=record["scale"],
                state=State(row.answer),
                summary=record["summary"],
                same_code=row.same_code,
                machine=f"{machine.get('processor', 'a processor')}, {machine.get('system', 'a system')}",
                versions=", ".join(f"{name} {versions[name]}" for name in ("python", "torch") if name in versions),
            )
        )
    return tuple(views)
