//! SIGUSR2: the new process is started, by the old one.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};

use super::Upgrade;
use crate::proxy::Shared;

/// Starts the binary that is at this one's path, with its own arguments.
#[derive(Debug, Clone)]
pub(in crate::proxy) struct Launcher(Option<Upgrade>);

impl Launcher {
    pub(in crate::proxy) fn new(upgrade: Option<Upgrade>) -> Self {
        Self(upgrade)
    }

    /// Starts one who starts the new process and ends, so that nobody but the service manager is its parent. What is wrong with the
    /// new one, it says itself.
    fn launch(&self) {
        let Some(Upgrade { config, executable, .. }) = &self.0 else {
            tracing::error!("SIGUSR2: only `serve` can be upgraded while it runs");
            return;
        };
        tracing::info!(executable = %executable.display(), "SIGUSR2: a new process is started");
        match command(executable, config).status() {
            Ok(ended) if ended.success() => {}
            Ok(ended) => tell_failure(&format!("it ended with {ended}")),
            Err(error) => tell_failure(&error.to_string()),
        }
    }
}

fn tell_failure(why: &str) {
    tracing::error!(why, "a new process could not be started; this one serves on");
}

fn command(executable: &Path, config: &Path) -> Command {
    let mut command = Command::new(executable);
    command.args(["serve", "--upgrade", "--detach", "--config"]).arg(config).stdin(Stdio::null());
    // It names this process.
    command.env_remove("WATCHDOG_PID");
    command
}

/// Starts the process that `serve --upgrade --detach` asks for, and leaves it.
///
/// # Errors
/// It cannot be started.
pub fn detach(upgrade: &Upgrade) -> std::io::Result<()> {
    let mut command = Command::new(&upgrade.executable);
    command.args(["serve", "--upgrade", "--config"]).arg(&upgrade.config).stdin(Stdio::null());
    command.spawn().map(drop)
}

/// Starts a new process whenever the signal comes, for ever.
pub(in crate::proxy) async fn watch_for_upgrades(launcher: Launcher, shared: Arc<Shared>) {
    let Ok(mut signals) = signal(SignalKind::user_defined2()) else {
        tracing::error!("SIGUSR2 cannot be received; there is no upgrade without a restart");
        return;
    };
    while signals.recv().await.is_some() {
        if shared.stage.is_leaving() {
            tracing::warn!("SIGUSR2: this process is on its way out; signal the one that has taken over");
            continue;
        }
        let launcher = launcher.clone();
        let _ = tokio::task::spawn_blocking(move || launcher.launch()).await;
    }
}
