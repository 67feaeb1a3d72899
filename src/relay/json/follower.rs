//! The watch over a JSON text that arrives in pieces.

use super::DEPTH_MAX;
use super::text::plain_bytes;

/// The most bytes of one value that are captured; a longer one is given up.
pub const CAPTURE_BYTES_MAX: usize = 16 * 1024;

/// Longer keys than this are nobody's interest.
const KEY_BYTES_MAX: usize = 32;

/// What a member is to the one who watches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Interest {
    /// Nothing.
    #[default]
    Pass,
    /// If it is a string, its inside is lent, piece by piece.
    Text,
    /// Its value is lent as a whole, once it is there.
    Capture,
}

/// Who is told what passes by.
pub trait Watch {
    /// A member begins. `depth` is 1 for members of the outermost object; `key` is as sent, its escapes not resolved.
    fn member(&mut self, depth: usize, key: &[u8]) -> Interest;

    /// The next piece of a string that is an [`Interest::Text`].
    fn text(&mut self, piece: &[u8]);

    /// The whole value of an [`Interest::Capture`], as sent.
    fn captured(&mut self, value: &[u8]);
}

/// Watches a JSON text that arrives in pieces. It is no judge of the text: what is not JSON is passed over somehow.
#[derive(Debug, Default)]
pub struct Follower {
    depth: usize,
    /// One bit a level, the innermost lowest: whether an object is open there. Levels past [`DEPTH_MAX`] have none.
    in_object: u128,
    /// The string inside of which the text is.
    string: Option<Role>,
    /// The last byte was a backslash inside a string.
    escape: bool,
    /// The next string in an object is a key.
    key_next: bool,
    key: [u8; KEY_BYTES_MAX],
    key_bytes: usize,
    interest: Interest,
    /// The depth of the member that is being captured.
    capturing: Option<usize>,
    captured: Vec<u8>,
    closed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Key,
    Text,
    Quiet,
}

impl Follower {
    /// Takes the next piece of the text.
    pub fn push(&mut self, bytes: &[u8], watch: &mut impl Watch) {
        let mut at = 0;
        // Where in these bytes the value begins that is being captured.
        let mut capture_from = 0;
        while let Some(&byte) = bytes.get(at) {
            if let Some(role) = self.string {
                at += self.inside(&bytes[at..], role, watch);
                continue;
            }
            match byte {
                b'"' => self.open_string(),
                b'{' | b'[' => self.open(byte == b'{'),
                b'}' | b']' => {
                    self.captured_until(&bytes[capture_from..at], watch);
                    self.close();
                }
                b',' => {
                    self.captured_until(&bytes[capture_from..at], watch);
                    self.key_next = self.is_object();
                    self.interest = Interest::Pass;
                }
                b':' if self.is_object() && self.capturing.is_none() => {
                    self.member(watch);
                    if self.capturing.is_some() {
                        capture_from = at + 1;
                    }
                }
                _ => {}
            }
            at += 1;
        }
        if self.capturing.is_some() {
            self.keep(&bytes[capture_from..]);
        }
    }

    /// Whether the outermost object or array was closed.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Takes what of these bytes belongs to the string that is open, and says how many that are.
    fn inside(&mut self, bytes: &[u8], role: Role, watch: &mut impl Watch) -> usize {
        let mut at = 0;
        let mut ended = false;
        while at < bytes.len() && !ended {
            if self.escape {
                self.escape = false;
                at += 1;
                continue;
            }
            at += plain_bytes(&bytes[at..]);
            match bytes.get(at) {
                Some(b'\\') => self.escape = true,
                Some(b'"') => ended = true,
                _ => {}
            }
            at += usize::from(at < bytes.len());
        }
        let inside = &bytes[..at - usize::from(ended)];
        match role {
            Role::Key => self.push_key(inside),
            Role::Text if !inside.is_empty() => watch.text(inside),
            Role::Text | Role::Quiet => {}
        }
        if ended {
            self.string = None;
        }
        at
    }

    fn push_key(&mut self, piece: &[u8]) {
        let end = self.key_bytes.saturating_add(piece.len());
        if let Some(room) = self.key.get_mut(self.key_bytes..end) {
            room.copy_from_slice(piece);
        }
        // Past the room the length alone says that this is no key of interest.
        self.key_bytes = end;
    }

    fn open_string(&mut self) {
        self.string = Some(if self.key_next {
            self.key_bytes = 0;
            Role::Key
        } else if self.interest == Interest::Text {
            Role::Text
        } else {
            Role::Quiet
        });
        self.key_next = false;
    }

    fn member(&mut self, watch: &mut impl Watch) {
        self.interest = match self.key.get(..self.key_bytes) {
            Some(key) => watch.member(self.depth, key),
            None => Interest::Pass,
        };
        if self.interest == Interest::Capture {
            self.capturing = Some(self.depth);
            self.captured.clear();
        }
    }

