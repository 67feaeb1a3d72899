//! The admin API through its own door: what each route answers, what it refuses, and that it is the command line's equal.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::setup::{MODEL, PROVIDER_KEY};
use support::{Connection, Gate, Relay, Request, Response, Setup, Upstream};

const TOKEN: &str = "the-operators-own-token";

fn setup(upstream: &Upstream) -> Setup {
    Setup::new(upstream).env("ADMIN_TOKEN", TOKEN).table("[admin]\ntoken = { env = \"ADMIN_TOKEN\" }\n")
}

fn start() -> (Upstream, Relay) {
    let upstream = Upstream::polite();
    let relay = setup(&upstream).start();
    (upstream, relay)
}

/// A request of whoever knows the token.
fn ask(relay: &Relay, method: &str, path: &str, body: Option<&Value>) -> Response {
    let path = format!("/admin/v1{path}");
    let request = match body {
        Some(body) => Request { method: method.into(), ..Request::post(&path, body.to_string()) },
        None => Request::new(method, &path),
    };
    request.key(TOKEN).send(relay.admin)
}

/// Its document; it has to be answered with that status.
#[track_caller]
fn document(relay: &Relay, status: u16, method: &str, path: &str, body: Option<&Value>) -> Value {
    let answer = ask(relay, method, path, body);
    assert_eq!(answer.status, status, "{method} {path}: {}", answer.text());
    assert_eq!(answer.header("content-type"), Some("application/json"));
    answer.json()
}

#[track_caller]
fn get(relay: &Relay, path: &str) -> Value {
    document(relay, 200, "GET", path, None)
}

#[track_caller]
fn post(relay: &Relay, path: &str, body: &Value) -> Value {
    document(relay, 201, "POST", path, Some(body))
}

/// The rows of a list, page by page.
#[track_caller]
fn rows(relay: &Relay, path: &str, limit: usize) -> Vec<Value> {
    let (mut rows, mut after) = (Vec::new(), String::new());
    loop {
        let page = get(relay, &format!("{path}{}limit={limit}{after}", if path.contains('?') { "&" } else { "?" }));
        let data = page["data"].as_array().unwrap();
        assert_eq!(page["object"], "list");
        assert!(data.len() <= limit, "{page}");
        rows.extend(data.iter().cloned());
        if page["has_more"] == false {
            assert_eq!(page["next"], Value::Null);
            return rows;
        }
        after = format!("&after={}", page["next"].as_str().unwrap());
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value}")).to_owned()
}

fn hello() -> Value {
    json!({"model": MODEL, "messages": [{"role": "user", "content": "Say hello"}]})
}

#[test]
fn an_account_lives_its_life_as_the_command_line_sees_it() {
    let (_upstream, relay) = start();
    let made = post(&relay, "/accounts", &json!({"name": " Ada Lovelace ", "plan": "free"}));
    let id = text(&made["id"]);
    assert_eq!((&made["name"], &made["status"]), (&json!("Ada Lovelace"), &json!("active")));
    let shown = || relay.cli_json(&["account", "show", &id]);
    assert_eq!((&made, &get(&relay, &format!("/accounts/{id}"))), (&shown(), &made));

    let credits = format!("/accounts/{id}/credits");
    let granted = post(&relay, &credits, &json!({"amount": "5.00"}));
    assert_eq!((&granted["kind"], &granted["amount_nano_usd"]), (&json!("grant"), &json!(5_000_000_000_i64)));
    let corrected = post(&relay, &credits, &json!({"amount": "-0.000000001", "note": "a nano too many"}));
    assert_eq!((&corrected["kind"], &corrected["note"]), (&json!("correction"), &json!("a nano too many")));
    assert_eq!(get(&relay, &format!("/accounts/{id}"))["balance_nano_usd"], 4_999_999_999_i64);
    assert_eq!(rows(&relay, &credits, 1), [corrected, granted], "newest first");

    let patched = json!({"plan": "open", "status": "suspended", "name": "Ada"});
    let after = document(&relay, 200, "PATCH", &format!("/accounts/{id}"), Some(&patched));
    assert_eq!(
        (&after["plan"], &after["status"], &after["name"]),
        (&json!("open"), &json!("suspended"), &json!("Ada"))
    );
    assert_eq!(after, shown());
    assert_eq!(relay.cli_json(&["account", "rename", &id, "Bea"])["name"], "Bea");
    let resumed = document(&relay, 200, "PATCH", &format!("/accounts/{id}"), Some(&json!({"status": "active"})));
    assert_eq!((&resumed["status"], &resumed["name"]), (&json!("active"), &json!("Bea")));
    assert_eq!(Value::Array(rows(&relay, "/accounts", 1)), relay.cli_json(&["account", "list"]));
    assert_eq!(relay.cli_json(&["audit"]), json!([]));
}

