//! An image for a person (`Display`) and for a program (`Serialize`: stable JSON, `"schema": 1`).
//!
//! ```text
//!  Report ─┬─ job, host, sizes
//!          ├─ shared memory, System V objects and message queues, zombies
//!          └─ processes ─┬─ threads       where each one stands, and its scheduling if it is not the default
//!                        ├─ memory        like /proc/PID/maps, with what is stored of each area
//!                        ├─ descriptors   slots → open files, with what is stored of each file
//!                        └─ signals       dispositions, pending, timers
//! ```
//!
//! The whole image is read and every checksum verified; what is stored twice is counted once. In JSON, addresses, masks
//! and inodes are strings (a JSON number is a double to many readers), sizes and PIDs are numbers, and byte strings are
//! UTF-8 with U+FFFD for what is not. As text, control characters are escaped: an image may come from anywhere.

use std::collections::HashMap;
use std::fmt::{self, Display, Formatter};
use std::io::Read;

use serde::{Serialize, Serializer};

use crate::format::{Error, Reader, Record, VERSION};
use crate::state::*;
use crate::validate::Invalid;

/// What an image holds, without its contents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    schema: u32,
    format_version: u32,
    id: String,
    name: Option<String>,
    command: Vec<Text>,
    host: Host,
    cpu: CpuFeatures,
    /// RFC 3339, UTC.
    frozen: String,
    /// Bytes of all areas.
    mapped_bytes: u64,
    /// Bytes of memory in the image, each page counted once.
    stored_bytes: u64,
    /// Mapped and not stored: zero, or as in the mapped file.
    absent_bytes: u64,
    /// Bytes of files' contents in the image, each counted once.
    file_bytes: u64,
    image_bytes: u64,
    sections: u64,
    /// Open file descriptions, which the descriptors of all processes refer to.
    files: Vec<FileReport>,
    /// Memory that several areas show, which areas refer to by its index.
    shared: Vec<SharedReport>,
    /// System V objects and POSIX message queues.
    ipc: Vec<IpcReport>,
    /// The process group that had the terminal in the foreground; 0: the one from which the job was started.
    foreground: Option<i32>,
    /// Each after its parent.
    processes: Vec<ProcessReport>,
    zombies: Vec<Zombie>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct ProcessReport {
    pid: i32,
    parent: i32,
    group: i32,
    session: i32,
    exit_signal: i32,
    /// The signal that stopped it, or 0.
    stopped: i32,
    executable: Text,
    working_directory: Text,
    umask: String,
    /// Effective.
    uid: u32,
    gid: u32,
    /// Effective.
    capabilities: Hex,
    subreaper: bool,
    oom_score: i32,
    no_huge_pages: bool,
    /// CPU time in nanoseconds.
    used: Usage,
    threads: Vec<ThreadReport>,
    areas: Vec<AreaReport>,
    descriptors: Vec<Slot>,
    signals: Vec<SignalReport>,
    /// Signals' numbers.
    pending: Vec<i32>,
    interval_timers: Vec<IntervalReport>,
    timers: Vec<TimerReport>,
    /// Signals' numbers.
    read_at_origin: Vec<i32>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct ThreadReport {
    tid: i32,
    name: Text,
    rip: Hex,
    rsp: Hex,
    /// The system call it was stopped in, if any.
    call: Option<u64>,
    blocked: Hex,
    pending: Vec<i32>,
    scheduling: SchedulingReport,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct SchedulingReport {
    policy: &'static str,
    nice: i32,
    priority: u32,
    /// Of `SCHED_DEADLINE`: runtime, deadline, period in nanoseconds.
    deadline: [u64; 3],
    /// CPUs as `taskset -c` writes them; nothing is all.
    affinity: Option<String>,
    io_priority: i32,
}

/// A timer of `setitimer(2)` that is armed, in microseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct IntervalReport {
    clock: &'static str,
    remaining: u64,
    interval: u64,
}

/// A timer of `timer_create(2)`, in nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct TimerReport {
    id: i32,
    clock: String,
    /// `None`: it sends none.
    signal: Option<i32>,
    /// `None`: the process.
    tid: Option<i32>,
    remaining: u64,
    interval: u64,
    overrun: i32,
}

/// Memory that areas show. What of it is private to a process is stored with the process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct SharedReport {
    kind: &'static str,
    size: u64,
    /// Bytes of a huge page, or 0.
    huge_page: u64,
    /// Index of the open file that it is the memory of.
    file: Option<u32>,
    path: Option<Text>,
    /// Of `shmget`.
    id: Option<i32>,
    stored_bytes: u64,
}

