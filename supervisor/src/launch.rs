//! Starting a program under the notification filter, so that it finds exactly what a shell would have given it.
//!
//! The file opts in to unsafe code because what happens between fork(2) and execve(2) must be async-signal-safe system
//! calls on memory that was made ready before, and because signal dispositions have no safe wrapper.
//!
//! ```text
//! supervisor                                  child
//!   fork ────────────────────────────────────▶ dispositions, mask, closed descriptors as the front got them
//!                                              filter::install
//!   ◀──────────── listener (SCM_RIGHTS) ─────  execve   waits: it is a tracked call
//!   a thread serves the listener ───────────▶  …goes on
//!   Launching::finish ◀── end of file (close-on-exec) or the step and its errno
//! ```
#![allow(unsafe_code)]

use crate::filter;
use crate::notify::Listener;
use crate::policy;
use nix::sys::socket::{AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, socketpair};
use std::ffi::{CStr, CString, OsStr, OsString, c_char, c_int};
use std::fs::File;
use std::io::{self, IoSliceMut, Read};
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::ptr;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// What this process inherited from the shell and Rust's runtime then changed: it ignores SIGPIPE and opens
/// `/dev/null` in place of a closed standard stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inherited {
    /// The signal mask, bit N-1 for signal N.
    pub mask: u64,
    /// The ignored signals, in the same form.
    pub ignored: u64,
    /// Which of the descriptors 0, 1, 2 were closed, bit N for N.
    pub closed: u8,
}

static MASK: AtomicU64 = AtomicU64::new(0);
static IGNORED: AtomicU64 = AtomicU64::new(0);
static CLOSED: AtomicU8 = AtomicU8::new(0);

/// The C library calls this before `main`, and so before Rust's runtime starts.
#[used]
#[unsafe(link_section = ".init_array")]
static RECORD_INHERITED: extern "C" fn() = record_inherited;

extern "C" fn record_inherited() {
    let mut mask = 0u64;
    // SAFETY: the kernel writes 8 bytes, the size given. No new mask is set.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_BLOCK,
            ptr::null::<u64>(),
            &raw mut mask,
            8,
        )
    };
    MASK.store(mask, Ordering::Relaxed);
    let mut ignored = 0;
    for signal in 1..=64 {
        let mut action = KernelAction::default();
        // SAFETY: the kernel writes one `struct sigaction` of its own layout; no new action is set.
        let result = unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                ptr::null::<KernelAction>(),
                &raw mut action,
                8,
            )
        };
        if result == 0 && action.handler == libc::SIG_IGN {
            ignored |= 1 << (signal - 1);
        }
    }
    IGNORED.store(ignored, Ordering::Relaxed);
    // SAFETY: F_GETFD takes no argument and changes nothing.
    let closed = (0..3)
        .filter(|fd| unsafe { libc::fcntl(*fd, libc::F_GETFD) } < 0)
        .fold(0, |bits, fd| bits | 1 << fd);
    CLOSED.store(closed, Ordering::Relaxed);
}

/// What this process was given when it was executed.
pub fn inherited() -> Inherited {
    Inherited {
        mask: MASK.load(Ordering::Relaxed),
        ignored: IGNORED.load(Ordering::Relaxed),
        closed: CLOSED.load(Ordering::Relaxed),
    }
}

/// The kernel's `struct sigaction` on x86_64 (the C library's has another order and hides signals 32 and 33).
#[repr(C)]
#[derive(Default)]
struct KernelAction {
    handler: usize,
    flags: u64,
    restorer: usize,
    mask: u64,
}

/// Sets each signal to be ignored (its bit is set) or to its default.
fn set_dispositions(ignored: u64) {
    for signal in 1..=64 {
        let ignore = ignored >> (signal - 1) & 1 == 1;
        let action = KernelAction {
            handler: if ignore { libc::SIG_IGN } else { libc::SIG_DFL },
            ..KernelAction::default()
        };
        // SAFETY: the kernel reads one `struct sigaction`; neither disposition runs code. EINVAL for SIGKILL and
        // SIGSTOP is expected.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                &raw const action,
                ptr::null_mut::<KernelAction>(),
                8,
            )
        };
    }
}

