//! What several nodes exported of the same selection as one export.
//!
//! A part is the Parquet file that an agent made: rows, and in its metadata the document that goes along with them, so nothing that an agent
//! knows is asked for twice. The rows of all parts go through the plan and the encoders that those of a data folder go through. The documents become
//! one: what happened is put in order by wall time, since a time since a boot says nothing to another node, and whatever has no node
//! gets its own. Stand-ins for names are given out here, and not by the agents: each would begin with `pod-1`.
//!
//! A node that gave no answer, and one that answered that it has nothing, stand in the provenance. Of one part that nobody was silent beside
//! the export is what its agent would have made. One document after the other is in memory; files are read a range at a time. Called by `cli`.

use super::choose::Found;
use super::document::{Document, PROVENANCE};
use super::encode::Sink;
use super::{Failure, MAX_SIDE_ROWS, NARROW, Problem, Rows, Selection, encoded, of_query};
use crate::incident::Incident;
use crate::names::Table;
use crate::query::{self, Filter, Plan};
use crate::schema;
use crate::segment::{Distant, Footer, Origin, Segment, SegmentName, load_from};
use crate::store::View;
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;

/// Parts of one export at the most: of each the footer is in memory, and what the plan knows of its rows (0.5 MB with 4,500 rows and all columns).
const MOST_PARTS: usize = 1280;

/// A file that an agent exported.
pub struct Part {
    file: Distant,
    rows: u64,
    schema: u32,
}

/// A node that gave no answer.
#[derive(Clone, Debug, Serialize)]
pub struct Silent {
    pub node: String,
    pub why: String,
}

/// What the nodes answered.
pub struct Merged {
    /// By the node whose agent it is of; `None` where that has no row of the selection.
    pub parts: Vec<(String, Option<Part>)>,
    pub silent: Vec<Silent>,
    /// Of which the one part is, where one was asked for.
    pub incident: Option<Incident>,
    pub now_us: i64,
}

impl Part {
    /// Looks whether the file is whole and an export.
    ///
    /// # Errors
    /// What it is instead.
    pub fn read(file: Distant) -> Result<Self, String> {
        let footer = footer(&file)?;
        document(&footer)?;
        Ok(Self { file, rows: footer.rows(), schema: footer.schema_version() })
    }

    /// As a closed file. Cgroup ids mean nothing on another node, as on another boot.
    fn segment(&self, node: &str) -> Segment {
        Segment {
            table: Table::Samples,
            path: PathBuf::from(node),
            name: SegmentName { start_us: 0, boot: node.to_owned(), seq: 0 },
            from_us: i64::MIN,
            to_us: i64::MAX,
            rows: self.rows,
            bytes: 0,
            modified_ns: 0,
            journal: None,
            merged: None,
            taken: Vec::new(),
            schema: self.schema,
            far: Some(self.file.clone()),
        }
    }
}

fn footer(file: &Distant) -> Result<Footer, String> {
    let origin = Origin { path: PathBuf::new(), far: Some(file.clone()) };
    load_from(&origin, false).map(|metadata| Footer::of(&metadata))
}

fn document(footer: &Footer) -> Result<Document, String> {
    Document::read(|key| footer.value(key))
}

impl Merged {
    /// Makes the answer in a file, of whatever length, and gives the name that it should have. What the limits of each agent let through is
    /// here.
    ///
    /// # Errors
    /// There are no rows, or those of too many nodes, or more events or processes than go along with an export.
    pub fn export_into(&self, selection: &Selection, file: File) -> Result<String, Problem> {
        match self.given().count() {
            0 => {
                let detail = "no sample of that time and these containers on any node that answered";
                return Err(Problem::not_found(detail));
            }
            n if n > MOST_PARTS => {
                let detail = format!(
                    "that is of {n} nodes, and of more than {MOST_PARTS} there is no export; name a namespace, labels or containers"
                );
                return Err(Problem::bad_query(detail, &[]));
            }
            _ => {}
        }
        let (from_us, to_us) = match (&selection.rows, &self.incident) {
            (Rows::Incident { before_us, after_us, .. }, Some(incident)) => {
                super::around(incident, *before_us, *after_us)
            }
            (Rows::Range { from_us, to_us, .. }, _) => (*from_us, *to_us),
            (Rows::Incident { .. }, None) => (i64::MIN, i64::MAX),
        };
        let segments = self.given().map(|(node, part)| part.segment(node)).collect();
        let view = View { segments, ..View::default() };
        let filter = Filter::range(from_us, to_us);
        let plan = query::plan(&view, Table::Samples, &filter, u64::MAX).map_err(of_query)?;
        let (incident, identities) = (self.incident.clone(), BTreeMap::new());
        let found = Found { incident, filter, plan, identities };
        let mut sink = Sink::file(file);
        let document = || self.document(&found.plan).map_err(Failure::Problem);
        let name = encoded(&found, selection, self.now_us, &|| Ok(()), &mut sink, document);
        let name = name.map_err(|failure| match failure {
            Failure::Problem(problem) => problem,
            Failure::Vanished { path, reason } => {
                Problem::internal(format!("what node {} answered: {reason}", path.display()))
            }
        })?;
        sink.finish()?;
        Ok(name)
    }

