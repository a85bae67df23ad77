//! The descriptors of a job that becomes a file, and what is behind them: their capture, and side by side with it their
//! restore.
//!
//! ```text
//!  stopped processes ── capture ──▶ Captured (files, slots) ── store ──▶ Job, File runs of the image
//!
//!  Job ── check ──▶ Plan ── write* ── finish ──▶ Opened ── inherited ──▶ vessel ──▶ every process: scripts
//!                                                   └── arm ── keep                 (its slots, locks, own watches)
//! ```
//!
//! An *open file description* (`OpenFile`) is shared by every slot that `dup`, `fork` or a message made from it. All of
//! them are made again in the restoring process before the job's first process exists: what is inherited is shared. Then
//! each process puts its slots in place by scripts ([`Opened::scripts`]), which also do what only a process can do for
//! itself: record locks, pidfds, what signals go to whom.
//!
//! Pages and files come in any order in an image, and pages can only be written into a vessel. So a restorer reads the
//! image twice: first the File records into [`Plan::write`], then [`Plan::finish`] and the vessel, then the Pages. What
//! [`check`] and `finish` created is removed again unless the restorer says [`Opened::keep`].
//!
//! | in the image       | found as                                        | restored as                                   |
//! |--------------------|-------------------------------------------------|-----------------------------------------------|
//! | `Regular`          | a file that its path leads to                   | opened by its path, or created from the image |
//! | … `(deleted)`      | a file without a name                           | a new file without a name, from the image     |
//! | `Directory`        | a directory that its path leads to              | opened by its path, at the same cookie        |
//! | `Device`, `Link`   | null, zero, full, …; `O_PATH` of a link itself  | opened by its path                            |
//! | `Inherited`        | 0, 1, 2: what came from outside                 | the restorer's stream of that number          |
//! | `Pipe`             | both ends in the job, or the other one gone     | made anew, with what was in it                |
//! | … with a path      | a FIFO                                          | opened by its path, filled if it is empty     |
//! | `Socket`           | a Unix socket whose other end is in the job     | made anew, with what was in it                |
//! | … of the Internet  | a socket that is not connected to anybody       | bound and listening as it was                 |
//! | …                  | both ends of a TCP connection                   | connected anew, with what was in it           |
//! | `Event`, `Timer`,  | what `/proc/PID/fdinfo` says of them            | the same                                      |
//! | `Signal`, `Epoll`, |                                                 |                                               |
//! | `Inotify`          |                                                 |                                               |
//! | `Process`          | a pidfd of the job's, or of one that has ended  | opened by each process                        |
//! | `Memory`           | a memory file                                   | made anew, with its contents and seals        |
//! | `Queue`            | a POSIX message queue ([`crate::ipc`])          | opened by the job's first process             |
//!
//! Everything else is refused by name.

mod diag;
mod epoll;
mod events;
mod inotify;
mod kernel;
mod memory_files;
mod paths;
mod pipes;
mod place;
mod sockets;
mod streams;
mod tables;
mod tcp;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, FlockOperation, Mode, OFlags, SeekFrom, Stat};
use rustix::io::Errno;
use vrun_image::state::{FileKind, FileLock, Job, LockHolder, OpenFile, Owner, RegularFile, Slot};
use vrun_image::{MAX_RUN, Writer};
use vrun_shim::Script;

use crate::ipc::{self, queues::Held};
use crate::proc::{FdDetails, ProcDir, ProcError};
use paths::Created;
pub use paths::{How, Note};
use streams::Streams;
use tables::{Description, Tables};
pub use tcp::reset;

/// What the kernel puts behind the path of a file that has none (`d_path`, `fs/d_path.c`).
const DELETED: &[u8] = b" (deleted)";
/// `__O_TMPFILE`: remains in the flags of a file that was opened with `O_TMPFILE`, together with `O_DIRECTORY`.
const TMPFILE: u32 = 0o20_000_000;
/// `O_LARGEFILE` of the kernel (the C library's is 0): every 64-bit `open` sets it.
const LARGEFILE: u32 = 0o100_000;
/// `O_ASYNC` (`FASYNC`).
const ASYNC: u32 = libc::O_ASYNC.cast_unsigned();
/// Flags that an open file has and that opening it again may be given.
const KEPT: u32 = (libc::O_ACCMODE
    | libc::O_APPEND
    | libc::O_NONBLOCK
    | libc::O_SYNC
    | libc::O_DIRECT
    | libc::O_DIRECTORY
    | libc::O_NOFOLLOW
    | libc::O_NOATIME
    | libc::O_PATH)
    .cast_unsigned()
    | LARGEFILE;
/// Flags that `F_SETFL` sets (`setfl`, `fs/fcntl.c`).
const SETTABLE: u32 =
    (libc::O_APPEND | libc::O_NONBLOCK | libc::O_DIRECT | libc::O_NOATIME | libc::O_ASYNC).cast_unsigned();

