//! The dashboard through the public door: how people come in, what they see, and what they cannot.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use serde_json::json;
use support::browser::{form, hidden};
use support::{Browser, Connection, Manager, Relay, Request, Reserved, Setup, until};

const PASSWORD: &str = "correct horse battery";

const DEMO: &str = r#"
[[provider]]
name = "demo"
dialect = "openai"
base_url = "builtin:demo"
[[model]]
id = "demo"
context_window = 8_192
output_tokens_max = 1_024
price = { input = "0.10", output = "0.40" }
targets = [{ provider = "demo", model = "demo" }]
"#;

/// A relay with a dashboard, and people of it.
struct House {
    relay: Relay,
    port: Reserved,
}

impl House {
    fn new(dashboard: &str) -> Self {
        Self::of(Setup::bare(), dashboard)
    }

    fn of(setup: Setup, dashboard: &str) -> Self {
        let port = Reserved::new();
        let setup = setup.table(&format!("[dashboard]\n{dashboard}")).table(DEMO);
        let setup = setup.provider_with("upstream", "http://127.0.0.1:9", "breaker = false");
        let relay = setup.listen(&format!("dashboard = \"{}\"", port.address)).start();
        Self { relay, port }
    }

    fn browser(&self) -> Browser {
        Browser::new(self.port.address)
    }

    /// The path of a link for somebody.
    fn link(&self, purpose: &str, email: &str) -> String {
        let link = self.relay.cli_json(&["user", purpose, email]);
        let url = link["url"].as_str().unwrap().to_owned();
        url.strip_prefix(&format!("http://{}", self.port.address)).unwrap().to_owned()
    }

    /// A new person with a password, signed in.
    fn person(&self, email: &str, role: &str, account: &str) -> Browser {
        self.relay.cli_json(&["user", "create", email, "--role", role, "--account", account]);
        let link = self.link("invite", email);
        let mut browser = self.browser();
        browser.open(&link);
        let page = browser.send(&link, &[("password", PASSWORD)]);
        assert_eq!(page.status, 200, "{}", page.text());
        browser
    }

    fn sign_in(&self, browser: &mut Browser, email: &str, password: &str) -> u16 {
        browser.open("/sign-in");
        browser.send("/sign-in", &[("email", email), ("password", password)]).status
    }
}

#[test]
fn an_invitation_is_looked_at_as_often_as_you_like_and_taken_once() {
    let house = House::new("");
    let account = house.relay.account("free", "0");
    house.relay.cli_json(&["user", "create", "Ada@Example.com", "--account", &account.id]);
    let link = house.link("invite", "ada@example.com");
    let mut browser = house.browser();
    for _ in 0..3 {
        assert_eq!(browser.open(&link).status, 200, "a look does not use it up");
    }
    assert_eq!(browser.cookie, None);
    let short = browser.send(&link, &[("password", "short")]);
    assert_eq!((short.status, browser.cookie.as_ref()), (400, None));
    assert!(short.text().contains("at least 10 characters"), "{}", short.text());
    assert_eq!(browser.send(&link, &[("password", PASSWORD)]).status, 200);
    assert!(browser.cookie.is_some() && browser.page.contains("ada@example.com"), "{}", browser.page);
    let mut late = house.browser();
    assert_eq!((late.open(&link).status, late.post(&link, &[("password", PASSWORD)]).status), (404, 404));

    browser.send("/sign-out", &[]);
    assert_eq!(browser.cookie, None);
    for (email, password, status) in [
        ("ada@example.com", "wrong wrong wrong", 400),
        ("nobody@example.com", PASSWORD, 400),
        ("ADA@example.com", PASSWORD, 200),
    ] {
        assert_eq!(house.sign_in(&mut browser, email, password), status, "{email}");
    }
    assert!(browser.cookie.is_some());
}

#[test]
fn whoever_is_unknown_and_whoever_is_wrong_are_told_the_same() {
    let house = House::new("");
    let account = house.relay.account("free", "0");
    house.person("ada@example.com", "customer", &account.id);
    house.relay.cli_json(&["user", "create", "invited@example.com", "--account", &account.id]);
    let told = ["ada@example.com", "nobody@example.com", "invited@example.com"].map(|email| {
        let mut browser = house.browser();
        house.sign_in(&mut browser, email, "wrong wrong wrong");
        assert_eq!(browser.cookie, None);
        browser.page.replace(email, "")
    });
    assert!(told[0] == told[1] && told[1] == told[2], "{told:?}");
}

