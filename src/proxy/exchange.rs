//! One request's state, a step at a time, and the one door through which it ends.
//!
//! Whatever ends a request (its last byte, a refusal, a client that leaves, an upstream that breaks, a shutdown that drops
//! its task) drops the [`Exchange`], and the drop settles it: the tokens that were reserved are corrected, the record goes
//! to billing, the line to the access log.

use std::sync::Arc;

use bytes::Bytes;
use http::Method;
use pingora::http::{RequestHeader, ResponseHeader};
use uuid::Uuid;

use super::clock::Clock;
use super::idempotency::Claim;
use super::opening::Opening;
use super::tape::Tape;
use super::{Shared, admission, settle};
use crate::billing::Ticket;
use crate::config::Snapshot;
use crate::relay::admit::{Permit, WindowView};
use crate::relay::auth::{KeyEntry, KeyRecord};
use crate::relay::dialect::gemini::SignatureScope;
use crate::relay::dialect::openai::{ChatRequest, Remarks};
use crate::relay::dialect::{Answer, AnswerError, Outcome, ProviderError};
use crate::relay::meter::PromptHead;
use crate::relay::refusal::{Cause, Refusal};
use crate::relay::route::{Course, Lease, Model, Stop, Target, Verdict};
use crate::shared::Slot;
use crate::telemetry::{Beginning, Trace};

/// One request, from its head to its settlement.
pub struct Exchange {
    pub(super) shared: Arc<Shared>,
    pub(super) arrival: Arrival,
    pub(super) step: Step,
    /// What the client was answered; 0 until then.
    pub(super) status: u16,
    pub(super) trace: Trace,
}

/// What is known the moment a request arrives.
pub(super) struct Arrival {
    /// Minted here; the answer's `x-request-id`, the ledger entry's id.
    pub(super) request_id: Uuid,
    pub(super) clock: Clock,
    pub(super) at_us: u64,
    pub(super) unix_ms: i64,
    /// The configuration that this request keeps to its end.
    pub(super) snapshot: Arc<Snapshot>,
}

/// How far a request has come.
pub(super) enum Step {
    /// Its head is read.
    Accepted,
    /// Its key is good; nothing is admitted yet.
    Authenticated(Caller),
    /// The relay answered by itself, with a refusal or with what it knows.
    Answered { caller: Option<Caller>, model: Option<Arc<Model>>, refusal: Option<Refusal> },
    /// Admitted: its place in every limit is taken, upstreams are being tried.
    Dispatched(Box<Dispatch>),
    /// An upstream's answer is passing.
    Answering(Box<Answering>),
    /// Nothing is left to do.
    Settled,
}

/// Whose request it is. There is none without a good key.
#[derive(Clone)]
pub(super) struct Caller {
    pub(super) entry: Arc<KeyEntry>,
    pub(super) record: Arc<KeyRecord>,
    /// The key's windows, as the answer's headers tell them.
    pub(super) window: WindowView,
}

/// What an admitted request holds until it is settled: its places in the limits and in the books.
pub(super) struct Admitted {
    pub(super) caller: Caller,
    pub(super) model: Arc<Model>,
    pub(super) permit: Permit,
    /// Its places at all nodes, where there are several.
    pub(super) slot: Option<Slot>,
    /// `None` once the request's record has been handed over.
    pub(super) ticket: Option<Ticket>,
    /// On its `Idempotency-Key`, where it has one.
    pub(super) claim: Option<Box<Claim>>,
}

impl Admitted {
    /// Replaces the tokens that were reserved by those used.
    pub(super) fn settle_tokens(&mut self, used: u64, now_us: u64) {
        self.permit.settle_tokens(used, now_us);
        if let Some(slot) = &mut self.slot {
            slot.settle(used);
        }
    }
}

/// An admitted request on its way to an upstream.
pub(super) struct Dispatch {
    pub(super) admitted: Admitted,
    pub(super) request: ChatRequest,
    pub(super) tape: Arc<Tape>,
    /// The configuration that the request keeps to its end.
    pub(super) snapshot: Arc<Snapshot>,
    /// What draws among targets are made from.
    pub(super) chance: u64,
    /// The way through the model's targets.
    pub(super) course: Course,
    /// Who is being asked, or was asked last.
    pub(super) stop: Option<Stop>,
    /// How many were asked.
    pub(super) asked: usize,
    /// How often a connection was taken.
    pub(super) tries: usize,
    /// Whether the current target has been asked over a new connection, for the old one may have been stale.
    pub(super) redialled: bool,
    /// Where the current target is asked.
    pub(super) path: Box<str>,
    /// Fields of the request that the current target has no place for.
    pub(super) dropped: Vec<Box<str>>,
    /// The account's part of what providers want to be reminded of.
    pub(super) signatures: SignatureScope,
    /// What the last try failed for, as the client will be told if no other succeeds.
    pub(super) failure: Option<ProviderError>,
    /// A provider's refusal that is being read: what it says decides whether another may be asked.
    pub(super) refused: Option<Refused>,
    /// A stream that is held back until its first event is there: it may be an error, which another may not have.
    pub(super) opening: Option<Opening>,
    /// The request's, to which each try is added.
    pub(super) trace: Trace,
}

