//! Which segments become a file of `v1/`, when, and what goes once they have: docs/decisions/005-compaction.md.
//!
//! A segment's rows of an hour count in `recent/` until a merged file that names the segment has its name, and there from that instant on:
//! for a crash, for another reader and, under one lock, for queries. Inputs are removed after that file and its folder are
//! fsynced and no view has them any more. Runs where it is called, holds no lock while it reads or writes, and never
//! touches what the writer is at. Called by `upkeep` and by `fgm compact`.

use super::scan::{merged_folder, sort};
use super::{MERGED, State, Store, damage, recovery, set_aside};
use crate::compaction::{self, Merge, MergeError};
use crate::ledger::Accounts;
use crate::names::Table;
use crate::schema;
use crate::segment::{self, Footer, HOUR_US, Io, Segment, SegmentError, Taken};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Keys that differ from file to file of one run.
const OF_ONE_FILE: [&str; 12] = [
    segment::FROM,
    segment::TO,
    segment::JOURNAL,
    "fgm.table",
    segment::SCHEMA,
    "fgm.seq",
    "fgm.rotation",
    "fgm.recovered",
    "fgm.ledger",
    "fgm.clock_offset_ns",
    "fgm.body_crc32",
    segment::TAIL_CRC,
];

/// When an hour is compacted, and into what.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// How long after its end.
    pub after_us: i64,
    pub file_bytes: u64,
}

impl Default for Rules {
    fn default() -> Self {
        Self { after_us: 900_000_000, file_bytes: compaction::FILE_BYTES }
    }
}

/// One file of `v1/`, made or to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compacted {
    pub table: Table,
    pub hour_us: i64,
    /// Empty when it is not made.
    pub path: PathBuf,
    pub inputs: Vec<PathBuf>,
    pub input_bytes: u64,
    pub rows: u64,
    pub bytes: u64,
}

/// What a pass did.
#[derive(Clone, Debug, Default)]
pub struct Compaction {
    pub made: Vec<Compacted>,
    pub removed: Vec<PathBuf>,
    /// Inputs that cannot be merged, with the reason.
    pub set_aside: Vec<(PathBuf, String)>,
    /// What stays as it is for now, with the reason.
    pub left: Vec<(PathBuf, String)>,
}

/// Since the start.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    files: u64,
    inputs: u64,
    input_bytes: u64,
    bytes: u64,
    set_aside: u64,
    last_error: Option<String>,
}

impl Totals {
    pub fn to_json(&self, segments: &[Segment]) -> Value {
        let merged = segments.iter().filter(|s| s.merged.is_some());
        json!({
            "files": merged.clone().count(),
            "bytes": merged.map(|s| s.bytes).sum::<u64>(),
            "made": self.files,
            "made_bytes": self.bytes,
            "inputs": self.inputs,
            "input_bytes": self.input_bytes,
            "set_aside": self.set_aside,
            "error": self.last_error,
        })
    }
}

/// Files that are in no new view.
pub struct Doomed {
    /// Of the views that may have them.
    pin: Arc<()>,
    files: Vec<PathBuf>,
    /// Where the file is that has their rows: nothing goes before this is on the disk.
    merged: Vec<PathBuf>,
}

/// Segments that can be merged: of one table, hour and run.
struct Group {
    table: Table,
    hour_us: i64,
    boot: String,
    metadata: Vec<(String, String)>,
    inputs: Vec<Segment>,
}

impl Group {
    fn value(&self, key: &str) -> &str {
        self.metadata.iter().find(|(k, _)| k == key).map_or("", |(_, v)| v)
    }

    /// `table=T/cluster=C/date=D/hour=H/node=N`.
    fn folder(&self, dir: &Path) -> Result<PathBuf, String> {
        let at = jiff::Timestamp::from_microsecond(self.hour_us).map_err(|e| e.to_string())?;
        Ok(merged_folder(dir, self.table)
            .join(format!("cluster={}", part(self.value("fgm.cluster"), "default")))
            .join(at.strftime("date=%Y-%m-%d").to_string())
            .join(at.strftime("hour=%H").to_string())
            .join(format!("node={}", part(self.value("fgm.node"), "unknown"))))
    }
}

/// A value as a part of a path.
pub fn part(value: &str, empty: &str) -> String {
    let value = if value.is_empty() { empty } else { value };
    let mut out = String::new();
    for b in value.bytes() {
        if b.is_ascii_alphanumeric() || b"-_.".contains(&b) {
            out.push(char::from(b));
        } else {
            let _ = write!(out, "%{b:02X}");
        }
    }
    out
}

