//! Reading a data folder with no agent: no lock, no root, nothing in it changes.

use super::Failure;
use crate::clock;
use crate::config::Config;
use crate::export::{self, Evidence, Limits, Problem, Selection, time_range_or_all};
use crate::incident::Incident;
use crate::store::{Store, View};
use crate::viewer;
use anyhow::Context;
use serde_json::{Map, Value};
use std::fs::File;
use std::io::Seek;
use std::path::Path;

fn view(dir: &Path) -> Result<View, Failure> {
    let store = Store::open_read_only(dir).context("--data")?;
    Ok(store.view())
}

fn get<'a>(pairs: &'a [(String, String)], name: &str) -> Option<&'a str> {
    pairs.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
}

/// Those of the whole folder when no range is named.
fn range(pairs: &[(String, String)]) -> Result<(i64, i64), Problem> {
    time_range_or_all(get(pairs, "range"), get(pairs, "from"), get(pairs, "to"), clock::wall_us())
}

/// As `/api/incidents` has them.
pub fn incidents(dir: &Path, pairs: &[(String, String)]) -> Result<(Vec<Incident>, usize), Failure> {
    let all = export::incidents(&view(dir)?, Vec::new())?;
    Ok(export::listed(all, range(pairs)?, get(pairs, "limit"))?)
}

/// Into a file, from which it is to be read: an export of any length takes little memory.
pub fn export(dir: &Path, pairs: &[(String, String)], mut file: File) -> Result<File, Failure> {
    let now_us = clock::wall_us();
    let selection = Selection::parse(pairs, now_us)?;
    let view = view(dir)?;
    let incidents = export::incidents(&view, Vec::new())?;
    let defaults = Config::default().export;
    let limits = Limits { max_rows: defaults.max_rows, max_containers: defaults.max_containers };
    let evidence = Evidence { view, incidents, provenance: Map::new(), limits, now_us };
    let into = file.try_clone().context("the export's file")?;
    export::export_into(evidence, &selection, into)?;
    file.rewind().context("the export's file")?;
    Ok(file)
}

pub fn events(dir: &Path, pairs: &[(String, String)]) -> Result<Vec<Value>, Failure> {
    Ok(viewer::events(&view(dir)?, get(pairs, "kind").unwrap_or_default(), range(pairs)?)?)
}
