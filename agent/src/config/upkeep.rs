//! The tables `[compaction]` and `[retention]`: what becomes of files that are closed. Plain values; `config` checks them.

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Compaction {
    pub enabled: bool,
    pub after_s: u64,
}

impl Default for Compaction {
    fn default() -> Self {
        Self { enabled: true, after_s: 900 }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retention {
    pub max_age_h: u64,
    pub incident_max_age_h: u64,
    pub max_bytes: u64,
    pub min_free_bytes: u64,
    pub reserve_bytes: u64,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            max_age_h: 7 * 24,
            incident_max_age_h: 30 * 24,
            max_bytes: 10 << 30,
            min_free_bytes: 512 << 20,
            reserve_bytes: 32 << 20,
        }
    }
}
