//! Typed access to a parsed TOML file: what has the wrong type, is missing or is unknown is reported with its line, and
//! reading goes on. Messages here repeat keys, types and numbers but never text: a secret may stand where it should not.

use std::cell::RefCell;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::files::Files;
use super::mistake::{Mistakes, Place};
use crate::relay::meter::parse_nano_usd;

/// What the reading of one configuration has in common, whichever file it is at.
pub(super) struct Reading<'e> {
    pub(super) mistakes: Mistakes,
    pub(super) files: RefCell<Files>,
    /// The process's environment; a function so that tests can have their own.
    pub(super) environment: &'e dyn Fn(&str) -> Option<std::ffi::OsString>,
}

/// One file of a configuration.
pub(super) struct Source<'r> {
    pub(super) file: Arc<Path>,
    pub(super) reading: &'r Reading<'r>,
    line_starts: Vec<usize>,
}

impl<'r> Source<'r> {
    pub(super) fn new(file: &Path, text: &str, reading: &'r Reading<'r>) -> Self {
        let after_newlines = memchr::memchr_iter(b'\n', text.as_bytes()).map(|at| at + 1);
        Self { file: file.into(), reading, line_starts: std::iter::once(0).chain(after_newlines).collect() }
    }

    /// Where the byte at that offset stands.
    pub(super) fn place(&self, offset: usize) -> Place {
        Place { file: Arc::clone(&self.file), line: self.line_starts.partition_point(|start| *start <= offset) }
    }

    /// A path as this file names it: relative to the folder that the file is in.
    pub(super) fn resolve(&self, path: &str) -> PathBuf {
        self.file.parent().unwrap_or(Path::new("")).join(path)
    }
}

/// A table. Its entries are asked for by name; what nobody asked for is unknown, and reported by [`Table::finish`].
pub(super) struct Table<'s> {
    pub(super) source: &'s Source<'s>,
    entries: &'s DeTable<'s>,
    name: String,
    place: Place,
    known: RefCell<Vec<&'static str>>,
}

impl<'s> Table<'s> {
    /// The file's own table.
    pub(super) fn root(source: &'s Source<'s>, entries: &'s DeTable<'s>) -> Self {
        Self { source, entries, name: String::new(), place: source.place(0), known: RefCell::default() }
    }

    /// The entry of that name, where there is one.
    pub(super) fn optional(&self, key: &'static str) -> Option<Value<'s>> {
        self.note(key);
        let (spanned_key, value) = self.entries.get_key_value(key)?;
        Some(Value {
            source: self.source,
            value: value.get_ref(),
            place: self.source.place(spanned_key.span().start),
            name: self.path(key),
        })
    }

    /// The entry of that name; reported when there is none. `mend` says what to write.
    pub(super) fn required(&self, key: &'static str, mend: &str) -> Option<Value<'s>> {
        let value = self.optional(key);
        if value.is_none() {
            let what = format!("{} is missing; {mend}", self.path(key));
            self.source.reading.mistakes.report_absence(&self.place, what);
        }
        value
    }

    /// Reports a mistake at the table's header.
    pub(super) fn report(&self, what: impl std::fmt::Display) {
        let what = if self.name.is_empty() { what.to_string() } else { format!("{}: {what}", self.name) };
        self.source.reading.mistakes.report(&self.place, what);
    }

    /// Reports every entry that was never asked for.
    pub(super) fn finish(self) {
        let known = self.known.borrow();
        for key in self.entries.keys().filter(|key| !known.contains(&&**key.get_ref())) {
            let mend = match nearest(key.get_ref(), &known) {
                Some(near) => format!("did you mean {near:?}?"),
                None => format!("the keys here are {}", known.join(", ")),
            };
            let what = format!("unknown key {:?}; {mend}", self.path(key.get_ref()));
            self.source.reading.mistakes.report(&self.source.place(key.span().start), what);
        }
    }

    fn note(&self, key: &'static str) {
        let mut known = self.known.borrow_mut();
        if !known.contains(&key) {
            known.push(key);
        }
    }

    fn path(&self, key: &str) -> String {
        if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) }
    }
}

/// A value, with what a message needs to speak of it.
pub(super) struct Value<'s> {
    pub(super) source: &'s Source<'s>,
    value: &'s DeValue<'s>,
    place: Place,
    name: String,
}

impl<'s> Value<'s> {
    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    /// Its dotted path, for messages.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Reports a mistake at this value.
    pub(super) fn report(&self, what: impl std::fmt::Display) {
        self.source.reading.mistakes.report(&self.place, format!("{}: {what}", self.name));
    }

    /// Reports a mistake for which the value cannot be used.
    pub(super) fn refuse<T>(&self, what: impl std::fmt::Display) -> Option<T> {
        self.report(what);
        None
    }

    pub(super) fn is_string(&self) -> bool {
        self.value.is_str()
    }

