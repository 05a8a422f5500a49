//! The text of cgroup files, turned into (column, value) pairs.
//!
//! Each parser goes over the bytes once and allocates nothing. "max" gives no pair: the column stays NULL while the
//! file counts as read. Junk is an error and gives no value at all, since half a file would be half a truth.

use crate::catalogue::{Column, ColumnIndex, DEVICE_KEYS, FILES, File, FileIndex, Format, first_column};

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    #[error("not a number")]
    Number,
    #[error("unexpected layout")]
    Layout,
}

/// Remembers where each line of a key-value file went last time: the kernel prints keys in the same order for as long
/// as it runs, so a comparison with the remembered key is all that a line costs.
#[derive(Clone, Debug, Default)]
pub struct Hints {
    lines: Vec<Option<u16>>,
}

/// What the kernel prints ends with the end of a line; what does not was cut, and so may be its last number.
///
/// # Errors
/// It was.
pub fn whole(text: &[u8]) -> Result<(), ParseError> {
    if text.is_empty() || text.ends_with(b"\n") { Ok(()) } else { Err(ParseError::Layout) }
}

/// A decimal number that fits the signed 64 bits of a column, all of `text`.
pub fn number(text: &[u8]) -> Result<u64, ParseError> {
    if text.is_empty() {
        return Err(ParseError::Number);
    }
    let mut v = 0u64;
    // so many digits fit whatever they are
    if text.len() <= 18 {
        for &b in text {
            let digit = b.wrapping_sub(b'0');
            if digit > 9 {
                return Err(ParseError::Number);
            }
            v = v * 10 + u64::from(digit);
        }
        return Ok(v);
    }
    for &b in text {
        if !b.is_ascii_digit() {
            return Err(ParseError::Number);
        }
        v = v.checked_mul(10).and_then(|v| v.checked_add(u64::from(b - b'0'))).ok_or(ParseError::Number)?;
    }
    if v > i64::MAX as u64 { Err(ParseError::Number) } else { Ok(v) }
}

/// `12.34` → 1234, which fits a column; PSI prints two decimals always.
pub fn hundredths(text: &[u8]) -> Result<u64, ParseError> {
    let dot = text.iter().position(|&b| b == b'.').ok_or(ParseError::Number)?;
    let (whole, part) = (number(&text[..dot])?, &text[dot + 1..]);
    if part.len() != 2 {
        return Err(ParseError::Number);
    }
    let value = whole.checked_mul(100).and_then(|w| w.checked_add(number(part).ok()?));
    value.filter(|v| i64::try_from(*v).is_ok()).ok_or(ParseError::Number)
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|&b| b == b'\n').filter(|l| !l.is_empty())
}

fn single(
    file: &File,
    base: ColumnIndex,
    text: &[u8],
    out: &mut Vec<(ColumnIndex, u64)>,
) -> Result<(), ParseError> {
    debug_assert_eq!(file.columns.len(), 1);
    match text.strip_suffix(b"\n").unwrap_or(text) {
        b"max" => Ok(()),
        t => {
            out.push((base, number(t)?));
            Ok(())
        }
    }
}

/// A key that stands twice has no value.
fn once(seen: &mut u128, key: usize) -> Result<(), ParseError> {
    let bit = 1 << key;
    let is_new = *seen & bit == 0;
    *seen |= bit;
    is_new.then_some(()).ok_or(ParseError::Layout)
}

fn key_value(
    file: &File,
    base: ColumnIndex,
    hints: &mut Hints,
    text: &[u8],
    out: &mut Vec<(ColumnIndex, u64)>,
) -> Result<(), ParseError> {
    let mut seen = 0u128;
    for (n, line) in lines(text).enumerate() {
        let space = line.iter().position(|&b| b == b' ').ok_or(ParseError::Layout)?;
        let (key, value) = (&line[..space], &line[space + 1..]);
        if hints.lines.len() <= n {
            hints.lines.resize(n + 1, None);
        }
        let hit = hints.lines[n].map(usize::from).filter(|&i| file.columns[i].key.as_bytes() == key);
        let column = match hit {
            Some(i) => i,
            // a key that the catalogue does not have is not ours to read
            None => match file.columns.iter().position(|c| c.key.as_bytes() == key) {
                Some(i) => {
                    hints.lines[n] = u16::try_from(i).ok();
                    i
                }
                None => continue,
            },
        };
        once(&mut seen, column)?;
        out.push((base + column, number(value)?));
    }
    if text.is_empty() { Err(ParseError::Layout) } else { Ok(()) }
}

