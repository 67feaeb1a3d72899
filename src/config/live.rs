//! The configuration in force: read by every request without a lock, swapped whole when a good new one is there.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::MissedTickBehavior;

use super::files::Files;
use super::{Loaded, Mistake, Providers, Refused, Snapshot};

/// How often the files are looked at. A change is taken up at the second look that finds it unchanged.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// The configuration in force, and how it is renewed.
#[derive(Debug)]
pub struct Live {
    path: PathBuf,
    providers: Providers,
    current: ArcSwap<Snapshot>,
    /// Why the last reload was refused; empty after a good one.
    refused: ArcSwapOption<Vec<Mistake>>,
    /// The files as they were when they were last read, for good or bad. Locked for as long as a reload takes.
    files: Mutex<Files>,
}

/// A reload that was taken up.
#[derive(Debug)]
pub struct Reloaded {
    /// The configuration that is now in force.
    pub snapshot: Arc<Snapshot>,
    /// What [`Providers::OnlyReady`] left out and why, a line each.
    pub left_out: Vec<String>,
    /// Settings that changed but are only taken up when the process starts: `listen.http`, `store` and their like.
    pub needs_restart: Vec<&'static str>,
}

impl Live {
    /// Puts a configuration in force. `path` and `providers` are those it was loaded with, for reloads.
    pub fn new(path: PathBuf, providers: Providers, loaded: Loaded) -> Self {
        Self {
            path,
            providers,
            current: ArcSwap::from_pointee(loaded.snapshot),
            refused: ArcSwapOption::empty(),
            files: Mutex::new(loaded.files),
        }
    }

