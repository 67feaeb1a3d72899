//! The requests' side: may this one pass, and what it gives back when it ends.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use arc_swap::ArcSwapOption;
use redis::RedisError;
use tokio::sync::Notify;
use tokio::time::timeout;
use uuid::Uuid;

use super::Tag;
use super::breaker::Breaker;
use super::keeper::Keeper;
use super::keepsakes::Keepsakes;
use super::link::{Link, Place, PlaceError, is_refusal};
use super::script::{Answered, Ask, Outcome, SLOT_US, Scripts};
use super::trail::{Entry, Trail, Word};
use crate::relay::admit::{KeyLimits, WindowView};
use crate::relay::auth::KeyDigest;
use crate::relay::refusal::Refusal;

/// What a clock here begins with, so that there is a time before it.
const BEGINS_AT_US: u64 = 3_600_000_000;

/// Told how long each call took, in microseconds.
type Observe = Box<dyn Fn(u64) + Send + Sync>;

/// The windows that nodes share.
pub struct Windows {
    pub(super) place: Place,
    pub(super) scripts: Scripts,
    pub(super) link: ArcSwapOption<Link>,
    pub(super) breaker: Breaker,
    /// Told when the breaker opens, and when there is something to tell Redis.
    pub(super) news: Notify,
    /// How many nodes there are, as far as is known.
    pub(super) nodes: AtomicU32,
    trail: Mutex<Trail>,
    keepsakes: Mutex<Keepsakes>,
    origin: Instant,
    decided_there: AtomicU64,
    decided_here: AtomicU64,
    observe: Observe,
}

/// What is to become of a request.
pub enum Verdict {
    /// All nodes' windows have room, and it was taken.
    Admitted(Slot, WindowView),
    /// They have none.
    Refused(Refusal, WindowView),
    /// Nobody could say in time: this node's own windows decide, by these limits.
    Here(Slot, KeyLimits),
}

/// What is shown of it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Observed {
    /// Whether this node decides by itself.
    pub degraded: bool,
    /// Nodes, as far as is known.
    pub nodes: u32,
    /// Requests that Redis decided.
    pub decided_there: u64,
    /// Requests that were decided here.
    pub decided_here: u64,
}

impl Windows {
    /// The requests' side, and the keeper that is to be run. `observe` is told how long each call took, in microseconds.
    ///
    /// # Errors
    /// There can be no such place.
    pub fn new(place: Place, observe: impl Fn(u64) + Send + Sync + 'static) -> Result<(Arc<Self>, Keeper), PlaceError> {
        let client = place.client()?;
        let windows = Arc::new(Self {
            nodes: AtomicU32::new(place.nodes_min.max(1)),
            place,
            scripts: Scripts::default(),
            link: ArcSwapOption::empty(),
            breaker: Breaker::default(),
            news: Notify::new(),
            trail: Mutex::default(),
            keepsakes: Mutex::default(),
            origin: Instant::now(),
            decided_there: AtomicU64::new(0),
            decided_here: AtomicU64::new(0),
            observe: Box::new(observe),
        });
        let keeper = Keeper::new(Arc::clone(&windows), client);
        Ok((windows, keeper))
    }

    /// Asks whether the request of that id may pass. Waits for as long as the place says and no longer.
    ///
    /// What is admitted is to be counted in the node's own windows besides, whoever admitted it, and then held ([`Slot::hold`]).
    pub async fn admit(self: &Arc<Self>, key: &KeyDigest, id: Uuid, limits: &KeyLimits, reserve: u64) -> Verdict {
        let mut slot = Slot {
            windows: Arc::clone(self),
            tag: Tag::of(key),
            id,
            reserved: limits.tokens_per_minute.map(|_| reserve),
            is_counted: limits.tokens_per_minute.is_some() || limits.concurrent_requests.is_some(),
            state: State::Unasked,
        };
        let link = if self.breaker.is_open() { None } else { self.link.load_full() };
        let Some(link) = link else { return self.here(slot, limits) };
        let wait = self.place.wait_max;
        let sent_us = self.now_us();
        // Past that nobody waits any more, and Redis is not to do it any more; some time later it is sure not to.
        let wait_us = u64::try_from(wait.as_micros()).unwrap_or(u64::MAX);
        let latest_us = link.server_us(sent_us).saturating_add(2 * wait_us);
        slot.state = State::Unsure { sure_at_us: sent_us.saturating_add(3 * wait_us) };
        let ask = Ask { tag: slot.tag, id, limits, reserve, latest_us, slot_us: SLOT_US };
        let command = self.scripts.admit(&ask);
        let answer = timeout(wait, link.ask::<Vec<i64>>(&command, &self.scripts)).await;
        let now_us = self.now_us();
        (self.observe)(now_us.saturating_sub(sent_us));
        let answered = match answer {
            Ok(Ok(numbers)) => Answered::read(&numbers, limits),
            Ok(Err(error)) => {
                self.broke(&error);
                return self.here(slot, limits);
            }
            Err(_) => None,
        };
        let Some(answered) = answered else {
            self.slow();
            return self.here(slot, limits);
        };
        link.note_time(answered.now_us, now_us);
        self.breaker.succeeded();
        slot.state = State::Unasked;
        match answered.outcome {
            Outcome::Late => self.here(slot, limits),
            Outcome::Admitted => {
                slot.state = State::Taken { server_at_us: answered.at_us };
                self.decided_there.fetch_add(1, Ordering::Relaxed);
                Verdict::Admitted(slot, answered.view)
            }
            Outcome::Denied(denied) => {
                self.decided_there.fetch_add(1, Ordering::Relaxed);
                Verdict::Refused(denied.refusal(limits, reserve), answered.view)
            }
        }
    }

