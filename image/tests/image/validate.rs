//! One broken rule at a time.

use proptest::prelude::*;
use vrun_image::PAGE;
use vrun_image::state::*;

use crate::jobs::{any_job, siginfo, small};

proptest! {
    #[test]
    fn arbitrary_jobs_are_valid(job in any_job()) {
        job.validate().unwrap();
    }
}

/// Breaks a small job and expects a sentence with `why` in it.
#[track_caller]
fn refused(why: &str, break_it: impl FnOnce(&mut Job)) {
    let mut job = small();
    break_it(&mut job);
    let error = job.validate().expect_err(why).to_string();
    assert!(error.contains(why), "{error:?} does not say {why:?}");
}

#[track_caller]
fn process_refused(why: &str, break_it: impl FnOnce(&mut Process)) {
    refused(why, |job| break_it(&mut job.processes[0]));
}

#[track_caller]
fn memory_refused(why: &str, break_it: impl FnOnce(&mut Memory)) {
    process_refused(why, |process| break_it(&mut process.memory));
}

#[track_caller]
fn vdso_refused(why: &str, break_it: impl FnOnce(&mut Vdso)) {
    memory_refused(why, |memory| break_it(memory.vdso.as_mut().unwrap()));
}

#[track_caller]
fn area_refused(why: &str, number: usize, break_it: impl FnOnce(&mut Area)) {
    memory_refused(why, |memory| break_it(&mut memory.areas[number]));
}

#[track_caller]
fn scheduling_refused(why: &str, break_it: impl FnOnce(&mut Scheduling)) {
    thread_refused(why, |thread| break_it(&mut thread.scheduling));
}

#[track_caller]
fn thread_refused(why: &str, break_it: impl FnOnce(&mut Thread)) {
    process_refused(why, |process| break_it(&mut process.threads[1]));
}

#[track_caller]
fn registers_refused(why: &str, break_it: impl FnOnce(&mut Registers)) {
    thread_refused(why, |thread| break_it(&mut thread.registers));
}

#[test]
fn the_small_job_is_valid() {
    small().validate().unwrap();
    let mut bare = small();
    bare.name = None;
    bare.processes.truncate(1);
    bare.zombies.clear();
    bare.processes[0].memory.areas.clear();
    bare.processes[0].memory.vdso = None;
    bare.processes[0].descriptors.clear();
    bare.files.clear();
    bare.shared.clear();
    bare.ipc = Ipc::default();
    bare.validate().unwrap();
}

#[test]
fn jobs() {
    refused("the id", |job| job.id.clear());
    refused("the id", |job| job.id = "../x".into());
    refused("the id", |job| job.id = "x".repeat(65));
    refused("name has 65 bytes", |job| job.name = Some("x".repeat(65)));
    refused("name contains a control", |job| job.name = Some("\x1b".into()));
    refused("a slash", |job| job.name = Some("a/b".into()));
    refused("command line is empty", |job| job.command.clear());
    refused("zero byte", |job| job.command[0].push(0));
    refused("node name", |job| job.host.nodename = "x".repeat(65));
    refused("292 years", |job| job.clocks.monotonic = 1 << 63);
    refused("not sorted", |job| job.cpu.flags = vec!["sse".into(), "sse".into()]);
    refused("0 processes", |job| job.processes.clear());
    refused("PID is there twice", |job| {
        job.processes = vec![job.processes[0].clone(); 2]
    });
    refused("TID that is there twice", |job| {
        let mut second = job.processes[0].clone();
        (second.pid, second.group) = (1235, 1235);
        second.session = 0;
        second.threads.remove(0);
        job.processes.push(second);
    });
}

