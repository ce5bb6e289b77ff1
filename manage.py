#!/usr/bin/env python
"""Run a management command: `manage.py help` lists them."""

import os
import sys

from django.core.exceptions import ImproperlyConfigured

from quotasite.management.help import Utility

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "quotasite.settings")
    if sys.argv[1:2] == ["demo"]:
        os.environ["ENV_FILE"] = ""  # the demo needs no settings, and must not reach what .env names
    try:
        Utility(sys.argv).execute()
    except ImproperlyConfigured as error:
        sys.exit(f"manage.py: {error}")
