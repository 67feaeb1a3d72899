//! The webhook against receivers that answer by a script, over real sockets.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::crypto::ring::default_provider;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use ureq::tls::Certificate;
use uuid::Uuid;

use super::super::testing::{BEGIN_MS, ids, records, times};
use super::*;

const KEY_BYTES: &[u8] = b"an example of thirty-two bytes!!";

/// What a receiver does with a request.
#[derive(Debug, Clone)]
enum Act {
    /// Answers with this head, without the status line's `HTTP/1.1 `.
    Answer(&'static str),
    /// Takes the request and closes without a word.
    Close,
    /// Takes the request and says nothing, until the client leaves.
    Wait,
    /// Answers 400 where the batch has this one, and 200 otherwise.
    RefuseOne(Uuid),
}

/// A request as it came.
#[derive(Debug, Clone)]
struct Seen {
    path: String,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl Seen {
    fn ids(&self) -> Vec<Uuid> {
        let events: Vec<Value> = serde_json::from_slice(&self.body).unwrap();
        events.iter().map(|event| event["id"].as_str().unwrap().parse().unwrap()).collect()
    }
}

struct Receiver {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Receiver {
    /// Does these one after the other, and the last for ever.
    async fn start(script: Vec<Act>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, seen) = (listener.local_addr().unwrap(), Arc::<Mutex<Vec<Seen>>>::default());
        let kept = Arc::clone(&seen);
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                while let Some(request) = read(&mut stream).await {
                    let count = {
                        let mut seen = kept.lock().unwrap();
                        seen.push(request.clone());
                        seen.len()
                    };
                    let act = script.get(count - 1).or(script.last()).unwrap().clone();
                    if !perform(act, &request, &mut stream).await {
                        break;
                    }
                }
            }
        });
        Self { address, seen }
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    fn webhook(&self) -> Webhook {
        webhook(&format!("http://{}/in?a=b", self.address), Limits::default())
    }
}

async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Option<Seen> {
    let mut bytes = Vec::new();
    let head_bytes = loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(bytes[..head_bytes].to_vec()).unwrap();
    let mut lines = head.trim_end().split("\r\n");
    let path = lines.next().unwrap().split(' ').nth(1).unwrap().to_owned();
    let headers = lines.map(|line| line.split_once(": ").unwrap());
    let headers: BTreeMap<_, _> = headers.map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect();
    let length: usize = headers["content-length"].parse().unwrap();
    while bytes.len() < head_bytes + length {
        assert!(stream.read_buf(&mut bytes).await.unwrap() > 0);
    }
    Some(Seen { path, headers, body: bytes.split_off(head_bytes) })
}

/// Whether the connection goes on.
async fn perform(act: Act, request: &Seen, stream: &mut TcpStream) -> bool {
    let head = match act {
        Act::Answer(head) => head,
        Act::RefuseOne(id) if request.ids().contains(&id) => "400 Bad Request\r\ncontent-length: 2\r\n\r\nno",
        Act::RefuseOne(_) => "200 OK\r\ncontent-length: 0\r\n\r\n",
        Act::Close => return false,
        Act::Wait => {
            let _ = stream.read_u8().await;
            return false;
        }
    };
    stream.write_all(format!("HTTP/1.1 {head}").as_bytes()).await.unwrap();
    true
}

fn webhook(url: &str, limits: Limits) -> Webhook {
    Webhook::open("webhook".into(), post(url), limits, times().0.unix_ms).unwrap()
}

fn post(url: &str) -> Post {
    let key = SigningKey::parse(&format!("whsec_{}", STANDARD.encode(KEY_BYTES))).unwrap();
    let authorization = Some(Secret::new("om_token"));
    Post { url: url.into(), key, authorization, source: "tollgate-eu".into() }
}

/// HMAC-SHA256 as RFC 2104 defines it, by nothing that the program uses for it.
fn hmac(key: &[u8], message: &[u8]) -> Vec<u8> {
    let padded = |pad: u8| -> Vec<u8> { (0..64).map(|at| key.get(at).unwrap_or(&0) ^ pad).collect() };
    let inner = Sha256::digest([&padded(0x36), message].concat());
    Sha256::digest([&padded(0x5c), inner.as_slice()].concat()).to_vec()
}

