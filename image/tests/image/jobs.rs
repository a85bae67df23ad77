//! Jobs to test with: one small and always the same, and arbitrary valid ones.

use proptest::collection::{btree_set, vec};
use proptest::option;
use proptest::prelude::*;
use vrun_image::state::*;
use vrun_image::{PAGE, Writer};

/// A job of two processes and a zombie that has something of everything.
pub(crate) fn small() -> Job {
    let area = |start, end, protection, kind| Area {
        start,
        end,
        protection,
        kind,
        shared: false,
        grows_down: false,
        no_reserve: false,
        locked: false,
        locked_on_fault: false,
        advice: vec![],
        guards: vec![],
        huge_page: 0,
        key: 0,
        name: None,
        droppable: false,
        sealed: false,
    };
    let mapping = |path: &[u8], offset| FileMapping {
        path: path.to_vec(),
        offset,
        device: 0xfe01,
        inode: 4711,
        object: 2,
    };
    let seen = |start, object, offset| Area {
        shared: true,
        ..area(start, start + 0x2000, 3, AreaKind::Shared { object, offset })
    };
    let program = |offset| AreaKind::File(mapping(b"/usr/bin/count", offset));
    let file = |path: &[u8], stored| {
        let (path, modified) = (path.to_vec(), 1_700_000_000_000_000_000);
        FileKind::Regular(RegularFile {
            path,
            offset: 3,
            size: 5,
            mode: 0o100644,
            modified,
            stored,
        })
    };
    let slot = |number, close_on_exec, file| Slot {
        number,
        close_on_exec,
        file,
    };
    let thread = |tid, name: &[u8]| Thread {
        tid,
        name: name.to_vec(),
        registers: registers(0x40_1234, 0x7ffe_0000_0ff0),
        xstate: (0..576).map(|at| (at % 251) as u8).collect(),
        blocked: 0x4,
        pending: vec![],
        alternate_stack: AlternateStack {
            address: 0,
            flags: 2,
            size: 0,
        },
        robust_list: RobustList {
            head: 0x7f00_0000_0a20,
            length: 24,
        },
        clear_child_tid: 0x7f00_0000_0a10,
        rseq: Some(Rseq {
            address: 0x7f00_0000_0b00,
            size: 32,
            signature: 0x5305_3053,
            flags: 0,
        }),
        timer_slack: 50_000,
        parent_death_signal: 0,
        scheduling: Scheduling {
            nice: 5,
            ..Scheduling::default()
        },
        controls: ThreadControls {
            no_tsc: true,
            no_cpuid: false,
            speculation: [3, 3, 0],
            memory_failure: 3,
        },
        used: ThreadUsage {
            user: 1_000_000_000,
            system: 20_000_000,
        },
    };
    let mut called = thread(1235, b"worker\x1b[2J");
    called.registers.orig_rax = 202;
    called.registers.rax = (-512_i64).cast_unsigned();
    called.pending = vec![siginfo(34)];
    called.scheduling = Scheduling {
        policy: 1,
        flags: 1,
        nice: 0,
        priority: 10,
        deadline: [0; 3],
        affinity: vec![0b1101, 0, 1],
        io_priority: 0x4004,
    };
    let no_timer = IntervalTimer::default();
    let first = Process {
        pid: 1234,
        parent: 0,
        group: 1234,
        session: 1234,
        exit_signal: 17,
        stopped: 0,
        stop_seen: false,
        executable: b"/usr/bin/count".to_vec(),
        memory: Memory {
            areas: vec![
                area(0x40_0000, 0x40_2000, 5, program(0)),
                area(0x40_2000, 0x40_3000, 3, program(0x2000)),
                area(0x60_0000, 0x60_4000, 3, AreaKind::Heap),
                Area {
                    guards: vec![(0x62_1000, 0x62_2000)],
                    key: 1,
                    name: Some("a heap of its own".into()),
                    locked: true,
                    locked_on_fault: true,
                    ..area(0x62_0000, 0x62_4000, 3, AreaKind::Anonymous)
                },
                Area {
                    huge_page: 2 << 20,
                    ..area(0x80_0000, 0xc0_0000, 3, AreaKind::Anonymous)
                },
                Area {
                    advice: vec![10, 14],
                    ..seen(0x7f00_0000_0000, 0, 0)
                },
                seen(0x7f00_0001_0000, 1, 0x1000),
                seen(0x7f00_0002_0000, 4, 0x1000),
                seen(0x7f00_0003_0000, 3, 0),
                Area {
                    grows_down: true,
                    ..area(0x7ffe_0000_0000, 0x7ffe_0000_1000, 3, AreaKind::Stack)
                },
            ],
            layout: Layout {
                start_code: 0x40_0000,
                end_code: 0x40_2000,
                start_data: 0x40_2000,
                end_data: 0x40_2800,
                start_brk: 0x60_0000,
                brk: 0x60_4000,
                start_stack: 0x7ffe_0000_0f00,
                arg_start: 0x7ffe_0000_0f10,
                arg_end: 0x7ffe_0000_0f30,
                env_start: 0x7ffe_0000_0f30,
                env_end: 0x7ffe_0000_0f80,
            },
            auxv: (0..32).collect(),
            vdso: Some(Vdso {
                start: 0x7ffe_1000_4000,
                code: vec![0x7f; PAGE as usize],
                data: vec![(0x7ffe_1000_0000, 0x7ffe_1000_4000)],
            }),
            lock_future: 6,
            keys: 0b11,
        },
        signals: Signals {
            actions: vec![
                SignalAction {
                    signal: 2,
                    handler: 0x40_1100,
                    flags: 0x400_0000,
                    restorer: 0x40_1180,
                    mask: 2,
                },
                SignalAction {
                    signal: 13,
                    handler: 1,
                    flags: 0,
                    restorer: 0,
                    mask: 0,
                },
            ],
            pending: vec![siginfo(10)],
            interval_timers: [
                IntervalTimer {
                    interval: 1_000_000,
                    value: 250_000,
                },
                no_timer,
                no_timer,
            ],
            timers: vec![
                PosixTimer {
                    id: 0,
                    clock: 1,
                    notify: TimerNotify::Thread { signal: 34, tid: 1235 },
                    value: 0xfeed,
                    interval: 10_000_000,
                    remaining: 2_500_000,
                    expires: 5_002_500_000,
                    absolute: true,
                    overrun: 3,
                },
                PosixTimer {
                    id: 2,
                    clock: -6,
                    notify: TimerNotify::None,
                    value: 0,
                    interval: 0,
                    remaining: 0,
                    expires: 0,
                    absolute: false,
                    overrun: 0,
                },
            ],
            read_at_origin: 1 << 9 | 1 << 16,
        },
        descriptors: vec![
            slot(0, false, 0),
            slot(1, false, 0),
            slot(3, true, 1),
            slot(4, false, 2),
            slot(7, true, 3),
        ],
        working_directory: b"/home/u".to_vec(),
        umask: 0o22,
        credentials: Credentials {
            uid: [1000; 4],
            gid: [1000; 4],
            groups: vec![27, 1000],
            capabilities: [0, 1 << 23, 1 << 23, 0x1ff_ffff_ffff, 0],
            secure_bits: 0x10,
        },
        limits: vec![
            Limit {
                soft: 8 << 20,
                hard: u64::MAX
            };
            16
        ],
        personality: 0,
        dumpable: 1,
        subreaper: true,
        oom_score: 200,
        no_huge_pages: true,
        controls: ProcessControls {
            deny_write_execute: 1,
            barriers: 1 << 4,
            core_filter: 0x33,
        },
        used: Usage {
            user: 1_250_000_000,
            system: 40_000_000,
            children_user: 7_000_000_000,
            children_system: 0,
        },
        threads: vec![thread(1234, b"count"), called],
    };
    let mut second = Process {
        pid: 1240,
        parent: 1234,
        group: 1240,
        exit_signal: 0,
        stopped: 20,
        stop_seen: true,
        descriptors: vec![slot(3, false, 1)],
        threads: vec![thread(1240, b"child")],
        ..first.clone()
    };
    second.memory.areas = vec![seen(0x7f00_0000_0000, 0, 0)];
    second.signals.timers.clear();
    second.signals.pending.clear();
    second.signals.actions.clear();
    (second.memory.vdso, second.memory.layout) = (None, Layout::default());
    (second.memory.lock_future, second.memory.keys) = (0, 0);
    (second.subreaper, second.oom_score, second.no_huge_pages) = (false, 0, false);
    (second.used, second.signals.interval_timers) = (Usage::default(), [no_timer; 3]);
    second.signals.read_at_origin = 0;
    second.threads[0].scheduling = Scheduling::default();
    Job {
        id: "k7-a_1".into(),
        name: Some("counter".into()),
        command: vec![
            b"./count".to_vec(),
            b"--to".to_vec(),
            b"two words".to_vec(),
            b"\xff".to_vec(),
        ],
        host: Host {
            nodename: "alpha".into(),
            kernel: "6.18.0 #1 SMP".into(),
            machine: "x86_64".into(),
        },
        clocks: Clocks {
            realtime: 1_763_687_880_123_456_789,
            monotonic: 5_000_000_000,
            boottime: 6_000_000_000,
        },
        cpu: CpuFeatures {
            vendor: "GenuineIntel".into(),
            model: "An Example".into(),
            flags: vec!["avx".into(), "sse".into()],
        },
        files: vec![
            open(
                0o2,
                FileKind::Inherited {
                    standard: 0,
                    terminal: true,
                },
            ),
            OpenFile {
                owner: Some(Owner {
                    kind: 1,
                    id: 1234,
                    signal: 29,
                }),
                locks: vec![FileLock {
                    holder: LockHolder::Process(1234),
                    write: true,
                    start: 0,
                    end: Some(4),
                }],
                ..open(0o102001, file(b"/home/u/log", true))
            },
            open(
                0o100000,
                FileKind::Device {
                    path: b"/dev/null".to_vec(),
                    device: 0x103,
                    offset: 0,
                },
            ),
            open(
                0o300000,
                FileKind::Directory {
                    path: b"/home/u".to_vec(),
                    offset: 0x7123_4567,
                },
            ),
            open(0o4002, FileKind::Queue { queue: 0 }),
        ],
        shared: vec![
            SharedMemory {
                size: 0x2000,
                kind: SharedKind::Anonymous { huge_page: 0 },
            },
            SharedMemory {
                size: 0x3000,
                kind: SharedKind::Open { file: 1 },
            },
            SharedMemory {
                size: 0x2000,
                kind: SharedKind::File {
                    path: b"/usr/bin/count".to_vec(),
                    modified: 1_700_000_000_000_000_000,
                    written: false,
                },
            },
            SharedMemory {
                size: 0x2000,
                kind: SharedKind::SystemV { id: 32769 },
            },
            SharedMemory {
                size: 0x2001,
                kind: SharedKind::Unnamed {
                    name: b"memfd:table".to_vec(),
                    huge_page: 0,
                },
            },
            SharedMemory {
                size: 0x3000,
                kind: SharedKind::Mirrored {
                    name: b"/home/u/data.db-shm".to_vec(),
                },
            },
        ],
        ipc: Ipc {
            segments: vec![Segment {
                object: ipc_object(32769, 0x5600_04d2),
                size: 0x1fff,
            }],
            semaphores: vec![SemaphoreSet {
                object: ipc_object(0, 0),
                semaphores: vec![Semaphore { value: 1, last: 0 }, Semaphore { value: 3, last: 1240 }],
                adjustments: vec![Adjustment {
                    process: 1240,
                    number: 1,
                    value: -3,
                }],
            }],
            messages: vec![MessageQueue {
                object: ipc_object(98305, 7),
                room: 16384,
                last: 1234,
                messages: vec![Message {
                    kind: 5,
                    bytes: b"five".to_vec(),
                }],
            }],
            queues: vec![PosixQueue {
                name: b"count".to_vec(),
                unlinked: false,
                uid: 1000,
                gid: 1000,
                mode: 0o600,
                most: 10,
                size: 8192,
                messages: vec![
                    Message {
                        kind: 9,
                        bytes: b"high".to_vec(),
                    },
                    Message { kind: 0, bytes: vec![] },
                ],
                notify: Some(QueueNotify {
                    process: 1234,
                    signal: 10,
                    value: 0x60_0000,
                }),
            }],
        },
        processes: vec![first, second],
        terminal: Some(Terminal {
            foreground: 1234,
            input: 0x500,
            output: 0x5,
            local: 0x8a3b,
            characters: std::array::from_fn(|index| index as u8),
            rows: 24,
            columns: 80,
        }),
        zombies: vec![Zombie {
            pid: 1250,
            parent: 1234,
            group: 1234,
            session: 1234,
            exit_signal: 17,
            status: 0x300,
        }],
    }
}

