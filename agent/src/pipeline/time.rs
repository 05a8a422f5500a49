//! The wall clock that is set anew, and the machine that was suspended: noticed once a second, told as an event and in the
//! status. Rows before and after keep the monotonic time that orders them. Must never correct a row that is written.

use super::state::State;
use crate::clock::{Offset, Step};
use crate::event::Kind;
use serde_json::{Value, json};

/// What became of the clock since the start.
#[derive(Default)]
pub(super) struct Steps {
    count: u64,
    last: Option<(u64, Step)>,
}

impl Steps {
    pub fn status(&self) -> Value {
        let last = self.last.map(|(ktime_ns, step)| {
            json!({"ktime_ns": ktime_ns, "wall_step_ns": step.wall_ns, "suspended_ns": step.suspended_ns})
        });
        json!({"count": self.count, "last": last})
    }
}

impl State {
    pub(super) fn measure_clock(&mut self, now: u64) {
        let offset = Offset::measure();
        let step = offset.step_since(self.offset);
        self.offset = offset;
        let Some(step) = step else { return };
        self.clock_steps.count += 1;
        self.clock_steps.last = Some((now, step));
        let detail = json!({
            "wall_step_ns": step.wall_ns, "suspended_ns": step.suspended_ns, "offset_ns": offset.as_ns(),
        });
        tracing::warn!(
            wall_step_ns = step.wall_ns,
            suspended_ns = step.suspended_ns,
            "the wall clock jumped"
        );
        let mut event = self.event(Kind::ClockStep, Kind::ClockStep.severity(), now, "clock", detail);
        let root = self.tree.root();
        event.cgroup_id = Some(root);
        let meta = self.tree.get(root).map(|n| n.meta.clone());
        self.record(event, meta);
    }
}
