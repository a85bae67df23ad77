//! CPU time used: a restored process starts with none, and what it had used before is added to what it asks for.
//!
//! ```text
//!   restore      remember(process)                     the book of this supervisor: one job
//!   clock_gettime, times, getrusage ─► notified ─► answer()
//!                                                      what the kernel counts since then + what the book says
//!   capture      what the kernel counts + what the book says
//! ```
//!
//! The calls are notified only under the filters of restored jobs and of guests. A job that was never moved has no book
//! and is never asked. A job that comes home has its deputy's time there: what it used away is not in it.

use super::{Answers, Result, words};
use crate::memory::TargetMemory;
use crate::notify::{AnswerError, Listener, Notification};
use crate::proc::{ProcDir, ProcError};
use crate::sys;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use vrun_image::state::{Process, ThreadUsage, Usage};
use vrun_shim::Script;

/// A clock tick of `/proc` and `times(2)`: `USER_HZ` is 100 on x86.
const TICK: u64 = 10_000_000;
const SECOND: u64 = 1_000_000_000;

/// Asks `getrusage(who)`; gives the address of the answer.
pub(super) fn ask(script: &mut Script, who: i32) -> u64 {
    // struct rusage: two struct timeval and 14 words.
    let usage = script.reserve(144);
    let arguments = [i64::from(who) as u64, usage];
    script.call("ask for the CPU time used", libc::SYS_getrusage, &arguments);
    usage
}

/// In user mode and in the kernel, in nanoseconds.
pub(super) fn read(answers: &Answers<'_>, usage: u64) -> Result<(u64, u64)> {
    let [user, user_micros, system, system_micros] = answers.words(usage)?;
    let nanoseconds = |seconds: u64, micros: u64| seconds * SECOND + micros * 1_000;
    Ok((nanoseconds(user, user_micros), nanoseconds(system, system_micros)))
}

/// A process or a thread as long as it lives: its number here and when it started.
type Life = (i32, u64);

/// What was used before, of all processes that were restored by this supervisor.
#[derive(Default)]
struct Book {
    processes: BTreeMap<Life, Entry>,
    threads: BTreeMap<Life, ThreadUsage>,
}

struct Entry {
    /// In its own PID namespace.
    inner_pid: i32,
    before: Usage,
    /// What was said last, in user mode and in the kernel: neither may go back.
    said: (u64, u64),
}

static BOOK: Mutex<Book> = Mutex::new(Book {
    processes: BTreeMap::new(),
    threads: BTreeMap::new(),
});

fn with_book<T>(look: impl FnOnce(&mut Book) -> T) -> T {
    look(&mut BOOK.lock().unwrap_or_else(PoisonError::into_inner))
}

fn life(directory: &ProcDir) -> std::result::Result<Life, ProcError> {
    Ok((directory.pid(), directory.stat()?.start_time))
}

/// Takes note of a process that was just rebuilt, with all its threads; `pid` is its number here.
pub fn remember(pid: i32, process: &Process) -> std::result::Result<(), ProcError> {
    let directory = ProcDir::open(pid)?;
    let mut threads = Vec::new();
    for tid in directory.threads()? {
        let thread = directory.thread(tid)?;
        let inner = thread.status()?.namespace_pids.last().copied().unwrap_or(tid);
        if let Some(known) = process.threads.iter().find(|thread| thread.tid == inner) {
            threads.push((life(&thread)?, known.used));
        }
    }
    let life = life(&directory)?;
    with_book(|book| {
        book.threads.extend(threads);
        let entry = Entry {
            inner_pid: process.pid,
            before: process.used,
            said: (0, 0),
        };
        book.processes.insert(life, entry);
    });
    Ok(())
}

/// What a process had used before it was restored; nothing for any other.
pub(super) fn before(directory: &ProcDir) -> std::result::Result<Usage, ProcError> {
    if with_book(|book| book.processes.is_empty()) {
        return Ok(Usage::default());
    }
    let life = life(directory)?;
    Ok(with_book(|book| book.processes.get(&life).map(|entry| entry.before)).unwrap_or_default())
}

/// The same of a thread.
pub(super) fn thread_before(tid: i32) -> std::result::Result<ThreadUsage, ProcError> {
    if with_book(|book| book.threads.is_empty()) {
        return Ok(ThreadUsage::default());
    }
    let life = life(&ProcDir::open(tid)?)?;
    Ok(with_book(|book| book.threads.get(&life).copied()).unwrap_or_default())
}

