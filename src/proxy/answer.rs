//! What the relay answers by itself: refusals, the models, and what it has answered before.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, DATE, HeaderName, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, StatusCode};
use pingora::http::ResponseHeader;
use pingora::protocols::http::date::get_cached_date;
use pingora::{ErrorType, OrErr};
use pingora_proxy::Session;
use serde_json::{Value, json};
use uuid::fmt::Hyphenated;

use super::admission::{Received, may_use, model_not_found};
use super::body;
use super::exchange::{Caller, Exchange};
use super::idempotency::Replay;
use super::link::Link;
use super::tape::Substitute;
use crate::relay::admit::Window;
use crate::relay::dialect::ProviderError;
use crate::relay::meter::{NanoUsd, Rates};
use crate::relay::refusal::{Cause, Refusal};
use crate::relay::route::Model;

/// Writes a refusal. Whatever of the body the client has still to send is read and forgotten, so that it gets to read this.
pub(super) async fn refuse(session: &mut Session, exchange: &mut Exchange, refusal: Refusal) {
    exchange.fails(refusal.cause);
    let is_read = session.downstream_session.is_body_done();
    if !is_read || refusal.cause == Cause::BadRequest {
        // What follows on this connection may be the rest of a body that nobody framed, or that others frame in another way.
        session.set_keepalive(None);
        if let Some(link) = Link::current() {
            link.doubt();
        }
    }
    let written = write(session, exchange, refusal.cause.status(), refusal.to_json(), Some(&refusal)).await;
    if !is_read && written.is_ok() {
        body::linger(session).await;
    }
    exchange.answered(None, Some(refusal));
}

/// `GET /v1/models`: the models that the key may use.
pub(super) async fn models(session: &mut Session, exchange: &mut Exchange) -> Result<Received, Refusal> {
    let caller = known(exchange)?;
    let models: Vec<Value> = exchange
        .arrival
        .snapshot
        .catalogue
        .models()
        .iter()
        .filter(|model| may_use(exchange, &caller, &model.id))
        .map(|model| describe(model))
        .collect();
    let body = json!({"object": "list", "data": models}).to_string();
    let _ = write(session, exchange, 200, body.into_bytes(), None).await;
    exchange.answered(None, None);
    Ok(Received::Answered)
}

/// `GET /v1/models/{id}`.
pub(super) async fn model(session: &mut Session, exchange: &mut Exchange, id: &str) -> Result<Received, Refusal> {
    let caller = known(exchange)?;
    let model = exchange.arrival.snapshot.catalogue.model(id).filter(|_| may_use(exchange, &caller, id)).cloned();
    let Some(model) = model else { return Err(model_not_found(id)) };
    let _ = write(session, exchange, 200, describe(&model).to_string().into_bytes(), None).await;
    exchange.answered(Some(model), None);
    Ok(Received::Answered)
}

/// The answer that an equal request got before.
pub(super) async fn replay(
    session: &mut Session,
    exchange: &mut Exchange,
    model: Arc<Model>,
    replay: Replay,
) -> Result<Received, Refusal> {
    let failed = |_| Refusal::new(Cause::InternalError, "The answer could not be written.");
    let mut header = head(exchange, replay.status, replay.body.len(), None).map_err(failed)?;
    header.insert_header(CONTENT_TYPE, &*replay.content_type).map_err(failed)?;
    header.insert_header("idempotent-replayed", "true").map_err(failed)?;
    if replay.content_type.starts_with("text/event-stream") {
        header.insert_header(CACHE_CONTROL, "no-cache").map_err(failed)?;
    }
    if session.downstream_session.write_response_header(header).await.is_ok() {
        let _ = session.downstream_session.write_response_body(replay.body, true).await;
    }
    exchange.answered(Some(model), None);
    Ok(Received::Answered)
}

fn known(exchange: &Exchange) -> Result<Caller, Refusal> {
    exchange.caller().cloned().ok_or_else(|| Refusal::new(Cause::InternalError, "The request was not authenticated."))
}

