//! `tollgate audit`: re-derives every balance from the ledger and compares; and compares what the spool says is running.

use std::path::Path;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;
use uuid::Uuid;

use super::output::{self, Column, Table};
use super::store::with_store;
use super::{Common, Failure, Outcome};
use crate::billing::{SpoolError, SpooledHold, spooled_holds};
use crate::relay::meter::NanoUsd;
use crate::store::{Difference, DifferenceKind, Store};

#[derive(Debug, Args)]
pub(super) struct Audit {}

impl Audit {
    pub(super) fn run(&self, common: &Common) -> Outcome {
        with_store(common, async |snapshot, store| {
            let mut differences = store.audit().await?;
            differences.extend(audit_holds(&snapshot.billing.spool, store).await?);
            print(&differences, common.json);
            Ok(if differences.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        })
    }
}

/// Requests that hold credit though they have been settled, and holds that cannot be read. A request that ends meanwhile is in the
/// spool's open rows before and in the ledger after; so it counts only if its row is still there when it is looked again.
async fn audit_holds(spool: &Path, store: &Store) -> Result<Vec<Difference>, Failure> {
    let held = |error: SpoolError| Failure(format!("the spool's holds cannot be read: {error}"));
    let before: Vec<Uuid> = spooled_holds(spool).map_err(held)?.iter().filter_map(|hold| hold.request_id).collect();
    let settled = store.settled_among(&before).await?;
    let difference = |hold: SpooledHold| {
        let (kind, id, derived) = match hold.request_id {
            None => (DifferenceKind::HoldUnreadable, "?".to_owned(), None),
            Some(id) => (DifferenceKind::HoldSettled, id.to_string(), Some(*settled.get(&id)?)),
        };
        Some(Difference { kind, id, stored: Some(hold.amount), derived })
    };
    Ok(spooled_holds(spool).map_err(held)?.into_iter().filter_map(difference).collect())
}

fn print(differences: &[Difference], json: bool) {
    if json {
        output::json(&differences.iter().map(Document::from).collect::<Vec<_>>());
        return;
    }
    if differences.is_empty() {
        output::line(
            "ok: every balance is the sum of its ledger entries, every day the sum of its requests, and no request holds credit that is settled",
        );
        return;
    }
    let shown = |amount: Option<NanoUsd>| amount.map_or_else(|| "none".to_owned(), |amount| amount.to_string());
    let rows: Vec<_> = differences
        .iter()
        .map(|found| [found.kind.name().to_owned(), found.id.clone(), shown(found.stored), shown(found.derived)])
        .collect();
    let columns =
        [Column::Left("DIFFERENCE"), Column::Left("ID"), Column::Right("STORED USD"), Column::Right("LEDGER USD")];
    Table::new(columns).rows(&rows);
}

/// A difference in JSON.
#[derive(Serialize)]
struct Document<'a> {
    kind: &'static str,
    id: &'a str,
    stored_nano_usd: Option<i64>,
    derived_nano_usd: Option<i64>,
}

impl<'a> From<&'a Difference> for Document<'a> {
    fn from(found: &'a Difference) -> Self {
        Self {
            kind: found.kind.name(),
            id: &found.id,
            stored_nano_usd: found.stored.map(|amount| amount.0),
            derived_nano_usd: found.derived.map(|amount| amount.0),
        }
    }
}