/// A System V object or a POSIX message queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct IpcReport {
    kind: &'static str,
    /// Of System V.
    id: Option<i32>,
    key: Option<Hex>,
    path: Option<Text>,
    uid: u32,
    gid: u32,
    mode: String,
    /// Bytes of a segment, semaphores of a set, or the most bytes (of POSIX: messages) of a queue.
    size: u64,
    /// Messages that were not received.
    messages: usize,
    /// Semaphores that a process adjusts when it ends.
    adjustments: usize,
    /// The process that is told of the next message.
    notifies: Option<i32>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct AreaReport {
    start: Hex,
    end: Hex,
    /// As in `/proc/PID/maps`: `rw-p`.
    protection: String,
    kind: &'static str,
    path: Option<Text>,
    offset: Hex,
    /// `major:minor`, hexadecimal.
    device: String,
    inode: String,
    stored_bytes: u64,
    /// Index of the shared memory that it shows.
    shared: Option<u32>,
    name: Option<String>,
    locked: bool,
    huge_page: u64,
    key: u32,
    guards: Vec<(Hex, Hex)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct FileReport {
    /// `O_RDWR|O_APPEND`.
    flags: String,
    kind: &'static str,
    path: Option<Text>,
    offset: Option<u64>,
    size: Option<u64>,
    /// `None` if the image is not meant to have this file's content.
    stored_bytes: Option<u64>,
    /// 0, 1 or 2 for an inherited stream.
    standard: Option<u32>,
    terminal: Option<bool>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct SignalReport {
    signal: i32,
    name: String,
    /// `default`, `ignore` or `handle`.
    action: &'static str,
    handler: Hex,
    flags: Hex,
    mask: Hex,
}

/// Reads a whole image and describes it.
///
/// # Errors
/// Those of [`Reader`]; [`Error::Invalid`] also if something follows the image.
pub fn inspect<R: Read>(reader: R) -> Result<Report, Error> {
    let mut reader = Reader::new(reader)?;
    let Record::Job(job) = reader.next()? else {
        return Err(Invalid::new(format_args!("its first section is not the Job")).into());
    };
    // Runs, as (start, end).
    let mut stored = vec![Vec::new(); job.processes.len() + job.shared.len()];
    let mut contents = vec![Vec::new(); job.files.len()];
    let totals = loop {
        match reader.next()? {
            Record::Pages { process, start, bytes } => {
                stored[process as usize].push((start, start + bytes.len() as u64));
            }
            Record::File { file, offset, bytes } => {
                contents[file as usize].push((offset, offset + bytes.len() as u64));
            }
            Record::End(totals) => break totals,
            Record::Job(_) => return Err(Invalid::new(format_args!("it has a second Job section")).into()),
        }
    };
    let image_bytes = reader.position();
    reader.expect_eof()?;

    let shared: Vec<_> = (job.shared.iter())
        .zip(stored.split_off(job.processes.len()))
        .map(|(memory, runs)| shared_report(memory, runs))
        .collect();
    let processes: Vec<_> = job
        .processes
        .iter()
        .zip(stored)
        .map(|(process, stored)| process_report(process, stored))
        .collect();
    let areas = || job.processes.iter().flat_map(|process| &process.memory.areas);
    let mapped_bytes = areas().map(|area| area.end - area.start).sum();
    let own_bytes: u64 = processes
        .iter()
        .flat_map(|process| &process.areas)
        .map(|area| area.stored_bytes)
        .sum();
    let stored_bytes = own_bytes + shared.iter().map(|memory| memory.stored_bytes).sum::<u64>();
    contents.iter_mut().for_each(|runs| runs.sort_unstable());
    let files: Vec<_> = (job.files.iter().zip(&contents))
        .map(|(file, runs)| file_report(file, runs, &job.ipc))
        .collect();
    let file_bytes = files.iter().filter_map(|file| file.stored_bytes).sum();
    Ok(Report {
        schema: 1,
        format_version: VERSION,
        id: job.id,
        name: job.name,
        command: job.command.iter().map(|word| Text::of(word)).collect(),
        host: job.host,
        cpu: job.cpu,
        frozen: rfc3339(job.clocks.realtime),
        mapped_bytes,
        stored_bytes,
        absent_bytes: mapped_bytes.saturating_sub(stored_bytes),
        file_bytes,
        image_bytes,
        sections: totals.sections,
        files,
        shared,
        ipc: ipc_reports(&job.ipc),
        foreground: job.terminal.map(|terminal| terminal.foreground),
        processes,
        zombies: job.zombies,
    })
}

/// How many of the bytes from `start` to `end` are in at least one run; the runs are sorted and none crosses either.
fn distinct(runs: &[(u64, u64)], start: u64, end: u64) -> u64 {
    let inside = &runs[runs.partition_point(|run| run.0 < start)..runs.partition_point(|run| run.0 < end)];
    let (bytes, _) = inside.iter().fold((0, start), |(bytes, reached), &(start, end)| {
        (bytes + end.saturating_sub(start.max(reached)), end.max(reached))
    });
    bytes
}

fn process_report(process: &Process, mut pages: Vec<(u64, u64)>) -> ProcessReport {
    pages.sort_unstable();
    ProcessReport {
        pid: process.pid,
        parent: process.parent,
        group: process.group,
        session: process.session,
        exit_signal: process.exit_signal,
        stopped: process.stopped,
        executable: Text::of(&process.executable),
        working_directory: Text::of(&process.working_directory),
        umask: format!("{:04o}", process.umask),
        uid: process.credentials.uid[1],
        gid: process.credentials.gid[1],
        capabilities: Hex(process.credentials.capabilities[2]),
        subreaper: process.subreaper,
        oom_score: process.oom_score,
        no_huge_pages: process.no_huge_pages,
        used: process.used,
        threads: process.threads.iter().map(thread_report).collect(),
        areas: process
            .memory
            .areas
            .iter()
            .map(|area| area_report(area, &pages))
            .collect(),
        descriptors: process.descriptors.clone(),
        signals: process.signals.actions.iter().map(signal_report).collect(),
        pending: numbers(&process.signals.pending),
        interval_timers: interval_reports(&process.signals.interval_timers),
        timers: process.signals.timers.iter().map(timer_report).collect(),
        read_at_origin: (1..=64)
            .filter(|signal| process.signals.read_at_origin & 1 << (signal - 1) != 0)
            .collect(),
    }
}

fn thread_report(thread: &Thread) -> ThreadReport {
    let Registers { rip, rsp, orig_rax, .. } = thread.registers;
    ThreadReport {
        tid: thread.tid,
        name: Text::of(&thread.name),
        rip: Hex(rip),
        rsp: Hex(rsp),
        // The kernel keeps the call's number there and -1 when it was entered for another reason
        // (`syscall_get_nr`, `arch/x86/include/asm/syscall.h`).
        call: (orig_rax.cast_signed() >= 0).then_some(orig_rax),
        blocked: Hex(thread.blocked),
        pending: numbers(&thread.pending),
        scheduling: scheduling_report(&thread.scheduling),
    }
}

fn scheduling_report(scheduling: &Scheduling) -> SchedulingReport {
    SchedulingReport {
        policy: match scheduling.policy {
            0 => "other",
            1 => "fifo",
            2 => "rr",
            3 => "batch",
            5 => "idle",
            6 => "deadline",
            _ => "ext",
        },
        nice: scheduling.nice,
        priority: scheduling.priority,
        deadline: scheduling.deadline,
        affinity: (!scheduling.affinity.is_empty()).then(|| cpus(&scheduling.affinity)),
        io_priority: scheduling.io_priority,
    }
}

/// A mask as `taskset -c` writes it: `0,2-3,16`.
fn cpus(mask: &[u8]) -> String {
    let set = |cpu: usize| mask.get(cpu / 8).is_some_and(|byte| byte & (1 << (cpu % 8)) != 0);
    let mut ranges = Vec::new();
    let mut cpu = 0;
    while cpu < mask.len() * 8 {
        let first = cpu;
        while set(cpu) {
            cpu += 1;
        }
        match cpu - first {
            0 => {}
            1 => ranges.push(first.to_string()),
            _ => ranges.push(format!("{first}-{}", cpu - 1)),
        }
        cpu += 1;
    }
    ranges.join(",")
}

fn interval_reports(timers: &[IntervalTimer; 3]) -> Vec<IntervalReport> {
    let report = |(clock, timer): (&'static str, &IntervalTimer)| IntervalReport {
        clock,
        remaining: timer.value,
        interval: timer.interval,
    };
    (["real", "virtual", "prof"].into_iter().zip(timers))
        .filter(|(_, timer)| timer.value != 0)
        .map(report)
        .collect()
}

fn timer_report(timer: &PosixTimer) -> TimerReport {
    let (signal, tid) = match timer.notify {
        TimerNotify::None => (None, None),
        TimerNotify::Process { signal } => (Some(signal), None),
        TimerNotify::Thread { signal, tid } => (Some(signal), Some(tid)),
    };
    // CLOCK_* of `linux/time.h`; negative: clock_getcpuclockid(3).
    let clock = match timer.clock {
        0 => "realtime",
        1 => "monotonic",
        2 => "process-cputime",
        3 => "thread-cputime",
        7 => "boottime",
        8 => "realtime-alarm",
        9 => "boottime-alarm",
        11 => "tai",
        _ => "",
    };
    TimerReport {
        id: timer.id,
        clock: if clock.is_empty() {
            format!("cputime({})", timer.clock)
        } else {
            clock.to_owned()
        },
        signal,
        tid,
        remaining: timer.remaining,
        interval: timer.interval,
        overrun: timer.overrun,
    }
}

fn shared_report(shared: &SharedMemory, mut runs: Vec<(u64, u64)>) -> SharedReport {
    runs.sort_unstable();
    let mut report = SharedReport {
        kind: "",
        size: shared.size,
        huge_page: 0,
        file: None,
        path: None,
        id: None,
        stored_bytes: distinct(&runs, 0, u64::MAX),
    };
    match &shared.kind {
        SharedKind::Anonymous { huge_page } => (report.kind, report.huge_page) = ("anonymous", *huge_page),
        SharedKind::Unnamed { name, huge_page } => {
            (report.kind, report.huge_page) = ("unnamed", *huge_page);
            report.path = Some(Text::of(name));
        }
        SharedKind::Open { file } => (report.kind, report.file) = ("open", Some(*file)),
        SharedKind::File { path, .. } => (report.kind, report.path) = ("file", Some(Text::of(path))),
        SharedKind::Mirrored { name } => (report.kind, report.path) = ("mirrored", Some(Text::of(name))),
        SharedKind::SystemV { id } => (report.kind, report.id) = ("system-v", Some(*id)),
    }
    report
}

fn ipc_reports(ipc: &Ipc) -> Vec<IpcReport> {
    let report = |kind, object: &IpcObject, size| IpcReport {
        kind,
        id: Some(object.id),
        key: Some(Hex(object.key.cast_unsigned().into())),
        path: None,
        uid: object.uid,
        gid: object.gid,
        mode: format!("{:04o}", object.mode),
        size,
        messages: 0,
        adjustments: 0,
        notifies: None,
    };
    let segments = ipc.segments.iter().map(|one| report("segment", &one.object, one.size));
    let sets = ipc.semaphores.iter().map(|set| IpcReport {
        adjustments: set.adjustments.len(),
        ..report("semaphores", &set.object, set.semaphores.len() as u64)
    });
    let messages = ipc.messages.iter().map(|queue| IpcReport {
        messages: queue.messages.len(),
        ..report("messages", &queue.object, queue.room)
    });
    let queues = ipc.queues.iter().map(|queue| IpcReport {
        kind: "POSIX queue",
        id: None,
        key: None,
        path: Some(Text::of(&[b"/", &queue.name[..]].concat())),
        uid: queue.uid,
        gid: queue.gid,
        mode: format!("{:04o}", queue.mode),
        size: queue.most.into(),
        messages: queue.messages.len(),
        adjustments: 0,
        notifies: queue.notify.map(|notify| notify.process),
    });
    segments.chain(sets).chain(messages).chain(queues).collect()
}

fn area_report(area: &Area, pages: &[(u64, u64)]) -> AreaReport {
    let letter = |bit, letter| if area.protection & bit != 0 { letter } else { '-' };
    let sharing = if area.shared { 's' } else { 'p' };
    let (kind, file, shared, offset) = match &area.kind {
        AreaKind::Anonymous => ("anonymous", None, None, 0),
        AreaKind::Heap => ("heap", None, None, 0),
        AreaKind::Stack => ("stack", None, None, 0),
        AreaKind::File(file) => ("file", Some(file), Some(file.object), file.offset),
        AreaKind::Shared { object, offset } => ("shared", None, Some(*object), *offset),
    };
    // gnu_dev_major and gnu_dev_minor of the C library, the form in which stat(2) gives a device.
    let device = file.map_or(0, |file| file.device);
    let (major, minor) = (
        (device >> 8 & 0xfff) | (device >> 32 & !0xfff),
        (device & 0xff) | (device >> 12 & 0xffff_ff00),
    );
    AreaReport {
        start: Hex(area.start),
        end: Hex(area.end),
        protection: [letter(1, 'r'), letter(2, 'w'), letter(4, 'x'), sharing]
            .into_iter()
            .collect(),
        kind,
        path: file.map(|file| Text::of(&file.path)),
        offset: Hex(offset),
        device: format!("{major:02x}:{minor:02x}"),
        inode: file.map_or(0, |file| file.inode).to_string(),
        stored_bytes: distinct(pages, area.start, area.end),
        shared,
        name: area.name.clone(),
        locked: area.locked,
        huge_page: area.huge_page,
        key: area.key,
        guards: area.guards.iter().map(|&(start, end)| (Hex(start), Hex(end))).collect(),
    }
}

/// `AF_UNIX`.
const UNIX: i32 = 1;

fn file_report(file: &OpenFile, runs: &[(u64, u64)], ipc: &Ipc) -> FileReport {
    let stored = |report: &mut FileReport| report.stored_bytes = Some(distinct(runs, 0, u64::MAX));
    let mut report = FileReport {
        flags: open_flags(file.flags),
        kind: "",
        path: None,
        offset: None,
        size: None,
        stored_bytes: None,
        standard: None,
        terminal: None,
    };
    match &file.kind {
        FileKind::Regular(regular) => {
            report.kind = "regular";
            report.path = Some(Text::of(&regular.path));
            report.offset = Some(regular.offset);
            report.size = Some(regular.size);
            report.stored_bytes = regular.stored.then(|| distinct(runs, 0, u64::MAX));
        }
        FileKind::Directory { path, offset } => {
            report.kind = "directory";
            report.path = Some(Text::of(path));
            report.offset = Some(*offset);
        }
        FileKind::Link { path } => {
            report.kind = "symbolic link";
            report.path = Some(Text::of(path));
        }
        FileKind::Device { path, offset, .. } => {
            report.kind = "device";
            report.path = Some(Text::of(path));
            report.offset = Some(*offset);
        }
        FileKind::Inherited { standard, terminal } => {
            report.kind = "inherited";
            report.standard = Some(*standard);
            report.terminal = Some(*terminal);
        }
        FileKind::Pipe(end) => {
            report.kind = if end.path.is_empty() { "pipe" } else { "FIFO" };
            report.path = Some(&end.path)
                .filter(|path| !path.is_empty())
                .map(|path| Text::of(path));
            stored(&mut report);
        }
        FileKind::Socket(socket) => {
            report.kind = if socket.family == UNIX {
                "Unix socket"
            } else {
                "Internet socket"
            };
            // Behind the family; an abstract name begins with a zero byte, which people write as an @.
            let name = socket
                .name
                .get(2..)
                .filter(|name| socket.family == UNIX && !name.is_empty());
            report.path = name.map(|name| match name {
                [0, name @ ..] => Text::of(&[b"@", name].concat()),
                path => Text::of(path.split(|byte| *byte == 0).next().unwrap_or_default()),
            });
            stored(&mut report);
        }
        FileKind::Event { .. } => report.kind = "eventfd",
        FileKind::Timer(_) => report.kind = "timerfd",
        FileKind::Signal { .. } => report.kind = "signalfd",
        FileKind::Epoll { .. } => report.kind = "epoll",
        FileKind::Inotify { .. } => report.kind = "inotify",
        FileKind::Process { .. } => report.kind = "pidfd",
        FileKind::Queue { queue } => {
            report.kind = "message queue";
            let queue = ipc.queues.get(*queue as usize);
            report.path = queue.map(|queue| Text::of(&[b"/", &queue.name[..]].concat()));
        }
        FileKind::Memory(memory) => {
            report.kind = "memfd";
            report.path = Some(Text::of(&memory.name));
            report.offset = Some(memory.offset);
            report.size = Some(memory.size);
            stored(&mut report);
        }
    }
    report
}

fn signal_report(action: &SignalAction) -> SignalReport {
    SignalReport {
        signal: action.signal,
        name: signal_name(action.signal),
        // SIG_DFL, SIG_IGN.
        action: match action.handler {
            0 => "default",
            1 => "ignore",
            _ => "handle",
        },
        handler: Hex(action.handler),
        flags: Hex(action.flags),
        mask: Hex(action.mask),
    }
}

/// `si_signo`, the first field of a `siginfo_t`.
fn numbers(pending: &[Vec<u8>]) -> Vec<i32> {
    pending
        .iter()
        .filter_map(|info| info.first_chunk())
        .map(|number| i32::from_le_bytes(*number))
        .collect()
}

/// The names of `signal(7)` for x86_64; real-time signals by number, since the C library keeps some for itself.
fn signal_name(signal: i32) -> String {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM",
        "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF",
        "WINCH", "IO", "PWR", "SYS",
    ];
    let name = usize::try_from(signal - 1).ok().and_then(|index| NAMES.get(index));
    name.map_or_else(|| format!("SIG{signal}"), |name| format!("SIG{name}"))
}

/// `O_*` by name (`asm-generic/fcntl.h`), what has none in octal.
fn open_flags(flags: u32) -> String {
    const ACCESS: [&str; 4] = ["O_RDONLY", "O_WRONLY", "O_RDWR", "O_ACCMODE"];
    // Those that contain the bits of another come first.
    const NAMES: [(u32, &str); 11] = [
        (0o4010000, "O_SYNC"),
        (0o20200000, "O_TMPFILE"),
        (0o10000, "O_DSYNC"),
        (0o200000, "O_DIRECTORY"),
        (0o2000, "O_APPEND"),
        (0o4000, "O_NONBLOCK"),
        (0o20000, "O_ASYNC"),
        (0o40000, "O_DIRECT"),
        (0o400000, "O_NOFOLLOW"),
        (0o1000000, "O_NOATIME"),
        (0o10000000, "O_PATH"),
    ];
    let mut text = ACCESS[(flags & 3) as usize].to_owned();
    // O_LARGEFILE says nothing of a 64-bit program; the kernel sets it on every open.
    let mut rest = flags & !3 & !0o100000;
    for (bits, name) in NAMES {
        if rest & bits == bits {
            rest &= !bits;
            text = text + "|" + name;
        }
    }
    if rest != 0 {
        text += &format!("|{rest:#o}");
    }
    text
}

/// Nanoseconds since the epoch as RFC 3339 in UTC. Leap seconds do not exist in Unix time.
fn rfc3339(nanoseconds: u64) -> String {
    let (seconds, fraction) = (nanoseconds / 1_000_000_000, nanoseconds % 1_000_000_000);
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Years are counted from March, so that the leap day is the last one, and in eras of 400 years from 0000-03-01,
    // which is 719468 days before the epoch.
    let (era, day) = ((days + 719_468) / 146_097, (days + 719_468) % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let march = (5 * day + 2) / 153;
    let day = day - (153 * march + 2) / 5 + 1;
    let month = if march < 10 { march + 3 } else { march - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{fraction:09}Z")
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "job        {}", self.id)?;
        if let Some(name) = &self.name {
            write!(f, " ({name})")?;
        }
        f.write_str("\ncommand   ")?;
        self.command.iter().try_for_each(|word| write!(f, " {}", Word(word)))?;
        let Host {
            nodename,
            kernel,
            machine,
        } = &self.host;
        writeln!(f, "\nhost       {nodename}, {kernel}, {machine}")?;
        writeln!(
            f,
            "cpu        {}, {}, {} flags",
            self.cpu.vendor,
            self.cpu.model,
            self.cpu.flags.len()
        )?;
        writeln!(f, "frozen     {}", self.frozen)?;
        let [mapped, stored, absent, files, image] = [
            self.mapped_bytes,
            self.stored_bytes,
            self.absent_bytes,
            self.file_bytes,
            self.image_bytes,
        ]
        .map(Size);
        writeln!(
            f,
            "memory     {mapped} mapped, {stored} stored, {absent} absent (zero, or as in the mapped file)"
        )?;
        writeln!(f, "files      {files} of content stored")?;
        writeln!(
            f,
            "image      format {}, {} sections, {image}",
            self.format_version, self.sections
        )?;
        match self.foreground {
            None => {}
            Some(0) => writeln!(f, "terminal   in the foreground")?,
            Some(group) => writeln!(f, "terminal   process group {group} in the foreground")?,
        }
        if self.processes.len() + self.zombies.len() > 1 {
            writeln!(f, "\nprocesses: pid, what")?;
            self.tree(f)?;
        }
        if !self.shared.is_empty() {
            writeln!(f, "\nmemory shown by areas: number, size, stored, what")?;
            for (number, shared) in self.shared.iter().enumerate() {
                writeln!(f, "{number:>7} {shared}")?;
            }
        }
        if !self.ipc.is_empty() {
            writeln!(
                f,
                "\nSystem V objects and message queues: kind, id or name, key, mode, owner, size"
            )?;
            self.ipc.iter().try_for_each(|ipc| writeln!(f, "  {ipc}"))?;
        }
        self.processes
            .iter()
            .try_for_each(|process| write!(f, "\n{}", WithFiles(process, &self.files)))
    }
}

impl Report {
    /// Children below their parents, two columns to the right. Without recursion: a forged job may be one long line.
    fn tree(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut children: HashMap<i32, Vec<Node<'_>>> = HashMap::new();
        let zombies = self.zombies.iter().map(|zombie| (zombie.parent, Node::Zombie(zombie)));
        let processes = self
            .processes
            .iter()
            .map(|process| (process.parent, Node::Process(process)));
        // The last one pushed is printed first.
        for (parent, node) in zombies.rev().chain(processes.rev()) {
            children.entry(parent).or_default().push(node);
        }
        let of = |children: &mut HashMap<_, _>, pid, depth| -> Vec<(usize, Node<'_>)> {
            let list: Vec<Node<'_>> = children.remove(&pid).unwrap_or_default();
            list.into_iter().map(|node| (depth, node)).collect()
        };
        let mut rest = of(&mut children, 0, 0);
        while let Some((depth, node)) = rest.pop() {
            let indent = 2 * depth.min(MAX_INDENT);
            match node {
                Node::Zombie(zombie) => {
                    let end = match (zombie.status & 0x7f, zombie.status >> 8) {
                        (0, code) => format!("exited with {code}"),
                        (signal, _) => format!("ended by {}", signal_name(signal)),
                    };
                    writeln!(f, "{:>7}  {:indent$}{end}, not waited for", zombie.pid, "")?;
                }
                Node::Process(process) => {
                    write!(f, "{:>7}  {:indent$}{}", process.pid, "", process.executable)?;
                    match process.threads.len() {
                        1 => {}
                        threads => write!(f, ", {threads} threads")?,
                    }
                    if process.stopped != 0 {
                        write!(f, ", stopped by {}", signal_name(process.stopped))?;
                    }
                    writeln!(f)?;
                    rest.extend(of(&mut children, process.pid, depth + 1));
                }
            }
        }
        Ok(())
    }
}

enum Node<'a> {
    Process(&'a ProcessReport),
    Zombie(&'a Zombie),
}

/// The deepest level of a tree that has a column of its own.
const MAX_INDENT: usize = 30;

impl Display for SharedReport {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let [size, stored] = [self.size, self.stored_bytes].map(|bytes| Size(bytes).to_string());
        write!(f, "{size:>10} {stored:>10}  {}", self.kind)?;
        if let Some(path) = &self.path {
            write!(f, " {path}")?;
        }
        if let Some(file) = self.file {
            write!(f, " file {file}")?;
        }
        if let Some(id) = self.id {
            write!(f, " {id}")?;
        }
        match self.huge_page {
            0 => Ok(()),
            huge_page => write!(f, ", pages of {}", Size(huge_page)),
        }
    }
}

/// A process with the open files that its descriptors refer to.
struct WithFiles<'a>(&'a ProcessReport, &'a [FileReport]);

impl Display for WithFiles<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self(process, files) = self;
        writeln!(f, "process {}  {}", process.pid, process.executable)?;
        let ProcessReport {
            parent,
            group,
            session,
            uid,
            gid,
            umask,
            ..
        } = process;
        writeln!(
            f,
            "  parent {parent}, group {group}, session {session}, uid {uid}, gid {gid}, umask {umask}"
        )?;
        writeln!(f, "  working directory {}", process.working_directory)?;
        let Usage {
            user,
            system,
            children_user,
            children_system,
        } = process.used;
        let [user, system, children_user, children_system] =
            [user, system, children_user, children_system].map(Nanoseconds);
        writeln!(
            f,
            "  used {user} in user mode and {system} in the kernel, its children {children_user} and {children_system}"
        )?;
        let facts: Vec<String> = [
            (process.stopped != 0).then(|| format!("stopped by {}", signal_name(process.stopped))),
            (process.capabilities.0 != 0).then(|| format!("capabilities {:#x}", process.capabilities.0)),
            process.subreaper.then(|| "subreaper".to_owned()),
            (process.oom_score != 0).then(|| format!("OOM score {}", process.oom_score)),
            process.no_huge_pages.then(|| "no huge pages".to_owned()),
        ]
        .into_iter()
        .flatten()
        .collect();
        if !facts.is_empty() {
            writeln!(f, "  {}", facts.join(", "))?;
        }
        list(f, "threads: tid, rip, state, name", &process.threads)?;
        list(
            f,
            "memory: start-end, protection, offset, device, inode, stored, what",
            &process.areas,
        )?;
        let descriptors = process
            .descriptors
            .iter()
            .map(|slot| Descriptor(slot, &files[slot.file as usize]));
        list(
            f,
            "descriptors: number (+ is close-on-exec), kind, flags, what",
            descriptors,
        )?;
        list(f, "signals: name, action, flags, mask", &process.signals)?;
        if !process.pending.is_empty() {
            writeln!(f, "  pending:{}", Names(&process.pending))?;
        }
        if !process.interval_timers.is_empty() {
            list(
                f,
                "interval timers: clock, fires in, then every",
                &process.interval_timers,
            )?;
        }
        if !process.timers.is_empty() {
            list(f, "timers: id, clock, fires in, then every, what", &process.timers)?;
        }
        if !process.read_at_origin.is_empty() {
            writeln!(
                f,
                "  read from descriptors at its origin:{}",
                Names(&process.read_at_origin)
            )?;
        }
        Ok(())
    }
}

