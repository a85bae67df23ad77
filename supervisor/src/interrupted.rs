//! Calls that were under way when a thread was stopped: each goes on as it would after a stop and a continuation, for
//! what is left of its timeout, and no program sees that it was frozen.
//!
//! ```text
//!  rax of the stopped thread
//!   -EINTR                 the kernel gives up this call for any stop: undone at once (`undo`)
//!   -ERESTARTSYS, …        made again with the same arguments; what was left of a timeout is in memory, or it is a date
//!   -ERESTART_RESTARTBLOCK the kernel alone knows what is left: in an image, made again with what we know (`reissue`)
//! ```
//!
//! If a handler is about to run, the call ends as `arch/x86/kernel/signal.c` says. Restart codes are those of
//! `include/linux/errno.h`. A wait on a socket with a timeout of its own (`SO_RCVTIMEO`) begins again with all of it.

use crate::memory::TargetMemory;
use crate::proc::ProcDir;
use std::time::Duration;
use vrun_image::state::SignalAction;
use vrun_shim::tracee::SIGINFO;
use vrun_shim::{TraceError, Tracee};

const EINTR: i64 = -(libc::EINTR as i64);
const ERESTARTSYS: i64 = -512;
const ERESTARTNOINTR: i64 = -513;
const ERESTARTNOHAND: i64 = -514;
const ERESTART_RESTARTBLOCK: i64 = -516;

/// When a thread last began to run or to sleep, on the scheduler's clock of its CPU, and in what it sleeps.
///
/// Asked before and after a sleeping thread is stopped, it tells how long the sleep has lasted, which the kernel keeps to
/// itself. The clocks of two CPUs are not comparable, and each leaves out the time that the CPU was taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastRan {
    time: Duration,
    cpu: i64,
    waits: Option<Waits>,
}

/// The calls that the kernel goes on with by itself (`restart_syscall(2)`), of which only it knows which one it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waits {
    Sleep,
    Futex,
    Poll,
}

impl LastRan {
    /// From `se.exec_start` of `/proc/PID/sched`, in milliseconds (only with `CONFIG_SCHED_DEBUG`), field 39 of
    /// `/proc/PID/stat`, and `/proc/PID/wchan`.
    pub fn of(pid: i32) -> Option<Self> {
        let directory = ProcDir::open(pid).ok()?;
        let sched = String::from_utf8_lossy(&directory.read("sched").ok()?).into_owned();
        let line = sched.lines().find(|line| line.starts_with("se.exec_start"))?;
        let milliseconds: f64 = line.split_once(':')?.1.trim().parse().ok()?;
        let stat = String::from_utf8_lossy(&directory.read("stat").ok()?).into_owned();
        let cpu = stat
            .rsplit_once(')')?
            .1
            .split_ascii_whitespace()
            .nth(36)?
            .parse()
            .ok()?;
        let time = Duration::try_from_secs_f64(milliseconds / 1000.0).ok()?;
        let channel = String::from_utf8_lossy(&directory.read("wchan").unwrap_or_default()).into_owned();
        let names = [
            ("nanosleep", Waits::Sleep),
            ("futex", Waits::Futex),
            ("poll", Waits::Poll),
        ];
        let waits = names.into_iter().find(|(name, _)| channel.contains(name));
        Some(Self {
            time,
            cpu,
            waits: waits.map(|(_, waits)| waits),
        })
    }
}

/// How a thread slept before it was stopped.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sleep {
    /// How long; zero if that cannot be told. Never too long.
    lasted: Duration,
    waits: Option<Waits>,
}

impl Sleep {
    /// From what was known before the stop and what is known now.
    pub fn between(before: Option<LastRan>, now: Option<LastRan>) -> Self {
        let lasted = match (before, now) {
            (Some(before), Some(now)) if before.cpu == now.cpu => now.time.saturating_sub(before.time),
            _ => Duration::ZERO,
        };
        Self {
            // The first figure may be older than the sleep by a tick.
            lasted: lasted.saturating_sub(TICK),
            waits: before.and_then(|before| before.waits),
        }
    }
}

