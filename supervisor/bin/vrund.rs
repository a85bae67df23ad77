//! See [`vrun_supervisor::commands::vrund`].

use std::process::ExitCode;

fn main() -> ExitCode {
    vrun_supervisor::commands::vrund::main()
}
