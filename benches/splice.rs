//! The request's side: reading a body, and splicing it for the provider.

use bytes::Bytes;
use divan::Bencher;
use divan::counter::BytesCount;
use tollgate::relay::dialect::openai::ChatRequest;

fn main() {
    divan::main();
}

const SIZES: [usize; 3] = [8 * 1024, 256 * 1024, 5 * 1024 * 1024];

/// A conversation of about so many bytes, with `model` last and a stream asked for.
fn conversation(bytes: usize) -> Bytes {
    let message = r#"{"role":"user","content":"Wie heißt die Stadt am Fluß?\nAnd \"quoted\" text, some of it longer than that: it goes on and on, as prose does, until somebody ends the sentence."},"#;
    let messages = message.repeat(bytes / message.len());
    format!("{{\"messages\":[{}],\"stream\":true,\"model\":\"gpt-4o\"}}", messages.trim_end_matches(',')).into()
}

/// One image of about so many bytes.
fn image(bytes: usize) -> Bytes {
    let base64 = "iVBORw0KGgo+AAAADUlIRFIA/AAB".repeat(bytes / 28);
    format!(
        "{{\"messages\":[{{\"role\":\"user\",\"content\":[{{\"type\":\"image_url\",\"image_url\":{{\"url\":\"data:image/png;base64,{base64}\"}}}}]}}],\
         \"stream\":true,\"model\":\"gpt-4o\"}}"
    )
    .into()
}

fn read(body: &Bytes) -> ChatRequest {
    match ChatRequest::parse(body.clone()) {
        Ok(request) => request,
        Err(refusal) => unreachable!("the bench's own request was refused: {refusal:?}"),
    }
}

#[divan::bench(args = SIZES)]
fn parse(bencher: Bencher<'_, '_>, bytes: usize) {
    let body = conversation(bytes);
    bencher.counter(BytesCount::new(body.len())).bench(|| read(&body));
}

#[divan::bench(args = SIZES)]
fn parse_image(bencher: Bencher<'_, '_>, bytes: usize) {
    let body = image(bytes);
    bencher.counter(BytesCount::new(body.len())).bench(|| read(&body));
}

/// Read, and put together anew for the provider.
#[divan::bench(args = SIZES)]
fn parse_and_splice(bencher: Bencher<'_, '_>, bytes: usize) {
    let body = conversation(bytes);
    bencher.counter(BytesCount::new(body.len())).bench(|| read(&body).for_upstream("gpt-4o-2024-08-06"));
}

/// Read, and cut into the parts that are sent one after the other.
#[divan::bench(args = SIZES)]
fn parse_and_cut(bencher: Bencher<'_, '_>, bytes: usize) {
    let body = conversation(bytes);
    bencher.counter(BytesCount::new(body.len())).bench(|| read(&body).upstream_parts("gpt-4o-2024-08-06"));
}
