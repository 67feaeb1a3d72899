//! The one style sheet, the one script and the icon. Their names change with what is in them, so browsers may keep them for good.

use std::sync::LazyLock;

use axum::extract::Path;
use axum::http::header;
use axum::response::IntoResponse;
use sha2::{Digest, Sha256};

use super::answer::{Answer, Refused};
use super::guard::Anyone;

struct Asset {
    stem: &'static str,
    extension: &'static str,
    kind: &'static str,
    text: &'static str,
}

const STYLE: Asset =
    Asset { stem: "style", extension: "css", kind: "text/css; charset=utf-8", text: include_str!("assets/style.css") };
const SCRIPT: Asset = Asset {
    stem: "script",
    extension: "js",
    kind: "text/javascript; charset=utf-8",
    text: include_str!("assets/script.js"),
};
const ICON: Asset =
    Asset { stem: "icon", extension: "svg", kind: "image/svg+xml", text: include_str!("assets/icon.svg") };

/// Where pages find them.
pub(super) struct Paths {
    pub(super) style: String,
    pub(super) script: String,
    pub(super) icon: String,
}

pub(super) static PATHS: LazyLock<Paths> =
    LazyLock::new(|| Paths { style: STYLE.path(), script: SCRIPT.path(), icon: ICON.path() });

impl Asset {
    fn path(&self) -> String {
        let digest = Sha256::digest(self.text.as_bytes());
        let short: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        format!("/assets/{}.{short}.{}", self.stem, self.extension)
    }
}

pub(super) async fn asset(_: Anyone, Path(name): Path<String>) -> Answer {
    let all = [(&STYLE, &PATHS.style), (&SCRIPT, &PATHS.script), (&ICON, &PATHS.icon)];
    let found = all.into_iter().find(|(_, path)| path.strip_prefix("/assets/") == Some(&name));
    let (asset, _) = found.ok_or_else(Refused::nothing_here)?;
    let headers = [(header::CONTENT_TYPE, asset.kind), (header::CACHE_CONTROL, "public, max-age=31536000, immutable")];
    Ok((headers, asset.text).into_response())
}