fn pressure(
    file: &File,
    base: ColumnIndex,
    text: &[u8],
    out: &mut Vec<(ColumnIndex, u64)>,
) -> Result<(), ParseError> {
    let mut seen = 0u128;
    // the catalogue has them in the kernel's order, so that the next one is where it is looked for first
    let mut next = 0;
    for line in lines(text) {
        let mut words = line.split(|&b| b == b' ');
        let side = words.next().ok_or(ParseError::Layout)?;
        for word in words {
            let eq = word.iter().position(|&b| b == b'=').ok_or(ParseError::Layout)?;
            let (name, value) = (&word[..eq], &word[eq + 1..]);
            let v = if name == b"total" { number(value)? } else { hundredths(value)? };
            let is = |c: &Column| {
                c.key.as_bytes().strip_prefix(side).and_then(|k| k.strip_prefix(b".")) == Some(name)
            };
            let hit = file.columns.get(next).is_some_and(is).then_some(next);
            if let Some(i) = hit.or_else(|| file.columns.iter().position(is)) {
                next = i + 1;
                once(&mut seen, i)?;
                out.push((base + i, v));
            }
        }
    }
    if text.is_empty() { Err(ParseError::Layout) } else { Ok(()) }
}

/// Devices of which a second line is noticed.
const DEVICES: usize = 64;

/// Each device of io.stat's text with its values, in the order of [`DEVICE_KEYS`].
///
/// # Errors
/// Text that the kernel would not print; `each` may have been called for what stood before it.
pub fn devices<'a>(
    text: &'a [u8],
    mut each: impl FnMut(&'a [u8], [Option<u64>; DEVICE_KEYS.len()]),
) -> Result<(), ParseError> {
    whole(text)?;
    let mut names: [&[u8]; DEVICES] = [b""; DEVICES];
    for (n, line) in lines(text).enumerate() {
        // `8:0 rbytes=1 …`; old kernels print a device of no activity with nothing behind its number
        let mut words = line.split(|&b| b == b' ').filter(|w| !w.is_empty());
        let name = words.next().ok_or(ParseError::Layout)?;
        if names.iter().take(n).any(|other| *other == name) || name.contains(&b'=') {
            return Err(ParseError::Layout);
        }
        if let Some(place) = names.get_mut(n) {
            *place = name;
        }
        let mut values = [None; DEVICE_KEYS.len()];
        for word in words {
            let eq = word.iter().position(|&b| b == b'=').ok_or(ParseError::Layout)?;
            if let Some(i) = DEVICE_KEYS.iter().position(|k| k.as_bytes() == &word[..eq])
                && values[i].replace(number(&word[eq + 1..])?).is_some()
            {
                return Err(ParseError::Layout);
            }
        }
        each(name, values);
    }
    Ok(())
}

/// Sums over devices. A file with no device gives no value: nothing was counted yet, which the kernel shows as nothing.
fn per_device(base: ColumnIndex, text: &[u8], out: &mut Vec<(ColumnIndex, u64)>) -> Result<(), ParseError> {
    let mut sums = [None::<u64>; DEVICE_KEYS.len()];
    devices(text, |_, values| {
        for (sum, value) in sums.iter_mut().zip(values) {
            // beyond 64 bits it stays there, and is refused below
            *sum = value.map(|v| sum.unwrap_or(0).saturating_add(v)).or(*sum);
        }
    })?;
    if sums.iter().flatten().any(|s| *s > i64::MAX as u64) {
        return Err(ParseError::Number);
    }
    out.extend(sums.iter().enumerate().filter_map(|(i, s)| s.map(|s| (base + i, s))));
    Ok(())
}

fn pair(base: ColumnIndex, text: &[u8], out: &mut Vec<(ColumnIndex, u64)>) -> Result<(), ParseError> {
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    let space = text.iter().position(|&b| b == b' ').ok_or(ParseError::Layout)?;
    if &text[..space] != b"max" {
        out.push((base, number(&text[..space])?));
    }
    out.push((base + 1, number(&text[space + 1..])?));
    Ok(())
}

