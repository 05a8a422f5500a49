//! `cargo xtask bench sampler`: what sampling costs, beside a floor that only reads and a naive reader, for some numbers of
//! containers. Must never compare what was not taken in one boot, nor call a copy of a file a cgroup's. Called by `bench`;
//! in the test VM through `bench --play sampler`.
//!
//! In the VM the whole agent records real cgroups with every controller, and instructions are counted (`vm --icount`). On the
//! machine itself the sampler and the lane run alone ([`native`]). Every figure of CPU is the kernel's, from the cgroup
//! in which the program runs.

mod native;
mod play;
mod programs;

pub use play::play;

use super::bound::{self, Bound};
use super::{USAGE, machine};
use crate::usage;
use crate::vm::Guest;
use crate::{child, setup};
use anyhow::{Context as _, Result, bail};
use programs::Programs;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

const CONTAINERS: [usize; 4] = [10, 100, 500, 2000];
/// What the recorder is held to at these, so they are in every whole table.
const BOUND_AT: [usize; 2] = [200, 2000];
const RESULT: &str = "sampler.jsonl";
/// Seconds of a container's files that are looked at; three rounds of the slow tier in the agent.
const SECONDS: u64 = 30;
/// Before it: what is found is opened, what is young is read more often.
const WARM_UP: u64 = 15;
/// The files that a sample reads each second, as the agent's catalogue has them; `play` holds it against `/api/metrics`.
const HOT: [&str; 11] = [
    "memory.current",
    "memory.swap.current",
    "memory.events",
    "memory.stat",
    "cpu.stat",
    "io.stat",
    "pids.current",
    "cpu.pressure",
    "memory.pressure",
    "io.pressure",
    "irq.pressure",
];

/// A row of the table.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    name: String,
    containers: usize,
    #[serde(rename = "where")]
    place: String,
    cpu_us_per_container_second: f64,
    memory_bytes: Option<u64>,
    memory_of: String,
    allocations_per_sample: Option<f64>,
    bytes_per_value: Option<f64>,
    /// What its containers do: nothing, or a little ten times a second.
    load: String,
    /// In the agent: CPU of the hot tier, as if each sample were of the hot files alone, and of the lane, by the loop's own thread clock.
    #[serde(skip_serializing_if = "Option::is_none")]
    hot_and_lane_us: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stages: Option<Value>,
    kernel: String,
    note: String,
}

#[derive(Clone, Copy, PartialEq)]
pub struct Where {
    native: bool,
    vm: bool,
}

pub struct Options {
    pub containers: Vec<usize>,
    pub place: Where,
    pub kernel: String,
    pub load: String,
    pub micro: bool,
    pub json: Option<PathBuf>,
}

impl Options {
    pub fn parse<'a>(mut words: impl Iterator<Item = &'a str>) -> Result<Self> {
        let mut options = Self {
            containers: Vec::new(),
            place: Where { native: true, vm: true },
            kernel: crate::kernel::DEFAULT.to_owned(),
            load: "sit".to_owned(),
            micro: false,
            json: None,
        };
        while let Some(word) = words.next() {
            if word == "--micro" {
                options.micro = true;
                continue;
            }
            let value = usage::value(words.next(), word, USAGE)?;
            match (word, value) {
                ("--containers", n) => options.containers.push(super::count(n, word)?),
                ("--in", "native") => options.place.vm = false,
                ("--in", "vm") => options.place.native = false,
                ("--in", "both") => {}
                ("--kernel", series) => series.clone_into(&mut options.kernel),
                ("--load", "sit" | "beat") => value.clone_into(&mut options.load),
                ("--json", file) => options.json = Some(file.into()),
                _ => return Err(usage::wrong(format!("{word} {value} is not known"), USAGE)),
            }
        }
        crate::kernel::check_series(&options.kernel)?;
        if options.containers.is_empty() {
            options.containers = CONTAINERS.into_iter().chain(BOUND_AT).collect();
            options.containers.sort_unstable();
            options.containers.dedup();
        }
        Ok(options)
    }
}

