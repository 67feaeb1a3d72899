//! Sums of usage, read: whole days from the sums that are kept of them, what lies beside whole days from the requests themselves.

use sqlx::FromRow;
use time::macros::format_description;
use time::{Date, OffsetDateTime};

use super::engine::{Builder, Engine, PAGE_SECONDS_MAX};
use super::rollup::{DAY_MS, SUMMED};
use super::usage::{UsageFilter, UsageRow, time_of_all};
use super::{Store, StoreError};
use crate::relay::meter::{NanoUsd, Usage};

/// A page of sums: those of the groups that come after one, in an order that does not change while requests are added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupPage<'a> {
    /// The last group of the page before.
    pub after: Option<&'a str>,
    /// How many at most.
    pub limit: u32,
}

/// By what usage is summed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// The account's id.
    Account,
    /// The public id of the model.
    Model,
    /// The key's id.
    Key,
    /// Who answered, by the provider's name.
    Provider,
    /// The UTC day on which requests began.
    Day,
}

/// The sums over the requests of one account, model, key, provider or day.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UsageTotal {
    /// The account's id, the model, the key's id, the provider's name, or the day as `YYYY-MM-DD`.
    pub group: String,
    /// How many.
    pub requests: u64,
    /// Of those, how many were answered with a status of 400 or more.
    pub errors: u64,
    /// What they used.
    pub usage: Usage,
    /// What they cost.
    pub cost: NanoUsd,
    /// What providers charge for them, as far as that is known. For the operator's eyes.
    pub provider_cost: NanoUsd,
    /// How many used tokens of which it is not known what the provider charges for them. For the operator's eyes.
    pub uncosted: u64,
}

/// A day's sums over the requests of one account, model or key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DayTotal {
    /// The UTC day as `YYYY-MM-DD`.
    pub day: String,
    /// The sums.
    pub total: UsageTotal,
}

impl Store {
    /// The sums of requests: the dearest account, model or key first, or the latest day.
    pub async fn usage_by(&self, filter: &UsageFilter, by: By) -> Result<Vec<UsageTotal>, StoreError> {
        let order = match by {
            By::Day => "usage_group DESC",
            _ => "cost_nano_usd DESC, usage_group",
        };
        self.totals(&Asked { filter, by, after: None, order, limit: None }).await
    }

    /// A page of the sums of requests: accounts, models or keys in the order of their ids, days the latest first. A page of
    /// days begins after a day as [`UsageTotal`] has it; none does after what is no day.
    pub async fn usage_by_page(
        &self,
        filter: &UsageFilter,
        by: By,
        page: GroupPage<'_>,
    ) -> Result<Vec<UsageTotal>, StoreError> {
        let limit = Some(page.limit);
        if by != By::Day {
            return self.totals(&Asked { filter, by, after: page.after, order: "usage_group", limit }).await;
        }
        let before_ms = page.after.map_or(i64::MAX, |day| day_begins_ms(day).unwrap_or(i64::MIN));
        let until_ms = Some(filter.until_ms.unwrap_or(i64::MAX).min(before_ms));
        let filter = &UsageFilter { until_ms, ..filter.clone() };
        self.totals(&Asked { filter, by, after: None, order: "usage_group DESC", limit }).await
    }

    /// The sums of all of those requests.
    pub async fn usage_sum(&self, filter: &UsageFilter) -> Result<UsageTotal, StoreError> {
        let mut sum = UsageTotal::default();
        for day in self.usage_by(filter, By::Day).await? {
            sum.add(&day);
        }
        Ok(sum)
    }

