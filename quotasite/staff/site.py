"""The admin site: its overview, its login, and the limits on what a page may cost."""

import math
from collections.abc import Callable
from functools import wraps
from threading import Lock
from typing import Any, NamedTuple, TypeVar, cast

from django.contrib.admin import AdminSite
from django.contrib.admin.exceptions import DisallowedModelAdminLookup
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.options import TO_FIELD_VAR
from django.core.exceptions import BadRequest, ValidationError
from django.db import DataError, OperationalError, connection, transaction
from django.db.models import DateTimeField, JSONField
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.template.response import SimpleTemplateResponse, TemplateResponse
from django.utils.decorators import method_decorator
from django.utils.safestring import SafeString
from django.views.decorators.cache import never_cache

from quotas.console.charts import daily_bars
from quotas.console.display import quota_url
from quotas.models import ChallengeQuota
from quotas.reports import totals
from quotas.reports.counts import MoreThan, count_capped, count_in_words
from quotas.reports.exhausted import MAX_EXHAUSTED, exhausted
from quotas.reports.totals import Refusals, Totals
from quotas.rules.durations import duration_in_words
from quotas.store.errors import is_statement_timeout, read_with_reconnect
from quotasite.staff.lockout import LogInForm, is_locked_out, seconds_locked
from webhooks.arrivals import Arrivals

STATEMENT_SECONDS = 5  # for one statement of a page
FIGURES_PERMISSIONS = ("quotas.view_challengequota", "quotas.view_ledgerentry")

# For this transaction only: a page neither runs long nor takes more than one core from the spends.
BOUNDS = """
    SELECT set_config('statement_timeout', %s, true), set_config('max_parallel_workers_per_gather', '0', true)
"""

# A password check takes a core for a third of a second, as much as a hundred reads, and needs no log-in.
ONE_PASSWORD = Lock()  # per process; never wait for it: waiting would block the threads that serve spends

ViewFunction = TypeVar("ViewFunction", bound=Callable[..., HttpResponseBase])

# Those of a filter in an address. The others pass values on that only the database would find unusable.
USABLE_LOOKUPS = {
    *("exact", "iexact", "in", "isnull", "gt", "gte", "lt", "lte"),
    *("contains", "icontains", "startswith", "istartswith", "endswith", "iendswith"),
}
UNUSABLE_LOOKUPS = {
    *DateTimeField().get_lookups(),
    *JSONField().get_lookups(),
} - USABLE_LOOKUPS


class Overview(NamedTuple):
    """The figures of all quotas on the first page."""

    users: int
    exhausted: int
    totals: Totals
    refusals: Refusals
    arrivals: Arrivals

    @classmethod
    def now(cls) -> "Overview":
        found = exhausted(MAX_EXHAUSTED)
        count = len(found.user_ids)
        return cls(
            users=totals.estimated_users() or count_capped(ChallengeQuota.objects.filter(deleted_at=None)),
            exhausted=count if found.is_all else MoreThan(count),
            totals=totals.days_of_everyone(),
            refusals=totals.most_refused(),
            arrivals=Arrivals.now(),
        )

    @property
    def counts(self) -> tuple[str, str]:
        """The number of users and of exhausted users; either may read "about …" or "more than …"."""
        return count_in_words(self.users), count_in_words(self.exhausted)

    @property
    def today(self) -> tuple[str, str]:
        """Units spent and refusals of today; "…" until they are summed."""
        days = self.totals.days
        return (f"{days[-1].spent:,}", f"{days[-1].refused:,}") if days else ("…", "…")

    @property
    def chart(self) -> SafeString:
        return daily_bars(self.totals.days)

    @property
    def most_refused(self) -> list[tuple[str, str, int]]:
        """User id, URL of the quota's page, and number of refused periods."""
        return [(user_id, quota_url(user_id), times) for user_id, times in self.refusals.users]


