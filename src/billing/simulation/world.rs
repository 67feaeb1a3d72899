//! What is true, whatever the relay thinks: who has been granted what, what each request may come to cost, what its client saw.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use uuid::Uuid;

use super::chance::Chance;
use super::ledger::{Billed, Books, SimLedger};
use super::process::Process;
use crate::billing::Unreported;
use crate::relay::meter::{Encoding, Price, PromptHead, Rates, SampledText};

/// What has happened so far, for whoever has to find out why.
pub(super) type Log = Arc<Mutex<Vec<String>>>;

pub(super) struct World {
    pub(super) chance: Chance,
    log: Log,
    /// Never goes back.
    pub(super) now_us: u64,
    /// May.
    pub(super) wall_ms: i64,
    pub(super) accounts: Vec<Arc<str>>,
    pub(super) keys: Vec<Key>,
    pub(super) requests: Vec<Request>,
    by_id: BTreeMap<Uuid, usize>,
    dead: BTreeSet<usize>,
}

pub(super) struct Key {
    pub(super) id: Arc<str>,
    pub(super) account: usize,
    pub(super) budget: Option<i64>,
}

/// A request that was admitted.
pub(super) struct Request {
    pub(super) id: Uuid,
    pub(super) account: usize,
    pub(super) key: usize,
    pub(super) hold: i64,
    /// The process that serves it.
    pub(super) by: usize,
    /// What it may cost, should its process die now.
    pub(super) costs: BTreeSet<i64>,
    /// What has passed, at the last checkpoint.
    pub(super) passed: i64,
    /// There was a row of it.
    pub(super) is_written: bool,
    pub(super) end: End,
    /// Its client was told that it is kept.
    pub(super) is_acknowledged: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// It runs, or what it costs is to be counted.
    None,
    /// At that cost.
    Finished(i64),
    /// It was given up, and must not be billed if its process lives on to say so.
    Dropped,
    /// It was given up, and there is nothing of it any more.
    Gone,
}

impl World {
    pub(super) fn new(seed: u64, log: Log) -> Self {
        Self {
            chance: Chance::new(seed),
            log,
            now_us: 0,
            wall_ms: 1_700_000_000_000,
            accounts: Vec::new(),
            keys: Vec::new(),
            requests: Vec::new(),
            by_id: BTreeMap::new(),
            dead: BTreeSet::new(),
        }
    }

    pub(super) fn log(&self, line: impl FnOnce() -> String) {
        let line = format!("{:>11} us  {}", self.now_us, line());
        self.log.lock().unwrap().push(line);
    }

    /// A little text at a nano-USD a token.
    pub(super) fn unreported(&mut self) -> Unreported {
        let text = |words: i64| {
            let mut text = SampledText::new();
            (0..words).for_each(|_| text.push(b"word "));
            text
        };
        let prompt = format!("[\"{}\"]", "word ".repeat(usize::try_from(self.chance.between(1, 9)).unwrap()));
        let rates = Rates { input: 1_000_000, output: 1_000_000, cache_read: 0, cache_write_5m: 0, cache_write_1h: 0 };
        Unreported {
            prompt: Some(PromptHead::new(prompt.as_bytes(), prompt.len() as u64 - 4, 1, 0)),
            output: text(self.chance.between(0, 60)),
            encoding: Encoding::Cl100k,
            price: Price { base: rates, tiers: Vec::new() },
            provider_price: None,
        }
    }

    pub(super) fn admitted(&mut self, request: Request) -> usize {
        self.by_id.insert(request.id, self.requests.len());
        self.requests.push(request);
        self.requests.len() - 1
    }

    pub(super) fn has_died(&mut self, process: usize) {
        self.dead.insert(process);
    }

    /// Nothing waits to be written by that process: what runs has a row that says what passed, what was given up has none.
    pub(super) fn all_is_written(&mut self, process: usize) {
        for request in self.requests.iter_mut().filter(|request| request.by == process) {
            match request.end {
                End::None => {
                    request.is_written = true;
                    request.costs.retain(|cost| *cost >= request.passed);
                }
                End::Dropped => request.end = End::Gone,
                End::Finished(_) | End::Gone => {}
            }
        }
    }

