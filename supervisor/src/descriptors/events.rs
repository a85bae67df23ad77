//! Descriptors that count or tell events: eventfd, timerfd, signalfd, pidfd.
//!
//! Their state is what `/proc/PID/fdinfo` says. A timer begins to count again when the job does ([`arm`]). A pidfd needs
//! its process, so each process of the job opens its own ([`super::place`]); one of a process that has ended and was
//! waited for is made here, from a process that ends at once.

use rustix::event::{EventfdFlags, eventfd};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_gettime,
    timerfd_settime,
};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use vrun_image::state::{FileKind, TimerFile};

use super::tables::{Description, Tables, cannot};
use super::{Result, kernel};
use crate::proc::{FdDetails, ProcDir};

/// What one of them is; none if the description is something else.
pub(super) fn capture(tables: &Tables, description: &Description) -> Result<Option<FileKind>> {
    Ok(Some(match &description.slot.info.details {
        FdDetails::Eventfd { count, semaphore } => FileKind::Event {
            count: *count,
            semaphore: *semaphore,
        },
        FdDetails::Signalfd { mask } => FileKind::Signal { mask: *mask },
        FdDetails::Timerfd(_) => FileKind::Timer(timer(description)?),
        FdDetails::Pidfd { pid: -1 } => FileKind::Process { pid: 0 },
        FdDetails::Pidfd { pid } => match tables.inner_pid(*pid) {
            Some(pid) => FileKind::Process { pid },
            None => match zombie(tables, *pid) {
                Some(pid) => FileKind::Process { pid },
                None => {
                    return description.refuse(tables, format!("is process {pid}, which is not of the job (pidfd)"));
                }
            },
        },
        _ => return Ok(None),
    }))
}

/// The number of an ended process whose parent is one of the job's.
fn zombie(tables: &Tables, pid: i32) -> Option<i32> {
    let directory = ProcDir::open(pid).ok()?;
    let stat = directory.stat().ok()?;
    tables.inner_pid(stat.parent)?;
    directory.status().ok()?.namespace_pids.last().copied()
}

fn timer(description: &Description) -> Result<TimerFile> {
    let refused = cannot("look at", description);
    let fd = description.fetch()?;
    // Asking has the kernel count what has expired meanwhile (`timerfd_gettime`, `fs/timerfd.c`), which fdinfo does not.
    timerfd_gettime(&fd).map_err(|errno| refused(errno.into()))?;
    let found = ProcDir::open(description.pid)?.descriptor(description.slot.number)?;
    let FdDetails::Timerfd(timer) = found.info.details else {
        return Err(refused(io::Error::other("it is no timer any more")));
    };
    Ok(TimerFile {
        clock: timer.clock,
        ticks: timer.ticks,
        set_flags: timer.set_flags,
        remaining: timer.value,
        interval: timer.interval,
    })
}

/// Makes one; timers do not count yet. None for other kinds.
pub(super) fn restore(kind: &FileKind) -> io::Result<Option<OwnedFd>> {
    Ok(Some(match kind {
        FileKind::Event { count, semaphore } => {
            let mut flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
            flags.set(EventfdFlags::SEMAPHORE, *semaphore);
            let fd = eventfd(0, flags)?;
            if *count != 0 {
                rustix::io::write(&fd, &count.to_ne_bytes())?;
            }
            fd
        }
        FileKind::Signal { mask } => kernel::signalfd(*mask)?,
        FileKind::Timer(timer) => timerfd_create(clock(timer.clock)?, TimerfdFlags::CLOEXEC)?,
        FileKind::Process { .. } => kernel::ended_process()?,
        // Keeps the number free.
        FileKind::Queue { .. } => eventfd(0, EventfdFlags::CLOEXEC)?,
        _ => return Ok(None),
    }))
}

fn clock(number: i32) -> io::Result<TimerfdClockId> {
    Ok(match number {
        libc::CLOCK_REALTIME => TimerfdClockId::Realtime,
        libc::CLOCK_MONOTONIC => TimerfdClockId::Monotonic,
        libc::CLOCK_BOOTTIME => TimerfdClockId::Boottime,
        libc::CLOCK_REALTIME_ALARM => TimerfdClockId::RealtimeAlarm,
        libc::CLOCK_BOOTTIME_ALARM => TimerfdClockId::BoottimeAlarm,
        other => return Err(io::Error::other(format!("clock {other} is not known here"))),
    })
}

/// Lets a timer go on: relative to now, as the job's clocks do; a time of day stays that. `realtime`: when the job was
/// frozen, nanoseconds since the epoch.
pub(super) fn arm(fd: &OwnedFd, timer: &TimerFile, realtime: u64) -> io::Result<()> {
    let flags = TimerfdTimerFlags::from_bits_retain(timer.set_flags);
    let absolute = flags.contains(TimerfdTimerFlags::ABSTIME);
    if timer.remaining != 0 || timer.interval != 0 {
        let of_day = [libc::CLOCK_REALTIME, libc::CLOCK_REALTIME_ALARM].contains(&timer.clock);
        let base = match (absolute, of_day) {
            (false, _) => 0,
            (true, true) => realtime,
            (true, false) if timer.clock == libc::CLOCK_MONOTONIC => crate::sys::clock(libc::CLOCK_MONOTONIC),
            (true, false) => crate::sys::clock(libc::CLOCK_BOOTTIME),
        };
        let time = |nanoseconds: u64| Timespec {
            tv_sec: (nanoseconds / 1_000_000_000).cast_signed(),
            tv_nsec: (nanoseconds % 1_000_000_000).cast_signed(),
        };
        let value = Itimerspec {
            it_interval: time(timer.interval),
            it_value: time(base + timer.remaining.max(1)),
        };
        timerfd_settime(fd, flags, &value)?;
    }
    if timer.ticks != 0 {
        kernel::set_ticks(fd.as_fd(), timer.ticks)?;
    }
    Ok(())
}
