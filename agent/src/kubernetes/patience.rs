//! How long the watch waits: for an answer, before another attempt, and until it reads anew where the API server is and who we are to it.
//!
//! Plain values and a count; the waiting itself is done by `kubernetes`.

use kube::runtime::watcher::DefaultBackoff;
use std::time::Duration;

/// A page that has not come by then does not come.
const PAGE_WITHIN: Duration = Duration::from_secs(60);
/// A watch says something (a bookmark at the least) or ends within 290 s.
const SILENCE: Duration = Duration::from_secs(300);
/// A watch that was answered and is open for so long is one, though nothing has happened yet: what is no watch has said or ended
/// something by then, and the next bookmark is a minute away.
const SETTLES: Duration = Duration::from_secs(2);
/// The longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// After so many failures in a row the settings are read anew, whether their file has changed or not: files that it names may have. That is
/// some four minutes; up to then a watch goes on where it was, by a history that API servers keep for five.
const FAILURES: u32 = 12;

pub(super) struct Patience {
    pub page_within: Duration,
    pub silence: Duration,
    pub settles: Duration,
    pauses: Box<dyn Iterator<Item = Duration> + Send>,
    failures: u32,
}

impl Default for Patience {
    fn default() -> Self {
        Self::new(DefaultBackoff::default())
    }
}

impl Patience {
    pub fn new(pauses: impl Iterator<Item = Duration> + Send + 'static) -> Self {
        Self {
            page_within: PAGE_WITHIN,
            silence: SILENCE,
            settles: SETTLES,
            pauses: Box::new(pauses),
            failures: 0,
        }
    }

    /// An attempt failed: how long to wait for the next.
    pub fn failed(&mut self) -> Duration {
        self.failures = self.failures.saturating_add(1);
        self.pauses.next().unwrap_or(LONGEST_PAUSE).min(LONGEST_PAUSE)
    }

    /// Something was understood.
    pub fn heard(&mut self) {
        self.failures = 0;
    }

    /// Nothing was understood for so long that the settings may be wrong.
    pub fn is_over(&self) -> bool {
        self.failures >= FAILURES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_from_a_second_to_half_a_minute_and_no_further() {
        let mut patience = Patience::default();
        let pauses: Vec<Duration> = (0..40).map(|_| patience.failed()).collect();
        assert!(pauses[0] < Duration::from_secs(2), "{pauses:?}");
        // each is at random up to twice of what doubles
        for (n, at_least_ms) in [(0, 800), (1, 1600), (2, 3200), (3, 6400), (4, 12_800), (5, 25_600)] {
            assert!(pauses[n] >= Duration::from_millis(at_least_ms), "{n}: {pauses:?}");
        }
        assert!(pauses[6..].iter().all(|p| *p == LONGEST_PAUSE), "{pauses:?}");
        assert!(pauses.iter().all(|p| *p <= LONGEST_PAUSE), "{pauses:?}");
        assert_eq!(Patience::new(std::iter::empty()).failed(), LONGEST_PAUSE);
    }

    #[test]
    fn patience_is_over_after_failures_in_a_row() {
        let mut patience = Patience::default();
        let total: Duration = (1..FAILURES).map(|_| patience.failed()).sum();
        assert!(!patience.is_over() && total < Duration::from_secs(300), "{total:?}");
        patience.heard();
        patience.failed();
        assert!(!patience.is_over());
        for _ in 1..FAILURES {
            patience.failed();
        }
        assert!(patience.is_over());
    }
}
