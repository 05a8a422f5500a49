//! What a person sees while xtask works: one line a step on stderr, redrawn in place on a terminal.
//! Must never write to stdout, which belongs to results. Called by every verb that takes longer than a second.

use crate::child;
use crate::clock::{self, Deadline};
use anyhow::{Context as _, Result, bail};
use std::fs::{self, File};
use std::io::{IsTerminal as _, Write as _};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, thread};

/// Set inside the test VM when the outer stderr is a terminal, so that progress made in there is drawn as well.
pub const TTY_ENV: &str = "FGM_STDERR_IS_TERMINAL";

pub fn on_terminal() -> bool {
    std::io::stderr().is_terminal() || env::var_os(TTY_ENV).is_some()
}

pub fn say(text: &str) {
    // Nobody can be told that stderr is gone.
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// One step: `begin`, any number of `update`s, `done`.
pub struct Step {
    name: String,
    start: Instant,
    drawn: bool,
    finished: bool,
    last_plain: u64,
}

impl Step {
    pub fn begin(name: impl Into<String>) -> Self {
        let step = Self {
            name: name.into(),
            start: clock::now(),
            drawn: on_terminal(),
            finished: false,
            last_plain: 0,
        };
        if !step.drawn {
            say(&format!("… {}", step.name));
        }
        step
    }

    /// Redraw with a share between 0 and 1 (where it is known) and a note; off a terminal, a line each 15 s.
    pub fn update(&mut self, share: Option<f64>, note: &str) {
        let secs = self.start.elapsed().as_secs();
        if self.drawn {
            let bar = share.map_or_else(|| spinner(self.start.elapsed()), bar);
            let _ = write!(std::io::stderr(), "\r\x1b[K{bar} {} · {note}{secs} s", self.name);
        } else if secs >= self.last_plain + 15 {
            self.last_plain = secs;
            say(&format!("  {} · {note}{secs} s", self.name));
        }
    }

    pub fn done(mut self, note: &str) {
        self.finished = true;
        let clear = if self.drawn { "\r\x1b[K" } else { "" };
        let secs = self.start.elapsed().as_secs_f64();
        let note = if note.is_empty() { String::new() } else { format!(": {note}") };
        say(&format!("{clear}✓ {}{note} ({secs:.1} s)", self.name));
    }
}

/// A step that failed leaves its line, and what is said next starts on a line of its own.
impl Drop for Step {
    fn drop(&mut self) {
        if self.drawn && !self.finished {
            say("");
        }
    }
}

fn spinner(elapsed: Duration) -> String {
    const FRAMES: [&str; 8] = ["⠋", "⠙", "⠸", "⢰", "⣠", "⣄", "⡆", "⠇"];
    let frame = usize::try_from(elapsed.as_millis() / 120).unwrap_or(0) % FRAMES.len();
    FRAMES[frame].to_owned()
}

fn bar(share: f64) -> String {
    const WIDTH: usize = 24;
    let filled = (1..=WIDTH).filter(|n| share * 24.0 >= f64::from(u8::try_from(*n).unwrap_or(0))).count();
    format!("▕{}{}▏", "█".repeat(filled), "░".repeat(WIDTH - filled))
}

/// Run a command whose chatter nobody needs: it goes to `target/logs/<log>.log`, its end is shown when it fails.
pub fn quiet(name: &str, log: &str, limit: Duration, command: &mut Command) -> Result<()> {
    let dir = crate::paths::target().join("logs");
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let path = dir.join(format!("{log}.log"));
    let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    let also = file.try_clone().context("cannot duplicate a log's descriptor")?;
    let mut step = Step::begin(name);
    let child = command
        .stdin(Stdio::null())
        .stdout(file)
        .stderr(also)
        .spawn()
        .with_context(|| format!("cannot start `{}`", child::shown(command)))?;
    let mut child = child::Reaped(child);
    let deadline = Deadline::after(limit);
    let status = loop {
        if let Some(status) = child.0.try_wait().context("cannot wait for a child")? {
            break status;
        }
        if deadline.passed() {
            bail!(
                "`{}` was ended after {} s; its output is in {}",
                child::shown(command),
                limit.as_secs(),
                path.display()
            );
        }
        step.update(None, "");
        thread::sleep(Duration::from_millis(100));
    };
    if !status.success() {
        bail!(
            "`{}` failed: {status}\n{}\n(all of it: {})",
            child::shown(command),
            child::tail(&path, 40),
            path.display()
        );
    }
    step.done("");
    Ok(())
}
