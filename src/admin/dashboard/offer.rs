//! What a customer can do about each plan that is for sale.

use super::plan::{day, limits_of, usd};
use crate::relay::route::{Catalogue, Plan};
use crate::store::{PaidBy, Subscription};

/// A plan, and what its buttons say; one that is empty is not there.
pub(super) struct Offer {
    pub(super) name: String,
    pub(super) price: String,
    pub(super) limits: String,
    pub(super) is_present: bool,
    /// Begins it from the account's credit.
    pub(super) from_credit: String,
    /// Begins it by card.
    pub(super) by_card: String,
    /// Changes to it.
    pub(super) change: String,
}

/// All plans that are for sale, the cheapest first. `at` is the account's plan, and whether cards are taken.
pub(super) fn offers(
    catalogue: &Catalogue,
    present: Option<&Subscription>,
    (plan_now, has_card): (&str, bool),
    now_ms: i64,
) -> Vec<Offer> {
    let default = catalogue.default_plan().map(|plan| &plan.name);
    let offer = |plan: &Plan| {
        let is_present = &*plan.name == plan_now;
        let is_default = default == Some(&plan.name);
        let (mut from_credit, mut by_card) = (String::new(), String::new());
        let price = plan.price.unwrap_or_default();
        if present.is_none() && !is_default && price.0 > 0 {
            from_credit = format!("Pay {} from credit", usd(price));
            if has_card && plan.stripe_price.is_some() {
                by_card = "Pay by card".to_owned();
            }
        }
        Offer {
            name: plan.name.to_string(),
            price: usd(price),
            limits: limits_of(plan),
            is_present,
            from_credit,
            by_card,
            change: match present {
                Some(present) if !is_present && !is_default => change(catalogue, present, plan, now_ms),
                _ => String::new(),
            },
        }
    };
    catalogue.plans_for_sale().into_iter().map(|plan| offer(plan)).collect()
}

/// What a change to that plan is called; empty where there is none.
fn change(catalogue: &Catalogue, present: &Subscription, plan: &Plan, now_ms: i64) -> String {
    let price = plan.price.unwrap_or_default();
    let price_now = catalogue.plan(&present.plan).map_or(present.period_price, |plan| plan.price.unwrap_or_default());
    let (is_up, is_next) = (price > price_now, present.next_plan.as_deref() == Some(&*plan.name));
    match (is_up, present.paid_by) {
        _ if is_next => String::new(),
        (_, PaidBy::Stripe) if plan.stripe_price.is_none() => String::new(),
        (true, PaidBy::Stripe) => "Change now".to_owned(),
        (true, _) => format!("Change now for {}", usd(present.fee_of_change(price, now_ms))),
        (false, PaidBy::Operator) => String::new(),
        (false, _) => format!("Change on {}", day(present.period_ends_ms)),
    }
}
