//! `tollgate user`: people who sign in to the dashboard. No mail is sent: links are printed, to be passed on.

use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};

use super::output::{self, Column, Table};
use super::store::{now_ms, with_store};
use super::value;
use super::{Common, Failure, Outcome};
use crate::admin::people::create_link;
use crate::admin::{LinkDocument, UserDocument};
use crate::config::Snapshot;
use crate::relay::meter::rfc3339;
use crate::store::{self, LinkPurpose, NewUser, Store, UserChange};

#[derive(Debug, Args)]
pub(super) struct User {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Somebody new; `invite` makes the link by which they choose their password
    Create {
        /// To sign in with
        #[arg(value_parser = value::email)]
        email: String,
        /// What they may see: their own account's pages, or everything
        #[arg(long, value_enum, default_value = "customer")]
        role: Role,
        /// Whose keys, usage and money are theirs; operators need none
        #[arg(long, value_name = "ID")]
        account: Option<String>,
    },
    /// Everybody
    List,
    /// A link to choose the first password, good for 7 days
    Invite {
        /// Address or id
        user: String,
    },
    /// A link to choose another password, good for a day
    Reset {
        /// Address or id
        user: String,
    },
    /// A link to sign in without a password, good for 15 minutes
    SignInLink {
        /// Address or id
        user: String,
    },
    /// Let somebody see more, or less
    Role {
        /// Address or id
        user: String,
        #[arg(value_enum)]
        role: Role,
    },
    /// Give somebody an account, or another one
    Account {
        /// Address or id
        user: String,
        /// The account's id
        account: String,
    },
    /// Sign somebody out everywhere
    SignOut {
        /// Address or id
        user: String,
    },
    /// Sign somebody out everywhere and let them in no more until they are resumed
    Suspend {
        /// Address or id
        user: String,
    },
    /// Let somebody in again
    Resume {
        /// Address or id
        user: String,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Role {
    Customer,
    Operator,
}

impl From<Role> for store::Role {
    fn from(role: Role) -> Self {
        match role {
            Role::Customer => Self::Customer,
            Role::Operator => Self::Operator,
        }
    }
}

impl User {
    pub(super) fn run(&self, common: &Common) -> Outcome {
        with_store(common, async |snapshot, store| {
            self.action.run(snapshot, store, common.json).await?;
            Ok(ExitCode::SUCCESS)
        })
    }
}

impl Action {
    async fn run(&self, snapshot: &Snapshot, store: &Store, json: bool) -> Result<(), Failure> {
        let change = match self {
            Self::Create { email, role, account } => {
                let (role, account_id) = (store::Role::from(*role), account.as_deref());
                if role == store::Role::Customer && account_id.is_none() {
                    return Err("a customer needs an account; name it with --account".into());
                }
                let user = store.create_user(&NewUser { email, role, account_id, password: None }, now_ms()).await?;
                show(&user, json);
                return Ok(());
            }
            Self::List => return list(store, json).await,
            Self::Invite { user } => return link(snapshot, store, user, LinkPurpose::Invite, json).await,
            Self::Reset { user } => return link(snapshot, store, user, LinkPurpose::Reset, json).await,
            Self::SignInLink { user } => return link(snapshot, store, user, LinkPurpose::SignIn, json).await,
            Self::SignOut { user } => {
                let user = find(store, user).await?;
                store.end_sessions(&user.id, None).await?;
                show(&user, json);
                return Ok(());
            }
            Self::Role { user, role } => (user, UserChange { role: Some((*role).into()), ..UserChange::default() }),
            Self::Account { user, account } => {
                (user, UserChange { account_id: Some(account), ..UserChange::default() })
            }
            Self::Suspend { user } => (user, UserChange { active: Some(false), ..UserChange::default() }),
            Self::Resume { user } => (user, UserChange { active: Some(true), ..UserChange::default() }),
        };
        let (user, change) = change;
        let user = store.update_user(&find(store, user).await?.id, &change, now_ms()).await?;
        show(&user, json);
        Ok(())
    }
}

/// Somebody by their address, or by their id.
async fn find(store: &Store, user: &str) -> Result<store::User, Failure> {
    match store.user_by_email(user).await? {
        Some(user) => Ok(user),
        None => Ok(store.user(user).await?),
    }
}

fn show(user: &store::User, json: bool) {
    if json {
        return output::json(&UserDocument::from(user));
    }
    let account = user.account_id.as_deref().unwrap_or("no account");
    output::line(&format!("{} {} ({}, {account}) is {}", user.id, user.email, user.role.name(), user.status()));
}

async fn list(store: &Store, json: bool) -> Result<(), Failure> {
    let users = store.users_after(None, u32::MAX).await?;
    if json {
        output::json(&users.iter().map(UserDocument::from).collect::<Vec<_>>());
        return Ok(());
    }
    let rows: Vec<_> = users
        .iter()
        .map(|user| {
            let account = user.account_id.clone().unwrap_or_default();
            [user.id.clone(), user.email.clone(), user.role.name().to_owned(), account, user.status().to_owned()]
        })
        .collect();
    let columns = ["ID", "E-MAIL", "ROLE", "ACCOUNT", "STATUS"].map(Column::Left);
    Table::new(columns).rows(&rows);
    Ok(())
}

async fn link(snapshot: &Snapshot, store: &Store, user: &str, purpose: LinkPurpose, json: bool) -> Result<(), Failure> {
    const NOWHERE: &str = "there is no dashboard to be let in to: the configuration has no listen.dashboard";
    let address = snapshot.dashboard_url().ok_or_else(|| Failure(NOWHERE.to_owned()))?;
    let user = find(store, user).await?;
    let link = create_link(store, &user, purpose, now_ms()).await?;
    let (url, expires_at) = (link.url(&address), rfc3339(link.expires_at_ms));
    if json {
        output::json(&LinkDocument { user: (&user).into(), purpose: purpose.name(), url, expires_at });
        return Ok(());
    }
    output::line(&url);
    output::line(&format!("Pass it on to {}: no mail is sent. It is good once, until {expires_at}.", user.email));
    Ok(())
}
