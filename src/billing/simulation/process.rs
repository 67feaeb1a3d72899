//! One process of the relay, as far as money goes: the real pieces, moved by hand.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::sync::mpsc;

use super::ledger::{SimLedger, Sum};
use super::tenant::Tenant;
use super::world::{End, World};
use crate::billing::delivery::{Delivery, DeliveryError};
use crate::billing::inbox::Inbox;
use crate::billing::recorder::{NotKept, Uncounted};
use crate::billing::scribe::{Kept, Scribe};
use crate::billing::sink::Times;
use crate::billing::spool::{Adopted, SpoolFile, WriteError};
use crate::billing::worker::{Books, scribe_of};
use crate::billing::{Opened, Receipt, Recorder, SpoolError, SpoolPlace, Ticket, Worker, assemble};
use crate::relay::admit::{HoldGauge, Purse, Spending};
use crate::relay::meter::NanoUsd;

type Boxed<T> = Pin<Box<dyn Future<Output = T>>>;
type Delivered = Result<Option<usize>, DeliveryError>;

/// The scribe, whatever it tells.
trait Turns {
    fn turn(&mut self, inbox: &Inbox, now_us: u64) -> Result<bool, SpoolError>;
    fn is_quiet(&self) -> bool;
    fn file(&self) -> &SpoolFile;
    fn close(self: Box<Self>) -> Result<(), WriteError>;
}

impl<K: FnMut(i64, Vec<Kept>)> Turns for Scribe<K> {
    fn turn(&mut self, inbox: &Inbox, now_us: u64) -> Result<bool, SpoolError> {
        Scribe::turn(self, inbox, Some(Duration::ZERO), || now_us)
    }

    fn is_quiet(&self) -> bool {
        self.due_us().is_none()
    }

    fn file(&self) -> &SpoolFile {
        &self.file
    }

    fn close(self: Box<Self>) -> Result<(), WriteError> {
        Scribe::close(*self)
    }
}

/// What hands over to the ledger.
enum Deliverer {
    Idle(Delivery<SimLedger>),
    /// It waits for the scribe.
    Waiting(Boxed<(Delivery<SimLedger>, Delivered)>),
    Gone,
}

pub(super) struct Process {
    pub(super) number: usize,
    began_us: u64,
    pub(super) recorder: Recorder,
    inbox: Arc<Inbox>,
    scribe: Box<dyn Turns>,
    uncounted: mpsc::UnboundedReceiver<Uncounted>,
    books: Arc<Books>,
    deliverer: Deliverer,
    ledger: SimLedger,
    adopting: Option<Boxed<Result<Adopted, SpoolError>>>,
    gauge: Arc<HoldGauge>,
    pub(super) purses: Vec<Arc<Purse>>,
    pub(super) spendings: Vec<Arc<Spending>>,
    /// Requests that run.
    pub(super) live: Vec<(usize, Ticket)>,
    /// Requests whose usage is to be counted, in their order.
    counting: Vec<usize>,
    /// Requests that have ended, and whose clients wait.
    waiting: Vec<(usize, Boxed<Result<(), NotKept>>)>,
    /// A poll that has read what is elsewhere, and not yet the balances.
    polling: Option<HashMap<Arc<str>, NanoUsd>>,
    /// The newest balances that it was told, by a poll.
    heard: BTreeMap<Arc<str>, Sum>,
    /// What its node has leased, where it is one of several.
    pub(super) tenant: Option<Tenant>,
    /// Something that it does will fail for good.
    pub(super) is_breaking: Cell<bool>,
    /// It admits no more.
    pub(super) is_draining: bool,
}

impl Process {
    /// Begins as `billing::open` and the keyring do, on a disk with so many free pages.
    pub(super) fn begin(
        number: usize,
        place: &SpoolPlace,
        ledger: &SimLedger,
        world: &World,
        runtime: &Runtime,
        pages: Option<i64>,
    ) -> Self {
        let node = ledger.node.as_ref();
        let mut tenant = node.map(|id| Tenant::begin(ledger, id, world.now_us, runtime));
        let file = SpoolFile::open(place).unwrap();
        if let Some(pages) = pages {
            file.leave_pages(pages);
        }
        let opened = Opened::of(file, place).unwrap();
        let (recorder, worker) = assemble(opened, place, ledger.clone(), Vec::new(), Times::real()).unwrap();
        let Worker { file, inbox, uncounted, books, delivery, pace, .. } = worker;
        let scribe = Box::new(scribe_of(file, pace, &books, |_| {}));
        let elsewhere = runtime.block_on(recorder.elsewhere().amounts()).unwrap();
        let (balances, spent) = runtime.block_on(ledger.amounts());
        let gauge = Arc::<HoldGauge>::default();
        let purse = |id: &str| {
            let balance = balances.get(id).copied().unwrap_or_default();
            let purse = match node {
                None => Purse::gauged(NanoUsd(balance.amount), balance.seq, Arc::clone(&gauge)),
                Some(_) => Purse::leased(Arc::clone(&gauge)),
            };
            purse.set_elsewhere(elsewhere.get(id).copied().unwrap_or_default());
            Arc::new(purse)
        };
        let spending = |id: &str| {
            let spent = spent.get(id).copied().unwrap_or_default();
            Arc::new(Spending::new(NanoUsd(spent.amount), spent.seq))
        };
        let purses: Vec<_> = world.accounts.iter().map(|id| purse(id)).collect();
        if let Some(tenant) = &mut tenant {
            tenant.know(&world.accounts, &purses);
            tenant.hear(ledger, world.now_us, runtime);
        }
        Self {
            number,
            tenant,
            began_us: world.now_us,
            inbox,
            scribe,
            uncounted,
            books,
            deliverer: Deliverer::Idle(delivery),
            ledger: ledger.clone(),
            adopting: None,
            purses,
            spendings: world.keys.iter().map(|key| spending(&key.id)).collect(),
            gauge,
            heard: balances,
            live: Vec::new(),
            counting: Vec::new(),
            waiting: Vec::new(),
            polling: None,
            is_breaking: Cell::new(false),
            is_draining: false,
            recorder,
        }
    }

