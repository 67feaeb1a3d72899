//! `tollgate usage`: what was used and what it cost.

use std::process::ExitCode;

use clap::{Args, ValueEnum};

use super::output::{self, Column, Table};
use super::store::with_store;
use super::value::{self, rfc3339};
use super::{Common, Failure, Outcome};
use crate::admin::{RequestDocument, UsageTotalDocument};
use crate::relay::meter::{self, NanoUsd, UsageRecord};
use crate::store::{self, Store, UsageFilter, UsagePosition, UsageTotal};

/// How many requests are read and printed at a time, so that memory does not grow with the bill.
const PAGE_REQUESTS: u32 = 1_000;

#[derive(Debug, Args)]
pub(super) struct Usage {
    /// Only this account's
    #[arg(long, value_name = "ID")]
    account: Option<String>,
    /// An RFC 3339 time, a UTC date, or how long ago: 24h, 7d
    #[arg(long, value_name = "T", value_parser = value::since)]
    since: Option<i64>,
    /// Sums instead of requests
    #[arg(long)]
    by: Option<By>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum By {
    Account,
    Model,
    Key,
    Provider,
    Day,
}

impl Usage {
    pub(super) fn run(&self, common: &Common) -> Outcome {
        with_store(common, async |_, store| {
            if let Some(id) = &self.account {
                store.account(id).await?;
            }
            let (account_id, since_ms) = (self.account.clone(), self.since);
            let filter = UsageFilter { account_id, since_ms, ..UsageFilter::default() };
            match (self.by, common.json) {
                (Some(by), json) => totals(store, &filter, by, json).await?,
                (None, true) => requests_as_json(store, &filter).await?,
                (None, false) => requests_as_table(store, &filter).await?,
            }
            Ok(ExitCode::SUCCESS)
        })
    }
}

async fn totals(store: &Store, filter: &UsageFilter, by: By, json: bool) -> Result<(), Failure> {
    let (of, heading) = match by {
        By::Account => (store::By::Account, "ACCOUNT"),
        By::Model => (store::By::Model, "MODEL"),
        By::Key => (store::By::Key, "KEY"),
        By::Provider => (store::By::Provider, "PROVIDER"),
        By::Day => (store::By::Day, "DAY"),
    };
    let totals = store.usage_by(filter, of).await?;
    if json {
        output::json(&totals.iter().map(|total| UsageTotalDocument::new(of, total)).collect::<Vec<_>>());
        return Ok(());
    }
    let rows: Vec<_> = totals
        .into_iter()
        .map(|UsageTotal { group, requests, errors, usage, cost, provider_cost, uncosted }| {
            let [input, cached, written, output] = columns_of(&usage);
            let (requests, errors) = (requests.to_string(), errors.to_string());
            let provider_cost = known_cost(provider_cost, uncosted);
            [group, requests, errors, input, cached, written, output, cost.to_string(), provider_cost]
        })
        .collect();
    let columns = [
        Column::Left(heading),
        Column::Right("REQUESTS"),
        Column::Right("ERRORS"),
        Column::Right("INPUT"),
        Column::Right("CACHE READ"),
        Column::Right("CACHE WRITE"),
        Column::Right("OUTPUT"),
        Column::Right("USD"),
        Column::Right("PROVIDER USD"),
    ];
    Table::new(columns).rows(&rows);
    Ok(())
}

/// A JSON list, one request a line.
async fn requests_as_json(store: &Store, filter: &UsageFilter) -> Result<(), Failure> {
    let mut pages = Pages::new(store, filter);
    let mut opening = '[';
    while let Some(page) = pages.next().await? {
        for record in &page {
            output::line(&format!("{opening}{}", serde_json::to_string(&RequestDocument::from(record))?));
            opening = ',';
        }
    }
    output::line(if opening == '[' { "[]" } else { "]" });
    Ok(())
}

async fn requests_as_table(store: &Store, filter: &UsageFilter) -> Result<(), Failure> {
    let mut table = Table::new([
        Column::Left("STARTED"),
        Column::Left("REQUEST"),
        Column::Left("MODEL"),
        Column::Right("STATUS"),
        Column::Right("INPUT"),
        Column::Right("CACHE READ"),
        Column::Right("CACHE WRITE"),
        Column::Right("OUTPUT"),
        Column::Right("USD"),
        Column::Right("PROVIDER USD"),
        Column::Left("REMARKS"),
    ]);
    table.rows(&[]);
    let mut pages = Pages::new(store, filter);
    while let Some(page) = pages.next().await? {
        table.rows(&page.iter().map(table_row).collect::<Vec<_>>());
    }
    Ok(())
}

fn table_row(record: &UsageRecord) -> [String; 11] {
    let [input, cached, written, output] = columns_of(&record.usage);
    let remarks = [(record.estimated, "estimated"), (record.interrupted, "interrupted")];
    let remarks: Vec<&str> = remarks.into_iter().filter_map(|(holds, remark)| holds.then_some(remark)).collect();
    [
        rfc3339(record.started_at_ms),
        record.request_id.to_string(),
        record.model.to_string(),
        record.status.to_string(),
        input,
        cached,
        written,
        output,
        record.cost.to_string(),
        record.provider_cost.map_or_else(|| "?".to_owned(), |cost| cost.to_string()),
        remarks.join(", "),
    ]
}

/// What providers charge, with a mark where that is not all.
fn known_cost(known: NanoUsd, uncosted: u64) -> String {
    if uncosted > 0 { format!("{known} + ?") } else { known.to_string() }
}

/// Tokens as tables show them: fresh input, read from a cache, written to one, output.
fn columns_of(usage: &meter::Usage) -> [String; 4] {
    let written = usage.cache_write_5m.saturating_add(usage.cache_write_1h);
    [usage.input, usage.cache_read, written, usage.output].map(|tokens| tokens.to_string())
}

/// Requests, newest first, page by page.
struct Pages<'a> {
    store: &'a Store,
    filter: &'a UsageFilter,
    position: Option<UsagePosition>,
}

impl<'a> Pages<'a> {
    fn new(store: &'a Store, filter: &'a UsageFilter) -> Self {
        Self { store, filter, position: None }
    }

    async fn next(&mut self) -> Result<Option<Vec<UsageRecord>>, Failure> {
        let page = self.store.usage(self.filter, self.position.as_ref(), PAGE_REQUESTS).await?;
        let Some(last) = page.last() else { return Ok(None) };
        self.position = Some(UsagePosition::of(last));
        Ok(Some(page))
    }
}
