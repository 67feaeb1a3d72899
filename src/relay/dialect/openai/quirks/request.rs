//! The request, with what the provider's quirks and the model's rules change of it.

use bytes::Bytes;

use super::edits::Edits;
use super::history::History;
use super::members::{Member, walk};
use super::schema::Format;
use super::thinking::{self, Asked, Own};
use crate::relay::dialect::Outgoing;
use crate::relay::dialect::openai::ChatRequest;
use crate::relay::json::{Cursor, Fault, Kind};
use crate::relay::refusal::{Cause, Refusal};
use crate::relay::route::{ModelRules, Quirk, Quirks, Sampling, SchemaForm, Thinking};

/// What stands behind `/v1` at every provider of this dialect.
const PATH: &str = "/chat/completions";

/// Fields that are dropped, each by its quirk.
const DROPPED: &[(Quirk, &[&str])] = &[
    (
        Quirk::NoPlatformFields,
        &[
            "store",
            "metadata",
            "service_tier",
            "prediction",
            "modalities",
            "audio",
            "prompt_cache_retention",
            "safety_identifier",
            "verbosity",
            "web_search_options",
        ],
    ),
    (Quirk::NoLogitBias, &["logit_bias"]),
    (Quirk::NoLogprobs, &["logprobs", "top_logprobs"]),
    (Quirk::NoParallelToolCalls, &["parallel_tool_calls"]),
    (Quirk::NoPromptCacheKey, &["prompt_cache_key"]),
    (Quirk::NoUser, &["user"]),
];

/// Fields that are read to be changed.
const CHANGED: &[&str] = &[
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "top_k",
    "seed",
    "stream_options",
    "response_format",
    "tool_choice",
    "reasoning_effort",
    "thinking",
    "enable_thinking",
    "thinking_budget",
];

/// What is sent to a provider with these quirks that calls the model so. Unknown fields pass: they may be the vendor's own.
/// The very same body where nothing changes.
///
/// # Errors
/// Fields that neither have a place there nor may be dropped in silence.
pub fn outgoing(
    request: &ChatRequest,
    model: &str,
    quirks: Quirks,
    rules: &ModelRules,
    output_tokens_max: u64,
) -> Result<Outgoing, Refusal> {
    let is_plain = rules.sampling == Sampling::Free && rules.schema != SchemaForm::None;
    if is_plain
        && request.output_limit().is_none()
        && (quirks.is_empty() || quirks == Quirks::from_iter([Quirk::LooseAnswers]))
    {
        return Ok(Outgoing { path: PATH.into(), body: request.for_upstream(model), dropped: Vec::new() });
    }
    let found = Found::read(request.body(), quirks)?;
    let mut splice =
        Splice { body: request.body(), found, quirks, edits: Edits::default(), gone: Vec::new(), dropped: Vec::new() };
    splice.edits.extend(request.model_edit(model));
    splice.stream_options(request);
    splice.platform_fields();
    let limits = Limits::new(request, quirks, rules.thinking, output_tokens_max);
    splice.tokens(output_tokens_max, limits.answer);
    splice.sampling(rules.sampling);
    splice.rename_seed();
    splice.format(rules.schema, request)?;
    let thinks = splice.thinking(rules.thinking, request.stream(), limits.thinking)?;
    History::new(quirks, thinks).edit(request.body(), request.messages_span(), &mut splice.edits)?;
    Ok(splice.finish())
}

/// How long an answer to the request may become at a provider with these quirks, what is thought before it included.
pub fn output_ceiling(request: &ChatRequest, quirks: Quirks, rules: &ModelRules, output_tokens_max: u64) -> u64 {
    let asked = request.output_tokens_asked().unwrap_or(u64::MAX);
    asked.saturating_add(thinking::apart(request, quirks, rules.thinking)).min(output_tokens_max)
}

/// What the request's output is lowered to; `None` where it says nothing more than is allowed.
struct Limits {
    answer: Option<u64>,
    /// Where the provider counts it apart.
    thinking: Option<u64>,
}

impl Limits {
    fn new(request: &ChatRequest, quirks: Quirks, form: Thinking, output_tokens_max: u64) -> Self {
        let asked = request.output_tokens_asked().unwrap_or(output_tokens_max);
        let apart = thinking::apart(request, quirks, form);
        match request.output_limit() {
            Some(limit) if apart > 0 && asked.saturating_add(apart) > limit => {
                let (answer, thinking) = thinking::share(limit, asked, apart);
                Self { answer: Some(answer), thinking: Some(thinking) }
            }
            answer => Self { answer, thinking: None },
        }
    }
}

