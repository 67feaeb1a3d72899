//! The Pingora shell: the one room that names pingora. Its phases, in the order in which they run, are in [`Relay`]; a
//! request's state is in [`exchange`], and what decides is in `relay`.
//!
//! The way through: head → key → whole body → admission → targets, one try at a time → the answer, piece by piece →
//! settlement. Whatever ends a request early leaves through the same door (`exchange`'s drop).

mod admin_api;
mod admission;
mod answer;
mod body;
mod certificates;
mod clock;
mod connections;
mod demo;
mod doors;
mod ending;
mod exchange;
mod failed_logins;
mod frames;
mod handover;
mod head;
mod idempotency;
mod in_flight;
mod keyring;
mod leases;
mod link;
mod listeners;
mod machines;
mod memory;
mod notify;
mod opening;
mod parting;
mod passing;
mod phases;
mod places;
mod recollection;
mod replay;
mod resolve;
mod server;
mod settle;
mod stage;
mod tape;
mod tries;
mod unsent;
mod upstream;
mod web;
mod wire;
mod work;

use std::sync::{Arc, Mutex};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use self::clock::Clock;
use self::connections::Connections;
use self::demo::Demo;
use self::failed_logins::FailedLogins;
use self::idempotency::Idempotency;
use self::in_flight::InFlight;
use self::keyring::Keyring;
use self::leases::Leases;
use self::memory::Memory;
use self::resolve::Resolver;
use self::stage::Stage;
use crate::admin::api::ConfigStatus;
use crate::billing::Recorder;
use crate::config::Live;
use crate::relay::dialect::gemini::SignatureMemory;
use crate::relay::route::RetryBudget;
use crate::shared::Windows;
use crate::store::Store;
use crate::telemetry::{AccessLog, Metrics, Traces};

pub use self::handover::{Upgrade, detach};
pub use self::phases::Relay;
pub use self::server::{ServeError, serve};

/// What all requests share.
pub struct Shared {
    clock: Clock,
    live: Arc<Live>,
    /// How `live` came to be what it is.
    config_status: Mutex<ConfigStatus>,
    store: Store,
    keyring: Arc<Keyring>,
    /// The credit that this node may sell, where it is one of several.
    leases: Option<Arc<Leases>>,
    /// What keys have taken at all nodes; `None` where there is one node.
    windows: Option<Arc<Windows>>,
    recorder: Recorder,
    idempotency: Idempotency,
    metrics: Arc<Metrics>,
    /// Second tries that may still be made.
    retries: RetryBudget,
    access_log: AccessLog,
    traces: Traces,
    resolver: Resolver,
    demo: Demo,
    failed_logins: FailedLogins,
    requests_in_flight: InFlight,
    connections: Arc<Connections>,
    memory: Arc<Memory>,
    /// What Gemini wants to be reminded of and clients forget.
    signatures: Arc<SignatureMemory>,
    stage: Stage,
}

impl Shared {
    #[expect(clippy::float_arithmetic, reason = "series are floats")]
    fn observe_overhead(&self, from_us: u64, to_us: u64) {
        self.metrics.overhead_seconds.observe(to_us.saturating_sub(from_us) as f64 / 1e6);
    }
}

/// Milliseconds since the Unix epoch as RFC 3339, UTC.
fn time_text(unix_ms: i64) -> String {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(unix_ms) * 1_000_000)
        .ok()
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_default()
}
