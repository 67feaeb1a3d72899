//! What systemd is told of the process, by the datagrams of sd_notify(3), and the watchdog that only a process feeds that works.
//!
//! The protocol is a line to a socket that the environment names. A crate for it would bring more code than this has. Who is not run by
//! systemd tells nobody.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::Handle;

/// Whom to tell.
#[derive(Debug, Clone, Default)]
pub(super) struct Notifier(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    socket: UnixDatagram,
    /// Another process speaks now.
    is_silent: AtomicBool,
}

impl Notifier {
    /// Tells whom the environment names.
    pub(super) fn from_environment() -> Self {
        let Some(name) = std::env::var("NOTIFY_SOCKET").ok().filter(|name| !name.is_empty()) else {
            return Self::default();
        };
        match connect(&name) {
            Ok(socket) => Self(Some(Arc::new(Inner { socket, is_silent: AtomicBool::new(false) }))),
            Err(error) => {
                tracing::warn!(%error, "NOTIFY_SOCKET cannot be reached; the service manager is told nothing");
                Self::default()
            }
        }
    }

    /// Says nothing as long as another process is the service.
    pub(super) fn set_silent(&self, is_silent: bool) {
        if let Some(inner) = &self.0 {
            inner.is_silent.store(is_silent, Ordering::Release);
        }
    }

    /// The service is up: clients are let in, or a reload is over.
    pub(super) fn ready(&self) {
        self.say("READY=1\nSTATUS=Serving");
    }

    /// The configuration is being read anew; [`Notifier::ready`] follows.
    pub(super) fn reloading(&self) {
        let now = clock_gettime(ClockId::Monotonic);
        let us = now.tv_sec.saturating_mul(1_000_000).saturating_add(now.tv_nsec / 1000);
        self.say(&format!("RELOADING=1\nMONOTONIC_USEC={us}\nSTATUS=Reading the configuration"));
    }

    /// The process ends.
    pub(super) fn stopping(&self) {
        self.say("STOPPING=1\nSTATUS=Requests under way are finished");
    }

    /// Another process is the service from now on, and this one says nothing any more.
    pub(super) fn succeeded_by(&self, pid: u32) {
        self.say(&format!("MAINPID={pid}"));
        self.set_silent(true);
    }

    /// The other process was not heard of again; this one goes on being the service.
    pub(super) fn not_succeeded(&self) {
        self.set_silent(false);
        self.say(&format!("MAINPID={}", std::process::id()));
    }

    /// The process works.
    fn alive(&self) {
        self.say("WATCHDOG=1");
    }

    fn say(&self, text: &str) {
        let Some(inner) = &self.0 else { return };
        if inner.is_silent.load(Ordering::Acquire) {
            return;
        }
        if let Err(error) = inner.socket.send(text.as_bytes()) {
            tracing::warn!(%error, "the service manager could not be told");
        }
    }
}

fn connect(name: &str) -> io::Result<UnixDatagram> {
    let address = match name.strip_prefix('@') {
        Some(hidden) => SocketAddr::from_abstract_name(hidden)?,
        None => SocketAddr::from_pathname(name)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    // A manager that does not read is no reason to stand still.
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// A runtime, once it is there.
pub(super) type Runtime = Arc<OnceLock<Handle>>;

/// Feeds the service manager's watchdog, where there is one: twice as often as it asks for, and only after every runtime has done
/// something since the last time.
#[derive(Debug)]
pub(super) struct Watchdog {
    notifier: Notifier,
    runtimes: Vec<Runtime>,
    every: Option<Duration>,
    next: Instant,
    asked: Option<Asked>,
}

/// A question to all runtimes.
#[derive(Debug)]
struct Asked {
    silent: Arc<AtomicUsize>,
}

impl Watchdog {
    /// As often as the environment says.
    pub(super) fn new(notifier: Notifier, runtimes: Vec<Runtime>, now: Instant) -> Self {
        let read = |name: &str| std::env::var(name).ok()?.parse().ok();
        let is_ours = read("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let every = read("WATCHDOG_USEC").filter(|us| is_ours && *us > 0).map(|us| Duration::from_micros(us) / 2);
        Self { notifier, runtimes, every, next: now, asked: None }
    }

    /// Looks once what is due. `works`: whether all else that it stands for does.
    pub(super) fn turn(&mut self, now: Instant, works: bool) {
        let Some(every) = self.every else { return };
        let has_answered = self.asked.take_if(|asked| asked.silent.load(Ordering::Acquire) == 0).is_some();
        if has_answered && works {
            self.notifier.alive();
        }
        let have_begun = self.runtimes.iter().all(|runtime| runtime.get().is_some());
        if self.asked.is_none() && have_begun && now >= self.next {
            self.next = now + every;
            self.asked = Some(self.ask());
        }
    }

    fn ask(&self) -> Asked {
        let silent = Arc::new(AtomicUsize::new(self.runtimes.len()));
        for runtime in self.runtimes.iter().filter_map(|runtime| runtime.get()) {
            let silent = Arc::clone(&silent);
            runtime.spawn(async move { silent.fetch_sub(1, Ordering::AcqRel) });
        }
        Asked { silent }
    }
}

#[cfg(test)]
mod tests {
    use tokio::runtime::Builder;

    use super::*;

    /// What was said since the last look.
    fn heard(manager: &UnixDatagram) -> Vec<String> {
        let mut heard = Vec::new();
        let mut text = [0; 256];
        while let Ok(length) = manager.recv(&mut text) {
            heard.push(String::from_utf8_lossy(&text[..length]).into_owned());
        }
        heard
    }

    fn manager() -> (UnixDatagram, Notifier) {
        let (manager, socket) = UnixDatagram::pair().unwrap();
        manager.set_nonblocking(true).unwrap();
        (manager, Notifier(Some(Arc::new(Inner { socket, is_silent: AtomicBool::new(false) }))))
    }

    #[test]
    fn who_was_succeeded_says_so_and_nothing_more() {
        let (manager, notifier) = manager();
        notifier.ready();
        notifier.succeeded_by(7);
        notifier.stopping();
        assert_eq!(heard(&manager), ["READY=1\nSTATUS=Serving", "MAINPID=7"]);
    }

    #[test]
    fn the_watchdog_is_fed_only_when_every_runtime_answers_and_all_else_works() {
        let (manager, notifier) = manager();
        let runtimes = [(); 2].map(|()| Builder::new_current_thread().build().unwrap());
        let handles = runtimes.iter().map(|runtime| Arc::new(OnceLock::from(runtime.handle().clone()))).collect();
        let work = |runtime: &tokio::runtime::Runtime| runtime.block_on(async { tokio::task::yield_now().await });
        let (start, every) = (Instant::now(), Duration::from_secs(5));
        let mut watchdog = Watchdog { notifier, runtimes: handles, every: Some(every), next: start, asked: None };
        watchdog.turn(start, true);
        work(&runtimes[0]);
        watchdog.turn(start, true);
        assert_eq!(heard(&manager), [""; 0], "one of them stands still");
        work(&runtimes[1]);
        watchdog.turn(start, true);
        assert_eq!(heard(&manager), ["WATCHDOG=1"]);
        watchdog.turn(start + every / 2, true);
        runtimes.iter().for_each(work);
        watchdog.turn(start + every / 2, true);
        assert_eq!(heard(&manager), [""; 0], "not before it is time");
        watchdog.turn(start + every, true);
        runtimes.iter().for_each(work);
        watchdog.turn(start + every, false);
        assert_eq!(heard(&manager), [""; 0], "something else failed");
    }
}
