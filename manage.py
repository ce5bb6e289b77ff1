#!/usr/bin/env python
"""Run a management command: `manage.py help` lists them."""

import os
import sys

from django.core.exceptions import ImproperlyConfigured
from django.db import Error

from quotas.management.failures import database_fault
from quotasite.management.help import Utility

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "quotasite.settings")
    try:
        Utility(sys.argv).execute()
    except ImproperlyConfigured as error:
        sys.exit(f"manage.py: {error}")
    except Error as error:  # of Django's own commands too, such as createsuperuser
        if not (fault := database_fault(error)):
            raise
        sys.exit(f"manage.py: {fault}")
