//! `fgm ship`: copies what a data folder that no agent holds has into a bucket, as the agent does by itself: the folder of a node that
//! is taken down, or of one whose agent shipped nothing so far. It may be ended at any instant and begun again.

use super::{EXIT_CODES, Failure, configuration, output};
use crate::clock;
use crate::config::Ship;
use crate::export;
use crate::incident::Incident;
use crate::ship::{Incidents, Shipper, Status, What};
use crate::store::{Shipped, Store};
use anyhow::Context as _;
use clap::Args;
use serde_json::Value;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

#[derive(Args)]
#[command(after_help = EXIT_CODES)]
pub struct ShipArgs {
    /// A data folder (what data_dir names). Hours that `fgm compact` has not merged stay where they are.
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// s3://, gs:// or az://bucket/prefix, file:///folder; default: ship.url of the configuration.
    #[arg(value_name = "BUCKET")]
    bucket: Option<String>,
    /// The agent's configuration (TOML), whose table [ship] counts; without it the defaults and the environment.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print JSON, as `ship` in /api/status has it.
    #[arg(long)]
    json: bool,
}

/// Prints what was done. A failure when something could not be copied.
pub fn run(args: &ShipArgs) -> Result<(), Failure> {
    let mut settings = configuration(args.config.as_deref())?.ship;
    if let Some(url) = &args.bucket {
        settings.url.clone_from(url);
    }
    if !Ship::SCHEMES.iter().any(|scheme| settings.url.starts_with(scheme)) {
        let detail =
            "where to? name a bucket (s3://, gs:// or az://bucket/prefix, file:///folder) or set ship.url";
        return Err(Failure::Usage(detail.to_owned()));
    }
    Store::must_hold_data(&args.dir).map_err(anyhow::Error::new)?;
    let store = Store::open(&args.dir).map_err(anyhow::Error::new)?;
    let known = export::incidents(&store.view(), Vec::new())?;
    // nobody goes on with those that an agent left open
    let known: Vec<Incident> = known.into_iter().map(|i| Incident { closed: true, ..i }).collect();
    let incidents: Incidents = Box::new(move |wanted| known.iter().filter(|i| wanted(i)).cloned().collect());
    let shipped = Arc::new(Mutex::new(Shipped::read(store.dir(), &settings.url)));
    let (what, status) = (What::of(&settings.what), Status::on(&settings));
    let url = settings.url.clone();
    let mut shipper = Shipper::new(store, settings, what, shipped, status.clone());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("a runtime")?;
    let outcome = runtime.block_on(shipper.pass(&incidents, clock::wall_us()));
    let told = status.json();
    output::print(&if args.json { format!("{told:#}\n") } else { text(&url, &told) })?;
    outcome.map_err(|error| anyhow::anyhow!("{error}; what arrived is noted, run this again to go on").into())
}

fn text(url: &str, told: &Value) -> String {
    format!(
        "{url}: {} files, {} bundles of incidents, {} bytes; {} of them were there; {} files are left\n",
        told["files"], told["bundles"], told["bytes"], told["found_there"], told["backlog"]["files"]
    )
}