/// Sets all signals to their defaults: an ignored SIGCHLD would make the kernel reap children before they are waited
/// for.
pub fn default_dispositions() {
    set_dispositions(0);
}

/// Sends `signal` to the process `pid`, which must be a child that was not reaped (so that the PID is still its own),
/// with the value of sigqueue(3) if there is one.
pub fn send_signal(pid: i32, signal: i32, value: Option<i64>) -> io::Result<()> {
    let result = match value {
        // SAFETY: kill(2) takes two numbers.
        None => unsafe { libc::kill(pid, signal) },
        Some(value) => {
            let value = libc::sigval {
                sival_ptr: ptr::without_provenance_mut(value as usize),
            };
            // SAFETY: sigqueue(3) copies the value and never follows it.
            unsafe { libc::sigqueue(pid, signal, value) }
        }
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Stops this process as `signal` does by default, so that its parent sees a stop by that signal. Returns when it
/// was continued, or at once if the kernel lets no process of an orphaned process group stop.
pub fn stop_self(signal: i32) {
    let action = KernelAction::default();
    let bit = 1u64 << (signal - 1);
    // SAFETY: the kernel reads one `struct sigaction` (the default, all zero) and one 8-byte mask; raise(3) takes a
    // number.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigaction,
            signal,
            &raw const action,
            ptr::null_mut::<KernelAction>(),
            8,
        );
        libc::raise(signal);
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_UNBLOCK,
            &raw const bit,
            ptr::null_mut::<u64>(),
            8,
        );
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_BLOCK,
            &raw const bit,
            ptr::null_mut::<u64>(),
            8,
        );
    }
}

/// fork(2) of a process with one thread: the child may do anything.
pub fn fork() -> io::Result<nix::unistd::ForkResult> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("this process has more than one thread"));
    }
    // SAFETY: no other thread can hold a lock that the child would miss.
    Ok(unsafe { nix::unistd::fork() }?)
}

/// Closes a descriptor that would survive exec: one that came from the shell, as all of ours are close-on-exec.
pub(crate) fn close_if_inherited(descriptor: RawFd) {
    // SAFETY: nothing of ours owns a descriptor without FD_CLOEXEC above 2; a number that is not open is no harm.
    unsafe {
        if libc::fcntl(descriptor, libc::F_GETFD) & libc::FD_CLOEXEC == 0 {
            libc::close(descriptor);
        }
    }
}

/// What to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramSpec {
    pub program: OsString,
    /// Without the program itself.
    pub args: Vec<OsString>,
    /// In a session of its own, with `/dev/null` as standard input. Standard output and error become `/dev/null` if
    /// they are pipes: whoever reads the id from the pipe of `$(vrun -d …)` waits for all its writers.
    pub detach: bool,
    /// It may use io_uring, and cannot move while it does.
    pub io_uring: bool,
}

impl ProgramSpec {
    /// Program and arguments, for people.
    pub fn command(&self) -> Vec<Vec<u8>> {
        [&self.program]
            .into_iter()
            .chain(&self.args)
            .map(|word| word.as_bytes().to_vec())
            .collect()
    }
}

/// Why a program does not run.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    #[error("{}: not found{}", program.display(), where_to_look(program))]
    NotFound { program: OsString },
    #[error("{}: {}", program.display(), message(*errno))]
    CannotRun { program: OsString, errno: i32 },
    #[error("{}: is {what}; only 64-bit x86 programs can be run", program.display())]
    Architecture { program: OsString, what: String },
    #[error(
        "this shell is already supervised (by another vrun or a container manager), and the kernel allows one only"
    )]
    Nested,
    #[error("the argument {} holds a zero byte", word.display())]
    ZeroByte { word: OsString },
    #[error(transparent)]
    Filter(#[from] filter::FilterError),
    #[error("cannot {step} for the program: {}", message(*errno))]
    Own { step: &'static str, errno: i32 },
}

impl LaunchError {
    /// The exit status of `vrun`, as with nohup(1).
    pub fn exit_status(&self) -> u8 {
        match self {
            LaunchError::NotFound { .. } => 127,
            LaunchError::CannotRun { .. } | LaunchError::Architecture { .. } => 126,
            _ => 125,
        }
    }
}

fn where_to_look(program: &OsStr) -> &'static str {
    if program.as_bytes().contains(&b'/') {
        ", or the interpreter that it names is not"
    } else {
        "; give a path or put its directory into PATH"
    }
}

