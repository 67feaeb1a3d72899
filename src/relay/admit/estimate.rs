//! What a request may come to cost, before anyone knows: its prompt, and the answer that it may get.
//!
//! Costs are kept in millionths of a nano-USD until they are compared with money, so that what is held covers the same sum that
//! will be billed, which is rounded up once.

use crate::relay::meter::{CacheTime, NanoUsd, PRICED_TOKENS, Price, Rates};

/// What a request may use, each at the most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// Whether, and for how long, parts of the prompt are written to a cache.
    pub cache: Option<CacheTime>,
    /// Tokens of each answer.
    pub output_tokens: u64,
    /// How many answers.
    pub choices: u64,
}

/// What a request may come to cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Estimate {
    /// The prompt, in millionths of a nano-USD.
    prompt: u128,
    /// One token of each answer, in the same.
    step: u128,
    output_tokens: u64,
}

impl Estimate {
    /// The dearest that the price may make of these bounds.
    pub fn new(price: &Price, bounds: &Bounds) -> Self {
        let input = dearest(price, bounds.prompt_tokens, |rates| {
            let written = match bounds.cache {
                None => 0,
                Some(CacheTime::Short) => rates.cache_write_5m,
                Some(CacheTime::Long) => rates.cache_write_5m.max(rates.cache_write_1h),
            };
            rates.input.max(rates.cache_read).max(written)
        });
        let output = dearest(price, bounds.prompt_tokens, |rates| rates.output);
        Self {
            prompt: u128::from(bounds.prompt_tokens) * u128::from(input),
            step: u128::from(bounds.choices.max(1)) * u128::from(output),
            output_tokens: bounds.output_tokens.max(1),
        }
    }

    /// What the account must have: the prompt, and an answer's first token.
    pub fn least(&self) -> NanoUsd {
        self.with_output(1)
    }

    /// What it comes to at the most.
    pub fn most(&self) -> NanoUsd {
        self.with_output(self.output_tokens)
    }

    /// How long each answer may become for what is held, where that is less than it might be.
    pub fn lowered(&self, held: NanoUsd) -> Option<u64> {
        if self.step == 0 || held >= self.most() {
            return None;
        }
        let held = u128::try_from(held.0).unwrap_or(0).saturating_mul(PRICED_TOKENS);
        let tokens = held.saturating_sub(self.prompt) / self.step;
        Some(u64::try_from(tokens).unwrap_or(u64::MAX).clamp(1, self.output_tokens))
    }

    fn with_output(&self, tokens: u64) -> NanoUsd {
        let millionths = self.prompt.saturating_add(self.step.saturating_mul(u128::from(tokens)));
        NanoUsd::of_priced(millionths)
    }
}

/// The dearest of the rates that may apply: a prompt that turns out to be shorter may fall into any tier below.
fn dearest(price: &Price, prompt_tokens: u64, rate: impl Fn(&Rates) -> u64) -> u64 {
    let reached = price.tiers.iter().filter(|tier| prompt_tokens > tier.prompt_tokens_above);
    reached.map(|tier| rate(&tier.rates)).fold(rate(&price.base), u64::max)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::relay::meter::{PriceTier, Usage};

    /// A token costs 3 nano-USD in and 15 out; 0.3 read, 3.75 and 6 written. Above 1,000 tokens, twice that.
    fn price() -> Price {
        let base = Rates {
            input: 3_000_000,
            output: 15_000_000,
            cache_read: 300_000,
            cache_write_5m: 3_750_000,
            cache_write_1h: 6_000_000,
        };
        let twice = Rates {
            input: base.input * 2,
            output: base.output * 2,
            cache_read: base.cache_read * 2,
            cache_write_5m: base.cache_write_5m * 2,
            cache_write_1h: base.cache_write_1h * 2,
        };
        Price { base, tiers: vec![PriceTier { prompt_tokens_above: 1_000, rates: twice }] }
    }

    fn bounds(prompt_tokens: u64, output_tokens: u64) -> Bounds {
        Bounds { prompt_tokens, cache: None, output_tokens, choices: 1 }
    }

    #[test]
    fn it_is_the_prompt_and_every_answer_at_its_longest() {
        let estimate = Estimate::new(&price(), &Bounds { choices: 3, ..bounds(10, 100) });
        assert_eq!(estimate.least(), NanoUsd(10 * 3 + 3 * 15));
        assert_eq!(estimate.most(), NanoUsd(10 * 3 + 3 * 100 * 15));
        assert_eq!(estimate.lowered(estimate.most()), None);
        assert_eq!(estimate.lowered(NanoUsd(30 + 3 * 15 * 7 + 44)), Some(7), "as far as it goes for all three");
        assert_eq!(estimate.lowered(estimate.least()), Some(1));
    }

    #[test]
    fn what_is_kept_in_a_cache_is_held_at_what_it_costs_to_write() {
        let least = |cache| Estimate::new(&price(), &Bounds { cache, ..bounds(100, 1) }).least();
        assert_eq!(least(None), NanoUsd(300 + 15));
        assert_eq!(least(Some(CacheTime::Short)), NanoUsd(375 + 15));
        assert_eq!(least(Some(CacheTime::Long)), NanoUsd(600 + 15));
    }

    #[test]
    fn a_long_prompts_tier_applies_and_a_cheaper_one_does_not_deceive() {
        assert_eq!(Estimate::new(&price(), &bounds(1_000, 1)).least(), NanoUsd(3_000 + 15));
        assert_eq!(Estimate::new(&price(), &bounds(1_001, 1)).least(), NanoUsd(6_006 + 30));
        let mut falling = price();
        falling.tiers[0].rates = Rates { input: 1, output: 1, ..falling.base };
        assert_eq!(Estimate::new(&falling, &bounds(2_000, 1)).least(), NanoUsd(2_000 * 3 + 15));
    }

    #[test]
    fn what_is_free_is_not_lowered_and_what_is_past_all_bounds_saturates() {
        let mut free = price();
        free.base.output = 0;
        assert_eq!(Estimate::new(&free, &bounds(10, 100)).lowered(NanoUsd(30)), None);
        let endless = Estimate::new(&price(), &Bounds { choices: u64::MAX, ..bounds(u64::MAX, u64::MAX) });
        assert_eq!((endless.least(), endless.most()), (NanoUsd(i64::MAX), NanoUsd(i64::MAX)));
    }

    proptest! {
        #[test]
        fn an_answer_as_long_as_it_may_be_costs_no_more_than_is_held(
            (prompt, fresh, output, choices) in (1u64..3_000, 0u64..3_000, 1u64..5_000, 1u64..5),
            (input_rate, output_rate) in (0u64..9_999_999, 1u64..9_999_999),
            free in 0i64..200_000,
        ) {
            let mut price = price();
            (price.base.input, price.base.output) = (input_rate, output_rate);
            let estimate = Estimate::new(&price, &Bounds { choices, ..bounds(prompt, output) });
            prop_assert!(estimate.least() <= estimate.most());
            if NanoUsd(free) >= estimate.least() {
                let held = estimate.most().min(NanoUsd(free));
                let tokens = estimate.lowered(held).unwrap_or(output);
                prop_assert!((1..=output).contains(&tokens));
                let input = fresh.min(prompt);
                let usage = Usage { input, cache_read: prompt - input, output: tokens * choices, ..Usage::default() };
                prop_assert!(price.cost(&usage) <= held);
                if tokens < output {
                    prop_assert!(estimate.with_output(tokens + 1) > held, "not lowered further than it must");
                }
            }
        }
    }
}
