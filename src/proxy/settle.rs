//! The end of every request: its reservation corrected, its record handed to billing, its line to the log.

use std::sync::Arc;

use super::exchange::{Admitted, Answering, Arrival, Caller, Checkpoint, Dispatch, Exchange, Step};
use super::time_text;
use crate::billing::{Progress, Receipt, Unreported};
use crate::relay::dialect::{self, Outcome};
use crate::relay::meter::{Encoding, Price, Usage, UsageRecord};
use crate::relay::refusal::Refusal;
use crate::relay::route::Model;
use crate::telemetry::AccessLine;

/// The status of a client that left before it was answered, as nginx writes it.
const CLIENT_LEFT: u16 = 499;

/// Settles whatever step the request ended in. Called once, from its drop.
pub(super) fn settle(exchange: &mut Exchange) {
    match std::mem::replace(&mut exchange.step, Step::Settled) {
        Step::Settled => {}
        // Pingora gave it up before its first phase.
        Step::Accepted => {}
        Step::Authenticated(caller) => log_answered(exchange, Some(&caller), None, None),
        Step::Answered { caller, model, refusal } => {
            log_answered(exchange, caller.as_ref(), model.as_ref(), refusal.as_ref());
        }
        Step::Dispatched(dispatch) => settle_failed(exchange, *dispatch),
        Step::Answering(answering) => settle_answered(exchange, *answering),
    }
}

/// What the relay answered by itself is counted and logged, and costs nothing.
fn log_answered(exchange: &Exchange, caller: Option<&Caller>, model: Option<&Arc<Model>>, refusal: Option<&Refusal>) {
    let status = status_of(exchange);
    let model = model.map(|model| &*model.id);
    let (key_id, account_id) =
        (caller.map(|caller| &*caller.record.key_id), caller.map(|caller| &*caller.record.account_id));
    exchange.trace.answers(account_id, key_id, model);
    count(exchange, model.unwrap_or_default(), "", status, None);
    exchange.shared.access_log.write(&AccessLine {
        time: time_text(exchange.arrival.unix_ms),
        request_id: exchange.arrival.request_id,
        key_id,
        account_id,
        model,
        provider: None,
        status,
        code: refusal.map(|refusal| refusal.cause.code()),
        input_tokens: 0,
        cache_read_tokens: 0,
        cache_write_tokens: 0,
        output_tokens: 0,
        cost_nano_usd: 0,
        estimated: false,
        interrupted: false,
        first_token_ms: None,
        total_ms: milliseconds(exchange.elapsed_us()),
    });
}

/// No upstream answered: a record that costs nothing.
fn settle_failed(exchange: &Exchange, mut dispatch: Dispatch) {
    let asked = dispatch.target().or(dispatch.admitted.model.targets.first());
    let provider = asked.map(|target| target.provider.name.clone()).unwrap_or_default();
    let cost = asked.and_then(|target| target.cost.clone());
    let used = Used { provider, cost, interrupted: exchange.status == 0, ..Used::default() };
    // Nobody waits for it: there is no answer whose end it could hold back.
    drop(record(exchange, &mut dispatch.admitted, used));
}

/// The answer is whole as far as the client can tell, or as whole as it gets: its record is handed over now. What the client
/// has still to get waits for the receipt; `None` where the record was handed over before.
pub(super) fn settle_answer(exchange: &mut Exchange) -> Option<Receipt> {
    match std::mem::replace(&mut exchange.step, Step::Settled) {
        Step::Answering(mut answering) => {
            let receipt = bill(exchange, &mut answering);
            exchange.step = Step::Answering(answering);
            receipt
        }
        other => {
            exchange.step = other;
            None
        }
    }
}

/// The end of an answer, whatever came of it.
fn settle_answered(exchange: &Exchange, mut answering: Answering) {
    if answering.is_stream {
        exchange.shared.metrics.streams_active.dec();
    }
    if let Some(remarks) = &answering.remarks {
        // A translated answer names the model as its client did.
        let model = remarks.model().filter(|_| dialect::passes_unchanged(&answering.target));
        exchange.trace.answered(model, remarks.finish_reasons());
    }
    // The client has all that it gets.
    drop(bill(exchange, &mut answering));
}

/// An upstream answered, wholly or in part. What it reported counts; where it reported nothing, what passed.
fn bill(exchange: &Exchange, answering: &mut Answering) -> Option<Receipt> {
    answering.admitted.ticket.as_ref()?;
    let answer = &mut answering.answer;
    // A document that turned out to be an error was told as one: the client got nothing of it, and pays nothing.
    let told = exchange.status < 400;
    let reported = answer.usage().filter(|_| told);
    // Where the transport ended before its last piece was seen, the answer knows whether it was whole.
    let outcome = match answering.outcome {
        Some(outcome) => outcome,
        None if answer.is_whole() => Outcome::Complete,
        None => {
            let ended = answer.end();
            if let Some(claim) = answering.admitted.claim.as_mut().filter(|_| told) {
                claim.ended(ended.outcome, &ended.append);
            }
            ended.outcome
        }
    };
    // Some report the prompt first and the answer last: of an answer that broke off, its own tokens are counted.
    let output_is_missing = !answer.output_is_reported()
        || (outcome != Outcome::Complete && reported.is_some_and(|usage| usage.output == 0));
    let is_counted = told && answer.began() && (reported.is_none() || output_is_missing);
    let unreported = is_counted.then(|| Unreported {
        prompt: reported.is_none().then(|| std::mem::take(&mut answering.prompt)),
        output: answer.take_sample(),
        price: answering.admitted.model.price.clone(),
        provider_price: answering.target.cost.clone(),
        encoding: Encoding::for_model(&answering.target.model),
    });
    let used = Used {
        provider: answering.target.provider.name.clone(),
        cost: answering.target.cost.clone(),
        usage: reported.unwrap_or_default(),
        unreported,
        interrupted: outcome != Outcome::Complete || answering.tape.is_draining(),
        first_token_us: answering.first_token_us,
    };
    record(exchange, &mut answering.admitted, used)
}

