"""Every route that changes something has a rule here: who may, and that nobody else can. One without a rule fails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from fastapi.routing import APIRoute
from sqlalchemy import Engine, MetaData, select
from starlette.testclient import TestClient

from tests.web.visitors import ORIGIN, Reader
from working_papers.bench.jobs import enqueue_job
from working_papers.daily.accounts.sessions import list_sessions, open_session
from working_papers.daily.accounts.sign_in import request_link
from working_papers.daily.accounts.tokens import list_tokens, make_token
from working_papers.daily.catalogue import get_paper
from working_papers.daily.community.comments import write_comment
from working_papers.daily.community.saved_searches import save_search
from working_papers.daily.digest.subscriptions import Wish, subscribe

PAPER = "2510.05491"
ANYBODY, ACCOUNT, OWNER, ADMINISTRATOR, LINK, TOKEN, ADMINISTRATORS_TOKEN = (
    "anybody",
    "account",
    "owner",
    "administrator",
    "link",
    "token",
    "administrator's token",
)
"""Who may: anybody with a form of this site; an account; the account whose object it is; an administrator; whoever has
an unguessable link; a program with a token; a program with an administrator's token."""


@dataclass(frozen=True)
class Things:
    """Objects of one account, to be changed by it and by nobody else."""

    comment: int
    search: int
    session: int
    token: int
    job: int
    link: str
    subscription: str


@dataclass(frozen=True)
class Rule:
    """Who may call a route, and a call that would succeed for them."""

    who: str
    path: Callable[[Things], str]
    fields: dict[str, str]


def fixed(path: str) -> Callable[[Things], str]:
    return lambda _: path


RULES: dict[tuple[str, str], Rule] = {
    ("POST", "/sign-in"): Rule(ANYBODY, fixed("/sign-in"), {"email": "new@example.org"}),
    ("POST", "/sign-in/{token}"): Rule(ANYBODY, lambda t: f"/sign-in/{t.link}", {}),
    ("POST", "/sign-out"): Rule(ACCOUNT, fixed("/sign-out"), {}),
    ("POST", "/account/name"): Rule(ACCOUNT, fixed("/account/name"), {"name": "Another"}),
    ("POST", "/account/sessions/{session_id:int}/revoke"): Rule(
        OWNER, lambda t: f"/account/sessions/{t.session}/revoke", {}
    ),
    ("POST", "/account/sessions/revoke"): Rule(ACCOUNT, fixed("/account/sessions/revoke"), {}),
    ("POST", "/account/tokens"): Rule(ACCOUNT, fixed("/account/tokens"), {"name": "x"}),
    ("POST", "/account/tokens/{token_id:int}/revoke"): Rule(OWNER, lambda t: f"/account/tokens/{t.token}/revoke", {}),
    ("POST", "/account/searches/{search_id:int}/name"): Rule(
        OWNER, lambda t: f"/account/searches/{t.search}/name", {"name": "Another"}
    ),
    ("POST", "/account/searches/{search_id:int}/delete"): Rule(
        OWNER, lambda t: f"/account/searches/{t.search}/delete", {}
    ),
    ("POST", "/searches"): Rule(ACCOUNT, fixed("/searches"), {"q": "trees"}),
    ("POST", "/submit"): Rule(
        ACCOUNT, fixed("/submit"), {"kind": "hand", "title": "On the growth of oaks", "authors": "A. Nonymous"}
    ),
    ("POST", "/papers/{paper_id:path}/vote"): Rule(ACCOUNT, fixed(f"/papers/{PAPER}/vote"), {}),
    ("POST", "/papers/{paper_id:path}/unvote"): Rule(ACCOUNT, fixed(f"/papers/{PAPER}/unvote"), {}),
    ("POST", "/papers/{paper_id:path}/comments"): Rule(ACCOUNT, fixed(f"/papers/{PAPER}/comments"), {"body": "Hello"}),
    ("POST", "/comments/{comment_id:int}/edit"): Rule(OWNER, lambda t: f"/comments/{t.comment}/edit", {"body": "New"}),
    ("POST", "/comments/{comment_id:int}/delete"): Rule(OWNER, lambda t: f"/comments/{t.comment}/delete", {}),
    ("POST", "/comments/{comment_id:int}/hide"): Rule(ADMINISTRATOR, lambda t: f"/comments/{t.comment}/hide", {}),
    ("POST", "/comments/{comment_id:int}/show"): Rule(ADMINISTRATOR, lambda t: f"/comments/{t.comment}/show", {}),
    ("POST", "/digest"): Rule(ANYBODY, fixed("/digest"), {"email": "new@example.org", "trending": "1"}),
    ("POST", "/digest/{secret}"): Rule(
        LINK, lambda t: f"/digest/{t.subscription}", {"frequency": "weekly", "trending": "1"}
    ),
    ("POST", "/digest/{secret}/confirm"): Rule(LINK, lambda t: f"/digest/{t.subscription}/confirm", {}),
    ("POST", "/digest/{secret}/unsubscribe"): Rule(LINK, lambda t: f"/digest/{t.subscription}/unsubscribe", {}),
    ("POST", "/runs"): Rule(ADMINISTRATOR, fixed("/runs"), {"slug": "normuon", "scale": "smoke"}),
    ("POST", "/runs/{job_id:int}/cancel"): Rule(ADMINISTRATOR, lambda t: f"/runs/{t.job}/cancel", {}),
    ("PUT", "/api/v1/papers/{paper_id:path}/vote"): Rule(TOKEN, fixed(f"/api/v1/papers/{PAPER}/vote"), {}),
    ("DELETE", "/api/v1/papers/{paper_id:path}/vote"): Rule(TOKEN, fixed(f"/api/v1/papers/{PAPER}/vote"), {}),
    ("POST", "/api/v1/runs"): Rule(ADMINISTRATORS_TOKEN, fixed("/api/v1/runs"), {"slug": "normuon", "scale": "smoke"}),
    ("DELETE", "/api/v1/jobs/{job_id}"): Rule(ADMINISTRATORS_TOKEN, lambda t: f"/api/v1/jobs/{t.job}", {}),
    ("POST", "/api/v1/shared-runs"): Rule(TOKEN, fixed("/api/v1/shared-runs"), {}),
}

