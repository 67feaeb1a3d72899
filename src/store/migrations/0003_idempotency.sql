-- What requests with an Idempotency-Key became. Types and syntax that SQLite and Postgres share; BYTEA, which SQLite has no type for,
-- holds bytes there as they are.
--
-- Digests are keyed and the answer is encrypted, both by what only the client has: its key and its request's body.

CREATE TABLE idempotency_keys (
    account_id TEXT NOT NULL,
    key_digest TEXT NOT NULL,
    body_digest TEXT NOT NULL,
    -- Whose claim it is, or was.
    request_id TEXT NOT NULL,
    -- 'too_large' and 'dropped' were answered, and their answers are not here.
    state TEXT NOT NULL CHECK (state IN ('running', 'answered', 'too_large', 'dropped')),
    -- Of a running request: from then on it counts as dead.
    claimed_until_ms BIGINT NOT NULL,
    created_at_ms BIGINT NOT NULL,
    status BIGINT,
    content_type TEXT,
    answer_bytes BIGINT NOT NULL,
    -- The last column, so that the others are read without it.
    answer BYTEA,
    PRIMARY KEY (account_id, key_digest)
);
CREATE INDEX idempotency_keys_by_time ON idempotency_keys (created_at_ms);
CREATE INDEX idempotency_keys_running ON idempotency_keys (request_id) WHERE state = 'running';
CREATE INDEX idempotency_keys_answered ON idempotency_keys (account_id, created_at_ms) WHERE state = 'answered';

-- How many bytes of answers are kept for an account: the sum of its rows' answer_bytes, which may be too many to add up each time.
CREATE TABLE idempotency_kept (
    account_id TEXT NOT NULL PRIMARY KEY,
    answer_bytes BIGINT NOT NULL
);
