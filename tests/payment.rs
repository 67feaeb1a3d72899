//! Plans by the month, vouchers and payment by card, through the public doors: pages, the command line, the admin API, and events as
//! Stripe signs them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use serde_json::{Value, json};
use support::setup::MODEL;
use support::stripe::{self, SECRET_KEY, Stripe, WEBHOOK_SECRET, deliver, deliver_signed, event};
use support::{Account, Browser, Relay, Request, Reserved, Response, Setup, Upstream, until};

const PASSWORD: &str = "correct horse battery";
const ADMIN_TOKEN: &str = "the-operators-own-token";

const PLANS: &str = r#"
[[plan]]
name = "none"
requests_per_minute = 30
price_usd = "0"
default = true
[[plan]]
name = "starter"
requests_per_minute = 60
price_usd = "9"
stripe_price = "price_starter"
[[plan]]
name = "pro"
requests_per_minute = 120
price_usd = "29"
stripe_price = "price_pro"
[[plan]]
name = "max"
requests_per_minute = 300
price_usd = "99"
stripe_price = "price_declined"
[admin]
token = { env = "ADMIN_TOKEN" }
"#;

/// A relay that sells plans, and its dashboard.
struct Shop {
    relay: Relay,
    port: Reserved,
    stripe: Stripe,
    _upstream: Upstream,
}

impl Shop {
    /// With payment by card.
    fn new() -> Self {
        Self::with("SK", "WH")
    }

    /// With Stripe's secrets in those variables: `SK` and `WH` hold good ones, `EMPTY` an empty one.
    fn with(secret_key: &str, webhook_secret: &str) -> Self {
        let (upstream, stripe, port) = (Upstream::polite(), Stripe::start(), Reserved::new());
        let payment = format!(
            "[payment.stripe]\nsecret_key = {{ env = \"{secret_key}\" }}\nwebhook_secret = {{ env = \"{webhook_secret}\" }}\n\
             base_url = \"{}\"\ntop_up_usd = [10, 25]\n",
            stripe.base_url()
        );
        let setup = Setup::new(&upstream).table(PLANS).table(&payment);
        let setup = [("SK", SECRET_KEY), ("WH", WEBHOOK_SECRET), ("EMPTY", ""), ("ADMIN_TOKEN", ADMIN_TOKEN)]
            .into_iter()
            .fold(setup, |setup, (name, value)| setup.env(name, value));
        let relay = setup.listen(&format!("dashboard = \"{}\"", port.address)).start();
        Self { relay, port, stripe, _upstream: upstream }
    }

    /// A customer with an account of so many dollars, signed in.
    fn customer(&self, email: &str, dollars: &str) -> (Account, Browser) {
        let account = self.relay.account("none", dollars);
        let browser = self.person(email, &["--account", &account.id]);
        (account, browser)
    }

    fn person(&self, email: &str, options: &[&str]) -> Browser {
        self.relay.cli_json(&[&["user", "create", email], options].concat());
        let url = self.relay.cli_json(&["user", "invite", email])["url"].as_str().unwrap().to_owned();
        let link = url.strip_prefix(&format!("http://{}", self.port.address)).unwrap();
        let mut browser = Browser::new(self.port.address);
        browser.open(link);
        assert_eq!(browser.send(link, &[("password", PASSWORD)]).status, 200, "{}", browser.page);
        browser
    }

    /// Delivers an event, and returns what became of it.
    #[track_caller]
    fn told(&self, id: &str, kind: &str, object: &Value) -> String {
        let answer = deliver(self.port.address, &event(id, kind, object));
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()["outcome"].as_str().unwrap().to_owned()
    }

    /// The account's plan, and its balance in cents.
    fn stands(&self, account: &Account) -> (String, i64) {
        assert_eq!(self.relay.cli_json(&["audit"]), json!([]));
        let shown = self.relay.cli_json(&["account", "show", &account.id]);
        let nano = shown["balance_nano_usd"].as_i64().unwrap();
        assert_eq!(nano % 10_000_000, 0, "{nano}");
        (shown["plan"].as_str().unwrap().to_owned(), nano / 10_000_000)
    }

