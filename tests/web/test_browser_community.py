"""Voting, commenting, submitting and saving searches in a real browser: in place, without scripts, by keyboard."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Engine

from tests.web import test_browser
from working_papers.daily.accounts.accounts import Account, make_account
from working_papers.daily.accounts.sessions import open_session
from working_papers.daily.catalogue import get_paper
from working_papers.daily.community.activity import activity_of
from working_papers.daily.community.comments import list_comments, write_comment
from working_papers.daily.community.votes import vote

pytestmark = test_browser.pytestmark
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
address, browser = test_browser.address, test_browser.browser

DESK, PHONE = test_browser.DESK, test_browser.PHONE
NORMUON = "/papers/2510.05491"
LIST = "/search?q=2510.05491"


@pytest.fixture
def ada(filled: Engine) -> Account:
    return make_account(filled, "ada@example.org", "Ada", administrator=True)


def number_of(engine: Engine, id: str = "2510.05491") -> int:
    paper = get_paper(engine, id)
    assert paper is not None
    return paper.number


def signed_in(browser: Any, address: str, engine: Engine, account: Account, **options: Any) -> Any:
    """A page of a browser that is signed in; what goes wrong on it is in `page.troubles`."""
    context = browser.new_context(**{"viewport": DESK, **options})
    context.add_cookies([{"name": "session", "value": open_session(engine, account, "test"), "url": address}])
    page = context.new_page()
    page.troubles = []
    page.on("console", lambda message: page.troubles.append(message.text))
    page.on("pageerror", lambda error: page.troubles.append(str(error)))
    return page


def tab_to(page: Any, selector: str, most: int = 150) -> None:
    """Press the tabulator until the element has the focus."""
    target = page.locator(selector)
    for _ in range(most):
        page.keyboard.press("Tab")
        if target.evaluate("element => element === document.activeElement"):
            return
    raise AssertionError(f"{selector} cannot be reached by keyboard")


def test_a_vote_in_place_is_said_aloud(address: str, browser: Any, filled: Engine, ada: Account) -> None:
    page = signed_in(browser, address, filled, ada)
    page.goto(address + LIST)
    page.evaluate("window.same = true")
    entry = page.locator(f"#paper-{number_of(filled)}")
    button, status = entry.locator("button.vote"), page.locator("[role=status][aria-live=polite]")
    assert button.get_attribute("aria-pressed") == "false"
    button.click()
    page.wait_for_selector("button[aria-pressed=true]")
    assert button.inner_text().split()[-1] == "1" and status.inner_text() == "Your vote counts. Votes: 1."
    tab_to(page, f"#paper-{number_of(filled)} button.vote")
    page.keyboard.press("Space")
    page.wait_for_selector("button[aria-pressed=false]")
    assert button.inner_text().split()[-1] == "0" and status.inner_text() == "Your vote is taken back. Votes: 0."
    assert button.evaluate("element => element === document.activeElement"), "the focus stays where it was"
    page.keyboard.press("Enter")
    page.wait_for_selector("button[aria-pressed=true]")
    assert page.evaluate("window.same") is True and page.url == address + LIST
    assert activity_of(filled, [number_of(filled)])[number_of(filled)].votes == 1
    name = page.get_by_role("button", name="Vote for NorMuon: Making Muon more efficient and scalable, votes: 1")
    assert name.count() == 1
    assert page.troubles == []


def test_a_vote_that_is_refused_explains_itself(address: str, browser: Any, filled: Engine, ada: Account) -> None:
    page = signed_in(browser, address, filled, ada)
    page.goto(address + LIST)
    page.context.clear_cookies()  # the session has ended meanwhile
    page.locator("button.vote").click()
    page.wait_for_url("**/sign-in**")
    assert page.locator("h1").inner_text() == "Sign in"


def test_a_vote_without_scripts(address: str, browser: Any, filled: Engine, ada: Account) -> None:
    page = signed_in(browser, address, filled, ada, java_script_enabled=False, viewport=PHONE)
    page.goto(address + "/feed?period=month&start=2025-10-07")
    anchor = f"paper-{number_of(filled)}"
    page.locator(f"#{anchor} button.vote").click()
    assert page.url == f"{address}/feed?period=month&start=2025-10-07#{anchor}"
    assert page.locator(f"#{anchor} button.vote").get_attribute("aria-pressed") == "true"
    page.locator(f"#{anchor} button.vote").click()
    assert page.locator(f"#{anchor} button.vote").get_attribute("aria-pressed") == "false"


def test_comments_by_keyboard(address: str, browser: Any, filled: Engine, ada: Account) -> None:
    page = signed_in(browser, address, filled, ada)
    page.goto(address + NORMUON)
    tab_to(page, "#comment")
    page.keyboard.type("It *holds*, see https://example.org")
    tab_to(page, "form.stacked button", 2)
    page.keyboard.press("Enter")
    page.wait_for_url("**#comment-*")
    (comment,) = list_comments(filled, number_of(filled))
    place = page.locator(f"#comment-{comment.id}")
    assert place.locator(".comment-body").inner_html().strip() == (
        '<p>It <em>holds</em>, see <a href="https://example.org" rel="nofollow noopener ugc">https://example.org</a></p>'
    )
    tab_to(page, f"#comment-{comment.id} a[href$='/edit']")
    page.keyboard.press("Enter")
    page.wait_for_url("**/edit")
    tab_to(page, "#comment")
    page.keyboard.press("Control+A")
    page.keyboard.type("It does *not*.")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_url("**#comment-*")
    assert place.locator(".comment-body").inner_text().strip() == "It does not."
    tab_to(page, f"#comment-{comment.id} form[action$='/hide'] button")
    page.keyboard.press("Enter")
    page.wait_for_selector(".comments .is-hidden")
    tab_to(page, f"#comment-{comment.id} form[action$='/delete'] button")
    page.keyboard.press("Enter")
    page.wait_for_url("**#comments")
    assert page.locator(".comments").count() == 0 and list_comments(filled, number_of(filled), ada) == []
    assert page.troubles == []


def test_submitting_by_keyboard(address: str, browser: Any, filled: Engine, ada: Account) -> None:
    page = signed_in(browser, address, filled, ada)
    page.goto(address + "/submit")
    tab_to(page, "#title")
    page.keyboard.type("Why owls turn their heads")
    page.keyboard.press("Tab")
    page.keyboard.type("Ada Lovelace")
    page.keyboard.press("Tab")
    page.keyboard.type("They must.")
    page.keyboard.press("Tab")
    page.keyboard.type("https://user:secret@example.org/owls")
    tab_to(page, "form.stacked button", 8)
    page.keyboard.press("Enter")
    page.wait_for_selector("[role=alert]")
    assert page.locator("#problem").inner_text().startswith("Address is 'https://user:secret@example.org/owls'")
    assert page.evaluate("document.activeElement.id") == "address", "the field to mend has the focus"
    assert page.locator("#title").input_value() == "Why owls turn their heads"
    page.keyboard.press("Control+A")
    page.keyboard.type("https://example.org/owls")
    page.keyboard.press("Enter")
    page.wait_for_url("**/papers/why-owls-turn-their-heads")
    assert page.locator("h1").inner_text() == "Why owls turn their heads"
    assert page.get_by_text("Submitted by Ada").is_visible()
    page.keyboard.press("/")
    page.keyboard.type("owls")
    page.keyboard.press("Enter")
    page.wait_for_url("**/search?q=owls")
    assert page.locator("article.entry a >> nth=0").inner_text() == "Why owls turn their heads"
    tab_to(page, ".save-search button")
    page.keyboard.press("Enter")
    page.wait_for_url("**/account?done=search**")
    assert page.get_by_role("link", name="owls", exact=True).is_visible()
    assert all("422" in trouble for trouble in page.troubles), page.troubles


def serious(page: Any) -> list[str]:
    """What axe finds that keeps somebody out."""
    found = axe.Axe().run(page).response["violations"]
    return [
        f"{each['id']}: {each['nodes'][0]['html'][:200]}" for each in found if each["impact"] in ("serious", "critical")
    ]


def test_axe_finds_no_serious_fault(address: str, browser: Any, filled: Engine, ada: Account) -> None:
    other = make_account(filled, "grace@example.org", "Grace")
    paper = number_of(filled)
    code = "a line that is much too long for a telephone, " * 2
    write_comment(filled, other.id, paper, f"> quoted\n\n```\n{code}\n```\n\n- a\n- b\n\n[link](https://example.org)")
    own = write_comment(filled, ada.id, paper, "Mine")
    vote(filled, ada.id, paper)
    for scheme, viewport in (("light", DESK), ("dark", PHONE)):
        page = signed_in(browser, address, filled, ada, color_scheme=scheme, viewport=viewport)
        for path in (LIST, "/feed?period=trending", NORMUON, f"/comments/{own}/edit", "/submit", "/account"):
            page.goto(address + path)
            assert serious(page) == [], f"{path}, {scheme}"
            wide = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
            assert wide <= 0, f"{path}, {scheme}: {wide} pixels too wide"
        page.goto(address + "/submit")
        page.fill("#arxiv", "nothing")
        page.locator("form.inline-form button").click()
        page.wait_for_selector("#problem")
        assert serious(page) == [], f"an error, {scheme}"
        page.context.close()
    anybody = browser.new_context(viewport=DESK).new_page()
    for path in (LIST, NORMUON):
        anybody.goto(address + path)
        assert serious(anybody) == [], f"{path}, not signed in"
