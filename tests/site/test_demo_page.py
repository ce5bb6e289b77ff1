"""The demo page in a real browser, under the real policy: one click spends one unit, whatever fails."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from django.db import connection

from quotas.models import ChallengeQuota, LedgerEntry, Plan
from quotas.rules.values import Actor
from quotasite.demo.tour import shift
from tests.tools import browser, keys
from tests.tools.ledger import assert_sound
from tests.tools.postgres import free_port

if TYPE_CHECKING:
    from selenium.webdriver.chrome.webdriver import WebDriver
    from selenium.webdriver.remote.webelement import WebElement

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.django_db(transaction=True, serialized_rollback=True),
]
full = pytest.mark.full
USER, STAFF = "user_demo", Actor("staff", "a test")
SHOWN = [(size, dark) for size in (browser.WIDE, browser.PHONE, browser.NARROW) for dark in (False, True)]

# Wraps the page's fetch before any of its scripts runs. It records each request and calls
# `tamper(path, count)`, which returns nothing, "lose" to drop the response, or another token to send.
WRAPPED = """
window.sent = [];
const real = window.fetch.bind(window);
window.fetch = async (path, options = {}) => {
  const key = options.headers?.["Idempotency-Key"];
  window.sent.push({path, key, method: options.method ?? "GET"});
  const count = window.sent.filter((one) => one.path === path).length;
  const instead = (window.tamper ?? (() => undefined))(path, count);
  if (!instead) return real(path, options);
  if (instead !== "lose") {
    return real(path, {...options, headers: {...options.headers, Authorization: `Bearer ${instead}`}});
  }
  await real(path, options);
  throw new TypeError("the response was lost in transit");
};
window.shifted = 0;
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) if (!entry.hadRecentInput) window.shifted += entry.value;
}).observe({type: "layout-shift", buffered: true});
"""


class Page:
    """The demo page as a person uses it."""

    def __init__(self, driver: WebDriver, site: str) -> None:
        self.driver, self.site = driver, site

    def __getitem__(self, name: str) -> WebElement:
        return self.driver.find_element("id", name)

    def text(self, name: str) -> str:
        return str(self.run("return document.getElementById(arguments[0]).textContent.trim()", name))

    def run(self, script: str, *arguments: object) -> Any:
        return self.driver.execute_script(script, *arguments)

    def until(self, condition: Callable[[], object], seconds: float = 10) -> None:
        from selenium.webdriver.support.wait import WebDriverWait

        WebDriverWait(self.driver, seconds, 0.05).until(lambda _: condition(), self.state())

    def state(self) -> str:
        names = ("alert", "left", "of", "countdown", "status", "history")
        return str({name: self.text(name) for name in names})

    def open(self, *, tamper: str = "") -> Page:
        """Load the page in this tab, with its fetch wrapped."""
        source = WRAPPED + (f"window.tamper = {tamper};" if tamper else "")
        self.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": source})
        self.driver.get(f"{self.site}/demo")
        return self

    def sign_in(self, user_id: str = USER) -> Page:
        """Fill in the form, and wait for the figures."""
        self["user_id"].clear()
        self["user_id"].send_keys(user_id, "\n")
        self.until(lambda: self.text("left") and self.text("history"))
        return self

    def generate(self) -> None:
        self["generate"].click()

    def is_disabled(self) -> bool:
        return self["generate"].get_attribute("aria-disabled") == "true"

    def is_exhausted(self) -> bool:
        return self.text("left") == "0" and self["meter"].get_property("value") == 0 and self.is_disabled()

    def sent(self, path: str = "/api/v1/quota/consume") -> list[dict[str, Any]]:
        return [one for one in self.run("return window.sent") if one["path"] == path]


def spends(user_id: str = USER) -> int:
    connection.close()  # only a new transaction sees what another process committed
    return LedgerEntry.objects.filter(user_id=user_id, kind="consumed").count()


def leave(remaining: int, user_id: str = USER) -> None:
    """Open the user's quota of 20, and leave only `remaining` units of it."""
    left = ChallengeQuota.objects.current(user_id).quota_remaining
    if left != remaining:
        ChallengeQuota.objects.adjust(user_id, remaining - left, reason="for a test", actor=STAFF)


