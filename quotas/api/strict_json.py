"""Strict JSON: what two parsers could read differently is refused."""

import json
import math
from collections.abc import Iterator
from typing import Any

from rest_framework.negotiation import BaseContentNegotiation

from quotas.problems import MALFORMED_JSON, Problem

MAX_NESTING = 32  # levels of objects and arrays: every later reader of the JSON can handle these


class AlwaysJSON(BaseContentNegotiation):
    """Respond in the one format of a view, whatever the Accept header or `?format=` is."""

    def select_renderer(self, request: Any, renderers: Any, format_suffix: str | None = None) -> Any:
        renderer = next(iter(renderers))
        return renderer, renderer.media_type


def json_object(raw: bytes) -> dict[str, Any]:
    """Parse one JSON object in UTF-8.

    Raises a 400 Problem for invalid JSON (NaN included), for nesting beyond MAX_NESTING, for a duplicate
    member, and for text that PostgreSQL cannot store: U+0000 and lone surrogates.
    """
    try:
        body = _decode(raw.decode())
        for text in _strings(body):
            text.encode()
            if "\x00" in text:
                raise ValueError("the character U+0000 cannot be stored")
    except RecursionError:
        raise _malformed("it is nested too deeply") from None
    except UnicodeDecodeError:
        raise _malformed("it is not UTF-8") from None
    except UnicodeEncodeError:
        raise _malformed("it contains half of a surrogate pair") from None
    except ValueError as error:
        raise _malformed(str(error)) from None
    if not isinstance(body, dict):
        raise _malformed("it is not an object")
    return body


def _malformed(reason: str) -> Problem:
    return MALFORMED_JSON(fault=reason)


def _finite(number: str) -> float:
    if not math.isfinite(value := float(number)):
        raise ValueError(f"{number[:20]} cannot be stored as a number")
    return value


def _strings(value: Any, levels: int = MAX_NESTING) -> Iterator[str]:
    """Yield every string in a JSON value, member names included; raises RecursionError below `levels`."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        if not levels:
            raise RecursionError
        for member in value:
            yield from _strings(member, levels - 1)
        for member in value.values() if isinstance(value, dict) else ():
            yield from _strings(member, levels - 1)


def _each_member_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("a member appears twice")
    return members


# `json.loads` would create a decoder for each call.
_decode = json.JSONDecoder(
    parse_float=_finite, parse_constant=_finite, object_pairs_hook=_each_member_once
).decode
