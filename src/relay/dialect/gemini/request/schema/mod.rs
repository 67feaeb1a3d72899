//! JSON schemas, reduced to the part of them that Gemini's declarations know: OpenAPI's.
//!
//! References and `allOf` are put in place, `oneOf` is `anyOf`, null as a type is `nullable`, constants are enumerations of
//! one, and enumerations are of strings. What is left that Gemini does not know is left out: a tool may then be called with
//! what its schema forbids, which is for the client to see, as it is when a model errs.
//!
//! What goes in may refer to itself and to itself twice; what comes out is bounded all the same.

mod node;
mod shape;

use self::node::Node;
use self::shape::{Shape, member};
use super::read::{invalid, not_json, wrong_type};
use crate::relay::json::{Cursor, Fault};
use crate::relay::refusal::Refusal;

/// The longest schema of one tool. Its tree is some dozen times as large, for as long as it is read.
const SCHEMA_BYTES_MAX: usize = 128 * 1024;
/// The most that all of a request's schemas may come to once references are put in place.
const REDUCED_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The most schemas that are looked at for one request.
const SCHEMAS_MAX: usize = 32_000;
/// How often a schema is put into itself before the circle is cut.
const CIRCLES_MAX: usize = 2;
/// The deepest nesting that is sent; Gemini takes about half of it.
const REDUCED_DEPTH_MAX: usize = 64;

/// Reduces the schemas of one request, within its bounds.
#[derive(Debug, Default)]
pub(super) struct Reducer {
    schemas: usize,
    bytes: usize,
}

/// Why a schema cannot be reduced.
enum Stop {
    /// It would become too large.
    Large,
    Fault(Fault),
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl Reducer {
    /// Writes a tool's parameters. `false` if there are none; what has been written is then worth nothing.
    pub(super) fn reduce_parameters(&mut self, out: &mut Vec<u8>, schema: &[u8], param: &str) -> Result<bool, Refusal> {
        let too_large = || invalid(param, format!("Invalid '{param}': the schema is larger than this model takes."));
        if schema.len() > SCHEMA_BYTES_MAX {
            return Err(too_large());
        }
        let root = Node::read(&mut Cursor::new(schema)).map_err(not_json)?;
        if !matches!(root, Node::Object(_)) {
            return Err(wrong_type(param, "an object"));
        }
        let begin = out.len();
        let bytes_end = begin + REDUCED_BYTES_MAX.saturating_sub(self.bytes);
        let written = Writer { reducer: self, root: &root, open: Vec::new(), bytes_end }.root(out);
        self.bytes += out.len() - begin;
        match written {
            Ok(Some(has_properties)) => Ok(has_properties),
            Ok(None) => Err(invalid(param, format!("Invalid '{param}': the schema must be of the type 'object'."))),
            Err(Stop::Large) => Err(too_large()),
            Err(Stop::Fault(fault)) => Err(not_json(fault)),
        }
    }

    /// Another schema is looked at.
    fn count(&mut self) -> Result<(), Stop> {
        self.schemas += 1;
        if self.schemas > SCHEMAS_MAX { Err(Stop::Large) } else { Ok(()) }
    }
}

/// Writes one tool's schema.
struct Writer<'r, 't, 'a> {
    reducer: &'r mut Reducer,
    root: &'t Node<'a>,
    /// The schemas that were referred to on the way here. One that is among them goes round in a circle.
    open: Vec<&'t Node<'a>>,
    /// How long the output may become.
    bytes_end: usize,
}

