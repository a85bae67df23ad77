//! The system calls about descriptors that neither nix nor rustix wraps as they are needed here: with addresses, options
//! and control messages as plain bytes.
//!
//! Unsafe code: every pointer that is handed to the kernel is to a live local or argument, with its length beside it;
//! descriptors that the kernel makes are owned at once.
#![allow(unsafe_code)]

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

/// Bytes of the largest address (`struct sockaddr_storage`).
const ADDRESS: usize = 128;
/// `TFD_IOC_SET_TICKS` (`linux/timerfd.h`): `_IOW('T', 0, __u64)`.
const TIMER_SET_TICKS: libc::Ioctl = 0x4008_5400;

fn result(value: i64) -> io::Result<i64> {
    match value {
        -1 => Err(io::Error::last_os_error()),
        value => Ok(value),
    }
}

/// `fcntl(2)` with a number.
pub(super) fn fcntl(fd: BorrowedFd<'_>, command: i32, argument: i64) -> io::Result<i32> {
    // SAFETY: none of the commands that are used takes a pointer.
    result(unsafe { libc::fcntl(fd.as_raw_fd(), command, argument) }.into()).map(|value| value as i32)
}

/// `F_OFD_SETLK`: a lock of the open file description.
pub(super) fn lock_range(fd: BorrowedFd<'_>, write: bool, start: u64, end: Option<u64>) -> io::Result<()> {
    let lock = range(write, start, end);
    // SAFETY: a live struct flock.
    result(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) }.into()).map(drop)
}

/// `struct flock` as bytes, for an injected `F_SETLK`.
pub(super) fn lock_bytes(write: bool, start: u64, end: Option<u64>) -> Vec<u8> {
    let lock = range(write, start, end);
    let mut bytes = Vec::with_capacity(size_of::<libc::flock>());
    bytes.extend_from_slice(&lock.l_type.to_le_bytes());
    bytes.extend_from_slice(&lock.l_whence.to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&lock.l_start.to_le_bytes());
    bytes.extend_from_slice(&lock.l_len.to_le_bytes());
    bytes.extend_from_slice(&[0; 8]);
    bytes
}

fn range(write: bool, start: u64, end: Option<u64>) -> libc::flock {
    libc::flock {
        l_type: if write { libc::F_WRLCK } else { libc::F_RDLCK } as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: start.cast_signed(),
        l_len: end.map_or(0, |end| (end - start + 1).cast_signed()),
        l_pid: 0,
    }
}

/// `F_GETOWN_EX`: kind and number.
pub(super) fn owner(fd: BorrowedFd<'_>) -> io::Result<(i32, i32)> {
    // `F_GETOWN_EX` and `struct f_owner_ex`, asm-generic/fcntl.h.
    let mut owner = [0_i32; 2];
    // SAFETY: a live array of the struct's two ints.
    result(unsafe { libc::fcntl(fd.as_raw_fd(), 16, owner.as_mut_ptr()) }.into())?;
    Ok((owner[0], owner[1]))
}

/// An `ioctl(2)` that gives an int.
pub(super) fn ioctl_int(fd: BorrowedFd<'_>, request: libc::Ioctl) -> io::Result<i32> {
    let mut value = 0_i32;
    // SAFETY: a live int.
    result(unsafe { libc::ioctl(fd.as_raw_fd(), request, &raw mut value) }.into())?;
    Ok(value)
}

/// Makes a timerfd say that it has expired that many times.
pub(super) fn set_ticks(fd: BorrowedFd<'_>, ticks: u64) -> io::Result<()> {
    // SAFETY: a live u64.
    result(unsafe { libc::ioctl(fd.as_raw_fd(), TIMER_SET_TICKS, &raw const ticks) }.into()).map(drop)
}

/// A signalfd; bit 0 of the mask is signal 1.
pub(super) fn signalfd(mask: u64) -> io::Result<OwnedFd> {
    // SAFETY: the kernel's mask is 8 bytes; the result is a new descriptor that is ours.
    unsafe {
        let fd = result(libc::syscall(
            libc::SYS_signalfd4,
            -1,
            &raw const mask,
            8,
            libc::SFD_CLOEXEC,
        ))?;
        Ok(OwnedFd::from_raw_fd(fd as i32))
    }
}

