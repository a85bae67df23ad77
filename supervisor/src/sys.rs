//! The few system calls that neither nix nor rustix wraps.
//!
//! Unsafe code: `syscall(2)` with live locals of the documented sizes.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// The robust futex list of a thread: head and length (`get_robust_list(2)`; needs the right to trace it).
pub fn robust_list(tid: i32) -> io::Result<(u64, u64)> {
    let (mut head, mut length) = (0_u64, 0_u64);
    // SAFETY: both are live and of the size of a pointer.
    match unsafe { libc::syscall(libc::SYS_get_robust_list, tid, &raw mut head, &raw mut length) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok((head, length)),
    }
}

/// A copy of another process's descriptor (`pidfd_getfd(2)`; needs the right to trace it).
pub fn descriptor_of(pid: i32, number: i32) -> io::Result<OwnedFd> {
    let pidfd = pidfd(pid)?;
    // SAFETY: plain numbers in; the result is a new descriptor that is ours.
    unsafe {
        match libc::syscall(
            libc::SYS_pidfd_getfd,
            std::os::fd::AsRawFd::as_raw_fd(&pidfd),
            number,
            0,
        ) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(fd as i32)),
        }
    }
}

/// `semget(2)`.
pub fn semget(key: i32, semaphores: i32, flags: i32) -> io::Result<i32> {
    // SAFETY: plain numbers.
    match unsafe { libc::semget(key, semaphores, flags) } {
        -1 => Err(io::Error::last_os_error()),
        id => Ok(id),
    }
}

/// The process that has changed a semaphore last, 0 if none has: `GETPID`, semctl(2).
pub fn semaphore_user(set: i32, number: i32) -> io::Result<i32> {
    const GETPID: i32 = 11;
    // SAFETY: plain numbers; the command takes no further argument.
    match unsafe { libc::semctl(set, number, GETPID) } {
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(pid),
    }
}

/// `msgget(2)`.
pub fn msgget(key: i32, flags: i32) -> io::Result<i32> {
    // SAFETY: plain numbers.
    match unsafe { libc::msgget(key, flags) } {
        -1 => Err(io::Error::last_os_error()),
        id => Ok(id),
    }
}

/// What a POSIX message queue holds: at most so many messages of so many bytes, and how many it has.
#[derive(Clone, Copy, Debug)]
pub struct QueueAttributes {
    pub most: i64,
    pub size: usize,
    pub current: i64,
}

fn done(result: i64) -> io::Result<i64> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result),
    }
}

/// `mq_open(2)` with mode 0600; the name has no slash in front.
pub fn queue_open(name: &[u8], flags: i32) -> io::Result<OwnedFd> {
    let name = std::ffi::CString::new(name)?;
    // SAFETY: a live string; without attributes. The result is a new descriptor that is ours.
    unsafe {
        let none = std::ptr::null::<libc::mq_attr>();
        let flags = flags | libc::O_CLOEXEC;
        done(libc::syscall(libc::SYS_mq_open, name.as_ptr(), flags, 0o600, none))
            .map(|fd| OwnedFd::from_raw_fd(fd as i32))
    }
}

/// `mq_unlink(2)`.
#[cfg(test)]
pub fn queue_unlink(name: &[u8]) -> io::Result<()> {
    let name = std::ffi::CString::new(name)?;
    // SAFETY: a live string.
    done(unsafe { libc::syscall(libc::SYS_mq_unlink, name.as_ptr()) }).map(drop)
}

/// `mq_getattr(3)`.
pub fn queue_attributes(queue: &OwnedFd) -> io::Result<QueueAttributes> {
    // SAFETY: all zeroes is an mq_attr, which lives until the call returns.
    unsafe {
        let mut found: libc::mq_attr = std::mem::zeroed();
        let none = std::ptr::null::<libc::mq_attr>();
        done(libc::syscall(
            libc::SYS_mq_getsetattr,
            queue.as_raw_fd(),
            none,
            &raw mut found,
        ))?;
        Ok(QueueAttributes {
            most: found.mq_maxmsg,
            size: found.mq_msgsize as usize,
            current: found.mq_curmsgs,
        })
    }
}

/// `mq_receive(3)`: length and priority.
pub fn queue_receive(queue: &OwnedFd, buffer: &mut [u8]) -> io::Result<(usize, u32)> {
    let (pointer, length) = (buffer.as_mut_ptr(), buffer.len());
    let mut priority = 0_u32;
    // SAFETY: a live buffer with its length, and a live int; without a timeout.
    let got = unsafe {
        let none = std::ptr::null::<libc::timespec>();
        let queue = queue.as_raw_fd();
        libc::syscall(
            libc::SYS_mq_timedreceive,
            queue,
            pointer,
            length,
            &raw mut priority,
            none,
        )
    };
    done(got).map(|length| (length as usize, priority))
}

