"""Every refusal has one declaration: a code, and a sentence for the body and the challenge."""

import pytest

from quotas.access.refusals import Fault, Refused
from quotas.api.openapi_examples import PROBLEMS

pytestmark = pytest.mark.once


@pytest.mark.parametrize("fault", Fault)
def test_a_sentence_is_safe_in_a_quoted_header(fault: Fault) -> None:
    assert fault.detail.isascii()
    assert fault.detail.isprintable()
    assert not set('"\\') & set(fault.detail)
    assert fault.detail.endswith(".")


def test_the_first_sentence_of_each_code_is_the_example_that_is_published() -> None:
    usual = {fault.code: fault.detail for fault in reversed(Fault)}
    assert usual == {problem.type.code: problem.detail for problem in PROBLEMS if problem.type.status == 401}


def test_a_refusal_reads_as_its_sentence() -> None:
    assert str(Refused(Fault.TOKEN_TOO_LONG)) == "The token is longer than 8 KB."
