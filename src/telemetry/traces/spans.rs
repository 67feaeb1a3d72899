//! A trace that is over, as spans.
//!
//! Names are those of OpenTelemetry's semantic conventions: HTTP's, and for generative AI those of the repository
//! `semantic-conventions-genai`, whose status is Development: they may still change, and these with them. What the
//! conventions have no name for begins with `tollgate.`, and is called as in the usage object and the access log.
//!
//! What was used stands in `gen_ai.usage.*` of the one try that was answered, so that who sums over spans counts it once;
//! on the request's span it stands by the relay's own names, in disjoint classes, as it was billed.

use super::recording::{Context, Finished, Gathered, OK, Try};
use super::wire::{AnyValue, Code, Event, KeyValue, Kind, List, Span, Status, Value};
use crate::relay::meter::UsageRecord;
use crate::relay::route::{Dialect, Endpoint, Provider};

/// A span is recorded, and it is known whether its parent is another process's.
const FLAGS: u32 = 0x101;
/// Its parent is another process's.
const FLAG_REMOTE: u32 = 0x200;

/// `error.type` of what ended before its end with nobody to blame: the client left, or the process ended.
const INTERRUPTED: &str = "interrupted";

/// How many spans a trace has.
pub(super) fn count(finished: &Finished) -> u64 {
    1 + finished.gathered.tries.len() as u64
}

/// The spans of a trace: the request's, and one a try.
pub(super) fn of(finished: &Finished) -> impl Iterator<Item = Span> {
    let numbered = finished.gathered.tries.iter().enumerate();
    let tries = numbered.map(|(place, made)| of_try(&finished.context, &finished.gathered, place + 1, made));
    std::iter::once(of_request(&finished.context, &finished.gathered)).chain(tries)
}

fn of_request(context: &Context, gathered: &Gathered) -> Span {
    let beginning = &context.beginning;
    let method = beginning.method.unwrap_or("_OTHER");
    let (ended_us, status) = gathered.end.unwrap_or((beginning.at_us, 0));
    let error = error_of(gathered, status);
    let mut attributes = Attributes::default();
    attributes.text("http.request.method", method);
    attributes.optional_text("http.route", beginning.route);
    if status != 0 {
        attributes.whole("http.response.status_code", status.into());
    }
    attributes.optional_text("error.type", error);
    attributes.text("tollgate.request_id", &context.request_id.hyphenated().to_string());
    match gathered.record.as_deref() {
        Some(record) => attributes.record(record, gathered.is_billed),
        None => {
            attributes.optional_text("tollgate.account_id", gathered.account_id.as_deref());
            attributes.optional_text("tollgate.key_id", gathered.key_id.as_deref());
            attributes.optional_text("gen_ai.request.model", gathered.model.as_deref());
        }
    }
    if let Some(last) = gathered.tries.last() {
        attributes.text("gen_ai.operation.name", "chat");
        attributes.truth("gen_ai.request.stream", last.is_stream);
        attributes.whole("tollgate.tries", gathered.tries.len() as u64);
    }
    // A refusal that is the client's own fault is no failure of the server.
    let is_failed = error.is_some() && !(400..500).contains(&status);
    Span {
        trace_id: context.trace_id.to_vec(),
        span_id: context.span_id(0).to_vec(),
        parent_span_id: context.parent.map(|id| id.to_vec()).unwrap_or_default(),
        name: beginning.route.map_or_else(|| method.to_owned(), |route| format!("{method} {route}")),
        kind: Kind::Server.into(),
        start_time_unix_nano: beginning.unix_nanos,
        end_time_unix_nano: context.unix_nanos(ended_us),
        attributes: attributes.0,
        events: Vec::new(),
        status: Some(status_of(is_failed)),
        flags: FLAGS | if context.parent.is_some() { FLAG_REMOTE } else { 0 },
    }
}

/// What the request failed for, if it did.
fn error_of(gathered: &Gathered, status: u16) -> Option<&'static str> {
    let is_interrupted = status == 0 || gathered.record.as_ref().is_some_and(|record| record.interrupted);
    gathered.cause.map(|cause| cause.code()).or(is_interrupted.then_some(INTERRUPTED))
}

