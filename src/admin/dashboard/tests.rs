//! What holds for all places of the map: who is let in, that nobody sees or touches what is another's, and that a page is small.
//! What each place does is seen through the public door, in `tests/dashboard.rs`.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;
use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use http_body_util::BodyExt;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use tempfile::TempDir;
use uuid::Uuid;

use super::map::{Place, Who};
use super::{Dashboard, map, router};
use crate::admin::Readiness;
use crate::admin::api::{ConfigStatus, Moment, Process, Traffic};
use crate::admin::people::Token;
use crate::config::{self, Live, Providers};
use crate::relay::auth::KeyDigest;
use crate::relay::meter::{NanoUsd, Usage, UsageRecord};
use crate::store::{KeyTerms, NewKey, NewUser, Role, Store};

const NOW_MS: i64 = 1_795_000_000_000;
const OWN_HOST: &str = "127.0.0.1:8081";

const CONFIGURATION: &str = r#"
[listen]
http = "127.0.0.1:8080"
dashboard = "127.0.0.1:8081"
[dashboard]
registration = true
[[plan]]
name = "free"
requests_per_minute = 30
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

struct Here;

#[async_trait]
impl Process for Here {
    fn readiness(&self) -> Readiness {
        Readiness {
            store_reachable: true,
            store_lost: false,
            config_mistakes: Vec::new(),
            billing_open: true,
            billing_failed: false,
            billing_behind: Vec::new(),
            draining: false,
        }
    }

    fn now(&self) -> Moment {
        Moment { us: 0, unix_ms: NOW_MS }
    }

    fn config(&self) -> ConfigStatus {
        ConfigStatus::default()
    }

    fn traffic(&self) -> Traffic {
        Traffic { requests: 70, failed: 1, in_flight: 3, streams: 2 }
    }

    async fn store_changed(&self) {}

    fn is_guessing(&self, _: Option<IpAddr>) -> bool {
        false
    }

    fn wrong_token(&self, _: Option<IpAddr>) {}

    fn may_try_password(&self, _: Option<IpAddr>, _: &str) -> bool {
        true
    }
}

/// Somebody with an account, a key and money, whose every text and id begins with their own mark.
struct Person {
    token: Token,
    user_id: String,
    key_id: String,
    account_id: String,
    /// What nobody else may see.
    marks: Vec<String>,
}

/// A dashboard with two customers and an operator.
struct Stage {
    routes: axum::Router,
    store: Store,
    ada: Person,
    bea: Person,
    operator: Token,
    _folder: TempDir,
}

impl Stage {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tollgate.toml");
        std::fs::write(&path, CONFIGURATION).unwrap();
        let loaded = config::load(&path, Providers::All).unwrap();
        let live = Arc::new(Live::new(path, Providers::All, loaded));
        let store = Store::open(&format!("sqlite://{}/tollgate.db", folder.path().display())).await.unwrap();
        let (ada, bea) = (person(&store, "ada", 1).await, person(&store, "bea", 2).await);
        let (operator, _) = user(&store, "op@example.com", Role::Operator, None).await;
        let routes = router(Dashboard::new(live, &store, Arc::new(Here)));
        Self { routes, store, ada, bea, operator, _folder: folder }
    }

    /// Asks, with a session or without; the status, where it leads, and the page.
    async fn ask(&self, method: &str, path: &str, token: Option<&Token>, form: &str) -> (StatusCode, String, String) {
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, OWN_HOST);
        request = request.header(header::ORIGIN, format!("http://{OWN_HOST}"));
        if let Some(token) = token {
            request = request.header(header::COOKIE, format!("__Host-tollgate={}", token.expose()));
        }
        let request = request.body(Body::from(form.to_owned())).unwrap();
        let answer = TowerToHyperService::new(self.routes.clone()).call(request).await.unwrap();
        let (status, to) = (answer.status(), answer.headers().get(header::LOCATION).cloned());
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        let to = to.map(|to| to.to_str().unwrap().to_owned()).unwrap_or_default();
        (status, to, String::from_utf8_lossy(&body).into_owned())
    }
}

async fn user(store: &Store, email: &str, role: Role, account_id: Option<&str>) -> (Token, String) {
    let new = NewUser { email, role, account_id, password: Some("$argon2id$none") };
    let user = store.create_user(&new, NOW_MS).await.unwrap();
    let token = Token::new().unwrap();
    store.begin_session(&user.id, &token.digest(), NOW_MS, NOW_MS + 1_000_000).await.unwrap();
    (token, user.id)
}

