//! Mistakes in a configuration: each with its file and line, all of them collected before anyone is told.

use std::cell::RefCell;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// One thing that is wrong with a configuration, and the mend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// The file, as it was named on the command line or by `include`.
    pub file: PathBuf,
    /// The line, counted from 1. A file that cannot be read at all is reported at its first.
    pub line: usize,
    /// What is wrong and how to mend it, for people. Never holds a secret.
    pub what: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file.display(), self.line, self.what)
    }
}

/// A line of a file, for mistakes that are found only after the file has been read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) file: Arc<Path>,
    pub(super) line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// Collects the mistakes of one configuration while it is read.
#[derive(Debug, Default)]
pub(super) struct Mistakes {
    found: RefCell<Vec<Found>>,
    /// Files that are not wholly known: what they lack may stand in the part that could not be read.
    torn: RefCell<Vec<Arc<Path>>>,
}

#[derive(Debug)]
struct Found {
    place: Place,
    what: String,
    is_syntax: bool,
}

impl Mistakes {
    /// Something that is there and wrong.
    pub(super) fn report(&self, place: &Place, what: impl Into<String>) {
        self.push(place, what.into(), false);
    }

    /// Something that should be in this file and is not. A file that did not parse gets no such reports.
    pub(super) fn report_absence(&self, place: &Place, what: impl Into<String>) {
        if !self.torn.borrow().contains(&place.file) {
            self.report(place, what);
        }
    }

    /// Something that should be in any of the files and is in none.
    pub(super) fn report_absence_anywhere(&self, place: &Place, what: impl Into<String>) {
        if self.torn.borrow().is_empty() {
            self.report(place, what);
        }
    }

    /// A file that is not TOML, or cannot be read: what is missing from it is unknown from here on.
    pub(super) fn report_torn(&self, place: &Place, what: impl Into<String>) {
        self.torn.borrow_mut().push(Arc::clone(&place.file));
        self.push(place, what.into(), true);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.found.borrow().is_empty()
    }

    /// All that was found, in the order of `files` and of the lines, each once. Of a line that is not TOML only the
    /// first fault is told: what the parser made of the rest of it proves nothing.
    pub(super) fn into_sorted(self, files: &[PathBuf]) -> Vec<Mistake> {
        let mut found = self.found.into_inner();
        let rank = |file: &Path| files.iter().position(|read| read == file).unwrap_or(usize::MAX);
        found.sort_by_key(|found| (rank(&found.place.file), found.place.line));
        let broken_lines: Vec<Place> =
            found.iter().filter(|found| found.is_syntax).map(|found| found.place.clone()).collect();
        let mut mistakes: Vec<Mistake> = Vec::with_capacity(found.len());
        for Found { place, what, is_syntax } in found {
            let is_told = |told: &Mistake| told.file == *place.file && told.line == place.line;
            let is_after_effect = match is_syntax {
                true => mistakes.last().is_some_and(is_told),
                false => broken_lines.contains(&place),
            };
            let mistake = Mistake { file: place.file.to_path_buf(), line: place.line, what };
            if !is_after_effect && !mistakes.contains(&mistake) {
                mistakes.push(mistake);
            }
        }
        mistakes
    }

    fn push(&self, place: &Place, what: String, is_syntax: bool) {
        self.found.borrow_mut().push(Found { place: place.clone(), what, is_syntax });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(file: &str, line: usize) -> Place {
        Place { file: Path::new(file).into(), line }
    }

    #[test]
    fn mistakes_come_in_the_order_of_files_and_lines() {
        let mistakes = Mistakes::default();
        mistakes.report(&place("b.toml", 1), "third");
        mistakes.report(&place("a.toml", 9), "second");
        mistakes.report(&place("a.toml", 2), "first");
        mistakes.report(&place("a.toml", 2), "first");
        let sorted = mistakes.into_sorted(&["a.toml".into(), "b.toml".into()]);
        let lines: Vec<String> = sorted.iter().map(ToString::to_string).collect();
        assert_eq!(lines, ["a.toml:2: first", "a.toml:9: second", "b.toml:1: third"]);
    }

    #[test]
    fn a_torn_file_is_not_blamed_for_what_it_lacks() {
        let mistakes = Mistakes::default();
        mistakes.report_torn(&place("a.toml", 3), "not TOML");
        mistakes.report(&place("a.toml", 3), "guessed from the broken line");
        mistakes.report_absence(&place("a.toml", 1), "missing here");
        mistakes.report_absence_anywhere(&place("b.toml", 1), "missing everywhere");
        mistakes.report_absence(&place("b.toml", 1), "missing there");
        let sorted = mistakes.into_sorted(&["a.toml".into(), "b.toml".into()]);
        let lines: Vec<String> = sorted.iter().map(ToString::to_string).collect();
        assert_eq!(lines, ["a.toml:3: not TOML", "b.toml:1: missing there"]);
    }
}
