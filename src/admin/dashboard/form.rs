//! What browsers send: queries, and forms, of which it is proved that a page of ours sent them.
//!
//! Two proofs, each enough against today's browsers: the headers by which a browser says where a form came from, and in the forms
//! of who is signed in a value that only pages of that session have.

use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use http_body_util::{BodyExt, Limited};

use super::Dashboard;
use super::answer::Refused;
use crate::relay::refusal::Cause;
use crate::relay::route::Secret;

/// The largest form that is taken.
const FORM_BYTES_MAX: usize = 64 << 10;

/// The field that carries the proof.
pub(super) const PROOF: &str = "csrf";

/// Names and values in the order in which they were sent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Fields(Vec<(String, String)>);

impl Fields {
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        serde_urlencoded::from_bytes(text).ok().map(Self)
    }

    /// The value of that name as it was sent; empty where there is none.
    pub(super) fn raw(&self, name: &str) -> &str {
        self.all(name).next().unwrap_or_default()
    }

    /// The value of that name without the spaces around it; empty where there is none.
    pub(super) fn text(&self, name: &str) -> &str {
        self.raw(name).trim()
    }

    /// As [`Fields::text`], where something stands there.
    pub(super) fn given(&self, name: &str) -> Option<&str> {
        Some(self.text(name)).filter(|text| !text.is_empty())
    }

    /// All values of that name.
    pub(super) fn all<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(own, _)| own == name).map(|(_, value)| &**value)
    }
}

/// The query.
pub(super) struct Asked(pub(super) Fields);

impl FromRequestParts<Dashboard> for Asked {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, _: &Dashboard) -> Result<Self, Refused> {
        let fields = Fields::parse(parts.uri.query().unwrap_or_default().as_bytes());
        fields.map(Self).ok_or(Refused::Because(Cause::InvalidValue, "This address cannot be read."))
    }
}

/// What the forms of this request must carry; a guard leaves it for [`Form`].
#[derive(Clone)]
pub(super) enum Proof {
    /// Of nobody who is signed in: the headers must do.
    Headers,
    /// Of a session.
    Session(Secret),
}

/// The fields of a form that a page of ours sent.
pub(super) struct Form(pub(super) Fields);

impl FromRequest<Dashboard> for Form {
    type Rejection = Refused;

    async fn from_request(request: Request, dashboard: &Dashboard) -> Result<Self, Refused> {
        const FORGED: Refused = Refused::Because(
            Cause::BadRequest,
            "This form did not come from a page of this dashboard, or the page is old. Go back, load it anew and try again.",
        );
        let (parts, body) = request.into_parts();
        let snapshot = dashboard.snapshot();
        // Whoever has no guard before the form proves nothing.
        let proof = parts.extensions.get::<Proof>().cloned().ok_or(FORGED)?;
        if !is_same_origin(&parts.headers, snapshot.dashboard.public_url.as_deref()) {
            return Err(FORGED);
        }
        let reading = Limited::new(body, FORM_BYTES_MAX).collect();
        let slow = |_| Refused::Because(Cause::RequestTimeout, "The form took too long to arrive.");
        let broken = |_| Refused::Because(Cause::RequestTooLarge, "The form is too large, or broke off.");
        let bytes =
            tokio::time::timeout(snapshot.limits.body_total_max, reading).await.map_err(slow)?.map_err(broken)?;
        let fields = Fields::parse(&bytes.to_bytes());
        let fields = fields.ok_or(Refused::Because(Cause::InvalidValue, "The form cannot be read."))?;
        match proof {
            Proof::Session(proof) if !proof.is(fields.raw(PROOF)) => Err(FORGED),
            Proof::Session(_) | Proof::Headers => Ok(Self(fields)),
        }
    }
}

/// Whether the browser says that a page of the same origin sent this. One that says nothing is not believed.
fn is_same_origin(headers: &HeaderMap, public_url: Option<&str>) -> bool {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or("unreadable"));
    let (site, origin) = (text("sec-fetch-site"), text(header::ORIGIN.as_str()));
    let is_site = site.is_none_or(|site| site == "same-origin");
    let is_origin = origin.is_none_or(|origin| match public_url {
        Some(public) if origin == public => true,
        // Whoever reaches it by its own address, past the reverse proxy.
        _ => {
            let host = origin.split_once("://").map(|(_, host)| host);
            host.is_some() && host == text(header::HOST.as_str())
        }
    });
    (site.is_some() || origin.is_some()) && is_site && is_origin
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn a_form_is_ours_when_the_browser_says_so() {
        let here = ("host", "127.0.0.1:8081");
        for (given, public, is_ours) in [
            (vec![here, ("origin", "http://127.0.0.1:8081")], None, true),
            (vec![here, ("sec-fetch-site", "same-origin")], None, true),
            (vec![here, ("origin", "http://127.0.0.1:8081"), ("sec-fetch-site", "same-origin")], None, true),
            (vec![here], None, false),
            (vec![here, ("origin", "null")], None, false),
            (vec![here, ("origin", "http://127.0.0.1:8082")], None, false),
            (vec![here, ("origin", "https://evil.example")], None, false),
            (vec![here, ("sec-fetch-site", "cross-site")], None, false),
            (vec![here, ("sec-fetch-site", "same-site")], None, false),
            (vec![here, ("origin", "http://127.0.0.1:8081"), ("sec-fetch-site", "cross-site")], None, false),
            (vec![here, ("origin", "https://evil.example"), ("sec-fetch-site", "same-origin")], None, false),
            (vec![here, ("origin", "https://dash.example.com")], Some("https://dash.example.com"), true),
            (vec![here, ("origin", "https://dash.example.com.evil")], Some("https://dash.example.com"), false),
        ] {
            assert_eq!(is_same_origin(&headers(&given), public), is_ours, "{given:?} {public:?}");
        }
    }

    #[test]
    fn fields_are_read_by_name() {
        let fields = Fields::parse(b"name=+Ada+&model=a%2Fb&model=c&empty=+").unwrap();
        assert_eq!((fields.raw("name"), fields.text("name"), fields.raw("none")), (" Ada ", "Ada", ""));
        assert_eq!(fields.all("model").collect::<Vec<_>>(), ["a/b", "c"]);
        assert_eq!((fields.given("empty"), fields.given("name")), (None, Some("Ada")));
    }
}
