//! What is said about the metrics page, held against the page of a relay that has seen everything: every series that the
//! dashboard, the alerts and the README name is there with those labels, and what is there is in the README.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

#[path = "observability/promql.rs"]
mod promql;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use promql::{Expression, label_values};
use serde_json::{Value, json};
use support::setup::MODEL;
use support::{Relay, Request, Setup, Upstream, until};

/// What Prometheus adds to every series, or makes itself.
const TARGET_LABELS: [&str; 2] = ["job", "instance"];
const OWN_SERIES: [&str; 1] = ["up"];

/// Series by name, each with every set of labels that it was seen with.
type Page = BTreeMap<String, BTreeSet<BTreeSet<String>>>;

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// The series of a metrics page. A value of a label may hold anything but a quote that is not escaped.
fn series_of(page: &str) -> Page {
    let mut series = Page::new();
    for line in page.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let (name, rest) = line.split_at(line.find(['{', ' ']).unwrap());
        let labels = rest.strip_prefix('{').map(|rest| rest.rsplit_once('}').unwrap().0).unwrap_or_default();
        let names = labels.split("\",").filter_map(|pair| pair.split_once("=\"")).map(|(name, _)| name.to_owned());
        series.entry(name.to_owned()).or_default().insert(names.collect());
    }
    series
}

fn hello(model: &str, is_stream: bool) -> Value {
    json!({"model": model, "stream": is_stream, "messages": [{"role": "user", "content": "Say hello"}]})
}

/// A relay that has answered, refused, failed, tried again, delivered to sinks and reloaded; and its page.
fn page_of_a_relay_that_has_seen_everything() -> (Relay, Page) {
    let failing = Upstream::start(|_, answer| answer.json(500, &json!({"error": {"message": "no"}})));
    let polite = Upstream::polite();
    let hook = Upstream::start(|_, answer| answer.whole(200, &[], b""));
    let secret = format!("whsec_{}", STANDARD.encode(b"an example of thirty-two bytes!!"));
    let relay = Setup::bare()
        .provider("failing", &failing.base_url())
        .provider("polite", &polite.base_url())
        .model(MODEL, &[("failing", 0), ("polite", 1)])
        .env("HOOK", &secret)
        .table(&format!(
            "[[billing.sink]]\nkind = \"webhook\"\nurl = \"http://{}/in\"\nsecret = {{ env = \"HOOK\" }}\n\
             [[billing.sink]]\nkind = \"file\"\npath = \"usage/usage.ndjson\"",
            hook.address
        ))
        .start();
    for is_stream in [false, true] {
        assert_eq!(relay.chat(&hello(MODEL, is_stream)).status, 200);
    }
    assert_eq!(relay.chat(&hello("no-such-model", false)).status, 404);
    assert_eq!(Request::chat(&hello(MODEL, false)).key("tg_live_nobody").send(relay.http).status, 401);
    for sink in ["ledger", "webhook", "file"] {
        let delivered = || relay.metric("tollgate_sink_delivered_total", &[("sink", sink), ("outcome", "ok")]);
        until(sink, || (delivered() >= 2.0).then_some(()));
    }
    let page = series_of(&relay.metrics_page());
    (relay, page)
}

/// What is named and not there, of expressions, each with where it stands.
fn wrong(page: &Page, expressions: &[(String, Expression)]) -> Vec<String> {
    expressions.iter().flat_map(|(place, expression)| wrong_in(page, place, expression)).collect()
}

fn wrong_in(page: &Page, place: &str, expression: &Expression) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut known: BTreeSet<&str> = TARGET_LABELS.into_iter().collect();
    for selector in &expression.selectors {
        if OWN_SERIES.contains(&&*selector.series) {
            continue;
        }
        let Some(seen) = page.get(&selector.series) else {
            wrong.push(format!("{place}: there is no {}", selector.series));
            continue;
        };
        known.extend(seen.iter().flatten().map(String::as_str));
        let asked = selector.labels.iter().filter(|label| !TARGET_LABELS.contains(&label.as_str()));
        let asked: BTreeSet<String> = asked.cloned().collect();
        if !seen.iter().any(|labels| asked.is_subset(labels)) {
            wrong.push(format!("{place}: {} has no labels {asked:?}, but {seen:?}", selector.series));
        }
    }
    let groups = expression.grouping.iter().filter(|label| !known.contains(label.as_str()));
    wrong.extend(groups.map(|label| format!("{place}: none of its series has the label {label}")));
    wrong
}

