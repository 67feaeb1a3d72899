//! What the commands that run the relay set up first.

use tokio::runtime::{Builder, Runtime};
use tracing_subscriber::EnvFilter;

use super::Failure;
use crate::store::Store;

/// Diagnostics go to stderr, by `RUST_LOG` where it is set. Pingora's own are kept to what it warns of: what becomes of
/// requests is logged where it is decided.
const LOGGED: &str = "info,pingora_core=warn,pingora_proxy=error,sqlx=warn";

pub(super) fn log_to_stderr() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(LOGGED));
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).try_init();
}

/// The runtime of what outlives requests: billing and the watch over the store.
pub(super) fn runtime() -> Result<Runtime, Failure> {
    Ok(Builder::new_multi_thread().worker_threads(2).thread_name("background").enable_all().build()?)
}

pub(super) fn open_store(runtime: &Runtime, url: &str) -> Result<Store, Failure> {
    Ok(runtime.block_on(Store::open(url))?)
}
