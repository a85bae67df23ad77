//! System V IPC and POSIX message queues of a job: what of them is its own, their capture, and how they are made again.
//!
//! ```text
//!   Ledger      at the door: what the job has made, which /proc does not tell
//!   verdict     objects that others use, or have made, by name
//!   ────────────────
//!   capture     by calls of the frozen processes, so that all numbers are the job's own     ── memory, semaphores,
//!   ────────────────                                                                             messages, queues
//!   make        in the first process, before any other is made from it: every object, with its old identifier
//!   finish      by each process: what is to be undone when it ends; then values and messages
//!   remove      the job is safe in an image and ends here
//! ```
//!
//! Programs keep the identifiers, so they must be the same again. Whoever has the rights over the user namespace that
//! an IPC namespace belongs to may choose them (`kernel.shm_next_id` and its like), so a job that has objects is restored
//! into an IPC namespace of its own ([`crate::vessel::World::Host`]). Everything in there is the job's.
//!
//! Objects of a job that moves stay at home, and calls on them go there; but what is attached is memory, and moves.

mod ledger;
pub mod memory;
mod messages;
pub mod queues;
mod semaphores;

pub use ledger::Ledger;

use crate::capture::{CaptureError, Frozen};
use crate::memory::PAGE;
use crate::proc::{ProcDir, ProcError};
use crate::restore::{self, RestoreError, Restorer};
use std::ops::Range;
use vrun_image::state::{Ipc, IpcObject, Job, Process};
use vrun_shim::{Expect, Injection, Script, TraceError, area};

/// System V objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Segment,
    Semaphores,
    Messages,
}

/// What the kernel calls things of a kind.
struct Names {
    /// As people call it.
    noun: &'static str,
    /// Below `/proc/sysvipc`.
    table: &'static str,
    /// Below `/proc/sys/kernel`.
    next: &'static str,
    /// `shmctl(2)` and its like, and the arguments between the identifier and the command.
    control: i64,
    between: &'static [u64],
    /// `SHM_INFO` and its like, and where in the answer the number of objects is.
    info: u64,
    used: usize,
    /// `SHM_STAT_ANY` and its like (Linux 4.17).
    stat: u64,
}

/// Commands of all kinds.
const IPC_RMID: u64 = 0;
const IPC_SET: u64 = 1;
/// What a creating call is told (`linux/ipc.h`).
const CREATE: u32 = (libc::IPC_CREAT | libc::IPC_EXCL).cast_unsigned();
/// Room for any of the structures that the commands give.
const ROOM: usize = 128;
/// Steps of one script: what surely fits into the vrun area, with little data each.
const STEPS: usize = 300;

impl Kind {
    const ALL: [Self; 3] = [Self::Segment, Self::Semaphores, Self::Messages];

    fn names(self) -> Names {
        match self {
            Self::Segment => Names {
                noun: "System V shared memory",
                table: "sysvipc/shm",
                next: "/proc/sys/kernel/shm_next_id",
                control: libc::SYS_shmctl,
                between: &[],
                info: 14,
                used: 0, // shm_info.used_ids
                stat: 15,
            },
            Self::Semaphores => Names {
                noun: "the System V semaphore set",
                table: "sysvipc/sem",
                next: "/proc/sys/kernel/sem_next_id",
                control: libc::SYS_semctl,
                between: &[0],
                info: 19,
                used: 28, // seminfo.semusz
                stat: 20,
            },
            Self::Messages => Names {
                noun: "the System V message queue",
                table: "sysvipc/msg",
                next: "/proc/sys/kernel/msg_next_id",
                control: libc::SYS_msgctl,
                between: &[],
                info: 12,
                used: 0, // msginfo.msgpool
                stat: 13,
            },
        }
    }

    /// The arguments of a controlling call.
    fn command(self, id: u64, command: u64, address: u64) -> Vec<u64> {
        [&[id], self.names().between, &[command, address]].concat()
    }
}

