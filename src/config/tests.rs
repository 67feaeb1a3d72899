//! Whole configurations, from files to snapshot. What each kind of row takes is tested in its own file.

use std::time::Duration;

use proptest::prelude::*;

use super::testing::mistakes_of;
use super::*;
use crate::relay::meter::ImageTokens;
use crate::relay::route::{Dialect, Endpoint, ModelRules, Quirk, Quirks, Sampling, Thinking};

const LISTEN: &str = "[listen]\nhttp = '127.0.0.1:0'\n";

const DEMO: &str = "\
[[provider]]
name = 'demo'
dialect = 'openai'
base_url = 'builtin:demo'
[[model]]
id = 'demo'
context_window = 8_192
output_tokens_max = 1_024
price = { input = '1', output = '2' }
targets = [{ provider = 'demo', model = 'demo' }]
";

/// The outcome of reading these files, the first of which includes what it likes. Mistakes without the folder's name.
fn read_files(files: &[(&str, &str)], providers: Providers) -> Result<Loaded, String> {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    let environment = |name: &str| (name == "GOOD_KEY").then(|| "sk-good".into());
    super::read(&folder.path().join(files[0].0), providers, &environment)
        .map_err(|refused| mistakes_of(&refused.mistakes).replace(&format!("{}/", folder.path().display()), ""))
}

fn read_one(text: &str, providers: Providers) -> Result<Loaded, String> {
    read_files(&[("tollgate.toml", text)], providers)
}

#[test]
fn the_shipped_files_lack_nothing_but_credentials() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf/tollgate.toml");
    let loaded = super::read(&path, Providers::All, &|_| Some("sk-test".into()));
    let loaded = loaded.unwrap_or_else(|refused| panic!("{}", mistakes_of(&refused.mistakes)));
    let catalogue = &loaded.snapshot.catalogue;
    assert_eq!((catalogue.models().len(), catalogue.providers().len()), (12, 8));
    assert_eq!(catalogue.plan_names(), ["free", "max", "pro", "starter"]);
    assert_eq!(catalogue.model("Pro/moonshotai/Kimi-K2.6").unwrap().targets.len(), 2);
    assert_eq!(loaded.snapshot.limits, Limits::default(), "what is commented out is the default");
    assert_eq!(loaded.snapshot.billing, BillingConfig::default());
    assert_eq!(loaded.snapshot.store, StoreConfig::default());
    assert_eq!(loaded.snapshot.dashboard, DashboardConfig::default());
}

#[test]
fn the_shipped_files_name_each_providers_quirks_and_each_models_rules() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf/tollgate.toml");
    let snapshot = super::read(&path, Providers::All, &|_| Some("sk-test".into())).unwrap().snapshot;
    for provider in snapshot.catalogue.providers() {
        let to_the_letter = matches!(&*provider.name, "openai" | "anthropic" | "gemini");
        assert_eq!(provider.quirks.is_empty(), to_the_letter, "{}", provider.name);
        assert_eq!(provider.quirks.has(Quirk::LooseAnswers), !to_the_letter, "{}", provider.name);
    }
    let rules = |id: &str, target: usize| snapshot.catalogue.model(id).unwrap().targets[target].rules;
    let claude = ModelRules {
        thinking: Thinking::Adaptive { xhigh: true },
        sampling: Sampling::None,
        schema_with_tools: true,
        ..ModelRules::default()
    };
    assert_eq!(rules("claude-opus-4-7", 0), claude);
    let sonnet = ModelRules { thinking: Thinking::Adaptive { xhigh: false }, sampling: Sampling::OneOf, ..claude };
    assert_eq!(rules("claude-sonnet-4-6", 0), sonnet);
    assert_eq!(rules("gemini-2.5-pro", 0).thinking, Thinking::Budget { min: 128, max: 32_768 });
    assert_eq!(rules("gemini-2.5-flash", 0).thinking, Thinking::Budget { min: 0, max: 24_576 });
    let kimi = [0, 1].map(|target| rules("Pro/moonshotai/Kimi-K2.6", target).sampling);
    assert_eq!(kimi, [Sampling::Free, Sampling::None], "the maker's own rule");
    assert_eq!(rules("gpt-4o", 0), ModelRules::default());
}