    /// The sums of each day by account, model or key, the earliest day first, and of a day in the order of their ids.
    pub async fn usage_by_day_and(&self, filter: &UsageFilter, by: By) -> Result<Vec<DayTotal>, StoreError> {
        let asked = Asked { filter, by, after: None, order: "usage_day, usage_group", limit: None };
        let Some(query) = asked.query(true, self.pool.engine()) else { return Ok(Vec::new()) };
        let rows: Vec<DayRow> = query.into_query_as().within_seconds(PAGE_SECONDS_MAX).fetch_all(&self.pool).await?;
        let total =
            |row: DayRow| DayTotal { day: day_name(row.usage_day).unwrap_or_default(), total: row.total.into() };
        Ok(rows.into_iter().map(total).collect())
    }

    async fn totals(&self, asked: &Asked<'_>) -> Result<Vec<UsageTotal>, StoreError> {
        let Some(query) = asked.query(false, self.pool.engine()) else { return Ok(Vec::new()) };
        let rows: Vec<TotalRow> = query.into_query_as().within_seconds(PAGE_SECONDS_MAX).fetch_all(&self.pool).await?;
        let mut totals: Vec<UsageTotal> = rows.into_iter().map(UsageTotal::from).collect();
        if asked.by == By::Day {
            for total in &mut totals {
                total.group = total.group.parse().ok().and_then(day_name).unwrap_or_default();
            }
        }
        Ok(totals)
    }
}

impl UsageTotal {
    /// Adds another's sums to these.
    pub fn add(&mut self, other: &UsageTotal) {
        let Usage { input, cache_read, cache_write_5m, cache_write_1h, output, reasoning } = other.usage;
        let usage = &mut self.usage;
        for (sum, one) in [
            (&mut self.requests, other.requests),
            (&mut self.errors, other.errors),
            (&mut self.uncosted, other.uncosted),
            (&mut usage.input, input),
            (&mut usage.cache_read, cache_read),
            (&mut usage.cache_write_5m, cache_write_5m),
            (&mut usage.cache_write_1h, cache_write_1h),
            (&mut usage.output, output),
            (&mut usage.reasoning, reasoning),
        ] {
            *sum = sum.saturating_add(one);
        }
        self.cost = NanoUsd(self.cost.0.saturating_add(other.cost.0));
        self.provider_cost = NanoUsd(self.provider_cost.0.saturating_add(other.provider_cost.0));
    }
}

/// When a day begins, as sums by day call it. Milliseconds since the Unix epoch.
pub fn day_begins_ms(day: &str) -> Option<i64> {
    let date = Date::parse(day, format_description!("[year]-[month]-[day]")).ok()?;
    date.midnight().assume_utc().unix_timestamp().checked_mul(1_000)
}

/// The day of that moment, counted from the Unix epoch.
pub fn day_number(unix_ms: i64) -> i64 {
    unix_ms.div_euclid(DAY_MS)
}

/// The day that sums by day call so, counted from the Unix epoch.
pub fn day_number_of(day: &str) -> Option<i64> {
    day_begins_ms(day).map(day_number)
}

/// The date of a day that is counted from the Unix epoch, as `YYYY-MM-DD`.
pub fn day_name(days_since_epoch: i64) -> Option<String> {
    let seconds = days_since_epoch.checked_mul(DAY_MS / 1_000)?;
    Some(OffsetDateTime::from_unix_timestamp(seconds).ok()?.date().to_string())
}

/// Which sums are asked for.
struct Asked<'a> {
    filter: &'a UsageFilter,
    by: By,
    after: Option<&'a str>,
    order: &'static str,
    limit: Option<u32>,
}

