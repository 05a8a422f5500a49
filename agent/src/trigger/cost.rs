//! What a burst row costs, and so how many of them a share of a core affords. Pure: the caller measures.

/// Weight of the newest measurement.
const NEWEST: f64 = 0.2;
/// A change below this share is none: bursts need not be shared out anew for it.
const NOTABLE: f64 = 0.1;

#[derive(Clone, Copy, Debug)]
pub struct Cost {
    most_rows: u64,
    cpu_ns_per_second: f64,
    row_ns: Option<f64>,
    told: u64,
}

impl Cost {
    /// `most_rows` a second whatever they cost; `percent` of one core.
    pub fn new(most_rows: u64, percent: f64) -> Self {
        Self { most_rows, cpu_ns_per_second: percent * 1e7, row_ns: None, told: most_rows }
    }

    /// So many rows took so much CPU time. Returns the rows a second that are affordable from now on, when that has changed.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "small, positive numbers"
    )]
    pub fn note(&mut self, rows: u64, cpu_ns: u64) -> Option<u64> {
        if rows == 0 {
            return None;
        }
        let now = cpu_ns as f64 / rows as f64;
        let row_ns = self.row_ns.map_or(now, |before| before + NEWEST * (now - before));
        self.row_ns = Some(row_ns);
        let affordable = ((self.cpu_ns_per_second / row_ns.max(1.0)) as u64).clamp(1, self.most_rows);
        let change = affordable.abs_diff(self.told) as f64;
        let is_full = affordable == self.most_rows && self.told != affordable;
        if change <= NOTABLE * self.told as f64 && !is_full {
            return None;
        }
        self.told = affordable;
        Some(affordable)
    }

    /// Rows a second that are affordable.
    pub fn rows_per_second(&self) -> u64 {
        self.told
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn dear_rows_are_fewer_and_cheap_ones_no_more_than_allowed() {
        let mut cost = Cost::new(1000, 10.0);
        assert_eq!(cost.rows_per_second(), 1000, "nothing is known of their cost");
        assert_eq!(cost.note(20, 20 * 50_000), None, "2000 would be affordable, 1000 are allowed");
        for _ in 0..40 {
            cost.note(20, 20 * 1_000_000);
        }
        // 10 % of a core is 100 ms a second
        assert!((95..=115).contains(&cost.rows_per_second()), "{}", cost.rows_per_second());
        for _ in 0..40 {
            cost.note(20, 20 * 50_000);
        }
        assert_eq!(cost.rows_per_second(), 1000);
        assert_eq!(cost.note(0, 7), None);
    }

    proptest! {
        /// However dear rows become and cheap again, what is told keeps within the share once it is known.
        #[test]
        fn what_is_affordable_costs_no_more_than_its_share(costs in proptest::collection::vec(1_000u64..100_000_000, 1..30), last in 1_000u64..50_000_000) {
            let mut cost = Cost::new(5000, 5.0);
            for c in costs {
                cost.note(1, c);
            }
            for _ in 0..100 {
                cost.note(1, last);
            }
            let rows = cost.rows_per_second();
            prop_assert!(rows == 1 || rows * last <= 56_000_000, "{rows} rows of {last} ns");
            prop_assert!(rows == 5000 || (rows + 1) * last >= 44_000_000, "{rows} rows of {last} ns");
        }
    }
}
