//! The conversation as Anthropic wants it: user and assistant in turns, the user first, and behind each call its result.
//!
//! Turns are written as they come. Messages of one role that follow each other become one; results of calls stand before
//! whatever else is in their turn; a call without a result gets one that says so.

use std::collections::HashSet;
use std::ops::Range;

use super::cache::{CacheMark, write_mark};
use super::ids::{CALLS_MAX, CallIds};
use super::parts::Part;
use super::refuse::{Path, invalid};
use crate::relay::dialect::anthropic::text::push_string;
use crate::relay::json::{Cursor, RawStr, write_string};
use crate::relay::refusal::Refusal;

/// What the user is made to say where the assistant speaks first, for a conversation cannot begin so.
const OPENING: &[u8] = br#"{"role":"user","content":[{"type":"text","text":"(The assistant speaks first.)"}]}"#;

/// What a call's result is where the client sent none.
const NO_RESULT: &[u8] = br#""content":"There is no result of this call.","is_error":true}"#;

/// Whose turn it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    User,
    Assistant,
    System,
}

/// The conversation so far.
#[derive(Debug)]
pub(super) struct Conversation {
    /// `{"messages":[` and the messages.
    out: Vec<u8>,
    open: Option<Role>,
    /// Whether a message was begun.
    begun: bool,
    /// Whether the open message has a block in `out`.
    has_block: bool,
    /// Blocks of the open user's turn that must stand behind results that are still to come.
    later: Vec<u8>,
    /// The operator's blocks.
    system: Vec<u8>,
    /// Where in `system` the last message's begin.
    system_last_at: usize,
    /// Whether the operator may speak between the turns.
    system_turns: bool,
    ids: CallIds,
    /// The calls of the last turn of the assistant's.
    calls: Vec<PendingCall>,
    names: Vec<Box<str>>,
    names_seen: HashSet<Box<str>>,
    last_block: Option<(Place, bool)>,
    /// Where in `out` the inside of the last text of the assistant's open turn stands.
    last_text: Option<Range<usize>>,
    /// Whether the last turn of the assistant's began with thinking, and whether it has calls.
    thought: bool,
    called: bool,
}

/// A call, by the id that the client knows and by the one that was sent.
#[derive(Debug)]
struct PendingCall {
    asked: Box<str>,
    sent: String,
    answered: bool,
}

/// Where a block was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Out,
    Later,
    System,
}

/// The conversation, written.
#[derive(Debug)]
pub(super) struct Written {
    /// `{"messages":[…]`, with the object open.
    pub(super) out: Vec<u8>,
    /// The operator's blocks, with commas between them.
    pub(super) system: Vec<u8>,
    /// It ends with the assistant's words, to be continued.
    pub(super) is_prefilled: bool,
    /// The last turn of the assistant's has calls and does not begin with the thinking that led to them.
    pub(super) lacks_thinking: bool,
    /// The tools that were called, each once.
    pub(super) tool_names: Vec<Box<str>>,
}

impl Conversation {
    /// An empty one, with room for so many bytes.
    pub(super) fn new(capacity: usize, system_turns: bool) -> Self {
        let mut out = Vec::with_capacity(capacity);
        out.extend_from_slice(b"{\"messages\":[");
        Self {
            out,
            open: None,
            begun: false,
            has_block: false,
            later: Vec::new(),
            system: Vec::new(),
            system_last_at: 0,
            system_turns,
            ids: CallIds::default(),
            calls: Vec::new(),
            names: Vec::new(),
            names_seen: HashSet::new(),
            last_block: None,
            last_text: None,
            thought: false,
            called: false,
        }
    }

    /// A message begins: what is marked from here on is its own.
    pub(super) fn begin_message(&mut self) {
        self.last_block = None;
        self.system_last_at = self.system.len();
        if self.open == Some(Role::Assistant) && !self.calls.is_empty() {
            // Should the assistant go on, then not in the same turn.
            self.close();
        }
    }

