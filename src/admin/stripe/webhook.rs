//! `POST /stripe/webhook`: what Stripe tells, believed by its signature alone.
//!
//! An event is answered with 200 when it is in the store, whether it was there before, and whether or not it matters here: Stripe asks
//! again for whatever else it hears, for days.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use http_body_util::{BodyExt, Limited};

use crate::admin::api::Process;
use crate::config::{Live, Snapshot};
use crate::relay::refusal::{Cause, Refusal};
use crate::relay::stripe::{Event, Told, verify};
use crate::store::{Actor, Store, StoreError, StripeOutcome, StripePlans};

/// The largest event that is read.
const EVENT_BYTES_MAX: usize = 1 << 20;

/// What the route works on.
#[derive(Clone)]
pub struct Webhook {
    live: Arc<Live>,
    store: Store,
    process: Arc<dyn Process>,
}

impl Webhook {
    /// A webhook over that configuration and store.
    pub fn new(live: Arc<Live>, store: &Store, process: Arc<dyn Process>) -> Self {
        Self { live, store: store.in_the_name_of(Actor::Stripe), process }
    }
}

/// The one route, ready to be served beside others.
pub fn routes(webhook: Webhook) -> Router {
    Router::new().route("/stripe/webhook", post(take)).with_state(webhook)
}

async fn take(State(webhook): State<Webhook>, request: Request) -> Response {
    match taken(&webhook, request).await {
        Ok(outcome) => {
            let body = format!("{{\"outcome\":\"{}\"}}", outcome.name());
            (StatusCode::OK, [(header::CONTENT_TYPE, "application/json")], body).into_response()
        }
        Err(refusal) => {
            let status = StatusCode::from_u16(refusal.cause.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            (status, [(header::CONTENT_TYPE, "application/json")], refusal.to_json()).into_response()
        }
    }
}

async fn taken(webhook: &Webhook, request: Request) -> Result<StripeOutcome, Refusal> {
    let snapshot = webhook.live.load();
    let Some(stripe) = &snapshot.stripe else {
        return Err(Refusal::new(Cause::UnknownUrl, "There is no payment by Stripe here."));
    };
    let (parts, body) = request.into_parts();
    let body = read(body, &snapshot).await?;
    let now_ms = webhook.process.now().unix_ms;
    // No word of an event is read before it is known whose it is.
    verify(&stripe.webhook_secret, signature(&parts.headers), &body, now_ms.div_euclid(1_000))
        .map_err(|error| Refusal::new(Cause::BadRequest, error.to_string()))?;
    let event = Event::parse(&body).map_err(|_| Refusal::new(Cause::InvalidJson, "The body is no event."))?;
    let outcome = enter(webhook, &snapshot, &event, now_ms).await.map_err(|error| failed(&event, &error))?;
    tell(&event, outcome);
    if outcome == StripeOutcome::Taken {
        webhook.process.store_changed().await;
    }
    Ok(outcome)
}

async fn enter(
    webhook: &Webhook,
    snapshot: &Snapshot,
    event: &Event,
    now_ms: i64,
) -> Result<StripeOutcome, StoreError> {
    let catalogue = &snapshot.catalogue;
    let price = match &event.told {
        Told::Invoice(invoice) => Some(&*invoice.price),
        Told::State(state) => state.price.as_deref(),
        _ => None,
    };
    let of_price = price.and_then(|price| catalogue.plan_of_stripe_price(price)).map(|plan| &*plan.name);
    let default = catalogue.default_plan().map_or("", |plan| &*plan.name);
    webhook.store.take_stripe_event(event, StripePlans { of_price, default }, now_ms).await
}

/// The one header that must be there once.
fn signature(headers: &HeaderMap) -> &str {
    let mut all = headers.get_all("stripe-signature").iter();
    match (all.next(), all.next()) {
        (Some(one), None) => one.to_str().unwrap_or_default(),
        _ => "",
    }
}

async fn read(body: Body, snapshot: &Snapshot) -> Result<Vec<u8>, Refusal> {
    let reading = tokio::time::timeout(snapshot.limits.body_total_max, Limited::new(body, EVENT_BYTES_MAX).collect());
    let slow = |_| Refusal::new(Cause::RequestTimeout, "The event took too long to arrive.");
    let broken = |_| Refusal::new(Cause::RequestTooLarge, "The event is larger than 1 MiB, or broke off.");
    Ok(reading.await.map_err(slow)?.map_err(broken)?.to_bytes().into())
}

fn tell(event: &Event, outcome: StripeOutcome) {
    let (id, kind, outcome_name) = (&event.id, &event.kind, outcome.name());
    match outcome {
        StripeOutcome::Taken | StripeOutcome::Repeated | StripeOutcome::Ignored => {
            tracing::info!(event = id, kind, outcome = outcome_name, "Stripe told");
        }
        StripeOutcome::UnknownAccount | StripeOutcome::UnknownPrice | StripeOutcome::OtherCurrency => {
            tracing::warn!(event = id, kind, outcome = outcome_name, "Stripe told what nothing was done about");
        }
    }
}

fn failed(event: &Event, error: &StoreError) -> Refusal {
    tracing::error!(event = event.id, kind = event.kind, %error, "what Stripe told could not be entered; it tells it again");
    match error {
        StoreError::Database(_) => Refusal::new(Cause::StoreUnavailable, "The store cannot be reached at the moment."),
        _ => Refusal::new(Cause::InternalError, "The event could not be entered."),
    }
}
