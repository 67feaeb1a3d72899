//! The client over HTTP/2: cleartext with prior knowledge, or TLS with ALPN. One request, one connection.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use h2::SendStream;
use h2::client::ResponseFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

use super::PATIENCE;
use super::client::{End, Framing, Headers, Request, Response};

/// Sends a request over cleartext h2 and reads the whole answer.
#[track_caller]
pub fn send(request: &Request, to: SocketAddr) -> Response {
    run(async {
        let stream = TcpStream::connect(to).await.unwrap();
        ask(stream, "http", request).await
    })
}

/// Sends a request over TLS with h2 and reads the whole answer.
#[track_caller]
pub fn send_tls(request: &Request, to: SocketAddr, host: &str, config: &Arc<ClientConfig>) -> Response {
    run(async {
        let stream = TcpStream::connect(to).await.unwrap();
        let host = ServerName::try_from(host.to_owned()).unwrap();
        let stream = TlsConnector::from(Arc::clone(config)).connect(host, stream).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]), "the server did not choose h2");
        ask(stream, "https", request).await
    })
}

#[track_caller]
fn run(work: impl Future<Output = Response>) -> Response {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { timeout(PATIENCE, work).await.expect("no whole answer in time over h2") })
}

async fn ask(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    scheme: &str,
    request: &Request,
) -> Response {
    let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let authority = request.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("host"));
    let authority = authority.map_or("relay.test", |(_, value)| value.as_str());
    let uri = format!("{scheme}://{authority}{}", request.path);
    let mut head = http::Request::builder().method(request.method.as_str()).uri(uri);
    for (name, value) in request.headers.iter().filter(|(name, _)| !name.eq_ignore_ascii_case("host")) {
        head = head.header(name.as_str(), value.as_str());
    }
    if request.framing == Framing::Length {
        head = head.header("content-length", request.body.len());
    }
    let (answer, body) = client
        .send_request(head.body(()).unwrap(), request.framing == Framing::None)
        .expect("the request was not sent");
    // An answer may come before the whole body is taken; then the rest of it has nowhere to go.
    let (answer, ()) = tokio::join!(read(answer), write(body, request));
    answer
}

async fn write(mut body: SendStream<Bytes>, request: &Request) {
    let frame_bytes = match request.framing {
        Framing::None => return,
        Framing::Length => usize::MAX,
        Framing::Chunked(size) => size,
    };
    let mut left = Bytes::copy_from_slice(&request.body);
    while !left.is_empty() {
        let wanted = left.len().min(frame_bytes);
        body.reserve_capacity(wanted);
        let Some(Ok(granted)) = std::future::poll_fn(|context| body.poll_capacity(context)).await else { return };
        if body.send_data(left.split_to(granted.min(wanted)), false).is_err() {
            return;
        }
    }
    let _ = body.send_data(Bytes::new(), true);
}

async fn read(answer: ResponseFuture) -> Response {
    let (head, mut body) = answer.await.expect("no answer over h2").into_parts();
    let pair = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
        (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned())
    };
    let headers = Headers(head.headers.iter().map(pair).collect());
    let (mut bytes, mut end) = (Vec::new(), End::Clean);
    while let Some(piece) = body.data().await {
        match piece {
            Ok(piece) => {
                let _ = body.flow_control().release_capacity(piece.len());
                bytes.extend(piece);
            }
            // A server that answers before it has read all resets with NO_ERROR after its last byte.
            Err(error) if error.reason() == Some(h2::Reason::NO_ERROR) => break,
            Err(_) => {
                end = End::Cut;
                break;
            }
        }
    }
    Response { status: head.status.as_u16(), headers, body: bytes, end }
}
