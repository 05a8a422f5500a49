//! The text of a file whose keys are not known beforehand, turned into (key, sub-key, number).
//!
//! Goes over the bytes once and allocates nothing. A file that is not made of numbers is an error as a whole.

use super::parse::{ParseError, whole};

/// A value as the kernel prints it; `None` = "max".
pub type Number = Option<f64>;

/// A decimal number with or without a sign and a fraction, or `max`. Exact up to 2^53, and for multiples of a page far
/// beyond it.
pub fn number(text: &[u8]) -> Result<Number, ParseError> {
    if text == b"max" {
        return Ok(None);
    }
    let plain = |b: &u8| b.is_ascii_digit() || matches!(b, b'.' | b'-');
    // f64's own parser takes `inf`, `1e5` and `.`, which the kernel does not print
    if !text.iter().all(plain) || text.first().is_none_or(|b| *b == b'.') || text.ends_with(b".") {
        return Err(ParseError::Number);
    }
    let text = std::str::from_utf8(text).map_err(|_| ParseError::Number)?;
    text.parse().map(Some).map_err(|_| ParseError::Number)
}

/// Calls `each` with (key, sub-key, value) of every value in the text, in its order:
/// `7` gives ("", "", 7), `anon 7` gives ("anon", "", 7), `anon N0=7 N1=8` gives ("anon", "N0", 7) and ("anon", "N1", 8),
/// `total=7 N0=7` gives ("", "total", 7) and ("", "N0", 7). A key that stands twice is given twice: who keeps the series of a file
/// (`sampler::loose`) knows it at no cost.
///
/// # Errors
/// Text of another layout; `each` may have been called for what stood before it.
pub fn visit<'a>(text: &'a [u8], mut each: impl FnMut(&'a [u8], &'a [u8], Number)) -> Result<(), ParseError> {
    whole(text)?;
    for line in text.split(|&b| b == b'\n').filter(|l| !l.is_empty()) {
        let mut key: &[u8] = b"";
        let mut is_done = false;
        for (n, word) in line.split(|&b| b == b' ').filter(|w| !w.is_empty()).enumerate() {
            match word.iter().position(|&b| b == b'=') {
                Some(eq) => {
                    each(key, &word[..eq], number(&word[eq + 1..])?);
                    is_done = true;
                }
                // a key of letters stands first; a number there is the value of a file that has no key
                None if n == 0 && (line.contains(&b' ') || number(word).is_err()) => key = word,
                None if is_done => return Err(ParseError::Layout),
                None => {
                    each(key, b"", number(word)?);
                    is_done = true;
                }
            }
        }
        // a device of no activity, as old kernels print it, is a key with a blank behind it
        if !is_done && !line.ends_with(b" ") {
            return Err(ParseError::Layout);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &str) -> Result<Vec<(String, String, Number)>, ParseError> {
        let mut out = Vec::new();
        let name = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        visit(text.as_bytes(), |k, s, v| out.push((name(k), name(s), v))).map(|()| out)
    }

    fn one(key: &str, sub: &str, value: f64) -> (String, String, Number) {
        (key.into(), sub.into(), Some(value))
    }

    #[test]
    fn every_layout_of_the_kernel_is_read() {
        assert_eq!(all("7\n"), Ok(vec![one("", "", 7.0)]));
        assert_eq!(all("max\n"), Ok(vec![(String::new(), String::new(), None)]));
        assert_eq!(all("-5\n"), Ok(vec![one("", "", -5.0)]));
        assert_eq!(all("0.25\n"), Ok(vec![one("", "", 0.25)]));
        assert_eq!(all(""), Ok(vec![]));
        assert_eq!(all("a 1\nb max\n"), Ok(vec![one("a", "", 1.0), ("b".into(), String::new(), None)]));
        assert_eq!(all("anon N0=4096 N1=0\n"), Ok(vec![one("anon", "N0", 4096.0), one("anon", "N1", 0.0)]));
        assert_eq!(all("total=3 N0=3\n"), Ok(vec![one("", "total", 3.0), one("", "N0", 3.0)]));
        assert_eq!(all("8:0 rbps=max wbps=1\n").map(|v| v.len()), Ok(2));
        assert_eq!(all("254:0 \n"), Ok(vec![]));
        assert_eq!(all("9223372036854771712\n"), Ok(vec![one("", "", 9_223_372_036_854_771_712.0)]));
    }

    #[test]
    fn words_and_lists_are_refused() {
        for text in [
            "domain\n", "0-1\n", "a b\n", "a 1 2\n", "a N0=x\n", "1e5\n", "inf\n", "nan\n", "a=\n", ".5\n",
            "--1\n", "1",
        ] {
            assert!(all(text).is_err(), "{text:?}: {:?}", all(text));
        }
    }
}
