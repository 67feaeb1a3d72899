//! Debian's Redis as the place where nodes meet, and a line to it that can be slow.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tempfile::TempDir;

use super::{Reserved, until};

/// A running Redis that keeps nothing when it ends, killed when it is dropped.
pub struct Redis {
    pub address: SocketAddr,
    /// Where it speaks TLS, if it does.
    pub tls: SocketAddr,
    options: Vec<String>,
    binary: PathBuf,
    child: Child,
    folder: TempDir,
    _ports: [Reserved; 2],
}

impl Redis {
    /// `None`, and a line that says so, where there is none to be started.
    pub fn start() -> Option<Self> {
        Self::start_with(|_, _| Vec::new())
    }

    /// With TLS by that certificate besides, and a password that who logs in must know.
    pub fn start_guarded(certified: &super::tls::Certified, password: &str) -> Option<Self> {
        Self::start_with(|folder, tls| {
            let (certificate, key) = certified.write(folder, "redis");
            let path = |path: PathBuf| path.display().to_string();
            let options = [
                ["--tls-port", &tls.port().to_string()],
                ["--tls-cert-file", &path(certificate)],
                ["--tls-key-file", &path(key)],
                ["--tls-auth-clients", "no"],
                // Of TLS itself, which wants an authority for clients though none is asked.
                ["--tls-ca-cert-dir", "/etc/ssl/certs"],
                ["--requirepass", password],
            ];
            options.concat().into_iter().map(str::to_owned).collect()
        })
    }

    fn start_with(options: impl FnOnce(&std::path::Path, SocketAddr) -> Vec<String>) -> Option<Self> {
        let Some(binary) = binary() else {
            eprintln!("skipped: no redis-server; install it, or name one with TOLLGATE_TEST_REDIS");
            return None;
        };
        let (ports, folder) = ([(); 2].map(|()| Reserved::new()), TempDir::with_prefix("tollgate-redis-").unwrap());
        let [address, tls] = ports.each_ref().map(|port| port.address);
        let options = options(folder.path(), tls);
        let child = spawn(&binary, address, &folder, &options);
        let redis = Self { address, tls, options, binary, child, folder, _ports: ports };
        redis.wait();
        Some(redis)
    }

    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    pub fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts it anew after its end; it knows nothing.
    pub fn start_again(&mut self) {
        self.child = spawn(&self.binary, self.address, &self.folder, &self.options);
        self.wait();
    }

    /// Sends it a signal, by its name without `SIG`.
    pub fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &id]).status().unwrap().success());
    }

    /// Says a command of words without spaces, and gives the first line of what it is answered.
    pub fn ask(&self, command: &str) -> String {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(super::PATIENCE)).unwrap();
        stream.write_all(format!("{command}\r\n").as_bytes()).unwrap();
        let mut said = Vec::new();
        let mut byte = [0];
        while !said.ends_with(b"\r\n") && stream.read(&mut byte).is_ok_and(|read| read == 1) {
            said.push(byte[0]);
        }
        String::from_utf8_lossy(&said).trim_end().to_owned()
    }

    /// All that it holds, as text.
    pub fn dump(&self) -> String {
        let output = Command::new("sh")
            .arg("-c")
            .arg(format!(
                "cli='redis-cli -p {}'; $cli --scan | while read -r key; do echo \"$key\"; $cli dump \"$key\"; done",
                self.address.port()
            ))
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn wait(&self) {
        until("Redis to answer", || {
            TcpStream::connect(self.address).ok()?;
            (self.ask("PING") == "+PONG" || self.ask("PING").starts_with("-NOAUTH")).then_some(())
        });
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.stop();
    }
}

fn spawn(binary: &PathBuf, address: SocketAddr, folder: &TempDir, options: &[String]) -> Child {
    let arguments = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--daemonize", "no"];
    let mut command = Command::new(binary);
    command.args(["--port", &address.port().to_string()]).args(arguments).args(options).arg("--dir").arg(folder.path());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// What `TOLLGATE_TEST_REDIS` names, else what is on the path.
fn binary() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("TOLLGATE_TEST_REDIS") {
        return Some(PathBuf::from(named)).filter(|path| path.is_file());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|folder| folder.join("redis-server")).find(|file| file.is_file())
}

/// A line to a server, by which each piece arrives as late as a test wants.
pub struct Lag {
    pub address: SocketAddr,
    late_ms: Arc<AtomicU64>,
}

impl Lag {
    /// To that server, without any lag at first. It lasts as long as the test's process.
    pub fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let late_ms = Arc::new(AtomicU64::new(0));
        let late = Arc::clone(&late_ms);
        std::thread::spawn(move || {
            for here in listener.incoming().map_while(Result::ok) {
                let Ok(there) = TcpStream::connect(to) else { continue };
                let _ = (here.set_nodelay(true), there.set_nodelay(true));
                let (here_too, there_too) = (here.try_clone().unwrap(), there.try_clone().unwrap());
                let late = [Arc::clone(&late), Arc::default()];
                for ((from, to), late) in [(here, there), (there_too, here_too)].into_iter().zip(late) {
                    std::thread::spawn(move || pass(from, to, &late));
                }
            }
        });
        Self { address, late_ms }
    }

    /// From now on, what is sent arrives so much later.
    pub fn set(&self, late: Duration) {
        self.late_ms.store(u64::try_from(late.as_millis()).unwrap(), Ordering::Relaxed);
    }
}

/// Passes on what comes, late.
fn pass(mut from: TcpStream, mut to: TcpStream, late_ms: &AtomicU64) {
    let mut piece = vec![0; 64 * 1024];
    while let Ok(read @ 1..) = from.read(&mut piece) {
        match late_ms.load(Ordering::Relaxed) {
            0 => {}
            late => std::thread::park_timeout(Duration::from_millis(late)),
        }
        if to.write_all(&piece[..read]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Both);
}
