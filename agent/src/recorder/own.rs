//! Metrics that are of no cgroup: what the agent tells of itself. Each goes to Prometheus and is kept here for a row of the
//! `metrics` table. Bounded: what finds no room is in Prometheus only, and counted.

use crate::catalogue::Kind;
use crate::catalogue::loose::Metric;
use metrics::{Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Series of the agent itself: it has some dozens; a label with a value without end would be a fault of ours.
const MAX_SERIES: usize = 1024;

/// The latest value: of a counter as it is, of a gauge the bits of its f64.
#[derive(Debug, Default)]
struct Cell(AtomicU64);

#[derive(Default)]
struct Table {
    cells: BTreeMap<Arc<Metric>, Arc<Cell>>,
    cut: u64,
}

#[derive(Default)]
pub(super) struct Own(Mutex<Table>);

fn series(key: &Key, end: &str, kind: Kind) -> Metric {
    let labels = key.labels().map(|l| (l.key().to_owned(), l.value().to_owned())).collect();
    Metric { name: format!("{}{end}", key.name()), kind: Some(kind.as_str()), labels }
}

impl Own {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cell(&self, metric: Metric) -> Option<Arc<Cell>> {
        let mut table = self.lock();
        if let Some(cell) = table.cells.get(&metric) {
            return Some(cell.clone());
        }
        if table.cells.len() >= MAX_SERIES {
            table.cut += 1;
            return None;
        }
        Some(table.cells.entry(Arc::new(metric)).or_default().clone())
    }

    pub fn counter(&self, key: &Key, rest: Counter) -> Counter {
        match self.cell(series(key, "", Kind::Counter)) {
            Some(cell) => Counter::from_arc(Arc::new(Both { cell, rest })),
            None => rest,
        }
    }

    pub fn gauge(&self, key: &Key, rest: Gauge) -> Gauge {
        match self.cell(series(key, "", Kind::Gauge)) {
            Some(cell) => Gauge::from_arc(Arc::new(Both { cell, rest })),
            None => rest,
        }
    }

    /// Of a histogram the table has the sum and the count; its quantiles are in Prometheus.
    pub fn histogram(&self, key: &Key, rest: Histogram) -> Histogram {
        let (sum, count) =
            (self.cell(series(key, "_sum", Kind::Gauge)), self.cell(series(key, "_count", Kind::Counter)));
        match (sum, count) {
            (Some(sum), Some(count)) => Histogram::from_arc(Arc::new(Distribution { sum, count, rest })),
            _ => rest,
        }
    }

    pub fn read(&self, out: &mut Vec<(Arc<Metric>, f64)>) -> u64 {
        let mut table = self.lock();
        out.extend(table.cells.iter().map(|(metric, cell)| {
            let bits = cell.0.load(Ordering::Relaxed);
            let is_counter = metric.kind == Some(Kind::Counter.as_str());
            (metric.clone(), if is_counter { super::f(bits) } else { f64::from_bits(bits) })
        }));
        std::mem::take(&mut table.cut)
    }
}

struct Both<T> {
    cell: Arc<Cell>,
    rest: T,
}

impl CounterFn for Both<Counter> {
    fn increment(&self, value: u64) {
        self.cell.0.fetch_add(value, Ordering::Relaxed);
        self.rest.increment(value);
    }

    fn absolute(&self, value: u64) {
        self.cell.0.fetch_max(value, Ordering::Relaxed);
        self.rest.absolute(value);
    }
}

impl Cell {
    fn update(&self, change: impl Fn(f64) -> f64) {
        let next = |bits| Some(change(f64::from_bits(bits)).to_bits());
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
    }
}

impl GaugeFn for Both<Gauge> {
    fn increment(&self, value: f64) {
        self.cell.update(|v| v + value);
        self.rest.increment(value);
    }

    fn decrement(&self, value: f64) {
        self.cell.update(|v| v - value);
        self.rest.decrement(value);
    }

    fn set(&self, value: f64) {
        self.cell.update(|_| value);
        self.rest.set(value);
    }
}

struct Distribution {
    sum: Arc<Cell>,
    count: Arc<Cell>,
    rest: Histogram,
}

impl HistogramFn for Distribution {
    fn record(&self, value: f64) {
        self.sum.update(|v| v + value);
        self.count.0.fetch_add(1, Ordering::Relaxed);
        self.rest.record(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recorder;

    #[test]
    fn what_the_agent_says_of_itself_is_in_prometheus_and_in_rows() {
        let (recorder, series) = recorder::build();
        metrics::with_local_recorder(&recorder, || {
            metrics::counter!("fgm_test_total", "what" => "a").increment(3);
            metrics::counter!("fgm_test_total", "what" => "a").increment(4);
            metrics::gauge!("fgm_test_gauge").set(0.5);
            metrics::gauge!("fgm_test_gauge").increment(1.0);
            metrics::histogram!("fgm_test_seconds").record(2.0);
            metrics::histogram!("fgm_test_seconds").record(0.25);
        });
        let mut rows = Vec::new();
        assert_eq!(series.own(&mut rows), 0);
        let got: Vec<_> = rows.iter().map(|(m, v)| (m.name.as_str(), m.kind, *v)).collect();
        assert_eq!(
            got,
            [
                ("fgm_test_gauge", Some("gauge"), 1.5),
                ("fgm_test_seconds_count", Some("counter"), 2.0),
                ("fgm_test_seconds_sum", Some("gauge"), 2.25),
                ("fgm_test_total", Some("counter"), 7.0),
            ]
        );
        assert_eq!(rows[3].0.labels, [("what".to_owned(), "a".to_owned())]);
        let text = series.render();
        assert!(
            text.contains("fgm_test_total{what=\"a\"} 7") && text.contains("fgm_test_gauge 1.5"),
            "{text}"
        );
    }

    #[test]
    fn beyond_the_bound_a_series_is_in_prometheus_only_and_counted() {
        let (recorder, series) = recorder::build();
        metrics::with_local_recorder(&recorder, || {
            for n in 0..MAX_SERIES + 5 {
                metrics::counter!("fgm_test_total", "n" => n.to_string()).increment(1);
            }
        });
        let mut rows = Vec::new();
        assert_eq!((series.own(&mut rows), rows.len()), (5, MAX_SERIES));
        assert!(series.render().contains(&format!("n=\"{}\"", MAX_SERIES + 4)));
    }
}
