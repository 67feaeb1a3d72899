//! A relay's configuration for a test, and how it is started.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::relay::Relay;
use super::{Reserved, Store, Upstream, within};

/// The credential that providers of tests are configured with.
pub const PROVIDER_KEY: &str = "sk-of-the-provider-0123456789";

/// The model that every configuration has, with its name at the provider. A million tokens cost 1 USD in, 2 out, 0.1
/// from a cache: a token 1,000, 2,000 and 100 nano-USD.
pub const MODEL: &str = "test-model";
pub const PROVIDER_MODEL: &str = "model-at-the-provider";

/// The model with slashes in its id, of the same price.
pub const SLASHED: &str = "vendor/family/model-1";

/// What a test wants of its relay. Tables of TOML are added as they are written.
pub struct Setup {
    pub listen: String,
    pub limits: String,
    pub billing: String,
    pub spool: Option<PathBuf>,
    pub store: Option<Store>,
    pub tables: String,
    pub environment: Vec<(String, String)>,
    pub files: Vec<(String, String)>,
    /// Whether the two default models are there.
    has_models: bool,
    /// Whether `listen.https` is there, under the files `cert.pem` and `key.pem` of the relay's folder.
    pub https: bool,
}

impl Setup {
    /// Plans `open` (no limit that a test meets) and `free` (30 a minute), one provider, two models.
    pub fn new(upstream: &Upstream) -> Self {
        Self::bare().provider("upstream", &upstream.base_url())
    }

    /// The same without a provider; [`MODEL`] and [`SLASHED`] are with one that is called `upstream`.
    pub fn bare() -> Self {
        Self {
            listen: String::new(),
            limits: String::new(),
            billing: String::new(),
            spool: None,
            store: None,
            tables: String::new(),
            environment: vec![("UPSTREAM_KEY".into(), PROVIDER_KEY.into())],
            files: Vec::new(),
            has_models: true,
            https: false,
        }
    }

    #[must_use]
    pub fn provider(self, name: &str, base_url: &str) -> Self {
        self.provider_with(name, base_url, "")
    }

    /// A provider with more lines of TOML.
    #[must_use]
    pub fn provider_with(self, name: &str, base_url: &str, lines: &str) -> Self {
        self.table(&format!(
            "[[provider]]\nname = {name:?}\ndialect = \"openai\"\nbase_url = {base_url:?}\n\
             credentials = [{{ env = \"UPSTREAM_KEY\" }}]\n{lines}\n"
        ))
    }

    /// A model with targets `(provider, tier)` in place of the default ones.
    #[must_use]
    pub fn model(mut self, id: &str, targets: &[(&str, u32)]) -> Self {
        self.has_models = false;
        self.table(&model(id, targets))
    }

    /// Tables of TOML, as they are.
    #[must_use]
    pub fn table(mut self, toml: &str) -> Self {
        self.tables.push_str(toml);
        self.tables.push('\n');
        self
    }

    /// Lines of `[limits]`.
    #[must_use]
    pub fn limits(mut self, lines: &str) -> Self {
        self.limits.push_str(lines);
        self.limits.push('\n');
        self
    }

    /// The spool's file, if not in the relay's folder.
    #[must_use]
    pub fn spool(mut self, path: &std::path::Path) -> Self {
        self.spool = Some(path.to_path_buf());
        self
    }

    /// The store, if not one of its own.
    #[must_use]
    pub fn store(mut self, store: Store) -> Self {
        self.store = Some(store);
        self
    }

    /// Lines of `[billing]`, which has a spool already.
    #[must_use]
    pub fn billing(mut self, lines: &str) -> Self {
        self.billing.push_str(lines);
        self.billing.push('\n');
        self
    }

    /// Lines of `[listen]`.
    #[must_use]
    pub fn listen(mut self, lines: &str) -> Self {
        self.listen.push_str(lines);
        self.listen.push('\n');
        self
    }

    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// A file in the relay's folder.
    #[must_use]
    pub fn file(mut self, name: &str, text: &str) -> Self {
        self.files.push((name.into(), text.into()));
        self
    }

    /// `listen.https` with that certificate.
    #[must_use]
    pub fn https(mut self, certificate: &super::tls::Certified) -> Self {
        self.https = true;
        self.file("cert.pem", &certificate.certificate).file("key.pem", &certificate.key)
    }

    /// Starts it, with an account on plan `open` that has 10 USD, and a key of it.
    #[track_caller]
    pub fn start(self) -> Relay {
        for _ in 0..5 {
            let ports = [(); 4].map(|()| Reserved::new());
            let folder = TempDir::with_prefix("tollgate-test-").unwrap();
            for (name, text) in &self.files {
                fs::write(folder.path().join(name), text).unwrap();
            }
            let store = self.store.as_ref().map_or_else(|| Store::new(folder.path()), Store::shared);
            let toml = self.toml(&ports, folder.path(), &store.toml());
            fs::write(folder.path().join("tollgate.toml"), toml).unwrap();
            let environment = [&*self.environment, store.environment().as_slice()].concat();
            match Relay::start(folder, store, ports, &environment) {
                Ok(relay) => return relay,
                // Somebody outside of these tests was faster; other ports, then.
                Err(reason) if reason.contains("in use") => {}
                Err(reason) => panic!("the relay did not start: {reason}"),
            }
        }
        panic!("five times in a row, the ports were in use");
    }

    fn toml(&self, ports: &[Reserved; 4], folder: &Path, store: &str) -> String {
        let [http, admin, metrics, https] = ports.each_ref().map(|port| port.address);
        let spool = self.spool.clone().unwrap_or_else(|| folder.join("spool.db"));
        let mut toml = format!(
            "[listen]\nhttp = \"{http}\"\nadmin = \"{admin}\"\nmetrics = \"{metrics}\"\n{listen}\n\
             [store]\nurl = {store}\n\n[billing]\nspool = {spool:?}\n{billing}\n\
             [limits]\n{limits}\n\
             [[plan]]\nname = \"open\"\nrequests_per_minute = 100_000\n\n\
             [[plan]]\nname = \"free\"\nrequests_per_minute = 30\n\n{tables}\n",
            listen = self.listen_lines(https),
            limits = self.limits,
            billing = self.billing,
            tables = self.tables,
        );
        if self.has_models {
            toml.push_str(&model(MODEL, &[("upstream", 0)]));
            toml.push_str(&model(SLASHED, &[("upstream", 0)]));
        }
        toml
    }

    fn listen_lines(&self, https: std::net::SocketAddr) -> String {
        let mut lines = self.listen.clone();
        if self.https {
            writeln!(lines, "https = {{ address = \"{https}\", certificate = \"cert.pem\", key = \"key.pem\" }}")
                .unwrap();
        }
        lines
    }
}

/// A model's table.
pub fn model(id: &str, targets: &[(&str, u32)]) -> String {
    let target = |(provider, tier): &(&str, u32)| {
        format!("{{ provider = {provider:?}, model = {PROVIDER_MODEL:?}, weight = 1, tier = {tier} }}")
    };
    let targets: Vec<String> = targets.iter().map(target).collect();
    format!(
        "[[model]]\nid = {id:?}\ncontext_window = 128_000\noutput_tokens_max = 16_384\nowned_by = \"tests\"\n\
         price = {{ input = \"1.00\", output = \"2.00\", cache_read = \"0.10\" }}\ntargets = [{}]\n\n",
        targets.join(", ")
    )
}
