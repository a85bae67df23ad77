//! Signals: what each does, and what waits to be delivered.
//!
//! **Signals that are read from descriptors** (signalfd(2)). A descriptor of a process that moves stays at its origin, and
//! reads there what waits for the deputy. So signals that a signalfd has in its mask, and that no thread lets in, stay there
//! too ([`leave`]): the deputy does not fetch them, those that the process sends itself are sent to the deputy, and calls
//! that have to do with them otherwise bring the job home. What is sent to one thread is read by that alone, which no
//! executor is.

use super::{Answers, Result, timers, words};
use crate::capture::CaptureError;
use vrun_image::state::{Process, SignalAction, Signals, Thread, TimerNotify};
use vrun_shim::tracee::SIGINFO;
use vrun_shim::{Expect, Injection, Script, TraceError, Tracee, area};

/// Signals that are taken by one script.
const BATCH: usize = 64;

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
            let trap = answers.injection.trap_action().filter(|_| signal == libc::SIGTRAP);
            let [handler, flags, restorer, mask] = trap.map_or_else(|| answers.words(address), Ok)?;
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

/// Leaves at the origin what the process reads from descriptors there; `masks` is what their masks have.
pub fn leave(signals: &mut Signals, threads: &[Thread], masks: u64) -> Result<()> {
    let read = threads.iter().fold(masks, |read, thread| read & thread.blocked);
    let reads = |signal: i32| (1..=64).contains(&signal) && read & 1 << (signal - 1) != 0;
    let waits = |info: &Vec<u8>| reads(number(info) as i32);
    let refused = |what: String| {
        Err(CaptureError::Unsupported(format!(
            "{what}, which it reads from a signalfd"
        )))
    };
    for thread in threads {
        if let Some(info) = thread.pending.iter().find(|info| waits(info)) {
            let (tid, signal) = (thread.tid, number(info));
            return refused(format!("its thread {tid} alone was sent signal {signal}"));
        }
    }
    for (timer, signal) in signals.interval_timers.iter().zip([0, libc::SIGVTALRM, libc::SIGPROF]) {
        if timer.value != 0 && reads(signal) {
            return refused(format!("it has a timer of CPU time that sends signal {signal}"));
        }
    }
    for timer in &signals.timers {
        if let TimerNotify::Process { signal } | TimerNotify::Thread { signal, .. } = timer.notify
            && reads(signal)
        {
            return refused(format!("its timer {} sends signal {signal}", timer.id));
        }
    }
    signals.pending.retain(|info| !waits(info));
    signals.read_at_origin = read;
    Ok(())
}

/// Takes signals that wait out of a thread's queues, as it gets them: those that have gone elsewhere. Gives what has come
/// in between instead.
pub fn take(injection: &Injection, gone: &[Vec<u8>]) -> std::result::Result<Vec<[u8; SIGINFO]>, TraceError> {
    let mut left: Vec<&[u8]> = gone.iter().map(Vec::as_slice).collect();
    let mut others = Vec::new();
    while !left.is_empty() {
        let mut script = Script::new(area::DATA.start);
        let at_once = script.reserve(16);
        let mut questions = Vec::new();
        for info in left.iter().take(BATCH) {
            let mask = script.data(&(1_u64 << (number(info) - 1)).to_le_bytes());
            let room = script.reserve(SIGINFO);
            let arguments = [mask, room, at_once, 8];
            let step = script.step("take a signal", libc::SYS_rt_sigtimedwait, &arguments, Expect::Anything);
            questions.push((number(info), step, room));
        }
        let results = injection.run(&script)?;
        for (signal, step, room) in questions {
            let mut bytes = [0; SIGINFO];
            let found = if results[step] < 0 {
                // None of that number is left: a stop or SIGCONT takes others back, the end of a timer its own.
                left.iter().position(|info| number(info) == signal)
            } else {
                injection.read(room, &mut bytes)?;
                left.iter().position(|info| is_same(info, &bytes))
            };
            match found {
                Some(index) => drop(left.remove(index)),
                None if results[step] < 0 => {}
                None => others.push(bytes),
            }
        }
    }
    Ok(others)
}

/// Whether it is the same signal: the count of a timer's overruns is made up when it is taken.
fn is_same(a: &[u8], b: &[u8]) -> bool {
    let part = |range: std::ops::Range<usize>| a.get(range.clone()) == b.get(range);
    match timers::timer(a) {
        Some(_) => part(0..4) && part(8..20),
        None => a == b,
    }
}

/// `struct kernel_sigaction`: handler, flags, restorer, mask. Those not in the image are the default: all zero.
pub fn action(process: &Process, signal: i32) -> [u64; 4] {
    let action = process.signals.actions.iter().find(|action| action.signal == signal);
    action.map_or([0; 4], |action| {
        [action.handler, action.flags, action.restorer, action.mask]
    })
}

pub(super) fn process_steps(script: &mut Script, process: &Process) {
    for signal in (1..=64).filter(|signal| ![libc::SIGKILL, libc::SIGSTOP].contains(signal)) {
        let address = script.data(&words(&action(process, signal)));
        let arguments = [signal as u64, address, 0, 8];
        let what = format_args!("set what signal {signal} does");
        script.call(what, libc::SYS_rt_sigaction, &arguments);
    }
    for info in to_queue(process, &process.signals.pending) {
        let arguments = [process.pid as u64, number(info), script.data(info)];
        script.call("queue a pending signal", libc::SYS_rt_sigqueueinfo, &arguments);
    }
}

pub(super) fn thread_steps(script: &mut Script, process: &Process, thread: &Thread) {
    for info in to_queue(process, &thread.pending) {
        let arguments = [process.pid as u64, thread.tid as u64, number(info), script.data(info)];
        let what = "queue a pending signal of the thread";
        script.call(what, libc::SYS_rt_tgsigqueueinfo, &arguments);
    }
}

/// What of it is to be queued.
fn to_queue<'a>(process: &'a Process, pending: &'a [Vec<u8>]) -> impl Iterator<Item = &'a Vec<u8>> {
    pending.iter().filter(|info| !timers::queued_by_timer(process, info))
}

/// Of the `siginfo_t`.
fn number(info: &[u8]) -> u64 {
    info.first_chunk()
        .map_or(0, |bytes| u64::from(u32::from_le_bytes(*bytes)))
}
