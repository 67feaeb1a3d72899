//! The house rules that a compiler does not know: which room may name which, what the pure rooms may not name, how long
//! a file may be, and that nothing outside of tests may panic on a whim.
//!
//! It reads the source as text; `house/source.rs` blanks what is not code.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "house/source.rs"]
mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use source::{Source, first_names};

/// Lines of one file, its test modules aside.
const FILE_LINES_MAX: usize = 500;

/// The rooms by floor, the lowest first. An arrow may go down or stay on its floor, never up.
const FLOORS: &[&[&str]] =
    &[&["relay"], &["store", "shared", "outbound"], &["billing", "telemetry", "config"], &["proxy", "admin"], &["cli"]];

/// What would bring a socket, a runtime, a clock or chance into `relay/`, with the reason in a word.
const NOT_IN_RELAY: &[(&str, &str)] = &[
    ("tokio", "a runtime"),
    ("sqlx", "a database"),
    ("Instant", "a clock"),
    ("SystemTime", "a clock"),
    ("now_utc", "a clock"),
    ("now_v7", "a clock and chance"),
    ("new_v4", "chance"),
    ("rand", "chance"),
    ("getrandom", "chance"),
    ("fastrand", "chance"),
    ("TcpStream", "a socket"),
];

/// The modules of the standard library that reach outside of the process.
const NOT_IN_RELAY_STD: &[&str] = &["fs", "env", "process", "thread", "io"];

/// What ends the process, or a request, by a panic.
const PANICS: &[&str] =
    &[".unwrap()", ".unwrap_err()", ".expect(\"", ".expect(&format", "panic!(", "todo!(", "unimplemented!("];

fn floor(room: &str) -> Option<usize> {
    FLOORS.iter().position(|rooms| rooms.contains(&room))
}

/// Arrows between rooms: from, to, and where it was seen first.
fn arrows(sources: &[Source]) -> BTreeMap<(String, String), String> {
    let mut arrows = BTreeMap::new();
    for source in sources {
        let Some(from) = source.room() else { continue };
        for (line, to) in source.rooms_named() {
            if to != from && floor(&to).is_some() {
                arrows.entry((from.to_owned(), to)).or_insert_with(|| format!("{}:{line}", source.path));
            }
        }
    }
    arrows
}

/// Arrows that go up, rooms that no floor knows, and circles.
fn wrong_arrows(sources: &[Source]) -> Vec<String> {
    let arrows = arrows(sources);
    let unknown = sources.iter().filter_map(|source| {
        let room = source.room()?;
        floor(room).is_none().then(|| format!("{}: the room `{room}` is on no floor", source.path))
    });
    let up = arrows
        .iter()
        .filter(|((from, to), _)| floor(to) > floor(from))
        .map(|((from, to), place)| format!("{place}: an arrow goes up, from `{from}` to `{to}`"));
    let mut wrong: Vec<String> = unknown.chain(up).collect();

    let rooms: BTreeSet<&String> = arrows.keys().flat_map(|(from, to)| [from, to]).collect();
    for room in rooms {
        let mut reached: BTreeSet<&str> = BTreeSet::new();
        let mut edge = vec![room.as_str()];
        while let Some(here) = edge.pop() {
            edge.extend(
                arrows.keys().filter(|(from, to)| from == here && reached.insert(to)).map(|(_, to)| to.as_str()),
            );
        }
        if reached.contains(room.as_str()) {
            wrong.push(format!("a circle of rooms runs through `{room}`"));
        }
    }
    wrong
}

/// Names that a file's room may not know.
fn wrong_names(source: &Source) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut say = |line: usize, what: String| wrong.push(format!("{}:{line}: {what}", source.path));
    let room = source.room();
    for (line, word, _) in source.identifiers() {
        let is_pingora = word.starts_with("pingora");
        if room == Some("relay") {
            if is_pingora {
                say(line, format!("`relay` is pure and may not name {word}"));
            }
            if let Some((_, what)) = NOT_IN_RELAY.iter().find(|(name, _)| *name == word) {
                say(
                    line,
                    format!("`relay` is pure and may not name {word}: {what} comes in as an argument or not at all"),
                );
            }
        } else if is_pingora && word != "pingora_limits" && room != Some("proxy") {
            say(line, format!("only `proxy` names {word}"));
        }
    }
    if room == Some("relay") {
        for (index, line) in source.code.lines().enumerate() {
            let reached = NOT_IN_RELAY_STD.iter().find(|module| {
                line.split("std::").skip(1).any(|path| first_names(path).iter().any(|name| name == **module))
            });
            if let Some(module) = reached {
                say(index + 1, format!("`relay` is pure and may not name std::{module}"));
            }
        }
    }
    wrong
}

