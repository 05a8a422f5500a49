//! Counting tests from what their runners print: libtest, node's runner, our own checks.
//! Must never count a test that did not run as passed. Called by `suite`.
//!
//! libtest cannot skip at run time. A test that cannot run here prints `SKIPPED <name>: <reason>` and returns; with
//! `--show-output` that line is in the report of a test that "passed", and is taken off the passed ones. What one group
//! skips (kernel tests on a cgroup v1 machine) another may run (in the test VM): `Names` finds what ran nowhere.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::AddAssign;

#[derive(Clone, Copy, Default, PartialEq, Debug)]
pub struct Tally {
    pub passed: u32,
    pub failed: u32,
    pub skipped: u32,
}

impl Tally {
    pub const FAILED: Self = Self { passed: 0, failed: 1, skipped: 0 };
    pub const PASSED: Self = Self { passed: 1, failed: 0, skipped: 0 };

    /// A group of which nothing ran proves nothing, so it does not succeed.
    pub fn good(self) -> bool {
        self.failed == 0 && self.passed > 0
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// `cargo test … -- --show-output`: the sum over all test binaries.
pub fn libtest(text: &str) -> Tally {
    let mut sum = Tally::default();
    let mut skipped = 0;
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("test result: ") {
            // "ok. 5 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.04s"
            sum += Tally {
                passed: before(rest, " passed"),
                failed: before(rest, " failed"),
                skipped: before(rest, " ignored"),
            };
        } else if line.starts_with("SKIPPED ") {
            skipped += 1;
        }
    }
    let moved = skipped.min(sum.passed);
    Tally { passed: sum.passed - moved, skipped: sum.skipped + moved, ..sum }
}

/// Which libtest tests ran and which said that they could not, over all groups.
#[derive(Default)]
pub struct Names {
    ran: BTreeSet<String>,
    skipped: BTreeSet<String>,
    twice: Vec<String>,
    reports: Vec<String>,
}

/// Lines of the reports of failed tests that are shown again at the end.
const REPORT_LINES: usize = 120;

impl Names {
    /// This failed once and was run again.
    pub fn twice(&mut self, what: String) {
        self.twice.push(what);
    }

    pub fn second_tries(&self) -> &[String] {
        &self.twice
    }

    /// What runners said of their failed tests, for the end: the log's middle is far up, or was cut.
    pub fn reports(&self) -> &[String] {
        &self.reports
    }

    /// Keeps what a runner's output says of failed tests: libtest's section `failures:`, or node's `not ok` blocks.
    pub fn keep_failures(&mut self, text: &str) {
        let mut lines = Vec::new();
        let mut inside = false;
        for line in text.lines() {
            let start = line == "failures:" || line.trim_start().starts_with("not ok ");
            let end = line.starts_with("test result: ") || line.trim() == "...";
            inside = (inside || start) && !end;
            // a backtrace's second lines, which name files of the library and the toolchain
            if inside && !line.trim_start().starts_with("at /") {
                lines.push(line);
            }
        }
        if !lines.is_empty() {
            lines.truncate(REPORT_LINES);
            self.reports.push(lines.join("\n"));
        }
    }

    pub fn add(&mut self, text: &str) {
        self.keep_failures(text);
        let tests = || text.lines().filter_map(|l| l.strip_prefix("test ")?.split_once(" ... "));
        let ignored = tests().filter(|(_, verdict)| verdict.starts_with("ignored")).map(|(name, _)| name);
        let skipped: BTreeSet<&str> = text.lines().filter_map(skipped_name).chain(ignored).collect();
        // Output of the test may stand before its verdict, so that is not asked for.
        let ran = tests().map(|(name, _)| name).filter(|name| !skipped.contains(name));
        self.ran.extend(ran.map(str::to_owned));
        self.skipped.extend(skipped.iter().map(|name| (*name).to_owned()));
    }