async fn person(store: &Store, mark: &str, digest: u8) -> Person {
    let account = store.create_account(&format!("{mark}-account"), "free", NOW_MS).await.unwrap();
    store.credit(&account.id, NanoUsd(5_000_000_000), Some(&format!("{mark}-note")), NOW_MS).await.unwrap();
    let email = format!("{mark}@example.com");
    let (token, user_id) = user(store, &email, Role::Customer, Some(&account.id)).await;
    let key = NewKey { account_id: account.id.clone(), name: format!("{mark}-key"), terms: KeyTerms::default() };
    let key_id = store.create_key(&key, &KeyDigest([digest; 32]), NOW_MS).await.unwrap().id;
    let marks = vec![account.id.clone(), key_id.clone(), user_id.clone(), email, format!("{mark}-")];
    let person = Person { token, user_id, key_id, account_id: account.id, marks };
    let used = UsageRecord { model: format!("{mark}-model").into(), ..request(&person, NOW_MS - 1_000) };
    store.settle(&[used], None).await.unwrap();
    person
}

/// A finished request of somebody's.
fn request(person: &Person, started_at_ms: i64) -> UsageRecord {
    UsageRecord {
        request_id: Uuid::now_v7(),
        account_id: person.account_id.as_str().into(),
        key_id: person.key_id.as_str().into(),
        model: "demo".into(),
        provider: "hidden-provider".into(),
        status: 200,
        usage: Usage { input: 11, cache_read: 2, cache_write_5m: 3, cache_write_1h: 4, output: 5, reasoning: 1 },
        cost: NanoUsd(1_000),
        estimated: false,
        interrupted: false,
        started_at_ms,
        first_token_ms: Some(120),
        total_ms: 900,
        provider_cost: None,
    }
}

/// Every place of the map, in its order there. `own` is where somebody finds what is theirs, with the ids that a path or query takes
/// filled in by `{key}` and `{user}`; whoever fills in another's finds nothing there, or nothing of theirs.
struct Row {
    method: &'static str,
    path: &'static str,
    own: &'static [&'static str],
}

const fn row(method: &'static str, path: &'static str, own: &'static [&'static str]) -> Row {
    Row { method, path, own }
}

