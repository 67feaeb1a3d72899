//! A provider behind TLS that speaks HTTP/2 and does what a test tells it.
//!
//! What it does to a stream is a list of acts, so that a script can end one in every way that the protocol has: by a frame
//! of data, by its headers alone, by trailers, by a reset, by the connection's end, or never.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

use super::Gate;
use super::client::Headers;
use super::tls::Certified;
use super::upstream::{finish, usage, usage_chunk, word};

/// A request as it arrived.
#[derive(Debug, Clone)]
pub struct Asked {
    pub path: String,
    pub authority: Option<String>,
    pub headers: Headers,
    pub body: Vec<u8>,
    /// Which connection it came on, counted from 0.
    pub connection: usize,
}

impl Asked {
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("the upstream got a body that is not JSON")
    }
}

/// What is done to a stream, in order. Where the acts end without an end, the stream stays open for as long as the upstream.
#[derive(Clone)]
pub enum Act {
    /// HEADERS.
    Head(u16, Vec<(&'static str, String)>),
    /// HEADERS with END_STREAM.
    HeadAlone(u16, Vec<(&'static str, String)>),
    /// DATA.
    Data(Vec<u8>),
    /// DATA, empty, with END_STREAM.
    End,
    /// HEADERS behind the body, with END_STREAM.
    Trailers(Vec<(&'static str, String)>),
    /// RST_STREAM.
    Reset(Reason),
    /// The end of the connection, without a word.
    Cut,
    /// Waits until the test opens it.
    Wait(Gate),
}

type Script = dyn Fn(&Asked) -> Vec<Act> + Send + Sync;

struct Shared {
    script: Box<Script>,
    asked: Mutex<Vec<Asked>>,
    connections: AtomicUsize,
}

/// A listening provider; it closes everything when it is dropped.
pub struct UpstreamH2 {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    /// Dropped, it takes every task with it.
    runtime: Option<tokio::runtime::Runtime>,
}

impl UpstreamH2 {
    /// Listens with that certificate, offers h2 alone, and does to each request what the script says.
    pub fn start(certified: &Certified, script: impl Fn(&Asked) -> Vec<Act> + Send + Sync + 'static) -> Self {
        let mut config = ServerConfig::clone(&certified.server());
        config.alpn_protocols = vec![b"h2".to_vec()];
        let tls = TlsAcceptor::from(Arc::new(config));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).unwrap();
        let address = listener.local_addr().unwrap();
        let script = Box::new(script);
        let shared = Arc::new(Shared { script, asked: Mutex::default(), connections: AtomicUsize::new(0) });
        let accepting = Arc::clone(&shared);
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(converse(Arc::clone(&accepting), tls.clone(), stream));
            }
        });
        Self { address, shared, runtime: Some(runtime) }
    }

    pub fn base_url(&self) -> String {
        format!("https://localhost:{}/v1", self.address.port())
    }

    /// What has come so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.shared.asked.lock().unwrap().clone()
    }
}

impl Drop for UpstreamH2 {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn converse(shared: Arc<Shared>, tls: TlsAcceptor, stream: TcpStream) {
    let number = shared.connections.fetch_add(1, Ordering::SeqCst);
    let _ = stream.set_nodelay(true);
    let Ok(stream) = tls.accept(stream).await else { return };
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    let cut = Arc::new(Notify::new());
    loop {
        let next = tokio::select! {
            () = cut.notified() => return,
            next = connection.accept() => next,
        };
        let Some(Ok((request, answer))) = next else { return };
        tokio::spawn(serve(Arc::clone(&shared), number, request, answer, Arc::clone(&cut)));
    }
}

async fn serve(
    shared: Arc<Shared>,
    connection: usize,
    request: http::Request<RecvStream>,
    answer: SendResponse<Bytes>,
    cut: Arc<Notify>,
) {
    let (head, mut incoming) = request.into_parts();
    let mut body = Vec::new();
    while let Some(Ok(piece)) = incoming.data().await {
        let _ = incoming.flow_control().release_capacity(piece.len());
        body.extend(piece);
    }
    let pair = |(name, value): (&HeaderName, &HeaderValue)| {
        (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned())
    };
    let asked = Asked {
        path: head.uri.path_and_query().map(ToString::to_string).unwrap_or_default(),
        authority: head.uri.authority().map(ToString::to_string),
        headers: Headers(head.headers.iter().map(pair).collect()),
        body,
        connection,
    };
    let acts = (shared.script)(&asked);
    shared.asked.lock().unwrap().push(asked);
    act(acts, answer, &cut).await;
}

/// A peer that has gone, or that has reset the stream, is no failure.
async fn act(acts: Vec<Act>, mut answer: SendResponse<Bytes>, cut: &Notify) {
    let mut body = None;
    for act in acts {
        match act {
            Act::Head(status, headers) => body = answer.send_response(head(status, headers), false).ok(),
            Act::HeadAlone(status, headers) => body = answer.send_response(head(status, headers), true).ok(),
            Act::Data(bytes) => {
                if let Some(body) = &mut body {
                    let _ = body.send_data(bytes.into(), false);
                }
            }
            Act::End => {
                if let Some(body) = &mut body {
                    let _ = body.send_data(Bytes::new(), true);
                }
            }
            Act::Trailers(fields) => {
                if let Some(body) = &mut body {
                    let _ = body.send_trailers(fields_of(fields));
                }
            }
            Act::Reset(reason) => answer.send_reset(reason),
            Act::Cut => cut.notify_one(),
            Act::Wait(gate) => {
                let _ = tokio::task::spawn_blocking(move || gate.wait()).await;
            }
        }
    }
    // A stream whose handles are dropped is reset, which is not what the script said.
    std::future::pending::<()>().await;
}

fn fields_of(fields: Vec<(&'static str, String)>) -> HeaderMap {
    fields.into_iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
}

fn head(status: u16, headers: Vec<(&'static str, String)>) -> http::Response<()> {
    let mut response = http::Response::new(());
    *response.status_mut() = http::StatusCode::from_u16(status).unwrap();
    *response.headers_mut() = fields_of(headers);
    response
}

/// A head of JSON with its length, and the JSON.
pub fn json_answer(status: u16, body: &Value) -> Vec<Act> {
    let body = body.to_string();
    let headers = vec![("content-type", "application/json".into()), ("content-length", body.len().to_string())];
    vec![Act::Head(status, headers), Act::Data(body.into_bytes())]
}

/// The head of an event stream.
pub fn events_head() -> Act {
    Act::Head(200, vec![("content-type", "text/event-stream; charset=utf-8".into())])
}

/// An event in a frame of its own.
pub fn event(data: &str) -> Act {
    Act::Data(format!("data: {data}\n\n").into_bytes())
}

/// "Hello there" as OpenAI would say it, with a usage of 9 tokens in and 2 out; without the stream's end.
pub fn hello_there(asked: &Asked) -> Vec<Act> {
    let asked = asked.json();
    let model = &asked["model"];
    if asked["stream"] != true {
        let message = json!({"role": "assistant", "content": "Hello there", "refusal": null});
        return json_answer(
            200,
            &json!({"id": "chatcmpl-1", "object": "chat.completion", "created": 1_700_000_000, "model": model,
                "choices": [{"index": 0, "message": message, "logprobs": null, "finish_reason": "stop"}],
                "usage": usage(9, 2)}),
        );
    }
    let mut acts = vec![events_head(), event(&word(model, "Hello")), event(&word(model, " there"))];
    acts.push(event(&finish(model)));
    if asked["stream_options"]["include_usage"] == true {
        acts.push(event(&usage_chunk(model, 9, 2)));
    }
    acts.push(event("[DONE]"));
    acts
}

/// The same, with its end.
pub fn politely(asked: &Asked) -> Vec<Act> {
    let mut acts = hello_there(asked);
    acts.push(Act::End);
    acts
}
