//! What commands print. The one place that writes to stdout and stderr directly; a closed pipe is not an error.

use std::io::Write;

/// A line on stdout.
pub(super) fn line(text: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

/// An error on stderr, marked as this program's.
pub(super) fn error(message: &str) {
    let _ = writeln!(std::io::stderr().lock(), "tollgate: {message}");
}

/// A line on stderr that speaks for itself, such as `FILE:LINE: …`.
pub(super) fn note(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// One JSON document on stdout.
pub(super) fn json(document: &serde_json::Value) {
    line(&document.to_string());
}
