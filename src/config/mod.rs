//! The TOML as written, checked into one immutable snapshot, watched and swapped whole.
//!
//! The way: a file and its includes are read into a `Draft` of rows (`draft`, with one file for each kind of table),
//! names are looked up across the rows (`resolve`), and the result is a [`Snapshot`]. Every mistake on that way is
//! collected with its line; reading goes on, so that one run tells them all. [`Live`] holds the snapshot in force and
//! [`watch`] renews it.
//!
//! Paths: `include`, certificates and `{ file = }` are relative to the folder of the file that names them. The store's
//! and the spool's are relative to the working directory, as data does not live beside its configuration.
//!
//! Deliberately absent: opening anything that a configuration names (`check` touches nothing), and secrets in text.

mod dashboard;
mod draft;
mod files;
mod listen;
mod live;
mod mistake;
mod model;
mod payment;
mod plan;
mod price;
mod provider;
mod reader;
mod resolve;
mod rules;
mod secret;
mod settings;
mod shared;
mod sink;
mod snapshot;
mod telemetry;

use std::cell::RefCell;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use draft::Draft;
use files::Files;
use mistake::{Mistakes, Place};
use reader::Reading;

pub use live::{Live, Reloaded, watch};
pub use mistake::Mistake;
pub use shared::{RedisConfig, SharedConfig};
pub use snapshot::{
    BillingConfig, DashboardConfig, Durability, Https, Limits, Listen, Share, SinkConfig, SinkTarget, Snapshot,
    StoreConfig, StripeConfig, TracesConfig,
};

/// Which of the providers that are written down must be usable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Providers {
    /// All of them: a credential that is not there is a mistake.
    All,
    /// Whichever are: the others are left out with their targets, and models without a target with them.
    OnlyReady,
}

/// A configuration that was read.
#[derive(Debug)]
pub struct Loaded {
    /// The configuration.
    pub snapshot: Snapshot,
    /// What [`Providers::OnlyReady`] left out and why, a line each.
    pub left_out: Vec<String>,
    /// The files as they were when they were read.
    files: Files,
}

/// Where the configuration is: the file that was asked for, else the first of the usual places that exists.
pub fn locate(explicit: Option<&Path>) -> PathBuf {
    const SYSTEM: &str = "/etc/tollgate/tollgate.toml";
    const LOCAL: &str = "./data/tollgate.toml";
    match explicit {
        Some(path) => path.to_path_buf(),
        // A place that may not even be looked at is not passed over: reading it tells why.
        None if Path::new(SYSTEM).try_exists().unwrap_or(true) => SYSTEM.into(),
        None => LOCAL.into(),
    }
}

/// Reads and checks a configuration: the file, what it includes, secrets and certificates.
///
/// # Errors
/// Every mistake that was found, in the order of files and lines.
pub fn load(path: &Path, providers: Providers) -> Result<Loaded, Vec<Mistake>> {
    read(path, providers, &|name| std::env::var_os(name)).map_err(|refused| refused.mistakes)
}

/// A configuration that cannot be used, and the files that must change before it can.
#[derive(Debug)]
struct Refused {
    mistakes: Vec<Mistake>,
    files: Files,
}

fn read(path: &Path, providers: Providers, environment: &dyn Fn(&str) -> Option<OsString>) -> Result<Loaded, Refused> {
    let reading = Reading { mistakes: Mistakes::default(), files: RefCell::default(), environment };
    let mut draft = Draft::read(path, &reading);
    check_across_tables(&draft, path, &reading.mistakes);
    let listen = std::mem::take(&mut draft.listen).into_content().unwrap_or_default();
    let shared = std::mem::take(&mut draft.shared).into_content();
    let store = std::mem::take(&mut draft.store).into_content().unwrap_or_default();
    let billing = std::mem::take(&mut draft.billing).into_content().unwrap_or_default();
    let limits = std::mem::take(&mut draft.limits).into_content().unwrap_or_default();
    let admin_token = std::mem::take(&mut draft.admin).into_content();
    let dashboard = std::mem::take(&mut draft.dashboard).into_content().unwrap_or_default();
    let traces = std::mem::take(&mut draft.telemetry).into_content().flatten();
    let payment = std::mem::take(&mut draft.payment).into_content().unwrap_or_default();
    let (catalogue, mut left_out) = resolve::catalogue(draft, providers, &reading.mistakes);
    left_out.extend(payment.left_out);
    let Reading { mistakes, files, .. } = reading;
    let files = files.into_inner();
    if !mistakes.is_empty() {
        return Err(Refused { mistakes: mistakes.into_sorted(&files.paths()), files });
    }
    let files_read = files.paths();
    let snapshot = Snapshot {
        version: 1,
        listen,
        store,
        shared,
        billing,
        limits,
        admin_token,
        dashboard,
        traces,
        stripe: payment.stripe,
        catalogue,
        files: files_read,
    };
    Ok(Loaded { snapshot, left_out, files })
}

/// What no table can know by itself.
fn check_across_tables(draft: &Draft, path: &Path, mistakes: &Mistakes) {
    if draft.listen.place().is_none() {
        let what = "[listen] is missing; add it with http = \"127.0.0.1:8080\"";
        mistakes.report_absence_anywhere(&Place { file: path.into(), line: 1 }, what);
    }
    if let (Some(place), Some(dashboard)) = (draft.dashboard.place(), draft.dashboard.content()) {
        dashboard::check(dashboard, place, &draft.plans, mistakes);
    }
    let (store, billing) = (draft.store.content(), draft.billing.content());
    let store_path = store.and_then(|store| store.url.strip_prefix("sqlite://")).map(Path::new);
    if let (Some(place), Some(billing)) = (draft.billing.place(), billing)
        && store_path == Some(&billing.spool)
    {
        mistakes.report(place, "billing.spool: is the store's own file; give the spool another");
    }
    if let (Some(place), Some(billing), Some(store_path)) = (draft.billing.place(), billing, store_path)
        && billing.sinks.iter().any(|sink| sink.path() == Some(store_path))
    {
        mistakes.report(place, "billing.sink: one of them is the store's own file; give it another path");
    }
}

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
