//! Thought signatures, remembered for clients that drop fields they do not know.
//!
//! Gemini signs what it thought before a tool call and wants the signature back with the call. Clients get it in
//! `tool_calls[].extra_content.google.thought_signature`, the name that Google's own compatible endpoint uses, and most send
//! it back. For those that do not, it is kept here under the account and the call's id, for as long as there is room.
//!
//! Other nodes may be told of what is remembered, and asked for what is not; each call is asked for once a translation.
//!
//! Deliberately absent: expiry by age, for there is no clock here, and how others are told and asked.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sha2::{Digest, Sha256};

use super::sealed::SignaturePlace;

/// The most signatures that are remembered.
pub const SIGNATURES_MAX: usize = 64 * 1024;
/// The most bytes that they have together.
pub const SIGNATURES_BYTES_MAX: usize = 64 * 1024 * 1024;
/// The most bytes of one; a longer one is not remembered. Those seen have up to some five thousand.
pub const SIGNATURE_BYTES_MAX: usize = 256 * 1024;

/// The most calls that others are asked for at once.
const MISSED_MAX: usize = 64;

/// What is sent with the calls of a history that has no signatures, because another model made it: Google documents this
/// word for the purpose. Models that do not ask for signatures let it pass.
pub(super) const NO_SIGNATURE: &[u8] = b"skip_thought_signature_validator";

/// The signatures of tool calls, the least recently used forgotten first.
#[derive(Debug)]
pub struct SignatureMemory {
    shelf: Mutex<Shelf>,
    signatures_max: usize,
    bytes_max: usize,
    others: Option<Others>,
}

/// Who is told of each signature, and where it belongs.
struct Others(Box<Tell>);

type Tell = dyn Fn(&SignaturePlace, &[u8]) + Send + Sync;

impl fmt::Debug for Others {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Others")
    }
}

/// One account's part of the memory. There is no way from it to another's.
#[derive(Debug, Clone)]
pub struct SignatureScope {
    memory: Arc<SignatureMemory>,
    scope: Box<str>,
    /// Calls that were looked for in vain, where others can be asked.
    missed: Option<Arc<Mutex<CallIds>>>,
}

type CallIds = Vec<Box<[u8]>>;

/// A digest of scope and id: of one size, however long they are, and nobody else's scope can make it.
type Key = [u8; 32];

#[derive(Debug, Default)]
struct Shelf {
    signatures: HashMap<Key, Kept>,
    /// By when they were last used; the first is the next to be forgotten.
    by_use: BTreeMap<u64, Key>,
    uses: u64,
    bytes: usize,
}

#[derive(Debug)]
struct Kept {
    signature: Arc<[u8]>,
    used: u64,
}

impl Default for SignatureMemory {
    fn default() -> Self {
        Self::new(SIGNATURES_MAX, SIGNATURES_BYTES_MAX)
    }
}

impl SignatureMemory {
    /// An empty memory for so many signatures that have so many bytes together.
    pub fn new(signatures_max: usize, bytes_max: usize) -> Self {
        Self { shelf: Mutex::default(), signatures_max, bytes_max, others: None }
    }

    /// The same, which tells others what it learns.
    #[must_use]
    pub fn telling(self, tell: impl Fn(&SignaturePlace, &[u8]) + Send + Sync + 'static) -> Self {
        Self { others: Some(Others(Box::new(tell))), ..self }
    }

    /// The part of the memory that belongs to an account.
    pub fn scope(self: &Arc<Self>, scope: &str) -> SignatureScope {
        let missed = self.others.as_ref().map(|_| Arc::default());
        SignatureScope { memory: Arc::clone(self), scope: scope.into(), missed }
    }