/// The request's fields that may change, in the order in which they stand.
struct Found(Vec<(&'static str, Member)>);

impl Found {
    fn read(body: &[u8], quirks: Quirks) -> Result<Self, Refusal> {
        let mut found: Vec<(&'static str, Member)> = Vec::new();
        let mut twice = None;
        let dropped = || DROPPED.iter().filter(|(quirk, _)| quirks.has(*quirk)).flat_map(|(_, names)| names.iter());
        let walked: Result<(), Fault> = walk(&mut Cursor::new(body), |key, ordinal, before, cursor| {
            let key = key.decode();
            let Some(name) = CHANGED.iter().chain(dropped()).find(|name| name.as_bytes() == &*key) else {
                return cursor.skip();
            };
            if found.iter().any(|(other, _)| other == name) {
                twice = Some(*name);
            }
            found.push((name, Member::take(cursor, ordinal, before)?));
            Ok(())
        });
        // The body was read before; had it a fault, it would not have come this far.
        if walked.is_err() {
            return Err(Refusal::new(Cause::InvalidJson, "The body is not valid JSON."));
        }
        match twice {
            Some(name) => Err(invalid(name, format!("Duplicate parameter: '{name}'."))),
            None => Ok(Self(found)),
        }
    }

    /// The field, unless it is not there.
    fn any(&self, name: &str) -> Option<&Member> {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, member)| member)
    }

    /// The field, unless it is not there or null.
    fn some(&self, name: &str) -> Option<&Member> {
        self.any(name).filter(|member| member.kind != Kind::Null)
    }
}

/// The changes to a body, as they are gathered.
struct Splice<'a> {
    body: &'a Bytes,
    found: Found,
    quirks: Quirks,
    edits: Edits,
    /// Members that are cut.
    gone: Vec<&'static str>,
    /// Of those, what the client is told.
    dropped: Vec<Box<str>>,
}

