//! Debian's nginx as the other proxy to compare with: its own process, on free ports, below a temporary folder.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::{Reserved, until};

/// A running nginx, stopped when it is dropped.
pub struct Nginx {
    pub http1: SocketAddr,
    pub http2: SocketAddr,
    child: Child,
    _folder: TempDir,
    _ports: [Reserved; 2],
}

impl Nginx {
    /// Passes everything on to that provider; `None` where nginx is not installed.
    pub fn start(upstream: SocketAddr) -> Option<Self> {
        let binary = binary()?;
        let folder = TempDir::with_prefix("tollgate-nginx-").unwrap();
        let ports = [(); 2].map(|()| Reserved::new());
        let [http1, http2] = ports.each_ref().map(|port| port.address);
        let path = folder.path().join("nginx.conf");
        fs::write(&path, configuration(folder.path(), http1, http2, upstream)).unwrap();
        let log = fs::File::create(folder.path().join("stderr.log")).unwrap();
        let mut child = Command::new(binary)
            .arg("-p")
            .arg(folder.path())
            .arg("-e")
            .arg(folder.path().join("error.log"))
            .arg("-c")
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        until("nginx to listen, or to end", || {
            let said = || fs::read_to_string(folder.path().join("stderr.log")).unwrap_or_default();
            assert!(child.try_wait().unwrap().is_none(), "nginx did not start: {}", said());
            [http1, http2].into_iter().all(|to| TcpStream::connect(to).is_ok()).then_some(())
        });
        Some(Self { http1, http2, child, _folder: folder, _ports: ports })
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where Debian puts it is not on everyone's path.
fn binary() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    folders.map(|folder| folder.join("nginx")).find(|file| file.is_file())
}

/// One process, which ends connections as soon as the relay of the same test does.
fn configuration(folder: &Path, http1: SocketAddr, http2: SocketAddr, upstream: SocketAddr) -> String {
    let folder = folder.display();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|what| format!("{what}_temp_path {folder}/{what};\n"))
        .concat();
    format!(
        "daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/error.log;\n\
         events {{ worker_connections 1024; }}\n\
         http {{\naccess_log off;\n{temporary}\
         client_header_timeout 1s; client_body_timeout 1s; keepalive_timeout 1s; lingering_timeout 1s;\n\
         server {{\nlisten {http1};\nlisten {http2} http2;\n\
         location / {{ proxy_pass http://{upstream}; proxy_http_version 1.1; proxy_set_header Connection \"\"; }}\n}}\n}}\n"
    )
}
