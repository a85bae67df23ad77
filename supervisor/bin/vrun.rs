//! See [`vrun_supervisor::commands::vrun`].

use std::process::ExitCode;

fn main() -> ExitCode {
    vrun_supervisor::commands::vrun::main()
}
