//! Requests with an `Idempotency-Key`: the claim that a request holds while it runs, and the desk that writes for all of them.
//!
//! A request looks first, then passes admission, then claims; so a repeat takes no place in any limit, and what is refused writes
//! nothing. A [`Claim`] lives beside the permit and the place in the books, and whatever ends the request ends it: the answer is
//! kept when it was complete, the key is free again when not. Where there is an awaited moment before the client learns of the
//! end, the claim is settled in it, so that a client that asks again at once finds what it was told. Elsewhere its drop leaves
//! the end to the desk, which neither waits nor fails.
//!
//! The desk is one task. It writes what has gathered in one transaction, renews the claims of requests that run, and forgets what
//! is a day old. It outlives the requests.
//!
//! Deliberately absent: digests and ciphers, which are `relay::idempotency`, and rows, which are the store's.

use std::collections::HashSet;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode};
use tokio::sync::mpsc::{self, OwnedPermit};
use tokio::sync::oneshot;
use tokio::time::{MissedTickBehavior, interval, timeout};
use uuid::Uuid;

use super::clock::Clock;
use crate::relay::dialect::Outcome;
use crate::relay::idempotency::{
    self as rules, IdempotencyKey, KeyedRequest, LEASE_MS, Tee, TeeBudget, TeeBytes, Unkept,
};
use crate::relay::refusal::Refusal;
use crate::store::{KeyFound, KeyPlace, KeyStep, SealedAnswer, Store, StoreError};

/// How many requests may hold a claim at a time. Each has two places in the desk's queue: for its beginning, for its end.
const CLAIMS_MAX: usize = 65_536;
/// How many steps are written in one transaction.
const JOBS_AT_ONCE: usize = 64;
/// How often claims are renewed: twice they may fail to be before they end.
const RENEW_EVERY: Duration = Duration::from_millis(LEASE_MS as u64 / 3);
/// How many rows are forgotten in one transaction.
const FORGOTTEN_AT_ONCE: u32 = 100;
/// How long a request waits for the store. A client that wants protection would rather hear that there is none.
const CLAIM_WAIT_MAX: Duration = Duration::from_secs(5);
/// How long an answer's last bytes wait for the store.
const SETTLE_WAIT_MAX: Duration = Duration::from_secs(5);

/// The key of a request with this head, if it has one.
pub(super) fn key_of(headers: &HeaderMap) -> Result<Option<IdempotencyKey>, Refusal> {
    IdempotencyKey::parse(headers.get_all(rules::HEADER).iter().map(http::HeaderValue::as_bytes))
}

/// What all requests share.
pub(super) struct Idempotency {
    store: Store,
    clock: Clock,
    desk: mpsc::Sender<Job>,
    budget: Arc<TeeBudget>,
}

/// A request with a key that may run if it is admitted.
pub(super) struct Candidate {
    request: KeyedRequest,
    place: KeyPlace,
}

/// What an equal request was answered before.
pub(super) struct Replay {
    pub(super) status: u16,
    pub(super) content_type: Box<str>,
    pub(super) body: Bytes,
}

/// What is to become of a request with a key.
pub(super) enum Looked {
    /// It is the first of its kind.
    First(Box<Candidate>),
    /// It was answered already.
    Repeat(Replay),
}

impl Idempotency {
    /// The requests' side, and the desk that is to be run.
    pub(super) fn new(store: Store, clock: Clock) -> (Self, Desk) {
        let (desk, jobs) = mpsc::channel(2 * CLAIMS_MAX);
        let at_desk = Desk { jobs, store: store.clone(), clock, living: HashSet::new(), owed: Vec::new() };
        (Self { store, clock, desk, budget: Arc::default() }, at_desk)
    }

    /// Looks whether an equal request came before.
    ///
    /// # Errors
    /// It runs, its key came with another body, its answer is not kept, or nobody can say.
    pub(super) async fn look(
        &self,
        account_id: &str,
        request_id: Uuid,
        key: &IdempotencyKey,
        body: &[u8],
    ) -> Result<Looked, Refusal> {
        let request = KeyedRequest::new(account_id, key, body);
        let place = KeyPlace { account_id: account_id.into(), key_digest: request.key_digest.clone(), request_id };
        let find = self.store.find_idempotency_key(&place, &request.body_digest, self.clock.unix_ms());
        match timeout(CLAIM_WAIT_MAX, find).await {
            Ok(Ok(None)) => Ok(Looked::First(Box::new(Candidate { request, place }))),
            Ok(Ok(Some(found))) => repeat(found, &request).map(Looked::Repeat),
            Ok(Err(error)) => Err(unavailable(Some(&error))),
            Err(_) => Err(unavailable(None)),
        }
    }

