//! The descriptors of a job that becomes a file: their capture, and side by side with it their restore.
//!
//! ```text
//!  frozen process ── capture ──▶ Descriptors (in the Job) ── check ──▶ Plan ── write* ── finish ──▶ Opened ──▶ vessel
//!                 └─ store ───▶ File runs ──────────────────────────────────┘                        keep()
//! ```
//!
//! The vessel is forked with its descriptors in place, and only then can pages be written into it, while an image has
//! its pages and files in any order. So a restorer reads the image twice: first the File records into
//! [`Plan::write`], then [`Plan::finish`] and the vessel, then the Pages. What [`check`] and `finish` created is removed
//! again unless the restorer says [`Opened::keep`].
//!
//! | in the image     | found as                                          | restored as                                   |
//! |------------------|---------------------------------------------------|-----------------------------------------------|
//! | `Regular`        | a file that its path leads to                     | opened by its path, or created from the image |
//! | … `(deleted)`    | a file without a name                             | a new file without a name, from the image     |
//! | `Directory`      | a directory that its path leads to                | opened by its path, at the same cookie        |
//! | `Device`         | null, zero, full, random, urandom                 | opened by its path                            |
//! | `Inherited`      | 0, 1, 2: terminal, pipe, socket; what is the same | the restorer's stream of that number          |
//!
//! - *A path that is the same file.* The kernel marks the path of a file that has no name any more, also of one that
//!   another was renamed over, with ` (deleted)`. The image keeps that mark, so that a restore never takes whatever
//!   has the path by then. What is really called so cannot be told from it and is refused.
//! - *One content for one path.* Of several open file descriptions of one path the first is marked as stored.
//! - *A file that is there is used as it is*, with `--with-files` too: nothing of the user's is overwritten. It must
//!   have the size that it had, or the program's offset and whatever it knows of the file would be wrong; equal size
//!   is taken for equal content. It may have grown if the program only reads it, or only appends to it: that is a log.
//! - *Standard streams.* Programs get one terminal three times from one `open`; a restorer's streams may be different.
//!   So each of 0, 1 and 2 is a stream of its own, and another slot of the same description, or of the same terminal,
//!   belongs to one of them: of a terminal to the highest (people redirect standard error least), else to 1 first.

use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::fmt::{self, Display, Formatter};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use rustix::fs::{Access, FileType, Mode, OFlags, SeekFrom, Stat, major, makedev, minor};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddr, SocketAddrUnix, SocketType, sockopt};
use vrun_image::state::{FileKind, OpenFile, Process, RegularFile, Slot};
use vrun_image::{MAX_RUN, Writer};

use crate::proc::fds::open_files;
use crate::proc::{Descriptor, FdDetails, ProcDir, ProcError};
use crate::sys;

/// What the kernel puts behind the path of a file that has none (`d_path`, `fs/d_path.c`).
const DELETED: &[u8] = b" (deleted)";
/// `__O_TMPFILE`: remains in the flags of a file that was opened with `O_TMPFILE`, together with `O_DIRECTORY`.
const TMPFILE: u32 = 0o20_000_000;
/// `O_LARGEFILE` of the kernel (the C library's is 0): every 64-bit `open` sets it.
const LARGEFILE: u32 = 0o100_000;
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
/// The devices without state of their own, `drivers/char/mem.c`: all of major number 1.
const NODES: [(u32, &str); 5] = [
    (3, "/dev/null"),
    (5, "/dev/zero"),
    (7, "/dev/full"),
    (8, "/dev/random"),
    (9, "/dev/urandom"),
];
/// File systems whose regular files are views of kernel objects: proc, mqueue, nsfs, pidfs, secretmem
/// (`linux/magic.h`, `ipc/mqueue.c`).
const VIEWS: [u32; 5] = [0x9fa0, 0x1980_0202, 0x6e73_6673, 0x5049_4446, 0x5345_434d];

/// Why descriptors cannot be captured or restored.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
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

type Result<T> = std::result::Result<T, FilesError>;

/// The descriptor table of a process: slots (number, close-on-exec) and the open file descriptions that they point to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Descriptors {
    /// Ascending by number.
    pub slots: Vec<Slot>,
    pub files: Vec<OpenFile>,
}

