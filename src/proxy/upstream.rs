//! A candidate becomes a peer and a request head, and an upstream's status becomes what happens next.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderName, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, Uri};
use pingora::http::RequestHeader;
use pingora::protocols::ALPN;
use pingora::upstreams::peer::{HttpPeer, HttpUpstreamRequestPolicy};
use pingora::{Error, ErrorSource, ErrorType, OrErr};

use super::exchange::Dispatch;
use super::tape::UPSTREAM_OVERDUE;
use super::{Shared, answer};
use crate::relay::dialect::ProviderError;
use crate::relay::refusal::{Cause, Refusal};
use crate::relay::route::{Dialect, Endpoint, Provider, Secret, Verdict};

/// How many targets, or credentials of one, are asked for one request, at most.
pub(super) const TARGETS_MAX: usize = 3;
/// Each may be asked once more where the connection to it may have been stale.
pub(super) const TRIES_MAX: usize = 2 * TARGETS_MAX;

/// Idle connections to a provider are kept this long: shorter than what their load balancers keep them.
const IDLE_KEPT_SECONDS: u64 = 50;
/// h2's default windows of 64 KiB would let uploads crawl.
const H2_STREAM_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
const H2_CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;
const H2_STREAMS_MAX: usize = 100;
/// A connection that has died without a word is found out by its silence.
const H2_PING_EVERY: Duration = Duration::from_secs(15);

/// Where this try connects to.
///
/// # Errors
/// The provider's host cannot be resolved, or the demo has no port.
pub(super) async fn peer(shared: &Shared, provider: &Provider, turn: usize) -> Result<HttpPeer, String> {
    let (address, tls, host) = match &provider.endpoint {
        Endpoint::Demo => (shared.demo.address().await.map_err(|error| error.to_string())?, false, ""),
        Endpoint::Network(network) => {
            let resolved = shared.resolver.resolve(&network.host, network.port, turn, provider.times.connect);
            (resolved.await?, network.tls, &*network.host)
        }
    };
    let mut peer = resolved(address, tls, host);
    let times = &provider.times;
    let options = &mut peer.options;
    options.connection_timeout = Some(times.connect);
    options.total_connection_timeout = Some(times.connect);
    options.write_timeout = Some(times.total);
    options.idle_timeout = Some(Duration::from_secs(IDLE_KEPT_SECONDS));
    // The head is ours from its first byte to its last: there is nothing of the client's to clean up in it.
    options.http_upstream_request_policy = HttpUpstreamRequestPolicy::preserve();
    if tls {
        options.h2_ping_interval = Some(H2_PING_EVERY);
        options.alpn = ALPN::H2H1;
        options.max_h2_streams = H2_STREAMS_MAX;
        options.h2_stream_window_size = Some(H2_STREAM_WINDOW_BYTES);
        options.h2_connection_window_size = Some(H2_CONNECTION_WINDOW_BYTES);
    }
    Ok(peer)
}

/// A peer at an address that is resolved already, which is the only kind that does not block. With TLS the name is never
/// empty: an empty one would turn verification off.
#[expect(clippy::disallowed_methods, reason = "the address is resolved")]
fn resolved(address: SocketAddr, tls: bool, host: &str) -> HttpPeer {
    HttpPeer::new(address, tls, host.to_owned())
}

/// The head of the request to who is asked. Nothing of the client's head passes.
pub(super) fn request_head(dispatch: &Dispatch, body: &Bytes) -> pingora::Result<RequestHeader> {
    let provider = dispatch
        .target()
        .map(|target| &target.provider)
        .ok_or_else(|| Error::explain(ErrorType::InternalError, "no target is being asked"))?;
    let (prefix, authority) = match &provider.endpoint {
        Endpoint::Demo => ("/v1", "demo"),
        Endpoint::Network(network) => (&*network.path, &*network.authority),
    };
    let uri = Uri::try_from(format!("{prefix}{}", dispatch.path))
        .or_err(ErrorType::InternalError, "a provider's path does not fit into a request")?;
    let mut headers = HeaderMap::with_capacity(HEADERS_USUAL);
    headers.insert(HOST, answer::text(authority)?);
    headers.insert(CONTENT_TYPE, answer::JSON);
    headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    headers.insert(ACCEPT, if dispatch.request.stream() { EVENT_STREAM } else { answer::JSON });
    headers.insert(USER_AGENT, OURSELVES);
    if let Some(credential) = dispatch.stop.as_ref().and_then(|stop| provider.credentials.get(stop.credential)) {
        authenticate(&mut headers, provider.dialect, credential)?;
    }
    if let Some(parent) = dispatch.trace.for_provider() {
        headers.insert(TRACEPARENT, parent);
    }
    let (mut parts, ()) = http::Request::new(()).into_parts();
    (parts.method, parts.uri, parts.headers) = (Method::POST, uri, headers);
    Ok(RequestHeader::from(parts))
}

const EVENT_STREAM: HeaderValue = HeaderValue::from_static("text/event-stream");
const OURSELVES: HeaderValue = HeaderValue::from_static(concat!("tollgate/", env!("CARGO_PKG_VERSION")));
const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const X_GOOG_API_KEY: HeaderName = HeaderName::from_static("x-goog-api-key");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const ANTHROPIC_VERSION: HeaderName = HeaderName::from_static("anthropic-version");

