//! What a customer may ask for, and what it costs.

use askama::Template;

use super::answer::{Answer, page};
use super::guard::Customer;
use super::layout::Frame;
use super::map::Map;
use super::shown::{count, usd};
use crate::relay::meter::{NanoUsd, Rates};
use crate::relay::route::Model;

pub(super) fn map(map: Map) -> Map {
    map.page("/models", show)
}

#[derive(Template)]
#[template(path = "models.html")]
struct ModelsPage {
    frame: Frame,
    models: Vec<Row>,
}

struct Row {
    id: String,
    context: String,
    output_max: String,
    prices: Vec<Prices>,
}

/// What a million tokens cost in prompts of some length.
struct Prices {
    /// Empty for the first.
    above: String,
    input: String,
    output: String,
    cache_read: String,
    cache_write: String,
}

async fn show(customer: Customer) -> Answer {
    let snapshot = customer.who.dashboard.snapshot();
    let plan = snapshot.catalogue.plan(&customer.account.plan);
    let only = plan.and_then(|plan| plan.models.as_deref());
    let allowed = snapshot
        .catalogue
        .models()
        .iter()
        .filter(|model| only.is_none_or(|only| only.iter().any(|id| **id == *model.id)));
    let models = allowed.map(|model| row(model)).collect();
    page(&ModelsPage { frame: Frame::of(&customer.who, "Models", "/models"), models })
}

fn row(model: &Model) -> Row {
    let tiers = model.price.tiers.iter();
    let tiers = tiers.map(|tier| prices(&tier.rates, &format!("prompts above {}", count(tier.prompt_tokens_above))));
    Row {
        id: model.id.to_string(),
        context: count(model.context_window),
        output_max: count(model.output_tokens_max),
        prices: std::iter::once(prices(&model.price.base, "")).chain(tiers).collect(),
    }
}

fn prices(rates: &Rates, above: &str) -> Prices {
    let price = |rate: u64| usd(NanoUsd(i64::try_from(rate).unwrap_or(i64::MAX)));
    Prices {
        above: above.to_owned(),
        input: price(rates.input),
        output: price(rates.output),
        cache_read: price(rates.cache_read),
        cache_write: price(rates.cache_write_5m),
    }
}