#[test]
fn a_session_ends_when_its_owner_signs_out_changes_the_password_or_is_suspended() {
    let house = House::new("");
    let account = house.relay.account("free", "0");
    let mut first = house.person("ada@example.com", "customer", &account.id);
    let mut second = house.browser();
    assert_eq!(house.sign_in(&mut second, "ada@example.com", PASSWORD), 200);
    let is_in = |browser: &mut Browser| browser.open("/settings").text().contains("You are signed in as");
    assert!(is_in(&mut first) && is_in(&mut second));

    let old = second.cookie.clone();
    second.send("/sign-out", &[]);
    second.cookie = old;
    assert!(!is_in(&mut second), "the session is gone, not only the cookie");

    assert_eq!(house.sign_in(&mut second, "ada@example.com", PASSWORD), 200);
    let before = first.cookie.clone();
    first.open("/settings");
    let wrong = first.post("/settings/password", &[("current", "not the password"), ("password", "another password")]);
    assert_eq!(wrong.status, 400);
    first.send("/settings/password", &[("current", PASSWORD), ("password", "another password")]);
    assert!(is_in(&mut first) && !is_in(&mut second), "everywhere else");
    assert_ne!(first.cookie, before);
    assert_eq!(house.sign_in(&mut second, "ada@example.com", PASSWORD), 400);
    assert_eq!(house.sign_in(&mut second, "ada@example.com", "another password"), 200);

    house.relay.cli_json(&["user", "suspend", "ada@example.com"]);
    assert!(!is_in(&mut first) && !is_in(&mut second));
    assert_eq!(house.sign_in(&mut second, "ada@example.com", "another password"), 400);
}

#[test]
fn a_form_from_elsewhere_does_nothing() {
    let house = House::new("");
    let account = house.relay.account("free", "0");
    let mut browser = house.person("ada@example.com", "customer", &account.id);
    let proof = hidden(&browser.open("/settings").text(), "csrf").unwrap();
    let own = format!("http://{}", house.port.address);
    let attempt = |proof: &str, headers: &[(&str, &str)]| {
        let request = form("/settings/sign-out-elsewhere", &[("csrf", proof)]);
        headers.iter().fold(request, |request, (name, value)| request.header(name, value))
    };
    for (request, status) in [
        (attempt(&proof, &[]), 400),
        (attempt(&proof, &[("origin", "https://evil.example")]), 400),
        (attempt(&proof, &[("sec-fetch-site", "cross-site")]), 400),
        (attempt("", &[("origin", &own)]), 400),
        (attempt("AAAA", &[("origin", &own)]), 400),
        (attempt(&proof, &[("origin", &own)]), 303),
    ] {
        let answer = browser.ask(&request);
        assert_eq!(answer.status, status, "{:?}", request.headers);
    }
}

#[test]
fn passwords_are_not_guessed_by_trying() {
    let house = House::new("");
    let account = house.relay.account("free", "0");
    house.person("ada@example.com", "customer", &account.id);
    let mut browser = house.browser();
    let tried: Vec<u16> =
        (0..11).map(|_| house.sign_in(&mut browser, "ada@example.com", "wrong wrong wrong")).collect();
    assert_eq!((tried[0], tried[10]), (400, 429), "{tried:?}");
    assert_eq!(house.sign_in(&mut browser, "ada@example.com", PASSWORD), 429, "the right one neither");
}

#[test]
fn registration_is_closed_until_it_is_opened() {
    let house = House::new("");
    let mut browser = house.browser();
    assert_eq!(browser.open("/register").status, 404);
    assert_eq!(browser.post("/register", &[("email", "a@b.example"), ("password", PASSWORD)]).status, 404);

    let house = House::new("registration = true\nstarting_credit_usd = \"1.50\"");
    let mut browser = house.browser();
    browser.open("/register");
    let refused = browser.send("/register", &[("email", "no address"), ("password", PASSWORD)]);
    assert!(refused.status == 400 && refused.text().contains("no address"), "what was typed is kept");
    assert_eq!(browser.send("/register", &[("email", "Bea@example.com"), ("password", PASSWORD)]).status, 200);
    assert!(browser.page.contains("bea@example.com"));
    let users = house.relay.cli_json(&["user", "list"]);
    let account = house.relay.cli_json(&["account", "show", users[0]["account_id"].as_str().unwrap()]);
    assert_eq!((&account["plan"], &account["balance_nano_usd"]), (&"free".into(), &1_500_000_000_i64.into()));
    let mut again = house.browser();
    again.open("/register");
    assert_eq!(again.send("/register", &[("email", "bea@EXAMPLE.com"), ("password", PASSWORD)]).status, 400);
    assert_eq!(house.relay.cli_json(&["user", "list"]).as_array().unwrap().len(), 1);
}

