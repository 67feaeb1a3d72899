//! A run: what happens, drawn step by step, and what must be true then.

mod faults;
pub(super) mod nodes;

use tempfile::TempDir;
use tokio::runtime::Runtime;

use self::nodes::Node;
use super::disk;
use super::ledger::{Fault, SimLedger};
use super::process::Process;
use super::world::{End, Key, Log, Request, World};
use crate::billing::{Durability, Opening, Progress, SpoolPlace, Ticket};
use crate::relay::admit::Hold;
use crate::relay::auth::KeyDigest;
use crate::relay::meter::{NanoUsd, Usage, UsageRecord};
use crate::relay::refusal::Cause;
use crate::store::{KeyTerms, NewKey, Store};

/// How long time may stand still or go on between two looks of the scribe, microseconds.
const PAUSES_US: [u64; 6] = [0, 500, 4_000, 5_000, 60_000, 1_200_000];

pub(super) struct Simulation<'a> {
    pub(super) world: World,
    pub(super) ledger: SimLedger,
    runtime: &'a Runtime,
    folder: TempDir,
    place: SpoolPlace,
    /// How often the disk was copied.
    copies: usize,
    pub(super) processes: Vec<Process>,
    begun: usize,
    is_ledger_down: bool,
    /// The other nodes, where there are several.
    others: Vec<Node>,
    /// How many pages the disk has room for; `None` where there is room.
    pages: Option<i64>,
}

impl<'a> Simulation<'a> {
    pub(super) fn new(seed: u64, log: Log, runtime: &'a Runtime, is_real: bool) -> Self {
        let folder = disk::folder();
        let mut world = World::new(seed, log);
        let url = format!("sqlite://{}/tollgate.db", folder.path().display());
        let store = is_real.then(|| runtime.block_on(Store::open(&url)).unwrap());
        let ledger = SimLedger::new(store);
        let bytes_max = if world.chance.one_in(3) { 400 << 10 } else { 8 << 20 };
        let place = SpoolPlace {
            path: folder.path().join("0/spool.db"),
            bytes_max,
            durability: Durability::Process,
            sinks: Vec::new(),
        };
        let mut simulation = Self {
            world,
            ledger,
            runtime,
            folder,
            place,
            copies: 0,
            processes: Vec::new(),
            begun: 0,
            is_ledger_down: false,
            others: Vec::new(),
            pages: None,
        };
        simulation.found();
        simulation.begin();
        simulation
    }

    /// Accounts with little credit, and keys with and without a budget.
    fn found(&mut self) {
        for account in 0..self.world.chance.between(1, 3) {
            let id = match self.ledger.store() {
                Some(store) => self.runtime.block_on(store.create_account("Ada", "free", 1)).unwrap().id,
                None => format!("acct_{account}"),
            };
            let credit = self.world.chance.between(50, 2_000);
            self.runtime.block_on(self.ledger.grant(&id, credit));
            self.world.log(|| format!("a{account} has {credit}"));
            for _ in 0..2 {
                let number = self.world.keys.len();
                let key_id = match self.ledger.store() {
                    Some(store) => {
                        let key =
                            NewKey { account_id: id.clone(), name: number.to_string(), terms: KeyTerms::default() };
                        let digest = KeyDigest([number as u8; 32]);
                        self.runtime.block_on(store.create_key(&key, &digest, 1)).unwrap().id
                    }
                    None => format!("key_{number}"),
                };
                let budget = self.world.chance.one_in(2).then(|| self.world.chance.between(1, 1_000));
                self.world.keys.push(Key { id: key_id.into(), account: account as usize, budget });
            }
            self.world.accounts.push(id.into());
        }
    }

    fn begin(&mut self) {
        let number = self.begun;
        self.begun += 1;
        let pages = self.pages;
        self.world.log(|| format!("p{number} begins{}", if pages.is_some() { " on a full disk" } else { "" }));
        let process = Process::begin(number, &self.place, &self.ledger, &self.world, self.runtime, pages);
        self.processes.push(process);
    }

    pub(super) fn run(&mut self) {
        for _ in 0..self.world.chance.between(30, 220) {
            let process = self.world.chance.index(self.processes.len());
            self.step(process);
            self.check();
        }
        self.finish_all();
    }

    /// The same with several nodes.
    pub(super) fn run_nodes(&mut self) {
        let nodes = self.world.chance.between(2, 3).unsigned_abs();
        self.become_nodes(usize::try_from(nodes).unwrap());
        for _ in 0..self.world.chance.between(60, 300) {
            self.step_of_nodes();
            self.check();
        }
        self.finish_nodes();
    }

