//! `tollgate quickstart`: everything on this machine, with embedded defaults.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;

use super::store::{by_user, now_ms};
use super::{Common, Failure, Outcome, output, process};
use crate::admin::create_key;
use crate::admin::people::{NewLink, create_link};
use crate::config::{self, Live, Providers};
use crate::proxy::{self, ServeError};
use crate::relay::auth::ApiKey;
use crate::relay::meter::NanoUsd;
use crate::store::{KeyTerms, LinkPurpose, NewKey, NewUser, Role, Store};

/// $5.00, to begin with.
const FIRST_CREDIT: NanoUsd = NanoUsd(5_000_000_000);
const FIRST_ACCOUNT: &str = "quickstart";
/// Who runs this machine. Nobody gets mail here: it is a name to sign in with.
const OPERATOR: &str = "operator@localhost";
/// The plan of the first account.
const FIRST_PLAN: &str = "max";

/// The catalogue that ships, written beside the configuration so that it can be edited.
const CATALOGUE: [(&str, &str); 2] = [
    ("providers.toml", include_str!("../../conf/providers.toml")),
    ("models.toml", include_str!("../../conf/models.toml")),
];

#[derive(Debug, Args)]
pub(super) struct Quickstart {
    /// Where configuration, store and spool are kept
    #[arg(long, value_name = "DIR", default_value = "./data")]
    data: PathBuf,
    /// The client API's address
    #[arg(long, value_name = "ADDRESS", default_value_t = local(8080))]
    listen: SocketAddr,
    /// The dashboard's address
    #[arg(long, value_name = "ADDRESS", default_value_t = local(8081))]
    dashboard: SocketAddr,
    /// The address of health and readiness
    #[arg(long, value_name = "ADDRESS", default_value_t = local(8082))]
    admin: SocketAddr,
    /// The address of the metrics
    #[arg(long, value_name = "ADDRESS", default_value_t = local(9090))]
    metrics: SocketAddr,
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

impl Quickstart {
    pub(super) fn run(&self, _common: &Common) -> Outcome {
        process::log_to_stderr();
        process::raise_descriptor_limit();
        let path = self.write_files()?;
        let mut loaded =
            config::load(&path, Providers::OnlyReady).map_err(|mistakes| Failure::of_mistakes(&mistakes))?;
        loaded.snapshot.listen = config::Listen {
            http: Some(self.listen),
            dashboard: Some(self.dashboard),
            admin: Some(self.admin),
            metrics: Some(self.metrics),
            ..config::Listen::default()
        };
        let live = Arc::new(Live::new(path, Providers::OnlyReady, loaded));
        let runtime = process::runtime()?;
        let store = process::open_store(&runtime, &live.load().store.url)?;
        // The key is made when the listeners are open: a key that nobody is shown is of no use. So is the link.
        let started = || match runtime.block_on(first_things(&by_user(&store))) {
            Ok((key, link)) => self.welcome(&live, key.as_ref(), &link),
            Err(Failure(message)) => output::error(&message),
        };
        let served = proxy::serve(Arc::clone(&live), store.clone(), &runtime, None, started);
        process::end(runtime);
        served.map_err(|error| match error {
            ServeError::Listen { .. } => {
                format!("{error}; --listen, --dashboard, --admin and --metrics choose other addresses")
            }
            error => error.to_string(),
        })?;
        Ok(ExitCode::SUCCESS)
    }

    /// Writes what is not there yet; what a person has edited stays as it is.
    fn write_files(&self) -> Result<PathBuf, Failure> {
        std::fs::create_dir_all(&self.data)
            .map_err(|error| format!("{} cannot be made: {error}", self.data.display()))?;
        for (name, text) in CATALOGUE {
            write_new(&self.data.join(name), text)?;
        }
        let path = self.data.join("tollgate.toml");
        write_new(&path, &self.configuration())?;
        Ok(path)
    }

