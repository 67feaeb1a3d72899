//! One configuration, checked and immutable. A request keeps the snapshot that it began with.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::sign::CertifiedKey;

use super::shared::SharedConfig;
use crate::relay::meter::NanoUsd;
use crate::relay::route::{Catalogue, Secret};
use crate::relay::webhook::SigningKey;

/// A whole configuration.
#[derive(Debug)]
pub struct Snapshot {
    /// Counts the configurations that were in force in this process, from 1.
    pub version: u64,
    /// Where the process listens. Bound once, at the start.
    pub listen: Listen,
    /// Where accounts, keys, ledger and usage are kept. Opened once, at the start.
    pub store: StoreConfig,
    /// What several nodes have in common, where there are several. Begun once, at the start.
    pub shared: Option<SharedConfig>,
    /// How finished requests become ledger entries. Opened once, at the start.
    pub billing: BillingConfig,
    /// What one client, and all of them, may ask of the process.
    pub limits: Limits,
    /// What the admin API asks of who uses it; without, there is none.
    pub admin_token: Option<Secret>,
    /// How people reach the dashboard, and on what terms they come in.
    pub dashboard: DashboardConfig,
    /// Where traces go, if there are to be any. Begun once, at the start.
    pub traces: Option<TracesConfig>,
    /// How customers pay by Stripe, if they may.
    pub stripe: Option<StripeConfig>,
    /// Models, providers and plans.
    pub catalogue: Catalogue,
    /// Every file that was read for it: the configuration, what it includes, secrets, certificates.
    pub files: Vec<PathBuf>,
}

impl Snapshot {
    /// How credit is leased, where the node is one of several: where `[shared]` stands, or the store is a server's.
    pub fn leasing(&self) -> Option<SharedConfig> {
        let is_server = self.store.url.starts_with("postgres");
        let shared = self.shared.clone().or_else(|| is_server.then(SharedConfig::default));
        shared.filter(|shared| shared.leases)
    }

    /// Which settings differ from those of `running` but are only taken up when the process starts.
    pub(super) fn needs_restart_after(&self, running: &Snapshot) -> Vec<&'static str> {
        let (new, old) = (&self.listen, &running.listen);
        let https = |listen: &Listen| listen.https.as_ref().map(|https| https.address);
        [
            ("listen.http", new.http != old.http),
            ("listen.h2c", new.h2c != old.h2c),
            ("listen.https", https(new) != https(old)),
            ("listen.dashboard", new.dashboard != old.dashboard),
            ("listen.admin", new.admin != old.admin),
            ("listen.metrics", new.metrics != old.metrics),
            ("store", self.store != running.store),
            ("shared", self.shared != running.shared),
            // HTTP/2's is the listener's; HTTP/1.1 takes the new one up at once.
            ("limits.keep_alive_seconds_max over HTTP/2", self.limits.keep_alive_max != running.limits.keep_alive_max),
            (
                "billing",
                BillingConfig { drain_max: running.billing.drain_max, ..self.billing.clone() } != running.billing,
            ),
            ("telemetry", self.traces != running.traces),
        ]
        .into_iter()
        .filter_map(|(name, differs)| differs.then_some(name))
        .collect()
    }
}

/// `[listen]`: where the process listens; at least one of `http` and `https`.
#[derive(Debug, Clone, Default)]
pub struct Listen {
    /// The client API, cleartext.
    pub http: Option<SocketAddr>,
    /// Whether `http` also takes cleartext HTTP/2 from clients that know beforehand that it does.
    pub h2c: bool,
    /// The client API over TLS, HTTP/1.1 and HTTP/2.
    pub https: Option<Https>,
    /// For people: customers and operators.
    pub dashboard: Option<SocketAddr>,
    /// For machines: health, readiness, admin API.
    pub admin: Option<SocketAddr>,
    /// For Prometheus.
    pub metrics: Option<SocketAddr>,
}

