"""The digest's pages: subscribe, confirm, change, unsubscribe."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.background import BackgroundTask
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from working_papers.daily.accounts.accounts import normal_email
from working_papers.daily.community.saved_searches import list_saved_searches
from working_papers.daily.digest.messages import confirmation_message, reminder_message
from working_papers.daily.digest.subscriptions import (
    Subscription,
    Wish,
    change,
    confirm,
    subscribe,
    subscription_by_email,
    subscription_by_secret,
    topics_of,
    unsubscribe,
)
from working_papers.daily.mail.queue import enqueue
from working_papers.daily.mail.sending import send_due
from working_papers.database import now
from working_papers.errors import UserError
from working_papers.web.contexts import DigestActionPage, DigestPage
from working_papers.web.limits import limit
from working_papers.web.site import html, site_of
from working_papers.web.visitors import Form, own_address, visitor_of

router = APIRouter(include_in_schema=False)

GONE = "This link belongs to no subscription."
ENDED = "This subscription has ended; subscribe again to get the digest."


def _wish(form: FormData, allowed_searches: set[int]) -> Wish:
    """What the form asks for.

    Raises:
        UserError: nothing, or what cannot be sent.
    """
    searches = [int(str(value)) for value in form.getlist("search") if str(value).isdecimal() and len(str(value)) < 10]
    return Wish(
        frequency=str(form.get("frequency", "daily")),
        trending=bool(form.get("trending")),
        topics=topics_of(str(value) for value in form.getlist("topic")),
        searches=tuple(dict.fromkeys(number for number in searches if number in allowed_searches)),
    )


def _own_searches(request: Request, account_id: int | None) -> set[int]:
    if account_id is None:
        return set()
    return {search.id for search in list_saved_searches(site_of(request).engine, account_id)}


def _page(
    request: Request, wish: Wish, *, email: str = "", secret: str = "", account_id: int | None = None, problem: str = ""
) -> DigestPage:
    site = site_of(request)
    choice = site.topic_choice("")
    chosen = tuple(topic for topic in wish.topics if all(topic not in names for _, names in choice.groups))
    groups = (*choice.groups, *((("Chosen", chosen),) if chosen else ()))
    return DigestPage(
        **site.common(request, "/digest"),
        title="Digest by e-mail",
        section="digest",
        wish=wish,
        email=email,
        secret=secret,
        problem=problem,
        choice=tuple((label, names[:60]) for label, names in groups),
        searches=tuple(list_saved_searches(site.engine, account_id)) if account_id is not None else (),
    )


@router.get("/digest")
def digest_page(request: Request) -> Response:
    """Asks what is wanted; an account that subscribes already is led to its own page."""
    account = visitor_of(request).account
    if account is not None:
        known = subscription_by_email(site_of(request).engine, account.email)
        if known is not None and known.active:
            return RedirectResponse(f"/digest/{known.secret}", 303)
    page = _page(request, Wish(), account_id=account.id if account else None)
    return html(request, page)


@router.post("/digest")
def subscribe_form(request: Request, form: Form) -> Response:
    """Subscribes: an account's own address at once, any other after its owner has confirmed."""
    limit(request, "subscriptions", 10, 3600)
    site, account = site_of(request), visitor_of(request).account
    given = account.email if account else str(form.get("email", ""))
    wish = Wish()
    try:
        wish = _wish(form, _own_searches(request, account.id if account else None))
        email = normal_email(given)
        settings = site.settings.model_copy(update={"base_url": own_address(request)})
        hour = f"{now():%Y%m%d%H}"
        with site.engine.begin() as connection:
            made = subscribe(connection, email, wish, account_id=account.id if account else None)
            if not made.active:
                key = f"confirm:{made.id}:{hour}"
                enqueue(connection, key, confirmation_message(settings, made))
            elif account is None:
                key = f"reminder:{made.id}:{hour}"
                enqueue(connection, key, reminder_message(settings, made))
            else:
                key = ""
    except UserError as error:
        text = str(error)
        page = _page(
            request,
            wish,
            email=given[:254],
            account_id=account.id if account else None,
            problem=f"{text[:1].upper()}{text[1:]}.",
        )
        return html(request, page, 422)
    if account is not None:
        return RedirectResponse("/account?done=digest", 303)
    response = _said(
        request,
        "Look into your mailbox",
        f"An e-mail is on its way to {email}. Nothing else is sent.",
    )
    response.background = BackgroundTask(send_due, site.engine, site.settings, only_key=key)
    return response


