//! Who changed what.

use askama::Template;
use serde_json::Value;

use super::{ROWS, address, cut, moment};
use crate::admin::dashboard::answer::{Answer, Refused, page};
use crate::admin::dashboard::form::Asked;
use crate::admin::dashboard::guard::Operator;
use crate::admin::dashboard::layout::Frame;
use crate::admin::dashboard::map::Map;
use crate::store::{AuditEntry, AuditFilter};

const PATH: &str = "/operator/audit";

pub(super) fn map(map: Map) -> Map {
    map.page(PATH, show)
}

#[derive(Template)]
#[template(path = "operator_audit.html")]
struct AuditPage {
    frame: Frame,
    subject: String,
    rows: Vec<Row>,
    next: Option<String>,
}

struct Row {
    at: String,
    who: String,
    action: String,
    subject_id: String,
    /// Only the changes of the same.
    subject_path: String,
    before: String,
    after: String,
}

impl From<AuditEntry> for Row {
    fn from(entry: AuditEntry) -> Self {
        let text = |change: Option<Value>| change.map(|change| change.to_string()).unwrap_or_default();
        let who = match &entry.actor_name {
            Some(name) => format!("{} {name}", entry.actor_kind),
            None => entry.actor_kind.clone(),
        };
        Self {
            at: moment(entry.at_ms),
            who,
            action: entry.action,
            subject_path: address(PATH, &[("subject", &entry.subject_id)]),
            subject_id: entry.subject_id,
            before: text(entry.before),
            after: text(entry.after),
        }
    }
}

async fn show(Operator(who): Operator, Asked(asked): Asked) -> Answer {
    let subject = asked.text("subject");
    let position = match asked.given("after") {
        Some(id) => Some(who.store.audit_position(id).await?.ok_or_else(Refused::nothing_here)?),
        None => None,
    };
    let filter = AuditFilter { subject_id: asked.given("subject").map(str::to_owned), since_ms: None };
    let entries = who.store.audit_entries(&filter, position.as_ref(), ROWS + 1).await?;
    let (entries, next) = cut(entries, |entry| &entry.id);
    page(&AuditPage {
        frame: Frame::of(&who, "Audit log", PATH),
        rows: entries.into_iter().map(Row::from).collect(),
        next: next.map(|after| address(PATH, &[("subject", subject), ("after", &after)])),
        subject: subject.to_owned(),
    })
}