    fn step(&mut self, process: usize) {
        match self.world.chance.below(100) {
            0..18 => self.admit(process),
            18..30 => self.pass(process),
            30..43 => self.finish_one(process),
            43..46 => self.drop_one(process),
            46..49 => self.count(process),
            49..67 => self.turn(process),
            67..70 => self.adopt(process),
            70..81 => self.deliver(process),
            81..86 => self.poll(process),
            86..88 => self.hear_late(process),
            88..89 => self.grant(),
            89..91 => self.turn_the_clock(),
            91..93 => self.is_ledger_down = !self.is_ledger_down && self.world.chance.one_in(2),
            93..95 => self.fill_or_free_the_disk(),
            95 => self.break_for_good(process),
            96 => self.adopt(process),
            97 => self.crash(process),
            98 => self.tear(process),
            _ => self.hand_over_or_retire(),
        }
    }

    pub(super) fn admit(&mut self, place: usize) {
        let process = &mut self.processes[place];
        if process.is_draining || process.is_broken() {
            return;
        }
        let key_number = self.world.chance.index(self.world.keys.len());
        let key = &self.world.keys[key_number];
        let (purse, spending) = (&process.purses[key.account], &process.spendings[key_number]);
        let least = self.world.chance.between(0, 60);
        let most = least + self.world.chance.between(0, 200);
        let free = purse.available();
        let tenant = process.tenant.as_ref();
        if tenant.is_some_and(|tenant| !tenant.is_current(self.world.now_us)) {
            return;
        }
        let take = if tenant.is_some() { Hold::take_whole } else { Hold::take };
        let taken = take(purse, spending, key.budget.map(NanoUsd), NanoUsd(least), NanoUsd(most));
        let account = key.account;
        let hold = match taken {
            Ok(hold) => hold,
            Err(refusal) if refusal.cause == Cause::InsufficientCredits && tenant.is_some() => {
                return self.wait_for_credit(place, (account, key_number), (least, most));
            }
            Err(refusal) if refusal.cause == Cause::InsufficientCredits => {
                assert!(free.0 < least.max(1), "{free:?} is enough for {least}");
                return;
            }
            Err(_) => return,
        };
        let amount = hold.amount();
        assert!(amount <= free && (least..=most.max(least)).contains(&amount.0), "{amount:?} of {free:?}");
        assert!(key.budget.is_none_or(|budget| spending.spent().0 <= budget), "more than the budget is held");
        self.open(place, (account, key_number), hold);
    }

    /// A request is admitted with what it holds.
    fn open(&mut self, place: usize, (account, key_number): (usize, usize), hold: Hold) {
        let (process, key) = (&mut self.processes[place], &self.world.keys[key_number]);
        let amount = hold.amount();
        let id = self.world.chance.id();
        let length = if self.world.chance.one_in(4) { 1_500 } else { 5 };
        let opening = Opening {
            request_id: id,
            account_id: self.world.accounts[account].clone(),
            key_id: key.id.clone(),
            model: "m".repeat(length).into(),
            started_at_ms: self.world.wall_ms,
            hold,
        };
        let by = process.number;
        let Some(ticket) = process.recorder.open(opening) else { return };
        let request = Request {
            id,
            account,
            key: key_number,
            hold: amount.0,
            by,
            costs: [0].into(),
            passed: 0,
            is_written: false,
            end: End::None,
            is_acknowledged: false,
        };
        let request = self.world.admitted(request);
        process.live.push((request, ticket));
        self.world.log(|| format!("p{by} admits r{request} of a{account}, which holds {}", amount.0));
    }

    fn pass(&mut self, place: usize) {
        let process = &self.processes[place];
        if process.live.is_empty() {
            return;
        }
        let (number, ticket) = self.world.chance.pick(&process.live);
        let request = &mut self.world.requests[*number];
        let has_begun = self.world.chance.below(5) > 0;
        if has_begun {
            request.passed = self.world.chance.between(request.passed, request.hold.max(request.passed));
            request.costs.insert(request.passed);
        }
        let cost = request.passed;
        let usage = Usage { output: cost.unsigned_abs(), ..Usage::default() };
        let first_token_ms = (has_begun || cost > 0).then_some(3);
        ticket.checkpoint(Progress {
            provider: "p".into(),
            usage,
            cost: NanoUsd(cost),
            provider_cost: None,
            first_token_ms,
            total_ms: 9,
        });
        self.world.log(|| format!("r{number} has come to {cost}"));
    }

