//! What the probes must know of the running kernel before they load: struct offsets, what the tracepoints pass, page
//! size, pid namespace.
//!
//! [`Facts::of`] is the only function here that reads files; the rest works on parsed BTF. A thing that is missing or
//! not as expected disables the hook that needs it ([`Facts::check`]), never another, and is named in the ladder.

use super::{
    Mechanism,
    btf::{Arg, Btf},
    format,
    hooks::{self, Function, Spec},
};
use agent_ebpf::{ABSENT, Formats, Offsets, Settings, Source};
use std::{fs, io, os::unix::fs::MetadataExt, path::Path};

pub(super) const BTF_PATH: &str = "/sys/kernel/btf/vmlinux";
const TRACEFS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// The kernel's side of the contract, as found on this machine.
pub struct Facts {
    pub offsets: Offsets,
    pub formats: Formats,
    pub settings: Settings,
    /// Whether a program can be sent to one task alone: the enum came with the link's parameter, in Linux 6.1.
    pub iterates_one_task: bool,
    /// Whether tracefs is mounted, without which no tracepoint can be attached by name.
    tracefs: bool,
    /// Why there is no BTF, with the mend.
    pub no_btf: Option<String>,
    /// Arguments of each tracepoint, `None` where BTF does not know it.
    args: Vec<(&'static str, Option<Vec<Arg>>)>,
    functions: Vec<(&'static str, Option<Vec<Arg>>)>,
}

pub(super) fn no_btf(e: &io::Error) -> String {
    format!("no BTF: {BTF_PATH}: {e}; it takes a kernel with CONFIG_DEBUG_INFO_BTF=y, and /sys mounted")
}

impl Facts {
    /// Of this machine, given its BTF or why there is none.
    pub fn of(btf: Result<&Btf, &String>) -> Self {
        let mut facts = match btf {
            Err(reason) => Self::without_btf(reason.clone()),
            Ok(btf) => Self::from_btf(btf),
        };
        facts.tracefs = TRACEFS.iter().any(|root| Path::new(root).join("events").is_dir());
        facts.formats = read_formats();
        facts.settings.pidns_inum = fs::metadata("/proc/self/ns/pid")
            .ok()
            .and_then(|meta| u32::try_from(meta.ino()).ok())
            .unwrap_or_default();
        facts.settings.page_size = u32::try_from(rustix::param::page_size()).unwrap_or(4096);
        facts
    }

    fn without_btf(reason: String) -> Self {
        Self {
            offsets: Offsets::ABSENT,
            formats: Formats::ABSENT,
            settings: Settings::NONE,
            iterates_one_task: false,
            tracefs: false,
            no_btf: Some(reason),
            args: Vec::new(),
            functions: Vec::new(),
        }
    }

    pub fn from_btf(btf: &Btf) -> Self {
        let mut facts = Self::without_btf(String::new());
        facts.no_btf = None;
        facts.offsets = resolve(btf);
        facts.iterates_one_task = btf.enumerator("BPF_TASK_ITER_TID").is_some();
        facts.args = hooks::specs().map(|s| (s.tracepoint, btf.tracepoint_args(s.tracepoint))).collect();
        facts.functions = hooks::FUNCTIONS.map(|f| (f.name, btf.function_args(f.name))).to_vec();
        facts.note_differences();
        facts
    }

    /// What the same tracepoint passes on one kernel and not on another.
    fn note_differences(&mut self) {
        let exit = self.args_of("sched_process_exit");
        let has_group_dead = matches!(exit, Some([_, Arg::Int(1)]));
        let reclaim = self.args_of("mm_vmscan_memcg_reclaim_begin");
        let names_memcg =
            matches!(reclaim, Some([_, _, Arg::StructPtr(of), ..]) if of == hooks::TRY_TO_FREE.first);
        // Without the offsets to follow the pointer, the current task's cgroup is better than nothing.
        let usable = self.check_offsets(hooks::TRY_TO_FREE.needs).is_ok();
        self.settings.exit_has_group_dead = u32::from(has_group_dead);
        self.settings.reclaim_has_memcg = u32::from(names_memcg && usable);
    }

    fn args_of(&self, tracepoint: &str) -> Option<&[Arg]> {
        self.args.iter().find(|(name, _)| *name == tracepoint)?.1.as_deref()
    }

    /// Whether a tracepoint can be used by a mechanism on this kernel; if not, why.
    pub fn check(&self, spec: &Spec, mechanism: Mechanism) -> Result<(), String> {
        if mechanism == Mechanism::Tracepoint {
            return self.check_format(spec.tracepoint);
        }
        if let Some(reason) = &self.no_btf {
            return Err(reason.clone());
        }
        self.check_tracepoint(spec)?;
        self.check_offsets(spec.needs)
    }

    fn check_tracepoint(&self, spec: &Spec) -> Result<(), String> {
        let name = spec.tracepoint;
        let Some(args) = self.args_of(name) else {
            return Err(format!("this kernel has no tracepoint {name}"));
        };
        let wrong =
            |&&(i, of): &&(usize, &str)| !matches!(args.get(i), Some(Arg::StructPtr(found)) if found == of);
        match spec.passes.iter().find(wrong) {
            None => Ok(()),
            Some((i, of)) => Err(format!(
                "{name} passes {args:?}, number {i} of which is not a struct {of}: older kernels pass a pid, from which no cgroup follows"
            )),
        }
    }

    /// Whether a function can be hooked at its entry and end.
    pub fn check_function(&self, function: &Function) -> Result<(), String> {
        if let Some(reason) = &self.no_btf {
            return Err(reason.clone());
        }
        let Function { name, first, needs } = *function;
        match self.functions.iter().find(|(known, _)| *known == name).and_then(|(_, args)| args.as_deref()) {
            None => Err(format!("this kernel has no function {name} to hook (inlined by its compiler)")),
            Some([Arg::StructPtr(of), ..]) if of == first => self.check_offsets(needs),
            Some(args) => Err(format!("{name} takes {args:?}, not a struct {first} first")),
        }
    }

    fn check_offsets(&self, needed: &[&[&str]]) -> Result<(), String> {
        let mut offsets = self.offsets;
        let missing: Vec<String> = offsets
            .fields()
            .filter(|(name, _, value)| **value == ABSENT && needed.iter().any(|group| group.contains(name)))
            .map(|(_, source, _)| describe(source))
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        Err(format!("this kernel's BTF has no {}; please report the kernel's version", missing.join(", ")))
    }

    fn check_format(&self, tracepoint: &str) -> Result<(), String> {
        let f = &self.formats;
        let needed: &[u32] = match tracepoint {
            "mark_victim" => &[f.victim_pid],
            "cgroup_mkdir" => &[f.mkdir_id, f.mkdir_root, f.mkdir_path],
            "cgroup_rmdir" => &[f.rmdir_id, f.rmdir_root, f.rmdir_path],
            "signal_generate" => {
                &[f.signal_sig, f.signal_pid, f.signal_code, f.signal_group, f.signal_result]
            }
            "cgroup_notify_populated" => &[f.populated_root, f.populated_id, f.populated_val],
            "cgroup_notify_frozen" => &[f.frozen_root, f.frozen_id, f.frozen_val],
            _ => &[],
        };
        match (self.tracefs, !needed.contains(&ABSENT)) {
            (true, true) => Ok(()),
            (true, false) => Err(format!("its format in {}/events is missing or unknown", TRACEFS[0])),
            (false, _) => Err(format!("no tracefs: mount -t tracefs tracefs {}", TRACEFS[0])),
        }
    }
}

fn describe(source: Source) -> String {
    match source {
        Source::Member(of, path) => format!("{of}.{path}"),
        Source::Size(of) => format!("struct {of}"),
        Source::Computed(what) => what.to_owned(),
    }
}

fn resolve(btf: &Btf) -> Offsets {
    let mut offsets = Offsets::ABSENT;
    for (_, source, value) in offsets.fields() {
        *value = match source {
            Source::Member(of, path) => btf.member(of, path),
            Source::Size(of) => btf.size(of),
            Source::Computed(_) => None,
        }
        .unwrap_or(ABSENT);
    }
    offsets.mm_rss_file = rss_counter(btf, "MM_FILEPAGES").unwrap_or(ABSENT);
    offsets.mm_rss_anon = rss_counter(btf, "MM_ANONPAGES").unwrap_or(ABSENT);
    offsets.mm_rss_shmem = rss_counter(btf, "MM_SHMEMPAGES").unwrap_or(ABSENT);
    offsets
}

/// Where the counter of one kind of pages lies in `mm_struct`: up to 6.1 `rss_stat` is a struct of `atomic_long_t`, since
/// 6.2 an array of `percpu_counter`, whose shared count is read, as the kernel itself does when it prints a kill. Either
/// lags: by what each thread counted since its last 64 faults, or by up to 32 pages per CPU (2 × CPUs of them above 16).
/// Anything else is not read.
fn rss_counter(btf: &Btf, which: &str) -> Option<u32> {
    let base = btf.member("mm_struct", "rss_stat")?;
    let index = btf.enumerator(which)?;
    let (stride, inner) = match btf.member_struct("mm_struct", "rss_stat")? {
        "mm_rss_stat" => (8, btf.member("mm_rss_stat", "count")?),
        "percpu_counter" => (btf.size("percpu_counter")?, btf.member("percpu_counter", "count")?),
        _ => return None,
    };
    base.checked_add(index.checked_mul(stride)?)?.checked_add(inner)
}

fn read_formats() -> Formats {
    let mut formats = Formats::ABSENT;
    let read = |event: &str| {
        TRACEFS.iter().find_map(|root| {
            fs::read_to_string(Path::new(root).join("events").join(event).join("format")).ok()
        })
    };
    for (event, parse) in [
        ("oom/mark_victim", format::mark_victim as fn(&str, &mut Formats)),
        ("cgroup/cgroup_mkdir", format::cgroup_mkdir),
        ("cgroup/cgroup_rmdir", format::cgroup_rmdir),
        ("sched/sched_process_exit", format::process_exit),
        ("sched/sched_process_exec", format::process_exec),
        ("signal/signal_generate", format::signal_generate),
        ("cgroup/cgroup_notify_populated", format::notify_populated),
        ("cgroup/cgroup_notify_frozen", format::notify_frozen),
    ] {
        if let Some(text) = read(event) {
            parse(&text, &mut formats);
        }
    }
    formats
}

#[cfg(test)]
mod tests {
    use super::*;
    use hooks::{ALONE, CGROUP_MKDIR, CGROUP_RMDIR, MARK_VICTIM, PROCESS_EXIT, SIGNAL_GENERATE, TRY_TO_FREE};

    /// A kernel whose every offset is 8 and whose every tracepoint passes what it should.
    fn ideal() -> Facts {
        let mut facts = Facts::without_btf(String::new());
        facts.no_btf = None;
        for (_, _, value) in facts.offsets.fields() {
            *value = 8;
        }
        facts.args = hooks::specs()
            .map(|spec| {
                let mut args = vec![Arg::Int(4); 5];
                for &(i, of) in spec.passes {
                    args[i] = Arg::StructPtr(of.into());
                }
                (spec.tracepoint, Some(args))
            })
            .collect();
        facts
    }

    #[test]
    fn needs_name_offsets_that_exist() {
        let mut offsets = Offsets::ABSENT;
        let names: Vec<&str> = offsets.fields().map(|(name, ..)| name).collect();
        let of_specs = hooks::specs().map(|s| (s.tracepoint, s.needs));
        for (hook, needs) in of_specs.chain(hooks::FUNCTIONS.map(|f| (f.name, f.needs))) {
            for need in needs.iter().copied().flatten() {
                assert!(names.contains(need), "{hook} needs {need}, which is no offset");
            }
        }
    }

    #[test]
    fn this_kernel_has_all_offsets_and_signatures() {
        let Ok(data) = fs::read(BTF_PATH) else {
            println!("SKIPPED: no {BTF_PATH}");
            return;
        };
        let facts = Facts::from_btf(&Btf::parse(data).unwrap());
        let mut offsets = facts.offsets;
        let missing: Vec<String> =
            offsets.fields().filter(|(_, _, v)| **v == ABSENT).map(|(_, s, _)| describe(s)).collect();
        assert!(missing.is_empty(), "missing: {missing:?}");
        for spec in ALONE {
            assert_eq!(facts.check(spec, Mechanism::TpBtf), Ok(()));
        }
    }

    #[test]
    fn without_btf_only_the_tracepoint_is_left() {
        let mut facts = Facts::without_btf("no BTF here".into());
        assert_eq!(facts.check(&CGROUP_MKDIR, Mechanism::TpBtf), Err("no BTF here".into()));
        assert_eq!(facts.check_function(&TRY_TO_FREE), Err("no BTF here".into()));
        let refused = |facts: &Facts| facts.check(&CGROUP_MKDIR, Mechanism::Tracepoint).unwrap_err();
        assert!(refused(&facts).contains("mount -t tracefs"));
        facts.tracefs = true;
        assert!(refused(&facts).contains("format"));
        facts.formats.mkdir_id = 16;
        facts.formats.mkdir_root = 8;
        facts.formats.mkdir_path = 24;
        assert_eq!(facts.check(&CGROUP_MKDIR, Mechanism::Tracepoint), Ok(()));
    }

    #[test]
    fn a_tracepoint_that_passes_a_pid_is_refused() {
        let mut facts = ideal();
        facts.args.retain(|(name, _)| *name != "mark_victim" && *name != "signal_generate");
        let pid_only = vec![Arg::Int(4), Arg::Ptr, Arg::Int(4)];
        facts.args.extend([("mark_victim", Some(vec![Arg::Int(4)])), ("signal_generate", Some(pid_only))]);
        let reason = facts.check(&MARK_VICTIM, Mechanism::TpBtf).unwrap_err();
        assert!(reason.contains("pid") && reason.contains("task_struct"), "{reason}");
        let reason = facts.check(&SIGNAL_GENERATE, Mechanism::RawTp).unwrap_err();
        assert!(reason.contains("kernel_siginfo"), "{reason}");
        assert_eq!(facts.check(&PROCESS_EXIT, Mechanism::TpBtf), Ok(()));
    }

    #[test]
    fn what_kernels_pass_beside_the_task_is_known_by_its_type() {
        let of = |tracepoint: &'static str, args: &[Arg]| {
            let mut facts = ideal();
            facts.args.retain(|(name, _)| *name != tracepoint);
            facts.args.push((tracepoint, Some(args.to_vec())));
            facts.note_differences();
            (facts.settings.exit_has_group_dead, facts.settings.reclaim_has_memcg)
        };
        let task = || Arg::StructPtr("task_struct".into());
        let memcg = || Arg::StructPtr("mem_cgroup".into());
        // 6.1 and 6.12, 6.18 and 7.3
        assert_eq!(of("sched_process_exit", &[task()]).0, 0);
        assert_eq!(of("sched_process_exit", &[task(), Arg::Int(1)]).0, 1);
        assert_eq!(of("sched_process_exit", &[task(), Arg::Int(4)]).0, 0, "no bool");
        // up to 6.18, 7.3
        let reclaim = "mm_vmscan_memcg_reclaim_begin";
        assert_eq!(of(reclaim, &[Arg::Int(4), Arg::Int(4)]).1, 0);
        assert_eq!(of(reclaim, &[Arg::Int(4), Arg::Int(4), memcg()]).1, 1);
        assert_eq!(of(reclaim, &[Arg::Int(4), Arg::Int(4), task()]).1, 0);
        let mut facts = ideal();
        facts.args.push((reclaim, Some(vec![Arg::Int(4), Arg::Int(4), memcg()])));
        facts.args.retain(|(name, args)| *name != reclaim || args.as_ref().is_some_and(|a| a.len() == 3));
        facts.offsets.memcg_cgroup = ABSENT;
        facts.note_differences();
        assert_eq!(facts.settings.reclaim_has_memcg, 0, "a pointer that cannot be followed");
    }

    #[test]
    fn a_missing_offset_disables_only_the_hook_that_needs_it() {
        let mut facts = ideal();
        facts.offsets.signal_live = ABSENT;
        let reason = facts.check(&PROCESS_EXIT, Mechanism::TpBtf).unwrap_err();
        assert!(reason.contains("signal_struct.live"), "{reason}");
        assert_eq!(facts.check(&MARK_VICTIM, Mechanism::TpBtf), Ok(()));
        assert_eq!(facts.check(&CGROUP_RMDIR, Mechanism::RawTp), Ok(()));
        assert_eq!(facts.check(&SIGNAL_GENERATE, Mechanism::RawTp), Ok(()));
    }
}
