//! All lanes of a configuration. They outlive it: a reload takes over what is the same in the new one.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::lane::{Account, Lane, Standing};
use super::{Model, Provider, Target};

/// A target's lanes, one for each of its provider's credentials, in their order; one where it asks for none.
pub type Lanes = Arc<[Arc<Lane>]>;

/// What is known of every provider's health. As large as the configuration.
#[derive(Debug, Default)]
pub struct Health {
    providers: HashMap<Arc<str>, ProviderHealth>,
}

/// What is known of one provider.
#[derive(Debug)]
pub struct ProviderHealth {
    provider: Arc<Provider>,
    /// In the order of the credentials; one where there are none.
    pub accounts: Vec<Arc<Account>>,
    /// By the provider's own name of the model.
    pub lanes: BTreeMap<Box<str>, Lanes>,
}

impl Health {
    /// The lanes of these models. Those whose provider, credential and model `before` knows are taken over from there, and
    /// what was refused is forgiven.
    pub(super) fn new(models: &[Arc<Model>], providers: &[Arc<Provider>], before: Option<&Health>) -> Self {
        let mut health = Self::default();
        for provider in providers {
            let known = before.and_then(|before| before.same(provider));
            let accounts = (0..provider.credentials.len().max(1)).map(|number| {
                let account = known.and_then(|known| known.accounts.get(known.number_of(provider, number)?));
                let account = account.map(Arc::clone).unwrap_or_default();
                account.forgive(provider.breaker);
                account
            });
            let of_provider =
                ProviderHealth { provider: Arc::clone(provider), accounts: accounts.collect(), lanes: BTreeMap::new() };
            health.providers.insert(provider.name.clone(), of_provider);
        }
        for target in models.iter().flat_map(|model| &model.targets) {
            let known = before.and_then(|before| before.same(&target.provider));
            if let Some(of_provider) = health.providers.get_mut(&target.provider.name) {
                of_provider.add(&target.model, known);
            }
        }
        health
    }

    /// The target's lanes.
    pub fn lanes(&self, target: &Target) -> Option<&Lanes> {
        self.providers.get(&target.provider.name)?.lanes.get(&target.model)
    }

    /// What is known of the provider of that name.
    pub fn provider(&self, name: &str) -> Option<&ProviderHealth> {
        self.providers.get(name)
    }

    /// The provider, if it is the same: reached by the same address, in the same dialect.
    fn same(&self, provider: &Provider) -> Option<&ProviderHealth> {
        self.providers
            .get(&provider.name)
            .filter(|known| known.provider.endpoint == provider.endpoint && known.provider.dialect == provider.dialect)
    }
}

impl ProviderHealth {
    fn add(&mut self, model: &str, known: Option<&ProviderHealth>) {
        let Self { provider, accounts, lanes } = self;
        if lanes.contains_key(model) {
            return;
        }
        let lane = |(number, account): (usize, &Arc<Account>)| {
            let lane = known.and_then(|known| known.lanes.get(model)?.get(known.number_of(provider, number)?));
            let lane = lane.map_or_else(|| Arc::new(Lane::new(Arc::clone(account))), Arc::clone);
            lane.forgive();
            lane
        };
        let all: Lanes = accounts.iter().enumerate().map(lane).collect();
        lanes.insert(model.into(), all);
    }

    /// Which credential of this provider is that of the other.
    fn number_of(&self, other: &Provider, number: usize) -> Option<usize> {
        match other.credentials.get(number) {
            Some(secret) => self.provider.credentials.iter().position(|own| own == secret),
            None => self.provider.credentials.is_empty().then_some(0),
        }
    }

    /// Whether it is well, for any of its models: it has not failed, nor refused, nor asked to be left alone. One that nobody
    /// asks anything of is well.
    pub fn is_healthy(&self, now_us: u64) -> bool {
        self.lanes.is_empty() || self.conditions(now_us).any(|standing| standing == Standing::Ready)
    }

    /// How each of its lanes is.
    pub fn conditions(&self, now_us: u64) -> impl Iterator<Item = Standing> {
        self.lanes.values().flat_map(|lanes| lanes.iter()).map(move |lane| lane.condition(now_us))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::route::testing::{model, provider, target};
    use crate::relay::route::{Catalogue, Dialect, Verdict};

    fn catalogue(credentials: &[&str], names: &[&str]) -> Catalogue {
        let provider = provider("p", credentials);
        let models = names.iter().map(|name| model(vec![target(&provider, name, 1, 0)])).collect();
        Catalogue::new(models, vec![provider], Vec::new())
    }

    fn lanes(catalogue: &Catalogue, model: &str) -> Lanes {
        Arc::clone(&catalogue.health().provider("p").unwrap().lanes[model])
    }

    #[test]
    fn a_reload_keeps_what_is_the_same_whatever_its_place() {
        let old = catalogue(&["one", "two"], &["m", "gone"]);
        let mut new = catalogue(&["three", "two"], &["new", "m"]);
        new.inherit(&old);
        let (before, after) = (lanes(&old, "m"), lanes(&new, "m"));
        assert!(Arc::ptr_eq(&before[1], &after[1]), "the same credential");
        assert!(!before.iter().any(|lane| Arc::ptr_eq(lane, &after[0])), "another credential");
        assert_eq!(new.health().provider("p").unwrap().lanes.len(), 2);
        // A model that is new shares the credential's fate with the old ones.
        lanes(&new, "new")[1].enter(true, 0).unwrap().end(Verdict::CredentialRefused, 0);
        assert_eq!(before[1].standing(0), Standing::Refused);
    }

    #[test]
    fn a_reload_forgives_refusals_and_keeps_breakers() {
        let old = catalogue(&["one", "two"], &["m"]);
        let before = lanes(&old, "m");
        before[0].enter(true, 0).unwrap().end(Verdict::CredentialRefused, 0);
        (0..5).for_each(|_| before[1].enter(true, 0).unwrap().end(Verdict::Failed, 0));
        assert!(!old.health().provider("p").unwrap().is_healthy(0));
        let mut new = catalogue(&["one", "two"], &["m"]);
        new.inherit(&old);
        assert_eq!(lanes(&new, "m")[0].standing(0), Standing::Ready);
        assert!(matches!(lanes(&new, "m")[1].standing(0), Standing::Open { .. }));
        assert!(new.health().provider("p").unwrap().is_healthy(0));
    }

    #[test]
    fn a_provider_that_has_moved_is_another() {
        let old = catalogue(&["one"], &["m"]);
        let mut moved = provider("p", &["one"]);
        Arc::get_mut(&mut moved).unwrap().dialect = Dialect::Gemini;
        let mut new = Catalogue::new(vec![model(vec![target(&moved, "m", 1, 0)])], vec![moved], Vec::new());
        new.inherit(&old);
        assert!(!Arc::ptr_eq(&lanes(&old, "m")[0], &lanes(&new, "m")[0]));
    }
}