#[test]
fn pages_load_nothing_from_elsewhere_and_are_not_kept() {
    let house = House::new("");
    let page = Request::get("/sign-in").send(house.port.address);
    let policy = page.headers.find("content-security-policy").unwrap();
    for part in ["default-src 'none'", "script-src 'self'", "style-src 'self'", "frame-ancestors 'none'"] {
        assert!(policy.contains(part), "{policy}");
    }
    assert!(!policy.contains("unsafe"), "{policy}");
    assert_eq!(page.headers.find("cache-control"), Some("no-store"));
    assert_eq!(page.headers.find("x-content-type-options"), Some("nosniff"));
    let text = page.text();
    assert!(!text.contains(" style=") && !text.contains("<style") && !text.contains("javascript:"), "{text}");
    for asset in ["/assets/style.", "/assets/script.", "/assets/icon."] {
        let path = text.split('"').find(|part| part.starts_with(asset)).unwrap();
        let file = Request::get(path).send(house.port.address);
        assert_eq!(file.status, 200);
        assert!(file.headers.find("cache-control").unwrap().contains("immutable"));
    }
    assert_eq!(Request::get("/assets/../sign-in").send(house.port.address).status, 404);
}

/// The API key that a page shows.
fn key_in(page: &str) -> String {
    let rest = &page[page.find("tg_live_").expect("no key on the page")..];
    rest[..rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap()].to_owned()
}

/// The id of the first key on the page of keys.
fn key_id_in(page: &str) -> String {
    let rest = page.split("/keys/key_").nth(1).expect("no key on the page");
    format!("key_{}", rest.split('"').next().unwrap())
}

#[test]
fn a_key_is_made_shown_once_used_seen_and_revoked() {
    let house = House::new("");
    let account = house.relay.account("free", "1");
    let mut browser = house.person("ada@example.com", "customer", &account.id);
    let once = hidden(&browser.open("/keys/new").text(), "once").unwrap();
    let typed = [("name", "laptop"), ("rpm", "7"), ("budget", "0.50"), ("models", "demo"), ("once", once.as_str())];
    let made = browser.send("/keys", &typed);
    assert_eq!(made.status, 200, "{}", made.text());
    let key = key_in(&made.text());
    let again = browser.send("/keys", &typed);
    assert!(
        again.status == 200 && !again.text().contains("tg_live_"),
        "loaded again it makes no other: {}",
        again.text()
    );
    assert_eq!(house.relay.cli_json(&["key", "list", "--account", &account.id]).as_array().unwrap().len(), 1);
    assert!(made.text().contains(&format!("http://{}/v1", house.relay.http)), "the snippets have the base URL");
    assert!(made.text().contains("Python") && made.text().contains("Node"));

    let body = json!({"model": "demo", "messages": [{"role": "user", "content": "Hello"}]});
    let answer = Request::chat(&body).key(&key).send(house.relay.http);
    assert_eq!((answer.status, answer.headers.find("x-ratelimit-limit-requests")), (200, Some("7")));
    let request_id = answer.headers.find("x-request-id").unwrap().to_owned();
    until("the request on the page of usage", || browser.open("/usage").text().contains(&request_id).then_some(()));
    assert!(browser.page.contains("laptop"));
    assert!(Request::get("/usage.csv").send(house.port.address).status == 303, "not without a session");
    let file = browser.ask(&Request::get("/usage.csv"));
    assert!(file.headers.find("content-disposition").unwrap().contains("attachment"));
    assert!(file.text().contains(&request_id) && file.text().lines().count() == 2, "{}", file.text());
    assert!(browser.open("/overview").text().contains("1 request<"), "{}", browser.page);

    let list = browser.open("/keys").text();
    assert!(!list.contains(&key) && !list.contains(">never<"), "{list}");
    let id = key_id_in(&list);
    let shown = browser.open(&format!("/keys/{id}")).text();
    assert!(!shown.contains(&key) && shown.contains("$0.50"), "{shown}");
    assert!(browser.send(&format!("/keys/{id}/revoke"), &[]).text().contains("revoked"));
    until("the key to be refused", || {
        (Request::chat(&body).key(&key).send(house.relay.http).status == 401).then_some(())
    });
    let entries = house.relay.cli_json(&["audit-log", "--subject", &id]);
    let told: Vec<_> =
        entries.as_array().unwrap().iter().map(|entry| (&entry["action"], &entry["actor_name"])).collect();
    let ada = json!("ada@example.com");
    assert_eq!(told, [(&json!("key.revoke"), &ada), (&json!("key.create"), &ada)]);
}

