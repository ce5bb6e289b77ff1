"""Faults to seed in the rules, the statements and the store, each with the tests that must fail.

`old` occurs exactly once in its file. `postgres` is true where the tests need PostgreSQL.
"""

from typing import NamedTuple

from hypothesis import Phase, settings

# The runs with a fault load this module as a plugin: Hypothesis need not shrink a failing example.
settings.register_profile("unshrunk", phases=[Phase.generate], database=None)


class Mutant(NamedTuple):
    name: str
    path: str
    old: str
    new: str
    killers: tuple[str, ...]  # test ids, relative to tests/
    postgres: bool = False


RULES, STORE = "quotas/rules", "quotas/store"
PERIODS = f"{RULES}/periods.py"
VALUES = f"{RULES}/values.py"
VERBS = f"{RULES}/verbs.py"
COMMIT = f"{STORE}/commit.py"
ERRORS = f"{STORE}/errors.py"
FOLD = f"{STORE}/fold.py"
LOOP = f"{STORE}/loop.py"
SQL = f"{STORE}/sql.py"
STATEMENTS = f"{STORE}/statements.py"
STEPS = f"{STORE}/steps.py"
THREAD = f"{STORE}/thread.py"
SIMULATION = ("store/test_simulation.py::test_150_seeds_keep_every_promise",)

