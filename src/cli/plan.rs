//! `tollgate plan`: the plans of the configuration, and what they cost.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::output::{self, Column, Table};
use super::{Common, Failure, Outcome};
use crate::admin::PlanDocument;
use crate::config::{self, Providers};
use crate::relay::route::{Catalogue, Plan as PlanRow};

#[derive(Debug, Args)]
pub(super) struct Plan {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// All plans, by name
    List,
}

impl Plan {
    pub(super) fn run(&self, common: &Common) -> Outcome {
        let Action::List = self.action;
        let path = config::locate(common.config.as_deref());
        let loaded = config::load(&path, Providers::OnlyReady).map_err(|mistakes| Failure::of_mistakes(&mistakes))?;
        list(&loaded.snapshot.catalogue, common.json);
        Ok(ExitCode::SUCCESS)
    }
}

fn list(catalogue: &Catalogue, json: bool) {
    let names = catalogue.plan_names();
    let plans: Vec<_> = names.into_iter().filter_map(|name| catalogue.plan(name)).collect();
    if json {
        output::json(&plans.iter().map(|plan| PlanDocument::new(catalogue, plan)).collect::<Vec<_>>());
        return;
    }
    let rows: Vec<_> = plans.iter().map(|plan| row(catalogue, plan)).collect();
    let columns = [
        Column::Left("NAME"),
        Column::Right("USD A MONTH"),
        Column::Right("RPM"),
        Column::Right("TPM"),
        Column::Right("AT ONCE"),
        Column::Left("DEFAULT"),
    ];
    Table::new(columns).rows(&rows);
}

fn row(catalogue: &Catalogue, plan: &PlanRow) -> [String; 6] {
    let limit = |limit: Option<u64>| limit.map(|limit| limit.to_string()).unwrap_or_default();
    let is_default = catalogue.default_plan().is_some_and(|default| default.name == plan.name);
    [
        plan.name.to_string(),
        plan.price.map_or_else(|| "not for sale".to_owned(), |price| price.to_string()),
        plan.requests_per_minute.to_string(),
        limit(plan.tokens_per_minute),
        limit(plan.concurrent_requests.map(u64::from)),
        if is_default { "default".to_owned() } else { String::new() },
    ]
}
