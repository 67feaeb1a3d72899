//! What is sold and who delivers it: models, their targets at providers, and plans. Built by `config`, immutable after.

use std::collections::HashMap;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use super::{Health, ModelRules, Quirks, Secret};
use crate::relay::meter::{ImageTokens, NanoUsd, Price};

/// The models, providers and plans of one configuration.
#[derive(Debug, Default)]
pub struct Catalogue {
    /// In the order of the file, which is the order of `/v1/models`.
    models: Vec<Arc<Model>>,
    models_by_id: HashMap<Arc<str>, Arc<Model>>,
    plans: HashMap<Box<str>, Arc<Plan>>,
    default_plan: Option<Arc<Plan>>,
    providers: Vec<Arc<Provider>>,
    health: Health,
}

impl Catalogue {
    /// Puts a catalogue together. Ids and names are taken to be unique: `config` has checked it.
    pub fn new(models: Vec<Arc<Model>>, providers: Vec<Arc<Provider>>, plans: Vec<Arc<Plan>>) -> Self {
        let health = Health::new(&models, &providers, None);
        Self {
            health,
            models_by_id: models.iter().map(|model| (model.id.clone(), Arc::clone(model))).collect(),
            models,
            default_plan: default_of(&plans).cloned(),
            plans: plans.into_iter().map(|plan| (plan.name.clone(), plan)).collect(),
            providers,
        }
    }

    /// Takes over what `running`, which this catalogue replaces, knows of the providers that are the same.
    pub fn inherit(&mut self, running: &Catalogue) {
        self.health = Health::new(&self.models, &self.providers, Some(&running.health));
    }

    /// What is known of the providers' health.
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// The model that clients ask for as `id`.
    pub fn model(&self, id: &str) -> Option<&Arc<Model>> {
        self.models_by_id.get(id)
    }

    /// All models, in the order of the configuration.
    pub fn models(&self) -> &[Arc<Model>] {
        &self.models
    }

    /// All providers, in the order of the configuration.
    pub fn providers(&self) -> &[Arc<Provider>] {
        &self.providers
    }

    /// The plan of that name.
    pub fn plan(&self, name: &str) -> Option<&Arc<Plan>> {
        self.plans.get(name)
    }

    /// The plan of accounts whose own has ended: the one that is marked so, else the cheapest, the first of several. `None` where
    /// there are no plans.
    pub fn default_plan(&self) -> Option<&Arc<Plan>> {
        self.default_plan.as_ref()
    }

    /// The plans that are sold by the month, the cheapest first.
    pub fn plans_for_sale(&self) -> Vec<&Arc<Plan>> {
        let mut plans: Vec<_> = self.plans.values().filter(|plan| plan.price.is_some()).collect();
        plans.sort_unstable_by_key(|plan| (plan.price, plan.requests_per_minute, &plan.name));
        plans
    }

    /// The plan that is this price at Stripe.
    pub fn plan_of_stripe_price(&self, price: &str) -> Option<&Arc<Plan>> {
        self.plans.values().find(|plan| plan.stripe_price.as_deref() == Some(price))
    }

    /// The names of all plans, sorted.
    pub fn plan_names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.plans.keys().map(|name| &**name).collect();
        names.sort_unstable();
        names
    }
}

fn default_of(plans: &[Arc<Plan>]) -> Option<&Arc<Plan>> {
    let cheapest = || plans.iter().min_by_key(|plan| plan.price.unwrap_or_default());
    plans.iter().find(|plan| plan.is_default).or_else(cheapest)
}

/// A model as clients see it.
#[derive(Debug)]
pub struct Model {
    /// The public id; may hold slashes.
    pub id: Arc<str>,
    /// Tokens of prompt and answer together that clients are promised.
    pub context_window: u64,
    /// The most tokens that one answer may have.
    pub output_tokens_max: u64,
    /// What an image counts as, where it is not what is usual at its provider.
    pub image_tokens: Option<ImageTokens>,
    /// Who made it, as `/v1/models` says.
    pub owned_by: Box<str>,
    /// What it costs.
    pub price: Price,
    /// Whether another target is asked where the first byte of an answer does not come in time. What was asked may go on and
    /// cost the operator all the same.
    pub retry_timeouts: bool,
    /// Where it can be had; never empty.
    pub targets: Vec<Target>,
}

