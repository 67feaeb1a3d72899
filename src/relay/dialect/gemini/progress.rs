//! What the responses so far have said, told on to whoever writes it in OpenAI's words.

use std::borrow::Cow;

use super::arguments::{Arguments, Unfit};
use super::finish::Finish;
use super::ids::Ids;
use super::response::{Call, Candidate, Part, Response};
use super::signatures::SignatureScope;
use super::usage::Report;
use crate::relay::dialect::AnswerTerms;
use crate::relay::json::{RawStr, write_string};
use crate::relay::meter::SampledText;
use crate::relay::refusal::{Cause, Refusal};

/// The most answers to one request that are kept apart; OpenAI's limit.
const CHOICES_MAX: u32 = 128;

/// Who writes what is told. All texts are insides of JSON strings, good to be written as they are, but for arguments, which
/// are the JSON text itself.
pub(super) trait Sink {
    /// An answer begins, with a call or with words.
    fn begin(&mut self, choice: u32, with_call: bool);
    /// Words.
    fn text(&mut self, choice: u32, text: &[u8]);
    /// Thoughts.
    fn reasoning(&mut self, choice: u32, text: &[u8]);
    /// An image, as base64.
    fn image(&mut self, choice: u32, index: u32, mime: &[u8], data: &[u8]);
    /// How sure the model was, as Gemini tells it.
    fn logprobs(&mut self, choice: u32, result: &[u8]);
    /// A call begins: the answer's first, second, …
    fn call(&mut self, choice: u32, index: u32, call: &NewCall<'_>);
    /// A call's arguments, all of them. The signature is there if it has come later than the call.
    fn arguments(&mut self, choice: u32, index: u32, json: &[u8], signature: Option<&[u8]>);
    /// The answer's end, with the signature of its words.
    fn finish(&mut self, choice: u32, reason: &'static str, signature: Option<&[u8]>);
}

/// A call as it begins.
pub(super) struct NewCall<'a> {
    pub(super) id: &'a [u8],
    pub(super) name: &'a [u8],
    pub(super) signature: Option<&'a [u8]>,
}

/// The state of an answer.
#[derive(Debug)]
pub(super) struct Progress {
    choices: Vec<Choice>,
    choices_asked: u64,
    pub(super) report: Report,
    has_feedback: bool,
    pub(super) sample: SampledText,
    pub(super) began: bool,
    ids: Ids,
    signatures: SignatureScope,
}

/// One of the answers to a request.
#[derive(Debug, Default)]
struct Choice {
    index: u32,
    calls: u32,
    images: u32,
    /// The call whose arguments are still coming.
    open: Option<OpenCall>,
    finish: Option<Finish>,
    /// The last signature that came with words. It is told at the end, once, for clients join what comes twice.
    signature: Option<Box<[u8]>>,
}

/// A call whose arguments are still coming.
#[derive(Debug)]
struct OpenCall {
    id: Box<[u8]>,
    index: u32,
    arguments: Arguments,
    /// Arguments that came as a whole after all.
    whole: Option<Box<[u8]>>,
    signature: Option<Box<[u8]>>,
}

/// How an answer has ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Conclusion {
    /// It has, and that was told.
    Complete,
    /// It has not.
    Truncated,
    /// There is none.
    Failed(Refusal),
}

impl Progress {
    /// Of an answer of which nothing has come.
    pub(super) fn new(terms: &AnswerTerms, choices: u64, signatures: SignatureScope) -> Self {
        Self {
            choices: Vec::new(),
            choices_asked: choices,
            report: Report::default(),
            has_feedback: false,
            sample: SampledText::new(),
            began: false,
            ids: Ids::new(&terms.id),
            signatures,
        }
    }

