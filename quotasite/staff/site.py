"""The admin as a whole: its first page, and a bound on what it costs to look at any."""

import math
from collections.abc import Callable
from functools import wraps
from threading import Lock
from typing import Any, NamedTuple, TypeVar, cast

from django.contrib.admin import AdminSite
from django.db import OperationalError, connection, transaction
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.template.response import SimpleTemplateResponse, TemplateResponse
from django.utils.decorators import method_decorator
from django.utils.safestring import SafeString
from django.views.decorators.cache import never_cache

from quotas.console.charts import daily_bars
from quotas.console.display import duration_in_words, quota_url
from quotas.console.lists import MoreThan, count_capped
from quotas.models import ChallengeQuota
from quotas.reports import totals
from quotas.reports.exhausted import MAX_EXHAUSTED, exhausted
from quotas.reports.totals import Refusals, Totals
from quotas.store.errors import is_statement_timeout, read_with_reconnect
from quotasite.staff.lockout import is_locked_out, seconds_locked

STATEMENT_SECONDS = 5  # of one statement of a page
FIGURES_PERMISSIONS = ("quotas.view_challengequota", "quotas.view_ledgerentry")

# For this transaction: a page neither takes long, nor more than one core from those who spend.
BOUNDS = """
    SELECT set_config('statement_timeout', %s, true), set_config('max_parallel_workers_per_gather', '0', true)
"""

# To check a password takes a core for a third of a second, as a hundred reads do, and any stranger may ask.
ONE_PASSWORD = Lock()  # of this process; waiting would take the threads away from those who spend

ViewFunction = TypeVar("ViewFunction", bound=Callable[..., HttpResponseBase])


class Overview(NamedTuple):
    """What the first page tells of all quotas together."""

    users: int
    exhausted: int
    totals: Totals
    refusals: Refusals

    @classmethod
    def now(cls) -> "Overview":
        found = exhausted(MAX_EXHAUSTED)
        count = len(found.user_ids)
        return cls(
            users=totals.estimated_users() or count_capped(ChallengeQuota.objects.filter(deleted_at=None)),
            exhausted=count if found.is_all else MoreThan(count),
            totals=totals.days_of_everyone(),
            refusals=totals.most_refused(),
        )

    @property
    def counts(self) -> tuple[str, str]:
        """How many users there are, and how many of them are exhausted; a count may be an estimate."""
        users, exhausted = (
            f"{count:,}" if type(count) is int else str(count) for count in (self.users, self.exhausted)
        )
        return users, exhausted

    @property
    def today(self) -> tuple[str, str]:
        """What was spent and refused today, once that is summed."""
        days = self.totals.days
        return (f"{days[-1].spent:,}", f"{days[-1].refused:,}") if days else ("…", "…")

    @property
    def chart(self) -> SafeString:
        return daily_bars(self.totals.days)

    @property
    def most_refused(self) -> list[tuple[str, str, int]]:
        """User ids, where their pages are, and how often."""
        return [(user_id, quota_url(user_id), times) for user_id, times in self.refusals.users]


class ConsoleSite(AdminSite):
    """Stock Django's, with an overview on the first page, and bounded where it is only looked at."""

    site_header = site_title = "Quotasite"
    site_url = None
    index_title = "Overview"
    enable_nav_sidebar = False  # base_site.html has a bar instead

    def admin_view(self, view: ViewFunction, cacheable: bool = False) -> ViewFunction:
        return self._bounded(super().admin_view(view, cacheable))

    @method_decorator(never_cache)
    def login(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """As Django's, but one password at a time, and who guessed too often is told when to come back."""
        if request.method != "POST":
            return super().login(request, extra_context)
        if not ONE_PASSWORD.acquire(blocking=False):
            told = "Another password is being checked just now. Go back, and send yours again."
            return self._refuse_login(request, 503, "One moment", told, 1)
        try:
            response = super().login(request, extra_context)
        finally:
            ONE_PASSWORD.release()
        if not is_locked_out(request):
            return response
        seconds = seconds_locked(request)
        told = (
            "There were too many failed log-ins under this name from your address. Even the right password "
            f"is refused for the next {duration_in_words(60 * math.ceil(seconds / 60))}."
        )
        return self._refuse_login(request, 429, "Too many failed log-ins", told, seconds)

    def _refuse_login(
        self, request: HttpRequest, status: int, title: str, told: str, seconds: int
    ) -> HttpResponse:
        context = {**self.each_context(request), "title": title, "told": told}
        headers = {"Retry-After": str(seconds)}
        return TemplateResponse(request, "admin/login_refused.html", context, status=status, headers=headers)

    def index(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> TemplateResponse:
        return super().index(request, {**(extra_context or {}), **self._overview(request)})

    def _overview(self, request: HttpRequest) -> dict[str, Any]:
        """The figures of the first page; it is there without them too, where they take too long."""
        if not request.user.has_perms(FIGURES_PERMISSIONS):
            return {}
        try:
            with transaction.atomic():
                return {"overview": Overview.now()}
        except OperationalError as error:
            if not is_statement_timeout(error):
                raise
            return {"is_late": True}

    def _bounded(self, view: ViewFunction) -> ViewFunction:
        """Answer a GET in one transaction whose statements are bounded, on a connection that works.

        A transaction, because a time-out for the session would go on to others behind a pooler. What
        changes something stays as it is: its verbs store user by user, each by itself.
        """

        @wraps(view)
        def answer(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
            if request.method not in ("GET", "HEAD"):
                return view(request, *args, **kwargs)

            def look() -> HttpResponseBase:
                with transaction.atomic():
                    _bound_statements()
                    response = view(request, *args, **kwargs)
                    if isinstance(response, SimpleTemplateResponse):
                        response.render()  # which is when a list is read
                    return response

            try:
                return read_with_reconnect(look)
            except OperationalError as error:
                if not is_statement_timeout(error):
                    raise
                context = {
                    **self.each_context(request),
                    "title": "This took too long",
                    "seconds": STATEMENT_SECONDS,
                }
                return TemplateResponse(request, "admin/too_long.html", context, status=503)

        return cast(ViewFunction, answer)


def _bound_statements() -> None:
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute(BOUNDS, [f"{STATEMENT_SECONDS}s"])
