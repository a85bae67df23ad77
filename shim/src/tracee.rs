//! A thread under ptrace: the few verbs that the rest needs, with the errno kept.
//!
//! nix' wrappers lose real-time signals in wait statuses and have no extended-state register set, so this file calls
//! `ptrace(2)` and `waitpid(2)` through libc. A vanished thread is [`TraceError::Gone`], an event and not a mistake.
//!
//! Unsafe code: `ptrace` takes addresses; each call below passes the address of a live local of the size that the
//! request documents.
#![allow(unsafe_code)]

use std::io;

/// Why a request to a traced thread failed.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The thread has ended (`ESRCH`).
    #[error("process {0} has ended")]
    Gone(i32),
    #[error("cannot {what} process {tid}: {source}")]
    Os {
        what: &'static str,
        tid: i32,
        source: io::Error,
    },
    /// A step of an injected script failed.
    #[error("step {index} ({what}) failed in process {tid}: {source}")]
    Step {
        tid: i32,
        index: usize,
        what: String,
        source: io::Error,
    },
    /// The thread stopped where no script stops.
    #[error("process {tid} stopped unexpectedly ({status:?}) while it was being prepared")]
    Unexpected { tid: i32, status: Status },
    /// The vrun area's place is taken.
    #[error("process {tid} uses the addresses {start:#x}-{end:#x}, which vrun needs for itself")]
    AreaTaken { tid: i32, start: u64, end: u64 },
}

pub type Result<T> = std::result::Result<T, TraceError>;

/// A decoded wait status (`waitpid(2)`, `ptrace(2)`), for any signal number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Exited(i32),
    Killed {
        signal: i32,
        core: bool,
    },
    /// Stopped by a signal: job control seen by the parent, or a signal-delivery stop seen by the tracer.
    Stopped(i32),
    /// A ptrace event stop (`PTRACE_EVENT_*`) and the signal that came with it.
    Event {
        event: i32,
        signal: i32,
    },
    Continued,
}

impl Status {
    /// From the raw word.
    pub fn from_raw(raw: i32) -> Self {
        if libc::WIFEXITED(raw) {
            Self::Exited(libc::WEXITSTATUS(raw))
        } else if libc::WIFSIGNALED(raw) {
            Self::Killed {
                signal: libc::WTERMSIG(raw),
                core: libc::WCOREDUMP(raw),
            }
        } else if libc::WIFCONTINUED(raw) {
            Self::Continued
        } else {
            match raw >> 16 {
                0 => Self::Stopped(libc::WSTOPSIG(raw)),
                event => Self::Event {
                    event,
                    signal: libc::WSTOPSIG(raw),
                },
            }
        }
    }

    /// The stop for an interrupt (or a group stop).
    fn is_interrupt(&self) -> bool {
        matches!(
            self,
            Self::Event {
                event: libc::PTRACE_EVENT_STOP,
                ..
            }
        )
    }

    /// Whether the process is over.
    pub fn is_end(self) -> bool {
        matches!(self, Self::Exited(_) | Self::Killed { .. })
    }
}

/// Waits for `pid` (or any child or tracee with -1). `None` when `flags` has `WNOHANG` and nothing is there, or when there is
/// nobody to wait for. Restarts after `EINTR`.
pub fn wait(pid: i32, flags: i32) -> io::Result<Option<(i32, Status)>> {
    loop {
        let mut raw = 0;
        // SAFETY: `raw` is a live local of the type that waitpid writes.
        let found = unsafe { libc::waitpid(pid, &raw mut raw, flags | libc::__WALL) };
        match found {
            0 => return Ok(None),
            -1 => match io::Error::last_os_error() {
                error if error.raw_os_error() == Some(libc::EINTR) => {}
                error if error.raw_os_error() == Some(libc::ECHILD) => return Ok(None),
                error => return Err(error),
            },
            tid => return Ok(Some((tid, Status::from_raw(raw)))),
        }
    }
}

/// `PTRACE_GET_RSEQ_CONFIGURATION`'s answer, without padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RseqConfiguration {
    pub address: u64,
    pub size: u32,
    pub signature: u32,
    pub flags: u32,
}

/// `NT_X86_XSTATE` (`elf.h`).
const NT_X86_XSTATE: usize = 0x202;
/// Largest extended state that is accepted (AMX has 11 KiB).
const XSTATE_LIMIT: usize = 64 * 1024;

/// Number of bytes of a `siginfo_t`.
pub const SIGINFO: usize = 128;