impl Store {
    /// What a pass would merge now: each file of `v1/` with its inputs.
    pub fn due(&self, now_us: i64, rules: &Rules) -> Compaction {
        let mut told = Compaction::default();
        for group in self.groups(now_us, rules, &mut told) {
            told.made.push(Compacted {
                table: group.table,
                hour_us: group.hour_us,
                path: PathBuf::new(),
                inputs: group.inputs.iter().map(|s| s.path.clone()).collect(),
                input_bytes: group.inputs.iter().map(|s| s.bytes).sum(),
                rows: 0,
                bytes: 0,
            });
        }
        told
    }

    /// Merges the hours that are due and removes inputs that are not needed any more. One caller at a time.
    pub fn compact(&self, io: &dyn Io, now_us: i64, rules: &Rules, stop: &dyn Fn() -> bool) -> Compaction {
        let mut told = Compaction { removed: self.sweep(io), ..Compaction::default() };
        let mut todo = self.groups(now_us, rules, &mut told);
        todo.reverse();
        while let Some(mut group) = todo.pop() {
            self.check(&mut group, &mut told);
            if group.inputs.is_empty() {
                continue;
            }
            match self.merge(io, &group, rules, stop) {
                Ok(made) => told.made.push(made),
                Err(MergeError::Stopped) => break,
                Err(MergeError::Input { path, reason }) => {
                    self.refuse(group.table, &path, &reason);
                    group.inputs.retain(|s| s.path != path);
                    told.set_aside.push((path, reason));
                    todo.push(group);
                }
                Err(MergeError::TooLarge { .. }) => {
                    let second = group.inputs.split_off(group.inputs.len() / 2);
                    let metadata = group.metadata.clone();
                    let boot = group.boot.clone();
                    todo.push(Group { inputs: second, metadata, boot, ..group });
                    todo.push(group);
                }
                Err(MergeError::Output(error)) => {
                    let reason = error.to_string();
                    told.left.extend(group.inputs.iter().map(|s| (s.path.clone(), reason.clone())));
                    // what a disk refuses it refuses to the other hours as well
                    if !error.is_final() {
                        break;
                    }
                }
            }
        }
        if let Some((path, reason)) = told.left.first() {
            self.note_failure(&format!("{}: {reason}", path.display()));
        }
        if !told.made.is_empty() {
            told.removed.extend(self.sweep(io));
        }
        if !told.made.is_empty() || !told.removed.is_empty() {
            self.write_index(io);
        }
        told
    }

    fn note_failure(&self, reason: &str) {
        let mut state = self.state();
        if state.compaction.last_error.is_none() {
            tracing::error!(reason, "segments cannot be compacted now; they stay as they are");
        }
        state.compaction.last_error = Some(reason.to_owned());
    }

    /// Holds the inputs against their checksums. A damaged one goes to `quarantine/`, one that cannot be read is left.
    fn check(&self, group: &mut Group, told: &mut Compaction) {
        group.inputs.retain(|s| match segment::verify(s.table, &s.path) {
            Ok(_) => true,
            Err(SegmentError::Damaged { path, reason }) => {
                self.refuse(group.table, &path, &reason);
                told.set_aside.push((path, reason));
                false
            }
            Err(error) => {
                told.left.push((s.path.clone(), error.to_string()));
                false
            }
        });
    }

    /// What is due, oldest first.
    fn groups(&self, now_us: i64, rules: &Rules, told: &mut Compaction) -> Vec<Group> {
        let recent: Vec<Segment> =
            self.state().segments.iter().filter(|s| s.merged.is_none()).cloned().collect();
        let is_due = |hour_us: &i64| hour_us.saturating_add(HOUR_US).saturating_add(rules.after_us) <= now_us;
        let mut found: BTreeMap<_, Vec<Segment>> = BTreeMap::new();
        for s in recent {
            let (first, last) = (segment::hour_of(s.from_us), segment::hour_of(s.to_us));
            if !is_due(&first) {
                continue;
            }
            let hours = if first == last {
                vec![first]
            } else {
                match compaction::hours(&s.path) {
                    Ok(hours) => hours.into_keys().collect(),
                    Err(reason) => {
                        told.left.push((s.path, reason));
                        continue;
                    }
                }
            };
            let taken = |hour: &i64| s.taken.iter().any(|t| t.hour_us == *hour);
            let hours: Vec<i64> = hours.into_iter().filter(|hour| is_due(hour) && !taken(hour)).collect();
            if hours.is_empty() {
                continue;
            }
            match run_of(&s) {
                Ok(run) => {
                    for hour in hours {
                        found
                            .entry((hour, s.table, s.name.boot.clone(), run.clone()))
                            .or_default()
                            .push(s.clone());
                    }
                }
                Err(reason) => told.left.push((s.path, reason)),
            }
        }
        let mut groups = Vec::new();
        for ((hour_us, table, boot, metadata), mut all) in found {
            all.sort_by_key(|s| (s.from_us, s.name.seq));
            let group =
                |inputs| Group { table, hour_us, boot: boot.clone(), metadata: metadata.clone(), inputs };
            let (mut inputs, mut bytes): (Vec<Segment>, u64) = (Vec::new(), 0);
            for s in all {
                if !inputs.is_empty()
                    && (bytes + s.bytes > rules.file_bytes || inputs.len() == compaction::INPUTS)
                {
                    groups.push(group(std::mem::take(&mut inputs)));
                    bytes = 0;
                }
                bytes += s.bytes;
                inputs.push(s);
            }
            groups.push(group(inputs));
        }
        groups
    }

