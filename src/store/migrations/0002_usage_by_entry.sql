-- A request is known by the number of its ledger entry, so that the two meet without an index on each side, and the id of a request is
-- looked for, and kept from coming twice, in one place: usage_records.request_id. What each finished request has to be written into
-- is what settling costs.
--
-- INTEGER is 64 bits wide in SQLite, where an INTEGER PRIMARY KEY is the row's own number and takes no index besides the table. In
-- Postgres, whose INTEGER is half of that, these columns are BIGINT.

CREATE TABLE entries_new (
    seq INTEGER NOT NULL PRIMARY KEY,
    account_id TEXT NOT NULL,
    key_id TEXT,
    kind TEXT NOT NULL CHECK (kind IN ('grant', 'usage', 'correction')),
    amount_nano_usd BIGINT NOT NULL,
    request_id TEXT,
    note TEXT,
    created_at_ms BIGINT NOT NULL
);
INSERT INTO entries_new (seq, account_id, key_id, kind, amount_nano_usd, request_id, note, created_at_ms)
    SELECT seq, account_id, key_id, kind, amount_nano_usd, request_id, note, created_at_ms
    FROM ledger_entries ORDER BY seq;

CREATE TABLE usage_new (
    seq INTEGER NOT NULL PRIMARY KEY,
    request_id TEXT NOT NULL UNIQUE,
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
INSERT INTO usage_new (seq, request_id, account_id, key_id, model, provider, status, input_tokens, cache_read_tokens,
        cache_write_5m_tokens, cache_write_1h_tokens, output_tokens, reasoning_tokens, cost_nano_usd, estimated, interrupted,
        started_at_ms, first_token_ms, total_ms)
    SELECT e.seq, u.request_id, u.account_id, u.key_id, u.model, u.provider, u.status, u.input_tokens, u.cache_read_tokens,
        u.cache_write_5m_tokens, u.cache_write_1h_tokens, u.output_tokens, u.reasoning_tokens, u.cost_nano_usd, u.estimated,
        u.interrupted, u.started_at_ms, u.first_token_ms, u.total_ms
    FROM usage_records u JOIN ledger_entries e ON e.request_id = u.request_id ORDER BY e.seq;

-- Requests without an entry, which there should not be: they take numbers that no entry has, for the audit to name them.
INSERT INTO usage_new (seq, request_id, account_id, key_id, model, provider, status, input_tokens, cache_read_tokens,
        cache_write_5m_tokens, cache_write_1h_tokens, output_tokens, reasoning_tokens, cost_nano_usd, estimated, interrupted,
        started_at_ms, first_token_ms, total_ms)
    SELECT (SELECT value FROM counters WHERE name = 'ledger_seq') + ROW_NUMBER() OVER (ORDER BY u.request_id),
        u.request_id, u.account_id, u.key_id, u.model, u.provider, u.status, u.input_tokens, u.cache_read_tokens,
        u.cache_write_5m_tokens, u.cache_write_1h_tokens, u.output_tokens, u.reasoning_tokens, u.cost_nano_usd, u.estimated,
        u.interrupted, u.started_at_ms, u.first_token_ms, u.total_ms
    FROM usage_records u WHERE NOT EXISTS (SELECT 1 FROM ledger_entries e WHERE e.request_id = u.request_id);
UPDATE counters SET value = (SELECT MAX(seq) FROM usage_new)
    WHERE name = 'ledger_seq' AND value < (SELECT MAX(seq) FROM usage_new);

DROP TABLE ledger_entries;
ALTER TABLE entries_new RENAME TO ledger_entries;
DROP TABLE usage_records;
ALTER TABLE usage_new RENAME TO usage_records;

-- Of the ledger, people list grants and corrections; of usage, the latest. Requests of one moment are told apart by sorting the few
-- that there are.
CREATE INDEX ledger_entries_credits ON ledger_entries (account_id, seq) WHERE kind <> 'usage';
CREATE INDEX usage_records_by_time ON usage_records (started_at_ms);
CREATE INDEX usage_records_by_account ON usage_records (account_id, started_at_ms);
