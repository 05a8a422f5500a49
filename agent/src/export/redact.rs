//! Names taken out of what is given away: of node, cluster, pod, container, namespace, process and path, and all labels.
//!
//! Each name has a stand-in that is the same wherever it stands (`pod-1`), so that the story can still be told; in plain
//! sentences names are found as whole words. What the kernel calls its own (kinds, scopes, reasons) stays. It must never
//! let a name through because it stands in a place that nobody thought of: every text of the document is gone through, but
//! for the members of [`KEPT`]. Called by `export`.

use arrow::array::{Array, ArrayRef, AsArray, DictionaryArray, RecordBatch, StringArray};
use arrow::datatypes::Int32Type;
use serde_json::{Value, json};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Members and columns that hold a name, and what its stand-in begins with.
const NAMES: [(&str, &str); 11] = [
    ("cluster", "cluster"),
    ("node", "node"),
    ("namespace", "namespace"),
    ("pod", "pod"),
    ("container", "container"),
    ("container_id", "container-id"),
    ("next_container_id", "container-id"),
    ("pod_uid", "pod-uid"),
    ("comm", "process"),
    ("image", "image"),
    ("owner", "owner"),
];
/// Words of the kernel's and of ours. Every other text is gone through.
const KEPT: [&str; 17] = [
    "kind",
    "severity",
    "source",
    "scope",
    "qos",
    "cause",
    "reason",
    "table",
    "state",
    "mechanism",
    "hook",
    "ladder",
    "kernel",
    "agent_version",
    "boot_id",
    "cgroup_root",
    "full_sha256",
];
/// What is left out: it has names for which there is no stand-in, of labels, and of who gave no answer and by which way.
const LEFT_OUT: [&str; 2] = ["labels", "why"];
/// Parts of a path that every node has.
const COMMON: [&str; 14] = [
    "",
    "kubepods",
    "kubepods.slice",
    "kubepods-burstable.slice",
    "kubepods-besteffort.slice",
    "burstable",
    "besteffort",
    "system.slice",
    "user.slice",
    "machine.slice",
    "init.scope",
    "docker",
    "container",
    "crio",
];
/// As people and our summaries shorten a container's id.
const SHORT_ID: usize = 12;

#[derive(Default)]
pub struct Redaction {
    known: RefCell<BTreeMap<String, String>>,
    counts: RefCell<BTreeMap<&'static str, usize>>,
}

impl Redaction {
    fn name(&self, kind: &'static str, name: &str) -> String {
        if let Some(known) = self.known.borrow().get(name) {
            return known.clone();
        }
        let n = {
            let mut counts = self.counts.borrow_mut();
            let n = counts.entry(kind).or_default();
            *n += 1;
            *n
        };
        let stand_in = format!("{kind}-{n}");
        let mut known = self.known.borrow_mut();
        known.insert(name.to_owned(), stand_in.clone());
        if kind == "container-id"
            && let Some(short) = name.get(..SHORT_ID)
        {
            known.entry(short.to_owned()).or_insert_with(|| stand_in.clone());
        }
        stand_in
    }

    fn path(&self, path: &str) -> String {
        let part = |p: &str| if COMMON.contains(&p) { p.to_owned() } else { self.name("cgroup", p) };
        path.split('/').map(part).collect::<Vec<_>>().join("/")
    }

    /// A sentence, or an id with a name in it: whole words only, the longest first.
    pub fn text(&self, text: &str) -> String {
        let known = self.known.borrow();
        let mut names: Vec<(&String, &String)> = known.iter().filter(|(name, _)| !name.is_empty()).collect();
        names.sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let (mut out, mut rest, mut before) = (String::with_capacity(text.len()), text, None);
        while let Some(first) = rest.chars().next() {
            let fits = |name: &str| {
                let starts_word = name.chars().next().is_some_and(is_word);
                let ends_word = name.chars().next_back().is_some_and(is_word);
                rest.strip_prefix(name).is_some_and(|after| {
                    let goes_on = ends_word && after.chars().next().is_some_and(is_word);
                    let began_before = starts_word && before.is_some_and(is_word);
                    !goes_on && !began_before
                })
            };
            let found = names.iter().find(|(name, _)| fits(name));
            let taken = found.map_or(first.len_utf8(), |(name, _)| name.len());
            out.push_str(found.map_or(&rest[..taken], |(_, stand_in)| stand_in));
            before = rest[..taken].chars().next_back();
            rest = &rest[taken..];
        }
        out
    }

