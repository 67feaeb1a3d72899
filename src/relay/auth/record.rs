//! A key as the store knows it.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::KeyDigest;
use crate::relay::meter::NanoUsd;

/// A key, with what is needed of its account. One row of a look-up; money is as of the look-up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRecord {
    /// The key's id; not the key.
    pub key_id: Arc<str>,
    /// Its account.
    pub account_id: Arc<str>,
    /// The digest under which it is cached.
    pub digest: KeyDigest,
    /// The account's plan, by name.
    pub plan: Box<str>,
    /// Neither the key is revoked nor its account suspended.
    pub active: bool,
    /// Milliseconds since the Unix epoch after which it is no longer good.
    pub expires_at_ms: Option<i64>,
    /// Whether its own limits are at most the plan's, whichever plan that is.
    pub within_plan: bool,
    /// The key's own limit; the plan's where `None`.
    pub requests_per_minute: Option<u32>,
    /// The key's own limit; the plan's where `None`.
    pub tokens_per_minute: Option<u64>,
    /// The key's own limit; the plan's where `None`.
    pub concurrent_requests: Option<u32>,
    /// What the key may spend in all.
    pub budget: Option<NanoUsd>,
    /// The ids that it may use; the plan's where `None`.
    pub models: Option<Vec<Box<str>>>,
    /// The networks that it may be used from; any where empty.
    pub allow_ip: Vec<IpNet>,
    /// The account's balance.
    pub balance: NanoUsd,
    /// The ledger's sequence number that `balance` includes.
    pub balance_seq: i64,
    /// What the key has spent in all.
    pub spent: NanoUsd,
    /// The ledger's sequence number that `spent` includes.
    pub spent_seq: i64,
}

impl KeyRecord {
    /// Whether the key is good at that time.
    pub fn is_good_at(&self, unix_ms: i64) -> bool {
        self.active && self.expires_at_ms.is_none_or(|expires| unix_ms < expires)
    }

    /// Whether it may be used from that address.
    pub fn allows_ip(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.allow_ip.is_empty() || self.allow_ip.iter().any(|network| network.contains(&address))
    }
}

#[cfg(test)]
impl KeyRecord {
    /// A key with no limits of its own and a balance of a dollar.
    pub(crate) fn for_tests() -> Self {
        Self {
            key_id: "key_1".into(),
            account_id: "acct_1".into(),
            digest: KeyDigest([7; 32]),
            plan: "free".into(),
            active: true,
            expires_at_ms: None,
            within_plan: false,
            requests_per_minute: None,
            tokens_per_minute: None,
            concurrent_requests: None,
            budget: None,
            models: None,
            allow_ip: Vec::new(),
            balance: NanoUsd(1_000_000_000),
            balance_seq: 1,
            spent: NanoUsd(0),
            spent_seq: 0,
        }
    }
}
