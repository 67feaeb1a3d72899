//! The format of API keys: `tg_live_`, 30 base62 characters of entropy, 6 base62 characters of CRC-32.
//!
//! The checksum is CRC-32 (IEEE 802.3) over everything before it, prefix included, as a number in base62 with its most
//! significant digit first and padded with `0`. It tells a typing mistake or a scanner's guess from a key without any
//! look-up; it is no secret. Base62's digits are `0-9`, `A-Z`, `a-z`, in that order.
//!
//! Deliberately absent: the source of the entropy, which comes in as bytes.

use std::fmt;

use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

const PREFIX: &str = "tg_live_";
const ENTROPY_CHARACTERS: usize = 30;
const CHECKSUM_CHARACTERS: usize = 6;
const CHECKED_CHARACTERS: usize = PREFIX.len() + ENTROPY_CHARACTERS;
const KEY_CHARACTERS: usize = CHECKED_CHARACTERS + CHECKSUM_CHARACTERS;

const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// The largest multiple of 62 that bytes can be below: those at or above it would favour the first digits.
const UNBIASED_BYTES: u8 = 248;

/// SHA-256 of a key: what is stored and looked up. A key has 178 bits of entropy, so a plain digest cannot be searched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyDigest(pub [u8; 32]);

impl KeyDigest {
    /// Reads back what `Display` writes: 64 lower-case hexadecimal digits.
    pub fn from_hex(text: &str) -> Option<Self> {
        let digits = text.as_bytes();
        let mut digest = [0; 32];
        if digits.len() != digest.len() * 2 {
            return None;
        }
        for (byte, pair) in digest.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = hex_value(pair[0])? << 4 | hex_value(pair[1])?;
        }
        Some(Self(digest))
    }
}

/// 64 lower-case hexadecimal digits, the form in which digests are stored.
impl fmt::Display for KeyDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A key whose form and checksum are right; whether it exists is the store's to say. Its memory is wiped when it goes.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(Zeroizing<Box<str>>);

impl ApiKey {
    /// How many bytes to hand to [`ApiKey::from_entropy`]: with so many, the chance that they do not suffice is below
    /// 2⁻¹¹⁰.
    pub const ENTROPY_BYTES: usize = 64;

    /// The key, if the text has a key's form and checksum.
    pub fn parse(text: &str) -> Option<Self> {
        let has_form = text.len() == KEY_CHARACTERS
            && text.starts_with(PREFIX)
            && text.as_bytes()[PREFIX.len()..].iter().all(u8::is_ascii_alphanumeric);
        if !has_form {
            return None;
        }
        let (checked, checksum) = text.split_at(CHECKED_CHARACTERS);
        (checksum.as_bytes() == checksum_of(checked)).then(|| Self(Zeroizing::new(text.into())))
    }

    /// A new key from random bytes; every key is as likely as any other. `None` if too few of the bytes are usable:
    /// 8 of the 256 values are passed over, so that the others map to base62 evenly.
    pub fn from_entropy(bytes: &[u8]) -> Option<Self> {
        // Of its whole size from the beginning: what grows is copied, and leaves its text behind.
        let mut key = Zeroizing::new(String::with_capacity(KEY_CHARACTERS));
        key.push_str(PREFIX);
        let usable = bytes.iter().filter(|byte| **byte < UNBIASED_BYTES);
        key.extend(usable.take(ENTROPY_CHARACTERS).map(|byte| char::from(BASE62[usize::from(byte % 62)])));
        if key.len() != CHECKED_CHARACTERS {
            return None;
        }
        let checksum = checksum_of(&key);
        key.extend(checksum.map(char::from));
        Some(Self(Zeroizing::new(key.as_str().into())))
    }

    /// What the store and the caches know the key by.
    pub fn digest(&self) -> KeyDigest {
        KeyDigest(Sha256::digest(self.0.as_bytes()).into())
    }

