//! Timers that send signals: `setitimer(2)` and `timer_create(2)`.
//!
//! ```text
//!                                          of a process that is away
//! ITIMER_REAL (and alarm(2))               stays with the deputy
//! ITIMER_VIRTUAL, ITIMER_PROF, POSIX ones  are the guest's, and none of the deputy's
//! ```
//!
//! A timer of CPU time ticks where that is used, and only the kernel that has both the timer and its process counts overruns.
//!
//! A timer goes on with what remained of it. One on a clock that the job takes with it (`CLOCK_MONOTONIC`,
//! `CLOCK_BOOTTIME`) fires at the same reading of that clock, so that no phase is lost.
//!
//! How often a timer fired while its signal waited, the kernel tells only when it delivers that: a signal that waits when
//! the process is stopped is sent again by the timer, which then counts from its last interval.
//!
//! Of a timer on `CLOCK_REALTIME` the kernel does not tell whether it waits for a time of day or for time to pass. One
//! that is due at a whole second waits for that second: a relative one is due there once in a million times, because the
//! two readings between which it is asked are less than a microsecond apart.

use super::{Answers, Result, words};
use crate::capture::CaptureError;
use crate::proc::{ProcDir, TimerInfo};
use crate::restore::Home;
use crate::sys;
use vrun_image::state::{IntervalTimer, PosixTimer, Process, TimerNotify};
use vrun_shim::{Expect, Injection, Script, TraceError, area};

const SECOND: u64 = 1_000_000_000;
/// Timers that are asked by one script: each takes four of its some five hundred steps.
const BATCH: usize = 64;
/// `linux/prctl.h`, since Linux 6.15.
pub(crate) const PR_TIMER_CREATE_RESTORE_IDS: i32 = 77;

pub(super) struct Questions {
    interval_timers: [u64; 3],
}

pub(super) fn ask(script: &mut Script) -> Questions {
    let interval_timers = [0, 1, 2].map(|which| {
        let timer = script.reserve(32);
        script.call("ask for an interval timer", libc::SYS_getitimer, &[which, timer]);
        timer
    });
    Questions { interval_timers }
}

impl Questions {
    pub(super) fn read(self, answers: &Answers<'_>) -> Result<[IntervalTimer; 3]> {
        let mut timers = [IntervalTimer::default(); 3];
        for (timer, address) in timers.iter_mut().zip(self.interval_timers) {
            let [interval, interval_micros, value, value_micros] = answers.words(address)?;
            timer.interval = interval * 1_000_000 + interval_micros;
            timer.value = value * 1_000_000 + value_micros;
        }
        Ok(timers)
    }
}

/// Whether a clock counts the CPU time of somebody: it ticks where that is used. Dynamic ones are negative
/// (clock_getcpuclockid(3)).
pub fn counts_cpu_time(clock: i32) -> bool {
    matches!(
        clock,
        ..0 | libc::CLOCK_PROCESS_CPUTIME_ID | libc::CLOCK_THREAD_CPUTIME_ID
    )
}

/// The CPU clock of the thread that made the timer, whichever that was. The kernel shows it as a dynamic clock without a
/// thread in it: bit 2 says thread, the bits above are a TID (`linux/posix-timers.h`).
fn is_own_thread_clock(clock: i32) -> bool {
    clock == libc::CLOCK_THREAD_CPUTIME_ID || (clock < 0 && clock & 4 != 0 && !(clock >> 3) == 0)
}

