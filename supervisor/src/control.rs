//! Talking to a job: one Unix socket for each, `$VRUN_RUNTIME/jobs/ID.sock`, one request for each connection.
//!
//! ```text
//! client ──▶ job   Request
//! client ◀── job   Progress* , then Done(Outcome) or Error{code, message}
//! ```
//!
//! Each message is JSON behind its length (4 bytes, little-endian, at most [`MESSAGE_LIMIT`]). Only processes of the
//! same user or root are listened to (`SO_PEERCRED`), and the directory is 0700. A socket that refuses connections is
//! what a dead supervisor left behind: the client removes it.

use crate::config::{Config, ConfigError, JobId};
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// The largest message, in bytes.
pub const MESSAGE_LIMIT: usize = 4 << 20;
/// A job that does not answer `Status` in this time is left out of a list.
const STATUS_TIMEOUT: Duration = Duration::from_secs(3);

/// What can be asked of a job. Paths are absolute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// → [`Outcome::Status`], with or without [`Status::not_migratable`], for which everything of the job is looked at
    Status { verdict: bool },
    /// Save the job to a file → [`Outcome::Saved`]
    Save {
        path: PathBuf,
        keep_running: bool,
        content: Content,
    },
    /// Store the job in the daemon of `host` → [`Outcome::Stored`]
    Send { host: String },
    /// Move the job to `host`, or only find out whether it could (`check`) → [`Outcome::Moved`], [`Outcome::Checked`]
    Migrate { host: String, check: bool, post_copy: bool },
    /// Bring the job back to its origin → [`Outcome::Moved`]
    Home,
    /// Send a signal to the job's first process → [`Outcome::Done`]
    Kill { signal: i32 },
    /// → [`Outcome::Stats`]
    Stats,
}

/// What an image is to hold, and how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// The contents of open files too.
    pub with_files: bool,
    /// The level of compression with zstd, if any.
    pub compress: Option<i32>,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Done,
    Status(Box<Status>),
    Saved {
        path: PathBuf,
        bytes: u64,
    },
    Stored {
        id: String,
        bytes: u64,
    },
    Moved(Moved),
    /// What a move would need and meet, for `--check`.
    Checked(serde_json::Value),
    Stats(serde_json::Value),
}

/// Figures of a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moved {
    /// Sent through the network.
    pub bytes: u64,
    /// From the request to the first instruction at the destination.
    pub total_us: u64,
    /// From the last instruction at one host to the first at the other.
    pub downtime_us: u64,
}

/// What is going on, for a person who waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    pub text: String,
}

/// A job as `vctl ps` shows it; the field names are those of `--json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub id: String,
    pub name: Option<String>,
    /// Program and arguments, joined by spaces; what is not UTF-8 is replaced.
    pub command: String,
    pub state: State,
    pub role: Role,
    /// The host where it runs; `None` if that is here.
    pub host: Option<String>,
    /// The first process, as it is numbered at its origin.
    pub pid: i32,
    /// All processes of the job on this host.
    pub pids: Vec<i32>,
    /// Resident memory of all processes.
    pub memory_bytes: u64,
    /// Open descriptors of all processes.
    pub descriptors: u64,
    /// Seconds since 1970.
    pub started: u64,
    /// Why it cannot be moved now; `None` if it can.
    pub not_migratable: Option<String>,
}

/// What a job is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Running,
    /// By a signal, such as Ctrl-Z.
    Stopped,
    /// By us, for a moment.
    Frozen,
    /// Running on another host.
    Away,
}

impl State {
    pub fn as_str(self) -> &'static str {
        match self {
            State::Running => "running",
            State::Stopped => "stopped",
            State::Frozen => "frozen",
            State::Away => "away",
        }
    }
}

/// Whether this host is the origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    Job,
    Guest,
}

/// Why a request was not fulfilled; the numbers are the exit statuses of `vctl` and `vmigrate`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// Refused; the job is untouched.
    Refused = 1,
    Usage = 2,
    /// Failed and rolled back; the job runs where it was.
    RolledBack = 3,
    /// Unreachable or not trusted.
    Unreachable = 5,
    TimedOut = 6,
    /// Incompatible host or image.
    Incompatible = 7,
}

/// An error as it is shown: one line, what, about what, what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ControlError {
    pub code: ErrorCode,
    pub message: String,
}