    fn api(&self, method: &str, path: &str, body: Option<Value>) -> Response {
        let path = format!("/admin/v1{path}");
        let request = match body {
            Some(body) => Request { method: method.into(), ..Request::post(&path, body.to_string()) },
            None => Request::new(method, &path),
        };
        request.key(ADMIN_TOKEN).send(self.relay.admin)
    }

    #[track_caller]
    fn api_json(&self, status: u16, method: &str, path: &str, body: Option<Value>) -> Value {
        let answer = self.api(method, path, body);
        assert_eq!(answer.status, status, "{method} {path}: {}", answer.text());
        answer.json()
    }
}

fn is(plan: &str, cents: i64) -> (String, i64) {
    (plan.to_owned(), cents)
}

#[test]
fn credit_that_is_bought_by_card_comes_with_the_signed_event_and_once() {
    let shop = Shop::new();
    let (account, mut browser) = shop.customer("ada@example.com", "0");
    let page = browser.open("/plan");
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.contains("form-action 'self' https://checkout.stripe.com "), "{policy}");
    let once = support::browser::hidden(&browser.page, "once").unwrap();
    let paying = [browser.post("/plan/checkout", &[("usd", "25"), ("once", &once)]), {
        browser.post("/plan/checkout", &[("usd", "25"), ("once", &once)])
    }];
    for answer in &paying {
        assert_eq!((answer.status, answer.header("location")), (303, Some("http://127.0.0.1:9/pay/cs_0")));
    }
    let asked = shop.stripe.asked();
    for (field, value) in [
        ("mode", "payment"),
        ("client_reference_id", &account.id),
        ("metadata[tollgate_account]", &account.id),
        ("line_items[0][price_data][unit_amount]", "2500"),
        ("line_items[0][price_data][currency]", "usd"),
        ("success_url", &format!("http://{}/plan?done=paid", shop.port.address)),
    ] {
        assert_eq!(asked.get(field).map(String::as_str), Some(value), "{field}");
    }
    assert_eq!(shop.stands(&account), is("none", 0), "coming back from there is no payment");
    assert!(browser.open("/plan?done=paid").text().contains("Thank you"));

    let session = stripe::paid_session(&account.id, "pi_1", 2_500);
    assert_eq!(shop.told("evt_1", "checkout.session.completed", &session), "taken");
    assert_eq!(shop.told("evt_1", "checkout.session.completed", &session), "repeated");
    assert_eq!(shop.told("evt_2", "checkout.session.async_payment_succeeded", &session), "taken");
    assert_eq!(shop.stands(&account), is("none", 2_500));
    let charge = json!({"payment_intent": "pi_1", "amount_refunded": 1_000, "currency": "usd"});
    shop.told("evt_3", "charge.refunded", &charge);
    let dispute = json!({"payment_intent": "pi_1", "amount": 2_500, "currency": "usd", "status": "needs_response"});
    shop.told("evt_4", "charge.dispute.created", &dispute);
    assert_eq!(shop.stands(&account), is("none", 0));
    assert_eq!(shop.told("evt_5", "customer.created", &json!({"id": "cus_1"})), "ignored");
    let trail = shop.relay.cli_json(&["audit-log", "--subject", &account.id]).to_string();
    assert!(trail.contains("\"stripe\"") && trail.contains("payment.take_back"), "{trail}");
}

#[test]
fn an_event_that_stripe_did_not_sign_now_is_refused_and_does_nothing() {
    let shop = Shop::new();
    let account = shop.relay.account("none", "0");
    let body =
        event("evt_1", "checkout.session.completed", &stripe::paid_session(&account.id, "pi_1", 100)).to_string();
    let (to, now) = (shop.port.address, stripe::now_seconds());
    let good = stripe::signature(WEBHOOK_SECRET, now, &body);
    for (signature, body) in [
        (String::new(), body.clone()),
        ("t=1,v1=".to_owned(), body.clone()),
        (stripe::signature("whsec_another", now, &body), body.clone()),
        (stripe::signature(WEBHOOK_SECRET, now - 400, &body), body.clone()),
        (stripe::signature(WEBHOOK_SECRET, now + 400, &body), body.clone()),
        (good.clone(), body.replace(":100,", ":100000,")),
    ] {
        let answer = deliver_signed(to, body, &signature);
        answer.assert_error(400, "invalid_request_error", "bad_request");
    }
    let no_event = "[]".to_owned();
    let signed = stripe::signature(WEBHOOK_SECRET, now, &no_event);
    deliver_signed(to, no_event, &signed).assert_error(400, "invalid_request_error", "invalid_json");
    let large = " ".repeat(2 << 20);
    assert_eq!(deliver_signed(to, large, &good).status, 413);
    assert_eq!(shop.stands(&account), is("none", 0));
    assert_eq!(deliver_signed(to, body, &good).status, 200);
    assert_eq!(shop.stands(&account), is("none", 100));
    let log = shop.relay.stderr();
    assert!(log.contains("evt_1") && !log.contains(WEBHOOK_SECRET) && !log.contains(SECRET_KEY), "{log}");
}