#[test]
fn trees() {
    refused("process 1240: its parent 1 is not", |job| job.processes[1].parent = 1);
    refused("process 1240: its parent 1240 is not", |job| {
        job.processes[1].parent = 1240
    });
    refused("process 1240: its parent 1234 is not", |job| job.processes.swap(0, 1));
    refused("not a PID", |job| job.processes[1].parent = -1);
    refused("in the sessions 1234 and 0", |job| {
        (job.processes[1].group, job.processes[1].session) = (1234, 0);
    });
    refused("is the job's and its process group is not", |job| {
        job.processes[1].group = 0
    });
    refused("leads its session", |job| {
        (job.processes[1].session, job.processes[1].group) = (1240, 1241);
    });
    process_refused("exit signal is 65", |process| process.exit_signal = 65);
    process_refused("exit signal is -1", |process| process.exit_signal = -1);
    process_refused("stopped by signal 15", |process| process.stopped = 15);

    refused("process group 7's, in which there is no process", |job| {
        job.terminal.as_mut().unwrap().foreground = 7
    });

    let zombie_refused = |why, break_it: fn(&mut Zombie)| refused(why, |job| break_it(&mut job.zombies[0]));
    zombie_refused("zombie 0: the PID", |zombie| zombie.pid = 0);
    for pid in [1234, 1235] {
        refused("PID is there twice", |job| job.zombies[0].pid = pid);
    }
    refused("PID is there twice", |job| job.zombies = vec![job.zombies[0]; 2]);
    zombie_refused("parent 0 is not", |zombie| zombie.parent = 0);
    zombie_refused("parent 1235 is not", |zombie| zombie.parent = 1235);
    zombie_refused("session is not a PID", |zombie| zombie.session = 1 << 23);
    zombie_refused("in the sessions", |zombie| zombie.session = 1240);
    zombie_refused("exit signal", |zombie| zombie.exit_signal = 65);
    // Stopped, continued, signal 65, an exit with a core, both, beyond.
    for status in [0x137f, 0xffff, 65, 0x80, 0x309, 0x10000, -1] {
        refused("is not one of a process that has ended", |job| {
            job.zombies[0].status = status
        });
    }
    for status in [0, 0xff00, 9, 0x8b] {
        let mut job = small();
        job.zombies[0].status = status;
        job.validate().unwrap();
    }
}

#[test]
fn shared_memory() {
    let shared_refused = |why, number: usize, break_it: fn(&mut SharedMemory)| {
        refused(why, |job| break_it(&mut job.shared[number]));
    };
    shared_refused("not pages of 4096", 0, |shared| shared.size += 1);
    shared_refused("not pages of 2097152", 0, |shared| {
        shared.kind = SharedKind::Anonymous { huge_page: 2 << 20 };
    });
    shared_refused("no pages of 8192", 0, |shared| {
        shared.kind = SharedKind::Anonymous { huge_page: 8192 };
    });
    shared_refused("open file 5, which is not there", 1, |shared| {
        shared.kind = SharedKind::Open { file: 5 };
    });
    shared_refused("has 9223372036854775808 bytes", 1, |shared| shared.size = 1 << 63);
    shared_refused("no pages of 4096000", 4, |shared| {
        shared.kind = SharedKind::Unnamed {
            name: vec![],
            huge_page: 4_096_000,
        };
    });
    shared_refused("which are not pages", 5, |shared| shared.size += 1);
    refused("to be kept in step with files", |job| {
        job.shared[5].size = MIRRORED_MAX + PAGE
    });
    shared_refused("identifier -1", 3, |shared| {
        shared.kind = SharedKind::SystemV { id: -1 }
    });
    refused("does not begin with a slash", |job| {
        let SharedKind::File { path, .. } = &mut job.shared[2].kind else {
            unreachable!()
        };
        path.clear();
    });

    let shows = |object, offset| move |area: &mut Area| area.kind = AreaKind::Shared { object, offset };
    area_refused("the shared memory 6, which is not there", 5, shows(6, 0));
    area_refused("the shared memory 4294967295", 5, shows(u32::MAX, 0));
    area_refused("is not page-aligned", 5, shows(0, 0x800));
    area_refused("goes beyond the 8192 bytes", 5, shows(0, 0x1000));
    area_refused("goes beyond the 8192 bytes", 5, shows(0, !0xfff));
    area_refused("goes beyond the 8192 bytes", 5, shows(3, 0x1000));
    area_refused("goes beyond", 5, shows(1, i64::MAX as u64 & !0xfff));
    refused("has pages of 2097152 bytes and its shared memory of 0", |job| {
        job.shared[0].size = 4 << 20;
        job.processes[0].memory.areas[4].kind = AreaKind::Shared { object: 0, offset: 0 };
    });
    // A file may be shorter than what is mapped of it.
    let mut job = small();
    job.shared[1].size = 1;
    job.validate().unwrap();
}

