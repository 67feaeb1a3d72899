//! The TOML as written, checked into one immutable snapshot, watched and swapped whole.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::relay::route::{Catalogue, Plan};

pub struct Snapshot {
    pub store: StoreConfig,
    pub catalogue: Catalogue,
}
pub struct StoreConfig {
    pub url: String,
}
pub enum Providers {
    All,
    OnlyReady,
}
pub struct Loaded {
    pub snapshot: Snapshot,
    pub left_out: Vec<String>,
}
pub struct Mistake {
    pub file: PathBuf,
    pub line: usize,
    pub what: String,
}
impl std::fmt::Display for Mistake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}: {}", self.file.display(), self.line, self.what)
    }
}
pub fn locate(explicit: Option<&Path>) -> PathBuf {
    explicit.map_or_else(|| PathBuf::from("data/tollgate.toml"), Path::to_owned)
}
pub fn load(path: &Path, _providers: Providers) -> Result<Loaded, Vec<Mistake>> {
    let mistake = |what: String| vec![Mistake { file: path.to_owned(), line: 1, what }];
    let text = std::fs::read_to_string(path).map_err(|e| mistake(e.to_string()))?;
    let table: toml::Table = text.parse().map_err(|e: toml::de::Error| mistake(e.to_string()))?;
    let url = table["store"]["url"].as_str().unwrap_or_default().to_owned();
    let plans = table["plan"].as_array().into_iter().flatten().map(|plan| {
        Arc::new(Plan {
            name: plan["name"].as_str().unwrap_or_default().into(),
            requests_per_minute: 60,
            tokens_per_minute: None,
            concurrent_requests: None,
            models: None,
        })
    });
    let catalogue = Catalogue::new(Vec::new(), Vec::new(), plans.collect());
    Ok(Loaded { snapshot: Snapshot { store: StoreConfig { url }, catalogue }, left_out: Vec::new() })
}
