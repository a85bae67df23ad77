//! Who a process is and what it may: limits, credentials, personality, and what `prctl(2)` keeps for a whole process.
//!
//! A restored process lives in a user namespace of its own, in which it is built with every capability and with no more
//! rights over the host than its user has. Before it runs it gets the capabilities that it had, there. Ids and groups
//! that the namespace does not know (an ordinary user's namespace knows one of each) stay those of the user.

use super::{Answers, Result, ask_prctl, set_prctl, words};
use crate::capture::CaptureError;
use crate::restore::Home;
use std::io;
use vrun_image::state::{Credentials, Process, ProcessControls};
use vrun_shim::{Expect, Script};

/// `linux/membarrier.h`, since Linux 6.3.
const GET_REGISTRATIONS: u64 = 1 << 9;
/// `linux/prctl.h`; only root may ask.
const PR_GET_IO_FLUSHER: i32 = 58;
/// `linux/securebits.h`: capabilities survive a change of user.
const NO_SETUID_FIXUP: u64 = 1 << 2;
/// Capabilities that are looked at: all that fit.
const CAPABILITIES: u64 = 64;

pub(super) struct Questions {
    dumpable: usize,
    subreaper: u64,
    no_huge_pages: usize,
    deny_write_execute: usize,
    barriers: usize,
    secure_bits: usize,
    io_flusher: usize,
}

pub(super) struct Identity {
    pub(super) dumpable: u32,
    pub(super) subreaper: bool,
    pub(super) no_huge_pages: bool,
    pub(super) controls: ProcessControls,
    pub(super) secure_bits: u32,
}

pub(super) fn ask(script: &mut Script) -> Questions {
    let (dumpable, _) = ask_prctl(script, libc::PR_GET_DUMPABLE, 0);
    let (_, subreaper) = ask_prctl(script, libc::PR_GET_CHILD_SUBREAPER, 4);
    let (secure_bits, _) = ask_prctl(script, libc::PR_GET_SECUREBITS, 0);
    // These take no address; a kernel may not know them.
    let mut flag = |option: i32| {
        let what = format_args!("prctl option {option}");
        script.step(what, libc::SYS_prctl, &[option as u64, 0, 0, 0, 0], Expect::Anything)
    };
    let no_huge_pages = flag(libc::PR_GET_THP_DISABLE);
    let deny_write_execute = flag(libc::PR_GET_MDWE);
    let io_flusher = flag(PR_GET_IO_FLUSHER);
    let what = "ask for the memory barriers";
    let barriers = script.step(what, libc::SYS_membarrier, &[GET_REGISTRATIONS, 0, 0], Expect::Anything);
    Questions {
        dumpable,
        subreaper,
        no_huge_pages,
        deny_write_execute,
        barriers,
        secure_bits,
        io_flusher,
    }
}

impl Questions {
    pub(super) fn read(self, answers: &Answers<'_>) -> Result<Identity> {
        let known = |step| u32::try_from(answers.result(step)).unwrap_or(0);
        if known(self.io_flusher) == 1 {
            let reason = "it writes for a file system (PR_SET_IO_FLUSHER)";
            return Err(CaptureError::Unsupported(reason.to_owned()));
        }
        Ok(Identity {
            dumpable: known(self.dumpable),
            subreaper: answers.int(self.subreaper)? != 0,
            no_huge_pages: known(self.no_huge_pages) != 0,
            controls: ProcessControls {
                deny_write_execute: known(self.deny_write_execute),
                barriers: known(self.barriers),
                ..ProcessControls::default()
            },
            secure_bits: known(self.secure_bits),
        })
    }
}

/// Some personalities change what is mapped: an emptied process has none while it is filled.
pub fn before_mapping(script: &mut Script) {
    script.call("lay down the personality", libc::SYS_personality, &[0]);
}

pub(super) fn process_steps(script: &mut Script, process: &Process, home: Home) {
    // A limit above this host's hard limit is not worth failing for.
    for (resource, limit) in process.limits.iter().enumerate() {
        let arguments = [0, resource as u64, script.data(&words(&[limit.soft, limit.hard])), 0];
        let what = format_args!("set limit {resource}");
        script.step(what, libc::SYS_prlimit64, &arguments, Expect::Anything);
    }
    let no_huge_pages = u64::from(process.no_huge_pages);
    set_prctl(script, "the use of huge pages", libc::PR_SET_THP_DISABLE, no_huge_pages);
    let ProcessControls {
        deny_write_execute,
        barriers,
        ..
    } = process.controls;
    for barrier in (0..32).map(|bit| 1 << bit).filter(|bit| barriers & bit != 0) {
        let what = "register for memory barriers";
        script.call(what, libc::SYS_membarrier, &[u64::from(barrier), 0, 0]);
    }
    if deny_write_execute != 0 {
        let arguments = [libc::PR_SET_MDWE as u64, deny_write_execute.into(), 0, 0, 0];
        script.call("deny memory written and executed", libc::SYS_prctl, &arguments);
    }
    // The deputy is what it was, and was told what the guest became.
    if matches!(home, Home::Here { .. }) {
        let subreaper = u64::from(process.subreaper);
        set_prctl(
            script,
            "the subreaper attribute",
            libc::PR_SET_CHILD_SUBREAPER,
            subreaper,
        );
    }
}

