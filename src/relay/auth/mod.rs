//! Who asks: the key's format and digest, what the store knows of a key, and the cache in front of the store.

mod key;
mod record;

pub use key::{ApiKey, KeyDigest};
pub use record::KeyRecord;
