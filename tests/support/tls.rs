//! Certificates for tests, made on the spot, and both ends of TLS.

use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose, date_time_ymd,
};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, StreamOwned, crypto};

use super::PATIENCE;
use super::client::Connection;

/// An authority that signs certificates, known to nobody who is not told.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, as PEM.
#[derive(Clone)]
pub struct Certified {
    pub certificate: String,
    pub key: String,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate for a host name, good until 2096.
    pub fn certify(&self, host: &str) -> Certified {
        self.certify_until(host, 2096)
    }

    /// A certificate for a host name that was good from 2020 to the first day of a year.
    pub fn certify_until(&self, host: &str, year: i32) -> Certified {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, host);
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(year, 1, 1);
        Certified { certificate: params.signed_by(&key, &self.0).unwrap().pem(), key: key.serialize_pem() }
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        roots
    }

    /// A client's side that trusts this authority alone and offers these protocols.
    pub fn client(&self, protocols: &[&str]) -> Arc<ClientConfig> {
        let mut config = ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(self.roots())
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config)
    }
}

impl Certified {
    /// A server's side with this certificate.
    pub fn server(&self) -> Arc<ServerConfig> {
        let chain = vec![CertificateDer::from_pem_slice(self.certificate.as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).unwrap();
        Arc::new(
            ServerConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(chain, key)
                .unwrap(),
        )
    }

    /// Writes `NAME.pem` and `NAME.key`, the key first, as a certificate's renewal would.
    pub fn write(&self, folder: &Path, name: &str) -> (PathBuf, PathBuf) {
        let (certificate, key) = (folder.join(format!("{name}.pem")), folder.join(format!("{name}.key")));
        std::fs::write(&key, &self.key).unwrap();
        std::fs::write(&certificate, &self.certificate).unwrap();
        (certificate, key)
    }
}

/// A connection over TLS for HTTP/1.1, once its handshake is done; `Err` says why it failed.
pub fn connect(to: SocketAddr, host: &str, config: &Arc<ClientConfig>) -> Result<(Connection, Peer), String> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE).map_err(|error| error.to_string())?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    let host = ServerName::try_from(host.to_owned()).unwrap();
    let mut tls = ClientConnection::new(Arc::clone(config), host).unwrap();
    while tls.is_handshaking() {
        tls.complete_io(&mut stream).map_err(|error| error.to_string())?;
    }
    let peer = Peer {
        protocol: tls.alpn_protocol().map(|name| String::from_utf8_lossy(name).into_owned()),
        certificate: tls
            .peer_certificates()
            .and_then(<[_]>::first)
            .map(|certificate| certificate.to_vec())
            .unwrap_or_default(),
    };
    Ok((Connection::over(StreamOwned::new(tls, stream)), peer))
}

/// What a handshake has shown of the server.
pub struct Peer {
    /// The protocol that both have settled on.
    pub protocol: Option<String>,
    /// Its certificate's DER.
    pub certificate: Vec<u8>,
}

impl Certified {
    /// The certificate's DER, to know it by.
    pub fn der(&self) -> Vec<u8> {
        CertificateDer::from_pem_slice(self.certificate.as_bytes()).unwrap().to_vec()
    }
}
