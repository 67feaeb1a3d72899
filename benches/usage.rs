//! How long people wait for usage over a store of so many requests: `cargo bench --bench usage -- [REQUESTS]`, 5 million by default.
//!
//! The requests are made up by SQL in a folder that is deleted afterwards (5 million take 2 GB there, and a minute or two): 90 days,
//! 2,000 accounts of two keys, twelve models; a few accounts have most of it, the greatest of them some 400,000 requests. Each
//! question is asked five times; the slowest answer is told, and the bench fails where one takes more than 200 ms.

#![allow(
    clippy::disallowed_methods,
    clippy::float_arithmetic,
    clippy::print_stdout,
    reason = "a bench measures time and prints"
)]

use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::{Connection, params};
use tollgate::store::{By, GroupPage, Store, UsageFilter, UsagePosition};

/// As in the relay.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const DAY_MS: i64 = 86_400_000;
/// Midnight before the first request, 2026-08-25, in milliseconds since the Unix epoch.
const BEGIN_MS: i64 = 20_690 * DAY_MS;
const DAYS: i64 = 90;

/// The longest that anybody is to wait.
const WAIT_MAX: Duration = Duration::from_millis(200);
const ROUNDS: usize = 5;
/// Rows on a page.
const PAGE: u32 = 100;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let requests: i64 = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(5_000_000);
    let folder = tempfile::tempdir_in(std::env::var("USAGE_BENCH_FOLDER").unwrap_or_else(|_| ".".to_owned()))?;
    let path = folder.path().join("tollgate.db");
    let url = format!("sqlite://{}", path.display());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        Store::open(&url).await?.close().await;
        Ok::<_, Failure>(())
    })?;
    let begins = Instant::now();
    make_up(&path, requests)?;
    let bytes = path.metadata()?.len();
    println!("{requests} requests made up in {:.0?}, {} MB", begins.elapsed(), bytes >> 20);
    let slowest = runtime.block_on(async {
        let store = Store::open(&url).await?;
        let mut asked = Asked { store: &store, slowest: Duration::ZERO };
        asked.pages().await?;
        asked.sums().await?;
        let slowest = asked.slowest;
        store.close().await;
        Ok::<_, Failure>(slowest)
    })?;
    match slowest > WAIT_MAX {
        true => Err(format!("an answer took {slowest:.0?}").into()),
        false => Ok(()),
    }
}