fn failed(what: &'static str, path: &[u8], source: impl Into<io::Error>) -> FilesError {
    let (path, source) = (show(path), source.into());
    FilesError::Io { what, path, source }
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

/// What a process has open. `pid` is a stopped process of one thread that we may trace.
///
/// # Errors
/// [`FilesError::Unsupported`] names the first descriptor, in order, that a file cannot hold. `with_files` marks the
/// regular files as stored (see [`store`]) and thereby admits deleted ones. [`FilesError::Proc`].
pub fn capture(pid: i32, with_files: bool) -> Result<Descriptors> {
    let directory = ProcDir::open(pid)?;
    let found = directory.descriptors()?;
    let groups = open_files(&found.iter().map(|slot| (pid, slot.number)).collect::<Vec<_>>());
    let controlling = u64::from(directory.stat()?.terminal.cast_unsigned());
    let standard: Vec<(&Descriptor, usize)> = (found.iter().zip(groups.iter().copied()))
        .filter(|(slot, _)| slot.number <= 2 && is_stream(slot, controlling))
        .collect();
    let mut descriptors = Descriptors::default();
    let (mut known, mut contents) = (HashMap::new(), HashMap::new());
    for (slot, group) in found.iter().zip(groups) {
        if !slot.info.locks.is_empty() {
            let (number, path) = (slot.number, show(&slot.target));
            return Err(FilesError::Unsupported(format!(
                "descriptor {number} holds a lock on {path}, which cannot be kept in a file: unlock it or use vmigrate"
            )));
        }
        let stream = stream_of(slot, group, &standard, controlling);
        let key = stream.map_or((None, group), |standard| (Some(standard), 0));
        let file = match known.get(&key) {
            Some(file) => *file,
            None => {
                let kind = match stream {
                    Some(standard) => FileKind::Inherited {
                        standard,
                        terminal: terminal(slot, controlling).is_some(),
                    },
                    None => named(&directory, slot, with_files, &mut contents)?,
                };
                let temporary = slot.info.flags & TMPFILE != 0;
                let dropped = if temporary {
                    libc::O_DIRECTORY.cast_unsigned()
                } else {
                    0
                };
                let flags = slot.info.flags & KEPT & !dropped;
                let file = descriptors.files.len() as u32;
                descriptors.files.push(OpenFile {
                    flags,
                    owner: None,
                    locks: Vec::new(),
                    kind,
                });
                known.insert(key, file);
                file
            }
        };
        descriptors.slots.push(Slot {
            number: slot.number,
            close_on_exec: slot.info.close_on_exec,
            file,
        });
    }
    Ok(descriptors)
}

/// The device number of the terminal that a slot leads to. `/dev/tty` (5, 0) is an alias of the controlling one.
fn terminal(slot: &Descriptor, controlling: u64) -> Option<u64> {
    let device = slot.stat.st_rdev;
    let alias = makedev(5, 0);
    let known = match (major(device), minor(device)) {
        // ptmx: the master side of a pseudo-terminal.
        (5, 2) => false,
        (4 | 5 | 136..=143, _) => true,
        _ => slot.target.starts_with(b"/dev/tty") || slot.target.starts_with(b"/dev/hvc"),
    };
    let known = known && file_type(&slot.stat) == FileType::CharacterDevice && !is_path_only(slot.info.flags);
    match known {
        true if device == alias && controlling != 0 => Some(controlling),
        true => Some(device),
        false => None,
    }
}

/// Whether a slot is of the kind that a job gets from its starter.
fn is_stream(slot: &Descriptor, controlling: u64) -> bool {
    let is_pipe = matches!(file_type(&slot.stat), FileType::Fifo | FileType::Socket) && !is_path_only(slot.info.flags);
    is_pipe || terminal(slot, controlling).is_some()
}

/// The standard stream that a slot is, or is the same as.
fn stream_of(slot: &Descriptor, group: usize, standard: &[(&Descriptor, usize)], controlling: u64) -> Option<u32> {
    let own = terminal(slot, controlling);
    let same = |(stream, other): &&(&Descriptor, usize)| {
        stream.number == slot.number || *other == group || (own.is_some() && own == terminal(stream, controlling))
    };
    let rank = |number: i32| match number {
        number if number == slot.number => 3,
        number if own.is_some() => number,
        1 => 2,
        2 => 1,
        _ => 0,
    };
    let best = standard
        .iter()
        .filter(same)
        .max_by_key(|(stream, _)| rank(stream.number));
    // A slot below 3 that is no stream by itself shares no description with one that is.
    best.and_then(|(stream, _)| u32::try_from(stream.number).ok())
}

/// What a slot leads to that can be found again by a path. `contents`: which inode is stored for a path.
fn named(
    directory: &ProcDir,
    slot: &Descriptor,
    with_files: bool,
    contents: &mut HashMap<Vec<u8>, (u64, u64)>,
) -> Result<FileKind> {
    let (number, stat, target) = (slot.number, &slot.stat, &slot.target);
    let refuse = |what: String| Err(FilesError::Unsupported(format!("descriptor {number} is {what}")));
    let offset = u64::try_from(slot.info.position).unwrap_or(0);
    let kind = file_type(stat);
    if kind == FileType::CharacterDevice && major(stat.st_rdev) == 1 {
        // By its number: the path may be that of another mount namespace.
        if let Some((_, path)) = NODES.iter().find(|node| node.0 == minor(stat.st_rdev)) {
            let (path, device) = (path.as_bytes().to_vec(), stat.st_rdev);
            return Ok(FileKind::Device { path, device, offset });
        }
    }
    let magic = format!("/proc/{}/fd/{number}", directory.pid());
    let is_view = || rustix::fs::statfs(&magic).is_ok_and(|system| VIEWS.contains(&(system.f_type as u32)));
    let is_file = matches!(kind, FileType::RegularFile | FileType::Directory)
        && target.starts_with(b"/")
        && !target.starts_with(b"/memfd:")
        && !is_view();
    if !is_file {
        let what = describe(directory.pid(), slot);
        return refuse(format!(
            "{what}, which cannot be kept in a file: close it or use vmigrate"
        ));
    }
    let (path, inode) = (target.clone(), (stat.st_dev, stat.st_ino));
    let leads_there = rustix::fs::stat(&path[..]).is_ok_and(|there| (there.st_dev, there.st_ino) == inode);
    let unnamed = !leads_there && stat.st_nlink == 0 && path.ends_with(DELETED);
    let shown = show(path.strip_suffix(DELETED).filter(|_| unnamed).unwrap_or(&path));
    if kind == FileType::Directory {
        return match (leads_there, unnamed) {
            (true, _) => Ok(FileKind::Directory { path, offset }),
            (_, true) => refuse(format!("the deleted directory {shown}, which cannot be saved")),
            _ => refuse(format!(
                "the directory {shown}, but that path leads to something else by now"
            )),
        };
    }
    match (leads_there, unnamed) {
        (true, _) if path.ends_with(DELETED) => {
            return refuse(format!(
                "the file {shown}, whose name looks like that of a deleted file: rename it"
            ));
        }
        (_, true) if !with_files => {
            return refuse(format!(
                "the deleted file {shown}, which cannot be saved without --with-files"
            ));
        }
        (false, false) => {
            return refuse(format!(
                "the file {shown}, but that path leads to something else by now"
            ));
        }
        _ => {}
    }
    let stored = with_files && contents.get(&path).is_none();
    if with_files && *contents.entry(path.clone()).or_insert(inode) != inode {
        return refuse(format!("one of two deleted files {shown}, which cannot be told apart"));
    }
    Ok(FileKind::Regular(RegularFile {
        path,
        offset,
        size: u64::try_from(stat.st_size).unwrap_or(0),
        mode: stat.st_mode,
        modified: (stat.st_mtime.saturating_mul(1_000_000_000)).saturating_add(stat.st_mtime_nsec as i64),
        stored,
    }))
}

/// What a slot leads to, for a person: a noun with its article.
fn describe(pid: i32, slot: &Descriptor) -> String {
    let target = show(&slot.target);
    match file_type(&slot.stat) {
        FileType::Socket => socket(pid, slot.number).unwrap_or_else(|_| "a socket".to_owned()),
        FileType::Fifo if target.starts_with('/') => format!("the FIFO {target}"),
        FileType::Fifo => "a pipe".to_owned(),
        FileType::CharacterDevice | FileType::BlockDevice => format!("the device {target}"),
        FileType::Symlink => format!("the symbolic link {target}"),
        _ if target.starts_with("/memfd:") => {
            format!("the memory file {} (memfd)", &target["/memfd:".len()..]).replace(" (deleted)", "")
        }
        _ if matches!(slot.info.details, FdDetails::Pidfd { .. }) => "a process (pidfd)".to_owned(),
        _ if target.starts_with('/') => format!("{target}, a file of the kernel's"),
        _ => match target
            .strip_prefix("anon_inode:")
            .map(|name| name.trim_matches(['[', ']']))
        {
            Some("eventpoll") => "an epoll instance".to_owned(),
            Some("eventfd") => "an eventfd".to_owned(),
            Some("inotify") => "an inotify instance".to_owned(),
            Some(name) => format!("a {name}"),
            None => format!("the kernel object {target}"),
        },
    }
}

fn socket(pid: i32, number: i32) -> io::Result<String> {
    let socket = sys::descriptor_of(pid, number)?;
    let (family, kind) = (sockopt::socket_domain(&socket)?, sockopt::socket_type(&socket)?);
    let listening = sockopt::socket_acceptconn(&socket)?;
    let name = match (family, kind) {
        (AddressFamily::INET | AddressFamily::INET6, SocketType::STREAM) => "TCP",
        (AddressFamily::INET | AddressFamily::INET6, SocketType::DGRAM) => "UDP",
        (AddressFamily::UNIX, _) => "Unix",
        (AddressFamily::NETLINK, _) => "netlink",
        _ => "network",
    };
    let address = if listening {
        Some(rustix::net::getsockname(&socket)?)
    } else {
        rustix::net::getpeername(&socket).unwrap_or(None)
    };
    let Some(address) = address else {
        return Ok(format!("a {name} socket"));
    };
    let address = match SocketAddr::try_from(address.clone()) {
        Ok(address) => Some(address.to_string()),
        Err(_) => SocketAddrUnix::try_from(address)?
            .path()
            .map(|path| show(path.to_bytes())),
    };
    Ok(match (listening, address) {
        (true, Some(address)) => format!("a {name} socket listening on {address}"),
        (true, None) => format!("a listening {name} socket"),
        (false, Some(address)) => format!("a {name} connection to {address}"),
        (false, None) => format!("a {name} connection"),
    })
}

/// Writes the contents of the files that [`capture`] marked as stored, as they are at this moment, as runs of
/// `processes[process]`; holes are left out. Gives the number of bytes written.
///
/// # Errors
/// [`FilesError::Changed`] if somebody else made a file shorter since. [`FilesError::Io`] also if the program may only
/// write a file and we may not read it. [`FilesError::Image`].
pub fn store<W: Write>(pid: i32, descriptors: &Descriptors, writer: &mut Writer<W>) -> Result<u64> {
    let mut total = 0;
    let mut buffer = vec![0; MAX_RUN];
    for (index, file) in descriptors.files.iter().enumerate() {
        let FileKind::Regular(regular) = &file.kind else {
            continue;
        };
        let slot = descriptors.slots.iter().find(|slot| slot.file as usize == index);
        let (true, Some(slot)) = (regular.stored, slot) else {
            continue;
        };
        let unreadable = |error: io::Error| failed("read the contents of", &regular.path, error);
        // A description of our own: reading must not move the program's offset.
        let content = File::open(format!("/proc/{pid}/fd/{}", slot.number)).map_err(unreadable)?;
        if content.metadata().map_err(unreadable)?.len() < regular.size {
            return Err(shrank(regular));
        }
        let mut at = 0;
        while at < regular.size {
            at = match rustix::fs::seek(&content, SeekFrom::Data(at)) {
                Ok(data) if data < regular.size => data,
                Ok(_) | Err(Errno::NXIO) => break,
                Err(Errno::INVAL) => at,
                Err(errno) => return Err(unreadable(errno.into())),
            };
            let hole = rustix::fs::seek(&content, SeekFrom::Hole(at)).unwrap_or(regular.size);
            let length = (hole.clamp(at + 1, regular.size) - at).min(MAX_RUN as u64) as usize;
            let run = &mut buffer[..length];
            content.read_exact_at(run, at).map_err(|error| match error.kind() {
                ErrorKind::UnexpectedEof => shrank(regular),
                _ => unreadable(error),
            })?;
            writer.file(index as u32, at, run)?;
            at += length as u64;
            total += length as u64;
        }
    }
    Ok(total)
}

fn unknown() -> FilesError {
    FilesError::Unsupported("the image holds kinds of descriptors that this version cannot restore".to_owned())
}

fn shrank(file: &RegularFile) -> FilesError {
    let path = show(&file.path);
    FilesError::Changed(format!(
        "{path} became shorter while it was saved: something else writes it; save again"
    ))
}

/// Where a file, or the working directory, of a restored job went, if that is not simply where it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// The path that the job knows.
    pub original: PathBuf,
    /// What it leads to now; empty for a file without a name.
    pub actual: PathBuf,
    pub how: How,
}

