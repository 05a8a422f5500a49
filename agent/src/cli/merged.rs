//! `fgm export --all-nodes`: what the agents of all nodes export of one selection, as one file.
//!
//! The selection is understood here first, so that a wrong one is asked of nobody and all are asked for the same time. An incident
//! lives on one node: all are asked whether they know it, the one that does for its export. Answers lie one behind the other in a file without a
//! name, so that open files do not grow with the nodes, nor memory with their rows. Called by `cli`.

use super::nodes::Nodes;
use super::{Failure, Place, fetch, output};
use crate::clock;
use crate::export::{self, Merged, Part, Rows, Selection, Silent};
use crate::incident::Incident;
use crate::segment::{Distant, Far};
use crate::viewer::path_segment;
use anyhow::Context as _;
use bytes::Bytes;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// Parameters that are not passed on as they are: formats and stand-ins are made here, the time is one for all.
const OURS: [&str; 6] = ["incident", "range", "from", "to", "redact", "format"];

/// Into a file, from which it is to be read; and who gave no answer.
pub fn export(
    nodes: &Nodes,
    token_file: Option<&Path>,
    pairs: &[(String, String)],
    output: &Path,
) -> Result<(File, Vec<Silent>), Failure> {
    let now_us = clock::wall_us();
    let mut selection = Selection::parse(pairs, now_us)?;
    let answers = Arc::new(Answers { file: output::unnamed(output)?, end: Mutex::new(0) });
    let mut merged = Merged { parts: Vec::new(), silent: Vec::new(), incident: None, now_us };
    if let Rows::Incident { id, .. } = &mut selection.rows {
        let found = nodes.ask(token_file, |place| incident(place, id))?;
        let known = found.given.into_iter().filter_map(|(node, known)| Some((node, known?)));
        let newest = known.max_by(|(_, a), (_, b)| (a.ts_us, &a.id).cmp(&(b.ts_us, &b.id)));
        let Some((node, incident)) = newest else {
            let what = if id == "latest" { "incident".to_owned() } else { format!("incident {id}") };
            return Err(Failure::Nothing(format!("no {what} on any node that answered")));
        };
        id.clone_from(&incident.id);
        let asked = asked(&selection, pairs);
        let part = nodes.ask_one(&node, token_file, |place| answers.take(place, &asked, output))?;
        merged.parts.push((node, Some(part)));
        (merged.silent, merged.incident) = (found.silent, Some(incident));
    } else {
        let asked = asked(&selection, pairs);
        let given = nodes.ask(token_file, |place| there(answers.take(place, &asked, output)))?;
        (merged.parts, merged.silent) = (given.given, given.silent);
    }
    let mut file = output::unnamed(output)?;
    merged.export_into(&selection, file.try_clone().context("the export's file")?)?;
    file.rewind().context("the export's file")?;
    Ok((file, merged.silent))
}

/// What each agent is asked for.
fn asked(selection: &Selection, pairs: &[(String, String)]) -> Vec<(String, String)> {
    let mut asked: Vec<_> =
        pairs.iter().filter(|(name, _)| !OURS.contains(&name.as_str())).cloned().collect();
    let mut add = |name: &str, value| asked.push((name.to_owned(), value));
    match &selection.rows {
        Rows::Incident { id, .. } => add("incident", id.clone()),
        Rows::Range { from_us, to_us, .. } => {
            add("from", export::instant(*from_us, 6));
            add("to", export::instant(*to_us, 6));
        }
    }
    add("format", "parquet".to_owned());
    asked
}

/// `None` where the agent knows no such incident.
fn incident(place: &Place, id: &str) -> Result<Option<Incident>, Failure> {
    let Some(known) = there(fetch::json(place, &format!("/api/incidents/{}", path_segment(id))))? else {
        return Ok(None);
    };
    let known = serde_json::from_value(known);
    Ok(Some(known.map_err(|e| anyhow::anyhow!("it gave an incident of another version: {e}"))?))
}

/// That one node has nothing of it says nothing of the others.
fn there<T>(answer: Result<T, Failure>) -> Result<Option<T>, Failure> {
    match answer {
        Err(Failure::Nothing(_)) => Ok(None),
        other => other.map(Some),
    }
}

/// What agents answered, one behind the other.
struct Answers {
    file: File,
    end: Mutex<u64>,
}

impl Answers {
    /// Asks one agent, and keeps what it answers once it is there whole.
    fn take(
        self: &Arc<Self>,
        place: &Place,
        asked: &[(String, String)],
        output: &Path,
    ) -> Result<Part, Failure> {
        let mut answer = fetch::export(place, asked, output::unnamed(output)?)?;
        answer.rewind().context("the export's file")?;
        let place = {
            let mut end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
            let mut all = &self.file;
            all.seek(SeekFrom::Start(*end)).context("the answers' file")?;
            let bytes = io::copy(&mut answer, &mut all).context("the answers' file")?;
            *end += bytes;
            *end - bytes..*end
        };
        let part = Part::read(Distant(Arc::new(Answer { all: self.clone(), place })));
        Ok(part.map_err(|e| anyhow::anyhow!("its export cannot be read: {e}"))?)
    }
}

/// One of them, as a file of its own.
struct Answer {
    all: Arc<Answers>,
    place: Range<u64>,
}

impl Far for Answer {
    fn length(&self) -> u64 {
        self.place.end - self.place.start
    }

    fn read(&self, range: Range<u64>) -> io::Result<Bytes> {
        let length = usize::try_from(range.end.saturating_sub(range.start)).map_err(io::Error::other)?;
        let mut bytes = vec![0; length];
        self.all.file.read_exact_at(&mut bytes, self.place.start + range.start)?;
        Ok(bytes.into())
    }

    fn expect(&self, _: &[Range<u64>]) -> io::Result<()> {
        Ok(())
    }

    fn wants(&self, _: &str) -> bool {
        false
    }
}
