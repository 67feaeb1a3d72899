//! `Stripe-Signature`: HMAC-SHA256 over time and body, joined by a dot, under the endpoint's whole secret
//! (<https://docs.stripe.com/webhooks#verify-manually>).

use ring::hmac;

use crate::relay::route::Secret;

/// How far the signature's time may be from now.
const TOLERANCE_SECONDS: u64 = 300;

/// How many signatures are looked at: there are two while a secret is rolled.
const SIGNATURES_MAX: usize = 8;

/// Why an event is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// The header is missing or cannot be read.
    #[error("Stripe-Signature is missing or cannot be read")]
    Malformed,
    /// None of its signatures is of this body under this secret.
    #[error("Stripe-Signature is not of this body and secret")]
    Wrong,
    /// It is right, and older or newer than is believed.
    #[error("Stripe-Signature is too old, or of the future")]
    Stale,
}

/// Whether a body is Stripe's, by its header and the time now, in Unix seconds. It takes as long whatever a wrong signature has in
/// common with the right one.
///
/// # Errors
/// It is not.
pub fn verify(secret: &Secret, header: &str, body: &[u8], now_seconds: i64) -> Result<(), SignatureError> {
    let (mut time, mut signatures) = (None, Vec::new());
    for (name, value) in header.split(',').filter_map(|part| part.trim().split_once('=')) {
        match name {
            "t" if time.replace(value).is_some() => return Err(SignatureError::Malformed),
            "v1" if signatures.len() < SIGNATURES_MAX => signatures.extend(bytes(value)),
            _ => {}
        }
    }
    let time = time.ok_or(SignatureError::Malformed)?;
    let seconds: i64 = time.parse().map_err(|_| SignatureError::Malformed)?;
    if signatures.is_empty() {
        return Err(SignatureError::Malformed);
    }
    let signed = [time.as_bytes(), b".", body].concat();
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.expose().as_bytes());
    if !signatures.iter().any(|signature| hmac::verify(&key, &signed, signature).is_ok()) {
        return Err(SignatureError::Wrong);
    }
    match now_seconds.abs_diff(seconds) > TOLERANCE_SECONDS {
        true => Err(SignatureError::Stale),
        false => Ok(()),
    }
}

/// The bytes of 64 hexadecimal digits.
fn bytes(digits: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if digits.len() != 64 || !digits.is_ascii() {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
        let digit = |digit: u8| char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &[u8] = b"{\"id\":\"evt_1\"}";
    const NOW: i64 = 1_800_000_000;
    /// HMAC-SHA256 of `1800000000.` and the body under `whsec_test`, computed apart from this code by Python's hmac.
    const SIGNATURE: &str = "45705be2a45ab5acdd1395cc695e9e7073125385ec24194921c401dff44176f8";

    fn check(header: &str, body: &[u8], now: i64) -> Result<(), SignatureError> {
        verify(&Secret::new("whsec_test"), header, body, now)
    }

    #[test]
    fn what_stripe_signs_is_believed() {
        let header = format!("t={NOW},v1={SIGNATURE}");
        assert_eq!(check(&header, BODY, NOW), Ok(()));
        assert_eq!(check(&header, BODY, NOW + 300), Ok(()));
        let other = "0".repeat(64);
        let rolled = format!("t={NOW}, v1={other}, v0=abc, v1={SIGNATURE}");
        assert_eq!(check(&rolled, BODY, NOW), Ok(()), "one of several is enough");
    }

    #[test]
    fn what_is_wrong_is_told_as_what_it_is() {
        let header = format!("t={NOW},v1={SIGNATURE}");
        for (header, body, now, error) in [
            (header.as_str(), &b"{\"id\":\"evt_2\"}"[..], NOW, SignatureError::Wrong),
            (&format!("t={},v1={SIGNATURE}", NOW + 1), BODY, NOW, SignatureError::Wrong),
            (&format!("t={NOW},v1={}", "0".repeat(64)), BODY, NOW, SignatureError::Wrong),
            (&header, BODY, NOW + 301, SignatureError::Stale),
            (&header, BODY, NOW - 301, SignatureError::Stale),
            (&format!("t={NOW},t={NOW},v1={SIGNATURE}"), BODY, NOW, SignatureError::Malformed),
            (&format!("v1={SIGNATURE}"), BODY, NOW, SignatureError::Malformed),
            (&format!("t={NOW},v0={SIGNATURE}"), BODY, NOW, SignatureError::Malformed),
            (&format!("t={NOW},v1={}", &SIGNATURE[1..]), BODY, NOW, SignatureError::Malformed),
            ("", BODY, NOW, SignatureError::Malformed),
            ("t=,v1=", BODY, NOW, SignatureError::Malformed),
        ] {
            assert_eq!(check(header, body, now), Err(error), "{header}");
        }
        assert_eq!(verify(&Secret::new("whsec_other"), &header, BODY, NOW), Err(SignatureError::Wrong));
    }
}
