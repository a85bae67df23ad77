//! Shared memory: segments with what is in them, whether somebody has them attached or not.
//!
//! What processes have attached are areas ([`crate::areas`]): they are mapped from a window, an attachment of our own
//! in the process that all others are made from. Contents are read and written through one, too.

use super::{Found, IPC_RMID, Kind, refuse};
use crate::areas::AreaError;
use crate::capture::{CaptureError, Frozen};
use crate::memory::{self, MemoryError, TargetMemory};
use crate::proc::ProcDir;
use crate::restore::{RestoreError, find_hole, occupied};
use std::ops::Range;
use vrun_image::state::{AreaKind, Ipc, Process, Segment, SharedKind, SharedMemory};
use vrun_shim::{Expect, Injection, Script, TraceError, area};

/// Bits of a segment's mode (`linux/shm.h`).
const SHM_DEST: u32 = 0o1000;
const SHM_LOCKED: u32 = 0o2000;
const SHM_HUGETLB: u32 = 0o4000;
const SHM_LOCK: u64 = 11;
const IPC_STAT: u64 = 2;
/// Offsets of the mode and `shm_segsz` in `struct shmid64_ds`.
const MODE: u64 = 20;
const SIZE: u64 = 48;

pub(super) fn capture(found: &Found) -> Result<Segment, CaptureError> {
    let mut object = found.object;
    if object.mode & SHM_HUGETLB != 0 {
        let id = object.id;
        return refuse(format!(
            "the System V shared memory {id} is of huge pages (SHM_HUGETLB)"
        ));
    }
    object.mode &= 0o777 | SHM_DEST | SHM_LOCKED;
    Ok(Segment {
        object,
        size: found.long(SIZE as usize),
    })
}

/// The segments of a job among what areas show: all of them, each as large as it is.
pub fn enter(ipc: &Ipc, shared: &mut Vec<SharedMemory>) {
    for segment in &ipc.segments {
        let kind = SharedKind::SystemV { id: segment.object.id };
        let size = segment.size.next_multiple_of(memory::PAGE);
        match shared.iter_mut().find(|memory| memory.kind == kind) {
            Some(memory) => memory.size = size,
            None => shared.push(SharedMemory { size, kind }),
        }
    }
}

/// Attaches a segment where nothing is or will be; at least for reading. It shows all of it.
///
/// # Errors
/// [`AreaError`].
pub fn attach(injection: &Injection, occupied: &mut Vec<Range<u64>>, id: i32) -> Result<Range<u64>, AreaError> {
    let mut script = Script::new(area::DATA.start);
    let about = script.reserve(super::ROOM);
    let arguments = Kind::Segment.command(id as u64, IPC_STAT, about);
    script.call(
        format_args!("look at the System V shared memory {id}"),
        libc::SYS_shmctl,
        &arguments,
    );
    injection.run(&script)?;
    let mut size = [0; 8];
    injection.read(about + SIZE, &mut size)?;
    let size = u64::from_le_bytes(size).next_multiple_of(memory::PAGE);
    let window = find_hole(occupied, size).map_err(|error| AreaError::Unsupported(error.to_string()))?;
    let shmat = |flags: i32, expect| -> Result<i64, TraceError> {
        let mut script = Script::new(area::DATA.start);
        let arguments = [id as u64, window.start, flags as u64];
        let what = format!("attach the System V shared memory {id}");
        script.step(what, libc::SYS_shmat, &arguments, expect);
        Ok(injection.run(&script)?[0])
    };
    if shmat(0, Expect::Anything)? != window.start as i64 {
        shmat(libc::SHM_RDONLY, Expect::Exactly(window.start))?;
    }
    Ok(window)
}