    /// How many signatures are remembered now.
    pub fn count(&self) -> usize {
        self.shelf().signatures.len()
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        // Nothing is left half done where a panic could come.
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SignatureScope {
    /// Remembers a call's signature, as it stands inside of a JSON string, and tells others of it.
    pub(super) fn remember(&self, call_id: &[u8], signature: &[u8]) {
        self.learn(call_id, signature);
        if let Some(Others(tell)) = self.memory.others.as_ref().filter(|_| !signature.is_empty()) {
            tell(&self.place(call_id), signature);
        }
    }

    /// Remembers a call's signature that others knew.
    pub fn learn(&self, call_id: &[u8], signature: &[u8]) {
        let memory = &self.memory;
        if signature.is_empty() || signature.len() > SIGNATURE_BYTES_MAX.min(memory.bytes_max) {
            return;
        }
        let key = self.key(call_id);
        let mut shelf = memory.shelf();
        shelf.forget(&key);
        shelf.bytes += signature.len();
        let used = shelf.used(key);
        shelf.signatures.insert(key, Kept { signature: signature.into(), used });
        while shelf.signatures.len() > memory.signatures_max || shelf.bytes > memory.bytes_max {
            let Some((_, oldest)) = shelf.by_use.pop_first() else { break };
            shelf.forget(&oldest);
        }
    }

    /// The signature of a call, if it is remembered.
    pub(super) fn recall(&self, call_id: &[u8]) -> Option<Arc<[u8]>> {
        let key = self.key(call_id);
        let mut shelf = self.memory.shelf();
        let before = shelf.signatures.get(&key)?.used;
        shelf.by_use.remove(&before);
        let used = shelf.used(key);
        let kept = shelf.signatures.get_mut(&key)?;
        kept.used = used;
        Some(Arc::clone(&kept.signature))
    }

    /// A call that should have a signature has none here.
    pub(super) fn miss(&self, call_id: &[u8]) {
        if let Some(missed) = &self.missed {
            let mut missed = missed.lock().unwrap_or_else(PoisonError::into_inner);
            if missed.len() < MISSED_MAX {
                missed.push(call_id.into());
            }
        }
    }

    /// The calls that were looked for in vain since this was last asked.
    pub fn take_missed(&self) -> CallIds {
        let Some(missed) = &self.missed else { return Vec::new() };
        std::mem::take(&mut *missed.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Where others keep a call's signature.
    pub fn place(&self, call_id: &[u8]) -> SignaturePlace {
        SignaturePlace::new(&self.scope, call_id)
    }

    fn key(&self, call_id: &[u8]) -> Key {
        // The length stands first, so that no scope and id read together like another pair.
        let scope_bytes = (self.scope.len() as u64).to_le_bytes();
        Sha256::new()
            .chain_update(scope_bytes)
            .chain_update(self.scope.as_bytes())
            .chain_update(call_id)
            .finalize()
            .into()
    }
}

impl Shelf {
    /// Notes that a key is used now.
    fn used(&mut self, key: Key) -> u64 {
        self.uses += 1;
        self.by_use.insert(self.uses, key);
        self.uses
    }

    fn forget(&mut self, key: &Key) {
        if let Some(kept) = self.signatures.remove(key) {
            self.by_use.remove(&kept.used);
            self.bytes -= kept.signature.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn memory(signatures_max: usize, bytes_max: usize) -> Arc<SignatureMemory> {
        Arc::new(SignatureMemory::new(signatures_max, bytes_max))
    }

    #[test]
    fn one_account_does_not_see_anothers() {
        let memory = memory(10, 1000);
        memory.scope("acct_1").remember(b"call_1", b"signature");
        assert_eq!(memory.scope("acct_1").recall(b"call_1").as_deref(), Some(&b"signature"[..]));
        assert_eq!(memory.scope("acct_2").recall(b"call_1"), None);
        assert_eq!(memory.scope("acct_1c").recall(b"all_1"), None);
        assert_eq!(memory.scope("acct_").recall(b"1call_1"), None);
    }

    #[test]
    fn the_least_recently_used_is_forgotten_first() {
        let memory = memory(2, 1000);
        let scope = memory.scope("a");
        scope.remember(b"1", b"one");
        scope.remember(b"2", b"two");
        assert!(scope.recall(b"1").is_some());
        scope.remember(b"3", b"three");
        let remembered = [&b"1"[..], b"2", b"3"].map(|id| scope.recall(id).is_some());
        assert_eq!(remembered, [true, false, true]);
    }

    #[test]
    fn a_signature_anew_replaces_the_old_one() {
        let memory = memory(10, 10);
        let scope = memory.scope("a");
        scope.remember(b"1", b"12345678");
        scope.remember(b"1", b"87654321");
        assert_eq!((memory.count(), scope.recall(b"1").as_deref()), (1, Some(&b"87654321"[..])));
        scope.remember(b"2", b"too long for it");
        scope.remember(b"3", b"");
        assert_eq!(memory.count(), 1);
    }

    #[test]
    fn others_are_told_what_is_learnt_here_and_asked_for_what_is_missed() {
        let told: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
        let tell = Arc::clone(&told);
        let memory = SignatureMemory::new(10, 1000)
            .telling(move |place, signature| tell.lock().unwrap().extend(place.seal([1; 12], signature)));
        let scope = Arc::new(memory).scope("acct_1");
        scope.remember(b"call_1", b"signature");
        let sealed = told.lock().unwrap().pop().unwrap();
        scope.learn(b"call_2", b"another's");
        assert!(told.lock().unwrap().is_empty(), "others know what they have told");
        scope.miss(b"call_3");
        assert_eq!((scope.take_missed().len(), scope.take_missed().len()), (1, 0));
        assert_eq!(scope.place(b"call_1").open(sealed).as_deref(), Some(&b"signature"[..]));
        let alone = super::tests::memory(10, 1000).scope("acct_1");
        alone.miss(b"call_3");
        assert!(alone.take_missed().is_empty(), "there is nobody to be asked");
    }

    proptest! {
        #[test]
        fn it_never_holds_more_than_it_may(
            calls in prop::collection::vec((0u8..12, 0usize..40, any::<bool>()), 0..200),
            signatures_max in 0usize..6,
            bytes_max in 0usize..100,
        ) {
            let memory = memory(signatures_max, bytes_max);
            let scope = memory.scope("a");
            for (id, bytes, remember) in calls {
                if remember {
                    scope.remember(&[id], &vec![b's'; bytes]);
                } else {
                    scope.recall(&[id]);
                }
                let shelf = memory.shelf();
                prop_assert!(shelf.signatures.len() <= signatures_max && shelf.bytes <= bytes_max);
                prop_assert_eq!(shelf.signatures.len(), shelf.by_use.len());
                prop_assert_eq!(shelf.bytes, shelf.signatures.values().map(|kept| kept.signature.len()).sum::<usize>());
            }
        }
    }
}
