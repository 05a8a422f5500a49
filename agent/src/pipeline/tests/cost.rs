//! What the loop says its samples cost: how many of each kind its nanoseconds are of.

use super::{CID, on_stage};
use crate::clock::ktime_ns;

#[test]
fn one_sample_in_ten_has_the_slow_files_and_all_are_counted() {
    on_stage(100, true, |s| {
        s.make(&format!("docker/{CID}"));
        let mut now = ktime_ns();
        let mut seconds = |s: &mut super::Stage, n: u64| {
            for _ in 0..n * 4 {
                s.turn(now);
                now += 250_000_000;
            }
            let status = s.state.spent.status(0, 0, 1);
            let count = |kind: &str| status["samples"][kind].as_u64().expect("a count");
            [count("hot"), count("slow")]
        };
        let before = seconds(s, 12);
        let followed = s.state.targets.len() as u64;
        // what is young has its slow files read each second
        assert!(followed > 0 && before[1] >= 5 * followed, "{before:?}");
        let after = seconds(s, 20);
        assert_eq!([after[0] - before[0], after[1] - before[1]], [18 * followed, 2 * followed]);
    });
}
