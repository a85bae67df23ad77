//! Real processes, captured and opened again.
#![allow(unsafe_code)] // fork: only so can a process have exactly the descriptors that a test wants

use std::fs::{self, Permissions};
use std::io::{Read, Seek};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, Timespec};

use super::*;
use crate::proc::FdInfo;
use std::ffi::OsStr;

/// A process with the given descriptors and no others, that waits to be killed.
struct Child(i32);

impl Drop for Child {
    fn drop(&mut self) {
        // SAFETY: plain numbers, of a child that was not waited for yet.
        unsafe {
            libc::kill(self.0, libc::SIGKILL);
            libc::waitpid(self.0, std::ptr::null_mut(), 0);
        }
    }
}

impl Child {
    fn new(slots: &[(&dyn AsRawFd, i32)]) -> Child {
        Child::with(slots, || {})
    }

    /// `prelude` runs in the child: async-signal-safe calls only.
    fn with(slots: &[(&dyn AsRawFd, i32)], prelude: impl Fn()) -> Child {
        // Above all numbers that tests use, so that no placement overwrites a source.
        let raise = |fd: RawFd| {
            // SAFETY: plain numbers; the result is checked, new and ours.
            unsafe { std::os::fd::FromRawFd::from_raw_fd(libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 200)) }
        };
        let sources: Vec<OwnedFd> = slots.iter().map(|slot| raise(slot.0.as_raw_fd())).collect();
        let (mut ready, writer) = io::pipe().unwrap();
        let done: OwnedFd = raise(writer.as_raw_fd());
        drop(writer);
        // SAFETY: the child makes system calls only; on failure it ends, which the captures then find.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            // SAFETY: as above.
            unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                libc::syscall(libc::SYS_close_range, 0, 199, 0);
                for (source, (_, number)) in sources.iter().zip(slots) {
                    libc::dup3(
                        source.as_raw_fd(),
                        *number,
                        if *number % 2 == 1 { libc::O_CLOEXEC } else { 0 },
                    );
                }
                prelude();
                libc::syscall(libc::SYS_close_range, 200, u32::MAX, 0);
                loop {
                    libc::pause();
                }
            }
        }
        assert!(pid > 0);
        let child = Child(pid);
        drop(done);
        // Ends when the child, too, has closed the other side: it is ready.
        let mut wait = [PollFd::new(&ready, PollFlags::IN)];
        let limit = Timespec { tv_sec: 30, tv_nsec: 0 };
        assert_eq!(
            rustix::event::poll(&mut wait, Some(&limit)).unwrap(),
            1,
            "the child is not ready"
        );
        assert_eq!(ready.read(&mut [0]).unwrap(), 0);
        child
    }

    fn capture(&self, with_files: bool) -> Captured {
        capture(&[self.0], with_files).unwrap()
    }
}

fn streams() -> [OwnedFd; 3] {
    [(); 3].map(|()| File::open("/dev/null").unwrap().into())
}

/// (ours, number in the first process, close-on-exec) of each slot.
fn placements(opened: &Opened) -> Vec<(RawFd, i32, bool)> {
    let place = |slot: &Slot| {
        (
            opened.ours[slot.file as usize].as_raw_fd(),
            slot.number,
            slot.close_on_exec,
        )
    };
    opened.slots[0].iter().map(place).collect()
}

fn info(fd: RawFd) -> FdInfo {
    FdInfo::parse(&fs::read(format!("/proc/self/fdinfo/{fd}")).unwrap()).unwrap()
}

fn check(here: &Path, captured: &Captured, with_files: bool) -> Result<Plan> {
    check_in(here, &job_of(&captured.files, &captured.slots, b"/"), with_files)
}

fn open(path: &Path, flags: i32) -> OwnedFd {
    rustix::fs::open(path, OFlags::from_bits_retain(flags as u32), Mode::empty()).unwrap()
}