MUTANTS = [
    Mutant(
        "the very end still belongs to the period",
        PERIODS,
        "return now >= state.resets_at",
        "return now > state.resets_at",
        (
            "rules/test_verbs.py::test_a_quota_is_full_again_from_the_very_end_of_its_period[after1-20]",
            "rules/test_periods.py::test_a_quota_is_due_exactly_from_the_end_on",
        ),
    ),
    Mutant(
        "a skipped midnight with the offset before it",
        PERIODS,
        "if late.astimezone(local).replace(tzinfo=None) == wall.replace(tzinfo=None):",
        "if late.astimezone(local):",
        (
            "rules/test_periods.py::test_a_midnight_that_is_skipped_is_the_first_instant_after_it"
            "[America/Toronto-1919-03-30 12:00-1919-03-31 04:30]",
        ),
    ),
    Mutant(
        "a clock that is set back over midnight begins the day twice",
        PERIODS,
        "for number in (near + 1, near, near - 1))",
        "for number in (near, near - 1))",
        (
            "rules/test_periods.py::test_a_clock_that_is_set_back_over_midnight_begins_the_day_once"
            "[America/St_Johns-2006-10-29 02:30-2006-10-29 02:31-2006-10-30 03:30]",
        ),
    ),
    Mutant(
        "a month is not clamped",
        PERIODS,
        "min(_local_day(plan, anchor).day, last)",
        "min(_local_day(plan, anchor).day, 28)",
        (
            "rules/test_periods.py::test_a_month_from_the_31st_ends_on_the_last_day_of_each_and_is_never_chained",
            "rules/test_periods.py::test_a_month_is_clamped_to_the_days_it_has[2028-01-31-following0]",
        ),
    ),
    Mutant(
        "a reset by staff begins a grid period early",
        PERIODS,
        "begin = max(state.resets_at if due else state.last_reset_date, boundary)",
        "begin = boundary",
        ("rules/test_plans.py::test_a_reset_by_staff_leaves_a_grid_period_that_a_change_of_plan_began",),
    ),
    Mutant(
        "a new period keeps the first refusal of the last one",
        VERBS,
        '"period_seq": state.seq + 1,\n        "refused_at": None,',
        '"period_seq": state.seq + 1,',
        ("rules/test_verbs.py::test_a_new_period_may_have_a_first_refusal_of_its_own",),
    ),
    Mutant(
        "time goes backwards",
        VALUES,
        "return max(self.clock, self.state.updated_at) if self.state else self.clock",
        "return self.clock",
        ("rules/test_verbs.py::test_time_never_falls_as_the_ledger_grows",),
    ),
    Mutant(
        "the last unit cannot be spent",
        VERBS,
        "if cost <= left:",
        "if cost < left:",
        ("rules/test_verbs.py::test_what_is_there_can_be_spent[1-1-0]",),
    ),
    Mutant(
        "a refusal holds its key",
        VERBS,
        'unkeyed = request._replace(idempotency_key=None, fingerprint="")',
        "unkeyed = request",
        ("rules/test_verbs.py::test_a_refusal_holds_no_key",),
    ),
    Mutant(
        "a key serves any request",
        VERBS,
        "if entry.fingerprint != request.fingerprint:",
        "if entry is None:",
        (
            "rules/test_verbs.py::test_a_key_that_served_another_request_is_refused",
            "rules/test_refunds.py::test_a_key_of_another_refund_is_refused",
        ),
    ),
    Mutant(
        "a tombstone answers",
        VERBS,
        "        return Deleted()\n    if (entry",
        "        pass\n    if (entry",
        ("rules/test_verbs.py::test_a_deleted_user_is_gone_for_every_verb",),
    ),
    Mutant(
        "a refund of what was spent without a limit gives units",
        VERBS,
        "counted = 0 if spend.quota_limit is None else asked",
        "counted = asked",
        ("rules/test_refunds.py::test_what_was_spent_under_no_limit_gives_no_units_back",),
    ),
    Mutant(
        "what is spent without a limit counts",
        VERBS,
        "return _append(change, request, EntryKind.CONSUMED, cost=cost)\n",
        "return _append(change, request, EntryKind.CONSUMED, cost=cost, "
        "period_consumed=change.state.period_consumed + cost)\n",
        (
            "rules/test_plans.py::test_from_unlimited_what_was_consumed_before_counts_and_what_was_spent_there_does_not"
            "[keep]",
        ),
    ),
    Mutant(
        "what staff gave is forgotten at a change of plan",
        VERBS,
        '"period_given": usage.given,',
        '"period_given": 0,',
        ("rules/test_usage.py::test_what_staff_gave_and_took_survives_a_way_round",),
    ),
    Mutant(
        "what was consumed in a period that goes on is forgotten",
        VERBS,
        '"period_consumed": usage.consumed,',
        '"period_consumed": state.period_consumed,',
        (
            "rules/test_usage.py::test_a_longer_plan_counts_what_was_consumed_since_its_period_began",
            "store/test_usage.py::test_a_short_plan_on_the_way_gives_nothing_and_the_first_period_goes_on",
        ),
    ),
    Mutant(
        "a period that was left with its plan is forgotten",
        VERBS,
        "left_until = max(known_until or end, end, state.resets_at)",
        "left_until = None",
        (
            "rules/test_usage.py::test_what_staff_gave_and_took_survives_a_way_round",
            "store/test_usage.py::test_a_short_plan_on_the_way_gives_nothing_and_the_first_period_goes_on",
        ),
    ),
    Mutant(
        "a plan that is taken again takes its newest version",
        VERBS,
        "if snapshot.usage and snapshot.usage.plan:",
        "if False:",
        (
            "store/test_usage.py::test_an_edited_plan_that_is_taken_again_goes_on_under_its_version",
            "rules/test_usage.py::test_1000_histories_never_lose_what_was_used",
        ),
    ),
    Mutant(
        "a period that was in use is counted from its first reset",
        SQL,
        "CASE WHEN kind = 'consumed' THEN last_reset_date ELSE",
        "CASE WHEN FALSE THEN last_reset_date ELSE",
        ("store/test_usage.py::test_a_month_that_was_in_use_counts_against_a_plan_of_30_days",),
    ),
    Mutant(
        "a change to a shorter plan refills the quota",
        VERBS,
        "    if end <= now:\n",
        "    if end < state.anchor_at:\n",
        ("rules/test_plans.py::test_a_period_that_the_new_plan_would_have_ended_is_counted_from_now[keep]",),
    ),
    Mutant(
        "a longer plan takes a refill by staff back",
        SQL,
        "(kind <> 'reset' OR reason <> '')",
        "kind <> 'reset'",
        ("store/test_usage.py::test_a_month_counts_the_days_before_a_refill_by_staff_bounds_it",),
    ),
    Mutant(
        "a row that the release before wrote is believed",
        STATEMENTS,
        "if not state.is_usage_known:",
        "if state.usage_seq is None:",
        ("store/test_usage.py::test_such_a_row_is_known_from_its_ledger[spent-kept once]",),
    ),
    Mutant(
        "refunds add up to more than their spend",
        VERBS,
        "    if asked > rest:\n",
        "    if asked > spend.cost:\n",
        ("rules/test_refunds.py::test_no_part_may_be_larger_than_the_rest",),
    ),
    Mutant(
        "a refund into a later period",
        VERBS,
        "if spend.seq < change.state.period_seq:",
        "if spend.seq < 0:",
        (
            "rules/test_refunds.py::test_a_spend_of_a_closed_period_is_worth_nothing[a day]",
            "rules/test_refunds.py::test_a_refund_at_the_very_end_of_the_period_comes_too_late",
        ),
    ),
    Mutant(
        "periods are distinguished by their dates",
        VERBS,
        "if spend.seq < change.state.period_seq:",
        "if spend.last_reset_date != change.state.last_reset_date:",
        (
            "rules/test_refunds.py::test_periods_are_told_apart_by_their_number_though_their_dates_are_the_same",
        ),
    ),
    Mutant(
        "prorate rounds up",
        VERBS,
        "* to_come // length",
        "* to_come // length + 1",
        (
            "rules/test_plans.py::test_prorate_moves_the_limit_by_the_difference_for_the_part_that_is_to_come[10-20-after10-20-10]",
            "rules/test_plans.py::test_a_prorated_balance_is_exact_and_in_range",
        ),
    ),
    Mutant(
        "a negative balance",
        VALUES,
        "min(max(0, limit + given - consumed), MAX_UNITS)",
        "min(limit + given - consumed, MAX_UNITS)",
        ("rules/test_plans.py::test_keep_takes_what_was_used_from_the_new_allowance[20-3-10-0]",),
    ),
    Mutant(
        "keep moves the anchor",
        VERBS,
        '{"quota_limit": target.allowance}',
        '{"quota_limit": target.allowance, "anchor_at": now}',
        (
            "rules/test_plans.py::test_the_period_goes_on[keep]",
            "rules/test_plans.py::test_the_period_goes_on[prorate]",
        ),
    ),
    Mutant(
        "a write without its guard",
        SQL,
        "WHERE user_id = %(user_id)s AND seq = %(seq_read)s\n",
        "WHERE user_id = %(user_id)s AND %(seq_read)s > 0\n",
        (
            "rules/test_model.py::test_a_spend_is_decided_anew_if_the_row_was_changed_since",
            "store/test_races.py::test_64_threads_are_granted_exactly_50[full]",
        ),
        postgres=True,
    ),
    Mutant(
        "two requests open one row",
        SQL,
        "ON CONFLICT (user_id) DO NOTHING RETURNING user_id",
        "RETURNING user_id",
        ("rules/test_model.py::test_a_row_that_was_opened_since_is_taken_as_it_is",),
        postgres=True,
    ),
    Mutant(
        "the second request to open a row overwrites it",
        SQL,
        "ON CONFLICT (user_id) DO NOTHING RETURNING user_id",
        "ON CONFLICT (user_id) DO UPDATE SET quota_remaining = excluded.quota_remaining "
        "RETURNING challenge_quotas.user_id",
        ("rules/test_model.py::test_a_row_that_was_opened_since_is_taken_as_it_is",),
        postgres=True,
    ),
    Mutant(
        "a clock that stands still in a transaction",
        SQL,
        "ELSE clock_timestamp() END",
        "ELSE now() END",
        ("rules/test_periods.py::test_the_databases_clock_goes_on_within_a_transaction",),
        postgres=True,
    ),
    Mutant(
        "the current period by the plan's newest version",
        SQL,
        "v.plan_id = q.plan_id AND v.version = q.plan_version",
        "v.plan_id = q.plan_id AND v.version = p.version",
        (
            "rules/test_plans.py::test_an_edited_plan_takes_effect_at_the_users_next_reset",
            "rules/test_model.py::test_300_verbs_do_what_the_model_does",
        ),
    ),
    Mutant(
        "another user's spend",
        SQL,
        "ON c.user_id = u.user_id AND c.id = %(argument)s",
        "ON c.id = %(argument)s",
        ("rules/test_refunds.py::test_another_users_spend_is_not_found",),
    ),
    Mutant(
        "a replay of a refunded spend does not say so",
        VERBS,
        "_replay(snapshot, entry, snapshot.entry_plan, snapshot.entry_refunded)",
        "_replay(snapshot, entry, snapshot.entry_plan, 0)",
        ("api/test_service.py::test_a_replay_of_a_refunded_spend_says_how_much_was_refunded", *SIMULATION),
    ),
    Mutant(
        "a service opens the quota of an unknown user",
        VERBS,
        "if snapshot.state is None and not request.may_open:",
        "if snapshot.state is None and not request:",
        ("api/test_user_ids.py::test_the_sentence_names_the_fix",),
    ),
    Mutant(
        "a check writes down a refusal",
        VERBS,
        "return Forecast(effective(snapshot), refusal.cost, None, refusal)",
        "return outcome",
        ("api/test_check.py::test_nothing_is_stored_whatever_it_finds",),
    ),
    Mutant(
        "a replay that is read with others does not say that it was refunded",
        STATEMENTS,
        "entry, entry_plan, FreshIds(), entry_refunded)",
        "entry, entry_plan, FreshIds(), 0)",
        (
            "store/test_batches.py::"
            "test_replays_that_are_read_together_or_alone_say_what_was_refunded_of_each",
        ),
        postgres=True,
    ),
    Mutant(
        "units cut off by the allowance can be refunded again",
        SQL,
        "COALESCE(SUM(r.cost), 0)",
        "COALESCE(SUM(r.delta), 0)",
        ("rules/test_refunds.py::test_what_a_smaller_plan_cut_off_counts_as_asked_back",),
    ),
    Mutant(
        "a tombstone keeps its e-mail",
        SQL,
        "IS NULL THEN email ELSE '' END",
        "IS NULL THEN email ELSE email END",
        ("rules/test_model.py::test_a_deletion_empties_the_email",),
    ),
    Mutant(
        "a lost reply is treated as a lost race",
        COMMIT,
        "    return was_written\n",
        "    return False\n",
        (
            "store/test_faults.py::test_a_spend_whose_reply_is_lost_is_made_once_and_answered"
            "[kept statements-full path-no key]",
            "store/test_faults.py::test_a_spend_whose_reply_is_lost_is_made_once_and_answered"
            "[kept statements-fast path-no key]",
        ),
        postgres=True,
    ),
    Mutant(
        "a write that its guard stopped is reported as done",
        STATEMENTS,
        "        return added > 0\n",
        "        return added >= 0\n",
        ("rules/test_model.py::test_a_spend_is_decided_anew_if_the_row_was_changed_since",),
        postgres=True,
    ),
    Mutant(
        "no lock after lost races",
        THREAD,
        "with _locked(step.user_id) if step.must_lock else nullcontext():",
        "with nullcontext():",
        ("rules/test_model.py::test_after_some_lost_races_the_row_is_held_from_the_read_on",),
        postgres=True,
    ),
    Mutant(
        "a key is not looked up",
        STATEMENTS,
        '{"key": key} if keyed else {}',
        '{"key": None} if keyed else {}',
        (
            "rules/test_refunds.py::test_a_key_gives_back_once",
            "rules/test_plans.py::test_a_key_changes_the_plan_once",
        ),
    ),
    Mutant(
        "a key is not looked up by a read without plans",
        STATEMENTS,
        'if key is None else {"user_id": user_id, "key": key}',
        'if key is None else {"user_id": user_id, "key": None}',
        (
            "store/test_round_trips.py::test_a_replay_takes_one[fast path]",
            "store/test_round_trips.py::test_a_replay_takes_one[full path]",
        ),
        postgres=True,
    ),
    Mutant(
        "a read with cached plans ignores the version in force",
        STATEMENTS,
        "known(state.plan, state.plan_version) if state else plan",
        "plan",
        ("store/test_loop.py::test_a_period_goes_on_by_the_version_it_began_under",),
        postgres=True,
    ),
    Mutant(
        "a version is known by its number alone",
        f"{STORE}/plan_cache.py",
        "return _plans.get((newest_id, name, version))",
        "return next((p for (_, n, v), p in _plans.items() if (n, v) == (name, version)), None)",
        ("store/test_restore.py::test_a_version_number_that_comes_again_has_its_new_rules",),
    ),
    Mutant(
        "a reset by staff leaves a row in the future",
        VERBS,
        "if state and state.last_reset_date > now:",
        "if False:",
        ("rules/test_periods.py::test_a_reset_by_staff_brings_a_period_of_the_future_back[rolling]",),
    ),
    Mutant(
        "two instances with other zone data reset twice",
        PERIODS,
        "if due and is_same and begin > boundary and end - begin <= SAME_MIDNIGHT:",
        "if False:",
        (
            "rules/test_zones.py::test_a_quota_is_reset_once_a_period_whichever_instance_is_asked[daily-20-20-0]",
        ),
    ),
    Mutant(
        "a connection lost in the event loop is not reported as lost",
        LOOP,
        "is_lost=not self.is_open or self.raw.closed",
        "is_lost=False",
        (
            "store/test_faults.py::test_a_spend_whose_reply_is_lost_is_made_once_and_answered"
            "[kept statements-fast path-no key]",
        ),
        postgres=True,
    ),
    Mutant(
        "a connection is reused within a transaction that failed",
        LOOP,
        "if session.pgconn.transaction_status != TransactionStatus.IDLE:",
        "if False:",
        ("store/test_batches.py::test_an_error_of_one_under_the_lock_is_nobody_elses",),
        postgres=True,
    ),
    Mutant(
        "a batch stores a row that has changed since it was read",
        SQL,
        "WHERE q.user_id = held.user_id AND q.seq = asked.seq_read",
        "WHERE q.user_id = held.user_id AND asked.seq_read > 0",
        ("store/test_batches.py::test_a_guard_that_is_lost_sends_only_its_own_account_on",),
        postgres=True,
    ),
    Mutant(
        "a batch stores the entries of a row whose guard was lost",
        SQL,
        "        ON e.user_id = done.user_id\n",
        "        ON true\n",
        ("store/test_batches.py::test_what_waits_is_read_once_and_written_once",),
        postgres=True,
    ),
    Mutant(
        "a batch waits for a row that somebody holds",
        SQL,
        "ORDER BY user_id FOR NO KEY UPDATE SKIP LOCKED",
        "ORDER BY user_id FOR NO KEY UPDATE",
        ("store/test_batches.py::test_a_held_row_in_a_batch_stops_none_of_the_others",),
        postgres=True,
    ),
    Mutant(
        "an attempt waits for a row that somebody holds",
        SQL,
        "condition = _WITH_TIMEOUT if waits else _UNLESS_LOCKED",
        "condition = _WITH_TIMEOUT",
        ("store/test_batches.py::test_a_single_spend_of_a_held_row_stops_nobody_else",),
        postgres=True,
    ),
    Mutant(
        "a row lock is waited for without end",
        SQL,
        "set_config('lock_timeout', '{LOCK_SECONDS}s', true)",
        "set_config('lock_timeout', '0', true)",
        (
            "store/test_batches.py::"
            "test_a_row_that_stays_held_is_given_up_in_time_and_its_key_spends_once_later",
        ),
        postgres=True,
    ),
    Mutant(
        "a key is looked up for the wrong one of a batch",
        SQL,
        "        ORDER BY u.number\n",
        "        ORDER BY u.number DESC\n",
        ("store/test_batches.py::test_keys_of_a_batch_find_their_own_entries",),
        postgres=True,
    ),
    Mutant(
        "what a locked batch stored is reported before its commit",
        f"{STORE}/batches.py",
        "lambda *result: done.append(result))",
        "Job.report)",
        ("store/test_batches.py::test_a_locked_batch_is_reported_when_it_is_committed",),
        postgres=True,
    ),
    Mutant(
        "a statement is waited for without end",
        LOOP,
        "if session.under_way > STATEMENT_SECONDS:",
        "if False:",
        ("store/test_loop.py::test_a_statement_that_takes_too_long_is_given_up_and_cancelled",),
        postgres=True,
    ),
    Mutant(
        "Clerk overrules staff",
        VERBS,
        "if is_followed or state.plan_source == PlanSource.STAFF:",
        "if is_followed:",
        ("webhooks/test_clerk_plans.py::test_what_staff_chose_is_not_moved_by_clerk",),
    ),
    Mutant(
        "an assignment of the plan that the user has resets the quota",
        VERBS,
        "        return _unchanged(snapshot, state)  # without a due reset: no user sent this request",
        "        return _bring_up_to_date(snapshot, request)",
        (
            "webhooks/test_clerk_plans.py::test_an_assignment_of_the_plan_that_they_have_already_resets_no_quota_that_is_due",
        ),
    ),
    Mutant(
        "metadata takes precedence over billing",
        SQL,
        "WHEN a.source = 'billing' AND NOT {is_default} THEN 1",
        "WHEN a.source = 'billing' AND NOT {is_default} THEN 3",
        (
            "webhooks/test_clerk_plans.py::test_the_top_source_counts_in_any_order[billing metadata staff]",
            "webhooks/test_clerk_plans.py::test_the_top_source_counts_in_any_order[metadata billing staff]",
        ),
    ),
    Mutant(
        "the free item of a sign-up takes precedence over metadata",
        SQL,
        "WHEN a.source = 'billing' AND NOT {is_default} THEN 1",
        "WHEN a.source = 'billing' THEN 1",
        (
            "webhooks/test_clerk_plans.py::test_the_free_item_of_each_sign_up_takes_no_plan_away[before-free]",
            "webhooks/test_clerk_plans.py::test_the_free_item_of_each_sign_up_takes_no_plan_away[after-free_user]",
        ),
    ),
    Mutant(
        "the key of a change of plan that changes nothing is forgotten",
        VERBS,
        "if is_same_choice and request.idempotency_key is None:",
        "if is_same_choice:",
        (
            "rules/test_plans.py::test_a_key_is_kept_even_where_nothing_changes[keep]",
            "api/test_service.py::test_a_retry_of_a_change_that_changed_nothing_does_not_undo_a_later_one",
        ),
    ),
    Mutant(
        "a serialization failure is no lost race",
        ERRORS,
        'LOST_RACE_STATES = ("40001", "40P01")',
        'LOST_RACE_STATES = ("40P01",)',
        tuple(
            "store/test_races.py::test_64_threads_are_granted_exactly_50_under_any_default_isolation"
            f"[{state}-{level}]"
            for state in ("full", "missing")
            for level in ("repeatable read", "serializable")
        ),
        postgres=True,
    ),
    Mutant(
        "the assignment that arrives last wins",
        SQL,
        "WHERE plan_assignments.updated_at < excluded.updated_at\n",
        "WHERE TRUE\n",
        (
            "webhooks/test_clerk_plans.py::test_a_late_assignment_is_not_noted_and_changes_nothing",
            "webhooks/test_clerk_plans.py::test_items_that_all_ended_leave_the_default_plan_in_any_order"
            "[ended A, active A, ended B, active B]",
        ),
    ),
    Mutant(
        "of two assignments of one instant the start counts like the end",
        SQL,
        "plan_assignments.plan <> '' OR excluded.plan = '')",
        "plan_assignments.plan <> '' OR TRUE)",
        ("webhooks/test_clerk_plans.py::test_of_two_assignments_of_one_instant_the_end_counts[order1]",),
    ),
    Mutant(
        "staff return the choice to Clerk without the row lock",
        COMMIT,
        'must_lock = query.include == "clerk" or number >=',
        "must_lock = number >=",
        (
            "webhooks/test_clerk_plans.py::test_an_assignment_that_comes_while_staff_give_the_choice_back_is_waited_for",
        ),
        postgres=True,
    ),
    Mutant(
        "our own entry is not looked up after a lost reply",
        COMMIT,
        "return (yield Write(change)) or (yield from _was_written(change))",
        "return (yield Write(change))",
        SIMULATION,
    ),
    Mutant(
        "our own entry is looked up before the write that may still be under way is repeated",
        COMMIT,
        "return (yield Write(change)) or (yield from _was_written(change))",
        "return (yield from _was_written(change)) or (yield Write(change))",
        SIMULATION,
    ),
    Mutant(
        "a change of unknown outcome is decided anew",
        COMMIT,
        "attempt.sent and (yield from _settle(attempt.sent, was_locked=attempt.must_lock))",
        "False",
        SIMULATION,
    ),
    Mutant(
        "a lost write is repeated with a new decision",
        COMMIT,
        "(yield from _settle(attempt.sent, was_locked=attempt.must_lock))",
        "(yield Attempt(user_id, query, decide, must_lock))",
        SIMULATION,
    ),
    Mutant(
        "a lost race is reported as done",
        COMMIT,
        "            is_final = False\n",
        "            is_final = True\n",
        SIMULATION,
    ),
    Mutant(
        "the error of a new connection is swallowed",
        COMMIT,
        "if not attempt.sent and number >= error.repeats:",
        "if False:",
        SIMULATION,
    ),
    Mutant(
        "a busy row is never locked",
        COMMIT,
        "or number >= UNLOCKED_TRIES",
        "or number >= MAX_TRIES",
        SIMULATION,
    ),
    Mutant(
        "staff return the choice to Clerk without the lock in memory too",
        COMMIT,
        'query.include == "clerk" or number >= UNLOCKED_TRIES',
        "number >= UNLOCKED_TRIES",
        SIMULATION,
    ),
    Mutant(
        "what was decided under the lock is written again without it",
        COMMIT,
        "if was_locked and change.snapshot.state:",
        "if False:",
        SIMULATION,
    ),
    Mutant(
        "a write that passed over a locked row is reported as done",
        STEPS,
        "        return is_stored\n",
        "        return True\n",
        SIMULATION,
    ),
    Mutant(
        "a write is sent before the attempt says what it sends",
        STEPS,
        "        self.sent = self.outcome\n        is_stored: bool = yield Write(self.sent, waits=False)\n",
        "        is_stored = yield Write(self.outcome, waits=False)\n        self.sent = self.outcome\n",
        SIMULATION,
    ),
    Mutant(
        "each attempt of a fold is decided on the row as it was read",
        FOLD,
        "            snapshot = _after(whole,",
        "            _after(whole,",
        SIMULATION,
    ),
    Mutant(
        "a key that comes twice in a fold is used twice",
        FOLD,
        "                if entry.idempotency_key:",
        "                if False:",
        SIMULATION,
    ),
    Mutant(
        "a reply without an entry does not wait for the change that it rests on",
        FOLD,
        "        if whole:\n            resting",
        "        if whole and isinstance(outcome, Change):\n            resting",
        SIMULATION,
    ),
    Mutant(
        "a quota that is only read does not wait for the change that it rests on",
        FOLD,
        "        if whole:\n            resting",
        "        if whole and getattr(outcome, 'entries', True):\n            resting",
        SIMULATION,
    ),
    Mutant(
        "an attempt of a fold sends only its own part",
        FOLD,
        "attempt.sent = whole",
        "attempt.sent = attempt.outcome if getattr(attempt.outcome, 'entries', ()) else whole",
        SIMULATION,
    ),
    Mutant(
        "a joined change is guarded by the seq that its first part leaves",
        FOLD,
        "snapshot=first.snapshot, ",
        "",
        SIMULATION,
    ),
    Mutant(
        "a joined change loses the entries of its first part",
        FOLD,
        "entries=first.entries + second.entries",
        "entries=second.entries",
        SIMULATION,
    ),
    Mutant(
        "a joined change takes its state from its first part",
        FOLD,
        "return second._replace(snapshot=first.snapshot,",
        "return first._replace(",
        SIMULATION,
    ),
    Mutant(
        "after a reset in a fold the version before it is still in force",
        FOLD,
        "        plan_in_force=change.plan_in_force,\n",
        "",
        SIMULATION,
    ),
    Mutant(
        "the choice is returned to Clerk for a row that nobody could lock",
        f"{STORE}/manager.py",
        "if plan is None:  # a missing row",
        "if False:  # a missing row",
        ("webhooks/test_clerk_plans.py::test_a_missing_row_is_opened_before_it_is_locked",),
    ),
]
