//! A job that moves: the origin's side of the protocol (`vrun_remote_io::message` has the whole of it).
//!
//! ```text
//!   OFFER    client thread   connect, Hello, Offer, Accept            the job runs
//!   IMAGE    main thread     freeze, describe, ImageData…, Prepared   the job stands still; any failure lets it go on
//!   ─────────────────────────── Commit ────────────────────────────── the one hand-over
//!   AWAY     receiver thread Call → its process's deputy → Reply      the guest runs
//!            main thread     stops, signals, the ends
//!   HOME     main thread     Recall, image → the deputies' processes, Release
//! ```
//!
//! If the connection breaks between `Commit` and `Running`, the origin lets its own copy go on. That is safe although
//! the guest may have been started: everything a guest does outside of its memory is a `Call`, none has been made
//! yet, and none can be once this connection is gone. The host ends such a guest as soon as it notices.

use crate::areas::{self, Kept, Original};
use crate::attributes;
use crate::capture::{self, CaptureError, Frozen, Outside};
use crate::config::Config;
use crate::control::{ControlError, ErrorCode, Moved, Outcome, Progress};
use crate::deputy::{Correspondent, Deputy, DeputyError, Desk, Remains, Retired};
use crate::guest::{GuestError, fill};
use crate::ipc::{self, Ledger};
use crate::mirror::{self, Line};
use crate::notify::Listener;
use crate::peers;
use crate::proc::ProcDir;
use crate::restore::{self, Home, Restored, Restorer};
use crate::transfer::{ImageSink, ImageStream, Piece};
use crate::undertaker::Undertaker;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};
use vrun_image::state::{Host, Ipc, Job, Process, SharedMemory};
use vrun_image::{Reader, Record, Writer};
use vrun_remote_io::call::{Call, Reply};
use vrun_remote_io::channel::{Frame, Receiver, Sender};
use vrun_remote_io::message::{Exited, Message, Offer, Purpose, Reason, SIGINFO, Signal, Stopped, clip};
use vrun_shim::{Injection, TraceError, Tracee};

/// Frames of an image that may wait for the main thread.
const AHEAD: usize = 4;
/// Signals that end a lost job: nothing is left that could do something else about them.
pub const ENDING: [i32; 4] = [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM];
/// Calls of a guest that may be under way, beside one for each thread.
const CALLS: usize = 64;

/// What identifies a job, beside its processes.
#[derive(Clone, Debug)]
pub struct Identity {
    pub id: String,
    pub name: Option<String>,
    pub command: Vec<Vec<u8>>,
}

impl Identity {
    /// The structured part of an image of this job, whose process `pid` is frozen now.
    pub fn image(
        &self,
        config: &Config,
        pid: i32,
        files: Vec<vrun_image::state::OpenFile>,
        processes: Vec<vrun_image::state::Process>,
    ) -> io::Result<Job> {
        let system = rustix::system::uname();
        let text = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
        Ok(Job {
            id: self.id.clone(),
            name: self.name.clone(),
            command: self.command.clone(),
            host: Host {
                nodename: text(system.nodename()),
                kernel: format!("{} {}", text(system.release()), text(system.version())),
                machine: text(system.machine()),
            },
            clocks: capture::clocks(pid),
            cpu: crate::cpu::features(&config.hidden_cpu_features())?,
            files,
            shared: Vec::new(),
            ipc: Ipc::default(),
            processes,
            terminal: None,
            zombies: Vec::new(),
        })
    }
}

/// A host that has accepted the offer and waits for the image.
#[derive(Debug)]
pub struct Departure {
    sender: Sender,
    receiver: Receiver,
    /// As the user named it.
    host: String,
    asked: Instant,
}

/// Asks `host` whether it takes the job. With `check`, that is all: the answer is given to the user.
pub fn offer(config: &Config, host: &str, offer: Offer) -> Result<Departure, ControlError> {
    let asked = Instant::now();
    let (sender, receiver) = peers::offer(config, host, Purpose::Move, offer)?;
    Ok(Departure {
        sender,
        receiver,
        host: host.to_owned(),
        asked,
    })
}

impl Departure {
    /// Whether it leads to where the job is.
    pub fn leads_to(&self, away: &Away) -> bool {
        self.sender.peer().key == away.sender.peer().key
    }

    /// The orderly end of a dry run.
    pub fn cancel(mut self, config: &Config) {
        crate::deliver::say_bye(config, &self.sender, &mut self.receiver);
    }
}

/// What the channel's receiver has for the main thread.
#[derive(Debug)]
pub enum Incoming {
    Piece(Piece),
    Lost(String),
}

/// A process whose body is at another host.
#[derive(Debug)]
pub struct Member {
    pub deputy: Arc<Deputy>,
    /// Readable when the deputy has ended.
    pub end: OwnedFd,
    remains: Remains,
}

