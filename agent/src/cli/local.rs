//! Reading a data folder with no agent: no lock, no root, nothing in it changes.

use super::Failure;
use crate::clock;
use crate::config::Config;
use crate::export::{self, Evidence, Limits, Selection, time_range};
use crate::incident::Incident;
use crate::store::{Store, View};
use crate::viewer;
use anyhow::Context;
use serde_json::{Map, Value};
use std::path::Path;

fn view(dir: &Path) -> Result<View, Failure> {
    let store = Store::open_read_only(dir).context("--data")?;
    Ok(store.view())
}

pub fn incidents(dir: &Path) -> Result<Vec<Incident>, Failure> {
    Ok(export::incidents(&view(dir)?, Vec::new())?)
}

pub fn export(dir: &Path, pairs: &[(String, String)]) -> Result<Vec<u8>, Failure> {
    let now_us = clock::wall_us();
    let selection = Selection::parse(pairs, now_us)?;
    let view = view(dir)?;
    let incidents = export::incidents(&view, Vec::new())?;
    let defaults = Config::default().export;
    let limits = Limits { max_rows: defaults.max_rows, max_containers: defaults.max_containers };
    let evidence = Evidence { view, incidents, provenance: Map::new(), limits, now_us };
    Ok(export::export(evidence, &selection)?.bytes)
}

/// Those of the whole folder when no range is named.
pub fn events(dir: &Path, pairs: &[(String, String)]) -> Result<Vec<Value>, Failure> {
    let get = |name: &str| pairs.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
    let (from_us, to_us) = match (get("range"), get("from"), get("to")) {
        (None, None, None) => (i64::MIN, i64::MAX),
        (range, from, to) => time_range(range, from, to, clock::wall_us())?,
    };
    Ok(viewer::events(&view(dir)?, get("kind").unwrap_or_default(), (from_us, to_us))?)
}
