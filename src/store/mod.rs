//! Accounts, keys, ledger and usage at rest.
