//! Saving: a job's image with everything in it that is not memory too, to a file or into another host's store.
//!
//! ```text
//!   freeze ─► descriptors ─► Job, Pages…, File… ─► file: written beside, fsync, rename    host: ImageEnd, Stored
//!                                                  from here on the image is safe: the job may end
//! ```
//!
//! Any failure before that lets the job go on.

use crate::areas;
use crate::away::Office;
use crate::capture::{self, Frozen, FrozenJob};
use crate::config::Config;
use crate::control::{Content, ControlError, ErrorCode};
use crate::deliver::say_bye;
use crate::descriptors::{self, DescriptorError};
use crate::guest::GuestError;
use crate::ipc;
use crate::peers;
use crate::terminal;
use crate::transfer::ImageSink;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Instant;
use vrun_image::Writer;
use vrun_image::state::{Ipc, Slot};
use vrun_remote_io::channel::{Frame, Receiver, Sender};
use vrun_remote_io::message::{Message, Offer, Purpose, Reason, Stored};
use vrun_shim::{Script, TraceError, area};

/// A job whose image is safe and which still stands still.
#[derive(Debug)]
pub struct Saved {
    pub frozen: FrozenJob,
    pub bytes: u64,
    left: Left,
}

/// What of a saved job its host still has, beside its processes.
#[derive(Debug)]
struct Left {
    ipc: Ipc,
    /// Copies of the ends of its own connections.
    connections: Vec<OwnedFd>,
}

impl Saved {
    /// Ends the job here: nothing of it runs another instruction, or is in its way when it is restored.
    pub fn end(self) -> io::Result<()> {
        ipc::remove(&self.frozen.processes, &self.left.ipc);
        descriptors::reset(&self.left.connections);
        self.frozen.kill()
    }
}

fn rolled_back(what: impl std::fmt::Display) -> ControlError {
    ControlError::new(ErrorCode::RolledBack, format!("{what}; the job goes on"))
}

impl From<DescriptorError> for ControlError {
    fn from(error: DescriptorError) -> Self {
        Self::refused(format!("the job cannot be saved: {error}"))
    }
}

/// Freezes the job, lets `write` make an image of it and gives both back; on failure the job goes on.
fn with_frozen<T>(
    processes: &dyn Fn() -> Vec<i32>,
    write: impl FnOnce(&FrozenJob) -> Result<T, ControlError>,
) -> Result<(FrozenJob, T), ControlError> {
    let frozen = capture::freeze(processes)?;
    match write(&frozen) {
        Ok(result) => Ok((frozen, result)),
        Err(error) => {
            frozen.release()?;
            Err(error)
        }
    }
}

/// Writes the whole image.
fn write_image<W: Write>(
    frozen: &FrozenJob,
    content: Content,
    office: &Office<'_>,
    inner: W,
) -> Result<(W, Left), ControlError> {
    let pid = frozen.processes[0].pid();
    let pids: Vec<i32> = frozen.processes.iter().map(|process| process.pid()).collect();
    let refused = |reason| ControlError::refused(format!("the job cannot be saved now: {reason}"));
    office.ledger.verdict(&pids, areas::Purpose::Save).map_err(refused)?;
    let descriptors = descriptors::capture(&pids, content.with_files)?;
    let mut slots = descriptors.slots.clone();
    for (process, slots) in frozen.processes.iter().zip(&mut slots) {
        ask_close_on_exec(process, slots).map_err(capture::CaptureError::from)?;
    }
    let mut captured = capture::describe(
        &frozen.processes,
        slots,
        &[],
        areas::Purpose::Save,
        &areas::Known::default(),
    )?;
    let mut zombies = frozen.zombies.clone();
    office.outside.apply(&mut captured.processes, &mut zombies);
    let mut job = office
        .identity
        .image(
            office.config,
            pid,
            descriptors.files.clone(),
            captured.processes.clone(),
        )
        .map_err(rolled_back)?;
    job.terminal = terminal::capture(&frozen.processes, &captured.processes).map_err(capture::CaptureError::from)?;
    job.zombies = zombies;
    job.shared.clone_from(&captured.shared);
    job.ipc = ipc::capture(&frozen.processes, &descriptors.queues, office.ledger)?;
    ipc::memory::enter(&job.ipc, &mut job.shared);
    let mut writer = Writer::new(inner).map_err(image_error)?;
    if let Some(level) = content.compress {
        writer.compress(level).map_err(image_error)?;
    }
    writer.job(&job).map_err(image_error)?;
    let dumped = capture::dump(&captured, |process, start, bytes| {
        writer.pages(process, start, bytes).map_err(GuestError::from)
    });
    let segments = |writer: &mut Writer<W>| {
        ipc::memory::dump(&frozen.processes, &job.ipc, &job.shared, |object, start, bytes| {
            writer.pages(object, start, bytes).map_err(GuestError::from)
        })
    };
    dumped
        .and_then(|()| segments(&mut writer))
        .map_err(|error| match error {
            GuestError::Image(error) => image_error(error),
            other => rolled_back(other),
        })?;
    descriptors.store(&mut writer)?;
    let left = Left {
        ipc: job.ipc,
        connections: descriptors.connections,
    };
    Ok((writer.finish().map_err(image_error)?.0, left))
}

