//! Every path of the API with its parameters: the one list from which requests are checked and the description is made.
//!
//! A parameter that is not in it is refused with those that are, so neither can say what the other does not. Values only.
//! Called by the handlers (`understood`) and for `/api/openapi.json`.

use super::lines::{self, TABLES};
use crate::catalogue::{self, node};
use crate::export::{Format, Problem, time_range, time_range_or_all};
use crate::timeseries::derived::DERIVED;
use axum::extract::Query;
use axum::extract::rejection::QueryRejection;
use serde_json::{Map, Value, json};

/// What a handler gets: the pairs of the query string, or why there are none.
pub type Pairs = Result<Query<Vec<(String, String)>>, QueryRejection>;

pub struct Param {
    pub name: &'static str,
    about: &'static str,
    example: &'static str,
}

pub struct Endpoint {
    pub path: &'static str,
    about: &'static str,
    params: &'static [Param],
    /// Media types of a good answer.
    answers: &'static [&'static str],
}

const fn p(name: &'static str, about: &'static str, example: &'static str) -> Param {
    Param { name, about, example }
}

const RANGE: Param = p("range", "The time up to now (of a copied folder: up to its newest row).", "15m");
const FROM: Param = p("from", "Start of the range, RFC 3339 or Unix seconds.", "2026-01-31T12:00:00Z");
const TO: Param = p("to", "End of the range; default: now.", "2026-01-31T12:15:00Z");
const NAMESPACE: Param = p("namespace", "Kubernetes namespace.", "shop");
const LABELS: Param = p(
    "labels",
    "Kubernetes label selector: a=b, a!=b, a in (b,c), a notin (b), a, !a. Labels are known of pods that Kubernetes told this node's agent of (table containers), and of those that an incident names.",
    "app=cart,tier in (web,api)",
);
const CONTAINERS: Param = p(
    "containers",
    "Comma-separated: keys as /api/containers gives them, container names, container ids (12 characters or more) or globs of cgroup paths.",
    "cart,/system.slice/*",
);
const JSON: &[&str] = &["application/json"];
const TEXT: &[&str] = &["text/plain"];

const METRIC: Param = p(
    "metric",
    "Names or globs of /api/metrics, and names of its `derived` ones, comma-separated. Required.",
    "memory_current,cpu_stat_*",
);
const TABLE: Param = p(
    "table",
    "samples (default), node, io_devices (a line for each device) or metrics (a line for each set of labels; `metric` are its names or globs of them, the value is in `value`).",
    "samples",
);
const RATE: Param = p("rate", "false = counters as they stand.", "false");
/// The selection of a series: what is analysed is what is drawn.
const SERIES: &[Param] = &[
    METRIC,
    TABLE,
    CONTAINERS,
    NAMESPACE,
    LABELS,
    RANGE,
    FROM,
    TO,
    p("resolution", "Length of a bucket; default: a 600th of the range.", "250ms"),
    RATE,
];
const ANALYSED: &[Param] = &[METRIC, TABLE, CONTAINERS, NAMESPACE, LABELS, RANGE, FROM, TO, RATE];