/// `listen.https`.
#[derive(Debug, Clone)]
pub struct Https {
    /// Where it listens.
    pub address: SocketAddr,
    /// The file with the certificate and its chain, PEM.
    pub certificate: PathBuf,
    /// The file with the private key, PEM.
    pub key: PathBuf,
    /// Both, as they were when this configuration was read; they belong together.
    pub identity: Arc<CertifiedKey>,
}

/// `[dashboard]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DashboardConfig {
    /// The origin by which browsers reach it, where that is not `listen.dashboard` itself; no slash at its end.
    pub public_url: Option<Box<str>>,
    /// The base URL of the client API that customers are shown, where it is not that of `[listen]`; no slash at its end.
    pub api_url: Option<Box<str>>,
    /// Whether anybody may make themselves an account.
    pub registration: bool,
    /// What such an account is given.
    pub starting_credit: NanoUsd,
    /// The plan of such an account.
    pub starting_plan: Box<str>,
    /// How many good keys an account may have that makes them itself: limits of plans are each key's.
    pub keys_per_account_max: u32,
    /// How long somebody stays signed in, whatever they do.
    pub session_max: Duration,
    /// How long somebody who does nothing stays signed in.
    pub session_idle_max: Duration,
}

impl Default for DashboardConfig {
    fn default() -> Self {
        Self {
            public_url: None,
            api_url: None,
            registration: false,
            starting_credit: NanoUsd(0),
            starting_plan: "free".into(),
            keys_per_account_max: 50,
            session_max: Duration::from_secs(30 * 24 * 3_600),
            session_idle_max: Duration::from_secs(24 * 3_600),
        }
    }
}

impl Snapshot {
    /// Where a browser finds the dashboard, if it is served; no slash at its end.
    pub fn dashboard_url(&self) -> Option<String> {
        let served_at = self.listen.dashboard?;
        Some(self.dashboard.public_url.as_deref().map_or_else(|| format!("http://{served_at}"), str::to_owned))
    }

    /// The base URL of the client API, `/v1` included, as customers are to write it.
    pub fn api_url(&self) -> String {
        let listen = &self.listen;
        let served = || match (listen.http, &listen.https) {
            (Some(http), _) => format!("http://{http}/v1"),
            (None, Some(https)) => format!("https://{}/v1", https.address),
            (None, None) => "/v1".to_owned(),
        };
        self.dashboard.api_url.as_deref().map_or_else(served, str::to_owned)
    }
}

/// `[store]`.
#[derive(Clone, PartialEq, Eq)]
pub struct StoreConfig {
    /// `sqlite://relative/to/the/working/directory`, `sqlite:///absolute` or `postgres://user:password@host:port/database`. It may hold a
    /// password.
    pub url: String,
    /// How long keys that are known are good while the store cannot be asked about them.
    pub grace_max: Duration,
}

impl fmt::Debug for StoreConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What stands before an @ may be a password.
        let shown = if self.url.starts_with("sqlite://") { &*self.url } else { "postgres://…" };
        f.debug_struct("StoreConfig").field("url", &shown).finish()
    }
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self { url: "sqlite://data/tollgate.db".to_owned(), grace_max: Duration::from_secs(300) }
    }
}

/// `[billing]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BillingConfig {
    /// The spool's file; a relative path is relative to the working directory.
    pub spool: PathBuf,
    /// How large the spool may grow before nothing more is sold.
    pub spool_bytes_max: u64,
    /// What a finished request's record survives.
    pub durability: Durability,
    /// How long an answer is read on after its client has left.
    pub drain_max: Duration,
    /// Where finished requests are delivered besides the ledger. Their names differ, and so do their files.
    pub sinks: Vec<SinkConfig>,
}

impl Default for BillingConfig {
    fn default() -> Self {
        Self {
            spool: "data/spool.db".into(),
            spool_bytes_max: 1 << 30,
            durability: Durability::Process,
            drain_max: Duration::ZERO,
            sinks: Vec::new(),
        }
    }
}

/// What a record in the spool survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// The process's death, `kill -9` included.
    Process,
    /// The machine's, too: on disk before the answer's last byte leaves.
    Power,
}

/// `[[billing.sink]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SinkConfig {
    /// What metrics, the log and the spool know it by.
    pub name: Box<str>,
    /// Where it leads.
    pub target: SinkTarget,
}

