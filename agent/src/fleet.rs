//! What many nodes have put into a bucket, as a [`View`] that `query` reads like a folder's.
//!
//! Which files there are is known by their names: cluster, table, date, hour and node are left out before anything of them is
//! fetched. Of a file its end comes first, with the footer, and of a small one all that is wanted; many at once. What a store
//! did not answer is never left out in silence: [`Fleet::well`] tells of it after the answer is made. Reads only. Called by `cli`.

mod far;

use crate::bucket::{Bucket, BucketError, Counts, Object};
use crate::config::Ship;
use crate::names::Table;
use crate::schema;
use crate::segment::{Distant, HOUR_US, Merged, Origin, Segment, SegmentName, hour_of};
use crate::store::{View, part};
use far::FarFile;
use futures_util::{StreamExt, TryStreamExt, stream};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::runtime::Runtime;

/// Requests that are under way at once.
const AT_ONCE: usize = 32;
/// Files that are open at once: each has its footer in memory, some 100 KB.
pub const FILES_AT_ONCE: usize = 256;
/// A range of more days is looked for by one LIST of all of them.
const DAYS: i64 = 62;
/// So many hours of a day are looked for one by one.
const HOURS: usize = 4;
const DAY_US: i64 = 24 * HOUR_US;
const MERGED: &str = "v1";
/// Folder of the bundles of incidents.
pub const BUNDLES: &str = "bundles";

#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    #[error(transparent)]
    Bucket(#[from] BucketError),
    #[error("cannot start the threads that read the bucket: {source}")]
    Threads { source: std::io::Error },
    #[error("not all of {url} could be read, so that the answer would be a wrong one: {reason}")]
    Trouble { url: String, reason: String },
}

/// Whose files; what is empty does not narrow.
#[derive(Clone, Debug, Default)]
pub struct Who {
    pub cluster: Option<String>,
    pub node: Option<String>,
}

/// A file of `v1/` in the bucket, as its name tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub table: Table,
    pub cluster: String,
    pub node: String,
    pub hour_us: i64,
    pub object: Object,
}

impl Found {
    /// `v1/table=T/cluster=C/date=D/hour=H/node=N/<boot>-<n>.parquet`.
    fn parse(object: Object) -> Option<Self> {
        let mut parts = object.name.split('/');
        let mut next = |key: &str| parts.next()?.strip_prefix(key).map(str::to_owned);
        next(MERGED)?;
        let table = next("table=")?;
        let table = Table::ALL.into_iter().find(|t| t.as_str() == table)?;
        let (cluster, date, hour, node) = (next("cluster=")?, next("date=")?, next("hour=")?, next("node=")?);
        let file = next("")?;
        let hour_us = format!("{date}T{hour}:00:00Z").parse::<jiff::Timestamp>().ok()?.as_microsecond();
        SegmentName::parse(&file).filter(|_| parts.next().is_none())?;
        Some(Self { table, cluster, node, hour_us, object })
    }

    fn is_wanted(&self, (from_us, to_us): (i64, i64), who: &Who) -> bool {
        self.hour_us <= to_us
            && self.hour_us.saturating_add(HOUR_US) > from_us
            && who.node.as_deref().is_none_or(|n| part(n, "unknown") == self.node)
    }
}

/// An incident with its samples, as its name tells it: `bundles/cluster=C/date=D/node=N/<id>.r<revision>.parquet`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    pub id: String,
    pub revision: u32,
    pub node: String,
    pub object: Object,
}

impl Bundle {
    fn parse(object: Object) -> Option<Self> {
        let (folder, file) = object.name.rsplit_once('/')?;
        let node = folder.rsplit_once("/node=")?.1.to_owned();
        let (id, revision) = file.strip_suffix(".parquet")?.rsplit_once(".r")?;
        let (id, revision) = (id.to_owned(), revision.parse().ok()?);
        Some(Self { id, revision, node, object })
    }
}

type Trouble = Arc<Mutex<Option<String>>>;

pub struct Fleet {
    bucket: Bucket,
    runtime: Arc<Runtime>,
    trouble: Trouble,
}

