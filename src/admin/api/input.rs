//! What requests bring: paths, queries and bodies, read strictly. What is not known is refused by its name.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use http_body_util::BodyExt;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::error::Category;
use utoipa::IntoParams;

use super::Api;
use super::answer::Refused;
use crate::admin::value;
use crate::relay::refusal::{Cause, Refusal};

/// The largest body that is taken.
const BODY_BYTES_MAX: usize = 1 << 20;
/// How much of a larger one is read on and thrown away, so that its sender comes to read the refusal.
const DISCARDED_BYTES_MAX: usize = 16 << 20;
/// How long an Idempotency-Key may be, as the client API has it.
const IDEMPOTENCY_KEY_MAX: usize = 255;
/// How much of a mistake is told.
const MESSAGE_CHARACTERS_MAX: usize = 300;

const LIMIT_DEFAULT: u32 = 100;
const LIMIT_MAX: u32 = 1_000;

/// The id in the path.
pub(super) struct Id(pub(super) String);

impl FromRequestParts<Api> for Id {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Refused> {
        match Path::<String>::from_request_parts(parts, api).await {
            Ok(Path(id)) => Ok(Self(id)),
            Err(_) => Err(Refused::value("id", "must be UTF-8")),
        }
    }
}

/// The query's parameters. Each is a text at first, so that what is wrong with it can be told with its name.
pub(super) struct Query<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequestParts<Api> for Query<T> {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, _: &Api) -> Result<Self, Refused> {
        serde_urlencoded::from_str(parts.uri.query().unwrap_or_default())
            .map(Self)
            .map_err(|error| mistake(Cause::InvalidValue, &error.to_string(), None))
    }
}

/// Which part of a list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Listing {
    /// The `next` of the page before
    pub(super) after: Option<String>,
    /// How many rows at most
    #[param(value_type = Option<u32>, minimum = 1, maximum = 1000, default = 100)]
    limit: Option<String>,
}

impl Listing {
    pub(super) fn limit(&self) -> Result<u32, Refused> {
        limit(self.limit.as_deref())
    }
}

/// A body of JSON.
pub(super) struct Json<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<Api> for Json<T> {
    type Rejection = Refused;

    async fn from_request(request: Request, api: &Api) -> Result<Self, Refused> {
        let snapshot = api.snapshot();
        let (total, idle) = (snapshot.limits.body_total_max, snapshot.limits.body_idle_max);
        let reading = tokio::time::timeout(total, read(request.into_body(), idle));
        let bytes = reading.await.unwrap_or_else(|_| Err(too_slow()))?;
        parse(&bytes).map(Self)
    }
}

async fn read(mut body: Body, idle: Duration) -> Result<Vec<u8>, Refused> {
    let (mut bytes, mut length) = (Vec::new(), 0);
    while let Some(frame) = tokio::time::timeout(idle, body.frame()).await.map_err(|_| too_slow())? {
        let broken = |_| Refused(Refusal::new(Cause::BadRequest, "The body broke off."));
        let Ok(data) = frame.map_err(broken)?.into_data() else { continue };
        length += data.len();
        if length <= BODY_BYTES_MAX {
            bytes.extend_from_slice(&data);
        } else if length > DISCARDED_BYTES_MAX {
            break;
        }
    }
    if length > BODY_BYTES_MAX {
        return Err(Refused(Refusal::new(Cause::RequestTooLarge, "The body is larger than 1 MiB.")));
    }
    Ok(bytes)
}

fn too_slow() -> Refused {
    Refused(Refusal::new(Cause::RequestTimeout, "The body took too long to arrive."))
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Refused> {
    let is_object = bytes.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{');
    if !is_object {
        return Err(Refused(Refusal::new(Cause::InvalidJson, "The body must be a JSON object.")));
    }
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let read = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner();
        let cause = match inner.classify() {
            Category::Data => Cause::InvalidValue,
            Category::Syntax | Category::Eof | Category::Io => Cause::InvalidJson,
        };
        mistake(cause, &inner.to_string(), Some(path).filter(|path| path != "."))
    })?;
    match reader.end() {
        Ok(()) => Ok(read),
        Err(error) => Err(mistake(Cause::InvalidJson, &error.to_string(), None)),
    }
}

