//! Exports out of a data folder: what a person gets, and that the report holds the very same Parquet.
//! Leaves `interop/` in the target's temporary folder: a data folder and an incident.parquet for tests/interop/check.py.

#[path = "support/rows.rs"]
mod rows;

use arrow::array::RecordBatch;
use base64::Engine;
use bytes::Bytes;
use fgm::export::{self, Evidence, Format, Limits, Problem, Selection};
use fgm::names::Table;
use fgm::query;
use fgm::segment::{self, Disk, Footer};
use fgm::store::{Loose, Store, View, Writer};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use rows::{BOOT_ID, KILL_US, KILLED, ODD_COMM, POD, QUIET, SLICE};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

const LIMITS: Limits = Limits { max_rows: 1_000_000, max_containers: 100 };

/// The store as it is after three rotations, with the last rows still in memory.
fn view(dir: &Path) -> View {
    let mut view = View::default();
    let samples = rows::samples();
    let third = samples.len() / 3;
    let mut seq = 0;
    let mut close = |table, batch: RecordBatch| {
        seq += 1;
        let boot = segment::boot_of(BOOT_ID);
        segment::write(&Disk, dir, table, &[batch], &boot, seq, &rows::metadata()).expect("written")
    };
    let parts = [&samples[..third], &samples[third..2 * third]];
    for part in parts {
        let s = close(Table::Samples, rows::batch(Table::Samples, part));
        view.segments.push(s);
    }
    for (table, batch) in rows::all().into_iter().filter(|(t, _)| *t != Table::Samples) {
        view.segments.push(close(table, batch));
    }
    let batch = rows::batch(Table::Samples, &samples[2 * third..]);
    view.loose.push(Loose { table: Table::Samples, boot: segment::boot_of(BOOT_ID), batch });
    view
}

fn evidence(view: &View) -> Evidence {
    Evidence {
        view: view.clone(),
        incidents: export::incidents(view, vec![]).expect("readable"),
        provenance: serde_json::Map::new(),
        pods: query::pods(view).expect("readable"),
        limits: LIMITS,
        now_us: KILL_US + 20_000_000,
    }
}

fn ask(view: &View, query: &[(&str, &str)]) -> Result<export::Exported, Problem> {
    let pairs: Vec<_> = query.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    export::export(evidence(view), &Selection::parse(&pairs, KILL_US + 20_000_000)?)
}

fn read(bytes: Vec<u8>) -> (Vec<RecordBatch>, BTreeMap<String, String>) {
    let builder = ParquetRecordBatchReaderBuilder::try_new(Bytes::from(bytes)).expect("Parquet");
    let pairs = builder.metadata().file_metadata().key_value_metadata().expect("pairs").clone();
    let pairs = pairs.into_iter().filter_map(|kv| Some((kv.key, kv.value?))).collect();
    (builder.build().expect("readable").map(|b| b.expect("rows")).collect(), pairs)
}

fn keys(batches: &[RecordBatch]) -> Vec<(i64, i64)> {
    let at = |b: &RecordBatch, i| {
        (query::int(b, "cgroup_id", i).expect("set"), query::int(b, "ts", i).expect("set"))
    };
    batches.iter().flat_map(|b| (0..b.num_rows()).map(move |i| at(b, i))).collect()
}

fn between<'a>(text: &'a str, from: &str, to: &str) -> &'a str {
    text.split_once(from).expect(from).1.split_once(to).expect(to).0
}

