//! What was used and what it cost, read back.

use sqlx::sqlite::SqliteRow;
use sqlx::{FromRow, Row};
use time::macros::format_description;
use time::{Date, OffsetDateTime};
use uuid::Uuid;

use super::{Store, StoreError};
use crate::relay::meter::{NanoUsd, Usage, UsageRecord};

/// Which requests are meant.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UsageFilter {
    /// Only this account's.
    pub account_id: Option<String>,
    /// Only this key's.
    pub key_id: Option<String>,
    /// Only of this model, by its public id.
    pub model: Option<String>,
    /// Only those that began at this time or later. Milliseconds since the Unix epoch.
    pub since_ms: Option<i64>,
    /// Only those that began before this time. Milliseconds since the Unix epoch.
    pub until_ms: Option<i64>,
}

/// Where a page of requests ended.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct UsagePosition {
    started_at_ms: i64,
    request_id: String,
}

impl UsagePosition {
    /// The position of that request: the page after it holds what is older.
    pub fn of(record: &UsageRecord) -> Self {
        Self { started_at_ms: record.started_at_ms, request_id: record.request_id.to_string() }
    }

    /// The position of a request that began then.
    pub fn at(started_at_ms: i64, request_id: Uuid) -> Self {
        Self { started_at_ms, request_id: request_id.to_string() }
    }

    /// Before that moment, after whatever began at it.
    fn before(unix_ms: i64) -> Self {
        Self { started_at_ms: unix_ms, request_id: String::new() }
    }
}

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
    /// The UTC day on which requests began.
    Day,
}

/// The sums over the requests of one account, model, key or day.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageTotal {
    /// The account's id, the model, the key's id, or the day as `YYYY-MM-DD`.
    pub group: String,
    /// How many.
    pub requests: u64,
    /// What they used.
    pub usage: Usage,
    /// What they cost.
    pub cost: NanoUsd,
}

macro_rules! select_records {
    ($where:literal) => {
        concat!(
            "SELECT request_id, account_id, key_id, model, provider, status, input_tokens, cache_read_tokens, \
             cache_write_5m_tokens, cache_write_1h_tokens, output_tokens, reasoning_tokens, cost_nano_usd, estimated, \
             interrupted, started_at_ms, first_token_ms, total_ms FROM usage_records WHERE ",
            $where,
            " AND started_at_ms >= $2 AND (started_at_ms, request_id) < ($3, $4) \
              AND ($6 = '' OR key_id = $6) AND ($7 = '' OR model = $7) ORDER BY started_at_ms DESC, request_id DESC LIMIT $5"
        )
    };
}

/// Sums are cast because Postgres widens them to another type than the column's.
macro_rules! select_totals {
    ($group:literal, $order:literal) => {
        concat!(
            "SELECT ",
            $group,
            " AS usage_group, COUNT(*) AS requests, CAST(SUM(input_tokens) AS BIGINT) AS input_tokens, \
             CAST(SUM(cache_read_tokens) AS BIGINT) AS cache_read_tokens, \
             CAST(SUM(cache_write_5m_tokens) AS BIGINT) AS cache_write_5m_tokens, \
             CAST(SUM(cache_write_1h_tokens) AS BIGINT) AS cache_write_1h_tokens, \
             CAST(SUM(output_tokens) AS BIGINT) AS output_tokens, \
             CAST(SUM(reasoning_tokens) AS BIGINT) AS reasoning_tokens, \
             CAST(SUM(cost_nano_usd) AS BIGINT) AS cost_nano_usd FROM usage_records \
             WHERE ($1 = '' OR account_id = $1) AND started_at_ms >= $2 AND started_at_ms < $3 \
             AND ($4 = '' OR key_id = $4) AND ($5 = '' OR model = $5) AND ($6 = '' OR ",
            $group,
            " > $6) GROUP BY usage_group ORDER BY ",
            $order,
            " LIMIT $7"
        )
    };
}