#[test]
fn a_key_that_is_to_keep_within_the_plan_has_no_more_than_the_plan_of_the_day() {
    let (_upstream, relay) = start();
    let keys = format!("/accounts/{}/keys", relay.account.id);
    let limit_of = |key: &str| {
        let answer = Request::chat(&hello()).key(key).send(relay.http);
        u32::try_from(answer.number("x-ratelimit-limit")).unwrap()
    };
    let plans = limit_of(&relay.key);
    let wanted = json!({"name": "k", "requests_per_minute": plans + 1});
    assert_eq!(limit_of(&text(&post(&relay, &keys, &wanted)["key"])), plans + 1, "the operator's word");
    let wanted = json!({"name": "k", "requests_per_minute": plans + 1, "within_plan": true});
    let made = post(&relay, &keys, &wanted);
    assert_eq!(made["within_plan"], true);
    assert_eq!(limit_of(&text(&made["key"])), plans);
}

#[test]
fn a_key_works_until_it_is_revoked() {
    let (_upstream, relay) = start();
    let keys = format!("/accounts/{}/keys", relay.account.id);
    let wanted = json!({
        "name": "ci", "requests_per_minute": 60, "tokens_per_minute": 100_000, "concurrent_requests": 4,
        "budget": "2.5", "models": [MODEL], "allow_ip": ["127.0.0.1", "203.0.113.9/24"],
        "expires_at": "2100-01-31T12:00:00+01:00",
    });
    let mut made = post(&relay, &keys, &wanted);
    let (id, key) = (text(&made["id"]), text(&made["key"]));
    assert!(key.starts_with("tg_live_") && key.len() == 44, "{made}");
    assert_eq!(made["budget_nano_usd"], 2_500_000_000_i64);
    assert_eq!(made["allow_ip"], json!(["127.0.0.1/32", "203.0.113.0/24"]));
    assert_eq!(made["expires_at"], "2100-01-31T11:00:00.000Z");
    assert_eq!(Request::chat(&hello()).key(&key).send(relay.http).status, 200);

    made.as_object_mut().unwrap().remove("key");
    relay.usage_of(&relay.chat(&hello()).request_id());
    made["spent_nano_usd"] = get(&relay, &format!("/keys/{id}"))["spent_nano_usd"].clone();
    assert_eq!(get(&relay, &format!("/keys/{id}")), made, "without the key");
    assert_eq!(Value::Array(rows(&relay, "/keys", 1)), relay.cli_json(&["key", "list"]));
    assert_eq!(rows(&relay, &keys, 100).last().unwrap()["id"], id.as_str());

    let revoked = document(&relay, 200, "DELETE", &format!("/keys/{id}"), None);
    assert_eq!(revoked["status"], "revoked");
    let answer = Request::chat(&hello()).key(&key).send(relay.http);
    answer.assert_error(401, "authentication_error", "invalid_api_key");
    assert_eq!(document(&relay, 200, "DELETE", &format!("/keys/{id}"), None), revoked, "it stays as it was");

    let other = relay.account("open", "0");
    let poor = text(&post(&relay, &format!("/accounts/{}/keys", other.id), &json!({"name": "k"}))["key"]);
    let spend = || Request::chat(&hello()).key(&poor).send(relay.http);
    assert_eq!(spend().status, 402);
    post(&relay, &format!("/accounts/{}/credits", other.id), &json!({"amount": "1"}));
    assert_eq!(spend().status, 200, "money that came is there at once");
    document(&relay, 200, "PATCH", &format!("/accounts/{}", other.id), Some(&json!({"status": "suspended"})));
    assert_eq!(spend().status, 401);
}

