"""Where Django looks for the pages of the admin: each registers itself."""

from quotas.console import ledger, plans, quotas, service_keys

__all__ = ["ledger", "plans", "quotas", "service_keys"]