/// Fills the store. Series and their requests first, then the sums, as the store's own migration makes them.
fn make_up(path: &Path, requests: i64) -> Result<(), Failure> {
    const INDEXES: &str = "SELECT name, sql FROM sqlite_schema WHERE type = 'index' AND sql IS NOT NULL
        AND tbl_name IN ('usage_records', 'usage_accounts')";
    /// Six series an account: two keys, three models each. The last series alone has a model of its own.
    const SERIES: &str = "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 11999)
        INSERT INTO usage_series (id, account_id, key_id, model, provider)
        SELECT i + 1, printf('acct_%024d', i / 6), printf('key_%024d', i / 3),
            CASE WHEN i >= 11990 THEN 'rare' ELSE 'maker/model-' || ((i * 7 + i / 3) % 12) END, 'provider-' || (i % 4)
        FROM n";
    /// In the order of time, spread over the series by the cube of an even chance.
    const RECORDS: &str = "WITH RECURSIVE n(i, chance) AS (SELECT 0, 0.5 UNION ALL
            SELECT i + 1, ((i + 1) * 2654435761 % 4294967296) / 4294967296.0 FROM n WHERE i < ?1 - 1)
        INSERT INTO usage_records (seq, request_id, account_id, key_id, model, provider, status, input_tokens,
            cache_read_tokens, cache_write_5m_tokens, cache_write_1h_tokens, output_tokens, reasoning_tokens, cost_nano_usd,
            estimated, interrupted, started_at_ms, first_token_ms, total_ms, series, provider_cost_nano_usd)
        SELECT i + 1, printf('%08x-%04x-7000-8000-%012x', (?2 + i * ?3 / ?1) / 65536, (?2 + i * ?3 / ?1) % 65536, i),
            s.account_id, s.key_id, s.model, s.provider, CASE WHEN i % 50 = 0 THEN 502 ELSE 200 END,
            i % 4000, i % 700, 0, 0, i % 900, 0, 378000 + i % 1000, 0, 0, ?2 + i * ?3 / ?1, 400 + i % 300, 1500 + i % 900,
            s.id, 200000 + i % 1000
        FROM n CROSS JOIN usage_series s WHERE s.id = 1 + CAST(12000 * chance * chance * chance AS INTEGER)";
    const SUMS: &str = "COUNT(*), SUM(status >= 400), SUM(input_tokens), SUM(cache_read_tokens), SUM(cache_write_5m_tokens),
        SUM(cache_write_1h_tokens), SUM(output_tokens), SUM(reasoning_tokens), SUM(cost_nano_usd), SUM(provider_cost_nano_usd),
        0 FROM usage_records";
    let connection = Connection::open(path)?;
    connection.execute_batch("PRAGMA synchronous = OFF; PRAGMA journal_mode = OFF; PRAGMA cache_size = -1000000;")?;
    let mut indexes = connection.prepare(INDEXES)?;
    let indexes = indexes.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let indexes = indexes.collect::<rusqlite::Result<Vec<(String, String)>>>()?;
    for (name, _) in &indexes {
        connection.execute_batch(&format!("DROP INDEX {name}"))?;
    }
    connection.execute_batch(SERIES)?;
    connection.execute(RECORDS, params![requests, BEGIN_MS, DAYS * DAY_MS])?;
    for (table, by) in [
        ("usage_days", "series, started_at_ms / 86400000"),
        ("usage_accounts", "account_id, started_at_ms / 86400000"),
        ("usage_totals", "started_at_ms / 86400000, model, provider"),
    ] {
        let order = if table == "usage_totals" { "" } else { "ORDER BY 2, 1" };
        connection.execute_batch(&format!("INSERT INTO {table} SELECT {by}, {SUMS} GROUP BY {by} {order}"))?;
    }
    for (_, create) in &indexes {
        connection.execute_batch(create)?;
    }
    connection.execute_batch("PRAGMA journal_mode = WAL")?;
    Ok(())
}

struct Asked<'a> {
    store: &'a Store,
    slowest: Duration,
}

