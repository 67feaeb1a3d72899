//! What Stripe is asked: its API over HTTPS, one request at a time on a thread that may block.

use std::fmt;
use std::time::Duration;

use http::header::{AUTHORIZATION, CONTENT_TYPE};
use serde_json::Value;
use ureq::http::Response;
use ureq::{Agent, Body};

use crate::config::StripeConfig;
use crate::outbound::{self, Times};
use crate::relay::stripe::{Back, CheckoutOf, PlanSwitch, cancel_form, checkout_form, switch_form};

/// Requests mean the same whatever the operator's account has as its version.
const API_VERSION: &str = "2024-06-20";

const TIMES: Times = Times { connect: Duration::from_secs(5), answer: Duration::from_secs(20) };

/// How much of an answer is read; a subscription's is some ten KiB.
const ANSWER_BYTES_MAX: u64 = 1 << 20;

/// Why Stripe did not do it. Nothing of its own words is in the message, for they may repeat a part of the key.
#[derive(Debug, thiserror::Error)]
pub enum StripeError {
    /// It could not be reached, or did not answer in time, or failed. What was asked may have been done.
    #[error("Stripe cannot be reached: {0}")]
    Unreachable(String),
    /// The customer's card, or bank, refused.
    #[error("Stripe says that the payment was declined")]
    Declined,
    /// It refuses what it was asked.
    #[error("Stripe answered {status}, {code}")]
    Refused {
        /// The status.
        status: u16,
        /// `error.code`, or its type.
        code: String,
    },
    /// It answered what cannot be used.
    #[error("Stripe's answer has no {0}")]
    Odd(&'static str),
}

/// What is asked.
struct Call {
    path: String,
    /// Fields of a POST; without, it is a GET.
    fields: Option<Vec<(String, String)>>,
    idempotency_key: Option<String>,
}

/// Begins a session in which that account's customer pays. Gives the address to send them to.
///
/// # Errors
/// Stripe did not do it. The same `idempotency_key` can be tried again, and begins one session.
pub async fn begin_checkout(
    config: &StripeConfig,
    account_id: &str,
    of: CheckoutOf<'_>,
    back: Back<'_>,
    idempotency_key: String,
) -> Result<String, StripeError> {
    let fields = Some(checkout_form(account_id, of, back));
    let path = "/v1/checkout/sessions".to_owned();
    let session = ask(config, Call { path, fields, idempotency_key: Some(idempotency_key) }).await?;
    let url = session["url"].as_str().ok_or(StripeError::Odd("url"))?;
    // Whoever is sent there trusts it as much as this dashboard.
    let is_safe = url.starts_with("https://") || config.base_url.starts_with("http://");
    if is_safe && url.bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(url.to_owned())
    } else {
        Err(StripeError::Odd("url"))
    }
}

/// Has a subscription end with its period, or not. What becomes of it, an event tells.
///
/// # Errors
/// Stripe did not do it.
pub async fn set_cancelled(config: &StripeConfig, subscription: &str, cancel: bool) -> Result<(), StripeError> {
    let (path, fields) = (subscription_path(subscription)?, Some(cancel_form(cancel)));
    ask(config, Call { path, fields, idempotency_key: None }).await.map(|_| ())
}

/// Puts a subscription on another price: at once, with what is unused taken off, or from the next invoice on. What becomes of it,
/// events tell.
///
/// # Errors
/// Stripe did not do it; where the payment was declined, nothing has changed. The same `idempotency_key` changes it once.
pub async fn change_plan(
    config: &StripeConfig,
    subscription: &str,
    (price, at_once): (&str, bool),
    idempotency_key: String,
) -> Result<(), StripeError> {
    let path = subscription_path(subscription)?;
    let found = ask(config, Call { path: path.clone(), fields: None, idempotency_key: None }).await?;
    let item = found.pointer("/items/data/0/id").and_then(Value::as_str).ok_or(StripeError::Odd("item"))?;
    let fields = Some(switch_form(PlanSwitch { item, price, at_once }));
    ask(config, Call { path, fields, idempotency_key: Some(idempotency_key) }).await.map(|_| ())
}

fn subscription_path(id: &str) -> Result<String, StripeError> {
    let is_id = id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if is_id { Ok(format!("/v1/subscriptions/{id}")) } else { Err(StripeError::Odd("id")) }
}

async fn ask(config: &StripeConfig, call: Call) -> Result<Value, StripeError> {
    let config = config.clone();
    let asked = tokio::task::spawn_blocking(move || {
        let agent = outbound::agent(&config.base_url, TIMES).map_err(StripeError::Unreachable)?;
        judge(send(&agent, &config, &call).map_err(unreachable)?)
    });
    asked.await.map_err(unreachable)?
}

fn send(agent: &Agent, config: &StripeConfig, call: &Call) -> Result<Response<Body>, ureq::Error> {
    let url = format!("{}{}", config.base_url, call.path);
    let bearer = format!("Bearer {}", config.secret_key.expose());
    let Some(fields) = &call.fields else {
        return agent.get(url).header(AUTHORIZATION, bearer).header("stripe-version", API_VERSION).call();
    };
    let mut request = agent
        .post(url)
        .header(AUTHORIZATION, bearer)
        .header("stripe-version", API_VERSION)
        .header(CONTENT_TYPE, "application/x-www-form-urlencoded");
    if let Some(key) = &call.idempotency_key {
        request = request.header("idempotency-key", key);
    }
    request.send(serde_urlencoded::to_string(fields).unwrap_or_default())
}

fn judge(mut answer: Response<Body>) -> Result<Value, StripeError> {
    let status = answer.status().as_u16();
    let body = answer.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_vec().map_err(unreachable)?;
    let document: Value = serde_json::from_slice(&body).unwrap_or_default();
    match status {
        200..=299 => Ok(document),
        402 => Err(StripeError::Declined),
        500.. => Err(StripeError::Unreachable(format!("it answered {status}"))),
        _ => Err(StripeError::Refused { status, code: code_of(&document) }),
    }
}

/// A word of Stripe's own, never its sentences.
fn code_of(document: &Value) -> String {
    let word = |name: &str| document["error"][name].as_str();
    let code = word("code").or_else(|| word("type")).unwrap_or("without a code");
    code.chars().filter(|character| character.is_ascii_alphanumeric() || "_ ".contains(*character)).take(64).collect()
}

fn unreachable(error: impl fmt::Display) -> StripeError {
    StripeError::Unreachable(error.to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn of_what_stripe_says_only_a_word_is_repeated() {
        let told = json!({"error": {"code": "api_key_expired", "message": "Expired API Key provided: sk_live_*****7"}});
        assert_eq!(code_of(&told), "api_key_expired");
        assert_eq!(code_of(&json!({"error": {"type": "invalid_request_error"}})), "invalid_request_error");
        assert_eq!(code_of(&json!(null)), "without a code");
        assert_eq!(code_of(&json!({"error": {"code": "a\nb<c>".repeat(99)}})).len(), 64);
    }

    #[test]
    fn only_ids_are_put_into_paths() {
        assert_eq!(subscription_path("sub_1a").unwrap(), "/v1/subscriptions/sub_1a");
        assert!(subscription_path("sub_1/../../charges").is_err());
    }
}
