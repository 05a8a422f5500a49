//! What is missing of an incident's evidence stands in the incident, also what was lost before it began.

use super::*;
use crate::event::{Exit, Kill, Outcome, Sent};
use crate::pipeline::bursts::settings;
use crate::trigger::Trigger;

fn no_burst(s: &mut Stage) {
    s.state.config.budget.max_bursts = 0;
    s.state.trigger = Trigger::new(settings(&s.state.config));
}

fn lost(s: &mut Stage) -> Vec<(String, u64)> {
    let job = s.state.finish();
    let incident = job.pending.incidents.last().expect("an incident");
    for lost in &incident.lost {
        assert!(incident.summary.contains(&format!("{} rows of {}", lost.rows, lost.table)), "{incident:?}");
    }
    incident.lost.iter().map(|l| (l.reason.clone(), l.rows)).collect()
}

#[test]
fn rows_that_were_late_before_a_kill_are_told_by_its_incident() {
    on_stage(100, true, |s| {
        let path = s.make(&format!("docker/{CID}"));
        let now = ktime_ns();
        s.turn(now);
        // as if the loop had had no turn for five seconds
        s.turn(now + 6_000_000_000);
        s.tell(kill(1, id_of(&path)));
        let all = lost(s);
        assert!(matches!(&all[..], [(why, 4..=6)] if why == "late"), "{all:?}");
    });
}

#[test]
fn a_burst_that_an_earlier_event_asked_for_in_vain_is_told_by_the_incident() {
    on_stage(100, true, |s| {
        let path = s.make(&format!("docker/{CID}"));
        s.turn(ktime_ns());
        no_burst(s);
        let target = Task { comm: "app".into(), ..task(7, id_of(&path)) };
        s.tell(What::Kill(Box::new(Kill {
            target: target.clone(),
            target_inner_pid: Some(1),
            sender: task(8, id_of(&path)),
            sender_uid: None,
            sender_parent: task(9, id_of(&path)),
            signal: 9,
            sent: Sent::ByTask,
            outcome: Outcome::Delivered,
        })));
        s.tell(What::Exit(Exit {
            task: target,
            ppid: None,
            inner_pid: Some(1),
            exit_code: None,
            signal: Some(9),
        }));
        let all = lost(s);
        assert_eq!(all.len(), 1, "{all:?}");
        // the exit asks for a few samples more than the signal did
        assert!(all[0].0 == "burst_budget" && (200..205).contains(&all[0].1), "{all:?}");
    });
}

#[test]
fn history_that_is_not_written_is_not_claimed() {
    on_stage(100, true, |s| {
        let path = s.make(&format!("docker/{CID}"));
        for _ in 0..4 {
            s.turn(ktime_ns());
            std::thread::sleep(std::time::Duration::from_millis(30));
        }
        let history = |s: &mut Stage, history_s: u64, enabled: bool| {
            s.state.config.trigger.oom_kill.history_s = history_s;
            s.state.config.trigger.oom_kill.enabled = enabled;
            s.state.trigger = Trigger::new(settings(&s.state.config));
            let owner = s.state.tree.get(id_of(&path)).expect("known").meta.clone();
            let evidence = s.state.evidence_before(&owner, Kind::OomKill, ktime_ns() + 1, None);
            evidence.oldest.is_some()
        };
        assert!(history(s, 60, true));
        assert!(!history(s, 0, true));
        assert!(!history(s, 60, false));
    });
}