    /// Claims the key for a request that is admitted.
    ///
    /// # Errors
    /// As those of [`Idempotency::look`]; an equal request was faster, be it answered already.
    pub(super) async fn claim(&self, candidate: Candidate) -> Result<Box<Claim>, Refusal> {
        let Candidate { request, place } = candidate;
        let (step, body_digest) = (place.clone(), request.body_digest.clone());
        let (Ok(queue), Ok(end)) = (self.desk.clone().try_reserve_owned(), self.desk.clone().try_reserve_owned())
        else {
            return Err(unavailable(None));
        };
        let (reply, found) = oneshot::channel();
        queue.send(Job { step: KeyStep::Claim { place: step, body_digest }, reply: Some(reply), _room: None });
        // Dropped before it is known to be made, it is freed: that step is in the queue behind the claim's.
        let tee = Tee::new(Arc::clone(&self.budget));
        let mut claim =
            Box::new(Claim { place, request, end: Some(end), tee: Some(tee), head: None, is_complete: false });
        match timeout(CLAIM_WAIT_MAX, found).await {
            Ok(Ok(KeyFound::Done)) => Ok(claim),
            Ok(Ok(found)) => {
                claim.end = None;
                // Answered since it was looked for. It was admitted as a request of its own; so it is told to ask again.
                Err(repeat(found, &claim.request).err().unwrap_or_else(rules::in_progress))
            }
            Ok(Err(_)) | Err(_) => Err(unavailable(None)),
        }
    }
}

/// The answer to a request that is not the first of its kind.
fn repeat(found: KeyFound, request: &KeyedRequest) -> Result<Replay, Refusal> {
    match found {
        KeyFound::Answered(first_id, SealedAnswer { status, content_type, bytes }) => {
            let body = request.open(first_id, status, &content_type, bytes).ok_or_else(|| {
                tracing::error!(request_id = %first_id, "a kept answer cannot be opened: the store was changed by another hand");
                Refusal::from(Unkept::Dropped)
            })?;
            Ok(Replay { status, content_type, body: body.into() })
        }
        KeyFound::OtherBody => Err(rules::key_reused()),
        KeyFound::Unkept(unkept) => Err(unkept.into()),
        KeyFound::Running | KeyFound::Done | KeyFound::Lost => Err(rules::in_progress()),
    }
}

fn unavailable(error: Option<&StoreError>) -> Refusal {
    if let Some(error) = error {
        tracing::error!(%error, "an Idempotency-Key could not be looked up");
    }
    rules::unavailable()
}

/// The right to be the one request with its key. Held in what an admitted request holds, and ended with it.
pub(super) struct Claim {
    place: KeyPlace,
    request: KeyedRequest,
    /// The place in the desk's queue for this claim's end; `None` once it is taken.
    end: Option<OwnedPermit<Job>>,
    tee: Option<Tee>,
    /// Status and content type of the answer that passes.
    head: Option<(u16, Box<str>)>,
    is_complete: bool,
}

impl Claim {
    /// An answer with this head begins to pass.
    pub(super) fn begin(&mut self, status: StatusCode, kind: &HeaderValue) {
        self.head = Some((status.as_u16(), kind.to_str().unwrap_or("application/json").into()));
    }

    /// A piece of the answer passes.
    pub(super) fn tee(&mut self, piece: &[u8]) {
        if let Some(tee) = &mut self.tee {
            tee.push(piece);
        }
    }

    /// The answer has ended so, and with these bytes: it is what repeats get if it was complete.
    pub(super) fn ended(&mut self, outcome: Outcome, last: &[u8]) {
        self.tee(last);
        self.is_complete = outcome == Outcome::Complete;
    }

    /// Keeps the answer that was complete, or frees the key, before the client learns of the end. Goes on after a while where the
    /// store does not answer: the desk will still do it when it can.
    pub(super) async fn settle(mut self: Box<Self>) {
        let (reply, done) = oneshot::channel();
        self.send(Some(reply));
        if timeout(SETTLE_WAIT_MAX, done).await.is_err() {
            tracing::warn!(request_id = %self.place.request_id, "the store is slow to take the end of a request with an Idempotency-Key");
        }
    }

    fn send(&mut self, reply: Option<oneshot::Sender<KeyFound>>) {
        let Some(end) = self.end.take() else { return };
        let (step, room) = self.last_step();
        end.send(Job { step, reply, _room: room });
    }

    fn last_step(&mut self) -> (KeyStep, Option<TeeBytes>) {
        let place = self.place.clone();
        let (true, Some((status, content_type)), Some(tee)) = (self.is_complete, self.head.take(), self.tee.take())
        else {
            return (KeyStep::Free(place), None);
        };
        let (answer, room) = match tee.into_whole() {
            Ok((whole, room)) => {
                let sealed = self.request.seal(place.request_id, status, &content_type, whole);
                let answer = sealed.map(|bytes| SealedAnswer { status, content_type, bytes });
                (answer.ok_or(Unkept::Dropped), Some(room))
            }
            Err(unkept) => (Err(unkept), None),
        };
        (KeyStep::Answer { place, answer }, room)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.send(None);
    }
}

