"""Spend by the generated client until the quota is used up; print what it made of the responses."""

import json
import os

from generated.api.for_servers import consume, get_quota
from generated.api.for_signed_in_users import get_plans
from generated.client import AuthenticatedClient
from generated.models import ConsumeRequest, Consumption, Problem, PublicPlans, Quota, QuotaExhausted

client = AuthenticatedClient(base_url=os.environ["SITE"], token=os.environ["SERVICE_KEY"])
user = os.environ["USER_ID"]

quota = get_quota.sync(user, client=client)
assert isinstance(quota, Quota)
spent = consume.sync(user, client=client, body=ConsumeRequest(cost=15), idempotency_key="k-1")
assert isinstance(spent, Consumption)
exhausted = consume.sync(user, client=client, body=ConsumeRequest(cost=6), idempotency_key="k-2")
assert isinstance(exhausted, QuotaExhausted)
too_much = consume.sync(user, client=client, body=ConsumeRequest(cost=21), idempotency_key="k-3")
assert isinstance(too_much, Problem)
plans = get_plans.sync(client=client)
assert isinstance(plans, PublicPlans)

figures = [quota.quota_remaining, spent.quota.quota_remaining, exhausted.quota_remaining]
assert exhausted.resets_at == spent.quota.resets_at
assert 0 < exhausted.retry_after <= 86_400
print(json.dumps([*figures, exhausted.code.value, too_much.status, too_much.code.value, plans.plans[0].name]))
