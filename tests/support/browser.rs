//! What a browser does with the dashboard's pages: it keeps the cookie, follows redirects, and sends forms with what stands hidden in
//! them.

use std::net::SocketAddr;

use super::client::{Framing, Request, Response};

/// A browser without script.
pub struct Browser {
    pub address: SocketAddr,
    /// The session's cookie, as `name=value`.
    pub cookie: Option<String>,
    /// The last page.
    pub page: String,
}

impl Browser {
    pub fn new(address: SocketAddr) -> Self {
        Self { address, cookie: None, page: String::new() }
    }

    /// Asks for a path, redirects followed, and keeps the page.
    #[track_caller]
    pub fn open(&mut self, path: &str) -> Response {
        let answer = self.ask(&Request::get(path));
        self.follow(answer)
    }

    /// Sends a form of the last page to a path, with the page's proof, and follows where that leads.
    #[track_caller]
    pub fn send(&mut self, path: &str, fields: &[(&str, &str)]) -> Response {
        let answer = self.post(path, fields);
        self.follow(answer)
    }

    /// As [`Browser::send`], without following.
    #[track_caller]
    pub fn post(&mut self, path: &str, fields: &[(&str, &str)]) -> Response {
        let proof = hidden(&self.page, "csrf").unwrap_or_default();
        let mut pairs = vec![("csrf", proof.as_str())];
        pairs.extend(fields);
        let request = form(path, &pairs).header("origin", &format!("http://{}", self.address));
        self.ask(&request)
    }

    /// Sends a request as it is, with the cookie, and keeps the cookie that comes back.
    #[track_caller]
    pub fn ask(&mut self, request: &Request) -> Response {
        let mut request = request.clone().header("host", &self.address.to_string());
        if let Some(cookie) = &self.cookie {
            request = request.header("cookie", cookie);
        }
        let answer = request.send(self.address);
        if let Some(set) = answer.headers.find("set-cookie") {
            let pair = set.split(';').next().unwrap_or_default();
            self.cookie = (!pair.ends_with('=')).then(|| pair.to_owned());
        }
        answer
    }

    #[track_caller]
    fn follow(&mut self, mut answer: Response) -> Response {
        for _ in 0..5 {
            let Some(to) = answer.headers.find("location").map(str::to_owned) else { break };
            assert_eq!(answer.status, 303, "{to}");
            answer = self.ask(&Request::get(&to));
        }
        self.page = answer.text();
        answer
    }
}

/// A form as a browser writes it.
pub fn form(path: &str, pairs: &[(&str, &str)]) -> Request {
    let body = pairs.iter().map(|(name, value)| format!("{}={}", encoded(name), encoded(value))).collect::<Vec<_>>();
    let request = Request { body: body.join("&").into_bytes(), framing: Framing::Length, ..Request::new("POST", path) };
    request.header("content-type", "application/x-www-form-urlencoded")
}

fn encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

/// The value of a page's first hidden field of that name.
pub fn hidden(page: &str, name: &str) -> Option<String> {
    let rest = page.split(&format!("name=\"{name}\" value=\"")).nth(1)?;
    rest.split('"').next().map(str::to_owned)
}
