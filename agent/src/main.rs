//! The binary `fgm`. All of it is in the library's `cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    fgm::cli::main()
}
