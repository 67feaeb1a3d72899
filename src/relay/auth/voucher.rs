//! The format of vouchers' codes: four groups of five characters, `7K3QX-9M2PD-0ZV4T-H8RAC`, 100 bits of entropy.
//!
//! The characters are Crockford's base32: digits and capitals without I, L, O and U, so that nothing looks like something else. People
//! type codes from paper: small letters, an O for a 0, an I or L for a 1, and any spaces or hyphens are read as what was meant.
//!
//! Deliberately absent: a checksum, for a code that is mistyped is one that does not exist; and the source of the entropy, which comes
//! in as bytes.

use std::fmt;

use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::KeyDigest;

const CHARACTERS: usize = 20;
const GROUP_CHARACTERS: usize = 5;
const CROCKFORD: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// How much is read of what may be a code: more is none, however it is spaced.
const TEXT_BYTES_MAX: usize = 100;

/// Keeps these digests apart from those of other secrets.
const DOMAIN: &[u8] = b"tollgate voucher 1\n";

/// A voucher's code. Its memory is wiped when it goes.
#[derive(Clone, PartialEq, Eq)]
pub struct VoucherCode(Zeroizing<[u8; CHARACTERS]>);

impl VoucherCode {
    /// How many bytes to hand to [`VoucherCode::from_entropy`].
    pub const ENTROPY_BYTES: usize = CHARACTERS;

    /// A new code from random bytes; every code is as likely as any other.
    pub fn from_entropy(bytes: &[u8; Self::ENTROPY_BYTES]) -> Self {
        Self(Zeroizing::new(bytes.map(|byte| CROCKFORD[usize::from(byte & 31)])))
    }

    /// The code, if the text has a code's form.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() > TEXT_BYTES_MAX {
            return None;
        }
        let mut code = Zeroizing::new([0; CHARACTERS]);
        let mut places = code.iter_mut();
        for character in text.chars().filter(|character| !matches!(character, '-' | '\u{2010}'..='\u{2015}' | ' ')) {
            let meant = match character.to_ascii_uppercase() {
                'O' => '0',
                'I' | 'L' => '1',
                other => other,
            };
            let byte = u8::try_from(meant).ok().filter(|byte| CROCKFORD.contains(byte))?;
            *places.next()? = byte;
        }
        places.next().is_none().then_some(Self(code))
    }

    /// What the store knows it by: SHA-256. A code has 100 bits of entropy, so a plain digest cannot be searched.
    pub fn digest(&self) -> KeyDigest {
        let mut digest = Sha256::new();
        digest.update(DOMAIN);
        digest.update(*self.0);
        KeyDigest(digest.finalize().into())
    }

    /// The code itself, to be shown to whoever made it once.
    pub fn expose(&self) -> String {
        let groups =
            self.0.chunks(GROUP_CHARACTERS).map(|group| group.iter().copied().map(char::from).collect::<String>());
        groups.collect::<Vec<_>>().join("-")
    }
}

/// Never the code: it must not reach a log by way of a debug line.
impl fmt::Debug for VoucherCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VoucherCode(…)")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn code() -> VoucherCode {
        VoucherCode::from_entropy(&std::array::from_fn(|at| u8::try_from(at * 13).unwrap()))
    }

    #[test]
    fn has_the_documented_form() {
        assert_eq!(code().expose(), "0DT7M-1EV8N-2FW9P-3GXAQ");
        assert_eq!(format!("{:?}", code()), "VoucherCode(…)");
    }

    #[test]
    fn what_people_type_is_read_as_meant() {
        let code = VoucherCode::parse("10ABC-DEFGH-JKMNP-QRSTV").unwrap();
        for typed in [
            "10abcdefghjkmnpqrstv",
            " loABC DEFGH JKMNP QRSTV ",
            "I0ABC–DEFGH–JKMNP–QRSTV",
            "1-0-A-B-C-DEFGH--JKMNPQRSTV",
        ] {
            assert_eq!(VoucherCode::parse(typed), Some(code.clone()), "{typed}");
        }
        for typed in ["", "10ABC-DEFGH-JKMNP-QRST", "10ABC-DEFGH-JKMNP-QRSTVW", "U0ABC-DEFGH-JKMNP-QRSTV", "é"] {
            assert_eq!(VoucherCode::parse(typed), None, "{typed}");
        }
        assert_eq!(VoucherCode::parse(&"-".repeat(1_000)), None);
    }

    proptest! {
        #[test]
        fn what_is_shown_reads_back(bytes in any::<[u8; VoucherCode::ENTROPY_BYTES]>()) {
            let code = VoucherCode::from_entropy(&bytes);
            prop_assert_eq!(VoucherCode::parse(&code.expose()), Some(code));
        }

        #[test]
        fn any_text_is_read_without_a_panic(text in ".{0,120}") {
            let _ = VoucherCode::parse(&text);
        }
    }
}
