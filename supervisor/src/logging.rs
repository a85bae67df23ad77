//! Where the log goes. A command is silent on success, so only `-v` and the daemon log to standard error; a supervisor
//! in the background logs to `jobs/ID.log`, a file that is made when the first line is written.
//!
//! What is logged is chosen with `VRUN_LOG` (`warn` by default, `debug` with `-v`; the syntax is that of
//! `tracing_subscriber::EnvFilter`). Never log between fork and exec.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Mutex;
use tracing_subscriber::EnvFilter;

/// Where to.
#[derive(Clone, Debug)]
pub enum Target {
    Stderr,
    File(PathBuf),
}

/// Starts logging in this process. The first call counts.
pub fn start(target: Target, verbose: bool) {
    let default = if verbose { "debug" } else { "warn" };
    let filter = EnvFilter::try_from_env("VRUN_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(false);
    // An error only says that this process logs already.
    let _ = match target {
        Target::Stderr => builder.with_writer(io::stderr).try_init(),
        Target::File(path) => builder
            .with_writer(Mutex::new(LazyFile { path, file: None }))
            .try_init(),
    };
}

/// A file that does not exist before there is something to say.
struct LazyFile {
    path: PathBuf,
    file: Option<File>,
}

impl Write for LazyFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let file = match &mut self.file {
            Some(file) => file,
            None => self.file.insert(
                OpenOptions::new()
                    .append(true)
                    .create(true)
                    .mode(0o600)
                    .open(&self.path)?,
            ),
        };
        file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
