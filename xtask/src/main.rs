//! Every developer verb: builds, the test VM, scenarios, the demo, all tests.
//! Must never be needed by a user of the agent. Called as `cargo xtask VERB` from any folder of the repository.

mod agent;
mod bench;
mod browser;
mod cgroup;
mod child;
mod clock;
mod cluster;
mod debian;
mod demo;
mod demo_play;
mod ebpf;
mod exported;
mod faults;
mod http;
mod image;
mod initrd;
mod interop;
mod kernel;
mod kubernetes;
mod net;
mod origin;
mod paths;
mod progress;
mod scenario;
mod setup;
mod suite;
mod tally;
mod toolchain;
mod usage;
mod virtiofs;
mod vm;

use std::env;
use std::ffi::OsString;
use std::process::ExitCode;

const USAGE: &str = "\
cargo xtask VERB

  test [--long]               all set-up, then every test (long: on all kernels, and the evidence of some kills)
  test --kubernetes           image and manifests on a real one-node cluster in the test VM, and nothing else
  ci                          format, lints and all tests that need no VM
  build-ebpf                  compile the kernel programs into target/ebpf
  demo                        all set-up, then the report of a real OOM kill
  bench evidence|burst|churn|quiet|store|sampler  the numbers that the recorder is held to
  faults [--points N]         let N things go wrong with the store and the agent, and count what that cost
  interop [--all]             other engines read what the agent wrote, and find the same
  scenario list|run|status|logs|stop|export NAME   play a workload, and hold what the agent tells of it against what is expected
  image [--workload]          the agent (or what scenarios are made of) as an OCI image, one static binary in it
  cluster create|deploy|status|viewer|destroy --kind NAME|--minikube PROFILE   the agent on a cluster of your own
  vm [OPTIONS] -- COMMAND     run a command in the test VM
";

fn main() -> ExitCode {
    let args: Vec<OsString> = env::args_os().skip(1).collect();
    let verb = args.first().map(|a| a.to_string_lossy().into_owned()).unwrap_or_default();
    let rest = args.get(1..).unwrap_or_default();
    let code = match verb.as_str() {
        "build-ebpf" => usage::none(rest, "cargo xtask build-ebpf").and_then(|()| ebpf::verb()),
        "test" => suite::test(rest),
        "ci" => usage::none(rest, "cargo xtask ci").map(|()| suite::ci()),
        "cluster" => cluster::verb(rest),
        "demo" => demo::verb(rest),
        "bench" => bench::verb(rest),
        "faults" => faults::verb(rest),
        "interop" => interop::verb(rest),
        "scenario" => scenario::verb(rest),
        "image" => image::verb(rest),
        "kubernetes" => kubernetes::verb(rest),
        "vm" => vm::verb(rest),
        "help" | "--help" | "-h" => {
            println!("{USAGE}");
            Ok(0)
        }
        _ => {
            progress::say(&format!("no verb `{verb}`\n\n{USAGE}"));
            Ok(2)
        }
    };
    match code {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        Err(e) => {
            progress::say(&format!("xtask {verb}: {e:#}"));
            if verb == "vm" {
                // Any lower code may be the command's own.
                return ExitCode::from(u8::try_from(vm::BROKEN).unwrap_or(1));
            }
            if e.downcast_ref::<usage::Usage>().is_some() { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}
