//! What an export is asked for: the query parameters of `/api/export` (and of `fgm export`, which are the same) as values.
//!
//! Pure: `now` comes from the caller. A parameter that is unknown, contradicts another or is not understood is an error
//! that lists what is accepted; nothing is guessed and nothing silently ignored.

use super::labels::Labels;
use super::problem::Problem;
use crate::catalogue;
use crate::pods::Pods;
use crate::query::{self, QueryError};
use crate::store::View;
use arrow::compute::kernels::cast_utils::string_to_timestamp_nanos;

pub const PARAMETERS: [&str; 12] = [
    "incident",
    "before",
    "after",
    "range",
    "from",
    "to",
    "namespace",
    "labels",
    "containers",
    "metrics",
    "redact",
    "format",
];
/// Seconds before and after an incident that may be asked for.
const MAX_AROUND_S: f64 = 86_400.0;
const SECOND_US: i64 = 1_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Parquet,
    Html,
    Csv,
    Json,
}

impl Format {
    pub const NAMES: [&str; 4] = ["parquet", "html", "csv", "json"];

    pub fn parse(name: &str) -> Result<Self, Problem> {
        match name {
            "parquet" => Ok(Self::Parquet),
            "html" => Ok(Self::Html),
            "csv" => Ok(Self::Csv),
            "json" => Ok(Self::Json),
            other => Err(Problem::bad_query(format!("format={other} is not known"), &Self::NAMES)),
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Parquet => "parquet",
            Self::Html => "html",
            Self::Csv => "csv",
            Self::Json => "json",
        }
    }

    pub fn media_type(self) -> &'static str {
        match self {
            Self::Parquet => "application/vnd.apache.parquet",
            Self::Html => "text/html; charset=utf-8",
            Self::Csv => "text/csv; charset=utf-8",
            Self::Json => "application/json",
        }
    }
}

/// Which rows.
#[derive(Clone, Debug, PartialEq)]
pub enum Rows {
    /// Around an incident; `None` = as the incident's own window says.
    Incident {
        id: String,
        before_us: Option<i64>,
        after_us: Option<i64>,
    },
    Range {
        from_us: i64,
        to_us: i64,
        containers: Containers,
    },
}

/// Which cgroups; what is empty does not narrow.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Containers {
    pub namespace: Option<String>,
    pub labels: Labels,
    /// Key as the API gives it, container name, container id (12 characters or more of it), or a glob of cgroup paths.
    pub names: Vec<String>,
    pub told: Told,
}

/// What Kubernetes has told of what is asked for: rows may have no names, and never have labels.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Told {
    /// UIDs of pods with the labels, besides those that an incident names.
    pub labelled: Vec<String>,
    /// UIDs of pods in the namespace.
    pub in_namespace: Vec<String>,
    /// Ids of containers with one of the names.
    pub named: Vec<String>,
}

