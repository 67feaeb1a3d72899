//! The certificate of `listen.https`: always that of the configuration in force, so a reload swaps it under running
//! connections.

use std::sync::Arc;

use pingora::tls::sign::CertifiedKey;
use pingora::tls::{ClientHello, ResolvesServerCert};

use crate::config::Live;

/// Answers every handshake with the configuration's certificate.
#[derive(Debug)]
pub(super) struct Certificates(pub(super) Arc<Live>);

impl ResolvesServerCert for Certificates {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.load().listen.https.as_ref().map(|https| Arc::clone(&https.identity))
    }
}
