//! What was used, request by request, read back.
//!
//! Sums are `totals`'.

use std::collections::HashMap;

use sqlx::FromRow;
use uuid::Uuid;

use super::engine::{Builder, Engine, PAGE_SECONDS_MAX, query_as, query_scalar};
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

impl UsageFilter {
    /// Narrows a query down to whom and what the filter names. The columns are those of `table`, which is an alias and a point.
    pub(super) fn push_names(&self, query: &mut Builder, table: &'static str) {
        let names = [("account_id", &self.account_id), ("key_id", &self.key_id), ("model", &self.model)];
        for (column, name) in names {
            if let Some(name) = name {
                query.push(" AND ").push(table).push(column).push(" = ").push_bind(name.clone());
            }
        }
    }
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

const COLUMNS: &str = "request_id, account_id, key_id, model, provider, status, input_tokens, cache_read_tokens, \
    cache_write_5m_tokens, cache_write_1h_tokens, output_tokens, reasoning_tokens, cost_nano_usd, provider_cost_nano_usd, \
    estimated, interrupted, started_at_ms, first_token_ms, total_ms";

/// So many requests are looked at, at the most, where each of several series gives its newest.
const LOOKED_AT_MAX: u32 = 200_000;
/// Of so many of an account's series, at the most, the newest request is looked at.
const SERIES_MAX: u32 = 20_000;
/// The same where everybody's are meant: a model that so many keys have used is soon met again.
const SERIES_OF_ALL_MAX: u32 = 500;

impl Store {
    /// At most `limit` requests, newest first, from the newest or from where another page ended.
    pub async fn usage(
        &self,
        filter: &UsageFilter,
        after: Option<&UsagePosition>,
        limit: u32,
    ) -> Result<Vec<UsageRecord>, StoreError> {
        let until = UsagePosition::before(filter.until_ms.unwrap_or(i64::MAX));
        let page = RecordPage { filter, after: after.map_or(&until, |after| after.min(&until)), limit };
        let query = match self.is_found_by_series(filter, limit).await? {
            true => page.of_series(self.pool.engine()),
            false => page.by_time(self.pool.engine()),
        };
        let rows: Vec<RecordRow> = query.into_query_as().within_seconds(PAGE_SECONDS_MAX).fetch_all(&self.pool).await?;
        rows.into_iter().map(UsageRecord::try_from).collect()
    }

    /// Whether requests are to be looked for in their series. Where those are too many, many requests are meant, and they are found
    /// soon among all that there are.
    async fn is_found_by_series(&self, filter: &UsageFilter, limit: u32) -> Result<bool, StoreError> {
        if filter.account_id.is_none() && filter.key_id.is_none() && filter.model.is_none() {
            return Ok(false);
        }
        // No more series than requests are asked for can have one on the page.
        let most = if limit.saturating_mul(limit) <= LOOKED_AT_MAX { SERIES_MAX } else { LOOKED_AT_MAX / limit };
        let most = if filter.account_id.is_some() { most } else { most.min(SERIES_OF_ALL_MAX) };
        let mut query = Builder::new("SELECT COUNT(*) FROM (SELECT 1 FROM usage_series s WHERE 1 = 1");
        filter.push_names(&mut query, "s.");
        query.push(" LIMIT ").push_bind(i64::from(most) + 1).push(") AS found");
        let found: i64 = query.into_query_scalar().fetch_one(&self.pool).await?;
        Ok(found <= i64::from(most))
    }

    /// Where the request of that id stands, if there is one.
    pub async fn usage_position(&self, request_id: &str) -> Result<Option<UsagePosition>, StoreError> {
        let started_at_ms: Option<i64> = query_scalar("SELECT started_at_ms FROM usage_records WHERE request_id = $1")
            .bind(request_id)
            .fetch_optional(&self.pool)
            .await?;
        Ok(started_at_ms.map(|started_at_ms| UsagePosition { started_at_ms, request_id: request_id.to_owned() }))
    }

    /// When the latest request of each key began that an account has used, by the key's id. Milliseconds since the Unix epoch.
    pub async fn keys_last_used(&self, account_id: &str) -> Result<HashMap<String, i64>, StoreError> {
        const SELECT: &str = "SELECT s.key_id, MAX((SELECT MAX(u.started_at_ms) FROM usage_records u \
             WHERE u.series = s.id)) FROM usage_series s WHERE s.account_id = $1 GROUP BY s.key_id";
        let rows: Vec<(String, Option<i64>)> = query_as(SELECT).bind(account_id).fetch_all(&self.pool).await?;
        Ok(rows.into_iter().filter_map(|(key_id, at_ms)| Some((key_id, at_ms?))).collect())
    }

