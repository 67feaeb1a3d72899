-- What Postgres has otherwise from 0008 on: usage in partitions by month. It follows 0008, in its transaction.
--
-- Requests' ids are UUIDv7, whose text begins with the time: a month's are those between two texts. So the id is the partitions' key and
-- their primary key as well, and that a request is entered once stays a constraint over all of them. The table is empty here: no store
-- in Postgres is older than this file.
DROP TABLE usage_records;
CREATE TABLE usage_records (
    seq BIGINT NOT NULL,
    request_id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    account_id TEXT COLLATE "C" NOT NULL,
    key_id TEXT COLLATE "C" NOT NULL,
    model TEXT COLLATE "C" NOT NULL,
    provider TEXT COLLATE "C" NOT NULL,
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
    total_ms BIGINT NOT NULL,
    series BIGINT NOT NULL DEFAULT 0,
    provider_cost_nano_usd BIGINT
) PARTITION BY RANGE (request_id);
CREATE INDEX usage_records_by_seq ON usage_records (seq);
CREATE INDEX usage_records_by_series ON usage_records (series, started_at_ms);
-- Of an expression, so that only those get it who ask for it. Else it would be taken for the newest requests of one series, too, and a
-- series whose few requests are old would be looked for through everybody's.
CREATE INDEX usage_records_by_time ON usage_records ((started_at_ms + 0));

-- Nothing is refused for want of a month. What comes here is moved when its month is made.
CREATE TABLE usage_records_default PARTITION OF usage_records DEFAULT;

-- Months (`2026-11`) that an operator has detached: the audit does not look for their requests.
CREATE TABLE usage_months_detached (
    month TEXT COLLATE "C" NOT NULL PRIMARY KEY CHECK (month ~ '^[0-9]{4}-(0[1-9]|1[0-2])$')
);