fn list<T: Display>(f: &mut Formatter<'_>, title: &str, items: impl IntoIterator<Item = T>) -> fmt::Result {
    writeln!(f, "  {title}")?;
    items.into_iter().try_for_each(|item| writeln!(f, "    {item}"))
}

/// Signals by name, a space before each.
struct Names<'a>(&'a [i32]);

impl Display for Names<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.0
            .iter()
            .try_for_each(|signal| write!(f, " {}", signal_name(*signal)))
    }
}

impl Display for ThreadReport {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let state = self
            .call
            .map_or_else(|| "in its own code".to_owned(), |call| format!("in call {call}"));
        write!(f, "{:>7} {:#014x} {state:<15} {}", self.tid, self.rip.0, self.name)?;
        if !self.pending.is_empty() {
            write!(f, ", pending:{}", Names(&self.pending))?;
        }
        write!(f, "{}", self.scheduling)
    }
}

/// What is not the default, a comma before each.
impl Display for SchedulingReport {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.policy != "other" {
            write!(f, ", policy {}", self.policy)?;
        }
        if self.nice != 0 {
            write!(f, ", nice {}", self.nice)?;
        }
        if self.priority != 0 {
            write!(f, ", priority {}", self.priority)?;
        }
        if self.deadline != [0; 3] {
            let [runtime, deadline, period] = self.deadline.map(Nanoseconds);
            write!(f, ", {runtime} of each {period} within {deadline}")?;
        }
        if let Some(cpus) = &self.affinity {
            write!(f, ", on CPUs {cpus}")?;
        }
        match self.io_priority {
            0 => Ok(()),
            priority => write!(f, ", I/O priority {priority:#x}"),
        }
    }
}

