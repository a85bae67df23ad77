//! Storing an image in another host's daemon: both roles of it, side by side.
//!
//! ```text
//! origin                                    host
//!   Offer      what the job is and needs ─▶  judged before anything is written
//!   ImageData… ImageEnd ─────────────────▶  checked as it is read, written to a file without a name
//!              ◀──────────────────────────  Stored{id}, or Failed{reason} and nothing is left
//! ```

use crate::config::{Config, JobId};
use crate::control::{ControlError, ErrorCode, Outcome, Progress};
use crate::peers;
use crate::store::Incoming;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, Write};
use std::path::Path;
use std::time::Instant;
use vrun_image::format::{Reader, Record};
use vrun_image::state::Job;
use vrun_remote_io::channel::{Frame, Receiver, Sender};
use vrun_remote_io::frame::BULK_MAX;
use vrun_remote_io::message::{
    BulkKind, COMMAND_MAX, ImageEnd, Message, Offer, Purpose, Reason, Refuse, RefuseCode, Stored, clip,
};

/// Sends the image in the file at `path` to be stored at `host`.
pub fn send_image(
    config: &Config,
    path: &Path,
    host: &str,
    progress: &mut dyn FnMut(Progress),
) -> Result<Outcome, ControlError> {
    let unreadable = |error: io::Error| ControlError::refused(format!("{}: {error}", path.display()));
    let mut file = File::open(path).map_err(unreadable)?;
    // All of it is read here first: a damaged image is this host's to find, before another is troubled.
    let bad = |error| ControlError::new(ErrorCode::Incompatible, format!("{}: {error}", path.display()));
    let offer = offer_of(&file).map_err(bad)?;
    check(&mut file).map_err(bad)?;
    file.rewind().map_err(unreadable)?;
    let (sender, mut receiver) = peers::offer(config, host, Purpose::Store, offer)?;
    let mut buffer = vec![0; BULK_MAX.min(1 << 20)];
    let mut bytes = 0;
    loop {
        let length = file.read(&mut buffer).map_err(unreadable)?;
        if length == 0 {
            break;
        }
        sender.send_bulk(BulkKind::ImageData, &buffer[..length])?;
        bytes += length as u64;
        progress(Progress {
            text: format!("sending to {host}: {} MiB", bytes >> 20),
        });
    }
    sender.send(&Message::ImageEnd(ImageEnd { bytes }))?;
    let answer = receiver.recv_deadline(Instant::now() + config.timeouts.answer)?;
    let result = match answer {
        Frame::Message(Message::Stored(Stored { id })) => Ok(Outcome::Stored { id, bytes }),
        Frame::Message(Message::Failed(Reason { reason })) => Err(ControlError::new(
            ErrorCode::RolledBack,
            format!("{host} could not store the image: {reason}"),
        )),
        other => Err(peers::out_of_place(host, &other)),
    };
    say_bye(config, &sender, &mut receiver);
    result
}

/// The orderly end of a connection: both say `Bye`, and what the other still had to say is read first.
pub fn say_bye(config: &Config, sender: &Sender, receiver: &mut Receiver) {
    let until = Instant::now() + config.timeouts.answer;
    if sender.send(&Message::Bye).is_ok() {
        while !matches!(receiver.recv_deadline(until), Ok(Frame::Message(Message::Bye)) | Err(_)) {}
    }
    sender.shutdown();
}

/// What the beginning of an image says about its job.
fn offer_of(file: &File) -> Result<Offer, vrun_image::format::Error> {
    let mut reader = Reader::new(BufReader::new(file))?;
    loop {
        if let Record::Job(job) = reader.next()? {
            return Ok(offer(&job));
        }
    }
}