/// Whether `slot` (process, number) leads to the open file that an epoll instance watches under `number`; of several
/// that were added under it, the one at `index` (`KCMP_EPOLL_TFD`, kcmp(2)).
pub(super) fn is_watched(slot: (i32, i32), epoll: (i32, i32), number: i32, index: u32) -> bool {
    const KCMP_EPOLL_TFD: i32 = 7;
    let watched = [epoll.1.cast_unsigned(), number.cast_unsigned(), index];
    // SAFETY: a live struct kcmp_epoll_slot, three ints.
    unsafe {
        libc::syscall(
            libc::SYS_kcmp,
            slot.0,
            epoll.0,
            KCMP_EPOLL_TFD,
            slot.1,
            watched.as_ptr(),
        ) == 0
    }
}

/// `getsockopt(2)`, at most 256 bytes.
pub(super) fn option(fd: BorrowedFd<'_>, level: i32, name: i32) -> io::Result<Vec<u8>> {
    let mut value = vec![0_u8; 256];
    let mut length = value.len() as u32;
    // SAFETY: a live buffer and its length.
    let got = unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, value.as_mut_ptr().cast(), &raw mut length) };
    result(got.into())?;
    value.truncate(length as usize);
    Ok(value)
}

pub(super) fn set_option(fd: BorrowedFd<'_>, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    let (pointer, length) = (value.as_ptr().cast(), value.len() as u32);
    // SAFETY: a live buffer and its length.
    result(unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, pointer, length) }.into()).map(drop)
}

/// An option that is an int.
pub(super) fn int_option(fd: BorrowedFd<'_>, name: i32) -> io::Result<i32> {
    let value = option(fd, libc::SOL_SOCKET, name)?;
    Ok(value.first_chunk().map_or(0, |bytes| i32::from_le_bytes(*bytes)))
}

pub(super) fn set_int_option(fd: BorrowedFd<'_>, name: i32, value: i32) -> io::Result<()> {
    set_option(fd, libc::SOL_SOCKET, name, &value.to_le_bytes())
}

/// `getsockname(2)`; empty if it has no name.
pub(super) fn name_of(fd: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    let mut address = vec![0_u8; ADDRESS];
    let mut length = ADDRESS as u32;
    // SAFETY: a live buffer and its length.
    result(unsafe { libc::getsockname(fd.as_raw_fd(), address.as_mut_ptr().cast(), &raw mut length) }.into())?;
    address.truncate(length as usize);
    Ok(named(address))
}

/// `getpeername(2)`; none if it is not connected.
pub(super) fn peer_of(fd: BorrowedFd<'_>) -> Option<Vec<u8>> {
    let mut address = vec![0_u8; ADDRESS];
    let mut length = ADDRESS as u32;
    // SAFETY: a live buffer and its length.
    result(unsafe { libc::getpeername(fd.as_raw_fd(), address.as_mut_ptr().cast(), &raw mut length) }.into()).ok()?;
    address.truncate(length as usize);
    Some(address)
}

/// The family alone is no name.
fn named(address: Vec<u8>) -> Vec<u8> {
    if address.len() <= 2 { Vec::new() } else { address }
}

pub(super) fn bind(fd: BorrowedFd<'_>, address: &[u8]) -> io::Result<()> {
    let (pointer, length) = (address.as_ptr().cast(), address.len() as u32);
    // SAFETY: a live buffer and its length; the kernel copies it and wants no alignment.
    result(unsafe { libc::bind(fd.as_raw_fd(), pointer, length) }.into()).map(drop)
}

pub(super) fn connect(fd: BorrowedFd<'_>, address: &[u8]) -> io::Result<()> {
    let (pointer, length) = (address.as_ptr().cast(), address.len() as u32);
    // SAFETY: as in `bind`.
    result(unsafe { libc::connect(fd.as_raw_fd(), pointer, length) }.into()).map(drop)
}

/// `socket(2)` with plain numbers, close-on-exec and non-blocking.
pub(super) fn socket(family: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    let kind = kind | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: plain numbers; the result is a new descriptor that is ours.
    unsafe { result(libc::socket(family, kind, protocol).into()).map(|fd| OwnedFd::from_raw_fd(fd as i32)) }
}

/// What was found in a socket's queue and is still there.
#[derive(Debug)]
pub(super) struct Peeked {
    /// The length of a datagram may be larger than what fitted.
    pub length: usize,
    /// Copies of what was passed: the same open files.
    pub descriptors: Vec<OwnedFd>,
    /// PID (in our namespace), user, group; only with `SO_PASSCRED`.
    pub credentials: Option<[u32; 3]>,
    /// Empty if the sender has no name.
    pub from: Vec<u8>,
    /// A message, not the end: only with `SO_PASSCRED`.
    pub is_message: bool,
}

