from django.urls import include, path, re_path

from quotas import schema, views

of_user = [
    path("quota", views.UserQuota.as_view()),
    path("consume", views.UserConsume.as_view()),
    path("history", views.UserHistory.as_view()),
    path("consumptions/<uuid:consumption_id>/refund", views.Refund.as_view()),
    path("adjust", views.Adjust.as_view()),
    path("reset", views.Reset.as_view()),
    path("plan", views.ChangePlan.as_view()),
    path("explain", views.Explain.as_view()),
]
urlpatterns = [
    path("quota", views.SimpleQuota.as_view()),
    path("v1/quota", views.OwnQuota.as_view()),
    path("v1/quota/consume", views.OwnConsume.as_view()),
    path("v1/quota/history", views.OwnHistory.as_view()),
    path("v1/users/<str:user_id>/", include(of_user)),
    path("v1/plans", views.Plans.as_view()),
    path("schema", schema.Description.as_view(), name="schema"),
    path("docs", schema.Page.as_view(schema=None)),
    re_path("", views.NothingHere.as_view(schema=None)),
]