#[test]
fn a_plan_by_card_is_had_changed_and_ended_as_events_tell_in_any_order() {
    let shop = Shop::new();
    let (account, mut browser) = shop.customer("ada@example.com", "5");
    let key = shop.relay.key_of(&account, &[]);
    browser.open("/plan");
    let once = support::browser::hidden(&browser.page, "once").unwrap();
    assert_eq!(browser.post("/plan/checkout", &[("plan", "starter"), ("once", &once)]).status, 303);
    let asked = shop.stripe.asked();
    assert_eq!(asked["mode"], "subscription");
    assert_eq!(asked["line_items[0][price]"], "price_starter");
    assert_eq!(asked["subscription_data[metadata][tollgate_account]"], account.id);

    // The invoice before the session, and the state twice.
    let state = |price, more| stripe::subscription("sub_1", &account.id, price, more);
    assert_eq!(shop.told("evt_1", "invoice.paid", &stripe::invoice("sub_1", "price_starter", 900, 0)), "taken");
    assert_eq!(shop.stands(&account), is("none", 500), "whose it is is not known yet");
    for outcome in ["taken", "repeated"] {
        let told = shop.told("evt_2", "customer.subscription.updated", &state("price_starter", json!({})));
        assert_eq!(told, outcome);
    }
    let session = stripe::subscription_session(&account.id, "sub_1");
    shop.told("evt_3", "checkout.session.completed", &session);
    assert_eq!(shop.stands(&account), is("starter", 500));
    let hello = json!({"model": MODEL, "messages": [{"role": "user", "content": "Say hello"}], "max_tokens": 5});
    until("the plan's limit at the relay", || {
        let answer = Request::chat(&hello).key(&key.key).send(shop.relay.http);
        (answer.status == 200 && answer.header("x-ratelimit-limit") == Some("60")).then_some(())
    });
    assert!(browser.open("/plan").text().contains("Paid by card until"), "{}", browser.page);

    let once = |browser: &Browser| support::browser::hidden(&browser.page, "once").unwrap();
    let now = once(&browser);
    let up = browser.send("/plan/change", &[("plan", "pro"), ("once", &now)]);
    assert!(up.status == 200 && up.text().contains("asked for"), "{}", up.text());
    let asked = shop.stripe.asked();
    assert_eq!((&*asked["items[0][id]"], &*asked["items[0][price]"]), ("si_1", "price_pro"));
    assert_eq!((&*asked["proration_behavior"], &*asked["billing_cycle_anchor"]), ("always_invoice", "now"));
    shop.told("evt_4", "invoice.paid", &stripe::invoice("sub_1", "price_pro", 2_900, 1));
    shop.told("evt_4b", "customer.subscription.updated", &state("price_pro", json!({})));
    assert_eq!(shop.relay.cli_json(&["account", "show", &account.id])["plan"], "pro");
    browser.open("/plan");
    let now = once(&browser);
    let declined = browser.post("/plan/change", &[("plan", "max"), ("once", &now)]);
    assert_eq!(declined.status, 402);
    assert!(declined.text().contains("declined, and nothing is changed"), "{}", declined.text());
    browser.open("/plan");
    let now = once(&browser);
    browser.send("/plan/change", &[("plan", "starter"), ("once", &now)]);
    assert_eq!(shop.stripe.asked()["proration_behavior"], "none", "down with the next invoice");

    browser.send("/plan/cancel", &[]);
    assert_eq!(shop.stripe.asked()["cancel_at_period_end"], "true");
    let ended = json!({"status": "canceled"});
    shop.told("evt_6", "customer.subscription.deleted", &state("price_pro", ended));
    shop.told("evt_5", "customer.subscription.updated", &state("price_pro", json!({"cancel_at_period_end": true})));
    let shown = shop.relay.cli_json(&["account", "show", &account.id]);
    assert_eq!(shown["plan"], "none");
    let periods = shop.relay.cli_json(&["subscription", "periods", &account.id]);
    let plans: Vec<_> = periods.as_array().unwrap().iter().map(|period| period["plan"].clone()).collect();
    assert_eq!(plans, ["pro", "starter"]);
}

