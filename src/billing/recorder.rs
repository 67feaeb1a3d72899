//! The request's end of billing: a ticket, taken at admission and turned in at the request's end.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use thiserror::Error;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::elsewhere::Elsewhere;
use super::inbox::Inbox;
use super::open_row::Facts;
use super::spool::SpoolError;
use super::state::{BillingState, Reserved};
use crate::relay::admit::{Charge, Hold};
use crate::relay::meter::{Encoding, NanoUsd, Price, PromptHead, SampledText, Usage, UsageRecord};

/// How many requests may hold a ticket at a time, running or waiting to be spooled. Three times the default of
/// `requests_in_flight_max`; a ticket takes a few hundred bytes of memory.
pub const RECORDS_MAX: usize = 65_536;

/// What a request is reckoned to write into the spool at most, names that could be long aside: its row while it runs, its record in a
/// batch of its own, and what is left free around them.
pub const TICKET_BYTES: u64 = 2_048;

/// The same with names of some length. Who has less room than this is as good as full: what fits may not be what comes.
pub(super) const LONG_TICKET_BYTES: u64 = 2 * TICKET_BYTES;

/// How often a name is reckoned to be written: in the row, in the record, and escaped.
const NAMES_WRITTEN: u64 = 4;

/// Gives out tickets. Clones share the spool.
#[derive(Debug, Clone)]
pub struct Recorder {
    inbox: Arc<Inbox>,
    uncounted: UnboundedSender<Uncounted>,
    elsewhere: Elsewhere,
    state: Arc<BillingState>,
}

impl Recorder {
    pub(super) fn new(
        inbox: Arc<Inbox>,
        uncounted: UnboundedSender<Uncounted>,
        elsewhere: Elsewhere,
        state: Arc<BillingState>,
    ) -> Self {
        Self { inbox, uncounted, elsewhere, state }
    }

    /// A ticket for one request; `None` where it could not be billed now, because too many are out, the spool has no room for what it
    /// may write, the spool fails, or the process is going down. Then the request is not to be served.
    pub fn open(&self, opening: Opening) -> Option<Ticket> {
        let Opening { request_id, account_id, key_id, model, started_at_ms, hold } = opening;
        let names = (account_id.len() + key_id.len() + model.len()) as u64;
        let reserved = self.state.reserve(TICKET_BYTES + NAMES_WRITTEN * names)?;
        let facts = Facts { account: account_id, key: key_id, model, started_at_ms, hold: hold.amount().0 };
        self.inbox.opened(request_id, Arc::new(facts));
        let place = Place { id: request_id, reserved: Some(reserved), recorder: self.clone() };
        Some(Ticket { place, hold })
    }

    /// Returns when what this process has admitted so far can be seen by others who read the spool.
    ///
    /// # Errors
    /// The spool cannot be written any more.
    pub async fn flushed(&self) -> Result<(), SpoolError> {
        self.inbox.flushed().await
    }

    /// Another process writes to the same spool from now on, which is found out by looking only later.
    pub fn joined(&self) {
        self.state.set_others(true);
    }

    /// Whether a ticket would be given now, whatever the names of the request.
    pub fn is_open(&self) -> bool {
        self.state.can_record(LONG_TICKET_BYTES)
    }

    /// How billing is doing.
    pub fn state(&self) -> &Arc<BillingState> {
        &self.state
    }

    /// What accounts owe and hold through others who write to the same spool.
    pub fn elsewhere(&self) -> &Elsewhere {
        &self.elsewhere
    }
}

/// What is known of a request at its admission: what it is billed by, should the process die before its end.
#[derive(Debug)]
pub struct Opening {
    /// The request.
    pub request_id: Uuid,
    /// Who pays.
    pub account_id: Arc<str>,
    /// With which key it was asked.
    pub key_id: Arc<str>,
    /// The public id of the model.
    pub model: Arc<str>,
    /// Milliseconds since the Unix epoch.
    pub started_at_ms: i64,
    /// What it may come to cost.
    pub hold: Hold,
}

/// Proof that a request can be billed, and what it holds until then. Dropped unused, it releases the hold and bills nothing.
#[derive(Debug)]
pub struct Ticket {
    place: Place,
    hold: Hold,
}

/// A request's place in the spool. Dropped, it is given up.
#[derive(Debug)]
struct Place {
    id: Uuid,
    /// `None` once it went on with the finished request.
    reserved: Option<Reserved>,
    recorder: Recorder,
}

impl Ticket {
    /// What the request holds.
    pub fn hold(&self) -> &Hold {
        &self.hold
    }

    /// Says what has passed so far, which is billed should the process die now. Never waits.
    pub fn checkpoint(&self, progress: Progress) {
        self.place.recorder.inbox.passed(self.place.id, progress);
    }

