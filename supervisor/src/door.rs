//! The door of a guest: the thread that answers its notifications.
//!
//! ```text
//!   guest: system call ─► recv ─► marshal ─┬─ runs in the guest's own kernel          resume
//!                                          ├─ Call ─► origin ─► Reply                 answer, fail
//!                                          ├─ mapping of a file: contents fetched      add_fd, resume
//!                                          ├─ its own /proc: a snapshot                answer
//!                                          └─ not possible away: held until home       fail(ERESTARTSYS)
//! ```
//!
//! **Stopping.** The main thread stops the guest with `PTRACE_INTERRUPT`, but a guest that waits for its notification
//! stops only when that is answered. So it also sets `stopping` here, which cancels the call in flight and turns away new
//! ones with ERESTARTSYS: the kernel then makes the call again, or not, by its own rules. That code may only be given
//! after the interrupt was sent, or the program would see it: the order of the two in [`Door::begin_stop`]'s caller
//! is what this rests on.
//!
//! **Signals** come by the same channel as replies, in the order in which they happened at the origin. One that came before a
//! reply is in the guest before its call returns: a result that overtakes it is *finished* and kept until the guest is
//! stopped for the signal.
//!
//! **Masks.** The mask that `ppoll` and its kin have for their time is not the guest's while it waits here. A signal
//! that the mask lets in ends the call, and the main thread lets it in ([`Door::unmasked`]); one that it keeps out waits
//! until the call is over ([`Door::defers`]).
//!
//! **Time.** A wait that is turned away (for a stop, or a signal that changes nothing) is made again by the kernel with the
//! timeout that it began with: what has passed of it is remembered and taken off.

use crate::attributes::usage;
use crate::memory::{MemoryError, TargetMemory};
use crate::notify::{Listener, Notification, RecvError};
use crate::proc::ProcDir;
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use vrun_remote_io::call::{Argument, Call, Keep, Reply, Segment};
use vrun_remote_io::channel::Sender;
use vrun_remote_io::marshal::{self, MmapRequest, Outcome, Pending, Step};
use vrun_remote_io::message::{Cancel, Message};

/// `include/linux/errno.h`: make the call again, unless a handler without `SA_RESTART` runs.
const ERESTARTSYS: i32 = 512;
/// Make the call again unless any handler runs.
const ERESTARTNOHAND: i32 = 514;
/// Make the call again by a restart block, which a guest does not have.
const ERESTART_RESTARTBLOCK: i32 = 516;
/// Calls that no handler lets go on (signal(7)).
const WAITS: [i64; 7] = [
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_select,
    libc::SYS_pselect6,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
];
/// Calls that may give EINTR for an interruption that brings no signal, with nothing done.
const IDLE: [i64; 10] = [
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_connect,
];
/// Signals that no mask keeps out.
const UNBLOCKABLE: u64 = 1 << (libc::SIGKILL - 1) | 1 << (libc::SIGSTOP - 1);
/// Bytes fetched at a time to fill a mapping.
const FETCH: u64 = 1 << 20;

/// Tells the main thread what it has to do.
pub trait Bell: Send + Sync {
    /// The guest waits for something that can only be done at home.
    fn needs_home(&self, reason: String);
    /// The guest's call is over but for signals, for which it has to be stopped.
    fn due(&self);
}

/// Shared by the door's thread, the channel's receiver and the main thread.
pub struct Door {
    listener: Listener,
    sender: Sender,
    bell: Box<dyn Bell>,
    /// PID here and at the origin.
    pid: i32,
    origin_pid: i32,
    memory: TargetMemory,
    state: Mutex<State>,
    answered: Condvar,
}

#[derive(Default)]
struct State {
    next_id: u64,
    in_flight: Option<InFlight>,
    /// A notification that waits for home.
    held: Option<u64>,
    /// A notification and its result, which signals have to precede.
    finished: Option<(u64, i64)>,
    /// Signals that have arrived, and are not in the guest yet.
    announced: usize,
    /// The main thread keeps signals until the call is over.
    deferred: bool,
    /// The mask of the call under way, if it has one of its own.
    mask: Option<u64>,
    /// The mask of the call that was turned away last.
    unmasked: Option<u64>,
    /// The wait that was turned away last.
    wait: Option<Wait>,
    stopping: bool,
    /// The channel is gone: nothing can be answered any more.
    lost: bool,
    /// Going home was refused: what needs it fails with this errno from now on.
    stranded: bool,
    /// Descriptors that exist in the guest only because a file was mapped through them.
    placeholders: BTreeSet<i32>,
    statistics: Statistics,
}

