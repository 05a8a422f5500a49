//! Writes a data folder as an agent leaves it: `recorded DIR [NODE]`: three finished hours of a small node with an OOM kill in the
//! first, compacted. For checks that need such a folder and no kernel; never in the product.

#[path = "../tests/support/rows.rs"]
mod rows;

use fgm::incident::Incident;
use fgm::names::Table;
use fgm::segment::{Disk, HOUR_US};
use fgm::store::{Rules, SealResult, Store, Writer};
use rows::{KILL_US, KILLED, QUIET};
use std::path::PathBuf;
use std::time::Duration;

const WAIT: Duration = Duration::from_secs(60);
const HOURS: i64 = 3;
const HOUR: i64 = KILL_US - KILL_US % HOUR_US;

fn main() {
    let mut args = std::env::args_os().skip(1);
    let dir = PathBuf::from(args.next().expect("recorded DIR"));
    if let Some(node) = args.next() {
        rows::be(&node.to_string_lossy());
    }
    let store = Store::open(&dir).expect("opens");
    let writer = Writer::start(store.clone(), rows::boot_id()).expect("starts");
    let (tell, told) = crossbeam_channel::unbounded();
    for hour in 0..HOURS {
        let at = HOUR + hour * HOUR_US;
        let mut all = if hour == 0 { rows::all() } else { Vec::new() };
        if hour > 0 {
            let seconds = (0..600).flat_map(|s| [KILLED, QUIET].map(|c| rows::base(c, at + s * 1_000_000)));
            all.push((Table::Samples, rows::batch(Table::Samples, &seconds.collect::<Vec<_>>())));
        }
        all.push(rows::ledger_of(&all, at + 900_000_000));
        writer.seal(1, all, rows::metadata(), Some(tell.clone()));
        assert!(matches!(told.recv_timeout(WAIT), Ok(SealResult::Stored { .. })), "stored");
    }
    writer.shutdown(WAIT).expect("in time");
    let done = store.compact(&Disk, HOUR + (HOURS + 1) * HOUR_US, &Rules::default(), &|| false);
    assert!(done.left.is_empty() && done.set_aside.is_empty(), "{done:?}");
    let incident = Incident { closed: true, ..rows::incident(2) };
    println!("{} files, {}", done.made.len(), incident.id);
}
