//! Prices, and what providers charge, as they are written: decimal strings in USD per million tokens, read exactly.

use super::reader::{Table, Value};
use crate::relay::meter::{NanoUsd, Price, PriceTier, Rates};

/// The dearest rate that is believed, in USD per million tokens; more is a slip of the decimal point.
const RATE_USD_MAX: u64 = 1_000_000;

const NANO_USD_PER_USD: u64 = 1_000_000_000;

/// The rates that a table names, in nano-USD per million tokens.
#[derive(Default)]
struct Named {
    input: Option<u64>,
    output: Option<u64>,
    cache_read: Option<u64>,
    cache_write_5m: Option<u64>,
    cache_write_1h: Option<u64>,
}

impl Named {
    /// `None` when any rate is wrong, which has been reported.
    fn read(table: &Table<'_>) -> Option<Self> {
        let mut all_good = true;
        let mut class = |key| {
            let rate = rate(&table.optional(key)?);
            all_good &= rate.is_some();
            rate
        };
        let named = Self {
            input: class("input"),
            output: class("output"),
            cache_read: class("cache_read"),
            cache_write_5m: class("cache_write_5m"),
            cache_write_1h: class("cache_write_1h"),
        };
        all_good.then_some(named)
    }

    /// Takes from `base` what is not named here.
    fn or(self, base: &Self) -> Self {
        Self {
            input: self.input.or(base.input),
            output: self.output.or(base.output),
            cache_read: self.cache_read.or(base.cache_read),
            cache_write_5m: self.cache_write_5m.or(base.cache_write_5m),
            cache_write_1h: self.cache_write_1h.or(base.cache_write_1h),
        }
    }

    /// All classes, as [`Rates`] documents those that nobody named. `None` without the two that have no default.
    fn rates(&self) -> Option<Rates> {
        let (input, output) = (self.input?, self.output?);
        let cache_write_5m = self.cache_write_5m.unwrap_or(input);
        Some(Rates {
            input,
            output,
            cache_read: self.cache_read.unwrap_or(input),
            cache_write_5m,
            cache_write_1h: self.cache_write_1h.unwrap_or(cache_write_5m),
        })
    }
}

/// Reads `price = { input, output, cache_read, cache_write_5m, cache_write_1h, above }`.
pub(super) fn read(value: &Value<'_>) -> Option<Price> {
    let table = value.table()?;
    const MEND: &str = r#"write USD per million tokens, such as "2.50""#;
    let complete = ["input", "output"].map(|key| table.required(key, MEND).is_some()) == [true, true];
    let base = Named::read(&table);
    // The tiers' own mistakes are told even when the base is wrong.
    let tiers = match table.optional("above") {
        Some(value) => tiers(&value, base.as_ref().unwrap_or(&Named::default())),
        None => Some(Vec::new()),
    };
    table.finish();
    let (base, tiers) = (base?, tiers?);
    if !complete {
        return None;
    }
    Some(Price { base: base.rates()?, tiers })
}

/// Reads `above = [{ prompt_tokens, input, … }]`. A class that a tier does not name costs what the base names for it.
fn tiers(value: &Value<'_>, base: &Named) -> Option<Vec<PriceTier>> {
    let mut highest = 0;
    let tiers: Vec<Option<PriceTier>> = value.items()?.iter().map(|item| tier(item, base, &mut highest)).collect();
    tiers.into_iter().collect()
}

/// `highest` is the bound of the tier before, and becomes this one's.
fn tier(item: &Value<'_>, base: &Named, highest: &mut u64) -> Option<PriceTier> {
    let table = item.table()?;
    let bound = table.required("prompt_tokens", "write the number of prompt tokens above which the tier holds");
    let bound = bound.and_then(|value| {
        let tokens = value.number(1..=u64::from(u32::MAX))?;
        if tokens <= std::mem::replace(highest, tokens) {
            return value.refuse("is not above the tier before it; list the tiers by rising prompt_tokens");
        }
        Some(tokens)
    });
    let named = Named::read(&table);
    table.finish();
    Some(PriceTier { prompt_tokens_above: bound?, rates: named?.or(base).rates()? })
}

/// Reads what a plan costs a month: whole cents, for nobody can pay less.
pub(super) fn monthly(value: &Value<'_>) -> Option<NanoUsd> {
    const MEND: &str = r#"write USD a month, such as "9" or "9.50""#;
    const CENT: u64 = NANO_USD_PER_USD / 100;
    if !value.is_string() {
        return value.refuse(format_args!("must be a string, not {}; {MEND}", value.type_name()));
    }
    match nano_usd(value.string()?) {
        Ok(nano) if nano % CENT == 0 => i64::try_from(nano).ok().map(NanoUsd),
        Ok(_) => value.refuse(format_args!("has parts of a cent; {MEND}")),
        Err(_) => value.refuse(format_args!("is no amount; {MEND}")),
    }
}

