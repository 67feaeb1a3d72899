//! The process: its listeners, its background work, and the order in which it ends.
//!
//! Pingora runs its services on runtimes of its own and drops whatever is left on them at the end. What must outlive them
//! (billing, the key cache's watch over the store) runs on a runtime of ours: requests first, then the ledger, then the log.

use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use pingora::apps::HttpServerOptions;
use pingora::listeners::tls::{Acceptor, TlsSettings};
use pingora::protocols::ALPN;
use pingora::protocols::http::v2::server::H2Options;
use pingora::server::configuration::ServerConf;
use pingora::server::{RunArgs, Server};
use pingora_proxy::HttpProxy;
use tokio::runtime::{Handle, Runtime};

use super::Shared;
use super::admin_api::{api_routes, dashboard_routes};
use super::certificates::Certificates;
use super::doors::{Door, Guests, Sockets};
use super::ending::{End, Signals};
use super::handover::{Giver, Place, Predecessor, Upgrade};
use super::listeners::Gate;
use super::machines::MetricsListener;
use super::notify::{Notifier, Watchdog};
use super::phases::Relay;
use super::web::WebListener;
use super::work::Work;
use crate::config::{self, Live, Snapshot};
use crate::store::Store;

/// What a client may send before it is read, by stream and by connection. HTTP/2's default of 64 KiB lets uploads crawl.
const H2_STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
const H2_CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// Requests at once on one HTTP/2 connection.
const H2_STREAMS_MAX: u32 = 128;
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
    /// Other nodes lease the credit that this one would sell.
    #[error("other nodes ({0}) lease credit of this store; add [shared] to this node's configuration, or end them")]
    OneOfSeveral(String),
    /// The spool failed while the relay ran. What it holds settles at the next start.
    #[error("the spool failed, so the relay ended; start it again to find out what was kept")]
    SpoolFailed,
    /// There is no process to take over from, or it serves on.
    #[error("the running process was not taken over from: {0}")]
    Upgrade(std::io::Error),
    /// A thread, a runtime or a signal cannot be had.
    #[error("the process cannot start: {0}")]
    Process(String),
}

/// Runs the relay until it is told to end: SIGTERM lets running requests finish, SIGINT does not; or until another process has taken
/// over and nobody is left. Returns when everything that was used is in the ledger. `started` is called when clients are let in.
///
/// # Errors
/// The relay could not start, or ended because its spool failed.
pub fn serve(
    live: Arc<Live>,
    store: Store,
    runtime: &Runtime,
    upgrade: Option<Upgrade>,
    started: impl FnOnce(),
) -> Result<(), ServeError> {
    let snapshot = live.load();
    let notifier = Notifier::from_environment();
    let place = upgrade.as_ref().map(|upgrade| Place::of(&upgrade.config, &snapshot.billing.spool));
    let takes_over = upgrade.as_ref().is_some_and(|upgrade| upgrade.takes_over);
    let met = place.as_ref().filter(|_| takes_over).map(Predecessor::meet).transpose().map_err(ServeError::Upgrade)?;
    let (predecessor, found) = met.unzip();
    notifier.set_silent(takes_over);
    let sockets = Arc::new(Sockets::open(&snapshot.listen, found.unwrap_or_default())?);
    let (shared, work) = Work::begin(live, store, runtime, upgrade, &notifier)?;
    let running = run_pingora(&shared, &snapshot, &sockets, &notifier)?;
    let taken = predecessor.map(|predecessor| predecessor.take_over(&shared, runtime.handle())).transpose();
    let (predecessor, not_taken) = match taken {
        Ok(link) => (link, None),
        Err(error) => (None, Some(error)),
    };
    let mut leave: Option<Box<dyn FnOnce()>> = None;
    if not_taken.is_some() {
        shared.stage.end();
    } else {
        leave = place.and_then(|place| offer(&shared, &sockets, &notifier, runtime, place));
        shared.stage.open();
        shared.leases.iter().for_each(|leases| leases.take_charge());
        notifier.set_silent(false);
        notifier.ready();
        started();
    }
    let runtimes = vec![running.runtime, Arc::new(OnceLock::from(runtime.handle().clone()))];
    let watchdog = Watchdog::new(notifier, runtimes, Instant::now());
    let (guests, pingora_ended) = (running.guests, running.ended);
    End { shared: &shared, sockets: &sockets, guests, predecessor, watchdog, pingora_ended }.wait();

    work.end(runtime);
    if let Some(leave) = leave {
        leave();
    }
    match not_taken {
        Some(error) => Err(ServeError::Upgrade(error)),
        None if shared.recorder.state().failed() => Err(ServeError::SpoolFailed),
        None => Ok(()),
    }
}

