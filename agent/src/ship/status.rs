//! How the copying stands, for `/api/status`, `/metrics` and `/readyz`. Written by the one thread, read by others.

use super::lock;
use crate::clock;
use crate::config::Ship as Settings;
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};

#[derive(Clone, Debug, Default)]
struct State {
    /// Empty = nothing is copied.
    url: String,
    what: String,
    files: u64,
    bytes: u64,
    bundles: u64,
    /// Bundles that cannot be made: the evidence is gone or cannot be read.
    unmade: u64,
    /// Found in the bucket when they were to be put.
    found: u64,
    backlog_files: u64,
    backlog_bytes: u64,
    failures: u64,
    last_success_us: Option<i64>,
    last_error: Option<String>,
    last_error_us: Option<i64>,
    pause_ms: Option<u64>,
    is_failing: bool,
}

#[derive(Clone, Default)]
pub struct Status(Arc<Mutex<State>>);

impl Status {
    pub fn off() -> Self {
        Self::default()
    }

    pub fn on(settings: &Settings) -> Self {
        let (url, what) = (settings.url.clone(), settings.what.clone());
        Self(Arc::new(Mutex::new(State { url, what, ..State::default() })))
    }

    pub(super) fn put(&self, bytes: u64, was_there: bool) {
        self.arrived(|state| &mut state.files, "fgm_ship_files_total", bytes, was_there);
    }

    pub(super) fn put_bundle(&self, bytes: u64, was_there: bool) {
        self.arrived(|state| &mut state.bundles, "fgm_ship_bundles_total", bytes, was_there);
    }

    fn arrived(&self, of: fn(&mut State) -> &mut u64, total: &'static str, bytes: u64, was_there: bool) {
        let mut state = lock(&self.0);
        *of(&mut state) += 1;
        state.bytes += bytes;
        state.found += u64::from(was_there);
        drop(state);
        metrics::counter!(total).increment(1);
        metrics::counter!("fgm_ship_bytes_total").increment(bytes);
    }

    pub(super) fn unmade(&self) {
        lock(&self.0).unmade += 1;
    }

    pub(super) fn backlog(&self, files: u64, bytes: u64) {
        let mut state = lock(&self.0);
        (state.backlog_files, state.backlog_bytes) = (files, bytes);
        drop(state);
        #[expect(clippy::cast_precision_loss, reason = "a gauge of Prometheus is a double")]
        metrics::gauge!("fgm_ship_backlog_bytes").set(bytes as f64);
        metrics::gauge!("fgm_ship_backlog_files").set(f64::from(u32::try_from(files).unwrap_or(u32::MAX)));
    }

    /// The bucket answered as it should.
    pub(super) fn went_well(&self, now_us: i64) {
        let mut state = lock(&self.0);
        state.last_success_us = Some(now_us);
    }

    /// Nothing is left that fails.
    pub(super) fn rests(&self) {
        let mut state = lock(&self.0);
        state.pause_ms = None;
        if std::mem::take(&mut state.is_failing) {
            tracing::info!(url = state.url, "shipping goes on");
        }
    }

    pub(super) fn failed(&self, error: &str, pause_ms: Option<u64>) {
        let mut state = lock(&self.0);
        state.failures += 1;
        // a bucket that stays away is one line
        if !std::mem::replace(&mut state.is_failing, true) {
            tracing::warn!(
                url = state.url,
                error,
                "cannot ship; what waits stays on the disk, and it is tried again"
            );
        }
        state.last_error = Some(error.to_owned());
        state.last_error_us = Some(clock::wall_us());
        state.pause_ms = pause_ms;
        drop(state);
        metrics::counter!("fgm_ship_failures_total").increment(1);
    }

    /// As `/api/status` has it.
    pub fn json(&self) -> Value {
        let s = lock(&self.0).clone();
        if s.url.is_empty() {
            return json!({"on": false});
        }
        json!({
            "on": true,
            "url": s.url,
            "what": s.what,
            "files": s.files,
            "bytes": s.bytes,
            "bundles": s.bundles,
            "bundles_unmade": s.unmade,
            "found_there": s.found,
            "backlog": {"files": s.backlog_files, "bytes": s.backlog_bytes},
            "failures": s.failures,
            "failing": s.is_failing,
            "last_success_us": s.last_success_us,
            "last_error": s.last_error,
            "last_error_us": s.last_error_us,
            "pause_ms": s.pause_ms,
        })
    }
}
