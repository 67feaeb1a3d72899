//! The first minute with the product: one command, the curl line that it prints, and nothing else to know.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::json;
use support::{End, Request, Reserved, until};
use tempfile::TempDir;

/// `quickstart` on ports of its own, stopped when it is dropped.
struct Quickstart {
    child: Child,
    ports: [Reserved; 4],
    folder: TempDir,
}

fn command(folder: &Path, ports: &[Reserved; 4]) -> Command {
    let mut command = support::relay::command(folder, &[]);
    command.args(["quickstart", "--data", "data"]);
    for (option, port) in ["--listen", "--admin", "--metrics", "--dashboard"].into_iter().zip(ports) {
        command.arg(option).arg(port.address.to_string());
    }
    command
}

impl Quickstart {
    fn start() -> Self {
        let (folder, ports) = (TempDir::with_prefix("tollgate-test-").unwrap(), [(); 4].map(|()| Reserved::new()));
        let child = spawn(folder.path(), &ports);
        Self { child, ports, folder }
    }

    fn said(&self) -> String {
        fs::read_to_string(self.folder.path().join("stdout.log")).unwrap_or_default()
    }

    /// The line that begins with `curl`, once it is printed, its continuation lines joined.
    fn curl_line(&mut self) -> String {
        until("the curl line", || {
            assert!(self.child.try_wait().unwrap().is_none(), "it ended: {}", self.errors());
            let said = self.said().replace("\\\n", " ");
            let line = said.lines().find(|line| line.trim_start().starts_with("curl "))?;
            said.contains(&format!("{line}\n")).then(|| line.trim().to_owned())
        })
    }

    fn errors(&self) -> String {
        fs::read_to_string(self.folder.path().join("stderr.log")).unwrap_or_default()
    }

    fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn json(&self, arguments: &[&str]) -> serde_json::Value {
        // Without --config: quickstart has written ./data/tollgate.toml, where every command looks.
        let output = support::relay::command(self.folder.path(), &[]).args(arguments).arg("--json").output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)))
    }
}

impl Drop for Quickstart {
    fn drop(&mut self) {
        self.stop();
    }
}

fn spawn(folder: &Path, ports: &[Reserved; 4]) -> Child {
    let log = |name: &str| File::create(folder.join(name)).unwrap();
    command(folder, ports).stdout(log("stdout.log")).stderr(log("stderr.log")).spawn().unwrap()
}

/// The API key that a text holds.
fn key_in(text: &str) -> Option<String> {
    let start = text.find("tg_live_")?;
    let key = &text[start..];
    Some(key[..key.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(key.len())].to_owned())
}

#[test]
fn the_printed_line_works_at_once_and_the_key_is_shown_once() {
    let mut quickstart = Quickstart::start();
    let line = quickstart.curl_line();
    let key = key_in(&line).expect("the curl line holds the literal key");
    assert!(line.contains(&quickstart.ports[0].address.to_string()), "{line}");

    let relay = quickstart.ports[0].address;
    let models = Request::get("/v1/models").key(&key).send(relay).json();
    let ids: Vec<&str> = models["data"].as_array().unwrap().iter().filter_map(|model| model["id"].as_str()).collect();
    assert_eq!(ids, ["demo"], "no provider's variable is set, so the demo is what there is");
    for stream in [false, true] {
        let body = json!({"model": "demo", "stream": stream, "messages": [{"role": "user", "content": "Hello"}]});
        let answer = Request::chat(&body).key(&key).send(relay);
        assert_eq!((answer.status, answer.end), (200, End::Clean), "{}", answer.text());
    }
    if Command::new("curl").arg("--version").stdout(Stdio::null()).status().is_ok() {
        let output = Command::new("sh").args(["-c", &format!("{line} --silent --fail --no-buffer")]).output().unwrap();
        assert!(output.status.success(), "{line}\n{}", String::from_utf8_lossy(&output.stderr));
        assert!(!output.stdout.is_empty());
    }
    until("the bills", || (quickstart.json(&["usage"]).as_array().unwrap().len() >= 2).then_some(()));
    let accounts = quickstart.json(&["account", "list"]);
    assert_eq!(accounts.as_array().unwrap().len(), 1, "{accounts}");

    quickstart.stop();
    quickstart.child = spawn(quickstart.folder.path(), &quickstart.ports);
    // Its listeners open one after the other.
    for port in &quickstart.ports {
        until("the second start", || Request::get("/readyz").try_send(port.address).map(|_| ()));
    }
    assert_eq!(Request::get("/v1/models").key(&key).send(relay).status, 200, "the key of the first start still works");
    assert!(!quickstart.said().contains(&key), "a key is shown once");
    assert_eq!(quickstart.json(&["account", "list"]).as_array().unwrap().len(), 1);
    assert_eq!(quickstart.json(&["key", "list"]).as_array().unwrap().len(), 1, "and no second one is made");
}

#[test]
fn a_taken_port_is_named() {
    for taken in 0..4 {
        let (folder, ports) = (TempDir::with_prefix("tollgate-test-").unwrap(), [(); 4].map(|()| Reserved::new()));
        let _listener = TcpListener::bind(ports[taken].address).unwrap();
        let mut child = spawn(folder.path(), &ports);
        let status = support::within(support::PATIENCE, || child.try_wait().unwrap());
        let _ = child.kill();
        let _ = child.wait();
        let said = fs::read_to_string(folder.path().join("stderr.log")).unwrap();
        assert_eq!(status.and_then(|status| status.code()), Some(1), "{said}");
        assert!(said.contains(&ports[taken].address.port().to_string()), "the taken port is not named: {said}");
        assert!(!said.contains("panicked"), "{said}");
    }
}

#[test]
fn every_start_prints_a_link_into_the_dashboard_that_is_good_once() {
    let mut quickstart = Quickstart::start();
    let link_of = |quickstart: &mut Quickstart| {
        quickstart.curl_line();
        until("the dashboard's line", || {
            let said = quickstart.said();
            let line = said.lines().find(|line| line.contains("dashboard"))?.to_owned();
            let url = line.split_whitespace().find(|word| word.starts_with("http://"))?.to_owned();
            said.contains("Metrics:").then_some(url)
        })
    };
    let url = link_of(&mut quickstart);
    let dashboard = quickstart.ports[3].address;
    let path = url.strip_prefix(&format!("http://{dashboard}")).unwrap().to_owned();
    let mut browser = support::Browser::new(dashboard);
    assert_eq!((browser.open(&path).status, browser.open(&path).status), (200, 200));
    browser.send(&path, &[]);
    assert!(browser.page.contains("operator@localhost"), "{}", browser.page);
    assert_eq!(support::Browser::new(dashboard).open(&path).status, 404);
    let users = quickstart.json(&["user", "list"]);
    let accounts = quickstart.json(&["account", "list"]);
    assert_eq!((&users[0]["role"], &users[0]["account_id"]), (&"operator".into(), &accounts[0]["id"]));

    quickstart.stop();
    quickstart.child = spawn(quickstart.folder.path(), &quickstart.ports);
    let next = link_of(&mut quickstart);
    assert_ne!(next, url);
    let path = next.strip_prefix(&format!("http://{dashboard}")).unwrap().to_owned();
    let mut another = support::Browser::new(dashboard);
    another.open(&path);
    another.send(&path, &[]);
    assert!(another.page.contains("operator@localhost"), "{}", another.page);
    assert_eq!(quickstart.json(&["user", "list"]).as_array().unwrap().len(), 1);
}
