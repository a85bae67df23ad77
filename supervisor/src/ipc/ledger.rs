//! What a job has made, as far as /proc does not tell: noted at the door, where every call that makes or finds an object
//! is seen.
//!
//! | kind         | who made it                                                                                    |
//! |--------------|------------------------------------------------------------------------------------------------|
//! | segments     | the kernel keeps the process's number; which numbers were the job's is noted                   |
//! | semaphores,  | the kernel does not tell, so a call that makes one is answered here: by the same user in the   |
//! | messages     | same namespaces, what comes of it is the same, and the identifier is known                     |
//! | POSIX queues | the name was not there when the job asked for it; with which value a process is to be notified |
//!
//! A job that was restored with objects is alone in its namespace, where everything is its own.

use super::{Found, Kind, is_outside};
use crate::areas::Purpose;
use crate::memory::TargetMemory;
use crate::notify::{AnswerError, Listener, Notification};
use crate::proc::{Backing, ProcDir};
use crate::sys;
use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use vrun_image::state::{FileKind, Job};

/// See the module.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Nobody else is in the job's IPC namespace.
    pub(super) alone: bool,
    facts: Mutex<Facts>,
}

#[derive(Debug, Default)]
struct Facts {
    /// Processes that may have made segments: their numbers here, and in the job.
    creators: BTreeSet<(i32, i32)>,
    made: BTreeSet<(Kind, i32)>,
    /// Keys that were asked for.
    keys: BTreeSet<(Kind, i32)>,
    /// What another user has made cannot be told from what others have.
    unknown: Option<Kind>,
    /// POSIX message queues that the job has made.
    names: BTreeSet<Vec<u8>>,
    /// Who asked to be told of messages, by the process's number here and the queue's inode: signal and value.
    registered: BTreeMap<(i32, u64), (i32, u64)>,
}

/// A line of a table below `/proc/sysvipc`.
#[derive(Clone, Debug)]
struct Line {
    key: i32,
    id: i32,
    /// The rest, from the mode on.
    fields: Vec<i64>,
}

impl Line {
    /// Processes that have used a semaphore set or a message queue last, as far as we may know.
    fn users(&self, kind: Kind) -> Vec<i32> {
        match kind {
            Kind::Segment => Vec::new(),
            Kind::Semaphores => {
                let count = self.fields.get(1).map_or(0, |count| *count as i32);
                (0..count)
                    .filter_map(|number| sys::semaphore_user(self.id, number).ok())
                    .collect()
            }
            // Who sent, and who received.
            Kind::Messages => self.fields.iter().skip(3).take(2).map(|pid| *pid as i32).collect(),
        }
    }
}

/// The objects of our own IPC namespace.
fn lines(kind: Kind) -> Vec<Line> {
    let text = std::fs::read_to_string(format!("/proc/{}", kind.names().table)).unwrap_or_default();
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        Some(Line {
            key: words.next()?.parse().ok()?,
            id: words.next()?.parse().ok()?,
            fields: words.map(|word| word.parse().unwrap_or(0)).collect(),
        })
    };
    text.lines().filter_map(line).collect()
}

impl Ledger {
    /// Of a job, one of whose processes this is.
    pub fn of(pid: i32) -> Self {
        let namespace = |pid: i32| {
            ProcDir::open(pid)
                .and_then(|directory| directory.read_link("ns/ipc"))
                .ok()
        };
        let own = namespace(std::process::id().cast_signed());
        Self {
            alone: namespace(pid).is_some_and(|its| Some(its) != own),
            facts: Mutex::default(),
        }
    }

    /// Takes over what a restored job's image tells. `pids` are the numbers that its processes have here.
    pub fn inherit(&self, job: &Job, pids: &[i32]) {
        let mut facts = self.facts();
        for (index, queue) in (0..).zip(&job.ipc.queues) {
            facts.names.insert(queue.name.clone());
            let Some(notify) = queue.notify else { continue };
            for (pid, process) in pids.iter().zip(&job.processes) {
                let leads =
                    |file: u32| matches!(job.files[file as usize].kind, FileKind::Queue { queue } if queue == index);
                let slot = process.descriptors.iter().find(|slot| leads(slot.file));
                let inode = slot.and_then(|slot| inode(*pid, slot.number));
                if let Some(inode) = inode.filter(|_| process.pid == notify.process) {
                    facts.registered.insert((*pid, inode), (notify.signal, notify.value));
                }
            }
        }
    }

