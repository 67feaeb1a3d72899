//! The request: read from OpenAI's form and written in Anthropic's, in one go and without a tree.
//!
//! Strings, numbers, schemas and arguments are taken over as the text that they are.

mod cache;
mod conversation;
mod data_uri;
mod effort;
mod fields;
mod format;
mod ids;
mod messages;
mod parts;
#[cfg(test)]
mod properties;
mod refuse;
mod stop;
#[cfg(test)]
mod tests;
mod tools;

use cache::CacheMarks;
use conversation::{Conversation, Written};
use effort::{Plan, write_sampling};
use fields::Fields;
use format::{JSON_INSTRUCTION, ResponseFormat};
use messages::read_messages;
use refuse::invalid;
use stop::write_stop;
use tools::Tools;

#[cfg(test)]
pub(super) use tests::translate;

use super::text::push_string;
use crate::relay::dialect::Outgoing;
use crate::relay::dialect::openai::ChatRequest;
use crate::relay::json::write_string;
use crate::relay::refusal::Refusal;
use crate::relay::route::ModelRules;

/// What is written besides the client's own words, with room to spare.
const EXTRA_BYTES: usize = 1024;

/// The request as a provider gets it that calls the model so. `output_tokens_max` is the most that the answer may have,
/// thinking included: it is asked for where the client asks for nothing, and never exceeded.
///
/// Refused, with the parameter at fault, is what cannot be said to Anthropic and would change the answer if it were not said:
/// several choices, sounds, files by id, tools that are no functions, more than four cache marks, a conversation that the
/// model cannot go on with. Everything else that has no place is named in [`Outgoing::dropped`].
///
/// Ids of calls that have other letters than Anthropic takes, or come again in a later turn, are rewritten: the other letters
/// become `_`, a checksum is put behind them, and then a count. The same conversation always gives the same ids.
pub fn request(
    request: &ChatRequest,
    model: &str,
    rules: &ModelRules,
    output_tokens_max: u64,
) -> Result<Outgoing, Refusal> {
    let mut fields = Fields::read(request)?;
    let mut marks = CacheMarks::default();
    let format = ResponseFormat::read(&fields, rules)?;
    let tools = Tools::read(&mut fields, rules, &mut marks)?;
    let mut conversation = Conversation::new(request.body().len() + EXTRA_BYTES, rules.system_turns);
    read_messages(request.messages(), &mut conversation, &mut marks)?;
    let Written { mut out, system, is_prefilled, lacks_thinking, tool_names } = conversation.finish()?;

    let may_think = !lacks_thinking && !tools.is_forced(format.as_tool());
    let plan = Plan::make(&mut fields, rules, request.output_tokens_asked(), output_tokens_max, may_think)?;
    if is_prefilled && (!rules.prefill || plan.thinks()) {
        let message =
            "This model does not go on with the assistant's own words: the last message must not be the assistant's.";
        return Err(invalid("messages", message));
    }

    out.extend_from_slice(b",\"model\":");
    write_string(&mut out, model);
    out.extend_from_slice(format!(",\"max_tokens\":{}", plan.tokens_max).as_bytes());
    if request.stream() {
        out.extend_from_slice(b",\"stream\":true");
    }
    write_system(&mut out, &system, &format);
    tools.write(&mut out, format.as_tool(), &tool_names);
    plan.write_thinking(&mut out);
    write_output_config(&mut out, &plan, &format);
    write_sampling(&mut out, &mut fields, rules, plan.thinks());
    write_stop(&mut out, &mut fields)?;
    if let Some(id) = fields.user_id() {
        out.extend_from_slice(b",\"metadata\":{\"user_id\":");
        push_string(&mut out, id);
        out.push(b'}');
    }
    if let Some(tier) = fields.tier() {
        out.extend_from_slice(format!(",\"service_tier\":\"{tier}\"").as_bytes());
    }
    out.push(b'}');
    Ok(Outgoing { path: "/v1/messages".into(), body: out.into(), dropped: fields.dropped })
}

/// How long an answer to the request may become: thinking counts into it, and a budget for it may make it longer than was asked.
pub fn output_ceiling(request: &ChatRequest, rules: &ModelRules, output_tokens_max: u64) -> u64 {
    let asked = request.output_tokens_asked().unwrap_or(output_tokens_max);
    let budget = request.effort().map_or(0, |effort| effort::thinking_tokens(effort, rules));
    asked.saturating_add(budget).min(output_tokens_max)
}

fn write_system(out: &mut Vec<u8>, system: &[u8], format: &ResponseFormat<'_>) {
    let instruction = matches!(format, ResponseFormat::Json).then_some(JSON_INSTRUCTION);
    if system.is_empty() && instruction.is_none() {
        return;
    }
    out.extend_from_slice(b",\"system\":[");
    out.extend_from_slice(system);
    if let Some(instruction) = instruction {
        if !system.is_empty() {
            out.push(b',');
        }
        out.extend_from_slice(b"{\"type\":\"text\",\"text\":");
        write_string(out, instruction);
        out.push(b'}');
    }
    out.push(b']');
}

fn write_output_config(out: &mut Vec<u8>, plan: &Plan, format: &ResponseFormat<'_>) {
    let schema = if let ResponseFormat::Schema(schema) = format { Some(schema) } else { None };
    if plan.effort().is_none() && schema.is_none() {
        return;
    }
    out.extend_from_slice(b",\"output_config\":{");
    if let Some(effort) = plan.effort() {
        out.extend_from_slice(format!("\"effort\":\"{effort}\"").as_bytes());
    }
    if let Some(schema) = schema {
        if plan.effort().is_some() {
            out.push(b',');
        }
        out.extend_from_slice(b"\"format\":{\"type\":\"json_schema\",\"schema\":");
        schema.write(out);
        out.push(b'}');
    }
    out.push(b'}');
}
