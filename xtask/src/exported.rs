//! The incident in a file that `fgm export` wrote, as whoever gets that file alone has it. Must never need the agent's code: these
//! are other readers' ways to it. Pure; called by `kubernetes` and by the judge of the evidence benchmark.

use serde_json::Value;

/// That of a Parquet file: a key-value of its footer, whose text stands there as it is.
pub fn of_parquet(file: &[u8]) -> Option<Value> {
    let key = b"fgm.incident";
    let at = file.windows(key.len()).rposition(|bytes| bytes == key)? + key.len();
    // Between the two are the type and the length of the value.
    let begin = file[at..].iter().take(16).position(|byte| *byte == b'{')?;
    serde_json::Deserializer::from_slice(&file[at + begin..]).into_iter().next()?.ok()
}

/// That of a report, by what its page reads.
pub fn of_report(html: &str) -> Option<Value> {
    of_page(html, "incident").filter(Value::is_object)
}

/// A member of the data that a report's page reads.
pub fn of_page(html: &str, member: &str) -> Option<Value> {
    let (_, rest) = html.split_once("id=\"fgm-data\">")?;
    let mut data: Value = serde_json::from_str(rest.split_once("</script>")?.0).ok()?;
    data.get_mut(member).map(Value::take)
}

#[cfg(test)]
mod tests {
    use super::{of_parquet, of_report};
    use serde_json::{Value, json};

    #[test]
    fn an_incident_is_read_out_of_both_kinds_of_file() {
        let incident = json!({"id": "i", "victims": [{"comm": "{}\"app\""}], "labels": {"app": "cart"}});
        let mut file = b"PAR1 pages \x18\x0cfgm.incident\x18\x85\x1c".to_vec();
        file.extend(incident.to_string().as_bytes());
        file.extend(b"\0\x18\x0afgm.events\x18\x02[] PAR1");
        assert_eq!(of_parquet(&file), Some(incident.clone()));
        assert_eq!(of_parquet(b"PAR1 fgm.incident\x18\x04null PAR1"), None);
        assert_eq!(of_parquet(b"PAR1 nothing"), None);
        let page = |data: &Value| {
            format!("<script type=\"application/json\" id=\"fgm-data\">{data}</script><script>1</script>")
        };
        assert_eq!(of_report(&page(&json!({"incident": incident, "format": 1}))), Some(incident));
        assert_eq!(of_report(&page(&json!({"incident": null}))), None);
        assert_eq!(of_report("<html>"), None);
    }
}
