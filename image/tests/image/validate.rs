//! One broken rule at a time.

use proptest::prelude::*;
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
fn descriptors_refused(why: &str, break_it: impl FnOnce(&mut Descriptors)) {
    process_refused(why, |process| break_it(&mut process.descriptors));
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
    bare.processes[0].memory.areas.clear();
    bare.processes[0].memory.vdso = None;
    bare.processes[0].descriptors = Descriptors::default();
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
        second.pid = 1235;
        second.threads.remove(0);
        job.processes.push(second);
    });
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
    process_refused("nice", |process| process.nice = 20);
    process_refused("dumpable", |process| process.dumpable = 3);
    process_refused("0 threads", |process| process.threads.clear());
    process_refused("not the leader", |process| process.threads.swap(0, 1));
}

#[test]
fn memory() {
    memory_refused("user pages", |memory| memory.areas[2].end = memory.areas[2].start);
    memory_refused("user pages", |memory| memory.areas[2].end += 1);
    memory_refused("user pages", |memory| memory.areas[2].start += 0x800);
    memory_refused("user pages", |memory| memory.areas[4].end = 1 << 47);
    memory_refused("overlaps", |memory| memory.areas[1].start -= 0x1000);
    memory_refused("out of order", |memory| memory.areas.swap(0, 2));
    memory_refused("protection", |memory| memory.areas[0].protection = 8);
    memory_refused("advice", |memory| memory.areas[0].advice = vec![9]);
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
    process_refused("127 bytes", |process| process.signals.pending[0].truncate(127));
    process_refused("0 bytes", |process| process.signals.pending[0].clear());
    process_refused("signal 65 is pending", |process| {
        process.signals.pending[0] = siginfo(65)
    });
    thread_refused("thread 1235: signal 0", |thread| thread.pending[0] = siginfo(0));
}

#[test]
fn descriptors() {
    descriptors_refused("negative", |descriptors| descriptors.slots[0].number = -1);
    descriptors_refused("not ascending", |descriptors| descriptors.slots[1].number = 0);
    descriptors_refused("not there", |descriptors| descriptors.slots[0].file = 4);
    for flag in [0o100, 0o200, 0o400, 0o1000, 0o2000000] {
        descriptors_refused("which no open file has", |descriptors| {
            descriptors.files[1].flags |= flag
        });
    }
    descriptors_refused("standard stream 3", |descriptors| {
        descriptors.files[0].kind = FileKind::Inherited {
            standard: 3,
            terminal: false,
        };
    });
    descriptors_refused("a device other", |descriptors| {
        descriptors.files[2].kind = FileKind::Device {
            path: b"/dev/sda".to_vec(),
            device: 0x800,
            offset: 0,
        };
    });
    descriptors_refused("open file 3: the path", |descriptors| {
        descriptors.files[3].kind = FileKind::Directory {
            path: b"..".to_vec(),
            offset: 0,
        };
    });
    descriptors_refused("is at offset", |descriptors| {
        descriptors.files[3].kind = FileKind::Directory {
            path: b"/".to_vec(),
            offset: 1 << 63,
        };
    });
    let regular = |break_it: fn(&mut RegularFile)| {
        move |descriptors: &mut Descriptors| match &mut descriptors.files[1].kind {
            FileKind::Regular(file) => break_it(file),
            _ => unreachable!(),
        }
    };
    descriptors_refused("bytes", regular(|file| file.size = 1 << 63));
    descriptors_refused("is at offset", regular(|file| file.offset = 1 << 63));
    descriptors_refused("mode", regular(|file| file.mode = 0o200000));
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
