//! A job that arrives: the host's side of the protocol, in the session process that the daemon made for the connection.
//!
//! ```text
//!   Offer ─► judge: CPU features, memory ─► Accept, Refuse
//!   ImageData… ─► guest::build (vessel, restorer, contents) ─► Prepared, Failed
//!   Commit ─► guest::run ─► Running; from here on this process is the guest's supervisor
//! ```

use crate::config::{Config, JobId};
use crate::control::{self, ControlError, ErrorCode, Moved, Outcome, Request, Role, State, Status};
use crate::guest::{self, Facts, GuestError, Mailbox};
use crate::peers;
use crate::proc::ProcDir;
use std::io::{self, Read};
use std::sync::{Arc, mpsc};
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use vrun_image::state::CpuFeatures;
use vrun_remote_io::channel::{Frame, Receiver, Sender};
use vrun_remote_io::message::{Message, Offer, Reason, Refuse, RefuseCode, Running, clip};

/// Memory that must stay free beside a guest.
const RESERVE: u64 = 32 << 20;
/// Bytes of an image after which that is looked at again.
const LOOK: u64 = 16 << 20;

impl From<GuestError> for ControlError {
    fn from(error: GuestError) -> Self {
        Self::new(ErrorCode::RolledBack, error.to_string())
    }
}

/// Takes a job in and runs it to its end. Call it while this process has one thread.
pub fn receive_job(config: &Config, sender: Sender, mut receiver: Receiver) -> Result<(), ControlError> {
    let peer = receiver.peer().name.clone();
    let offer = match receiver.recv_deadline(Instant::now() + config.timeouts.answer)? {
        Frame::Message(Message::Offer(offer)) => offer,
        other => return Err(peers::out_of_place(&peer, &other)),
    };
    if let Some(refusal) = judge(config, &offer)? {
        sender.send(&Message::Refuse(refusal))?;
        crate::deliver::say_bye(config, &sender, &mut receiver);
        return Ok(());
    }
    sender.send(&Message::Accept)?;
    if offer.dry_run {
        crate::deliver::say_bye(config, &sender, &mut receiver);
        return Ok(());
    }
    let mut stream = guest::stream(&mut receiver, config.timeouts.answer);
    let built = guest::build(Rationed::new(&mut stream)).and_then(|built| {
        stream
            .expect_end()
            .map_err(|error| GuestError::Io("receive the image", error))?;
        let job = built.job();
        if (job.id.as_str(), job.processes[0].pid) != (offer.job.as_str(), offer.pid) {
            let said = |id: &str, pid| format!("{id} (process {pid})");
            let (is, offered) = (said(&job.id, job.processes[0].pid), said(&offer.job, offer.pid));
            return Err(GuestError::OtherJob(is, offered));
        }
        Ok(built)
    });
    let gave_up = matches!(stream.interruption, Some(Message::Bye));
    drop(stream);
    let built = match built {
        Ok(built) => built,
        Err(_) if gave_up => return Ok(()), // the origin changed its mind while freezing
        Err(error) => {
            sender.send(&Message::Failed(Reason {
                reason: clip(error.to_string()),
            }))?;
            crate::deliver::say_bye(config, &sender, &mut receiver);
            return Err(error.into());
        }
    };
    let complete = Instant::now();
    sender.send(&Message::Prepared)?;
    match receiver.recv_deadline(Instant::now() + config.timeouts.answer)? {
        Frame::Message(Message::Commit) => {}
        other => return Err(peers::out_of_place(&peer, &other)), // dropping `built` ends it
    }

    let id = JobId::generate().map_err(|error| ControlError::refused(format!("cannot make an id: {error}")))?;
    let replies = sender.clone();
    let started = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs());
    let result = guest::run(built, sender, receiver, |facts, mailbox| {
        let handler =
            move |request, _: &mut dyn FnMut(control::Progress)| answer(&facts, &mailbox, request, &peer, started);
        let server = control::serve(config, &id, Arc::new(handler))
            // The origin can still be asked everything.
            .inspect_err(|error| tracing::warn!("{error}"))
            .ok();
        let elapsed_ns = complete.elapsed().as_nanos() as u64;
        if let Err(error) = replies.send(&Message::Running(Running { elapsed_ns })) {
            tracing::warn!("cannot tell the origin: {error}");
        }
        server
    });
    Ok(result?)
}

/// An image that may not use up this host's memory, whatever the offer said of it.
struct Rationed<R> {
    image: R,
    read: u64,
    look_at: u64,
}