#[test]
fn ipc() {
    let ipc_refused = |why, break_it: fn(&mut Ipc)| refused(why, |job| break_it(&mut job.ipc));
    ipc_refused("the segment -1 is negative", |ipc| ipc.segments[0].object.id = -1);
    ipc_refused("or out of order", |ipc| ipc.segments.push(ipc.segments[0]));
    ipc_refused("leads to two objects: semaphore set", |ipc| {
        let mut second = ipc.semaphores[0].clone();
        second.object.id = 1;
        ipc.semaphores.push(second);
        ipc.semaphores.iter_mut().for_each(|set| set.object.key = 9);
    });
    ipc_refused("has mode 0o1640", |ipc| ipc.messages[0].object.mode = 0o1640);
    ipc_refused("the segment 32769 has 0 bytes", |ipc| ipc.segments[0].size = 0);
    ipc_refused("the segment 32769 have [8192] bytes", |ipc| {
        ipc.segments[0].size = 0x2001
    });
    ipc_refused("the segment 7 have []", |ipc| ipc.segments[0].object.id = 7);
    ipc_refused("0 semaphores", |ipc| ipc.semaphores[0].semaphores.clear());
    ipc_refused("a value or process", |ipc| {
        ipc.semaphores[0].semaphores[0].value = 32768
    });
    ipc_refused("process 7 adjusts", |ipc| ipc.semaphores[0].adjustments[0].process = 7);
    ipc_refused("the semaphore 2 by", |ipc| ipc.semaphores[0].adjustments[0].number = 2);
    ipc_refused("by 0", |ipc| ipc.semaphores[0].adjustments[0].value = 0);
    ipc_refused("twice", |ipc| {
        let again = ipc.semaphores[0].adjustments[0];
        ipc.semaphores[0].adjustments.push(again);
    });
    ipc_refused("a type that none can have", |ipc| ipc.messages[0].messages[0].kind = 0);
    ipc_refused("last sender", |ipc| ipc.messages[0].last = -1);
    ipc_refused("room for", |ipc| ipc.messages[0].room = u64::MAX);
    for name in ["", ".", "..", "a/b", "a\0"] {
        refused("this is no name", |job| job.ipc.queues[0].name = name.into());
    }
    ipc_refused("\"count\" is there twice", |ipc| ipc.queues.push(ipc.queues[0].clone()));
    ipc_refused("holds 0 messages", |ipc| ipc.queues[0].most = 0);
    ipc_refused("has a message that does not fit", |ipc| ipc.queues[0].size = 3);
    ipc_refused("has a message that does not fit", |ipc| ipc.queues[0].most = 1);
    ipc_refused("has a message that does not fit", |ipc| {
        ipc.queues[0].messages[0].kind = 1 << 15
    });
    ipc_refused("not in the order", |ipc| ipc.queues[0].messages.reverse());
    ipc_refused("notifies process 5", |ipc| {
        ipc.queues[0].notify.as_mut().unwrap().process = 5
    });
    ipc_refused("with signal 65", |ipc| {
        ipc.queues[0].notify.as_mut().unwrap().signal = 65
    });
    ipc_refused("message queue 0, which is not there", |ipc| ipc.queues.clear());
}

