//! A chat request as Gemini takes it.
//!
//! Every field at the top of the client's request is consumed, or named in [`Outgoing::dropped`], or refused with 400. Fields
//! inside of messages, parts and tools for which Gemini has no place (`name`, `detail`, `cache_control`, `strict`,
//! `reasoning_content`) are left out: they say how, not what. A message's role, a part's type or a tool's type that is not
//! known is refused, for to leave it out would change what is asked.
//!
//! Beyond OpenAI's fields three are taken: `top_k`; `cached_content`, the name of a cache; and `extra_body.google` with
//! `thinking_config` and `cached_content`, as Google's own compatible endpoint has it.
//!
//! Strings are copied with the escapes that the client chose and numbers with their digits; nothing becomes a float.

mod contents;
mod generation;
mod parts;
#[cfg(test)]
mod properties;
mod read;
mod results;
mod schema;
#[cfg(test)]
mod tests;
mod tools;

use bytes::Bytes;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use self::contents::Contents;
use self::read::{invalid, is_given, members, string, unsupported};
use super::signatures::SignatureScope;
use crate::relay::dialect::Outgoing;
use crate::relay::dialect::openai::ChatRequest;
use crate::relay::refusal::Refusal;
use crate::relay::route::ModelRules;

/// What in a model's name need not be escaped in a path. A slash separates a resource's collection from its id.
const IN_PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');

/// The most answers to one request that are kept apart; OpenAI's limit.
const CHOICES_MAX: u64 = 128;
/// The most fields without a place that are named to the client; more are refused.
const DROPPED_MAX: usize = 64;
/// The longest name of such a field.
const DROPPED_NAME_BYTES_MAX: usize = 128;

/// Translates a request for the model that the provider calls so, of which the rules are these. The answer is limited to
/// `output_tokens_max`, or to fewer if the client asks for fewer; thinking counts. Signatures that the client did not send
/// back are looked for in the account's memory.
///
/// The credential is the proxy's to add: Gemini takes it in the header `x-goog-api-key`. It has no place in the path, where
/// logs would show it.
///
/// # Errors
/// What Gemini cannot do, or what is no request of OpenAI's dialect, each with its `param`.
pub fn request(
    request: &ChatRequest,
    model: &str,
    rules: &ModelRules,
    output_tokens_max: u64,
    signatures: &SignatureScope,
) -> Result<Outgoing, Refusal> {
    if request.choices() > CHOICES_MAX {
        return Err(invalid("n", format!("Invalid 'n': expected at most {CHOICES_MAX}.")));
    }
    let mut fields = Fields::read(request.body())?;
    // What is added to it by way of names and brackets is rarely more than this.
    let mut out = Vec::with_capacity(request.body().len() + request.body().len() / 8 + 1024);
    out.push(b'{');
    Contents::new(&mut out, signatures).write(request.messages())?;
    let tools = tools::write(&mut out, &fields, rules)?;
    let limit = request.output_tokens_asked().unwrap_or(u64::MAX).min(output_tokens_max);
    generation::write(&mut out, &mut fields, rules, generation::Asked { limit, choices: request.choices(), tools })?;
    if let Some(name) = fields.cached_content {
        let name = string(name, "cached_content")?;
        out.extend_from_slice(b",\"cachedContent\":\"");
        out.extend_from_slice(name.raw());
        out.push(b'"');
    }
    out.push(b'}');
    Ok(Outgoing { path: path(model, request.stream()).into(), body: Bytes::from(out), dropped: fields.dropped })
}

/// The path of the model's method. A name with a slash is a resource of its own (`tunedModels/…`).
fn path(model: &str, stream: bool) -> String {
    let collection = if model.contains('/') { "" } else { "models/" };
    let method = if stream { "streamGenerateContent?alt=sse" } else { "generateContent" };
    format!("/v1beta/{collection}{}:{method}", utf8_percent_encode(model, IN_PATH))
}

/// The fields of the request that are consumed here, as their text; null is the same as absent.
#[derive(Debug, Default)]
struct Fields<'a> {
    tools: Option<&'a [u8]>,
    tool_choice: Option<&'a [u8]>,
    parallel_tool_calls: Option<&'a [u8]>,
    response_format: Option<&'a [u8]>,
    stop: Option<&'a [u8]>,
    temperature: Option<&'a [u8]>,
    top_p: Option<&'a [u8]>,
    top_k: Option<&'a [u8]>,
    seed: Option<&'a [u8]>,
    presence_penalty: Option<&'a [u8]>,
    frequency_penalty: Option<&'a [u8]>,
    logprobs: Option<&'a [u8]>,
    top_logprobs: Option<&'a [u8]>,
    reasoning_effort: Option<&'a [u8]>,
    modalities: Option<&'a [u8]>,
    cached_content: Option<&'a [u8]>,
    thinking_config: Option<&'a [u8]>,
    extra_body: Option<&'a [u8]>,
    /// The names of the others.
    dropped: Vec<Box<str>>,
}

