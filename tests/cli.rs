//! The commands that work on the store, through the real binary: what they print, what they refuse, how they exit.

// The helpers of tests may panic as the tests do.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

#[allow(dead_code, unreachable_pub)]
#[path = "support/store.rs"]
mod store;

use store::Store;

const CONFIGURATION: &str = r#"
[listen]
http = "127.0.0.1:8080"

[store]
url = @STORE@

[billing]
spool = "store/spool.db"

[[plan]]
name = "free"
requests_per_minute = 30

[[plan]]
name = "pro"
requests_per_minute = 120

[[provider]]
name = "demo"
dialect = "openai"
base_url = "builtin:demo"

[[model]]
id = "demo"
context_window = 8192
output_tokens_max = 1024
owned_by = "tollgate"
price = { input = "1.00", output = "2.00" }
targets = [{ provider = "demo", model = "demo" }]
"#;

/// A folder of its own with a configuration, in which the binary runs, and the store that it works on.
struct Place(TempDir, Store);

impl Place {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let store = Store::new(&folder.path().join("store"));
        let is_file = matches!(store, Store::File(_));
        let url = if is_file { "\"sqlite://store/tollgate.db\"".to_owned() } else { store.toml() };
        std::fs::write(folder.path().join("tollgate.toml"), CONFIGURATION.replace("@STORE@", &url)).unwrap();
        Self(folder, store)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
        command.envs(self.1.environment());
        command.args(arguments).args(["--config", "tollgate.toml"]).current_dir(self.path()).output().unwrap()
    }

    /// What it prints on stdout; it has to succeed and print nothing on stderr.
    fn text(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success() && errors.is_empty(), "{arguments:?}: {} {errors}", output.status);
        String::from_utf8(output.stdout).unwrap()
    }

    /// The one JSON document that it prints.
    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.text(&[arguments, &["--json"]].concat())).unwrap()
    }

    /// What it prints on stderr; it has to exit with that status and print nothing on stdout.
    fn error(&self, status: i32, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {output:?}");
        assert!(output.stdout.is_empty(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    /// The id of a new account.
    fn account(&self) -> String {
        text_of(&self.json(&["account", "create", "Ada", "--plan", "free"])["id"])
    }

    /// Runs SQL behind the program's back.
    fn doctor(&self, sql: &'static str) {
        self.1.run(sql);
    }
}

fn text_of(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

fn field_names(value: &Value) -> Vec<&str> {
    let mut names: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
    names.sort_unstable();
    names
}

fn is_rfc3339_utc(value: &Value) -> bool {
    value.as_str().is_some_and(|text| text.len() == "2026-01-31T12:00:00.000Z".len() && text.ends_with('Z'))
}

#[test]
fn an_account_lives_its_life() {
    let place = Place::new();
    let created = place.json(&["account", "create", "Ada Lovelace", "--plan", "free"]);
    assert_eq!(field_names(&created), ["balance_nano_usd", "created_at", "id", "name", "plan", "status"]);
    let id = text_of(&created["id"]);
    assert!(id.starts_with("acct_"), "{id}");
    assert_eq!(created["name"], "Ada Lovelace");
    assert_eq!((&created["plan"], &created["status"]), (&"free".into(), &"active".into()));
    assert_eq!(created["balance_nano_usd"], 0);
    assert!(is_rfc3339_utc(&created["created_at"]), "{created}");

    assert_eq!(place.json(&["account", "credit", &id, "5.00"])["balance_nano_usd"], 5_000_000_000_i64);
    let corrected = place.json(&["account", "credit", &id, "-0.000000001", "--note", "a nano too many"]);
    assert_eq!(corrected["balance_nano_usd"], 4_999_999_999_i64);
    assert_eq!(place.json(&["account", "plan", &id, "pro"])["plan"], "pro");
    assert_eq!(place.json(&["account", "suspend", &id])["status"], "suspended");
    assert_eq!(place.json(&["account", "resume", &id])["status"], "active");

    let shown = place.json(&["account", "show", &id]);
    assert_eq!((&shown["balance_nano_usd"], &shown["plan"]), (&4_999_999_999_i64.into(), &"pro".into()));
    assert_eq!(place.json(&["account", "list"]), Value::Array(vec![shown]));

    let for_people = place.text(&["account", "show", &id]);
    for part in
        [id.as_str(), "Ada Lovelace", "4.999999999 USD", "-0.000000001", "a nano too many", "grant", "correction"]
    {
        assert!(for_people.contains(part), "{part}: {for_people}");
    }
    assert!(place.text(&["account", "list"]).contains(&id));
    assert_eq!(place.json(&["audit"]), Value::Array(vec![]));
}

#[test]
fn a_key_is_shown_once_and_kept_as_a_digest() {
    let place = Place::new();
    let account = place.account();
    let created = place.json(&["key", "create", "--account", &account, "--name", "laptop"]);
    let (id, key) = (text_of(&created["id"]), text_of(&created["key"]));
    assert!(id.starts_with("key_") && key.starts_with("tg_live_") && key.len() == 44, "{created}");
    assert_eq!((&created["account_id"], &created["name"]), (&account.as_str().into(), &"laptop".into()));
    for limit in ["requests_per_minute", "tokens_per_minute", "concurrent_requests", "budget_nano_usd", "models"] {
        assert_eq!(created[limit], Value::Null, "{limit}");
    }

    let listed = place.text(&["key", "list", "--json"]);
    assert!(listed.contains(&id) && !listed.contains(&key), "{listed}");
    // A database has no files that are ours to read.
    for file in std::fs::read_dir(place.path().join("store")).into_iter().flatten() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        assert!(!bytes.windows(key.len()).any(|window| window == key.as_bytes()));
    }

    assert_eq!(place.json(&["key", "revoke", &id])["status"], "revoked");
    assert_eq!(place.json(&["key", "revoke", &id])["status"], "revoked");
    assert_eq!(place.json(&["key", "list"])[0]["status"], "revoked");
}

#[test]
fn a_key_for_people_stands_on_a_line_of_its_own() {
    let place = Place::new();
    let account = place.account();
    let printed = place.text(&["key", "create", "--account", &account, "--name", "laptop"]);
    let lines: Vec<&str> = printed.lines().filter(|line| line.starts_with("tg_live_")).collect();
    assert!(lines.len() == 1 && lines[0].len() == 44, "{printed}");
    let again = place.text(&["key", "create", "--account", &account, "--name", "laptop"]);
    assert!(!again.contains(lines[0]));
    assert!(place.text(&["key", "list"]).contains("laptop"));
}

#[test]
fn a_key_takes_every_limit_in_any_order() {
    let place = Place::new();
    let account = place.account();
    let created = place.json(&[
        "key",
        "create",
        "--expires",
        "2030-01-31T12:00:00+01:00",
        "--allow-ip",
        "203.0.113.9/24,2001:db8::1",
        "--models",
        "gpt-4o,Pro/zai-org/GLM-5.1",
        "--budget=2.5",
        "--concurrency",
        "4",
        "--tpm",
        "100000",
        "--rpm",
        "60",
        "--name",
        "ci",
        "--account",
        &account,
    ]);
    assert_eq!(created["requests_per_minute"], 60);
    assert_eq!(created["tokens_per_minute"], 100_000);
    assert_eq!(created["concurrent_requests"], 4);
    assert_eq!(created["budget_nano_usd"], 2_500_000_000_i64);
    assert_eq!(created["models"], serde_json::json!(["gpt-4o", "Pro/zai-org/GLM-5.1"]));
    assert_eq!(created["allow_ip"], serde_json::json!(["203.0.113.0/24", "2001:db8::1/128"]));
    assert_eq!(created["expires_at"], "2030-01-31T11:00:00.000Z");

    let expired = ["key", "create", "--account", &account, "--name", "old", "--expires", "2020-01-01T00:00:00Z"];
    assert_eq!(place.json(&expired)["status"], "expired");
    let listed = place.json(&["key", "list", "--account", &account]);
    assert_eq!((&listed[0]["name"], &listed[1]["name"]), (&"ci".into(), &"old".into()));
    assert_eq!(place.json(&["key", "list", "--account", &place.account()]), Value::Array(vec![]));
}

const TOTAL_FIELDS: [&str; 12] = [
    "account_id",
    "cache_read_tokens",
    "cache_write_1h_tokens",
    "cache_write_5m_tokens",
    "cost_nano_usd",
    "errors",
    "input_tokens",
    "output_tokens",
    "provider_cost_nano_usd",
    "reasoning_tokens",
    "requests",
    "uncosted_requests",
];

/// Sums up what [`Place::doctor`] has put in past the program, which else does it.
const SUM_UP: &str = "INSERT INTO usage_series SELECT MIN(seq), account_id, key_id, model, provider
      FROM usage_records GROUP BY account_id, key_id, model, provider;
    UPDATE usage_records SET series = s.id FROM usage_series s WHERE s.account_id = usage_records.account_id
      AND s.key_id = usage_records.key_id AND s.model = usage_records.model AND s.provider = usage_records.provider;
    CREATE TEMP VIEW sums AS SELECT *, started_at_ms / 86400000 AS day, 1 AS requests,
      CASE WHEN status >= 400 THEN 1 ELSE 0 END AS errors, COALESCE(provider_cost_nano_usd, 0) AS provider_cost,
      CASE WHEN provider_cost_nano_usd IS NULL THEN 1 ELSE 0 END AS uncosted FROM usage_records;
    INSERT INTO usage_days SELECT series, day, requests, errors, input_tokens, cache_read_tokens, cache_write_5m_tokens,
      cache_write_1h_tokens, output_tokens, reasoning_tokens, cost_nano_usd, provider_cost, uncosted FROM sums;
    INSERT INTO usage_accounts SELECT account_id, day, SUM(requests), SUM(errors), SUM(input_tokens), SUM(cache_read_tokens),
      SUM(cache_write_5m_tokens), SUM(cache_write_1h_tokens), SUM(output_tokens), SUM(reasoning_tokens), SUM(cost_nano_usd),
      SUM(provider_cost), SUM(uncosted) FROM sums GROUP BY account_id, day;
    INSERT INTO usage_totals SELECT day, model, provider, SUM(requests), SUM(errors), SUM(input_tokens), SUM(cache_read_tokens),
      SUM(cache_write_5m_tokens), SUM(cache_write_1h_tokens), SUM(output_tokens), SUM(reasoning_tokens), SUM(cost_nano_usd),
      SUM(provider_cost), SUM(uncosted) FROM sums GROUP BY day, model, provider;";

#[test]
fn usage_is_listed_and_summed() {
    let place = Place::new();
    assert_eq!(place.json(&["usage"]), Value::Array(vec![]));
    assert_eq!(place.json(&["usage", "--by", "day"]), Value::Array(vec![]));
    let account = place.account();
    place.doctor(
        "INSERT INTO usage_records (seq, request_id, account_id, key_id, model, provider, status, input_tokens,
          cache_read_tokens, cache_write_5m_tokens, cache_write_1h_tokens, output_tokens, reasoning_tokens,
          cost_nano_usd, estimated, interrupted, started_at_ms, first_token_ms, total_ms) VALUES
         (1, '0198c5a1-0000-7000-8000-000000000001', 'a', 'k1', 'gpt-4o', 'openai', 200, 10, 1, 2, 3, 20, 5, 1000, FALSE, FALSE, 1767225600000, 40, 900),
         (2, '0198c5a1-0000-7000-8000-000000000002', 'a', 'k2', 'demo', 'demo', 502, 1, 0, 0, 0, 0, 0, 7, TRUE, TRUE, 1767225600000, NULL, 10),
         (3, '0198c5a1-0000-7000-8000-000000000003', 'b', 'k3', 'gpt-4o', 'openai', 200, 100, 0, 0, 0, 200, 0, 30, FALSE, FALSE, 1767312000000, 1, 2)",
    );
    place.doctor(SUM_UP);
    let listed = place.json(&["usage"]);
    let ids: Vec<&str> =
        listed.as_array().unwrap().iter().map(|one| &one["request_id"].as_str().unwrap()[35..]).collect();
    assert_eq!(ids, ["3", "2", "1"], "newest first");
    assert_eq!(
        listed[2],
        serde_json::json!({
            "request_id": "0198c5a1-0000-7000-8000-000000000001", "account_id": "a", "key_id": "k1", "model": "gpt-4o",
            "provider": "openai", "status": 200, "input_tokens": 10, "cache_read_tokens": 1,
            "cache_write_5m_tokens": 2, "cache_write_1h_tokens": 3, "output_tokens": 20, "reasoning_tokens": 5,
            "cost_nano_usd": 1000, "provider_cost_nano_usd": null, "estimated": false, "interrupted": false, "started_at": "2026-01-01T00:00:00.000Z",
            "first_token_ms": 40, "total_ms": 900,
        })
    );
    assert_eq!((&listed[1]["estimated"], &listed[1]["first_token_ms"]), (&true.into(), &Value::Null));

    assert_eq!(place.json(&["usage", "--since", "2026-01-02"]).as_array().unwrap().len(), 1);
    assert_eq!(place.json(&["usage", "--since", "2026-01-01T00:00:00.001Z"]).as_array().unwrap().len(), 1);
    assert_eq!(place.json(&["usage", "--account", &account]), Value::Array(vec![]));

    let by_model = place.json(&["usage", "--by", "model"]);
    assert_eq!((&by_model[0]["model"], &by_model[0]["requests"]), (&"gpt-4o".into(), &2.into()));
    assert_eq!((&by_model[0]["output_tokens"], &by_model[0]["cost_nano_usd"]), (&220.into(), &1030.into()));
    assert_eq!(by_model[1]["model"], "demo");
    let by_account = place.json(&["usage", "--by", "account"]);
    assert_eq!((&by_account[0]["account_id"], &by_account[0]["cost_nano_usd"]), (&"a".into(), &1007.into()));
    assert_eq!((&by_account[1]["account_id"], &by_account[1]["requests"]), (&"b".into(), &1.into()));
    assert_eq!((&by_account[0]["errors"], &by_account[0]["uncosted_requests"]), (&1.into(), &2.into()));
    assert_eq!(field_names(&by_account[0]), TOTAL_FIELDS);
    let by_key = place.json(&["usage", "--by", "key", "--since", "2026-01-02"]);
    assert_eq!(by_key.as_array().unwrap().len(), 1);
    assert_eq!(by_key[0]["key_id"], "k3");
    let by_day = place.json(&["usage", "--by", "day"]);
    assert_eq!((&by_day[0]["day"], &by_day[0]["cost_nano_usd"]), (&"2026-01-02".into(), &30.into()));
    assert_eq!((&by_day[1]["day"], &by_day[1]["cost_nano_usd"]), (&"2026-01-01".into(), &1007.into()));

    let for_people = place.text(&["usage"]);
    assert!(for_people.contains("0.000001") && for_people.contains("estimated, interrupted"), "{for_people}");
    assert!(place.text(&["usage", "--by", "day"]).contains("2026-01-02"));
}

#[test]
fn usage_is_not_cut() {
    let place = Place::new();
    place.account();
    place.doctor(
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2500)
         INSERT INTO usage_records (seq, request_id, account_id, key_id, model, provider, status, input_tokens,
          cache_read_tokens, cache_write_5m_tokens, cache_write_1h_tokens, output_tokens, reasoning_tokens,
          cost_nano_usd, estimated, interrupted, started_at_ms, first_token_ms, total_ms)
         SELECT i, '0198c5a1-0000-7000-8000-' || CAST(100000000000 + i AS TEXT), 'a', 'k', 'm', 'p', 200,
         1, 0, 0, 0, 1, 0, 1, FALSE, FALSE, 1767225600000 + i / 7, 1, 1 FROM n",
    );
    let listed = place.json(&["usage"]);
    let ids: Vec<&str> = listed.as_array().unwrap().iter().map(|one| one["request_id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), 2500);
    assert!(ids.windows(2).all(|pair| pair[0] > pair[1]), "newest first, each once");
    assert_eq!(place.text(&["usage"]).lines().count(), 2501);
}

#[test]
fn the_audit_names_a_doctored_balance() {
    let place = Place::new();
    let account = place.account();
    place.text(&["account", "credit", &account, "5"]);
    assert!(place.text(&["audit"]).starts_with("ok"));
    place.doctor("UPDATE accounts SET balance_nano_usd = balance_nano_usd + 1");
    let output = place.run(&["audit"]);
    let printed = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1));
    for part in ["balance", &account, "5.000000001", "5.00"] {
        assert!(printed.contains(part), "{part}: {printed}");
    }
    let output = place.run(&["audit", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        found,
        serde_json::json!([{ "kind": "balance", "id": account, "stored_nano_usd": 5_000_000_001_i64,
            "derived_nano_usd": 5_000_000_000_i64 }])
    );
}

#[test]
fn what_is_not_there_is_an_error_with_a_mend() {
    let place = Place::new();
    for arguments in [
        ["account", "show", "acct_none"].as_slice(),
        &["account", "credit", "acct_none", "5"],
        &["account", "plan", "acct_none", "pro"],
        &["account", "suspend", "acct_none"],
        &["account", "resume", "acct_none"],
        &["key", "create", "--account", "acct_none", "--name", "x"],
        &["key", "list", "--account", "acct_none"],
        &["usage", "--account", "acct_none"],
    ] {
        let error = place.error(1, arguments);
        assert!(error.contains("acct_none") && error.contains("account list"), "{arguments:?}: {error}");
    }
    assert!(place.error(1, &["key", "revoke", "key_none"]).contains("key list"));
    let error = place.error(1, &["account", "create", "Ada", "--plan", "gold"]);
    assert!(error.contains("gold") && error.contains("free, pro"), "{error}");
    let account = place.account();
    assert!(place.error(1, &["account", "plan", &account, "gold"]).contains("free, pro"));
    assert_eq!(place.json(&["account", "list"]).as_array().unwrap().len(), 1, "nothing else was made");
    assert_eq!(place.json(&["audit"]), Value::Array(vec![]));
}

#[test]
fn a_balance_stays_within_what_can_be_kept() {
    let place = Place::new();
    let account = place.account();
    place.text(&["account", "credit", &account, "9223372036.854775807"]);
    let error = place.error(1, &["account", "credit", &account, "0.000000001"]);
    assert!(error.contains("largest amount"), "{error}");
    assert_eq!(place.json(&["account", "show", &account])["balance_nano_usd"], i64::MAX);
    assert_eq!(place.json(&["audit"]), Value::Array(vec![]));
}

#[test]
fn misuse_is_told_apart_from_failure() {
    let place = Place::new();
    for arguments in [
        ["account", "credit", "acct_x", "five"].as_slice(),
        &["account", "credit", "acct_x", "0"],
        &["account", "credit", "acct_x", "1e3"],
        &["account", "credit", "acct_x", "0.0000000001"],
        &["account", "create", "Ada"],
        &["account", "create", "", "--plan", "free"],
        &["account", "create", "two\nlines", "--plan", "free"],
        &["key", "create", "--account", "acct_x"],
        &["key", "create", "--account", "acct_x", "--name", "k", "--rpm", "0"],
        &["key", "create", "--account", "acct_x", "--name", "k", "--budget", "-1"],
        &["key", "create", "--account", "acct_x", "--name", "k", "--allow-ip", "10.0.0.0/33"],
        &["key", "create", "--account", "acct_x", "--name", "k", "--models", "a,,b"],
        &["key", "create", "--account", "acct_x", "--name", "k", "--expires", "tomorrow"],
        &["usage", "--since", "yesterday"],
        &["usage", "--by", "year"],
        &["account"],
        &["key"],
    ] {
        place.error(2, arguments);
    }
}

#[test]
fn many_commands_at_once_lose_nothing() {
    let place = Place::new();
    let account = place.account();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..5 {
                    place.text(&["account", "credit", &account, "0.01"]);
                }
            });
        }
    });
    assert_eq!(place.json(&["account", "show", &account])["balance_nano_usd"], 200_000_000);
    assert_eq!(place.json(&["audit"]), Value::Array(vec![]));
}

#[test]
fn the_first_commands_may_come_together() {
    let place = Place::new();
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| place.account());
        }
    });
    assert_eq!(place.json(&["account", "list"]).as_array().unwrap().len(), 6);
}
