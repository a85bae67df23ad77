#![allow(unsafe_code)] // process_vm_readv, process_vm_writev and PAGEMAP_SCAN take raw addresses
//! The memory of a target: reading and writing it, finding out which of its pages hold anything, dumping it.
//!
//! ```text
//!   read, write                 process_vm_readv/writev: one copy, and only what the program itself may touch
//!   read_forced, write_forced   then /proc/PID/mem for the rest: areas without PROT_READ, code, read-only data
//!   populated                   PAGEMAP_SCAN: the pages that exist; a 1 TiB reservation takes microseconds
//!   dump_own, dump_shown        an area as runs of bytes: what only the process has, what the file behind it has
//!   Window                      a file mapped in our own memory, to write to it as who has it mapped does
//! ```
//!
//! The first pair stands in for the kernel's own copies (a system call on a read-only buffer must fail with `EFAULT`
//! for the program too), the second for a debugger's.
//!
//! `process_vm_*` go by PID: the caller holds the target (its child not reaped, or traced), so that the number
//! cannot pass to another process meanwhile.
//!
//! Source: process_vm_readv(2), proc_pid_mem(5), `Documentation/admin-guide/mm/pagemap.rst`.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use linux_raw_sys::general::{
    PAGE_IS_FILE, PAGE_IS_GUARD, PAGE_IS_PFNZERO, PAGE_IS_PRESENT, PAGE_IS_SWAPPED, page_region, pm_scan_arg,
};

use crate::proc::{Backing, MapsEntry, VmFlag};

/// Bytes in a page: x86_64 has no other base size.
pub const PAGE: u64 = 4096;

/// Longest run that is handed out, in bytes.
pub const RUN: usize = 1 << 20;

/// Most pieces that one `process_vm_readv` takes (`UIO_MAXIOV`).
const PIECES: usize = 1024;

/// Shared memory whose pages cannot be listed is read whole up to this size: reading a hole in it allocates a page.
const SHARED_LIMIT: u64 = 4 << 30;

const ZEROES: [u8; PAGE as usize] = [0; PAGE as usize];

/// Why memory of a target could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// It has ended, or runs another program now: an event, not a failure.
    #[error("process {0} is gone")]
    Gone(i32),
    /// Nothing is mapped at the address, or nothing that may be used so.
    #[error("process {pid} has no usable memory at {address:#x}")]
    Fault {
        /// Whose.
        pid: i32,
        /// The first byte that failed.
        address: u64,
    },
    /// Memory whose contents cannot be taken along.
    #[error("the memory of process {pid} at {address:#x} cannot be saved: {reason}")]
    Unsavable {
        /// Whose.
        pid: i32,
        /// Where the area starts.
        address: u64,
        /// For a person.
        reason: &'static str,
    },
    /// The kernel refused.
    #[error("cannot {action} the memory of process {pid}: {source}")]
    Kernel {
        /// Whose.
        pid: i32,
        /// A verb.
        action: &'static str,
        /// As the kernel gave it; `EACCES` and `EPERM` mean that we may not trace it.
        source: io::Error,
    },
}

/// The memory of one process, as it was when this was opened: after an `exec` it reads as gone.
#[derive(Debug)]
pub struct TargetMemory {
    pid: i32,
    mem: File,
    pagemap: File,
}

impl TargetMemory {
    /// Opens the memory of a process that we may trace.
    ///
    /// # Errors
    /// [`MemoryError::Gone`], [`MemoryError::Kernel`].
    pub fn open(pid: i32) -> Result<Self, MemoryError> {
        let failed = |source: io::Error| match source.raw_os_error() {
            Some(libc::ENOENT | libc::ESRCH) => MemoryError::Gone(pid),
            _ => MemoryError::Kernel {
                pid,
                action: "open",
                source,
            },
        };
        let mem = File::options()
            .read(true)
            .write(true)
            .open(format!("/proc/{pid}/mem"))
            .map_err(failed)?;
        let pagemap = File::open(format!("/proc/{pid}/pagemap")).map_err(failed)?;
        Ok(Self { pid, mem, pagemap })
    }

    /// Whose memory it is.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Reads at `address` what the program itself could read. Returns how many bytes it was: fewer than asked if the
    /// one at `address` plus that number is out of reach.
    ///
    /// # Errors
    /// [`MemoryError::Gone`], [`MemoryError::Kernel`]; a bad address is not an error but a short count.
    pub fn read(&self, address: u64, buffer: &mut [u8]) -> Result<usize, MemoryError> {
        let range = address..address.saturating_add(buffer.len() as u64);
        self.read_pieces(std::slice::from_ref(&range), buffer)
    }

