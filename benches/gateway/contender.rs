//! The gateways that are compared, each a process of its own on the gateway's core, all in front of one upstream.
//!
//! Every process here ends with the bench: by its id when it is dropped, and by the kernel (`setpriv --pdeathsig`)
//! should the bench itself be killed.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tokio::net::TcpStream;

use crate::Failure;
use crate::load::Target;
use crate::measure::Process;
use crate::upstream;

const READY_STEP: Duration = Duration::from_millis(20);
const READY_STEPS_MAX: u32 = 750;
/// Above what any gateway answers: the limiter does its work and never refuses.
const REQUESTS_PER_MINUTE: u32 = 100_000_000;

/// The name in the table under which the bare pass-through stands: the one that others are compared with.
pub const BARE: &str = "bare Pingora";

/// A child that is ended, by its id, when this is dropped.
#[derive(Debug)]
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Fails only when the child has ended already.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// A gateway under load.
#[derive(Debug)]
pub struct Gateway {
    /// Held to be ended.
    _child: Running,
    /// The gateway's own process.
    pub process: Process,
    /// How it is reached.
    pub target: Target,
}

/// What all gateways are started with.
pub struct Place<'a> {
    /// A folder of this round alone.
    pub folder: PathBuf,
    /// The core that gateways run on.
    pub core: usize,
    /// The upstream.
    pub upstream: SocketAddr,
    /// The tollgate binary.
    pub tollgate: &'a Path,
}

/// A program on one core, which ends when its parent does.
pub fn on_core(core: usize, program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "taskset", "-c", &core.to_string()]).arg(program).stdin(Stdio::null());
    command
}

