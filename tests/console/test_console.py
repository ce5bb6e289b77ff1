"""The console in a real Chromium: each page at two widths, light and dark, under the site's own policy."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from django.contrib.auth.models import Group, User
from selenium.webdriver.chrome.webdriver import WebDriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from quotas.models import ChallengeQuota, Plan, ServiceKey
from quotas.rules.outcomes import Exhausted
from quotas.rules.values import Actor
from tests.tools.browser import PHONE, WIDE, axe, console_errors, overflow, show_as, sign_in
from tests.tools.staff import SCRIPT
from webhooks.models import WebhookEvent

pytestmark = [pytest.mark.postgres, pytest.mark.full]
Make = Callable[..., ChallengeQuota]
Shift = Callable[[str, timedelta], None]
Step = tuple[str, str]  # click or see, and a selector; or the name of a field, and its value

QUOTA = "quotas/challengequota/user_{}/change/"
LIST = "quotas/challengequota/"
LOOKS = [(size, dark) for size in (WIDE, PHONE) for dark in (False, True)]

# The address below /admin/, and the steps to take there.
PAGES: dict[str, tuple[str, list[Step]]] = {
    "index": ("", []),
    "app": ("quotas/", []),
    "quotas": (LIST, []),
    "quotas, exhausted": (f"{LIST}?state=exhausted", []),
    "quotas, searched": (f"{LIST}?q=user_0", []),
    "quotas, none": (f"{LIST}?q=nobody", []),
    "quota, healthy": (QUOTA.format("5F000"), []),
    "quota, exhausted": (QUOTA.format("5F001"), []),
    "quota, low": (QUOTA.format("5F002"), []),
    "quota, due": (QUOTA.format("5F003"), []),
    "quota, deleted": (QUOTA.format("5F004"), []),
    "quota, unlimited": (QUOTA.format("5F005"), []),
    "quota, hostile": (QUOTA.format("5F006"), []),
    "quota, asked": (QUOTA.format("5F000") + "?spend=3", []),
    "quota, asked nonsense": (QUOTA.format("5F000") + "?spend=x", []),
    "reset": (QUOTA.format("5F001"), [("click", "[value=reset_now]"), ("see", "[name=confirmed]")]),
    "adjust, asked": (QUOTA.format("5F000"), [("click", "[value=adjust]"), ("see", "[name=delta]")]),
    "adjust, faulty": (
        QUOTA.format("5F000"),
        [
            ("click", "[value=adjust]"),
            ("delta", "0"),
            ("reason", "none"),
            ("click", "button.default"),
            ("see", ".errorlist"),
        ],
    ),
    "adjust, shown": (
        QUOTA.format("5F000"),
        [
            ("click", "[value=adjust]"),
            ("delta", "-3"),
            ("reason", "an apology"),
            ("click", "button.default"),
            ("see", "[name=confirmed]"),
        ],
    ),
    "adjust, done": (
        QUOTA.format("5F000"),
        [
            ("click", "[value=adjust]"),
            ("delta", "5"),
            ("reason", "an apology"),
            ("click", "button.default"),
            ("click", "[name=confirmed]"),
            ("see", ".panel .daily"),
        ],
    ),
    "change plan, asked": (QUOTA.format("5F000"), [("click", "[value=change_plan]"), ("see", "[name=plan]")]),
    "change plan, shown": (
        QUOTA.format("5F000"),
        [
            ("click", "[value=change_plan]"),
            ("plan", "pro"),
            ("on_change", "prorate"),
            ("reason", "an upgrade"),
            ("click", "button.default"),
            ("see", "[name=confirmed]"),
        ],
    ),
    "many, shown": (
        LIST,
        [
            ("click", "#action-toggle"),
            ("action", "Adjust by ±N"),
            ("click", "[name=index]"),
            ("delta", "-3"),
            ("reason", "a correction"),
            ("click", "button.default"),
            ("see", "[name=confirmed]"),
        ],
    ),
    "ledger": ("quotas/ledgerentry/", []),
    "ledger of one": ("quotas/ledgerentry/?q=user_000", []),
    "ledger entry": (
        "quotas/ledgerentry/",
        [("click", "#result_list tbody th a"), ("see", "form[id$=_form]")],
    ),
    "plans": ("quotas/plan/", []),
    "plan": ("quotas/plan/free/change/", []),
    "plan, faulty": (
        "quotas/plan/free/change/",
        [("timezone", "Nowhere"), ("click", "[name=_save]"), ("see", ".errornote")],
    ),
    "plan, previewed": (
        "quotas/plan/free/change/",
        [("allowance", "5"), ("click", "[name=_save]"), ("see", "[name=confirmed]")],
    ),
    "plan, faulty actions": (
        "quotas/plan/pro/change/",
        [("actions_name", "to draw"), ("click", "[name=_save]"), ("see", ".errornote")],
    ),
    "plan, new": ("quotas/plan/add/", []),
    "plan, default": ("quotas/plan/pro/default/", [("see", "button.default")]),
    "plan, archive": ("quotas/plan/pro/archive/", [("see", "button.default")]),
    "plan, give": ("quotas/plan/later/give/", [("see", "button.default")]),
    "plan, impossible": ("quotas/plan/free/archive/", []),
    "keys": ("quotas/servicekey/", []),
    "key": ("quotas/servicekey/", [("click", "#result_list tbody th a"), ("see", "form[id$=_form]")]),
    "key, new": ("quotas/servicekey/add/", []),
    "key, shown once": (
        "quotas/servicekey/add/",
        [("name", "api server"), ("click", "[value=read]"), ("click", "[name=_save]"), ("see", ".big code")],
    ),
    "inbox": ("webhooks/webhookevent/", []),
    "inbox event": (
        "webhooks/webhookevent/",
        [("click", "#result_list tbody th a"), ("see", "form[id$=_form]")],
    ),
    "users": ("auth/user/", []),
    "user": ("auth/user/", [("click", "#result_list tbody th a"), ("see", "form[id$=_form]")]),
    "user, new": ("auth/user/add/", []),
    "groups": ("auth/group/", []),
    "group": ("auth/group/", [("click", "#result_list tbody th a"), ("see", "form[id$=_form]")]),
    "password": ("password_change/", []),
}


@pytest.fixture
def root(site: str) -> User:
    return User.objects.create_superuser("root", password="correct horse battery")


@pytest.fixture
def users(site: str, make_quota: Make, shift: Shift) -> None:
    """Users in every state, enough of them for two pages, and something in each list."""
    free = Plan.objects.get()
    Plan(name="pro", allowance=50, actions={"generate": 2}).save()
    make_quota("user_005", allowance=None)
    for number in (*range(5), *range(6, 60)):
        make_quota(f"user_{number:03}", allowance=20)
    ChallengeQuota.objects.update(email="somebody.with.a.long.name@subdomain.example.com")
    spend(8, "user_000")
    spend(20, "user_001", "user_003")
    spend(17, "user_002")
    shift("user_003", timedelta(hours=24))
    with pytest.raises(Exhausted):
        ChallengeQuota.objects.consume("user_001")
    ChallengeQuota.objects.delete("user_004", actor=Actor("webhook", "clerk"))
    ChallengeQuota.objects.adjust("user_006", 5, reason=SCRIPT * 3, actor=Actor("service", "key_" + "x" * 90))
    for name, delivered in (("user.created", "success"), ("session.created", "ignored")):
        WebhookEvent.objects.create(svix_id=f"msg_{name}", type=name, user_id="user_000", status=delivered)
    for user_id, plan in (("user_010", "gold"), ("user_011", SCRIPT), ("user_012", "later")):
        at = datetime(2026, 1, 1, tzinfo=UTC)
        ChallengeQuota.objects.assign_plan(
            user_id, "metadata", plan, updated_at=at, actor=Actor("webhook", "clerk")
        )
    Plan(name="later", allowance=5, is_archived=True).save()
    ServiceKey.make("batch", ["read", "consume"])
    Group.objects.get_or_create(name="Support")
    assert free.allowance == 20


def spend(cost: int, *user_ids: str) -> None:
    for user_id in user_ids:
        ChallengeQuota.objects.consume(user_id, cost)


def await_element(driver: WebDriver, selector: str) -> WebElement:
    """Return the first match once the page is loaded completely: a click may have led to another page."""

    def find(driver: WebDriver) -> WebElement | None:
        is_there = driver.execute_script("return document.readyState") == "complete"
        return next(iter(driver.find_elements(By.CSS_SELECTOR, selector)), None) if is_there else None

    return WebDriverWait(driver, 20).until(find, f"there is no {selector}")


def take(driver: WebDriver, steps: list[Step]) -> None:
    """Click a selector, wait for one, or fill in the field of a name."""
    for what, value in steps:
        if what in ("click", "see"):
            found = await_element(driver, f"#content {value}")
            if what == "click":
                found.click()
            continue
        field = await_element(driver, f"#content [name={what}]")
        if field.tag_name == "select":
            choice = f"./option[@value='{value}' or text()='{value}']"
            field.find_element(By.XPATH, choice).click()
        else:
            field.clear()
            field.send_keys(value)


def settle(driver: WebDriver) -> None:
    """Wait for the colour transition: half-way between light and dark the contrast is too low."""
    wait = "Promise.all(document.getAnimations().map(one => one.finished)).then(arguments[0], arguments[0])"
    driver.execute_async_script(wait)


def faults(driver: WebDriver) -> list[str]:
    """Return what is wrong with the current page, at both widths, light and dark."""
    found = []
    for size, dark in LOOKS:
        show_as(driver, size, dark=dark)
        settle(driver)
        seen = console_errors(driver)
        seen += axe(driver)
        console_errors(driver)  # axe injects styles, which the policy forbids: no fault of the page
        if wider := overflow(driver):
            seen.append(f"{wider} pixels too wide")
        found += [f"{size[0]} {'dark' if dark else 'light'}: {fault}" for fault in seen]
    return found


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_accessible_fits_and_breaks_no_rule_of_the_policy(
    chromium: WebDriver, site: str, root: User, users: None, name: str
) -> None:
    path, steps = PAGES[name]
    sign_in(chromium, site, root)
    chromium.get(f"{site}/admin/{path}")
    take(chromium, steps)
    await_element(chromium, "#content h1")
    assert faults(chromium) == []


def test_the_login_is_accessible_and_lets_staff_in(chromium: WebDriver, site: str, root: User) -> None:
    chromium.get(f"{site}/admin/")
    assert faults(chromium) == []
    take(chromium, [("username", "root"), ("password", "wrong"), ("click", "[type=submit]")])
    assert faults(chromium) == []
    take(chromium, [("username", "root"), ("password", "correct horse battery"), ("click", "[type=submit]")])
    await_element(chromium, "#user-tools")


def test_what_support_sees_is_accessible(chromium: WebDriver, site: str, users: None) -> None:
    support = User.objects.create_user("sue", is_staff=True)
    support.groups.add(Group.objects.get(name="Support"))
    sign_in(chromium, site, support)
    for path in ("", LIST, QUOTA.format("5F000"), "quotas/plan/", "quotas/plan/free/change/"):
        chromium.get(f"{site}/admin/{path}")
        assert faults(chromium) == []