impl SinkConfig {
    /// The file that it writes, where it is one that does.
    pub(super) fn path(&self) -> Option<&Path> {
        match &self.target {
            SinkTarget::File { path, .. } => Some(path),
            SinkTarget::Webhook { .. } => None,
        }
    }
}

/// Where a sink leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SinkTarget {
    /// `kind = "webhook"`: batches of CloudEvents, posted.
    Webhook {
        /// `http://` or `https://`, with a host and without user and password.
        url: Box<str>,
        /// What its requests are signed with.
        key: SigningKey,
        /// A bearer token that the receiver asks for besides.
        authorization: Option<Secret>,
        /// The events' `source`.
        source: Box<str>,
    },
    /// `kind = "file"`: a JSON object a line.
    File {
        /// Where; a relative path is relative to the working directory.
        path: PathBuf,
        /// At what size a new file is begun.
        bytes_max: u64,
        /// How many full files are kept; 0 keeps all.
        files_max: u32,
    },
}

/// `[telemetry.traces]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TracesConfig {
    /// Where they are posted to: `http://` or `https://`, with a path and without user and password.
    pub endpoint: Box<str>,
    /// Headers that the receiver asks for: names in lower case, each once, and their values.
    pub headers: Vec<(Box<str>, Secret)>,
    /// How many of a billion requests are sampled, at most all.
    pub sample_per_billion: u32,
    /// Whether a client that sends a `traceparent` decides whether its request is sampled.
    pub trust_parent: bool,
    /// Whether providers get a `traceparent`.
    pub propagate: bool,
    /// `service.name`.
    pub service_name: Box<str>,
}

/// `[payment.stripe]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StripeConfig {
    /// What Stripe knows the operator by.
    pub secret_key: Secret,
    /// What Stripe signs its events with.
    pub webhook_secret: Secret,
    /// Where its API is, without a slash at the end.
    pub base_url: Box<str>,
    /// The amounts of credit that customers can buy, in whole USD, rising.
    pub top_up_usd: Vec<u32>,
}

/// A part of a whole, in millionths of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share(pub u32);

impl Share {
    /// The whole.
    pub const WHOLE: Self = Self(1_000_000);

    /// That part of a number, rounded down.
    pub fn of(self, whole: u64) -> u64 {
        let part = u128::from(whole) * u128::from(self.0) / u128::from(Self::WHOLE.0);
        u64::try_from(part).unwrap_or(u64::MAX)
    }
}

/// `[limits]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// The largest body that is taken.
    pub request_bytes_max: usize,
    /// How long a request's head may take to arrive.
    pub header_max: Duration,
    /// How long a body may pause between two reads.
    pub body_idle_max: Duration,
    /// How long a body may take to arrive, whole.
    pub body_total_max: Duration,
    /// Connections at once from one address, or from one IPv6 network of 64 bits.
    pub connections_per_ip_max: u32,
    /// How long a connection may wait for its next request.
    pub keep_alive_max: Duration,
    /// How much of the memory there is may be used before nothing new is begun.
    pub memory_share_max: Share,
    /// Requests at once, of all clients.
    pub requests_in_flight_max: u32,
    /// How long a stream may be silent before it gets a comment that keeps it alive; zero for ever.
    pub stream_silence_max: Duration,
    /// How long requests under way may take to end when the process is told to.
    pub shutdown_max: Duration,
    /// Failed authentications from one address in a minute; past it they are refused without a look-up.
    pub failed_auth_per_minute_max: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            request_bytes_max: 32 << 20,
            header_max: Duration::from_secs(10),
            body_idle_max: Duration::from_secs(10),
            body_total_max: Duration::from_secs(120),
            connections_per_ip_max: 256,
            keep_alive_max: Duration::from_secs(75),
            memory_share_max: Share(850_000),
            requests_in_flight_max: 20_000,
            stream_silence_max: Duration::from_secs(15),
            shutdown_max: Duration::from_secs(300),
            failed_auth_per_minute_max: 30,
        }
    }
}