/// 0 when every bound holds that these rows can show, 1 otherwise.
pub fn bench(options: &Options) -> Result<i32> {
    if !setup::is_root() {
        bail!("making cgroups needs root");
    }
    if options.place.vm {
        setup::vm()?;
    }
    let programs = Programs::build()?;
    let out = super::out_folder("sampler")?;
    let mut rows = Vec::new();
    if options.place.native {
        for &n in &options.containers {
            rows.extend(native::rows(&programs, n, &options.load)?);
        }
    }
    if options.place.vm {
        rows.extend(in_vm(options, &programs, &out)?);
    }
    print(&rows);
    if let Some(path) = &options.json {
        let lines: Vec<String> = rows.iter().map(serde_json::to_string).collect::<Result<_, _>>()?;
        fs::write(path, format!("[\n{}\n]\n", lines.join(",\n")))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    let bounds = bounds(&rows);
    let holds = bound::print(&bounds);
    let result = bound::json(&bounds);
    println!(
        "{}",
        json!({"machine": machine(), "date": crate::clock::stamp(), "bounds": result, "rows": rows})
    );
    if options.micro {
        child::run(child::cargo().args(["bench", "-p", "fgm", "--bench", "micro"]))?;
    }
    Ok(i32::from(!holds))
}

fn in_vm(options: &Options, programs: &Programs, out: &Path) -> Result<Vec<Row>> {
    let own = crate::paths::own()?;
    let mut words: Vec<OsString> = vec![own.into(), "bench".into(), "--play".into(), "sampler".into()];
    words.extend([out, &programs.agent, &programs.reader, &programs.alone].map(OsString::from));
    words.push(options.load.clone().into());
    words.extend(options.containers.iter().map(|n| n.to_string().into()));
    let mut guest = Guest::new(words)?;
    options.kernel.clone_into(&mut guest.series);
    guest.icount = true;
    guest.smp = 1;
    "4G".clone_into(&mut guest.mem);
    guest.timeout = Duration::from_mins(40);
    guest.out = Some(out.to_owned());
    let code = guest.run_with(&mut std::io::stderr(), &mut std::io::stderr())?;
    if code != 0 {
        bail!(
            "the benchmark failed in the test VM (exit code {code}); what there is of it is in {}",
            out.display()
        );
    }
    read(&out.join(RESULT))
}

fn read(path: &Path) -> Result<Vec<Row>> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    text.lines().map(|l| serde_json::from_str(l).context("a row")).collect()
}

/// The floor of the same containers in the same place.
fn floor<'r>(rows: &'r [Row], of: &Row) -> Option<&'r Row> {
    rows.iter().find(|r| r.name == "floor" && r.containers == of.containers && r.place == of.place)
}

fn ratio(rows: &[Row], of: &Row, us: f64) -> Option<f64> {
    floor(rows, of).map(|f| us / f.cpu_us_per_container_second)
}

fn print(rows: &[Row]) {
    let or = |v: Option<String>| v.unwrap_or_else(|| "-".to_owned());
    println!(
        "| where | containers | what | CPU-µs per container-second | × floor | hot + lane | × floor | MB | allocations a sample | bytes a value |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for r in rows {
        let own = ratio(rows, r, r.cpu_us_per_container_second);
        let part = r.hot_and_lane_us.and_then(|us| ratio(rows, r, us));
        println!(
            "| {} | {} | {} | {:.1} | {} | {} | {} | {} | {} | {} |",
            r.place,
            r.containers,
            r.name,
            r.cpu_us_per_container_second,
            or(own.map(|x| format!("{x:.2}"))),
            or(r.hot_and_lane_us.map(|x| format!("{x:.1}"))),
            or(part.map(|x| format!("{x:.2}"))),
            or(r.memory_bytes.map(|b| format!("{}", b.div_ceil(1_000_000)))),
            or(r.allocations_per_sample.map(|a| format!("{a:.3}"))),
            or(r.bytes_per_value.map(|b| format!("{b:.2}"))),
        );
    }
}

