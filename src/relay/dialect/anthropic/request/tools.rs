//! Tools, and which of them the model may or must call.

use super::cache::{CacheMark, CacheMarks, read_mark, write_mark};
use super::fields::Fields;
use super::format::Schema;
use super::refuse::Path;
use crate::relay::dialect::anthropic::SCHEMA_TOOL;
use crate::relay::dialect::anthropic::text::push_string;
use crate::relay::json::{Cursor, Kind, RawStr, write_string};
use crate::relay::refusal::Refusal;
use crate::relay::route::{ModelRules, SchemaForm};

/// How many tools Anthropic holds to their schemas in one request. Those behind them are not held.
const STRICT_TOOLS_MAX: usize = 20;

/// What a tool without parameters takes.
const NO_PARAMETERS: &[u8] = br#"{"type":"object","properties":{}}"#;

/// The tools of a request.
#[derive(Debug)]
pub(super) struct Tools<'a> {
    tools: Vec<Tool<'a>>,
    choice: Choice,
    one_at_a_time: bool,
}

#[derive(Debug)]
struct Tool<'a> {
    name: RawStr<'a>,
    description: Option<RawStr<'a>>,
    parameters: &'a [u8],
    is_strict: bool,
    mark: CacheMark<'a>,
}

/// Which tools are called.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Choice {
    Auto,
    None,
    Any,
    Named(Box<str>),
}

impl<'a> Tools<'a> {
    /// Reads the fields that are about tools.
    pub(super) fn read(fields: &mut Fields<'a>, rules: &ModelRules, marks: &mut CacheMarks) -> Result<Self, Refusal> {
        let mut tools = Vec::new();
        if let Some(json) = fields.tools {
            Path::Field("tools").items(&mut Cursor::new(json), |path, cursor| {
                let tool = Tool::read(&path, cursor)?;
                marks.count(tool.mark, &path)?;
                tools.push(tool);
                Ok(())
            })?;
        }
        let mut strict = 0;
        for tool in &mut tools {
            strict += usize::from(tool.is_strict);
            // A model that knows no schema for its answer knows none for its calls.
            tool.is_strict &= rules.schema == SchemaForm::Native && strict <= STRICT_TOOLS_MAX;
        }
        let mut choice = Choice::Auto;
        if let Some(json) = fields.tool_choice {
            choice = read_choice(json, &mut tools)?;
            if tools.is_empty() && !matches!(choice, Choice::Auto | Choice::None) {
                fields.drop("tool_choice");
            }
        }
        Ok(Self { tools, choice, one_at_a_time: fields.parallel_tool_calls == Some(false) })
    }

    /// Whether the model must call a tool; then it may not think.
    pub(super) fn is_forced(&self, schema: Option<&Schema<'_>>) -> bool {
        let has_choice = !self.tools.is_empty() && matches!(self.choice, Choice::Any | Choice::Named(_));
        has_choice || schema.is_some()
    }

    /// Appends what is sent of them. `schema` is the one that is asked for as a tool; `called` are the tools that the
    /// conversation speaks of, of which Anthropic wants to know.
    pub(super) fn write(&self, out: &mut Vec<u8>, schema: Option<&Schema<'_>>, called: &[Box<str>]) {
        // A tool that must be called is asked for before the answer is.
        let schema = schema.filter(|_| !self.is_forced(None));
        if self.tools.is_empty() && schema.is_none() {
            if !called.is_empty() {
                write_called(out, called);
            }
            return;
        }
        out.extend_from_slice(b",\"tools\":[");
        for (index, tool) in self.tools.iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            tool.write(out);
        }
        if let Some(schema) = schema {
            if !self.tools.is_empty() {
                out.push(b',');
            }
            schema.write_tool(out);
        }
        out.push(b']');
        let choice = match (schema, &self.choice) {
            (Some(_), Choice::None) => &Choice::Named(SCHEMA_TOOL.into()),
            (Some(_), _) if self.tools.is_empty() => &Choice::Named(SCHEMA_TOOL.into()),
            // Either the client's tools are called, or the answer is given.
            (Some(_), _) => &Choice::Any,
            (None, choice) => choice,
        };
        self.write_choice(out, choice);
    }

    fn write_choice(&self, out: &mut Vec<u8>, choice: &Choice) {
        if *choice == Choice::Auto && !self.one_at_a_time {
            return;
        }
        out.extend_from_slice(b",\"tool_choice\":{\"type\":\"");
        out.extend_from_slice(match choice {
            Choice::Auto => b"auto\"",
            Choice::None => b"none\"",
            Choice::Any => b"any\"",
            Choice::Named(_) => b"tool\"",
        });
        if let Choice::Named(name) = choice {
            out.extend_from_slice(b",\"name\":");
            write_string(out, name);
        }
        if self.one_at_a_time && *choice != Choice::None {
            out.extend_from_slice(b",\"disable_parallel_tool_use\":true");
        }
        out.push(b'}');
    }
}

