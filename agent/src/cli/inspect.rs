//! `fgm inspect`: what is in a file of ours or in a data folder, and whether it is well: readable, its checksum right, its
//! rows in order, its ledger and its rows of one mind. Changes nothing; a folder may be that of a running agent.

use super::{Failure, output};
use crate::catalogue;
use crate::journal::{self, Contents};
use crate::ledger::{self, Accounts};
use crate::names::Table;
use crate::query::{self, Filter};
use crate::retention::Reason;
use crate::schema;
use crate::segment::{self, Footer, Segment};
use crate::ship;
use crate::store::Store;
use anyhow::Context as _;
use arrow::array::RecordBatch;
use serde_json::{Map, Value, json};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// Prints what is there. A failure when something is not well.
pub fn inspect(path: &Path, as_json: bool) -> Result<(), Failure> {
    let meta = fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut files = if meta.is_dir() { of_folder(path)? } else { vec![path.to_owned()] };
    files.sort();
    let looked: Vec<Value> = files.iter().map(|file| one(file)).collect();
    let mut problems = 0;
    for file in &looked {
        problems += file["problems"].as_array().map_or(0, Vec::len);
    }
    let ledger = if meta.is_dir() { of_ledger(path)? } else { json!({}) };
    problems += ledger.as_object().into_iter().flatten().filter(|(_, a)| a["rows"] != a["written"]).count();
    let all =
        json!({"path": path.display().to_string(), "files": looked, "ledger": ledger, "problems": problems});
    let text = if as_json { format!("{all:#}\n") } else { text(&all) };
    output::print(&text)?;
    if problems > 0 {
        let these = if problems == 1 { "it is listed" } else { "they are listed" };
        let detail = format!("{} has {}; {these} above", path.display(), many(problems as u64));
        return Err(anyhow::anyhow!(detail).into());
    }
    Ok(())
}

fn many(problems: u64) -> String {
    if problems == 1 { "a problem".to_owned() } else { format!("{problems} problems") }
}

/// An error and what is behind it.
fn chain(error: impl Into<anyhow::Error>) -> String {
    super::chain(&error.into())
}

/// The segments and journals below a folder.
fn of_folder(dir: &Path) -> Result<Vec<PathBuf>, Failure> {
    let mut out = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
        for entry in entries {
            let path = entry.with_context(|| format!("cannot read {}", folder.display()))?.path();
            // a link to a folder may lead in a circle
            if path.is_dir() && !path.is_symlink() && path.file_name().is_none_or(|n| n != "quarantine") {
                folders.push(path);
            } else if !path.is_dir() && path.extension().is_some_and(|e| e == "parquet" || e == "journal") {
                out.push(path);
            }
        }
    }
    if out.is_empty() {
        return Err(Failure::Nothing(format!("no .parquet and no .journal below {}", dir.display())));
    }
    Ok(out)
}

fn one(path: &Path) -> Value {
    let mut out =
        if path.extension().is_some_and(|e| e == "journal") { of_journal(path) } else { of_segment(path) };
    out["path"] = json!(path.display().to_string());
    out
}

fn of_journal(path: &Path) -> Value {
    let contents = match fs::read(path) {
        Ok(bytes) => journal::read(&bytes),
        Err(error) => return json!({"kind": "journal", "problems": [format!("cannot be read: {error}")]}),
    };
    let mut problems = Vec::new();
    for (table, rows) in contents.missing() {
        problems.push(format!("{rows} rows of {} are missing", table.as_str()));
    }
    let Contents { damaged, torn, frames, .. } = &contents;
    if contents.is_newer() {
        problems.push(schema::newer(contents.schema));
    }
    if *damaged > 0 {
        problems.push(format!("{damaged} bytes are damaged"));
    }
    let mut rows = Map::new();
    for table in Table::ALL {
        let n: usize = contents.of(table).iter().map(RecordBatch::num_rows).sum();
        rows.insert(table.as_str().to_owned(), json!(n));
    }
    let last = contents.last.as_ref();
    json!({
        "kind": "journal",
        "frames": frames,
        "rows": rows,
        "to_us": last.map(|l| l.at.wall_us),
        // the last write may be under way, or was cut by a crash
        "torn_bytes": torn,
        "damaged_bytes": damaged,
        "ledger": last.map(|l| l.accounts.to_json()),
        "problems": problems,
    })
}

fn of_segment(path: &Path) -> Value {
    let footer = match Footer::read(path) {
        Ok(footer) => footer,
        Err(error) => {
            let bytes = fs::metadata(path).ok().map(|m| m.len());
            return json!({"kind": "parquet", "bytes": bytes, "problems": [chain(error)]});
        }
    };
    let mut problems = Vec::new();
    let crc = footer.check_body(path).map_err(|e| problems.push(chain(e))).is_ok();
    let order = footer.is_in_order(path).unwrap_or_else(|e| {
        problems.push(e);
        false
    });
    if !order {
        problems.push("its rows are not in the order of (cgroup_id, ts)".to_owned());
    }
    let number = |key| footer.value(key).and_then(|v| v.parse::<i64>().ok());
    let version = footer.schema_version();
    if version > schema::VERSION {
        problems.push(schema::newer(version));
    }
    // exported files are no table's
    let table = footer.value("fgm.table").map(str::to_owned);
    let account = footer.value("fgm.ledger").and_then(|t| serde_json::from_str::<Value>(t).ok());
    let of_table = table.as_deref().and_then(|t| account.as_ref()?.get(t).cloned());
    json!({
        "kind": "parquet",
        "table": table,
        "rows": footer.rows(),
        "from_us": number("fgm.from_us"),
        "to_us": number("fgm.to_us"),
        "bytes": fs::metadata(path).ok().map(|m| m.len()),
        "schema_version": version,
        "columns": footer.columns(),
        // those of the catalogue alone
        "values": footer.values(|name| catalogue::column(name).is_some()),
        "journal": footer.value(segment::JOURNAL),
        "hour_us": number(segment::HOUR),
        "inputs": footer.value(segment::INPUTS).and_then(|t| serde_json::from_str::<Value>(t).ok()),
        "incident": footer.value("fgm.incident").map(|_| true),
        "crc_is_right": crc,
        "is_in_order": order,
        "ledger": of_table,
        "problems": problems,
    })
}

