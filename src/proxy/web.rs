//! The listeners of the admin API and of the dashboard: hyper serves `admin`'s routers on what Pingora's application is handed,
//! HTTP/1.1 only, so that the sockets are handed over at an upgrade as the others are.
//!
//! Deliberately absent: the routes, and who may use them, which are `admin`'s.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

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
use super::connections::Connections;
use crate::admin::api::Peer;

/// How much of a head is read.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// Serves a router: that of `listen.admin`, or that of `listen.dashboard`.
pub(super) struct WebListener {
    shared: Arc<Shared>,
    routes: Router,
    /// Who is connected, where it is for the public and nobody may hold it all.
    connections: Option<Arc<Connections>>,
}

impl WebListener {
    pub(super) fn new(shared: &Arc<Shared>, routes: Router) -> Self {
        Self { shared: Arc::clone(shared), routes, connections: None }
    }

    /// For the public: one address has so many connections as it may have to the client API, counted apart from those.
    pub(super) fn for_the_public(self) -> Self {
        Self { connections: Some(Arc::default()), ..self }
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
impl ServerApp for WebListener {
    async fn process_new(self: &Arc<Self>, stream: Stream, leaving: &ShutdownWatch) -> Option<Stream> {
        let digest = stream.get_socket_digest();
        let address = digest.as_ref().and_then(|digest| digest.peer_addr()).and_then(|address| address.as_inet());
        let peer = Peer(address.map(|address| address.ip().to_canonical()));
        let limits = self.shared.live.load().limits.clone();
        let place = self.connections.as_ref().map(|open| open.enter(peer.0, limits.connections_per_ip_max));
        if matches!(place, Some(None)) {
            return None;
        }
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
            .header_read_timeout(limits.header_max)
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