/// What was done about a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Created from the image, where it was.
    Created,
    /// Created from the image, elsewhere: its directory is not there, or is not ours to write.
    CreatedElsewhere,
    /// Created from the image without a name, as it had none.
    Unnamed,
    /// Used as it is, although it has grown.
    Grown,
    /// The working directory is not there; the restorer's is used.
    WorkingDirectory,
}

impl Display for Note {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let [original, actual] = [&self.original, &self.actual].map(|path| show(path.as_os_str().as_bytes()));
        match self.how {
            How::Created => write!(f, "{original} was created from the image"),
            How::CreatedElsewhere => write!(f, "{original} was created from the image as {actual}"),
            How::Unnamed => write!(f, "{original} was restored from the image, without a name"),
            How::Grown => write!(f, "{original} has grown since the image was made; it is used as it is"),
            How::WorkingDirectory => write!(f, "the working directory {original} is not here; {actual} is used"),
        }
    }
}

/// Files made for a job that does not run yet: removed again when dropped, unless kept.
#[derive(Debug, Default)]
struct Created {
    files: Vec<CreatedFile>,
    directories: Vec<PathBuf>,
    keep: bool,
}

#[derive(Debug)]
struct CreatedFile {
    file: File,
    /// None for a file without a name.
    path: Option<PathBuf>,
    /// The open file whose content is in the image.
    content: usize,
}

impl Drop for Created {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        let files = self.files.iter().filter_map(|created| created.path.as_ref());
        let files = files.map(|path| (path, fs::remove_file(path)));
        let directories = self.directories.iter().rev().map(|path| (path, fs::remove_dir(path)));
        for (path, result) in files.chain(directories) {
            if let Err(error) = result {
                tracing::warn!(path = %path.display(), %error, "cannot remove what was created from the image");
            }
        }
    }
}

impl Created {
    /// Creates the file that `regular` was, of its size and without content; says where.
    fn add(&mut self, regular: &RegularFile, content: usize, id: &str, here: &Path) -> Result<Note> {
        let cannot = |error: io::Error| failed("create", &regular.path, error);
        let original = Path::new(OsStr::from_bytes(&regular.path));
        let note = |actual: &Path, how| Note {
            original: original.to_owned(),
            actual: actual.to_owned(),
            how,
        };
        let (file, note) = if regular.path.ends_with(DELETED) {
            let beside = original.parent().map(tempfile::tempfile_in);
            let file = match beside {
                Some(Ok(file)) => file,
                _ => tempfile::tempfile_in(here).map_err(cannot)?,
            };
            (file, note(Path::new(""), How::Unnamed))
        } else {
            use ErrorKind::{AlreadyExists, NotADirectory, NotFound, PermissionDenied, ReadOnlyFilesystem};
            match new_file(original) {
                Ok(file) => (file, note(original, How::Created)),
                Err(error)
                    if [
                        NotFound,
                        NotADirectory,
                        PermissionDenied,
                        ReadOnlyFilesystem,
                        AlreadyExists,
                    ]
                    .contains(&error.kind()) =>
                {
                    let path = self.place(original, id, here)?;
                    let file = new_file(&path).map_err(|error| match error.kind() {
                        AlreadyExists => FilesError::Changed(format!(
                            "{} is there already, from an earlier restore: move it away",
                            show(path.as_os_str().as_bytes())
                        )),
                        _ => failed("create", path.as_os_str().as_bytes(), error),
                    })?;
                    (file, note(&path, How::CreatedElsewhere))
                }
                Err(error) => return Err(cannot(error)),
            }
        };
        let path = Some(note.actual.clone()).filter(|_| note.how != How::Unnamed);
        self.files.push(CreatedFile { file, path, content });
        // What is not stored is zero.
        self.files[self.files.len() - 1]
            .file
            .set_len(regular.size)
            .map_err(cannot)?;
        Ok(note)
    }