fn message(errno: i32) -> String {
    let text = io::Error::from_raw_os_error(errno).to_string();
    let end = text.find(" (os error").unwrap_or(text.len());
    text[..end].to_lowercase()
}

/// A child between fork and exec. Its listener must be served, or it never gets to the end of execve.
#[derive(Debug)]
pub struct Launching {
    /// Our child.
    pub pid: i32,
    program: OsString,
    errors: File,
}

/// The child's steps, as they are numbered in its report.
const STEPS: [&str; 5] = [
    "start a session",
    "open /dev/null",
    "install the filter",
    "hand over the listener",
    "exec",
];
const STEP_SESSION: i32 = 0;
const STEP_NULL: i32 = 1;
const STEP_FILTER: i32 = 2;
const STEP_LISTENER: i32 = 3;
const STEP_EXEC: i32 = 4;

/// Forks and gets the listener of the child's filter. To be called with one thread only.
///
/// `inherited` is what the program is to find: what the front got from the shell.
pub fn launch(spec: &ProgramSpec, inherited: Inherited) -> Result<(Launching, Listener), LaunchError> {
    let filter = filter::native(spec.io_uring)?;
    let mut exec = Exec::prepare(spec)?;
    let own = |step| {
        move |error: nix::Error| LaunchError::Own {
            step,
            errno: error as i32,
        }
    };
    let (errors, child_errors) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(own("make a pipe"))?;
    let (socket, child_socket) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)
        .map_err(own("make a socket pair"))?;
    let nulls = if spec.detach { 1 | pipes() << 1 } else { 0 };

    // SAFETY: one thread runs here; the child makes async-signal-safe calls only and never returns.
    let pid = unsafe { libc::fork() };
    if pid < 0 {
        return Err(LaunchError::Own {
            step: "fork",
            errno: last_errno(),
        });
    }
    if pid == 0 {
        let (step, errno) = child(
            &mut exec,
            &filter,
            inherited,
            nulls,
            spec.detach,
            child_socket.as_raw_fd(),
        );
        let report = [step, errno];
        // SAFETY: the report is 8 bytes of plain memory; `_exit` runs nothing of ours.
        unsafe {
            libc::write(
                child_errors.as_raw_fd(),
                report.as_ptr().cast(),
                mem::size_of_val(&report),
            );
            libc::_exit(125);
        }
    }
    drop((child_errors, child_socket));
    let launching = Launching {
        pid,
        program: spec.program.clone(),
        errors: errors.into(),
    };
    match receive_descriptor(&socket) {
        Ok(Some(listener)) => Ok((launching, Listener::new(listener))),
        Ok(None) => Err(launching.finish().err().unwrap_or(LaunchError::Own {
            step: STEPS[3],
            errno: libc::EPIPE,
        })),
        Err(errno) => Err(LaunchError::Own {
            step: STEPS[3],
            errno: errno as i32,
        }),
    }
}

impl Launching {
    /// Waits until the program runs. On an error the child has ended and is reaped.
    pub fn finish(mut self) -> Result<i32, LaunchError> {
        let mut report = Vec::new();
        let read = self.errors.read_to_end(&mut report);
        if let (Ok(_), []) = (&read, report.as_slice()) {
            return Ok(self.pid);
        }
        let mut status = 0;
        // SAFETY: waitpid(2) writes one int. The child has reported and is about to end.
        unsafe { libc::waitpid(self.pid, &raw mut status, 0) };
        let field = |index: usize| {
            let bytes = report
                .get(index * 4..index * 4 + 4)
                .and_then(|bytes| bytes.try_into().ok());
            bytes.map_or(libc::EIO, i32::from_ne_bytes)
        };
        let (step, errno) = (field(0), field(1));
        Err(match (step, errno) {
            (STEP_EXEC, libc::ENOENT | libc::ENOTDIR) => LaunchError::NotFound { program: self.program },
            (STEP_EXEC, errno) => LaunchError::CannotRun {
                program: self.program,
                errno,
            },
            (STEP_FILTER, libc::EBUSY) => LaunchError::Nested,
            (step, errno) => LaunchError::Own {
                step: STEPS.get(step as usize).copied().unwrap_or("start the child"),
                errno,
            },
        })
    }
}

