//! `tollgate key`: API keys. A key is shown once, when it is made.

use std::process::ExitCode;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand, value_parser};
use ipnet::IpNet;

use super::output::{self, Column, Table};
use super::store::{now_ms, with_store};
use super::value;
use super::{Common, Failure, Outcome};
use crate::admin::{CreatedKeyDocument, KeyDocument, create_key};
use crate::relay::meter::NanoUsd;
use crate::store::{KeyTerms, NewKey, Store};

#[derive(Debug, Args)]
pub(super) struct Key {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// A new key, printed once; limits that are not given are the plan's
    Create(Create),
    /// All keys, or one account's
    List {
        /// Only this account's
        #[arg(long, value_name = "ID")]
        account: Option<String>,
    },
    /// Take a key back for good
    Revoke {
        /// The key's id, as `key list` shows it
        id: String,
    },
}

#[derive(Debug, Args)]
struct Create {
    /// Whose it is
    #[arg(long, value_name = "ID")]
    account: String,
    /// For people; need not be unique
    #[arg(long, value_parser = value::name)]
    name: String,
    /// Requests in any 60 seconds
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    rpm: Option<u32>,
    /// Tokens in any 60 seconds
    #[arg(long, value_name = "N", value_parser = value_parser!(u64).range(1..=i64::MAX as u64))]
    tpm: Option<u64>,
    /// Requests at once
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    concurrency: Option<u32>,
    /// What it may spend in all
    #[arg(long, value_name = "USD", value_parser = value::budget)]
    budget: Option<NanoUsd>,
    /// The only models that it may use
    #[arg(long, value_name = "MODEL,…", value_delimiter = ',', value_parser = NonEmptyStringValueParser::new())]
    models: Vec<String>,
    /// The only networks or addresses that it may be used from
    #[arg(long, value_name = "CIDR,…", value_delimiter = ',', value_parser = value::network)]
    allow_ip: Vec<IpNet>,
    /// When it ceases to be good
    #[arg(long, value_name = "RFC3339", value_parser = value::moment)]
    expires: Option<i64>,
    /// Its limits are at most the plan's, whichever plan the account has then
    #[arg(long)]
    within_plan: bool,
}

impl Key {
    pub(super) fn run(&self, common: &Common) -> Outcome {
        with_store(common, async |_, store| {
            match &self.action {
                Action::Create(create) => create.run(store, common.json).await?,
                Action::List { account } => list(store, account.as_deref(), common.json).await?,
                Action::Revoke { id } => revoke(store, id, common.json).await?,
            }
            Ok(ExitCode::SUCCESS)
        })
    }
}

impl Create {
    async fn run(&self, store: &Store, json: bool) -> Result<(), Failure> {
        let new = NewKey {
            account_id: self.account.clone(),
            name: self.name.clone(),
            terms: KeyTerms {
                requests_per_minute: self.rpm,
                tokens_per_minute: self.tpm,
                concurrent_requests: self.concurrency,
                budget: self.budget,
                models: (!self.models.is_empty()).then(|| self.models.clone()),
                allow_ip: self.allow_ip.clone(),
                expires_at_ms: self.expires,
                within_plan: self.within_plan,
            },
        };
        let (key, secret) = create_key(store, &new, now_ms()).await?;
        if json {
            let about = KeyDocument::new(&key, now_ms());
            output::json(&CreatedKeyDocument { key: secret.expose().to_owned(), about });
            return Ok(());
        }
        output::line(&format!("{} ({}) of {}", key.id, key.name, key.account_id));
        output::line(secret.expose());
        output::line("Keep it: only its digest is stored, it is not shown again.");
        Ok(())
    }
}

async fn list(store: &Store, account: Option<&str>, json: bool) -> Result<(), Failure> {
    if let Some(id) = account {
        store.account(id).await?;
    }
    let keys = store.keys(account).await?;
    if json {
        output::json(&keys.iter().map(|key| KeyDocument::new(key, now_ms())).collect::<Vec<_>>());
        return Ok(());
    }
    let or_plan = |limit: Option<u32>| limit.map_or_else(|| "plan".to_owned(), |limit| limit.to_string());
    let rows: Vec<_> = keys
        .iter()
        .map(|key| {
            [
                key.id.clone(),
                key.account_id.clone(),
                key.name.clone(),
                key.status_at(now_ms()).name().to_owned(),
                or_plan(key.terms.requests_per_minute),
                key.spent.to_string(),
                key.terms.budget.map(|budget| budget.to_string()).unwrap_or_default(),
            ]
        })
        .collect();
    let columns = [
        Column::Left("ID"),
        Column::Left("ACCOUNT"),
        Column::Left("NAME"),
        Column::Left("STATUS"),
        Column::Right("RPM"),
        Column::Right("SPENT USD"),
        Column::Right("BUDGET USD"),
    ];
    Table::new(columns).rows(&rows);
    Ok(())
}

async fn revoke(store: &Store, id: &str, json: bool) -> Result<(), Failure> {
    let key = store.revoke_key(id, now_ms()).await?;
    if json {
        output::json(&KeyDocument::new(&key, now_ms()));
        return Ok(());
    }
    output::line(&format!("{} ({}) of {} is revoked", key.id, key.name, key.account_id));
    Ok(())
}
