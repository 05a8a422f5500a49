//! Which files go, by age and by bytes: the oldest ordinary ones first, then evidence of incidents, the incidents themselves last.
//!
//! Pure: files and limits in, choices out; no clock, no file. Evidence is what an export of an incident reads: the files of the table
//! `incidents`, and those of `samples`, `events`, `processes` and `ledger` of its boot that reach into its window. That is as fine as
//! a file is: with the incident its whole hour stays. What the bucket does not have yet is held: it goes after the others of its kind,
//! and only for the disk's sake or when there is more of it than the bound. `store` removes what is chosen here.

use crate::names::Table;

/// What is known of a file.
#[derive(Clone, Debug)]
pub struct File {
    pub table: Table,
    pub boot: String,
    pub from_us: i64,
    pub to_us: i64,
    pub bytes: u64,
    /// It is to be shipped, and is not yet.
    pub is_held: bool,
}

/// When and where there was an incident.
#[derive(Clone, Debug)]
pub struct Window {
    /// As file names have it.
    pub boot: String,
    pub from_us: i64,
    pub to_us: i64,
}

#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub max_age_us: i64,
    pub incident_max_age_us: i64,
    pub max_bytes: u64,
    /// Bytes that ordinary files are to give back to others; evidence does not go for that.
    pub wanted_bytes: u64,
}

/// Why a file goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    Age,
    Bytes,
    /// The file system is nearly full.
    Free,
    /// It was to go for one of these reasons, and the bucket does not have it.
    ShipBacklog,
}

impl Reason {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Age => "age",
            Self::Bytes => "bytes",
            Self::Free => "free",
            Self::ShipBacklog => "ship_backlog",
        }
    }
}

/// What goes first, in an order; ordinary files have rank 0.
fn rank(file: &File, incidents: &[Window]) -> u8 {
    let is_touched = || {
        incidents.iter().any(|w| w.boot == file.boot && file.from_us <= w.to_us && file.to_us >= w.from_us)
    };
    match file.table {
        Table::Incidents => 2,
        Table::Samples | Table::Events | Table::Processes | Table::Containers | Table::Ledger => {
            u8::from(is_touched())
        }
        Table::IoDevices | Table::Metrics | Table::Node => 0,
    }
}