/// A step that waits to be written.
struct Job {
    step: KeyStep,
    /// Where it is waited for.
    reply: Option<oneshot::Sender<KeyFound>>,
    /// What an answer takes in memory.
    _room: Option<TeeBytes>,
}

/// Writes for all requests.
pub(super) struct Desk {
    jobs: mpsc::Receiver<Job>,
    store: Store,
    clock: Clock,
    /// The requests whose claims are to be renewed.
    living: HashSet<Uuid>,
    /// Ends that the store did not take yet. No more than there were claims.
    owed: Vec<KeyStep>,
}

impl Desk {
    /// Works until it is told to stop, and then writes what is still in the queue.
    pub(super) async fn run(mut self, stop: impl Future<Output = ()>) {
        let mut stop = pin!(stop);
        let mut turns = interval(RENEW_EVERY);
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut jobs = Vec::with_capacity(JOBS_AT_ONCE);
        let mut has_old_rows = false;
        loop {
            tokio::select! {
                biased;
                _ = turns.tick() => {
                    self.renew(&mut jobs).await;
                    has_old_rows = true;
                }
                count = self.jobs.recv_many(&mut jobs, JOBS_AT_ONCE) => {
                    if count == 0 {
                        return;
                    }
                    self.write(&mut jobs).await;
                }
                () = &mut stop => break,
                () = std::future::ready(()), if has_old_rows => has_old_rows = self.forget().await,
            }
        }
        while let Ok(job) = self.jobs.try_recv() {
            jobs.push(job);
            if jobs.len() == JOBS_AT_ONCE {
                self.write(&mut jobs).await;
            }
        }
        self.write(&mut jobs).await;
    }

    /// Writes these steps, after those that are owed, and tells who waits for them.
    async fn write(&mut self, jobs: &mut Vec<Job>) {
        let mut steps = std::mem::take(&mut self.owed);
        let owed = steps.len();
        let mut waiting = Vec::with_capacity(jobs.len());
        for Job { step, reply, _room } in jobs.drain(..) {
            steps.push(step);
            waiting.push((reply, _room));
        }
        if steps.is_empty() {
            return;
        }
        let found = match self.store.idempotency_steps(&steps, self.clock.unix_ms()).await {
            Ok(found) => found,
            Err(error) => {
                tracing::error!(%error, "requests with an Idempotency-Key cannot be written down");
                self.owed = steps.into_iter().filter_map(owed_still).collect();
                return;
            }
        };
        for (step, found) in steps.iter().zip(&found) {
            self.take_note(step, found);
        }
        for ((reply, _room), found) in waiting.into_iter().zip(found.into_iter().skip(owed)) {
            if let Some(reply) = reply {
                let _ = reply.send(found);
            }
        }
    }

    fn take_note(&mut self, step: &KeyStep, found: &KeyFound) {
        match step {
            KeyStep::Claim { place, .. } => {
                if *found == KeyFound::Done {
                    self.living.insert(place.request_id);
                }
            }
            KeyStep::Free(place) => {
                self.living.remove(&place.request_id);
            }
            KeyStep::Answer { place, .. } => {
                self.living.remove(&place.request_id);
                if *found == KeyFound::Lost {
                    tracing::warn!(request_id = %place.request_id, "a request's claim on its Idempotency-Key ended before it did");
                }
            }
        }
    }

    /// Claims another lease for every request that runs. What is owed is tried again first: it may be one of theirs.
    async fn renew(&mut self, jobs: &mut Vec<Job>) {
        self.write(jobs).await;
        if self.living.is_empty() {
            return;
        }
        let living: Vec<Uuid> = self.living.iter().copied().collect();
        if let Err(error) = self.store.renew_idempotency_claims(&living, self.clock.unix_ms()).await {
            tracing::error!(%error, "claims on Idempotency-Keys could not be renewed");
        }
    }

    /// Forgets a batch of what is a day old; whether there may be more.
    async fn forget(&self) -> bool {
        match self.store.forget_idempotency_keys(FORGOTTEN_AT_ONCE, self.clock.unix_ms()).await {
            Ok(rows) => rows == u64::from(FORGOTTEN_AT_ONCE),
            Err(error) => {
                tracing::warn!(%error, "old Idempotency-Keys could not be forgotten");
                false
            }
        }
    }
}

/// What is left to be done of a step that failed. Its answer is not: while the store fails, memory is not to fill with answers.
fn owed_still(step: KeyStep) -> Option<KeyStep> {
    match step {
        // Whoever waits for it is refused.
        KeyStep::Claim { .. } => None,
        KeyStep::Free(place) => Some(KeyStep::Free(place)),
        KeyStep::Answer { place, answer } => {
            let answer = Err(answer.err().unwrap_or(Unkept::Dropped));
            Some(KeyStep::Answer { place, answer })
        }
    }
}

#[cfg(test)]
mod tests;
