"""Accounts: links that let in once, sessions and tokens that can be revoked, secrets that are never stored."""

from __future__ import annotations

import datetime as dt
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine, select, text, update

from working_papers.config import Settings
from working_papers.daily.accounts.accounts import (
    account_by_email,
    account_by_id,
    accounts_by_ids,
    close,
    list_accounts,
    make_account,
    normal_email,
    rename,
    reopen,
)
from working_papers.daily.accounts.models import SessionRow, SignInLinkRow
from working_papers.daily.accounts.secrets import site_secret
from working_papers.daily.accounts.sessions import (
    account_of_session,
    list_sessions,
    open_session,
    revoke_all_sessions,
    revoke_session,
)
from working_papers.daily.accounts.sign_in import (
    MOST_LINKS,
    LinkRefused,
    TooManyLinks,
    check_link,
    queue_link,
    redeem,
    request_link,
)
from working_papers.daily.accounts.tokens import account_of_token, list_tokens, make_token, revoke_token
from working_papers.database import now
from working_papers.errors import UserError

ADA = "ada@example.org"


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (" Ada@Example.ORG ", "ada@example.org"),
        ("ada+papers@bücher.example", "ada+papers@xn--bcher-kva.example"),
        ("ada@mail.test", "ada@mail.test"),
    ],
)
def test_addresses_have_one_form(given: str, kept: str) -> None:
    assert normal_email(given) == kept


@pytest.mark.parametrize(
    "given",
    [
        "",
        "ada",
        "ada@",
        "@example.org",
        "a b@example.org",
        "ada@example.org\nBcc: x@y.z",
        "a" * 250 + "@b.org",
        "ä@b.org",
    ],
)
def test_what_is_no_address_is_refused(given: str) -> None:
    with pytest.raises(UserError, match="is not an e-mail address"):
        normal_email(given)


def test_an_account_is_made_once(engine: Engine) -> None:
    first = make_account(engine, ADA)
    assert (first.name, first.administrator) == ("ada", False)
    assert make_account(engine, "ADA@example.org") == first
    promoted = make_account(engine, ADA, "Ada Lovelace", administrator=True)
    assert promoted.id == first.id and promoted.administrator and promoted.name == "Ada Lovelace"
    assert make_account(engine, ADA).administrator, "signing in again takes nothing away"
    assert account_by_email(engine, ADA) == account_by_id(engine, first.id) == promoted
    assert list_accounts(engine, administrators=True) == [promoted]
    assert accounts_by_ids(engine, []) == {} and account_by_id(engine, 999) is None


def test_many_first_sign_ins_at_once_make_one_account(engine: Engine) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: make_account(engine, ADA).id, range(16)))
    assert len(set(made)) == 1


def test_names_are_checked(engine: Engine) -> None:
    account = make_account(engine, ADA)
    rename(engine, account.id, "  Ada \n Lovelace\x00 ")
    found = account_by_id(engine, account.id)
    assert found is not None and found.name == "Ada Lovelace"
    for bad in ("", " \n ", "x" * 61):
        with pytest.raises(UserError, match="a name has 1 to 60 characters"):
            rename(engine, account.id, bad)


# Links


def test_a_link_lets_in_once(engine: Engine) -> None:
    token = request_link(engine, ADA)
    assert check_link(engine, token) == ADA and check_link(engine, token) == ADA, "looking at it does not use it up"
    assert redeem(engine, token).email == ADA
    with pytest.raises(LinkRefused, match="has been used already"):
        redeem(engine, token)
    with pytest.raises(LinkRefused, match="has been used already"):
        check_link(engine, token)


def test_of_many_who_use_a_link_at_once_one_is_let_in(engine: Engine) -> None:
    token = request_link(engine, ADA)

    def attempt(_: int) -> bool:
        try:
            redeem(engine, token)
        except LinkRefused:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(16))) == 1


def test_a_link_expires(engine: Engine) -> None:
    token = request_link(engine, ADA)
    with engine.begin() as connection:
        connection.execute(update(SignInLinkRow).values(expires=now() - dt.timedelta(seconds=1)))
    with pytest.raises(LinkRefused, match="has expired"):
        redeem(engine, token)


def test_forged_links_are_refused(engine: Engine) -> None:
    token = request_link(engine, ADA)
    body, _, signature = token.rpartition(".")
    other = request_link(engine, "eve@example.org")
    for forged in (
        "",
        "x",
        token[:-2],
        f"{body}.{signature[::-1]}",
        f"{other.rpartition('.')[0]}.{signature}",
        "é" * 50,
    ):
        with pytest.raises(LinkRefused, match="is not one of this site's"):
            redeem(engine, forged)