    /// The books are right at any moment.
    pub(super) fn check(&self, ledger: &SimLedger) {
        let books = ledger.books();
        assert!(books.wrong.is_empty(), "{}", books.wrong.join("\n"));
        for (account, id) in self.accounts.iter().enumerate() {
            let billed = || books.billed.values().filter(|billed| billed.account == *id);
            let (granted, balance) = (books.granted[id], books.balances[id].amount);
            let used: i64 = billed().map(|billed| billed.cost).sum();
            assert_eq!(granted - used, balance, "a{account}: {granted} granted, {used} used");
            // Those that nobody asked for are found below.
            let hold = |id: &Uuid| self.by_id.get(id).map_or(0, |number| self.requests[*number].hold);
            let above = |(id, billed): (&Uuid, &Billed)| (billed.cost - hold(id)).max(0);
            let above: i64 = books.billed.iter().filter(|(_, billed)| billed.account == *id).map(above).sum();
            // What a node that was buried had leased it may have sold, and somebody else again.
            let buried = books.leases.buried.get(id).copied().unwrap_or(0);
            assert!(
                balance >= -above - buried,
                "a{account} is overdrawn: {balance}, where holds were too small by {above}, and {buried} was taken back"
            );
        }
        for (id, billed) in &books.billed {
            let Some(number) = self.by_id.get(id) else { panic!("nobody asked for {id}") };
            let request = &self.requests[*number];
            assert_eq!(billed.account, self.accounts[request.account], "r{number}: who pays");
            assert_eq!(billed.key, self.keys[request.key].id, "r{number}: whose budget");
            assert!(request.end != End::Gone, "r{number} was given up, and is billed {}", billed.cost);
            match request.end {
                End::Finished(cost) if request.is_acknowledged => {
                    assert_eq!(billed.cost, cost, "r{number} was acknowledged");
                }
                _ => assert!(request.costs.contains(&billed.cost), "r{number} cannot cost {}", billed.cost),
            }
        }
    }

    /// What a process would sell is there.
    pub(super) fn check_available(&self, process: &Process, books: &Books) {
        for (account, id) in self.accounts.iter().enumerate() {
            let owed: i64 =
                self.requests.iter().map(|request| self.owed(request, account, process.number, books)).sum();
            let truth = books.balances[id].amount - owed;
            // Elsewhere a hold may be known still where its cost is higher.
            let above = self.above_holds(|request| request.account == account && request.by != process.number);
            let available = process.purses[account].available().0;
            assert!(
                available <= truth + above,
                "p{} would sell {available} to a{account}, which has {truth}, and holds too small by {above}",
                process.number
            );
        }
    }

    /// What nodes would sell is there: together no more than the balance, less what is held and owed.
    pub(super) fn check_leases(&self, nodes: &[&Vec<Process>], books: &Books) {
        for (account, id) in self.accounts.iter().enumerate() {
            assert!(books.leases.held.values().all(|held| held.amount >= 0), "a lease below nothing");
            // Two processes of a node know of the same lease.
            let of_node = |processes: &&Vec<Process>| {
                let selling = processes.iter().filter(|process| {
                    !process.is_draining && process.tenant.as_ref().is_some_and(|tenant| tenant.is_current(self.now_us))
                });
                selling.map(|process| process.purses[account].available().0.max(0)).max().unwrap_or(0)
            };
            let available: i64 = nodes.iter().map(of_node).sum();
            let owed: i64 = self.requests.iter().map(|request| self.owed(request, account, usize::MAX, books)).sum();
            let buried = books.leases.buried.get(id).copied().unwrap_or(0);
            let (above, truth) =
                (self.above_holds(|request| request.account == account), books.balances[id].amount - owed);
            assert!(
                available <= (truth + above + buried).max(0),
                "nodes would sell {available} to a{account}, which has {truth}, with holds too small by {above}, and {buried} taken back"
            );
        }
    }

    /// Everything that was acknowledged is billed at its cost, and everything else of which there was a row at some cost.
    pub(super) fn check_acknowledged(&self, ledger: &SimLedger) {
        let books = ledger.books();
        for (number, request) in self.requests.iter().enumerate().filter(|(_, request)| request.is_acknowledged) {
            let billed = books.billed.get(&request.id).map(|billed| End::Finished(billed.cost));
            assert_eq!(billed, Some(request.end), "r{number} was acknowledged");
        }
        for (number, request) in self.requests.iter().enumerate().filter(|(_, request)| request.is_written) {
            let is_given_up = matches!(request.end, End::Dropped | End::Gone);
            assert!(is_given_up || books.billed.contains_key(&request.id), "r{number} was in the spool, and is lost");
        }
    }

    /// What a request that is not in the ledger takes from an account for certain.
    fn owed(&self, request: &Request, account: usize, process: usize, books: &Books) -> i64 {
        if request.account != account || books.billed.contains_key(&request.id) {
            return 0;
        }
        let is_dead = self.dead.contains(&request.by) && request.by != process;
        match request.end {
            End::Finished(cost) if request.is_acknowledged || !is_dead => cost,
            End::None if !is_dead => request.hold,
            _ => 0,
        }
    }

    /// By how much holds were too small.
    fn above_holds(&self, which: impl Fn(&Request) -> bool) -> i64 {
        let above = |request: &Request| match request.costs.last() {
            Some(cost) => (cost - request.hold).max(0),
            None => 0,
        };
        self.requests.iter().filter(|request| which(request)).map(above).sum()
    }
}