impl Place<'_> {
    /// Starts the gateway of that name and waits until it accepts.
    pub async fn start(&self, name: &str) -> Result<Gateway, Failure> {
        fs::create_dir_all(&self.folder)?;
        let address = free_address()?;
        let (mut command, key) = match name {
            "nginx" => (self.nginx(address)?, "none".to_owned()),
            "tollgate" => self.tollgate(address)?,
            _ => (self.bare(address)?, "none".to_owned()),
        };
        let log_path = self.folder.join(format!("{}.log", name.replace(' ', "-")));
        let log = fs::File::create(&log_path)?;
        let mut child = Running(command.stdout(log.try_clone()?).stderr(log).spawn()?);
        let process = Process { pid: child.0.id() };
        for _ in 0..READY_STEPS_MAX {
            if TcpStream::connect(address).await.is_ok() {
                return Ok(Gateway { _child: child, process, target: Target { address, key } });
            }
            if child.0.try_wait()?.is_some() {
                break;
            }
            tokio::time::sleep(READY_STEP).await;
        }
        Err(format!("{name} does not accept connections; it said:\n{}", fs::read_to_string(&log_path)?).into())
    }

    fn bare(&self, listen: SocketAddr) -> Result<Command, Failure> {
        let mut command = on_core(self.core, &std::env::current_exe()?);
        command.args(["bare", &listen.to_string(), &self.upstream.to_string()]);
        Ok(command)
    }

    /// nginx as a pass-through: one process, nothing logged, nothing buffered on the way, every connection kept.
    fn nginx(&self, listen: SocketAddr) -> Result<Command, Failure> {
        let (upstream, folder) = (self.upstream, self.folder.display());
        let config = self.folder.join("nginx.conf");
        let text = format!(
            "daemon off;\nmaster_process off;\npid {folder}/nginx.pid;\nerror_log stderr error;\n\
             events {{ worker_connections 4096; }}\n\
             http {{\n  access_log off;\n  client_max_body_size 64m;\n  keepalive_requests 1000000000;\n  \
             client_body_temp_path {folder}/body;\n  proxy_temp_path {folder}/proxy;\n  \
             fastcgi_temp_path {folder}/fastcgi;\n  uwsgi_temp_path {folder}/uwsgi;\n  scgi_temp_path {folder}/scgi;\n  \
             upstream provider {{ server {upstream}; keepalive 128; keepalive_requests 1000000000; }}\n  \
             server {{\n    listen {listen} backlog=4096;\n    location / {{\n      proxy_pass http://provider;\n      \
             proxy_http_version 1.1;\n      proxy_set_header Connection \"\";\n      proxy_buffering off;\n      \
             proxy_request_buffering off;\n      proxy_read_timeout 600s;\n    }}\n  }}\n}}\n"
        );
        fs::write(&config, text)?;
        let mut command = on_core(self.core, Path::new("nginx"));
        command.arg("-e").arg(self.folder.join("nginx-error.log")).arg("-p").arg(&self.folder).arg("-c").arg(&config);
        Ok(command)
    }

    /// tollgate as an operator would run it: a store, a spool, a plan, a key, prices; limits out of the way.
    fn tollgate(&self, listen: SocketAddr) -> Result<(Command, String), Failure> {
        let (provider, folder) = (self.upstream, self.folder.display());
        let config = self.folder.join("tollgate.toml");
        let models: String = upstream::MODELS.iter().map(|targets| model(targets)).collect();
        fs::write(self.folder.join("upstream.key"), "sk-bench\n")?;
        let text = format!(
            "[listen]\nhttp = \"{listen}\"\nadmin = \"{}\"\nmetrics = \"{}\"\n\
             [store]\nurl = \"sqlite://{folder}/tollgate.db\"\n\
             [billing]\nspool = \"{folder}/spool.db\"\ndurability = \"process\"\n\
             [limits]\nconnections_per_ip_max = 65536\nrequests_in_flight_max = 65536\n\
             [[plan]]\nname = \"bench\"\nrequests_per_minute = {REQUESTS_PER_MINUTE}\n\
             [[provider]]\nname = \"upstream\"\ndialect = \"openai\"\nbase_url = \"http://{provider}/v1\"\n\
             credentials = [{{ file = \"upstream.key\" }}]\n\
             [[provider]]\nname = \"breaking\"\ndialect = \"openai\"\nbase_url = \"http://{provider}/v1\"\n\
             credentials = [{{ file = \"upstream.key\" }}]\nbreaker = false\n{models}",
            free_address()?,
            free_address()?,
        );
        fs::write(&config, text)?;
        let account = self.tollgate_json(&config, &["account", "create", "bench", "--plan", "bench"])?;
        let id = account["id"].as_str().ok_or("`account create` gave no id")?;
        self.tollgate_json(&config, &["account", "credit", id, "1000000"])?;
        let rpm = REQUESTS_PER_MINUTE.to_string();
        let create = ["key", "create", "--account", id, "--name", "bench", "--rpm", &rpm];
        let key = self.tollgate_json(&config, &create)?["key"].as_str().ok_or("`key create` gave no key")?.to_owned();
        let mut command = on_core(self.core, self.tollgate);
        command.args(["serve", "--config"]).arg(&config).current_dir(&self.folder);
        Ok((command, key))
    }

    fn tollgate_json(&self, config: &Path, arguments: &[&str]) -> Result<Value, Failure> {
        let mut command = Command::new(self.tollgate);
        let output = command.args(arguments).arg("--json").arg("--config").arg(config).output()?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(format!("tollgate {}: {}", arguments.join(" "), said.trim()).into());
        }
        Ok(serde_json::from_slice(&output.stdout)?)
    }
}

/// A model with those targets, named after the first.
fn model(targets: &[&str]) -> String {
    let name = targets[0];
    // One whose every answer breaks off would be left alone.
    let provider = if name == "cut" { "breaking" } else { "upstream" };
    let targets: Vec<String> =
        targets.iter().map(|target| format!("{{ provider = \"{provider}\", model = \"{target}\" }}")).collect();
    format!(
        "[[model]]\nid = \"bench/{name}\"\ncontext_window = 2_000_000\noutput_tokens_max = 16_384\n\
         owned_by = \"bench\"\nprice = {{ input = \"0.15\", output = \"0.60\", cache_read = \"0.075\" }}\n\
         targets = [{}]\n",
        targets.join(", ")
    )
}

/// An address on loopback that nothing listens on.
fn free_address() -> Result<SocketAddr, Failure> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}
