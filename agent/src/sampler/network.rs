//! Network counters, once for each network namespace: the interfaces of /proc/PID/net/dev.
//!
//! Which namespace it is tells the inode of that very file: procfs gives each namespace files of its own with numbers that
//! no other has, and to look at them needs no privilege. The number of the namespace as lsns(8) shows it is a label: from the
//! kernel by `probes::Namespaces`, else of /proc/PID/ns/net, which needs CAP_SYS_PTRACE. A namespace has its rows under the first
//! owner that it was met with, until that has not asked for three periods: the containers of a pod share one, so their pod
//! owns it, and the node's own is the node's also where containers use it.

use super::Faults;
use crate::accumulator::Value;
use crate::catalogue::Kind;
use crate::catalogue::loose::Metric;
use crate::cgroup::parse::{number, whole};
use crate::names::CgroupId;
use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What is kept of the eight numbers in and the eight out.
const FIELDS: [(usize, &str); 8] = [
    (0, "net_rx_bytes"),
    (1, "net_rx_packets"),
    (2, "net_rx_errors"),
    (3, "net_rx_dropped"),
    (8, "net_tx_bytes"),
    (9, "net_tx_packets"),
    (10, "net_tx_errors"),
    (11, "net_tx_dropped"),
];
const NUMBERS: usize = 16;
/// Interfaces of one namespace; a node with a bridge has one for each pod.
const MAX_INTERFACES: usize = 64;

/// A namespace as procfs numbers its files.
type Namespace = u64;
/// The number of the network namespace of a process, if it can be had.
type Number = Box<dyn Fn(u32) -> Option<u32> + Send>;

pub struct Network {
    proc_root: PathBuf,
    /// When each namespace was read last, and for whom. One that is not met any more is forgotten.
    read: HashMap<Namespace, (u64, Option<CgroupId>)>,
    number: Option<Number>,
    /// Interfaces that were too many.
    pub cut: u64,
    pub faults: Faults,
}

impl Network {
    pub fn new(proc_root: &Path) -> Self {
        let (read, faults) = (HashMap::new(), Faults::default());
        Self { proc_root: proc_root.to_owned(), read, number: None, cut: 0, faults }
    }

    /// Whom to ask for the number of a process's namespace, before /proc.
    pub fn ask(&mut self, number: impl Fn(u32) -> Option<u32> + Send + 'static) {
        self.number = Some(Box::new(number));
    }

    fn number(&self, pid: u32) -> Option<u64> {
        let told = self.number.as_ref().and_then(|number| number(pid)).map(u64::from);
        let link = || self.proc_root.join(pid.to_string()).join("ns/net");
        told.or_else(|| fs::metadata(link()).ok().map(|m| m.ino()))
    }

    /// The namespace of a process: `None` when it has gone.
    fn namespace(&self, pid: u32) -> Option<Namespace> {
        fs::metadata(self.proc_root.join(pid.to_string()).join("net/dev")).ok().map(|m| m.ino())
    }

    /// The counters of a process's namespace, unless they are read for another owner, or were within the last period.
    /// `owner` is the cgroup that the rows are to be of, `None` = the node.
    pub fn read(
        &mut self,
        pid: u32,
        owner: Option<CgroupId>,
        now_ns: u64,
        period_ns: u64,
        out: &mut Vec<Value>,
    ) {
        let Some(namespace) = self.namespace(pid) else { return };
        self.read.retain(|_, (last, _)| now_ns.saturating_sub(*last) < 3 * period_ns);
        // a round is a little less than the period: an instant may come early, never a whole round
        let age = |last: u64| now_ns.saturating_sub(last);
        let is_due = |(last, of): &(u64, _)| *of == owner && age(*last) >= period_ns / 10 * 9;
        if !self.read.get(&namespace).is_none_or(is_due) {
            return;
        }
        let dir = self.proc_root.join(pid.to_string());
        let text = fs::read(dir.join("net/dev"));
        let number = self.number(pid).map(|n| n.to_string());
        // another process may have come under this number meanwhile
        if self.namespace(pid) != Some(namespace) {
            return;
        }
        self.read.insert(namespace, (now_ns, owner));
        let Ok(text) = text else {
            self.faults.unread("net/dev");
            return;
        };
        let found = interfaces(&text);
        self.cut += found.cut * FIELDS.len() as u64;
        (0..found.spoilt).for_each(|_| self.faults.unparsed("net/dev"));
        for (name, values) in found.good {
            rows(name, &values, number.as_deref(), out);
        }
    }
}

/// What /proc/PID/net/dev says.
#[derive(Debug, Default)]
pub struct Interfaces<'a> {
    /// By name: bytes, packets, errors, drops and four others that came in, and the same that went out.
    pub good: Vec<(&'a str, [u64; NUMBERS])>,
    /// Lines of which nothing is taken. Each is alone in that: whoever may name an interface could else hide all others.
    pub spoilt: u64,
    /// Beyond the bound.
    pub cut: u64,
}

