"""The addresses of the API. The name of each is its verb in the log and in the metrics."""

from django.urls import path, re_path

from quotas.api import openapi, views
from quotas.api.endpoints import ENDPOINTS

urlpatterns = [
    *(path(endpoint.route, views.view_of(endpoint).as_view(), name=endpoint.verb) for endpoint in ENDPOINTS),
    path("schema", openapi.Description.as_view(), name="schema"),
    path("docs", openapi.DocsPage.as_view(schema=None), name="docs"),
    re_path("", views.NothingHere.as_view(schema=None)),
]
