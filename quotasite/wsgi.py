"""Django's WSGI application: the full path of quotasite/serving/rsgi.py. A WSGI server can serve it alone."""

import logging
import os
from typing import Any

from django.core.handlers.wsgi import WSGIRequest
from django.core.wsgi import get_wsgi_application
from django.utils.http import parse_header_parameters

from quotas.operations.deploy_checks import check_storage

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "quotasite.settings")


class RequestInUTF8(WSGIRequest):
    """Read an address and a form as UTF-8, whatever charset Content-Type names.

    By that charset Django reads the query before any middleware runs. It fails if that is no text encoding
    (hex); and UTF-7 gives half characters, which no database can store.
    """

    def _set_content_type_params(self, meta: dict[str, Any]) -> None:
        self.content_type, self.content_params = parse_header_parameters(meta.get("CONTENT_TYPE", ""))


application = get_wsgi_application()
application.request_class = RequestInUTF8

# `check --deploy` reports this before a release. If it was not run, this log line is the only warning.
for message in check_storage():
    logging.getLogger(__name__).critical("%s %s", message.msg, message.hint)