#[test]
fn a_credit_that_is_sent_again_with_its_key_moves_money_once() {
    let (_upstream, relay) = start();
    let account = relay.account("free", "0");
    let path = format!("/admin/v1/accounts/{}/credits", account.id);
    let send = |amount: &str, key: &str| {
        let body = json!({"amount": amount, "note": "top-up"}).to_string();
        Request::post(&path, body).key(TOKEN).header("idempotency-key", key).send(relay.admin)
    };
    let answers: Vec<Response> = thread::scope(|scope| {
        let sending: Vec<_> = (0..4).map(|_| scope.spawn(|| send("3", "order-1"))).collect();
        sending.into_iter().map(|sent| sent.join().unwrap()).collect()
    });
    for answer in &answers {
        assert_eq!((answer.status, answer.json()), (201, answers[0].json()));
    }
    assert_eq!(answers.iter().filter(|answer| answer.header("idempotent-replayed").is_none()).count(), 1);
    let (_, param) = send("4", "order-1").assert_error(400, "invalid_request_error", "idempotency_key_reused");
    assert_eq!(param.as_deref(), Some("Idempotency-Key"));
    assert_eq!(send("3", "order-2").status, 201);
    send("3", "two words").assert_error(400, "invalid_request_error", "invalid_value");
    assert_eq!(relay.balance(&account), 6_000_000_000);
    assert_eq!(relay.cli_json(&["audit"]), json!([]));
}

#[test]
fn usage_is_what_the_command_line_says() {
    let (_upstream, relay) = start();
    let other = relay.key_of(&relay.account("open", "1"), &[]);
    let ids: Vec<String> = (0..5).map(|_| relay.chat(&hello()).request_id()).collect();
    let last = Request::chat(&hello()).key(&other.key).send(relay.http).request_id();
    ids.iter().chain([&last]).for_each(|id| {
        relay.usage_of(id);
    });
    let all = relay.cli_json(&["usage"]);
    assert_eq!(Value::Array(rows(&relay, "/usage", 2)), all);
    let ours = rows(&relay, &format!("/usage?account={}", relay.account.id), 2);
    assert_eq!(Value::Array(ours), relay.cli_json(&["usage", "--account", &relay.account.id]));
    let of_key = rows(&relay, &format!("/usage?key={}&model={MODEL}&since=1h", other.id), 100);
    assert_eq!((of_key.len(), &of_key[0]["request_id"]), (1, &json!(last)));
    let began = text(&all[2]["started_at"]);
    let (before, since) =
        (rows(&relay, &format!("/usage?until={began}"), 9), rows(&relay, &format!("/usage?since={began}"), 9));
    assert_eq!(before.len() + since.len(), 6);
    assert!(since.contains(&all[2]) && !before.contains(&all[2]));
    assert_eq!(rows(&relay, "/usage?model=other", 100), [] as [Value; 0]);

    for by in ["account", "model", "key", "day"] {
        let sorted = |rows: &[Value]| rows.iter().map(Value::to_string).collect::<BTreeSet<_>>();
        let told = relay.cli_json(&["usage", "--by", by]);
        assert_eq!(sorted(&rows(&relay, &format!("/usage?by={by}"), 1)), sorted(told.as_array().unwrap()), "{by}");
    }
    let sums = rows(&relay, &format!("/usage?by=model&key={}", other.id), 100);
    assert_eq!((sums.len(), &sums[0]["requests"]), (1, &json!(1)));
}