/// The image of [`small`], the same in every run of every version that writes format 1.
pub(crate) fn small_image() -> Vec<u8> {
    let mut writer = Writer::new(Vec::new()).unwrap();
    writer.job(&small()).unwrap();
    writer.pages(0, 0x60_0000, &[0xaa; PAGE as usize]).unwrap();
    writer.pages(0, 0x7ffe_0000_0000, &[0x55; PAGE as usize]).unwrap();
    writer.file(1, 0, b"hel").unwrap();
    writer.file(1, 3, b"lo").unwrap();
    writer.finish().unwrap().0
}

pub(crate) fn siginfo(signal: u8) -> Vec<u8> {
    let mut info = vec![0; 128];
    info[0] = signal;
    info
}

fn registers(rip: u64, rsp: u64) -> Registers {
    let orig_rax = u64::MAX;
    Registers {
        rip,
        rsp,
        orig_rax,
        cs: 0x33,
        ss: 0x2b,
        eflags: 0x246,
        fs_base: 0x7f00_0000_0740,
        ..Default::default()
    }
}

fn ipc_object(id: i32, key: i32) -> IpcObject {
    IpcObject {
        id,
        key,
        uid: 1000,
        gid: 1000,
        mode: 0o640,
    }
}

fn open(flags: u32, kind: FileKind) -> OpenFile {
    OpenFile {
        flags,
        owner: None,
        locks: vec![],
        kind,
    }
}

