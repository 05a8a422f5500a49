//! Which limit up the tree a container is warned of.

use super::{id_of, on_stage};
use crate::clock::ktime_ns;
use crate::event::Kind;
use std::fs;

const SECOND: u64 = 1_000_000_000;
const UID: &str = "d6f0b51a-8f3b-4c39-9d3f-1f6f1a3f7d10";

/// Near what all pods of the node may use together those who hold a good part of it are warned, and not each of hundreds.
#[test]
fn near_the_limit_of_all_pods_those_are_warned_who_hold_a_part_of_it() {
    on_stage(100, true, |s| {
        let small = format!("kubepods/burstable/pod{UID}/{:064x}", 1);
        let large = format!("kubepods/burstable/pod{UID}/{:064x}", 2);
        let mut ids = Vec::new();
        for (path, current, max) in [
            ("kubepods", "950000", "1000000"),
            ("kubepods/burstable", "950000", "max"),
            (&format!("kubepods/burstable/pod{UID}"), "210000", "max"),
            (&small, "10000", "max"),
            (&large, "200000", "max"),
        ] {
            let dir = s.make(path);
            fs::write(dir.join("memory.current"), format!("{current}\n")).expect("write");
            fs::write(dir.join("memory.max"), format!("{max}\n")).expect("write");
            s.tell_start(&dir);
            ids.push(id_of(&dir));
        }
        assert!(ids.iter().all(|id| s.state.targets.contains_key(id)), "each of them is followed");
        s.turn(ktime_ns());
        s.turn(ktime_ns() + SECOND / 10);
        let warned: Vec<_> =
            s.all().flat_map(|p| &p.events).filter(|(e, _)| e.kind == Kind::LimitNear).collect();
        let whose: Vec<_> = warned.iter().map(|(e, _)| e.cgroup_id).collect();
        assert_eq!(whose, [Some(ids[4])]);
        let detail = &warned[0].0.detail;
        assert_eq!((&detail["usage_bytes"], &detail["max_bytes"]), (&950_000.into(), &1_000_000.into()));
    });
}