    /// Writes at `address` what the program itself could write. Returns how many bytes it was, as [`Self::read`].
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<usize, MemoryError> {
        let local = libc::iovec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        };
        let remote = libc::iovec {
            iov_base: address as *mut _,
            iov_len: bytes.len(),
        };
        // SAFETY: `local` covers `bytes`, which the kernel only reads; `remote` is an address of the target, checked
        // by the kernel.
        let count = unsafe { libc::process_vm_writev(self.pid, &local, 1, &remote, 1, 0) };
        self.counted(count, "write")
    }

    /// Reads at `address` whatever the protection of the memory there. Returns how many bytes it was.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_forced(&self, address: u64, buffer: &mut [u8]) -> Result<usize, MemoryError> {
        let mut done = self.read(address, buffer)?;
        while done < buffer.len() {
            match self
                .mem
                .read_at(&mut buffer[done..], address.saturating_add(done as u64))
            {
                Ok(0) => return Err(MemoryError::Gone(self.pid)),
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_fault(&error) => break,
                Err(source) => return Err(self.failed(source, "read")),
            }
        }
        Ok(done)
    }

    /// Writes at `address` whatever the protection of the memory there, as a debugger does: a private page gets a
    /// copy of its own. Returns how many bytes it was.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn write_forced(&self, address: u64, bytes: &[u8]) -> Result<usize, MemoryError> {
        let mut done = self.write(address, bytes)?;
        while done < bytes.len() {
            match self.mem.write_at(&bytes[done..], address.saturating_add(done as u64)) {
                Ok(0) => return Err(MemoryError::Gone(self.pid)),
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_fault(&error) => break,
                Err(source) => return Err(self.failed(source, "write")),
            }
        }
        Ok(done)
    }

    /// Fills `buffer` from `address`, whatever the protection there.
    ///
    /// # Errors
    /// [`MemoryError::Fault`] if it is not all there; as [`Self::read`].
    pub fn read_all(&self, address: u64, buffer: &mut [u8]) -> Result<(), MemoryError> {
        let done = self.read_forced(address, buffer)?;
        if done == buffer.len() {
            Ok(())
        } else {
            Err(self.fault(address.saturating_add(done as u64)))
        }
    }

    /// Writes all of `bytes` at `address`, whatever the protection there.
    ///
    /// # Errors
    /// [`MemoryError::Fault`] if it cannot all be written (what could be has been); as [`Self::read`].
    pub fn write_all(&self, address: u64, bytes: &[u8]) -> Result<(), MemoryError> {
        let done = self.write_forced(address, bytes)?;
        if done == bytes.len() {
            Ok(())
        } else {
            Err(self.fault(address.saturating_add(done as u64)))
        }
    }

    /// Reads many ranges, one after the other, into `buffer` (as long as they are together), in as few system calls
    /// as possible, what the program itself could read. Returns how many bytes it was, as [`Self::read`].
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_pieces(&self, ranges: &[Range<u64>], buffer: &mut [u8]) -> Result<usize, MemoryError> {
        let mut done = 0;
        for ranges in ranges.chunks(PIECES) {
            let remote: Vec<libc::iovec> = ranges
                .iter()
                .map(|range| libc::iovec {
                    iov_base: range.start as *mut _,
                    iov_len: length(range),
                })
                .collect();
            let rest = &mut buffer[done..];
            let wanted = remote.iter().map(|piece| piece.iov_len).sum::<usize>().min(rest.len());
            let local = libc::iovec {
                iov_base: rest.as_mut_ptr().cast(),
                iov_len: wanted,
            };
            // SAFETY: `local` lies within `rest`, which is borrowed for the call; `remote` are addresses of the
            // target, checked by the kernel.
            let count = unsafe { libc::process_vm_readv(self.pid, &local, 1, remote.as_ptr(), remote.len() as u64, 0) };
            let count = self.counted(count, "read")?;
            done += count;
            if count < wanted {
                break;
            }
        }
        Ok(done)
    }

    /// The ranges of pages between `start` and `end` that hold something: present or swapped out, but not the zero
    /// page, and not a guard (`MADV_GUARD_INSTALL`). Ascending; neighbours are joined within one look at the kernel.
    ///
    /// Where a userfaultfd write-protects pages that do not exist yet, they count as well; they read as zero.
    ///
    /// For private memory that is all of its data. For shared memory it is what this process has touched: others may
    /// have written more (see [`shown`]).
    pub fn populated(&self, start: u64, end: u64) -> Pages<'_> {
        let exclude = u64::from(PAGE_IS_PFNZERO | PAGE_IS_GUARD);
        Pages::new(
            self,
            start..end,
            exclude,
            exclude,
            u64::from(PAGE_IS_PRESENT | PAGE_IS_SWAPPED),
        )
    }

    /// The ranges of pages of a private mapping of a file that are copies of the process's own.
    pub fn copied(&self, start: u64, end: u64) -> Pages<'_> {
        let exclude = u64::from(PAGE_IS_PFNZERO | PAGE_IS_GUARD | PAGE_IS_FILE);
        Pages::new(
            self,
            start..end,
            exclude,
            exclude,
            u64::from(PAGE_IS_PRESENT | PAGE_IS_SWAPPED),
        )
    }

    /// The ranges of guard pages (`MADV_GUARD_INSTALL`) between `start` and `end`: a thread's stack may have them.
    /// None on a kernel that does not tell (before 6.16).
    pub fn guards(&self, start: u64, end: u64) -> Pages<'_> {
        Pages::new(self, start..end, 0, u64::from(PAGE_IS_GUARD), 0)
    }

    fn counted(&self, count: isize, action: &'static str) -> Result<usize, MemoryError> {
        usize::try_from(count).or_else(|_| match io::Error::last_os_error() {
            error if is_fault(&error) => Ok(0),
            error => Err(self.failed(error, action)),
        })
    }

    fn failed(&self, source: io::Error, action: &'static str) -> MemoryError {
        match source.raw_os_error() {
            Some(libc::ESRCH) => MemoryError::Gone(self.pid),
            _ => MemoryError::Kernel {
                pid: self.pid,
                action,
                source,
            },
        }
    }

    fn fault(&self, address: u64) -> MemoryError {
        MemoryError::Fault { pid: self.pid, address }
    }
}