/// The manifest of a job that is to be stored.
fn offer(job: &Job) -> Offer {
    let words: Vec<_> = job
        .command
        .iter()
        .map(|word| String::from_utf8_lossy(word).replace('\0', " "))
        .collect();
    let mut command = words.join(" ");
    command.truncate(
        (0..=COMMAND_MAX.min(command.len()))
            .rev()
            .find(|end| command.is_char_boundary(*end))
            .unwrap_or(0),
    );
    let areas = || job.processes.iter().flat_map(|process| &process.memory.areas);
    Offer {
        job: job.id.clone(),
        name: job.name.clone(),
        command,
        processes: job.processes.len() as u32,
        threads: job.processes.iter().map(|process| process.threads.len() as u32).sum(),
        memory: areas().map(|area| area.end - area.start).sum(),
        cpu_flags: job.cpu.flags.clone(),
        kernel: job.host.kernel.clone(),
        architecture: job.host.machine.clone(),
        pid: job.processes.first().map_or(0, |process| process.pid),
        dry_run: false,
    }
}

/// The host's part, after the greetings: judges the offer, takes the image in and stores it.
pub fn receive_image(config: &Config, sender: &Sender, receiver: &mut Receiver) -> Result<(), ControlError> {
    let peer = receiver.peer().name.clone();
    let offer = match receiver.recv_deadline(Instant::now() + config.timeouts.answer)? {
        Frame::Message(Message::Offer(offer)) => offer,
        other => return Err(peers::out_of_place(&peer, &other)),
    };
    if let Some(refusal) = judge(config, &offer) {
        sender.send(&Message::Refuse(refusal))?;
    } else {
        sender.send(&Message::Accept)?;
        if !offer.dry_run {
            let answer = match store(config, receiver) {
                Ok(id) => Message::Stored(Stored { id: id.to_string() }),
                Err(Intake::Channel(error)) => return Err(error),
                Err(Intake::Failed(reason)) => Message::Failed(Reason { reason: clip(reason) }),
            };
            sender.send(&answer)?;
        }
    }
    say_bye(config, sender, receiver);
    Ok(())
}

/// A stored image may wait for the machine that can run it, so only what can never run here is refused.
fn judge(config: &Config, offer: &Offer) -> Option<Refuse> {
    let refuse = |code, reason: String| {
        Some(Refuse {
            code,
            reason: clip(reason),
        })
    };
    if offer.architecture != "x86_64" {
        let reason = format!("the job is for {}, this host is x86_64", offer.architecture);
        return refuse(RefuseCode::Incompatible, reason);
    }
    match config.images_directory() {
        Ok(_) => None,
        Err(error) => refuse(RefuseCode::Denied, error.to_string()),
    }
}

/// Why an image was not stored.
enum Intake {
    /// The peer is gone or does not keep to the protocol.
    Channel(ControlError),
    /// To be told to the peer.
    Failed(String),
}

fn store(config: &Config, receiver: &mut Receiver) -> Result<JobId, Intake> {
    let failed = |what: &dyn std::fmt::Display| Intake::Failed(what.to_string());
    let id = JobId::generate().map_err(|error| failed(&error))?;
    let mut incoming = Incoming::new(config, &id).map_err(|error| failed(&error))?;
    let mut bytes = 0;
    // What goes wrong here is said at the end: the peer does not listen while it sends.
    let mut trouble = None;
    loop {
        let until = Instant::now() + config.timeouts.answer;
        match receiver
            .recv_deadline(until)
            .map_err(|error| Intake::Channel(error.into()))?
        {
            Frame::Bulk { bytes: data, .. } => {
                bytes += data.len() as u64;
                if trouble.is_none() {
                    trouble = incoming.file().write_all(data).err();
                }
            }
            Frame::Message(Message::ImageEnd(end)) if end.bytes == bytes => break,
            other => return Err(Intake::Channel(peers::out_of_place("the sender", &other))),
        }
    }
    if let Some(error) = trouble {
        return Err(failed(&format!("cannot write the image: {error}")));
    }
    check(incoming.file()).map_err(|error| failed(&error))?;
    incoming.finish().map_err(|error| failed(&error))?;
    Ok(id)
}

/// Reads the whole image: what is stored can be restored.
fn check(file: &mut File) -> Result<(), vrun_image::format::Error> {
    file.rewind().map_err(vrun_image::format::Error::Io)?;
    let mut reader = Reader::new(BufReader::new(file))?;
    while !matches!(reader.next()?, Record::End(_)) {}
    reader.expect_eof().map(drop)
}
