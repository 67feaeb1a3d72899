//! Gemini's dialect: how fast its streams become OpenAI's chunks, and how fast requests become its own.

use std::fmt::Write;
use std::sync::Arc;

use bytes::Bytes;
use divan::Bencher;
use divan::counter::BytesCount;
use tollgate::relay::dialect::gemini::{SignatureMemory, SignatureScope, StreamTranslator, WholeTranslator, request};
use tollgate::relay::dialect::openai::ChatRequest;
use tollgate::relay::dialect::{Answer, AnswerTerms};
use tollgate::relay::route::ModelRules;

#[global_allocator]
static ALLOCATOR: divan::AllocProfiler = divan::AllocProfiler::system();

fn main() {
    divan::main();
}

fn scope() -> SignatureScope {
    Arc::new(SignatureMemory::default()).scope("acct")
}

fn terms() -> AnswerTerms {
    AnswerTerms {
        id: "chatcmpl-0198c7f2-1b7a-7c3d-8e4f-0123456789ab".into(),
        created: 1_782_321_902,
        model: "gemini-2.5-flash".into(),
        show_usage: true,
    }
}

/// An event as Gemini sends them: a sentence or two, and the usage so far; about 500 bytes.
fn event(number: usize, finish: &str) -> String {
    format!(
        "data: {{\"candidates\": [{{\"content\": {{\"parts\": [{{\"text\": \" objects you can see and touch) and introduces several \
         counterintuitive concepts:\\n\\n*   **Quantization {number}:**  Energy, momentum, angular momentum, and other physical \
         quantities are *\"}}],\"role\": \"model\"}},\"index\": 0{finish}}}],\"usageMetadata\": {{\"promptTokenCount\": 15,\
         \"candidatesTokenCount\": {number},\"totalTokenCount\": 15,\"promptTokensDetails\": [{{\"modality\": \"TEXT\",\"tokenCount\": 15}}]}},\
         \"modelVersion\": \"gemini-2.5-flash\",\"responseId\": \"4TTZaY7hO-2Vg8UP1MXMiQw\"}}\r\n\r\n"
    )
}

/// Cut into chunks of so many bytes; 0 is one event a chunk.
fn chunks(chunk_bytes: usize) -> Vec<Bytes> {
    let last = event(1000, ",\"finishReason\": \"STOP\"");
    let mut events: Vec<String> = (0..1000).map(|number| event(number, "")).collect();
    events.push(last);
    match chunk_bytes {
        0 => events.into_iter().map(Bytes::from).collect(),
        _ => events.concat().as_bytes().chunks(chunk_bytes).map(Bytes::copy_from_slice).collect(),
    }
}

/// A text stream; bytes are the provider's.
#[divan::bench(args = [0, 100, 1400, 16384])]
fn stream(bencher: Bencher<'_, '_>, chunk_bytes: usize) {
    let chunks = chunks(chunk_bytes);
    let bytes: usize = chunks.iter().map(Bytes::len).sum();
    let scope = scope();
    bencher.counter(BytesCount::new(bytes)).bench(|| {
        let mut translator = StreamTranslator::new(&terms(), 1, scope.clone());
        let passed: usize = chunks.iter().map(|chunk| translator.pass(chunk.clone()).len()).sum();
        passed + translator.end().append.len()
    });
}

/// A whole answer of 256 KB.
#[divan::bench]
fn whole(bencher: Bencher<'_, '_>) {
    let text = "An answer in some words, with \\\"quotes\\\" and \\n lines. ".repeat(256 * 1024 / 56);
    let body = Bytes::from(format!(
        "{{\"candidates\":[{{\"content\":{{\"parts\":[{{\"text\":\"{text}\"}}]}},\"finishReason\":\"STOP\"}}]}}"
    ));
    let scope = scope();
    bencher.counter(BytesCount::new(body.len())).bench(|| {
        let mut translator = WholeTranslator::new(terms(), 1, scope.clone());
        translator.pass(body.clone());
        translator.end().append.len()
    });
}