/// A job whose body is at another host.
#[derive(Debug)]
pub struct Away {
    /// Those that have not ended, in the order of the job's image.
    pub members: Vec<Member>,
    pub sender: Sender,
    /// As the user named it.
    pub host: String,
    courier: Arc<Courier>,
    pieces: mpsc::Receiver<Incoming>,
    /// Recalls that the host has not answered to their end. What still comes of one that was given up is passed over.
    owed: usize,
    /// Why nothing comes any more.
    pub lost: Option<String>,
}

/// What else a move needs of the job.
#[expect(missing_debug_implementations, reason = "a function has nothing to show")]
pub struct Office<'a> {
    pub config: &'a Config,
    pub identity: &'a Identity,
    pub listener: &'a Arc<Listener>,
    pub desk: &'a Arc<Desk>,
    pub outside: Outside,
    pub ledger: &'a Ledger,
    /// Tells the main thread that something waits in [`Away::take`].
    pub ring: Arc<dyn Ring>,
    /// All processes of the job: host PIDs.
    pub processes: &'a dyn Fn() -> Vec<i32>,
}

/// Wakes the main thread.
pub trait Ring: Send + Sync + std::fmt::Debug {
    fn ring(&self);
}

/// A signal for a process, or for one thread of it.
#[derive(Clone, Copy)]
struct Letter {
    process: i32,
    thread: i32,
    info: [u8; SIGINFO],
}

/// Carries what the deputies bring into the channel. While the body is on its way home, signals wait here: where it was
/// they would come too late.
pub struct Courier {
    line: Arc<Line>,
    desk: Arc<Desk>,
    held: Mutex<Option<Vec<Letter>>>,
    /// Numbers of signals that could not be sent.
    undelivered: Mutex<Vec<i32>>,
    /// Calls without a reply yet.
    calls: AtomicUsize,
    ring: Arc<dyn Ring>,
}

impl std::fmt::Debug for Courier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Courier").finish_non_exhaustive()
    }
}

impl Courier {
    fn new(line: Arc<Line>, desk: &Arc<Desk>, ring: Arc<dyn Ring>) -> Arc<Self> {
        Arc::new(Self {
            line,
            desk: Arc::clone(desk),
            held: Mutex::default(),
            undelivered: Mutex::default(),
            calls: AtomicUsize::new(0),
            ring,
        })
    }

    fn undelivered(&self) -> MutexGuard<'_, Vec<i32>> {
        self.undelivered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn held(&self) -> MutexGuard<'_, Option<Vec<Letter>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on signals are kept.
    fn hold(&self) {
        self.held().get_or_insert_default();
    }

    /// What was kept so far.
    fn kept(&self) -> Vec<Letter> {
        self.held().clone().unwrap_or_default()
    }

    /// From now on signals are sent, those that were kept first.
    fn let_go(&self) {
        let mut held = self.held();
        held.take().into_iter().flatten().for_each(|letter| self.send(letter));
    }

    fn send(&self, Letter { process, thread, info }: Letter) {
        let signal = Signal::new(process, thread, info);
        let number = signal.number();
        if number == libc::SIGCONT
            && let Some(deputy) = self.desk.deputy(process)
        {
            deputy.stop_told.store(false, Ordering::Relaxed);
            deputy.stopping.store(false, Ordering::Relaxed);
        }
        if let Err(error) = self.line.send(&Message::Signal(signal)) {
            // Mostly one that came in between the guest's end and the deputy's.
            tracing::debug!("cannot send a signal: {error}");
            self.undelivered().push(number);
            self.ring.ring();
        }
        // A child that was stopped is a deputy that was stopped; most are not our own children, who are noticed.
        if let Some(child) = stopped_child(&info) {
            self.tell_stop(child);
        }
    }

    /// Tells once that a deputy was stopped, unless it goes on already: a `SIGCONT` may have been sent before. To be called
    /// with the lock of the signals held, so that one which comes now is sent after it.
    fn tell_stop(&self, stopped: Stopped) {
        let Some(deputy) = self.desk.deputy(stopped.process) else {
            return;
        };
        if crate::front::is_stopped(deputy.pid()) && !deputy.stop_told.swap(true, Ordering::Relaxed) {
            let _ = self.line.send(&Message::DeputyStopped(stopped));
        }
    }
}

/// The child whose stop this `siginfo_t` tells of (sigaction(2)): `si_signo`, `si_code`, `si_pid`, `si_status`.
fn stopped_child(info: &[u8; SIGINFO]) -> Option<Stopped> {
    let word = |at: usize| i32::from_le_bytes([info[at], info[at + 1], info[at + 2], info[at + 3]]);
    let (process, signal) = (word(16), word(24));
    let stopped = word(0) == libc::SIGCHLD && word(8) == libc::CLD_STOPPED && process > 0;
    (stopped && (1..=64).contains(&signal)).then_some(Stopped { process, signal })
}