/// Behind two lines of headings a line an interface. One that is not what the kernel prints, was cut, has a name that is no text, or has a
/// name that stands twice is left out. No namespace is without an interface: a text that has none was cut.
pub fn interfaces(text: &[u8]) -> Interfaces<'_> {
    let mut out = Interfaces::default();
    let end = match whole(text) {
        Ok(()) if !text.is_empty() => text.len(),
        // nothing, or half of a last line
        _ => {
            out.spoilt = 1;
            text.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1)
        }
    };
    let (mut lines, mut twice) = (0, Vec::new());
    for (n, line) in text[..end].split_inclusive(|&b| b == b'\n').skip(2).enumerate() {
        lines = n + 1;
        if lines > MAX_INTERFACES {
            out.cut += 1;
            continue;
        }
        match interface(line) {
            Some((name, _)) if out.good.iter().any(|(other, _)| *other == name) => {
                out.spoilt += 1;
                twice.push(name);
            }
            Some(one) => out.good.push(one),
            None => out.spoilt += 1,
        }
    }
    if lines == 0 {
        out.spoilt = 1;
    }
    // which of them is true nobody knows
    out.good.retain(|(name, _)| !twice.contains(name));
    out
}

/// `  eth0: 1 2 3 …`, sixteen numbers.
fn interface(line: &[u8]) -> Option<(&str, [u64; NUMBERS])> {
    let colon = line.iter().rposition(|&b| b == b':')?;
    let name = std::str::from_utf8(line[..colon].trim_ascii()).ok()?;
    if name.is_empty() || name.contains(|c: char| c.is_ascii_whitespace()) {
        return None;
    }
    let mut values = [0; NUMBERS];
    let mut words = line[colon + 1..].split(u8::is_ascii_whitespace).filter(|w| !w.is_empty());
    for value in &mut values {
        *value = number(words.next()?).ok()?;
    }
    words.next().is_none().then_some((name, values))
}

