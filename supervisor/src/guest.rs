//! A guest: a job's body at the destination, and the supervisor that keeps it.
//!
//! ```text
//!   build   vessels (own namespaces, the job's PIDs) → restorer → guest filter → held at their first instructions
//!   run     main thread: ptrace, signals, job control, recall      door threads: notifications
//!           receiver thread: Reply → door, everything else → main thread
//! ```
//!
//! Every thread stays traced for life: a signal of the origin is queued inside it with its own `siginfo`, stops are decided
//! here (a process alone in its session would ignore Ctrl-Z), and all die with this process (`PTRACE_O_EXITKILL`).
//!
//! The processes are all children of the keeper, whatever they are to each other: their relations, and what comes of
//! them (`SIGCHLD`, `wait4`), are those of their deputies at the origin.
//!
//! **Signals for a process** are given to the thread that the kernel would choose: the leader if it lets them in, else the
//! first one that does. While none does they are pending for the process.
//!
//! Once running it has no descriptors, no file system, no network, no other process: what is not forwarded to the
//! origin does not exist.

use crate::areas::{self, Known, Origin};
use crate::attributes;
use crate::capture::{self, CaptureError, Frozen};
use crate::control;
use crate::door::{Bell, Door, Member, Occupant};
use crate::filter;
use crate::heed::Heed;
use crate::ipc;
use crate::mirror::{self, Line};
use crate::notify::Listener;
use crate::restore::{self, Home, RestoreError, Restored, Restorer};
use crate::sys;
use crate::transfer::{ImageSink, ImageStream, Piece};
use crate::tree;
use crate::undertaker::Undertaker;
use crate::vessel::{Specification, Vessel, VesselError, World};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};
use vrun_image::state::{Job, Process, SharedKind};
use vrun_image::{Reader, Record, Writer};
use vrun_remote_io::channel::{Receiver, Sender};
use vrun_remote_io::message::{Continued, ExitStatus, Exited, Message, Reason, Stopped, clip};
use vrun_shim::tracee::SIGINFO;
use vrun_shim::{Expect, Injection, Script, Status, TraceError, Tracee, area};