impl Correspondent for Courier {
    fn reply(&self, reply: Reply) {
        self.calls.fetch_sub(1, Ordering::Relaxed);
        if let Err(error) = self.line.send(&Message::Reply(reply)) {
            // The end of the connection is reported by who receives from it.
            tracing::debug!("cannot send a reply: {error}");
        }
    }

    fn stopped(&self, stopped: Stopped) {
        let _order = self.held();
        self.tell_stop(stopped);
    }

    fn signal(&self, process: i32, thread: i32, info: [u8; SIGINFO]) {
        let letter = Letter { process, thread, info };
        // The lock is held while sending, so that none overtakes another.
        let mut held = self.held();
        match &mut *held {
            Some(kept) => kept.push(letter),
            None => self.send(letter),
        }
    }
}

/// While we trace them, processes may be killed. Without this that may only take longer to be noticed.
fn watch(pids: &[i32]) -> Option<Undertaker> {
    Undertaker::of(pids)
        .inspect_err(|error| tracing::warn!("the ends of threads cannot be watched: {error}"))
        .ok()
}

fn rolled_back(what: impl std::fmt::Display) -> ControlError {
    ControlError::new(ErrorCode::RolledBack, format!("{what}; the job goes on where it was"))
}

fn just_ended() -> ControlError {
    ControlError::refused("the job has just ended")
}

impl From<CaptureError> for ControlError {
    fn from(error: CaptureError) -> Self {
        match error {
            CaptureError::Unsupported(reason) => Self::refused(format!("the job cannot be moved now: {reason}")),
            CaptureError::Trace(TraceError::Gone(_)) => just_ended(),
            other => rolled_back(other),
        }
    }
}

/// Sends a job away. An error means that it runs on here.
pub fn depart(departure: Departure, office: &Office<'_>) -> Result<(Away, Moved), ControlError> {
    let Departure {
        sender,
        mut receiver,
        host,
        asked,
    } = departure;
    let undertaker = watch(&(office.processes)());
    let stopped = Instant::now();
    let frozen = match capture::freeze(office.processes) {
        Ok(frozen) => frozen,
        Err(error) => {
            let _ = sender.send(&Message::Bye);
            return Err(error.into());
        }
    };
    match send(&frozen.processes, &sender, &mut receiver, &host, office) {
        Ok(bodies) => {
            let downtime = stopped.elapsed();
            let away = settle(frozen.processes, sender, receiver, host, bodies, office)?;
            drop(undertaker);
            let micros = |duration: Duration| duration.as_micros() as u64;
            let bytes = away.sender.counters().sent;
            Ok((
                away,
                Moved {
                    bytes,
                    total_us: micros(asked.elapsed()),
                    downtime_us: micros(downtime),
                },
            ))
        }
        Err(error) => {
            sender.shutdown();
            match frozen.release() {
                Ok(()) => Err(error),
                Err(CaptureError::Trace(TraceError::Gone(_))) => Err(just_ended()),
                Err(lost) => Err(ControlError::refused(format!("the job is lost: {lost}"))),
            }
        }
    }
}

/// What has to be known of processes that have left.
struct Bodies {
    processes: Vec<Process>,
    shared: Vec<SharedMemory>,
    originals: Vec<Original>,
    /// Those, as the guest got them.
    mirrored: BTreeMap<u32, mirror::Object>,
}

/// From the frozen processes to the running guest.
fn send(
    frozen: &[Frozen],
    sender: &Sender,
    receiver: &mut Receiver,
    host: &str,
    office: &Office<'_>,
) -> Result<Bodies, ControlError> {
    let description = capture::describe(
        frozen,
        vec![Vec::new(); frozen.len()],
        &[],
        areas::Purpose::Move,
        &areas::Known::default(),
    )?;
    let pids: Vec<i32> = frozen.iter().map(Frozen::pid).collect();
    let refused = |reason| ControlError::refused(format!("the job cannot be moved now: {reason}"));
    office.ledger.verdict(&pids, areas::Purpose::Move).map_err(refused)?;
    let originals = description.originals();
    let mut mirrored = BTreeMap::new();
    for original in &originals {
        let object = mirror::Object::original(original).map_err(refused)?;
        mirrored.insert(original.object, object);
    }
    let first = frozen.first().map_or(0, Frozen::pid);
    let mut job = office
        .identity
        .image(office.config, first, Vec::new(), description.processes.clone())
        .map_err(rolled_back)?;
    job.shared.clone_from(&description.shared);
    if let Some(first) = frozen.first() {
        ipc::memory::forget_removed(first.leader(), &mut job.shared).map_err(CaptureError::from)?;
    }
    let mut writer = Writer::new(ImageSink::new(sender.clone())).map_err(rolled_back)?;
    let processes = description.processes.len() as u32;
    let mut write = |writer: &mut Writer<ImageSink>| -> Result<(), GuestError> {
        writer.job(&job)?;
        capture::dump(&description, |process, start, bytes| {
            let object = process
                .checked_sub(processes)
                .and_then(|object| mirrored.get_mut(&object));
            if let Some(object) = object {
                object.given(start, bytes);
            }
            writer.pages(process, start, bytes).map_err(GuestError::from)
        })
    };
    let sent = write(&mut writer).and_then(|()| Ok(writer.finish()?.0));
    let sent = sent
        .map_err(rolled_back)
        .and_then(|sink| sink.finish().map_err(rolled_back));
    // A host that has given up says why before it closes.
    let answer = receiver.recv_deadline(Instant::now() + office.config.timeouts.answer);
    match (sent, answer) {
        (Ok(_), Ok(Frame::Message(Message::Prepared))) => {}
        (_, Ok(Frame::Message(Message::Failed(Reason { reason })))) => {
            return Err(rolled_back(format!("{host} could not build the job: {reason}")));
        }
        (Err(error), _) => return Err(error),
        (Ok(_), Ok(other)) => return Err(rolled_back(peers::out_of_place(host, &other))),
        (Ok(_), Err(error)) => return Err(rolled_back(error)),
    }

    for (number, object) in &mut mirrored {
        object.given_all(description.shared[*number as usize].size);
    }
    let bodies = Bodies {
        processes: description.processes.clone(),
        shared: description.shared.clone(),
        originals,
        mirrored,
    };
    // The hand-over. See the module's documentation for what a failure between these two means.
    sender.send(&Message::Commit).map_err(rolled_back)?;
    match receiver.recv_deadline(Instant::now() + office.config.timeouts.answer) {
        Ok(Frame::Message(Message::Running(_))) => Ok(bodies),
        Ok(other) => Err(rolled_back(peers::out_of_place(host, &other))),
        Err(error) => Err(rolled_back(error)),
    }
}

