//! Whether a line repeats, and how often.
//!
//! Two judges. The first is a periodogram by least squares (Lomb and Scargle, so that gaps cost nothing) held against the
//! spectrum that a line with the same persistence has by chance (red noise, as Torrence and Compo 1998 do): a ramp, a step
//! and a random walk have much power at low frequencies and none beyond what that allows. The second folds the line by the
//! period, after the mean over one period was taken away, and asks whether each cycle looks like the others: a step is in
//! one cycle alone. The second must always say so; what the first does not see (short pulses spread over many
//! frequencies, each of them low), it must say so loudly. Candidates are the peaks of both spectrum and autocorrelation.

use super::{Grid, line, persistence, range_of, real};
use serde::Serialize;
use std::f64::consts::TAU;

/// Fewer cycles could be chance.
pub const LEAST_CYCLES: f64 = 5.0;
/// Cells of a period at the least: beyond it the readings are too few to tell.
const LEAST_PERIOD: f64 = 3.0;
/// By chance once in a thousand lines, all frequencies together.
const CHANCE: f64 = 1e-3;
const CANDIDATES: usize = 6;
/// Agreement times the root of the cycles, from which on the cycles alone suffice: random walks do not reach it (a test).
const LOUD: f64 = 2.2;
/// Swing against all that the line moves. A ramp of whole pages is a staircase, whose steps are no period.
const LEAST_SWING: f64 = 0.02;
/// How much more of the line a multiple of the period must explain to be the period.
const BETTER: f64 = 0.1;
const MOST_BINS: f64 = 24.0;

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Period {
    pub period_us: i64,
    /// Share of what the line does beside its slow course that the repetition explains, 0 to 1.
    pub strength: f64,
    /// From the lowest to the highest point of the usual cycle, in the metric's unit.
    pub swing: f64,
    pub cycles: f64,
    /// Mean correlation of each cycle with all others, up to 1.
    pub agreement: f64,
    /// When a usual cycle is at its highest: the first such instant.
    pub peak_us: i64,
}

pub fn period(grid: &Grid) -> Option<Period> {
    let held = grid.held();
    let range = range_of(&held);
    let (level, slope) = line(&held);
    let rest: Vec<(f64, f64)> = held.iter().map(|(x, y)| (*x, y - level - slope * x)).collect();
    let square = rest.iter().map(|(_, r)| r * r).sum::<f64>() / real(rest.len());
    // what is left of a straight line is rounding
    if square.sqrt() <= 1e-9 * held.iter().map(|(_, y)| y.abs()).fold(range, f64::max) {
        return None;
    }
    let judged = |cells: f64, is_peak: bool| {
        fold(grid, cells)
            .filter(|f| (f.is_loud() || is_peak && f.repeats()) && f.swing >= LEAST_SWING * range)
    };
    let mut found: Option<(f64, Fold)> = None;
    let of_spectrum = peaks(&rest, square, real(grid.cells.len())).into_iter().map(|f| (1.0 / f, true));
    for (cells, is_peak) in of_spectrum.chain(echoes(grid, level, slope).into_iter().map(|lag| (lag, false)))
    {
        let Some(mut fold) = judged(cells, is_peak) else { continue };
        let mut whole = cells;
        for times in [2.0, 3.0, 4.0] {
            if let Some(longer) =
                judged(cells * times, is_peak).filter(|f| f.strength > fold.strength + BETTER)
            {
                (fold, whole) = (longer, cells * times);
            }
        }
        // of two that explain it alike the shorter: a multiple of a period repeats as well
        let is_better = |(known, best): &(f64, Fold)| {
            fold.strength > best.strength + BETTER
                || (whole < known * 0.9 && fold.strength > best.strength - BETTER)
        };
        if found.as_ref().is_none_or(is_better) {
            found = Some((whole, fold));
        }
    }
    let (cells, fold) = found?;
    #[expect(clippy::cast_possible_truncation, reason = "within the range")]
    let us = |cells: f64| (cells * real(grid.step_us)).round() as i64;
    Some(Period {
        period_us: us(cells),
        strength: fold.strength,
        swing: fold.swing,
        cycles: real(grid.cells.len()) / cells,
        agreement: fold.usual,
        peak_us: grid.from_us + us(fold.peak * cells),
    })
}