/// Whether a `siginfo_t` tells of a fault: the kernel takes such a signal before any other of the thread, even one that is
/// blocked, so that it cannot be queued again (`dequeue_synchronous_signal` in `kernel/signal.c`).
fn is_fault(info: &[u8; SIGINFO]) -> bool {
    let word = |at: usize| i32::from_le_bytes([info[at], info[at + 1], info[at + 2], info[at + 3]]);
    let faults = [
        libc::SIGSEGV,
        libc::SIGBUS,
        libc::SIGILL,
        libc::SIGTRAP,
        libc::SIGFPE,
        libc::SIGSYS,
    ];
    faults.contains(&word(0)) && word(8) > 0
}

/// A thread that this thread of ours traces. Methods other than [`Tracee::interrupt`] need it stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tracee {
    tid: i32,
}

impl Tracee {
    /// Attaches without stopping (`PTRACE_SEIZE`). `options` are `PTRACE_O_*`.
    pub fn seize(tid: i32, options: i32) -> Result<Self> {
        let tracee = Self { tid };
        tracee.request("trace", libc::PTRACE_SEIZE, 0, options as usize)?;
        Ok(tracee)
    }

    /// One that this thread of ours traces already: the child of a tracee (`PTRACE_O_TRACECLONE` and its like), or what a
    /// thread has become by exec.
    pub fn attached(tid: i32) -> Self {
        Self { tid }
    }

    /// Changes the `PTRACE_O_*`.
    pub fn set_options(self, options: i32) -> Result<()> {
        self.request("set options of", libc::PTRACE_SETOPTIONS, 0, options as usize)
    }

    /// What came with the event that it stopped for: the new thread or process, as we number it.
    pub fn event_message(self) -> Result<u64> {
        let mut message = 0_u64;
        let address = &raw mut message as usize;
        self.request("read the event of", libc::PTRACE_GETEVENTMSG, 0, address)?;
        Ok(message)
    }

    /// Its thread id, in our PID namespace.
    pub fn tid(self) -> i32 {
        self.tid
    }

    /// Makes it stop (`PTRACE_INTERRUPT`); the stop is reported to [`wait`].
    pub fn interrupt(self) -> Result<()> {
        self.request("interrupt", libc::PTRACE_INTERRUPT, 0, 0)
    }

    /// Lets it run on, with a signal to deliver (0: none).
    pub fn resume(self, signal: i32) -> Result<()> {
        self.request("continue", libc::PTRACE_CONT, 0, signal as usize)
    }

    /// The same up to where its next system call begins or ends (`PTRACE_SYSCALL`): it stops there by `SIGTRAP`.
    pub fn resume_to_call(self, signal: i32) -> Result<()> {
        self.request("continue", libc::PTRACE_SYSCALL, 0, signal as usize)
    }

    /// Keeps it in its group stop but reports its continuation (`PTRACE_LISTEN`).
    pub fn listen(self) -> Result<()> {
        self.request("listen to", libc::PTRACE_LISTEN, 0, 0)
    }

    /// Ends the tracing and lets it run, with a signal to deliver (0: none).
    pub fn detach(self, signal: i32) -> Result<()> {
        self.request("detach from", libc::PTRACE_DETACH, 0, signal as usize)
    }

    /// The same for a thread that stands behind a script. A `SIGCONT` that came meanwhile has continued its process, but is
    /// told to the parent only by a thread that begins to look for signals (`get_signal`, `kernel/signal.c`): so does
    /// one that has stopped for our interrupt, and not one that has stopped for a trap.
    pub fn let_go(self) -> Result<()> {
        self.interrupt()?;
        self.resume(0)?;
        self.wait_halted()?;
        self.detach(0)
    }

    /// Waits for its next stop or end.
    pub fn wait(self) -> Result<Status> {
        match wait(self.tid, 0) {
            Ok(Some((_, status))) => Ok(status),
            Ok(None) => Err(TraceError::Gone(self.tid)),
            Err(source) => Err(TraceError::Os {
                what: "wait for",
                tid: self.tid,
                source,
            }),
        }
    }

    /// Waits for its next stop. Its end is [`TraceError::Gone`], and is left to be waited for by whoever looks after it:
    /// how it ended is theirs to know.
    pub fn wait_stop(self) -> Result<Status> {
        let status = self.next_stop(0)?;
        Ok(status.expect("without WNOHANG there is a status"))
    }