/// The content of every stored file, through a real image section.
fn stored(captured: &Captured) -> Vec<(u32, u64, Vec<u8>)> {
    let job = job_of(&captured.files, &captured.slots, b"/");
    let mut writer = Writer::new(Vec::new()).unwrap();
    writer.job(&job).unwrap();
    let bytes = captured.store(&mut writer).unwrap();
    let (image, totals) = writer.finish().unwrap();
    assert_eq!(totals.file_bytes, bytes);
    let mut reader = vrun_image::Reader::new(&image[..]).unwrap();
    let mut runs = Vec::new();
    loop {
        match reader.next().unwrap() {
            vrun_image::Record::File {
                file, offset, bytes, ..
            } => runs.push((file, offset, bytes.to_vec())),
            vrun_image::Record::End(_) => return runs,
            _ => {}
        }
    }
}

/// A job of processes with these slots.
fn job_of(files: &[OpenFile], slots: &[Vec<Slot>], cwd: &[u8]) -> Job {
    use vrun_image::state::*;
    let registers = Registers {
        cs: 0x33,
        ss: 0x2b,
        eflags: 0x202,
        ..Registers::default()
    };
    let thread = |tid| Thread {
        tid,
        name: b"sample".to_vec(),
        registers,
        xstate: vec![0; 576],
        blocked: 0,
        pending: Vec::new(),
        alternate_stack: AlternateStack::default(),
        robust_list: RobustList::default(),
        clear_child_tid: 0,
        rseq: None,
        timer_slack: 0,
        parent_death_signal: 0,
        scheduling: Scheduling::default(),
        controls: ThreadControls::default(),
        used: ThreadUsage::default(),
    };
    let process = |(pid, slots): (i32, &Vec<Slot>)| Process {
        pid,
        parent: pid - 1,
        group: 1,
        session: 1,
        exit_signal: 0,
        stopped: 0,
        stop_seen: false,
        executable: b"/bin/sample".to_vec(),
        memory: Memory {
            areas: Vec::new(),
            layout: Layout::default(),
            auxv: Vec::new(),
            vdso: None,
            keys: 0,
            lock_future: 0,
        },
        signals: Signals {
            actions: Vec::new(),
            pending: Vec::new(),
            interval_timers: [IntervalTimer::default(); 3],
            read_at_origin: 0,
            timers: Vec::new(),
        },
        descriptors: slots.clone(),
        working_directory: cwd.to_vec(),
        umask: 0o22,
        credentials: Credentials {
            uid: [0; 4],
            gid: [0; 4],
            groups: Vec::new(),
            capabilities: [0; 5],
            secure_bits: 0,
        },
        limits: Vec::new(),
        personality: 0,
        dumpable: 1,
        subreaper: false,
        oom_score: 0,
        no_huge_pages: false,
        controls: ProcessControls::default(),
        used: Usage::default(),
        threads: vec![thread(pid)],
    };
    Job {
        id: "j1".to_owned(),
        name: None,
        command: vec![b"sample".to_vec()],
        host: Host {
            nodename: "here".to_owned(),
            kernel: String::new(),
            machine: String::new(),
        },
        clocks: Clocks {
            realtime: 0,
            monotonic: 0,
            boottime: 0,
        },
        cpu: CpuFeatures::default(),
        files: files.to_vec(),
        shared: Vec::new(),
        ipc: vrun_image::state::Ipc::default(),
        processes: (1..).zip(slots).map(process).collect(),
        terminal: None,
        zombies: Vec::new(),
    }
}

