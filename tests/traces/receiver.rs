//! One who takes traces, and what it reads in them with OpenTelemetry's own types.

use std::collections::BTreeMap;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
pub(crate) use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
pub(crate) use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use serde_json::Value;

use crate::support::setup::MODEL;
use crate::support::{Received, Relay, Setup, Upstream, until};

pub(crate) const SERVER: i32 = 2;
pub(crate) const CLIENT: i32 = 3;
pub(crate) const UNSET: i32 = 0;
pub(crate) const ERROR: i32 = 2;

/// What the receiver asks for.
pub(crate) const TOKEN: &str = "token-of-the-receiver-42";

/// One who takes traces.
pub(crate) fn receiver() -> Upstream {
    Upstream::start(|_, answer| answer.whole(200, &[("content-type", "application/x-protobuf")], b""))
}

/// `[telemetry.traces]` to that address.
pub(crate) fn traced(setup: Setup, receiver: std::net::SocketAddr, lines: &str) -> Setup {
    setup.env("OTLP_TOKEN", TOKEN).table(&format!(
        "[telemetry.traces]\nendpoint = \"http://{receiver}\"\n\
         headers = [{{ name = \"authorization\", scheme = \"Bearer\", value = {{ env = \"OTLP_TOKEN\" }} }}]\n{lines}"
    ))
}

/// Every request is sampled.
pub(crate) const ALL: &str = "sample_ratio = 1.0";

/// A batch, decoded by OpenTelemetry's own types.
pub(crate) fn decoded(request: &Received) -> ExportTraceServiceRequest {
    assert_eq!((request.method(), request.path()), ("POST", "/v1/traces"));
    assert_eq!(request.header("content-type"), Some("application/x-protobuf"));
    assert_eq!(request.header("authorization"), Some(&*format!("Bearer {TOKEN}")));
    ExportTraceServiceRequest::decode(&*request.body).unwrap()
}

pub(crate) fn spans(receiver: &Upstream) -> Vec<Span> {
    let batches = receiver.received();
    let resources = batches.iter().flat_map(|batch| decoded(batch).resource_spans);
    resources.flat_map(|resource| resource.scope_spans).flat_map(|scope| scope.spans).collect()
}

/// The spans of a request, its own first and the tries in their order, once they are there.
#[track_caller]
pub(crate) fn trace_of(receiver: &Upstream, request_id: &str) -> Vec<Span> {
    until(&format!("the trace of {request_id}"), || {
        let spans = spans(receiver);
        let own = spans.iter().find(|span| text(span, "tollgate.request_id").as_deref() == Some(request_id))?;
        let tries = spans.iter().filter(|span| span.parent_span_id == own.span_id).cloned();
        Some(std::iter::once(own.clone()).chain(tries).collect())
    })
}

pub(crate) fn attributes(of: &[KeyValue]) -> BTreeMap<String, Any> {
    of.iter().map(|pair| (pair.key.clone(), pair.value.clone().unwrap().value.unwrap())).collect()
}

pub(crate) fn text(span: &Span, key: &str) -> Option<String> {
    match attributes(&span.attributes).remove(key)? {
        Any::StringValue(text) => Some(text),
        other => panic!("{key} is {other:?}"),
    }
}

pub(crate) fn whole(span: &Span, key: &str) -> Option<i64> {
    match attributes(&span.attributes).remove(key)? {
        Any::IntValue(number) => Some(number),
        other => panic!("{key} is {other:?}"),
    }
}

pub(crate) fn truth(span: &Span, key: &str) -> Option<bool> {
    match attributes(&span.attributes).remove(key)? {
        Any::BoolValue(truth) => Some(truth),
        other => panic!("{key} is {other:?}"),
    }
}

pub(crate) fn status(span: &Span) -> i32 {
    span.status.as_ref().map_or(UNSET, |status| status.code)
}

#[track_caller]
pub(crate) fn assert_texts(span: &Span, expected: &[(&str, &str)]) {
    for (key, expected) in expected {
        assert_eq!(text(span, key).as_deref(), Some(*expected), "{key} of {span:#?}");
    }
}

/// A list of texts; empty where it is not there.
pub(crate) fn texts(span: &Span, key: &str) -> Vec<String> {
    let Some(Any::ArrayValue(list)) = attributes(&span.attributes).remove(key) else { return Vec::new() };
    let text = |value: Any| if let Any::StringValue(text) = value { text } else { panic!("{key} holds {value:?}") };
    list.values.into_iter().map(|value| text(value.value.unwrap())).collect()
}

/// The request's span says what its row in the ledger says.
#[track_caller]
pub(crate) fn assert_as_billed(relay: &Relay, span: &Span, request_id: &str) -> Value {
    let row = relay.usage_of(request_id);
    for key in [
        "input_tokens",
        "cache_read_tokens",
        "cache_write_5m_tokens",
        "cache_write_1h_tokens",
        "output_tokens",
        "reasoning_tokens",
        "cost_nano_usd",
    ] {
        assert_eq!(whole(span, &format!("tollgate.{key}")), row[key].as_i64(), "{key}: {row} {span:#?}");
    }
    for key in ["estimated", "interrupted"] {
        assert_eq!(truth(span, &format!("tollgate.{key}")), row[key].as_bool(), "{key}: {row}");
    }
    assert_texts(
        span,
        &[
            ("tollgate.account_id", row["account_id"].as_str().unwrap()),
            ("tollgate.key_id", row["key_id"].as_str().unwrap()),
            ("tollgate.provider", row["provider"].as_str().unwrap()),
            ("gen_ai.request.model", MODEL),
        ],
    );
    row
}
