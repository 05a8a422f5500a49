//! Where a command's output goes: stdout, or a file that is there whole or not at all.

use super::Failure;
use crate::export::Format;
use anyhow::Context;
use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// The format that was named, or the one of the file's ending.
pub fn format(output: &Path, named: Option<&str>) -> Result<Format, Failure> {
    if let Some(name) = named {
        return Ok(Format::parse(name)?);
    }
    let ending = output.extension().and_then(|e| e.to_str()).unwrap_or_default();
    Format::parse(ending).map_err(|_| {
        let names = Format::NAMES.join(", ");
        Failure::Usage(format!("the ending of {} names no format; add --format ({names})", output.display()))
    })
}

/// Writes the whole, or nothing under that name.
pub fn write(output: &Path, is_binary: bool, bytes: &[u8]) -> Result<(), Failure> {
    if output == Path::new("-") {
        if is_binary && io::stdout().is_terminal() {
            return Err(Failure::Usage(
                "Parquet is not for a terminal; give -o FILE or redirect stdout".to_owned(),
            ));
        }
        return stdout(bytes);
    }
    let result = match fs::metadata(output) {
        Ok(there) if there.is_dir() => {
            let detail = format!("{} is a folder; name a file in it with -o", output.display());
            return Err(Failure::Usage(detail));
        }
        // A pipe or a device is written to; a rename would put a file in its place.
        Ok(there) if !there.is_file() => {
            fs::OpenOptions::new().write(true).open(output).and_then(|mut file| file.write_all(bytes))
        }
        // What a link points to is replaced, not the link.
        Ok(_) => fs::canonicalize(output).and_then(|target| replace(&target, bytes)),
        Err(_) => replace(output, bytes),
    };
    Ok(result.with_context(|| {
        format!("cannot write {} (name a file in a writable folder with -o)", output.display())
    })?)
}

fn replace(output: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut temporary = output.as_os_str().to_owned();
    temporary.push(format!(".{}.tmp", std::process::id()));
    let put = || -> io::Result<()> {
        let mut file = fs::File::create_new(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, output)
    };
    let result = put();
    if result.is_err() {
        // Nothing half stays behind; whether it can be removed changes nothing about the failure.
        let _ = fs::remove_file(&temporary);
    }
    result
}

pub fn print(text: &str) -> Result<(), Failure> {
    stdout(text.as_bytes())
}

fn stdout(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        // `fgm incidents | head` is no failure.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result.context("cannot write to stdout")?),
    }
}

/// A severity, padded, in colour on a terminal (<https://no-color.org> is heeded).
pub fn severity(word: &str, width: usize) -> String {
    let text = format!("{:width$}", printable(word));
    let is_plain = !io::stdout().is_terminal() || std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
    match word {
        _ if is_plain => text,
        "critical" => format!("\u{1b}[1;31m{text}\u{1b}[0m"),
        "warning" => format!("\u{1b}[33m{text}\u{1b}[0m"),
        _ => text,
    }
}

/// Says on a terminal's stderr what takes so long, and for how long; gone when it is dropped.
pub struct Progress(Option<(mpsc::Sender<()>, thread::JoinHandle<()>)>);

impl Progress {
    pub fn start(what: &'static str) -> Self {
        if !io::stderr().is_terminal() {
            return Self(None);
        }
        let (stop, stopped) = mpsc::channel();
        let show = move || {
            let mut seconds = 0;
            while stopped.recv_timeout(Duration::from_secs(1)) == Err(mpsc::RecvTimeoutError::Timeout) {
                seconds += 1;
                let _ = write!(io::stderr(), "\r{what}… {seconds} s");
            }
            if seconds > 0 {
                let _ = write!(io::stderr(), "\r\u{1b}[K");
            }
        };
        Self(Some((stop, thread::spawn(show))))
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some((stop, shown)) = self.0.take() {
            drop(stop);
            let _ = shown.join();
        }
    }
}

/// Without control characters: a comm may hold what moves a terminal's cursor.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
