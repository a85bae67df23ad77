//! A saved job becomes a job of this host.
//!
//! ```text
//!   first pass over the image    everything is checked, files that are missing are made from it
//!   vessel                       a process with the job's PID, descriptors and working directory
//!   second pass                  contents of memory
//! ```
//!
//! Nothing is started before the first pass is through: a damaged image or a missing file leaves no trace.

use crate::areas::Origin;
use crate::capture;
use crate::config::Config;
use crate::control::ErrorCode;
use crate::descriptors::{self, DescriptorError, Opened};
use crate::filter;
use crate::guest::{GuestError, fill, install_filter};
use crate::ipc;
use crate::job::ImageSource;
use crate::notify::Listener;
use crate::restore::{self, Home, Restored, Restorer};
use crate::terminal;
use crate::tree;
use crate::vessel::{Specification, Vessel, World};
use rustix::fs::{FileType, fstat};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufReader};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use vrun_image::state::{Ipc, Job, Process};
use vrun_image::{Reader, Record};
use vrun_shim::{Script, Tracee, area};

#[derive(Debug, thiserror::Error)]
pub enum ReviveError {
    #[error("{path}: {error}")]
    Open { path: String, error: io::Error },
    #[error("{path}: {error}")]
    Image { path: String, error: vrun_image::Error },
    #[error("{path}: the program may be using CPU features that this host lacks: {features}")]
    Cpu { path: String, features: String },
    #[error("{path}: it holds no process")]
    Empty { path: String },
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
            Self::Image { .. } | Self::Cpu { .. } | Self::Empty { .. } => ErrorCode::Incompatible,
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
    restored: Vec<Restored>,
    opened: Opened,
}

/// The same without its listener.
#[derive(Debug)]
pub struct Ready {
    job: Job,
    vessel: Vessel,
    restored: Vec<Restored>,
    opened: Opened,
}

impl Revived {
    /// The numbers that the job's processes have here.
    pub fn pids(&self) -> Vec<i32> {
        let leader = |restored: &Restored| restored.threads().first().map_or(0, |thread| thread.tid());
        self.restored.iter().map(leader).collect()
    }