/// `mq_send(3)`.
pub fn queue_send(queue: &OwnedFd, message: &[u8], priority: u32) -> io::Result<()> {
    let (pointer, length) = (message.as_ptr(), message.len());
    // SAFETY: a live buffer with its length; without a timeout.
    let sent = unsafe {
        let none = std::ptr::null::<libc::timespec>();
        libc::syscall(
            libc::SYS_mq_timedsend,
            queue.as_raw_fd(),
            pointer,
            length,
            priority,
            none,
        )
    };
    done(sent).map(drop)
}

/// `kill(2)` with any signal number.
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: plain numbers.
    match unsafe { libc::kill(pid, signal) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// What `wait4(2)` says of a child or tracee.
#[derive(Clone, Copy, Debug)]
pub struct Reported {
    pub tid: i32,
    /// The raw word.
    pub status: i32,
    /// CPU time of a process that has ended, in microseconds.
    pub user_us: u64,
    pub system_us: u64,
}

/// The next report of any child or tracee, if one waits.
pub fn wait_any() -> io::Result<Option<Reported>> {
    loop {
        let mut status = 0;
        // SAFETY: all zeroes is a rusage; both locals live until the call returns.
        let (found, usage) = unsafe {
            let mut usage: libc::rusage = std::mem::zeroed();
            let found = libc::wait4(-1, &raw mut status, libc::WNOHANG | libc::__WALL, &raw mut usage);
            (found, usage)
        };
        let micros = |time: libc::timeval| (time.tv_sec * 1_000_000 + time.tv_usec) as u64;
        match found {
            0 => return Ok(None),
            -1 => match io::Error::last_os_error() {
                error if error.raw_os_error() == Some(libc::EINTR) => {}
                error if error.raw_os_error() == Some(libc::ECHILD) => return Ok(None),
                error => return Err(error),
            },
            tid => {
                return Ok(Some(Reported {
                    tid,
                    status,
                    user_us: micros(usage.ru_utime),
                    system_us: micros(usage.ru_stime),
                }));
            }
        }
    }
}

/// A descriptor of a process (`pidfd_open(2)`): readable when it has ended, never another one's.
pub fn pidfd(pid: i32) -> io::Result<OwnedFd> {
    open_pidfd(pid, 0)
}

/// The same for one thread: readable when that has ended (Linux 6.9).
pub fn thread_pidfd(tid: i32) -> io::Result<OwnedFd> {
    open_pidfd(tid, libc::O_EXCL) // PIDFD_THREAD, linux/pidfd.h
}

/// Waits until a process or thread that we trace has ended; it is still to be reaped.
pub fn await_end(tid: i32) -> io::Result<()> {
    let flags = libc::WEXITED | libc::WNOWAIT | libc::__WALL;
    loop {
        // SAFETY: all zeroes is a siginfo_t, which lives until the call returns.
        let result = unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            libc::waitid(libc::P_PID, tid as libc::id_t, &raw mut info, flags)
        };
        match io::Error::last_os_error() {
            _ if result == 0 => return Ok(()),
            error if error.raw_os_error() == Some(libc::EINTR) => {}
            // Somebody else has reaped it.
            error if error.raw_os_error() == Some(libc::ECHILD) => return Ok(()),
            error => return Err(error),
        }
    }
}

/// Takes a thread that we trace, and that has ended, out of the kernel's list.
pub fn reap(tid: i32) {
    let flags = libc::WEXITED | libc::WNOHANG | libc::__WALL;
    // SAFETY: a null pointer is allowed; nothing is written.
    unsafe { libc::waitid(libc::P_PID, tid as libc::id_t, std::ptr::null_mut(), flags) };
}

fn open_pidfd(pid: i32, flags: i32) -> io::Result<OwnedFd> {
    // SAFETY: plain numbers; the result is a new descriptor that is ours.
    unsafe {
        match libc::syscall(libc::SYS_pidfd_open, pid, flags) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(fd as i32)),
        }
    }
}

