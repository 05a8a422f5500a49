//! When rows leave the loop: in flushes for the journal, and at the end of a rotation. Must never wait for who takes them, and
//! never hold more than its bounds: what nobody has time to write goes, counted.

use super::names::NAMES_WITHIN;
use super::sealer::{Job, Moving};
use super::state::State;
use crate::clock;
use crate::incident::Incident;
use crate::names::Table;
use crate::store::DropReason;
use std::sync::Arc;

const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MS;
/// Rows go to the journal this often. A crash may cost a second of them; the rest of it is for making batches and for a
/// machine that is busy.
const FLUSH_EVERY: u64 = 600 * MS;
/// Two flushes are at least this far apart, however many incidents want one.
const FLUSH_GAP: u64 = 100 * MS;
/// Two rotations are at least this far apart, whoever wants one.
const ROTATION_GAP: u64 = 250 * MS;
/// A rotation that waits for names looks again so often.
const NAMES_AGAIN: u64 = 250 * MS;
const MINUTE: u64 = 60 * SECOND;
/// The sealer is behind with so many jobs: rows wait in the loop, so that the next is a large one, which is less work by far.
const BEHIND: usize = 2;
/// Full jobs that may wait for the sealer: beyond them readings go, since memory is what a recorder must not take from its node.
const MOST_JOBS: usize = 4;

pub(super) struct Handover {
    moving: Moving,
    /// Rows held beyond this are handed over before their time: a history of many containers.
    full_bytes: usize,
    rotation: u64,
    every_ns: u64,
    next_rotation: u64,
    /// While it waits for names: when it ceases to.
    names_until: Option<u64>,
    last_rotation: u64,
    next_flush: u64,
    last_flush: u64,
    /// Rows that should be on the disk at once.
    wanted: bool,
}

impl Handover {
    pub fn new(rotation_every_s: u64, now: u64) -> Self {
        let every_ns = rotation_every_s * SECOND;
        Self {
            moving: Moving::default(),
            full_bytes: 16 << 20,
            rotation: 0,
            every_ns,
            next_rotation: now + every_ns,
            names_until: None,
            last_rotation: now,
            next_flush: now + FLUSH_EVERY,
            last_flush: now,
            wanted: false,
        }
    }

    /// Where rows are after they were handed over.
    pub fn moving(&self) -> &Moving {
        &self.moving
    }

    pub fn set_moving(&mut self, moving: Moving) {
        self.moving = moving;
    }

    #[cfg(test)]
    pub fn set_full_bytes(&mut self, bytes: usize) {
        self.full_bytes = bytes;
    }

    #[cfg(test)]
    pub fn rotate_at(&mut self, ktime_ns: u64) {
        self.next_rotation = ktime_ns;
    }

    pub fn next_due(&self) -> u64 {
        let flush = if self.wanted { self.last_flush + FLUSH_GAP } else { self.next_flush };
        flush.min(self.next_rotation)
    }
}

impl State {
    /// A job when one is due.
    pub(super) fn hand_over(&mut self, now: u64) -> Option<Job> {
        if self.handover.next_rotation <= now && self.waits_for_names(now) {
            self.handover.next_rotation = now + NAMES_AGAIN;
        }
        let h = &self.handover;
        let gap_is_over = now >= h.last_rotation + ROTATION_GAP;
        if h.next_rotation <= now || (gap_is_over && h.moving.wants_rotation()) {
            return Some(self.rotate(now));
        }
        let jobs = h.moving.jobs();
        if self.pending.bytes() > h.full_bytes {
            if jobs < MOST_JOBS {
                return Some(self.flush(now));
            }
            self.drop_readings();
        }
        let h = &mut self.handover;
        let is_due = h.next_flush <= now || (h.wanted && now >= h.last_flush + FLUSH_GAP);
        if is_due && jobs >= BEHIND {
            // looked at again a moment later
            h.next_flush = now + FLUSH_GAP;
            h.last_flush = now;
            return None;
        }
        is_due.then(|| self.flush(now))
    }

    fn waits_for_names(&mut self, now: u64) -> bool {
        let Some(pods) = self.pods.as_ref().filter(|pods| pods.changes() > 0) else { return false };
        now < *self.handover.names_until.get_or_insert(now + NAMES_WITHIN)
            && self.young.wait_for_names(pods, now)
    }

    /// Readings that nobody has time to write. What the kernel told, incidents and the account stay.
    fn drop_readings(&mut self) {
        for (table, rows) in self.pending.drop_readings() {
            self.ledger.lost_later(table, DropReason::WriterBehindIncident.as_str(), rows);
        }
    }

    pub(super) fn close_ledger(&mut self, now: u64) {
        self.next.minute = now + MINUTE;
        let stamp = self.stamp(now);
        self.pending.ledger.extend(self.ledger.close_period(stamp));
    }

    /// Hands all rows over to the journal.
    fn flush(&mut self, now: u64) -> Job {
        self.handover.wanted = false;
        self.handover.last_flush = now;
        self.handover.next_flush = now + FLUSH_EVERY;
        Job {
            pending: Arc::new(std::mem::take(&mut self.pending)),
            at: self.stamp(now),
            account: self.ledger.flush(),
            rotation: None,
            clock_offset_ns: self.offset.as_ns(),
        }
    }

    /// Hands all rows over and ends a rotation. Its ledger is whole: the account of its rows ends with it.
    pub fn rotate(&mut self, now: u64) -> Job {
        let h = &mut self.handover;
        h.rotation += 1;
        h.last_rotation = now;
        h.next_rotation = now + h.every_ns;
        h.names_until = None;
        let rotation = Some(h.rotation);
        for (table, reason, rows) in h.moving.take_lost().into_iter().filter(|(t, ..)| *t != Table::Ledger) {
            self.ledger.lost_later(table, reason, rows);
        }
        self.close_ledger(now);
        Job { rotation, ..self.flush(now) }
    }

    /// The last rows of a run.
    pub fn finish(&mut self) -> Job {
        let now = clock::ktime_ns();
        for incident in self.story.close_all(now) {
            self.revise(incident);
        }
        self.rotate(now)
    }

    /// A revision of an incident: a row, which is announced once it is on disk. One that is not handed over yet gives
    /// way to its successor, which says all that it said: a storm of kills makes no more revisions than flushes.
    pub(super) fn revise(&mut self, incident: Incident) {
        if incident.revision == 1 {
            metrics::counter!("fgm_incidents_total", "kind" => incident.kind.clone()).increment(1);
        }
        if let Some(earlier) = self.pending.incidents.iter_mut().find(|i| i.id == incident.id) {
            *earlier = incident;
        } else {
            self.ledger.written(Table::Incidents, 1);
            self.pending.incidents.push(incident);
        }
        self.handover.wanted = true;
    }
}