pub static TIMESERIES: Endpoint = Endpoint {
    path: "/api/timeseries",
    about: "Buckets of metrics, one line for each container and metric. Each bucket has min, max and mean and the instants of min and max, so no spike is lost; counters are rates, with none from a first reading, across a gap or across a reset; `cut` marks a gap before a bucket. Times in the lists are µs from from_us.",
    params: SERIES,
    answers: JSON,
};
pub static PERIODICITY: Endpoint = Endpoint {
    path: "/api/analyze/periodicity",
    about: "Whether each line of the selection repeats: its period, the share of it that the repetition explains, the swing, and the probability that noise does the same. Null where it does not: a ramp, a step, a random walk and noise have none, nor has what was seen in fewer than five cycles.",
    params: ANALYSED,
    answers: JSON,
};
pub static CHANGEPOINT: Endpoint = Endpoint {
    path: "/api/analyze/changepoint",
    about: "Where each line of the selection changed its level (step) or its climb (slope), the levels and slopes at both sides, and the size in deviations of its noise. At most 20 of a line; `left_out` counts smaller ones.",
    params: ANALYSED,
    answers: JSON,
};
pub static TREND: Endpoint = Endpoint {
    path: "/api/analyze/trend",
    about: "Where each line of the selection is going since it last changed: the slope a second with its bounds at 95 %, and of memory, swap, CPU and pids the time to the limit that has the least room, of the cgroup or of one above it. Without a forecast `no_forecast` says why.",
    params: ANALYSED,
    answers: JSON,
};
pub static CONTAINERS_LIST: Endpoint = Endpoint {
    path: "/api/containers",
    about: "The cgroups of which there are rows in the range, with what their last rows say; live ones first. Per cent of the limit is null where there is none, the working set where memory.stat was not read.",
    params: &[
        p("search", "Part of a name, id or path, in any case.", "cart"),
        p("scope", "container, pod, service, node or other.", "container"),
        p("qos", "guaranteed, burstable or besteffort.", "burstable"),
        p("state", "live or gone.", "gone"),
        CONTAINERS,
        NAMESPACE,
        LABELS,
        RANGE,
        FROM,
        TO,
    ],
    answers: JSON,
};
pub static FILTERS: Endpoint = Endpoint {
    path: "/api/filters",
    about: "The values by which the containers of a range can be narrowed, each with how many have it.",
    params: &[RANGE, FROM, TO],
    answers: JSON,
};
pub static METRICS_LIST: Endpoint = Endpoint {
    path: "/api/metrics",
    about: "The catalogue: every metric with its meaning, file, key, kind, unit, the kernel that brought it, how often it is read and by how much it may lag. `derived` are those of samples that are made of others when /api/timeseries or an analysis is asked for them: working set and per cent of limits.",
    params: &[p("search", "Part of a name, file, key or meaning.", "throttled")],
    answers: JSON,
};
pub static EVENTS: Endpoint = Endpoint {
    path: "/api/events",
    about: "What the kernel told, in time order.",
    params: &[p("kind", "Kinds, comma-separated.", "oom_kill,exit"), CONTAINERS, NAMESPACE, RANGE, FROM, TO],
    answers: JSON,
};
pub static INCIDENTS: Endpoint = Endpoint {
    path: "/api/incidents",
    about: "The latest revision of each incident, newest first; `total` counts those of the range. Where `limit` left older ones out, they come with `to` at the time of the last that is listed.",
    params: &[p("limit", "So many at the most, 1 to 10000; default 1000.", "50"), RANGE, FROM, TO],
    answers: JSON,
};
pub static LIVE: Endpoint = Endpoint {
    path: "/api/live",
    about: "Server-sent events, once a second: `samples` (rows of the named containers), `events`, `incidents` when one is new or was revised, `lost` when more came than one message holds, and a `tick`. Not for history, which is written later than it was read.",
    params: &[
        CONTAINERS,
        NAMESPACE,
        p(
            "metric",
            "Names or globs of /api/metrics; default: memory_current, cpu_stat_usage_usec.",
            "memory_*",
        ),
    ],
    answers: &["text/event-stream"],
};
pub static EXPORT: Endpoint = Endpoint {
    path: "/api/export",
    about: "A selection as one file. Over a limit it is refused before a byte: 413 says which limit, what was asked and how to narrow it.",
    params: &[
        p("incident", "An incident's id, or latest.", "latest"),
        p("before", "Seconds (or 30s, 5m) before the incident; default: its own window.", "30"),
        p("after", "Seconds (or 30s, 5m) after the incident; default: its own window.", "10"),
        RANGE,
        FROM,
        TO,
        NAMESPACE,
        LABELS,
        CONTAINERS,
        p("metrics", "Columns or globs of columns, comma-separated; default: all.", "memory_*"),
        p(
            "redact",
            "true = names (of node, pod, container, process, path) are replaced by stand-ins, labels left out.",
            "true",
        ),
        p(
            "format",
            "parquet, html, csv or json. A report (html) of more than 5 MB is thinned: the lowest and highest values stay, and it says so.",
            "parquet",
        ),
    ],
    answers: &["application/vnd.apache.parquet", "text/html", "text/csv", "application/json"],
};

const fn plain(path: &'static str, about: &'static str, answers: &'static [&'static str]) -> Endpoint {
    Endpoint { path, about, params: &[], answers }
}

