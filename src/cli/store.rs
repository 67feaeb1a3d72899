//! Opens the store that the configuration names, for commands that work on it.

use std::time::{SystemTime, UNIX_EPOCH};

use super::{Common, Failure, Outcome};
use crate::config::{self, Providers, Snapshot};
use crate::store::{Actor, Store};

/// Runs a command that needs the configuration and the store, which is created where it is not there yet. Providers
/// that lack a credential in this shell do not matter here.
pub(super) fn with_store(common: &Common, command: impl AsyncFnOnce(&Snapshot, &Store) -> Outcome) -> Outcome {
    let path = config::locate(common.config.as_deref());
    let loaded = config::load(&path, Providers::OnlyReady).map_err(|mistakes| Failure::of_mistakes(&mistakes))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let store = by_user(&Store::open(&loaded.snapshot.store.url).await?);
        let outcome = command(&loaded.snapshot, &store).await;
        store.close().await;
        outcome
    })
}

/// The store, changed in the name of whoever runs this command.
pub(super) fn by_user(store: &Store) -> Store {
    store.in_the_name_of(Actor::Cli(user().into()))
}

/// The name of the Unix user, or its number where the machine's own list has none for it.
fn user() -> String {
    let id = rustix::process::getuid().as_raw().to_string();
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    name_of(&id, &users).unwrap_or(&id).to_owned()
}

fn name_of<'a>(id: &str, users: &'a str) -> Option<&'a str> {
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == id).then_some(name)
    })
}

/// Milliseconds since the Unix epoch.
pub(super) fn now_ms() -> i64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::name_of;

    #[test]
    fn users_are_known_by_their_whole_number() {
        let users = "root:x:0:0:root:/root:/bin/bash\nbroken\nada:x:1000:1000::/home/ada:/bin/sh\n";
        assert_eq!(name_of("1000", users), Some("ada"));
        assert_eq!((name_of("0", users), name_of("100", users)), (Some("root"), None));
    }
}