/// As Kubernetes has it: a DNS label.
fn may_name_a_container(name: &str) -> bool {
    name.len() <= 63 && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

impl Containers {
    pub fn parse<'a>(get: impl Fn(&str) -> Option<&'a str>) -> Result<Self, Problem> {
        Ok(Self {
            namespace: get("namespace").map(str::to_owned),
            labels: get("labels").map_or_else(|| Ok(Labels::default()), Labels::parse)?,
            names: get("containers").map(list).unwrap_or_default(),
            told: Told::default(),
        })
    }

    /// Looks up who is meant by labels and names, if any are asked for.
    pub fn know(&mut self, pods: &Pods) {
        if !self.labels.is_empty() {
            self.told.labelled = pods.uids(|pod| self.labels.hold(&pod.labels));
        }
        if let Some(namespace) = &self.namespace {
            self.told.in_namespace = pods.uids(|pod| pod.namespace == *namespace);
        }
        if self.has_container_names() {
            self.told.named = pods.container_ids(|container| self.names.contains(&container.name));
        }
    }

    fn has_container_names(&self) -> bool {
        self.names.iter().any(|name| may_name_a_container(name))
    }

    /// The same, by what a store's own table tells.
    ///
    /// # Errors
    /// As of any query.
    pub fn know_by(&mut self, view: &View) -> Result<(), QueryError> {
        if self.labels.is_empty() && self.namespace.is_none() && !self.has_container_names() {
            return Ok(());
        }
        self.know(&query::pods(view)?);
        Ok(())
    }

    pub fn is_everything(&self) -> bool {
        *self == Self::default()
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Selection {
    pub rows: Rows,
    /// Columns of kernel values; `None` = all.
    pub metrics: Option<Vec<&'static str>>,
    pub format: Format,
    /// Without names and labels.
    pub is_redacted: bool,
}

impl Selection {
    pub fn parse(pairs: &[(String, String)], now_us: i64) -> Result<Self, Problem> {
        for (i, (name, _)) in pairs.iter().enumerate() {
            if !PARAMETERS.contains(&name.as_str()) {
                return Err(Problem::bad_query(format!("parameter {name} is not known"), &PARAMETERS));
            }
            if pairs[..i].iter().any(|(n, _)| n == name) {
                return Err(Problem::bad_query(format!("parameter {name} stands twice"), &[]));
            }
        }
        let get = |name: &str| {
            let value = pairs.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
            value.filter(|v| !v.is_empty())
        };
        let format = get("format").map_or(Ok(Format::Parquet), Format::parse)?;
        let metrics = get("metrics").map(columns).transpose()?;
        let rows = get("incident").map_or_else(|| range_rows(get, now_us), |id| incident_rows(id, get))?;
        let is_redacted = match get("redact") {
            None | Some("false") => false,
            Some("true") => true,
            Some(other) => {
                return Err(Problem::bad_query(format!("redact={other} is not known"), &["true", "false"]));
            }
        };
        Ok(Self { rows, metrics, format, is_redacted })
    }
}

fn incident_rows<'a>(id: &str, get: impl Fn(&str) -> Option<&'a str>) -> Result<Rows, Problem> {
    for other in ["range", "from", "to", "namespace", "labels", "containers"] {
        if get(other).is_some() {
            let detail = format!("{other} does not go with incident, which names its own rows");
            return Err(Problem::bad_query(detail, &["before", "after", "metrics", "redact", "format"]));
        }
    }
    Ok(Rows::Incident {
        id: id.to_owned(),
        before_us: get("before").map(|v| around("before", v)).transpose()?,
        after_us: get("after").map(|v| around("after", v)).transpose()?,
    })
}

fn range_rows<'a>(get: impl Fn(&str) -> Option<&'a str>, now_us: i64) -> Result<Rows, Problem> {
    for only in ["before", "after"] {
        if get(only).is_some() {
            return Err(Problem::bad_query(format!("{only} needs incident=ID or incident=latest"), &[]));
        }
    }
    let (from_us, to_us) = time_range(get("range"), get("from"), get("to"), now_us)?;
    let containers = Containers::parse(get)?;
    Ok(Rows::Range { from_us, to_us, containers })
}

fn list(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|s| !s.is_empty()).map(str::to_owned).collect()
}

/// The range that is named; without one everything, without its start everything up to its end.
pub fn time_range_or_all(
    range: Option<&str>,
    from: Option<&str>,
    to: Option<&str>,
    now_us: i64,
) -> Result<(i64, i64), Problem> {
    match (range, from, to) {
        (None, None, None) => Ok((i64::MIN, i64::MAX)),
        (None, None, Some(_)) => time_range(None, Some("0"), to, now_us),
        _ => time_range(range, from, to, now_us),
    }
}

/// `range=15m` up to now, or `from` and `to`, each RFC 3339 or Unix seconds; `to` may be left out (now).
pub fn time_range(
    range: Option<&str>,
    from: Option<&str>,
    to: Option<&str>,
    now_us: i64,
) -> Result<(i64, i64), Problem> {
    match (range, from, to) {
        (Some(_), None, None) | (None, Some(_), _) => {}
        (Some(_), _, _) => {
            return Err(Problem::bad_query("range goes up to now; from and to do not go with it", &[]));
        }
        (None, None, _) => {
            let accepted = ["incident=ID", "incident=latest", "range=15m", "from=…&to=…"];
            return Err(Problem::bad_query("neither an incident nor a time range is named", &accepted));
        }
    }
    if let Some(range) = range {
        return Ok((now_us.saturating_sub(duration_us("range", range)?), now_us));
    }
    let from_us = from.map_or(Ok(0), |v| instant_us("from", v))?;
    let to_us = to.map_or(Ok(now_us), |v| instant_us("to", v))?;
    if from_us >= to_us {
        let (from, to) = (instant(from_us, 0), instant(to_us, 0));
        return Err(Problem::bad_query(format!("from ({from}) is not before to ({to})"), &[]));
    }
    Ok((from_us, to_us))
}

/// An instant as a person writes it, and as `from` and `to` take it.
pub fn instant(us: i64, places: usize) -> String {
    jiff::Timestamp::from_microsecond(us).map_or_else(|_| format!("{us} µs"), |t| format!("{t:.places$}"))
}