/// A file, mapped shared. What is written through it never makes the file longer, and nobody is told of it (inotify(7)).
#[derive(Debug)]
pub struct Window {
    start: *mut libc::c_void,
    length: usize,
}

// SAFETY: it is an address that nothing in Rust refers to, and that only the kernel looks at.
unsafe impl Send for Window {}

impl Window {
    /// # Errors
    /// Of mmap(2).
    pub fn new(file: &File, length: u64) -> io::Result<Self> {
        let (length, flags) = (length as usize, rustix::mm::MapFlags::SHARED);
        let access = rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no other memory.
        let start = unsafe { rustix::mm::mmap(std::ptr::null_mut(), length, access, flags, file, 0)? };
        Ok(Self { start, length })
    }

    /// Bytes, from the start of the file on.
    pub fn length(&self) -> u64 {
        self.length as u64
    }

    /// Where it is mapped here.
    pub fn address(&self) -> u64 {
        self.start as u64
    }

    /// Writes runs, each at its offset, in this order and as far as the file goes.
    pub fn write(&self, runs: &[(u64, &[u8])]) {
        for runs in runs.chunks(PIECES) {
            let room = |offset: u64| self.length.saturating_sub(offset as usize);
            let local = runs.iter().map(|(offset, bytes)| libc::iovec {
                iov_base: bytes.as_ptr().cast_mut().cast(),
                iov_len: bytes.len().min(room(*offset)),
            });
            let local = Vec::from_iter(local);
            let remote = runs.iter().zip(&local).map(|((offset, _), local)| libc::iovec {
                iov_base: self.start.wrapping_byte_add(*offset as usize),
                iov_len: local.iov_len,
            });
            let remote = Vec::from_iter(remote);
            let all = local.iter().map(|piece| piece.iov_len).sum::<usize>();
            let (own, count) = (std::process::id() as i32, runs.len() as u64);
            // The kernel's copy stops where ours would be killed by SIGBUS.
            // SAFETY: `local` lies in the runs, which are only read; `remote` in this mapping, to which nothing in Rust refers.
            let done = unsafe { libc::process_vm_writev(own, local.as_ptr(), count, remote.as_ptr(), count, 0) };
            if done != all as isize && runs.len() > 1 {
                // One of them is behind the end now.
                runs.iter().for_each(|run| self.write(std::slice::from_ref(run)));
            }
        }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: it is ours, and nothing in Rust refers to it.
        let _ = unsafe { rustix::mm::munmap(self.start, self.length) };
    }
}

/// An address that cannot be used, as the different doors say it: nothing there, a file that ends before it, not an
/// address of a program.
fn is_fault(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EFAULT | libc::EIO | libc::EINVAL))
}

fn length(range: &Range<u64>) -> usize {
    (range.end - range.start) as usize
}

nix::ioctl_readwrite!(
    /// `PAGEMAP_SCAN` of `linux/fs.h` (since 6.7), on `/proc/PID/pagemap`.
    pagemap_scan,
    b'f',
    16,
    pm_scan_arg
);

/// Ranges of pages of some kind, found as they are asked for: [`TargetMemory::populated`], [`TargetMemory::guards`].
#[derive(Debug)]
pub struct Pages<'a> {
    memory: &'a TargetMemory,
    /// What was not looked at yet.
    left: Range<u64>,
    inverted: u64,
    all_of: u64,
    any_of: u64,
    found: std::vec::IntoIter<Range<u64>>,
}

impl<'a> Pages<'a> {
    fn new(memory: &'a TargetMemory, left: Range<u64>, inverted: u64, all_of: u64, any_of: u64) -> Self {
        Self {
            memory,
            left,
            inverted,
            all_of,
            any_of,
            found: Vec::new().into_iter(),
        }
    }

    /// Asks the kernel for the next ranges.
    fn look(&mut self) -> Result<(), MemoryError> {
        let mut regions = [page_region {
            start: 0,
            end: 0,
            categories: 0,
        }; 512];
        let mut arguments = pm_scan_arg {
            size: size_of::<pm_scan_arg>() as u64,
            flags: 0,
            start: self.left.start,
            end: self.left.end,
            walk_end: 0,
            vec: regions.as_mut_ptr() as u64,
            vec_len: regions.len() as u64,
            max_pages: 0,
            category_inverted: self.inverted,
            category_mask: self.all_of,
            category_anyof_mask: self.any_of,
            // The kernel joins neighbours whose returned categories are equal; it wants at least one of them.
            return_mask: u64::from(PAGE_IS_PFNZERO),
        };
        // SAFETY: the structure is the one of this request, and `vec` points to `vec_len` regions that outlive it.
        let count = match unsafe { pagemap_scan(self.memory.pagemap.as_raw_fd(), &mut arguments) } {
            Ok(count) => count as usize,
            Err(nix::Error::EINVAL) if (self.inverted | self.all_of) & u64::from(PAGE_IS_GUARD) != 0 => {
                return self.without_guards();
            }
            Err(errno) => return Err(self.memory.failed(errno.into(), "list the pages in")),
        };
        self.left.start = arguments.walk_end.max(self.left.start);
        // An address space that has gone reads as one without a single page: do not take it for empty.
        if matches!(self.memory.mem.read_at(&mut [0], 0), Ok(0)) {
            return Err(MemoryError::Gone(self.memory.pid));
        }
        let mut found: Vec<Range<u64>> = Vec::with_capacity(count);
        for region in &regions[..count] {
            match found.last_mut() {
                Some(last) if last.end == region.start => last.end = region.end,
                _ => found.push(region.start..region.end),
            }
        }
        self.found = found.into_iter();
        Ok(())
    }