impl<R> Rationed<R> {
    fn new(image: R) -> Self {
        Self {
            image,
            read: 0,
            look_at: LOOK,
        }
    }
}

impl<R: Read> Read for Rationed<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.read >= self.look_at {
            self.look_at = self.read + LOOK;
            if available_memory() < RESERVE {
                return Err(io::Error::other("this host has no memory left for it"));
            }
        }
        let taken = self.image.read(out)?;
        self.read += taken as u64;
        Ok(taken)
    }
}

/// Why this host cannot take the job.
fn judge(config: &Config, offer: &Offer) -> Result<Option<Refuse>, ControlError> {
    let refuse = |code, reason: String| {
        Ok(Some(Refuse {
            code,
            reason: clip(reason),
        }))
    };
    if offer.architecture != std::env::consts::ARCH {
        let reason = format!(
            "the job is for {}, this host is {}",
            offer.architecture,
            std::env::consts::ARCH
        );
        return refuse(RefuseCode::Incompatible, reason);
    }
    let here = crate::cpu::features(&config.hidden_cpu_features())
        .map_err(|error| ControlError::refused(format!("cannot read the CPU's features: {error}")))?;
    let needed = CpuFeatures {
        flags: offer.cpu_flags.clone(),
        ..CpuFeatures::default()
    };
    let missing = crate::cpu::missing(&needed, &here);
    if !missing.is_empty() {
        let list = missing.join(", ");
        let reason = format!("the program may be using CPU features that this host lacks: {list}");
        return refuse(RefuseCode::Incompatible, reason);
    }
    let free = available_memory();
    if free < offer.memory.saturating_add(RESERVE) {
        let reason = format!(
            "the job needs {} MiB of memory, {} MiB are free",
            offer.memory >> 20,
            free >> 20
        );
        return refuse(RefuseCode::Full, reason);
    }
    Ok(None)
}

/// `MemAvailable` of `/proc/meminfo`, in bytes.
fn available_memory() -> u64 {
    use procfs::Current;
    procfs::Meminfo::current()
        .ok()
        .and_then(|memory| memory.mem_available)
        .unwrap_or(u64::MAX)
}

/// What a guest's control socket answers.
fn answer(
    facts: &Facts,
    mailbox: &Mailbox,
    request: Request,
    origin: &str,
    started: u64,
) -> Result<Outcome, ControlError> {
    match request {
        Request::Status { .. } => Ok(Outcome::Status(Box::new(status(facts, origin, started)))),
        Request::Home => {
            let asked = Instant::now();
            let (reply, answer) = mpsc::channel();
            mailbox.post(guest::Event::Home(reply));
            match answer.recv() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(ControlError::new(ErrorCode::Unreachable, error)),
                Err(_) => return Err(ControlError::refused("the guest has just ended")),
            }
            // The main thread drops what it holds of us when the guest has gone home, and answers if it could not.
            match answer.recv() {
                Ok(Err(error)) => Err(ControlError::new(ErrorCode::RolledBack, error)),
                _ => {
                    let total_us = asked.elapsed().as_micros() as u64;
                    Ok(Outcome::Moved(Moved {
                        bytes: 0,
                        total_us,
                        downtime_us: total_us,
                    }))
                }
            }
        }
        Request::Kill { signal } => {
            mailbox.post(guest::Event::Kill(signal));
            Ok(Outcome::Done)
        }
        Request::Stats => Ok(Outcome::Stats(
            serde_json::json!({ "schema": 1, "calls": facts.door.statistics() }),
        )),
        Request::Save { .. } | Request::Send { .. } | Request::Migrate { .. } => {
            let advice = format!("this is a guest of {origin}; ask there, or bring it home first (vmigrate ID home)");
            Err(ControlError::refused(advice))
        }
    }
}

fn status(facts: &Facts, origin: &str, started: u64) -> Status {
    let command: Vec<_> = facts
        .job
        .command
        .iter()
        .map(|word| String::from_utf8_lossy(word))
        .collect();
    let resident = |pid: &i32| {
        let status = ProcDir::open(*pid).and_then(|directory| directory.status());
        status.map_or(0, |status| status.resident)
    };
    Status {
        id: facts.job.id.clone(),
        name: facts.job.name.clone(),
        command: command.join(" "),
        state: State::Running,
        role: Role::Guest,
        host: Some(origin.to_owned()),
        pid: facts.job.processes[0].pid,
        memory_bytes: facts.pids.iter().map(resident).sum(),
        pids: facts.pids.clone(),
        descriptors: 0,
        started,
        not_migratable: Some(format!("it is a guest of {origin}, which decides where it goes")),
    }
}
