//! A service manager as processes see it: the socket of `$NOTIFY_SOCKET`, and what was said there.

use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use tempfile::TempDir;

use super::relay::Relay;
use super::setup::Setup;
use super::until;

/// Hears what a relay says of itself.
pub struct Manager {
    folder: TempDir,
    heard: Arc<Mutex<Vec<String>>>,
}

impl Manager {
    pub fn new() -> Self {
        let folder = TempDir::with_prefix("tollgate-manager-").unwrap();
        let socket = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        let heard = Arc::<Mutex<Vec<String>>>::default();
        let hears = Arc::clone(&heard);
        std::thread::spawn(move || {
            let mut text = [0; 1024];
            while let Ok(length) = socket.recv(&mut text) {
                if text[..length].starts_with(b"OVER") {
                    return;
                }
                hears.lock().unwrap().push(String::from_utf8_lossy(&text[..length]).into_owned());
            }
        });
        Self { folder, heard }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("notify")
    }

    /// A relay's setup that tells this manager.
    pub fn of(&self, setup: Setup) -> Setup {
        setup.env("NOTIFY_SOCKET", &self.socket().display().to_string())
    }

    /// Everything that was said so far, in its order; a line each.
    pub fn heard(&self) -> Vec<String> {
        self.heard.lock().unwrap().iter().flat_map(|said| said.lines().map(str::to_owned).collect::<Vec<_>>()).collect()
    }

    /// How often a line was said that begins so.
    pub fn count(&self, line: &str) -> usize {
        self.heard().iter().filter(|heard| heard.starts_with(line)).count()
    }

    #[track_caller]
    pub fn wait_for(&self, line: &str, count: usize) {
        until(&format!("{line}, {count} times"), || (self.count(line) >= count).then_some(()));
    }

    /// Has the relay upgraded; the new process's id.
    #[track_caller]
    pub fn upgrade(&self, relay: &Relay) -> u32 {
        let (upgrades, ready) = (self.count("MAINPID="), self.count("READY=1"));
        relay.signal("USR2");
        self.wait_for("MAINPID=", upgrades + 1);
        self.wait_for("READY=1", ready + 1);
        let heard = self.heard();
        let pid = heard.iter().rev().find_map(|line| line.strip_prefix("MAINPID=")).unwrap().parse().unwrap();
        relay.succeeded_by(pid);
        pid
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = UnixDatagram::unbound().and_then(|socket| socket.send_to(b"OVER", self.socket()));
    }
}