    fn merge(
        &self,
        io: &dyn Io,
        group: &Group,
        rules: &Rules,
        stop: &dyn Fn() -> bool,
    ) -> Result<Compacted, MergeError> {
        let wrong = |reason| MergeError::Input { path: group.inputs[0].path.clone(), reason };
        let dir = group.folder(&self.dir).map_err(wrong)?;
        let make = |source| SegmentError::Io { step: "cannot create", path: dir.clone(), source };
        fs::create_dir_all(&dir).map_err(make)?;
        let seq = self.state().take_seq();
        let path = dir.join(format!("{}-{seq:08}.parquet", group.boot));
        let inputs: Vec<PathBuf> = group.inputs.iter().map(|s| s.path.clone()).collect();
        let metadata = self.metadata(group, seq)?;
        let what = Merge {
            table: group.table,
            hour_us: group.hour_us,
            inputs: &inputs,
            metadata: &metadata,
            limit_bytes: rules.file_bytes,
        };
        let taken = compaction::merge(io, &what, &path, stop)?;
        let made = segment::open(group.table, &path)?;
        let told = Compacted {
            table: group.table,
            hour_us: group.hour_us,
            path,
            input_bytes: group.inputs.iter().map(|s| s.bytes).sum(),
            inputs,
            rows: made.rows,
            bytes: made.bytes,
        };
        tracing::info!(
            path = %told.path.display(),
            inputs = told.inputs.len(),
            input_bytes = told.input_bytes,
            rows = told.rows,
            bytes = told.bytes,
            "compacted segments of an hour"
        );
        self.replace(made, &told, &taken);
        Ok(told)
    }

    /// What the merged file says of the run, and of its inputs.
    fn metadata(&self, group: &Group, seq: u64) -> Result<Vec<(String, String)>, SegmentError> {
        let mut all = group.metadata.clone();
        let mut account = Accounts::default();
        let mut journals = Vec::new();
        // What is left over of a journal must find its rows here once the segment is gone.
        let left = recovery::journals(&self.dir).unwrap_or_default();
        for s in &group.inputs {
            let footer = Footer::read(&s.path)?;
            if let Some(offset) = footer.value("fgm.clock_offset_ns") {
                all.retain(|(k, _)| k != "fgm.clock_offset_ns");
                all.push(("fgm.clock_offset_ns".to_owned(), offset.to_owned()));
            }
            // The account is of the whole segment: it goes with its last hour, so that it is told once.
            if segment::hour_of(s.to_us) == group.hour_us {
                let own = footer.value("fgm.ledger").and_then(|t| serde_json::from_str::<Value>(t).ok());
                account.add(&Accounts::from_json(&own.unwrap_or_default()).only(group.table));
            }
            journals.extend(left.iter().map(|(n, _)| n.to_string()).filter(|tag| s.is_of_journal(tag)));
        }
        journals.sort();
        journals.dedup();
        let own = [
            ("fgm.table", group.table.as_str().to_owned()),
            (segment::SCHEMA, schema::VERSION.to_string()),
            ("fgm.seq", seq.to_string()),
            ("fgm.ledger", account.to_json().to_string()),
        ];
        all.extend(own.map(|(k, v)| (k.to_owned(), v)));
        if !journals.is_empty() {
            all.push((segment::JOURNAL.to_owned(), journals.join(",")));
        }
        Ok(all)
    }

    /// From now on, rows are looked for in the merged file.
    fn replace(&self, made: Segment, told: &Compacted, taken: &[u64]) {
        let merged = vec![made.path.clone()];
        let mut state = self.state();
        for (path, rows) in told.inputs.iter().zip(taken) {
            if let Some(input) = state.segments.iter_mut().find(|s| s.path == *path) {
                input.taken.push(Taken { hour_us: told.hour_us, rows: *rows });
            }
        }
        let (left, gone): (Vec<_>, Vec<_>) = std::mem::take(&mut state.segments)
            .into_iter()
            .partition(|s| s.taken.is_empty() || s.rows_left() > 0);
        state.segments = left;
        state.segments.push(made);
        sort(&mut state.segments);
        let totals = &mut state.compaction;
        totals.files += 1;
        totals.inputs += told.inputs.len() as u64;
        totals.input_bytes += told.input_bytes;
        totals.bytes += told.bytes;
        totals.last_error = None;
        state.doom(gone.into_iter().map(|s| s.path).collect(), merged);
    }