impl Display for IpcReport {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{:<11} ", self.kind)?;
        match (&self.path, self.id, &self.key) {
            (_, Some(id), Some(key)) => write!(f, "{id} {:#010x}", key.0)?,
            (Some(path), ..) => write!(f, "{path}")?,
            _ => {}
        }
        write!(f, " {} {}:{} {}", self.mode, self.uid, self.gid, self.size)?;
        if self.messages != 0 {
            write!(f, ", {} not received", self.messages)?;
        }
        if self.adjustments != 0 {
            write!(f, ", {} to be undone", self.adjustments)?;
        }
        match self.notifies {
            None => Ok(()),
            Some(pid) => write!(f, ", notifies process {pid}"),
        }
    }
}

impl Display for IntervalReport {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let [remaining, interval] = [self.remaining, self.interval].map(|time| Nanoseconds(time.saturating_mul(1000)));
        write!(f, "{:<15} {remaining} {interval}", self.clock)
    }
}

impl Display for TimerReport {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let [remaining, interval] = [self.remaining, self.interval].map(Nanoseconds);
        write!(f, "{:>7} {:<15} {remaining} {interval}", self.id, self.clock)?;
        match (self.signal, self.tid) {
            (None, _) => f.write_str(" no signal")?,
            (Some(signal), None) => write!(f, " {}", signal_name(signal))?,
            (Some(signal), Some(tid)) => write!(f, " {} to thread {tid}", signal_name(signal))?,
        }
        match self.overrun {
            0 => Ok(()),
            overrun => write!(f, ", overrun {overrun}"),
        }
    }
}

