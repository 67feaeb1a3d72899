//! The TOML as written, checked into one immutable snapshot, watched and swapped whole.
