//! Numbers without a column: which series a key of a file is, found once and remembered by its place in the text.
//!
//! The kernel prints keys in the same order for as long as it runs, so a comparison with the key that stood at this place
//! last time is all that a value costs, and nothing is allocated. Bounded: beyond `MAX_SERIES` a value is cut and counted.

use super::{BUFFER, Sampler, Target, Vanished, YOUNG_NS};
use crate::accumulator::Value;
use crate::catalogue::loose::{Metric, is_loose, metric};
use crate::cgroup::loose::visit;
use crate::cgroup::parse::ParseError;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Series of all files together: a machine of 8 NUMA nodes has 400.
const MAX_SERIES: usize = 4096;

/// The files of a directory are listed anew after this long: a module may have brought a controller.
const LIST_EVERY_NS: u64 = 300_000_000_000;

struct Slot {
    key: Box<[u8]>,
    sub: Box<[u8]>,
    /// `None` = the catalogue has a column for it.
    metric: Option<Arc<Metric>>,
    /// The text in which it was met last.
    met: u64,
}

struct Kept {
    name: Box<str>,
    slots: Vec<Slot>,
    /// Texts so far.
    texts: u64,
}

/// A file whose keys are remembered.
pub type LooseIndex = usize;

#[derive(Default)]
pub struct Loose {
    files: Vec<Kept>,
    by_name: HashMap<Box<str>, LooseIndex>,
    series: usize,
    /// Values that found no room since the last look.
    pub cut: u64,
}

impl Loose {
    /// The place of a file by its name; it is made room for at the first time.
    pub fn file(&mut self, name: &str) -> LooseIndex {
        if let Some(&i) = self.by_name.get(name) {
            return i;
        }
        self.files.push(Kept { name: name.into(), slots: Vec::new(), texts: 0 });
        self.by_name.insert(name.into(), self.files.len() - 1);
        self.files.len() - 1
    }

    pub fn name(&self, file: LooseIndex) -> &str {
        &self.files[file].name
    }

    /// Appends the values of a file's text, without those that `is_known` has a column for.
    ///
    /// # Errors
    /// The text is not made of numbers, or a key stands twice; `out` is then as it was before.
    pub fn take(
        &mut self,
        file: LooseIndex,
        text: &[u8],
        is_known: impl Fn(&[u8], &[u8]) -> bool,
        out: &mut Vec<Value>,
    ) -> Result<(), ParseError> {
        let before = out.len();
        let Kept { name, slots, texts } = &mut self.files[file];
        *texts += 1;
        let (text_number, mut is_twice) = (*texts, false);
        let (series, cut) = (&mut self.series, &mut self.cut);
        let mut place = 0;
        let result = visit(text, |key, sub, value| {
            let is = |s: &Slot| *s.key == *key && *s.sub == *sub;
            let at = match slots.get(place) {
                Some(slot) if is(slot) => place,
                _ => slots.iter().position(is).unwrap_or_else(|| {
                    let metric = (!is_known(key, sub) && *series < MAX_SERIES).then(|| {
                        let text = String::from_utf8_lossy;
                        Arc::new(metric(name, &text(key), &text(sub)))
                    });
                    if metric.is_none() && !is_known(key, sub) {
                        // not remembered, so that memory has a bound
                        *cut += 1;
                        return usize::MAX;
                    }
                    *series += usize::from(metric.is_some());
                    slots.push(Slot { key: key.into(), sub: sub.into(), metric, met: 0 });
                    slots.len() - 1
                }),
            };
            place = at.wrapping_add(1);
            let Some(slot) = slots.get_mut(at) else { return };
            is_twice |= std::mem::replace(&mut slot.met, text_number) == text_number;
            if let Some(metric) = slot.metric.clone() {
                out.push((metric, value.unwrap_or(f64::NAN)));
            }
        });
        // two rows of one series at one instant: which is true nobody knows
        let result = if is_twice { Err(ParseError::Layout) } else { result };
        if result.is_err() {
            out.truncate(before);
        }
        result
    }
}

