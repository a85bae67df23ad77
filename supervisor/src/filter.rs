//! The BPF programs: which calls of a job are tracked, and what our own processes may do. Derived from the one table,
//! [`vrun_remote_io::syscalls`].
//!
//! The file opts in to unsafe code for seccomp(2), which has no wrapper that returns the listener.
//!
//! libseccomp generates the program (a binary tree over the call numbers, other architectures killed, x32 included) and
//! we finish it by hand, because no generator can look at the instruction pointer:
//!
//! ```text
//! generated   …  ret ALLOW          stays: the kernel sees that the number alone decides, and answers from a bitmap
//!             …  ret USER_NOTIF  ─▶ ja gate
//! gate:       ld  ip, high half     is the call made from the gate page of the vrun area?
//!             jne 0              ─┐
//!             ld  ip, low half    │
//!             jlt GATE_PAGE.start │
//!             jge GATE_PAGE.end  ─┤
//!             ret ALLOW           │ ours: an injected call or a deputy's
//!             ret USER_NOTIF    ◀─┘
//! ```
//!
//! The gate stands at the end and not in front, because a program that loads the instruction pointer first would lose
//! the kernel's allow bitmap (`seccomp_is_const_allow` follows only the number and the architecture) for every call. It
//! is a speed path, not a wall: the program can jump there.
//!
//! Law (libseccomp up to 2.6.1 generates wrong programs otherwise): at most one conditional rule for a call, masked
//! equality only. The tests interpret the finished program for every number.
#![allow(unsafe_code)]

use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use rustix::fs::MemfdFlags;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::mem;
use std::os::fd::{FromRawFd, OwnedFd};
use vrun_remote_io::syscalls::{self, Away, Condition, Native, Row};
use vrun_shim::area;

/// A finished program for the kernel.
pub type Program = Vec<libc::sock_filter>;

/// Why there is no filter.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    #[error("cannot generate the notification filter: {0}")]
    Generate(#[from] libseccomp::error::SeccompError),
    #[error("cannot read the generated filter: {0}")]
    Export(#[from] io::Error),
    #[error("the generated filter has {0} bytes, which is no program")]
    Size(usize),
    #[error("cannot generate a process' own filter: {0}")]
    Confine(String),
}

const _: () = assert!(mem::size_of::<libc::sock_filter>() == 8);

/// What the filter does with one call. A call without a rule is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    Notify,
    NotifyIf(Condition),
    Fail(i32),
}

type Rules = BTreeMap<u32, Rule>;

/// The filter of a program at its origin: few calls, never the data path. With `refused`, those calls that the
/// table refuses everywhere are made as without us.
pub fn native(refused: bool) -> Result<Program, FilterError> {
    assemble(&native_rules(refused))
}

/// The same for a program that was restored: it had used CPU time before, which its kernel does not know.
pub fn restored() -> Result<Program, FilterError> {
    assemble(&with_cpu_time(native_rules(false)))
}

/// The filter of a guest: everything that names something outside of its memory. With `signals` that it reads at its
/// origin, also what else may have to do with them; with `ends_at_home`, also its end.
pub fn guest(signals: bool, ends_at_home: bool) -> Result<Program, FilterError> {
    let mut rules = guest_rules(signals);
    if ends_at_home {
        rules.insert(libc::SYS_exit_group as u32, Rule::Notify);
    }
    assemble(&rules)
}

fn native_rules(refused: bool) -> Rules {
    let mut rules: Rules = syscalls::notified_native()
        .map(|row| (row.number, Rule::Notify))
        .collect();
    for row in syscalls::rows() {
        if let Native::Refuse(errno, _) = row.native
            && !refused
        {
            rules.insert(row.number, Rule::Fail(errno));
        }
    }
    with_reserved(rules)
}

fn guest_rules(signals: bool) -> Rules {
    let rule = |row: &Row| row.condition().map_or(Rule::Notify, Rule::NotifyIf);
    let mut rules: Rules = syscalls::notified_away().map(|row| (row.number, rule(row))).collect();
    if signals {
        rules.extend(SIGNAL_CALLS.map(|number| (number as u32, Rule::Notify)));
    }
    with_timers(with_cpu_time(with_reserved(rules)))
}

