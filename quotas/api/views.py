"""The API behind Django's handler: each endpoint as a view, which answers in its thread."""

from typing import Any

from django.http import HttpResponse
from rest_framework.exceptions import MethodNotAllowed
from rest_framework.views import APIView

from quotas.api.endpoints import Endpoint
from quotas.api.errors import problem_for
from quotas.api.respond import Call, respond
from quotas.api.responses import http_response, problem_http_response
from quotas.problems import NOT_FOUND
from quotas.store.thread import run_steps


class EndpointView(APIView):
    """The view of one endpoint; `respond` authenticates the caller itself."""

    endpoint: Endpoint

    def answer(self, request: Any, **path: object) -> HttpResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        parameters = {name: str(value) for name, value in path.items()}
        body = request.body if self.endpoint.body else b""
        call = Call(parameters, request.META.get("QUERY_STRING", ""), headers, body)
        return http_response(run_steps(respond(self.endpoint, call)))

    def finalize_response(self, request: Any, response: Any, *args: Any, **kwargs: Any) -> Any:
        return response  # as it is: the REST framework would add Allow


def view_of(endpoint: Endpoint) -> type[EndpointView]:
    """Return a view that has the endpoint's method, and HEAD for GET: any other is a 405."""
    method = endpoint.method.lower()
    names = {"endpoint": endpoint, "http_method_names": [method, "head"], method: EndpointView.answer}
    return type(endpoint.id, (EndpointView,), names)


class NothingHere(APIView):
    """Any other address under /api: a 404."""

    def initial(self, request: Any, *args: object, **kwargs: object) -> None:
        raise NOT_FOUND()


def exception_handler(error: Exception, context: dict[str, Any]) -> HttpResponse | None:
    """Return the response to an exception outside `respond`; None leaves a bug to Django's 500."""
    if (problem := problem_for(error)) is None:
        return None
    response = problem_http_response(problem)
    if isinstance(error, MethodNotAllowed):
        response["Allow"] = ", ".join(context["view"].allowed_methods)
    return response