def faults(page: Page, *, but: tuple[int, ...] = ()) -> list[str]:
    """Return what is wrong with the current page, at each size and in both schemes."""
    found = browser.console_errors(page.driver, but=but)
    for size, dark in SHOWN:
        browser.show_as(page.driver, size, dark=dark)
        where = f"{size[0]} px, {'dark' if dark else 'light'}: "
        found += [where + broken for broken in browser.axe(page.driver)]
        if wider := browser.overflow(page.driver):
            found.append(f"{where}{wider} px too wide")
    browser.show_as(page.driver)
    return found


@pytest.fixture
def page(chromium: WebDriver, site: str) -> Page:
    return Page(chromium, site)


# A short test, in every run


def test_a_click_takes_a_unit_and_the_page_tells_it(page: Page) -> None:
    page.open().sign_in()
    page.generate()
    page.until(lambda: page.text("status").startswith("Your challenge:"))
    assert (page.text("left"), page.text("of")) == ("19", "of 20 left")
    page.until(lambda: page.text("history").startswith("Challenge generated"))
    assert spends() == 1
    assert not browser.console_errors(page.driver)


# States


@full
def test_the_sign_in_is_sound(page: Page) -> None:
    page.open()
    assert page["sign-in"].is_displayed()
    assert not faults(page)


@full
def test_the_page_of_a_user_is_sound_before_and_after_a_spend(page: Page) -> None:
    page.open().sign_in()
    assert page["meter"].get_property("value") == 20
    assert page.text("countdown") in ("24 h 00 min", "23 h 59 min")
    assert not faults(page)
    page.generate()
    page.until(lambda: page.text("left") == "19")
    assert not faults(page)
    assert_sound(USER)


@full
def test_the_last_unit_leads_to_a_state_and_not_to_an_error(page: Page) -> None:
    leave(1)
    page.open().sign_in()
    page.generate()
    page.until(page.is_exhausted)
    assert "Used up. Full again in" in page.text("until")
    assert page.text("countdown") in ("24 h 00 min", "23 h 59 min")
    assert page.text("alert") == ""
    assert not faults(page)


@full
def test_a_click_on_what_is_used_up_asks_for_nothing(page: Page) -> None:
    leave(0)
    page.open().sign_in()
    page.until(page.is_exhausted)
    page.generate()
    page.until(lambda: page.text("status").startswith("Used up"))
    assert not page.sent()


@full
def test_a_429_is_a_state_too_and_is_not_tried_again(page: Page) -> None:
    leave(1)
    page.open().sign_in()
    ChallengeQuota.objects.consume(USER)  # elsewhere
    page.generate()
    page.until(page.is_exhausted)
    page.until(lambda: page.text("status") == "Used up: no unit was left.")
    assert page.text("alert") == ""
    assert len(page.sent()) == 1
    assert not faults(page, but=(429,))


@full
def test_what_is_unlimited_has_no_meter(page: Page) -> None:
    Plan(name="pro", allowance=None).save()
    ChallengeQuota.objects.change_plan(USER, "pro", actor=STAFF)
    page.open().sign_in()
    assert page.text("left") == "Unlimited"
    assert not page["meter"].is_displayed()
    assert not page.is_disabled()
    assert not faults(page)


@full
def test_a_deleted_user_is_told_so(page: Page) -> None:
    ChallengeQuota.objects.current(USER)
    ChallengeQuota.objects.delete(USER, actor=STAFF)
    page.open()
    page["user_id"].send_keys("\n")
    page.until(lambda: page.text("alert"))
    assert "deleted" in page.text("alert")
    assert page.is_disabled()
    assert not faults(page, but=(410,))


# One click, one unit