/// What asks for CPU time ([`crate::attributes::usage`]). Every clock of it that the scheduler keeps has bit 1 set, also the
/// dynamic ones; of those that programs read often, none has it.
fn with_cpu_time(mut rules: Rules) -> Rules {
    let cpu_clock = Condition {
        argument: 0,
        mask: 2,
        value: 2,
    };
    for number in crate::attributes::usage::CALLS {
        let rule = match number {
            libc::SYS_clock_gettime => Rule::NotifyIf(cpu_clock),
            _ => Rule::Notify,
        };
        rules.insert(number as u32, rule);
    }
    rules
}

/// What changes a mask, takes signals or looks at them.
const SIGNAL_CALLS: [i64; 5] = [
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_rt_sigsuspend,
];

/// Timers that may have to be made, or set, at home.
fn with_timers(mut rules: Rules) -> Rules {
    let absolute = Condition {
        argument: 1,
        mask: libc::TIMER_ABSTIME as u64,
        value: libc::TIMER_ABSTIME as u64,
    };
    rules.insert(libc::SYS_timer_create as u32, Rule::Notify);
    rules.insert(libc::SYS_timer_settime as u32, Rule::NotifyIf(absolute));
    rules
}

/// The deputy's two calls: in every filter, because nobody can add them when the time has come.
fn with_reserved(mut rules: Rules) -> Rules {
    rules.insert(area::VRUN_NEXT, Rule::Notify);
    rules.insert(area::VRUN_SIGNAL, Rule::Notify);
    rules
}

fn assemble(rules: &Rules) -> Result<Program, FilterError> {
    let mut context = ScmpFilterContext::new(ScmpAction::Allow)?;
    context.set_act_badarch(ScmpAction::KillProcess)?.set_ctl_optimize(2)?;
    if !context.is_arch_present(ScmpArch::X8664)? {
        context.add_arch(ScmpArch::X8664)?;
    }
    for (number, rule) in rules {
        let call = ScmpSyscall::from_raw_syscall(*number as i32);
        match *rule {
            Rule::Notify => context.add_rule(ScmpAction::Notify, call)?,
            Rule::Fail(errno) => context.add_rule(ScmpAction::Errno(errno), call)?,
            Rule::NotifyIf(Condition { argument, mask, value }) => {
                let compare = ScmpArgCompare::new(u32::from(argument), ScmpCompareOp::MaskedEqual(mask), value);
                context.add_rule_conditional(ScmpAction::Notify, call, &[compare])?
            }
        };
    }
    let mut file = File::from(rustix::fs::memfd_create(c"vrun-filter", MemfdFlags::CLOEXEC).map_err(io::Error::from)?);
    context.export_bpf(&file)?;
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    if bytes.is_empty() || !bytes.len().is_multiple_of(8) {
        return Err(FilterError::Size(bytes.len()));
    }
    let generated = bytes.chunks_exact(8).map(|chunk| libc::sock_filter {
        code: u16::from_ne_bytes([chunk[0], chunk[1]]),
        jt: chunk[2],
        jf: chunk[3],
        k: u32::from_ne_bytes([chunk[4], chunk[5], chunk[6], chunk[7]]),
    });
    Ok(with_gate(generated.collect()))
}

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const JUMP: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
const JUMP_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const JUMP_GREATER_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
/// Offset of the instruction pointer in `struct seccomp_data`; the low half comes first.
const POINTER: u32 = mem::offset_of!(libc::seccomp_data, instruction_pointer) as u32;

