//! What a job has made, as far as /proc does not tell: noted at the door, where every call that makes or finds an object is
//! seen.
//!
//! | kind            | who made it                                                                                    |
//! |-----------------|------------------------------------------------------------------------------------------------|
//! | segments        | the kernel keeps the process's number; which numbers were the job's is noted                   |
//! | semaphores,     | the kernel does not tell, so a call that makes one is answered here: by the same user in the    |
//! | messages        | same namespaces, what comes of it is the same, and the identifier is known                      |
//!
//! A job that was restored with objects is alone in its namespace, where everything is its own.

use super::{Found, Kind, is_outside};
use crate::areas::Purpose;
use crate::notify::{AnswerError, Listener, Notification};
use crate::proc::{Backing, ProcDir};
use crate::sys;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

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
}

/// A line of a table below `/proc/sysvipc`.
#[derive(Clone, Debug)]
struct Line {
    key: i32,
    id: i32,
    /// The rest, from the mode on.
    fields: Vec<i64>,
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

    /// Why the objects of a job keep it from being saved or moved, or nothing. Reads only /proc.
    ///
    /// # Errors
    /// A sentence.
    pub fn verdict(&self, processes: &[i32], purpose: Purpose) -> Result<(), String> {
        if self.alone {
            return Ok(());
        }
        self.segments(processes, purpose)?;
        let facts = self.facts();
        if purpose == Purpose::Move || (facts.keys.is_empty() && facts.made.is_empty() && facts.unknown.is_none()) {
            return Ok(());
        }
        if let Some(kind) = facts.unknown {
            let noun = kind.names().noun;
            return Err(format!(
                "it made {noun} as another user, which cannot be told from those of others"
            ));
        }
        for kind in [Kind::Semaphores, Kind::Messages] {
            let noun = kind.names().noun;
            for line in lines(kind) {
                let made = facts.made.contains(&(kind, line.id));
                if !made && line.key != 0 && facts.keys.contains(&(kind, line.key)) {
                    return Err(format!("it uses {noun} {}, which it has not made", line.id));
                }
                // The numbers of who sent and who received last.
                let users = line.fields.get(3..5).filter(|_| made && kind == Kind::Messages);
                for pid in users.into_iter().flatten() {
                    if is_outside(*pid as i32, processes) {
                        return Err(format!(
                            "process {pid}, which is not of the job, uses {noun} {}",
                            line.id
                        ));
                    }
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
