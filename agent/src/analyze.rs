//! What a line does over time: whether it repeats, where it changed, where it is going and when it will be at its limit.
//!
//! Pure: points of one line in (as [`crate::timeseries`] makes them), findings out. All of it is scale-free (no threshold in
//! a metric's own units), says nothing rather than something that chance, a ramp or a step would say as well, and never
//! mixes two lines. Works on a [`Grid`] of at most [`MOST_CELLS`] cells. Called by `viewer/analyses`.

mod changepoint;
mod periodicity;
mod trend;

pub use changepoint::{Change, Changes, changes};
pub use periodicity::{LEAST_CYCLES, Period, period};
pub use trend::{Forecast, Trend, forecast, trend};

use crate::timeseries::Point;

/// The search for change points looks at each pair of cells: half a million.
pub const MOST_CELLS: usize = 1024;
/// Fewer say nothing.
const LEAST_CELLS: usize = 32;
/// So much of a grid must have readings.
const LEAST_SHARE: f64 = 0.6;

/// A line in cells of equal length, from its first to its last point; None = nothing was read there.
#[derive(Clone, Debug, PartialEq)]
pub struct Grid {
    pub from_us: i64,
    pub step_us: i64,
    pub cells: Vec<Option<f64>>,
}

impl Grid {
    /// The finest grid in which most cells hold a point. None where there are too few points for any.
    pub fn new(points: &[Point]) -> Option<Self> {
        let (first, last) = (points.first()?.t_us, points.last()?.t_us);
        let span = last.checked_sub(first).filter(|span| *span > 0)?;
        let mut step_us = (span / i64::try_from(MOST_CELLS - 1).ok()?).max(1);
        loop {
            let n = usize::try_from(span / step_us).ok()? + 1;
            if n < LEAST_CELLS {
                return None;
            }
            let mut sums = vec![(0.0, 0u32); n];
            for p in points.iter().filter(|p| p.value.is_finite()) {
                if let Some(cell) =
                    usize::try_from((p.t_us - first) / step_us).ok().and_then(|i| sums.get_mut(i))
                {
                    *cell = (cell.0 + p.value, cell.1 + 1);
                }
            }
            let held = sums.iter().filter(|(_, n)| *n > 0).count();
            if real(held) >= LEAST_SHARE * real(n) && held >= LEAST_CELLS {
                let cells = sums.into_iter().map(|(sum, n)| (n > 0).then(|| sum / f64::from(n))).collect();
                return Some(Self { from_us: first, step_us, cells });
            }
            // gently, so that a grid just wider than the readings' own rhythm is met
            step_us += step_us / 4 + 1;
        }
    }

    /// Cells that hold something: place and value.
    fn held(&self) -> Vec<(f64, f64)> {
        self.cells.iter().enumerate().filter_map(|(i, v)| Some((real(i), (*v)?))).collect()
    }

    /// When a cell begins.
    fn at_us(&self, cell: usize) -> i64 {
        i64::try_from(cell)
            .ok()
            .and_then(|i| i.checked_mul(self.step_us))
            .map_or(i64::MAX, |us| self.from_us + us)
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts and µs, far below 2^53")]
fn real(n: impl TryInto<i64>) -> f64 {
    n.try_into().unwrap_or(i64::MAX) as f64
}

/// Value range of what is there.
fn range_of(held: &[(f64, f64)]) -> f64 {
    let (low, high) =
        held.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), (_, y)| (l.min(*y), h.max(*y)));
    if high > low { high - low } else { 0.0 }
}

/// Least squares: (level at 0, slope).
fn line(held: &[(f64, f64)]) -> (f64, f64) {
    let n = real(held.len()).max(1.0);
    let (mx, my) = held.iter().fold((0.0, 0.0), |(a, b), (x, y)| (a + x / n, b + y / n));
    let (xx, xy) =
        held.iter().fold((0.0, 0.0), |(a, b), (x, y)| (a + (x - mx) * (x - mx), b + (x - mx) * (y - my)));
    let slope = if xx > 0.0 { xy / xx } else { 0.0 };
    (my - slope * mx, slope)
}

/// Correlation of neighbouring cells, 0 to just below 1.
fn persistence(residuals: &[(f64, f64)]) -> f64 {
    let square: f64 = residuals.iter().map(|(_, r)| r * r).sum::<f64>() / real(residuals.len()).max(1.0);
    let pairs: Vec<f64> =
        residuals.windows(2).filter(|w| w[1].0 - w[0].0 < 1.5).map(|w| w[0].1 * w[1].1).collect();
    if pairs.is_empty() || square <= 0.0 {
        return 0.0;
    }
    (pairs.iter().sum::<f64>() / real(pairs.len()) / square).clamp(0.0, 0.9999)
}

fn median(values: &mut [f64]) -> f64 {
    if values.is_empty() {
        return 0.0;
    }
    let middle = values.len() / 2;
    *values.select_nth_unstable_by(middle, f64::total_cmp).1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::Cause;

    /// The same numbers each time: xorshift, uniform in 0..1.
    pub struct Dice(pub u64);

    impl Dice {
        pub fn roll(&mut self) -> f64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            real(self.0 >> 11) / real(1u64 << 53)
        }

        /// Mean 0, deviation 1, nearly normal.
        pub fn noise(&mut self) -> f64 {
            (0..12).map(|_| self.roll()).sum::<f64>() - 6.0
        }
    }

    /// A reading each second.
    pub fn seconds(values: impl IntoIterator<Item = f64>) -> Vec<Point> {
        let point = |(i, value): (i64, f64)| Point {
            t_us: i * 1_000_000,
            value,
            span_us: 0,
            cause: Cause::Base,
            cut: false,
        };
        (0..).zip(values).map(point).collect()
    }

    pub fn grid(values: impl IntoIterator<Item = f64>) -> Grid {
        Grid::new(&seconds(values)).expect("enough")
    }

    #[test]
    fn a_grid_is_as_fine_as_the_readings_are() {
        let g = grid((0..900).map(f64::from));
        assert!((850_000..=1_100_000).contains(&g.step_us), "{}", g.step_us);
        assert!(Grid::new(&seconds((0..20).map(f64::from))).is_none(), "too few");
        assert!(Grid::new(&[]).is_none());
        // 50 Hz around an event in the middle, 1 Hz elsewhere: the slow part decides
        let mut points = seconds((0..300).map(f64::from));
        let event = points[150];
        points.extend((0..500).map(|i| Point { t_us: 150_000_000 + i * 20_000, ..event }));
        points.sort_by_key(|p| p.t_us);
        let g = Grid::new(&points).expect("enough");
        assert!(
            g.step_us >= 500_000 && g.cells.iter().flatten().count() * 10 >= g.cells.len() * 6,
            "{}",
            g.step_us
        );
    }
}