impl ControlError {
    pub fn new(code: ErrorCode, message: impl Into<String>) -> ControlError {
        ControlError {
            code,
            message: message.into(),
        }
    }

    pub fn refused(message: impl Into<String>) -> ControlError {
        ControlError::new(ErrorCode::Refused, message)
    }
}

impl From<ConfigError> for ControlError {
    fn from(error: ConfigError) -> ControlError {
        ControlError::refused(error.to_string())
    }
}

/// From the job to the client.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Response {
    Progress(Progress),
    Done(Outcome),
    Error(ControlError),
}

fn write_message<T: Serialize>(mut stream: &UnixStream, message: &T) -> io::Result<()> {
    let body = serde_json::to_vec(message)?;
    let mut bytes = (body.len() as u32).to_le_bytes().to_vec();
    bytes.extend(body);
    stream.write_all(&bytes)
}

fn read_message<T: for<'a> Deserialize<'a>>(mut stream: &UnixStream) -> io::Result<T> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > MESSAGE_LIMIT {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a message of {length} bytes is too long"),
        ));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    Ok(serde_json::from_slice(&body)?)
}

/// Fulfils requests, on a thread for each. The second argument takes progress.
pub type Handler = dyn Fn(Request, &mut dyn FnMut(Progress)) -> Result<Outcome, ControlError> + Send + Sync;

/// A served socket. On drop it is removed, and clients that were heard get their answers first: the process is about to
/// end, and whoever had their requests has let go of them.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    busy: Arc<Busy>,
}

impl Server {
    /// From now on nobody finds it any more. Clients that were heard still get their answers.
    pub fn withdraw(&self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.withdraw();
        self.busy.wait(STATUS_TIMEOUT);
    }
}

/// How many clients are being served.
#[derive(Debug, Default)]
struct Busy {
    clients: Mutex<usize>,
    idle: Condvar,
}

impl Busy {
    fn count(&self) -> MutexGuard<'_, usize> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, work: impl FnOnce()) {
        *self.count() += 1;
        work();
        *self.count() -= 1;
        self.idle.notify_all();
    }

    fn wait(&self, limit: Duration) {
        let busy = |clients: &mut usize| *clients > 0;
        drop(self.idle.wait_timeout_while(self.count(), limit, busy));
    }
}

/// Serves `jobs/ID.sock` until the process ends. The socket appears under its name when it accepts connections.
pub fn serve(config: &Config, id: &JobId, handler: Arc<Handler>) -> Result<Server, ControlError> {
    let jobs = config.jobs_directory()?;
    let (path, new) = (jobs.join(format!("{id}.sock")), jobs.join(format!("{id}.new")));
    let failed = |error: io::Error| ControlError::refused(format!("cannot serve {}: {error}", path.display()));
    let listener = short_path(&new, |path| UnixListener::bind(path)).map_err(failed)?;
    fs::rename(&new, &path).map_err(failed)?;
    let busy = Arc::new(Busy::default());
    let counter = Arc::clone(&busy);
    let accept = move || {
        loop {
            match listener.accept() {
                Ok((stream, _)) => {
                    let (handler, busy) = (Arc::clone(&handler), Arc::clone(&counter));
                    let client = thread::Builder::new().name("client".into());
                    if let Err(error) = client.spawn(move || busy.serve(|| serve_client(&stream, &*handler))) {
                        tracing::warn!("cannot serve a client: {error}");
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    // Out of descriptors or memory: not for long, and not for a loop at full speed.
                    tracing::warn!("cannot accept a client: {error}");
                    thread::sleep(Duration::from_millis(100));
                }
            }
        }
    };
    thread::Builder::new()
        .name("control".into())
        .spawn(accept)
        .map_err(failed)?;
    Ok(Server { path, busy })
}

fn serve_client(stream: &UnixStream, handler: &Handler) {
    let response = match admitted(stream).and_then(|()| read_message(stream)) {
        Ok(request) => {
            let mut progress = |progress| {
                // A client that has gone does not stop the work.
                let _ = write_message(stream, &Response::Progress(progress));
            };
            match handler(request, &mut progress) {
                Ok(outcome) => Response::Done(outcome),
                Err(error) => Response::Error(error),
            }
        }
        Err(error) => Response::Error(ControlError::new(ErrorCode::Usage, format!("bad request: {error}"))),
    };
    let _ = write_message(stream, &response);
}

fn admitted(stream: &UnixStream) -> io::Result<()> {
    let peer = rustix::net::sockopt::socket_peercred(stream)?.uid;
    if peer.is_root() || peer == rustix::process::geteuid() {
        Ok(())
    } else {
        Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "the job belongs to another user",
        ))
    }
}

