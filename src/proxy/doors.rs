//! The listening sockets, and who lets clients in by them.
//!
//! Pingora accepts for itself, but cannot pause and give up its sockets to another process without a wait of seconds in which both
//! accept. So the sockets are ours, and what is accepted goes to Pingora's applications from there.

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use pingora::apps::ServerApp;
use pingora::protocols::l4::listener::Listener;
use pingora::protocols::l4::stream::Stream as TcpStream;
use pingora::server::{ListenFds, ShutdownWatch};
use pingora::services::Service;
use pingora::services::listening::Service as Listening;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::ServeError;
use super::stage::{Doorway, Stage};
use crate::config::Listen;

/// How many connections may wait to be accepted; the system may allow fewer.
const BACKLOG_MAX: i32 = 65_535;
/// How long nobody is let in after that failed: mostly there are no file descriptors left.
const AFTER_FAILURE: Duration = Duration::from_millis(200);

/// A socket that listens, and what for.
#[derive(Debug)]
struct Socket {
    name: &'static str,
    listener: TcpListener,
}

/// All sockets that the process listens on, for as long as they are its own.
#[derive(Debug)]
pub(super) struct Sockets(Mutex<Vec<Socket>>);

impl Sockets {
    /// Listens on what the configuration names. What is among `found` is taken from there; what else is there is closed.
    ///
    /// # Errors
    /// An address cannot be listened on.
    pub(super) fn open(listen: &Listen, found: Vec<TcpListener>) -> Result<Self, ServeError> {
        let mut found = VecDeque::from(found);
        let mut sockets = Vec::new();
        for (name, address) in addresses(listen) {
            let given = found.iter().position(|socket| socket.local_addr().is_ok_and(|at| at == address));
            let listener = match given.and_then(|place| found.remove(place)) {
                Some(given) => Ok(given),
                None => bind(address),
            };
            let listener = listener.map_err(|error| ServeError::Listen { name, address, error })?;
            sockets.push(Socket { name, listener });
        }
        Ok(Self(Mutex::new(sockets)))
    }

    /// The socket of a setting, for a door.
    ///
    /// # Errors
    /// The system has no file descriptor left.
    pub(super) fn of(&self, name: &str) -> io::Result<Option<TcpListener>> {
        let sockets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sockets.iter().find(|socket| socket.name == name).map(|socket| socket.listener.try_clone()).transpose()
    }

