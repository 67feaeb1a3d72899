//! `Idempotency-Key`: what a request with one is known by, and how its answer is kept so that only its client can have it read.
//!
//! The store is to be worth nothing to who steals it: answers are as private as prompts, and clients choose keys such as
//! `order-1234`. So everything that is stored is keyed by what only the client has, which it brings again with each repeat:
//!
//! ```text
//! root          = HMAC(account id,  Idempotency-Key)     never stored
//!   key digest  = HMAC(root, "key")                      finds the row
//!   body secret = HMAC(root, "body", body)               never stored
//!     body digest = HMAC(body secret, "digest")          tells a repeat from a reused key
//!     answer key  = HMAC(body secret, "answer", request) AES-256-GCM, for one answer
//! ```
//!
//! - A row says nothing of the body to who does not have the key: its digest is keyed by it, so that guessed bodies cannot be tried
//!   against the row alone. The answer takes the key and the whole body.
//! - The same key says different things in two accounts, for the root is the account's.
//! - An answer key is used once: the request that claimed the row is part of it, and a claim keeps one answer. So the nonce may be
//!   constant. Account, request, status and content type are authenticated with the answer: none can be put beside another.
//! - Who has the store and guesses both the key and the whole body can see that the guess was right, and read the answer. Against
//!   that helps a key that cannot be guessed, such as a UUID; the relay cannot add a secret of its own without keeping it somewhere.
//!
//! HMAC-SHA-256 is the pseudo-random function throughout, as in HKDF, of which each step here is one block.
//!
//! Deliberately absent: the rows and their leases, which are the store's, and who writes them when, which is the proxy's.

use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::hmac::{self, HMAC_SHA256, Tag};
use uuid::Uuid;

use super::refusal::{Cause, Refusal};

/// The header, as refusals name it.
pub const HEADER: &str = "Idempotency-Key";
/// The longest key.
pub const KEY_CHARACTERS_MAX: usize = 255;
/// The longest answer that is kept.
pub const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;
/// What answers that are still passing may take in memory, all together.
pub const TEE_BYTES_MAX: usize = 256 * 1024 * 1024;
/// What the kept answers of one account may take. The oldest make room.
pub const ACCOUNT_BYTES_MAX: i64 = 64 * 1024 * 1024;
/// How long a key means the same request, from its first on.
pub const KEPT_MS: i64 = 24 * 3600 * 1000;
/// How long a claim holds that nobody renews: then whoever made it counts as dead.
pub const LEASE_MS: i64 = 60 * 1000;

/// The value of the header: 1 to 255 visible ASCII characters.
#[derive(Clone, PartialEq, Eq)]
pub struct IdempotencyKey(Box<[u8]>);

impl IdempotencyKey {
    /// The key of a request with these values of the header; `None` where it has none.
    ///
    /// # Errors
    /// There are several, or it is no key.
    pub fn parse<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> Result<Option<Self>, Refusal> {
        let refused = |message: &'static str| Err(Refusal::new(Cause::InvalidValue, message).param(HEADER));
        let mut values = values.into_iter();
        let Some(value) = values.next() else { return Ok(None) };
        if values.next().is_some() {
            return refused("The request has more than one Idempotency-Key header.");
        }
        if !(1..=KEY_CHARACTERS_MAX).contains(&value.len()) || !value.iter().all(u8::is_ascii_graphic) {
            return refused("Idempotency-Key must be 1 to 255 visible ASCII characters.");
        }
        Ok(Some(Self(value.into())))
    }
}

/// Not the key: it opens answers.
impl fmt::Debug for IdempotencyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IdempotencyKey(…)")
    }
}

/// What a row may know of a key or a body. 64 hexadecimal digits.
pub type Digest = Box<str>;

/// A request with a key: its digests, and the secret that its answer is sealed by.
pub struct KeyedRequest {
    /// Finds the row, inside the account.
    pub key_digest: Digest,
    /// Is the same for the same body under the same key.
    pub body_digest: Digest,
    account_id: Box<str>,
    body_secret: hmac::Key,
}