/// Calls `operation` with a path that fits the 108 bytes of a socket address, through `/proc/self/fd` if need be.
fn short_path<T>(path: &Path, operation: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    if path.as_os_str().len() < 108 {
        return operation(path);
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return operation(path);
    };
    let directory = rustix::fs::open(
        parent,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    operation(
        &Path::new("/proc/self/fd")
            .join(directory.as_raw_fd().to_string())
            .join(name),
    )
}

/// A job that can be asked.
#[derive(Clone, Debug)]
pub struct Client {
    path: PathBuf,
}

impl Client {
    /// Asks, and waits for the end without a limit: what may take long reports progress.
    pub fn request(&self, request: &Request, progress: &mut dyn FnMut(Progress)) -> Result<Outcome, ControlError> {
        self.ask(request, None, progress).map_err(|error| {
            ControlError::refused(format!("the job does not answer: {error}; it may have just ended"))
        })?
    }

    fn ask(
        &self,
        request: &Request,
        timeout: Option<Duration>,
        progress: &mut dyn FnMut(Progress),
    ) -> io::Result<Result<Outcome, ControlError>> {
        let stream = short_path(&self.path, |path| UnixStream::connect(path))?;
        stream.set_read_timeout(timeout)?;
        stream.set_write_timeout(Some(STATUS_TIMEOUT))?;
        write_message(&stream, request)?;
        loop {
            match read_message(&stream)? {
                Response::Progress(text) => progress(text),
                Response::Done(outcome) => return Ok(Ok(outcome)),
                Response::Error(error) => return Ok(Err(error)),
            }
        }
    }

    fn status(&self, verdict: bool, patience: Duration) -> io::Result<Status> {
        match self.ask(&Request::Status { verdict }, Some(patience), &mut |_| {})? {
            Ok(Outcome::Status(status)) => Ok(*status),
            Ok(_) => Err(io::Error::other("not a status")),
            Err(error) => Err(io::Error::other(error)),
        }
    }
}

/// All jobs and guests of this host that answer, oldest first, with why they cannot move.
pub fn list(config: &Config) -> Result<Vec<(Client, Status)>, ControlError> {
    Ok(ask_all(config, true, STATUS_TIMEOUT)?.0)
}

/// Those that answer in time, and how many do not.
fn ask_all(config: &Config, verdict: bool, patience: Duration) -> Result<(Vec<(Client, Status)>, usize), ControlError> {
    let mut clients = Vec::new();
    let jobs = config.jobs_directory()?;
    let unreadable = |error: io::Error| ControlError::refused(format!("cannot read {}: {error}", jobs.display()));
    for entry in fs::read_dir(&jobs).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.extension().is_some_and(|extension| extension == "sock") {
            clients.push(Client { path });
        }
    }
    // At the same time, so that one that hangs does not hold up the others.
    let answers: Vec<_> = thread::scope(|scope| {
        let asked: Vec<_> = clients
            .iter()
            .map(|client| scope.spawn(|| client.status(verdict, patience)))
            .collect();
        asked
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| Err(io::Error::other("panic"))))
            .collect()
    });
    let (mut found, mut silent) = (Vec::new(), 0);
    for (client, answer) in clients.into_iter().zip(answers) {
        match answer {
            Ok(status) => found.push((client, status)),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                let _ = fs::remove_file(&client.path);
            }
            Err(error) => {
                tracing::debug!("{}: {error}", client.path.display());
                silent += usize::from(error.kind() == io::ErrorKind::WouldBlock);
            }
        }
    }
    found.sort_by(|(_, one), (_, other)| (one.started, &one.id).cmp(&(other.started, &other.id)));
    Ok((found, silent))
}