/// Counters for `vctl stats`.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct Statistics {
    pub notifications: u64,
    pub local: u64,
    pub round_trips: u64,
    pub waiting_us: u64,
}

struct InFlight {
    id: u64,
    reply: Option<Reply>,
    cancellable: bool,
}

/// A call with a timeout, recognised when the kernel makes it again.
#[derive(Clone, Copy)]
struct Wait {
    number: u32,
    arguments: [u64; 6],
    instruction_pointer: u64,
    deadline: Instant,
}

impl Wait {
    fn is(&self, notification: &Notification) -> bool {
        let Notification {
            number,
            args,
            instruction_pointer,
            ..
        } = *notification;
        (self.number, self.arguments, self.instruction_pointer) == (number, args, instruction_pointer)
    }
}

/// Why a call has no result.
enum Failure {
    /// The guest is gone, or the origin.
    Ended,
    /// The guest is to stop: the call shall be made again.
    Again,
}

impl From<marshal::Gone> for Failure {
    fn from(_: marshal::Gone) -> Self {
        Self::Ended
    }
}

impl std::fmt::Debug for Door {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Door").field("pid", &self.pid).finish_non_exhaustive()
    }
}

impl Door {
    pub fn new(
        listener: Listener,
        sender: Sender,
        bell: Box<dyn Bell>,
        pid: i32,
        origin_pid: i32,
    ) -> Result<Arc<Self>, MemoryError> {
        let memory = TargetMemory::open(pid)?;
        let state = Mutex::new(State::default());
        Ok(Arc::new(Self {
            listener,
            sender,
            bell,
            pid,
            origin_pid,
            memory,
            state,
            answered: Condvar::new(),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn statistics(&self) -> Statistics {
        self.lock().statistics
    }

    /// A reply has arrived.
    pub fn reply(&self, reply: Reply) {
        let mut state = self.lock();
        if let Some(flight) = &mut state.in_flight
            && flight.id == reply.id
        {
            flight.reply = Some(reply);
            self.answered.notify_all();
        }
    }

    /// A signal has arrived. To be called before any later reply is given to [`Door::reply`]; [`Door::received`] follows.
    pub fn announce(&self) {
        self.lock().announced += 1;
    }

    /// A signal that was announced is in the guest, or kept by the main thread.
    pub fn received(&self) {
        let mut state = self.lock();
        state.announced = state.announced.saturating_sub(1);
    }

    /// Whether a signal is to be kept until the call under way is over: [`Bell::due`] will say so.
    pub fn defers(&self, signal: i32) -> bool {
        let mut state = self.lock();
        let kept_out = |mask: u64| mask & !UNBLOCKABLE & 1 << (signal - 1) != 0;
        let defers = !state.stopping && state.finished.is_none() && state.mask.is_some_and(kept_out);
        state.deferred |= defers;
        defers
    }

    /// The mask of the call that the stopped guest was turned away from, if it has one of its own: what it lets in is to be
    /// delivered under it.
    pub fn unmasked(&self) -> Option<u64> {
        self.lock().unmasked.take()
    }

    /// The guest runs a handler: a wait that was turned away is over, and the next one is another.
    pub fn forget_wait(&self) {
        self.lock().wait = None;
    }

    /// The origin cannot be reached any more.
    pub fn lose(&self) {
        self.lock().lost = true;
        self.answered.notify_all();
    }

    /// From now on nothing keeps the guest from stopping. The interrupt must have been sent before.
    pub fn begin_stop(&self) {
        let mut state = self.lock();
        state.stopping = true;
        state.deferred = false;
        if let Some(flight) = &state.in_flight
            && flight.cancellable
            && flight.reply.is_none()
        {
            // A failure shows itself at the receiver too.
            let _ = self.sender.send(&Message::Cancel(Cancel { call: flight.id }));
        }
        if let Some(held) = state.held.take() {
            let _ = self.listener.fail(held, ERESTARTSYS);
        }
        if let Some((id, result)) = state.finished.take() {
            self.answer(id, result);
        }
    }

    /// The guest has stopped; calls are taken again when it goes on.
    pub fn end_stop(&self) {
        self.lock().stopping = false;
    }

    /// The origin cannot take the guest back: it goes on without what needs home.
    pub fn strand(&self) {
        self.lock().stranded = true;
    }

    /// Serves until the guest has ended or `wake` becomes readable.
    pub fn serve(&self, wake: BorrowedFd<'_>) {
        loop {
            match self.listener.recv(Some(wake)) {
                Ok(notification) => match self.handle(&notification) {
                    Ok(()) | Err(Failure::Ended) => {}
                    Err(Failure::Again) => {
                        let _ = self.listener.fail(notification.id, ERESTARTSYS);
                    }
                },
                Err(RecvError::Ended) => return,
                Err(RecvError::Io(error)) => {
                    tracing::error!("the guest's door has failed: {error}");
                    return;
                }
            }
        }
    }

    fn handle(&self, notification: &Notification) -> Result<(), Failure> {
        let wait = {
            let mut state = self.lock();
            state.statistics.notifications += 1;
            state.unmasked = None;
            state.wait.take().filter(|wait| wait.is(notification))
        };
        let (number, arguments) = (notification.number, notification.args);
        if let Ok(true) = usage::answer(&self.listener, notification) {
            return Ok(());
        }
        let step = marshal::begin(self.origin_pid, number, arguments, &self.memory)?;
        // What was read belongs to this call only if it still waits.
        if !self.listener.is_valid(notification.id) {
            return Err(Failure::Ended);
        }
        match step {
            Step::Local => {
                self.lock().statistics.local += 1;
                let _ = self.listener.resume(notification.id);
            }
            Step::Answer(result) => self.give(notification.id, result),
            Step::Forward(pending) => {
                let closes = i64::from(number) == libc::SYS_close;
                match self.wait(notification, pending, wait)? {
                    // The guest's own copy goes too; the kernel's result is the same.
                    Some(0) if closes && self.lock().placeholders.remove(&(arguments[0] as i32)) => {
                        let _ = self.listener.resume(notification.id);
                    }
                    Some(result) => self.give(notification.id, result),
                    None => {
                        let _ = self.listener.resume(notification.id);
                    }
                }
            }
            Step::Home(reason) => self.hold(notification.id, &reason),
            Step::Mmap(request) => self.map(notification.id, &request)?,
            Step::OwnProc { path, flags } => {
                let result = self.own_proc(&path, flags)?;
                self.give(notification.id, result);
            }
        }
        Ok(())
    }

    /// Forwards a call with what a wait needs beside: its own mask, and the time that has passed of it already.
    fn wait(&self, call: &Notification, mut pending: Pending, earlier: Option<Wait>) -> Result<Option<i64>, Failure> {
        let number = i64::from(call.number);
        let deadline = match earlier {
            Some(earlier) => {
                pending.set_timeout(earlier.deadline.saturating_duration_since(Instant::now()));
                Some(earlier.deadline)
            }
            // Of the others the kernel writes into the guest's memory what is left.
            None => pending
                .fixed_timeout()
                .and_then(|timeout| Instant::now().checked_add(timeout)),
        };
        let mask = pending.temporary_mask();
        let urgent = mask.is_some_and(|mask| self.signals() & (!mask | UNBLOCKABLE) != 0);
        if urgent {
            // What is ready counts more than signals, as in the kernel.
            pending.set_timeout(Duration::ZERO);
        }
        self.lock().mask = mask.filter(|_| !urgent);
        let result = self.forward(pending);
        let mut state = self.lock();
        state.mask = None;
        let (nohand, eintr) = (-i64::from(ERESTARTNOHAND), -i64::from(libc::EINTR));
        let result = match result? {
            Some(0) if urgent => Some(nohand),
            Some(error) if error == -i64::from(ERESTART_RESTARTBLOCK) => Some(nohand),
            Some(error) if error == -i64::from(ERESTARTSYS) && WAITS.contains(&number) => Some(nohand),
            Some(error) if error == eintr && state.stopping && IDLE.contains(&number) => Some(nohand),
            other => other,
        };
        if result.is_some_and(|result| (-516..=-512).contains(&result)) {
            state.unmasked = mask;
            state.wait = deadline.map(|deadline| Wait {
                number: call.number,
                arguments: call.args,
                instruction_pointer: call.instruction_pointer,
                deadline,
            });
            state.deferred |= urgent;
        }
        Ok(result)
    }

    /// The signals that wait in the guest.
    fn signals(&self) -> u64 {
        let status = ProcDir::open(self.pid).and_then(|directory| directory.status());
        status.map_or(0, |status| status.pending | status.shared_pending)
    }

    /// The call is over, as soon as the signals before its end are in the guest.
    fn give(&self, id: u64, result: i64) {
        let mut state = self.lock();
        if !state.stopping && (state.announced > 0 || state.deferred) {
            state.finished = Some((id, result));
            if state.announced == 0 {
                self.bell.due();
            }
        } else {
            self.answer(id, result);
        }
    }

    fn answer(&self, id: u64, result: i64) {
        // A caller that is gone needs no answer.
        let _ = match result {
            -4095..=-1 => self.listener.fail(id, -result as i32),
            value => self.listener.answer(id, value),
        };
    }

    fn hold(&self, id: u64, reason: &str) {
        let mut state = self.lock();
        if state.stranded {
            drop(state);
            let _ = self.listener.fail(id, libc::EAGAIN);
        } else if state.stopping {
            drop(state);
            let _ = self.listener.fail(id, ERESTARTSYS);
        } else {
            state.held = Some(id);
            drop(state);
            self.bell.needs_home(reason.to_string());
        }
    }

    /// Gives the result, or nothing if the guest's own kernel is to make the call too.
    fn forward(&self, mut pending: Pending) -> Result<Option<i64>, Failure> {
        loop {
            let reply = self.exchange(pending.call().clone(), true)?;
            match pending.finish(reply, &self.memory)? {
                Outcome::Done(result) => return Ok(Some(result)),
                Outcome::Local => return Ok(None),
                Outcome::Again(next) => pending = next,
            }
        }
    }

    /// One round trip. On the channel the call has an id of ours; the reply has its own again. When the guest is to stop, a
    /// call that is cancellable is answered with a restart code: what came before it is not lost.
    fn exchange(&self, mut call: Call, cancellable: bool) -> Result<Reply, Failure> {
        let own_id = call.id;
        let started = Instant::now();
        {
            let mut state = self.lock();
            if state.lost {
                return Err(Failure::Ended);
            }
            if state.stopping && cancellable {
                return Ok(Reply {
                    id: own_id,
                    result: -i64::from(ERESTARTSYS),
                    outputs: Vec::new(),
                });
            }
            state.next_id += 1;
            (call.id, call.process) = (state.next_id, self.origin_pid);
            state.in_flight = Some(InFlight {
                id: call.id,
                reply: None,
                cancellable,
            });
        }
        if let Err(error) = self.sender.send(&Message::Call(call)) {
            tracing::warn!("cannot send a call: {error}");
            self.lose();
        }
        let mut state = self.lock();
        loop {
            if let Some(mut reply) = state.in_flight.as_mut().and_then(|flight| flight.reply.take()) {
                reply.id = own_id;
                state.in_flight = None;
                state.statistics.round_trips += 1;
                state.statistics.waiting_us += started.elapsed().as_micros() as u64;
                return Ok(reply);
            }
            if state.lost {
                state.in_flight = None;
                return Err(Failure::Ended);
            }
            state = self.answered.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A call of our own at the origin, one that does not wait.
    fn ask(&self, number: i64, arguments: [Argument; 6], segments: Vec<Segment>) -> Result<Reply, Failure> {
        let call = Call {
            id: 0,
            process: self.origin_pid,
            number: number as u32,
            arguments,
            segments,
            pointers: Vec::new(),
        };
        self.exchange(call, false)
    }

    /// `mmap` of a descriptor: the part of the file that it shows is fetched into a memfd, which takes the descriptor's
    /// place in the guest for the kernel's own mmap.
    fn map(&self, id: u64, request: &MmapRequest) -> Result<(), Failure> {
        let shared = request.flags & libc::MAP_TYPE != libc::MAP_PRIVATE;
        // What it may write to the file itself, it has to see in the mapping too.
        if shared && self.is_writable(request.descriptor)? {
            self.hold(id, "it maps a file shared that it may write");
            return Ok(());
        }
        let size = match self.regular_size(request.descriptor)? {
            Ok(Some(size)) => size,
            Ok(None) => {
                self.hold(id, "it maps something that is no regular file");
                return Ok(());
            }
            Err(errno) => {
                self.give(id, errno);
                return Ok(());
            }
        };
        let result = match new_memfd(size) {
            Ok(file) => match self.fetch(request, size, &file)? {
                0 => {
                    let number = request.descriptor;
                    // Read-only, so that the mapping can become writable here no more than at home.
                    let file = match shared {
                        true => read_only(&file).unwrap_or(file),
                        false => file,
                    };
                    match self.listener.add_fd(id, file.as_fd(), Some(number), true, false) {
                        Ok(_) => {
                            self.lock().placeholders.insert(number);
                            let _ = self.listener.resume(id);
                            return Ok(());
                        }
                        Err(_) => -i64::from(libc::ENOMEM),
                    }
                }
                errno => errno,
            },
            Err(error) => -i64::from(error.raw_os_error().unwrap_or(libc::ENOMEM)),
        };
        self.give(id, result);
        Ok(())
    }

    /// Whether a descriptor can be read and written: then a shared mapping of it may be written, now or later.
    fn is_writable(&self, descriptor: i32) -> Result<bool, Failure> {
        let [zero, descriptor, get] = [0, descriptor as u64, libc::F_GETFL as u64].map(Argument::Value);
        let flags = self
            .ask(libc::SYS_fcntl, [descriptor, get, zero, zero, zero, zero], Vec::new())?
            .result;
        Ok(flags >= 0 && flags as i32 & libc::O_ACCMODE == libc::O_RDWR)
    }

    /// The size of the regular file behind a descriptor, `None` for other kinds; or the negative errno of fstat.
    fn regular_size(&self, descriptor: i32) -> Result<Result<Option<u64>, i64>, Failure> {
        const STAT: u32 = size_of::<libc::stat>() as u32;
        let value = Argument::Value;
        let arguments = [
            value(descriptor as u64),
            Argument::Segment(0),
            value(0),
            value(0),
            value(0),
            value(0),
        ];
        let reply = self.ask(
            libc::SYS_fstat,
            arguments,
            vec![Segment::Out {
                len: STAT,
                keep: Keep::All,
            }],
        )?;
        if reply.result != 0 {
            return Ok(Err(reply.result));
        }
        let bytes = reply
            .outputs
            .first()
            .map(|output| output.bytes.as_slice())
            .unwrap_or_default();
        let field = |at: usize, length: usize| bytes.get(at..at + length);
        let mode = field(std::mem::offset_of!(libc::stat, st_mode), 4).and_then(|bytes| bytes.try_into().ok());
        let size = field(std::mem::offset_of!(libc::stat, st_size), 8).and_then(|bytes| bytes.try_into().ok());
        let (Some(mode), Some(size)) = (mode.map(u32::from_le_bytes), size.map(u64::from_le_bytes)) else {
            return Ok(Err(-i64::from(libc::EIO)));
        };
        Ok(Ok((mode & libc::S_IFMT == libc::S_IFREG).then_some(size)))
    }

    /// Reads the mapped part of the file; 0 or a negative errno as mmap would give it.
    fn fetch(&self, request: &MmapRequest, size: u64, file: &File) -> Result<i64, Failure> {
        let mut at = request.offset;
        let end = request.offset.saturating_add(request.length).min(size);
        while at < end {
            if self.lock().stopping {
                return Err(Failure::Again);
            }
            let length = FETCH.min(end - at) as u32;
            let value = Argument::Value;
            let arguments = [
                value(request.descriptor as u64),
                Argument::Segment(0),
                value(length.into()),
                value(at),
                value(0),
                value(0),
            ];
            let reply = self.ask(
                libc::SYS_pread64,
                arguments,
                vec![Segment::Out {
                    len: length,
                    keep: Keep::Returned,
                }],
            )?;
            match reply.result {
                // A file that is open for writing only cannot be mapped.
                error if error == -i64::from(libc::EBADF) => return Ok(-i64::from(libc::EACCES)),
                error if error < 0 => return Ok(error),
                0 => break,
                _ => {}
            }
            let bytes = reply
                .outputs
                .first()
                .map(|output| output.bytes.as_slice())
                .unwrap_or_default();
            if bytes.is_empty() || file.write_all_at(bytes, at).is_err() {
                return Ok(-i64::from(libc::ENOMEM));
            }
            at += bytes.len() as u64;
        }
        Ok(0)
    }

    /// A file of the guest's own `/proc` directory: its contents as they are now, in a memory file at the origin.
    fn own_proc(&self, path: &str, flags: u64) -> Result<i64, Failure> {
        let contents = match self.own_proc_contents(path)? {
            Ok(contents) => contents,
            Err(errno) => return Ok(errno),
        };
        let value = Argument::Value;
        let cloexec = if flags & libc::O_CLOEXEC as u64 != 0 {
            u64::from(libc::MFD_CLOEXEC)
        } else {
            0
        };
        let name = Segment::In(b"proc\0".to_vec());
        let arguments = [
            Argument::Segment(0),
            value(cloexec),
            value(0),
            value(0),
            value(0),
            value(0),
        ];
        let descriptor = self.ask(libc::SYS_memfd_create, arguments, vec![name])?.result;
        if descriptor < 0 {
            return Ok(descriptor);
        }
        let mut at = 0;
        for chunk in contents.chunks(FETCH as usize) {
            let arguments = [
                value(descriptor as u64),
                Argument::Segment(0),
                value(chunk.len() as u64),
                value(at),
                value(0),
                value(0),
            ];
            self.ask(libc::SYS_pwrite64, arguments, vec![Segment::In(chunk.to_vec())])?;
            at += chunk.len() as u64;
        }
        Ok(descriptor)
    }

    fn own_proc_contents(&self, name: &str) -> Result<Result<Vec<u8>, i64>, Failure> {
        let read = ProcDir::open(self.pid).and_then(|directory| directory.read(name));
        let Ok(contents) = read else {
            return Ok(Err(-i64::from(libc::ENOENT)));
        };
        let merge = match name.rsplit('/').next() {
            Some("status") => merged_status,
            Some("stat") => merged_stat,
            _ => return Ok(Ok(contents)),
        };
        Ok(self
            .read_at_origin(&format!("/proc/self/{name}"))?
            .map(|at_origin| merge(&contents, &at_origin)))
    }

    /// A small file of the origin, or the negative errno that stands in the way.
    fn read_at_origin(&self, path: &str) -> Result<Result<Vec<u8>, i64>, Failure> {
        const ROOM: u32 = 16 << 10;
        let [zero, room] = [0, u64::from(ROOM)].map(Argument::Value);
        let (none, first) = (Argument::Value(libc::AT_FDCWD as u64), Argument::Segment(0));
        let flags = Argument::Value((libc::O_RDONLY | libc::O_CLOEXEC) as u64);
        let path = Segment::In([path.as_bytes(), b"\0"].concat());
        let descriptor = self
            .ask(libc::SYS_openat, [none, first, flags, zero, zero, zero], vec![path])?
            .result;
        if descriptor < 0 {
            return Ok(Err(descriptor));
        }
        let descriptor = Argument::Value(descriptor as u64);
        let out = Segment::Out {
            len: ROOM,
            keep: Keep::Returned,
        };
        let reply = self.ask(
            libc::SYS_pread64,
            [descriptor, first, room, zero, zero, zero],
            vec![out],
        )?;
        self.ask(libc::SYS_close, [descriptor, zero, zero, zero, zero, zero], Vec::new())?;
        let bytes = reply.outputs.into_iter().next().map(|output| output.bytes);
        Ok(match reply.result {
            error if error < 0 => Err(error),
            _ => Ok(bytes.unwrap_or_default()),
        })
    }
}

/// `/proc/PID/status` of the guest, with what is the deputy's: who it is, what it may, what it holds.
fn merged_status(guest: &[u8], deputy: &[u8]) -> Vec<u8> {
    const OF_DEPUTY: [&str; 21] = [
        "Umask",
        "Tgid",
        "Ngid",
        "Pid",
        "PPid",
        "Uid",
        "Gid",
        "FDSize",
        "Groups",
        "NStgid",
        "NSpid",
        "NSpgid",
        "NSsid",
        "CapInh",
        "CapPrm",
        "CapEff",
        "CapBnd",
        "CapAmb",
        "NoNewPrivs",
        "Seccomp",
        "Seccomp_filters",
    ];
    let [guest, deputy] = [guest, deputy].map(String::from_utf8_lossy);
    let key = |line: &str| line.split(':').next().unwrap_or_default().to_owned();
    let mut text = String::new();
    for line in guest.lines() {
        let key_of_line = key(line);
        let there = || deputy.lines().find(|other| key(other) == key_of_line);
        text.push_str(match key_of_line.as_str() {
            "TracerPid" => "TracerPid:\t0",
            // It waits only for us.
            "State" => "State:\tR (running)",
            name if OF_DEPUTY.contains(&name) => there().unwrap_or(line),
            _ => line,
        });
        text.push('\n');
    }
    text.into_bytes()
}

/// `/proc/PID/stat` of the guest, with the deputy's PID and relations: the first number and, after the name (which may have
/// anything in it) and the state, the parent, group, session, terminal and its foreground group.
fn merged_stat(guest: &[u8], deputy: &[u8]) -> Vec<u8> {
    fn halves(line: &str) -> Option<(&str, Vec<&str>)> {
        let (head, tail) = line.trim_end().rsplit_once(')')?;
        Some((head, tail.split_whitespace().collect()))
    }
    let [guest, deputy] = [guest, deputy].map(String::from_utf8_lossy);
    let (Some((name, mut fields)), Some((of_deputy, relations))) = (halves(&guest), halves(&deputy)) else {
        return guest.into_owned().into_bytes();
    };
    for (field, relation) in fields.iter_mut().zip(&relations).take(6).skip(1) {
        field.clone_from(relation);
    }
    if let Some(state) = fields.first_mut() {
        *state = "R";
    }
    let (pid, name) = (
        of_deputy.split('(').next().unwrap_or_default(),
        name.split_once('(').map_or("", |(_, name)| name),
    );
    format!("{pid}({name}) {}\n", fields.join(" ")).into_bytes()
}

/// The guest's memory as the kernel would use it for the guest's own call: a page that the guest may not read or write
/// ends it.
impl marshal::Memory for TargetMemory {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<usize, marshal::Gone> {
        TargetMemory::read(self, address, buffer).map_err(|_| marshal::Gone)
    }

    fn write(&self, address: u64, bytes: &[u8]) -> Result<usize, marshal::Gone> {
        TargetMemory::write(self, address, bytes).map_err(|_| marshal::Gone)
    }
}

/// Another description of the same memory file.
fn read_only(file: &File) -> io::Result<File> {
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

fn new_memfd(size: u64) -> io::Result<File> {
    let fd = rustix::fs::memfd_create("vrun", rustix::fs::MemfdFlags::CLOEXEC)?;
    let file = File::from(fd);
    file.set_len(size)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_has_the_deputys_relations() {
        let guest = b"77 (a) S (b)) S 1 2 3 0 -1 4194560 69\n";
        let deputy = b"9 (vrun) S 8 9 7 34816 9 1 2\n";
        assert_eq!(merged_stat(guest, deputy), b"9 (a) S (b)) R 8 9 7 34816 9 4194560 69\n");
        assert_eq!(merged_stat(b"odd", deputy), b"odd");
    }

    #[test]
    fn a_status_has_the_deputys_identity() {
        let guest = b"Name:\tx\nState:\tS (sleeping)\nPid:\t5\nTracerPid:\t4\nSigBlk:\t1\n";
        let deputy = b"Name:\ty\nState:\tS (sleeping)\nPid:\t9\nTracerPid:\t0\nSigBlk:\t2\n";
        let expected = "Name:\tx\nState:\tR (running)\nPid:\t9\nTracerPid:\t0\nSigBlk:\t1\n";
        assert_eq!(merged_status(guest, deputy), expected.as_bytes());
    }
}