fn rows(name: &str, values: &[u64; NUMBERS], netns: Option<&str>, out: &mut Vec<Value>) {
    let mut labels = vec![("interface".to_owned(), name.to_owned())];
    labels.extend(netns.map(|n| ("netns".to_owned(), n.to_owned())));
    for (at, name) in FIELDS {
        let metric =
            Metric { name: name.to_owned(), kind: Some(Kind::Counter.as_str()), labels: labels.clone() };
        #[expect(clippy::cast_precision_loss, reason = "exact up to 2^53 bytes, 9 PB through one interface")]
        out.push((Arc::new(metric), values[at] as f64));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEV: &str = "Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:       1       2    3    4    0     0          0         0        5       6    7    8    0     0       0          0
eth0:0: 11 2 0 0 0 0 0 0 12 0 0 0 0 0 0 0
";

    fn process(root: &Path, pid: u32, text: &str) {
        let dir = root.join(pid.to_string()).join("net");
        fs::create_dir_all(&dir).expect("mkdir");
        fs::write(dir.join("dev"), text).expect("write");
    }

    #[test]
    fn a_namespace_is_read_once_a_round() {
        let dir = tempfile::tempdir().expect("a folder");
        process(dir.path(), 7, DEV);
        fs::create_dir_all(dir.path().join("8/net")).expect("mkdir");
        fs::hard_link(dir.path().join("7/net/dev"), dir.path().join("8/net/dev")).expect("one namespace");
        process(dir.path(), 9, DEV);
        let mut network = Network::new(dir.path());
        let mut rows = |pid, owner, now| {
            let mut out = Vec::new();
            network.read(pid, Some(CgroupId(owner)), now, 100, &mut out);
            out.len()
        };
        assert_eq!((rows(7, 1, 1000), rows(8, 1, 1010), rows(9, 2, 1010), rows(6, 3, 1010)), (16, 0, 16, 0));
        assert_eq!((rows(8, 1, 1090), rows(7, 1, 1100)), (16, 0));
        assert_eq!(
            (rows(8, 3, 1200), rows(7, 1, 1200)),
            (0, 16),
            "another owner has to wait until this one is silent"
        );
        assert_eq!(rows(8, 3, 1500), 16);
    }

    #[test]
    fn the_kernels_number_goes_before_that_of_proc_and_without_either_there_is_none() {
        let dir = tempfile::tempdir().expect("a folder");
        for pid in [7, 8, 9] {
            process(dir.path(), pid, DEV);
        }
        fs::create_dir(dir.path().join("8/ns")).expect("mkdir");
        fs::write(dir.path().join("8/ns/net"), "").expect("write");
        let of_proc = fs::metadata(dir.path().join("8/ns/net")).expect("stat").ino().to_string();
        let mut network = Network::new(dir.path());
        network.ask(|pid| (pid == 7).then_some(4_026_531_840));
        for (pid, number) in [(7, Some("4026531840")), (8, Some(of_proc.as_str())), (9, None)] {
            let mut out = Vec::new();
            network.read(pid, None, 1000, 100, &mut out);
            assert_eq!(out.len(), 16);
            let told = |m: &Metric| m.labels.iter().find(|(k, _)| k == "netns").map(|(_, v)| v.clone());
            assert!(out.iter().all(|(m, _)| told(m).as_deref() == number), "{pid}");
        }
    }

    #[test]
    fn interfaces_have_their_numbers_and_junk_has_none() {
        let dir = tempfile::tempdir().expect("a folder");
        process(dir.path(), 7, DEV);
        process(dir.path(), 8, &DEV.replace(" 11 ", " x "));
        let mut network = Network::new(dir.path());
        let mut out = Vec::new();
        network.read(7, None, 1000, 100, &mut out);
        let of = |interface: &str| {
            let own = out.iter().filter(|(m, _)| m.labels[0].1 == interface);
            own.map(|(m, v)| format!("{} {v}", m.name)).collect::<Vec<_>>()
        };
        assert_eq!(
            of("lo")[..4],
            ["net_rx_bytes 1", "net_rx_packets 2", "net_rx_errors 3", "net_rx_dropped 4"]
        );
        assert_eq!(
            of("lo")[4..],
            ["net_tx_bytes 5", "net_tx_packets 6", "net_tx_errors 7", "net_tx_dropped 8"]
        );
        assert_eq!(of("eth0:0")[4], "net_tx_bytes 12");
        let before = out.len();
        network.read(8, None, 1000, 100, &mut out);
        assert_eq!((before, network.faults.unparsed.get("net/dev")), (16, Some(&1)));
        assert!(out[before..].iter().all(|(m, _)| m.labels[0].1 == "lo"), "the other interface is whole");
    }

    #[test]
    fn an_interface_that_is_spoilt_hides_no_other() {
        let good = DEV.as_bytes();
        let with = |more: &[u8]| [good, more].concat();
        let line = |name: &[u8]| [name, b": 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n"].concat();
        // (text, interfaces that are left, counted)
        let cases = [
            (with(&line(b"veth\xff\xfe")), 2, 1),
            (with(b"veth0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 1"), 2, 1),
            (with(&line(b"lo")), 1, 1),
            (with(&[line(b"lo"), line(b"lo")].concat()), 1, 2),
            (with(b"veth0: 1 2 3\n"), 2, 1),
            (with(b"veth0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17\n"), 2, 1),
            (with(b"a: 1 2 3 b: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n"), 2, 1),
            (DEV.as_bytes()[..DEV.find("    lo").expect("lo")].to_vec(), 0, 1),
            (with(b": 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n"), 2, 1),
            (with(&line(b"veth1")), 3, 0),
            (Vec::new(), 0, 1),
        ];
        for (text, left, counted) in cases {
            let dir = tempfile::tempdir().expect("a folder");
            process(dir.path(), 7, "");
            fs::write(dir.path().join("7/net/dev"), &text).expect("write");
            let (mut network, mut out) = (Network::new(dir.path()), Vec::new());
            network.read(7, None, 1000, 100, &mut out);
            let spoilt = network.faults.unparsed.get("net/dev").copied().unwrap_or(0);
            let text = String::from_utf8_lossy(&text).into_owned();
            assert_eq!((out.len() / FIELDS.len(), spoilt), (left, counted), "{text}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_while_its_process_lives_is_counted() {
        let dir = tempfile::tempdir().expect("a folder");
        fs::create_dir_all(dir.path().join("7/net/dev")).expect("mkdir");
        let (mut network, mut out) = (Network::new(dir.path()), Vec::new());
        network.read(7, None, 1000, 100, &mut out);
        assert_eq!((out.len(), network.faults.unread.get("net/dev")), (0, Some(&1)));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic_and_no_interface_has_two_lines(
            text in proptest::collection::vec(proptest::num::u8::ANY, 0..300),
            likely in "(( |[a-c]{1,2}:[a:]?|\\xff)( ?[0-9]{1,2}){15,17}\n?){0,8}",
        ) {
            for text in [text, [DEV.as_bytes(), likely.as_bytes()].concat()] {
                let found = interfaces(&text);
                let mut names: Vec<_> = found.good.iter().map(|(name, _)| *name).collect();
                names.sort_unstable();
                names.dedup();
                proptest::prop_assert_eq!(names.len(), found.good.len());
                proptest::prop_assert!(found.spoilt > 0 || text.ends_with(b"\n"));
            }
        }
    }
}