/// The thread's personality and credentials. Nothing that needs a capability may come after them, and the signal for a parent's death not
/// before: a change of user takes it away.
pub(super) fn thread_steps(script: &mut Script, process: &Process, home: Home) {
    script.call("set the personality", libc::SYS_personality, &[process.personality]);
    if home == Home::Deputy {
        return; // it kept the rest
    }
    let credentials = &process.credentials;
    // A guest's ids are asked of its deputy.
    let here = matches!(home, Home::Here { .. });
    if here {
        set_prctl(
            script,
            "the securebits for a while",
            libc::PR_SET_SECUREBITS,
            NO_SETUID_FIXUP,
        );
        ids(script, credentials);
    }
    for capability in (0..CAPABILITIES).filter(|bit| credentials.capabilities[3] & 1 << bit == 0) {
        let what = format_args!("{capability} out of the bounding set");
        set_prctl(script, what, libc::PR_CAPBSET_DROP, capability);
    }
    ambient(script, credentials);
    set_prctl(
        script,
        "the securebits",
        libc::PR_SET_SECUREBITS,
        credentials.secure_bits.into(),
    );
    let [inheritable, permitted, effective, _, _] = credentials.capabilities;
    set_capabilities(script, [inheritable, permitted, effective]);
    if here {
        // A change of credentials makes it undumpable.
        set_prctl(
            script,
            "whether it is dumpable",
            libc::PR_SET_DUMPABLE,
            process.dumpable.into(),
        );
    }
}

/// Groups first: the right to set them goes with the user.
fn ids(script: &mut Script, credentials: &Credentials) {
    let set = |script: &mut Script, what: &str, number: i64, arguments: &[u64]| {
        script.step(format_args!("set the {what}"), number, arguments, Expect::Anything);
    };
    let [uid, euid, suid, fsuid] = credentials.uid.map(u64::from);
    let [gid, egid, sgid, fsgid] = credentials.gid.map(u64::from);
    let list: Vec<u8> = credentials
        .groups
        .iter()
        .flat_map(|group| group.to_le_bytes())
        .collect();
    let list = [credentials.groups.len() as u64, script.data(&list)];
    set(script, "groups", libc::SYS_setgroups, &list);
    set(script, "group ids", libc::SYS_setresgid, &[gid, egid, sgid]);
    set(script, "group id for files", libc::SYS_setfsgid, &[fsgid]);
    set(script, "user ids", libc::SYS_setresuid, &[uid, euid, suid]);
    set(script, "user id for files", libc::SYS_setfsuid, &[fsuid]);
}

/// Ambient capabilities are raised from those that are permitted and inheritable.
fn ambient(script: &mut Script, credentials: &Credentials) {
    let [inheritable, permitted, _, _, ambient] = credentials.capabilities;
    if ambient & inheritable & permitted == 0 {
        return;
    }
    const SETPCAP: u64 = 1 << 8;
    set_capabilities(script, [inheritable, permitted | SETPCAP, permitted | SETPCAP]);
    for capability in (0..CAPABILITIES).filter(|bit| ambient & 1 << bit != 0) {
        const RAISE: u64 = libc::PR_CAP_AMBIENT_RAISE as u64;
        let arguments = [libc::PR_CAP_AMBIENT as u64, RAISE, capability, 0, 0];
        let what = format_args!("set the ambient capability {capability}");
        script.step(what, libc::SYS_prctl, &arguments, Expect::Anything);
    }
}

/// `struct __user_cap_header_struct`, version 3, and two `__user_cap_data_struct`: low halves, high halves.
fn set_capabilities(script: &mut Script, [inheritable, permitted, effective]: [u64; 3]) {
    let header = script.data(&[0x2008_0522_u32.to_le_bytes(), [0; 4]].concat());
    let halves = [0, 32].map(|shift| [effective, permitted, inheritable].map(|set| (set >> shift) as u32));
    let data: Vec<u8> = halves
        .as_flattened()
        .iter()
        .flat_map(|half| half.to_le_bytes())
        .collect();
    let arguments = [header, script.data(&data)];
    script.call("set the capabilities", libc::SYS_capset, &arguments);
}

/// What only its supervisor can set, from outside; `pid` is the restored process's here.
pub fn from_outside(pid: i32, process: &Process, home: Home) -> io::Result<()> {
    let set = |file: &str, value: String| match std::fs::write(format!("/proc/{pid}/{file}"), value) {
        // To be spared more than others is a privilege, and an undumpable process is its owner's no more.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            tracing::debug!("{file} stays as it is: {error}");
            Ok(())
        }
        other => other,
    };
    if home != Home::Deputy {
        set("coredump_filter", format!("{:#x}", process.controls.core_filter))?;
    }
    // Whom a host ends when it lacks memory is the host's to say.
    if matches!(home, Home::Here { .. }) {
        set("oom_score_adj", process.oom_score.to_string())?;
    }
    Ok(())
}