const TABLE: &[Row] = &[
    row("GET", "/", &["/"]),
    row("GET", "/assets/{name}", &[]),
    row("GET", "/sign-in", &["/sign-in"]),
    row("POST", "/sign-in", &["/sign-in"]),
    row("POST", "/sign-out", &["/sign-out"]),
    row("GET", "/register", &["/register"]),
    row("POST", "/register", &["/register"]),
    row("GET", "/link/{token}", &["/link/AAAA"]),
    row("POST", "/link/{token}", &["/link/AAAA"]),
    row("GET", "/overview", &["/overview"]),
    row("GET", "/keys", &["/keys", "/keys?after={key}"]),
    row("POST", "/keys", &["/keys"]),
    row("GET", "/keys/new", &["/keys/new"]),
    row("GET", "/keys/{id}", &["/keys/{key}"]),
    row("POST", "/keys/{id}/revoke", &["/keys/{key}/revoke"]),
    row("GET", "/usage", &["/usage", "/usage?from=2026-11-01&to=2026-11-30", "/usage?key={key}"]),
    row("GET", "/usage.csv", &["/usage.csv", "/usage.csv?key={key}"]),
    row("GET", "/models", &["/models"]),
    row("GET", "/credit", &["/credit", "/credit?before=999"]),
    row("GET", "/start", &["/start"]),
    row("GET", "/operator/people", &["/operator/people", "/operator/people?after={user}"]),
    row("POST", "/operator/people", &["/operator/people"]),
    row("GET", "/operator/people/{id}", &["/operator/people/{user}"]),
    row("POST", "/operator/people/{id}/link", &["/operator/people/{user}/link"]),
    row("POST", "/operator/people/{id}/change", &["/operator/people/{user}/change"]),
    row("POST", "/operator/people/{id}/sign-out", &["/operator/people/{user}/sign-out"]),
    row("GET", "/settings", &["/settings", "/settings?done=password"]),
    row("POST", "/settings/password", &["/settings/password"]),
    row("POST", "/settings/sign-out-elsewhere", &["/settings/sign-out-elsewhere"]),
    row("GET", "/plan", &["/plan", "/plan?done=paid"]),
    row("POST", "/plan/subscribe", &["/plan/subscribe"]),
    row("POST", "/plan/change", &["/plan/change"]),
    row("POST", "/plan/cancel", &["/plan/cancel"]),
    row("POST", "/plan/keep", &["/plan/keep"]),
    row("POST", "/plan/checkout", &["/plan/checkout"]),
    row("POST", "/plan/voucher", &["/plan/voucher"]),
    row("GET", "/operator/vouchers", &["/operator/vouchers"]),
    row("POST", "/operator/vouchers", &["/operator/vouchers"]),
    row("POST", "/operator/vouchers/revoke", &["/operator/vouchers/revoke"]),
    row("GET", "/operator/accounts", &["/operator/accounts", "/operator/accounts?q=ada"]),
    row("POST", "/operator/accounts", &["/operator/accounts"]),
    row("GET", "/operator/accounts/{account}", &["/operator/accounts/{account}"]),
    row("POST", "/operator/accounts/{account}/plan", &["/operator/accounts/{account}/plan"]),
    row("POST", "/operator/accounts/{account}/credit", &["/operator/accounts/{account}/credit"]),
    row("POST", "/operator/accounts/{account}/status", &["/operator/accounts/{account}/status"]),
    row("POST", "/operator/accounts/{account}/invite", &["/operator/accounts/{account}/invite"]),
    row("GET", "/operator/keys", &["/operator/keys", "/operator/keys?q={key}"]),
    row("POST", "/operator/keys/{key}/revoke", &["/operator/keys/{key}/revoke"]),
    row("GET", "/operator/revenue", &["/operator/revenue", "/operator/revenue?since=2026-11-01&until=2026-11-10"]),
    row("GET", "/operator/providers", &["/operator/providers"]),
    row("GET", "/operator/live", &["/operator/live"]),
    row("GET", "/operator/live/numbers", &["/operator/live/numbers"]),
    row("GET", "/operator/audit", &["/operator/audit", "/operator/audit?subject={account}"]),
    row("GET", "/operator/configuration", &["/operator/configuration"]),
];

fn row_of(place: &Place) -> &'static Row {
    let found = TABLE.iter().find(|row| (row.method, row.path) == (place.method, place.path));
    found.unwrap_or_else(|| panic!("{} {} is not in the table of this test; put it in", place.method, place.path))
}

fn filled(path: &str, person: &Person) -> String {
    let path = path.replace("{key}", &person.key_id).replace("{user}", &person.user_id);
    path.replace("{account}", &person.marks[0])
}

#[test]
fn the_table_of_this_test_is_the_map() {
    let map = map();
    let places: BTreeSet<_> = map.places().iter().map(|place| (place.method, place.path)).collect();
    assert_eq!(places.len(), map.places().len(), "a place is on the map twice");
    let rows: BTreeSet<_> = TABLE.iter().map(|row| (row.method, row.path)).collect();
    assert_eq!(places, rows, "left: the map, right: the table");
}

#[test]
fn nothing_is_routed_past_the_map() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/admin/dashboard");
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let is_map = path.ends_with("map.rs") || path.ends_with("tests.rs");
        if path.is_file() && !is_map {
            let text = std::fs::read_to_string(&path).unwrap();
            let routes = [".route(", ".route_service(", ".nest(", ".merge("];
            assert!(!routes.iter().any(|route| text.contains(route)), "{}", path.display());
        }
    }
}

#[tokio::test]
async fn who_is_not_signed_in_is_sent_to_sign_in() {
    let stage = Stage::new().await;
    let map = map();
    for place in map.places().iter().filter(|place| place.who != Who::Anyone) {
        for path in row_of(place).own {
            let path = filled(path, &stage.ada);
            let (status, to, page) = stage.ask(place.method, &path, None, "").await;
            assert_eq!(status, StatusCode::SEE_OTHER, "{} {path}: {page}", place.method);
            assert!(to.starts_with("/sign-in"), "{to}");
        }
    }
}

