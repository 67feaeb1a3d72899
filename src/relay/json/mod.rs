//! A scanner over JSON text: where values begin and end, without building them.
//!
//! [`Cursor`] walks a text that is whole, strictly by RFC 8259, and lends what it finds. [`Follower`] watches a text that
//! arrives in pieces and keeps only the few members it was told to look for. Neither recurses and neither allocates for
//! what it passes over, so their memory does not depend on the input.
//!
//! Deliberately absent: a tree of values (`serde_json::Value` serves where a small body is read once and speed is nothing),
//! and numbers as anything but their text.

mod cursor;
mod fault;
mod follower;
mod text;

pub use cursor::{Cursor, Items, Kind, Members};
pub use fault::{Expected, Fault, What};
pub use follower::{CAPTURE_BYTES_MAX, Follower, Interest, Watch};
pub use text::{RawStr, write_string};

/// The deepest nesting that is followed. OpenAI's deepest real documents, JSON schemas, stay under a tenth of it.
pub const DEPTH_MAX: usize = 128;
