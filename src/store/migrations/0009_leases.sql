-- Several nodes sell one account's credit: each has a part of the balance in its hands, and sells that by itself.

-- Who sells. A node is a spool and whatever process is at it. From `expires_at_ms` on anybody may take back what it has; whoever does
-- raises its epoch, by which it learns of it.
CREATE TABLE nodes (
    id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL,
    -- Of the program.
    version TEXT NOT NULL,
    epoch BIGINT NOT NULL,
    started_at_ms BIGINT NOT NULL,
    seen_at_ms BIGINT NOT NULL,
    expires_at_ms BIGINT NOT NULL,
    -- It is to get no more requests.
    draining BOOLEAN NOT NULL
);

-- What a node may still spend of an account's balance. What it has spent leaves both in the transaction that settles it. `seq` is the
-- ledger's number as of which the amount is so; up to the number `answered` the node has given back what others wanted.
CREATE TABLE leases (
    account_id TEXT NOT NULL,
    node_id TEXT NOT NULL,
    epoch BIGINT NOT NULL,
    amount_nano_usd BIGINT NOT NULL,
    seq BIGINT NOT NULL,
    answered BIGINT NOT NULL,
    PRIMARY KEY (account_id, node_id)
);
CREATE INDEX leases_by_node ON leases (node_id, seq);

-- Accounts of which a node needs more than is free: whoever has some and does not need it gives it back. Numbered as the ledger is.
CREATE TABLE lease_wants (
    account_id TEXT NOT NULL PRIMARY KEY,
    seq BIGINT NOT NULL
);
CREATE INDEX lease_wants_by_seq ON lease_wants (seq);
