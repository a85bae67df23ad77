//! What the kernel keeps for one thread: its name, and the addresses by which it reads and writes the thread's memory.

use super::{Answers, Result, ask_prctl, set_prctl};
use crate::restore::Home;
use crate::sys;
use vrun_image::state::{AlternateStack, RobustList, Rseq, Thread};
use vrun_shim::{Script, TraceError, Tracee};

pub(super) struct Questions {
    name: u64,
    timer_slack: usize,
    parent_death_signal: u64,
    clear_child_tid: u64,
    alternate_stack: u64,
}

pub(super) struct Pointers {
    pub(super) name: Vec<u8>,
    /// In nanoseconds.
    pub(super) timer_slack: u64,
    pub(super) parent_death_signal: i32,
    pub(super) clear_child_tid: u64,
    pub(super) alternate_stack: AlternateStack,
}

pub(super) fn ask(script: &mut Script) -> Questions {
    let (_, name) = ask_prctl(script, libc::PR_GET_NAME, 16);
    let (timer_slack, _) = ask_prctl(script, libc::PR_GET_TIMERSLACK, 0);
    let (_, parent_death_signal) = ask_prctl(script, libc::PR_GET_PDEATHSIG, 4);
    let (_, clear_child_tid) = ask_prctl(script, libc::PR_GET_TID_ADDRESS, 8);
    let alternate_stack = script.reserve(24);
    let what = "ask for the alternate stack";
    script.call(what, libc::SYS_sigaltstack, &[0, alternate_stack]);
    Questions {
        name,
        timer_slack,
        parent_death_signal,
        clear_child_tid,
        alternate_stack,
    }
}

impl Questions {
    pub(super) fn read(self, answers: &Answers<'_>) -> Result<Pointers> {
        let name = answers.bytes(self.name, 16)?;
        let [address, flags, size] = answers.words(self.alternate_stack)?;
        Ok(Pointers {
            name: name.split(|byte| *byte == 0).next().unwrap_or_default().to_vec(),
            timer_slack: answers.result(self.timer_slack) as u64,
            parent_death_signal: answers.int(self.parent_death_signal)?,
            clear_child_tid: answers.words::<1>(self.clear_child_tid)?[0],
            alternate_stack: AlternateStack {
                address,
                // SS_ONSTACK is a reading of the stack pointer and no setting.
                flags: flags as i32 & !libc::SS_ONSTACK,
                size,
            },
        })
    }
}

/// Asked from outside: the thread itself has no call for it.
pub(super) fn robust_list(tid: i32) -> RobustList {
    sys::robust_list(tid)
        .map(|(head, length)| RobustList { head, length })
        .unwrap_or_default()
}

pub(super) fn rseq(tracee: Tracee) -> std::result::Result<Option<Rseq>, TraceError> {
    Ok(tracee.rseq()?.map(|rseq| Rseq {
        address: rseq.address,
        size: rseq.size,
        signature: rseq.signature,
        flags: rseq.flags,
    }))
}

/// The alternate stack is not among them: the signal frame sets it.
pub(super) fn steps(script: &mut Script, thread: &Thread, home: Home) {
    const ARCH_SET_GS: u64 = 0x1001;
    const ARCH_SET_FS: u64 = 0x1002;
    let name = script.data(&padded_name(&thread.name));
    set_prctl(script, "the thread's name", libc::PR_SET_NAME, name);
    set_prctl(script, "the timer slack", libc::PR_SET_TIMERSLACK, thread.timer_slack);
    if home != Home::Away {
        let signal = thread.parent_death_signal as u64;
        set_prctl(script, "the parent-death signal", libc::PR_SET_PDEATHSIG, signal);
    }
    let (fs, gs) = (thread.registers.fs_base, thread.registers.gs_base);
    script.call("set the FS base", libc::SYS_arch_prctl, &[ARCH_SET_FS, fs]);
    script.call("set the GS base", libc::SYS_arch_prctl, &[ARCH_SET_GS, gs]);
    let address = thread.clear_child_tid;
    script.call("set the child-tid address", libc::SYS_set_tid_address, &[address]);
    let robust = thread.robust_list;
    if robust.length != 0 {
        let arguments = [robust.head, robust.length];
        script.call("set the robust list", libc::SYS_set_robust_list, &arguments);
    }
    if let Some(rseq) = thread.rseq {
        let [size, flags, signature] = [rseq.size, rseq.flags, rseq.signature].map(u64::from);
        script.call("register rseq", libc::SYS_rseq, &[rseq.address, size, flags, signature]);
    }
}

fn padded_name(name: &[u8]) -> [u8; 16] {
    let mut padded = [0; 16];
    let length = name.len().min(15);
    padded[..length].copy_from_slice(&name[..length]);
    padded
}