impl Asked<'_> {
    /// `None` where nothing can be meant. Sums are cast because Postgres widens them to another type than the column's.
    fn query(&self, by_day: bool, engine: Engine) -> Option<Builder> {
        let span = Span::of(self.filter);
        let mut query = Builder::new("SELECT CAST(usage_group AS TEXT) AS group_name");
        if by_day {
            query.push(", usage_day");
        }
        for sum in SUMMED {
            query.push(format_args!(", CAST(SUM({sum}) AS BIGINT) AS {sum}"));
        }
        query.push(" FROM (");
        let mut parts = 0;
        if let Some(days) = span.days {
            self.push_days(&mut query, days);
            parts += 1;
        }
        for edge in span.edges {
            query.push(if parts > 0 { " UNION ALL " } else { "" });
            self.push_edge(&mut query, edge, engine);
            parts += 1;
        }
        query.push(") AS parts");
        if let Some(after) = self.after {
            query.push(" WHERE usage_group > ").push_bind(after.to_owned());
        }
        query.push(if by_day { " GROUP BY usage_day, usage_group" } else { " GROUP BY usage_group" });
        query.push(" ORDER BY ").push(self.order);
        if let Some(limit) = self.limit {
            query.push(" LIMIT ").push_bind(i64::from(limit));
        }
        (parts > 0).then_some(query)
    }

    /// Whole days, from the kept sums: those that tell enough of what is asked for, and no more.
    fn push_days(&self, query: &mut Builder, (from, until): (Option<i64>, Option<i64>)) {
        let UsageFilter { account_id, key_id, model, .. } = self.filter;
        let has_key = key_id.is_some() || self.by == By::Key;
        let has_model = model.is_some() || matches!(self.by, By::Model | By::Provider);
        let has_account = account_id.is_some() || self.by == By::Account;
        // The order of a join is the one that is written: from who is asked about, or in the order of their ids, to their days.
        let (names, tables) = match (has_key, has_account, has_model) {
            (false, false, _) => ("d.", " FROM usage_totals d WHERE 1 = 1"),
            (false, true, false) => ("d.", " FROM usage_accounts d WHERE 1 = 1"),
            _ => ("s.", " FROM usage_series s CROSS JOIN usage_days d WHERE d.series = s.id"),
        };
        query.push("SELECT ");
        match self.by {
            By::Account => query.push(names).push("account_id"),
            By::Key => query.push(names).push("key_id"),
            By::Model => query.push(names).push("model"),
            By::Provider => query.push(names).push("provider"),
            By::Day => query.push("d.day"),
        };
        query.push(" AS usage_group, d.day AS usage_day");
        for sum in SUMMED {
            query.push(", d.").push(sum);
        }
        query.push(tables);
        self.filter.push_names(query, names);
        if let Some(from) = from {
            query.push(" AND d.day >= ").push_bind(from);
        }
        if let Some(until) = until {
            query.push(" AND d.day < ").push_bind(until);
        }
    }

    /// A part of a day, from the requests.
    fn push_edge(&self, query: &mut Builder, (from_ms, until_ms): (i64, i64), engine: Engine) {
        let group = match self.by {
            By::Account => "u.account_id",
            By::Key => "u.key_id",
            By::Model => "u.model",
            By::Provider => "u.provider",
            By::Day => "u.started_at_ms / 86400000",
        };
        query.push("SELECT ").push(group).push(" AS usage_group, u.started_at_ms / 86400000 AS usage_day");
        for sum in SUMMED {
            query.push(", ").push(of_a_row(sum)).push(" AS ").push(sum);
        }
        let UsageFilter { account_id, key_id, .. } = self.filter;
        let mut time = "started_at_ms";
        if account_id.is_some() || key_id.is_some() {
            query.push(" FROM usage_series s CROSS JOIN usage_records u WHERE u.series = s.id");
            self.filter.push_names(query, "s.");
        } else {
            time = time_of_all(engine);
            query.push(" FROM usage_records u WHERE 1 = 1");
            self.filter.push_names(query, "u.");
        }
        query.push(" AND u.").push(time).push(" >= ").push_bind(from_ms);
        query.push(" AND u.").push(time).push(" < ").push_bind(until_ms);
    }
}