/// serde names a field that is missing, unknown or doubled only in its message, in backticks.
fn mistake(cause: Cause, message: &str, path: Option<String>) -> Refused {
    let named = |kind: &str| message.strip_prefix(kind).and_then(|rest| rest.split('`').next()).map(str::to_owned);
    let missing = named("missing field `");
    let cause = if missing.is_some() { Cause::MissingField } else { cause };
    let param = missing.or_else(|| named("unknown field `")).or_else(|| named("duplicate field `")).or(path);
    let refusal = Refusal::new(cause, cut(message));
    Refused(match param {
        Some(param) => refusal.param(cut(&param)),
        None => refusal,
    })
}

fn cut(text: &str) -> String {
    text.chars().take(MESSAGE_CHARACTERS_MAX).collect()
}

/// How many rows a page may have.
pub(super) fn limit(text: Option<&str>) -> Result<u32, Refused> {
    let Some(text) = text else { return Ok(LIMIT_DEFAULT) };
    let limit = text.parse().ok().filter(|limit| (1..=LIMIT_MAX).contains(limit));
    limit.ok_or_else(|| Refused::value("limit", "must be a whole number from 1 to 1000"))
}

/// A time that a list begins or ends at. Milliseconds since the Unix epoch.
pub(super) fn time(param: &'static str, text: Option<&str>, now_ms: i64) -> Result<Option<i64>, Refused> {
    text.map(|text| value::since(text, now_ms)).transpose().map_err(|message| Refused::value(param, message))
}

/// What a page is to begin after was not given out by this API.
pub(super) fn unknown_cursor() -> Refused {
    Refused::value("after", "must be the `next` of a page of this list")
}

/// The `Idempotency-Key` header.
pub(super) fn idempotency_key(headers: &HeaderMap) -> Result<Option<&str>, Refused> {
    let mut keys = headers.get_all("idempotency-key").iter();
    let (Some(key), another) = (keys.next(), keys.next()) else { return Ok(None) };
    let key = key.to_str().ok().filter(|key| (1..=IDEMPOTENCY_KEY_MAX).contains(&key.len()));
    match key.filter(|key| another.is_none() && key.bytes().all(|byte| byte.is_ascii_graphic())) {
        Some(key) => Ok(Some(key)),
        None => Err(Refused::value("Idempotency-Key", "must be one, of 1 to 255 visible ASCII characters")),
    }
}

/// Marks the answer to a request that came again with its Idempotency-Key.
pub(super) const IDEMPOTENT_REPLAYED: header::HeaderName = header::HeaderName::from_static("idempotent-replayed");

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Wanted {
        #[expect(dead_code, reason = "only read")]
        name: String,
        #[expect(dead_code, reason = "only read")]
        counts: Option<Vec<u32>>,
    }

    fn refused(body: &str) -> (Cause, Option<Box<str>>) {
        let Refused(refusal) = parse::<Wanted>(body.as_bytes()).unwrap_err();
        (refusal.cause, refusal.param)
    }

    #[test]
    fn what_is_wrong_with_a_body_is_told_with_its_place() {
        for (body, cause, param) in [
            ("", Cause::InvalidJson, None),
            ("[\"Ada\"]", Cause::InvalidJson, None),
            ("{\"name\":", Cause::InvalidJson, Some("name")),
            ("{\"name\":\"x\"} {}", Cause::InvalidJson, None),
            ("{}", Cause::MissingField, Some("name")),
            ("{\"name\":1}", Cause::InvalidValue, Some("name")),
            ("{\"name\":\"x\",\"nmae\":1}", Cause::InvalidValue, Some("nmae")),
            ("{\"name\":\"x\",\"name\":\"y\"}", Cause::InvalidValue, Some("name")),
            ("{\"name\":\"x\",\"counts\":[1,-1]}", Cause::InvalidValue, Some("counts[1]")),
        ] {
            assert_eq!(refused(body), (cause, param.map(Into::into)), "{body}");
        }
        assert!(parse::<Wanted>(b" {\"name\":\"x\",\"counts\":null} ").is_ok());
    }

    #[test]
    fn a_long_mistake_is_cut() {
        let body = format!("{{\"{}\":1}}", "x".repeat(10_000));
        let Refused(refusal) = parse::<Wanted>(body.as_bytes()).unwrap_err();
        assert!(refusal.to_json().len() < 1_000);
    }

    #[test]
    fn pages_have_bounds() {
        assert_eq!([limit(None).unwrap(), limit(Some("1")).unwrap(), limit(Some("1000")).unwrap()], [100, 1, 1000]);
        for text in ["0", "1001", "-1", "", "ten", "1e2", "99999999999"] {
            assert!(limit(Some(text)).is_err(), "{text}");
        }
    }
}
