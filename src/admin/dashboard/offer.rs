//! What a customer can do about each plan that is for sale.

use super::overview::limits_of;
use super::plan::day;
use super::shown::usd;
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::relay::meter::NanoUsd;

    const USD: i64 = 1_000_000_000;
    const DAY_MS: i64 = 86_400_000;

    fn catalogue() -> Catalogue {
        let plan = |(name, usd, at_stripe): (&str, Option<i64>, bool)| Plan {
            name: name.into(),
            requests_per_minute: 1,
            price: usd.map(|usd| NanoUsd(usd * USD)),
            stripe_price: at_stripe.then(|| format!("price_{name}").into()),
            ..Plan::default()
        };
        let plans =
            [("free", Some(0), false), ("pro", Some(29), true), ("starter", Some(9), true), ("max", Some(99), false)];
        let inner = Plan { name: "inner".into(), ..Plan::default() };
        let plans = plans.into_iter().map(plan).chain([inner]).map(Arc::new).collect();
        Catalogue::new(Vec::new(), Vec::new(), plans)
    }

    fn subscription(plan: &str, paid_by: PaidBy) -> Subscription {
        Subscription {
            id: "sub_1".into(),
            account_id: "acct_1".into(),
            plan: plan.into(),
            paid_by,
            anchor_ms: 0,
            period: 1,
            period_starts_ms: 0,
            period_ends_ms: 30 * DAY_MS,
            period_price: NanoUsd(29 * USD),
            renews: true,
            next_plan: None,
            ends_at_ms: None,
            stripe_subscription: None,
            started_at_ms: 0,
            ended_at_ms: None,
            end_reason: None,
        }
    }

    /// Each plan that is offered, with the words of its buttons.
    fn words(present: Option<&Subscription>, has_card: bool) -> Vec<(String, Vec<String>)> {
        let now = present.map_or("free", |present| &*present.plan);
        let of = |offer: Offer| {
            let words = [offer.from_credit, offer.by_card, offer.change];
            (offer.name, words.into_iter().filter(|word| !word.is_empty()).collect())
        };
        offers(&catalogue(), present, (now, has_card), 15 * DAY_MS).into_iter().map(of).collect()
    }

    fn row(name: &str, words: &[&str]) -> (String, Vec<String>) {
        (name.to_owned(), words.iter().map(|word| (*word).to_owned()).collect())
    }

    #[test]
    fn plans_with_a_price_are_offered_the_cheapest_first() {
        let (starter, pro, max) = ("Pay $9.00 from credit", "Pay $29.00 from credit", "Pay $99.00 from credit");
        let all = [row("free", &[]), row("starter", &[starter]), row("pro", &[pro]), row("max", &[max])];
        assert_eq!(words(None, false), all);
        let card = "Pay by card";
        let all = [row("free", &[]), row("starter", &[starter, card]), row("pro", &[pro, card]), row("max", &[max])];
        assert_eq!(words(None, true), all);
    }

    #[test]
    fn a_change_says_when_it_is_and_what_it_costs() {
        let (up, down) = ("Change now for $84.50", "Change on 1970-01-31");
        let all = [row("free", &[]), row("starter", &[down]), row("pro", &[]), row("max", &[up])];
        assert_eq!(words(Some(&subscription("pro", PaidBy::Credit)), true), all);
        let given = [row("free", &[]), row("starter", &[]), row("pro", &[]), row("max", &[up])];
        assert_eq!(words(Some(&subscription("pro", PaidBy::Operator)), true), given);
        let by_card = [row("free", &[]), row("starter", &[down]), row("pro", &[]), row("max", &[])];
        assert_eq!(words(Some(&subscription("pro", PaidBy::Stripe)), true), by_card, "max is not sold there");
        let leaving = Subscription { next_plan: Some("starter".into()), ..subscription("pro", PaidBy::Credit) };
        assert_eq!(words(Some(&leaving), true)[1], row("starter", &[]), "it is coming already");
    }
}
