//! A job that moves: the origin's side of the protocol (`vrun_remote_io::message` has the whole of it).
//!
//! ```text
//!   OFFER    client thread   connect, Hello, Offer, Accept            the job runs
//!   IMAGE    main thread     freeze, describe, ImageData…, Prepared   the job stands still; any failure lets it go on
//!   ─────────────────────────── Commit ────────────────────────────── the one hand-over
//!   AWAY     receiver thread Call → deputy → Reply                    the guest runs
//!            main thread     stops, signals, the end
//!   HOME     main thread     Recall, image → the deputy's process, Release
//! ```
//!
//! If the connection breaks between `Commit` and `Running`, the origin lets its own copy go on. That is safe although
//! the guest may have been started: everything a guest does outside of its memory is a `Call`, none has been made
//! yet, and none can be once this connection is gone. The host ends such a guest as soon as it notices.

use crate::capture::{self, CaptureError, Frozen};
use crate::config::Config;
use crate::control::{ControlError, ErrorCode, Moved, Outcome, Progress};
use crate::deputy::{Correspondent, Deputy, DeputyError, Desk};
use crate::guest::{GuestError, fill};
use crate::notify::Listener;
use crate::peers;
use crate::restore::{Home, Restored, Restorer};
use crate::transfer::{ImageSink, ImageStream, Piece};
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};
use vrun_image::state::{Host, Job};
use vrun_image::{Reader, Record, Writer};
use vrun_remote_io::call::{Call, Reply};
use vrun_remote_io::channel::{Frame, Receiver, Sender};
use vrun_remote_io::message::{Message, Offer, Purpose, Reason, SIGINFO, Signal, clip};
use vrun_shim::TraceError;

/// Frames of an image that may wait for the main thread.
const AHEAD: usize = 4;
/// Signals that end a lost job: nothing is left that could do something else about them.
pub const ENDING: [i32; 4] = [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM];
/// Calls of a guest that may be under way. One thread makes one at a time.
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
            processes,
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

/// A job whose body is at another host.
#[derive(Debug)]
pub struct Away {
    pub deputy: Arc<Deputy>,
    pub sender: Sender,
    /// As the user named it.
    pub host: String,
    courier: Arc<Courier>,
    /// The PID of the guest.
    process: i32,
    /// Where the command line and the environment are in the process.
    arguments: Range<u64>,
    pieces: mpsc::Receiver<Incoming>,
    /// Recalls that the host has not answered to their end. What still comes of one that was given up is passed over.
    owed: usize,
    /// Why nothing comes any more.
    pub lost: Option<String>,
}

/// What else a move needs of the job.
#[derive(Debug)]
pub struct Office<'a> {
    pub config: &'a Config,
    pub identity: &'a Identity,
    pub listener: &'a Arc<Listener>,
    pub desk: &'a Arc<Desk>,
    /// Tells the main thread that something waits in [`Away::take`].
    pub ring: Arc<dyn Ring>,
}

/// Wakes the main thread.
pub trait Ring: Send + Sync + std::fmt::Debug {
    fn ring(&self);
}

/// Carries what the deputy brings into the channel. While the body is on its way home, signals wait here: where it was
/// they would come too late.
#[derive(Debug)]
pub struct Courier {
    sender: Sender,
    held: Mutex<Option<Vec<[u8; SIGINFO]>>>,
    /// Numbers of signals that could not be sent.
    undelivered: Mutex<Vec<i32>>,
    /// Calls without a reply yet.
    calls: AtomicUsize,
    ring: Arc<dyn Ring>,
}

impl Courier {
    fn new(sender: &Sender, ring: Arc<dyn Ring>) -> Arc<Self> {
        Arc::new(Self {
            sender: sender.clone(),
            held: Mutex::default(),
            undelivered: Mutex::default(),
            calls: AtomicUsize::new(0),
            ring,
        })
    }

    fn undelivered(&self) -> MutexGuard<'_, Vec<i32>> {
        self.undelivered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn held(&self) -> MutexGuard<'_, Option<Vec<[u8; SIGINFO]>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on signals are kept.
    fn hold(&self) {
        self.held().get_or_insert_default();
    }

    /// What was kept so far.
    fn kept(&self) -> Vec<[u8; SIGINFO]> {
        self.held().clone().unwrap_or_default()
    }

