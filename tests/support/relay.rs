//! The real binary as a process: `serve`, the commands beside it, and what it shows of itself.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::client::{Request, Response};
use super::{Reserved, Store, until, within};

/// A running relay, stopped when it is dropped. When the test has failed, it prints what the relay said.
pub struct Relay {
    pub http: SocketAddr,
    pub admin: SocketAddr,
    pub metrics: SocketAddr,
    pub https: SocketAddr,
    /// The account that [`Relay::key`] belongs to.
    pub account: Account,
    /// A key on plan `open`.
    pub key: String,
    folder: TempDir,
    store: Store,
    environment: Vec<(String, String)>,
    child: Mutex<Child>,
    /// The process that has taken over from the child, and who has from that.
    successors: Mutex<Vec<u32>>,
    _ports: [Reserved; 4],
}

/// An account, as `account create` answers.
#[derive(Clone)]
pub struct Account {
    pub id: String,
}

/// A key, as `key create` answers.
#[derive(Clone)]
pub struct Key {
    pub id: String,
    pub key: String,
}

/// What a command printed.
pub struct Output {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

/// The binary with these arguments, without the environment of whoever runs the tests.
pub fn command(folder: &Path, environment: &[(String, String)]) -> Command {
    command_at(Path::new(env!("CARGO_BIN_EXE_tollgate")), folder, environment)
}

fn command_at(binary: &Path, folder: &Path, environment: &[(String, String)]) -> Command {
    let mut command = Command::new(binary);
    command.current_dir(folder).env_clear().envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
    command.envs(environment.iter().map(|(name, value)| (name, value))).stdin(Stdio::null());
    command
}

impl Relay {
    /// Starts `serve` on a folder with a `tollgate.toml` and waits until it is ready; the error is what it said.
    pub(super) fn start(
        folder: TempDir,
        store: Store,
        ports: [Reserved; 4],
        environment: &[(String, String)],
    ) -> Result<Self, String> {
        let [http, admin, metrics, https] = ports.each_ref().map(|port| port.address);
        let account = create_account(folder.path(), environment, "open", "10")?;
        let key = create_key(folder.path(), environment, &account.id, &[])?.key;
        let child = spawn(folder.path(), environment)?;
        let relay = Self {
            http,
            admin,
            metrics,
            https,
            account,
            key,
            folder,
            store,
            environment: environment.to_vec(),
            child: Mutex::new(child),
            successors: Mutex::default(),
            _ports: ports,
        };
        relay.wait_until_ready().map(|()| relay)
    }