    /// Tells what a response says. It is no error's.
    pub(super) fn tell(&mut self, response: &Response<'_>, sink: &mut impl Sink) -> Result<(), Refusal> {
        self.report.overwrite(&response.report);
        self.has_feedback |= response.has_feedback;
        for candidate in response.candidates.iter().filter(|candidate| candidate.index < CHOICES_MAX) {
            self.candidate(candidate, sink)?;
        }
        Ok(())
    }

    fn candidate(&mut self, candidate: &Candidate<'_>, sink: &mut impl Sink) -> Result<(), Refusal> {
        let index = candidate.index;
        let at = match self.choices.iter().position(|choice| choice.index == index) {
            Some(at) => at,
            None => {
                let with_call = candidate.parts.iter().next().is_some_and(|part| part.call.is_some());
                sink.begin(index, with_call);
                self.choices.push(Choice { index, ..Choice::default() });
                self.choices.len() - 1
            }
        };
        for part in candidate.parts.iter() {
            self.part(at, part, sink)?;
        }
        if let Some(result) = candidate.logprobs {
            sink.logprobs(index, result);
        }
        if let Some(finish) = candidate.finish.and_then(|word| Finish::read(word.raw())) {
            self.began = true;
            self.choices[at].finish = Some(finish);
        }
        Ok(())
    }

    fn part(&mut self, at: usize, part: &Part<'_>, sink: &mut impl Sink) -> Result<(), Refusal> {
        let choice = self.choices[at].index;
        if let Some(call) = &part.call {
            return self.function_call(at, call, part.signature, sink);
        }
        if let Some(signature) = part.signature {
            self.choices[at].signature = Some(clean(signature).into());
        }
        if let Some(text) = part.text.filter(|text| !text.is_empty()) {
            let text = clean(text);
            self.began = true;
            self.sample.push(&text);
            if part.is_thought { sink.reasoning(choice, &text) } else { sink.text(choice, &text) }
        } else if let Some(inline) = &part.inline
            && let (Some(mime), Some(data)) = (inline.mime, inline.data)
            && !part.is_thought
        {
            self.began = true;
            sink.image(choice, self.choices[at].images, &clean(mime), &clean(data));
            self.choices[at].images += 1;
        }
        Ok(())
    }

    /// A call, the beginning of one, or a piece of the one that is open. One without a name that adds nothing is its end.
    fn function_call(
        &mut self,
        at: usize,
        call: &Call<'_>,
        signature: Option<RawStr<'_>>,
        sink: &mut impl Sink,
    ) -> Result<(), Refusal> {
        let signature = signature.map(clean);
        if let Some(name) = call.name {
            self.close_call(at, sink);
            self.began = true;
            self.begin_call(at, call.id, name, signature.as_deref(), sink);
        } else if let (Some(open), Some(signature)) = (&mut self.choices[at].open, signature) {
            self.signatures.remember(&open.id, &signature);
            open.signature = Some(signature.into());
        }
        let Some(open) = &mut self.choices[at].open else { return Ok(()) };
        if let Some(parts) = call.partial_args {
            open.arguments.take(parts).map_err(|unfit| match unfit {
                Unfit::Large => failed("The provider's answer has a tool call that is larger than the relay takes."),
                Unfit::Unreadable => failed("The provider's answer has a tool call that cannot be read."),
            })?;
        }
        if let Some(args) = call.args {
            open.whole = Some(compact(args).into());
        }
        if !call.will_continue {
            self.close_call(at, sink);
        }
        Ok(())
    }

    fn begin_call(
        &mut self,
        at: usize,
        id: Option<RawStr<'_>>,
        name: RawStr<'_>,
        signature: Option<&[u8]>,
        sink: &mut impl Sink,
    ) {
        let choice = &mut self.choices[at];
        let index = choice.calls;
        choice.calls += 1;
        let (known_as, id): (Box<[u8]>, Cow<'_, [u8]>) = match id {
            Some(id) => (String::from_utf8_lossy(&id.decode()).into_owned().into_bytes().into(), clean(id)),
            None => {
                let id = self.ids.mint();
                (id.as_bytes().into(), Cow::Owned(id.into_bytes()))
            }
        };
        if let Some(signature) = signature {
            self.signatures.remember(&known_as, signature);
        }
        let name = clean(name);
        self.sample.push(&name);
        sink.call(choice.index, index, &NewCall { id: &id, name: &name, signature });
        choice.open =
            Some(OpenCall { id: known_as, index, arguments: Arguments::default(), whole: None, signature: None });
    }

