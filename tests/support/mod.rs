//! What the process tests stand on: the real binary, scripted upstreams, and clients that write and read their own bytes.
//!
//! Everything listens on loopback, lives in one temporary folder and ends with the value that owns it. Nothing here
//! waits for a time to pass: whoever waits, waits for something to be seen, up to [`PATIENCE`].

#![allow(dead_code, unreachable_pub, unused_imports)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

pub mod browser;
pub mod cases;
pub mod client;
pub mod decoded;
pub mod frames;
pub mod h2c;
pub mod manager;
pub mod nginx;
pub mod relay;
pub mod setup;
pub mod store;
pub mod stripe;
pub mod tls;
pub mod upstream;
pub mod upstream_h2;

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

pub use browser::Browser;
pub use client::{Connection, End, Request, Response};
pub use manager::Manager;
pub use relay::{Account, Relay};
pub use setup::Setup;
pub use store::Store;
pub use upstream::{Answer, Received, Upstream};

/// How long anything may take before the test that waits for it fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Asks again and again until there is an answer; fails, and says what was waited for, when there is none in time.
#[track_caller]
pub fn until<T>(what: &str, ask: impl FnMut() -> Option<T>) -> T {
    within(PATIENCE, ask).unwrap_or_else(|| panic!("waited {PATIENCE:?} in vain: {what}"))
}

/// As [`until`], with a limit of its own, and `None` past it.
#[expect(clippy::disallowed_methods, reason = "the one pause between two looks at another process")]
pub fn within<T>(limit: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + limit;
    loop {
        if let Some(answer) = ask() {
            return Some(answer);
        }
        if Instant::now() > end {
            return None;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A door that a script waits at until the test opens it.
#[derive(Clone, Default)]
pub struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets everyone through, now and later.
    pub fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }

    /// Waits until it is open; says whether it was opened in time.
    pub fn wait(&self) -> bool {
        let guard = self.0.0.lock().unwrap();
        *self.0.1.wait_timeout_while(guard, PATIENCE, |open| !*open).unwrap().0
    }
}

/// A loopback address that is free, and that no other test takes while this value lives.
///
/// The binary is told its ports, so they are chosen before it binds them. What keeps two tests from choosing the same is
/// a UDP socket on the port's number: a namespace of its own, known to all processes. The numbers lie below those that
/// the system gives to outgoing connections.
pub struct Reserved {
    pub address: SocketAddr,
    _claim: UdpSocket,
}

impl Reserved {
    pub fn new() -> Self {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let span = 20_000;
        let start = u16::try_from(std::process::id() % u32::from(span)).unwrap();
        for _ in 0..span {
            let step = NEXT.fetch_add(1, Ordering::Relaxed);
            let port = 12_000 + (start.wrapping_mul(7).wrapping_add(step)) % span;
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            let Ok(claim) = UdpSocket::bind(address) else { continue };
            if TcpListener::bind(address).is_ok() {
                return Self { address, _claim: claim };
            }
        }
        panic!("no free port on loopback");
    }
}

/// Numbers that look random and are the same in every run: SplitMix64.
pub struct Chance(pub u64);

impl Chance {
    /// A number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % u64::try_from(bound).unwrap()).unwrap()
    }

    /// Cuts bytes at random places, into pieces of 1 to `longest` bytes.
    pub fn pieces<'a>(&mut self, mut bytes: &'a [u8], longest: usize) -> Vec<&'a [u8]> {
        let mut pieces = Vec::new();
        while !bytes.is_empty() {
            let (piece, rest) = bytes.split_at((1 + self.below(longest)).min(bytes.len()));
            pieces.push(piece);
            bytes = rest;
        }
        pieces
    }
}
