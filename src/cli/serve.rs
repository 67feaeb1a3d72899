//! `tollgate serve`: the relay.

use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;

use super::{Common, Failure, Outcome, process};
use crate::config::{self, Live, Providers};
use crate::proxy;

#[derive(Debug, Args)]
pub(super) struct Serve {}

impl Serve {
    pub(super) fn run(&self, common: &Common) -> Outcome {
        process::log_to_stderr();
        process::raise_descriptor_limit();
        let path = config::locate(common.config.as_deref());
        let loaded = config::load(&path, Providers::All).map_err(|mistakes| Failure::of_mistakes(&mistakes))?;
        let live = Arc::new(Live::new(path, Providers::All, loaded));
        let runtime = process::runtime()?;
        let store = process::open_store(&runtime, &live.load().store.url)?;
        let served = proxy::serve(live, store, &runtime, || tracing::info!("serving"));
        process::end(runtime);
        served?;
        Ok(ExitCode::SUCCESS)
    }
}
