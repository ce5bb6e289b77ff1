"""The WSGI application that the Procfile's `web:` line serves."""

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "quotasite.settings")
application = get_wsgi_application()