impl<'a> Tool<'a> {
    fn read(path: &Path<'_>, cursor: &mut Cursor<'a>) -> Result<Self, Refusal> {
        let (mut is_function, mut function, mut mark) = (true, None, None);
        path.members(cursor, |key, cursor| {
            match key {
                b"type" => is_function = path.field("type").string(cursor)?.raw() == b"function",
                b"function" => function = Some(cursor.raw()?),
                b"cache_control" => mark = read_mark(path, cursor)?,
                _ => cursor.skip()?,
            }
            Ok(())
        })?;
        if !is_function {
            return Err(path.field("type").invalid("This model's provider takes tools of type 'function' only."));
        }
        let path = path.field("function");
        let function = function.ok_or_else(|| path.missing())?;
        let (mut name, mut description, mut parameters, mut is_strict) = (None, None, None, false);
        path.members(&mut Cursor::new(function), |key, cursor| {
            match key {
                b"name" => name = Some(path.field("name").string(cursor)?),
                b"description" => description = path.field("description").optional_string(cursor)?,
                b"parameters" => parameters = path.field("parameters").optional_object(cursor)?,
                b"strict" => is_strict = path.field("strict").optional_boolean(cursor)?.unwrap_or(false),
                b"cache_control" => mark = read_mark(&path, cursor)?,
                _ => cursor.skip()?,
            }
            Ok(())
        })?;
        let path = path.field("name");
        let name = name.ok_or_else(|| path.missing())?;
        if name.is_empty() {
            return Err(path.invalid("Invalid name: an empty string."));
        }
        if *name.decode() == *SCHEMA_TOOL.as_bytes() {
            return Err(path.invalid(format!("The name '{SCHEMA_TOOL}' is reserved.")));
        }
        Ok(Self { name, description, parameters: parameters.unwrap_or(b"{}"), is_strict, mark })
    }

    fn is_named(&self, name: &str) -> bool {
        *self.name.decode() == *name.as_bytes()
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"name\":");
        push_string(out, self.name);
        if let Some(description) = self.description.filter(|description| !description.is_empty()) {
            out.extend_from_slice(b",\"description\":");
            push_string(out, description);
        }
        out.extend_from_slice(b",\"input_schema\":");
        write_parameters(out, self.parameters);
        if self.is_strict {
            out.extend_from_slice(b",\"strict\":true");
        }
        write_mark(out, self.mark);
        out.push(b'}');
    }
}

/// Appends a tool's schema. Its root must say that it is an object; OpenAI lets that go without saying.
fn write_parameters(out: &mut Vec<u8>, parameters: &[u8]) {
    let (mut is_empty, mut says_what) = (true, false);
    let mut look = || {
        let mut cursor = Cursor::new(parameters);
        let mut members = cursor.object()?;
        while let Some(key) = cursor.next_member(&mut members)? {
            is_empty = false;
            says_what |= matches!(key.raw(), b"type" | b"$ref" | b"anyOf" | b"oneOf" | b"allOf");
            cursor.skip()?;
        }
        Ok::<_, crate::relay::json::Fault>(())
    };
    // The text was checked with the body.
    let _ = look();
    if is_empty {
        out.extend_from_slice(NO_PARAMETERS);
    } else if says_what {
        out.extend_from_slice(parameters);
    } else {
        out.extend_from_slice(b"{\"type\":\"object\",");
        out.extend_from_slice(&parameters[1..]);
    }
}

