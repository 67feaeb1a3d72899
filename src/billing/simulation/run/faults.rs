//! What goes wrong in a run: full disks, files that fail, processes that die, in the midst of a write or not.

use super::super::disk::{self, Files};
use super::{PAUSES_US, Simulation};

/// What a file may fail to do for good.
const BREAKS: [(&str, &str); 5] = [
    ("INSERT", "batches"),
    ("DELETE", "batches"),
    ("INSERT", "open_requests"),
    ("DELETE", "open_requests"),
    ("INSERT", "cursors"),
];

impl Simulation<'_> {
    pub(super) fn fill_or_free_the_disk(&mut self) {
        self.pages = match self.pages {
            None => Some(self.world.chance.between(0, 4)),
            Some(_) => None,
        };
        let pages = self.pages;
        self.world.log(|| format!("the disk has room for {pages:?} pages"));
        self.processes.iter().for_each(|process| process.leave_pages(pages.unwrap_or(1 << 20)));
    }

    pub(super) fn break_for_good(&mut self, place: usize) {
        let (kind, table) = *self.world.chance.pick(&BREAKS);
        let process = &self.processes[place];
        if !process.is_breaking.replace(true) {
            self.world.log(|| format!("p{} cannot {kind} {table} from now on", process.number));
            process.break_for_good(kind, table);
        }
    }

    pub(super) fn adopt(&mut self, place: usize) {
        self.processes[place].adopt();
        self.world.log(|| format!("p{} looks who has died", self.processes[place].number));
    }

    /// The process ends at once; where nobody admits any more another one begins.
    pub(super) fn crash(&mut self, place: usize) {
        let process = self.processes.remove(place);
        self.world.log(|| format!("p{} dies", process.number));
        process.die(&mut self.world);
        self.begin_if_needed();
    }

    pub(super) fn begin_if_needed(&mut self) {
        if self.processes.iter().all(|process| process.is_draining) {
            self.begin();
        }
    }

    /// All processes end, one in the midst of a write, and the disk is as it was then.
    pub(super) fn tear(&mut self, place: usize) {
        // Mostly there is something to write.
        let journals = disk::journals(&self.place.path);
        self.finish_one(place);
        self.world.now_us += *self.world.chance.pick(&PAUSES_US);
        let before = Files::read(&self.place.path);
        let number = self.processes[place].number;
        if self.world.chance.one_in(4) && before.has_other(&journals) {
            self.world.log(|| format!("all die, p{number} in the midst of an entry of its journal"));
            let left = before.with_entry_torn(&journals, &mut self.world.chance);
            return self.begin_after(&left);
        }
        let _ = self.processes[place].turn(&mut self.world, self.runtime, false);
        let after = Files::read(&self.place.path);
        let (left, how) = before.torn(after, &mut self.world.chance);
        self.world.log(|| format!("all die, p{number} {how}"));
        self.begin_after(&left);
    }

    /// All processes end, and another begins with what is left on the disk.
    pub(super) fn begin_after(&mut self, left: &Files) {
        for process in std::mem::take(&mut self.processes) {
            process.die(&mut self.world);
        }
        self.copies += 1;
        self.place.path = self.copy_path();
        left.write(&self.place.path);
        self.begin();
    }
}
