//! What it costs to speak Anthropic's dialect: requests one way, streams and whole answers the other.

use bytes::Bytes;
use divan::Bencher;
use divan::counter::BytesCount;
use tollgate::relay::dialect::openai::ChatRequest;
use tollgate::relay::dialect::{Answer, AnswerTerms, anthropic};
use tollgate::relay::route::ModelRules;

#[global_allocator]
static ALLOCATOR: divan::AllocProfiler = divan::AllocProfiler::system();

fn main() {
    divan::main();
}

fn terms() -> AnswerTerms {
    AnswerTerms {
        id: "chatcmpl-019a8f0e7c1d7c3e9b1f2a3b4c5d6e7f".into(),
        created: 1_782_321_902,
        model: "claude-sonnet-4-6".into(),
        show_usage: true,
    }
}

/// A stream of so many deltas with the text of a token or two each, as Anthropic writes them.
fn stream(kind: &str, member: &str, deltas: usize) -> String {
    let start = r#"{"type":"message_start","message":{"model":"claude-sonnet-4-6","id":"msg_01HXtenSNQ66snZkt2iQ96iN","type":"message","role":"assistant","content":[],"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":46,"cache_creation_input_tokens":0,"cache_read_input_tokens":0,"output_tokens":3}}}"#;
    let block = match kind {
        "input_json_delta" => r#"{"type":"tool_use","id":"toolu_01","name":"write_file","input":{}}"#,
        "thinking_delta" => r#"{"type":"thinking","thinking":"","signature":""}"#,
        _ => r#"{"type":"text","text":""}"#,
    };
    let mut stream = format!("event: message_start\ndata: {start}\n\n");
    stream += &format!(
        "event: content_block_start\ndata: {{\"type\":\"content_block_start\",\"index\":0,\"content_block\":{block}}}\n\n"
    );
    for word in 0..deltas {
        stream += &format!(
            "event: content_block_delta\ndata: {{\"type\":\"content_block_delta\",\"index\":0,\
             \"delta\":{{\"type\":\"{kind}\",\"{member}\":\" words {word}\\n\"}}      }}\n\n"
        );
    }
    stream += "event: content_block_stop\ndata: {\"type\":\"content_block_stop\",\"index\":0 }\n\n";
    stream += "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\",\"stop_sequence\":null},\"usage\":{\"output_tokens\":234}}\n\n";
    stream + "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n"
}

fn pass(bencher: Bencher<'_, '_>, stream: &str, chunk_bytes: usize) {
    let chunks: Vec<Bytes> = match chunk_bytes {
        0 => stream.split_inclusive("\n\n").map(|event| Bytes::copy_from_slice(event.as_bytes())).collect(),
        _ => stream.as_bytes().chunks(chunk_bytes).map(Bytes::copy_from_slice).collect(),
    };
    bencher.counter(BytesCount::new(stream.len())).bench(|| {
        let mut answer = anthropic::StreamTranslator::new(terms());
        let passed: usize = chunks.iter().map(|chunk| answer.pass(chunk.clone()).len()).sum();
        passed + answer.end().append.len()
    });
}

/// A text stream; bytes are the provider's. In chunks of so many bytes, 0 is one event a chunk.
#[divan::bench(args = [0, 1400, 16384])]
fn text_stream(bencher: Bencher<'_, '_>, chunk_bytes: usize) {
    pass(bencher, &stream("text_delta", "text", 1000), chunk_bytes);
}

/// Thinking, which is kept until its end.
#[divan::bench(args = [0, 1400])]
fn thinking_stream(bencher: Bencher<'_, '_>, chunk_bytes: usize) {
    pass(bencher, &stream("thinking_delta", "thinking", 1000), chunk_bytes);
}

/// The arguments of a long call.
#[divan::bench(args = [0, 1400])]
fn call_stream(bencher: Bencher<'_, '_>, chunk_bytes: usize) {
    pass(bencher, &stream("input_json_delta", "partial_json", 1000), chunk_bytes);
}

/// A whole answer of so many bytes of text.
#[divan::bench(args = [1024, 262_144])]
fn whole(bencher: Bencher<'_, '_>, text_bytes: usize) {
    let text = "The quick brown fox jumps over the lazy dog.\\n".repeat(text_bytes / 46 + 1);
    let document = Bytes::from(format!(
        r#"{{"model":"claude","id":"msg_1","type":"message","role":"assistant","content":[{{"type":"text","text":"{text}"}}],"stop_reason":"end_turn","usage":{{"input_tokens":27,"output_tokens":65}}}}"#
    ));
    bencher.counter(BytesCount::new(document.len())).bench(|| {
        let mut answer = anthropic::WholeTranslator::new(terms());
        answer.pass(document.clone());
        answer.end().append.len()
    });
}

/// A conversation of many turns with tools, of about so many bytes.
fn conversation(bytes: usize) -> Bytes {
    let turn = r#"{"role":"user","content":[{"type":"text","text":"What is the weather in \"Florence\", and in Rome?\nIn one line, please, with the temperature in degrees."}]},{"role":"assistant","content":"Let me look.","tool_calls":[{"id":"call_N","type":"function","function":{"name":"weather","arguments":"{\"location\":\"Florence, Italy\",\"unit\":\"celsius\"}"}}]},{"role":"tool","tool_call_id":"call_N","content":"40 degrees, and not a cloud in the sky; the wind blows from the north-west at 12 km/h."},{"role":"assistant","content":"It is 40 degrees in Florence."}"#;
    let turns = bytes / turn.len();
    let turns: Vec<String> = (0..turns).map(|number| turn.replace("call_N", &format!("call_{number}"))).collect();
    format!(
        r#"{{"model":"claude-sonnet-4-6","stream":true,"temperature":0.3,"messages":[{{"role":"system","content":"Be brief."}},{},{{"role":"user","content":"And now?"}}],"tools":[{{"type":"function","function":{{"name":"weather","parameters":{{"type":"object","properties":{{"location":{{"type":"string"}}}}}}}}}}]}}"#,
        turns.join(",")
    )
    .into()
}

fn translate(bencher: Bencher<'_, '_>, body: &Bytes) {
    let request = match ChatRequest::parse(body.clone()) {
        Ok(request) => request,
        Err(refusal) => unreachable!("the bench's own request was refused: {refusal:?}"),
    };
    bencher.counter(BytesCount::new(body.len())).bench(|| {
        anthropic::request(&request, "claude-sonnet-4-6", &ModelRules::default(), 64_000).map(|sent| sent.body.len())
    });
}

/// A request of many short turns.
#[divan::bench(args = [2048, 262_144])]
fn request(bencher: Bencher<'_, '_>, bytes: usize) {
    translate(bencher, &conversation(bytes));
}

/// A request that is one long text.
#[divan::bench(args = [262_144])]
fn request_of_text(bencher: Bencher<'_, '_>, bytes: usize) {
    let text = "The quick brown fox jumps over the \\\"lazy\\\" dog.\\n".repeat(bytes / 50);
    translate(bencher, &format!(r#"{{"model":"m","messages":[{{"role":"user","content":"{text}"}}]}}"#).into());
}

/// A request with an image.
#[divan::bench(args = [262_144])]
fn request_of_image(bencher: Bencher<'_, '_>, bytes: usize) {
    let data = format!("iVBORw0KGgoAAAANSUhEUg{}", "AB+/".repeat(bytes / 4));
    let part = format!(r#"{{"type":"image_url","image_url":{{"url":"data:image/png;base64,{data}"}}}}"#);
    translate(bencher, &format!(r#"{{"model":"m","messages":[{{"role":"user","content":[{part}]}}]}}"#).into());
}
