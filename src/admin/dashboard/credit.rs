//! A customer's money: the balance, and what was given and taken back.

use askama::Template;

use super::answer::{Answer, page};
use super::form::Asked;
use super::guard::Customer;
use super::layout::Frame;
use super::map::Map;
use super::overview::limits_of;
use super::shown::{Moment, usd};

const ROWS: u32 = 50;

pub(super) fn map(map: Map) -> Map {
    map.page("/credit", show)
}

#[derive(Template)]
#[template(path = "credit.html")]
struct CreditPage {
    frame: Frame,
    balance: String,
    plan: String,
    limits: String,
    credits: Vec<Row>,
    next: String,
}

struct Row {
    at: Moment,
    kind: &'static str,
    amount: String,
    note: String,
}

async fn show(customer: Customer, Asked(asked): Asked) -> Answer {
    let (who, account) = (&customer.who, &customer.account);
    // A place in the ledger tells nothing of others: what is listed is this account's whatever it is.
    let before = asked.text("before").parse().unwrap_or(i64::MAX);
    let mut credits = who.store.credits_before(&account.id, before, ROWS + 1).await?;
    let has_more = credits.len() > ROWS as usize;
    credits.truncate(ROWS as usize);
    let next = credits.last().filter(|_| has_more).map(|credit| credit.seq.to_string()).unwrap_or_default();
    let rows = credits.into_iter().map(|credit| Row {
        at: Moment::of(credit.created_at_ms),
        kind: credit.kind.name(),
        amount: usd(credit.amount),
        note: credit.note.unwrap_or_default(),
    });
    let snapshot = who.dashboard.snapshot();
    page(&CreditPage {
        frame: Frame::of(who, "Credit", "/credit"),
        balance: usd(account.balance),
        plan: account.plan.clone(),
        limits: snapshot.catalogue.plan(&account.plan).map(|plan| limits_of(plan)).unwrap_or_default(),
        credits: rows.collect(),
        next,
    })
}