/// Reads one rate, in nano-USD per million tokens.
fn rate(value: &Value<'_>) -> Option<u64> {
    if !value.is_string() {
        return value.refuse(format_args!(
            "must be a decimal string, not {}; write it in quotes, such as \"2.50\", so that no digit is lost",
            value.type_name()
        ));
    }
    nano_usd(value.string()?).map_or_else(|wrong| value.refuse(wrong), Some)
}

/// A decimal amount of USD as nano-USD, exactly.
fn nano_usd(text: &str) -> Result<u64, &'static str> {
    const FORM: &str = "is not a decimal number; write digits, a point and at most 9 more digits, such as \"2.50\"";
    const TOO_MUCH: &str = "is more than 1,000,000 USD per million tokens; check the decimal point";
    if text.starts_with('-') {
        return Err("is negative; a price is 0 or more");
    }
    let (whole, fraction) = match text.split_once('.') {
        Some((whole, fraction)) if !fraction.is_empty() => (whole, fraction),
        Some(_) => return Err(FORM),
        None => (text, ""),
    };
    if whole.is_empty() || !whole.bytes().chain(fraction.bytes()).all(|byte| byte.is_ascii_digit()) {
        return Err(FORM);
    }
    if fraction.len() > 9 {
        return Err("has more than 9 decimals; a billionth of a dollar is the smallest unit");
    }
    let usd: u64 = whole.parse().map_err(|_| TOO_MUCH)?;
    let nano: u64 = format!("{fraction:0<9}").parse().map_err(|_| FORM)?;
    match usd.checked_mul(NANO_USD_PER_USD).and_then(|usd| usd.checked_add(nano)) {
        Some(rate) if rate <= RATE_USD_MAX * NANO_USD_PER_USD => Ok(rate),
        _ => Err(TOO_MUCH),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{mistakes_of, with_root};
    use super::*;

    fn read_price(toml: &str) -> Result<Price, String> {
        let mut price = None;
        let mistakes = with_root(toml, &|_| None, |root| {
            price = root.required("price", "").and_then(|value| read(&value));
        });
        price.ok_or_else(|| mistakes_of(&mistakes))
    }

    #[test]
    fn decimals_are_read_exactly() {
        assert_eq!(nano_usd("0"), Ok(0));
        assert_eq!(nano_usd("3"), Ok(3_000_000_000));
        assert_eq!(nano_usd("0.075"), Ok(75_000_000));
        assert_eq!(nano_usd("0.000000001"), Ok(1));
        assert_eq!(nano_usd("1000000"), Ok(1_000_000_000_000_000));
    }

    #[test]
    fn what_is_no_price_is_refused() {
        for text in ["", ".", "1.", ".5", "+1", "1e3", "1,5", " 1", "0x1", "NaN", "-0.1", "-", "1.2.3", "١"] {
            assert!(nano_usd(text).is_err(), "{text:?}");
        }
        assert!(nano_usd("0.0000000001").unwrap_err().contains("9 decimals"));
        assert!(nano_usd("1000000.000000001").unwrap_err().contains("decimal point"));
        assert!(nano_usd("99999999999999999999999999").unwrap_err().contains("decimal point"));
    }

    proptest! {
        #[test]
        fn a_printed_amount_reads_back(nano in 0..=RATE_USD_MAX * NANO_USD_PER_USD) {
            let text = format!("{}.{:09}", nano / NANO_USD_PER_USD, nano % NANO_USD_PER_USD);
            prop_assert_eq!(nano_usd(&text), Ok(nano));
        }
    }

    #[test]
    fn classes_that_are_not_named_have_their_defaults() {
        let price = read_price(r#"price = { input = "1", output = "2" }"#).unwrap();
        let usd = NANO_USD_PER_USD;
        let rates = Rates { input: usd, output: 2 * usd, cache_read: usd, cache_write_5m: usd, cache_write_1h: usd };
        assert_eq!(price, Price { base: rates, tiers: Vec::new() });
        let price = read_price(r#"price = { input = "1", output = "2", cache_write_5m = "3" }"#).unwrap();
        assert_eq!(price.base.cache_write_1h, 3 * usd);
    }

    #[test]
    fn a_tier_takes_from_the_base_what_the_base_names() {
        let price = read_price(
            r#"price = { input = "1", output = "2", cache_read = "0.5",
                above = [{ prompt_tokens = 10, input = "4" }] }"#,
        )
        .unwrap();
        let tier = price.rates(11);
        let usd = NANO_USD_PER_USD;
        assert_eq!((tier.input, tier.output, tier.cache_read), (4 * usd, 2 * usd, usd / 2));
        assert_eq!(tier.cache_write_5m, 4 * usd, "unnamed in both: the tier's own input");
        assert_eq!(price.rates(10), &price.base);
    }

    #[test]
    fn every_mistake_of_a_price_is_told() {
        let told = read_price(
            r#"price = { input = 2.5, outptu = "1",
                above = [{ prompt_tokens = 10 }, { prompt_tokens = 10, cost = "1" }] }"#,
        )
        .unwrap_err();
        for part in ["not a float", "output is missing", "did you mean \"output\"?", "rising", "price.above.cost"] {
            assert!(told.contains(part), "{part} in {told}");
        }
    }
}