/// What the recorder is held to, of the places and numbers of containers that were asked for. Where a row of the recorder is, what it
/// does not tell breaks the bound.
fn bounds(rows: &[Row]) -> Vec<Bound> {
    const MB: f64 = 1e6;
    let mut out = Vec::new();
    #[expect(clippy::cast_precision_loss, reason = "a ratio")]
    let number = |n: usize| n as f64;
    let fgm = |place: &str, n: usize| {
        rows.iter().find(|r| r.name == "fgm" && r.place == place && r.containers == n)
    };
    for n in BOUND_AT {
        let Some(row) = fgm("vm", n) else { continue };
        let x = row.hot_and_lane_us.and_then(|us| ratio(rows, row, us));
        out.push(Bound::at_most(&format!("vm, {n}: hot tier and lane × floor"), x, 1.5));
        #[expect(clippy::cast_precision_loss, reason = "megabytes")]
        let mb = row.memory_bytes.map(|bytes| bytes as f64 / MB);
        let most = if n == 200 { 40.0 } else { 150.0 };
        out.push(Bound::at_most(&format!("vm, {n}: MB of anonymous and kernel memory"), mb, most));
    }
    if let Some(row) = fgm("native", 200) {
        let percent = row.cpu_us_per_container_second * number(200) / 1e4;
        out.push(Bound::at_most("native, 200: per cent of a core", Some(percent), 2.5));
    }
    for place in ["native", "vm"] {
        // alone, on the machine itself, the whole program is the hot tier and the lane
        let us = |r: &Row| {
            if place == "vm" { r.hot_and_lane_us } else { Some(r.cpu_us_per_container_second) }
        };
        if let (Some(few), Some(many)) = (fgm(place, 200), fgm(place, 2000)) {
            let x = us(many).zip(us(few)).map(|(many, few)| many / few);
            out.push(Bound::at_most(&format!("{place}, 2,000: µs of each container × that of 200"), x, 1.1));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, containers: usize, us: f64) -> Row {
        Row {
            name: name.into(),
            containers,
            place: "vm".into(),
            cpu_us_per_container_second: us,
            memory_bytes: Some(30_000_000),
            memory_of: String::new(),
            allocations_per_sample: None,
            bytes_per_value: None,
            load: "sit".into(),
            hot_and_lane_us: (name == "fgm").then_some(us),
            stages: None,
            kernel: String::new(),
            note: String::new(),
        }
    }

    #[test]
    fn bounds_are_held_against_the_floor_of_as_many_containers() {
        let rows = [
            row("floor", 200, 40.0),
            row("fgm", 200, 59.0),
            row("floor", 2000, 40.0),
            row("fgm", 2000, 66.0),
        ];
        let broken: Vec<_> = bounds(&rows).into_iter().filter(|b| !b.holds).map(|b| b.what).collect();
        assert_eq!(
            broken,
            [
                "vm, 2000: hot tier and lane × floor: 1.650, at most 1.5",
                "vm, 2,000: µs of each container × that of 200: 1.119, at most 1.1"
            ]
        );
        assert_eq!(bounds(&rows[..1]), []);
    }

    #[test]
    fn a_row_that_lacks_a_figure_breaks_the_bound_on_it() {
        let mut rows = [row("floor", 200, 40.0), row("fgm", 200, 50.0), row("fgm", 2000, 50.0)];
        rows[1].hot_and_lane_us = None;
        rows[1].memory_bytes = None;
        let broken: Vec<_> = bounds(&rows).into_iter().filter(|b| !b.holds).map(|b| b.what).collect();
        assert_eq!(
            broken,
            [
                "vm, 200: hot tier and lane × floor: not measured, at most 1.5",
                "vm, 200: MB of anonymous and kernel memory: not measured, at most 40",
                // without the floor of as many
                "vm, 2000: hot tier and lane × floor: not measured, at most 1.5",
                "vm, 2,000: µs of each container × that of 200: not measured, at most 1.1",
            ]
        );
    }

    #[test]
    fn options_are_read_and_wrong_ones_refused() {
        let o = Options::parse(["--containers", "20", "--containers", "7", "--in", "vm"].into_iter())
            .expect("right");
        assert!(o.containers == [20, 7] && o.place == Where { native: false, vm: true });
        assert_eq!(Options::parse([].into_iter()).expect("right").containers, [10, 100, 200, 500, 2000]);
        assert!(Options::parse(["--in", "space"].into_iter()).is_err());
        assert!(Options::parse(["--json"].into_iter()).is_err());
    }
}