fn path() -> impl Strategy<Value = Vec<u8>> {
    vec(1..=u8::MAX, 0..40).prop_map(|tail| [b"/", &tail[..]].concat())
}

fn area_kind() -> impl Strategy<Value = AreaKind> {
    prop_oneof![
        Just(AreaKind::Anonymous),
        Just(AreaKind::Heap),
        Just(AreaKind::Stack),
        (path(), 0..2_u64, any::<u64>(), any::<u64>()).prop_map(|(path, page, device, inode)| {
            AreaKind::File(FileMapping {
                path,
                offset: page * PAGE,
                device,
                inode,
                object: 0,
            })
        }),
        Just(AreaKind::Shared { object: 0, offset: 0 }),
    ]
}

fn areas() -> impl Strategy<Value = Vec<Area>> {
    let advice = proptest::sample::subsequence(vec![1, 2, 10, 12, 14, 15, 16, 18], 0..=8);
    let area = (0..16_u64, 1..16_u64, 0..8_u32, area_kind(), any::<[bool; 4]>(), advice);
    let extra = (0..16_u32, option::of("[a-z :]{0,79}"), any::<bool>());
    vec((area, extra), 0..20).prop_map(|list| {
        let mut end = 0x1_0000;
        let place = |((gap, pages, protection, kind, flags, advice), (key, name, guarded))| {
            let start = end + gap * PAGE;
            end = start + pages * PAGE;
            let [shared, grows_down, no_reserve, locked] = flags;
            Area {
                start,
                end,
                protection,
                kind,
                shared,
                grows_down,
                no_reserve,
                locked,
                locked_on_fault: locked && guarded,
                advice,
                guards: if guarded { vec![(start, start + PAGE)] } else { vec![] },
                huge_page: 0,
                key,
                name,
                droppable: false,
                sealed: guarded,
            }
        };
        list.into_iter().map(place).collect()
    })
}