    /// When the latest request of that key began. Milliseconds since the Unix epoch.
    pub async fn key_last_used(&self, key_id: &str) -> Result<Option<i64>, StoreError> {
        const SELECT: &str = "SELECT MAX((SELECT MAX(u.started_at_ms) FROM usage_records u WHERE u.series = s.id)) \
             FROM usage_series s WHERE s.key_id = $1";
        Ok(query_scalar(SELECT).bind(key_id).fetch_one(&self.pool).await?)
    }
}

/// When a request began, as the index says it that has all requests in the order of time. In Postgres it says it in another way than the
/// one of series, see the migration.
pub(super) fn time_of_all(engine: Engine) -> &'static str {
    match engine {
        Engine::Sqlite => "started_at_ms",
        Engine::Postgres => "started_at_ms + 0",
    }
}

/// The next requests after a position, the newest first.
struct RecordPage<'a> {
    filter: &'a UsageFilter,
    after: &'a UsagePosition,
    limit: u32,
}

impl RecordPage<'_> {
    /// By walking back in time, through all requests.
    fn by_time(&self, engine: Engine) -> Builder {
        let time = time_of_all(engine);
        let mut query = Builder::new("SELECT ");
        query.push(COLUMNS).push(" FROM usage_records WHERE 1 = 1");
        self.filter.push_names(&mut query, "");
        self.push_time(&mut query, "", time);
        query.push(" ORDER BY ").push(time).push(" DESC, request_id DESC LIMIT ").push_bind(i64::from(self.limit));
        query
    }

    /// By taking the series with the newest requests, the newest of each, and the newest of those. Whatever request is on the page,
    /// fewer series than there are rows on it have a newer one.
    fn of_series(&self, engine: Engine) -> Builder {
        match engine {
            Engine::Sqlite => self.of_series_in_sqlite(),
            Engine::Postgres => self.of_series_in_postgres(),
        }
    }

    fn of_series_in_sqlite(&self) -> Builder {
        let mut query = Builder::new("SELECT ");
        // Joins are in the order that is written: the series, then of each what the innermost finds.
        query
            .push(COLUMNS)
            .push(" FROM usage_records WHERE seq IN (SELECT r.seq FROM (SELECT s.id FROM usage_series s ");
        query.push("CROSS JOIN usage_records r WHERE r.seq IN (");
        self.push_newest_of_series(&mut query, "i.seq", 1);
        query.push(")");
        self.filter.push_names(&mut query, "s.");
        Self::push_newest(&mut query, "r.", self.limit);
        query.push(") AS s CROSS JOIN usage_records r WHERE r.seq IN (");
        self.push_newest_of_series(&mut query, "i.seq", self.limit);
        query.push(")");
        Self::push_newest(&mut query, "r.", self.limit);
        query.push(")");
        Self::push_newest(&mut query, "", self.limit);
        query
    }

    fn of_series_in_postgres(&self) -> Builder {
        let mut query = Builder::new("SELECT ");
        query.push(COLUMNS).push(" FROM (SELECT s.id FROM usage_series s CROSS JOIN LATERAL (");
        self.push_newest_of_series(&mut query, "i.started_at_ms, i.request_id", 1);
        query.push(") AS r WHERE 1 = 1");
        self.filter.push_names(&mut query, "s.");
        Self::push_newest(&mut query, "r.", self.limit);
        query.push(") AS s CROSS JOIN LATERAL (");
        self.push_newest_of_series(&mut query, "i.*", self.limit);
        query.push(") AS r");
        Self::push_newest(&mut query, "r.", self.limit);
        query
    }

    fn push_newest_of_series(&self, query: &mut Builder, columns: &'static str, limit: u32) {
        query.push("SELECT ").push(columns).push(" FROM usage_records i WHERE i.series = s.id");
        self.push_time(query, "i.", "started_at_ms");
        Self::push_newest(query, "i.", limit);
    }

    fn push_time(&self, query: &mut Builder, table: &'static str, time: &'static str) {
        let after = self.after;
        if let Some(since_ms) = self.filter.since_ms {
            query.push(" AND ").push(table).push(time).push(" >= ").push_bind(since_ms);
        }
        query.push(" AND ").push(table).push(time).push(" <= ").push_bind(after.started_at_ms);
        query.push(" AND (").push(table).push("started_at_ms, ").push(table).push("request_id) < (");
        query.push_bind(after.started_at_ms).push(", ").push_bind(after.request_id.clone()).push(")");
    }

    fn push_newest(query: &mut Builder, table: &'static str, limit: u32) {
        query.push(" ORDER BY ").push(table).push("started_at_ms DESC, ").push(table).push("request_id DESC LIMIT ");
        query.push_bind(i64::from(limit));
    }
}

