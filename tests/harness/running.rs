//! Commands on a host: what to start, what it has printed so far, how it ended. Every wait has a deadline.

use std::fmt;
use std::fs::File;
use std::io::{PipeWriter, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::host::{Ask, Say, resize};
use super::{Host, PATIENCE};

/// A command to be started on a host.
#[derive(Clone, Debug)]
pub(crate) struct Cmd {
    pub(crate) argv: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) cwd: Option<String>,
    pub(crate) streams: Streams,
}

/// What a command's standard streams are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Streams {
    /// stdin is `/dev/null`, stdout and stderr are pipes.
    Pipes,
    /// All three are pipes.
    Input,
    /// All three are the command's controlling terminal of this size (columns, rows).
    Terminal(u16, u16),
}

impl Cmd {
    /// From words; the first is the program, found in the host's PATH.
    pub(crate) fn new<S: AsRef<str>>(argv: impl IntoIterator<Item = S>) -> Self {
        let argv = argv.into_iter().map(|word| word.as_ref().to_owned()).collect();
        Self {
            argv,
            env: Vec::new(),
            cwd: None,
            streams: Streams::Pipes,
        }
    }

    /// More arguments.
    pub(crate) fn args<S: AsRef<str>>(mut self, more: impl IntoIterator<Item = S>) -> Self {
        self.argv.extend(more.into_iter().map(|word| word.as_ref().to_owned()));
        self
    }

    /// One more environment variable.
    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The working directory, instead of the host's home directory.
    pub(crate) fn cwd(mut self, dir: &str) -> Self {
        self.cwd = Some(dir.to_owned());
        self
    }

    /// Other standard streams.
    pub(crate) fn streams(mut self, streams: Streams) -> Self {
        self.streams = streams;
        self
    }
}

impl fmt::Display for Cmd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.argv.join(" "))
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// With this exit status.
    Exit(i32),
    /// By this signal.
    Signal(i32),
}

impl Status {
    /// From what `wait(2)` gives.
    pub(crate) fn from_raw(raw: i32) -> Self {
        if libc::WIFSIGNALED(raw) {
            Self::Signal(libc::WTERMSIG(raw))
        } else {
            Self::Exit(libc::WEXITSTATUS(raw))
        }
    }

    /// As a shell would say it, which is what `vrun` exits with.
    pub(crate) fn as_shell(self) -> i32 {
        match self {
            Self::Exit(code) => code,
            Self::Signal(signal) => 128 + signal,
        }
    }
}

/// A command that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Output {
    pub(crate) status: Status,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// What has come out of a stream so far.
pub(crate) struct Tap {
    state: Mutex<Poured>,
    changed: Condvar,
    source: OwnedFd,
}

#[derive(Default)]
struct Poured {
    bytes: Vec<u8>,
    ended: bool,
}

impl Tap {
    /// Reads a pipe or a terminal's master to its end, in a thread of its own, so that the writer never has to wait.
    fn open(source: OwnedFd) -> Result<Arc<Self>> {
        let mut from = File::from(source.try_clone()?);
        let tap = Arc::new(Self {
            state: Mutex::default(),
            changed: Condvar::new(),
            source,
        });
        let filled = Arc::clone(&tap);
        thread::spawn(move || {
            let mut buffer = vec![0; 64 << 10];
            loop {
                if poll(&mut [PollFd::new(from.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE).is_err() {
                    continue;
                }
                // Read under the lock: nothing is ever between the stream and the buffer when `drained` looks.
                let mut state = filled.lock();
                match from.read(&mut buffer) {
                    Ok(n) if n > 0 => state.bytes.extend_from_slice(&buffer[..n]),
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    // A terminal says EIO when its last slave is closed.
                    _ => state.ended = true,
                }
                filled.changed.notify_all();
                if state.ended {
                    return;
                }
            }
        });
        Ok(tap)
    }

    fn lock(&self) -> MutexGuard<'_, Poured> {
        self.state.lock().expect("a reader does not panic")
    }

    /// Whether the stream ended, or nothing is waiting in it.
    fn drained(&self) -> bool {
        let state = self.lock();
        let mut ready = [PollFd::new(self.source.as_fd(), PollFlags::POLLIN)];
        state.ended || matches!(poll(&mut ready, PollTimeout::ZERO), Ok(0))
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.lock().bytes).into_owned()
    }