pub static PLAIN: [Endpoint; 7] = [
    plain("/", "The viewer.", &["text/html"]),
    plain("/healthz", "Alive.", TEXT),
    plain(
        "/readyz",
        "Ready: the first round of sampling is done. What it lacks besides (names from Kubernetes) is said in further lines.",
        TEXT,
    ),
    plain("/metrics", "Prometheus exposition.", TEXT),
    plain("/api/status", "Instance, ladder, rates, cost, ledger totals, store size.", JSON),
    plain("/api/incidents/{id}", "One incident; `latest` is the newest.", JSON),
    plain("/api/openapi.json", "This description.", JSON),
];

/// All of them.
pub fn endpoints() -> impl Iterator<Item = &'static Endpoint> {
    let own = [
        &METRICS_LIST,
        &CONTAINERS_LIST,
        &FILTERS,
        &TIMESERIES,
        &PERIODICITY,
        &CHANGEPOINT,
        &TREND,
        &EVENTS,
        &INCIDENTS,
        &LIVE,
        &EXPORT,
    ];
    PLAIN.iter().chain(own)
}

/// The query of a request that was held against the list.
pub struct Asked(pub Vec<(String, String)>);

impl Asked {
    /// None when absent or empty.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str()).filter(|v| !v.is_empty())
    }

    /// The range that is named, or everything.
    pub fn range_or_all(&self, now_us: i64) -> Result<(i64, i64), Problem> {
        time_range_or_all(self.get("range"), self.get("from"), self.get("to"), now_us)
    }

    /// The range that is named, or the time up to now that stands for it.
    pub fn range(&self, default: &str, now_us: i64) -> Result<(i64, i64), Problem> {
        let (range, from, to) = (self.get("range"), self.get("from"), self.get("to"));
        let range = if range.or(from).or(to).is_none() { Some(default) } else { range };
        time_range(range, from, to, now_us)
    }
}

pub fn understood(endpoint: &Endpoint, pairs: Pairs) -> Result<Asked, Problem> {
    let Query(pairs) = pairs.map_err(|e| Problem::bad_query(format!("the query string: {e}"), &[]))?;
    for (i, (name, _)) in pairs.iter().enumerate() {
        if !endpoint.params.iter().any(|p| p.name == name) {
            let accepted: Vec<&str> = endpoint.params.iter().map(|p| p.name).collect();
            return Err(Problem::bad_query(format!("parameter {name} is not known"), &accepted));
        }
        if pairs[..i].iter().any(|(n, _)| n == name) {
            return Err(Problem::bad_query(format!("parameter {name} stands twice"), &[]));
        }
    }
    Ok(Asked(pairs))
}

/// OpenAPI 3.1 of [`endpoints`].
pub fn openapi() -> Value {
    let paths: Map<String, Value> =
        endpoints().map(|e| (e.path.to_owned(), json!({"get": operation(e)}))).collect();
    let problem = json!({
        "type": "object",
        "required": ["type", "title", "status", "detail"],
        "properties": {
            "type": {"type": "string", "format": "uri"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "accepted": {"type": "array", "items": {"type": "string"}, "description": "What would have been understood."},
            "limit": {"type": "object", "description": "Which limit, and its value."},
            "asked": {"type": "integer"},
            "narrow": {"type": "string", "description": "How to ask for less."},
        },
    });
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Fine-Grained Monitor",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "What one node's agent recorded. All times are µs since the Unix epoch, UTC; absent is null.",
            "license": {"name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": {"Problem": problem},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "description": "Where token_file is set."}},
        },
        "security": [{}, {"token": []}],
    })
}

