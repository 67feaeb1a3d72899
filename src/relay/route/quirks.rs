//! The named ways in which providers that speak OpenAI's dialect deviate from it.
//!
//! A provider is a row of configuration, and its `quirks` say what is done about its deviations; no code asks for a
//! provider's name. Each quirk's note says what it is known from: `WIRE §6` is the project's table of vendors, names in
//! slashes are its recordings, names with a number are issues of public projects.
//!
//! Deliberately absent: tool call ids, for Moonshot repeats `name:N` in later turns (WIRE §6) and wants its own ids back;
//! and reasoning between `<think>` tags inside of the text, which may as well be what the model was asked to write.

/// A set of quirks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Quirks(u32);

macro_rules! quirks {
    ($($(#[$doc:meta])* $quirk:ident => $name:literal;)*) => {
        /// A deviation from OpenAI's dialect, and what is done about it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Quirk { $($(#[$doc])* $quirk,)* }

        impl Quirk {
            /// Every quirk, in the order of this file.
            pub const ALL: &'static [Quirk] = &[$(Quirk::$quirk,)*];

            /// The name in configuration.
            pub fn name(self) -> &'static str { match self { $(Quirk::$quirk => $name,)* } }
        }
    };
}

quirks! {
    // What is sent.

    /// The role `developer` is not known: it is sent as `system`. WIRE §6: DeepSeek refuses it (Portkey#1204), and so do
    /// the other four.
    DeveloperAsSystem => "developer_as_system";
    /// `max_completion_tokens` is not known: it is sent as `max_tokens`. WIRE §6; Mistral refuses it (eca#231).
    MaxTokens => "max_tokens";
    /// More output than the model has is refused: what is asked for is lowered to the catalogue's `output_tokens_max`.
    /// WIRE §6: SiliconFlow.
    MaxTokensCapped => "max_tokens_capped";
    /// What belongs to OpenAI's platform rather than to a model is dropped: store, metadata, service_tier, prediction,
    /// modalities, audio, prompt_cache_retention, safety_identifier, verbosity, web_search_options. WIRE §6: all five.
    NoPlatformFields => "no_platform_fields";
    /// `logit_bias` is dropped. WIRE §6: all five.
    NoLogitBias => "no_logit_bias";
    /// `logprobs` and `top_logprobs` are dropped. Groq's documentation: refused.
    NoLogprobs => "no_logprobs";
    /// `parallel_tool_calls` is dropped. WIRE §6: all but Qwen on DashScope, where it is known.
    NoParallelToolCalls => "no_parallel_tool_calls";
    /// `prompt_cache_key` is dropped. WIRE §6: all but Moonshot, where it is known.
    NoPromptCacheKey => "no_prompt_cache_key";
    /// `user` is dropped. Mistral refuses what it does not know (Gitlawb/openclaude#739).
    NoUser => "no_user";
    /// `stream_options` is not sent: usage comes without being asked for. WIRE §8: Mistral, 112 of 112.
    NoStreamOptions => "no_stream_options";
    /// `seed` is called `random_seed`. Mistral's documentation.
    RandomSeed => "random_seed";
    /// Temperature and top_p lie between 0 and 1, neither of them included: what is outside is moved to the nearest
    /// hundredth inside. WIRE §6: Zhipu.
    SamplingBelowOne => "sampling_below_one";
    /// Only text is understood: images, sounds and files are refused before they are sent. WIRE §6: DeepSeek.
    TextOnly => "text_only";
    /// A `response_format` of `json_schema` is refused: it is sent as `json_object`, with a system message in front that
    /// states the schema, and is named among what was dropped, for nothing enforces it. WIRE §6 and
    /// /deepseek/synthetic_error_400_response_format/.
    NoJsonSchema => "no_json_schema";
    /// A schema must not name its own dialect: `$schema` at its top is taken out. WIRE §6: Moonshot.
    NoSchemaDialect => "no_schema_dialect";
    /// `reasoning_effort` is, or is beside, `thinking: {"type": "enabled" | "disabled"}`; which of the two, the model's
    /// rule `thinking` says. WIRE §6: DeepSeek, Moonshot, Zhipu; /deepseek/json_thinking_disabled/.
    ThinkingObject => "thinking_object";
    /// The same, with `enable_thinking: true | false` and `thinking_budget`. WIRE §6: Qwen, SiliconFlow.
    EnableThinking => "enable_thinking";
    /// A model that thinks cannot be made to call a tool: a request that forces one does not think.
    /// /deepseek/error_400_forced_tool_with_thinking/; Moonshot (oh-my-pi#1077); Qwen (eino#994).
    NoForcedToolWhileThinking => "no_forced_tool_while_thinking";
    /// Thinking is for streams alone: a request that is not to be streamed does not think. WIRE §6: open Qwen3 models
    /// (ragflow#8972).
    ThinksInStreamsOnly => "thinks_in_streams_only";
    /// While thinking, the history's tool calls must have the `reasoning_content` that led to them: where a client has
    /// dropped it, a blank stands in. WIRE §6: DeepSeek (aider-desk#529), Moonshot (crush#2696: a blank is accepted, the
    /// empty string is not).
    EchoesReasoning => "echoes_reasoning";
    /// The history must not have any `reasoning_content`, `reasoning` or `reasoning_details`: they are taken out. Mistral
    /// (crush#1590).
    NoReasoningInHistory => "no_reasoning_in_history";

    // What comes back.

    /// Answers keep to OpenAI's dialect only roughly, and are put right on their way: one id, one role, dense tool
    /// indexes, a `finish_reason` that is null and then one of OpenAI's, usage in its place and only if asked for,
    /// reasoning as `reasoning_content`, content as text, errors as OpenAI's event. WIRE §6, "Response normaliser", with
    /// the evidence for each; all of its vendors.
    LooseAnswers => "loose_answers";
}

impl Quirk {
    /// The quirk of that name, if there is one.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|quirk| quirk.name() == name)
    }

    fn bit(self) -> u32 {
        1 << self as u32
    }
}

impl Quirks {
    /// None: OpenAI's dialect to the letter.
    pub const NONE: Self = Self(0);

    /// Whether that quirk is among them.
    pub fn has(self, quirk: Quirk) -> bool {
        self.0 & quirk.bit() != 0
    }

    /// Whether any of those quirks is among them.
    pub fn has_any(self, quirks: &[Quirk]) -> bool {
        quirks.iter().any(|quirk| self.has(*quirk))
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl FromIterator<Quirk> for Quirks {
    fn from_iter<I: IntoIterator<Item = Quirk>>(quirks: I) -> Self {
        Self(quirks.into_iter().fold(0, |bits, quirk| bits | quirk.bit()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_quirk_has_its_own_bit_and_name() {
        let all: Quirks = Quirk::ALL.iter().copied().collect();
        assert_eq!(all.0.count_ones() as usize, Quirk::ALL.len());
        for quirk in Quirk::ALL {
            assert_eq!(Quirk::named(quirk.name()), Some(*quirk));
            assert!(all.has(*quirk) && !Quirks::NONE.has(*quirk));
        }
        assert_eq!(Quirk::named("odd"), None);
    }
}