/// Of what a job shows that moves, a segment that was removed ends with it: it is as any other shared memory.
///
/// # Errors
/// [`TraceError`].
pub fn forget_removed(injection: &Injection, shared: &mut [SharedMemory]) -> Result<(), TraceError> {
    for memory in shared {
        let SharedKind::SystemV { id } = memory.kind else {
            continue;
        };
        let mut script = Script::new(area::DATA.start);
        let about = script.reserve(super::ROOM);
        let arguments = Kind::Segment.command(id as u64, IPC_STAT, about);
        script.step("look at a segment", libc::SYS_shmctl, &arguments, Expect::Anything);
        let seen = injection.run(&script)?[0] == 0;
        let mut mode = [0; 4];
        injection.read(about + MODE, &mut mode)?;
        if seen && u32::from_le_bytes(mode) & SHM_DEST != 0 {
            memory.kind = SharedKind::Anonymous { huge_page: 0 };
        }
    }
    Ok(())
}

/// Whether a process has something attached that outlives it.
pub fn outlives(process: &Process, shared: &[SharedMemory]) -> bool {
    process.memory.areas.iter().any(|area| match area.kind {
        AreaKind::Shared { object, .. } => {
            let memory = shared.get(object as usize);
            memory.is_some_and(|memory| matches!(memory.kind, SharedKind::SystemV { .. }))
        }
        _ => false,
    })
}

/// Sends what is in the segments of a frozen job to `sink`, as [`crate::capture::dump`] does; `shared` numbers them.
///
/// # Errors
/// [`CaptureError`], and what `sink` returns.
pub fn dump<E: From<CaptureError> + From<MemoryError>>(
    processes: &[Frozen],
    ipc: &Ipc,
    shared: &[SharedMemory],
    mut sink: impl FnMut(u32, u64, &[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let Some(first) = processes.first() else { return Ok(()) };
    let injection = first.leader();
    for segment in &ipc.segments {
        let id = segment.object.id;
        let number = shared
            .iter()
            .position(|memory| memory.kind == SharedKind::SystemV { id });
        let number = (processes.len() + number.unwrap_or(0)) as u32;
        let window = attach_here(injection, id)?;
        let mut read = || -> Result<(), E> {
            let directory = ProcDir::open(first.pid()).map_err(CaptureError::from)?;
            let maps = directory.smaps().map_err(CaptureError::from)?;
            let target = TargetMemory::open(first.pid())?;
            for entry in maps.iter().filter(|entry| entry.start == window.start) {
                let ranges = memory::shown(&target, entry, std::slice::from_ref(&window))?;
                memory::dump_shown(&target, entry, &ranges, |start, bytes| {
                    sink(number, start - window.start, bytes)
                })?;
            }
            Ok(())
        };
        let result = read();
        let mut script = Script::new(area::DATA.start);
        script.call("detach a segment", libc::SYS_shmdt, &[window.start]);
        injection.run(&script).map_err(CaptureError::from)?;
        result?;
    }
    Ok(())
}

fn attach_here(injection: &Injection, id: i32) -> Result<Range<u64>, CaptureError> {
    let maps = ProcDir::open(injection.tracee().tid())?.maps()?;
    Ok(attach(injection, &mut occupied(&maps, &[]), id)?)
}

/// What a segment is once it is attached: locked, or to go with its last attachment.
///
/// # Errors
/// [`RestoreError`].
pub fn finish(injection: &Injection, ipc: &Ipc) -> Result<(), RestoreError> {
    for segments in ipc.segments.chunks(super::STEPS / 2) {
        let mut script = Script::new(area::DATA.start);
        for segment in segments {
            let id = segment.object.id;
            let mut call = |what: &str, command| {
                let arguments = Kind::Segment.command(id as u64, command, 0);
                let what = format!("{what} the System V shared memory {id}");
                script.call(what, libc::SYS_shmctl, &arguments);
            };
            if segment.object.mode & SHM_LOCKED != 0 {
                call("lock", SHM_LOCK);
            }
            if segment.object.mode & SHM_DEST != 0 {
                call("remove", IPC_RMID);
            }
        }
        injection.run(&script)?;
    }
    Ok(())
}
