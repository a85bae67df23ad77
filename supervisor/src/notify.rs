//! The supervisor's end of a seccomp user-notification filter: seccomp_unotify(2), `kernel/seccomp.c`.
//!
//! The file opts in to unsafe code because the five ioctls have no wrapper that keeps the errno, and the errno decides:
//! `ENOENT` means that the caller is gone, which is an event and no error.
//!
//! ```text
//! target: system call ──▶ waits            recv() ─▶ Notification{id, …}
//!                                          resume(id)  the kernel goes on with the call as if nothing had been
//!                         ◀──────────────  answer(id, value) · fail(id, errno) · add_fd(id, fd, …)
//! ```
//!
//! One thread drains one listener: `O_NONBLOCK` is ignored by RECV, so that a second one could block for ever between
//! poll and RECV. The filter was installed with `WAIT_KILLABLE_RECV` (Linux 5.19): after RECV only a fatal signal takes
//! the call back. Before RECV any signal may, and then the kernel repeats the notification.
#![allow(unsafe_code)]

use libc::{c_ulong, c_void};
use rustix::event::{PollFd, PollFlags, poll};
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// A tracked call that waits for its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Notification {
    /// The kernel's cookie; unique for the life of the listener.
    pub id: u64,
    /// The calling thread (a TID, in our PID namespace). The kernel gives 0 for a thread that we cannot see.
    pub pid: i32,
    pub number: u32,
    pub args: [u64; 6],
    /// The address after the `syscall` instruction.
    pub instruction_pointer: u64,
}

/// Why there is no notification.
#[derive(Debug, thiserror::Error)]
pub enum RecvError {
    /// No task with this filter is left, or the wake descriptor became readable.
    #[error("the last process under this filter has ended, or the listener was told to stop")]
    Ended,
    #[error("cannot receive from the notification listener: {0}")]
    Io(#[from] io::Error),
}

/// Why an answer was not taken.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// The call was taken back (the thread was killed, or a signal came before RECV was over).
    #[error("the caller is gone")]
    Gone,
    #[error("cannot answer a notification: {0}")]
    Io(io::Error),
}

impl From<io::Error> for AnswerError {
    fn from(error: io::Error) -> AnswerError {
        match error.raw_os_error() {
            // ESRCH from ADDFD: the task has exited in between.
            Some(libc::ENOENT | libc::ESRCH) => AnswerError::Gone,
            _ => AnswerError::Io(error),
        }
    }
}

/// The listener of one filter. It may be shared: only [`Listener::recv`] wants a single thread.
#[derive(Debug)]
pub struct Listener {
    fd: OwnedFd,
}

/// Layouts shared with the kernel: `include/uapi/linux/seccomp.h`.
const _: () = {
    assert!(mem::size_of::<libc::seccomp_data>() == 64);
    assert!(mem::size_of::<libc::seccomp_notif>() == 80);
    assert!(mem::offset_of!(libc::seccomp_notif, data) == 16);
    assert!(mem::size_of::<libc::seccomp_notif_resp>() == 24);
    assert!(mem::offset_of!(libc::seccomp_notif_resp, flags) == 20);
    assert!(mem::size_of::<libc::seccomp_notif_addfd>() == 24);
};

