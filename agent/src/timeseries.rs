//! Readings of one column of one cgroup as buckets that keep every spike, and where they lie so close that a gap shows.
//!
//! Pure: values in, values out. A counter becomes a rate, of which there is none from a first reading, across a gap or
//! across a reset (a value that fell); a rate belongs to the bucket in which its interval ends. Nothing is invented: a
//! bucket without a reading is absent, and `cut` says that no line may lead over what lies before a bucket. The same rules
//! stand in `static/src/series.js`, by which a report draws. Never mixes two cgroups: it is given one. Called by `viewer`.

pub mod derived;

use crate::names::Cause;
use serde::Serialize;

/// A line ends where the next reading is further away than this many periods.
pub const GAP_PERIODS: i64 = 3;
/// Fewer distances than this do not make a habit.
const LEAST_SPACINGS: usize = 3;
const MS_US: i64 = 1000;

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reading {
    pub t_us: i64,
    /// Integers are exact below 2^53: 9 PB, or 285 years in µs.
    pub value: f64,
    pub cause: Cause,
    pub period_ms: i64,
}

/// What is drawn: a gauge's reading, or the rate over an interval that ends here.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    pub t_us: i64,
    pub value: f64,
    /// Length of the interval; 0 for a gauge.
    pub span_us: i64,
    pub cause: Cause,
    /// No line from the point before to this one.
    pub cut: bool,
}

/// A stretch of history or of a burst, where it really has rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Band {
    #[serde(serialize_with = "cause_word")]
    pub cause: Cause,
    pub from_us: i64,
    pub to_us: i64,
    pub period_ms: i64,
    pub rows: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives it so")]
fn cause_word<S: serde::Serializer>(cause: &Cause, out: S) -> Result<S::Ok, S::Error> {
    out.serialize_str(cause.as_str())
}

/// Buckets side by side: the n-th member of each list is the n-th bucket's. Times are µs from the start of the range.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Buckets {
    /// The last reading's instant.
    pub t: Vec<i64>,
    pub min: Vec<f64>,
    pub max: Vec<f64>,
    /// Of a rate the mean over time, of a gauge that of the readings.
    pub avg: Vec<f64>,
    /// When the lowest and the highest were read.
    pub min_t: Vec<i64>,
    pub max_t: Vec<i64>,
    /// Readings, or intervals of a rate.
    pub n: Vec<u32>,
    /// µs that a rate's intervals cover; 0 for a gauge.
    pub span: Vec<i64>,
    /// 0 base, 1 history, 2 burst: of the last reading.
    pub cause: Vec<u8>,
    /// 1: no line from the bucket before to this one.
    pub cut: Vec<u8>,
}

/// The spacing that the base readings of a column really have when that is wider than their rows' period says: a slow
/// file is read with every tenth row, say.
fn usual_period_ms(readings: &[Reading]) -> Option<i64> {
    let base: Vec<&Reading> = readings.iter().filter(|r| r.cause == Cause::Base).collect();
    let declared = base.iter().map(|r| r.period_ms).max()?;
    let mut spacings: Vec<i64> = base.windows(2).map(|w| (w[1].t_us - w[0].t_us) / MS_US).collect();
    spacings.sort_unstable();
    let usual = *spacings.get(spacings.len().saturating_sub(1) / 2)?;
    (spacings.len() >= LEAST_SPACINGS && usual > declared * GAP_PERIODS).then_some(usual)
}

/// For each reading whether it is further from the one before than `GAP_PERIODS` of the slower one's period.
fn gaps(readings: &[Reading]) -> Vec<bool> {
    let usual = usual_period_ms(readings);
    let period = |r: &Reading| match (r.cause, usual) {
        (Cause::Base, Some(usual)) => usual,
        _ => r.period_ms.max(1),
    };
    let apart =
        |w: &[Reading]| w[1].t_us - w[0].t_us > GAP_PERIODS * MS_US * period(&w[0]).max(period(&w[1]));
    std::iter::once(false).take(readings.len().min(1)).chain(readings.windows(2).map(apart)).collect()
}