/// The frequencies (per cell) whose power chance does not explain, the strongest first.
fn peaks(rest: &[(f64, f64)], square: f64, n: f64) -> Vec<f64> {
    let rho = persistence(rest);
    let over = |frequency: f64| {
        let background = (1.0 - rho * rho) / (1.0 + rho * rho - 2.0 * rho * (TAU * frequency).cos());
        power(rest, frequency) / square / background
    };
    let step = 0.5 / n;
    let mut all = Vec::new();
    let mut frequency = LEAST_CYCLES / n;
    while frequency <= 1.0 / LEAST_PERIOD {
        all.push((frequency, over(frequency)));
        frequency += step;
    }
    let tries = real(all.len());
    let chance = |height: f64| (tries * (-height).exp()).min(1.0);
    let height = |i: usize| all.get(i).map_or(0.0, |(_, h)| *h);
    let mut out: Vec<(f64, f64)> = (0..all.len())
        .filter(|i| {
            height(*i) >= height(i.wrapping_sub(1))
                && height(*i) >= height(i + 1)
                && chance(height(*i)) < CHANCE
        })
        .map(|i| {
            let near = (-8..=8).map(|k| all[i].0 + f64::from(k) * step / 8.0).filter(|f| *f > 0.0);
            near.map(|f| (f, over(f))).max_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or(all[i])
        })
        .collect();
    // The largest movements first: what stands out most against a red background may be a ripple of the cells' own.
    out.sort_by(|a, b| power(rest, b.0).total_cmp(&power(rest, a.0)));
    out.truncate(CANDIDATES);
    out.into_iter().map(|(f, _)| f).collect()
}

/// The distances at which the line is most like itself, in cells.
fn echoes(grid: &Grid, level: f64, slope: f64) -> Vec<f64> {
    let rest: Vec<Option<f64>> =
        grid.cells.iter().enumerate().map(|(i, v)| v.map(|v| v - level - slope * real(i))).collect();
    let like = |lag: usize| {
        let pairs = rest.iter().zip(rest.get(lag..).unwrap_or_default());
        let (sum, n) =
            pairs.filter_map(|(a, b)| Some((*a)? * (*b)?)).fold((0.0, 0.0), |(s, n), p| (s + p, n + 1.0));
        if n > 0.0 { sum / n } else { 0.0 }
    };
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of the cells")]
    let (shortest, longest) = (LEAST_PERIOD as usize, (real(grid.cells.len()) / LEAST_CYCLES) as usize);
    let all: Vec<f64> = (0..=longest + 1).map(like).collect();
    let mut out: Vec<usize> = (shortest..=longest)
        .filter(|i| all[*i] > all[i - 1] && all[*i] >= all[i + 1] && all[*i] > 0.0)
        .collect();
    out.sort_by(|a, b| all[*b].total_cmp(&all[*a]));
    out.truncate(CANDIDATES);
    out.into_iter().map(real).collect()
}

/// Power of the best sine of that frequency; of white noise its mean is the variance.
fn power(rest: &[(f64, f64)], frequency: f64) -> f64 {
    let (mut cc, mut ss, mut cs, mut yc, mut ys) = (0.0, 0.0, 0.0, 0.0, 0.0);
    for (x, y) in rest {
        let (s, c) = (TAU * frequency * x).sin_cos();
        cc += c * c;
        ss += s * s;
        cs += c * s;
        yc += y * c;
        ys += y * s;
    }
    let d = cc * ss - cs * cs;
    if d <= 0.0 { 0.0 } else { (ss * yc * yc + cc * ys * ys - 2.0 * cs * yc * ys) / d / 2.0 }
}

struct Fold {
    strength: f64,
    swing: f64,
    /// How many whole cycles were compared, how much each is like the others, and how many are like them at all.
    cycles: f64,
    usual: f64,
    agree: f64,
    /// Phase of the highest point, 0 to 1.
    peak: f64,
}

impl Fold {
    /// Each cycle looks like the others.
    fn repeats(&self) -> bool {
        self.cycles >= LEAST_CYCLES - 1.0
            && self.usual > (1.2 / self.cycles.sqrt()).max(0.25)
            && self.agree >= 0.75 * self.cycles
    }

    /// So much that no spectrum is needed.
    fn is_loud(&self) -> bool {
        self.repeats() && self.usual > 0.5 && self.usual * self.cycles.sqrt() > LOUD
    }
}