/// Parses the text of file `index` of the catalogue and appends its (column, value) pairs to `out`.
///
/// # Errors
/// Text that the kernel would not print; `out` is then as it was before.
pub fn parse(
    index: FileIndex,
    hints: &mut Hints,
    text: &[u8],
    out: &mut Vec<(ColumnIndex, u64)>,
) -> Result<(), ParseError> {
    let (file, base, before) = (&FILES[index], first_column(index), out.len());
    let result = whole(text).and_then(|()| match file.format {
        Format::Single => single(file, base, text, out),
        Format::KeyValue => key_value(file, base, hints, text, out),
        Format::Pressure => pressure(file, base, text, out),
        Format::PerDevice => per_device(base, text, out),
        Format::Pair => pair(base, text, out),
    });
    if result.is_err() {
        out.truncate(before);
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue;

    fn read(file: &str, text: &str) -> Result<Vec<(&'static str, u64)>, ParseError> {
        let names: Vec<_> = catalogue::columns().map(|(_, _, c)| c.name).collect();
        let mut out = Vec::new();
        parse(catalogue::file(file).expect("known file"), &mut Hints::default(), text.as_bytes(), &mut out)?;
        Ok(out.into_iter().map(|(i, v)| (names[i], v)).collect())
    }

    #[test]
    fn good_files_give_their_values() {
        assert_eq!(read("memory.current", "4096\n"), Ok(vec![("memory_current", 4096)]));
        assert_eq!(
            read("memory.stat", "anon 1\nfile 2\nnew_key 3\nslab 9\n"),
            Ok(vec![("memory_stat_anon", 1), ("memory_stat_file", 2), ("memory_stat_slab", 9)])
        );
        assert_eq!(
            read("memory.pressure", "some avg10=1.50 avg60=0.00 avg300=12.34 total=77\nfull avg10=0.00 avg60=0.00 avg300=0.01 total=5\n")
                .map(|v| v.into_iter().filter(|(_, v)| *v != 0).collect::<Vec<_>>()),
            Ok(vec![
                ("memory_pressure_some_avg10_x100", 150),
                ("memory_pressure_some_avg300_x100", 1234),
                ("memory_pressure_some_total_usec", 77),
                ("memory_pressure_full_avg300_x100", 1),
                ("memory_pressure_full_total_usec", 5)
            ])
        );
        assert_eq!(
            read(
                "io.stat",
                "8:0 rbytes=10 wbytes=1 rios=2 wios=0 dbytes=0 dios=0\n253:0 rbytes=5 wbytes=0 rios=1 wios=0 dbytes=0 dios=0\n254:0 \n"
            ),
            Ok(vec![
                ("io_stat_rbytes", 15),
                ("io_stat_wbytes", 1),
                ("io_stat_rios", 3),
                ("io_stat_wios", 0),
                ("io_stat_dbytes", 0),
                ("io_stat_dios", 0)
            ])
        );
        assert_eq!(
            read("cpu.max", "50000 100000\n"),
            Ok(vec![("cpu_max_quota_usec", 50_000), ("cpu_max_period_usec", 100_000)])
        );
    }

    #[test]
    fn max_is_no_value_and_no_error() {
        assert_eq!(read("memory.max", "max\n"), Ok(vec![]));
        assert_eq!(read("cpu.max", "max 100000\n"), Ok(vec![("cpu_max_period_usec", 100_000)]));
    }

    #[test]
    fn junk_gives_nothing_at_all() {
        assert_eq!(read("memory.current", "12a\n"), Err(ParseError::Number));
        assert_eq!(read("memory.current", ""), Err(ParseError::Number));
        assert_eq!(read("memory.current", "18446744073709551616\n"), Err(ParseError::Number));
        assert_eq!(read("memory.stat", "anon 1\nfile x\n"), Err(ParseError::Number));
        assert_eq!(read("memory.pressure", "some avg10\n"), Err(ParseError::Layout));
        assert_eq!(read("memory.pressure", "some avg10=92233720368547758.08\n"), Err(ParseError::Number));
        assert_eq!(read("cpu.max", "50000\n"), Err(ParseError::Layout));
    }

    #[test]
    fn a_changed_order_of_keys_is_seen() {
        let index = catalogue::file("cpu.stat").expect("known file");
        let (usage, user) =
            (catalogue::column("cpu_stat_usage_usec"), catalogue::column("cpu_stat_user_usec"));
        let (mut hints, mut out) = (Hints::default(), Vec::new());
        parse(index, &mut hints, b"usage_usec 1\nuser_usec 2\n", &mut out).expect("good");
        parse(index, &mut hints, b"user_usec 3\nusage_usec 4\n", &mut out).expect("good");
        let got: Vec<_> = out.iter().map(|&(c, v)| (Some(c), v)).collect();
        assert_eq!(got, [(usage, 1), (user, 2), (user, 3), (usage, 4)]);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_a_parser_panic(file in 0..FILES.len(), text in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
            let mut out = vec![(7, 7)];
            let result = parse(file, &mut Hints::default(), &text, &mut out);
            proptest::prop_assert!(result.is_ok() || out == [(7, 7)]);
        }
    }
}
