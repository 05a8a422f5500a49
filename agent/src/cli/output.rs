//! Where a command's output goes: stdout, or a file that is there whole or not at all.

use super::Failure;
use crate::export::Format;
use anyhow::Context;
use sha2::{Digest, Sha256};
use std::fs;
use std::io::{self, IsTerminal, Read, Write};
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

/// A file without a name, on the disk where the output will be, or where temporary files are.
pub fn unnamed(output: &Path) -> Result<fs::File, Failure> {
    let beside = match output.parent() {
        None => None,
        Some(_) if output == Path::new("-") => None,
        Some(parent) if parent == Path::new("") => Some(Path::new(".")),
        parent => parent.filter(|p| p.is_dir()),
    };
    let folder = beside.map_or_else(std::env::temp_dir, Path::to_owned);
    // several threads may make one at once
    let path = folder.join(format!(".fgm-export.{}.{:?}.tmp", std::process::id(), thread::current().id()));
    let make = || {
        let file = fs::OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
        fs::remove_file(&path)?;
        Ok::<_, io::Error>(file)
    };
    Ok(make().with_context(|| {
        format!("cannot make a file in {} (set TMPDIR to a folder that may be written)", folder.display())
    })?)
}

/// Writes the whole, or nothing under that name.
pub fn write(output: &Path, is_binary: bool, mut bytes: impl Read) -> Result<(), Failure> {
    if output == Path::new("-") {
        if is_binary && io::stdout().is_terminal() {
            return Err(Failure::Usage(
                "Parquet is not for a terminal; give -o FILE or redirect stdout".to_owned(),
            ));
        }
        return stdout(&mut bytes);
    }
    let result = match fs::metadata(output) {
        Ok(there) if there.is_dir() => {
            let detail = format!("{} is a folder; name a file in it with -o", output.display());
            return Err(Failure::Usage(detail));
        }
        // A pipe or a device is written to; a rename would put a file in its place.
        Ok(there) if !there.is_file() => fs::OpenOptions::new()
            .write(true)
            .open(output)
            .and_then(|mut file| io::copy(&mut bytes, &mut file).map(drop)),
        // What a link points to is replaced, not the link.
        Ok(_) => fs::canonicalize(output).and_then(|target| replace(&target, &mut bytes)),
        Err(_) => replace(output, &mut bytes),
    };
    Ok(result.with_context(|| {
        format!("cannot write {} (name a file in a writable folder with -o)", output.display())
    })?)
}

fn replace(output: &Path, bytes: &mut impl Read) -> io::Result<()> {
    let mut temporary = output.as_os_str().to_owned();
    temporary.push(format!(".{}.tmp", std::process::id()));
    let mut put = || -> io::Result<()> {
        let mut file = fs::File::create_new(&temporary)?;
        io::copy(bytes, &mut file)?;
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
    stdout(&mut text.as_bytes())
}

fn stdout(bytes: &mut impl Read) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match io::copy(bytes, &mut out).and_then(|_| out.flush()) {
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

/// Passes on what is read, and counts and hashes it.
pub struct Told<R> {
    inner: R,
    bytes: u64,
    hash: Sha256,
}

impl<R: Read> Told<R> {
    pub fn new(inner: R) -> Self {
        Self { inner, bytes: 0, hash: Sha256::new() }
    }

    /// Bytes so far, and their SHA-256 as hex.
    pub fn told(self) -> (u64, String) {
        let hex = self.hash.finalize().iter().fold(String::new(), |hex, b| format!("{hex}{b:02x}"));
        (self.bytes, hex)
    }
}

impl<R: Read> Read for Told<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.hash.update(&buf[..n]);
        self.bytes += n as u64;
        Ok(n)
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