/// A provider's answer that is no success, on its way in. Nothing of it has passed to the client.
pub(super) struct Refused {
    pub(super) status: u16,
    pub(super) retry_after_ms: Option<u64>,
    /// It has been counted, and nobody else is asked.
    pub(super) is_final: bool,
    body: Vec<u8>,
}

impl Refused {
    pub(super) fn new(status: u16, retry_after_ms: Option<u64>) -> Self {
        Self { status, retry_after_ms, is_final: false, body: Vec::new() }
    }

    /// Takes a piece of its body.
    pub(super) fn read(&mut self, piece: &[u8]) {
        let room = REFUSAL_BYTES_MAX.saturating_sub(self.body.len());
        self.body.extend_from_slice(&piece[..piece.len().min(room)]);
    }

    /// What has been read of its body.
    pub(super) fn body(&self) -> &[u8] {
        &self.body
    }
}

/// How much of a provider's refusal is read; the rest says nothing more.
const REFUSAL_BYTES_MAX: usize = 64 * 1024;

impl Dispatch {
    /// Who is being asked.
    pub(super) fn target(&self) -> Option<&Target> {
        self.admitted.model.targets.get(self.stop.as_ref()?.target)
    }
}

/// A request whose upstream has begun to answer. The request's body is gone: answers take long, and there are many.
pub(super) struct Answering {
    pub(super) admitted: Admitted,
    pub(super) tape: Arc<Tape>,
    /// Who answers.
    pub(super) target: Target,
    /// To be told how that ends.
    pub(super) lease: Lease,
    /// What the prompt's tokens are counted from, should nobody report them.
    pub(super) prompt: PromptHead,
    /// What they are until then.
    pub(super) prompt_tokens_guess: u64,
    pub(super) answer: Box<dyn Answer + Sync>,
    pub(super) is_stream: bool,
    /// The head, where it is told only with the whole answer.
    pub(super) late_head: Option<Box<ResponseHeader>>,
    /// How the answer ended, once it has.
    pub(super) outcome: Option<Outcome>,
    /// When the first piece with content passed.
    pub(super) first_token_us: Option<u64>,
    /// What billing was told last.
    pub(super) checkpoint: Checkpoint,
    /// What it says of itself, where its request is traced.
    pub(super) remarks: Option<Box<Remarks>>,
}

/// How far an answer had come when billing was told of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Checkpoint {
    pub(super) at_us: u64,
    /// Bytes of the answer's text.
    pub(super) text_bytes: u64,
}

