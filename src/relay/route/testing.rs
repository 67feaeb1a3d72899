//! Providers, targets and models for tests of this room.

use std::sync::Arc;

use super::{Dialect, Endpoint, Model, ModelRules, Provider, ProviderTimes, Quirks, Secret, Target};
use crate::relay::meter::{Price, Rates};

/// A provider inside this process, with these credentials.
pub(super) fn provider(name: &str, credentials: &[&str]) -> Arc<Provider> {
    Arc::new(Provider {
        name: name.into(),
        dialect: Dialect::OpenAi,
        endpoint: Endpoint::Demo,
        credentials: credentials.iter().map(|text| Secret::new(*text)).collect(),
        quirks: Quirks::NONE,
        times: ProviderTimes::default(),
        breaker: true,
    })
}

pub(super) fn target(provider: &Arc<Provider>, model: &str, weight: u32, tier: u32) -> Target {
    Target {
        provider: Arc::clone(provider),
        model: model.into(),
        weight,
        tier,
        cost: None,
        rules: ModelRules::default(),
    }
}

/// A model that nobody has to pay for.
pub(super) fn model(targets: Vec<Target>) -> Arc<Model> {
    let base = Rates { input: 0, output: 0, cache_read: 0, cache_write_5m: 0, cache_write_1h: 0 };
    Arc::new(Model {
        id: "m".into(),
        context_window: 1,
        output_tokens_max: 1,
        image_tokens: None,
        owned_by: "tests".into(),
        price: Price { base, tiers: Vec::new() },
        retry_timeouts: true,
        targets,
    })
}
