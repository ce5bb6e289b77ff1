"""The WSGI application that the Procfile's `web:` line serves."""

import logging
import os
from wsgiref.types import WSGIApplication

from django.core.wsgi import get_wsgi_application

from quotas.operations.deploy_checks import check_storage

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "quotasite.settings")
application: WSGIApplication = get_wsgi_application()

# `check --deploy` refuses this before a release; here is the last place to say it, if nobody ran that.
for message in check_storage():
    logging.getLogger(__name__).critical("%s %s", message.msg, message.hint)
