use bytes::Bytes;
use serde_json::Value;

use super::*;

/// The body that Anthropic gets, under the plain rules.
pub(in crate::relay::dialect::anthropic) fn translate(body: &Value) -> Result<Value, Refusal> {
    translate_by(body, &ModelRules::default()).map(|(body, _)| body)
}

/// The same under other rules, with what was dropped.
fn translate_by(body: &Value, rules: &ModelRules) -> Result<(Value, Vec<Box<str>>), Refusal> {
    let chat = ChatRequest::parse(Bytes::from(body.to_string()))?;
    let outgoing = request(&chat, "claude", rules, 64_000)?;
    assert_eq!(&*outgoing.path, "/v1/messages");
    let sent = serde_json::from_slice(&outgoing.body).expect("no JSON");
    Ok((sent, outgoing.dropped))
}