/// What a controlling call says of an object.
#[derive(Clone, Debug)]
struct Found {
    object: IpcObject,
    /// Effective ids of who made it.
    maker: (u32, u32),
    /// `struct shmid64_ds` and its like.
    bytes: Vec<u8>,
}

impl Found {
    fn new(id: i32, bytes: Vec<u8>) -> Self {
        // struct ipc64_perm: key, uid, gid, cuid, cgid, mode.
        let word = |index: usize| word(&bytes, 4 * index);
        let object = IpcObject {
            id,
            key: word(0).cast_signed(),
            uid: word(1),
            gid: word(2),
            mode: word(5),
        };
        Self {
            maker: (word(3), word(4)),
            object,
            bytes,
        }
    }

    fn word(&self, at: usize) -> u32 {
        word(&self.bytes, at)
    }

    fn long(&self, at: usize) -> u64 {
        u64::from(self.word(at)) | u64::from(self.word(at + 4)) << 32
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

/// All objects of a kind that a stopped process can see.
fn all(injection: &Injection, kind: Kind) -> Result<Vec<Found>, TraceError> {
    let names = kind.names();
    let mut script = Script::new(area::DATA.start);
    let info = script.reserve(ROOM);
    let what = format!("count {}", names.table);
    script.call(what, names.control, &kind.command(0, names.info, info));
    let highest = injection.run(&script)?[0] as u64;
    let mut counts = [0; ROOM];
    injection.read(info, &mut counts)?;
    if word(&counts, names.used) == 0 {
        return Ok(Vec::new());
    }
    let indices: Vec<u64> = (0..=highest).collect();
    let mut found = Vec::new();
    for indices in indices.chunks(STEPS) {
        let mut script = Script::new(area::DATA.start);
        let mut places = Vec::new();
        for index in indices {
            let place = script.reserve(ROOM);
            let arguments = kind.command(*index, names.stat, place);
            script.step("look at an object", names.control, &arguments, Expect::Anything);
            places.push(place);
        }
        for (id, place) in injection.run(&script)?.into_iter().zip(places) {
            if id >= 0 {
                let mut bytes = vec![0; ROOM];
                injection.read(place, &mut bytes)?;
                found.push(Found::new(id as i32, bytes));
            }
        }
    }
    found.sort_by_key(|found| found.object.id);
    Ok(found)
}

/// Memory of a stopped process for a few calls.
struct Scratch<'a> {
    injection: &'a Injection,
    range: Range<u64>,
}

impl<'a> Scratch<'a> {
    fn map(injection: &'a Injection, length: u64) -> Result<Self, RestoreError> {
        let maps = ProcDir::open(injection.tracee().tid())?.maps()?;
        let mut occupied = restore::occupied(&maps, &[]);
        let range = restore::find_hole(&mut occupied, length.max(1).next_multiple_of(PAGE))?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let mut script = Script::new(area::DATA.start);
        crate::areas::map(
            &mut script,
            "a buffer",
            range.start,
            range.end - range.start,
            protection,
            0,
        );
        injection.run(&script).map_err(RestoreError::from)?;
        Ok(Self { injection, range })
    }
}

impl Drop for Scratch<'_> {
    fn drop(&mut self) {
        let mut script = Script::new(area::DATA.start);
        let length = self.range.end - self.range.start;
        script.call("unmap a buffer", libc::SYS_munmap, &[self.range.start, length]);
        if let Err(error) = self.injection.run(&script) {
            tracing::debug!("a buffer stays mapped: {error}");
        }
    }
}

impl From<RestoreError> for CaptureError {
    fn from(error: RestoreError) -> Self {
        match error {
            RestoreError::Trace(error) => error.into(),
            RestoreError::Proc(error) => error.into(),
            RestoreError::Areas(error) => error.into(),
            other => Self::Unsupported(other.to_string()),
        }
    }
}

fn refuse<T>(reason: impl Into<String>) -> Result<T, CaptureError> {
    Err(CaptureError::Unsupported(reason.into()))
}