#[test]
fn pages_meet_while_rows_are_being_added() {
    let (_upstream, relay) = start();
    for number in 0..20 {
        post(&relay, "/accounts", &json!({"name": format!("first {number}"), "plan": "free"}));
    }
    let first = rows(&relay, "/accounts", 1000);
    let done = AtomicBool::new(false);
    let (paged, audit) = thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                post(&relay, "/accounts", &json!({"name": "later", "plan": "free"}));
            }
        });
        let paged = (rows(&relay, "/accounts", 3), rows(&relay, "/audit", 7));
        done.store(true, Ordering::Relaxed);
        paged
    });
    assert_eq!(paged[..first.len()], first);
    let all = rows(&relay, "/accounts", 1000);
    assert_eq!(paged, all[..paged.len()], "each once, in one order");
    let ids = |rows: &[Value]| rows.iter().map(|row| text(&row["id"])).collect::<Vec<_>>();
    let entries = ids(&rows(&relay, "/audit", 1000));
    assert_eq!(ids(&audit), entries[entries.len() - audit.len()..], "newest first, none twice, none left out");
}

#[test]
fn what_is_wrong_is_told_with_its_param() {
    let (_upstream, relay) = start();
    let account = format!("/accounts/{}", relay.account.id);
    let (credits, keys) = (format!("{account}/credits"), format!("{account}/keys"));
    let value = (400, "invalid_value");
    for (method, path, body, (status, code), param) in [
        ("POST", "/accounts", json!({"name": "Ada"}), (400, "missing_field"), Some("plan")),
        ("POST", "/accounts", json!({"name": "Ada", "plan": "gold"}), value, Some("plan")),
        ("POST", "/accounts", json!({"name": "two\nlines", "plan": "free"}), value, Some("name")),
        ("POST", "/accounts", json!({"name": 1, "plan": "free"}), value, Some("name")),
        ("POST", "/accounts", json!({"name": "Ada", "plan": "free", "balance": 5}), value, Some("balance")),
        ("POST", "/accounts", json!([]), (400, "invalid_json"), None),
        ("GET", "/accounts/acct_none", Value::Null, (404, "account_not_found"), Some("id")),
        ("PATCH", "/accounts/acct_none", json!({"plan": "free"}), (404, "account_not_found"), Some("id")),
        ("PATCH", &account, json!({"plan": "gold"}), value, Some("plan")),
        ("PATCH", &account, json!({"status": "gone"}), value, Some("status")),
        ("POST", &credits, json!({"amount": 5}), value, Some("amount")),
        ("POST", &credits, json!({"amount": "0"}), value, Some("amount")),
        ("POST", &credits, json!({"amount": "9223372036"}), value, Some("amount")),
        ("POST", "/accounts/acct_none/credits", json!({"amount": "5"}), (404, "account_not_found"), Some("id")),
        ("POST", &keys, json!({"name": "k", "requests_per_minute": 0}), value, Some("requests_per_minute")),
        ("POST", &keys, json!({"name": "k", "tokens_per_minute": u64::MAX}), value, Some("tokens_per_minute")),
        ("POST", &keys, json!({"name": "k", "budget": "-1"}), value, Some("budget")),
        ("POST", &keys, json!({"name": "k", "models": []}), value, Some("models")),
        ("POST", &keys, json!({"name": "k", "models": [1]}), value, Some("models[0]")),
        ("POST", &keys, json!({"name": "k", "allow_ip": ["10.0.0.0/33"]}), value, Some("allow_ip")),
        ("POST", &keys, json!({"name": "k", "expires_at": "tomorrow"}), value, Some("expires_at")),
        ("POST", "/accounts/acct_none/keys", json!({"name": "k"}), (404, "account_not_found"), Some("id")),
        ("GET", "/keys/key_none", Value::Null, (404, "key_not_found"), Some("id")),
        ("DELETE", "/keys/key_none", Value::Null, (404, "key_not_found"), Some("id")),
        ("GET", "/accounts?limit=0", Value::Null, value, Some("limit")),
        ("GET", "/accounts?after=acct_none", Value::Null, value, Some("after")),
        ("GET", "/accounts?page=2", Value::Null, value, Some("page")),
        ("GET", "/keys?after=acct_none", Value::Null, value, Some("after")),
        ("GET", "/usage?account=acct_none", Value::Null, value, Some("account")),
        ("GET", "/usage?key=key_none", Value::Null, value, Some("key")),
        ("GET", "/usage?since=yesterday", Value::Null, value, Some("since")),
        ("GET", "/usage?by=year", Value::Null, value, Some("by")),
        ("GET", "/usage?limit=1&limit=2", Value::Null, value, Some("limit")),
        ("GET", "/usage?after=none", Value::Null, value, Some("after")),
        ("GET", "/usage?by=day&after=none", Value::Null, value, Some("after")),
        ("GET", "/audit?after=none", Value::Null, value, Some("after")),
        ("GET", "/models?after=none", Value::Null, value, Some("after")),
        ("GET", "/nothing", Value::Null, (404, "unknown_url"), None),
        ("PUT", "/accounts", json!({}), (405, "method_not_allowed"), None),
    ] {
        let answer = ask(&relay, method, path, Some(&body).filter(|body| !body.is_null()));
        assert_eq!(answer.status, status, "{method} {path} {body}: {}", answer.text());
        let (_, told) = answer.assert_error(status, "invalid_request_error", code);
        assert_eq!(told.as_deref(), param, "{method} {path} {body}");
    }
    assert_eq!(ask(&relay, "PUT", "/accounts", None).header("allow"), Some("GET,HEAD,POST"));
    assert_eq!(relay.cli_json(&["account", "list"]).as_array().unwrap().len(), 1, "nothing was made");
    assert_eq!(relay.cli_json(&["key", "list"]).as_array().unwrap().len(), 1);
}

