"""Signing in and out, one's own account, and the outbox."""

from __future__ import annotations

import email
import email.policy
import stat
from contextlib import suppress
from email.message import EmailMessage
from typing import TYPE_CHECKING
from urllib.parse import quote

from fastapi import APIRouter
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from working_papers.daily.accounts.accounts import normal_email, rename
from working_papers.daily.accounts.sessions import list_sessions, open_session, revoke_all_sessions, revoke_session
from working_papers.daily.accounts.sign_in import LinkRefused, TooManyLinks, check_link, queue_link, redeem
from working_papers.daily.accounts.tokens import list_tokens, make_token, revoke_token
from working_papers.daily.community.saved_searches import list_saved_searches
from working_papers.daily.digest.subscriptions import subscription_by_email
from working_papers.daily.mail.queue import count_mails, list_mails
from working_papers.daily.mail.sending import send_due
from working_papers.errors import UserError
from working_papers.web.contexts import (
    AccountPage,
    ErrorPage,
    MailPage,
    MailView,
    OutboxPage,
    SignInLinkPage,
    SignInPage,
)
from working_papers.web.limits import limit
from working_papers.web.parameters import Parameters, address
from working_papers.web.site import html, site_of
from working_papers.web.visitors import (
    Administrator,
    Form,
    SignedIn,
    begin_session,
    end_session,
    own_address,
    safe_next,
    visitor_of,
)

if TYPE_CHECKING:
    from pathlib import Path

router = APIRouter(include_in_schema=False)

SHOWN_MAILS = 200
LARGEST_MAIL = 2 * 2**20
MAIL_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox; frame-ancestors 'none'"
"""For an e-mail's own HTML: its styles stand in it, nothing is fetched, and scripts never run."""


# Signing in -------------------------------------------------------------------------------------------------------


@router.get("/sign-in")
def sign_in_page(request: Request) -> Response:
    """Asks for the address that gets the link."""
    target = safe_next(request.query_params.get("next", "/"))
    if visitor_of(request).account is not None:
        return RedirectResponse(target, 303)
    return html(request, _sign_in(request, target))


def _sign_in(request: Request, target: str, *, sent_to: str = "", problem: str = "", given: str = "") -> SignInPage:
    site = site_of(request)
    return SignInPage(
        **site.common(request, "/sign-in"),
        title="Sign in",
        section="account",
        next=target,
        sent_to=sent_to,
        problem=problem,
        given=given,
        outbox=str(site.settings.outbox_folder) if not site.settings.smtp_host else "",
    )


@router.post("/sign-in")
def ask_for_link(request: Request, form: Form) -> Response:
    """Sends the link; the answer is the same whether or not there is such an account."""
    limit(request, "sign-in", 10, 900)
    site = site_of(request)
    given, target = str(form.get("email", "")), safe_next(str(form.get("next", "/")))
    try:
        address_ = normal_email(given)
        link = f"{own_address(request)}/sign-in/{{token}}?next={quote(target, safe='')}"
        key = queue_link(site.engine, site.settings, address_, link)
    except TooManyLinks as error:
        raise HTTPException(429, f"{str(error)[:1].upper()}{str(error)[1:]}.", {"Retry-After": "900"}) from error
    except UserError as error:
        return html(request, _sign_in(request, target, problem=_sentence(error), given=given[:254]), 422)
    response = html(request, _sign_in(request, target, sent_to=address_))
    response.background = BackgroundTask(send_due, site.engine, site.settings, only_key=key)
    return response


def _sentence(error: UserError) -> str:
    text = str(error)
    return f"{text[:1].upper()}{text[1:]}."


@router.get("/sign-in/{token}")
def link_page(request: Request, token: str) -> Response:
    """A button; programs that look into links in e-mails do not use the link up."""
    site = site_of(request)
    target = safe_next(request.query_params.get("next", "/"))
    try:
        shown = check_link(site.engine, token)
    except LinkRefused as error:
        return _refused(request, error)
    page = SignInLinkPage(
        **site.common(request, "/sign-in"), title="Sign in", section="account", token=token, next=target, email=shown
    )
    return html(request, page, headers={"Cache-Control": "no-store"})


