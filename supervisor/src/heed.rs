//! How a guest's supervisor learns that the guest's own kernel has sent it a signal: of a timer, or of its own.
//!
//! ```text
//!   process of the guest, once                        supervisor
//!     signalfd ── added by it to ──► epoll   ──────►   keeps both; the process has neither
//!   any signal to any of its threads                  the epoll is readable, and says which process
//! ```
//!
//! A thread that waits at the door for its notification is not woken by a signal, so that no effect of its call is lost
//! (`SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV`); somebody has to look ([`crate::door::Door::heed`]).
//!
//! The kernel wakes whoever watches a signalfd in the name of a process at every signal to it, whatever the mask
//! (`signalfd_notify`, `include/linux/signalfd.h`). Whether anything is to be read there it then judges by the signals of
//! who asks: one of ours waits for ever, so that there always is.

use crate::sys;
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use std::io;
use std::os::fd::OwnedFd;
use vrun_shim::{Injection, Script, area};

/// The signal that waits here for ever.
const TOKEN: i32 = 64;
/// What an epoll instance tells at once.
const MOST: usize = 64;

#[derive(Debug)]
pub struct Heed {
    epoll: OwnedFd,
    /// Its number in the processes.
    number: i32,
    /// A watch lasts as long as its file.
    watched: Vec<OwnedFd>,
}

impl Heed {
    /// Begins with the first process, before the others are made of it. Call it while this process has one thread.
    pub fn begin(first: &Injection) -> io::Result<Self> {
        sys::hold_signal(TOKEN)?;
        let mut script = Script::new(area::DATA.start);
        let create = script.call("make an epoll instance", libc::SYS_epoll_create1, &[0]);
        let number = first.run(&script).map_err(io::Error::other)?[create] as i32;
        Ok(Self {
            epoll: sys::descriptor_of(first.tracee().tid(), number)?,
            number,
            watched: Vec::new(),
        })
    }

    /// Heeds one of the processes.
    pub fn add(&mut self, process: &Injection) -> io::Result<()> {
        let pid = process.tracee().tid();
        let run = |script: &Script| process.run(script).map_err(io::Error::other);
        let mut script = Script::new(area::DATA.start);
        let mask = script.data(&(1_u64 << (TOKEN - 1)).to_le_bytes());
        let arguments = [u64::MAX, mask, 8, 0];
        let create = script.call("make a signalfd", libc::SYS_signalfd4, &arguments);
        let watched = run(&script)?[create];
        self.watched.push(sys::descriptor_of(pid, watched as i32)?);
        let mut script = Script::new(area::DATA.start);
        // struct epoll_event is packed on x86_64.
        let mut event = (libc::EPOLLIN | libc::EPOLLET).to_le_bytes().to_vec();
        event.extend((pid as u64).to_le_bytes());
        let event = script.data(&event);
        let [epoll, watched] = [self.number as u64, watched as u64];
        let arguments = [epoll, libc::EPOLL_CTL_ADD as u64, watched, event];
        script.call("watch its signals", libc::SYS_epoll_ctl, &arguments);
        script.call("close the signalfd", libc::SYS_close, &[watched]);
        script.call("close the epoll instance", libc::SYS_close, &[epoll]);
        run(&script).map(drop)
    }

    /// Readable when a signal was sent.
    pub fn fd(&self) -> &OwnedFd {
        &self.epoll
    }

    /// Processes that were sent signals, by host PID; while there are more, it stays readable.
    pub fn take(&self) -> io::Result<Vec<i32>> {
        let mut events = Vec::with_capacity(MOST);
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        match epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&at_once)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(events.iter().map(|event| event.data.u64() as i32).collect())
    }
}