    fn take_live(&mut self, place: usize) -> Option<(usize, Ticket)> {
        let live = &mut self.processes[place].live;
        (!live.is_empty()).then(|| live.remove(self.world.chance.index(live.len())))
    }

    pub(super) fn finish_one(&mut self, place: usize) {
        let Some((number, ticket)) = self.take_live(place) else { return };
        let request = &mut self.world.requests[number];
        let (passed, hold) = (request.passed, request.hold);
        let kind = self.world.chance.below(10);
        let (status, interrupted, cost) = match kind {
            // It failed before its first token, or its client left.
            0 if passed == 0 => (502, true, 0),
            1 | 2 => (499, true, passed),
            // The hold was too small.
            3 => (200, false, hold.max(passed) + self.world.chance.between(1, hold / 10 + 3)),
            _ => (200, false, self.world.chance.between(passed, hold.max(passed))),
        };
        let record = UsageRecord {
            request_id: request.id,
            account_id: self.world.accounts[request.account].clone(),
            key_id: self.world.keys[request.key].id.clone(),
            model: "m".into(),
            provider: "p".into(),
            status,
            usage: Usage { output: cost.unsigned_abs(), ..Usage::default() },
            cost: NanoUsd(cost),
            provider_cost: None,
            estimated: false,
            interrupted,
            started_at_ms: self.world.wall_ms,
            first_token_ms: (cost > 0).then_some(3),
            total_ms: 17,
        };
        let is_counted = kind != 9;
        let receipt = if is_counted {
            request.end = End::Finished(cost);
            request.costs.insert(cost);
            ticket.finish(record, None)
        } else {
            let unreported = self.world.unreported();
            ticket.finish(record, Some(unreported))
        };
        self.processes[place].ended(number, receipt, is_counted);
        self.world.log(|| match is_counted {
            true => format!("r{number} ends with {status} and costs {cost}"),
            false => format!("r{number} ends, and is to be counted"),
        });
    }

    fn drop_one(&mut self, place: usize) {
        if let Some((number, ticket)) = self.take_live(place) {
            self.world.requests[number].end = End::Dropped;
            drop(ticket);
            self.world.log(|| format!("r{number} is given up"));
        }
    }

    fn count(&mut self, place: usize) {
        if let Some((number, cost)) = self.processes[place].count(&mut self.world) {
            self.world.log(|| format!("r{number} is counted and costs {cost}"));
        }
    }

    /// The scribe looks. If its file fails, its process ends.
    pub(super) fn turn(&mut self, place: usize) {
        self.world.now_us += *self.world.chance.pick(&PAUSES_US);
        let process = &mut self.processes[place];
        let number = process.number;
        self.world.log(|| format!("p{number} writes"));
        if let Err(error) = process.turn(&mut self.world, self.runtime, true) {
            self.world.log(|| format!("p{number} fails: {error}"));
            assert!(process.is_broken() && !process.recorder.is_open(), "it would go on");
            self.crash(place);
        }
    }

    fn deliver(&mut self, place: usize) {
        let fault = match self.world.chance.below(6) {
            _ if self.is_ledger_down => Fault::Before,
            0 => Fault::Before,
            1 | 2 => Fault::After,
            _ => Fault::None,
        };
        self.deliver_with(place, fault);
    }

    pub(super) fn deliver_with(&mut self, place: usize, fault: Fault) {
        self.ledger.books().fault = fault;
        let process = &mut self.processes[place];
        let delivered = process.deliver(self.runtime);
        self.world.log(|| format!("p{} delivers, fault {fault:?}: {delivered:?}", process.number));
    }

    fn poll(&mut self, place: usize) {
        self.processes[place].poll(&self.world, self.runtime);
        self.world.log(|| format!("p{} polls", self.processes[place].number));
    }

    /// A poll's answer comes late: whatever it says is old.
    fn hear_late(&mut self, place: usize) {
        let account = self.world.chance.index(self.world.accounts.len());
        let (behind, amount) = (self.world.chance.between(0, 3), self.world.chance.between(3_000, 9_000));
        self.processes[place].hear_late(account, &self.world.accounts[account], behind, amount);
        self.world.log(|| format!("a{account} had {amount}, it is said"));
    }