#[test]
fn an_incident_is_its_container_and_its_pod_in_its_window() {
    let dir = tempfile::tempdir().expect("a folder");
    let got = ask(&view(dir.path()), &[("incident", "latest")]).expect("exported");
    assert_eq!(got.file_name, format!("incident-{}.parquet", rows::incident_id()));
    let (batches, pairs) = read(got.bytes);
    let found = keys(&batches);
    assert!(found.is_sorted(), "by cgroup, then by time");
    let wanted = rows::samples()
        .iter()
        .filter(|r| [rows::int(KILLED), rows::int(POD)].contains(&r["cgroup_id"]))
        .filter(|r| matches!(r["ts"], rows::Cell::Int(ts) if (KILL_US - 30_000_000..=KILL_US + 10_000_000).contains(&ts)))
        .count();
    assert_eq!(found.len(), wanted);
    assert!(wanted > 1600);

    let incident: Value = serde_json::from_str(&pairs["fgm.incident"]).expect("JSON");
    assert_eq!(incident["revision"], 2, "the latest revision");
    assert_eq!(incident["cgroup_id"], KILLED.to_string(), "cgroup ids are text");
    let events: Value = serde_json::from_str(&pairs["fgm.events"]).expect("JSON");
    let kinds: Vec<&str> =
        events.as_array().expect("a list").iter().filter_map(|e| e["kind"].as_str()).collect();
    assert_eq!(kinds, ["oom_kill"], "neither the neighbour's nor one before the window");
    assert_eq!(events[0]["comm"], ODD_COMM);
    assert_eq!(events[0]["detail"]["anon_bytes"], 66_000_000);
    let processes: Value = serde_json::from_str(&pairs["fgm.processes"]).expect("JSON");
    let victims: Vec<(i64, bool)> = processes
        .as_array()
        .expect("a list")
        .iter()
        .map(|p| (p["pid"].as_i64().expect("a pid"), p["is_victim"].as_bool().expect("a flag")))
        .collect();
    assert_eq!(victims, [(4242, true), (4201, false)]);
    let provenance: Value = serde_json::from_str(&pairs["fgm.provenance"]).expect("JSON");
    assert_eq!(provenance["kernel"], "6.12.0-test");
    assert_eq!(provenance["hooks"][0]["event"], "oom_kill");
    assert_eq!(provenance["lane_hz"], 20);
    assert_eq!(provenance["rows"], wanted);
    assert_eq!(provenance["generated_us"], Value::Null, "what changes by itself is not in the Parquet");
    assert_eq!(provenance["clock_offset_ns"], (KILL_US - 5_000_000_000) * 1000);
}

#[test]
fn before_and_after_widen_the_window() {
    let dir = tempfile::tempdir().expect("a folder");
    let view = view(dir.path());
    let id = rows::incident_id();
    let got = ask(&view, &[("incident", &id), ("before", "100"), ("after", "1.5")]).expect("exported");
    let times: Vec<i64> = keys(&read(got.bytes).0).into_iter().map(|(_, ts)| ts).collect();
    let (first, last) = (times.iter().min().expect("some"), times.iter().max().expect("some"));
    assert_eq!((*first, *last), (KILL_US - 100_000_000 + 7, KILL_US + 1_500_000));
}