/// Makes the deputies and starts to serve the guest.
fn settle(
    frozen: Vec<Frozen>,
    sender: Sender,
    receiver: Receiver,
    host: String,
    bodies: Bodies,
    office: &Office<'_>,
) -> Result<Away, ControlError> {
    let lost = |error: &dyn std::fmt::Display| {
        let _ = sender.send(&Message::Kill);
        ControlError::refused(format!("the job is lost: its deputies could not be made: {error}"))
    };
    let Bodies {
        processes,
        shared,
        originals,
        mirrored,
    } = bodies;
    let line = Line::new(sender.clone(), mirrored);
    let courier = Courier::new(Arc::clone(&line), office.desk, Arc::clone(&office.ring));
    let pids: Vec<i32> = frozen.iter().map(Frozen::pid).collect();
    let mut members = Vec::with_capacity(frozen.len());
    let mut threads = 0;
    for (process, body) in frozen.into_iter().zip(processes) {
        let pid = process.pid();
        let mut occupied = restore::occupied(process.maps(), &[]);
        let injections = process.into_injections();
        threads += injections.len();
        let settle = || {
            let layout = &body.memory.layout;
            let remains = Remains {
                arguments: layout.arg_start..layout.env_end,
                kept: match injections.first() {
                    Some(leader) => Kept::keep(leader, &mut occupied, &body.memory.areas, &shared, &originals)?,
                    None => Kept::default(),
                },
                read_here: body.signals.read_at_origin,
            };
            for original in &originals {
                let reach = remains.kept.reach(original.object);
                reach.into_iter().for_each(|reach| line.bound(original.object, reach));
            }
            let late = withdraw(&injections, &body)?;
            let tracees: Vec<_> = injections.into_iter().map(Injection::keep).collect();
            Ok((Member::settle(&tracees, remains, &pids, &courier, office)?, late))
        };
        match settle() {
            Ok((member, late)) => {
                let tell = |(thread, info)| courier.signal(member.deputy.process(), thread, info);
                late.into_iter().for_each(tell);
                members.push(member);
            }
            // It was killed in between.
            Err(DeputyError::Trace(TraceError::Gone(_))) => {
                let kill = Signal::kill(pid);
                sender.send(&Message::Signal(kill)).map_err(|error| lost(&error))?;
            }
            Err(error) => return Err(lost(&error)),
        }
    }
    if members.is_empty() {
        let _ = sender.send(&Message::Kill);
        return Err(just_ended());
    }
    sender.be_patient().map_err(|error| lost(&error))?;
    let (post, pieces) = mpsc::sync_channel(AHEAD);
    let reception = Reception {
        desk: Arc::clone(office.desk),
        courier: Arc::clone(&courier),
        most: threads + CALLS,
        post,
        ring: Arc::clone(&office.ring),
    };
    thread::Builder::new()
        .name("receiver".into())
        .spawn(move || reception.serve(receiver))
        .map_err(|error| lost(&error))?;
    line.tick().map_err(|error| lost(&error))?;
    Ok(Away {
        members,
        sender,
        host,
        courier,
        pieces,
        owed: 0,
        lost: None,
    })
}