@router.post("/sign-in/{token}")
def use_link(request: Request, token: str, form: Form) -> Response:
    """Uses the link and signs the browser in."""
    limit(request, "link", 30, 900)
    site = site_of(request)
    try:
        account = redeem(site.engine, token)
    except LinkRefused as error:
        return _refused(request, error)
    response = RedirectResponse(safe_next(str(form.get("next", "/"))), 303)
    begin_session(request, response, open_session(site.engine, account, request.headers.get("user-agent", "")))
    return response


def _refused(request: Request, error: LinkRefused) -> Response:
    page = ErrorPage(
        **site_of(request).common(request, "/sign-in"),
        title="This link does not work",
        status=410,
        heading="This link does not work",
        sentences=(_sentence(error),),
        more=("/sign-in", "Ask for a new link"),
    )
    return html(request, page, 410)


@router.post("/sign-out")
def sign_out(request: Request, account: SignedIn, form: Form) -> Response:
    """Signs this browser out."""
    visitor = visitor_of(request)
    if visitor.session_id is not None:
        revoke_session(site_of(request).engine, account.id, visitor.session_id)
    response = RedirectResponse("/", 303)
    end_session(request, response)
    return response


# One's own account ------------------------------------------------------------------------------------------------


@router.get("/account")
def account_page(request: Request, account: SignedIn) -> Response:
    """Name, browsers, tokens, saved searches, digest."""
    return html(request, _account(request, account))


def _account(request: Request, account: SignedIn, *, new_token: str = "", problem: str = "") -> AccountPage:
    site = site_of(request)
    asked = Parameters(request.query_params)
    done = {
        "name": "Your name is changed.",
        "session": "That browser is signed out.",
        "token": "The token is revoked.",
        "search": "The search is saved.",
        "search-name": "The search is renamed.",
        "search-gone": "The search is deleted.",
        "digest": "Your digest is changed.",
    }.get(asked.text("done"), "")
    return AccountPage(
        **site.common(request, "/account"),
        title="Your account",
        section="account",
        notices=(done,) if done else (),
        this_session=visitor_of(request).session_id,
        sessions=tuple(list_sessions(site.engine, account.id)),
        tokens=tuple(list_tokens(site.engine, account.id)),
        new_token=new_token,
        problem=problem,
        searches=tuple(list_saved_searches(site.engine, account.id)),
        subscription=subscription_by_email(site.engine, account.email),
    )


@router.post("/account/name")
def change_name(request: Request, account: SignedIn, form: Form) -> Response:
    """Changes the name that others see."""
    try:
        rename(site_of(request).engine, account.id, str(form.get("name", "")))
    except UserError as error:
        return html(request, _account(request, account, problem=_sentence(error)), 422)
    return RedirectResponse("/account?done=name", 303)


@router.post("/account/sessions/{session_id:int}/revoke")
def end_one_session(request: Request, session_id: int, account: SignedIn, form: Form) -> Response:
    """Signs one of the account's browsers out."""
    if not revoke_session(site_of(request).engine, account.id, session_id):
        raise HTTPException(404, "There is no such browser of yours.")
    return RedirectResponse("/account?done=session", 303)


@router.post("/account/sessions/revoke")
def end_all_sessions(request: Request, account: SignedIn, form: Form) -> Response:
    """Signs all of them out, this one included."""
    revoke_all_sessions(site_of(request).engine, account.id)
    response = RedirectResponse("/", 303)
    end_session(request, response)
    return response