def refusing_the_unusable(view: ViewFunction) -> ViewFunction:
    """Answer 400, with what is wrong, to a value or a filter that no query can use."""

    @wraps(view)
    def answer(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        if fault := fault_of(request):
            raise BadRequest(fault)
        try:
            response = view(request, *args, **kwargs)
            if isinstance(response, SimpleTemplateResponse):
                response.render()  # the queries of a list run only now
        except (DataError, OverflowError):  # the second: SQLite, for a number beyond 64 bits
            raise BadRequest("The address or the form has a value that the database cannot take.") from None
        except DisallowedModelAdminLookup:
            raise BadRequest("The address has a filter that this list does not offer: remove it.") from None
        return response

    return cast(ViewFunction, answer)


def fault_of(request: HttpRequest) -> str:
    """Return what is wrong with the values sent, before any query; "" if nothing is."""
    sent = [request.path, *request.COOKIES.values()]
    for name, values in (*request.GET.lists(), *request.POST.lists()):
        sent += [name, *values]
    if "\0" in "".join(sent):
        return "The address, the form or a cookie has the character U+0000: remove it."
    if any(UNUSABLE_LOOKUPS.intersection(name.split("__")[1:]) for name in request.GET):
        return "The address has a filter that no list here offers: remove it."
    if "" in (request.GET.get(TO_FIELD_VAR), request.POST.get(TO_FIELD_VAR)):
        return f"{TO_FIELD_VAR} is empty: remove it."
    view = request.resolver_match.func if request.resolver_match else None
    try:
        for ticked in request.POST.getlist(ACTION_CHECKBOX_NAME):
            view.model_admin.model._meta.pk.to_python(ticked)  # type: ignore[union-attr] # that of the list
    except (AttributeError, ValidationError):
        return "A row that was ticked is not one of this list: go back, and tick it again."
    return ""


class ConsoleSite(AdminSite):
    """Django's admin with an overview on the first page and limits on every GET."""

    site_header = site_title = "Quotasite"
    site_url = None
    index_title = "Overview"
    enable_nav_sidebar = False  # base_site.html has a bar instead
    login_form = LogInForm

    def admin_view(self, view: ViewFunction, cacheable: bool = False) -> ViewFunction:
        return refusing_the_unusable(self._bounded(super().admin_view(view, cacheable)))

    @method_decorator(refusing_the_unusable)
    @method_decorator(never_cache)
    def login(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Extend Django's login: one password check at a time, and Retry-After during a lockout."""
        if request.method != "POST":
            return super().login(request, extra_context)
        if not ONE_PASSWORD.acquire(blocking=False):
            explanation = "Another password is being checked right now. Go back and send yours again."
            return self._refuse_login(request, 503, "One moment", explanation, 1)
        try:
            response = super().login(request, extra_context)
        finally:
            ONE_PASSWORD.release()
        if not is_locked_out(request):
            return response
        seconds = seconds_locked(request)
        wait = duration_in_words(60 * math.ceil(seconds / 60))
        explanation = (
            "There were too many failed log-ins with this name from your address. Even the correct password "
            f"is refused for the next {wait}. Wait, or ask an operator to lift the lock."
        )
        return self._refuse_login(request, 429, "Too many failed log-ins", explanation, seconds)

    def _refuse_login(
        self, request: HttpRequest, status: int, title: str, explanation: str, seconds: int
    ) -> HttpResponse:
        context = {**self.each_context(request), "title": title, "explanation": explanation}
        headers = {"Retry-After": str(seconds)}
        return TemplateResponse(request, "admin/login_refused.html", context, status=status, headers=headers)

    def index(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> TemplateResponse:
        return super().index(request, {**(extra_context or {}), **self._overview(request)})

    def _overview(self, request: HttpRequest) -> dict[str, Any]:
        """Return the figures for the template, or `is_late` if they take too long: the page works without."""
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
        """Run a GET in one transaction with limited statements, on a connection that works.

        The timeout ends with the transaction: one for the session would reach other clients of a pooler.
        Other methods run without the transaction, because their verbs commit user by user.
        """

        @wraps(view)
        def answer(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
            if request.method not in ("GET", "HEAD"):
                return view(request, *args, **kwargs)

            def read() -> HttpResponseBase:
                with transaction.atomic():
                    _bound_statements()
                    response = view(request, *args, **kwargs)
                    if isinstance(response, SimpleTemplateResponse):
                        response.render()  # the queries of a list run only now
                    return response

            try:
                return read_with_reconnect(read)
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
