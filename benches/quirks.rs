//! Providers with quirks: what it costs to put a stream right, and to splice a large request.

use std::fmt::Write;

use bytes::Bytes;
use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use tollgate::relay::dialect::openai::{ChatRequest, LooseDocument, LooseStream, outgoing};
use tollgate::relay::dialect::{Answer, AnswerTerms};
use tollgate::relay::route::{ModelRules, Quirk, Quirks, Thinking};

/// Shows what is allocated.
#[global_allocator]
static ALLOCATOR: divan::AllocProfiler = divan::AllocProfiler::system();

fn main() {
    divan::main();
}

fn terms() -> AnswerTerms {
    AnswerTerms {
        id: "chatcmpl-0197a2c4-8a53-7d11-9c52-6a1f1f0b2c3d".into(),
        created: 1_782_321_902,
        model: "deepseek-ai/DeepSeek-V4-Flash".into(),
        show_usage: false,
    }
}

/// A chunk as DeepSeek sends them.
fn deepseek(word: usize) -> String {
    format!(
        "data: {{\"id\":\"e3e74eb8-f868-4384-a58b-46f44d1596e8\",\"object\":\"chat.completion.chunk\",\"created\":1778109601,\
         \"model\":\"deepseek-v4-flash\",\"system_fingerprint\":\"fp_058df29938_prod0820_fp8_kvcache_20260402\",\"choices\":[{{\
         \"index\":0,\"delta\":{{\"content\":null,\"reasoning_content\":\" word{word}\"}},\"logprobs\":null,\"finish_reason\":null}}],\
         \"usage\":null}}\n\n"
    )
}

/// A chunk as SiliconFlow sends them.
fn siliconflow(word: usize) -> String {
    format!(
        "data: {{\"id\":\"019adf32d7eba732fab10a923ab85c0b\",\"object\":\"chat.completion.chunk\",\"created\":1764681242,\
         \"model\":\"deepseek-ai/DeepSeek-R1\",\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\" word{word}\",\"reasoning_content\":null,\
         \"role\":\"assistant\"}},\"finish_reason\":null}}],\"system_fingerprint\":\"\",\"usage\":{{\"prompt_tokens\":294,\
         \"completion_tokens\":{word},\"total_tokens\":345,\"completion_tokens_details\":{{\"reasoning_tokens\":38}}}}}}\n\n"
    )
}

fn put_right(bencher: Bencher<'_, '_>, chunks: &[Bytes]) {
    let bytes: usize = chunks.iter().map(Bytes::len).sum();
    bencher.counter(BytesCount::new(bytes)).bench(|| {
        let mut answer = LooseStream::new(terms(), 1);
        chunks.iter().map(|chunk| answer.pass(chunk.clone()).len()).sum::<usize>()
    });
}

/// Reads of so many bytes; 0 is one event a read.
fn reads(event: fn(usize) -> String, bytes: usize) -> Vec<Bytes> {
    if bytes == 0 {
        return (0..1000).map(|word| event(word).into()).collect();
    }
    let stream = (0..1000).fold(String::new(), |mut stream, word| {
        let _ = write!(stream, "{}", event(word));
        stream
    });
    stream.as_bytes().chunks(bytes).map(Bytes::copy_from_slice).collect()
}

#[divan::bench(args = [0, 1400, 16384])]
fn stream_deepseek(bencher: Bencher<'_, '_>, bytes: usize) {
    put_right(bencher, &reads(deepseek, bytes));
}

#[divan::bench(args = [0, 1400, 16384])]
fn stream_siliconflow(bencher: Bencher<'_, '_>, bytes: usize) {
    put_right(bencher, &reads(siliconflow, bytes));
}

#[divan::bench]
fn chunk(bencher: Bencher<'_, '_>) {
    let mut answer = LooseStream::new(terms(), 1);
    let chunk = Bytes::from(deepseek(7));
    bencher.counter(ItemsCount::new(1usize)).bench_local(|| answer.pass(chunk.clone()));
}

#[divan::bench]
fn document(bencher: Bencher<'_, '_>) {
    let text = "It was a dark and stormy night; the rain fell in torrents. ".repeat(200);
    let document = Bytes::from(format!(
        "{{\"id\":\"x\",\"choices\":[{{\"index\":0,\"message\":{{\"role\":\"assistant\",\"content\":\"{text}\",\"reasoning_content\":\"{text}\"}},\
         \"finish_reason\":\"stop\"}}],\"usage\":{{\"prompt_tokens\":3,\"completion_tokens\":2}}}}"
    ));
    bencher.counter(BytesCount::new(document.len())).bench(|| {
        let mut answer = LooseDocument::new(terms());
        answer.pass(document.clone());
        answer.end()
    });
}

/// A conversation of 256 KB, with what DeepSeek's quirks change in it.
#[divan::bench]
fn request_256kb(bencher: Bencher<'_, '_>) {
    let mut messages = "{\"role\":\"developer\",\"content\":\"Be brief.\"}".to_owned();
    let words = "It was a dark and stormy night;\\n the rain fell in torrents. ".repeat(20);
    while messages.len() < 256 * 1024 {
        let _ = write!(
            messages,
            ",{{\"role\":\"user\",\"content\":\"{words}\"}},{{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{{\"id\":\"a\",\
             \"type\":\"function\",\"function\":{{\"name\":\"f\",\"arguments\":\"{{\\\"a\\\":1}}\"}}}}]}}"
        );
    }
    let body = Bytes::from(format!(
        "{{\"model\":\"m\",\"store\":true,\"messages\":[{messages}],\"max_completion_tokens\":99,\"reasoning_effort\":\"high\",\"stream\":true}}"
    ));
    let bytes = body.len();
    let request = ChatRequest::parse(body).unwrap_or_else(|refusal| unreachable!("{}", refusal.message));
    let quirks: Quirks = [
        Quirk::DeveloperAsSystem,
        Quirk::MaxTokens,
        Quirk::NoPlatformFields,
        Quirk::TextOnly,
        Quirk::ThinkingObject,
        Quirk::EchoesReasoning,
    ]
    .into_iter()
    .collect();
    let rules = ModelRules { thinking: Thinking::Level, ..ModelRules::default() };
    bencher.counter(BytesCount::new(bytes)).bench(|| outgoing(&request, "deepseek-v4-flash", quirks, &rules, 64_000));
}