    /// The same with the flags of waitid(2): nothing if with `WNOHANG` it has not stopped yet.
    fn next_stop(self, flags: i32) -> Result<Option<Status>> {
        let flags = flags | libc::WEXITED | libc::WSTOPPED | libc::WNOWAIT | libc::__WALL;
        loop {
            // SAFETY: all zeroes is a siginfo_t.
            let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
            // SAFETY: `info` is a live local of the type that waitid writes.
            if unsafe { libc::waitid(libc::P_PID, self.tid as libc::id_t, &raw mut info, flags) } == 0 {
                return match info.si_code {
                    0 => Ok(None), // left as it was
                    libc::CLD_EXITED | libc::CLD_KILLED | libc::CLD_DUMPED => Err(TraceError::Gone(self.tid)),
                    _ => self.wait().map(Some),
                };
            }
            match io::Error::last_os_error() {
                error if error.raw_os_error() == Some(libc::EINTR) => {}
                error if error.raw_os_error() == Some(libc::ECHILD) => return Err(TraceError::Gone(self.tid)),
                source => {
                    return Err(TraceError::Os {
                        what: "wait for",
                        tid: self.tid,
                        source,
                    });
                }
            }
        }
    }

    /// Waits until it stops for our interrupt, or in a group stop (job control); gives the signal of that, or `SIGTRAP`. What
    /// comes in between is delivered.
    pub fn wait_halted(self) -> Result<i32> {
        loop {
            match self.wait_stop()? {
                Status::Event {
                    event: libc::PTRACE_EVENT_STOP,
                    signal,
                } => return Ok(signal),
                Status::Stopped(signal) => self.resume(signal)?,
                _ => self.resume(0)?,
            }
        }
    }

    /// Stops its process by job control: this thread, which is stopped and stays so, gets the signal, whose action has to be
    /// the default. One that is traced goes on in a group stop as long as its tracer wants, and takes part in it when it is
    /// let go. Where the kernel ignores the signal, in a group that nobody looks after (setpgid(2), "orphaned process
    /// group"), `SIGSTOP` takes its place. Nothing is done if the process is continued at the same time.
    pub fn stop_process(self, pid: i32, signal: i32) -> Result<()> {
        let blocked = self.blocked()?;
        self.set_blocked(blocked & !(1 << (signal - 1)))?;
        // SAFETY: plain numbers.
        if unsafe { libc::syscall(libc::SYS_tgkill, pid, self.tid, signal) } == -1 {
            return Err(self.error("stop"));
        }
        self.resume(0)?;
        let mut delivered = false;
        let stopped = loop {
            match self.wait_stop()? {
                Status::Stopped(number) => {
                    if number == signal {
                        // So that it does not go on if that is ignored.
                        self.interrupt()?;
                        delivered = true;
                    }
                    self.resume(number)?;
                }
                Status::Event {
                    event: libc::PTRACE_EVENT_STOP,
                    signal: libc::SIGTRAP,
                } => {
                    let waits = |info: &[u8; SIGINFO]| info[..4] == signal.to_le_bytes();
                    if delivered {
                        break signal == libc::SIGSTOP;
                    } else if !self.pending(false)?.iter().any(waits) {
                        break true; // SIGCONT has taken it away
                    }
                    self.resume(0)?;
                }
                Status::Event { .. } if delivered => break true,
                _ => self.resume(0)?,
            }
        };
        self.set_blocked(blocked)?;
        if stopped {
            Ok(())
        } else {
            self.stop_process(pid, libc::SIGSTOP)
        }
    }

    /// Waits until it stops for our interrupt, keeping what else happens: signals that would have been delivered meanwhile
    /// are given back for the caller to deliver later, in order, with their `siginfo_t`.
    pub fn wait_interrupted(self) -> Result<Vec<[u8; SIGINFO]>> {
        let mut signals = Vec::new();
        while self.look_interrupted(&mut signals, 0)?.is_none() {}
        Ok(signals)
    }

    /// The same without waiting: the signal of the group stop (job control) that it is in, or `SIGTRAP`, once it has
    /// stopped; nothing before.
    /// `SIGSTOP`, which nobody can keep waiting, is not held up.
    pub fn has_interrupted(self, signals: &mut Vec<[u8; SIGINFO]>) -> Result<Option<i32>> {
        self.look_interrupted(signals, libc::WNOHANG)
    }

