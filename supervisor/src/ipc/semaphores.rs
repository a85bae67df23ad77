//! Semaphore sets: values, who changed them last, and what is undone when a process ends (`SEM_UNDO`).
//!
//! Nothing tells the adjustments that the kernel keeps for a process. But it checks them: `semop(2)` fails with `ERANGE`
//! if an operation would bring one out of range, and changes nothing if another operation of the same call cannot be
//! done. So a process asks for its own adjustment by calls that have no effect, whoever else uses the set meanwhile:
//!
//! ```text
//!   raise the value to 32767,  -k with SEM_UNDO,  -32768 without waiting     ERANGE: adjustment + k > 32767
//!                                                                            EAGAIN: it is not
//! ```
//!
//! It is restored by `+k` and `-k` of which only one is to be undone, while the value is still 0.

use super::{Found, STEPS, refuse};
use crate::capture::{CaptureError, Frozen};
use crate::restore::RestoreError;
use crate::sys;
use std::collections::BTreeMap;
use vrun_image::state::{Adjustment, Semaphore, SemaphoreSet};
use vrun_shim::{Expect, Injection, Script, TraceError, area};

const GETPID: u64 = 11;
const GETALL: u64 = 13;
/// `SEMVMX` and `SEMAEM`: the largest value, and the largest adjustment.
const MOST: i32 = 32767;
/// `SEM_UNDO`, sem.h.
const UNDO: i16 = 0x1000;
/// Operations of one call: far fewer than `SEMOPM`.
const OPERATIONS: usize = 100;

/// `struct sembuf`: number, operation, flags.
type Operation = (u16, i16, i16);

fn bytes(operations: &[Operation]) -> Vec<u8> {
    let words = operations.iter().flat_map(|(number, operation, flags)| {
        let words = [*number, operation.cast_unsigned(), flags.cast_unsigned()];
        words.map(u16::to_le_bytes)
    });
    words.flatten().collect()
}

fn semop(script: &mut Script, what: &str, id: i32, operations: &[Operation], expect: Expect) {
    let address = script.data(&bytes(operations));
    let arguments = [id as u64, address, operations.len() as u64];
    script.step(format_args!("{what} of set {id}"), libc::SYS_semop, &arguments, expect);
}

pub(super) fn capture(processes: &[Frozen], found: &Found) -> Result<SemaphoreSet, CaptureError> {
    let id = found.object.id;
    let injection = processes[0].leader();
    let numbers: Vec<u16> = (0..found.long(80) as u16).collect();
    let mut semaphores = Vec::with_capacity(numbers.len());
    let mut script = Script::new(area::DATA.start);
    let address = script.reserve(2 * numbers.len());
    let arguments = [id as u64, 0, GETALL, address];
    script.step("read the values", libc::SYS_semctl, &arguments, Expect::Anything);
    if injection.run(&script)?[0] < 0 {
        return refuse(format!("the System V semaphore set {id} does not let the job read it"));
    }
    let mut values = vec![0; 2 * numbers.len()];
    injection.read(address, &mut values)?;
    let mut values = values
        .chunks_exact(2)
        .map(|word| u16::from_le_bytes([word[0], word[1]]));
    for numbers in numbers.chunks(STEPS) {
        let mut script = Script::new(area::DATA.start);
        for number in numbers {
            script.call(
                "ask who changed it last",
                libc::SYS_semctl,
                &[id as u64, (*number).into(), GETPID],
            );
        }
        let last = injection.run(&script)?.into_iter().map(|pid| pid as i32);
        semaphores.extend(values.by_ref().zip(last).map(|(value, last)| Semaphore { value, last }));
    }
    let mut set = SemaphoreSet {
        object: found.object,
        semaphores,
        adjustments: Vec::new(),
    };
    set.object.mode &= 0o777;
    // Whose adjustments they are: a thread of each list of them.
    let mut owners: Vec<(i32, i32)> = Vec::new();
    for process in processes {
        for thread in process.threads() {
            let (tid, leader) = (thread.injection().tracee().tid(), process.pid());
            if tid != leader && sys::share(tid, leader, sys::Shared::Undo).unwrap_or(true) {
                continue;
            }
            let found = adjustments(thread.injection(), &set)?;
            if found.is_empty() {
                continue;
            }
            let shares = |other: &&(i32, i32)| sys::share(tid, other.1, sys::Shared::Undo).unwrap_or(false);
            if let Some((other, _)) = owners.iter().find(shares) {
                let pid = process.inner_pid();
                return refuse(format!(
                    "its processes {other} and {pid} undo changes of semaphores together (clone)"
                ));
            }
            if tid != leader {
                let tid = thread.inner_tid();
                return refuse(format!(
                    "its thread {tid} undoes changes of semaphores by itself when it ends"
                ));
            }
            owners.push((process.inner_pid(), tid));
            set.adjustments
                .extend(found.into_iter().map(|(number, value)| Adjustment {
                    process: process.inner_pid(),
                    number,
                    value,
                }));
        }
    }
    Ok(set)
}

/// A search for an adjustment: it is beyond `low`, and not beyond `high`.
struct Search {
    number: u16,
    positive: bool,
    low: i32,
    high: i32,
}

impl Search {
    fn middle(&self) -> i32 {
        self.low + (self.high - self.low) / 2
    }

