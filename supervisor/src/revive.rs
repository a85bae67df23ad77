//! A saved job becomes a job of this host.
//!
//! ```text
//!   first pass over the image    everything is checked, files that are missing are made from it
//!   vessel                       a process with the job's PID, descriptors and working directory
//!   second pass                  contents of memory
//! ```
//!
//! Nothing is started before the first pass is through: a damaged image or a missing file leaves no trace.

use crate::config::Config;
use crate::control::ErrorCode;
use crate::descriptors::{self, DescriptorError, Opened};
use crate::filter;
use crate::guest::{GuestError, fill, install_filter};
use crate::job::ImageSource;
use crate::notify::Listener;
use crate::restore::{Home, Restored, Restorer};
use crate::vessel::{Specification, Vessel, World};
use rustix::fs::{FileType, fstat};
use std::fs::File;
use std::io::{self, BufReader};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use vrun_image::state::{Job, Process};
use vrun_image::{Reader, Record};
use vrun_shim::Tracee;

#[derive(Debug, thiserror::Error)]
pub enum ReviveError {
    #[error("{path}: {error}")]
    Open { path: String, error: io::Error },
    #[error("{path}: {error}")]
    Image { path: String, error: vrun_image::Error },
    #[error("{path}: the program may be using CPU features that this host lacks: {features}")]
    Cpu { path: String, features: String },
    #[error("{path}: it holds {processes} processes; this version restores one")]
    Processes { path: String, processes: usize },
    #[error(transparent)]
    Descriptors(#[from] DescriptorError),
    #[error("cannot rebuild the job: {0}")]
    Build(#[from] GuestError),
    #[error("cannot {0}: {1}")]
    Io(&'static str, io::Error),
}

impl ReviveError {
    /// The exit status of `vctl restore`.
    pub fn exit_status(&self) -> u8 {
        let code = match self {
            Self::Image { .. } | Self::Cpu { .. } | Self::Processes { .. } => ErrorCode::Incompatible,
            _ => ErrorCode::Refused,
        };
        code as u8
    }
}

/// A job that is complete and has not run yet. Dropping it leaves nothing.
#[derive(Debug)]
pub struct Revived {
    pub job: Job,
    pub vessel: Vessel,
    listener: Listener,
    restored: Restored,
    opened: Opened,
}

/// The same without its listener.
#[derive(Debug)]
pub struct Ready {
    vessel: Vessel,
    restored: Restored,
    opened: Opened,
}

impl Revived {
    /// What the person who restores should know.
    pub fn notes(&self) -> impl Iterator<Item = String> + '_ {
        self.opened.notes.iter().map(ToString::to_string)
    }

    /// The listener is needed before the job runs.
    pub fn split(self) -> (Listener, Ready) {
        let Self {
            vessel,
            listener,
            restored,
            opened,
            ..
        } = self;
        (
            listener,
            Ready {
                vessel,
                restored,
                opened,
            },
        )
    }
}

impl Ready {
    /// Lets the job run on its own; gives its vessel.
    pub fn run(mut self) -> Result<Vessel, ReviveError> {
        self.opened.arm()?;
        self.restored
            .release()
            .map_err(|error| ReviveError::Build(error.into()))?;
        self.opened.keep();
        Ok(self.vessel.launch())
    }
}

/// Rebuilds a job. Call it while this process has one thread and still holds the terminal.
pub fn revive(source: &ImageSource, config: &Config) -> Result<Revived, ReviveError> {
    let path = || source.path.display().to_string();
    let open = || -> Result<Reader<BufReader<File>>, ReviveError> {
        let file = File::open(&source.path).map_err(|error| ReviveError::Open { path: path(), error })?;
        let buffered = BufReader::with_capacity(1 << 20, file);
        Reader::new(buffered).map_err(|error| ReviveError::Image { path: path(), error })
    };
    let bad = |error| ReviveError::Image { path: path(), error };

    let mut reader = open()?;
    let job = read_job(&mut reader).map_err(bad)?;
    let process = judge(&job, config, &path)?;
    let mut plan = descriptors::check(&job, source.with_files)?;
    loop {
        match reader.next().map_err(bad)? {
            Record::File {
                file, offset, bytes, ..
            } => plan.write(file, offset, bytes)?,
            Record::End(_) => break,
            Record::Pages { .. } | Record::Job(_) => {}
        }
    }
    reader.expect_eof().map_err(bad)?;

    if source.detach {
        // Fails only for a group leader, which a process that was just forked is not.
        let _ = rustix::process::setsid();
    }
    let opened =
        plan.finish(standard_streams(source.detach).map_err(|error| ReviveError::Io("copy a stream", error))?)?;
    let mut descriptors = opened.inherited();
    let executable = File::open(std::ffi::OsStr::from_bytes(&process.executable)).ok();
    let number = opened.free();
    if let Some(file) = &executable {
        descriptors.push((file.as_raw_fd(), number, true));
    }
    let world = World::Host {
        descriptors,
        working_directory: opened.working_directories[0].clone(),
        umask: process.umask,
    };
    let vessel = Vessel::create(&Specification::of(&job, process, world)).map_err(GuestError::from)?;

    let home = Home::Here {
        executable: executable.map(|_| number),
    };
    let build = || -> Result<(Listener, Restored), GuestError> {
        let tracee = Tracee::seize(vessel.pid, libc::PTRACE_O_EXITKILL)?;
        tracee.interrupt()?;
        tracee.wait_interrupted()?;
        let restorer = Restorer::begin(tracee, process, home)?;
        for script in opened.scripts(0) {
            restorer.injection().run(&script)?;
        }
        let listener = install_filter(restorer.injection(), &filter::restored()?, vessel.socket)?;
        let mut reader = open().map_err(|error| GuestError::Io("read the image again", io::Error::other(error)))?;
        read_job(&mut reader)?;
        fill(std::slice::from_ref(&restorer), &mut reader)?;
        Ok((listener, restorer.finish(process, &[])?))
    };
    let (listener, restored) = build()?;
    Ok(Revived {
        job,
        vessel,
        listener,
        restored,
        opened,
    })
}

fn read_job(reader: &mut Reader<BufReader<File>>) -> Result<Job, vrun_image::Error> {
    loop {
        if let Record::Job(job) = reader.next()? {
            return Ok(*job);
        }
    }
}

/// Whether this host can run the job, as far as the image tells; its one process.
fn judge<'a>(job: &'a Job, config: &Config, path: &dyn Fn() -> String) -> Result<&'a Process, ReviveError> {
    let [process] = job.processes.as_slice() else {
        return Err(ReviveError::Processes {
            path: path(),
            processes: job.processes.len(),
        });
    };
    let here = crate::cpu::features(&config.hidden_cpu_features())
        .map_err(|error| ReviveError::Io("read the CPU's features", error))?;
    let missing = crate::cpu::missing(&job.cpu, &here);
    if !missing.is_empty() {
        return Err(ReviveError::Cpu {
            path: path(),
            features: missing.join(", "),
        });
    }
    Ok(process)
}

/// Our standard streams, for the job. A detached one does not read, and does not hold up who waits for the end of a
/// pipe.
fn standard_streams(detach: bool) -> io::Result<[OwnedFd; 3]> {
    let null = || {
        File::options()
            .read(true)
            .write(true)
            .open("/dev/null")
            .map(OwnedFd::from)
    };
    let copy = |stream: std::os::fd::BorrowedFd<'_>, output: bool| -> io::Result<OwnedFd> {
        let pipe = fstat(stream).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo);
        if detach && (!output || pipe) {
            null()
        } else {
            Ok(rustix::io::fcntl_dupfd_cloexec(stream, 3)?)
        }
    };
    Ok([
        copy(rustix::stdio::stdin(), false)?,
        copy(rustix::stdio::stdout(), true)?,
        copy(rustix::stdio::stderr(), true)?,
    ])
}
