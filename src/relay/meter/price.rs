//! Prices and costs in whole numbers. No floating point touches money.

use serde::{Deserialize, Serialize};

use super::Usage;

/// An amount of money: billionths of a US dollar.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NanoUsd(pub i64);

/// Rates are for so many tokens; a token's price times this is a whole number.
pub(in crate::relay) const PRICED_TOKENS: u128 = 1_000_000;

impl NanoUsd {
    /// A sum over tokens times rates, rounded up once.
    pub(in crate::relay) fn of_priced(millionths: u128) -> Self {
        Self(i64::try_from(millionths.div_ceil(PRICED_TOKENS)).unwrap_or(i64::MAX))
    }
}

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
        NanoUsd::of_priced(millionths)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// USD 3 input, 15 output, 0.30 read, 3.75 and 6 written; twice that for prompts above 200,000 tokens.
    fn price() -> Price {
        let base = Rates {
            input: 3_000_000_000,
            output: 15_000_000_000,
            cache_read: 300_000_000,
            cache_write_5m: 3_750_000_000,
            cache_write_1h: 6_000_000_000,
        };
        let twice = Rates {
            input: base.input * 2,
            output: base.output * 2,
            cache_read: base.cache_read * 2,
            cache_write_5m: base.cache_write_5m * 2,
            cache_write_1h: base.cache_write_1h * 2,
        };
        Price { base, tiers: vec![PriceTier { prompt_tokens_above: 200_000, rates: twice }] }
    }

    #[test]
    fn each_class_has_its_rate() {
        let usage =
            Usage { input: 10, cache_read: 100, cache_write_5m: 1_000, cache_write_1h: 7, output: 3, reasoning: 2 };
        // In nano-USD a token: 3,000 · 300 · 3,750 · 6,000 · 15,000.
        assert_eq!(price().cost(&usage), NanoUsd(10 * 3_000 + 100 * 300 + 1_000 * 3_750 + 7 * 6_000 + 3 * 15_000));
        assert_eq!(price().cost(&Usage::default()), NanoUsd(0));
    }

    #[test]
    fn the_sum_is_rounded_up_once() {
        let rates = Rates { input: 1, output: 1, cache_read: 1, cache_write_5m: 1, cache_write_1h: 1 };
        let price = Price { base: rates, tiers: Vec::new() };
        let usage = Usage { input: 1, output: 1, ..Usage::default() };
        assert_eq!(price.cost(&usage), NanoUsd(1), "two millionths are one, not two");
        let usage = Usage { input: 1_000_000, ..Usage::default() };
        assert_eq!(price.cost(&usage), NanoUsd(1), "a whole number stays as it is");
    }

    #[test]
    fn a_tier_begins_past_its_bound_and_counts_cached_tokens() {
        let at = Usage { input: 1, cache_read: 199_999, ..Usage::default() };
        let past = Usage { input: 2, cache_read: 199_999, output: 5, ..Usage::default() };
        assert_eq!(price().cost(&at), NanoUsd(3_000 + 199_999 * 300));
        assert_eq!(price().cost(&past), NanoUsd(2 * (2 * 3_000 + 199_999 * 300 + 5 * 15_000)), "the whole request");
    }

    #[test]
    fn the_highest_tier_that_fits_is_taken() {
        let mut price = price();
        let rates = Rates { input: 1, ..price.base };
        price.tiers.push(PriceTier { prompt_tokens_above: 500_000, rates });
        assert_eq!(price.rates(200_000), &price.base);
        assert_eq!(price.rates(500_000), &price.tiers[0].rates);
        assert_eq!(price.rates(500_001), &rates);
    }

    #[test]
    fn a_cost_past_all_bounds_saturates() {
        let most = u64::MAX;
        let rates = Rates { input: most, output: most, cache_read: most, cache_write_5m: most, cache_write_1h: most };
        let usage = Usage {
            input: most,
            output: most,
            cache_read: most,
            cache_write_5m: most,
            cache_write_1h: most,
            reasoning: most,
        };
        assert_eq!(Price { base: rates, tiers: Vec::new() }.cost(&usage), NanoUsd(i64::MAX));
    }

    proptest! {
        #[test]
        fn splitting_a_request_never_makes_it_cheaper(
            a in 0u64..100_000, b in 0u64..100_000, c in 0u64..100_000, d in 0u64..100_000, rate in 0u64..u64::from(u32::MAX),
        ) {
            let rates = Rates { input: rate, output: rate / 3, cache_read: 0, cache_write_5m: 0, cache_write_1h: 0 };
            let price = Price { base: rates, tiers: Vec::new() };
            let cost = |input, output| price.cost(&Usage { input, output, ..Usage::default() }).0;
            let apart = cost(a, b) + cost(c, d);
            let together = cost(a + c, b + d);
            prop_assert!(together <= apart && apart <= together + 1);
        }
    }
}