    /// Marks the last block of the message, if it has one that has no mark. Tells whether there was one.
    pub(super) fn mark_last(&mut self, mark: CacheMark<'_>) -> bool {
        let Some((place, false)) = self.last_block else { return false };
        let out = match place {
            Place::Out => &mut self.out,
            Place::Later => &mut self.later,
            Place::System => &mut self.system,
        };
        out.pop();
        write_mark(out, mark);
        out.push(b'}');
        self.last_block = Some((place, true));
        true
    }

    /// A part of what the operator says.
    pub(super) fn system(&mut self, part: &Part<'_>) {
        let is_between = self.begun && self.system_turns && self.calls.iter().all(|call| call.answered);
        if is_between {
            let (out, place) = self.block(Role::System);
            part.write(out, part.mark);
            self.last_block = Some((place, part.mark.is_some()));
        } else {
            separate(&mut self.system);
            part.write(&mut self.system, part.mark);
            self.last_block = Some((Place::System, part.mark.is_some()));
        }
    }

    /// A part of what the user says.
    pub(super) fn user(&mut self, part: &Part<'_>) {
        let (out, place) = self.block(Role::User);
        part.write(out, part.mark);
        self.last_block = Some((place, part.mark.is_some()));
    }

    /// A part of what the assistant said.
    pub(super) fn assistant(&mut self, part: &Part<'_>) {
        let (out, place) = self.block(Role::Assistant);
        self.last_text = part.write(out, part.mark);
        self.last_block = Some((place, part.mark.is_some()));
    }

    /// A block of what the assistant thought, whose members `write` appends. It must not be marked.
    pub(super) fn thinking(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        self.turn_to(Role::Assistant);
        self.thought |= !self.has_block;
        let (out, _) = self.block(Role::Assistant);
        out.push(b'{');
        write(out);
        out.push(b'}');
    }

    /// A call that the assistant made. `input` is a JSON object.
    pub(super) fn call(&mut self, path: &Path<'_>, id: &str, name: RawStr<'_>, input: &[u8]) -> Result<(), Refusal> {
        self.turn_to(Role::Assistant);
        if self.calls.len() == CALLS_MAX {
            return Err(path.invalid(format!("At most {CALLS_MAX} calls can be in one turn.")));
        }
        let sent = self.ids.next(id);
        let (out, place) = self.block(Role::Assistant);
        out.extend_from_slice(b"{\"type\":\"tool_use\",\"id\":\"");
        out.extend_from_slice(sent.as_bytes());
        out.extend_from_slice(b"\",\"name\":");
        push_string(out, name);
        out.extend_from_slice(b",\"input\":");
        out.extend_from_slice(input);
        out.push(b'}');
        self.last_block = Some((place, false));
        self.last_text = None;
        self.called = true;
        self.calls.push(PendingCall { asked: id.into(), sent, answered: false });
        let name: Box<str> = String::from_utf8_lossy(&name.decode()).into();
        if self.names_seen.insert(name.clone()) {
            self.names.push(name);
        }
        Ok(())
    }

    /// A call's result, of whose block `content` is a member or nothing.
    pub(super) fn result(&mut self, path: &Path<'_>, id: &str, content: &[u8], is_error: bool) -> Result<(), Refusal> {
        let Some(call) = self.calls.iter_mut().find(|call| !call.answered && *call.asked == *id) else {
            let message = "A message of role 'tool' must answer a call of the assistant's message before it, once.";
            return Err(path.field("tool_call_id").invalid(message));
        };
        call.answered = true;
        let sent = std::mem::take(&mut call.sent);
        self.turn_to(Role::User);
        self.begin_result(&sent);
        self.out.extend_from_slice(content);
        if is_error {
            self.out.extend_from_slice(b",\"is_error\":true");
        }
        self.out.push(b'}');
        self.last_block = Some((Place::Out, false));
        Ok(())
    }

    fn begin_result(&mut self, sent: &str) {
        if self.has_block {
            self.out.push(b',');
        }
        self.has_block = true;
        self.out.extend_from_slice(b"{\"type\":\"tool_result\",\"tool_use_id\":\"");
        self.out.extend_from_slice(sent.as_bytes());
        self.out.push(b'"');
    }