    /// A kernel before 6.16 does not know the category of guards: ask without it.
    fn without_guards(&mut self) -> Result<(), MemoryError> {
        self.inverted &= !u64::from(PAGE_IS_GUARD);
        self.all_of &= !u64::from(PAGE_IS_GUARD);
        if self.all_of | self.any_of == 0 {
            self.left.start = self.left.end;
            return Ok(());
        }
        self.look()
    }
}

impl Iterator for Pages<'_> {
    type Item = Result<Range<u64>, MemoryError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(range) = self.found.next() {
                return Some(Ok(range));
            }
            if self.left.start >= self.left.end {
                return None;
            }
            if let Err(error) = self.look() {
                self.left.start = self.left.end;
                return Some(Err(error));
            }
        }
    }
}

/// Hands what an area (from [`crate::proc::ProcDir::smaps`]: its flags are needed) holds of the process's own to `sink`
/// as runs: address and bytes, whole pages, ascending, at most [`RUN`] bytes each. The process must be stopped, or the
/// result is of no single instant.
///
/// Memory without a file gives the pages that exist and are not zero; a private mapping of a file the copies that lie
/// over the file, zero or not. Shared memory has nothing of its own ([`dump_shown`]). Droppable memory gives nothing: its
/// owner expects to find it empty at any time, and what it holds (`getrandom` state of the vDSO) must not exist twice.
/// So does the kernel's own ([`MapsEntry::kernels`]).
///
/// # Errors
/// [`MemoryError::Unsavable`] for device memory; [`MemoryError::Fault`] for pages that exist and cannot be read;
/// and what `sink` returns.
pub fn dump_own<E: From<MemoryError>>(
    memory: &TargetMemory,
    entry: &MapsEntry,
    sink: impl FnMut(u64, &[u8]) -> Result<(), E>,
) -> Result<(), E> {
    if entry.kernels() || entry.shared || entry.flags.contains(VmFlag::Droppable) {
        return Ok(());
    }
    if entry.flags.contains(VmFlag::Io) || entry.flags.contains(VmFlag::PfnMapped) {
        let reason = "it is memory of a device";
        return Err(MemoryError::Unsavable {
            pid: memory.pid,
            address: entry.start,
            reason,
        }
        .into());
    }
    match entry.backing() {
        Backing::Anonymous | Backing::Heap | Backing::Stack => {
            dump_ranges(memory, memory.populated(entry.start, entry.end), Zeroes::LeaveOut, sink)
        }
        _ => dump_ranges(memory, memory.copied(entry.start, entry.end), Zeroes::HandOut, sink),
    }
}

/// The parts of `wanted` (ascending, within the area) where an area shows what is behind it: not copies of the process's
/// own, nor guards, nor, as far as that can be told, what is empty.
///
/// # Errors
/// [`MemoryError`].
pub fn shown(memory: &TargetMemory, entry: &MapsEntry, wanted: &[Range<u64>]) -> Result<Vec<Range<u64>>, MemoryError> {
    let mut hidden = memory.guards(entry.start, entry.end).collect::<Result<Vec<_>, _>>()?;
    if !entry.shared {
        for range in memory.copied(entry.start, entry.end) {
            hidden.push(range?);
        }
        hidden.sort_by_key(|range| range.start);
    }
    let ranges = without(wanted, &hidden);
    if !matches!(
        entry.backing(),
        Backing::SharedAnonymous | Backing::Memfd | Backing::SystemV
    ) {
        return Ok(ranges);
    }
    Ok(match shared_data(memory, entry)? {
        Some(data) => {
            let empty = without(std::slice::from_ref(&(entry.start..entry.end)), &data);
            without(&ranges, &empty)
        }
        None => ranges,
    })
}

/// Hands out what `ranges` of an area (from [`shown`]) hold, as [`dump_own`] does, up to the end of the file that is
/// behind it, without pages of zeroes.
///
/// # Errors
/// As [`dump_own`].
pub fn dump_shown<E: From<MemoryError>>(
    memory: &TargetMemory,
    entry: &MapsEntry,
    ranges: &[Range<u64>],
    mut sink: impl FnMut(u64, &[u8]) -> Result<(), E>,
) -> Result<(), E> {
    for range in ranges {
        if !dump_whole(memory, entry, range, &mut sink)? {
            break;
        }
    }
    Ok(())
}

