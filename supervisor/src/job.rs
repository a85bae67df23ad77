//! The supervisor of a job at its origin: one thread that alone waits for the job's processes (and traces them), a
//! thread at the notification door, and one for each client.
//!
//! ```text
//!   front ⇄ socket ─────┐
//!   SIGCHLD (signalfd) ─┤── main thread: one event after the other ──▶ front, clients, processes
//!   Event (mpsc + eventfd)
//!       ▲           ▲
//!     door        clients (crate::control)
//! ```
//!
//! Every signal is blocked in every thread. The supervisor is the subreaper of the job: what is orphaned in it becomes
//! its child, so that the job is over exactly when no child is left.

use crate::areas::Purpose;
use crate::attributes::usage;
use crate::away::{self, Away, Departure, HomeError, Identity, Incoming, Office, Ring, tell};
use crate::capture::{self, Outside};
use crate::config::Config;
use crate::control::{self, Content, ControlError, Moved, Outcome, Progress, Request, Role, State};
use crate::deputy::Desk;
use crate::front::{self, SupervisorSide, ToFront, ToSupervisor};
use crate::ipc::Ledger;
use crate::launch::{self, ProgramSpec};
use crate::notify::{AnswerError, Listener, Notification, RecvError};
use crate::policy::{self, Surroundings};
use crate::revive::{ReviveError, revive};
use crate::save::{self, Delivery, Saved};
use crate::terminal;
use crate::transfer::Piece;
use crate::vessel::Vessel;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::process::{WaitOptions, wait};
use std::collections::VecDeque;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use vrun_remote_io::message::{COMMAND_MAX, ExitStatus, Exited, Message, Offer, Stopped};
use vrun_shim::{Status, area};

/// How often it is looked whether somebody stops a deputy, and whether one has stopped that we stop.
const STOPS: Duration = Duration::from_millis(300);
const ABOUT_TO_STOP: Duration = Duration::from_millis(2);

/// What a supervisor begins with.
#[derive(Debug)]
pub enum Start {
    /// A program that is to be executed.
    Program(ProgramSpec),
    /// A saved job that is to be restored.
    Image(ImageSource),
}

/// A saved job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageSource {
    /// Absolute.
    pub path: PathBuf,
    /// `--with-files`: where a file of the job is missing, make it from the image.
    pub with_files: bool,
    /// `-d`: leave the terminal.
    pub detach: bool,
    /// Remove the image when the job runs: it was taken from the store.
    pub consume: bool,
}

/// What the main thread is told by the others.
#[derive(Debug)]
pub enum Event {
    /// A client asks. The answer goes through the channel; a client that is gone is no error.
    Request(Request, mpsc::Sender<Reply>),
    /// A client's thread wants to offer the job to a host: what is to be said of it?
    Describe(mpsc::Sender<Result<Offer, ControlError>>),
    /// That host has accepted.
    Depart(Box<Departure>, mpsc::Sender<Reply>),
    /// The same for storing.
    Deliver(Box<Delivery>, mpsc::Sender<Reply>),
    /// Something waits in [`Away::take`].
    Incoming,
}

/// An answer on its way to a client: any number of `Progress`, then `Done`.
#[derive(Debug)]
pub enum Reply {
    Progress(Progress),
    Done(Result<Outcome, ControlError>),
}

/// Where other threads put events.
#[derive(Clone, Debug)]
pub struct Mailbox {
    sender: mpsc::Sender<Event>,
    wake: Arc<OwnedFd>,
}

impl Mailbox {
    /// False: the main thread is gone.
    pub fn post(&self, event: Event) -> bool {
        self.sender.send(event).is_ok() && rustix::io::write(&*self.wake, &1u64.to_ne_bytes()).is_ok()
    }
}

impl Ring for Mailbox {
    fn ring(&self) {
        self.post(Event::Incoming);
    }
}

/// A start that failed: the exit status of the front, and what to say.
type Failure = (u8, String);

fn failed(what: &str) -> impl FnOnce(io::Error) -> Failure {
    move |error| (front::FAILED, format!("cannot {what}: {error}"))
}