#[tokio::test]
async fn a_batch_is_posted_and_signed() {
    let receiver = Receiver::start(vec![Act::Answer("204 No Content\r\n\r\n")]).await;
    let mut webhook = receiver.webhook();
    assert_eq!(webhook.deliver(&records(0..3)).await, Ok(()));
    let seen = receiver.seen();
    let [request] = &seen[..] else { panic!("{seen:?}") };
    assert_eq!(request.path, "/in?a=b");
    assert_eq!(request.headers["content-type"], "application/cloudevents-batch+json");
    assert_eq!(request.headers["authorization"], "Bearer om_token");
    assert_eq!(request.headers["user-agent"], concat!("tollgate/", env!("CARGO_PKG_VERSION")));
    assert_eq!(request.ids(), ids(&records(0..3)));
    let events: Vec<Value> = serde_json::from_slice(&request.body).unwrap();
    assert!(events.iter().all(|event| event["source"] == "tollgate-eu"));

    let timestamp = &request.headers["webhook-timestamp"];
    assert_eq!(*timestamp, (BEGIN_MS / 1_000).to_string());
    let id = &request.headers["webhook-id"];
    assert!(id.len() == 36 && !id.contains('.'), "{id}");
    let signed = [format!("{id}.{timestamp}.").as_bytes(), &request.body].concat();
    let expected = format!("v1,{}", STANDARD.encode(hmac(KEY_BYTES, &signed)));
    assert_eq!(request.headers["webhook-signature"], expected);
}

#[tokio::test]
async fn the_same_batch_is_the_same_message_and_connections_are_used_again() {
    let receiver = Receiver::start(vec![Act::Answer("200 OK\r\ncontent-length: 5\r\n\r\nhello")]).await;
    let mut webhook = receiver.webhook();
    for range in [0..3, 0..3, 0..2] {
        webhook.deliver(&records(range)).await.unwrap();
    }
    let seen = receiver.seen();
    let message: Vec<&String> = seen.iter().map(|request| &request.headers["webhook-id"]).collect();
    assert_eq!(message[0], message[1]);
    assert_ne!(message[0], message[2]);
}

#[tokio::test]
async fn answers_are_taken_at_their_word() {
    for (head, expected) in [
        ("202 Accepted\r\ncontent-length: 0\r\n\r\n", Ok(())),
        ("429 Slow\r\nretry-after: 7\r\ncontent-length: 0\r\n\r\n", Err(Some(7))),
        ("503 Down\r\nretry-after: Mon, 23 Nov 2026 10:15:30 GMT\r\ncontent-length: 0\r\n\r\n", Err(Some(30))),
        ("503 Down\r\nretry-after: Mon, 23 Nov 2026 10:14:30 GMT\r\ncontent-length: 0\r\n\r\n", Err(None)),
        ("500 Oops\r\nretry-after: soon\r\ncontent-length: 0\r\n\r\n", Err(None)),
    ] {
        let receiver = Receiver::start(vec![Act::Answer(head)]).await;
        let outcome = match receiver.webhook().deliver(&records(0..1)).await {
            Ok(()) => Ok(()),
            Err(SinkError::Later { retry_after, .. }) => Err(retry_after.map(|pause| pause.as_secs())),
            Err(other) => panic!("{other:?}"),
        };
        assert_eq!(outcome, expected, "{head}");
    }
}

#[test]
fn every_status_has_its_meaning() {
    let judged = |status: u16| judge(StatusCode::from_u16(status).unwrap(), None);
    for status in [200, 201, 202, 204] {
        assert_eq!(judged(status), Ok(()));
    }
    for status in [408, 425, 429, 500, 502, 503, 504, 529] {
        assert!(matches!(judged(status), Err(SinkError::Later { .. })), "{status}");
    }
    for status in [300, 301, 302, 307, 401, 403, 404, 410, 415, 600] {
        assert!(matches!(judged(status), Err(SinkError::Closed(_))), "{status}");
    }
    for status in [400, 409, 422] {
        assert!(matches!(judged(status), Err(SinkError::Refused(_))), "{status}");
    }
    assert!(matches!(judged(413), Err(SinkError::TooLarge(_))));
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let elsewhere = Receiver::start(vec![Act::Answer("200 OK\r\ncontent-length: 0\r\n\r\n")]).await;
    let head = format!("302 Found\r\nlocation: http://{}/\r\ncontent-length: 0\r\n\r\n", elsewhere.address);
    let receiver = Receiver::start(vec![Act::Answer(head.leak())]).await;
    let outcome = receiver.webhook().deliver(&records(0..1)).await;
    assert_eq!(outcome, Err(SinkError::Closed("the receiver answered 302".to_owned())));
    assert_eq!((receiver.seen().len(), elsewhere.seen().len()), (1, 0));
}