    /// The scribe looks once. Without `seen` nobody hears of what it did, as where the process dies in the midst of it.
    ///
    /// # Errors
    /// The file failed.
    pub(super) fn turn(&mut self, world: &mut World, runtime: &Runtime, seen: bool) -> Result<bool, SpoolError> {
        let turned = self.scribe.turn(&self.inbox, world.now_us - self.began_us);
        if !seen {
            return turned;
        }
        if turned.is_err() {
            // As the thread that the scribe runs on.
            self.recorder.state().fail();
            self.inbox.abandon();
        }
        self.hear_receipts(world);
        self.hear_adopted();
        if matches!(self.deliverer, Deliverer::Waiting(_)) {
            self.deliver(runtime);
        }
        if turned.is_ok() && self.scribe.is_quiet() {
            world.all_is_written(self.number);
        }
        turned
    }

    /// Hands the oldest records to the ledger, or goes on waiting until it is written that they were; whether anything went on.
    pub(super) fn deliver(&mut self, runtime: &Runtime) -> Option<Delivered> {
        let mut step: Boxed<_> = match std::mem::replace(&mut self.deliverer, Deliverer::Gone) {
            Deliverer::Idle(mut delivery) => {
                self.ledger.books().answered = false;
                Box::pin(async move {
                    let delivered = delivery.step().await;
                    (delivery, delivered)
                })
            }
            Deliverer::Waiting(step) => {
                self.ledger.books().answered = true;
                step
            }
            Deliverer::Gone => return None,
        };
        let ledger = self.ledger.clone();
        let outcome = runtime.block_on(std::future::poll_fn(|context| match step.as_mut().poll(context) {
            Poll::Ready(done) => Poll::Ready(Some(done)),
            // It is the scribe's turn now; before, somebody reads.
            Poll::Pending if ledger.books().answered => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }));
        match outcome {
            Some((delivery, delivered)) => {
                self.deliverer = Deliverer::Idle(delivery);
                Some(delivered)
            }
            None => {
                self.deliverer = Deliverer::Waiting(step);
                None
            }
        }
    }

    /// Asks for what the dead left.
    pub(super) fn adopt(&mut self) {
        if self.adopting.is_none() {
            let inbox = Arc::clone(&self.inbox);
            self.adopting = Some(Box::pin(async move { inbox.ask(SpoolFile::adopt).await }));
            self.hear_adopted();
        }
    }

    /// Reads what others hold, or where that is read, the balances, and takes both over.
    pub(super) fn poll(&mut self, world: &World, runtime: &Runtime) {
        let Some(elsewhere) = self.polling.take() else {
            self.polling = runtime.block_on(self.recorder.elsewhere().amounts()).ok();
            return;
        };
        let (balances, spent) = runtime.block_on(self.ledger.amounts());
        for (id, purse) in world.accounts.iter().zip(&self.purses) {
            let balance = balances.get(id).copied().unwrap_or_default();
            purse.refresh(NanoUsd(balance.amount), balance.seq);
            purse.set_elsewhere(elsewhere.get(id).copied().unwrap_or_default());
        }
        for (key, spending) in world.keys.iter().zip(&self.spendings) {
            let spent = spent.get(&key.id).copied().unwrap_or_default();
            spending.refresh(NanoUsd(spent.amount), spent.seq);
        }
        self.heard = balances;
        if let Some(tenant) = &mut self.tenant {
            tenant.hear(&self.ledger, world.now_us, runtime);
        }
    }

    /// A balance comes again that an account had before the one that this process knows.
    pub(super) fn hear_late(&self, account: usize, id: &str, behind: i64, amount: i64) {
        let known = self.heard.get(id).copied().unwrap_or_default();
        self.purses[account].refresh(NanoUsd(amount), known.seq - behind);
    }