    /// Whether the POSIX message queue of a name is the job's.
    pub(super) fn has_made(&self, name: &[u8]) -> bool {
        self.alone || self.facts().names.contains(name)
    }

    /// All of these names.
    pub(super) fn names(&self) -> Vec<Vec<u8>> {
        self.facts().names.iter().cloned().collect()
    }

    /// The signal and the value with which a process asked to be told of messages in a queue.
    pub(super) fn registered(&self, pid: i32, inode: u64) -> Option<(i32, u64)> {
        self.facts().registered.get(&(pid, inode)).copied()
    }

    fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the job may have made System V objects.
    pub(super) fn has_system_v(&self) -> bool {
        let facts = self.facts();
        self.alone || !facts.made.is_empty() || !facts.creators.is_empty()
    }

    pub(super) fn is_own(&self, kind: Kind, found: &Found) -> bool {
        let facts = self.facts();
        self.alone
            || match kind {
                // shm_cpid
                Kind::Segment => facts
                    .creators
                    .iter()
                    .any(|(_, inner)| *inner == found.word(80).cast_signed()),
                _ => facts.made.contains(&(kind, found.object.id)),
            }
    }

    /// Takes note of a call at the door. True: it was answered here.
    ///
    /// # Errors
    /// As for [`Listener::answer`].
    pub fn answer(&self, listener: &Listener, notification: &Notification) -> Result<bool, AnswerError> {
        let [key, second, third, ..] = notification.args;
        let key = key as i32;
        let (kind, flags) = match i64::from(notification.number) {
            libc::SYS_mq_open | libc::SYS_mq_notify => {
                // What cannot be read now the kernel will not read either.
                let _ = self.queue(notification);
                return Ok(false);
            }
            _ if self.alone => return Ok(false),
            libc::SYS_shmget => (Kind::Segment, third as i32),
            libc::SYS_semget => (Kind::Semaphores, third as i32),
            libc::SYS_msgget => (Kind::Messages, second as i32),
            _ => return Ok(false),
        };
        if key != libc::IPC_PRIVATE {
            self.facts().keys.insert((kind, key));
        }
        if key != libc::IPC_PRIVATE && flags & libc::IPC_CREAT == 0 {
            return Ok(false);
        }
        let Some(caller) = Caller::of(notification.pid) else {
            return Ok(false);
        };
        if kind == Kind::Segment {
            self.facts().creators.insert(caller.numbers);
            return Ok(false);
        }
        if !caller.is_as_we || !listener.is_valid(notification.id) {
            self.facts().unknown = Some(kind);
            return Ok(false);
        }
        let flags = flags | libc::IPC_EXCL;
        let made = match kind {
            Kind::Semaphores => sys::semget(key, second as i32, flags),
            _ => sys::msgget(key, flags),
        };
        match made {
            Ok(id) => {
                self.facts().made.insert((kind, id));
                listener.answer(notification.id, id.into()).map(|()| true)
            }
            // It is there, or it cannot be made: the kernel says so.
            Err(_) => Ok(false),
        }
    }

    /// Takes note of the name of a POSIX queue that a process may make, or of how it asks to be told of messages.
    fn queue(&self, notification: &Notification) -> Option<()> {
        let [first, second, ..] = notification.args;
        let memory = TargetMemory::open(notification.pid).ok()?;
        if i64::from(notification.number) == libc::SYS_mq_open {
            // NAME_MAX, and the zero.
            let mut bytes = [0; 256];
            let length = memory.read(first, &mut bytes).ok()?;
            let name = bytes[..length].split(|byte| *byte == 0).next()?;
            let creates = second as i32 & libc::O_CREAT != 0;
            let absent =
                || sys::queue_open(name, libc::O_RDONLY).is_err_and(|error| error.kind() == ErrorKind::NotFound);
            if creates && (self.alone || absent()) {
                self.facts().names.insert(name.to_vec());
            }
            return Some(());
        }
        // struct sigevent: value, signal.
        let mut event = [0; 12];
        if memory.read(second, &mut event).ok()? == event.len() {
            let (value, signal) = event.split_first_chunk()?;
            let told = (i32::from_le_bytes(*signal.first_chunk()?), u64::from_le_bytes(*value));
            let pid = Caller::of(notification.pid)?.numbers.0;
            let queue = inode(pid, first as i32)?;
            self.facts().registered.insert((pid, queue), told);
        }
        Some(())
    }

