//! Reading what many agents have shipped into a bucket: `fgm view|incidents|events|export|analyze|inspect s3://bucket/prefix`.
//!
//! The same questions as of a folder, over the same query layer; what is not of the time, the cluster or the node that is asked for is
//! left out by its name. How many requests and bytes it took is said on stderr, and in what `--json` prints.

use super::local::{get, limits};
use super::{Failure, inspect, output};
use crate::bucket::Bucket;
use crate::clock;
use crate::config::Ship;
use crate::export::{self, Containers, Evidence, Format, Rows, Selection, time_range_or_all};
use crate::fleet::{Bundle, FILES_AT_ONCE, Fleet, FleetError, Found, Who};
use crate::incident::Incident;
use crate::ledger::Accounts;
use crate::names::Table;
use crate::query::{self, Filter};
use crate::segment::{Footer, load_from, metadata_value};
use crate::store::{Store, View, part};
use crate::viewer::{self, Analysis};
use anyhow::Context as _;
use clap::Args;
use parquet::arrow::arrow_reader::ArrowReaderMetadata;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{Seek, Write as _};
use std::path::Path;
use std::sync::Arc;

const ALL: (i64, i64) = (i64::MIN, i64::MAX);
/// Events of one answer.
const MOST_EVENTS: usize = 100_000;
/// The row of a minute of the ledger stands at its end.
const MINUTE_US: i64 = 60_000_000;
/// What an incident list reads.
const OF_INCIDENTS: Option<&[&str]> = Some(&["cgroup_id", "ts", "ktime_ns", "json"]);

/// A bucket, and whose data in it.
#[derive(Args, Clone, Debug, Default)]
pub struct InBucket {
    /// Where agents ship to: s3://, gs:// or az://bucket/prefix, file:///folder. Credentials, endpoint and region come from the
    /// environment, as the provider's own tools have them.
    #[arg(value_name = "BUCKET", conflicts_with_all = ["server", "data", "token_file"])]
    bucket: Option<String>,
    /// Of the bucket this cluster alone.
    #[arg(long, value_name = "NAME", requires = "bucket")]
    cluster: Option<String>,
    /// Of the bucket this node alone.
    #[arg(long, value_name = "NAME", requires = "bucket")]
    node: Option<String>,
}

impl InBucket {
    pub fn open(&self) -> Result<Option<Far>, Failure> {
        let Some(url) = &self.bucket else { return Ok(None) };
        let who = Who { cluster: self.cluster.clone(), node: self.node.clone() };
        Far::open(url, who).map(Some)
    }
}

pub struct Far {
    fleet: Fleet,
    who: Who,
}

impl From<FleetError> for Failure {
    fn from(e: FleetError) -> Self {
        Self::Failed(anyhow::Error::new(e))
    }
}

impl Far {
    pub fn open(url: &str, who: Who) -> Result<Self, Failure> {
        if !Bucket::is_url(url) {
            let schemes = Ship::SCHEMES.join(", ");
            return Err(Failure::Usage(format!(
                "{url} is no bucket: give one that begins with {schemes}; a folder goes with --data"
            )));
        }
        let fleet = Fleet::open(&Ship { url: url.to_owned(), ..Ship::default() })?;
        Ok(Self { fleet, who })
    }

    /// What it took, for `--json`.
    pub fn took(&self) -> Value {
        let c = self.fleet.counts();
        json!({"lists": c.lists, "gets": c.gets, "bytes_read": c.bytes_read})
    }

    /// Says what it took, and fails when the answer lacks something that the bucket has.
    pub fn finish(&self) -> Result<(), Failure> {
        // nowhere else to go when stderr is closed
        let _ = writeln!(std::io::stderr(), "fgm: {}: {}", self.fleet.url(), self.fleet.counts());
        Ok(self.fleet.well()?)
    }

    pub fn nothing(&self, what: &str) -> Failure {
        let of = |name: &str, value: &Option<String>| {
            value.as_ref().map(|v| format!(" of {name} {v}")).unwrap_or_default()
        };
        let (cluster, node) = (of("cluster", &self.who.cluster), of("node", &self.who.node));
        Failure::Nothing(format!(
            "no {what}{cluster}{node} in {} in that time; an hour is there from a quarter of an hour after its end on",
            self.fleet.url()
        ))
    }

    fn range(pairs: &[(String, String)]) -> Result<(i64, i64), Failure> {
        Ok(time_range_or_all(get(pairs, "range"), get(pairs, "from"), get(pairs, "to"), clock::wall_us())?)
    }

    /// One that has to be named.
    fn named_range(pairs: &[(String, String)]) -> Result<(i64, i64), Failure> {
        if ["range", "from"].iter().all(|name| get(pairs, name).is_none()) {
            let detail = "which time of a bucket? --range 6h counts back from now, --from and --to name it";
            return Err(Failure::Usage(detail.to_owned()));
        }
        Self::range(pairs)
    }

