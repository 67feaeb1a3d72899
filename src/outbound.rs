//! The HTTP client for what the relay posts on its own account: usage to webhooks, traces to their receiver.
//!
//! It is `ureq`, which blocks, on threads for that: one request at a time is all that such a sender needs, and HTTP, TLS and time limits
//! come with it in a small tree. It trusts whom the relay trusts as a provider, the certificates of the system.
//!
//! Deliberately absent: following redirects, proxies, and requests to providers, which are `proxy`'s.

use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::ring::default_provider;
use ureq::Agent;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

/// How large an answer's head may be.
const ANSWER_HEAD_BYTES_MAX: usize = 16 * 1024;

const USER_AGENT: &str = concat!("tollgate/", env!("CARGO_PKG_VERSION"));

/// What one request may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Times {
    /// For the name, the connection and TLS.
    pub(crate) connect: Duration,
    /// For all of it.
    pub(crate) answer: Duration,
}

/// A client for that URL. The error is for the operator.
pub(crate) fn agent(url: &str, times: Times) -> Result<Agent, String> {
    let roots = if url.starts_with("https://") { system_roots()? } else { Vec::new() };
    Ok(agent_trusting(roots, times))
}

/// A client that trusts those certificates and no others.
pub(crate) fn agent_trusting(roots: Vec<Certificate<'static>>, times: Times) -> Agent {
    let tls = TlsConfig::builder()
        .root_certs(RootCerts::Specific(Arc::new(roots)))
        .unversioned_rustls_crypto_provider(Arc::new(default_provider()))
        .build();
    let config = Agent::config_builder()
        .tls_config(tls)
        .http_status_as_error(false)
        .max_redirects(0)
        .proxy(None)
        .user_agent(USER_AGENT)
        .max_response_header_size(ANSWER_HEAD_BYTES_MAX)
        .timeout_resolve(Some(times.connect))
        .timeout_connect(Some(times.connect))
        .timeout_global(Some(times.answer))
        .build();
    config.new_agent()
}

/// The certificates that the system trusts, as the proxy reads them for providers.
fn system_roots() -> Result<Vec<Certificate<'static>>, String> {
    let found = rustls_native_certs::load_native_certs();
    let found = found.map_err(|error| format!("the system's certificates cannot be read: {error}"))?;
    if found.is_empty() {
        return Err("the system has no certificates; install ca-certificates, or set SSL_CERT_FILE".to_owned());
    }
    Ok(found.iter().map(|certificate| Certificate::from_der(certificate).to_owned()).collect())
}
