//! What the commands that run the relay set up first.

use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::runtime::{Builder, Runtime};
use tracing_subscriber::EnvFilter;

use super::Failure;
use crate::store::Store;

/// What is logged where `RUST_LOG` says nothing.
const LOGGED: &str = "info,sqlx=warn";
/// What is never logged, whatever `RUST_LOG` says: these show heads and bodies as they pass, and so credentials and prompts.
/// What becomes of requests is logged where it is decided.
const KEPT_QUIET: [&str; 6] =
    ["pingora_core=warn", "pingora_proxy=error", "h2=warn", "rustls=warn", "ureq=warn", "ureq_proto=warn"];

/// How long threads that block may take at the end.
const LAST_THREADS_MAX: Duration = Duration::from_secs(1);

/// Diagnostics go to stderr.
pub(super) fn log_to_stderr() {
    let mut filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(LOGGED));
    for directive in KEPT_QUIET {
        if let Ok(directive) = directive.parse() {
            filter = filter.add_directive(directive);
        }
    }
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).try_init();
}

/// Each request in flight has two sockets, and a login shell's limit is 1,024. What the system allows is made use of.
pub(super) fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(%error, limit = limit.current, "the limit of open files cannot be raised");
    }
}

/// The runtime of what outlives requests: billing and the watch over the store.
pub(super) fn runtime() -> Result<Runtime, Failure> {
    Ok(Builder::new_multi_thread().worker_threads(2).thread_name("background").enable_all().build()?)
}

/// Ends it. Whoever did not answer in time holds a thread for half a minute more, which is not waited for: it is asked again at the
/// next start.
pub(super) fn end(runtime: Runtime) {
    runtime.shutdown_timeout(LAST_THREADS_MAX);
}

pub(super) fn open_store(runtime: &Runtime, url: &str) -> Result<Store, Failure> {
    Ok(runtime.block_on(Store::open(url))?)
}
