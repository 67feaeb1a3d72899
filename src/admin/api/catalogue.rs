//! `/models`, `/plans` and `/providers`: what the configuration in force sells, and who delivers it.

use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use super::Api;
use super::answer::{Answer, Page, Refusals, Refused, json};
use super::input::{Listing, Query, unknown_cursor};
use crate::admin::PlanDocument;
use crate::admin::providers::{ProviderDocument, providers as all_providers};
use crate::relay::meter::{NanoUsd, PriceTier, Rates};
use crate::relay::route::{Model, Target};

/// A model as it is sold.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Model)]
struct ModelDocument {
    /// What clients ask for; may hold slashes.
    id: String,
    owned_by: String,
    /// Tokens of prompt and answer together.
    context_window: u64,
    /// The most tokens that one answer may have.
    output_tokens_max: u64,
    price: RatesDocument,
    /// The rates of longer prompts.
    price_tiers: Vec<TierDocument>,
    targets: Vec<TargetDocument>,
}

/// USD per million tokens, as decimal strings.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Rates)]
struct RatesDocument {
    input: String,
    output: String,
    cache_read: String,
    cache_write_5m: String,
    cache_write_1h: String,
}

/// The rates of prompts that are longer than a bound.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = PriceTier)]
struct TierDocument {
    prompt_tokens_above: u64,
    price: RatesDocument,
}

/// Where a model can be had.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Target)]
struct TargetDocument {
    provider: String,
    /// The provider's own name for it.
    model: String,
    /// Its share of the tier.
    weight: u32,
    /// Lower tiers are asked first.
    tier: u32,
}

impl From<&Model> for ModelDocument {
    fn from(model: &Model) -> Self {
        Self {
            id: model.id.to_string(),
            owned_by: model.owned_by.to_string(),
            context_window: model.context_window,
            output_tokens_max: model.output_tokens_max,
            price: RatesDocument::from(&model.price.base),
            price_tiers: model.price.tiers.iter().map(TierDocument::from).collect(),
            targets: model.targets.iter().map(TargetDocument::from).collect(),
        }
    }
}

impl From<&Rates> for RatesDocument {
    fn from(rates: &Rates) -> Self {
        let usd = |nano: u64| NanoUsd(i64::try_from(nano).unwrap_or(i64::MAX)).to_string();
        Self {
            input: usd(rates.input),
            output: usd(rates.output),
            cache_read: usd(rates.cache_read),
            cache_write_5m: usd(rates.cache_write_5m),
            cache_write_1h: usd(rates.cache_write_1h),
        }
    }
}

impl From<&PriceTier> for TierDocument {
    fn from(tier: &PriceTier) -> Self {
        Self { prompt_tokens_above: tier.prompt_tokens_above, price: RatesDocument::from(&tier.rates) }
    }
}

impl From<&Target> for TargetDocument {
    fn from(target: &Target) -> Self {
        Self {
            provider: target.provider.name.to_string(),
            model: target.model.to_string(),
            weight: target.weight,
            tier: target.tier,
        }
    }
}

/// Models, in the order of the configuration
#[utoipa::path(
    get, path = "/models", operation_id = "list_models", tag = "catalogue", params(Listing),
    responses((status = 200, description = "A page", body = Page<ModelDocument>), Refusals)
)]
pub(super) async fn models(State(api): State<Api>, Query(asked): Query<Listing>) -> Answer {
    let snapshot = api.snapshot();
    let rows = snapshot.catalogue.models().iter().map(|model| ModelDocument::from(&**model)).collect();
    json(StatusCode::OK, &page(rows, &asked, |model| &model.id)?)
}

/// Plans, by name
#[utoipa::path(
    get, path = "/plans", operation_id = "list_plans", tag = "catalogue", params(Listing),
    responses((status = 200, description = "A page", body = Page<PlanDocument>), Refusals)
)]
pub(super) async fn plans(State(api): State<Api>, Query(asked): Query<Listing>) -> Answer {
    let snapshot = api.snapshot();
    let catalogue = &snapshot.catalogue;
    let plans = catalogue.plan_names().into_iter().filter_map(|name| catalogue.plan(name));
    let rows = plans.map(|plan| PlanDocument::new(catalogue, plan)).collect();
    json(StatusCode::OK, &page(rows, &asked, |plan: &PlanDocument| &plan.name)?)
}

/// Providers and their health, in the order of the configuration
#[utoipa::path(
    get, path = "/providers", operation_id = "list_providers", tag = "catalogue", params(Listing),
    responses((status = 200, description = "A page", body = Page<ProviderDocument>), Refusals)
)]
pub(super) async fn providers(State(api): State<Api>, Query(asked): Query<Listing>) -> Answer {
    let rows = all_providers(&api.snapshot().catalogue, api.process.now());
    json(StatusCode::OK, &page(rows, &asked, |provider| &provider.name)?)
}

/// A page of rows that are all at hand; what each is called is unique among them.
pub(super) fn page<T>(mut rows: Vec<T>, asked: &Listing, name: impl Fn(&T) -> &str) -> Result<Page<T>, Refused> {
    let limit = asked.limit()?;
    if let Some(after) = &asked.after {
        let place = rows.iter().position(|row| name(row) == after).ok_or_else(unknown_cursor)?;
        rows.drain(..=place);
    }
    Ok(Page::cut(rows, limit, |row| name(row).to_owned()))
}
