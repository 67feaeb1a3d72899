//! What a request used and what it costs: reported usage where there is any, a tokenizer's count of what passed where
//! there is none, and the price of both.

mod ceiling;
mod decimal;
mod document;
mod price;
mod record;
mod sample;
mod tokenizer;
mod usage;

pub use ceiling::{Attachment, CacheTime, ImageTokens, PromptCeiling};
pub use decimal::parse_nano_usd;
pub use document::{TokensDocument, UsageDocument, rfc3339};
pub(in crate::relay) use price::PRICED_TOKENS;
pub use price::{NanoUsd, Price, PriceTier, Rates};
pub use record::UsageRecord;
pub use sample::{PromptHead, PromptSample, SAMPLE_BYTES_MAX, SampledText};
pub use tokenizer::{ATTACHMENT_TOKENS, Encoding};
pub use usage::Usage;
