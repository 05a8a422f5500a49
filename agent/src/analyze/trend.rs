//! Where a line is going since it last changed, and when it will be at its limit.
//!
//! The slope is Theil's and Sen's: the median of the slopes of all pairs, which a third of wild readings does not move. Its
//! bounds hold at 95 %, widened by how much neighbours depend on one another. A line whose bounds contain zero goes
//! nowhere. A limit that is further away than [`FAR`] times the time in which the trend was seen is not forecast.

use super::{Grid, changepoint, median, persistence, real};
use serde::Serialize;

/// 300 cells have 45,000 pairs.
const MOST: usize = 300;
const LEAST: usize = 10;
const FAR: f64 = 20.0;

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Trend {
    /// `rising`, `falling` or `flat`.
    pub direction: &'static str,
    /// Per second, with the bounds at 95 %.
    pub slope: f64,
    pub slope_low: f64,
    pub slope_high: f64,
    /// The line's own value at its end, without its noise.
    pub value: f64,
    /// The stretch of which this is said: since the last change.
    pub since_us: i64,
    pub until_us: i64,
}

pub fn trend(grid: &Grid) -> Option<Trend> {
    let since = changepoint::last_piece(grid);
    let cells: Vec<(f64, f64)> = grid.held().into_iter().filter(|(x, _)| *x >= since).collect();
    if cells.len() < LEAST {
        return None;
    }
    // Means of some cells are as good as the cells, and fewer.
    let each = cells.len().div_ceil(MOST);
    let mean = |c: &[(f64, f64)]| {
        let n = real(c.len());
        (c.iter().map(|p| p.0).sum::<f64>() / n, c.iter().map(|p| p.1).sum::<f64>() / n)
    };
    let points: Vec<(f64, f64)> = cells.chunks(each).map(mean).collect();
    let n = points.len();
    let mut slopes: Vec<f64> = Vec::with_capacity(n * (n - 1) / 2);
    for (i, a) in points.iter().enumerate() {
        slopes.extend(points[i + 1..].iter().map(|b| (b.1 - a.1) / (b.0 - a.0)));
    }
    slopes.sort_unstable_by(f64::total_cmp);
    let slope = slopes[slopes.len() / 2];
    let mut levels: Vec<f64> = points.iter().map(|(x, y)| y - slope * x).collect();
    let level = median(&mut levels);
    let rest: Vec<(f64, f64)> =
        points.iter().enumerate().map(|(i, (x, y))| (real(i), y - level - slope * x)).collect();
    let rho = persistence(&rest).min(0.95);
    let k = real(n);
    let spread = 1.96 * (k * (k - 1.0) * (2.0 * k + 5.0) / 18.0 * (1.0 + rho) / (1.0 - rho)).sqrt();
    let pairs = real(slopes.len());
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to the number of pairs")]
    let nth = |at: f64| slopes[(at.clamp(0.0, pairs - 1.0)) as usize];
    let (low, high) = (nth((pairs - spread) / 2.0), nth(f64::midpoint(pairs, spread)));
    let per_second = 1e6 / real(grid.step_us);
    let (first, last) = (cells[0].0, cells[cells.len() - 1].0);
    let direction = if low > 0.0 {
        "rising"
    } else if high < 0.0 {
        "falling"
    } else {
        "flat"
    };
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "places of cells")]
    let at_us = |x: f64| grid.at_us(x as usize);
    Some(Trend {
        direction,
        slope: slope * per_second,
        slope_low: low * per_second,
        slope_high: high * per_second,
        value: level + slope * last,
        since_us: at_us(first),
        until_us: at_us(last) + grid.step_us,
    })
}

/// When the limit will be met, in seconds after the trend's end.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Forecast {
    pub seconds: f64,
    pub earliest_s: f64,
    /// None: the slope's lower bound is so small that it has no end in sight.
    pub latest_s: Option<f64>,
}

/// `room`: how much is left below the limit. `Err` = why there is no forecast.
pub fn forecast(trend: &Trend, room: f64) -> Result<Forecast, &'static str> {
    if trend.direction != "rising" {
        return Err("it is not rising");
    }
    if room <= 0.0 {
        return Err("it is at the limit");
    }
    let seen_s = real(trend.until_us - trend.since_us) / 1e6;
    let seconds = room / trend.slope;
    if seconds > FAR * seen_s {
        return Err("the limit is further away than 20 times the time in which this was seen");
    }
    let latest = room / trend.slope_low;
    Ok(Forecast {
        seconds,
        earliest_s: room / trend.slope_high,
        latest_s: (latest <= FAR * seen_s * 2.0).then_some(latest),
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Dice, grid};
    use super::*;

    #[test]
    fn the_slope_is_that_of_the_last_piece_in_units_a_second() {
        let mut dice = Dice(5);
        let t = trend(&grid((0..600).map(|i| {
            let rising = if i < 300 { 50.0 } else { 50.0 + 2.0 * f64::from(i - 300) };
            rising + dice.noise() + if i % 50 == 7 { 400.0 } else { 0.0 }
        })))
        .expect("a trend");
        assert_eq!(t.direction, "rising");
        assert!((t.slope - 2.0).abs() < 0.05 && t.slope_low <= t.slope && t.slope <= t.slope_high, "{t:?}");
        assert!((280_000_000..330_000_000).contains(&t.since_us), "{t:?}");
        assert!((t.value - 648.0).abs() < 8.0, "{t:?}");
    }

    #[test]
    fn the_limit_is_met_when_it_is_met() {
        // 3 MB a second from 100 MB: 1 GB is 300 s after the start, 100 s after the end.
        let t = trend(&grid((0..200).map(|i| 100e6 + 3e6 * f64::from(i)))).expect("a trend");
        let f = forecast(&t, 1e9 - t.value).expect("a forecast");
        assert!((f.seconds - 101.0).abs() < 3.0 && f.earliest_s <= f.seconds, "{f:?}");
        assert!(f.latest_s.is_some_and(|s| s >= f.seconds));
        assert!(forecast(&t, 1e12).is_err(), "four days from three minutes is no forecast");
        assert_eq!(forecast(&t, -1.0), Err("it is at the limit"));
    }

    #[test]
    fn noise_and_a_step_go_nowhere() {
        let mut wrong = 0;
        for seed in 1..=100u64 {
            let mut dice = Dice(seed * 0x9E37_79B9);
            let t = trend(&grid((0..400).map(|_| dice.noise()).collect::<Vec<_>>())).expect("a trend");
            wrong += u32::from(t.direction != "flat");
        }
        assert!(wrong <= 10, "{wrong} of 100 at bounds of 95 %");
        let t = trend(&grid((0..600).map(|i| if i < 300 { 0.0 } else { 100.0 }))).expect("a trend");
        assert_eq!((t.direction, t.since_us >= 295_000_000), ("flat", true), "{t:?}");
        assert_eq!(forecast(&t, 5.0), Err("it is not rising"));
    }
}