/// How many headers a request has, Pingora's own included.
const HEADERS_USUAL: usize = 12;

/// Each dialect has its own header for the credential.
fn authenticate(headers: &mut HeaderMap, dialect: Dialect, credential: &Secret) -> pingora::Result<()> {
    let (name, value) = match dialect {
        Dialect::OpenAi => (AUTHORIZATION, HeaderValue::try_from(format!("Bearer {}", credential.expose()))),
        Dialect::Anthropic => {
            headers.insert(ANTHROPIC_VERSION, HeaderValue::from_static("2023-06-01"));
            (X_API_KEY, HeaderValue::from_str(credential.expose()))
        }
        Dialect::Gemini => (X_GOOG_API_KEY, HeaderValue::from_str(credential.expose())),
    };
    let mut value =
        value.map_err(|_| Error::explain(ErrorType::InternalError, "a credential does not fit into a header"))?;
    // Debug does not show it, and HPACK does not keep it.
    value.set_sensitive(true);
    headers.insert(name, value);
    Ok(())
}

/// Who may be asked after a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Again {
    /// Another target.
    Target,
    /// The same target with another credential, and nobody else.
    Credential,
    /// The same target with another credential, else another target.
    CredentialOrTarget,
}

/// What a refusal of that status says of who refused, and who may be asked next: where the provider, not the request, was the
/// reason and another may well say otherwise. A quota that is used up is the operator's to mend.
pub(super) fn judge(status: u16, error: &ProviderError) -> (Verdict, Option<Again>) {
    // The provider is well: it has read the request.
    let ProviderError::Provider(refusal) = error else { return (Verdict::Succeeded, None) };
    let failed = match refusal.retry_after_ms {
        // It says itself for how long; that is no sign of worse.
        Some(after_ms) if after_ms > 0 => Verdict::Rest { after_ms },
        _ => Verdict::Failed,
    };
    match refusal.cause {
        Cause::UpstreamRateLimited => (failed, Some(Again::CredentialOrTarget)),
        Cause::UpstreamTimeout => (failed, Some(Again::Target)),
        Cause::UpstreamError => (failed, (status >= 500).then_some(Again::Target)),
        // A credential may be good for one model and not for another.
        Cause::UpstreamAuth if status == 403 => (Verdict::ModelRefused, Some(Again::Credential)),
        Cause::UpstreamAuth => (Verdict::CredentialRefused, Some(Again::Credential)),
        _ => (failed, None),
    }
}

/// Whether the body of a refusal can change what it means.
pub(super) fn body_decides(status: u16) -> bool {
    status < 500
}

/// What the client is told of an error that is not a status; `None` where there is nobody left to be told.
pub(super) fn explain(error: &Error, provider: &str) -> Option<Refusal> {
    let overdue = error.etype() == &UPSTREAM_OVERDUE;
    match error.esource() {
        _ if overdue => {}
        ErrorSource::Upstream => {}
        ErrorSource::Downstream => return None,
        ErrorSource::Internal | ErrorSource::Unset => {
            return Some(Refusal::new(Cause::InternalError, "The relay failed to process the request."));
        }
    }
    let timed_out = overdue
        || matches!(
            error.etype(),
            ErrorType::ConnectTimedout
                | ErrorType::ReadTimedout
                | ErrorType::WriteTimedout
                | ErrorType::TLSHandshakeTimedout
        );
    Some(if timed_out {
        Refusal::new(Cause::UpstreamTimeout, format!("The provider {provider} took too long."))
    } else {
        Refusal::new(Cause::UpstreamError, format!("The provider {provider} could not be reached or broke off."))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::dialect::read_error;

    fn map_error(status: u16, body: &[u8], retry_after_ms: Option<u64>) -> ProviderError {
        read_error(Dialect::OpenAi, status, body, retry_after_ms)
    }

    #[test]
    fn only_what_another_may_answer_is_tried_again() {
        let judged = |status| judge(status, &map_error(status, b"", None));
        for status in [408, 500, 502, 503, 504, 529] {
            assert_eq!(judged(status), (Verdict::Failed, Some(Again::Target)), "{status}");
        }
        assert_eq!(judged(429), (Verdict::Failed, Some(Again::CredentialOrTarget)));
        assert_eq!(judged(401), (Verdict::CredentialRefused, Some(Again::Credential)));
        assert_eq!(judged(403), (Verdict::ModelRefused, Some(Again::Credential)));
        for status in [402, 404] {
            assert_eq!(judged(status), (Verdict::Failed, None), "{status}");
        }
        for status in [400, 413, 422] {
            assert_eq!(judged(status), (Verdict::Succeeded, None), "the provider is well: {status}");
        }
        let quota = br#"{"error":{"message":"no","type":"insufficient_quota","code":"insufficient_quota"}}"#;
        assert_eq!(judge(429, &map_error(429, quota, None)), (Verdict::Failed, None));
        let rest = Verdict::Rest { after_ms: 7_000 };
        assert_eq!(judge(503, &map_error(503, b"", Some(7_000))), (rest, Some(Again::Target)));
    }
}
