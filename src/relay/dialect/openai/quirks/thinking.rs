//! `reasoning_effort` in the words of vendors that switch thinking on and off.
//!
//! Which words, the provider's quirk says; how much of the effort the model has a place for, its rule `thinking`. A client
//! that sends the vendor's own switch has said what it wants, and is not corrected.

use crate::relay::dialect::openai::ChatRequest;
use crate::relay::refusal::{Cause, Refusal};
use crate::relay::route::{Quirk, Quirks, Thinking};

/// The efforts that clients may ask for, OpenAI's and `max`, with the budget of tokens that each stands for where a model
/// wants one. The middle three are as in Google's table for its own OpenAI-compatible endpoint (WIRE §4).
const EFFORTS: [(&str, u32); 7] = [
    ("none", 0),
    ("minimal", 512),
    ("low", 1024),
    ("medium", 8192),
    ("high", 24_576),
    ("xhigh", 32_768),
    ("max", u32::MAX),
];

/// What a request says of thinking, and what it would be refused for.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Asked<'a> {
    /// `reasoning_effort`, where it is there and not null.
    pub(super) effort: Option<&'a str>,
    /// The vendor's own switch, as the client sent it: whether it is known to be off.
    pub(super) vendors: Option<Own>,
    /// A tool call is forced.
    pub(super) forces_tool: bool,
    /// The answer is to be a stream.
    pub(super) streams: bool,
}

/// The vendor's own switch, sent by the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Own {
    /// It is off.
    Off,
    /// It is on, or nobody here can tell.
    Other,
}

/// What is to be done about `reasoning_effort`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// It is not sent.
    pub(super) cuts_effort: bool,
    /// It is not sent, and has not been heeded either.
    pub(super) drops_effort: bool,
    /// Members that are sent, `"key":value` each.
    pub(super) added: Vec<String>,
    /// This request will not be thought about, as far as the relay knows.
    pub(super) is_off: bool,
}