fn open_file() -> impl Strategy<Value = OpenFile> {
    let offset = || 0..1_u64 << 63;
    let regular = (
        path(),
        offset(),
        0..1_u64 << 20,
        0..0o10000_u32,
        any::<i64>(),
        any::<bool>(),
    )
        .prop_map(|(path, offset, size, mode, modified, stored)| {
            FileKind::Regular(RegularFile {
                path,
                offset,
                size,
                mode: 0o100000 | mode,
                modified,
                stored,
            })
        });
    let kind = prop_oneof![
        regular,
        (path(), offset()).prop_map(|(path, offset)| FileKind::Directory { path, offset }),
        path().prop_map(|path| FileKind::Link { path }),
        any::<u64>().prop_map(|device| FileKind::Device {
            path: b"/dev/urandom".to_vec(),
            device,
            offset: 0
        }),
        (0..3_u32, any::<bool>()).prop_map(|(standard, terminal)| FileKind::Inherited { standard, terminal }),
    ];
    (0..4_u32, kind).prop_map(|(flags, kind)| open(flags, kind))
}

/// Slots of `files` open files.
fn descriptors(files: usize) -> impl Strategy<Value = Vec<Slot>> {
    (btree_set(0..i32::MAX, 0..12), any::<u32>()).prop_map(move |(numbers, seed)| {
        let slot = |number: i32| {
            let mixed = number.cast_unsigned() ^ seed;
            Slot {
                number,
                close_on_exec: mixed & 1 == 0,
                file: mixed % files as u32,
            }
        };
        numbers.into_iter().map(slot).collect()
    })
}