/// Which of standard output and error (bits 0 and 1) are pipes.
fn pipes() -> u8 {
    let is_pipe = |path: &str| std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_fifo());
    u8::from(is_pipe("/proc/self/fd/1")) | u8::from(is_pipe("/proc/self/fd/2")) << 1
}

fn last_errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

fn receive_descriptor(socket: &OwnedFd) -> nix::Result<Option<OwnedFd>> {
    let mut byte = [0];
    let mut buffer = [IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!(RawFd);
    let message = loop {
        match recvmsg::<()>(
            socket.as_raw_fd(),
            &mut buffer,
            Some(&mut space),
            MsgFlags::MSG_CMSG_CLOEXEC,
        ) {
            Err(nix::Error::EINTR) => {}
            other => break other?,
        }
    };
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(descriptors) = control
            && let [descriptor] = descriptors[..]
        {
            // SAFETY: the kernel has just made this descriptor for us; nobody else knows it.
            return Ok(Some(unsafe { OwnedFd::from_raw_fd(descriptor) }));
        }
    }
    Ok(None)
}

unsafe extern "C" {
    /// environ(7): handed on as it is, entries without `=` included.
    static environ: *const *const c_char;
}

/// Everything that execve needs, in memory before the fork.
struct Exec {
    /// Paths to try, as execvp(3) does.
    candidates: Vec<CString>,
    argv: Vec<*const c_char>,
    /// `/bin/sh PATH ARG…` for a script without `#!`: `shell[1]` is set to the path in the child.
    shell: Vec<*const c_char>,
    /// What the pointers lead to; the buffers of `CString`s do not move with the vector.
    _owned: Vec<CString>,
}

impl Exec {
    fn prepare(spec: &ProgramSpec) -> Result<Exec, LaunchError> {
        let c_string =
            |word: &OsStr| CString::new(word.as_bytes()).map_err(|_| LaunchError::ZeroByte { word: word.to_owned() });
        let candidates = candidates(&spec.program)?;
        for candidate in &candidates {
            if check_format(spec, candidate)? {
                break;
            }
        }
        let mut owned = vec![c_string(&spec.program)?];
        for argument in &spec.args {
            owned.push(c_string(argument)?);
        }
        let argv: Vec<_> = owned.iter().map(|word| word.as_ptr()).chain([ptr::null()]).collect();
        let mut shell = vec![c"/bin/sh".as_ptr(), ptr::null()];
        shell.extend(&argv[1..]);
        Ok(Exec {
            candidates,
            argv,
            shell,
            _owned: owned,
        })
    }
}