/// `ranges` less `holes`; both ascend and do not overlap.
pub fn without(ranges: &[Range<u64>], holes: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut left = Vec::new();
    let mut holes = holes.iter().peekable();
    for range in ranges {
        let mut start = range.start;
        while let Some(hole) = holes.peek()
            && hole.start < range.end
        {
            if hole.start > start {
                left.push(start..hole.start);
            }
            start = start.max(hole.end);
            if hole.end > range.end {
                break;
            }
            holes.next();
        }
        if start < range.end {
            left.push(start..range.end);
        }
    }
    left
}

/// Sorts ranges and joins neighbours.
pub fn join(ranges: &mut Vec<Range<u64>>) {
    ranges.sort_by_key(|range| range.start);
    let mut joined: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
    for range in ranges.drain(..) {
        match joined.last_mut() {
            Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    *ranges = joined;
}

/// What [`dump_ranges`] does about pages of zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zeroes {
    LeaveOut,
    /// They lie over something that is not zero.
    HandOut,
}

/// Hands out given ranges (of whole pages, ascending), all of which must be readable.
///
/// # Errors
/// As [`dump_own`].
pub fn dump_ranges<E: From<MemoryError>>(
    memory: &TargetMemory,
    ranges: impl IntoIterator<Item = Result<Range<u64>, MemoryError>>,
    zeroes: Zeroes,
    mut sink: impl FnMut(u64, &[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let mut buffer = vec![0; RUN];
    let mut pieces: Vec<Range<u64>> = Vec::new();
    let mut filled = 0;
    for range in ranges {
        let mut range = range?;
        while !range.is_empty() {
            let piece = range.start..range.end.min(range.start + (RUN - filled) as u64);
            range.start = piece.end;
            filled += length(&piece);
            pieces.push(piece);
            if filled == RUN || pieces.len() == PIECES {
                dump_pieces(memory, &pieces, zeroes, &mut buffer[..filled], &mut sink)?;
                pieces.clear();
                filled = 0;
            }
        }
    }
    dump_pieces(memory, &pieces, zeroes, &mut buffer[..filled], &mut sink)
}

/// Reads `pieces`, together as long as `buffer`, in one call if the program may read them, and hands them out.
fn dump_pieces<E: From<MemoryError>>(
    memory: &TargetMemory,
    pieces: &[Range<u64>],
    zeroes: Zeroes,
    buffer: &mut [u8],
    sink: &mut impl FnMut(u64, &[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let done = memory.read_pieces(pieces, buffer)?;
    let mut offset = 0;
    for piece in pieces {
        let bytes = &mut buffer[offset..offset + length(piece)];
        offset += bytes.len();
        if offset > done {
            memory.read_all(piece.start, bytes)?;
        }
        match zeroes {
            Zeroes::LeaveOut => emit(piece.start, bytes, sink)?,
            Zeroes::HandOut => sink(piece.start, bytes)?,
        }
    }
    Ok(())
}

/// Every page of `range`, up to where the file behind the area ends. False: it ended.
fn dump_whole<E: From<MemoryError>>(
    memory: &TargetMemory,
    entry: &MapsEntry,
    range: &Range<u64>,
    sink: &mut impl FnMut(u64, &[u8]) -> Result<(), E>,
) -> Result<bool, E> {
    let mut buffer = vec![0; RUN.min(length(range))];
    let mut address = range.start;
    while address < range.end {
        let wanted = RUN.min((range.end - address) as usize);
        let done = memory.read_forced(address, &mut buffer[..wanted])? & !(PAGE as usize - 1);
        emit(address, &buffer[..done], sink)?;
        address += done as u64;
        if done < wanted {
            // Behind the end of the file no page can be there, and the last one cannot be read either. Anything else
            // is an error of the disk or of the memory itself, and what follows would be lost.
            let behind = memory.populated(address, entry.end).next().transpose()?.is_some();
            if behind || memory.read_forced(entry.end - PAGE, &mut buffer[..1])? == 1 {
                return Err(memory.fault(address).into());
            }
            return Ok(false);
        }
    }
    Ok(true)
}

/// Hands out what is not zero of `bytes` (whole pages) at `address`.
fn emit<E>(address: u64, bytes: &[u8], sink: &mut impl FnMut(u64, &[u8]) -> Result<(), E>) -> Result<(), E> {
    let size = PAGE as usize;
    let zero = |page: usize| bytes[page * size..(page + 1) * size] == ZEROES;
    let pages = bytes.len() / size;
    let mut first = 0;
    while first < pages {
        if zero(first) {
            first += 1;
            continue;
        }
        let end = (first + 1..pages).find(|page| zero(*page)).unwrap_or(pages);
        sink(address + (first * size) as u64, &bytes[first * size..end * size])?;
        first = end;
    }
    Ok(())
}

/// The ranges of a shared area that hold data, by whomever it was put there. The page table of one process does not
/// tell (after a fork it is empty), but the file behind the area does. Reaching that needs CAP_CHECKPOINT_RESTORE;
/// without it the answer is none, and the area must be read whole.
fn shared_data(memory: &TargetMemory, entry: &MapsEntry) -> Result<Option<Vec<Range<u64>>>, MemoryError> {
    let path = format!("/proc/{}/map_files/{:x}-{:x}", memory.pid, entry.start, entry.end);
    let Ok(file) = File::open(path) else {
        if entry.shared && entry.end - entry.start > SHARED_LIMIT {
            let reason = "so much shared memory can only be saved with CAP_CHECKPOINT_RESTORE (or by root)";
            return Err(MemoryError::Unsavable {
                pid: memory.pid,
                address: entry.start,
                reason,
            });
        }
        return Ok(None);
    };
    let seek = |to| match rustix::fs::seek(&file, to) {
        Ok(offset) => Ok(Some(offset)),
        Err(rustix::io::Errno::NXIO) => Ok(None), // behind the last byte
        Err(errno) => Err(memory.failed(errno.into(), "list the pages in shared")),
    };
    let end = entry.offset + (entry.end - entry.start);
    let mut ranges = Vec::new();
    let mut offset = entry.offset;
    while let Some(data) = seek(rustix::fs::SeekFrom::Data(offset))? {
        if data >= end {
            break;
        }
        offset = seek(rustix::fs::SeekFrom::Hole(data))?
            .unwrap_or(end)
            .next_multiple_of(PAGE)
            .min(end);
        let at = |offset: u64| entry.start + (offset - entry.offset);
        // Only whole pages are mapped, and a file may end within one.
        ranges.push(at(data.max(entry.offset) & !(PAGE - 1))..at(offset));
    }
    Ok(Some(ranges))
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, BorrowedFd};
    use std::time::{Duration, Instant};

    use rustix::mm::{MapFlags, MprotectFlags, ProtFlags};

    use super::*;
    use crate::proc::ProcDir;

    const RW: ProtFlags = ProtFlags::READ.union(ProtFlags::WRITE);

    /// A mapping of this process, looked at as if it were a target's; unmapped at the end.
    struct Mapping {
        start: u64,
        length: usize,
    }

    impl Mapping {
        fn new(pages: usize, protection: ProtFlags, flags: MapFlags, file: Option<(BorrowedFd<'_>, u64)>) -> Self {
            let length = pages * PAGE as usize;
            // SAFETY: a new mapping at an address of the kernel's choice touches no other memory.
            let start = unsafe {
                match file {
                    Some((file, offset)) => {
                        rustix::mm::mmap(std::ptr::null_mut(), length, protection, flags, file, offset)
                    }
                    None => rustix::mm::mmap_anonymous(std::ptr::null_mut(), length, protection, flags),
                }
            };
            Self {
                start: start.unwrap() as u64,
                length,
            }
        }

        fn page(&self, page: u64) -> u64 {
            self.start + page * PAGE
        }

        fn end(&self) -> u64 {
            self.start + self.length as u64
        }

        fn fill(&self, page: u64, byte: u8) {
            // SAFETY: the page is within this mapping, which its test made writable.
            unsafe { std::ptr::write_bytes(self.page(page) as *mut u8, byte, PAGE as usize) };
        }

        fn protect(&self, protection: MprotectFlags) {
            // SAFETY: nothing in Rust refers to this memory.
            unsafe { rustix::mm::mprotect(self.start as *mut _, self.length, protection).unwrap() };
        }

        /// The area as /proc has it: neighbours may have been joined with it, so it is cut to this mapping.
        fn entry(&self) -> MapsEntry {
            let entries = ProcDir::open(memory().pid).unwrap().smaps().unwrap();
            let mut entry = entries
                .into_iter()
                .find(|entry| (entry.start..entry.end).contains(&self.start))
                .unwrap();
            if entry.inode == 0 {
                (entry.start, entry.end) = (self.start, self.end());
            }
            entry
        }

        /// What [`dump_own`] and then [`dump_shown`] say: (page, first byte, pages) of each run.
        fn dumped(&self) -> Vec<(u64, u8, usize)> {
            let mut runs = Vec::new();
            dump_all(&memory(), &self.entry(), |address, bytes| {
                assert!(bytes.len() <= RUN);
                runs.push(((address - self.start) / PAGE, bytes[0], bytes.len() / PAGE as usize));
            })
            .unwrap();
            runs
        }

        /// What [`TargetMemory::populated`] says, in pages: (first, behind the last).
        fn populated(&self) -> Vec<(u64, u64)> {
            self.in_pages(memory().populated(self.start, self.end()))
        }

        fn in_pages(&self, pages: Pages<'_>) -> Vec<(u64, u64)> {
            let page = |address| (address - self.start) / PAGE;
            pages
                .map(Result::unwrap)
                .map(|range| (page(range.start), page(range.end)))
                .collect()
        }
    }

    impl Drop for Mapping {
        fn drop(&mut self) {
            // SAFETY: nothing in Rust refers to this memory.
            unsafe { rustix::mm::munmap(self.start as *mut _, self.length).unwrap() };
        }
    }

    fn dump_all(memory: &TargetMemory, entry: &MapsEntry, mut sink: impl FnMut(u64, &[u8])) -> Result<(), MemoryError> {
        let mut sink = |address, bytes: &[u8]| -> Result<(), MemoryError> {
            sink(address, bytes);
            Ok(())
        };
        dump_own(memory, entry, &mut sink)?;
        if entry.inode == 0 {
            return Ok(());
        }
        let ranges = shown(memory, entry, std::slice::from_ref(&(entry.start..entry.end)))?;
        dump_shown(memory, entry, &ranges, sink)
    }

    fn memory() -> TargetMemory {
        TargetMemory::open(std::process::id().cast_signed()).unwrap()
    }

    /// Keeps huge pages out, which would fill neighbours.
    fn small_pages(mapping: &Mapping) {
        // SAFETY: advice on memory that nothing in Rust refers to.
        unsafe { libc::madvise(mapping.start as *mut _, mapping.length, libc::MADV_NOHUGEPAGE) };
    }

    #[test]
    fn reads_and_writes_what_the_program_could() {
        let mapping = Mapping::new(4, RW, MapFlags::PRIVATE, None);
        let memory = memory();
        assert_eq!(memory.write(mapping.page(1) - 2, b"abcd").unwrap(), 4);
        let mut buffer = [0; 4];
        assert_eq!(memory.read(mapping.page(1) - 2, &mut buffer).unwrap(), 4);
        assert_eq!(&buffer, b"abcd");
        let pieces = [
            mapping.page(1)..mapping.page(1) + 2,
            mapping.page(1) - 2..mapping.page(1),
        ];
        assert_eq!(memory.read_pieces(&pieces, &mut buffer).unwrap(), 4);
        assert_eq!(&buffer, b"cdab");

        mapping.protect(MprotectFlags::READ);
        assert_eq!(memory.write(mapping.start, b"x").unwrap(), 0);
        assert_eq!(memory.write_forced(mapping.start, b"x").unwrap(), 1);
        mapping.protect(MprotectFlags::empty());
        assert_eq!(memory.read(mapping.start, &mut buffer).unwrap(), 0);
        memory.read_all(mapping.page(1), &mut buffer).unwrap();
        assert_eq!(&buffer, b"cd\0\0");
    }

    #[test]
    fn says_where_memory_ends() {
        let mapping = Mapping::new(3, RW, MapFlags::PRIVATE, None);
        // SAFETY: nothing in Rust refers to this memory.
        unsafe { rustix::mm::mprotect(mapping.page(2) as *mut _, PAGE as usize, MprotectFlags::empty()).unwrap() };
        let memory = memory();
        let mut buffer = [0; 100];
        assert_eq!(memory.read(mapping.page(2) - 60, &mut buffer).unwrap(), 60);
        assert_eq!(memory.write(mapping.page(2) - 60, &buffer).unwrap(), 60);
        for nowhere in [0, 1 << 47, u64::MAX - 10] {
            assert_eq!(memory.read(nowhere, &mut buffer).unwrap(), 0);
            let failed = memory.read_all(nowhere, &mut buffer);
            assert!(matches!(failed, Err(MemoryError::Fault { address, .. }) if address == nowhere));
            assert!(matches!(
                memory.write_all(nowhere, b"x"),
                Err(MemoryError::Fault { .. })
            ));
        }
    }

    #[test]
    fn a_process_that_ended_is_gone() {
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let memory = TargetMemory::open(child.id().cast_signed()).unwrap();
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(matches!(memory.read(4096, &mut [0]), Err(MemoryError::Gone(_))));
        assert!(matches!(memory.write(4096, &[0]), Err(MemoryError::Gone(_))));
        assert!(matches!(memory.read_forced(4096, &mut [0]), Err(MemoryError::Gone(_))));
        let pages = memory.populated(0, 1 << 40).next();
        assert!(matches!(pages, Some(Err(MemoryError::Gone(_)))), "{pages:?}");
        assert!(matches!(TargetMemory::open(memory.pid()), Err(MemoryError::Gone(_))));
    }

    #[test]
    fn finds_the_pages_that_hold_something() {
        let mapping = Mapping::new(100, RW, MapFlags::PRIVATE, None);
        small_pages(&mapping);
        assert_eq!(mapping.populated(), []);
        for page in [3, 4, 5, 50, 99] {
            mapping.fill(page, 7);
        }
        // Reading a page that does not exist maps the zero page there: that is no data.
        memory().read_all(mapping.page(20), &mut [0; 10]).unwrap();
        mapping.fill(60, 0);
        assert_eq!(mapping.populated(), [(3, 6), (50, 51), (60, 61), (99, 100)]);
        assert_eq!(mapping.dumped(), [(3, 7, 3), (50, 7, 1), (99, 7, 1)]);
        mapping.protect(MprotectFlags::empty());
        assert_eq!(mapping.populated(), [(3, 6), (50, 51), (60, 61), (99, 100)]);
        assert_eq!(mapping.dumped(), [(3, 7, 3), (50, 7, 1), (99, 7, 1)]);
    }

    #[test]
    fn many_scattered_pages_and_long_runs() {
        let mapping = Mapping::new(5000, RW, MapFlags::PRIVATE, None);
        small_pages(&mapping);
        (0..2500).for_each(|page| mapping.fill(page * 2, 1 + page as u8 % 200));
        let expected: Vec<_> = (0..2500).map(|page| (page * 2, 1 + page as u8 % 200, 1)).collect();
        assert_eq!(mapping.dumped(), expected);
        (0..5000).for_each(|page| mapping.fill(page, 9));
        assert_eq!(mapping.dumped().iter().map(|run| run.2).sum::<usize>(), 5000);
        assert!(mapping.dumped().len() <= 5000 / 256 + 1);
    }

    #[test]
    fn a_huge_reservation_costs_nothing() {
        let mapping = Mapping::new(
            1 << 28,
            ProtFlags::empty(),
            MapFlags::PRIVATE | MapFlags::NORESERVE,
            None,
        );
        let far = (1 << 28) - 10;
        // SAFETY: nothing in Rust refers to this memory.
        unsafe {
            rustix::mm::mprotect(
                mapping.page(far) as *mut _,
                PAGE as usize,
                MprotectFlags::READ | MprotectFlags::WRITE,
            )
            .unwrap()
        };
        mapping.fill(far, 5);
        let start = Instant::now();
        assert_eq!(mapping.populated(), [(far, far + 1)]);
        assert!(start.elapsed() < Duration::from_millis(500), "{:?}", start.elapsed());
    }

    #[test]
    fn guard_pages_are_no_data() {
        const MADV_GUARD_INSTALL: i32 = 102; // since 6.13
        let mapping = Mapping::new(10, RW, MapFlags::PRIVATE, None);
        small_pages(&mapping);
        mapping.fill(0, 1);
        mapping.fill(9, 1);
        // SAFETY: pages that nothing in Rust refers to.
        if unsafe { libc::madvise(mapping.page(2) as *mut _, 2 * PAGE as usize, MADV_GUARD_INSTALL) } == 0 {
            let guards = mapping.in_pages(memory().guards(mapping.start, mapping.end()));
            if !guards.is_empty() {
                assert_eq!(guards, [(2, 4)]);
                assert_eq!(mapping.dumped(), [(0, 1, 1), (9, 1, 1)]);
            }
        }
    }

    #[test]
    fn droppable_memory_is_left_behind() {
        const MAP_DROPPABLE: u32 = 8; // since 6.11
        let flags = MapFlags::from_bits_retain(MAP_DROPPABLE);
        // SAFETY: a new mapping touches no other memory.
        let Ok(start) = (unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), 8192, RW, flags) }) else {
            return;
        };
        let mapping = Mapping {
            start: start as u64,
            length: 8192,
        };
        mapping.fill(0, 1);
        assert_eq!(mapping.dumped(), []);
        assert!(mapping.entry().flags.contains(VmFlag::Droppable));
    }

    #[test]
    fn shared_memory_is_saved_whoever_wrote_it() {
        let mapping = Mapping::new(1000, RW, MapFlags::SHARED, None);
        mapping.fill(10, 1);
        // SAFETY: the child writes one page of its copy of the address space, which the parent shares, and ends.
        unsafe {
            let child = libc::fork();
            if child == 0 {
                std::ptr::write_bytes(mapping.page(20) as *mut u8, 2, PAGE as usize);
                libc::_exit(0);
            }
            assert_eq!(libc::waitpid(child, std::ptr::null_mut(), 0), child);
        }
        assert_eq!(
            mapping.populated(),
            [(10, 11)],
            "this page table does not know of the other page"
        );
        assert_eq!(mapping.dumped(), [(10, 1, 1), (20, 2, 1)]);
        assert_eq!(mapping.entry().backing(), Backing::SharedAnonymous);
        let mut runs = 0;
        let mut count = |_, _: &[u8]| -> Result<(), MemoryError> {
            runs += 1;
            Ok(())
        };
        let range = mapping.start..mapping.end();
        assert!(dump_whole(&memory(), &mapping.entry(), &range, &mut count).unwrap());
        assert_eq!(runs, 2, "the way without privilege");
    }

    #[test]
    fn files_are_saved_to_their_end() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[7; 4096], 8192).unwrap();
        file.write_all_at(b"end", 16384).unwrap();
        let mapping = Mapping::new(20, RW, MapFlags::PRIVATE, Some((file.as_fd(), 4096)));
        mapping.fill(0, 3);
        assert_eq!(mapping.dumped(), [(0, 3, 1), (1, 7, 1), (3, b'e', 1)]);
        mapping.protect(MprotectFlags::empty());
        assert_eq!(mapping.dumped(), [(0, 3, 1), (1, 7, 1), (3, b'e', 1)]);
        mapping.protect(MprotectFlags::READ | MprotectFlags::WRITE);
        mapping.fill(1, 0);
        let copies = [(0, 3, 2), (3, b'e', 1)];
        assert_eq!(mapping.dumped(), copies, "a copy of zeroes lies over the file");

        let memfd = rustix::fs::memfd_create("x", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let file = File::from(memfd);
        file.write_all_at(&[7; 4096], 8192).unwrap();
        file.write_all_at(b"end", 16384).unwrap();
        for flags in [MapFlags::PRIVATE, MapFlags::SHARED] {
            let mapping = Mapping::new(20, RW, flags, Some((file.as_fd(), 4096)));
            assert_eq!(mapping.dumped(), [(1, 7, 1), (3, b'e', 1)]);
            assert_eq!(mapping.entry().backing(), Backing::Memfd);
        }
    }

    #[test]
    fn the_whole_process_can_be_dumped() {
        let memory = memory();
        for entry in ProcDir::open(memory.pid).unwrap().smaps().unwrap() {
            let result = dump_all(&memory, &entry, |address, bytes| {
                assert!(address.is_multiple_of(PAGE) && bytes.len().is_multiple_of(PAGE as usize));
                assert!(entry.start <= address && address + bytes.len() as u64 <= entry.end);
            });
            // Other tests unmap memory meanwhile.
            assert!(matches!(result, Ok(()) | Err(MemoryError::Fault { .. })), "{result:?}");
        }
    }
}