/// The files that go, by their place in the list, with the reason; in the order in which they go. `max_held` bytes of what is held
/// stay though it is beyond age and bytes.
pub fn choose(
    files: &[File],
    incidents: &[Window],
    now_us: i64,
    limits: &Limits,
    max_held: u64,
) -> Vec<(usize, Reason)> {
    let mut bytes: u64 = files.iter().map(|f| f.bytes).sum();
    let mut held: u64 = files.iter().filter(|f| f.is_held).map(|f| f.bytes).sum();
    let mut wanted = limits.wanted_bytes;
    let mut all: Vec<(u8, bool, i64, usize)> =
        files.iter().enumerate().map(|(i, f)| (rank(f, incidents), f.is_held, f.to_us, i)).collect();
    all.sort_unstable();
    let mut out = Vec::new();
    for (rank, is_held, to_us, i) in all {
        let is_evidence = rank > 0;
        let max_age_us = if is_evidence { limits.incident_max_age_us } else { limits.max_age_us };
        let reason = if to_us < now_us.saturating_sub(max_age_us) {
            Reason::Age
        } else if bytes > limits.max_bytes {
            Reason::Bytes
        } else if wanted > 0 && !is_evidence {
            Reason::Free
        } else {
            continue;
        };
        // a disk without room is a bound of its own
        if is_held && held <= max_held && reason != Reason::Free {
            continue;
        }
        let reason = if is_held { Reason::ShipBacklog } else { reason };
        held -= if is_held { files[i].bytes } else { 0 };
        bytes -= files[i].bytes;
        wanted = wanted.saturating_sub(files[i].bytes);
        out.push((i, reason));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NONE: Limits =
        Limits { max_age_us: 1 << 40, incident_max_age_us: 1 << 40, max_bytes: u64::MAX, wanted_bytes: 0 };

    fn file(table: Table, from_us: i64, bytes: u64) -> File {
        File { table, boot: "b".into(), from_us, to_us: from_us + 99, bytes, is_held: false }
    }

    fn window(from_us: i64, to_us: i64) -> Window {
        Window { boot: "b".into(), from_us, to_us }
    }

    #[test]
    fn what_is_too_old_goes_and_incidents_have_an_age_of_their_own() {
        let files = [
            file(Table::Samples, 0, 1),
            file(Table::Samples, 100, 1),
            file(Table::Incidents, 0, 1),
            file(Table::Node, 100, 1),
        ];
        let limits = Limits { max_age_us: 500, incident_max_age_us: 1000, ..NONE };
        let incidents = [window(150, 160)];
        assert_eq!(choose(&files, &incidents, 599, &limits, 0), []);
        assert_eq!(choose(&files, &incidents, 700, &limits, 0), [(0, Reason::Age), (3, Reason::Age)]);
        let all = choose(&files, &incidents, 5000, &limits, 0);
        assert_eq!(all.len(), 4);
    }

    #[test]
    fn the_oldest_ordinary_file_goes_first_and_evidence_last() {
        let files = [
            file(Table::Samples, 0, 10),
            file(Table::Samples, 200, 10),
            file(Table::Samples, 100, 10),
            file(Table::Incidents, 0, 10),
        ];
        let incidents = [window(50, 60)];
        let order = |max_bytes| {
            choose(&files, &incidents, 300, &Limits { max_bytes, ..NONE }, 0)
                .into_iter()
                .map(|(i, _)| i)
                .collect::<Vec<_>>()
        };
        assert_eq!((order(40), order(39), order(20)), (vec![], vec![2], vec![2, 1]));
        assert_eq!(order(19), [2, 1, 0], "evidence when nothing else is left");
        assert_eq!(order(0), [2, 1, 0, 3]);
        // another boot's cgroups are others
        let elsewhere = [Window { boot: "c".into(), ..window(50, 60) }];
        let limits = Limits { max_bytes: 39, ..NONE };
        assert_eq!(choose(&files, &elsewhere, 300, &limits, 0), [(0, Reason::Bytes)]);
        let limits = Limits { wanted_bytes: 1000, ..NONE };
        assert_eq!(
            choose(&files, &incidents, 300, &limits, 0),
            [(2, Reason::Free), (1, Reason::Free)],
            "others get no evidence"
        );
    }

    #[test]
    fn what_is_not_shipped_stays_until_there_is_too_much_of_it() {
        let held = |from_us| File { is_held: true, ..file(Table::Samples, from_us, 10) };
        let files = [held(0), held(100), file(Table::Samples, 200, 10), file(Table::Samples, 300, 10)];
        let chosen = |limits: &Limits, max_held| choose(&files, &[], 500, limits, max_held);
        let small = Limits { max_bytes: 25, ..NONE };
        assert_eq!(
            chosen(&small, 20),
            [(2, Reason::Bytes), (3, Reason::Bytes)],
            "the oldest is not there yet"
        );
        let none = Limits { max_bytes: 0, ..NONE };
        assert_eq!(chosen(&none, 20), [(2, Reason::Bytes), (3, Reason::Bytes)]);
        let beyond = [(2, Reason::Bytes), (3, Reason::Bytes), (0, Reason::ShipBacklog)];
        assert_eq!(chosen(&none, 19), beyond, "as much as is beyond the bound, the oldest first");
        let old = Limits { max_age_us: 250, ..NONE };
        assert_eq!(chosen(&old, 20), [], "age alone takes nothing that waits");
        assert_eq!(chosen(&old, 0), [(0, Reason::ShipBacklog), (1, Reason::ShipBacklog)]);
        let full = Limits { wanted_bytes: 25, ..NONE };
        let all = [(2, Reason::Free), (3, Reason::Free), (0, Reason::ShipBacklog)];
        assert_eq!(chosen(&full, u64::MAX), all, "a full disk takes what waits after all else");
    }

    proptest! {
        /// Whatever the files are: the bound is kept, no ordinary file stays that is older than evidence gone for bytes, and
        /// nothing goes that need not.
        #[test]
        fn the_bound_is_kept_with_the_least(
            sizes in proptest::collection::vec((0u64..100, 0usize..8, 0i64..1000), 0..40), max_bytes in 0u64..2000, from in 0i64..1000
        ) {
            let files: Vec<File> = sizes.into_iter().map(|(bytes, t, at)| file(Table::ALL[t], at, bytes)).collect();
            let incidents = [window(from, from + 50)];
            let gone = choose(&files, &incidents, 1000, &Limits { max_bytes, ..NONE }, 0);
            let left: u64 = (0..files.len()).filter(|i| !gone.iter().any(|(g, _)| g == i)).map(|i| files[i].bytes).sum();
            prop_assert!(left <= max_bytes);
            if let Some((last, _)) = gone.last() {
                prop_assert!(left + files[*last].bytes > max_bytes);
                if rank(&files[*last], &incidents) > 0 {
                    let stays = (0..files.len()).filter(|i| !gone.iter().any(|(g, _)| g == i));
                    prop_assert!(stays.into_iter().all(|i| rank(&files[i], &incidents) > 0));
                }
            }
        }
    }
}
