//! `fgm events`: what the kernel told, as lines; with `--follow` as it happens.

use super::{Failure, Place, far, fetch, local, output};
use crate::export::instant;
use crate::viewer;
use clap::Args;
use serde_json::Value;

#[derive(Args)]
#[command(after_help = super::EXIT_CODES)]
pub struct EventsArgs {
    #[command(flatten)]
    bucket: far::InBucket,
    #[command(flatten)]
    place: Place,
    /// Go on with what happens from now on, until interrupted (of a running agent).
    #[arg(short, long, conflicts_with_all = ["data", "bucket", "range", "from", "to"])]
    follow: bool,
    #[command(flatten)]
    time: super::TimeRange,
    /// Kinds, comma-separated, such as oom_kill,exit.
    #[arg(short, long, value_name = "KIND")]
    kind: Option<String>,
    /// Kubernetes namespace.
    #[arg(short, long, conflicts_with = "follow")]
    namespace: Option<String>,
    /// Container names, container ids or globs of cgroup paths, comma-separated.
    #[arg(short, long, conflicts_with = "follow")]
    containers: Option<String>,
    /// Print each event as a line of JSON, as the API gives it.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &EventsArgs) -> Result<(), Failure> {
    if args.follow {
        let kinds = viewer::kinds(args.kind.as_deref().unwrap_or_default())?;
        return fetch::follow(&args.place, |name, data| match name {
            "events" => {
                let wanted = |e: &&Value| kinds.is_empty() || kinds.iter().any(|k| e["kind"] == k.as_str());
                show(data["events"].as_array().into_iter().flatten().filter(wanted), args.json)
            }
            "lost" => {
                let rows = &data["rows"];
                tracing::warn!(%rows, "the agent told more at once than one message holds");
                Ok(())
            }
            "problem" => Err(anyhow::anyhow!("the agent: {}", data["detail"].as_str().unwrap_or("?")).into()),
            _ => Ok(()),
        });
    }
    let named = [("kind", &args.kind), ("namespace", &args.namespace), ("containers", &args.containers)];
    let pairs = super::pairs(args.time.named().into_iter().chain(named));
    let far = args.bucket.open()?;
    let (events, looked) = if let Some(far) = &far {
        let events = far.events(&pairs)?;
        far.finish()?;
        (events, None)
    } else if let Some(dir) = &args.place.data {
        (local::events(dir, &pairs)?, None)
    } else {
        let mut answer = fetch::json(&args.place, &fetch::path("/api/events", &pairs))?;
        let looked = answer["from_us"].as_i64().zip(answer["to_us"].as_i64());
        let Value::Array(events) = answer["events"].take() else {
            return Err(anyhow::anyhow!("{} gave no list of events", args.place.server).into());
        };
        (events, looked)
    };
    if events.is_empty() {
        let what = match &args.kind {
            Some(kind) => format!("event of kind {kind}"),
            None => "event".to_owned(),
        };
        return Err(match far {
            Some(far) => far.nothing(&what),
            None => super::nothing(&what, &args.place, &args.time, looked),
        });
    }
    show(events.iter(), args.json)
}

fn show<'a>(events: impl Iterator<Item = &'a Value>, json: bool) -> Result<(), Failure> {
    for event in events {
        if json {
            output::print(&format!("{event}\n"))?;
            continue;
        }
        let text = |name: &str| event[name].as_str().unwrap_or("-");
        let who = match (event["comm"].as_str(), event["pid"].as_i64()) {
            (Some(comm), Some(pid)) => format!("{comm} ({pid})"),
            (Some(comm), None) => comm.to_owned(),
            (None, Some(pid)) => format!("pid {pid}"),
            (None, None) => "-".to_owned(),
        };
        // of a bucket, whose events are of many nodes
        let node = event["node"].as_str().map_or_else(String::new, |node| format!("{node}  "));
        let line = format!("{node}{:14}  {}  {}", text("kind"), who, text("cgroup_path"));
        let at = instant(event["ts_us"].as_i64().unwrap_or(0), 3);
        let severity = output::severity(text("severity"), 8);
        output::print(&format!("{at}  {severity}  {}\n", output::printable(&line)))?;
    }
    Ok(())
}
