//! The `metrics` recorder: a container's values go through the facade straight into the slots of the pending row.
//!
//! One cgroup is read at a time, so one row and one handle a column do for all of them: `commit` says whose row it was and
//! empties it. (A row and handles for each cgroup took 18 KB of it.) A value set through a handle is an atomic store. Whatever else is
//! emitted through the facade (the agent's own metrics) goes on to Prometheus and, by `own`, into the `metrics` table. `prove` is the canary that sampling
//! waits for: values set with no recorder installed vanish silently, and a recorder is only as good as its row.

use crate::catalogue::loose::Metric;
use crate::catalogue::{self, COLUMNS, ColumnIndex, Kind};
use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, Key, KeyName, Level, Metadata, Recorder, SharedString,
    Unit,
};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

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

/// The slots of the pending row. Written by handles, emptied by `take`.
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

    /// Sets columns to values that were copied out of an earlier row.
    pub fn set_all(&self, columns: &[u64; MASK_WORDS], values: &[u64]) {
        for (column, value) in set_bits(columns).zip(values) {
            self.values[column].store(*value, Ordering::Relaxed);
        }
        for (word, bits) in self.set.iter().zip(columns) {
            word.fetch_or(*bits, Ordering::Release);
        }
    }

    /// Appends the values that these columns have now, in column order.
    pub fn copy(&self, columns: &[u64; MASK_WORDS], out: &mut Vec<u64>) {
        out.extend(set_bits(columns).map(|column| self.values[column].load(Ordering::Relaxed)));
    }

    /// Moves the values that were set out of the row, in column order, and empties it. Returns their mask.
    pub fn take(&self, out: &mut Vec<u64>) -> [u64; MASK_WORDS] {
        let mut mask = [0; MASK_WORDS];
        for (bits, word) in mask.iter_mut().zip(&self.set) {
            *bits = word.swap(0, Ordering::Acquire);
        }
        self.copy(&mask, out);
        mask
    }
}

/// The columns of a mask, in order.
fn set_bits(mask: &[u64; MASK_WORDS]) -> impl Iterator<Item = ColumnIndex> + '_ {
    mask.iter().enumerate().flat_map(|(word, bits)| {
        let mut rest = *bits;
        std::iter::from_fn(move || {
            let bit = (rest != 0).then(|| rest.trailing_zeros() as usize)?;
            rest &= rest - 1;
            Some(word * 64 + bit)
        })
    })
}

/// One column of the row, as the facade's handles know it.
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

/// A registered column.
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

/// Tells our columns from whatever else bears such a name.
const TARGET: &str = "fgm::row";
static METADATA: Metadata<'static> = Metadata::new(TARGET, Level::INFO, None);

/// What the agent keeps of the recorder: the pending row, and the rest for Prometheus.
#[derive(Clone)]
pub struct Series {
    row: Arc<Row>,
    own: Arc<Own>,
    prometheus: PrometheusHandle,
}

/// The recorder itself, given to the facade.
pub struct FgmRecorder {
    row: Arc<Row>,
    own: Arc<Own>,
    columns: HashMap<&'static str, (ColumnIndex, Kind)>,
    rest: PrometheusRecorder,
}

impl FgmRecorder {
    /// A slot for a key of ours: a column's name.
    fn slot(&self, key: &Key, metadata: &Metadata<'_>) -> Option<Arc<Slot>> {
        let (column, _) = *self.columns.get(key.name()).filter(|_| metadata.target() == TARGET)?;
        Some(Arc::new(Slot { row: self.row.clone(), column }))
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
        self.slot(key, metadata).map_or_else(
            || self.own.counter(key, self.rest.register_counter(key, metadata)),
            Counter::from_arc,
        )
    }

    fn register_gauge(&self, key: &Key, metadata: &Metadata<'_>) -> Gauge {
        self.slot(key, metadata)
            .map_or_else(|| self.own.gauge(key, self.rest.register_gauge(key, metadata)), Gauge::from_arc)
    }