/// What the frozen processes of a job have made; `held` are the POSIX message queues that they have open.
///
/// # Errors
/// [`CaptureError::Unsupported`] names what cannot be read or made again.
pub fn capture(processes: &[Frozen], held: &[queues::Held], ledger: &Ledger) -> Result<Ipc, CaptureError> {
    let mut ipc = Ipc {
        queues: queues::capture(processes, held, ledger)?,
        ..Ipc::default()
    };
    let Some(first) = processes.first().filter(|_| ledger.has_system_v()) else {
        return Ok(ipc);
    };
    let injection = first.leader();
    let mut script = Script::new(area::DATA.start);
    script.call("ask for the user", libc::SYS_geteuid, &[]);
    script.call("ask for the group", libc::SYS_getegid, &[]);
    let own: Vec<u32> = injection.run(&script)?.into_iter().map(|id| id as u32).collect();
    for kind in Kind::ALL {
        let names = kind.names();
        for found in all(injection, kind)?
            .into_iter()
            .filter(|found| ledger.is_own(kind, found))
        {
            let id = found.object.id;
            if found.maker != (own[0], own[1]) {
                let (noun, (uid, gid)) = (names.noun, found.maker);
                return refuse(format!("{noun} {id} was made as another user ({uid}:{gid})"));
            }
            match kind {
                Kind::Segment => ipc.segments.push(memory::capture(&found)?),
                Kind::Semaphores => ipc.semaphores.push(semaphores::capture(processes, &found)?),
                Kind::Messages => ipc.messages.push(messages::capture(injection, &found)?),
            }
        }
    }
    Ok(ipc)
}

/// Makes every object of a job in its first process, which is alone in an IPC namespace. Values and messages of System
/// V objects come later. `number` gives that process's descriptors of open files.
///
/// # Errors
/// [`RestoreError`] names the object that this host does not let be.
pub fn make(injection: &Injection, job: &Job, number: &dyn Fn(u32) -> Option<i32>) -> Result<(), RestoreError> {
    let (ipc, first) = (&job.ipc, &job.processes[0]);
    let one = |object: &IpcObject, size: u64, number: i64| (*object, size, number);
    let segments = ipc
        .segments
        .iter()
        .map(|segment| one(&segment.object, segment.size, libc::SYS_shmget));
    let sets = ipc.semaphores.iter();
    let sets = sets.map(|set| one(&set.object, set.semaphores.len() as u64, libc::SYS_semget));
    let queues = ipc.messages.iter().map(|queue| one(&queue.object, 0, libc::SYS_msgget));
    make_all(injection, Kind::Segment, segments.collect(), first)?;
    make_all(injection, Kind::Semaphores, sets.collect(), first)?;
    make_all(injection, Kind::Messages, queues.collect(), first)?;
    queues::make(injection, job, number)
}

fn make_all(
    injection: &Injection,
    kind: Kind,
    objects: Vec<(IpcObject, u64, i64)>,
    first: &Process,
) -> Result<(), RestoreError> {
    if objects.is_empty() {
        return Ok(());
    }
    let names = kind.names();
    let mut script = Script::new(area::DATA.start);
    let path = script.data(&[names.next.as_bytes(), &[0]].concat());
    let arguments = [libc::AT_FDCWD as u64, path, (libc::O_WRONLY | libc::O_CLOEXEC) as u64];
    script.call(format_args!("open {}", names.next), libc::SYS_openat, &arguments);
    let next = injection.run(&script)?[0] as u64;
    for objects in objects.chunks(STEPS / 3) {
        let mut script = Script::new(area::DATA.start);
        for (object, size, number) in objects {
            let IpcObject {
                id,
                key,
                uid,
                gid,
                mode,
            } = *object;
            let what = format!("make {} {id}", names.noun);
            let text = id.to_string();
            let arguments = [next, script.data(text.as_bytes()), text.len() as u64, 0];
            script.call(format_args!("choose the number {id}"), libc::SYS_pwrite64, &arguments);
            let flags = u64::from(mode & 0o777 | CREATE);
            let arguments = match kind {
                Kind::Messages => vec![key as u64, flags],
                Kind::Segment | Kind::Semaphores => vec![key as u64, *size, flags],
            };
            script.step(what, *number, &arguments, Expect::Exactly(id as u64));
            // A queue's owner is set with its room.
            if kind != Kind::Messages && (uid, gid) != (first.credentials.uid[1], first.credentials.gid[1]) {
                let about = script.data(&about(object));
                let arguments = kind.command(id as u64, IPC_SET, about);
                script.call(format_args!("give away {} {id}", names.noun), names.control, &arguments);
            }
        }
        injection.run(&script)?;
    }
    let mut script = Script::new(area::DATA.start);
    script.call(format_args!("close {}", names.next), libc::SYS_close, &[next]);
    injection.run(&script)?;
    Ok(())
}

