//! The floor: a Pingora proxy that passes and does nothing else. One upstream, Pingora's defaults, as many threads as
//! the cores it may use.

use std::net::SocketAddr;

use async_trait::async_trait;
use pingora::prelude::{HttpPeer, Server};
use pingora::server::RunArgs;
use pingora::server::configuration::ServerConf;
use pingora_proxy::{ProxyHttp, Session, http_proxy_service};

struct Bare {
    upstream: SocketAddr,
}

#[async_trait]
impl ProxyHttp for Bare {
    type CTX = ();

    fn new_ctx(&self) {}

    async fn upstream_peer(&self, _session: &mut Session, _ctx: &mut ()) -> pingora::Result<Box<HttpPeer>> {
        #[expect(clippy::disallowed_methods, reason = "given a resolved address")]
        let peer = HttpPeer::new(self.upstream, false, String::new());
        Ok(Box::new(peer))
    }
}

/// Proxies until its process is ended.
pub fn run(listen: SocketAddr, upstream: SocketAddr) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut server = Server::new_with_opt_and_conf(None, ServerConf { threads, ..ServerConf::default() });
    server.bootstrap();
    let mut service = http_proxy_service(&server.configuration, Bare { upstream });
    service.add_tcp(&listen.to_string());
    server.add_service(service);
    server.run(RunArgs::default());
}