/// How often billing is told of an answer that goes on, at most; should the process die, what passed since is not billed.
const CHECKPOINT_EVERY_US: u64 = 5_000_000;
const CHECKPOINT_TOKENS: u64 = 1_000;
/// Bytes of text that are taken for a token where there is no time to count.
const TOKEN_BYTES: u64 = 4;

/// Tells billing how far an answer has come, where it has come far enough since it was told last.
pub(super) fn checkpoint(arrival: &Arrival, answering: &mut Answering, now_us: u64) {
    let text_bytes = answering.answer.sample().total_bytes();
    let last = answering.checkpoint;
    let is_due = now_us.saturating_sub(last.at_us) >= CHECKPOINT_EVERY_US
        || text_bytes.saturating_sub(last.text_bytes) >= CHECKPOINT_TOKENS * TOKEN_BYTES;
    let Some(ticket) = answering.admitted.ticket.as_ref().filter(|_| is_due && answering.answer.began()) else {
        return;
    };
    answering.checkpoint = Checkpoint { at_us: now_us, text_bytes };
    let reported = answering.answer.usage();
    let mut usage = reported.unwrap_or_else(|| Usage { input: answering.prompt_tokens_guess, ..Usage::default() });
    if reported.is_none() || !answering.answer.output_is_reported() {
        usage.output = usage.output.max(text_bytes.div_ceil(TOKEN_BYTES));
    }
    let since_arrival = |us: u64| milliseconds(us.saturating_sub(arrival.at_us));
    ticket.checkpoint(Progress {
        provider: answering.target.provider.name.clone(),
        usage,
        cost: answering.admitted.model.price.cost(&usage),
        provider_cost: answering.target.cost.as_ref().map(|cost| cost.cost(&usage)),
        first_token_ms: answering.first_token_us.map(since_arrival),
        total_ms: since_arrival(now_us),
    });
}

/// What a request used, as far as it is known here.
#[derive(Default)]
struct Used {
    provider: Arc<str>,
    /// What the provider charges, where that is known.
    cost: Option<Price>,
    usage: Usage,
    /// What passed, where the provider has not said what it used.
    unreported: Option<Unreported>,
    interrupted: bool,
    first_token_us: Option<u64>,
}

/// Hands the request's record over; `None` where that was done before.
fn record(exchange: &Exchange, admitted: &mut Admitted, used: Used) -> Option<Receipt> {
    let Admitted { caller, model, permit, ticket, .. } = admitted;
    let ticket = ticket.take()?;
    let status = status_of(exchange);
    count(exchange, &model.id, &used.provider, status, used.first_token_us);
    // Where nothing was reported the reservation stands: it is the best that is known inside of the minute.
    if used.unreported.is_none() {
        permit.settle_tokens(used.usage.total(), exchange.arrival.clock.now_us());
    }
    let record = UsageRecord {
        request_id: exchange.arrival.request_id,
        account_id: caller.record.account_id.clone(),
        key_id: caller.record.key_id.clone(),
        model: model.id.clone(),
        provider: used.provider,
        status,
        usage: used.usage,
        cost: model.price.cost(&used.usage),
        provider_cost: used.cost.map(|cost| cost.cost(&used.usage)),
        estimated: used.unreported.is_some(),
        interrupted: used.interrupted,
        started_at_ms: exchange.arrival.unix_ms,
        first_token_ms: used.first_token_us.map(|us| milliseconds(us.saturating_sub(exchange.arrival.at_us))),
        total_ms: milliseconds(exchange.elapsed_us()),
    };
    exchange.trace.settles(&record);
    Some(ticket.finish(record, used.unreported))
}

fn status_of(exchange: &Exchange) -> u16 {
    if exchange.status == 0 { CLIENT_LEFT } else { exchange.status }
}

#[expect(clippy::float_arithmetic, reason = "series are floats")]
fn count(exchange: &Exchange, model: &str, provider: &str, status: u16, first_token_us: Option<u64>) {
    let metrics = &exchange.shared.metrics;
    metrics.requests.with_label_values(&[model, provider, &status.to_string()]).inc();
    if !provider.is_empty() {
        metrics.request_seconds.observe(exchange.elapsed_us() as f64 / 1e6);
    }
    if let Some(first) = first_token_us {
        metrics.first_token_seconds.observe(first.saturating_sub(exchange.arrival.at_us) as f64 / 1e6);
    }
}

fn milliseconds(us: u64) -> i64 {
    i64::try_from(us / 1000).unwrap_or(i64::MAX)
}

/// The access line of a request that billing has settled.
pub(super) fn line(record: &UsageRecord) -> AccessLine<'_> {
    AccessLine {
        time: time_text(record.started_at_ms),
        request_id: record.request_id,
        key_id: Some(&record.key_id),
        account_id: Some(&record.account_id),
        model: Some(&record.model),
        provider: Some(&record.provider),
        status: record.status,
        code: None,
        input_tokens: record.usage.input,
        cache_read_tokens: record.usage.cache_read,
        cache_write_tokens: record.usage.cache_write_5m.saturating_add(record.usage.cache_write_1h),
        output_tokens: record.usage.output,
        cost_nano_usd: record.cost.0,
        estimated: record.estimated,
        interrupted: record.interrupted,
        first_token_ms: record.first_token_ms,
        total_ms: record.total_ms,
    }
}