#[test]
fn a_customer_pays_for_plans_from_credit() {
    let shop = Shop::new();
    let (account, mut browser) = shop.customer("ada@example.com", "50");
    browser.open("/plan");
    let dear = browser.post("/plan/subscribe", &[("plan", "max")]);
    assert_eq!(dear.status, 402);
    assert!(dear.text().contains("This costs $99.00 and your balance is $50.00"), "{}", dear.text());
    for plan in ["open", "free", "nothing", ""] {
        assert_eq!(browser.post("/plan/subscribe", &[("plan", plan)]).status, 400, "{plan} has no price");
    }
    assert_eq!(browser.send("/plan/subscribe", &[("plan", "starter")]).status, 200);
    assert!(browser.page.contains("Paid from your credit until"), "{}", browser.page);
    assert_eq!(shop.stands(&account), is("starter", 4_100));
    browser.send("/plan/subscribe", &[("plan", "starter")]);
    assert_eq!(shop.stands(&account), is("starter", 4_100), "sent twice, paid once");

    browser.send("/plan/cancel", &[]);
    assert!(browser.page.contains("It is cancelled"), "{}", browser.page);
    browser.send("/plan/keep", &[]);
    assert!(browser.page.contains("It renews by itself"), "{}", browser.page);
    let once = support::browser::hidden(&browser.page, "once").unwrap_or_default();
    let by_card = browser.post("/plan/checkout", &[("plan", "pro"), ("once", &once)]);
    assert!(by_card.status == 400 && by_card.text().contains("already"), "{}", by_card.text());
    assert_eq!(shop.stripe.upstream.count(), 0);

    let refused = shop.relay.cli(&["account", "plan", &account.id, "pro"]);
    assert!(refused.stderr.contains("has a subscription"), "{}", refused.stderr);
    let key = ("account_id", &account.id);
    let shown = shop.relay.cli_json(&["subscription", "show", &account.id]);
    assert_eq!((&shown[key.0], &shown["paid_by"], &shown["renews"]), (&json!(key.1), &json!("credit"), &json!(true)));
    let given = shop.relay.account("none", "0");
    shop.relay.cli_json(&["subscription", "start", &given.id, "pro", "--paid-by", "operator"]);
    assert_eq!(shop.stands(&given), is("pro", 0));
    shop.relay.cli_json(&["subscription", "end", &given.id]);
    assert_eq!(shop.stands(&given), is("none", 0));
}

#[test]
fn a_month_that_is_over_is_renewed_by_the_process_that_serves() {
    let shop = Shop::new();
    let accounts = [shop.relay.account("none", "20"), shop.relay.account("none", "10")];
    for account in &accounts {
        shop.relay.cli_json(&["subscription", "start", &account.id, "starter"]);
    }
    // As if they had begun 32 days ago.
    shop.relay.store().run(
        "UPDATE subscriptions SET anchor_ms = anchor_ms - 2764800000, period_ends_ms = period_ends_ms - 2764800000",
    );
    // It looks when it starts, and each minute.
    shop.relay.signal("TERM");
    shop.relay.restart();
    until("the renewal", || (shop.stands(&accounts[0]) == is("starter", 200)).then_some(()));
    until("the fall", || (shop.stands(&accounts[1]) == is("none", 100)).then_some(()));
    let log = shop.relay.cli_json(&["audit-log", "--subject", &accounts[1].id]).to_string();
    assert!(log.contains("insufficient_credits") && log.contains("\"relay\""), "{log}");
}

