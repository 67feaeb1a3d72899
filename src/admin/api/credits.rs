//! `/accounts/{id}/credits`: money that is given, or taken back.

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use serde::Deserialize;
use utoipa::ToSchema;

use super::Api;
use super::answer::{Answer, Page, Refusals, Refused, json};
use super::input::{IDEMPOTENT_REPLAYED, Id, Json, Listing, Query, idempotency_key, unknown_cursor};
use crate::admin::{CreditDocument, value};

/// A credit to be entered.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewCredit {
    /// Decimal USD with at most 9 places after the point; negative for a correction, not zero.
    #[schema(pattern = r"^-?[0-9]+(\.[0-9]{1,9})?$", example = "5.00")]
    amount: String,
    /// What to remember about it, one line.
    #[schema(max_length = 200, pattern = r"^[^\x00-\x20\x7F-\xA0][^\x00-\x1F\x7F-\x9F]*$")]
    note: Option<String>,
}

/// An account's grants and corrections, newest first
#[utoipa::path(
    get, path = "/accounts/{id}/credits", operation_id = "list_credits", tag = "accounts",
    params(("id" = String, Path, description = "`acct_…`"), Listing),
    responses((status = 200, description = "A page", body = Page<CreditDocument>), Refusals)
)]
pub(super) async fn list(State(api): State<Api>, Id(id): Id, Query(asked): Query<Listing>) -> Answer {
    let limit = asked.limit()?;
    let before = asked.after.map(|after| after.parse::<i64>()).transpose().map_err(|_| unknown_cursor())?;
    api.store.account(&id).await?;
    let rows = api.store.credits_before(&id, before.unwrap_or(i64::MAX), limit + 1).await?;
    let page = Page::cut(rows, limit, |credit| credit.seq.to_string());
    json(StatusCode::OK, &page.map(|credit| CreditDocument::new(&id, credit)))
}

/// Add to an account's balance, or take from it
///
/// With an `Idempotency-Key` it is safe to ask again: the money moves once, however often the same account, key, amount and note
/// come, and the answer to a repeat says `idempotent-replayed: true`. Another amount or note under the same key is refused.
#[utoipa::path(
    post, path = "/accounts/{id}/credits", operation_id = "create_credit", tag = "accounts",
    params(
        ("id" = String, Path, description = "`acct_…`"),
        ("Idempotency-Key" = Option<String>, Header, description = "1 to 255 visible ASCII characters; take a UUID"),
    ),
    request_body = NewCredit,
    responses((status = 201, description = "It is entered", body = CreditDocument), Refusals)
)]
pub(super) async fn create(
    State(api): State<Api>,
    Id(id): Id,
    headers: HeaderMap,
    Json(new): Json<NewCredit>,
) -> Answer {
    let key = idempotency_key(&headers)?;
    let amount = value::amount(&new.amount).map_err(|message| Refused::value("amount", message))?;
    let note = new.note.as_deref().map(value::name).transpose();
    let note = note.map_err(|message| Refused::value("note", message))?;
    let credited = api.store.credit_once(&id, amount, note.as_deref(), key, api.now_ms()).await?;
    api.process.store_changed().await;
    let mut answer = json(StatusCode::CREATED, &CreditDocument::new(&id, credited.credit))?;
    if credited.is_repeat {
        answer.headers_mut().insert(IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"));
    }
    Ok(answer)
}