/// Whether a kernel of this version, as `uname(2)` gives it, lets the caller choose the number of a new timer.
pub fn are_chosen_at(release: &str) -> bool {
    let mut numbers = release
        .split(['.', '-', ' '])
        .map(|word| word.parse::<u32>().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    (next(), next()) >= (6, 15)
}

/// Stops the timers of a process that goes on elsewhere, but for that of real time. Where numbers can be chosen, they are
/// given back; else they are kept for the return.
pub fn withdraw(leader: &Injection, timers: &[TimerInfo]) -> std::result::Result<(), TraceError> {
    let delete = sys::timer_ids_can_be_chosen();
    for batch in timers.chunks(BATCH) {
        let mut script = Script::new(area::DATA.start);
        let off = script.reserve(32);
        for timer in batch {
            let id = timer.id as u64;
            match delete {
                true => script.call("give a timer back", libc::SYS_timer_delete, &[id]),
                false => script.call("stop a timer", libc::SYS_timer_settime, &[id, 0, off, 0]),
            };
        }
        leader.run(&script)?;
    }
    let mut script = Script::new(area::DATA.start);
    let off = script.reserve(32);
    for which in [libc::ITIMER_VIRTUAL, libc::ITIMER_PROF] {
        script.call("stop an interval timer", libc::SYS_setitimer, &[which as u64, off, 0]);
    }
    leader.run(&script).map(drop)
}

/// Gives back those numbers of a deputy that its process has no more.
pub fn give_back(leader: &Injection, timers: &[TimerInfo], process: &Process) -> std::result::Result<(), TraceError> {
    let has = |timer: &&TimerInfo| process.signals.timers.iter().any(|kept| kept.id == timer.id);
    for batch in timers.chunks(BATCH) {
        let mut script = Script::new(area::DATA.start);
        for timer in batch.iter().filter(|timer| !has(timer)) {
            script.call("give a timer back", libc::SYS_timer_delete, &[timer.id as u64]);
        }
        leader.run(&script)?;
    }
    Ok(())
}

/// The timers of `timer_create(2)`, ascending.
pub(super) fn posix(leader: &Injection, directory: &ProcDir) -> Result<Vec<PosixTimer>> {
    let mut listed = directory.timers()?;
    listed.sort_unstable_by_key(|timer| timer.id);
    let threads = directory.threads()?;
    let mut timers = Vec::with_capacity(listed.len());
    for batch in listed.chunks(BATCH) {
        let mut script = Script::new(area::DATA.start);
        let mut questions = Vec::new();
        for timer in batch {
            let (id, clock) = (timer.id as u64, readable(timer.clock) as u64);
            let [before, setting, after] = [16, 32, 16].map(|size| script.reserve(size));
            let cpu = counts_cpu_time(timer.clock);
            let read_clock = |script: &mut Script, address| {
                if !cpu {
                    script.call("read a clock", libc::SYS_clock_gettime, &[clock, address]);
                }
            };
            read_clock(&mut script, before);
            script.call("ask for a timer", libc::SYS_timer_gettime, &[id, setting]);
            read_clock(&mut script, after);
            let overrun = script.call("ask for a timer's overrun", libc::SYS_timer_getoverrun, &[id]);
            questions.push((before, setting, after, overrun));
        }
        let answers = Answers::run(leader, &script)?;
        for (timer, (before, setting, after, overrun)) in batch.iter().zip(questions) {
            if is_own_thread_clock(timer.clock) && threads.len() > 1 {
                return Err(CaptureError::Unsupported(format!(
                    "its timer {} counts the CPU time of one of its threads; which one, the kernel does not tell",
                    timer.id
                )));
            }
            let nanoseconds = |address| -> Result<u64> {
                let [seconds, rest] = answers.words(address)?;
                Ok(seconds.saturating_mul(SECOND).saturating_add(rest))
            };
            let (interval, remaining) = (nanoseconds(setting)?, nanoseconds(setting + 16)?);
            let earliest = nanoseconds(before)? + remaining;
            let latest = nanoseconds(after)? + remaining;
            let whole = latest / SECOND * SECOND;
            let follows = readable(timer.clock) == libc::CLOCK_REALTIME || timer.clock == libc::CLOCK_TAI;
            let absolute = follows && remaining != 0 && whole >= earliest;
            timers.push(PosixTimer {
                id: timer.id,
                clock: timer.clock,
                notify: notify(directory, timer)?,
                value: timer.value,
                interval,
                remaining,
                expires: match (counts_cpu_time(timer.clock) || remaining == 0, absolute) {
                    (true, _) => 0,
                    (false, true) => whole,
                    (false, false) => earliest,
                },
                absolute,
                overrun: answers.result(overrun) as i32,
            });
        }
    }
    Ok(timers)
}

/// The clock that tells the time of one that can also wake the machine.
fn readable(clock: i32) -> i32 {
    match clock {
        libc::CLOCK_REALTIME_ALARM => libc::CLOCK_REALTIME,
        libc::CLOCK_BOOTTIME_ALARM => libc::CLOCK_BOOTTIME,
        other => other,
    }
}

fn notify(directory: &ProcDir, timer: &TimerInfo) -> Result<TimerNotify> {
    let signal = timer.signal;
    Ok(match (timer.silent, timer.thread) {
        (true, _) => TimerNotify::None,
        (false, None) => TimerNotify::Process { signal },
        // A thread that has ended is notified no more.
        (false, Some(0)) => TimerNotify::None,
        (false, Some(tid)) => {
            let status = directory.thread(tid)?.status()?;
            let tid = status.namespace_pids.last().copied().unwrap_or(tid);
            TimerNotify::Thread { signal, tid }
        }
    })
}

/// Whether the kernel itself will queue this pending signal again: its timer is set to have just fired.
pub(super) fn queued_by_timer(process: &Process, info: &[u8]) -> bool {
    let mut timers = process.signals.timers.iter();
    timers.any(|timer| repeats(timer) && sent(timer, info))
}

/// `asm-generic/siginfo.h`.
const SI_TIMER: i32 = -2;

/// On a clock of the job's own, again and again: one of its signals may wait while it goes on.
fn repeats(timer: &PosixTimer) -> bool {
    let own = matches!(readable(timer.clock), libc::CLOCK_MONOTONIC | libc::CLOCK_BOOTTIME);
    own && timer.interval != 0 && timer.expires > timer.interval
}

pub(super) fn steps(script: &mut Script, process: &Process, home: Home) {
    let real = matches!(home, Home::Here { .. });
    let timers = process.signals.interval_timers.iter().enumerate();
    for (which, timer) in timers.filter(|(which, timer)| timer.value != 0 && (real || *which > 0)) {
        let value = [timer.interval, timer.value].map(|micros| [micros / 1_000_000, micros % 1_000_000]);
        let arguments = [which as u64, script.data(&words(value.as_flattened())), 0];
        let what = format_args!("set interval timer {which}");
        script.call(what, libc::SYS_setitimer, &arguments);
    }
    let Some(last) = process.signals.timers.last() else {
        return;
    };
    let choose = |script: &mut Script, on: u64| {
        let arguments = [PR_TIMER_CREATE_RESTORE_IDS as u64, on, 0, 0, 0];
        script.call("choose the numbers of timers", libc::SYS_prctl, &arguments);
    };
    if sys::timer_ids_can_be_chosen() {
        choose(script, 1);
        for timer in &process.signals.timers {
            create(script, timer);
        }
        choose(script, 0);
    } else if home != Home::Deputy {
        // A fresh process counts from 0. In a deputy they are still there.
        let mut timers = process.signals.timers.iter().peekable();
        for id in 0..=last.id {
            match timers.next_if(|timer| timer.id == id) {
                Some(timer) => create(script, timer),
                None => {
                    let arguments = [libc::CLOCK_MONOTONIC as u64, 0, script.reserve(4)];
                    script.call("pass over a timer", libc::SYS_timer_create, &arguments);
                    script.call("pass over a timer", libc::SYS_timer_delete, &[id as u64]);
                }
            }
        }
    }
    for timer in process.signals.timers.iter().filter(|timer| timer.remaining != 0) {
        arm(script, process, timer);
    }
}

fn create(script: &mut Script, timer: &PosixTimer) {
    // struct sigevent: the value, the signal, the kind, the thread; 64 bytes.
    let (signal, kind, tid) = match timer.notify {
        TimerNotify::None => (0, libc::SIGEV_NONE, 0),
        TimerNotify::Process { signal } => (signal, libc::SIGEV_SIGNAL, 0),
        TimerNotify::Thread { signal, tid } => (signal, libc::SIGEV_THREAD_ID, tid),
    };
    let mut event = timer.value.to_le_bytes().to_vec();
    event.extend([signal, kind, tid].iter().flat_map(|word| word.to_le_bytes()));
    event.resize(64, 0);
    let event = script.data(&event);
    let id = script.data(&timer.id.to_le_bytes());
    let what = format_args!("create timer {}", timer.id);
    // To wake the machine takes a privilege over it.
    let clock = i64::from(readable(timer.clock)) as u64;
    script.call(what, libc::SYS_timer_create, &[clock, event, id]);
}

fn arm(script: &mut Script, process: &Process, timer: &PosixTimer) {
    let own = matches!(readable(timer.clock), libc::CLOCK_MONOTONIC | libc::CLOCK_BOOTTIME);
    let mut pending = process
        .signals
        .pending
        .iter()
        .chain(process.threads.iter().flat_map(|thread| &thread.pending));
    let fired = repeats(timer) && pending.any(|info| sent(timer, info));
    let (flags, value) = match (own || timer.absolute, fired) {
        (_, true) => (libc::TIMER_ABSTIME, timer.expires - timer.interval),
        (true, false) => (libc::TIMER_ABSTIME, timer.expires),
        (false, false) => (0, timer.remaining),
    };
    let setting = [timer.interval, value].map(|nanoseconds| [nanoseconds / SECOND, nanoseconds % SECOND]);
    let setting = script.data(&words(setting.as_flattened()));
    let what = format_args!("arm timer {}", timer.id);
    let arguments = [timer.id as u64, flags as u64, setting, 0];
    script.step(what, libc::SYS_timer_settime, &arguments, Expect::Success);
}

/// Whether a pending signal is this timer's.
fn sent(timer: &PosixTimer, info: &[u8]) -> bool {
    self::timer(info) == Some(timer.id)
}

/// The timer that has sent a signal, if one has. siginfo_t: the code at 8, a timer's id at 16.
pub(super) fn timer(info: &[u8]) -> Option<i32> {
    let int = |at: usize| Some(i32::from_le_bytes(*info.get(at..)?.first_chunk()?));
    int(16).filter(|_| int(8) == Some(SI_TIMER))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_tells_whose_numbers_are_chosen() {
        assert!(are_chosen_at("6.18.44-fc #1 SMP") && are_chosen_at("6.15-rc1") && are_chosen_at("7.0"));
        assert!(!are_chosen_at("6.12.43+deb13-amd64") && !are_chosen_at("5.19.0") && !are_chosen_at("odd"));
    }

    #[test]
    fn cpu_clocks_are_told_apart() {
        let process = |pid: i32| !pid << 3 | 2;
        let thread = |tid: i32| !tid << 3 | 6;
        assert!(is_own_thread_clock(thread(0)) && is_own_thread_clock(libc::CLOCK_THREAD_CPUTIME_ID));
        assert!(!is_own_thread_clock(thread(77)) && !is_own_thread_clock(process(0)));
        assert!(counts_cpu_time(process(77)) && !counts_cpu_time(libc::CLOCK_TAI));
    }
}