fn of_try(context: &Context, gathered: &Gathered, number: usize, made: &Try) -> Span {
    let request_ended = gathered.end.map_or(made.began_us, |(at_us, _)| at_us);
    let ended_us = made.ended_us.unwrap_or(request_ended);
    let is_answer = made.outcome.as_deref() == Some(OK);
    // An answer may still have failed, and one that was not waited for was given up with the request.
    let error = match made.outcome.as_deref() {
        Some(OK) => error_of(gathered, 200),
        Some(outcome) => Some(outcome),
        None => Some(error_of(gathered, 0).unwrap_or(INTERRUPTED)),
    };
    let mut attributes = Attributes::default();
    attributes.text("gen_ai.operation.name", "chat");
    attributes.text("gen_ai.provider.name", vendor(&made.provider));
    attributes.text("gen_ai.request.model", &made.model);
    attributes.truth("gen_ai.request.stream", made.is_stream);
    attributes.text("tollgate.provider", &made.provider.name);
    attributes.text("tollgate.outcome", made.outcome.as_deref().unwrap_or(INTERRUPTED));
    attributes.text("http.request.method", "POST");
    if let Endpoint::Network(address) = &made.provider.endpoint {
        attributes.text("server.address", &address.host);
        attributes.whole("server.port", address.port.into());
    }
    let status = if is_answer { Some(200) } else { made.outcome.as_deref().and_then(|outcome| outcome.parse().ok()) };
    if let Some(status) = status {
        attributes.whole("http.response.status_code", status);
    }
    attributes.optional_text("error.type", error);
    let first_token_us =
        gathered.record.as_ref().filter(|_| is_answer).and_then(|record| first_token_us(context, record));
    if let Some(record) = gathered.record.as_deref().filter(|_| is_answer && gathered.is_billed) {
        attributes.usage(record);
    }
    if is_answer {
        attributes.optional_text("gen_ai.response.model", gathered.answer_model.as_deref());
        attributes.texts("gen_ai.response.finish_reasons", &gathered.finish_reasons);
    }
    if let Some(first_us) = first_token_us.filter(|_| made.is_stream) {
        attributes.seconds("gen_ai.response.time_to_first_chunk", first_us.saturating_sub(made.began_us));
    }
    let first_token = |us| Event { time_unix_nano: context.unix_nanos(us), name: "first_token".to_owned() };
    Span {
        trace_id: context.trace_id.to_vec(),
        span_id: context.span_id(number).to_vec(),
        parent_span_id: context.span_id(0).to_vec(),
        name: format!("chat {}", made.model),
        kind: Kind::Client.into(),
        start_time_unix_nano: context.unix_nanos(made.began_us),
        end_time_unix_nano: context.unix_nanos(ended_us),
        attributes: attributes.0,
        events: first_token_us.map(first_token).into_iter().collect(),
        status: Some(status_of(error.is_some())),
        flags: FLAGS,
    }
}

/// When the first token passed, by the relay's clock.
fn first_token_us(context: &Context, record: &UsageRecord) -> Option<u64> {
    let since_ms = u64::try_from(record.first_token_ms?).ok()?;
    Some(context.beginning.at_us.saturating_add(since_ms.saturating_mul(1_000)))
}

fn status_of(is_failed: bool) -> Status {
    Status { code: if is_failed { Code::Error } else { Code::Unset }.into() }
}

/// The provider as the conventions know it, by what it speaks; where many speak the same, as the operator calls it.
fn vendor(provider: &Provider) -> &str {
    match provider.dialect {
        Dialect::OpenAi => &provider.name,
        Dialect::Anthropic => "anthropic",
        Dialect::Gemini => "gcp.gemini",
    }
}

/// Attributes that are being written.
#[derive(Default)]
pub(super) struct Attributes(pub(super) Vec<KeyValue>);

impl Attributes {
    pub(super) fn text(&mut self, key: &str, text: &str) {
        self.add(key, Value::Text(text.to_owned()));
    }

    fn optional_text(&mut self, key: &str, text: Option<&str>) {
        if let Some(text) = text {
            self.text(key, text);
        }
    }

    /// A list; none where there is nothing in it.
    fn texts(&mut self, key: &str, texts: &[&str]) {
        let values = texts.iter().map(|text| AnyValue { value: Some(Value::Text((*text).to_owned())) });
        if !texts.is_empty() {
            self.add(key, Value::List(List { values: values.collect() }));
        }
    }

    fn truth(&mut self, key: &str, truth: bool) {
        self.add(key, Value::Truth(truth));
    }

    fn whole(&mut self, key: &str, number: u64) {
        self.add(key, Value::Whole(i64::try_from(number).unwrap_or(i64::MAX)));
    }

    #[expect(clippy::float_arithmetic, reason = "the conventions want seconds as a float")]
    fn seconds(&mut self, key: &str, us: u64) {
        self.add(key, Value::Real(us as f64 / 1e6));
    }

    /// What is told of an admitted request; what it used only as it was billed.
    fn record(&mut self, record: &UsageRecord, is_billed: bool) {
        self.text("tollgate.account_id", &record.account_id);
        self.text("tollgate.key_id", &record.key_id);
        self.text("tollgate.provider", &record.provider);
        self.text("gen_ai.request.model", &record.model);
        self.truth("tollgate.interrupted", record.interrupted);
        if let Some(first_token_ms) = record.first_token_ms {
            self.add("tollgate.first_token_ms", Value::Whole(first_token_ms));
        }
        if !is_billed {
            return;
        }
        let usage = &record.usage;
        self.whole("tollgate.input_tokens", usage.input);
        self.whole("tollgate.cache_read_tokens", usage.cache_read);
        self.whole("tollgate.cache_write_5m_tokens", usage.cache_write_5m);
        self.whole("tollgate.cache_write_1h_tokens", usage.cache_write_1h);
        self.whole("tollgate.output_tokens", usage.output);
        self.whole("tollgate.reasoning_tokens", usage.reasoning);
        self.add("tollgate.cost_nano_usd", Value::Whole(record.cost.0));
        self.truth("tollgate.estimated", record.estimated);
    }

    /// The same in the conventions' words, where the prompt's tokens hold those that a cache read or wrote.
    fn usage(&mut self, record: &UsageRecord) {
        let usage = &record.usage;
        self.whole("gen_ai.usage.input_tokens", usage.prompt());
        self.whole("gen_ai.usage.cache_read.input_tokens", usage.cache_read);
        self.whole("gen_ai.usage.cache_write.input_tokens", usage.cache_write_5m.saturating_add(usage.cache_write_1h));
        self.whole("gen_ai.usage.output_tokens", usage.output);
        self.whole("gen_ai.usage.reasoning.output_tokens", usage.reasoning);
    }

    fn add(&mut self, key: &str, value: Value) {
        self.0.push(KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }) });
    }
}