impl Display for AreaReport {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self {
            start,
            end,
            protection,
            offset,
            device,
            inode,
            ..
        } = self;
        let stored = Size(self.stored_bytes).to_string();
        write!(
            f,
            "{:012x}-{:012x} {protection} {:08x} {device} {inode:<8} {stored:>9}",
            start.0, end.0, offset.0
        )?;
        match (&self.path, &self.shared) {
            (Some(path), _) => write!(f, "  {path}")?,
            (None, Some(shared)) => write!(f, "  [shared {shared}]")?,
            (None, None) => write!(f, "  [{}]", self.kind)?,
        }
        if let Some(name) = &self.name {
            write!(f, " \"{name}\"")?;
        }
        if self.locked {
            f.write_str(", locked")?;
        }
        if self.huge_page != 0 {
            write!(f, ", pages of {}", Size(self.huge_page))?;
        }
        if self.key != 0 {
            write!(f, ", key {}", self.key)?;
        }
        match self.guards.len() {
            0 => Ok(()),
            count => write!(f, ", {count} guarded ranges"),
        }
    }
}

/// A slot with the open file that it refers to.
struct Descriptor<'a>(&'a Slot, &'a FileReport);

impl Display for Descriptor<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self(slot, file) = self;
        let on_exec = if slot.close_on_exec { '+' } else { ' ' };
        write!(f, "{:>7}{on_exec} {:<9} {}", slot.number, file.kind, file.flags)?;
        if let Some(path) = &file.path {
            write!(f, "  {path}")?;
        }
        if let Some(offset) = file.offset {
            write!(f, " at {offset}")?;
        }
        if let Some(size) = file.size {
            write!(f, " of {size} bytes")?;
        }
        if let Some(stored) = file.stored_bytes {
            write!(f, ", {} stored", Size(stored))?;
        }
        if let Some(standard) = file.standard {
            write!(
                f,
                "  the restorer's {}",
                ["input", "output", "error"][standard as usize]
            )?;
        }
        if file.terminal == Some(true) {
            f.write_str(", a terminal")?;
        }
        Ok(())
    }
}

