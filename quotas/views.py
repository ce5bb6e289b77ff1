"""The API: HTTP in, a verb of the manager, HTTP out. No rule is here."""

import re
from contextlib import suppress
from typing import cast

import http_sf
from rest_framework.exceptions import NotFound
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from quotas.authentication import Principal
from quotas.models import ChallengeQuota
from quotas.problems import Problem
from quotas.serializers import ConsumeSerializer, consumption, full_quota, simple_quota

RAW_KEY = re.compile(r"[A-Za-z0-9._~:/+=-]{1,128}")


class QuotaView(APIView):
    """A view for a signed-in user and his own quota; no answer of it may be kept by a cache."""

    def finalize_response(
        self, request: Request, response: Response, *args: object, **kw: object
    ) -> Response:
        response["Cache-Control"] = "no-store"
        return super().finalize_response(request, response, *args, **kw)

    @property
    def principal(self) -> Principal:
        return cast(Principal, self.request.user)


class SimpleQuota(QuotaView):
    """`GET /api/quota`: what can be spent, made or reset when that is due."""

    def get(self, request: Request) -> Response:
        quota = ChallengeQuota.objects.current(self.principal.user_id, actor=self.principal.actor)
        return Response(simple_quota(quota))


class FullQuota(QuotaView):
    """`GET /api/v1/quota`: the same with plan, period and reset."""

    def get(self, request: Request) -> Response:
        quota = ChallengeQuota.objects.current(self.principal.user_id, actor=self.principal.actor)
        return Response(full_quota(quota))


class Consume(QuotaView):
    """`POST /api/v1/quota/consume`: spend, all or nothing, once per Idempotency-Key."""

    def post(self, request: Request) -> Response:
        key = idempotency_key(request)
        order = ConsumeSerializer(data=request.data)
        order.is_valid(raise_exception=True)
        receipt = ChallengeQuota.objects.consume(
            self.principal.user_id, **order.validated_data, key=key, actor=self.principal.actor
        )
        headers = {"Idempotent-Replayed": "true"} if receipt.is_replay else None
        return Response(consumption(receipt), status=201, headers=headers)


class NothingHere(APIView):
    """Any other address below /api."""

    authentication_classes = ()
    permission_classes = ()

    def initial(self, request: Request, *args: object, **kwargs: object) -> None:
        raise NotFound


def idempotency_key(request: Request) -> str | None:
    """Return the request's key, or None; `abc` and the structured field `"abc"` are the same.

    Raises a 400 for a header that is empty, too long, there twice, or has odd characters.
    """
    header = request.headers.get("Idempotency-Key")
    if header is None:
        return None
    if RAW_KEY.fullmatch(header):
        return header
    if header.startswith('"'):
        with suppress(http_sf.StructuredFieldError):
            match http_sf.parse(header.encode(), tltype="item"):
                case (str(value), {**parameters}) if 1 <= len(value) <= 128 and not parameters:
                    return value
    raise Problem(
        400,
        "idempotency_key_malformed",
        "Idempotency-Key must be one value of 1 to 128 characters of A-Z a-z 0-9 . _ ~ : / + = -, "
        "such as a UUID.",
    )
