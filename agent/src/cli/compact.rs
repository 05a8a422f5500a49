//! `fgm compact`: merges the finished hours of a data folder that no agent holds, as the agent does by itself, or says which it
//! would. A dry run takes no lock and changes nothing.

use super::{EXIT_CODES, Failure, output};
use crate::clock;
use crate::export;
use crate::segment::Disk;
use crate::store::{Compaction, Rules, Store};
use clap::Args;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::path::PathBuf;

#[derive(Args)]
#[command(after_help = EXIT_CODES)]
pub struct CompactArgs {
    /// A data folder (what data_dir names).
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Say what would be merged, and change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Print JSON: {"files": […], "removed": […], "set_aside": […], "left": […]}.
    #[arg(long)]
    json: bool,
}

/// Prints what was done. A failure when something could not be merged.
pub fn run(args: &CompactArgs) -> Result<(), Failure> {
    Store::must_hold_data(&args.dir).map_err(anyhow::Error::new)?;
    let (now_us, rules) = (clock::wall_us(), Rules::default());
    let done = if args.dry_run {
        Store::open_read_only(&args.dir).map_err(anyhow::Error::new)?.due(now_us, &rules)
    } else {
        Store::open(&args.dir).map_err(anyhow::Error::new)?.compact(&Disk, now_us, &rules, &|| false)
    };
    output::print(&if args.json { format!("{:#}\n", to_json(&done)) } else { text(&done, args.dry_run) })?;
    let wrong = done.set_aside.len() + done.left.len();
    if wrong > 0 {
        return Err(anyhow::anyhow!("{wrong} segments could not be merged; they are named above").into());
    }
    Ok(())
}

fn to_json(done: &Compaction) -> Value {
    let with_reasons = |all: &[(PathBuf, String)]| -> Vec<Value> {
        all.iter().map(|(path, reason)| json!({"path": path, "reason": reason})).collect()
    };
    let files: Vec<Value> = done
        .made
        .iter()
        .map(|f| {
            let path = Some(&f.path).filter(|p| !p.as_os_str().is_empty());
            json!({
                "table": f.table.as_str(),
                "hour_us": f.hour_us,
                "path": path,
                "rows": path.map(|_| f.rows),
                "bytes": path.map(|_| f.bytes),
                "inputs": f.inputs,
                "input_bytes": f.input_bytes,
            })
        })
        .collect();
    json!({
        "files": files,
        "removed": done.removed,
        "set_aside": with_reasons(&done.set_aside),
        "left": with_reasons(&done.left),
    })
}

fn text(done: &Compaction, is_dry: bool) -> String {
    let mut out = String::new();
    for f in &done.made {
        let (hour, table) = (export::instant(f.hour_us, 0), f.table.as_str());
        let inputs = format!("{} segments of {} bytes", f.inputs.len(), f.input_bytes);
        let _ = if is_dry {
            writeln!(out, "{hour} {table}: {inputs} would be merged")
        } else {
            let path = output::printable(&f.path.display().to_string());
            writeln!(out, "{hour} {table}: {inputs} -> {} rows of {} bytes\n    {path}", f.rows, f.bytes)
        };
    }
    for (what, all) in [("SET ASIDE", &done.set_aside), ("LEFT", &done.left)] {
        for (path, reason) in all {
            let _ = writeln!(
                out,
                "{what}: {}: {}",
                output::printable(&path.display().to_string()),
                output::printable(reason)
            );
        }
    }
    let _ = match (done.made.len(), is_dry) {
        (0, _) => writeln!(out, "nothing to merge"),
        (files, true) => writeln!(out, "{files} files would be made"),
        (files, false) => writeln!(out, "{files} files made, {} segments removed", done.removed.len()),
    };
    out
}
