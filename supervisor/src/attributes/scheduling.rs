//! When a thread runs: policy, priority, processors.

use super::Result;
use crate::proc::ProcDir;
use vrun_image::state::{Scheduling, Thread};
use vrun_shim::{Expect, Script};

/// Of the thread that `directory` is of.
pub(super) fn of(directory: &ProcDir) -> Result<Scheduling> {
    Ok(Scheduling {
        nice: directory.stat()?.nice,
        ..Scheduling::default()
    })
}

/// A nicer priority than the user may give is not worth failing for.
pub(super) fn steps(script: &mut Script, thread: &Thread) {
    let arguments = [libc::PRIO_PROCESS as u64, 0, i64::from(thread.scheduling.nice) as u64];
    script.step("set the priority", libc::SYS_setpriority, &arguments, Expect::Anything);
}