/// The job with this id, this name or a process with this PID.
///
/// One that is being moved or saved answers when that is over: it is waited for if no other is meant.
pub fn find(config: &Config, what: &str) -> Result<(Client, Status), ControlError> {
    let pid: Option<i32> = what.parse().ok();
    let is_meant = |status: &Status| {
        let has = |pid| status.pid == pid || status.pids.contains(&pid);
        status.id == what || status.name.as_deref() == Some(what) || pid.is_some_and(has)
    };
    let (mut found, mut silent) = ask_all(config, false, STATUS_TIMEOUT)?;
    if silent > 0 && !found.iter().any(|(_, status)| is_meant(status)) {
        (found, silent) = ask_all(config, false, config.timeouts.answer)?;
    }
    if let Some(position) = found.iter().position(|(_, status)| status.id == what) {
        return Ok(found.swap_remove(position));
    }
    found.retain(|(_, status)| is_meant(status));
    match found.len() {
        0 if silent > 0 => Err(ControlError::new(
            ErrorCode::TimedOut,
            format!("no job `{what}` among those here that answer; {silent} do not: try again"),
        )),
        0 => Err(ControlError::refused(format!(
            "no job `{what}` here: `vctl ps` lists the ids, names and PIDs"
        ))),
        1 => Ok(found.remove(0)),
        _ => {
            let ids: Vec<&str> = found.iter().map(|(_, status)| status.id.as_str()).collect();
            Err(ControlError::refused(format!(
                "`{what}` names {} jobs: say one of {}",
                ids.len(),
                ids.join(", ")
            )))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Timeouts;

    fn config(directory: &Path) -> Config {
        let second = Duration::from_secs(1);
        Config {
            home: directory.join("home"),
            runtime: directory.join("r".repeat(120)),
            state: directory.join("state"),
            timeouts: Timeouts {
                connect: second,
                handshake: second,
                answer: second,
            },
            file: toml::Table::new(),
        }
    }

    fn status(id: &JobId) -> Status {
        Status {
            id: id.to_string(),
            name: Some("night".into()),
            command: "sleep 9".into(),
            state: State::Running,
            role: Role::Job,
            host: None,
            pid: 4711,
            pids: vec![4711, 4712],
            memory_bytes: 0,
            descriptors: 3,
            started: 1,
            not_migratable: None,
        }
    }

    #[test]
    fn a_job_that_is_busy_is_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let config = config(directory.path());
        let id = JobId::generate().unwrap();
        let (answer, asked) = (status(&id), (Mutex::new(0), Condvar::new()));
        let handler = move |_: Request, _: &mut dyn FnMut(Progress)| {
            // The first answer is given when it is asked again.
            let mut count = asked.0.lock().unwrap();
            *count += 1;
            asked.1.notify_all();
            drop(asked.1.wait_while(count, |count| *count < 2).unwrap());
            Ok(Outcome::Status(Box::new(answer.clone())))
        };
        let _server = serve(&config, &id, Arc::new(handler)).unwrap();
        assert_eq!(find(&config, "night").unwrap().1.id, id.as_str());
        assert!(
            find(&config, "day")
                .unwrap_err()
                .to_string()
                .contains("no job `day` here")
        );
    }

    #[test]
    fn serves_a_job_under_a_long_path_and_cleans_up_after_a_dead_one() {
        let directory = tempfile::tempdir().unwrap();
        let config = config(directory.path());
        let id = JobId::generate().unwrap();
        let answer = status(&id);
        let handler = move |request: Request, progress: &mut dyn FnMut(Progress)| match request {
            Request::Status { .. } => Ok(Outcome::Status(Box::new(answer.clone()))),
            Request::Home => {
                progress(Progress {
                    text: "on the way".into(),
                });
                Ok(Outcome::Done)
            }
            _ => Err(ControlError::new(ErrorCode::Incompatible, "no")),
        };
        let server = serve(&config, &id, Arc::new(handler)).unwrap();
        for what in [id.as_str(), "night", "4712"] {
            let (client, status) = find(&config, what).unwrap();
            assert_eq!(status.id, id.as_str());
            let mut said = Vec::new();
            client
                .request(&Request::Home, &mut |progress| said.push(progress.text))
                .unwrap();
            assert_eq!(said, ["on the way"]);
            assert_eq!(
                client.request(&Request::Stats, &mut |_| {}).unwrap_err().code,
                ErrorCode::Incompatible
            );
        }
        assert!(find(&config, "day").is_err());
        drop(server);
        assert!(list(&config).unwrap().is_empty());

        // What a supervisor that was killed leaves behind.
        let stale = config.jobs_directory().unwrap().join("abcdefgh.sock");
        drop(short_path(&stale, |path| UnixListener::bind(path)).unwrap());
        assert!(list(&config).unwrap().is_empty());
        assert!(!stale.exists());
    }
}