/// A gauge or a limit as it was read. `readings` in time order, as everywhere here.
pub fn levels(readings: &[Reading]) -> Vec<Point> {
    let point =
        |(r, cut): (&Reading, bool)| Point { t_us: r.t_us, value: r.value, span_us: 0, cause: r.cause, cut };
    readings.iter().zip(gaps(readings)).map(point).collect()
}

/// A counter as units a second. Two readings much closer than their period (a base row beside a burst row) would divide
/// by almost nothing: the later one is passed over, and what it counted is in the next interval.
#[expect(clippy::cast_precision_loss, reason = "differences, far below 2^53")]
pub fn rates(readings: &[Reading]) -> Vec<Point> {
    let cuts = gaps(readings);
    let (mut out, mut from, mut broken) = (Vec::new(), 0, false);
    for i in 1..readings.len() {
        let (a, b) = (&readings[from], &readings[i]);
        let (span_us, risen) = (b.t_us - a.t_us, b.value - a.value);
        if cuts[i] || risen < 0.0 {
            (broken, from) = (true, i);
            continue;
        }
        if span_us <= 0 || span_us < MS_US / 2 * a.period_ms.min(b.period_ms) {
            continue;
        }
        let value = risen / span_us as f64 * 1e6;
        out.push(Point { t_us: b.t_us, value, span_us, cause: b.cause, cut: std::mem::take(&mut broken) });
        from = i;
    }
    out
}

/// Points into buckets of `step_us`, counted from `from_us`. Points outside `from_us..=to_us` are left out, but for one
/// on either side, so that lines run on to the edges.
pub fn buckets(points: &[Point], (from_us, to_us): (i64, i64), step_us: i64) -> Buckets {
    let start = points.partition_point(|p| p.t_us < from_us).saturating_sub(1);
    let end = (points.partition_point(|p| p.t_us <= to_us) + 1).min(points.len());
    let mut out = Buckets::default();
    let bucket = |p: &Point| (p.t_us - from_us).div_euclid(step_us.max(1));
    for of_one in points.get(start..end).unwrap_or_default().chunk_by(|a, b| bucket(a) == bucket(b)) {
        let (mut low, mut high, mut sum, mut weight) = (&of_one[0], &of_one[0], 0.0, 0.0);
        for p in of_one {
            if p.value < low.value {
                low = p;
            }
            if p.value > high.value {
                high = p;
            }
            #[expect(clippy::cast_precision_loss, reason = "µs of an interval")]
            let w = if p.span_us > 0 { p.span_us as f64 } else { 1.0 };
            sum += p.value * w;
            weight += w;
        }
        let last = &of_one[of_one.len() - 1];
        out.t.push(last.t_us - from_us);
        out.min.push(low.value);
        out.max.push(high.value);
        out.avg.push((sum / weight).clamp(low.value, high.value));
        out.min_t.push(low.t_us - from_us);
        out.max_t.push(high.t_us - from_us);
        out.n.push(u32::try_from(of_one.len()).unwrap_or(u32::MAX));
        out.span.push(of_one.iter().map(|p| p.span_us).sum());
        out.cause.push(match last.cause {
            Cause::Base => 0,
            Cause::History => 1,
            Cause::Burst => 2,
        });
        out.cut.push(u8::from(of_one[0].cut));
    }
    out
}

