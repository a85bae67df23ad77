//! Jobs to test with: one small and always the same, and arbitrary valid ones.

use proptest::collection::{btree_set, vec};
use proptest::option;
use proptest::prelude::*;
use vrun_image::state::*;
use vrun_image::{PAGE, Writer};

/// A job of one process that has something of everything.
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
        advice: vec![],
    };
    let program = |offset| {
        let (path, device, inode) = (b"/usr/bin/count".to_vec(), 0xfe01, 4711);
        AreaKind::File(FileMapping {
            path,
            offset,
            device,
            inode,
        })
    };
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
    };
    let mut called = thread(1235, b"worker\x1b[2J");
    called.registers.orig_rax = 202;
    called.registers.rax = (-512_i64).cast_unsigned();
    called.pending = vec![siginfo(34)];
    let no_timer = IntervalTimer::default();
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
        processes: vec![Process {
            pid: 1234,
            parent: 1,
            group: 1234,
            session: 1000,
            executable: b"/usr/bin/count".to_vec(),
            memory: Memory {
                areas: vec![
                    area(0x40_0000, 0x40_2000, 5, program(0)),
                    area(0x40_2000, 0x40_3000, 3, program(0x2000)),
                    area(0x60_0000, 0x60_4000, 3, AreaKind::Heap),
                    Area {
                        shared: true,
                        advice: vec![10, 14],
                        ..area(0x7f00_0000_0000, 0x7f00_0000_2000, 3, AreaKind::Anonymous)
                    },
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
            },
            descriptors: Descriptors {
                slots: vec![
                    slot(0, false, 0),
                    slot(1, false, 0),
                    slot(3, true, 1),
                    slot(4, false, 2),
                    slot(7, true, 3),
                ],
                files: vec![
                    OpenFile {
                        flags: 0o2,
                        kind: FileKind::Inherited {
                            standard: 0,
                            terminal: true,
                        },
                    },
                    OpenFile {
                        flags: 0o102001,
                        kind: file(b"/home/u/log", true),
                    },
                    OpenFile {
                        flags: 0o100000,
                        kind: FileKind::Device {
                            path: b"/dev/null".to_vec(),
                            device: 0x103,
                            offset: 0,
                        },
                    },
                    OpenFile {
                        flags: 0o300000,
                        kind: FileKind::Directory {
                            path: b"/home/u".to_vec(),
                            offset: 0x7123_4567,
                        },
                    },
                ],
            },
            working_directory: b"/home/u".to_vec(),
            umask: 0o22,
            credentials: Credentials {
                uid: [1000; 4],
                gid: [1000; 4],
                groups: vec![27, 1000],
            },
            limits: vec![
                Limit {
                    soft: 8 << 20,
                    hard: u64::MAX
                };
                16
            ],
            personality: 0,
            nice: 5,
            dumpable: 1,
            subreaper: false,
            threads: vec![thread(1234, b"count"), called],
        }],
    }
}

