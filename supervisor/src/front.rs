//! The front of a job: what the shell sees as its child, thin, in the shell's process group, while the supervisor and
//! the program are behind it.
//!
//! ```text
//! shell ── front (vrun, vctl restore) ── supervisor ── program
//!          └────── one process group ───────┼─────────────┘   the terminal signals front and program alike
//!                                           └ a group of its own once the program runs; stdio to /dev/null
//!
//! front ──▶ supervisor   Signal{number, value}  sent to the front with kill(2), meant for the program
//!                        Continue               the front was continued
//! front ◀── supervisor   Running{pid} · Stopped{pid, signal} · Exited{status, over} · Failed{status, message} ·
//!                        Ended{note, foreground}
//! ```
//!
//! The supervisor leaves the process group, so that the terminal's signals do not reach it, but not the session: a
//! group whose members' parents are all outside the session would be orphaned, and the kernel lets an orphaned group
//! neither stop at Ctrl-Z nor wait for the terminal.
//!
//! Signals are blocked in the front and read from a signalfd, which says who sent them. The kernel's (from the
//! terminal) went to the program as well, and are dropped here; those of kill(2) are handed on.

use crate::config::{Config, JobId};
use crate::launch::{self, Inherited};
use crate::logging;
use crate::terminal;
use nix::sys::signal::SigSet;
use nix::sys::signalfd::{SfdFlags, SignalFd, siginfo};
use nix::sys::termios::Termios;
use nix::unistd::ForkResult;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus};

/// The exit status of our own failure.
pub const FAILED: u8 = 125;
/// The exit status when the job went on elsewhere (saved, sent away): 128 + SIGKILL, as if it had been killed here.
pub const ENDED: u8 = 137;

/// What the front does around a job.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// The command's name, in front of its messages.
    pub command: &'static str,
    pub id: JobId,
    /// `-n`.
    pub name: Option<String>,
    /// `-d`: print the id and return when the program runs.
    pub detach: bool,
    /// Gets the id once the program runs.
    pub id_file: Option<PathBuf>,
    pub verbose: bool,
    pub config: Config,
}

/// From the front to the supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToSupervisor {
    /// Send this to the program; `value` is that of sigqueue(3).
    Signal { number: i32, value: Option<i64> },
    /// Continue the program if it is stopped.
    Continue,
}

/// From the supervisor to the front. After `Exited`, `Failed` and `Ended` nothing follows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToFront {
    /// The program runs.
    Running { pid: i32 },
    /// The first process was stopped by `signal`.
    Stopped { pid: i32, signal: i32 },
    /// The first process has ended with this wait status; `over`: nothing of the job is left.
    Exited { status: i32, over: bool },
    /// The job could not be started.
    Failed { status: u8, message: String },
    /// The job does not run here any more; `note` tells where it is. `foreground`: it had the terminal.
    Ended { note: String, foreground: bool },
}

/// A message is one small JSON datagram.
const MESSAGE_LIMIT: usize = 64 << 10;

/// The supervisor's side of the front, and what it needs to know of the start.
#[derive(Debug)]
pub struct SupervisorSide {
    pub id: JobId,
    pub name: Option<String>,
    pub detach: bool,
    pub verbose: bool,
    pub config: Config,
    /// What the front got from the shell, for the program.
    pub inherited: Inherited,
    front_pid: i32,
    /// Gone when the front is gone or has been told the end.
    socket: Option<OwnedFd>,
}

