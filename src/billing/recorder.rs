//! The request's end of billing: a place in the queue, taken at admission and filled at the request's end.

use std::sync::Arc;

use tokio::sync::mpsc::{OwnedPermit, Sender};

use super::state::BillingState;
use crate::relay::admit::{Purse, Spending};
use crate::relay::meter::{Encoding, NanoUsd, Price, PromptSample, SampledText, Usage, UsageRecord};

/// How many requests may hold a place at a time, running or waiting to be spooled. Three times the default of
/// `requests_in_flight_max`; a place takes memory only while a finished request is in it.
pub const RECORDS_MAX: usize = 65_536;

/// Gives out places in the queue. Clones share it.
#[derive(Debug, Clone)]
pub struct Recorder {
    queue: Sender<Finished>,
    state: Arc<BillingState>,
}

impl Recorder {
    pub(super) fn new(queue: Sender<Finished>, state: Arc<BillingState>) -> Self {
        Self { queue, state }
    }

    /// A place for one request; `None` where it could not be billed now, because the queue or the spool is full, the spool
    /// fails, or the worker is going down. Then the request is not to be served.
    pub fn reserve(&self) -> Option<RecordSlot> {
        if !self.state.can_record() {
            return None;
        }
        self.queue.clone().try_reserve_owned().ok().map(|place| RecordSlot { place })
    }

    /// How billing is doing.
    pub fn state(&self) -> &Arc<BillingState> {
        &self.state
    }
}

/// Proof that a request can be billed. Dropped unused, it bills nothing.
#[derive(Debug)]
pub struct RecordSlot {
    place: OwnedPermit<Finished>,
}

impl RecordSlot {
    /// Hands a finished request over. A cost that is known is charged before this returns, so that the account's next request
    /// meets what is left. Neither fails nor waits: it is called from `Drop`.
    pub fn record(self, finished: Finished) {
        if finished.unreported.is_none() {
            finished.charge();
        }
        self.place.send(finished);
    }
}

/// A request that has ended, on its way to be billed.
#[derive(Debug)]
pub struct Finished {
    /// What is known of it. With `unreported`, usage and cost are filled in later.
    pub record: UsageRecord,
    /// What to count, where the provider did not report what was used.
    pub unreported: Option<Unreported>,
    /// Who pays.
    pub account: Arc<Purse>,
    /// Whose budget it is.
    pub spending: Arc<Spending>,
}

impl Finished {
    pub(super) fn charge(&self) {
        self.account.charge(self.record.cost);
        self.spending.charge(self.record.cost);
    }
}

/// Usage that nobody reported: what passed, to be counted and priced.
#[derive(Debug)]
pub struct Unreported {
    /// The prompt; `None` where the record has its tokens, because only the answer's were not reported.
    pub prompt: Option<PromptSample>,
    /// The answer as far as it passed.
    pub output: SampledText,
    /// The vocabulary to count with.
    pub encoding: Encoding,
    /// What the model costs.
    pub price: Price,
}

impl Unreported {
    /// The usage, filled up with what was not reported, and its cost. Takes milliseconds.
    pub(super) fn count(&self, mut usage: Usage) -> (Usage, NanoUsd) {
        if let Some(prompt) = &self.prompt {
            usage.input = self.encoding.count_prompt(prompt);
        }
        usage.output = self.encoding.count_sample(&self.output);
        (usage, self.price.cost(&usage))
    }
}