/// `500ms`, `90s`, `15m`, `1h30m`, `2d`.
pub fn duration_us(name: &str, text: &str) -> Result<i64, Problem> {
    let bad = || {
        let accepted = ["500ms", "90s", "15m", "1h30m", "2d"];
        Problem::bad_query(format!("{name}={text} is not a length of time"), &accepted)
    };
    let mut rest = text;
    let mut total = 0i64;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, tail) = rest.split_at(digits);
        let unit = tail.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, tail) = tail.split_at(unit);
        let factor = match unit {
            "ms" => SECOND_US / 1000,
            "s" => SECOND_US,
            "m" => 60 * SECOND_US,
            "h" => 3600 * SECOND_US,
            "d" => 86_400 * SECOND_US,
            _ => return Err(bad()),
        };
        let number: i64 = number.parse().map_err(|_| bad())?;
        total = number.checked_mul(factor).and_then(|v| v.checked_add(total)).ok_or_else(bad)?;
        rest = tail;
    }
    if total > 0 { Ok(total) } else { Err(bad()) }
}

fn seconds_us(text: &str) -> Option<i64> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let plain = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    // Eleven digits of seconds reach the year 5138: more is milliseconds by mistake.
    if whole.is_empty() || whole.len() > 11 || !plain(whole) || !plain(part) || part.len() > 9 {
        return None;
    }
    let micros: i64 = format!("{part:0<6}")[..6].parse().ok()?;
    Some(whole.parse::<i64>().ok()? * SECOND_US + micros)
}

fn instant_us(name: &str, text: &str) -> Result<i64, Problem> {
    if let Some(us) = seconds_us(text) {
        return Ok(us);
    }
    // A `+` of a zone is a blank after URL decoding.
    let zoned = text.replace(' ', "+");
    let bytes = zoned.as_bytes();
    let has_zone = bytes.len() >= 20
        && bytes[10].eq_ignore_ascii_case(&b't')
        && (zoned.ends_with(['Z', 'z']) || matches!(bytes[bytes.len() - 6], b'+' | b'-'));
    if has_zone && let Ok(ns) = string_to_timestamp_nanos(&zoned) {
        return Ok(ns.div_euclid(1000));
    }
    let accepted = ["2026-01-31T12:00:00Z", "2026-01-31T12:00:00.5+01:00", "1769860800", "1769860800.5"];
    Err(Problem::bad_query(format!("{name}={text} is neither RFC 3339 nor Unix seconds"), &accepted))
}

/// Seconds, or a length with a unit.
fn around(name: &str, text: &str) -> Result<i64, Problem> {
    let us = if text == "0" { Some(0) } else { seconds_us(text) };
    let us = us.map_or_else(|| duration_us(name, text), Ok)?;
    #[expect(clippy::cast_precision_loss, reason = "compared with a day")]
    if us as f64 / 1e6 > MAX_AROUND_S {
        return Err(Problem::bad_query(format!("{name}={text} is more than a day"), &["0 to 86400 seconds"]));
    }
    Ok(us)
}

/// Column names or globs of them, in the order of the table.
pub fn columns(text: &str) -> Result<Vec<&'static str>, Problem> {
    let mut out = Vec::new();
    for pattern in list(text) {
        let before = out.len();
        out.extend(catalogue::columns().map(|(_, _, c)| c.name).filter(|name| glob(&pattern, name)));
        if out.len() == before {
            let near = nearest(&pattern, catalogue::columns().map(|(_, _, c)| c.name));
            let detail = format!("metrics: no column is named {pattern}; /api/metrics lists all");
            return Err(Problem::bad_query(detail, &near));
        }
    }
    let mut in_order: Vec<(usize, &'static str)> =
        out.into_iter().filter_map(|name| Some((catalogue::column(name)?, name))).collect();
    in_order.sort_unstable();
    in_order.dedup();
    Ok(in_order.into_iter().map(|(_, name)| name).collect())
}

/// The names that one which is not there may stand for, the likeliest first: so many that they are read.
pub fn nearest<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    const MOST: usize = 5;
    const ALIKE: f64 = 0.8;
    let wanted = wanted.replace(['*', '?'], "").to_lowercase();
    let mut found: Vec<(f64, &str)> = names
        .map(|name| (strsim::jaro_winkler(&wanted, name), name))
        .filter(|(like, _)| *like >= ALIKE)
        .collect();
    found.sort_by(|a, b| b.0.total_cmp(&a.0));
    found.into_iter().take(MOST).map(|(_, name)| name).collect()
}