/// Only the process itself can tell: `/proc/PID/fdinfo` may say `O_CLOEXEC` of every descriptor of a file that was opened
/// with it.
fn ask_close_on_exec(process: &Frozen, slots: &mut [Slot]) -> Result<(), TraceError> {
    const BATCH: usize = 64;
    let mut marked: Vec<&mut Slot> = slots.iter_mut().filter(|slot| slot.close_on_exec).collect();
    for batch in marked.chunks_mut(BATCH) {
        let mut script = Script::new(area::DATA.start);
        for slot in batch.iter() {
            let arguments = [slot.number as u64, libc::F_GETFD as u64];
            let what = format_args!("look at descriptor {}", slot.number);
            script.call(what, libc::SYS_fcntl, &arguments);
        }
        let results = process.leader().run(&script)?;
        for (slot, flags) in batch.iter_mut().zip(results) {
            slot.close_on_exec = flags as i32 & libc::FD_CLOEXEC != 0;
        }
    }
    Ok(())
}

/// An image that cannot be written; what the system says of it is what the user has to know ("No space left").
fn image_error(error: vrun_image::Error) -> ControlError {
    match std::error::Error::source(&error) {
        Some(source) => rolled_back(format!("cannot write the image: {source}")),
        None => rolled_back(format!("cannot write the image: {error}")),
    }
}

/// Saves to a file, which appears under its name when it is complete and on disk.
pub fn to_file(
    processes: &dyn Fn() -> Vec<i32>,
    path: &Path,
    content: Content,
    office: &Office<'_>,
) -> Result<Saved, ControlError> {
    let unwritable = |error: io::Error| rolled_back(format!("cannot write {}: {error}", path.display()));
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let file = tempfile::Builder::new()
        .prefix(".vrun-")
        .tempfile_in(directory)
        .map_err(unwritable)?;
    let (frozen, (bytes, left)) = with_frozen(processes, |frozen| {
        let buffered = BufWriter::with_capacity(1 << 20, file.as_file().try_clone().map_err(unwritable)?);
        let (buffered, left) = write_image(frozen, content, office, buffered)?;
        let written: File = buffered.into_inner().map_err(|error| unwritable(error.into_error()))?;
        written.sync_all().map_err(unwritable)?;
        let bytes = written.metadata().map_err(unwritable)?.len();
        file.persist(path).map_err(|error| unwritable(error.error))?;
        Ok((bytes, left))
    })?;
    Ok(Saved { frozen, bytes, left })
}

/// A host that has accepted the offer and waits for the image to store.
#[derive(Debug)]
pub struct Delivery {
    sender: Sender,
    receiver: Receiver,
    /// As the user named it.
    pub host: String,
}

/// Asks `host` whether it stores the job.
pub fn offer(config: &Config, host: &str, offer: Offer) -> Result<Delivery, ControlError> {
    let (sender, receiver) = peers::offer(config, host, Purpose::Store, offer)?;
    Ok(Delivery {
        sender,
        receiver,
        host: host.to_owned(),
    })
}

/// Stores at a host that waits for it; gives the id there.
pub fn to_host(
    processes: &dyn Fn() -> Vec<i32>,
    delivery: Delivery,
    office: &Office<'_>,
) -> Result<(String, Saved), ControlError> {
    let Delivery {
        sender,
        mut receiver,
        host,
    } = delivery;
    let result = with_frozen(processes, |frozen| {
        // Where it will be restored, the job's files may not exist.
        let content = Content {
            with_files: true,
            compress: None,
        };
        let (sink, left) = write_image(frozen, content, office, ImageSink::new(sender.clone()))?;
        let bytes = sink.finish().map_err(rolled_back)?;
        match receiver.recv_deadline(Instant::now() + office.config.timeouts.answer) {
            Ok(Frame::Message(Message::Stored(Stored { id }))) => Ok((id, bytes, left)),
            Ok(Frame::Message(Message::Failed(Reason { reason }))) => {
                Err(rolled_back(format!("{host} could not store the image: {reason}")))
            }
            Ok(other) => Err(rolled_back(peers::out_of_place(&host, &other))),
            Err(error) => Err(rolled_back(error)),
        }
    });
    match result {
        Ok((frozen, (id, bytes, left))) => {
            say_bye(office.config, &sender, &mut receiver);
            Ok((id, Saved { frozen, bytes, left }))
        }
        Err(error) => {
            sender.shutdown();
            Err(error)
        }
    }
}
