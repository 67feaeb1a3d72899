//! Server-sent events as the HTML standard frames them, read without a copy where an event arrives whole.
//!
//! [`SseParser`] cuts a stream of chunks into [`Piece`]s that together are the stream, byte for byte, so that a reader can
//! forward, change or drop each event as it was sent. What an event means is the dialects' business.
//!
//! Deliberately absent: reconnection, `id` and `retry`. They are for clients that come back; no provider's stream can be
//! resumed.

mod block;
mod parser;

pub use block::Event;
pub use parser::{EVENT_BYTES_MAX, Piece, Place, SseParser};
