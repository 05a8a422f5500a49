//! The report: the one-file front end with the data put into its two places.
//!
//! The template is built from `static/src` and committed; nothing of the data can leave its place (`<` is written as
//! `\u003c`, so no tag ends or begins in it). Pure: text in, bytes out. Called by `export`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

/// The page, with its style and script inside.
pub const TEMPLATE: &str = include_str!("../../static/dist/report.html");

const DATA: &str = "__FGM_DATA_JSON__";
const PARQUET: &str = "__FGM_PARQUET_BASE64__";

#[derive(Debug, thiserror::Error)]
#[error(
    "the report's template has {found} places for {place}, it must have one; rebuild static/dist/report.html"
)]
pub struct TemplateError {
    place: &'static str,
    found: usize,
}

/// JSON that may stand inside a `<script>`: no `<`, so neither `</script>` nor `<!--`.
pub fn json_for_script(data: &Value) -> String {
    data.to_string().replace('<', "\\u003c")
}

/// Puts data and Parquet into the template.
pub fn render(template: &str, data: &Value, parquet: &[u8]) -> Result<Vec<u8>, TemplateError> {
    for place in [DATA, PARQUET] {
        let found = template.matches(place).count();
        if found != 1 {
            return Err(TemplateError { place, found });
        }
    }
    // The data may hold the name of a place: the template is cut first, then filled.
    let mut cuts = [(DATA, json_for_script(data)), (PARQUET, STANDARD.encode(parquet))]
        .map(|(place, text)| (template.find(place).unwrap_or(0), place.len(), text));
    cuts.sort_by_key(|(at, _, _)| *at);
    let mut out = Vec::with_capacity(template.len() + cuts.iter().map(|(_, _, t)| t.len()).sum::<usize>());
    let mut done = 0;
    for (at, length, text) in cuts {
        out.extend_from_slice(&template.as_bytes()[done..at]);
        out.extend_from_slice(text.as_bytes());
        done = at + length;
    }
    out.extend_from_slice(&template.as_bytes()[done..]);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_real_template_takes_both_parts() {
        let out = render(TEMPLATE, &json!({"a": 1}), b"PAR1").expect("two places");
        let out = String::from_utf8(out).expect("text");
        assert!(out.contains(r#"{"a":1}"#) && out.contains("UEFSMQ=="));
        assert!(!out.contains(DATA) && !out.contains(PARQUET));
        assert!(out.contains("default-src 'none'"), "the page forbids any network");
    }

    #[test]
    fn data_cannot_leave_its_place() {
        let hostile = json!({"comm": "</script><script>alert(1)//\u{0}", "b": PARQUET});
        let template = format!("<i>{PARQUET}</i><b>{DATA}</b>");
        let out = String::from_utf8(render(&template, &hostile, b"x").expect("rendered")).expect("text");
        let data = out.split("<b>").nth(1).and_then(|r| r.strip_suffix("</b>")).expect("in its place");
        assert!(!data.contains('<'), "{data}");
        assert_eq!(serde_json::from_str::<Value>(data).expect("still JSON"), hostile);
        assert!(out.starts_with("<i>eA==</i>"));
    }

    #[test]
    fn a_template_without_its_places_is_refused() {
        let e = render("<b></b>", &json!({}), b"").expect_err("refused").to_string();
        assert!(e.contains("0 places for __FGM_DATA_JSON__"), "{e}");
        let twice = format!("{DATA}{PARQUET}{DATA}");
        assert!(render(&twice, &json!({}), b"").is_err());
    }
}
