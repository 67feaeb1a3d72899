//! The series of `/metrics`.

use prometheus::core::Collector;
use prometheus::{
    Counter, CounterVec, Encoder, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

use super::SpanCounts;
use super::observed::{Observed, ObservedLeases, ObservedSink};
use crate::relay::meter::UsageRecord;
use crate::relay::refusal::Cause;

/// Every series of the relay. Labels are names of the configuration, statuses and codes; nothing that a client chooses.
pub struct Metrics {
    registry: Registry,
    /// `tollgate_requests_total{model,provider,status}`
    pub requests: IntCounterVec,
    /// `tollgate_request_seconds`: of admitted requests.
    pub request_seconds: Histogram,
    /// `tollgate_first_token_seconds`
    pub first_token_seconds: Histogram,
    /// `tollgate_overhead_seconds`: from the body's last byte to the request's admission.
    pub overhead_seconds: Histogram,
    /// `tollgate_shared_windows_seconds`: what requests wait for Redis.
    pub shared_windows_seconds: Histogram,
    /// `tollgate_shared_windows_decisions_total{source}`
    shared_windows_decisions: IntCounterVec,
    /// `tollgate_shared_windows_degraded`: 1 while the node keeps keys to its own share of their limits.
    shared_windows_degraded: IntGauge,
    /// `tollgate_shared_windows_nodes`: how many there are, as far as the node knows.
    shared_windows_nodes: IntGauge,
    /// `tollgate_tokens_total{model,class}`
    pub tokens: IntCounterVec,
    /// `tollgate_cost_usd_total{model}`
    pub cost_usd: CounterVec,
    /// `tollgate_refusals_total{code}`
    pub refusals: IntCounterVec,
    /// `tollgate_requests_in_flight`
    requests_in_flight: IntGauge,
    /// `tollgate_connections_open`: of the client API.
    connections_open: IntGauge,
    /// `tollgate_connections_closed_total{reason}`: those that the relay had to close.
    connections_closed: IntCounterVec,
    /// `tollgate_memory_used_bytes`
    memory_used_bytes: IntGauge,
    /// `tollgate_memory_limit_bytes`: past it new requests are refused.
    memory_limit_bytes: IntGauge,
    /// `tollgate_streams_active`
    pub streams_active: IntGauge,
    /// `tollgate_holds_active`: requests that hold what they may come to cost.
    pub holds_active: IntGauge,
    /// `tollgate_held_nano_usd`: how much they hold.
    pub held: IntGauge,
    /// `tollgate_leased_nano_usd`: of all accounts.
    leased: IntGauge,
    /// `tollgate_lease_takes_total{outcome}`: times that accounts' leases were to be made larger.
    lease_takes: IntCounterVec,
    /// `tollgate_lease_returns_total`
    lease_returns: IntCounter,
    /// `tollgate_lease_waits_total`: requests that had to wait for credit.
    lease_waits: IntCounter,
    /// `tollgate_lease_seconds_left`: until leases end that are not renewed.
    lease_seconds_left: IntGauge,
    /// `tollgate_node_epoch`: rises when the node's leases are taken back.
    node_epoch: IntGauge,
    /// `tollgate_upstream_attempts_total{provider,outcome}`
    pub upstream_attempts: IntCounterVec,
    /// `tollgate_upstream_retries_total{outcome}`: second tries that were made, and those that the budget did not allow.
    pub upstream_retries: IntCounterVec,
    /// `tollgate_upstream_healthy{provider}`: whether a request would be sent to it now, for any of its models.
    upstream_healthy: IntGaugeVec,
    /// `tollgate_upstream_breakers{provider,state}`: the states of its models with each of its credentials.
    upstream_breakers: IntGaugeVec,
    /// `tollgate_key_cache_total{outcome}`
    pub key_cache: IntCounterVec,
    /// `tollgate_spool_events`
    pub spool_events: IntGauge,
    /// `tollgate_spool_oldest_seconds`
    pub spool_oldest_seconds: IntGauge,
    /// `tollgate_spool_open_requests`
    pub spool_open_requests: IntGauge,
    /// `tollgate_spool_bytes`
    pub spool_bytes: IntGauge,
    /// `tollgate_spool_bytes_max`
    pub spool_bytes_max: IntGauge,
    /// `tollgate_sink_delivered_total{sink,outcome}`: records that went through, and deliveries that did not.
    pub sink_delivered: IntCounterVec,
    /// `tollgate_sink_parked{sink}`
    pub sink_parked: IntGaugeVec,
    /// `tollgate_sink_lag_events{sink}`
    pub sink_lag_events: IntGaugeVec,
    /// `tollgate_sink_oldest_seconds{sink}`
    pub sink_oldest_seconds: IntGaugeVec,
    /// `tollgate_ledger_drift_nano_usd`: what the last audit found.
    pub ledger_drift: IntGauge,
    /// `tollgate_config_reloads_total{outcome}`
    pub config_reloads: IntCounterVec,
    /// `tollgate_config_refused`: 1 while the files on the disk are refused and the configuration before them is in force.
    config_refused: IntGauge,
    /// `tollgate_access_lines_dropped_total`
    pub access_lines_dropped: IntCounter,
    /// `tollgate_trace_spans_total{outcome}`: spans that the receiver has, and those that it will not have.
    trace_spans: IntCounterVec,
}

/// From the relay's own share to a long reasoning answer.
const SECONDS_BUCKETS: &[f64] =
    &[0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0];
const OVERHEAD_BUCKETS: &[f64] = &[0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.05, 0.25, 1.0];
/// From a script on the same machine to the longest that anybody waits.
const SHARED_BUCKETS: &[f64] =
    &[0.000_1, 0.000_25, 0.000_5, 0.001, 0.002, 0.003, 0.005, 0.01, 0.015, 0.02, 0.025, 0.05, 0.1];

impl Metrics {
    /// Registers every series.
    ///
    /// # Errors
    /// A series is registered twice or misnamed.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let r = &registry;
        let metrics = Self {
            requests: counters(r, "requests_total", "Requests, by what answered.", &["model", "provider", "status"])?,
            request_seconds: histogram(
                r,
                "request_seconds",
                "Admitted requests, from arrival to the end.",
                SECONDS_BUCKETS,
            )?,
            first_token_seconds: histogram(
                r,
                "first_token_seconds",
                "From arrival to the first token.",
                SECONDS_BUCKETS,
            )?,
            overhead_seconds: histogram(
                r,
                "overhead_seconds",
                "From a body's last byte to its request's admission.",
                OVERHEAD_BUCKETS,
            )?,
            shared_windows_seconds: histogram(
                r,
                "shared_windows_seconds",
                "What requests wait for Redis.",
                SHARED_BUCKETS,
            )?,
            shared_windows_decisions: counters(
                r,
                "shared_windows_decisions_total",
                "Admissions, by who decided.",
                &["source"],
            )?,
            shared_windows_degraded: gauge(
                r,
                "shared_windows_degraded",
                "Whether keys are kept to this node's share.",
            )?,
            shared_windows_nodes: gauge(r, "shared_windows_nodes", "Nodes that share windows, as far as is known.")?,
            tokens: counters(r, "tokens_total", "Tokens, by class.", &["model", "class"])?,
            cost_usd: register(
                r,
                CounterVec::new(Opts::new("tollgate_cost_usd_total", "What was billed."), &["model"])?,
            )?,
            refusals: counters(r, "refusals_total", "Refused and failed requests, by error code.", &["code"])?,
            requests_in_flight: gauge(r, "requests_in_flight", "Requests under way.")?,
            connections_open: gauge(r, "connections_open", "Connections of the client API.")?,
            connections_closed: counters(
                r,
                "connections_closed_total",
                "Connections that the relay had to close.",
                &["reason"],
            )?,
            memory_used_bytes: gauge(r, "memory_used_bytes", "What the process or its control group uses.")?,
            memory_limit_bytes: gauge(r, "memory_limit_bytes", "Past it new requests are refused.")?,
            streams_active: gauge(r, "streams_active", "Streamed answers under way.")?,
            holds_active: gauge(r, "holds_active", "Requests that hold what they may come to cost.")?,
            held: gauge(r, "held_nano_usd", "What running requests hold of their accounts.")?,
            leased: gauge(r, "leased_nano_usd", "What this node may still spend of accounts' credit.")?,
            lease_takes: counters(r, "lease_takes_total", "Times that more credit was asked for.", &["outcome"])?,
            lease_returns: counter(r, "lease_returns_total", "Times that credit was given back.")?,
            lease_waits: counter(r, "lease_waits_total", "Requests that had to wait for credit.")?,
            lease_seconds_left: gauge(r, "lease_seconds_left", "Until leases end that are not renewed.")?,
            node_epoch: gauge(r, "node_epoch", "Rises when the node's leases are taken back.")?,
            upstream_attempts: counters(r, "upstream_attempts_total", "Tries at providers.", &["provider", "outcome"])?,
            upstream_retries: counters(r, "upstream_retries_total", "Second tries.", &["outcome"])?,
            upstream_healthy: gauges(r, "upstream_healthy", "Whether a request would be sent there.", &["provider"])?,
            upstream_breakers: gauges(
                r,
                "upstream_breakers",
                "Models with each credential, by what is done with them.",
                &["provider", "state"],
            )?,
            key_cache: counters(r, "key_cache_total", "Key look-ups, by who answered.", &["outcome"])?,
            spool_events: gauge(r, "spool_events", "Records that wait for the ledger.")?,
            spool_oldest_seconds: gauge(r, "spool_oldest_seconds", "How long the oldest of them has waited.")?,
            spool_open_requests: gauge(r, "spool_open_requests", "Running requests that the spool knows of.")?,
            spool_bytes: gauge(r, "spool_bytes", "Room that the spool takes or keeps for running requests.")?,
            spool_bytes_max: gauge(r, "spool_bytes_max", "Room that the spool may take, or its disk has.")?,
            sink_delivered: counters(r, "sink_delivered_total", "Deliveries of records.", &["sink", "outcome"])?,
            sink_parked: gauges(r, "sink_parked", "Records that a sink refuses.", &["sink"])?,
            sink_lag_events: gauges(r, "sink_lag_events", "Records that wait for a sink.", &["sink"])?,
            sink_oldest_seconds: gauges(
                r,
                "sink_oldest_seconds",
                "How long the oldest of them has waited.",
                &["sink"],
            )?,
            ledger_drift: gauge(r, "ledger_drift_nano_usd", "Stored less derived balances, at the last audit.")?,
            config_reloads: counters(r, "config_reloads_total", "Reloads of the configuration.", &["outcome"])?,
            config_refused: gauge(r, "config_refused", "Whether the configuration on the disk is refused.")?,
            access_lines_dropped: counter(
                r,
                "access_lines_dropped_total",
                "Lines of the access log that found no place.",
            )?,
            trace_spans: counters(r, "trace_spans_total", "Spans of traces, by what became of them.", &["outcome"])?,
            registry: registry.clone(),
        };
        #[cfg(target_os = "linux")]
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        metrics.begin_at_zero();
        Ok(metrics)
    }

    /// Series whose labels are known beforehand: a counter that appears with its first event has no increase to alert on.
    fn begin_at_zero(&self) {
        Cause::ALL.iter().for_each(|cause| self.refusals.with_label_values(&[cause.code()]).inc_by(0));
        ["granted", "short", "failed"]
            .iter()
            .for_each(|outcome| self.lease_takes.with_label_values(&[outcome]).inc_by(0));
        ["ok", "refused"].iter().for_each(|outcome| self.config_reloads.with_label_values(&[outcome]).inc_by(0));
        let decisions = &self.shared_windows_decisions;
        ["redis", "local"].iter().for_each(|source| decisions.with_label_values(&[source]).inc_by(0));
        ["made", "no_budget"].iter().for_each(|outcome| self.upstream_retries.with_label_values(&[outcome]).inc_by(0));
    }

    /// Counts a refusal or failure by its cause.
    pub fn refused(&self, cause: Cause) {
        self.refusals.with_label_values(&[cause.code()]).inc();
    }

    /// Counts what a finished request used.
    #[expect(clippy::float_arithmetic, reason = "a series is a float; the ledger has the money")]
    pub fn settled(&self, record: &UsageRecord) {
        let usage = &record.usage;
        for (class, tokens) in [
            ("input", usage.input),
            ("cache_read", usage.cache_read),
            ("cache_write_5m", usage.cache_write_5m),
            ("cache_write_1h", usage.cache_write_1h),
            ("output", usage.output),
        ] {
            if tokens > 0 {
                self.tokens.with_label_values(&[&*record.model, class]).inc_by(tokens);
            }
        }
        let cost: &Counter = &self.cost_usd.with_label_values(&[&record.model]);
        cost.inc_by(record.cost.0 as f64 / 1e9);
    }

    /// Requests that have ended, and of those how many were answered with 500 or more.
    pub fn ended(&self) -> (u64, u64) {
        let (mut all, mut failed) = (0, 0);
        for family in self.requests.collect() {
            for series in family.get_metric() {
                // A counter's value is a float in the exporter's own form; it is a whole number below 2^53.
                let count = series.get_counter().get_value() as u64;
                all += count;
                let status = series.get_label().iter().find(|label| label.name() == "status");
                if status.is_some_and(|status| status.value().starts_with('5')) {
                    failed += count;
                }
            }
        }
        (all, failed)
    }

    /// The page for Prometheus.
    ///
    /// # Errors
    /// The encoder failed.
    pub fn render(&self, observed: &Observed) -> Result<Vec<u8>, prometheus::Error> {
        self.take_over(observed);
        let mut page = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut page)?;
        Ok(page)
    }

    fn take_over(&self, observed: &Observed) {
        raise(&self.key_cache.with_label_values(&["hit"]), observed.key_cache_hits);
        raise(&self.key_cache.with_label_values(&["unknown_hit"]), observed.key_cache_unknown_hits);
        raise(&self.key_cache.with_label_values(&["miss"]), observed.key_cache_misses);
        raise(&self.sink_delivered.with_label_values(&["ledger", "ok"]), observed.delivered);
        raise(&self.sink_delivered.with_label_values(&["ledger", "failed"]), observed.delivery_failures);
        observed.leases.iter().for_each(|leases| self.take_over_leases(leases));
        observed.sinks.iter().for_each(|sink| self.take_over_sink(sink));
        raise(&self.access_lines_dropped, observed.access_lines_dropped);
        let SpanCounts { sent, queue_full, undelivered, refused } = observed.spans;
        let outcomes = [("sent", sent), ("queue_full", queue_full), ("undelivered", undelivered), ("refused", refused)];
        for (outcome, total) in outcomes {
            raise(&self.trace_spans.with_label_values(&[outcome]), total);
        }
        // Providers come and go with the configuration.
        self.upstream_healthy.reset();
        self.upstream_breakers.reset();
        for provider in &observed.providers {
            self.upstream_healthy.with_label_values(&[&*provider.name]).set(i64::from(provider.healthy));
            for (state, count) in provider.breakers {
                set(&self.upstream_breakers.with_label_values(&[&*provider.name, state]), count);
            }
        }
        if let Some(windows) = &observed.shared_windows {
            for (source, total) in [("redis", windows.by_redis), ("local", windows.by_node)] {
                raise(&self.shared_windows_decisions.with_label_values(&[source]), total);
            }
            self.shared_windows_degraded.set(i64::from(windows.degraded));
            set(&self.shared_windows_nodes, u64::from(windows.nodes));
        }
        self.holds_active.set(observed.holds_active);
        self.held.set(observed.held_nano_usd);
        self.config_refused.set(i64::from(observed.config_refused));
        for (reason, total) in &observed.connections_closed {
            raise(&self.connections_closed.with_label_values(&[*reason]), *total);
        }
        for (gauge, value) in [
            (&self.requests_in_flight, observed.requests_in_flight),
            (&self.connections_open, observed.connections_open),
            (&self.memory_used_bytes, observed.memory_used_bytes),
            (&self.memory_limit_bytes, observed.memory_limit_bytes),
            (&self.spool_events, observed.spool_events),
            (&self.spool_oldest_seconds, observed.spool_oldest_seconds),
            (&self.spool_open_requests, observed.spool_open_requests),
            (&self.spool_bytes, observed.spool_bytes),
            (&self.spool_bytes_max, observed.spool_bytes_max),
        ] {
            set(gauge, value);
        }
    }

    fn take_over_leases(&self, leases: &ObservedLeases) {
        self.leased.set(leases.leased_nano_usd);
        self.node_epoch.set(leases.epoch);
        set(&self.lease_seconds_left, leases.seconds_left);
        leases.takes.iter().for_each(|(outcome, total)| raise(&self.lease_takes.with_label_values(&[outcome]), *total));
        raise(&self.lease_returns, leases.returns);
        raise(&self.lease_waits, leases.waits);
    }

    fn take_over_sink(&self, sink: &ObservedSink) {
        let outcomes = [("ok", sink.delivered), ("failed", sink.failures), ("refused", sink.refusals)];
        for (outcome, total) in outcomes {
            raise(&self.sink_delivered.with_label_values(&[&*sink.name, outcome]), total);
        }
        set(&self.sink_parked.with_label_values(&[&*sink.name]), sink.parked);
        set(&self.sink_lag_events.with_label_values(&[&*sink.name]), sink.lag_events);
        set(&self.sink_oldest_seconds.with_label_values(&[&*sink.name]), sink.oldest_seconds);
    }
}