/// Takes out of a process what its guest has got: timers, and signals that wait. Gives the signals that have come since,
/// each with the thread that it is for.
fn withdraw(threads: &[Injection], body: &Process) -> Result<Vec<(i32, [u8; SIGINFO])>, DeputyError> {
    let Some(leader) = threads.first() else {
        return Ok(Vec::new());
    };
    let directory = ProcDir::open(leader.tracee().tid())?;
    attributes::timers::withdraw(leader, &directory.timers()?)?;
    let mut late = Vec::new();
    let own = threads.iter().zip(&body.threads);
    let own = own.map(|(injection, thread)| (injection, thread.tid, &thread.pending));
    for (injection, thread, pending) in own.chain([(leader, 0, &body.signals.pending)]) {
        let others = attributes::signals::take(injection, pending)?;
        late.extend(others.into_iter().map(|info| (thread, info)));
    }
    Ok(late)
}

impl Member {
    /// Makes a deputy of a stopped process and has it served. `pids` are all processes of the job.
    fn settle(
        tracees: &[Tracee],
        remains: Remains,
        pids: &[i32],
        courier: &Arc<Courier>,
        office: &Office<'_>,
    ) -> Result<Self, DeputyError> {
        let pid = tracees.first().map_or(0, |leader| leader.tid());
        let end = crate::sys::pidfd(pid).map_err(|_| TraceError::Gone(pid))?;
        let adopted = !pids.contains(&ProcDir::open(pid)?.stat()?.parent);
        let (desk, listener) = (office.desk, office.listener);
        let courier = courier.clone();
        let deputy = Deputy::settle(tracees, &remains, adopted, desk, listener, courier)?;
        desk.seat(&deputy);
        Ok(Self { deputy, end, remains })
    }
}

/// The channel's receiver: calls go to the deputies, everything else to the main thread.
struct Reception {
    desk: Arc<Desk>,
    courier: Arc<Courier>,
    /// Calls that may be under way.
    most: usize,
    post: mpsc::SyncSender<Incoming>,
    ring: Arc<dyn Ring>,
}

impl Reception {
    fn serve(&self, mut receiver: Receiver) {
        let sender = &self.courier.line.sender;
        loop {
            let incoming = match Piece::receive(&mut receiver) {
                Ok(Piece::Said(Message::Call(call))) => match self.call(call) {
                    Ok(()) => continue,
                    Err(reason) => Incoming::Lost(reason),
                },
                Ok(Piece::Said(Message::Memory(changes))) => {
                    self.courier.line.take(&changes);
                    continue;
                }
                Ok(Piece::Said(Message::Cancel(cancel))) => {
                    self.desk.cancel(cancel.call);
                    continue;
                }
                Ok(Piece::Said(Message::Ping(token))) => {
                    let _ = sender.send(&Message::Pong(token));
                    continue;
                }
                Ok(Piece::Said(Message::Bye)) => {
                    let _ = sender.send(&Message::Bye);
                    Incoming::Lost("it has taken its leave".to_owned())
                }
                Ok(piece) => Incoming::Piece(piece),
                Err(error) => Incoming::Lost(error.to_string()),
            };
            let last = matches!(incoming, Incoming::Lost(_));
            if last {
                // What is sent from now on is known to be undelivered.
                sender.shutdown();
            }
            // A job that is home again or over listens no more.
            let heard = self.post.send(incoming).is_ok();
            self.ring.ring();
            if last || !heard {
                return;
            }
        }
    }

    /// Gives a call to its deputy. An error is a host that does not keep to the protocol.
    fn call(&self, call: Call) -> Result<(), String> {
        if self.courier.calls.fetch_add(1, Ordering::Relaxed) >= self.most {
            return Err(format!("it has made more than {} calls at a time", self.most));
        }
        match self.desk.deputy(call.process) {
            Some(deputy) => deputy.submit(call),
            None => self.courier.reply(Reply {
                id: call.id,
                result: -i64::from(libc::EINVAL),
                outputs: Vec::new(),
            }),
        }
        Ok(())
    }
}

impl Away {
    /// What has been said, if anything waits.
    pub fn take(&mut self) -> Option<Incoming> {
        loop {
            match self.pieces.try_recv().ok()? {
                Incoming::Piece(Piece::Data(_)) => {}
                Incoming::Piece(Piece::Said(Message::ImageEnd(_) | Message::Failed(_))) if self.owed > 0 => {
                    self.owed -= 1;
                }
                incoming => return Some(incoming),
            }
        }
    }

    /// A signal that asks a lost job to end: nobody else is left to receive it.
    pub fn fatal_signal(&mut self) -> Option<i32> {
        self.lost.as_ref()?;
        let undelivered = std::mem::take(&mut *self.courier.undelivered());
        undelivered.into_iter().find(|number| ENDING.contains(number))
    }