    fn grant(&mut self) {
        let account = self.world.chance.index(self.world.accounts.len());
        let amount = self.world.chance.between(1, 600);
        self.runtime.block_on(self.ledger.grant(&self.world.accounts[account].clone(), amount));
        self.world.log(|| format!("a{account} is granted {amount}"));
    }

    fn turn_the_clock(&mut self) {
        self.world.wall_ms += self.world.chance.between(-100_000_000, 100_000_000);
    }

    /// Another process takes over, and the old one serves what it has; or the old one ends.
    fn hand_over_or_retire(&mut self) {
        if let Some(place) = self.processes.iter().position(|process| process.is_draining) {
            return self.retire(place);
        }
        let old = &mut self.processes[0];
        for _ in 0..4 {
            self.world.now_us += 60_000;
            if old.turn(&mut self.world, self.runtime, true).is_err() || old.is_quiet() {
                break;
            }
        }
        if old.is_broken() {
            return self.crash(0);
        }
        if old.is_quiet() {
            self.world.log(|| format!("p{} admits no more", old.number));
            old.is_draining = true;
            self.begin();
        }
    }

    fn serve_all(&mut self, place: usize) {
        while !self.processes[place].live.is_empty() {
            self.finish_one(place);
        }
        while self.processes[place].count(&mut self.world).is_some() {}
    }

    fn retire(&mut self, place: usize) {
        self.serve_all(place);
        let process = self.processes.remove(place);
        self.world.log(|| format!("p{} ends in good order", process.number));
        process.end(&mut self.world, self.runtime);
    }

    fn check(&mut self) {
        for process in &mut self.processes {
            process.hear_receipts(&mut self.world);
        }
        self.world.check(&self.ledger);
        if self.ledger.node.is_some() {
            return self.check_nodes();
        }
        for process in &self.processes {
            process.check_holds(&self.world);
            if !process.is_draining {
                self.world.check_available(process, &self.ledger.books());
            }
        }
    }

    /// Everyone ends, and a last process, to which nothing happens, serves a little and delivers all that there is.
    pub(super) fn finish_all(&mut self) {
        (self.pages, self.is_ledger_down) = (None, false);
        self.processes.iter().for_each(|process| process.leave_pages(1 << 20));
        while let Some(process) = self.processes.pop() {
            self.ledger.books().fault = *self.world.chance.pick(&[Fault::None, Fault::After]);
            if self.world.chance.one_in(2) {
                self.world.log(|| format!("p{} dies", process.number));
                process.die(&mut self.world);
            } else {
                self.processes.push(process);
                self.retire(self.processes.len() - 1);
            }
            self.check();
        }
        self.begin();
        (0..3).for_each(|_| self.admit(0));
        self.serve_all(0);
        self.ledger.books().fault = Fault::None;
        let mut idle = 0;
        for _ in 0..1_000 {
            self.world.now_us += 1_000_000;
            let last = &mut self.processes[0];
            last.adopt();
            last.turn(&mut self.world, self.runtime, true).unwrap();
            idle = if matches!(last.deliver(self.runtime), Some(Ok(None))) { idle + 1 } else { 0 };
            self.check();
            if idle > 2 {
                break;
            }
        }
        assert!(idle > 2, "there is always something to deliver");
        self.check_end();
    }

    /// All is delivered: the books are exact, and nothing is left anywhere.
    fn check_end(&mut self) {
        if self.ledger.node.is_none() {
            self.world.check_acknowledged(&self.ledger);
        }
        let last = &mut self.processes[0];
        last.poll(&self.world, self.runtime);
        last.poll(&self.world, self.runtime);
        for (account, id) in self.world.accounts.iter().enumerate().filter(|_| last.tenant.is_none()) {
            let balance = self.ledger.books().balances[id].amount;
            assert_eq!(last.purses[account].available().0, balance, "a{account} may spend what it has");
        }
        for (key, spending) in self.world.keys.iter().zip(&last.spendings) {
            let spent = self.ledger.books().spent.get(&key.id).map_or(0, |spent| spent.amount);
            assert_eq!(spending.spent().0, spent, "{} has spent", key.id);
        }
        let last = self.processes.remove(0);
        last.end(&mut self.world, self.runtime);
        let left = disk::rows_left(&self.place.path);
        assert_eq!(left, [] as [String; 0], "the spool is not empty");
        if let Some(store) = self.ledger.store().filter(|_| self.ledger.node.is_none()) {
            assert_eq!(self.runtime.block_on(store.audit()).unwrap(), []);
            self.runtime.block_on(store.close());
        }
    }
}
