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

use crate::memory::{MemoryError, TargetMemory};
use crate::notify::{Listener, Notification, RecvError};
use crate::proc::ProcDir;
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use vrun_remote_io::call::{Argument, Call, Keep, Reply, Segment};
use vrun_remote_io::channel::Sender;
use vrun_remote_io::marshal::{self, MmapRequest, Outcome, Pending, Step};
use vrun_remote_io::message::{Cancel, Message};

/// `include/linux/errno.h`: make the call again.
const ERESTARTSYS: i32 = 512;
/// Bytes fetched at a time to fill a mapping.
const FETCH: u64 = 1 << 20;

/// Tells the main thread what it has to do.
pub trait Bell: Send + Sync {
    /// The guest waits for something that can only be done at home.
    fn needs_home(&self, reason: String);
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

    /// The origin cannot be reached any more.
    pub fn lose(&self) {
        self.lock().lost = true;
        self.answered.notify_all();
    }

    /// From now on nothing keeps the guest from stopping. The interrupt must have been sent before.
    pub fn begin_stop(&self) {
        let mut state = self.lock();
        state.stopping = true;
        if let Some(flight) = &state.in_flight
            && flight.reply.is_none()
        {
            // A failure shows itself at the receiver too.
            let _ = self.sender.send(&Message::Cancel(Cancel { call: flight.id }));
        }
        if let Some(held) = state.held.take() {
            let _ = self.listener.fail(held, ERESTARTSYS);
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
        self.lock().statistics.notifications += 1;
        let (number, arguments) = (notification.number, notification.args);
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
                match self.forward(pending)? {
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

    fn give(&self, id: u64, result: i64) {
        // A caller that is gone needs no answer.
        let _ = match result {
            // The kernel would run a restart block that this guest does not have; the nearest code without one.
            -516 => self.listener.fail(id, 514),
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
            let reply = self.exchange(pending.call().clone())?;
            match pending.finish(reply, &self.memory)? {
                Outcome::Done(result) => return Ok(Some(result)),
                Outcome::Local => return Ok(None),
                Outcome::Again(next) => pending = next,
            }
        }
    }

    /// One round trip. On the channel the call has an id of ours; the reply has its own again.
    fn exchange(&self, mut call: Call) -> Result<Reply, Failure> {
        let own_id = call.id;
        let started = std::time::Instant::now();
        {
            let mut state = self.lock();
            if state.lost {
                return Err(Failure::Ended);
            }
            if state.stopping {
                return Err(Failure::Again);
            }
            state.next_id += 1;
            (call.id, call.process) = (state.next_id, self.origin_pid);
            state.in_flight = Some(InFlight {
                id: call.id,
                reply: None,
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

    /// A call of our own at the origin.
    fn ask(&self, number: i64, arguments: [Argument; 6], segments: Vec<Segment>) -> Result<Reply, Failure> {
        let number = number as u32;
        self.exchange(Call {
            id: 0,
            process: self.origin_pid,
            number,
            arguments,
            segments,
            pointers: Vec::new(),
        })
    }

    /// `mmap` of a descriptor: the part of the file that it shows is fetched into a memfd, which takes the descriptor's
    /// place in the guest for the kernel's own mmap.
    fn map(&self, id: u64, request: &MmapRequest) -> Result<(), Failure> {
        let shared_and_writable =
            request.flags & libc::MAP_TYPE != libc::MAP_PRIVATE && request.protection & libc::PROT_WRITE != 0;
        if shared_and_writable {
            self.hold(id, "it maps a file shared and writable");
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
                -516..=-512 => return Err(Failure::Again),
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
        let contents = match self.own_proc_contents(path) {
            Ok(contents) => contents,
            Err(error) => return Ok(-i64::from(error.raw_os_error().unwrap_or(libc::ENOENT))),
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

    fn own_proc_contents(&self, name: &str) -> io::Result<Vec<u8>> {
        let directory = ProcDir::open(self.pid).map_err(io::Error::other)?;
        let contents = directory.read(name).map_err(io::Error::other)?;
        // Numbers of this host mean nothing to the program.
        let (here, there) = (self.pid.to_string(), self.origin_pid.to_string());
        Ok(match name {
            "status" => {
                let text = String::from_utf8_lossy(&contents);
                let lines = text.lines().map(|line| match line.split_once('\t') {
                    Some(("Tgid:" | "Pid:" | "NSpid:" | "NStgid:" | "NSpgid:" | "NSsid:", _)) => {
                        format!("{}\t{there}", line.split('\t').next().unwrap_or_default())
                    }
                    Some(("TracerPid:", _)) => "TracerPid:\t0".to_owned(),
                    _ => line.to_owned(),
                });
                lines
                    .flat_map(|line| [line, "\n".to_owned()])
                    .collect::<String>()
                    .into_bytes()
            }
            "stat" => match contents.strip_prefix(here.as_bytes()) {
                Some(rest) => [there.as_bytes(), rest].concat(),
                None => contents,
            },
            _ => contents,
        })
    }
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

fn new_memfd(size: u64) -> io::Result<File> {
    let fd = rustix::fs::memfd_create("vrun", rustix::fs::MemfdFlags::CLOEXEC)?;
    let file = File::from(fd);
    file.set_len(size)?;
    Ok(file)
}
