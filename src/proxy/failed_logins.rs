//! Floods of wrong keys and tokens, counted by address, and of passwords that are tried, by address and by whose they are. An estimate is right here: it only ever counts too many, takes the same memory
//! whoever attacks, and nobody was promised a number.

use std::net::IpAddr;
use std::time::Duration;

use pingora_limits::rate::Rate;

use super::connections::network;

/// 4 rows of 65,536 slots: at 10,000 addresses 0.03 % are counted wrong.
const ROWS: usize = 4;
const SLOTS: usize = 65_536;
/// The admin API is not for the public.
const ADMIN_SLOTS: usize = 1_024;
/// The dashboard's addresses and people.
const PASSWORD_SLOTS: usize = 16_384;
/// How often a minute the password of one person may be tried, from wherever it is.
const PER_PERSON_AND_MINUTE_MAX: isize = 10;
const INTERVAL: Duration = Duration::from_secs(60);

/// How a login failed. They are counted apart: requests without a key, as a careless health check sends them, are not to
/// keep the good keys of their address out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failed {
    /// There is no key, or its form or checksum is wrong. Costs nothing to find out.
    Form,
    /// The key is well formed and no good.
    Key,
    /// The admin API's token is missing or wrong.
    AdminToken,
}

/// Failed authentications of this minute, by client address.
pub(super) struct FailedLogins {
    by_form: Rate,
    by_key: Rate,
    by_admin_token: Rate,
    passwords_by_address: Rate,
    passwords_by_person: Rate,
}

impl FailedLogins {
    pub(super) fn new() -> Self {
        let rate = |slots| Rate::new_with_estimator_config(INTERVAL, ROWS, slots);
        Self {
            by_form: rate(SLOTS),
            by_key: rate(SLOTS),
            by_admin_token: rate(ADMIN_SLOTS),
            passwords_by_address: rate(PASSWORD_SLOTS),
            passwords_by_person: rate(PASSWORD_SLOTS),
        }
    }

    /// Counts that a password is to be tried, and answers whether it may be. All tries count, whatever becomes of them: to find out takes
    /// a while, in which many more could begin.
    pub(super) fn may_try_password(&self, address: Option<IpAddr>, email: &str, per_minute_max: u32) -> bool {
        let most = isize::try_from(per_minute_max).unwrap_or(isize::MAX);
        self.passwords_by_address.observe(&network(address), 1) <= most
            && self.passwords_by_person.observe(&email, 1) <= PER_PERSON_AND_MINUTE_MAX
    }

    /// Counts a failure.
    pub(super) fn count(&self, failed: Failed, address: Option<IpAddr>) {
        self.seen(failed).observe(&network(address), 1);
    }

    /// Whether as many as that came from there in this minute.
    pub(super) fn is_flooding(&self, failed: Failed, address: Option<IpAddr>, per_minute_max: u32) -> bool {
        self.seen(failed).observe(&network(address), 0) >= isize::try_from(per_minute_max).unwrap_or(isize::MAX)
    }

    fn seen(&self, failed: Failed) -> &Rate {
        match failed {
            Failed::Form => &self.by_form,
            Failed::Key => &self.by_key,
            Failed::AdminToken => &self.by_admin_token,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_counted_by_address_and_by_person() {
        let (failed, from) = (FailedLogins::new(), |last| Some(IpAddr::from([10, 0, 0, last])));
        for _ in 0..3 {
            assert!(failed.may_try_password(from(1), "ada", 3));
        }
        assert!(!failed.may_try_password(from(1), "bea", 3), "from there come too many");
        for last in 2..9 {
            assert!(failed.may_try_password(from(last), "ada", 3));
        }
        assert!(!failed.may_try_password(from(9), "ada", 3), "that one's is tried too often");
        assert!(failed.may_try_password(from(9), "bea", 3));
    }

    #[test]
    fn floods_are_told_by_address_by_kind_and_ipv6_by_network() {
        let failed = FailedLogins::new();
        let (flooder, other): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        for _ in 0..3 {
            assert!(!failed.is_flooding(Failed::Key, Some(flooder), 3));
            failed.count(Failed::Key, Some(flooder));
        }
        assert!(failed.is_flooding(Failed::Key, Some(flooder), 3));
        assert!(!failed.is_flooding(Failed::Form, Some(flooder), 3));
        assert!(!failed.is_flooding(Failed::AdminToken, Some(flooder), 3));
        assert!(!failed.is_flooding(Failed::Key, Some(other), 3));
        let (one, neighbour): (IpAddr, IpAddr) = ("2001:db8::1".parse().unwrap(), "2001:db8::2".parse().unwrap());
        for _ in 0..3 {
            failed.count(Failed::Form, Some(one));
        }
        assert!(failed.is_flooding(Failed::Form, Some(neighbour), 3));
    }
}