    /// `HERE/ID.files/ORIGINAL/PATH`, with its directories made. An image cannot lead out of there with `..`.
    fn place(&mut self, original: &Path, id: &str, here: &Path) -> Result<PathBuf> {
        let mut path = here.join(format!("{id}.files"));
        for component in original.components() {
            let Component::Normal(name) = component else { continue };
            match fs::create_dir(&path) {
                Ok(()) => self.directories.push(path.clone()),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(failed("create the directory", path.as_os_str().as_bytes(), error)),
            }
            path.push(name);
        }
        Ok(path)
    }
}

/// The mode comes last ([`Plan::finish`]): until then the file is nobody else's.
fn new_file(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

/// Where an open file of the job comes from.
#[derive(Debug)]
enum Source {
    Found(OwnedFd),
    /// The restorer's stream of this number.
    Standard(usize),
    /// Index into [`Created::files`].
    Created(usize),
}

/// How every descriptor will be restored. All that could be missing was found, and is held open.
#[derive(Debug)]
pub struct Plan {
    descriptors: Descriptors,
    sources: Vec<Source>,
    created: Created,
    working_directory: CString,
    notes: Vec<Note>,
}

/// Finds everything that `process` had open, before anything is started, and with `with_files` creates what is not
/// found and whose contents the image holds: where it was, else in `ID.files` in the current directory. Deleted files
/// are made anew in any case: they have no name under which they could be in the way. `process` must be valid
/// ([`vrun_image::state::Job::validate`]), `id` its job's.
///
/// # Errors
/// [`FilesError::Missing`] with all that is missing, [`FilesError::Changed`] with what is of another kind or size,
/// [`FilesError::Io`] for what cannot be opened or created.
pub fn check(id: &str, files: &[OpenFile], process: &Process, with_files: bool) -> Result<Plan> {
    let here = std::env::current_dir().map_err(|error| failed("find", b"the current directory", error))?;
    let descriptors = Descriptors {
        slots: process.descriptors.clone(),
        files: files.to_vec(),
    };
    check_in(&here, id, &descriptors, &process.working_directory, with_files)
}

fn check_in(here: &Path, id: &str, descriptors: &Descriptors, cwd: &[u8], with_files: bool) -> Result<Plan> {
    // By path: the file as it was stored, and where its content is.
    let mut stored: HashMap<&[u8], (usize, &RegularFile)> = HashMap::new();
    for (index, file) in descriptors.files.iter().enumerate() {
        if let FileKind::Regular(regular) = &file.kind
            && regular.stored
        {
            stored.entry(&regular.path).or_insert((index, regular));
        }
    }
    let (mut found, mut notes) = (Vec::new(), Vec::new());
    let (mut held, mut lacking) = (Vec::new(), Vec::new());
    let mut changed = None;
    for file in &descriptors.files {
        let (path, looked) = match &file.kind {
            FileKind::Inherited { standard, .. } => {
                found.push(Some(Source::Standard(*standard as usize)));
                continue;
            }
            FileKind::Device { path, device, .. } => (path, find(path, file.flags, FileType::CharacterDevice, *device)),
            FileKind::Directory { path, .. } => (path, find(path, file.flags, FileType::Directory, 0)),
            FileKind::Regular(regular) if regular.path.ends_with(DELETED) => (&regular.path, Ok(None)),
            FileKind::Regular(regular) => (
                &regular.path,
                find(&regular.path, file.flags, FileType::RegularFile, 0).and_then(|looked| {
                    if let Some((_, stat)) = &looked
                        && has_grown(file.flags, regular, stat, stored.contains_key(&regular.path[..]))?
                    {
                        let path = PathBuf::from(OsStr::from_bytes(&regular.path));
                        let (original, actual, how) = (path.clone(), path, How::Grown);
                        let note = Note { original, actual, how };
                        if !notes.contains(&note) {
                            notes.push(note);
                        }
                    }
                    Ok(looked)
                }),
            ),
            _ => return Err(unknown()),
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
        return Err(FilesError::Missing(missing(held, lacking)));
    }
    if let Some(error) = changed {
        return Err(error);
    }
    let working_directory = working_directory(here, cwd, with_files, &mut notes)?;

    let mut created = Created::default();
    let mut by_path: HashMap<&[u8], usize> = HashMap::new();
    let mut sources = Vec::with_capacity(found.len());
    for (file, source) in descriptors.files.iter().zip(found) {
        sources.push(match (source, &file.kind) {
            (Some(source), _) => source,
            (None, FileKind::Regular(RegularFile { path, .. })) if stored.contains_key(&path[..]) => {
                let index = match by_path.get(&path[..]) {
                    Some(index) => *index,
                    None => {
                        let (content, regular) = stored[&path[..]];
                        notes.push(created.add(regular, content, id, here)?);
                        by_path.insert(path, created.files.len() - 1);
                        created.files.len() - 1
                    }
                };
                Source::Created(index)
            }
            (None, _) => return Err(FilesError::Missing("an open file of the image is missing".to_owned())),
        });
    }
    Ok(Plan {
        descriptors: descriptors.clone(),
        sources,
        created,
        working_directory,
        notes,
    })
}

/// Opens what is at `path`; none if there is nothing that we can see. `device`: for a device, its number.
fn find(path: &[u8], flags: u32, expected: FileType, device: u64) -> Result<Option<(OwnedFd, Stat)>> {
    let verify = |stat: Stat| {
        let right = file_type(&stat) == expected && (expected != FileType::CharacterDevice || stat.st_rdev == device);
        let what = match expected {
            FileType::Directory => "a directory",
            FileType::RegularFile => "a regular file",
            _ => "the device that it was",
        };
        if right {
            Ok(stat)
        } else {
            Err(FilesError::Changed(format!(
                "{} is not {what} here; move it away",
                show(path)
            )))
        }
    };
    // Looked at before it is opened: opening a FIFO waits, opening a device acts. And after: it may have been replaced.
    match rustix::fs::stat(path) {
        Ok(stat) => verify(stat)?,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) => return Ok(None),
        Err(errno) => return Err(failed("look at", path, errno)),
    };
    let flags = OFlags::from_bits_retain(flags & KEPT) | OFlags::CLOEXEC;
    let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| failed("open", path, errno))?;
    let stat = rustix::fs::fstat(&fd).map_err(|errno| failed("look at", path, errno))?;
    Ok(Some((fd, verify(stat)?)))
}

/// Whether a file that was found is longer than it was, and may be; an error if it is not what the program knows.
fn has_grown(flags: u32, saved: &RegularFile, now: &Stat, held: bool) -> Result<bool> {
    let (size, was, flags) = (u64::try_from(now.st_size).unwrap_or(0), saved.size, flags.cast_signed());
    let may_grow = flags & libc::O_ACCMODE == libc::O_RDONLY || flags & libc::O_APPEND != 0;
    if size == was || flags & libc::O_PATH != 0 {
        return Ok(false);
    }
    if size > was && may_grow {
        return Ok(true);
    }
    let path = show(&saved.path);
    let remedy = if held {
        "move it away and use --with-files"
    } else {
        "put it back as it was"
    };
    Err(FilesError::Changed(format!(
        "{path} has changed since the image was made: it has {size} bytes and had {was}; {remedy}"
    )))
}

