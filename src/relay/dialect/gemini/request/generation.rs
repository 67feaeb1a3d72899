//! How the answer is to be made: limits, sampling, thinking, and the form that it must have.

use std::borrow::Cow;

use super::Fields;
use super::read::{
    boolean, given, integer, invalid, items, kind, members, missing, not_json, number, string, unsupported, wrong_type,
};
use crate::relay::json::Kind;
use crate::relay::refusal::Refusal;
use crate::relay::route::{ModelRules, Sampling, SchemaForm, Thinking};

/// The most stop sequences that Gemini takes.
const STOP_MAX: usize = 5;

/// Google's own table of efforts for its compatible endpoint, in tokens.
const BUDGET_LOW: u32 = 1024;
const BUDGET_MEDIUM: u32 = 8192;
const BUDGET_HIGH: u32 = 24_576;

/// What has been read elsewhere.
pub(super) struct Asked {
    /// The most tokens of an answer.
    pub(super) limit: u64,
    /// How many answers.
    pub(super) choices: u64,
    /// Whether tools go with the request.
    pub(super) tools: bool,
}

/// Writes the member `generationConfig`.
pub(super) fn write(
    out: &mut Vec<u8>,
    fields: &mut Fields<'_>,
    rules: &ModelRules,
    asked: Asked,
) -> Result<(), Refusal> {
    out.extend_from_slice(b",\"generationConfig\":{\"maxOutputTokens\":");
    out.extend_from_slice(asked.limit.to_string().as_bytes());
    if asked.choices > 1 {
        out.extend_from_slice(b",\"candidateCount\":");
        out.extend_from_slice(asked.choices.to_string().as_bytes());
    }
    sampling(out, fields, rules)?;
    if let Some(stop) = fields.stop {
        write_stop(out, stop)?;
    }
    logprobs(out, fields)?;
    thinking(out, fields, rules, asked.limit)?;
    if let Some(format) = fields.response_format {
        response_format(out, format, rules, asked.tools)?;
    }
    out.push(b'}');
    Ok(())
}

fn sampling(out: &mut Vec<u8>, fields: &mut Fields<'_>, rules: &ModelRules) -> Result<(), Refusal> {
    let temperature = fields.temperature.map(|value| number(value, "temperature")).transpose()?;
    let top_p = fields.top_p.map(|value| number(value, "top_p")).transpose()?;
    let top_k = fields.top_k.map(|value| number(value, "top_k")).transpose()?;
    let mut take = |name: &str, gemini: &[u8], value: Option<&[u8]>, is_taken: bool| match value {
        Some(value) if is_taken => member(out, gemini, value),
        Some(_) => fields.drop_field(name),
        None => {}
    };
    let any = rules.sampling != Sampling::None;
    take("temperature", b"temperature", temperature, any);
    take("top_p", b"topP", top_p, any && (rules.sampling == Sampling::Free || temperature.is_none()));
    take("top_k", b"topK", top_k, any);
    for (name, gemini, value) in [
        ("presence_penalty", &b"presencePenalty"[..], fields.presence_penalty),
        ("frequency_penalty", b"frequencyPenalty", fields.frequency_penalty),
    ] {
        // Some models refuse a penalty, even one of nothing, which many clients send.
        if let Some(value) = value
            && !is_zero(number(value, name)?)
        {
            member(out, gemini, value);
        }
    }
    if let Some(value) = fields.seed {
        member(out, b"seed", seed(integer(value, "seed")?).to_string().as_bytes());
    }
    Ok(())
}

