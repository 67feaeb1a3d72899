//! What is earned against what providers charge: by day, model, provider and account.

use askama::Template;

use super::usd;
use crate::admin::dashboard::answer::{Answer, page};
use crate::admin::dashboard::chart::{DayChart, Unit};
use crate::admin::dashboard::form::Asked;
use crate::admin::dashboard::guard::Operator;
use crate::admin::dashboard::layout::Frame;
use crate::admin::dashboard::map::Map;
use crate::relay::meter::NanoUsd;
use crate::store::{By, DayTotal, UsageFilter, UsageTotal, day_name, day_number, day_number_of};

const PATH: &str = "/operator/revenue";

/// Days that are shown where nobody says which, today included.
const DAYS: i64 = 30;
/// The most that are shown.
const DAYS_MAX: i64 = 92;
const DAY_MS: i64 = 86_400_000;
/// Accounts that are shown, the dearest.
const ACCOUNTS: usize = 50;

pub(super) fn map(map: Map) -> Map {
    map.page(PATH, show)
}

#[derive(Template)]
#[template(path = "operator_revenue.html")]
struct RevenuePage {
    frame: Frame,
    since: String,
    until: String,
    wrong: &'static str,
    total: Row,
    earned: String,
    charged: String,
    tables: Vec<Table>,
    accounts_cut: bool,
}

/// The sums of something.
struct Row {
    of: String,
    /// Where there is more of it.
    path: String,
    requests: u64,
    errors: u64,
    cost: String,
    provider_cost: String,
    margin: String,
    uncosted: u64,
}

struct Table {
    id: &'static str,
    title: &'static str,
    of: &'static str,
    rows: Vec<Row>,
}

impl Row {
    fn of(total: &UsageTotal, path: String) -> Self {
        let margin = NanoUsd(total.cost.0.saturating_sub(total.provider_cost.0));
        Self {
            of: total.group.clone(),
            path,
            requests: total.requests,
            errors: total.errors,
            cost: usd(total.cost),
            provider_cost: usd(total.provider_cost),
            margin: usd(margin),
            uncosted: total.uncosted,
        }
    }
}

/// The days that are asked for, from one to another, both included; and what was wrong with what was asked.
fn days_of(since: Option<&str>, until: Option<&str>, today: i64) -> ((i64, i64), &'static str) {
    const WRONG: &str = "Days are written as 2026-11-30, the first before the last, and are 92 at the most.";
    let usual = (today - DAYS + 1, today);
    let day = |text: Option<&str>, usual| text.map_or(Some(usual), day_number_of);
    let Some(last) = day(until, today) else { return (usual, WRONG) };
    let Some(first) = day(since, last - DAYS + 1) else { return (usual, WRONG) };
    if first <= last && last - first < DAYS_MAX { ((first, last), "") } else { (usual, WRONG) }
}

async fn show(Operator(who): Operator, Asked(asked): Asked) -> Answer {
    let (days, wrong) = days_of(asked.given("since"), asked.given("until"), day_number(who.now_ms()));
    let (first, last) = days;
    let filter =
        UsageFilter { since_ms: Some(first * DAY_MS), until_ms: Some((last + 1) * DAY_MS), ..UsageFilter::default() };
    let store = &who.store;
    let models = store.usage_by_day_and(&filter, By::Model).await?;
    let providers = store.usage_by_day_and(&filter, By::Provider).await?;
    let by_day = store.usage_by(&filter, By::Day).await?;
    let mut accounts = store.usage_by(&filter, By::Account).await?;
    let accounts_cut = accounts.len() > ACCOUNTS;
    accounts.truncate(ACCOUNTS);
    let mut total = UsageTotal::default();
    by_day.iter().for_each(|day| total.add(day));
    let rows = |totals: &[UsageTotal]| totals.iter().map(|total| Row::of(total, String::new())).collect();
    let mut account_rows = Vec::with_capacity(accounts.len());
    for total in &accounts {
        let row = Row::of(total, format!("/operator/accounts/{}", total.group));
        // One that is gone is still known by its id.
        let name = store.account(&total.group).await.map_or_else(|_| row.of.clone(), |account| account.name);
        account_rows.push(Row { of: name, ..row });
    }
    page(&RevenuePage {
        frame: Frame::of(&who, "Revenue", PATH),
        since: day_name(first).unwrap_or_default(),
        until: day_name(last).unwrap_or_default(),
        wrong,
        total: Row::of(&total, String::new()),
        earned: chart("earned", "Revenue by day and model", days, &models, |sum| sum.cost.0),
        charged: chart("charged", "Provider cost by day and provider", days, &providers, |sum| sum.provider_cost.0),
        tables: vec![
            Table { id: "by-model", title: "By model", of: "Model", rows: rows(&added_up(&models)) },
            Table { id: "by-provider", title: "By provider", of: "Provider", rows: rows(&added_up(&providers)) },
            Table { id: "by-account", title: "By account", of: "Account", rows: account_rows },
            Table { id: "by-day", title: "By day (UTC)", of: "Day", rows: rows(&by_day) },
        ],
        accounts_cut,
    })
}

fn chart(
    id: &'static str,
    title: &str,
    days: (i64, i64),
    totals: &[DayTotal],
    value: impl Fn(&UsageTotal) -> i64,
) -> String {
    DayChart::new(id, title, Unit::Usd, days, totals, value).html()
}

/// Sums of days added up, the dearest first.
fn added_up(days: &[DayTotal]) -> Vec<UsageTotal> {
    let mut sums: std::collections::BTreeMap<&str, UsageTotal> = std::collections::BTreeMap::new();
    for DayTotal { total, .. } in days {
        let sum = sums
            .entry(&total.group)
            .or_insert_with(|| UsageTotal { group: total.group.clone(), ..UsageTotal::default() });
        sum.add(total);
    }
    let mut sums: Vec<UsageTotal> = sums.into_values().collect();
    sums.sort_by_key(|sum| std::cmp::Reverse(sum.cost));
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_both_included_and_not_too_many() {
        let today = day_number_of("2026-11-30").unwrap();
        for (since, until, days) in [
            (None, None, 30),
            (Some("2026-11-30"), None, 1),
            (None, Some("2026-11-10"), 30),
            (Some("2026-11-01"), Some("2026-11-10"), 10),
            (Some("2026-08-31"), None, 92),
        ] {
            let ((first, last), wrong) = days_of(since, until, today);
            assert_eq!((last - first + 1, wrong), (days, ""), "{since:?} {until:?}");
        }
        for (since, until) in [
            (Some("2026-12-01"), None),
            (Some("2026-08-30"), None),
            (Some("yesterday"), None),
            (None, Some("2026-13-01")),
        ] {
            let (days, wrong) = days_of(since, until, today);
            assert_eq!(days, (today - 29, today), "{since:?} {until:?}");
            assert!(!wrong.is_empty());
        }
    }
}
