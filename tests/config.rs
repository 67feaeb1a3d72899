//! `tollgate check` through the real binary: every mistake named by file and line, with its mend, and nothing else.

// The helpers of tests may panic as the tests do.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A configuration that is good; each test breaks one place of it. Lines are counted from 1.
const GOOD: &str = r#"[listen]
http = "127.0.0.1:8080"
metrics = "127.0.0.1:9090"

[store]
url = "sqlite://data/tollgate.db"

[billing]
spool = "data/spool.db"
durability = "process"

[limits]
header_seconds_max = 10

[[plan]]
name = "free"
requests_per_minute = 30

[[provider]]
name = "acme"
dialect = "openai"
base_url = "https://api.acme.example/v1"
credentials = [{ env = "TOLLGATE_TEST_KEY" }]
quirks = []

[[model]]
id = "acme/large"
context_window = 128_000
output_tokens_max = 16_384
price = { input = "2.50", output = "10.00" }
targets = [{ provider = "acme", model = "large" }]
"#;

/// A folder with configuration files, and the binary run on them.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new(files: &[(&str, &str)]) -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        for (name, text) in files {
            std::fs::write(folder.path(name), text).unwrap();
        }
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn check(&self, more: &[&str]) -> Output {
        check(&self.path("tollgate.toml"), self.0.path(), more)
    }

    /// The mistakes that are told, each as (`FILE:LINE`, what), with the folder's name taken off.
    fn mistakes(&self) -> Vec<(String, String)> {
        let output = self.check(&[]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(output.stdout.is_empty(), "{output:?}");
        let told = String::from_utf8(output.stderr).unwrap();
        let folder = format!("{}/", self.0.path().display());
        let split = |line: &str| {
            let (place, what) = line.split_once(": ").unwrap_or_else(|| panic!("no FILE:LINE in {line:?}"));
            (place.replace(&folder, ""), what.to_owned())
        };
        told.lines().map(split).collect()
    }
}

fn check(config: &Path, working_directory: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
    command.arg("check").arg("--config").arg(config).args(more).current_dir(working_directory);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().ends_with("_API_KEY")) {
        command.env_remove(name);
    }
    command.env_remove("CREDENTIALS_DIRECTORY").env("TOLLGATE_TEST_KEY", "sk-test").output().unwrap()
}

/// Breaks one place of [`GOOD`]: the one mistake must be on that line and say that.
#[track_caller]
fn broken(from: &str, to: &str, line: usize, says: &str) {
    assert_eq!(GOOD.matches(from).count(), 1, "{from:?} is not one place");
    let mistakes = Folder::new(&[("tollgate.toml", &GOOD.replace(from, to))]).mistakes();
    let [(place, what)] = &mistakes[..] else { panic!("one mistake is expected: {mistakes:#?}") };
    assert_eq!(*place, format!("tollgate.toml:{line}"), "{what}");
    assert!(what.contains(says), "{says:?} is not in {what:?}");
    assert!(what.contains(';'), "no mend in {what:?}");
}

#[test]
fn a_good_configuration_is_counted_and_nothing_is_touched() {
    let folder = Folder::new(&[("tollgate.toml", GOOD)]);
    let output = folder.check(&[]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "ok: 1 models, 1 providers, 1 plans\n");
    assert!(output.stderr.is_empty());
    assert_eq!(std::fs::read_dir(folder.0.path()).unwrap().count(), 1, "check makes no store and no spool");
}

#[test]
fn a_line_that_is_not_toml() {
    broken("http = \"127.0.0.1:8080\"", "http = ", 2, "is not TOML");
}

#[test]
fn a_key_that_nobody_knows() {
    broken("header_seconds_max", "header_second_max", 13, "did you mean \"header_seconds_max\"?");
}

#[test]
fn a_table_that_nobody_knows() {
    broken("[limits]\nheader_seconds_max = 10", "[limit]", 12, "did you mean \"limits\"?");
}

#[test]
fn an_address_that_is_none() {
    broken("127.0.0.1:8080", "localhost", 2, "write an IP address and a port");
}

#[test]
fn an_address_that_is_taken() {
    broken("127.0.0.1:9090", "0.0.0.0:8080", 3, "is taken by listen.http");
}

