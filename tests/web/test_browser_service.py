"""The service in a real browser, as a reader uses it: in by the link in the e-mail, the digest, a run that ends."""

from __future__ import annotations

import email
import email.policy
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from tests.web import test_browser
from tests.web.running import running_site
from tests.web.test_browser_community import signed_in, tab_to
from working_papers.config import Settings
from working_papers.daily.accounts.accounts import account_by_email, make_account
from working_papers.daily.catalogue import sync_rooms
from working_papers.daily.digest.subscriptions import subscription_by_email

pytestmark = [test_browser.pytestmark, pytest.mark.slow]
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
browser = test_browser.browser
DESK, PHONE = test_browser.DESK, test_browser.PHONE


@pytest.fixture
def address(engine: Engine, home: Path) -> Iterator[str]:
    """The whole service, its worker included."""
    sync_rooms(engine)
    with running_site(home, worker="true", worker_processes="2") as running:
        yield running


def link_for(settings: Settings, address: str, path: str) -> str:
    """The link of that kind in the newest e-mail of the outbox, once it is there."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        for file in sorted(settings.outbox_folder.glob("*.eml"), key=lambda file: -file.stat().st_mtime):
            message = email.message_from_bytes(file.read_bytes(), policy=email.policy.default)
            assert isinstance(message, email.message.EmailMessage)
            body = message.get_body(("plain",))
            found = re.search(rf"{re.escape(address)}{path}\S*", body.get_content() if body else "")
            if found:
                return found[0]
        time.sleep(0.1)
    raise AssertionError(f"no e-mail with a link to {path}")


def test_in_by_the_link_in_the_e_mail_and_out_again_by_keyboard(
    address: str, browser: Any, settings: Settings, engine: Engine
) -> None:
    page = browser.new_context(viewport=DESK).new_page()
    page.goto(f"{address}/feed")
    page.click("text=Sign in")
    tab_to(page, "#email")
    page.keyboard.type("ada@example.org")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=Look into your mailbox")
    page.goto(link_for(settings, address, "/sign-in/"))
    tab_to(page, "main button.firm")
    page.keyboard.press("Enter")
    page.wait_for_url(f"{address}/feed")
    assert page.locator(".who").inner_text() == "ada" and account_by_email(engine, "ada@example.org") is not None
    page.click(".who a")
    tab_to(page, "#name")
    page.keyboard.press("Control+a")
    page.keyboard.type("Ada Lovelace")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=Your name is changed.")
    tab_to(page, "#token-name")
    page.keyboard.type("notebook")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=This is the only time that the token is shown")
    assert page.locator(".notice code").inner_text().startswith("wp_")
    tab_to(page, "form[action='/sign-out'] button")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=Papers that run")
    assert page.locator(".who").inner_text() == "Sign in"


def test_subscribed_confirmed_changed_and_ended_without_scripts(
    address: str, browser: Any, settings: Settings, engine: Engine
) -> None:
    page = browser.new_context(viewport=PHONE, java_script_enabled=False).new_page()
    page.goto(f"{address}/digest")
    page.fill("#email", "bob@example.org")
    page.check("text=Every Monday")
    page.check("text=symmetry")
    page.click("main button.firm")
    assert "Look into your mailbox" in page.inner_text("main")
    page.goto(link_for(settings, address, "/digest/[^/]+/confirm"))
    waiting = subscription_by_email(engine, "bob@example.org")
    assert waiting is not None and not waiting.active, "looking at the link confirms nothing"
    page.click("main button.firm")
    assert "You are subscribed" in page.inner_text("main")
    active = subscription_by_email(engine, "bob@example.org")
    assert active is not None and active.active and active.wish.frequency == "weekly" and active.wish.topics
    page.goto(f"{address}/digest/{active.secret}")
    page.check("text=Every day")
    page.click("main button.firm")
    changed = subscription_by_email(engine, "bob@example.org")
    assert changed is not None and changed.wish.frequency == "daily"
    page.goto(f"{address}/digest/{active.secret}/unsubscribe")
    page.click("main button.firm")
    assert "You are unsubscribed" in page.inner_text("main")
    ended = subscription_by_email(engine, "bob@example.org")
    assert ended is not None and not ended.active


def test_a_run_is_started_watched_and_seen_to_end(address: str, browser: Any, engine: Engine) -> None:
    root = make_account(engine, "root@example.org", "Root", administrator=True)
    page = signed_in(browser, address, engine, root)
    page.goto(f"{address}/papers/2310.01769")
    page.select_option("#scale", "smoke")
    tab_to(page, "main form[action='/runs'] button")
    page.keyboard.press("Enter")
    page.wait_for_selector("[data-job]")
    page.locator("[data-stage]", has_text="trials").wait_for(timeout=60_000)
    page.wait_for_selector("text=What came of it", timeout=120_000)
    assert "Finished" in page.inner_text("main") and page.locator("figure img").is_visible()
    assert page.locator("figure img").evaluate("image => image.naturalWidth") > 100
    assert page.troubles == []
    page.goto(f"{address}/papers/2310.01769")
    assert "smoke scale" in page.inner_text("section:has(#use) ul.runs")


def test_pages_of_the_service_are_accessible_and_fit(address: str, browser: Any, engine: Engine) -> None:
    root = make_account(engine, "root@example.org", "Root with a rather long name indeed", administrator=True)
    paths = ["/account", "/submit", "/digest", "/outbox", "/runs", "/api/docs", "/feed?period=trending"]
    paths.append("/papers/2310.01769")
    for viewport, scheme in ((DESK, "light"), (PHONE, "dark")):
        page = signed_in(browser, address, engine, root, viewport=viewport, color_scheme=scheme)
        anybody = browser.new_context(viewport=viewport, color_scheme=scheme).new_page()
        for path in [*paths, "/sign-in"]:
            shown = anybody if path == "/sign-in" else page
            shown.goto(address + path)
            where = f"{path}, {viewport['width']} wide, {scheme}"
            wide = shown.evaluate("document.documentElement.scrollWidth - window.innerWidth")
            assert wide <= 0, f"{where}: {wide} pixels too wide"
            found = axe.Axe().run(shown).response["violations"]
            serious = [each for each in found if each["impact"] in ("serious", "critical")]
            told = [(each["id"], each["nodes"][0]["html"][:200]) for each in serious]
            assert not told, f"{where}: {told}"
        assert page.troubles == []