    /// Keeps a small thing for other nodes, for an hour, where that is possible.
    pub fn keep(&self, name: String, thing: Vec<u8>) {
        if !self.breaker.is_open() {
            self.keepsakes().push(name, thing, self.now_us());
            self.news.notify_one();
        }
    }

    /// What was kept under those names, by whichever node; as many as were asked for. Waits no longer than an admission does.
    pub async fn fetch(&self, names: &[String]) -> Vec<Option<Vec<u8>>> {
        let link = if self.breaker.is_open() { None } else { self.link.load_full() };
        if let Some(link) = link {
            match timeout(self.place.wait_max, link.fetch(names)).await {
                Ok(Ok(found)) if found.len() == names.len() => return found,
                Ok(Ok(_)) => {}
                Ok(Err(error)) => self.broke(&error),
                Err(_) => self.slow(),
            }
        }
        vec![None; names.len()]
    }

    /// What is shown.
    pub fn observed(&self) -> Observed {
        Observed {
            degraded: self.breaker.is_open(),
            nodes: self.nodes.load(Ordering::Relaxed),
            decided_there: self.decided_there.load(Ordering::Relaxed),
            decided_here: self.decided_here.load(Ordering::Relaxed),
        }
    }

    fn here(&self, slot: Slot, limits: &KeyLimits) -> Verdict {
        self.decided_here.fetch_add(1, Ordering::Relaxed);
        Verdict::Here(slot, limits.share(self.nodes.load(Ordering::Relaxed)))
    }

    /// A call was not answered in time.
    pub(super) fn slow(&self) {
        if self.breaker.failed() {
            self.news.notify_one();
        }
    }

    /// A call failed. Without a connection the next would, too.
    pub(super) fn broke(&self, error: &RedisError) {
        if is_refusal(error) || error.is_timeout() {
            self.slow();
        } else if self.breaker.open() {
            self.news.notify_one();
        }
    }

    pub(super) fn trail(&self) -> MutexGuard<'_, Trail> {
        // Nothing is left half done where a panic could come.
        self.trail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn keepsakes(&self) -> MutexGuard<'_, Keepsakes> {
        self.keepsakes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Microseconds of a clock that never goes back.
    pub(super) fn now_us(&self) -> u64 {
        BEGINS_AT_US.saturating_add(u64::try_from(self.origin.elapsed().as_micros()).unwrap_or(u64::MAX))
    }

    fn tell(&self, word: Word, due_us: u64) {
        self.trail().tell(word, self.now_us(), due_us);
        self.news.notify_one();
    }
}

/// A request's places in the shared windows. However it is dropped, it gives back what is to be given back: all of it before
/// [`Slot::hold`], the concurrency and unused tokens after.
#[must_use = "a request has its places for as long as its slot is held"]
pub struct Slot {
    windows: Arc<Windows>,
    tag: Tag,
    id: Uuid,
    /// Tokens, where they have a limit.
    reserved: Option<u64>,
    /// Whether it counts among the requests at once, or has tokens to give back.
    is_counted: bool,
    state: State,
}

enum State {
    /// Redis knows nothing of it.
    Unasked,
    /// It was asked, and its answer is not known. It is done, or will not be, by that time.
    Unsure { sure_at_us: u64 },
    /// It was admitted there; not all that the request needs is known to be had.
    Taken { server_at_us: u64 },
    /// The request was admitted for good.
    Held { number: u64, server_at_us: Option<u64>, used: Option<u64> },
}

impl Slot {
    /// The request is admitted for good, whoever admitted it.
    pub fn hold(&mut self) {
        let windows = &self.windows;
        let now_us = windows.now_us();
        let (server_at_us, due_us) = match self.state {
            State::Unasked => (None, Some(now_us)),
            State::Unsure { sure_at_us } => (None, Some(sure_at_us)),
            State::Taken { server_at_us } => (Some(server_at_us), None),
            State::Held { .. } => return,
        };
        let (tag, id, tokens, has_slot) = (self.tag, self.id, self.reserved, self.is_counted);
        let mut trail = windows.trail();
        let number = trail.admitted(Entry { tag, id, at_us: now_us, server_at_us, tokens, has_slot });
        if let Some(due_us) = due_us {
            trail.record(number, now_us, due_us);
        }
        drop(trail);
        if due_us.is_some() {
            windows.news.notify_one();
        }
        self.state = State::Held { number, server_at_us, used: None };
    }

    /// So many tokens were used of those that were reserved.
    pub fn settle(&mut self, tokens: u64) {
        if let State::Held { used, .. } = &mut self.state {
            *used = Some(tokens);
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let (windows, tag, id, reserved) = (&self.windows, self.tag, self.id, self.reserved);
        match self.state {
            State::Unasked => {}
            State::Unsure { sure_at_us } => windows.tell(Word::Undo { tag, id, reserved }, sure_at_us),
            State::Taken { .. } => windows.tell(Word::Undo { tag, id, reserved }, windows.now_us()),
            State::Held { number, server_at_us, used } => {
                let now_us = windows.now_us();
                let mut trail = windows.trail();
                trail.ended(number, id, used);
                if self.is_counted {
                    trail.tell(Word::Release { tag, id, server_at_us, reserved, used }, now_us, now_us);
                    drop(trail);
                    windows.news.notify_one();
                }
            }
        }
    }
}