/// Looks at what comes next. None if there is nothing.
pub(super) fn peek(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Option<Peeked>> {
    #[repr(align(8))]
    struct Control([u8; 4096]);
    let mut control = Control([0; 4096]);
    let mut from = vec![0_u8; ADDRESS];
    let mut vector = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: all zeroes is a valid msghdr, which then points to live locals; the control buffer is aligned for cmsghdr,
    // and the kernel's lengths say what of it is filled. The descriptors in it are new and ours.
    unsafe {
        let mut message: libc::msghdr = zeroed();
        message.msg_name = from.as_mut_ptr().cast();
        message.msg_namelen = ADDRESS as u32;
        message.msg_iov = &raw mut vector;
        message.msg_iovlen = 1;
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = control.0.len();
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC | libc::MSG_TRUNC;
        let length = match libc::recvmsg(fd.as_raw_fd(), &raw mut message, flags) {
            -1 => {
                let error = io::Error::last_os_error();
                return match error.raw_os_error() {
                    Some(libc::EAGAIN | libc::ENOTCONN | libc::EINVAL) => Ok(None),
                    _ => Err(error),
                };
            }
            length => length as usize,
        };
        from.truncate(message.msg_namelen as usize);
        let mut peeked = Peeked {
            length,
            descriptors: Vec::new(),
            credentials: None,
            from: named(from),
            is_message: length != 0,
        };
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        while !header.is_null() {
            let data = libc::CMSG_DATA(header);
            let length = (*header).cmsg_len - libc::CMSG_LEN(0) as usize;
            match ((*header).cmsg_level, (*header).cmsg_type) {
                (libc::SOL_SOCKET, libc::SCM_RIGHTS) => {
                    for index in 0..length / size_of::<RawFd>() {
                        let number: RawFd = ptr::read_unaligned(data.cast::<RawFd>().add(index));
                        peeked.descriptors.push(OwnedFd::from_raw_fd(number));
                    }
                }
                (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) => {
                    let ucred: libc::ucred = ptr::read_unaligned(data.cast());
                    peeked.is_message = true;
                    peeked.credentials = Some([ucred.pid.cast_unsigned(), ucred.uid, ucred.gid]);
                }
                _ => {}
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
        Ok(Some(peeked))
    }
}

/// How many of the bytes that come next in a stream were sent by calls of which no byte is behind the first `most`.
///
/// A peek goes on to the next message as long as the last one was copied whole. So where the room ends, in memory that
/// cannot be written, it stops at the end of a message (`unix_stream_read_generic`, `net/unix/af_unix.c`).
pub(super) fn peek_whole(fd: BorrowedFd<'_>, most: usize) -> io::Result<usize> {
    const PAGE: usize = 4096;
    if most == 0 {
        return Ok(0);
    }
    let room = most.next_multiple_of(PAGE);
    // SAFETY: a mapping of our own, the last page of which stays inaccessible; the kernel reports what it cannot write.
    unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let start = libc::mmap(ptr::null_mut(), room + PAGE, libc::PROT_NONE, flags, -1, 0);
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        libc::mprotect(start, room, libc::PROT_READ | libc::PROT_WRITE);
        let buffer = start.byte_add(room - most);
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        let length = result(libc::recv(fd.as_raw_fd(), buffer, most + PAGE, flags) as i64);
        libc::munmap(start, room + PAGE);
        match length {
            Ok(length) => Ok(length as usize),
            Err(error) if error.raw_os_error() == Some(libc::EFAULT) => Ok(0),
            Err(error) => Err(error),
        }
    }
}

/// Control messages as the kernel takes them: descriptors, and credentials of the sender.
pub(super) fn control(descriptors: &[RawFd], credentials: Option<[u32; 3]>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut add = |kind: i32, data: &[u8]| {
        let length = size_of::<libc::cmsghdr>() + data.len();
        bytes.extend_from_slice(&(length as u64).to_le_bytes());
        bytes.extend_from_slice(&libc::SOL_SOCKET.to_le_bytes());
        bytes.extend_from_slice(&kind.to_le_bytes());
        bytes.extend_from_slice(data);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
    };
    if !descriptors.is_empty() {
        let numbers: Vec<u8> = descriptors.iter().flat_map(|number| number.to_le_bytes()).collect();
        add(libc::SCM_RIGHTS, &numbers);
    }
    if let Some(credentials) = credentials {
        let words: Vec<u8> = credentials.iter().flat_map(|word| word.to_le_bytes()).collect();
        add(libc::SCM_CREDENTIALS, &words);
    }
    bytes
}

/// Sends one message, all of it or nothing. `to` is empty if the socket is connected.
pub(super) fn send(fd: BorrowedFd<'_>, bytes: &[u8], descriptors: &[RawFd], to: &[u8]) -> io::Result<usize> {
    let control: Vec<u64> = control(descriptors, None)
        .chunks_exact(8)
        .map(|word| u64::from_le_bytes(word.try_into().expect("8 bytes")))
        .collect();
    let mut vector = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: all zeroes is a valid msghdr, which then points to live data that the kernel only reads.
    unsafe {
        let mut message: libc::msghdr = zeroed();
        if !to.is_empty() {
            message.msg_name = to.as_ptr().cast_mut().cast();
            message.msg_namelen = to.len() as u32;
        }
        message.msg_iov = &raw mut vector;
        message.msg_iovlen = 1;
        if !control.is_empty() {
            message.msg_control = control.as_ptr().cast_mut().cast();
            message.msg_controllen = 8 * control.len();
        }
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        result(libc::sendmsg(fd.as_raw_fd(), &raw const message, flags) as i64).map(|sent| sent as usize)
    }
}

/// Puts `file` at `number` in a descriptor table for the time of `act`, and what was there back afterwards. The table
/// should be the calling thread's own.
pub(super) fn at_number<T>(
    file: RawFd,
    number: RawFd,
    act: impl FnOnce(&dyn Fn(RawFd) -> RawFd) -> io::Result<T>,
) -> io::Result<T> {
    if file == number {
        return act(&|fd| fd);
    }
    // SAFETY: plain numbers; what was at `number` is put back, the copy is closed.
    unsafe {
        let saved = libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 0);
        result(libc::dup3(file, number, libc::O_CLOEXEC).into())?;
        let done = act(&|fd| if fd == number { saved } else { fd });
        if saved >= 0 {
            result(libc::dup3(saved, number, libc::O_CLOEXEC).into())?;
            libc::close(saved);
        } else {
            libc::close(number);
        }
        done
    }
}

/// `epoll_ctl(2)` with `EPOLL_CTL_ADD`, on numbers of the calling thread's table.
pub(super) fn epoll_add(epoll: RawFd, number: RawFd, events: u32, data: u64) -> io::Result<()> {
    let mut event = libc::epoll_event { events, u64: data };
    // SAFETY: a live event.
    result(unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, number, &raw mut event) }.into()).map(drop)
}

