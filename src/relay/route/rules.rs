//! What a provider's model takes and refuses: a row of the catalogue, so that no code asks for a model's name.

/// The rules of one target's model, where they differ from what its dialect says of all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ModelRules {
    /// How it is asked to think.
    pub thinking: Thinking,
    /// Which of temperature, top_p and top_k it takes.
    pub sampling: Sampling,
    /// How it is held to a JSON schema.
    pub schema: SchemaForm,
    /// Whether the conversation may end with the assistant's own words, to be continued.
    pub prefill: bool,
    /// Whether a schema and tools may be asked for together.
    pub schema_with_tools: bool,
    /// Whether it has to be asked for what it thinks: without, it thinks and does not tell.
    pub show_thinking: bool,
    /// Whether the operator's words may stand between the turns, not only before them.
    pub system_turns: bool,
}

/// How a model is asked to think.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Thinking {
    /// It is not: `reasoning_effort` has no place.
    #[default]
    None,
    /// It is switched on or off, and there is no more to say.
    Switch,
    /// By a budget of tokens. `min` is the least that it takes; 0 where it can be turned off.
    Budget {
        /// Tokens.
        min: u32,
        /// Tokens.
        max: u32,
    },
    /// It decides by itself, with a word on how hard to try. `xhigh` is whether it knows that word.
    Adaptive {
        /// Whether the effort `xhigh` is known.
        xhigh: bool,
    },
    /// By one of the levels minimal, low, medium, high.
    Level,
}

/// Which sampling parameters a model takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sampling {
    /// All of its dialect.
    #[default]
    Free,
    /// Temperature or top_p, not both.
    OneOf,
    /// None: it refuses requests that have any.
    None,
}

/// How a model is held to a JSON schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SchemaForm {
    /// By the dialect's own field.
    #[default]
    Native,
    /// By a tool that it is made to call.
    ForcedTool,
    /// It cannot be.
    None,
}
