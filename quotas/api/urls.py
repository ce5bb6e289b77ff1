"""The addresses of the API. The name of each is its verb in the log and in the metrics."""

from django.urls import include, path, re_path

from quotas.api import openapi, views

user_patterns = [
    path("quota", views.UserQuota.as_view(), name="read"),
    path("consume", views.UserConsume.as_view(), name="consume"),
    path("history", views.UserHistory.as_view(), name="history"),
    path("consumptions/<uuid:consumption_id>/refund", views.Refund.as_view(), name="refund"),
    path("adjust", views.Adjust.as_view(), name="adjust"),
    path("reset", views.Reset.as_view(), name="reset"),
    path("plan", views.ChangePlan.as_view(), name="change_plan"),
    path("explain", views.Explain.as_view(), name="explain"),
]
urlpatterns = [
    path("quota", views.SimpleQuota.as_view(), name="read"),
    path("v1/quota", views.OwnQuota.as_view(), name="read"),
    path("v1/quota/consume", views.OwnConsume.as_view(), name="consume"),
    path("v1/quota/history", views.OwnHistory.as_view(), name="history"),
    path("v1/users/<str:user_id>/", include(user_patterns)),
    path("v1/plans", views.Plans.as_view(), name="plans"),
    path("schema", openapi.Description.as_view(), name="schema"),
    path("docs", openapi.DocsPage.as_view(schema=None), name="docs"),
    re_path("", views.NothingHere.as_view(schema=None)),
]
