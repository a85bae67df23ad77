//! Who a process is and what it may: limits, credentials, personality, and what `prctl(2)` keeps for a whole process.

use super::{Answers, Result, ask_prctl, set_prctl, words};
use crate::restore::Home;
use vrun_image::state::Process;
use vrun_shim::{Expect, Script};

pub(super) struct Questions {
    dumpable: usize,
    subreaper: u64,
}

pub(super) fn ask(script: &mut Script) -> Questions {
    let (dumpable, _) = ask_prctl(script, libc::PR_GET_DUMPABLE, 0);
    let (_, subreaper) = ask_prctl(script, libc::PR_GET_CHILD_SUBREAPER, 4);
    Questions { dumpable, subreaper }
}

impl Questions {
    /// Whether it is dumpable, and a subreaper.
    pub(super) fn read(self, answers: &Answers<'_>) -> Result<(u32, bool)> {
        let subreaper = answers.int(self.subreaper)? != 0;
        Ok((answers.result(self.dumpable) as u32, subreaper))
    }
}

pub(super) fn process_steps(script: &mut Script, process: &Process, home: Home) {
    script.call("set the personality", libc::SYS_personality, &[process.personality]);
    // A limit above this host's hard limit is not worth failing for.
    for (resource, limit) in process.limits.iter().enumerate() {
        let arguments = [0, resource as u64, script.data(&words(&[limit.soft, limit.hard])), 0];
        let what = format_args!("set limit {resource}");
        script.step(what, libc::SYS_prlimit64, &arguments, Expect::Anything);
    }
    if home != Home::Away {
        let subreaper = u64::from(process.subreaper);
        set_prctl(
            script,
            "the subreaper attribute",
            libc::PR_SET_CHILD_SUBREAPER,
            subreaper,
        );
    }
}

pub(super) fn thread_steps(script: &mut Script, process: &Process, home: Home) {
    if home != Home::Deputy && process.credentials.uid[1] != 0 {
        // The capabilities that came with the user namespace were for building the process only.
        let header = script.data(&[0x2008_0522_u32.to_le_bytes(), [0; 4]].concat());
        let none = script.reserve(24);
        script.call("drop capabilities", libc::SYS_capset, &[header, none]);
    }
}
