//! The program that scenarios run inside their containers: it uses memory in the way that it was told, and says so.
//! Must never use more than it was told, need anything but its own file, or have a thread or child that was not asked for.
//! Started by `cargo xtask scenario` and by kernel tests; static, so that it also is a whole container image.
//!
//! ```text
//! workload [--enter CGROUP]… ROLE
//!   steady    [--bytes N] [--for S]                          hold N bytes and do a little work each 100 ms
//!   ramp      --bytes N --over S [--after S] [--hold S]      touch N bytes evenly over S seconds
//!   blast     --bytes N [--after S|stdin] [--hold S]         touch N bytes as fast as it goes; `stdin`: when that ends
//!   hog-child --bytes N --over S [--after S] [--linger S]    stay alive; a child ramps; report how it ended
//!   serve     --bytes N --file PATH --from N --length N      hold N bytes and read a part of a file over and over
//!   crew      --bytes N --grow N --over S [--after S] [--linger S]  a child holds N bytes, another asks for more
//!   crash     [--after S] [--code N]                         end with this code (1)
//!   pipe      [--after S]                                    a child that writes to a pipe which nobody reads; ends with 141
//!   forks     --children N --for S [--after S]               start N idle children, as far as the kernel lets us
//!   burn      --for S [--threads N] [--after S]              use N processors (all there are)
//!   write     --file PATH --bytes N --for S [--after S]      write N bytes over and over, each piece to the disk
//!   http      --listen ADDRESS [--upstream ADDRESS] [--bytes N] [--keep N]  answer, after asking the next; keep N bytes a request
//!   visit     --to ADDRESS --for S [--every S]               ask over and over
//! ```
//! Each role takes `--name COMM`, the name that the kernel shows for it (15 bytes at most). `--enter` joins a cgroup and then executes this program anew, as a container runtime does: what the role allocates is
//! charged to the container, and the kernel sees an exec in it.
//! Exit codes: 0 done, 1 the system refused something, 2 wrong arguments, 3 what the role is for did not happen (no child was
//! killed, none was refused).

mod args;
mod memory;
mod processes;
mod web;
mod work;

use args::{Args, Role, Start};
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::{env, thread};

fn main() -> ExitCode {
    let words: Vec<String> = env::args().skip(1).collect();
    let args = match Args::parse(&words) {
        Ok(args) => args,
        Err(message) => {
            say(&message);
            return ExitCode::from(2);
        }
    };
    let done = match &args.enter {
        Some((cgroup, rest)) => enter(cgroup, rest),
        None => rename(args.name.as_deref()).and_then(|()| play(&args.role)),
    };
    done.unwrap_or_else(|message| {
        say(&message);
        ExitCode::FAILURE
    })
}

/// To stderr in one write, since containers share it; nobody can be told that stderr is gone.
fn say(message: &str) {
    let line = format!("workload[{}]: {message}\n", std::process::id());
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// Move ourselves into the cgroup, then become the program that runs in it. Returns only when that fails.
fn enter(cgroup: &Path, rest: &[String]) -> Result<ExitCode, String> {
    let procs = cgroup.join("cgroup.procs");
    let mut file =
        OpenOptions::new().write(true).open(&procs).map_err(|e| format!("{}: {e}", procs.display()))?;
    file.write_all(b"0").map_err(|e| format!("cannot join {}: {e}", cgroup.display()))?;
    let own = env::current_exe().map_err(|e| format!("cannot tell my own path: {e}"))?;
    let failed = Command::new(&own).args(rest).exec();
    Err(format!("cannot execute {}: {failed}", own.display()))
}

/// The name that `ps`, the OOM killer and the recorder show; without it, it is this file's name.
fn rename(name: Option<&str>) -> Result<(), String> {
    let Some(name) = name else { return Ok(()) };
    std::fs::write("/proc/self/comm", name).map_err(|e| format!("cannot take the name {name}: {e}"))
}

fn play(role: &Role) -> Result<ExitCode, String> {
    match *role {
        Role::Steady { bytes, length } => {
            // said first: whoever may be killed has told its pid
            say(&format!("steady with {bytes} bytes"));
            let held = memory::touched(bytes);
            memory::idle(&held, length);
        }
        Role::Ramp { bytes, over, after, hold } => {
            thread::sleep(after);
            say(&format!("ramp to {bytes} bytes over {} s", over.as_secs_f64()));
            let held = memory::ramp(bytes, over);
            say("ramp is at its top");
            memory::idle(&held, Some(hold));
        }
        Role::Blast { bytes, ref start, hold } => {
            match start {
                Start::After(time) => thread::sleep(*time),
                // an error is an end as well
                Start::Stdin => drop(std::io::copy(&mut std::io::stdin(), &mut std::io::sink())),
            }
            say(&format!("blast of {bytes} bytes"));
            let held = memory::touched(bytes);
            memory::idle(&held, Some(hold));
        }
        Role::Serve { bytes, ref file, from, length } => {
            say(&format!("serves {length} bytes of {}", file.display()));
            let held = memory::touched(bytes);
            return memory::serve(&held, file, from, length)
                .map(|()| ExitCode::SUCCESS)
                .map_err(|e| format!("{}: {e}", file.display()));
        }
        Role::HogChild { bytes, over, after, linger } => return processes::hog(bytes, over, after, linger),
        Role::Crew { bytes, grow, over, after, linger } => {
            return processes::crew(bytes, grow, over, after, linger);
        }
        Role::Crash { after, code } => {
            let held = memory::touched(memory::STEADY_BYTES);
            memory::idle(&held, Some(after));
            say(&format!("crashes with {code}"));
            return Ok(ExitCode::from(code));
        }
        Role::Pipe { after } => return processes::pipe(after),
        Role::Pour => return processes::pour(),
        Role::Forks { children, after, length } => return processes::forks(children, after, length),
        Role::Burn { threads, after, length } => work::burn(threads, after, length),
        Role::Write { ref file, bytes, after, length } => {
            say(&format!("writes {bytes} bytes of {} over and over", file.display()));
            work::write(file, bytes, after, length).map_err(|e| format!("{}: {e}", file.display()))?;
        }
        Role::Http { ref listen, ref upstream, bytes, keep } => {
            web::serve(listen, upstream.as_deref(), bytes, keep).map_err(|e| format!("{listen}: {e}"))?;
        }
        Role::Visit { ref to, every, length } => web::visit(to, every, length)?,
    }
    Ok(ExitCode::SUCCESS)
}