/// Tools that the conversation has calls of and the request no longer has: Anthropic wants each defined, and the model is not
/// to call them.
fn write_called(out: &mut Vec<u8>, called: &[Box<str>]) {
    out.extend_from_slice(b",\"tools\":[");
    for (index, name) in called.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        out.extend_from_slice(b"{\"name\":");
        write_string(out, name);
        out.extend_from_slice(b",\"input_schema\":");
        out.extend_from_slice(NO_PARAMETERS);
        out.push(b'}');
    }
    out.extend_from_slice(b"],\"tool_choice\":{\"type\":\"none\"}");
}

/// Reads `tool_choice`; one that allows only some of the tools takes the others out.
fn read_choice(json: &[u8], tools: &mut Vec<Tool<'_>>) -> Result<Choice, Refusal> {
    let path = Path::Field("tool_choice");
    let mut cursor = Cursor::new(json);
    if cursor.kind()? == Kind::String {
        return read_mode(&path, cursor.string()?, true);
    }
    let (mut kind, mut function, mut allowed) = (None, None, None);
    path.members(&mut cursor, |key, cursor| {
        match key {
            b"type" => kind = Some(path.field("type").string(cursor)?),
            b"function" => function = Some(cursor.raw()?),
            b"allowed_tools" => allowed = Some(cursor.raw()?),
            _ => cursor.skip()?,
        }
        Ok(())
    })?;
    match kind.ok_or_else(|| path.field("type").missing())?.raw() {
        b"function" => {
            let path = path.field("function");
            let function = function.ok_or_else(|| path.missing())?;
            let name = read_name(&path, &mut Cursor::new(function))?;
            if !tools.is_empty() && !tools.iter().any(|tool| tool.is_named(&name)) {
                return Err(path.field("name").invalid("There is no tool of this name in 'tools'."));
            }
            Ok(Choice::Named(name))
        }
        b"allowed_tools" => {
            let path = path.field("allowed_tools");
            read_allowed(&path, allowed.ok_or_else(|| path.missing())?, tools)
        }
        _ => Err(path
            .field("type")
            .invalid("This model's provider takes a choice of type 'function' or 'allowed_tools'.")),
    }
}

fn read_mode(path: &Path<'_>, mode: RawStr<'_>, may_be_none: bool) -> Result<Choice, Refusal> {
    match mode.raw() {
        b"auto" => Ok(Choice::Auto),
        b"required" => Ok(Choice::Any),
        b"none" if may_be_none => Ok(Choice::None),
        _ => Err(path.invalid(format!("Invalid '{path}': expected one of 'auto', 'required' and 'none'."))),
    }
}

fn read_allowed(path: &Path<'_>, json: &[u8], tools: &mut Vec<Tool<'_>>) -> Result<Choice, Refusal> {
    let (mut choice, mut names) = (Choice::Auto, Vec::new());
    path.members(&mut Cursor::new(json), |key, cursor| {
        match key {
            b"mode" => {
                let path = path.field("mode");
                choice = read_mode(&path, path.string(cursor)?, false)?;
            }
            b"tools" => path.field("tools").items(cursor, |path, cursor| {
                let mut function = None;
                path.members(cursor, |key, cursor| {
                    match key {
                        b"function" => function = Some(cursor.raw()?),
                        _ => cursor.skip()?,
                    }
                    Ok(())
                })?;
                let path = path.field("function");
                names.push(read_name(&path, &mut Cursor::new(function.ok_or_else(|| path.missing())?))?);
                Ok(())
            })?,
            _ => cursor.skip()?,
        }
        Ok(())
    })?;
    let before = tools.len();
    tools.retain(|tool| names.iter().any(|name| tool.is_named(name)));
    if tools.is_empty() && before > 0 {
        return Err(path.field("tools").invalid("None of these tools is in 'tools'."));
    }
    Ok(choice)
}

/// Takes `{"name"}`.
fn read_name(path: &Path<'_>, cursor: &mut Cursor<'_>) -> Result<Box<str>, Refusal> {
    let mut name = None;
    path.members(cursor, |key, cursor| {
        match key {
            b"name" => name = Some(path.field("name").string(cursor)?),
            _ => cursor.skip()?,
        }
        Ok(())
    })?;
    let name = name.ok_or_else(|| path.field("name").missing())?.decode();
    Ok(String::from_utf8_lossy(&name).into())
}
