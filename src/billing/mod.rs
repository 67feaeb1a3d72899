//! From a finished request to a ledger entry: recorder, spool, sinks.