#[test]
fn processes() {
    process_refused("process 0: the PID", |process| process.pid = 0);
    process_refused("not a PID", |process| process.group = -1);
    process_refused("executable does not begin", |process| {
        process.executable = b"count".to_vec()
    });
    process_refused("working directory contains a zero", |process| {
        process.working_directory.push(0)
    });
    process_refused("working directory has 4097", |process| {
        process.working_directory.resize(4097, b'x')
    });
    process_refused("umask", |process| process.umask = 0o1000);
    process_refused("is -1", |process| process.credentials.uid[3] = u32::MAX);
    process_refused("is -1", |process| process.credentials.groups[0] = u32::MAX);
    process_refused("65537 groups", |process| process.credentials.groups.resize(65537, 0));
    process_refused("17 limits", |process| {
        process.limits.resize(17, Limit { soft: 0, hard: 0 })
    });
    process_refused("soft limit", |process| process.limits[0] = Limit { soft: 1, hard: 0 });
    process_refused("personality", |process| process.personality = 1 << 32);
    process_refused("OOM score is adjusted by 1001", |process| process.oom_score = 1001);
    process_refused("OOM score is adjusted by -1001", |process| process.oom_score = -1001);
    process_refused("more than 36 years", |process| process.used.children_system = 1 << 61);
    process_refused("W^X", |process| process.controls.deny_write_execute = 4);
    process_refused("memory barriers", |process| process.controls.barriers = 2);
    process_refused("capability above 40", |process| {
        process.credentials.capabilities[3] = 1 << 41
    });
    process_refused("not all permitted", |process| process.credentials.capabilities[2] = 1);
    process_refused("not all permitted and inheritable", |process| {
        process.credentials.capabilities[4] = 1 << 23;
    });
    process_refused("secure bits", |process| process.credentials.secure_bits = 0x1000);
    process_refused("dumpable", |process| process.dumpable = 3);
    process_refused("0 threads", |process| process.threads.clear());
    process_refused("not the leader", |process| process.threads.swap(0, 1));
}

#[test]
fn memory() {
    memory_refused("user pages", |memory| memory.areas[2].end = memory.areas[2].start);
    memory_refused("user pages", |memory| memory.areas[2].end += 1);
    memory_refused("user pages", |memory| memory.areas[2].start += 0x800);
    memory_refused("user pages", |memory| memory.areas[9].end = 1 << 47);
    memory_refused("overlaps", |memory| memory.areas[1].start -= 0x1000);
    memory_refused("out of order", |memory| memory.areas.swap(0, 2));
    memory_refused("protection", |memory| memory.areas[0].protection = 8);
    memory_refused("advice", |memory| memory.areas[0].advice = vec![9]);
    area_refused("locked on fault", 3, |area| area.locked = false);
    area_refused("user pages", 3, |area| area.guards[0].1 += 1);
    area_refused("user pages", 3, |area| area.guards[0] = (0x62_1000, 0x62_1000));
    area_refused("is outside, or", 3, |area| area.guards[0] = (0x61_f000, 0x62_1000));
    area_refused("is outside, or", 3, |area| area.guards[0] = (0x62_3000, 0x62_5000));
    area_refused("or out of order", 3, |area| area.guards.push((0x62_1000, 0x62_3000)));
    area_refused("pages of 4096 bytes, which there are not", 4, |area| {
        area.huge_page = 4096
    });
    area_refused("whole pages of 2097152", 4, |area| area.end -= 0x1000);
    area_refused("whole pages of 1073741824", 4, |area| area.huge_page = 1 << 30);
    area_refused("protection key 16", 3, |area| area.key = 16);
    for name in ["x".repeat(80), "[heap]".into(), "\n".into(), "ä".into(), "$".into()] {
        area_refused("a name that the kernel does not take", 3, |area| area.name = Some(name));
    }
    area_refused("a name of its own", 0, |area| area.name = Some(String::new()));
    memory_refused("file does not begin", |memory| {
        let AreaKind::File(file) = &mut memory.areas[0].kind else {
            unreachable!()
        };
        file.path.clear();
    });
    for (why, offset) in [
        ("not page-aligned", 1),
        ("beyond what a file", !0xfff),
        ("beyond what a file", i64::MAX as u64 & !0xfff),
    ] {
        memory_refused(why, |memory| {
            let AreaKind::File(file) = &mut memory.areas[0].kind else {
                unreachable!()
            };
            file.offset = offset;
        });
    }
    memory_refused("locked in the way 0x4", |memory| memory.lock_future = 4);
    memory_refused("brk", |memory| memory.layout.brk = 0);
    memory_refused("arguments", |memory| memory.layout.arg_end = 0);
    memory_refused("environment", |memory| memory.layout.env_end = u64::MAX);
    memory_refused("stack", |memory| memory.layout.start_stack = u64::MAX);
    memory_refused("auxiliary vector has 17", |memory| memory.auxv.truncate(17));
    memory_refused("auxiliary vector has 4112", |memory| memory.auxv.resize(4112, 0));
}

