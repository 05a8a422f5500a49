//! The workload's command line. Must never guess: an unknown or missing word is an error that shows the usage.
//! Called by `main`.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

const USAGE: &str = "usage: workload [--enter CGROUP]… ROLE
  steady    [--bytes N] [--for S]
  ramp      --bytes N --over S [--after S] [--hold S]
  blast     --bytes N [--after S|stdin] [--hold S]
  hog-child --bytes N --over S [--after S] [--linger S]
  serve     --bytes N --file PATH --from N --length N
  crew      --bytes N --grow N --over S [--after S] [--linger S]
  crash     [--after S] [--code N]
  pipe      [--after S]
  forks     --children N --for S [--after S]
  burn      --for S [--threads N] [--after S]
  write     --file PATH --bytes N --for S [--after S]
  http      --listen ADDRESS [--upstream ADDRESS] [--bytes N] [--keep N]
  visit     --to ADDRESS --for S [--every S]
each takes --name COMM; N takes the suffixes K, M and G; S is in seconds and may have a fraction";

/// When a blast begins.
#[derive(Debug, PartialEq)]
pub enum Start {
    After(Duration),
    /// When stdin ends: whoever holds the other end lets many go at one instant.
    Stdin,
}

#[derive(Debug, PartialEq)]
pub enum Role {
    Steady {
        bytes: usize,
        length: Option<Duration>,
    },
    Ramp {
        bytes: usize,
        over: Duration,
        after: Duration,
        hold: Duration,
    },
    Blast {
        bytes: usize,
        start: Start,
        hold: Duration,
    },
    HogChild {
        bytes: usize,
        over: Duration,
        after: Duration,
        linger: Duration,
    },
    Serve {
        bytes: usize,
        file: PathBuf,
        from: usize,
        length: usize,
    },
    Crew {
        bytes: usize,
        grow: usize,
        over: Duration,
        after: Duration,
        linger: Duration,
    },
    Crash {
        after: Duration,
        code: u8,
    },
    Pipe {
        after: Duration,
    },
    /// The writing end of `Pipe`.
    Pour,
    Forks {
        children: usize,
        after: Duration,
        length: Duration,
    },
    Burn {
        threads: Option<usize>,
        after: Duration,
        length: Duration,
    },
    Write {
        file: PathBuf,
        bytes: usize,
        after: Duration,
        length: Duration,
    },
    Http {
        listen: String,
        upstream: Option<String>,
        bytes: usize,
        keep: usize,
    },
    Visit {
        to: String,
        every: Duration,
        length: Duration,
    },
}

#[derive(Debug, PartialEq)]
pub struct Args {
    /// The cgroup to join first, and the words after it.
    pub enter: Option<(PathBuf, Vec<String>)>,
    pub name: Option<String>,
    pub role: Role,
}

impl Args {
    pub fn parse(words: &[String]) -> Result<Self, String> {
        if let [flag, cgroup, rest @ ..] = words
            && flag == "--enter"
        {
            return Ok(Self { enter: Some((cgroup.into(), rest.to_vec())), ..Self::parse(rest)? });
        }
        Self::plain(words)
    }