/// Appends the gate and sends every notification through it. No instruction in front of it moves, so the 8-bit offsets
/// of the generated jumps stay right; the unconditional jump has 32 bits.
fn with_gate(mut program: Program) -> Program {
    let statement = |code, k| libc::sock_filter { code, jt: 0, jf: 0, k };
    let jump = |code, k, jt, jf| libc::sock_filter { code, jt, jf, k };
    let gate = program.len();
    for (position, instruction) in program.iter_mut().enumerate() {
        if instruction.code == RETURN && instruction.k & libc::SECCOMP_RET_ACTION_FULL == libc::SECCOMP_RET_USER_NOTIF {
            *instruction = statement(JUMP, (gate - position - 1) as u32);
        }
    }
    program.extend([
        statement(LOAD, POINTER + 4),
        jump(JUMP_EQUAL, 0, 0, 4),
        statement(LOAD, POINTER),
        jump(JUMP_GREATER_EQUAL, area::GATE_PAGE.start as u32, 0, 2),
        jump(JUMP_GREATER_EQUAL, area::GATE_PAGE.end as u32, 1, 0),
        statement(RETURN, libc::SECCOMP_RET_ALLOW),
        statement(RETURN, libc::SECCOMP_RET_USER_NOTIF),
    ]);
    program
}

/// Puts the calling thread (and what it forks and executes) under `program` and returns the listener, close-on-exec.
///
/// Async-signal-safe. Sets `no_new_privs`, without which an ordinary user may not install a filter: set-user-ID
/// programs get no privilege in a job. `EBUSY`: there is a listener already, and the kernel allows one for a process. A
/// kernel before 5.19 gives `EINVAL`.
pub fn install(program: &Program) -> io::Result<OwnedFd> {
    let header = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_ptr().cast_mut(),
    };
    let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
    // SAFETY: prctl takes numbers; seccomp(2) reads the header and `len` instructions behind its pointer, both alive
    // until it returns. The descriptor it returns is new and ours.
    unsafe {
        if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 {
            return Err(io::Error::last_os_error());
        }
        let listener = libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const header,
        );
        if listener < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(OwnedFd::from_raw_fd(listener as i32))
        }
    }
}

/// The filter of a deputy's executor thread, as the bytes of `struct sock_filter`s to be injected: what the table
/// forwards, what the loop itself needs, and `EPERM` for all else. A peer that has taken over the guest's side can make
/// no other call here.
pub fn confine_executor() -> Result<Vec<u8>, FilterError> {
    let own = [
        i64::from(area::VRUN_NEXT),
        i64::from(area::VRUN_SIGNAL),
        libc::SYS_exit,
        libc::SYS_exit_group,
        libc::SYS_rt_sigreturn,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigtimedwait,
        libc::SYS_restart_syscall,
    ];
    let forwarded = syscalls::rows()
        .filter(|row| matches!(row.away, Away::Forward(_) | Away::Both(_) | Away::Special(..)))
        .map(|row| i64::from(row.number));
    let program = allow_only(own.into_iter().chain(forwarded), [], libc::EPERM)?;
    let program = program.iter().map(|one| libc::sock_filter {
        code: one.code,
        jt: one.jt,
        jf: one.jf,
        k: one.k,
    });
    Ok(to_bytes(&program.collect()))
}

/// A program as `struct sock_filter`s in memory, to be injected.
pub fn to_bytes(program: &Program) -> Vec<u8> {
    let bytes = program.iter().flat_map(|instruction| {
        let mut bytes = [0; 8];
        bytes[..2].copy_from_slice(&instruction.code.to_ne_bytes());
        bytes[2] = instruction.jt;
        bytes[3] = instruction.jf;
        bytes[4..].copy_from_slice(&instruction.k.to_ne_bytes());
        bytes
    });
    bytes.collect()
}

/// The filter of the destination's session process once its guest runs: it reads and writes what it holds, looks after
/// its guest, and can neither execute nor fork nor reach out (no new socket, no connection). To be installed with
/// [`seccompiler::apply_filter_all_threads`].
pub fn confine_guest_supervisor() -> Result<BpfProgram, FilterError> {
    // A thread for a client, but no process. clone3 hides its flags from filters; refused with ENOSYS, the C library
    // takes clone instead, so that is what everything else is refused with too.
    let thread = SeccompCondition::new(
        0,
        SeccompCmpArgLen::Qword,
        SeccompCmpOp::MaskedEq(libc::CLONE_THREAD as u64),
        libc::CLONE_THREAD as u64,
    );
    let rule = thread
        .and_then(|thread| SeccompRule::new(vec![thread]))
        .map_err(confine_error)?;
    allow_only(
        GUEST_SUPERVISOR.iter().copied(),
        [(libc::SYS_clone, vec![rule])],
        libc::ENOSYS,
    )
}