impl Display for SignalReport {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{:<9} ", self.name)?;
        match self.action {
            "handle" => write!(f, "{:#014x}", self.handler.0)?,
            action => write!(f, "{action:<14}")?,
        }
        write!(f, " {:#010x} {:016x}", self.flags.0, self.mask.0)
    }
}

/// A number that is not counted with: in JSON, a string like `"0x401000"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Hex(u64);

impl Serialize for Hex {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:#x}", self.0))
    }
}

/// Bytes that should be UTF-8.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
struct Text(String);

impl Text {
    fn of(bytes: &[u8]) -> Text {
        Text(String::from_utf8_lossy(bytes).into_owned())
    }
}

/// With what cannot be seen escaped.
impl Display for Text {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            '\'' | '"' | '\\' => write!(f, "{c}"),
            _ => write!(f, "{}", c.escape_debug()),
        })
    }
}

/// A word of a command line, quoted where a shell would need it.
struct Word<'a>(&'a Text);

impl Display for Word<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let word = self.0;
        let plain = |c: char| c.is_alphanumeric() || "_-./,:=+@%".contains(c);
        if !word.0.is_empty() && word.0.chars().all(plain) {
            return write!(f, "{word}");
        }
        write!(f, "'{}'", Text(word.0.replace('\'', r"'\''")))
    }
}

