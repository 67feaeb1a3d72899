//! `[[model]]`: what is sold, for how much, and where it can be had.

use super::draft::Row;
use super::mistake::Place;
use super::price;
use super::reader::{Table, Value};
use super::rules::{self, NamedRules};
use crate::relay::meter::{ImageTokens, Price};

/// The longest id, in bytes.
const ID_BYTES_MAX: usize = 256;

/// What `/v1/models` says of a model whose maker is not named.
const OWNED_BY: &str = "system";

/// A model as written; the providers that its targets name are looked for when all files have been read.
pub(super) struct ModelRow {
    pub(super) context_window: u64,
    pub(super) output_tokens_max: u64,
    /// What images count as, where the provider's usual number is not the model's.
    pub(super) image_tokens: Option<ImageTokens>,
    pub(super) owned_by: Box<str>,
    pub(super) price: Price,
    pub(super) retry_timeouts: bool,
    /// What is true of it wherever it is had.
    pub(super) rules: NamedRules,
    pub(super) targets: Vec<TargetRow>,
}

/// A target as written.
pub(super) struct TargetRow {
    pub(super) place: Place,
    pub(super) provider: Box<str>,
    pub(super) model: Box<str>,
    pub(super) weight: u32,
    pub(super) tier: u32,
    /// What the provider charges.
    pub(super) cost: Option<Price>,
    pub(super) rules: NamedRules,
}

pub(super) fn read(value: &Value<'_>) -> Option<Row<ModelRow>> {
    let table = value.table()?;
    let id = table.required("id", "write the id that clients ask for").and_then(|value| id(&value));
    let content = content(&table);
    table.finish();
    Some(Row { name: id?, place: value.place().clone(), content })
}

fn content(table: &Table<'_>) -> Option<ModelRow> {
    let tokens = |value: Value<'_>| value.number(1..=u64::from(u32::MAX));
    let context = table.required("context_window", "write how many tokens prompt and answer may have together");
    let context = context.and_then(tokens);
    let output = table.required("output_tokens_max", "write how many tokens an answer may have");
    let output = output.and_then(|value| {
        let shown = value.name().to_owned();
        let place = value.place().clone();
        let output = tokens(value)?;
        if context.is_some_and(|context| output > context) {
            let what = format!("{shown}: is more than context_window, which holds prompt and answer; lower it");
            table.source.reading.mistakes.report(&place, what);
        }
        Some(output)
    });
    let image_tokens = table.optional("image_tokens").map_or(Some(None), |value| image_tokens(&value).map(Some));
    let owned_by = table.optional("owned_by").map_or(Some(OWNED_BY), |value| value.string());
    let price = table.required("price", r#"write price = { input = "…", output = "…" }, in USD per million tokens"#);
    let price = price.and_then(|value| price::read(&value));
    let retry_timeouts = table.optional("retry_timeouts").map_or(Some(true), |value| value.boolean());
    let rules = rules::read(table);
    let targets = table.required("targets", r#"write targets = [{ provider = "…", model = "…" }]"#);
    let targets = targets.and_then(|value| targets_of(&value));
    Some(ModelRow {
        context_window: context?,
        output_tokens_max: output?,
        image_tokens: image_tokens?,
        owned_by: owned_by?.into(),
        price: price?,
        retry_timeouts: retry_timeouts?,
        rules: rules?,
        targets: targets?,
    })
}

fn image_tokens(value: &Value<'_>) -> Option<ImageTokens> {
    let table = value.table()?;
    let tokens = |value: Value<'_>| value.number(1..=u64::from(u32::MAX));
    let full = table.required("high", "write how many tokens an image counts as at the most").and_then(tokens);
    let low = table.optional("low").map_or(full, tokens);
    table.finish();
    Some(ImageTokens { full: full?, low: low? })
}

fn targets_of(value: &Value<'_>) -> Option<Vec<TargetRow>> {
    let items = value.items()?;
    if items.is_empty() {
        return value.refuse(r#"nobody would deliver the model; write [{ provider = "…", model = "…" }]"#);
    }
    let mut targets: Vec<TargetRow> = Vec::with_capacity(items.len());
    for target in items.iter().filter_map(target) {
        let same = |other: &&TargetRow| other.provider == target.provider && other.model == target.model;
        if let Some(first) = targets.iter().find(same) {
            let what = format!(
                "{}: provider {:?} and its {:?} are a target on line {} already; raise that one's weight instead",
                value.name(),
                target.provider,
                target.model,
                first.place.line
            );
            value.source.reading.mistakes.report(&target.place, what);
        }
        targets.push(target);
    }
    (targets.len() == items.len()).then_some(targets)
}

fn target(item: &Value<'_>) -> Option<TargetRow> {
    let table = item.table()?;
    let provider = table.required("provider", "write the name of a [[provider]]").and_then(|value| value.string());
    let model = table.required("model", "write the provider's own name of the model").and_then(|value| value.string());
    let rules = rules::read(&table);
    let weight = table.optional("weight").map_or(Some(1), |value| value.count());
    let tier = table
        .optional("tier")
        .map_or(Some(0), |value| value.number(0..=u64::from(u32::MAX)).and_then(|tier| u32::try_from(tier).ok()));
    let cost = table.optional("cost").map_or(Some(None), |value| price::read(&value).map(Some));
    table.finish();
    Some(TargetRow {
        place: item.place().clone(),
        provider: provider?.into(),
        model: model?.into(),
        weight: weight?,
        tier: tier?,
        cost: cost?,
        rules: rules?,
    })
}

/// An id: visible ASCII without commas, which separate ids on the command line.
fn id(value: &Value<'_>) -> Option<Box<str>> {
    let id = value.string()?;
    if id.len() > ID_BYTES_MAX || !id.bytes().all(|byte| byte.is_ascii_graphic() && byte != b',') {
        return value.refuse(format_args!(
            "must be at most {ID_BYTES_MAX} visible ASCII characters without comma; choose another id"
        ));
    }
    Some(id.into())
}