/// The sums of the table `ledger`, and the rows that are there.
fn of_ledger(dir: &Path) -> Result<Value, Failure> {
    // a folder of exported files has no ledger
    let Ok(store) = Store::open_read_only(dir) else { return Ok(json!({})) };
    let view = store.view();
    let all = Filter::range(i64::MIN, i64::MAX);
    let mut sum = Accounts::default();
    let (batches, _) = query::rows(&view, Table::Ledger, &all, None, u64::MAX).context("the table ledger")?;
    for rows in &batches {
        sum.add(&Accounts::of_rows(rows));
    }
    // of what retention removed the account goes on
    let removed = store.removed();
    sum.add(&removed.ledger());
    // what went before it was shipped the ledger says itself, once the agent has come to it
    let told = ship::told_of(&sum);
    for (name, rows) in &removed.unshipped {
        let Some(table) = ledger::named(name) else { continue };
        sum.lost_later(
            table,
            Reason::ShipBacklog.as_str(),
            rows.saturating_sub(told.get(&table).copied().unwrap_or(0)),
        );
    }
    for (name, rows) in &removed.rows {
        if let Some(table) = ledger::named(name).filter(|t| *t != Table::Ledger) {
            sum.lost_later(table, "retention", *rows);
        }
    }
    let mut out = sum.to_json();
    for (name, account) in out.as_object_mut().into_iter().flatten() {
        let Some(table) = ledger::named(name) else { continue };
        let closed = view.segments.iter().filter(|s| s.table == table).map(Segment::rows_left);
        let left = view.journaled.iter().filter(|l| l.table == table).map(|l| l.batch.num_rows() as u64);
        account["rows"] = json!(closed.chain(left).sum::<u64>());
    }
    Ok(out)
}

fn text(all: &Value) -> String {
    let time = |v: &Value| {
        let at = v.as_i64().and_then(|us| jiff::Timestamp::from_microsecond(us).ok());
        at.map_or_else(|| "-".to_owned(), |at| format!("{at:.0}"))
    };
    let mut out = String::new();
    for f in all["files"].as_array().into_iter().flatten() {
        let what = match f["kind"].as_str() {
            // what could not be opened has a length at the most
            _ if f["rows"].is_null() => {
                let bytes = f["bytes"].as_u64().map(|n| format!(", {n} bytes")).unwrap_or_default();
                format!("unreadable{bytes}")
            }
            Some("journal") => {
                let rows: u64 =
                    f["rows"].as_object().into_iter().flatten().filter_map(|(_, n)| n.as_u64()).sum();
                format!("journal  {rows} rows in {} frames up to {}", f["frames"], time(&f["to_us"]))
            }
            _ => {
                let range = f["from_us"].as_i64().zip(f["to_us"].as_i64());
                let range = range.map_or_else(String::new, |_| {
                    format!("  {} to {}", time(&f["from_us"]), time(&f["to_us"]))
                });
                let table = f["table"].as_str().unwrap_or("exported");
                format!(
                    "{table}  {} rows of {} columns{range}  {} bytes",
                    f["rows"], f["columns"], f["bytes"]
                )
            }
        };
        let _ = writeln!(out, "{}\n    {what}", output::printable(f["path"].as_str().unwrap_or_default()));
        for problem in f["problems"].as_array().into_iter().flatten() {
            let _ = writeln!(out, "    PROBLEM: {}", output::printable(problem.as_str().unwrap_or_default()));
        }
    }
    for (table, a) in all["ledger"].as_object().into_iter().flatten() {
        let rows = if a["rows"] == a["written"] {
            String::new()
        } else {
            format!("  PROBLEM: {} rows are there", a["rows"])
        };
        let _ = writeln!(out, "{}{rows}", account(table, a));
    }
    let verdict = if all["problems"] == 0 {
        "all is well".to_owned()
    } else {
        many(all["problems"].as_u64().unwrap_or(0))
    };
    let _ = writeln!(out, "{verdict}");
    out
}

/// One table's account on a line.
pub fn account(table: &str, a: &Value) -> String {
    let lost: Vec<String> =
        a["lost"].as_object().into_iter().flatten().map(|(reason, n)| format!("{reason} {n}")).collect();
    let lost = if lost.is_empty() { "nothing lost".to_owned() } else { format!("lost: {}", lost.join(", ")) };
    format!("ledger of {table}: due {}, written {}, {lost}", a["due"], a["written"])
}
