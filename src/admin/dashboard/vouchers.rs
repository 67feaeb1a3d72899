//! The operator's vouchers: batches, and the codes of a new one, once.

use askama::Template;
use percent_encoding::{CONTROLS, utf8_percent_encode};

use super::answer::{Answer, Refused, page, page_as, see_other};
use super::form::{Asked, Fields, Form};
use super::guard::Operator;
use super::layout::Frame;
use super::map::Map;
use super::once::{self, Turn};
use super::plan::day;
use super::shown::usd;
use crate::admin::sale::{self, VOUCHERS_MAX, VoucherError};
use crate::admin::value;
use crate::relay::auth::VoucherCode;
use crate::relay::refusal::Cause;
use crate::store::{NewVouchers, VoucherBatch};

const PATH: &str = "/operator/vouchers";

/// How many batches a page has.
const ROWS: u32 = 50;

pub(super) fn map(map: Map) -> Map {
    map.page("/operator/vouchers", show)
        .action("/operator/vouchers", create)
        .action("/operator/vouchers/revoke", revoke)
}

#[derive(Template)]
#[template(path = "vouchers.html")]
struct VouchersPage {
    frame: Frame,
    done: &'static str,
    wrong: String,
    /// As they were typed.
    amount: String,
    count: String,
    expires: String,
    note: String,
    /// The form's own number, so that it makes one batch.
    once: String,
    batches: Vec<Row>,
    /// Where older ones are; empty where there are none.
    older: String,
}

struct Row {
    id: String,
    status: &'static str,
    amount: String,
    redeemed: String,
    expires: String,
    created: String,
    note: String,
    can_revoke: bool,
}

/// A batch that was just made.
#[derive(Template)]
#[template(path = "vouchers_made.html")]
struct MadePage {
    frame: Frame,
    id: String,
    amount: String,
    codes: Vec<String>,
    /// The same as a file: letters, digits, and what stands between them.
    csv: String,
}

async fn vouchers_page(
    operator: &Operator,
    (typed, before): (&Fields, Option<&str>),
    done: &'static str,
    wrong: String,
) -> Result<VouchersPage, Refused> {
    let Operator(who) = operator;
    if let Some(id) = before {
        who.store.voucher_batch(id).await?;
    }
    let mut batches = who.store.voucher_batches(before, ROWS + 1).await?;
    let has_more = batches.len() > ROWS as usize;
    batches.truncate(ROWS as usize);
    let text = |name: &str, usual: &str| typed.given(name).unwrap_or(usual).to_owned();
    Ok(VouchersPage {
        frame: Frame::of(who, "Vouchers", PATH),
        done,
        wrong,
        amount: text("amount", "10.00"),
        count: text("count", "1"),
        expires: text("expires", ""),
        note: text("note", ""),
        once: once::new()?,
        older: batches.last().filter(|_| has_more).map(|last| format!("{PATH}?before={}", last.id)).unwrap_or_default(),
        batches: batches.iter().map(|batch| row(batch, who.now_ms())).collect(),
    })
}

fn row(batch: &VoucherBatch, now_ms: i64) -> Row {
    let status = batch.status_at(now_ms);
    Row {
        id: batch.id.clone(),
        status,
        amount: usd(batch.amount),
        redeemed: format!("{} of {}", batch.redeemed, batch.vouchers),
        expires: batch.expires_at_ms.map(day).unwrap_or_default(),
        created: day(batch.created_at_ms),
        note: batch.note.clone().unwrap_or_default(),
        can_revoke: status == "active",
    }
}

async fn show(operator: Operator, Asked(asked): Asked) -> Answer {
    let done = if asked.text("done") == "revoked" { "What was not redeemed is taken back." } else { "" };
    let at = (&Fields::default(), asked.given("before"));
    page(&vouchers_page(&operator, at, done, String::new()).await?)
}

async fn create(operator: Operator, Form(form): Form) -> Answer {
    let Operator(who) = &operator;
    let (new, count) = match wanted(&form, who.now_ms()) {
        Ok(wanted) => wanted,
        Err(wrong) => {
            let again = vouchers_page(&operator, (&form, None), "", wrong).await?;
            return page_as(Cause::InvalidValue, &again);
        }
    };
    let working = match who.dashboard.sent().take(&who.user, &form) {
        Turn::First(working) => working,
        Turn::Again(_) => return Ok(see_other(PATH)),
    };
    let (batch, codes) = match sale::create_vouchers(&who.store, &new, count, who.now_ms()).await {
        Ok(made) => made,
        Err(VoucherError::Store(error)) => return Err(error.into()),
        Err(VoucherError::Entropy) => {
            return Err(Refused::Because(Cause::InternalError, "The system gives no random bytes."));
        }
    };
    working.done(PATH);
    page(&made_page(&operator, &batch, &codes))
}

fn made_page(Operator(who): &Operator, batch: &VoucherBatch, codes: &[VoucherCode]) -> MadePage {
    let codes: Vec<String> = codes.iter().map(VoucherCode::expose).collect();
    let head = "code,amount_usd,last_day".to_owned();
    let expires = batch.expires_at_ms.map(day).unwrap_or_default();
    let lines = codes.iter().map(|code| format!("{code},{},{expires}", batch.amount));
    let csv: Vec<String> = std::iter::once(head).chain(lines).collect();
    MadePage {
        frame: Frame::of(who, "New vouchers", PATH),
        id: batch.id.clone(),
        amount: usd(batch.amount),
        csv: utf8_percent_encode(&(csv.join("\r\n") + "\r\n"), CONTROLS).to_string(),
        codes,
    }
}

/// What the form asks for, or what is wrong with it.
fn wanted(form: &Fields, now_ms: i64) -> Result<(NewVouchers, u32), String> {
    let amount = value::voucher_amount(form.text("amount")).map_err(|wrong| format!("The amount {wrong}."))?;
    let count = form.text("count").parse().ok().filter(|count| (1..=VOUCHERS_MAX).contains(count));
    let count = count.ok_or_else(|| format!("Write how many there are to be, from 1 to {VOUCHERS_MAX}."))?;
    // The day that is named is the last.
    let expires = form.given("expires").map(|day| value::moment(&format!("{day}T23:59:59.999Z"))).transpose();
    let expires_at_ms = expires.map_err(|_| "Write the last day as 2027-01-31.".to_owned())?;
    if expires_at_ms.is_some_and(|at_ms| at_ms <= now_ms) {
        return Err("The last day must lie ahead.".to_owned());
    }
    let note = form.given("note").map(value::name).transpose().map_err(|wrong| format!("The note {wrong}."))?;
    Ok((NewVouchers { amount, note, expires_at_ms }, count))
}

async fn revoke(operator: Operator, Form(form): Form) -> Answer {
    let Operator(who) = &operator;
    who.store.revoke_vouchers(form.text("id"), who.now_ms()).await?;
    Ok(see_other("/operator/vouchers?done=revoked"))
}
