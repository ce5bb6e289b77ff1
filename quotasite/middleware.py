"""What is added to the answers of the site."""

from csp.middleware import CSPMiddleware
from django.http import HttpRequest
from django.http.response import HttpResponseBase

from quotasite.health import JSON_PATHS


class PagePolicy(CSPMiddleware):
    """Give each page the policy of settings.py. JSON is no page, and a spend need not wait for it."""

    def process_response(self, request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
        if request.path_info.startswith(JSON_PATHS):
            return response
        return super().process_response(request, response)
