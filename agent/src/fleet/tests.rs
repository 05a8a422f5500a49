//! Which folders a time is looked for in, and what a name tells.

use super::*;

const DAY: i64 = 1_767_225_600_000_000; // 2026-01-01T00:00:00Z

fn at(hour: i64) -> i64 {
    DAY + hour * HOUR_US
}

#[test]
fn a_time_is_looked_for_in_its_days_and_hours_alone() {
    let of = |from, to| folders("c", (from, to));
    assert_eq!(of(at(3) + 5, at(4) - 1), ["c/date=2026-01-01/hour=03"]);
    assert_eq!(of(at(3), at(4)), ["c/date=2026-01-01/hour=03", "c/date=2026-01-01/hour=04"]);
    assert_eq!(of(at(23), at(24)), ["c/date=2026-01-01/hour=23", "c/date=2026-01-02/hour=00"]);
    assert_eq!(of(at(0), at(24) - 1), ["c/date=2026-01-01"]);
    let days = of(at(20), at(24 + 20));
    assert_eq!(days.len(), 4 + 1, "{days:?}");
    assert_eq!(of(i64::MIN, i64::MAX), ["c"]);
    assert_eq!(of(0, at(5)), ["c"]);
    assert_eq!(of(at(0), at(24 * 365)), ["c"]);
    assert!(of(at(5), at(4)).is_empty());
}

#[test]
fn a_name_tells_table_cluster_hour_and_node() {
    let found = |name: &str| Found::parse(Object { name: name.to_owned(), bytes: 7 });
    let name = "v1/table=events/cluster=eu/date=2026-01-01/hour=05/node=n-1/abc-00000012.parquet";
    let it = found(name).expect("ours");
    assert_eq!(
        (it.table, it.cluster.as_str(), it.node.as_str(), it.hour_us),
        (Table::Events, "eu", "n-1", at(5))
    );
    let who = |node: &str| Who { node: Some(node.to_owned()), cluster: None };
    assert!(it.is_wanted((at(5), at(5)), &who("n-1")) && it.is_wanted((0, i64::MAX), &Who::default()));
    assert!(!it.is_wanted((at(6), at(7)), &Who::default()) && !it.is_wanted((0, at(5) - 1), &Who::default()));
    assert!(!it.is_wanted((0, i64::MAX), &who("n-2")));
    for other in [
        "v1/table=events/cluster=eu/date=2026-01-01/hour=05/node=n-1/readme.txt",
        "v1/table=others/cluster=eu/date=2026-01-01/hour=05/node=n-1/abc-00000012.parquet",
        "v1/table=events/cluster=eu/date=2026-13-01/hour=05/node=n-1/abc-00000012.parquet",
        "v1/table=events/cluster=eu/date=2026-01-01/hour=05/node=n-1/more/abc-00000012.parquet",
        "bundles/cluster=eu/date=2026-01-01/node=n-1/x.r1.parquet",
    ] {
        assert_eq!(found(other), None, "{other}");
    }
}

#[test]
fn what_tells_two_files_of_a_number_apart_is_no_part_of_the_boot() {
    struct Nothing;
    impl crate::segment::Far for Nothing {
        fn length(&self) -> u64 {
            0
        }
        fn read(&self, _: std::ops::Range<u64>) -> std::io::Result<bytes::Bytes> {
            Ok(bytes::Bytes::new())
        }
        fn expect(&self, _: &[std::ops::Range<u64>]) -> std::io::Result<()> {
            Ok(())
        }
        fn wants(&self, _: &str) -> bool {
            false
        }
    }
    let name = "v1/table=events/cluster=eu/date=2026-01-01/hour=05/node=n/abc.0f1e2d3c-00000012.parquet";
    let found = Found::parse(Object { name: name.to_owned(), bytes: 7 }).expect("ours");
    let segment = segment(&found, Distant(Arc::new(Nothing))).expect("a name");
    assert_eq!((segment.name.boot.as_str(), segment.name.seq), ("abc", 12));
}