/// `expr:` of each alert, with its name. The file is written so that an expression is on the line, or indented below `>-`.
fn alerts() -> Vec<(String, String)> {
    let text = read("conf/alerts.yml");
    let mut alerts: Vec<(String, String)> = Vec::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let trimmed = line.trim_start();
        if let Some(name) = trimmed.strip_prefix("- alert: ") {
            alerts.push((name.to_owned(), String::new()));
        }
        let Some(first) = trimmed.strip_prefix("expr: ") else { continue };
        let indent = line.len() - trimmed.len();
        let mut expression = if first == ">-" { String::new() } else { first.to_owned() };
        let is_below = |next: &&str| first == ">-" && next.len() - next.trim_start().len() > indent;
        while let Some(next) = lines.next_if(is_below) {
            expression.push_str(next);
        }
        alerts.last_mut().unwrap().1 = expression;
    }
    assert!(alerts.len() > 15 && alerts.iter().all(|(_, expression)| !expression.is_empty()), "{alerts:?}");
    alerts
}

/// Every expression of the dashboard, with its panel's title.
fn of_dashboard() -> Vec<(String, Expression)> {
    let dashboard: Value = serde_json::from_str(&read("conf/grafana.json")).unwrap();
    let mut found = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap();
        for target in panel["targets"].as_array().into_iter().flatten() {
            found.push((title.to_owned(), Expression::read(target["expr"].as_str().unwrap())));
        }
    }
    for annotation in dashboard["annotations"]["list"].as_array().unwrap() {
        found.push(("annotation".to_owned(), Expression::read(annotation["expr"].as_str().unwrap())));
    }
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        let query = variable["query"].as_str().unwrap();
        if variable["type"] == "query" {
            found.push((format!("variable {query}"), label_values(query)));
        }
    }
    assert!(found.len() > 30, "{}", found.len());
    found
}

/// Rows of the README's table of metrics: names as written there, with their labels.
fn of_readme() -> BTreeMap<String, BTreeSet<String>> {
    let readme = read("README.md");
    let rows = readme.lines().filter_map(|line| line.strip_prefix("| `tollgate_"));
    let names = rows.flat_map(|row| {
        let cell = row.split_once(" |").unwrap().0;
        format!("`tollgate_{cell}")
            .split('`')
            .filter(|name| name.starts_with("tollgate_"))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    });
    let split = |name: String| {
        let (name, labels) = name.split_once('{').map_or((&*name, ""), |(name, labels)| (name, labels));
        let labels = labels.trim_end_matches('}').split(',').filter(|label| !label.is_empty());
        (name.to_owned(), labels.map(str::to_owned).collect())
    };
    names.map(split).collect()
}

/// The names of families, as `# TYPE` has them.
fn families(page: &str) -> BTreeSet<String> {
    let types = page.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    types.map(|line| line.split(' ').next().unwrap().to_owned()).collect()
}

#[test]
fn every_series_that_is_named_somewhere_is_exported() {
    let (relay, page) = page_of_a_relay_that_has_seen_everything();
    let expressions: Vec<_> =
        alerts().into_iter().map(|(name, expression)| (name, Expression::read(&expression))).collect();
    assert_eq!(wrong(&page, &expressions), [""; 0], "conf/alerts.yml");
    assert_eq!(wrong(&page, &of_dashboard()), [""; 0], "conf/grafana.json");

    // The contract's own list, whatever the README says.
    let contract = [
        ("tollgate_requests_total", "model provider status"),
        ("tollgate_request_seconds", ""),
        ("tollgate_first_token_seconds", ""),
        ("tollgate_overhead_seconds", ""),
        ("tollgate_tokens_total", "model class"),
        ("tollgate_cost_usd_total", "model"),
        ("tollgate_refusals_total", "code"),
        ("tollgate_streams_active", ""),
        ("tollgate_upstream_attempts_total", "provider outcome"),
        ("tollgate_upstream_healthy", "provider"),
        ("tollgate_key_cache_total", "outcome"),
        ("tollgate_spool_events", ""),
        ("tollgate_spool_oldest_seconds", ""),
        ("tollgate_sink_delivered_total", "sink outcome"),
        ("tollgate_ledger_drift_nano_usd", ""),
        ("tollgate_config_reloads_total", "outcome"),
    ];
    let contract =
        contract.map(|(name, labels)| (name.to_owned(), labels.split_whitespace().map(str::to_owned).collect()));
    let readme = of_readme();
    let exact = |(name, labels): (&String, &BTreeSet<String>)| {
        let seen = page.get(name).or_else(|| page.get(&format!("{name}_count")));
        (seen != Some(&BTreeSet::from([labels.clone()]))).then(|| format!("{name}{labels:?} is {seen:?}"))
    };
    let contract: BTreeMap<String, BTreeSet<String>> = contract.into();
    assert_eq!(contract.iter().filter_map(exact).collect::<Vec<_>>(), [""; 0], "what is promised");
    assert_eq!(readme.iter().filter_map(exact).collect::<Vec<_>>(), [""; 0], "README.md");

    let exported = families(&relay.metrics_page());
    assert!(exported.contains("process_open_fds") && exported.contains("process_start_time_seconds"), "{exported:?}");
    let told: BTreeSet<&String> = readme.keys().collect();
    let own = exported.iter().filter(|name| name.starts_with("tollgate_"));
    let untold: Vec<&String> = own.filter(|name| !told.contains(name)).collect();
    assert_eq!(untold, [""; 0], "exported, and not in README.md");
}