#[test]
fn an_account_makes_itself_so_many_keys_and_no_more() {
    let house = House::new("keys_per_account_max = 2");
    let account = house.relay.account("free", "1");
    let mut browser = house.person("ada@example.com", "customer", &account.id);
    for name in ["a", "b"] {
        browser.open("/keys/new");
        assert_eq!(browser.send("/keys", &[("name", name)]).status, 200);
    }
    browser.open("/keys/new");
    let refused = browser.send("/keys", &[("name", "c")]);
    assert!(refused.status == 400 && refused.text().contains("may have 2"), "{}", refused.text());
    let id = key_id_in(&browser.open("/keys").text());
    browser.open(&format!("/keys/{id}"));
    browser.send(&format!("/keys/{id}/revoke"), &[]);
    browser.open("/keys/new");
    assert_eq!(browser.send("/keys", &[("name", "c")]).status, 200);
}

#[test]
fn a_key_that_the_plan_does_not_allow_is_refused_and_what_was_typed_stays() {
    let house = House::new("");
    let account = house.relay.account("free", "1");
    let mut browser = house.person("ada@example.com", "customer", &account.id);
    browser.open("/keys/new");
    let typed = [("name", "my <laptop>"), ("rpm", "31"), ("budget", "1.25"), ("expires", "2099-01-31")];
    let page = browser.send("/keys", &typed);
    assert_eq!(page.status, 400);
    let text = page.text();
    assert!(text.contains("Your plan allows at most 30 requests a minute."), "{text}");
    for value in ["my &#60;laptop&#62;", "value=\"31\"", "value=\"1.25\"", "value=\"2099-01-31\""] {
        assert!(text.contains(value), "{value}: {text}");
    }
    assert!(!text.contains("my <laptop>") && !text.contains("tg_live_"));
    assert_eq!(house.relay.cli_json(&["key", "list", "--account", &account.id]).as_array().unwrap().len(), 0);
}

#[test]
fn credit_is_seen_by_the_customer_as_soon_as_it_is_given() {
    let house = House::new("api_url = \"https://api.example.com/v1\"");
    let account = house.relay.account("free", "0");
    let mut browser = house.person("ada@example.com", "customer", &account.id);
    assert!(browser.open("/overview").text().contains("You have no credit"));
    house.relay.cli_json(&["account", "credit", &account.id, "12.50", "--note", "for <you>"]);
    assert!(browser.open("/overview").text().contains("$12.50"));
    let history = browser.open("/credit").text();
    assert!(history.contains("grant") && history.contains("for &#60;you&#62;"), "{history}");
    assert!(browser.open("/start").text().contains("https://api.example.com/v1/chat/completions"));
    assert!(browser.open("/models").text().contains("$0.40"));
}