#[test]
fn requests_have_a_size_and_a_time() {
    let upstream = Upstream::polite();
    let relay = setup(&upstream).limits("body_idle_seconds_max = 1\nheader_seconds_max = 1").start();
    let large = json!({"name": "x".repeat(1 << 20), "plan": "free"});
    ask(&relay, "POST", "/accounts", Some(&large)).assert_error(413, "invalid_request_error", "request_too_large");
    let whole = Request::post("/admin/v1/accounts", json!({"name": "Ada", "plan": "free"}).to_string()).key(TOKEN);
    assert_eq!(whole.clone().chunked(3).send(relay.admin).status, 201);
    let mut connection = Connection::open(relay.admin);
    connection.write(whole.head().as_bytes());
    connection.response().assert_error(408, "invalid_request_error", "request_timeout");
    let mut connection = Connection::open(relay.admin);
    connection.write(b"GET /healthz HTTP/1.1\r\nhost: ");
    assert!(connection.is_closed(), "a head that does not come is not waited for");
}

#[test]
fn who_does_not_know_the_token_learns_nothing_and_is_held_off() {
    let upstream = Upstream::polite();
    let relay = setup(&upstream).limits("failed_auth_per_minute_max = 8").start();
    let url = |path: &str| format!("/admin/v1{path}");
    let wrong = [
        Request::get(&url("/accounts")),
        Request::get(&url("/accounts")).key("wrong"),
        Request::get(&url("/accounts")).key(&TOKEN[1..]),
        Request::get(&url("/accounts")).header("authorization", TOKEN),
        Request::post(&url("/accounts"), json!({"name": "Ada", "plan": "free"}).to_string()).key(&relay.key),
        Request::new("DELETE", &url("/keys/key_none")),
        Request::get(&url("/openapi.json")),
        Request::get(&url("/config")).key(""),
    ];
    for request in &wrong {
        request.send(relay.admin).assert_error(401, "authentication_error", "invalid_api_key");
    }
    for key in ["wrong", TOKEN] {
        let answer = Request::get(&url("/accounts")).key(key).send(relay.admin);
        answer.assert_error(429, "rate_limit_error", "too_many_failed_attempts");
        assert_eq!(answer.number("retry-after"), 60);
    }
    assert_eq!(Request::get("/readyz").send(relay.admin).status, 200);
    assert_eq!(relay.chat(&hello()).status, 200, "keys of the same address are good");
    assert_eq!(relay.cli_json(&["account", "list"]).as_array().unwrap().len(), 1);

    let without = Setup::new(&upstream).start();
    for path in ["/accounts", "/openapi.json"] {
        let answer = Request::get(&url(path)).key(TOKEN).send(without.admin);
        answer.assert_error(404, "invalid_request_error", "unknown_url");
    }
    assert_eq!(Request::get("/healthz").send(without.admin).status, 200);
}

