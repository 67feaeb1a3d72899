-- People who sign in to the dashboard. Types and syntax that SQLite and Postgres share. Nothing that lets somebody in stands here in
-- clear: passwords are Argon2id's PHC strings, sessions and links are known by the SHA-256 digests of their tokens.

-- `email` is in lower case. `password` is null until the invitation is taken. An operator may have an account too.
CREATE TABLE users (
    id TEXT NOT NULL PRIMARY KEY,
    email TEXT NOT NULL UNIQUE,
    password TEXT,
    role TEXT NOT NULL CHECK (role IN ('customer', 'operator')),
    account_id TEXT REFERENCES accounts (id),
    active BOOLEAN NOT NULL,
    created_at_ms BIGINT NOT NULL,
    number BIGINT NOT NULL UNIQUE
);
CREATE INDEX users_by_account ON users (account_id, number);

CREATE TABLE sessions (
    digest TEXT NOT NULL PRIMARY KEY,
    user_id TEXT NOT NULL REFERENCES users (id),
    created_at_ms BIGINT NOT NULL,
    seen_at_ms BIGINT NOT NULL,
    expires_at_ms BIGINT NOT NULL
);
CREATE INDEX sessions_by_user ON sessions (user_id, created_at_ms);
CREATE INDEX sessions_by_expiry ON sessions (expires_at_ms);

-- What an operator passes on to let somebody in: good once, until `expires_at_ms`.
CREATE TABLE links (
    digest TEXT NOT NULL PRIMARY KEY,
    purpose TEXT NOT NULL CHECK (purpose IN ('invite', 'reset', 'sign_in')),
    user_id TEXT NOT NULL REFERENCES users (id),
    created_at_ms BIGINT NOT NULL,
    expires_at_ms BIGINT NOT NULL,
    used_at_ms BIGINT
);
CREATE INDEX links_by_user ON links (user_id, purpose);
CREATE INDEX links_by_expiry ON links (expires_at_ms);