SECRET_ONLY = {("POST", "/digest/{secret}/unsubscribe")}
"""Mail programs call it without cookies and forms (RFC 8058); the secret in the address is what counts."""


def changing_routes(app: Any) -> set[tuple[str, str]]:
    """Every method and path of the application that may change something."""
    found: set[tuple[str, str]] = set()

    def walk(routes: Any, prefix: str) -> None:
        for route in routes:
            inner = getattr(route, "routes", None)
            path = prefix + getattr(route, "path", "")
            if inner:
                walk(inner, path)
            elif isinstance(route, APIRoute):
                found.update((method, path) for method in set(route.methods or ()) - {"GET", "HEAD", "OPTIONS"})
            else:
                original = getattr(route, "original_router", None)
                assert original is not None, f"{route} is neither a route nor a group of routes"
                walk(original.routes, prefix)

    walk(app.router.routes, "")
    return found


def test_every_changing_route_has_a_rule(client: TestClient) -> None:
    assert changing_routes(client.app) == set(RULES), "a route without a rule, or a rule without its route"


@pytest.fixture
def owner(client: TestClient, engine: Engine) -> Reader:
    return Reader(client, engine, "owner@example.org")


@pytest.fixture
def things(owner: Reader, engine: Engine) -> Things:
    assert owner.account is not None
    paper = get_paper(engine, PAPER)
    assert paper is not None
    open_session(engine, owner.account, "another browser")
    make_token(engine, owner.id, "x")
    with engine.begin() as connection:
        subscription = subscribe(connection, "owner@example.org", Wish(), account_id=owner.id)
    return Things(
        comment=write_comment(engine, owner.id, paper.number, "First"),
        search=save_search(engine, owner.id, {"q": "attention"}).id,
        session=list_sessions(engine, owner.id)[0].id,
        token=list_tokens(engine, owner.id)[0].id,
        job=enqueue_job(engine, "normuon", "laptop"),
        link=request_link(engine, "owner@example.org"),
        subscription=subscription.secret,
    )