#[test]
fn a_voucher_is_redeemed_once_and_refused_twice() {
    let shop = Shop::new();
    let mut operator = shop.person("op@example.com", &["--role", "operator"]);
    let (ada, mut browser) = shop.customer("ada@example.com", "1");
    let (_, mut other) = shop.customer("bea@example.com", "1");
    operator.open("/operator/vouchers");
    for (fields, told) in [
        ([("amount", "0"), ("count", "2")], "The amount must be decimal USD"),
        ([("amount", "5"), ("count", "0")], "Write how many"),
        ([("amount", "5"), ("count", "1001")], "Write how many"),
    ] {
        let answer = operator.post("/operator/vouchers", &fields);
        assert!(answer.status == 400 && answer.text().contains(told), "{}", answer.text());
    }
    let made = operator.send("/operator/vouchers", &[("amount", "5"), ("count", "2"), ("note", "fair <2027>")]).text();
    let codes = made.split("<pre class=\"codes\" tabindex=\"0\">").nth(1).unwrap().split("</pre>").next().unwrap();
    let codes: Vec<&str> = codes.split_whitespace().collect();
    assert!(codes.len() == 2 && made.contains(&format!("{},5.00,", codes[0])), "{made}");
    let listed = operator.open("/operator/vouchers").text();
    assert!(listed.contains("fair &#60;2027&#62;") && !listed.contains(codes[0]), "{listed}");

    let many = operator.send("/operator/vouchers", &[("amount", "5"), ("count", "1000")]).text();
    assert!(many.matches(",5.00,").count() == 1_000 && many.len() < 80 << 10, "{}", many.len());
    let many = shop.relay.cli_json(&["voucher", "list"])[0]["id"].as_str().unwrap().to_owned();
    shop.relay.cli_json(&["voucher", "revoke", &many]);

    browser.open("/plan");
    let typed = codes[0].to_lowercase().replace('-', " ");
    assert!(browser.send("/plan/voucher", &[("code", &typed)]).text().contains("The voucher is redeemed"));
    assert_eq!(shop.stands(&ada), is("none", 600));
    other.open("/plan");
    for page in [&mut browser, &mut other] {
        let again = page.post("/plan/voucher", &[("code", codes[0])]);
        assert!(again.status == 409 && again.text().contains("redeemed before"), "{}", again.text());
    }
    let batch = shop.relay.cli_json(&["voucher", "list"])[1].clone();
    assert_eq!((&batch["redeemed"], &batch["vouchers"]), (&json!(1), &json!(2)));
    operator.send("/operator/vouchers/revoke", &[("id", batch["id"].as_str().unwrap())]);
    let revoked = other.post("/plan/voucher", &[("code", codes[1])]);
    assert!(revoked.status == 409 && revoked.text().contains("taken back"), "{}", revoked.text());

    for _ in 0..10 {
        assert_eq!(other.post("/plan/voucher", &[("code", "11111-11111-11111-11111")]).status, 404);
    }
    let late = other.post("/plan/voucher", &[("code", "nonsense")]);
    assert!(late.status == 429 && late.text().contains("Try again in"), "{}", late.text());
    assert_eq!(shop.stands(&ada), is("none", 600));
}

#[test]
fn without_its_secrets_there_is_no_payment() {
    for (secret_key, webhook_secret) in [("EMPTY", "WH"), ("SK", "EMPTY"), ("SK", "NOT_SET")] {
        let shop = Shop::with(secret_key, webhook_secret);
        let (account, mut browser) = shop.customer("ada@example.com", "5");
        let told = event("evt_1", "checkout.session.completed", &stripe::paid_session(&account.id, "pi_1", 100));
        deliver(shop.port.address, &told).assert_error(404, "invalid_request_error", "unknown_url");
        let page = browser.open("/plan");
        assert!(!page.text().contains("by card"), "{}", page.text());
        assert!(!page.header("content-security-policy").unwrap().contains("stripe"));
        assert_eq!(browser.post("/plan/checkout", &[("usd", "25")]).status, 404);
        assert_eq!((shop.stands(&account), shop.stripe.upstream.count()), (is("none", 500), 0));
    }
}

