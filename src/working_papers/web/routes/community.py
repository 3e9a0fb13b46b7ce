"""Votes, comments, submissions and saved searches."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import TYPE_CHECKING

from fastapi import APIRouter
from starlette.datastructures import FormData
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
    SavedSearch,
    delete_saved_search,
    rename_saved_search,
    save_search,
    saved_search_by_key,
)
from working_papers.daily.community.submissions import Submitted, submissions_since, submit_arxiv, submit_by_hand
from working_papers.daily.community.votes import unvote, vote
from working_papers.daily.records import SourceError
from working_papers.database import now
from working_papers.errors import UserError
from working_papers.web.bibtex import bibtex
from working_papers.web.community import comment_address
from working_papers.web.contexts import CommentPage, SubmitPage
from working_papers.web.feeds import atom
from working_papers.web.limits import limit
from working_papers.web.papers import PaperView
from working_papers.web.parameters import address
from working_papers.web.routes.papers import found_paper
from working_papers.web.routes.search import newest_found
from working_papers.web.site import cached, html, json, site_of
from working_papers.web.visitors import Administrator, Form, SignedIn, safe_next, visitor_of

if TYPE_CHECKING:
    from working_papers.daily.accounts.accounts import Account

router = APIRouter(include_in_schema=False)

COMMENTS = (10, 600)
"""Comments of one account in so many seconds."""

VOTES = (120, 60)
SUBMISSIONS = (30, 600)
SUBMISSIONS_A_DAY = 20
SEARCHES = (60, 600)

MOST_GIVEN_BACK = 20_000
"""Characters of a field that come back with an error."""

FIELDS = ("arxiv", "title", "authors", "abstract", "address", "date")
"""Of the page that brings papers; errors begin with one of these names."""

NO_COMMENT = "There is no such comment."


def sentence(error: UserError) -> str:
    """The error as a sentence on a page."""
    text = str(error)
    return f"{text[:1].upper()}{text[1:]}."


# Votes ------------------------------------------------------------------------------------------------------------


@router.post("/papers/{paper_id:path}/vote")
def cast_vote(request: Request, paper_id: str, account: SignedIn, form: Form) -> Response:
    """Votes for a paper."""
    return _vote(request, paper_id, account.id, form, wanted=True)


@router.post("/papers/{paper_id:path}/unvote")
def take_vote_back(request: Request, paper_id: str, account: SignedIn, form: Form) -> Response:
    """Takes the vote back."""
    return _vote(request, paper_id, account.id, form, wanted=False)


def _vote(request: Request, paper_id: str, account_id: int, form: FormData, *, wanted: bool) -> Response:
    limit(request, "votes", *VOTES, key=str(account_id))
    site = site_of(request)
    paper = found_paper(site, paper_id)
    count = (vote if wanted else unvote)(site.engine, account_id, paper.stored.number)
    if "application/json" in request.headers.get("accept", ""):
        return JSONResponse({"votes": count, "voted": wanted}, headers={"Cache-Control": "no-store"})
    return RedirectResponse(safe_next(str(form.get("next") or paper.href)), 303)


# Comments ---------------------------------------------------------------------------------------------------------


@router.post("/papers/{paper_id:path}/comments")
def comment(request: Request, paper_id: str, account: SignedIn, form: Form) -> Response:
    """Writes a comment."""
    site = site_of(request)
    paper = found_paper(site, paper_id)
    body = str(form.get("body", ""))
    try:
        limit(request, "comments", *COMMENTS, key=str(account.id))
        made = get_comment(site.engine, write_comment(site.engine, account.id, paper.stored.number, body))
    except (UserError, HTTPException) as error:
        return _give_back(request, paper, f"{paper.href}/comments", body, error)
    target = comment_address(site.engine, paper, made, account) if made else f"{paper.href}#comments"
    return RedirectResponse(target, 303)


def _give_back(
    request: Request, paper: PaperView, action: str, body: str, error: UserError | HTTPException
) -> Response:
    """What could not be taken, with the reason, to be mended or sent later."""
    problem = sentence(error) if isinstance(error, UserError) else error.detail
    status = 422 if isinstance(error, UserError) else error.status_code
    page = _comment_page(request, paper, action, body[:MOST_GIVEN_BACK], problem)
    return html(request, page, status, error.headers if isinstance(error, HTTPException) else None)


def _comment_page(request: Request, paper: PaperView, action: str, body: str, problem: str = "") -> CommentPage:
    own = action.startswith("/comments/")
    return CommentPage(
        **site_of(request).common(request, action if own else paper.href),
        title="Change your comment" if own else "Your comment",
        section="papers",
        action=action,
        button="Save" if own else "Comment",
        body=body,
        problem=problem,
        paper=paper,
    )


@router.get("/comments/{comment_id:int}")
def comment_place(request: Request, comment_id: int) -> Response:
    """Leads to a comment, wherever it stands by now."""
    found, paper = _comment(request, comment_id)
    reader = visitor_of(request).account
    if found.hidden and not (reader and (reader.administrator or reader.id == found.account_id)):
        raise HTTPException(404, NO_COMMENT)
    return RedirectResponse(comment_address(site_of(request).engine, paper, found, reader), 303)


def _comment(request: Request, comment_id: int) -> tuple[Comment, PaperView]:
    site = site_of(request)
    found = get_comment(site.engine, comment_id)
    papers = papers_by_numbers(site.engine, [found.number]) if found else []
    if found is None or not papers:
        raise HTTPException(404, NO_COMMENT)
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
    return html(request, _comment_page(request, paper, f"/comments/{comment_id}/edit", found.body))


@router.post("/comments/{comment_id:int}/edit")
def change_comment(request: Request, comment_id: int, account: SignedIn, form: Form) -> Response:
    """Changes one's own comment."""
    found, paper = _own(request, comment_id, account.id)
    body = str(form.get("body", ""))
    try:
        limit(request, "comments", *COMMENTS, key=str(account.id))
        edit_comment(site_of(request).engine, account.id, comment_id, body)
    except (UserError, HTTPException) as error:
        return _give_back(request, paper, f"/comments/{comment_id}/edit", body, error)
    return RedirectResponse(comment_address(site_of(request).engine, paper, found, account), 303)


