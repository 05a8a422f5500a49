//! The table `[ship]`: where copies of finished hours and of incidents go. Plain values; `config` checks them, `ship` obeys.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ship {
    /// Empty = nothing is copied.
    pub url: String,
    pub what: String,
    pub endpoint: String,
    pub region: String,
    pub ca_file: PathBuf,
    pub sse: String,
    pub sse_kms_key: String,
    pub max_backlog_bytes: u64,
    pub timeout_s: u64,
    pub retry_max_s: u64,
}

impl Ship {
    /// What `what` may be.
    pub const WHAT: [&str; 2] = ["all", "incidents"];
    /// What `sse` may be.
    pub const SSE: [&str; 3] = ["", "AES256", "aws:kms"];
    /// How `url` may begin.
    pub const SCHEMES: [&str; 4] = ["s3://", "gs://", "az://", "file:///"];

    pub fn is_on(&self) -> bool {
        !self.url.is_empty()
    }
}

impl Default for Ship {
    fn default() -> Self {
        Self {
            url: String::new(),
            what: "all".to_owned(),
            endpoint: String::new(),
            region: String::new(),
            ca_file: PathBuf::new(),
            sse: String::new(),
            sse_kms_key: String::new(),
            // half of what retention keeps: a dead bucket alone does not make a folder grow beyond its bound
            max_backlog_bytes: 5 << 30,
            timeout_s: 60,
            retry_max_s: 300,
        }
    }
}