/// The sentence about what is missing, each name once.
fn missing(mut held: Vec<String>, mut lacking: Vec<String>) -> String {
    for names in [&mut held, &mut lacking] {
        names.sort_unstable();
        names.dedup();
    }
    let (in_image, nowhere) = (held.join(", "), lacking.join(", "));
    match (held.is_empty(), lacking.is_empty()) {
        (_, true) => format!("not found here: {in_image}; the image holds the contents: use --with-files"),
        (true, _) => format!(
            "not found here: {nowhere}; the image does not hold the contents: copy them here or save with --with-files"
        ),
        _ => format!(
            "not found here: {in_image}, {nowhere}; the image holds only {in_image}: copy the others here, \
             and use --with-files"
        ),
    }
}

fn working_directory(here: &Path, cwd: &[u8], with_files: bool, notes: &mut Vec<Note>) -> Result<CString> {
    let original = Path::new(OsStr::from_bytes(cwd));
    let enterable = original.is_dir() && rustix::fs::access(original, Access::EXEC_OK).is_ok();
    let chosen = if enterable { original } else { here };
    if !enterable && !with_files {
        return Err(FilesError::Missing(format!(
            "the working directory {} is not found here: create it, or use --with-files to work in this one",
            show(cwd)
        )));
    }
    if !enterable {
        notes.push(Note {
            original: original.to_owned(),
            actual: here.to_owned(),
            how: How::WorkingDirectory,
        });
    }
    CString::new(chosen.as_os_str().as_bytes()).map_err(|error| failed("use", cwd, io::Error::from(error)))
}

impl Plan {
    /// Takes a run of content of `descriptors.files[file]`: goes into that file if this plan created it, else nowhere.
    ///
    /// # Errors
    /// [`FilesError::Io`]; a full disk.
    pub fn write(&mut self, file: u32, offset: u64, bytes: &[u8]) -> Result<()> {
        let Some(Source::Created(index)) = self.sources.get(file as usize) else {
            return Ok(());
        };
        let created = &self.created.files[*index];
        if created.content == file as usize {
            let named = || created.path.as_deref().unwrap_or(Path::new("a file without a name"));
            created
                .file
                .write_all_at(bytes, offset)
                .map_err(|error| failed("write", named().as_os_str().as_bytes(), error))?;
        }
        Ok(())
    }

    /// Opens every open file once, with its flags and at its offset. `standard`: the restorer's streams 0, 1, 2.
    ///
    /// # Errors
    /// [`FilesError::Io`]: a descriptor cannot be opened or positioned.
    pub fn finish(self, standard: [OwnedFd; 3]) -> Result<Opened> {
        let mut files = Vec::with_capacity(self.sources.len());
        for (file, source) in self.descriptors.files.iter().zip(self.sources) {
            let (path, offset) = match &file.kind {
                FileKind::Regular(regular) => (&regular.path[..], Some(regular.offset)),
                FileKind::Directory { path, offset } => (&path[..], Some(*offset)),
                // The position of the five devices means nothing to them.
                FileKind::Device { path, .. } => (&path[..], None),
                FileKind::Inherited { .. } => (&b"a standard stream"[..], None),
                _ => return Err(unknown()),
            };
            let cannot = |errno: Errno| failed("open", path, errno);
            let fd = match source {
                Source::Found(fd) => fd,
                Source::Standard(number) => inherit(&standard[number.min(2)], file.flags).map_err(cannot)?,
                Source::Created(index) => {
                    // By the magic link: it leads to what was created, whatever happens to its name.
                    let link = format!("/proc/self/fd/{}", self.created.files[index].file.as_raw_fd());
                    let flags = (OFlags::from_bits_retain(file.flags & KEPT) - OFlags::NOFOLLOW) | OFlags::CLOEXEC;
                    rustix::fs::open(link, flags, Mode::empty()).map_err(cannot)?
                }
            };
            if let Some(offset) = offset.filter(|_| !is_path_only(file.flags)) {
                rustix::fs::seek(&fd, SeekFrom::Start(offset)).map_err(|errno| failed("position", path, errno))?;
            }
            files.push(fd);
        }
        for created in &self.created.files {
            let FileKind::Regular(regular) = &self.descriptors.files[created.content].kind else {
                continue;
            };
            let cannot = |error| failed("set the mode and time of", &regular.path, error);
            // Not set-user-ID: the owner is now another one.
            let mode = Permissions::from_mode(regular.mode & 0o777);
            created.file.set_permissions(mode).map_err(cannot)?;
            if let Ok(nanoseconds) = u64::try_from(regular.modified) {
                let modified = UNIX_EPOCH + Duration::from_nanos(nanoseconds);
                created.file.set_modified(modified).map_err(cannot)?;
            }
        }
        Ok(Opened {
            files,
            slots: self.descriptors.slots,
            created: self.created,
            working_directory: self.working_directory,
            notes: self.notes,
        })
    }
}

/// A stream of the restorer for the job. It is shared with whoever gave it to us, as it was at home: `O_NONBLOCK` is set
/// if the program counts on it, and nothing else is touched.
fn inherit(stream: &OwnedFd, flags: u32) -> rustix::io::Result<OwnedFd> {
    let fd = rustix::io::fcntl_dupfd_cloexec(stream, 0)?;
    let now = rustix::fs::fcntl_getfl(&fd)?;
    if flags & libc::O_NONBLOCK.cast_unsigned() != 0 && !now.contains(OFlags::NONBLOCK) {
        rustix::fs::fcntl_setfl(&fd, now | OFlags::NONBLOCK)?;
    }
    Ok(fd)
}

/// The open files of a job, for its vessel. Dropped, it closes them, and removes what was created for them unless
/// [`Opened::keep`] was called.
#[derive(Debug)]
pub struct Opened {
    files: Vec<OwnedFd>,
    slots: Vec<Slot>,
    created: Created,
    /// Where the job works.
    pub working_directory: CString,
    /// What went where, for the person who restores.
    pub notes: Vec<Note>,
}

impl Opened {
    /// For [`crate::vessel::World::Host`]: (ours, number there, close-on-exec).
    pub fn placements(&self) -> Vec<(RawFd, i32, bool)> {
        let place = |slot: &Slot| {
            (
                self.files[slot.file as usize].as_raw_fd(),
                slot.number,
                slot.close_on_exec,
            )
        };
        self.slots.iter().map(place).collect()
    }

    /// The job runs: what was created is its own.
    pub fn keep(&mut self) {
        self.created.keep = true;
    }
}

#[cfg(test)]
#[allow(unsafe_code)] // fork: only so can a process have exactly the descriptors that a test wants
mod tests {
    use std::io::{Read, Seek, SeekFrom};
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::net::UnixStream;

    use rustix::event::{PollFd, PollFlags, Timespec};

    use super::*;
    use crate::proc::FdInfo;

    /// A process with the given descriptors and no others, that waits to be killed.
    struct Child(i32);