    /// What the person who restores should know.
    pub fn notes(&self) -> impl Iterator<Item = String> + '_ {
        self.opened.notes.iter().map(ToString::to_string)
    }

    /// The listener is needed before the job runs.
    pub fn split(self) -> (Listener, Ready) {
        let Self {
            job,
            vessel,
            listener,
            restored,
            opened,
            ..
        } = self;
        (
            listener,
            Ready {
                job,
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
        let pids: Vec<i32> = self.restored.iter().map(|process| process.threads()[0].tid()).collect();
        terminal::give(&self.job, &pids, self.vessel.keeper)
            .map_err(|error| ReviveError::Io("give the terminal to the job", error))?;
        // The children first: a parent must not see that one goes back into its stop.
        for restored in self.restored.into_iter().rev() {
            restored.release().map_err(|error| ReviveError::Build(error.into()))?;
        }
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
    let first = judge(&job, config, &path)?;
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
    let executables = Executables::open(&job, opened.free());
    descriptors.extend(executables.placements());
    let world = World::Host {
        descriptors,
        working_directory: opened.working_directories[0].clone(),
        umask: first.umask,
        own_ipc: job.ipc != Ipc::default(),
    };
    let vessel = Vessel::create(&Specification::of(&job, first, world)).map_err(GuestError::from)?;

    let build = || -> Result<(Listener, Vec<Restored>), GuestError> {
        let tracee = Tracee::seize(vessel.pid, libc::PTRACE_O_EXITKILL)?;
        tracee.interrupt()?;
        tracee.wait_interrupted()?;
        let injection = capture::take_over(tracee)?;
        let listener = install_filter(&injection, &filter::restored()?, vessel.socket)?;
        let number = |file| opened.file(file).map(|file| file.as_raw_fd());
        ipc::make(&injection, &job, &number)?;
        let objects = restore::objects(&injection, &job, Origin::Files, &number)?;
        ipc::memory::finish(&injection, &job.ipc)?;
        let mut heirs: Vec<_> = job.processes.iter().skip(1).map(|_| objects.heir()).rev().collect();
        heirs.push(objects);
        let mut restorers = Vec::with_capacity(job.processes.len());
        for (index, tracee) in tree::grow(injection, &job)?.into_iter().enumerate() {
            let process = &job.processes[index];
            let home = Home::Here {
                executable: executables.number(index),
            };
            let restorer = Restorer::begin(tracee, process, home, heirs.pop().unwrap_or_default())?;
            let mut script = Script::new(area::DATA.start);
            let directory = script.data(opened.working_directories[index].as_bytes_with_nul());
            if index > 0 {
                let what = format_args!("enter {}", String::from_utf8_lossy(&process.working_directory));
                script.call(what, libc::SYS_chdir, &[directory]);
                script.call("set the umask", libc::SYS_umask, &[process.umask.into()]);
            }
            for number in executables.others(index) {
                script.call("close an executable", libc::SYS_close, &[number as u64]);
            }
            restorer.injection().run(&script)?;
            for script in opened.scripts(index) {
                restorer.injection().run(&script)?;
            }
            restorers.push(restorer);
        }
        ipc::finish(&restorers, &job)?;
        let mut reader = open().map_err(|error| GuestError::Io("read the image again", io::Error::other(error)))?;
        read_job(&mut reader)?;
        fill(&restorers, &mut reader)?;
        let finish = |(restorer, process): (Restorer, &Process)| restorer.finish(process, &[]);
        let restored = restorers.into_iter().zip(&job.processes).map(finish);
        Ok((listener, restored.collect::<Result<_, _>>()?))
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

/// The executables of a job's processes as far as this host has them, for `/proc/PID/exe`: each is opened once, and every
/// process begins with all of them.
struct Executables {
    files: Vec<File>,
    /// The number of the first in the processes.
    base: i32,
    /// Of each process, the index of its file.
    of: Vec<Option<usize>>,
}

impl Executables {
    fn open(job: &Job, base: i32) -> Self {
        let mut files = Vec::new();
        let mut known: HashMap<&[u8], Option<usize>> = HashMap::new();
        let mut of = Vec::with_capacity(job.processes.len());
        for process in &job.processes {
            let path = process.executable.as_slice();
            of.push(*known.entry(path).or_insert_with(|| {
                files.push(File::open(OsStr::from_bytes(path)).ok()?);
                Some(files.len() - 1)
            }));
        }
        Self { files, base, of }
    }

    /// Ours, the number there, close-on-exec.
    fn placements(&self) -> impl Iterator<Item = (RawFd, i32, bool)> + '_ {
        (self.base..)
            .zip(&self.files)
            .map(|(number, file)| (file.as_raw_fd(), number, true))
    }

    fn number(&self, process: usize) -> Option<i32> {
        Some(self.base + self.of[process]? as i32)
    }

    fn others(&self, process: usize) -> impl Iterator<Item = i32> + '_ {
        let own = self.number(process);
        (self.base..)
            .take(self.files.len())
            .filter(move |number| Some(*number) != own)
    }
}

fn read_job(reader: &mut Reader<BufReader<File>>) -> Result<Job, vrun_image::Error> {
    loop {
        if let Record::Job(job) = reader.next()? {
            return Ok(*job);
        }
    }
}

/// Whether this host can run the job, as far as the image tells; its first process.
fn judge<'a>(job: &'a Job, config: &Config, path: &dyn Fn() -> String) -> Result<&'a Process, ReviveError> {
    let Some(first) = job.processes.first() else {
        return Err(ReviveError::Empty { path: path() });
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
    Ok(first)
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
