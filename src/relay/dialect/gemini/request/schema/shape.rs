//! What all the keywords that apply to one place say together.

use std::borrow::Cow;
use std::collections::HashSet;

use super::node::Node;
use crate::relay::json::{Cursor, RawStr};

/// The types that there are.
const TYPES: [&str; 6] = ["string", "number", "integer", "boolean", "array", "object"];

/// The keywords that bound a value and pass as they are, each with the types that they bound.
const BOUNDS: [(&str, &[&str]); 8] = [
    ("minimum", &["number", "integer"]),
    ("maximum", &["number", "integer"]),
    ("minItems", &["array"]),
    ("maxItems", &["array"]),
    ("minProperties", &["object"]),
    ("maxProperties", &["object"]),
    ("minLength", &["string"]),
    ("maxLength", &["string"]),
];

/// The formats that Gemini knows, each with the types that have it.
const FORMATS: [(&[u8], &[&str]); 6] = [
    (b"\"enum\"", &["string"]),
    (b"\"date-time\"", &["string"]),
    (b"\"float\"", &["number"]),
    (b"\"double\"", &["number"]),
    (b"\"int32\"", &["integer"]),
    (b"\"int64\"", &["integer"]),
];

/// The keywords of one place. What is said first stays.
#[derive(Debug, Default)]
pub(super) struct Shape<'t, 'a> {
    pub(super) types: Vec<&'static str>,
    pub(super) nullable: bool,
    pub(super) title: Option<&'a [u8]>,
    pub(super) description: Option<&'a [u8]>,
    format: Option<&'a [u8]>,
    pub(super) values: Vec<&'t Node<'a>>,
    pub(super) any_of: Vec<&'t Node<'a>>,
    pub(super) properties: Vec<(RawStr<'a>, &'t Node<'a>)>,
    names: HashSet<&'a [u8]>,
    pub(super) required: Vec<&'a [u8]>,
    pub(super) items: Option<&'t Node<'a>>,
    /// What the first, second, … item of an array is to be.
    pub(super) tuple: &'t [Node<'a>],
    bounds: Vec<(&'static str, &'a [u8])>,
    pattern: Option<&'a [u8]>,
    /// It is an object, of which no more is known.
    pub(super) is_map: bool,
}

