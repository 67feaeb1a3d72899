//! `tollgate audit`: re-derives every balance from the ledger and compares.

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::output::{self, Column, Table};
use super::store::with_store;
use super::{Common, Outcome};
use crate::relay::meter::NanoUsd;
use crate::store::Difference;

#[derive(Debug, Args)]
pub(super) struct Audit {}

impl Audit {
    pub(super) fn run(&self, common: &Common) -> Outcome {
        with_store(common, async |_, store| {
            let differences = store.audit().await?;
            print(&differences, common.json);
            Ok(if differences.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        })
    }
}

fn print(differences: &[Difference], json: bool) {
    if json {
        output::json(&differences.iter().map(Document::from).collect::<Vec<_>>());
        return;
    }
    if differences.is_empty() {
        output::line("ok: every balance is the sum of its ledger entries");
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
