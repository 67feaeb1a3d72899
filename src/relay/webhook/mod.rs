//! How finished requests are told to other programs over HTTP: as CloudEvents in a batch, signed in the manner of Standard
//! Webhooks. What is sent and when is billing's.

mod event;
mod signature;

pub use event::{BATCH_CONTENT_TYPE, EVENT_TYPE, encode_batch};
pub use signature::SigningKey;