    /// The configuration in force. A request takes it once and keeps it.
    pub fn load(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Why the last reload was refused, while the one before it stays in force. `None` when all is well.
    pub fn refused(&self) -> Option<Arc<Vec<Mistake>>> {
        self.refused.load_full()
    }

    /// Reads the files anew and swaps the result in. Blocks on the file system.
    ///
    /// # Errors
    /// Every mistake of the new configuration; the old one stays in force, whole.
    pub fn reload(&self) -> Result<Reloaded, Vec<Mistake>> {
        let mut files = self.files();
        match super::read(&self.path, self.providers, &|name| std::env::var_os(name)) {
            Ok(mut loaded) => {
                let running = self.load();
                loaded.snapshot.catalogue.inherit(&running.catalogue);
                let snapshot = Arc::new(Snapshot { version: running.version + 1, ..loaded.snapshot });
                self.current.store(Arc::clone(&snapshot));
                self.refused.store(None);
                *files = loaded.files;
                let needs_restart = snapshot.needs_restart_after(&running);
                Ok(Reloaded { snapshot, left_out: loaded.left_out, needs_restart })
            }
            Err(Refused { mistakes, files: read }) => {
                self.refused.store(Some(Arc::new(mistakes.clone())));
                *files = read;
                Err(mistakes)
            }
        }
    }

    fn files(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Decides when changed files have come to rest: a file is not read while it is being written, as half of a
/// configuration may be a good one.
#[derive(Debug, Default)]
struct Watcher {
    seen: Option<Files>,
}

impl Watcher {
    /// Looks once. Whether there is a change, the same as at the last look.
    fn is_at_rest_after_change(&mut self, live: &Live) -> bool {
        let now = live.files().changed();
        let at_rest = now.is_some() && now == self.seen;
        self.seen = now;
        at_rest
    }
}

/// Renews the configuration for ever: at SIGHUP, and when any file that was read for it has changed. Files are looked
/// at rather than subscribed to, so that renames, swapped links and network file systems are all the same to it.
///
/// Registers for SIGHUP at once when first polled; until then the signal ends the process. `on_hangup` is called before the files are
/// read for it, `on_reload` after they were read for whatever reason.
pub async fn watch(live: Arc<Live>, on_hangup: impl Fn(), on_reload: impl Fn(&Result<Reloaded, Vec<Mistake>>)) {
    let mut hangups = match signal(SignalKind::hangup()) {
        Ok(hangups) => Some(hangups),
        Err(error) => {
            tracing::error!(%error, "SIGHUP cannot be received; only changed files reload the configuration");
            None
        }
    };
    let mut looks = tokio::time::interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut watcher = Watcher::default();
    loop {
        let asked_for = tokio::select! {
            () = hangup(&mut hangups) => true,
            _ = looks.tick() => false,
        };
        if asked_for {
            on_hangup();
        }
        let live = Arc::clone(&live);
        let blocking = tokio::task::spawn_blocking(move || {
            let outcome = (watcher.is_at_rest_after_change(&live) || asked_for).then(|| live.reload());
            (watcher, outcome)
        });
        match blocking.await {
            Ok((returned, outcome)) => {
                watcher = returned;
                if let Some(outcome) = outcome {
                    on_reload(&outcome);
                }
            }
            Err(error) => {
                // Only when the runtime goes down.
                tracing::error!(%error, "the configuration is no longer watched");
                return;
            }
        }
    }
}

async fn hangup(hangups: &mut Option<Signal>) {
    let received = match hangups {
        Some(hangups) => hangups.recv().await,
        None => None,
    };
    if received.is_none() {
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const GOOD: &str = "include = ['rest.toml']\n[listen]\nhttp = '127.0.0.1:0'\n";
    const REST: &str = "[[plan]]\nname = 'free'\nrequests_per_minute = 30\n";

    fn live(folder: &Path) -> Live {
        std::fs::write(folder.join("tollgate.toml"), GOOD).unwrap();
        std::fs::write(folder.join("rest.toml"), REST).unwrap();
        let path = folder.join("tollgate.toml");
        let loaded = super::super::load(&path, Providers::All).unwrap();
        Live::new(path, Providers::All, loaded)
    }

    #[test]
    fn a_good_reload_is_swapped_in_and_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let live = live(folder.path());
        let before = live.load();
        std::fs::write(folder.path().join("rest.toml"), REST.replace("30", "31")).unwrap();
        let reloaded = live.reload().unwrap();
        assert_eq!((before.version, reloaded.snapshot.version, live.load().version), (1, 2, 2));
        assert_eq!(before.catalogue.plan("free").unwrap().requests_per_minute, 30, "kept by who holds it");
        assert_eq!(live.load().catalogue.plan("free").unwrap().requests_per_minute, 31);
        assert_eq!(reloaded.needs_restart, [""; 0]);
    }

    #[test]
    fn a_bad_reload_changes_nothing_but_is_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let live = live(folder.path());
        std::fs::write(folder.path().join("rest.toml"), REST.replace("30", "0")).unwrap();
        let mistakes = live.reload().unwrap_err();
        assert_eq!(mistakes.len(), 1);
        assert_eq!((mistakes[0].file.as_path(), mistakes[0].line), (&*folder.path().join("rest.toml"), 3));
        assert_eq!(live.load().version, 1);
        assert_eq!(live.load().catalogue.plan("free").unwrap().requests_per_minute, 30);
        assert_eq!(*live.refused().unwrap(), mistakes);

        std::fs::write(folder.path().join("rest.toml"), REST).unwrap();
        live.reload().unwrap();
        assert_eq!((live.load().version, live.refused()), (2, None));
    }

    #[test]
    fn settings_for_which_a_restart_is_needed_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let live = live(folder.path());
        let more = "h2c = true\n[store]\nurl = 'sqlite://elsewhere.db'\n[limits]\nheader_seconds_max = 3\n\
                    [shared]\nredis = 'redis://127.0.0.1:6379'\n\
                    [telemetry.traces]\nendpoint = 'http://127.0.0.1:4318'\n";
        std::fs::write(folder.path().join("tollgate.toml"), format!("{GOOD}{more}")).unwrap();
        assert_eq!(live.reload().unwrap().needs_restart, ["listen.h2c", "store", "shared", "telemetry"]);
    }

    #[test]
    fn a_change_is_taken_up_once_it_rests() {
        let folder = tempfile::tempdir().unwrap();
        let live = live(folder.path());
        let rest = folder.path().join("rest.toml");
        let mut watcher = Watcher::default();
        assert!(!watcher.is_at_rest_after_change(&live), "nothing changed");
        std::fs::write(&rest, "[[pl").unwrap();
        assert!(!watcher.is_at_rest_after_change(&live), "first seen");
        std::fs::write(&rest, REST.replace("30", "310")).unwrap();
        assert!(!watcher.is_at_rest_after_change(&live), "still being written");
        assert!(watcher.is_at_rest_after_change(&live), "at rest");
        live.reload().unwrap();
        assert!(!watcher.is_at_rest_after_change(&live), "taken up");
    }

    #[test]
    fn a_refused_configuration_is_watched_as_well() {
        let folder = tempfile::tempdir().unwrap();
        let live = live(folder.path());
        let added = folder.path().join("added.toml");
        std::fs::write(folder.path().join("tollgate.toml"), GOOD.replace("rest.toml", "added.toml")).unwrap();
        live.reload().unwrap_err();
        let mut watcher = Watcher::default();
        assert!(!watcher.is_at_rest_after_change(&live), "a refused one is not tried again and again");
        std::fs::write(&added, REST).unwrap();
        assert!(!watcher.is_at_rest_after_change(&live));
        assert!(watcher.is_at_rest_after_change(&live), "the file that was missing");
        live.reload().unwrap();
    }

    /// A task that is spawned must be one that threads can pass on.
    fn spawnable(task: impl Future<Output = ()> + Send) -> impl Future<Output = ()> + Send {
        task
    }

    #[tokio::test]
    async fn watching_reloads_by_itself() {
        let folder = tempfile::tempdir().unwrap();
        let live = Arc::new(live(folder.path()));
        std::fs::write(folder.path().join("rest.toml"), REST.replace("30", "300")).unwrap();
        let (told, mut outcomes) = tokio::sync::mpsc::unbounded_channel();
        let watching = spawnable(watch(
            Arc::clone(&live),
            || {},
            move |outcome| {
                let _ = told.send(outcome.is_ok());
            },
        ));
        tokio::select! {
            () = watching => {}
            outcome = outcomes.recv() => assert_eq!(outcome, Some(true)),
        }
        assert_eq!(live.load().catalogue.plan("free").unwrap().requests_per_minute, 300);
    }

    #[tokio::test]
    async fn a_hangup_reloads_what_has_not_changed() {
        let folder = tempfile::tempdir().unwrap();
        let live = Arc::new(live(folder.path()));
        let (told, mut outcomes) = tokio::sync::mpsc::unbounded_channel();
        let watching = watch(
            Arc::clone(&live),
            || {},
            move |outcome| {
                let _ = told.send(outcome.is_ok());
            },
        );
        let hang_up = async {
            let kill = format!("kill -HUP {}", std::process::id());
            assert!(std::process::Command::new("sh").args(["-c", &kill]).status().unwrap().success());
            outcomes.recv().await
        };
        tokio::select! {
            // In this order: the first poll takes the signal from its default, which is to end the process.
            biased;
            () = watching => {}
            outcome = hang_up => assert_eq!(outcome, Some(true)),
        }
        assert_eq!(live.load().version, 2);
    }
}
