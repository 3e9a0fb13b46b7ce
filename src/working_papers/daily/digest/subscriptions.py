"""Subscriptions: asked for, confirmed by the owner of the address, changed and ended by a link that only they have."""

from __future__ import annotations

import datetime as dt
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, Row, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from working_papers.daily.digest.models import SubscriptionRow
from working_papers.daily.mail.models import BOUNCED, SENT, MailRow
from working_papers.database import now, reading
from working_papers.errors import UsageError

DAILY, WEEKLY = "daily", "weekly"
FREQUENCIES = (DAILY, WEEKLY)
MOST_TOPICS = 20
MOST_SEARCHES = 20

BOUNCES = 3
"""So many e-mails in a row that an address refuses, and its subscription ends."""

_COLUMNS = SubscriptionRow.__table__.c


@dataclass(frozen=True)
class Wish:
    """What a subscriber wants.

    Attributes:
        frequency: 'daily' or 'weekly'.
        trending: the papers that readers here vote for and discuss.
        topics: new papers of these topics or categories.
        searches: new papers that these saved searches find, by id.
    """

    frequency: str = DAILY
    trending: bool = True
    topics: tuple[str, ...] = ()
    searches: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what cannot be sent."""
        if self.frequency not in FREQUENCIES:
            raise UsageError(f"frequency is {self.frequency!r}; expected daily or weekly")
        if not (self.trending or self.topics or self.searches):
            raise UsageError("choose something to be sent: what trends, a topic or a saved search")
        if len(self.topics) > MOST_TOPICS or len(self.searches) > MOST_SEARCHES:
            raise UsageError(f"at most {MOST_TOPICS} topics and {MOST_SEARCHES} saved searches can be sent")


@dataclass(frozen=True)
class Subscription:
    """One address's digest.

    Attributes:
        secret: stands in its links; whoever has it may change and end the subscription.
        confirmed: since when the owner of the address is known to want it.
        ended: since when nothing is sent any more, and `end_reason` why.
    """

    id: int
    email: str
    account_id: int | None
    wish: Wish
    secret: str
    created: dt.datetime
    confirmed: dt.datetime | None
    ended: dt.datetime | None
    end_reason: str | None

    @property
    def active(self) -> bool:
        """Whether e-mails go out."""
        return self.confirmed is not None and self.ended is None


def _subscription(row: Row[Any]) -> Subscription:
    return Subscription(
        id=row.id,
        email=row.email,
        account_id=row.account_id,
        wish=Wish(row.frequency, row.trending, tuple(row.topics), tuple(row.searches)),
        secret=row.secret,
        created=row.created,
        confirmed=row.confirmed,
        ended=row.ended,
        end_reason=row.end_reason,
    )


def _values(wish: Wish) -> dict[str, Any]:
    return {
        "frequency": wish.frequency,
        "trending": wish.trending,
        "topics": list(wish.topics),
        "searches": list(wish.searches),
    }


def subscribe(connection: Connection, email: str, wish: Wish, *, account_id: int | None = None) -> Subscription:
    """Ask for a digest.

    An account's own address needs no confirmation: signing in has shown whose it is. What an active subscription holds
    is changed by its account or its link only, never by somebody who merely types its address.

    Args:
        connection: a transaction of the caller, who also queues the e-mail that goes with it.
        email: the address, in normal form.
        wish: what is wanted.
        account_id: of the signed-in account, if the address is its own.

    Returns:
        The subscription as it now is; the caller asks its address for confirmation unless it is active.
    """
    moment = now()
    owned = account_id is not None
    row = _by_email(connection, email)
    if row is None:
        values = {"email": email, "account_id": account_id, "secret": secrets.token_urlsafe(24), "created": moment}
        try:
            with connection.begin_nested():
                connection.execute(
                    insert(SubscriptionRow).values(**values, **_values(wish), confirmed=moment if owned else None)
                )
        except IntegrityError:  # somebody else has just asked for the same address
            row = _by_email(connection, email)
        else:
            row = None
            found = _by_email(connection, email)
            assert found is not None
            return _subscription(found)
    assert row is not None
    if owned:
        # What has ended begins anew: what its address refused before does not count against it.
        since = row.confirmed if row.confirmed is not None and row.ended is None else moment
        changes = {**_values(wish), "account_id": account_id, "confirmed": since}
        changes |= {"ended": None, "end_reason": None}
    elif row.confirmed is None or row.ended is not None:
        # Ended ones begin anew, from the confirmation on.
        changes = {**_values(wish), "confirmed": None, "ended": None, "end_reason": None}
    else:
        return _subscription(row)
    connection.execute(update(SubscriptionRow).where(_COLUMNS.id == row.id).values(**changes))
    changed = _by_email(connection, email)
    assert changed is not None
    return _subscription(changed)


def _by_email(connection: Connection, email: str) -> Row[Any] | None:
    return connection.execute(select(*_COLUMNS).where(_COLUMNS.email == email)).one_or_none()


def subscription_by_secret(engine: Engine, secret: str) -> Subscription | None:
    """The subscription that a link is about."""
    with reading(engine) as connection:
        row = connection.execute(select(*_COLUMNS).where(_COLUMNS.secret == secret)).one_or_none()
    return None if row is None else _subscription(row)


def subscription_by_email(engine: Engine, email: str) -> Subscription | None:
    """The subscription of an address."""
    with reading(engine) as connection:
        row = _by_email(connection, email)
    return None if row is None else _subscription(row)


def confirm(engine: Engine, secret: str) -> bool:
    """The owner of the address wants it; False when there is no such subscription or it has ended."""
    with engine.begin() as connection:
        wanted = (_COLUMNS.secret == secret, _COLUMNS.ended.is_(None))
        if connection.execute(select(_COLUMNS.id).where(*wanted)).scalar() is None:
            return False
        connection.execute(update(SubscriptionRow).where(*wanted, _COLUMNS.confirmed.is_(None)).values(confirmed=now()))
    return True


def change(engine: Engine, secret: str, wish: Wish) -> bool:
    """Change what an active subscription holds; False when there is none."""
    with engine.begin() as connection:
        changed = connection.execute(
            update(SubscriptionRow)
            .where(_COLUMNS.secret == secret, _COLUMNS.ended.is_(None), _COLUMNS.confirmed.is_not(None))
            .values(**_values(wish))
        )
    return bool(changed.rowcount)


def unsubscribe(engine: Engine, secret: str) -> bool:
    """End a subscription, confirmed or not; True also when it has ended already; False when there is no such one."""
    with engine.begin() as connection:
        if connection.execute(select(_COLUMNS.id).where(_COLUMNS.secret == secret)).scalar() is None:
            return False
        connection.execute(
            update(SubscriptionRow)
            .where(_COLUMNS.secret == secret, _COLUMNS.ended.is_(None))
            .values(ended=now(), end_reason="unsubscribed")
        )
    return True


def active_subscriptions(engine: Engine, frequency: str, after: int, limit: int) -> list[Subscription]:
    """A part of the subscriptions that are sent, in the order of their numbers.

    Args:
        engine: the database.
        frequency: 'daily' or 'weekly'.
        after: only those with a greater number.
        limit: at most so many.
    """
    query = (
        select(*_COLUMNS)
        .where(_COLUMNS.frequency == frequency, _COLUMNS.confirmed.is_not(None), _COLUMNS.ended.is_(None))
        .where(_COLUMNS.id > after)
        .order_by(_COLUMNS.id)
        .limit(limit)
    )
    with reading(engine) as connection:
        return [_subscription(row) for row in connection.execute(query)]


def count_active(engine: Engine) -> dict[str, int]:
    """Active subscriptions by frequency."""
    query = (
        select(_COLUMNS.frequency, func.count())
        .where(_COLUMNS.confirmed.is_not(None), _COLUMNS.ended.is_(None))
        .group_by(_COLUMNS.frequency)
    )
    with reading(engine) as connection:
        found = {str(frequency): int(count) for frequency, count in connection.execute(query)}
    return {frequency: found.get(frequency, 0) for frequency in FREQUENCIES}


def end_bounced(engine: Engine) -> list[str]:
    """End the subscriptions whose address has refused the last few digests since it asked for them.

    Returns:
        The addresses.
    """
    ended = []
    bounced = select(MailRow.recipient).where(MailRow.status == BOUNCED, MailRow.key.startswith("digest:")).distinct()
    with engine.begin() as connection:
        candidates = connection.execute(
            select(_COLUMNS.id, _COLUMNS.email, _COLUMNS.confirmed).where(
                _COLUMNS.ended.is_(None), _COLUMNS.confirmed.is_not(None), _COLUMNS.email.in_(bounced)
            )
        ).all()
        for row in candidates:
            latest = (
                connection.execute(
                    select(MailRow.status)
                    .where(MailRow.recipient == row.email, MailRow.key.startswith("digest:"))
                    .where(MailRow.status.in_((BOUNCED, SENT)), MailRow.created >= row.confirmed)
                    .order_by(MailRow.id.desc())
                    .limit(BOUNCES)
                )
                .scalars()
                .all()
            )
            if _all_bounced(latest):
                connection.execute(
                    update(SubscriptionRow)
                    .where(_COLUMNS.id == row.id)
                    .values(ended=now(), end_reason=f"the address refused {BOUNCES} e-mails in a row")
                )
                ended.append(row.email)
    return ended


def _all_bounced(states: Sequence[str]) -> bool:
    return len(states) == BOUNCES and set(states) == {BOUNCED}


def topics_of(values: Iterable[str]) -> tuple[str, ...]:
    """Topics as a form sends them: without blanks and repetitions, each of a sensible length."""
    return tuple(dict.fromkeys(value.strip()[:60] for value in values if value.strip()))
