//! `fgm events`: what the kernel told, as lines; with `--follow` as it happens.

use super::{Failure, Place, far, fetch, local, nodes, output};
use crate::export::instant;
use crate::viewer;
use clap::Args;
use serde_json::Value;

/// Events, and the range that was looked through where the agent says it.
type Found = (Vec<Value>, Option<(i64, i64)>);

#[derive(Args)]
#[command(after_help = super::EXIT_CODES)]
pub struct EventsArgs {
    #[command(flatten)]
    bucket: far::InBucket,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    nodes: nodes::OnNodes,
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
    let nodes = args.nodes.open()?;
    if args.follow {
        let kinds = viewer::kinds(args.kind.as_deref().unwrap_or_default())?;
        let wanted = |e: &&Value| kinds.is_empty() || kinds.iter().any(|k| e["kind"] == k.as_str());
        if let Some(nodes) = nodes {
            let token_file = args.place.token_file.clone();
            return nodes.follow(token_file, |events| show(events.iter().filter(wanted), args.json));
        }
        return fetch::follow(&args.place, |name, data| match name {
            "events" => show(data["events"].as_array().into_iter().flatten().filter(wanted), args.json),
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
    let ask = |place: &Place| -> Result<Found, Failure> {
        let mut answer = fetch::json(place, &fetch::path("/api/events", &pairs))?;
        let looked = answer["from_us"].as_i64().zip(answer["to_us"].as_i64());
        match answer["events"].take() {
            Value::Array(events) => Ok((events, looked)),
            _ => Err(anyhow::anyhow!("{} gave no list of events", place.server).into()),
        }
    };
    let is_of_nodes = nodes.is_some();
    let (events, looked) = if let Some(far) = &far {
        let events = far.events(&pairs)?;
        far.finish()?;
        (events, None)
    } else if let Some(nodes) = nodes {
        let answers = nodes.ask(args.place.token_file.as_deref(), ask)?;
        let each = answers.given.iter();
        let mut events: Vec<Value> = each
            .flat_map(|(node, (events, _))| events.iter().map(|event| nodes::of_node(node, event)))
            .collect();
        events.sort_by_key(|event| event["ts_us"].as_i64());
        (events, None)
    } else if let Some(dir) = &args.place.data {
        (local::events(dir, &pairs)?, None)
    } else {
        ask(&args.place)?
    };
    if events.is_empty() {
        let what = match &args.kind {
            Some(kind) => format!("event of kind {kind}"),
            None => "event".to_owned(),
        };
        return Err(match far {
            Some(far) => far.nothing(&what),
            None if is_of_nodes => Failure::Nothing(format!("no {what} on any node that answered")),
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
        // of a bucket or of all agents, whose events are of many nodes
        let node = event["node"].as_str().map_or_else(String::new, |node| format!("{node}  "));
        let line = format!("{node}{:14}  {}  {}", text("kind"), who, text("cgroup_path"));
        let at = instant(event["ts_us"].as_i64().unwrap_or(0), 3);
        let severity = output::severity(text("severity"), 8);
        output::print(&format!("{at}  {severity}  {}\n", output::printable(&line)))?;
    }
    Ok(())
}
