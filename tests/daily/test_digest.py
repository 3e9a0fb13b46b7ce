"""The digest: asked for, confirmed, changed, ended; each issue queued once for each subscriber and sent once."""

from __future__ import annotations

import datetime as dt
import email
import email.policy
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import Engine, func, select, update

from tests.mail_server import Start
from working_papers.config import Settings
from working_papers.daily.accounts.accounts import close, make_account
from working_papers.daily.catalogue import get_paper, sync_rooms
from working_papers.daily.community.saved_searches import save_search
from working_papers.daily.community.votes import vote
from working_papers.daily.digest.contents import Contents
from working_papers.daily.digest.issues import days_of, open_issue, queue_issue
from working_papers.daily.digest.models import DigestIssueRow
from working_papers.daily.digest.subscriptions import (
    BOUNCES,
    Subscription,
    Wish,
    change,
    confirm,
    count_active,
    end_bounced,
    subscribe,
    subscription_by_email,
    subscription_by_secret,
    unsubscribe,
)
from working_papers.daily.importing import import_papers
from working_papers.daily.mail.models import BOUNCED, SENT, MailRow
from working_papers.daily.mail.queue import enqueue, list_mails
from working_papers.daily.mail.sending import send_due
from working_papers.daily.records import PaperRecord
from working_papers.daily.search import SearchIndex
from working_papers.errors import UsageError

ADA, BOB = "ada@example.org", "bob@example.org"
TODAY = dt.date(2026, 3, 11)  # a Wednesday
YESTERDAY = TODAY - dt.timedelta(days=1)


@pytest.fixture
def papers(settings: Settings, engine: Engine) -> Engine:
    """The rooms, and papers of the days before today."""
    sync_rooms(engine)
    records = [
        PaperRecord(
            title=f"Paper {number} on <b>trees</b> & $x<y$",
            arxiv=f"2603.{number:05}",
            abstract="About trees and forests. " * 40,
            authors=("Ada Lovelace", "Emmy Noether", "Grace Hopper", "Sofia Kovalevskaya"),
            published=TODAY - dt.timedelta(days=number),
            categories=("cs.LG",) if number < 3 else ("math.CO",),
        )
        for number in range(1, 9)
    ]
    import_papers(engine, "jsonl", "papers", records)
    with closing(SearchIndex.open(settings)) as index:
        index.catch_up(engine)
    return engine


def add(engine: Engine, address: str, wish: Wish | None = None, *, confirmed: bool = True) -> Subscription:
    with engine.begin() as connection:
        made = subscribe(connection, address, wish or Wish())
    if confirmed:
        confirm(engine, made.secret)
    found = subscription_by_email(engine, address)
    assert found is not None
    return found


def liked(engine: Engine) -> None:
    """A paper trends, so that every issue has something to say."""
    paper = get_paper(engine, "2510.05491")
    assert paper is not None
    vote(engine, make_account(engine, "voter@example.org").id, paper.number)


def outbox(settings: Settings) -> dict[str, list[email.message.EmailMessage]]:
    found: dict[str, list[email.message.EmailMessage]] = {}
    for file in sorted(settings.outbox_folder.glob("*.eml")):
        message = email.message_from_bytes(file.read_bytes(), policy=email.policy.default)
        assert isinstance(message, email.message.EmailMessage)
        found.setdefault(str(message["To"]), []).append(message)
    return found


def part(message: email.message.EmailMessage, kind: str) -> str:
    body = message.get_body((kind,))
    assert body is not None
    content = body.get_content()
    assert isinstance(content, str)
    return content


# Subscriptions


def test_nothing_is_sent_before_the_owner_confirms(papers: Engine, settings: Settings) -> None:
    pending = add(papers, ADA, confirmed=False)
    assert not pending.active and count_active(papers) == {"daily": 0, "weekly": 0}
    queue_issue(papers, settings, "daily", today=TODAY)
    assert list_mails(papers) == []
    assert confirm(papers, pending.secret) and confirm(papers, pending.secret), "the button may be pressed twice"
    assert not confirm(papers, "made up")
    assert count_active(papers) == {"daily": 1, "weekly": 0}