#[test]
fn files_that_are_there_are_opened_as_they_were() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("log");
    fs::write(&path, "0123456789").unwrap();
    let append = open(&path, libc::O_WRONLY | libc::O_APPEND | libc::O_NONBLOCK);
    let mut reader = File::open(&path).unwrap();
    reader.seek(io::SeekFrom::Start(4)).unwrap();
    let directory = open(home.path(), libc::O_RDONLY | libc::O_DIRECTORY);
    let label = open(&path, libc::O_PATH);
    let null = open(Path::new("/dev/null"), libc::O_RDWR);
    let child = Child::new(&[
        (&null, 0),
        (&append, 1),
        (&append, 2),
        (&reader, 7),
        (&directory, 8),
        (&label, 9),
        (&reader, 40),
    ]);
    let descriptors = child.capture(false);
    let slots: Vec<_> = (descriptors.slots[0].iter())
        .map(|slot| (slot.number, slot.file, slot.close_on_exec))
        .collect();
    let expected = [
        (0, 0, false),
        (1, 1, true),
        (2, 1, false),
        (7, 2, true),
        (8, 3, false),
        (9, 4, true),
    ];
    assert_eq!(slots[..6], expected);
    assert_eq!(slots[6], (40, 2, false));
    let FileKind::Regular(file) = &descriptors.files[2].kind else {
        panic!("{descriptors:?}")
    };
    assert_eq!((&file.path[..], file.offset), (path.as_os_str().as_bytes(), 4));
    assert_eq!(
        (file.size, file.mode, file.stored),
        (10, fs::metadata(&path).unwrap().mode(), false)
    );

    let opened = check(home.path(), &descriptors, false)
        .unwrap()
        .finish(streams())
        .unwrap();
    assert_eq!(opened.notes, []);
    let placements = placements(&opened);
    for ((ours, number, close_on_exec), (_, _, expected)) in placements.iter().zip(slots) {
        let there = fs::read(format!("/proc/{}/fdinfo/{number}", child.0)).unwrap();
        let (there, here) = (FdInfo::parse(&there).unwrap(), info(*ours));
        assert_eq!(
            (here.position, here.flags, *close_on_exec),
            (there.position, there.flags, expected)
        );
    }
    assert_eq!((placements[1].0, placements[3].0), (placements[2].0, placements[6].0));

    // A log may grow, but not shrink; what is written at an offset may do neither.
    fs::write(&path, "0123456789 and more").unwrap();
    let plan = check(home.path(), &descriptors, false).unwrap();
    assert_eq!(plan.notes.iter().map(|note| note.how).collect::<Vec<_>>(), [How::Grown]);
    fs::write(&path, "01234567").unwrap();
    let error = check(home.path(), &descriptors, false).unwrap_err().to_string();
    assert!(
        error.contains("log has changed") && error.contains("8 bytes and had 10"),
        "{error}"
    );
    let mut writer = descriptors;
    writer.files[1].flags = libc::O_WRONLY as u32;
    fs::write(&path, "0123456789 and more").unwrap();
    assert!(matches!(
        check(home.path(), &writer, false),
        Err(DescriptorError::Changed(_))
    ));
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    let error = check(home.path(), &writer, false).unwrap_err().to_string();
    assert!(error.contains("is not a regular file"), "{error}");
}