    /// Looks after deputies that are being stopped. A stop is complete, and told to the parent, when the threads that wait for
    /// work take part in it. The guest is told too: we may not hear of it from the parent, who need not want to know. True:
    /// one is about to stop.
    pub fn complete_stops(&self) -> bool {
        let mut about_to = false;
        for member in &self.members {
            let deputy = &member.deputy;
            if crate::front::is_stopped(deputy.pid()) {
                deputy.stopping.store(false, Ordering::Relaxed);
                deputy.kick();
                self.deputy_stopped(Stopped {
                    process: deputy.process(),
                    signal: libc::SIGSTOP,
                });
            }
            about_to |= deputy.stopping.load(Ordering::Relaxed);
        }
        about_to
    }

    /// A deputy was stopped by a signal.
    pub fn deputy_stopped(&self, stopped: Stopped) {
        self.courier.stopped(stopped);
    }

    /// Takes a process out that has ended, by the PID that the job sees.
    pub fn remove(&mut self, process: i32, desk: &Desk) {
        let ended = |member: &mut Member| member.deputy.process() == process;
        for member in self.members.extract_if(.., ended) {
            member.deputy.close();
            desk.leave(&member.deputy);
        }
    }

    /// Brings the job back. After `Ok` it runs here and this is over; after an error it is still away, unless
    /// [`Away::lost`] or the message says otherwise.
    pub fn bring_home(&mut self, office: &Office<'_>) -> Result<Moved, HomeError> {
        let started = Instant::now();
        let failed = |message: String| HomeError::StillAway(ControlError::new(ErrorCode::RolledBack, message));
        if let Some(reason) = &self.lost {
            return Err(HomeError::StillAway(self.is_lost(reason)));
        }
        self.courier.hold();
        if let Err(error) = self.sender.send(&Message::Recall) {
            self.courier.let_go();
            return Err(failed(error.to_string()));
        }
        let before = self.sender.counters().received;
        self.owed += 1;
        let (pieces, owed, patience) = (&self.pieces, &mut self.owed, office.config.timeouts.answer);
        let mut left = self.members.len();
        let ended = RefCell::new(Vec::new());
        let mut gone = None;
        let mut stops: Vec<Stopped> = Vec::new();
        let next = || loop {
            match pieces.recv_timeout(patience) {
                // These may cross with our Recall.
                Ok(Incoming::Piece(Piece::Said(Message::GuestStopped(stopped)))) => stops.push(stopped),
                Ok(Incoming::Piece(Piece::Said(Message::GoHome(_) | Message::GuestContinued(_)))) => {}
                Ok(Incoming::Piece(Piece::Said(Message::Exited(exited)))) => {
                    ended.borrow_mut().push(exited);
                    left = left.saturating_sub(1);
                    if left == 0 {
                        return Ok(Piece::Said(Message::Exited(exited)));
                    }
                }
                Ok(Incoming::Piece(piece)) => {
                    let ours = *owed == 1;
                    if let Piece::Said(Message::ImageEnd(_) | Message::Failed(_)) = &piece {
                        *owed = owed.saturating_sub(1);
                    }
                    if ours {
                        return Ok(piece);
                    }
                }
                Ok(Incoming::Lost(reason)) => {
                    gone = Some(reason.clone());
                    return Err(io::Error::other(reason));
                }
                Err(mpsc::RecvTimeoutError::Timeout) => return Err(io::Error::other("it does not answer")),
                Err(mpsc::RecvTimeoutError::Disconnected) => return Err(io::Error::other("the connection is closed")),
            }
        };
        let mut stream = ImageStream::new(next);
        let pids: Vec<i32> = self.members.iter().map(|member| member.deputy.pid()).collect();
        let _undertaker = watch(&pids);
        let result = rebuild(&mut stream, &self.members, &ended, &self.courier, office);
        let interruption = stream.interruption.take();
        drop(stream);
        let ended = ended.into_inner();
        self.lost = gone.or(self.lost.take());
        match result {
            Ok(restored) => {
                // The host is told first: from here on only this copy runs.
                self.courier.line.close();
                if let Err(error) = self.sender.send(&Message::Release) {
                    tracing::warn!("cannot tell {} to end the guest: {error}", self.host);
                }
                ended.iter().for_each(|exited| self.end_one(exited, office.desk));
                self.members.iter().for_each(|member| office.desk.leave(&member.deputy));
                // The children first: a parent must not see that one goes back into its stop.
                for process in restored.into_iter().rev() {
                    let leader = process.threads()[0];
                    let of = |member: &&Member| member.deputy.pid() == leader.tid();
                    let number = self.members.iter().find(of).map(|member| member.deputy.process());
                    // It was stopped when it was frozen, and stays so.
                    if let Some(stop) = stops.iter().find(|stop| Some(stop.process) == number)
                        && let Err(error) = leader.stop_process(leader.tid(), stop.signal)
                    {
                        tracing::warn!("process {} cannot be stopped again: {error}", stop.process);
                    }
                    process.release().map_err(|error| HomeError::Lost(error.to_string()))?;
                }
                let elapsed = started.elapsed().as_micros() as u64;
                let bytes = self.sender.counters().received - before;
                Ok(Moved {
                    bytes,
                    total_us: elapsed,
                    downtime_us: elapsed,
                })
            }
            Err((_, rest)) if ended.len() == self.members.len() => {
                self.settle_again(rest, office)?;
                Err(HomeError::Ended(ended))
            }
            Err((error, rest)) => {
                let reason = match interruption {
                    Some(Message::Failed(Reason { reason })) => format!("{} could not send it: {reason}", self.host),
                    _ => error,
                };
                self.settle_again(rest, office)?;
                stops.iter().for_each(|stop| guest_stopped(*stop, office.desk));
                let told = self.sender.send(&Message::Resume(Reason {
                    reason: clip(reason.clone()),
                }));
                if let Err(error) = told {
                    self.lost.get_or_insert(error.to_string());
                }
                self.courier.let_go();
                let error = match &self.lost {
                    Some(reason) => self.is_lost(reason),
                    None => ControlError::new(
                        ErrorCode::RolledBack,
                        format!(
                            "the job could not be brought home: {reason}; it goes on at {}",
                            self.host
                        ),
                    ),
                };
                ended.iter().for_each(|exited| self.end_one(exited, office.desk));
                Err(HomeError::StillAway(error))
            }
        }
    }

