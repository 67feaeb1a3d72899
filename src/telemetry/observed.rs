//! What the process says of itself when its metrics are asked for.

use super::SpanCounts;

/// What is counted elsewhere and read at each scrape. All are totals since the start but for what is told of now.
#[derive(Debug, Default, Clone)]
pub struct Observed {
    /// The node's leases, where it is one of several.
    pub leases: Option<ObservedLeases>,
    /// Requests that hold what they may come to cost, now.
    pub holds_active: i64,
    /// How much they hold, now.
    pub held_nano_usd: i64,
    /// Requests under way, now.
    pub requests_in_flight: u64,
    /// Connections of the client API, now.
    pub connections_open: u64,
    /// Those that the relay had to close, by reason.
    pub connections_closed: Vec<(&'static str, u64)>,
    /// What is used of the memory, at the last look.
    pub memory_used_bytes: u64,
    /// What of it may be used.
    pub memory_limit_bytes: u64,
    /// Look-ups that the cache answered.
    pub key_cache_hits: u64,
    /// Look-ups of keys that the cache knew not to exist.
    pub key_cache_unknown_hits: u64,
    /// Look-ups that went to the store.
    pub key_cache_misses: u64,
    /// Records that the ledger took.
    pub delivered: u64,
    /// Deliveries that failed and will be repeated.
    pub delivery_failures: u64,
    /// Records that wait for the ledger.
    pub spool_events: u64,
    /// How long the oldest of them has waited.
    pub spool_oldest_seconds: u64,
    /// The sinks besides the ledger.
    pub sinks: Vec<ObservedSink>,
    /// Running requests that have a row in the spool.
    pub spool_open_requests: u64,
    /// What the spool takes, what running requests may still write included.
    pub spool_bytes: u64,
    /// What the spool may take.
    pub spool_bytes_max: u64,
    /// Whether the configuration on the disk is refused.
    pub config_refused: bool,
    /// Lines of the access log that found no place.
    pub access_lines_dropped: u64,
    /// The windows that nodes share, where they do.
    pub shared_windows: Option<ObservedWindows>,
    /// What has become of traces' spans.
    pub spans: SpanCounts,
    /// The providers of the configuration in force.
    pub providers: Vec<ObservedProvider>,
}

/// The windows that nodes share.
#[derive(Debug, Default, Clone, Copy)]
pub struct ObservedWindows {
    /// Whether the node keeps keys to its own share of their limits.
    pub degraded: bool,
    /// How many nodes there are.
    pub nodes: u32,
    /// Requests that Redis decided.
    pub by_redis: u64,
    /// Requests that the node decided by itself.
    pub by_node: u64,
}

/// A provider.
#[derive(Debug, Default, Clone)]
pub struct ObservedProvider {
    /// Its name.
    pub name: Box<str>,
    /// Whether a request would be sent to it now.
    pub healthy: bool,
    /// How many of its models, with each of its credentials, are in which state.
    pub breakers: [(&'static str, u64); 5],
}

/// What a node leases of accounts' credit.
#[derive(Debug, Default, Clone)]
pub struct ObservedLeases {
    /// How much, now.
    pub leased_nano_usd: i64,
    /// How often leases were to be made larger, and what became of it.
    pub takes: [(&'static str, u64); 3],
    /// How often something was given back.
    pub returns: u64,
    /// How many requests had to wait.
    pub waits: u64,
    /// Rises when they are taken back.
    pub epoch: i64,
    /// Until they end, if they are not renewed.
    pub seconds_left: u64,
}

/// A sink besides the ledger.
#[derive(Debug, Default, Clone)]
pub struct ObservedSink {
    /// Its name.
    pub name: Box<str>,
    /// Records that it took.
    pub delivered: u64,
    /// Deliveries that failed and will be repeated.
    pub failures: u64,
    /// Deliveries that it refused.
    pub refusals: u64,
    /// Records that it refuses.
    pub parked: u64,
    /// Records that wait for it.
    pub lag_events: u64,
    /// How long the oldest of them has waited.
    pub oldest_seconds: u64,
}
