//! How a process puts its descriptors in place: scripts of system calls that it makes itself.
//!
//! ```text
//!  send     messages that bear the credentials of a process (the job's first process does it)
//!  move     every slot: dup3 from where the vessel has it, in an order that overwrites nothing still needed
//!  close    what this process has no slot for
//!  open     pidfds
//!  watch    what an epoll instance can only be told here
//!  lock     record locks, owners
//! ```

use std::collections::{BTreeSet, HashMap, HashSet};
use std::os::fd::AsRawFd;
use vrun_image::state::{FileKind, Slot};
use vrun_shim::{Expect, Script, area};

use super::{Opened, kernel};

/// Steps and bytes of data of one script: what surely fits into the vrun area, 128 bytes of code a step.
const MOST_STEPS: usize = 400;
const MOST_DATA: usize = 40 << 10;

/// Scripts, each as long as the area allows.
struct Scripts {
    all: Vec<Script>,
    data: usize,
}

impl Scripts {
    /// The script for another step with so much data.
    fn next(&mut self, data: usize) -> &mut Script {
        let full = self.all.last().is_none_or(|last| last.steps().len() >= MOST_STEPS);
        if full || self.data + data > MOST_DATA {
            self.all.push(Script::new(area::DATA.start));
            self.data = 0;
        }
        // Each piece of data is aligned.
        self.data += data.next_multiple_of(64) + 64;
        let last = self.all.len() - 1;
        &mut self.all[last]
    }

    fn duplicate(&mut self, from: i32, to: i32, close_on_exec: bool) {
        let flags = if close_on_exec { libc::O_CLOEXEC } else { 0 };
        let arguments = [from as u64, to as u64, flags as u64];
        self.next(0)
            .call(format_args!("place descriptor {to}"), libc::SYS_dup3, &arguments);
    }

    fn mark(&mut self, number: i32, close_on_exec: bool) {
        let flags = if close_on_exec { libc::FD_CLOEXEC } else { 0 };
        let arguments = [number as u64, libc::F_SETFD as u64, flags as u64];
        self.next(0)
            .call(format_args!("mark descriptor {number}"), libc::SYS_fcntl, &arguments);
    }
}

