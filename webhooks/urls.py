from django.urls import path

from webhooks.views import clerk_webhook

urlpatterns = [
    path("clerk", clerk_webhook),
    path("clerk/", clerk_webhook),  # Clerk takes a redirect for a failure
]
