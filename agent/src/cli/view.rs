//! `fgm view`: the viewer over a data folder, a copy of one or a time of a bucket, with no agent and no root. Nothing in it changes.

use super::far::Far;
use super::{Failure, Place, ViewArgs, fetch};
use crate::bucket::Bucket;
use crate::config::Config;
use crate::incident::Incident;
use crate::names::Table;
use crate::pods::Pods;
use crate::query;
use crate::segment::{load_from, metadata_value};
use crate::store::{Store, View};
use crate::viewer::{self, Source};
use anyhow::Context;
use arrow::array::RecordBatch;
use serde_json::{Value, json};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::sync::Arc;

/// A folder that nobody writes: what is in it is all there is, and its newest row is now.
struct Folder {
    newest_us: i64,
    pods: Pods,
    status: Value,
}

impl Source for Folder {
    async fn memory(&self, _: Table, _: i64) -> Result<Vec<RecordBatch>, String> {
        Ok(Vec::new())
    }

    fn incidents(&self) -> Vec<Incident> {
        Vec::new()
    }

    fn status(&self) -> Value {
        self.status.clone()
    }

    fn ready(&self) -> Result<(), String> {
        Ok(())
    }

    fn metrics(&self) -> String {
        String::new()
    }

    fn pods(&self) -> Pods {
        self.pods.clone()
    }

    fn is_live(&self) -> bool {
        false
    }

    fn now_us(&self) -> i64 {
        self.newest_us
    }
}

/// Serves until SIGINT or SIGTERM. Of a running agent, which serves itself, it says where.
pub fn run(args: &ViewArgs) -> Result<(), Failure> {
    let place = args.place.to_str().unwrap_or_default();
    if Bucket::is_url(place) {
        let far = Far::open(place, args.who())?;
        let (store, whose) = far.folder(&super::pairs(args.time.named()))?;
        serve(args, store, Some(whose))?;
        return far.finish();
    }
    if let Some((name, _)) = args.of_a_bucket() {
        return Err(Failure::Usage(format!("--{name} is for a bucket; {} is none", args.place.display())));
    }
    if place.contains("://") {
        let server = place.trim_end_matches('/').to_owned();
        fetch::json(
            &Place { server: server.clone(), data: None, token_file: args.token_file.clone() },
            "/api/status",
        )?;
        return tell(&server, args.json);
    }
    serve(args, Store::open_read_only(&args.place).map_err(anyhow::Error::new)?, None)
}

fn serve(args: &ViewArgs, store: Arc<Store>, whose: Option<String>) -> Result<(), Failure> {
    let view = store.view();
    let Some((_, newest_us)) = reach(&view) else {
        return Err(Failure::Nothing(format!("{} holds no rows", args.place.display())));
    };
    let mut status = status(&view, newest_us);
    if let Some(whose) = whose {
        status["node"] = json!(whose);
    }
    let pods = query::pods(&view).map_err(anyhow::Error::new)?;
    let token_file = args.token_file.clone().unwrap_or_default();
    let config = Config { listen: args.listen, token_file, ..Config::default() };
    let source = Arc::new(Folder { newest_us, pods, status });
    let server = viewer::serve_folder(source, store, &config).map_err(anyhow::Error::new)?;
    // Scripts read the address from here: with port 0 it is known only now.
    tell(&format!("http://{}", server.address()), args.json)?;
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("cannot listen for signals")?;
    signals.forever().next();
    server.stop();
    Ok(())
}

fn tell(url: &str, json: bool) -> Result<(), Failure> {
    let text = if json { json!({"url": format!("{url}/")}).to_string() } else { format!("{url}/") };
    super::output::print(&format!("{text}\n"))
}

/// The first and the last instant of the segments, and of what a journal holds besides.
pub fn reach(view: &View) -> Option<(i64, i64)> {
    let loose = view.journaled.iter().chain(&view.loose);
    let loose = loose.flat_map(|l| (0..l.batch.num_rows()).filter_map(|row| query::int(&l.batch, "ts", row)));
    let all = view.segments.iter().map(|s| (s.from_us, s.to_us)).chain(loose.map(|ts| (ts, ts)));
    all.reduce(|(from, to), (first, last)| (from.min(first), to.max(last)))
}

/// What the newest file says of the agent that wrote it.
fn status(view: &View, newest_us: i64) -> Value {
    let newest = view.segments.iter().filter(|s| s.table == Table::Samples).max_by_key(|s| s.to_us);
    let metadata = newest.and_then(|s| load_from(&s.origin(), false).ok());
    let waiting = |key: &str| view.metadata.iter().find(|(k, _)| k == key).map(|(_, v)| v.clone());
    let said = |key| {
        let of_file = metadata.as_ref().and_then(|m| metadata_value(m.metadata(), key));
        of_file.map(str::to_owned).or_else(|| waiting(key))
    };
    json!({
        "mode": "folder",
        "node": said("fgm.node"),
        "kernel": said("fgm.kernel"),
        "boot_id": said("fgm.boot_id"),
        "agent_version": said("fgm.agent_version"),
        "now_us": newest_us,
    })
}
