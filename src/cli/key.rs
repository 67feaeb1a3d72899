//! `tollgate key`: API keys. A key is shown once, when it is made.

use std::process::ExitCode;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand, value_parser};
use ipnet::IpNet;
use serde::Serialize;

use super::output::{self, Column, Table};
use super::store::{now_ms, with_store};
use super::value::{self, rfc3339};
use super::{Common, Failure, Outcome};
use crate::relay::auth::ApiKey;
use crate::relay::meter::NanoUsd;
use crate::store::{self, KeyStatus, KeyTerms, NewKey, Store};

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
            },
        };
        let (key, secret) = create(store, &new).await?;
        if json {
            output::json(&Document { key: Some(secret.expose()), ..Document::from(&key) });
            return Ok(());
        }
        output::line(&format!("{} ({}) of {}", key.id, key.name, key.account_id));
        output::line(secret.expose());
        output::line("Keep it: only its digest is stored, it is not shown again.");
        Ok(())
    }
}

/// Makes a key from the system's entropy and stores its digest.
pub(super) async fn create(store: &Store, new: &NewKey) -> Result<(store::Key, ApiKey), Failure> {
    let mut entropy = [0; ApiKey::ENTROPY_BYTES];
    getrandom::fill(&mut entropy)?;
    let secret = ApiKey::from_entropy(&entropy).ok_or("the system's entropy makes no key")?;
    let key = store.create_key(new, &secret.digest(), now_ms()).await?;
    Ok((key, secret))
}

async fn list(store: &Store, account: Option<&str>, json: bool) -> Result<(), Failure> {
    if let Some(id) = account {
        store.account(id).await?;
    }
    let keys = store.keys(account).await?;
    if json {
        output::json(&keys.iter().map(Document::from).collect::<Vec<_>>());
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
                status(key).to_owned(),
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
        output::json(&Document::from(&key));
        return Ok(());
    }
    output::line(&format!("{} ({}) of {} is revoked", key.id, key.name, key.account_id));
    Ok(())
}

fn status(key: &store::Key) -> &'static str {
    match key.status_at(now_ms()) {
        KeyStatus::Active => "active",
        KeyStatus::Revoked => "revoked",
        KeyStatus::Expired => "expired",
    }
}

/// A key in JSON; `key` itself only when it is made.
#[derive(Serialize)]
struct Document<'a> {
    id: &'a str,
    account_id: &'a str,
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    status: &'static str,
    requests_per_minute: Option<u32>,
    tokens_per_minute: Option<u64>,
    concurrent_requests: Option<u32>,
    budget_nano_usd: Option<i64>,
    models: Option<&'a [String]>,
    allow_ip: Vec<String>,
    expires_at: Option<String>,
    spent_nano_usd: i64,
    created_at: String,
    revoked_at: Option<String>,
}

impl<'a> From<&'a store::Key> for Document<'a> {
    fn from(key: &'a store::Key) -> Self {
        let terms = &key.terms;
        Self {
            id: &key.id,
            account_id: &key.account_id,
            name: &key.name,
            key: None,
            status: status(key),
            requests_per_minute: terms.requests_per_minute,
            tokens_per_minute: terms.tokens_per_minute,
            concurrent_requests: terms.concurrent_requests,
            budget_nano_usd: terms.budget.map(|budget| budget.0),
            models: terms.models.as_deref(),
            allow_ip: terms.allow_ip.iter().map(IpNet::to_string).collect(),
            expires_at: terms.expires_at_ms.map(rfc3339),
            spent_nano_usd: key.spent.0,
            created_at: rfc3339(key.created_at_ms),
            revoked_at: key.revoked_at_ms.map(rfc3339),
        }
    }
}
