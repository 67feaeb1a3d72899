//! The process: its listeners, its background work, and the order in which it ends.
//!
//! Pingora runs its services on runtimes of its own and drops whatever is left on them at the end. What must outlive them
//! (billing, the key cache's watch over the store) runs on a runtime of ours: requests first, then the ledger, then the log.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use pingora::apps::HttpServerOptions;
use pingora::listeners::tls::{Acceptor, TlsSettings};
use pingora::protocols::ALPN;
use pingora::protocols::http::v2::server::H2Options;
use pingora::server::configuration::ServerConf;
use pingora::server::{RunArgs, Server, ShutdownSignal, ShutdownSignalWatch};
use pingora::services::listening::Service;
use pingora_proxy::HttpProxy;
use tokio::runtime::{Handle, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::certificates::Certificates;
use super::clock::Clock;
use super::demo::Demo;
use super::failed_logins::FailedLogins;
use super::idempotency::Idempotency;
use super::in_flight::InFlight;
use super::keyring::Keyring;
use super::listeners::Gate;
use super::machines::{AdminListener, MetricsListener};
use super::phases::Relay;
use super::resolve::Resolver;
use super::{Shared, memory, settle};
use crate::billing::{self, SinkPlace, SpoolPlace};
use crate::config::{self, Live, Mistake, Reloaded};
use crate::relay::meter::{NanoUsd, UsageRecord};
use crate::relay::route::RetryBudget;
use crate::store::{Difference, Store};
use crate::telemetry::{AccessLog, Metrics};

/// How long running requests may take to end after SIGTERM.
const GRACE_SECONDS: u64 = 300;
/// How long they may take where they cannot be billed any more.
const UNBILLED_GRACE: Duration = Duration::from_secs(3);
/// How long settling may take after Pingora has dropped the requests that did not end.
const LAST_DROPS_MAX: Duration = Duration::from_secs(5);
/// How often a shutdown looks whether the last request has ended.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long the last frames of HTTP/2 connections may take to leave.
const LAST_FRAMES: Duration = Duration::from_millis(200);
/// How long Pingora may take to open its listeners.
const LISTENING_WITHIN: Duration = Duration::from_secs(10);
/// How often the ledger is audited for `tollgate_ledger_drift_nano_usd`.
const AUDIT_EVERY: Duration = Duration::from_secs(600);
/// What a client may send before it is read, by stream and by connection. HTTP/2's default of 64 KiB lets uploads crawl.
const H2_STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
const H2_CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// Requests at once on one HTTP/2 connection.
const H2_STREAMS_MAX: u32 = 128;
/// More than the relay lets pass, so that it can say so: HTTP/2 counts 32 bytes more for each header.
const H2_HEADER_BYTES_MAX: u32 = 128 * 1024;
/// What of a stream's answer waits for its client, beyond what the system's buffers hold.
const H2_SEND_BUFFER_BYTES_MAX: usize = 64 * 1024;
/// Resets that a client may make the relay send by breaking HTTP/2's rules, for as long as its connection lasts.
const H2_FORCED_RESETS_MAX: usize = 256;

/// Why the relay could not run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// An address of `[listen]` cannot be listened on.
    #[error("cannot listen on {name} = {address}: {error}")]
    Listen {
        /// The setting.
        name: &'static str,
        /// Its address.
        address: SocketAddr,
        /// What the system says.
        error: std::io::Error,
    },
    /// The spool, a sink or the store cannot be opened.
    #[error("{0}")]
    Billing(String),
    /// The spool failed while the relay ran. What it holds settles at the next start.
    #[error("the spool failed, so the relay ended; start it again to find out what was kept")]
    SpoolFailed,
    /// A thread, a runtime or a signal cannot be had.
    #[error("the process cannot start: {0}")]
    Process(String),
}