/// OpenAI's model object, with what clients of a relay want to know besides.
fn describe(model: &Model) -> Value {
    json!({
        "id": model.id,
        "object": "model",
        // The catalogue does not date its models; clients want a number here.
        "created": 0,
        "owned_by": model.owned_by,
        "context_window": model.context_window,
        "max_output_tokens": model.output_tokens_max,
        "pricing": pricing(&model.price.base),
    })
}

/// USD per million tokens, as strings.
fn pricing(rates: &Rates) -> Value {
    let usd = |nano: u64| NanoUsd(i64::try_from(nano).unwrap_or(i64::MAX)).to_string();
    json!({
        "input": usd(rates.input),
        "output": usd(rates.output),
        "cache_read": usd(rates.cache_read),
        "cache_write_5m": usd(rates.cache_write_5m),
        "cache_write_1h": usd(rates.cache_write_1h),
    })
}

/// The row of the table that a provider's error falls under.
pub(super) fn cause_of(error: &ProviderError) -> Cause {
    match error {
        ProviderError::Request { cause, .. } => *cause,
        ProviderError::Provider(refusal) => refusal.cause,
    }
}

/// Writes what became of a request that no upstream answered.
pub(super) async fn tell(session: &mut Session, exchange: &mut Exchange, error: &ProviderError) -> pingora::Result<()> {
    let Substitute { header, body } = substitute(exchange, error)?;
    session.downstream_session.write_response_header(header).await?;
    session.downstream_session.write_response_body(body, true).await
}

/// The answer that tells of a provider's error.
pub(super) fn substitute(exchange: &mut Exchange, error: &ProviderError) -> pingora::Result<Substitute> {
    let (body, refusal) = match error {
        ProviderError::Request { body, .. } => (body.clone(), None),
        ProviderError::Provider(refusal) => (Bytes::from(refusal.to_json()), Some(refusal)),
    };
    let header = head(exchange, cause_of(error).status(), body.len(), refusal)?;
    Ok(Substitute { header, body })
}

/// Writes a whole JSON answer.
async fn write(
    session: &mut Session,
    exchange: &mut Exchange,
    status: u16,
    body: Vec<u8>,
    refusal: Option<&Refusal>,
) -> pingora::Result<()> {
    if exchange.shared.stage.is_leaving() {
        session.set_keepalive(None);
    }
    let header = head(exchange, status, body.len(), refusal)?;
    session.downstream_session.write_response_header(header).await?;
    session.downstream_session.write_response_body(Bytes::from(body), true).await
}

/// The head of a JSON answer of ours.
fn head(
    exchange: &mut Exchange,
    status: u16,
    length: usize,
    refusal: Option<&Refusal>,
) -> pingora::Result<Box<ResponseHeader>> {
    let mut headers = HeaderMap::with_capacity(HEADERS_USUAL);
    headers.insert(CONTENT_TYPE, JSON);
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    stamp(&mut headers, exchange)?;
    if let Some(after_ms) = refusal.and_then(|refusal| refusal.retry_after_ms) {
        headers.insert(RETRY_AFTER, HeaderValue::from(after_ms.div_ceil(1000)));
        headers.insert(RETRY_AFTER_MS, HeaderValue::from(after_ms));
    }
    if let Some(allowed) = refusal.and_then(|refusal| refusal.allow) {
        headers.insert(ALLOW, HeaderValue::from_static(allowed));
    }
    exchange.status = status;
    let status = StatusCode::from_u16(status).or_err(ErrorType::InternalError, "no status")?;
    Ok(Box::new(whole_head(status, headers)))
}

/// A head made of its headers: putting them into Pingora's one by one costs thrice as much.
pub(super) fn whole_head(status: StatusCode, headers: HeaderMap) -> ResponseHeader {
    let (mut parts, ()) = http::Response::new(()).into_parts();
    (parts.status, parts.headers) = (status, headers);
    ResponseHeader::from(parts)
}

/// How many headers an answer has, Pingora's own included.
pub(super) const HEADERS_USUAL: usize = 24;

