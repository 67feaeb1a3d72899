//! A credential that cannot be printed by accident, and whose memory is wiped when it goes.

use std::fmt;

use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// A provider's credential. `Debug` redacts it and there is no `Display`; [`Secret::expose`] is the one way to the text.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<Box<str>>);

impl Secret {
    /// Wraps a credential.
    pub fn new(text: impl Into<Box<str>>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// The credential itself, for the header that carries it upstream and for nothing else.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether it is that text. Takes as long whatever they have in common.
    pub fn is(&self, text: &str) -> bool {
        let [own, other] = [&*self.0, text].map(|text| Sha256::digest(text.as_bytes()));
        own.iter().zip(other.iter()).fold(0, |differing, (one, other)| differing | (one ^ other)) == 0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::Secret;

    #[test]
    fn it_is_its_own_text_and_no_other() {
        let secret = Secret::new("abc");
        assert!(secret.is("abc"));
        assert!(!["", "ab", "abcd", "ABC", "abd"].into_iter().any(|other| secret.is(other)));
    }

    #[test]
    fn debug_does_not_show_the_text() {
        assert_eq!(format!("{:?}", Secret::new("sk-very-secret")), "Secret(…)");
    }
}