#[test]
fn a_new_relay_has_the_counters_that_alerts_look_at() {
    let upstream = Upstream::polite();
    let relay = Setup::new(&upstream).start();
    let page = relay.metrics_page();
    for series in [
        "tollgate_refusals_total{code=\"overloaded\"} 0",
        "tollgate_refusals_total{code=\"billing_unavailable\"} 0",
        "tollgate_refusals_total{code=\"upstream_truncated\"} 0",
        "tollgate_config_reloads_total{outcome=\"refused\"} 0",
        "tollgate_upstream_retries_total{outcome=\"no_budget\"} 0",
        "tollgate_trace_spans_total{outcome=\"undelivered\"} 0",
        "tollgate_config_refused 0",
    ] {
        assert!(page.lines().any(|line| line == series), "{series}\n{page}");
    }
}

#[test]
fn a_configuration_that_is_refused_is_shown_until_it_is_mended() {
    let upstream = Upstream::polite();
    let relay = Setup::new(&upstream).start();
    relay.edit_config(|text| format!("{text}\nwhat = true\n"));
    until("the refusal", || (relay.metric("tollgate_config_refused", &[]) == 1.0).then_some(()));
    assert_eq!(relay.metric("tollgate_config_reloads_total", &[("outcome", "refused")]), 1.0);
    relay.edit_config(|text| text.replace("\nwhat = true\n", ""));
    until("the mend", || (relay.metric("tollgate_config_refused", &[]) == 0.0).then_some(()));
}

#[test]
fn every_alert_says_what_to_do_and_is_tried() {
    let (rules, tried) = (read("conf/alerts.yml"), read("tests/alerts.yml"));
    let alerts = alerts();
    for (name, _) in &alerts {
        let rule = rules.split(&format!("- alert: {name}\n")).nth(1).unwrap().split("- alert: ").next().unwrap();
        for part in ["severity: ", "summary: ", "description: "] {
            assert!(rule.contains(part), "{name} has no {part}");
        }
        let fires = format!("exp_samples: [{{ labels: '{{alertname=\"{name}\"}}', value: 1 }}]");
        assert!(tried.contains(&fires), "{name} is not tried in tests/alerts.yml");
    }
    // The healthy relay of those tests has every series that an alert looks at.
    let healthy = tried.split("- name: ").nth(1).unwrap();
    for selector in alerts.iter().flat_map(|(_, expression)| Expression::read(expression).selectors) {
        assert!(healthy.contains(&format!("'{}{{", selector.series)), "{}", selector.series);
    }
}

#[test]
fn what_is_misspelt_is_found() {
    let page = series_of("a_total{code=\"x\",model=\"a,b=\"} 1\nb_bucket{le=\"1\"} 2\nc 3\n");
    let wrong = |text: &str| wrong_in(&page, "here", &Expression::read(text)).len();
    assert_eq!(
        wrong("sum by (code) (rate(a_total{code=~\"x|y\", model!=\"\"}[5m])) / on (job) c > 0.5 and up == 1"),
        0
    );
    assert_eq!(wrong("histogram_quantile(0.9, sum by (le) (rate(b_bucket{job=\"$job\"}[$__rate_interval])))"), 0);
    for misspelt in [
        "a_totals",
        "sum(rate(a{code=\"x\"}[5m]))",
        "a_total{cod=\"x\"}",
        "sum by (cod) (a_total)",
        "c{code=\"x\"}",
        "c + d",
    ] {
        assert_eq!(wrong(misspelt), 1, "{misspelt}");
    }
    assert_eq!(wrong_in(&page, "here", &label_values("label_values(a_total{job=\"$job\"}, model)")), [""; 0]);
    assert_eq!(wrong_in(&page, "here", &label_values("label_values(a_total, provider)")).len(), 1);
}