@router.post("/comments/{comment_id:int}/delete")
def remove_comment(request: Request, comment_id: int, account: SignedIn, form: Form) -> Response:
    """Deletes one's own comment."""
    _, paper = _own(request, comment_id, account.id)
    delete_comment(site_of(request).engine, account.id, comment_id)
    return RedirectResponse(f"{paper.href}#comments", 303)


@router.post("/comments/{comment_id:int}/hide")
def hide(request: Request, comment_id: int, account: Administrator, form: Form) -> Response:
    """Hides somebody's comment."""
    return _hide(request, comment_id, account, hidden=True)


@router.post("/comments/{comment_id:int}/show")
def show(request: Request, comment_id: int, account: Administrator, form: Form) -> Response:
    """Shows it again."""
    return _hide(request, comment_id, account, hidden=False)


def _hide(request: Request, comment_id: int, account: Account, *, hidden: bool) -> Response:
    site = site_of(request)
    found, paper = _comment(request, comment_id)
    hide_comment(site.engine, account.id, comment_id, hide=hidden)
    return RedirectResponse(comment_address(site.engine, paper, found, account), 303)


# Submissions ------------------------------------------------------------------------------------------------------


@router.get("/submit")
def submit_page(request: Request, account: SignedIn) -> Response:
    """Asks for a paper."""
    return html(request, _submit(request))


def _submit(
    request: Request, problem: str = "", given: Mapping[str, str] | None = None, doubt: PaperView | None = None
) -> SubmitPage:
    kept = {name: (given or {}).get(name, "")[:MOST_GIVEN_BACK] for name in FIELDS}
    return SubmitPage(
        **site_of(request).common(request, "/submit"),
        title="Submit a paper",
        section="submit",
        problem=problem,
        field=next((name for name in FIELDS if problem.lower().startswith(name)), "arxiv" if kept["arxiv"] else ""),
        given=kept,
        doubt=doubt,
    )


