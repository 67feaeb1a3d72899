//! What a model takes and refuses, as written: on a model where it is true of all its targets, on a target where it is
//! true there. The target's word wins.

use super::reader::{Table, Value};
use crate::relay::route::{ModelRules, Sampling, SchemaForm, Thinking};

/// The rules that a table names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct NamedRules {
    thinking: Option<Thinking>,
    sampling: Option<Sampling>,
    schema: Option<SchemaForm>,
    prefill: Option<bool>,
    schema_with_tools: Option<bool>,
    show_thinking: Option<bool>,
    system_turns: Option<bool>,
}

impl NamedRules {
    /// All rules: what is not named here is as the model has it, and else the dialect's plain behaviour.
    pub(super) fn or(&self, model: &Self) -> ModelRules {
        ModelRules {
            thinking: self.thinking.or(model.thinking).unwrap_or_default(),
            sampling: self.sampling.or(model.sampling).unwrap_or_default(),
            schema: self.schema.or(model.schema).unwrap_or_default(),
            prefill: self.prefill.or(model.prefill).unwrap_or_default(),
            schema_with_tools: self.schema_with_tools.or(model.schema_with_tools).unwrap_or_default(),
            show_thinking: self.show_thinking.or(model.show_thinking).unwrap_or_default(),
            system_turns: self.system_turns.or(model.system_turns).unwrap_or_default(),
        }
    }
}

/// Reads the rules of a model's or a target's table. `None` when any is wrong, which has been reported.
pub(super) fn read(table: &Table<'_>) -> Option<NamedRules> {
    let thinking = optional(table, "thinking", thinking);
    let sampling = optional(table, "sampling", |value| {
        one_of(value, &[("free", Sampling::Free), ("one_of", Sampling::OneOf), ("none", Sampling::None)])
    });
    let schema = optional(table, "schema", |value| {
        let forms =
            [("native", SchemaForm::Native), ("forced_tool", SchemaForm::ForcedTool), ("none", SchemaForm::None)];
        one_of(value, &forms)
    });
    let prefill = optional(table, "prefill", |value| value.boolean());
    let schema_with_tools = optional(table, "schema_with_tools", |value| value.boolean());
    let show_thinking = optional(table, "show_thinking", |value| value.boolean());
    let system_turns = optional(table, "system_turns", |value| value.boolean());
    Some(NamedRules {
        thinking: thinking?,
        sampling: sampling?,
        schema: schema?,
        prefill: prefill?,
        schema_with_tools: schema_with_tools?,
        show_thinking: show_thinking?,
        system_turns: system_turns?,
    })
}

/// `None` is wrong, `Some(None)` not there.
fn optional<T>(table: &Table<'_>, key: &'static str, read: impl Fn(&Value<'_>) -> Option<T>) -> Option<Option<T>> {
    match table.optional(key) {
        Some(value) => read(&value).map(Some),
        None => Some(None),
    }
}

fn one_of<T: Copy>(value: &Value<'_>, words: &[(&str, T)]) -> Option<T> {
    let word = value.string()?;
    let found = words.iter().find(|(known, _)| *known == word).map(|(_, meaning)| *meaning);
    found.or_else(|| {
        let known: Vec<&str> = words.iter().map(|(known, _)| *known).collect();
        value.refuse(format_args!(
            "is not one of the words that are known here: {}; write one of them",
            known.join(", ")
        ))
    })
}

/// A form's name, or a table with what belongs to it.
fn thinking(value: &Value<'_>) -> Option<Thinking> {
    if value.is_string() {
        let forms = [
            ("none", Thinking::None),
            ("switch", Thinking::Switch),
            ("level", Thinking::Level),
            ("adaptive", Thinking::Adaptive { xhigh: false }),
        ];
        return one_of(value, &forms);
    }
    let table = value.table()?;
    let form = table.required("form", r#"write form = "budget" or form = "adaptive""#)?;
    let thinking = match one_of(&form, &[("budget", true), ("adaptive", false)])? {
        true => {
            let tokens = |value: Value<'_>| value.number(0..=u64::from(u32::MAX)).and_then(|n| u32::try_from(n).ok());
            let min = table.required("min", "write the least budget in tokens, 0 where thinking can be turned off");
            let (min, max) = (min.and_then(tokens), table.required("max", "write the largest budget in tokens"));
            let max = max.and_then(|value| match tokens(value) {
                Some(max) if min.is_some_and(|min| max < min) => {
                    table.report("max is less than min; raise it");
                    None
                }
                max => max,
            });
            min.zip(max).map(|(min, max)| Thinking::Budget { min, max })
        }
        false => {
            let xhigh = table.optional("xhigh").map_or(Some(false), |value| value.boolean());
            xhigh.map(|xhigh| Thinking::Adaptive { xhigh })
        }
    };
    table.finish();
    thinking
}

#[cfg(test)]
mod tests {
    use super::super::testing::{mistakes_of, with_root};
    use super::*;

    fn read_rules(toml: &str) -> Result<NamedRules, String> {
        let mut rules = None;
        let mistakes = with_root(toml, &|_| None, |root| rules = read(root));
        if mistakes.is_empty() { Ok(rules.unwrap()) } else { Err(mistakes_of(&mistakes)) }
    }

    #[test]
    fn a_targets_rules_stand_before_the_models() {
        let model = read_rules("thinking = 'level'\nsampling = 'one_of'\nprefill = true").unwrap();
        let target = read_rules(
            "thinking = { form = 'budget', min = 128, max = 32_768 }\nprefill = false\nschema = 'forced_tool'",
        )
        .unwrap();
        let expected = ModelRules {
            thinking: Thinking::Budget { min: 128, max: 32_768 },
            sampling: Sampling::OneOf,
            schema: SchemaForm::ForcedTool,
            prefill: false,
            ..ModelRules::default()
        };
        assert_eq!(target.or(&model), expected);
        assert_eq!(NamedRules::default().or(&NamedRules::default()), ModelRules::default());
    }

    #[test]
    fn forms_of_thinking_are_told_apart() {
        for (written, thinking) in [
            ("'none'", Thinking::None),
            ("'switch'", Thinking::Switch),
            ("'level'", Thinking::Level),
            ("'adaptive'", Thinking::Adaptive { xhigh: false }),
            ("{ form = 'adaptive', xhigh = true }", Thinking::Adaptive { xhigh: true }),
            ("{ form = 'budget', min = 0, max = 24_576 }", Thinking::Budget { min: 0, max: 24_576 }),
        ] {
            assert_eq!(read_rules(&format!("thinking = {written}")).unwrap().thinking, Some(thinking), "{written}");
        }
    }

    #[test]
    fn what_is_no_rule_is_told_with_its_line() {
        for (written, told) in [
            ("thinking = 'hard'", "test.toml:1: thinking: is not one of the words that are known here: none, switch"),
            ("thinking = { form = 'budget', min = 9, max = 1 }", "test.toml:1: thinking: max is less than min"),
            ("thinking = { form = 'budget', min = 9 }", "test.toml:1: thinking.max is missing"),
            ("thinking = { form = 'adaptive', min = 9 }", "test.toml:1: unknown key \"thinking.min\""),
            ("\nsampling = 'some'", "test.toml:2: sampling: is not one of the words"),
            ("schema = true", "test.toml:1: schema: must be a string"),
            ("prefill = 'yes'", "test.toml:1: prefill: must be true or false"),
        ] {
            let mistakes = read_rules(written).unwrap_err();
            assert!(mistakes.starts_with(told), "{written}: {mistakes}");
        }
    }
}