def test_somebody_elses_subscription_is_not_changed_by_typing_the_address(engine: Engine) -> None:
    active = add(engine, ADA, Wish("weekly", topics=("cs.LG",)))
    with engine.begin() as connection:
        again = subscribe(connection, ADA, Wish("daily"))
    assert again == active
    pending = add(engine, BOB, confirmed=False)
    with engine.begin() as connection:
        changed = subscribe(connection, BOB, Wish("weekly"))
    assert changed.secret == pending.secret and changed.wish.frequency == "weekly" and not changed.active


def test_an_accounts_own_address_is_active_at_once_and_changes_at_once(engine: Engine) -> None:
    account = make_account(engine, ADA)
    with engine.begin() as connection:
        made = subscribe(connection, ADA, Wish(), account_id=account.id)
    assert made.active and made.account_id == account.id
    with engine.begin() as connection:
        changed = subscribe(connection, ADA, Wish("weekly", trending=False, topics=("cs.LG",)), account_id=account.id)
    assert changed.wish.topics == ("cs.LG",) and changed.secret == made.secret


def test_who_has_left_comes_back_only_by_confirming(engine: Engine) -> None:
    active = add(engine, ADA)
    assert unsubscribe(engine, active.secret) and unsubscribe(engine, active.secret)
    assert not unsubscribe(engine, "made up")
    ended = subscription_by_secret(engine, active.secret)
    assert ended is not None and not ended.active and ended.end_reason == "unsubscribed"
    assert not confirm(engine, active.secret) and not change(engine, active.secret, Wish("weekly"))
    again = add(engine, ADA, confirmed=False)
    assert not again.active and confirm(engine, again.secret)


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"frequency": "hourly"}, "frequency is 'hourly'; expected daily or weekly"),
        ({"trending": False}, "choose something to be sent"),
        ({"topics": tuple(map(str, range(21)))}, "at most 20 topics"),
    ],
)
def test_wishes_that_cannot_be_sent_are_refused(wish: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Wish(**wish)  # type: ignore[arg-type]


# Issues


def test_issues_are_about_whole_days_and_weeks() -> None:
    assert days_of("daily", TODAY) == (YESTERDAY, YESTERDAY)
    assert days_of("weekly", TODAY) == (dt.date(2026, 3, 2), dt.date(2026, 3, 8))
    assert days_of("weekly", dt.date(2026, 3, 9)) == (dt.date(2026, 3, 2), dt.date(2026, 3, 8))
    with pytest.raises(UsageError, match="expected daily or weekly"):
        days_of("hourly", TODAY)


def test_a_digest_holds_what_was_asked_for(papers: Engine, settings: Settings) -> None:
    account = make_account(papers, ADA)
    muon = get_paper(papers, "2510.05491")
    assert muon is not None
    vote(papers, account.id, muon.number)
    search = save_search(papers, account.id, {"q": "trees"}, "My <trees>")
    with papers.begin() as connection:
        subscribe(
            connection,
            ADA,
            Wish("weekly", True, ("no such topic",), (search.id, 999)),
            account_id=account.id,
        )
    add(papers, BOB, Wish("daily", trending=False, topics=("cs.LG",)))
    add(papers, "nobody@example.org", Wish("daily", trending=False, topics=("no such topic",)))
    site = settings.model_copy(update={"base_url": "https://papers.example"})
    weekly = queue_issue(papers, site, "weekly", today=TODAY)
    daily = queue_issue(papers, site, "daily", today=TODAY)
    assert (weekly.queued, weekly.empty) == (1, 0) and (daily.queued, daily.empty) == (1, 1)
    assert send_due(papers, site).sent == 2
    sent = outbox(site)
    assert set(sent) == {ADA, BOB}
    (ours,), (theirs,) = sent[ADA], sent[BOB]

    text, html = part(ours, "plain"), part(ours, "html")
    assert ours["Subject"].startswith("Working Papers, 2 – 8 March 2026: NorMuon")
    assert "TRENDING" in text and "FOUND BY “MY <TREES>”" in text and "NO SUCH TOPIC" not in text
    assert "NEW ON CS.LG" in part(theirs, "plain")
    assert "[✓ HOLDS]" in text and "✓ Holds</span>" in html, "the verdict is there for every mail program"
    assert "https://papers.example/papers/2510.05491 (1 vote, 0 comments)" in text
    assert "Paper 4 on &lt;b&gt;trees&lt;/b&gt; &amp; $x&lt;y$" in html and "<b>trees" not in html
    assert text.count("Paper 4 on") == 1, "no paper stands in two sections"
    assert "<img" not in html and "<script" not in html and "src=" not in html, "nothing is fetched"

    subscription = subscription_by_email(papers, ADA)
    assert subscription is not None
    leave = f"https://papers.example/digest/{subscription.secret}/unsubscribe"
    assert ours["List-Unsubscribe"].strip() == f"<{leave}>"
    assert ours["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    assert leave in text and leave in html
    assert theirs["Subject"] == "Working Papers, 10 March 2026: Paper 1 on <b>trees</b> & $x<y$"
    assert "Paper 2" not in part(theirs, "plain"), "only the day of the issue"


def test_an_issue_is_queued_once_however_often_it_is_asked_for(papers: Engine, settings: Settings) -> None:
    for number in range(120):
        add(papers, f"reader{number}@example.org")

    with ThreadPoolExecutor(5) as pool:
        made = list(pool.map(lambda _: queue_issue(papers, settings, "daily", today=TODAY), range(5)))
    assert sum(each.queued for each in made) == 120
    assert queue_issue(papers, settings, "daily", today=TODAY).before
    with papers.connect() as connection:
        assert connection.execute(select(func.count()).select_from(MailRow)).scalar_one() == 120
        assert connection.execute(select(func.count()).select_from(DigestIssueRow)).scalar_one() == 1
    assert send_due(papers, settings).sent == 120
    assert {len(each) for each in outbox(settings).values()} == {1}


def test_an_issue_that_was_broken_off_goes_on(
    papers: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from working_papers.daily.digest import issues

    monkeypatch.setattr(issues, "AT_ONCE", 10)
    for number in range(30):
        add(papers, f"reader{number}@example.org")
    original, calls = enqueue, []

    def break_off(*words: object) -> bool:
        calls.append(1)
        if len(calls) == 15:
            raise RuntimeError("killed")
        return original(*words)  # type: ignore[arg-type]

    monkeypatch.setattr(issues, "enqueue", break_off)
    with pytest.raises(RuntimeError):
        queue_issue(papers, settings, "daily", today=TODAY)
    assert len(list_mails(papers)) == 10, "whole transactions"
    assert open_issue(papers, "daily", TODAY).completed is None
    made = queue_issue(papers, settings, "daily", today=TODAY)
    assert made.queued == 20 and len(list_mails(papers, limit=100)) == 30


def test_addresses_that_refuse_several_digests_are_left_alone(
    papers: Engine, settings: Settings, mail_server: Start
) -> None:
    handler, server = mail_server()
    handler.answers[ADA] = "550 no such mailbox"
    add(papers, ADA)
    add(papers, BOB)
    liked(papers)
    for days in range(BOUNCES + 1):
        queue_issue(papers, server, "daily", today=TODAY + dt.timedelta(days=days))
        send_due(papers, server)
    states = [mail.status for mail in list_mails(papers) if mail.recipient == ADA]
    assert states == [BOUNCED] * BOUNCES, "after that nothing is sent"
    ended = subscription_by_email(papers, ADA)
    assert ended is not None and ended.end_reason == "the address refused 3 e-mails in a row"
    assert len(handler.taken) == BOUNCES + 1 and {recipient for recipient, _ in handler.taken} == {BOB}


@pytest.mark.parametrize("account", [False, True])
def test_an_address_that_was_mended_may_subscribe_again(papers: Engine, settings: Settings, account: bool) -> None:
    add(papers, ADA)
    liked(papers)
    for days in range(BOUNCES):
        queue_issue(papers, settings, "daily", today=TODAY + dt.timedelta(days=days))
        with papers.begin() as connection:
            connection.execute(update(MailRow).where(MailRow.status == "queued").values(status=BOUNCED))
    assert end_bounced(papers) == [ADA]
    owner = make_account(papers, ADA).id if account else None
    with papers.begin() as connection:
        made = subscribe(connection, ADA, Wish(), account_id=owner)
    assert end_bounced(papers) == [], "what was refused before does not count, confirmed yet or not"
    assert account or confirm(papers, made.secret)
    assert queue_issue(papers, settings, "daily", today=TODAY + dt.timedelta(days=BOUNCES)).queued == 1
    again = subscription_by_email(papers, ADA)
    assert again is not None and again.active


def test_a_closed_accounts_digest_ends(papers: Engine, settings: Settings) -> None:
    account = make_account(papers, ADA)
    with papers.begin() as connection:
        subscribe(connection, ADA, Wish(), account_id=account.id)
    add(papers, BOB)
    liked(papers)
    close(papers, account.id)
    assert queue_issue(papers, settings, "daily", today=TODAY).queued == 1
    ended = subscription_by_email(papers, ADA)
    assert ended is not None and ended.end_reason == "the account was closed"


def test_one_success_in_between_forgives(papers: Engine, settings: Settings) -> None:
    add(papers, ADA)
    liked(papers)
    for days, state in enumerate((BOUNCED, BOUNCED, SENT, BOUNCED)):
        queue_issue(papers, settings, "daily", today=TODAY + dt.timedelta(days=days))
        with papers.begin() as connection:
            connection.execute(update(MailRow).where(MailRow.status == "queued").values(status=state))
    assert end_bounced(papers) == []


def test_a_digest_without_a_search_index_goes_out_all_the_same(papers: Engine, settings: Settings) -> None:
    account = make_account(papers, ADA)
    search = save_search(papers, account.id, {"q": "trees"})
    settings.index_folder.rename(settings.home / "gone")
    settings.index_folder.write_text("damaged")
    with closing(Contents(papers, settings, YESTERDAY, YESTERDAY)) as contents:
        sections = contents.sections(Wish("daily", True, ("cs.LG",), (search.id,)), account.id)
    assert [section.heading for section in sections] == ["New papers"], "nobody votes yet, and no paper stands twice"


def test_somebody_elses_saved_search_is_not_shown(papers: Engine, settings: Settings) -> None:
    ada, bob = make_account(papers, ADA), make_account(papers, BOB)
    search = save_search(papers, ada.id, {"q": "trees"})
    with closing(Contents(papers, settings, YESTERDAY, YESTERDAY)) as contents:
        assert contents.search(search.id, bob.id) is None
        assert contents.search(search.id, ada.id) is not None, "whoever's digest is made first"
        assert contents.search(search.id, bob.id) is None


# Killed at any moment


@pytest.mark.slow
def test_a_sender_that_is_killed_again_and_again_sends_each_digest_once(papers: Engine, settings: Settings) -> None:
    """`digest send` is started, twice at a time, and killed at random moments, until it has come through."""
    readers = [f"reader{number}@example.org" for number in range(40)]
    for reader in readers:
        add(papers, reader)
    command = [
        sys.executable,
        "-m",
        "working_papers.cli",
        "digest",
        "send",
        "--frequency",
        "daily",
        "--day",
        str(TODAY),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    moments = random.Random(0)
    for _ in range(4):
        started = [subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) for _ in range(2)]
        time.sleep(moments.uniform(0.5, 1.6))
        for process in started:
            process.send_signal(signal.SIGKILL)
            process.wait()
    with papers.begin() as connection:  # as if the time had passed after which a dead sender's claim is taken over
        connection.execute(
            update(MailRow).where(MailRow.status == "sending").values(claimed=dt.datetime(2026, 1, 1, tzinfo=dt.UTC))
        )
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "sent" in done.stdout
    sent = outbox(settings)
    assert sorted(sent) == sorted(readers) and {len(each) for each in sent.values()} == {1}
    assert {mail.status for mail in list_mails(papers, limit=100)} == {SENT}


def test_the_commands_say_what_they_did(
    papers: Engine, settings: Settings, capsys: pytest.CaptureFixture[str], home: Path
) -> None:
    from working_papers.cli import digest as commands

    add(papers, ADA, Wish("weekly"))
    commands.send(day=str(TODAY))
    said = capsys.readouterr().out
    assert "daily issue of 2026-03-10 to 2026-03-10: 0 queued, 0 with nothing to say" in said
    assert "weekly issue of 2026-03-02 to 2026-03-08: 1 queued" in said and ": 1 sent" in said
    commands.send(frequency="weekly", day=str(TODAY))
    assert "sent before" in capsys.readouterr().out
    commands.status()
    assert "0 daily subscribers, 1 weekly subscribers" in capsys.readouterr().out
    for wrong in ({"frequency": "hourly"}, {"day": "soon"}):
        with pytest.raises(UsageError, match="expected"):
            commands.send(**wrong)
