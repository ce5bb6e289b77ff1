"""Django's WSGI application: the full path of quotasite/serving/rsgi.py. A WSGI server can serve it alone."""

import logging
import os
from wsgiref.types import WSGIApplication

from django.core.wsgi import get_wsgi_application

from quotas.operations.deploy_checks import check_storage

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "quotasite.settings")
application: WSGIApplication = get_wsgi_application()

# `check --deploy` reports this before a release. If it was not run, this log line is the only warning.
for message in check_storage():
    logging.getLogger(__name__).critical("%s %s", message.msg, message.hint)
