//! Floods of wrong keys, counted by address. An estimate is right here: it only ever counts too many, takes the same memory
//! whoever attacks, and nobody was promised a number.

use std::net::IpAddr;
use std::time::Duration;

use pingora_limits::rate::Rate;

/// 4 rows of 65,536 slots: at 10,000 addresses 0.03 % are counted wrong.
const ROWS: usize = 4;
const SLOTS: usize = 65_536;
const INTERVAL: Duration = Duration::from_secs(60);

/// Failed authentications of this minute, by client address.
pub(super) struct FailedLogins {
    seen: Rate,
    per_minute_max: isize,
}

impl FailedLogins {
    pub(super) fn new(per_minute_max: u32) -> Self {
        Self {
            seen: Rate::new_with_estimator_config(INTERVAL, ROWS, SLOTS),
            per_minute_max: isize::try_from(per_minute_max).unwrap_or(isize::MAX),
        }
    }

    /// Counts a failure.
    pub(super) fn count(&self, address: Option<IpAddr>) {
        self.seen.observe(&network(address), 1);
    }

    /// Whether too many came from there in this minute.
    pub(super) fn is_flooding(&self, address: Option<IpAddr>) -> bool {
        self.seen.observe(&network(address), 0) >= self.per_minute_max
    }
}

/// What counts as one client: an IPv4 address, an IPv6 network of 64 bits.
fn network(address: Option<IpAddr>) -> u128 {
    match address {
        Some(IpAddr::V4(address)) => u128::from(address.to_bits()),
        Some(IpAddr::V6(address)) => (address.to_bits() >> 64) << 64,
        None => u128::MAX,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floods_are_told_by_address_and_ipv6_by_network() {
        let failed = FailedLogins::new(3);
        let (flooder, other): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        for _ in 0..3 {
            assert!(!failed.is_flooding(Some(flooder)));
            failed.count(Some(flooder));
        }
        assert!(failed.is_flooding(Some(flooder)));
        assert!(!failed.is_flooding(Some(other)));
        let (one, neighbour): (IpAddr, IpAddr) = ("2001:db8::1".parse().unwrap(), "2001:db8::2".parse().unwrap());
        for _ in 0..3 {
            failed.count(Some(one));
        }
        assert!(failed.is_flooding(Some(neighbour)));
    }
}
