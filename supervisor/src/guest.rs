//! A guest: a job's body at the destination, and the supervisor that keeps it.
//!
//! ```text
//!   build   vessel (own namespaces, the job's PID) → restorer → guest filter → held at its first instruction
//!   run     main thread: ptrace, signals, job control, recall      door thread: notifications
//!           receiver thread: Reply → door, everything else → main thread
//! ```
//!
//! The guest stays traced for life: a signal of the origin is queued inside it with its own `siginfo`, stops are decided
//! here (a process alone in its session would ignore Ctrl-Z), and it dies with this process (`PTRACE_O_EXITKILL`).
//!
//! Once running it has no descriptors, no file system, no network, no other process: what is not forwarded to the
//! origin does not exist.

use crate::capture::{self, CaptureError, Description, Frozen};
use crate::door::{Bell, Door};
use crate::filter;
use crate::notify::Listener;
use crate::restore::{Home, RestoreError, Restored, Restorer};
use crate::sys;
use crate::transfer::{ImageSink, ImageStream, Piece};
use crate::vessel::{Specification, Vessel, VesselError, World};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use std::io::{self, Read};
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};
use vrun_image::state::{Job, Process};
use vrun_image::{Reader, Record, Writer};
use vrun_remote_io::channel::{Receiver, Sender};
use vrun_remote_io::message::{ExitStatus, Exited, Message, Reason, Stopped, clip};
use vrun_shim::tracee::SIGINFO;
use vrun_shim::{Expect, Injection, Script, Status, TraceError, Tracee, area};