/// Runs the relay until it is told to end: SIGTERM lets running requests finish, SIGINT does not. Returns when everything
/// that was used is in the ledger. `started` is called when the listeners are about to open.
///
/// # Errors
/// The relay could not start, or ended because its spool failed.
pub fn serve(live: Arc<Live>, store: Store, runtime: &Runtime, started: impl FnOnce()) -> Result<(), ServeError> {
    let snapshot = live.load();
    try_listening(&snapshot.listen)?;
    let process = |error: &dyn std::fmt::Display| ServeError::Process(error.to_string());
    let (access_log, log_writer) = AccessLog::start().map_err(|error| process(&error))?;
    let metrics = Arc::new(Metrics::new().map_err(|error| process(&error))?);

    let (recorder, worker) = runtime
        .block_on(billing::open(&spool_place(&snapshot.billing), store.clone()))
        .map_err(|error| ServeError::Billing(error.to_string()))?;
    let keyring = runtime
        .block_on(Keyring::open(store.clone(), recorder.elsewhere().clone()))
        .map_err(|error| ServeError::Billing(format!("the store cannot be read: {error}")))?;
    let keyring = Arc::new(keyring);
    let clock = Clock::start();
    let (idempotency, desk) = Idempotency::new(store.clone(), clock);
    let shared = Arc::new(Shared {
        clock,
        live: Arc::clone(&live),
        keyring: Arc::clone(&keyring),
        recorder,
        idempotency,
        metrics: Arc::clone(&metrics),
        retries: RetryBudget::default(),
        access_log,
        resolver: Resolver::new(),
        demo: Demo::default(),
        failed_logins: FailedLogins::new(),
        requests_in_flight: InFlight::default(),
        connections: Arc::default(),
        memory: Arc::default(),
        signatures: Arc::default(),
        draining: AtomicBool::new(false),
    });

    let (end_billing, told) = ending();
    let billing_done = runtime.spawn(worker.run(told, observer(&metrics, &shared.access_log)));
    let (end_desk, told) = ending();
    let desk_done = runtime.spawn(desk.run(told));
    let background = [
        runtime.spawn(async move { keyring.follow().await }),
        runtime.spawn(memory::watch(Arc::clone(&shared.memory), Arc::clone(&live))),
        runtime.spawn(config::watch(live, reloaded(Arc::clone(&metrics)))),
        runtime.spawn(audit(store, metrics)),
    ];

    let pingora_ended = run_pingora(&shared, &snapshot)?;
    wait_until_listening(&shared, &snapshot.listen);
    started();
    wait_for_the_end(&shared, &pingora_ended);

    for task in background {
        task.abort();
    }
    let _ = end_desk.send(());
    if runtime.block_on(desk_done).is_err() {
        tracing::error!("claims on Idempotency-Keys were not settled; they end by themselves");
    }
    flush(runtime.handle(), end_billing, billing_done);
    log_writer.end();
    if shared.recorder.state().failed() { Err(ServeError::SpoolFailed) } else { Ok(()) }
}

/// A word that tells work to end once the requests have, and what it is heard by.
fn ending() -> (oneshot::Sender<()>, impl Future<Output = ()>) {
    let (end, ended) = oneshot::channel();
    let told = async move {
        let _ = ended.await;
    };
    (end, told)
}

/// What becomes of a record once billing has priced it: the metrics of what was used, and its line.
fn observer(metrics: &Arc<Metrics>, access_log: &AccessLog) -> impl Fn(&UsageRecord) + use<> {
    let (metrics, access_log) = (Arc::clone(metrics), access_log.clone());
    move |record| {
        metrics.settled(record);
        access_log.write(&settle::line(record));
    }
}

fn spool_place(config: &config::BillingConfig) -> SpoolPlace {
    SpoolPlace {
        path: config.spool.clone(),
        bytes_max: config.spool_bytes_max,
        durability: match config.durability {
            config::Durability::Process => billing::Durability::Process,
            config::Durability::Power => billing::Durability::Power,
        },
        sinks: config.sinks.iter().map(sink_place).collect(),
    }
}

fn sink_place(config: &config::SinkConfig) -> SinkPlace {
    let target = match config.target.clone() {
        config::SinkTarget::Webhook { url, key, authorization, source } => {
            billing::SinkTarget::Webhook { url, key, authorization, source }
        }
        config::SinkTarget::File { path, bytes_max, files_max } => {
            billing::SinkTarget::File { path, bytes_max, files_max: Some(files_max).filter(|files| *files > 0) }
        }
    };
    SinkPlace { name: config.name.clone(), target }
}

fn reloaded(metrics: Arc<Metrics>) -> impl Fn(&Result<Reloaded, Vec<Mistake>>) {
    move |outcome| match outcome {
        Ok(reloaded) => {
            metrics.config_reloads.with_label_values(&["ok"]).inc();
            tracing::info!(version = reloaded.snapshot.version, "the configuration was reloaded");
            for setting in &reloaded.needs_restart {
                tracing::warn!(setting, "this setting is taken up at the next start");
            }
        }
        Err(mistakes) => {
            metrics.config_reloads.with_label_values(&["refused"]).inc();
            for mistake in mistakes {
                tracing::error!(%mistake, "the new configuration is refused; the old one stays");
            }
        }
    }
}

