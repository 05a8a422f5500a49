//! Reading a data folder with no agent: no lock, no root, nothing in it changes.

use super::{Failure, view::reach};
use crate::clock;
use crate::config::Config;
use crate::export::{self, Containers, Evidence, Limits, Problem, Rows, Selection, time_range_or_all};
use crate::incident::Incident;
use crate::query;
use crate::store::{Store, View};
use crate::viewer::{self, Analysis};
use anyhow::Context;
use serde_json::{Map, Value};
use std::fs::File;
use std::io::Seek;
use std::path::Path;

fn view(dir: &Path) -> Result<View, Failure> {
    let store = Store::open_read_only(dir).context("--data")?;
    Ok(store.view())
}

/// A parameter by its name.
pub fn get<'a>(pairs: &'a [(String, String)], name: &str) -> Option<&'a str> {
    pairs.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
}

/// Of a folder the newest row is now.
fn now_us(view: &View) -> i64 {
    reach(view).map_or(0, |(_, newest_us)| newest_us)
}

/// The first and the last instant of which the folder holds rows.
pub fn held(dir: &Path) -> Result<Option<(i64, i64)>, Failure> {
    Ok(reach(&view(dir)?))
}

/// Those of the whole folder when no range is named.
fn range(view: &View, pairs: &[(String, String)]) -> Result<(i64, i64), Problem> {
    time_range_or_all(get(pairs, "range"), get(pairs, "from"), get(pairs, "to"), now_us(view))
}

/// As `/api/incidents` has them.
pub fn incidents(dir: &Path, pairs: &[(String, String)]) -> Result<(Vec<Incident>, usize), Failure> {
    let view = view(dir)?;
    let all = export::incidents(&view, Vec::new())?;
    Ok(export::listed(all, range(&view, pairs)?, get(pairs, "limit"))?)
}

/// Into a file, from which it is to be read: an export of any length takes little memory.
pub fn export(dir: &Path, pairs: &[(String, String)], mut file: File) -> Result<File, Failure> {
    let view = view(dir)?;
    let mut selection = Selection::parse(pairs, now_us(&view))?;
    let pods = query::pods(&view).map_err(anyhow::Error::new)?;
    if let Rows::Range { containers, .. } = &mut selection.rows {
        containers.know(&pods);
    }
    let now_us = clock::wall_us();
    let incidents = export::incidents(&view, Vec::new())?;
    let evidence = Evidence { view, incidents, provenance: Map::new(), pods, limits: limits(), now_us };
    let into = file.try_clone().context("the export's file")?;
    export::export_into(evidence, &selection, into)?;
    file.rewind().context("the export's file")?;
    Ok(file)
}

/// As `/api/analyze/…` has it; the newest row is now.
pub fn analysis(dir: &Path, analysis: Analysis, pairs: Vec<(String, String)>) -> Result<Value, Failure> {
    let view = view(dir)?;
    Ok(analysis.of_folder(&view, pairs, now_us(&view), limits())?)
}

/// Those of an agent at its defaults.
pub fn limits() -> Limits {
    let defaults = Config::default().export;
    Limits { max_rows: defaults.max_rows, max_containers: defaults.max_containers }
}

pub fn events(dir: &Path, pairs: &[(String, String)]) -> Result<Vec<Value>, Failure> {
    let view = view(dir)?;
    let mut containers = Containers::parse(|name| get(pairs, name))?;
    containers.know_by(&view).map_err(anyhow::Error::new)?;
    let kind = get(pairs, "kind").unwrap_or_default();
    Ok(viewer::events(&view, kind, &containers, range(&view, pairs)?)?)
}
