//! Removes the files that `retention` chooses, and says of each what went and why.
//!
//! The account of what goes (`removed.json`) is on the disk before anything goes. Ordinary files go before evidence; when it is not
//! known what is evidence, since the incidents cannot be read, nothing goes. Called by `upkeep`, in its thread.

use super::Store;
use crate::ledger;
use crate::names::Table;
use crate::retention::{self, File, Limits, Window};
use crate::segment::{Io, Segment};

/// A file that retention took.
#[derive(Clone, Debug)]
pub struct Gone {
    pub segment: Segment,
    pub reason: retention::Reason,
}

impl Store {
    /// Rows that retention took before the bucket had them, of each table, over all runs.
    pub fn unshipped(&self) -> Vec<(Table, u64)> {
        let state = self.state();
        let all = state.removed.unshipped.iter();
        all.filter_map(|(name, rows)| Some((ledger::named(name)?, *rows))).collect()
    }

    /// Removes what is beyond the limits. One caller at a time.
    ///
    /// # Errors
    /// Why nothing was removed that had to be.
    pub fn retain(
        &self,
        io: &dyn Io,
        now_us: i64,
        limits: &Limits,
        incidents: impl FnOnce() -> Result<Vec<Window>, String>,
    ) -> Result<Vec<Gone>, String> {
        // a merged file stays as long as a segment that it has the rows of
        let is_whole = |s: &&Segment| s.merged.as_ref().is_none_or(|m| m.inputs.is_empty());
        let segments: Vec<Segment> = self.state().segments.iter().filter(is_whole).cloned().collect();
        let (max_held, keeps) = match self.hold.get() {
            Some(hold) => (hold.max_bytes, Some(&hold.keeps)),
            None => (0, None),
        };
        let file = |s: &Segment| File {
            is_held: keeps.is_some_and(|keeps| keeps(s)),
            table: s.table,
            boot: s.name.boot.clone(),
            from_us: s.from_us,
            to_us: s.to_us,
            bytes: s.bytes,
        };
        let files: Vec<File> = segments.iter().map(file).collect();
        // Who the incidents are is asked only when something has to go.
        if retention::choose(&files, &[], now_us, limits, max_held).is_empty() {
            return Ok(Vec::new());
        }
        let windows = incidents().map_err(|e| format!("which files are evidence is not known: {e}"))?;
        let mut removed = self.state().removed.clone();
        let mut gone = Vec::new();
        for (i, reason) in retention::choose(&files, &windows, now_us, limits, max_held) {
            let segment = segments[i].clone();
            match removed.note(&self.dir, &segment, reason.as_str()) {
                Ok(()) => gone.push(Gone { segment, reason }),
                Err(error) => {
                    tracing::warn!(path = %segment.path.display(), error, "a file of the ledger cannot be read and stays");
                }
            }
        }
        if gone.is_empty() {
            return Ok(gone);
        }
        removed.write(io, &self.dir).map_err(|e| e.to_string())?;
        {
            let mut state = self.state();
            state.removed = removed;
            state.segments.retain(|s| !gone.iter().any(|g| g.segment.path == s.path));
            let paths = gone.iter().map(|g| g.segment.path.clone()).collect();
            state.doom(paths, Vec::new());
        }
        for Gone { segment: s, reason } in &gone {
            let reason = reason.as_str();
            tracing::info!(path = %s.path.display(), reason, rows = s.rows_left(), bytes = s.bytes, from_us = s.from_us, to_us = s.to_us, "removed by retention");
        }
        self.sweep(io);
        self.write_index(io);
        Ok(gone)
    }
}
