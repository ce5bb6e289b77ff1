"""The demo page: an example of an app that uses the API. Without DEBUG it is a 404.

Without Clerk the page signs users in by a development key (`manage.py demo` makes one). The API verifies
its tokens like all others, by CLERK_JWT_KEY.
"""

from collections.abc import Callable
from functools import wraps

from django.conf import settings
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_GET, require_POST

from quotas.api.responses import problem_http_response
from quotas.models import ChallengeQuota
from quotas.problems import INVALID_REQUEST
from quotas.rules.values import USER_ID
from quotasite.demo.pretend_clerk import ORIGIN, session_token

KNOWN_USERS = 3  # users that the development sign-in offers
View = Callable[[HttpRequest], HttpResponse]


def under_debug(view: View) -> View:
    @wraps(view)
    def guarded(request: HttpRequest) -> HttpResponse:
        if not settings.DEBUG:
            raise Http404
        return view(request)

    return guarded


@under_debug
def front(request: HttpRequest) -> HttpResponse:
    return redirect("/demo")


@under_debug
@require_GET
@never_cache
def page(request: HttpRequest) -> HttpResponse:
    sign_in = _sign_in()
    known = ChallengeQuota.objects.values_list("user_id", flat=True)[:KNOWN_USERS]
    context = {
        "sign_in": sign_in,
        "frontend_api": settings.CLERK_FRONTEND_API,
        "publishable_key": settings.CLERK_PUBLISHABLE_KEY,
        "users": known if sign_in == "development" else (),
    }
    response = render(request, "demo/page.html", context)
    if sign_in == "clerk":
        response._csp_update = _clerk_sources(settings.CLERK_FRONTEND_API)  # type: ignore[attr-defined] # of django-csp
    return response


@csrf_exempt  # it reads no cookie
@under_debug
@require_POST
@never_cache
def token(request: HttpRequest) -> HttpResponse:
    """Return a session token for the posted `user_id`, signed by the development key, valid for a minute."""
    if _sign_in() != "development":
        raise Http404
    user_id = request.POST.get("user_id", "")
    if not USER_ID.fullmatch(user_id) or not user_id.startswith("user_"):
        fault = "user_id: must begin with user_, like the ids of Clerk."
        return problem_http_response(INVALID_REQUEST(fault=fault))
    origin = next(iter(settings.CLERK_AUTHORIZED_PARTIES), ORIGIN)
    signed = session_token(
        settings.DEVELOPMENT_SIGNING_KEY, user_id, issuer=settings.CLERK_ISSUER, origin=origin
    )
    return JsonResponse({"token": signed})


def _sign_in() -> str:
    if settings.CLERK_PUBLISHABLE_KEY:
        return "clerk"
    return "development" if settings.DEVELOPMENT_SIGNING_KEY else "none"


def _clerk_sources(frontend_api: str) -> dict[str, list[str]]:
    """Return the sources that Clerk's documentation requires for its component, and no others."""
    own, bots, fraud = "'self'", "https://challenges.cloudflare.com", "https://*.protect.clerk.com"
    return {
        "script-src": [own, frontend_api, bots, fraud],
        "connect-src": [own, frontend_api, f"{fraud}:*"],  # it listens on other ports too
        "img-src": [own, "https://img.clerk.com"],
        "worker-src": [own, "blob:"],
        "style-src": [own, "'unsafe-inline'"],  # the component creates its styles at run time
        "frame-src": [bots, fraud],
    }
