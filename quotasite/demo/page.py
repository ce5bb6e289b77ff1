"""The demo: what an app makes of the API, as a page. It is there under DEBUG alone, a 404 otherwise.

Whoever has no Clerk signs in here by a development key (`manage.py demo` makes one). Its tokens are
nothing special: the API verifies them as any other, by CLERK_JWT_KEY.
"""

from collections.abc import Callable
from functools import wraps

from django.conf import settings
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_GET, require_POST

from quotas.api.problems import Problem
from quotas.models import ChallengeQuota
from quotas.rules.values import USER_ID
from quotasite.demo.pretend_clerk import ORIGIN, session_token

KNOWN_USERS = 3  # that the development sign-in offers
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


@csrf_exempt  # no cookie is looked at
@under_debug
@require_POST
@never_cache
def token(request: HttpRequest) -> HttpResponse:
    """`POST /demo/token` with `user_id`: a session token of one minute, by the development key."""
    if _sign_in() != "development":
        raise Http404
    user_id = request.POST.get("user_id", "")
    if not USER_ID.fullmatch(user_id) or not user_id.startswith("user_"):
        return Problem(400, "invalid_request", "user_id: must be user_ and more, as Clerk's.").response()
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
    """What Clerk's documentation wants a page with its component to allow, and nothing more."""
    own, bots, fraud = "'self'", "https://challenges.cloudflare.com", "https://*.protect.clerk.com"
    return {
        "script-src": [own, frontend_api, bots, fraud],
        "connect-src": [own, frontend_api, f"{fraud}:*"],  # those listen on other ports too
        "img-src": [own, "https://img.clerk.com"],
        "worker-src": [own, "blob:"],
        "style-src": [own, "'unsafe-inline'"],  # its styles are made at run time
        "frame-src": [bots, fraud],
    }