#[test]
fn missing_files_come_from_the_image() {
    let home = tempfile::tempdir().unwrap();
    let away = tempfile::tempdir().unwrap();
    let (one, two) = (home.path().join("one"), home.path().join("sub/two"));
    fs::create_dir(home.path().join("sub")).unwrap();
    fs::write(&one, "first").unwrap();
    // Its second half is a hole.
    fs::write(&two, vec![7; 3 << 20]).unwrap();
    File::options()
        .write(true)
        .open(&two)
        .unwrap()
        .set_len(6 << 20)
        .unwrap();
    fs::set_permissions(&one, Permissions::from_mode(0o400)).unwrap();
    let mut gone = tempfile::tempfile_in(home.path()).unwrap();
    gone.write_all(b"nameless").unwrap();
    let mut reader = File::open(&one).unwrap();
    reader.seek(io::SeekFrom::Start(2)).unwrap();
    let slots: [(&dyn AsRawFd, i32); 4] = [
        (&reader, 3),
        (&File::open(&one).unwrap(), 4),
        (&File::options().read(true).write(true).open(&two).unwrap(), 5),
        (&gone, 6),
    ];
    let child = Child::new(&slots);
    let error = capture(&[child.0], false).unwrap_err().to_string();
    assert!(error.contains("descriptor 6 is the deleted file"), "{error}");
    let (bare, full) = (Child::new(&slots[..3]).capture(false), child.capture(true));
    let runs = stored(&full);
    let modified = fs::metadata(&one).unwrap().modified().unwrap();
    assert!(runs.iter().map(|run| run.2.len()).sum::<usize>() < 4 << 20);

    drop(reader);
    fs::remove_file(&one).unwrap();
    fs::remove_dir_all(home.path().join("sub")).unwrap();
    for (descriptors, word) in [(&bare, "does not hold"), (&full, "use --with-files")] {
        let error = check(away.path(), descriptors, false).unwrap_err().to_string();
        assert!(
            error.contains("one, ") && error.contains("two;") && error.contains(word),
            "{error}"
        );
    }
    assert!(matches!(
        check(away.path(), &bare, true),
        Err(DescriptorError::Missing(_))
    ));
    let elsewhere = away.path().join(format!("j1.files{}", two.display()));
    // Without keep, nothing stays behind: of a plan, and of what came of it.
    drop(check(away.path(), &full, true).unwrap());
    drop(check(away.path(), &full, true).unwrap().finish(streams()).unwrap());
    for directory in [&away, &home] {
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    let mut plan = check(away.path(), &full, true).unwrap();
    for (file, offset, bytes) in &runs {
        plan.write(*file, *offset, bytes).unwrap();
    }
    plan.write(99, 0, b"nowhere").unwrap();
    let mut opened = plan.finish(streams()).unwrap();
    opened.keep();
    let notes: Vec<_> = opened
        .notes
        .iter()
        .map(|note| (note.actual.as_path(), note.how))
        .collect();
    let expected = [
        (one.as_path(), How::Created),
        (elsewhere.as_path(), How::CreatedElsewhere),
        (Path::new(""), How::Unnamed),
    ];
    assert_eq!(notes, expected);
    assert!(
        opened.notes[1]
            .to_string()
            .contains("sub/two was created from the image as ")
    );
    let placements = placements(&opened);
    let content = |index: usize| fs::read(format!("/proc/self/fd/{}", placements[index].0)).unwrap();
    assert_eq!((content(0), content(1)), (b"first".to_vec(), b"first".to_vec()));
    assert_eq!((info(placements[0].0).position, info(placements[1].0).position), (2, 0));
    assert_eq!((content(3), info(placements[3].0).position), (b"nameless".to_vec(), 8));
    drop(opened);
    assert_eq!(fs::metadata(&one).unwrap().mode() & 0o7777, 0o400);
    assert_eq!(fs::metadata(&one).unwrap().modified().unwrap(), modified);
    let two = fs::read(&elsewhere).unwrap();
    assert!(two.len() == 6 << 20 && two[..3 << 20].iter().all(|byte| *byte == 7));
    assert!(two[3 << 20..].iter().all(|byte| *byte == 0));
    let error = check(away.path(), &full, true).unwrap_err().to_string();
    assert!(error.contains("from an earlier restore"), "{error}");
    assert!(one.exists(), "an existing file is not ours to remove");
}

#[test]
fn an_image_cannot_lead_out_of_its_directory() {
    let away = tempfile::tempdir().unwrap();
    let here = away.path().join("here");
    fs::create_dir(&here).unwrap();
    let file = RegularFile {
        path: b"/nowhere/../../../out".to_vec(),
        offset: 0,
        size: 1,
        mode: 0o104_777,
        modified: 0,
        stored: true,
    };
    let descriptors = Captured {
        files: vec![OpenFile {
            flags: 0,
            owner: None,
            locks: Vec::new(),
            kind: FileKind::Regular(file),
        }],
        slots: vec![Vec::new()],
        ..Captured::default()
    };
    let mut opened = check(&here, &descriptors, true).unwrap().finish(streams()).unwrap();
    opened.keep();
    let path = here.join("j1.files/nowhere/out");
    assert_eq!(fs::metadata(path).unwrap().mode() & 0o7777, 0o777);
}

#[test]
fn a_file_that_shrinks_while_it_is_saved_is_an_error() {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), "0123456789").unwrap();
    let child = Child::new(&[(file.as_file(), 3)]);
    let captured = child.capture(true);
    let job = job_of(&captured.files, &captured.slots, b"/");
    file.as_file().set_len(9).unwrap();
    let mut writer = Writer::new(Vec::new()).unwrap();
    writer.job(&job).unwrap();
    let result = captured.store(&mut writer);
    assert!(matches!(result, Err(DescriptorError::Changed(_))), "{result:?}");
}