    impl Drop for Child {
        fn drop(&mut self) {
            // SAFETY: plain numbers, of a child that was not waited for yet.
            unsafe {
                libc::kill(self.0, libc::SIGKILL);
                libc::waitpid(self.0, std::ptr::null_mut(), 0);
            }
        }
    }

    impl Child {
        fn new(slots: &[(&dyn AsRawFd, i32)]) -> Child {
            Child::with(slots, || {})
        }

        /// `prelude` runs in the child: async-signal-safe calls only.
        fn with(slots: &[(&dyn AsRawFd, i32)], prelude: impl Fn()) -> Child {
            // Above all numbers that tests use, so that no placement overwrites a source.
            let raise = |fd: RawFd| {
                // SAFETY: plain numbers; the result is checked, new and ours.
                unsafe { std::os::fd::FromRawFd::from_raw_fd(libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 200)) }
            };
            let sources: Vec<OwnedFd> = slots.iter().map(|slot| raise(slot.0.as_raw_fd())).collect();
            let (mut ready, writer) = io::pipe().unwrap();
            let done: OwnedFd = raise(writer.as_raw_fd());
            drop(writer);
            // SAFETY: the child makes system calls only; on failure it ends, which the captures then find.
            let pid = unsafe { libc::fork() };
            if pid == 0 {
                // SAFETY: as above.
                unsafe {
                    libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                    libc::syscall(libc::SYS_close_range, 0, 199, 0);
                    for (source, (_, number)) in sources.iter().zip(slots) {
                        libc::dup3(
                            source.as_raw_fd(),
                            *number,
                            if *number % 2 == 1 { libc::O_CLOEXEC } else { 0 },
                        );
                    }
                    prelude();
                    libc::syscall(libc::SYS_close_range, 200, u32::MAX, 0);
                    loop {
                        libc::pause();
                    }
                }
            }
            assert!(pid > 0);
            let child = Child(pid);
            drop(done);
            // Ends when the child, too, has closed the other side: it is ready.
            let mut wait = [PollFd::new(&ready, PollFlags::IN)];
            let limit = Timespec { tv_sec: 30, tv_nsec: 0 };
            assert_eq!(
                rustix::event::poll(&mut wait, Some(&limit)).unwrap(),
                1,
                "the child is not ready"
            );
            assert_eq!(ready.read(&mut [0]).unwrap(), 0);
            child
        }

