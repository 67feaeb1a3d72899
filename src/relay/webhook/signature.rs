//! Signatures in the manner of Standard Webhooks 1.0 (`spec/standard-webhooks.md` of standard-webhooks/standard-webhooks):
//! HMAC-SHA256 over id, time and body, joined by dots.
//!
//! A secret must be written as that specification writes it, `whsec_` and base64: its libraries read any text as base64, so a
//! bare one would be another key to them than to us. There is no secret that is empty, or too short to withstand guessing.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;
use zeroize::Zeroizing;

const PREFIX: &str = "whsec_";

/// How many bytes of a secret the specification asks for.
const KEY_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// A webhook's secret. `Debug` redacts it, nothing else shows it, and its memory is wiped when it goes.
#[derive(Clone, PartialEq, Eq)]
pub struct SigningKey(Zeroizing<Vec<u8>>);

impl SigningKey {
    /// Reads a secret such as `whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw`.
    ///
    /// # Errors
    /// What is wrong with it, and the mend; the text itself is not in it.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let encoded = text.strip_prefix(PREFIX).ok_or(
            "the secret there does not begin with whsec_; make one with: echo whsec_$(openssl rand -base64 32)",
        )?;
        let bytes = STANDARD.decode(encoded).map(Zeroizing::new).map_err(
            |_| "the secret there is not base64 after whsec_; make one with: echo whsec_$(openssl rand -base64 32)",
        )?;
        if !KEY_BYTES.contains(&bytes.len()) {
            return Err(
                "the secret there is not of 24 to 64 bytes; make one with: echo whsec_$(openssl rand -base64 32)",
            );
        }
        Ok(Self(bytes))
    }

    /// The value of `webhook-signature` for a body that is sent under that id at that time, Unix seconds. Neither may hold a dot
    /// that others choose.
    pub fn sign(&self, id: &str, unix_seconds: i64, body: &[u8]) -> String {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &self.0);
        let mut context = hmac::Context::with_key(&key);
        context.update(format!("{id}.{unix_seconds}.").as_bytes());
        context.update(body);
        format!("v1,{}", STANDARD.encode(context.sign()))
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_libraries_example_is_signed_as_they_sign_it() {
        let key = SigningKey::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let signature = key.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn what_is_signed_is_all_three() {
        let key = SigningKey::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let signature = key.sign("a", 1, b"b");
        for (id, time, body) in [("b", 1, "b"), ("a", 2, "b"), ("a", 1, "c")] {
            assert_ne!(key.sign(id, time, body.as_bytes()), signature);
        }
    }

    #[test]
    fn weak_and_unclear_secrets_are_refused_and_not_repeated() {
        let short = format!("whsec_{}", STANDARD.encode([7; 23]));
        let long = format!("whsec_{}", STANDARD.encode([7; 65]));
        for text in ["", "whsec_", "hunter2", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_no base64", &short, &long] {
            let why = SigningKey::parse(text).unwrap_err();
            assert!(why.contains("openssl") && (text.len() < 7 || !why.contains(text)), "{why}");
        }
        for bytes in [24, 64] {
            let text = format!("whsec_{}", STANDARD.encode(vec![7; bytes]));
            assert_eq!(format!("{:?}", SigningKey::parse(&text).unwrap()), "SigningKey(…)");
        }
    }
}
