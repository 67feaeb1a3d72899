//! How spans travel: posted as protobuf, by a client that blocks the thread that sends them and nobody else.
//!
//! Deliberately absent: compression, and the receiver's words in the log, which may repeat what they
//! were sent.

use std::time::Duration;

use http::header::CONTENT_TYPE;
use prost::Message;
use ureq::Agent;

use super::TracesPlace;
use super::wire::Exported;
use crate::outbound::{self, Times};
use crate::relay::route::Secret;

const TIMES: Times = Times { connect: Duration::from_secs(3), answer: Duration::from_secs(10) };
/// How much of an answer is read.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;

/// Posts to one endpoint.
pub(super) struct Post {
    agent: Agent,
    endpoint: Box<str>,
    headers: Vec<(Box<str>, Secret)>,
}

/// What has come of a batch.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Delivery {
    /// It was taken, but for so many spans.
    Taken { rejected: u64 },
    /// It cannot be taken now.
    Later(String),
    /// It will not be taken.
    Refused(String),
}

impl Post {
    /// Makes ready; nobody is asked yet. The error is for the operator.
    pub(super) fn open(place: &TracesPlace) -> Result<Self, String> {
        let agent = outbound::agent(&place.endpoint, TIMES)?;
        Ok(Self { agent, endpoint: place.endpoint.clone(), headers: place.headers.clone() })
    }

    /// Posts a batch, and waits for what comes of it.
    pub(super) fn send(&self, body: &[u8]) -> Delivery {
        let mut request = self.agent.post(&*self.endpoint).header(CONTENT_TYPE, "application/x-protobuf");
        for (name, value) in &self.headers {
            request = request.header(&**name, value.expose());
        }
        let mut answer = match request.send(body) {
            Ok(answer) => answer,
            Err(error) => return Delivery::Later(error.to_string()),
        };
        let said = answer.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_vec().unwrap_or_default();
        judge(answer.status().as_u16(), &said)
    }
}

/// What an answer means (OTLP's specification, "OTLP/HTTP Response").
fn judge(status: u16, said: &[u8]) -> Delivery {
    let why = || format!("the receiver answered {status}");
    match status {
        200..=299 => {
            let partial = Exported::decode(said).ok().and_then(|exported| exported.partial_success);
            let rejected = partial.map_or(0, |partial| u64::try_from(partial.rejected_spans).unwrap_or(0));
            Delivery::Taken { rejected }
        }
        429 | 502 | 503 | 504 => Delivery::Later(why()),
        _ => Delivery::Refused(why()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::wire::PartialSuccess;
    use super::*;

    #[test]
    fn an_answer_means_what_the_specification_says() {
        assert_eq!(judge(200, b""), Delivery::Taken { rejected: 0 });
        assert_eq!(judge(200, b"{}"), Delivery::Taken { rejected: 0 }, "what is no protobuf says nothing");
        let partial = Exported { partial_success: Some(PartialSuccess { rejected_spans: 3 }) };
        assert_eq!(judge(200, &partial.encode_to_vec()), Delivery::Taken { rejected: 3 });
        for status in [429, 502, 503, 504] {
            assert!(matches!(judge(status, b""), Delivery::Later(_)), "{status}");
        }
        for status in [301, 400, 401, 404, 413, 500] {
            assert!(matches!(judge(status, b""), Delivery::Refused(_)), "{status}");
        }
    }
}
