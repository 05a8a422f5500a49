//! Cgroups that come and go: `cgroup:cgroup_mkdir` and `cgroup:cgroup_rmdir`, of the v2 hierarchy only.
//!
//! A machine with v1 controllers fires both for every hierarchy, whose ids overlap; the others are dropped here.

use crate::{
    inits,
    oom::field,
    rate,
    read::{self, follow, read},
    reclaim,
    shared::{cut, emit, global},
};
use agent_ebpf::{ABSENT, CgroupRecord, kind, mechanism};
use aya_ebpf::{
    EbpfContext,
    helpers::bpf_ktime_get_ns,
    macros::{btf_tracepoint, raw_tracepoint, tracepoint},
    programs::{BtfTracePointContext, RawTracePointContext, TracePointContext},
};
use aya_log_ebpf::debug;

/// What the other hooks must know of it, told or not.
#[inline(always)]
fn note(kind: u32, cgroup_id: u64) {
    if kind == kind::CGROUP_START {
        inits::cgroup_made(cgroup_id);
    } else {
        reclaim::forget(cgroup_id);
    }
}

/// By parent: who makes cgroups in a loop makes them below his own.
#[inline(always)]
fn within_rate(kind: u32, parent_id: u64, level: u32, ktime_ns: u64) -> bool {
    let limit = global!(SETTINGS.cgroups_per_second);
    let within = rate::within_tree(kind, parent_id, level, (limit, limit), ktime_ns);
    if !within {
        cut(kind);
    }
    within
}

// TP_PROTO(struct cgroup *cgrp, const char *path)
#[inline(always)]
fn changed(ctx: &impl EbpfContext, cgroup: *const u8, path: *const u8, kind: u32, how: u32) {
    match read::is_v2(cgroup) {
        Some(true) => {}
        Some(false) => return,
        None => {
            debug!(ctx, "cgroup event: the hierarchy can't be read");
            return;
        }
    }
    let cgroup_id = read::cgroup_id(cgroup);
    let parent_id = follow(cgroup, global!(OFFSETS.cgroup_parent_css))
        .and_then(|css| follow(css, global!(OFFSETS.css_cgroup)))
        .map_or(0, |parent| read::cgroup_id(parent));
    let level = read(cgroup, global!(OFFSETS.cgroup_level)).unwrap_or(0);
    let ktime_ns = unsafe { bpf_ktime_get_ns() };
    note(kind, cgroup_id);
    if !within_rate(kind, parent_id, level, ktime_ns) {
        return;
    }
    emit::<CgroupRecord>(kind, |record| {
        record.header.ktime_ns = ktime_ns;
        record.header.kind = kind;
        record.header.mechanism = how;
        record.cgroup_id = cgroup_id;
        record.parent_id = parent_id;
        record.level = level;
        record.path_len = read::read_str(path, &mut record.path);
    });
}

/// Offsets of one tracepoint's record.
struct Layout {
    root: u32,
    level: u32,
    id: u32,
    path: u32,
}

#[inline(always)]
fn changed_tracepoint(ctx: &TracePointContext, layout: &Layout, kind: u32) {
    if field::<i32>(ctx, layout.root) != Some(0) {
        return;
    }
    let (cgroup_id, level) = (field(ctx, layout.id).unwrap_or(0), field(ctx, layout.level).unwrap_or(0));
    let ktime_ns = unsafe { bpf_ktime_get_ns() };
    note(kind, cgroup_id);
    // The record does not tell the parent: the cgroup of who makes it stands in.
    if !within_rate(kind, read::current_cgroup_id(), level, ktime_ns) {
        return;
    }
    emit::<CgroupRecord>(kind, |record| {
        record.header.ktime_ns = ktime_ns;
        record.header.kind = kind;
        record.header.mechanism = mechanism::TRACEPOINT;
        record.cgroup_id = cgroup_id;
        record.parent_id = 0;
        record.level = level;
        record.path_len = match field::<u32>(ctx, layout.path) {
            Some(loc) if layout.path != ABSENT => read::read_str(
                ctx.as_ptr().cast::<u8>().wrapping_add((loc & 0xffff) as usize),
                &mut record.path,
            ),
            _ => 0,
        };
    });
}

#[btf_tracepoint(function = "cgroup_mkdir")]
pub fn mkdir_tp_btf(ctx: BtfTracePointContext) -> i32 {
    changed(&ctx, ctx.arg(0), ctx.arg(1), kind::CGROUP_START, mechanism::TP_BTF);
    0
}

#[btf_tracepoint(function = "cgroup_rmdir")]
pub fn rmdir_tp_btf(ctx: BtfTracePointContext) -> i32 {
    changed(&ctx, ctx.arg(0), ctx.arg(1), kind::CGROUP_END, mechanism::TP_BTF);
    0
}

#[raw_tracepoint(tracepoint = "cgroup_mkdir")]
pub fn mkdir_raw_tp(ctx: RawTracePointContext) -> i32 {
    changed(&ctx, ctx.arg(0), ctx.arg(1), kind::CGROUP_START, mechanism::RAW_TP);
    0
}

#[raw_tracepoint(tracepoint = "cgroup_rmdir")]
pub fn rmdir_raw_tp(ctx: RawTracePointContext) -> i32 {
    changed(&ctx, ctx.arg(0), ctx.arg(1), kind::CGROUP_END, mechanism::RAW_TP);
    0
}

#[tracepoint(category = "cgroup", name = "cgroup_mkdir")]
pub fn mkdir_tracepoint(ctx: TracePointContext) -> u32 {
    let layout = Layout {
        root: global!(FORMATS.mkdir_root),
        level: global!(FORMATS.mkdir_level),
        id: global!(FORMATS.mkdir_id),
        path: global!(FORMATS.mkdir_path),
    };
    changed_tracepoint(&ctx, &layout, kind::CGROUP_START);
    0
}

#[tracepoint(category = "cgroup", name = "cgroup_rmdir")]
pub fn rmdir_tracepoint(ctx: TracePointContext) -> u32 {
    let layout = Layout {
        root: global!(FORMATS.rmdir_root),
        level: global!(FORMATS.rmdir_level),
        id: global!(FORMATS.rmdir_id),
        path: global!(FORMATS.rmdir_path),
    };
    changed_tracepoint(&ctx, &layout, kind::CGROUP_END);
    0
}