/// The whole life of a supervisor process: start, supervise, end with the job. Returns its exit status.
pub fn supervise(start: Start, mut side: SupervisorSide) -> i32 {
    match Job::start(start, &mut side) {
        Ok(mut job) => {
            job.run(&mut side);
            0
        }
        Err((status, message)) => {
            side.tell(&ToFront::Failed { status, message });
            i32::from(status)
        }
    }
}

/// A job at its origin.
struct Job {
    id: String,
    command: String,
    started: u64,
    /// The first process.
    pid: i32,
    /// What the keeper of a restored job, who is our child in the first process's place, reports of it.
    reports: Option<OwnedFd>,
    /// Lists all processes of the job.
    lister: Box<dyn Fn() -> Vec<i32>>,
    /// It is a child that was not reaped: its PID is its own.
    alive: bool,
    /// By a signal.
    stopped: bool,
    identity: Identity,
    outside: Outside,
    config: Config,
    /// What it began with.
    began: Surroundings,
    ledger: Arc<Ledger>,
    mailbox: Mailbox,
    listener: Arc<Listener>,
    desk: Arc<Desk>,
    /// Where the body is, if it is not here.
    away: Option<Away>,
    /// When it is to be looked for stops next.
    look: Instant,
    /// Bytes in use when it was last looked at here.
    memory: u64,
    children: SignalFd,
    wake: Arc<OwnedFd>,
    events: mpsc::Receiver<Event>,
    /// The job's socket; removed with the job.
    _control: control::Server,
}

