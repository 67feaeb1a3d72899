-- Plans by the month, vouchers, and what a payment provider has told. Types and syntax that SQLite and Postgres share; INTEGER, as in
-- 0002, is the row's own number in SQLite and BIGINT in Postgres.

-- The ledger knows one more kind: fees, for plans that are paid from credit. SQLite cannot change a CHECK, so the table is made anew.
CREATE TABLE entries_new (
    seq INTEGER NOT NULL PRIMARY KEY,
    account_id TEXT NOT NULL,
    key_id TEXT,
    kind TEXT NOT NULL CHECK (kind IN ('grant', 'usage', 'correction', 'fee')),
    amount_nano_usd BIGINT NOT NULL,
    request_id TEXT,
    note TEXT,
    created_at_ms BIGINT NOT NULL
);
INSERT INTO entries_new (seq, account_id, key_id, kind, amount_nano_usd, request_id, note, created_at_ms)
    SELECT seq, account_id, key_id, kind, amount_nano_usd, request_id, note, created_at_ms
    FROM ledger_entries ORDER BY seq;
DROP TABLE ledger_entries;
ALTER TABLE entries_new RENAME TO ledger_entries;
CREATE INDEX ledger_entries_credits ON ledger_entries (account_id, seq) WHERE kind <> 'usage';

-- An account's plan by the month. Of an account's subscriptions one at most has not ended; accounts.plan is what it says.
CREATE TABLE subscriptions (
    id TEXT NOT NULL PRIMARY KEY,
    account_id TEXT NOT NULL REFERENCES accounts (id),
    plan TEXT NOT NULL,
    paid_by TEXT NOT NULL CHECK (paid_by IN ('credit', 'operator', 'stripe')),
    -- Where the months are counted from, so that what began on a 31st ends on a 28th and goes on to a 31st.
    anchor_ms BIGINT NOT NULL,
    -- Which of its periods is the present one, from 1.
    period BIGINT NOT NULL,
    period_starts_ms BIGINT NOT NULL,
    period_ends_ms BIGINT NOT NULL,
    period_price_nano_usd BIGINT NOT NULL,
    renews BOOLEAN NOT NULL,
    -- From the period's end on; null is the same plan.
    next_plan TEXT,
    -- A date at which it ends in any case.
    ends_at_ms BIGINT,
    stripe_subscription TEXT,
    started_at_ms BIGINT NOT NULL,
    ended_at_ms BIGINT,
    end_reason TEXT,
    number BIGINT NOT NULL UNIQUE
);
CREATE UNIQUE INDEX subscriptions_live ON subscriptions (account_id) WHERE ended_at_ms IS NULL;
CREATE INDEX subscriptions_due ON subscriptions (period_ends_ms) WHERE ended_at_ms IS NULL;
CREATE INDEX subscriptions_by_account ON subscriptions (account_id, number);

-- Every period that began, kept for good. A period cannot be entered twice, whoever renews.
CREATE TABLE subscription_periods (
    subscription_id TEXT NOT NULL,
    period BIGINT NOT NULL,
    plan TEXT NOT NULL,
    starts_ms BIGINT NOT NULL,
    ends_ms BIGINT NOT NULL,
    -- What the plan costs for it, and the ledger entry that paid for it, where credit did.
    price_nano_usd BIGINT NOT NULL,
    seq BIGINT,
    PRIMARY KEY (subscription_id, period)
);

CREATE TABLE voucher_batches (
    id TEXT NOT NULL PRIMARY KEY,
    amount_nano_usd BIGINT NOT NULL,
    vouchers BIGINT NOT NULL,
    note TEXT,
    expires_at_ms BIGINT,
    created_at_ms BIGINT NOT NULL,
    revoked_at_ms BIGINT,
    number BIGINT NOT NULL UNIQUE
);

-- A voucher is known by its code's digest; the code is nowhere.
CREATE TABLE vouchers (
    digest TEXT NOT NULL PRIMARY KEY,
    batch_id TEXT NOT NULL REFERENCES voucher_batches (id),
    account_id TEXT,
    redeemed_at_ms BIGINT,
    seq BIGINT
);
CREATE INDEX vouchers_by_batch ON vouchers (batch_id);

-- Codes that were no voucher's, by who tried them. Kept for as long as they count.
CREATE TABLE voucher_misses (
    account_id TEXT NOT NULL,
    at_ms BIGINT NOT NULL
);
CREATE INDEX voucher_misses_by_account ON voucher_misses (account_id, at_ms);

-- Events of Stripe that had their effect; it stands in the same transaction.
CREATE TABLE stripe_events (
    id TEXT NOT NULL PRIMARY KEY,
    kind TEXT NOT NULL,
    created_at_ms BIGINT NOT NULL,
    received_at_ms BIGINT NOT NULL,
    outcome TEXT NOT NULL
);

-- What is known of a payment, in whatever order it was told. Amounts are cents and only grow; what the ledger has of them is beside.
CREATE TABLE stripe_payments (
    payment_intent TEXT NOT NULL PRIMARY KEY,
    account_id TEXT,
    paid_cents BIGINT NOT NULL,
    refunded_cents BIGINT NOT NULL,
    disputed_cents BIGINT NOT NULL,
    dispute_won BOOLEAN NOT NULL,
    granted_cents BIGINT NOT NULL,
    taken_back_cents BIGINT NOT NULL
);

-- What is known of a subscription at Stripe, in whatever order it was told.
CREATE TABLE stripe_subscriptions (
    id TEXT NOT NULL PRIMARY KEY,
    account_id TEXT,
    -- Of the paid invoice whose period ends last: the plan, its period, what was paid for it, when that was told and by which event.
    plan TEXT,
    period_starts_ms BIGINT NOT NULL,
    period_ends_ms BIGINT NOT NULL,
    price_nano_usd BIGINT NOT NULL,
    paid_told_at_ms BIGINT NOT NULL,
    paid_told_by TEXT NOT NULL,
    -- Of the latest state: the plan that the next invoice is for, whether there is one, when that was told and by which event.
    next_plan TEXT,
    renews BOOLEAN NOT NULL,
    state_told_at_ms BIGINT NOT NULL,
    state_told_by TEXT NOT NULL,
    -- Once it is, it stays so.
    deleted BOOLEAN NOT NULL
);
CREATE INDEX stripe_subscriptions_by_account ON stripe_subscriptions (account_id);
