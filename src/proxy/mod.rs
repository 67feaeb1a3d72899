//! The Pingora shell.