impl Sampler {
    /// Reads the files that the catalogue does not have.
    pub(super) fn loose_files(
        &mut self,
        target: &mut Target,
        dir: &OwnedFd,
        now: u64,
    ) -> Result<(), Vanished> {
        if target.next_listing_ns <= now {
            self.list(target, dir)?;
            // controllers are often switched on just after a directory is made
            let is_young = now.saturating_sub(target.first_seen_ns) < YOUNG_NS;
            target.next_listing_ns = if is_young { now } else { now + LIST_EVERY_NS };
        }
        for &index in &*target.loose.clone() {
            let name = self.loose.name(index);
            let read = rustix::fs::openat(dir, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                .and_then(|fd| rustix::io::pread(&fd, &mut self.buffer[..], 0));
            match read {
                Ok(n) if n < BUFFER => {
                    let text = &self.buffer[..n];
                    if self.loose.take(index, text, |_, _| false, &mut self.values).is_err() {
                        self.faults.unparsed(self.loose.name(index));
                    }
                }
                Err(Errno::NODEV) => return Err(Vanished),
                Err(Errno::NOENT | Errno::OPNOTSUPP | Errno::INVAL | Errno::ACCESS) => {}
                Ok(_) | Err(_) => self.faults.unread(self.loose.name(index)),
            }
        }
        Ok(())
    }

    fn list(&mut self, target: &mut Target, dir: &OwnedFd) -> Result<(), Vanished> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = rustix::fs::openat(dir, ".", flags, Mode::empty()).and_then(rustix::fs::Dir::new);
        let Ok(entries) = open else { return Err(Vanished) };
        let mut found = Vec::new();
        for entry in entries.flatten() {
            if entry.file_type() != FileType::Directory
                && let Ok(name) = entry.file_name().to_str()
                && is_loose(name)
            {
                found.push(self.loose.file(name));
            }
        }
        found.sort_unstable();
        if *self.listing != *found {
            self.listing = found.into();
        }
        target.loose = self.listing.clone();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_find_their_series_in_any_order_and_known_keys_are_left_out() {
        let mut loose = Loose::default();
        let file = loose.file("cgroup.stat");
        assert_eq!(loose.file("cgroup.stat"), file);
        let mut read = |text: &str| {
            let mut out = Vec::new();
            loose.take(file, text.as_bytes(), |key, _| key == b"known", &mut out).expect("numbers");
            out.into_iter().map(|(m, v)| (m.name.clone(), v)).collect::<Vec<_>>()
        };
        let (a, b) = ("cgroup_stat_a".to_owned(), "cgroup_stat_b".to_owned());
        assert_eq!(read("known 1\na 2\nb 3\n"), [(a.clone(), 2.0), (b.clone(), 3.0)]);
        assert_eq!(read("b 4\nknown 1\na 5\n"), [(b, 4.0), (a, 5.0)]);
    }

    #[test]
    fn a_key_that_stands_twice_has_no_value_and_comes_back_with_a_good_text() {
        let mut loose = Loose::default();
        let mut read = |text: &str| {
            let file = loose.file("memory.numa_stat");
            let mut out = Vec::new();
            loose.take(file, text.as_bytes(), |key, _| key == b"known", &mut out).map(|()| out.len())
        };
        assert_eq!(read("anon N0=1 N1=2\nfile N0=1 N1=2\n"), Ok(4));
        let twice = Err(ParseError::Layout);
        assert_eq!(read("anon N0=1 N1=2\nanon N0=3\n"), twice);
        assert_eq!(read("anon N0=1 N0=2\n"), twice);
        assert_eq!(read("new 1\nnew 1\n"), twice);
        assert_eq!(read("known 1\nknown 1\n"), twice, "nor is the rest of such a text to be believed");
        assert_eq!(read("anon N0=1 N1=2\nfile N0=1 N1=2\n"), Ok(4));
    }

    #[test]
    fn no_kernel_prints_a_key_twice() {
        for kernel in ["6.1", "6.12", "6.18", "7.3"] {
            let path = format!("{}/tests/fixtures/cgroup/{kernel}.txt", env!("CARGO_MANIFEST_DIR"));
            let text = std::fs::read_to_string(path).expect("a fixture");
            let mut loose = Loose::default();
            let parts = text.split("=== ").skip(1).filter_map(|part| part.split_once('\n'));
            let mut read = 0;
            for (name, text) in parts.filter(|(name, _)| is_loose(name)) {
                let file = loose.file(name);
                let good = loose.take(file, text.as_bytes(), |_, _| false, &mut Vec::new());
                assert!(good.is_ok(), "{kernel} {name}");
                read += 1;
            }
            assert!(read > 5, "{kernel}: {read} files");
        }
    }

    #[test]
    fn series_have_a_bound_and_what_is_cut_is_counted() {
        let mut loose = Loose::default();
        let file = loose.file("misc.current");
        let mut out = Vec::new();
        let lines: Vec<_> = (0..MAX_SERIES + 7).map(|n| format!("r{n} 1\n")).collect();
        let text = lines.concat();
        loose.take(file, text.as_bytes(), |_, _| false, &mut out).expect("numbers");
        assert_eq!((out.len(), loose.cut, loose.files[file].slots.len()), (MAX_SERIES, 7, MAX_SERIES));
    }

    #[test]
    fn junk_gives_nothing_and_max_is_no_number() {
        let mut loose = Loose::default();
        let file = loose.file("hugetlb.2MB.max");
        let mut out = Vec::new();
        assert!(loose.take(file, b"1\nx\n", |_, _| false, &mut out).is_err());
        assert!(out.is_empty());
        loose.take(file, b"max\n", |_, _| false, &mut out).expect("max");
        assert!(out[0].1.is_nan());
    }
}
