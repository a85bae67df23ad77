//! CPU time used: a restored process starts with none, and what it had used before is added to what it asks for.

use super::{Answers, Result};
use vrun_shim::Script;

/// Asks `getrusage(who)`; gives the address of the answer.
pub(super) fn ask(script: &mut Script, who: i32) -> u64 {
    // struct rusage: two struct timeval and 14 words.
    let usage = script.reserve(144);
    let arguments = [i64::from(who) as u64, usage];
    script.call("ask for the CPU time used", libc::SYS_getrusage, &arguments);
    usage
}

/// In user mode and in the kernel, in nanoseconds.
pub(super) fn read(answers: &Answers<'_>, usage: u64) -> Result<(u64, u64)> {
    let [user, user_micros, system, system_micros] = answers.words(usage)?;
    let nanoseconds = |seconds: u64, micros: u64| seconds * 1_000_000_000 + micros * 1_000;
    Ok((nanoseconds(user, user_micros), nanoseconds(system, system_micros)))
}
