//! Reaps threads that we trace and that have ended, so that the end of their process can be waited for.
//!
//! ```text
//!   leader ended ──► its other threads: those that have ended are reaped, of the rest each when it ends
//! ```
//!
//! A thread that traces others and waits for the leader of a process waits for ever if that process ends: the kernel
//! reports a leader's end only when its other threads have been reaped, and these are reported to the tracer too, who
//! is waiting. So another thread of ours does that (it may: wait(2), `__WNOTHREAD`). It takes no stops away from the
//! tracer, because it waits only for threads that a descriptor has told to have ended. Such descriptors exist since Linux
//! 6.9 (`PIDFD_THREAD`); without them nothing is done.

use crate::proc::ProcDir;
use crate::sys;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use std::io;
use std::os::fd::OwnedFd;
use std::thread::{self, JoinHandle};

/// Watches processes until it is dropped.
#[derive(Debug)]
pub struct Undertaker {
    stop: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

/// A thread whose end is waited for.
struct Watched {
    pid: i32,
    tid: i32,
    end: OwnedFd,
}

impl Undertaker {
    /// For these processes, by the numbers of this host.
    pub fn of(pids: &[i32]) -> io::Result<Self> {
        let stop = eventfd(0, EventfdFlags::CLOEXEC)?;
        let told = stop.try_clone()?;
        let mut watched = Vec::with_capacity(pids.len());
        pids.iter().for_each(|pid| watch(&mut watched, *pid, *pid));
        let thread = thread::Builder::new()
            .name("undertaker".into())
            .spawn(move || attend(watched, &told))?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Undertaker {
    fn drop(&mut self) {
        // The counter of an eventfd cannot overflow from one step.
        let _ = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Adds a thread, unless it has gone.
fn watch(watched: &mut Vec<Watched>, pid: i32, tid: i32) {
    if let Ok(end) = sys::thread_pidfd(tid) {
        watched.push(Watched { pid, tid, end });
    }
}

fn attend(mut watched: Vec<Watched>, stop: &OwnedFd) {
    loop {
        let mut fds = vec![PollFd::new(stop, PollFlags::IN)];
        fds.extend(watched.iter().map(|thread| PollFd::new(&thread.end, PollFlags::IN)));
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return tracing::error!("the ends of threads cannot be watched: {error}"),
        }
        if !fds[0].revents().is_empty() {
            return;
        }
        let over: Vec<bool> = fds[1..].iter().map(|fd| !fd.revents().is_empty()).collect();
        let mut over = over.into_iter();
        let (ended, rest): (Vec<_>, Vec<_>) = watched.into_iter().partition(|_| over.next().unwrap_or(false));
        watched = rest;
        for thread in ended {
            if thread.tid != thread.pid {
                sys::reap(thread.tid);
                continue;
            }
            let others = ProcDir::open(thread.pid).and_then(|directory| directory.threads());
            for tid in others.unwrap_or_default().into_iter().filter(|tid| *tid != thread.pid) {
                watch(&mut watched, thread.pid, tid);
            }
        }
    }
}
