//! `[dashboard]`: how people reach it, and on what terms they come in. Every entry has a default.

use std::time::Duration;

use super::draft::Row;
use super::mistake::{Mistakes, Place};
use super::plan::PlanRow;
use super::reader::{Table, Value};
use super::snapshot::DashboardConfig;
use crate::relay::meter::{NanoUsd, parse_nano_usd};

/// A session that lasts longer than a year is a slip of the unit.
const HOURS_MAX: u64 = 8_784;

pub(super) fn read(value: &Value<'_>) -> Option<DashboardConfig> {
    let table = value.table()?;
    let mut dashboard = DashboardConfig {
        public_url: table.optional("public_url").and_then(|value| origin(&value)),
        api_url: table.optional("api_url").and_then(|value| base_url(&value)),
        ..DashboardConfig::default()
    };
    if let Some(registration) = table.optional("registration").and_then(|value| value.boolean()) {
        dashboard.registration = registration;
    }
    if let Some(credit) = table.optional("starting_credit_usd").and_then(|value| credit(&value)) {
        dashboard.starting_credit = credit;
    }
    if let Some(plan) = table.optional("starting_plan").and_then(|value| value.string()) {
        dashboard.starting_plan = plan.into();
    }
    if let Some(keys) = table.optional("keys_per_account_max").and_then(|value| value.count()) {
        dashboard.keys_per_account_max = keys;
    }
    set_hours(&table, "session_hours_max", &mut dashboard.session_max);
    set_hours(&table, "session_idle_hours_max", &mut dashboard.session_idle_max);
    table.finish();
    Some(dashboard)
}

/// What cannot be known before all files are read: whoever registers needs a plan that is there.
pub(super) fn check(dashboard: &DashboardConfig, place: &Place, plans: &[Row<PlanRow>], mistakes: &Mistakes) {
    if dashboard.registration && !plans.iter().any(|plan| plan.name == dashboard.starting_plan) {
        let plan = &dashboard.starting_plan;
        mistakes.report(place, format!("dashboard.starting_plan: there is no plan {plan:?}; name one of [[plan]]"));
    }
}

fn set_hours(table: &Table<'_>, key: &'static str, time: &mut Duration) {
    if let Some(hours) = table.optional(key).and_then(|value| value.number(1..=HOURS_MAX)) {
        *time = Duration::from_secs(hours * 3_600);
    }
}

fn credit(value: &Value<'_>) -> Option<NanoUsd> {
    let text = value.string()?;
    let credit = parse_nano_usd(text).filter(|nano| *nano >= 0).map(NanoUsd);
    credit.or_else(|| value.refuse("must be decimal USD in quotes, 0 or more, such as \"1.00\""))
}

/// A scheme and a host, with a port where it is not the scheme's own.
fn origin(value: &Value<'_>) -> Option<Box<str>> {
    let url = base_url(value)?;
    let host = url.split_once("://").map_or("", |(_, rest)| rest);
    if host.contains('/') {
        return value.refuse("must have no path; write \"https://dashboard.example.com\"");
    }
    Some(url)
}

fn base_url(value: &Value<'_>) -> Option<Box<str>> {
    let url = value.string()?.trim_end_matches('/');
    let host = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    let is_url = host.is_some_and(|host| {
        !host.is_empty()
            && !host.starts_with('/')
            && host.bytes().all(|byte| byte.is_ascii_graphic())
            && !host.contains(['@', '?', '#', '"', '\'', '\\', '<', '>'])
    });
    if !is_url {
        return value.refuse("is not an address that a browser can open; write \"https://\" and a host");
    }
    // Browsers write schemes and hosts in lower case, and it is compared with what they write.
    let path_begins = url.match_indices('/').nth(2).map_or(url.len(), |(at, _)| at);
    Some(format!("{}{}", url[..path_begins].to_ascii_lowercase(), &url[path_begins..]).into())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{mistakes_of, with_root};
    use super::*;

    fn read_dashboard(toml: &str) -> (DashboardConfig, String) {
        let mut found = None;
        let mistakes = with_root(toml, &|_| None, |root| {
            found = root.required("dashboard", "").and_then(|value| read(&value));
        });
        (found.unwrap(), mistakes_of(&mistakes))
    }

    #[test]
    fn an_empty_table_is_the_defaults() {
        assert_eq!(read_dashboard("[dashboard]"), (DashboardConfig::default(), String::new()));
    }

    #[test]
    fn addresses_are_taken_as_browsers_write_them() {
        let (dashboard, told) = read_dashboard(
            "[dashboard]\npublic_url = 'https://Dash.Example.com:8443/'\napi_url = 'http://API.example.com/Team/v1'",
        );
        assert_eq!(told, "");
        assert_eq!(dashboard.public_url.as_deref(), Some("https://dash.example.com:8443"));
        assert_eq!(dashboard.api_url.as_deref(), Some("http://api.example.com/Team/v1"));
    }

    #[test]
    fn what_cannot_be_is_told() {
        for (written, told) in [
            ("public_url = 'dash.example.com'", "is not an address that a browser can open"),
            ("public_url = 'https://'", "is not an address that a browser can open"),
            ("public_url = 'https://u:p@host'", "is not an address that a browser can open"),
            ("public_url = 'https://host/path'", "must have no path"),
            ("starting_credit_usd = '-1'", "must be decimal USD"),
            ("session_hours_max = 0", "from 1 to 8784"),
            ("registraton = true", "did you mean \"registration\""),
        ] {
            let (_, mistakes) = read_dashboard(&format!("[dashboard]\n{written}"));
            assert!(mistakes.starts_with("test.toml:2: ") && mistakes.contains(told), "{written}: {mistakes}");
        }
    }
}