/// Re-derives every balance now and then, for the drift that must be zero.
async fn audit(store: Store, metrics: Arc<Metrics>) {
    let mut turns = tokio::time::interval(AUDIT_EVERY);
    loop {
        turns.tick().await;
        match store.audit().await {
            Ok(differences) => metrics.ledger_drift.set(drift(&differences)),
            Err(error) => tracing::warn!(%error, "the ledger could not be audited"),
        }
    }
}

/// By how much what is stored differs from what the ledger's entries say, in all.
fn drift(differences: &[Difference]) -> i64 {
    let nano = |amount: Option<NanoUsd>| amount.unwrap_or_default().0;
    differences.iter().map(|found| nano(found.stored).saturating_sub(nano(found.derived)).saturating_abs()).sum()
}

/// Pingora panics where it cannot listen, in a task where nobody hears it. So the addresses are tried first.
fn try_listening(listen: &config::Listen) -> Result<(), ServeError> {
    for (name, address) in addresses(listen) {
        TcpListener::bind(address).map_err(|error| ServeError::Listen { name, address, error })?;
    }
    Ok(())
}

fn addresses(listen: &config::Listen) -> impl Iterator<Item = (&'static str, SocketAddr)> {
    [
        ("listen.http", listen.http),
        ("listen.https", listen.https.as_ref().map(|https| https.address)),
        ("listen.admin", listen.admin),
        ("listen.metrics", listen.metrics),
    ]
    .into_iter()
    .filter_map(|(name, address)| Some((name, address?)))
}

/// Pingora opens its listeners in its own time; nobody is to be told of them before.
fn wait_until_listening(shared: &Shared, listen: &config::Listen) {
    let patience = Instant::now() + LISTENING_WITHIN;
    for (name, mut address) in addresses(listen) {
        if address.ip().is_unspecified() {
            address.set_ip(if address.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() });
        }
        while TcpStream::connect_timeout(&address, LOOK_EVERY).is_err() {
            // Told to end in its first moment, the process has closed what it had opened.
            if shared.draining.load(Ordering::Acquire) {
                return;
            }
            if Instant::now() > patience {
                tracing::error!(%name, %address, "the listener did not open");
                return;
            }
            std::thread::park_timeout(LOOK_EVERY);
        }
    }
}