#[test]
fn the_examples_of_other_providers_are_good_once_uncommented() {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf/providers.toml");
    let text = std::fs::read_to_string(shipped).unwrap();
    let (_, examples) = text.split_once("# Others, as examples.").unwrap();
    let examples: Vec<&str> = examples.lines().skip(1).map(|line| line.trim_start_matches('#').trim_start()).collect();
    let file = format!("{LISTEN}{}", examples.join("\n"));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tollgate.toml");
    std::fs::write(&path, file).unwrap();
    let loaded = super::read(&path, Providers::All, &|_| Some("sk-test".into()));
    let loaded = loaded.unwrap_or_else(|refused| panic!("{}", mistakes_of(&refused.mistakes)));
    let names: Vec<&str> = loaded.snapshot.catalogue.providers().iter().map(|provider| &*provider.name).collect();
    assert_eq!(names, ["azure", "openrouter", "groq", "mistral", "xai", "vllm", "ollama"]);
    assert!(loaded.snapshot.catalogue.providers().iter().all(|provider| provider.quirks != Quirks::NONE));
    // And every quirk is explained where operators look for it.
    for quirk in Quirk::ALL {
        assert!(
            text.contains(&format!("#   {}", quirk.name())) || text.contains(&format!(", {}", quirk.name())),
            "{quirk:?}"
        );
    }
}

#[test]
fn the_examples_of_sinks_are_good_once_uncommented() {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf/tollgate.toml");
    let text = std::fs::read_to_string(shipped).unwrap();
    let (_, examples) = text.split_once("# [[billing.sink]]\n").unwrap();
    let (examples, _) = examples.split_once("\n\n[limits]").unwrap();
    let is_toml =
        |line: &&str| line.starts_with("[[") || line.split_once(" = ").is_some_and(|(key, _)| !key.contains(' '));
    let lines = examples.lines().map(|line| line.trim_start_matches("# ")).filter(is_toml);
    let file = format!("{LISTEN}[[billing.sink]]\n{}", lines.collect::<Vec<_>>().join("\n"));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tollgate.toml");
    std::fs::write(&path, file).unwrap();
    let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let loaded = super::read(&path, Providers::All, &|_| Some(secret.into()));
    let sinks = loaded.unwrap_or_else(|refused| panic!("{}", mistakes_of(&refused.mistakes))).snapshot.billing.sinks;
    assert_eq!(sinks.iter().map(|sink| &*sink.name).collect::<Vec<_>>(), ["openmeter", "file"]);
    let SinkTarget::Webhook { authorization: Some(_), source, .. } = &sinks[0].target else { panic!("{sinks:?}") };
    assert_eq!(&**source, "tollgate", "what is commented out is the default");
    let default = SinkTarget::File { path: "data/usage.ndjson".into(), bytes_max: 64 << 20, files_max: 0 };
    assert_eq!(sinks[1].target, default);
}

#[test]
fn the_example_of_traces_is_good_once_uncommented() {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf/tollgate.toml");
    let text = std::fs::read_to_string(shipped).unwrap();
    let (_, example) = text.split_once("# [telemetry.traces]\n").unwrap();
    let (example, _) = example.split_once("\n\n").unwrap();
    let is_toml = |line: &&str| line.split_once(" = ").is_some_and(|(key, _)| !key.contains(' '));
    let lines: Vec<&str> = example.lines().map(|line| line.trim_start_matches("# ")).filter(is_toml).collect();
    let read = |lines: &[&str]| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tollgate.toml");
        std::fs::write(&path, format!("{LISTEN}[telemetry.traces]\n{}", lines.join("\n"))).unwrap();
        let loaded = super::read(&path, Providers::All, &|_| Some("om_1".into()));
        loaded.unwrap_or_else(|refused| panic!("{}", mistakes_of(&refused.mistakes))).snapshot.traces.unwrap()
    };
    let (endpoint_only, all) = (read(&lines[..1]), read(&lines));
    assert_eq!(all.headers.len(), 1);
    let without_headers = super::TracesConfig { headers: Vec::new(), ..all };
    assert_eq!(without_headers, endpoint_only, "what is commented out is the default");
}