/// Why descriptors cannot be captured or restored.
#[derive(Debug, thiserror::Error)]
pub enum DescriptorError {
    /// The job holds something that no file can hold: a sentence that names the descriptor and what it is.
    #[error("{0}")]
    Unsupported(String),
    /// Something is not there: a sentence that names all that is missing, and what can be done.
    #[error("{0}")]
    Missing(String),
    /// Something is there, but it is not what the job had open.
    #[error("{0}")]
    Changed(String),
    /// The kernel refused.
    #[error("cannot {what} {path}: {source}")]
    Io {
        what: &'static str,
        path: String,
        source: io::Error,
    },
    #[error(transparent)]
    Proc(#[from] ProcError),
    #[error(transparent)]
    Image(#[from] vrun_image::Error),
}

type Result<T> = std::result::Result<T, DescriptorError>;

fn failed(what: &'static str, path: &[u8], source: impl Into<io::Error>) -> DescriptorError {
    let (path, source) = (show(path), source.into());
    DescriptorError::Io { what, path, source }
}

/// A path for a person. It was chosen by a program, and must not talk to a terminal.
fn show(path: &[u8]) -> String {
    String::from_utf8_lossy(path).replace(char::is_control, "\u{fffd}")
}

fn file_type(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

fn is_path_only(flags: u32) -> bool {
    flags & libc::O_PATH.cast_unsigned() != 0
}

/// What a description is, for a person: a noun with its article.
fn describe(description: &Description) -> String {
    let slot = &description.slot;
    let target = show(&slot.target);
    match file_type(&slot.stat) {
        FileType::Socket => {
            let fetched = description.fetch().ok();
            let described = fetched.and_then(|fd| sockets::describe(&fd).ok());
            described.unwrap_or_else(|| "a socket".to_owned())
        }
        FileType::Fifo if target.starts_with('/') => format!("the FIFO {target}"),
        FileType::Fifo => "a pipe".to_owned(),
        FileType::CharacterDevice | FileType::BlockDevice if target.ends_with("ptmx") => {
            "the master of a pseudo-terminal".to_owned()
        }
        FileType::CharacterDevice | FileType::BlockDevice => format!("the device {target}"),
        FileType::Symlink => format!("the symbolic link {target}"),
        _ if matches!(slot.info.details, FdDetails::Pidfd { .. }) => "a process (pidfd)".to_owned(),
        _ if is_message_queue(description) => format!("the POSIX message queue {target}"),
        _ if target.starts_with('/') => format!("{target}, a file of the kernel's"),
        _ => match target
            .strip_prefix("anon_inode:")
            .map(|name| name.trim_matches(['[', ']']))
        {
            Some(name) => format!("a {name}"),
            None => format!("the kernel object {target}"),
        },
    }
}

fn is_message_queue(description: &Description) -> bool {
    const MQUEUE_MAGIC: u32 = 0x1980_0202;
    // Its file system is on no device.
    let may_be = file_type(&description.slot.stat) == FileType::RegularFile;
    may_be
        && libc::major(description.slot.stat.st_dev) == 0
        && rustix::fs::statfs(description.magic()).is_ok_and(|system| system.f_type as u32 == MQUEUE_MAGIC)
}

/// The descriptors of all processes of a job: slots (number, close-on-exec) and the open file descriptions that they
/// point to, with where their contents are.
#[derive(Debug, Default)]
pub struct Captured {
    pub files: Vec<OpenFile>,
    /// Of each process, ascending by number.
    pub slots: Vec<Vec<Slot>>,
    /// Where the contents of files are read from: (process, number there).
    places: HashMap<u32, (i32, i32)>,
    /// What was in queues.
    contents: HashMap<u32, Vec<u8>>,
    /// The first description of each inode: (device, inode).
    inodes: HashMap<(u64, u64), u32>,
    /// Message queues, which [`FileKind::Queue`] numbers.
    pub queues: Vec<Held>,
    /// Keeps alive what `places` says of our own.
    passed: Vec<OwnedFd>,
    /// Copies of the ends of TCP connections, for [`reset`].
    pub connections: Vec<OwnedFd>,
}

/// What the processes have open: stopped ones that we may trace, parents before their children.
///
/// # Errors
/// [`DescriptorError::Unsupported`] names the first descriptor, in order, that a file cannot hold. `with_files` marks the
/// regular files as stored (see [`Captured::store`]) and thereby admits deleted ones. [`DescriptorError::Proc`].
pub fn capture(pids: &[i32], with_files: bool) -> Result<Captured> {
    let mut tables = Tables::read(pids)?;
    let any_socket = tables
        .descriptions
        .iter()
        .any(|one| one.inode_of(FileType::Socket).is_some());
    let unix = if any_socket {
        diag::unix_sockets().map_err(|error| failed("ask the kernel for", b"its Unix sockets (sock_diag)", error))?
    } else {
        HashMap::new()
    };
    // What is in a queue may be another socket with a queue of its own.
    let mut queues = HashMap::new();
    let streams = loop {
        let streams = find_streams(&tables, &unix);
        let mut seen_before = true;
        for index in 0..tables.descriptions.len() {
            let description = &tables.descriptions[index];
            let is_unix = description
                .inode_of(FileType::Socket)
                .is_some_and(|inode| unix.contains_key(&inode));
            if is_unix && !queues.contains_key(&index) && stream_of(&tables, &streams, index).is_none() {
                queues.insert(index, sockets::look(&mut tables, index)?);
                seen_before = false;
            }
        }
        if seen_before {
            break streams;
        }
    };

    let tcp = tcp::Ends::find(&tables);
    let mut captured = Captured::default();
    // For each open file of the image, what it is made from, and the reverse.
    let mut origins: Vec<(usize, Option<(u32, bool)>)> = Vec::new();
    let mut known: HashMap<(Option<u32>, usize), u32> = HashMap::new();
    let mut file_of: HashMap<usize, u32> = HashMap::new();
    let mut enter = |description: usize, stream: Option<(u32, bool)>| {
        let key = stream.map_or((None, description), |(standard, _)| (Some(standard), 0));
        let file = *known.entry(key).or_insert_with(|| {
            origins.push((description, stream));
            origins.len() as u32 - 1
        });
        file_of.entry(description).or_insert(file);
        file
    };
    for (process, entries) in tables.entries.iter().enumerate() {
        let slot = |entry: &tables::Entry| {
            let description = &tables.descriptions[entry.description];
            let stream = streams.of(description, entry.number, tables.controlling[process]);
            Slot {
                number: entry.number,
                close_on_exec: entry.close_on_exec,
                file: enter(entry.description, stream),
            }
        };
        captured.slots.push(entries.iter().map(slot).collect());
    }
    for description in 0..tables.descriptions.len() {
        enter(description, stream_of(&tables, &streams, description));
    }

    let by_inode: HashMap<u64, u32> = (file_of.iter())
        .filter_map(|(description, file)| Some((tables.descriptions[*description].inode_of(FileType::Socket)?, *file)))
        .collect();
    let around = sockets::Surroundings {
        tables: &tables,
        unix: &unix,
        tcp: &tcp,
        file: &|description| file_of.get(&description).copied(),
        by_inode: &|inode| by_inode.get(&inode).copied(),
    };
    let mut first_pipes: HashMap<u64, u32> = HashMap::new();
    let mut queue_inodes = Vec::new();
    let mut contents = HashMap::new();
    for (file, (index, stream)) in (0_u32..).zip(&origins) {
        let description = &tables.descriptions[*index];
        let stat = &description.slot.stat;
        let first = *captured.inodes.entry((stat.st_dev, stat.st_ino)).or_insert(file);
        let kind = if let Some((standard, terminal)) = *stream {
            FileKind::Inherited { standard, terminal }
        } else if let Some(inode) = description.inode_of(FileType::Fifo) {
            let first = *first_pipes.entry(inode).or_insert(file);
            let (kind, bytes) = pipes::capture(&tables, *index, first, first == file)?;
            captured.contents.insert(file, bytes);
            kind
        } else if description.inode_of(FileType::Socket).is_some() {
            let (kind, bytes) = sockets::capture(&around, *index, queues.remove(index))?;
            captured.contents.insert(file, bytes);
            kind
        } else if is_message_queue(description) && !is_path_only(description.slot.info.flags) {
            message_queue(&tables, description, &mut captured.queues, &mut queue_inodes)?
        } else if let Some(kind) = other_kind(&tables, *index, first, around.file)? {
            kind
        } else {
            paths::capture(&tables, description, with_files, &mut contents)?
        };
        let own_making = match kind {
            FileKind::Process { pid } if pid != 0 => Some("a process (pidfd)"),
            FileKind::Queue { .. } => Some("a POSIX message queue"),
            _ => None,
        };
        if let Some(what) = own_making.filter(|_| description.passed.is_some()) {
            let why = format!("is {what}, which cannot be kept in a file: use vmigrate");
            return description.refuse(&tables, why);
        }
        captured.places.insert(file, description.place());
        let plain = stream.is_none() && !is_path_only(description.slot.info.flags);
        captured.files.push(OpenFile {
            flags: flags(description),
            owner: if plain { owner(&tables, description)? } else { None },
            locks: if stream.is_none() {
                description.locks.clone()
            } else {
                Vec::new()
            },
            kind,
        });
    }
    captured.connections = tcp.into_copies();
    captured.passed = tables
        .descriptions
        .into_iter()
        .filter_map(|description| description.passed)
        .collect();
    Ok(captured)
}

/// The queue that a description is of; entered if it is new.
fn message_queue(
    tables: &Tables,
    description: &Description,
    queues: &mut Vec<Held>,
    inodes: &mut Vec<(u64, u64)>,
) -> Result<FileKind> {
    let stat = &description.slot.stat;
    let inode = (stat.st_dev, stat.st_ino);
    let queue = match inodes.iter().position(|other| *other == inode) {
        Some(queue) => queue,
        None => {
            let unlinked = stat.st_nlink == 0;
            let Some(held) = ipc::queues::held(&description.slot.target, unlinked, description.place()) else {
                let what = describe(description);
                return description.refuse(
                    tables,
                    format!("is {what}, opened as a file, which cannot be kept in one"),
                );
            };
            queues.push(held);
            inodes.push(inode);
            queues.len() - 1
        }
    };
    Ok(FileKind::Queue { queue: queue as u32 })
}

fn find_streams(tables: &Tables, unix: &HashMap<u64, diag::UnixSocket>) -> Streams {
    let inside = |inode: u64| {
        tables
            .descriptions
            .iter()
            .any(|one| one.inode_of(FileType::Socket) == Some(inode))
    };
    Streams::find(tables, &|inode| match unix.get(&inode).map(|socket| socket.peer) {
        Some(Some(peer)) if peer != 0 => streams::OtherEnd::of(inside(peer)),
        Some(_) => streams::OtherEnd::None,
        None => streams::OtherEnd::Outside,
    })
}

/// The standard stream that a description is the same as.
fn stream_of(tables: &Tables, streams: &Streams, index: usize) -> Option<(u32, bool)> {
    let description = &tables.descriptions[index];
    let process = tables.pids.iter().position(|pid| *pid == description.pid);
    let number = process.map_or(-1, |_| description.slot.number);
    streams.of(
        description,
        number,
        process.map_or(0, |process| tables.controlling[process]),
    )
}

/// The kinds that have neither a path nor a queue.
fn other_kind(
    tables: &Tables,
    index: usize,
    first: u32,
    file: &dyn Fn(usize) -> Option<u32>,
) -> Result<Option<FileKind>> {
    let description = &tables.descriptions[index];
    if is_path_only(description.slot.info.flags) {
        return Ok(None);
    }
    if let Some(kind) = events::capture(tables, description)? {
        return Ok(Some(kind));
    }
    if let Some(kind) = epoll::capture(tables, index, file)? {
        return Ok(Some(kind));
    }
    if let Some(kind) = inotify::capture(tables, index)? {
        return Ok(Some(kind));
    }
    memory_files::capture(tables, description, first, file(index) == Some(first))
}

fn flags(description: &Description) -> u32 {
    let flags = description.slot.info.flags;
    let dropped = if flags & TMPFILE != 0 {
        libc::O_DIRECTORY.cast_unsigned()
    } else {
        0
    };
    flags & (KEPT | ASYNC) & !dropped
}

/// Who is sent signals about it, with a number of the job's.
fn owner(tables: &Tables, description: &Description) -> Result<Option<Owner>> {
    const F_GETSIG: i32 = 11;
    let refused = tables::cannot("ask for the owner of", description);
    let fd = description.fetch()?;
    let (kind, id) = kernel::owner(fd.as_fd()).map_err(&refused)?;
    let signal = kernel::fcntl(fd.as_fd(), F_GETSIG, 0).map_err(&refused)?;
    let inner = match tables.inner_pid(id) {
        Some(inner) => inner,
        // A thread that is no leader, or a group whose leader is gone.
        None if id > 0 => ProcDir::open(id)
            .and_then(|directory| directory.status())
            .ok()
            .and_then(|status| status.namespace_pids.last().copied())
            .unwrap_or(0),
        None => 0,
    };
    Ok((inner != 0 || signal != 0).then_some(Owner {
        kind,
        id: inner,
        signal,
    }))
}

impl Captured {
    /// The open file, if any, that shows this inode: what is mapped of it is a mapping of that file.
    pub fn file_of(&self, device: u64, inode: u64) -> Option<u32> {
        self.inodes.get(&(device, inode)).copied()
    }

    /// Writes the contents of what has some, as they are at this moment; holes are left out. Gives the number of bytes.
    ///
    /// # Errors
    /// [`DescriptorError::Changed`] if somebody else made a file shorter since. [`DescriptorError::Io`] also if the
    /// program may only write a file and we may not read it. [`DescriptorError::Image`].
    pub fn store<W: Write>(&self, writer: &mut Writer<W>) -> Result<u64> {
        let mut total = 0;
        for (index, file) in (0_u32..).zip(&self.files) {
            if let Some(bytes) = self.contents.get(&index) {
                for (chunk, at) in bytes.chunks(MAX_RUN).zip((0..).step_by(MAX_RUN)) {
                    writer.file(index, at, chunk)?;
                }
                total += bytes.len() as u64;
                continue;
            }
            let (path, size) = match &file.kind {
                FileKind::Regular(regular) if regular.stored => (&regular.path, regular.size),
                FileKind::Memory(memory) if memory.memory == index => (&memory.name, memory.size),
                _ => continue,
            };
            let Some((pid, number)) = self.places.get(&index) else {
                continue;
            };
            total += store_file(index, path, size, &format!("/proc/{pid}/fd/{number}"), writer)?;
        }
        Ok(total)
    }
}

fn store_file<W: Write>(index: u32, path: &[u8], size: u64, magic: &str, writer: &mut Writer<W>) -> Result<u64> {
    let unreadable = |error: io::Error| failed("read the contents of", path, error);
    let shrank = || {
        let path = show(path);
        DescriptorError::Changed(format!(
            "{path} became shorter while it was saved: something else writes it; save again"
        ))
    };
    let (mut total, mut at) = (0, 0);
    let mut buffer = vec![0; MAX_RUN];
    // A description of our own: reading must not move the program's offset.
    let content = File::open(magic).map_err(unreadable)?;
    if content.metadata().map_err(unreadable)?.len() < size {
        return Err(shrank());
    }
    while at < size {
        at = match rustix::fs::seek(&content, SeekFrom::Data(at)) {
            Ok(data) if data < size => data,
            Ok(_) | Err(Errno::NXIO) => break,
            Err(Errno::INVAL) => at,
            Err(errno) => return Err(unreadable(errno.into())),
        };
        let hole = rustix::fs::seek(&content, SeekFrom::Hole(at)).unwrap_or(size);
        let length = (hole.clamp(at + 1, size) - at).min(MAX_RUN as u64) as usize;
        let run = &mut buffer[..length];
        content.read_exact_at(run, at).map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => shrank(),
            _ => unreadable(error),
        })?;
        writer.file(index, at, run)?;
        at += length as u64;
        total += length as u64;
    }
    Ok(total)
}

/// Where an open file of the job comes from.
#[derive(Debug)]
enum Source {
    Found(OwnedFd),
    /// The restorer's stream of this number.
    Standard(usize),
    /// Index into [`Created::files`].
    Created(usize),
    /// The first description of a memory file.
    Memory(OwnedFd),
    /// Made when the contents are there.
    Later,
}

/// How every descriptor will be restored. All that could be missing was found, and is held open.
#[derive(Debug)]
pub struct Plan {
    files: Vec<OpenFile>,
    slots: Vec<Vec<Slot>>,
    pids: Vec<i32>,
    realtime: u64,
    sources: Vec<Source>,
    /// What goes into queues.
    contents: HashMap<u32, Vec<u8>>,
    created: Created,
    working_directories: Vec<CString>,
    notes: Vec<Note>,
}

/// Finds everything that a job had open, before anything is started, and with `with_files` creates what is not found and
/// whose contents the image holds: where it was, else in `ID.files` in the current directory. Deleted files are made
/// anew in any case: they have no name under which they could be in the way. The job must be valid ([`Job::validate`]).
///
/// # Errors
/// [`DescriptorError::Missing`] with all that is missing, [`DescriptorError::Changed`] with what is of another kind or
/// size, [`DescriptorError::Io`] for what cannot be opened or created.
pub fn check(job: &Job, with_files: bool) -> Result<Plan> {
    let here = std::env::current_dir().map_err(|error| failed("find", b"the current directory", error))?;
    check_in(&here, job, with_files)
}

fn check_in(here: &Path, job: &Job, with_files: bool) -> Result<Plan> {
    // As many as we may: what the job's own limit is comes later.
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current = limit.maximum;
    let _ = rustix::process::setrlimit(rustix::process::Resource::Nofile, limit);
    // By path: the file as it was stored, and where its content is.
    let mut stored: HashMap<&[u8], (usize, &RegularFile)> = HashMap::new();
    for (index, file) in job.files.iter().enumerate() {
        if let FileKind::Regular(regular) = &file.kind
            && regular.stored
        {
            stored.entry(&regular.path).or_insert((index, regular));
        }
    }
    let (mut found, mut notes) = (Vec::new(), Vec::new());
    let (mut held, mut lacking) = (Vec::new(), Vec::new());
    let mut changed = None;
    for (index, file) in (0_u32..).zip(&job.files) {
        let (path, looked) = match &file.kind {
            FileKind::Inherited { standard, .. } => {
                found.push(Some(Source::Standard(*standard as usize)));
                continue;
            }
            FileKind::Memory(memory) if memory.memory == index => {
                let made = memory_files::create(memory)
                    .map_err(|error| failed("make the memory file", &memory.name, error))?;
                found.push(Some(Source::Memory(made)));
                continue;
            }
            FileKind::Pipe(end) if !end.path.is_empty() => {
                if rustix::fs::stat(&end.path[..]).is_err() {
                    lacking.push(show(&end.path));
                }
                found.push(Some(Source::Later));
                continue;
            }
            FileKind::Device { path, device, .. } => {
                (path, paths::find(path, file.flags, FileType::CharacterDevice, *device))
            }
            FileKind::Directory { path, .. } => (path, paths::find(path, file.flags, FileType::Directory, 0)),
            FileKind::Link { path } => (path, paths::find(path, file.flags, FileType::Symlink, 0)),
            FileKind::Regular(regular) if regular.path.ends_with(DELETED) => (&regular.path, Ok(None)),
            FileKind::Regular(regular) => (
                &regular.path,
                paths::find(&regular.path, file.flags, FileType::RegularFile, 0).and_then(|looked| {
                    if let Some((_, stat)) = &looked
                        && paths::has_grown(file.flags, regular, stat, stored.contains_key(&regular.path[..]))?
                    {
                        let path = PathBuf::from(std::ffi::OsStr::from_bytes(&regular.path));
                        let (original, actual, how) = (path.clone(), path, How::Grown);
                        let note = Note { original, actual, how };
                        if !notes.contains(&note) {
                            notes.push(note);
                        }
                    }
                    Ok(looked)
                }),
            ),
            _ => {
                found.push(Some(Source::Later));
                continue;
            }
        };
        found.push(match looked {
            Ok(Some((fd, _))) => Some(Source::Found(fd)),
            Ok(None) => {
                let held_here = stored.contains_key(&path[..]);
                if !held_here {
                    lacking.push(show(path));
                } else if !path.ends_with(DELETED) {
                    held.push(show(path));
                }
                None
            }
            Err(error) => {
                changed = changed.or(Some(error));
                None
            }
        });
    }
    if !lacking.is_empty() || (!held.is_empty() && !with_files) {
        return Err(DescriptorError::Missing(paths::missing(held, lacking)));
    }
    if let Some(error) = changed {
        return Err(error);
    }
    let mut working_directories = Vec::new();
    for process in &job.processes {
        let directory = paths::working_directory(here, &process.working_directory, with_files, &mut notes)?;
        working_directories.push(directory);
    }

    let mut created = Created::default();
    let mut by_path: HashMap<&[u8], usize> = HashMap::new();
    let mut sources = Vec::with_capacity(found.len());
    for (file, source) in job.files.iter().zip(found) {
        sources.push(match (source, &file.kind) {
            (Some(source), _) => source,
            (None, FileKind::Regular(RegularFile { path, .. })) if stored.contains_key(&path[..]) => {
                let index = match by_path.get(&path[..]) {
                    Some(index) => *index,
                    None => {
                        let (content, regular) = stored[&path[..]];
                        notes.push(created.add(regular, content, &job.id, here)?);
                        by_path.insert(path, created.files.len() - 1);
                        created.files.len() - 1
                    }
                };
                Source::Created(index)
            }
            (None, _) => {
                return Err(DescriptorError::Missing(
                    "an open file of the image is missing".to_owned(),
                ));
            }
        });
    }
    Ok(Plan {
        files: job.files.clone(),
        slots: job
            .processes
            .iter()
            .map(|process| process.descriptors.clone())
            .collect(),
        pids: job.processes.iter().map(|process| process.pid).collect(),
        realtime: job.clocks.realtime,
        sources,
        contents: HashMap::new(),
        created,
        working_directories,
        notes,
    })
}

impl Plan {
    /// Takes a run of content of `files[file]`: goes where this plan makes that file, else nowhere.
    ///
    /// # Errors
    /// [`DescriptorError::Io`]; a full disk.
    pub fn write(&mut self, file: u32, offset: u64, bytes: &[u8]) -> Result<()> {
        match self.sources.get(file as usize) {
            Some(Source::Created(index)) => {
                let created = &self.created.files[*index];
                if created.content == file as usize {
                    let named = || created.path.as_deref().unwrap_or(Path::new("a file without a name"));
                    created
                        .file
                        .write_all_at(bytes, offset)
                        .map_err(|error| failed("write", named().as_os_str().as_bytes(), error))?;
                }
            }
            Some(Source::Memory(fd)) => {
                memory_files::write(fd, offset, bytes).map_err(|error| failed("write", b"a memory file", error))?;
            }
            Some(Source::Later) => {
                let content = self.contents.entry(file).or_default();
                let end = offset as usize + bytes.len();
                if content.len() < end {
                    content.resize(end, 0);
                }
                content[offset as usize..end].copy_from_slice(bytes);
            }
            _ => {}
        }
        Ok(())
    }