impl SupervisorSide {
    /// The descriptor to poll for [`SupervisorSide::receive`], while there is a front.
    pub fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(AsFd::as_fd)
    }

    /// Tells the front; one that is gone is no error: the job goes on without it.
    pub fn tell(&mut self, message: &ToFront) {
        let Some(socket) = &self.socket else { return };
        let last = matches!(
            message,
            ToFront::Exited { .. } | ToFront::Failed { .. } | ToFront::Ended { .. }
        );
        if send(socket, message).is_err() || last {
            self.socket = None;
        }
    }

    /// Tells the front, which holds the job's streams, that the job does not go on here, and waits until it has said so.
    pub fn end(&mut self, note: String, foreground: bool) {
        const PATIENCE: rustix::event::Timespec = rustix::event::Timespec { tv_sec: 2, tv_nsec: 0 };
        if let Some(socket) = self.socket.take()
            && send(&socket, &ToFront::Ended { note, foreground }).is_ok()
        {
            while matches!(
                poll(&mut [PollFd::new(&socket, PollFlags::IN)], Some(&PATIENCE)),
                Ok(1..) | Err(rustix::io::Errno::INTR)
            ) && !matches!(receive::<ToSupervisor>(&socket), Ok(None) | Err(_))
            {}
        }
    }

    /// The next message; `None` when the front is gone.
    pub fn receive(&mut self) -> Option<ToSupervisor> {
        let message = self.socket.as_ref().and_then(|socket| receive(socket).ok().flatten());
        if message.is_none() {
            self.socket = None;
        }
        message
    }

    /// Continues a front that was stopped with its program, when the program was continued by somebody else.
    pub fn continue_front(&self) {
        // While the socket is open the front lives and is our parent: the PID is its own.
        if self.socket.is_some() && is_stopped(self.front_pid) {
            let _ = launch::send_signal(self.front_pid, libc::SIGCONT, None);
        }
    }

    /// Leaves the terminal, the working directory and every descriptor that came from the shell to the program: a
    /// reader of its output must see the end of file when the program closes it. To be called once the program has its
    /// copies.
    pub fn leave(&self) -> io::Result<()> {
        if self.detach {
            // Fails only for a group leader, which a process that was just forked is not.
            let _ = rustix::process::setsid();
        } else {
            let _ = rustix::process::setpgid(None, None);
        }
        std::env::set_current_dir("/")?;
        rustix::process::umask(Mode::from_raw_mode(0o077));
        give_up_descriptors(if self.verbose { &[2] } else { &[] })
    }
}

/// Closes every descriptor that is not close-on-exec, which ours all are, and puts `/dev/null` on 0, 1 and 2; except
/// those to `keep`.
fn give_up_descriptors(keep: &[i32]) -> io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    if !keep.contains(&0) {
        rustix::stdio::dup2_stdin(&null)?;
    }
    if !keep.contains(&1) {
        rustix::stdio::dup2_stdout(&null)?;
    }
    if !keep.contains(&2) {
        rustix::stdio::dup2_stderr(&null)?;
    }
    let open: Vec<i32> = fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|fd| *fd > 2)
        .collect();
    for fd in open {
        launch::close_if_inherited(fd);
    }
    Ok(())
}

fn send<T: Serialize>(socket: &OwnedFd, message: &T) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    loop {
        match rustix::net::send(socket, &bytes, SendFlags::NOSIGNAL) {
            Err(rustix::io::Errno::INTR) => {}
            other => return other.map(drop).map_err(io::Error::from),
        }
    }
}