/// The line folded by a period of so many cells.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bins and cycles of a grid")]
fn fold(grid: &Grid, cells: f64) -> Option<Fold> {
    let beside = without_mean(grid, cells);
    let n = real(grid.cells.len());
    let bins = cells.round().clamp(LEAST_PERIOD, MOST_BINS) as usize;
    let cycles = (n / cells).floor() as usize;
    if real(cycles) < LEAST_CYCLES - 1.0 {
        return None;
    }
    let mut of_cycle = vec![vec![(0.0, 0.0); bins]; cycles + 1];
    let mut sums = vec![(0.0, 0.0); bins];
    let place = |x: f64| {
        let turns = (x + 0.5) / cells;
        (turns as usize, ((turns.fract() * real(bins)) as usize).min(bins - 1))
    };
    for (x, y) in &beside {
        let (cycle, bin) = place(*x);
        for cell in [of_cycle.get_mut(cycle).map(|c| &mut c[bin]), sums.get_mut(bin)].into_iter().flatten() {
            *cell = (cell.0 + y, cell.1 + 1.0);
        }
    }
    let mean = |(sum, n): (f64, f64)| (n > 0.0).then(|| sum / n);
    let total: f64 = beside.iter().map(|(_, y)| y * y).sum();
    let left: f64 = beside.iter().map(|(x, y)| (y - mean(sums[place(*x).1]).unwrap_or(0.0)).powi(2)).sum();
    let free = real(beside.len()) - real(bins);
    if total <= 0.0 || free < 1.0 {
        return None;
    }
    let mut alike = Vec::new();
    for cycle in &of_cycle {
        let both: Vec<(f64, f64)> = cycle
            .iter()
            .zip(&sums)
            .filter_map(|(own, all)| Some((mean(*own)?, mean((all.0 - own.0, all.1 - own.1))?)))
            .collect();
        // a cycle of which half is missing says nothing
        if both.len() * 2 > bins && both.len() >= 3 {
            alike.push(correlation(&both));
        }
    }
    let counted = real(alike.len());
    let usual = alike.iter().sum::<f64>() / counted.max(1.0);
    let agree = real(alike.iter().filter(|r| **r > 0.0).count());
    let (lowest, highest) = sums
        .iter()
        .enumerate()
        .filter_map(|(i, s)| Some((i, mean(*s)?)))
        .fold(((0, f64::INFINITY), (0, f64::NEG_INFINITY)), |(low, high), at| {
            (if at.1 < low.1 { at } else { low }, if at.1 > high.1 { at } else { high })
        });
    Some(Fold {
        strength: (1.0 - left / free / (total / real(beside.len()))).clamp(0.0, 1.0),
        swing: highest.1 - lowest.1,
        cycles: counted,
        usual,
        agree,
        peak: (real(highest.0) + 0.5) / real(bins),
    })
}

/// The line without its mean over one period around each cell; the ends, which have no whole period around them, go.
fn without_mean(grid: &Grid, cells: f64) -> Vec<(f64, f64)> {
    let n = grid.cells.len();
    let mut sums = vec![(0.0, 0.0); n + 1];
    for (i, cell) in grid.cells.iter().enumerate() {
        let (v, one) = cell.map_or((0.0, 0.0), |v| (v, 1.0));
        sums[i + 1] = (sums[i].0 + v, sums[i].1 + one);
    }
    // sum over a stretch whose ends lie inside cells
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to n")]
    let upto = |x: f64| {
        let i = (x as usize).min(n);
        let part = x - real(i);
        let next = sums[(i + 1).min(n)];
        (sums[i].0 + part * (next.0 - sums[i].0), sums[i].1 + part * (next.1 - sums[i].1))
    };
    let half = cells / 2.0;
    grid.held()
        .into_iter()
        .filter_map(|(x, y)| {
            let (a, b) = (x + 0.5 - half, x + 0.5 + half);
            if a < 0.0 || b > real(n) {
                return None;
            }
            let (low, high) = (upto(a), upto(b));
            (high.1 - low.1 > cells / 2.0).then(|| (x, y - (high.0 - low.0) / (high.1 - low.1)))
        })
        .collect()
}

