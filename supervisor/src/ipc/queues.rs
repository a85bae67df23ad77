//! POSIX message queues: attributes, messages with their priorities, and who is to be told of the next one.
//!
//! Their messages can only be received. So they are taken out and put back in the same order, at once: nobody of the
//! job runs meanwhile, and nobody else may have the queue open. Descriptors of a queue belong to an IPC namespace and so
//! cannot be made here for the job: others keep their numbers free until its first process opens the queue ([`make`]).

use super::{Ledger, STEPS, Scratch, refuse};
use crate::capture::{CaptureError, Frozen};
use crate::proc::ProcDir;
use crate::restore::{RestoreError, Restorer};
use crate::sys;
use rustix::fs::{Mode, OFlags};
use std::fs::Metadata;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use vrun_image::state::{FileKind, Job, Message, PosixQueue, QueueNotify};
use vrun_shim::{Expect, Injection, Script, area};

/// `SIGEV_*`, asm-generic/siginfo.h.
const SIGEV_SIGNAL: i32 = 0;
const SIGEV_NONE: i32 = 1;
const SIGEV_THREAD: i32 = 2;

/// A queue that processes have open, and a descriptor of it: process, number there.
#[derive(Clone, Debug)]
pub struct Held {
    /// Without the slash in front.
    pub name: Vec<u8>,
    /// Its name is gone.
    pub unlinked: bool,
    pub place: (i32, i32),
}

/// The queue that a descriptor with this path leads to; nothing if it was opened as a file of its file system
/// (`/dev/mqueue`).
pub fn held(target: &[u8], unlinked: bool, place: (i32, i32)) -> Option<Held> {
    let name = target.strip_prefix(b"/")?;
    let name = if unlinked {
        name.strip_suffix(b" (deleted)")?
    } else {
        name
    };
    (!name.contains(&b'/')).then(|| Held {
        name: name.to_vec(),
        unlinked,
        place,
    })
}

/// What the kernel says of a queue to who reads it as a file (`mqueue_read_file`, `ipc/mqueue.c`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Registration {
    notify: i32,
    signal: i32,
    /// The process's number here; 0: nobody is to be told.
    pid: i32,
}

impl Registration {
    fn read(fd: &OwnedFd) -> io::Result<Self> {
        let mut text = [0; 128];
        let length = rustix::io::pread(fd, &mut text, 0)?;
        let text = String::from_utf8_lossy(&text[..length]);
        let field = |name: &str| {
            let words = text.split_whitespace();
            words
                .filter_map(|word| word.strip_prefix(name))
                .find_map(|value| value.parse().ok())
        };
        match (field("NOTIFY:"), field("SIGNO:"), field("NOTIFY_PID:")) {
            (Some(notify), Some(signal), Some(pid)) => Ok(Self { notify, signal, pid }),
            _ => Err(io::Error::other("the kernel describes a message queue in another way")),
        }
    }
}

/// Queues that processes have open, then those that the job has made and nobody has open.
///
/// # Errors
/// [`CaptureError::Unsupported`] names a queue that is not the job's alone, or that cannot be read.
pub fn capture(processes: &[Frozen], held: &[Held], ledger: &Ledger) -> Result<Vec<PosixQueue>, CaptureError> {
    let held_now = held.iter().map(|queue| one(processes, queue, ledger));
    let mut queues = held_now.collect::<Result<Vec<_>, _>>()?;
    let Some(first) = processes.first() else {
        return Ok(queues);
    };
    for name in ledger.names() {
        if held.iter().any(|held| held.name == name && !held.unlinked) {
            continue;
        }
        let mut script = Script::new(area::DATA.start);
        let address = script.data(&[&name[..], &[0]].concat());
        let flags = libc::O_RDWR | libc::O_NONBLOCK | libc::O_CLOEXEC;
        script.step(
            "open a message queue",
            libc::SYS_mq_open,
            &[address, flags as u64],
            Expect::Anything,
        );
        let number = first.leader().run(&script)?[0];
        if number == -i64::from(libc::ENOENT) {
            continue;
        }
        if number < 0 {
            return unreadable(&show(&name), io::Error::from_raw_os_error(-number as i32));
        }
        let queue = Held {
            name,
            unlinked: false,
            place: (first.pid(), number as i32),
        };
        let captured = one(processes, &queue, ledger);
        let mut script = Script::new(area::DATA.start);
        script.call("close a message queue", libc::SYS_close, &[number as u64]);
        first.leader().run(&script)?;
        queues.push(captured?);
    }
    Ok(queues)
}

