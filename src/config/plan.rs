//! `[[plan]]`: what an account's keys may do where they have no limits of their own.

use super::draft::Row;
use super::mistake::Place;
use super::price;
use super::reader::{Table, Value};
use crate::relay::meter::NanoUsd;
use crate::relay::route::Plan;

/// A plan as written; the models that it names are looked for when all files have been read.
pub(super) struct PlanRow {
    pub(super) requests_per_minute: u32,
    pub(super) tokens_per_minute: Option<u64>,
    pub(super) concurrent_requests: Option<u32>,
    pub(super) models: Option<Vec<(Box<str>, Place)>>,
    pub(super) price: Option<NanoUsd>,
    pub(super) stripe_price: Option<Box<str>>,
    /// Where it is marked as the default.
    pub(super) default: Option<Place>,
}

impl PlanRow {
    pub(super) fn into_plan(self, name: Box<str>) -> Plan {
        Plan {
            name,
            requests_per_minute: self.requests_per_minute,
            tokens_per_minute: self.tokens_per_minute,
            concurrent_requests: self.concurrent_requests,
            models: self.models.map(|models| models.into_iter().map(|(id, _)| id).collect()),
            price: self.price,
            stripe_price: self.stripe_price,
            is_default: self.default.is_some(),
        }
    }
}

pub(super) fn read(value: &Value<'_>) -> Option<Row<PlanRow>> {
    let table = value.table()?;
    let name = table.required("name", "name the plan").and_then(|value| name(&value));
    let content = content(&table);
    table.finish();
    Some(Row { name: name?, place: value.place().clone(), content })
}

fn content(table: &Table<'_>) -> Option<PlanRow> {
    let requests = table.required("requests_per_minute", "write how many requests a key may make in any 60 seconds");
    let requests = requests.and_then(|value| value.count());
    // The outer `Option` is whether the entry is good, the inner whether it is there.
    let tokens = table
        .optional("tokens_per_minute")
        .map_or(Some(None), |value| Some(Some(value.number(1..=u64::from(u32::MAX))?)));
    let concurrent = table.optional("concurrent_requests").map_or(Some(None), |value| Some(Some(value.count()?)));
    let models = table.optional("models").map_or(Some(None), |value| Some(Some(models(&value)?)));
    let price = table.optional("price_usd").map_or(Some(None), |value| Some(Some(price::monthly(&value)?)));
    let stripe = table.optional("stripe_price").map_or(Some(None), |value| Some(Some(stripe_price(&value)?)));
    let default = table.optional("default").map_or(Some(None), |value| is_default(&value));
    Some(PlanRow {
        requests_per_minute: requests?,
        tokens_per_minute: tokens?,
        concurrent_requests: concurrent?,
        models: models?,
        price: price?,
        stripe_price: stripe?,
        default: default?,
    })
}

/// An id of Stripe's travels in forms and is compared with what it sends.
fn stripe_price(value: &Value<'_>) -> Option<Box<str>> {
    let id = value.string()?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    if !id.starts_with("price_") || id.len() > 255 || !id.bytes().all(plain) {
        return value
            .refuse("is no price of Stripe's; write the id that its dashboard shows, which begins with price_");
    }
    Some(id.into())
}

fn is_default(value: &Value<'_>) -> Option<Option<Place>> {
    Some(value.boolean()?.then(|| value.place().clone()))
}

fn models(value: &Value<'_>) -> Option<Vec<(Box<str>, Place)>> {
    let items = value.items()?;
    if items.is_empty() {
        return value.refuse("no model could be used; list ids, or remove the line to allow all");
    }
    items.iter().map(|item| Some((item.string()?.into(), item.place().clone()))).collect()
}

/// A name of a plan or provider: short, and nothing in it that a command line, a metric's label or a log would quote.
pub(super) fn name(value: &Value<'_>) -> Option<Box<str>> {
    let name = value.string()?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if name.len() > 64 || !name.bytes().all(plain) {
        return value.refuse("must be at most 64 letters, digits, \"-\", \"_\" and \".\"; choose another name");
    }
    Some(name.into())
}
