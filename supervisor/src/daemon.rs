//! `vrund`: accepts connections and starts a session process for each.
//!
//! ```text
//! vrund ── accept ── fork/exec /proc/self/exe --session ── crate::session   socket on 0, report pipe on 1
//!            ▲                                                │
//!            └────── one byte: the peer is authenticated ─────┘
//! ```
//!
//! A process for each connection, because a session that has a guest lives as long as the guest: it survives the
//! daemon, and it confines itself. Strangers can open connections but hold only [`UNAUTHENTICATED`] at a time; a
//! session that has not reported in the time of the handshake is ended.

use crate::config::{Config, ConfigError};
use crate::logging;
use crate::session;
use std::fs::File;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::LocalSet;

/// How many connections may be open whose peers have not yet shown a pinned key.
pub const UNAUTHENTICATED: usize = 32;

/// Why the daemon ends.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    #[error("cannot listen on {address}: {error}; choose another address with --listen")]
    Bind { address: SocketAddr, error: io::Error },
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Key(#[from] vrun_remote_io::keys::KeyError),
    #[error("cannot run: {0}")]
    Io(#[from] io::Error),
}

/// Serves until SIGTERM or SIGINT. Sessions with guests live on.
pub fn run(address: SocketAddr, config: &Config) -> Result<(), DaemonError> {
    logging::start(logging::Target::Stderr, false);
    // Everything that a session needs is looked at once, here, where somebody sees the error.
    vrun_remote_io::keys::Identity::open(config.home_directory()?)?;
    config.jobs_directory()?;
    config.images_directory()?;
    if rustix::process::geteuid().is_root() {
        eprintln!("vrund: runs as root, which is not needed: an ordinary user can do the same with less at stake");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, accept(address, config.timeouts.handshake))
}

async fn accept(address: SocketAddr, handshake: Duration) -> Result<(), DaemonError> {
    let listener = TcpListener::bind(address)
        .await
        .map_err(|error| DaemonError::Bind { address, error })?;
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let strangers = Arc::new(Semaphore::new(UNAUTHENTICATED));
    writeln!(io::stdout(), "ready")?;
    io::stdout().flush()?;
    loop {
        let (stream, caller) = tokio::select! {
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, or the caller has gone: not for long, and not a loop at full speed.
                    tracing::warn!("cannot accept a connection: {error}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        let Ok(permit) = Arc::clone(&strangers).try_acquire_owned() else {
            tracing::warn!("refused {caller}: {UNAUTHENTICATED} connections have not yet shown who they are");
            continue;
        };
        match start_session(stream) {
            Ok((child, report)) => {
                tokio::task::spawn_local(attend(child, report, permit, handshake));
            }
            Err(error) => tracing::warn!("cannot start a session for {caller}: {error}"),
        }
    }
}

fn start_session(stream: tokio::net::TcpStream) -> io::Result<(Child, pipe::Receiver)> {
    let socket = OwnedFd::from(stream.into_std()?);
    let (report, child_report) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let child = Command::new("/proc/self/exe")
        .arg0("vrund")
        .arg("--session")
        .stdin(Stdio::from(socket))
        .stdout(Stdio::from(child_report))
        // Out of reach of a Ctrl-C that is meant for the daemon.
        .process_group(0)
        .spawn()?;
    rustix::io::ioctl_fionbio(&report, true)?;
    Ok((child, pipe::Receiver::from_owned_fd(report)?))
}

/// Waits for the report, then for the end, so that nothing is left unreaped.
async fn attend(mut child: Child, mut report: pipe::Receiver, stranger: OwnedSemaphorePermit, handshake: Duration) {
    let reported = tokio::time::timeout(2 * handshake, report.read_u8()).await;
    if !matches!(reported, Ok(Ok(_))) {
        // It has mostly ended by itself, with a reason in the log.
        let _ = child.start_kill();
    }
    drop(stranger);
    let _ = child.wait().await;
}

/// The session process: socket on descriptor 0, report pipe on 1.
pub fn session(config: Config) -> ExitCode {
    logging::start(logging::Target::Stderr, false);
    match take_descriptors() {
        Ok((stream, mut report)) => session::serve(stream, config, move || {
            // A daemon that has ended does not count any more.
            let _ = report.write_all(b"!");
        }),
        Err(error) => {
            tracing::error!("a session was started without its connection: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Moves both to numbers of their own, close-on-exec, and leaves `/dev/null` in their place.
fn take_descriptors() -> io::Result<(TcpStream, File)> {
    let stream = TcpStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let report = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    stream.peer_addr()?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    Ok((stream, report))
}
