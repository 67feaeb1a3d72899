//! The format of API keys: `tg_live_`, 30 base62 characters of entropy, 6 base62 characters of their CRC-32.

use std::fmt;

/// SHA-256 of a key: what is stored and looked up. A key has 178 bits of entropy, so a plain digest cannot be searched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyDigest(pub [u8; 32]);

/// A key whose form and checksum are right; whether it exists is the store's to say.
pub struct ApiKey(String);

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(…)")
    }
}
