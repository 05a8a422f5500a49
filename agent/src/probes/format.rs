//! Tracefs `format` files: where each field of a tracepoint's record lies. The last resort of the probes needs it.
//!
//! Pure: text in, offsets out. Formats change between kernels (FACTS of the project: `sched_process_fork`'s comm moved,
//! `sched_process_exit` gained `group_dead`), so an absent field is ordinary and a field of another size is not used.

use agent_ebpf::{ABSENT, Formats};

/// One `field:` line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field<'a> {
    pub name: &'a str,
    pub offset: u32,
    pub size: u32,
    /// Declared `__data_loc`: the four bytes hold offset and length of the data.
    pub data_loc: bool,
}

/// The fields of a `format` file. Lines that are no fields, or make no sense, are passed over.
pub fn parse(text: &str) -> Vec<Field<'_>> {
    text.lines().filter_map(parse_field).collect()
}

fn parse_field(line: &str) -> Option<Field<'_>> {
    let mut parts = line.trim().split(';').map(str::trim);
    let declaration = parts.next()?.strip_prefix("field:")?.trim();
    let number = |part: Option<&str>, key: &str| -> Option<u32> {
        part?.strip_prefix(key)?.strip_prefix(':')?.trim().parse().ok()
    };
    let offset = number(parts.next(), "offset")?;
    let size = number(parts.next(), "size")?;
    // "char comm[16]", "__data_loc char[] path", "unsigned long anon_rss"
    let name = declaration.rsplit(char::is_whitespace).next()?;
    let name = name.split('[').next().filter(|name| !name.is_empty())?;
    Some(Field { name, offset, size, data_loc: declaration.starts_with("__data_loc") })
}

/// Offset of a field of exactly this size; `ABSENT` when there is none.
fn scalar(fields: &[Field], name: &str, size: u32) -> u32 {
    fields.iter().find(|f| f.name == name && f.size == size && !f.data_loc).map_or(ABSENT, |f| f.offset)
}

fn data_loc(fields: &[Field], name: &str) -> u32 {
    fields.iter().find(|f| f.name == name && f.data_loc).map_or(ABSENT, |f| f.offset)
}

/// Reads the `oom/mark_victim` format. Kernels before the fields were added (6.9, and later updates of 6.1 and 6.6) have
/// the pid alone.
pub fn mark_victim(text: &str, formats: &mut Formats) {
    let fields = parse(text);
    formats.victim_pid = scalar(&fields, "pid", 4);
    formats.victim_comm = data_loc(&fields, "comm");
    formats.victim_anon_kb = scalar(&fields, "anon_rss", 8);
    formats.victim_file_kb = scalar(&fields, "file_rss", 8);
    formats.victim_shmem_kb = scalar(&fields, "shmem_rss", 8);
    formats.victim_pgtables_kb = scalar(&fields, "pgtables", 8);
    formats.victim_uid = scalar(&fields, "uid", 4);
    formats.victim_oom_score_adj = scalar(&fields, "oom_score_adj", 2);
}

pub fn cgroup_mkdir(text: &str, formats: &mut Formats) {
    let fields = parse(text);
    formats.mkdir_root = scalar(&fields, "root", 4);
    formats.mkdir_level = scalar(&fields, "level", 4);
    formats.mkdir_id = scalar(&fields, "id", 8);
    formats.mkdir_path = data_loc(&fields, "path");
}

pub fn cgroup_rmdir(text: &str, formats: &mut Formats) {
    let fields = parse(text);
    formats.rmdir_root = scalar(&fields, "root", 4);
    formats.rmdir_level = scalar(&fields, "level", 4);
    formats.rmdir_id = scalar(&fields, "id", 8);
    formats.rmdir_path = data_loc(&fields, "path");
}

pub fn process_exit(text: &str, formats: &mut Formats) {
    formats.exit_group_dead = scalar(&parse(text), "group_dead", 1);
}

pub fn process_exec(text: &str, formats: &mut Formats) {
    formats.exec_filename = data_loc(&parse(text), "filename");
}