def snapshot(engine: Engine) -> dict[str, list[Any]]:
    """Everything that accounts can change; when sessions were last seen does not count."""
    tables = MetaData()
    tables.reflect(engine)
    left_out = {"site_secrets", "alembic_version"}
    with engine.connect() as connection:
        return {
            name: sorted(repr(tuple(row)) for row in connection.execute(select(table)))
            for name, table in tables.tables.items()
            if name not in left_out
        }


FORMS = {key: rule for key, rule in RULES.items() if rule.who not in (TOKEN, ADMINISTRATORS_TOKEN)}
FOR_PROGRAMS = {key: rule for key, rule in RULES.items() if key not in FORMS}
IDS = [f"{method} {path}" for method, path in FORMS]
PROGRAM_IDS = [f"{method} {path}" for method, path in FOR_PROGRAMS]


@pytest.mark.parametrize("key", FORMS, ids=IDS)
def test_who_may_does_and_the_rule_is_right(
    key: tuple[str, str], client: TestClient, engine: Engine, owner: Reader, things: Things
) -> None:
    rule = FORMS[key]
    reader = {
        ANYBODY: lambda: Reader(client, engine),
        LINK: lambda: Reader(client, engine),
        ADMINISTRATOR: lambda: Reader(client, engine, "root@example.org", administrator=True),
    }.get(rule.who, lambda: owner)()
    answer = reader.post(rule.path(things), rule.fields)
    assert answer.status_code in (200, 201, 303), answer.text[:300]
    assert not answer.headers.get("location", "").startswith("/sign-in"), "this would have to be let in"


@pytest.mark.parametrize("key", FORMS, ids=IDS)
def test_without_sign_in_nothing_changes(
    key: tuple[str, str], client: TestClient, engine: Engine, things: Things
) -> None:
    rule = FORMS[key]
    if rule.who in (ANYBODY, LINK):
        return
    stranger = Reader(client, engine)
    before = snapshot(engine)
    answer = stranger.post(rule.path(things), rule.fields)
    assert answer.status_code == 303 and answer.headers["location"].startswith("/sign-in")
    answer = stranger.browser.post(rule.path(things), data=rule.fields, headers={"Accept": "application/json"})
    assert answer.status_code == 401
    forged = TestClient(client.app, cookies={"session": "made up"}, follow_redirects=False)
    assert forged.post(rule.path(things), data=rule.fields).status_code == 303
    assert snapshot(engine) == before


@pytest.mark.parametrize("key", FORMS, ids=IDS)
def test_forged_forms_change_nothing(
    key: tuple[str, str], client: TestClient, engine: Engine, owner: Reader, things: Things
) -> None:
    rule = FORMS[key]
    if key in SECRET_ONLY:
        return
    allowed = owner
    if rule.who == ADMINISTRATOR:
        allowed = Reader(client, engine, "root@example.org", administrator=True)
    elif rule.who in (ANYBODY, LINK):
        allowed = Reader(client, engine)
    other = Reader(client, engine, "other@example.org")
    good, others = allowed.token(), other.token()
    before = snapshot(engine)
    path = rule.path(things)

    def send(token: str | None, headers: dict[str, str]) -> int:
        fields = {"x": "1", **rule.fields} | ({} if token is None else {"form_token": token})
        status: int = allowed.browser.post(path, data=fields, headers=headers).status_code
        return status

    assert send(None, ORIGIN) == 403, "no token"
    assert send("", ORIGIN) == 403 and send("0" * 64, ORIGIN) == 403, "a made-up one"
    assert send(others, ORIGIN) == 403, "another reader's"
    assert send(good, {"Origin": "https://evil.example"}) == 403, "sent from another site"
    assert send(good, {"Sec-Fetch-Site": "cross-site"}) == 403
    body = {**rule.fields, "form_token": good}
    assert allowed.browser.post(path, json=body, headers=ORIGIN).status_code == 415, "not a form"
    assert snapshot(engine) == before


OWNED = {key: rule for key, rule in FORMS.items() if rule.who in (OWNER, ADMINISTRATOR)}