#[tokio::test]
async fn customers_find_nothing_where_operators_are() {
    let stage = Stage::new().await;
    let map = map();
    for place in map.places().iter().filter(|place| place.who == Who::Operator) {
        for path in row_of(place).own {
            let (path, form) = (filled(path, &stage.ada), format!("csrf={}", stage.ada.token.forms_proof()));
            let (status, _, page) = stage.ask(place.method, &path, Some(&stage.ada.token), &form).await;
            assert_eq!(status, StatusCode::NOT_FOUND, "{} {path}: {page}", place.method);
        }
    }
}

#[tokio::test]
async fn nothing_is_done_by_a_form_without_proof() {
    let stage = Stage::new().await;
    let map = map();
    let actions = map.places().iter().filter(|place| place.method == "POST" && place.who != Who::Anyone);
    for place in actions {
        let token = if place.who == Who::Operator { &stage.operator } else { &stage.ada.token };
        for path in row_of(place).own {
            let path = filled(path, &stage.ada);
            for form in ["", "csrf=", &format!("csrf={}", stage.bea.token.forms_proof())] {
                let (status, _, page) = stage.ask("POST", &path, Some(token), form).await;
                assert_eq!(status, StatusCode::BAD_REQUEST, "{path} {form}: {page}");
            }
        }
    }
}

#[tokio::test]
async fn nobody_sees_or_touches_what_is_anothers() {
    let stage = Stage::new().await;
    let map = map();
    let before = state(&stage).await;
    for place in map.places().iter().filter(|place| matches!(place.who, Who::Customer | Who::SignedIn)) {
        for own in row_of(place).own {
            // Bea asks for what is Ada's.
            let (path, form) = (filled(own, &stage.ada), format!("csrf={}", stage.bea.token.forms_proof()));
            if place.method == "POST" && !own.contains('{') {
                continue; // It is done to whoever asks.
            }
            let (status, to, page) = stage.ask(place.method, &path, Some(&stage.bea.token), &form).await;
            if own.contains('{') {
                assert_eq!(status, StatusCode::NOT_FOUND, "{} {path}: {page}", place.method);
            }
            for mark in &stage.ada.marks {
                let shown = format!("{page}{to}");
                // What was asked for may be repeated; what was not known may not be told.
                let told = if path.contains(mark.as_str()) { 0 } else { shown.matches(mark.as_str()).count() };
                assert_eq!(told, 0, "{} {path} tells {mark}: {page}", place.method);
            }
        }
    }
    assert_eq!(state(&stage).await, before, "something of Ada's was changed");
}

/// What is Ada's.
async fn state(stage: &Stage) -> String {
    let key = stage.store.key(&stage.ada.key_id).await.unwrap();
    let account = stage.store.account(&key.account_id).await.unwrap();
    let keys = stage.store.keys(Some(&account.id)).await.unwrap();
    let people = stage.store.users_of(&account.id).await.unwrap();
    let sessions = stage.store.sessions_of(&people[0].id, NOW_MS).await.unwrap();
    format!("{account:?} {keys:?} {people:?} {sessions:?}")
}

#[tokio::test]
async fn somebody_sees_what_is_theirs_on_a_small_page_without_inline_script_or_style() {
    /// Of a page and all that it loads.
    const BYTES_MAX: usize = 100 << 10;
    let mut seen = 0;
    let stage = Stage::new().await;
    // A busy month: whatever is bounded is full.
    for day in 0..30 {
        let of_model = |model: i64| UsageRecord {
            model: format!("ada-a-model-with-a-long-name-{model}").into(),
            cost: NanoUsd(123_456_789 * (model + 1)),
            ..request(&stage.ada, NOW_MS - day * 86_400_000)
        };
        stage.store.settle(&(0..9).map(of_model).collect::<Vec<_>>(), None).await.unwrap();
    }
    let map = map();
    for place in map.places().iter().filter(|place| place.method == "GET") {
        let token = if place.who == Who::Operator { &stage.operator } else { &stage.ada.token };
        for own in row_of(place).own.iter().filter(|own| !own.starts_with("/link/")) {
            let path = filled(own, &stage.ada);
            let (status, _, page) = stage.ask("GET", &path, Some(token), "").await;
            assert!(matches!(status, StatusCode::OK | StatusCode::SEE_OTHER), "{path}: {status} {page}");
            let mut bytes = page.len();
            seen += page.matches("ada-").count();
            assert!(place.who == Who::Operator || !page.contains("hidden-provider"), "{path} tells who delivers");
            let assets: BTreeSet<_> = page.split('"').filter(|part| part.starts_with("/assets/")).collect();
            for asset in assets {
                bytes += stage.ask("GET", asset, None, "").await.2.len();
            }
            assert!(bytes <= BYTES_MAX, "{path} is {bytes} bytes");
            for inline in [" style=", "<style", "<script>", " onclick=", "javascript:", "http-equiv=\"Content"] {
                assert!(!page.contains(inline), "{path} has {inline}");
            }
        }
    }
    assert!(seen > 5, "Ada sees what is hers, or the other tests could not fail");
}

