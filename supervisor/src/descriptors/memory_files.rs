//! Memory files (memfd_create(2)): name, contents, mode, seals.
//!
//! Seals come last, when everything that maps or fills the file has done so ([`seal`]): a sealed file cannot be written,
//! and a mapping from before the seal is one that the program may still have.

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags, SeekFrom};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use vrun_image::state::{FileKind, MemoryFile};

use super::Result;
use super::tables::{Description, Tables, cannot};

const PREFIX: &[u8] = b"/memfd:";
/// `HUGETLBFS_MAGIC`.
const HUGE: u32 = 0x9584_58f6;

/// What one is; none if the description is something else.
pub(super) fn capture(
    tables: &Tables,
    description: &Description,
    first: u32,
    is_first: bool,
) -> Result<Option<FileKind>> {
    let slot = &description.slot;
    let Some(name) = slot.target.strip_prefix(PREFIX) else {
        return Ok(None);
    };
    let name = name.strip_suffix(super::DELETED).unwrap_or(name);
    let system = rustix::fs::statfs(description.magic()).map(|system| system.f_type as u32);
    let size = u64::try_from(slot.stat.st_size).unwrap_or(0);
    if system == Ok(HUGE) && size != 0 {
        return description.refuse(tables, "is a memory file of huge pages, which cannot be kept in a file");
    }
    let refused = cannot("look at", description);
    let seals = rustix::fs::fcntl_get_seals(description.fetch()?).map_err(|errno| refused(errno.into()))?;
    Ok(Some(FileKind::Memory(MemoryFile {
        memory: first,
        name: name.to_vec(),
        offset: u64::try_from(slot.info.position).unwrap_or(0),
        size: if is_first { size } else { 0 },
        mode: slot.stat.st_mode,
        seals: seals.bits(),
    })))
}

/// Makes the inode. Several descriptions of it are opened from the first one.
pub(super) fn create(file: &MemoryFile) -> io::Result<OwnedFd> {
    let name = std::ffi::CString::new(&file.name[..])?;
    // A file that may be executed and sealed, or neither; what of it was not so is made so by its mode and its seals.
    let fd = rustix::fs::memfd_create(&name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    rustix::fs::ftruncate(&fd, file.size)?;
    rustix::fs::fchmod(&fd, Mode::from_raw_mode(file.mode & 0o7777))?;
    Ok(fd)
}

pub(super) fn write(fd: &OwnedFd, offset: u64, bytes: &[u8]) -> io::Result<()> {
    std::fs::File::from(fd.try_clone()?).write_all_at(bytes, offset)
}

/// A description of its own, with these flags and at this offset.
pub(super) fn open(first: &OwnedFd, flags: u32, offset: u64) -> io::Result<OwnedFd> {
    let flags = OFlags::from_bits_retain(flags & super::KEPT) | OFlags::CLOEXEC;
    let fd = rustix::fs::open(format!("/proc/self/fd/{}", first.as_raw_fd()), flags, Mode::empty())?;
    if !super::is_path_only(flags.bits()) {
        rustix::fs::seek(&fd, SeekFrom::Start(offset))?;
    }
    Ok(fd)
}

/// Seals it as it was.
pub(super) fn seal(fd: &OwnedFd, seals: u32) -> io::Result<()> {
    let (wanted, now) = (SealFlags::from_bits_retain(seals), rustix::fs::fcntl_get_seals(fd)?);
    // F_SEAL_SEAL forbids all others, so it comes with them or after.
    if now.contains(wanted) {
        return Ok(());
    }
    Ok(rustix::fs::fcntl_add_seals(fd, wanted - now)?)
}