    /// Makes every open file once, with its flags, at its offset and with what is in it. `standard`: the restorer's
    /// streams 0, 1, 2. Call it while this process has one thread: the current directory changes for a moment.
    ///
    /// # Errors
    /// [`DescriptorError::Io`]: something cannot be opened or made.
    pub fn finish(self, standard: [OwnedFd; 3]) -> Result<Opened> {
        let Self { files, sources, .. } = self;
        let mut made: Vec<Option<OwnedFd>> = Vec::with_capacity(files.len());
        let mut memories: HashMap<u32, OwnedFd> = HashMap::new();
        for (index, (file, source)) in (0_u32..).zip(files.iter().zip(sources)) {
            let (path, offset) = match &file.kind {
                FileKind::Regular(regular) => (&regular.path[..], Some(regular.offset)),
                FileKind::Directory { path, offset } => (&path[..], Some(*offset)),
                // The position of the five devices means nothing to them.
                FileKind::Device { path, .. } | FileKind::Link { path } => (&path[..], None),
                FileKind::Memory(memory) => (&memory.name[..], None),
                FileKind::Inherited { .. } => (&b"a standard stream"[..], None),
                _ => (&b"a descriptor"[..], None),
            };
            let cannot = |error: io::Error| failed("open", path, error);
            let fd = match source {
                Source::Found(fd) => Some(fd),
                Source::Standard(number) => {
                    Some(streams::inherit(&standard[number.min(2)], file.flags).map_err(|errno| cannot(errno.into()))?)
                }
                Source::Created(created) => {
                    // By the magic link: it leads to what was created, whatever happens to its name.
                    let link = format!("/proc/self/fd/{}", self.created.files[created].file.as_raw_fd());
                    let flags =
                        (OFlags::from_bits_retain(file.flags & (KEPT | ASYNC)) - OFlags::NOFOLLOW) | OFlags::CLOEXEC;
                    Some(rustix::fs::open(link, flags, Mode::empty()).map_err(|errno| cannot(errno.into()))?)
                }
                Source::Memory(fd) => {
                    let FileKind::Memory(memory) = &file.kind else { continue };
                    let opened = memory_files::open(&fd, file.flags, memory.offset).map_err(cannot)?;
                    memories.insert(index, fd);
                    Some(opened)
                }
                Source::Later => match &file.kind {
                    FileKind::Memory(memory) => {
                        let first = memories.get(&memory.memory);
                        let first =
                            first.ok_or_else(|| cannot(io::Error::other("the image lacks its first description")))?;
                        Some(memory_files::open(first, file.flags, memory.offset).map_err(cannot)?)
                    }
                    FileKind::Epoll { .. } => Some(
                        rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC)
                            .map_err(|errno| cannot(errno.into()))?,
                    ),
                    FileKind::Inotify { watches } => {
                        Some(inotify::restore(watches).map_err(|error| failed("watch with", b"inotify", error))?)
                    }
                    kind => events::restore(kind).map_err(cannot)?,
                },
            };
            if let (Some(offset), Some(fd)) = (offset.filter(|_| !is_path_only(file.flags)), &fd) {
                rustix::fs::seek(fd, SeekFrom::Start(offset)).map_err(|errno| failed("position", path, errno))?;
            }
            made.push(fd);
        }
        for (index, fd) in pipes::restore(&files, &self.contents)? {
            made[index] = Some(fd);
        }
        let mut sockets = sockets::restore(&files)?;
        for index in (0..files.len() as u32).filter(|index| made[*index as usize].is_none()) {
            if sockets.get(index).is_none() {
                return Err(DescriptorError::Unsupported(
                    "the image holds an open file of a kind that is unknown".to_owned(),
                ));
            }
        }
        let (mut deferred, mut senders) = (Vec::new(), Vec::new());
        let number = |index: u32| {
            let own = made[index as usize].as_ref();
            own.or_else(|| sockets.get(index)).map_or(-1, AsRawFd::as_raw_fd)
        };
        for index in 0..files.len() as u32 {
            let content = self.contents.get(&index).map_or(&[][..], Vec::as_slice);
            let filled = sockets.fill(&files, index, content, &number);
            let (later, from) = filled.map_err(|error| failed("fill the queue of", b"a socket", error))?;
            deferred.extend(later);
            senders.extend(from);
        }
        for (index, fd) in sockets.take() {
            made[index as usize] = Some(fd);
        }
        let ours: Vec<OwnedFd> = made.into_iter().flatten().collect();
        for (file, fd) in files.iter().zip(&ours) {
            attributes(file, fd)?;
        }
        let opened = Opened {
            ours,
            senders,
            deferred,
            sockets,
            files,
            slots: self.slots,
            pids: self.pids,
            realtime: self.realtime,
            created: self.created,
            working_directories: self.working_directories,
            notes: self.notes,
        };
        epoll::watch(&opened.files, &opened.ours, &|watch| opened.watches_inside(watch))?;
        opened.created.finish(&opened.files)?;
        Ok(opened)
    }
}

