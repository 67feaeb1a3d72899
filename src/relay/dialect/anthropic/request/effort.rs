//! How long the answer may be, how much is thought before it, and what chance has a say in.

use super::fields::Fields;
use super::refuse::Path;
use crate::relay::refusal::Refusal;
use crate::relay::route::{ModelRules, Sampling, Thinking};

/// The least that Anthropic takes as a budget.
const BUDGET_TOKENS_MIN: u64 = 1024;
/// While the model thinks, Anthropic takes a `top_p` from here on.
const TOP_P_THINKING_MIN: f64 = 0.95;

/// OpenAI's `reasoning_effort`, and `max`, which only some models know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effort {
    None,
    Minimal,
    Low,
    Medium,
    High,
    ExtraHigh,
    Max,
}

/// What is said of length and thinking.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) tokens_max: u64,
    thinking: Mode,
    /// `output_config.effort`.
    effort: Option<&'static str>,
    shows_thinking: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Nothing is said of it.
    Unsaid,
    Disabled,
    Budget(u64),
    Adaptive,
}

impl Effort {
    fn read(fields: &Fields<'_>) -> Result<Option<Self>, Refusal> {
        let Some(word) = fields.reasoning_effort else { return Ok(None) };
        Self::named(word.raw()).map(Some).ok_or_else(|| {
            Path::Field("reasoning_effort").invalid(
                "Invalid 'reasoning_effort': expected one of 'none', 'minimal', 'low', 'medium', 'high' and 'xhigh'.",
            )
        })
    }

    fn named(word: &[u8]) -> Option<Self> {
        Some(match word {
            b"none" => Self::None,
            b"minimal" => Self::Minimal,
            b"low" => Self::Low,
            b"medium" => Self::Medium,
            b"high" => Self::High,
            b"xhigh" => Self::ExtraHigh,
            b"max" => Self::Max,
            _ => return None,
        })
    }

    /// The budget for models that are asked in tokens (WIRE §2).
    fn budget_tokens(self) -> u64 {
        match self {
            Self::None => 0,
            Self::Minimal => 1024,
            Self::Low => 2048,
            Self::Medium => 10_000,
            Self::High => 16_384,
            Self::ExtraHigh | Self::Max => 32_768,
        }
    }

    /// The budget within a model's bounds, and the least that there can be.
    fn budget_within(self, min: u32, max: u32) -> (u64, u64) {
        let least = BUDGET_TOKENS_MIN.max(min.into());
        (self.budget_tokens().min(max.into()).max(least), least)
    }

    fn word(self, knows_xhigh: bool) -> &'static str {
        match self {
            Self::None | Self::Minimal | Self::Low => "low",
            Self::Medium => "medium",
            Self::ExtraHigh if knows_xhigh => "xhigh",
            Self::High | Self::ExtraHigh => "high",
            Self::Max => "max",
        }
    }
}

/// By how much a request for that effort may make its answer longer than was asked for.
pub(super) fn thinking_tokens(effort: &[u8], rules: &ModelRules) -> u64 {
    match (Effort::named(effort), rules.thinking) {
        (Some(effort), Thinking::Budget { min, max }) if effort != Effort::None => effort.budget_within(min, max).0,
        _ => 0,
    }
}

impl Plan {
    /// Makes one from what the client asked for. `may_think` is false where Anthropic would refuse a request that thinks.
    pub(super) fn make(
        fields: &mut Fields<'_>,
        rules: &ModelRules,
        tokens_asked: Option<u64>,
        output_tokens_max: u64,
        may_think: bool,
    ) -> Result<Self, Refusal> {
        let output_tokens_max = output_tokens_max.max(1);
        let tokens_max = tokens_asked.unwrap_or(output_tokens_max).min(output_tokens_max);
        let unsaid = Self { tokens_max, thinking: Mode::Unsaid, effort: None, shows_thinking: rules.show_thinking };
        let Some(effort) = Effort::read(fields)? else { return Ok(unsaid) };
        let plan = match rules.thinking {
            Thinking::Budget { .. } if effort == Effort::None => return Ok(unsaid),
            Thinking::Budget { min, max } if may_think => {
                let (wanted, least) = effort.budget_within(min, max);
                unsaid.with_budget(wanted, least, output_tokens_max)
            }
            Thinking::Adaptive { .. } if effort == Effort::None => Some(Self { thinking: Mode::Disabled, ..unsaid }),
            Thinking::Adaptive { xhigh } => {
                let thinking = if may_think { Mode::Adaptive } else { Mode::Unsaid };
                Some(Self { thinking, effort: Some(effort.word(xhigh)), ..unsaid })
            }
            Thinking::Budget { .. } | Thinking::Switch | Thinking::Level | Thinking::None => None,
        };
        let Some(plan) = plan else {
            if effort != Effort::None {
                fields.drop("reasoning_effort");
            }
            return Ok(Self { tokens_max, thinking: Mode::Unsaid, effort: None, shows_thinking: false });
        };
        Ok(plan)
    }

