//! Every provider with its credentials, by number, and how each of its models stands.
//!
//! Absent: credentials themselves, and anything that could be mistaken for a part of one.

use serde::Serialize;
use utoipa::ToSchema;

use super::api::Moment;
use crate::relay::meter::rfc3339;
use crate::relay::route::{Catalogue, Lane, Provider, ProviderHealth, Standing};

/// A provider and its health.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Provider)]
pub(super) struct ProviderDocument {
    pub(super) name: String,
    /// `openai`, `anthropic` or `gemini`.
    #[schema(value_type = String)]
    pub(super) dialect: &'static str,
    /// Whether any of it can be asked.
    pub(super) healthy: bool,
    pub(super) credentials: Vec<CredentialDocument>,
    /// Each model with each credential that has been tried.
    pub(super) models: Vec<LaneDocument>,
}

/// One of a provider's credentials.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Credential)]
pub(super) struct CredentialDocument {
    /// Its place in the configuration, from 1.
    pub(super) number: usize,
    /// The provider refused it; it is set aside until the configuration is reloaded.
    pub(super) refused: bool,
}

/// A model at a provider, with one credential.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Lane)]
pub(super) struct LaneDocument {
    /// The provider's name for it.
    pub(super) model: String,
    /// The credential's number, where there are any.
    #[schema(required)]
    pub(super) credential: Option<usize>,
    /// What its breaker does: `closed` lets requests through.
    #[schema(value_type = String)]
    pub(super) state: &'static str,
    /// Until when nothing is asked there.
    #[schema(format = DateTime, required)]
    pub(super) open_until: Option<String>,
    pub(super) consecutive_failures: u32,
    pub(super) requests_in_flight: u32,
    /// How long it takes to begin an answer, of late.
    #[schema(required)]
    pub(super) first_byte_ms: Option<u64>,
}

/// All providers, in the order of the configuration.
pub(super) fn providers(catalogue: &Catalogue, now: Moment) -> Vec<ProviderDocument> {
    let providers = catalogue.providers().iter();
    providers
        .filter_map(|provider| Some(describe(provider, catalogue.health().provider(&provider.name)?, now)))
        .collect()
}

fn describe(provider: &Provider, health: &ProviderHealth, now: Moment) -> ProviderDocument {
    let credentials = provider.credentials.iter().zip(&health.accounts).enumerate();
    let credentials =
        credentials.map(|(at, (_, account))| CredentialDocument { number: at + 1, refused: account.is_refused() });
    let lanes = health
        .lanes
        .iter()
        .flat_map(|(model, lanes)| lanes.iter().enumerate().map(move |(at, lane)| (model, at, lane)));
    let models = lanes.map(|(model, at, lane)| {
        let number = (!provider.credentials.is_empty()).then_some(at + 1);
        describe_lane(model, number, lane, now)
    });
    ProviderDocument {
        name: provider.name.to_string(),
        dialect: provider.dialect.name(),
        healthy: health.is_healthy(now.us),
        credentials: credentials.collect(),
        models: models.collect(),
    }
}

fn describe_lane(model: &str, credential: Option<usize>, lane: &Lane, now: Moment) -> LaneDocument {
    let view = lane.view(now.us);
    let until_us = match view.condition {
        Standing::Open { until_us } | Standing::Resting { until_us } if until_us > now.us => Some(until_us),
        _ => None,
    };
    LaneDocument {
        model: model.to_owned(),
        credential,
        state: view.condition.name(now.us),
        open_until: until_us.map(|us| rfc3339(now.unix_ms_at(us))),
        consecutive_failures: view.failures,
        requests_in_flight: view.in_flight,
        first_byte_ms: view.first_byte_us.map(|us| us / 1000),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::relay::route::{Dialect, Endpoint, ProviderTimes, Quirks, Secret};

    #[test]
    fn nobody_reads_a_credential() {
        let provider = Arc::new(Provider {
            name: "p".into(),
            dialect: Dialect::OpenAi,
            endpoint: Endpoint::Demo,
            credentials: vec![Secret::new("sk-secret")],
            quirks: Quirks::NONE,
            times: ProviderTimes::default(),
            breaker: true,
        });
        let catalogue = Catalogue::new(Vec::new(), vec![provider], Vec::new());
        let told = serde_json::to_string(&providers(&catalogue, Moment { us: 0, unix_ms: 0 })).unwrap();
        assert!(told.contains(r#""credentials":[{"number":1,"refused":false}]"#), "{told}");
        assert!(!told.contains("secret"), "{told}");
    }
}
