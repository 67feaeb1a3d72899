//! Server-sent events: the zero-copy parser and the writer.
