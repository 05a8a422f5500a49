//! What the loop publishes for other threads: incidents that are on disk, and the state of the agent.

use crate::incident::Incident;
use serde_json::Value;
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Incidents kept in memory, the latest revision of each; older ones are in the store.
pub const MAX_INCIDENTS: usize = 1000;

#[derive(Default)]
pub struct Shared {
    incidents: Mutex<VecDeque<Incident>>,
    status: Mutex<Option<Value>>,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Adds an incident, or replaces its earlier revision.
    pub fn announce(&self, incident: Incident) {
        let mut all = lock(&self.incidents);
        match all.iter_mut().find(|i| i.id == incident.id) {
            Some(have) if have.revision <= incident.revision => *have = incident,
            Some(_) => {}
            None => {
                all.push_front(incident);
                all.truncate(MAX_INCIDENTS);
            }
        }
    }

    /// Those that somebody wants, in no order.
    pub fn incidents_that(&self, wanted: &dyn Fn(&Incident) -> bool) -> Vec<Incident> {
        lock(&self.incidents).iter().filter(|i| wanted(i)).cloned().collect()
    }

    /// Newest first.
    pub fn incidents(&self) -> Vec<Incident> {
        let mut all: Vec<_> = lock(&self.incidents).iter().cloned().collect();
        all.sort_by(|a, b| b.ts_us.cmp(&a.ts_us).then_with(|| b.id.cmp(&a.id)));
        all
    }

    pub fn set_status(&self, status: Value) {
        *lock(&self.status) = Some(status);
    }

    /// `None` until the loop has run once.
    pub fn status(&self) -> Option<Value> {
        lock(&self.status).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn incident(id: &str, revision: u32, ts_us: i64) -> Incident {
        Incident { id: id.into(), revision, ts_us, ..Incident::default() }
    }

    #[test]
    fn the_latest_revision_stands_and_the_list_is_bounded() {
        let s = Shared::default();
        s.announce(incident("a", 2, 1));
        s.announce(incident("a", 1, 1));
        s.announce(incident("b", 1, 2));
        let got: Vec<_> = s.incidents().into_iter().map(|i| (i.id, i.revision)).collect();
        assert_eq!(got, [("b".to_owned(), 1), ("a".to_owned(), 2)]);
        for i in 0..2 * MAX_INCIDENTS {
            s.announce(incident(&format!("c{i}"), 1, 3));
        }
        assert_eq!(s.incidents().len(), MAX_INCIDENTS);
    }
}