fn set(gauge: &IntGauge, value: u64) {
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
}

/// Brings a counter up to a total that is kept elsewhere.
fn raise(counter: &IntCounter, total: u64) {
    counter.inc_by(total.saturating_sub(counter.get()));
}

fn register<C: prometheus::core::Collector + Clone + 'static>(registry: &Registry, series: C) -> prometheus::Result<C> {
    registry.register(Box::new(series.clone()))?;
    Ok(series)
}

fn counters(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntCounterVec> {
    register(registry, IntCounterVec::new(Opts::new(format!("tollgate_{name}"), help), labels)?)
}

fn counter(registry: &Registry, name: &str, help: &str) -> prometheus::Result<IntCounter> {
    register(registry, IntCounter::new(format!("tollgate_{name}"), help)?)
}

fn gauge(registry: &Registry, name: &str, help: &str) -> prometheus::Result<IntGauge> {
    register(registry, IntGauge::new(format!("tollgate_{name}"), help)?)
}

fn gauges(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntGaugeVec> {
    register(registry, IntGaugeVec::new(Opts::new(format!("tollgate_{name}"), help), labels)?)
}

fn histogram(registry: &Registry, name: &str, help: &str, buckets: &[f64]) -> prometheus::Result<Histogram> {
    let options = HistogramOpts::new(format!("tollgate_{name}"), help).buckets(buckets.to_vec());
    register(registry, Histogram::with_opts(options)?)
}

#[cfg(test)]
mod tests {
    use super::super::ObservedProvider;
    use super::*;

    #[test]
    fn providers_come_and_go_with_the_configuration() {
        let metrics = Metrics::new().unwrap();
        let breakers = [("closed", 2), ("half_open", 0), ("open", 1), ("resting", 0), ("refused", 0)];
        let provider = ObservedProvider { name: "p".into(), healthy: true, breakers };
        let page = |providers| {
            let page = metrics.render(&Observed { providers, ..Observed::default() }).unwrap();
            String::from_utf8(page).unwrap()
        };
        let shown = page(vec![provider]);
        assert!(shown.contains("tollgate_upstream_healthy{provider=\"p\"} 1"), "{shown}");
        assert!(shown.contains("tollgate_upstream_breakers{provider=\"p\",state=\"open\"} 1"), "{shown}");
        assert!(!page(Vec::new()).contains("provider=\"p\""));
    }

    #[test]
    fn a_sink_shows_what_went_through_and_what_waits() {
        let metrics = Metrics::new().unwrap();
        let sink = ObservedSink {
            name: "webhook".into(),
            delivered: 7,
            failures: 2,
            refusals: 1,
            parked: 3,
            lag_events: 5,
            oldest_seconds: 60,
        };
        let observed = Observed { sinks: vec![sink], ..Observed::default() };
        metrics.render(&observed).unwrap();
        let page = String::from_utf8(metrics.render(&observed).unwrap()).unwrap();
        for line in [
            "tollgate_sink_delivered_total{outcome=\"ok\",sink=\"webhook\"} 7",
            "tollgate_sink_delivered_total{outcome=\"failed\",sink=\"webhook\"} 2",
            "tollgate_sink_delivered_total{outcome=\"refused\",sink=\"webhook\"} 1",
            "tollgate_sink_parked{sink=\"webhook\"} 3",
            "tollgate_sink_lag_events{sink=\"webhook\"} 5",
            "tollgate_sink_oldest_seconds{sink=\"webhook\"} 60",
        ] {
            assert!(page.lines().any(|other| other == line), "{line}\n{page}");
        }
    }
}