fn operation(endpoint: &Endpoint) -> Value {
    let named = endpoint.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let mut parameters: Vec<Value> = named
        .map(|name| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}, "description": "An id as /api/incidents has it, or latest.", "example": "latest"}))
        .collect();
    parameters.extend(endpoint.params.iter().map(|p| {
        json!({"name": p.name, "in": "query", "required": p.name == METRIC.name && p.about == METRIC.about, "schema": schema(p.name), "description": p.about, "example": p.example})
    }));
    let content: Map<String, Value> = endpoint
        .answers
        .iter()
        .map(|media| {
            let kind = if *media == "application/json" {
                json!({"type": ["object", "array"]})
            } else {
                json!({"type": "string"})
            };
            ((*media).to_owned(), json!({"schema": kind}))
        })
        .collect();
    let problem = |about: &str| json!({"description": about, "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}});
    json!({
        "summary": endpoint.about,
        "parameters": parameters,
        "responses": {
            "200": {"description": "As asked.", "content": content},
            "400": problem("The query is not understood; `accepted` says what would be."),
            "401": problem("No token, or another."),
            "403": problem("Another host or origin."),
            "404": problem("No such thing."),
            "413": problem("More than a limit allows; nothing was sent."),
            "414": problem("The address is longer than is read."),
            "503": problem("Not now; Retry-After says when."),
        },
    })
}

fn schema(param: &str) -> Value {
    match param {
        "format" => json!({"type": "string", "enum": Format::NAMES}),
        "state" => json!({"type": "string", "enum": ["live", "gone"]}),
        "rate" | "redact" => json!({"type": "string", "enum": ["true", "false"]}),
        "table" => json!({"type": "string", "enum": TABLES}),
        _ => json!({"type": "string"}),
    }
}

/// `/api/metrics`: the catalogue, narrowed by a word. `table` says where `/api/timeseries` has it.
pub fn metrics(search: Option<&str>) -> Value {
    let word = search.unwrap_or_default().to_lowercase();
    let has_word = |texts: [&str; 4]| texts.iter().any(|text| text.to_lowercase().contains(&word));
    let mut metrics: Vec<Value> = Vec::new();
    let mut add = |table: &str, file: &str, c: &catalogue::Column, tier: &str, name: &str| {
        if has_word([file, name, c.key, c.about]) {
            let key = (!c.key.is_empty()).then_some(c.key);
            // A row of io_devices is of one.
            let about =
                if table == "io_devices" { c.about.trim_end_matches(", all devices") } else { c.about };
            metrics.push(json!({
                "name": name, "table": table, "file": file, "key": key, "kind": c.kind.as_str(), "unit": c.unit.as_str(),
                "tier": tier, "since": c.since, "lag": catalogue::lag(file), "about": about,
            }));
        }
    };
    for (_, file, column) in catalogue::columns() {
        add("samples", file.name, column, file.tier.as_str(), column.name);
    }
    for (_, file, column) in node::columns() {
        add("node", file.path, column, "hot", column.name);
    }
    for name in catalogue::DEVICE_KEYS {
        let of_all = catalogue::columns().find(|(_, file, c)| file.name == "io.stat" && c.key == name);
        if let Some((_, file, column)) = of_all {
            add("io_devices", file.name, column, file.tier.as_str(), lines::device(name).name);
        }
    }
    let made: Vec<Value> = DERIVED
        .iter()
        .filter(|d| has_word([d.file, d.name, d.unit, d.about]))
        .map(|d| json!({"name": d.name, "table": "samples", "unit": d.unit, "of": d.parts, "about": d.about}))
        .collect();
    json!({"metrics": metrics, "derived": made})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_export_is_described_as_it_is_parsed() {
        let described: std::collections::BTreeSet<&str> = EXPORT.params.iter().map(|p| p.name).collect();
        assert_eq!(described, crate::export::PARAMETERS.into_iter().collect());
    }

    #[test]
    fn a_metric_of_one_device_does_not_speak_of_all() {
        let metrics = metrics(Some("rbytes"));
        let about = |table: &str| {
            let of_table = metrics["metrics"].as_array().into_iter().flatten().find(|m| m["table"] == table);
            of_table.map(|m| m["about"].clone())
        };
        assert_eq!(about("io_devices"), Some(json!("Bytes read")));
        assert_eq!(about("samples"), Some(json!("Bytes read, all devices")));
    }

    #[test]
    fn what_is_not_in_the_list_is_refused() {
        let pairs = |list: &[(&str, &str)]| {
            Ok(Query(list.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<Vec<_>>()))
        };
        let e = understood(&FILTERS, pairs(&[("rnage", "5m")])).map(|_| ()).expect_err("unknown");
        assert_eq!(e.more["accepted"], json!(["range", "from", "to"]));
        let twice = pairs(&[("range", "5m"), ("range", "6m")]);
        assert!(understood(&FILTERS, twice).is_err());
        let asked = understood(&FILTERS, pairs(&[("range", "5m")])).map_err(|e| e.detail).expect("good");
        assert_eq!(asked.range("15m", 600_000_000).expect("good"), (300_000_000, 600_000_000));
    }
}
