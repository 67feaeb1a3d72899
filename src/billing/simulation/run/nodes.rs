//! Several nodes at one ledger, each with a spool of its own: what happens about their leases.

use std::path::PathBuf;
use std::sync::Arc;

use super::super::tenant::{Heard, Waiting};
use super::{Process, Simulation};
use crate::billing::SpoolPlace;
use crate::relay::admit::{Hold, LeaseVerdict};
use crate::relay::meter::NanoUsd;
use crate::relay::refusal::Cause;

/// How long nobody does anything, microseconds.
const ABSENCES_US: [u64; 4] = [100_000, 750_000, 2_000_000, 4_000_000];

/// What belongs to a node whose turn it is not.
pub(in crate::billing::simulation) struct Node {
    id: Arc<str>,
    place: SpoolPlace,
    processes: Vec<Process>,
    pages: Option<i64>,
}

impl Simulation<'_> {
    /// Lets it be so many nodes, of which the one that is there is the first.
    pub(in crate::billing::simulation) fn become_nodes(&mut self, count: usize) {
        for process in std::mem::take(&mut self.processes) {
            process.die(&mut self.world);
        }
        for number in 0..count {
            let path = self.folder.path().join(format!("node-{number}/spool.db"));
            let place = SpoolPlace { path, ..self.place.clone() };
            let node = Node { id: format!("node_{number}").into(), place, processes: Vec::new(), pages: None };
            self.others.push(node);
        }
        for _ in 0..count {
            self.switch(0);
            self.begin();
        }
    }

    /// It is the turn of another node.
    fn switch(&mut self, other: usize) {
        let next = self.others.remove(other);
        let id = self.ledger.node.replace(Arc::clone(&next.id));
        let place = std::mem::replace(&mut self.place, next.place);
        let processes = std::mem::replace(&mut self.processes, next.processes);
        let pages = std::mem::replace(&mut self.pages, next.pages);
        if let Some(id) = id {
            self.others.push(Node { id, place, processes, pages });
        }
    }

    /// One thing happens at one of the nodes.
    pub(in crate::billing::simulation) fn step_of_nodes(&mut self) {
        if self.world.chance.one_in(3) {
            let other = self.world.chance.index(self.others.len());
            self.switch(other);
        }
        if self.processes.is_empty() {
            // Nobody is in a hurry to start it again.
            if self.world.chance.one_in(8) {
                self.begin();
            } else {
                self.world.now_us += *self.world.chance.pick(&ABSENCES_US);
            }
            return;
        }
        let place = self.world.chance.index(self.processes.len());
        match self.world.chance.below(100) {
            0..16 => self.admit(place),
            16..30 => self.ask(place),
            30..38 => self.serve_one_who_waited(place),
            38..45 => self.give_back(place),
            45..54 => self.renew(place),
            54..56 => self.world.now_us += *self.world.chance.pick(&ABSENCES_US),
            56 => self.go_down(),
            _ => self.step(place),
        }
    }

    /// The node's machine is gone, with all of its processes, but not with its disk.
    fn go_down(&mut self) {
        self.world.log(|| "a node goes down".to_owned());
        for process in std::mem::take(&mut self.processes) {
            process.die(&mut self.world);
        }
    }

    fn heard(&mut self) -> Heard {
        Heard::draw(&mut self.world.chance, self.is_ledger_down)
    }

    fn ask(&mut self, place: usize) {
        let (heard, now_us, runtime) = (self.heard(), self.world.now_us, self.runtime);
        let process = &mut self.processes[place];
        let Some(tenant) = &mut process.tenant else { return };
        tenant.book.turn(now_us);
        let asked = tenant.ask(&self.ledger, now_us, heard, runtime);
        self.world.log(|| format!("p{} asks for {asked} leases: {heard:?}", process.number));
    }

    fn give_back(&mut self, place: usize) {
        let (heard, now_us, runtime) = (self.heard(), self.world.now_us, self.runtime);
        let process = &mut self.processes[place];
        let Some(tenant) = process.tenant.as_mut().filter(|_| !process.is_draining) else { return };
        let returned = tenant.give_back(&self.ledger, now_us, heard, runtime);
        self.world.log(|| format!("p{} gives {returned} leases back: {heard:?}", process.number));
    }

    fn renew(&mut self, place: usize) {
        let (heard, now_us, runtime) = (self.heard(), self.world.now_us, self.runtime);
        let process = &mut self.processes[place];
        let Some(tenant) = &mut process.tenant else { return };
        tenant.renew(&self.ledger, now_us, heard, runtime);
        self.world.log(|| format!("p{} renews its leases: {heard:?}", process.number));
    }

    /// A request finds less than all that it would hold: it waits for more.
    pub(super) fn wait_for_credit(&mut self, place: usize, (account, key): (usize, usize), (least, most): (i64, i64)) {
        let now_us = self.world.now_us;
        let process = &mut self.processes[place];
        let Some(tenant) = &mut process.tenant else { return };
        let (id, purse) = (&self.world.accounts[account], &process.purses[account]);
        let number = tenant.book.join(id, purse, NanoUsd(least), NanoUsd(most), now_us);
        tenant.waiting.push(Waiting { number, account, key, least, most });
    }

    /// A request that has waited is looked at again.
    fn serve_one_who_waited(&mut self, place: usize) {
        let process = &mut self.processes[place];
        let Some(tenant) = &mut process.tenant else { return };
        if tenant.waiting.is_empty() {
            return;
        }
        let Waiting { number, account, key, least, most } =
            tenant.waiting.remove(self.world.chance.index(tenant.waiting.len()));
        let id = &self.world.accounts[account];
        let verdict = tenant.book.verdict(id, number, NanoUsd(most));
        tenant.book.leave(id, number);
        let is_current = tenant.is_current(self.world.now_us);
        if verdict == LeaseVerdict::Wait || !is_current || process.is_draining {
            return;
        }
        let (purse, spending) = (&process.purses[account], &process.spendings[key]);
        let budget = self.world.keys[key].budget.map(NanoUsd);
        let take = if verdict == LeaseVerdict::Ready { Hold::take_whole } else { Hold::take };
        let free = purse.available();
        match take(purse, spending, budget, NanoUsd(least), NanoUsd(most)) {
            Ok(hold) => self.open(place, (account, key), hold),
            Err(refusal) if refusal.cause == Cause::InsufficientCredits => {
                assert!(free.0 < least.max(1) || verdict == LeaseVerdict::Ready, "{free:?} is enough for {least}");
            }
            Err(_) => {}
        }
    }

    /// What all nodes together would sell is there.
    pub(in crate::billing::simulation) fn check_nodes(&self) {
        let nodes = self.others.iter().map(|node| &node.processes).chain([&self.processes]);
        let processes: Vec<&Vec<Process>> = nodes.collect();
        for process in processes.iter().flat_map(|processes| processes.iter()) {
            process.check_holds(&self.world);
        }
        self.world.check_leases(&processes, &self.ledger.books());
    }

    /// Each node ends, and a last process of it, to which nothing happens, delivers all that there is.
    pub(in crate::billing::simulation) fn finish_nodes(&mut self) {
        for _ in 0..=self.others.len() {
            self.finish_all();
            self.switch(0);
        }
        self.world.check_acknowledged(&self.ledger);
        let books = self.ledger.books();
        assert!(books.leases.held.is_empty(), "every lease has ended");
        drop(books);
        if let Some(store) = self.ledger.store() {
            let found = self.runtime.block_on(store.audit());
            assert!(matches!(&found, Ok(found) if found.is_empty()), "{found:?}");
            self.runtime.block_on(store.close());
        }
    }

    /// Where the spool of the node is whose turn it is.
    pub(super) fn copy_path(&self) -> PathBuf {
        match &self.ledger.node {
            Some(node) => self.folder.path().join(format!("{node}-{}/spool.db", self.copies)),
            None => self.folder.path().join(format!("{}/spool.db", self.copies)),
        }
    }
}