/// One place where a model can be had.
#[derive(Debug, Clone)]
pub struct Target {
    /// Who delivers.
    pub provider: Arc<Provider>,
    /// The provider's own name for the model.
    pub model: Box<str>,
    /// Share of the tier's requests, against the other targets' weights; at least 1.
    pub weight: u32,
    /// Lower tiers are asked first.
    pub tier: u32,
    /// What the provider charges the operator, where that is known. Customers are not told.
    pub cost: Option<Price>,
    /// What the model takes and refuses there.
    pub rules: ModelRules,
}

/// A provider: a row of configuration.
#[derive(Debug)]
pub struct Provider {
    /// The name that metrics, logs and bills carry.
    pub name: Arc<str>,
    /// The wire format that it speaks.
    pub dialect: Dialect,
    /// Where it is.
    pub endpoint: Endpoint,
    /// Used in turn; empty only for [`Endpoint::Demo`] and for providers that ask for none.
    pub credentials: Vec<Secret>,
    /// How it deviates from its dialect.
    pub quirks: Quirks,
    /// How long it may take.
    pub times: ProviderTimes,
    /// Whether it is left alone after failures. Without, it is asked whatever it has answered before.
    pub breaker: bool,
}

/// The wire formats that providers speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// OpenAI's chat completions, and everyone who copies them.
    OpenAi,
    /// Anthropic's messages.
    Anthropic,
    /// Gemini's generateContent.
    Gemini,
}

impl Dialect {
    /// The name in configuration.
    pub fn name(self) -> &'static str {
        match self {
            Dialect::OpenAi => "openai",
            Dialect::Anthropic => "anthropic",
            Dialect::Gemini => "gemini",
        }
    }
}

/// A dialect's name that nobody knows.
#[derive(Debug, PartialEq, Eq)]
pub struct UnknownDialect;

impl FromStr for Dialect {
    type Err = UnknownDialect;

    fn from_str(name: &str) -> Result<Self, UnknownDialect> {
        [Dialect::OpenAi, Dialect::Anthropic, Dialect::Gemini]
            .into_iter()
            .find(|dialect| dialect.name() == name)
            .ok_or(UnknownDialect)
    }
}

/// Where a provider is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// Over the network.
    Network(Address),
    /// The demo inside this process, `builtin:demo` in configuration.
    Demo,
}

/// A provider's place on the network, from its `base_url`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// https.
    pub tls: bool,
    /// Host name or literal address, without brackets.
    pub host: Box<str>,
    /// The port, given or the scheme's own.
    pub port: u16,
    /// The Host header: host, and the port where it is not the scheme's own.
    pub authority: Box<str>,
    /// What stands before the dialect's own path; no slash at its end.
    pub path: Box<str>,
}

/// How long a provider may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProviderTimes {
    /// To accept a connection, TLS included.
    pub connect: Duration,
    /// From the request's last byte to the answer's first.
    pub first_byte: Duration,
    /// Between two reads of the answer.
    pub idle: Duration,
    /// The whole exchange.
    pub total: Duration,
}

impl Default for ProviderTimes {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(3),
            first_byte: Duration::from_secs(60),
            idle: Duration::from_secs(60),
            total: Duration::from_secs(600),
        }
    }
}

/// A plan: the limits of an account's keys, where a key has none of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// The name by which accounts refer to it.
    pub name: Box<str>,
    /// Requests in any 60 seconds, per key.
    pub requests_per_minute: u32,
    /// Tokens in any 60 seconds, per key.
    pub tokens_per_minute: Option<u64>,
    /// Requests at once, per key.
    pub concurrent_requests: Option<u32>,
    /// The ids that its keys may use; `None` is all.
    pub models: Option<Vec<Box<str>>>,
    /// What a month of it costs. A plan without a price is not for sale: only the operator puts accounts on it.
    pub price: Option<NanoUsd>,
    /// What Stripe knows its monthly price by, where it is sold there.
    pub stripe_price: Option<Box<str>>,
    /// Marked as the plan of accounts whose own has ended.
    pub is_default: bool,
}