/// `*` for any run of characters, `?` for one. Linear in time for any pattern.
pub fn glob(pattern: &str, text: &str) -> bool {
    let (p, t): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut i, mut j) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while j < t.len() {
        if i < p.len() && p[i] == '*' {
            star = Some((i, j));
            i += 1;
        } else if i < p.len() && (p[i] == '?' || p[i] == t[j]) {
            i += 1;
            j += 1;
        } else if let Some((at, from)) = star {
            i = at + 1;
            j = from + 1;
            star = Some((at, from + 1));
        } else {
            return false;
        }
    }
    p[i..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_700_000_000_000_000;

    fn parse(query: &[(&str, &str)]) -> Result<Selection, Problem> {
        let pairs: Vec<_> = query.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Selection::parse(&pairs, NOW)
    }

    fn range(query: &[(&str, &str)]) -> (i64, i64) {
        match parse(query).expect("good").rows {
            Rows::Range { from_us, to_us, .. } => (from_us, to_us),
            Rows::Incident { .. } => panic!("a range was asked for"),
        }
    }

    #[test]
    fn lengths_and_instants_in_every_spelling() {
        assert_eq!(range(&[("range", "15m")]), (NOW - 900_000_000, NOW));
        assert_eq!(range(&[("range", "1h30m")]), (NOW - 5_400_000_000, NOW));
        assert_eq!(range(&[("range", "500ms")]), (NOW - 500_000, NOW));
        let wanted = (1_699_999_000_000_000, 1_699_999_060_500_000);
        assert_eq!(range(&[("from", "1699999000"), ("to", "1699999060.5")]), wanted);
        assert_eq!(range(&[("from", "2023-11-14T21:56:40Z"), ("to", "2023-11-14T22:57:40.5+01:00")]), wanted);
        assert_eq!(range(&[("from", "2023-11-14T21:56:40Z"), ("to", "2023-11-14T22:57:40.5 01:00")]), wanted);
    }

    #[test]
    fn what_is_not_understood_is_refused_with_what_would_be() {
        for (query, word) in [
            (vec![], "neither an incident nor a time range"),
            (vec![("rang", "15m")], "rang is not known"),
            (vec![("range", "15")], "not a length of time"),
            (vec![("range", "0s")], "not a length of time"),
            (vec![("range", "99999999999999999d")], "not a length of time"),
            (vec![("range", "15m"), ("from", "1")], "do not go with it"),
            (vec![("range", "15m"), ("range", "16m")], "stands twice"),
            (vec![("from", "yesterday")], "neither RFC 3339"),
            (vec![("from", "1700000000000")], "neither RFC 3339"),
            (vec![("from", "2023-11-14")], "neither RFC 3339"),
            (vec![("from", "5"), ("to", "4")], "is not before"),
            (vec![("range", "15m"), ("format", "xlsx")], "format=xlsx"),
            (vec![("range", "15m"), ("metrics", "memory_curent")], "memory_curent"),
            (vec![("range", "15m"), ("labels", "app within (a,b)")], "no rule of a label selector"),
            (vec![("range", "15m"), ("before", "5")], "needs incident"),
            (vec![("incident", "latest"), ("range", "5m")], "does not go with incident"),
            (vec![("incident", "latest"), ("before", "-5")], "not a length of time"),
            (vec![("incident", "latest"), ("before", "100000")], "more than a day"),
        ] {
            let problem = parse(&query).expect_err("must be refused");
            assert_eq!(problem.status, 400, "{query:?}");
            assert!(problem.detail.contains(word), "{query:?}: {}", problem.detail);
        }
    }

    #[test]
    fn metrics_are_names_or_globs_in_the_order_of_the_table() {
        let s = parse(&[("range", "1m"), ("metrics", "pids_current,memory_events_oom*,memory_current")])
            .expect("good");
        let wanted = [
            "memory_current",
            "memory_events_oom",
            "memory_events_oom_kill",
            "memory_events_oom_group_kill",
            "pids_current",
        ];
        assert_eq!(s.metrics.expect("given"), wanted);
    }

    #[test]
    fn a_misspelt_metric_is_answered_with_the_nearest() {
        let e = columns("memory_curent").expect_err("misspelt");
        let near = e.more["accepted"].as_array().expect("some").clone();
        assert_eq!(near[0], "memory_current");
        assert!(near.len() <= 5, "{near:?}");
        let far = columns("zzz").expect_err("nothing like it");
        assert!(far.more.is_empty() && far.detail.contains("/api/metrics"), "{far}");
    }

    #[test]
    fn globs() {
        for (pattern, text, wanted) in [
            ("a*c", "abbc", true),
            ("a*c", "ac", true),
            ("a?c", "ac", false),
            ("*", "", true),
            ("a*b*c", "axxbyyc", true),
            ("a*b*c", "axxbyy", false),
            ("", "a", false),
        ] {
            assert_eq!(glob(pattern, text), wanted, "{pattern} {text}");
        }
    }
}