/// Gemini's seeds have 31 bits. A larger one is folded: what was the same stays the same.
fn seed(text: &str) -> i32 {
    text.parse().unwrap_or_else(|_| {
        let folded = text.bytes().fold(0u64, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
        i32::try_from((folded ^ folded >> 31) & 0x7fff_ffff).unwrap_or(i32::MAX)
    })
}

fn is_zero(number: &[u8]) -> bool {
    let digits = number.split(|byte| matches!(byte, b'e' | b'E')).next().unwrap_or_default();
    digits.iter().all(|byte| matches!(byte, b'0' | b'.' | b'-'))
}

fn write_stop(out: &mut Vec<u8>, stop: &[u8]) -> Result<(), Refusal> {
    const PARAM: &str = "stop";
    let mut sequences = Vec::new();
    match kind(stop)? {
        Kind::String => sequences.push(string(stop, PARAM)?),
        Kind::Array => items(stop, PARAM, |cursor, index| {
            let value = cursor.raw().map_err(not_json)?;
            sequences.push(string(value, &format!("{PARAM}[{index}]"))?);
            Ok(())
        })?,
        _ => return Err(wrong_type(PARAM, "a string or an array of strings")),
    }
    sequences.retain(|sequence| !sequence.is_empty());
    if sequences.len() > STOP_MAX {
        return Err(invalid(PARAM, format!("Invalid 'stop': expected at most {STOP_MAX} sequences.")));
    }
    if sequences.is_empty() {
        return Ok(());
    }
    out.extend_from_slice(b",\"stopSequences\":[");
    for (index, sequence) in sequences.iter().enumerate() {
        out.extend_from_slice(if index == 0 { b"\"" } else { b",\"" });
        out.extend_from_slice(sequence.raw());
        out.push(b'"');
    }
    out.push(b']');
    Ok(())
}

fn logprobs(out: &mut Vec<u8>, fields: &Fields<'_>) -> Result<(), Refusal> {
    let wanted = match fields.logprobs {
        Some(value) => boolean(value, "logprobs")?,
        None => false,
    };
    let top = fields.top_logprobs.map(|value| integer(value, "top_logprobs")).transpose()?;
    if !wanted {
        return match top {
            Some(_) => Err(invalid("top_logprobs", "'top_logprobs' is only allowed when 'logprobs' is enabled.")),
            None => Ok(()),
        };
    }
    member(out, b"responseLogprobs", b"true");
    if let Some(top) = top {
        member(out, b"logprobs", top.as_bytes());
    }
    Ok(())
}

/// A budget stays below the answer's limit, which it counts into: a quarter is left for the answer.
fn thinking(out: &mut Vec<u8>, fields: &mut Fields<'_>, rules: &ModelRules, limit: u64) -> Result<(), Refusal> {
    let effort = match fields.reasoning_effort {
        Some(effort) => Some(Effort::read(&string(effort, "reasoning_effort")?.decode())?),
        None => None,
    };
    match (fields.thinking_config, effort) {
        (Some(_), Some(_)) => Err(invalid(
            "reasoning_effort",
            "'reasoning_effort' and 'extra_body.google.thinking_config' say the same; only one of them is allowed.",
        )),
        (Some(config), None) => {
            members(config, "extra_body.google.thinking_config", |_, _| Ok(()))?;
            member(out, b"thinkingConfig", config);
            Ok(())
        }
        (None, None) => Ok(()),
        (None, Some(effort)) => {
            let config: Cow<'static, str> = match rules.thinking {
                Thinking::None | Thinking::Switch => {
                    fields.drop_field("reasoning_effort");
                    return Ok(());
                }
                Thinking::Budget { min, max } => match effort.budget().min(within(limit)).clamp(min, max.max(min)) {
                    0 => r#"{"thinkingBudget":0}"#.into(),
                    budget => format!(r#"{{"thinkingBudget":{budget},"includeThoughts":true}}"#).into(),
                },
                Thinking::Level | Thinking::Adaptive { .. } => {
                    format!(r#"{{"thinkingLevel":"{}","includeThoughts":true}}"#, effort.level()).into()
                }
            };
            member(out, b"thinkingConfig", config.as_bytes());
            Ok(())
        }
    }
}

/// What of an answer's limit may be thought.
fn within(limit: u64) -> u32 {
    u32::try_from(limit - limit.div_ceil(4)).unwrap_or(u32::MAX)
}

/// How hard the model is to think.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effort {
    None,
    Minimal,
    Low,
    Medium,
    High,
    XHigh,
}

impl Effort {
    fn read(text: &[u8]) -> Result<Self, Refusal> {
        Ok(match text {
            b"none" => Self::None,
            b"minimal" => Self::Minimal,
            b"low" => Self::Low,
            b"medium" => Self::Medium,
            b"high" => Self::High,
            b"xhigh" | b"max" => Self::XHigh,
            _ => {
                let message =
                    "Invalid 'reasoning_effort': expected 'none', 'minimal', 'low', 'medium', 'high' or 'xhigh'.";
                return Err(invalid("reasoning_effort", message));
            }
        })
    }

    /// Tokens, before the model's own bounds.
    fn budget(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Minimal | Self::Low => BUDGET_LOW,
            Self::Medium => BUDGET_MEDIUM,
            Self::High => BUDGET_HIGH,
            Self::XHigh => u32::MAX,
        }
    }

    /// The nearest of the levels. Models that have levels cannot stop thinking.
    fn level(self) -> &'static str {
        match self {
            Self::None | Self::Minimal => "minimal",
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High | Self::XHigh => "high",
        }
    }
}

fn response_format(out: &mut Vec<u8>, format: &[u8], rules: &ModelRules, tools: bool) -> Result<(), Refusal> {
    const PARAM: &str = "response_format";
    let (mut kind, mut wrapper) = (None, None);
    members(format, PARAM, |key, value| {
        match key {
            b"type" => kind = Some(string(value, "response_format.type")?.decode()),
            b"json_schema" => wrapper = given(Some(value)),
            _ => {}
        }
        Ok(())
    })?;
    let is_schema = match kind.as_deref() {
        Some(b"text") => return Ok(()),
        Some(b"json_object") => false,
        Some(b"json_schema") => true,
        Some(_) => {
            let message = "Invalid type: expected 'text', 'json_object' or 'json_schema'.";
            return Err(invalid("response_format.type", message));
        }
        None => return Err(missing("response_format.type")),
    };
    if tools && !rules.schema_with_tools {
        return Err(unsupported(PARAM, "JSON as the form of its answer together with tools"));
    }
    member(out, b"responseMimeType", b"\"application/json\"");
    if !is_schema {
        return Ok(());
    }
    if rules.schema != SchemaForm::Native {
        return Err(unsupported("response_format.type", "a JSON schema"));
    }
    let mut schema = None;
    members(
        wrapper.ok_or_else(|| missing("response_format.json_schema"))?,
        "response_format.json_schema",
        |key, value| {
            if key == b"schema" {
                schema = given(Some(value));
            }
            Ok(())
        },
    )?;
    let schema = schema.ok_or_else(|| missing("response_format.json_schema.schema"))?;
    members(schema, "response_format.json_schema.schema", |_, _| Ok(()))?;
    // The field takes JSON schema as it is; keywords that Gemini does not know it passes over.
    member(out, b"responseJsonSchema", schema);
    Ok(())
}

/// Writes a member behind others.
fn member(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(name);
    out.extend_from_slice(b"\":");
    out.extend_from_slice(value);
}