    fn wait_until_ready(&self) -> Result<(), String> {
        until("the relay to be ready, or to end", || {
            if self.child.lock().unwrap().try_wait().unwrap().is_some() {
                return Some(Err(self.stderr()));
            }
            let listens = [self.http, self.admin, self.metrics].into_iter().all(|to| TcpStream::connect(to).is_ok());
            (listens && Request::get("/readyz").send(self.admin).status == 200).then_some(Ok(()))
        })
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What the relay keeps, for who looks or tampers behind its back.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// What its processes have in their environment.
    pub fn environment(&self) -> &[(String, String)] {
        &self.environment
    }

    pub fn config_path(&self) -> PathBuf {
        self.folder.path().join("tollgate.toml")
    }

    /// Runs a command of the binary on this relay's configuration.
    pub fn cli(&self, arguments: &[&str]) -> Output {
        run(self.folder.path(), &self.environment, arguments)
    }

    /// Runs a command that must succeed and answers with a JSON document.
    #[track_caller]
    pub fn cli_json(&self, arguments: &[&str]) -> Value {
        json_of(&self.cli(&[arguments, &["--json"]].concat())).unwrap_or_else(|error| panic!("{arguments:?}: {error}"))
    }

    /// A new account on that plan with that many dollars; none when the amount is "0".
    #[track_caller]
    pub fn account(&self, plan: &str, dollars: &str) -> Account {
        create_account(self.folder.path(), &self.environment, plan, dollars).unwrap()
    }

    /// A new key of an account.
    #[track_caller]
    pub fn key_of(&self, account: &Account, options: &[&str]) -> Key {
        create_key(self.folder.path(), &self.environment, &account.id, options).unwrap()
    }

    /// The account's balance as the command line shows it, in nano-USD.
    #[track_caller]
    pub fn balance(&self, account: &Account) -> i64 {
        let shown = self.cli_json(&["account", "show", &account.id]);
        shown["balance_nano_usd"].as_i64().unwrap_or_else(|| panic!("no balance: {shown}"))
    }

    /// Every usage row so far, newest first.
    #[track_caller]
    pub fn usage(&self) -> Vec<Value> {
        let usage = self.cli_json(&["usage"]);
        usage.as_array().unwrap_or_else(|| panic!("not a list: {usage}")).clone()
    }

    /// The usage row of a request, once it is billed.
    #[track_caller]
    pub fn usage_of(&self, request_id: &str) -> Value {
        until(&format!("the bill of request {request_id}"), || {
            self.usage().into_iter().find(|row| row["request_id"] == request_id)
        })
    }

    /// Asks for a chat completion with the relay's own key.
    #[track_caller]
    pub fn chat(&self, body: &Value) -> Response {
        Request::chat(body).key(&self.key).send(self.http)
    }

    /// Lines of stdout that are JSON: the access log.
    pub fn access_log(&self) -> Vec<Value> {
        self.stdout().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// The access line of a request, once it is written.
    #[track_caller]
    pub fn access_line(&self, request_id: &str) -> Value {
        until(&format!("the access line of request {request_id}"), || {
            self.access_log().into_iter().find(|line| line["request_id"] == request_id)
        })
    }

    pub fn stdout(&self) -> String {
        read(&self.folder.path().join("stdout.log"))
    }

    pub fn stderr(&self) -> String {
        read(&self.folder.path().join("stderr.log"))
    }

    /// The metrics page.
    #[track_caller]
    pub fn metrics_page(&self) -> String {
        let page = Request::get("/metrics").send(self.metrics);
        assert_eq!(page.status, 200, "{}", page.text());
        page.text()
    }

    /// The sum of a metric's series that have all of these labels; 0 where there is none.
    #[track_caller]
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        metric(&self.metrics_page(), name, labels)
    }

    /// Sends the process a signal, by its name without `SIG`; the newest one, where there are several.
    #[track_caller]
    pub fn signal(&self, name: &str) {
        let newest = self.successors.lock().unwrap().last().copied();
        let id = newest.unwrap_or_else(|| self.child.lock().unwrap().id());
        assert!(kill(name, id));
    }

    /// The process that was started, by its id.
    pub fn pid(&self) -> u32 {
        self.child.lock().unwrap().id()
    }

    /// Another process has taken over: signals are for that one, and it ends with this value.
    pub fn succeeded_by(&self, pid: u32) {
        self.successors.lock().unwrap().push(pid);
    }

    /// The binary's path as the relay knows it: a link in its folder.
    pub fn binary(&self) -> PathBuf {
        self.folder.path().join("bin/tollgate")
    }

    /// Waits until the process has ended.
    #[track_caller]
    pub fn wait_for_end(&self) -> ExitStatus {
        until("the relay's end", || self.child.lock().unwrap().try_wait().unwrap())
    }

    /// Starts the process anew on the same folder, after its end.
    #[track_caller]
    pub fn restart(&self) {
        self.wait_for_end();
        *self.child.lock().unwrap() = spawn(self.folder.path(), &self.environment).unwrap();
        self.wait_until_ready().unwrap();
    }

    /// Edits the configuration as an editor does: a new file in the old one's place.
    #[track_caller]
    pub fn edit_config(&self, edit: impl FnOnce(String) -> String) {
        let path = self.config_path();
        let new = self.folder.path().join("tollgate.toml.new");
        fs::write(&new, edit(read(&path))).unwrap();
        fs::rename(new, path).unwrap();
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        for pid in self.successors.lock().unwrap().drain(..) {
            // The number may be somebody else's by now.
            let works_at = fs::read_link(format!("/proc/{pid}/cwd"));
            if works_at.is_ok_and(|folder| folder == self.folder.path()) {
                kill("KILL", pid);
            }
        }
        if let Ok(child) = self.child.get_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- the relay's stderr\n{}\n--- its stdout\n{}\n---", self.stderr(), self.stdout());
        }
    }
}

/// The sum of a metric's series that have all of these labels; 0 where there is none.
#[expect(clippy::float_arithmetic, reason = "Prometheus speaks floats")]
pub fn metric(page: &str, name: &str, labels: &[(&str, &str)]) -> f64 {
    let mut sum = 0.0;
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let Some((series, value)) = line.rsplit_once(' ') else { continue };
        let (series_name, series_labels) = series.split_once('{').unwrap_or((series, ""));
        if series_name == name
            && labels.iter().all(|(label, text)| series_labels.contains(&format!("{label}=\"{text}\"")))
        {
            sum += value.parse::<f64>().unwrap();
        }
    }
    sum
}

fn read(path: &Path) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

fn kill(signal: &str, id: u32) -> bool {
    Command::new("kill").args(["-s", signal, &id.to_string()]).status().unwrap().success()
}

fn spawn(folder: &Path, environment: &[(String, String)]) -> Result<Child, String> {
    let log = |name: &str| File::options().create(true).append(true).open(folder.join(name)).unwrap();
    // By a path of its own, under which a test can put another.
    let binary = folder.join("bin/tollgate");
    if !binary.is_symlink() {
        fs::create_dir_all(folder.join("bin")).unwrap();
        symlink(env!("CARGO_BIN_EXE_tollgate"), &binary).unwrap();
    }
    command_at(&binary, folder, environment)
        .args(["serve", "--config", "tollgate.toml"])
        .stdout(log("stdout.log"))
        .stderr(log("stderr.log"))
        .spawn()
        .map_err(|error| error.to_string())
}

fn run(folder: &Path, environment: &[(String, String)], arguments: &[&str]) -> Output {
    let output = command(folder, environment).args(arguments).args(["--config", "tollgate.toml"]).output().unwrap();
    Output {
        status: output.status,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

fn json_of(output: &Output) -> Result<Value, String> {
    if !output.status.success() {
        return Err(format!("{}: {}{}", output.status, output.stderr, output.stdout));
    }
    serde_json::from_str(&output.stdout).map_err(|error| format!("{error}: {}", output.stdout))
}

fn text(document: &Value, name: &str) -> Result<String, String> {
    document[name].as_str().map(str::to_owned).ok_or_else(|| format!("no {name} in {document}"))
}

fn create_account(
    folder: &Path,
    environment: &[(String, String)],
    plan: &str,
    dollars: &str,
) -> Result<Account, String> {
    let arguments = ["account", "create", "A customer", "--plan", plan, "--json"];
    let id = text(&json_of(&run(folder, environment, &arguments))?, "id")?;
    if dollars != "0" {
        json_of(&run(folder, environment, &["account", "credit", &id, dollars, "--json"]))?;
    }
    Ok(Account { id })
}

fn create_key(folder: &Path, environment: &[(String, String)], account: &str, options: &[&str]) -> Result<Key, String> {
    let arguments = ["key", "create", "--account", account, "--name", "a key", "--json"];
    let created = json_of(&run(folder, environment, &[&arguments, options].concat()))?;
    Ok(Key { id: text(&created, "id")?, key: text(&created, "key")? })
}