    fn plain(words: &[String]) -> Result<Self, String> {
        let (name, words) = words.split_first().ok_or_else(|| USAGE.to_owned())?;
        let mut options = Options::read(words)?;
        let comm = options.take("--name");
        let second = Duration::from_secs(1);
        let role = match name.as_str() {
            "steady" => Role::Steady {
                bytes: options.bytes("--bytes")?.unwrap_or(crate::memory::STEADY_BYTES),
                length: options.seconds("--for")?,
            },
            "ramp" => Role::Ramp {
                bytes: options.size("--bytes")?,
                over: options.time("--over")?,
                after: options.seconds("--after")?.unwrap_or_default(),
                hold: options.seconds("--hold")?.unwrap_or(second),
            },
            "blast" => Role::Blast {
                bytes: options.size("--bytes")?,
                start: options.start()?,
                hold: options.seconds("--hold")?.unwrap_or(second),
            },
            "hog-child" => Role::HogChild {
                bytes: options.size("--bytes")?,
                over: options.time("--over")?,
                after: options.seconds("--after")?.unwrap_or_default(),
                linger: options.seconds("--linger")?.unwrap_or(second),
            },
            "crew" => Role::Crew {
                bytes: options.size("--bytes")?,
                grow: options.size("--grow")?,
                over: options.time("--over")?,
                after: options.seconds("--after")?.unwrap_or_default(),
                linger: options.seconds("--linger")?.unwrap_or(second),
            },
            "crash" => Role::Crash {
                after: options.seconds("--after")?.unwrap_or_default(),
                code: options.number("--code")?.unwrap_or(1),
            },
            "pipe" => Role::Pipe { after: options.seconds("--after")?.unwrap_or_default() },
            "pour" => Role::Pour,
            "forks" => Role::Forks {
                children: options.number("--children")?.ok_or_else(|| missing("--children"))?,
                after: options.seconds("--after")?.unwrap_or_default(),
                length: options.time("--for")?,
            },
            "burn" => Role::Burn {
                threads: options.number("--threads")?,
                after: options.seconds("--after")?.unwrap_or_default(),
                length: options.time("--for")?,
            },
            "write" => Role::Write {
                file: options.text("--file")?.into(),
                bytes: options.size("--bytes")?,
                after: options.seconds("--after")?.unwrap_or_default(),
                length: options.time("--for")?,
            },
            "http" => Role::Http {
                listen: options.text("--listen")?,
                upstream: options.take("--upstream"),
                bytes: options.bytes("--bytes")?.unwrap_or(crate::memory::STEADY_BYTES),
                keep: options.bytes("--keep")?.unwrap_or(0),
            },
            "visit" => Role::Visit {
                to: options.text("--to")?,
                every: options.seconds("--every")?.unwrap_or(second),
                length: options.time("--for")?,
            },
            "serve" => Role::Serve {
                bytes: options.size("--bytes")?,
                file: options.text("--file")?.into(),
                from: options.size("--from")?,
                length: options.size("--length")?,
            },
            _ => return Err(format!("no role `{name}`\n{USAGE}")),
        };
        options.finish()?;
        Ok(Self { enter: None, name: comm, role })
    }
}

struct Options(Vec<(String, String)>);

impl Options {
    fn read(words: &[String]) -> Result<Self, String> {
        let pairs = words.chunks(2).map(|pair| match pair {
            [name, value] if name.starts_with("--") => Ok((name.clone(), value.clone())),
            _ => Err(format!("`{}` has no value or is no option\n{USAGE}", pair[0])),
        });
        pairs.collect::<Result<_, _>>().map(Self)
    }

    fn take(&mut self, name: &str) -> Option<String> {
        let at = self.0.iter().position(|(n, _)| n == name)?;
        Some(self.0.remove(at).1)
    }

    fn bytes(&mut self, name: &str) -> Result<Option<usize>, String> {
        self.take(name).map(|v| size(&v).ok_or_else(|| format!("{name} {v} is no size\n{USAGE}"))).transpose()
    }

    fn size(&mut self, name: &str) -> Result<usize, String> {
        self.bytes(name)?.ok_or_else(|| missing(name))
    }

    fn text(&mut self, name: &str) -> Result<String, String> {
        self.take(name).ok_or_else(|| missing(name))
    }

    fn time(&mut self, name: &str) -> Result<Duration, String> {
        self.seconds(name)?.ok_or_else(|| missing(name))
    }

    fn number<N: FromStr>(&mut self, name: &str) -> Result<Option<N>, String> {
        let Some(value) = self.take(name) else { return Ok(None) };
        value.parse().map(Some).map_err(|_| format!("{name} {value} is no number that can be\n{USAGE}"))
    }

