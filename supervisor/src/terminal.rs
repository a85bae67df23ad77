//! The controlling terminal of a job that is saved: which of its process groups was in the foreground, and in which modes.
//!
//! ```text
//!   shell's session ── front's group (0)     ── a job's own groups, as a shell makes them
//!   terminal ─────────────── foreground ────────────► one of these
//! ```
//!
//! It is given to the job again if the group of who restores it has it: a job that is restored in the background has to wait
//! for the terminal like any other. When the front ends, the shell takes the terminal back, as ever.

use crate::capture::Frozen;
use crate::proc::{ProcDir, ProcError, Stat};
use crate::sys;
use nix::sys::termios::{InputFlags, LocalFlags, OutputFlags, SetArg, Termios, tcgetattr, tcsetattr};
use rustix::process::{Pid, getpgid};
use rustix::termios::{tcgetpgrp, tcgetwinsize, tcsetpgrp};
use std::fs::File;
use std::io;
use vrun_image::state::{Job, Process, Terminal};

/// Our own controlling terminal, if we have one.
fn own() -> io::Result<File> {
    File::options().read(true).write(true).open("/dev/tty")
}

fn stat(pid: i32) -> Result<Stat, ProcError> {
    ProcDir::open(pid)?.stat()
}

/// The modes of our terminal, if we have one.
pub fn modes() -> Option<Termios> {
    tcgetattr(own().ok()?).ok()
}

/// Sets the modes of our terminal, if we have one.
pub fn set_modes(modes: &Termios) {
    if let Ok(tty) = own()
        && let Err(error) = tcsetattr(tty, SetArg::TCSANOW, modes)
    {
        tracing::debug!("the modes of the terminal cannot be set: {error}");
    }
}

/// Which of a job's processes is in the foreground of our terminal, if one is.
pub fn holder(frozen: &[Frozen]) -> Result<Option<usize>, ProcError> {
    let Some(first) = frozen.first() else { return Ok(None) };
    let (first, ours) = (stat(first.pid())?, stat(std::process::id() as i32)?);
    if first.terminal == 0 || (first.terminal, first.session) != (ours.terminal, ours.session) {
        return Ok(None);
    }
    for (index, process) in frozen.iter().enumerate() {
        if stat(process.pid())?.group == first.foreground_group {
            return Ok(Some(index));
        }
    }
    Ok(None)
}

/// The terminal of the session from which a job was started, if the job has it: `processes` describe the frozen ones.
pub fn capture(frozen: &[Frozen], processes: &[Process]) -> Result<Option<Terminal>, ProcError> {
    let foreground = holder(frozen)?.map(|index| processes[index].group);
    let look = |foreground| -> io::Result<Terminal> {
        let tty = own()?;
        let (modes, size) = (tcgetattr(&tty)?, tcgetwinsize(&tty)?);
        Ok(Terminal {
            foreground,
            input: modes.input_flags.bits(),
            output: modes.output_flags.bits(),
            local: modes.local_flags.bits(),
            characters: std::array::from_fn(|index| modes.control_chars[index]),
            rows: size.ws_row,
            columns: size.ws_col,
        })
    };
    // A terminal that has hung up is none.
    Ok(foreground.and_then(|foreground| look(foreground).ok()))
}

/// Gives our terminal to a restored job that has not run yet: `pids` are those of its processes. Nothing is done if `keeper`'s
/// group, which is that of the front, does not have it.
pub fn give(job: &Job, pids: &[i32], keeper: i32) -> io::Result<()> {
    let (Some(terminal), Ok(tty)) = (&job.terminal, own()) else {
        return Ok(());
    };
    let group = |pid: i32| getpgid(Pid::from_raw(pid)).map_err(io::Error::from);
    if tcgetpgrp(&tty)? != group(keeper)? {
        return Ok(());
    }
    let mut modes = tcgetattr(&tty)?;
    modes.input_flags = InputFlags::from_bits_retain(terminal.input);
    modes.output_flags = OutputFlags::from_bits_retain(terminal.output);
    modes.local_flags = LocalFlags::from_bits_retain(terminal.local);
    modes.control_chars[..terminal.characters.len()].copy_from_slice(&terminal.characters);
    tcsetattr(&tty, SetArg::TCSANOW, &modes)?;
    let size = tcgetwinsize(&tty)?;
    let resized = (size.ws_row, size.ws_col) != (terminal.rows, terminal.columns);
    let inside = pids
        .iter()
        .zip(&job.processes)
        .filter(|(_, process)| process.group == terminal.foreground);
    for (pid, _) in inside {
        if terminal.foreground != 0 {
            // From the background: SIGTTOU is blocked in us.
            tcsetpgrp(&tty, group(*pid)?)?;
        }
        if resized {
            sys::kill(*pid, libc::SIGWINCH)?;
        }
    }
    Ok(())
}