#[tokio::test]
async fn nobody_there_is_no_end() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let outcome = webhook(&format!("http://{address}/"), Limits::default()).deliver(&records(0..1)).await;
    assert!(matches!(&outcome, Err(SinkError::Later { why, .. }) if why.contains("refused")), "{outcome:?}");
}

#[tokio::test]
async fn a_lost_acknowledgement_brings_the_same_ids_again() {
    let receiver = Receiver::start(vec![Act::Close, Act::Answer("200 OK\r\ncontent-length: 0\r\n\r\n")]).await;
    let mut webhook = receiver.webhook();
    let outcome = webhook.deliver(&records(0..2)).await;
    assert!(matches!(outcome, Err(SinkError::Later { .. })), "{outcome:?}");
    assert_eq!(webhook.deliver(&records(0..2)).await, Ok(()));
    let seen = receiver.seen();
    assert_eq!(seen[0].ids(), seen[1].ids());
    assert_eq!(seen[0].headers["webhook-id"], seen[1].headers["webhook-id"]);
}

#[tokio::test]
async fn a_receiver_that_says_nothing_is_left() {
    let receiver = Receiver::start(vec![Act::Wait]).await;
    let usual = Limits::default();
    let limits = Limits { times: Times { answer: Duration::from_millis(200), ..usual.times }, ..usual };
    let outcome = webhook(&format!("http://{}/", receiver.address), limits).deliver(&records(0..1)).await;
    assert!(matches!(&outcome, Err(SinkError::Later { why, .. }) if why.contains("timeout")), "{outcome:?}");
    assert_eq!(receiver.seen().len(), 1);
}

#[tokio::test]
async fn what_is_too_large_is_not_sent() {
    let receiver = Receiver::start(vec![Act::Answer("200 OK\r\ncontent-length: 0\r\n\r\n")]).await;
    let limits = Limits { body_bytes_max: 1_000, ..Limits::default() };
    let mut webhook = webhook(&format!("http://{}/", receiver.address), limits);
    assert!(matches!(webhook.deliver(&records(0..2)).await, Err(SinkError::TooLarge(_))));
    assert_eq!(receiver.seen().len(), 0);
    assert_eq!(webhook.deliver(&records(0..1)).await, Ok(()));
}

#[tokio::test]
async fn one_refused_record_is_found_and_the_others_get_through() {
    use super::super::testing::MemorySource;
    let poison = records(0..100)[42].request_id;
    let receiver = Receiver::start(vec![Act::RefuseOne(poison)]).await;
    let source = MemorySource::new(records(0..100));
    source.close();
    let state = Arc::clone(source.state());
    super::super::run(receiver.webhook(), source.clone(), times().0, state, std::future::pending()).await;
    let refused = |request: &Seen| request.ids().contains(&poison);
    let mut taken: Vec<Uuid> = receiver.seen().iter().filter(|request| !refused(request)).flat_map(Seen::ids).collect();
    taken.sort_unstable();
    assert_eq!(taken.len(), 99, "each once");
    assert_eq!(source.waiting(), 0);
    let parked = source.parked_now();
    assert_eq!((parked.len(), parked[0].record.request_id), (1, poison));
    assert_eq!(parked[0].why, "the receiver answered 400");
    assert_eq!((source.state().delivered(), source.state().parked()), (99, 1));
}

#[tokio::test]
async fn only_certificates_that_are_trusted_get_anything() {
    let certified = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}/", listener.local_addr().unwrap().port());
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            read(&mut stream).await.unwrap();
            stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
        }
    });

    let outcome = webhook(&url, Limits::default()).deliver(&records(0..1)).await;
    assert!(matches!(&outcome, Err(SinkError::Later { why, .. }) if why.contains("certificate")), "{outcome:?}");

    let root = Certificate::from_der(certified.cert.der()).to_owned();
    let limits = Limits::default();
    let agent = outbound::agent_trusting(vec![root], limits.times);
    let mut trusting = Webhook::with(agent, "webhook".into(), post(&url), limits, times().0.unix_ms);
    assert_eq!(trusting.deliver(&records(0..1)).await, Ok(()));
}
