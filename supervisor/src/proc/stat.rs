//! One process or thread in numbers: `stat`, `status`, `limits`, `syscall`.

use vrun_image::state::{Credentials, Layout, Limit};

use super::{Malformed, hex, key_value, lines, number, octal, words};

/// `/proc/PID/stat`, proc_pid_stat(5): the fields that a checkpoint needs. Addresses are 0 for a process that we may
/// not trace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stat {
    pub pid: i32,
    /// The name, any bytes.
    pub name: Vec<u8>,
    /// `R`, `S`, `D`, `T`, `t`, `Z`, `X`, `I`.
    pub state: u8,
    pub parent: i32,
    pub group: i32,
    pub session: i32,
    /// Device number of the controlling terminal, 0 if there is none.
    pub terminal: i32,
    /// The terminal's foreground process group, -1 if there is none.
    pub foreground_group: i32,
    /// Page faults: minor, major.
    pub faults: [u64; 2],
    /// Those of the children that were waited for.
    pub children_faults: [u64; 2],
    /// Time spent in user mode, in clock ticks (`_SC_CLK_TCK`).
    pub user_time: u64,
    /// Time spent in the kernel, in clock ticks.
    pub system_time: u64,
    /// The same of the children that were waited for.
    pub children_user_time: u64,
    pub children_system_time: u64,
    pub nice: i32,
    pub threads: u32,
    /// Clock ticks since boot: with the PID, it names a process for good.
    pub start_time: u64,
    /// In bytes.
    pub virtual_size: u64,
    /// In pages.
    pub resident: u64,
    pub start_code: u64,
    pub end_code: u64,
    pub start_stack: u64,
    pub start_data: u64,
    pub end_data: u64,
    pub start_brk: u64,
    pub arg_start: u64,
    pub arg_end: u64,
    pub env_start: u64,
    pub env_end: u64,
    /// What its parent is sent when it ends.
    pub exit_signal: i32,
    /// How it ended, as wait(2) gives it; 0 also for who may not trace it.
    pub exit_code: i32,
}

impl Stat {
    /// Parses the file's bytes. The name may hold `)` and white space: what follows the *last* `)` is the kernel's.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        Self::find(bytes).ok_or_else(|| Malformed::new("stat", bytes))
    }

    fn find(bytes: &[u8]) -> Option<Self> {
        let open = bytes.iter().position(|byte| *byte == b'(')?;
        let close = bytes.iter().rposition(|byte| *byte == b')')?;
        let name = bytes.get(open + 1..close)?.to_vec();
        let fields: Vec<&[u8]> = words(&bytes[close + 1..]).collect();
        // By the numbers of the manual page, where the state is field 3.
        let field = |index: usize| fields.get(index - 3).copied();
        let signed = |index| number::<i32>(field(index)?);
        let unsigned = |index| number::<u64>(field(index)?);
        Some(Self {
            pid: number(bytes[..open].trim_ascii())?,
            name,
            state: *field(3)?.first()?,
            parent: signed(4)?,
            group: signed(5)?,
            session: signed(6)?,
            terminal: signed(7)?,
            foreground_group: signed(8)?,
            faults: [unsigned(10)?, unsigned(12)?],
            children_faults: [unsigned(11)?, unsigned(13)?],
            user_time: unsigned(14)?,
            system_time: unsigned(15)?,
            children_user_time: unsigned(16)?,
            children_system_time: unsigned(17)?,
            nice: signed(19)?,
            threads: number(field(20)?)?,
            start_time: unsigned(22)?,
            virtual_size: unsigned(23)?,
            resident: unsigned(24)?,
            start_code: unsigned(26)?,
            end_code: unsigned(27)?,
            start_stack: unsigned(28)?,
            start_data: unsigned(45)?,
            end_data: unsigned(46)?,
            start_brk: unsigned(47)?,
            arg_start: unsigned(48)?,
            arg_end: unsigned(49)?,
            env_start: unsigned(50)?,
            env_end: unsigned(51)?,
            exit_signal: signed(38)?,
            exit_code: signed(52)?,
        })
    }

    /// The boundaries of the address space. `brk` is the current break, which only the process itself can tell
    /// (`brk(0)`).
    pub fn layout(&self, brk: u64) -> Layout {
        Layout {
            start_code: self.start_code,
            end_code: self.end_code,
            start_data: self.start_data,
            end_data: self.end_data,
            start_brk: self.start_brk,
            brk,
            start_stack: self.start_stack,
            arg_start: self.arg_start,
            arg_end: self.arg_end,
            env_start: self.env_start,
            env_end: self.env_end,
        }
    }
}

