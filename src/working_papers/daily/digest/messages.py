"""The digest as an e-mail: HTML with its plain-text twin, and the headers by which mail programs unsubscribe."""

from __future__ import annotations

import datetime as dt
from email.message import EmailMessage
from typing import TYPE_CHECKING

from working_papers.daily.mail.messages import make_message
from working_papers.daily.mail.rendering import long_date, render_mail

if TYPE_CHECKING:
    from collections.abc import Sequence

    from working_papers.config import Settings
    from working_papers.daily.digest.contents import Section
    from working_papers.daily.digest.issues import Issue
    from working_papers.daily.digest.subscriptions import Subscription


def days_in_words(first: dt.date, last: dt.date) -> str:
    """'7 October 2025' or '6 – 12 October 2025'."""
    if first == last:
        return long_date(first)
    if (first.year, first.month) == (last.year, last.month):
        return f"{first.day} – {long_date(last)}"
    return f"{long_date(first)} – {long_date(last)}"


def base_address(settings: Settings) -> str:
    """The site's public address, for links."""
    return (settings.base_url or f"http://{settings.host}:{settings.port}").rstrip("/")


def digest_message(
    settings: Settings, issue: Issue, subscription: Subscription, sections: Sequence[Section]
) -> EmailMessage:
    """One subscriber's e-mail of an issue.

    Args:
        settings: name the site, its address and the sender.
        issue: which one.
        subscription: whose.
        sections: what stands in it.
    """
    base = base_address(settings)
    leave = f"{base}/digest/{subscription.secret}/unsubscribe"
    when = days_in_words(issue.first_day, issue.last_day)
    count = sum(len(section.entries) for section in sections)
    words: dict[str, object] = {
        "site": settings.site_name,
        "base": base,
        "when": when,
        "sections": sections,
        "count": count,
        "manage": f"{base}/digest/{subscription.secret}",
        "leave": leave,
        "email": subscription.email,
        "frequency": issue.frequency,
    }
    first = sections[0].entries[0].paper.title if sections else ""
    more = f" and {count - 1} more" if count > 1 else ""
    text, html = render_mail("digest", **words)
    return make_message(
        settings,
        subscription.email,
        f"{settings.site_name}, {when}: {_cut(first)}{more}",
        text,
        html,
        headers={
            "List-Unsubscribe": f"<{leave}>",
            "List-Unsubscribe-Post": "List-Unsubscribe=One-Click",  # RFC 8058
            "List-Id": f"{settings.site_name} digest <digest.{_host(base)}>",
            "Precedence": "bulk",
            "Auto-Submitted": "auto-generated",
        },
    )


def confirmation_message(settings: Settings, subscription: Subscription) -> EmailMessage:
    """Asks the owner of an address whether they want the digest; without an answer nothing is ever sent."""
    base = base_address(settings)
    text, html = render_mail(
        "confirm",
        site=settings.site_name,
        frequency=subscription.wish.frequency,
        confirm=f"{base}/digest/{subscription.secret}/confirm",
        email=subscription.email,
    )
    return make_message(
        settings,
        subscription.email,
        f"{settings.site_name}: confirm your {subscription.wish.frequency} digest",
        text,
        html,
        headers={"Auto-Submitted": "auto-generated"},
    )


def reminder_message(settings: Settings, subscription: Subscription) -> EmailMessage:
    """For somebody who subscribes once more: where the subscription can be changed."""
    base = base_address(settings)
    text, html = render_mail(
        "reminder",
        site=settings.site_name,
        frequency=subscription.wish.frequency,
        manage=f"{base}/digest/{subscription.secret}",
        email=subscription.email,
    )
    return make_message(
        settings,
        subscription.email,
        f"{settings.site_name}: you get the {subscription.wish.frequency} digest already",
        text,
        html,
        headers={"Auto-Submitted": "auto-generated"},
    )


def _cut(title: str, characters: int = 80) -> str:
    title = " ".join(title.split())
    return title if len(title) <= characters else title[:characters].rsplit(" ", 1)[0] + " …"


def _host(base: str) -> str:
    from urllib.parse import urlsplit

    return urlsplit(base).hostname or "localhost"