#[test]
fn a_sink_does_not_write_to_the_store() {
    let text =
        format!("{LISTEN}[store]\nurl = 'sqlite://data/a.db'\n[[billing.sink]]\nkind = 'file'\npath = 'data/a.db'\n");
    let told = read_one(&text, Providers::All).unwrap_err();
    assert!(told.contains("tollgate.toml:5: billing.sink: one of them is the store's own file; "), "{told}");
}

#[test]
fn a_whole_configuration_becomes_a_snapshot() {
    let text = "\
include = ['more.toml']
[listen]
http = '127.0.0.1:0'
h2c = true
[limits]
header_seconds_max = 3
request_bytes_max = 0x10_0000
[billing]
durability = 'power'
[[provider]]
name = 'a'
dialect = 'openai'
base_url = 'https://a.example/v1/'
credentials = [{ env = 'GOOD_KEY' }, { file = 'key' }]
idle_seconds_max = 7
";
    let more = "\
[[plan]]
name = 'free'
requests_per_minute = 30
models = ['x/y']
[[model]]
id = 'x/y'
context_window = 10
output_tokens_max = 5
image_tokens = { high = 9 }
price = { input = '0.5', output = '1' }
targets = [{ provider = 'a', model = 'y', weight = 3, tier = 1 }]
";
    let loaded =
        read_files(&[("tollgate.toml", text), ("more.toml", more), ("key", "sk-2\n")], Providers::All).unwrap();
    let snapshot = loaded.snapshot;
    assert!(snapshot.listen.h2c);
    assert_eq!(snapshot.limits.header_max, Duration::from_secs(3));
    assert_eq!(snapshot.limits.request_bytes_max, 1 << 20);
    assert_eq!(snapshot.billing.durability, Durability::Power);
    assert_eq!(snapshot.files.len(), 3, "the file, its include and the secret");
    let model = snapshot.catalogue.model("x/y").unwrap();
    assert_eq!(&*model.owned_by, "system");
    assert_eq!(model.image_tokens, Some(ImageTokens { full: 9, low: 9 }));
    let target = &model.targets[0];
    assert_eq!((&*target.model, target.weight, target.tier), ("y", 3, 1));
    assert_eq!(target.provider.dialect, Dialect::OpenAi);
    let keys: Vec<&str> = target.provider.credentials.iter().map(|secret| secret.expose()).collect();
    assert_eq!(keys, ["sk-good", "sk-2"]);
    assert_eq!(target.provider.times.idle, Duration::from_secs(7));
    assert!(matches!(&target.provider.endpoint, Endpoint::Network(address) if &*address.path == "/v1"));
    assert_eq!(snapshot.catalogue.plan("free").unwrap().models.as_deref(), Some(&["x/y".into()][..]));
}

#[test]
fn what_is_not_ready_is_a_mistake_to_serve_and_left_out_for_quickstart() {
    let text = format!(
        "{LISTEN}{DEMO}\
[[provider]]
name = 'a'
dialect = 'openai'
base_url = 'https://a.example/v1'
credentials = [{{ env = 'NO_KEY' }}]
[[provider]]
name = 'b'
dialect = 'gemini'
base_url = 'https://b.example'
credentials = [{{ env = 'BAD_KEY' }}]
[[provider]]
name = 'c'
dialect = 'openai'
base_url = 'https://c.example/v1'
credentials = [{{ env = 'NO_KEY' }}, {{ env = 'GOOD_KEY' }}]
[[model]]
id = 'gone'
context_window = 10
output_tokens_max = 5
price = {{ input = '1', output = '1' }}
targets = [{{ provider = 'a', model = 'x' }}, {{ provider = 'b', model = 'x' }}]
[[model]]
id = 'halved'
context_window = 10
output_tokens_max = 5
price = {{ input = '1', output = '1' }}
targets = [{{ provider = 'a', model = 'x' }}, {{ provider = 'c', model = 'x' }}]
"
    );
    let told = read_one(&text, Providers::All).unwrap_err();
    let lines: Vec<&str> = told.lines().collect();
    assert_eq!(lines.len(), 3, "{told}");
    assert!(lines[0].starts_with("tollgate.toml:17: provider.credentials: the environment variable NO_KEY is not set"));
    assert!(lines[1].starts_with("tollgate.toml:22: ") && lines[1].contains("BAD_KEY"), "{told}");
    assert!(lines[2].starts_with("tollgate.toml:27: "), "{told}");

    let loaded = read_one(&text, Providers::OnlyReady).unwrap();
    let ids: Vec<&str> = loaded.snapshot.catalogue.models().iter().map(|model| &*model.id).collect();
    assert_eq!(ids, ["demo", "halved"]);
    let halved = loaded.snapshot.catalogue.model("halved").unwrap();
    assert_eq!((halved.targets.len(), &*halved.targets[0].provider.name), (1, "c"));
    assert_eq!(halved.targets[0].provider.credentials.len(), 1);
    assert_eq!(loaded.left_out.len(), 3, "{:?}", loaded.left_out);
}

