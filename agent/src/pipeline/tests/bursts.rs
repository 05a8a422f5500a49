//! Bursts, and the lane before and beside them: which rows there are, and when they were read.

use super::*;

impl Stage {
    /// Instants, in µs as the table's ts has them, and causes of all rows of a cgroup but its base rows.
    fn fast_rows(&self, path: &Path) -> Vec<(i64, String)> {
        let id = Some(id_of(path).as_i64());
        let mut rows = Vec::new();
        for pending in &self.handed_over {
            let batch = pending.batch(Table::Samples, &self.state.names).expect("builds");
            let int = |name: &str| {
                let column = batch.column_by_name(name).expect("column").as_primitive::<Int64Type>().clone();
                column.into_iter().collect::<Vec<_>>()
            };
            let cause = batch.column_by_name("cause").expect("cause").as_dictionary::<Int32Type>();
            let cause = cause.downcast_dict::<StringArray>().expect("text");
            for (row, (cgroup, at)) in int("cgroup_id").into_iter().zip(int("ktime_ns")).enumerate() {
                if cgroup == id && cause.value(row) != "base" {
                    rows.push((at.expect("an instant") / 1000, cause.value(row).to_owned()));
                }
            }
        }
        rows.sort_unstable();
        rows
    }
}

/// Over two kills and the bursts after them each instant of a container stands once, and none is missing in between.
#[test]
fn history_and_bursts_join_without_a_gap_and_without_repetition() {
    on_stage(100, true, |s| {
        const MS: u64 = 1_000_000;
        let path = s.make(&format!("docker/{CID}"));
        s.state.lane.pace = crate::lane::Pace::new(10, 100.0, ktime_ns());
        let mut settings = super::super::bursts::settings(&s.state.config);
        for kind in &mut settings.kinds {
            (kind.period_ns, kind.length_ns) = (10 * MS, 200 * MS);
        }
        s.state.trigger = crate::trigger::Trigger::new(settings);
        let start = ktime_ns();
        let mut kills = [100 * MS, 150 * MS, 600 * MS].into_iter().peekable();
        while ktime_ns() < start + 700 * MS {
            s.turn(ktime_ns());
            if kills.next_if(|at| ktime_ns() >= start + at).is_some() {
                s.tell(kill(1, id_of(&path)));
            }
            std::thread::yield_now();
        }
        s.handed_over.push(Arc::new(s.state.pending.clone()));
        let instants: Vec<_> = s.fast_rows(&path).into_iter().map(|(at, _)| at).collect();
        let count = instants.len();
        let gaps: Vec<_> = instants.windows(2).map(|w| w[1] - w[0]).collect();
        assert!(gaps.iter().all(|gap| *gap > 0), "an instant stands twice");
        // a busy machine may hold a turn up; one missing burst or history would be 200 ms or more
        assert!(gaps.iter().all(|gap| *gap < 190_000), "{gaps:?}");
        assert!((20..=90).contains(&count), "{count} rows in 700 ms at 100 Hz");
    });
}

/// Where bursts come too late for their turns, the lane goes on reading, and what it read is in the table.
#[test]
fn the_lane_reads_for_a_burst_that_is_behind() {
    on_stage(100, true, |s| {
        const MS: u64 = 1_000_000;
        let path = s.make(&format!("docker/{CID}"));
        s.state.lane.pace = crate::lane::Pace::new(10, 100.0, ktime_ns());
        s.turn(ktime_ns());
        s.tell(kill(1, id_of(&path)));
        let behind = ktime_ns();
        while ktime_ns() < behind + 200 * MS {
            s.state.lane_if_due();
            std::thread::yield_now();
        }
        s.turn(ktime_ns());
        s.handed_over.push(Arc::new(s.state.pending.clone()));
        let rows = s.fast_rows(&path);
        let behind_us = i64::try_from(behind / 1000).expect("in range");
        let read = rows.iter().filter(|(at, cause)| *at > behind_us && cause == "history").count();
        assert!((5..=20).contains(&read), "{rows:?}");
        assert!(rows.windows(2).all(|w| w[0].0 < w[1].0), "an instant stands twice: {rows:?}");
        assert_eq!(rows.last().map(|(_, cause)| cause.as_str()), Some("burst"), "{rows:?}");
    });
}

/// What walks have read of a cgroup before the kernel's word of it was heard is its history when it is killed.
#[test]
fn the_history_of_one_that_was_followed_late_begins_with_its_life() {
    on_stage(100, true, |s| {
        const MS: u64 = 1_000_000;
        s.make("docker");
        s.turn(ktime_ns());
        let path = s.make(&format!("docker/{CID}"));
        let (id, born) = (id_of(&path), ktime_ns() - 2000 * MS);
        let read_us: Vec<_> = (0..50).map(|i| (born + i * 20 * MS) / 1000).collect();
        for us in &read_us {
            let mut reading = crate::lane::Reading::new(us * 1000, 20);
            reading.set(crate::lane::Value::MemoryCurrent, 4096);
            s.state.early.keep(id, reading, 30_000 * MS);
        }
        s.tell_start(&path);
        s.tell(kill(1, id));
        s.turn(ktime_ns());
        s.handed_over.push(Arc::new(s.state.pending.clone()));
        let rows = s.fast_rows(&path);
        let history: Vec<_> =
            rows.iter().filter(|(_, cause)| cause == "history").map(|(at, _)| at.cast_unsigned()).collect();
        assert!(history.starts_with(&read_us), "{rows:?}");
        assert!(s.state.early.give(id).is_none(), "it is followed now");
    });
}