fn scheduling() -> impl Strategy<Value = Scheduling> {
    let numbers = (-20..20_i32, 1..100_u32, 0..0x8000_i32, any::<bool>());
    (numbers, vec(any::<u8>(), 0..16)).prop_map(|((nice, priority, io_priority, real), mut affinity)| {
        affinity.iter_mut().take(1).for_each(|first| *first |= 1);
        Scheduling {
            policy: real.into(),
            flags: real.into(),
            nice,
            priority: if real { priority } else { 0 },
            deadline: [0; 3],
            affinity,
            io_priority: io_priority & 0x6fff,
        }
    })
}

fn timer(id: i32) -> impl Strategy<Value = PosixTimer> {
    let notify = prop_oneof![
        Just(TimerNotify::None),
        (1..65).prop_map(|signal| TimerNotify::Process { signal }),
        (1..65, 1..1 << 22).prop_map(|(signal, tid)| TimerNotify::Thread { signal, tid }),
    ];
    let numbers = (any::<u64>(), 0..1_u64 << 63, 0..1_u64 << 63, 0..i32::MAX);
    let clock = proptest::sample::select(vec![0, 1, 2, 3, 7, 8, 9, 11, -6, -1234 * 8]);
    (clock, notify, numbers).prop_map(
        move |(clock, notify, (value, interval, remaining, overrun))| PosixTimer {
            id,
            clock,
            notify,
            value,
            interval,
            remaining,
            expires: remaining,
            absolute: id % 2 == 0,
            overrun,
        },
    )
}

fn shared_memory(files: u32) -> impl Strategy<Value = SharedMemory> {
    let kind = prop_oneof![
        Just(SharedKind::Anonymous { huge_page: 0 }),
        (0..files).prop_map(|file| SharedKind::Open { file }),
        (path(), any::<i64>(), any::<bool>()).prop_map(|(path, modified, written)| SharedKind::File {
            path,
            modified,
            written
        }),
        vec(any::<u8>(), 0..20).prop_map(|name| SharedKind::Unnamed { name, huge_page: 0 }),
        any::<i32>().prop_map(|id| SharedKind::SystemV { id: id & i32::MAX }),
        vec(any::<u8>(), 0..20).prop_map(|name| SharedKind::Mirrored { name }),
    ];
    (16..64_u64, kind).prop_map(|(pages, kind)| SharedMemory {
        size: pages * PAGE,
        kind,
    })
}

fn thread(tid: i32) -> impl Strategy<Value = Thread> {
    let name = vec(1..=u8::MAX, 0..=15);
    let xstate = (576..1000_usize).prop_flat_map(|length| vec(any::<u8>(), length));
    let pending = vec((1..=64_u8).prop_map(siginfo), 0..3);
    let rseq = option::of(0..1_u64 << 40);
    (name, xstate, pending, any::<[u64; 10]>(), rseq, scheduling()).prop_map(
        move |(name, xstate, pending, number, rseq, scheduling)| Thread {
            tid,
            name,
            registers: Registers {
                rax: number[0],
                r15: number[1],
                orig_rax: number[2],
                ..registers(number[3] >> 17, number[4] >> 17)
            },
            xstate,
            blocked: number[5],
            pending,
            alternate_stack: AlternateStack {
                address: number[6] >> 1,
                flags: i32::MIN,
                size: number[7] >> 1,
            },
            robust_list: RobustList {
                head: number[8],
                length: 24,
            },
            clear_child_tid: number[9],
            rseq: rseq.map(|page| Rseq {
                address: page * 32,
                size: 32,
                signature: number[5] as u32,
                flags: 0,
            }),
            timer_slack: number[9],
            parent_death_signal: (number[0] % 65) as i32,
            scheduling,
            controls: ThreadControls::default(),
            used: ThreadUsage::default(),
        },
    )
}