/// See [`Opened::scripts`].
pub(super) fn scripts(opened: &Opened, process: usize) -> Vec<Script> {
    let mut scripts = Scripts {
        all: Vec::new(),
        data: 0,
    };
    if process == 0 {
        send(&mut scripts, opened);
    }
    let none = Vec::new();
    let slots = opened.slots.get(process).unwrap_or(&none);
    let is_process =
        |slot: &&Slot| matches!(opened.files[slot.file as usize].kind, FileKind::Process { pid } if pid != 0);
    let moves: Vec<(i32, i32, bool)> = slots
        .iter()
        .filter(|slot| !is_process(slot))
        .map(|slot| {
            (
                opened.ours[slot.file as usize].as_raw_fd(),
                slot.number,
                slot.close_on_exec,
            )
        })
        .collect();
    for step in order(&moves, opened.spare()) {
        match step {
            Move::Duplicate(from, to, close_on_exec) => scripts.duplicate(from, to, close_on_exec),
            Move::Mark(number, close_on_exec) => scripts.mark(number, close_on_exec),
        }
    }
    // In runs: everything that no slot is at,
    let mut taken: BTreeSet<i32> = moves.iter().map(|(_, to, _)| *to).collect();
    let mut from = 0;
    // and what `order` put aside.
    let end = opened.spare() + 1;
    for number in taken.iter().copied().chain([end]) {
        if from < number {
            let arguments = [from as u64, number as u64 - 1, 0];
            let what = format!("close descriptors {from} to {}", number - 1);
            scripts.next(0).call(what, libc::SYS_close_range, &arguments);
        }
        from = number + 1;
    }
    for slot in slots.iter().filter(is_process) {
        let FileKind::Process { pid } = opened.files[slot.file as usize].kind else {
            continue;
        };
        let flags = opened.files[slot.file as usize].flags & libc::O_NONBLOCK.cast_unsigned();
        // A new descriptor gets the lowest number that is free, which is known here.
        let lowest = (0..).find(|number| !taken.contains(number)).unwrap_or(0);
        let arguments = [pid as u64, flags.into()];
        scripts.next(0).step(
            format_args!("open process {pid}"),
            libc::SYS_pidfd_open,
            &arguments,
            Expect::Exactly(lowest as u64),
        );
        if lowest == slot.number {
            scripts.mark(lowest, slot.close_on_exec);
        } else {
            scripts.duplicate(lowest, slot.number, slot.close_on_exec);
            scripts
                .next(0)
                .call("close the first of the two", libc::SYS_close, &[lowest as u64]);
        }
        taken.insert(slot.number);
    }
    watch(&mut scripts, opened, process, slots);
    lock(&mut scripts, opened, process, slots);
    own(&mut scripts, opened, process, slots);
    scripts.all
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Move {
    Duplicate(i32, i32, bool),
    Mark(i32, bool),
}

/// An order of `moves` (from, to, close-on-exec) in which no source is overwritten before it was used. `free`: a number
/// that is neither, for cycles.
fn order(moves: &[(i32, i32, bool)], free: i32) -> Vec<Move> {
    let mut ordered = Vec::with_capacity(moves.len());
    let mut marks = Vec::new();
    // By target; how many still need a source.
    let mut pending: HashMap<i32, (i32, bool)> = HashMap::new();
    let mut readers: HashMap<i32, usize> = HashMap::new();
    for (from, to, close_on_exec) in moves {
        if from == to {
            // It stays: nothing may overwrite it, and it is marked at last.
            marks.push(Move::Mark(*to, *close_on_exec));
        } else {
            pending.insert(*to, (*from, *close_on_exec));
            *readers.entry(*from).or_default() += 1;
        }
    }
    let is_free = |readers: &HashMap<i32, usize>, number: &i32| readers.get(number).is_none_or(|count| *count == 0);
    let mut ready: Vec<i32> = pending.keys().copied().filter(|to| is_free(&readers, to)).collect();
    ready.sort_unstable();
    let mut rest: Vec<i32> = pending.keys().copied().collect();
    rest.sort_unstable();
    loop {
        while let Some(to) = ready.pop() {
            let Some((from, close_on_exec)) = pending.remove(&to) else {
                continue;
            };
            ordered.push(Move::Duplicate(from, to, close_on_exec));
            let count = readers.entry(from).or_default();
            *count -= 1;
            if *count == 0 && pending.contains_key(&from) {
                ready.push(from);
            }
        }
        // What is left goes round in cycles, in which every target is read once: one is put aside.
        let Some(to) = rest.pop() else { break };
        if pending.contains_key(&to) {
            ordered.push(Move::Duplicate(to, free, true));
            for source in pending.values_mut().filter(|(from, _)| *from == to) {
                source.0 = free;
            }
            let count = readers.remove(&to).unwrap_or(0);
            *readers.entry(free).or_default() += count;
            ready.push(to);
        }
    }
    ordered.extend(marks);
    ordered
}

/// Messages whose sender's credentials are told: with `CAP_SYS_ADMIN` over its namespace, which the first process still
/// has, it may say those of any of its processes (`scm_check_creds`, `net/core/scm.c`).
fn send(scripts: &mut Scripts, opened: &Opened) {
    for message in &opened.deferred {
        let numbers: Vec<i32> = message
            .files
            .iter()
            .map(|file| opened.ours[*file as usize].as_raw_fd())
            .collect();
        let credentials = Some(message.credentials).filter(|who| who[0] != 0);
        let control = kernel::control(&numbers, credentials);
        let script = scripts.next(message.bytes.len() + control.len() + message.to.len() + 512);
        let bytes = script.data(&message.bytes);
        let vector = script.data(&[bytes, message.bytes.len() as u64].map(u64::to_le_bytes).concat());
        let control_at = if control.is_empty() { 0 } else { script.data(&control) };
        let to = if message.to.is_empty() {
            0
        } else {
            script.data(&message.to)
        };
        // struct user_msghdr: name, its length (an int), vectors, their number, control, its length, flags.
        let words = [
            to,
            message.to.len() as u64,
            vector,
            1,
            control_at,
            control.len() as u64,
            0,
        ];
        let header = script.data(&words.map(u64::to_le_bytes).concat());
        let flags = (libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) as u64;
        let arguments = [message.sender as u64, header, flags];
        let sent = Expect::Exactly(message.bytes.len() as u64);
        script.step("send a message again", libc::SYS_sendmsg, &arguments, sent);
    }
}

fn watch(scripts: &mut Scripts, opened: &Opened, process: usize, slots: &[Slot]) {
    // A process earlier in the list may have added it already.
    let adds = |slots: &[Slot], epoll: u32, number: i32, file: u32| {
        slots.iter().any(|slot| slot.file == epoll)
            && slots.iter().any(|slot| slot.number == number && slot.file == file)
    };
    let mut done = HashSet::new();
    for slot in slots {
        let FileKind::Epoll { watches, .. } = &opened.files[slot.file as usize].kind else {
            continue;
        };
        if !done.insert(slot.file) {
            continue;
        }
        for watch in watches.iter().filter(|watch| opened.watches_inside(watch)) {
            let before = opened.slots[..process]
                .iter()
                .any(|slots| adds(slots, slot.file, watch.number, watch.file));
            if before || !adds(slots, slot.file, watch.number, watch.file) {
                continue;
            }
            // struct epoll_event is packed on x86_64.
            let event = [&watch.events.to_le_bytes()[..], &watch.data.to_le_bytes()].concat();
            let script = scripts.next(event.len());
            let event = script.data(&event);
            let arguments = [
                slot.number as u64,
                libc::EPOLL_CTL_ADD as u64,
                watch.number as u64,
                event,
            ];
            script.call(
                format_args!("watch descriptor {}", watch.number),
                libc::SYS_epoll_ctl,
                &arguments,
            );
        }
    }
}

fn lock(scripts: &mut Scripts, opened: &Opened, process: usize, slots: &[Slot]) {
    let Some(pid) = opened.pids.get(process) else { return };
    for (file, lock) in opened.locks_of(*pid) {
        let Some(slot) = slots.iter().find(|slot| slot.file == file) else {
            continue;
        };
        let bytes = kernel::lock_bytes(lock.write, lock.start, lock.end);
        let script = scripts.next(bytes.len());
        let arguments = [slot.number as u64, libc::F_SETLK as u64, script.data(&bytes)];
        script.call(
            format_args!("lock through descriptor {}", slot.number),
            libc::SYS_fcntl,
            &arguments,
        );
    }
}

/// `F_SETOWN_EX`, by the first process that has the descriptor.
fn own(scripts: &mut Scripts, opened: &Opened, process: usize, slots: &[Slot]) {
    const F_SETOWN_EX: u64 = 15;
    let mut done = HashSet::new();
    for slot in slots {
        let owner = opened.files[slot.file as usize].owner.filter(|owner| owner.id != 0);
        let before = || {
            opened.slots[..process]
                .iter()
                .flatten()
                .any(|other| other.file == slot.file)
        };
        let Some(owner) = owner else { continue };
        if !done.insert(slot.file) || before() {
            continue;
        }
        let script = scripts.next(8);
        let words = script.data(&[owner.kind, owner.id].map(i32::to_le_bytes).concat());
        let arguments = [slot.number as u64, F_SETOWN_EX, words];
        // Whoever it was may have ended before the job was saved.
        let what = format!("set the owner of descriptor {}", slot.number);
        script.step(what, libc::SYS_fcntl, &arguments, Expect::Anything);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A descriptor table, to try an order on: number → what is there.
    fn apply(moves: &[(i32, i32, bool)], free: i32) -> HashMap<i32, i32> {
        let mut table: HashMap<i32, i32> = moves.iter().map(|(from, _, _)| (*from, *from)).collect();
        for step in order(moves, free) {
            if let Move::Duplicate(from, to, _) = step {
                assert_ne!(from, to);
                table.insert(to, table[&from]);
            }
        }
        table
    }

    proptest::proptest! {
        #[test]
        fn every_descriptor_comes_from_its_source(sources in proptest::collection::vec(0..40_i32, 0..40)) {
            let moves: Vec<_> = (0..).zip(&sources).map(|(to, from)| (*from, to, false)).collect();
            let table = apply(&moves, 100);
            for (from, to, _) in &moves {
                assert_eq!(table[to], *from, "{moves:?}");
            }
        }
    }

    #[test]
    fn cycles_are_broken() {
        let moves = [(3, 4, false), (4, 5, true), (5, 3, false), (7, 7, true), (9, 8, false)];
        let table = apply(&moves, 20);
        assert_eq!([3, 4, 5, 7, 8].map(|number| table[&number]), [5, 3, 4, 7, 9]);
    }
}