impl<'t, 'a> Writer<'_, 't, 'a> {
    /// Writes the schema of a tool's parameters: whether there are any, or nothing if it is not of an object.
    fn root(&mut self, out: &mut Vec<u8>) -> Result<Option<bool>, Stop> {
        let mut shape = Shape::default();
        self.gather(&mut shape, self.root)?;
        if !shape.types.is_empty() && !shape.types.contains(&"object") {
            return Ok(None);
        }
        shape.types = vec!["object"];
        // Parameters must be an object: of several kinds of object, one with the properties of all.
        let required = shape.required.len();
        for variant in std::mem::take(&mut shape.any_of) {
            self.gather(&mut shape, variant)?;
            shape.required.truncate(required);
        }
        shape.any_of.clear();
        shape.values.clear();
        shape.nullable = false;
        let has_properties = !shape.properties.is_empty();
        if has_properties {
            self.write(out, &shape, 0)?;
        }
        Ok(Some(has_properties))
    }

    /// Writes a schema. What is said around it goes for it where it says nothing itself.
    fn schema(
        &mut self,
        out: &mut Vec<u8>,
        node: &'t Node<'a>,
        around: Shape<'t, 'a>,
        depth: usize,
    ) -> Result<(), Stop> {
        let opened = self.open.len();
        let mut shape = Shape::default();
        self.gather(&mut shape, node)?;
        if shape.types.is_empty() && shape.any_of.is_empty() {
            shape.types = around.types;
        }
        shape.description = shape.description.or(around.description);
        shape.nullable |= around.nullable;
        self.settle_variants(&mut shape)?;
        self.write(out, &shape, depth)?;
        self.open.truncate(opened);
        Ok(())
    }

    /// Takes null out of the variants, and a single one that is left into the shape itself.
    fn settle_variants(&mut self, shape: &mut Shape<'t, 'a>) -> Result<(), Stop> {
        loop {
            let before = shape.any_of.len();
            shape.any_of.retain(|variant| !variant.is_null_schema());
            shape.nullable |= shape.any_of.len() < before;
            // Variants of what an object requires say nothing that could be kept.
            if !shape.properties.is_empty() {
                shape.any_of.clear();
            }
            match shape.any_of[..] {
                [only] => {
                    shape.any_of.clear();
                    self.gather(shape, only)?;
                }
                _ => return Ok(()),
            }
        }
    }

    /// Adds what a schema says to what has been said. What was said first stays.
    fn gather(&mut self, shape: &mut Shape<'t, 'a>, node: &'t Node<'a>) -> Result<(), Stop> {
        self.reducer.count()?;
        let Node::Object(members) = node else { return Ok(()) };
        let mut elsewhere = Vec::new();
        for (key, value) in members {
            let key = key.decode();
            match &*key {
                b"$ref" => elsewhere.extend(self.root.resolve(value.text())),
                b"allOf" => elsewhere.extend(value.items()),
                b"anyOf" | b"oneOf" if shape.any_of.is_empty() => shape.any_of.extend(value.items()),
                _ => shape.keyword(&key, value),
            }
        }
        for node in elsewhere {
            let circles = self.open.iter().filter(|open| std::ptr::eq(**open, node)).count();
            if circles == CIRCLES_MAX || self.open.len() > REDUCED_DEPTH_MAX {
                shape.is_map = true;
                continue;
            }
            self.open.push(node);
            self.gather(shape, node)?;
        }
        Ok(())
    }

    fn write(&mut self, out: &mut Vec<u8>, shape: &Shape<'t, 'a>, depth: usize) -> Result<(), Stop> {
        self.reducer.count()?;
        if out.len() > self.bytes_end {
            return Err(Stop::Large);
        }
        if depth > REDUCED_DEPTH_MAX {
            out.extend_from_slice(b"{\"type\":\"object\"}");
        } else if !shape.any_of.is_empty() {
            // Gemini wants nothing beside it: what is said of all variants goes into each.
            out.extend_from_slice(b"{\"anyOf\":[");
            for (index, variant) in shape.any_of.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                self.schema(out, variant, shape.around_variants(), depth + 1)?;
            }
            out.extend_from_slice(b"]}");
        } else if shape.types.len() > 1 {
            out.extend_from_slice(b"{\"anyOf\":[");
            for (index, kind) in shape.types.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                self.typed(out, shape, kind, depth + 1)?;
            }
            out.extend_from_slice(b"]}");
        } else {
            self.typed(out, shape, shape.kind(), depth)?;
        }
        Ok(())
    }

    /// Writes the schema of one type.
    fn typed(&mut self, out: &mut Vec<u8>, shape: &Shape<'t, 'a>, kind: &str, depth: usize) -> Result<(), Stop> {
        let values = shape.strings();
        let kind = if values.is_empty() { kind } else { "string" };
        out.extend_from_slice(b"{\"type\":\"");
        out.extend_from_slice(kind.as_bytes());
        out.push(b'"');
        let texts = [("title", shape.title), ("description", shape.description), ("format", shape.format_of(kind))];
        for (name, text) in texts {
            if let Some(text) = text {
                member(out, name, text);
            }
        }
        if shape.nullable {
            member(out, "nullable", b"true");
        }
        if !values.is_empty() {
            member(out, "enum", b"[");
            out.extend_from_slice(&values.join(&b','));
            out.push(b']');
        } else {
            shape.bounds_of(kind).for_each(|(name, value)| member(out, name, value));
        }
        match kind {
            "array" => self.elements(out, shape, depth)?,
            "object" if !shape.properties.is_empty() => self.properties(out, shape, depth)?,
            _ => {}
        }
        out.push(b'}');
        Ok(())
    }

    /// What an array is of. Gemini wants it said.
    fn elements(&mut self, out: &mut Vec<u8>, shape: &Shape<'t, 'a>, depth: usize) -> Result<(), Stop> {
        out.extend_from_slice(b",\"items\":");
        match shape.items {
            Some(items) => self.schema(out, items, Shape::default(), depth + 1),
            None if !shape.tuple.is_empty() => {
                let mut any = Shape::any_of(shape.tuple);
                self.settle_variants(&mut any)?;
                self.write(out, &any, depth + 1)
            }
            None => self.write(out, &Shape::default(), depth + 1),
        }
    }

    fn properties(&mut self, out: &mut Vec<u8>, shape: &Shape<'t, 'a>, depth: usize) -> Result<(), Stop> {
        member(out, "properties", b"{");
        for (index, (name, property)) in shape.properties.iter().enumerate() {
            out.extend_from_slice(if index == 0 { b"\"" } else { b",\"" });
            out.extend_from_slice(name.raw());
            out.extend_from_slice(b"\":");
            self.schema(out, property, Shape::default(), depth + 1)?;
        }
        out.push(b'}');
        let required = shape.required_properties();
        if !required.is_empty() {
            member(out, "required", b"[");
            out.extend_from_slice(&required.join(&b','));
            out.push(b']');
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::relay::dialect::gemini::request::tests::{function, refused, sent};
    use crate::relay::refusal::Cause;

    /// What becomes of the schema of a tool's parameter.
    fn reduced(schema: Value) -> Value {
        let mut parameters = json!({"type": "object", "properties": {"p": schema}});
        if let Some(defs) = parameters["properties"]["p"].as_object_mut().and_then(|schema| schema.remove("$defs")) {
            parameters["$defs"] = defs;
        }
        sent(json!({"tools": function(parameters)}))["tools"][0]["functionDeclarations"][0]["parameters"]["properties"]
            ["p"]
            .take()
    }

    #[test]
    fn a_schema_keeps_what_gemini_knows() {
        for (schema, expected) in [
            (
                json!({"type": "string", "description": "d", "title": "T", "default": "x", "format": "uri", "pattern": "^a", "minLength": 1, "examples": ["a"]}),
                json!({"type": "string", "title": "T", "description": "d", "minLength": 1, "pattern": "^a"}),
            ),
            (
                json!({"type": ["string", "null"], "format": "date-time"}),
                json!({"type": "string", "format": "date-time", "nullable": true}),
            ),
            (
                json!({"type": ["integer", "string"], "description": "d"}),
                json!({"anyOf": [{"type": "integer", "description": "d"}, {"type": "string", "description": "d"}]}),
            ),
            (
                json!({"anyOf": [{"type": "number", "exclusiveMinimum": 0, "maximum": 1e2}, {"type": "null"}], "default": null}),
                json!({"type": "number", "nullable": true, "maximum": 100.0}),
            ),
            (
                json!({"oneOf": [{"type": "string"}, {"type": "integer", "description": "own"}], "description": "d"}),
                json!({"anyOf": [{"type": "string", "description": "d"}, {"type": "integer", "description": "own"}]}),
            ),
            (json!({"const": "a"}), json!({"type": "string", "enum": ["a"]})),
            (
                json!({"type": "integer", "enum": [1, 2, null]}),
                json!({"type": "string", "nullable": true, "enum": ["1", "2"]}),
            ),
            (json!({"enum": [true, false]}), json!({"type": "boolean"})),
            (json!({"type": "string", "enum": ["", "a"]}), json!({"type": "string", "enum": ["a"]})),
            (json!({"type": "array"}), json!({"type": "array", "items": {"type": "string"}})),
            (
                json!({"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}], "uniqueItems": true, "maxItems": 2}),
                json!({"type": "array", "maxItems": 2, "items": {"anyOf": [{"type": "string"}, {"type": "integer"}]}}),
            ),
            (json!({"type": "object", "additionalProperties": {"type": "string"}}), json!({"type": "object"})),
            (
                json!({"allOf": [{"properties": {"a": {"type": "string"}}, "required": ["a"]}, {"$ref": "#/$defs/B"}], "$defs": {"B": {"type": "object", "properties": {"b": {"type": "number", "format": "float"}}, "required": ["b"]}}}),
                json!({"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "number", "format": "float"}}, "required": ["a", "b"]}),
            ),
            (
                json!({"$ref": "#/$defs/a~1b", "description": "here", "$defs": {"a/b": {"type": "string", "description": "there"}}}),
                json!({"type": "string", "description": "here"}),
            ),
            (
                json!({"type": "object", "properties": {"type": {"type": "string"}, "enum": {}}, "required": ["enum"], "anyOf": [{"required": ["type"]}]}),
                json!({"type": "object", "properties": {"type": {"type": "string"}, "enum": {"type": "string"}}, "required": ["enum"]}),
            ),
            (json!(true), json!({"type": "string"})),
            (json!({"not": {}, "if": {}, "multipleOf": 2, "propertyNames": {}}), json!({"type": "string"})),
            (json!({"$ref": "http://example.com/x"}), json!({"type": "string"})),
        ] {
            assert_eq!(reduced(schema.clone()), expected, "{schema}");
        }
    }

    #[test]
    fn a_schema_that_contains_itself_is_cut() {
        let tree = json!({"$ref": "#/$defs/T", "$defs": {"T": {"type": "object", "properties": {
            "name": {"type": "string"}, "children": {"type": "array", "items": {"$ref": "#/$defs/T"}}}}}});
        let text = reduced(tree).to_string();
        assert!(!text.contains("$ref") && text.matches("name").count() == 2, "{text}");
        for circle in [json!({"$ref": "#/$defs/A", "$defs": {"A": {"$ref": "#/$defs/A"}}}), json!({"$ref": "#"})] {
            assert_eq!(reduced(circle)["type"], "object");
        }
    }

    #[test]
    fn a_schema_that_grows_without_end_is_refused() {
        let mut defs = serde_json::Map::new();
        for level in 0..40 {
            let next = json!({"$ref": format!("#/$defs/d{}", level + 1)});
            defs.insert(format!("d{level}"), json!({"type": "object", "properties": {"a": next, "b": next}}));
        }
        let bomb = json!({"type": "object", "properties": {"p": {"$ref": "#/$defs/d0"}}, "$defs": defs});
        let expected = (Cause::InvalidValue, "tools[0].function.parameters".to_owned());
        assert_eq!(refused(json!({"tools": function(bomb)})), expected);
        let long =
            json!({"type": "object", "properties": {"p": {"type": "string", "description": "x".repeat(200_000)}}});
        assert_eq!(refused(json!({"tools": function(long)})), expected);
        let text = "x".repeat(100_000);
        let copies: serde_json::Map<_, _> = (0..100).map(|n| (format!("p{n}"), json!({"$ref": "#/$defs/t"}))).collect();
        let heavy =
            json!({"type": "object", "properties": copies, "$defs": {"t": {"type": "string", "description": text}}});
        assert_eq!(refused(json!({"tools": function(heavy)})), expected);
    }
}
