//! The page at `/`: the viewer's front end, one file with style and script inside, built from `static/` and committed.
//!
//! It holds no data, so everybody may have it; it asks the API, with the token where one is set.

use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::sync::LazyLock;

pub const PAGE: &str = include_str!("../../../static/dist/viewer.html");
/// Nothing from elsewhere, no request but to us.
const POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

pub async fn index(headers: HeaderMap) -> Response {
    static TAG: LazyLock<String> = LazyLock::new(|| {
        let digest = Sha256::digest(PAGE.as_bytes());
        let hex = digest.iter().take(12).fold(String::new(), |mut hex, b| {
            let _ = write!(hex, "{b:02x}");
            hex
        });
        format!("\"{hex}\"")
    });
    let known = headers.get(header::IF_NONE_MATCH).and_then(|h| h.to_str().ok());
    let cached = [(header::ETAG, TAG.as_str()), (header::CACHE_CONTROL, "no-cache")];
    if known.is_some_and(|tags| tags.split(',').any(|tag| tag.trim().trim_start_matches("W/") == *TAG)) {
        return (StatusCode::NOT_MODIFIED, cached).into_response();
    }
    let content =
        [(header::CONTENT_TYPE, "text/html; charset=utf-8"), (header::CONTENT_SECURITY_POLICY, POLICY)];
    (cached, content, PAGE).into_response()
}

/// Percent-encodes all but the unreserved characters of RFC 3986.
pub fn path_segment(raw: &str) -> String {
    let mut out = String::with_capacity(raw.len());
    for b in raw.bytes() {
        if b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'~') {
            out.push(char::from(b));
        } else {
            let _ = write!(out, "%{b:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_holds_nothing_that_a_path_means() {
        assert_eq!(path_segment("n\"><script>/1"), "n%22%3E%3Cscript%3E%2F1");
        assert_eq!(path_segment("a-b_c.d~9"), "a-b_c.d~9");
    }
}