def test_a_closed_account_is_not_let_in(engine: Engine) -> None:
    account = make_account(engine, ADA)
    session, token = open_session(engine, account, "browser"), make_token(engine, account.id, "x")
    close(engine, account.id)
    assert account_of_session(engine, session) is None and account_of_token(engine, token) is None
    with pytest.raises(LinkRefused, match="account is closed"):
        redeem(engine, request_link(engine, ADA))
    reopen(engine, account.id)
    assert redeem(engine, request_link(engine, ADA)).id == account.id
    assert account_of_session(engine, session) is None, "what was ended stays ended"


def test_an_address_gets_few_links(engine: Engine) -> None:
    for _ in range(MOST_LINKS):
        request_link(engine, ADA)
    with pytest.raises(TooManyLinks):
        request_link(engine, ADA)
    request_link(engine, "bob@example.org")


def test_secrets_are_not_stored(engine: Engine, settings: Settings) -> None:
    account = make_account(engine, ADA)
    session, token = open_session(engine, account, "browser"), make_token(engine, account.id, "x")
    link = request_link(engine, ADA)
    with engine.connect() as connection:
        for table in ("sessions", "api_tokens", "sign_in_links"):
            rows = str(connection.execute(text(f"SELECT * FROM {table}")).all())
            assert session not in rows and token not in rows and link not in rows
    queue_link(engine, settings, ADA, "https://papers.example/sign-in/{token}")


def test_the_site_has_one_secret_whoever_asks_first(engine: Engine) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: site_secret(engine, "a"), range(16)))
    assert len(found) == 1 and len(found.pop()) == 32
    assert site_secret(engine, "b") != site_secret(engine, "a")


# Sessions and tokens


def test_sessions_are_listed_and_revoked_by_their_owner(engine: Engine) -> None:
    ada, bob = make_account(engine, ADA), make_account(engine, "bob@example.org")
    first, second = open_session(engine, ada, "Firefox\n"), open_session(engine, ada, "Chrome" * 100)
    found = account_of_session(engine, first)
    assert found is not None and found[0] == ada and found[1].browser == "Firefox"
    assert account_of_session(engine, "made up") is None
    sessions = list_sessions(engine, ada.id)
    assert len(sessions) == 2 and all(len(each.browser) <= 200 for each in sessions)
    assert not revoke_session(engine, bob.id, found[1].id), "only one's own"
    assert account_of_session(engine, first) is not None
    assert revoke_session(engine, ada.id, found[1].id) and account_of_session(engine, first) is None
    assert account_of_session(engine, second) is not None
    assert revoke_all_sessions(engine, ada.id) == 1 and account_of_session(engine, second) is None


def test_a_session_ends_when_nobody_comes_back_and_goes_on_when_somebody_does(engine: Engine) -> None:
    ada = make_account(engine, ADA)
    secret = open_session(engine, ada, "browser")
    with engine.begin() as connection:
        connection.execute(update(SessionRow).values(seen=now() - dt.timedelta(hours=2)))
    before = now()
    assert account_of_session(engine, secret) is not None
    with engine.connect() as connection:
        assert connection.execute(select(SessionRow.seen)).scalar_one() >= before - dt.timedelta(seconds=1)
    with engine.begin() as connection:
        connection.execute(update(SessionRow).values(expires=now() - dt.timedelta(seconds=1)))
    assert account_of_session(engine, secret) is None


def test_tokens_are_shown_once_and_revoked_by_their_owner(engine: Engine) -> None:
    ada, bob = make_account(engine, ADA), make_account(engine, "bob@example.org")
    secret = make_token(engine, ada.id, " notebook \n")
    assert secret.startswith("wp_") and account_of_token(engine, secret) == ada
    (token,) = list_tokens(engine, ada.id)
    assert (token.name, token.ending) == ("notebook", secret[-4:]) and token.used is not None
    assert account_of_token(engine, "hf_somebody_elses") is None and account_of_token(engine, "wp_made_up") is None
    assert not revoke_token(engine, bob.id, token.id) and account_of_token(engine, secret) == ada
    assert revoke_token(engine, ada.id, token.id) and account_of_token(engine, secret) is None
    for bad in ("", " ", "x" * 81):
        with pytest.raises(UserError, match="a token's name has"):
            make_token(engine, ada.id, bad)