    fn is_lost(&self, reason: &str) -> ControlError {
        let message = format!(
            "{} is lost, and the job with it: {reason}; end it with `vctl kill`",
            self.host
        );
        ControlError::new(ErrorCode::Unreachable, message)
    }

    /// A process of the guest has ended: its deputy, which its parent knows, ends in the same way.
    pub fn end_one(&mut self, exited: &Exited, desk: &Desk) {
        let of = |member: &&Member| member.deputy.process() == exited.process;
        let Some(member) = self.members.iter().find(of) else {
            return;
        };
        let pid = member.deputy.pid();
        // While it is served, or its threads could not be stopped.
        match member.deputy.end(exited.status) {
            Ok(()) | Err(DeputyError::Trace(TraceError::Gone(_))) => {}
            Err(error) => {
                tracing::error!("deputy {pid} cannot end as the guest did: {error}");
                let _ = crate::sys::kill(pid, libc::SIGKILL);
            }
        }
        self.remove(exited.process, desk);
    }

    /// Makes deputies again of processes that could not become the program again.
    fn settle_again(&mut self, retired: Vec<(i32, Vec<Retired>)>, office: &Office<'_>) -> Result<(), HomeError> {
        let pids: Vec<i32> = self.members.iter().map(|member| member.deputy.pid()).collect();
        for (pid, threads) in retired {
            let Some(member) = self.members.iter_mut().find(|member| member.deputy.pid() == pid) else {
                continue;
            };
            office.desk.leave(&member.deputy);
            let tracees: Vec<_> = threads.iter().map(|thread| thread.tracee).collect();
            match Member::settle(&tracees, member.remains.clone(), &pids, &self.courier, office) {
                Ok(again) => *member = again,
                Err(DeputyError::Trace(TraceError::Gone(_))) => {}
                Err(error) => return Err(HomeError::Lost(error.to_string())),
            }
        }
        Ok(())
    }
}

/// A process of a guest was stopped by its own job control: so is its deputy, and its parent is told.
pub fn guest_stopped(stopped: Stopped, desk: &Desk) {
    if let Some(deputy) = desk.deputy(stopped.process)
        && let Err(error) = deputy.stop(stopped.signal)
    {
        tracing::debug!("deputy {} cannot be stopped: {error}", deputy.pid());
    }
}

/// Why a job did not come home.
#[derive(Debug)]
pub enum HomeError {
    /// It goes on where it is.
    StillAway(ControlError),
    /// All of it ended first.
    Ended(Vec<Exited>),
    /// Nothing is left of it.
    Lost(String),
}

/// On failure the processes are given back that are deputies no more, by host PID.
type Rebuilt = Result<Vec<Restored>, (String, Vec<(i32, Vec<Retired>)>)>;

/// Gives back the numbers of timers that a process has deleted where it was; where numbers can be chosen, its deputy has none.
fn forget_timers(leader: Tracee, process: &Process) -> Result<(), DeputyError> {
    let timers = ProcDir::open(leader.tid())?.timers()?;
    if !timers.is_empty() {
        let injection = Injection::begin(leader)?;
        attributes::timers::give_back(&injection, &timers, process)?;
        injection.finish()?;
    }
    Ok(())
}