    /// Segments of which all rows are in merged files, as a start finds them.
    pub(super) fn doom(&self, merged: Vec<Segment>) {
        if merged.is_empty() {
            return;
        }
        let mut state = self.state();
        let having: Vec<PathBuf> = state
            .segments
            .iter()
            .filter(|s| s.merged.as_ref().is_some_and(|m| !m.inputs.is_empty()))
            .map(|s| s.path.clone())
            .collect();
        state.doom(merged.into_iter().map(|s| s.path).collect(), having);
    }

    /// Removes what no view has any more.
    pub(super) fn sweep(&self, io: &dyn Io) -> Vec<PathBuf> {
        let mut removed = Vec::new();
        let mut synced = BTreeSet::new();
        loop {
            let mut doomed = {
                let mut state = self.state();
                match state.doomed.pop_front() {
                    None => break,
                    // of an older view: what came later is in it as well
                    Some(d) if Arc::strong_count(&d.pin) > 1 => {
                        state.doomed.push_front(d);
                        break;
                    }
                    Some(d) => d,
                }
            };
            if let Err((path, error)) = self.remove(io, &mut doomed, &mut synced, &mut removed) {
                self.note_failure(&format!("{}: {error}", path.display()));
                self.state().doomed.push_front(doomed);
                break;
            }
        }
        let names: HashSet<String> =
            removed.iter().filter_map(|p| Some(p.file_name()?.to_str()?.to_owned())).collect();
        for merged in self.state().segments.iter_mut().filter_map(|s| s.merged.as_mut()) {
            merged.inputs.retain(|i| !names.contains(&i.file));
        }
        removed
    }

    fn remove(
        &self,
        io: &dyn Io,
        doomed: &mut Doomed,
        synced: &mut BTreeSet<PathBuf>,
        removed: &mut Vec<PathBuf>,
    ) -> Result<(), (PathBuf, io::Error)> {
        for path in &doomed.merged {
            for folder in path.ancestors().skip(1).take_while(|p| p.starts_with(&self.dir)) {
                // all merged files of this sweep had their names before it began
                if !synced.contains(folder) {
                    io.sync_dir(folder).map_err(|e| (folder.to_owned(), e))?;
                    synced.insert(folder.to_owned());
                }
            }
        }
        doomed.merged.clear();
        let folders: BTreeSet<PathBuf> =
            doomed.files.iter().filter_map(|p| Some(p.parent()?.to_owned())).collect();
        while let Some(path) = doomed.files.last() {
            match io.remove(path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err((path.clone(), e)),
                _ => {
                    // of an hour that is gone no folder stays
                    let root = self.dir.join(MERGED);
                    let above = path.ancestors().skip(1).take_while(|p| p.starts_with(&root));
                    let _ = above.map(fs::remove_dir).take_while(Result::is_ok).count();
                    removed.extend(doomed.files.pop());
                }
            }
        }
        // Once nobody names them any more they must not come back.
        for folder in folders.iter().filter(|f| f.exists()) {
            io.sync_dir(folder).map_err(|e| (folder.clone(), e))?;
        }
        Ok(())
    }

    /// An input that cannot be merged is set aside, told, and never skipped in silence.
    fn refuse(&self, table: Table, path: &Path, reason: &str) {
        let error = SegmentError::Damaged { path: path.to_owned(), reason: reason.to_owned() };
        set_aside(&self.dir, table, path, &error);
        let mut state = self.state();
        state.compaction.set_aside += 1;
        state.segments.retain(|s| s.path != path);
        state.lost.push(damage(table, path, &error));
    }
}

impl State {
    /// These files are in no view from now on.
    pub(super) fn doom(&mut self, files: Vec<PathBuf>, merged: Vec<PathBuf>) {
        let pin = std::mem::take(&mut self.pin);
        self.doomed.push_back(Doomed { pin, files, merged });
    }
}

/// What a segment says of its run: files that differ in it are not merged.
fn run_of(s: &Segment) -> Result<Vec<(String, String)>, String> {
    let footer = Footer::read(&s.path).map_err(|e| e.to_string())?;
    if s.is_newer() {
        return Err(schema::newer(s.schema));
    }
    let mut all: Vec<_> =
        footer.pairs().filter(|(k, _)| k.starts_with("fgm.") && !OF_ONE_FILE.contains(&&**k)).collect();
    all.sort();
    Ok(all)
}
