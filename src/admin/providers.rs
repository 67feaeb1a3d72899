//! `GET /admin/v1/providers`: every provider with its credentials, by number, and how each of its models stands.
//!
//! Absent: credentials themselves, and anything that could be mistaken for a part of one.

use serde_json::{Value, json};

use super::Reply;
use crate::relay::refusal::{Cause, Refusal};
use crate::relay::route::{Catalogue, Lane, Provider, ProviderHealth, Secret, Standing};

/// Who asks, and for what.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// The method.
    pub method: &'a str,
    /// The `Authorization` header, where there is one.
    pub authorization: Option<&'a str>,
}

/// The moment, for times of breakers: the relay's clock, and a wall clock's time as text.
pub struct Now<'a> {
    /// Microseconds.
    pub us: u64,
    /// What the wall clock shows at a time of the relay's clock, RFC 3339.
    pub wall: &'a dyn Fn(u64) -> String,
}

/// Answers to whoever knows `token`. Where there is none, there is no such page.
pub fn providers(question: &Question<'_>, token: Option<&Secret>, catalogue: &Catalogue, now: &Now<'_>) -> Reply {
    let Some(token) = token else {
        return refused(&Refusal::new(Cause::UnknownUrl, "There is no admin API without [admin] token."));
    };
    let given = question.authorization.and_then(|text| text.split_once(' '));
    let is_known = given.is_some_and(|(scheme, given)| scheme.eq_ignore_ascii_case("bearer") && token.is(given.trim()));
    if !is_known {
        return refused(&Refusal::new(Cause::InvalidApiKey, "The admin token is missing or wrong."));
    }
    if question.method != "GET" {
        return refused(&Refusal::new(Cause::MethodNotAllowed, "Providers are read with GET."));
    }
    let rows: Vec<Value> = catalogue
        .providers()
        .iter()
        .filter_map(|provider| Some(row(provider, catalogue.health().provider(&provider.name)?, now)))
        .collect();
    Reply { status: 200, body: json!({"object": "list", "data": rows}).to_string() }
}

fn refused(refusal: &Refusal) -> Reply {
    Reply { status: refusal.cause.status(), body: String::from_utf8_lossy(&refusal.to_json()).into_owned() }
}

fn row(provider: &Provider, health: &ProviderHealth, now: &Now<'_>) -> Value {
    let credentials: Vec<Value> = provider
        .credentials
        .iter()
        .zip(&health.accounts)
        .enumerate()
        .map(|(at, (_, account))| json!({"number": at + 1, "refused": account.is_refused()}))
        .collect();
    let models: Vec<Value> = health
        .lanes
        .iter()
        .flat_map(|(model, lanes)| lanes.iter().enumerate().map(move |(at, lane)| (model, at, lane)))
        .map(|(model, at, lane)| {
            let number = (!provider.credentials.is_empty()).then_some(at + 1);
            describe(model, number, lane, now)
        })
        .collect();
    json!({
        "name": provider.name,
        "dialect": provider.dialect.name(),
        "healthy": health.is_healthy(now.us),
        "credentials": credentials,
        "models": models,
    })
}

fn describe(model: &str, credential: Option<usize>, lane: &Lane, now: &Now<'_>) -> Value {
    let view = lane.view(now.us);
    let until_us = match view.condition {
        Standing::Open { until_us } | Standing::Resting { until_us } if until_us > now.us => Some(until_us),
        _ => None,
    };
    json!({
        "model": model,
        "credential": credential,
        "state": view.condition.name(now.us),
        "open_until": until_us.map(now.wall),
        "consecutive_failures": view.failures,
        "requests_in_flight": view.in_flight,
        "first_byte_ms": view.first_byte_us.map(|us| us / 1000),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::relay::route::{Dialect, Endpoint, ProviderTimes, Quirks};

    fn asked(method: &str, authorization: Option<&str>, token: Option<&str>) -> Reply {
        let provider = Arc::new(Provider {
            name: "p".into(),
            dialect: Dialect::OpenAi,
            endpoint: Endpoint::Demo,
            credentials: vec![Secret::new("sk-secret")],
            quirks: Quirks::NONE,
            times: ProviderTimes::default(),
            breaker: true,
        });
        let catalogue = Catalogue::new(Vec::new(), vec![provider], Vec::new());
        let token = token.map(Secret::new);
        let now = Now { us: 0, wall: &|_| String::new() };
        providers(&Question { method, authorization }, token.as_ref(), &catalogue, &now)
    }

    #[test]
    fn only_who_knows_the_token_reads_and_nobody_reads_a_credential() {
        for (method, authorization, token, status) in [
            ("GET", Some("Bearer right"), Some("right"), 200),
            ("GET", Some("bearer right"), Some("right"), 200),
            ("GET", Some("Bearer wrong"), Some("right"), 401),
            ("GET", Some("Bearer righ"), Some("right"), 401),
            ("GET", Some("Bearer "), Some("right"), 401),
            ("GET", Some("right"), Some("right"), 401),
            ("GET", None, Some("right"), 401),
            ("POST", Some("Bearer right"), Some("right"), 405),
            ("GET", Some("Bearer right"), None, 404),
            ("GET", Some("Bearer "), None, 404),
        ] {
            let reply = asked(method, authorization, token);
            assert_eq!(reply.status, status, "{method} {authorization:?} {token:?}");
            assert!(!reply.body.contains("secret") && !reply.body.contains("right"), "{}", reply.body);
        }
    }
}