impl Store {
    /// At most `limit` requests, newest first, from the newest or from where another page ended.
    pub async fn usage(
        &self,
        filter: &UsageFilter,
        after: Option<&UsagePosition>,
        limit: u32,
    ) -> Result<Vec<UsageRecord>, StoreError> {
        let until = UsagePosition::before(filter.until_ms.unwrap_or(i64::MAX));
        let after = after.map_or(&until, |after| after.min(&until));
        let sql = match filter.account_id {
            Some(_) => select_records!("account_id = $1"),
            None => select_records!("$1 = ''"),
        };
        let rows: Vec<RecordRow> = sqlx::query_as(sql)
            .bind(filter.account_id.as_deref().unwrap_or_default())
            .bind(filter.since_ms.unwrap_or(i64::MIN))
            .bind(after.started_at_ms)
            .bind(&after.request_id)
            .bind(i64::from(limit))
            .bind(filter.key_id.as_deref().unwrap_or_default())
            .bind(filter.model.as_deref().unwrap_or_default())
            .fetch_all(&self.pool)
            .await?;
        Ok(rows.into_iter().map(|RecordRow(record)| record).collect())
    }

    /// Where the request of that id stands, if there is one.
    pub async fn usage_position(&self, request_id: &str) -> Result<Option<UsagePosition>, StoreError> {
        let started_at_ms: Option<i64> =
            sqlx::query_scalar("SELECT started_at_ms FROM usage_records WHERE request_id = $1")
                .bind(request_id)
                .fetch_optional(&self.pool)
                .await?;
        Ok(started_at_ms.map(|started_at_ms| UsagePosition { started_at_ms, request_id: request_id.to_owned() }))
    }

    /// The sums of requests: the dearest account, model or key first, or the latest day.
    pub async fn usage_by(&self, filter: &UsageFilter, by: By) -> Result<Vec<UsageTotal>, StoreError> {
        let sql = match by {
            By::Account => select_totals!("account_id", "cost_nano_usd DESC, usage_group"),
            By::Model => select_totals!("model", "cost_nano_usd DESC, usage_group"),
            By::Key => select_totals!("key_id", "cost_nano_usd DESC, usage_group"),
            By::Day => DAYS,
        };
        self.totals(sql, filter, by, GroupPage { after: None, limit: u32::MAX }).await
    }

    /// A page of the sums of requests: accounts, models or keys in the order of their ids, days the latest first. A page of
    /// days begins after a day as [`UsageTotal`] has it; none does after what is no day.
    pub async fn usage_by_page(
        &self,
        filter: &UsageFilter,
        by: By,
        page: GroupPage<'_>,
    ) -> Result<Vec<UsageTotal>, StoreError> {
        let sql = match by {
            By::Account => select_totals!("account_id", "usage_group"),
            By::Model => select_totals!("model", "usage_group"),
            By::Key => select_totals!("key_id", "usage_group"),
            By::Day => {
                let before_ms = page.after.map_or(i64::MAX, |day| day_begins_ms(day).unwrap_or(i64::MIN));
                let until_ms = Some(filter.until_ms.unwrap_or(i64::MAX).min(before_ms));
                let filter = UsageFilter { until_ms, ..filter.clone() };
                return self.totals(DAYS, &filter, by, GroupPage { after: None, ..page }).await;
            }
        };
        self.totals(sql, filter, by, page).await
    }