/// From the image on its way to the rebuilt processes, which are held before their first instructions.
fn rebuild<F>(
    image: &mut ImageStream<F>,
    members: &[Member],
    ended: &RefCell<Vec<Exited>>,
    courier: &Courier,
    office: &Office<'_>,
) -> Rebuilt
where
    F: FnMut() -> io::Result<Piece>,
{
    let early = |error: &dyn std::fmt::Display| (error.to_string(), Vec::new());
    let unreadable = |error: vrun_image::Error| early(&GuestError::from(error));
    let mut reader = Reader::new(image).map_err(unreadable)?;
    let mut job = match reader.next() {
        Ok(Record::Job(job)) => job,
        Ok(_) => return Err(early(&"the image begins with something else than a job")),
        Err(error) => return Err(unreadable(error)),
    };
    if job.id != office.identity.id {
        return Err(early(&"the image is of another job"));
    }
    let deputy = |process: &Process| members.iter().find(|member| member.deputy.process() == process.pid);
    let pairs: Option<Vec<_>> = job
        .processes
        .iter()
        .map(|process| Some(deputy(process)?.deputy.clone()))
        .collect();
    let deputies = match pairs {
        Some(deputies) if !deputies.is_empty() => deputies,
        _ => return Err(early(&"the image is of other processes")),
    };
    if deputies.len() + ended.borrow().len() != members.len() {
        return Err(early(&"the image is not of all processes"));
    }
    // A guest that is frozen has made none, and no executor could be retired from it.
    if courier.calls.load(Ordering::Relaxed) != 0 {
        return Err(early(&"a call of the guest is still under way"));
    }
    let mut retired: Vec<(i32, Vec<Retired>)> = Vec::with_capacity(deputies.len());
    for deputy in &deputies {
        match deputy.retire() {
            Ok(threads) => retired.push((deputy.pid(), threads)),
            Err(error) => return Err((error.to_string(), retired)),
        }
    }
    // No signal can be fetched any more: these are all that the guest did not get.
    let is_stopped = |threads: &[Retired]| threads.iter().any(|thread| thread.stopped);
    let stopped: Vec<i32> = deputies
        .iter()
        .zip(&retired)
        .filter_map(|(deputy, (_, threads))| is_stopped(threads).then_some(deputy.process()))
        .collect();
    for Letter { process, thread, info } in courier.kept() {
        let Some(process) = job.processes.iter_mut().find(|one| one.pid == process) else {
            continue;
        };
        match process.threads.iter_mut().find(|one| one.tid == thread) {
            Some(thread) => thread.pending.push(info.to_vec()),
            None => process.signals.pending.push(info.to_vec()),
        }
    }
    // A stop takes back a SIGCONT that was sent before (signal(7)); queued now, that would end the stop.
    for process in job
        .processes
        .iter_mut()
        .filter(|process| stopped.contains(&process.pid))
    {
        let other = |info: &Vec<u8>| info.first() != Some(&(libc::SIGCONT as u8));
        process.signals.pending.retain(other);
        process
            .threads
            .iter_mut()
            .for_each(|thread| thread.pending.retain(other));
    }
    let build = || -> Result<Vec<Restored>, GuestError> {
        let mut restorers = Vec::with_capacity(deputies.len());
        for (index, (process, (_, threads))) in job.processes.iter().zip(&retired).enumerate() {
            let leader = threads[0].tracee;
            forget_timers(leader, process)?;
            let kept = members.iter().find(|member| member.deputy.process() == process.pid);
            let kept = kept.map_or_else(Kept::default, |member| member.remains.kept.clone());
            let objects = restore::deputy_objects(leader, &job, index, &kept)?;
            restorers.push(Restorer::begin(leader, process, Home::Deputy, objects)?);
        }
        fill(&restorers, &mut reader)?;
        let rest = reader.into_inner();
        rest.expect_end()
            .map_err(|error| GuestError::Io("receive the image", error))?;
        let mut restored = Vec::with_capacity(deputies.len());
        for ((restorer, process), (_, threads)) in restorers.into_iter().zip(&job.processes).zip(&retired) {
            let parked = process.threads.iter().skip(1).map(|thread| {
                let found = threads.iter().find(|parked| parked.tid == thread.tid);
                found.map(|parked| parked.tracee).ok_or(GuestError::Thread(thread.tid))
            });
            let parked = parked.collect::<Result<Vec<_>, _>>()?;
            restored.push(restorer.finish(process, &parked)?);
        }
        // Threads that the program has ended meanwhile.
        for ((deputy, process), (_, threads)) in deputies.iter().zip(&job.processes).zip(&mut retired.clone()) {
            threads.retain(|parked| process.threads.iter().all(|thread| thread.tid != parked.tid));
            deputy.dismiss(threads).map_err(GuestError::Deputy)?;
        }
        Ok(restored)
    };
    build().map_err(|error| (error.to_string(), retired.clone()))
}

/// Runs in a client's thread: everything of a move that does not need the job to stand still.
pub fn check_outcome(host: &str, offer: &Offer) -> Outcome {
    Outcome::Checked(serde_json::json!({
        "schema": 1,
        "host": host,
        "job": offer.job,
        "accepted": true,
        "memory_bytes": offer.memory,
        "processes": offer.processes,
        "threads": offer.threads,
    }))
}

/// Says on the client's terminal what a move is doing.
pub fn tell(progress: &mut dyn FnMut(Progress), text: impl Into<String>) {
    progress(Progress { text: text.into() });
}