    /// A request has ended; its usage is known, or to be counted.
    pub(super) fn ended(&mut self, request: usize, receipt: Receipt, is_counted: bool) {
        self.waiting.push((request, Box::pin(receipt.kept())));
        if !is_counted {
            self.counting.push(request);
        }
    }

    /// Counts what is the first to be counted; says of which request, and what it came to.
    pub(super) fn count(&mut self, world: &mut World) -> Option<(usize, i64)> {
        let uncounted = self.uncounted.try_recv().ok()?;
        let request = self.counting.remove(0);
        let cost = uncounted.end(&self.inbox).0;
        world.requests[request].end = End::Finished(cost);
        world.requests[request].costs.insert(cost);
        Some((request, cost))
    }

    pub(super) fn leave_pages(&self, pages: i64) {
        self.scribe.file().leave_pages(pages);
    }

    pub(super) fn break_for_good(&self, kind: &str, table: &str) {
        self.scribe.file().break_for_good(kind, table);
    }

    /// Whether all that there is to write is written.
    pub(super) fn is_quiet(&self) -> bool {
        self.scribe.is_quiet()
    }

    /// Whether it cannot go on.
    pub(super) fn is_broken(&self) -> bool {
        self.recorder.state().failed()
    }

    pub(super) fn is_stalled(&self) -> bool {
        self.recorder.state().is_stalled()
    }

    /// What it holds is what its running requests hold.
    pub(super) fn check_holds(&self, world: &World) {
        let running = || self.live.iter().map(|(request, _)| request).chain(&self.counting);
        let held = |which: &dyn Fn(usize) -> bool| -> i64 {
            running().filter(|request| which(**request)).map(|request| world.requests[*request].hold).sum()
        };
        assert_eq!(self.gauge.active(), running().count() as i64, "p{}: holds that are counted", self.number);
        assert_eq!(self.gauge.held().0, held(&|_| true), "p{}: what they hold", self.number);
        for (account, purse) in self.purses.iter().enumerate() {
            let held = held(&|request| world.requests[request].account == account);
            assert_eq!(purse.held().0, held, "p{}: what a{account} holds", self.number);
        }
    }

    /// All is over at once. What it held is held no more.
    pub(super) fn die(self, world: &mut World) {
        let (gauge, purses, number) = (Arc::clone(&self.gauge), self.purses.clone(), self.number);
        drop(self);
        assert_eq!((gauge.active(), gauge.held().0), (0, 0), "p{number}: holds after its end");
        assert!(purses.iter().all(|purse| purse.held().0 == 0), "p{number}: held after its end");
        world.has_died(number);
    }

    /// Ends in good order, as the worker does when there is no ticket out: whatever there is room for is written.
    pub(super) fn end(mut self, world: &mut World, runtime: &Runtime) {
        assert!(self.live.is_empty() && self.counting.is_empty());
        self.recorder.state().close();
        while !self.is_stalled() && !self.is_broken() {
            let _ = self.turn(world, runtime, true);
            match self.deliver(runtime) {
                Some(Ok(None) | Err(_)) => break,
                Some(Ok(Some(_))) | None => world.now_us += 5_000,
            }
        }
        self.inbox.end();
        while !self.is_broken() && !self.turn(world, runtime, true).unwrap_or(true) {
            world.now_us += 1_000_000;
        }
        let (number, is_stalled) = (self.number, self.is_stalled() || self.recorder.state().spooled() > 0);
        if self.is_broken() {
            return self.die(world);
        }
        assert!(self.waiting.is_empty() || self.is_stalled(), "p{number}: all is written, and somebody waits");
        let Self { scribe, inbox, tenant, ledger, is_draining, .. } = self;
        // Another process is the node.
        if let Some(tenant) = tenant.filter(|_| !is_draining && !is_stalled) {
            tenant.end(&ledger, world.now_us, runtime);
        }
        if let Err(WriteError::Broken(error)) = scribe.close() {
            world.log(|| format!("p{number} could not close the spool: {error}"));
        }
        inbox.abandon();
        world.has_died(number);
    }

    pub(super) fn hear_receipts(&mut self, world: &mut World) {
        let (number, is_broken) = (self.number, self.is_broken());
        self.waiting.retain_mut(|(request, kept)| match poll(kept) {
            Poll::Pending => true,
            Poll::Ready(kept) => {
                assert!(kept.is_ok() || is_broken, "p{number} lives, and could not keep r{request}");
                world.requests[*request].is_acknowledged = kept.is_ok();
                false
            }
        });
    }

    fn hear_adopted(&mut self) {
        let Some(adopting) = &mut self.adopting else { return };
        if let Poll::Ready(adopted) = poll(adopting) {
            self.adopting = None;
            if let Ok(adopted) = adopted {
                self.books.inherit(adopted);
            }
        }
    }
}

fn poll<T>(future: &mut Boxed<T>) -> Poll<T> {
    future.as_mut().poll(&mut Context::from_waker(Waker::noop()))
}