impl Job {
    fn start(start: Start, side: &mut SupervisorSide) -> Result<Job, Failure> {
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
            .map_err(|error| failed("become the reaper of the job")(error.into()))?;
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGCHLD);
        let children = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .map_err(|error| failed("watch the job's processes")(error.into()))?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| failed("make an event descriptor")(error.into()))?;
        let (sender, events) = mpsc::channel();
        let mailbox = Mailbox {
            sender,
            wake: Arc::new(wake),
        };

        let launch_failed = |error: launch::LaunchError| (error.exit_status(), error.to_string());
        let revive_failed = |error: ReviveError| (error.exit_status(), error.to_string());
        // Its end: the program is executed, or the restored job is let go, when everything here can serve it.
        let begin: Box<dyn FnOnce() -> Result<Option<Vessel>, Failure>>;
        let (pid, listener, identity, keeper, outside, began, ledger);
        match start {
            Start::Program(program) => {
                let (launching, its_listener) = launch::launch(&program, side.inherited).map_err(launch_failed)?;
                (pid, listener, keeper) = (launching.pid, its_listener, None);
                outside = Outside::of(pid).map_err(|error| (front::FAILED, error.to_string()))?;
                began = Surroundings::of(std::process::id() as i32, true);
                ledger = Ledger::of(pid);
                identity = Identity {
                    id: side.id.to_string(),
                    name: side.name.clone(),
                    command: program.command(),
                };
                begin = Box::new(move || launching.finish().map(|_| None).map_err(launch_failed));
            }
            Start::Image(source) => {
                let revived = revive(&source, &side.config).map_err(revive_failed)?;
                for note in revived.notes() {
                    eprintln!("vctl: {note}");
                }
                identity = Identity {
                    id: side.id.to_string(),
                    name: side.name.clone().or_else(|| revived.job.name.clone()),
                    command: revived.job.command.clone(),
                };
                (pid, keeper) = (revived.vessel.pid, Some(revived.vessel.keeper));
                // In the namespace of the job, what is outside of it has no number.
                outside = Outside::default();
                began = Surroundings::of(pid, false);
                ledger = Ledger::of(pid);
                ledger.inherit(&revived.job, &revived.pids());
                let (its_listener, rest) = revived.split();
                listener = its_listener;
                begin = Box::new(move || {
                    let vessel = rest.run().map_err(revive_failed)?;
                    if source.consume
                        && let Err(error) = fs::remove_file(&source.path)
                    {
                        tracing::warn!("cannot remove {}: {error}", source.path.display());
                    }
                    Ok(Some(vessel))
                });
            }
        }
        // The program has its copies of the shell's descriptors; from here on there may be threads.
        side.leave().map_err(failed("leave the terminal"))?;
        let (listener, desk) = (Arc::new(listener), Arc::new(Desk::default()));
        let ledger = Arc::new(ledger);
        let (door, seat, book) = (Arc::clone(&listener), Arc::clone(&desk), Arc::clone(&ledger));
        thread::Builder::new()
            .name("door".into())
            .spawn(move || serve_door(&door, &seat, &book))
            .map_err(failed("start a thread"))?;
        let client_mailbox = mailbox.clone();
        let client_config = side.config.clone();
        let handler =
            move |request, progress: &mut dyn FnMut(Progress)| ask(&client_mailbox, &client_config, request, progress);
        // Before the program can say anything: who reads its output may ask for it at once.
        let control = control::serve(&side.config, &side.id, Arc::new(handler))
            .map_err(|error| (front::FAILED, error.to_string()))?;
        let reports = match begin()? {
            Some(vessel) => Some(vessel.reports.try_clone().map_err(failed("copy a descriptor"))?),
            None => None,
        };
        side.tell(&ToFront::Running { pid });
        let words: Vec<_> = identity
            .command
            .iter()
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .collect();
        Ok(Job {
            id: side.id.to_string(),
            command: words.join(" "),
            started: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |time| time.as_secs()),
            pid,
            reports,
            lister: Box::new(move || processes(pid, keeper)),
            alive: true,
            stopped: false,
            identity,
            outside,
            config: side.config.clone(),
            began,
            ledger,
            listener,
            desk,
            away: None,
            look: Instant::now(),
            memory: 0,
            children,
            wake: Arc::clone(&mailbox.wake),
            mailbox,
            events,
            _control: control,
        })
    }

    /// Until no process of the job is left.
    fn run(&mut self, side: &mut SupervisorSide) {
        loop {
            if !self.reap(side) {
                return;
            }
            let wake = Arc::clone(&self.wake);
            let mut fds = vec![
                PollFd::new(&self.children, PollFlags::IN),
                PollFd::new(&*wake, PollFlags::IN),
            ];
            fds.extend(
                side.socket()
                    .map(|socket| PollFd::from_borrowed_fd(socket, PollFlags::IN)),
            );
            // The ends of deputies whose parents are deputies too.
            let members = self.away.iter().flat_map(|away| &away.members);
            fds.extend(members.map(|member| PollFd::new(&member.end, PollFlags::IN)));
            let patience = self.away.as_ref().map(|_| {
                let left = self.look.saturating_duration_since(Instant::now());
                rustix::event::Timespec {
                    tv_sec: 0,
                    tv_nsec: left.subsec_nanos().into(),
                }
            });
            match poll(&mut fds, patience.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return tracing::error!("cannot wait for events: {error}"),
            }
            let front = side.socket().is_some() && fds.get(2).is_some_and(|fd| !fd.revents().is_empty());
            // Emptied before looking, so that what comes in between wakes us again.
            while let Ok(Some(_)) = self.children.read_signal() {}
            let _ = rustix::io::read(&*wake, &mut [0; 8]);
            // The kernel tells nobody of a stop that has begun.
            if let Some(away) = &self.away
                && self.look <= Instant::now()
            {
                let patience = if away.complete_stops() { ABOUT_TO_STOP } else { STOPS };
                self.look = Instant::now() + patience;
            }
            if front && let Some(message) = side.receive() {
                self.obey(message);
            }
            while let Ok(event) = self.events.try_recv() {
                self.handle(event, side);
            }
            self.hear();
        }
    }

    /// Takes note of every process that has stopped, gone on or ended. False: none is left.
    fn reap(&mut self, side: &mut SupervisorSide) -> bool {
        // `__WALL`: children of every kind, also those made with another exit signal.
        // `__WNOTHREAD`: not what the ushers trace (crate::deputy).
        let all = WaitOptions::from_bits_retain((libc::__WALL | libc::__WNOTHREAD) as u32);
        let mut first_ended = None;
        let left = loop {
            match wait(WaitOptions::NOHANG | WaitOptions::UNTRACED | WaitOptions::CONTINUED | all) {
                Ok(Some((pid, status))) if pid.as_raw_nonzero().get() == self.pid => {
                    first_ended = self.note(status.as_raw(), side).or(first_ended);
                }
                Ok(Some((pid, status))) => {
                    if let Status::Stopped(signal) | Status::Event { signal, .. } = Status::from_raw(status.as_raw()) {
                        self.deputy_stopped(pid.as_raw_pid(), signal);
                    }
                }
                Ok(None) => break true,
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::CHILD) => break false,
                Err(error) => {
                    tracing::error!("cannot wait for the job's processes: {error}");
                    break false;
                }
            }
        };
        while let Some(report) = self.report() {
            first_ended = self.note(report, side).or(first_ended);
        }
        self.miss_deputies();
        if let Some(status) = first_ended {
            side.tell(&ToFront::Exited { status, over: !left });
        }
        left
    }

    /// A process of a job that is away was stopped here.
    fn deputy_stopped(&self, pid: i32, signal: i32) {
        let Some(away) = &self.away else { return };
        if let Some(member) = away.members.iter().find(|member| member.deputy.pid() == pid) {
            let process = member.deputy.process();
            away.deputy_stopped(Stopped { process, signal });
        }
    }

    /// Deputies that have ended, though their processes had not: they were killed, and so are those.
    fn miss_deputies(&mut self) {
        let Some(away) = &mut self.away else { return };
        let ended = |member: &&away::Member| {
            let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
            matches!(poll(&mut [PollFd::new(&member.end, PollFlags::IN)], Some(&now)), Ok(1))
        };
        let missing: Vec<i32> = away
            .members
            .iter()
            .filter(ended)
            .map(|member| member.deputy.process())
            .collect();
        for process in missing {
            away.remove(process, &self.desk);
            // Harmless if that host is gone.
            let _ = away
                .sender
                .send(&Message::Signal(vrun_remote_io::message::Signal::kill(process)));
        }
        self.over_away();
    }

    /// The last process of the guest has ended.
    fn over_away(&mut self) {
        if let Some(away) = self.away.take_if(|away| away.members.is_empty()) {
            let _ = away.sender.send(&Message::Kill);
            let _ = away.sender.send(&Message::Bye);
        }
    }

    /// What the keeper of a restored job reports of the first process, if anything: a wait status.
    fn report(&mut self) -> Option<i32> {
        let reports = self.reports.as_ref()?;
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        if !matches!(poll(&mut [PollFd::new(reports, PollFlags::IN)], Some(&now)), Ok(1)) {
            return None;
        }
        let report = Vessel::report(reports.as_fd());
        if report.is_none() {
            self.reports = None; // the keeper has gone
        }
        report.map(|report| report.raw_status)
    }

    /// The first process changed its state; its wait status if it ended.
    fn note(&mut self, raw: i32, side: &mut SupervisorSide) -> Option<i32> {
        match Status::from_raw(raw) {
            Status::Stopped(signal) | Status::Event { signal, .. } => {
                self.stopped = true;
                self.deputy_stopped(self.pid, signal);
                side.tell(&ToFront::Stopped { pid: self.pid, signal });
            }
            Status::Continued => {
                self.stopped = false;
                side.continue_front();
            }
            Status::Exited(_) | Status::Killed { .. } => {
                self.alive = false;
                return Some(raw);
            }
        }
        None
    }

    fn obey(&self, message: ToSupervisor) {
        let (number, value) = match message {
            ToSupervisor::Signal { number, value } => (number, value),
            // A shell continues the whole group, so mostly it goes on already: a second SIGCONT would be seen.
            ToSupervisor::Continue if front::is_stopped(self.pid) => (libc::SIGCONT, None),
            ToSupervisor::Continue => return,
        };
        if self.alive
            && let Err(error) = launch::send_signal(self.pid, number, value)
        {
            tracing::warn!("cannot send signal {number} to {}: {error}", self.pid);
        }
    }

    fn handle(&mut self, event: Event, side: &mut SupervisorSide) {
        match event {
            Event::Request(request, client) => {
                let result = match request {
                    Request::Status { verdict } => Ok(Outcome::Status(Box::new(self.status(verdict)))),
                    Request::Kill { signal } => self.kill(signal),
                    Request::Home => self.come_home().map(Outcome::Moved),
                    Request::Save {
                        path,
                        keep_running,
                        content,
                    } => self.save(&path, keep_running, content, side),
                    Request::Stats => self.statistics(),
                    Request::Migrate { .. } | Request::Send { .. } => {
                        Err(ControlError::refused("a client's thread has to find the host first"))
                    }
                };
                let _ = client.send(Reply::Done(result));
            }
            Event::Describe(client) => {
                let _ = client.send(self.describe());
            }
            Event::Depart(departure, client) => {
                let _ = client.send(Reply::Done(self.depart(*departure)));
            }
            Event::Deliver(delivery, client) => {
                let _ = client.send(Reply::Done(self.deliver(*delivery, side)));
            }
            Event::Incoming => {}
        }
    }

    /// All processes of the job, the first one first.
    fn processes(&self) -> Vec<i32> {
        (self.lister)()
    }

    /// Why the job cannot be moved or saved now.
    fn verdict(&self) -> Result<(), String> {
        if !self.alive {
            return Err("its first process has ended".to_owned());
        }
        if let Some(away) = &self.away {
            // It was found to be movable, and away it can do nothing that changes that.
            return match &away.lost {
                Some(reason) => Err(format!("{} is lost: {reason}; end the job with vctl kill", away.host)),
                None => Ok(()),
            };
        }
        let processes = self.processes();
        policy::verdict(&processes, &self.began)?;
        self.ledger.verdict(&processes, Purpose::Move)?;
        capture::verdict(&processes, Purpose::Move)
    }

    /// The manifest of the job.
    fn describe(&mut self) -> Result<Offer, ControlError> {
        self.verdict()
            .map_err(|reason| ControlError::refused(format!("the job cannot be moved now: {reason}")))?;
        let status = self.status(false);
        let pids = self.processes();
        if self.away.is_none() {
            self.memory = status.memory_bytes;
        }
        let system = rustix::system::uname();
        let cpu = crate::cpu::features(&self.config.hidden_cpu_features())
            .map_err(|error| ControlError::refused(format!("cannot read the CPU's features: {error}")))?;
        Ok(Offer {
            job: self.id.clone(),
            name: self.identity.name.clone(),
            command: clip_command(&self.command),
            processes: pids.len() as u32,
            threads: pids
                .iter()
                .map(|pid| entries(&format!("/proc/{pid}/task")) as u32)
                .sum(),
            memory: self.memory,
            cpu_flags: cpu.flags,
            kernel: system.release().to_string_lossy().into_owned(),
            architecture: system.machine().to_string_lossy().into_owned(),
            pid: crate::proc::ProcDir::open(self.pid)
                .and_then(|directory| directory.status())
                .ok()
                .and_then(|status| status.namespace_pids.last().copied())
                .unwrap_or(self.pid),
            dry_run: false,
        })
    }

    fn office(&self) -> Office<'_> {
        Office {
            config: &self.config,
            identity: &self.identity,
            listener: &self.listener,
            desk: &self.desk,
            outside: self.outside,
            ledger: &self.ledger,
            ring: Arc::new(self.mailbox.clone()),
            processes: self.lister.as_ref(),
        }
    }

    /// Goes to a host that has accepted; from another one, by way of home.
    fn depart(&mut self, departure: Departure) -> Result<Outcome, ControlError> {
        if let Some(away) = &self.away {
            if departure.leads_to(away) {
                return Err(ControlError::refused(format!("the job is at {} already", away.host)));
            }
            self.come_home()?;
        }
        self.verdict()
            .map_err(|reason| ControlError::refused(format!("the job cannot be moved now: {reason}")))?;
        let (away, moved) = away::depart(departure, &self.office())?;
        tracing::info!(host = away.host, "the job is away");
        self.away = Some(away);
        Ok(Outcome::Moved(moved))
    }

    fn come_home(&mut self) -> Result<Moved, ControlError> {
        let Some(mut away) = self.away.take() else {
            return Err(ControlError::refused("the job is at home"));
        };
        match away.bring_home(&self.office()) {
            Ok(moved) => {
                tracing::info!("the job is home");
                Ok(moved)
            }
            Err(HomeError::StillAway(error)) => {
                self.away = Some(away);
                Err(error)
            }
            Err(HomeError::Ended(exited)) => {
                self.away = Some(away);
                exited.iter().for_each(|exited| self.guest_ended(exited));
                Err(ControlError::refused("the job has just ended"))
            }
            Err(HomeError::Lost(reason)) => {
                let _ = launch::send_signal(self.pid, libc::SIGKILL, None);
                Err(ControlError::refused(format!("the job is lost: {reason}")))
            }
        }
    }

    /// What the guest's host has said.
    fn hear(&mut self) {
        while let Some(incoming) = self.away.as_mut().and_then(Away::take) {
            match incoming {
                Incoming::Piece(Piece::Said(Message::Exited(exited))) => self.guest_ended(&exited),
                Incoming::Piece(Piece::Said(Message::GuestStopped(stopped))) => {
                    away::guest_stopped(stopped, &self.desk);
                    self.look = Instant::now();
                }
                Incoming::Piece(Piece::Said(Message::GoHome(reason))) => {
                    tracing::info!("the guest asks to come home: {}", reason.reason);
                    if let Err(error) = self.come_home() {
                        tracing::error!("{error}");
                    }
                }
                Incoming::Piece(Piece::Said(Message::GuestContinued(_))) => {}
                Incoming::Piece(other) => tracing::warn!("unexpected from the guest's host: {other:?}"),
                Incoming::Lost(reason) => {
                    if let Some(away) = &mut self.away {
                        tracing::error!("{} is lost: {reason}", away.host);
                        away.lost = Some(reason);
                    }
                }
            }
        }
        // The deputies of a job that is lost have every signal blocked, and nobody to hand them to.
        if let Some(number) = self.away.as_mut().and_then(Away::fatal_signal) {
            let members = self.away.iter().flat_map(|away| &away.members);
            let processes: Vec<i32> = members.map(|member| member.deputy.process()).collect();
            for process in processes {
                self.guest_ended(&Exited {
                    process,
                    status: ExitStatus::Signal { number, core: false },
                    user_us: 0,
                    system_us: 0,
                });
            }
        }
    }

    /// A process of the guest has ended: its deputy, which the shell or its parent knows, ends in the same way.
    fn guest_ended(&mut self, exited: &Exited) {
        if let Some(away) = &mut self.away {
            away.end_one(exited, &self.desk);
        }
        self.over_away();
    }

    fn save(
        &mut self,
        path: &Path,
        keep_running: bool,
        content: Content,
        side: &mut SupervisorSide,
    ) -> Result<Outcome, ControlError> {
        self.at_home()?;
        let saved = save::to_file(&|| self.processes(), path, content, &self.office())?;
        let bytes = saved.bytes;
        if keep_running {
            saved.frozen.release()?;
        } else {
            end_here(saved, format!("saved to {}", path.display()), side)?;
        }
        Ok(Outcome::Saved {
            path: path.to_owned(),
            bytes,
        })
    }

    fn deliver(&mut self, delivery: Delivery, side: &mut SupervisorSide) -> Result<Outcome, ControlError> {
        if self.away.is_some() {
            self.come_home()?;
        }
        self.at_home()?;
        let host = delivery.host.clone();
        let (id, saved) = save::to_host(&|| self.processes(), delivery, &self.office())?;
        let bytes = saved.bytes;
        end_here(saved, format!("stored at {host} as {id}"), side)?;
        Ok(Outcome::Stored { id, bytes })
    }

    fn at_home(&self) -> Result<(), ControlError> {
        if let Some(away) = &self.away {
            let host = &away.host;
            let advice = format!("the job is at {host}; bring it home first (vmigrate {} home)", self.id);
            return Err(ControlError::refused(advice));
        }
        let verdict = if self.alive {
            let processes = self.processes();
            policy::verdict(&processes, &self.began)
                .and_then(|()| self.ledger.verdict(&processes, Purpose::Save))
                .and_then(|()| capture::verdict(&processes, Purpose::Save))
        } else {
            Err("its first process has ended".to_owned())
        };
        verdict.map_err(|reason| ControlError::refused(format!("the job cannot be saved now: {reason}")))
    }

    fn statistics(&self) -> Result<Outcome, ControlError> {
        let counters = self
            .away
            .as_ref()
            .map(|away| away.sender.counters())
            .unwrap_or_default();
        Ok(Outcome::Stats(serde_json::json!({
            "schema": 1,
            "id": self.id,
            "host": self.away.as_ref().map(|away| away.host.clone()),
            "bytes_sent": counters.sent,
            "bytes_received": counters.received,
        })))
    }

    fn kill(&self, signal: i32) -> Result<Outcome, ControlError> {
        if let Some(away) = self.away.as_ref().filter(|away| away.lost.is_some())
            && signal != libc::SIGKILL
            && !away::ENDING.contains(&signal)
        {
            let host = &away.host;
            let advice = format!(
                "{host} is lost, and the program with it; end what is left with `vctl kill {}`",
                self.id
            );
            return Err(ControlError::refused(advice));
        }
        let targets = if self.alive {
            vec![self.pid]
        } else {
            children_of(rustix::process::getpid().as_raw_pid())
        };
        for pid in targets {
            launch::send_signal(pid, signal, None).map_err(|error| {
                ControlError::refused(format!("cannot send signal {signal} to process {pid}: {error}"))
            })?;
        }
        Ok(Outcome::Done)
    }

    fn status(&self, verdict: bool) -> control::Status {
        let pids = self.processes();
        let state = match (&self.away, self.stopped) {
            (_, true) => State::Stopped,
            (Some(_), false) => State::Away,
            (None, false) => State::Running,
        };
        control::Status {
            id: self.id.clone(),
            name: self.identity.name.clone(),
            command: self.command.clone(),
            state,
            role: Role::Job,
            host: self.away.as_ref().map(|away| away.host.clone()),
            pid: self.pid,
            memory_bytes: pids.iter().map(|pid| resident_bytes(*pid)).sum(),
            descriptors: pids.iter().map(|pid| entries(&format!("/proc/{pid}/fd"))).sum(),
            pids,
            started: self.started,
            not_migratable: if verdict { self.verdict().err() } else { None },
        }
    }
}

