//! The `metrics` recorder: a container's values go through the facade straight into the slots of its pending row.
//!
//! Handles are registered once, when a cgroup is found; a value set through one is an atomic store. Whatever else is
//! emitted through the facade (the agent's own metrics) goes on to Prometheus and, by `own`, into the `metrics` table. `prove` is the canary that sampling
//! waits for: values set with no recorder installed vanish silently, and a recorder is only as good as its row.

use crate::catalogue::loose::Metric;
use crate::catalogue::{self, COLUMNS, ColumnIndex, Kind};
use crate::names::CgroupId;
use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, Key, KeyName, Level, Metadata, Recorder, SharedString,
    Unit,
};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

mod own;

use own::Own;

/// Words of a set-bit mask over all columns.
pub const MASK_WORDS: usize = COLUMNS.div_ceil(64);

#[derive(Debug, thiserror::Error)]
pub enum RecorderError {
    #[error("another metrics recorder is installed already; the agent must be the only one in its process")]
    Taken,
    #[error(
        "the metrics recorder did not deliver: {set} was set through the facade, the row holds {got:?}; refusing to record nothing"
    )]
    Canary { set: u64, got: Option<u64> },
}

/// The slots of one cgroup's pending row. Written by handles, emptied by `take`.
#[derive(Debug)]
pub struct Row {
    values: [AtomicU64; COLUMNS],
    set: [AtomicU64; MASK_WORDS],
}

impl Row {
    fn new() -> Self {
        Self {
            values: [const { AtomicU64::new(0) }; COLUMNS],
            set: [const { AtomicU64::new(0) }; MASK_WORDS],
        }
    }

    fn store(&self, column: ColumnIndex, value: u64) {
        self.values[column].store(value, Ordering::Relaxed);
        self.set[column / 64].fetch_or(1 << (column % 64), Ordering::Release);
    }

    /// Sets columns to the values that they had when they were set last.
    pub fn keep(&self, columns: [u64; MASK_WORDS]) {
        for (word, bits) in self.set.iter().zip(columns) {
            word.fetch_or(bits, Ordering::Release);
        }
    }

    /// Moves the values that were set out of the row, in column order, and empties it. Returns their mask.
    pub fn take(&self, out: &mut Vec<u64>) -> [u64; MASK_WORDS] {
        let mut mask = [0; MASK_WORDS];
        for (word, bits) in mask.iter_mut().enumerate() {
            *bits = self.set[word].swap(0, Ordering::Acquire);
            let mut rest = *bits;
            while rest != 0 {
                let column = word * 64 + rest.trailing_zeros() as usize;
                out.push(self.values[column].load(Ordering::Relaxed));
                rest &= rest - 1;
            }
        }
        mask
    }
}

/// One column of one row, as the facade's handles know it.
struct Slot {
    row: Arc<Row>,
    column: ColumnIndex,
}

impl CounterFn for Slot {
    /// The kernel's counters are absolute; an increment has no meaning for them.
    fn increment(&self, value: u64) {
        self.row.store(self.column, self.row.values[self.column].load(Ordering::Relaxed).wrapping_add(value));
    }

    fn absolute(&self, value: u64) {
        self.row.store(self.column, value);
    }
}

impl GaugeFn for Slot {
    fn increment(&self, value: f64) {
        self.set(f(self.row.values[self.column].load(Ordering::Relaxed)) + value);
    }

    fn decrement(&self, value: f64) {
        GaugeFn::increment(self, -value);
    }

    /// Exact up to 2^53: 8 PiB for a gauge of bytes.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "gauges of the catalogue are whole and not negative"
    )]
    fn set(&self, value: f64) {
        self.row.store(self.column, value as u64);
    }
}

#[expect(clippy::cast_precision_loss, reason = "exact up to 2^53, see GaugeFn::set")]
fn f(v: u64) -> f64 {
    v as f64
}

/// A registered column of one cgroup.
pub enum Handle {
    Counter(Counter),
    Gauge(Gauge),
}

impl Handle {
    pub fn set(&self, value: u64) {
        match self {
            Self::Counter(c) => c.absolute(value),
            Self::Gauge(g) => g.set(f(value)),
        }
    }
}

const LABEL: &str = "cgroup_id";
static METADATA: Metadata<'static> = Metadata::new("fgm", Level::INFO, None);

/// All pending rows, by cgroup.
#[derive(Default)]
struct Rows {
    by_cgroup: Mutex<HashMap<CgroupId, Arc<Row>>>,
}

impl Rows {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<CgroupId, Arc<Row>>> {
        self.by_cgroup.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the agent keeps of the recorder: it opens and closes series, and renders the rest for Prometheus.
#[derive(Clone)]
pub struct Series {
    rows: Arc<Rows>,
    own: Arc<Own>,
    prometheus: PrometheusHandle,
}

/// The recorder itself, given to the facade.
pub struct FgmRecorder {
    rows: Arc<Rows>,
    own: Arc<Own>,
    columns: HashMap<&'static str, (ColumnIndex, Kind)>,
    rest: PrometheusRecorder,
}

impl FgmRecorder {
    /// A slot for a key of ours: a column's name with the label of an open series.
    fn slot(&self, key: &Key) -> Option<Arc<Slot>> {
        let (column, _) = *self.columns.get(key.name())?;
        let id = key.labels().find(|l| l.key() == LABEL)?.value().parse().ok()?;
        let row = self.rows.lock().get(&CgroupId(id))?.clone();
        Some(Arc::new(Slot { row, column }))
    }
}

impl Recorder for FgmRecorder {
    fn describe_counter(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.rest.describe_counter(key, unit, description);
    }

