//! Where customers begin: what they have, and what they used today and this month.

use askama::Template;

use super::answer::{Answer, Refused, page};
use super::guard::Customer;
use super::layout::Frame;
use super::map::Map;
use super::shown::{Moment, count, requests, usd};
use crate::relay::meter::NanoUsd;
use crate::store::{By, UsageFilter, UsageTotal, day_begins_ms};

pub(super) fn map(map: Map) -> Map {
    map.page("/overview", show)
}

#[derive(Template)]
#[template(path = "overview.html")]
struct OverviewPage {
    frame: Frame,
    account: String,
    balance: String,
    is_spent: bool,
    is_suspended: bool,
    plan: String,
    limits: String,
    today: Sum,
    month: Sum,
    models: Vec<Part>,
    days: Vec<Part>,
    has_keys: bool,
}

/// What was used in some time.
#[derive(Default)]
struct Sum {
    requests: String,
    cost: String,
}

/// A part of the month's usage: a model's or a day's.
struct Part {
    name: String,
    requests: String,
    tokens: String,
    cost: String,
}

impl Part {
    fn of(total: &UsageTotal) -> Self {
        Self {
            name: total.group.clone(),
            requests: count(total.requests),
            tokens: count(total.usage.total()),
            cost: usd(total.cost),
        }
    }
}

fn sum<'a>(totals: impl Iterator<Item = &'a UsageTotal>) -> Sum {
    let sums = totals.fold((0_u64, 0_i64), |(number, cost), total| {
        (number.saturating_add(total.requests), cost.saturating_add(total.cost.0))
    });
    Sum { requests: requests(sums.0), cost: usd(NanoUsd(sums.1)) }
}

async fn show(customer: Customer) -> Answer {
    page(&overview(&customer).await?)
}

async fn overview(customer: &Customer) -> Result<OverviewPage, Refused> {
    let (who, account) = (&customer.who, &customer.account);
    let now = Moment::of(who.now_ms());
    let filter = UsageFilter {
        account_id: Some(account.id.clone()),
        since_ms: day_begins_ms(&now.first_of_month()),
        ..UsageFilter::default()
    };
    let days = who.store.usage_by(&filter, By::Day).await?;
    let models = who.store.usage_by(&filter, By::Model).await?;
    let snapshot = who.dashboard.snapshot();
    Ok(OverviewPage {
        frame: Frame::of(who, "Overview", "/overview"),
        account: account.name.clone(),
        balance: usd(account.balance),
        is_spent: account.balance.0 <= 0,
        is_suspended: !account.active,
        plan: account.plan.clone(),
        limits: snapshot.catalogue.plan(&account.plan).map(|plan| limits_of(plan)).unwrap_or_default(),
        today: sum(days.iter().filter(|day| day.group == now.day())),
        month: sum(days.iter()),
        models: models.iter().map(Part::of).collect(),
        days: days.iter().map(Part::of).collect(),
        has_keys: !who.store.keys_after(Some(&account.id), None, 1).await?.is_empty(),
    })
}

/// A plan's limits in a line.
pub(super) fn limits_of(plan: &crate::relay::route::Plan) -> String {
    let mut limits = vec![format!("{} requests a minute", count(plan.requests_per_minute.into()))];
    limits.extend(plan.tokens_per_minute.map(|tokens| format!("{} tokens a minute", count(tokens))));
    limits.extend(plan.concurrent_requests.map(|most| format!("{} requests at once", count(most.into()))));
    format!("{}, each key", limits.join(", "))
}
