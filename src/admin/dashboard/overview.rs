//! Where customers begin: what they have, and what they used today and this month.

use askama::Template;

use super::answer::{Answer, Refused, page};
use super::chart::{DayChart, Unit};
use super::guard::Customer;
use super::layout::Frame;
use super::map::Map;
use super::shown::{Moment, count, requests, usd, usd_figure};
use crate::store::{By, UsageFilter, UsageTotal, day_begins_ms, day_name, day_number};

/// How many days the charts have.
const CHART_DAYS: i64 = 30;

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
    /// Figures, as HTML.
    charts: Vec<String>,
    has_keys: bool,
}

/// What was used in some time.
#[derive(Default)]
struct Sum {
    requests: String,
    cost: String,
}

/// A model's part of the month's usage.
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

fn sum(total: &UsageTotal) -> Sum {
    Sum { requests: requests(total.requests), cost: usd_figure(total.cost) }
}

async fn show(customer: Customer) -> Answer {
    page(&overview(&customer).await?)
}

async fn overview(customer: &Customer) -> Result<OverviewPage, Refused> {
    let (who, account) = (&customer.who, &customer.account);
    let now = Moment::of(who.now_ms());
    let since = |since_ms| UsageFilter { account_id: Some(account.id.clone()), since_ms, ..UsageFilter::default() };
    let month = since(day_begins_ms(&now.first_of_month()));
    let today = who.store.usage_sum(&since(day_begins_ms(now.day()))).await?;
    let snapshot = who.dashboard.snapshot();
    Ok(OverviewPage {
        frame: Frame::of(who, "Overview", "/overview"),
        account: account.name.clone(),
        balance: usd_figure(account.balance),
        is_spent: account.balance.0 <= 0,
        is_suspended: !account.active,
        plan: account.plan.clone(),
        limits: snapshot.catalogue.plan(&account.plan).map(|plan| limits_of(plan)).unwrap_or_default(),
        today: sum(&today),
        month: sum(&who.store.usage_sum(&month).await?),
        models: who.store.usage_by(&month, By::Model).await?.iter().map(Part::of).collect(),
        charts: charts(customer).await?,
        has_keys: !who.store.keys_after(Some(&account.id), None, 1).await?.is_empty(),
    })
}

/// What was spent and asked, by day and by model.
async fn charts(customer: &Customer) -> Result<Vec<String>, Refused> {
    let last_day = day_number(customer.who.now_ms());
    let days = (last_day - CHART_DAYS + 1, last_day);
    let filter = UsageFilter {
        account_id: Some(customer.account.id.clone()),
        since_ms: day_name(days.0).as_deref().and_then(day_begins_ms),
        ..UsageFilter::default()
    };
    let totals = customer.who.store.usage_by_day_and(&filter, By::Model).await?;
    if totals.is_empty() {
        return Ok(Vec::new());
    }
    let spent = DayChart::new("spent", "Spent by day and model, USD", Unit::Usd, days, &totals, |sum| sum.cost.0);
    let count = |sum: &UsageTotal| i64::try_from(sum.requests).unwrap_or(i64::MAX);
    let asked = DayChart::new("asked", "Requests by day and model", Unit::Count, days, &totals, count);
    Ok([spent, asked].map(|chart| chart.html()).into())
}

/// A plan's limits in a line.
pub(super) fn limits_of(plan: &crate::relay::route::Plan) -> String {
    let mut limits = vec![format!("{} requests a minute", count(plan.requests_per_minute.into()))];
    limits.extend(plan.tokens_per_minute.map(|tokens| format!("{} tokens a minute", count(tokens))));
    limits.extend(plan.concurrent_requests.map(|most| format!("{} requests at once", count(most.into()))));
    format!("{}, each key", limits.join(", "))
}