#[test]
fn standard_streams_are_the_restorers() {
    use rustix::pty;
    let master = pty::openpt(pty::OpenptFlags::RDWR | pty::OpenptFlags::NOCTTY).unwrap();
    pty::grantpt(&master).unwrap();
    pty::unlockpt(&master).unwrap();
    let name = pty::ptsname(&master, Vec::new()).unwrap();
    let name = Path::new(OsStr::from_bytes(name.as_bytes()));
    let flags = libc::O_RDWR | libc::O_NOCTTY;
    let (terminal, again) = (open(name, flags), open(name, flags));
    let (input, _writer) = io::pipe().unwrap();
    rustix::fs::fcntl_setfl(&input, OFlags::NONBLOCK).unwrap();
    let slots: [(&dyn AsRawFd, i32); 5] = [
        (&input, 0),
        (&terminal, 1),
        (&terminal, 2),
        (&terminal, 10),
        (&again, 11),
    ];
    let child = Child::with(&slots, || {
        // SAFETY: system calls on numbers and a literal; the new descriptor is 3.
        unsafe {
            libc::setsid();
            libc::ioctl(2, libc::TIOCSCTTY, 0);
            libc::open(c"/dev/tty".as_ptr(), libc::O_RDWR);
            libc::dup2(0, 12);
        }
    });
    let descriptors = child.capture(true);
    let kinds: Vec<_> = (descriptors.slots[0].iter())
        .map(|slot| match descriptors.files[slot.file as usize].kind {
            FileKind::Inherited { standard, terminal } => (slot.number, standard, terminal),
            ref other => panic!("{other:?}"),
        })
        .collect();
    let tty = |number, standard| (number, standard, true);
    let expected = [
        (0, 0, false),
        tty(1, 1),
        tty(2, 2),
        tty(3, 2),
        tty(10, 2),
        tty(11, 2),
        (12, 0, false),
    ];
    assert_eq!((kinds, descriptors.files.len()), (expected.to_vec(), 3));

    let files = [(); 3].map(|()| tempfile::tempfile().unwrap());
    let inodes = files.each_ref().map(|file| file.metadata().unwrap().ino());
    let plan = check(Path::new("/"), &descriptors, false).unwrap();
    let opened = plan.finish(files.map(OwnedFd::from)).unwrap();
    for ((ours, number, _), expected) in placements(&opened).into_iter().zip([0, 1, 2, 2, 2, 2, 0]) {
        let here = info(ours);
        assert_eq!(here.inode, Some(inodes[expected]), "descriptor {number}");
        assert_eq!(here.flags & libc::O_NONBLOCK as u32 != 0, expected == 0);
    }
    let error = capture(&[Child::new(&[(&terminal, 5)]).0], false)
        .unwrap_err()
        .to_string();
    assert!(error.contains("descriptor 5 is the device /dev/pts/"), "{error}");
}

