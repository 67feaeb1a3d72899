//! `tollgate voucher`: credit for whoever has a code. Codes are shown once, when they are made.

use std::process::ExitCode;

use clap::{Args, Subcommand, value_parser};

use super::output::{self, Column, Table};
use super::store::{now_ms, with_store};
use super::value::{self, rfc3339};
use super::{Common, Failure, Outcome};
use crate::admin::sale::{self, VOUCHERS_MAX};
use crate::admin::{CreatedVouchersDocument, CreditDocument, VoucherBatchDocument};
use crate::relay::auth::VoucherCode;
use crate::relay::meter::NanoUsd;
use crate::store::{NewVouchers, Store, VoucherBatch};

/// How many batches are read at a time.
const PAGE: u32 = 1_000;

#[derive(Debug, Args)]
pub(super) struct Voucher {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// A new batch; its codes are printed once
    Create {
        /// What each is worth, decimal USD
        #[arg(value_parser = value::voucher_amount)]
        amount: NanoUsd,
        /// How many
        #[arg(long, default_value_t = 1, value_parser = value_parser!(u32).range(1..=i64::from(VOUCHERS_MAX)))]
        count: u32,
        /// When they cease to be good
        #[arg(long, value_name = "RFC3339", value_parser = value::moment)]
        expires: Option<i64>,
        /// What to remember about them
        #[arg(long, value_parser = value::name)]
        note: Option<String>,
    },
    /// All batches, newest first
    List,
    /// Take back what was not redeemed of a batch
    Revoke {
        /// The batch's id, as `voucher list` shows it
        id: String,
    },
    /// Give an account the credit of a voucher
    Redeem {
        /// Whose credit it is to be
        #[arg(long, value_name = "ID")]
        account: String,
        /// The code; small letters, spaces and hyphens do not matter
        code: String,
    },
}

impl Voucher {
    pub(super) fn run(&self, common: &Common) -> Outcome {
        with_store(common, async |_, store| {
            self.action.run(store, common.json).await?;
            Ok(ExitCode::SUCCESS)
        })
    }
}

impl Action {
    async fn run(&self, store: &Store, json: bool) -> Result<(), Failure> {
        match self {
            Action::Create { amount, count, expires, note } => {
                let new = NewVouchers { amount: *amount, note: note.clone(), expires_at_ms: *expires };
                create(store, &new, *count, json).await
            }
            Action::List => list(store, json).await,
            Action::Revoke { id } => {
                let batch = store.revoke_vouchers(id, now_ms()).await?;
                if json {
                    output::json(&VoucherBatchDocument::new(&batch, now_ms()));
                } else {
                    let left = batch.vouchers.saturating_sub(batch.redeemed);
                    output::line(&format!("{} is taken back: {left} were not redeemed", batch.id));
                }
                Ok(())
            }
            Action::Redeem { account, code } => redeem(store, account, code, json).await,
        }
    }
}

async fn create(store: &Store, new: &NewVouchers, count: u32, json: bool) -> Result<(), Failure> {
    let (batch, codes) = sale::create_vouchers(store, new, count, now_ms()).await?;
    if json {
        output::json(&CreatedVouchersDocument::new(&batch, &codes, now_ms()));
        return Ok(());
    }
    output::line(&format!("{}: {} of {} USD", batch.id, batch.vouchers, batch.amount));
    for code in &codes {
        output::line(&code.expose());
    }
    output::line("Keep them: only their digests are stored, they are not shown again.");
    Ok(())
}

async fn redeem(store: &Store, account: &str, code: &str, json: bool) -> Result<(), Failure> {
    let digest = VoucherCode::parse(code).map(|code| code.digest());
    let credited = store.redeem_voucher(account, digest.as_ref(), now_ms()).await?;
    if json {
        output::json(&CreditDocument::new(account, credited.credit));
        return Ok(());
    }
    let (amount, balance) = (credited.credit.amount, credited.account.balance);
    output::line(&format!("{amount} USD were credited; the balance is {balance} USD"));
    Ok(())
}

async fn list(store: &Store, json: bool) -> Result<(), Failure> {
    let mut batches: Vec<VoucherBatch> = Vec::new();
    loop {
        let before = batches.last().map(|last| last.id.clone());
        let page = store.voucher_batches(before.as_deref(), PAGE).await?;
        if page.is_empty() {
            break;
        }
        batches.extend(page);
    }
    let now_ms = now_ms();
    if json {
        output::json(&batches.iter().map(|batch| VoucherBatchDocument::new(batch, now_ms)).collect::<Vec<_>>());
        return Ok(());
    }
    let rows: Vec<_> = batches
        .iter()
        .map(|batch| {
            [
                batch.id.clone(),
                batch.status_at(now_ms).to_owned(),
                batch.amount.to_string(),
                format!("{}/{}", batch.redeemed, batch.vouchers),
                batch.expires_at_ms.map(rfc3339).unwrap_or_default(),
                batch.note.clone().unwrap_or_default(),
            ]
        })
        .collect();
    let columns = [
        Column::Left("ID"),
        Column::Left("STATUS"),
        Column::Right("USD"),
        Column::Right("REDEEMED"),
        Column::Left("EXPIRES"),
        Column::Left("NOTE"),
    ];
    Table::new(columns).rows(&rows);
    Ok(())
}
