//! `tollgate serve`: the relay.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;

use super::{Common, Failure, Outcome, process};
use crate::config::{self, Live, Providers};
use crate::proxy::{self, Upgrade};

#[derive(Debug, Args)]
pub(super) struct Serve {
    /// Take over, without a pause, from the process that runs with the same configuration file
    ///
    /// It hands its sockets over, finishes what it is at, and ends. SIGUSR2 makes a running process start this by itself.
    #[arg(long)]
    upgrade: bool,
    /// Start the process and leave it, so that it is nobody's child
    #[arg(long, hide = true, requires = "upgrade")]
    detach: bool,
}

impl Serve {
    pub(super) fn run(&self, common: &Common) -> Outcome {
        process::log_to_stderr();
        process::raise_descriptor_limit();
        let path = config::locate(common.config.as_deref());
        let upgrade = Upgrade { config: path.clone(), executable: executable()?, takes_over: self.upgrade };
        if self.detach {
            proxy::detach(&upgrade)?;
            return Ok(ExitCode::SUCCESS);
        }
        let loaded = config::load(&path, Providers::All).map_err(|mistakes| Failure::of_mistakes(&mistakes))?;
        for why in &loaded.left_out {
            tracing::warn!("{why}");
        }
        let live = Arc::new(Live::new(path, Providers::All, loaded));
        let runtime = process::runtime()?;
        let store = process::open_store(&runtime, &live.load().store.url)?;
        let served = proxy::serve(live, store, &runtime, Some(upgrade), || tracing::info!("serving"));
        process::end(runtime);
        served?;
        Ok(ExitCode::SUCCESS)
    }
}

/// The path that this process was started by, which is where a new version will be. It is asked for at the start: later the file may be
/// another, and the system only knows that this one was deleted.
fn executable() -> Result<PathBuf, Failure> {
    let named = std::env::args_os().next().map(PathBuf::from);
    // A name without a folder was looked up in $PATH.
    match named.filter(|path| path.parent().is_some_and(|folder| folder != Path::new(""))) {
        Some(path) => Ok(path),
        None => Ok(std::env::current_exe()?),
    }
}
