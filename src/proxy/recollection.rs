//! What one node remembers of Gemini's calls, told to the others: sealed, by way of Redis.

use std::sync::Arc;

use crate::relay::dialect::gemini::{NONCE_BYTES, SignatureMemory, SignatureScope};
use crate::shared::Windows;

/// The memory of a node; what it learns, it tells the others, where there are any.
pub(super) fn memory(windows: Option<&Arc<Windows>>) -> Arc<SignatureMemory> {
    let Some(windows) = windows.cloned() else { return Arc::default() };
    Arc::new(SignatureMemory::default().telling(move |place, signature| {
        let mut nonce = [0; NONCE_BYTES];
        if getrandom::fill(&mut nonce).is_ok()
            && let Some(sealed) = place.seal(nonce, signature)
        {
            windows.keep(place.name(), sealed);
        }
    }))
}

/// Asks the others for what was looked for and not found. Whether there was any of it: then it is to be looked for again.
pub(super) async fn ask_others(windows: &Windows, scope: &SignatureScope) -> bool {
    let missed = scope.take_missed();
    if missed.is_empty() {
        return false;
    }
    let places: Vec<_> = missed.iter().map(|call_id| scope.place(call_id)).collect();
    let names: Vec<_> = places.iter().map(|place| place.name()).collect();
    let found = windows.fetch(&names).await;
    let mut is_any = false;
    for ((call_id, place), sealed) in missed.iter().zip(places).zip(found) {
        if let Some(signature) = sealed.and_then(|sealed| place.open(sealed)) {
            scope.learn(call_id, &signature);
            is_any = true;
        }
    }
    is_any
}
