//! Tokens in disjoint classes, so that a token is in one class and is paid once.

use serde::{Deserialize, Serialize};

/// What one request used, in tokens. The classes are disjoint but for `reasoning`, which is a part of `output`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Usage {
    /// Prompt tokens that no cache served or kept.
    pub input: u64,
    /// Prompt tokens read from a cache.
    pub cache_read: u64,
    /// Prompt tokens written to a cache that keeps them 5 minutes.
    pub cache_write_5m: u64,
    /// Prompt tokens written to a cache that keeps them an hour.
    pub cache_write_1h: u64,
    /// All tokens of the answer, reasoning included.
    pub output: u64,
    /// Of the output, what was reasoning.
    pub reasoning: u64,
}

impl Usage {
    /// All prompt tokens, whatever a cache did with them.
    pub fn prompt(&self) -> u64 {
        self.input
            .saturating_add(self.cache_read)
            .saturating_add(self.cache_write_5m)
            .saturating_add(self.cache_write_1h)
    }

    /// Prompt and answer.
    pub fn total(&self) -> u64 {
        self.prompt().saturating_add(self.output)
    }
}
