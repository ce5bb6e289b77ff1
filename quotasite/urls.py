from django.conf import settings
from django.contrib import admin
from django.urls import include, path
from django.views.generic import RedirectView

from quotasite import demo_page, health

urlpatterns = [
    path("", demo_page.front, name="page"),
    path("demo", demo_page.page, name="page"),
    path("demo/token", demo_page.token, name="demo_token"),
    path("api/", include("quotas.api.urls")),
    path("webhooks/", include("webhooks.urls")),
    path("admin/", admin.site.urls),
    path("admin", RedirectView.as_view(url="/admin/")),
    path("favicon.ico", RedirectView.as_view(url=f"{settings.STATIC_URL}quotasite/icon.svg")),
    path("healthz", health.healthz, name="healthz"),
    path("readyz", health.readyz, name="readyz"),
    path("metrics", health.metrics, name="metrics"),
]
handler400 = "quotasite.health.bad_request"
handler404 = "quotasite.health.not_found"
handler500 = "quotasite.health.server_error"