#[test]
fn what_is_sold_and_by_which_configuration() {
    let (_upstream, relay) = start();
    let models = rows(&relay, "/models", 1);
    assert_eq!((models.len(), &models[0]["id"]), (2, &json!(MODEL)));
    assert_eq!((&models[0]["price"]["input"], &models[0]["price"]["output"]), (&json!("1.00"), &json!("2.00")));
    assert_eq!(models[0]["targets"][0]["provider"], "upstream");
    let plans = rows(&relay, "/plans", 1);
    assert_eq!((&plans[0]["name"], &plans[0]["requests_per_minute"]), (&json!("free"), &json!(30)));
    assert_eq!(rows(&relay, "/providers", 1)[0]["healthy"], true);

    let config = get(&relay, "/config");
    assert_eq!((&config["version"], &config["last_reload"]), (&json!(1), &Value::Null));
    relay.edit_config(|toml| toml.replace("requests_per_minute = 30\n", "requests_per_minute = 31\n"));
    let reloaded = support::until("the reload", || {
        Some(get(&relay, "/config")).filter(|config| config["last_reload"]["outcome"] == "ok")
    });
    assert_eq!((&reloaded["version"], &reloaded["last_reload"]["mistakes"]), (&json!(2), &json!([])));
    assert_eq!(rows(&relay, "/plans", 1)[0]["requests_per_minute"], 31);
    relay.edit_config(|toml| format!("nonsense = 1\n{toml}"));
    let refused = support::until("the refusal", || {
        Some(get(&relay, "/config")).filter(|config| config["last_reload"]["outcome"] == "refused")
    });
    assert_eq!((&refused["version"], &refused["loaded_at"]), (&json!(2), &reloaded["loaded_at"]));
    assert!(text(&refused["last_reload"]["mistakes"][0]).contains("nonsense"), "{refused}");
}

#[test]
fn every_change_is_in_the_audit_log_with_who_made_it() {
    let (_upstream, relay) = start();
    let id = text(&post(&relay, "/accounts", &json!({"name": "Ada", "plan": "free"}))["id"]);
    document(&relay, 200, "PATCH", &format!("/accounts/{id}"), Some(&json!({"plan": "open"})));
    post(&relay, &format!("/accounts/{id}/credits"), &json!({"amount": "1", "note": "n"}));
    let made = post(&relay, &format!("/accounts/{id}/keys"), &json!({"name": "k"}));
    relay.cli_json(&["key", "revoke", &text(&made["id"])]);
    let entries = rows(&relay, "/audit", 2);
    let told: Vec<_> =
        entries.iter().take(5).map(|entry| (text(&entry["actor_kind"]), text(&entry["action"]))).collect();
    let api = |action: &str| ("admin-token".to_owned(), action.to_owned());
    let by_cli = ("cli".to_owned(), "key.revoke".to_owned());
    assert_eq!(told, [by_cli, api("key.create"), api("account.credit"), api("account.update"), api("account.create")]);
    assert!(!text(&entries[0]["actor_name"]).is_empty(), "{}", entries[0]);
    assert_eq!((&entries[3]["before"], &entries[3]["after"]), (&json!({"plan": "free"}), &json!({"plan": "open"})));
    assert_eq!(entries[2]["after"]["balance_nano_usd"], 1_000_000_000);
    assert_eq!(Value::Array(entries), relay.cli_json(&["audit-log"]));
    let of_account = rows(&relay, &format!("/audit?subject={id}&since=1h"), 100);
    assert_eq!(Value::Array(of_account), relay.cli_json(&["audit-log", "--subject", &id, "--since", "1h"]));
    assert_eq!(relay.cli_json(&["audit-log", "--since", "2100-01-01"]), json!([]));
    let for_people = relay.cli(&["audit-log"]).stdout;
    assert!(for_people.contains("admin-token") && for_people.contains("account.credit"), "{for_people}");
}