    /// Hands the finished request over. A cost that is known takes the hold's place before this returns, so that the account's
    /// next request meets what is left; where usage is still to be counted the hold stays until it is. Neither fails nor waits: it is
    /// called from `Drop`. The client is not to see the answer's end before the receipt says that it is kept.
    pub fn finish(self, record: UsageRecord, unreported: Option<Unreported>) -> Receipt {
        let Self { mut place, hold } = self;
        // There is none only after this.
        let Some(reserved) = place.reserved.take() else { return Receipt(None) };
        let (ticket, inbox) = (place.id, &place.recorder.inbox);
        let Some(passed) = unreported else {
            let charge = hold.settle(record.cost);
            return Receipt(inbox.finished(Finished { ticket, record, charge, reserved }));
        };
        let (kept, receipt) = oneshot::channel();
        let uncounted = Uncounted { ticket, record, hold, passed: Box::new(passed), kept, reserved };
        if let Err(refused) = place.recorder.uncounted.send(uncounted) {
            // Nobody counts any more: the process ends.
            refused.0.end(inbox);
        }
        Receipt(Some(receipt))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(reserved) = self.reserved.take() {
            self.recorder.inbox.released(self.id, reserved);
        }
    }
}

/// What a running request has come to.
#[derive(Debug, Clone)]
pub struct Progress {
    /// Who answers.
    pub provider: Arc<str>,
    /// What was used so far, as reported or estimated.
    pub usage: Usage,
    /// What that costs.
    pub cost: NanoUsd,
    /// What the provider charges for it, where that is known.
    pub provider_cost: Option<NanoUsd>,
    /// From the request's arrival to the answer's first byte.
    pub first_token_ms: Option<i64>,
    /// From the request's arrival until now.
    pub total_ms: i64,
}

/// Tells when a finished request is kept; without anything to wait for, where it is.
#[derive(Debug)]
pub struct Receipt(Option<oneshot::Receiver<()>>);

impl Receipt {
    /// Returns when the record survives what the spool's durability says.
    ///
    /// # Errors
    /// The record could not be kept; the client is not to be told that all is well.
    pub async fn kept(self) -> Result<(), NotKept> {
        match self.0 {
            None => Ok(()),
            Some(kept) => kept.await.map_err(|_| NotKept),
        }
    }
}

/// A finished request could not be made durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the request's record could not be kept")]
pub struct NotKept;

/// A request that has ended, on its way to be billed.
#[derive(Debug)]
pub(super) struct Finished {
    /// Under which id it was opened.
    pub(super) ticket: Uuid,
    pub(super) record: UsageRecord,
    pub(super) charge: Charge,
    pub(super) reserved: Reserved,
}

/// A request that has ended, and that costs what is to be counted first.
#[derive(Debug)]
pub(super) struct Uncounted {
    ticket: Uuid,
    /// What is known of it, what was reported of its usage included.
    record: UsageRecord,
    hold: Hold,
    passed: Box<Unreported>,
    /// Told when the record is durable.
    kept: oneshot::Sender<()>,
    reserved: Reserved,
}

impl Uncounted {
    /// Counts it, charges it, and leaves it to be kept; says what it cost. Takes milliseconds.
    pub(super) fn end(self, inbox: &Inbox) -> NanoUsd {
        let Self { ticket, mut record, hold, passed, kept, reserved } = self;
        record.estimated = true;
        // Whatever the text was: what was reported is billed, and its row goes.
        match std::panic::catch_unwind(AssertUnwindSafe(|| passed.count(record.usage))) {
            Ok(usage) => {
                record.usage = usage;
                record.cost = passed.price.cost(&usage);
                record.provider_cost = passed.provider_price.as_ref().map(|price| price.cost(&usage));
            }
            Err(_) => tracing::error!(request_id = %record.request_id, "usage could not be counted"),
        }
        let cost = record.cost;
        let charge = hold.settle(cost);
        inbox.counted(Finished { ticket, record, charge, reserved }, kept);
        cost
    }
}

/// Usage that nobody reported: what passed, to be counted and priced.
#[derive(Debug)]
pub struct Unreported {
    /// The prompt; `None` where the record has its tokens, because only the answer's were not reported.
    pub prompt: Option<PromptHead>,
    /// The answer as far as it passed.
    pub output: SampledText,
    /// The vocabulary to count with.
    pub encoding: Encoding,
    /// What the model costs.
    pub price: Price,
    /// What the provider charges, where that is known.
    pub provider_price: Option<Price>,
}

impl Unreported {
    /// The usage, filled up with what was not reported. Takes milliseconds.
    fn count(&self, mut usage: Usage) -> Usage {
        if let Some(prompt) = &self.prompt {
            usage.input = self.encoding.count_prompt(&prompt.sample());
        }
        usage.output = self.encoding.count_sample(&self.output);
        usage
    }
}
