"""An app whose endpoint costs 2 units. The headers name the user, the attempt, and how the work fails."""

import os
from typing import Annotated

from fastapi import Depends, FastAPI, Header, HTTPException

from quotasite_client import AsyncQuotasite, Consumption, QuotaError
from quotasite_client.fastapi import answer_problem, spend

client = AsyncQuotasite(os.environ["QUOTASITE_URL"], key=os.environ["QUOTASITE_KEY"], timeout=2)
app = FastAPI()
if not os.environ.get("NO_HANDLER"):
    app.add_exception_handler(QuotaError, answer_problem)


def current_user(x_user: Annotated[str, Header()]) -> str:
    return x_user


def attempt(x_attempt: Annotated[str | None, Header()] = None) -> str | None:
    return x_attempt


@app.post("/generate")
async def generate(
    consumption: Annotated[Consumption, Depends(spend(client, current_user, cost=2, key=attempt))],
    x_fail: Annotated[str, Header()] = "",
) -> dict[str, object]:
    if x_fail == "raise":
        raise RuntimeError("the work failed")
    if x_fail:
        raise HTTPException(int(x_fail))
    return {"id": consumption.id, "left": consumption.quota.quota_remaining}