/// Starts Pingora on a thread of its own; the channel tells when it has ended.
fn run_pingora(shared: &Arc<Shared>, snapshot: &config::Snapshot) -> Result<Receiver<()>, ServeError> {
    let listen = &snapshot.listen;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let conf = ServerConf {
        threads,
        work_stealing: true,
        grace_period_seconds: Some(GRACE_SECONDS),
        graceful_shutdown_timeout_seconds: Some(1),
        upstream_keepalive_pool_size: 128 * threads,
        max_retries: super::upstream::TRIES_MAX,
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    server.add_service(client_api(shared, snapshot, &server.configuration, threads)?);
    if let Some(address) = listen.admin {
        let mut service = Service::new("admin".to_owned(), AdminListener(Arc::clone(shared)));
        service.add_tcp(&address.to_string());
        server.add_service(service);
    }
    if let Some(address) = listen.metrics {
        let mut service = Service::new("metrics".to_owned(), MetricsListener(Arc::clone(shared)));
        service.add_tcp(&address.to_string());
        server.add_service(service);
    }
    let signals = Signals(Arc::clone(shared));
    let (ended, wait) = channel();
    std::thread::Builder::new()
        .name("pingora".into())
        .spawn(move || {
            server.run(RunArgs { shutdown_signal: Box::new(signals) });
            let _ = ended.send(());
        })
        .map_err(|error| ServeError::Process(error.to_string()))?;
    Ok(wait)
}

fn client_api(
    shared: &Arc<Shared>,
    snapshot: &config::Snapshot,
    conf: &Arc<ServerConf>,
    threads: usize,
) -> Result<Service<Gate>, ServeError> {
    let listen = &snapshot.listen;
    let mut proxy = HttpProxy::new(Relay::new(Arc::clone(shared)), Arc::clone(conf));
    proxy.handle_init_modules();
    let mut options = HttpServerOptions::default();
    options.h2c = listen.h2c;
    options.h2_idle_timeout = Some(snapshot.limits.keep_alive_max);
    proxy.server_options = Some(options);
    let mut h2 = H2Options::new();
    h2.initial_window_size(H2_STREAM_WINDOW_BYTES)
        .initial_connection_window_size(H2_CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(H2_STREAMS_MAX)
        .max_header_list_size(H2_HEADER_BYTES_MAX)
        .max_send_buffer_size(H2_SEND_BUFFER_BYTES_MAX)
        .max_local_error_reset_streams(Some(H2_FORCED_RESETS_MAX));
    proxy.h2_options = Some(h2);
    let mut addresses: Vec<SocketAddr> = listen.http.into_iter().collect();
    let mut tls = None;
    if let Some(https) = &listen.https {
        addresses.push(https.address);
        tls = Some((https.address, acceptor(shared, https)?));
    }
    let mut service = Service::new("client API".to_owned(), Gate::new(proxy, Arc::clone(shared), tls));
    service.threads = Some(threads);
    for address in addresses {
        service.add_tcp(&address.to_string());
    }
    Ok(service)
}

/// How TLS is spoken on `listen.https`. The gate speaks it, so that Pingora listens there as elsewhere.
fn acceptor(shared: &Arc<Shared>, https: &config::Https) -> Result<Acceptor, ServeError> {
    let paths = (https.certificate.to_string_lossy(), https.key.to_string_lossy());
    let mut tls = TlsSettings::intermediate(&paths.0, &paths.1)
        .map_err(|error| ServeError::Process(format!("listen.https: {error}")))?;
    tls.set_cert_resolver(Arc::new(Certificates(Arc::clone(&shared.live))));
    tls.set_alpn(ALPN::H2H1);
    Ok(tls.build())
}

/// SIGTERM and SIGINT, with the word passed on that nothing new is taken.
struct Signals(Arc<Shared>);

#[async_trait]
impl ShutdownSignalWatch for Signals {
    async fn recv(&self) -> ShutdownSignal {
        let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
        else {
            tracing::error!("signals cannot be received; the process ends only when it is killed");
            return std::future::pending().await;
        };
        let shutdown = tokio::select! {
            _ = terminate.recv() => ShutdownSignal::GracefulTerminate,
            _ = interrupt.recv() => ShutdownSignal::FastShutdown,
        };
        self.0.draining.store(true, Ordering::Release);
        tracing::info!(in_flight = self.0.requests_in_flight.count(), "the process was told to end");
        shutdown
    }
}

/// Returns when Pingora has ended, or the last request after the signal has. Once nothing can be billed any more that is a signal too,
/// and those who run have little time: they are told by the answer's breaking off that it is not whole.
fn wait_for_the_end(shared: &Shared, pingora_ended: &Receiver<()>) {
    let mut unbilled_since = None;
    while let Err(RecvTimeoutError::Timeout) = pingora_ended.recv_timeout(LOOK_EVERY) {
        let in_flight = shared.requests_in_flight.count();
        if unbilled_since.is_none() && shared.recorder.state().failed() {
            tracing::error!(in_flight, "requests cannot be billed any more; the process ends");
            unbilled_since = Some(Instant::now());
            shared.draining.store(true, Ordering::Release);
        }
        if unbilled_since.is_some_and(|since| since.elapsed() > UNBILLED_GRACE) {
            return;
        }
        if shared.draining.load(Ordering::Acquire) && in_flight == 0 {
            // HTTP/2 sends a request's last frames after the request has ended.
            std::thread::park_timeout(LAST_FRAMES);
            return;
        }
    }
    let patience = Instant::now() + LAST_DROPS_MAX;
    while shared.requests_in_flight.count() > 0 && Instant::now() < patience {
        std::thread::park_timeout(LOOK_EVERY);
    }
}

/// Brings everything that was recorded into the ledger and the sinks, or at least into the spool.
fn flush(runtime: &Handle, end_billing: oneshot::Sender<()>, billing_done: JoinHandle<()>) {
    let _ = end_billing.send(());
    if runtime.block_on(billing_done).is_err() {
        tracing::error!("billing broke off; what it had not settled is in the spool and settles at the next start");
    }
}