/// `/proc/PID/status`, proc_pid_status(5). Signal sets have bit 0 for signal 1.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// None for a zombie, which has given it up.
    pub umask: Option<u32>,
    /// As in [`Stat::state`].
    pub state: u8,
    /// The process that this thread belongs to.
    pub process: i32,
    pub pid: i32,
    pub parent: i32,
    /// Who traces it, 0 if nobody.
    pub tracer: i32,
    /// Real, effective, saved, file-system.
    pub uid: [u32; 4],
    pub gid: [u32; 4],
    pub groups: Vec<u32>,
    /// Its number in each PID namespace from ours inwards.
    pub namespace_pids: Vec<i32>,
    /// The same for its process group and its session; 0 in a namespace where that does not exist.
    pub namespace_groups: Vec<i32>,
    pub namespace_sessions: Vec<i32>,
    /// In bytes; 0 without an address space.
    pub resident: u64,
    /// The most that it had resident, in bytes.
    pub peak_resident: u64,
    /// Of the thread: voluntary, forced.
    pub context_switches: [u64; 2],
    pub threads: u32,
    /// Pending for this thread.
    pub pending: u64,
    /// Pending for the process.
    pub shared_pending: u64,
    pub blocked: u64,
    pub ignored: u64,
    pub caught: u64,
    /// `CAP_*` bits: inheritable, permitted, effective, bounding, ambient.
    pub capabilities: [u64; 5],
    pub no_new_privileges: bool,
    /// 0 none, 1 strict, 2 filter.
    pub seccomp: u32,
}

impl Status {
    /// Parses the file's bytes. Unknown lines are passed over; the kernel escapes newlines in the name, so that it
    /// cannot pose as a line.
    ///
    /// # Errors
    /// [`Malformed`]: a known line with an unknown form, or the identity is missing.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut status = Self::default();
        let mut seen = (false, false);
        for line in lines(bytes) {
            let Some((key, value)) = key_value(line) else { continue };
            seen = (seen.0 || key == b"Pid", seen.1 || key == b"Uid");
            status.take(key, value).ok_or_else(|| Malformed::new("status", line))?;
        }
        if seen == (true, true) {
            Ok(status)
        } else {
            Err(Malformed::new("status", bytes))
        }
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        match key {
            b"Umask" => self.umask = Some(octal(value)?),
            b"State" => self.state = *value.first()?,
            b"Tgid" => self.process = number(value)?,
            b"Pid" => self.pid = number(value)?,
            b"PPid" => self.parent = number(value)?,
            b"TracerPid" => self.tracer = number(value)?,
            b"Uid" => self.uid = numbers(value)?.try_into().ok()?,
            b"Gid" => self.gid = numbers(value)?.try_into().ok()?,
            b"Groups" => self.groups = numbers(value)?,
            b"NSpid" => self.namespace_pids = numbers(value)?,
            b"NSpgid" => self.namespace_groups = numbers(value)?,
            b"NSsid" => self.namespace_sessions = numbers(value)?,
            b"VmRSS" => self.resident = number::<u64>(words(value).next()?)?.checked_mul(1024)?,
            b"VmHWM" => self.peak_resident = number::<u64>(words(value).next()?)?.checked_mul(1024)?,
            b"voluntary_ctxt_switches" => self.context_switches[0] = number(value)?,
            b"nonvoluntary_ctxt_switches" => self.context_switches[1] = number(value)?,
            b"Threads" => self.threads = number(value)?,
            b"SigPnd" => self.pending = hex(value)?,
            b"ShdPnd" => self.shared_pending = hex(value)?,
            b"SigBlk" => self.blocked = hex(value)?,
            b"SigIgn" => self.ignored = hex(value)?,
            b"SigCgt" => self.caught = hex(value)?,
            b"CapInh" => self.capabilities[0] = hex(value)?,
            b"CapPrm" => self.capabilities[1] = hex(value)?,
            b"CapEff" => self.capabilities[2] = hex(value)?,
            b"CapBnd" => self.capabilities[3] = hex(value)?,
            b"CapAmb" => self.capabilities[4] = hex(value)?,
            b"NoNewPrivs" => self.no_new_privileges = number::<u32>(value)? != 0,
            b"Seccomp" => self.seccomp = number(value)?,
            _ => {}
        }
        Some(())
    }

    /// Its identity, as an image keeps it. Of the securebits only the process itself knows (`prctl(2)`).
    pub fn credentials(&self, secure_bits: u32) -> Credentials {
        Credentials {
            uid: self.uid,
            gid: self.gid,
            groups: self.groups.clone(),
            capabilities: self.capabilities,
            secure_bits,
        }
    }
}

