//! Which key a place in `agent.toml` belongs to, on which line a key stands, and the words for what was expected there.
//!
//! Pure functions over the text. They only make refusals clearer: a text that cannot be parsed gives `None`, never an
//! error of its own. Called by `config`.

use std::ops::Range;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Each key of the text as `table.key`, with the bytes of its name and of its value.
fn keys(text: &str) -> Vec<(String, Range<usize>, Range<usize>)> {
    let Ok(document) = DeTable::parse(text) else { return Vec::new() };
    let mut out = Vec::new();
    collect("", document.get_ref(), &mut out);
    out
}

fn collect(prefix: &str, table: &DeTable<'_>, out: &mut Vec<(String, Range<usize>, Range<usize>)>) {
    for (name, value) in table {
        let key = format!("{prefix}{}", name.get_ref());
        if let DeValue::Table(inner) = value.get_ref() {
            collect(&format!("{key}."), inner, out);
        }
        out.push((key, Spanned::span(name), value.span()));
    }
}

/// The key whose name or value is at this byte; the innermost, where a table holds it.
pub fn key_at(text: &str, at: usize) -> Option<String> {
    let holds = |r: &Range<usize>| r.contains(&at) || r.start == at;
    keys(text).into_iter().find(|(_, name, value)| holds(name) || holds(value)).map(|(key, ..)| key)
}

/// Line of a key, from 1.
pub fn line_of(text: &str, key: &str) -> Option<usize> {
    let (_, name, _) = keys(text).into_iter().find(|(k, ..)| k == key)?;
    Some(text.get(..name.start)?.matches('\n').count() + 1)
}

/// The first place at which the text is no TOML. The parser's own report names the last, which is rarely the cause.
pub fn syntax_error(text: &str) -> Option<String> {
    let (_, errors) = DeTable::parse_recoverable(text);
    let start = |e: &toml::de::Error| e.span().map_or(usize::MAX, |span| span.start);
    let first = errors.iter().min_by_key(|e| start(e))?;
    let before = text.get(..start(first).min(text.len()))?;
    let line = before.matches('\n').count() + 1;
    let what = text.lines().nth(line - 1).unwrap_or_default();
    Some(format!("TOML parse error at line {line}: {}\n  |\n{line} | {what}", first.message()))
}

/// The parser's words for a type, as a person says them.
pub fn plain(message: &str) -> String {
    let mut out = message.to_owned();
    for (theirs, ours) in [
        ("expected u64", "expected a whole number, not negative"),
        ("expected u32", "expected a whole number, not negative"),
        ("expected usize", "expected a whole number, not negative"),
        ("expected a sequence", "expected a list, such as [\"a\", \"b\"]"),
        ("expected socket address", "expected an address with its port, such as \"127.0.0.1:8050\""),
        ("invalid socket address syntax", "not an address with its port, such as \"127.0.0.1:8050\""),
        ("expected a boolean", "expected true or false"),
    ] {
        out = out.replace(theirs, ours);
    }
    if let Some((before, name)) = out.split_once("expected struct ") {
        out = format!("{before}expected a table: [{}]", name.to_lowercase());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "node = \"a\"\n\n[lane]\nperiod_ms = 3\n[rotation]\nevery_s = 1\n";

    #[test]
    fn a_key_is_found_by_its_place_and_its_line() {
        assert_eq!(line_of(TEXT, "lane.period_ms"), Some(4));
        assert_eq!(line_of(TEXT, "lane.history_s"), None);
        let at = TEXT.find('3').expect("there");
        assert_eq!(key_at(TEXT, at).as_deref(), Some("lane.period_ms"));
        assert_eq!(key_at(TEXT, 0).as_deref(), Some("node"));
        assert_eq!((key_at("a = [", 0), line_of("a = [", "a")), (None, None));
    }

    #[test]
    fn the_first_syntax_error_is_named_with_its_line() {
        assert_eq!(syntax_error(TEXT), None);
        let e = syntax_error("\nnode = \"a\nb\"\n").expect("an error");
        assert!(e.contains("line 2: ") && e.contains("2 | node = \"a"), "{e}");
    }

    #[test]
    fn types_are_named_in_plain_words() {
        assert_eq!(
            plain("invalid type: integer `3`, expected struct Lane"),
            "invalid type: integer `3`, expected a table: [lane]"
        );
        assert!(plain("invalid value: integer `-3`, expected u64").ends_with("a whole number, not negative"));
    }
}