#[derive(FromRow)]
struct RecordRow {
    request_id: String,
    account_id: String,
    key_id: String,
    model: String,
    provider: String,
    #[sqlx(try_from = "i64")]
    status: u16,
    #[sqlx(flatten)]
    usage: UsageRow,
    cost_nano_usd: i64,
    provider_cost_nano_usd: Option<i64>,
    estimated: bool,
    interrupted: bool,
    started_at_ms: i64,
    first_token_ms: Option<i64>,
    total_ms: i64,
}

/// Tokens by class, as they are stored and summed.
#[derive(FromRow)]
pub(super) struct UsageRow {
    #[sqlx(try_from = "i64")]
    input_tokens: u64,
    #[sqlx(try_from = "i64")]
    cache_read_tokens: u64,
    #[sqlx(try_from = "i64")]
    cache_write_5m_tokens: u64,
    #[sqlx(try_from = "i64")]
    cache_write_1h_tokens: u64,
    #[sqlx(try_from = "i64")]
    output_tokens: u64,
    #[sqlx(try_from = "i64")]
    reasoning_tokens: u64,
}

impl TryFrom<RecordRow> for UsageRecord {
    type Error = StoreError;

    fn try_from(row: RecordRow) -> Result<Self, StoreError> {
        let request_id = Uuid::parse_str(&row.request_id).map_err(|error| sqlx::Error::Decode(error.into()))?;
        Ok(Self {
            request_id,
            account_id: row.account_id.into(),
            key_id: row.key_id.into(),
            model: row.model.into(),
            provider: row.provider.into(),
            status: row.status,
            usage: row.usage.into(),
            cost: NanoUsd(row.cost_nano_usd),
            provider_cost: row.provider_cost_nano_usd.map(NanoUsd),
            estimated: row.estimated,
            interrupted: row.interrupted,
            started_at_ms: row.started_at_ms,
            first_token_ms: row.first_token_ms,
            total_ms: row.total_ms,
        })
    }
}

