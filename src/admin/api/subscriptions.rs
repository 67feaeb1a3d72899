//! `/subscriptions` and `/accounts/{id}/subscription`: plans by the month.

use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use utoipa::ToSchema;

use super::Api;
use super::answer::{Answer, Page, Refusals, Refused, json};
use super::catalogue::page;
use super::input::{Id, Json, Listing, Query, unknown_cursor};
use crate::admin::{PeriodDocument, SubscriptionDocument, sale, value};
use crate::store::{PaidBy, StoreError, Subscription, SubscriptionChange};

/// How many of an account's periods are looked at: more than people live months.
const PERIODS_MAX: u32 = 2_000;

/// Who pays for a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Payer {
    Credit,
    Operator,
}

impl From<Payer> for PaidBy {
    fn from(payer: Payer) -> Self {
        match payer {
            Payer::Credit => PaidBy::Credit,
            Payer::Operator => PaidBy::Operator,
        }
    }
}

/// A subscription to be begun.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewSubscription {
    /// A plan of the configuration; where credit pays, one with a price.
    plan: String,
    /// `credit` debits the account, each month when it begins; `operator` debits nobody.
    paid_by: Payer,
    /// When it ends in any case.
    #[schema(format = DateTime)]
    ends_at: Option<String>,
}

/// What is to be changed of a subscription: one of these.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(min_properties = 1, max_properties = 1)]
pub(super) struct SubscriptionPatch {
    /// Another plan: at once where it costs more, else from the period's end on. The default plan is to cancel.
    plan: Option<String>,
    /// Whether another period follows: `false` cancels at the period's end, `true` takes that, or another plan, back.
    renews: Option<bool>,
    /// When it ends in any case.
    #[schema(format = DateTime)]
    ends_at: Option<String>,
}

/// All subscriptions that have not ended, oldest first
#[utoipa::path(
    get, path = "/subscriptions", operation_id = "list_subscriptions", tag = "subscriptions", params(Listing),
    responses((status = 200, description = "A page", body = Page<SubscriptionDocument>), Refusals)
)]
pub(super) async fn list(State(api): State<Api>, Query(asked): Query<Listing>) -> Answer {
    let limit = asked.limit()?;
    if let Some(after) = &asked.after
        && !api.store.knows_subscription(after).await?
    {
        return Err(unknown_cursor());
    }
    let rows = api.store.subscriptions_after(asked.after.as_deref(), limit + 1).await?;
    let page = Page::cut(rows, limit, |subscription| subscription.id.clone());
    json(StatusCode::OK, &page.map(|subscription| SubscriptionDocument::from(&subscription)))
}

/// An account's subscription
#[utoipa::path(
    get, path = "/accounts/{id}/subscription", operation_id = "show_subscription", tag = "subscriptions",
    params(("id" = String, Path, description = "`acct_…`")),
    responses((status = 200, description = "The subscription", body = SubscriptionDocument), Refusals)
)]
pub(super) async fn show(State(api): State<Api>, Id(id): Id) -> Answer {
    api.store.account(&id).await?;
    let subscription = api.store.subscription(&id).await?.ok_or(StoreError::NotSubscribed(id))?;
    json(StatusCode::OK, &SubscriptionDocument::from(&subscription))
}

/// Every period that an account was subscribed for, newest first
#[utoipa::path(
    get, path = "/accounts/{id}/subscription/periods", operation_id = "list_subscription_periods", tag = "subscriptions",
    params(("id" = String, Path, description = "`acct_…`"), Listing),
    responses((status = 200, description = "A page", body = Page<PeriodDocument>), Refusals)
)]
pub(super) async fn periods(State(api): State<Api>, Id(id): Id, Query(asked): Query<Listing>) -> Answer {
    api.store.account(&id).await?;
    let rows = api.store.periods_of(&id, PERIODS_MAX).await?.iter().map(PeriodDocument::from).collect();
    json(StatusCode::OK, &page(rows, &asked, |period: &PeriodDocument| &period.id)?)
}

/// Begin a subscription
///
/// Where credit pays, the first month is debited now. Asking again for the plan that is there already changes nothing.
#[utoipa::path(
    post, path = "/accounts/{id}/subscription", operation_id = "create_subscription", tag = "subscriptions",
    params(("id" = String, Path, description = "`acct_…`")), request_body = NewSubscription,
    responses((status = 201, description = "The subscription", body = SubscriptionDocument), Refusals)
)]
pub(super) async fn create(State(api): State<Api>, Id(id): Id, Json(new): Json<NewSubscription>) -> Answer {
    let (ends_at_ms, now_ms) = (moment_ahead(&api, new.ends_at.as_deref())?, api.now_ms());
    let (snapshot, plan) = (api.snapshot(), (&*new.plan, new.paid_by.into()));
    let begun = sale::subscribe(&api.store, &snapshot.catalogue, &id, plan, ends_at_ms, now_ms).await?;
    changed(&api, StatusCode::CREATED, &begun).await
}

/// Change or cancel a subscription
#[utoipa::path(
    patch, path = "/accounts/{id}/subscription", operation_id = "update_subscription", tag = "subscriptions",
    params(("id" = String, Path, description = "`acct_…`")), request_body = SubscriptionPatch,
    responses((status = 200, description = "The subscription as it is now", body = SubscriptionDocument), Refusals)
)]
pub(super) async fn update(State(api): State<Api>, Id(id): Id, Json(patch): Json<SubscriptionPatch>) -> Answer {
    let (snapshot, now_ms) = (api.snapshot(), api.now_ms());
    let change = match (patch.plan, patch.renews, moment_ahead(&api, patch.ends_at.as_deref())?) {
        (Some(plan), None, None) => {
            let plan = (&*plan, None);
            let after = sale::change_plan(&api.store, &snapshot.catalogue, &id, plan, now_ms).await?;
            return changed(&api, StatusCode::OK, &after).await;
        }
        (None, Some(true), None) => SubscriptionChange::Keep,
        (None, Some(false), None) => SubscriptionChange::Cancel,
        (None, None, Some(at_ms)) => SubscriptionChange::EndAt(at_ms),
        _ => {
            return Err(Refused::value("plan", "either plan, renews or ends_at has to be given, and only one of them"));
        }
    };
    let after = api.store.change_subscription(&id, change, now_ms).await?;
    changed(&api, StatusCode::OK, &after).await
}

/// End a subscription at once
///
/// The account goes to the default plan. Nothing is paid back; a credit can be entered for what is unused.
#[utoipa::path(
    delete, path = "/accounts/{id}/subscription", operation_id = "end_subscription", tag = "subscriptions",
    params(("id" = String, Path, description = "`acct_…`")),
    responses((status = 200, description = "The subscription, ended", body = SubscriptionDocument), Refusals)
)]
pub(super) async fn end(State(api): State<Api>, Id(id): Id) -> Answer {
    let snapshot = api.snapshot();
    let ended = sale::end_subscription(&api.store, &snapshot.catalogue, &id, api.now_ms()).await?;
    changed(&api, StatusCode::OK, &ended).await
}

async fn changed(api: &Api, status: StatusCode, subscription: &Subscription) -> Answer {
    api.process.store_changed().await;
    json(status, &SubscriptionDocument::from(subscription))
}

fn moment_ahead(api: &Api, text: Option<&str>) -> Result<Option<i64>, Refused> {
    let at_ms = text.map(value::moment).transpose().map_err(|message| Refused::value("ends_at", message))?;
    match at_ms {
        Some(at_ms) if at_ms <= api.now_ms() => Err(Refused::value("ends_at", "must lie ahead")),
        at_ms => Ok(at_ms),
    }
}