/// Takes the events that are there, as `epoll_wait(2)` does, at most 64; gives their number.
pub(super) fn epoll_take(epoll: BorrowedFd<'_>) -> io::Result<usize> {
    let mut events = [libc::epoll_event { events: 0, u64: 0 }; 64];
    // SAFETY: a live array and its length.
    result(unsafe { libc::epoll_wait(epoll.as_raw_fd(), events.as_mut_ptr(), 64, 0) }.into())
        .map(|count| count as usize)
}

/// Makes the calling thread's descriptor table its own.
pub(super) fn own_table() -> io::Result<()> {
    // SAFETY: a plain number. The thread's descriptors stay as they are; later changes are its own.
    result(unsafe { libc::unshare(libc::CLONE_FILES) }.into()).map(drop)
}

/// What a descriptor of ours is ready for; nothing if that cannot be told.
pub(super) fn readiness(fd: BorrowedFd<'_>) -> i16 {
    let mut one = libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLIN | libc::POLLOUT,
        revents: 0,
    };
    // SAFETY: a live pollfd.
    unsafe { libc::poll(&raw mut one, 1, 0) };
    one.revents
}

/// A pidfd of a process that has ended and was waited for.
pub(super) fn ended_process() -> io::Result<OwnedFd> {
    // SAFETY: the child does nothing but end. It is our child and not waited for, so its number is its own.
    unsafe {
        let pid = result(libc::fork().into())?;
        if pid == 0 {
            libc::_exit(0);
        }
        let fd = result(libc::syscall(libc::SYS_pidfd_open, pid, 0)).map(|fd| OwnedFd::from_raw_fd(fd as i32));
        libc::waitpid(pid as i32, ptr::null_mut(), 0);
        fd
    }
}