    /// Its type as TOML calls it, with an article.
    pub(super) fn type_name(&self) -> &'static str {
        match self.value {
            DeValue::String(_) => "a string",
            DeValue::Integer(_) => "an integer",
            DeValue::Float(_) => "a float",
            DeValue::Boolean(_) => "a boolean",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "an array",
            DeValue::Table(_) => "a table",
        }
    }

    /// A string, of at least one character.
    pub(super) fn string(&self) -> Option<&'s str> {
        match self.value.as_str() {
            Some("") => self.refuse("is empty; write what it should be, or remove the line"),
            Some(text) => Some(text),
            None => self.refuse(format_args!("must be a string, not {}; put it in quotes", self.type_name())),
        }
    }

    pub(super) fn boolean(&self) -> Option<bool> {
        let boolean = self.value.as_bool();
        boolean.or_else(|| self.refuse(format_args!("must be true or false, not {}", self.type_name())))
    }

    /// A share from 0 to 1, a decimal without an exponent: in billionths.
    pub(super) fn share_per_billion(&self) -> Option<u32> {
        let decimal = match self.value {
            DeValue::Float(float) => Some(float.as_str()),
            DeValue::Integer(integer) if integer.radix() == 10 => Some(integer.as_str()),
            _ => None,
        };
        // Exact, as money is read: a share of 0.1 is a tenth.
        let share = decimal.and_then(parse_nano_usd).and_then(|billionths| u32::try_from(billionths).ok());
        share.filter(|share| *share <= 1_000_000_000).or_else(|| {
            self.refuse("must be a bare decimal from 0 to 1 with at most nine digits after the point; write 0.01 for one of a hundred")
        })
    }

    /// A whole number in a range.
    pub(super) fn number(&self, range: RangeInclusive<u64>) -> Option<u64> {
        let Some(integer) = self.value.as_integer() else {
            return self.refuse(format_args!("must be a whole number, not {}; write it bare", self.type_name()));
        };
        match u64::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(number) if range.contains(&number) => Some(number),
            _ => self.refuse(format_args!(
                "is {integer}; it must be a whole number from {} to {}",
                range.start(),
                range.end()
            )),
        }
    }

    /// A whole number from 1 that fits 32 bits.
    pub(super) fn count(&self) -> Option<u32> {
        self.number(1..=u64::from(u32::MAX)).and_then(|number| u32::try_from(number).ok())
    }

    pub(super) fn table(&self) -> Option<Table<'s>> {
        let Some(entries) = self.value.as_table() else {
            return self.refuse(format_args!("must be a table, not {}; write {{ key = value }}", self.type_name()));
        };
        Some(Table {
            source: self.source,
            entries,
            name: self.name.clone(),
            place: self.place.clone(),
            known: RefCell::default(),
        })
    }

    /// The tables of `[[name]]`.
    pub(super) fn rows(&self) -> Option<Vec<Value<'s>>> {
        if self.value.is_table() {
            return self.refuse(format_args!("is a list; write [[{}]], with double brackets", self.name));
        }
        self.items()
    }

    /// The elements of an array.
    pub(super) fn items(&self) -> Option<Vec<Value<'s>>> {
        let Some(array) = self.value.as_array() else {
            return self.refuse(format_args!("must be an array, not {}; put it in [brackets]", self.type_name()));
        };
        let item = |item: &'s Spanned<DeValue<'s>>| Value {
            source: self.source,
            value: item.get_ref(),
            place: self.source.place(item.span().start),
            name: self.name.clone(),
        };
        Some(array.iter().map(item).collect())
    }
}

/// The known key that an unknown one was probably meant to be.
fn nearest(unknown: &str, known: &[&'static str]) -> Option<&'static str> {
    let allowed = if unknown.len() < 5 { 1 } else { 2 };
    let distances = known.iter().map(|key| (edits(unknown, key), *key));
    distances.min_by_key(|(distance, _)| *distance).filter(|(distance, _)| *distance <= allowed).map(|(_, key)| key)
}

/// How many characters must be put in, taken out or changed to make one text the other (Levenshtein's distance).
fn edits(one: &str, other: &str) -> usize {
    let mut row: Vec<usize> = (0..=other.chars().count()).collect();
    for (i, a) in one.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in other.chars().enumerate() {
            let replaced = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_fingers_finds_the_key_that_was_meant() {
        let known = ["http", "https", "requests_per_minute", "tokens_per_minute"];
        assert_eq!(nearest("htp", &known), Some("http"));
        assert_eq!(nearest("request_per_minute", &known), Some("requests_per_minute"));
        assert_eq!(nearest("rpm", &known), None);
    }

    #[test]
    fn edits_are_counted() {
        assert_eq!(edits("kitten", "sitting"), 3);
        assert_eq!(edits("", "abc"), 3);
        assert_eq!(edits("same", "same"), 0);
    }

    #[test]
    fn lines_are_counted_from_one() {
        let environment = |_: &str| None;
        let reading = Reading { mistakes: Mistakes::default(), files: RefCell::default(), environment: &environment };
        let source = Source::new(Path::new("dir/a.toml"), "a\nbc\n\nd", &reading);
        let lines: Vec<usize> = (0..7).map(|offset| source.place(offset).line).collect();
        assert_eq!(lines, [1, 1, 2, 2, 2, 3, 4]);
        assert_eq!(source.resolve("b.pem"), Path::new("dir/b.pem"));
        assert_eq!(source.resolve("/etc/b.pem"), Path::new("/etc/b.pem"));
    }
}
