//! An answer that is an error, as RFC 9457 has it: `application/problem+json`.
//!
//! Each names what was wrong, what was asked and what to do instead. Values only; `viewer` sends them, `cli` prints them.

use serde_json::{Map, Value, json};
use std::fmt;

pub const MEDIA_TYPE: &str = "application/problem+json";

#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    pub status: u16,
    /// Last part of the `type` URI; stable, for programs.
    pub slug: &'static str,
    pub title: &'static str,
    pub detail: String,
    /// Members beyond those of the RFC, such as `limit`, `asked`, `accepted`, `narrow`.
    pub more: Map<String, Value>,
}

impl Problem {
    /// What the `type` of every problem of ours begins with.
    pub const TYPE: &str = "urn:fgm:problem:";
    pub const NO_SUCH_PATH: &str = "no-such-path";

    fn new(status: u16, slug: &'static str, title: &'static str, detail: impl Into<String>) -> Self {
        Self { status, slug, title, detail: detail.into(), more: Map::new() }
    }

    /// The query itself is wrong; `accepted` are the values that would do.
    pub fn bad_query(detail: impl Into<String>, accepted: &[&str]) -> Self {
        let mut p = Self::new(400, "bad-query", "The query is not understood", detail);
        if !accepted.is_empty() {
            p.more.insert("accepted".to_owned(), json!(accepted));
        }
        p
    }

    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(404, "not-found", "Nothing found", detail)
    }

    /// The address itself is wrong, unlike one of a thing that could be there.
    pub fn no_such_path(path: &str) -> Self {
        Self::new(404, Self::NO_SUCH_PATH, "Nothing found", format!("there is nothing at {path}"))
    }

    /// More is asked for than one answer may hold; nothing was sent.
    pub fn too_large(limit: &'static str, allowed: u64, asked: u64, narrow: &'static str) -> Self {
        let detail = format!(
            "{limit} allows {allowed} in one answer, this one would have {asked}; to narrow it: {narrow}"
        );
        let mut p = Self::new(413, "too-large", "The selection is larger than the limit", detail);
        p.more.insert("limit".to_owned(), json!({"name": limit, "value": allowed}));
        p.more.insert("asked".to_owned(), json!(asked));
        p.more.insert("narrow".to_owned(), json!(narrow));
        p
    }

    /// The address itself is longer than anybody's question needs.
    pub fn long_address(allowed: u64, asked: u64) -> Self {
        let detail = format!(
            "the address has {asked} bytes, {allowed} are read; name fewer containers, or choose them by namespace=, labels= or a glob"
        );
        let mut p = Self::new(414, "long-address", "The address is too long", detail);
        p.more.insert("limit".to_owned(), json!({"name": "bytes of an address", "value": allowed}));
        p.more.insert("asked".to_owned(), json!(asked));
        p
    }

    pub fn unavailable(detail: impl Into<String>) -> Self {
        Self::new(503, "unavailable", "Not now", detail)
    }

    pub fn no_token() -> Self {
        let detail =
            "this agent asks for a token: send the header Authorization: Bearer TOKEN (fgm: --token-file)";
        Self::new(401, "no-token", "No or another token", detail)
    }

    pub fn refused(detail: impl Into<String>) -> Self {
        Self::new(403, "refused", "Refused", detail)
    }

    pub fn internal(detail: impl fmt::Display) -> Self {
        Self::new(500, "internal", "The agent failed", detail.to_string())
    }

    pub fn to_json(&self) -> Value {
        let mut all = Map::from_iter([
            ("type".to_owned(), json!(format!("{}{}", Self::TYPE, self.slug))),
            ("title".to_owned(), json!(self.title)),
            ("status".to_owned(), json!(self.status)),
            ("detail".to_owned(), json!(self.detail)),
        ]);
        all.extend(self.more.clone());
        Value::Object(all)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.title.to_lowercase(), self.detail)?;
        if let Some(Value::Array(accepted)) = self.more.get("accepted") {
            let accepted: Vec<&str> = accepted.iter().filter_map(Value::as_str).collect();
            write!(f, " (accepted: {})", accepted.join(", "))?;
        }
        Ok(())
    }
}

impl std::error::Error for Problem {}
