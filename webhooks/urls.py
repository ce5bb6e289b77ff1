from django.urls import path

from webhooks.views import clerk_webhook

urlpatterns = [
    path("clerk", clerk_webhook, name="deliver"),
    path("clerk/", clerk_webhook, name="deliver"),  # Clerk treats a redirect as a failure
]