@pytest.mark.parametrize("key", OWNED, ids=[f"{method} {path}" for method, path in OWNED])
def test_another_account_changes_nothing(
    key: tuple[str, str], client: TestClient, engine: Engine, things: Things
) -> None:
    rule = OWNED[key]
    other = Reader(client, engine, "other@example.org")
    other.token()
    before = snapshot(engine)
    answer = other.post(rule.path(things), rule.fields)
    assert answer.status_code in (403, 404)
    assert snapshot(engine) == before


LINKED = [key for key, rule in FORMS.items() if rule.who == LINK]


@pytest.mark.parametrize("key", LINKED, ids=[path for _, path in LINKED])
def test_a_made_up_link_changes_nothing(
    key: tuple[str, str], client: TestClient, engine: Engine, things: Things
) -> None:
    rule = FORMS[key]
    stranger = Reader(client, engine)
    before = snapshot(engine)
    path = rule.path(things).replace(things.subscription, "x" * len(things.subscription))
    assert stranger.post(path, rule.fields).status_code == 404
    assert snapshot(engine) == before


@pytest.mark.parametrize("key", FOR_PROGRAMS, ids=PROGRAM_IDS)
def test_programs_need_a_token_of_ours(
    key: tuple[str, str], client: TestClient, engine: Engine, owner: Reader, things: Things
) -> None:
    method, rule = key[0], FOR_PROGRAMS[key]
    before_token = owner.api_token()
    before = snapshot(engine)
    path = rule.path(things)
    options: dict[str, Any] = {"json": rule.fields} if method == "POST" else {}
    for headers in (
        {},
        {"Authorization": "Bearer hf_somebody_elses"},
        {"Authorization": "Bearer wp_made_up"},
        {"Authorization": "Basic " + before_token},
    ):
        answer = client.request(method, path, headers=headers, **options)
        assert answer.status_code == 401 and answer.json()["error"] and answer.headers["www-authenticate"] == "Bearer"
    browser = owner.browser.request(method, path, headers=ORIGIN, **options)
    assert browser.status_code == 401, "a browser's session does not count, so forged requests have nothing to ride on"
    if rule.who == ADMINISTRATORS_TOKEN:
        answer = client.request(method, path, headers={"Authorization": f"Bearer {before_token}"}, **options)
        assert answer.status_code == 403
        before = snapshot(engine)  # the token's last use
    assert snapshot(engine) == before
    who = Reader(client, engine, "root@example.org", administrator=True) if rule.who == ADMINISTRATORS_TOKEN else owner
    answer = client.request(method, path, headers={"Authorization": f"Bearer {who.api_token()}"}, **options)
    assert answer.status_code in (200, 202) or (key[1].endswith("shared-runs") and answer.status_code == 422)


def test_an_administrator_who_is_one_no_more_may_no_more(client: TestClient, engine: Engine, things: Things) -> None:
    from sqlalchemy import update

    from working_papers.daily.accounts.models import AccountRow

    root = Reader(client, engine, "root@example.org", administrator=True)
    token = root.api_token()
    with engine.begin() as connection:
        connection.execute(update(AccountRow).where(AccountRow.id == root.id).values(administrator=False))
    assert root.post("/runs", {"slug": "normuon", "scale": "smoke"}).status_code == 403
    answer = client.post("/api/v1/runs", json={"slug": "normuon"}, headers={"Authorization": f"Bearer {token}"})
    assert answer.status_code == 403


def test_large_bodies_are_refused_before_they_are_read(client: TestClient, owner: Reader) -> None:
    token = owner.token()
    assert (
        owner.browser.post("/submit", data={"form_token": token, "abstract": "x" * 170_000}, headers=ORIGIN).status_code
        == 413
    )
    for path in ("/submit", "/sign-in", "/api/v1/runs"):
        assert client.post(path, content=b"x" * 2_000_000).status_code == 413

    def unannounced() -> Any:
        for _ in range(70):
            yield b"x" * 100_000

    headers = {**ORIGIN, "Content-Type": "application/x-www-form-urlencoded"}
    assert owner.browser.post("/submit", content=unannounced(), headers=headers).status_code == 413
    api = {"Authorization": f"Bearer {owner.api_token()}"}
    assert client.post("/api/v1/shared-runs", content=unannounced(), headers=api).status_code == 413
