//! The client API's connections: how many are open, from where, and how many had to be closed.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What counts as one client: an IPv4 address, or an IPv6 network of 64 bits. Whoever has an IPv6 address has such a network: it is
/// what one line, one phone or one rented machine is given, and each of its 2^64 addresses can be used at will. Counting those
/// would count nothing.
pub(super) fn network(address: Option<IpAddr>) -> u128 {
    match address.map(|address| address.to_canonical()) {
        Some(IpAddr::V4(address)) => u128::from(address.to_bits()),
        Some(IpAddr::V6(address)) => (address.to_bits() >> 64) << 64,
        None => u128::MAX,
    }
}

/// Why the relay closed a connection that did nothing illegal by the letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Closed {
    /// Its address had as many as it may have.
    TooMany,
    /// It took too long to say what it wants: handshake, preface, a request's head.
    TooSlow,
    /// It kept HTTP/2 busy without asking for anything.
    Flood,
}

impl Closed {
    /// Every reason with its label.
    const ALL: [(Self, &'static str); 3] =
        [(Self::TooMany, "too_many"), (Self::TooSlow, "too_slow"), (Self::Flood, "flood")];
}

/// The open connections.
#[derive(Debug, Default)]
pub(super) struct Connections {
    by_network: Mutex<HashMap<u128, u32>>,
    open: AtomicU64,
    closed: [AtomicU64; Closed::ALL.len()],
}

impl Connections {
    /// Takes a connection's place; `None` where its address has `most` of them.
    pub(super) fn enter(self: &Arc<Self>, address: Option<IpAddr>, most: u32) -> Option<Place> {
        let network = network(address);
        let mut by_network = self.lock();
        let count = by_network.entry(network).or_default();
        if *count >= most {
            // No entry is left behind where none is allowed.
            if *count == 0 {
                by_network.remove(&network);
            }
            return None;
        }
        *count += 1;
        self.open.fetch_add(1, Ordering::Relaxed);
        Some(Place { connections: Arc::clone(self), network })
    }

    /// Counts one that was closed.
    pub(super) fn closed(&self, why: Closed) {
        self.closed[why as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// How many are open.
    pub(super) fn open(&self) -> u64 {
        self.open.load(Ordering::Relaxed)
    }

    /// How many were closed, by reason.
    pub(super) fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Closed::ALL.iter().map(|(why, label)| (*label, self.closed[*why as usize].load(Ordering::Relaxed)))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u128, u32>> {
        self.by_network.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's place in the count; left when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    connections: Arc<Connections>,
    network: u128,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connections.open.fetch_sub(1, Ordering::Relaxed);
        if let Entry::Occupied(mut count) = self.connections.lock().entry(self.network) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn an_address_has_its_connections_and_others_have_theirs() {
        let connections = Arc::new(Connections::default());
        let held: Vec<Place> = (0..3).map(|_| connections.enter(address("10.0.0.1"), 3).unwrap()).collect();
        assert!(connections.enter(address("10.0.0.1"), 3).is_none());
        assert!(connections.enter(address("::ffff:10.0.0.1"), 3).is_none(), "the same, as a dual socket sees it");
        let other = connections.enter(address("10.0.0.2"), 3).unwrap();
        assert_eq!(connections.open(), 4);
        drop(held);
        assert!(connections.enter(address("10.0.0.1"), 1).is_some());
        drop(other);
        assert_eq!((connections.open(), connections.lock().len()), (0, 0), "nothing is kept of who has left");
    }

    #[test]
    fn ipv6_counts_by_networks_of_64_bits() {
        let connections = Arc::new(Connections::default());
        let _one = connections.enter(address("2001:db8::1"), 1).unwrap();
        assert!(connections.enter(address("2001:db8::2"), 1).is_none());
        assert!(connections.enter(address("2001:db8:0:1::1"), 1).is_some());
    }

    #[test]
    fn a_lowered_limit_closes_nobody_and_lets_nobody_in() {
        let connections = Arc::new(Connections::default());
        let held: Vec<Place> = (0..3).map(|_| connections.enter(address("10.0.0.1"), 3).unwrap()).collect();
        assert!(connections.enter(address("10.0.0.1"), 2).is_none());
        assert_eq!(connections.open(), 3);
        drop(held);
    }

    #[test]
    fn what_was_closed_is_counted_by_its_reason() {
        let connections = Connections::default();
        connections.closed(Closed::Flood);
        connections.closed(Closed::Flood);
        connections.closed(Closed::TooMany);
        let counts: Vec<_> = connections.counts().collect();
        assert_eq!(counts, [("too_many", 1), ("too_slow", 0), ("flood", 2)]);
    }
}