#[tokio::test]
async fn an_operator_without_an_account_has_no_customers_pages() {
    let stage = Stage::new().await;
    let map = map();
    for place in map.places().iter().filter(|place| place.who == Who::Customer) {
        for own in row_of(place).own {
            let (path, form) = (filled(own, &stage.ada), format!("csrf={}", stage.operator.forms_proof()));
            let (status, _, page) = stage.ask(place.method, &path, Some(&stage.operator), &form).await;
            assert_eq!(status, StatusCode::NOT_FOUND, "{} {path}: {page}", place.method);
        }
    }
}

#[tokio::test]
async fn a_form_that_is_too_large_is_not_read() {
    let stage = Stage::new().await;
    let form = format!("csrf={}&name={}", stage.ada.token.forms_proof(), "x".repeat(70_000));
    let (status, _, _) = stage.ask("POST", "/keys", Some(&stage.ada.token), &form).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    let (status, _, _) = stage.ask("POST", "/keys", Some(&stage.ada.token), "csrf=%FF%FE").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
}

/// The ids of the requests on a page of usage.
fn requests_on(page: &str) -> Vec<String> {
    page.split("<tr id=\"r-").skip(1).map(|rest| rest.split('"').next().unwrap().to_owned()).collect()
}

/// Where a link with that text leads.
fn link(page: &str, text: &str) -> Option<String> {
    let before = page.split(&format!("\">{text}</a>")).next().filter(|before| before.len() < page.len())?;
    Some(before.rsplit("href=\"").next()?.replace("&amp;", "&").replace("&#38;", "&"))
}

#[tokio::test]
async fn pages_of_usage_meet_and_the_file_has_all_of_them() {
    let stage = Stage::new().await;
    let records: Vec<_> = (0..120).map(|at| request(&stage.ada, NOW_MS - 2_000 - at / 7)).collect();
    stage.store.settle(&records, None).await.unwrap();
    let token = Some(&stage.ada.token);
    let (mut path, mut seen, mut pages) = ("/usage?model=demo".to_owned(), Vec::new(), 0);
    loop {
        let (_, _, page) = stage.ask("GET", &path, token, "").await;
        seen.extend(requests_on(&page));
        pages += 1;
        match link(&page, "Older") {
            Some(next) => path = next,
            None => break,
        }
    }
    let all: BTreeSet<_> = records.iter().map(|record| record.request_id.to_string()).collect();
    assert_eq!((pages, seen.len()), (3, 120));
    assert_eq!(seen.into_iter().collect::<BTreeSet<_>>(), all);
    let (_, _, file) = stage.ask("GET", "/usage.csv?model=demo", token, "").await;
    assert_eq!(file.lines().count(), 121);
    assert!(all.iter().all(|id| file.contains(id)) && !file.contains("hidden-provider"));
    assert!(file.lines().nth(1).unwrap().contains("ada-key"), "{file}");
}

#[tokio::test]
async fn usage_is_filtered_by_day_and_what_is_no_filter_is_refused() {
    let stage = Stage::new().await;
    let yesterday = request(&stage.ada, NOW_MS - 86_400_000);
    stage.store.settle(&[yesterday], None).await.unwrap();
    let token = Some(&stage.ada.token);
    let on = async |query: &str| requests_on(&stage.ask("GET", &format!("/usage?{query}"), token, "").await.2).len();
    assert_eq!((on("").await, on("from=2026-11-18").await, on("to=2026-11-17").await), (2, 1, 1));
    assert_eq!(on("from=2026-11-17&to=2026-11-17&model=demo").await, 1);
    for query in ["from=yesterday", "to=2026-13-01", "after=x", "after=1.x"] {
        let (status, _, _) = stage.ask("GET", &format!("/usage?{query}"), token, "").await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{query}");
    }
}