impl Asked<'_> {
    /// Pages of requests: the newest, and those behind a page that lies deep.
    async fn pages(&mut self) -> Result<(), Failure> {
        let everybody = UsageFilter::default();
        let account = |number: u32| UsageFilter { account_id: Some(format!("acct_{number:024}")), ..everybody.clone() };
        let key =
            |number: u32, filter: UsageFilter| UsageFilter { key_id: Some(format!("key_{number:024}")), ..filter };
        let model = |name: &str, filter: UsageFilter| UsageFilter { model: Some(name.to_owned()), ..filter };
        let month = |filter: UsageFilter| UsageFilter {
            since_ms: Some(BEGIN_MS + 30 * DAY_MS + 5),
            until_ms: Some(BEGIN_MS + 60 * DAY_MS + 5),
            ..filter
        };
        for (name, filter) in [
            ("everybody", everybody.clone()),
            ("everybody, a month", month(everybody.clone())),
            ("the greatest account", account(0)),
            ("the least account", account(1_999)),
            ("a great account, a month", month(account(1))),
            ("a great key", key(0, account(0))),
            ("a small key, a month", month(key(3_000, account(1_500)))),
            ("a common model", model("maker/model-3", everybody.clone())),
            ("a rare model", model("rare", everybody.clone())),
            ("a rare model, a month", month(model("rare", everybody.clone()))),
            ("a great account, a model", model("maker/model-0", account(0))),
            ("a great account, a model that it has not", model("rare", account(0))),
            ("a key, a model, a month", month(model("maker/model-0", key(0, account(0))))),
        ] {
            let last_page = self.page(&format!("page of {name}"), &filter, None).await?;
            let deep = match filter.until_ms.is_some() {
                true => BEGIN_MS + 31 * DAY_MS,
                false => BEGIN_MS + 9 * DAY_MS,
            };
            let until = UsageFilter { until_ms: Some(deep), ..filter.clone() };
            let deep = self.store.usage(&until, None, 1).await?.first().map(UsagePosition::of);
            if let Some(deep) = deep.or(last_page) {
                self.page(&format!("deep page of {name}"), &filter, Some(&deep)).await?;
            }
        }
        let used = format!("acct_{:024}", 0);
        self.times("when an account's keys were last used", async || {
            Ok::<_, Failure>(self.store.keys_last_used(&used).await?.len())
        })
        .await
        .map(|took| self.slowest = self.slowest.max(took))
    }

    async fn page(
        &mut self,
        name: &str,
        filter: &UsageFilter,
        after: Option<&UsagePosition>,
    ) -> Result<Option<UsagePosition>, Failure> {
        let took = self.times(name, async || Ok(self.store.usage(filter, after, PAGE + 1).await?.len())).await?;
        self.slowest = self.slowest.max(took);
        Ok(self.store.usage(filter, after, PAGE).await?.last().map(UsagePosition::of))
    }

    /// What a customer's overview adds up, and what the operator's pages do.
    async fn sums(&mut self) -> Result<(), Failure> {
        let end_ms = BEGIN_MS + DAYS * DAY_MS;
        let today = |filter: &UsageFilter| UsageFilter { since_ms: Some(end_ms - DAY_MS), ..filter.clone() };
        let month = |filter: &UsageFilter| UsageFilter { since_ms: Some(end_ms - 30 * DAY_MS), ..filter.clone() };
        let uneven =
            |filter: &UsageFilter| UsageFilter { since_ms: Some(end_ms - 30 * DAY_MS - DAY_MS / 2), ..filter.clone() };
        let everybody = UsageFilter::default();
        let account = UsageFilter { account_id: Some(format!("acct_{:024}", 0)), ..everybody.clone() };
        let store = self.store;
        let mut took = Vec::new();
        took.push(
            self.times("overview: today, this month, by day and model", async || {
                store.usage_sum(&today(&account)).await?;
                store.usage_sum(&month(&account)).await?;
                Ok(store.usage_by_day_and(&month(&account), By::Model).await?.len())
            })
            .await?,
        );
        for (name, filter) in [
            ("30 days", month(&everybody)),
            ("30 days from noon on", uneven(&everybody)),
            ("90 days", everybody.clone()),
        ] {
            took.push(
                self.times(&format!("revenue, {name}: by day and model, by model, 100 accounts"), async || {
                    store.usage_by_day_and(&filter, By::Model).await?;
                    store.usage_by(&filter, By::Model).await?;
                    Ok(store.usage_by(&filter, By::Account).await?.len())
                })
                .await?,
            );
        }
        let page = GroupPage { after: None, limit: PAGE };
        for (name, filter) in [("everybody", &everybody), ("the greatest account", &account)] {
            for by in [By::Account, By::Key, By::Model, By::Day] {
                let name = format!("90 days of {name} by {by:?}");
                took.push(self.times(&name, async || Ok(store.usage_by_page(filter, by, page).await?.len())).await?);
            }
        }
        self.slowest = took.into_iter().fold(self.slowest, Duration::max);
        Ok(())
    }

    /// Asks a few times, and tells the slowest and how many rows there were.
    async fn times(&self, name: &str, ask: impl AsyncFn() -> Result<usize, Failure>) -> Result<Duration, Failure> {
        let (mut slowest, mut rows) = (Duration::ZERO, 0);
        for _ in 0..ROUNDS {
            let begins = Instant::now();
            rows = ask().await?;
            slowest = slowest.max(begins.elapsed());
        }
        let mark = if slowest > WAIT_MAX { "  TOO SLOW" } else { "" };
        println!("{:7.1} ms  {rows:5} rows  {name}{mark}", slowest.as_micros() as f64 / 1e3);
        Ok(slowest)
    }
}