/// Status flags, the signal for I/O and the locks of an open file.
fn attributes(file: &OpenFile, fd: &OwnedFd) -> Result<()> {
    const F_SETSIG: i32 = 10;
    let path = match &file.kind {
        FileKind::Regular(regular) => &regular.path[..],
        _ => b"a descriptor",
    };
    let cannot = |what: &'static str| move |error: io::Error| failed(what, path, error);
    if is_path_only(file.flags) || matches!(file.kind, FileKind::Inherited { .. }) {
        return Ok(());
    }
    let now = rustix::fs::fcntl_getfl(fd).map_err(|errno| failed("look at", path, errno))?;
    let wanted = OFlags::from_bits_retain(now.bits() & !SETTABLE | file.flags & SETTABLE);
    if wanted != now {
        rustix::fs::fcntl_setfl(fd, wanted).map_err(|errno| failed("set the flags of", path, errno))?;
    }
    if let Some(owner) = file.owner
        && owner.signal != 0
    {
        kernel::fcntl(fd.as_fd(), F_SETSIG, owner.signal.into()).map_err(cannot("set the signal of"))?;
    }
    for lock in &file.locks {
        let done = match lock.holder {
            LockHolder::Whole if lock.write => {
                rustix::fs::flock(fd, FlockOperation::NonBlockingLockExclusive).map_err(io::Error::from)
            }
            LockHolder::Whole => rustix::fs::flock(fd, FlockOperation::NonBlockingLockShared).map_err(io::Error::from),
            LockHolder::Description => kernel::lock_range(fd.as_fd(), lock.write, lock.start, lock.end),
            LockHolder::Process(_) => Ok(()),
        };
        done.map_err(|error| failed("lock again (does somebody else hold a lock?)", path, error))?;
    }
    Ok(())
}