@full
def test_two_tabs_race_for_the_last_unit_and_one_gets_it(page: Page) -> None:
    leave(1)
    driver = page.driver
    tabs = [driver.current_window_handle]
    page.open().sign_in()
    driver.switch_to.new_window("tab")
    tabs.append(driver.current_window_handle)
    page.open().sign_in()
    click = "document.getElementById('generate').click()"
    for tab in tabs:
        driver.switch_to.window(tab)
        page.until(lambda: not page.is_disabled())
        page.run(f"window.start = new BroadcastChannel('start'); start.onmessage = () => {click}")
    page.run(f"start.postMessage('go'); {click}")
    results = []
    for tab in tabs:
        driver.switch_to.window(tab)
        page.until(page.is_exhausted)
        page.until(lambda: page.text("status"))
        results.append(page.text("status").partition(":")[0])
        assert len(page.sent()) == 1
    assert sorted(results) == ["Used up", "Your challenge"]
    assert spends() == 1
    assert_sound(USER)


@full
def test_a_double_click_takes_one_unit(page: Page) -> None:
    from selenium.webdriver import ActionChains

    page.open().sign_in()
    ActionChains(page.driver).double_click(page["generate"]).perform()
    page.until(lambda: page.text("left") == "19")
    page.until(lambda: page["generate"].get_attribute("aria-busy") == "false")
    assert len(page.sent()) == 1
    assert spends() == 1


@full
def test_each_click_has_a_key_of_its_own(page: Page) -> None:
    page.open().sign_in()
    for left in ("19", "18"):
        page.until(lambda: page["generate"].get_attribute("aria-busy") != "true")
        page.generate()
        page.until(lambda left=left: page.text("left") == left)  # type: ignore[misc]
    assert len({one["key"] for one in page.sent()}) == 2
    assert spends() == 2


@full
def test_a_lost_answer_is_asked_for_again_with_the_same_key(page: Page) -> None:
    page.open(tamper='(path, n) => path.endsWith("consume") && n === 1 ? "lose" : undefined').sign_in()
    page.generate()
    page.until(lambda: page.text("status") == "The server does not answer. Trying again …")
    page.until(lambda: page.text("status").startswith("Your challenge"))
    first, second = page.sent()
    assert first["key"] == second["key"]
    assert (page.text("left"), spends()) == ("19", 1)


@full
def test_after_three_lost_answers_the_next_click_still_asks_for_the_same(page: Page) -> None:
    page.open(tamper='(path, n) => path.endsWith("consume") && n <= 3 ? "lose" : undefined').sign_in()
    page.generate()
    page.until(lambda: "Trying again is safe" in page.text("alert"), 15)
    assert len(page.sent()) == 3
    assert not faults(page)
    page.generate()
    page.until(lambda: page.text("status").startswith("Your challenge"))
    assert page.text("alert") == ""
    assert len({one["key"] for one in page.sent()}) == 1
    assert (page.text("left"), spends()) == ("19", 1)


@contextmanager
def stoppable(driver: WebDriver) -> Iterator[tuple[Page, Callable[[], Any]]]:
    """Yield a page whose server has stopped, and a function that serves it again at the same address."""
    port = free_port()
    with browser.served_to_look_at(port):
        page = Page(driver, f"http://127.0.0.1:{port}").open().sign_in()
    yield page, lambda: browser.served_to_look_at(port)


@full
def test_a_server_that_is_down_for_a_moment_costs_nothing(
    chromium: WebDriver, transactional_db: None
) -> None:
    with stoppable(chromium) as (page, serve):
        page.generate()
        page.until(lambda: page.text("status") == "The server does not answer. Trying again …")
        with serve():
            page.until(lambda: page.text("status").startswith("Your challenge"))
            sent = page.sent()
            assert len({one["key"] for one in sent}) == 1
            assert len(sent) > 1
            assert (page.text("left"), spends()) == ("19", 1)
            assert page.text("alert") == ""


@full
def test_a_server_that_stays_down_is_told_and_asked_again_later(
    chromium: WebDriver, transactional_db: None
) -> None:
    with stoppable(chromium) as (page, serve):
        page.generate()
        page.until(lambda: "cannot be reached" in page.text("alert"), 15)
        assert page.text("left") == "20"
        assert [broken for broken in faults(page) if "ERR_CONNECTION_REFUSED" not in broken] == []
        with serve():
            page.until(lambda: page.text("alert") == "", 30)  # by itself
            page.generate()
            page.until(lambda: page.text("left") == "19", 20)
            assert len({one["key"] for one in page.sent()}) == 1
            assert spends() == 1


# Tokens

