//! See [`vrun_supervisor::commands::vctl`].

use std::process::ExitCode;

fn main() -> ExitCode {
    vrun_supervisor::commands::vctl::main()
}