impl<'a> Fields<'a> {
    fn read(body: &'a [u8]) -> Result<Self, Refusal> {
        let mut fields = Self::default();
        members(body, "", |key, value| fields.member(key, value))?;
        fields.check()?;
        Ok(fields)
    }

    fn member(&mut self, key: &[u8], value: &'a [u8]) -> Result<(), Refusal> {
        let name = String::from_utf8_lossy(key);
        match key {
            // Read and checked with the request.
            b"model"
            | b"messages"
            | b"stream"
            | b"stream_options"
            | b"max_tokens"
            | b"max_completion_tokens"
            | b"n" => {}
            b"functions" | b"function_call" if is_given(Some(value)) => {
                return Err(invalid(
                    &*name,
                    format!("'{name}' is out of date; use 'tools' and 'tool_choice' instead."),
                ));
            }
            _ if !is_given(Some(value)) => {}
            _ => match self.slot(key) {
                Some(Some(_)) => return Err(invalid(&*name, format!("Duplicate parameter: '{name}'."))),
                Some(slot) => *slot = Some(value),
                None => return self.drop_unknown(&name),
            },
        }
        Ok(())
    }

    fn slot(&mut self, key: &[u8]) -> Option<&mut Option<&'a [u8]>> {
        Some(match key {
            b"tools" => &mut self.tools,
            b"tool_choice" => &mut self.tool_choice,
            b"parallel_tool_calls" => &mut self.parallel_tool_calls,
            b"response_format" => &mut self.response_format,
            b"stop" => &mut self.stop,
            b"temperature" => &mut self.temperature,
            b"top_p" => &mut self.top_p,
            b"top_k" => &mut self.top_k,
            b"seed" => &mut self.seed,
            b"presence_penalty" => &mut self.presence_penalty,
            b"frequency_penalty" => &mut self.frequency_penalty,
            b"logprobs" => &mut self.logprobs,
            b"top_logprobs" => &mut self.top_logprobs,
            b"reasoning_effort" => &mut self.reasoning_effort,
            b"modalities" => &mut self.modalities,
            b"cached_content" => &mut self.cached_content,
            b"extra_body" => &mut self.extra_body,
            _ => return None,
        })
    }

    /// Notes that a field of any name has no place. The names go into a header: there is an end to them.
    fn drop_unknown(&mut self, name: &str) -> Result<(), Refusal> {
        if name.len() > DROPPED_NAME_BYTES_MAX || self.dropped.len() == DROPPED_MAX {
            let shown: String = name.chars().take(DROPPED_NAME_BYTES_MAX).collect();
            let message = format!("Unknown parameter: '{shown}'. There are more such fields than the relay can name.");
            return Err(invalid(shown, message));
        }
        self.drop_field(name);
        Ok(())
    }

    /// Notes that a field has no place.
    fn drop_field(&mut self, name: &str) {
        if !self.dropped.iter().any(|dropped| **dropped == *name) {
            self.dropped.push(name.into());
        }
    }

    /// The fields that need no translation, only a look.
    fn check(&mut self) -> Result<(), Refusal> {
        if let Some(parallel) = self.parallel_tool_calls
            && !read::boolean(parallel, "parallel_tool_calls")?
        {
            // Gemini calls as many tools at once as it likes.
            self.drop_field("parallel_tool_calls");
        }
        if let Some(modalities) = self.modalities {
            let mut only_text = true;
            read::items(modalities, "modalities", |cursor, _| {
                only_text &= cursor.raw().map_err(read::not_json)? == b"\"text\"";
                Ok(())
            })?;
            if !only_text {
                return Err(unsupported("modalities", "another modality of output than text"));
            }
        }
        match self.extra_body {
            Some(extra) => self.extra(extra),
            None => Ok(()),
        }
    }

    /// Google's extension of its own compatible endpoint. If there is anything else in it, all of it is named as dropped.
    fn extra(&mut self, extra: &'a [u8]) -> Result<(), Refusal> {
        let mut others = false;
        members(extra, "extra_body", |key, value| {
            if key != b"google" {
                others = true;
                return Ok(());
            }
            members(value, "extra_body.google", |key, value| {
                let slot = match key {
                    b"thinking_config" => &mut self.thinking_config,
                    b"cached_content" => &mut self.cached_content,
                    _ => {
                        others = true;
                        return Ok(());
                    }
                };
                if is_given(Some(value)) && slot.replace(value).is_some() {
                    let name = String::from_utf8_lossy(key);
                    return Err(invalid("extra_body", format!("'extra_body' gives '{name}' a second time.")));
                }
                Ok(())
            })
        })?;
        if others {
            self.drop_field("extra_body");
        }
        Ok(())
    }
}