#[test]
fn a_store_with_its_password_in_the_open() {
    broken("sqlite://data/tollgate.db", "postgres://ada:hunter2@db/tollgate", 6, "holds a password");
}

#[test]
fn a_durability_that_nobody_knows() {
    broken("\"process\"", "\"paper\"", 10, "write \"process\"");
}

#[test]
fn a_limit_of_zero() {
    broken("header_seconds_max = 10", "header_seconds_max = 0", 13, "from 1 to");
}

#[test]
fn a_plan_without_a_limit() {
    broken("requests_per_minute = 30", "", 15, "plan.requests_per_minute is missing");
}

#[test]
fn a_plan_with_a_model_that_is_not_there() {
    broken(
        "requests_per_minute = 30",
        "requests_per_minute = 30\nmodels = [\"acme/small\"]",
        18,
        "no model \"acme/small\"",
    );
}

#[test]
fn a_name_of_the_wrong_type() {
    broken("name = \"free\"", "name = 7", 16, "must be a string, not an integer");
}

#[test]
fn a_single_table_where_a_list_belongs() {
    broken("[[plan]]", "[plan]", 15, "write [[plan]]");
}

#[test]
fn a_dialect_that_nobody_knows() {
    broken("dialect = \"openai\"", "dialect = \"soap\"", 21, "write \"openai\", \"anthropic\" or \"gemini\"");
}

#[test]
fn a_base_url_without_a_scheme() {
    broken("https://api.acme.example/v1", "api.acme.example/v1", 22, "https://");
}

#[test]
fn a_credential_that_is_not_set() {
    broken("TOLLGATE_TEST_KEY", "TOLLGATE_NO_SUCH_KEY", 23, "TOLLGATE_NO_SUCH_KEY is not set");
}

#[test]
fn a_credential_file_that_is_not_there() {
    broken("env = \"TOLLGATE_TEST_KEY\"", "file = \"acme.key\"", 23, "acme.key cannot be read");
}

#[test]
fn a_systemd_credential_outside_of_systemd() {
    broken("env = \"TOLLGATE_TEST_KEY\"", "credential = \"acme\"", 23, "LoadCredential=acme");
}

#[test]
fn a_secret_in_the_file_is_not_repeated() {
    for literal in ["\"sk-verysecret\"", "{ env = \"sk-verysecret\" }", "{ key = \"sk-verysecret\" }"] {
        let text = GOOD.replace("{ env = \"TOLLGATE_TEST_KEY\" }", literal);
        let mistakes = Folder::new(&[("tollgate.toml", &text)]).mistakes();
        assert!(mistakes.iter().all(|(place, _)| place == "tollgate.toml:23"), "{mistakes:#?}");
        assert!(mistakes.iter().all(|(_, what)| !what.contains("verysecret")), "{mistakes:#?}");
        assert!(!mistakes.is_empty());
    }
}

#[test]
fn a_quirk_that_nobody_knows() {
    broken("quirks = []", "quirks = [\"odd\"]", 24, "quirk that nobody knows");
}

#[test]
fn a_model_without_a_price() {
    broken("price = { input = \"2.50\", output = \"10.00\" }", "", 26, "model.price is missing");
}

#[test]
fn a_price_that_is_negative() {
    broken("\"10.00\"", "\"-10.00\"", 30, "model.price.output: is negative");
}

#[test]
fn a_price_that_is_a_float() {
    broken("\"10.00\"", "10.00", 30, "must be a decimal string, not a float");
}

#[test]
fn a_cost_is_written_as_a_price_is() {
    for (cost, says) in [
        ("{ input = \"1.00\" }", "model.targets.cost.output is missing"),
        ("{ input = \"1.00\", output = \"-1\" }", "model.targets.cost.output: is negative"),
        ("\"1.00\"", "model.targets.cost: must be a table"),
    ] {
        broken("model = \"large\" }", &format!("model = \"large\", cost = {cost} }}"), 31, says);
    }
}

#[test]
fn a_target_at_a_provider_that_is_not_there() {
    broken("provider = \"acme\"", "provider = \"acne\"", 31, "there is no provider \"acne\"");
}