    /// Why the objects of a job keep it from being saved or moved, or nothing. Reads only /proc.
    ///
    /// # Errors
    /// A sentence.
    pub fn verdict(&self, processes: &[i32], purpose: Purpose) -> Result<(), String> {
        if self.alone {
            return Ok(());
        }
        self.segments(processes, purpose)?;
        if purpose == Purpose::Move {
            return Ok(());
        }
        let facts = self.facts();
        if let Some(kind) = facts.unknown {
            let noun = kind.names().noun;
            return Err(format!(
                "it made {noun} as another user, which cannot be told from those of others"
            ));
        }
        for kind in [Kind::Semaphores, Kind::Messages] {
            let noun = kind.names().noun;
            for line in lines(kind) {
                let (id, users) = (line.id, line.users(kind));
                if facts.made.contains(&(kind, id)) {
                    if let Some(pid) = users.iter().find(|pid| is_outside(**pid, processes)) {
                        return Err(format!("process {pid}, which is not of the job, uses {noun} {id}"));
                    }
                } else if facts.keys.contains(&(kind, line.key)) || users.iter().any(|pid| processes.contains(pid)) {
                    return Err(format!("it uses {noun} {id}, which it has not made"));
                }
            }
        }
        Ok(())
    }

    fn segments(&self, processes: &[i32], purpose: Purpose) -> Result<(), String> {
        let lines = lines(Kind::Segment);
        if lines.is_empty() {
            return Ok(());
        }
        let mut attached: BTreeMap<i32, i64> = BTreeMap::new();
        for pid in processes {
            let maps = ProcDir::open(*pid)
                .and_then(|directory| directory.maps())
                .unwrap_or_default();
            for entry in maps.iter().filter(|entry| entry.backing() == Backing::SystemV) {
                *attached.entry(entry.inode as i32).or_default() += 1;
            }
        }
        let facts = self.facts();
        let noun = Kind::Segment.names().noun;
        for Line { key, id, fields } in lines {
            // mode, size, cpid, lpid, nattch
            let [_, _, creator, _, attachments, ..] = fields[..] else {
                continue;
            };
            let ours = attached.get(&id).copied().unwrap_or(0);
            let made = facts.creators.iter().any(|(pid, _)| i64::from(*pid) == creator);
            if attachments > ours && (ours != 0 || (made && purpose == Purpose::Save)) {
                return Err(format!(
                    "{noun} {id} is attached by processes that are not of the job, too"
                ));
            }
            let asked = key != 0 && facts.keys.contains(&(Kind::Segment, key));
            if purpose == Purpose::Save && !made && (ours != 0 || asked) {
                return Err(format!("it uses {noun} {id}, which it has not made"));
            }
        }
        Ok(())
    }
}

/// What a descriptor of a process leads to.
fn inode(pid: i32, number: i32) -> Option<u64> {
    let metadata = std::fs::metadata(format!("/proc/{pid}/fd/{number}"));
    metadata.ok().map(|metadata| metadata.ino())
}

/// Who makes a call.
struct Caller {
    /// The process's number here, and in the job.
    numbers: (i32, i32),
    /// What it makes is what we make.
    is_as_we: bool,
}

impl Caller {
    fn of(tid: i32) -> Option<Self> {
        let status = |pid: i32| ProcDir::open(pid).and_then(|directory| directory.status()).ok();
        let (its, own) = (status(status(tid)?.process)?, status(std::process::id().cast_signed())?);
        Some(Self {
            numbers: (its.pid, its.namespace_pids.last().copied().unwrap_or(its.pid)),
            is_as_we: (its.uid[1], its.gid[1]) == (own.uid[1], own.gid[1]),
        })
    }
}
