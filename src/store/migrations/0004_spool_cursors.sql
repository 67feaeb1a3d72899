-- Up to which of a spool's batches their requests are entered, moved in the transaction that enters them. `writer` is the process that
-- wrote them, `number` its last batch that is entered, `records` how many requests those had in all.
CREATE TABLE spool_cursors (
    writer TEXT NOT NULL PRIMARY KEY,
    number BIGINT NOT NULL,
    records BIGINT NOT NULL
);

-- Batches that were left out, so that their requests are missing from the ledger: from `first` to `last`, which there should not be.
CREATE TABLE spool_gaps (
    writer TEXT NOT NULL,
    first BIGINT NOT NULL,
    last BIGINT NOT NULL,
    PRIMARY KEY (writer, first)
);
