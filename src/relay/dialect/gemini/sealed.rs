//! How a signature is kept where others may look: under a name that says nothing, sealed by what only its conversation has.
//!
//! ```text
//! root   = HMAC(account id, call id)      never kept
//!   name = HMAC(root, "name")             finds it
//!   key  = HMAC(root, "key")              AES-256-GCM
//! ```
//!
//! Who has the kept ones has neither accounts nor calls by them: calls' ids are made by chance, and the client brings its own again. A
//! call may be signed twice, so each sealing takes a nonce of its own, which stands before what is sealed.
//!
//! Deliberately absent: where it is kept and for how long, and the chance that makes nonces.

use std::fmt::Write as _;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hmac::{self, HMAC_SHA256};

/// The bytes of a nonce.
pub const NONCE_BYTES: usize = NONCE_LEN;

/// The place of one call's signature.
#[derive(Clone)]
pub struct SignaturePlace {
    root: hmac::Key,
}

impl SignaturePlace {
    pub(super) fn new(account_id: &str, call_id: &[u8]) -> Self {
        let account = keyed(format!("tollgate thought signature 1 {account_id}").as_bytes());
        Self { root: keyed(hmac::sign(&account, call_id).as_ref()) }
    }

    /// What it is called: 64 hexadecimal digits.
    pub fn name(&self) -> String {
        let mut name = String::with_capacity(64);
        for byte in hmac::sign(&self.root, b"name").as_ref() {
            let _ = write!(name, "{byte:02x}");
        }
        name
    }

    /// Seals a signature, by a nonce that is not used again; `None` where that cannot be done.
    pub fn seal(&self, nonce: [u8; NONCE_BYTES], signature: &[u8]) -> Option<Vec<u8>> {
        let mut sealed = signature.to_vec();
        let by = Nonce::assume_unique_for_key(nonce);
        self.key()?.seal_in_place_append_tag(by, Aad::empty(), &mut sealed).ok()?;
        sealed.splice(..0, nonce);
        Some(sealed)
    }

    /// Opens what was sealed; `None` where it was not, or not here.
    pub fn open(&self, mut sealed: Vec<u8>) -> Option<Vec<u8>> {
        let (nonce, rest) = sealed.split_first_chunk_mut::<NONCE_BYTES>()?;
        let by = Nonce::assume_unique_for_key(*nonce);
        self.key()?.open_in_place(by, Aad::empty(), rest).ok().map(|opened| opened.to_vec())
    }

    fn key(&self) -> Option<LessSafeKey> {
        UnboundKey::new(&AES_256_GCM, hmac::sign(&self.root, b"key").as_ref()).ok().map(LessSafeKey::new)
    }
}

fn keyed(secret: &[u8]) -> hmac::Key {
    hmac::Key::new(HMAC_SHA256, secret)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens_for_the_same_call_of_the_same_account_only() {
        let place = SignaturePlace::new("acct_1", b"call_1");
        let sealed = place.seal([7; NONCE_BYTES], b"a signature").unwrap();
        assert!(!sealed.windows(9).any(|window| window == b"signature"));
        let again = SignaturePlace::new("acct_1", b"call_1");
        assert_eq!((again.name(), again.name().len()), (place.name(), 64));
        assert_eq!(again.open(sealed.clone()).as_deref(), Some(&b"a signature"[..]));
        for (account, call) in [("acct_2", "call_1"), ("acct_1", "call_2"), ("acct_1c", "all_1")] {
            let other = SignaturePlace::new(account, call.as_bytes());
            assert_ne!(other.name(), place.name());
            assert_eq!(other.open(sealed.clone()), None);
        }
        let mut damaged = sealed.clone();
        *damaged.last_mut().unwrap() ^= 1;
        assert_eq!((place.open(damaged), place.open(sealed[..5].to_vec())), (None, None));
        assert_ne!(place.seal([8; NONCE_BYTES], b"a signature").unwrap()[NONCE_BYTES..], sealed[NONCE_BYTES..]);
    }
}
