//! Host names to addresses, without blocking and without a look-up a request.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use moka::future::Cache;
use tokio::time::timeout;

/// How long an answer is used. Providers move rarely; a dead address is tried again with the next one anyway.
const ADDRESSES_KEPT: Duration = Duration::from_secs(30);
/// As many hosts as a configuration may plausibly name.
const HOSTS_MAX: u64 = 1024;

/// A resolver with a memory. Look-ups of one host at once are one look-up.
#[derive(Clone)]
pub(super) struct Resolver {
    known: Cache<(Box<str>, u16), Arc<[SocketAddr]>>,
}

impl Resolver {
    pub(super) fn new() -> Self {
        Self { known: Cache::builder().max_capacity(HOSTS_MAX).time_to_live(ADDRESSES_KEPT).build() }
    }

    /// An address of that host; `turn` picks among several, so that a second try meets another one.
    ///
    /// # Errors
    /// What the system's resolver says, as text; or that it said nothing for so long.
    pub(super) async fn resolve(
        &self,
        host: &str,
        port: u16,
        turn: usize,
        patience: Duration,
    ) -> Result<SocketAddr, String> {
        if let Ok(address) = host.parse::<IpAddr>() {
            return Ok(SocketAddr::new(address, port));
        }
        let look_up = async {
            let found = timeout(patience, tokio::net::lookup_host((host, port)));
            let found = found.await.map_err(|_| io::Error::other("its name was not resolved in time"))?;
            let found: Vec<SocketAddr> = found?.collect();
            if found.is_empty() {
                return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
            }
            Ok(Arc::from(found))
        };
        let addresses =
            self.known.try_get_with((host.into(), port), look_up).await.map_err(|error| error.to_string())?;
        addresses.get(turn % addresses.len()).copied().ok_or_else(|| "the name has no address".to_owned())
    }
}