/// Lets a process be found that is to take over. Gives what is to be done at the end.
fn offer(
    shared: &Arc<Shared>,
    sockets: &Arc<Sockets>,
    notifier: &Notifier,
    runtime: &Runtime,
    place: Place,
) -> Option<Box<dyn FnOnce()>> {
    let (shared, sockets, notifier) = (Arc::clone(shared), Arc::clone(sockets), notifier.clone());
    let giver = Giver { shared, sockets, notifier, runtime: runtime.handle().clone(), place };
    match giver.start() {
        Ok(leave) => Some(Box::new(leave)),
        Err(error) => {
            tracing::warn!(%error, "no process can take over from this one; it can only be restarted");
            None
        }
    }
}

/// Pingora at work.
struct Running {
    /// Told when it has ended.
    ended: Receiver<()>,
    /// Those of the client API.
    guests: Guests,
    /// What serves them.
    runtime: Arc<OnceLock<Handle>>,
}

/// Starts Pingora on a thread of its own. Nobody is let in yet.
fn run_pingora(
    shared: &Arc<Shared>,
    snapshot: &Snapshot,
    sockets: &Sockets,
    notifier: &Notifier,
) -> Result<Running, ServeError> {
    let process = |error: std::io::Error| ServeError::Process(error.to_string());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let conf = ServerConf {
        threads,
        work_stealing: true,
        upstream_keepalive_pool_size: 128 * threads,
        max_retries: super::upstream::TRIES_MAX,
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let mut clients = client_api(shared, snapshot, &server.configuration, threads)?;
    clients.add(sockets.of("listen.http").map_err(process)?);
    clients.add(sockets.of("listen.https").map_err(process)?);
    let (guests, runtime) = (clients.guests(), clients.runtime());
    server.add_service(clients);
    let mut admin = Door::new("admin", WebListener::new(shared, api_routes(shared)), 1, &shared.stage);
    admin.add(sockets.of("listen.admin").map_err(process)?);
    server.add_service(admin);
    if snapshot.listen.dashboard.is_some() {
        let pages = WebListener::new(shared, dashboard_routes(shared)).for_the_public();
        let mut dashboard = Door::new("dashboard", pages, 1, &shared.stage);
        dashboard.add(sockets.of("listen.dashboard").map_err(process)?);
        server.add_service(dashboard);
    }
    let mut metrics = Door::new("metrics", MetricsListener(Arc::clone(shared)), 1, &shared.stage);
    metrics.add(sockets.of("listen.metrics").map_err(process)?);
    server.add_service(metrics);
    let signals = Signals { shared: Arc::clone(shared), notifier: notifier.clone() };
    let (told, ended) = channel();
    std::thread::Builder::new()
        .name("pingora".into())
        .spawn(move || {
            server.run(RunArgs { shutdown_signal: Box::new(signals) });
            let _ = told.send(());
        })
        .map_err(process)?;
    Ok(Running { ended, guests, runtime })
}

fn client_api(
    shared: &Arc<Shared>,
    snapshot: &Snapshot,
    conf: &Arc<ServerConf>,
    threads: usize,
) -> Result<Door<Gate>, ServeError> {
    let mut proxy = HttpProxy::new(Relay::new(Arc::clone(shared)), Arc::clone(conf));
    proxy.handle_init_modules();
    let mut options = HttpServerOptions::default();
    options.h2c = snapshot.listen.h2c;
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
    let tls = match &snapshot.listen.https {
        Some(https) => Some((https.address, acceptor(shared, https)?)),
        None => None,
    };
    Ok(Door::new("client API", Gate::new(proxy, Arc::clone(shared), tls), threads, &shared.stage))
}

/// How TLS is spoken on `listen.https`. The gate speaks it, so that a connection has its place and its time before its handshake.
fn acceptor(shared: &Shared, https: &config::Https) -> Result<Acceptor, ServeError> {
    let paths = (https.certificate.to_string_lossy(), https.key.to_string_lossy());
    let mut tls = TlsSettings::intermediate(&paths.0, &paths.1)
        .map_err(|error| ServeError::Process(format!("listen.https: {error}")))?;
    tls.set_cert_resolver(Arc::new(Certificates(Arc::clone(&shared.live))));
    tls.set_alpn(ALPN::H2H1);
    Ok(tls.build())
}