    /// Anthropic counts thinking into the answer's length. What the client asked for is meant for the answer, so that the
    /// length grows by the budget, as far as it may; if the budget has to give way, a quarter is left for the answer.
    fn with_budget(self, wanted: u64, least: u64, output_tokens_max: u64) -> Option<Self> {
        let asked = self.tokens_max;
        let tokens_max = asked.saturating_add(wanted).min(output_tokens_max);
        let room = (tokens_max - asked).max(tokens_max - tokens_max / 4).min(tokens_max.saturating_sub(1));
        let budget = wanted.min(room);
        (budget >= least).then_some(Self { tokens_max, thinking: Mode::Budget(budget), ..self })
    }

    pub(super) fn thinks(&self) -> bool {
        matches!(self.thinking, Mode::Budget(_) | Mode::Adaptive)
    }

    /// Appends `thinking`.
    pub(super) fn write_thinking(&self, out: &mut Vec<u8>) {
        let text = match self.thinking {
            Mode::Unsaid => return,
            Mode::Disabled => ",\"thinking\":{\"type\":\"disabled\"".to_owned(),
            Mode::Adaptive => ",\"thinking\":{\"type\":\"adaptive\"".to_owned(),
            Mode::Budget(tokens) => format!(",\"thinking\":{{\"type\":\"enabled\",\"budget_tokens\":{tokens}"),
        };
        out.extend_from_slice(text.as_bytes());
        if self.shows_thinking && self.thinks() {
            out.extend_from_slice(b",\"display\":\"summarized\"");
        }
        out.push(b'}');
    }

    /// The word for `output_config.effort`.
    pub(super) fn effort(&self) -> Option<&'static str> {
        self.effort
    }
}

/// Appends temperature, top_p and top_k, as far as the model takes them.
pub(super) fn write_sampling(out: &mut Vec<u8>, fields: &mut Fields<'_>, rules: &ModelRules, thinks: bool) {
    let is_free = rules.sampling != Sampling::None;
    let (temperature, top_p, top_k) = (fields.temperature, fields.top_p, fields.top_k);
    let keeps_temperature = is_free && !thinks;
    let displaces = keeps_temperature && temperature.is_some() && rules.sampling == Sampling::OneOf;
    let is_near_one = |text: &str| text.parse::<f64>().is_ok_and(|top_p| top_p >= TOP_P_THINKING_MIN);
    let keeps_top_p = is_free && !displaces && (!thinks || top_p.is_some_and(is_near_one));
    for (name, value, keeps) in [
        // OpenAI's scale goes to 2, Anthropic's to 1.
        ("temperature", temperature.map(|text| if exceeds_one(text) { "1" } else { text }), keeps_temperature),
        ("top_p", top_p, keeps_top_p),
        ("top_k", top_k, is_free && !thinks),
    ] {
        match value {
            Some(value) if keeps => out.extend_from_slice(format!(",\"{name}\":{value}").as_bytes()),
            Some(_) => fields.drop(name),
            None => {}
        }
    }
}