    /// Has something done with all of them.
    pub(super) fn with<T>(&self, work: impl FnOnce(&[BorrowedFd<'_>]) -> T) -> T {
        let sockets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let sockets: Vec<_> = sockets.iter().map(|socket| socket.listener.as_fd()).collect();
        work(&sockets)
    }

    /// Closes them; the doors close theirs.
    pub(super) fn close(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

fn addresses(listen: &Listen) -> impl Iterator<Item = (&'static str, SocketAddr)> {
    [
        ("listen.http", listen.http),
        ("listen.https", listen.https.as_ref().map(|https| https.address)),
        ("listen.dashboard", listen.dashboard),
        ("listen.admin", listen.admin),
        ("listen.metrics", listen.metrics),
    ]
    .into_iter()
    .filter_map(|(name, address)| Some((name, address?)))
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    // It listens already, with a shorter queue.
    rustix::net::listen(&listener, BACKLOG_MAX)?;
    Ok(listener)
}

/// How many are in by a door.
#[derive(Debug, Clone, Default)]
pub(super) struct Guests(Arc<AtomicUsize>);

impl Guests {
    pub(super) fn count(&self) -> usize {
        self.0.load(Ordering::Acquire)
    }

    fn enter(&self) -> Guest {
        self.0.fetch_add(1, Ordering::AcqRel);
        Guest(Arc::clone(&self.0))
    }
}

/// One of them, until it is dropped.
struct Guest(Arc<AtomicUsize>);

impl Drop for Guest {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A way in to one application, by one socket or two.
pub(super) struct Door<A> {
    name: &'static str,
    app: Arc<A>,
    ways: Vec<TcpListener>,
    threads: usize,
    guests: Guests,
    runtime: Arc<OnceLock<Handle>>,
    doorway: watch::Receiver<Doorway>,
    leaving: ShutdownWatch,
}

impl<A: ServerApp + Send + Sync + 'static> Door<A> {
    pub(super) fn new(name: &'static str, app: A, threads: usize, stage: &Stage) -> Self {
        Self {
            name,
            app: Arc::new(app),
            ways: Vec::new(),
            threads,
            guests: Guests::default(),
            runtime: Arc::default(),
            doorway: stage.doorway(),
            leaving: stage.leaving(),
        }
    }

    /// Lets in by that socket, if there is one.
    pub(super) fn add(&mut self, socket: Option<TcpListener>) {
        self.ways.extend(socket);
    }

    /// Who is in.
    pub(super) fn guests(&self) -> Guests {
        self.guests.clone()
    }

    /// The runtime that it works on, once it does.
    pub(super) fn runtime(&self) -> Arc<OnceLock<Handle>> {
        Arc::clone(&self.runtime)
    }
}

#[async_trait]
impl<A: ServerApp + Send + Sync + 'static> Service for Door<A> {
    async fn start_service(&mut self, _: Option<ListenFds>, _: ShutdownWatch, _: usize) {
        let _ = self.runtime.set(Handle::current());
        let mut ways = JoinSet::new();
        for socket in self.ways.drain(..) {
            let listener: Listener = match tokio::net::TcpListener::from_std(socket) {
                Ok(listener) => listener.into(),
                Err(error) => {
                    tracing::error!(%error, name = self.name, "a listener cannot be used");
                    continue;
                }
            };
            let way = Way {
                name: self.name,
                listener,
                app: Arc::clone(&self.app),
                guests: self.guests.clone(),
                leaving: self.leaving.clone(),
            };
            ways.spawn(way.watch(self.doorway.clone()));
        }
        while ways.join_next().await.is_some() {}
    }

    fn name(&self) -> &str {
        self.name
    }

    fn threads(&self) -> Option<usize> {
        Some(self.threads)
    }
}

/// One socket of a door.
struct Way<A> {
    name: &'static str,
    listener: Listener,
    app: Arc<A>,
    guests: Guests,
    leaving: ShutdownWatch,
}

impl<A: ServerApp + Send + Sync + 'static> Way<A> {
    /// Lets clients in for as long as that is asked for.
    async fn watch(self, mut doorway: watch::Receiver<Doorway>) {
        loop {
            let now = *doorway.borrow_and_update();
            match now {
                Doorway::Held => {
                    if doorway.changed().await.is_err() {
                        return;
                    }
                }
                Doorway::Open => {
                    tokio::select! {
                        biased;
                        changed = doorway.changed() => if changed.is_err() { return },
                        came = self.listener.accept() => self.let_in(came).await,
                    }
                }
                Doorway::Given => return,
                Doorway::Shut => {
                    // A socket that closes resets who stands before it.
                    while let Ok(Ok(came)) = tokio::time::timeout(Duration::ZERO, self.listener.accept()).await {
                        self.let_in(Ok(came)).await;
                    }
                    return;
                }
            }
        }
    }

    async fn let_in(&self, came: io::Result<TcpStream>) {
        let mut stream = match came {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(%error, name = self.name, "a connection could not be accepted");
                tokio::time::sleep(AFTER_FAILURE).await;
                return;
            }
        };
        if stream.set_nodelay().is_err() {
            // It has left.
            return;
        }
        let (app, leaving, guest) = (Arc::clone(&self.app), self.leaving.clone(), self.guests.enter());
        tokio::spawn(async move {
            Listening::handle_event(Box::new(stream), app, leaving).await;
            drop(guest);
        });
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn listen(http: SocketAddr) -> Listen {
        Listen { http: Some(http), ..Listen::default() }
    }

    #[test]
    fn a_socket_that_was_found_is_used_and_others_are_closed() {
        let found = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let (wanted, unwanted) = (found(), found());
        let (address, closed) = (wanted.local_addr().unwrap(), unwanted.local_addr().unwrap());
        let sockets = Sockets::open(&listen(address), vec![unwanted, wanted]).unwrap();
        assert_eq!(sockets.of("listen.http").unwrap().unwrap().local_addr().unwrap(), address);
        assert!(sockets.of("listen.admin").unwrap().is_none());
        assert!(TcpListener::bind(closed).is_ok());
        sockets.close();
        assert!(TcpListener::bind(address).is_ok());
    }

    #[test]
    fn an_address_that_is_taken_is_named() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = taken.local_addr().unwrap();
        let told = Sockets::open(&listen(address), Vec::new()).unwrap_err().to_string();
        assert!(told.starts_with(&format!("cannot listen on listen.http = {address}")), "{told}");
    }
}