/// Its image is safe: the job ends here, and the front says where it is.
fn end_here(saved: Saved, note: String, side: &mut SupervisorSide) -> Result<(), ControlError> {
    let foreground = terminal::holder(&saved.frozen.processes).is_ok_and(|holder| holder.is_some());
    side.end(note, foreground);
    saved
        .end()
        .map_err(|error| ControlError::refused(format!("cannot end the job: {error}")))
}

/// A client's thread: finds the host that the request is about, hands it to the main thread and waits for what comes of it.
fn ask(
    mailbox: &Mailbox,
    config: &Config,
    request: Request,
    progress: &mut dyn FnMut(Progress),
) -> Result<Outcome, ControlError> {
    match request {
        Request::Migrate { post_copy: true, .. } => Err(ControlError::refused(
            "this version cannot start a job before all of its memory is there (--post-copy)",
        )),
        Request::Migrate { host, check, .. } => {
            tell(progress, format!("asking {host}"));
            let mut offer = describe(mailbox)?;
            offer.dry_run = check;
            let departure = away::offer(config, &host, offer.clone())?;
            if check {
                departure.cancel(config);
                return Ok(away::check_outcome(&host, &offer));
            }
            tell(progress, format!("moving to {host}"));
            post(mailbox, |client| Event::Depart(Box::new(departure), client), progress)
        }
        Request::Send { host } => {
            tell(progress, format!("asking {host}"));
            let delivery = save::offer(config, &host, describe(mailbox)?)?;
            tell(progress, format!("sending to {host}"));
            post(mailbox, |client| Event::Deliver(Box::new(delivery), client), progress)
        }
        other => post(mailbox, |client| Event::Request(other, client), progress),
    }
}