    /// From now on signals are sent, those that were kept first.
    fn let_go(&self) {
        let mut held = self.held();
        held.take().into_iter().flatten().for_each(|info| self.send(info));
    }

    fn send(&self, info: [u8; SIGINFO]) {
        let signal = Signal::new(info);
        let number = signal.number();
        if let Err(error) = self.sender.send(&Message::Signal(signal)) {
            // Mostly one that came in between the guest's end and the deputy's.
            tracing::debug!("cannot send a signal: {error}");
            self.undelivered().push(number);
            self.ring.ring();
        }
    }
}

impl Correspondent for Courier {
    fn reply(&self, reply: Reply) {
        self.calls.fetch_sub(1, Ordering::Relaxed);
        if let Err(error) = self.sender.send(&Message::Reply(reply)) {
            tracing::warn!("cannot send a reply: {error}");
        }
    }

    fn signal(&self, info: [u8; SIGINFO]) {
        // The lock is held while sending, so that none overtakes another.
        let mut held = self.held();
        match &mut *held {
            Some(kept) => kept.push(info),
            None => self.send(info),
        }
    }
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

/// Sends a process away. An error means that it runs on here.
pub fn depart(pid: i32, departure: Departure, office: &Office<'_>) -> Result<(Away, Moved), ControlError> {
    let Departure {
        sender,
        mut receiver,
        host,
        asked,
    } = departure;
    let stopped = Instant::now();
    let frozen = match capture::freeze(&|| vec![pid]) {
        Ok(mut job) => job.processes.remove(0),
        Err(error) => {
            let _ = sender.send(&Message::Bye);
            return Err(error.into());
        }
    };
    match send(&frozen, &sender, &mut receiver, &host, office) {
        Ok(body) => {
            let downtime = stopped.elapsed();
            let away = settle(frozen, sender, receiver, host, body, office)?;
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

/// What of a process that has left has to be known of it.
struct Body {
    /// The PID of the guest, there and in its own eyes here.
    process: i32,
    /// Where its command line and its environment are.
    arguments: Range<u64>,
}

/// From the frozen process to the running guest.
fn send(
    frozen: &Frozen,
    sender: &Sender,
    receiver: &mut Receiver,
    host: &str,
    office: &Office<'_>,
) -> Result<Body, ControlError> {
    let captured = capture::describe(std::slice::from_ref(frozen), vec![Vec::new()], &[])?;
    let process = &captured.processes[0];
    let directory = crate::proc::ProcDir::open(frozen.pid()).map_err(CaptureError::from)?;
    if let Some(reason) = crate::attributes::timers::stay(&directory).map_err(CaptureError::from)? {
        return Err(ControlError::refused(format!("the job cannot be moved now: {reason}")));
    }
    if process.signals.interval_timers[1..]
        .iter()
        .any(|timer| timer.value != 0)
    {
        return Err(ControlError::refused(
            "the job cannot be moved now: it has a timer that counts its CPU time",
        ));
    }
    let body = Body {
        process: process.pid,
        arguments: process.memory.layout.arg_start..process.memory.layout.env_end,
    };
    let job = office
        .identity
        .image(office.config, frozen.pid(), Vec::new(), vec![process.clone()])
        .map_err(rolled_back)?;
    let mut writer = Writer::new(ImageSink::new(sender.clone())).map_err(rolled_back)?;
    let write = |writer: &mut Writer<ImageSink>| -> Result<(), GuestError> {
        writer.job(&job)?;
        capture::dump(std::slice::from_ref(frozen), &captured, |process, start, bytes| {
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

    // The hand-over. See the module's documentation for what a failure between these two means.
    sender.send(&Message::Commit).map_err(rolled_back)?;
    match receiver.recv_deadline(Instant::now() + office.config.timeouts.answer) {
        Ok(Frame::Message(Message::Running(_))) => Ok(body),
        Ok(other) => Err(rolled_back(peers::out_of_place(host, &other))),
        Err(error) => Err(rolled_back(error)),
    }
}

/// Makes the deputy and starts to serve the guest.
fn settle(
    frozen: Frozen,
    sender: Sender,
    receiver: Receiver,
    host: String,
    Body { process, arguments }: Body,
    office: &Office<'_>,
) -> Result<Away, ControlError> {
    let lost = |error: &dyn std::fmt::Display| {
        let _ = sender.send(&Message::Kill);
        ControlError::refused(format!("the job is lost: its deputy could not be made: {error}"))
    };
    let courier = Courier::new(&sender, Arc::clone(&office.ring));
    let injection = frozen.into_injections().remove(0);
    let deputy = Deputy::settle(
        injection,
        arguments.clone(),
        Arc::clone(office.listener),
        courier.clone(),
    )
    .map_err(|error| match error {
        DeputyError::Trace(TraceError::Gone(_)) => {
            let _ = sender.send(&Message::Kill);
            just_ended()
        }
        error => lost(&error),
    })?;
    office.desk.seat(Some(Arc::clone(&deputy)));
    sender.be_patient().map_err(|error| lost(&error))?;
    let (post, pieces) = mpsc::sync_channel(AHEAD);
    let reception = Reception {
        desk: Arc::clone(office.desk),
        courier: Arc::clone(&courier),
        process,
        post,
        ring: Arc::clone(&office.ring),
    };
    thread::Builder::new()
        .name("receiver".into())
        .spawn(move || reception.serve(receiver))
        .map_err(|error| lost(&error))?;
    Ok(Away {
        deputy,
        sender,
        host,
        courier,
        process,
        arguments,
        pieces,
        owed: 0,
        lost: None,
    })
}

/// The channel's receiver: calls go to the deputy, everything else to the main thread.
struct Reception {
    desk: Arc<Desk>,
    courier: Arc<Courier>,
    /// The PID of the guest, there and in its own eyes here.
    process: i32,
    post: mpsc::SyncSender<Incoming>,
    ring: Arc<dyn Ring>,
}

impl Reception {
    fn serve(&self, mut receiver: Receiver) {
        let sender = &self.courier.sender;
        loop {
            let incoming = match Piece::receive(&mut receiver) {
                Ok(Piece::Said(Message::Call(call))) => match self.call(call) {
                    Ok(()) => continue,
                    Err(reason) => Incoming::Lost(reason),
                },
                Ok(Piece::Said(Message::Cancel(cancel))) => {
                    if let Some(deputy) = self.desk.deputy() {
                        deputy.cancel(cancel.call);
                    }
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

    /// Gives a call to the deputy. An error is a host that does not keep to the protocol.
    fn call(&self, call: Call) -> Result<(), String> {
        if self.courier.calls.fetch_add(1, Ordering::Relaxed) >= CALLS {
            return Err(format!("it has made more than {CALLS} calls at a time"));
        }
        match self.desk.deputy() {
            Some(deputy) if call.process == self.process => deputy.submit(call),
            _ => self.courier.reply(Reply {
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
        let mut ended = None;
        let mut gone = None;
        let mut stop = None;
        let next = || loop {
            match pieces.recv_timeout(patience) {
                // These may cross with our Recall.
                Ok(Incoming::Piece(Piece::Said(Message::GuestStopped(stopped)))) => stop = Some(stopped.signal),
                Ok(Incoming::Piece(Piece::Said(Message::GoHome(_) | Message::GuestContinued))) => {}
                Ok(Incoming::Piece(piece)) => {
                    let ours = *owed == 1;
                    match &piece {
                        Piece::Said(Message::Exited(exited)) => ended = Some(*exited),
                        Piece::Said(Message::ImageEnd(_) | Message::Failed(_)) => *owed = owed.saturating_sub(1),
                        _ if !ours => continue,
                        _ => {}
                    }
                    if ours || ended.is_some() {
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
        let result = rebuild(
            &mut stream,
            &self.deputy,
            &self.courier,
            (&office.identity.id, self.process),
        );
        let interruption = stream.interruption.take();
        drop(stream);
        self.lost = gone.or(self.lost.take());
        if let Some(exited) = ended {
            return Err(HomeError::Ended(exited));
        }
        match result {
            Ok(restored) => {
                // The host is told first: from here on only this copy runs.
                if let Err(error) = self.sender.send(&Message::Release) {
                    tracing::warn!("cannot tell {} to end the guest: {error}", self.host);
                }
                office.desk.seat(None);
                if stop.is_some() {
                    // It was stopped when it was frozen, and stays so.
                    let _ = crate::sys::kill(self.deputy.pid(), libc::SIGSTOP);
                }
                restored.release().map_err(|error| HomeError::Lost(error.to_string()))?;
                let elapsed = started.elapsed().as_micros() as u64;
                let bytes = self.sender.counters().received - before;
                Ok(Moved {
                    bytes,
                    total_us: elapsed,
                    downtime_us: elapsed,
                })
            }
            Err((error, rest)) => {
                let reason = match interruption {
                    Some(Message::Failed(Reason { reason })) => format!("{} could not send it: {reason}", self.host),
                    _ => error,
                };
                if let Some(injection) = rest {
                    self.settle_again(*injection, office)?;
                }
                let told = self.sender.send(&Message::Resume(Reason {
                    reason: clip(reason.clone()),
                }));
                if let Err(error) = told {
                    self.lost.get_or_insert(error.to_string());
                }
                self.courier.let_go();
                Err(match &self.lost {
                    Some(reason) => HomeError::StillAway(self.is_lost(reason)),
                    None => failed(format!(
                        "the job could not be brought home: {reason}; it goes on at {}",
                        self.host
                    )),
                })
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

    /// Makes a deputy again of a process that could not become the program again.
    fn settle_again(&mut self, injection: vrun_shim::Injection, office: &Office<'_>) -> Result<(), HomeError> {
        office.desk.seat(None);
        let deputy = Deputy::settle(
            injection,
            self.arguments.clone(),
            Arc::clone(office.listener),
            self.courier.clone(),
        )
        .map_err(|error| HomeError::Lost(error.to_string()))?;
        office.desk.seat(Some(Arc::clone(&deputy)));
        self.deputy = deputy;
        Ok(())
    }
}

/// Why a job did not come home.
#[derive(Debug)]
pub enum HomeError {
    /// It goes on where it is.
    StillAway(ControlError),
    /// It ended first.
    Ended(vrun_remote_io::message::Exited),
    /// Nothing is left of it.
    Lost(String),
}

type Rebuilt = Result<Restored, (String, Option<Box<vrun_shim::Injection>>)>;

/// From the image on its way to the rebuilt process, which is held before its first instruction. On failure the process
/// is given back, if it was a deputy no more.
fn rebuild<F>(image: &mut ImageStream<F>, deputy: &Deputy, courier: &Courier, expected: (&str, i32)) -> Rebuilt
where
    F: FnMut() -> io::Result<Piece>,
{
    let early = |error: &dyn std::fmt::Display| (error.to_string(), None);
    let unreadable = |error: vrun_image::Error| early(&GuestError::from(error));
    let mut reader = Reader::new(image).map_err(unreadable)?;
    let mut job = match reader.next() {
        Ok(Record::Job(job)) => job,
        Ok(_) => return Err(early(&"the image begins with something else than a job")),
        Err(error) => return Err(unreadable(error)),
    };
    let [process] = job.processes.as_mut_slice() else {
        return Err(early(&"the image is not of one process"));
    };
    if (job.id.as_str(), process.pid) != expected {
        return Err(early(&"the image is of another job"));
    }
    // A guest that is frozen has made none, and the executor could not be retired from it.
    if courier.calls.load(Ordering::Relaxed) != 0 {
        return Err(early(&"a call of the guest is still under way"));
    }
    let injection = deputy.retire().map_err(|error| early(&error))?;
    // Neither can a signal be fetched any more: these are all that the guest did not get.
    process
        .signals
        .pending
        .extend(courier.kept().iter().map(|info| info.to_vec()));
    let tracee = injection.keep();
    let fallback = |error: String| match vrun_shim::Injection::begin(tracee) {
        Ok(injection) => (error, Some(Box::new(injection))),
        Err(_) => (error, None),
    };
    let build = || -> Result<Restored, GuestError> {
        let restorer = Restorer::begin(tracee, process, Home::Deputy)?;
        fill(&restorer, &mut reader)?;
        let rest = reader.into_inner();
        rest.expect_end()
            .map_err(|error| GuestError::Io("receive the image", error))?;
        Ok(restorer.finish(process, &[])?)
    };
    build().map_err(|error| fallback(error.to_string()))
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