/// Calls that may ask for CPU time.
pub const CALLS: [i64; 3] = [libc::SYS_clock_gettime, libc::SYS_times, libc::SYS_getrusage];

/// Answers a notified call of [`CALLS`] if it asks for the CPU time of a restored process. False: the kernel's own answer
/// is the right one.
pub fn answer(listener: &Listener, notification: &Notification) -> std::result::Result<bool, AnswerError> {
    if !CALLS.contains(&i64::from(notification.number)) || with_book(|book| book.processes.is_empty()) {
        return Ok(false);
    }
    let Ok(Some(answer)) = Caller::of(notification.pid).and_then(|caller| caller.answer(notification)) else {
        return Ok(false); // it is gone, or none of ours
    };
    let memory = TargetMemory::open(notification.pid);
    // Whoever we have looked at and are about to write to is the caller only if it still waits.
    if !listener.is_valid(notification.id) {
        return Err(AnswerError::Gone);
    }
    let written =
        answer.address == 0 || memory.is_ok_and(|memory| memory.write_all(answer.address, &answer.bytes).is_ok());
    if written {
        listener.answer(notification.id, answer.result)?;
    } else {
        listener.fail(notification.id, libc::EFAULT)?;
    }
    Ok(true)
}

/// What a call returns, and what it writes.
struct Answer {
    result: i64,
    address: u64,
    bytes: Vec<u8>,
}

/// Who calls.
struct Caller {
    process: ProcDir,
    thread: ProcDir,
    life: Life,
}

type Found<T> = std::result::Result<T, ProcError>;

impl Caller {
    fn of(tid: i32) -> Found<Self> {
        let thread = ProcDir::open(tid)?;
        let process = ProcDir::open(thread.status()?.process)?;
        let life = life(&process)?;
        Ok(Self { process, thread, life })
    }

    fn answer(&self, notification: &Notification) -> Found<Option<Answer>> {
        let [first, second, ..] = notification.args;
        match i64::from(notification.number) {
            libc::SYS_clock_gettime => self.clock(first as i32, second),
            libc::SYS_times => self.times(first),
            _ => self.usage(first as i32, second),
        }
    }

    /// Its book entry and the inner PID, if it has one.
    fn entry(&self) -> Option<(Usage, i32)> {
        with_book(|book| {
            let entry = book.processes.get(&self.life)?;
            Some((entry.before, entry.inner_pid))
        })
    }

    /// Clocks of CPU time: bit 2 of a dynamic one says thread, the bits above are a PID or TID (`linux/posix-timers.h`).
    fn clock(&self, clock: i32, address: u64) -> Found<Option<Answer>> {
        const SCHEDULED: i32 = 2;
        let Some((before, inner_pid)) = self.entry() else {
            return Ok(None);
        };
        let (thread, number) = match clock {
            libc::CLOCK_PROCESS_CPUTIME_ID => (false, 0),
            libc::CLOCK_THREAD_CPUTIME_ID => (true, 0),
            ..0 if clock & 3 == SCHEDULED => (clock & 4 != 0, !(clock >> 3)),
            _ => return Ok(None),
        };
        let time = match (thread, number) {
            (false, pid) if pid == 0 || pid == inner_pid => before.user + before.system + self.process_time()?,
            (true, 0) => self.thread_time(&self.thread)?,
            (true, tid) => match self.sibling(tid)? {
                Some(thread) => self.thread_time(&thread)?,
                None => return Ok(None),
            },
            _ => return Ok(None),
        };
        Ok(Some(Answer {
            result: 0,
            address,
            bytes: words(&[time / SECOND, time % SECOND]),
        }))
    }

    /// The thread of this process that it knows as `inner`.
    fn sibling(&self, inner: i32) -> Found<Option<ProcDir>> {
        for tid in self.process.threads()? {
            let thread = self.process.thread(tid)?;
            if thread.status()?.namespace_pids.last() == Some(&inner) {
                return Ok(Some(thread));
            }
        }
        Ok(None)
    }

    /// Since the process was restored, in nanoseconds.
    fn process_time(&self) -> Found<u64> {
        sys::cpu_time_of(self.process.pid()).ok_or(ProcError::Gone(self.process.pid()))
    }

    fn thread_time(&self, thread: &ProcDir) -> Found<u64> {
        let life = life(thread)?;
        let before = with_book(|book| book.threads.get(&life).copied()).unwrap_or_default();
        Ok(before.user + before.system + thread.run_time()?)
    }

