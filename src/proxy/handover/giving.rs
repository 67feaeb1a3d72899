//! The old process's side.

use std::collections::HashMap;
use std::io;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use super::place::Place;
use super::wire::{FromNew, FromOld, Wire, is_silence};
use crate::proxy::Shared;
use crate::proxy::doors::Sockets;
use crate::proxy::notify::Notifier;

/// How long a new process may take until it is ready. The old one serves on meanwhile.
const PREPARING_MAX: Duration = Duration::from_secs(120);
/// How long nobody is let in, before the old process serves on.
const TAKING_MAX: Duration = Duration::from_secs(5);
/// How often the new process is told what still runs.
const TELL_EVERY: Duration = Duration::from_millis(200);

/// Hands the doors over to who asks for them.
pub(in crate::proxy) struct Giver {
    pub(in crate::proxy) shared: Arc<Shared>,
    pub(in crate::proxy) sockets: Arc<Sockets>,
    pub(in crate::proxy) notifier: Notifier,
    pub(in crate::proxy) runtime: Handle,
    pub(in crate::proxy) place: Place,
}

impl Giver {
    /// Waits for a successor from now on, on a thread of its own that ends with the process. Gives the word by which the place is left
    /// at the end.
    ///
    /// # Errors
    /// The place cannot be had.
    pub(in crate::proxy) fn start(self) -> io::Result<impl FnOnce()> {
        let (place, listener) = (self.place.clone(), self.place.take()?);
        let inode = place.inode();
        std::thread::Builder::new().name("handover".into()).spawn(move || self.wait(&listener))?;
        Ok(move || place.leave(inode))
    }

    fn wait(self, listener: &UnixListener) {
        for came in listener.incoming() {
            let outcome = came.and_then(Wire::new).and_then(|mut wire| {
                self.hand_over(&mut wire)?;
                Ok(wire)
            });
            match outcome {
                Ok(wire) => return self.tell_what_runs(wire),
                Err(error) => {
                    tracing::error!(%error, "the new process did not take over; this one serves on");
                    self.shared.stage.open();
                }
            }
        }
    }

    /// Goes through all of it. After an error the doors are to be opened again.
    fn hand_over(&self, wire: &mut Wire) -> io::Result<()> {
        let shared = &self.shared;
        let pid = wire.peer_pid()?;
        tracing::info!(pid, "a new process is going to take over");
        wire.set_patience(Some(PREPARING_MAX))?;
        self.sockets.with(|sockets| wire.send_sockets(sockets))?;
        let taken = || shared.keyring.taken(shared.clock.now_us());
        wire.send(&FromOld::Keys(taken().into_keys().collect()))?;
        expect(wire, &FromNew::Ready)?;

        if !shared.stage.hold() {
            return Err(io::Error::other("this process ends already"));
        }
        let held_since = Instant::now();
        wire.set_patience(Some(TAKING_MAX))?;
        let flushed = async { tokio::time::timeout(TAKING_MAX, shared.recorder.flushed()).await };
        match self.runtime.block_on(flushed) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(io::Error::other(error)),
            Err(late) => return Err(io::Error::other(format!("the spool cannot be written: {late}"))),
        }
        wire.send(&FromOld::Stopped(taken()))?;
        expect(wire, &FromNew::Take)?;

        // First, or what the new process says would not be heard.
        self.notifier.succeeded_by(pid);
        if let Err(error) = wire.send(&FromOld::Yours) {
            self.notifier.not_succeeded();
            return Err(error);
        }
        shared.stage.hand_over(Instant::now());
        shared.recorder.joined();
        if let Some(leases) = &shared.leases {
            leases.leave_charge();
        }
        self.sockets.close();
        let (held_ms, in_flight) = (held_since.elapsed().as_millis(), shared.requests_in_flight.count());
        tracing::info!(pid, held_ms, in_flight, "the new process has taken over");
        Ok(())
    }

    /// Tells the new process how many requests run of each key, until this one ends; and ends when the other does.
    fn tell_what_runs(&self, mut wire: Wire) {
        let mut told = HashMap::new();
        let mut is_silent = wire.set_patience(Some(TELL_EVERY)).is_ok();
        while is_silent {
            let running = self.shared.keyring.running();
            if running != told {
                if wire.send(&FromOld::Running(running.clone())).is_err() {
                    return;
                }
                told = running;
            }
            is_silent = match wire.receive::<FromNew>() {
                Ok(FromNew::End) => {
                    self.shared.stage.end();
                    true
                }
                Ok(_) => false,
                Err(error) => is_silence(&error),
            };
        }
    }
}

fn expect(wire: &mut Wire, expected: &FromNew) -> io::Result<()> {
    let word: FromNew = wire.receive()?;
    if word == *expected { Ok(()) } else { Err(io::Error::other(format!("the new process said {word:?}"))) }
}
