//! One incident with the samples of its window as a file of its own: what `fgm export --incident ID` makes, as Parquet.
//!
//! `bundles/cluster=C/date=D/node=N/<id>.r<revision>.parquet`, beside `v1/` and not in it: its rows are those of an hour that comes
//! later, or never when only incidents are shipped. Its metadata has the incident, its events, processes and losses.

use crate::export::{self, Evidence, Limits, Problem, Selection};
use crate::fleet::BUNDLES;
use crate::incident::Incident;
use crate::query;
use crate::store::{View, part};
use serde_json::Map;

/// Samples of a bundle at the most: an export of more than 64 MiB is refused anyway.
const MAX_ROWS: u64 = 1_000_000;

/// Where the bundle of that revision is.
pub fn name(incident: &Incident) -> String {
    let at = jiff::Timestamp::from_microsecond(incident.ts_us).unwrap_or_default();
    let cluster = part(incident.cluster.as_deref().unwrap_or_default(), "default");
    let (date, node) = (at.strftime("%Y-%m-%d"), part(&incident.node, "unknown"));
    let (id, revision) = (part(&incident.id, "unknown"), incident.revision);
    format!("{BUNDLES}/cluster={cluster}/date={date}/node={node}/{id}.r{revision}.parquet")
}

/// Makes it of what is on the disk and waits for it.
pub fn make(view: View, incident: &Incident, now_us: i64) -> Result<Vec<u8>, Problem> {
    let pairs = [("incident", incident.id.as_str()), ("format", "parquet")];
    let pairs: Vec<_> = pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    let selection = Selection::parse(&pairs, now_us)?;
    let evidence = Evidence {
        pods: query::pods(&view).map_err(Problem::internal)?,
        view,
        incidents: vec![incident.clone()],
        provenance: Map::new(),
        limits: Limits { max_rows: MAX_ROWS, max_containers: usize::MAX },
        now_us,
    };
    export::export(evidence, &selection).map(|made| made.bytes)
}