/// Stretches of history and of bursts. `rows` = (instant, cause, period in ms), in time order.
pub fn bands(rows: &[(i64, Cause, i64)]) -> Vec<Band> {
    let mut out: Vec<Band> = Vec::new();
    for wanted in [Cause::History, Cause::Burst] {
        let first = out.len();
        for (t_us, _, period_ms) in rows.iter().filter(|(_, cause, _)| *cause == wanted) {
            match out[first..].last_mut() {
                Some(band) if t_us - band.to_us <= GAP_PERIODS * MS_US * period_ms => {
                    band.to_us = *t_us;
                    band.period_ms = band.period_ms.max(*period_ms);
                    band.rows += 1;
                }
                _ => out.push(Band {
                    cause: wanted,
                    from_us: *t_us,
                    to_us: *t_us,
                    period_ms: *period_ms,
                    rows: 1,
                }),
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WHOLE: (i64, i64) = (0, i64::MAX / 2);

    #[expect(clippy::cast_precision_loss, reason = "small")]
    fn base(t_us: i64, value: i64) -> Reading {
        let value = value as f64;
        Reading { t_us, value, cause: Cause::Base, period_ms: 1000 }
    }

    fn seconds(values: &[i64]) -> Vec<Reading> {
        (0..).zip(values).map(|(i, v)| base(i * 1_000_000, *v)).collect()
    }

    /// Readings with gaps, resets, bursts between base rows, and two at one instant.
    fn any_readings() -> impl Strategy<Value = Vec<Reading>> {
        let step = (0i64..6_000_000, -5i64..1000, prop::bool::weighted(0.3));
        prop::collection::vec(step, 0..200).prop_map(|steps| {
            let (mut t_us, mut value) = (0, 1000i64);
            steps
                .into_iter()
                .map(|(apart, more, is_burst)| {
                    let (cause, period_ms) = if is_burst { (Cause::Burst, 50) } else { (Cause::Base, 1000) };
                    t_us += if is_burst { apart / 100 } else { apart };
                    value = (value + more).max(0);
                    #[expect(clippy::cast_precision_loss, reason = "small")]
                    Reading { t_us, value: value as f64, cause, period_ms }
                })
                .collect()
        })
    }

    proptest! {
        #[test]
        fn no_spike_and_no_count_is_lost(readings in any_readings(), step_us in 1i64..100_000_000, is_rate: bool) {
            let points = if is_rate { rates(&readings) } else { levels(&readings) };
            let b = buckets(&points, WHOLE, step_us);
            let total: u64 = b.n.iter().map(|n| u64::from(*n)).sum();
            prop_assert_eq!(total, points.len() as u64);
            let fold = |v: &mut dyn Iterator<Item = f64>, f: fn(f64, f64) -> f64| v.reduce(f);
            prop_assert_eq!(fold(&mut b.max.iter().copied(), f64::max), fold(&mut points.iter().map(|p| p.value), f64::max));
            prop_assert_eq!(fold(&mut b.min.iter().copied(), f64::min), fold(&mut points.iter().map(|p| p.value), f64::min));
            for i in 0..b.t.len() {
                prop_assert!(b.min[i] <= b.avg[i] && b.avg[i] <= b.max[i]);
                for (t, v) in [(b.min_t[i], b.min[i]), (b.max_t[i], b.max[i])] {
                    prop_assert!(points.iter().any(|p| p.t_us == t && p.value.to_bits() == v.to_bits()), "a value that was never there");
                }
                prop_assert!(i == 0 || b.t[i].div_euclid(step_us) > b.t[i - 1].div_euclid(step_us));
            }
        }

        /// What the buckets' means and spans give back is what the counter rose by, where it could be told.
        #[test]
        fn rates_add_up_to_the_increase(readings in any_readings(), step_us in 1i64..100_000_000) {
            let points = rates(&readings);
            #[expect(clippy::cast_precision_loss, reason = "small")]
            let of_buckets: f64 = {
                let b = buckets(&points, WHOLE, step_us);
                b.avg.iter().zip(&b.span).map(|(v, s)| v * *s as f64 / 1e6).sum()
            };
            let (mut told, mut from) = (0.0, 0usize);
            let cuts = gaps(&readings);
            for i in 1..readings.len() {
                let (a, b) = (&readings[from], &readings[i]);
                if cuts[i] || b.value < a.value {
                    from = i;
                } else if b.t_us > a.t_us && b.t_us - a.t_us >= 500 * a.period_ms.min(b.period_ms) {
                    told += b.value - a.value;
                    from = i;
                }
            }
            prop_assert!((of_buckets - told).abs() < 1e-3, "{of_buckets} and {told}");
            prop_assert!(points.iter().all(|p| p.value >= 0.0));
        }
    }

    #[test]
    fn a_counter_has_no_rate_from_its_first_reading_across_a_reset_or_a_gap() {
        let points = rates(&seconds(&[1_000_000, 1_000_005, 1_000_015, 3, 10]));
        let got: Vec<_> = points.iter().map(|p| (p.t_us / 1_000_000, p.value.round(), p.cut)).collect();
        assert_eq!(got, [(1, 5.0, false), (2, 10.0, false), (4, 7.0, true)]);
        let mut readings = seconds(&[0, 10]);
        readings.extend([base(9_000_000, 500), base(10_000_000, 520)]);
        let got: Vec<_> = rates(&readings).iter().map(|p| (p.t_us / 1_000_000, p.cut)).collect();
        assert_eq!(got, [(1, false), (10, true)], "the eight seconds without a reading have no rate");
        assert!(rates(&seconds(&[7])).is_empty());
    }

    #[test]
    fn a_gap_is_cut_and_a_slow_column_is_not_all_gaps() {
        let mut readings = seconds(&[1, 2, 3]);
        readings.push(base(8_000_000, 4));
        let cuts: Vec<bool> = levels(&readings).iter().map(|p| p.cut).collect();
        assert_eq!(cuts, [false, false, false, true]);
        let slow: Vec<Reading> = (0..6).map(|i| base(i * 10_000_000, 5)).collect();
        assert!(levels(&slow).iter().all(|p| !p.cut), "read every ten seconds, that is its period");
        let burst = |t_us| Reading { t_us, value: 1.0, cause: Cause::Burst, period_ms: 50 };
        let cuts: Vec<bool> =
            levels(&[burst(0), burst(50_000), burst(400_000)]).iter().map(|p| p.cut).collect();
        assert_eq!(cuts, [false, false, true], "six burst rows are missing");
    }

    #[test]
    fn a_spike_of_one_reading_stands_in_the_widest_bucket_at_its_instant() {
        let mut values = vec![10; 600];
        values[333] = 9999;
        let b = buckets(&levels(&seconds(&values)), (0, 600_000_000), 600_000_000);
        assert_eq!(
            (b.max[0].round(), b.max_t[0], b.min[0].round(), b.n[0]),
            (9999.0, 333_000_000, 10.0, 600)
        );
    }

    #[test]
    fn one_point_on_either_side_of_the_range_is_kept() {
        let b = buckets(&levels(&seconds(&[0, 1, 2, 3, 4, 5])), (2_500_000, 3_500_000), 1_000_000);
        assert_eq!(b.t, [-500_000, 500_000, 1_500_000]);
    }

    #[test]
    fn bands_are_where_fast_rows_are() {
        let mut rows: Vec<_> = (0..10).map(|i| (i * 20_000, Cause::History, 20)).collect();
        rows.push((190_000, Cause::Base, 1000));
        rows.extend((10..15).map(|i| (i * 20_000, Cause::Burst, 20)));
        rows.extend((0..5).map(|i| (5_000_000 + i * 20_000, Cause::Burst, 20)));
        let got: Vec<_> = bands(&rows).iter().map(|b| (b.cause, b.from_us, b.to_us, b.rows)).collect();
        let wanted = [
            (Cause::History, 0, 180_000, 10),
            (Cause::Burst, 200_000, 280_000, 5),
            (Cause::Burst, 5_000_000, 5_080_000, 5),
        ];
        assert_eq!(got, wanted);
    }
}
