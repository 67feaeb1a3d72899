//! Who asks: the key's format and digest, and that of vouchers, what the store knows of a key, and the cache in front of the store.

mod cache;
mod key;
mod record;
mod registry;
mod voucher;

pub use cache::{FOUND_KEYS_MAX, KeyCache, KeyCacheCounts, KeyEntry, UNKNOWN_KEYS_MAX};
pub use key::{ApiKey, KeyDigest};
pub use record::KeyRecord;
pub use registry::Amount;
pub use voucher::VoucherCode;