/// Bytes below the stack pointer that a function may use (System V ABI for x86-64).
const RED_ZONE: u64 = 128;
/// The longest tick of any kernel (`CONFIG_HZ=100`).
const TICK: Duration = Duration::from_millis(10);

/// Calls that end with `EINTR` when they are stopped and continued, even if no handler runs (signal(7), "Interruption of
/// system calls and library functions by stop signals"), and those that do so with a timeout on their socket.
const INTERRUPTIBLE: &[i64] = &[
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_semop,
    libc::SYS_semtimedop,
    libc::SYS_msgrcv,
    libc::SYS_msgsnd,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_io_getevents,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_connect,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
];

/// A call that ended with `EINTR` only because its thread was stopped is about to be made again. `held` are signals
/// whose delivery the stop held up, `caught` those that have a handler.
pub fn undo(tracee: Tracee, held: &[[u8; SIGINFO]], caught: u64, sleep: Sleep) -> Result<(), TraceError> {
    let mut registers = tracee.registers()?;
    if registers.rax as i64 != EINTR || !INTERRUPTIBLE.contains(&(registers.orig_rax as i64)) {
        return Ok(());
    }
    // With a handler about to run, EINTR is what the program would have got.
    let blocked = tracee.blocked()?;
    let handled = |info: &[u8; SIGINFO]| caught & !blocked & bit(info) != 0;
    if held.iter().any(handled)
        || tracee.pending(false)?.iter().any(handled)
        || tracee.pending(true)?.iter().any(handled)
    {
        return Ok(());
    }
    let (tid, rsp) = (tracee.tid(), registers.rsp);
    let left = |address: u64| shortened(tid, address, rsp, sleep.lasted);
    match registers.orig_rax as i64 {
        libc::SYS_epoll_wait | libc::SYS_epoll_pwait => {
            registers.r10 = remaining_milliseconds(registers.r10, sleep.lasted);
        }
        libc::SYS_epoll_pwait2 | libc::SYS_semtimedop => registers.r10 = left(registers.r10),
        libc::SYS_rt_sigtimedwait => registers.rdx = left(registers.rdx),
        libc::SYS_io_getevents => registers.r8 = left(registers.r8),
        _ => {}
    }
    registers.rip -= 2;
    registers.rax = registers.orig_rax;
    registers.orig_rax = u64::MAX;
    tracee.set_registers(&registers)
}

/// The flags of the handler that runs first when the thread goes on, if one does: of what waits for it.
pub fn next_handler<'a>(
    actions: &[SignalAction],
    blocked: u64,
    pending: impl Iterator<Item = &'a Vec<u8>>,
) -> Option<u64> {
    let waiting = pending.fold(0, |mask, info| mask | bit(info)) & !blocked;
    let caught = actions.iter().filter(|action| action.handler > libc::SIG_IGN as u64);
    caught
        .filter(|action| waiting & 1 << (action.signal - 1) != 0)
        .min_by_key(|action| action.signal)
        .map(|action| action.flags)
}

