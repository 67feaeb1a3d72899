//! How providers are, and what became of what they were asked today.

use std::collections::HashMap;

use askama::Template;

use crate::admin::dashboard::answer::{Answer, page};
use crate::admin::dashboard::guard::Operator;
use crate::admin::dashboard::layout::Frame;
use crate::admin::dashboard::map::Map;
use crate::admin::providers::{LaneDocument, ProviderDocument, providers};
use crate::store::{By, UsageFilter, day_number};

const PATH: &str = "/operator/providers";
const DAY_MS: i64 = 86_400_000;

pub(super) fn map(map: Map) -> Map {
    map.page(PATH, show)
}

#[derive(Template)]
#[template(path = "operator_providers.html")]
struct ProvidersPage {
    frame: Frame,
    providers: Vec<Row>,
}

struct Row {
    provider: ProviderDocument,
    /// Credentials that it refused, by number.
    refused: Vec<usize>,
    requests: u64,
    errors: u64,
}

async fn show(Operator(who): Operator) -> Answer {
    let now = who.dashboard.process().now();
    let since_ms = Some(day_number(now.unix_ms) * DAY_MS);
    let today = who.store.usage_by(&UsageFilter { since_ms, ..UsageFilter::default() }, By::Provider).await?;
    let today: HashMap<&str, (u64, u64)> = today.iter().map(|sum| (&*sum.group, (sum.requests, sum.errors))).collect();
    let snapshot = who.dashboard.snapshot();
    let rows = providers(&snapshot.catalogue, now).into_iter().map(|provider| {
        let (requests, errors) = today.get(provider.name.as_str()).copied().unwrap_or_default();
        let refused = provider.credentials.iter().filter(|one| one.refused).map(|one| one.number);
        Row { refused: refused.collect(), requests, errors, provider }
    });
    page(&ProvidersPage { frame: Frame::of(&who, "Providers", PATH), providers: rows.collect() })
}

impl LaneDocument {
    /// As the page has it, empty where there is none.
    fn first_byte(&self) -> String {
        self.first_byte_ms.map(|ms| format!("{ms} ms")).unwrap_or_default()
    }

    fn credential_number(&self) -> String {
        self.credential.map(|number| number.to_string()).unwrap_or_default()
    }

    fn until(&self) -> &str {
        self.open_until.as_deref().unwrap_or_default()
    }
}
