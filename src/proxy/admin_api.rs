//! The listener of the admin API: hyper serves `admin`'s router on what Pingora's application is handed, HTTP/1.1 only, so that the
//! socket is handed over at an upgrade as the others are.
//!
//! Deliberately absent: the routes, and who may use them, which are `admin`'s.

use std::convert::Infallible;
use std::future::Future;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};

use async_trait::async_trait;
use axum::Router;
use axum::response::Response;
use http::{HeaderValue, Request, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use pingora::apps::ServerApp;
use pingora::protocols::Stream;
use pingora::server::ShutdownWatch;

use super::Shared;
use super::failed_logins::Failed;
use crate::admin::api::{self, Api, ConfigStatus, Moment, Peer, Process};
use crate::admin::{Behind, Readiness};

/// How much of a head is read.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// `listen.admin`.
pub(super) struct AdminListener {
    shared: Arc<Shared>,
    routes: Router,
}

impl AdminListener {
    pub(super) fn new(shared: &Arc<Shared>) -> Self {
        let process = Arc::new(Here(Arc::clone(shared)));
        let api = Api::new(Arc::clone(&shared.live), &shared.store, process);
        Self { shared: Arc::clone(shared), routes: api::router(api) }
    }

    /// Answers one request. Whoever asks a process that leaves is told to ask the next on another connection.
    fn answer(
        &self,
        mut request: Request<Incoming>,
        peer: Peer,
    ) -> impl Future<Output = Result<Response, Infallible>> + Send + use<> {
        request.extensions_mut().insert(peer);
        let (answer, shared) = (TowerToHyperService::new(self.routes.clone()).call(request), Arc::clone(&self.shared));
        async move {
            let mut answer = answer.await?;
            if shared.stage.is_leaving() {
                answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok(answer)
        }
    }
}

#[async_trait]
impl ServerApp for AdminListener {
    async fn process_new(self: &Arc<Self>, stream: Stream, leaving: &ShutdownWatch) -> Option<Stream> {
        let digest = stream.get_socket_digest();
        let address = digest.as_ref().and_then(|digest| digest.peer_addr()).and_then(|address| address.as_inet());
        let peer = Peer(address.map(|address| address.ip().to_canonical()));
        let (was_asked, asked) = (Arc::new(AtomicBool::new(false)), Arc::clone(self));
        let service = {
            let was_asked = Arc::clone(&was_asked);
            service_fn(move |request| {
                was_asked.store(true, Ordering::Relaxed);
                asked.answer(request, peer)
            })
        };
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.shared.live.load().limits.header_max)
            .max_buf_size(HEAD_BYTES_MAX)
            .serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);
        let mut leaving = leaving.clone();
        // How a connection ends is its client's affair.
        tokio::select! {
            _ = connection.as_mut() => return None,
            _ = leaving.wait_for(|leaving| *leaving) => {}
        }
        // One that was let in and has not asked yet is answered once.
        if was_asked.load(Ordering::Relaxed) {
            connection.as_mut().graceful_shutdown();
        }
        let _ = connection.await;
        None
    }
}

/// This process, as the API sees it.
struct Here(Arc<Shared>);

#[async_trait]
impl Process for Here {
    fn readiness(&self) -> Readiness {
        let shared = &self.0;
        let mistakes = shared.live.refused();
        Readiness {
            store_reachable: shared.keyring.is_store_reachable(),
            config_mistakes: mistakes.iter().flat_map(|mistakes| mistakes.iter()).map(ToString::to_string).collect(),
            billing_open: shared.recorder.is_open(),
            billing_failed: shared.recorder.state().failed(),
            billing_behind: shared.billing_behind(),
            draining: shared.stage.is_leaving(),
        }
    }

    fn now(&self) -> Moment {
        Moment { us: self.0.clock.now_us(), unix_ms: self.0.clock.unix_ms() }
    }

    fn config(&self) -> ConfigStatus {
        self.0.config_status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn store_changed(&self) {
        // What cannot be taken over now is when the store is asked the next time.
        if let Err(error) = self.0.keyring.catch_up().await {
            tracing::warn!(%error, "a change by the admin API is taken over later");
        }
    }

    fn is_guessing(&self, from: Option<IpAddr>) -> bool {
        let most = self.0.live.load().limits.failed_auth_per_minute_max;
        self.0.failed_logins.is_flooding(Failed::AdminToken, from, most)
    }

    fn wrong_token(&self, from: Option<IpAddr>) {
        self.0.failed_logins.count(Failed::AdminToken, from);
    }
}

impl Shared {
    /// Who keeps the spool full, and why nothing is sold.
    fn billing_behind(&self) -> Vec<Behind> {
        let billing = self.recorder.state();
        if !billing.spool_full() {
            return Vec::new();
        }
        let seconds = |oldest_ms: Option<i64>| oldest_ms.map_or(0, |at| self.seconds_since(at));
        let behind = billing.behind().into_iter();
        behind.map(|(sink, records, oldest)| Behind { sink: sink.into(), records, seconds: seconds(oldest) }).collect()
    }
}
