from django.apps import AppConfig


class QuotasiteConfig(AppConfig):
    name = "quotasite"