@router.post("/account/tokens")
def new_token(request: Request, account: SignedIn, form: Form) -> Response:
    """Makes a token, and shows it this once."""
    limit(request, "tokens", 20, 3600, key=str(account.id))
    try:
        secret = make_token(site_of(request).engine, account.id, str(form.get("name", "")))
    except UserError as error:
        return html(request, _account(request, account, problem=_sentence(error)), 422)
    return html(request, _account(request, account, new_token=secret), 201)


@router.post("/account/tokens/{token_id:int}/revoke")
def end_token(request: Request, token_id: int, account: SignedIn, form: Form) -> Response:
    """Ends one of the account's tokens."""
    if not revoke_token(site_of(request).engine, account.id, token_id):
        raise HTTPException(404, "There is no such token of yours.")
    return RedirectResponse("/account?done=token", 303)


# The outbox -------------------------------------------------------------------------------------------------------


@router.get("/outbox")
def outbox(request: Request, account: Administrator) -> Response:
    """For administrators: e-mails and what became of them; where no server is set, the files."""
    site = site_of(request)
    files = _files(site.settings.outbox_folder)
    page = OutboxPage(
        **site.common(request, "/outbox"),
        title="E-mails",
        section="account",
        server=site.settings.smtp_host,
        folder=str(site.settings.outbox_folder),
        files=tuple(view for file in files[:SHOWN_MAILS] if (view := _view(file)) is not None),
        mails=tuple(list_mails(site.engine, limit=SHOWN_MAILS)),
        counts=count_mails(site.engine),
    )
    return html(request, page)


def _files(folder: Path) -> list[Path]:
    """The e-mails that lie there, newest first."""
    if not folder.is_dir():
        return []
    found = []
    for file in folder.glob("*.eml"):
        with suppress(FileNotFoundError):  # it was taken away meanwhile
            status = file.lstat()
            if stat.S_ISREG(status.st_mode):
                found.append((status.st_mtime, file))
    return [file for _, file in sorted(found, reverse=True)]


def _view(file: Path) -> MailView | None:
    message = _message(file)
    if message is None:
        return None
    return MailView(file.name, str(message["To"] or ""), str(message["Subject"] or ""), str(message["Date"] or ""))


def _message(file: Path) -> EmailMessage | None:
    try:
        if file.stat().st_size > LARGEST_MAIL:
            return None
        parsed = email.message_from_bytes(file.read_bytes(), policy=email.policy.default)
    except OSError:  # it was taken away meanwhile
        return None
    return parsed if isinstance(parsed, EmailMessage) else None


def _named(request: Request, name: str) -> EmailMessage:
    """The e-mail of a file of the outbox folder, and of no other file."""
    found = {file.name: file for file in _files(site_of(request).settings.outbox_folder)}
    message = _message(found[name]) if name in found else None
    if message is None:
        raise HTTPException(404, "There is no such e-mail in the outbox.")
    return message


def _part(message: EmailMessage, kind: str) -> str:
    body = message.get_body(preferencelist=(kind,))
    content = body.get_content() if body is not None else ""
    return content if isinstance(content, str) else ""


@router.get("/outbox/{name}.html")
def outbox_html(request: Request, name: str, account: Administrator) -> Response:
    """An e-mail's HTML, on its own and powerless."""
    body = _part(_named(request, f"{name}.eml"), "html")
    headers = {"Content-Security-Policy": MAIL_POLICY, "Cache-Control": "no-store"}
    return Response(body.encode("utf-8", "replace"), media_type="text/html; charset=utf-8", headers=headers)


@router.get("/outbox/{name}")
def outbox_mail(request: Request, name: str, account: Administrator) -> Response:
    """An e-mail's headers and plain text."""
    message = _named(request, name)
    page = MailPage(
        **site_of(request).common(request, address("/outbox")),
        title=str(message["Subject"] or "An e-mail"),
        section="account",
        name=name,
        headers=tuple((key, str(value)) for key, value in message.items()),
        text=_part(message, "plain"),
        has_html=bool(_part(message, "html")),
    )
    return html(request, page)
