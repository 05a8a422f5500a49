//! The binary `fgm`. All of it is in the library's `cli`.
#![expect(unsafe_code, reason = "mallopt(3) has no safe wrapper")]

use std::process::ExitCode;

fn main() -> ExitCode {
    // An arena for each of the threads, most of which wait most of the time, keeps megabytes that nobody uses.
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes no pointer, and no other thread is there yet.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
    fgm::cli::main()
}
