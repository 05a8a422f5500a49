//! The plain page at `/`: incidents, newest first, with links to their reports. No script.

use super::answers::{Refusal, known_incidents};
use super::{App, Source};
use crate::incident::Incident;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use std::fmt::Write as _;
use std::sync::Arc;

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;\
color-scheme:light dark}li{margin:0 0 1rem}small{opacity:.7}";

pub async fn index<S: Source>(State(app): State<Arc<App<S>>>) -> Result<Response, Refusal> {
    let page = render(&known_incidents(&app).await?);
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; style-src 'unsafe-inline'"),
    ];
    Ok((headers, page).into_response())
}

fn render(incidents: &[Incident]) -> String {
    let mut list = String::new();
    for i in incidents {
        let id = path_segment(&i.id);
        let _ = write!(
            list,
            "<li>{summary}<br><small>{kind} · {severity} · {id_text}</small><br>\
             <a href=\"/api/export?incident={id}&amp;format=html\">report</a> · \
             <a href=\"/api/export?incident={id}&amp;format=parquet\">Parquet</a> · \
             <a href=\"/api/incidents/{id}\">JSON</a></li>",
            summary = text(&i.summary),
            kind = text(&i.kind),
            severity = text(&i.severity),
            id_text = text(&i.id),
        );
    }
    if list.is_empty() {
        list.push_str("<li>None so far.</li>");
    }
    format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>fgm</title><style>{STYLE}</style>\
         <h1>Incidents</h1><ul>{list}</ul><p><a href=\"/api/status\">status</a> · <a href=\"/metrics\">metrics</a></p></html>"
    )
}

fn text(raw: &str) -> String {
    let mut out = String::with_capacity(raw.len());
    for c in raw.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
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
    fn what_an_incident_says_stays_text() {
        let hostile = Incident {
            id: "n\"><script>/1".into(),
            summary: "<script>alert(1)</script> & '\"\u{0}".into(),
            ..Incident::default()
        };
        let page = render(&[hostile]);
        assert!(!page.contains("<script>"), "{page}");
        assert!(
            page.contains("&lt;script&gt;alert(1)") && page.contains("n%22%3E%3Cscript%3E%2F1"),
            "{page}"
        );
    }
}