    fn look_interrupted(self, signals: &mut Vec<[u8; SIGINFO]>, flags: i32) -> Result<Option<i32>> {
        while let Some(status) = self.next_stop(flags)? {
            match status {
                // A group stop is reported as an event too, with the stopping signal instead of SIGTRAP.
                Status::Event {
                    event: libc::PTRACE_EVENT_STOP,
                    signal,
                } => {
                    if !self.has_faulted()? {
                        return Ok(Some(signal));
                    }
                    // The interrupt came between the fault and its signal, which would come before that of any trap.
                    self.resume(0)?;
                    self.interrupt()?;
                }
                Status::Event { .. } => self.resume(0)?,
                Status::Stopped(libc::SIGSTOP) if flags != 0 => self.resume(libc::SIGSTOP)?,
                Status::Stopped(signal) => {
                    let info = self.signal_info()?;
                    if is_fault(&info) {
                        // What the thread itself has just done: its handler begins here, and nowhere else.
                        self.resume(signal)?;
                    } else {
                        signals.push(info);
                        self.resume(0)?;
                    }
                }
                _ => {}
            }
        }
        Ok(None)
    }

    /// Whether it is about to get the signal of a fault.
    fn has_faulted(self) -> Result<bool> {
        let lets_in = !self.blocked()?;
        let pending = self.pending(false)?;
        Ok(pending
            .iter()
            .any(|info| is_fault(info) && lets_in & 1 << (info[0] - 1) != 0))
    }

    /// General registers.
    pub fn registers(self) -> Result<libc::user_regs_struct> {
        // SAFETY: plain integers; all zeroes is a value.
        let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
        self.request(
            "read registers of",
            libc::PTRACE_GETREGS,
            0,
            &raw mut registers as usize,
        )?;
        Ok(registers)
    }

    /// Sets the general registers.
    pub fn set_registers(self, registers: &libc::user_regs_struct) -> Result<()> {
        self.request(
            "set registers of",
            libc::PTRACE_SETREGS,
            0,
            std::ptr::from_ref(registers) as usize,
        )
    }

    /// The extended state, in the standard format of XSAVE.
    pub fn xstate(self) -> Result<Vec<u8>> {
        let mut bytes = vec![0; XSTATE_LIMIT];
        let mut vector = libc::iovec {
            iov_base: bytes.as_mut_ptr().cast(),
            iov_len: bytes.len(),
        };
        self.request(
            "read extended state of",
            libc::PTRACE_GETREGSET,
            NT_X86_XSTATE,
            &raw mut vector as usize,
        )?;
        bytes.truncate(vector.iov_len);
        Ok(bytes)
    }

