//! A command line that is wrong: told apart from a failure, so that it gives exit code 2.
//! Must never be used for anything that a right command line can meet. Raised by the verbs, seen by `main`.

use anyhow::{Error, Result};
use std::ffi::OsString;
use std::fmt;

#[derive(Debug)]
pub struct Usage(pub String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// What was wrong, and how the verb is used.
pub fn wrong(what: impl fmt::Display, usage: &str) -> Error {
    Error::new(Usage(format!("{what}; usage: {usage}")))
}

/// The value of an option, which must be there.
pub fn value<'a>(next: Option<&'a str>, option: &str, usage: &str) -> Result<&'a str> {
    next.ok_or_else(|| wrong(format!("{option} has no value"), usage))
}

/// For verbs that take nothing.
pub fn none(args: &[OsString], usage: &str) -> Result<()> {
    match args.first() {
        None => Ok(()),
        Some(arg) => Err(wrong(format!("unknown option `{}`", arg.display()), usage)),
    }
}

#[cfg(test)]
mod tests {
    use super::{Usage, none, value};

    #[test]
    fn what_is_wrong_and_the_usage_are_said() {
        let e = none(&["--frob".into()], "cargo xtask ci").expect_err("must be refused");
        assert!(e.downcast_ref::<Usage>().is_some());
        assert_eq!(e.to_string(), "unknown option `--frob`; usage: cargo xtask ci");
        assert!(value(None, "--kernel", "x").is_err());
    }
}
