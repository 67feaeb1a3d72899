//! `tollgate subscription`: accounts' plans by the month.

use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};

use super::output::{self, Column, Table};
use super::store::{now_ms, with_store};
use super::value::{self, rfc3339};
use super::{Common, Failure, Outcome};
use crate::admin::{PeriodDocument, SubscriptionDocument, sale};
use crate::config::Snapshot;
use crate::store::{self, PaidBy, Store, StoreError, SubscriptionChange};

/// How many rows a list is read in at a time.
const PAGE: u32 = 1_000;

#[derive(Debug, Args)]
pub(super) struct Subscription {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Begin one, and debit its first month where credit pays
    Start {
        /// The account
        id: String,
        /// A plan of the configuration; where credit pays, one with a price
        plan: String,
        /// Who pays: the account's credit each month, or the operator, and nothing is debited
        #[arg(long, value_enum, default_value = "credit")]
        paid_by: Payer,
        /// When it ends in any case
        #[arg(long, value_name = "RFC3339", value_parser = value::moment)]
        ends: Option<i64>,
    },
    /// Another plan: at once where it costs more, less what is unused of the month; else from the period's end on
    Change {
        /// The account
        id: String,
        /// A plan of the configuration; the default plan is to cancel
        plan: String,
        /// Who pays, where it begins at once [default: as now]
        #[arg(long, value_enum)]
        paid_by: Option<Payer>,
    },
    /// Cancel at the period's end
    Cancel {
        /// The account
        id: String,
    },
    /// Take a cancellation, or a change at the period's end, back
    Keep {
        /// The account
        id: String,
    },
    /// End it at once, or at a time; nothing is paid back
    End {
        /// The account
        id: String,
        /// Not at once, but then
        #[arg(long, value_name = "RFC3339", value_parser = value::moment)]
        at: Option<i64>,
    },
    /// An account's subscription, and the months that it has had; as JSON, the subscription
    Show {
        /// The account
        id: String,
    },
    /// An account's months, newest first
    Periods {
        /// The account
        id: String,
    },
    /// All that have not ended, oldest first
    List,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Payer {
    Credit,
    Operator,
}

impl From<Payer> for PaidBy {
    fn from(payer: Payer) -> Self {
        match payer {
            Payer::Credit => PaidBy::Credit,
            Payer::Operator => PaidBy::Operator,
        }
    }
}

impl Subscription {
    pub(super) fn run(&self, common: &Common) -> Outcome {
        with_store(common, async |snapshot, store| {
            self.action.run(snapshot, store, common.json).await?;
            Ok(ExitCode::SUCCESS)
        })
    }
}

impl Action {
    async fn run(&self, snapshot: &Snapshot, store: &Store, json: bool) -> Result<(), Failure> {
        let (catalogue, now_ms) = (&snapshot.catalogue, now_ms());
        let subscription = match self {
            Action::Start { id, plan, paid_by, ends } => {
                ahead(*ends, now_ms)?;
                sale::subscribe(store, catalogue, id, (plan, (*paid_by).into()), *ends, now_ms).await?
            }
            Action::Change { id, plan, paid_by } => {
                sale::change_plan(store, catalogue, id, (plan, paid_by.map(PaidBy::from)), now_ms).await?
            }
            Action::Cancel { id } => store.change_subscription(id, SubscriptionChange::Cancel, now_ms).await?,
            Action::Keep { id } => store.change_subscription(id, SubscriptionChange::Keep, now_ms).await?,
            Action::End { id, at: None } => sale::end_subscription(store, catalogue, id, now_ms).await?,
            Action::End { id, at: Some(at_ms) } => {
                ahead(Some(*at_ms), now_ms)?;
                store.change_subscription(id, SubscriptionChange::EndAt(*at_ms), now_ms).await?
            }
            Action::Show { id } => return show(store, id, json).await,
            Action::Periods { id } => {
                store.account(id).await?;
                return periods(store, id, json).await;
            }
            Action::List => return list(store, json).await,
        };
        print(&subscription, json);
        Ok(())
    }
}

fn ahead(at_ms: Option<i64>, now_ms: i64) -> Result<(), Failure> {
    match at_ms {
        Some(at_ms) if at_ms <= now_ms => Err(Failure::from("the time must lie ahead")),
        _ => Ok(()),
    }
}

fn print(subscription: &store::Subscription, json: bool) {
    if json {
        output::json(&SubscriptionDocument::from(subscription));
        return;
    }
    let then = match (&subscription.next_plan, subscription.renews) {
        (Some(plan), _) => format!("plan {plan}"),
        (None, true) => "renews".to_owned(),
        (None, false) => "ends".to_owned(),
    };
    for (name, value) in [
        ("id", subscription.id.clone()),
        ("account", subscription.account_id.clone()),
        ("plan", subscription.plan.clone()),
        ("paid by", subscription.paid_by.name().to_owned()),
        ("month", format!("{} USD", subscription.period_price)),
        ("until", rfc3339(subscription.period_ends_ms)),
        ("then", then),
        ("ends at", subscription.ends_at_ms.map(rfc3339).unwrap_or_default()),
        ("ended", subscription.ended_at_ms.map(rfc3339).unwrap_or_default()),
    ] {
        if !value.is_empty() {
            output::line(&format!("{name:<8} {value}"));
        }
    }
}

async fn show(store: &Store, id: &str, json: bool) -> Result<(), Failure> {
    store.account(id).await?;
    let subscription = store.subscription(id).await?.ok_or_else(|| StoreError::NotSubscribed(id.to_owned()))?;
    print(&subscription, json);
    if json {
        return Ok(());
    }
    output::line("");
    periods(store, id, false).await
}

async fn periods(store: &Store, id: &str, json: bool) -> Result<(), Failure> {
    let periods = store.periods_of(id, PAGE).await?;
    if json {
        output::json(&periods.iter().map(PeriodDocument::from).collect::<Vec<_>>());
        return Ok(());
    }
    let rows: Vec<_> = periods
        .iter()
        .map(|period| {
            [rfc3339(period.starts_ms), rfc3339(period.ends_ms), period.plan.clone(), period.price.to_string()]
        })
        .collect();
    let columns = [Column::Left("FROM"), Column::Left("TO"), Column::Left("PLAN"), Column::Right("USD")];
    Table::new(columns).rows(&rows);
    Ok(())
}

async fn list(store: &Store, json: bool) -> Result<(), Failure> {
    let mut subscriptions: Vec<store::Subscription> = Vec::new();
    loop {
        let after = subscriptions.last().map(|last| last.id.clone());
        let page = store.subscriptions_after(after.as_deref(), PAGE).await?;
        if page.is_empty() {
            break;
        }
        subscriptions.extend(page);
    }
    if json {
        output::json(&subscriptions.iter().map(SubscriptionDocument::from).collect::<Vec<_>>());
        return Ok(());
    }
    let rows: Vec<_> = subscriptions
        .iter()
        .map(|one| {
            let then =
                if one.renews { one.next_plan.clone().unwrap_or_else(|| one.plan.clone()) } else { String::new() };
            let (paid_by, until) = (one.paid_by.name().to_owned(), rfc3339(one.period_ends_ms));
            [one.account_id.clone(), one.plan.clone(), paid_by, one.period_price.to_string(), until, then]
        })
        .collect();
    let columns = [
        Column::Left("ACCOUNT"),
        Column::Left("PLAN"),
        Column::Left("PAID BY"),
        Column::Right("USD"),
        Column::Left("UNTIL"),
        Column::Left("THEN"),
    ];
    Table::new(columns).rows(&rows);
    Ok(())
}