/// What a request's row adds to a sum.
pub(super) fn of_a_row(sum: &'static str) -> &'static str {
    match sum {
        "requests" => "1",
        "errors" => "CASE WHEN status >= 400 THEN 1 ELSE 0 END",
        "provider_cost_nano_usd" => "COALESCE(provider_cost_nano_usd, 0)",
        "uncosted" => {
            "CASE WHEN provider_cost_nano_usd IS NULL AND input_tokens + cache_read_tokens + cache_write_5m_tokens \
             + cache_write_1h_tokens + output_tokens > 0 THEN 1 ELSE 0 END"
        }
        column => column,
    }
}

/// A filter's time, cut at midnights.
#[derive(Debug, PartialEq, Eq)]
struct Span {
    /// Whole days, from one to before another, counted from the Unix epoch; `None` where there is no whole day.
    days: Option<(Option<i64>, Option<i64>)>,
    /// What lies beside them: from a moment to before another, in milliseconds since the Unix epoch.
    edges: Vec<(i64, i64)>,
}

impl Span {
    fn of(filter: &UsageFilter) -> Self {
        let (since, until) = (filter.since_ms, filter.until_ms);
        let first = since.map(|at| at.div_euclid(DAY_MS).saturating_add(i64::from(at.rem_euclid(DAY_MS) > 0)));
        // The day after the last whole one.
        let last = until.map(|at| at.div_euclid(DAY_MS));
        let begins = |day: i64| day.saturating_mul(DAY_MS);
        if let (Some(first), Some(last)) = (first, last)
            && first >= last
        {
            let edge = (since.unwrap_or(i64::MIN), until.unwrap_or(i64::MAX));
            return Self { days: None, edges: Vec::from_iter((edge.0 < edge.1).then_some(edge)) };
        }
        let before = since.zip(first).map(|(since, first)| (since, begins(first)));
        let after = until.zip(last).map(|(until, last)| (begins(last), until));
        let edges = before.into_iter().chain(after).filter(|(from, until)| from < until).collect();
        Self { days: Some((first, last)), edges }
    }
}

#[derive(FromRow)]
struct TotalRow {
    group_name: String,
    #[sqlx(try_from = "i64")]
    requests: u64,
    #[sqlx(try_from = "i64")]
    errors: u64,
    #[sqlx(flatten)]
    usage: UsageRow,
    cost_nano_usd: i64,
    provider_cost_nano_usd: i64,
    #[sqlx(try_from = "i64")]
    uncosted: u64,
}

#[derive(FromRow)]
struct DayRow {
    usage_day: i64,
    #[sqlx(flatten)]
    total: TotalRow,
}

impl From<TotalRow> for UsageTotal {
    fn from(row: TotalRow) -> Self {
        Self {
            group: row.group_name,
            requests: row.requests,
            errors: row.errors,
            usage: row.usage.into(),
            cost: NanoUsd(row.cost_nano_usd),
            provider_cost: NanoUsd(row.provider_cost_nano_usd),
            uncosted: row.uncosted,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::DifferenceKind;
    use super::super::fixture::{Fixture, record};
    use super::*;
    use crate::relay::meter::UsageRecord;

    #[tokio::test]
    async fn filters_hold_for_lists_and_sums() {
        let fixture = Fixture::with_credit("5").await;
        let stranger = UsageRecord { account_id: "acct_b".into(), ..record(&fixture, 50) };
        let old = UsageRecord { started_at_ms: 9_999, ..record(&fixture, 30) };
        fixture.store.settle(&[stranger, old, record(&fixture, 1)], None).await.unwrap();
        let filter = UsageFilter {
            account_id: Some(fixture.account_id.clone()),
            since_ms: Some(10_000),
            ..UsageFilter::default()
        };
        assert_eq!(fixture.store.usage(&filter, None, 10).await.unwrap().len(), 1);
        let totals = fixture.store.usage_by(&filter, By::Key).await.unwrap();
        let usage = record(&fixture, 1).usage;
        assert_eq!(
            totals,
            [UsageTotal {
                group: fixture.key_id.clone(),
                requests: 1,
                usage,
                cost: NanoUsd(1),
                uncosted: 1,
                ..UsageTotal::default()
            }]
        );
        let by_account = fixture.store.usage_by(&UsageFilter::default(), By::Account).await.unwrap();
        let groups: Vec<_> = by_account.iter().map(|total| (&*total.group, total.requests, total.cost.0)).collect();
        assert_eq!(groups, [("acct_b", 1, 50), (&*fixture.account_id, 2, 31)], "the dearest first");
        let everything = fixture.store.usage_by(&UsageFilter::default(), By::Model).await.unwrap();
        assert_eq!((everything[0].requests, everything[0].usage.input, everything[0].cost), (3, 33, NanoUsd(81)));
    }

    #[tokio::test]
    async fn sums_come_by_the_page_too() {
        let fixture = Fixture::with_credit("5").await;
        let models = ["c", "a", "e", "b", "d"];
        let records = (0_i64..).zip(models).map(|(at, model)| {
            let started_at_ms = at * 86_400_000;
            UsageRecord { started_at_ms, model: model.into(), ..record(&fixture, at + 1) }
        });
        fixture.store.settle(&records.collect::<Vec<_>>(), None).await.unwrap();
        let filter = UsageFilter::default();
        for (by, expected) in [
            (By::Model, ["a", "b", "c", "d", "e"]),
            (By::Day, ["1970-01-05", "1970-01-04", "1970-01-03", "1970-01-02", "1970-01-01"]),
        ] {
            let mut groups: Vec<String> = Vec::new();
            loop {
                let page = GroupPage { after: groups.last().map(String::as_str), limit: 2 };
                let totals = fixture.store.usage_by_page(&filter, by, page).await.unwrap();
                if totals.is_empty() {
                    break;
                }
                groups.extend(totals.into_iter().map(|total| total.group));
            }
            assert_eq!(groups, expected);
        }
        assert_eq!(day_begins_ms("1970-01-02"), Some(86_400_000));
        assert_eq!(day_begins_ms("today"), None);
    }

    #[tokio::test]
    async fn days_are_utc_and_the_latest_comes_first() {
        let fixture = Fixture::with_credit("5").await;
        let at = |started_at_ms| UsageRecord { started_at_ms, ..record(&fixture, 1) };
        fixture.store.settle(&[at(86_399_999), at(86_400_000), at(0)], None).await.unwrap();
        let totals = fixture.store.usage_by(&UsageFilter::default(), By::Day).await.unwrap();
        let days: Vec<_> = totals.iter().map(|total| (total.group.as_str(), total.requests)).collect();
        assert_eq!(days, [("1970-01-02", 1), ("1970-01-01", 2)]);
    }

    /// The sums by what a request is counted to, added up from the requests themselves.
    fn added_up(records: &[UsageRecord], group: impl Fn(&UsageRecord) -> String) -> Vec<UsageTotal> {
        let mut sums: std::collections::BTreeMap<String, UsageTotal> = Default::default();
        for record in records {
            let group = group(record);
            let one = UsageTotal {
                group: group.clone(),
                requests: 1,
                errors: u64::from(record.status >= 400),
                usage: record.usage,
                cost: record.cost,
                provider_cost: record.provider_cost.unwrap_or_default(),
                uncosted: u64::from(record.provider_cost.is_none()),
            };
            sums.entry(group.clone()).or_insert_with(|| UsageTotal { group, ..UsageTotal::default() }).add(&one);
        }
        sums.into_values().collect()
    }

    #[tokio::test]
    async fn sums_are_those_of_the_requests_wherever_the_bounds_lie() {
        const HOUR_MS: i64 = DAY_MS / 24;
        let fixture = Fixture::with_credit("5").await;
        let records: Vec<_> = (0..200_i64)
            .map(|at| UsageRecord {
                account_id: ["acct_a", "acct_b"][usize::from(at % 5 == 0)].into(),
                key_id: format!("key_{}", at % 7).into(),
                model: format!("m{}", at % 3).into(),
                provider: ["p", "q"][usize::from(at % 4 == 0)].into(),
                status: if at % 6 == 0 { 502 } else { 200 },
                provider_cost: (at % 8 != 0).then_some(NanoUsd(at)),
                started_at_ms: at * HOUR_MS / 2,
                ..record(&fixture, at * 2)
            })
            .collect();
        for parcel in records.chunks(33) {
            fixture.store.settle(parcel, None).await.unwrap();
        }
        fixture.store.settle(&records[..40], None).await.unwrap();
        let found = fixture.store.audit().await.unwrap();
        assert!(found.iter().all(|found| found.kind != DifferenceKind::UsageDay), "{found:?}");
        let day_of = |record: &UsageRecord| day_name(record.started_at_ms / DAY_MS).unwrap();
        let hours = [None, Some(0), Some(1), Some(23), Some(24), Some(25), Some(48), Some(71), Some(72), Some(200)];
        let names = [(None, None, None), (Some("acct_a"), None, None), (Some("acct_b"), Some("key_5"), None)];
        let names = names.into_iter().chain([(None, None, Some("m1")), (Some("acct_a"), Some("key_1"), Some("m1"))]);
        for ((account, key, model), since, until) in
            names.flat_map(|names| hours.map(|since| hours.map(|until| (names, since, until)))).flatten()
        {
            let owned = |name: Option<&str>| name.map(str::to_owned);
            let at = |hours: Option<i64>| hours.map(|hours| hours * HOUR_MS);
            let (account_id, key_id, model) = (owned(account), owned(key), owned(model));
            let filter = UsageFilter { account_id, key_id, model, since_ms: at(since), until_ms: at(until) };
            let meant = fixture.store.usage(&filter, None, 1_000).await.unwrap();
            let page = GroupPage { after: None, limit: 1_000 };
            for by in [By::Account, By::Key, By::Model, By::Provider, By::Day] {
                let mut summed = fixture.store.usage_by_page(&filter, by, page).await.unwrap();
                if by == By::Day {
                    summed.reverse();
                }
                let expected = added_up(&meant, |record| match by {
                    By::Account => record.account_id.to_string(),
                    By::Key => record.key_id.to_string(),
                    By::Model => record.model.to_string(),
                    By::Provider => record.provider.to_string(),
                    By::Day => day_of(record),
                });
                assert_eq!(summed, expected, "{by:?} {filter:?}");
            }
            let by_day = fixture.store.usage_by_day_and(&filter, By::Model).await.unwrap();
            let by_day: Vec<_> = by_day
                .into_iter()
                .map(|DayTotal { day, total }| UsageTotal { group: format!("{day} {}", total.group), ..total })
                .collect();
            assert_eq!(by_day, added_up(&meant, |record| format!("{} {}", day_of(record), record.model)), "{filter:?}");
            let sum = fixture.store.usage_sum(&filter).await.unwrap();
            assert_eq!(sum.requests, meant.len() as u64);
        }
    }

    #[test]
    fn a_span_is_cut_at_midnights() {
        let of = |since_ms, until_ms| Span::of(&UsageFilter { since_ms, until_ms, ..UsageFilter::default() });
        let day = DAY_MS;
        assert_eq!(of(None, None), Span { days: Some((None, None)), edges: vec![] });
        assert_eq!(of(Some(day), Some(3 * day)), Span { days: Some((Some(1), Some(3))), edges: vec![] });
        assert_eq!(
            of(Some(day - 5), Some(3 * day + 7)),
            Span { days: Some((Some(1), Some(3))), edges: vec![(day - 5, day), (3 * day, 3 * day + 7)] }
        );
        assert_eq!(of(Some(5), Some(day + 7)), Span { days: None, edges: vec![(5, day + 7)] });
        assert_eq!(of(Some(7), Some(7)), Span { days: None, edges: vec![] });
        let whole = of(None, Some(i64::MAX));
        assert!(whole.days.is_some() && whole.edges.len() == 1, "{whole:?}");
    }
}