@router.post("/submit")
def submit(request: Request, account: SignedIn, form: Form) -> Response:
    """Brings a paper."""
    limit(request, "submissions", *SUBMISSIONS, key=str(account.id))
    site = site_of(request)
    given = {name: str(value) for name, value in form.items()}
    try:
        if submissions_since(site.engine, account.id, now() - dt.timedelta(days=1)) >= SUBMISSIONS_A_DAY:
            raise UserError(f"an account may bring {SUBMISSIONS_A_DAY} papers a day; come back tomorrow")
        result = _bring(request, account, given)
    except UserError as error:
        return html(request, _submit(request, sentence(error), given), 502 if isinstance(error, SourceError) else 422)
    paper = PaperView(result.paper, site.rooms.get(result.paper.room))
    if not result.certain:
        return html(request, _submit(request, "", given, paper), 409)
    return RedirectResponse(address(paper.href, known="" if result.new else 1), 303)


def _bring(request: Request, account: Account, given: Mapping[str, str]) -> Submitted:
    site = site_of(request)
    if given.get("kind") != "hand":
        return submit_arxiv(site.engine, site.settings, account.id, given.get("arxiv", ""), index=site.index())
    return submit_by_hand(
        site.engine,
        site.settings,
        account.id,
        title=given.get("title", ""),
        authors=given.get("authors", "").splitlines(),
        abstract=given.get("abstract", ""),
        address=given.get("address", ""),
        published=_day(given.get("date", "")),
        another=given.get("another") == "1",
        index=site.index(),
    )


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
    limit(request, "searches", *SEARCHES, key=str(account.id))
    given = {name: str(value) for name, value in form.items() if name != "name"}
    try:
        save_search(site_of(request).engine, account.id, given, str(form.get("name", "")))
    except UserError as error:
        raise HTTPException(422, sentence(error)) from error
    return RedirectResponse("/account?done=search#searches-head", 303)


@router.post("/account/searches/{search_id:int}/name")
def rename_search(request: Request, search_id: int, account: SignedIn, form: Form) -> Response:
    """Gives one's own saved search another name."""
    try:
        done = rename_saved_search(site_of(request).engine, account.id, search_id, str(form.get("name", "")))
    except UserError as error:
        raise HTTPException(422, sentence(error)) from error
    if not done:
        raise HTTPException(404, "There is no such saved search of yours.")
    return RedirectResponse("/account?done=search-name#searches-head", 303)


@router.post("/account/searches/{search_id:int}/delete")
def delete_search(request: Request, search_id: int, account: SignedIn, form: Form) -> Response:
    """Deletes one's own saved search."""
    if not delete_saved_search(site_of(request).engine, account.id, search_id):
        raise HTTPException(404, "There is no such saved search of yours.")
    return RedirectResponse("/account?done=search-gone#searches-head", 303)


def _saved(request: Request, key: str) -> SavedSearch:
    found = saved_search_by_key(site_of(request).engine, key)
    if found is None:
        raise HTTPException(404, "There is no such saved search.")
    return found


@router.get("/searches/{key}.atom")
def saved_search_atom(request: Request, key: str) -> Response:
    """The newest papers that a saved search finds, as an Atom feed."""
    found = _saved(request, key)
    return atom(
        request,
        site_of(request),
        heading=found.name,
        here=f"/searches/{key}.atom",
        page=found.href,
        papers=newest_found(request, found.query),
    )


@router.get("/searches/{key}.json")
def saved_search_json(request: Request, key: str) -> Response:
    """The same papers as JSON."""
    found = _saved(request, key)
    papers = [paper.as_json() for paper in newest_found(request, found.query)]
    return json(request, {"name": found.name, "query": found.query, "papers": papers})


@router.get("/searches/{key}.bib")
def saved_search_bibtex(request: Request, key: str) -> Response:
    """The same papers as BibTeX."""
    papers = newest_found(request, _saved(request, key).query)
    return cached(request, bibtex(papers).encode(), "application/x-bibtex; charset=utf-8")


@router.get("/searches/{key}")
def saved_search(request: Request, key: str) -> Response:
    """Leads to the search itself."""
    return RedirectResponse(_saved(request, key).href, 307)
