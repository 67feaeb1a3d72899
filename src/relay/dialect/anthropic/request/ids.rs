//! Ids of tool calls. Anthropic takes letters, digits, `_` and `-`, and each id once in a conversation; other makers' have
//! colons and dots (`functions.weather:0`), and begin anew in each turn.

use std::collections::HashMap;

/// The most calls of one turn.
pub(super) const CALLS_MAX: usize = 1024;

/// The calls of a conversation.
#[derive(Debug, Default)]
pub(super) struct CallIds {
    /// How often each id was wanted, in the form in which it can be sent.
    wanted: HashMap<Box<str>, usize>,
}

impl CallIds {
    /// The id under which the next call goes out. The same conversation gives the same ids, and what is put behind its end
    /// changes none of them.
    pub(super) fn next(&mut self, id: &str) -> String {
        let clean = sanitise(id);
        let mut sent = clean.clone();
        loop {
            let wanted = self.wanted.entry(clean.as_str().into()).or_default();
            *wanted += 1;
            if *wanted > 1 {
                sent = format!("{clean}_{wanted}");
            }
            if sent == clean || !self.wanted.contains_key(sent.as_str()) {
                break;
            }
        }
        if sent != clean {
            self.wanted.insert(sent.as_str().into(), 1);
        }
        sent
    }
}

/// An id in the letters that may be sent. What had to change has a checksum of what it was behind it, so that ids that
/// differed still do.
fn sanitise(id: &str) -> String {
    let may_stand = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '_' | '-');
    if !id.is_empty() && id.chars().all(may_stand) {
        return id.to_owned();
    }
    let letters: String = id.chars().map(|letter| if may_stand(letter) { letter } else { '_' }).collect();
    format!("{letters}_{:08x}", crc32fast::hash(id.as_bytes()))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_may_be_sent_is_sent_and_the_rest_is_told_apart() {
        let mut ids = CallIds::default();
        assert_eq!(ids.next("toolu_01-A"), "toolu_01-A");
        let first = ids.next("functions.weather:0");
        assert!(first.starts_with("functions_weather_0_"), "{first}");
        assert_ne!(ids.next("functions_weather:0"), first);
        assert_eq!(CallIds::default().next("functions.weather:0"), first);
    }

    #[test]
    fn an_id_that_comes_again_is_counted() {
        let mut ids = CallIds::default();
        let sent: Vec<String> = ["a", "a", "a_2", "a", "a_2"].into_iter().map(|id| ids.next(id)).collect();
        assert_eq!(sent, ["a", "a_2", "a_2_2", "a_3", "a_2_3"]);
    }

    proptest! {
        #[test]
        fn ids_can_be_sent_and_are_there_once(asked in prop::collection::vec("[ab_2:.é]{0,3}", 0..30)) {
            let mut ids = CallIds::default();
            let sent: Vec<String> = asked.iter().map(|id| ids.next(id)).collect();
            prop_assert_eq!(sent.iter().collect::<HashSet<_>>().len(), sent.len());
            for id in &sent {
                prop_assert!(!id.is_empty() && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte)));
            }
            let mut again = CallIds::default();
            prop_assert_eq!(asked.iter().map(|id| again.next(id)).collect::<Vec<_>>(), sent);
        }
    }
}