/// The files that execvp(3) would try.
fn candidates(program: &OsStr) -> Result<Vec<CString>, LaunchError> {
    let name = program.as_bytes();
    let zero_byte = |_| LaunchError::ZeroByte {
        word: program.to_owned(),
    };
    if name.is_empty() {
        return Err(LaunchError::NotFound {
            program: program.to_owned(),
        });
    }
    if name.contains(&b'/') {
        return Ok(vec![CString::new(name).map_err(zero_byte)?]);
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/bin:/usr/bin".into());
    path.as_bytes()
        .split(|byte| *byte == b':')
        .map(|directory| {
            // An empty element is the working directory.
            let prefix = if directory.is_empty() { b"." } else { directory };
            CString::new([prefix, b"/", name].concat()).map_err(zero_byte)
        })
        .collect()
}

/// Looks at the first bytes of a candidate that could be executed: whether it is one, and an error if it never could
/// run here.
fn check_format(spec: &ProgramSpec, candidate: &CStr) -> Result<bool, LaunchError> {
    let path = Path::new(OsStr::from_bytes(candidate.to_bytes()));
    let executable = rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok() && path.is_file();
    let Some(mut file) = executable.then(|| File::open(path).ok()).flatten() else {
        return Ok(executable);
    };
    let mut head = [0; 128];
    let length = file.read(&mut head).unwrap_or(0);
    let head = &head[..length];
    if head.starts_with(b"\x7fELF") {
        // e_ident[EI_CLASS] is 2 for 64 bits, e_machine (offset 18) is 62 for x86_64: elf(5).
        let machine = head.get(18..20).map(|bytes| u16::from_le_bytes([bytes[0], bytes[1]]));
        match (head.get(4), machine) {
            (Some(2), Some(62)) => {}
            (Some(1), Some(3 | 62)) => {
                return Err(LaunchError::Architecture {
                    program: spec.program.clone(),
                    what: policy::executable(path).err().unwrap_or("a 32-bit program").to_owned(),
                });
            }
            _ => {
                return Err(LaunchError::CannotRun {
                    program: spec.program.clone(),
                    errno: libc::ENOEXEC,
                });
            }
        }
    } else if head.starts_with(b"#!") {
        if let Err(what) = policy::executable(path) {
            return Err(LaunchError::Architecture {
                program: spec.program.clone(),
                what: format!("a script for {what}"),
            });
        }
    } else if head.split(|byte| *byte == b'\n').next().is_some_and(|l| l.contains(&0)) {
        // No script: a shell would only complain about its first line.
        return Err(LaunchError::CannotRun {
            program: spec.program.clone(),
            errno: libc::ENOEXEC,
        });
    }
    Ok(true)
}

/// The child's part: returns the step that failed and its errno, or never.
fn child(
    exec: &mut Exec,
    filter: &filter::Program,
    inherited: Inherited,
    nulls: u8,
    detach: bool,
    socket: RawFd,
) -> (c_int, c_int) {
    // SAFETY: async-signal-safe system calls on memory that was made before the fork.
    unsafe {
        if detach && libc::setsid() < 0 {
            return (STEP_SESSION, last_errno());
        }
        for descriptor in 0..3 {
            if nulls >> descriptor & 1 == 1 {
                let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC);
                if null < 0 || libc::dup2(null, descriptor) < 0 {
                    return (STEP_NULL, last_errno());
                }
            } else if inherited.closed >> descriptor & 1 == 1 {
                libc::close(descriptor);
            }
        }
        set_dispositions(inherited.ignored);
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const inherited.mask,
            ptr::null_mut::<u64>(),
            8usize,
        );
        let listener = match filter::install(filter) {
            Ok(listener) => listener,
            Err(error) => return (STEP_FILTER, error.raw_os_error().unwrap_or(libc::EIO)),
        };
        if send_descriptor(socket, listener.as_raw_fd()) < 0 {
            return (STEP_LISTENER, last_errno());
        }
        // It goes with exec (close-on-exec); closing it now would be one more tracked call.
        mem::forget(listener);
        let mut result = libc::ENOENT;
        for candidate in &exec.candidates {
            libc::execve(candidate.as_ptr(), exec.argv.as_ptr(), environ);
            match last_errno() {
                libc::ENOEXEC => {
                    // execvp(3): a script without `#!` is the shell's.
                    exec.shell[1] = candidate.as_ptr();
                    libc::execve(c"/bin/sh".as_ptr(), exec.shell.as_ptr(), environ);
                    return (STEP_EXEC, libc::ENOEXEC);
                }
                libc::EACCES => result = libc::EACCES,
                libc::ENOENT | libc::ENOTDIR | libc::ENODEV | libc::ESTALE | libc::ETIMEDOUT => {}
                other => return (STEP_EXEC, other),
            }
        }
        (STEP_EXEC, result)
    }
}