    fn start(&mut self) -> Result<Start, String> {
        if let Some(at) = self.0.iter().position(|(n, v)| n == "--after" && v == "stdin") {
            self.0.remove(at);
            return Ok(Start::Stdin);
        }
        Ok(Start::After(self.seconds("--after")?.unwrap_or_default()))
    }

    fn seconds(&mut self, name: &str) -> Result<Option<Duration>, String> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let seconds = value.parse().ok().and_then(|s| Duration::try_from_secs_f64(s).ok());
        seconds.map(Some).ok_or_else(|| format!("{name} {value} is no number of seconds\n{USAGE}"))
    }

    fn finish(self) -> Result<(), String> {
        self.0
            .first()
            .map_or(Ok(()), |(name, _)| Err(format!("{name} is unknown here or given twice\n{USAGE}")))
    }
}

fn missing(name: &str) -> String {
    format!("{name} is missing\n{USAGE}")
}

fn size(text: &str) -> Option<usize> {
    let (digits, shift) = match text.as_bytes().last()? {
        b'K' => (&text[..text.len() - 1], 10),
        b'M' => (&text[..text.len() - 1], 20),
        b'G' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    digits.parse::<usize>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::{Args, Role, Start};
    use std::time::Duration;

    fn parse(line: &str) -> Result<Args, String> {
        Args::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn roles_are_read_with_units_and_defaults() {
        let ramp = parse("ramp --bytes 64M --over 2.5 --hold 3").expect("a ramp");
        let over = Duration::from_millis(2500);
        let hold = Duration::from_secs(3);
        assert_eq!(ramp.role, Role::Ramp { bytes: 64 << 20, over, after: Duration::ZERO, hold });
        assert_eq!(ramp.enter, None);
    }

    #[test]
    fn a_blast_begins_after_a_time_or_when_stdin_ends() {
        let start = |line| match parse(line).expect(line).role {
            Role::Blast { start, .. } => start,
            other => panic!("{other:?}"),
        };
        assert_eq!(start("blast --bytes 1M"), Start::After(Duration::ZERO));
        assert_eq!(start("blast --bytes 1M --after stdin"), Start::Stdin);
        assert!(parse("ramp --bytes 1M --over 1 --after stdin").is_err());
    }

    #[test]
    fn what_may_be_left_out_has_a_default() {
        assert_eq!(parse("crash").expect("a crash").role, Role::Crash { after: Duration::ZERO, code: 1 });
        let burn = Role::Burn { threads: None, after: Duration::ZERO, length: Duration::from_secs(2) };
        assert_eq!(parse("burn --for 2").expect("a burn").role, burn);
        let http = Role::Http { listen: ":1".into(), upstream: None, bytes: 4 << 20, keep: 0 };
        assert_eq!(parse("http --listen :1").expect("a server").role, http);
    }

    #[test]
    fn enter_keeps_the_words_after_it() {
        let args = parse("--enter /sys/fs/cgroup/a steady --for 1").expect("a steady");
        let (cgroup, rest) = args.enter.expect("a cgroup");
        assert_eq!(cgroup.to_str(), Some("/sys/fs/cgroup/a"));
        assert_eq!(rest, ["steady", "--for", "1"]);
        // one of each hierarchy, one after the other
        let args = parse("--enter /a --enter /b steady").expect("a steady");
        assert_eq!(args.enter.map(|(_, rest)| rest.join(" ")).as_deref(), Some("--enter /b steady"));
    }

    #[test]
    fn wrong_words_are_refused_with_the_usage() {
        let wrong = [
            "",
            "dance",
            "ramp --over 1",
            "ramp --bytes x --over 1",
            "steady --for -1",
            "steady --over 1",
            "blast 7",
            "serve --bytes 1M --from 0 --length 1M",
            "crash --code 300",
            "forks --children -1 --for 1",
            "visit --for 1",
            "pipe --bytes 1M",
        ];
        for line in wrong {
            let message = parse(line).expect_err(line);
            assert!(message.contains("usage:"), "{line}: {message}");
        }
    }
}
