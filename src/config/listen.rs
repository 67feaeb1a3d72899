//! `[listen]`: addresses that parse and do not collide, certificates that fit their keys.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{Error as TlsError, InconsistentKeys};

use super::reader::Value;
use super::snapshot::{Https, Listen};

/// Reads the table. What is wrong is reported and left out.
pub(super) fn read(value: &Value<'_>) -> Option<Listen> {
    let table = value.table()?;
    let mut taken = Taken::default();
    let mut at = |key| {
        let value = table.optional(key)?;
        let address = address(&value)?;
        taken.take(address, &value);
        Some(address)
    };
    let (http, dashboard, admin, metrics) = (at("http"), at("dashboard"), at("admin"), at("metrics"));
    let https = table.optional("https");
    let has_client_api = table.optional("http").is_some() || https.is_some();
    let https = https.and_then(|value| self::https(&value, &mut taken));
    let h2c = table.optional("h2c");
    let h2c = h2c.is_some_and(|value| {
        let on = value.boolean().unwrap_or_default();
        if on && table.optional("http").is_none() {
            value.report("is cleartext HTTP/2 on listen.http, which is not there; add http, or remove h2c");
        }
        on
    });
    if !has_client_api {
        table.report(r#"nobody could reach the relay; add http = "127.0.0.1:8080" or https"#);
    }
    table.finish();
    Some(Listen { http, h2c, https, dashboard, admin, metrics })
}

/// The addresses listened on so far.
#[derive(Default)]
struct Taken(Vec<(SocketAddr, String)>);

impl Taken {
    fn take(&mut self, address: SocketAddr, value: &Value<'_>) {
        if let Some((_, name)) = self.0.iter().find(|(taken, _)| collide(*taken, address)) {
            value.report(format_args!("{address} is taken by {name}; give each its own port"));
        }
        self.0.push((address, value.name().to_owned()));
    }
}

/// Whether only one of two listeners could be bound. Port 0 is a free port of the system's choice.
fn collide(one: SocketAddr, other: SocketAddr) -> bool {
    let covers =
        |a: SocketAddr, b: SocketAddr| a.ip() == b.ip() || (a.ip().is_unspecified() && a.is_ipv4() == b.is_ipv4());
    one.port() == other.port() && one.port() != 0 && (covers(one, other) || covers(other, one))
}

fn address(value: &Value<'_>) -> Option<SocketAddr> {
    let text = value.string()?;
    text.parse().ok().or_else(|| {
        value.refuse(format_args!(
            "{text:?} is not an address to listen on; write an IP address and a port, such as \"127.0.0.1:8080\" or \
             \"[::]:8080\""
        ))
    })
}

fn https(value: &Value<'_>, taken: &mut Taken) -> Option<Https> {
    let table = value.table()?;
    let at = table.required("address", r#"write an IP address and a port, such as "0.0.0.0:8443""#);
    let certificate = table.required("certificate", "write the path of a PEM file with the certificate and its chain");
    let key = table.required("key", "write the path of a PEM file with the certificate's private key");
    table.finish();
    let address = at.and_then(|value| {
        let address = address(&value)?;
        taken.take(address, &value);
        Some(address)
    });
    let (certificate, key) = (certificate?, key?);
    let chain = pem_file(&certificate, |pem| {
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>()?;
        if chain.is_empty() { Err(pem::Error::NoItemsFound) } else { Ok(chain) }
    });
    let private_key = pem_file(&key, PrivateKeyDer::from_pem_slice);
    let identity = identity(&certificate, &key, chain?, private_key?)?;
    let path = |value: &Value<'_>| Some(value.source.resolve(value.string()?));
    Some(Https { address: address?, certificate: path(&certificate)?, key: path(&key)?, identity: Arc::new(identity) })
}

fn pem_file<T>(value: &Value<'_>, parse: impl FnOnce(&[u8]) -> Result<T, pem::Error>) -> Option<T> {
    let path = value.source.resolve(value.string()?);
    let shown = Path::display(&path);
    match value.source.reading.files.borrow_mut().read(&path) {
        Ok(pem) => parse(&pem).ok().or_else(|| {
            value.refuse(format_args!("there is none in {shown}, or not as PEM; name a file that holds it"))
        }),
        Err(error) => {
            value.refuse(format_args!("{shown} cannot be read: {error}; name a file that this user may read"))
        }
    }
}

fn identity(
    certificate: &Value<'_>,
    key: &Value<'_>,
    chain: Vec<CertificateDer<'static>>,
    private_key: PrivateKeyDer<'static>,
) -> Option<CertifiedKey> {
    match CertifiedKey::from_der(chain, private_key, &ring::default_provider()) {
        Ok(identity) => Some(identity),
        Err(TlsError::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
            key.refuse("is not the key of listen.https.certificate; name the two that were made together")
        }
        Err(TlsError::InvalidCertificate(why)) => {
            certificate.refuse(format_args!("its first certificate cannot be used: {why:?}; replace it"))
        }
        Err(error) => key.refuse(format_args!("cannot be used: {error}; replace it")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{mistakes_of, with_root};
    use super::*;

    fn read_listen(toml: &str) -> (Option<Listen>, String) {
        let mut listen = None;
        let mistakes = with_root(toml, &|_| None, |root| {
            listen = root.required("listen", "").and_then(|value| read(&value));
        });
        (listen, mistakes_of(&mistakes))
    }

    #[test]
    fn addresses_are_read() {
        let (listen, told) = read_listen("listen = { http = '127.0.0.1:80', h2c = true, metrics = '[::1]:80' }");
        let listen = listen.unwrap();
        assert_eq!((told.as_str(), listen.h2c), ("", true));
        assert_eq!(listen.http, Some("127.0.0.1:80".parse().unwrap()));
        assert_eq!(listen.metrics, Some("[::1]:80".parse().unwrap()));
    }

    #[test]
    fn listeners_that_cannot_both_be_bound_are_refused() {
        let address = |text: &str| -> SocketAddr { text.parse().unwrap() };
        assert!(collide(address("127.0.0.1:80"), address("127.0.0.1:80")));
        assert!(collide(address("127.0.0.1:80"), address("0.0.0.0:80")));
        assert!(collide(address("[::]:80"), address("[::1]:80")));
        assert!(!collide(address("127.0.0.1:80"), address("127.0.0.2:80")));
        assert!(!collide(address("127.0.0.1:80"), address("127.0.0.1:81")));
        assert!(!collide(address("127.0.0.1:0"), address("127.0.0.1:0")));
        let (_, told) = read_listen("listen = { http = '0.0.0.0:80', admin = '127.0.0.1:80' }");
        assert!(told.contains("listen.admin: 127.0.0.1:80 is taken by listen.http"), "{told}");
    }

    #[test]
    fn a_listener_for_clients_is_needed() {
        let (_, told) = read_listen("listen = { metrics = '127.0.0.1:80', h2c = true }");
        assert!(told.contains("nobody could reach the relay"), "{told}");
        assert!(told.contains("listen.h2c"), "{told}");
    }

    #[test]
    fn a_certificate_must_be_there_and_fit_its_key() {
        let folder = tempfile::tempdir().unwrap();
        let one = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let other = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let write = |name: &str, text: String| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let certificate = write("cert.pem", one.cert.pem());
        let key = write("key.pem", one.signing_key.serialize_pem());
        let other_key = write("other.pem", other.signing_key.serialize_pem());
        let listen = |certificate: &Path, key: &Path| {
            read_listen(&format!(
                "listen.https = {{ address = '127.0.0.1:0', certificate = {certificate:?}, key = {key:?} }}"
            ))
        };
        let (good, told) = listen(&certificate, &key);
        assert_eq!(told, "");
        assert_eq!(good.unwrap().https.unwrap().identity.cert.len(), 1);
        assert!(listen(&certificate, &other_key).1.contains("is not the key of"));
        assert!(listen(&key, &certificate).1.contains("there is none in"));
        let (_, told) = listen(Path::new("/nonexistent/c"), Path::new("/nonexistent/k"));
        assert_eq!(told.matches("cannot be read").count(), 2, "{told}");
    }
}