#[test]
fn what_no_file_can_hold_is_refused_by_name() {
    let home = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let connection = TcpStream::connect(address).unwrap();
    let fd = |name: &str| File::open(name).unwrap();
    let odd = File::create(home.path().join("odd (deleted)")).unwrap();
    let moved = home.path().join("moved");
    let replaced = File::create(&moved).unwrap();
    fs::hard_link(&moved, home.path().join("link")).unwrap();
    fs::remove_file(&moved).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let removed = fd(directory.path().to_str().unwrap());
    drop(directory);
    let connected = format!("a TCP connection to {address}");
    // SAFETY: plain numbers; the result is a new descriptor that is ours.
    let [raw, process] = unsafe {
        use std::os::fd::FromRawFd;
        [
            libc::socket(libc::AF_NETLINK, libc::SOCK_RAW, 0),
            libc::syscall(libc::SYS_pidfd_open, libc::getpid(), 0) as i32,
        ]
        .map(|fd| OwnedFd::from_raw_fd(fd))
    };
    let (stream, _other) = UnixStream::pair().unwrap();
    let (reader, writer) = io::pipe().unwrap();
    let master = rustix::pty::openpt(rustix::pty::OpenptFlags::RDWR).unwrap();
    let cases: [(&dyn AsRawFd, &str); 13] = [
        (&connection, &connected),
        (&listener, "a connection waits to be accepted"),
        (&raw, "a netlink connection"),
        (&stream, "whose other end is outside of the job"),
        (&reader, "a pipe that a process outside of the job writes"),
        (&writer, "a pipe that a process outside of the job reads"),
        (&process, "which is not of the job (pidfd)"),
        (&master, "the master of a pseudo-terminal"),
        (&fd("/proc/self/status"), "status, a file of the kernel's"),
        (&fd("/proc/self/ns/mnt"), "the kernel object mnt:["),
        (&odd, "whose name looks like that of a deleted file"),
        (&replaced, "leads to something else"),
        (&removed, "the deleted directory"),
    ];
    for (file, words) in cases {
        for with_files in [false, true] {
            match capture(&[Child::new(&[(file, 4)]).0], with_files) {
                Err(DescriptorError::Unsupported(sentence)) => {
                    assert!(
                        sentence.starts_with("descriptor 4 ") && sentence.contains(words),
                        "{sentence}"
                    );
                }
                other => panic!("{words}: {other:?}"),
            }
        }
    }
}

#[test]
fn the_working_directory_may_be_replaced() {
    let here = tempfile::tempdir().unwrap();
    let cwd = here.path().join("gone");
    let check = |with_files| {
        let job = job_of(&[], &[Vec::new()], cwd.as_os_str().as_bytes());
        check_in(here.path(), &job, with_files)
    };
    let error = check(false).unwrap_err().to_string();
    assert!(
        error.contains("the working directory") && error.contains("gone is not found"),
        "{error}"
    );
    let opened = check(true).unwrap().finish(streams()).unwrap();
    assert_eq!(
        opened.working_directories[0].as_bytes(),
        here.path().as_os_str().as_bytes()
    );
    assert_eq!(opened.notes[0].how, How::WorkingDirectory);
}

/// What a job of one process has, made again: our descriptor of each of its numbers, and what belongs to it.
fn again(child: &Child) -> (Opened, HashMap<i32, RawFd>) {
    let captured = child.capture(true);
    let mut plan = check(Path::new("/"), &captured, true).unwrap();
    for (file, offset, bytes) in stored(&captured) {
        plan.write(file, offset, &bytes).unwrap();
    }
    let mut opened = plan.finish(streams()).unwrap();
    opened.arm().unwrap();
    let ours = placements(&opened)
        .into_iter()
        .map(|(ours, number, _)| (number, ours))
        .collect();
    (opened, ours)
}

fn read(fd: RawFd, most: usize) -> Vec<u8> {
    let mut bytes = vec![0; most];
    // SAFETY: a live buffer and its length.
    let length = unsafe { libc::read(fd, bytes.as_mut_ptr().cast(), most) };
    bytes.truncate(usize::try_from(length).unwrap_or(0));
    bytes
}

#[test]
fn pipes_keep_bytes_and_packets() {
    let (reader, mut writer) = io::pipe().unwrap();
    writer.write_all(&[b'x'; 5000]).unwrap();
    rustix::pipe::fcntl_setpipe_size(&reader, 16384).unwrap();
    let flags = rustix::pipe::PipeFlags::DIRECT | rustix::pipe::PipeFlags::NONBLOCK;
    let (packets, sender) = rustix::pipe::pipe_with(flags).unwrap();
    for packet in [&b"one"[..], b"three"] {
        rustix::io::write(&sender, packet).unwrap();
    }
    let (rest, ended) = io::pipe().unwrap();
    (&ended).write_all(b"rest").unwrap();
    drop(ended);
    let child = Child::new(&[
        (&reader, 3),
        (&writer, 4),
        (&packets, 5),
        (&sender, 6),
        (&rest, 7),
        (&writer, 9),
    ]);
    let (opened, at) = again(&child);
    // SAFETY: plain numbers.
    assert_eq!(unsafe { libc::fcntl(at[&3], libc::F_GETPIPE_SZ) }, 16384);
    assert_eq!(at[&4], at[&9]);
    assert_eq!(
        (read(at[&5], 100), read(at[&5], 100)),
        (b"one".to_vec(), b"three".to_vec())
    );
    assert_eq!((read(at[&7], 100), read(at[&7], 100)), (b"rest".to_vec(), Vec::new()));
    assert_eq!(read(at[&3], 9000).len(), 5000);
    for (number, ours) in &at {
        let there = fs::read(format!("/proc/{}/fdinfo/{number}", child.0)).unwrap();
        assert_eq!(
            FdInfo::parse(&there).unwrap().flags,
            info(*ours).flags,
            "descriptor {number}"
        );
    }
    drop(opened);
    // What was looked at is still there.
    let mut all = [0; 9000];
    let length = {
        let mut reader = &reader;
        reader.read(&mut all).unwrap()
    };
    assert_eq!(length, 5000);
}