    /// Waits until `enough` says so; `false` when the deadline passes, or the stream ends, before.
    fn wait(&self, deadline: Instant, enough: impl Fn(&str, bool) -> bool) -> bool {
        let mut state = self.lock();
        loop {
            if enough(&String::from_utf8_lossy(&state.bytes), state.ended) {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || state.ended {
                return false;
            }
            state = self
                .changed
                .wait_timeout(state, left)
                .expect("a reader does not panic")
                .0;
        }
    }
}

/// A command that was started on a host.
pub(crate) struct Running {
    host: Host,
    command: String,
    /// PID in its host.
    pub(crate) pid: i32,
    out: Arc<Tap>,
    err: Arc<Tap>,
    input: Option<PipeWriter>,
    master: Option<OwnedFd>,
}

impl Running {
    /// Starts it.
    pub(crate) fn start(host: &Host, command: &Cmd) -> Result<Self> {
        let (fds, out, err, input, master) = match command.streams {
            Streams::Terminal(cols, rows) => {
                let mut fds = host.ask(&Ask::Pty(cols, rows), &[])?.1;
                let (slave, master) = (fds.pop().context("a slave")?, fds.pop().context("a master")?);
                let tap = Tap::open(master.try_clone()?)?;
                let fds = [slave.try_clone()?, slave.try_clone()?, slave];
                (fds, Arc::clone(&tap), tap, None, Some(master))
            }
            streams => {
                let (stdout, its_stdout) = std::io::pipe()?;
                let (stderr, its_stderr) = std::io::pipe()?;
                let (its_stdin, input) = if streams == Streams::Input {
                    let (its, ours) = std::io::pipe()?;
                    (its.into(), Some(ours))
                } else {
                    (File::open("/dev/null")?.into(), None)
                };
                let fds = [its_stdin, its_stdout.into(), its_stderr.into()];
                (fds, Tap::open(stdout.into())?, Tap::open(stderr.into())?, input, None)
            }
        };
        let mut env = host.environment();
        env.extend(command.env.iter().cloned());
        let ask = Ask::Spawn {
            argv: command.argv.clone(),
            env,
            cwd: command.cwd.clone().unwrap_or_else(|| super::host::HOME.to_owned()),
            tty: master.is_some(),
        };
        let (Say::Spawned(pid), _) = host.ask(&ask, &[fds[0].as_fd(), fds[1].as_fd(), fds[2].as_fd()])? else {
            bail!("host {}: no PID for `{command}`", host.name());
        };
        host.log(pid, command.to_string(), &out, &err);
        Ok(Self {
            host: host.clone(),
            command: command.to_string(),
            pid,
            out,
            err,
            input,
            master,
        })
    }

    /// What it has printed so far: stdout, or everything if it has a terminal.
    pub(crate) fn stdout(&self) -> String {
        self.out.text()
    }

    /// What it has printed on stderr so far.
    pub(crate) fn stderr(&self) -> String {
        self.err.text()
    }

    /// Waits until what it has printed satisfies `enough`.
    pub(crate) fn wait_for(&self, what: &str, enough: impl Fn(&str) -> bool) -> Result<()> {
        ensure!(
            self.out.wait(Instant::now() + PATIENCE, |text, _| enough(text)),
            "{self}: {what} did not come; stdout so far:\n{}\nstderr so far:\n{}",
            self.stdout(),
            self.stderr()
        );
        Ok(())
    }

    /// Waits until it has printed this many whole lines.
    pub(crate) fn wait_lines(&self, n: usize) -> Result<()> {
        self.wait_for(&format!("line {n}"), |text| text.matches('\n').count() >= n)
    }

    /// Waits until this many more whole lines than now have come.
    pub(crate) fn wait_more_lines(&self, n: usize) -> Result<()> {
        self.wait_lines(self.stdout().matches('\n').count() + n)
    }

    /// Waits until it has printed this.
    pub(crate) fn wait_text(&self, text: &str) -> Result<()> {
        self.wait_for(&format!("{text:?}"), |all| all.contains(text))
    }

    /// Writes to its stdin, or types at its terminal.
    pub(crate) fn type_in(&mut self, bytes: &[u8]) -> Result<()> {
        match (&mut self.input, &self.master) {
            (Some(pipe), _) => pipe.write_all(bytes)?,
            (None, Some(master)) => File::from(master.try_clone()?).write_all(bytes)?,
            (None, None) => bail!("{self} has no input"),
        }
        Ok(())
    }

    /// Closes its stdin pipe.
    pub(crate) fn end_input(&mut self) {
        self.input = None;
    }

    /// Whether its streams are a terminal.
    pub(crate) fn is_terminal(&self) -> bool {
        self.master.is_some()
    }

    /// Changes the size of its terminal.
    pub(crate) fn resize(&self, cols: u16, rows: u16) -> Result<()> {
        resize(self.master.as_ref().context("no terminal")?.as_fd(), cols, rows)
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: i32) -> Result<()> {
        self.host.signal(self.pid, signal)
    }

    /// Whether it has not ended yet.
    pub(crate) fn is_running(&self) -> bool {
        self.host.exit_of(self.pid, Duration::ZERO).is_none()
    }

    /// Waits for its end. Others may go on holding its streams.
    pub(crate) fn wait(&self) -> Result<Status> {
        self.wait_within(PATIENCE)
    }

    /// Waits for its end, no longer than that.
    pub(crate) fn wait_within(&self, patience: Duration) -> Result<Status> {
        let ended = self.host.exit_of(self.pid, patience);
        let Some(status) = ended else {
            bail!(
                "{self} did not end; stdout so far:\n{}\nstderr so far:\n{}",
                self.stdout(),
                self.stderr()
            )
        };
        // What it wrote is in the pipe by now; what others may still write is theirs.
        let deadline = Instant::now() + PATIENCE;
        for tap in [&self.out, &self.err] {
            while !tap.drained() && Instant::now() < deadline {
                thread::yield_now();
            }
        }
        Ok(status)
    }

    /// Waits for its end and gives everything it printed.
    pub(crate) fn finish(mut self) -> Result<Output> {
        self.end_input();
        let status = self.wait()?;
        let stderr = if self.master.is_some() {
            String::new()
        } else {
            self.stderr()
        };
        Ok(Output {
            status,
            stdout: self.stdout(),
            stderr,
        })
    }
}

impl fmt::Display for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` (pid {} on {})", self.command, self.pid, self.host.name())
    }
}
