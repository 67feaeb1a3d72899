//! What a request's head must be, so that two readers cannot read it in two ways. Nothing of it passes to a provider, but what stands
//! before the relay may have read it too.
//!
//! Over HTTP/2 a head that is no request by that protocol's own rules (upper case, `connection`, `te` but for trailers, a length that
//! is not that of the data) never comes here: the codec resets its stream.

use http::{HeaderMap, Version};
use pingora_proxy::Session;

use crate::relay::refusal::{Cause, Refusal};

/// Headers that a request may have, and their bytes in all.
const HEADERS_MAX: usize = 100;
const HEADER_BYTES_MAX: usize = 64 * 1024;

/// Refuses heads that two parsers could read in two ways.
pub(super) fn check(session: &Session) -> Result<(), Refusal> {
    let head = session.req_header();
    let bad = |message: &'static str| Err(Refusal::new(Cause::BadRequest, message));
    let headers: &HeaderMap = &head.headers;
    if headers.len() > HEADERS_MAX
        || headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum::<usize>() > HEADER_BYTES_MAX
    {
        return bad("The request has more than 100 headers or more than 64 KiB of them.");
    }
    let hosts = headers.get_all("host").iter().count();
    let named = hosts == 1 || (hosts == 0 && head.version == Version::HTTP_2 && head.uri.authority().is_some());
    if !named {
        return bad("The request must have exactly one Host header.");
    }
    // Others read an underscore as a hyphen: `content_length` is theirs to trip over.
    if headers.keys().any(|name| name.as_str().contains('_')) {
        return bad("The names of headers have no underscores.");
    }
    let mut lengths = headers.get_all("content-length").iter();
    if let Some(length) = lengths.next()
        && (lengths.next().is_some() || length.is_empty() || !length.as_bytes().iter().all(u8::is_ascii_digit))
    {
        return bad("The request must have one Content-Length, a plain number.");
    }
    if session.is_http2() {
        return Ok(());
    }
    check_lines(headers, &session.downstream_session.to_h1_raw())
}

/// What only HTTP/1.1 can get wrong.
fn check_lines(headers: &HeaderMap, raw: &[u8]) -> Result<(), Refusal> {
    let bad = |message: &'static str| Err(Refusal::new(Cause::BadRequest, message));
    if !has_whole_line_ends(raw) {
        return bad("The lines of a request's head end with CR LF.");
    }
    let mut codings = headers.get_all("transfer-encoding").iter();
    if let Some(coding) = codings.next() {
        if codings.next().is_some() || !coding.as_bytes().eq_ignore_ascii_case(b"chunked") {
            return bad("The only Transfer-Encoding is chunked, once.");
        }
        // Pingora takes the length away where both are there, and leaves it in the head as it came.
        if names_length(raw) {
            return bad("The request has both Content-Length and Transfer-Encoding.");
        }
    }
    Ok(())
}

/// Whether each line feed has its carriage return, and the other way round.
fn has_whole_line_ends(raw: &[u8]) -> bool {
    let mut at = 0;
    while let Some(next) = memchr::memchr2(b'\r', b'\n', &raw[at..]) {
        if !raw[at + next..].starts_with(b"\r\n") {
            return false;
        }
        at += next + 2;
    }
    true
}

/// Whether a head, as it came, has a Content-Length.
fn names_length(raw: &[u8]) -> bool {
    const NAME: &[u8] = b"content-length";
    raw.split(|byte| *byte == b'\n')
        .any(|line| line.get(..NAME.len()).is_some_and(|name| name.eq_ignore_ascii_case(NAME)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_ends_with_both() {
        assert!(has_whole_line_ends(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"));
        for raw in [&b"GET / HTTP/1.1\nhost: a\r\n\r\n"[..], b"a\r\nb\n\r\n", b"a\r\nb\r\r\n", b"a\rb\r\n", b"\r"] {
            assert!(!has_whole_line_ends(raw), "{raw:?}");
        }
    }

    #[test]
    fn a_length_is_found_whatever_its_case() {
        assert!(names_length(b"POST / HTTP/1.1\r\nCONTENT-length: 1\r\n\r\n"));
        assert!(!names_length(b"POST / HTTP/1.1\r\nx-content-length: 1\r\n\r\n"));
    }
}
