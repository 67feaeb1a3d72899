-- Types and syntax that SQLite and Postgres share. Times are Unix milliseconds, amounts nano-USD, ids and digests text.

-- Each value is advanced inside the transaction that uses it, and so is held until that transaction ends: whoever reads
-- a value sees every change numbered up to it.
CREATE TABLE counters (
    name TEXT NOT NULL PRIMARY KEY,
    value BIGINT NOT NULL
);
INSERT INTO counters (name, value) VALUES ('version', 0);
INSERT INTO counters (name, value) VALUES ('ledger_seq', 0);

CREATE TABLE accounts (
    id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL,
    plan TEXT NOT NULL,
    active BOOLEAN NOT NULL,
    balance_nano_usd BIGINT NOT NULL,
    balance_seq BIGINT NOT NULL,
    version BIGINT NOT NULL,
    created_at_ms BIGINT NOT NULL
);
CREATE INDEX accounts_by_version ON accounts (version);
CREATE INDEX accounts_by_balance_seq ON accounts (balance_seq);

CREATE TABLE api_keys (
    id TEXT NOT NULL PRIMARY KEY,
    account_id TEXT NOT NULL REFERENCES accounts (id),
    name TEXT NOT NULL,
    digest TEXT NOT NULL UNIQUE,
    requests_per_minute BIGINT,
    tokens_per_minute BIGINT,
    concurrent_requests BIGINT,
    budget_nano_usd BIGINT,
    models TEXT,
    allow_ip TEXT NOT NULL,
    expires_at_ms BIGINT,
    revoked_at_ms BIGINT,
    spent_nano_usd BIGINT NOT NULL,
    spent_seq BIGINT NOT NULL,
    version BIGINT NOT NULL,
    created_at_ms BIGINT NOT NULL
);
CREATE INDEX api_keys_by_account ON api_keys (account_id);
CREATE INDEX api_keys_by_version ON api_keys (version);
CREATE INDEX api_keys_by_spent_seq ON api_keys (spent_seq);

-- The truth about money: balances and what keys have spent are sums over it. No foreign keys here nor in usage_records: a
-- finished request is recorded whatever became of its account, and the audit names those that have none.
CREATE TABLE ledger_entries (
    seq BIGINT NOT NULL PRIMARY KEY,
    account_id TEXT NOT NULL,
    key_id TEXT,
    kind TEXT NOT NULL CHECK (kind IN ('grant', 'usage', 'correction')),
    amount_nano_usd BIGINT NOT NULL,
    request_id TEXT UNIQUE,
    note TEXT,
    created_at_ms BIGINT NOT NULL
);
CREATE INDEX ledger_entries_by_account ON ledger_entries (account_id, seq);

CREATE TABLE usage_records (
    request_id TEXT NOT NULL PRIMARY KEY,
    account_id TEXT NOT NULL,
    key_id TEXT NOT NULL,
    model TEXT NOT NULL,
    provider TEXT NOT NULL,
    status BIGINT NOT NULL,
    input_tokens BIGINT NOT NULL,
    cache_read_tokens BIGINT NOT NULL,
    cache_write_5m_tokens BIGINT NOT NULL,
    cache_write_1h_tokens BIGINT NOT NULL,
    output_tokens BIGINT NOT NULL,
    reasoning_tokens BIGINT NOT NULL,
    cost_nano_usd BIGINT NOT NULL,
    estimated BOOLEAN NOT NULL,
    interrupted BOOLEAN NOT NULL,
    started_at_ms BIGINT NOT NULL,
    first_token_ms BIGINT,
    total_ms BIGINT NOT NULL
);
CREATE INDEX usage_records_by_time ON usage_records (started_at_ms, request_id);
CREATE INDEX usage_records_by_account ON usage_records (account_id, started_at_ms, request_id);
