//! `tollgate account`: customers and their money.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::output::{self, Column, Table};
use super::store::{now_ms, with_store};
use super::value::{self, rfc3339};
use super::{Common, Failure, Outcome};
use crate::admin::{AccountDocument, require_plan};
use crate::config::Snapshot;
use crate::relay::meter::NanoUsd;
use crate::store::{self, AccountChange, Store};

#[derive(Debug, Args)]
pub(super) struct Account {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// A new account, without credit
    Create {
        /// For people; need not be unique
        #[arg(value_parser = value::name)]
        name: String,
        /// A plan of the configuration
        #[arg(long)]
        plan: String,
    },
    /// All accounts
    List,
    /// One account, with its grants, corrections and fees
    Show { id: String },
    /// Add to an account's balance, or take from it
    Credit {
        id: String,
        /// Decimal USD; negative for a correction
        #[arg(allow_hyphen_values = true, value_parser = value::amount)]
        amount: NanoUsd,
        /// What to remember about it
        #[arg(long, value_parser = value::name)]
        note: Option<String>,
    },
    /// Put an account that has no subscription on another plan
    Plan {
        id: String,
        /// A plan of the configuration
        plan: String,
    },
    /// Call an account otherwise
    Rename {
        id: String,
        /// For people; need not be unique
        #[arg(value_parser = value::name)]
        name: String,
    },
    /// Refuse all keys of an account until it is resumed
    Suspend { id: String },
    /// Take the keys of a suspended account again
    Resume { id: String },
}

impl Account {
    pub(super) fn run(&self, common: &Common) -> Outcome {
        with_store(common, async |snapshot, store| {
            self.action.run(snapshot, store, common.json).await?;
            Ok(ExitCode::SUCCESS)
        })
    }
}

impl Action {
    async fn run(&self, snapshot: &Snapshot, store: &Store, json: bool) -> Result<(), Failure> {
        let account = match self {
            Action::Create { name, plan } => {
                require_plan(&snapshot.catalogue, plan)?;
                store.create_account(name, plan, now_ms()).await?
            }
            Action::List => {
                list(&store.accounts().await?, json);
                return Ok(());
            }
            Action::Show { id } => return show(store, id, json).await,
            Action::Credit { id, amount, note } => store.credit(id, *amount, note.as_deref(), now_ms()).await?,
            Action::Plan { id, plan } => {
                require_plan(&snapshot.catalogue, plan)?;
                store.set_plan(id, plan, now_ms()).await?
            }
            Action::Rename { id, name } => {
                let change = AccountChange { name: Some(name), ..AccountChange::default() };
                store.update_account(id, &change, now_ms()).await?
            }
            Action::Suspend { id } => store.set_account_active(id, false, now_ms()).await?,
            Action::Resume { id } => store.set_account_active(id, true, now_ms()).await?,
        };
        print(&account, json);
        Ok(())
    }
}

fn print(account: &store::Account, json: bool) {
    if json {
        output::json(&AccountDocument::from(account));
        return;
    }
    for (name, value) in [
        ("id", &account.id),
        ("name", &account.name),
        ("plan", &account.plan),
        ("status", &account.status().to_owned()),
        ("balance", &format!("{} USD", account.balance)),
        ("created", &rfc3339(account.created_at_ms)),
    ] {
        output::line(&format!("{name:<8} {value}"));
    }
}

async fn show(store: &Store, id: &str, json: bool) -> Result<(), Failure> {
    print(&store.account(id).await?, json);
    if json {
        return Ok(());
    }
    let credits = store.credits(id).await?;
    if !credits.is_empty() {
        output::line("");
        let rows: Vec<_> = credits
            .into_iter()
            .map(|credit| {
                let (time, kind) = (rfc3339(credit.created_at_ms), credit.kind.name().to_owned());
                [time, kind, credit.amount.to_string(), credit.note.unwrap_or_default()]
            })
            .collect();
        let columns = [Column::Left("CREDITED"), Column::Left("KIND"), Column::Right("USD"), Column::Left("NOTE")];
        Table::new(columns).rows(&rows);
    }
    Ok(())
}

fn list(accounts: &[store::Account], json: bool) {
    if json {
        output::json(&accounts.iter().map(AccountDocument::from).collect::<Vec<_>>());
        return;
    }
    let rows: Vec<_> = accounts
        .iter()
        .map(|account| {
            let balance = account.balance.to_string();
            [account.id.clone(), account.name.clone(), account.plan.clone(), account.status().to_owned(), balance]
        })
        .collect();
    let columns = [
        Column::Left("ID"),
        Column::Left("NAME"),
        Column::Left("PLAN"),
        Column::Left("STATUS"),
        Column::Right("BALANCE USD"),
    ];
    Table::new(columns).rows(&rows);
}