fn exceeds_one(number: &str) -> bool {
    number.parse::<f64>().is_ok_and(|number| number > 1.0)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde_json::{Value, json};

    use super::super::tests::{refused, tool, translate_by, with};
    use super::*;
    use crate::relay::dialect::openai::ChatRequest;

    #[test]
    fn thinking_is_asked_for_as_the_model_can_be_asked() {
        let budget = ModelRules { thinking: Thinking::Budget { min: 1024, max: 32_000 }, ..ModelRules::default() };
        let adaptive = ModelRules { thinking: Thinking::Adaptive { xhigh: false }, ..ModelRules::default() };
        let newest =
            ModelRules { thinking: Thinking::Adaptive { xhigh: true }, show_thinking: true, ..ModelRules::default() };
        let enabled = |tokens: u64| json!({"type":"enabled","budget_tokens":tokens});
        for (rules, effort, asked, thinking, effort_sent, tokens_max) in [
            (budget, "none", 100, Value::Null, Value::Null, 100),
            (budget, "minimal", 100, enabled(1024), Value::Null, 1124),
            (budget, "high", 8000, enabled(16_384), Value::Null, 24_384),
            (budget, "xhigh", 60_000, enabled(32_000), Value::Null, 64_000),
            (adaptive, "none", 100, json!({"type":"disabled"}), Value::Null, 100),
            (adaptive, "minimal", 100, json!({"type":"adaptive"}), json!("low"), 100),
            (adaptive, "xhigh", 100, json!({"type":"adaptive"}), json!("high"), 100),
            (newest, "xhigh", 100, json!({"type":"adaptive","display":"summarized"}), json!("xhigh"), 100),
        ] {
            let body = with(json!({"reasoning_effort": effort, "max_completion_tokens": asked}));
            let (sent, dropped) = translate_by(&body, &rules).unwrap();
            assert_eq!((&sent["thinking"], &sent["output_config"]["effort"]), (&thinking, &effort_sent), "{effort}");
            assert_eq!((&sent["max_tokens"], dropped.len()), (&json!(tokens_max), 0), "{effort}");
            let chat = ChatRequest::parse(Bytes::from(body.to_string())).unwrap();
            assert_eq!(super::super::output_ceiling(&chat, &rules, 64_000), tokens_max, "{effort}: what is held for");
        }
        let (sent, dropped) = translate_by(&with(json!({"reasoning_effort": "low"})), &ModelRules::default()).unwrap();
        assert_eq!((sent.get("thinking"), dropped), (None, vec!["reasoning_effort".to_owned()]));
        assert_eq!(refused(&with(json!({"reasoning_effort": "much"})), &budget).1, "reasoning_effort");
        // Where the answer may be no longer, the budget gives way, and thinking with it.
        let chat = ChatRequest::parse(Bytes::from(with(json!({"reasoning_effort": "high"})).to_string())).unwrap();
        for (most, expected) in [(4096, enabled(3072)), (1200, Value::Null)] {
            let sent: Value =
                serde_json::from_slice(&super::super::request(&chat, "m", &budget, most).unwrap().body).unwrap();
            assert_eq!((&sent["thinking"], &sent["max_tokens"]), (&expected, &json!(most)));
        }
    }

    #[test]
    fn thinking_gives_way_where_it_would_be_refused() {
        let budget = ModelRules { thinking: Thinking::Budget { min: 1024, max: 32_000 }, ..ModelRules::default() };
        let adaptive = ModelRules { thinking: Thinking::Adaptive { xhigh: false }, ..ModelRules::default() };
        let forced = with(json!({"reasoning_effort":"low","tools":[tool("f")],"tool_choice":"required"}));
        let signed = json!([{"index":0,"type":"thinking","thinking":"t","signature":"s"}]);
        let loop_with = |blocks: Value| {
            json!({"model":"m","reasoning_effort":"low","tools":[tool("f")],"messages":[
            {"role":"user","content":"a"},
            {"role":"assistant","content":null,"thinking_blocks":blocks,"tool_calls":[{"id":"c","type":"function","function":{"name":"f","arguments":"{}"}}]},
            {"role":"tool","tool_call_id":"c","content":"r"}]})
        };
        for (body, thinks) in [(forced, false), (loop_with(Value::Null), false), (loop_with(signed.clone()), true)] {
            let (sent, dropped) = translate_by(&body, &budget).unwrap();
            assert_eq!((sent.get("thinking").is_some(), dropped.is_empty()), (thinks, thinks), "{body}");
            let (sent, dropped) = translate_by(&body, &adaptive).unwrap();
            assert_eq!((sent.get("thinking").is_some(), dropped.is_empty()), (thinks, true), "{body}");
            assert_eq!(sent["output_config"]["effort"], "low");
        }
        let (sent, _) = translate_by(&loop_with(signed), &budget).unwrap();
        assert_eq!(sent["messages"][1]["content"][0], json!({"type":"thinking","thinking":"t","signature":"s"}));
    }

    #[test]
    fn sampling_is_what_the_model_takes() {
        let asked = json!({"temperature": 1.7, "top_p": 0.5, "top_k": 40});
        let rules =
            |sampling| ModelRules { sampling, thinking: Thinking::Adaptive { xhigh: true }, ..ModelRules::default() };
        for (rules, effort, kept, dropped) in [
            (rules(Sampling::Free), "none", json!({"temperature": 1, "top_p": 0.5, "top_k": 40}), vec![]),
            (rules(Sampling::OneOf), "none", json!({"temperature": 1, "top_k": 40}), vec!["top_p"]),
            (rules(Sampling::None), "none", json!({}), vec!["temperature", "top_p", "top_k"]),
            (rules(Sampling::Free), "low", json!({}), vec!["temperature", "top_p", "top_k"]),
        ] {
            let mut body = with(asked.clone());
            body["reasoning_effort"] = json!(effort);
            let (sent, named) = translate_by(&body, &rules).unwrap();
            for key in ["temperature", "top_p", "top_k"] {
                assert_eq!(sent.get(key), kept.get(key), "{key} {effort}");
            }
            assert_eq!(named, dropped);
        }
        let near = with(json!({"top_p": 0.97, "reasoning_effort": "low"}));
        assert_eq!(translate_by(&near, &rules(Sampling::Free)).unwrap().0["top_p"], 0.97);
    }
}