#[test]
fn a_weight_of_zero() {
    broken("model = \"large\" }", "model = \"large\", weight = 0 }", 31, "model.targets.weight: is 0");
}

#[test]
fn a_model_that_is_there_twice() {
    let twice = format!("{GOOD}{}", &GOOD[GOOD.find("[[model]]").unwrap()..]);
    let mistakes = Folder::new(&[("tollgate.toml", &twice)]).mistakes();
    let [(place, what)] = &mistakes[..] else { panic!("{mistakes:#?}") };
    assert_eq!(place, "tollgate.toml:32");
    assert!(what.contains("model \"acme/large\" stands in") && what.contains("tollgate.toml:26 already"), "{what}");
}

#[test]
fn a_certificate_that_does_not_fit_its_key() {
    let made = || rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let (one, other) = (made(), made());
    let https = "https = { address = \"127.0.0.1:8443\", certificate = \"cert.pem\", key = \"key.pem\" }\n\n[store]";
    let text = GOOD.replace("\n[store]", https);
    let files = |key: &str| Folder::new(&[("tollgate.toml", &text), ("cert.pem", &one.cert.pem()), ("key.pem", key)]);
    assert_eq!(files(&one.signing_key.serialize_pem()).check(&[]).status.code(), Some(0));
    let mistakes = files(&other.signing_key.serialize_pem()).mistakes();
    assert_eq!(mistakes.len(), 1, "{mistakes:#?}");
    assert_eq!(mistakes[0].0, "tollgate.toml:4");
    assert!(mistakes[0].1.contains("is not the key of"), "{mistakes:#?}");
}

#[test]
fn several_mistakes_in_several_files_are_all_told_in_order() {
    let first = GOOD
        .replace("[listen]", "include = [\"gone.toml\", \"more.toml\"]\n[listen]")
        .replace("127.0.0.1:8080", "nowhere")
        .replace("header_seconds_max = 10", "header_seconds_max = \"10\"")
        .replace("\"2.50\"", "\"2,50\"");
    let more = "[[plan]]\nname = \"free\"\nrequests_per_minute = -1\n[[model]]\nid = \"x\"\n";
    let mistakes = Folder::new(&[("tollgate.toml", &first), ("more.toml", more)]).mistakes();
    let places: Vec<&str> = mistakes.iter().map(|(place, _)| &**place).collect();
    let expected = [
        "tollgate.toml:1",  // the include
        "tollgate.toml:3",  // the address
        "tollgate.toml:14", // the number in quotes
        "tollgate.toml:31", // the comma
        "more.toml:1",      // the plan that is there already
        "more.toml:3",      // the negative number
        "more.toml:4",      // context_window
        "more.toml:4",      // output_tokens_max
        "more.toml:4",      // price
        "more.toml:4",      // targets
    ];
    assert_eq!(places, expected, "{mistakes:#?}");
}

#[test]
fn mistakes_as_one_json_document() {
    let folder = Folder::new(&[("tollgate.toml", &GOOD.replace("127.0.0.1:8080", "nowhere"))]);
    let output = folder.check(&["--json"]);
    assert_eq!(output.status.code(), Some(1));
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["mistakes"][0]["line"], 2);
    assert_eq!(document["mistakes"][0]["file"], folder.path("tollgate.toml").to_str().unwrap());
}

#[test]
fn a_file_that_is_not_there() {
    let mistakes = Folder::new(&[]).mistakes();
    let [(place, what)] = &mistakes[..] else { panic!("{mistakes:#?}") };
    assert_eq!(place, "tollgate.toml:1");
    assert!(what.contains("cannot be read") && what.contains("--config"), "{what}");
}

#[test]
fn the_shipped_configuration_lacks_only_credentials() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = check(Path::new("conf/tollgate.toml"), root, &[]);
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8(output.stderr).unwrap();
    let credentials = told.lines().filter(|line| line.contains("_API_KEY is not set")).count();
    assert_eq!((credentials, told.lines().count()), (8, 8), "{told}");
    assert!(told.starts_with("conf/providers.toml:"), "{told}");
}
