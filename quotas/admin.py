"""Django imports this module to find the admin pages; each imported module registers its own."""

from quotas.console import ledger, plans, quotas, service_keys

__all__ = ["ledger", "plans", "quotas", "service_keys"]
