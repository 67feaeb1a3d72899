//! The new process's side.

use std::collections::HashMap;
use std::io;
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;

use super::place::Place;
use super::wire::{FromNew, FromOld, Wire, say};
use crate::proxy::Shared;
use crate::relay::auth::KeyEntry;

/// How long the old process may take for an answer.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// The process that runs already.
pub(in crate::proxy) struct Predecessor {
    wire: Wire,
    keys: Vec<String>,
}

impl Predecessor {
    /// Finds it, and gets its sockets.
    ///
    /// # Errors
    /// There is none, or it does not hand over.
    pub(in crate::proxy) fn meet(place: &Place) -> io::Result<(Self, Vec<TcpListener>)> {
        let mut wire = Wire::new(place.reach()?)?;
        wire.set_patience(Some(ANSWER_MAX))?;
        let sockets = wire.receive_sockets()?;
        let FromOld::Keys(keys) = wire.receive()? else { return Err(out_of_order()) };
        Ok((Self { wire, keys }, sockets))
    }

    /// Takes over. When it returns, the doors are this process's.
    ///
    /// # Errors
    /// The other one serves on.
    pub(in crate::proxy) fn take_over(self, shared: &Shared, runtime: &Handle) -> io::Result<Link> {
        let Self { mut wire, keys } = self;
        let mut entries = HashMap::with_capacity(keys.len());
        for key in keys {
            if let Some(entry) = runtime.block_on(shared.keyring.named(&key)) {
                entries.insert(key, entry);
            }
        }
        wire.send(&FromNew::Ready)?;
        let FromOld::Stopped(taken) = wire.receive()? else { return Err(out_of_order()) };
        let now_us = shared.clock.now_us();
        for (key, taken) in taken {
            if !entries.contains_key(&key)
                && let Some(entry) = runtime.block_on(shared.keyring.named(&key))
            {
                entries.insert(key.clone(), entry);
            }
            if let Some(entry) = entries.get(&key) {
                entry.limiter.inherit(&taken, now_us);
            }
        }
        // All that the other has admitted is in the spool by now.
        runtime.block_on(shared.keyring.look_elsewhere()).map_err(io::Error::other)?;
        wire.send(&FromNew::Take)?;
        let FromOld::Yours = wire.receive()? else { return Err(out_of_order()) };
        Link::start(wire, entries)
    }
}

/// What connects a process with the one that it has succeeded, for as long as that lives.
pub(in crate::proxy) struct Link {
    is_gone: Arc<AtomicBool>,
    speaker: UnixStream,
}

impl Link {
    fn start(mut wire: Wire, entries: HashMap<String, Arc<KeyEntry>>) -> io::Result<Self> {
        wire.set_patience(None)?;
        let speaker = wire.speaker()?;
        let is_gone = Arc::new(AtomicBool::new(false));
        let gone = Arc::clone(&is_gone);
        std::thread::Builder::new().name("predecessor".into()).spawn(move || {
            while let Ok(FromOld::Running(running)) = wire.receive() {
                for (key, entry) in &entries {
                    entry.limiter.set_running_elsewhere(running.get(key).copied().unwrap_or(0));
                }
            }
            entries.values().for_each(|entry| entry.limiter.set_running_elsewhere(0));
            gone.store(true, Ordering::Release);
            tracing::info!("the process that was taken over from has ended");
        })?;
        Ok(Self { is_gone, speaker })
    }

    /// Whether the other has ended.
    pub(in crate::proxy) fn is_gone(&self) -> bool {
        self.is_gone.load(Ordering::Acquire)
    }

    /// Tells the other to end.
    pub(in crate::proxy) fn end(&self) {
        // It may have.
        let _ = say(&self.speaker, &FromNew::End);
    }
}

fn out_of_order() -> io::Error {
    io::Error::other("the other process speaks of something else; it may be of another version")
}
