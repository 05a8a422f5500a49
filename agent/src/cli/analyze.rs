//! `fgm analyze`: whether metrics repeat, where they changed, where they are going; a sentence a line, or the API's JSON.

use super::{Failure, Place, far, fetch, local, output};
use crate::export::{Problem, instant};
use crate::viewer::Analysis;
use clap::{Args, ValueEnum};
use serde_json::Value;

#[derive(Clone, Copy, ValueEnum)]
enum What {
    /// Whether it repeats, and how often.
    Periodicity,
    /// Where it changed its level or its climb.
    Changepoint,
    /// Where it is going, and when it will be at its limit.
    Trend,
}

#[derive(Args)]
#[command(after_help = super::EXIT_CODES)]
pub struct AnalyzeArgs {
    what: What,
    #[command(flatten)]
    bucket: far::InBucket,
    #[command(flatten)]
    place: Place,
    /// Metrics or globs of them, comma-separated.
    #[arg(short, long, default_value = "memory_current")]
    metric: String,
    /// samples, node, io_devices or metrics.
    #[arg(long)]
    table: Option<String>,
    /// Kubernetes namespace.
    #[arg(short, long)]
    namespace: Option<String>,
    /// Kubernetes label selector.
    #[arg(short, long)]
    labels: Option<String>,
    /// Container names, container ids or globs of cgroup paths, comma-separated.
    #[arg(short, long)]
    containers: Option<String>,
    #[command(flatten)]
    time: super::TimeRange,
    /// Print JSON, as the API gives it.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &AnalyzeArgs) -> Result<(), Failure> {
    let analysis = match args.what {
        What::Periodicity => Analysis::Periodicity,
        What::Changepoint => Analysis::Changepoint,
        What::Trend => Analysis::Trend,
    };
    let metric = Some(args.metric.clone());
    let named = [
        ("metric", &metric),
        ("table", &args.table),
        ("namespace", &args.namespace),
        ("labels", &args.labels),
        ("containers", &args.containers),
    ];
    let pairs = super::pairs(named.into_iter().chain(args.time.named()));
    let answer = {
        let _shown = output::Progress::start("analyzing");
        if let Some(far) = args.bucket.open()? {
            let answer = far.analysis(analysis, pairs)?;
            far.finish()?;
            answer
        } else if let Some(dir) = &args.place.data {
            local::analysis(dir, analysis, pairs)?
        } else {
            fetch::json(&args.place, &fetch::path(analysis.path(), &pairs))?
        }
    };
    if args.json {
        return output::print(&format!("{answer}\n"));
    }
    let series = answer["series"].as_array().map(Vec::as_slice).unwrap_or_default();
    if series.is_empty() {
        return Err(
            Problem::not_found("no samples in this range; --range, --from and --to name another").into()
        );
    }
    for one in series {
        let named = ["container", "pod", "name", "cgroup_path"].iter().find_map(|name| one[*name].as_str());
        let end = |path: &str| path.rsplit('/').find(|part| !part.is_empty()).map(str::to_owned);
        let device = one["device"].as_str().map(|d| format!(" device {d}")).unwrap_or_default();
        let who = named.and_then(end).unwrap_or_else(|| "node".to_owned());
        let who = output::printable(&format!("{who}{device}"));
        for (metric, found) in one["metrics"].as_object().into_iter().flatten() {
            let said = match analysis {
                Analysis::Periodicity => period(found),
                Analysis::Changepoint => changes(found),
                Analysis::Trend => trend(found),
            };
            output::print(&format!("{who}  {metric}  {said}\n"))?;
        }
    }
    Ok(())
}

fn real(value: &Value) -> f64 {
    value.as_f64().unwrap_or(f64::NAN)
}

fn at(value: &Value) -> String {
    instant(value.as_i64().unwrap_or(0), 0)
}

/// Four digits that count.
fn short(value: &Value) -> String {
    let v = real(value);
    if v.abs() >= 1000.0 || v == 0.0 { format!("{v:.0}") } else { format!("{v:.3}") }
}

fn period(found: &Value) -> String {
    if found.is_null() {
        return "no period".to_owned();
    }
    let (seconds, share) = (real(&found["period_us"]) / 1e6, real(&found["strength"]) * 100.0);
    format!("repeats every {seconds:.1} s ({share:.0} % of what it does, swing {})", short(&found["swing"]))
}

fn changes(found: &Value) -> String {
    let all = found["changes"].as_array().map(Vec::as_slice).unwrap_or_default();
    if all.is_empty() {
        return "no change".to_owned();
    }
    let one = |c: &Value| {
        let of = |name: &str| short(&c[name]);
        if c["kind"] == "step" {
            format!("{} from {} to {}", at(&c["t_us"]), of("before"), of("after"))
        } else {
            format!("{} from {} to {} a second", at(&c["t_us"]), of("slope_before"), of("slope_after"))
        }
    };
    let more = found["left_out"]
        .as_u64()
        .filter(|n| *n > 0)
        .map(|n| format!("; {n} smaller ones"))
        .unwrap_or_default();
    format!("{}{more}", all.iter().map(one).collect::<Vec<_>>().join("; "))
}

fn trend(found: &Value) -> String {
    let Some(direction) = found["direction"].as_str() else {
        return "too few readings since it last changed".to_owned();
    };
    let slope =
        if direction == "flat" { String::new() } else { format!(" by {} a second", short(&found["slope"])) };
    let end = match (found["forecast"]["seconds"].as_f64(), found["no_forecast"].as_str()) {
        (Some(seconds), _) => {
            let limit = &found["limit"];
            let whose = output::printable(limit["cgroup_path"].as_str().unwrap_or("?"));
            format!(
                "; at {} of {whose} ({}) in {seconds:.0} s",
                limit["name"].as_str().unwrap_or("its limit"),
                short(&limit["value"])
            )
        }
        (None, Some(why)) if direction == "rising" => format!("; no forecast: {why}"),
        _ => String::new(),
    };
    format!("{direction}{slope} since {}{end}", at(&found["since_us"]))
}
