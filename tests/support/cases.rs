//! The recorded answers of providers, and the rows of `conf/providers.toml` that they belong to.
//!
//! The folder is named by `TOLLGATE_RECORDINGS`; where there is none, tests say so and are skipped.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{Answer, Chance};

/// A recorded answer.
pub struct Case {
    /// `folder/case`.
    pub name: String,
    /// The provider's row.
    pub provider: &'static str,
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub is_stream: bool,
    pub body: Vec<u8>,
    /// What an independent decoder makes of it.
    pub expect: Value,
}

/// Which row each folder's answers belong to, and how many cases it has at least.
const FOLDERS: [(&str, &str, usize); 15] = [
    ("anthropic", "anthropic", 37),
    ("azure", "azure", 4),
    ("deepseek", "deepseek", 20),
    ("gemini", "gemini", 38),
    ("groq", "groq", 4),
    ("mistral", "mistral", 6),
    ("moonshot", "moonshot", 6),
    // Hosts without a row of their own, whose answers are of the same looseness.
    ("moonshot_via_hosts", "openrouter", 5),
    ("openai", "openai", 30),
    ("openrouter", "openrouter", 8),
    ("other", "vllm", 6),
    ("qwen", "dashscope", 4),
    ("siliconflow", "siliconflow", 6),
    ("xai", "xai", 1),
    ("zhipu", "zhipu", 13),
];

/// A provider's row: its dialect, the path of its base URL, and its quirks as TOML.
pub struct Row {
    pub name: &'static str,
    pub dialect: String,
    pub path: String,
    pub quirks: String,
}

fn root() -> PathBuf {
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/recordings");
    std::env::var_os("TOLLGATE_RECORDINGS").map_or_else(default, PathBuf::from)
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every recording, in the order of their names; none where the folder is not.
pub fn all() -> Vec<Case> {
    let root = root();
    if !root.is_dir() {
        println!("skipped: there are no recordings at {}", root.display());
        return Vec::new();
    }
    let mut cases = Vec::new();
    for (folder, provider, least) in FOLDERS {
        let entries = fs::read_dir(root.join(folder)).unwrap_or_else(|error| panic!("{folder}: {error}"));
        let mut own: Vec<Case> = entries.map(|entry| Case::read(&entry.unwrap().path(), folder, provider)).collect();
        own.sort_by(|a, b| a.name.cmp(&b.name));
        assert!(own.len() >= least, "{folder}: {} cases, {least} were known", own.len());
        cases.extend(own);
    }
    // A folder that no row is named for would be left out in silence.
    let folders = fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).count();
    assert_eq!(folders, FOLDERS.len(), "folders of {}", root.display());
    cases
}

/// Every row that a case belongs to.
pub fn rows() -> Vec<Row> {
    let mut names: Vec<&'static str> = FOLDERS.iter().map(|(_, provider, _)| *provider).collect();
    names.sort_unstable();
    names.dedup();
    let text = shipped();
    let parsed = text.parse::<toml::Table>().unwrap_or_else(|error| panic!("conf/providers.toml: {error}"));
    let providers = parsed["provider"].as_array().unwrap();
    let row = |name: &&'static str| {
        let found = providers.iter().find(|row| row["name"].as_str() == Some(name));
        let row = found.unwrap_or_else(|| panic!("conf/providers.toml has no {name}"));
        let url = row["base_url"].as_str().unwrap();
        let path = url.split_once("://").unwrap().1.split_once('/').map_or("", |(_, path)| path);
        let quirks = row.get("quirks").and_then(toml::Value::as_array);
        let quirks: Vec<String> =
            quirks.into_iter().flatten().map(|name| format!("{:?}", name.as_str().unwrap())).collect();
        Row {
            name,
            dialect: row["dialect"].as_str().unwrap().to_owned(),
            path: if path.is_empty() { String::new() } else { format!("/{path}") },
            quirks: quirks.join(", "),
        }
    };
    names.iter().map(row).collect()
}

/// The shipped file with its examples, which are commented out, as rows like the others.
fn shipped() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf/providers.toml");
    let text = fs::read_to_string(&path).unwrap();
    let at = text.find("\n# [[provider]]").expect("no examples");
    let examples: Vec<&str> = text[at..].lines().map(|line| line.strip_prefix("# ").unwrap_or("")).collect();
    format!("{}\n{}", &text[..at], examples.join("\n"))
}

impl Case {
    fn read(folder: &Path, group: &str, provider: &'static str) -> Self {
        let meta = read_json(&folder.join("meta.json"));
        let file = meta["response_file"].as_str().unwrap();
        let is_stream = Path::new(file).extension().is_some_and(|extension| extension == "sse");
        let framing = ["content-length", "transfer-encoding", "content-encoding", "connection"];
        let headers = meta["response_headers"].as_object().into_iter().flatten();
        let mut headers: Vec<(String, String)> = headers
            .filter(|(name, _)| !framing.contains(&name.to_lowercase().as_str()))
            .map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned()))
            .collect();
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-type")) {
            let kind = if is_stream { "text/event-stream" } else { "application/json" };
            headers.push(("content-type".into(), kind.into()));
        }
        Self {
            name: format!("{group}/{}", folder.file_name().unwrap().to_str().unwrap()),
            provider,
            status: meta["http_status"].as_u64().unwrap().try_into().unwrap(),
            headers,
            is_stream,
            body: fs::read(folder.join(file)).unwrap(),
            expect: read_json(&folder.join("expect.json")),
        }
    }

    pub fn outcome(&self) -> &str {
        self.expect["outcome"].as_str().unwrap()
    }

    /// How many choices were asked for.
    pub fn choices(&self) -> usize {
        self.expect["choices"].as_array().map_or(1, Vec::len).max(1)
    }

    /// Plays it, its body chunked: each byte a chunk where no chance is given, else cut at random.
    pub fn play(&self, chance: Option<&mut Chance>, answer: &mut Answer) {
        let headers: Vec<(&str, &str)> =
            self.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        answer.head(self.status, &headers, "transfer-encoding: chunked\r\n");
        let pieces = match chance {
            None => self.body.chunks(1).collect(),
            Some(chance) => {
                let longest = [3, 40, 700][chance.below(3)].max(self.body.len() / 400);
                chance.pieces(&self.body, longest)
            }
        };
        for piece in pieces {
            answer.chunk(piece);
        }
        answer.end();
    }
}
