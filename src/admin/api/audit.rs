//! `/audit`: who changed what.

use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use utoipa::IntoParams;

use super::Api;
use super::answer::{Answer, Page, Refusals, json};
use super::input::{Query, limit, time, unknown_cursor};
use crate::admin::AuditDocument;
use crate::store::AuditFilter;

/// Which entries.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Asked {
    /// Only changes of this account, key or user
    subject: Option<String>,
    /// Only changes from then on: RFC 3339, a UTC date, or how long ago (`24h`, `7d`)
    since: Option<String>,
    /// The `next` of the page before
    after: Option<String>,
    /// How many rows at most
    #[param(value_type = Option<u32>, minimum = 1, maximum = 1000, default = 100)]
    limit: Option<String>,
}

/// Who changed accounts and keys, and how, newest first
#[utoipa::path(
    get, path = "/audit", operation_id = "list_audit", tag = "audit", params(Asked),
    responses((status = 200, description = "A page", body = Page<AuditDocument>), Refusals)
)]
pub(super) async fn list(State(api): State<Api>, Query(asked): Query<Asked>) -> Answer {
    let limit = limit(asked.limit.as_deref())?;
    let since_ms = time("since", asked.since.as_deref(), api.now_ms())?;
    let position = match asked.after {
        Some(id) => Some(api.store.audit_position(&id).await?.ok_or_else(unknown_cursor)?),
        None => None,
    };
    let filter = AuditFilter { subject_id: asked.subject, since_ms };
    let rows = api.store.audit_entries(&filter, position.as_ref(), limit + 1).await?;
    let page = Page::cut(rows, limit, |entry| entry.id.clone());
    json(StatusCode::OK, &page.map(AuditDocument::from))
}