fn describe(mailbox: &Mailbox) -> Result<Offer, ControlError> {
    let (sender, answer) = mpsc::channel();
    mailbox.post(Event::Describe(sender));
    answer
        .recv()
        .unwrap_or_else(|_| Err(ControlError::refused("the job has just ended")))
}

fn post(
    mailbox: &Mailbox,
    event: impl FnOnce(mpsc::Sender<Reply>) -> Event,
    progress: &mut dyn FnMut(Progress),
) -> Result<Outcome, ControlError> {
    let (sender, replies) = mpsc::channel();
    if mailbox.post(event(sender)) {
        for reply in replies {
            match reply {
                Reply::Progress(text) => progress(text),
                Reply::Done(result) => return result,
            }
        }
    }
    Err(ControlError::refused("the job has just ended"))
}

/// The door's thread: answers tracked calls until the last process of the job has ended.
fn serve_door(listener: &Listener, desk: &Desk, ledger: &Ledger) {
    loop {
        let answered = match listener.recv(None) {
            Ok(notification) if desk.door(&notification) => continue,
            Ok(notification) => answer(listener, &notification, ledger),
            Err(RecvError::Ended) => return,
            Err(RecvError::Io(error)) => return tracing::error!("the notification door is stuck: {error}"),
        };
        if let Err(AnswerError::Io(error)) = answered {
            tracing::error!("cannot answer a tracked call: {error}");
        }
    }
}

