//! The built-in `demo` provider: a tiny OpenAI-dialect upstream inside this process, so that the first request works
//! without any provider's account. It answers over a loopback socket of its own, opened when it is first asked, so that
//! what it exercises is the whole way through.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use pingora::http::ResponseHeader;
use pingora::protocols::http::ServerSession;
use pingora::protocols::l4::stream::Stream;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::OnceCell;

/// Between two words, so that a person sees them stream.
const WORD_PAUSE: Duration = Duration::from_millis(20);
/// It has no tokenizer, and takes English for what it mostly is.
const BYTES_A_TOKEN: usize = 4;
/// What it tells of itself, whatever it is asked.
const ANSWER: &str = "Hello from tollgate! This answer comes from the built-in demo model, word by word, through the same \
                      path that real providers take: your key was checked, your limits were counted, and this request \
                      is on your bill.";

/// The demo, listening from its first request on.
#[derive(Default)]
pub(super) struct Demo {
    address: OnceCell<SocketAddr>,
}

impl Demo {
    /// Where it listens.
    ///
    /// # Errors
    /// No loopback port could be had.
    pub(super) async fn address(&self) -> std::io::Result<SocketAddr> {
        let listen = async {
            let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
            let address = listener.local_addr()?;
            tokio::spawn(async move {
                while let Ok((connection, _)) = listener.accept().await {
                    tokio::spawn(serve(connection));
                }
            });
            Ok(address)
        };
        self.address.get_or_try_init(|| listen).await.copied()
    }
}

/// Answers the requests of one connection until it ends.
async fn serve(connection: TcpStream) {
    // An answer's head and body are two writes: the second would wait for the first's acknowledgement, some 40 ms.
    let _ = connection.set_nodelay(true);
    let mut stream: Box<dyn pingora::protocols::IO> = Box::new(Stream::from(connection));
    loop {
        let mut session = ServerSession::new_http1(stream);
        if !matches!(session.read_request().await, Ok(true)) {
            return;
        }
        session.set_keepalive(Some(60));
        if answer(&mut session).await.is_err() {
            return;
        }
        match session.finish().await {
            Ok(Some(reusable)) => stream = reusable.into_parts().0,
            _ => return,
        }
    }
}

async fn answer(session: &mut ServerSession) -> pingora::Result<()> {
    let mut body = Vec::new();
    while let Some(piece) = session.read_request_body().await? {
        body.extend_from_slice(&piece);
    }
    let request: Value = serde_json::from_slice(&body).unwrap_or_default();
    let prompt_tokens = request["messages"].to_string().len().div_ceil(BYTES_A_TOKEN);
    if request["stream"] == true {
        stream_answer(session, prompt_tokens).await
    } else {
        whole(session, prompt_tokens).await
    }
}

fn usage(prompt_tokens: usize) -> Value {
    let completion_tokens = ANSWER.len().div_ceil(BYTES_A_TOKEN);
    json!({"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens,
           "total_tokens": prompt_tokens + completion_tokens})
}

fn envelope(object: &str) -> Value {
    json!({"id": "chatcmpl-demo", "object": object, "created": 1_750_000_000, "model": "demo"})
}

fn with(mut envelope: Value, fields: Value) -> Value {
    if let (Some(envelope), Value::Object(fields)) = (envelope.as_object_mut(), fields) {
        envelope.extend(fields);
    }
    envelope
}

async fn whole(session: &mut ServerSession, prompt_tokens: usize) -> pingora::Result<()> {
    let message = json!({"role": "assistant", "content": ANSWER, "refusal": null});
    let body = with(
        envelope("chat.completion"),
        json!({"choices": [{"index": 0, "message": message, "logprobs": null, "finish_reason": "stop"}],
               "usage": usage(prompt_tokens)}),
    )
    .to_string();
    let mut header = ResponseHeader::build(200, Some(2))?;
    header.insert_header("content-type", "application/json")?;
    header.insert_header("content-length", body.len().to_string())?;
    session.write_response_header(Box::new(header)).await?;
    session.write_response_body(Bytes::from(body), true).await
}

async fn stream_answer(session: &mut ServerSession, prompt_tokens: usize) -> pingora::Result<()> {
    let mut header = ResponseHeader::build(200, Some(2))?;
    header.insert_header("content-type", "text/event-stream")?;
    header.insert_header("transfer-encoding", "chunked")?;
    session.write_response_header(Box::new(header)).await?;
    let choice = |delta: Value, finish_reason: Value| {
        let choice = json!({"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish_reason});
        with(envelope("chat.completion.chunk"), json!({"choices": [choice], "usage": null}))
    };
    send(session, &choice(json!({"role": "assistant", "content": ""}), Value::Null)).await?;
    for word in ANSWER.split_inclusive(' ') {
        send(session, &choice(json!({"content": word}), Value::Null)).await?;
        tokio::time::sleep(WORD_PAUSE).await;
    }
    send(session, &choice(json!({}), json!("stop"))).await?;
    let last = with(envelope("chat.completion.chunk"), json!({"choices": [], "usage": usage(prompt_tokens)}));
    send(session, &last).await?;
    session.write_response_body(Bytes::from_static(b"data: [DONE]\n\n"), true).await
}

async fn send(session: &mut ServerSession, chunk: &Value) -> pingora::Result<()> {
    session.write_response_body(Bytes::from(format!("data: {chunk}\n\n")), false).await
}