fn numbers<T: std::str::FromStr>(bytes: &[u8]) -> Option<Vec<T>> {
    words(bytes).map(number).collect()
}

/// The lines of `/proc/PID/limits` (`fs/proc/base.c`, `lnames`), in the order of `RLIMIT_*`.
const LIMITS: [&str; 16] = [
    "Max cpu time",
    "Max file size",
    "Max data size",
    "Max stack size",
    "Max core file size",
    "Max resident set",
    "Max processes",
    "Max open files",
    "Max locked memory",
    "Max address space",
    "Max file locks",
    "Max pending signals",
    "Max msgqueue size",
    "Max nice priority",
    "Max realtime priority",
    "Max realtime timeout",
];

/// Parses `/proc/PID/limits`: all 16, in the numeric order of `RLIMIT_*`; `RLIM_INFINITY` is `u64::MAX`.
///
/// # Errors
/// [`Malformed`]: one is missing or not understood.
pub fn parse_limits(bytes: &[u8]) -> Result<Vec<Limit>, Malformed> {
    let value = |word: &[u8]| {
        if word == b"unlimited" {
            Some(u64::MAX)
        } else {
            number(word)
        }
    };
    let limit = |name: &str| {
        let line = lines(bytes).find_map(|line| line.strip_prefix(name.as_bytes()))?;
        let mut values = words(line).map(value);
        Some(Limit {
            soft: values.next()??,
            hard: values.next()??,
        })
    };
    LIMITS
        .iter()
        .map(|name| limit(name).ok_or_else(|| Malformed::new("limits", name.as_bytes())))
        .collect()
}

/// `/proc/PID/syscall`: where a thread is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyscallState {
    /// On a CPU: nothing is known.
    Running,
    /// In the kernel, but in no system call (a fault, a stop).
    Outside {
        stack_pointer: u64,
        instruction_pointer: u64,
    },
    /// In a system call.
    Inside {
        number: i64,
        arguments: [u64; 6],
        stack_pointer: u64,
        instruction_pointer: u64,
    },
}

impl SyscallState {
    /// Parses the file's bytes.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let parse = || {
            let mut words = words(bytes);
            let first = words.next()?;
            if first == b"running" {
                return Some(Self::Running);
            }
            let number = number::<i64>(first)?;
            let rest: Vec<u64> = words.map(hex).collect::<Option<_>>()?;
            Some(match rest[..] {
                [stack_pointer, instruction_pointer] => Self::Outside {
                    stack_pointer,
                    instruction_pointer,
                },
                [a, b, c, d, e, f, stack_pointer, instruction_pointer] => Self::Inside {
                    number,
                    arguments: [a, b, c, d, e, f],
                    stack_pointer,
                    instruction_pointer,
                },
                _ => return None,
            })
        };
        parse().ok_or_else(|| Malformed::new("syscall", bytes))
    }

    /// The number of the system call that the thread is in.
    pub fn number(&self) -> Option<i64> {
        if let Self::Inside { number, .. } = self {
            Some(*number)
        } else {
            None
        }
    }
}

