//! The one place that asks which dialect a provider speaks: how a request is said to it, how its answer is read, and what
//! its errors mean.

use super::gemini::SignatureScope;
use super::openai::{self, ChatRequest};
use super::{Answer, AnswerTerms, Outgoing, ProviderError, anthropic, gemini};
use crate::relay::meter::ImageTokens;
use crate::relay::refusal::Refusal;
use crate::relay::route::{Dialect, Model, Quirk, Target};

/// The request as the target's provider gets it. `output_tokens_max` is the most that the model answers with.
///
/// # Errors
/// What this provider cannot be asked, with the parameter at fault.
pub fn outgoing(
    request: &ChatRequest,
    target: &Target,
    output_tokens_max: u64,
    signatures: &SignatureScope,
) -> Result<Outgoing, Refusal> {
    let Target { provider, model, rules, .. } = target;
    let output_tokens_max = request.output_limit().map_or(output_tokens_max, |limit| limit.min(output_tokens_max));
    match provider.dialect {
        Dialect::OpenAi => openai::outgoing(request, model, provider.quirks, rules, output_tokens_max),
        Dialect::Anthropic => anthropic::request(request, model, rules, output_tokens_max),
        Dialect::Gemini => gemini::request(request, model, rules, output_tokens_max, signatures),
    }
}

/// How many tokens of each answer the target may be asked for, what is thought before it included: its request says no more,
/// unless the provider is one that goes its own way.
pub fn output_ceiling(request: &ChatRequest, target: &Target, output_tokens_max: u64) -> u64 {
    let Target { provider, rules, .. } = target;
    match provider.dialect {
        Dialect::OpenAi => openai::output_ceiling(request, provider.quirks, rules, output_tokens_max),
        Dialect::Anthropic => anthropic::output_ceiling(request, rules, output_tokens_max),
        Dialect::Gemini => {
            request.output_tokens_asked().map_or(output_tokens_max, |asked| asked.min(output_tokens_max))
        }
    }
}

/// How many tokens the target may count the prompt as. Images are counted as the model's row says, or as providers of the dialect
/// document it; where their models differ, as the larger ones do.
pub fn prompt_ceiling(request: &ChatRequest, target: &Target, model: &Model) -> u64 {
    let images = model.image_tokens.unwrap_or(match target.provider.dialect {
        // Eight tiles of 170 tokens and 85; low detail is the 85 alone.
        Dialect::OpenAi => ImageTokens { full: 1_500, low: 85 },
        // 2,576 pixels on the long edge, 750 of them a token; there is no detail to ask for.
        Dialect::Anthropic => ImageTokens { full: 4_800, low: 4_800 },
        // Sixteen tiles of 258; the same.
        Dialect::Gemini => ImageTokens { full: 4_200, low: 4_200 },
    });
    request.ceiling().tokens(images, model.context_window)
}

/// Whether the provider's answer passes byte for byte, and so with its length.
pub fn passes_unchanged(target: &Target) -> bool {
    target.provider.dialect == Dialect::OpenAi && !target.provider.quirks.has(Quirk::LooseAnswers)
}

/// The reader of the target's answer to a request for so many choices.
pub fn answer(
    target: &Target,
    is_stream: bool,
    terms: AnswerTerms,
    choices: u64,
    signatures: SignatureScope,
) -> Box<dyn Answer + Sync> {
    match (target.provider.dialect, is_stream) {
        (Dialect::OpenAi, _) => openai::incoming(target.provider.quirks, terms, choices, is_stream),
        (Dialect::Anthropic, true) => Box::new(anthropic::StreamTranslator::new(terms)),
        (Dialect::Anthropic, false) => Box::new(anthropic::WholeTranslator::new(terms)),
        (Dialect::Gemini, true) => Box::new(gemini::StreamTranslator::new(&terms, choices, signatures)),
        (Dialect::Gemini, false) => Box::new(gemini::WholeTranslator::new(terms, choices, signatures)),
    }
}

/// Reads an answer of that status, which is no success.
pub fn read_error(dialect: Dialect, status: u16, body: &[u8], retry_after_ms: Option<u64>) -> ProviderError {
    match dialect {
        Dialect::OpenAi => super::error::map_error(status, body, retry_after_ms),
        Dialect::Anthropic => anthropic::map_error(status, body, retry_after_ms),
        Dialect::Gemini => gemini::map_error(status, body, retry_after_ms),
    }
}
