//! Standard streams: what the job got from whoever started it, and gets from whoever restores it.
//!
//! Programs get one terminal three times from one `open`; a restorer's streams may be different. So each of 0, 1 and 2
//! is a stream of its own, and another slot that leads to the same terminal, pipe or socket belongs to one of them: of a
//! terminal to the highest (people redirect standard error least), else to 1 first. What the first process has counts
//! before what the others made of it, and a pipe or socket whose other end is in the job is the job's own, wherever it
//! is placed.

use rustix::fs::{FileType, OFlags, major, makedev, minor};
use std::os::fd::{AsFd, OwnedFd};

use super::tables::{Description, Tables};
use super::{file_type, is_path_only, kernel};
use crate::proc::Descriptor;

/// What a stream leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Object {
    Terminal(u64),
    Pipe(u64),
    Socket(u64),
}

/// Where the other end of a socket is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OtherEnd {
    Inside,
    Outside,
    /// It was closed, or there never was one.
    None,
}

impl OtherEnd {
    pub(super) fn of(inside: bool) -> Self {
        if inside { Self::Inside } else { Self::Outside }
    }
}

/// What the job has from outside.
#[derive(Debug, Default)]
pub(super) struct Streams {
    standard: Vec<(Object, u32)>,
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

fn object(description: &Description, controlling: u64) -> Option<Object> {
    let pipe = description.inode_of(FileType::Fifo).map(Object::Pipe);
    let socket = || description.inode_of(FileType::Socket).map(Object::Socket);
    let terminal = || terminal(&description.slot, controlling).map(Object::Terminal);
    pipe.or_else(socket).or_else(terminal)
}

impl Streams {
    /// Finds them. `other_end`: of a socket, by its inode.
    pub(super) fn find(tables: &Tables, other_end: &dyn Fn(u64) -> OtherEnd) -> Self {
        let mut streams = Self::default();
        for (process, entries) in tables.entries.iter().enumerate() {
            let mut own = Vec::new();
            for entry in entries.iter().take_while(|entry| entry.number <= 2) {
                let description = &tables.descriptions[entry.description];
                let Some(object) = object(description, tables.controlling[process]) else {
                    continue;
                };
                let inside = match object {
                    Object::Terminal(_) => false,
                    Object::Pipe(inode) => both_ends(tables, inode) || (process > 0 && is_abandoned(description)),
                    Object::Socket(inode) => match other_end(inode) {
                        OtherEnd::Inside => true,
                        OtherEnd::Outside => false,
                        OtherEnd::None => process > 0,
                    },
                };
                let known = streams.standard.iter().any(|(other, _)| *other == object);
                if !inside && (process == 0 || !known) {
                    own.push((object, entry.number.cast_unsigned()));
                }
            }
            streams.standard.extend(own);
        }
        streams
    }

    /// The standard stream that a slot is, or is the same as, and whether that is a terminal. `number`: of the slot.
    pub(super) fn of(&self, description: &Description, number: i32, controlling: u64) -> Option<(u32, bool)> {
        let own = object(description, controlling)?;
        let is_terminal = matches!(own, Object::Terminal(_));
        let rank = |standard: u32| match standard {
            standard if i32::try_from(standard) == Ok(number) => 3,
            standard if is_terminal => standard,
            1 => 2,
            2 => 1,
            _ => 0,
        };
        let same = self.standard.iter().filter(|(object, _)| *object == own);
        let best = same.max_by_key(|(_, standard)| rank(*standard))?;
        Some((best.1, is_terminal))
    }
}

/// Whether the job can both read and write a pipe.
fn both_ends(tables: &Tables, inode: u64) -> bool {
    let ends = || {
        let of_pipe = |description: &&Description| description.inode_of(FileType::Fifo) == Some(inode);
        let access = |description: &Description| description.slot.info.flags.cast_signed() & libc::O_ACCMODE;
        tables.descriptions.iter().filter(of_pipe).map(access)
    };
    ends().any(|access| access != libc::O_WRONLY) && ends().any(|access| access != libc::O_RDONLY)
}

/// Whether nobody has the other end of a pipe any more.
pub(super) fn is_abandoned(description: &Description) -> bool {
    let readiness = description.fetch().map_or(0, |fd| kernel::readiness(fd.as_fd()));
    readiness & (libc::POLLHUP | libc::POLLERR) != 0
}

/// A stream of the restorer for the job. It is shared with whoever gave it to us, as it was at home: `O_NONBLOCK` is set
/// if the program counts on it, and nothing else is touched.
pub(super) fn inherit(stream: &OwnedFd, flags: u32) -> rustix::io::Result<OwnedFd> {
    let fd = rustix::io::fcntl_dupfd_cloexec(stream, 0)?;
    let now = rustix::fs::fcntl_getfl(&fd)?;
    if flags & libc::O_NONBLOCK.cast_unsigned() != 0 && !now.contains(OFlags::NONBLOCK) {
        rustix::fs::fcntl_setfl(&fd, now | OFlags::NONBLOCK)?;
    }
    Ok(fd)
}
