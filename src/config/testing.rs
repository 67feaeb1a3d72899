//! What the unit tests of this room have in common.

use std::cell::RefCell;
use std::ffi::OsString;
use std::path::Path;

use toml::de::DeTable;

use super::mistake::{Mistake, Mistakes};
use super::reader::{Reading, Source, Table};

/// Reads a text as `test.toml`; `read` is given its table. The mistakes that were found.
pub(super) fn with_root(
    toml: &str,
    environment: &dyn Fn(&str) -> Option<OsString>,
    read: impl FnOnce(&Table<'_>),
) -> Vec<Mistake> {
    let reading = Reading { mistakes: Mistakes::default(), files: RefCell::default(), environment };
    let source = Source::new(Path::new("test.toml"), toml, &reading);
    let tree = DeTable::parse(toml).unwrap();
    read(&Table::root(&source, tree.get_ref()));
    drop(source);
    reading.mistakes.into_sorted(&["test.toml".into()])
}

/// The mistakes as `check` prints them.
pub(super) fn mistakes_of(mistakes: &[Mistake]) -> String {
    mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}
