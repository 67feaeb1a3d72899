//! What several nodes have in common besides the store: the windows of their keys, in Redis or Valkey.
//!
//! ```text
//! request ──► Windows::admit ──► one script, 20 ms at most ──► admitted, or refused
//!                    │ slow, or not there
//!                    └─────────► the node's own windows, for its share of the limits
//! Slot (held while it runs) ──drop──► Trail ──► keeper ──► Redis
//! ```
//!
//! What a node admits it remembers for a minute (`trail`), whoever decided. So Redis learns later what it has missed, and anew what
//! it has lost: a minute's limit is not sold twice. One task (`keeper`) tells it, keeps the connection, and looks whether Redis is fast
//! enough to be asked.
//!
//! A slot of the concurrency expires unless its node renews it, which it does for many at once every few seconds. The other way, slots
//! that count only while a heartbeat of their node lives, would have the script read a key that is not of the API key's hash tag, which
//! Redis Cluster does not allow; and it would not bring back the slots of a Redis that has lost its memory, as renewals do.
//!
//! Besides, nodes keep small things for each other (`keepsakes`), which no request waits for longer than for its windows.
//!
//! Deliberately absent: the rules themselves, which are `relay::admit`'s and the scripts'; credit and keys, which are the store's; and
//! Redis Cluster's redirections: a cluster is reached through a proxy, or not at all.

mod breaker;
mod keeper;
mod keepsakes;
mod link;
mod script;
mod trail;
mod windows;

use crate::relay::auth::KeyDigest;

pub use keeper::Keeper;
pub use link::{Place, PlaceError};
pub use windows::{Observed, Slot, Verdict, Windows};

/// What a key is called in Redis: half of its digest, by which nobody can log in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Tag([u8; 16]);

impl Tag {
    fn of(digest: &KeyDigest) -> Self {
        let mut tag = [0; 16];
        tag.copy_from_slice(&digest.0[..16]);
        Self(tag)
    }

    /// The key in Redis that holds that part of it.
    fn key(self, part: char) -> String {
        let digits = u128::from_be_bytes(self.0);
        format!("tollgate:{{{digits:032x}}}:{part}")
    }
}

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
