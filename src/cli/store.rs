//! Opens the store that the configuration names, for commands that work on it.
