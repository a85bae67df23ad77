//! Files, directories and the few devices without state of their own: what a path leads to.
//!
//! - *A path that is the same file.* The kernel marks the path of a file that has no name any more, also of one that
//!   another was renamed over, with ` (deleted)`. The image keeps that mark, so that a restore never takes whatever
//!   has the path by then. What is really called so cannot be told from it and is refused.
//! - *One content for one path.* Of several open file descriptions of one path the first is marked as stored.
//! - *A file that is there is used as it is*, with `--with-files` too: nothing of the user's is overwritten. It must
//!   have the size that it had, or the program's offset and whatever it knows of the file would be wrong; equal size
//!   is taken for equal content. It may have grown if the program only reads it, or only appends to it: that is a log.

use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::fmt::{self, Display, Formatter};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use rustix::fs::{Access, FileType, Mode, OFlags, Stat, major, minor};
use rustix::io::Errno;
use vrun_image::state::{FileKind, OpenFile, RegularFile};

use super::tables::{Description, Tables};
use super::{ASYNC, DELETED, DescriptorError, KEPT, Result, describe, failed, file_type, show};

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

/// What a slot leads to that can be found again by a path. `contents`: which inode is stored for a path.
pub(super) fn capture(
    tables: &Tables,
    description: &Description,
    with_files: bool,
    contents: &mut HashMap<Vec<u8>, (u64, u64)>,
) -> Result<FileKind> {
    let slot = &description.slot;
    let (stat, target) = (&slot.stat, &slot.target);
    let refuse = |what: String| description.refuse(tables, format!("is {what}"));
    let offset = u64::try_from(slot.info.position).unwrap_or(0);
    let kind = file_type(stat);
    if kind == FileType::CharacterDevice && major(stat.st_rdev) == 1 {
        // By its number: the path may be that of another mount namespace.
        if let Some((_, path)) = NODES.iter().find(|node| node.0 == minor(stat.st_rdev)) {
            let (path, device) = (path.as_bytes().to_vec(), stat.st_rdev);
            return Ok(FileKind::Device { path, device, offset });
        }
    }
    let is_view =
        || rustix::fs::statfs(description.magic()).is_ok_and(|system| VIEWS.contains(&(system.f_type as u32)));
    let is_file = matches!(kind, FileType::RegularFile | FileType::Directory | FileType::Symlink)
        && target.starts_with(b"/")
        && !target.starts_with(b"/memfd:")
        && !is_view();
    if !is_file {
        let what = describe(description);
        return refuse(format!(
            "{what}, which cannot be kept in a file: close it or use vmigrate"
        ));
    }
    let (path, inode) = (target.clone(), (stat.st_dev, stat.st_ino));
    let leads_there = look(&path, kind).is_ok_and(|there| (there.st_dev, there.st_ino) == inode);
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
    if kind == FileType::Symlink {
        return match leads_there {
            true => Ok(FileKind::Link { path }),
            false => refuse(format!("the symbolic link {shown}, which is not there any more")),
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
pub(super) struct Created {
    pub files: Vec<CreatedFile>,
    directories: Vec<PathBuf>,
    pub keep: bool,
}

#[derive(Debug)]
pub(super) struct CreatedFile {
    pub file: File,
    /// None for a file without a name.
    pub path: Option<PathBuf>,
    /// The open file whose content is in the image.
    pub content: usize,
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
    pub(super) fn add(&mut self, regular: &RegularFile, content: usize, id: &str, here: &Path) -> Result<Note> {
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
                        AlreadyExists => DescriptorError::Changed(format!(
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

    /// Gives what was created its mode and time.
    pub(super) fn finish(&self, files: &[OpenFile]) -> Result<()> {
        for created in &self.files {
            let FileKind::Regular(regular) = &files[created.content].kind else {
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
        Ok(())
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

/// The mode comes last ([`Created::finish`]): until then the file is nobody else's.
fn new_file(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

/// Opens what is at `path`; none if there is nothing that we can see. `device`: for a device, its number.
pub(super) fn find(path: &[u8], flags: u32, expected: FileType, device: u64) -> Result<Option<(OwnedFd, Stat)>> {
    let verify = |stat: Stat| {
        let right = file_type(&stat) == expected && (expected != FileType::CharacterDevice || stat.st_rdev == device);
        let what = match expected {
            FileType::Directory => "a directory",
            FileType::RegularFile => "a regular file",
            FileType::Symlink => "a symbolic link",
            _ => "the device that it was",
        };
        if right {
            Ok(stat)
        } else {
            Err(DescriptorError::Changed(format!(
                "{} is not {what} here; move it away",
                show(path)
            )))
        }
    };
    // Looked at before it is opened: opening a FIFO waits, opening a device acts. And after: it may have been replaced.
    match look(path, expected) {
        Ok(stat) => verify(stat)?,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) => return Ok(None),
        Err(errno) => return Err(failed("look at", path, errno)),
    };
    let flags = OFlags::from_bits_retain(flags & (KEPT | ASYNC)) | OFlags::CLOEXEC;
    let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| failed("open", path, errno))?;
    let stat = rustix::fs::fstat(&fd).map_err(|errno| failed("look at", path, errno))?;
    Ok(Some((fd, verify(stat)?)))
}

/// What a path leads to; for a symbolic link, that itself.
fn look(path: &[u8], expected: FileType) -> rustix::io::Result<Stat> {
    match expected {
        FileType::Symlink => rustix::fs::lstat(path),
        _ => rustix::fs::stat(path),
    }
}

/// Whether a file that was found is longer than it was, and may be; an error if it is not what the program knows.
pub(super) fn has_grown(flags: u32, saved: &RegularFile, now: &Stat, held: bool) -> Result<bool> {
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
    Err(DescriptorError::Changed(format!(
        "{path} has changed since the image was made: it has {size} bytes and had {was}; {remedy}"
    )))
}

/// The sentence about what is missing, each name once.
pub(super) fn missing(mut held: Vec<String>, mut lacking: Vec<String>) -> String {
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

pub(super) fn working_directory(here: &Path, cwd: &[u8], with_files: bool, notes: &mut Vec<Note>) -> Result<CString> {
    let original = Path::new(OsStr::from_bytes(cwd));
    let enterable = original.is_dir() && rustix::fs::access(original, Access::EXEC_OK).is_ok();
    let chosen = if enterable { original } else { here };
    if !enterable && !with_files {
        return Err(DescriptorError::Missing(format!(
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
