//! What the probes must know of the running kernel before they load: struct offsets, what the tracepoints pass, page
//! size, pid namespace.
//!
//! [`Facts::read`] is the only function here that reads files; the rest works on parsed BTF. A thing that is missing or
//! not as expected disables the hook that needs it ([`Facts::check`]), never another, and is named in the ladder.

use super::{
    Mechanism,
    btf::{Arg, Btf},
    format,
};
use agent_ebpf::{ABSENT, Formats, Offsets, Settings, Source};
use std::{fs, os::unix::fs::MetadataExt, path::Path};

const BTF_PATH: &str = "/sys/kernel/btf/vmlinux";
const TRACEFS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// The kernel's side of the contract, as found on this machine.
pub struct Facts {
    pub offsets: Offsets,
    pub formats: Formats,
    pub settings: Settings,
    /// Whether tracefs is mounted, without which no tracepoint can be attached by name.
    tracefs: bool,
    /// Why there is no BTF, with the mend.
    pub no_btf: Option<String>,
    /// Arguments of each tracepoint, `None` where BTF does not know it.
    args: Vec<(&'static str, Option<Vec<Arg>>)>,
    functions: Vec<(&'static str, Option<Vec<Arg>>)>,
}

pub const TRACEPOINTS: [&str; 4] = ["mark_victim", "cgroup_mkdir", "cgroup_rmdir", "sched_process_exit"];
const FUNCTIONS: [&str; 2] = ["oom_kill_process", "__oom_kill_process"];

impl Facts {
    pub fn read() -> Self {
        let mut facts = match fs::read(BTF_PATH) {
            Err(e) => Self::without_btf(format!(
                "no BTF: {BTF_PATH}: {e}; it takes a kernel with CONFIG_DEBUG_INFO_BTF=y, and /sys mounted"
            )),
            Ok(data) => match Btf::parse(data) {
                Err(e) => Self::without_btf(format!("{BTF_PATH}: {e}")),
                Ok(btf) => Self::from_btf(&btf),
            },
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
            settings: Settings {
                pidns_inum: 0,
                page_size: 4096,
                exit_has_group_dead: 0,
                exits_per_second: 0,
            },
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
        facts.args = TRACEPOINTS.map(|name| (name, btf.tracepoint_args(name))).to_vec();
        facts.functions = FUNCTIONS.map(|name| (name, btf.function_args(name))).to_vec();
        let exit = facts.args_of("sched_process_exit");
        facts.settings.exit_has_group_dead = u32::from(matches!(exit, Some([_, Arg::Int(1)])));
        facts
    }

    fn args_of(&self, tracepoint: &str) -> Option<&[Arg]> {
        self.args.iter().find(|(name, _)| *name == tracepoint)?.1.as_deref()
    }

    /// Whether a hook can be used by a mechanism on this kernel; if not, why.
    pub fn check(&self, hook: &str, mechanism: Mechanism) -> Result<(), String> {
        match mechanism {
            Mechanism::TpBtf | Mechanism::RawTp => {
                if let Some(reason) = &self.no_btf {
                    return Err(reason.clone());
                }
                self.check_tracepoint(hook)?;
                self.check_offsets(needs(hook))
            }
            Mechanism::Fentry => {
                if let Some(reason) = &self.no_btf {
                    return Err(reason.clone());
                }
                self.check_function(hook)?;
                self.check_offsets(needs(hook))
            }
            Mechanism::Tracepoint => self.check_format(hook),
        }
    }

    fn check_tracepoint(&self, name: &str) -> Result<(), String> {
        let expected = match name {
            "mark_victim" | "sched_process_exit" => "task_struct",
            _ => "cgroup",
        };
        match self.args_of(name) {
            None => Err(format!("this kernel has no tracepoint {name}")),
            Some([Arg::StructPtr(of), ..]) if of == expected => Ok(()),
            Some(args) => Err(format!(
                "{name} passes {args:?} first, not a struct {expected}: older kernels pass a pid, from which no cgroup follows"
            )),
        }
    }

    fn check_function(&self, name: &str) -> Result<(), String> {
        let expected = if name == "oom_kill_process" { "oom_control" } else { "task_struct" };
        match self
            .functions
            .iter()
            .find(|(function, _)| *function == name)
            .and_then(|(_, args)| args.as_deref())
        {
            None => Err(format!("this kernel has no function {name} to hook (inlined by its compiler)")),
            Some([Arg::StructPtr(of), ..]) if of == expected => Ok(()),
            Some(args) => Err(format!("{name} takes {args:?}, not a struct {expected} first")),
        }
    }

    fn check_offsets(&self, needed: &[&str]) -> Result<(), String> {
        let mut offsets = self.offsets;
        let missing: Vec<String> = offsets
            .fields()
            .filter(|(name, _, value)| **value == ABSENT && needed.contains(name))
            .map(|(_, source, _)| describe(source))
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        Err(format!("this kernel's BTF has no {}; please report the kernel's version", missing.join(", ")))
    }

    fn check_format(&self, hook: &str) -> Result<(), String> {
        let f = &self.formats;
        let found = match hook {
            "mark_victim" => f.victim_pid != ABSENT,
            "cgroup_mkdir" => f.mkdir_id != ABSENT && f.mkdir_root != ABSENT && f.mkdir_path != ABSENT,
            "cgroup_rmdir" => f.rmdir_id != ABSENT && f.rmdir_root != ABSENT && f.rmdir_path != ABSENT,
            _ => true,
        };
        match (self.tracefs, found) {
            (true, true) => Ok(()),
            (true, false) => Err(format!("its format in {}/events is missing or unknown", TRACEFS[0])),
            (false, _) => Err(format!("no tracefs: mount -t tracefs tracefs {}", TRACEFS[0])),
        }
    }
}

/// Offsets without which a hook is of no use. The others make single values NULL.
fn needs(hook: &str) -> &'static [&'static str] {
    const TASK: [&str; 9] = [
        "task_group_leader",
        "task_thread_pid",
        "pid_level",
        "pid_numbers",
        "upid_nr",
        "upid_ns",
        "upid_size",
        "pidns_inum",
        "task_signal",
    ];
    match hook {
        "mark_victim" => &[
            TASK[0],
            TASK[1],
            TASK[2],
            TASK[3],
            TASK[4],
            TASK[5],
            TASK[6],
            TASK[7],
            "task_comm",
            "task_cgroups",
            "css_set_dfl_cgrp",
            "cgroup_kn",
            "kernfs_id",
        ],
        "cgroup_mkdir" | "cgroup_rmdir" => &["cgroup_kn", "kernfs_id", "cgroup_root", "root_hierarchy_id"],
        "sched_process_exit" => &[
            TASK[0],
            TASK[1],
            TASK[2],
            TASK[3],
            TASK[4],
            TASK[5],
            TASK[6],
            TASK[7],
            TASK[8],
            "signal_live",
            "signal_flags",
            "signal_group_exit_code",
            "task_exit_code",
            "task_start_time",
        ],
        "oom_kill_process" => &[
            "oc_memcg",
            "memcg_cgroup",
            "memcg_max",
            "memcg_usage",
            "cgroup_kn",
            "kernfs_id",
            "cgroup_root",
            "root_hierarchy_id",
        ],
        _ => &[],
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

    #[test]
    fn needs_name_offsets_that_exist() {
        let mut offsets = Offsets::ABSENT;
        let names: Vec<&str> = offsets.fields().map(|(name, ..)| name).collect();
        for hook in TRACEPOINTS.iter().chain(&FUNCTIONS) {
            for need in needs(hook) {
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
        for hook in TRACEPOINTS {
            assert_eq!(facts.check(hook, Mechanism::TpBtf), Ok(()));
        }
    }

    #[test]
    fn without_btf_only_the_tracepoint_is_left() {
        let mut facts = Facts::without_btf("no BTF here".into());
        assert_eq!(facts.check("cgroup_mkdir", Mechanism::TpBtf), Err("no BTF here".into()));
        assert!(facts.check("cgroup_mkdir", Mechanism::Tracepoint).unwrap_err().contains("mount -t tracefs"));
        facts.tracefs = true;
        assert!(facts.check("cgroup_mkdir", Mechanism::Tracepoint).unwrap_err().contains("format"));
        facts.formats.mkdir_id = 16;
        facts.formats.mkdir_root = 8;
        facts.formats.mkdir_path = 24;
        assert_eq!(facts.check("cgroup_mkdir", Mechanism::Tracepoint), Ok(()));
    }

    #[test]
    fn a_mark_victim_that_passes_a_pid_is_refused() {
        let mut facts = Facts::without_btf(String::new());
        facts.no_btf = None;
        facts.args = vec![("mark_victim", Some(vec![Arg::Int(4)]))];
        let reason = facts.check("mark_victim", Mechanism::TpBtf).unwrap_err();
        assert!(reason.contains("pid"), "{reason}");
    }

    #[test]
    fn a_missing_offset_disables_only_the_hook_that_needs_it() {
        let mut facts = Facts::without_btf(String::new());
        facts.no_btf = None;
        facts.args = TRACEPOINTS
            .map(|t| {
                (
                    t,
                    Some(vec![Arg::StructPtr(
                        if t.starts_with("cgroup") { "cgroup" } else { "task_struct" }.into(),
                    )]),
                )
            })
            .to_vec();
        for (_, _, value) in facts.offsets.fields() {
            *value = 8;
        }
        facts.offsets.signal_live = ABSENT;
        assert!(
            facts.check("sched_process_exit", Mechanism::TpBtf).unwrap_err().contains("signal_struct.live")
        );
        assert_eq!(facts.check("mark_victim", Mechanism::TpBtf), Ok(()));
        assert_eq!(facts.check("cgroup_rmdir", Mechanism::RawTp), Ok(()));
    }
}
