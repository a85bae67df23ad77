//! epoll instances. Each watch is of an open file, under the number that it had when it was added.
//!
//! Watches are added before the job exists, by a thread with a descriptor table of its own in which the file is put at
//! that number for a moment. What depends on the process that watches (a signalfd is of who reads it, a pidfd is made
//! there) is added inside ([`super::place`]). An edge that the program has taken already comes again with a new watch;
//! it is taken back if the instance had no event for the program ([`settle`]).

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use vrun_image::state::{EpollWatch, FileKind, OpenFile};

use super::tables::Tables;
use super::{Result, failed, kernel};
use crate::proc::FdDetails;

const ONE_SHOT: u32 = libc::EPOLLONESHOT.cast_unsigned();
/// What a one-shot watch that has fired keeps of its events (`EP_PRIVATE_BITS`, `fs/eventpoll.c`).
const PRIVATE: u32 = (libc::EPOLLWAKEUP | libc::EPOLLONESHOT | libc::EPOLLET | libc::EPOLLEXCLUSIVE).cast_unsigned();

/// What an instance is. `file` gives the index of a description in the image.
pub(super) fn capture(tables: &Tables, index: usize, file: &dyn Fn(usize) -> Option<u32>) -> Result<Option<FileKind>> {
    let description = &tables.descriptions[index];
    let entries = match &description.slot.info.details {
        FdDetails::Epoll(entries) => &entries[..],
        _ if description.slot.target == b"anon_inode:[eventpoll]" => &[],
        _ => return Ok(None),
    };
    let mut watches = Vec::with_capacity(entries.len());
    for (at, entry) in entries.iter().enumerate() {
        // Of several that were added under one number, the kernel is asked by their order.
        let toff = entries[..at]
            .iter()
            .filter(|other| other.number == entry.number)
            .count() as u32;
        let is = |candidate: usize| {
            let slot = &tables.descriptions[candidate];
            slot.slot.stat.st_ino == entry.inode
                && kernel::is_watched(slot.place(), description.place(), entry.number, toff)
        };
        let same_number = || {
            let with_number = |entries: &Vec<super::tables::Entry>| {
                let found = entries.binary_search_by_key(&entry.number, |entry| entry.number);
                found.ok().map(|at| entries[at].description)
            };
            tables
                .entries
                .iter()
                .filter_map(with_number)
                .find(|candidate| is(*candidate))
        };
        let target = same_number().or_else(|| (0..tables.descriptions.len()).find(|candidate| is(*candidate)));
        let Some(target) = target.and_then(file) else {
            let number = entry.number;
            return description.refuse(
                tables,
                format!("is an epoll instance that watches, as {number}, what only others have open"),
            );
        };
        watches.push(EpollWatch {
            number: entry.number,
            file: target,
            events: entry.events,
            data: entry.data,
        });
    }
    let fd = description.fetch()?;
    let ready = kernel::readiness(fd.as_fd()) & libc::POLLIN != 0;
    Ok(Some(FileKind::Epoll { watches, ready }))
}

/// Whether a watch has to be added by a process of the job itself.
pub(super) fn is_of_process(files: &[OpenFile], watch: &EpollWatch) -> bool {
    let target = files.get(watch.file as usize).map(|file| &file.kind);
    matches!(
        target,
        Some(FileKind::Signal { .. } | FileKind::Process { .. } | FileKind::Queue { .. })
    )
}

/// Adds all watches but those of [`is_of_process`]. `ours`: descriptors of all open files, by their index.
pub(super) fn watch(files: &[OpenFile], ours: &[OwnedFd], inside: &dyn Fn(&EpollWatch) -> bool) -> Result<()> {
    let mut work: Vec<(RawFd, RawFd, EpollWatch)> = Vec::new();
    for (file, fd) in files.iter().zip(ours) {
        let FileKind::Epoll { watches, .. } = &file.kind else {
            continue;
        };
        // One-shot watches that have fired first: what they would tell at once can then be taken back.
        let (fired, others): (Vec<_>, Vec<_>) = watches
            .iter()
            .partition(|watch| watch.events & !PRIVATE == 0 && watch.events & ONE_SHOT != 0);
        for watch in fired.into_iter().chain(others).filter(|watch| !inside(watch)) {
            work.push((fd.as_raw_fd(), ours[watch.file as usize].as_raw_fd(), watch));
        }
    }
    if work.is_empty() {
        return Ok(());
    }
    let add = || -> io::Result<()> {
        kernel::own_table()?;
        for (epoll, target, watch) in &work {
            kernel::at_number(*target, watch.number, |moved| {
                kernel::epoll_add(moved(*epoll), watch.number, watch.events, watch.data)
            })?;
        }
        Ok(())
    };
    let added = std::thread::scope(|scope| scope.spawn(add).join());
    let added = added.unwrap_or_else(|_| Err(io::Error::other("the thread for it ended")));
    added.map_err(|error| failed("add the watches of", b"an epoll instance", error))
}

/// Takes back the edges that were new only because the watches are. `ours`: of an instance without events for its program.
pub(super) fn settle(watches: usize, ours: &OwnedFd) -> io::Result<()> {
    for _ in 0..=watches / 64 {
        if kernel::epoll_take(ours.as_fd())? == 0 {
            break;
        }
    }
    Ok(())
}
