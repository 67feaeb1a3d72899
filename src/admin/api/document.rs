//! The OpenAPI document, made of the routes themselves.

use std::sync::LazyLock;

use axum::http::header;
use axum::response::{IntoResponse, Response};
use utoipa::openapi::OpenApi as Document;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};
use utoipa_axum::router::OpenApiRouter;

use super::answer::Refusals;
use super::{admin_routes, health_routes};

/// What is not in the routes.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "tollgate admin API",
        description = "What the command line does, for programs. Money is integers of nano-USD (1e-9 USD) where it is read and \
                       decimal USD in strings where it is given; times are RFC 3339, UTC. Lists are pages: `after` takes the \
                       `next` of the page before.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    modifiers(&Token),
    security(("token" = [])),
)]
struct Head;

struct Token;

impl Modify for Token {
    fn modify(&self, document: &mut Document) {
        let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some("`[admin] token`")).build();
        document.components.get_or_insert_default().add_security_scheme("token", SecurityScheme::Http(scheme));
    }
}

static TEXT: LazyLock<String> = LazyLock::new(|| document().to_json().unwrap_or_default());

/// The document of all routes.
pub(super) fn document() -> Document {
    OpenApiRouter::with_openapi(Head::openapi()).merge(health_routes()).nest("/admin/v1", admin_routes()).into_openapi()
}

/// This document
///
/// It asks for the token as all of the API does, so that whoever has none learns nothing here, not even the version.
#[utoipa::path(
    get,
    path = "/openapi.json",
    operation_id = "openapi",
    tag = "status",
    responses((status = 200, description = "OpenAPI 3.1", body = Object), Refusals)
)]
pub(super) async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], TEXT.as_str()).into_response()
}