        fn capture(&self, with_files: bool) -> Descriptors {
            capture(self.0, with_files).unwrap()
        }
    }

    fn streams() -> [OwnedFd; 3] {
        [(); 3].map(|()| File::open("/dev/null").unwrap().into())
    }

    fn info(fd: RawFd) -> FdInfo {
        FdInfo::parse(&fs::read(format!("/proc/self/fdinfo/{fd}")).unwrap()).unwrap()
    }

    fn check(here: &Path, descriptors: &Descriptors, with_files: bool) -> Result<Plan> {
        check_in(here, "j1", descriptors, b"/", with_files)
    }

    fn open(path: &Path, flags: i32) -> OwnedFd {
        rustix::fs::open(path, OFlags::from_bits_retain(flags as u32), Mode::empty()).unwrap()
    }

    /// The content of every stored file, through a real image section.
    fn stored(child: &Child, descriptors: &Descriptors) -> Vec<(u32, u64, Vec<u8>)> {
        let mut job = sample_job();
        job.files = descriptors.files.clone();
        job.processes[0].descriptors = descriptors.slots.clone();
        let mut writer = Writer::new(Vec::new()).unwrap();
        writer.job(&job).unwrap();
        let bytes = store(child.0, descriptors, &mut writer).unwrap();
        let (image, totals) = writer.finish().unwrap();
        assert_eq!(totals.file_bytes, bytes);
        let mut reader = vrun_image::Reader::new(&image[..]).unwrap();
        let mut runs = Vec::new();
        loop {
            match reader.next().unwrap() {
                vrun_image::Record::File {
                    file, offset, bytes, ..
                } => runs.push((file, offset, bytes.to_vec())),
                vrun_image::Record::End(_) => return runs,
                _ => {}
            }
        }
    }

    fn sample_job() -> vrun_image::state::Job {
        use vrun_image::state::*;
        let registers = Registers {
            cs: 0x33,
            ss: 0x2b,
            eflags: 0x202,
            ..Registers::default()
        };
        let thread = Thread {
            tid: 1,
            name: b"sample".to_vec(),
            registers,
            xstate: vec![0; 576],
            blocked: 0,
            pending: Vec::new(),
            alternate_stack: AlternateStack::default(),
            robust_list: RobustList::default(),
            clear_child_tid: 0,
            rseq: None,
            timer_slack: 0,
            parent_death_signal: 0,
            scheduling: Scheduling::default(),
            controls: ThreadControls::default(),
            used: ThreadUsage::default(),
        };
        let process = Process {
            pid: 1,
            parent: 0,
            group: 1,
            session: 1,
            exit_signal: 0,
            stopped: 0,
            executable: b"/bin/sample".to_vec(),
            memory: Memory {
                areas: Vec::new(),
                layout: Layout::default(),
                auxv: Vec::new(),
                vdso: None,
                lock_future: 0,
                keys: 0,
            },
            signals: Signals {
                actions: Vec::new(),
                pending: Vec::new(),
                interval_timers: [IntervalTimer::default(); 3],
                timers: Vec::new(),
            },
            descriptors: Vec::new(),
            working_directory: b"/".to_vec(),
            umask: 0o22,
            credentials: Credentials {
                uid: [0; 4],
                gid: [0; 4],
                groups: Vec::new(),
                capabilities: [0; 5],
                secure_bits: 0,
            },
            limits: Vec::new(),
            personality: 0,
            dumpable: 1,
            subreaper: false,
            oom_score: 0,
            no_huge_pages: false,
            controls: ProcessControls::default(),
            used: Usage::default(),
            threads: vec![thread],
        };
        Job {
            id: "j1".to_owned(),
            name: None,
            command: vec![b"sample".to_vec()],
            host: Host {
                nodename: "here".to_owned(),
                kernel: String::new(),
                machine: String::new(),
            },
            clocks: Clocks {
                realtime: 0,
                monotonic: 0,
                boottime: 0,
            },
            cpu: CpuFeatures::default(),
            files: Vec::new(),
            shared: Vec::new(),
            processes: vec![process],
            zombies: Vec::new(),
        }
    }

    #[test]
    fn files_that_are_there_are_opened_as_they_were() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("log");
        fs::write(&path, "0123456789").unwrap();
        let append = open(&path, libc::O_WRONLY | libc::O_APPEND | libc::O_NONBLOCK);
        let mut reader = File::open(&path).unwrap();
        reader.seek(SeekFrom::Start(4)).unwrap();
        let directory = open(home.path(), libc::O_RDONLY | libc::O_DIRECTORY);
        let label = open(&path, libc::O_PATH);
        let null = open(Path::new("/dev/null"), libc::O_RDWR);
        let child = Child::new(&[
            (&null, 0),
            (&append, 1),
            (&append, 2),
            (&reader, 7),
            (&directory, 8),
            (&label, 9),
            (&reader, 40),
        ]);
        let descriptors = child.capture(false);
        let slots: Vec<_> = (descriptors.slots.iter())
            .map(|slot| (slot.number, slot.file, slot.close_on_exec))
            .collect();
        let expected = [
            (0, 0, false),
            (1, 1, true),
            (2, 1, false),
            (7, 2, true),
            (8, 3, false),
            (9, 4, true),
        ];
        assert_eq!(slots[..6], expected);
        assert_eq!(slots[6], (40, 2, false));
        let FileKind::Regular(file) = &descriptors.files[2].kind else {
            panic!("{descriptors:?}")
        };
        assert_eq!((&file.path[..], file.offset), (path.as_os_str().as_bytes(), 4));
        assert_eq!(
            (file.size, file.mode, file.stored),
            (10, fs::metadata(&path).unwrap().mode(), false)
        );

        let opened = check(home.path(), &descriptors, false)
            .unwrap()
            .finish(streams())
            .unwrap();
        assert_eq!(opened.notes, []);
        let placements = opened.placements();
        for ((ours, number, close_on_exec), (_, _, expected)) in placements.iter().zip(slots) {
            let there = fs::read(format!("/proc/{}/fdinfo/{number}", child.0)).unwrap();
            let (there, here) = (FdInfo::parse(&there).unwrap(), info(*ours));
            assert_eq!(
                (here.position, here.flags, *close_on_exec),
                (there.position, there.flags, expected)
            );
        }
        assert_eq!((placements[1].0, placements[3].0), (placements[2].0, placements[6].0));

        // A log may grow, but not shrink; what is written at an offset may do neither.
        fs::write(&path, "0123456789 and more").unwrap();
        let plan = check(home.path(), &descriptors, false).unwrap();
        assert_eq!(plan.notes.iter().map(|note| note.how).collect::<Vec<_>>(), [How::Grown]);
        fs::write(&path, "01234567").unwrap();
        let error = check(home.path(), &descriptors, false).unwrap_err().to_string();
        assert!(
            error.contains("log has changed") && error.contains("8 bytes and had 10"),
            "{error}"
        );
        let mut writer = descriptors;
        writer.files[1].flags = libc::O_WRONLY as u32;
        fs::write(&path, "0123456789 and more").unwrap();
        assert!(matches!(
            check(home.path(), &writer, false),
            Err(FilesError::Changed(_))
        ));
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        let error = check(home.path(), &writer, false).unwrap_err().to_string();
        assert!(error.contains("is not a regular file"), "{error}");
    }

    #[test]
    fn missing_files_come_from_the_image() {
        let home = tempfile::tempdir().unwrap();
        let away = tempfile::tempdir().unwrap();
        let (one, two) = (home.path().join("one"), home.path().join("sub/two"));
        fs::create_dir(home.path().join("sub")).unwrap();
        fs::write(&one, "first").unwrap();
        // Its second half is a hole.
        fs::write(&two, vec![7; 3 << 20]).unwrap();
        File::options()
            .write(true)
            .open(&two)
            .unwrap()
            .set_len(6 << 20)
            .unwrap();
        fs::set_permissions(&one, Permissions::from_mode(0o400)).unwrap();
        let mut gone = tempfile::tempfile_in(home.path()).unwrap();
        gone.write_all(b"nameless").unwrap();
        let mut reader = File::open(&one).unwrap();
        reader.seek(SeekFrom::Start(2)).unwrap();
        let slots: [(&dyn AsRawFd, i32); 4] = [
            (&reader, 3),
            (&File::open(&one).unwrap(), 4),
            (&File::options().read(true).write(true).open(&two).unwrap(), 5),
            (&gone, 6),
        ];
        let child = Child::new(&slots);
        let error = capture(child.0, false).unwrap_err().to_string();
        assert!(error.contains("descriptor 6 is the deleted file"), "{error}");
        let (bare, full) = (Child::new(&slots[..3]).capture(false), child.capture(true));
        let runs = stored(&child, &full);
        let modified = fs::metadata(&one).unwrap().modified().unwrap();
        assert!(runs.iter().map(|run| run.2.len()).sum::<usize>() < 4 << 20);

        drop(reader);
        fs::remove_file(&one).unwrap();
        fs::remove_dir_all(home.path().join("sub")).unwrap();
        for (descriptors, word) in [(&bare, "does not hold"), (&full, "use --with-files")] {
            let error = check(away.path(), descriptors, false).unwrap_err().to_string();
            assert!(
                error.contains("one, ") && error.contains("two;") && error.contains(word),
                "{error}"
            );
        }
        assert!(matches!(check(away.path(), &bare, true), Err(FilesError::Missing(_))));
        let elsewhere = away.path().join(format!("j1.files{}", two.display()));
        // Without keep, nothing stays behind: of a plan, and of what came of it.
        drop(check(away.path(), &full, true).unwrap());
        drop(check(away.path(), &full, true).unwrap().finish(streams()).unwrap());
        for directory in [&away, &home] {
            assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        }

        let mut plan = check(away.path(), &full, true).unwrap();
        for (file, offset, bytes) in &runs {
            plan.write(*file, *offset, bytes).unwrap();
        }
        plan.write(99, 0, b"nowhere").unwrap();
        let mut opened = plan.finish(streams()).unwrap();
        opened.keep();
        let notes: Vec<_> = opened
            .notes
            .iter()
            .map(|note| (note.actual.as_path(), note.how))
            .collect();
        let expected = [
            (one.as_path(), How::Created),
            (elsewhere.as_path(), How::CreatedElsewhere),
            (Path::new(""), How::Unnamed),
        ];
        assert_eq!(notes, expected);
        assert!(
            opened.notes[1]
                .to_string()
                .contains("sub/two was created from the image as ")
        );
        let placements = opened.placements();
        let content = |index: usize| fs::read(format!("/proc/self/fd/{}", placements[index].0)).unwrap();
        assert_eq!((content(0), content(1)), (b"first".to_vec(), b"first".to_vec()));
        assert_eq!((info(placements[0].0).position, info(placements[1].0).position), (2, 0));
        assert_eq!((content(3), info(placements[3].0).position), (b"nameless".to_vec(), 8));
        drop(opened);
        assert_eq!(fs::metadata(&one).unwrap().mode() & 0o7777, 0o400);
        assert_eq!(fs::metadata(&one).unwrap().modified().unwrap(), modified);
        let two = fs::read(&elsewhere).unwrap();
        assert!(two.len() == 6 << 20 && two[..3 << 20].iter().all(|byte| *byte == 7));
        assert!(two[3 << 20..].iter().all(|byte| *byte == 0));
        let error = check(away.path(), &full, true).unwrap_err().to_string();
        assert!(error.contains("from an earlier restore"), "{error}");
        assert!(one.exists(), "an existing file is not ours to remove");
    }

    #[test]
    fn an_image_cannot_lead_out_of_its_directory() {
        let away = tempfile::tempdir().unwrap();
        let here = away.path().join("here");
        fs::create_dir(&here).unwrap();
        let file = RegularFile {
            path: b"/nowhere/../../../out".to_vec(),
            offset: 0,
            size: 1,
            mode: 0o104_777,
            modified: 0,
            stored: true,
        };
        let descriptors = Descriptors {
            slots: Vec::new(),
            files: vec![OpenFile {
                flags: 0,
                owner: None,
                locks: Vec::new(),
                kind: FileKind::Regular(file),
            }],
        };
        let mut opened = check(&here, &descriptors, true).unwrap().finish(streams()).unwrap();
        opened.keep();
        let path = here.join("j1.files/nowhere/out");
        assert_eq!(fs::metadata(path).unwrap().mode() & 0o7777, 0o777);
    }

    #[test]
    fn a_file_that_shrinks_while_it_is_saved_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "0123456789").unwrap();
        let child = Child::new(&[(file.as_file(), 3)]);
        let mut job = sample_job();
        let descriptors = child.capture(true);
        job.files = descriptors.files.clone();
        job.processes[0].descriptors = descriptors.slots.clone();
        file.as_file().set_len(9).unwrap();
        let mut writer = Writer::new(Vec::new()).unwrap();
        writer.job(&job).unwrap();
        let result = store(child.0, &descriptors, &mut writer);
        assert!(matches!(result, Err(FilesError::Changed(_))), "{result:?}");
    }

    #[test]
    fn standard_streams_are_the_restorers() {
        use rustix::pty;
        let master = pty::openpt(pty::OpenptFlags::RDWR | pty::OpenptFlags::NOCTTY).unwrap();
        pty::grantpt(&master).unwrap();
        pty::unlockpt(&master).unwrap();
        let name = pty::ptsname(&master, Vec::new()).unwrap();
        let name = Path::new(OsStr::from_bytes(name.as_bytes()));
        let flags = libc::O_RDWR | libc::O_NOCTTY;
        let (terminal, again) = (open(name, flags), open(name, flags));
        let (input, _writer) = io::pipe().unwrap();
        rustix::fs::fcntl_setfl(&input, OFlags::NONBLOCK).unwrap();
        let slots: [(&dyn AsRawFd, i32); 5] = [
            (&input, 0),
            (&terminal, 1),
            (&terminal, 2),
            (&terminal, 10),
            (&again, 11),
        ];
        let child = Child::with(&slots, || {
            // SAFETY: system calls on numbers and a literal; the new descriptor is 3.
            unsafe {
                libc::setsid();
                libc::ioctl(2, libc::TIOCSCTTY, 0);
                libc::open(c"/dev/tty".as_ptr(), libc::O_RDWR);
                libc::dup2(0, 12);
            }
        });
        let descriptors = child.capture(true);
        let kinds: Vec<_> = (descriptors.slots.iter())
            .map(|slot| match descriptors.files[slot.file as usize].kind {
                FileKind::Inherited { standard, terminal } => (slot.number, standard, terminal),
                ref other => panic!("{other:?}"),
            })
            .collect();
        let tty = |number, standard| (number, standard, true);
        let expected = [
            (0, 0, false),
            tty(1, 1),
            tty(2, 2),
            tty(3, 2),
            tty(10, 2),
            tty(11, 2),
            (12, 0, false),
        ];
        assert_eq!((kinds, descriptors.files.len()), (expected.to_vec(), 3));

        let files = [(); 3].map(|()| tempfile::tempfile().unwrap());
        let inodes = files.each_ref().map(|file| file.metadata().unwrap().ino());
        let plan = check(Path::new("/"), &descriptors, false).unwrap();
        let opened = plan.finish(files.map(OwnedFd::from)).unwrap();
        for ((ours, number, _), expected) in opened.placements().into_iter().zip([0, 1, 2, 2, 2, 2, 0]) {
            let here = info(ours);
            assert_eq!(here.inode, Some(inodes[expected]), "descriptor {number}");
            assert_eq!(here.flags & libc::O_NONBLOCK as u32 != 0, expected == 0);
        }
        let error = capture(Child::new(&[(&terminal, 5)]).0, false).unwrap_err().to_string();
        assert!(error.contains("descriptor 5 is the device /dev/pts/"), "{error}");
    }

    #[test]
    fn what_no_file_can_hold_is_refused_by_name() {
        let home = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let connection = TcpStream::connect(address).unwrap();
        let fd = |name: &str| File::open(name).unwrap();
        // SAFETY: plain numbers and a literal; each result is a new descriptor that is ours.
        let [event, epoll, memory] = unsafe {
            use std::os::fd::FromRawFd;
            [
                libc::eventfd(0, 0),
                libc::epoll_create1(0),
                libc::memfd_create(c"scratch".as_ptr(), 0),
            ]
            .map(|fd| OwnedFd::from_raw_fd(fd))
        };
        let locked = File::create(home.path().join("locked")).unwrap();
        locked.lock().unwrap();
        let odd = File::create(home.path().join("odd (deleted)")).unwrap();
        let moved = home.path().join("moved");
        let replaced = File::create(&moved).unwrap();
        fs::hard_link(&moved, home.path().join("link")).unwrap();
        fs::remove_file(&moved).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let removed = fd(directory.path().to_str().unwrap());
        drop(directory);
        let connected = format!("a TCP connection to {address}");
        let listening = format!("a TCP socket listening on {address}");
        let cases: [(&dyn AsRawFd, &str); 13] = [
            (&connection, &connected),
            (&listener, &listening),
            (&UnixStream::pair().unwrap().0, "a Unix connection"),
            (&io::pipe().unwrap().0, "a pipe"),
            (&event, "an eventfd"),
            (&epoll, "an epoll instance"),
            (&memory, "the memory file scratch (memfd)"),
            (&fd("/proc/self/status"), "status, a file of the kernel's"),
            (&fd("/proc/self/ns/mnt"), "the kernel object mnt:["),
            (&locked, "holds a lock on"),
            (&odd, "whose name looks like that of a deleted file"),
            (&replaced, "leads to something else"),
            (&removed, "the deleted directory"),
        ];
        for (file, words) in cases {
            for with_files in [false, true] {
                match capture(Child::new(&[(file, 4)]).0, with_files) {
                    Err(FilesError::Unsupported(sentence)) => {
                        assert!(
                            sentence.starts_with("descriptor 4 ") && sentence.contains(words),
                            "{sentence}"
                        );
                    }
                    other => panic!("{words}: {other:?}"),
                }
            }
        }
    }

    #[test]
    fn the_working_directory_may_be_replaced() {
        let here = tempfile::tempdir().unwrap();
        let cwd = here.path().join("gone");
        let check = |with_files| {
            check_in(
                here.path(),
                "j1",
                &Descriptors::default(),
                cwd.as_os_str().as_bytes(),
                with_files,
            )
        };
        let error = check(false).unwrap_err().to_string();
        assert!(
            error.contains("the working directory") && error.contains("gone is not found"),
            "{error}"
        );
        let opened = check(true).unwrap().finish(streams()).unwrap();
        assert_eq!(opened.working_directory.as_bytes(), here.path().as_os_str().as_bytes());
        assert_eq!(opened.notes[0].how, How::WorkingDirectory);
    }
}
