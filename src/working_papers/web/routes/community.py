"""Votes, comments, submissions and saved searches."""

from __future__ import annotations

import datetime as dt

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from working_papers.daily.catalogue import papers_by_numbers
from working_papers.daily.community.comments import (
    Comment,
    delete_comment,
    edit_comment,
    get_comment,
    hide_comment,
    write_comment,
)
from working_papers.daily.community.saved_searches import (
    delete_saved_search,
    rename_saved_search,
    save_search,
    saved_search_by_key,
)
from working_papers.daily.community.submissions import submissions_since, submit_arxiv, submit_by_hand
from working_papers.daily.community.votes import unvote, vote
from working_papers.database import now
from working_papers.errors import UserError
from working_papers.web.contexts import CommentPage, SubmitPage
from working_papers.web.limits import limit
from working_papers.web.papers import PaperView
from working_papers.web.routes.papers import found_paper
from working_papers.web.site import html, site_of
from working_papers.web.visitors import Administrator, Form, SignedIn, back

router = APIRouter(include_in_schema=False)

COMMENTS = (10, 600)
"""Comments of one account in so many seconds."""

VOTES = (120, 60)
SUBMISSIONS_A_DAY = 20


def sentence(error: UserError) -> str:
    """The error as a sentence on a page."""
    text = str(error)
    return f"{text[:1].upper()}{text[1:]}."


# Votes ------------------------------------------------------------------------------------------------------------


@router.post("/papers/{paper_id:path}/vote")
def cast_vote(request: Request, paper_id: str, account: SignedIn, form: Form) -> Response:
    """Votes for a paper."""
    return _vote(request, paper_id, account.id, wanted=True)


@router.post("/papers/{paper_id:path}/unvote")
def take_vote_back(request: Request, paper_id: str, account: SignedIn, form: Form) -> Response:
    """Takes the vote back."""
    return _vote(request, paper_id, account.id, wanted=False)


def _vote(request: Request, paper_id: str, account_id: int, *, wanted: bool) -> Response:
    limit(request, "votes", *VOTES, key=str(account_id))
    site = site_of(request)
    paper = found_paper(site, paper_id)
    count = (vote if wanted else unvote)(site.engine, account_id, paper.stored.number)
    if "application/json" in request.headers.get("accept", ""):
        return JSONResponse({"votes": count, "voted": wanted}, headers={"Cache-Control": "no-store"})
    return RedirectResponse(back(request, paper.href), 303)


# Comments ---------------------------------------------------------------------------------------------------------


@router.post("/papers/{paper_id:path}/comments")
def comment(request: Request, paper_id: str, account: SignedIn, form: Form) -> Response:
    """Writes a comment."""
    limit(request, "comments", *COMMENTS, key=str(account.id))
    site = site_of(request)
    paper = found_paper(site, paper_id)
    try:
        made = write_comment(site.engine, account.id, paper.stored.number, str(form.get("body", "")))
    except UserError as error:
        raise HTTPException(422, sentence(error)) from error
    return RedirectResponse(f"{paper.href}#comment-{made}", 303)


def _comment(request: Request, comment_id: int) -> tuple[Comment, PaperView]:
    site = site_of(request)
    found = get_comment(site.engine, comment_id)
    papers = papers_by_numbers(site.engine, [found.number]) if found else []
    if found is None or not papers:
        raise HTTPException(404, "There is no such comment.")
    return found, PaperView(papers[0], site.rooms.get(papers[0].room))


def _own(request: Request, comment_id: int, account_id: int) -> tuple[Comment, PaperView]:
    found, paper = _comment(request, comment_id)
    if found.account_id != account_id:
        raise HTTPException(403, "Comments are changed by those who wrote them.")
    return found, paper


@router.get("/comments/{comment_id:int}/edit")
def comment_page(request: Request, comment_id: int, account: SignedIn) -> Response:
    """One's own comment, to be changed."""
    found, paper = _own(request, comment_id, account.id)
    return html(request, _comment_page(request, comment_id, paper, found.body))


def _comment_page(request: Request, comment_id: int, paper: PaperView, body: str, problem: str = "") -> CommentPage:
    return CommentPage(
        **site_of(request).common(request),
        title="Change your comment",
        section="papers",
        comment_id=comment_id,
        body=body,
        problem=problem,
        paper=paper,
    )


@router.post("/comments/{comment_id:int}/edit")
def change_comment(request: Request, comment_id: int, account: SignedIn, form: Form) -> Response:
    """Changes one's own comment."""
    limit(request, "comments", *COMMENTS, key=str(account.id))
    _, paper = _own(request, comment_id, account.id)
    body = str(form.get("body", ""))
    try:
        edit_comment(site_of(request).engine, account.id, comment_id, body)
    except UserError as error:
        return html(request, _comment_page(request, comment_id, paper, body[:20_000], sentence(error)), 422)
    return RedirectResponse(f"{paper.href}#comment-{comment_id}", 303)


