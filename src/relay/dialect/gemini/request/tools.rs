//! Tools, and how they are to be chosen.

use std::collections::BTreeSet;

use super::Fields;
use super::read::{given, invalid, items, kind, members, members_of, missing, string, unsupported, wrong_type};
use super::schema::Reducer;
use crate::relay::json::{Kind, RawStr};
use crate::relay::refusal::Refusal;
use crate::relay::route::ModelRules;

/// How tools are to be chosen.
#[derive(Debug, Default)]
enum Choice {
    /// Not said.
    #[default]
    Open,
    Auto,
    Required,
    None,
    /// One of these must be called.
    Named(BTreeSet<Vec<u8>>),
    /// Any of these may be called.
    Allowed(BTreeSet<Vec<u8>>),
}

/// A function that the model may call.
struct Declaration<'a> {
    name: RawStr<'a>,
    description: Option<RawStr<'a>>,
    parameters: Option<&'a [u8]>,
}

/// Writes the members `tools` and `toolConfig`, if there are tools; says whether there are.
pub(super) fn write(out: &mut Vec<u8>, fields: &Fields<'_>, rules: &ModelRules) -> Result<bool, Refusal> {
    let choice = match fields.tool_choice {
        Some(choice) => Choice::read(choice)?,
        None => Choice::Open,
    };
    let declarations = match fields.tools {
        Some(tools) => declarations(tools)?,
        None => Vec::new(),
    };
    if declarations.is_empty() {
        return match choice {
            Choice::Open | Choice::Auto | Choice::None => Ok(false),
            _ => Err(invalid("tool_choice", "'tool_choice' is only allowed when 'tools' are specified.")),
        };
    }
    choice.check(&declarations)?;
    // Tools that must not be called are in the way of a schema, where a model takes only one of the two.
    if matches!(choice, Choice::None) && fields.response_format.is_some() && !rules.schema_with_tools {
        return Ok(false);
    }
    out.extend_from_slice(b",\"tools\":[{\"functionDeclarations\":[");
    let mut reducer = Reducer::default();
    let mut first = true;
    for (index, declaration) in declarations.iter().enumerate() {
        if !choice.allows(&declaration.name.decode()) {
            continue;
        }
        if !first {
            out.push(b',');
        }
        first = false;
        declaration.write(out, &mut reducer, index)?;
    }
    out.extend_from_slice(b"]}]");
    choice.write(out);
    Ok(true)
}

fn declarations(tools: &[u8]) -> Result<Vec<Declaration<'_>>, Refusal> {
    let mut declarations = Vec::new();
    items(tools, "tools", |cursor, index| {
        let param = format!("tools[{index}]");
        let (mut kind, mut function) = (None, None);
        members_of(cursor, &param, &mut |key, value| {
            match key {
                b"type" => kind = Some(value),
                b"function" => function = given(Some(value)),
                _ => {}
            }
            Ok(())
        })?;
        if kind.is_some_and(|kind| kind != b"\"function\"") {
            return Err(unsupported(&format!("{param}.type"), "tools that are no functions"));
        }
        let param = format!("{param}.function");
        let Some(function) = function else { return Err(missing(&param)) };
        declarations.push(declaration(function, &param)?);
        Ok(())
    })?;
    Ok(declarations)
}

fn declaration<'a>(function: &'a [u8], param: &str) -> Result<Declaration<'a>, Refusal> {
    let (mut name, mut description, mut parameters) = (None, None, None);
    members(function, param, |key, value| {
        match key {
            b"name" => name = Some(string(value, &format!("{param}.name"))?),
            b"description" if value != b"null" => {
                description = Some(string(value, &format!("{param}.description"))?);
            }
            b"parameters" => parameters = given(Some(value)),
            _ => {}
        }
        Ok(())
    })?;
    Ok(Declaration { name: name.ok_or_else(|| missing(&format!("{param}.name")))?, description, parameters })
}

impl Declaration<'_> {
    fn write(&self, out: &mut Vec<u8>, reducer: &mut Reducer, index: usize) -> Result<(), Refusal> {
        out.extend_from_slice(b"{\"name\":\"");
        out.extend_from_slice(self.name.raw());
        out.push(b'"');
        if let Some(description) = self.description.filter(|description| !description.is_empty()) {
            out.extend_from_slice(b",\"description\":\"");
            out.extend_from_slice(description.raw());
            out.push(b'"');
        }
        if let Some(parameters) = self.parameters {
            let param = format!("tools[{index}].function.parameters");
            let before = out.len();
            out.extend_from_slice(b",\"parameters\":");
            if !reducer.reduce_parameters(out, parameters, &param)? {
                // Gemini refuses an object without properties where parameters are declared.
                out.truncate(before);
            }
        }
        out.push(b'}');
        Ok(())
    }
}