    /// As `/api/incidents` has them, of all nodes.
    pub fn incidents(&self, pairs: &[(String, String)]) -> Result<(Vec<Incident>, usize), Failure> {
        let range = Self::range(pairs)?;
        let all = self.incidents_in(range, |_| true)?;
        Ok(export::listed(all, range, get(pairs, "limit"))?)
    }

    /// Those of `v1/`, and those of which a bundle alone is there yet; the latest revision of each, newest first.
    fn incidents_in(&self, range: (i64, i64), node: impl Fn(&str) -> bool) -> Result<Vec<Incident>, Failure> {
        let mut files = self.fleet.files(Table::Incidents, range, &self.who)?;
        files.retain(|f| node(&f.node));
        let mut latest: BTreeMap<String, Incident> = BTreeMap::new();
        let mut take = |incident: Incident| {
            if latest.get(&incident.id).is_none_or(|have| have.revision <= incident.revision) {
                latest.insert(incident.id.clone(), incident);
            }
        };
        for some in files.chunks(FILES_AT_ONCE) {
            export::incidents(&self.fleet.view(some, OF_INCIDENTS)?, Vec::new())?
                .into_iter()
                .for_each(&mut take);
        }
        for incident in self.of_bundles(range, &node, &latest)? {
            latest.insert(incident.id.clone(), incident);
        }
        let mut out: Vec<Incident> = latest.into_values().collect();
        out.sort_by(|a, b| (b.ts_us, &b.id).cmp(&(a.ts_us, &a.id)));
        Ok(out)
    }

    /// Incidents of which `v1/` does not have the latest revision that a bundle has.
    fn of_bundles(
        &self,
        (from_us, to_us): (i64, i64),
        node: &impl Fn(&str) -> bool,
        known: &BTreeMap<String, Incident>,
    ) -> Result<Vec<Incident>, Failure> {
        let known: BTreeMap<String, u32> =
            known.values().map(|i| (part(&i.id, "unknown"), i.revision)).collect();
        let mut bundles = self.fleet.bundles((from_us, to_us), &self.who)?;
        bundles.retain(|b| node(&b.node) && known.get(&b.id).is_none_or(|have| *have < b.revision));
        let mut out = Vec::new();
        for some in bundles.chunks(FILES_AT_ONCE) {
            for origin in self.fleet.ends(some)? {
                match load_from(&origin, false).and_then(|metadata| incident_of(&metadata)) {
                    Ok(incident) => out.push(incident),
                    Err(reason) => {
                        tracing::error!(path = %origin.path.display(), reason, "left an unreadable bundle out");
                    }
                }
            }
        }
        out.retain(|i| (from_us..=to_us).contains(&i.ts_us));
        Ok(out)
    }

    pub fn events(&self, pairs: &[(String, String)]) -> Result<Vec<Value>, Failure> {
        let range = Self::named_range(pairs)?;
        let containers = Containers::parse(|name| get(pairs, name))?;
        let kind = get(pairs, "kind").unwrap_or_default();
        viewer::kinds(kind)?;
        let files = self.fleet.files(Table::Events, range, &self.who)?;
        let mut out = Vec::new();
        for some in files.chunks(FILES_AT_ONCE) {
            let view = self.fleet.view(some, None)?;
            for (file, segment) in some.iter().zip(view.segments) {
                let one = View { segments: vec![segment], ..View::default() };
                for mut event in viewer::events(&one, kind, &containers, range)? {
                    event["cluster"] = json!(file.cluster);
                    event["node"] = json!(file.node);
                    out.push(event);
                }
            }
            if out.len() > MOST_EVENTS {
                let detail =
                    "more than 100000 events: name a shorter time, kinds (--kind), a cluster or a node";
                return Err(Failure::Usage(detail.to_owned()));
            }
        }
        // over nodes and boots the time since a boot says nothing
        out.sort_by_key(|e| e["ts_us"].as_i64());
        Ok(out)
    }