#[test]
fn an_operator_invites_somebody_and_shuts_them_out_again() {
    let house = House::new("");
    let account = house.relay.account("free", "0");
    let mut operator = house.person("op@example.com", "operator", &account.id);
    operator.open("/operator/people");
    let typed = [("email", "bea@example.com"), ("role", "customer"), ("account", "acct_none")];
    let refused = operator.send("/operator/people", &typed);
    assert!(refused.status == 400 && refused.text().contains("bea@example.com"), "{}", refused.text());
    let typed = [("email", "bea@example.com"), ("role", "customer"), ("account", account.id.as_str())];
    let invited = operator.send("/operator/people", &typed).text();
    let own = format!("http://{}", house.port.address);
    let link = invited.split(&own).nth(1).unwrap().split('<').next().unwrap().to_owned();
    let mut bea = house.browser();
    bea.open(&link);
    bea.send(&link, &[("password", PASSWORD)]);
    assert!(bea.open("/overview").text().contains("bea@example.com"));
    assert_eq!(bea.open("/operator/people").status, 404);

    let users = house.relay.cli_json(&["user", "list"]);
    let id = |email: &str| {
        let users = users.as_array().unwrap();
        users.iter().find(|user| user["email"] == email).unwrap()["id"].as_str().unwrap().to_owned()
    };
    operator.open("/operator/people");
    assert_eq!(
        operator.post(&format!("/operator/people/{}/change", id("op@example.com")), &[("what", "suspend")]).status,
        400
    );
    let shut_out = operator.send(&format!("/operator/people/{}/change", id("bea@example.com")), &[("what", "suspend")]);
    assert!(shut_out.text().contains("suspended"), "{}", shut_out.text());
    assert!(bea.open("/overview").text().contains("Sign in"));
    let entries = house.relay.cli_json(&["audit-log", "--subject", &id("bea@example.com")]);
    assert_eq!((&entries[0]["action"], &entries[0]["actor_name"]), (&json!("user.update"), &json!("op@example.com")));
}

#[test]
fn whoever_is_signed_in_is_so_after_an_upgrade() {
    let manager = Manager::new();
    let house = House::of(manager.of(Setup::bare()), "");
    let account = house.relay.account("free", "0");
    let mut browser = house.person("ada@example.com", "customer", &account.id);
    let mut kept = Connection::open(house.port.address);
    assert_ne!(kept.ask(&Request::get("/sign-in")).header("connection"), Some("close"));
    manager.upgrade(&house.relay);
    assert!(browser.open("/overview").text().contains("ada@example.com"));
    assert_eq!(browser.send("/keys", &[("name", "laptop")]).status, 200, "a form of before is good");
    assert!(kept.is_closed(), "the old process holds nobody who asks nothing");
}

#[test]
fn commands_do_what_the_forms_do() {
    let house = House::new("");
    let relay = &house.relay;
    let (one, other) = (relay.account("free", "0"), relay.account("free", "0"));
    let made = relay.cli_json(&["user", "create", "ada@example.com", "--account", &one.id]);
    assert_eq!(
        (&made["role"], &made["status"], &made["account_id"]),
        (&json!("customer"), &json!("invited"), &json!(one.id))
    );
    let id = made["id"].as_str().unwrap();
    for (arguments, field, value) in [
        (vec!["role", id, "operator"], "role", "operator"),
        (vec!["account", "ADA@example.com", &*other.id], "account_id", &*other.id),
        (vec!["suspend", id], "status", "suspended"),
        (vec!["resume", id], "status", "invited"),
        (vec!["sign-out", id], "email", "ada@example.com"),
    ] {
        let changed = relay.cli_json(&[vec!["user"], arguments.clone()].concat());
        assert_eq!(changed[field], value, "{arguments:?}");
    }
    for (purpose, name) in [("invite", "invite"), ("reset", "reset"), ("sign-in-link", "sign_in")] {
        let link = relay.cli_json(&["user", purpose, "ada@example.com"]);
        assert_eq!((&link["purpose"], &link["user"]["id"]), (&json!(name), &json!(id)));
        assert!(link["url"].as_str().unwrap().starts_with(&format!("http://{}/link/", house.port.address)), "{link}");
    }
    let list = relay.cli(&["user", "list"]);
    assert!(list.stdout.contains("ada@example.com") && list.stdout.contains("operator"), "{}", list.stdout);
    for (arguments, told) in [
        (vec!["create", "ada@example.com", "--account", &*one.id], "already"),
        (vec!["create", "no-address", "--account", &*one.id], "e-mail address"),
        (vec!["create", "bea@example.com"], "--account"),
        (vec!["create", "bea@example.com", "--account", "acct_none"], "no account"),
        (vec!["invite", "nobody@example.com"], "no user"),
    ] {
        let refused = relay.cli(&[vec!["user"], arguments.clone()].concat());
        assert!(!refused.status.success() && refused.stderr.contains(told), "{arguments:?}: {}", refused.stderr);
    }
    let entries = relay.cli_json(&["audit-log", "--subject", id]);
    assert!(entries.as_array().unwrap().iter().all(|entry| entry["actor_kind"] == "cli"), "{entries}");
    assert!(!relay.stderr().contains("/link/") && !relay.stdout().contains("/link/"));
}