/// Requests of 256 KB: a long text, many short turns, an image, a tool loop, many tools.
fn body(shape: &str) -> String {
    const BYTES: usize = 256 * 1024;
    let mut messages = String::from("{\"role\":\"system\",\"content\":\"Be brief.\"}");
    let mut rest = String::new();
    match shape {
        "text" => {
            let text = "Some words of a long document, with \\\"quotes\\\" and lines.\\n".repeat(BYTES / 60);
            let _ = write!(messages, ",{{\"role\":\"user\",\"content\":\"{text}\"}}");
        }
        "turns" => {
            for turn in 0..BYTES / 150 {
                let _ = write!(
                    messages,
                    ",{{\"role\":\"user\",\"content\":\"Question {turn} of many?\"}},{{\"role\":\"assistant\",\"content\":\"The answer to it, \
                     which is a little longer.\"}}"
                );
            }
        }
        "image" => {
            let data = "iVBORw0KGgoAAAANSUhEUgAAADIAAAAyCAIAAACRXR/m".repeat(BYTES / 44);
            let _ = write!(
                messages,
                ",{{\"role\":\"user\",\"content\":[{{\"type\":\"text\",\"text\":\"What is it?\"}},{{\"type\":\"image_url\",\
                 \"image_url\":{{\"url\":\"data:image/png;base64,{data}\"}}}}]}}"
            );
        }
        "loop" => {
            for turn in 0..BYTES / 700 {
                let result = "{\\\"temperature\\\":21.5,\\\"words\\\":\\\"sunny and warm\\\"}";
                let text = "A longer result as tools give them, in plain words. ".repeat(6);
                let _ = write!(
                    messages,
                    ",{{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{{\"id\":\"call_{turn}a\",\"type\":\"function\",\"function\":\
                     {{\"name\":\"weather\",\"arguments\":\"{{\\\"place\\\":\\\"Paris\\\"}}\"}}}},{{\"id\":\"call_{turn}b\",\"type\":\"function\",\
                     \"function\":{{\"name\":\"read\",\"arguments\":\"{{}}\"}}}}]}},\
                     {{\"role\":\"tool\",\"tool_call_id\":\"call_{turn}a\",\"content\":\"{result}\"}},\
                     {{\"role\":\"tool\",\"tool_call_id\":\"call_{turn}b\",\"content\":\"{text}\"}}"
                );
            }
        }
        _ => {
            let tools: Vec<String> = (0..BYTES / 600)
                .map(|tool| {
                    format!(
                        "{{\"type\":\"function\",\"function\":{{\"name\":\"tool_{tool}\",\"description\":\"Does what tools of this kind do, \
                         and says so in a sentence or two, as their makers like to.\",\"parameters\":{{\"$schema\":\
                         \"http://json-schema.org/draft-07/schema#\",\"type\":\"object\",\"properties\":{{\"place\":{{\"type\":\"string\",\
                         \"description\":\"The place, by its name and its country.\"}},\"unit\":{{\"type\":[\"string\",\"null\"],\"enum\":\
                         [\"c\",\"f\",null]}},\"days\":{{\"type\":\"integer\",\"minimum\":1,\"default\":3}}}},\"required\":[\"place\"],\
                         \"additionalProperties\":false}}}}}}"
                    )
                })
                .collect();
            let _ = write!(messages, ",{{\"role\":\"user\",\"content\":\"Hi\"}}");
            let _ = write!(rest, ",\"tools\":[{}]", tools.join(","));
        }
    }
    format!("{{\"model\":\"m\",\"stream\":true,\"temperature\":0.5,\"messages\":[{messages}]{rest}}}")
}

/// The translation of a request that has been read.
#[divan::bench(args = ["text", "turns", "image", "loop", "tools"])]
fn translate_request(bencher: Bencher<'_, '_>, shape: &str) {
    let body = Bytes::from(body(shape));
    let scope = scope();
    let Ok(parsed) = ChatRequest::parse(body.clone()) else { return };
    bencher.counter(BytesCount::new(body.len())).bench(|| {
        request(&parsed, "gemini-2.5-flash", &ModelRules::default(), 65_536, &scope).map(|sent| sent.body.len())
    });
}