fn show(name: &[u8]) -> String {
    String::from_utf8_lossy(name).replace(char::is_control, "?")
}

fn unreadable<T>(name: &str, error: io::Error) -> Result<T, CaptureError> {
    refuse(format!("the POSIX message queue /{name} cannot be read: {error}"))
}

/// A process outside of the job that has the same queue open, as far as we may look.
fn shared_with(processes: &[Frozen], queue: &Metadata) -> Option<i32> {
    let all = std::fs::read_dir("/proc").ok()?;
    let pids = all.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    let outside = |pid: &i32| processes.iter().all(|process| process.pid() != *pid);
    pids.filter(outside).find(|pid| {
        let numbers = ProcDir::open(*pid)
            .and_then(|directory| directory.list("fd"))
            .unwrap_or_default();
        numbers.iter().any(|number| {
            let other = std::fs::metadata(format!("/proc/{pid}/fd/{number}"));
            other.is_ok_and(|other| (other.dev(), other.ino()) == (queue.dev(), queue.ino()))
        })
    })
}

fn one(processes: &[Frozen], queue: &Held, ledger: &Ledger) -> Result<PosixQueue, CaptureError> {
    let name = show(&queue.name);
    if !ledger.has_made(&queue.name) {
        return refuse(format!(
            "it uses the POSIX message queue /{name}, which it has not made"
        ));
    }
    let (pid, number) = queue.place;
    let path = format!("/proc/{pid}/fd/{number}");
    let look = || -> io::Result<_> {
        let metadata = std::fs::metadata(&path)?;
        let others = shared_with(processes, &metadata);
        let fd = rustix::fs::open(&path, OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
        Ok((
            others,
            Registration::read(&fd)?,
            sys::queue_attributes(&fd)?,
            metadata,
            fd,
        ))
    };
    let (others, registration, attributes, metadata, fd) = match look() {
        Ok(found) => found,
        Err(error) => return unreadable(&name, error),
    };
    if let Some(other) = others {
        return refuse(format!(
            "process {other}, which is not of the job, has the POSIX message queue /{name} open"
        ));
    }
    let told = match registration {
        Registration { pid: 0, .. } => None,
        Registration {
            notify: SIGEV_THREAD, ..
        } => {
            return refuse(format!(
                "the POSIX message queue /{name} starts a thread (SIGEV_THREAD) for the next message"
            ));
        }
        Registration { notify, signal, pid } => {
            let Some(process) = processes.iter().find(|process| process.pid() == pid) else {
                return refuse(format!(
                    "the POSIX message queue /{name} notifies process {pid}, which is not of the job"
                ));
            };
            let value = match (notify, ledger.registered(pid, metadata.ino())) {
                (SIGEV_NONE, _) => 0,
                (_, Some((known, value))) if known == signal => value,
                _ => {
                    return refuse(format!(
                        "process {} is notified by the POSIX message queue /{name} with a value that is not known",
                        process.inner_pid()
                    ));
                }
            };
            let notify = QueueNotify {
                process: process.inner_pid(),
                signal: if notify == SIGEV_NONE { 0 } else { signal },
                value,
            };
            Some((process, notify))
        }
    };
    // Who is to be told of the next message must not hear of those that are put back.
    let number = match told.filter(|_| attributes.current > 0) {
        Some((process, _)) => Some((process, own_number(process, &metadata)?)),
        None => None,
    };
    if let Some((process, number)) = number {
        register(process.leader(), number, None)?;
    }
    let messages = take(&fd, attributes.size).and_then(|messages| {
        let back = |message: &Message| sys::queue_send(&fd, &message.bytes, message.kind as u32);
        messages.iter().try_for_each(back).map(|()| messages)
    });
    if let (Some((process, number)), Some((_, notify))) = (number, told) {
        register(process.leader(), number, Some(notify))?;
    }
    // Its owner as the job sees it.
    let (uid, gid) = owner(processes[0].leader(), queue.place, processes)?;
    match messages {
        Ok(messages) => Ok(PosixQueue {
            name: queue.name.clone(),
            unlinked: queue.unlinked,
            uid,
            gid,
            mode: metadata.mode() & 0o7777,
            most: attributes.most as u32,
            size: attributes.size as u32,
            messages,
            notify: told.map(|(_, notify)| notify),
        }),
        Err(error) => unreadable(&name, error),
    }
}

/// Receives everything.
fn take(fd: &OwnedFd, size: usize) -> io::Result<Vec<Message>> {
    let mut buffer = vec![0; size];
    let mut messages = Vec::new();
    loop {
        match sys::queue_receive(fd, &mut buffer) {
            Ok((length, priority)) => messages.push(Message {
                kind: priority.into(),
                bytes: buffer[..length].to_vec(),
            }),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(messages),
            Err(error) => {
                for message in &messages {
                    sys::queue_send(fd, &message.bytes, message.kind as u32)?;
                }
                return Err(error);
            }
        }
    }
}

/// The number of a descriptor that a process has of a queue.
fn own_number(process: &Frozen, queue: &Metadata) -> Result<i32, CaptureError> {
    let numbers = ProcDir::open(process.pid())?.list("fd")?;
    let found = numbers.into_iter().find(|number| {
        let other = std::fs::metadata(format!("/proc/{}/fd/{number}", process.pid()));
        other.is_ok_and(|other| (other.dev(), other.ino()) == (queue.dev(), queue.ino()))
    });
    match found {
        Some(number) => Ok(number),
        None => refuse(format!(
            "process {} is notified by a POSIX message queue that it does not have open",
            process.inner_pid()
        )),
    }
}

/// Owner and group of a queue, asked for by a process that has it open.
fn owner(first: &Injection, place: (i32, i32), processes: &[Frozen]) -> Result<(u32, u32), CaptureError> {
    let holder = processes.iter().find(|process| process.pid() == place.0);
    let injection = holder.map_or(first, Frozen::leader);
    let mut script = Script::new(area::DATA.start);
    // struct stat: st_uid at 28, st_gid at 32.
    let stat = script.reserve(144);
    script.call("look at a message queue", libc::SYS_fstat, &[place.1 as u64, stat]);
    injection.run(&script)?;
    let mut ids = [0; 8];
    injection.read(stat + 28, &mut ids)?;
    Ok((super::word(&ids, 0), super::word(&ids, 4)))
}

/// `mq_notify(3)`; nothing: nobody is to be told.
fn register(injection: &Injection, number: i32, notify: Option<QueueNotify>) -> Result<(), vrun_shim::TraceError> {
    let mut script = Script::new(area::DATA.start);
    // struct sigevent: value, signal, kind.
    let event = notify.map_or(0, |notify| {
        let kind = if notify.signal == 0 { SIGEV_NONE } else { SIGEV_SIGNAL };
        let mut bytes = notify.value.to_le_bytes().to_vec();
        bytes.extend([notify.signal, kind].map(i32::to_le_bytes).concat());
        bytes.resize(64, 0);
        script.data(&bytes)
    });
    script.call("ask for a notification", libc::SYS_mq_notify, &[number as u64, event]);
    injection.run(&script).map(drop)
}

/// Makes the queues of a job in its first process, with what is in them, and opens them there under the numbers that
/// `number` gives for open files.
///
/// # Errors
/// [`RestoreError`].
pub fn make(injection: &Injection, job: &Job, number: &dyn Fn(u32) -> Option<i32>) -> Result<(), RestoreError> {
    let mut queues: Vec<_> = (0..).zip(&job.ipc.queues).collect();
    // Those without a name first: another may have it now.
    queues.sort_by_key(|(_, queue)| !queue.unlinked);
    for (index, queue) in queues {
        let open = |flags: i32, mode: u64| {
            let mut script = Script::new(area::DATA.start);
            let name = script.data(&[&queue.name[..], &[0]].concat());
            // struct mq_attr: flags, most messages, their size, messages.
            let attributes = [0, queue.most.into(), queue.size.into(), 0, 0, 0, 0, 0_u64];
            let attributes = script.data(attributes.map(u64::to_le_bytes).as_flattened());
            // It is close-on-exec in any case; the flag would show among those of the open file.
            let what = format!(
                "open the POSIX message queue /{} of {} messages of {} bytes (fs.mqueue, RLIMIT_MSGQUEUE)",
                show(&queue.name),
                queue.most,
                queue.size
            );
            script.call(what, libc::SYS_mq_open, &[name, flags as u64, mode, attributes]);
            Ok::<_, RestoreError>(injection.run(&script)?[0] as u64)
        };
        let own = open(libc::O_RDWR | libc::O_CREAT | libc::O_EXCL | libc::O_NONBLOCK, 0o600)?;
        send(injection, own, &queue.messages)?;
        for (file, kind) in (0..).zip(job.files.iter().map(|file| (&file.kind, file.flags))) {
            let (FileKind::Queue { queue }, flags) = kind else {
                continue;
            };
            let Some(number) = number(file).filter(|_| *queue == index) else {
                continue;
            };
            let kept = flags.cast_signed() & (libc::O_ACCMODE | libc::O_NONBLOCK);
            let opened = open(kept, 0)?;
            let mut script = Script::new(area::DATA.start);
            let arguments = [opened, number as u64, libc::O_CLOEXEC as u64];
            script.call("place a message queue", libc::SYS_dup3, &arguments);
            script.call("close the first of the two", libc::SYS_close, &[opened]);
            injection.run(&script)?;
        }
        let mut script = Script::new(area::DATA.start);
        let ids = &job.processes[0].credentials;
        if (queue.uid, queue.gid) != (ids.uid[1], ids.gid[1]) {
            let arguments = [own, queue.uid.into(), queue.gid.into()];
            script.call("give a message queue away", libc::SYS_fchown, &arguments);
        }
        script.call(
            "set the mode of a message queue",
            libc::SYS_fchmod,
            &[own, queue.mode.into()],
        );
        if queue.unlinked {
            let name = script.data(&[&queue.name[..], &[0]].concat());
            script.call("unlink a message queue", libc::SYS_mq_unlink, &[name]);
        }
        script.call("close a message queue", libc::SYS_close, &[own]);
        injection.run(&script)?;
    }
    Ok(())
}

fn send(injection: &Injection, queue: u64, messages: &[Message]) -> Result<(), RestoreError> {
    for messages in messages.chunks(STEPS) {
        let bytes: Vec<u8> = messages
            .iter()
            .flat_map(|message| message.bytes.iter().copied())
            .collect();
        let buffer = Scratch::map(injection, bytes.len() as u64)?;
        injection.write(buffer.range.start, &bytes)?;
        let mut script = Script::new(area::DATA.start);
        let mut at = buffer.range.start;
        for message in messages {
            let length = message.bytes.len() as u64;
            let arguments = [queue, at, length, message.kind as u64, 0];
            script.call("send a message to a POSIX queue", libc::SYS_mq_timedsend, &arguments);
            at += length;
        }
        injection.run(&script)?;
    }
    Ok(())
}

/// Who is to be told of the next message asks for it again: all descriptors are in place.
///
/// # Errors
/// [`RestoreError`].
pub(super) fn finish(restorers: &[Restorer], job: &Job) -> Result<(), RestoreError> {
    for (index, queue) in (0..).zip(&job.ipc.queues) {
        let Some(notify) = queue.notify else { continue };
        for (restorer, process) in restorers.iter().zip(&job.processes) {
            let leads =
                |file: u32| matches!(job.files[file as usize].kind, FileKind::Queue { queue } if queue == index);
            let slot = process.descriptors.iter().find(|slot| leads(slot.file));
            if let Some(slot) = slot.filter(|_| process.pid == notify.process) {
                register(restorer.injection(), slot.number, Some(notify))?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;
    use std::os::unix::ffi::OsStrExt;

    #[test]
    fn the_kernel_describes_a_queue_as_expected() {
        let name = format!("vrun-test-{}", std::process::id());
        let fd = sys::queue_open(
            name.as_bytes(),
            libc::O_RDWR | libc::O_CREAT | libc::O_EXCL | libc::O_NONBLOCK,
        )
        .unwrap();
        let magic = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let look = || {
            let target = std::fs::read_link(&magic).unwrap();
            let unlinked = std::fs::metadata(&magic).unwrap().nlink() == 0;
            held(target.as_os_str().as_bytes(), unlinked, (0, 0)).unwrap()
        };
        assert_eq!((look().name, look().unlinked), (name.clone().into_bytes(), false));
        sys::queue_unlink(name.as_bytes()).unwrap();
        assert_eq!((look().name, look().unlinked), (name.into_bytes(), true));
        assert_eq!(Registration::read(&fd).unwrap().pid, 0);
        let attributes = sys::queue_attributes(&fd).unwrap();
        let sent: Vec<Message> = [(9, "high"), (1, "low"), (1, "low too"), (0, "")]
            .map(|(kind, text)| Message {
                kind,
                bytes: text.into(),
            })
            .into();
        for message in sent.iter().rev() {
            if message.kind != 1 {
                sys::queue_send(&fd, &message.bytes, message.kind as u32).unwrap();
            }
        }
        for message in sent.iter().filter(|message| message.kind == 1) {
            sys::queue_send(&fd, &message.bytes, 1).unwrap();
        }
        assert_eq!(take(&fd, attributes.size).unwrap(), sent);
    }
}