/// `None` at the end.
fn receive<T: for<'a> Deserialize<'a>>(socket: &OwnedFd) -> io::Result<Option<T>> {
    let mut buffer = vec![0; MESSAGE_LIMIT];
    loop {
        match rustix::net::recv(socket, &mut buffer[..], RecvFlags::empty()) {
            Err(rustix::io::Errno::INTR) => {}
            Ok((0, _)) => return Ok(None),
            Ok((length, _)) => return Ok(Some(serde_json::from_slice(&buffer[..length])?)),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Whether the process is stopped by a signal, from `/proc/PID/stat`.
pub fn is_stopped(pid: i32) -> bool {
    // The state follows the name in parentheses, which may itself hold any character.
    fs::read(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|stat| Some(stat.get(stat.iter().rposition(|byte| *byte == b')')? + 2)? == &b'T'))
        .unwrap_or(false)
}

/// Forks the supervisor, which runs `start` and exits with what that returns, and stands in front of it until the first
/// process of the job has ended. To be called with one thread only.
pub fn run(options: RunOptions, start: impl FnOnce(SupervisorSide) -> i32) -> ExitCode {
    match Front::start(options, start) {
        Ok(front) => ExitCode::from(front.stand()),
        Err((command, message)) => {
            eprintln!("{command}: {message}");
            ExitCode::from(FAILED)
        }
    }
}

struct Front {
    command: &'static str,
    id: JobId,
    detach: bool,
    /// The file that becomes the id file when the program runs.
    id_file: Option<(tempfile::NamedTempFile, PathBuf)>,
    supervisor: nix::unistd::Pid,
    socket: OwnedFd,
    signals: SignalFd,
    stderr: Stderr,
    /// Those of the terminal when the job began.
    modes: Option<Termios>,
}

impl Front {
    fn start(options: RunOptions, start: impl FnOnce(SupervisorSide) -> i32) -> Result<Front, (&'static str, String)> {
        let RunOptions {
            command,
            id,
            name,
            detach,
            id_file,
            verbose,
            config,
        } = options;
        let failed = |what: &str| {
            let what = what.to_owned();
            move |error: io::Error| (command, format!("cannot {what}: {error}"))
        };
        let jobs = config.jobs_directory().map_err(|error| (command, error.to_string()))?;
        // Made now, so that a directory that cannot be written is an error before anything starts.
        let id_file = match id_file {
            None => None,
            Some(path) => {
                let directory = path
                    .parent()
                    .filter(|parent| !parent.as_os_str().is_empty())
                    .unwrap_or(Path::new("."));
                let file = tempfile::Builder::new()
                    .prefix(".vrun-id-")
                    .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
                    .tempfile_in(directory)
                    .map_err(|error| (command, format!("cannot write the id file: {error}")))?;
                Some((file, path))
            }
        };
        let (socket, supervisor_socket) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .map_err(|error| failed("make a socket pair")(error.into()))?;
        // Both processes: the front reads its signals, and Ctrl-C must not reach a supervisor that is still in the
        // group.
        SigSet::all()
            .thread_block()
            .map_err(|error| failed("block signals")(error.into()))?;
        launch::default_dispositions();
        let front_pid = rustix::process::getpid().as_raw_nonzero().get();
        let modes = terminal::modes();
        match launch::fork().map_err(failed("fork"))? {
            ForkResult::Child => {
                drop(socket);
                if let Some((file, _)) = id_file {
                    // The front's to remove.
                    let _ = file.into_temp_path().keep();
                }
                let log = jobs.join(format!("{id}.log"));
                logging::start(
                    if verbose {
                        logging::Target::Stderr
                    } else {
                        logging::Target::File(log)
                    },
                    verbose,
                );
                let inherited = launch::inherited();
                let socket = Some(supervisor_socket);
                let side = SupervisorSide {
                    id,
                    name,
                    detach,
                    verbose,
                    config,
                    inherited,
                    front_pid,
                    socket,
                };
                std::process::exit(start(side))
            }
            ForkResult::Parent { child: supervisor } => {
                drop(supervisor_socket);
                let signals = SignalFd::with_flags(&SigSet::all(), SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
                    .map_err(|error| failed("read signals")(error.into()))?;
                Ok(Front {
                    command,
                    id,
                    detach,
                    id_file,
                    supervisor,
                    socket,
                    signals,
                    stderr: Stderr::Held,
                    modes,
                })
            }
        }
    }

    fn stand(mut self) -> u8 {
        loop {
            let mut fds = [
                PollFd::new(&self.socket, PollFlags::IN),
                PollFd::new(&self.signals, PollFlags::IN),
            ];
            if let Err(error) = poll(&mut fds, None)
                && error != rustix::io::Errno::INTR
            {
                return self.fail(&format!("cannot wait: {error}"));
            }
            let [socket, signals] = fds.map(|fd| !fd.revents().is_empty());
            if signals {
                self.pass_signals();
            }
            if socket {
                match receive(&self.socket) {
                    Ok(Some(message)) => {
                        if let Some(status) = self.act(message) {
                            return status;
                        }
                    }
                    Ok(None) => {
                        let how = self.wait_for_supervisor();
                        let id = &self.id;
                        let hint = "the program may still run; look with ps(1)";
                        return self.fail(&format!(
                            "the supervisor of job {id} ended unexpectedly ({how}); {hint}"
                        ));
                    }
                    Err(error) => return self.fail(&format!("cannot understand the supervisor: {error}")),
                }
            }
        }
    }

    /// Acts on a message; with a status the front is done.
    fn act(&mut self, message: ToFront) -> Option<u8> {
        match message {
            ToFront::Running { .. } => {
                if let Some((file, path)) = self.id_file.take()
                    && let Err(error) = write_id(file, &path, &self.id)
                {
                    self.say(&format!(
                        "job {} runs, but the id file {} cannot be written: {error}",
                        self.id,
                        path.display()
                    ));
                }
                if self.detach {
                    // Nobody may listen; the job runs all the same.
                    let _ = writeln!(io::stdout(), "{}", self.id);
                    return Some(0);
                }
                // The program alone is to hold the shell's descriptors.
                self.stderr = Stderr::release();
                let keep: &[i32] = if matches!(self.stderr, Stderr::Held) { &[2] } else { &[] };
                if let Err(error) = give_up_descriptors(keep) {
                    tracing::debug!("the front keeps descriptors: {error}");
                }
                None
            }
            ToFront::Stopped { pid, signal } => {
                // It may have been continued since, together with us; then our SIGCONT is behind this message and
                // stopping now would be for ever.
                if is_stopped(pid) {
                    launch::stop_self(signal);
                }
                None
            }
            ToFront::Exited { status, over } => {
                if over {
                    self.wait_for_supervisor();
                }
                Some(exit_status(ExitStatus::from_raw(status)))
            }
            ToFront::Failed { status, message } => {
                self.wait_for_supervisor();
                self.say(&message);
                Some(status)
            }
            ToFront::Ended { note, foreground } => {
                if foreground && let Some(modes) = &self.modes {
                    // A shell does so for what a signal has ended.
                    terminal::set_modes(modes);
                }
                self.say(&note);
                Some(ENDED)
            }
        }
    }

    /// Hands on what somebody sent with kill(2) or sigqueue(3).
    fn pass_signals(&mut self) {
        while let Ok(Some(info)) = self.signals.read_signal() {
            let number = info.ssi_signo as i32;
            let message = match number {
                libc::SIGCONT => ToSupervisor::Continue,
                // Of the supervisor, which waits for the socket to say so.
                libc::SIGCHLD => continue,
                _ => match sent_value(&info) {
                    Some(value) => ToSupervisor::Signal { number, value },
                    None => continue,
                },
            };
            // An error will be seen as the end of the socket.
            let _ = send(&self.socket, &message);
        }
    }

    /// How the supervisor ended. Waiting for it makes its children's time ours, for `time vrun …`.
    fn wait_for_supervisor(&self) -> String {
        match nix::sys::wait::waitpid(self.supervisor, None) {
            Ok(nix::sys::wait::WaitStatus::Exited(_, code)) => format!("status {code}"),
            Ok(nix::sys::wait::WaitStatus::Signaled(_, signal, _)) => signal.as_str().to_owned(),
            Ok(_) | Err(_) => "unknown status".to_owned(),
        }
    }

    fn say(&self, message: &str) {
        self.stderr.write(&format!("{}: {message}\n", self.command));
    }

    fn fail(&self, message: &str) -> u8 {
        self.say(message);
        FAILED
    }
}

/// `Some` if a process sent this signal: with or without a value. The kernel's (`SI_KERNEL`, 128) and those of faults
/// are not passed on.
fn sent_value(info: &siginfo) -> Option<Option<i64>> {
    match info.ssi_code {
        libc::SI_QUEUE => Some(Some(info.ssi_ptr as i64)),
        libc::SI_USER | libc::SI_TKILL => Some(None),
        _ => None,
    }
}

/// 0..=255, or 128 + N for signal N.
pub fn exit_status(status: ExitStatus) -> u8 {
    match (status.code(), status.signal()) {
        (Some(code), _) => code as u8,
        (None, Some(signal)) => 128 + signal as u8,
        (None, None) => FAILED,
    }
}

fn write_id(mut file: tempfile::NamedTempFile, path: &Path, id: &JobId) -> io::Result<()> {
    writeln!(file, "{id}")?;
    file.persist(path)?;
    Ok(())
}

/// Standard error of the front, for the rare message after the program was started.
enum Stderr {
    /// Descriptor 2.
    Held,
    /// An `O_PATH` descriptor of a pipe or terminal, which does not keep it open for those at the other end.
    Path(OwnedFd),
}

impl Stderr {
    /// A file is held, because only its own description knows where to write next, and nobody waits for its end; a
    /// socket, because it cannot be opened again.
    fn release() -> Stderr {
        match rustix::fs::open("/proc/self/fd/2", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
            Ok(path) if is_pipe_or_terminal(&path) => Stderr::Path(path),
            _ => Stderr::Held,
        }
    }

    fn write(&self, text: &str) {
        let result = match self {
            Stderr::Held => io::stderr().write_all(text.as_bytes()),
            Stderr::Path(path) => {
                let flags = OFlags::WRONLY | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
                rustix::fs::open(format!("/proc/self/fd/{}", path.as_raw_fd()), flags, Mode::empty())
                    .map_err(io::Error::from)
                    .and_then(|fd| File::from(fd).write_all(text.as_bytes()))
            }
        };
        // There is no other place to say it.
        drop(result);
    }
}

fn is_pipe_or_terminal(fd: &OwnedFd) -> bool {
    rustix::fs::fstat(fd).is_ok_and(|stat| {
        let kind = rustix::fs::FileType::from_raw_mode(stat.st_mode);
        kind.is_fifo() || kind.is_char_device()
    })
}
