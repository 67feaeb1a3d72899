//! The dashboard through the public door: how people come in, what they see, and what they cannot.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use support::browser::form;
use support::{Browser, Relay, Request, Reserved, Setup};

const PASSWORD: &str = "correct horse battery";

/// A relay with a dashboard, and people of it.
struct House {
    relay: Relay,
    port: Reserved,
}

impl House {
    fn new(dashboard: &str) -> Self {
        let port = Reserved::new();
        let setup = Setup::bare().table(&format!("[dashboard]\n{dashboard}"));
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
    let proof = support::browser::hidden(&browser.open("/settings").text(), "csrf").unwrap();
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