/// Works out what to send.
///
/// # Errors
/// An effort that nobody knows.
pub(super) fn plan(asked: Asked<'_>, quirks: Quirks, form: Thinking) -> Result<Plan, Refusal> {
    if !quirks.has_any(&[Quirk::ThinkingObject, Quirk::EnableThinking]) {
        return Ok(Plan::default());
    }
    let budget = asked.effort.map(budget).transpose()?;
    let is_asked = budget.is_some();
    if form == Thinking::None {
        return Ok(Plan { cuts_effort: is_asked, drops_effort: is_asked, added: Vec::new(), is_off: true });
    }
    if let Some(own) = asked.vendors {
        // Only a word beside the switch can still be of use.
        let drops_effort = is_asked && !matches!(form, Thinking::Level | Thinking::Adaptive { .. });
        return Ok(Plan { cuts_effort: drops_effort, drops_effort, added: Vec::new(), is_off: own == Own::Off });
    }
    let wants = budget.is_some_and(|budget| budget > 0);
    let must_not = (asked.forces_tool && quirks.has(Quirk::NoForcedToolWhileThinking))
        || (!asked.streams && quirks.has(Quirk::ThinksInStreamsOnly));
    if must_not {
        return Ok(Plan { cuts_effort: is_asked, drops_effort: wants, added: vec![off(quirks)], is_off: true });
    }
    let Some(budget) = budget else { return Ok(Plan::default()) };
    // Half of a switch is nearer to off than to all of it.
    if budget == 0 || (form == Thinking::Switch && asked.effort == Some("minimal")) {
        return Ok(Plan { cuts_effort: true, drops_effort: false, added: vec![off(quirks)], is_off: true });
    }
    let is_object = quirks.has(Quirk::ThinkingObject);
    let added = match form {
        Thinking::Budget { min, max } => {
            let budget = budget.max(min).min(max);
            match is_object {
                true => vec![format!(r#""thinking":{{"type":"enabled","budget_tokens":{budget}}}"#)],
                // Qwen's larger models refuse to think without a budget (Qwen-Agent#941).
                false => vec![r#""enable_thinking":true"#.into(), format!(r#""thinking_budget":{budget}"#)],
            }
        }
        _ if is_object => vec![r#""thinking":{"type":"enabled"}"#.into()],
        _ => vec![r#""enable_thinking":true"#.into()],
    };
    let cuts_effort = matches!(form, Thinking::Budget { .. } | Thinking::Switch);
    Ok(Plan { cuts_effort, drops_effort: false, added, is_off: false })
}

/// How much longer than it was asked to be an answer may become, because the vendors that know `enable_thinking` count what is
/// thought apart from `max_tokens`.
pub(super) fn apart(request: &ChatRequest, quirks: Quirks, form: Thinking) -> u64 {
    if !quirks.has(Quirk::EnableThinking) {
        return 0;
    }
    if let Some(own) = request.thinking_asked() {
        return own;
    }
    if form == Thinking::None || (!request.stream() && quirks.has(Quirk::ThinksInStreamsOnly)) {
        return 0;
    }
    // A model that is not told thinks for as long as it likes.
    let Some(effort) = request.effort() else { return u64::MAX };
    match (str::from_utf8(effort).ok().and_then(|effort| budget(effort).ok()), form) {
        (Some(0), _) => 0,
        (Some(budget), Thinking::Budget { min, max }) => budget.max(min).min(max).into(),
        _ => u64::MAX,
    }
}

/// The least that the vendors take as a budget. SiliconFlow's documentation.
const BUDGET_TOKENS_MIN: u64 = 128;

/// What a limit that thinking counts into leaves for the answer, and for the thinking before it: up to three quarters, or
/// nothing where that is too little to think in.
pub(super) fn share(limit: u64, asked: u64, apart: u64) -> (u64, u64) {
    let answer_min = asked.min(limit.div_ceil(4));
    let budget = Some(apart.min(limit.saturating_sub(answer_min))).filter(|budget| *budget >= BUDGET_TOKENS_MIN);
    let budget = budget.unwrap_or(0);
    (asked.min(limit.saturating_sub(budget)), budget)
}

impl Plan {
    /// Holds the thinking to so many tokens, whatever was said of it before.
    pub(super) fn limit(&mut self, budget: u64, quirks: Quirks) {
        if self.is_off {
            return;
        }
        self.added.retain(|member| !member.starts_with(r#""thinking_budget""#));
        if budget == 0 {
            self.added = vec![off(quirks)];
            self.is_off = true;
        } else {
            self.added.push(format!(r#""thinking_budget":{budget}"#));
        }
    }

    /// Whether that member is added, or would contradict one that is.
    pub(super) fn replaces(&self, name: &str) -> bool {
        let is_added = self.added.iter().any(|member| member[1..].starts_with(name));
        is_added || (self.is_off && name == "thinking_budget")
    }
}

fn off(quirks: Quirks) -> String {
    match quirks.has(Quirk::ThinkingObject) {
        true => r#""thinking":{"type":"disabled"}"#.into(),
        false => r#""enable_thinking":false"#.into(),
    }
}

fn budget(effort: &str) -> Result<u32, Refusal> {
    let known = EFFORTS.iter().find(|(word, _)| *word == effort);
    known.map(|(_, budget)| *budget).ok_or_else(|| {
        let words: Vec<&str> = EFFORTS.iter().map(|(word, _)| *word).collect();
        let message = format!("Invalid value for 'reasoning_effort': expected one of {}.", words.join(", "));
        Refusal::new(Cause::InvalidValue, message).param("reasoning_effort")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OBJECT: &[Quirk] = &[Quirk::ThinkingObject, Quirk::NoForcedToolWhileThinking];
    const FLAG: &[Quirk] = &[Quirk::EnableThinking, Quirk::ThinksInStreamsOnly];

    fn planned(asked: Asked<'_>, quirks: &[Quirk], form: Thinking) -> (String, bool, bool) {
        let plan = plan(asked, quirks.iter().copied().collect(), form).unwrap();
        (plan.added.join(","), plan.cuts_effort, plan.drops_effort)
    }

    fn effort(effort: &str) -> Asked<'_> {
        Asked { effort: Some(effort), streams: true, ..Asked::default() }
    }

    #[test]
    fn an_effort_becomes_what_the_model_has_a_place_for() {
        let budget = Thinking::Budget { min: 0, max: 30_000 };
        for (asked, quirks, form, added, cuts) in [
            ("high", OBJECT, Thinking::Switch, r#""thinking":{"type":"enabled"}"#, true),
            ("minimal", OBJECT, Thinking::Switch, r#""thinking":{"type":"disabled"}"#, true),
            ("none", OBJECT, Thinking::Level, r#""thinking":{"type":"disabled"}"#, true),
            ("xhigh", OBJECT, Thinking::Level, r#""thinking":{"type":"enabled"}"#, false),
            ("low", OBJECT, budget, r#""thinking":{"type":"enabled","budget_tokens":1024}"#, true),
            ("low", FLAG, budget, r#""enable_thinking":true,"thinking_budget":1024"#, true),
            ("max", FLAG, budget, r#""enable_thinking":true,"thinking_budget":30000"#, true),
            ("none", FLAG, budget, r#""enable_thinking":false"#, true),
            ("high", FLAG, Thinking::Level, r#""enable_thinking":true"#, false),
        ] {
            assert_eq!(planned(effort(asked), quirks, form), (added.to_owned(), cuts, false), "{asked} {form:?}");
        }
    }

    #[test]
    fn what_has_no_place_is_dropped_by_name() {
        assert_eq!(planned(effort("high"), OBJECT, Thinking::None), (String::new(), true, true));
        assert_eq!(planned(Asked::default(), OBJECT, Thinking::None), (String::new(), false, false));
        // Without a quirk it is sent as it is.
        assert_eq!(planned(effort("whatever"), &[], Thinking::None), (String::new(), false, false));
    }

    #[test]
    fn what_cannot_be_thought_about_is_not() {
        let forced = Asked { forces_tool: true, ..effort("high") };
        assert_eq!(planned(forced, OBJECT, Thinking::Switch), (r#""thinking":{"type":"disabled"}"#.into(), true, true));
        let unasked = Asked { effort: None, ..forced };
        assert_eq!(
            planned(unasked, OBJECT, Thinking::Switch),
            (r#""thinking":{"type":"disabled"}"#.into(), false, false)
        );
        assert_eq!(planned(forced, FLAG, Thinking::Level), (r#""enable_thinking":true"#.into(), false, false));
        let whole = Asked { streams: false, ..effort("none") };
        assert_eq!(planned(whole, FLAG, Thinking::Level), (r#""enable_thinking":false"#.into(), true, false));
    }

    #[test]
    fn the_clients_own_switch_stands() {
        let own = Asked { vendors: Some(Own::Other), forces_tool: true, ..effort("high") };
        assert_eq!(planned(own, OBJECT, Thinking::Switch), (String::new(), true, true));
        assert_eq!(planned(own, OBJECT, Thinking::Level), (String::new(), false, false));
    }

    #[test]
    fn an_effort_that_nobody_knows_is_refused() {
        let quirks = OBJECT.iter().copied().collect();
        let refusal = plan(effort("hardest"), quirks, Thinking::Switch).unwrap_err();
        assert_eq!((refusal.cause, refusal.param.as_deref()), (Cause::InvalidValue, Some("reasoning_effort")));
    }
}
