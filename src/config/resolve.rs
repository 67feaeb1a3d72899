//! Looks up, across all files, what rows name: providers in targets, models in plans. From rows to the catalogue.

use std::collections::HashMap;
use std::sync::Arc;

use super::Providers;
use super::draft::{Draft, Row};
use super::mistake::Mistakes;
use super::model::{ModelRow, TargetRow};
use super::plan::PlanRow;
use super::provider::ProviderRow;
use super::rules::NamedRules;
use super::secret::Credential;
use crate::relay::route::{Catalogue, Endpoint, Model, Plan, Provider, Target};

/// The catalogue of a draft's rows, and what was left out of it, a line each.
pub(super) fn catalogue(draft: Draft, providers: Providers, mistakes: &Mistakes) -> (Catalogue, Vec<String>) {
    let Draft { plans, providers: provider_rows, models, .. } = draft;
    let mut left_out = Vec::new();
    let plans = resolve_plans(plans, &models, mistakes);
    let offers = Offers::new(provider_rows, providers, mistakes, &mut left_out);
    let models = models.into_iter().filter_map(|row| offers.model(row, mistakes, &mut left_out)).collect();
    (Catalogue::new(models, offers.in_order, plans), left_out)
}

fn resolve_plans(rows: Vec<Row<PlanRow>>, models: &[Row<ModelRow>], mistakes: &Mistakes) -> Vec<Arc<Plan>> {
    let mut plans: Vec<Arc<Plan>> = Vec::with_capacity(rows.len());
    for Row { name, place, content } in rows {
        let Some(content) = content else { continue };
        if let Some(place) = &content.default
            && let Some(other) = plans.iter().find(|plan| plan.is_default)
        {
            mistakes
                .report(place, format!("plan.default: {:?} is the default already; mark one plan only", other.name));
        }
        if let Some(price) = &content.stripe_price
            && let Some(other) = plans.iter().find(|plan| plan.stripe_price.as_ref() == Some(price))
        {
            let what = format!("plan.stripe_price: is the price of {:?} too; each plan has one of its own", other.name);
            mistakes.report(&place, what);
        }
        for (id, place) in content.models.iter().flatten() {
            if !models.iter().any(|model| model.name == *id) {
                let what =
                    format!("plan.models: there is no model {id:?}; add a [[model]] with that id, or remove it here");
                mistakes.report_absence_anywhere(place, what);
            }
        }
        plans.push(Arc::new(content.into_plan(name)));
    }
    plans
}

/// What became of each provider that was written down.
struct Offers {
    in_order: Vec<Arc<Provider>>,
    by_name: HashMap<Box<str>, Offer>,
    providers: Providers,
}

enum Offer {
    Ready(Arc<Provider>),
    /// Left out, or wrong in itself; either has been told.
    Gone,
}

impl Offers {
    fn new(rows: Vec<Row<ProviderRow>>, providers: Providers, mistakes: &Mistakes, left_out: &mut Vec<String>) -> Self {
        let mut offers = Self { in_order: Vec::new(), by_name: HashMap::new(), providers };
        for Row { name, content, .. } in rows {
            let offer = match content {
                Some(row) => offers.offer(&name, row, mistakes, left_out),
                None => Offer::Gone,
            };
            if let Offer::Ready(provider) = &offer {
                offers.in_order.push(Arc::clone(provider));
            }
            offers.by_name.insert(name, offer);
        }
        offers
    }

    fn offer(&self, name: &str, row: ProviderRow, mistakes: &Mistakes, left_out: &mut Vec<String>) -> Offer {
        let missing: Vec<_> = row
            .credentials
            .iter()
            .filter_map(|credential| match credential {
                Credential::Ready(_) => None,
                Credential::Missing { place, why } => Some((place, why)),
            })
            .collect();
        match self.providers {
            Providers::All => missing.iter().for_each(|(place, why)| mistakes.report(place, why.as_str())),
            Providers::OnlyReady => {
                let needs_credentials = row.endpoint != Endpoint::Demo && !row.credentials.is_empty();
                if let Some((_, why)) = missing.first()
                    && needs_credentials
                    && missing.len() == row.credentials.len()
                {
                    left_out.push(format!("provider {name}: {why}"));
                    return Offer::Gone;
                }
            }
        }
        Offer::Ready(Arc::new(row.into_provider(name.into())))
    }

    /// A model with the targets whose providers are there; `None` without any.
    fn model(&self, row: Row<ModelRow>, mistakes: &Mistakes, left_out: &mut Vec<String>) -> Option<Arc<Model>> {
        let Row { name: id, content, .. } = row;
        let ModelRow {
            context_window,
            output_tokens_max,
            image_tokens,
            owned_by,
            price,
            retry_timeouts,
            rules,
            targets,
        } = content?;
        let targets: Vec<Target> = targets.into_iter().filter_map(|row| self.target(row, &rules, mistakes)).collect();
        if targets.is_empty() {
            left_out.push(format!("model {id}: none of its providers is there"));
            return None;
        }
        Some(Arc::new(Model {
            id: id.into(),
            context_window,
            output_tokens_max,
            image_tokens,
            owned_by,
            price,
            retry_timeouts,
            targets,
        }))
    }

    fn target(&self, row: TargetRow, of_model: &NamedRules, mistakes: &Mistakes) -> Option<Target> {
        let TargetRow { place, provider, model: provider_model, weight, tier, cost, rules } = row;
        match self.by_name.get(&provider) {
            Some(Offer::Ready(provider)) => Some(Target {
                provider: Arc::clone(provider),
                model: provider_model,
                weight,
                tier,
                cost,
                rules: rules.or(of_model),
            }),
            Some(Offer::Gone) => None,
            None => {
                let what = format!(
                    "model.targets: there is no provider {provider:?}; add a [[provider]] with that name, or mend \
                     this one"
                );
                mistakes.report_absence_anywhere(&place, what);
                None
            }
        }
    }
}