#[test]
fn vdsos() {
    vdso_refused("the most is 64 KiB", |vdso| vdso.code.resize(0x11000, 0));
    vdso_refused("user pages", |vdso| vdso.code.clear());
    vdso_refused("user pages", |vdso| vdso.code.truncate(100));
    vdso_refused("user pages", |vdso| vdso.start = 0xffff_8000_0000_0000);
    vdso_refused("vdso: begins at", |vdso| vdso.start = u64::MAX);
    vdso_refused("overlaps an area", |vdso| vdso.start = 0x60_3000);
    vdso_refused("overlaps an area", |vdso| vdso.data[0] = (0x5f_f000, 0x60_1000));
    vdso_refused("overlaps an area", |vdso| vdso.data[0] = (0x30_0000, 0x7ffe_1000_0000));
    vdso_refused("code and data overlap", |vdso| vdso.data[0].1 += 0x1000);
    vdso_refused("user pages", |vdso| vdso.data[0] = (0x1000, 0));
}

#[test]
fn signals() {
    for signal in [0, 9, 19, 65, -1] {
        process_refused("has a disposition", |process| {
            process.signals.actions[0].signal = signal
        });
    }
    process_refused("two dispositions", |process| process.signals.actions[0].signal = 13);
    process_refused("an interval timer", |process| {
        process.signals.interval_timers[1].value = 1 << 54
    });
    process_refused("SIGKILL or SIGSTOP", |process| process.signals.read_at_origin = 1 << 18);
    process_refused("127 bytes", |process| process.signals.pending[0].truncate(127));
    process_refused("0 bytes", |process| process.signals.pending[0].clear());
    process_refused("signal 65 is pending", |process| {
        process.signals.pending[0] = siginfo(65)
    });
    thread_refused("thread 1235: signal 0", |thread| thread.pending[0] = siginfo(0));
}

#[test]
fn timers() {
    let timer_refused = |why, break_it: fn(&mut PosixTimer)| {
        process_refused(why, |process| break_it(&mut process.signals.timers[0]));
    };
    timer_refused("timer -1: the id", |timer| timer.id = -1);
    timer_refused("not ascending", |timer| timer.id = 2);
    // CLOCK_MONOTONIC_RAW, one that is gone, a descriptor's.
    timer_refused("clock 4 has", |timer| timer.clock = 4);
    timer_refused("clock 10 has", |timer| timer.clock = 10);
    timer_refused("clock -5 has", |timer| timer.clock = -5);
    timer_refused("signal 0", |timer| timer.notify = TimerNotify::Process { signal: 0 });
    timer_refused("signal 65", |timer| {
        timer.notify = TimerNotify::Thread { signal: 65, tid: 1 }
    });
    timer_refused("thread 0", |timer| {
        timer.notify = TimerNotify::Thread { signal: 1, tid: 0 }
    });
    timer_refused("292 years", |timer| timer.interval = 1 << 63);
    timer_refused("292 years", |timer| timer.remaining = u64::MAX);
    timer_refused("292 years", |timer| timer.expires = u64::MAX);
    timer_refused("overrun", |timer| timer.overrun = -1);
}

#[test]
fn scheduling() {
    scheduling_refused("policy is 4", |scheduling| scheduling.policy = 4);
    scheduling_refused("policy is 8", |scheduling| scheduling.policy = 8);
    scheduling_refused("flags are 0x80", |scheduling| scheduling.flags = 0x80);
    scheduling_refused("nice value is 20", |scheduling| scheduling.nice = 20);
    scheduling_refused("nice value is -21", |scheduling| scheduling.nice = -21);
    scheduling_refused("priority is 0 under policy 1", |scheduling| scheduling.priority = 0);
    scheduling_refused("priority is 100", |scheduling| scheduling.priority = 100);
    scheduling_refused("priority is 10 under policy 0", |scheduling| scheduling.policy = 0);
    scheduling_refused("not one of policy 1", |scheduling| scheduling.deadline = [1, 2, 3]);
    for deadline in [[0, 2, 3], [3, 2, 3], [1, 4, 3], [1, 2, 1 << 63], [1, u64::MAX, 0]] {
        scheduling_refused("not one of policy 6", |scheduling| {
            (scheduling.policy, scheduling.priority, scheduling.deadline) = (6, 0, deadline);
        });
    }
    scheduling_refused("1025 bytes", |scheduling| scheduling.affinity = vec![1; 1025]);
    scheduling_refused("without a CPU", |scheduling| scheduling.affinity = vec![0; 8]);
    scheduling_refused("I/O priority", |scheduling| scheduling.io_priority = 0x8000);
    scheduling_refused("I/O priority", |scheduling| scheduling.io_priority = -1);
}

