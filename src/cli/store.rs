//! Opens the store that the configuration names, for commands that work on it.

use std::time::{SystemTime, UNIX_EPOCH};

use super::{Common, Failure, Outcome};
use crate::config::{self, Providers, Snapshot};
use crate::store::Store;

/// Runs a command that needs the configuration and the store, which is created where it is not there yet. Providers
/// that lack a credential in this shell do not matter here.
pub(super) fn with_store(common: &Common, command: impl AsyncFnOnce(&Snapshot, &Store) -> Outcome) -> Outcome {
    let path = config::locate(common.config.as_deref());
    let loaded = config::load(&path, Providers::OnlyReady).map_err(|mistakes| Failure::of_mistakes(&mistakes))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let store = Store::open(&loaded.snapshot.store.url).await?;
        let outcome = command(&loaded.snapshot, &store).await;
        store.close().await;
        outcome
    })
}

/// Fails with the names of the plans that there are, unless the plan is one of them.
pub(super) fn require_plan(snapshot: &Snapshot, plan: &str) -> Result<(), Failure> {
    if snapshot.catalogue.plan(plan).is_some() {
        return Ok(());
    }
    let names = snapshot.catalogue.plan_names().join(", ");
    Err(Failure(format!("there is no plan {plan:?}; the configuration has: {names}")))
}

/// Milliseconds since the Unix epoch.
pub(super) fn now_ms() -> i64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX)
}