EXPIRED = keys.mint(sub=USER, exp=1, nbf=0, iat=0)


SPENDS_BY_EXPIRED = '(path, n) => path.endsWith("consume") && n <= {} ? "{}" : undefined'


@full
def test_an_expired_token_is_replaced_once_and_nobody_notices(page: Page) -> None:
    page.open(tamper=SPENDS_BY_EXPIRED.format(1, EXPIRED)).sign_in()
    page.generate()
    page.until(lambda: page.text("status").startswith("Your challenge"))
    first, second = page.sent()
    assert first["key"] == second["key"]
    assert len(page.sent("/demo/token")) == 2
    assert spends() == 1
    assert not browser.console_errors(page.driver, but=(401,))


@full
def test_when_a_fresh_token_is_refused_too_the_session_has_ended(page: Page) -> None:
    page.open(tamper=SPENDS_BY_EXPIRED.format(2, EXPIRED)).sign_in()
    page.generate()
    page.until(lambda: page.text("alert") == "Your session has ended. Sign in again to continue.")
    assert page["sign-in"].is_displayed()
    assert not page["account"].is_displayed()
    assert page.run("return document.activeElement.id") == "sign-in-title"
    assert (len(page.sent()), spends()) == (2, 0)
    assert not faults(page, but=(401,))
    page.sign_in()
    assert page.text("alert") == ""


@full
def test_a_reload_stays_signed_in_until_one_signs_out(page: Page) -> None:
    page.open().sign_in()
    page.driver.refresh()
    page.until(lambda: page.text("left") == "20")
    page["sign-out"].click()
    assert page["sign-in"].is_displayed()
    page.driver.refresh()
    assert page["sign-in"].is_displayed()


@full
def test_nothing_of_one_user_is_shown_to_the_next(page: Page) -> None:
    leave(5)
    page.open(tamper="(path, n) => path.endsWith('/quota') && n > 1 ? 'lose' : undefined").sign_in()
    page["sign-out"].click()
    page["user_id"].clear()
    page["user_id"].send_keys("user_other\n")
    page.until(lambda: page.text("user") == "user_other")
    page.until(lambda: "cannot be reached" in page.text("alert"), 15)
    assert (page.text("left"), page.text("history")) == ("", "")
    assert page.is_disabled()
    assert not faults(page)


# Time


@full
def test_at_zero_the_page_asks_and_all_is_there_again(page: Page) -> None:
    leave(0)
    shift(USER, timedelta(hours=23, minutes=59, seconds=55))
    page.open().sign_in()
    assert page.is_exhausted()
    assert page.text("countdown").endswith(" s")
    page.until(lambda: page.text("left") == "20", 15)
    assert not page.is_disabled()
    assert len(page.sent("/api/v1/quota")) == 2
    page.until(lambda: page.text("history").startswith("New period"))


@full
def test_a_tab_that_is_shown_again_asks_anew(page: Page) -> None:
    page.open().sign_in()
    ChallengeQuota.objects.consume(USER, 5)  # elsewhere
    first = page.driver.current_window_handle
    page.driver.switch_to.new_window("tab")
    page.driver.switch_to.window(first)
    page.until(lambda: page.text("left") == "15")


# People


@full
def test_the_keyboard_is_enough(page: Page) -> None:
    from selenium.webdriver import ActionChains, Keys

    def press(*keys: str) -> None:
        ActionChains(page.driver).send_keys(*keys).perform()

    def go_to(name: str) -> None:
        for _ in range(12):
            press(Keys.TAB)
            if page.run("return document.activeElement.id") == name:
                outline = page.run("return getComputedStyle(document.activeElement).outlineStyle")
                assert outline == "solid", f"{name} does not show that it has the focus"
                return
        pytest.fail(f"no way to {name} by Tab")

    page.open()
    go_to("user_id")
    press(Keys.ENTER)
    page.until(lambda: page.text("left") == "20")
    go_to("generate")
    press(Keys.ENTER)
    page.until(lambda: page.text("left") == "19")
    assert page.run("return document.activeElement.id") == "generate"
    page.until(lambda: page["generate"].get_attribute("aria-busy") == "false")
    press(Keys.SPACE)
    page.until(lambda: page.text("left") == "18")


