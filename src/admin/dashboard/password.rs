//! Passwords: Argon2id by OWASP's parameters, a few at a time, so that guessing takes the guesser's time and not the relay's.

use std::sync::Arc;

use argon2::password_hash::{PasswordHash, PasswordHasher, PasswordVerifier, SaltString};
use argon2::{Algorithm, Argon2, Params, Version};
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use super::answer::Refused;
use crate::relay::refusal::Cause;

const CHARACTERS_MIN: usize = 10;
/// Argon2 takes more; nobody types it.
const BYTES_MAX: usize = 1_024;

/// KiB, passes, lanes.
const MEMORY_KIB: u32 = 19 * 1_024;
const PASSES: u32 = 2;
const LANES: u32 = 1;
const SALT_BYTES: usize = 16;

/// How many are worked on at a time, and how many may wait for their turn.
const AT_ONCE_MAX: usize = 2;
const WAITING_MAX: usize = 32;

/// What is compared where there is nobody, or nobody with a password: no password makes it, and it takes as long as another.
const NOBODYS: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// Whether somebody may have that password.
pub(super) fn check(password: &str) -> Result<(), &'static str> {
    if password.chars().count() < CHARACTERS_MIN {
        return Err("Choose a password of at least 10 characters.");
    }
    if password.len() > BYTES_MAX {
        return Err("Choose a shorter password.");
    }
    Ok(())
}

/// Whoever hashes passwords and compares them.
pub(super) struct Passwords {
    at_once: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
}

impl Passwords {
    pub(super) fn new() -> Self {
        let turns = |most| Arc::new(Semaphore::new(most));
        Self { at_once: turns(AT_ONCE_MAX), waiting: turns(AT_ONCE_MAX + WAITING_MAX) }
    }

    /// The PHC string of a password that was [`check`]ed.
    pub(super) async fn hash(&self, password: &str) -> Result<String, Refused> {
        let password = Zeroizing::new(password.to_owned());
        let hash = self.work(move || hash(&password)).await?;
        hash.ok_or_else(failed)
    }

    /// Whether that is the password of the PHC string. Takes as long where there is none.
    pub(super) async fn verify(&self, password: &str, phc: Option<String>) -> Result<bool, Refused> {
        if password.len() > BYTES_MAX {
            return Ok(false);
        }
        let password = Zeroizing::new(password.to_owned());
        self.work(move || verify(&password, phc.as_deref())).await
    }

    async fn work<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Refused> {
        let busy = |_| Refused::Because(Cause::Overloaded, "Too many people sign in at the moment. Try again.");
        let place = Arc::clone(&self.waiting).try_acquire_owned().map_err(busy)?;
        let turn = Arc::clone(&self.at_once).acquire_owned().await.map_err(|_| failed())?;
        // Whoever gives up waiting does not make room for another: the work goes on.
        let done = tokio::task::spawn_blocking(move || {
            let done = work();
            drop((turn, place));
            done
        });
        done.await.map_err(|_| failed())
    }
}

fn failed() -> Refused {
    tracing::error!("a password could not be worked on");
    Refused::Because(Cause::InternalError, "Something went wrong here. The log says what.")
}

fn argon2() -> Option<Argon2<'static>> {
    let params = Params::new(MEMORY_KIB, PASSES, LANES, None).ok()?;
    Some(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
}

fn hash(password: &str) -> Option<String> {
    let mut bytes = [0; SALT_BYTES];
    getrandom::fill(&mut bytes).ok()?;
    let salt = SaltString::encode_b64(&bytes).ok()?;
    Some(argon2()?.hash_password(password.as_bytes(), &salt).ok()?.to_string())
}

fn verify(password: &str, phc: Option<&str>) -> bool {
    let is_somebodys = phc.is_some();
    let Some((argon2, hash)) = argon2().zip(PasswordHash::new(phc.unwrap_or(NOBODYS)).ok()) else { return false };
    argon2.verify_password(password.as_bytes(), &hash).is_ok() && is_somebodys
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_its_own_and_no_other() {
        let phc = hash("correct horse").unwrap();
        assert!(phc.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{phc}");
        assert!(verify("correct horse", Some(&phc)) && !verify("correct horsf", Some(&phc)));
        assert_ne!(hash("correct horse").unwrap(), phc, "salted");
        assert!(!verify("correct horse", None) && !verify("", Some("not a hash")));
    }

    #[test]
    fn what_is_compared_for_nobody_is_as_dear_as_what_is_stored() {
        let ours = hash("correct horse").unwrap();
        let (ours, nobodys) = (PasswordHash::new(&ours).unwrap(), PasswordHash::new(NOBODYS).unwrap());
        assert_eq!((ours.algorithm, ours.version), (nobodys.algorithm, nobodys.version));
        assert_eq!(ours.params, nobodys.params);
        assert_eq!(ours.hash.unwrap().len(), nobodys.hash.unwrap().len());
    }

    #[test]
    fn short_and_endless_passwords_are_refused() {
        assert!(check("123456789").is_err() && check("1234567890").is_ok());
        assert!(check("ääääääääää").is_ok(), "characters, not bytes");
        assert!(check(&"x".repeat(1_025)).is_err());
    }

    #[tokio::test]
    async fn who_finds_too_many_waiting_is_told_to_come_again() {
        let passwords = Passwords::new();
        let _all = Arc::clone(&passwords.waiting).acquire_many_owned(34).await.unwrap();
        assert!(matches!(passwords.hash("1234567890").await, Err(Refused::Because(Cause::Overloaded, _))));
    }
}
