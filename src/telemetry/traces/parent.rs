//! `traceparent`, as W3C's Trace Context has it: what a client says of the trace that its request belongs to, and what a
//! provider is told.
//!
//! Deliberately absent: `tracestate`, which holds what other vendors want to say to each other. Nobody is promised that it
//! passes.

use http::{HeaderMap, HeaderName};

/// The header's name.
pub(super) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The span that a client's request belongs below.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Parent {
    pub(super) trace_id: [u8; 16],
    pub(super) span_id: [u8; 8],
    /// Whether the client records its part.
    pub(super) is_sampled: bool,
}

impl Parent {
    /// The parent that the head names; `None` where it names none, or more than one, or says it wrongly.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let mut all = headers.get_all(TRACEPARENT).iter();
        match (all.next(), all.next()) {
            (Some(only), None) => Self::parse(only.as_bytes()),
            _ => None,
        }
    }

    /// `00-<32 hex>-<16 hex>-<2 hex>`. Later versions may say more behind it.
    fn parse(text: &[u8]) -> Option<Self> {
        let (head, rest) = text.split_at_checked(55)?;
        let version = hex::<1>(head.get(..2)?)?;
        let dashes = [2, 35, 52].iter().all(|at| head.get(*at) == Some(&b'-'));
        let is_ended = match version {
            [0] => rest.is_empty(),
            [0xff] => false,
            _ => rest.is_empty() || rest.starts_with(b"-"),
        };
        if !dashes || !is_ended {
            return None;
        }
        let trace_id = hex::<16>(head.get(3..35)?).filter(|id| *id != [0; 16])?;
        let span_id = hex::<8>(head.get(36..52)?).filter(|id| *id != [0; 8])?;
        let [flags] = hex::<1>(head.get(53..55)?)?;
        Some(Self { trace_id, span_id, is_sampled: flags & 1 == 1 })
    }
}

/// The header for a request below that span, which is recorded.
pub(super) fn written(trace_id: [u8; 16], span_id: [u8; 8]) -> String {
    format!("00-{:032x}-{:016x}-01", u128::from_be_bytes(trace_id), u64::from_be_bytes(span_id))
}

/// So many bytes in lower-case hexadecimal.
fn hex<const BYTES: usize>(text: &[u8]) -> Option<[u8; BYTES]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; BYTES];
    if text.len() != 2 * BYTES {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(*pair.first()?)? << 4 | digit(*pair.last()?)?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const EXAMPLE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_parent_is_read_and_written_alike() {
        let parent = Parent::parse(EXAMPLE.as_bytes()).unwrap();
        assert!(parent.is_sampled);
        assert_eq!(written(parent.trace_id, parent.span_id), EXAMPLE);
        assert!(!Parent::parse(EXAMPLE.replace("-01", "-02").as_bytes()).unwrap().is_sampled);
    }

    #[test]
    fn later_versions_may_say_more() {
        let later = EXAMPLE.replacen("00", "cc", 1);
        assert_eq!(Parent::parse(later.as_bytes()), Parent::parse(EXAMPLE.as_bytes()));
        assert!(Parent::parse(format!("{later}-what").as_bytes()).is_some());
        assert!(Parent::parse(format!("{later}what").as_bytes()).is_none());
    }

    #[test]
    fn what_is_no_parent_is_none() {
        for wrong in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00_4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473g-00f067aa0ba902b7-01",
        ] {
            assert_eq!(Parent::parse(wrong.as_bytes()), None, "{wrong}");
        }
    }

    #[test]
    fn two_parents_are_none() {
        let mut headers = HeaderMap::new();
        headers.append(TRACEPARENT, HeaderValue::from_static(EXAMPLE));
        assert!(Parent::of(&headers).is_some());
        headers.append(TRACEPARENT, HeaderValue::from_static(EXAMPLE));
        assert!(Parent::of(&headers).is_none());
    }
}