impl Choice {
    fn read(value: &[u8]) -> Result<Self, Refusal> {
        const PARAM: &str = "tool_choice";
        match kind(value)? {
            Kind::String => match &*string(value, PARAM)?.decode() {
                b"auto" => Ok(Self::Auto),
                b"required" => Ok(Self::Required),
                b"none" => Ok(Self::None),
                _ => Err(invalid(PARAM, "Invalid 'tool_choice': expected 'none', 'auto' or 'required', or an object.")),
            },
            Kind::Object => {
                let (mut kind, mut function, mut allowed) = (None, None, None);
                members(value, PARAM, |key, value| {
                    match key {
                        b"type" => kind = Some(string(value, "tool_choice.type")?.decode()),
                        b"function" => function = Some(value),
                        b"allowed_tools" => allowed = Some(value),
                        _ => {}
                    }
                    Ok(())
                })?;
                match (kind.as_deref(), function, allowed) {
                    (Some(b"function"), Some(function), _) => {
                        Ok(Self::Named([name_of(function, "tool_choice.function")?].into()))
                    }
                    (Some(b"allowed_tools"), _, Some(allowed)) => Self::allowed(allowed),
                    (Some(b"function"), None, _) => Err(missing("tool_choice.function")),
                    (Some(b"allowed_tools"), _, None) => Err(missing("tool_choice.allowed_tools")),
                    (None, ..) => Err(missing("tool_choice.type")),
                    _ => Err(unsupported("tool_choice.type", "a choice of tools that are no functions")),
                }
            }
            _ => Err(wrong_type(PARAM, "a string or an object")),
        }
    }

    fn allowed(value: &[u8]) -> Result<Self, Refusal> {
        let (mut mode, mut names) = (None, BTreeSet::new());
        members(value, "tool_choice.allowed_tools", |key, value| {
            match key {
                b"mode" => mode = Some(string(value, "tool_choice.allowed_tools.mode")?.decode()),
                b"tools" => {
                    const PARAM: &str = "tool_choice.allowed_tools.tools";
                    items(value, PARAM, |cursor, index| {
                        let param = format!("{PARAM}[{index}].function");
                        let mut function = None;
                        members_of(cursor, PARAM, &mut |key, value| {
                            if key == b"function" {
                                function = Some(value);
                            }
                            Ok(())
                        })?;
                        names.insert(name_of(function.ok_or_else(|| missing(&param))?, &param)?);
                        Ok(())
                    })?;
                }
                _ => {}
            }
            Ok(())
        })?;
        match mode.as_deref() {
            Some(b"auto") => Ok(Self::Allowed(names)),
            Some(b"required") => Ok(Self::Named(names)),
            _ => Err(invalid("tool_choice.allowed_tools.mode", "Invalid mode: expected 'auto' or 'required'.")),
        }
    }

    /// Checks that all tools that are named are there.
    fn check(&self, declarations: &[Declaration<'_>]) -> Result<(), Refusal> {
        let (Self::Named(names) | Self::Allowed(names)) = self else { return Ok(()) };
        let declared: BTreeSet<Vec<u8>> = declarations.iter().map(|tool| tool.name.decode().into_owned()).collect();
        if names.is_empty() || !names.is_subset(&declared) {
            return Err(invalid("tool_choice", "Invalid 'tool_choice': it names a tool that is not in 'tools'."));
        }
        Ok(())
    }

    fn allows(&self, name: &[u8]) -> bool {
        !matches!(self, Self::Allowed(names) if !names.contains(name))
    }

    fn write(&self, out: &mut Vec<u8>) {
        let mode: &[u8] = match self {
            Self::Open => return,
            Self::Auto | Self::Allowed(_) => b"AUTO",
            Self::Required | Self::Named(_) => b"ANY",
            Self::None => b"NONE",
        };
        out.extend_from_slice(b",\"toolConfig\":{\"functionCallingConfig\":{\"mode\":\"");
        out.extend_from_slice(mode);
        out.push(b'"');
        if let Self::Named(names) = self {
            out.extend_from_slice(b",\"allowedFunctionNames\":[");
            for (index, name) in names.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                crate::relay::json::write_string(out, &String::from_utf8_lossy(name));
            }
            out.push(b']');
        }
        out.extend_from_slice(b"}}");
    }
}

fn name_of(function: &[u8], param: &str) -> Result<Vec<u8>, Refusal> {
    let mut name = None;
    members(function, param, |key, value| {
        if key == b"name" {
            name = Some(string(value, &format!("{param}.name"))?.decode().into_owned());
        }
        Ok(())
    })?;
    name.ok_or_else(|| missing(&format!("{param}.name")))
}
