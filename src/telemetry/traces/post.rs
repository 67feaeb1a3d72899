//! How spans travel: posted as protobuf, with `ureq`, which blocks the thread that sends them and nobody else.
//!
//! Deliberately absent: redirects, proxies, compression, and the receiver's words in the log, which may repeat what they
//! were sent.

use std::sync::Arc;
use std::time::Duration;

use http::header::CONTENT_TYPE;
use prost::Message;
use rustls::crypto::ring::default_provider;
use ureq::Agent;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use super::TracesPlace;
use super::wire::Exported;
use crate::relay::route::Secret;

/// For the name, the connection and TLS.
const CONNECT_MAX: Duration = Duration::from_secs(3);
/// For all of it.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// How much of an answer is read.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;

const USER_AGENT: &str = concat!("tollgate/", env!("CARGO_PKG_VERSION"));

/// Posts to one endpoint.
pub(super) struct Post {
    agent: Agent,
    endpoint: Box<str>,
    headers: Vec<(Box<str>, Secret)>,
}

/// What has come of a batch.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Delivery {
    /// It was taken, but for so many spans.
    Taken { rejected: u64 },
    /// It cannot be taken now.
    Later(String),
    /// It will not be taken.
    Refused(String),
}

impl Post {
    /// Makes ready; nobody is asked yet. The error is for the operator.
    pub(super) fn open(place: &TracesPlace) -> Result<Self, String> {
        let roots = if place.endpoint.starts_with("https://") { system_roots()? } else { Vec::new() };
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
            .timeout_resolve(Some(CONNECT_MAX))
            .timeout_connect(Some(CONNECT_MAX))
            .timeout_global(Some(ANSWER_MAX))
            .build();
        Ok(Self { agent: config.new_agent(), endpoint: place.endpoint.clone(), headers: place.headers.clone() })
    }

    /// Posts a batch, and waits for what comes of it.
    pub(super) fn send(&self, body: &[u8]) -> Delivery {
        let mut request = self.agent.post(&*self.endpoint).header(CONTENT_TYPE, "application/x-protobuf");
        for (name, value) in &self.headers {
            request = request.header(&**name, value.expose());
        }
        let mut answer = match request.send(body) {
            Ok(answer) => answer,
            Err(error) => return Delivery::Later(error.to_string()),
        };
        let said = answer.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_vec().unwrap_or_default();
        judge(answer.status().as_u16(), &said)
    }
}

/// What an answer means (OTLP's specification, "OTLP/HTTP Response").
fn judge(status: u16, said: &[u8]) -> Delivery {
    let why = || format!("the receiver answered {status}");
    match status {
        200..=299 => {
            let partial = Exported::decode(said).ok().and_then(|exported| exported.partial_success);
            let rejected = partial.map_or(0, |partial| u64::try_from(partial.rejected_spans).unwrap_or(0));
            Delivery::Taken { rejected }
        }
        429 | 502 | 503 | 504 => Delivery::Later(why()),
        _ => Delivery::Refused(why()),
    }
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

#[cfg(test)]
mod tests {
    use super::super::wire::PartialSuccess;
    use super::*;

    #[test]
    fn an_answer_means_what_the_specification_says() {
        assert_eq!(judge(200, b""), Delivery::Taken { rejected: 0 });
        assert_eq!(judge(200, b"{}"), Delivery::Taken { rejected: 0 }, "what is no protobuf says nothing");
        let partial = Exported { partial_success: Some(PartialSuccess { rejected_spans: 3 }) };
        assert_eq!(judge(200, &partial.encode_to_vec()), Delivery::Taken { rejected: 3 });
        for status in [429, 502, 503, 504] {
            assert!(matches!(judge(status, b""), Delivery::Later(_)), "{status}");
        }
        for status in [301, 400, 401, 404, 413, 500] {
            assert!(matches!(judge(status, b""), Delivery::Refused(_)), "{status}");
        }
    }
}