/// Panics outside of tests.
fn panics(source: &Source) -> Vec<String> {
    let mut wrong = Vec::new();
    for (index, line) in source.code.lines().enumerate() {
        for call in PANICS.iter().filter(|call| line.contains(**call)) {
            wrong.push(format!("{}:{}: `{call}…` outside of a test", source.path, index + 1));
        }
    }
    wrong
}

/// Files that are too long. Blanked test modules do not count, blank lines and comments elsewhere do.
fn too_long(path: &str, text: &str) -> Option<String> {
    let all = text.lines().count();
    let tests = text.find("\n#[cfg(test)]\nmod ").map_or(0, |start| text[start + 1..].lines().count());
    let lines = all - tests;
    (lines > FILE_LINES_MAX)
        .then(|| format!("{path}: {lines} lines; past {FILE_LINES_MAX} a concept is missing a name"))
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The files below a folder of the repository, with their path from its root, and their text.
fn texts(folder: &str) -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let name = |path: &Path| path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
    files(&root.join(folder)).iter().map(|path| (name(path), fs::read_to_string(path).unwrap())).collect()
}

/// The program's own files. A file that is a module only of tests is not one of them.
fn sources() -> Vec<Source> {
    let texts = texts("src");
    let mut test_files = BTreeSet::new();
    for (path, text) in &texts {
        let folder = path.trim_end_matches("mod.rs").trim_end_matches(".rs").trim_end_matches('/');
        for declared in text.split("#[cfg(test)]\nmod ").skip(1) {
            if let Some((name, _)) = declared.split_once(';').filter(|(name, _)| !name.contains(char::is_whitespace)) {
                test_files.insert(format!("{folder}/{name}.rs"));
                test_files.insert(format!("{folder}/{name}/mod.rs"));
            }
        }
    }
    texts.iter().filter(|(path, _)| !test_files.contains(path)).map(|(path, text)| Source::new(path, text)).collect()
}

