//! See [`vrun_supervisor::commands::vmigrate`].

use std::process::ExitCode;

fn main() -> ExitCode {
    vrun_supervisor::commands::vmigrate::main()
}
