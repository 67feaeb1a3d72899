//! The listener of the metrics page, and what is seen there.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use http::Response;
use pingora::apps::http_app::ServeHttp;
use pingora::protocols::http::ServerSession;

use super::Shared;
use super::leases::LeaseState;
use crate::billing::SinkState;
use crate::relay::refusal::{Cause, Refusal};
use crate::relay::route::{ProviderHealth, Standing};
use crate::telemetry::{Observed, ObservedLeases, ObservedProvider, ObservedSink, ObservedWindows};

/// `listen.metrics`.
pub(super) struct MetricsListener(pub(super) Arc<Shared>);

#[async_trait]
impl ServeHttp for MetricsListener {
    async fn response(&self, session: &mut ServerSession) -> Response<Vec<u8>> {
        if session.req_header().uri.path() != "/metrics" {
            return refusal(&Refusal::new(Cause::UnknownUrl, "There is nothing here; /metrics is."));
        }
        match self.0.metrics.render(&self.0.observed()) {
            Ok(body) => page(200, "text/plain; version=0.0.4; charset=utf-8", body),
            Err(error) => {
                tracing::error!(%error, "the metrics could not be rendered");
                refusal(&Refusal::new(Cause::InternalError, "The metrics could not be rendered."))
            }
        }
    }
}

impl Shared {
    fn observed(&self) -> Observed {
        let keys = self.keyring.counts();
        let billing = self.recorder.state();
        let holds = self.keyring.holds();
        let read = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed);
        Observed {
            leases: self.leases.as_ref().map(|leases| observed_leases(&leases.state())),
            holds_active: holds.active(),
            held_nano_usd: holds.held().0,
            requests_in_flight: self.requests_in_flight.count() as u64,
            connections_open: self.connections.open(),
            connections_closed: self.connections.counts().collect(),
            memory_used_bytes: self.memory.used_bytes(),
            memory_limit_bytes: self.memory.limit_bytes(),
            key_cache_hits: read(&keys.hits),
            key_cache_unknown_hits: read(&keys.unknown_hits),
            key_cache_misses: read(&keys.misses),
            delivered: billing.delivered(),
            delivery_failures: billing.deliveries_failed(),
            spool_events: billing.spooled(),
            spool_oldest_seconds: billing.oldest_ms().map_or(0, |at| self.seconds_since(at)),
            sinks: billing.sinks().iter().map(|sink| self.observed_sink(sink)).collect(),
            spool_open_requests: billing.open_rows(),
            spool_bytes: billing.bytes_used().saturating_add(billing.bytes_reserved()),
            spool_bytes_max: billing.bytes_limit(),
            access_lines_dropped: self.access_log.dropped(),
            config_refused: self.live.refused().is_some(),
            shared_windows: self.observed_windows(),
            spans: self.traces.counts(),
            providers: self.observed_providers(),
        }
    }

    fn observed_windows(&self) -> Option<ObservedWindows> {
        let windows = self.windows.as_ref()?.observed();
        Some(ObservedWindows {
            degraded: windows.degraded,
            nodes: windows.nodes,
            by_redis: windows.decided_there,
            by_node: windows.decided_here,
        })
    }

    fn observed_providers(&self) -> Vec<ObservedProvider> {
        let (snapshot, now_us) = (self.live.load(), self.clock.now_us());
        let catalogue = &snapshot.catalogue;
        let observe = |health: &ProviderHealth, name: &str| {
            let standings: Vec<&str> = health.conditions(now_us).map(|standing| standing.name(now_us)).collect();
            let count = |state| standings.iter().filter(|other| **other == state).count() as u64;
            ObservedProvider {
                name: name.into(),
                healthy: health.is_healthy(now_us),
                breakers: Standing::NAMES.map(|state| (state, count(state))),
            }
        };
        let providers = catalogue.providers().iter();
        providers
            .filter_map(|provider| Some(observe(catalogue.health().provider(&provider.name)?, &provider.name)))
            .collect()
    }

    fn observed_sink(&self, sink: &SinkState) -> ObservedSink {
        ObservedSink {
            name: sink.name().into(),
            delivered: sink.delivered(),
            failures: sink.failed(),
            refusals: sink.refused(),
            parked: sink.parked(),
            lag_events: sink.waiting(),
            oldest_seconds: sink.oldest_ms().map_or(0, |at| self.seconds_since(at)),
        }
    }
}

impl Shared {
    pub(super) fn seconds_since(&self, unix_ms: i64) -> u64 {
        u64::try_from(self.clock.unix_ms().saturating_sub(unix_ms) / 1000).unwrap_or(0)
    }
}

fn observed_leases(state: &LeaseState) -> ObservedLeases {
    let counts = state.counts;
    ObservedLeases {
        leased_nano_usd: state.leased.0,
        takes: [("granted", counts.takes), ("short", counts.short), ("failed", counts.failed)],
        returns: counts.returns,
        waits: counts.waits,
        epoch: state.epoch,
        seconds_left: state.seconds_left,
    }
}

fn refusal(refusal: &Refusal) -> Response<Vec<u8>> {
    page(refusal.cause.status(), "application/json", refusal.to_json())
}

fn page(status: u16, kind: &'static str, body: Vec<u8>) -> Response<Vec<u8>> {
    let length = body.len();
    let mut page = Response::new(body);
    *page.status_mut() = http::StatusCode::from_u16(status).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
    page.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
    page.headers_mut().insert(http::header::CONTENT_LENGTH, http::HeaderValue::from(length));
    page
}
