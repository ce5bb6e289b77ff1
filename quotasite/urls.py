from django.conf import settings
from django.contrib import admin
from django.urls import include, path
from django.views.generic import RedirectView

from quotasite.demo import page
from quotasite.observing import probes

urlpatterns = [
    path("", page.front, name="page"),
    path("demo", page.page, name="page"),
    path("demo/token", page.token, name="demo_token"),
    path("api/", include("quotas.api.urls")),
    path("webhooks/", include("webhooks.urls")),
    path("admin/", admin.site.urls),
    path("admin", RedirectView.as_view(url="/admin/")),
    path("favicon.ico", RedirectView.as_view(url=f"{settings.STATIC_URL}quotasite/icon.svg")),
    path("healthz", probes.healthz, name="healthz"),
    path("readyz", probes.readyz, name="readyz"),
    path("metrics", probes.metrics, name="metrics"),
]
handler400 = "quotasite.observing.probes.bad_request"
handler404 = "quotasite.observing.probes.not_found"
handler500 = "quotasite.observing.probes.server_error"