    fn configuration(&self) -> String {
        let place = |name: &str| self.data.join(name).display().to_string();
        let template = include_str!("quickstart.toml");
        template
            .replace("@HTTP@", &self.listen.to_string())
            .replace("@DASHBOARD@", &self.dashboard.to_string())
            .replace("@ADMIN@", &self.admin.to_string())
            .replace("@METRICS@", &self.metrics.to_string())
            .replace("@STORE@", &quoted(&format!("sqlite://{}", place("tollgate.db"))))
            .replace("@SPOOL@", &quoted(&place("spool.db")))
    }

    fn welcome(&self, live: &Live, key: Option<&ApiKey>, link: &NewLink) {
        let snapshot = live.load();
        let models: Vec<&str> = snapshot.catalogue.models().iter().map(|model| &*model.id).collect();
        let base_url = format!("http://{}/v1", self.listen);
        output::line(&format!("tollgate is at {base_url}, with {}", models.join(", ")));
        let shown = match key {
            Some(key) => {
                output::line(&format!("Your API key, shown this once: {}", key.expose()));
                key.expose()
            }
            None => {
                output::line("The store has its keys already; `tollgate key create` makes another.");
                "$TOLLGATE_API_KEY"
            }
        };
        output::line("Try it:");
        output::line(&format!(
            "  curl -N {base_url}/chat/completions -H \"Authorization: Bearer {shown}\" -H \"Content-Type: application/json\" \
             -d '{{\"model\": \"demo\", \"stream\": true, \"messages\": [{{\"role\": \"user\", \"content\": \"Hello!\"}}]}}'"
        ));
        output::line(&format!("Or with OpenAI's SDKs: OPENAI_BASE_URL={base_url} OPENAI_API_KEY={shown}"));
        let dashboard = snapshot.dashboard_url().unwrap_or_default();
        output::line(&format!(
            "Your dashboard, by a link that is good once within 15 minutes: {}",
            link.url(&dashboard)
        ));
        output::line(&format!(
            "Metrics: http://{}/metrics   Health: http://{}/readyz   Stop: Ctrl-C",
            self.metrics, self.admin
        ));
    }
}

/// The first account and its key, where the store is empty; and a way into the dashboard, every time.
async fn first_things(store: &Store) -> Result<(Option<ApiKey>, NewLink), Failure> {
    let key = first_key(store).await?;
    let operator = match store.user_by_email(OPERATOR).await? {
        Some(operator) => operator,
        None => {
            // The first account is the quickstart's own, unless somebody else made it.
            let first = store.accounts_after(None, 1).await?.pop().filter(|first| first.name == FIRST_ACCOUNT);
            let account_id = first.as_ref().map(|account| &*account.id);
            let new = NewUser { email: OPERATOR, role: Role::Operator, account_id, password: None };
            store.create_user(&new, now_ms()).await?
        }
    };
    Ok((key, create_link(store, &operator, LinkPurpose::SignIn, now_ms()).await?))
}

async fn first_key(store: &Store) -> Result<Option<ApiKey>, Failure> {
    if !store.keys(None).await?.is_empty() {
        return Ok(None);
    }
    let account = store.create_account(FIRST_ACCOUNT, FIRST_PLAN, now_ms()).await?;
    store.credit(&account.id, FIRST_CREDIT, Some("to begin with"), now_ms()).await?;
    let new = NewKey { account_id: account.id, name: "quickstart".to_owned(), terms: KeyTerms::default() };
    let (_, secret) = create_key(store, &new, now_ms()).await?;
    Ok(Some(secret))
}

fn write_new(path: &Path, text: &str) -> Result<(), Failure> {
    use std::io::{ErrorKind, Write};
    match std::fs::File::create_new(path) {
        Ok(mut file) => Ok(file.write_all(text.as_bytes()).map_err(|error| cannot_write(path, &error))?),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(cannot_write(path, &error).into()),
    }
}

fn cannot_write(path: &Path, error: &std::io::Error) -> String {
    format!("{} cannot be written: {error}", path.display())
}

/// A TOML string, which JSON's are too.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
