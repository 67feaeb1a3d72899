//! What all files of a configuration say together, before names are looked up across them.

use std::path::Path;

use toml::de::DeTable;

use super::mistake::{Mistakes, Place};
use super::model::{self, ModelRow};
use super::payment::{self, Payment};
use super::plan::{self, PlanRow};
use super::provider::{self, ProviderRow};
use super::reader::{Reading, Source, Table, Value};
use super::shared::{self, SharedConfig};
use super::snapshot::{BillingConfig, DashboardConfig, Limits, Listen, StoreConfig, TracesConfig};
use super::{dashboard, listen, settings, telemetry};
use crate::relay::route::Secret;

/// How deep files may include files.
const INCLUDE_DEPTH_MAX: usize = 8;

/// A row of an array of tables that has a name of its own. Without content it is known by name only: what is wrong with
/// it has been reported, and nobody who refers to it should be blamed.
pub(super) struct Row<T> {
    pub(super) name: Box<str>,
    pub(super) place: Place,
    pub(super) content: Option<T>,
}

/// The rows and tables of all files, in the order in which they were read.
#[derive(Default)]
pub(super) struct Draft {
    pub(super) listen: Single<Listen>,
    pub(super) store: Single<StoreConfig>,
    pub(super) shared: Single<SharedConfig>,
    pub(super) billing: Single<BillingConfig>,
    pub(super) limits: Single<Limits>,
    pub(super) admin: Single<Secret>,
    pub(super) dashboard: Single<DashboardConfig>,
    pub(super) telemetry: Single<Option<TracesConfig>>,
    pub(super) payment: Single<Payment>,
    pub(super) plans: Vec<Row<PlanRow>>,
    pub(super) providers: Vec<Row<ProviderRow>>,
    pub(super) models: Vec<Row<ModelRow>>,
}

/// A table that stands in one file at most.
pub(super) struct Single<T> {
    place: Option<Place>,
    content: Option<T>,
}

impl<T> Default for Single<T> {
    fn default() -> Self {
        Self { place: None, content: None }
    }
}

impl<T> Single<T> {
    fn read(&mut self, value: Option<Value<'_>>, read: impl FnOnce(&Value<'_>) -> Option<T>) {
        let Some(value) = value else { return };
        if let Some(first) = self.place.replace(value.place().clone()) {
            value.report(format_args!("stands in {first} already; put both into one"));
        }
        self.content = read(&value);
    }

    /// Where it stands, if it does.
    pub(super) fn place(&self) -> Option<&Place> {
        self.place.as_ref()
    }

    pub(super) fn content(&self) -> Option<&T> {
        self.content.as_ref()
    }

    pub(super) fn into_content(self) -> Option<T> {
        self.content
    }
}

impl Draft {
    /// Reads a file and what it includes. Mistakes go to `reading`.
    pub(super) fn read(path: &Path, reading: &Reading<'_>) -> Self {
        let mut draft = Self::default();
        let place = Place { file: path.into(), line: 1 };
        if let Some(text) = text(path, reading, |what| {
            reading.mistakes.report_torn(&place, format!("{what}; name an existing file with --config"));
        }) {
            draft.add_file(path, &text, reading, 0);
        }
        draft
    }

    fn add_file(&mut self, path: &Path, text: &str, reading: &Reading<'_>, depth: usize) {
        let source = Source::new(path, text, reading);
        let (root, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            let place = source.place(error.span().map_or(0, |span| span.start));
            reading.mistakes.report_torn(&place, format!("is not TOML: {}; mend the line", error.message()));
        }
        let root = Table::root(&source, root.get_ref());
        let includes = root.optional("include");
        self.listen.read(root.optional("listen"), listen::read);
        self.store.read(root.optional("store"), settings::store);
        self.billing.read(root.optional("billing"), settings::billing);
        self.limits.read(root.optional("limits"), settings::limits);
        self.admin.read(root.optional("admin"), settings::admin);
        self.dashboard.read(root.optional("dashboard"), dashboard::read);
        self.telemetry.read(root.optional("telemetry"), telemetry::read);
        self.payment.read(root.optional("payment"), payment::read);
        self.shared.read(root.optional("shared"), shared::read);
        add_rows(&mut self.plans, root.optional("plan"), plan::read);
        add_rows(&mut self.providers, root.optional("provider"), provider::read);
        add_rows(&mut self.models, root.optional("model"), model::read);
        root.finish();
        for include in includes.and_then(|value| value.items()).unwrap_or_default() {
            self.add_include(&include, reading, depth + 1);
        }
    }

    fn add_include(&mut self, include: &Value<'_>, reading: &Reading<'_>, depth: usize) {
        let Some(path) = include.string().map(|path| include.source.resolve(path)) else { return };
        if reading.files.borrow().contains(&path) {
            return include.report("this file has been read already; include it once");
        }
        if depth > INCLUDE_DEPTH_MAX {
            return include.report(format_args!(
                "files include files more than {INCLUDE_DEPTH_MAX} deep; name the file in the first one instead"
            ));
        }
        let shown = path.display();
        let torn = |what: String| {
            reading.mistakes.report_torn(
                include.place(),
                format!("include: {what}; {shown} should be a readable file, relative to the folder of this one"),
            );
        };
        if let Some(text) = text(&path, reading, torn) {
            self.add_file(&path, &text, reading, depth);
        }
    }
}

/// A file's text. `torn` is told why there is none.
fn text(path: &Path, reading: &Reading<'_>, torn: impl FnOnce(String)) -> Option<String> {
    let bytes = match reading.files.borrow_mut().read(path) {
        Ok(bytes) => bytes,
        Err(error) => {
            torn(format!("cannot be read: {error}"));
            return None;
        }
    };
    match String::from_utf8(bytes) {
        Ok(text) => Some(text),
        Err(error) => {
            let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let line = 1 + memchr::memchr_iter(b'\n', before).count();
            let place = Place { file: path.into(), line };
            reading.mistakes.report_torn(&place, "is not UTF-8; save the file as UTF-8");
            None
        }
    }
}

/// Reads `[[rows]]`; names must differ.
fn add_rows<T>(rows: &mut Vec<Row<T>>, value: Option<Value<'_>>, read: impl Fn(&Value<'_>) -> Option<Row<T>>) {
    let Some(value) = value else { return };
    let Some(items) = value.rows() else { return };
    let mistakes: &Mistakes = &value.source.reading.mistakes;
    for row in items.iter().filter_map(read) {
        if let Some(first) = rows.iter().find(|other| other.name == row.name) {
            let what =
                format!("{} {:?} stands in {} already; rename or remove one", value.name(), row.name, first.place);
            mistakes.report(&row.place, what);
        }
        rows.push(row);
    }
}
