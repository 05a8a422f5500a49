//! The two flags of cgroup.events: `cgroup:cgroup_notify_populated` and `cgroup:cgroup_notify_frozen`, v2 hierarchy only.
//!
//! `populated` is told for each cgroup up the tree whose state changes, the deepest first.

use crate::{
    oom::field,
    rate,
    read::{self, read},
    shared::{cut, emit, global},
};
use agent_ebpf::{FlagRecord, kind, mechanism};
use aya_ebpf::{
    helpers::bpf_ktime_get_ns,
    macros::{btf_tracepoint, raw_tracepoint, tracepoint},
    programs::{BtfTracePointContext, RawTracePointContext, TracePointContext},
};

#[inline(always)]
fn send(kind: u32, cgroup_id: u64, level: u32, value: bool, how: u32) {
    let ktime_ns = unsafe { bpf_ktime_get_ns() };
    let limits = (global!(SETTINGS.events_per_second), global!(SETTINGS.cgroups_per_second));
    if !rate::within_tree(kind, cgroup_id, level, limits, ktime_ns) {
        cut(kind);
        return;
    }
    emit::<FlagRecord>(kind, |record| {
        record.header.ktime_ns = ktime_ns;
        record.header.kind = kind;
        record.header.mechanism = how;
        record.cgroup_id = cgroup_id;
        record.value = u32::from(value);
        record._pad = 0;
    });
}

// TP_PROTO(struct cgroup *cgrp, const char *path, int val)
#[inline(always)]
fn changed(kind: u32, cgroup: *const u8, value: i32, how: u32) {
    if read::is_v2(cgroup) == Some(true) {
        let level = read(cgroup, global!(OFFSETS.cgroup_level)).unwrap_or(0);
        send(kind, read::cgroup_id(cgroup), level, value != 0, how);
    }
}

#[btf_tracepoint(function = "cgroup_notify_populated")]
pub fn populated_tp_btf(ctx: BtfTracePointContext) -> i32 {
    changed(kind::POPULATED, ctx.arg(0), ctx.arg(2), mechanism::TP_BTF);
    0
}

#[btf_tracepoint(function = "cgroup_notify_frozen")]
pub fn frozen_tp_btf(ctx: BtfTracePointContext) -> i32 {
    changed(kind::FROZEN, ctx.arg(0), ctx.arg(2), mechanism::TP_BTF);
    0
}

#[raw_tracepoint(tracepoint = "cgroup_notify_populated")]
pub fn populated_raw_tp(ctx: RawTracePointContext) -> i32 {
    changed(kind::POPULATED, ctx.arg(0), ctx.arg(2), mechanism::RAW_TP);
    0
}

#[raw_tracepoint(tracepoint = "cgroup_notify_frozen")]
pub fn frozen_raw_tp(ctx: RawTracePointContext) -> i32 {
    changed(kind::FROZEN, ctx.arg(0), ctx.arg(2), mechanism::RAW_TP);
    0
}

/// Offsets of one tracepoint's record.
struct Layout {
    root: u32,
    level: u32,
    id: u32,
    value: u32,
}

#[inline(always)]
fn changed_tracepoint(ctx: &TracePointContext, layout: &Layout, kind: u32) {
    if field::<i32>(ctx, layout.root) == Some(0)
        && let (Some(id), Some(value)) = (field(ctx, layout.id), field::<i32>(ctx, layout.value))
    {
        let level = field(ctx, layout.level).unwrap_or(0);
        send(kind, id, level, value != 0, mechanism::TRACEPOINT);
    }
}

#[tracepoint(category = "cgroup", name = "cgroup_notify_populated")]
pub fn populated_tracepoint(ctx: TracePointContext) -> u32 {
    let layout = Layout {
        root: global!(FORMATS.populated_root),
        level: global!(FORMATS.populated_level),
        id: global!(FORMATS.populated_id),
        value: global!(FORMATS.populated_val),
    };
    changed_tracepoint(&ctx, &layout, kind::POPULATED);
    0
}

#[tracepoint(category = "cgroup", name = "cgroup_notify_frozen")]
pub fn frozen_tracepoint(ctx: TracePointContext) -> u32 {
    let layout = Layout {
        root: global!(FORMATS.frozen_root),
        level: global!(FORMATS.frozen_level),
        id: global!(FORMATS.frozen_id),
        value: global!(FORMATS.frozen_val),
    };
    changed_tracepoint(&ctx, &layout, kind::FROZEN);
    0
}