@full
def test_a_key_that_is_held_down_takes_one_unit(page: Page) -> None:
    page.open().sign_in()
    press = {"type": "rawKeyDown", "key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}
    page.run("document.getElementById('generate').focus()")
    for seconds in range(8):
        page.driver.execute_cdp_cmd(
            "Input.dispatchKeyEvent", {**press, "type": "keyDown", "autoRepeat": seconds > 0}
        )
        page.run("return new Promise((done) => setTimeout(done, 150))")
    page.until(lambda: page.text("left") == "19")
    assert len(page.sent()) == 1


@full
def test_nothing_moves_for_those_who_do_not_want_it(page: Page) -> None:
    moving = """return [...document.querySelectorAll("*")].filter((element) =>
        ["", "::before", "::-webkit-meter-optimum-value"].some((part) =>
            parseFloat(getComputedStyle(element, part || null).transitionDuration) > 0)).length"""
    page.open().sign_in()
    assert page.run(moving) > 0
    browser.show_as(page.driver, reduced_motion=True)
    assert page.run(moving) == 0


@full
@pytest.mark.parametrize("size", [browser.WIDE, browser.PHONE, browser.NARROW])
def test_nothing_jumps_about_while_it_loads_and_speaks(page: Page, size: tuple[int, int]) -> None:
    browser.show_as(page.driver, size)
    page.open(tamper='(path, n) => path.endsWith("consume") && n <= 3 ? "lose" : undefined').sign_in()
    page.generate()
    page.until(lambda: "Trying again is safe" in page.text("alert"), 15)
    page.generate()
    page.until(lambda: page.text("status").startswith("Your challenge"))
    assert page.run("return window.shifted") < 0.01


# Clerk's own sign-in

CLERK = {"CLERK_PUBLISHABLE_KEY": "pk_test_Y2xlcmsuZXhhbXBsZS5jb20k"}  # clerk.example.com$
STAND_IN = """
let notify;
window.__internal_ClerkUICtor = class {};
window.Clerk = {
  session: null,
  load: async ({ui}) => { window.loadedWith = ui.ClerkUI.name; },
  addListener(listener) { notify = listener; notify({session: this.session}); },
  mountSignIn(place) { place.replaceChildren(Object.assign(document.createElement("button"), {
    id: "stand-in", textContent: "Sign in", onclick: () => this.signIn()})); },
  unmountSignIn(place) { place.replaceChildren(); },
  signIn() {
    window.tokenOptions = [];
    const getToken = async (options) => { window.tokenOptions.push(options); return TOKEN; };
    this.session = {user: {id: "user_demo"}, getToken};
    notify({session: this.session});
  },
  async signOut() { this.session = null; notify({session: null}); },
};
"""


def without_clerk(errors: list[str]) -> list[str]:
    """Return the errors except those of Clerk's scripts, whose host does not exist here."""
    return [error for error in errors if not error.startswith("https://clerk.example.com/npm/")]


@full
def test_clerk_s_component_signs_in_and_its_tokens_are_used(
    chromium: WebDriver, transactional_db: None
) -> None:
    stand_in = STAND_IN.replace("TOKEN", json.dumps(keys.mint(sub=USER)))
    chromium.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": stand_in})
    with browser.served_to_look_at(**CLERK) as address:
        page = Page(chromium, address).open()
        page.until(lambda: page["stand-in"])
        page["stand-in"].click()
        page.until(lambda: page.text("left") == "20")
        page.generate()
        page.until(lambda: page.text("left") == "19")
        assert {str(options) for options in page.run("return window.tokenOptions")} == {
            "{'skipCache': False}"
        }
        assert without_clerk(faults(page)) == []
        page["sign-out"].click()
        page.until(lambda: page["stand-in"].is_displayed())
        assert spends() == 1


@full
def test_where_clerk_cannot_be_loaded_the_page_says_so(chromium: WebDriver, transactional_db: None) -> None:
    with browser.served_to_look_at(**CLERK) as address:
        page = Page(chromium, address).open()
        page.until(lambda: page.text("alert").startswith("The sign-in could not be loaded."))
        assert without_clerk(faults(page)) == []