fn answer(listener: &Listener, notification: &Notification, ledger: &Ledger) -> Result<(), AnswerError> {
    match notification.number {
        // As without us.
        area::VRUN_NEXT | area::VRUN_SIGNAL => listener.fail(notification.id, libc::ENOSYS),
        _ if usage::answer(listener, notification)? => Ok(()),
        _ if policy::answer(listener, notification)? => Ok(()),
        _ if ledger.answer(listener, notification)? => Ok(()),
        _ => listener.resume(notification.id),
    }
}

/// A command line short enough to be said.
fn clip_command(command: &str) -> String {
    let mut command = command.replace(char::is_control, " ");
    command.truncate(command.floor_char_boundary(COMMAND_MAX));
    command
}

/// All processes of the job, each after its parent, `first` as early as can be; those that were orphaned are the last. Not
/// the `keeper`, who is none of them.
fn processes(first: i32, keeper: Option<i32>) -> Vec<i32> {
    let own = rustix::process::getpid().as_raw_pid();
    let mut found: Vec<i32> = Vec::new();
    let mut parents = VecDeque::from([own]);
    while let Some(parent) = parents.pop_front() {
        let mut children = children_of(parent);
        children.sort_by_key(|child| *child != first);
        children.retain(|child| !found.contains(child));
        found.extend(&children);
        parents.extend(children);
    }
    found.retain(|pid| Some(*pid) != keeper);
    found
}

/// Children of all threads of a process: proc_pid_task_children(5).
fn children_of(pid: i32) -> Vec<i32> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    let children = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("children")).ok());
    children
        .flat_map(|list| list.split(' ').filter_map(|pid| pid.parse().ok()).collect::<Vec<i32>>())
        .collect()
}

fn entries(directory: &str) -> u64 {
    fs::read_dir(directory).map_or(0, |entries| entries.count() as u64)
}

/// The second number of `/proc/PID/statm`, in pages.
fn resident_bytes(pid: i32) -> u64 {
    let pages = fs::read_to_string(format!("/proc/{pid}/statm"))
        .ok()
        .and_then(|statm| statm.split(' ').nth(1)?.parse::<u64>().ok());
    pages.unwrap_or(0) * rustix::param::page_size() as u64
}