/// The registers with which a stopped thread goes on when nothing of the kernel's state about its current call is left.
/// `handler` are the flags of the handler that runs first.
pub fn reissue(
    tid: i32,
    stopped: libc::user_regs_struct,
    sleep: Sleep,
    handler: Option<u64>,
) -> libc::user_regs_struct {
    let mut registers = stopped;
    let code = stopped.rax as i64;
    registers.orig_rax = u64::MAX;
    let under_way = stopped.orig_rax as i64 >= 0
        && matches!(
            code,
            ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND | ERESTART_RESTARTBLOCK
        );
    if !under_way {
        return registers;
    }
    if let Some(flags) = handler
        && match code {
            ERESTARTNOINTR => false,
            ERESTARTSYS => flags & libc::SA_RESTART as u64 == 0,
            _ => true,
        }
    {
        registers.rax = EINTR as u64;
        return registers;
    }
    // The instruction is two bytes long.
    registers.rip -= 2;
    registers.rax = stopped.orig_rax;
    if code != ERESTART_RESTARTBLOCK {
        return registers;
    }
    // A relative sleep goes on for what is left of it. The kernel has just written that to `rem`, if it was given.
    let left = |address: u64| shortened(tid, address, stopped.rsp, sleep.lasted);
    let number = match stopped.orig_rax as i64 {
        libc::SYS_restart_syscall => restarted(&stopped, sleep.waits),
        number => number,
    };
    registers.rax = number as u64;
    match number {
        libc::SYS_nanosleep if stopped.rsi != 0 => registers.rdi = stopped.rsi,
        libc::SYS_nanosleep => registers.rdi = left(stopped.rdi),
        libc::SYS_clock_nanosleep if stopped.r10 != 0 => registers.rdx = stopped.r10,
        libc::SYS_clock_nanosleep => registers.rdx = left(stopped.rdx),
        // FUTEX_WAIT_BITSET waits until a date.
        libc::SYS_futex if stopped.rsi as i32 & libc::FUTEX_CMD_MASK == libc::FUTEX_WAIT => {
            registers.r10 = left(stopped.r10);
        }
        libc::SYS_poll => registers.rdx = remaining_milliseconds(stopped.rdx, sleep.lasted),
        _ => {}
    }
    registers
}

/// Which call the kernel has gone on with by itself after an earlier stop. The number is lost then, but not the
/// arguments.
fn restarted(stopped: &libc::user_regs_struct, waits: Option<Waits>) -> i64 {
    // A clock is a small or a negative number, other than the address in its place.
    let sleep = if stopped.rdi as i32 as i64 as u64 == stopped.rdi {
        libc::SYS_clock_nanosleep
    } else {
        libc::SYS_nanosleep
    };
    let command = stopped.rsi as i32 & libc::FUTEX_CMD_MASK;
    match waits {
        Some(Waits::Sleep) => sleep,
        Some(Waits::Futex) => libc::SYS_futex,
        Some(Waits::Poll) => libc::SYS_poll,
        None if stopped.rdx > u64::from(u32::MAX) && stopped.rdi < 64 => libc::SYS_clock_nanosleep,
        None if stopped.rsi > u64::from(u32::MAX) => libc::SYS_nanosleep,
        None if stopped.r10 != 0 && [libc::FUTEX_WAIT, libc::FUTEX_WAIT_BITSET].contains(&command) => libc::SYS_futex,
        None => libc::SYS_poll,
    }
}

/// The bit of a `siginfo_t`'s signal in a mask.
fn bit(info: &[u8]) -> u64 {
    let number = info.first().map_or(0, |byte| u32::from(*byte));
    1_u64.checked_shl(number.wrapping_sub(1)).unwrap_or(0)
}

/// A timeout in milliseconds, less the time that has passed; a negative one is infinite.
fn remaining_milliseconds(timeout: u64, passed: Duration) -> u64 {
    match timeout as i32 {
        milliseconds @ 0.. => (milliseconds as u64).saturating_sub(passed.as_millis() as u64),
        _ => timeout,
    }
}

