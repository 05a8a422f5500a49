//! A process that writes as the agent does: flushes with samples, events and incidents, their account, three rotations; and what must
//! be there of what it said is durable. Included by path, beside `child`, `faults` and `rows`; never in the product.
#![allow(dead_code, reason = "each test binary uses its own part")]

use crate::faults::{self, random};
use crate::rows::{self, BOOT_ID, KILL_US, KILLED, QUIET, batch, row_of, text};
use arrow::array::RecordBatch;
use crossbeam_channel::unbounded;
use fgm::accumulator::{NodeNames, Pending, Stamp};
use fgm::ledger::Ledger;
use fgm::names::Table;
use fgm::segment::Io;
use fgm::store::{Chunk, Kept, Loose, Store, View, Writer};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub const WAIT: Duration = Duration::from_secs(20);
pub const FLUSHES: u64 = 24;
/// A clock that is set jumps by as much.
const HOUR_US: i64 = 3_600_000_000;

/// Run and flush.
pub type Flush = (u64, u64);

/// When a flush is; with a seed, by a clock that somebody sets now and then.
fn at(run: u64, n: u64, seed: u64) -> i64 {
    let at = KILL_US + i64::try_from(run * 1_000_000 + n * 1000).expect("small");
    if seed == 0 {
        return at;
    }
    let mut state = seed.wrapping_mul(run * 10 + n / 5 + 1) | 1;
    let hours = i64::try_from(random(&mut state) % 7).expect("small") - 3;
    at + hours * HOUR_US
}

/// The rows of one flush; each has an instant of its own.
pub fn flush_of((run, n): Flush, seed: u64) -> Vec<(Table, RecordBatch)> {
    let at = at(run, n, seed);
    let samples = [rows::base(KILLED, at), rows::base(QUIET, at), rows::base(KILLED, at + 1)];
    let mut event = row_of(KILLED, at);
    event.extend([("event_id", text(format!("{run}-{n}"))), ("kind", text("exit"))]);
    let mut out = vec![
        (Table::Samples, batch(Table::Samples, &samples)),
        (Table::Events, batch(Table::Events, &[event])),
    ];
    if n.is_multiple_of(5) {
        let mut incident = rows::incident(1);
        (incident.id, incident.ts_us) = (format!("{run}-{n}"), at);
        out.push((Table::Incidents, batch(Table::Incidents, &[rows::incident_row(&incident)])));
    }
    out
}

/// Writes all flushes and says which are durable. `waits`: ends only when nobody holds its stdin any more.
pub fn write(dir: &Path, run: u64, seed: u64, io: Arc<dyn Io>, waits: bool) {
    let store = Store::open_on(dir, io.as_ref()).expect("opens");
    let writer = Writer::start_on(store, BOOT_ID, io).expect("starts");
    let (tell, kept) = unbounded();
    let mut say = io::stdout();
    let (mut ledger, mut given) = (Ledger::default(), BTreeMap::new());
    let names = NodeNames { cluster: None, node: rows::NODE.into(), boot_id: BOOT_ID.into() };
    let mut acknowledge = |given: &BTreeMap<u64, u64>, kept: &Kept| {
        if let Kept::Durable { seq } = kept {
            writeln!(say, "durable {}", given[seq])
                .and_then(|()| say.flush())
                .expect("a parent that listens");
        }
    };
    for n in 1..=FLUSHES {
        let mut chunk = flush_of((run, n), seed);
        for (table, batch) in &chunk {
            ledger.written(*table, batch.num_rows() as u64);
        }
        ledger.lost(Table::Samples, "late", n % 3);
        let at = Stamp { ktime_ns: run * 1_000_000 + n, wall_us: at(run, n, seed) };
        let is_rotation = n.is_multiple_of(8);
        // a minute and a rotation, as the loop has them
        if is_rotation || n.is_multiple_of(5) {
            let pending = Pending { ledger: ledger.close_period(at), ..Pending::default() };
            chunk.push((Table::Ledger, pending.batch(Table::Ledger, &names).expect("a batch")));
        }
        let metadata = rows::metadata();
        let flush = writer.keep(&Chunk { at, account: &ledger.flush(), rows: chunk, metadata: &metadata });
        given.insert(flush.seq, n);
        writer.journal(flush, Some(tell.clone()));
        if is_rotation {
            writer.rotate(n, metadata, None);
        }
        for k in kept.try_iter() {
            acknowledge(&given, &k);
        }
        std::thread::sleep(Duration::from_millis(n % 3));
    }
    if waits {
        let _ = io::stdin().read_to_end(&mut Vec::new());
    }
    writer.shutdown(WAIT).expect("in time");
    kept.try_iter().for_each(|k| acknowledge(&given, &k));
}

/// The flushes that a child said are durable.
pub fn durable(run: u64, said: &str) -> impl Iterator<Item = Flush> {
    let flushes = said.lines().filter_map(|l| l.strip_prefix("durable ")?.parse().ok());
    flushes.map(move |n| (run, n))
}

/// Rows of these flushes that are not there.
pub fn missing(view: &View, flushes: &BTreeSet<Flush>, seed: u64, what: &str) -> u64 {
    let mut missing = 0;
    for table in [Table::Samples, Table::Events, Table::Incidents] {
        let there: BTreeSet<String> = faults::keys(view, table).into_iter().collect();
        for flush in flushes {
            for (_, batch) in flush_of(*flush, seed).into_iter().filter(|(t, _)| *t == table) {
                let boot = BOOT_ID.to_owned();
                let wanted = View { loose: vec![Loose { table, boot, batch }], ..View::default() };
                let gone =
                    faults::keys(&wanted, table).into_iter().filter(|k| !there.contains(k)).count() as u64;
                if gone > 0 {
                    println!("{what}: {gone} rows of {} of flush {flush:?} are lost", table.as_str());
                }
                missing += gone;
            }
        }
    }
    missing
}