    fn describe_gauge(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.rest.describe_gauge(key, unit, description);
    }

    fn describe_histogram(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.rest.describe_histogram(key, unit, description);
    }

    fn register_counter(&self, key: &Key, metadata: &Metadata<'_>) -> Counter {
        self.slot(key).map_or_else(
            || self.own.counter(key, self.rest.register_counter(key, metadata)),
            Counter::from_arc,
        )
    }

    fn register_gauge(&self, key: &Key, metadata: &Metadata<'_>) -> Gauge {
        self.slot(key)
            .map_or_else(|| self.own.gauge(key, self.rest.register_gauge(key, metadata)), Gauge::from_arc)
    }

    fn register_histogram(&self, key: &Key, metadata: &Metadata<'_>) -> Histogram {
        self.own.histogram(key, self.rest.register_histogram(key, metadata))
    }
}

/// A recorder and its other end, not installed yet.
pub fn build() -> (FgmRecorder, Series) {
    let rest = PrometheusBuilder::new().build_recorder();
    let rows = Arc::new(Rows::default());
    let own = Arc::new(Own::default());
    let series = Series { rows: rows.clone(), own: own.clone(), prometheus: rest.handle() };
    let columns = catalogue::columns().map(|(i, _, c)| (c.name, (i, c.kind))).collect();
    (FgmRecorder { rows, own, columns, rest }, series)
}

/// Installs the recorder for the whole process and proves that it is the installed one.
///
/// # Errors
/// Another recorder sits there, or a value set through the facade does not arrive in its row.
pub fn install() -> Result<Series, RecorderError> {
    let (recorder, series) = build();
    metrics::set_global_recorder(recorder).map_err(|_| RecorderError::Taken)?;
    series.prove()?;
    Ok(series)
}

impl Series {
    /// Opens a cgroup's series: its pending row, and a handle for each column of the catalogue.
    pub fn open(&self, id: CgroupId) -> (Arc<Row>, Vec<Handle>) {
        let row = self.rows.lock().entry(id).or_insert_with(|| Arc::new(Row::new())).clone();
        let label = metrics::Label::new(LABEL, id.to_string());
        let handles = metrics::with_recorder(|r| {
            catalogue::columns()
                .map(|(_, _, column)| {
                    let key = Key::from_parts(column.name, vec![label.clone()]);
                    match column.kind {
                        Kind::Counter => Handle::Counter(r.register_counter(&key, &METADATA)),
                        Kind::Gauge | Kind::Limit => Handle::Gauge(r.register_gauge(&key, &METADATA)),
                    }
                })
                .collect()
        });
        (row, handles)
    }

    /// Forgets a cgroup that has gone; its handles write into nothing from now on.
    pub fn close(&self, id: CgroupId) {
        self.rows.lock().remove(&id);
    }

    pub fn open_series(&self) -> usize {
        self.rows.lock().len()
    }

    /// The metrics of the agent itself as rows of the `metrics` table; gives the number of those that had no room.
    pub fn own(&self, out: &mut Vec<(Arc<Metric>, f64)>) -> u64 {
        self.own.read(out)
    }

    /// The agent's own metrics in Prometheus' text format.
    pub fn render(&self) -> String {
        self.prometheus.render()
    }

    /// The canary: a value set through the facade must come out of the row it was meant for.
    fn prove(&self) -> Result<(), RecorderError> {
        const SET: u64 = 0x00c0_ffee;
        let id = CgroupId(u64::MAX);
        let (row, handles) = self.open(id);
        for handle in &handles {
            handle.set(SET);
        }
        self.close(id);
        let mut got = Vec::new();
        row.take(&mut got);
        match got.iter().find(|v| **v != SET).copied() {
            None if got.len() == COLUMNS => Ok(()),
            wrong => Err(RecorderError::Canary { set: SET, got: wrong.or(got.first().copied()) }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_canary_sings_when_the_recorder_is_there() {
        let (recorder, series) = build();
        metrics::with_local_recorder(&recorder, || series.prove()).expect("the canary");
        assert_eq!(series.open_series(), 0);
    }

    #[test]
    fn the_canary_dies_when_it_is_not() {
        let (_recorder, series) = build();
        let other = PrometheusBuilder::new().build_recorder();
        let e = metrics::with_local_recorder(&other, || series.prove()).expect_err("must fail");
        assert!(matches!(e, RecorderError::Canary { got: None, .. }), "{e}");
    }

    #[test]
    fn values_of_two_cgroups_do_not_mix_and_are_taken_once() {
        let (recorder, series) = build();
        metrics::with_local_recorder(&recorder, || {
            let (a, ha) = series.open(CgroupId(1));
            let (b, hb) = series.open(CgroupId(2));
            ha[0].set(11);
            ha[COLUMNS - 1].set(12);
            hb[0].set(21);
            let (mut va, mut vb) = (Vec::new(), Vec::new());
            let mask = a.take(&mut va);
            b.take(&mut vb);
            assert_eq!((va, vb), (vec![11, 12], vec![21]));
            assert_eq!(mask.iter().map(|w| w.count_ones()).sum::<u32>(), 2);
            let mut again = Vec::new();
            assert_eq!(a.take(&mut again), [0; MASK_WORDS]);
            assert!(again.is_empty());
        });
    }

    #[test]
    fn other_metrics_go_to_prometheus() {
        let (recorder, series) = build();
        metrics::with_local_recorder(&recorder, || metrics::counter!("fgm_test_total").increment(3));
        assert!(series.render().contains("fgm_test_total 3"), "{}", series.render());
    }
}