    /// Operations that fail with `ERANGE` if the adjustment is above `limit`, or below `-limit`.
    fn question(&self, value: u16, limit: i32) -> Vec<Operation> {
        let (number, value) = (self.number, i32::from(value));
        let by = |operation: i32, flags| (number, operation as i16, flags);
        let operations = match self.positive {
            true => vec![by(MOST - value, 0), by(limit - MOST, UNDO)],
            false => {
                // What is added does not fit into one operation.
                let more = MOST + 1 - limit;
                let half = more / 2;
                vec![by(-value, 0), by(half, UNDO), by(-half, 0), by(more - half, UNDO)]
            }
        };
        let never = (number, i16::MIN, libc::IPC_NOWAIT as i16);
        // 0 would wait for that value.
        let operations = operations.into_iter().filter(|(_, operation, _)| *operation != 0);
        operations.chain([never]).collect()
    }
}

/// What a thread is to undo: semaphores of a set, and what is added to each.
fn adjustments(injection: &Injection, set: &SemaphoreSet) -> Result<Vec<(u16, i16)>, TraceError> {
    let all = (0..set.semaphores.len() as u16).flat_map(|number| {
        [true, false].map(|positive| Search {
            number,
            positive,
            // So that the first question is whether there is any.
            low: -1,
            high: MOST + i32::from(!positive),
        })
    });
    let mut searches: Vec<Search> = all.collect();
    let mut found = BTreeMap::new();
    let mut first = true;
    while !searches.is_empty() {
        let mut next = Vec::new();
        let mut rest = searches.into_iter().peekable();
        while rest.peek().is_some() {
            let asked: Vec<Search> = rest.by_ref().take(STEPS).collect();
            let mut script = Script::new(area::DATA.start);
            for search in &asked {
                let limit = if first { 0 } else { search.middle() };
                let value = set.semaphores[usize::from(search.number)].value;
                let operations = search.question(value, limit);
                semop(
                    &mut script,
                    "ask for an adjustment",
                    set.object.id,
                    &operations,
                    Expect::Anything,
                );
            }
            for (mut search, result) in asked.into_iter().zip(injection.run(&script)?) {
                let limit = if first { 0 } else { search.middle() };
                let beyond = result == -i64::from(libc::ERANGE);
                if beyond {
                    search.low = limit;
                } else {
                    search.high = limit;
                }
                if search.high - search.low > 1 {
                    next.push(search);
                } else if search.high > 0 {
                    let value = if search.positive { search.high } else { -search.high };
                    found.insert(search.number, value as i16);
                }
            }
        }
        (searches, first) = (next, false);
    }
    Ok(found.into_iter().collect())
}

/// `by` gives the process of a number, or the first one.
pub(super) fn finish<'a>(by: &dyn Fn(i32) -> &'a Injection, sets: &[SemaphoreSet]) -> Result<(), RestoreError> {
    for set in sets {
        for adjustments in set.adjustments.chunk_by(|a, b| a.process == b.process) {
            let operations: Vec<_> = adjustments.iter().flat_map(undone).collect();
            change(by(adjustments[0].process), "restore what is undone", set, &operations)?;
        }
        let mut values: BTreeMap<i32, Vec<Operation>> = BTreeMap::new();
        for (number, Semaphore { value, last }) in (0..).zip(&set.semaphores) {
            if (*value, *last) != (0, 0) {
                // Waiting for the value 0, which it has, counts as a change of it.
                values.entry(*last).or_default().push((number, *value as i16, 0));
            }
        }
        for (last, operations) in values {
            change(by(last), "set values", set, &operations)?;
        }
    }
    Ok(())
}

/// Operations after which an adjustment is as it was, and the value, 0, too.
fn undone(adjustment: &Adjustment) -> Vec<Operation> {
    let number = adjustment.number;
    let whole = i32::from(adjustment.value);
    // The lowest does not fit into one operation when it is negated.
    [whole / 2, whole - whole / 2]
        .into_iter()
        .filter(|part| *part != 0)
        .flat_map(|part| match part as i16 {
            part @ 1.. => [(number, part, 0), (number, -part, UNDO)],
            part => [(number, -part, UNDO), (number, part, 0)],
        })
        .collect()
}

fn change(injection: &Injection, what: &str, set: &SemaphoreSet, operations: &[Operation]) -> Result<(), TraceError> {
    for operations in operations.chunks(OPERATIONS) {
        let mut script = Script::new(area::DATA.start);
        semop(&mut script, what, set.object.id, operations, Expect::Success);
        injection.run(&script)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_undone_leaves_the_value() {
        for value in [1, -1, 2, 7, -8, i16::MAX, i16::MIN] {
            let adjustment = Adjustment {
                process: 1,
                number: 3,
                value,
            };
            let (mut now, mut adjusts) = (0_i32, 0_i32);
            for (number, operation, flags) in undone(&adjustment) {
                now += i32::from(operation);
                assert!((0..=MOST).contains(&now) && number == 3, "{value}: {now}");
                if flags & UNDO != 0 {
                    adjusts -= i32::from(operation);
                }
            }
            assert_eq!((now, adjusts), (0, i32::from(value)));
        }
    }

    #[test]
    fn questions_stay_in_range_and_tell() {
        for (value, limit) in [(0, 0), (5, 0), (32767, 0), (1, 16000), (32767, 32766), (9, 32767)] {
            for positive in [true, false] {
                let search = Search {
                    number: 0,
                    positive,
                    low: 0,
                    high: 0,
                };
                let (mut now, mut undone) = (value, 0);
                let operations = search.question(value as u16, limit);
                for (_, operation, flags) in &operations[..operations.len() - 1] {
                    now += i32::from(*operation);
                    assert!((0..=MOST).contains(&now) && *operation != 0);
                    if flags & UNDO != 0 {
                        undone -= i32::from(*operation);
                    }
                }
                // The first adjustment that is out of range.
                let first = if positive {
                    MOST + 1 - undone
                } else {
                    -(-MOST - 2 - undone)
                };
                assert_eq!(first, limit + 1, "{value} {limit} {positive}");
            }
        }
    }
}