#[test]
fn sockets_keep_messages_and_what_is_passed() {
    let (one, two) = UnixStream::pair().unwrap();
    (&one).write_all(b"before").unwrap();
    let passed = tempfile::NamedTempFile::new().unwrap();
    kernel::send(one.as_fd(), b"with", &[passed.as_raw_fd()], &[]).unwrap();
    (&one).write_all(b"after").unwrap();
    one.shutdown(std::net::Shutdown::Write).unwrap();
    let (left, right) = std::os::unix::net::UnixDatagram::pair().unwrap();
    for message in [&b"a"[..], b"", b"ccc"] {
        left.send(message).unwrap();
    }
    let child = Child::new(&[(&one, 3), (&two, 4), (&left, 6), (&right, 8)]);
    let (opened, at) = again(&child);
    // SAFETY: open in `opened`.
    let [stream, datagrams] = [at[&4], at[&8]].map(|fd| unsafe { BorrowedFd::borrow_raw(fd) });
    let mut bytes = [0; 64];
    for (socket, ours) in [(two.as_fd(), stream), (right.as_fd(), datagrams)] {
        for peeked in [socket, ours] {
            let offset = kernel::int_option(peeked, libc::SO_PEEK_OFF).unwrap();
            let credentials = kernel::int_option(peeked, libc::SO_PASSCRED).unwrap();
            assert_eq!((offset, credentials), (-1, 0));
        }
    }
    let message = kernel::peek(stream, &mut bytes).unwrap().unwrap();
    assert_eq!(
        (&bytes[..message.length], message.descriptors.len()),
        (&b"beforewith"[..], 1)
    );
    let there = rustix::fs::fstat(&message.descriptors[0]).unwrap().st_ino;
    assert_eq!(there, passed.as_file().metadata().unwrap().ino());
    assert_eq!(read(at[&4], 6), b"before");
    assert_eq!(
        (read(at[&4], 100), read(at[&4], 100)),
        (b"with".to_vec(), b"after".to_vec())
    );
    for expected in [&b"a"[..], b"", b"ccc"] {
        let message = kernel::peek(datagrams, &mut bytes).unwrap().unwrap();
        assert_eq!(&bytes[..message.length], expected);
        assert_eq!(read(at[&8], 64), expected);
    }
    drop(opened);
}