impl Exchange {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let clock = shared.clock;
        let arrival = Arrival {
            request_id: Uuid::now_v7(),
            clock,
            at_us: clock.now_us(),
            unix_ms: clock.unix_ms(),
            snapshot: shared.live.load(),
        };
        shared.requests_in_flight.enter();
        Self { shared, arrival, step: Step::Accepted, status: 0, trace: Trace::default() }
    }

    /// The request's trace begins, where it is sampled.
    pub(super) fn begin_trace(&mut self, head: &RequestHeader) {
        let Arrival { request_id, clock, at_us, .. } = self.arrival;
        self.trace = self.shared.traces.begin(request_id, &head.headers, || Beginning {
            at_us,
            unix_nanos: clock.unix_nanos_at(at_us),
            method: known_method(&head.method),
            route: admission::route_name(head.uri.path()),
        });
    }

    /// The request has failed for this: it is counted.
    pub(super) fn fails(&self, cause: Cause) {
        self.shared.metrics.refused(cause);
        self.trace.fails(cause);
    }

    /// Who asks, once that is known.
    pub(super) fn caller(&self) -> Option<&Caller> {
        match &self.step {
            Step::Authenticated(caller) => Some(caller),
            Step::Answered { caller, .. } => caller.as_ref(),
            Step::Dispatched(dispatch) => Some(&dispatch.admitted.caller),
            Step::Answering(answering) => Some(&answering.admitted.caller),
            Step::Accepted | Step::Settled => None,
        }
    }

    /// The request while upstreams are being tried.
    pub(super) fn dispatch_mut(&mut self) -> Option<&mut Dispatch> {
        match &mut self.step {
            Step::Dispatched(dispatch) => Some(dispatch),
            _ => None,
        }
    }

    /// The tape, where the request was dispatched.
    pub(super) fn tape(&self) -> Option<&Arc<Tape>> {
        match &self.step {
            Step::Dispatched(dispatch) => Some(&dispatch.tape),
            Step::Answering(answering) => Some(&answering.tape),
            _ => None,
        }
    }

    /// The claim on the request's `Idempotency-Key`, to be settled where there is time to wait for it.
    pub(super) fn take_claim(&mut self) -> Option<Box<Claim>> {
        let (admitted, tape) = match &mut self.step {
            Step::Dispatched(dispatch) => (&mut dispatch.admitted, &dispatch.tape),
            Step::Answering(answering) => (&mut answering.admitted, &answering.tape),
            _ => return None,
        };
        admitted.claim.take().or_else(|| tape.take_claim())
    }

    /// Commits to the upstream that is being asked: from here its answer passes.
    pub(super) fn commit(
        &mut self,
        answer: Box<dyn Answer + Sync>,
        is_stream: bool,
        late_head: Option<Box<ResponseHeader>>,
    ) {
        let (dispatch, target) = match std::mem::replace(&mut self.step, Step::Settled) {
            Step::Dispatched(dispatch) => match dispatch.target().cloned() {
                Some(target) => (*dispatch, target),
                None => {
                    self.step = Step::Dispatched(dispatch);
                    return;
                }
            },
            other => {
                self.step = other;
                return;
            }
        };
        let Dispatch { admitted, request, tape, stop, .. } = dispatch;
        let Some(Stop { mut lease, .. }) = stop else { return };
        let now_us = self.arrival.clock.now_us();
        lease.began(now_us);
        tape.load(Bytes::new());
        if is_stream {
            self.shared.metrics.streams_active.inc();
        }
        self.step = Step::Answering(Box::new(Answering {
            admitted,
            tape,
            target,
            lease,
            prompt: request.prompt_head(),
            prompt_tokens_guess: request.input_tokens_estimate(),
            answer,
            is_stream,
            late_head,
            outcome: None,
            first_token_us: None,
            checkpoint: Checkpoint { at_us: now_us, text_bytes: 0 },
            remarks: self.trace.is_recorded().then(|| Box::new(Remarks::new(is_stream))),
        }));
    }

    /// The relay's own answer is the whole of it.
    pub(super) fn answered(&mut self, model: Option<Arc<Model>>, refusal: Option<Refusal>) {
        let caller = match std::mem::replace(&mut self.step, Step::Settled) {
            Step::Authenticated(caller) => Some(caller),
            Step::Answered { caller, .. } => caller,
            _ => None,
        };
        self.step = Step::Answered { caller, model, refusal };
    }

    /// How long the request has been here.
    pub(super) fn elapsed_us(&self) -> u64 {
        self.arrival.clock.now_us().saturating_sub(self.arrival.at_us)
    }
}

impl Answering {
    /// Passes a piece of the upstream's answer on; gives what the client gets of it.
    pub(super) fn pass(&mut self, piece: Bytes, now_us: u64) -> Bytes {
        let out = self.answer.pass(piece);
        self.note(&out, now_us);
        out
    }

    /// Notes what the client gets.
    pub(super) fn note(&mut self, out: &Bytes, now_us: u64) {
        if self.first_token_us.is_none() && self.answer.began() {
            self.first_token_us = Some(now_us);
        }
        if let Some(claim) = &mut self.admitted.claim {
            claim.tee(out);
        }
        self.remark(out);
    }

    /// Reads what the answer says of itself in what the client gets.
    pub(super) fn remark(&mut self, out: &Bytes) {
        if let Some(remarks) = &mut self.remarks {
            remarks.push(out);
        }
    }

    /// Tells who answers how the answer ended, where its end is known.
    pub(super) fn judge(&mut self, outcome: Outcome, now_us: u64) {
        let is_answered = match outcome {
            Outcome::Complete => true,
            Outcome::Truncated => false,
            // What the request is refused for is no fault of who refuses it.
            Outcome::Errored => self.answer.error().is_some_and(AnswerError::is_of_the_request),
        };
        self.lease.end(if is_answered { Verdict::Succeeded } else { Verdict::Failed }, now_us);
    }

    /// The answer has ended so, with these bytes: its claim is settled before they are written.
    pub(super) fn end_claim(&mut self, outcome: Outcome, last: &[u8]) {
        if let Some(mut claim) = self.admitted.claim.take() {
            claim.ended(outcome, last);
            self.tape.settle_claim_at_end(claim);
        }
    }
}

/// A method by its name; clients may make others up.
fn known_method(method: &Method) -> Option<&'static str> {
    ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"].into_iter().find(|known| method == known)
}

impl Drop for Exchange {
    fn drop(&mut self) {
        settle::settle(self);
        let clock = self.arrival.clock;
        std::mem::take(&mut self.trace).ends(self.status, || clock.now_us());
        self.shared.requests_in_flight.leave();
    }
}
