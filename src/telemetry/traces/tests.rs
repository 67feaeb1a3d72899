//! Who is sampled, below whom, and when a trace is handed over.

use std::sync::Arc;

use http::{HeaderMap, HeaderValue};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use prost::Message;

use super::parent::TRACEPARENT;
use super::wire::{Export, ResourceSpans, ScopeSpans};
use super::*;
use crate::relay::refusal::Cause;

const SAMPLED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const UNSAMPLED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";

/// Traces that nobody sends.
fn traces(sample_per_billion: u64, trust_parent: bool) -> Traces {
    Traces(Some(Arc::new(Kept {
        sample_per_billion,
        trust_parent,
        propagate: true,
        queue: Queue::default(),
        unpriced: Mutex::default(),
    })))
}

fn headers(traceparent: &'static str) -> HeaderMap {
    HeaderMap::from_iter([(TRACEPARENT, HeaderValue::from_static(traceparent))])
}

fn beginning() -> Beginning {
    let route = Some("/v1/chat/completions");
    Beginning { at_us: 5, unix_nanos: 1_000_000, method: Some("POST"), route }
}

fn is_traced(traces: &Traces, headers: &HeaderMap) -> bool {
    traces.begin(Uuid::now_v7(), headers, beginning).for_provider().is_some()
}

#[test]
fn a_client_that_is_not_trusted_decides_nothing() {
    let (none, all) = (traces(0, false), traces(ALL, false));
    for _ in 0..1_000 {
        assert!(!is_traced(&none, &headers(SAMPLED)));
        assert!(is_traced(&all, &headers(UNSAMPLED)));
        assert!(is_traced(&all, &HeaderMap::new()));
    }
}

#[test]
fn a_client_that_is_trusted_decides() {
    let (none, all) = (traces(0, true), traces(ALL, true));
    assert!(is_traced(&none, &headers(SAMPLED)));
    assert!(!is_traced(&all, &headers(UNSAMPLED)));
    assert!(!is_traced(&none, &HeaderMap::new()) && is_traced(&all, &HeaderMap::new()), "those that say nothing");
}

#[test]
fn a_share_is_drawn_that_has_nothing_in_common_with_the_choice_of_targets() {
    let Traces(Some(kept)) = traces(ALL / 4, false) else { panic!() };
    let drawn: Vec<Uuid> =
        (0..40_000_u64).map(|id| Uuid::from_u64_pair(id, scattered(id))).filter(|id| kept.draws(*id)).collect();
    assert!((9_500..10_500).contains(&drawn.len()), "{}", drawn.len());
    // Targets are drawn by the id's low bits, as they are and scattered.
    for choice in [|low: u64| low % 2, |low: u64| scattered(low) % 2] {
        let ones = drawn.iter().filter(|id| choice(id.as_u128() as u64) == 1).count();
        assert!((4_700..5_300).contains(&ones), "{ones}");
    }
}

#[test]
fn off_is_nothing() {
    let traces = Traces::default();
    assert!(!is_traced(&traces, &headers(SAMPLED)));
    assert_eq!(traces.counts(), SpanCounts::default());
}

/// What the published types read of the spans that are waiting.
fn waiting(traces: &Traces) -> Vec<opentelemetry_proto::tonic::trace::v1::Span> {
    let Traces(Some(kept)) = traces else { panic!() };
    let spans = kept.queue.taken().iter().flat_map(spans::of).collect();
    let export = Export {
        resource_spans: vec![ResourceSpans { resource: None, scope_spans: vec![ScopeSpans { scope: None, spans }] }],
    };
    let read = ExportTraceServiceRequest::decode(&*export.encode_to_vec()).unwrap();
    read.resource_spans[0].scope_spans[0].spans.clone()
}

#[test]
fn the_last_who_lets_go_of_a_trace_hands_it_over() {
    let traces = traces(ALL, false);
    let trace = traces.begin(Uuid::now_v7(), &headers(SAMPLED), beginning);
    let other = trace.clone();
    trace.fails(Cause::Overloaded);
    trace.ends(503, || 2_005);
    drop(trace);
    assert!(waiting(&traces).is_empty(), "another holds it");
    drop(other);
    let spans = waiting(&traces);
    let [span] = &spans[..] else { panic!("{spans:?}") };
    assert_eq!(span.trace_id, u128::to_be_bytes(0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736));
    assert_eq!(span.parent_span_id, u64::to_be_bytes(0x00f0_67aa_0ba9_02b7));
    assert_eq!((&*span.name, span.kind, span.flags), ("POST /v1/chat/completions", 2, 0x301));
    assert_eq!((span.start_time_unix_nano, span.end_time_unix_nano), (1_000_000, 3_000_000));
    assert_eq!(span.status.as_ref().unwrap().code, 2);
    let error = span.attributes.iter().find(|attribute| attribute.key == "error.type").unwrap();
    assert_eq!(error.value.as_ref().unwrap().value, Some(Value::StringValue("overloaded".into())));
}

#[test]
fn a_refusal_is_no_failure_of_the_server() {
    let traces = traces(ALL, false);
    let trace = traces.begin(Uuid::now_v7(), &HeaderMap::new(), beginning);
    trace.fails(Cause::RateLimitExceeded);
    trace.ends(429, || 6);
    drop(trace);
    let spans = waiting(&traces);
    assert_eq!(spans[0].status.as_ref().unwrap().code, 0);
    assert!(spans[0].parent_span_id.is_empty());
}

#[test]
fn what_is_never_billed_is_told_at_the_end() {
    let traces = traces(ALL, false);
    let request_id = Uuid::now_v7();
    let trace = traces.begin(request_id, &HeaderMap::new(), beginning);
    let Traces(Some(kept)) = &traces else { panic!() };
    trace.settles(&record(request_id));
    drop(trace);
    assert!(waiting(&traces).is_empty(), "it waits for its price");
    kept.give_up_waiting();
    let spans = waiting(&traces);
    let has = |key: &str| spans[0].attributes.iter().any(|attribute| attribute.key == key);
    assert!(has("tollgate.account_id") && !has("tollgate.cost_nano_usd"), "{spans:?}");
}

fn record(request_id: Uuid) -> UsageRecord {
    UsageRecord {
        request_id,
        account_id: "acct_1".into(),
        key_id: "key_1".into(),
        model: "m".into(),
        provider: "p".into(),
        status: 200,
        usage: Default::default(),
        cost: Default::default(),
        provider_cost: None,
        estimated: false,
        interrupted: false,
        started_at_ms: 0,
        first_token_ms: None,
        total_ms: 0,
    }
}
