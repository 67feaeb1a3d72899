//! Prices and costs in whole numbers. No floating point touches money.

use super::Usage;

/// An amount of money: billionths of a US dollar.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NanoUsd(pub i64);

/// What a model costs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Price {
    /// The rates of a prompt that no tier covers.
    pub base: Rates,
    /// Dearer (or cheaper) rates for longer prompts, in rising order of `prompt_tokens_above`.
    pub tiers: Vec<PriceTier>,
}

/// The rates of prompts that are longer than a bound; the whole request is priced at them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PriceTier {
    /// Prompts of more tokens than this are in the tier.
    pub prompt_tokens_above: u64,
    /// Its rates.
    pub rates: Rates,
}

/// Nano-USD per million tokens of each class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rates {
    /// Fresh prompt tokens.
    pub input: u64,
    /// Tokens of the answer.
    pub output: u64,
    /// Prompt tokens read from a cache; `input`'s rate where the configuration names none.
    pub cache_read: u64,
    /// Prompt tokens written to a 5 minute cache; `input`'s rate where the configuration names none.
    pub cache_write_5m: u64,
    /// Prompt tokens written to a 1 hour cache; `cache_write_5m`'s rate where the configuration names none.
    pub cache_write_1h: u64,
}

impl Price {
    /// The rates for a prompt of that many tokens.
    pub fn rates(&self, prompt_tokens: u64) -> &Rates {
        self.tiers
            .iter()
            .rev()
            .find(|tier| prompt_tokens > tier.prompt_tokens_above)
            .map_or(&self.base, |tier| &tier.rates)
    }

    /// What that usage costs: the sum over its classes, rounded up once.
    pub fn cost(&self, usage: &Usage) -> NanoUsd {
        let rates = self.rates(usage.prompt());
        let millionths: u128 = [
            (usage.input, rates.input),
            (usage.cache_read, rates.cache_read),
            (usage.cache_write_5m, rates.cache_write_5m),
            (usage.cache_write_1h, rates.cache_write_1h),
            (usage.output, rates.output),
        ]
        .into_iter()
        .map(|(tokens, rate)| u128::from(tokens) * u128::from(rate))
        .fold(0, u128::saturating_add);
        NanoUsd(i64::try_from(millionths.div_ceil(1_000_000)).unwrap_or(i64::MAX))
    }
}