/// A time in seconds, for a person.
struct Nanoseconds(u64);

impl Display for Nanoseconds {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match (self.0 / 1_000_000_000, self.0 % 1_000_000_000) {
            (seconds, 0) => write!(f, "{seconds} s"),
            (seconds, rest) => write!(f, "{} s", format!("{seconds}.{rest:09}").trim_end_matches('0')),
        }
    }
}

/// Bytes in the largest unit of which there is at least one.
struct Size(u64);

impl Display for Size {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let steps = self.0.checked_ilog2().unwrap_or(0) / 10;
        let unit = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"][steps as usize];
        let decimals = usize::from(steps != 0);
        write!(
            f,
            "{:.decimals$} {unit}",
            self.0 as f64 / (1_u64 << (10 * steps)) as f64
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_date() {
        let of = |seconds: u64| rfc3339(seconds * 1_000_000_000);
        assert_eq!(of(0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(of(68_169_599), "1972-02-28T23:59:59.000000000Z");
        assert_eq!(of(951_782_400), "2000-02-29T00:00:00.000000000Z");
        assert_eq!(of(1_230_768_000), "2009-01-01T00:00:00.000000000Z");
        assert_eq!(of(4_107_542_400), "2100-03-01T00:00:00.000000000Z");
        assert_eq!(rfc3339(i64::MAX as u64), "2262-04-11T23:47:16.854775807Z");
    }

    #[test]
    fn what_is_stored_twice_counts_once() {
        let runs = [(0, 4), (0, 10), (2, 3), (10, 12), (20, 24)];
        assert_eq!(distinct(&runs, 0, 10), 10);
        assert_eq!(distinct(&runs, 10, 20), 2);
        assert_eq!(distinct(&runs, 0, u64::MAX), 16);
        assert_eq!(distinct(&[], 0, u64::MAX), 0);
    }

    #[test]
    fn flags_have_names() {
        assert_eq!(open_flags(0o100000), "O_RDONLY");
        assert_eq!(open_flags(0o102002), "O_RDWR|O_APPEND");
        assert_eq!(open_flags(0o4010001), "O_WRONLY|O_SYNC");
        assert_eq!(open_flags(0o20200002 | 0o40000000), "O_RDWR|O_TMPFILE|0o40000000");
    }

    #[test]
    fn text_cannot_talk_to_a_terminal() {
        assert_eq!(Text::of(b"a\x1b[2J\n\xff'").to_string(), "a\\u{1b}[2J\\n\u{fffd}'");
        assert_eq!(Word(&Text::of(b"it's")).to_string(), r"'it'\''s'");
        assert_eq!(Word(&Text::of(b"")).to_string(), "''");
    }

    #[test]
    fn cpus_are_those_of_taskset() {
        assert_eq!(cpus(&[0b1101, 0, 1]), "0,2-3,16");
        assert_eq!(cpus(&[0xff, 0xff]), "0-15");
        assert_eq!(cpus(&[0]), "");
    }

    #[test]
    fn times_are_in_seconds() {
        let times = [0, 1, 2_500_000, 3_000_000_000].map(|time| Nanoseconds(time).to_string());
        assert_eq!(times, ["0 s", "0.000000001 s", "0.0025 s", "3 s"]);
    }

    #[test]
    fn sizes_have_one_decimal() {
        let sizes = [0, 1023, 1024, 1536, 1 << 30, u64::MAX].map(|bytes| Size(bytes).to_string());
        assert_eq!(sizes, ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "1.0 GiB", "16.0 EiB"]);
    }
}