impl Fleet {
    pub fn open(settings: &Ship) -> Result<Self, FleetError> {
        Self::over(Bucket::open(settings)?)
    }

    pub fn over(bucket: Bucket) -> Result<Self, FleetError> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = Arc::new(runtime.map_err(|source| FleetError::Threads { source })?);
        Ok(Self { bucket, runtime, trouble: Trouble::default() })
    }

    pub fn url(&self) -> &str {
        self.bucket.url()
    }

    pub fn counts(&self) -> Counts {
        self.bucket.counts()
    }

    /// Whether all was read that had to be.
    pub fn well(&self) -> Result<(), FleetError> {
        let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let url = self.bucket.url().to_owned();
        trouble.map_or(Ok(()), |reason| Err(FleetError::Trouble { url, reason }))
    }

    /// Files of a table that may have rows of a time, the oldest first.
    pub fn files(&self, table: Table, range: (i64, i64), who: &Who) -> Result<Vec<Found>, FleetError> {
        let root = format!("{MERGED}/table={}", table.as_str());
        self.runtime.block_on(async {
            let clusters = match &who.cluster {
                Some(cluster) => vec![format!("{root}/cluster={}", part(cluster, "default"))],
                None => self.bucket.folders(&root).await?,
            };
            let folders = clusters.iter().flat_map(|cluster| folders(cluster, range));
            let listed: Vec<Vec<Object>> = stream::iter(folders)
                .map(|folder| async move { self.bucket.list(&folder).await })
                .buffered(AT_ONCE)
                .try_collect()
                .await?;
            let found = listed.into_iter().flatten().filter_map(Found::parse);
            let mut found: Vec<Found> =
                found.filter(|f| f.table == table && f.is_wanted(range, who)).collect();
            found.sort_by(|a, b| (a.hour_us, &a.object.name).cmp(&(b.hour_us, &b.object.name)));
            Ok(found)
        })
    }

    /// These files, their ends in memory. `columns` are those that will be asked for; `None` = all of a file that is small.
    pub fn view(
        &self,
        files: &[Found],
        columns: Option<&'static [&'static str]>,
    ) -> Result<View, FleetError> {
        let far = self.warmed(files.iter().map(|f| (&f.object, f.table)), columns)?;
        let segments = files.iter().zip(far).filter_map(|(f, far)| segment(f, far)).collect();
        Ok(View { segments, ..View::default() })
    }

    fn warmed<'a>(
        &self,
        objects: impl Iterator<Item = (&'a Object, Table)>,
        columns: Option<&'static [&'static str]>,
    ) -> Result<Vec<Distant>, FleetError> {
        let far: Vec<Arc<FarFile>> = objects
            .map(|(object, table)| {
                let (bucket, runtime) = (self.bucket.clone(), self.runtime.clone());
                Arc::new(FarFile::new(bucket, runtime, object, table, columns, self.trouble.clone()))
            })
            .collect();
        self.runtime.block_on(
            stream::iter(&far).map(|file| file.warm()).buffer_unordered(AT_ONCE).try_collect::<Vec<()>>(),
        )?;
        Ok(far.into_iter().map(|far| Distant(far)).collect())
    }

    /// Bundles of incidents of a time, the latest of each.
    pub fn bundles(&self, range: (i64, i64), who: &Who) -> Result<Vec<Bundle>, FleetError> {
        self.runtime.block_on(async {
            let clusters = match &who.cluster {
                Some(cluster) => vec![format!("{BUNDLES}/cluster={}", part(cluster, "default"))],
                None => self.bucket.folders(BUNDLES).await?,
            };
            let folders = clusters.iter().flat_map(|cluster| days(cluster, range));
            let listed: Vec<Vec<Object>> = stream::iter(folders)
                .map(|folder| async move { self.bucket.list(&folder).await })
                .buffered(AT_ONCE)
                .try_collect()
                .await?;
            let mut latest: BTreeMap<String, Bundle> = BTreeMap::new();
            for bundle in listed.into_iter().flatten().filter_map(Bundle::parse) {
                let is_wanted = who.node.as_deref().is_none_or(|n| part(n, "unknown") == bundle.node);
                if is_wanted && latest.get(&bundle.id).is_none_or(|have| have.revision < bundle.revision) {
                    latest.insert(bundle.id.clone(), bundle);
                }
            }
            Ok(latest.into_values().collect())
        })
    }

    /// The ends of some bundles, to read their footers by.
    pub fn ends(&self, bundles: &[Bundle]) -> Result<Vec<Origin>, FleetError> {
        let far = self.warmed(bundles.iter().map(|b| (&b.object, Table::Samples)), Some(&[]))?;
        let origin =
            |(b, far): (&Bundle, Distant)| Origin { path: PathBuf::from(&b.object.name), far: Some(far) };
        Ok(bundles.iter().zip(far).map(origin).collect())
    }

    /// All objects below a folder of the bucket.
    pub fn list(&self, folder: &str) -> Result<Vec<Object>, FleetError> {
        Ok(self.runtime.block_on(self.bucket.list(folder))?)
    }

    /// The whole of an object.
    pub fn whole(&self, object: &Object) -> Result<bytes::Bytes, FleetError> {
        Ok(self.runtime.block_on(self.bucket.range(&object.name, 0..object.bytes))?)
    }
}