#[test]
fn the_report_holds_the_same_parquet_byte_for_byte() {
    let dir = tempfile::tempdir().expect("a folder");
    let view = view(dir.path());
    let parquet = ask(&view, &[("incident", "latest")]).expect("exported").bytes;
    let html = ask(&view, &[("incident", "latest"), ("format", "html")]).expect("exported");
    assert_eq!(html.format, Format::Html);
    let html = String::from_utf8(html.bytes).expect("text");
    let data = between(&html, r#"id="fgm-data">"#, "</script>");
    let data: Value = serde_json::from_str(data).expect("JSON in spite of an odd comm");
    let inside = between(&html, r#"id="fgm-parquet">"#, "</script>");
    let inside = base64::engine::general_purpose::STANDARD.decode(inside).expect("base64");
    assert!(inside == parquet, "{} bytes inside, {} alone", inside.len(), parquet.len());
    let hash = data["provenance"]["parquet_sha256"].as_str().expect("text");
    let hash: Vec<u8> =
        (0..hash.len()).step_by(2).map(|i| u8::from_str_radix(&hash[i..i + 2], 16).expect("hex")).collect();
    assert_eq!(hash, Sha256::digest(&parquet).as_slice());
    assert_eq!(data["provenance"]["generated_us"], KILL_US + 20_000_000);
    assert_eq!(data["format"], 1);
    let scopes: Vec<&str> =
        data["cgroups"].as_array().expect("a list").iter().filter_map(|c| c["scope"].as_str()).collect();
    assert_eq!(scopes, ["pod", "container"]);
    assert_eq!(data["incident"]["victims"][0]["comm"], ODD_COMM);
}

#[test]
fn what_was_taken_away_can_be_checked_to_the_last_byte() {
    let dir = tempfile::tempdir().expect("a folder");
    let whole = ask(&view(dir.path()), &[("incident", "latest")]).expect("exported").bytes;
    let path = dir.path().join("taken.parquet");
    let check = |bytes: &[u8]| {
        std::fs::write(&path, bytes).expect("written");
        Footer::read(&path).and_then(|footer| footer.check_body(&path))
    };
    check(&whole).expect("as it was made");
    // the last eight bytes are the length of the footer and PAR1
    for at in (4..whole.len()).step_by(997).chain([whole.len() - 9, whole.len() - 200]) {
        let mut bytes = whole.clone();
        bytes[at] ^= 4;
        assert!(check(&bytes).is_err(), "byte {at} of {}", whole.len());
    }
}

#[test]
fn where_rows_are_does_not_change_the_bytes() {
    let (one, two) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let settled = {
        let mut v = view(one.path());
        let rest = v.loose.pop().expect("rows in memory");
        let boot = segment::boot_of(BOOT_ID);
        let s =
            segment::write(&Disk, one.path(), Table::Samples, &[rest.batch], &boot, 99, &rows::metadata());
        v.segments.push(s.expect("written"));
        v
    };
    let a = ask(&settled, &[("incident", "latest")]).expect("exported").bytes;
    let b = ask(&view(two.path()), &[("incident", "latest")]).expect("exported").bytes;
    assert!(a == b, "rows in memory and rows in a file give the same Parquet");
}

#[test]
fn a_range_is_narrowed_by_namespace_containers_labels_and_metrics() {
    let dir = tempfile::tempdir().expect("a folder");
    let view = view(dir.path());
    let cgroups = |query: &[(&str, &str)]| -> Vec<i64> {
        let mut ids: Vec<i64> =
            keys(&read(ask(&view, query).expect("exported").bytes).0).into_iter().map(|k| k.0).collect();
        ids.dedup();
        ids
    };
    assert_eq!(cgroups(&[("range", "5m")]), [SLICE, POD, KILLED, QUIET]);
    assert_eq!(cgroups(&[("range", "5m"), ("namespace", "shop")]), [POD, KILLED, QUIET]);
    assert_eq!(cgroups(&[("range", "5m"), ("containers", "sidecar")]), [QUIET]);
    let short = &rows::container_id(KILLED)[..64];
    assert_eq!(cgroups(&[("range", "5m"), ("containers", short)]), [KILLED]);
    assert_eq!(cgroups(&[("range", "5m"), ("containers", "/kubepods.slice/*-pod7a.slice")]), [POD]);
    assert_eq!(cgroups(&[("range", "5m"), ("labels", "app=cart")]), [POD, KILLED, QUIET]);
    let e = ask(&view, &[("range", "5m"), ("namespace", "nowhere")]).expect_err("nothing");
    assert_eq!(e.status, 404);
    assert!(e.detail.contains("closed segments reach from"), "{}", e.detail);

    let (batches, _) = read(ask(&view, &[("range", "5m"), ("metrics", "pids_*")]).expect("exported").bytes);
    let schema = batches[0].schema();
    assert!(schema.column_with_name("pids_current").is_some() && schema.column_with_name("ts").is_some());
    assert!(schema.column_with_name("memory_current").is_none());
}

#[test]
fn csv_and_json_hold_the_same_rows() {
    let dir = tempfile::tempdir().expect("a folder");
    let view = view(dir.path());
    let query = [("range", "5m"), ("containers", "sidecar"), ("metrics", "memory_current")];
    let with = |format| ask(&view, &[&query[..], &[("format", format)]].concat()).expect("exported").bytes;
    let csv = String::from_utf8(with("csv")).expect("text");
    let mut lines = csv.lines();
    assert!(lines.next().is_some_and(|h| h.starts_with("ts,ktime_ns,") && h.ends_with(",memory_current")));
    assert_eq!(lines.count(), 131);
    let json: Value = serde_json::from_slice(&with("json")).expect("JSON");
    let json = json.as_array().expect("a list");
    assert_eq!(json.len(), 131);
    assert_eq!(json[0]["memory_current"], 8 << 20);
    assert_eq!(json[0]["container"], "sidecar");
}

#[test]
fn over_a_limit_is_413_with_what_was_asked_and_how_to_narrow() {
    let dir = tempfile::tempdir().expect("a folder");
    let view = view(dir.path());
    for (limits, name) in [
        (Limits { max_rows: 100, ..LIMITS }, "export.max_rows"),
        (Limits { max_containers: 1, ..LIMITS }, "export.max_containers"),
    ] {
        let pairs = [("range".to_owned(), "5m".to_owned())];
        let selection = Selection::parse(&pairs, KILL_US + 20_000_000).expect("good");
        let e = export::export(Evidence { limits, ..evidence(&view) }, &selection).expect_err("too large");
        assert_eq!(e.status, 413);
        let json = e.to_json();
        assert_eq!(json["limit"]["name"], name);
        assert!(json["asked"].as_u64() > json["limit"]["value"].as_u64(), "{json}");
        assert!(json["narrow"].as_str().is_some_and(|n| n.contains("shorter range")));
    }
}

#[test]
fn an_unknown_incident_is_404_and_names_the_newest() {
    let dir = tempfile::tempdir().expect("a folder");
    let e = ask(&view(dir.path()), &[("incident", "nope")]).expect_err("unknown");
    assert_eq!(e.status, 404);
    assert!(e.detail.contains(&rows::incident_id()), "{}", e.detail);
    let e = ask(&View::default(), &[("incident", "latest")]).expect_err("none");
    assert!(e.detail.contains("no incident has been recorded"), "{}", e.detail);
}

#[test]
fn a_segment_that_rots_is_left_out_and_accounted_for() {
    let dir = tempfile::tempdir().expect("a folder");
    let view = view(dir.path());
    let first = &view.segments[0];
    let mut bytes = std::fs::read(&first.path).expect("there");
    for b in bytes.iter_mut().skip(4).take(20_000) {
        *b = 0x5a;
    }
    std::fs::write(&first.path, &bytes).expect("spoilt");
    let got = ask(&view, &[("range", "5m")]).expect("exported");
    let (batches, pairs) = read(got.bytes);
    let total: usize = batches.iter().map(RecordBatch::num_rows).sum();
    assert_eq!(total as u64, rows::samples().len() as u64 - first.rows);
    let lost: Value = serde_json::from_str(&pairs["fgm.lost"]).expect("JSON");
    assert_eq!(lost[0]["rows"], first.rows);
    assert!(lost[0]["reason"].as_str().is_some_and(|r| r.contains("unreadable segment")), "{lost}");
}

#[test]
fn every_table_comes_back_as_it_was_written() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = Store::open(dir.path()).expect("opens");
    let writer = Writer::start(store.clone(), BOOT_ID).expect("starts");
    writer.seal(1, rows::all(), rows::metadata(), None);
    writer.shutdown(Duration::from_secs(20)).expect("in time");
    for (table, batch) in rows::all() {
        let all = query::Filter::range(0, i64::MAX);
        let schema = fgm::schema::of(table);
        let (got, _) = query::rows(&store.view(), table, &all, None, 1 << 20).expect("rows");
        let got = segment::sorted(table, &got, &schema).expect("one batch");
        let written = segment::sorted(table, &[batch], &schema).expect("one batch");
        assert!(written.num_rows() > 0);
        assert!(got == written, "{} comes back otherwise", table.as_str());
    }
}

#[test]
fn a_folder_for_other_engines() {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("interop");
    let _ = std::fs::remove_dir_all(&dir);
    let data = dir.join("data");
    let store = Store::open(&data).expect("opens");
    let writer = Writer::start(store.clone(), BOOT_ID).expect("starts");
    writer.seal(1, rows::all(), rows::metadata(), None);
    writer.shutdown(Duration::from_secs(20)).expect("in time");
    let got = ask(&store.view(), &[("incident", "latest")]).expect("exported");
    std::fs::write(dir.join("incident.parquet"), got.bytes).expect("written");
    let html = ask(&store.view(), &[("incident", "latest"), ("format", "html")]).expect("exported");
    std::fs::write(dir.join("incident.html"), html.bytes).expect("written");
}

#[test]
fn redacted_nothing_that_a_person_named_is_in_any_format() {
    let dir = tempfile::tempdir().expect("a folder");
    let view = view(dir.path());
    let secrets = [
        rows::NODE.to_owned(),
        "cart-0".to_owned(),
        "\"cart\"".to_owned(),
        "shop".to_owned(),
        rows::container_id(KILLED),
        "7a000000".to_owned(),
        "pod7a".to_owned(),
        ODD_COMM.to_owned(),
    ];
    for format in ["parquet", "html", "csv", "json"] {
        let plain = ask(&view, &[("incident", "latest"), ("format", format)]).expect("exported");
        let got =
            ask(&view, &[("incident", "latest"), ("format", format), ("redact", "true")]).expect("exported");
        let text = |exported: export::Exported| match exported.format {
            Format::Parquet => plain_text(exported.bytes),
            Format::Html => {
                let html = String::from_utf8(exported.bytes).expect("text");
                let parquet = between(&html, "id=\"fgm-parquet\">", "</script>").trim().to_owned();
                let parquet = base64::engine::general_purpose::STANDARD.decode(parquet).expect("base64");
                let data = between(&html, "id=\"fgm-data\">", "</script>").to_owned();
                let data: Value = serde_json::from_str(&data).expect("JSON");
                format!("{data} {}", plain_text(parquet))
            }
            _ => String::from_utf8(exported.bytes).expect("text"),
        };
        assert!(!got.file_name.contains(rows::NODE), "{}", got.file_name);
        let (plain, got) = (text(plain), text(got));
        assert!(plain.contains(rows::NODE), "{format}: the plain one has names");
        for secret in &secrets {
            assert!(!got.contains(secret.as_str()), "{format} still has {secret}");
        }
        assert!(got.contains("pod-1") && got.contains("process-1") == (format != "csv" && format != "json"));
        assert!(got.contains("/kubepods.slice/"), "what every node has stays");
    }
    assert_eq!(ask(&view, &[("incident", "latest"), ("redact", "yes")]).expect_err("refused").status, 400);
}

/// Everything that is written in a Parquet file of ours, decoded.
fn plain_text(bytes: Vec<u8>) -> String {
    let (batches, pairs) = read(bytes);
    let mut text = format!("{pairs:?}");
    for batch in &batches {
        for name in batch.schema().fields().iter().map(|f| f.name().clone()) {
            for row in 0..batch.num_rows() {
                if let Some(cell) = query::text(batch, &name, row) {
                    text.push(' ');
                    text.push_str(cell);
                }
            }
        }
    }
    // as JSON in a pair has it
    text.replace("\\\"", "\"")
}

const LONG_ROWS: i64 = 40_000;

/// A container at 25 Hz whose values nothing can compress, with one reading that stands out high, one low, and one leap of CPU.
fn long_view(dir: &Path) -> View {
    let mut view = View::default();
    let columns: Vec<&str> = fgm::catalogue::columns()
        .map(|(_, _, c)| c.name)
        .filter(|n| n.starts_with("memory_stat_"))
        .take(22)
        .collect();
    let mut dice = 0x9E37_79B9_7F4A_7C15u64;
    let mut roll = || {
        dice ^= dice << 13;
        dice ^= dice >> 7;
        dice ^= dice << 17;
        i64::try_from(dice >> 8).expect("56 bits")
    };
    for part in 0..4i64 {
        let list: Vec<_> = (part * LONG_ROWS / 4..(part + 1) * LONG_ROWS / 4)
            .map(|n| {
                let mut row = rows::base(KILLED, KILL_US + n * 40_000);
                let memory = match n {
                    4_444 => 7_000_000_000,
                    15_555 => 1,
                    _ => 1_000_000 + roll() % 1_000_000_000,
                };
                row.insert("memory_current", rows::int(memory));
                row.extend(columns.iter().map(|name| (*name, rows::int(roll()))));
                let leap = if n > 20_000 { 9_000_000 } else { 0 };
                row.insert("cpu_stat_usage_usec", rows::int(n * 9_000 + n * n % 7001 + leap));
                row
            })
            .collect();
        let boot = segment::boot_of(BOOT_ID);
        let seq = u64::try_from(part + 1).expect("small");
        let batch = rows::batch(Table::Samples, &list);
        let s = segment::write(&Disk, dir, Table::Samples, &[batch], &boot, seq, &rows::metadata())
            .expect("written");
        view.segments.push(s);
    }
    view
}

/// What a report of the whole of [`long_view`] says of itself, what it embeds, and the export of the same selection.
fn long_report(metrics: Option<&str>) -> (Value, Vec<u8>, Vec<u8>) {
    let dir = tempfile::tempdir().expect("a folder");
    let view = long_view(dir.path());
    let (from, to) = (KILL_US / 1_000_000 - 1, KILL_US / 1_000_000 + 1601);
    let (from, to) = (from.to_string(), to.to_string());
    let ask = |format: &str| {
        let pairs: Vec<(&str, &str)> = [("from", from.as_str()), ("to", to.as_str()), ("format", format)]
            .into_iter()
            .chain(metrics.map(|names| ("metrics", names)))
            .collect();
        self::ask(&view, &pairs).expect("exported").bytes
    };
    let (whole, html) = (ask("parquet"), ask("html"));
    assert!(whole.len() > export::MAX_REPORT_BYTES, "the whole has {} bytes", whole.len());
    assert!(html.len() <= export::MAX_REPORT_BYTES && html.len() > 1_000_000, "{} bytes", html.len());
    let html = String::from_utf8(html).expect("text");
    let data: Value = serde_json::from_str(between(&html, "id=\"fgm-data\">", "</script>")).expect("JSON");
    let embedded = between(&html, "id=\"fgm-parquet\">", "</script>").trim();
    let embedded = base64::engine::general_purpose::STANDARD.decode(embedded).expect("base64");
    (data["provenance"].clone(), embedded, whole)
}

fn has_the_peaks(told: &Value, embedded: Vec<u8>) {
    assert_eq!(told["parquet_sha256"], export::sha256(&embedded), "the hash of what is embedded");
    assert_eq!(told["thinned"]["rows_of"], LONG_ROWS);
    let (batches, _) = read(embedded);
    let of = |name: &'static str| -> Vec<i64> {
        batches.iter().flat_map(|b| (0..b.num_rows()).filter_map(move |i| query::int(b, name, i))).collect()
    };
    let memory = of("memory_current");
    assert_eq!(told["rows"], memory.len());
    assert!(memory.contains(&7_000_000_000) && memory.contains(&1), "the peaks are there");
    assert!(of("ts").is_sorted(), "in order");
    let leap = |w: &[i64]| w[1] - w[0] > 8_900_000 && w[1] - w[0] < 9_100_000;
    assert!(of("cpu_stat_usage_usec").windows(2).any(leap), "the fastest rise, by its two readings");
}