/// What the main thread listens to: its guest, and whoever wants this process to end, which sends the guest home.
const SIGNALS: [i32; 4] = [libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

/// The kernel's code for "make the call again unless a handler runs" (`include/linux/errno.h`).
const ERESTARTNOHAND: i64 = -514;
/// Messages of the origin that may wait for the main thread. More of them is no origin of ours.
const FLOOD: usize = 16 << 10;
/// How long a dead guest's CPU times are waited for.
const REPORT: Duration = Duration::from_secs(2);

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
    Capture(#[from] CaptureError),
    #[error(transparent)]
    Trace(#[from] TraceError),
    #[error(transparent)]
    Filter(#[from] filter::FilterError),
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
    restored: Restored,
    listener: Listener,
    job: Job,
    foreign_vdso: Option<Range<u64>>,
}

/// Builds a guest from an image. Call it while this process has one thread.
pub fn build(image: impl Read) -> Result<Built, GuestError> {
    let mut reader = Reader::new(image)?;
    let Record::Job(job) = reader.next()? else {
        return Err(GuestError::Processes(0));
    };
    let [process] = job.processes.as_slice() else {
        return Err(GuestError::Processes(job.processes.len()));
    };
    let filter = filter::guest()?;
    let world = World::Nothing {
        host_name: job.host.nodename.clone(),
    };
    let vessel = Vessel::create(&Specification::of(&job, process, world))?;
    let tracee = Tracee::seize(vessel.pid, libc::PTRACE_O_EXITKILL)?;
    tracee.interrupt()?;
    tracee.wait_interrupted()?;
    let restorer = Restorer::begin(tracee, process, Home::Away)?;
    let listener = install_filter(restorer.injection(), &filter, vessel.socket)?;
    fill(&restorer, &mut reader)?;
    let foreign_vdso = restorer.foreign_vdso.clone();
    let restored = restorer.finish(process, &[])?;
    Ok(Built {
        vessel,
        restored,
        listener,
        job: *job,
        foreign_vdso,
    })
}

/// Puts the contents of an image into a process under construction, up to the image's end.
pub fn fill<R: Read>(restorer: &Restorer, reader: &mut Reader<R>) -> Result<(), GuestError> {
    loop {
        match reader.next()? {
            Record::Pages { start, bytes, .. } => restorer.pages(start, bytes)?,
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
    /// A call is over but for signals: [`Bell::due`].
    Due,
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

    fn due(&self) {
        self.post(Event::Due);
    }
}

/// What others may know of a running guest.
#[derive(Debug)]
pub struct Facts {
    pub job: Job,
    /// Host PID of the process.
    pub pid: i32,
    pub door: Arc<Door>,
}

enum Condition {
    Running,
    /// Held by us in place of a job-control stop.
    Stopped,
    /// On its way home.
    Held(Box<(Frozen, Description)>),
}

struct Guest {
    vessel: Vessel,
    tracee: Tracee,
    door: Arc<Door>,
    sender: Sender,
    process: Process,
    job: Job,
    foreign_vdso: Option<Range<u64>>,
    condition: Condition,
    /// Signals that the guest's call keeps out until it is over.
    deferred: Vec<[u8; SIGINFO]>,
    /// It ended while it was waited for.
    over: bool,
    /// A `Recall` has been asked for and not answered.
    asked_home: bool,
    /// Who asked for it.
    clients: Vec<mpsc::Sender<Result<(), String>>>,
}

/// Runs a built guest until it ends, here or by going home. `ready` is called when it runs, with what a control socket
/// needs.
pub fn run(
    built: Built,
    sender: Sender,
    receiver: Receiver,
    ready: impl FnOnce(Arc<Facts>, Mailbox),
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
        restored,
        listener,
        job,
        foreign_vdso,
    } = built;
    let process = job.processes[0].clone();
    let tracee = restored.threads()[0];
    let bell = Box::new(mailbox.clone());
    let door = Door::new(listener, sender.clone(), bell, tracee.tid(), process.pid)?;

    let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
        thread::Builder::new()
            .name(name.into())
            .spawn(work)
            .map_err(|error| GuestError::Io("start a thread", error))
    };
    // Never signalled: the door ends with the guest.
    let quiet = eventfd(0, EventfdFlags::CLOEXEC).map_err(|error| GuestError::Io("make an eventfd", error.into()))?;
    let served = Arc::clone(&door);
    spawn("door", Box::new(move || served.serve(quiet.as_fd())))?;
    let (replies, post, line) = (Arc::clone(&door), mailbox.clone(), sender.clone());
    spawn("receiver", Box::new(move || receive(receiver, &line, &replies, &post)))?;

    ready(
        Arc::new(Facts {
            job: job.clone(),
            pid: tracee.tid(),
            door: Arc::clone(&door),
        }),
        mailbox,
    );
    sender
        .be_patient()
        .map_err(|error| GuestError::Io("set up the connection", io::Error::other(error)))?;
    // Everything that this process will ever need is open now.
    seccompiler::apply_filter_all_threads(&filter::confine_guest_supervisor()?)
        .map_err(|error| GuestError::Io("confine the guest's supervisor", io::Error::other(error)))?;
    restored.run()?;
    let mut guest = Guest {
        vessel: vessel.launch(),
        tracee,
        door,
        sender,
        process,
        job,
        foreign_vdso,
        condition: Condition::Running,
        deferred: Vec::new(),
        over: false,
        asked_home: false,
        clients: Vec::new(),
    };
    loop {
        let mut fds = [PollFd::new(&signals, PollFlags::IN), PollFd::new(&*wake, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(GuestError::Io("wait", error.into())),
        }
        let arrived = if fds[0].revents().is_empty() {
            Vec::new()
        } else {
            sys::take_signals(signals.as_fd())
        };
        if arrived.iter().any(|signal| *signal != libc::SIGCHLD) {
            guest.event(Event::NeedsHome("its host is shutting down".to_owned()))?;
        }
        if !fds[1].revents().is_empty() {
            sys::drain(wake.as_fd());
        }
        match guest.attend(&inbox, &waiting) {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            // It ended while something was done to it: its end wakes us in a moment.
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(error),
        }
    }
}

/// The channel's receiver: replies go straight to the door.
fn receive(mut receiver: Receiver, sender: &Sender, door: &Door, mailbox: &Mailbox) {
    let lost = loop {
        match Piece::receive(&mut receiver) {
            _ if mailbox.waiting.load(Ordering::Relaxed) > FLOOD => {
                // The main thread may be waiting for it to take something.
                sender.shutdown();
                break "it says more than can be heard".to_owned();
            }
            Ok(Piece::Said(Message::Reply(reply))) => door.reply(reply),
            Ok(Piece::Said(message)) => {
                if matches!(message, Message::Signal(_)) {
                    door.announce();
                }
                mailbox.post(Event::Said(message));
            }
            Ok(Piece::Data(_)) => {}
            Err(error) => break error.to_string(),
        }
    };
    door.lose();
    mailbox.post(Event::Lost(lost));
}

impl Guest {
    fn pid(&self) -> i32 {
        self.tracee.tid()
    }

    /// Looks after everything that waits. True: nothing is left to do here.
    fn attend(&mut self, inbox: &mpsc::Receiver<Event>, waiting: &AtomicUsize) -> Result<bool, GuestError> {
        if self.reap()? || self.over {
            return Ok(true);
        }
        while let Ok(event) = inbox.try_recv() {
            waiting.fetch_sub(1, Ordering::Relaxed);
            if self.event(event)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Takes what the kernel reports of the guest. True: it has ended.
    fn reap(&mut self) -> Result<bool, GuestError> {
        while let Some((pid, status)) =
            vrun_shim::tracee::wait(-1, libc::WNOHANG).map_err(|error| GuestError::Io("wait for the guest", error))?
        {
            if pid != self.pid() {
                continue; // the keeper
            }
            if status.is_end() {
                self.ended(status);
                return Ok(true);
            }
            self.stopped(status)?;
        }
        Ok(false)
    }

    fn stopped(&mut self, status: Status) -> Result<(), GuestError> {
        match status {
            Status::Stopped(signal @ (libc::SIGSTOP | libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU))
                if self.stops_by(signal)? =>
            {
                self.condition = Condition::Stopped;
                self.say(&Message::GuestStopped(Stopped { signal }));
            }
            Status::Stopped(signal) => {
                if self.status()?.caught & bit(signal) != 0 {
                    self.door.forget_wait();
                }
                self.tracee.resume(signal)?;
            }
            _ => self.tracee.resume(0)?,
        }
        Ok(())
    }

    /// Whether this stop signal has its default action.
    fn stops_by(&self, signal: i32) -> Result<bool, GuestError> {
        let status = self.status()?;
        Ok((status.caught | status.ignored) & bit(signal) == 0)
    }

    fn status(&self) -> Result<crate::proc::Status, GuestError> {
        let status = crate::proc::ProcDir::open(self.pid()).and_then(|directory| directory.status());
        status.map_err(|error| GuestError::Io("read the guest's status", io::Error::other(error)))
    }

    fn say(&self, message: &Message) {
        if let Err(error) = self.sender.send(message) {
            tracing::warn!("cannot tell the origin: {error}");
        }
    }

    fn ended(&mut self, status: Status) {
        self.stays("the job has just ended");
        let status = match status {
            Status::Killed { signal, core } => ExitStatus::Signal { number: signal, core },
            Status::Exited(code) => ExitStatus::Code(code),
            _ => ExitStatus::Code(0),
        };
        let (mut user_us, mut system_us) = (0, 0);
        let until = Instant::now() + REPORT;
        while Instant::now() < until {
            let mut fds = [PollFd::new(&self.vessel.reports, PollFlags::IN)];
            let timeout = rustix::event::Timespec { tv_sec: 1, tv_nsec: 0 };
            if !matches!(poll(&mut fds, Some(&timeout)), Ok(1)) {
                continue;
            }
            let Some(report) = Vessel::report(self.vessel.reports.as_fd()) else {
                break;
            };
            if Status::from_raw(report.raw_status).is_end() {
                (user_us, system_us) = (report.user_microseconds, report.system_microseconds);
                break;
            }
        }
        self.say(&Message::Exited(Exited {
            status,
            user_us,
            system_us,
        }));
        self.say(&Message::Bye);
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
            Event::Due => {
                if matches!(self.condition, Condition::Running) {
                    let signals = self.halt()?;
                    self.queue(&signals)?;
                    self.door.end_stop();
                    self.go_on()?;
                }
            }
            Event::Home(answer) => {
                self.asked_home = true;
                let reason = "it was asked to".to_owned();
                let result = self
                    .sender
                    .send(&Message::GoHome(Reason { reason }))
                    .map_err(|error| error.to_string());
                let _ = answer.send(result);
                self.clients.push(answer);
            }
            Event::Kill(signal) => {
                let _ = sys::kill(self.pid(), signal);
            }
        }
        Ok(false)
    }

    fn heard(&mut self, message: Message) -> Result<bool, GuestError> {
        match message {
            Message::Signal(signal) => self.signal(&signal.info())?,
            Message::DeputyStopped(_) => {
                if matches!(self.condition, Condition::Running) {
                    let signals = self.halt()?;
                    self.queue(&signals)?;
                    self.condition = Condition::Stopped;
                    self.door.end_stop();
                }
            }
            Message::Recall => self.go_home(),
            Message::Release => {
                self.condition = Condition::Running;
                self.kill();
                self.say(&Message::Bye);
                return Ok(true);
            }
            Message::Resume(reason) => {
                tracing::warn!("the origin could not take the job back: {}", reason.reason);
                self.stays(&reason.reason);
                if let Condition::Held(held) = std::mem::replace(&mut self.condition, Condition::Running) {
                    self.door.strand();
                    self.door.end_stop();
                    held.0.resume_traced()?;
                }
            }
            Message::Kill => {
                self.kill();
                self.ended(Status::Killed {
                    signal: libc::SIGKILL,
                    core: false,
                });
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

    fn kill(&self) {
        let _ = sys::kill(self.pid(), libc::SIGKILL);
        // Stops that came before it are reported first.
        while self.tracee.wait().is_ok_and(|status| !status.is_end()) {}
        let _ = sys::kill(self.vessel.keeper, libc::SIGKILL);
        let _ = vrun_shim::tracee::wait(self.vessel.keeper, 0);
    }

    /// Stops the guest, wherever it is; gives the signals whose delivery that held up.
    fn halt(&mut self) -> Result<Vec<[u8; SIGINFO]>, GuestError> {
        self.tracee.interrupt()?;
        self.door.begin_stop();
        let mut signals = std::mem::take(&mut self.deferred);
        signals.extend(self.tracee.wait_interrupted()?);
        // The kernel ends this call, which is the guest's own, for any stop (signal(7)).
        let mut registers = self.tracee.registers()?;
        let call = registers.orig_rax as i64;
        if call == libc::SYS_rt_sigtimedwait && registers.rax as i64 == -i64::from(libc::EINTR) {
            registers.rax = ERESTARTNOHAND as u64;
            self.tracee.set_registers(&registers)?;
        }
        Ok(signals)
    }

    /// Lets the halted guest go on. If it was in a call with a mask of its own that lets a waiting signal in, this one is
    /// delivered as the kernel would have: under that mask, with the guest's own to return to.
    ///
    /// `rt_sigsuspend` does that with the masks; before the signal's handler is set up, the registers are again those
    /// of the call that it ends.
    fn go_on(&mut self) -> Result<(), GuestError> {
        let registers = self.tracee.registers()?;
        let turned_away = registers.orig_rax as i64 >= 0 && registers.rax as i64 == ERESTARTNOHAND;
        let Some(mask) = self.door.unmasked().filter(|_| turned_away) else {
            return Ok(self.tracee.resume(0)?);
        };
        let status = self.status()?;
        let unblockable = bit(libc::SIGKILL) | bit(libc::SIGSTOP);
        if (status.pending | status.shared_pending) & (!mask | unblockable) == 0 {
            return Ok(self.tracee.resume(0)?);
        }
        let injection = Injection::begin(self.tracee)?;
        injection.write(area::DATA.start, &mask.to_le_bytes())?;
        injection.finish()?;
        let mut suspend = registers;
        (suspend.rip, suspend.rax, suspend.orig_rax) = (area::GATE, libc::SYS_rt_sigsuspend as u64, u64::MAX);
        (suspend.rdi, suspend.rsi) = (area::DATA.start, 8);
        self.tracee.set_registers(&suspend)?;
        self.tracee.resume(0)?;
        let status = self.tracee.wait()?;
        if !status.is_end() {
            self.tracee.set_registers(&registers)?;
            return self.stopped(status);
        }
        self.ended(status);
        self.over = true;
        Ok(())
    }

    /// Queues signals inside the stopped guest, with all that their senders said.
    fn queue(&self, signals: &[[u8; SIGINFO]]) -> Result<(), GuestError> {
        if signals.is_empty() {
            return Ok(());
        }
        let injection = Injection::begin(self.tracee)?;
        let mut script = Script::new(area::DATA.start);
        for info in signals {
            let arguments = [self.process.pid as u64, u64::from(info[0]), script.data(info)];
            script.step(
                "queue a signal",
                libc::SYS_rt_sigqueueinfo,
                &arguments,
                Expect::Anything,
            );
        }
        injection.run(&script)?;
        injection.finish()?;
        Ok(())
    }

    fn signal(&mut self, info: &[u8; SIGINFO]) -> Result<(), GuestError> {
        match self.condition {
            Condition::Running if self.door.defers(i32::from(info[0])) => {
                self.deferred.push(*info);
                self.door.received();
            }
            Condition::Running => {
                let mut signals = self.halt()?;
                signals.push(*info);
                self.queue(&signals)?;
                self.door.received();
                self.door.end_stop();
                self.go_on()?;
            }
            Condition::Stopped => {
                self.queue(&[*info])?;
                self.door.received();
                if i32::from(info[0]) == libc::SIGCONT {
                    self.condition = Condition::Running;
                    self.say(&Message::GuestContinued);
                    self.go_on()?;
                }
            }
            // It is being restored at home, where the deputy's queue goes with it; only a failure brings it back here.
            Condition::Held(_) => {
                self.door.received();
                tracing::warn!("a signal arrived while the guest was on its way home");
            }
        }
        Ok(())
    }

    /// Freezes the guest and sends it. It stays frozen until the origin says what became of it.
    fn go_home(&mut self) {
        self.asked_home = false;
        if let Err(error) = self.send_home() {
            if is_gone(&error) {
                return; // its end is the answer
            }
            tracing::error!("cannot send the guest home: {error}");
            self.stays(&error.to_string());
            self.say(&Message::Failed(Reason {
                reason: clip(error.to_string()),
            }));
            // What made it come home fails from now on, or it would ask again and again.
            self.door.strand();
            self.door.end_stop();
            match std::mem::replace(&mut self.condition, Condition::Running) {
                Condition::Held(held) => drop(held.0.resume_traced()),
                Condition::Running => drop(self.tracee.resume(0)),
                Condition::Stopped => self.condition = Condition::Stopped,
            }
        }
    }

    fn send_home(&mut self) -> Result<(), GuestError> {
        let since = crate::interrupted::LastRan::of(self.pid());
        let signals = match self.condition {
            Condition::Running => self.halt()?,
            _ => Vec::new(),
        };
        let stopped = capture::Stopped {
            tracee: self.tracee,
            signals: signals.clone(),
            since,
        };
        let frozen = match Frozen::adopt(vec![stopped]) {
            Ok(frozen) => frozen,
            Err(error) => {
                self.queue(&signals)?;
                return Err(error.into());
            }
        };
        let hidden = self.foreign_vdso.as_ref().and(self.process.memory.vdso.as_ref());
        let hidden: Vec<Range<u64>> = hidden
            .map(|vdso| vdso.start..vdso.start + vdso.code.len() as u64)
            .into_iter()
            .collect();
        let mut captured = capture::describe(std::slice::from_ref(&frozen), vec![Vec::new()], &hidden)?;
        let process = &mut captured.processes[0];
        let home = &self.process;
        process.memory.vdso.clone_from(&home.memory.vdso);
        (process.parent, process.group, process.session) = (home.parent, home.group, home.session);
        process.executable.clone_from(&home.executable);
        process.working_directory.clone_from(&home.working_directory);
        process.credentials.clone_from(&home.credentials);
        process.umask = home.umask;
        process.threads[0].parent_death_signal = home.threads[0].parent_death_signal;
        let mut job = self.job.clone();
        job.clocks = capture::clocks(self.pid());
        job.processes.clone_from(&captured.processes);

        let mut writer = Writer::new(ImageSink::new(self.sender.clone()))?;
        writer.job(&job)?;
        capture::dump(std::slice::from_ref(&frozen), &captured, |process, start, bytes| {
            writer.pages(process, start, bytes).map_err(GuestError::from)
        })?;
        let (sink, _) = writer.finish()?;
        self.condition = Condition::Held(Box::new((frozen, captured)));
        sink.finish().map_err(|error| GuestError::Io("send the image", error))?;
        Ok(())
    }
}

/// A signal's bit in a mask.
fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

/// A stream of the pieces that a receiver gets; each has to come within `patience`.
pub fn stream(receiver: &mut Receiver, patience: Duration) -> ImageStream<impl FnMut() -> io::Result<Piece> + '_> {
    ImageStream::new(move || Piece::receive_by(receiver, Instant::now() + patience).map_err(io::Error::other))
}