@router.post("/comments/{comment_id:int}/delete")
def remove_comment(request: Request, comment_id: int, account: SignedIn, form: Form) -> Response:
    """Deletes one's own comment."""
    _, paper = _own(request, comment_id, account.id)
    delete_comment(site_of(request).engine, account.id, comment_id)
    return RedirectResponse(f"{paper.href}#comments", 303)


@router.post("/comments/{comment_id:int}/hide")
def hide(request: Request, comment_id: int, account: Administrator, form: Form) -> Response:
    """Hides somebody's comment."""
    return _hide(request, comment_id, account.id, hidden=True)


@router.post("/comments/{comment_id:int}/show")
def show(request: Request, comment_id: int, account: Administrator, form: Form) -> Response:
    """Shows it again."""
    return _hide(request, comment_id, account.id, hidden=False)


def _hide(request: Request, comment_id: int, administrator_id: int, *, hidden: bool) -> Response:
    _, paper = _comment(request, comment_id)
    hide_comment(site_of(request).engine, administrator_id, comment_id, hide=hidden)
    return RedirectResponse(f"{paper.href}#comment-{comment_id}", 303)


# Submissions ------------------------------------------------------------------------------------------------------


@router.get("/submit")
def submit_page(request: Request, account: SignedIn) -> Response:
    """Asks for a paper."""
    return html(request, _submit(request))


def _submit(request: Request, problem: str = "", given: dict[str, str] | None = None) -> SubmitPage:
    return SubmitPage(
        **site_of(request).common(request, "/submit"),
        title="Submit a paper",
        section="submit",
        problem=problem,
        by_hand=bool(given) and "title" in (given or {}),
        given=dict.fromkeys(("arxiv", "title", "authors", "abstract", "address", "date"), "") | (given or {}),
    )


@router.post("/submit")
def submit(request: Request, account: SignedIn, form: Form) -> Response:
    """Brings a paper."""
    limit(request, "submissions", 30, 600, key=str(account.id))
    site = site_of(request)
    given = {name: str(value) for name, value in form.items() if name not in ("form_token", "kind")}
    try:
        if submissions_since(site.engine, account.id, now() - dt.timedelta(days=1)) >= SUBMISSIONS_A_DAY:
            raise UserError(f"an account may bring {SUBMISSIONS_A_DAY} papers a day; come back tomorrow")
        if form.get("kind") == "hand":
            result = submit_by_hand(
                site.engine,
                site.settings,
                account.id,
                title=given.get("title", ""),
                authors=given.get("authors", "").splitlines(),
                abstract=given.get("abstract", ""),
                address=given.get("address", ""),
                published=_day(given.get("date", "")),
            )
        else:
            result = submit_arxiv(site.engine, site.settings, account.id, given.get("arxiv", ""))
    except UserError as error:
        kept = {name: value[:20_000] for name, value in given.items()}
        return html(request, _submit(request, sentence(error), kept), 422)
    paper = PaperView(result.paper, None)
    return RedirectResponse(f"{paper.href}{'' if result.new else '?known=1'}", 303)


def _day(text: str) -> dt.date | None:
    if not text.strip():
        return None
    try:
        return dt.date.fromisoformat(text.strip())
    except ValueError as error:
        raise UserError(f"date is {text[:40]!r}; expected a day such as 2025-10-07") from error


# Saved searches ---------------------------------------------------------------------------------------------------


@router.post("/searches")
def keep_search(request: Request, account: SignedIn, form: Form) -> Response:
    """Saves a search."""
    given = {name: str(value) for name, value in form.items() if name != "name"}
    try:
        save_search(site_of(request).engine, account.id, given, str(form.get("name", "")))
    except UserError as error:
        raise HTTPException(422, sentence(error)) from error
    return RedirectResponse("/account?done=search", 303)


@router.post("/account/searches/{search_id:int}/name")
def rename_search(request: Request, search_id: int, account: SignedIn, form: Form) -> Response:
    """Gives one's own saved search another name."""
    try:
        done = rename_saved_search(site_of(request).engine, account.id, search_id, str(form.get("name", "")))
    except UserError as error:
        raise HTTPException(422, sentence(error)) from error
    if not done:
        raise HTTPException(404, "There is no such saved search of yours.")
    return RedirectResponse("/account?done=name", 303)


@router.post("/account/searches/{search_id:int}/delete")
def delete_search(request: Request, search_id: int, account: SignedIn, form: Form) -> Response:
    """Deletes one's own saved search."""
    if not delete_saved_search(site_of(request).engine, account.id, search_id):
        raise HTTPException(404, "There is no such saved search of yours.")
    return RedirectResponse("/account?done=search-gone", 303)


@router.get("/searches/{key}")
def saved_search(request: Request, key: str) -> Response:
    """Leads to the search itself, or with an ending to its feed."""
    stem, _, ending = key.rpartition(".")
    found = saved_search_by_key(site_of(request).engine, stem if ending in ("atom", "json", "bib") else key)
    if found is None:
        raise HTTPException(404, "There is no such saved search.")
    if ending in ("atom", "json", "bib") and stem == found.key:
        return RedirectResponse(found.href.replace("/search?", f"/search.{ending}?", 1), 307)
    return RedirectResponse(found.href, 307)