    /// Sets the extended state: of the length and in the layout that [`Tracee::xstate`] has here.
    pub fn set_xstate(self, bytes: &[u8]) -> Result<()> {
        let mut vector = libc::iovec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        };
        self.request(
            "set extended state of",
            libc::PTRACE_SETREGSET,
            NT_X86_XSTATE,
            &raw mut vector as usize,
        )
    }

    /// The blocked mask (`PTRACE_GETSIGMASK`): the saved one, when the thread is in a call with a temporary mask.
    pub fn blocked(self) -> Result<u64> {
        let mut mask = 0_u64;
        self.request(
            "read the signal mask of",
            libc::PTRACE_GETSIGMASK,
            8,
            &raw mut mask as usize,
        )?;
        Ok(mask)
    }

    /// Sets the blocked mask.
    pub fn set_blocked(self, mask: u64) -> Result<()> {
        self.request(
            "set the signal mask of",
            libc::PTRACE_SETSIGMASK,
            8,
            &raw const mask as usize,
        )
    }

    /// The `siginfo_t` of the signal-delivery stop it is in.
    pub fn signal_info(self) -> Result<[u8; SIGINFO]> {
        let mut info = [0; SIGINFO];
        self.request(
            "read the signal of",
            libc::PTRACE_GETSIGINFO,
            0,
            info.as_mut_ptr() as usize,
        )?;
        Ok(info)
    }

    /// Replaces the `siginfo_t` of the signal-delivery stop it is in.
    pub fn set_signal_info(self, info: &[u8; SIGINFO]) -> Result<()> {
        self.request("set the signal of", libc::PTRACE_SETSIGINFO, 0, info.as_ptr() as usize)
    }

    /// Pending signals, of the process (`shared`) or of this thread, without taking them.
    pub fn pending(self, shared: bool) -> Result<Vec<[u8; SIGINFO]>> {
        /// `struct __ptrace_peeksiginfo_args`.
        #[repr(C)]
        struct Arguments {
            offset: u64,
            flags: u32,
            number: i32,
        }
        const BATCH: usize = 32;
        let mut found: Vec<[u8; SIGINFO]> = Vec::new();
        loop {
            let mut batch = [[0; SIGINFO]; BATCH];
            let arguments = Arguments {
                offset: found.len() as u64,
                flags: u32::from(shared),
                number: BATCH as i32,
            };
            // SAFETY: both addresses are of live locals; the kernel writes at most `number` siginfo.
            let count = unsafe {
                libc::ptrace(
                    libc::PTRACE_PEEKSIGINFO,
                    self.tid,
                    &raw const arguments,
                    batch.as_mut_ptr().cast::<u8>(),
                )
            };
            let count = usize::try_from(count).map_err(|_| self.error("read pending signals of"))?;
            found.extend_from_slice(&batch[..count]);
            if count < BATCH {
                return Ok(found);
            }
        }
    }

    /// Its `rseq(2)` registration, if it has one.
    pub fn rseq(self) -> Result<Option<RseqConfiguration>> {
        /// `struct ptrace_rseq_configuration`.
        #[repr(C)]
        #[derive(Default)]
        struct Raw {
            address: u64,
            size: u32,
            signature: u32,
            flags: u32,
            pad: u32,
        }
        let mut raw = Raw::default();
        self.request(
            "read the rseq registration of",
            libc::PTRACE_GET_RSEQ_CONFIGURATION,
            size_of::<Raw>(),
            &raw mut raw as usize,
        )?;
        Ok((raw.address != 0).then_some(RseqConfiguration {
            address: raw.address,
            size: raw.size,
            signature: raw.signature,
            flags: raw.flags,
        }))
    }

    /// Whether system calls of its own are handed to a signal handler (`PR_SET_SYSCALL_USER_DISPATCH`). A kernel that
    /// cannot tell (before Linux 6.4) is taken to say no.
    pub fn has_syscall_user_dispatch(self) -> Result<bool> {
        const PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG: libc::c_uint = 0x4211;
        // struct ptrace_sud_config: mode, selector, offset, length.
        let mut configuration = [0_u64; 4];
        let result = self.request(
            "read the system call dispatch of",
            PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG,
            size_of_val(&configuration),
            &raw mut configuration as usize,
        );
        match result {
            Err(TraceError::Os { source, .. }) if source.raw_os_error() == Some(libc::EIO) => Ok(false),
            other => other.map(|()| configuration[0] != 0),
        }
    }

    /// Executes one instruction and waits for the trap after it.
    pub fn single_step(self) -> Result<()> {
        while !self.goes_to(libc::PTRACE_SINGLESTEP, &|status| {
            *status == Status::Stopped(libc::SIGTRAP)
        })? {}
        Ok(())
    }

    /// Makes the system call that it stands before, and waits behind it. Other than a step that takes no signal.
    pub fn make_call(self) -> Result<()> {
        // One stop before the call and one after it.
        for _ in 0..2 {
            while !self.goes_to(libc::PTRACE_SYSCALL, &|status| {
                *status == Status::Stopped(libc::SIGTRAP)
            })? {}
        }
        // From there the kernel would not look whether a call that was interrupted before is to be made again.
        self.interrupt()?;
        while !self.goes_to(libc::PTRACE_CONT, &Status::is_interrupt)? {}
        Ok(())
    }

    /// Lets it run to its next stop. False: that was for an interrupt which came when it had stopped already.
    fn goes_to(self, how: libc::c_uint, wanted: &dyn Fn(&Status) -> bool) -> Result<bool> {
        let mut signal = 0;
        loop {
            self.request("continue", how, 0, signal as usize)?;
            match self.wait_stop()? {
                status if wanted(&status) => return Ok(true),
                // A stop of job control that began meanwhile: what was wanted is still to come.
                Status::Stopped(libc::SIGSTOP) => signal = libc::SIGSTOP,
                status if status.is_interrupt() => return Ok(false),
                status => return Err(TraceError::Unexpected { tid: self.tid, status }),
            }
        }
    }

    fn request(self, what: &'static str, request: libc::c_uint, address: usize, data: usize) -> Result<()> {
        // SAFETY: callers pass addresses of live objects of the size that the request documents, or plain numbers.
        match unsafe { libc::ptrace(request, self.tid, address, data) } {
            -1 => Err(self.error(what)),
            _ => Ok(()),
        }
    }

    fn error(self, what: &'static str) -> TraceError {
        match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ESRCH) => TraceError::Gone(self.tid),
            source => TraceError::Os {
                what,
                tid: self.tid,
                source,
            },
        }
    }
}