impl Splice<'_> {
    /// Cuts a field that has no place; one that is null said nothing and is not told of.
    fn drop_field(&mut self, name: &'static str) {
        if self.found.some(name).is_some() {
            self.dropped.push(name.into());
        }
        self.gone.push(name);
    }

    fn text(&self, member: &Member) -> &str {
        str::from_utf8(&self.body[member.value.clone()]).unwrap_or_default()
    }

    fn stream_options(&mut self, request: &ChatRequest) {
        if self.quirks.has(Quirk::NoStreamOptions) {
            // Not told of: the relay shows the usage, or does not, as it was asked.
            self.gone.push("stream_options");
        } else {
            self.edits.extend(request.usage_edit());
        }
    }

    fn platform_fields(&mut self) {
        for (quirk, names) in DROPPED {
            if self.quirks.has(*quirk) {
                names.iter().for_each(|name| self.drop_field(name));
            }
        }
    }

    /// The most tokens of an answer: under the name that the vendor knows, no more than the model has, and no more than there is
    /// money for. Where the client says nothing, it is only said what there is money for.
    fn tokens(&mut self, output_tokens_max: u64, limit: Option<u64>) {
        if self.quirks.has(Quirk::MaxTokens) {
            if let Some(newer) = self.found.some("max_completion_tokens").cloned() {
                self.edits.replace(newer.key(self.body), &br#""max_tokens""#[..]);
                // Where both are there, OpenAI goes by the newer one.
                self.gone.push("max_tokens");
            } else {
                self.gone.push("max_completion_tokens");
            }
        }
        let capped = self.quirks.has(Quirk::MaxTokensCapped).then_some(output_tokens_max);
        let Some(most) = capped.into_iter().chain(limit).min() else { return };
        let mut is_said = false;
        for name in ["max_tokens", "max_completion_tokens"] {
            let Some(member) = self.found.some(name).filter(|_| !self.gone.contains(&name)).cloned() else {
                continue;
            };
            is_said = true;
            // All digits, as was checked when the request was read: what does not fit is more than any model has.
            if self.text(&member).parse::<u64>().map_or(true, |asked| asked > most) {
                self.edits.replace(member.value, most.to_string());
            }
        }
        if limit.is_some() && !is_said {
            let is_old = self.quirks.has(Quirk::MaxTokens);
            self.say(if is_old { "max_tokens" } else { "max_completion_tokens" }, &most.to_string());
        }
    }

    /// Gives a field that value, whether it is there or not.
    fn say(&mut self, name: &'static str, value: &str) {
        match self.found.any(name).cloned() {
            Some(member) => self.edits.replace(member.value, value.to_owned()),
            None => self.edits.add(&format!("\"{name}\":{value}")),
        }
    }

    fn sampling(&mut self, sampling: Sampling) {
        match sampling {
            Sampling::Free => {}
            Sampling::OneOf if self.found.some("temperature").is_some() => self.drop_field("top_p"),
            Sampling::OneOf => {}
            Sampling::None => ["temperature", "top_p", "top_k"].into_iter().for_each(|name| self.drop_field(name)),
        }
        if !self.quirks.has(Quirk::SamplingBelowOne) {
            return;
        }
        for name in ["temperature", "top_p"] {
            let Some(member) = self.found.some(name).filter(|_| !self.gone.contains(&name)).cloned() else { continue };
            match self.text(&member).parse::<f64>() {
                Ok(value) if value <= 0.0 => self.edits.replace(member.value, &b"0.01"[..]),
                Ok(value) if value >= 1.0 => self.edits.replace(member.value, &b"0.99"[..]),
                _ => {}
            }
        }
    }

    fn rename_seed(&mut self) {
        if let Some(seed) = self.found.any("seed").filter(|_| self.quirks.has(Quirk::RandomSeed)) {
            self.edits.replace(seed.key(self.body), &br#""random_seed""#[..]);
        }
    }

    fn format(&mut self, form: SchemaForm, request: &ChatRequest) -> Result<(), Refusal> {
        let Some(member) = self.found.some("response_format").cloned() else { return Ok(()) };
        let format =
            Format::read(self.body, &member).map_err(|_| invalid("response_format", "Not an object.".into()))?;
        if !format.is_schema() {
            return Ok(());
        }
        if form == SchemaForm::None {
            let message = "This model cannot be held to a JSON schema; ask for 'json_object' or for a tool call.";
            return Err(invalid("response_format", message.into()));
        }
        if self.quirks.has(Quirk::NoJsonSchema) {
            format.state(self.body, &member, request.messages_span().start, &mut self.edits);
            self.dropped.push("response_format".into());
        } else if self.quirks.has(Quirk::NoSchemaDialect) {
            format.without_dialect(self.body, &mut self.edits);
        }
        Ok(())
    }

    /// Whether the model may think about this request.
    fn thinking(&mut self, form: Thinking, streams: bool, limit: Option<u64>) -> Result<bool, Refusal> {
        let effort = match self.found.some("reasoning_effort") {
            Some(member) if member.kind == Kind::String => Some(self.text(member).trim_matches('"')),
            // Nothing that is known; it is refused below by the name of its field.
            Some(_) => Some(""),
            None => None,
        };
        let asked = Asked { effort, vendors: self.vendors_switch(), forces_tool: self.forces_tool(), streams };
        let mut plan = thinking::plan(asked, self.quirks, form)?;
        if let Some(budget) = limit {
            plan.limit(budget, self.quirks);
            // What is said in their place is added.
            self.gone.extend(["enable_thinking", "thinking_budget"].into_iter().filter(|name| plan.replaces(name)));
        }
        if plan.drops_effort {
            self.drop_field("reasoning_effort");
        } else if plan.cuts_effort {
            self.gone.push("reasoning_effort");
        }
        plan.added.iter().for_each(|member| self.edits.add(member));
        Ok(!plan.is_off)
    }

    /// The vendor's own switch, if the client has sent it.
    fn vendors_switch(&self) -> Option<Own> {
        if let Some(object) = self.found.some("thinking") {
            let is_off = self.text(object).contains("\"disabled\"");
            return Some(if is_off { Own::Off } else { Own::Other });
        }
        if let Some(flag) = self.found.some("enable_thinking") {
            return Some(if flag.kind == Kind::False { Own::Off } else { Own::Other });
        }
        self.found.some("thinking_budget").map(|_| Own::Other)
    }

    /// Whether the client insists on a tool call.
    fn forces_tool(&self) -> bool {
        self.found.some("tool_choice").is_some_and(|choice| match choice.kind {
            Kind::String => self.text(choice) == r#""required""#,
            kind => kind == Kind::Object,
        })
    }

    fn finish(mut self) -> Outgoing {
        let gone: Vec<Member> = self
            .found
            .0
            .iter()
            .filter(|(name, _)| self.gone.contains(name))
            .map(|(_, member)| member.clone())
            .collect();
        self.edits.cut(self.body, &gone);
        Outgoing { path: PATH.into(), body: self.edits.apply(self.body), dropped: self.dropped }
    }
}

fn invalid(param: &str, message: String) -> Refusal {
    Refusal::new(Cause::InvalidValue, message).param(param)
}

#[cfg(test)]
mod tests;
