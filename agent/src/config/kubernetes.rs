//! The table `[kubernetes]`: where names come from. Plain values.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Kubernetes {
    pub enabled: bool,
    /// Empty = the service account of the pod that the agent runs in.
    pub kubeconfig: PathBuf,
}

impl Default for Kubernetes {
    fn default() -> Self {
        Self { enabled: true, kubeconfig: PathBuf::new() }
    }
}
