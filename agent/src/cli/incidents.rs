//! `fgm incidents`: what was recorded of incidents, newest first; of an agent, a folder, a bucket or all nodes.

use super::{Failure, Place, far, fetch, local, nodes, output};
use crate::export;
use crate::incident::Incident;
use clap::Args;
use serde::Deserialize;
use serde_json::json;

#[derive(Args)]
#[command(after_help = super::EXIT_CODES)]
pub struct IncidentsArgs {
    #[command(flatten)]
    bucket: far::InBucket,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    nodes: nodes::OnNodes,
    #[command(flatten)]
    time: super::TimeRange,
    /// So many at the most, the newest; default 1000.
    #[arg(long, value_name = "N")]
    limit: Option<String>,
    /// Print JSON: {"incidents": […], "total": N}, as the API gives it.
    #[arg(long)]
    json: bool,
}

/// What `/api/incidents` answers.
#[derive(Deserialize)]
struct Page {
    incidents: Vec<Incident>,
    total: usize,
}

impl Page {
    /// Those of several agents, newest first and no more than one of them would give.
    fn of_all(pages: impl Iterator<Item = Self>, limit: Option<&str>) -> Result<Self, Failure> {
        let (mut incidents, mut total) = (Vec::new(), 0);
        for page in pages {
            incidents.extend(page.incidents);
            total += page.total;
        }
        incidents.sort_by(|a, b| (b.ts_us, &b.id).cmp(&(a.ts_us, &a.id)));
        let (incidents, _) = export::listed(incidents, (i64::MIN, i64::MAX), limit)?;
        Ok(Self { incidents, total })
    }
}

pub fn run(args: &IncidentsArgs) -> Result<(), Failure> {
    let pairs = super::pairs(args.time.named().into_iter().chain([("limit", &args.limit)]));
    let (far, nodes) = (args.bucket.open()?, args.nodes.open()?);
    let ask = |place: &Place| -> Result<Page, Failure> {
        serde_json::from_value(fetch::json(place, &fetch::path("/api/incidents", &pairs))?)
            .map_err(|e| anyhow::anyhow!("{} gave incidents of another version: {e}", place.server).into())
    };
    let mut unanswered = None;
    let Page { incidents: all, total } = if let Some(far) = &far {
        let (incidents, total) = far.incidents(&pairs)?;
        far.finish()?;
        Page { incidents, total }
    } else if let Some(nodes) = nodes {
        let answers = nodes.ask(args.place.token_file.as_deref(), ask)?;
        unanswered = Some(answers.unanswered());
        Page::of_all(answers.given.into_iter().map(|(_, page)| page), args.limit.as_deref())?
    } else if let Some(dir) = &args.place.data {
        let (incidents, total) = local::incidents(dir, &pairs)?;
        Page { incidents, total }
    } else {
        ask(&args.place)?
    };
    if args.json {
        let mut answer = json!({"incidents": all, "total": total});
        if let Some(unanswered) = &unanswered {
            answer["unanswered"] = unanswered.clone();
        }
        if let Some(far) = &far {
            answer["requests"] = far.took();
        }
        output::print(&format!("{answer}\n"))?;
    } else {
        for i in &all {
            output::print(&format!(
                "{}  {}  {}\n    {}\n",
                i.id,
                i.kind,
                output::severity(&i.severity, 0),
                output::printable(&i.summary)
            ))?;
        }
    }
    if let Some(last) = all.last().filter(|_| total > all.len()) {
        // to the microsecond: rounded, it would pass over others of that instant
        let to = export::instant(last.ts_us, 6);
        tracing::warn!(
            "{} older incidents are not shown; --limit N shows more, --to {to} goes on",
            total - all.len()
        );
    }
    match far {
        _ if !all.is_empty() => Ok(()),
        Some(far) => Err(far.nothing("incident")),
        None if unanswered.is_some() => {
            Err(Failure::Nothing("no incident on any node that answered".to_owned()))
        }
        None => Err(super::nothing("incident", &args.place, &args.time, None)),
    }
}
