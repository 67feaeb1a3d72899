//! A Redis of a test's own.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A running server that keeps nothing, killed when it is dropped.
pub(super) struct Server {
    pub(super) url: String,
    port: u16,
    child: Child,
    folder: tempfile::TempDir,
}

impl Server {
    /// `None`, and a line that says so, where there is no Redis to be started.
    pub(super) fn start() -> Option<Self> {
        let Some(binary) = binary() else {
            eprintln!("skipped: no redis-server; install it, or name one with TOLLGATE_TEST_REDIS");
            return None;
        };
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let folder = tempfile::tempdir().unwrap();
        let child = spawn(&binary, port, folder.path());
        let server = Self { url: format!("redis://127.0.0.1:{port}"), port, child, folder };
        server.wait();
        Some(server)
    }

    /// Another in its place, which knows nothing.
    pub(super) fn restart(&mut self) {
        self.stop();
        self.child = spawn(&binary().unwrap(), self.port, self.folder.path());
        self.wait();
    }

    pub(super) fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub(super) fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &id]).status().unwrap().success());
    }

    pub(super) fn connect(&self) -> redis::Connection {
        redis::Client::open(&*self.url).unwrap().get_connection().unwrap()
    }

    fn wait(&self) {
        let end = Instant::now() + Duration::from_secs(20);
        let client = redis::Client::open(&*self.url).unwrap();
        while client.get_connection().is_err() {
            assert!(Instant::now() < end, "redis-server did not start");
            std::thread::yield_now();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

fn spawn(binary: &PathBuf, port: u16, folder: &std::path::Path) -> Child {
    let arguments = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--daemonize", "no"];
    let mut command = Command::new(binary);
    command.args(["--port", &port.to_string()]).args(arguments).arg("--dir").arg(folder);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn binary() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("TOLLGATE_TEST_REDIS") {
        return Some(named.into()).filter(|path: &PathBuf| path.is_file());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|folder| folder.join("redis-server")).find(|file| file.is_file())
}