#[test]
fn a_file_that_is_not_toml_is_told_with_what_else_is_wrong() {
    let text = "[listen]\nhttp = \nh2c = 7\n[[plan]]\nname = 'a'\nrequests_per_minute = 0\n[[plan]\n";
    let told = read_one(text, Providers::All).unwrap_err();
    let places: Vec<&str> = told.lines().filter_map(|line| line.split(": ").next()).collect();
    assert_eq!(places, ["tollgate.toml:2", "tollgate.toml:3", "tollgate.toml:6", "tollgate.toml:7"], "{told}");
}

#[test]
fn includes_are_read_once_and_each_mistake_has_its_own_file() {
    let more = "include = ['tollgate.toml']\n[listen]\nhttp = '127.0.0.1:0'\n[[plan]]\nname = 'p'\n";
    let first = format!("include = ['more.toml', 'gone.toml']\n{LISTEN}");
    let told = read_files(&[("tollgate.toml", &first), ("more.toml", more)], Providers::All).unwrap_err();
    let lines: Vec<&str> = told.lines().collect();
    assert_eq!(lines.len(), 4, "{told}");
    assert!(lines[0].starts_with("tollgate.toml:1: include: cannot be read: "), "{told}");
    assert!(lines[1].starts_with("more.toml:1: include: this file has been read already"), "{told}");
    assert!(lines[2].starts_with("more.toml:2: listen: stands in tollgate.toml:2 already"), "{told}");
    assert!(lines[3].starts_with("more.toml:4: plan.requests_per_minute is missing"), "{told}");
}

#[test]
fn names_are_unique_across_files() {
    let first = format!("include = ['more.toml']\n{LISTEN}{DEMO}");
    let told = read_files(&[("tollgate.toml", &first), ("more.toml", DEMO)], Providers::All).unwrap_err();
    assert!(told.contains("more.toml:1: provider \"demo\" stands in tollgate.toml:4 already"), "{told}");
    assert!(told.contains("more.toml:5: model \"demo\" stands in tollgate.toml:8 already"), "{told}");
}

#[test]
fn a_broken_row_is_not_blamed_a_second_time_by_who_names_it() {
    let text = format!("{LISTEN}{}[[plan]]\nname = 'p'\nrequests_per_minute = 1\nmodels = ['demo']\n", DEMO)
        .replace("context_window = 8_192", "context_window = 0")
        .replace("dialect = 'openai'", "dialect = 'soap'");
    let told = read_one(&text, Providers::All).unwrap_err();
    assert_eq!(told.lines().count(), 2, "{told}");
}