    /// Where the next block of that role is to be written.
    fn block(&mut self, role: Role) -> (&mut Vec<u8>, Place) {
        self.turn_to(role);
        let waits = !self.later.is_empty() || self.calls.iter().any(|call| !call.answered);
        if role == Role::User && waits {
            separate(&mut self.later);
            return (&mut self.later, Place::Later);
        }
        if self.has_block {
            self.out.push(b',');
        }
        self.has_block = true;
        (&mut self.out, Place::Out)
    }

    fn turn_to(&mut self, role: Role) {
        if self.open == Some(role) {
            return;
        }
        self.close();
        if role != Role::User && !self.calls.is_empty() {
            // The results that the client left out are a turn of their own.
            self.begin(Role::User);
            self.close();
        }
        if !self.begun && role != Role::User {
            self.out.extend_from_slice(OPENING);
            self.begun = true;
        }
        self.begin(role);
    }

    fn begin(&mut self, role: Role) {
        if self.begun {
            self.out.push(b',');
        }
        let head: &[u8] = match role {
            Role::User => b"{\"role\":\"user\",\"content\":[",
            Role::Assistant => b"{\"role\":\"assistant\",\"content\":[",
            Role::System => b"{\"role\":\"system\",\"content\":[",
        };
        self.out.extend_from_slice(head);
        self.begun = true;
        self.has_block = false;
        self.open = Some(role);
        if role == Role::Assistant {
            (self.thought, self.called, self.last_text) = (false, false, None);
        }
    }

    fn close(&mut self) {
        let Some(role) = self.open.take() else { return };
        if role == Role::User {
            for call in std::mem::take(&mut self.calls) {
                if !call.answered {
                    self.begin_result(&call.sent);
                    self.out.push(b',');
                    self.out.extend_from_slice(NO_RESULT);
                }
            }
            if !self.later.is_empty() {
                if self.has_block {
                    self.out.push(b',');
                }
                self.out.append(&mut self.later);
            }
        }
        self.out.extend_from_slice(b"]}");
    }

    /// The end of the conversation.
    pub(super) fn finish(mut self) -> Result<Written, Refusal> {
        let is_prefilled = self.open == Some(Role::Assistant) && self.calls.is_empty();
        if is_prefilled {
            self.trim_last_text();
        }
        self.close();
        if !self.calls.is_empty() {
            self.begin(Role::User);
            self.close();
        }
        if !self.begun {
            self.say_the_last_of_system()?;
        }
        self.out.push(b']');
        Ok(Written {
            out: self.out,
            system: self.system,
            is_prefilled,
            lacks_thinking: self.called && !self.thought,
            tool_names: self.names,
        })
    }

    /// There are only the operator's words: the last of them become the user's, for without there is nothing to answer.
    fn say_the_last_of_system(&mut self) -> Result<(), Refusal> {
        let blocks = self.system.split_off(self.system_last_at.min(self.system.len()));
        let blocks = blocks.strip_prefix(b",").unwrap_or(&blocks);
        if blocks.is_empty() {
            return Err(invalid("messages", "Invalid 'messages': expected at least one message that is not blank."));
        }
        self.begin(Role::User);
        self.out.extend_from_slice(blocks);
        self.close();
        Ok(())
    }

    /// Anthropic goes on from the very end, and refuses one that is white space.
    fn trim_last_text(&mut self) {
        let Some(span) = self.last_text.take() else { return };
        let quoted = [b"\"", &self.out[span.clone()], b"\""].concat();
        let Ok(text) = Cursor::new(&quoted).string() else { return };
        let text = String::from_utf8_lossy(&text.decode()).into_owned();
        let trimmed = text.trim_end();
        if trimmed.len() < text.len() {
            let mut anew = Vec::with_capacity(trimmed.len() + 2);
            write_string(&mut anew, trimmed);
            self.out.splice(span, anew[1..anew.len() - 1].iter().copied());
        }
    }
}

fn separate(list: &mut Vec<u8>) {
    if !list.is_empty() {
        list.push(b',');
    }
}