    /// Learns the names of a document before any sentence of it is gone through.
    pub fn learn(&self, value: &Value) {
        match value {
            Value::Object(members) => {
                for (member, value) in members {
                    match (value.as_str(), kind_of(member)) {
                        (Some(name), Some(kind)) => drop(self.name(kind, name)),
                        (Some(path), None) if is_path(member) => drop(self.path(path)),
                        _ => self.learn(value),
                    }
                }
            }
            Value::Array(items) => items.iter().for_each(|item| self.learn(item)),
            _ => {}
        }
    }

    /// Takes the names out of a document.
    pub fn document(&self, value: &mut Value) {
        match value {
            Value::Object(members) => {
                for (member, value) in members {
                    if LEFT_OUT.contains(&member.as_str()) && !value.is_null() {
                        *value = Value::Null;
                    } else if let Some(text) = value.as_str() {
                        *value = match kind_of(member) {
                            _ if KEPT.contains(&member.as_str()) => continue,
                            Some(kind) => json!(self.name(kind, text)),
                            None if is_path(member) => json!(self.path(text)),
                            None => json!(self.text(text)),
                        };
                    } else {
                        self.document(value);
                    }
                }
            }
            Value::Array(items) => items.iter_mut().for_each(|item| self.document(item)),
            Value::String(text) => *text = self.text(text),
            _ => {}
        }
    }

    /// Takes them out of rows.
    pub fn rows(&self, rows: &RecordBatch) -> Result<RecordBatch, String> {
        let schema = rows.schema();
        let column =
            |(field, column): (&Arc<arrow::datatypes::Field>, &ArrayRef)| -> Result<ArrayRef, String> {
                let name = field.name().as_str();
                let Some(texts) = column.as_dictionary_opt::<Int32Type>().filter(|_| !KEPT.contains(&name))
                else {
                    return Ok(column.clone());
                };
                let values = texts
                    .values()
                    .as_string_opt::<i32>()
                    .ok_or("a dictionary of something else than text")?;
                let redacted: StringArray = (0..values.len())
                    .map(|i| {
                        values.is_valid(i).then(|| match kind_of(name) {
                            Some(kind) => self.name(kind, values.value(i)),
                            None if is_path(name) => self.path(values.value(i)),
                            None => self.text(values.value(i)),
                        })
                    })
                    .collect();
                let array = DictionaryArray::<Int32Type>::try_new(texts.keys().clone(), Arc::new(redacted));
                Ok(Arc::new(array.map_err(|e| e.to_string())?))
            };
        let columns: Result<Vec<ArrayRef>, String> =
            schema.fields().iter().zip(rows.columns()).map(column).collect();
        RecordBatch::try_new(schema.clone(), columns?).map_err(|e| e.to_string())
    }
}

fn kind_of(member: &str) -> Option<&'static str> {
    NAMES.iter().find(|(name, _)| *name == member).map(|(_, kind)| *kind)
}

fn is_path(member: &str) -> bool {
    member.ends_with("cgroup_path")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_one_stand_in_everywhere_and_words_of_ours_stay() {
        let r = Redaction::default();
        let mut doc = json!({
            "kind": "oom_kill", "scope": "container", "container": "container", "pod": "cart-0", "labels": {"app": "cart"},
            "cgroup_path": "/kubepods.slice/kubepods-pod7.slice/x", "summary": "cart-0 (not cart-01) was killed; see node-a.",
            "victims": [{"comm": "java", "cgroup_path": "/kubepods.slice/kubepods-pod7.slice"}], "node": "node-a",
            "detail": {"note": "java asked", "anon_bytes": 7}, "ids": ["node-a-12"],
        });
        r.learn(&doc);
        r.document(&mut doc);
        assert_eq!((&doc["kind"], &doc["scope"]), (&json!("oom_kill"), &json!("container")));
        assert_eq!(doc["labels"], Value::Null);
        assert_eq!(
            doc["summary"],
            format!(
                "{} (not cart-01) was killed; see {}.",
                doc["pod"].as_str().unwrap_or(""),
                doc["node"].as_str().unwrap_or("")
            )
        );
        assert_eq!(doc["detail"], json!({"note": "process-1 asked", "anon_bytes": 7}));
        assert_eq!(doc["ids"], json!(["node-1-12"]));
        let [a, b] =
            [&doc["cgroup_path"], &doc["victims"][0]["cgroup_path"]].map(|p| p.as_str().unwrap_or_default());
        assert!(a.starts_with(b) && a.starts_with("/kubepods.slice/cgroup-"), "{a} is below {b}");
    }
}