    fn given(&self) -> impl Iterator<Item = (&str, &Part)> {
        self.parts.iter().filter_map(|(node, part)| Some((node.as_str(), part.as_ref()?)))
    }

    /// The documents of all parts as one.
    fn document(&self, plan: &Plan) -> Result<Document, Problem> {
        let is_of_several = self.given().count() > 1;
        let mut whole = Document::default();
        let mut made_by = Vec::new();
        for (node, part) in self.given() {
            let one = footer(&part.file).and_then(|footer| document(&footer));
            let mut one = one.map_err(|e| Problem::internal(format!("what node {node} answered: {e}")))?;
            let own = one.provenance.get("node").and_then(Value::as_str).unwrap_or(node).to_owned();
            let node = Some(&own).filter(|_| is_of_several);
            for (all, of_one) in [
                (&mut whole.events, one.events),
                (&mut whole.processes, one.processes),
                (&mut whole.cgroups, one.cgroups),
                (&mut whole.lost, one.lost),
            ] {
                take(all, of_one, node);
            }
            let most = [&whole.events, &whole.processes].map(|list| list.as_array().map_or(0, Vec::len));
            let most = most.into_iter().max().unwrap_or(0) as u64;
            if most > MAX_SIDE_ROWS {
                return Err(Problem::too_large("events or processes", MAX_SIDE_ROWS, most, NARROW));
            }
            if !one.incident.is_null() {
                whole.incident = one.incident;
            }
            one.provenance.insert("node".to_owned(), json!(own));
            made_by.push(one.provenance);
        }
        if is_of_several {
            by_time(&mut whole.events);
            by_time(&mut whole.processes);
        }
        take(&mut whole.lost, json!(plan.lost), None);
        whole.provenance = self.provenance(made_by, plan);
        Ok(whole)
    }

    /// What all nodes say alike stands once, the rest with each node.
    fn provenance(&self, mut made_by: Vec<Map<String, Value>>, plan: &Plan) -> Map<String, Value> {
        let mut all = made_by.first().cloned().unwrap_or_default();
        for name in PROVENANCE {
            let first = all.get(name).cloned().unwrap_or_default();
            if made_by.iter().any(|one| one.get(name) != Some(&first)) {
                all.insert(name.to_owned(), Value::Null);
            } else if name != "node" {
                for one in &mut made_by {
                    one.remove(name);
                }
            }
        }
        let without = self.parts.iter().filter(|(_, part)| part.is_none() && self.incident.is_none());
        let without: Vec<_> = without.map(|(node, _)| json!({"node": node, "rows": 0})).collect();
        if made_by.len() + without.len() > 1 {
            let nodes = made_by.into_iter().map(Value::Object).chain(without);
            all.insert("nodes".to_owned(), nodes.collect());
        }
        if !self.silent.is_empty() {
            all.insert("unanswered".to_owned(), json!(self.silent));
        }
        all.insert("rows".to_owned(), json!(plan.rows));
        all.insert("schema_version".to_owned(), json!(schema::VERSION));
        all
    }
}

/// Adds the items of one list to another; those that say no node get `node`.
fn take(all: &mut Value, of_one: Value, node: Option<&String>) {
    if all.is_null() {
        *all = json!([]);
    }
    let (Value::Array(all), Value::Array(of_one)) = (all, of_one) else { return };
    all.extend(of_one.into_iter().map(|mut item| {
        if let (Value::Object(members), Some(node)) = (&mut item, node) {
            let own = members.entry("node").or_insert(Value::Null);
            if own.is_null() {
                *own = json!(node);
            }
        }
        item
    }));
}