#[test]
fn listeners_and_named_connections_are_made_through_their_name() {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener};
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("socket");
    for address in [
        SocketAddr::from_pathname(&path).unwrap(),
        SocketAddr::from_abstract_name(format!("vrun-test-{}", std::process::id())).unwrap(),
    ] {
        let listener = UnixListener::bind_addr(&address).unwrap();
        let mut client = UnixStream::connect_addr(&address).unwrap();
        let (server, _) = listener.accept().unwrap();
        let waiting = UnixStream::connect_addr(&address).unwrap();
        client.write_all(b"hello").unwrap();
        let slots: [(&dyn AsRawFd, i32); 4] = [(&listener, 3), (&client, 4), (&server, 5), (&waiting, 6)];
        let child = Child::new(&slots);
        let captured = child.capture(true);
        let runs = stored(&captured);
        drop((listener, client, server, waiting, child));
        let mut plan = check(home.path(), &captured, true).unwrap();
        for (file, offset, bytes) in &runs {
            plan.write(*file, *offset, bytes).unwrap();
        }
        let mut opened = plan.finish(streams()).unwrap();
        opened.arm().unwrap();
        let at: HashMap<i32, RawFd> = placements(&opened)
            .into_iter()
            .map(|(ours, number, _)| (number, ours))
            .collect();
        // SAFETY: open in `opened`.
        let [listener, client, server] = [3, 4, 5].map(|number| unsafe { BorrowedFd::borrow_raw(at[&number]) });
        assert_eq!(kernel::name_of(server).unwrap(), kernel::name_of(listener).unwrap());
        assert_eq!(kernel::peer_of(client).unwrap(), kernel::name_of(listener).unwrap());
        assert_eq!(read(at[&5], 100), b"hello");
        let accepted = rustix::net::accept(listener).unwrap();
        rustix::io::write(&accepted, b"late").unwrap();
        assert_eq!(read(at[&6], 100), b"late");
        assert_eq!(kernel::readiness(listener) & libc::POLLIN, 0, "only one had waited");
    }
}

#[test]
fn events_epoll_and_memory_files_are_as_they_were() {
    // SAFETY: plain numbers and a literal; each result is a new descriptor that is ours.
    let [event, epoll, memory, timer] = unsafe {
        use std::os::fd::FromRawFd;
        [
            libc::eventfd(7, libc::EFD_SEMAPHORE),
            libc::epoll_create1(0),
            libc::memfd_create(c"scratch".as_ptr(), libc::MFD_ALLOW_SEALING),
            libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_NONBLOCK),
        ]
        .map(|fd| OwnedFd::from_raw_fd(fd))
    };
    kernel::epoll_add(epoll.as_raw_fd(), event.as_raw_fd(), libc::EPOLLIN as u32, 99).unwrap();
    rustix::io::write(&memory, b"contents").unwrap();
    memory_files::seal(&memory, libc::F_SEAL_SHRINK as u32).unwrap();
    let saved = vrun_image::state::TimerFile {
        clock: libc::CLOCK_MONOTONIC,
        ticks: 0,
        set_flags: 0,
        remaining: 500_000_000_000,
        interval: 3_000_000_000,
    };
    events::arm(&timer, &saved, 0).unwrap();
    let lock = tempfile::NamedTempFile::new().unwrap();
    let again_open = File::open(lock.path()).unwrap();
    lock.as_file().lock_shared().unwrap();
    let number = event.as_raw_fd();
    let slots: [(&dyn AsRawFd, i32); 6] = [
        (&event, 150),
        (&epoll, 4),
        (&memory, 5),
        (&timer, 6),
        (lock.as_file(), 7),
        (&again_open, 8),
    ];
    let child = Child::new(&slots);
    let (opened, at) = again(&child);
    assert_eq!(
        info(at[&150]).details,
        FdDetails::Eventfd {
            count: 7,
            semaphore: true
        }
    );
    let FdDetails::Epoll(watches) = info(at[&4]).details else {
        panic!("no watches")
    };
    assert_eq!((watches.len(), watches[0].number, watches[0].data), (1, number, 99));
    assert_eq!(fs::read(format!("/proc/self/fd/{}", at[&5])).unwrap(), b"contents");
    assert_eq!(info(at[&5]).position, 8);
    // SAFETY: open in `opened`.
    let memory = unsafe { BorrowedFd::borrow_raw(at[&5]) };
    assert_eq!(
        rustix::fs::fcntl_get_seals(memory).unwrap(),
        rustix::fs::SealFlags::SHRINK
    );
    let FdDetails::Timerfd(timer) = info(at[&6]).details else {
        panic!("no timer")
    };
    assert!(
        timer.value > 400_000_000_000 && timer.interval == 3_000_000_000,
        "{timer:?}"
    );
    assert_eq!((info(at[&7]).locks.len(), info(at[&8]).locks.len()), (1, 0));
    drop(opened);
}