pub(super) const JSON: HeaderValue = HeaderValue::from_static("application/json");
const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");
/// OpenAI's own names for the same: limit, remaining, reset.
const OF_REQUESTS: [HeaderName; 3] = [
    HeaderName::from_static("x-ratelimit-limit-requests"),
    HeaderName::from_static("x-ratelimit-remaining-requests"),
    HeaderName::from_static("x-ratelimit-reset-requests"),
];
const OF_TOKENS: [HeaderName; 3] = [
    HeaderName::from_static("x-ratelimit-limit-tokens"),
    HeaderName::from_static("x-ratelimit-remaining-tokens"),
    HeaderName::from_static("x-ratelimit-reset-tokens"),
];

/// What every answer carries: the request's id, and the key's windows once it is known whose it is.
pub(super) fn stamp(headers: &mut HeaderMap, exchange: &Exchange) -> pingora::Result<()> {
    let mut id = [0; Hyphenated::LENGTH];
    headers.insert(DATE, get_cached_date());
    headers.insert(X_REQUEST_ID, text(exchange.arrival.request_id.hyphenated().encode_lower(&mut id))?);
    let Some(caller) = exchange.caller() else { return Ok(()) };
    let requests = &caller.window.requests;
    let [limit, remaining, reset] = values_of(requests)?;
    headers.insert(LIMIT, limit.clone());
    headers.insert(REMAINING, remaining.clone());
    headers.insert(RESET, HeaderValue::from(requests.reset_ms.div_ceil(1000)));
    stamp_window(headers, OF_REQUESTS, [limit, remaining, reset]);
    if let Some(tokens) = &caller.window.tokens {
        stamp_window(headers, OF_TOKENS, values_of(tokens)?);
    }
    Ok(())
}

fn stamp_window(headers: &mut HeaderMap, names: [HeaderName; 3], values: [HeaderValue; 3]) {
    for (name, value) in names.into_iter().zip(values) {
        headers.insert(name, value);
    }
}

/// Limit, remaining, reset.
fn values_of(window: &Window) -> pingora::Result<[HeaderValue; 3]> {
    let reset = text(&duration_text(window.reset_ms))?;
    Ok([HeaderValue::from(window.limit), HeaderValue::from(window.remaining), reset])
}

/// A header's value that is text.
pub(super) fn text(text: &str) -> pingora::Result<HeaderValue> {
    HeaderValue::from_str(text).or_err(ErrorType::InternalError, "a text does not fit into a header")
}

/// The names of fields, as a header lists them. Names are the client's: those that are no plain words are not repeated.
pub(super) fn list_of(fields: &[Box<str>]) -> Option<String> {
    let is_plain = |name: &&str| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.[]".contains(&byte));
    let names: Vec<&str> = fields.iter().map(|name| &**name).filter(is_plain).collect();
    (!names.is_empty()).then(|| names.join(", "))
}

/// OpenAI writes resets as durations: `850ms`, `12.5s`, `1m3.5s`.
fn duration_text(milliseconds: u64) -> String {
    let (minutes, rest) = (milliseconds / 60_000, milliseconds % 60_000);
    let (seconds, millis) = (rest / 1000, rest % 1000);
    let (mut text, mut digits) = (String::with_capacity(24), itoa::Buffer::new());
    if minutes > 0 {
        text.push_str(digits.format(minutes));
        text.push('m');
    } else if seconds == 0 && millis > 0 {
        text.push_str(digits.format(millis));
        text.push_str("ms");
        return text;
    }
    text.push_str(digits.format(seconds));
    if millis > 0 {
        text.push('.');
        // With the zeros that stand before it, and without those behind.
        text.push_str(digits.format(1000 + millis)[1..].trim_end_matches('0'));
    }
    text.push('s');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resets_read_as_openais_do() {
        assert_eq!(duration_text(0), "0s");
        assert_eq!(duration_text(850), "850ms");
        assert_eq!(duration_text(12_500), "12.5s");
        assert_eq!(duration_text(1_000), "1s");
        assert_eq!(duration_text(63_500), "1m3.5s");
        assert_eq!(duration_text(60_000), "1m0s");
        assert_eq!(duration_text(2_040), "2.04s");
    }
}