/// Of one instant in the order in which they came.
fn by_time(list: &mut Value) {
    if let Value::Array(items) = list {
        items.sort_by_key(|item| item["ts_us"].as_i64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment::{Encoder, Far, PAGE_ROWS};
    use bytes::Bytes;
    use std::io;
    use std::ops::Range;
    use std::sync::Arc;

    struct Held(Bytes);

    impl Far for Held {
        fn length(&self) -> u64 {
            self.0.len() as u64
        }

        fn read(&self, range: Range<u64>) -> io::Result<Bytes> {
            let place = |at| usize::try_from(at).map_err(io::Error::other);
            Ok(self.0.slice(place(range.start)?..place(range.end)?))
        }

        fn expect(&self, _: &[Range<u64>]) -> io::Result<()> {
            Ok(())
        }

        fn wants(&self, _: &str) -> bool {
            false
        }
    }

    fn file(metadata: &[(&str, Value)]) -> Distant {
        let metadata: Vec<_> = metadata.iter().map(|(k, v)| ((*k).to_owned(), v.to_string())).collect();
        let schema = schema::of(Table::Samples);
        let encoder =
            Encoder::new(Vec::new(), &schema, PAGE_ROWS, (0, 0), &metadata).expect("a schema of ours");
        Distant(Arc::new(Held(encoder.close().expect("no rows").into())))
    }

    /// An export without rows, of an agent that says `who` of itself.
    fn part(who: &Value, events: usize) -> Part {
        let file = file(&[
            ("fgm.incident", Value::Null),
            ("fgm.events", json!(vec![json!({"ts_us": 5}); events])),
            ("fgm.processes", json!([])),
            ("fgm.cgroups", json!([{"cgroup_id": "7"}])),
            ("fgm.lost", json!([{"table": "samples", "reason": "late", "rows": 2}])),
            ("fgm.provenance", who.clone()),
        ]);
        Part::read(file).expect("an export")
    }

    fn merged(parts: Vec<(String, Option<Part>)>) -> Merged {
        Merged { parts, silent: Vec::new(), incident: None, now_us: 0 }
    }

    fn document(merged: &Merged) -> Result<Document, Problem> {
        let plan = query::plan(&View::default(), Table::Samples, &Filter::range(0, 1), 1).expect("nothing");
        merged.document(&plan)
    }

    #[test]
    fn what_nodes_say_alike_stands_once_and_the_rest_with_each() {
        let who = |node, kernel, rows| json!({"node": node, "kernel": kernel, "cluster": "c", "rows": rows});
        let parts = vec![
            // an agent calls itself as it was told to, not always as Kubernetes does
            ("a".to_owned(), Some(part(&who("a.local", "6.1", 3), 1))),
            ("b".to_owned(), Some(part(&who("b", "6.12", 4), 1))),
            ("c".to_owned(), None),
        ];
        let mut merged = merged(parts);
        merged.silent.push(Silent { node: "d".to_owned(), why: "gone".to_owned() });
        let told = document(&merged).expect("few");
        let nodes =
            |list: &Value| list.as_array().expect("a list").iter().map(|n| n["node"].clone()).collect();
        for list in [&told.events, &told.cgroups, &told.lost] {
            let of: Vec<Value> = nodes(list);
            assert_eq!(of, ["a.local", "b"]);
        }
        let whole = told.provenance;
        assert_eq!(
            (&whole["cluster"], &whole["kernel"], &whole["node"]),
            (&json!("c"), &Value::Null, &Value::Null)
        );
        let each = json!([
            {"node": "a.local", "kernel": "6.1", "rows": 3}, {"node": "b", "kernel": "6.12", "rows": 4}, {"node": "c", "rows": 0},
        ]);
        assert_eq!(whole["nodes"], each);
        assert_eq!(whole["unanswered"], json!([{"node": "d", "why": "gone"}]));
    }

    #[test]
    fn what_is_no_export_or_too_many_is_refused() {
        let why = Part::read(file(&[("fgm.events", json!([]))])).err().expect("no export");
        assert!(why.contains("fgm.provenance"), "{why}");
        let why = Part::read(Distant(Arc::new(Held(Bytes::from_static(b"PAR1"))))).err();
        assert!(why.is_some(), "not even Parquet");

        let half = usize::try_from(MAX_SIDE_ROWS).expect("fits") / 2;
        let of_two = |events| {
            let one = |node: &str, events| (node.to_owned(), Some(part(&json!({"node": node}), events)));
            document(&merged(vec![one("a", half), one("b", events)]))
        };
        assert!(of_two(half).is_ok());
        assert_eq!(of_two(half + 1).err().map(|p| p.status), Some(413));

        let pairs = [("range".to_owned(), "1m".to_owned())];
        let selection = Selection::parse(&pairs, 1_000_000_000).expect("good");
        let all = |n| {
            let one = part(&json!({}), 0);
            let copy = |i| {
                let Part { file, rows, schema } = &one;
                (format!("n{i}"), Some(Part { file: file.clone(), rows: *rows, schema: *schema }))
            };
            let file = tempfile::tempfile().expect("a file");
            merged((0..n).map(copy).collect()).export_into(&selection, file).map_err(|p| p.status)
        };
        assert_eq!((all(0).err(), all(1).err(), all(MOST_PARTS + 1).err()), (Some(404), None, Some(400)));
    }
}
