//! What a benchmark holds the recorder to, in one line each. Must never pass over a figure that is not there: what was not
//! measured does not hold. Pure but for the printing. Called by the benchmarks' judges.

use serde_json::{Value, json};

#[derive(Clone, Debug, PartialEq)]
pub struct Bound {
    /// Name, figure and bound, for a person.
    pub what: String,
    pub holds: bool,
}

impl Bound {
    pub fn at_most(name: &str, is: Option<f64>, most: f64) -> Self {
        Self::of(name, is, &format!("at most {most}"), |x| x <= most)
    }

    pub fn at_least(name: &str, is: Option<f64>, least: f64) -> Self {
        Self::of(name, is, &format!("at least {least}"), |x| x >= least)
    }

    /// So many of so many.
    pub fn all(name: &str, is: usize, of: usize) -> Self {
        Self { what: format!("{name}: {is} of {of}"), holds: is == of }
    }

    pub fn none(name: &str, is: usize) -> Self {
        Self { what: format!("{name}: {is}, none allowed"), holds: is == 0 }
    }

    fn of(name: &str, is: Option<f64>, bound: &str, holds: impl Fn(f64) -> bool) -> Self {
        let figure = is.map_or_else(|| "not measured".to_owned(), |x| format!("{x:.3}"));
        Self { what: format!("{name}: {figure}, {bound}"), holds: is.is_some_and(holds) }
    }
}

/// A line for each; whether all hold.
pub fn print(bounds: &[Bound]) -> bool {
    for Bound { what, holds } in bounds {
        println!("{}  {what}", if *holds { "holds " } else { "BROKEN" });
    }
    bounds.iter().all(|b| b.holds)
}

pub fn json(bounds: &[Bound]) -> Value {
    bounds.iter().map(|b| json!({"bound": b.what, "holds": b.holds})).collect()
}

#[cfg(test)]
mod tests {
    use super::Bound;

    #[test]
    fn what_was_not_measured_does_not_hold() {
        for (bound, what, holds) in [
            (Bound::at_most("ms", Some(5.0), 5.0), "ms: 5.000, at most 5", true),
            (Bound::at_most("ms", Some(5.01), 5.0), "ms: 5.010, at most 5", false),
            (Bound::at_most("ms", None, 5.0), "ms: not measured, at most 5", false),
            (Bound::at_most("ms", Some(f64::NAN), 5.0), "ms: NaN, at most 5", false),
            (Bound::at_least("s", Some(30.0), 30.0), "s: 30.000, at least 30", true),
            (Bound::at_least("s", Some(29.9), 30.0), "s: 29.900, at least 30", false),
            (Bound::at_least("s", None, 30.0), "s: not measured, at least 30", false),
            (Bound::all("right", 3, 4), "right: 3 of 4", false),
            (Bound::none("alarms", 0), "alarms: 0, none allowed", true),
        ] {
            assert_eq!(bound, Bound { what: what.to_owned(), holds });
        }
    }
}