/// The open files of a job, for its processes. Dropped, it closes them, and removes what was created for them unless
/// [`Opened::keep`] was called.
#[derive(Debug)]
pub struct Opened {
    files: Vec<OpenFile>,
    slots: Vec<Vec<Slot>>,
    /// PIDs of the processes, in the job's own namespace.
    pids: Vec<i32>,
    realtime: u64,
    /// By index.
    ours: Vec<OwnedFd>,
    /// Sockets that only sent something.
    senders: Vec<OwnedFd>,
    deferred: Vec<sockets::Deferred>,
    sockets: sockets::Restored,
    created: Created,
    /// Where each process works.
    pub working_directories: Vec<CString>,
    /// What went where, for the person who restores.
    pub notes: Vec<Note>,
}

impl Opened {
    /// What the job's first process has to inherit, for [`crate::vessel::World::Host`]: (ours, number there,
    /// close-on-exec). The numbers stay as they are; [`Opened::scripts`] count on them.
    pub fn inherited(&self) -> Vec<(RawFd, i32, bool)> {
        self.numbers().map(|number| (number, number, true)).collect()
    }

    fn numbers(&self) -> impl Iterator<Item = RawFd> + '_ {
        let senders = self.deferred.iter().map(|deferred| deferred.sender);
        let mut numbers: Vec<RawFd> = self.ours.iter().map(AsRawFd::as_raw_fd).chain(senders).collect();
        numbers.sort_unstable();
        numbers.dedup();
        numbers.into_iter()
    }

    /// The first of the numbers that no process of the job needs, now or later: for whatever else they are given.
    pub fn free(&self) -> i32 {
        self.spare() + 1
    }

    /// A number that no process of the job needs.
    fn spare(&self) -> i32 {
        let slots = self.slots.iter().flatten().map(|slot| slot.number);
        slots.chain(self.numbers()).max().map_or(3, |highest| highest + 1)
    }

    /// What puts the descriptors of a process in place, from what [`Opened::inherited`] says: to be run in it, in this
    /// order, in the vrun area, when all processes of the job exist.
    pub fn scripts(&self, process: usize) -> Vec<Script> {
        place::scripts(self, process)
    }

    /// A descriptor of ours for an open file of the job.
    pub fn file(&self, index: u32) -> Option<BorrowedFd<'_>> {
        self.ours.get(index as usize).map(AsFd::as_fd)
    }

    /// Lets everything go on that does not wait for a process: timers count, what was closed or shut down is so again,
    /// memory files are sealed. To be called when all is in place and just before the job runs.
    ///
    /// # Errors
    /// [`DescriptorError::Io`].
    pub fn arm(&mut self) -> Result<()> {
        self.senders.clear();
        self.sockets
            .finish(&self.files, &self.ours)
            .map_err(|error| failed("shut down", b"a socket", error))?;
        for (file, fd) in self.files.iter().zip(&self.ours) {
            let done = match &file.kind {
                FileKind::Timer(timer) => events::arm(fd, timer, self.realtime),
                FileKind::Memory(memory) if memory.seals != 0 => memory_files::seal(fd, memory.seals),
                FileKind::Epoll { watches, ready: false } => epoll::settle(watches.len(), fd),
                _ => Ok(()),
            };
            done.map_err(|error| failed("start", b"a timer, seal or watch", error))?;
        }
        Ok(())
    }

    /// The job runs: what was created is its own.
    pub fn keep(&mut self) {
        self.created.keep = true;
        self.sockets.keep = true;
    }

    /// Whether a watch is added by a process of the job: one that has both the instance and what is watched.
    fn watches_inside(&self, watch: &vrun_image::state::EpollWatch) -> bool {
        let has = |slots: &Vec<Slot>| {
            slots
                .iter()
                .any(|slot| slot.number == watch.number && slot.file == watch.file)
        };
        epoll::is_of_process(&self.files, watch) && self.slots.iter().any(has)
    }

    fn locks_of(&self, process: i32) -> Vec<(u32, FileLock)> {
        let mut locks = Vec::new();
        for (index, file) in (0_u32..).zip(&self.files) {
            let own = file
                .locks
                .iter()
                .filter(|lock| lock.holder == LockHolder::Process(process));
            locks.extend(own.map(|lock| (index, *lock)));
        }
        locks
    }
}