/// The image of [`small`], the same in every run of every version that writes format 1.
pub(crate) fn small_image() -> Vec<u8> {
    let mut writer = Writer::new(Vec::new()).unwrap();
    writer.job(&small()).unwrap();
    writer.pages(0, 0x60_0000, &[0xaa; PAGE as usize]).unwrap();
    writer.pages(0, 0x7ffe_0000_0000, &[0x55; PAGE as usize]).unwrap();
    writer.file(0, 1, 0, b"hel").unwrap();
    writer.file(0, 1, 3, b"lo").unwrap();
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

fn path() -> impl Strategy<Value = Vec<u8>> {
    vec(1..=u8::MAX, 0..40).prop_map(|tail| [b"/", &tail[..]].concat())
}

fn area_kind() -> impl Strategy<Value = AreaKind> {
    prop_oneof![
        Just(AreaKind::Anonymous),
        Just(AreaKind::Heap),
        Just(AreaKind::Stack),
        (path(), 0..1_u64 << 40, any::<u64>(), any::<u64>()).prop_map(|(path, page, device, inode)| {
            AreaKind::File(FileMapping {
                path,
                offset: page * PAGE,
                device,
                inode,
            })
        }),
    ]
}

fn areas() -> impl Strategy<Value = Vec<Area>> {
    let advice = proptest::sample::subsequence(vec![1, 2, 10, 12, 14, 15, 16, 18], 0..=8);
    let area = (0..16_u64, 1..16_u64, 0..8_u32, area_kind(), any::<[bool; 4]>(), advice);
    vec(area, 0..20).prop_map(|list| {
        let mut end = 0x1_0000;
        let place = |(gap, pages, protection, kind, flags, advice)| {
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
                advice,
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
        any::<u64>().prop_map(|device| FileKind::Device {
            path: b"/dev/urandom".to_vec(),
            device,
            offset: 0
        }),
        (0..3_u32, any::<bool>()).prop_map(|(standard, terminal)| FileKind::Inherited { standard, terminal }),
    ];
    (0..4_u32, kind).prop_map(|(flags, kind)| OpenFile { flags, kind })
}

fn descriptors() -> impl Strategy<Value = Descriptors> {
    let slots = btree_set(0..i32::MAX, 0..12);
    (vec(open_file(), 1..6), slots, any::<u32>()).prop_map(|(files, numbers, seed)| {
        let slot = |number: i32| {
            let mixed = number.cast_unsigned() ^ seed;
            Slot {
                number,
                close_on_exec: mixed & 1 == 0,
                file: mixed % files.len() as u32,
            }
        };
        Descriptors {
            slots: numbers.into_iter().map(slot).collect(),
            files,
        }
    })
}

fn thread(tid: i32) -> impl Strategy<Value = Thread> {
    let name = vec(1..=u8::MAX, 0..=15);
    let xstate = (576..1000_usize).prop_flat_map(|length| vec(any::<u8>(), length));
    let pending = vec((1..=64_u8).prop_map(siginfo), 0..3);
    (name, xstate, pending, any::<[u64; 10]>(), option::of(0..1_u64 << 40)).prop_map(
        move |(name, xstate, pending, number, rseq)| Thread {
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
        },
    )
}

fn process(pid: i32) -> impl Strategy<Value = Process> {
    let threads = (0..3).prop_flat_map(move |more| (pid..=pid + more).map(thread).collect::<Vec<_>>());
    let pending = vec((1..=64_u8).prop_map(siginfo), 0..3);
    let numbers = (any::<[u32; 4]>(), any::<[bool; 2]>());
    (areas(), descriptors(), threads, pending, [path(), path()], numbers).prop_map(
        move |(areas, descriptors, threads, pending, [executable, working_directory], (number, flag))| {
            let mut process = small().processes.remove(0);
            process.pid = pid;
            process.memory.areas = areas;
            process.memory.vdso = process.memory.vdso.filter(|_| flag[0]);
            process.descriptors = descriptors;
            process.threads = threads;
            process.signals.pending = pending;
            process.executable = executable;
            process.working_directory = working_directory;
            process.umask = number[0] & 0o777;
            process.credentials.uid = number.map(|id| id >> 1);
            process.personality = number[1].into();
            process.nice = (number[2] % 40) as i32 - 20;
            process.subreaper = flag[1];
            process
        },
    )
}

/// Any valid job, of one to three processes. What [`Job::validate`] leaves free is arbitrary.
pub(crate) fn any_job() -> impl Strategy<Value = Job> {
    let processes = (1..=3).prop_flat_map(|count| (1..=count).map(|at| process(100 * at)).collect::<Vec<_>>());
    let words = (vec(vec(1..=u8::MAX, 0..20), 1..4), btree_set("[a-z0-9_]{1,12}", 0..8));
    let texts = ("[A-Za-z0-9_-]{1,64}", option::of("[^/\\p{Cc}]{1,16}"), "[a-z]{0,64}");
    (processes, words, texts, any::<[u64; 3]>()).prop_map(
        |(processes, (command, flags), (id, name, nodename), clock)| {
            let mut job = small();
            job.processes = processes;
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