/// A copy of the `struct timespec` at `address`, less the time that has passed. It lies below the red zone of the stack,
/// where a program can expect nothing to stay. Where that is not possible, the timeout stays as it was.
fn shortened(tid: i32, address: u64, rsp: u64, passed: Duration) -> u64 {
    let copy = || {
        let memory = TargetMemory::open(tid).ok()?;
        let mut bytes = [0; 16];
        memory.read_all(address, &mut bytes).ok()?;
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        let left = Duration::new(word(0), word(8).min(999_999_999) as u32).saturating_sub(passed);
        let copy = rsp.checked_sub(RED_ZONE + 16)? & !15;
        let bytes = [left.as_secs(), u64::from(left.subsec_nanos())].map(u64::to_le_bytes);
        memory.write_all(copy, bytes.as_flattened()).ok()?;
        Some(copy)
    };
    if address == 0 || passed.is_zero() {
        return address;
    }
    copy().unwrap_or(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stopped(number: i64, code: i64, [rdi, rsi, rdx, r10]: [u64; 4]) -> libc::user_regs_struct {
        crate::registers::to_user(&vrun_image::state::Registers {
            rip: 0x1002,
            rax: code as u64,
            orig_rax: number as u64,
            rdi,
            rsi,
            rdx,
            r10,
            ..Default::default()
        })
    }

    fn after(stopped: libc::user_regs_struct, waits: Option<Waits>, handler: Option<u64>) -> (u64, i64, u64) {
        let sleep = Sleep {
            lasted: Duration::from_secs(1),
            waits,
        };
        let registers = reissue(std::process::id() as i32, stopped, sleep, handler);
        (registers.rip, registers.rax as i64, registers.rdx)
    }

    #[test]
    fn a_handler_decides_what_becomes_of_a_call() {
        const RESTART: u64 = libc::SA_RESTART as u64;
        let call = |code| stopped(libc::SYS_read, code, [0; 4]);
        let again = (0x1000, libc::SYS_read, 0);
        let interrupted = (0x1002, EINTR, 0);
        assert_eq!(after(call(ERESTARTSYS), None, None), again);
        assert_eq!(after(call(ERESTARTSYS), None, Some(RESTART)), again);
        assert_eq!(after(call(ERESTARTSYS), None, Some(0)), interrupted);
        assert_eq!(after(call(ERESTARTNOHAND), None, None), again);
        assert_eq!(after(call(ERESTARTNOHAND), None, Some(RESTART)), interrupted);
        assert_eq!(after(call(ERESTARTNOINTR), None, Some(0)), again);
        assert_eq!(after(call(0), None, None), (0x1002, 0, 0));
    }

    #[test]
    fn a_call_that_the_kernel_restarted_is_found_again() {
        let code = ERESTART_RESTARTBLOCK;
        let call = |arguments| stopped(libc::SYS_restart_syscall, code, arguments);
        let poll = call([0x7fff_0000_1000, 1, 5_000, 0]);
        assert_eq!(after(poll, Some(Waits::Poll), None), (0x1000, libc::SYS_poll, 4_000));
        assert_eq!(after(poll, None, None).1, libc::SYS_poll);
        let sleep = call([1, 0, 0x7fff_0000_1000, 0]);
        assert_eq!(after(sleep, Some(Waits::Sleep), None).1, libc::SYS_clock_nanosleep);
        assert_eq!(after(sleep, None, None).1, libc::SYS_clock_nanosleep);
        let sleep = call([0x7fff_0000_1000, 0x7fff_0000_1000, 0, 0]);
        assert_eq!(after(sleep, Some(Waits::Sleep), None).1, libc::SYS_nanosleep);
        assert_eq!(after(sleep, None, None).1, libc::SYS_nanosleep);
        let futex = call([0x7fff_0000_1000, 128, 3, 0x7fff_0000_1000]);
        assert_eq!(after(futex, Some(Waits::Futex), None).1, libc::SYS_futex);
        assert_eq!(after(futex, None, None).1, libc::SYS_futex);
    }

    #[test]
    fn the_lowest_caught_signal_runs_first() {
        let action = |signal, handler, flags| SignalAction {
            signal,
            handler,
            flags,
            restorer: 0,
            mask: 0,
        };
        let actions = [action(10, 0x1000, 5), action(12, 0x1000, 7), action(13, 1, 9)];
        let info = |signal: u8| {
            let mut info = vec![0; SIGINFO];
            info[0] = signal;
            info
        };
        let next = |blocked, pending: &[u8]| {
            let pending: Vec<_> = pending.iter().map(|signal| info(*signal)).collect();
            next_handler(&actions, blocked, pending.iter())
        };
        assert_eq!(next(0, &[12, 10]), Some(5));
        assert_eq!(next(1 << 9, &[12, 10]), Some(7));
        assert_eq!(next(0, &[13, 15]), None);
    }
}