/// One byte with one descriptor, without allocation. The result is sendmsg(2)'s.
///
/// # Safety
/// Both must be open descriptors.
unsafe fn send_descriptor(socket: RawFd, descriptor: RawFd) -> isize {
    #[repr(C, align(8))]
    struct Control {
        header: libc::cmsghdr,
        descriptor: RawFd,
    }
    let control = Control {
        header: libc::cmsghdr {
            // Not rounded up: CMSG_LEN(4).
            cmsg_len: mem::size_of::<libc::cmsghdr>() + mem::size_of::<RawFd>(),
            cmsg_level: libc::SOL_SOCKET,
            cmsg_type: libc::SCM_RIGHTS,
        },
        descriptor,
    };
    let byte = 0u8;
    let vector = libc::iovec {
        iov_base: (&raw const byte).cast_mut().cast(),
        iov_len: 1,
    };
    // SAFETY: all-zero is a value of this plain struct.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = (&raw const vector).cast_mut();
    message.msg_iovlen = 1;
    message.msg_control = (&raw const control).cast_mut().cast();
    message.msg_controllen = mem::size_of::<Control>();
    // SAFETY: the message and what it points to live until the call returns, and sendmsg(2) only reads them.
    unsafe { libc::sendmsg(socket, &raw const message, libc::MSG_NOSIGNAL) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::notify::RecvError;
    use std::thread;

    fn spec(words: &[&str]) -> ProgramSpec {
        let mut words = words.iter().map(OsString::from);
        ProgramSpec {
            program: words.next().unwrap(),
            args: words.collect(),
            detach: false,
            io_uring: false,
        }
    }

    /// Runs a program with every tracked call continued: its wait status and the numbers of those calls.
    fn run(words: &[&str]) -> Result<(i32, Vec<u32>), LaunchError> {
        let (launching, listener) = launch(&spec(words), inherited())?;
        let door = thread::spawn(move || {
            let mut numbers = Vec::new();
            loop {
                match listener.recv(None) {
                    Ok(notification) => {
                        assert!(listener.is_valid(notification.id));
                        listener.resume(notification.id).unwrap();
                        numbers.push(notification.number);
                    }
                    Err(RecvError::Ended) => return numbers,
                    Err(RecvError::Io(error)) => panic!("{error}"),
                }
            }
        });
        let finished = launching.finish();
        let mut status = 0;
        if let Ok(pid) = finished {
            // SAFETY: waitpid(2) writes one int.
            assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
        }
        let numbers = door.join().unwrap();
        finished.map(|_| (status, numbers))
    }

    #[test]
    fn runs_a_program_and_hears_its_tracked_calls() {
        let (status, numbers) = run(&["sh", "-c", "true 3</dev/null; exit 3"]).unwrap();
        assert_eq!(libc::WEXITSTATUS(status), 3);
        assert!(numbers.contains(&(libc::SYS_execve as u32)) && numbers.contains(&(libc::SYS_openat as u32)));
        let (status, _) = run(&["sh", "-c", "kill -TERM $$"]).unwrap();
        assert_eq!(libc::WTERMSIG(status), libc::SIGTERM);
    }

    #[test]
    fn says_why_a_program_does_not_run() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, bytes: &[u8]| {
            use std::os::unix::fs::PermissionsExt;
            let path = directory.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let mut elf32 = b"\x7fELF\x01\x01\x01".to_vec();
        elf32.resize(18, 0);
        elf32.extend([3, 0]);
        for (program, status) in [
            ("no-such-program-anywhere".to_owned(), 127),
            (String::new(), 127),
            ("/etc/hostname/x".to_owned(), 127),
            (file("missing-interpreter", b"#!/no/such/interpreter\n"), 127),
            ("/".to_owned(), 126),
            (file("garbage", b"\0\x01\x02"), 126),
            (file("elf32", &elf32), 126),
            (
                file(
                    "script32",
                    format!("#!{}\n", directory.path().join("elf32").display()).as_bytes(),
                ),
                126,
            ),
        ] {
            let error = run(&[&program]).expect_err(&program);
            assert_eq!(error.exit_status(), status, "{program}: {error}");
        }
        let (status, _) = run(&[&file("script", b"exit $1\n"), "5"]).unwrap();
        assert_eq!(
            libc::WEXITSTATUS(status),
            5,
            "a script without an interpreter line is the shell's"
        );
    }
}
