-- Who changed what. Append-only: this program adds entries, each in the transaction of the change that it tells of, and never changes
-- or deletes one. `before_change` and `after_change` are JSON objects of what changed, without secrets.
CREATE TABLE audit_entries (
    id TEXT NOT NULL PRIMARY KEY,
    at_ms BIGINT NOT NULL,
    actor_kind TEXT NOT NULL,
    actor_name TEXT,
    action TEXT NOT NULL,
    subject_kind TEXT NOT NULL,
    subject_id TEXT NOT NULL,
    before_change TEXT,
    after_change TEXT
);
CREATE INDEX audit_entries_by_time ON audit_entries (at_ms, id);
CREATE INDEX audit_entries_by_subject ON audit_entries (subject_id, at_ms, id);

-- Which movement of money an Idempotency-Key stands for, so that a repeat moves none. Kept for good, as the ledger is.
CREATE TABLE credit_keys (
    account_id TEXT NOT NULL,
    idempotency_key TEXT NOT NULL,
    seq BIGINT NOT NULL,
    PRIMARY KEY (account_id, idempotency_key)
);

-- The place of a row among all of its table: the number of the change that made it. Numbers are committed in their order, which times
-- are not, so whoever pages through the table misses nothing that is added meanwhile.
ALTER TABLE accounts ADD COLUMN number BIGINT NOT NULL DEFAULT 0;
UPDATE accounts SET number = ranked.place
    FROM (SELECT id, ROW_NUMBER() OVER (ORDER BY created_at_ms, id) AS place FROM accounts) AS ranked
    WHERE ranked.id = accounts.id;
CREATE UNIQUE INDEX accounts_by_number ON accounts (number);

ALTER TABLE api_keys ADD COLUMN number BIGINT NOT NULL DEFAULT 0;
UPDATE api_keys SET number = ranked.place
    FROM (SELECT id, ROW_NUMBER() OVER (ORDER BY created_at_ms, id) AS place FROM api_keys) AS ranked
    WHERE ranked.id = api_keys.id;
CREATE UNIQUE INDEX api_keys_by_number ON api_keys (number);
DROP INDEX api_keys_by_account;
CREATE INDEX api_keys_by_account ON api_keys (account_id, number);

-- Each row was made by a change of its own, so the counter is at least as high already; the numbers to come must be above these.
UPDATE counters SET value = (SELECT COUNT(*) FROM accounts) + (SELECT COUNT(*) FROM api_keys)
    WHERE name = 'version' AND value < (SELECT COUNT(*) FROM accounts) + (SELECT COUNT(*) FROM api_keys);