    /// Into a file, from which it is to be read.
    pub fn export(&self, pairs: &[(String, String)], mut file: File) -> Result<File, Failure> {
        let now_us = clock::wall_us();
        let mut selection = Selection::parse(pairs, now_us)?;
        let mut incidents = Vec::new();
        let (range, node, boot) = match &selection.rows {
            Rows::Incident { id, before_us, after_us } => {
                let all =
                    self.incidents_in(ALL, |node| id == "latest" || id.starts_with(&format!("{node}-")))?;
                let incident = export::find(&all, id)?.clone();
                let range = export::around(&incident, *before_us, *after_us);
                let node = Some(incident.node.clone());
                incidents.push(incident);
                (range, node, true)
            }
            Rows::Range { from_us, to_us, .. } => ((*from_us, *to_us), self.who.node.clone(), false),
        };
        let who = Who { cluster: self.who.cluster.clone(), node };
        let view = self.evidence(range, &who)?;
        let has_samples = view.segments.iter().any(|s| s.table == Table::Samples);
        if let (true, false, Some(incident)) = (boot, has_samples, incidents.first()) {
            return self.bundle(incident, selection.format, file);
        }
        let pods = query::pods(&view).map_err(anyhow::Error::new)?;
        if let Rows::Range { containers, .. } = &mut selection.rows {
            containers.know(&pods);
        }
        let evidence = Evidence { view, incidents, provenance: Map::new(), pods, limits: limits(), now_us };
        let into = file.try_clone().context("the export's file")?;
        export::export_into(evidence, &selection, into)?;
        file.rewind().context("the export's file")?;
        Ok(file)
    }

    /// All that an export of a time draws on.
    fn evidence(&self, range: (i64, i64), who: &Who) -> Result<View, Failure> {
        let tables = [Table::Samples, Table::Events, Table::Processes, Table::Containers, Table::Ledger];
        self.view(&tables, range, who)
    }

    /// The files of some tables and a time, as of a folder.
    fn view(&self, tables: &[Table], (from_us, to_us): (i64, i64), who: &Who) -> Result<View, Failure> {
        let mut files: Vec<Found> = Vec::new();
        for table in tables {
            let to_us = if *table == Table::Ledger { to_us.saturating_add(MINUTE_US) } else { to_us };
            files.extend(self.fleet.files(*table, (from_us, to_us), who)?);
        }
        if files.len() > 5 * FILES_AT_ONCE {
            return Err(Failure::Usage(format!(
                "that time is in {} files of the bucket: name a shorter one, or a node with --node",
                files.len()
            )));
        }
        Ok(self.fleet.view(&files, None)?)
    }

    /// All tables of a time as a folder that nobody writes, and whose they are; rows are fetched when somebody asks for them.
    pub fn folder(&self, pairs: &[(String, String)]) -> Result<(Arc<Store>, String), Failure> {
        let mut view = self.view(&Table::ALL, Self::named_range(pairs)?, &self.who)?;
        for segment in &mut view.segments {
            // the name tells the hour alone; one that cannot be read is told of when it is asked for
            let Ok(metadata) = load_from(&segment.origin(), false) else { continue };
            let footer = Footer::of(&metadata);
            segment.rows = footer.rows();
            (segment.from_us, segment.to_us) = range_of(&footer).unwrap_or((segment.from_us, segment.to_us));
        }
        if view.segments.is_empty() {
            return Err(self.nothing("row"));
        }
        let nodes: BTreeSet<&str> = view.segments.iter().filter_map(|s| node_of(&s.path)).collect();
        let whose = match nodes.first() {
            Some(node) if nodes.len() == 1 => (*node).to_owned(),
            _ => format!("{} nodes of {}", nodes.len(), self.fleet.url()),
        };
        Ok((Store::over(Path::new(self.fleet.url()), view), whose))
    }

    /// As `/api/analyze/…` has it.
    pub fn analysis(&self, analysis: Analysis, pairs: Vec<(String, String)>) -> Result<Value, Failure> {
        let range = Self::named_range(&pairs)?;
        let named = get(&pairs, "table").unwrap_or(Table::Samples.as_str());
        let table = Table::ALL.into_iter().find(|t| t.as_str() == named).unwrap_or(Table::Samples);
        let mut tables = vec![table, Table::Containers];
        // they know labels of pods that the rows do not
        tables.extend(get(&pairs, "labels").map(|_| Table::Incidents));
        let view = self.view(&tables, range, &self.who)?;
        Ok(analysis.of_folder(&view, pairs, clock::wall_us(), limits())?)
    }

    /// Of an incident whose hour is not in the bucket, its bundle is the export.
    fn bundle(&self, incident: &Incident, format: Format, mut file: File) -> Result<File, Failure> {
        let day = (incident.ts_us, incident.ts_us);
        let bundles =
            self.fleet.bundles(day, &Who { node: Some(incident.node.clone()), ..self.who.clone() })?;
        let id = part(&incident.id, "unknown");
        let Some(Bundle { object, .. }) = bundles.into_iter().find(|b| b.id == id) else {
            return Err(self.nothing(&format!("samples of {}", incident.id)));
        };
        if format != Format::Parquet {
            return Err(Failure::Nothing(format!(
                "the hour of {} is not in {}, its bundle is: --format parquet gives that as it is",
                incident.id,
                self.fleet.url()
            )));
        }
        file.write_all(&self.fleet.whole(&object)?).context("the export's file")?;
        file.rewind().context("the export's file")?;
        Ok(file)
    }