impl From<UsageRow> for Usage {
    fn from(row: UsageRow) -> Self {
        Self {
            input: row.input_tokens,
            cache_read: row.cache_read_tokens,
            cache_write_5m: row.cache_write_5m_tokens,
            cache_write_1h: row.cache_write_1h_tokens,
            output: row.output_tokens,
            reasoning: row.reasoning_tokens,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::By;
    use super::super::engine::Sql;
    use super::super::fixture::{Fixture, record, skip_in_postgres, skip_without_postgres};
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
    async fn a_page_is_the_same_whichever_way_it_is_found() {
        let fixture = Fixture::with_credit("5").await;
        let (keys, models) = (["key_a", "key_b", "key_c"], ["m", "n"]);
        let records: Vec<_> = (0..60)
            .map(|at: usize| UsageRecord {
                key_id: keys[at % 3].into(),
                model: models[at / 7 % 2].into(),
                started_at_ms: i64::try_from(at / 4).unwrap(),
                ..record(&fixture, 1)
            })
            .collect();
        fixture.store.settle(&records, None).await.unwrap();
        let of = |key: Option<&str>, model: Option<&str>, since_ms, until_ms| UsageFilter {
            account_id: Some(fixture.account_id.clone()),
            key_id: key.map(str::to_owned),
            model: model.map(str::to_owned),
            since_ms,
            until_ms,
        };
        for filter in [
            of(Some("key_a"), None, None, None),
            of(None, Some("n"), Some(3), None),
            of(Some("key_b"), Some("m"), Some(2), Some(11)),
            of(Some("nobody's"), None, None, None),
        ] {
            let newest = UsagePosition::before(filter.until_ms.unwrap_or(i64::MAX));
            let of_nobody = filter.key_id.as_deref() == Some("nobody's");
            let eighth = fixture.store.usage(&filter, None, 8).await.unwrap().last().map(UsagePosition::of);
            assert_eq!(eighth.is_none(), of_nobody, "{filter:?}");
            for after in [Some(newest), eighth].into_iter().flatten() {
                let page = RecordPage { filter: &filter, after: &after, limit: 9 };
                let mut pages = Vec::new();
                let engine = fixture.store.pool.engine();
                for query in [page.by_time(engine), page.of_series(engine)] {
                    let rows: Vec<RecordRow> = query.into_query_as().fetch_all(&fixture.store.pool).await.unwrap();
                    pages.push(rows.into_iter().map(|row| row.try_into().unwrap()).collect::<Vec<UsageRecord>>());
                }
                assert_eq!(pages[0], pages[1], "{filter:?} {after:?}");
            }
        }
    }

    #[tokio::test]
    async fn pages_and_last_uses_are_found_by_an_index() {
        if skip_in_postgres() {
            return;
        }
        let fixture = Fixture::with_credit("5").await;
        let all = UsageFilter::default();
        let of_key = UsageFilter { key_id: Some("k".into()), ..all.clone() };
        let of_account = UsageFilter { account_id: Some("a".into()), ..all.clone() };
        let after = UsagePosition::before(9);
        let page = |filter| RecordPage { filter, after: &after, limit: 9 };
        for (query, index) in [
            (page(&all).by_time(Engine::Sqlite), "usage_records_by_time (started_at_ms<?)"),
            (page(&of_account).of_series(Engine::Sqlite), "usage_records_by_series (series=? AND started_at_ms<?)"),
            (page(&of_key).of_series(Engine::Sqlite), "usage_records_by_series (series=? AND started_at_ms<?)"),
        ] {
            let sql = Sql::Built(format!("EXPLAIN QUERY PLAN {}", query.text()));
            let plan: Vec<(i64, i64, i64, String)> = query_as(sql).fetch_all(&fixture.store.pool).await.unwrap();
            let plan: Vec<String> = plan.into_iter().map(|(.., step)| step).collect();
            assert!(plan.iter().any(|step| step.ends_with(index)), "{plan:#?}");
            assert!(
                !plan.iter().any(|step| ["SCAN usage_records", "SCAN r", "SCAN i"].contains(&step.as_str())),
                "{plan:#?}"
            );
        }
    }

    #[tokio::test]
    async fn pages_are_found_by_an_index_of_each_month_in_postgres() {
        if skip_without_postgres().is_none() {
            return;
        }
        let fixture = Fixture::with_credit("5").await;
        let records: Vec<_> = (0..4_000_i64)
            .map(|at| UsageRecord {
                key_id: format!("key_{}", at % 40).into(),
                started_at_ms: at,
                ..record(&fixture, 1)
            })
            .collect();
        fixture.store.settle(&records, None).await.unwrap();
        fixture.store.pool.run("ANALYZE").await.unwrap();
        let month = "SELECT DISTINCT CAST(CAST(tableoid AS REGCLASS) AS TEXT) FROM usage_records";
        let month: String = query_scalar(month).fetch_one(&fixture.store.pool).await.unwrap();
        let all = UsageFilter::default();
        let of_key = UsageFilter { key_id: Some("key_7".into()), ..all.clone() };
        let of_account = UsageFilter { account_id: Some(fixture.account_id.clone()), ..all.clone() };
        let after = UsagePosition::before(3_000);
        let page = |filter| RecordPage { filter, after: &after, limit: 9 };
        for (query, index) in [
            (page(&all).by_time(Engine::Postgres), "expr_idx"),
            (page(&of_account).of_series(Engine::Postgres), "series_started_at_ms_idx"),
            (page(&of_key).of_series(Engine::Postgres), "series_started_at_ms_idx"),
        ] {
            let plan = query.into_plan_of_postgres().fetch_all(&fixture.store.pool).await.unwrap().join("\n");
            assert!(plan.contains(&format!("{month}_{index}")), "{plan}");
            assert!(!plan.contains(&format!("Seq Scan on {month}")), "{plan}");
        }
    }

    #[tokio::test]
    async fn a_keys_last_use_is_its_latest_request() {
        let fixture = Fixture::with_credit("5").await;
        let at = |key: &str, model: &str, started_at_ms| UsageRecord {
            key_id: key.into(),
            model: model.into(),
            started_at_ms,
            ..record(&fixture, 1)
        };
        let stranger = UsageRecord { account_id: "acct_b".into(), ..at("key_c", "m", 99) };
        let records = [at("key_a", "m", 7), at("key_a", "n", 9), at("key_b", "m", 8), stranger];
        fixture.store.settle(&records, None).await.unwrap();
        let used = fixture.store.keys_last_used(&fixture.account_id).await.unwrap();
        assert_eq!(used, HashMap::from([("key_a".to_owned(), 9), ("key_b".to_owned(), 8)]));
        assert_eq!(fixture.store.key_last_used("key_a").await.unwrap(), Some(9));
        assert_eq!(fixture.store.key_last_used("key_d").await.unwrap(), None);
    }
}