    /// The key itself, to be shown to its owner once.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

/// Never the key: it must not reach a log by way of a debug line.
impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

fn checksum_of(checked: &str) -> [u8; CHECKSUM_CHARACTERS] {
    let mut rest = crc32fast::hash(checked.as_bytes()) as usize;
    let mut digits = [0; CHECKSUM_CHARACTERS];
    for digit in digits.iter_mut().rev() {
        *digit = BASE62[rest % 62];
        rest /= 62;
    }
    digits
}

fn hex_value(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn key() -> ApiKey {
        ApiKey::from_entropy(&[7; ApiKey::ENTROPY_BYTES]).unwrap()
    }

    #[test]
    fn has_the_documented_form() {
        // The checksum was computed apart from this code: zlib.crc32 in Python, then base62.
        assert_eq!(key().expose(), "tg_live_7777777777777777777777777777774CgcFa");
    }

    #[test]
    fn reads_back_what_it_made() {
        assert_eq!(ApiKey::parse(key().expose()), Some(key()));
    }

    #[test]
    fn refuses_other_forms() {
        let good = key().expose().to_owned();
        let wrong_prefix = good.replace("tg_live_", "tg_test_");
        let inner_space = good.replacen('7', " ", 1);
        let not_ascii = good.replacen("77", "é", 1);
        for text in ["", "tg_live_", "sk-proj-abc", &good[1..], &good[..good.len() - 1], &format!("{good}0")] {
            assert_eq!(ApiKey::parse(text), None, "{text}");
        }
        for text in [&wrong_prefix, &inner_space, &not_ascii, &good.to_lowercase(), &"é".repeat(22)] {
            assert_eq!(ApiKey::parse(text), None, "{text}");
        }
    }

    #[test]
    fn too_little_entropy_makes_no_key() {
        assert_eq!(ApiKey::from_entropy(&[0; 29]), None);
        assert_eq!(ApiKey::from_entropy(&[255; 1000]), None);
        assert!(ApiKey::from_entropy(&[0; 30]).is_some());
    }

    #[test]
    fn every_byte_value_that_counts_maps_evenly() {
        let mut seen: HashMap<char, usize> = HashMap::new();
        for byte in 0..UNBIASED_BYTES {
            let key = ApiKey::from_entropy(&[byte; ENTROPY_CHARACTERS]).unwrap();
            *seen.entry(key.expose().chars().nth(PREFIX.len()).unwrap()).or_default() += 1;
        }
        assert_eq!(seen.len(), 62);
        assert!(seen.values().all(|count| *count == 4), "{seen:?}");
    }

    #[test]
    fn debug_shows_nothing_of_the_key() {
        assert_eq!(format!("{:?}", key()), "ApiKey(…)");
    }

    #[test]
    fn digest_is_sha256_of_the_whole_key() {
        let digest = key().digest();
        assert_eq!(digest.to_string(), "383fc23c2cd39f98ae7b224ffcf7df551c9853845e938412124082a34ec1bbc6");
        assert_eq!(KeyDigest::from_hex(&digest.to_string()), Some(digest));
        assert_eq!(KeyDigest::from_hex("00"), None);
        assert_eq!(KeyDigest::from_hex(&"G0".repeat(32)), None);
    }

    proptest! {
        #[test]
        fn any_entropy_makes_a_key_that_parses(bytes in proptest::collection::vec(any::<u8>(), 64)) {
            let key = ApiKey::from_entropy(&bytes).unwrap();
            prop_assert_eq!(ApiKey::parse(key.expose()), Some(key));
        }

        #[test]
        fn one_changed_character_is_noticed(
            bytes in proptest::collection::vec(any::<u8>(), 64),
            place in 0..KEY_CHARACTERS,
            digit in 0_usize..62,
        ) {
            let key = ApiKey::from_entropy(&bytes).unwrap();
            let mut changed = key.expose().as_bytes().to_vec();
            changed[place] = BASE62[digit];
            let changed = String::from_utf8(changed).unwrap();
            prop_assert_eq!(ApiKey::parse(&changed).is_some(), changed == key.expose());
        }

        #[test]
        fn no_text_panics(text in ".{0,60}|tg_live_.{36}|tg_live_[0-9A-Za-z]{36}") {
            if let Some(key) = ApiKey::parse(&text) {
                prop_assert_eq!(key.expose(), text);
            }
        }
    }
}
