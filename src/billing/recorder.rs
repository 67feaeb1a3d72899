//! The request's end of billing: a ticket, taken at admission and turned in at the request's end.

use std::sync::Arc;

use thiserror::Error;
use tokio::sync::mpsc::{OwnedPermit, Sender};
use tokio::sync::oneshot;
use uuid::Uuid;

use super::state::BillingState;
use crate::relay::admit::{Charge, Hold};
use crate::relay::meter::{Encoding, NanoUsd, Price, PromptSample, SampledText, Usage, UsageRecord};

/// How many requests may hold a ticket at a time, running or waiting to be spooled. Three times the default of
/// `requests_in_flight_max`; a ticket takes memory only while a finished request is in it.
pub const RECORDS_MAX: usize = 65_536;

/// Gives out tickets. Clones share the queue.
#[derive(Debug, Clone)]
pub struct Recorder {
    queue: Sender<Finished>,
    state: Arc<BillingState>,
}

impl Recorder {
    pub(super) fn new(queue: Sender<Finished>, state: Arc<BillingState>) -> Self {
        Self { queue, state }
    }

    /// A ticket for one request; `None` where it could not be billed now, because the queue or the spool is full, the spool
    /// fails, or the worker is going down. Then the request is not to be served.
    pub fn open(&self, opening: Opening) -> Option<Ticket> {
        if !self.state.can_record() {
            return None;
        }
        let place = self.queue.clone().try_reserve_owned().ok()?;
        Some(Ticket { place, hold: opening.hold })
    }

    /// Whether a ticket would be given now.
    pub fn is_open(&self) -> bool {
        self.state.can_record() && !self.queue.is_closed() && self.queue.capacity() > 0
    }

    /// How billing is doing.
    pub fn state(&self) -> &Arc<BillingState> {
        &self.state
    }
}

/// What is known of a request at its admission: what it is billed by, should the process die before its end.
#[derive(Debug)]
pub struct Opening {
    /// The request.
    pub request_id: Uuid,
    /// Who pays.
    pub account_id: Box<str>,
    /// With which key it was asked.
    pub key_id: Box<str>,
    /// The public id of the model.
    pub model: Box<str>,
    /// Milliseconds since the Unix epoch.
    pub started_at_ms: i64,
    /// What it may come to cost.
    pub hold: Hold,
}

/// Proof that a request can be billed, and what it holds until then. Dropped unused, it releases the hold and bills nothing.
#[derive(Debug)]
pub struct Ticket {
    place: OwnedPermit<Finished>,
    hold: Hold,
}

impl Ticket {
    /// What the request holds.
    pub fn hold(&self) -> &Hold {
        &self.hold
    }

    /// Says what has passed so far, which is billed should the process die now. Never waits.
    pub fn checkpoint(&self, _progress: Progress) {}

    /// Hands the finished request over. A cost that is known takes the hold's place before this returns, so that the account's
    /// next request meets what is left. Neither fails nor waits: it is called from `Drop`. The client is not to see the answer's
    /// end before the receipt says that it is kept.
    pub fn finish(self, record: UsageRecord, unreported: Option<Unreported>) -> Receipt {
        let payment = match unreported {
            None => Payment::Charged(self.hold.settle(record.cost)),
            Some(passed) => Payment::Held(self.hold, Box::new(passed)),
        };
        let (sender, receipt) = oneshot::channel();
        self.place.send(Finished { record, payment, receipt: sender });
        Receipt(receipt)
    }
}

/// What a running request has come to.
#[derive(Debug, Clone)]
pub struct Progress {
    /// Who answers.
    pub provider: Box<str>,
    /// What was used so far, as reported or estimated.
    pub usage: Usage,
    /// What that costs.
    pub cost: NanoUsd,
    /// From the request's arrival to the answer's first byte.
    pub first_token_ms: Option<i64>,
    /// From the request's arrival until now.
    pub total_ms: i64,
}

/// Tells when a finished request is kept.
#[derive(Debug)]
pub struct Receipt(oneshot::Receiver<()>);

impl Receipt {
    /// Returns when the record survives what the spool's durability says.
    ///
    /// # Errors
    /// The record could not be kept; the client is not to be told that all is well.
    pub async fn kept(self) -> Result<(), NotKept> {
        self.0.await.map_err(|_| NotKept)
    }
}

/// A finished request could not be made durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the request's record could not be kept")]
pub struct NotKept;

/// A request that has ended, on its way to be billed.
#[derive(Debug)]
pub(super) struct Finished {
    /// What is known of it. With a payment that is held, usage and cost are filled in later.
    pub(super) record: UsageRecord,
    pub(super) payment: Payment,
    /// Told when the record is durable.
    pub(super) receipt: oneshot::Sender<()>,
}

/// What stands for a request's cost.
#[derive(Debug)]
pub(super) enum Payment {
    /// The cost is not known before what passed has been counted.
    Held(Hold, Box<Unreported>),
    /// It is known.
    Charged(Charge),
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
