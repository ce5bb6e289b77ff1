from django.apps import AppConfig
from django.contrib.admin import apps as admin


class QuotasiteConfig(AppConfig):
    name = "quotasite"

    def ready(self) -> None:
        from quotasite import checks  # noqa: F401 - registers them


class ConsoleConfig(admin.AdminConfig):
    """Django's admin, with a site of ours."""

    default = False  # of this module: it is Django's package that it configures
    default_site = "quotasite.staff.site.ConsoleSite"

    def ready(self) -> None:
        super().ready()
        from quotasite.staff import accounts  # noqa: F401 - takes the place of Django's own pages
