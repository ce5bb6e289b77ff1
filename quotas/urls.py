from django.urls import path, re_path

from quotas import views

urlpatterns = [
    path("quota", views.SimpleQuota.as_view()),
    path("v1/quota", views.FullQuota.as_view()),
    path("v1/quota/consume", views.Consume.as_view()),
    re_path("", views.NothingHere.as_view()),
]
