//! `fgm metrics`: the catalogue, a metric a line, narrowed by a word; what `--metric` and `--metrics` take.

use super::{Failure, output};
use crate::viewer;
use clap::Args;
use std::fmt::Write as _;

#[derive(Args)]
#[command(after_help = super::EXIT_CODES)]
pub struct MetricsArgs {
    /// Only those in whose name, file or meaning this stands, such as throttled.
    #[arg(value_name = "WORD")]
    search: Option<String>,
    /// Print JSON, as the API gives it.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &MetricsArgs) -> Result<(), Failure> {
    let answer = viewer::metrics(args.search.as_deref());
    let found = answer["metrics"].as_array().map(Vec::as_slice).unwrap_or_default();
    let made = answer["derived"].as_array().map(Vec::as_slice).unwrap_or_default();
    if found.is_empty() && made.is_empty() {
        let word = args.search.as_deref().unwrap_or_default();
        return Err(Failure::Nothing(format!("no metric has {word} in it; `fgm metrics` lists all")));
    }
    if args.json {
        return output::print(&format!("{answer}\n"));
    }
    let mut out = String::new();
    for metric in found {
        let text = |name: &str| metric[name].as_str().unwrap_or("-");
        let table =
            if text("table") == "samples" { String::new() } else { format!(" (--table {})", text("table")) };
        let _ =
            writeln!(out, "{}{table}  {}, {}: {}", text("name"), text("kind"), text("unit"), text("about"));
    }
    for metric in made {
        let text = |name: &str| metric[name].as_str().unwrap_or("-");
        let _ = writeln!(out, "{}  derived, {}: {}", text("name"), text("unit"), text("about"));
    }
    output::print(&out)
}