/// A structure for `IPC_SET`: of `struct ipc64_perm` the owner and the mode.
fn about(object: &IpcObject) -> [u8; ROOM] {
    let mut bytes = [0; ROOM];
    for (index, word) in [(1, object.uid), (2, object.gid), (5, object.mode & 0o777)] {
        bytes[4 * index..4 * index + 4].copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

/// When all processes are there with their descriptors: what each of them is to undo, then the values and messages, and
/// who is to be told of the next one.
///
/// # Errors
/// As [`make`].
pub fn finish(restorers: &[Restorer], job: &Job) -> Result<(), RestoreError> {
    let by = |pid: i32| {
        let index = job.processes.iter().position(|process| process.pid == pid);
        restorers[index.unwrap_or(0)].injection()
    };
    semaphores::finish(&by, &job.ipc.semaphores)?;
    messages::finish(&by, &job.ipc.messages)?;
    queues::finish(restorers, job)
}

/// Removes what is in an image now. To be called before the job ends.
pub fn remove(processes: &[Frozen], ipc: &Ipc) {
    let Some(first) = processes.first() else { return };
    let segments = ipc.segments.iter().map(|segment| (Kind::Segment, segment.object.id));
    let sets = ipc.semaphores.iter().map(|set| (Kind::Semaphores, set.object.id));
    let queues = ipc.messages.iter().map(|queue| (Kind::Messages, queue.object.id));
    let objects: Vec<(Kind, i32)> = segments.chain(sets).chain(queues).collect();
    let names: Vec<_> = ipc.queues.iter().filter(|queue| !queue.unlinked).collect();
    let remove = |script: &Script| {
        if let Err(error) = first.leader().run(script) {
            tracing::warn!("System V objects or message queues stay here: {error}");
        }
    };
    for objects in objects.chunks(STEPS) {
        let mut script = Script::new(area::DATA.start);
        for (kind, id) in objects {
            let (names, arguments) = (kind.names(), kind.command(*id as u64, IPC_RMID, 0));
            let what = format!("remove {} {id}", names.noun);
            script.step(what, names.control, &arguments, Expect::Anything);
        }
        remove(&script);
    }
    // Of names no more data fits.
    for names in names.chunks(STEPS / 3) {
        let mut script = Script::new(area::DATA.start);
        for queue in names {
            let name = script.data(&[&queue.name[..], &[0]].concat());
            script.step("unlink a message queue", libc::SYS_mq_unlink, &[name], Expect::Anything);
        }
        remove(&script);
    }
}

/// Processes of a host that are not of the job, by the numbers that /proc gives: they live.
fn is_outside(pid: i32, processes: &[i32]) -> bool {
    let lives = || match ProcDir::open(pid).and_then(|directory| directory.stat()) {
        Ok(stat) => !matches!(stat.state, b'Z' | b'X'),
        Err(ProcError::Gone(_)) => false,
        Err(_) => true,
    };
    pid != 0 && !processes.contains(&pid) && lives()
}
