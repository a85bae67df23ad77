//! Signals: what each does, and what waits to be delivered.

use super::{Answers, Result, timers, words};
use crate::restore::Home;
use vrun_image::state::{Process, SignalAction, Thread};
use vrun_shim::{Script, TraceError, Tracee};

/// Where the dispositions will be.
pub(super) struct Questions {
    actions: Vec<(i32, u64)>,
}

pub(super) fn ask(script: &mut Script) -> Questions {
    let mut ask = |signal: i32| {
        let action = script.reserve(32);
        let arguments = [signal as u64, 0, action, 8];
        let what = format_args!("ask what signal {signal} does");
        script.call(what, libc::SYS_rt_sigaction, &arguments);
        (signal, action)
    };
    Questions {
        actions: (1..=64).map(&mut ask).collect(),
    }
}

impl Questions {
    /// Those that are not the default.
    pub(super) fn read(self, answers: &Answers<'_>) -> Result<Vec<SignalAction>> {
        let mut found = Vec::new();
        for (signal, address) in self.actions {
            let [handler, flags, restorer, mask] = answers.words(address)?;
            if (handler, flags, mask) != (0, 0, 0) {
                found.push(SignalAction {
                    signal,
                    handler,
                    flags,
                    restorer,
                    mask,
                });
            }
        }
        Ok(found)
    }
}

/// What waits for the process (`shared`) or for the thread, in order.
pub(super) fn pending(tracee: Tracee, shared: bool) -> std::result::Result<Vec<Vec<u8>>, TraceError> {
    Ok(tracee.pending(shared)?.iter().map(|info| info.to_vec()).collect())
}

pub(super) fn process_steps(script: &mut Script, process: &Process, home: Home) {
    for signal in (1..=64).filter(|signal| ![libc::SIGKILL, libc::SIGSTOP].contains(signal)) {
        // struct kernel_sigaction: handler, flags, restorer, mask. Those not in the image are the default: all zero.
        let action = process.signals.actions.iter().find(|action| action.signal == signal);
        let action = action.map_or([0; 4], |action| {
            [action.handler, action.flags, action.restorer, action.mask]
        });
        let address = script.data(&words(&action));
        let arguments = [signal as u64, address, 0, 8];
        let what = format_args!("set what signal {signal} does");
        script.call(what, libc::SYS_rt_sigaction, &arguments);
    }
    if home == Home::Away {
        return; // what is pending stayed with the deputy, which forwards what comes
    }
    for info in to_queue(process, &process.signals.pending, home) {
        let arguments = [process.pid as u64, number(info), script.data(info)];
        script.call("queue a pending signal", libc::SYS_rt_sigqueueinfo, &arguments);
    }
}

pub(super) fn thread_steps(script: &mut Script, process: &Process, thread: &Thread, home: Home) {
    if home == Home::Away {
        return;
    }
    for info in to_queue(process, &thread.pending, home) {
        let arguments = [process.pid as u64, thread.tid as u64, number(info), script.data(info)];
        let what = "queue a pending signal of the thread";
        script.call(what, libc::SYS_rt_tgsigqueueinfo, &arguments);
    }
}

/// What of it is to be queued.
fn to_queue<'a>(process: &'a Process, pending: &'a [Vec<u8>], home: Home) -> impl Iterator<Item = &'a Vec<u8>> {
    let fresh = matches!(home, Home::Here { .. });
    pending
        .iter()
        .filter(move |info| !(fresh && timers::queued_by_timer(process, info)))
}

/// Of the `siginfo_t`.
fn number(info: &[u8]) -> u64 {
    info.first_chunk()
        .map_or(0, |bytes| u64::from(u32::from_le_bytes(*bytes)))
}