#[test]
fn descriptors() {
    process_refused("negative", |process| process.descriptors[0].number = -1);
    process_refused("not ascending", |process| process.descriptors[1].number = 0);
    process_refused("not there", |process| process.descriptors[0].file = 5);
    for flag in [0o100, 0o200, 0o400, 0o1000, 0o2000000] {
        refused("which no open file has", |job| job.files[1].flags |= flag);
    }
    refused("standard stream 3", |job| {
        job.files[0].kind = FileKind::Inherited {
            standard: 3,
            terminal: false,
        };
    });
    refused("a device other", |job| {
        job.files[2].kind = FileKind::Device {
            path: b"/dev/sda".to_vec(),
            device: 0x800,
            offset: 0,
        };
    });
    refused("open file 3: the path", |job| {
        job.files[3].kind = FileKind::Directory {
            path: b"..".to_vec(),
            offset: 0,
        };
    });
    refused("open file 3: the path", |job| {
        job.files[3].kind = FileKind::Link { path: Vec::new() };
    });
    refused("is at offset", |job| {
        job.files[3].kind = FileKind::Directory {
            path: b"/".to_vec(),
            offset: 1 << 63,
        };
    });
    let regular = |break_it: fn(&mut RegularFile)| {
        move |job: &mut Job| match &mut job.files[1].kind {
            FileKind::Regular(file) => break_it(file),
            _ => unreachable!(),
        }
    };
    refused("bytes", regular(|file| file.size = 1 << 63));
    refused("is at offset", regular(|file| file.offset = 1 << 63));
    refused("mode", regular(|file| file.mode = 0o200000));
}

#[test]
fn threads() {
    thread_refused("the TID", |thread| thread.tid = 0);
    thread_refused("the name", |thread| thread.name = vec![b'x'; 16]);
    thread_refused("575 bytes", |thread| thread.xstate.truncate(575));
    thread_refused("65537 bytes", |thread| thread.xstate.resize(65537, 0));
    thread_refused("alternate stack has the flags", |thread| {
        thread.alternate_stack.flags = 4
    });
    thread_refused("wraps around", |thread| {
        thread.alternate_stack = AlternateStack {
            address: u64::MAX,
            flags: 0,
            size: 1,
        };
    });
    thread_refused("robust list", |thread| thread.robust_list.length = 8);
    thread_refused("rseq", |thread| thread.rseq.as_mut().unwrap().address = u64::MAX);
    thread_refused("speculation", |thread| thread.controls.speculation[2] = 0x20);
    thread_refused("memory failure", |thread| thread.controls.memory_failure = 4);
    thread_refused("more than 36 years", |thread| thread.used.system = u64::MAX);
    thread_refused("parent-death", |thread| thread.parent_death_signal = 65);
}

#[test]
fn registers() {
    registers_refused("rip", |registers| registers.rip = 1 << 47);
    registers_refused("rsp", |registers| registers.rsp = u64::MAX);
    registers_refused("fs_base", |registers| registers.fs_base = 0xffff_8000_0000_0000);
    registers_refused("gs_base", |registers| registers.gs_base = 0x7fff_ffff_f000);
    registers_refused("cs is 0x10", |registers| registers.cs = 0x10);
    registers_refused("cs is 0x23", |registers| registers.cs = 0x23);
    registers_refused("ss 0x18", |registers| registers.ss = 0x18);
    registers_refused("ds", |registers| registers.ds = 0x10);
    registers_refused("gs is", |registers| registers.gs = 0x1_0003);
    // Reserved, IOPL, VM, VIF, VIP, beyond.
    for bit in [3, 5, 12, 13, 15, 17, 19, 20, 22, 32, 63] {
        registers_refused("eflags", |registers| registers.eflags |= 1 << bit);
    }
    let mut job = small();
    job.processes[0].threads[0].registers.eflags = 0x25_4fd7;
    job.validate().unwrap();
}
