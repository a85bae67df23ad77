//! When a thread runs: policy, priority, processors, and the order of its input and output.

use super::{Answers, Result};
use crate::restore::Home;
use vrun_image::state::{Scheduling, Thread};
use vrun_shim::{Expect, Script};

/// `SCHED_ATTR_SIZE_VER0` (`linux/sched/types.h`): size, policy, flags, nice, priority, runtime, deadline, period.
const ATTRIBUTES: usize = 48;
/// Bytes of a CPU mask: 8192 processors, the most that a kernel for x86 can have.
const MASK: usize = 1024;
/// `IOPRIO_WHO_PROCESS` (`linux/ioprio.h`).
const WHO_PROCESS: u64 = 1;
/// `SCHED_RESET_ON_FORK` of `sched_setscheduler(2)`, and its name in `sched_attr`.
const RESET_ON_FORK: u64 = 0x4000_0000;
const FLAG_RESET_ON_FORK: u64 = 1;
/// Of `sched_attr`: reset on fork, reclaim, overrun signal. The others say what to leave alone.
const FLAGS: u64 = 0x7;
/// `linux/sched.h`.
const SCHED_DEADLINE: u32 = 6;

pub(super) struct Questions {
    attributes: u64,
    mask: u64,
    mask_length: usize,
    io_priority: usize,
}

pub(super) fn ask(script: &mut Script) -> Questions {
    let attributes = script.reserve(ATTRIBUTES);
    let arguments = [0, attributes, ATTRIBUTES as u64, 0];
    script.call("ask for the scheduling policy", libc::SYS_sched_getattr, &arguments);
    let mask = script.reserve(MASK);
    let arguments = [0, MASK as u64, mask];
    let mask_length = script.call("ask for the processors", libc::SYS_sched_getaffinity, &arguments);
    let io_priority = script.call("ask for the I/O priority", libc::SYS_ioprio_get, &[WHO_PROCESS, 0]);
    Questions {
        attributes,
        mask,
        mask_length,
        io_priority,
    }
}

impl Questions {
    pub(super) fn read(self, answers: &Answers<'_>) -> Result<Scheduling> {
        let [size_policy, flags, nice_priority, runtime, deadline, period] = answers.words(self.attributes)?;
        let length = (answers.result(self.mask_length) as usize).min(MASK);
        let mut affinity = answers.bytes(self.mask, length)?;
        while affinity.pop_if(|byte| *byte == 0).is_some() {}
        if is_all(&affinity) {
            affinity.clear();
        }
        Ok(Scheduling {
            policy: (size_policy >> 32) as u32,
            flags: flags & FLAGS,
            nice: nice_priority as i32,
            priority: (nice_priority >> 32) as u32,
            deadline: [runtime, deadline, period],
            affinity,
            io_priority: answers.result(self.io_priority) as i32,
        })
    }
}

/// Whether a mask has every processor that is online: a list of numbers and ranges, `0-3,6`.
fn is_all(mask: &[u8]) -> bool {
    let online = std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    let has = |cpu: usize| mask.get(cpu / 8).is_some_and(|byte| byte & 1 << (cpu % 8) != 0);
    let mut ranges = online.trim().split(',').map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some(first.parse::<usize>().ok()?..=last.parse::<usize>().ok()?)
    });
    ranges.all(|range| range.is_some_and(|mut range| range.all(has)))
}

/// What this host lacks or the user may not have is not worth failing for: a thread whose processors are not here runs on
/// all, one whose policy is refused is scheduled as its user's others.
pub(super) fn steps(script: &mut Script, thread: &Thread, home: Home) {
    let scheduling = &thread.scheduling;
    let mut set = |what, number, arguments: &[u64]| {
        script.step(what, number, arguments, Expect::Anything);
    };
    let nice = i64::from(scheduling.nice) as u64;
    set(
        "set the priority",
        libc::SYS_setpriority,
        &[libc::PRIO_PROCESS as u64, 0, nice],
    );
    if home == Home::Deputy {
        return; // it kept the rest
    }
    if !scheduling.affinity.is_empty() {
        let mask = script.data(&scheduling.affinity);
        let arguments = [0, scheduling.affinity.len() as u64, mask];
        script.step(
            "set the processors",
            libc::SYS_sched_setaffinity,
            &arguments,
            Expect::Anything,
        );
    }
    if scheduling.policy == SCHED_DEADLINE {
        let mut attributes = (ATTRIBUTES as u32).to_le_bytes().to_vec();
        attributes.extend(scheduling.policy.to_le_bytes());
        attributes.extend(scheduling.flags.to_le_bytes());
        attributes.extend([0; 8]);
        attributes.extend(scheduling.deadline.iter().flat_map(|time| time.to_le_bytes()));
        let arguments = [0, script.data(&attributes), 0];
        script.step(
            "set the deadline",
            libc::SYS_sched_setattr,
            &arguments,
            Expect::Anything,
        );
    } else {
        let reset = if scheduling.flags & FLAG_RESET_ON_FORK != 0 {
            RESET_ON_FORK
        } else {
            0
        };
        let priority = script.data(&scheduling.priority.to_le_bytes());
        let arguments = [0, u64::from(scheduling.policy) | reset, priority];
        let what = "set the scheduling policy";
        script.step(what, libc::SYS_sched_setscheduler, &arguments, Expect::Anything);
    }
    if home != Home::Away && scheduling.io_priority != 0 {
        let arguments = [WHO_PROCESS, 0, scheduling.io_priority as u64];
        script.step(
            "set the I/O priority",
            libc::SYS_ioprio_set,
            &arguments,
            Expect::Anything,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_processors_are_those_online() {
        assert!(!is_all(&[]));
        assert!(is_all(&[0xff; MASK]));
    }
}
