//! What operators do in a browser, and what providers charge: known to operators, and to nobody else.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use serde_json::json;
use support::setup::PROVIDER_MODEL;
use support::{Browser, Relay, Request, Reserved, Setup, Upstream, until};

const PASSWORD: &str = "correct horse battery";

/// A polite answer uses 7 tokens and 3: at the price of tests 13,000 nano-USD, at this cost 6,500.
const COST: &str = r#"{ input = "0.50", output = "1.00", cache_read = "0.05" }"#;

/// A relay that knows what one model's provider charges and not what another's does, with a dashboard and an operator.
struct House {
    _upstream: Upstream,
    relay: Relay,
    port: Reserved,
    operator: Browser,
}

impl House {
    fn new() -> Self {
        let (upstream, port) = (Upstream::polite(), Reserved::new());
        let costed =
            support::setup::model("costed", &[("upstream", 0)]).replace(" }]", &format!(", cost = {COST} }}]"));
        assert!(costed.contains(&format!("{PROVIDER_MODEL:?}, weight = 1, tier = 0, cost =")), "{costed}");
        let setup = Setup::new(&upstream).table(&costed);
        let relay = setup.listen(&format!("dashboard = \"{}\"", port.address)).start();
        relay.cli_json(&["user", "create", "op@example.com", "--role", "operator"]);
        let link = relay.cli_json(&["user", "invite", "op@example.com"])["url"].as_str().unwrap().to_owned();
        let mut operator = Browser::new(port.address);
        come_in(&mut operator, &link);
        Self { _upstream: upstream, relay, port, operator }
    }

    fn ask(&self, model: &str) -> String {
        let say = json!([{"role": "user", "content": "Say hello"}]);
        let answer = self.relay.chat(&json!({"model": model, "messages": say}));
        assert_eq!(answer.status, 200, "{}", answer.text());
        let told = format!("{:?} {}", answer.headers, answer.text());
        assert!(!told.contains("6500") && !told.contains("provider_cost"), "a customer is told: {told}");
        answer.request_id()
    }

    fn status_of(&self, key: &str) -> u16 {
        Request::get("/v1/models").key(key).send(self.relay.http).status
    }
}

/// Takes an invitation.
fn come_in(browser: &mut Browser, url: &str) {
    let path = url.split_once("/link/").map(|(_, token)| format!("/link/{token}")).unwrap();
    browser.open(&path);
    let page = browser.send(&path, &[("password", PASSWORD)]);
    assert_eq!(page.status, 200, "{}", page.text());
}

/// What stands between two texts of a page, the first time.
fn between<'a>(page: &'a str, before: &str, after: &str) -> &'a str {
    let rest = page.split_once(before).unwrap_or_else(|| panic!("no {before}: {page}")).1;
    rest.split_once(after).unwrap_or_else(|| panic!("no {after}: {page}")).0
}

#[test]
fn what_providers_charge_is_known_to_operators_and_to_nobody_else() {
    let mut house = House::new();
    let costed = house.relay.usage_of(&house.ask("costed"));
    let unknown = house.relay.usage_of(&house.ask(support::setup::MODEL));
    assert_eq!((&costed["cost_nano_usd"], &costed["provider_cost_nano_usd"]), (&json!(13_000), &json!(6_500)));
    assert_eq!((&unknown["cost_nano_usd"], &unknown["provider_cost_nano_usd"]), (&json!(13_000), &json!(null)));
    for (by, requests) in [("account", 2), ("key", 2), ("provider", 2), ("day", 2), ("model", 1)] {
        let sums = house.relay.cli_json(&["usage", "--by", by]);
        let provider_cost: i64 =
            sums.as_array().unwrap().iter().map(|sum| sum["provider_cost_nano_usd"].as_i64().unwrap()).sum();
        let first = &sums[0];
        assert_eq!(
            (&first["requests"], &first["errors"], provider_cost),
            (&json!(requests), &json!(0), 6_500),
            "{sums}"
        );
    }
    assert!(house.relay.cli(&["audit"]).status.success());

    let models = Request::get("/v1/models").key(&house.relay.key).send(house.relay.http).text();
    assert!(models.contains("\"costed\"") && !models.contains("0.50") && !models.contains("\"cost\""), "{models}");
    house.operator.open("/operator/revenue");
    for shown in ["$0.000026", "$0.0000065", "$0.0000195", "not known of 1 request", "costed", "<svg"] {
        assert!(house.operator.page.contains(shown), "{shown}: {}", house.operator.page);
    }
    let account = house.relay.account.id.clone();
    house.relay.cli_json(&["user", "create", "ada@example.com", "--account", &account]);
    let link = house.relay.cli_json(&["user", "invite", "ada@example.com"])["url"].as_str().unwrap().to_owned();
    let mut ada = Browser::new(house.port.address);
    come_in(&mut ada, &link);
    for path in ["/overview", "/usage", "/usage.csv", "/models", "/keys", "/credit"] {
        let page = ada.open(path).text();
        assert!(
            !page.contains("0.0000065") && !page.contains("6500") && !page.contains("rovider cost"),
            "{path}: {page}"
        );
    }
    assert_eq!(ada.open("/operator/revenue").status, 404);
}

