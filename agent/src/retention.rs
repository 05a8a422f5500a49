//! Which files go, by age and by bytes: the oldest ordinary ones first, then evidence of incidents, the incidents themselves last.
//!
//! Pure: files and limits in, choices out; no clock, no file. Evidence is what an export of an incident reads: the files of the table
//! `incidents`, and those of `samples`, `events`, `processes` and `ledger` of its boot that reach into its window. That is as fine as
//! a file is: with the incident its whole hour stays. `store` removes what is chosen here.

use crate::names::Table;

/// What is known of a file.
#[derive(Clone, Debug)]
pub struct File {
    pub table: Table,
    pub boot: String,
    pub from_us: i64,
    pub to_us: i64,
    pub bytes: u64,
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
}

impl Reason {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Age => "age",
            Self::Bytes => "bytes",
            Self::Free => "free",
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

/// The files that go, by their place in the list, with the reason; in the order in which they go.
pub fn choose(files: &[File], incidents: &[Window], now_us: i64, limits: &Limits) -> Vec<(usize, Reason)> {
    let mut bytes: u64 = files.iter().map(|f| f.bytes).sum();
    let mut wanted = limits.wanted_bytes;
    let mut all: Vec<(u8, i64, usize)> =
        files.iter().enumerate().map(|(i, f)| (rank(f, incidents), f.to_us, i)).collect();
    all.sort_unstable();
    let mut out = Vec::new();
    for (rank, to_us, i) in all {
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
        File { table, boot: "b".into(), from_us, to_us: from_us + 99, bytes }
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
        assert_eq!(choose(&files, &incidents, 599, &limits), []);
        assert_eq!(choose(&files, &incidents, 700, &limits), [(0, Reason::Age), (3, Reason::Age)]);
        let all = choose(&files, &incidents, 5000, &limits);
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
            choose(&files, &incidents, 300, &Limits { max_bytes, ..NONE })
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
        assert_eq!(choose(&files, &elsewhere, 300, &limits), [(0, Reason::Bytes)]);
        let limits = Limits { wanted_bytes: 1000, ..NONE };
        assert_eq!(
            choose(&files, &incidents, 300, &limits),
            [(2, Reason::Free), (1, Reason::Free)],
            "others get no evidence"
        );
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
            let gone = choose(&files, &incidents, 1000, &Limits { max_bytes, ..NONE });
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