impl KeyedRequest {
    /// Of an account, with that key and that body. Reads the whole body once.
    pub fn new(account_id: &str, key: &IdempotencyKey, body: &[u8]) -> Self {
        let account = keyed(format!("tollgate idempotency 1 {account_id}").as_bytes());
        let root = keyed(hmac::sign(&account, &key.0).as_ref());
        let mut of_body = hmac::Context::with_key(&root);
        of_body.update(b"body\0");
        of_body.update(body);
        let body_secret = keyed(of_body.sign().as_ref());
        Self {
            key_digest: hex(&hmac::sign(&root, b"key")),
            body_digest: hex(&hmac::sign(&body_secret, b"digest")),
            account_id: account_id.into(),
            body_secret,
        }
    }

    /// Encrypts the answer to the request of that id; `None` where that cannot be done. One answer a request: the key is the
    /// request's.
    pub fn seal(&self, request_id: Uuid, status: u16, content_type: &str, mut answer: Vec<u8>) -> Option<Vec<u8>> {
        let key = self.answer_key(request_id)?;
        key.seal_in_place_append_tag(nonce(), self.aad(request_id, status, content_type), &mut answer).ok()?;
        Some(answer)
    }

    /// Decrypts what the request of that id was answered; `None` where that is not what was sealed.
    pub fn open(&self, request_id: Uuid, status: u16, content_type: &str, mut sealed: Vec<u8>) -> Option<Vec<u8>> {
        let key = self.answer_key(request_id)?;
        let aad = self.aad(request_id, status, content_type);
        let length = key.open_in_place(nonce(), aad, &mut sealed).ok()?.len();
        sealed.truncate(length);
        Some(sealed)
    }

    fn answer_key(&self, request_id: Uuid) -> Option<LessSafeKey> {
        let key = hmac::sign(&self.body_secret, format!("answer {request_id}").as_bytes());
        UnboundKey::new(&AES_256_GCM, key.as_ref()).ok().map(LessSafeKey::new)
    }

    fn aad(&self, request_id: Uuid, status: u16, content_type: &str) -> Aad<String> {
        Aad::from(format!("{} {request_id} {status} {content_type}", self.account_id))
    }
}

/// Each key seals one message.
fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

fn keyed(secret: &[u8]) -> hmac::Key {
    hmac::Key::new(HMAC_SHA256, secret)
}

fn hex(tag: &Tag) -> Digest {
    let mut text = String::with_capacity(64);
    for byte in tag.as_ref() {
        let _ = write!(text, "{byte:02x}");
    }
    text.into()
}

/// What is left of [`TEE_BYTES_MAX`].
#[derive(Debug)]
pub struct TeeBudget(AtomicUsize);

impl Default for TeeBudget {
    fn default() -> Self {
        Self(AtomicUsize::new(TEE_BYTES_MAX))
    }
}

/// A part of the budget; it goes back when this is dropped.
#[derive(Debug)]
pub struct TeeBytes {
    budget: Arc<TeeBudget>,
    taken: usize,
}

impl TeeBytes {
    fn take(&mut self, bytes: usize) -> bool {
        let left = &self.budget.0;
        let taken = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes)).is_ok();
        if taken {
            self.taken += bytes;
        }
        taken
    }
}

impl Drop for TeeBytes {
    fn drop(&mut self) {
        self.budget.0.fetch_add(self.taken, Ordering::Relaxed);
    }
}

/// A copy of an answer that is passing, as far as it may be kept.
#[derive(Debug)]
pub struct Tee {
    copy: Result<(Vec<u8>, TeeBytes), Unkept>,
}

/// Why an answer is not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unkept {
    /// It is longer than [`ANSWER_BYTES_MAX`].
    TooLarge,
    /// There was no room for it, or none any more.
    Dropped,
}