/// One of `/proc/PID/timers`, proc_pid_timers(5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimerInfo {
    pub id: i32,
    pub signal: i32,
    /// `sigev_value`.
    pub value: u64,
    /// It tells nobody when it fires (`SIGEV_NONE`).
    pub silent: bool,
    /// The thread that it tells (`SIGEV_THREAD_ID`), in our PID namespace; 0 if that has ended.
    pub thread: Option<i32>,
    /// As it was asked for: a dynamic clock has a PID of the process's own namespace in it.
    pub clock: i32,
}

impl TimerInfo {
    /// Parses the file's bytes.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn parse(bytes: &[u8]) -> Result<Vec<Self>, Malformed> {
        let mut timers: Vec<Self> = Vec::new();
        for line in lines(bytes) {
            let mut take = || {
                let (key, value) = key_value(line)?;
                if key == b"ID" {
                    let id = number(value)?;
                    timers.push(Self { id, ..Self::default() });
                    return Some(());
                }
                let timer = timers.last_mut()?;
                match key {
                    b"signal" => {
                        let slash = value.iter().position(|byte| *byte == b'/')?;
                        timer.signal = number(&value[..slash])?;
                        timer.value = hex(&value[slash + 1..])?;
                    }
                    b"notify" => {
                        timer.silent = value.starts_with(b"none/");
                        let dot = value.iter().rposition(|byte| *byte == b'.')?;
                        if value[..dot].ends_with(b"/tid") {
                            timer.thread = Some(number(&value[dot + 1..])?);
                        }
                    }
                    b"ClockID" => timer.clock = number(value)?,
                    _ => {}
                }
                Some(())
            };
            take().ok_or_else(|| Malformed::new("timers", line))?;
        }
        Ok(timers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_with_a_hostile_name() {
        let sample = b"8177 (a) R 1 (\n\xff) S 8169 8170 5930 34816 -1 4194304 101 0 0 0 12 34 0 0 20 -5 3 0 143754 \
            3133440 413 18446744073709551615 11 12 13 0 0 0 0 0 0 0 0 0 17 1 0 0 0 0 0 14 15 16 17 18 19 20 0\n";
        let stat = Stat::parse(sample).unwrap();
        assert_eq!(stat.name, b"a) R 1 (\n\xff");
        assert_eq!(
            (stat.pid, stat.state, stat.parent, stat.group, stat.session),
            (8177, b'S', 8169, 8170, 5930)
        );
        assert_eq!((stat.terminal, stat.foreground_group), (34816, -1));
        assert_eq!(
            (stat.user_time, stat.system_time, stat.nice, stat.threads),
            (12, 34, -5, 3)
        );
        assert_eq!(
            (stat.start_time, stat.virtual_size, stat.resident),
            (143_754, 3_133_440, 413)
        );
        let layout = stat.layout(99);
        assert_eq!((layout.start_code, layout.end_code, layout.start_stack), (11, 12, 13));
        assert_eq!(
            (layout.start_data, layout.end_data, layout.start_brk, layout.brk),
            (14, 15, 16, 99)
        );
        assert_eq!(
            (layout.arg_start, layout.arg_end, layout.env_start, layout.env_end),
            (17, 18, 19, 20)
        );
        for bad in [&b""[..], b"1", b")(", b"1 (x) S 2", &sample[..sample.len() - 8]] {
            assert!(Stat::parse(bad).is_err());
        }
    }

    #[test]
    fn status_of_a_process() {
        let sample = b"Name:\ta\\nUid:\t7\t7\t7\t7\nUmask:\t0027\nState:\tT (stopped)\nTgid:\t10\nNgid:\t0\nPid:\t11\n\
            PPid:\t5\nTracerPid:\t6\nUid:\t1000\t1001\t1002\t1003\nGid:\t4294967295\t1\t2\t3\nFDSize:\t256\n\
            Groups:\t4 24 1000 \nNSpid:\t11\t1\nVmRSS:\t    1672 kB\nThreads:\t2\nSigQ:\t0/9\n\
            SigPnd:\t0000000000000001\nShdPnd:\t0000000000000002\n\
            SigBlk:\tfffffffe7ffbfeff\nSigIgn:\t0000000000001000\n\
            SigCgt:\t0000000180000000\nCapEff:\t000001fffeffffff\nNoNewPrivs:\t1\nSeccomp:\t2\n\
            News:\tof a later kernel\n";
        let status = Status::parse(sample).unwrap();
        assert_eq!(
            (status.process, status.pid, status.parent, status.tracer),
            (10, 11, 5, 6)
        );
        assert_eq!(
            (status.umask, status.state, status.threads, status.resident),
            (Some(0o27), b'T', 2, 1672 << 10)
        );
        let credentials = status.credentials(0);
        assert_eq!(
            (credentials.uid, credentials.gid),
            ([1000, 1001, 1002, 1003], [u32::MAX, 1, 2, 3])
        );
        assert_eq!(
            (credentials.groups, status.namespace_pids),
            (vec![4, 24, 1000], vec![11, 1])
        );
        assert_eq!(
            (status.pending, status.shared_pending, status.blocked),
            (1, 2, 0xffff_fffe_7ffb_feff)
        );
        assert_eq!((status.ignored, status.caught), (0x1000, 0x1_8000_0000));
        assert_eq!((status.no_new_privileges, status.seccomp), (true, 2));
        assert_eq!(status.capabilities[2], 0x1ff_feff_ffff);
        assert!(Status::parse(b"Name:\tx\n").is_err());
        assert!(Status::parse(b"Pid:\t1\nUid:\t1\t2\t3\n").is_err());
    }

    #[test]
    fn limits_in_numeric_order() {
        let mut sample = b"Limit                     Soft Limit           Hard Limit           Units     \n".to_vec();
        for (index, name) in LIMITS.iter().enumerate() {
            let hard = if index % 2 == 0 {
                "unlimited".to_owned()
            } else {
                (index * 10).to_string()
            };
            sample.extend(format!("{name:<25} {index:<20} {hard:<20} bytes     \n").bytes());
        }
        let limits = parse_limits(&sample).unwrap();
        assert_eq!(limits.len(), 16);
        assert_eq!(limits[libc::RLIMIT_NOFILE as usize], Limit { soft: 7, hard: 70 });
        assert_eq!(limits[libc::RLIMIT_AS as usize], Limit { soft: 9, hard: 90 });
        assert_eq!(limits[libc::RLIMIT_RTTIME as usize], Limit { soft: 15, hard: 150 });
        assert_eq!(
            limits[0],
            Limit {
                soft: 0,
                hard: u64::MAX
            }
        );
        assert!(parse_limits(&sample[..sample.len() - 100]).is_err());
    }

    #[test]
    fn syscall_in_its_three_forms() {
        assert_eq!(SyscallState::parse(b"running\n").unwrap(), SyscallState::Running);
        assert_eq!(
            SyscallState::parse(b"-1 0x7ffc 0x55\n").unwrap(),
            SyscallState::Outside {
                stack_pointer: 0x7ffc,
                instruction_pointer: 0x55
            }
        );
        let inside = SyscallState::parse(b"35 0x1 0x2 0x3 0x4 0x5 0x6 0x7ffc 0x55\n").unwrap();
        assert_eq!(inside.number(), Some(libc::SYS_nanosleep));
        assert!(SyscallState::parse(b"35 0x1\n").is_err());
    }
}