    async fn totals(
        &self,
        sql: &'static str,
        filter: &UsageFilter,
        by: By,
        page: GroupPage<'_>,
    ) -> Result<Vec<UsageTotal>, StoreError> {
        let rows: Vec<TotalRow> = sqlx::query_as(sql)
            .bind(filter.account_id.as_deref().unwrap_or_default())
            .bind(filter.since_ms.unwrap_or(i64::MIN))
            .bind(filter.until_ms.unwrap_or(i64::MAX))
            .bind(filter.key_id.as_deref().unwrap_or_default())
            .bind(filter.model.as_deref().unwrap_or_default())
            .bind(page.after.unwrap_or_default())
            .bind(i64::from(page.limit))
            .fetch_all(&self.pool)
            .await?;
        let mut totals: Vec<UsageTotal> = rows.into_iter().map(|TotalRow(total)| total).collect();
        if by == By::Day {
            for total in &mut totals {
                total.group = day(&total.group).unwrap_or_default();
            }
        }
        Ok(totals)
    }
}

const DAYS: &str = select_totals!("CAST(started_at_ms / 86400000 AS TEXT)", "MIN(started_at_ms) DESC");

/// When a day begins, as sums by day call it. Milliseconds since the Unix epoch.
pub fn day_begins_ms(day: &str) -> Option<i64> {
    let date = Date::parse(day, format_description!("[year]-[month]-[day]")).ok()?;
    date.midnight().assume_utc().unix_timestamp().checked_mul(1_000)
}

/// The date of a day that is counted from the Unix epoch.
fn day(days_since_epoch: &str) -> Option<String> {
    let seconds = days_since_epoch.parse::<i64>().ok()?.checked_mul(86_400)?;
    Some(OffsetDateTime::from_unix_timestamp(seconds).ok()?.date().to_string())
}

struct RecordRow(UsageRecord);

impl FromRow<'_, SqliteRow> for RecordRow {
    fn from_row(row: &SqliteRow) -> sqlx::Result<Self> {
        let request_id: String = row.try_get("request_id")?;
        let text = |column| row.try_get::<String, _>(column).map(String::into_boxed_str);
        Ok(Self(UsageRecord {
            request_id: Uuid::parse_str(&request_id).map_err(|error| sqlx::Error::Decode(error.into()))?,
            account_id: text("account_id")?,
            key_id: text("key_id")?,
            model: text("model")?,
            provider: text("provider")?,
            status: unsigned(row, "status")?,
            usage: usage_of(row)?,
            cost: NanoUsd(row.try_get("cost_nano_usd")?),
            estimated: row.try_get("estimated")?,
            interrupted: row.try_get("interrupted")?,
            started_at_ms: row.try_get("started_at_ms")?,
            first_token_ms: row.try_get("first_token_ms")?,
            total_ms: row.try_get("total_ms")?,
        }))
    }
}

struct TotalRow(UsageTotal);

impl FromRow<'_, SqliteRow> for TotalRow {
    fn from_row(row: &SqliteRow) -> sqlx::Result<Self> {
        Ok(Self(UsageTotal {
            group: row.try_get("usage_group")?,
            requests: unsigned(row, "requests")?,
            usage: usage_of(row)?,
            cost: NanoUsd(row.try_get("cost_nano_usd")?),
        }))
    }
}

fn usage_of(row: &SqliteRow) -> sqlx::Result<Usage> {
    Ok(Usage {
        input: unsigned(row, "input_tokens")?,
        cache_read: unsigned(row, "cache_read_tokens")?,
        cache_write_5m: unsigned(row, "cache_write_5m_tokens")?,
        cache_write_1h: unsigned(row, "cache_write_1h_tokens")?,
        output: unsigned(row, "output_tokens")?,
        reasoning: unsigned(row, "reasoning_tokens")?,
    })
}

