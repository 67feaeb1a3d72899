//! A source file as the house rules see it: comments, texts in quotes and test modules blanked, line ends kept, so that
//! what is left is code at its own line. Paths that macros put together are not seen; there are none.

/// A source file with everything blanked that is not code of the program.
pub(crate) struct Source {
    /// From the repository's root, `src/relay/json.rs`.
    pub(crate) path: String,
    /// The code, at its own lines.
    pub(crate) code: String,
}

impl Source {
    pub(crate) fn new(path: &str, text: &str) -> Self {
        Self { path: path.to_owned(), code: without_tests(&without_comments(text)) }
    }

    /// The module's path below the crate, `["relay", "json"]`; empty for `lib.rs` and `main.rs`.
    fn module(&self) -> Vec<&str> {
        let path = self.path.trim_start_matches("src/").trim_end_matches(".rs");
        let mut names: Vec<&str> = path.split('/').collect();
        if matches!(names.last(), Some(&("mod" | "lib" | "main"))) {
            names.pop();
        }
        names
    }

    pub(crate) fn room(&self) -> Option<&str> {
        self.module().first().copied()
    }

    /// Every identifier with its line and the byte after it.
    pub(crate) fn identifiers(&self) -> impl Iterator<Item = (usize, &str, &str)> {
        self.code
            .lines()
            .enumerate()
            .flat_map(|(index, line)| words(line).map(move |(word, rest)| (index + 1, word, rest)))
    }

    /// The rooms that the code names by `crate::`, `tollgate::` or a chain of `super::` up to the root, with lines.
    pub(crate) fn rooms_named(&self) -> Vec<(usize, String)> {
        let depth = self.module().len();
        let mut named = Vec::new();
        for (root, needs) in [("crate::", 0), ("tollgate::", 0), ("super::", 1)] {
            let mut from = 0;
            while let Some(found) = self.code[from..].find(root).map(|offset| from + offset) {
                let mut end = found + root.len();
                let mut supers = needs;
                while needs == 1 && self.code[end..].starts_with("super::") {
                    supers += 1;
                    end += "super::".len();
                }
                from = end;
                let stands_alone = !self.code[..found].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':');
                if stands_alone && (needs == 0 || supers >= depth) && depth > 0 {
                    let line = 1 + self.code[..found].matches('\n').count();
                    named.extend(first_names(&self.code[end..]).into_iter().map(|name| (line, name)));
                }
            }
        }
        named
    }
}

/// The identifiers of a line of code, each with what follows it.
fn words(line: &str) -> impl Iterator<Item = (&str, &str)> {
    let mut rest = line;
    std::iter::from_fn(move || {
        let start = rest.find(|c: char| c.is_alphabetic() || c == '_')?;
        let from = &rest[start..];
        let end = from.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(from.len());
        rest = &from[end..];
        Some((&from[..end], rest))
    })
}

/// The first name of a path, or of each path of a `{…}` group.
pub(crate) fn first_names(path: &str) -> Vec<String> {
    let Some(group) = path.strip_prefix('{') else {
        return words(path)
            .next()
            .filter(|_| path.starts_with(|c: char| c.is_alphabetic()))
            .map(|(w, _)| w.to_owned())
            .into_iter()
            .collect();
    };
    let mut depth = 0;
    let mut names = Vec::new();
    let mut at_start = true;
    let mut rest = group;
    while let Some(c) = rest.chars().next() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => at_start = true,
            c if at_start && c.is_alphabetic() => {
                names.extend(words(rest).next().map(|(word, _)| word.to_owned()));
                at_start = false;
            }
            _ => {}
        }
        rest = &rest[c.len_utf8()..];
    }
    names
}

/// Blanks comments and what stands in quotes; the quotes themselves stay.
fn without_comments(text: &str) -> String {
    let bytes: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    let blank =
        |out: &mut String, piece: &[char]| out.extend(piece.iter().map(|&c| if c == '\n' { '\n' } else { ' ' }));
    while at < bytes.len() {
        let rest = &bytes[at..];
        let after_word = at > 0 && (bytes[at - 1].is_alphanumeric() || bytes[at - 1] == '_');
        let length = match rest {
            ['/', '/', ..] => rest.iter().position(|&c| c == '\n').unwrap_or(rest.len()),
            ['/', '*', ..] => block_comment_length(rest),
            ['r', '"' | '#', ..] | ['b', 'r', '"' | '#', ..] if !after_word => raw_text_length(rest),
            ['"', ..] => {
                let length = text_length(rest);
                out.push('"');
                blank(&mut out, &rest[1..length - 1]);
                out.push('"');
                at += length;
                continue;
            }
            ['\'', '\\', _, tail @ ..] => 3 + tail.iter().position(|&c| c == '\'').map_or(0, |end| end + 1),
            ['\'', _, '\'', ..] => 3,
            _ => 0,
        };
        if length == 0 {
            out.push(rest[0]);
            at += 1;
        } else {
            blank(&mut out, &rest[..length]);
            at += length;
        }
    }
    out
}

fn block_comment_length(rest: &[char]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        match &rest[at..] {
            ['/', '*', ..] => (depth, at) = (depth + 1, at + 2),
            ['*', '/', ..] if depth == 1 => return at + 2,
            ['*', '/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
    }
    rest.len()
}

fn text_length(rest: &[char]) -> usize {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            '\\' => at += 2,
            '"' => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

/// The length of `r#"…"#`; 0 where it is a raw identifier, `r#type`.
fn raw_text_length(rest: &[char]) -> usize {
    let start = 1 + usize::from(rest[0] == 'b');
    let hashes = rest[start..].iter().take_while(|&&c| c == '#').count();
    if rest.get(start + hashes) != Some(&'"') {
        return 0;
    }
    let close: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
    let body = start + hashes + 1;
    rest[body..]
        .windows(close.len())
        .position(|window| window == close)
        .map_or(rest.len(), |end| body + end + close.len())
}

/// Blanks every item under `#[cfg(test)]`.
fn without_tests(code: &str) -> String {
    let mut out = code.to_owned();
    while let Some(start) = out.find("#[cfg(test)]") {
        let mut depth = 0;
        let mut end = out.len();
        for (offset, c) in out[start..].char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            if depth == 0 && matches!(c, '}' | ';') {
                end = start + offset + 1;
                break;
            }
        }
        let blanked: String = out[start..end].chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect();
        out.replace_range(start..end, &blanked);
    }
    out
}