def _said(
    request: Request, heading: str, sentence: str, *, action: str = "", label: str = "", status: int = 200
) -> Response:
    page = DigestActionPage(
        **site_of(request).common(request, "/digest"),
        title=heading,
        section="digest",
        heading=heading,
        sentence=sentence,
        action=action,
        label=label,
    )
    return html(request, page, status, headers={"Cache-Control": "no-store"})


def _known(request: Request, secret: str) -> Subscription:
    found = subscription_by_secret(site_of(request).engine, secret)
    if found is None:
        raise HTTPException(404, GONE)
    return found


@router.get("/digest/{secret}/confirm")
def confirm_page(request: Request, secret: str) -> Response:
    """A button; programs that look into links in e-mails confirm nothing."""
    found = _known(request, secret)
    sentence = f"The {found.wish.frequency} digest goes to {found.email}."
    return _said(request, "Confirm the digest", sentence, action=f"/digest/{secret}/confirm", label="Confirm")


@router.post("/digest/{secret}/confirm")
def confirm_form(request: Request, secret: str, form: Form) -> Response:
    """The owner of the address wants it."""
    found = _known(request, secret)
    if not confirm(site_of(request).engine, secret):
        return _said(request, "It has ended", ENDED, status=410)
    return _said(request, "You are subscribed", f"The next {found.wish.frequency} digest goes to {found.email}.")


@router.get("/digest/{secret}")
def manage_page(request: Request, secret: str) -> Response:
    """What a subscription holds."""
    found = _known(request, secret)
    if not found.active:
        action = "" if found.ended else f"/digest/{secret}/confirm"
        why = f"It has ended: {found.end_reason}." if found.ended else "It is not confirmed yet."
        return _said(request, "No digest is sent", why, action=action, label="Confirm")
    page = _page(request, found.wish, email=found.email, secret=secret, account_id=found.account_id)
    return html(request, page, headers={"Cache-Control": "no-store"})


@router.post("/digest/{secret}")
def manage_form(request: Request, secret: str, form: Form) -> Response:
    """Changes what a subscription holds; whoever has the link may."""
    found = _known(request, secret)
    try:
        wish = _wish(form, _own_searches(request, found.account_id))
    except UserError as error:
        text = str(error)
        page = _page(
            request,
            found.wish,
            email=found.email,
            secret=secret,
            account_id=found.account_id,
            problem=f"{text[:1].upper()}{text[1:]}.",
        )
        return html(request, page, 422)
    if not change(site_of(request).engine, secret, wish):
        return _said(request, "It has ended", ENDED, status=410)
    return _said(request, "It is changed", f"The next {wish.frequency} digest holds what you chose.")


@router.get("/digest/{secret}/unsubscribe")
def unsubscribe_page(request: Request, secret: str) -> Response:
    """A button; programs that look into links in e-mails unsubscribe nobody."""
    found = _known(request, secret)
    sentence = f"No digest is sent to {found.email} any more."
    return _said(request, "Unsubscribe", sentence, action=f"/digest/{secret}/unsubscribe", label="Unsubscribe")


@router.post("/digest/{secret}/unsubscribe")
def unsubscribe_form(request: Request, secret: str) -> Response:
    """Ends a subscription: by the button, or by a mail program (RFC 8058), which has no cookie and no form token.

    The secret is what counts: nobody else can know it.
    """
    if not unsubscribe(site_of(request).engine, secret):
        raise HTTPException(404, GONE)
    return _said(request, "You are unsubscribed", "No digest is sent to this address any more.")