fn unsigned<N: TryFrom<i64>>(row: &SqliteRow, column: &str) -> sqlx::Result<N> {
    let stored: i64 = row.try_get(column)?;
    N::try_from(stored).map_err(|_| sqlx::Error::ColumnDecode {
        index: column.to_owned(),
        source: format!("{stored} is out of range").into(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{Fixture, record};
    use super::*;

    #[tokio::test]
    async fn records_come_back_as_they_were_settled() {
        let fixture = Fixture::with_credit("5").await;
        let mut interrupted = record(&fixture, 7);
        (interrupted.interrupted, interrupted.estimated, interrupted.first_token_ms) = (true, true, None);
        interrupted.started_at_ms = 20_000;
        let records = [record(&fixture, 3), interrupted];
        fixture.store.settle(&records, None).await.unwrap();
        let mut read = fixture.store.usage(&UsageFilter::default(), None, 10).await.unwrap();
        read.reverse();
        assert_eq!(read, records, "newest first");
    }

    #[tokio::test]
    async fn pages_meet_without_gap_or_overlap() {
        let fixture = Fixture::with_credit("5").await;
        let records: Vec<_> = (0..7).map(|at| UsageRecord { started_at_ms: at / 3, ..record(&fixture, 1) }).collect();
        fixture.store.settle(&records, None).await.unwrap();
        let filter = UsageFilter { account_id: Some(fixture.account_id.clone()), ..UsageFilter::default() };
        let all = fixture.store.usage(&filter, None, 100).await.unwrap();
        let mut paged: Vec<UsageRecord> = Vec::new();
        loop {
            let after = paged.last().map(UsagePosition::of);
            let page = fixture.store.usage(&filter, after.as_ref(), 2).await.unwrap();
            if page.is_empty() {
                break;
            }
            paged.extend(page);
        }
        assert_eq!((paged.len(), &paged), (7, &all));
    }

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
        assert_eq!(totals, [UsageTotal { group: fixture.key_id.clone(), requests: 1, usage, cost: NanoUsd(1) }]);
        let by_account = fixture.store.usage_by(&UsageFilter::default(), By::Account).await.unwrap();
        let groups: Vec<_> = by_account.iter().map(|total| (&*total.group, total.requests, total.cost.0)).collect();
        assert_eq!(groups, [("acct_b", 1, 50), (&*fixture.account_id, 2, 31)], "the dearest first");
        let everything = fixture.store.usage_by(&UsageFilter::default(), By::Model).await.unwrap();
        assert_eq!((everything[0].requests, everything[0].usage.input, everything[0].cost), (3, 33, NanoUsd(81)));
    }

    #[tokio::test]
    async fn requests_are_found_by_key_by_model_and_until_when() {
        let fixture = Fixture::with_credit("5").await;
        let of_key = UsageRecord { key_id: "key_b".into(), ..record(&fixture, 1) };
        let of_model = UsageRecord { model: "m".into(), ..record(&fixture, 2) };
        let later = UsageRecord { started_at_ms: 10_001, ..record(&fixture, 4) };
        fixture.store.settle(&[of_key, of_model, later], None).await.unwrap();
        let all = UsageFilter::default();
        for (filter, cost) in [
            (UsageFilter { key_id: Some("key_b".into()), ..all.clone() }, 1),
            (UsageFilter { model: Some("m".into()), ..all.clone() }, 2),
            (UsageFilter { until_ms: Some(10_001), ..all.clone() }, 3),
            (UsageFilter { until_ms: Some(10_002), ..all.clone() }, 7),
        ] {
            let listed = fixture.store.usage(&filter, None, 10).await.unwrap();
            assert_eq!(listed.iter().map(|record| record.cost.0).sum::<i64>(), cost, "{filter:?}");
            let summed = fixture.store.usage_by(&filter, By::Account).await.unwrap();
            assert_eq!(summed[0].cost, NanoUsd(cost), "{filter:?}");
        }
        let newest = fixture.store.usage(&all, None, 1).await.unwrap().remove(0);
        let position = fixture.store.usage_position(&newest.request_id.to_string()).await.unwrap();
        assert_eq!(position, Some(UsagePosition::of(&newest)));
        let older = UsageFilter { until_ms: Some(10_001), ..all };
        assert_eq!(fixture.store.usage(&older, position.as_ref(), 10).await.unwrap().len(), 2);
        assert_eq!(fixture.store.usage_position("none").await.unwrap(), None);
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
}