    fn times(&self, address: u64) -> Found<Option<Answer>> {
        let Some((before, _)) = self.entry() else {
            return Ok(None);
        };
        let stat = self.process.stat()?;
        let (user, system) = self.split(&before, self.process_time()?, &stat);
        let children = [
            before.children_user + stat.children_user_time * TICK,
            before.children_system + stat.children_system_time * TICK,
        ];
        let ticks = [user, system, children[0], children[1]].map(|time| time / TICK);
        // Ticks since the machine was started, of which the job's monotonic clock knows how many to add.
        let ahead = crate::capture::monotonic_ahead(self.process.pid()) / i128::from(TICK);
        Ok(Some(Answer {
            result: sys::ticks().wrapping_add(ahead as i64),
            address,
            bytes: words(&ticks),
        }))
    }

    /// In user mode and in the kernel: the kernel tells the sum exactly and the parts in ticks.
    fn split(&self, before: &Usage, time: u64, stat: &crate::proc::Stat) -> (u64, u64) {
        let (user, system) = part(time, stat.user_time, stat.system_time);
        let total = (before.user + user, before.system + system);
        with_book(|book| {
            let Some(entry) = book.processes.get_mut(&self.life) else {
                return total;
            };
            entry.said = (entry.said.0.max(total.0), entry.said.1.max(total.1));
            entry.said
        })
    }

    fn usage(&self, who: i32, address: u64) -> Found<Option<Answer>> {
        let Some((before, _)) = self.entry() else {
            return Ok(None);
        };
        let of_thread = who == libc::RUSAGE_THREAD;
        let directory = if of_thread { &self.thread } else { &self.process };
        let stat = directory.stat()?;
        let children = who == libc::RUSAGE_CHILDREN;
        let (user, system) = match who {
            libc::RUSAGE_SELF => self.split(&before, self.process_time()?, &stat),
            libc::RUSAGE_THREAD => {
                let life = life(&self.thread)?;
                let before = with_book(|book| book.threads.get(&life).copied()).unwrap_or_default();
                let (user, system) = part(self.thread.run_time()?, stat.user_time, stat.system_time);
                (before.user + user, before.system + system)
            }
            libc::RUSAGE_CHILDREN if before.children_user + before.children_system != 0 => (
                before.children_user + stat.children_user_time * TICK,
                before.children_system + stat.children_system_time * TICK,
            ),
            _ => return Ok(None),
        };
        let mut usage = [0; 18];
        (usage[0], usage[1]) = (user / SECOND, user % SECOND / 1_000);
        (usage[2], usage[3]) = (system / SECOND, system % SECOND / 1_000);
        let [minor, major] = if children { stat.children_faults } else { stat.faults };
        (usage[8], usage[9]) = (minor, major);
        if !children {
            let [read, written] = directory.transferred()?;
            (usage[11], usage[12]) = (read / 512, written / 512);
            let status = self.process.status()?;
            usage[4] = status.peak_resident / 1024;
            let mut switches = [0, 0];
            let threads = if of_thread {
                vec![self.thread.pid()]
            } else {
                self.process.threads()?
            };
            for tid in threads {
                let [voluntary, forced] = self.process.thread(tid)?.status()?.context_switches;
                switches = [switches[0] + voluntary, switches[1] + forced];
            }
            (usage[16], usage[17]) = (switches[0], switches[1]);
        }
        Ok(Some(Answer {
            result: 0,
            address,
            bytes: words(&usage),
        }))
    }
}

/// Divides a time by two counts of ticks.
fn part(time: u64, user_ticks: u64, system_ticks: u64) -> (u64, u64) {
    let ticks = u128::from(user_ticks + system_ticks);
    if ticks == 0 {
        return (time, 0);
    }
    let user = (u128::from(time) * u128::from(user_ticks) / ticks) as u64;
    (user, time - user)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_add_up() {
        assert_eq!(part(1_000, 0, 0), (1_000, 0));
        assert_eq!(part(1_000, 1, 3), (250, 750));
        let (user, system) = part(u64::MAX / 16, 7, 13);
        assert_eq!(user + system, u64::MAX / 16);
    }

    #[test]
    fn our_own_time_is_told() {
        let own = ProcDir::open(std::process::id() as i32).expect("we are here");
        assert!(sys::cpu_time_of(own.pid()).is_some_and(|time| time > 0));
        assert!(own.run_time().expect("the scheduler counts") > 0);
        assert_eq!(before(&own).expect("we are here"), Usage::default());
    }
}
