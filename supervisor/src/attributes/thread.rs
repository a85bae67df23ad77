//! What the kernel keeps for one thread: its name, and the addresses by which it reads and writes the thread's memory.

use super::{Answers, Result, ask_prctl, set_prctl, usage, words};
use crate::sys;
use vrun_image::state::{AlternateStack, RobustList, Rseq, Thread, ThreadControls, ThreadUsage};
use vrun_shim::{Expect, Script, TraceError, Tracee};

pub(super) struct Questions {
    name: u64,
    timer_slack: usize,
    parent_death_signal: u64,
    clear_child_tid: u64,
    alternate_stack: u64,
    tsc: u64,
    cpuid: usize,
    speculation: [usize; 3],
    memory_failure: usize,
    used: u64,
}

pub(super) struct Pointers {
    pub(super) name: Vec<u8>,
    /// In nanoseconds.
    pub(super) timer_slack: u64,
    pub(super) parent_death_signal: i32,
    pub(super) clear_child_tid: u64,
    pub(super) alternate_stack: AlternateStack,
    pub(super) controls: ThreadControls,
    pub(super) used: ThreadUsage,
}

const ARCH_SET_GS: u64 = 0x1001;
const ARCH_SET_FS: u64 = 0x1002;
const ARCH_GET_CPUID: u64 = 0x1011;
const ARCH_SET_CPUID: u64 = 0x1012;
/// `PR_SPEC_DISABLE`, `PR_SPEC_FORCE_DISABLE`, `PR_SPEC_DISABLE_NOEXEC`: what a thread can have asked for.
const SPECULATION_OFF: u32 = 4 | 8 | 16;

pub(super) fn ask(script: &mut Script) -> Questions {
    let (_, name) = ask_prctl(script, libc::PR_GET_NAME, 16);
    let (timer_slack, _) = ask_prctl(script, libc::PR_GET_TIMERSLACK, 0);
    let (_, parent_death_signal) = ask_prctl(script, libc::PR_GET_PDEATHSIG, 4);
    let (_, clear_child_tid) = ask_prctl(script, libc::PR_GET_TID_ADDRESS, 8);
    let alternate_stack = script.reserve(24);
    let what = "ask for the alternate stack";
    script.call(what, libc::SYS_sigaltstack, &[0, alternate_stack]);
    let (_, tsc) = ask_prctl(script, libc::PR_GET_TSC, 4);
    let mut any = |what, number, arguments: &[u64]| script.step(what, number, arguments, Expect::Anything);
    let cpuid = any("ask for CPUID faulting", libc::SYS_arch_prctl, &[ARCH_GET_CPUID, 0]);
    let speculation = [0, 1, 2].map(|which| {
        let arguments = [libc::PR_GET_SPECULATION_CTRL as u64, which, 0, 0, 0];
        any("ask for a speculation control", libc::SYS_prctl, &arguments)
    });
    let arguments = [libc::PR_MCE_KILL_GET as u64, 0, 0, 0, 0];
    let memory_failure = any("ask for the memory failure policy", libc::SYS_prctl, &arguments);
    let used = usage::ask(script, libc::RUSAGE_THREAD);
    Questions {
        name,
        timer_slack,
        parent_death_signal,
        clear_child_tid,
        alternate_stack,
        tsc,
        cpuid,
        speculation,
        memory_failure,
        used,
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
            controls: ThreadControls {
                no_tsc: answers.int(self.tsc)? == libc::PR_TSC_SIGSEGV,
                no_cpuid: answers.result(self.cpuid) == 0,
                speculation: self
                    .speculation
                    .map(|step| u32::try_from(answers.result(step)).unwrap_or(0)),
                memory_failure: u32::try_from(answers.result(self.memory_failure) + 1).unwrap_or(0),
            },
            used: {
                let (user, system) = usage::read(answers, self.used)?;
                ThreadUsage { user, system }
            },
        })
    }
}

/// Why a stopped thread cannot be captured: with this in force not even our own calls are made.
pub fn reason(tracee: Tracee) -> std::result::Result<Option<&'static str>, TraceError> {
    let dispatched = tracee.has_syscall_user_dispatch()?;
    Ok(dispatched.then_some("it handles system calls itself (PR_SET_SYSCALL_USER_DISPATCH)"))
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

pub(super) fn steps(script: &mut Script, thread: &Thread) {
    let name = script.data(&padded_name(&thread.name));
    set_prctl(script, "the thread's name", libc::PR_SET_NAME, name);
    set_prctl(script, "the timer slack", libc::PR_SET_TIMERSLACK, thread.timer_slack);
    let signal = thread.parent_death_signal as u64;
    set_prctl(script, "the parent-death signal", libc::PR_SET_PDEATHSIG, signal);
    let controls = thread.controls;
    if let Some(policy) = controls.memory_failure.checked_sub(1) {
        let arguments = [
            libc::PR_MCE_KILL as u64,
            libc::PR_MCE_KILL_SET as u64,
            policy.into(),
            0,
            0,
        ];
        let what = "set the memory failure policy";
        script.step(what, libc::SYS_prctl, &arguments, Expect::Anything);
    }
    for (which, control) in controls.speculation.iter().enumerate() {
        if control & SPECULATION_OFF != 0 {
            let value = u64::from(control & SPECULATION_OFF);
            let arguments = [libc::PR_SET_SPECULATION_CTRL as u64, which as u64, value, 0, 0];
            let what = format_args!("set speculation control {which}");
            script.step(what, libc::SYS_prctl, &arguments, Expect::Anything);
        }
    }
    // What the program relies on to be a fault must be one.
    let tsc = if controls.no_tsc {
        libc::PR_TSC_SIGSEGV
    } else {
        libc::PR_TSC_ENABLE
    };
    let arguments = [libc::PR_SET_TSC as u64, tsc as u64, 0, 0, 0];
    script.call("set the use of the time-stamp counter", libc::SYS_prctl, &arguments);
    if controls.no_cpuid {
        script.call("make CPUID fault", libc::SYS_arch_prctl, &[ARCH_SET_CPUID, 0]);
    }
    let (fs, gs) = (thread.registers.fs_base, thread.registers.gs_base);
    script.call("set the FS base", libc::SYS_arch_prctl, &[ARCH_SET_FS, fs]);
    script.call("set the GS base", libc::SYS_arch_prctl, &[ARCH_SET_GS, gs]);
    let stack = thread.alternate_stack;
    // stack_t: address, flags (32 bits), size.
    let stack = script.data(&words(&[
        stack.address,
        u64::from(stack.flags.cast_unsigned()),
        stack.size,
    ]));
    script.call("set the alternate stack", libc::SYS_sigaltstack, &[stack, 0]);
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