    fn close_call(&mut self, at: usize, sink: &mut impl Sink) {
        let choice = &mut self.choices[at];
        let Some(open) = choice.open.take() else { return };
        let json = open.whole.map_or_else(|| open.arguments.text(), Vec::from);
        self.sample.push(&json);
        sink.arguments(choice.index, open.index, &json, open.signature.as_deref());
    }

    /// Whether all answers that have begun have ended.
    pub(super) fn is_finished(&self) -> bool {
        !self.choices.is_empty() && self.choices.iter().all(|choice| choice.finish.is_some())
    }

    /// The body has ended. `is_whole` is whether it was all there by its own form: then an answer without a finish has
    /// ended as well as one that has said so.
    pub(super) fn conclude(&mut self, is_whole: bool, sink: &mut impl Sink) -> Conclusion {
        if self.choices.is_empty() && self.has_feedback {
            return self.conclude_blocked(sink);
        }
        if !(self.is_finished() || is_whole && !self.choices.is_empty()) {
            return Conclusion::Truncated;
        }
        let failure = self.choices.iter().find_map(|choice| match choice.finish {
            Some(Finish::Failed(word)) => Some(word),
            _ => None,
        });
        if let Some(word) = failure {
            return Conclusion::Failed(failed(format!("The provider's model could not finish its answer ({word}).")));
        }
        for at in 0..self.choices.len() {
            self.close_call(at, sink);
            let choice = &self.choices[at];
            let finish = choice.finish.as_ref().unwrap_or(&Finish::Stop);
            let reason = finish.reason(choice.calls > 0).unwrap_or("stop");
            sink.finish(choice.index, reason, choice.signature.as_deref());
        }
        Conclusion::Complete
    }

    /// Gemini would not hear of the prompt, and that is the answer.
    fn conclude_blocked(&mut self, sink: &mut impl Sink) -> Conclusion {
        let choices = u32::try_from(self.choices_asked).unwrap_or(u32::MAX).clamp(1, CHOICES_MAX);
        self.began = true;
        for choice in 0..choices {
            sink.begin(choice, false);
            sink.finish(choice, "content_filter", None);
        }
        Conclusion::Complete
    }
}

/// The refusal of an answer with which the provider has failed.
pub(super) fn failed(message: impl Into<Cow<'static, str>>) -> Refusal {
    Refusal::new(Cause::UpstreamError, message)
}

/// The inside of a string, good for every reader of JSON: half a surrogate pair, which some cannot read, is replaced.
fn clean(text: RawStr<'_>) -> Cow<'_, [u8]> {
    let raw = text.raw();
    let may_be_half = |window: &[u8]| window.eq_ignore_ascii_case(b"\\ud");
    if memchr::memchr(b'\\', raw).is_none() || !raw.windows(3).any(may_be_half) {
        return Cow::Borrowed(raw);
    }
    let mut quoted = Vec::with_capacity(raw.len() + 2);
    write_string(&mut quoted, &String::from_utf8_lossy(&text.decode()));
    quoted.pop();
    quoted.remove(0);
    Cow::Owned(quoted)
}

/// JSON text without the white space between its tokens.
fn compact(json: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(json.len());
    let (mut in_string, mut escaped) = (false, false);
    for &byte in json {
        if !in_string && byte.is_ascii_whitespace() {
            continue;
        }
        if byte == b'"' && !escaped {
            in_string = !in_string;
        }
        escaped = byte == b'\\' && !escaped;
        out.push(byte);
    }
    out
}
