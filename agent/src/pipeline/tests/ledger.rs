//! The ledger over whatever happens to the loop: each row that is handed over is accounted for, and nothing else is.

use super::{CID, kill, on_stage, task};
use crate::clock::ktime_ns;
use crate::event::{Exit, What};
use crate::ledger::Accounts;
use crate::names::Table;
use crate::pipeline::outage::Outage;
use crate::pipeline::sealer::{Job, Moving};
use crate::probes::{KindLoss, Losses};
use proptest::prelude::*;
use std::fs;

/// Bytes of rows beyond which the loop holds none.
const FULL: usize = 8192;

#[derive(Clone, Debug)]
enum Step {
    /// The loop comes so many milliseconds later.
    Stall(u64),
    Kill(usize),
    Exit(usize),
    /// The directory goes, and nobody tells.
    Vanish(usize),
    /// So many events were cut by the kernel side.
    RingFull(u64),
    /// No bursts any more.
    NoBudget,
    /// The store lost what it had been given.
    Drop(u64),
    /// Somebody wants a file now.
    Rotate,
    /// The sealer has so many jobs before it.
    Behind(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1u64..5000).prop_map(Step::Stall),
        2 => (0usize..4).prop_map(Step::Kill),
        1 => (0usize..4).prop_map(Step::Exit),
        1 => (0usize..4).prop_map(Step::Vanish),
        1 => (1u64..9).prop_map(Step::RingFull),
        1 => Just(Step::NoBudget),
        1 => (1u64..9).prop_map(Step::Drop),
        1 => Just(Step::Rotate),
        2 => (0usize..6).prop_map(Step::Behind),
    ]
}

/// Rows of a job, as its account should have them.
fn handed_over(job: &Job, names: &crate::accumulator::NodeNames) -> Accounts {
    let mut all = Accounts::default();
    for table in Table::ALL.into_iter().filter(|t| *t != Table::Ledger) {
        all.written(table, job.pending.batch(table, names).expect("a batch").num_rows() as u64);
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn due_is_written_and_lost_whatever_happens(steps in proptest::collection::vec(step(), 1..40)) {
        let mut jobs = Vec::new();
        let (mut dropped, mut cut) = (0, 0);
        let (mut rows, mut totals) = (Accounts::default(), serde_json::Value::Null);
        on_stage(100, true, |s| {
            let moving = Moving::default();
            s.state.set_moving(moving.clone());
            s.state.handover.set_full_bytes(FULL);
            let paths: Vec<_> = (0..4).map(|n| s.make(&format!("docker/{n}{}", &CID[1..]))).collect();
            let ids: Vec<_> = paths.iter().map(|p| super::id_of(p)).collect();
            let mut now = ktime_ns();
            s.state.note_outage(Outage { last_ktime_ns: now - 5_500_000_000, cgroups: 3 });
            for step in &steps {
                match step {
                    Step::Stall(ms) => now += ms * 1_000_000,
                    Step::Kill(n) => s.tell(kill(1, ids[*n])),
                    Step::Exit(n) => {
                        let (task, exit_code) = (task(7, ids[*n]), Some(3));
                        s.tell(What::Exit(Exit { task, ppid: None, inner_pid: Some(1), exit_code, signal: None }));
                    }
                    Step::Vanish(n) => { let _ = fs::remove_dir_all(&paths[*n]); }
                    Step::RingFull(n) => {
                        cut += n;
                        let kinds = vec![KindLoss { kind: "exit", lost: cut, cut: 0, lost_per_cpu: Vec::new(), cut_per_cpu: Vec::new() }];
                        s.state.note_losses(&Losses { kinds, ..Losses::default() });
                    }
                    Step::NoBudget => {
                        s.state.config.budget.max_bursts = 0;
                        s.state.trigger = crate::trigger::Trigger::new(crate::pipeline::bursts::settings(&s.state.config));
                    }
                    Step::Drop(n) => { dropped += n; moving.note_lost(Table::Samples, "writer_behind", *n); }
                    Step::Rotate => jobs.push(s.state.rotate(now)),
                    Step::Behind(n) => moving.hold(*n),
                }
                jobs.extend(s.state.tick(now));
                let p = &s.state.pending;
                assert!(p.bytes() <= FULL || p.samples.is_empty(), "{} bytes in memory", p.bytes());
                s.state.forget_vanished();
            }
            jobs.push(s.state.finish());
            totals = s.state.ledger.totals();
            for job in &jobs {
                let ledger = job.pending.batch(Table::Ledger, &s.state.names).expect("a batch");
                rows.add(&Accounts::of_rows(&ledger));
            }
            let (mut given, mut noted) = (Accounts::default(), Accounts::default());
            for job in &jobs {
                given.add(&handed_over(job, &s.state.names));
                noted.add(&job.account);
            }
            // what was lost later is in the losses, and no more in what is written
            given.lost_later(Table::Samples, "writer_behind", dropped);
            for table in Table::ALL {
                let written = |a: &Accounts| a.of(table).map_or(0, |a| a.written);
                assert_eq!(written(&noted), written(&given), "{}", table.as_str());
            }
            let lost = |reason: &str| noted.losses().filter(|(_, r, _)| *r == reason).map(|(.., n)| n).sum::<u64>();
            assert_eq!((lost("writer_behind"), lost("ring_full"), lost("agent_down")), (dropped, cut, 15));
            // the table, the accounts of the flushes and the totals are one account
            rows.subtract(&noted);
            assert_eq!(rows.rows(crate::accumulator::Stamp::default()), []);
            noted.subtract(&Accounts::from_json(&totals));
            assert_eq!(noted.rows(crate::accumulator::Stamp::default()), []);
        });
    }
}
