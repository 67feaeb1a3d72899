//! `/accounts`: customers.

use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use utoipa::ToSchema;

use super::Api;
use super::answer::{Answer, Page, Refusals, Refused, json};
use super::input::{Id, Json, Listing, Query, unknown_cursor};
use crate::admin::{AccountDocument, require_plan, value};
use crate::store::{AccountChange, StoreError};

/// An account to be made.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewAccount {
    /// For people, one line; need not be unique.
    #[schema(max_length = 200, pattern = r"^[^\x00-\x20\x7F-\xA0][^\x00-\x1F\x7F-\x9F]*$")]
    name: String,
    /// A plan of the configuration.
    plan: String,
}

/// What is to be changed of an account; what is not there stays.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct AccountPatch {
    /// For people, one line; need not be unique.
    #[schema(max_length = 200, pattern = r"^[^\x00-\x20\x7F-\xA0][^\x00-\x1F\x7F-\x9F]*$")]
    name: Option<String>,
    /// A plan of the configuration.
    plan: Option<String>,
    /// `suspended` refuses all keys of the account until it is `active` again.
    status: Option<Status>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Status {
    Active,
    Suspended,
}

/// All accounts, oldest first
#[utoipa::path(
    get, path = "/accounts", operation_id = "list_accounts", tag = "accounts", params(Listing),
    responses((status = 200, description = "A page", body = Page<AccountDocument>), Refusals)
)]
pub(super) async fn list(State(api): State<Api>, Query(asked): Query<Listing>) -> Answer {
    let limit = asked.limit()?;
    if let Some(after) = &asked.after {
        api.store.account(after).await.map_err(of_cursor)?;
    }
    let rows = api.store.accounts_after(asked.after.as_deref(), limit + 1).await?;
    let page = Page::cut(rows, limit, |account| account.id.clone());
    json(StatusCode::OK, &page.map(|account| AccountDocument::from(&account)))
}

/// A new account, without credit
#[utoipa::path(
    post, path = "/accounts", operation_id = "create_account", tag = "accounts", request_body = NewAccount,
    responses((status = 201, description = "It was made", body = AccountDocument), Refusals)
)]
pub(super) async fn create(State(api): State<Api>, Json(new): Json<NewAccount>) -> Answer {
    let name = value::name(&new.name).map_err(|message| Refused::value("name", message))?;
    require_plan(&api.snapshot().catalogue, &new.plan)?;
    let account = api.store.create_account(&name, &new.plan, api.now_ms()).await?;
    json(StatusCode::CREATED, &AccountDocument::from(&account))
}

/// One account
#[utoipa::path(
    get, path = "/accounts/{id}", operation_id = "show_account", tag = "accounts",
    params(("id" = String, Path, description = "`acct_…`")),
    responses((status = 200, description = "The account", body = AccountDocument), Refusals)
)]
pub(super) async fn show(State(api): State<Api>, Id(id): Id) -> Answer {
    json(StatusCode::OK, &AccountDocument::from(&api.store.account(&id).await?))
}

/// Rename, move to another plan, suspend or resume an account
///
/// All that is asked for is done at once, or nothing.
#[utoipa::path(
    patch, path = "/accounts/{id}", operation_id = "update_account", tag = "accounts",
    params(("id" = String, Path, description = "`acct_…`")), request_body = AccountPatch,
    responses((status = 200, description = "The account as it is now", body = AccountDocument), Refusals)
)]
pub(super) async fn update(State(api): State<Api>, Id(id): Id, Json(patch): Json<AccountPatch>) -> Answer {
    let name = patch.name.as_deref().map(value::name).transpose();
    let name = name.map_err(|message| Refused::value("name", message))?;
    if let Some(plan) = &patch.plan {
        require_plan(&api.snapshot().catalogue, plan)?;
    }
    let change = AccountChange {
        name: name.as_deref(),
        plan: patch.plan.as_deref(),
        active: patch.status.map(|status| status == Status::Active),
    };
    let account = api.store.update_account(&id, &change, api.now_ms()).await?;
    api.process.store_changed().await;
    json(StatusCode::OK, &AccountDocument::from(&account))
}

/// A page that begins after what is not there.
pub(super) fn of_cursor(error: StoreError) -> Refused {
    match error {
        StoreError::UnknownAccount(_) | StoreError::UnknownKey(_) => unknown_cursor(),
        error => error.into(),
    }
}