#[test]
fn what_stripe_fails_in_is_told_without_its_words() {
    // The secrets are in each other's place.
    let shop = Shop::with("WH", "SK");
    let (_, mut browser) = shop.customer("ada@example.com", "5");
    browser.open("/plan");
    let once = support::browser::hidden(&browser.page, "once").unwrap();
    let answer = browser.post("/plan/checkout", &[("usd", "25"), ("once", &once)]);
    assert_eq!(answer.status, 502, "{}", answer.text());
    for (usd, once) in [("26", once.as_str()), ("-25", &once), ("25", ""), ("", &once)] {
        assert_eq!(browser.post("/plan/checkout", &[("usd", usd), ("once", once)]).status, 400, "{usd} {once}");
    }
    let log = shop.relay.stderr();
    assert!(log.contains("api_key_invalid") && !log.contains("Invalid: "), "{log}");
    assert!(!log.contains(SECRET_KEY) && !log.contains(WEBHOOK_SECRET) && !answer.text().contains(SECRET_KEY), "{log}");
}

#[test]
fn the_admin_api_does_the_same() {
    let shop = Shop::new();
    let account = shop.relay.account("none", "60");
    let place = format!("/accounts/{}/subscription", account.id);
    shop.api("GET", &place, None).assert_error(404, "invalid_request_error", "subscription_not_found");
    let starter = json!({"plan": "starter", "paid_by": "credit"});
    let begun = shop.api_json(201, "POST", &place, Some(starter.clone()));
    assert_eq!(shop.api_json(201, "POST", &place, Some(starter)), begun, "it is there");
    let other = json!({"plan": "pro", "paid_by": "credit"});
    shop.api("POST", &place, Some(other)).assert_error(409, "invalid_request_error", "subscribed");
    let dear = json!({"plan": "max"});
    shop.api("PATCH", &place, Some(dear)).assert_error(402, "insufficient_quota", "insufficient_credits");
    for wrong in [json!({}), json!({"renews": false, "plan": "pro"}), json!({"ends_at": "2020-01-01T00:00:00Z"})] {
        assert_eq!(shop.api("PATCH", &place, Some(wrong.clone())).status, 400, "{wrong}");
    }
    let cancelled = shop.api_json(200, "PATCH", &place, Some(json!({"renews": false})));
    assert_eq!(cancelled["renews"], false);
    let up = shop.api_json(200, "PATCH", &place, Some(json!({"plan": "pro"})));
    assert_eq!((&up["plan"], &up["renews"], &up["period"]), (&json!("pro"), &json!(true), &json!(2)));
    assert_eq!(up, shop.relay.cli_json(&["subscription", "show", &account.id]));
    assert_eq!(json!([up]), shop.api_json(200, "GET", "/subscriptions", None)["data"]);
    assert_eq!(json!([up]), shop.relay.cli_json(&["subscription", "list"]));
    let periods = shop.api_json(200, "GET", &format!("{place}/periods"), None);
    assert_eq!(periods["data"], shop.relay.cli_json(&["subscription", "periods", &account.id]));
    let ended = shop.api_json(200, "DELETE", &place, None);
    assert_eq!((&ended["end_reason"], shop.relay.cli_json(&["audit"])), (&json!("ended"), json!([])));
    assert_eq!(shop.api_json(200, "GET", "/plans", None)["data"], shop.relay.cli_json(&["plan", "list"]));

    let made = shop.api_json(201, "POST", "/voucher-batches", Some(json!({"amount": "2.5", "vouchers": 1})));
    let (id, code) = (made["id"].as_str().unwrap(), made["codes"][0].clone());
    let redeem = format!("/accounts/{}/vouchers", account.id);
    let credit = shop.api_json(201, "POST", &redeem, Some(json!({"code": code})));
    assert_eq!((&credit["kind"], &credit["amount_nano_usd"]), (&json!("grant"), &json!(2_500_000_000_i64)));
    let again = shop.api("POST", &redeem, Some(json!({"code": code})));
    again.assert_error(409, "invalid_request_error", "voucher_used");
    let shown = shop.api_json(200, "GET", &format!("/voucher-batches/{id}"), None);
    assert_eq!((&shown["status"], shown.get("codes")), (&json!("used"), None));
    assert_eq!(json!([shown]), shop.relay.cli_json(&["voucher", "list"]));
    assert_eq!(shop.api_json(200, "GET", "/voucher-batches", None)["data"], json!([shown]));
    let unknown = shop.api("DELETE", "/voucher-batches/vchb_none", None);
    unknown.assert_error(404, "invalid_request_error", "voucher_batch_not_found");
}