    /// What is there of each table, by the footers alone; and the sums of the ledger.
    pub fn inspect(&self, as_json: bool) -> Result<(), Failure> {
        let mut tables = Map::new();
        let mut problems = Vec::new();
        let mut ledger = Accounts::default();
        for table in Table::ALL {
            let files = self.fleet.files(table, ALL, &self.who)?;
            let (mut rows, mut range) = (0, None::<(i64, i64)>);
            for some in files.chunks(FILES_AT_ONCE) {
                let view = self.fleet.view(some, None)?;
                for segment in &view.segments {
                    match load_from(&segment.origin(), false).map(|metadata| Footer::of(&metadata)) {
                        Ok(footer) => {
                            rows += footer.rows();
                            let own = range_of(&footer).unwrap_or((segment.from_us, segment.to_us));
                            range = Some(range.map_or(own, |r| (r.0.min(own.0), r.1.max(own.1))));
                        }
                        Err(reason) => problems.push(format!("{}: {reason}", segment.path.display())),
                    }
                }
                if table == Table::Ledger {
                    let all = Filter::range(ALL.0, ALL.1);
                    let (batches, _) =
                        query::rows(&view, table, &all, None, u64::MAX).context("the table ledger")?;
                    for batch in &batches {
                        ledger.add(&Accounts::of_rows(batch));
                    }
                }
            }
            if files.is_empty() {
                continue;
            }
            let nodes: BTreeSet<_> = files.iter().map(|f| (&f.cluster, &f.node)).collect();
            let bytes: u64 = files.iter().map(|f| f.object.bytes).sum();
            tables.insert(
                table.as_str().to_owned(),
                json!({
                    "files": files.len(), "bytes": bytes, "rows": rows, "nodes": nodes.len(),
                    "from_us": range.map(|r| r.0), "to_us": range.map(|r| r.1),
                }),
            );
        }
        let bundles = self.fleet.bundles(ALL, &self.who)?.len();
        if tables.is_empty() && bundles == 0 {
            return Err(self.nothing("file"));
        }
        let all = json!({
            "path": self.fleet.url(), "tables": tables, "bundles": bundles, "ledger": ledger.to_json(),
            "problems": problems, "requests": self.took(),
        });
        output::print(&if as_json { format!("{all:#}\n") } else { text(&all) })?;
        if problems.is_empty() {
            return Ok(());
        }
        Err(anyhow::anyhow!(
            "{} has {} files that cannot be read; they are listed above",
            self.fleet.url(),
            problems.len()
        )
        .into())
    }
}

fn node_of(path: &Path) -> Option<&str> {
    path.iter().find_map(|part| part.to_str()?.strip_prefix("node="))
}

fn range_of(footer: &Footer) -> Option<(i64, i64)> {
    let number = |key| footer.value(key).and_then(|v| v.parse::<i64>().ok());
    number(crate::segment::FROM).zip(number(crate::segment::TO))
}

/// The incident that a bundle is of. Its cgroup ids are text there, as in a report.
fn incident_of(metadata: &ArrowReaderMetadata) -> Result<Incident, String> {
    let text = metadata_value(metadata.metadata(), "fgm.incident").ok_or("it has no fgm.incident")?;
    let mut value: Value = serde_json::from_str(text).map_err(|e| e.to_string())?;
    ids_to_numbers(&mut value);
    serde_json::from_value(value).map_err(|e| e.to_string())
}

fn ids_to_numbers(value: &mut Value) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                match member.as_str().and_then(|text| text.parse::<u64>().ok()) {
                    Some(id) if name == "cgroup_id" => *member = json!(id),
                    _ => ids_to_numbers(member),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(ids_to_numbers),
        _ => {}
    }
}

fn text(all: &Value) -> String {
    let time = |v: &Value| {
        let at = v.as_i64().and_then(|us| jiff::Timestamp::from_microsecond(us).ok());
        at.map_or_else(|| "-".to_owned(), |at| format!("{at:.0}"))
    };
    let mut out = String::new();
    for (table, t) in all["tables"].as_object().into_iter().flatten() {
        let _ = writeln!(
            out,
            "{table}  {} rows in {} files of {} nodes  {} to {}  {} bytes",
            t["rows"],
            t["files"],
            t["nodes"],
            time(&t["from_us"]),
            time(&t["to_us"]),
            t["bytes"]
        );
    }
    let _ = writeln!(out, "bundles of incidents: {}", all["bundles"]);
    for (table, a) in all["ledger"].as_object().into_iter().flatten() {
        let _ = writeln!(out, "{}", inspect::account(table, a));
    }
    for problem in all["problems"].as_array().into_iter().flatten() {
        let _ = writeln!(out, "PROBLEM: {}", output::printable(problem.as_str().unwrap_or_default()));
    }
    out
}