#[test]
fn whoever_registers_needs_a_plan_that_is_there() {
    let dashboard = "[dashboard]\nregistration = true\nstarting_plan = 'gone'\n";
    let plan = "[[plan]]\nname = 'free'\nrequests_per_minute = 30\n";
    let told = read_one(&format!("{LISTEN}{dashboard}{plan}{DEMO}"), Providers::All).unwrap_err();
    assert!(told.starts_with("tollgate.toml:3: dashboard.starting_plan: there is no plan \"gone\""), "{told}");
    let open = dashboard.replace("starting_plan = 'gone'\n", "");
    assert!(read_one(&format!("{LISTEN}{open}{plan}{DEMO}"), Providers::All).unwrap().snapshot.dashboard.registration);
    let closed = dashboard.replace("true", "false");
    assert!(read_one(&format!("{LISTEN}{closed}{DEMO}"), Providers::All).is_ok());
}

#[test]
fn the_dashboard_and_the_api_are_where_they_are_said_to_be() {
    let listen = "[listen]\nhttp = '127.0.0.1:8080'\ndashboard = '127.0.0.1:8081'\n";
    let snapshot = read_one(&format!("{listen}{DEMO}"), Providers::All).unwrap().snapshot;
    assert_eq!(snapshot.dashboard_url().as_deref(), Some("http://127.0.0.1:8081"));
    assert_eq!(snapshot.api_url(), "http://127.0.0.1:8080/v1");
    let said = "[dashboard]\npublic_url = 'https://dash.example'\napi_url = 'https://api.example/v1/'\n";
    let snapshot = read_one(&format!("{listen}{said}{DEMO}"), Providers::All).unwrap().snapshot;
    assert_eq!(snapshot.dashboard_url().as_deref(), Some("https://dash.example"));
    assert_eq!(snapshot.api_url(), "https://api.example/v1");
    assert_eq!(read_one(&format!("{LISTEN}{DEMO}"), Providers::All).unwrap().snapshot.dashboard_url(), None);
}

#[test]
fn the_spool_is_not_the_store() {
    let text = format!("{LISTEN}[store]\nurl = 'sqlite://data/a.db'\n[billing]\nspool = 'data/a.db'\n");
    let told = read_one(&text, Providers::All).unwrap_err();
    assert!(told.starts_with("tollgate.toml:5: billing.spool"), "{told}");
}

#[test]
fn a_file_that_is_missing_or_not_text_is_told_in_the_same_form() {
    let gone = super::read(Path::new("/nonexistent/tollgate.toml"), Providers::All, &|_| None).unwrap_err();
    let told = mistakes_of(&gone.mistakes);
    assert!(told.starts_with("/nonexistent/tollgate.toml:1: cannot be read: "), "{told}");
    assert_eq!(told.lines().count(), 1);

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.toml");
    std::fs::write(&path, b"# caf\xc3\xa9\n# caf\xe9\n").unwrap();
    let told = mistakes_of(&super::read(&path, Providers::All, &|_| None).unwrap_err().mistakes);
    assert!(told.contains("a.toml:2: is not UTF-8"), "{told}");
}

#[test]
fn the_explicit_file_wins() {
    assert_eq!(locate(Some(Path::new("x.toml"))), Path::new("x.toml"));
}

proptest! {
    /// Whatever is cut out of a configuration, what is told names a line that is there.
    #[test]
    fn a_cut_configuration_is_refused_by_line_or_read(from in 0..300usize, length in 1..40usize) {
        let text = format!("{LISTEN}{DEMO}[[plan]]\nname = 'p'\nrequests_per_minute = 1\n");
        let (from, to) = (from.min(text.len()), (from + length).min(text.len()));
        let cut = format!("{}{}", &text[..from], &text[to..]);
        let lines = cut.lines().count().max(1);
        if let Err(told) = read_one(&cut, Providers::All) {
            for line in told.lines() {
                let number = line.split(':').nth(1).and_then(|number| number.parse::<usize>().ok());
                prop_assert!(number.is_some_and(|number| (1..=lines).contains(&number)), "{} of {}", line, lines);
            }
        }
    }
}

#[test]
fn nesting_without_end_is_refused() {
    let told = read_one(&format!("{LISTEN}a = {}", "[".repeat(100_000)), Providers::All).unwrap_err();
    assert!(told.starts_with("tollgate.toml:3: is not TOML"), "{}", &told[..told.len().min(300)]);
    assert_eq!(told.lines().count(), 1);
}
