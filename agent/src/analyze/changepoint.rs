//! Where a line changed: its level, or how it climbs.
//!
//! The line is cut into straight pieces so that the squares that are left, and a price for each cut, are the least (optimal
//! partitioning, Jackson 2005: exact, since all pairs of cells are looked at). The price follows from the noise, which is
//! measured between neighbours, so that a ramp is one piece and a spike is none. No more than [`MOST`] are told.

use super::{Grid, median, range_of, real};
use serde::Serialize;

/// Beyond it a line does not change, it is restless: the largest are told, and that there are more.
const MOST: usize = 20;
/// Cells of a piece at the least. The running median before takes spikes of up to two away.
const LEAST: usize = 5;
/// Of the range: below it two pieces are as good as one, whatever the noise.
const FLOOR: f64 = 0.01;
/// Price of a cut in squares of noise, times ln n: a piece has a level, a slope and a place, and neighbours depend on one
/// another after the running median.
const PRICE: f64 = 6.0;

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Change {
    /// The first cell that belongs to what came after, as exact as `Changes::within_us`.
    pub t_us: i64,
    /// `step` or `slope`.
    pub kind: &'static str,
    /// Levels at the two sides of it.
    pub before: f64,
    pub after: f64,
    /// Per second.
    pub slope_before: f64,
    pub slope_after: f64,
    /// Size against the noise: of a step the jump in deviations, of a slope by how much it would miss after as long again.
    pub size: f64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Changes {
    pub changes: Vec<Change>,
    /// How many more there are, smaller ones.
    pub left_out: usize,
    pub within_us: i64,
}

/// In time order.
pub fn changes(grid: &Grid) -> Changes {
    let pieces = pieces(grid);
    let seconds = real(grid.step_us) / 1e6;
    let noise = pieces.noise.max(f64::MIN_POSITIVE);
    let mut all: Vec<Change> = pieces
        .fits
        .windows(2)
        .map(|w| {
            let (a, b) = (&w[0], &w[1]);
            let (before, after) = (a.at(b.first), b.at(b.first));
            let jump = (after - before).abs();
            let missed = (b.slope - a.slope).abs() * (b.last - b.first);
            let kind = if jump >= missed / 2.0 { "step" } else { "slope" };
            let size = if kind == "step" { jump } else { missed } / noise;
            let (slope_before, slope_after) = (a.slope / seconds, b.slope / seconds);
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a cell's place")]
            Change {
                t_us: grid.at_us(b.first as usize),
                kind,
                before,
                after,
                slope_before,
                slope_after,
                size,
            }
        })
        .collect();
    let left_out = all.len().saturating_sub(MOST);
    all.sort_by(|a, b| b.size.total_cmp(&a.size));
    all.truncate(MOST);
    all.sort_by_key(|c| c.t_us);
    Changes { changes: all, left_out, within_us: grid.step_us }
}

/// The cell with which the last piece begins.
pub(super) fn last_piece(grid: &Grid) -> f64 {
    pieces(grid).fits.last().map_or(0.0, |f| f.first)
}

struct Fit {
    /// Places of its first and last cell.
    first: f64,
    last: f64,
    level: f64,
    slope: f64,
}

impl Fit {
    fn at(&self, x: f64) -> f64 {
        self.level + self.slope * x
    }
}

struct Pieces {
    fits: Vec<Fit>,
    noise: f64,
}

fn pieces(grid: &Grid) -> Pieces {
    let raw = grid.held();
    let range = range_of(&raw);
    let n = raw.len();
    if n < 2 * LEAST || range <= 0.0 {
        return Pieces { fits: Vec::new(), noise: 0.0 };
    }
    let mut apart: Vec<f64> = raw.windows(2).map(|w| (w[1].1 - w[0].1).abs()).collect();
    // a climb is no noise: what neighbours differ by as a rule is taken away first
    let mut steps: Vec<f64> = raw.windows(2).map(|w| w[1].1 - w[0].1).collect();
    let usual = median(&mut steps);
    for (a, w) in apart.iter_mut().zip(raw.windows(2)) {
        *a = (w[1].1 - w[0].1 - usual).abs();
    }
    let noise = (median(&mut apart) / (0.6745 * std::f64::consts::SQRT_2)).hypot(FLOOR * range);
    // In a range of one, so that squares neither vanish nor overflow.
    let base = raw[0].1;
    let smooth: Vec<(f64, f64)> = (0..n)
        .map(|i| {
            let mut near: Vec<f64> =
                raw[i.saturating_sub(2)..(i + 3).min(n)].iter().map(|(_, y)| (y - base) / range).collect();
            (raw[i].0, median(&mut near))
        })
        .collect();
    let sums = Sums::of(&smooth);
    let price = PRICE * real(n).ln() * (noise / range).powi(2);
    // best[i]: least cost of the first i cells, and where the last piece of that begins
    let mut best = vec![(0.0, 0usize); n + 1];
    for end in LEAST..=n {
        let starts = (0..=end - LEAST).filter(|s| *s == 0 || *s >= LEAST);
        let of = |start: usize| {
            let earlier = if start == 0 { 0.0 } else { best[start].0 + price };
            (earlier + sums.left(start, end), start)
        };
        best[end] = starts.map(of).min_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or((f64::INFINITY, 0));
    }
    let mut fits = Vec::new();
    let mut end = n;
    while end > 0 {
        let start = best[end].1;
        let (level, slope) = super::line(&smooth[start..end]);
        fits.push(Fit {
            first: smooth[start].0,
            last: smooth[end - 1].0,
            level: base + level * range,
            slope: slope * range,
        });
        end = start;
    }
    fits.reverse();
    Pieces { fits, noise }
}

/// Running sums, so that what is left of any stretch beside its best straight line costs a moment.
struct Sums(Vec<[f64; 5]>);

impl Sums {
    fn of(cells: &[(f64, f64)]) -> Self {
        let mut all = vec![[0.0; 5]];
        for (x, y) in cells {
            let last = all[all.len() - 1];
            let own = [*x, *y, x * x, x * y, y * y];
            all.push(std::array::from_fn(|i| last[i] + own[i]));
        }
        Self(all)
    }

    fn left(&self, start: usize, end: usize) -> f64 {
        let n = real(end - start);
        let [x, y, xx, xy, yy] = std::array::from_fn(|i| self.0[end][i] - self.0[start][i]);
        let (vx, vxy, vy) = (xx - x * x / n, xy - x * y / n, yy - y * y / n);
        (vy - if vx > 0.0 { vxy * vxy / vx } else { 0.0 }).max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Dice, grid};
    use super::*;

    fn at(values: impl IntoIterator<Item = f64>) -> Vec<(i64, &'static str)> {
        changes(&grid(values)).changes.iter().map(|c| (c.t_us / 1_000_000, c.kind)).collect()
    }

    #[test]
    fn a_step_and_a_bend_are_found_where_they_are() {
        let mut dice = Dice(11);
        for (scale, level) in [(1.0, 0.0), (1e-6, 0.0), (1e12, 1e13)] {
            let mut scaled = |f: &dyn Fn(i32) -> f64| {
                at((0..600).map(|i| level + scale * (f(i) + dice.noise())).collect::<Vec<_>>())
            };
            let step = scaled(&|i| if i < 250 { 0.0 } else { 10.0 });
            assert!(matches!(step[..], [(247..=253, "step")]), "{step:?}");
            let bend = scaled(&|i| if i < 300 { 0.0 } else { f64::from(i - 300) });
            assert!(matches!(bend[..], [(290..=312, "slope")]), "{bend:?}");
            let both = scaled(&|i| {
                if i < 200 {
                    0.0
                } else if i < 400 {
                    20.0
                } else {
                    -15.0
                }
            });
            assert!(matches!(both[..], [(197..=203, "step"), (397..=403, "step")]), "{both:?}");
        }
    }

    #[test]
    fn noise_a_ramp_and_a_spike_have_none() {
        let mut wrong = 0;
        for seed in 1..=100u64 {
            let mut dice = Dice(seed * 0x9E37_79B9);
            wrong += at((0..600).map(|_| dice.noise()).collect::<Vec<_>>()).len();
            wrong += at((0..600).map(|i| f64::from(i) * 0.3 + dice.noise()).collect::<Vec<_>>()).len();
        }
        assert!(wrong <= 2, "{wrong} in 200 lines");
        assert_eq!(at((0..600).map(|i| f64::from(i) * 1e9)), [], "a clean ramp");
        assert_eq!(at((0..600).map(|i| if (300..302).contains(&i) { 1e6 } else { 5.0 })), [], "a spike");
        assert_eq!(at((0..600).map(|_| 5.0)), [], "a constant");
    }

    #[test]
    fn a_change_says_from_what_to_what() {
        let told = changes(&grid((0..600).map(|i| if i < 300 { 100.0 } else { 40.0 })));
        let [c] = told.changes[..] else { panic!("{told:?}") };
        assert!((c.before - 100.0).abs() < 1.0 && (c.after - 40.0).abs() < 1.0, "{c:?}");
        assert!(c.slope_before.abs() < 0.1 && told.left_out == 0 && told.within_us < 1_500_000);
    }

    #[test]
    fn a_restless_line_tells_its_largest_and_that_there_are_more() {
        let told = changes(&grid((0..1000).map(|i| f64::from((i / 20) % 2 * (5 + i / 100)))));
        assert_eq!(told.changes.len(), MOST);
        assert!(told.left_out > 10 && told.changes.is_sorted_by_key(|c| c.t_us), "{}", told.left_out);
    }
}