/// `comm` is the target's.
pub fn signal_generate(text: &str, formats: &mut Formats) {
    let fields = parse(text);
    formats.signal_sig = scalar(&fields, "sig", 4);
    formats.signal_code = scalar(&fields, "code", 4);
    formats.signal_comm = scalar(&fields, "comm", 16);
    formats.signal_pid = scalar(&fields, "pid", 4);
    formats.signal_group = scalar(&fields, "group", 4);
    formats.signal_result = scalar(&fields, "result", 4);
}

pub fn notify_populated(text: &str, formats: &mut Formats) {
    let fields = parse(text);
    formats.populated_root = scalar(&fields, "root", 4);
    formats.populated_level = scalar(&fields, "level", 4);
    formats.populated_id = scalar(&fields, "id", 8);
    formats.populated_val = scalar(&fields, "val", 4);
}

pub fn notify_frozen(text: &str, formats: &mut Formats) {
    let fields = parse(text);
    formats.frozen_root = scalar(&fields, "root", 4);
    formats.frozen_level = scalar(&fields, "level", 4);
    formats.frozen_id = scalar(&fields, "id", 8);
    formats.frozen_val = scalar(&fields, "val", 4);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{fs, path::Path};
    use zerocopy::IntoBytes;

    macro_rules! fixture {
        ($kernel:literal, $event:literal) => {
            include_str!(concat!("../../tests/fixtures/formats/", $kernel, "/", $event, ".format"))
        };
    }

    #[test]
    fn mark_victim_of_6_1_and_6_18() {
        for text in [
            fixture!("6.1.0-56-cloud-amd64", "oom_mark_victim"),
            fixture!("6.18.15+deb13-cloud-amd64", "oom_mark_victim"),
        ] {
            let mut f = Formats::ABSENT;
            mark_victim(text, &mut f);
            assert_eq!((f.victim_pid, f.victim_comm, f.victim_anon_kb, f.victim_shmem_kb), (8, 12, 24, 40));
            assert_eq!((f.victim_uid, f.victim_pgtables_kb, f.victim_oom_score_adj), (48, 56, 64));
        }
    }

    #[test]
    fn mark_victim_of_an_older_kernel_has_the_pid_alone() {
        let text = "name: mark_victim\nformat:\n\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;\n\n\
                    \tfield:int pid;\toffset:8;\tsize:4;\tsigned:1;\n\nprint fmt: \"pid=%d\", REC->pid\n";
        let mut f = Formats::ABSENT;
        mark_victim(text, &mut f);
        assert_eq!(f, Formats { victim_pid: 8, ..Formats::ABSENT });
    }

    #[test]
    fn cgroup_events_of_6_12() {
        let mut f = Formats::ABSENT;
        cgroup_mkdir(fixture!("6.12.95+deb12-cloud-amd64", "cgroup_cgroup_mkdir"), &mut f);
        cgroup_rmdir(fixture!("6.12.95+deb12-cloud-amd64", "cgroup_cgroup_rmdir"), &mut f);
        assert_eq!((f.mkdir_root, f.mkdir_level, f.mkdir_id, f.mkdir_path), (8, 12, 16, 24));
        assert_eq!((f.rmdir_root, f.rmdir_level, f.rmdir_id, f.rmdir_path), (8, 12, 16, 24));
    }

    #[test]
    fn group_dead_came_between_6_12_and_6_18() {
        let mut f = Formats::ABSENT;
        process_exit(fixture!("6.12.95+deb12-cloud-amd64", "sched_sched_process_exit"), &mut f);
        assert_eq!(f.exit_group_dead, ABSENT);
        process_exit(fixture!("6.18.15+deb13-cloud-amd64", "sched_sched_process_exit"), &mut f);
        assert_eq!(f.exit_group_dead, 32);
    }

    #[test]
    fn signals_and_execs_of_6_1_and_7_3() {
        for (signal, exec) in [
            (
                fixture!("6.1.0-56-cloud-amd64", "signal_signal_generate"),
                fixture!("6.1.0-56-cloud-amd64", "sched_sched_process_exec"),
            ),
            (
                fixture!("7.3.4+deb13-cloud-amd64", "signal_signal_generate"),
                fixture!("7.3.4+deb13-cloud-amd64", "sched_sched_process_exec"),
            ),
        ] {
            let mut f = Formats::ABSENT;
            signal_generate(signal, &mut f);
            process_exec(exec, &mut f);
            assert_eq!((f.signal_sig, f.signal_code, f.signal_comm), (8, 16, 20));
            assert_eq!((f.signal_pid, f.signal_group, f.signal_result), (36, 40, 44));
            assert_eq!(f.exec_filename, 8);
        }
    }

    #[test]
    fn flags_of_6_1_and_7_3() {
        for (populated, frozen) in [
            (
                fixture!("6.1.0-56-cloud-amd64", "cgroup_cgroup_notify_populated"),
                fixture!("6.1.0-56-cloud-amd64", "cgroup_cgroup_notify_frozen"),
            ),
            (
                fixture!("7.3.4+deb13-cloud-amd64", "cgroup_cgroup_notify_populated"),
                fixture!("7.3.4+deb13-cloud-amd64", "cgroup_cgroup_notify_frozen"),
            ),
        ] {
            let mut f = Formats::ABSENT;
            notify_populated(populated, &mut f);
            notify_frozen(frozen, &mut f);
            assert_eq!(
                (f.populated_root, f.populated_level, f.populated_id, f.populated_val),
                (8, 12, 16, 28)
            );
            assert_eq!((f.frozen_root, f.frozen_level, f.frozen_id, f.frozen_val), (8, 12, 16, 28));
        }
    }

    /// What the running kernel's files will be asked for is there in each kernel that the tests boot.
    #[test]
    fn every_field_is_found_in_each_kernel() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/formats");
        let mut kernels: Vec<_> = fs::read_dir(&fixtures).unwrap().map(|e| e.unwrap().path()).collect();
        kernels.sort();
        assert_eq!(kernels.len(), 4);
        for kernel in kernels {
            let text = |event: &str| fs::read_to_string(kernel.join(format!("{event}.format"))).unwrap();
            let mut f = Formats::ABSENT;
            mark_victim(&text("oom_mark_victim"), &mut f);
            cgroup_mkdir(&text("cgroup_cgroup_mkdir"), &mut f);
            cgroup_rmdir(&text("cgroup_cgroup_rmdir"), &mut f);
            process_exit(&text("sched_sched_process_exit"), &mut f);
            process_exec(&text("sched_sched_process_exec"), &mut f);
            signal_generate(&text("signal_signal_generate"), &mut f);
            notify_populated(&text("cgroup_cgroup_notify_populated"), &mut f);
            notify_frozen(&text("cgroup_cgroup_notify_frozen"), &mut f);
            let name = kernel.file_name().unwrap().to_string_lossy().into_owned();
            let has_group_dead = !name.starts_with("6.1.") && !name.starts_with("6.12.");
            assert_eq!(f.exit_group_dead != ABSENT, has_group_dead, "{name}");
            f.exit_group_dead = 0;
            let absent =
                f.as_bytes().chunks_exact(4).filter(|offset| *offset == ABSENT.to_ne_bytes()).count();
            assert_eq!(absent, 0, "{name}: {f:?}");
        }
    }

    #[test]
    fn arrays_and_pointers_lose_their_decoration() {
        let fields = parse(fixture!("6.12.95+deb12-cloud-amd64", "sched_sched_process_exit"));
        let comm = fields.iter().find(|f| f.name == "comm").unwrap();
        assert_eq!((comm.offset, comm.size, comm.data_loc), (8, 16, false));
    }

    proptest! {
        #[test]
        fn any_text_parses_to_something(text in "(field:[a-z_ \\[\\]0-9]{0,20};|\toffset:[0-9]{0,12};|size:|\\PC|\n){0,40}") {
            parse(&text);
        }
    }
}
