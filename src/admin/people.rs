//! What lets people in: tokens of sessions and links, and passwords. The dashboard and the command line do it by these.
//!
//! A token is 256 random bits. The store has its digest only, so whoever reads the store cannot sign in by it.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::store::{LinkPurpose, Store, StoreError, TokenDigest, User};

const TOKEN_BYTES: usize = 32;
/// Set before what is digested, so that no digest is good for another's use.
const FORMS: &[u8] = b"forms of ";

/// Why there is no new link or session.
#[derive(Debug, thiserror::Error)]
pub enum PeopleError {
    /// The system gives no random bytes.
    #[error("the system's entropy makes no token")]
    Entropy,
    /// The store did not take it.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What a browser's cookie or a link holds.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(Zeroizing<[u8; TOKEN_BYTES]>);

impl Token {
    /// A new one, from the system's entropy.
    ///
    /// # Errors
    /// There is none.
    pub fn new() -> Result<Self, PeopleError> {
        let mut bytes = Zeroizing::new([0; TOKEN_BYTES]);
        getrandom::fill(&mut *bytes).map_err(|_| PeopleError::Entropy)?;
        Ok(Self(bytes))
    }

    /// Reads one as [`Token::expose`] writes it.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(text).ok()?);
        Some(Self(Zeroizing::new(<[u8; TOKEN_BYTES]>::try_from(bytes.as_slice()).ok()?)))
    }

    /// The token itself, in 43 characters that cookies and URLs take as they are.
    pub fn expose(&self) -> String {
        URL_SAFE_NO_PAD.encode(*self.0)
    }

    /// What the store knows it by.
    pub fn digest(&self) -> TokenDigest {
        TokenDigest(Sha256::digest(*self.0).into())
    }

    /// What the forms of that session carry, so that no other site's do. Nothing of the token can be told from it.
    pub fn forms_proof(&self) -> String {
        let digest = Sha256::new().chain_update(FORMS).chain_update(*self.0).finalize();
        URL_SAFE_NO_PAD.encode(digest)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// For how long a link is good. Milliseconds.
pub fn link_lasts_ms(purpose: LinkPurpose) -> i64 {
    const MINUTE_MS: i64 = 60_000;
    match purpose {
        LinkPurpose::Invite => 7 * 24 * 60 * MINUTE_MS,
        LinkPurpose::Reset => 24 * 60 * MINUTE_MS,
        LinkPurpose::SignIn => 15 * MINUTE_MS,
    }
}

/// A link that was made.
#[derive(Debug, Clone)]
pub struct NewLink {
    token: Token,
    /// When it is good no more. Milliseconds since the Unix epoch.
    pub expires_at_ms: i64,
}

impl NewLink {
    /// The address to pass on, below the dashboard's own.
    pub fn url(&self, dashboard_url: &str) -> String {
        format!("{dashboard_url}/link/{}", self.token.expose())
    }
}

/// Makes a link for somebody. Earlier ones of that purpose are good no more.
///
/// # Errors
/// There is no entropy, the person is suspended, or the store failed.
pub async fn create_link(
    store: &Store,
    user: &User,
    purpose: LinkPurpose,
    now_ms: i64,
) -> Result<NewLink, PeopleError> {
    let link = NewLink { token: Token::new()?, expires_at_ms: now_ms.saturating_add(link_lasts_ms(purpose)) };
    store.create_link(&user.id, purpose, &link.token.digest(), now_ms, link.expires_at_ms).await?;
    Ok(link)
}

/// What gets somebody in who is not in: an invitation for who has no password yet, another password for who has.
pub fn purpose_for(user: &User) -> LinkPurpose {
    if user.has_password { LinkPurpose::Reset } else { LinkPurpose::Invite }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_reads_back_and_shows_itself_nowhere_else() {
        let (token, other) = (Token::new().unwrap(), Token::new().unwrap());
        assert_eq!(token.expose().len(), 43);
        assert_eq!(Token::parse(&token.expose()), Some(token.clone()));
        assert_ne!(token, other);
        assert_eq!(format!("{token:?}"), "Token(…)");
        for text in ["", "AAAA", &token.expose()[1..], &format!("{}A", token.expose()), &"=".repeat(43)] {
            assert_eq!(Token::parse(text), None, "{text}");
        }
    }

    #[test]
    fn forms_are_proved_by_something_else_than_the_session() {
        let token = Token(Zeroizing::new([7; 32]));
        let digests = [token.expose(), token.digest().to_string(), URL_SAFE_NO_PAD.encode(token.digest().0)];
        assert!(!digests.contains(&token.forms_proof()));
        assert_ne!(token.forms_proof(), Token(Zeroizing::new([8; 32])).forms_proof());
        assert_eq!(token.forms_proof(), token.clone().forms_proof());
    }
}
