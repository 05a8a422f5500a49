//! Kubernetes label selectors: `a=b`, `a==b`, `a!=b`, `a in (b,c)`, `a notin (b,c)`, `a`, `!a`, joined by commas.
//!
//! As Kubernetes has it, `!=` and `notin` also hold for an object without the key. Pure; an unknown spelling is an error
//! that names it, never a rule that is left out. Called by `selection` and `choose`.

use super::problem::Problem;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Debug, PartialEq, Eq)]
enum Rule {
    In(String, BTreeSet<String>),
    NotIn(String, BTreeSet<String>),
    Has(String),
    Lacks(String),
}

/// All rules must hold; none = everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels(Vec<Rule>);

impl Labels {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn parse(text: &str) -> Result<Self, Problem> {
        parts(text)
            .into_iter()
            .map(str::trim)
            .filter(|p| !p.is_empty())
            .map(rule)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    pub fn hold(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|rule| match rule {
            Rule::In(key, values) => labels.get(key).is_some_and(|v| values.contains(v)),
            Rule::NotIn(key, values) => labels.get(key).is_none_or(|v| !values.contains(v)),
            Rule::Has(key) => labels.contains_key(key),
            Rule::Lacks(key) => !labels.contains_key(key),
        })
    }
}

/// Cut at the commas that are in no parentheses.
fn parts(text: &str) -> Vec<&str> {
    let (mut depth, mut start, mut out) = (0u32, 0, Vec::new());
    for (i, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                out.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    out.push(&text[start..]);
    out
}

fn rule(part: &str) -> Result<Rule, Problem> {
    let bad = || {
        let accepted = ["app=cart", "app!=cart", "app in (cart,shop)", "app notin (cart)", "app", "!app"];
        Problem::bad_query(format!("labels: {part:?} is no rule of a label selector"), &accepted)
    };
    let is_word = |s: &str, more: &[char]| {
        s.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c) || more.contains(&c))
    };
    let key = |s: &str| {
        let s = s.trim();
        if !s.is_empty() && is_word(s, &['/']) { Ok(s.to_owned()) } else { Err(bad()) }
    };
    let value = |s: &str| if is_word(s.trim(), &[]) { Ok(s.trim().to_owned()) } else { Err(bad()) };
    if let Some((head, values)) = part.strip_suffix(')').and_then(|p| p.split_once('(')) {
        let values = values.split(',').map(value).collect::<Result<BTreeSet<_>, _>>()?;
        return match head.trim().rsplit_once(char::is_whitespace) {
            Some((name, "in")) => Ok(Rule::In(key(name)?, values)),
            Some((name, "notin")) => Ok(Rule::NotIn(key(name)?, values)),
            _ => Err(bad()),
        };
    }
    if let Some((name, other)) = part.split_once("!=") {
        return Ok(Rule::NotIn(key(name)?, [value(other)?].into()));
    }
    if let Some((name, wanted)) = part.split_once("==").or_else(|| part.split_once('=')) {
        return Ok(Rule::In(key(name)?, [value(wanted)?].into()));
    }
    part.strip_prefix('!').map_or_else(|| key(part).map(Rule::Has), |name| key(name).map(Rule::Lacks))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds(selector: &str, labels: &[(&str, &str)]) -> bool {
        let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Labels::parse(selector).unwrap_or_else(|e| panic!("{selector}: {e}")).hold(&labels)
    }

    #[test]
    fn every_rule_of_a_selector() {
        let cart = [("app", "cart"), ("tier", "web"), ("k8s.io/part-of", "shop")];
        for (selector, wanted) in [
            ("", true),
            ("app=cart", true),
            ("app==cart", true),
            ("app = cart , tier=web", true),
            ("app=cart,tier=db", false),
            ("app!=cart", false),
            ("app!=shop", true),
            ("owner!=me", true),
            ("app in (cart, shop)", true),
            ("app in (shop)", false),
            ("app notin (shop,till),tier in (web)", true),
            ("owner notin (me)", true),
            ("app", true),
            ("owner", false),
            ("!owner", true),
            ("!app", false),
            ("k8s.io/part-of=shop", true),
            ("app=", false),
        ] {
            assert_eq!(holds(selector, &cart), wanted, "{selector}");
        }
    }

    #[test]
    fn what_is_no_selector_is_refused() {
        for bad in ["app in cart", "app within (a)", "=a", "a b", "a=(b", "in (a)", "a=b=c", "a in (b", "!"] {
            assert_eq!(Labels::parse(bad).expect_err(bad).status, 400, "{bad}");
        }
    }
}
