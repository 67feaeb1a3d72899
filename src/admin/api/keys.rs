//! `/accounts/{id}/keys` and `/keys`: API keys. A key is shown once, when it is made.

use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use utoipa::ToSchema;

use super::Api;
use super::accounts::of_cursor;
use super::answer::{Answer, Page, Refusals, Refused, json};
use super::input::{Id, Json, Listing, Query};
use crate::admin::{CreatedKeyDocument, KeyDocument, create_key, value};
use crate::store::{KeyTerms, NewKey};

/// A key to be made; a limit that is not there is the plan's.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct KeyRequest {
    /// For people, one line; need not be unique.
    #[schema(max_length = 200, pattern = r"^[^\x00-\x20\x7F-\xA0][^\x00-\x1F\x7F-\x9F]*$")]
    name: String,
    /// Requests in any 60 seconds.
    #[schema(minimum = 1)]
    requests_per_minute: Option<u32>,
    /// Tokens in any 60 seconds.
    #[schema(minimum = 1)]
    tokens_per_minute: Option<u64>,
    /// Requests at once.
    #[schema(minimum = 1)]
    concurrent_requests: Option<u32>,
    /// What it may spend in all: decimal USD, 0 or more, with at most 9 places after the point.
    #[schema(pattern = r"^[0-9]+(\.[0-9]{1,9})?$", example = "25.00")]
    budget: Option<String>,
    /// The only models that it may use.
    #[schema(min_items = 1)]
    models: Option<Vec<String>>,
    /// The only addresses, or networks in CIDR notation, that it may be used from.
    allow_ip: Option<Vec<String>>,
    /// When it ceases to be good.
    #[schema(format = DateTime)]
    expires_at: Option<String>,
    /// Whether its limits are at most the plan's, whichever plan the account has then; false where it is not there.
    within_plan: Option<bool>,
}

impl KeyRequest {
    fn terms(&self) -> Result<KeyTerms, Refused> {
        let budget = self.budget.as_deref().map(value::budget).transpose();
        let networks = self.allow_ip.iter().flatten().map(|text| value::network(text)).collect::<Result<_, _>>();
        let expires = self.expires_at.as_deref().map(value::moment).transpose();
        if self.models.as_ref().is_some_and(|models| models.is_empty() || models.iter().any(String::is_empty)) {
            return Err(Refused::value("models", "must name one model at least, and none with an empty name"));
        }
        Ok(KeyTerms {
            requests_per_minute: positive("requests_per_minute", self.requests_per_minute)?,
            tokens_per_minute: positive("tokens_per_minute", self.tokens_per_minute)?,
            concurrent_requests: positive("concurrent_requests", self.concurrent_requests)?,
            budget: budget.map_err(|message| Refused::value("budget", message))?,
            models: self.models.clone(),
            allow_ip: networks.map_err(|message| Refused::value("allow_ip", message))?,
            expires_at_ms: expires.map_err(|message| Refused::value("expires_at", message))?,
            within_plan: self.within_plan.unwrap_or_default(),
        })
    }
}

/// A limit that lets something through, and that the store can hold.
fn positive<N: Copy + Into<u64>>(param: &'static str, limit: Option<N>) -> Result<Option<N>, Refused> {
    match limit.map(Into::into) {
        Some(0) => Err(Refused::value(param, "must be 1 or more; leave it out for the plan's")),
        Some(limit) if i64::try_from(limit).is_err() => Err(Refused::value(param, "is too large")),
        _ => Ok(limit),
    }
}

/// All keys, oldest first
#[utoipa::path(
    get, path = "/keys", operation_id = "list_keys", tag = "keys", params(Listing),
    responses((status = 200, description = "A page", body = Page<KeyDocument>), Refusals)
)]
pub(super) async fn list(State(api): State<Api>, Query(asked): Query<Listing>) -> Answer {
    page(&api, None, &asked).await
}

/// An account's keys, oldest first
#[utoipa::path(
    get, path = "/accounts/{id}/keys", operation_id = "list_account_keys", tag = "keys",
    params(("id" = String, Path, description = "`acct_…`"), Listing),
    responses((status = 200, description = "A page", body = Page<KeyDocument>), Refusals)
)]
pub(super) async fn list_of_account(State(api): State<Api>, Id(id): Id, Query(asked): Query<Listing>) -> Answer {
    api.store.account(&id).await?;
    page(&api, Some(&id), &asked).await
}

async fn page(api: &Api, account_id: Option<&str>, asked: &Listing) -> Answer {
    let limit = asked.limit()?;
    if let Some(after) = &asked.after {
        api.store.key(after).await.map_err(of_cursor)?;
    }
    let rows = api.store.keys_after(account_id, asked.after.as_deref(), limit + 1).await?;
    let (page, now_ms) = (Page::cut(rows, limit, |key| key.id.clone()), api.now_ms());
    json(StatusCode::OK, &page.map(|key| KeyDocument::new(&key, now_ms)))
}

/// A new key of an account, shown this once
#[utoipa::path(
    post, path = "/accounts/{id}/keys", operation_id = "create_key", tag = "keys",
    params(("id" = String, Path, description = "`acct_…`")), request_body = KeyRequest,
    responses((status = 201, description = "The key", body = CreatedKeyDocument), Refusals)
)]
pub(super) async fn create(State(api): State<Api>, Id(id): Id, Json(asked): Json<KeyRequest>) -> Answer {
    let name = value::name(&asked.name).map_err(|message| Refused::value("name", message))?;
    let (new, now_ms) = (NewKey { account_id: id, name, terms: asked.terms()? }, api.now_ms());
    let (key, secret) = create_key(&api.store, &new, now_ms).await?;
    let about = KeyDocument::new(&key, now_ms);
    json(StatusCode::CREATED, &CreatedKeyDocument { key: secret.expose().to_owned(), about })
}

/// One key, without the key itself
#[utoipa::path(
    get, path = "/keys/{id}", operation_id = "show_key", tag = "keys",
    params(("id" = String, Path, description = "`key_…`")),
    responses((status = 200, description = "The key", body = KeyDocument), Refusals)
)]
pub(super) async fn show(State(api): State<Api>, Id(id): Id) -> Answer {
    json(StatusCode::OK, &KeyDocument::new(&api.store.key(&id).await?, api.now_ms()))
}

/// Take a key back for good
///
/// One that was revoked before stays as it was.
#[utoipa::path(
    delete, path = "/keys/{id}", operation_id = "revoke_key", tag = "keys",
    params(("id" = String, Path, description = "`key_…`")),
    responses((status = 200, description = "The key, revoked", body = KeyDocument), Refusals)
)]
pub(super) async fn revoke(State(api): State<Api>, Id(id): Id) -> Answer {
    let now_ms = api.now_ms();
    let key = api.store.revoke_key(&id, now_ms).await?;
    api.process.store_changed().await;
    json(StatusCode::OK, &KeyDocument::new(&key, now_ms))
}
