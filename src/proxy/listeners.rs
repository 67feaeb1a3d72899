//! The client API's listener: a deadline for every request's head around Pingora's proxy, which has none of its own.

use std::any::Any;
use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pingora::apps::{HttpServerApp, HttpServerOptions, ReusedHttpStream};
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v2::server::H2Options;
use pingora::server::ShutdownWatch;
use pingora_proxy::HttpProxy;

use super::Relay;
use crate::config::Live;

tokio::task_local! {
    /// Whether the head of the request that this task reads has arrived.
    static HEAD_ARRIVED: Cell<bool>;
}

/// Called by the first phase after the head.
pub(super) fn head_arrived() {
    // HTTP/2 streams begin with a whole head, and are not watched.
    let _ = HEAD_ARRIVED.try_with(|arrived| arrived.set(true));
}

/// Marks a connection that has had a request, so that it may wait for its next one.
pub(super) struct HadRequest;

/// The proxy, with a deadline for heads.
pub(super) struct HeadDeadline {
    proxy: Arc<HttpProxy<Relay>>,
    live: Arc<Live>,
    /// What a kept connection may wait before its next head begins.
    keep_alive: Duration,
}

impl HeadDeadline {
    pub(super) fn new(proxy: HttpProxy<Relay>, live: Arc<Live>, keep_alive: Duration) -> Self {
        Self { proxy: Arc::new(proxy), live, keep_alive }
    }
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
        let waited = session.take_connection_user_context();
        let kept = waited.is_some_and(|context: Box<dyn Any + Send + Sync>| context.is::<HadRequest>());
        let head_max = self.live.load().limits.header_max;
        let deadline = if kept { self.keep_alive + head_max } else { head_max };
        HEAD_ARRIVED
            .scope(Cell::new(false), async {
                let mut request = self.proxy.process_new_http(session, shutdown);
                tokio::select! {
                    biased;
                    reused = &mut request => return reused,
                    () = tokio::time::sleep(deadline) => {}
                }
                if HEAD_ARRIVED.with(Cell::get) { request.await } else { None }
            })
            .await
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