/// 0 where one of both does not move.
fn correlation(pairs: &[(f64, f64)]) -> f64 {
    let n = real(pairs.len());
    let (ma, mb) = pairs.iter().fold((0.0, 0.0), |(a, b), p| (a + p.0 / n, b + p.1 / n));
    let (mut ab, mut aa, mut bb) = (0.0, 0.0, 0.0);
    for (a, b) in pairs {
        ab += (a - ma) * (b - mb);
        aa += (a - ma).powi(2);
        bb += (b - mb).powi(2);
    }
    if aa <= 0.0 || bb <= 0.0 { 0.0 } else { ab / (aa * bb).sqrt() }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Dice, grid, seconds};
    use super::*;

    fn sine(i: u32, period: f64) -> f64 {
        (TAU * f64::from(i) / period).sin()
    }

    fn found(values: impl IntoIterator<Item = f64>) -> Option<f64> {
        period(&grid(values)).map(|p| real(p.period_us) / 1e6)
    }

    fn is_near(got: Option<f64>, wanted: f64) -> bool {
        got.is_some_and(|s| (s - wanted).abs() < wanted * 0.03)
    }

    /// From bytes to petabytes, and over a level a million times the swing.
    const SCALES: [(f64, f64); 4] = [(1.0, 0.0), (1e-3, 0.0), (1e12, 5e12), (1.0, 1e6)];

    #[test]
    fn a_ramp_a_step_and_a_constant_have_no_period() {
        for (scale, level) in SCALES {
            let scaled = |f: &dyn Fn(u32) -> f64| found((0..900).map(|i| level + scale * f(i)));
            assert_eq!(scaled(&|i| f64::from(i)), None, "a ramp");
            assert_eq!(scaled(&|i| -f64::from(i)), None, "a ramp that falls");
            assert_eq!(scaled(&|i| f64::from(i / 7 * 7)), None, "a ramp of whole pages");
            assert_eq!(scaled(&|i| f64::from(i).powi(2)), None, "growth");
            assert_eq!(scaled(&|i| (f64::from(i) / 150.0).exp()), None, "exponential growth");
            assert_eq!(scaled(&|_| 3.0), None, "a constant");
            for at in [10, 100, 300, 450, 700, 890] {
                assert_eq!(scaled(&|i| f64::from(u8::from(i >= at))), None, "a step at {at}");
                assert_eq!(scaled(&|i| f64::from(i.min(at))), None, "a ramp that stops at {at}");
                assert_eq!(
                    scaled(&|i| f64::from(u8::from((at..at + 40).contains(&i)))),
                    None,
                    "a pulse at {at}"
                );
            }
        }
    }

    #[test]
    fn noise_and_random_walks_have_no_period() {
        let (mut white, mut walks, mut stepped) = (0, 0, 0);
        for seed in 1..=60u64 {
            let mut dice = Dice(seed * 0x9E37_79B9);
            white += u32::from(found((0..600).map(|_| dice.noise())).is_some());
            let mut at = 0.0;
            let walk = (0..600).map(|_| {
                at += dice.noise();
                at
            });
            walks += u32::from(found(walk.collect::<Vec<_>>()).is_some());
            let step =
                (0..600u32).map(|i| 20.0 * f64::from(u8::from(i > 250)) + f64::from(i) * 0.05 + dice.noise());
            stepped += u32::from(found(step.collect::<Vec<_>>()).is_some());
        }
        // By chance one in a thousand for the first judge alone.
        assert!(white <= 1 && walks <= 1 && stepped <= 1, "{white} {walks} {stepped} of 60");
    }

    #[test]
    fn a_sine_is_found_at_any_scale_with_noise_a_ramp_and_gaps() {
        for (scale, level) in SCALES {
            let mut dice = Dice(42);
            for wanted in [7.0, 30.0, 61.0, 150.0] {
                let clean = found((0..900).map(|i| level + scale * sine(i, wanted)));
                assert!(is_near(clean, wanted), "{wanted} s: {clean:?}");
                let noisy = found((0..900).map(|i| level + scale * (sine(i, wanted) + dice.noise() * 0.7)));
                assert!(is_near(noisy, wanted), "{wanted} s in noise: {noisy:?}");
                let rising = found((0..900).map(|i| level + scale * (sine(i, wanted) + f64::from(i) * 0.01)));
                assert!(is_near(rising, wanted), "{wanted} s on a ramp: {rising:?}");
            }
        }
        let mut dice = Dice(7);
        let mut points = seconds((0..900).map(|i| 100.0 + sine(i, 40.0) + dice.noise() * 0.3));
        points.retain(|p| !(200_000_000..330_000_000).contains(&p.t_us) && dice.roll() > 0.2);
        let gappy = period(&Grid::new(&points).expect("enough")).map(|p| real(p.period_us) / 1e6);
        assert!(is_near(gappy, 40.0), "with a gap and a fifth of the rest missing: {gappy:?}");
    }

    #[test]
    fn a_job_that_runs_each_minute_is_found_by_its_short_pulses() {
        let mut dice = Dice(3);
        let job = found((0..900).map(|i| 50.0 * f64::from(u8::from(i % 60 < 4)) + dice.noise()));
        assert!(is_near(job, 60.0), "{job:?}");
        let saw = found((0..900).map(|i| f64::from(i % 45)));
        assert!(is_near(saw, 45.0), "{saw:?}");
    }

    #[test]
    fn what_is_told_of_it_is_so() {
        let p = period(&grid((0..900).map(|i| 10.0 + 4.0 * sine(i, 60.0)))).expect("a period");
        assert!((p.swing - 8.0).abs() < 0.5 && p.strength > 0.9 && (p.cycles - 15.0).abs() < 0.5, "{p:?}");
        let peak = real(p.peak_us) / 1e6 % 60.0;
        assert!((peak - 15.0).abs() < 3.0, "a quarter of a period after the start, not {peak}");
        assert!(found((0..900).map(|i| sine(i, 400.0))).is_none(), "two cycles are too few");
    }
}
