//! How often the lane looks: as often as asked for while that stays within its CPU budget, else as often as the budget
//! allows, but ten times a second at the least.
//!
//! Pure: the caller measures what a look cost and says what time it is.

const SECOND: u64 = 1_000_000_000;
const MS: u64 = 1_000_000;
/// However much a look costs, it comes this often.
const SLOWEST_MS: u64 = 100;

#[derive(Clone, Debug)]
pub struct Pace {
    asked_ms: u64,
    /// Nanoseconds of CPU a second.
    budget_ns: f64,
    period_ms: u64,
    cost_ns: u64,
    looks: u64,
    since_ns: u64,
    last_cost_ns: u64,
}

impl Pace {
    pub fn new(asked_ms: u64, budget_percent: f64, now_ns: u64) -> Self {
        let asked_ms = asked_ms.max(1);
        Self {
            asked_ms,
            budget_ns: budget_percent / 100.0 * 1e9,
            period_ms: asked_ms,
            cost_ns: 0,
            looks: 0,
            since_ns: now_ns,
            last_cost_ns: 0,
        }
    }

    /// The rhythm in force.
    pub fn period_ms(&self) -> u64 {
        self.period_ms
    }

    /// The rhythm is never slower than this.
    pub fn slowest_ms(&self) -> u64 {
        self.asked_ms.max(SLOWEST_MS)
    }

    pub fn period_ns(&self) -> u64 {
        self.period_ms * MS
    }

    /// What one look cost on average in the last whole second, in ns of CPU.
    pub fn look_ns(&self) -> u64 {
        self.last_cost_ns
    }

    /// Takes the cost of one look into account; once a second the rhythm is set anew. It slows down at once and speeds up
    /// only when a fifth is to be gained, lest it wander.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a ratio of small numbers"
    )]
    pub fn looked(&mut self, now_ns: u64, cpu_ns: u64) {
        self.cost_ns += cpu_ns;
        self.looks += 1;
        if now_ns < self.since_ns + SECOND {
            return;
        }
        self.last_cost_ns = self.cost_ns / self.looks;
        (self.cost_ns, self.looks, self.since_ns) = (0, 0, now_ns);
        let affordable_ms = (self.last_cost_ns as f64 * 1e3 / self.budget_ns).ceil() as u64;
        let wanted = affordable_ms.clamp(self.asked_ms, self.slowest_ms());
        if wanted > self.period_ms || wanted * 5 <= self.period_ms * 4 {
            self.period_ms = wanted;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(pace: &mut Pace, now: &mut u64, look_us: u64) -> u64 {
        let end = *now + 2 * SECOND;
        while *now < end {
            *now += pace.period_ns();
            pace.looked(*now, look_us * 1000);
        }
        pace.period_ms()
    }

    #[test]
    fn it_keeps_to_the_budget_between_what_is_asked_and_ten_a_second() {
        let (mut pace, mut now) = (Pace::new(20, 1.0, 0), 0);
        assert_eq!(after(&mut pace, &mut now, 100), 20, "100 µs every 20 ms is half of one per cent");
        assert_eq!(after(&mut pace, &mut now, 400), 40);
        assert_eq!(after(&mut pace, &mut now, 370), 40, "not worth a change");
        assert_eq!(after(&mut pace, &mut now, 50_000), 100, "never slower than ten a second");
        assert_eq!(after(&mut pace, &mut now, 10), 20);
        assert_eq!(pace.look_ns(), 10_000);
    }

    #[test]
    fn a_slower_rhythm_that_was_asked_for_is_kept() {
        let (mut pace, mut now) = (Pace::new(500, 1.0, 0), 0);
        assert_eq!(after(&mut pace, &mut now, 90_000), 500);
    }
}