fn process(pid: i32, files: usize) -> impl Strategy<Value = Process> {
    let threads = (0..3).prop_flat_map(move |more| (pid..=pid + more).map(thread).collect::<Vec<_>>());
    let pending = vec((1..=64_u8).prop_map(siginfo), 0..3);
    let numbers = (any::<[u32; 4]>(), any::<[bool; 3]>());
    let timers = (0..3).prop_flat_map(|count| (0..count).map(timer).collect::<Vec<_>>());
    let kernels = (threads, pending, timers, descriptors(files));
    (areas(), kernels, [path(), path()], numbers).prop_map(
        move |(areas, (threads, pending, timers, descriptors), [executable, working_directory], (number, flag))| {
            let mut process = small().processes.remove(0);
            process.pid = pid;
            (process.group, process.session) = (pid, 100);
            process.parent = if pid == 100 { 0 } else { 100 };
            process.exit_signal = (number[3] % 65) as i32;
            process.stopped = if flag[2] { 19 } else { 0 };
            process.memory.areas = areas;
            process.memory.vdso = process.memory.vdso.filter(|_| flag[0]);
            process.descriptors = descriptors;
            process.threads = threads;
            process.signals.pending = pending;
            process.signals.timers = timers;
            process.executable = executable;
            process.working_directory = working_directory;
            process.umask = number[0] & 0o777;
            process.credentials.uid = number.map(|id| id >> 1);
            process.credentials.capabilities =
                [number[0] & number[1], number[0], number[2] & number[0], u32::MAX, 0].map(u64::from);
            process.personality = number[1].into();
            process.oom_score = (number[2] % 2001) as i32 - 1000;
            process.used.user = number[1].into();
            process.subreaper = flag[1];
            process
        },
    )
}

/// Any valid job, of one to three processes. What [`Job::validate`] leaves free is arbitrary.
pub(crate) fn any_job() -> impl Strategy<Value = Job> {
    let objects = vec(open_file(), 1..6).prop_flat_map(|files| {
        let count = files.len();
        let processes =
            (1..=3).prop_flat_map(move |last| (1..=last).map(|at| process(100 * at, count)).collect::<Vec<_>>());
        (Just(files), processes, vec(shared_memory(count as u32), 1..4))
    });
    let words = (vec(vec(1..=u8::MAX, 0..20), 1..4), btree_set("[a-z0-9_]{1,12}", 0..8));
    let texts = ("[A-Za-z0-9_-]{1,64}", option::of("[^/\\p{Cc}]{1,16}"), "[a-z]{0,64}");
    let zombie = option::of((0..128_i32, any::<bool>()));
    (objects, words, texts, any::<[u64; 3]>(), zombie).prop_map(
        |((files, processes, shared), (command, flags), (id, name, nodename), clock, zombie)| {
            let mut job = small();
            (job.files, job.processes, job.shared) = (files, processes, shared);
            // Those of `small` speak of its processes and its memory.
            job.terminal = None;
            job.ipc.segments.clear();
            job.ipc.semaphores.clear();
            job.ipc.queues[0].notify = None;
            // Names are for anonymous memory only.
            for area in job.processes.iter_mut().flat_map(|process| &mut process.memory.areas) {
                area.name = area.name.take().filter(|_| !matches!(area.kind, AreaKind::File(_)));
            }
            job.zombies.truncate(zombie.is_some().into());
            for (zombie, (code, ended)) in job.zombies.iter_mut().zip(zombie) {
                (zombie.parent, zombie.group, zombie.session) = (100, 0, 0);
                zombie.status = if ended { code << 8 } else { code % 64 + 1 };
            }
            job.command = command;
            job.id = id;
            job.name = name;
            job.host.nodename = nodename;
            job.cpu.flags = flags.into_iter().collect();
            let [realtime, monotonic, boottime] = clock.map(|clock| clock >> 1);
            job.clocks = Clocks {
                realtime,
                monotonic,
                boottime,
            };
            job
        },
    )
}