    /// Tests that some group skipped and no group ran.
    pub fn nowhere(&self) -> impl Iterator<Item = &String> {
        self.skipped.difference(&self.ran)
    }
}

fn skipped_name(line: &str) -> Option<&str> {
    line.strip_prefix("SKIPPED ")?.split(':').next()
}

/// node's runner, in its TAP or its spec form: `# pass 12` or `ℹ pass 12`.
pub fn node(text: &str) -> Tally {
    let mut sum = Tally::default();
    for line in text.lines() {
        let Some(rest) = line.strip_prefix("# ").or_else(|| line.strip_prefix("ℹ ")) else { continue };
        let mut words = rest.split_whitespace();
        let (Some(name), Some(count), None) = (words.next(), words.next(), words.next()) else { continue };
        let Ok(count) = count.parse::<u32>() else { continue };
        match name {
            "pass" => sum.passed += count,
            "fail" | "cancelled" => sum.failed += count,
            "skipped" | "todo" => sum.skipped += count,
            _ => {}
        }
    }
    sum
}

/// The last line of the form that we print ourselves: `N passed, N failed, N skipped`.
pub fn own(text: &str) -> Option<Tally> {
    let line = text.lines().rev().find(|l| l.contains(" passed, ") && l.contains(" failed"))?;
    Some(Tally {
        passed: before(line, " passed"),
        failed: before(line, " failed"),
        skipped: before(line, " skipped"),
    })
}

/// The number that stands right before a word; 0 when there is none.
fn before(text: &str, word: &str) -> u32 {
    let Some(at) = text.find(word) else { return 0 };
    let digits = text[..at].rsplit(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
    digits.parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::{Names, Tally, libtest, node, own};

    #[test]
    fn what_one_group_skips_and_another_runs_is_not_skipped() {
        let mut names = Names::default();
        names.add("test oom ... ok\ntest old ... ignored\ntest unit ... ok\ntest v1 ... ok\nSKIPPED oom: no cgroup v2\n");
        names.add("test oom ... FAILED\ntest v1 ... ok\ntest kvm ... ok\nSKIPPED v1: not here\nSKIPPED kvm: no KVM\n");
        assert_eq!(names.nowhere().collect::<Vec<_>>(), ["kvm", "old"]);
    }

    #[test]
    fn what_failed_is_kept_for_the_end_and_what_passed_is_not() {
        let mut names = Names::default();
        names.add(
            "test a ... ok\nsuccesses:\n---- a stdout ----\nfine\ntest result: ok. 1 passed; 0 failed\n",
        );
        assert!(names.reports().is_empty());
        names.add(
            "successes:\n---- a stdout ----\nfine\nfailures:\n\n---- b stdout ----\nleft 1\n   at /x\n\
             test result: FAILED. 1 passed; 1 failed\nmore",
        );
        assert_eq!(names.reports(), ["failures:\n\n---- b stdout ----\nleft 1"]);
        names.keep_failures("ok 1 - a\nnot ok 2 - b\n  ---\n  error: 'x'\n  ...\nok 3 - c\n");
        assert_eq!(names.reports()[1], "not ok 2 - b\n  ---\n  error: 'x'");
    }

    #[test]
    fn libtest_sums_binaries_and_takes_skips_off_the_passed() {
        let text = "test a ... ok\ntest result: ok. 5 passed; 0 failed; 1 ignored; 0 measured\n\
                    ---- oom stdout ----\nSKIPPED oom: not root\n\
                    test result: FAILED. 2 passed; 3 failed; 0 ignored; 0 measured\n";
        assert_eq!(libtest(text), Tally { passed: 6, failed: 3, skipped: 2 });
        assert_eq!(libtest("error: could not compile"), Tally::default());
    }

    #[test]
    fn a_group_in_which_all_is_skipped_is_not_good() {
        let text = "SKIPPED oom: not root\ntest result: ok. 1 passed; 0 failed; 0 ignored";
        assert_eq!(libtest(text), Tally { passed: 0, failed: 0, skipped: 1 });
        assert!(!libtest(text).good());
        assert!(Tally::PASSED.good());
        assert!(!Tally { failed: 1, ..Tally::PASSED }.good());
    }

    #[test]
    fn node_is_read_in_both_forms() {
        let tap = "ok 1 - a\n# tests 3\n# pass 2\n# fail 1\n# cancelled 0\n# skipped 4\n# duration_ms 12.5\n";
        assert_eq!(node(tap), Tally { passed: 2, failed: 1, skipped: 4 });
        assert_eq!(node("ℹ pass 7\nℹ fail 0\n"), Tally { passed: 7, failed: 0, skipped: 0 });
    }

    #[test]
    fn our_own_line_is_the_last_one() {
        assert_eq!(own("1 passed, 1 failed\nx\n7 passed, 0 failed, 2 skipped\n"), {
            Some(Tally { passed: 7, failed: 0, skipped: 2 })
        });
        assert_eq!(own("all well"), None);
    }
}
