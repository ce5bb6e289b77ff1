"""The tables and statements of the tuned peers: each request takes one round trip.

The placeholders are `{user}`, `{cost}` …, because each driver writes its parameters in its own way.
"""

TABLES = """
    CREATE TABLE challenge_quotas (
        user_id text PRIMARY KEY,
        plan text NOT NULL,
        plan_source text NOT NULL,
        plan_version bigint NOT NULL,
        quota_limit bigint NOT NULL,
        quota_remaining bigint NOT NULL CHECK (quota_remaining >= 0),
        last_reset_date timestamptz NOT NULL,
        anchor_at timestamptz NOT NULL,
        period_seq bigint NOT NULL,
        seq bigint NOT NULL,
        updated_at timestamptz NOT NULL
    ) WITH (fillfactor = 80);
    CREATE TABLE ledger_entries (
        id uuid PRIMARY KEY,
        user_id text NOT NULL,
        seq bigint NOT NULL,
        kind text NOT NULL,
        cost bigint NOT NULL,
        delta bigint NOT NULL,
        plan text NOT NULL,
        plan_source text NOT NULL,
        plan_version bigint NOT NULL,
        quota_limit bigint,
        balance_after bigint NOT NULL,
        period_consumed bigint,
        period_given bigint,
        last_reset_date timestamptz NOT NULL,
        anchor_at timestamptz NOT NULL,
        resets_at timestamptz NOT NULL,
        period_seq bigint NOT NULL,
        created_at timestamptz NOT NULL,
        actor_kind text NOT NULL,
        actor_id text NOT NULL,
        act text NOT NULL,
        reason text NOT NULL,
        action text NOT NULL,
        metadata jsonb,
        idempotency_key text,
        fingerprint text NOT NULL,
        refund_of uuid
    );
    CREATE UNIQUE INDEX ledger_seq_once ON ledger_entries (user_id, seq);
    CREATE UNIQUE INDEX ledger_key_once ON ledger_entries (user_id, idempotency_key)
        WHERE idempotency_key IS NOT NULL;
"""

FILL = """
    INSERT INTO challenge_quotas
    SELECT id, 'free', 'default', 1, {allowance}, {allowance}, now(), now(), 1, 0, now()
    FROM unnest({users}) AS id
"""

DUE = "last_reset_date <= clock_timestamp() - interval '1 day'"

# The quota as it is now. A reset that is due is applied to the answer, and stored by the next spend.
GET = f"""
    SELECT CASE WHEN {DUE} THEN quota_limit ELSE quota_remaining END,
        CASE WHEN {DUE} THEN clock_timestamp() ELSE last_reset_date END, quota_limit
    FROM challenge_quotas WHERE user_id = {{user}}::text
"""

# A spend without an entry: the guard is in the statement. No row: refused, or an unknown user.
BARE = f"""
    UPDATE challenge_quotas SET
        quota_remaining = CASE WHEN {DUE} THEN quota_limit ELSE quota_remaining END - {{cost}}::bigint,
        last_reset_date = CASE WHEN {DUE} THEN clock_timestamp() ELSE last_reset_date END
    WHERE user_id = {{user}}::text
        AND CASE WHEN {DUE} THEN quota_limit ELSE quota_remaining END >= {{cost}}::bigint
    RETURNING quota_remaining, last_reset_date
"""

# The effect of the product's spend: a guarded update with a ledger entry, once per key. The first column of
# the result is 'new', 'old' (the entry that the key made before) or 'refused'. Of two concurrent spends with
# one new key the second waits for the row, then violates ledger_key_once and is rolled back: run it again.
CONSUME = f"""
    WITH found AS MATERIALIZED (
        SELECT * FROM ledger_entries
        WHERE user_id = {{user}}::text AND idempotency_key = {{key}}::text
    ), done AS (
        UPDATE challenge_quotas SET
            quota_remaining = CASE WHEN {DUE} THEN quota_limit ELSE quota_remaining END - {{cost}}::bigint,
            last_reset_date = CASE WHEN {DUE} THEN clock_timestamp() ELSE last_reset_date END,
            period_seq = CASE WHEN {DUE} THEN seq + 1 ELSE period_seq END,
            seq = seq + 1,
            updated_at = clock_timestamp()
        WHERE user_id = {{user}}::text AND NOT EXISTS (SELECT FROM found)
            AND CASE WHEN {DUE} THEN quota_limit ELSE quota_remaining END >= {{cost}}::bigint
        RETURNING *
    ), written AS (
        INSERT INTO ledger_entries
        SELECT {{id}}::uuid, user_id, seq, 'consumed', {{cost}}::bigint, -{{cost}}::bigint, plan, plan_source,
            plan_version, quota_limit, quota_remaining, quota_limit - quota_remaining, 0, last_reset_date,
            anchor_at, last_reset_date + interval '1 day', period_seq, updated_at, 'user', user_id, '', '',
            '', NULL, {{key}}::text, {{fingerprint}}::text, NULL
        FROM done
    )
    SELECT 'new', {{id}}::uuid, seq, {{cost}}::bigint, plan, quota_limit, quota_remaining, last_reset_date,
        last_reset_date + interval '1 day', updated_at, ''
    FROM done
    UNION ALL
    SELECT 'old', id, seq, cost, plan, quota_limit, balance_after, last_reset_date, resets_at, created_at,
        fingerprint
    FROM found
    UNION ALL
    SELECT 'refused', NULL, seq, 0, plan, quota_limit, quota_remaining, last_reset_date,
        last_reset_date + interval '1 day', clock_timestamp(), ''
    FROM challenge_quotas
    WHERE user_id = {{user}}::text AND NOT EXISTS (SELECT FROM done) AND NOT EXISTS (SELECT FROM found)
"""