#[test]
fn each_route_of_the_document_is_there_and_each_method_that_is_not_is_refused() {
    let (_upstream, relay) = start();
    let document = get(&relay, "/openapi.json");
    assert_eq!(document["openapi"], "3.1.0");
    let paths = document["paths"].as_object().unwrap();
    assert!(paths.len() > 10, "{document}");
    for (path, operations) in paths {
        for method in ["get", "post", "patch", "put", "delete"] {
            let path = path.replace("{id}", "none");
            let answer =
                Request { method: method.to_uppercase(), ..Request::post(&path, "{}") }.key(TOKEN).send(relay.admin);
            let is_there = operations.as_object().unwrap().contains_key(method);
            assert_eq!(answer.status != 405, is_there, "{method} {path}: {}", answer.text());
            assert_ne!(answer.json()["error"]["code"], "unknown_url", "{method} {path}");
            if is_there {
                let documented = &operations[method]["responses"];
                assert!(documented[answer.status.to_string()].is_object(), "{method} {path}: {}", answer.status);
            }
        }
    }
}

#[test]
fn nothing_secret_is_in_an_answer_a_log_or_the_audit() {
    let upstream = Upstream::polite();
    let relay = setup(&upstream).env("RUST_LOG", "trace").start();
    let made = post(&relay, &format!("/accounts/{}/keys", relay.account.id), &json!({"name": "k"}));
    let secret = text(&made["key"]);
    Request::get("/admin/v1/accounts").key("a-wrong-token").send(relay.admin);
    relay.usage_of(&relay.chat(&hello()).request_id());
    let mut told = relay.stdout() + &relay.stderr() + &relay.cli(&["audit-log", "--json"]).stdout;
    for path in
        ["/accounts", "/keys", "/usage", "/models", "/plans", "/providers", "/audit", "/config", "/openapi.json"]
    {
        told.push_str(&ask(&relay, "GET", path, None).text());
    }
    told.push_str(&get(&relay, &format!("/keys/{}", text(&made["id"]))).to_string());
    for hidden in [&*secret, &relay.key, TOKEN, "a-wrong-token", PROVIDER_KEY, "Say hello"] {
        assert!(!told.contains(hidden), "{hidden} in {told}");
    }
}

#[test]
fn a_change_by_a_command_is_seen_by_the_running_relay_in_two_seconds() {
    let (_upstream, relay) = start();
    let key = relay.key_of(&relay.account, &[]);
    let spend = || Request::chat(&hello()).key(&key.key).send(relay.http).status;
    assert_eq!(spend(), 200);
    relay.cli_json(&["key", "revoke", &key.id]);
    let began = Instant::now();
    support::until("the key to be refused", || (spend() == 401).then_some(()));
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert_eq!(get(&relay, &format!("/keys/{}", key.id))["status"], "revoked");
}

#[test]
fn whoever_is_connected_when_the_relay_ends_is_answered_or_told() {
    let gate = Gate::new();
    let upstream = {
        let gate = gate.clone();
        Upstream::start(move |request, answer| {
            gate.wait();
            answer.politely(request);
        })
    };
    let relay = setup(&upstream).start();
    let mut running = Request::chat(&hello()).key(&relay.key).begin(relay.http);
    support::until("the request to arrive", || (!upstream.received().is_empty()).then_some(()));
    let mut kept = Connection::open(relay.admin);
    assert_eq!(kept.ask(&Request::get("/readyz")).header("connection"), None);
    let mut fresh = Connection::open(relay.admin);
    relay.signal("TERM");
    support::until("the listener to close", || Connection::try_open(relay.admin).is_err().then_some(()));
    let answer = fresh.ask(&Request::get("/readyz"));
    assert_eq!((answer.status, &answer.json()["draining"]), (503, &json!(true)));
    assert_eq!(answer.header("connection"), Some("close"));
    assert!(kept.is_closed(), "it was idle");
    gate.open();
    assert_eq!(running.response().status, 200);
    assert!(relay.wait_for_end().success());
}
