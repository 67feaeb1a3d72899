//! What operators do that is more than one call of the store: the command line and the admin API do it by these.

use crate::relay::auth::ApiKey;
use crate::relay::route::Catalogue;
use crate::store::{Key, NewKey, Store, StoreError};

/// A plan that the configuration does not have. The message names those that it has.
#[derive(Debug, thiserror::Error)]
#[error("there is no plan {plan:?}; the configuration has: {known}")]
pub struct UnknownPlan {
    plan: String,
    known: String,
}

/// Whether accounts can be put on that plan.
///
/// # Errors
/// There is no such plan.
pub fn require_plan(catalogue: &Catalogue, plan: &str) -> Result<(), UnknownPlan> {
    match catalogue.plan(plan) {
        Some(_) => Ok(()),
        None => Err(UnknownPlan { plan: plan.to_owned(), known: catalogue.plan_names().join(", ") }),
    }
}

/// Why there is no new key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The system gives no random bytes.
    #[error("the system's entropy makes no key")]
    Entropy,
    /// The store did not take it.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Makes a key from the system's entropy and stores its digest.
///
/// # Errors
/// There is no entropy, no such account, or the store failed.
pub async fn create_key(store: &Store, new: &NewKey, now_ms: i64) -> Result<(Key, ApiKey), KeyError> {
    let mut entropy = [0; ApiKey::ENTROPY_BYTES];
    getrandom::fill(&mut entropy).map_err(|_| KeyError::Entropy)?;
    let secret = ApiKey::from_entropy(&entropy).ok_or(KeyError::Entropy)?;
    let key = store.create_key(new, &secret.digest(), now_ms).await?;
    Ok((key, secret))
}