impl Listener {
    /// Takes the descriptor that seccomp(2) returned and asks for synchronous wake-ups (Linux 6.6), which make a round
    /// trip about eight times faster; a kernel without them works, slower.
    pub fn new(fd: OwnedFd) -> Listener {
        let flags = c_ulong::from(linux_raw_sys::ptrace::SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP);
        // SAFETY: SET_FLAGS takes its flags by value; nothing is read or written through a pointer.
        let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SET_FLAGS, flags) };
        if result != 0 {
            tracing::debug!("no synchronous wake-ups: {}", io::Error::last_os_error());
        }
        Listener { fd }
    }

    /// Waits for the next notification, until none can come any more or `wake` becomes readable.
    pub fn recv(&self, wake: Option<BorrowedFd<'_>>) -> Result<Notification, RecvError> {
        loop {
            let own = PollFd::new(&self.fd, PollFlags::IN);
            let mut fds = [
                own,
                PollFd::from_borrowed_fd(wake.unwrap_or(self.fd.as_fd()), PollFlags::IN),
            ];
            match poll(&mut fds[..1 + usize::from(wake.is_some())], None) {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(RecvError::Io(error.into())),
            }
            let [listener, wake] = fds.map(|fd| fd.revents());
            if !wake.is_empty() {
                return Err(RecvError::Ended);
            }
            if listener.contains(PollFlags::IN) {
                match self.recv_now() {
                    Ok(notification) => return Ok(notification),
                    // ENOENT: the caller was signalled between poll and RECV.
                    Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::ENOENT)) => {}
                    Err(error) => return Err(RecvError::Io(error)),
                }
            } else if listener.intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL) {
                return Err(RecvError::Ended);
            }
        }
    }

    fn recv_now(&self) -> io::Result<Notification> {
        // SAFETY: all-zero is a value of this plain struct; the kernel (since 5.5) wants to see exactly that.
        let mut request: libc::seccomp_notif = unsafe { mem::zeroed() };
        // SAFETY: RECV writes one `seccomp_notif`, whose size is part of the ioctl number.
        unsafe { self.ioctl(libc::SECCOMP_IOCTL_NOTIF_RECV, (&raw mut request).cast()) }?;
        Ok(Notification {
            id: request.id,
            pid: request.pid as i32,
            number: request.data.nr as u32,
            args: request.data.args,
            instruction_pointer: request.data.instruction_pointer,
        })
    }

    /// Lets the kernel make the call. What its pointers lead to may have changed since it was looked at.
    pub fn resume(&self, id: u64) -> Result<(), AnswerError> {
        self.send(id, 0, 0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32)
    }

    /// The call returns `value` without having been made.
    pub fn answer(&self, id: u64, value: i64) -> Result<(), AnswerError> {
        self.send(id, value, 0, 0)
    }

    /// The call fails with `errno`, a positive number. The kernel's own restart codes (512..=516,
    /// `include/linux/errno.h`) are understood as if the call itself had returned them.
    pub fn fail(&self, id: u64, errno: i32) -> Result<(), AnswerError> {
        self.send(id, 0, -errno, 0)
    }

    fn send(&self, id: u64, val: i64, error: i32, flags: u32) -> Result<(), AnswerError> {
        let mut response = libc::seccomp_notif_resp { id, val, error, flags };
        // SAFETY: SEND reads one `seccomp_notif_resp`.
        unsafe { self.ioctl(libc::SECCOMP_IOCTL_NOTIF_SEND, (&raw mut response).cast()) }?;
        Ok(())
    }

    /// Puts a copy of `fd` into the caller's table, as `number` (replacing what is there) or as its lowest free one,
    /// and returns the number. With `send`, this is also the answer: the call returns that number, atomically (Linux
    /// 5.14).
    pub fn add_fd(
        &self,
        id: u64,
        fd: BorrowedFd<'_>,
        number: Option<i32>,
        close_on_exec: bool,
        send: bool,
    ) -> Result<RawFd, AnswerError> {
        let mut flags = 0;
        if number.is_some() {
            flags |= libc::SECCOMP_ADDFD_FLAG_SETFD as u32;
        }
        if send {
            flags |= libc::SECCOMP_ADDFD_FLAG_SEND as u32;
        }
        let mut request = libc::seccomp_notif_addfd {
            id,
            flags,
            srcfd: fd.as_raw_fd() as u32,
            newfd: number.unwrap_or(0) as u32,
            newfd_flags: if close_on_exec { libc::O_CLOEXEC as u32 } else { 0 },
        };
        // SAFETY: ADDFD reads one `seccomp_notif_addfd`; `fd` is borrowed for the whole call.
        Ok(unsafe { self.ioctl(libc::SECCOMP_IOCTL_NOTIF_ADDFD, (&raw mut request).cast()) }?)
    }

    /// Whether the caller still waits. To be asked after every look into its memory: the PID may have been reused.
    pub fn is_valid(&self, id: u64) -> bool {
        let mut id = id;
        // SAFETY: ID_VALID reads one u64.
        unsafe { self.ioctl(libc::SECCOMP_IOCTL_NOTIF_ID_VALID, (&raw mut id).cast()) }.is_ok()
    }

    /// # Safety
    /// `argument` must point to what `request` reads and writes.
    unsafe fn ioctl(&self, request: libc::Ioctl, argument: *mut c_void) -> io::Result<i32> {
        // SAFETY: the caller vouches for `argument`; the descriptor is ours.
        let result = unsafe { libc::ioctl(self.fd.as_raw_fd(), request, argument) };
        if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(result)
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
