//! The answer's side: how fast events are cut out of a stream, and what a chunk costs on its way to the client.

use bytes::Bytes;
use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use std::fmt::Write;
use tollgate::relay::dialect::Answer;
use tollgate::relay::dialect::openai::StreamReader;
use tollgate::relay::sse::{Piece, SseParser};

/// Shows what is allocated: nothing, for events that arrive whole and pass as they came.
#[global_allocator]
static ALLOCATOR: divan::AllocProfiler = divan::AllocProfiler::system();

fn main() {
    divan::main();
}

/// An event as OpenAI sends them when asked for usage: about 250 bytes.
fn event(word: usize) -> String {
    format!(
        "data: {{\"id\":\"chatcmpl-DuLdOuviL2tiVxMim6HmX4YMnCorK\",\"object\":\"chat.completion.chunk\",\"created\":1782321902,\
         \"model\":\"gpt-4o-mini-2024-07-18\",\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\" word{word}\"}},\"logprobs\":null,\
         \"finish_reason\":null}}],\"usage\":null}}\n\n"
    )
}

/// A stream of many events.
fn stream(events: usize) -> String {
    (0..events).fold(String::new(), |mut stream, word| {
        let _ = write!(stream, "{}", event(word));
        stream
    })
}

/// Cut into chunks of so many bytes; 0 is one event a chunk.
fn chunks(chunk_bytes: usize) -> Vec<Bytes> {
    match chunk_bytes {
        0 => (0..1000).map(|word| event(word).into()).collect(),
        _ => stream(1000).as_bytes().chunks(chunk_bytes).map(Bytes::copy_from_slice).collect(),
    }
}

/// The parser alone.
#[divan::bench(args = [0, 100, 1400, 16384])]
fn parse(bencher: Bencher<'_, '_>, chunk_bytes: usize) {
    let chunks = chunks(chunk_bytes);
    let bytes: usize = chunks.iter().map(Bytes::len).sum();
    bencher.counter(BytesCount::new(bytes)).bench(|| {
        let mut parser = SseParser::default();
        let mut data = 0;
        for chunk in &chunks {
            parser.push(chunk, |piece| {
                if let Piece::Event { event, .. } = piece {
                    data += event.data.len();
                }
            });
        }
        data
    });
}

fn pass(bencher: Bencher<'_, '_>, chunk_bytes: usize, show_usage: bool) {
    let chunks = chunks(chunk_bytes);
    bencher.counter(ItemsCount::new(1000usize)).bench(|| {
        let mut reader = StreamReader::new(show_usage, 1);
        chunks.iter().map(|chunk| reader.pass(chunk.clone()).len()).sum::<usize>()
    });
}

/// A stream of 1,000 events to a client that asked for usage; items are events.
#[divan::bench(args = [0, 1400])]
fn pass_shown(bencher: Bencher<'_, '_>, chunk_bytes: usize) {
    pass(bencher, chunk_bytes, true);
}

/// The same to one that did not: `"usage":null` is cut out of each event.
#[divan::bench(args = [0, 1400])]
fn pass_hidden(bencher: Bencher<'_, '_>, chunk_bytes: usize) {
    pass(bencher, chunk_bytes, false);
}
