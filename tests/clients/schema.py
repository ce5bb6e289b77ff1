"""What docs/openapi.yaml has, for tests of what the service may not have yet."""

import re

import pytest
import yaml

from tests import ROOT

SCHEMA = yaml.safe_load((ROOT / "docs/openapi.yaml").read_text())


def has(path: str) -> bool:
    """Return whether the service has this path, whatever it calls its parameters."""
    return re.sub(r"{\w+}", "{}", path) in {re.sub(r"{\w+}", "{}", known) for known in SCHEMA["paths"]}


def needs(path: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not has(path), reason=f"the service has no {path} yet")


needs_refunded = pytest.mark.skipif(
    "refunded" not in SCHEMA["components"]["schemas"]["Consumption"]["properties"],
    reason="the service's Consumption has no member refunded yet",
)