/// What the main thread listens to: its guest, and whoever wants this process to end, which sends the guest home.
const SIGNALS: [i32; 4] = [libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

/// The kernel's code for "make the call again unless a handler runs" (`include/linux/errno.h`).
const ERESTARTNOHAND: i64 = -514;
/// Messages of the origin that may wait for the main thread. More of them is no origin of ours.
const FLOOD: usize = 16 << 10;

#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    #[error("{}", image_error(.0))]
    Image(#[from] vrun_image::Error),
    #[error("the image holds {0} processes; this version runs one")]
    Processes(usize),
    #[error("the image is of the job {0}, not of {1}, which was offered")]
    OtherJob(String, String),
    #[error(transparent)]
    Vessel(#[from] VesselError),
    #[error(transparent)]
    Restore(#[from] RestoreError),
    #[error(transparent)]
    Tree(#[from] tree::TreeError),
    #[error(transparent)]
    Capture(#[from] CaptureError),
    #[error(transparent)]
    Trace(#[from] TraceError),
    #[error(transparent)]
    Filter(#[from] filter::FilterError),
    #[error(transparent)]
    Deputy(#[from] crate::deputy::DeputyError),
    #[error("the image has a thread {0} that the job does not have here")]
    Thread(i32),
    #[error(transparent)]
    Memory(#[from] crate::memory::MemoryError),
    #[error("cannot {0}: {1}")]
    Io(&'static str, io::Error),
}

/// What is wrong with an image; where it could not be read or written, what the system or the connection says of it.
fn image_error(error: &vrun_image::Error) -> String {
    match error {
        vrun_image::Error::Io(source) => source.to_string(),
        error => error.to_string(),
    }
}

/// Whether something failed because the process has ended.
fn is_gone(error: &GuestError) -> bool {
    matches!(
        error,
        GuestError::Trace(TraceError::Gone(_)) | GuestError::Capture(CaptureError::Trace(TraceError::Gone(_)))
    )
}

/// A guest that is complete and has not run yet.
#[derive(Debug)]
pub struct Built {
    vessel: Vessel,
    /// The processes of the job, each with where this host's own vDSO is in it, if the program does not know of it.
    built: Vec<(Restored, Option<Range<u64>>)>,
    listener: Listener,
    job: Job,
    known: Known,
    heed: Heed,
    /// What stands in for files of the origin.
    stand_ins: BTreeMap<u32, File>,
}

/// Builds a guest from an image. Call it while this process has one thread.
pub fn build(image: impl Read) -> Result<Built, GuestError> {
    let mut reader = Reader::new(image)?;
    let Record::Job(job) = reader.next()? else {
        return Err(GuestError::Processes(0));
    };
    let Some(first) = job.processes.first() else {
        return Err(GuestError::Processes(0));
    };
    let reads = |process: &Process| process.signals.read_at_origin != 0;
    let outlives = |process: &Process| ipc::memory::outlives(process, &job.shared);
    let filter = filter::guest(job.processes.iter().any(reads), job.processes.iter().any(outlives))?;
    let world = World::Nothing {
        host_name: job.host.nodename.clone(),
    };
    let vessel = Vessel::create(&Specification::of(&job, first, world))?;
    let tracee = Tracee::seize(vessel.pid, libc::PTRACE_O_EXITKILL)?;
    tracee.interrupt()?;
    tracee.wait_interrupted()?;
    let injection = crate::capture::take_over(tracee)?;
    let listener = install_filter(&injection, &filter, vessel.socket)?;
    let unheeded = |error| GuestError::Io("learn of the guest's signals", error);
    let mut heed = Heed::begin(&injection).map_err(unheeded)?;
    let objects = restore::objects(&injection, &job, Origin::Nowhere, &|_| None)?;
    let known = Known {
        shared: job.shared.clone(),
        identities: objects.identities(tracee.tid()).map_err(RestoreError::from)?,
    };
    let mut stand_ins = BTreeMap::new();
    for (number, memory) in (0..).zip(&job.shared) {
        if let (SharedKind::Mirrored { .. }, Some(descriptor)) = (&memory.kind, objects.descriptor(number)) {
            let file = sys::descriptor_of(tracee.tid(), descriptor)
                .map_err(|error| GuestError::Io("take a memfd of the guest", error))?;
            stand_ins.insert(number, File::from(file));
        }
    }
    let mut heirs: Vec<_> = job.processes.iter().skip(1).map(|_| objects.heir()).collect();
    heirs.insert(0, objects);
    let mut restorers = Vec::with_capacity(job.processes.len());
    let tracees = tree::beside(injection, &job)?;
    for ((tracee, process), objects) in tracees.into_iter().zip(&job.processes).zip(heirs) {
        let restorer = Restorer::begin(tracee, process, Home::Away, objects)?;
        heed.add(restorer.injection()).map_err(unheeded)?;
        restorers.push(restorer);
    }
    fill(&restorers, &mut reader)?;
    let finish = |(restorer, process): (Restorer, &Process)| {
        let foreign_vdso = restorer.foreign_vdso.clone();
        Ok((restorer.finish(process, &[])?, foreign_vdso))
    };
    let built = restorers.into_iter().zip(&job.processes).map(finish);
    Ok(Built {
        vessel,
        built: built.collect::<Result<_, GuestError>>()?,
        listener,
        job: *job,
        known,
        heed,
        stand_ins,
    })
}

/// Puts the contents of an image into processes under construction, up to the image's end.
pub fn fill<R: Read>(restorers: &[Restorer], reader: &mut Reader<R>) -> Result<(), GuestError> {
    loop {
        match reader.next()? {
            Record::Pages { process, start, bytes } => {
                if let Some(restorer) = restorers.get(process as usize) {
                    restorer.pages(start, bytes)?;
                } else {
                    let object = process - restorers.len() as u32;
                    restorers
                        .iter()
                        .try_for_each(|restorer| restorer.object(object, start, bytes))?;
                }
            }
            Record::File { .. } | Record::Job(_) => {}
            Record::End(_) => return Ok(()),
        }
    }
}

/// Puts a fresh process under a notification filter by calls of its own, and takes the listener out of it. Then the
/// process has no descriptor left but those of its job: the vessel's `socket` is closed too.
pub fn install_filter(injection: &Injection, program: &filter::Program, socket: i32) -> Result<Listener, GuestError> {
    let mut script = Script::new(area::DATA.start);
    let instructions = filter::to_bytes(program);
    let address = script.data(&instructions);
    // struct sock_fprog: u16 length, padding, pointer.
    let mut fprog = [0; 16];
    fprog[..2].copy_from_slice(&((instructions.len() / 8) as u16).to_le_bytes());
    fprog[8..].copy_from_slice(&address.to_le_bytes());
    let fprog = script.data(&fprog);
    let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
    script.call(
        "forbid new privileges",
        libc::SYS_prctl,
        &[libc::PR_SET_NO_NEW_PRIVS as u64, 1, 0, 0, 0],
    );
    let arguments = [libc::SECCOMP_SET_MODE_FILTER.into(), flags, fprog];
    let install = script.call("install the notification filter", libc::SYS_seccomp, &arguments);
    let number = injection.run(&script)?[install];
    let listener = sys::descriptor_of(injection.tracee().tid(), number as i32)
        .map_err(|error| GuestError::Io("take the notification listener", error))?;
    let mut script = Script::new(area::DATA.start);
    script.call("close the listener", libc::SYS_close, &[number as u64]);
    script.call("close the socket to the keeper", libc::SYS_close, &[socket as u64]);
    injection.run(&script)?;
    Ok(Listener::new(listener))
}

impl Built {
    /// The job as it arrived.
    pub fn job(&self) -> &Job {
        &self.job
    }
}

/// What the main thread is told.
#[derive(Debug)]
pub enum Event {
    Said(Message),
    /// The channel has ended, and why.
    Lost(String),
    NeedsHome(String),
    /// A thread's call is over but for signals: [`Bell::due`].
    Due(i32),
    /// A thread waits at the door for which there may be signals: [`Bell::heed`].
    Heed(i32),
    /// A client asks for it to be brought home. The first answer says that the origin was asked; an error after it, that
    /// the guest goes on here; that the sender is dropped, that it went.
    Home(mpsc::Sender<Result<(), String>>),
    Kill(i32),
}

/// Where other threads put events.
#[derive(Clone, Debug)]
pub struct Mailbox {
    sender: mpsc::Sender<Event>,
    waiting: Arc<AtomicUsize>,
    wake: Arc<OwnedFd>,
}

impl Mailbox {
    pub fn post(&self, event: Event) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        if self.sender.send(event).is_ok() {
            // The counter of an eventfd cannot overflow from single steps.
            let _ = rustix::io::write(&*self.wake, &1_u64.to_ne_bytes());
        }
    }
}

impl Bell for Mailbox {
    fn needs_home(&self, reason: String) {
        self.post(Event::NeedsHome(reason));
    }

    fn due(&self, thread: i32) {
        self.post(Event::Due(thread));
    }

    fn heed(&self, thread: i32) {
        self.post(Event::Heed(thread));
    }
}

/// What others may know of a running guest.
#[derive(Debug)]
pub struct Facts {
    pub job: Job,
    /// Host PIDs of the processes, the first one first.
    pub pids: Vec<i32>,
    pub door: Arc<Door>,
}

/// A thread of the guest.
struct Limb {
    tracee: Tracee,
    /// Its TID at the origin.
    origin_tid: i32,
    /// Signals that its call keeps out until it is over.
    deferred: Vec<[u8; SIGINFO]>,
}

/// A process of the guest.
struct Body {
    /// Host PID.
    pid: i32,
    /// As it arrived.
    process: Process,
    foreign_vdso: Option<Range<u64>>,
    /// The leader first, as long as it lives.
    limbs: Vec<Limb>,
    /// All threads are held by us in place of a job-control stop.
    stopped: bool,
    /// Its deputy has been stopped since, too.
    confirmed: bool,
}

struct Guest {
    vessel: Vessel,
    door: Arc<Door>,
    line: Arc<Line>,
    job: Job,
    /// What its areas showed when it arrived.
    known: Known,
    heed: Heed,
    bodies: Vec<Body>,
    /// On its way home.
    held: Option<Vec<Frozen>>,
    /// A `Recall` has been asked for and not answered.
    asked_home: bool,
    /// Who asked for it.
    clients: Vec<mpsc::Sender<Result<(), String>>>,
}

/// Runs a built guest until it ends, here or by going home. `ready` is called when it runs, and serves a control socket:
/// who asked there for its end is told of it when the guest is no longer listed.
pub fn run(
    built: Built,
    sender: Sender,
    receiver: Receiver,
    ready: impl FnOnce(Arc<Facts>, Mailbox) -> Option<control::Server>,
) -> Result<(), GuestError> {
    let io = |what| move |error: io::Error| GuestError::Io(what, error);
    let signals = sys::watch_signals(&SIGNALS).map_err(io("watch for signals"))?;
    let wake =
        Arc::new(eventfd(0, EventfdFlags::CLOEXEC).map_err(|error| GuestError::Io("make an eventfd", error.into()))?);
    let (events, inbox) = mpsc::channel();
    let waiting = Arc::new(AtomicUsize::new(0));
    let mailbox = Mailbox {
        sender: events,
        waiting: Arc::clone(&waiting),
        wake: Arc::clone(&wake),
    };
    let Built {
        vessel,
        built,
        listener,
        job,
        known,
        heed,
        stand_ins,
    } = built;
    let mut objects = BTreeMap::new();
    for (number, file) in stand_ins {
        objects.insert(
            number,
            mirror::Object::stand_in(file).map_err(io("read shared memory"))?,
        );
    }
    let line = Line::new(sender.clone(), objects);
    let mut bodies = Vec::new();
    let mut members = Vec::new();
    let mut occupants = Vec::new();
    let mut leaders = Vec::new();
    for (process, (restored, foreign_vdso)) in job.processes.iter().zip(&built) {
        let threads = restored.threads().iter().zip(&process.threads);
        let limbs: Vec<_> = threads
            .map(|(tracee, thread)| Limb {
                tracee: *tracee,
                origin_tid: thread.tid,
                deferred: Vec::new(),
            })
            .collect();
        let pid = limbs.first().map_or(0, |leader| leader.tracee.tid());
        members.push(Member::new(pid, process, ipc::memory::outlives(process, &job.shared))?);
        occupants.extend(limbs.iter().map(|limb| Occupant {
            tid: limb.tracee.tid(),
            origin_tid: limb.origin_tid,
            pid,
        }));
        leaders.push(sys::pidfd(pid).map_err(io("hold a process of the guest"))?);
        bodies.push(Body {
            pid,
            process: process.clone(),
            foreign_vdso: foreign_vdso.clone(),
            limbs,
            stopped: process.stopped != 0,
            confirmed: process.stopped != 0,
        });
    }
    let numbers_timers = attributes::timers::are_chosen_at(&job.host.kernel);
    let bell = Box::new(mailbox.clone());
    let door = Door::new(listener, Arc::clone(&line), bell, numbers_timers, members, occupants);
    door.serve().map_err(io("start a thread"))?;
    let (replies, post, its_line) = (Arc::clone(&door), mailbox.clone(), Arc::clone(&line));
    thread::Builder::new()
        .name("receiver".into())
        .spawn(move || receive(receiver, &its_line, &replies, &post, &leaders))
        .map_err(io("start a thread"))?;

    let server = ready(
        Arc::new(Facts {
            job: job.clone(),
            pids: bodies.iter().map(|body| body.pid).collect(),
            door: Arc::clone(&door),
        }),
        mailbox,
    );
    sender
        .be_patient()
        .map_err(|error| GuestError::Io("set up the connection", io::Error::other(error)))?;
    let _undertaker = Undertaker::of(&bodies.iter().map(|body| body.pid).collect::<Vec<_>>())
        .map_err(io("watch the guest's processes"))?;
    line.tick().map_err(io("start a thread"))?;
    // Everything that this process will ever need is open now.
    seccompiler::apply_filter_all_threads(&filter::confine_guest_supervisor()?)
        .map_err(|error| GuestError::Io("confine the guest's supervisor", io::Error::other(error)))?;
    for ((restored, _), body) in built.into_iter().zip(&bodies) {
        if !body.stopped {
            restored.run()?;
        }
    }
    let mut guest = Guest {
        vessel: vessel.launch(),
        door,
        line,
        job,
        known,
        heed,
        bodies,
        held: None,
        asked_home: false,
        clients: Vec::new(),
    };
    loop {
        let mut fds = [
            PollFd::new(&signals, PollFlags::IN),
            PollFd::new(&*wake, PollFlags::IN),
            PollFd::new(guest.heed.fd(), PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(GuestError::Io("wait", error.into())),
        }
        let [asked, woken, _] = fds.each_ref().map(|fd| !fd.revents().is_empty());
        let arrived = match asked {
            true => sys::take_signals(signals.as_fd()),
            false => Vec::new(),
        };
        if arrived.iter().any(|signal| *signal != libc::SIGCHLD) {
            guest.event(Event::NeedsHome("its host is shutting down".to_owned()))?;
        }
        if woken {
            sys::drain(wake.as_fd());
        }
        match guest.attend(&inbox, &waiting) {
            Ok(true) => {
                server.iter().for_each(control::Server::withdraw);
                return Ok(());
            }
            Ok(false) => {}
            // A thread ended while something was done to it: its end wakes us in a moment.
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(error),
        }
    }
}

/// The channel's receiver: replies go straight to the door.
fn receive(mut receiver: Receiver, line: &Line, door: &Door, mailbox: &Mailbox, leaders: &[OwnedFd]) {
    let lost = loop {
        match Piece::receive(&mut receiver) {
            _ if mailbox.waiting.load(Ordering::Relaxed) > FLOOD => {
                // The main thread may be waiting for it to take something.
                line.sender.shutdown();
                break "it says more than can be heard".to_owned();
            }
            Ok(Piece::Said(Message::Reply(reply))) => door.reply(reply),
            Ok(Piece::Said(Message::Memory(changes))) => line.take(&changes),
            Ok(Piece::Said(message)) => {
                if let Message::Signal(signal) = &message {
                    door.announce(signal.process);
                }
                mailbox.post(Event::Said(message));
            }
            Ok(Piece::Data(_)) => {}
            Err(error) => break error.to_string(),
        }
    };
    door.lose();
    // The main thread may be waiting for a thread to stop whose call will never be answered.
    for leader in leaders {
        let _ = sys::pidfd_kill(leader.as_fd());
    }
    mailbox.post(Event::Lost(lost));
}

/// Threads that were stopped, each with the signals whose delivery that held up, and what was known of it before.
type Halted = Vec<(Tracee, Vec<[u8; SIGINFO]>, Option<crate::interrupted::LastRan>)>;

impl Guest {
    /// Looks after everything that waits. True: nothing is left to do here.
    fn attend(&mut self, inbox: &mpsc::Receiver<Event>, waiting: &AtomicUsize) -> Result<bool, GuestError> {
        if self.reap()? {
            return Ok(true);
        }
        let sent = self.heed.take();
        for pid in sent.map_err(|error| GuestError::Io("learn of the guest's signals", error))? {
            let waiting = self.door.heed(pid);
            self.wake(pid, &waiting)?;
        }
        while let Ok(event) = inbox.try_recv() {
            waiting.fetch_sub(1, Ordering::Relaxed);
            if self.event(event)? {
                return Ok(true);
            }
        }
        // What was done may have reaped the last one.
        Ok(self.bodies.is_empty())
    }

    /// Takes what the kernel reports of the guest. True: the last process has ended.
    fn reap(&mut self) -> Result<bool, GuestError> {
        while let Some(reported) = sys::wait_any().map_err(|error| GuestError::Io("wait for the guest", error))? {
            let (tid, status) = (reported.tid, Status::from_raw(reported.status));
            if self.bodies.iter().any(|body| body.has(tid)) {
                if status.is_end() {
                    self.ended(tid, status, reported.user_us, reported.system_us);
                } else {
                    self.stopped(tid, status)?;
                }
            }
        }
        Ok(self.bodies.is_empty())
    }

    fn body(&self, tid: i32) -> Option<&Body> {
        self.bodies.iter().find(|body| body.has(tid))
    }

    fn stopped(&mut self, tid: i32, status: Status) -> Result<(), GuestError> {
        let Some(body) = self.body(tid) else { return Ok(()) };
        let tracee = body.limb(tid);
        match status {
            Status::Stopped(signal @ (libc::SIGSTOP | libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU))
                if stops_by(body.pid, signal)? =>
            {
                let process = body.process.pid;
                self.stop(process, Some(tid))?;
                self.say(&Message::GuestStopped(Stopped { process, signal }));
            }
            Status::Stopped(signal) => {
                if status_of(body.pid, tid)?.caught & bit(signal) != 0 {
                    self.door.forget_wait(tid);
                }
                tracee.resume(signal)?;
            }
            _ => tracee.resume(0)?,
        }
        Ok(())
    }

    /// Stops all threads of a process but one that has stopped already, in place of a job-control stop.
    fn stop(&mut self, process: i32, already: Option<i32>) -> Result<(), GuestError> {
        let Some(body) = self.bodies.iter_mut().find(|body| body.process.pid == process) else {
            return Ok(());
        };
        body.stopped = true;
        let others: Vec<_> = body.tracees().filter(|tracee| Some(tracee.tid()) != already).collect();
        for (tracee, signals, _) in self.halt(&others)? {
            self.queue(tracee, &signals)?;
            self.door.end_stop(tracee.tid());
        }
        Ok(())
    }

    fn say(&self, message: &Message) {
        if let Err(error) = self.line.send(message) {
            tracing::warn!("cannot tell the origin: {error}");
        }
    }

    /// A thread has ended. A process has with its leader, whose end is reported last.
    fn ended(&mut self, tid: i32, status: Status, user_us: u64, system_us: u64) {
        self.door.forget_thread(tid);
        let Some(index) = self.bodies.iter().position(|body| body.has(tid)) else {
            return;
        };
        let body = &mut self.bodies[index];
        body.limbs.retain(|limb| limb.tracee.tid() != tid);
        if tid != body.pid {
            return;
        }
        let body = self.bodies.remove(index);
        self.door.forget_process(body.pid);
        let status = match status {
            Status::Killed { signal, core } => ExitStatus::Signal { number: signal, core },
            Status::Exited(code) => ExitStatus::Code(code),
            _ => ExitStatus::Code(0),
        };
        self.say(&Message::Exited(Exited {
            process: body.process.pid,
            status,
            user_us,
            system_us,
        }));
        if self.bodies.is_empty() {
            self.stays("the job has just ended");
            self.say(&Message::Bye);
        }
    }

    /// True: nothing is left to do here.
    fn event(&mut self, event: Event) -> Result<bool, GuestError> {
        match event {
            Event::Said(message) => return self.heard(message),
            Event::Lost(reason) => {
                tracing::error!("the origin is lost: {reason}; ending the guest, whose every effect happens there");
                self.kill();
                return Ok(true);
            }
            Event::NeedsHome(reason) => {
                if !self.asked_home {
                    self.asked_home = true;
                    self.say(&Message::GoHome(Reason { reason: clip(reason) }));
                }
            }
            Event::Due(tid) => {
                if let Some(tracee) = self.running(tid) {
                    self.deliver(tracee, &[])?;
                }
            }
            Event::Heed(tid) => self.wake(tid, &[tid])?,
            Event::Home(answer) => {
                self.asked_home = true;
                let reason = "it was asked to".to_owned();
                let result = self
                    .line
                    .send(&Message::GoHome(Reason { reason }))
                    .map_err(|error| error.to_string());
                let _ = answer.send(result);
                self.clients.push(answer);
            }
            Event::Kill(signal) => {
                if let Some(body) = self.bodies.first() {
                    let _ = sys::kill(body.pid, signal);
                }
            }
        }
        Ok(false)
    }

    /// Makes threads of a process that wait at the door take the signals that their own kernel has for them.
    fn wake(&mut self, pid: i32, waiting: &[i32]) -> Result<(), GuestError> {
        let Some(body) = self.body(pid).filter(|body| self.held.is_none() && !body.stopped) else {
            return Ok(());
        };
        let mut due = Vec::new();
        let mut taken = 0;
        for limb in body.limbs.iter().filter(|limb| waiting.contains(&limb.tracee.tid())) {
            let tid = limb.tracee.tid();
            let status = match status_of(body.pid, tid) {
                Err(error) if is_gone(&error) => continue,
                other => other?,
            };
            let lets_in = !self.door.mask(tid).unwrap_or(status.blocked);
            if (status.pending | status.shared_pending & !taken) & lets_in != 0 {
                taken |= status.shared_pending & lets_in;
                due.push(limb.tracee);
            }
        }
        due.into_iter().try_for_each(|tracee| self.deliver(tracee, &[]))
    }

    /// A thread that is not held by us.
    fn running(&self, tid: i32) -> Option<Tracee> {
        let body = self.body(tid)?;
        (self.held.is_none() && !body.stopped).then(|| body.limb(tid))
    }

    fn heard(&mut self, message: Message) -> Result<bool, GuestError> {
        match message {
            Message::Signal(signal) => {
                let index = self.bodies.iter().position(|body| body.process.pid == signal.process);
                if let Some(index) = index {
                    let pid = self.bodies[index].pid;
                    let taken = self.signal(index, signal.thread, &signal.info());
                    self.door.received(pid);
                    taken?;
                }
            }
            Message::DeputyStopped(stopped) => {
                let runs = |body: &Body| body.process.pid == stopped.process && !body.stopped;
                if self.held.is_none() && self.bodies.iter().any(runs) {
                    self.stop(stopped.process, None)?;
                }
                let of = |body: &&mut Body| body.process.pid == stopped.process;
                self.bodies
                    .iter_mut()
                    .filter(of)
                    .for_each(|body| body.confirmed = body.stopped);
            }
            Message::Recall => self.go_home(),
            Message::Release => {
                self.kill();
                self.say(&Message::Bye);
                return Ok(true);
            }
            Message::Resume(reason) => {
                tracing::warn!("the origin could not take the job back: {}", reason.reason);
                self.stays(&reason.reason);
                if let Some(held) = self.held.take() {
                    self.door.strand();
                    self.set_free(held)?;
                }
            }
            Message::Kill => {
                self.kill();
                self.say(&Message::Bye);
                return Ok(true);
            }
            Message::Ping(token) => self.say(&Message::Pong(token)),
            Message::Bye => {
                self.say(&Message::Bye);
                self.kill();
                return Ok(true);
            }
            other => tracing::warn!("the origin said {} at a wrong time", other.name()),
        }
        Ok(false)
    }

    /// Tells who asked for home that it came to nothing.
    fn stays(&mut self, reason: &str) {
        for client in self.clients.drain(..) {
            let _ = client.send(Err(reason.to_owned()));
        }
    }

    /// Ends everything: the keeper is the first process of its namespace.
    fn kill(&self) {
        let _ = sys::kill(self.vessel.keeper, libc::SIGKILL);
        // Until nobody is left, past the stops that came before.
        while matches!(vrun_shim::tracee::wait(-1, 0), Ok(Some(_))) {}
    }

    /// Stops threads, wherever they are. Those that have ended are left out.
    fn halt(&self, tracees: &[Tracee]) -> Result<Halted, GuestError> {
        let alive = |result: Result<(), TraceError>| match result {
            Ok(()) => Ok(true),
            Err(TraceError::Gone(_)) => Ok(false),
            Err(error) => Err(error),
        };
        let mut stopping = Vec::with_capacity(tracees.len());
        for tracee in tracees {
            let since = crate::interrupted::LastRan::of(tracee.tid());
            if alive(tracee.interrupt())? {
                self.door.begin_stop(tracee.tid());
                stopping.push((*tracee, since));
            }
        }
        let mut halted = Vec::with_capacity(stopping.len());
        for (tracee, since) in stopping {
            match tracee.wait_interrupted() {
                Ok(signals) => {
                    keep_waiting(tracee)?;
                    halted.push((tracee, signals, since));
                }
                Err(TraceError::Gone(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(halted)
    }

    /// Gives a running thread signals, those first that were kept for it.
    fn deliver(&mut self, tracee: Tracee, signals: &[[u8; SIGINFO]]) -> Result<(), GuestError> {
        for (tracee, mut held_up, _) in self.halt(&[tracee])? {
            let limb = self
                .bodies
                .iter_mut()
                .flat_map(|body| &mut body.limbs)
                .find(|limb| limb.tracee == tracee);
            let deferred = limb.map(|limb| std::mem::take(&mut limb.deferred)).unwrap_or_default();
            held_up.splice(0..0, deferred);
            held_up.extend_from_slice(signals);
            self.queue(tracee, &held_up)?;
            self.door.end_stop(tracee.tid());
            self.go_on(tracee)?;
        }
        Ok(())
    }

    /// Lets a halted thread go on. If it was in a call with a mask of its own that lets a waiting signal in, this one is
    /// delivered as the kernel would have: under that mask, with the thread's own to return to.
    ///
    /// `rt_sigsuspend` does that with the masks; before the signal's handler is set up, the registers are again those
    /// of the call that it ends.
    fn go_on(&mut self, tracee: Tracee) -> Result<(), GuestError> {
        let Some(body) = self.body(tracee.tid()) else {
            return Ok(());
        };
        let registers = tracee.registers()?;
        let turned_away = registers.orig_rax as i64 >= 0 && registers.rax as i64 == ERESTARTNOHAND;
        let Some(mask) = self.door.unmasked(tracee.tid()).filter(|_| turned_away) else {
            return Ok(tracee.resume(0)?);
        };
        let status = status_of(body.pid, tracee.tid())?;
        let unblockable = bit(libc::SIGKILL) | bit(libc::SIGSTOP);
        if (status.pending | status.shared_pending) & (!mask | unblockable) == 0 {
            return Ok(tracee.resume(0)?);
        }
        let injection = Injection::begin(tracee)?;
        injection.write(area::DATA.start, &mask.to_le_bytes())?;
        injection.finish()?;
        let mut suspend = registers;
        (suspend.rip, suspend.rax, suspend.orig_rax) = (area::GATE, libc::SYS_rt_sigsuspend as u64, u64::MAX);
        (suspend.rdi, suspend.rsi) = (area::DATA.start, 8);
        tracee.set_registers(&suspend)?;
        tracee.resume(0)?;
        let status = tracee.wait_stop()?;
        tracee.set_registers(&registers)?;
        self.stopped(tracee.tid(), status)
    }

    /// Queues signals inside a stopped thread, for it, with all that their senders said.
    fn queue(&self, tracee: Tracee, signals: &[[u8; SIGINFO]]) -> Result<(), GuestError> {
        let Some(body) = self.body(tracee.tid()).filter(|_| !signals.is_empty()) else {
            return Ok(());
        };
        let tid = body
            .limbs
            .iter()
            .find(|limb| limb.tracee == tracee)
            .map_or(0, |limb| limb.origin_tid);
        self.inject(
            tracee,
            signals,
            libc::SYS_rt_tgsigqueueinfo,
            &[body.process.pid as u64, tid as u64],
        )
    }

    /// Makes a stopped thread queue signals. `SIGSTOP` would act at once: it is left to be delivered.
    fn inject(&self, tracee: Tracee, signals: &[[u8; SIGINFO]], call: i64, receiver: &[u64]) -> Result<(), GuestError> {
        let injection = Injection::begin(tracee)?;
        let mut script = Script::new(area::DATA.start);
        let stops = signals.iter().any(is_stop);
        for info in signals.iter().filter(|info| !is_stop(info)) {
            let mut arguments = receiver.to_vec();
            arguments.extend([u64::from(info[0]), script.data(info)]);
            script.step("queue a signal", call, &arguments, Expect::Anything);
        }
        injection.run(&script)?;
        injection.finish()?;
        if stops && let Some(body) = self.body(tracee.tid()) {
            sys::kill(body.pid, libc::SIGSTOP).map_err(|error| GuestError::Io("stop the guest", error))?;
        }
        Ok(())
    }

    /// A signal from the origin for a process, or for one thread of it.
    fn signal(&mut self, index: usize, thread: i32, info: &[u8; SIGINFO]) -> Result<(), GuestError> {
        let number = i32::from(info[0]);
        let body = &self.bodies[index];
        if number == libc::SIGKILL {
            let _ = sys::kill(body.pid, number);
            return Ok(());
        }
        if self.held.is_some() {
            // It is being restored at home, where the deputy's queue goes with it; only a failure brings it back here.
            tracing::warn!("a signal arrived while the guest was on its way home");
            return Ok(());
        }
        let meant = body
            .limbs
            .iter()
            .find(|limb| limb.origin_tid == thread)
            .map(|limb| limb.tracee);
        if thread != 0 && meant.is_none() {
            return Ok(()); // it has ended
        }
        // The deputy has fetched it, so it was continued; the SIGCONT has been taken back by this very signal (signal(7)).
        if body.confirmed && [libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU].contains(&number) {
            self.continue_process(index)?;
        }
        let body = &self.bodies[index];
        if body.stopped {
            match (meant, body.leader()) {
                (Some(tracee), _) | (None, Err(tracee)) => self.queue(tracee, &[*info])?,
                (None, Ok(leader)) => self.pend(leader, info)?,
            }
            if number == libc::SIGCONT {
                self.continue_process(index)?;
            }
            return Ok(());
        }
        let choice = match meant {
            Some(tracee) => Some(tracee),
            None => self.choose(index, number)?,
        };
        match choice {
            Some(tracee) if self.door.defer(tracee.tid(), number) => {
                let limbs = self.bodies[index].limbs.iter_mut();
                limbs
                    .filter(|limb| limb.tracee == tracee)
                    .for_each(|limb| limb.deferred.push(*info));
                Ok(())
            }
            Some(tracee) => self.deliver(tracee, &[*info]),
            None => match self.bodies[index].leader() {
                Ok(leader) => {
                    for (leader, signals, _) in self.halt(&[leader])? {
                        self.queue(leader, &signals)?;
                        self.pend(leader, info)?;
                        self.door.end_stop(leader.tid());
                        self.go_on(leader)?;
                    }
                    Ok(())
                }
                // Only the leader may say of a signal for the process who sent it (rt_sigqueueinfo(2)).
                Err(other) => self.deliver(other, &[*info]),
            },
        }
    }

    /// Makes a signal pending for a process whose stopped leader this is.
    fn pend(&self, leader: Tracee, info: &[u8; SIGINFO]) -> Result<(), GuestError> {
        let process = self.body(leader.tid()).map_or(0, |body| body.process.pid);
        self.inject(leader, &[*info], libc::SYS_rt_sigqueueinfo, &[process as u64])
    }

    /// The thread of a process that takes a signal now, or will when its call is over.
    fn choose(&self, index: usize, signal: i32) -> Result<Option<Tracee>, GuestError> {
        let body = &self.bodies[index];
        let mut later = None;
        for limb in &body.limbs {
            let tid = limb.tracee.tid();
            let own = status_of(body.pid, tid)?.blocked;
            let mask = self.door.mask(tid);
            if mask.unwrap_or(own) & bit(signal) == 0 {
                return Ok(Some(limb.tracee));
            }
            // Queued now it would be taken at once, under the thread's own mask.
            if mask.is_some() && (own & bit(signal) == 0 || body.limbs.len() == 1) {
                later = later.or(Some(limb.tracee));
            }
        }
        Ok(later)
    }

    /// Ends a job-control stop.
    fn continue_process(&mut self, index: usize) -> Result<(), GuestError> {
        let body = &mut self.bodies[index];
        (body.stopped, body.confirmed) = (false, false);
        let process = body.process.pid;
        let tracees: Vec<_> = body.tracees().collect();
        self.say(&Message::GuestContinued(Continued { process }));
        for tracee in tracees {
            match self.go_on(tracee) {
                Err(error) if is_gone(&error) => {}
                other => other?,
            }
        }
        Ok(())
    }

    /// Freezes the guest and sends it. It stays frozen until the origin says what became of it.
    fn go_home(&mut self) {
        self.asked_home = false;
        if let Err(error) = self.send_home() {
            if is_gone(&error) && self.held.is_none() && self.bodies.len() == 1 {
                return; // its end is the answer
            }
            tracing::error!("cannot send the guest home: {error}");
            self.stays(&error.to_string());
            self.say(&Message::Failed(Reason {
                reason: clip(error.to_string()),
            }));
            // What made it come home fails from now on, or it would ask again and again.
            self.door.strand();
            if let Some(held) = self.held.take()
                && let Err(error) = self.set_free(held)
            {
                tracing::warn!("the guest cannot go on: {error}");
            }
        }
    }

    /// Lets everything go on that was frozen, but for what was stopped.
    fn set_free(&mut self, frozen: Vec<Frozen>) -> Result<(), GuestError> {
        for process in frozen {
            let stopped = self.body(process.pid()).is_some_and(|body| body.stopped);
            for injection in process.into_injections() {
                let tracee = injection.finish()?;
                self.door.end_stop(tracee.tid());
                if !stopped {
                    tracee.resume(0)?;
                }
            }
        }
        Ok(())
    }

    /// Stops every thread. What fails leaves all going on.
    fn freeze(&mut self) -> Result<Vec<Frozen>, GuestError> {
        let running = self.bodies.iter().filter(|body| !body.stopped);
        let tracees: Vec<_> = running.flat_map(Body::tracees).collect();
        let mut halted = self.halt(&tracees)?;
        for (tracee, signals, _) in &mut halted {
            let limb = self
                .bodies
                .iter_mut()
                .flat_map(|body| &mut body.limbs)
                .find(|limb| limb.tracee == *tracee);
            signals.splice(
                0..0,
                limb.map(|limb| std::mem::take(&mut limb.deferred)).unwrap_or_default(),
            );
            // It stands still already.
            if signals.extract_if(.., |info| is_stop(info)).count() > 0
                && let Some(body) = self.bodies.iter_mut().find(|body| body.has(tracee.tid()))
            {
                body.stopped = true;
                let (process, signal) = (body.process.pid, libc::SIGSTOP);
                self.say(&Message::GuestStopped(Stopped { process, signal }));
            }
        }
        let mut frozen = Vec::new();
        let mut failure = None;
        for body in &self.bodies {
            let threads = body.tracees().filter_map(|tracee| {
                let found = halted.iter().find(|(halted, ..)| *halted == tracee);
                match (found, body.stopped) {
                    (Some((_, signals, since)), _) => Some(capture::Stopped {
                        tracee,
                        signals: signals.clone(),
                        since: *since,
                    }),
                    (None, true) => Some(capture::Stopped {
                        tracee,
                        signals: Vec::new(),
                        since: None,
                    }),
                    // It has just ended.
                    (None, false) => None,
                }
            });
            let threads: Vec<_> = threads.collect();
            if failure.is_none() && !threads.is_empty() {
                match Frozen::adopt(threads) {
                    Ok(process) => frozen.push(process),
                    Err(error) => failure = Some((error, frozen.len())),
                }
            }
        }
        let Some((error, adopted)) = failure else {
            return Ok(frozen);
        };
        let free: Vec<i32> = frozen.iter().take(adopted).map(Frozen::pid).collect();
        self.set_free(frozen)?;
        for (tracee, signals, _) in halted {
            let (pid, stopped) = self
                .body(tracee.tid())
                .map_or((0, false), |body| (body.pid, body.stopped));
            if !free.contains(&pid) {
                self.queue(tracee, &signals)?;
                self.door.end_stop(tracee.tid());
                if !stopped {
                    tracee.resume(0)?;
                }
            }
        }
        Err(error.into())
    }

    fn send_home(&mut self) -> Result<(), GuestError> {
        let frozen = self.freeze()?;
        // What has ended meanwhile is said to have before the image comes, in which it is not.
        let result = self.reap().and_then(|_| self.send_frozen(&frozen));
        self.held = Some(frozen);
        result
    }

    fn send_frozen(&self, frozen: &[Frozen]) -> Result<(), GuestError> {
        let of = |frozen: &Frozen| self.body(frozen.pid());
        let hidden = |frozen: &Frozen| -> Vec<Range<u64>> {
            let vdso = of(frozen).and_then(|body| body.foreign_vdso.as_ref().and(body.process.memory.vdso.as_ref()));
            vdso.map(|vdso| vdso.start..vdso.start + vdso.code.len() as u64)
                .into_iter()
                .collect()
        };
        let hidden: Vec<_> = frozen.iter().map(hidden).collect();
        let mut description = capture::describe(
            frozen,
            vec![Vec::new(); frozen.len()],
            &hidden,
            areas::Purpose::Move,
            &self.known,
        )?;
        for (process, frozen) in description.processes.iter_mut().zip(frozen) {
            if let Some(body) = of(frozen) {
                as_at_home(process, &body.process);
            }
        }
        let mut job = self.job.clone();
        job.clocks = capture::clocks(frozen.first().map_or(0, Frozen::pid));
        job.processes.clone_from(&description.processes);
        job.shared.clone_from(&description.shared);

        // With nothing of the guest running, that is all.
        self.line
            .flush()
            .map_err(|error| GuestError::Io("send shared memory", io::Error::other(error)))?;
        let mut writer = Writer::new(ImageSink::new(self.line.sender.clone()))?;
        writer.job(&job)?;
        capture::dump(&description, |process, start, bytes| {
            writer.pages(process, start, bytes).map_err(GuestError::from)
        })?;
        let (sink, _) = writer.finish()?;
        sink.finish().map_err(|error| GuestError::Io("send the image", error))?;
        Ok(())
    }
}

impl Body {
    fn has(&self, tid: i32) -> bool {
        self.limbs.iter().any(|limb| limb.tracee.tid() == tid) || self.pid == tid
    }

    /// One of its threads, by host TID.
    fn limb(&self, tid: i32) -> Tracee {
        let limb = self.limbs.iter().find(|limb| limb.tracee.tid() == tid);
        limb.map_or_else(|| self.limbs[0].tracee, |limb| limb.tracee)
    }

    fn tracees(&self) -> impl Iterator<Item = Tracee> + '_ {
        self.limbs.iter().map(|limb| limb.tracee)
    }

    /// The leader, or if it has ended another thread.
    fn leader(&self) -> Result<Tracee, Tracee> {
        let first = self.limbs[0].tracee;
        if first.tid() == self.pid { Ok(first) } else { Err(first) }
    }
}

/// What stays with the deputy is as it was.
fn as_at_home(process: &mut Process, home: &Process) {
    process.memory.vdso.clone_from(&home.memory.vdso);
    (process.parent, process.group, process.session) = (home.parent, home.group, home.session);
    process.exit_signal = home.exit_signal;
    process.executable.clone_from(&home.executable);
    process.working_directory.clone_from(&home.working_directory);
    process.credentials.clone_from(&home.credentials);
    process.umask = home.umask;
}

/// The kernel ends `rt_sigtimedwait`, if it is the thread's own, for any stop (signal(7)).
fn keep_waiting(tracee: Tracee) -> Result<(), TraceError> {
    let mut registers = tracee.registers()?;
    let call = registers.orig_rax as i64;
    if call == libc::SYS_rt_sigtimedwait && registers.rax as i64 == -i64::from(libc::EINTR) {
        registers.rax = ERESTARTNOHAND as u64;
        tracee.set_registers(&registers)?;
    }
    Ok(())
}

fn status_of(pid: i32, tid: i32) -> Result<crate::proc::Status, GuestError> {
    let status = crate::proc::ProcDir::open(pid)
        .and_then(|directory| directory.thread(tid))
        .and_then(|directory| directory.status());
    status.map_err(|error| match error {
        crate::proc::ProcError::Gone(_) => GuestError::Trace(TraceError::Gone(tid)),
        error => GuestError::Io("read the guest's status", io::Error::other(error)),
    })
}

/// Whether this stop signal has its default action.
fn stops_by(pid: i32, signal: i32) -> Result<bool, GuestError> {
    let status = status_of(pid, pid)?;
    Ok((status.caught | status.ignored) & bit(signal) == 0)
}

/// Whether this is `SIGSTOP`.
fn is_stop(info: &[u8; SIGINFO]) -> bool {
    i32::from(info[0]) == libc::SIGSTOP
}

/// A signal's bit in a mask.
fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

/// A stream of the pieces that a receiver gets; each has to come within `patience`.
pub fn stream(receiver: &mut Receiver, patience: Duration) -> ImageStream<impl FnMut() -> io::Result<Piece> + '_> {
    ImageStream::new(move || Piece::receive_by(receiver, Instant::now() + patience).map_err(io::Error::other))
}