/// What is known of a file before its footer is: it has the rows of its hour and no others.
fn segment(found: &Found, far: Distant) -> Option<Segment> {
    let file = found.object.name.rsplit('/').next()?;
    let mut name = SegmentName::parse(file)?;
    // after a dot is what tells two files of one number apart
    name.boot.truncate(name.boot.find('.').unwrap_or(name.boot.len()));
    Some(Segment {
        table: found.table,
        path: PathBuf::from(&found.object.name),
        name,
        from_us: found.hour_us,
        to_us: found.hour_us + HOUR_US - 1,
        rows: 0,
        bytes: found.object.bytes,
        modified_ns: 0,
        journal: None,
        merged: Some(Merged { hour_us: found.hour_us, inputs: Vec::new() }),
        taken: Vec::new(),
        schema: schema::VERSION,
        far: Some(far),
    })
}

/// The folders of a cluster that a time is in: whole days, hours where there are few of a day.
fn folders(cluster: &str, (from_us, to_us): (i64, i64)) -> Vec<String> {
    let first = hour_of(from_us);
    if to_us < from_us {
        return Vec::new();
    }
    if from_us <= 0 || to_us.saturating_sub(first) > DAYS * DAY_US {
        return vec![cluster.to_owned()];
    }
    let hours = (first..=to_us).step_by(usize::try_from(HOUR_US).unwrap_or(usize::MAX));
    let days: BTreeSet<i64> = hours.clone().map(|h| h.div_euclid(DAY_US)).collect();
    let mut out = Vec::new();
    for day in days {
        let of_day: Vec<i64> = hours.clone().filter(|h| h.div_euclid(DAY_US) == day).collect();
        let at = |us, form: &str| jiff::Timestamp::from_microsecond(us).map(|t| t.strftime(form).to_string());
        let Ok(date) = at(day * DAY_US, "date=%Y-%m-%d") else { continue };
        if of_day.len() > HOURS {
            out.push(format!("{cluster}/{date}"));
            continue;
        }
        let hours = of_day.into_iter().filter_map(|h| at(h, "hour=%H").ok());
        out.extend(hours.map(|hour| format!("{cluster}/{date}/{hour}")));
    }
    out
}

/// The folders of a cluster's bundles that a time is in.
fn days(cluster: &str, (from_us, to_us): (i64, i64)) -> Vec<String> {
    let first = from_us.div_euclid(DAY_US);
    let last = to_us.div_euclid(DAY_US);
    if from_us <= 0 || last - first > DAYS {
        return vec![cluster.to_owned()];
    }
    let date =
        |day| jiff::Timestamp::from_microsecond(day * DAY_US).map(|t| t.strftime("%Y-%m-%d").to_string());
    (first..=last).filter_map(|day| Some(format!("{cluster}/date={}", date(day).ok()?))).collect()
}

#[cfg(test)]
mod tests;
