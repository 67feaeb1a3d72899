//! The listeners for machines: health and readiness, and the metrics page.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use http::Response;
use pingora::apps::http_app::ServeHttp;
use pingora::protocols::http::ServerSession;

use super::{Shared, time_text};
use crate::admin::{self, Behind, Now, Question, Readiness, Reply};
use crate::billing::SinkState;
use crate::relay::refusal::{Cause, Refusal};
use crate::relay::route::{ProviderHealth, Standing};
use crate::telemetry::{Observed, ObservedProvider, ObservedSink};

/// `listen.admin`.
pub(super) struct AdminListener(pub(super) Arc<Shared>);

/// `listen.metrics`.
pub(super) struct MetricsListener(pub(super) Arc<Shared>);

#[async_trait]
impl ServeHttp for AdminListener {
    async fn response(&self, session: &mut ServerSession) -> Response<Vec<u8>> {
        let readiness = Readiness {
            store_reachable: self.0.keyring.is_store_reachable(),
            config_mistakes: self
                .0
                .live
                .refused()
                .iter()
                .flat_map(|mistakes| mistakes.iter())
                .map(ToString::to_string)
                .collect(),
            billing_open: self.0.recorder.is_open(),
            billing_failed: self.0.recorder.state().failed(),
            billing_behind: self.0.billing_behind(),
            draining: self.0.stage.is_leaving(),
        };
        let path = session.req_header().uri.path();
        if path == "/admin/v1/providers" {
            let reply = self.providers(session);
            return page(reply.status, "application/json", reply.body.into_bytes());
        }
        match admin::answer(path, &readiness) {
            Some(reply) => page(reply.status, "application/json", reply.body.into_bytes()),
            None => refusal(&Refusal::new(Cause::UnknownUrl, "There is nothing here; /healthz and /readyz are.")),
        }
    }
}

impl AdminListener {
    fn providers(&self, session: &ServerSession) -> Reply {
        let head = session.req_header();
        let authorization = head.headers.get(http::header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let question = Question { method: head.method.as_str(), authorization };
        let snapshot = self.0.live.load();
        let (us, unix_ms) = (self.0.clock.now_us(), self.0.clock.unix_ms());
        let wall = |at_us: u64| {
            let from_now_ms = i64::try_from(at_us.saturating_sub(us) / 1000).unwrap_or(i64::MAX);
            time_text(unix_ms.saturating_add(from_now_ms))
        };
        admin::providers(&question, snapshot.admin_token.as_ref(), &snapshot.catalogue, &Now { us, wall: &wall })
    }
}

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
            spans: self.traces.counts(),
            providers: self.observed_providers(),
        }
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
    /// Who keeps the spool full, and why nothing is sold.
    fn billing_behind(&self) -> Vec<Behind> {
        let billing = self.recorder.state();
        if !billing.spool_full() {
            return Vec::new();
        }
        let seconds = |oldest_ms: Option<i64>| oldest_ms.map_or(0, |at| self.seconds_since(at));
        let behind = billing.behind().into_iter();
        behind.map(|(sink, records, oldest)| Behind { sink: sink.into(), records, seconds: seconds(oldest) }).collect()
    }

    fn seconds_since(&self, unix_ms: i64) -> u64 {
        u64::try_from(self.clock.unix_ms().saturating_sub(unix_ms) / 1000).unwrap_or(0)
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