fn assert_none(wrong: &[String]) {
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn no_arrow_goes_up_and_no_circle_closes() {
    let sources = sources();
    assert!(sources.len() > 20, "the source was not found");
    assert_none(&wrong_arrows(&sources));
}

#[test]
fn rooms_name_only_what_they_may() {
    assert_none(&sources().iter().flat_map(wrong_names).collect::<Vec<_>>());
}

#[test]
fn nothing_panics_outside_of_tests() {
    assert_none(&sources().iter().flat_map(panics).collect::<Vec<_>>());
}

#[test]
fn files_are_short_and_say_what_they_are() {
    let mut wrong = Vec::new();
    for (path, text) in ["src", "tests", "benches"].into_iter().flat_map(texts) {
        wrong.extend(too_long(&path, &text));
        if !text.starts_with("//!") {
            wrong.push(format!("{path}: does not begin with what it is (`//!`)"));
        }
    }
    assert_none(&wrong);
}

mod it_can_fail {
    //! Each rule against source that breaks it, and against source that only looks as if.
    use super::*;

    fn wrong_in(path: &str, text: &str) -> Vec<String> {
        wrong_names(&Source::new(path, text))
    }

    #[test]
    fn an_arrow_up() {
        for text in [
            "use crate::proxy::Relay;",
            "use crate::{relay::Json, proxy::{self, Relay}};",
            "fn f() { super::proxy::go() }",
        ] {
            let wrong = wrong_arrows(&[Source::new("src/store/mod.rs", text)]);
            assert_eq!(wrong.len(), 1, "{text}: {wrong:?}");
            assert!(wrong[0].contains("from `store` to `proxy`"), "{wrong:?}");
        }
    }

    #[test]
    fn an_arrow_up_through_supers_counts_the_depth() {
        let deep = |text| wrong_arrows(&[Source::new("src/store/keys/row.rs", text)]).len();
        assert_eq!(deep("use super::super::super::cli::Common;"), 1);
        assert_eq!(deep("use super::super::cli::Common;"), 0, "that is store::cli");
    }

    #[test]
    fn arrows_down_and_comments_are_fine() {
        let text = "//! [`crate::cli`]\nuse crate::relay::json; // crate::cli\nconst T: &str = \"crate::cli::x\";\n\
                    #[cfg(test)]\nmod tests { use crate::cli::x; }\n";
        assert_eq!(wrong_arrows(&[Source::new("src/store/mod.rs", text)]), Vec::<String>::new());
    }

    #[test]
    fn a_circle_on_one_floor() {
        let there = Source::new("src/proxy/mod.rs", "use crate::admin::Ready;");
        let back = Source::new("src/admin/mod.rs", "use crate::proxy::Relay;");
        assert_eq!(wrong_arrows(&[there, back]).len(), 2, "both rooms of it are told");
        assert_eq!(wrong_arrows(&[Source::new("src/proxy/mod.rs", "use crate::admin::Ready;")]).len(), 0);
    }

    #[test]
    fn a_room_on_no_floor() {
        assert_eq!(wrong_arrows(&[Source::new("src/attic/mod.rs", "")]).len(), 1);
    }

    #[test]
    fn what_is_not_pure() {
        for text in [
            "use std::time::Instant;",
            "fn f() { let t = std::time::SystemTime::now(); }",
            "async fn f() { tokio::task::yield_now().await }",
            "use pingora_limits::rate::Rate;",
            "use std::{fmt, fs::File};",
            "let id = Uuid::now_v7();",
            "let n: u8 = rand::random();",
        ] {
            assert_eq!(wrong_in("src/relay/admit/mod.rs", text).len(), 1, "{text}");
        }
        for text in
            ["use std::time::Duration;", "/* tokio */ fn operand() {}", "#[cfg(test)]\nmod tests { use tokio::test; }"]
        {
            assert_eq!(wrong_in("src/relay/admit/mod.rs", text), Vec::<String>::new(), "{text}");
        }
    }

    #[test]
    fn pingora_outside_of_its_room() {
        assert_eq!(wrong_in("src/telemetry/mod.rs", "use pingora::server::Server;").len(), 1);
        assert_eq!(wrong_in("src/telemetry/mod.rs", "use pingora_limits::rate::Rate;").len(), 0);
        assert_eq!(wrong_in("src/proxy/server.rs", "use pingora::server::Server;").len(), 0);
    }

    #[test]
    fn a_panic_outside_of_tests() {
        let count = |text| panics(&Source::new("src/store/mod.rs", text)).len();
        assert_eq!(count("fn f() { g().unwrap() }"), 1);
        assert_eq!(count("fn f() { g().expect(\"why\") }"), 1);
        assert_eq!(count("fn f() { panic!(\"no\") }"), 1);
        assert_eq!(count("fn f() { g().unwrap_or(1); self.expect(b'x') } // .unwrap()"), 0);
        assert_eq!(count("fn f() {}\n#[cfg(test)]\nmod tests { fn g() { h().unwrap() } }"), 0);
        assert_eq!(count("#[cfg(test)]\nuse x::y;\nfn f() { g().unwrap() }"), 1, "only the one item is of tests");
    }

    #[test]
    fn texts_and_letters_do_not_confuse_the_reader() {
        let count = |text| panics(&Source::new("src/store/mod.rs", text)).len();
        assert_eq!(count("fn f<'a>(x: &'a str) { let q = '\"'; g().unwrap() }"), 1);
        assert_eq!(count(r##"const A: &str = r#"a " .unwrap()"#; fn f() { g().unwrap() }"##), 1);
        assert_eq!(count("const A: &[char] = &['\\'', '\\u{1f}', '\\\\']; fn f() { g().unwrap() }"), 1);
        assert_eq!(count("/* a /* b */ .unwrap() */ fn f() {}"), 0);
    }

    #[test]
    fn a_long_file() {
        let long = "//! x\n".repeat(FILE_LINES_MAX + 1);
        assert!(too_long("src/a.rs", &long).is_some());
        let with_tests = format!("{}\n#[cfg(test)]\nmod tests {{\n{}}}\n", "x\n".repeat(400), "y\n".repeat(400));
        assert!(too_long("src/a.rs", &with_tests).is_none());
    }
}
