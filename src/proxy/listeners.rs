//! The client API's listener: who may connect, and how long a connection may take to say what it wants. Pingora's proxy has no limit
//! for either.
//!
//! TLS is spoken here rather than in Pingora's listener, which would have neither counted the connection before its handshake nor
//! ended a handshake that does not.

use std::any::Any;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use async_trait::async_trait;
use pingora::apps::{HttpServerApp, HttpServerOptions, ReusedHttpStream, ServerApp};
use pingora::listeners::tls::Acceptor;
use pingora::protocols::Stream;
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v2::server::H2Options;
use pingora::protocols::l4;
use pingora::server::ShutdownWatch;
use pingora_proxy::HttpProxy;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::connections::Closed;
use super::link::{Link, Stage};
use super::parting::Parting;
use super::wire::Wire;
use super::{Relay, Shared};
use crate::relay::refusal::{Cause, Refusal};

/// Called by the first phase after the head.
pub(super) fn head_arrived() {
    // HTTP/2 streams begin with a whole head, and are not watched.
    if let Some(link) = Link::current() {
        link.head_arrived();
    }
}

/// Marks a connection that has had a request, so that it may wait for its next one.
pub(super) struct HadRequest;

/// How many of those who may not connect are told so at a time. Past it they are closed without a word: telling takes a moment for
/// which their connection is open.
const TOLD_AT_ONCE_MAX: usize = 1024;

/// Takes connections in.
pub(super) struct Gate {
    http: Arc<HeadDeadline>,
    shared: Arc<Shared>,
    /// The listener that speaks TLS.
    tls: Option<(SocketAddr, Acceptor)>,
    telling: Semaphore,
}

impl Gate {
    /// `tls` is the address on which TLS is spoken, and how.
    pub(super) fn new(proxy: HttpProxy<Relay>, shared: Arc<Shared>, tls: Option<(SocketAddr, Acceptor)>) -> Self {
        let http = Arc::new(HeadDeadline { proxy: Arc::new(proxy), shared: Arc::clone(&shared) });
        Self { http, shared, tls, telling: Semaphore::new(TOLD_AT_ONCE_MAX) }
    }

    /// How TLS is spoken with who came to that address.
    fn tls_at(&self, local: Option<SocketAddr>) -> Option<&Acceptor> {
        let (address, acceptor) = self.tls.as_ref()?;
        let local = local?;
        let is_there = address.port() == local.port() && (address.ip().is_unspecified() || address.ip() == local.ip());
        is_there.then_some(acceptor)
    }

    /// Serves a connection to its end.
    async fn serve(&self, stream: Stream, acceptor: Option<&Acceptor>, shutdown: &ShutdownWatch) {
        let head_max = self.shared.live.load().limits.header_max;
        let due = Instant::now() + head_max;
        let stream = match acceptor {
            None => Some(stream),
            Some(acceptor) => self.handshake(acceptor, stream, due).await,
        };
        let Some(stream) = stream else { return };
        let link = Arc::new(Link::new(due, head_max));
        let wire = Wire::new(stream, Arc::clone(&link), Arc::clone(&self.shared));
        link.scope(async {
            let mut serving = self.http.process_new(Box::new(wire), shutdown);
            tokio::select! {
                biased;
                _ = &mut serving => return,
                () = link.past(Stage::Opening) => {}
                () = sleep_until(due) => return self.shared.connections.closed(Closed::TooSlow),
            }
            serving.await;
        })
        .await;
    }

    async fn handshake(&self, acceptor: &Acceptor, stream: Stream, due: Instant) -> Option<Stream> {
        let stream = stream.into_any().downcast::<l4::stream::Stream>().ok()?;
        match timeout_at(due, acceptor.tls_handshake(*stream)).await {
            Ok(Ok(stream)) => Some(Box::new(stream)),
            Ok(Err(error)) => {
                tracing::debug!(%error, "a TLS handshake failed");
                None
            }
            Err(_) => {
                self.shared.connections.closed(Closed::TooSlow);
                None
            }
        }
    }

    /// Tells a client that it may not connect, where that takes no handshake.
    async fn turn_away(&self, mut stream: Stream, has_tls: bool) {
        self.shared.connections.closed(Closed::TooMany);
        if has_tls {
            return;
        }
        let Ok(_turn) = self.telling.try_acquire() else { return };
        let refusal =
            Refusal::new(Cause::Overloaded, "Too many connections come from this address.").retry_after_ms(1000);
        let mut parting = Parting::new(&refusal);
        std::future::poll_fn(|context| parting.poll_part(&mut stream, context)).await;
    }
}

#[async_trait]
impl ServerApp for Gate {
    async fn process_new(self: &Arc<Self>, stream: Stream, shutdown: &ShutdownWatch) -> Option<Stream> {
        let digest = stream.get_socket_digest();
        let inet = |address: Option<&l4::socket::SocketAddr>| address.and_then(|address| address.as_inet()).copied();
        let peer: Option<IpAddr> = inet(digest.as_ref().and_then(|digest| digest.peer_addr())).map(|peer| peer.ip());
        let acceptor = self.tls_at(inet(digest.as_ref().and_then(|digest| digest.local_addr())));
        // Of the configuration in force: a reload counts for those who come after it.
        let most = self.shared.live.load().limits.connections_per_ip_max;
        match self.shared.connections.enter(peer, most) {
            Some(place) => {
                self.serve(stream, acceptor, shutdown).await;
                drop(place);
            }
            None => self.turn_away(stream, acceptor.is_some()).await,
        }
        None
    }

    async fn cleanup(&self) {
        self.http.http_cleanup().await;
    }
}

/// The proxy, with a deadline for heads.
struct HeadDeadline {
    proxy: Arc<HttpProxy<Relay>>,
    shared: Arc<Shared>,
}

#[async_trait]
impl HttpServerApp for HeadDeadline {
    async fn process_new_http(
        self: &Arc<Self>,
        mut session: ServerSession,
        shutdown: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        if session.is_http2() {
            return self.proxy.process_new_http(session, shutdown).await;
        }
        let link = Link::current()?;
        let waited = session.take_connection_user_context();
        let is_kept = waited.is_some_and(|context: Box<dyn Any + Send + Sync>| context.is::<HadRequest>());
        let limits = self.shared.live.load().limits.clone();
        link.expect_head();
        let mut request = self.proxy.process_new_http(session, shutdown);
        let due = if is_kept {
            // Idle, until there is something to wait for.
            tokio::select! {
                biased;
                reused = &mut request => return reused,
                () = link.past(Stage::Waiting) => {}
                () = sleep_until(Instant::now() + limits.keep_alive_max) => return None,
            }
            if link.stage() == Stage::Answering {
                return request.await;
            }
            Instant::now() + limits.header_max
        } else {
            link.first_head_due()
        };
        tokio::select! {
            biased;
            reused = &mut request => return reused,
            () = sleep_until(due) => {}
        }
        if link.stage() == Stage::Answering {
            return request.await;
        }
        self.shared.connections.closed(Closed::TooSlow);
        None
    }

    fn h2_options(&self) -> Option<H2Options> {
        self.proxy.h2_options()
    }

    fn server_options(&self) -> Option<&HttpServerOptions> {
        self.proxy.server_options()
    }

    async fn http_cleanup(&self) {
        self.proxy.http_cleanup().await;
    }
}