/// `SIGKILL` for a process.
pub fn pidfd_kill(pidfd: std::os::fd::BorrowedFd<'_>) -> io::Result<()> {
    let number = std::os::fd::AsRawFd::as_raw_fd(&pidfd);
    // SAFETY: plain numbers and a null pointer, which is allowed.
    match unsafe { libc::syscall(libc::SYS_pidfd_send_signal, number, libc::SIGKILL, 0, 0) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// What two processes or threads may share (`linux/kcmp.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Shared {
    Memory = 1,
    Descriptors = 2,
    /// Working directory and umask.
    FileSystem = 3,
    /// What is undone of semaphores.
    Undo = 6,
}

/// Whether two processes or threads share something (`kcmp(2)`; needs the right to trace them).
pub fn share(a: i32, b: i32, what: Shared) -> io::Result<bool> {
    // SAFETY: kcmp takes numbers and touches no memory of ours.
    match unsafe { libc::syscall(libc::SYS_kcmp, a, b, what as i32, 0, 0) } {
        -1 => Err(io::Error::last_os_error()),
        order => Ok(order == 0),
    }
}

/// Waits until a child or tracee may have changed its state, at most until `deadline`; false: it is past. `SIGCHLD` must be
/// blocked, and who else waits for it must look at the children when this thread is back there.
pub fn await_children(deadline: std::time::Instant) -> bool {
    let left = deadline.saturating_duration_since(std::time::Instant::now());
    let time = libc::timespec {
        tv_sec: left.as_secs() as libc::time_t,
        tv_nsec: left.subsec_nanos().into(),
    };
    // SAFETY: `mask` is initialised by sigemptyset; live locals.
    unsafe {
        let mut mask: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut mask);
        libc::sigaddset(&raw mut mask, libc::SIGCHLD);
        libc::sigtimedwait(&raw const mask, std::ptr::null_mut(), &raw const time);
    }
    !left.is_zero()
}

/// A clock in nanoseconds (`clock_gettime(2)`).
pub fn clock(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a live local; the clocks that are asked for exist on every kernel that we run on.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// A descriptor that is readable when one of these signals waits. They are blocked in this thread, and in those that it
/// starts.
pub fn watch_signals(signals: &[i32]) -> io::Result<OwnedFd> {
    // SAFETY: `mask` is initialised by sigemptyset; the result is a new descriptor that is ours.
    unsafe {
        let mut mask: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut mask);
        for signal in signals {
            libc::sigaddset(&raw mut mask, *signal);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const mask, std::ptr::null_mut());
        match libc::signalfd(-1, &raw const mask, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(fd)),
        }
    }
}

/// Makes a signal wait for this process for ever: blocked in this thread, and in those that it starts.
pub fn hold_signal(signal: i32) -> io::Result<()> {
    // SAFETY: `mask` is initialised by sigemptyset; kill takes numbers.
    unsafe {
        let mut mask: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut mask);
        libc::sigaddset(&raw mut mask, signal);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const mask, std::ptr::null_mut());
        match libc::kill(libc::getpid(), signal) {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }
}

/// The signals that wait at such a descriptor (`signalfd(2)`: 128 bytes each, the number first).
pub fn take_signals(fd: std::os::fd::BorrowedFd<'_>) -> Vec<i32> {
    let mut buffer = [0_u8; 4096];
    let length = rustix::io::read(fd, &mut buffer).unwrap_or(0);
    let number = |entry: &[u8]| entry.first_chunk().map_or(0, |bytes| i32::from_le_bytes(*bytes));
    buffer[..length].chunks_exact(128).map(number).collect()
}

/// Takes what makes an eventfd readable. To be called when poll said that it is.
pub fn drain(fd: std::os::fd::BorrowedFd<'_>) {
    let mut buffer = [0_u8; 4096];
    let _ = rustix::io::read(fd, &mut buffer);
}

/// Whether `timer_create(2)` takes the number of the new timer from its caller (Linux 6.15).
pub fn timer_ids_can_be_chosen() -> bool {
    const GET: libc::c_ulong = 2;
    // SAFETY: plain numbers.
    unsafe { libc::prctl(crate::attributes::timers::PR_TIMER_CREATE_RESTORE_IDS, GET, 0, 0, 0) >= 0 }
}

/// The CPU time that a process has used, in nanoseconds; nothing if it is gone. Its clock is a dynamic one
/// (clock_getcpuclockid(3)).
pub fn cpu_time_of(pid: i32) -> Option<u64> {
    const SCHEDULED: i32 = 2;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a live local.
    let result = unsafe { libc::clock_gettime(!pid << 3 | SCHEDULED, &raw mut time) };
    (result == 0).then_some(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

/// What `times(2)` returns: ticks since some time before the start of the machine.
pub fn ticks() -> i64 {
    // SAFETY: without an address nothing is written.
    unsafe { libc::times(std::ptr::null_mut()) }
}
