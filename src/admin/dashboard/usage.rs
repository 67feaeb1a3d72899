//! What a customer used: a table with filters, a page at a time, and the same as CSV.

use askama::Template;

use super::answer::{Answer, Refused, page};
use super::form::{Asked, Fields};
use super::guard::Customer;
use super::layout::Frame;
use super::map::Map;
use super::shown::{Moment, count, requests, usd};
use super::usage_csv;
use crate::relay::meter::UsageRecord;
use crate::relay::refusal::Cause;
use crate::store::{Key, UsageFilter, UsagePosition, day_begins_ms};

const ROWS: u32 = 50;
/// How many keys can be chosen here, the latest. Those before are chosen on their own pages.
const KEYS_SHOWN_MAX: usize = 50;
const DAY_MS: i64 = 86_400_000;

pub(super) fn map(map: Map) -> Map {
    map.page("/usage", show).page("/usage.csv", csv)
}

#[derive(Template)]
#[template(path = "usage.html")]
struct UsagePage {
    frame: Frame,
    keys: Vec<Choice>,
    models: Vec<Choice>,
    from: String,
    to: String,
    requests: String,
    cost: String,
    rows: Vec<Row>,
    /// Queries, without the question mark; empty where there is no such page.
    csv: String,
    next: String,
    is_first: bool,
    rows_max: String,
}

/// What can be chosen in a filter.
struct Choice {
    value: String,
    label: String,
    is_chosen: bool,
}

/// A request.
struct Row {
    at: Moment,
    id: String,
    key: String,
    model: String,
    status: u16,
    is_refused: bool,
    input: String,
    cached: String,
    output: String,
    cost: String,
    seconds: String,
    remark: &'static str,
}

/// Which of a customer's requests are meant, as it was written in the query.
pub(super) struct Filter {
    pub(super) filter: UsageFilter,
    key: String,
    model: String,
    from: String,
    to: String,
}

impl Filter {
    /// Reads it. Whatever is asked for, only the customer's own requests are meant.
    async fn read(customer: &Customer, asked: &Fields) -> Result<Self, Refused> {
        let text = |name| asked.text(name).to_owned();
        let (key, model, from, to) = (text("key"), text("model"), text("from"), text("to"));
        if !key.is_empty() {
            customer.key(&key).await?;
        }
        let filter = UsageFilter {
            account_id: Some(customer.account.id.clone()),
            key_id: asked.given("key").map(str::to_owned),
            model: asked.given("model").map(str::to_owned),
            since_ms: day(&from)?,
            until_ms: day(&to)?.map(|begins| begins.saturating_add(DAY_MS)),
        };
        Ok(Self { filter, key, model, from, to })
    }

    /// The query that asks for the same, with one more field.
    fn query(&self, name: &str, value: &str) -> String {
        let fields =
            [("key", &*self.key), ("model", &self.model), ("from", &self.from), ("to", &self.to), (name, value)];
        let given: Vec<_> = fields.into_iter().filter(|(_, value)| !value.is_empty()).collect();
        serde_urlencoded::to_string(given).unwrap_or_default()
    }
}

/// When a day begins. Milliseconds since the Unix epoch; `None` where none is written.
fn day(text: &str) -> Result<Option<i64>, Refused> {
    const NO_DAY: Refused = Refused::Because(Cause::InvalidValue, "Write days as 2027-01-31.");
    match text {
        "" => Ok(None),
        text => day_begins_ms(text).map(Some).ok_or(NO_DAY),
    }
}

async fn show(customer: Customer, Asked(asked): Asked) -> Answer {
    let who = &customer.who;
    let filter = Filter::read(&customer, &asked).await?;
    let after = match asked.given("after") {
        Some(cursor) => Some(position(cursor)?),
        None => None,
    };
    let mut records = who.store.usage(&filter.filter, after.as_ref(), ROWS + 1).await?;
    let has_more = records.len() > ROWS as usize;
    records.truncate(ROWS as usize);
    let next = records.last().filter(|_| has_more).map(|last| filter.query("after", &cursor(last)));
    let sum = who.store.usage_sum(&filter.filter).await?;
    let keys = who.store.keys(Some(&customer.account.id)).await?;
    page(&UsagePage {
        frame: Frame::of(who, "Usage", "/usage"),
        keys: key_choices(&keys, &filter.key),
        models: model_choices(&customer, &filter.model),
        requests: requests(sum.requests),
        cost: usd(sum.cost),
        rows: records.iter().map(|record| row(record, &keys)).collect(),
        csv: filter.query("", ""),
        is_first: after.is_none(),
        next: next.unwrap_or_default(),
        rows_max: count(usage_csv::ROWS_MAX),
        from: filter.from,
        to: filter.to,
    })
}

async fn csv(customer: Customer, Asked(asked): Asked) -> Answer {
    let filter = Filter::read(&customer, &asked).await?;
    let keys = customer.who.store.keys(Some(&customer.account.id)).await?;
    Ok(usage_csv::download(customer.who.store.clone(), filter.filter, keys))
}

/// The latest keys, and the one that was chosen.
fn key_choices(keys: &[Key], chosen: &str) -> Vec<Choice> {
    let latest = keys.iter().rev().enumerate();
    let shown = latest.filter(|(place, key)| *place < KEYS_SHOWN_MAX || key.id == chosen);
    let choice = |key: &Key| Choice { value: key.id.clone(), label: key.name.clone(), is_chosen: key.id == chosen };
    shown.map(|(_, key)| choice(key)).collect()
}

/// The models that there are, and the one that was chosen, which may be there no more.
fn model_choices(customer: &Customer, chosen: &str) -> Vec<Choice> {
    let snapshot = customer.who.dashboard.snapshot();
    let mut ids: Vec<String> = snapshot.catalogue.models().iter().map(|model| model.id.to_string()).collect();
    if !chosen.is_empty() && !ids.iter().any(|id| id == chosen) {
        ids.push(chosen.to_owned());
    }
    let choice = |id: String| Choice { is_chosen: id == chosen, label: id.clone(), value: id };
    ids.into_iter().map(choice).collect()
}

fn row(record: &UsageRecord, keys: &[Key]) -> Row {
    let usage = &record.usage;
    let key = keys.iter().find(|key| *key.id == *record.key_id);
    Row {
        at: Moment::of(record.started_at_ms),
        id: record.request_id.to_string(),
        key: key.map_or_else(|| record.key_id.to_string(), |key| key.name.clone()),
        model: record.model.to_string(),
        status: record.status,
        is_refused: record.status >= 400,
        input: count(usage.prompt()),
        cached: count(usage.cache_read),
        output: count(usage.output),
        cost: usd(record.cost),
        seconds: format!("{}.{}", record.total_ms / 1_000, record.total_ms % 1_000 / 100),
        remark: match (record.interrupted, record.estimated) {
            (true, _) => "cut off",
            (false, true) => "estimated",
            (false, false) => "",
        },
    }
}

/// Where a page ended, as the next page's address says it. It tells nothing that the page did not.
fn cursor(record: &UsageRecord) -> String {
    format!("{}.{}", record.started_at_ms, record.request_id)
}

fn position(cursor: &str) -> Result<UsagePosition, Refused> {
    const UNKNOWN: Refused = Refused::Because(Cause::InvalidValue, "This page is not there. Begin with the first.");
    let (at_ms, id) = cursor.split_once('.').ok_or(UNKNOWN)?;
    match (at_ms.parse(), id.parse()) {
        (Ok(at_ms), Ok(id)) => Ok(UsagePosition::at(at_ms, id)),
        _ => Err(UNKNOWN),
    }
}
