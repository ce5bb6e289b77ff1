import hashlib
import os
from typing import Annotated

import challenges
from auth import current_user
from fastapi import Depends, FastAPI, Header, HTTPException
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel

from quotasite_client import AsyncQuotasite, Quota, QuotaError
from quotasite_client.fastapi import answer_problem

quotas = AsyncQuotasite(os.environ["QUOTASITE_URL"], key=os.environ["QUOTASITE_KEY"])
app = FastAPI()
app.add_exception_handler(QuotaError, answer_problem)

SignedIn = Annotated[str, Depends(current_user)]
Attempt = Annotated[str, Header(alias="Idempotency-Key", pattern="^[A-Za-z0-9-]{16,64}$")]


class Challenge(BaseModel):
    topic: str
    task: str = ""


@app.get("/api/quota")
async def quota(user_id: SignedIn) -> Quota:
    return await quotas.quota(user_id)


@app.post("/api/challenges", status_code=201)
async def create_challenge(wanted: Challenge, user_id: SignedIn, attempt: Attempt) -> Challenge:
    key = key_of(wanted, attempt)
    if task := challenges.find(user_id, key):
        return Challenge(topic=wanted.topic, task=task)  # the first answer was lost: here it is again
    try:
        async with quotas.spending(user_id, cost=1, key=key):
            task = await run_in_threadpool(
                challenges.generate, wanted.topic
            )  # it blocks, the event loop must not
            challenges.save(user_id, key, task)
    except challenges.GenerationFailed:
        raise HTTPException(502, "No challenge was generated: try again.") from None
    return Challenge(topic=wanted.topic, task=task)


def key_of(wanted: Challenge, attempt: str) -> str:
    """Bind the browser's key to the work: with the same key, another topic is another spend."""
    return f"challenge:{hashlib.sha256(wanted.topic.encode()).hexdigest()[:32]}:{attempt}"
