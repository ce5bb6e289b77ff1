from django.apps import AppConfig
from django.contrib.admin import apps as admin


class QuotasiteConfig(AppConfig):
    name = "quotasite"

    def ready(self) -> None:
        from quotasite import checks, variable_checks  # noqa: F401 - registers them


class ConsoleConfig(admin.AdminConfig):
    """Django's admin, with ConsoleSite as its site."""

    default = False  # "quotasite" is QuotasiteConfig's; this one configures django.contrib.admin
    default_site = "quotasite.staff.site.ConsoleSite"

    def ready(self) -> None:
        super().ready()
        from quotasite.staff import accounts  # noqa: F401 - replaces Django's pages for accounts
