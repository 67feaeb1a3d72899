//! `tollgate audit-log`: who changed accounts and keys, and how, newest first.

use std::process::ExitCode;

use clap::Args;

use super::output::{self, Column, Table};
use super::store::with_store;
use super::value::{self, rfc3339};
use super::{Common, Failure, Outcome};
use crate::admin::AuditDocument;
use crate::store::{AuditEntry, AuditFilter, AuditPosition, Store};

/// How many entries are read and printed at a time, so that memory does not grow with the log.
const PAGE_ENTRIES: u32 = 1_000;

#[derive(Debug, Args)]
pub(super) struct AuditLog {
    /// Only changes of this account, key or user
    #[arg(long, value_name = "ID")]
    subject: Option<String>,
    /// An RFC 3339 time, a UTC date, or how long ago: 24h, 7d
    #[arg(long, value_name = "T", value_parser = value::since)]
    since: Option<i64>,
}

impl AuditLog {
    pub(super) fn run(&self, common: &Common) -> Outcome {
        with_store(common, async |_, store| {
            let filter = AuditFilter { subject_id: self.subject.clone(), since_ms: self.since };
            match common.json {
                true => as_json(store, &filter).await?,
                false => as_table(store, &filter).await?,
            }
            Ok(ExitCode::SUCCESS)
        })
    }
}

/// A JSON list, one entry a line.
async fn as_json(store: &Store, filter: &AuditFilter) -> Result<(), Failure> {
    let mut opening = '[';
    let mut position = None;
    while let Some(page) = next(store, filter, &mut position).await? {
        for entry in page {
            output::line(&format!("{opening}{}", serde_json::to_string(&AuditDocument::from(entry))?));
            opening = ',';
        }
    }
    output::line(if opening == '[' { "[]" } else { "]" });
    Ok(())
}

async fn as_table(store: &Store, filter: &AuditFilter) -> Result<(), Failure> {
    let columns = ["AT", "ACTOR", "ACTION", "SUBJECT", "BEFORE", "AFTER"].map(Column::Left);
    let mut table = Table::new(columns);
    table.rows(&[]);
    let mut position = None;
    while let Some(page) = next(store, filter, &mut position).await? {
        table.rows(&page.into_iter().map(row).collect::<Vec<_>>());
    }
    Ok(())
}

/// The page after that position, which is moved to its end.
async fn next(
    store: &Store,
    filter: &AuditFilter,
    position: &mut Option<AuditPosition>,
) -> Result<Option<Vec<AuditEntry>>, Failure> {
    let page = store.audit_entries(filter, position.as_ref(), PAGE_ENTRIES).await?;
    let Some(last) = page.last() else { return Ok(None) };
    *position = Some(AuditPosition::of(last));
    Ok(Some(page))
}

fn row(entry: AuditEntry) -> [String; 6] {
    let actor = match entry.actor_name {
        Some(name) => format!("{}:{name}", entry.actor_kind),
        None => entry.actor_kind,
    };
    let [before, after] = [entry.before, entry.after].map(|told| told.map(|told| told.to_string()).unwrap_or_default());
    [rfc3339(entry.at_ms), actor, entry.action, entry.subject_id, before, after]
}