impl Tee {
    /// Nothing yet.
    pub fn new(budget: Arc<TeeBudget>) -> Self {
        Self { copy: Ok((Vec::new(), TeeBytes { budget, taken: 0 })) }
    }

    /// Takes a copy of the next piece.
    pub fn push(&mut self, piece: &[u8]) {
        let Ok((bytes, room)) = &mut self.copy else { return };
        if bytes.len() + piece.len() > ANSWER_BYTES_MAX {
            self.copy = Err(Unkept::TooLarge);
        } else if room.take(piece.len()) {
            bytes.extend_from_slice(piece);
        } else {
            self.copy = Err(Unkept::Dropped);
        }
    }

    /// The whole, with the room that it takes, or why it is not here.
    ///
    /// # Errors
    /// It is not kept.
    pub fn into_whole(self) -> Result<(Vec<u8>, TeeBytes), Unkept> {
        self.copy
    }
}

/// What the client of a repeat is told whose answer is not kept.
impl From<Unkept> for Refusal {
    fn from(unkept: Unkept) -> Self {
        match unkept {
            Unkept::TooLarge => Refusal::new(
                Cause::IdempotencyAnswerTooLarge,
                "The request with this Idempotency-Key was answered and billed; its answer was too long to be kept.",
            ),
            Unkept::Dropped => Refusal::new(
                Cause::IdempotencyAnswerDropped,
                "The request with this Idempotency-Key was answered and billed; its answer is no longer kept.",
            ),
        }
    }
}

/// The first request with the key is still running.
pub fn in_progress() -> Refusal {
    let message = "A request with this Idempotency-Key is still running. Ask again for its answer.";
    Refusal::new(Cause::IdempotencyInProgress, message).retry_after_ms(1000)
}

/// The key came with another body before.
pub fn key_reused() -> Refusal {
    let message = "This Idempotency-Key was used for a request with another body within the last 24 hours.";
    Refusal::new(Cause::IdempotencyKeyReused, message).param(HEADER)
}