    fn open(&mut self, object: bool) {
        if self.depth < DEPTH_MAX {
            self.in_object = self.in_object << 1 | u128::from(object);
        }
        self.depth += 1;
        self.key_next = self.is_object();
        self.interest = Interest::Pass;
    }

    fn close(&mut self) {
        self.depth = self.depth.saturating_sub(1);
        if self.depth < DEPTH_MAX {
            self.in_object >>= 1;
        }
        self.closed |= self.depth == 0;
        self.key_next = false;
        self.interest = Interest::Pass;
    }

    /// A comma or a closing bracket: if it ends the value that is being captured, the value is lent.
    fn captured_until(&mut self, rest: &[u8], watch: &mut impl Watch) {
        if self.capturing == Some(self.depth) {
            self.keep(rest);
            if self.capturing.take().is_some() {
                watch.captured(&self.captured);
            }
            self.captured = Vec::new();
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        if self.captured.len() + bytes.len() > CAPTURE_BYTES_MAX {
            self.capturing = None;
            self.captured = Vec::new();
        } else {
            self.captured.extend_from_slice(bytes);
        }
    }

    fn is_object(&self) -> bool {
        (1..=DEPTH_MAX).contains(&self.depth) && self.in_object & 1 == 1
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Captures `usage` of the outermost object, reads the text of every `content`.
    #[derive(Debug, Default, PartialEq, Eq)]
    struct Notes {
        usage: Vec<String>,
        text: String,
    }

    impl Watch for Notes {
        fn member(&mut self, depth: usize, key: &[u8]) -> Interest {
            match (depth, key) {
                (1, b"usage") => Interest::Capture,
                (_, b"content") => Interest::Text,
                _ => Interest::Pass,
            }
        }

        fn text(&mut self, piece: &[u8]) {
            self.text.push_str(&String::from_utf8_lossy(piece));
        }

        fn captured(&mut self, value: &[u8]) {
            self.usage.push(String::from_utf8_lossy(value).trim().to_owned());
        }
    }

    fn follow<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Notes, bool) {
        let (mut notes, mut follower) = (Notes::default(), Follower::default());
        for piece in pieces {
            follower.push(piece, &mut notes);
        }
        (notes, follower.is_closed())
    }

    const TEXT: &str = r#"

 {"id":"x,}","choices":[{"message":{"content":"a\"b\\","usage":{"no":1}}},{"content":[{"content":"c"}]}],
 "usage" : {"prompt_tokens":1,"details":{"a":[2,3]}} ,"content":null,"other":"content","z":{"usage":1}}"#;

    #[test]
    fn it_finds_the_outermost_member_and_all_text() {
        let (notes, closed) = follow([TEXT.as_bytes()]);
        assert_eq!(notes.usage, [r#"{"prompt_tokens":1,"details":{"a":[2,3]}}"#]);
        assert_eq!(notes.text, r#"a\"b\\c"#);
        assert!(closed);
    }

    #[test]
    fn it_is_the_same_byte_by_byte() {
        assert_eq!(follow(TEXT.as_bytes().chunks(1)), follow([TEXT.as_bytes()]));
        assert!(!follow(TEXT.as_bytes()[..TEXT.len() - 1].chunks(1)).1, "closed before its end");
    }

    #[test]
    fn a_value_too_long_to_capture_is_given_up() {
        let text = format!(r#"{{"usage":"{}","content":"a"}}"#, "x".repeat(CAPTURE_BYTES_MAX));
        let (notes, closed) = follow(text.as_bytes().chunks(1000));
        assert_eq!((notes.usage.len(), notes.text.as_str(), closed), (0, "a", true));
    }

    #[test]
    fn deeper_than_it_follows_it_still_counts() {
        let deep = format!(r#"{{"a":{}{},"usage":7}}"#, r#"{"a":["#.repeat(1000), "]}".repeat(1000));
        assert_eq!(follow([deep.as_bytes()]), (Notes { usage: vec!["7".into()], text: String::new() }, true));
    }

    proptest! {
        #[test]
        fn any_split_of_any_bytes_is_the_same(bytes: Vec<u8>, at in 0usize..100) {
            let at = at.min(bytes.len());
            prop_assert_eq!(follow([&bytes[..at], &bytes[at..]]), follow([&bytes[..]]));
        }

        #[test]
        fn any_split_of_something_like_json_is_the_same(text in r#"([\[\]{}:,"\\ x]|"usage":|"content":|"usage":7){0,30}"#, at in 0usize..100) {
            let bytes = text.as_bytes();
            let at = at.min(bytes.len());
            prop_assert_eq!(follow([&bytes[..at], &bytes[at..]]), follow([bytes]));
            prop_assert_eq!(follow(bytes.chunks(1)), follow([bytes]));
        }
    }
}
