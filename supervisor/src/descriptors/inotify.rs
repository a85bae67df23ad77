//! inotify instances: what they watch, under the numbers that the program knows.
//!
//! The kernel tells only the inode of what is watched. Its path is looked for where the job works: what it has open and
//! where that lies, its working directories and below. An instance with unread events is refused: they cannot be put
//! into a queue again.

use rustix::fs::inotify;
use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirEntryExt;
use std::path::{Path, PathBuf};
use vrun_image::state::{FileKind, InotifyWatch};

use super::tables::{Tables, cannot};
use super::{DELETED, Result, kernel};
use crate::proc::{FdDetails, ProcDir};

/// How many directory entries are looked at for a path.
const MOST_LOOKED_AT: usize = 200_000;

/// What an instance watches; none if the description is something else.
pub(super) fn capture(tables: &Tables, index: usize) -> Result<Option<FileKind>> {
    let description = &tables.descriptions[index];
    let watched = match &description.slot.info.details {
        FdDetails::Inotify(watches) => &watches[..],
        _ if description.slot.target == b"anon_inode:inotify" => &[],
        _ => return Ok(None),
    };
    let refused = cannot("look at", description);
    let fd = description.fetch()?;
    if kernel::ioctl_int(fd.as_fd(), libc::FIONREAD).map_err(&refused)? != 0 {
        return description.refuse(
            tables,
            "is an inotify instance with unread events, which cannot be kept in a file",
        );
    }
    let mut watches = Vec::with_capacity(watched.len());
    for watch in watched {
        let wanted = (watch.inode, watch.device);
        let Some(path) = search(tables, wanted).map_err(&refused)? else {
            let number = watch.descriptor;
            return description.refuse(
                tables,
                format!("is an inotify instance whose watch {number} is of a file that is not found by its number"),
            );
        };
        watches.push(InotifyWatch {
            descriptor: watch.descriptor,
            path: path.as_os_str().as_bytes().to_vec(),
            mask: watch.mask,
        });
    }
    watches.sort_by_key(|watch| watch.descriptor);
    Ok(Some(FileKind::Inotify { watches }))
}

/// The path of an inode. `wanted`: number and device, as the kernel prints them for a watch.
fn search(tables: &Tables, wanted: (u64, u64)) -> io::Result<Option<PathBuf>> {
    let is = |path: &Path| -> bool {
        let inode = rustix::fs::lstat(path).map(|stat| stat.st_ino);
        // The device that stat tells may be another one (overlayfs, btrfs): asked of a watch of our own, it is the same.
        inode == Ok(wanted.0) && identity(path).is_ok_and(|found| found == wanted)
    };
    let mut directories = BTreeSet::new();
    for pid in &tables.pids {
        if let Ok(path) = ProcDir::open(*pid).and_then(|directory| directory.working_directory()) {
            directories.insert(PathBuf::from(std::ffi::OsStr::from_bytes(&path)));
        }
    }
    for description in &tables.descriptions {
        let target = &description.slot.target;
        if target.starts_with(b"/") && !target.ends_with(DELETED) && !target.starts_with(b"/memfd:") {
            let path = PathBuf::from(std::ffi::OsStr::from_bytes(target));
            if is(&path) {
                return Ok(Some(path));
            }
            directories.extend(path.parent().map(Path::to_path_buf));
        }
    }
    for directory in &directories {
        if let Some(above) = directory.ancestors().find(|above| is(above)) {
            return Ok(Some(above.to_owned()));
        }
    }
    // Near before far.
    directories.retain(|directory| directory != Path::new("/") && !directory.starts_with("/proc"));
    let mut left = MOST_LOOKED_AT;
    let mut queue: VecDeque<PathBuf> = directories.into_iter().collect();
    for far in [std::env::var_os("HOME").map(PathBuf::from), Some(PathBuf::from("/tmp"))] {
        queue.extend(far);
    }
    while let Some(directory) = queue.pop_front() {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            left = left.saturating_sub(1);
            if left == 0 {
                return Ok(None);
            }
            if entry.ino() == wanted.0 && is(&entry.path()) {
                return Ok(Some(entry.path()));
            }
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                queue.push_back(entry.path());
            }
        }
    }
    Ok(None)
}

/// Inode and device as the kernel prints them for a watch.
fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let instance = inotify::init(inotify::CreateFlags::CLOEXEC)?;
    inotify::add_watch(&instance, path, inotify::WatchFlags::DELETE_SELF)?;
    let me = ProcDir::open(std::process::id().cast_signed()).map_err(io::Error::other)?;
    let slot = me.descriptor(instance.as_raw_fd()).map_err(io::Error::other)?;
    match &slot.info.details {
        FdDetails::Inotify(watches) if watches.len() == 1 => Ok((watches[0].inode, watches[0].device)),
        _ => Err(io::Error::other("a watch shows nothing of itself")),
    }
}

/// Makes an instance with the same watches.
pub(super) fn restore(watches: &[InotifyWatch]) -> io::Result<OwnedFd> {
    let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    for watch in watches {
        let path = Path::new(std::ffi::OsStr::from_bytes(&watch.path));
        let name = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        let mask = inotify::WatchFlags::from_bits_retain(watch.mask);
        // The kernel gives numbers in turn and none twice (`idr_alloc_cyclic`), so they are counted up to.
        loop {
            let number = inotify::add_watch(&fd, path, mask).map_err(|errno| name(errno.into()))?;
            if number == watch.descriptor {
                break;
            }
            if number > watch.descriptor {
                return Err(name(io::Error::other("its watch gets another number")));
            }
            inotify::remove_watch(&fd, number)?;
            drain(&fd)?;
        }
    }
    drain(&fd)?;
    Ok(fd)
}

/// Takes what our own removals have put into the queue.
fn drain(fd: &OwnedFd) -> io::Result<()> {
    let mut events = [0_u8; 4096];
    loop {
        match rustix::io::read(fd, &mut events) {
            Err(rustix::io::Errno::AGAIN) => return Ok(()),
            other => other?,
        };
    }
}