#[test]
fn a_report_that_would_be_too_large_is_thinned_keeps_the_peaks_and_says_so() {
    let (told, embedded, whole) = long_report(Some("memory_current,memory_stat_*,cpu_stat_usage_usec"));
    assert_eq!(told["thinned"]["full_sha256"], export::sha256(&whole), "and that of the whole export");
    assert_eq!(told["thinned"]["full_bytes"], whole.len());
    has_the_peaks(&told, embedded);
}

#[test]
fn of_what_is_far_too_large_the_whole_is_not_encoded_for_its_hash() {
    let (told, embedded, _) = long_report(None);
    assert!(told["thinned"]["full_sha256"].is_null() && told["thinned"]["full_bytes"].is_null(), "{told}");
    let (batches, _) = read(embedded.clone());
    let columns = batches[0].num_columns();
    assert!(columns > 150, "all columns are there, not {columns}");
    has_the_peaks(&told, embedded);
}

#[test]
fn an_export_ends_when_nobody_waits_for_it() {
    let dir = tempfile::tempdir().expect("a folder");
    let view = long_view(dir.path());
    let pairs =
        [("from", "1"), ("to", "9999999999"), ("format", "csv")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    let selection = Selection::parse(&pairs, KILL_US).expect("good");
    let asked = std::cell::Cell::new(0);
    let gone = || {
        asked.set(asked.get() + 1);
        Err(Problem::unavailable("the client has gone"))
    };
    let e = export::export_while(evidence(&view), &selection, &gone).expect_err("ended");
    assert_eq!((e.status, asked.get()), (503, 1), "at the first chunk");
}
