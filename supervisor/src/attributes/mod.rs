//! What a process and its threads are beside memory, registers and descriptors: for each family a file with both halves.
//!
//! ```text
//!             asked (capture)                         told (restore)
//! signals     dispositions, pending                   the same
//! timers      interval timers, timer_create(2)        where the timers are to run
//! scheduling  policy, priority, affinity, I/O         as far as this host and the user's rights go
//! identity    limits, credentials, prctl(2)           capabilities last: what comes before may need them
//! usage       CPU time                                added to what the process asks for
//! thread      name, alternate stack, robust list, …   the pointers that the kernel keeps for a thread
//! ```
//!
//! The questions of a process, or of a thread, are one script ([`process`], [`thread`]); so are the answers' way back
//! ([`process_steps`], [`thread_steps`]).

pub mod identity;
pub mod scheduling;
pub mod signals;
pub mod thread;
pub mod timers;
pub mod usage;

use crate::capture::CaptureError;
use crate::proc::ProcDir;
use crate::restore::Home;
use std::fmt::Display;
use vrun_image::state::{Credentials, Limit, Process, ProcessControls, Registers, Signals, Thread, ThreadUsage, Usage};
use vrun_shim::{Expect, Injection, Script, TraceError, area};

type Result<T> = std::result::Result<T, CaptureError>;

/// What is asked of a whole process.
#[derive(Clone, Debug)]
pub struct Attributes {
    /// The program break (`brk(2)`).
    pub brk: u64,
    pub signals: Signals,
    pub umask: u32,
    pub credentials: Credentials,
    pub limits: Vec<Limit>,
    pub personality: u64,
    pub dumpable: u32,
    pub subreaper: bool,
    pub oom_score: i32,
    pub no_huge_pages: bool,
    pub controls: ProcessControls,
    pub used: Usage,
}

/// Asks what a process is by its stopped leader. `directory` is the process's.
pub fn process(leader: &Injection, directory: &ProcDir) -> Result<Attributes> {
    let status = directory.status()?;
    let mut script = Script::new(area::DATA.start);
    let brk = script.call("ask for the program break", libc::SYS_brk, &[0]);
    let actions = signals::ask(&mut script);
    let timers = timers::ask(&mut script);
    let identity = identity::ask(&mut script);
    let used = [libc::RUSAGE_SELF, libc::RUSAGE_CHILDREN].map(|who| usage::ask(&mut script, who));
    let answers = Answers::run(leader, &script)?;
    let identity = identity.read(&answers)?;
    let before = usage::before(directory)?;
    let [(user, system), (children_user, children_system)] =
        [usage::read(&answers, used[0])?, usage::read(&answers, used[1])?];
    Ok(Attributes {
        brk: answers.result(brk) as u64,
        signals: Signals {
            actions: actions.read(&answers)?,
            pending: signals::pending(leader.tracee(), true)?,
            interval_timers: timers.read(&answers)?,
            timers: timers::posix(leader, directory)?,
            read_at_origin: 0,
        },
        umask: status.umask.unwrap_or(0o022),
        credentials: status.credentials(identity.secure_bits),
        limits: directory.limits()?,
        personality: directory.personality()?,
        dumpable: identity.dumpable,
        subreaper: identity.subreaper,
        oom_score: directory.oom_score()?,
        no_huge_pages: identity.no_huge_pages,
        controls: ProcessControls {
            core_filter: directory.core_filter()?,
            ..identity.controls
        },
        used: Usage {
            user: before.user + user,
            system: before.system + system,
            children_user: before.children_user + children_user,
            children_system: before.children_system + children_system,
        },
    })
}

/// Asks what a stopped thread is. `tid` is its number in its own PID namespace; `registers` are
/// those that it goes on with.
pub fn thread(injection: &Injection, tid: i32, registers: Registers) -> Result<Thread> {
    let tracee = injection.tracee();
    let mut script = Script::new(area::DATA.start);
    let pointers = thread::ask(&mut script);
    let scheduling = scheduling::ask(&mut script);
    let answers = Answers::run(injection, &script)?;
    let pointers = pointers.read(&answers)?;
    let before = usage::thread_before(tracee.tid())?;
    Ok(Thread {
        tid,
        name: pointers.name,
        registers,
        xstate: tracee.xstate()?,
        blocked: injection.saved_blocked().unwrap_or(0),
        pending: signals::pending(tracee, false)?,
        alternate_stack: pointers.alternate_stack,
        robust_list: thread::robust_list(tracee.tid()),
        clear_child_tid: pointers.clear_child_tid,
        rseq: thread::rseq(tracee)?,
        timer_slack: pointers.timer_slack,
        parent_death_signal: pointers.parent_death_signal,
        scheduling: scheduling.read(&answers)?,
        controls: pointers.controls,
        used: ThreadUsage {
            user: before.user + pointers.used.user,
            system: before.system + pointers.used.system,
        },
    })
}

/// What the leader sets for its whole process. All threads must exist, and all signals be blocked in each.
pub fn process_steps(script: &mut Script, process: &Process, home: Home) {
    timers::steps(script, process, home);
    signals::process_steps(script, process);
    identity::process_steps(script, process, home);
}

/// What each thread sets for itself; the leader after [`process_steps`], and after the other threads were made: at the end
/// it gives up the capabilities that it has in its namespace to be built with.
pub fn thread_steps(script: &mut Script, process: &Process, thread: &Thread, home: Home) {
    signals::thread_steps(script, process, thread);
    scheduling::steps(script, thread, home);
    identity::thread_steps(script, process, home);
    thread::steps(script, thread);
}

/// What a script of questions brought.
pub(crate) struct Answers<'a> {
    injection: &'a Injection,
    results: Vec<i64>,
}

impl<'a> Answers<'a> {
    fn run(injection: &'a Injection, script: &Script) -> Result<Self> {
        let results = injection.run(script)?;
        Ok(Self { injection, results })
    }

    fn result(&self, step: usize) -> i64 {
        self.results[step]
    }

    fn bytes(&self, address: u64, length: usize) -> std::result::Result<Vec<u8>, TraceError> {
        let mut bytes = vec![0; length];
        self.injection.read(address, &mut bytes)?;
        Ok(bytes)
    }

    fn words<const COUNT: usize>(&self, address: u64) -> std::result::Result<[u64; COUNT], TraceError> {
        let bytes = self.bytes(address, 8 * COUNT)?;
        let word = |index: usize| u64::from_le_bytes(bytes[8 * index..][..8].try_into().expect("8 bytes"));
        Ok(std::array::from_fn(word))
    }

    fn int(&self, address: u64) -> std::result::Result<i32, TraceError> {
        Ok(self.words::<1>(address)?[0] as i32)
    }
}

/// Asks by `prctl(option, address)`; gives the step and the address of `size` bytes.
fn ask_prctl(script: &mut Script, option: i32, size: usize) -> (usize, u64) {
    let address = script.reserve(size);
    let arguments = [option as u64, address, 0, 0, 0];
    let what = format!("prctl option {option}");
    (script.step(what, libc::SYS_prctl, &arguments, Expect::Success), address)
}

/// Sets by `prctl(option, value)`; whether it can be done is up to this kernel and the user's rights.
fn set_prctl(script: &mut Script, what: impl Display, option: i32, value: u64) {
    let arguments = [option as u64, value, 0, 0, 0];
    script.step(
        format_args!("set {what}"),
        libc::SYS_prctl,
        &arguments,
        Expect::Anything,
    );
}

/// 64-bit words as the kernel's structures have them.
fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}