#[test]
fn an_operator_makes_an_account_whose_customer_comes_in_and_sees_the_money() {
    let mut house = House::new();
    let operator = &mut house.operator;
    operator.open("/operator/accounts");
    let fields = [("name", "Ada & Co."), ("plan", "open"), ("credit", "5.00"), ("email", "no address")];
    let refused = operator.send("/operator/accounts", &fields);
    assert!(
        refused.status == 400 && refused.text().contains("Ada &#38; Co."),
        "what was typed is kept: {}",
        operator.page
    );
    let fields = [("name", "Ada & Co."), ("plan", "open"), ("credit", "5.00"), ("email", "ada@example.com")];
    assert_eq!(operator.send("/operator/accounts", &fields).status, 200);
    let (link, account) = (
        between(&operator.page, "id=\"invitation-link\">", "<").to_owned(),
        between(&operator.page, "action=\"/operator/accounts/", "/credit").to_owned(),
    );
    let mut ada = Browser::new(house.port.address);
    come_in(&mut ada, &link);
    ada.open("/credit");
    assert!(ada.page.contains("$5.00"), "{}", ada.page);

    let credit = format!("/operator/accounts/{account}/credit");
    let once = support::browser::hidden(&operator.page, "once").unwrap();
    for _ in 0..2 {
        let fields = [("once", &*once), ("amount", "2.50"), ("note", "thanks")];
        assert_eq!(operator.post(&credit, &fields).status, 303, "sent twice");
    }
    assert_eq!(operator.post(&credit, &[("once", &*once), ("amount", "0"), ("note", "")]).status, 400);
    ada.open("/credit");
    assert!(ada.page.contains("$7.50"), "once: {}", ada.page);

    operator.open(&format!("/operator/accounts?q={account}"));
    assert!(operator.page.contains("Ada &#38; Co.") && operator.page.contains("$7.50"), "{}", operator.page);
    operator.open(&format!("/operator/audit?subject={account}"));
    for shown in ["user op@example.com", "account.create", "account.credit", "thanks"] {
        assert!(operator.page.contains(shown), "{shown}: {}", operator.page);
    }
}

#[test]
fn what_an_operator_suspends_or_revokes_is_refused_at_once() {
    let mut house = House::new();
    let (account, key) = (house.relay.account.id.clone(), house.relay.key.clone());
    assert_eq!(house.status_of(&key), 200);
    let page = format!("/operator/accounts/{account}");
    house.operator.open(&page);
    for (status, answer) in [("suspended", 401), ("active", 200)] {
        assert_eq!(house.operator.post(&format!("{page}/status"), &[("status", status)]).status, 303);
        assert_eq!(house.status_of(&key), answer, "{status}");
    }
    assert_eq!(house.operator.post(&format!("{page}/plan"), &[("plan", "none such")]).status, 400);
    assert_eq!(house.operator.post(&format!("{page}/plan"), &[("plan", "free")]).status, 303);
    assert_eq!(house.relay.cli_json(&["account", "show", &account])["plan"], "free");

    house.operator.open(&format!("/operator/keys?q={account}"));
    let revoke = between(&house.operator.page, "action=\"/operator/keys/", "\"").to_owned();
    let back = support::browser::hidden(&house.operator.page, "back").unwrap();
    assert_eq!(house.operator.send(&format!("/operator/keys/{revoke}"), &[("back", &back)]).status, 200);
    assert!(house.operator.page.contains("revoked") && house.operator.page.contains(&account));
    assert_eq!(house.status_of(&key), 401);
}

#[test]
fn operators_see_how_providers_and_the_process_are() {
    let mut house = House::new();
    house.ask("costed");
    let told = until("the request to be in the sums", || {
        let page = house.operator.open("/operator/providers").text();
        page.contains("1 requests ended there").then_some(page)
    });
    assert!(told.contains("upstream") && told.contains("healthy") && told.contains("closed"), "{told}");
    let live = house.operator.open("/operator/live").text();
    assert!(live.contains("data-fresh=\"/operator/live/numbers\"") && live.contains("<noscript>"), "{live}");
    let numbers = house.operator.open("/operator/live/numbers").text();
    assert!(numbers.contains("Requests a second") && !numbers.contains("<html"), "{numbers}");
    assert!(!house.operator.open("/operator/configuration").text().contains("was refused"));
    house.relay.edit_config(|toml| format!("{toml}\nnonsense = 1\n"));
    house.relay.signal("HUP");
    let told = until("the refused reload to be shown", || {
        let page = house.operator.open("/operator/configuration").text();
        page.contains("The last reload was refused").then_some(page)
    });
    assert!(told.contains("nonsense") && told.contains("tollgate.toml:"), "{told}");
}