impl<'t, 'a> Shape<'t, 'a> {
    /// A place where any of these may be.
    pub(super) fn any_of(variants: &'t [Node<'a>]) -> Self {
        Self { any_of: variants.iter().collect(), ..Self::default() }
    }

    /// Takes a keyword that means something by itself.
    pub(super) fn keyword(&mut self, key: &[u8], value: &'t Node<'a>) {
        let text = value.is_string().then(|| value.text());
        match key {
            b"type" if self.types.is_empty() => self.take_types(value),
            b"nullable" => self.nullable |= value.is(b"true"),
            b"title" => self.title = self.title.or(text),
            b"description" => self.description = self.description.or(text),
            b"format" => self.format = self.format.or(text),
            b"pattern" => self.pattern = self.pattern.or(text),
            b"enum" if self.values.is_empty() => {
                self.values.extend(value.items().iter().filter(|value| !value.is(b"null")));
                self.nullable |= value.items().iter().any(|value| value.is(b"null"));
            }
            b"const" if self.values.is_empty() => self.values.push(value),
            b"properties" => {
                if let Node::Object(members) = value {
                    self.is_map = true;
                    for (name, property) in members {
                        if self.names.insert(name.raw()) {
                            self.properties.push((*name, property));
                        }
                    }
                }
            }
            b"required" => self.required.extend(value.items().iter().filter(|name| name.is_string()).map(Node::text)),
            b"additionalProperties" | b"patternProperties" => self.is_map = true,
            b"items" | b"prefixItems" if !value.items().is_empty() => self.tuple = value.items(),
            b"items" if self.items.is_none() => self.items = Some(value),
            _ => {
                let bound = BOUNDS.iter().find(|(name, _)| name.as_bytes() == key && value.is_number());
                if let Some((name, _)) = bound
                    && !self.bounds.iter().any(|(bound, _)| bound == name)
                {
                    self.bounds.push((name, value.text()));
                }
            }
        }
    }

    fn take_types(&mut self, value: &'t Node<'a>) {
        let one = std::slice::from_ref(value);
        for text in if value.is_string() { one } else { value.items() } {
            let name = text.text().to_ascii_lowercase();
            let name = name.strip_prefix(b"\"").and_then(|name| name.strip_suffix(b"\"")).unwrap_or_default();
            if name == b"null" {
                self.nullable = true;
            } else if let Some(known) = TYPES.iter().find(|known| known.as_bytes() == name)
                && !self.types.contains(known)
            {
                self.types.push(known);
            }
        }
    }

    /// What goes for each variant that does not say it itself.
    pub(super) fn around_variants(&self) -> Shape<'t, 'a> {
        Shape { types: self.types.clone(), description: self.description, nullable: self.nullable, ..Shape::default() }
    }

    /// The type, or what it must be by what else is said. A place of which nothing is said gets text, in which anything
    /// can be written.
    pub(super) fn kind(&self) -> &'static str {
        let bounds = |kind| self.bounds.iter().any(|(name, _)| is_bound_of(name, kind));
        match self.types.first() {
            Some(kind) => kind,
            None if self.is_map || bounds("object") => "object",
            None if self.items.is_some() || !self.tuple.is_empty() || bounds("array") => "array",
            None if !self.values.is_empty() && self.values.iter().all(|value| is_boolean(value)) => "boolean",
            None if bounds("number") => "number",
            None => "string",
        }
    }

    /// The values that it may have, as JSON strings; none if they are not to be told. Gemini's enumerations are of strings
    /// that are not empty.
    pub(super) fn strings(&self) -> Vec<Cow<'a, [u8]>> {
        if self.values.iter().all(|value| is_boolean(value)) {
            return Vec::new();
        }
        let quoted = |value: &&Node<'a>| match value {
            Node::Scalar(text) if text.starts_with(b"\"") => Some(Cow::Borrowed(*text)),
            Node::Scalar(text) => Some(Cow::Owned([b"\"", *text, b"\""].concat())),
            _ => None,
        };
        // An object among them cannot be told, and the others alone would be wrong.
        let all: Option<Vec<_>> = self.values.iter().map(quoted).collect();
        all.unwrap_or_default().into_iter().filter(|text| text.len() > 2).collect()
    }

    /// Its format, if a value of that type has it with Gemini.
    pub(super) fn format_of(&self, kind: &str) -> Option<&'a [u8]> {
        self.format.filter(|text| FORMATS.iter().any(|(format, kinds)| format == text && kinds.contains(&kind)))
    }

    /// What bounds a value of that type, by keyword.
    pub(super) fn bounds_of(&self, kind: &str) -> impl Iterator<Item = (&'static str, &'a [u8])> {
        let pattern = self.pattern.filter(|_| kind == "string").map(|text| ("pattern", text));
        self.bounds.iter().copied().filter(move |(name, _)| is_bound_of(name, kind)).chain(pattern)
    }

    /// The properties that are required, those that there are, each once.
    pub(super) fn required_properties(&self) -> Vec<&'a [u8]> {
        let mut seen = HashSet::new();
        let name = |quoted: &&'a [u8]| Cursor::new(quoted).string().map(|name| name.raw()).unwrap_or_default();
        self.required.iter().filter(|text| self.names.contains(name(text)) && seen.insert(**text)).copied().collect()
    }
}

fn is_bound_of(keyword: &str, kind: &str) -> bool {
    BOUNDS.iter().any(|(name, kinds)| *name == keyword && kinds.contains(&kind))
}

fn is_boolean(value: &Node<'_>) -> bool {
    value.is(b"true") || value.is(b"false")
}

/// Writes a member behind others.
pub(super) fn member(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
    out.extend_from_slice(value);
}
