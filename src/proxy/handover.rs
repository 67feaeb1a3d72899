//! One process takes over from another, and no client notices.
//!
//! ```text
//! old                                       new
//! ── the listening sockets, keys in use ──►   opens the store and the spool, looks the keys up
//! ◄──────────────────────────────── ready
//! lets nobody in; has its requests' rows
//! written, by which others see what they hold
//! ── what is taken of the keys' limits ───►   takes that over, and reads what is held elsewhere
//! ◄───────────────────────────────── take
//! ── yours ───────────────────────────────►   lets clients in
//! ── how many requests still run, by key ─►   counts them in the keys' concurrency
//! ◄────────────────────────────────── end     when it is told to end itself
//! ```
//!
//! Until it has said `yours`, the old process opens its doors again at whatever goes wrong. Who comes meanwhile waits in the sockets'
//! queues, which both processes share.
//!
//! The two meet at a socket in a folder that is the user's alone, under a name that follows from the configuration's path.

mod giving;
mod launch;
mod place;
mod taking;
mod wire;

use std::path::PathBuf;

pub(super) use self::giving::Giver;
pub use self::launch::detach;
pub(super) use self::launch::{Launcher, watch_for_upgrades};
pub(super) use self::place::Place;
pub(super) use self::taking::{Link, Predecessor};

/// How a process succeeds another, and is succeeded itself.
#[derive(Debug, Clone)]
pub struct Upgrade {
    /// The configuration, as the process was told of it: who has the same succeeds it.
    pub config: PathBuf,
    /// The binary that is started at SIGUSR2.
    pub executable: PathBuf,
    /// Whether there is a process to succeed.
    pub takes_over: bool,
}