/// In groups: bytes, waiting, the guest, memory, threads, signals, time, files (for `/proc`).
const GUEST_SUPERVISOR: &[i64] = &[
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_accept4,
    libc::SYS_shutdown,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_ctl,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_wait4,
    libc::SYS_waitid,
    libc::SYS_kill,
    libc::SYS_tgkill,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    libc::SYS_prlimit64,
    libc::SYS_ioctl,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_memfd_create,
    libc::SYS_ftruncate,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_set_robust_list,
    libc::SYS_get_robust_list,
    libc::SYS_rseq,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_prctl,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_restart_syscall,
    libc::SYS_clock_gettime,
    libc::SYS_times,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_getrandom,
    libc::SYS_openat,
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_lseek,
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_fcntl,
    libc::SYS_pipe2,
    libc::SYS_eventfd2,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

fn confine_error(error: seccompiler::BackendError) -> FilterError {
    FilterError::Confine(error.to_string())
}

/// Allows these calls, and others under conditions.
fn allow_only(
    calls: impl Iterator<Item = i64>,
    conditional: impl IntoIterator<Item = (i64, Vec<SeccompRule>)>,
    errno: i32,
) -> Result<BpfProgram, FilterError> {
    let rules = calls.map(|number| (number, Vec::new())).chain(conditional).collect();
    SeccompFilter::new(
        rules,
        SeccompAction::Errno(errno as u32),
        SeccompAction::Allow,
        TargetArch::x86_64,
    )
    .and_then(BpfProgram::try_from)
    .map_err(confine_error)
}

#[cfg(test)]
mod tests {
    use super::*;

    const X86_64: u32 = 0xc000_003e;
    const I386: u32 = 0x4000_0003;

    struct Call {
        number: u32,
        architecture: u32,
        pointer: u64,
        args: [u64; 6],
    }

    impl Call {
        fn word(&self, offset: u32) -> u32 {
            let mut data = [0u8; 64];
            data[0..4].copy_from_slice(&self.number.to_le_bytes());
            data[4..8].copy_from_slice(&self.architecture.to_le_bytes());
            data[8..16].copy_from_slice(&self.pointer.to_le_bytes());
            for (index, argument) in self.args.iter().enumerate() {
                data[16 + 8 * index..][..8].copy_from_slice(&argument.to_le_bytes());
            }
            let offset = offset as usize;
            u32::from_le_bytes(data[offset..offset + 4].try_into().unwrap())
        }
    }

    /// Runs a program, and tells whether it looked at more than the number and the architecture.
    fn interpret(program: &[libc::sock_filter], call: &Call) -> (u32, bool) {
        let (mut position, mut accumulator, mut looked) = (0, 0u32, false);
        loop {
            let instruction = &program[position];
            let (jt, jf, k) = (instruction.jt as usize, instruction.jf as usize, instruction.k);
            let branch = |condition| 1 + if condition { jt } else { jf };
            position += match u32::from(instruction.code) {
                0x20 => {
                    looked |= k >= 8;
                    accumulator = call.word(k);
                    1
                }
                0x54 => {
                    accumulator &= k;
                    1
                }
                0x05 => 1 + k as usize,
                0x15 => branch(accumulator == k),
                0x25 => branch(accumulator > k),
                0x35 => branch(accumulator >= k),
                0x45 => branch(accumulator & k != 0),
                0x06 => return (k, looked),
                code => panic!("instruction {code:#x} at {position}"),
            };
        }
    }

    fn expected(rules: &Rules, call: &Call) -> u32 {
        if call.architecture != X86_64 || (call.number & 0x4000_0000 != 0 && call.number != u32::MAX) {
            return libc::SECCOMP_RET_KILL_PROCESS;
        }
        let notify = match rules.get(&call.number) {
            None => false,
            Some(Rule::Fail(errno)) => return libc::SECCOMP_RET_ERRNO | *errno as u32,
            Some(Rule::Notify) => true,
            Some(Rule::NotifyIf(condition)) => {
                call.args[usize::from(condition.argument)] & condition.mask == condition.value
            }
        };
        let gate = area::GATE_PAGE.contains(&call.pointer);
        if notify && !gate {
            libc::SECCOMP_RET_USER_NOTIF
        } else {
            libc::SECCOMP_RET_ALLOW
        }
    }

    /// Every number with every kind of argument and instruction pointer, against the rules themselves.
    fn check(rules: &Rules) {
        let program = assemble(rules).unwrap();
        let pointers = [
            0,
            0x1_ffff,
            0x2_0000,
            0x2_0002,
            0x2_0fff,
            0x2_1000,
            0x40_1000,
            0x1_0002_0002,
            0xffff_ffff_0002_0002,
            0x7fff_f7dd_0002,
        ];
        let samples = [0, 1, 0x20, 0x22, 0x2_0000_0000, 0x1_0000_0020, u64::MAX, !0x20];
        let numbers = (0..1024).chain([0x7671, 0x7672, 0x7673, 0x7674, 0x4000_0000, 0x4000_0009, u32::MAX - 1]);
        for number in numbers {
            for pointer in pointers {
                for sample in samples {
                    for architecture in [X86_64, I386] {
                        let call = Call {
                            number,
                            architecture,
                            pointer,
                            args: [sample; 6],
                        };
                        let (result, looked) = interpret(&program, &call);
                        assert_eq!(
                            result,
                            expected(rules, &call),
                            "{number} at {pointer:#x} with {sample:#x}"
                        );
                        let decided_by_number = architecture == X86_64 && !rules.contains_key(&number);
                        assert!(
                            !decided_by_number || !looked,
                            "{number} is not in the kernel's allow bitmap"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn native_program_does_what_the_table_says() {
        check(&native_rules(false));
    }

    #[test]
    fn guest_program_does_what_the_table_says() {
        check(&guest_rules(false));
        check(&guest_rules(true));
    }

    #[test]
    fn program_of_a_restored_job_does_what_the_table_says() {
        let rules = with_cpu_time(native_rules(false));
        check(&rules);
        let Some(Rule::NotifyIf(condition)) = rules.get(&(libc::SYS_clock_gettime as u32)) else {
            panic!("clock_gettime depends on the clock");
        };
        let notified = |clock: i32| clock as u32 as u64 & condition.mask == condition.value;
        let (process, thread) = (!77 << 3 | 2, !77 << 3 | 6);
        let cpu = [
            libc::CLOCK_PROCESS_CPUTIME_ID,
            libc::CLOCK_THREAD_CPUTIME_ID,
            process,
            thread,
        ];
        assert!(cpu.into_iter().all(notified));
        let often = [libc::CLOCK_REALTIME, libc::CLOCK_MONOTONIC, libc::CLOCK_MONOTONIC_RAW];
        assert!(!often.into_iter().any(notified));
    }

    #[test]
    fn data_path_is_never_tracked_at_home() {
        let rules = native_rules(false);
        for number in [
            libc::SYS_read,
            libc::SYS_write,
            libc::SYS_futex,
            libc::SYS_epoll_wait,
            libc::SYS_sendmsg,
        ] {
            assert_eq!(rules.get(&(number as u32)), None);
        }
    }

    #[test]
    fn confined_processes_cannot_execute() {
        let executor = confine_executor().unwrap();
        assert!(executor.len().is_multiple_of(8));
        let guest = confine_guest_supervisor().unwrap();
        let guest: Program = guest
            .iter()
            .map(|i| libc::sock_filter {
                code: i.code,
                jt: i.jt,
                jf: i.jf,
                k: i.k,
            })
            .collect();
        for number in [
            libc::SYS_execve,
            libc::SYS_socket,
            libc::SYS_connect,
            libc::SYS_fork,
            libc::SYS_clone,
        ] {
            let call = Call {
                number: number as u32,
                architecture: X86_64,
                pointer: 0x40_0000,
                args: [0; 6],
            };
            assert_eq!(
                interpret(&guest, &call).0,
                libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32
            );
        }
        let call = Call {
            number: libc::SYS_read as u32,
            architecture: X86_64,
            pointer: 0x40_0000,
            args: [0; 6],
        };
        assert_eq!(interpret(&guest, &call).0, libc::SECCOMP_RET_ALLOW);
    }
}
