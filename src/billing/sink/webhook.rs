//! The sink that posts: batches of CloudEvents over HTTP, signed in the manner of Standard Webhooks.
//!
//! Deliberately absent: a receiver's words in the log, which may repeat what they were sent.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use http::header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;
use ureq::Agent;

use super::pace::UnixMs;
use super::{Sink, SinkError};
use crate::outbound::{self, Times};
use crate::relay::meter::UsageRecord;
use crate::relay::route::Secret;
use crate::relay::webhook::{BATCH_CONTENT_TYPE, SigningKey, encode_batch};

/// How much of an answer's body is read, so that the connection can be used again. None of it is looked at.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;

/// Where to, and as whom.
#[derive(Debug, Clone)]
pub(super) struct Post {
    pub(super) url: Box<str>,
    pub(super) key: SigningKey,
    pub(super) authorization: Option<Secret>,
    pub(super) source: Box<str>,
}

/// What one request may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) times: Times,
    pub(super) body_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        let times = Times { connect: Duration::from_secs(5), answer: Duration::from_secs(30) };
        Self { times, body_bytes_max: 1024 * 1024 }
    }
}

/// Posts to one URL.
pub(in crate::billing) struct Webhook {
    name: Box<str>,
    agent: Agent,
    post: Arc<Post>,
    body_bytes_max: usize,
    unix_ms: UnixMs,
}

impl fmt::Debug for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Webhook").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Webhook {
    /// Makes ready; nobody is asked yet. The error is for the operator.
    pub(super) fn open(name: Box<str>, post: Post, limits: Limits, unix_ms: UnixMs) -> Result<Self, String> {
        let agent = outbound::agent(&post.url, limits.times)?;
        Ok(Self::with(agent, name, post, limits, unix_ms))
    }

    fn with(agent: Agent, name: Box<str>, post: Post, limits: Limits, unix_ms: UnixMs) -> Self {
        Self { name, agent, post: Arc::new(post), body_bytes_max: limits.body_bytes_max, unix_ms }
    }
}

impl Sink for Webhook {
    fn name(&self) -> &str {
        &self.name
    }

    async fn deliver(&mut self, records: &[UsageRecord]) -> Result<(), SinkError> {
        let encoded = encode_batch(records, &self.post.source, self.body_bytes_max);
        let encoded = encoded.map_err(|error| SinkError::Refused(format!("cannot be written as JSON: {error}")))?;
        let body = encoded.ok_or_else(|| SinkError::TooLarge("would be too large a request".to_owned()))?;
        let (agent, post, id) = (self.agent.clone(), Arc::clone(&self.post), message_id(records));
        let now_seconds = (self.unix_ms)().div_euclid(1_000);
        let sent = tokio::task::spawn_blocking(move || send(&agent, &post, &id, now_seconds, &body));
        sent.await.map_err(|_| later("the delivery broke off".to_owned()))?
    }
}

fn send(agent: &Agent, post: &Post, id: &str, now_seconds: i64, body: &[u8]) -> Result<(), SinkError> {
    let mut request = agent
        .post(&*post.url)
        .header(CONTENT_TYPE, BATCH_CONTENT_TYPE)
        .header("webhook-id", id)
        .header("webhook-timestamp", now_seconds.to_string())
        .header("webhook-signature", post.key.sign(id, now_seconds, body));
    if let Some(token) = &post.authorization {
        request = request.header(AUTHORIZATION, format!("Bearer {}", token.expose()));
    }
    let mut answer = request.send(body).map_err(|error| later(error.to_string()))?;
    // What it says has been decided by its status, whether or not its body arrives.
    let _ = answer.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_vec();
    let retry_after = answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
    judge(answer.status(), retry_after.and_then(|text| pause_asked(text, now_seconds)))
}

/// What an answer means.
fn judge(status: StatusCode, retry_after: Option<Duration>) -> Result<(), SinkError> {
    let why = format!("the receiver answered {}", status.as_u16());
    Err(match status.as_u16() {
        200..=299 => return Ok(()),
        408 | 425 | 429 | 500..=599 => SinkError::Later { why, retry_after },
        413 => SinkError::TooLarge(why),
        // These are about who asks, and where: no record is to blame.
        401..=405 | 407 | 410 | 415 | 421 | 426 | 451 => SinkError::Closed(why),
        400..=499 => SinkError::Refused(why),
        _ => SinkError::Closed(why),
    })
}

fn later(why: String) -> SinkError {
    SinkError::Later { why, retry_after: None }
}

/// `retry-after` is seconds or a date (RFC 9110, 10.2.3).
fn pause_asked(text: &str, now_seconds: i64) -> Option<Duration> {
    let text = text.trim();
    let seconds = text.parse().ok().or_else(|| {
        let date = OffsetDateTime::parse(text, &Rfc2822).ok()?;
        u64::try_from(date.unix_timestamp().saturating_sub(now_seconds)).ok()
    });
    seconds.map(Duration::from_secs)
}

/// The same records are the same message, however often it is sent.
fn message_id(records: &[UsageRecord]) -> String {
    let mut digest = Sha256::new();
    records.iter().for_each(|record| digest.update(record.request_id.as_bytes()));
    digest.finalize().iter().take(16).fold("msg_".to_owned(), |id, byte| id + &format!("{byte:02x}"))
}

#[cfg(test)]
mod tests;
