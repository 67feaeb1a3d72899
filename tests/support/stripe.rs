//! Stripe by a script: it takes sessions and changes of subscriptions as the relay should ask for them, and signs events.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

use ring::hmac;
use serde_json::{Value, json};

use super::{Answer, Received, Request, Response, Upstream};

pub const SECRET_KEY: &str = "sk_test_the-operators-own";
pub const WEBHOOK_SECRET: &str = "whsec_the-endpoints-own";

/// Stripe's side.
pub struct Stripe {
    pub upstream: Upstream,
}

impl Stripe {
    pub fn start() -> Self {
        let sessions: Mutex<HashMap<String, String>> = Mutex::default();
        let upstream = Upstream::start(move |request, answer| {
            if request.header("authorization") != Some(&format!("Bearer {SECRET_KEY}")) {
                let told = json!({"error": {"code": "api_key_invalid", "message": format!("Invalid: {SECRET_KEY}")}});
                return answer.json(401, &told);
            }
            match (request.method(), request.path()) {
                ("POST", "/v1/checkout/sessions") => session(&sessions, request, answer),
                ("GET", path) if path.starts_with("/v1/subscriptions/") => {
                    answer.json(200, &json!({"id": "sub_1", "items": {"data": [{"id": "si_1"}]}}));
                }
                ("POST", path) if path.starts_with("/v1/subscriptions/") => {
                    match fields(request).iter().any(|(_, value)| value == "price_declined") {
                        true => answer.json(402, &json!({"error": {"code": "card_declined"}})),
                        false => answer.json(200, &json!({"id": "sub_1"})),
                    }
                }
                _ => answer.json(404, &json!({"error": {"type": "invalid_request_error"}})),
            }
        });
        Self { upstream }
    }

    /// What stands in `[payment.stripe]`.
    pub fn base_url(&self) -> String {
        self.upstream.base_url().trim_end_matches("/v1").to_owned()
    }

    /// The fields of the last request.
    #[track_caller]
    pub fn asked(&self) -> HashMap<String, String> {
        fields(self.upstream.received().last().expect("a request at Stripe")).into_iter().collect()
    }
}

/// A session for each Idempotency-Key, however often it comes.
fn session(sessions: &Mutex<HashMap<String, String>>, request: &Received, answer: &mut Answer) {
    let key = request.header("idempotency-key").unwrap_or_default().to_owned();
    if key.is_empty() {
        return answer.json(400, &json!({"error": {"type": "idempotency_error"}}));
    }
    let mut sessions = sessions.lock().unwrap();
    let id = format!("cs_{}", sessions.len());
    let id = sessions.entry(key).or_insert(id);
    answer.json(200, &json!({"id": id, "url": format!("http://127.0.0.1:9/pay/{id}")}));
}

fn fields(request: &Received) -> Vec<(String, String)> {
    serde_urlencoded::from_bytes(&request.body).unwrap()
}

pub fn now_seconds() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap()
}

/// An event as Stripe writes it.
pub fn event(id: &str, kind: &str, object: &Value) -> Value {
    json!({
        "id": id, "object": "event", "api_version": "2024-06-20", "type": kind, "created": now_seconds(),
        "livemode": false, "pending_webhooks": 1, "data": {"object": object},
    })
}

pub fn paid_session(account: &str, payment_intent: &str, cents: i64) -> Value {
    json!({
        "id": "cs_0", "object": "checkout.session", "mode": "payment", "payment_status": "paid", "currency": "usd",
        "payment_intent": payment_intent, "amount_total": cents, "client_reference_id": account,
        "metadata": {"tollgate_account": account},
    })
}

pub fn subscription_session(account: &str, subscription: &str) -> Value {
    json!({
        "id": "cs_1", "object": "checkout.session", "mode": "subscription", "payment_status": "paid", "currency": "usd",
        "payment_intent": null, "subscription": subscription, "client_reference_id": account,
        "metadata": {"tollgate_account": account},
    })
}

/// A paid invoice for a month that begins so many days from now.
pub fn invoice(subscription: &str, price: &str, cents: i64, day: i64) -> Value {
    let start = now_seconds() + day * 86_400;
    json!({
        "object": "invoice", "subscription": subscription, "currency": "usd", "amount_paid": cents,
        "lines": {"data": [
            {"amount": cents, "price": {"id": price}, "period": {"start": start, "end": start + 30 * 86_400}},
        ]},
    })
}

pub fn subscription(id: &str, account: &str, price: &str, more: Value) -> Value {
    let mut object = json!({
        "id": id, "object": "subscription", "status": "active", "cancel_at_period_end": false, "cancel_at": null,
        "metadata": {"tollgate_account": account}, "items": {"data": [{"id": "si_1", "price": {"id": price}}]},
    });
    object.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    object
}

/// The value of `Stripe-Signature`.
pub fn signature(secret: &str, seconds: i64, body: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let tag = hmac::sign(&key, format!("{seconds}.{body}").as_bytes());
    let digits: String = tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("t={seconds},v1={digits},v0=00")
}

/// Delivers an event as Stripe does.
pub fn deliver(to: SocketAddr, event: &Value) -> Response {
    let body = event.to_string();
    let signature = signature(WEBHOOK_SECRET, now_seconds(), &body);
    deliver_signed(to, body, &signature)
}

pub fn deliver_signed(to: SocketAddr, body: String, signature: &str) -> Response {
    Request::post("/stripe/webhook", body).header("stripe-signature", signature).send(to)
}