/// Nobody can say whether the request was served before: so it is not served now.
pub fn unavailable() -> Refusal {
    let message = "Requests with an Idempotency-Key cannot be protected from being billed twice at the moment.";
    Refusal::new(Cause::BillingUnavailable, message).retry_after_ms(1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUEST: Uuid = Uuid::from_u128(7);

    fn key(text: &str) -> IdempotencyKey {
        IdempotencyKey::parse([text.as_bytes()]).unwrap().unwrap()
    }

    fn sealed() -> Vec<u8> {
        KeyedRequest::new("acct_a", &key("k"), b"body").seal(REQUEST, 200, "text/plain", b"an answer".to_vec()).unwrap()
    }

    #[test]
    fn a_key_is_one_to_255_visible_characters() {
        assert_eq!(IdempotencyKey::parse([]).unwrap(), None);
        for good in ["k", "!~", &"x".repeat(255)] {
            assert!(IdempotencyKey::parse([good.as_bytes()]).unwrap().is_some());
        }
        for bad in ["", " ", "a b", "a\tb", "é", "a\u{7f}", &"x".repeat(256)] {
            let refusal = IdempotencyKey::parse([bad.as_bytes()]).unwrap_err();
            assert_eq!((refusal.cause, refusal.param.as_deref()), (Cause::InvalidValue, Some(HEADER)), "{bad:?}");
        }
        assert!(IdempotencyKey::parse([b"a".as_slice(), b"a"]).is_err());
    }

    #[test]
    fn digests_are_the_same_for_the_same_request_and_for_no_other() {
        let digests = |account, name, body: &[u8]| {
            let request = KeyedRequest::new(account, &key(name), body);
            (request.key_digest, request.body_digest)
        };
        let (name, body) = digests("acct_a", "k", b"body");
        assert_eq!(digests("acct_a", "k", b"body"), (name.clone(), body.clone()));
        assert_eq!((name.len(), body.len()), (64, 64));
        let (other_name, other_body) = digests("acct_a", "k", b"body.");
        assert_eq!(other_name, name);
        assert_ne!(other_body, body);
        for (account, text) in [("acct_a", "l"), ("acct_b", "k")] {
            let (other_name, other_body) = digests(account, text, b"body");
            assert!(other_name != name && other_body != body, "{account} {text}: the body's digest is the key's too");
        }
    }

    #[test]
    fn an_answer_opens_for_the_same_request_only() {
        let open = |account, name, body: &[u8], id, status, kind, sealed| {
            KeyedRequest::new(account, &key(name), body).open(id, status, kind, sealed)
        };
        let whole = open("acct_a", "k", b"body", REQUEST, 200, "text/plain", sealed());
        assert_eq!(whole.as_deref(), Some(b"an answer".as_slice()));
        let other = Uuid::from_u128(8);
        assert_eq!(open("acct_b", "k", b"body", REQUEST, 200, "text/plain", sealed()), None);
        assert_eq!(open("acct_a", "l", b"body", REQUEST, 200, "text/plain", sealed()), None);
        assert_eq!(open("acct_a", "k", b"bodY", REQUEST, 200, "text/plain", sealed()), None);
        assert_eq!(open("acct_a", "k", b"body", other, 200, "text/plain", sealed()), None);
        assert_eq!(open("acct_a", "k", b"body", REQUEST, 201, "text/plain", sealed()), None);
        assert_eq!(open("acct_a", "k", b"body", REQUEST, 200, "text/html", sealed()), None);
        let mut damaged = sealed();
        damaged[0] ^= 1;
        assert_eq!(open("acct_a", "k", b"body", REQUEST, 200, "text/plain", damaged), None);
    }

    #[test]
    fn what_is_sealed_shows_nothing_and_never_the_same_twice() {
        let request = KeyedRequest::new("acct_a", &key("k"), b"body");
        let again = request.seal(Uuid::from_u128(8), 200, "text/plain", b"an answer".to_vec()).unwrap();
        assert_ne!(again, sealed(), "a claim after a claim has another key");
        assert!(!sealed().windows(6).any(|window| window == b"answer"));
        assert!(!format!("{:?}", key("secret")).contains("secret"));
    }

    #[test]
    fn a_tee_keeps_what_is_short_enough_and_gives_its_room_back() {
        let budget = Arc::new(TeeBudget::default());
        let left = || budget.0.load(Ordering::Relaxed);
        let mut tee = Tee::new(Arc::clone(&budget));
        tee.push(&vec![1; ANSWER_BYTES_MAX - 1]);
        tee.push(&[2]);
        let (whole, room) = tee.into_whole().unwrap();
        assert_eq!((whole.len(), left()), (ANSWER_BYTES_MAX, TEE_BYTES_MAX - ANSWER_BYTES_MAX));
        drop(room);
        let mut long = Tee::new(Arc::clone(&budget));
        long.push(&vec![1; ANSWER_BYTES_MAX]);
        long.push(&[2]);
        assert_eq!(left(), TEE_BYTES_MAX, "what is not kept takes no room");
        long.push(&[3]);
        assert_eq!(long.into_whole().unwrap_err(), Unkept::TooLarge);
    }

    #[test]
    fn many_answers_at_once_are_kept_as_far_as_there_is_room() {
        let budget = Arc::new(TeeBudget::default());
        let tees = || {
            let mut tee = Tee::new(Arc::clone(&budget));
            tee.push(&vec![1; ANSWER_BYTES_MAX]);
            tee.into_whole()
        };
        let mut kept: Vec<_> = (0..TEE_BYTES_MAX / ANSWER_BYTES_MAX).map(|_| tees().unwrap()).collect();
        assert_eq!(tees().unwrap_err(), Unkept::Dropped);
        kept.pop();
        assert!(tees().is_ok());
    }
}
