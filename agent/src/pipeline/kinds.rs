//! The rows of the kinds of events that tell without deciding: kills, execs, reclaim, populated, frozen.
//!
//! Whether one starts a burst is `trigger`'s, what it means for an incident is `story`'s; here each becomes a row of the
//! `events` table with all that the kernel said. Called by `react`. Must never touch a file or keep state.

use super::state::State;
use crate::event::{Event, Exec, Kill, Kind, Outcome, Reclaim, Task};
use crate::names::{CgroupId, Severity};
use serde_json::{Value, json};

const SIGKILL: i32 = 9;

impl State {
    fn task_detail(&self, task: &Task) -> Value {
        json!({
            "pid": task.pid, "comm": task.comm, "cgroup_id": task.cgroup_id.map(|c| c.0),
            "cgroup_path": self.path_of(task.cgroup_id),
        })
    }

    /// The row of a kill; `None` when the target is in no cgroup that is followed.
    pub(super) fn kill(&mut self, ktime_ns: u64, source: &'static str, kill: &Kill) -> Option<Event> {
        let mut sender = self.task_detail(&kill.sender);
        sender["uid"] = json!(kill.sender_uid);
        sender["parent"] = self.task_detail(&kill.sender_parent);
        let detail = json!({
            "sent": kill.sent.as_str(), "by_kernel": kill.sent.by_kernel(), "outcome": kill.outcome.as_str(),
            "target_inner_pid": kill.target_inner_pid, "sender": sender,
        });
        let fatal = kill.signal == SIGKILL && kill.outcome == Outcome::Delivered;
        let severity = if fatal { Severity::Warning } else { Severity::Info };
        let mut event =
            self.owned_event(Kind::Kill, severity, ktime_ns, source, kill.target.cgroup_id?, detail)?;
        event.pid = kill.target.pid;
        event.comm = Some(kill.target.comm.clone());
        event.signal = Some(kill.signal);
        Some(event)
    }

    pub(super) fn exec(&mut self, ktime_ns: u64, source: &'static str, exec: &Exec) -> Option<Event> {
        let detail = json!({
            "filename": exec.filename, "inner_pid": exec.inner_pid, "first_process": exec.first_process,
        });
        let mut event =
            self.owned_event(Kind::Exec, Severity::Info, ktime_ns, source, exec.task.cgroup_id?, detail)?;
        event.pid = exec.task.pid;
        event.comm = Some(exec.task.comm.clone());
        Some(event)
    }

    pub(super) fn reclaim(
        &mut self,
        ktime_ns: u64,
        source: &'static str,
        reclaim: &Reclaim,
    ) -> Option<Event> {
        let detail = json!({
            "attribution": reclaim.attribution.as_str(), "count": reclaim.count, "total_ns": reclaim.total_ns,
            "longest_ns": reclaim.longest_ns,
        });
        let kind = Kind::MemoryReclaim;
        self.owned_event(kind, Severity::Warning, ktime_ns, source, reclaim.cgroup_id, detail)
    }

    /// `populated` or `frozen`.
    pub(super) fn flag(
        &mut self,
        kind: Kind,
        ktime_ns: u64,
        source: &'static str,
        id: CgroupId,
        value: bool,
    ) -> Option<Event> {
        self.owned_event(kind, Severity::Info, ktime_ns, source, id, json!({ "value": value }))
    }

    fn owned_event(
        &mut self,
        kind: Kind,
        severity: Severity,
        ktime_ns: u64,
        source: &'static str,
        id: CgroupId,
        detail: Value,
    ) -> Option<Event> {
        if self.tree.owner(id).is_none() {
            self.outside += 1;
            return None;
        }
        let mut event = self.event(kind, severity, ktime_ns, source, detail);
        event.cgroup_id = Some(id);
        Some(event)
    }
}
