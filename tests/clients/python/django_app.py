"""The same app as fastapi_app.py in Django: `wsgi` with a sync view, `asgi` with an async one."""

import os

from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path

from quotasite_client import AsyncQuotasite, Quotasite
from quotasite_client.django import spends

settings.configure(
    ROOT_URLCONF=__name__,
    ALLOWED_HOSTS=["*"],
    SECRET_KEY="of a test",
    MIDDLEWARE=[],
    LOGGING={
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {"console": {"class": "logging.StreamHandler"}},
        "root": {"handlers": ["console"]},
    },
)
OPTIONS = {"key": os.environ["QUOTASITE_KEY"], "timeout": 2}
COST = {
    "user": lambda request: request.headers["X-User"],
    "cost": 2,
    "key": lambda request: request.headers.get("X-Attempt"),
}


def work(request: HttpRequest) -> HttpResponse:
    match request.headers.get("X-Fail", ""):
        case "":
            spent = request.consumption
            return JsonResponse({"id": spent.id, "left": spent.quota.quota_remaining})
        case "raise":
            raise RuntimeError("the work failed")
        case status:
            return HttpResponse(status=int(status))


@spends(Quotasite(os.environ["QUOTASITE_URL"], **OPTIONS), **COST)
def generate(request: HttpRequest) -> HttpResponse:
    return work(request)


@spends(AsyncQuotasite(os.environ["QUOTASITE_URL"], **OPTIONS), **COST)
async def generate_async(request: HttpRequest) -> HttpResponse:
    return work(request)


urlpatterns = [path("generate", generate), path("async/generate", generate_async)]
wsgi, asgi = get_wsgi_application(), get_asgi_application()
