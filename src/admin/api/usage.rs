//! `/usage`: what was used and what it cost, request by request or in sums.

use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::Api;
use super::answer::{Answer, Page, Refusals, Refused, json};
use super::input::{Query, limit, time, unknown_cursor};
use crate::admin::{RequestDocument, UsageTotalDocument};
use crate::store::{self, GroupPage, StoreError, UsageFilter, day_begins_ms};

/// Which requests, and how they are told.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Asked {
    /// Only this account's
    account: Option<String>,
    /// Only this key's
    key: Option<String>,
    /// Only of this model
    model: Option<String>,
    /// Only what began then or later: RFC 3339, a UTC date, or how long ago (`24h`, `7d`)
    since: Option<String>,
    /// Only what began before
    until: Option<String>,
    /// Sums in place of requests
    #[param(inline, value_type = Option<By>)]
    by: Option<String>,
    /// The `next` of the page before
    after: Option<String>,
    /// How many rows at most
    #[param(value_type = Option<u32>, minimum = 1, maximum = 1000, default = 100)]
    limit: Option<String>,
}

/// By what sums are taken.
#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
#[expect(dead_code, reason = "it describes what `by_what` reads")]
enum By {
    Account,
    Model,
    Key,
    Provider,
    Day,
}

fn by_what(text: &str) -> Result<store::By, Refused> {
    match text {
        "account" => Ok(store::By::Account),
        "model" => Ok(store::By::Model),
        "key" => Ok(store::By::Key),
        "provider" => Ok(store::By::Provider),
        "day" => Ok(store::By::Day),
        _ => Err(Refused::value("by", "must be account, model, key, provider or day")),
    }
}

/// A request, or with `by` a sum.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum UsageRow<'a> {
    Request(RequestDocument<'a>),
    Total(UsageTotalDocument),
}

/// Requests, newest first; or with `by` their sums
///
/// Sums by account, model, key or provider come in the order of those ids, sums by day the latest first.
#[utoipa::path(
    get, path = "/usage", operation_id = "list_usage", tag = "usage", params(Asked),
    responses((status = 200, description = "A page", body = Page<UsageRow>), Refusals)
)]
pub(super) async fn usage(State(api): State<Api>, Query(asked): Query<Asked>) -> Answer {
    let limit = limit(asked.limit.as_deref())?;
    let filter = filter(&api, &asked).await?;
    match asked.by.as_deref() {
        Some(by) => totals(&api, &filter, by_what(by)?, asked.after.as_deref(), limit).await,
        None => requests(&api, &filter, asked.after.as_deref(), limit).await,
    }
}

/// A key is its account's, whose requests are found by an index.
async fn filter(api: &Api, asked: &Asked) -> Result<UsageFilter, Refused> {
    let now_ms = api.now_ms();
    let unknown = |param| {
        move |error: StoreError| match error {
            StoreError::UnknownAccount(_) | StoreError::UnknownKey(_) => Refused::value(param, "is not known"),
            error => error.into(),
        }
    };
    if let Some(id) = &asked.account {
        api.store.account(id).await.map_err(unknown("account"))?;
    }
    let key = match &asked.key {
        Some(id) => Some(api.store.key(id).await.map_err(unknown("key"))?),
        None => None,
    };
    Ok(UsageFilter {
        account_id: asked.account.clone().or_else(|| key.map(|key| key.account_id)),
        key_id: asked.key.clone(),
        model: asked.model.clone(),
        since_ms: time("since", asked.since.as_deref(), now_ms)?,
        until_ms: time("until", asked.until.as_deref(), now_ms)?,
    })
}

async fn requests(api: &Api, filter: &UsageFilter, after: Option<&str>, limit: u32) -> Answer {
    let position = match after {
        Some(id) => Some(api.store.usage_position(id).await?.ok_or_else(unknown_cursor)?),
        None => None,
    };
    let rows = api.store.usage(filter, position.as_ref(), limit + 1).await?;
    let (records, page) =
        (rows.iter().collect(), |page: Page<_>| page.map(|row| UsageRow::Request(RequestDocument::from(row))));
    json(StatusCode::OK, &page(Page::cut(records, limit, |record| record.request_id.to_string())))
}

async fn totals(api: &Api, filter: &UsageFilter, by: store::By, after: Option<&str>, limit: u32) -> Answer {
    if by == store::By::Day && after.is_some_and(|day| day_begins_ms(day).is_none()) {
        return Err(unknown_cursor());
    }
    let rows = api.store.usage_by_page(filter, by, GroupPage { after, limit: limit + 1 }).await?;
    let page = Page::cut(rows, limit, |total| total.group.clone());
    json(StatusCode::OK, &page.map(|total| UsageRow::Total(UsageTotalDocument::new(by, &total))))
}