    fn register_histogram(&self, key: &Key, metadata: &Metadata<'_>) -> Histogram {
        self.own.histogram(key, self.rest.register_histogram(key, metadata))
    }
}

/// A recorder and its other end, not installed yet.
pub fn build() -> (FgmRecorder, Series) {
    let rest = PrometheusBuilder::new().build_recorder();
    let row = Arc::new(Row::new());
    let own = Arc::new(Own::default());
    let series = Series { row: row.clone(), own: own.clone(), prometheus: rest.handle() };
    let columns = catalogue::columns().map(|(i, _, c)| (c.name, (i, c.kind))).collect();
    (FgmRecorder { row, own, columns, rest }, series)
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
    /// The pending row, and a handle for each column of the catalogue. To be asked for once, when the recorder is installed.
    pub fn handles(&self) -> (Arc<Row>, Vec<Handle>) {
        let handles = metrics::with_recorder(|r| {
            catalogue::columns()
                .map(|(_, _, column)| {
                    let key = Key::from_static_name(column.name);
                    match column.kind {
                        Kind::Counter => Handle::Counter(r.register_counter(&key, &METADATA)),
                        Kind::Gauge | Kind::Limit => Handle::Gauge(r.register_gauge(&key, &METADATA)),
                    }
                })
                .collect()
        });
        (self.row.clone(), handles)
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
        let (row, handles) = self.handles();
        for handle in &handles {
            handle.set(SET);
        }
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
        let mut left = Vec::new();
        assert_eq!(series.row.take(&mut left), [0; MASK_WORDS], "{left:?}");
    }

    #[test]
    fn the_canary_dies_when_it_is_not() {
        let (_recorder, series) = build();
        let other = PrometheusBuilder::new().build_recorder();
        let e = metrics::with_local_recorder(&other, || series.prove()).expect_err("must fail");
        assert!(matches!(e, RecorderError::Canary { got: None, .. }), "{e}");
    }

    #[test]
    fn values_are_taken_once_and_a_copy_of_some_comes_back() {
        let (recorder, series) = build();
        metrics::with_local_recorder(&recorder, || {
            let (row, handles) = series.handles();
            handles[0].set(11);
            handles[COLUMNS - 1].set(12);
            let mut last = [0; MASK_WORDS];
            last[(COLUMNS - 1) / 64] |= 1 << ((COLUMNS - 1) % 64);
            let (mut copy, mut values) = (Vec::new(), Vec::new());
            row.copy(&last, &mut copy);
            let mask = row.take(&mut values);
            assert_eq!((copy.as_slice(), values.as_slice()), ([12].as_slice(), [11, 12].as_slice()));
            assert_eq!(mask.iter().map(|w| w.count_ones()).sum::<u32>(), 2);
            assert_eq!(row.take(&mut values), [0; MASK_WORDS]);
            handles[COLUMNS - 1].set(13);
            row.take(&mut values);
            row.set_all(&last, &copy);
            let mut again = Vec::new();
            assert_eq!((row.take(&mut again), again), (last, vec![12]));
        });
    }

    #[test]
    fn a_name_of_ours_from_somebody_else_is_no_column() {
        let (recorder, series) = build();
        metrics::with_local_recorder(&recorder, || {
            metrics::counter!("cpu_stat_usage_usec").absolute(5);
            assert_eq!(series.row.take(&mut Vec::new()), [0; MASK_WORDS]);
        });
        assert!(series.render().contains("cpu_stat_usage_usec 5"), "{}", series.render());
    }

    #[test]
    fn other_metrics_go_to_prometheus() {
        let (recorder, series) = build();
        metrics::with_local_recorder(&recorder, || metrics::counter!("fgm_test_total").increment(3));
        assert!(series.render().contains("fgm_test_total 3"), "{}", series.render());
    }
}
