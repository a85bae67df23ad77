//! Forwarded calls done for real: this process is guest and deputy at once; each call goes from the guest's side
//! through a plan into scratch memory and back, and must have the results and the effects of the direct call.

#![allow(unsafe_code)] // raw system calls are what is tested

use std::cell::RefCell;
use std::ffi::CString;
use std::fs;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use libc::*;
use vrun_remote_io::call::{Argument, Call, CallError, Keep, Pointer, Reply, Segment};
use vrun_remote_io::executor::{self, Plan};
use vrun_remote_io::marshal::{self, Gone, Memory, Outcome, Pending, Step};

/// This process's memory, in which bad addresses fail as they do in another's.
struct Own;

impl Own {
    fn each_page(
        address: u64,
        bytes: usize,
        mut one: impl FnMut(*const iovec, usize, usize) -> isize,
    ) -> Result<usize, Gone> {
        let mut done = 0;
        while done < bytes {
            let at = address.wrapping_add(done as u64);
            let length = (0x1000 - (at as usize & 0xfff)).min(bytes - done);
            let remote = iovec {
                iov_base: at as *mut c_void,
                iov_len: length,
            };
            if one(&remote, done, length) != length as isize {
                break;
            }
            done += length;
        }
        Ok(done)
    }
}

impl Memory for Own {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Gone> {
        let base = buffer.as_mut_ptr();
        Own::each_page(address, buffer.len(), |remote, offset, length| {
            // SAFETY: the local part lies in `buffer`; the kernel checks the remote one.
            unsafe {
                let local = iovec {
                    iov_base: base.add(offset).cast(),
                    iov_len: length,
                };
                process_vm_readv(getpid(), &local, 1, remote, 1, 0)
            }
        })
    }

    fn write(&self, address: u64, bytes: &[u8]) -> Result<usize, Gone> {
        let base = bytes.as_ptr();
        Own::each_page(address, bytes.len(), |remote, offset, length| {
            // SAFETY: the local part lies in `bytes` and is only read; the kernel checks the remote one.
            unsafe {
                let local = iovec {
                    iov_base: base.add(offset).cast_mut().cast(),
                    iov_len: length,
                };
                process_vm_writev(getpid(), &local, 1, remote, 1, 0)
            }
        })
    }
}

fn raw(number: i64, args: [u64; 6]) -> i64 {
    let [a, b, c, d, e, f] = args;
    // SAFETY: every test passes pointers to memory of its own or to none, as the call wants.
    match unsafe { syscall(number, a, b, c, d, e, f) } {
        -1 => -i64::from(std::io::Error::last_os_error().raw_os_error().unwrap()),
        result => result,
    }
}

/// What a deputy does with a call.
fn execute(call: &Call) -> Reply {
    thread_local!(static SCRATCH: RefCell<Vec<u128>> = RefCell::new(vec![0xaaaa_aaaa; Plan::SCRATCH / 16]));
    SCRATCH.with_borrow_mut(|scratch| {
        // SAFETY: the same memory as bytes.
        let bytes = unsafe { std::slice::from_raw_parts_mut(scratch.as_mut_ptr().cast::<u8>(), Plan::SCRATCH) };
        let plan = executor::plan(call, bytes.as_ptr() as u64, bytes.len()).unwrap_or_else(|e| panic!("{e}: {call:?}"));
        bytes[..plan.image.len()].copy_from_slice(&plan.image);
        let result = raw(plan.number.into(), plan.arguments);
        let read = |offset: usize, buffer: &mut [u8]| {
            buffer.copy_from_slice(&bytes[offset..offset + buffer.len()]);
            Ok::<(), ()>(())
        };
        plan.reply(result, read).unwrap()
    })
}

fn pid() -> i32 {
    std::process::id() as i32
}

fn begin(number: i64, args: &[u64]) -> Step {
    let mut six = [0; 6];
    six[..args.len()].copy_from_slice(args);
    // What a program leaves in unused registers must not matter.
    six[args.len()..].fill(0xdead_beef_0000);
    marshal::begin(pid(), number as u32, six, &Own).unwrap()
}

fn pending(number: i64, args: &[u64]) -> Pending {
    match begin(number, args) {
        Step::Forward(pending) => pending,
        other => panic!("{number}: {other:?}"),
    }
}

/// The call as a guest away from home makes it: its result and the number of rounds.
fn rounds(number: i64, args: &[u64]) -> (i64, usize) {
    let mut pending = match begin(number, args) {
        Step::Forward(pending) => pending,
        Step::Answer(result) => return (result, 0),
        other => panic!("{number}: {other:?}"),
    };
    for round in 1.. {
        let reply = execute(pending.call());
        match pending.finish(reply, &Own).unwrap() {
            Outcome::Done(result) => return (result, round),
            Outcome::Again(next) => pending = next,
            Outcome::Local => panic!("unexpected"),
        }
    }
    unreachable!()
}

fn away(number: i64, args: &[u64]) -> i64 {
    rounds(number, args).0
}

fn here(number: i64, args: &[u64]) -> i64 {
    let mut six = [0; 6];
    six[..args.len()].copy_from_slice(args);
    raw(number, six)
}

/// Both must give the same result, for calls that may be made twice.
fn same(number: i64, args: &[u64]) -> i64 {
    let (direct, forwarded) = (here(number, args), away(number, args));
    assert_eq!(forwarded, direct, "system call {number} with {args:x?}");
    forwarded
}

fn text(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

fn at<T: ?Sized>(value: &T) -> u64 {
    std::ptr::from_ref(value).cast::<u8>() as u64
}

fn at_mut<T: ?Sized>(value: &mut T) -> u64 {
    std::ptr::from_mut(value).cast::<u8>() as u64
}

/// The result as a descriptor that is closed at the end.
fn owned(result: i64) -> OwnedFd {
    assert!(result >= 0, "{}", std::io::Error::from_raw_os_error(-result as i32));
    // SAFETY: the call that gave it made it.
    unsafe { OwnedFd::from_raw_fd(result as i32) }
}

fn fd(descriptor: &impl AsRawFd) -> u64 {
    descriptor.as_raw_fd() as u64
}

fn pair(kind: i32) -> (OwnedFd, OwnedFd) {
    let mut ends = [0i32; 2];
    assert_eq!(
        away(SYS_socketpair, &[AF_UNIX as u64, kind as u64, 0, at_mut(&mut ends)]),
        0
    );
    for end in ends {
        for direction in [SO_RCVTIMEO, SO_SNDTIMEO] {
            // A deadline: struct timeval.
            let deadline = [10u64, 0];
            let option = [end as u64, SOL_SOCKET as u64, direction as u64, at(&deadline), 16];
            assert_eq!(away(SYS_setsockopt, &option), 0);
        }
    }
    (owned(ends[0].into()), owned(ends[1].into()))
}

fn pipe() -> (OwnedFd, OwnedFd) {
    let mut ends = [0i32; 2];
    assert_eq!(away(SYS_pipe2, &[at_mut(&mut ends), O_CLOEXEC as u64]), 0);
    (owned(ends[0].into()), owned(ends[1].into()))
}

/// Two pages, of which the second is no memory; the first is filled with `fill`.
struct Edge(*mut u8);

impl Edge {
    fn new(fill: u8) -> Edge {
        // SAFETY: new mappings of two pages, of which one is then made inaccessible.
        unsafe {
            let flags = MAP_PRIVATE | MAP_ANONYMOUS;
            let base = mmap(std::ptr::null_mut(), 0x2000, PROT_READ | PROT_WRITE, flags, -1, 0);
            assert_ne!(base, MAP_FAILED);
            base.cast::<u8>().write_bytes(fill, 0x1000);
            assert_eq!(mprotect(base.byte_add(0x1000), 0x1000, PROT_NONE), 0);
            Edge(base.cast())
        }
    }

    /// The address of the last `bytes` that are memory.
    fn last(&self, bytes: u64) -> u64 {
        self.0 as u64 + 0x1000 - bytes
    }

    fn bad(&self) -> u64 {
        self.0 as u64 + 0x1000
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and nothing else keeps the address.
        unsafe { munmap(self.0.cast(), 0x2000) };
    }
}

#[test]
fn files_by_name_and_descriptor() {
    let home = tempfile::tempdir().unwrap();
    let (one, two) = (text(&home.path().join("one")), text(&home.path().join("two")));
    let file = owned(away(
        SYS_openat,
        &[
            AT_FDCWD as u64,
            at(one.as_bytes_with_nul()),
            (O_CREAT | O_RDWR) as u64,
            0o600,
        ],
    ));
    assert_eq!(away(SYS_write, &[fd(&file), at(b"hello, world"), 12]), 12);
    assert_eq!(fs::read(home.path().join("one")).unwrap(), b"hello, world");
    assert_eq!(same(SYS_lseek, &[fd(&file), 7, SEEK_SET as u64]), 7);
    let mut buffer = *b"................";
    assert_eq!(away(SYS_read, &[fd(&file), at_mut(&mut buffer), 16]), 5);
    assert_eq!(&buffer, b"world...........", "nothing behind the result is touched");
    assert_eq!(same(SYS_pread64, &[fd(&file), at_mut(&mut buffer), 4, 1]), 4);
    assert_eq!(&buffer[..5], b"ellod");
    let (mut first, mut second) = ([0u8; 7], [0u8; 9]);
    let vector = [[at_mut(&mut first), 7], [0, 0], [at_mut(&mut second), 9]];
    assert_eq!(away(SYS_preadv, &[fd(&file), at(&vector), 3, 0, 0]), 12);
    assert_eq!((&first, &second), (b"hello, ", b"world\0\0\0\0"));
    assert_eq!(
        away(SYS_preadv2, &[fd(&file), at(&vector), 3, 2, 0, RWF_HIPRI as u64]),
        here(SYS_preadv2, &[fd(&file), at(&vector), 3, 2, 0, RWF_HIPRI as u64])
    );
    assert_eq!(away(SYS_pwritev, &[fd(&file), at(&vector), 1, 12, 0]), 7);

    let (mut direct, mut forwarded) = ([0u8; 144], [0u8; 144]);
    here(SYS_stat, &[at(one.as_bytes_with_nul()), at_mut(&mut direct)]);
    assert_eq!(
        away(SYS_stat, &[at(one.as_bytes_with_nul()), at_mut(&mut forwarded)]),
        0
    );
    assert_eq!(direct, forwarded);
    let (mut direct, mut forwarded) = ([0u8; 256], [0u8; 256]);
    here(
        SYS_statx,
        &[fd(&file), at(b"\0"), AT_EMPTY_PATH as u64, 0x7ff, at_mut(&mut direct)],
    );
    assert_eq!(
        away(
            SYS_statx,
            &[
                fd(&file),
                at(b"\0"),
                AT_EMPTY_PATH as u64,
                0x7ff,
                at_mut(&mut forwarded)
            ]
        ),
        0
    );
    assert_eq!(direct, forwarded);

    assert_eq!(
        away(SYS_rename, &[at(one.as_bytes_with_nul()), at(two.as_bytes_with_nul())]),
        0
    );
    assert_eq!(same(SYS_access, &[at(one.as_bytes_with_nul()), 0]), -i64::from(ENOENT));
    assert_eq!(
        away(SYS_symlink, &[at(two.as_bytes_with_nul()), at(one.as_bytes_with_nul())]),
        0
    );
    let mut target = [b'#'; 4096];
    let length = away(SYS_readlink, &[at(one.as_bytes_with_nul()), at_mut(&mut target), 4096]) as usize;
    assert_eq!(&target[..length], two.as_bytes());
    assert!(target[length..].iter().all(|&byte| byte == b'#'));
    // A name in the last bytes before no memory, and room that reaches beyond.
    let edge = Edge::new(1);
    assert_eq!(
        same(SYS_readlink, &[at(one.as_bytes_with_nul()), edge.last(200), 4096]),
        length as i64
    );
    assert_eq!(
        same(SYS_getcwd, &[edge.last(200), 0x7fff_ffff]),
        here(SYS_getcwd, &[edge.last(200), 4096])
    );

    let directory = owned(here(
        SYS_open,
        &[
            at(text(home.path()).as_bytes_with_nul()),
            (O_RDONLY | O_DIRECTORY) as u64,
        ],
    ));
    let (mut direct, mut forwarded) = ([0u8; 1024], [0u8; 1024]);
    let length = here(SYS_getdents64, &[fd(&directory), at_mut(&mut direct), 1024]);
    same(SYS_lseek, &[fd(&directory), 0, SEEK_SET as u64]);
    assert_eq!(
        away(SYS_getdents64, &[fd(&directory), at_mut(&mut forwarded), 1024]),
        length
    );
    // All but the gaps between entries, which the kernel leaves as they are; d_reclen is at 16.
    let names = |mut bytes: &[u8]| {
        let mut names = Vec::new();
        while !bytes.is_empty() {
            let entry = bytes
                .split_off(..usize::from(u16::from_le_bytes([bytes[16], bytes[17]])))
                .unwrap();
            let name = CString::from(std::ffi::CStr::from_bytes_until_nul(&entry[19..]).unwrap());
            names.push((entry[..19].to_vec(), name));
        }
        names
    };
    assert_eq!(names(&direct[..length as usize]), names(&forwarded[..length as usize]));

    let times = [[1u64, 2], [3, 4]];
    assert_eq!(same(SYS_utimensat, &[fd(&file), 0, at(&times), 0]), 0);
    let name = b"user.test\0";
    if same(SYS_fsetxattr, &[fd(&file), at(name), at(b"value"), 5, 0]) == 0 {
        let mut value = [0u8; 8];
        assert_eq!(same(SYS_fgetxattr, &[fd(&file), at(name), at_mut(&mut value), 8]), 5);
        assert_eq!(&value, b"value\0\0\0");
        assert_eq!(same(SYS_fgetxattr, &[fd(&file), at(name), 0, 0]), 5);
        assert_eq!(
            same(SYS_fgetxattr, &[fd(&file), at(name), at_mut(&mut value), 2]),
            -i64::from(ERANGE)
        );
    }
    assert_eq!(away(SYS_unlink, &[at(one.as_bytes_with_nul())]), 0);
    assert_eq!(
        away(SYS_unlinkat, &[AT_FDCWD as u64, at(two.as_bytes_with_nul()), 0]),
        0
    );
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0);
}

#[test]
fn long_transfers_are_not_short() {
    const LONG: usize = (3 << 20) + 5;
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("long");
    let file = fs::File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .unwrap();
    let source: Vec<u8> = (0..LONG).map(|i| (i * 7 / 3) as u8).collect();
    assert_eq!(
        rounds(SYS_write, &[fd(&file), at(source.as_slice()), LONG as u64]),
        (LONG as i64, 4)
    );
    assert!(fs::read(&path).unwrap() == source);

    let mut sink = vec![0u8; LONG + 100];
    same(SYS_lseek, &[fd(&file), 0, SEEK_SET as u64]);
    // The second round asks what kind of file it is.
    assert_eq!(
        rounds(SYS_read, &[fd(&file), at_mut(sink.as_mut_slice()), LONG as u64 + 100]),
        (LONG as i64, 5)
    );
    assert!(sink[..LONG] == source && sink[LONG..] == [0; 100]);
    assert_eq!(same(SYS_lseek, &[fd(&file), 0, SEEK_CUR as u64]), LONG as i64);

    sink.fill(0);
    let (left, right) = sink.split_at_mut(1_234_567);
    let vector = [[at_mut(left), left.len() as u64], [at_mut(right), right.len() as u64]];
    assert_eq!(
        rounds(SYS_preadv, &[fd(&file), at(&vector), 2, 1000, 0]),
        (LONG as i64 - 1000, 3)
    );
    assert!(sink[..LONG - 1000] == source[1000..]);

    // A device that never waits, and a stream that gives what it has.
    let zero = fs::File::open("/dev/zero").unwrap();
    assert_eq!(
        away(SYS_read, &[fd(&zero), at_mut(sink.as_mut_slice()), LONG as u64]),
        LONG as i64
    );
    let (reader, writer) = pipe();
    let room = away(SYS_fcntl, &[fd(&writer), F_SETPIPE_SZ as u64, 1 << 20]);
    assert_eq!(room, 1 << 20);
    assert_eq!(away(SYS_write, &[fd(&writer), at(source.as_slice()), 1 << 20]), 1 << 20);
    assert_eq!(
        away(SYS_read, &[fd(&reader), at_mut(sink.as_mut_slice()), LONG as u64]),
        1 << 20
    );
    // An error after some progress is the caller's next one.
    assert_eq!(away(SYS_fcntl, &[fd(&writer), F_SETFL as u64, O_NONBLOCK as u64]), 0);
    assert_eq!(
        rounds(SYS_write, &[fd(&writer), at(source.as_slice()), LONG as u64]),
        (1 << 20, 2)
    );
    assert_eq!(
        same(SYS_write, &[fd(&writer), at(source.as_slice()), 4096]),
        -i64::from(EAGAIN)
    );
}

#[test]
fn partly_unreadable_memory_gives_partial_results() {
    let home = tempfile::tempdir().unwrap();
    let file = fs::File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(home.path().join("f"))
        .unwrap();
    let edge = Edge::new(b'x');
    assert_eq!(same(SYS_pwrite64, &[fd(&file), edge.last(100), 200, 0]), 100);
    assert_eq!(same(SYS_pread64, &[fd(&file), edge.last(30), 200, 0]), 30);
    let vector = [[edge.last(50), 50], [edge.bad(), 10]];
    assert_eq!(same(SYS_preadv, &[fd(&file), at(&vector), 2, 0, 0]), 50);
    assert_eq!(same(SYS_pwritev, &[fd(&file), at(&vector), 2, 0, 0]), 50);
}

#[test]
fn errors_of_pointers_are_the_kernels() {
    let home = tempfile::tempdir().unwrap();
    let file = fs::File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(home.path().join("f"))
        .unwrap();
    let edge = Edge::new(b'x');
    let (good, none) = (fd(&file), 9999u64);
    let (mut room, long) = ([0u8; 256], [b'a'; 5000]);
    same(SYS_pwrite64, &[good, at(&long), 5000, 0]);
    for bad in [0, edge.bad(), 0xffff_ffff_ffff_f000] {
        for descriptor in [good, none] {
            same(SYS_read, &[descriptor, bad, 10]);
            same(SYS_read, &[descriptor, bad, 0]);
            same(SYS_write, &[descriptor, bad, 10]);
            same(SYS_pread64, &[descriptor, bad, 10, u64::MAX - 5]);
            same(SYS_readv, &[descriptor, bad, 1]);
            same(SYS_writev, &[descriptor, bad, 1025]);
            same(SYS_readv, &[descriptor, at(&[[bad, 10]]), 1]);
            same(SYS_fstat, &[descriptor, bad]);
            same(SYS_getsockname, &[descriptor, bad, bad]);
            same(SYS_readv, &[descriptor, at(&[[at(&long), u64::MAX]]), 1]);
            same(SYS_sendmsg, &[descriptor, at(&[0, 0, at(&long), 1025, 0, 0, 0]), 0]);
            same(
                SYS_sendmmsg,
                &[descriptor, at(&[at(&long), u64::MAX, 0, 0, 0, 0, 0, 0]), 1, 0],
            );
            same(SYS_recvmsg, &[descriptor, at(&[0, 0, bad, 1, 0, 0, 0]), 0]);
            same(SYS_sendmsg, &[descriptor, bad, 0]);
            same(SYS_recvmsg, &[descriptor, bad, 0]);
            same(SYS_sendmmsg, &[descriptor, bad, 1, 0]);
            same(SYS_ioctl, &[descriptor, FIONREAD, bad]);
            same(SYS_fcntl, &[descriptor, F_GETLK as u64, bad]);
            same(SYS_connect, &[descriptor, bad, 16]);
            same(SYS_connect, &[descriptor, bad, u64::MAX]);
            same(SYS_getdents64, &[descriptor, bad, 100]);
            same(SYS_fsetxattr, &[descriptor, bad, at(&long), 1, 0]);
        }
        same(SYS_openat, &[AT_FDCWD as u64, bad, 0, 0]);
        same(SYS_stat, &[bad, bad]);
        same(SYS_poll, &[bad, 1, 0]);
        same(SYS_select, &[1, bad, 0, 0, at(&[0u64, 0])]);
        same(SYS_pipe2, &[bad, 0]);
    }
    same(SYS_read, &[good, at_mut(&mut room), u64::MAX]);
    same(SYS_read, &[none, at_mut(&mut room), u64::MAX]);
    same(SYS_readv, &[good, at(&[[at_mut(&mut room), u64::MAX]]), 1]);
    same(SYS_readv, &[good, at(&[[at_mut(&mut room), 9]]), 1025]);
    same(SYS_readv, &[good, 0, 0]);
    same(SYS_openat, &[AT_FDCWD as u64, at(&long), 0, 0]);
    same(SYS_fsetxattr, &[good, at(&long), at(&long), 1, 0]);
    same(SYS_fsetxattr, &[good, at(b"user.x\0"), at(&long), 1 << 30, 0]);
    same(SYS_readlink, &[at(b"/proc/self/exe\0"), at_mut(&mut room), 0]);
    same(SYS_readlink, &[at(b"/proc/self/exe\0"), at_mut(&mut room), u64::MAX]);
    same(SYS_poll, &[at_mut(&mut room), 1 << 40 | 0xffff_ffff, 0]);
    same(SYS_select, &[u64::MAX, 0, 0, 0, at(&[0u64, 0])]);
    same(SYS_epoll_wait, &[good, at_mut(&mut room), 0, 0]);
    same(SYS_ppoll, &[0, 0, at(&[0u64, 0]), at(&[0u64]), 4]);
    same(SYS_ppoll, &[0, 0, at(&[0u64, u64::MAX]), 0, 8]);
    // A name that ends with the page is read to its end and not beyond.
    // SAFETY: the last byte of the page that is memory.
    unsafe { (edge.bad() as *mut u8).sub(1).write(0) };
    assert_eq!(same(SYS_access, &[edge.last(10), 0]), -i64::from(ENOENT));
}

#[test]
fn waiting() {
    let (reader, writer) = pipe();
    let mut polled = [pollfd {
        fd: reader.as_raw_fd(),
        events: POLLIN,
        revents: 77,
    }; 2];
    polled[1].fd = writer.as_raw_fd();
    polled[1].events = POLLOUT;
    assert_eq!(away(SYS_poll, &[at_mut(&mut polled), 2, 0]), 1);
    assert_eq!((polled[0].revents, polled[1].revents), (0, POLLOUT));
    assert_eq!(away(SYS_write, &[fd(&writer), at(b"x"), 1]), 1);
    let mask = 0x200u64;
    let waits = pending(SYS_ppoll, &[at_mut(&mut polled), 2, at(&[5u64, 0]), at(&mask), 8]);
    assert_eq!(waits.temporary_mask(), Some(mask));
    let reply = execute(waits.call());
    assert!(matches!(waits.finish(reply, &Own), Ok(Outcome::Done(2))));
    assert_eq!((polled[0].revents, polled[1].revents), (POLLIN, POLLOUT));

    let (mut read, mut write, mut time) = ([0u64; 16], [0u64; 16], [2u64, 0]);
    let set = |bits: &mut [u64; 16], descriptor: &OwnedFd| {
        bits[descriptor.as_raw_fd() as usize / 64] |= 1 << (descriptor.as_raw_fd() % 64)
    };
    set(&mut read, &reader);
    set(&mut write, &writer);
    let (asked_read, asked_write) = (read, write);
    let pair = [at(&mask), 8];
    let waits = [1024, at_mut(&mut read), at_mut(&mut write), 0, at_mut(&mut time)];
    assert_eq!(away(SYS_select, &waits), 2);
    assert_eq!((read, write), (asked_read, asked_write));
    assert_eq!(
        away(
            SYS_pselect6,
            &[waits[0], waits[1], waits[2], waits[3], waits[4], at(&pair)]
        ),
        2
    );
    assert_eq!(
        pending(SYS_pselect6, &[0, 0, 0, 0, 0, at(&pair)]).temporary_mask(),
        Some(mask)
    );
    assert!(time[0] <= 2, "what remains");
    let mut byte = [0u8; 1];
    away(SYS_read, &[fd(&reader), at_mut(&mut byte), 1]);
    // A timeout in memory that cannot be written does not hurt.
    static SOON: [u64; 2] = [0, 1000];
    assert_eq!(same(SYS_select, &[1024, at_mut(&mut read), 0, 0, at(&SOON)]), 0);
    assert_eq!(read, [0; 16]);

    let epoll = owned(away(SYS_epoll_create1, &[EPOLL_CLOEXEC as u64]));
    let mut event = epoll_event {
        events: EPOLLOUT as u32,
        u64: 0x1234_5678_9abc,
    };
    assert_eq!(
        away(
            SYS_epoll_ctl,
            &[fd(&epoll), EPOLL_CTL_ADD as u64, fd(&writer), at_mut(&mut event)]
        ),
        0
    );
    let mut events = [epoll_event { events: 9, u64: 9 }; 4];
    assert_eq!(away(SYS_epoll_wait, &[fd(&epoll), at_mut(&mut events), 4, 1000]), 1);
    assert_eq!(({ events[0].u64 }, { events[1].u64 }), (0x1234_5678_9abc, 9));
    assert_eq!(
        away(
            SYS_epoll_pwait2,
            &[fd(&epoll), at_mut(&mut events), 4, at(&[1u64, 0]), at(&mask), 8]
        ),
        1
    );
    // More room than a call carries is only room.
    assert_eq!(away(SYS_epoll_wait, &[fd(&epoll), at_mut(&mut events), 1 << 20, 0]), 1);

    let counter = owned(away(SYS_eventfd2, &[3, 0]));
    let mut value = 0u64;
    assert_eq!(away(SYS_read, &[fd(&counter), at_mut(&mut value), 8]), 8);
    assert_eq!(value, 3);
    let timer = owned(away(SYS_timerfd_create, &[CLOCK_MONOTONIC as u64, 0]));
    let (setting, mut old) = ([0u64, 0, 100, 0], [9u64; 4]);
    assert_eq!(
        away(SYS_timerfd_settime, &[fd(&timer), 0, at(&setting), at_mut(&mut old)]),
        0
    );
    assert_eq!(old, [0; 4]);
}

#[test]
fn messages_with_descriptors() {
    let (left, right) = pair(SOCK_STREAM);
    let (reader, writer) = pipe();
    // struct cmsghdr { len, level, type } and one descriptor, in 24 bytes.
    let mut control = [0u64; 3];
    control[0] = 20;
    control[1] = SOL_SOCKET as u64 | (SCM_RIGHTS as u64) << 32;
    control[2] = fd(&writer);
    let parts = [[at(b"he"), 2], [at(b"llo"), 3]];
    let header = [0, 0, at(&parts), 2, at(&control), 24, 0];
    assert_eq!(away(SYS_sendmsg, &[fd(&left), at(&header), 0]), 5);

    let (mut head, mut tail, mut got) = ([0u8; 3], [b'#'; 8], [u64::MAX; 8]);
    let parts = [[at_mut(&mut head), 3], [at_mut(&mut tail), 8]];
    let mut header = [0, 0xdead, at(&parts), 2, at_mut(&mut got), 64, 0];
    assert_eq!(
        away(SYS_recvmsg, &[fd(&right), at_mut(&mut header), MSG_CMSG_CLOEXEC as u64]),
        5
    );
    assert_eq!((&head, &tail), (b"hel", b"lo######"));
    assert_eq!(
        (header[1], header[5], header[6] as i32),
        (0xdead, 24, MSG_CMSG_CLOEXEC),
        "as the kernel leaves it"
    );
    assert_eq!((got[0], got[1]), (20, control[1]));
    let copy = owned((got[2] as u32).into());
    assert_eq!(got[2] >> 32, u64::from(u32::MAX), "the gap behind the descriptor stays");
    assert_eq!(away(SYS_write, &[fd(&copy), at(b"!"), 1]), 1);
    let mut byte = [0u8; 1];
    assert_eq!(away(SYS_read, &[fd(&reader), at_mut(&mut byte), 1]), 1);

    // Too little room for the control message.
    let letter = [[at(b"x"), 1]];
    let sent = [0, 0, at(&letter), 1, at(&control), 24, 0];
    for truncated in [here, away] {
        assert_eq!(away(SYS_sendmsg, &[fd(&left), at(&sent), 0]), 1);
        let mut header = [0, 0, at(&parts), 1, at_mut(&mut got), 8, 0];
        assert_eq!(truncated(SYS_recvmsg, &[fd(&right), at_mut(&mut header), 0]), 1);
        assert_eq!((header[5], header[6] as i32), (0, MSG_CTRUNC));
    }
    // Errors that a header has.
    for broken in [
        [at(&parts), 0xffff_ffff, at(&parts), 1, 0, 0, 0],
        [0, 0, at(&parts), 1025, 0, 0, 0],
        [0, 0, at(&[[at(b"x"), u64::MAX]]), 1, 0, 0, 0],
        [0, 0, 0x1000, 1, 0, 0, 0],
        [0, 0, at(&[[0x1000u64, 5]]), 1, 0, 0, 0],
        [0, 0, at(&parts), 1, at(&control), 1 << 40, 0],
        [0, 0, at(&parts), 1, 0x1000, 24, 0],
    ] {
        same(SYS_sendmsg, &[fd(&left), at(&broken), MSG_DONTWAIT as u64]);
        same(SYS_recvmsg, &[fd(&reader), at(&broken), MSG_DONTWAIT as u64]);
    }
}

#[test]
fn long_messages_and_many() {
    let (left, right) = pair(SOCK_STREAM);
    const LONG: usize = (2 << 20) + 77;
    let source: Vec<u8> = (0..LONG).map(|i| (i / 5) as u8).collect();
    let mut sink = vec![0u8; LONG];
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let parts = [[at(source.as_slice()), 10], [at(&source[10..]), LONG as u64 - 10]];
            assert_eq!(
                rounds(SYS_sendmsg, &[fd(&left), at(&[0, 0, at(&parts), 2, 0, 0, 0]), 0]),
                (LONG as i64, 3)
            );
            assert_eq!(
                rounds(SYS_sendto, &[fd(&left), at(source.as_slice()), LONG as u64, 0, 0, 0]),
                (LONG as i64, 3)
            );
        });
        let room = [[at_mut(sink.as_mut_slice()), LONG as u64]];
        let mut header = [0, 0, at(&room), 1, 0, 0, 0];
        assert_eq!(
            rounds(SYS_recvmsg, &[fd(&right), at_mut(&mut header), MSG_WAITALL as u64]),
            (LONG as i64, 3)
        );
        assert!(sink == source);
        sink.fill(0);
        let all = [
            fd(&right),
            at_mut(sink.as_mut_slice()),
            LONG as u64,
            MSG_WAITALL as u64,
            0,
            0,
        ];
        assert_eq!(rounds(SYS_recvfrom, &all), (LONG as i64, 3));
        assert!(sink == source);
    });

    // More messages than one call has segments for.
    let (left, right) = pair(SOCK_DGRAM);
    let texts: Vec<String> = (0..40).map(|i| format!("message {i}")).collect();
    let parts: Vec<[u64; 2]> = texts
        .iter()
        .map(|text| [at(text.as_str()), text.len() as u64])
        .collect();
    let mut headers: Vec<[u64; 8]> = parts.iter().map(|part| [0, 0, at(part), 1, 0, 0, 0, 0]).collect();
    // The queue of a datagram socket is short: as many as fit.
    let direct = here(
        SYS_sendmmsg,
        &[fd(&left), at_mut(headers.as_mut_slice()), 40, MSG_DONTWAIT as u64],
    );
    let mut rooms = vec![[0u8; 32]; 40];
    let parts: Vec<[u64; 2]> = rooms.iter_mut().map(|room| [at_mut(room), 32]).collect();
    let mut places: Vec<[u64; 8]> = parts.iter().map(|part| [0, 0, at(part), 1, 0, 0, 0, 0]).collect();
    let wait = MSG_WAITFORONE as u64;
    for _ in 0..2 {
        rooms.fill([0; 32]);
        let got = away(
            SYS_recvmmsg,
            &[fd(&right), at_mut(places.as_mut_slice()), 40, wait, at(&[5u64, 0])],
        );
        assert_eq!(got, direct);
        for i in 0..got as usize {
            assert_eq!(&rooms[i][..places[i][7] as usize], texts[i].as_bytes());
        }
        headers.iter_mut().for_each(|header| header[7] = 0);
        assert_eq!(
            away(
                SYS_sendmmsg,
                &[fd(&left), at_mut(headers.as_mut_slice()), 40, MSG_DONTWAIT as u64]
            ),
            direct
        );
        assert_eq!(headers[0][7], 9, "msg_len");
    }
}

#[test]
fn sockets_and_their_names() {
    let (server, client) = (
        std::net::UdpSocket::bind("127.0.0.1:0").unwrap(),
        std::net::UdpSocket::bind("127.0.0.1:0").unwrap(),
    );
    let (mut name, mut length) = ([0xaau8; 40], 40u32);
    assert_eq!(
        away(SYS_getsockname, &[fd(&server), at_mut(&mut name), at_mut(&mut length)]),
        0
    );
    assert_eq!((length, name[16]), (16, 0xaa));
    assert_eq!(
        u16::from_be_bytes([name[2], name[3]]),
        server.local_addr().unwrap().port()
    );
    assert_eq!(away(SYS_sendto, &[fd(&client), at(b"ping"), 4, 0, at(&name), 16]), 4);
    let (mut data, mut peer, mut short) = ([0u8; 16], [0xaau8; 16], 8u32);
    let args = [
        fd(&server),
        at_mut(&mut data),
        2,
        MSG_TRUNC as u64,
        at_mut(&mut peer),
        at_mut(&mut short),
    ];
    assert_eq!(away(SYS_recvfrom, &args), 4, "the length of the datagram");
    assert_eq!(
        (&data[..4], short, peer[8]),
        (&b"pi\0\0"[..], 16, 0xaa),
        "cut to the room there is"
    );
    assert_eq!(
        u16::from_be_bytes([peer[2], peer[3]]),
        client.local_addr().unwrap().port()
    );
    // An absurd room is room.
    let mut length = i32::MAX;
    assert_eq!(
        away(SYS_getsockname, &[fd(&server), at_mut(&mut name), at_mut(&mut length)]),
        0
    );
    assert_eq!(length, 16);
    for said in [-1i32, 0] {
        let (mut direct, mut forwarded) = (said, said);
        let result = here(SYS_getsockname, &[fd(&server), at_mut(&mut name), at_mut(&mut direct)]);
        assert_eq!(
            away(
                SYS_getsockname,
                &[fd(&server), at_mut(&mut name), at_mut(&mut forwarded)]
            ),
            result
        );
        assert_eq!(direct, forwarded);
    }

    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let _stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut peer, mut length) = ([0u8; 16], 16u32);
    let accepted = owned(away(
        SYS_accept4,
        &[
            fd(&listener),
            at_mut(&mut peer),
            at_mut(&mut length),
            SOCK_CLOEXEC as u64,
        ],
    ));
    assert_eq!(length, 16);
    let (mut value, mut length) = (0x7777_7777_7777u64, 8u32);
    let option = [
        fd(&accepted),
        SOL_SOCKET as u64,
        SO_TYPE as u64,
        at_mut(&mut value),
        at_mut(&mut length),
    ];
    assert_eq!(away(SYS_getsockopt, &option), 0);
    assert_eq!((value, length), (0x7777_0000_0000 | SOCK_STREAM as u64, 4));
    assert_eq!(
        away(
            SYS_setsockopt,
            &[fd(&accepted), IPPROTO_TCP as u64, TCP_NODELAY as u64, at(&1i32), 4]
        ),
        0
    );
    same(
        SYS_setsockopt,
        &[
            fd(&accepted),
            IPPROTO_TCP as u64,
            TCP_NODELAY as u64,
            at(&1i32),
            u64::MAX,
        ],
    );
    // No empty datagram from an empty vector.
    client.connect(server.local_addr().unwrap()).unwrap();
    assert_eq!(same(SYS_writev, &[fd(&client), at(&[[at(b""), 0]]), 1]), 0);
    server.set_nonblocking(true).unwrap();
    assert_eq!(
        same(SYS_read, &[fd(&server), at_mut(&mut data), 16]),
        -i64::from(EAGAIN)
    );
}

#[test]
fn commands_and_the_rest() {
    let (reader, writer) = pipe();
    assert_eq!(away(SYS_write, &[fd(&writer), at(b"seven b"), 7]), 7);
    let mut count = 0u32;
    assert_eq!(away(SYS_ioctl, &[fd(&reader), FIONREAD, at_mut(&mut count)]), 0);
    assert_eq!(count, 7);
    let mut settings = [0x55u8; 36];
    assert_eq!(
        same(SYS_ioctl, &[fd(&reader), TCGETS, at_mut(&mut settings)]),
        -i64::from(ENOTTY)
    );
    assert_eq!(settings, [0x55; 36], "untouched by an error");

    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("f");
    let (file, other) = (
        fs::File::create_new(&path).unwrap(),
        fs::File::options().write(true).open(&path).unwrap(),
    );
    // SAFETY: plain numbers.
    let mut lock: flock = unsafe { std::mem::zeroed() };
    (lock.l_type, lock.l_len) = (F_WRLCK as i16, 10);
    assert_eq!(away(SYS_fcntl, &[fd(&file), F_OFD_SETLK as u64, at(&lock)]), 0);
    assert_eq!(
        same(SYS_fcntl, &[fd(&other), F_OFD_SETLK as u64, at(&lock)]),
        -i64::from(EAGAIN)
    );
    assert_eq!(away(SYS_fcntl, &[fd(&other), F_OFD_GETLK as u64, at_mut(&mut lock)]), 0);
    assert_eq!((lock.l_type, lock.l_len, lock.l_pid), (F_WRLCK as i16, 10, -1));
    let copy = owned(away(SYS_fcntl, &[fd(&file), F_DUPFD_CLOEXEC as u64, 100]));
    assert!(copy.as_raw_fd() >= 100);

    let (mut direct, mut forwarded) = ([0u8; 390], [0u8; 390]);
    same(SYS_uname, &[at_mut(&mut direct)]);
    assert_eq!(away(SYS_uname, &[at_mut(&mut forwarded)]), 0);
    assert_eq!(direct, forwarded);
    same(SYS_getppid, &[]);
    same(SYS_getsid, &[0]);
    let mut status = 0x1234i32;
    assert_eq!(
        same(SYS_wait4, &[u64::MAX, at_mut(&mut status), WNOHANG as u64, 0]),
        -i64::from(ECHILD)
    );
    assert_eq!(status, 0x1234);

    let (from, to) = (
        fs::File::open("/proc/self/exe").unwrap(),
        fs::File::create(home.path().join("copy")).unwrap(),
    );
    let mut offset = 100u64;
    assert_eq!(
        away(SYS_sendfile, &[fd(&to), fd(&from), at_mut(&mut offset), 5000]),
        5000
    );
    assert_eq!(offset, 5100);
}

#[test]
fn what_is_not_forwarded() {
    let own = pid() as u64;
    assert!(matches!(begin(SYS_kill, &[own, 0]), Step::Local));
    assert!(matches!(begin(SYS_tgkill, &[own, own, 0]), Step::Local));
    assert!(matches!(begin(SYS_kill, &[1, 0]), Step::Forward(_)));
    assert!(matches!(begin(SYS_fork, &[]), Step::Home(_)));
    assert!(matches!(begin(SYS_ioctl, &[0, 0xae00, 0]), Step::Home(_)));
    assert!(matches!(begin(470, &[]), Step::Home(_)));
    assert!(matches!(begin(SYS_io_uring_setup, &[1, 0]), Step::Answer(-38)));
    assert!(matches!(
        begin(SYS_mmap, &[0, 4096, 3, MAP_ANONYMOUS as u64, u64::MAX, 0]),
        Step::Local
    ));
    match begin(SYS_mmap, &[0, 4096, 1, MAP_PRIVATE as u64, 7, 8192]) {
        Step::Mmap(map) => assert_eq!((map.length, map.descriptor, map.offset), (4096, 7, 8192)),
        other => panic!("{other:?}"),
    }
    for timer in [SYS_timer_create, SYS_timer_delete] {
        assert!(matches!(begin(timer, &[0, 0, 0]), Step::Local));
    }
    assert!(matches!(begin(SYS_setitimer, &[ITIMER_PROF as u64, 0, 0]), Step::Local));
    assert!(matches!(
        begin(SYS_setitimer, &[ITIMER_REAL as u64, 0, 0]),
        Step::Forward(_)
    ));

    for (path, below) in [
        ("/proc/self/maps", Some("maps")),
        ("//proc/./self//status", Some("status")),
        ("/proc/thread-self/stat", Some("stat")),
        ("/proc/self/task/12/smaps", Some("task/12/smaps")),
        ("/proc/self/fd/0", None),
        ("/proc/self/mountinfo", None),
        ("/proc/1/maps", None),
        ("/proc/meminfo", None),
        ("proc/self/maps", None),
    ] {
        let path = CString::new(path).unwrap();
        match begin(
            SYS_openat,
            &[AT_FDCWD as u64, at(path.as_bytes_with_nul()), O_CLOEXEC as u64, 0],
        ) {
            Step::OwnProc { path, flags } => assert_eq!((Some(path.as_str()), flags), (below, O_CLOEXEC as u64)),
            Step::Forward(_) => assert_eq!(below, None, "{path:?}"),
            other => panic!("{other:?}"),
        }
    }
    let own = CString::new(format!("/proc/{own}/auxv")).unwrap();
    assert!(matches!(
        begin(SYS_open, &[at(own.as_bytes_with_nul()), 0]),
        Step::OwnProc { .. }
    ));

    // Forwarded, and then local.
    let mut limit = [0u64; 2];
    assert_eq!(
        here(SYS_prlimit64, &[0, u64::from(RLIMIT_CORE), 0, at_mut(&mut limit)]),
        0
    );
    let both = pending(SYS_prlimit64, &[0, u64::from(RLIMIT_CORE), at(&limit), 0]);
    let reply = execute(both.call());
    assert!(matches!(both.finish(reply, &Own), Ok(Outcome::Local)));
}

#[test]
fn forged_calls_are_refused() {
    let call = |number: i64, arguments: &[Argument], segments: &[Segment], pointers: &[Pointer]| {
        let mut six = [Argument::Value(0); 6];
        six[..arguments.len()].copy_from_slice(arguments);
        let (segments, pointers) = (segments.to_vec(), pointers.to_vec());
        let call = Call {
            id: 1,
            process: 1,
            thread: 0,
            number: number as u32,
            arguments: six,
            segments,
            pointers,
            unstoppable: false,
        };
        executor::plan(&call, 0x10000, Plan::SCRATCH).map(|_| ())
    };
    use Argument::{Fault, Segment as Seg, Value};
    let out = |len| Segment::Out { len, keep: Keep::All };
    let at = |segment, offset, target| Pointer {
        segment,
        offset,
        target,
    };
    assert_eq!(call(SYS_read, &[Value(0), Seg(0), Value(8)], &[out(8)], &[]), Ok(()));
    assert_eq!(call(SYS_read, &[Value(0), Fault, Value(1 << 40)], &[], &[]), Ok(()));
    let wrong = |number: i64, position| {
        Err(CallError::WrongArgument {
            number: number as u32,
            position,
        })
    };
    assert_eq!(
        call(SYS_read, &[Value(0), Value(0x10000), Value(8)], &[], &[]),
        wrong(SYS_read, 1)
    );
    assert_eq!(
        call(SYS_read, &[Value(0), Seg(0), Value(8)], &[Segment::In(vec![0; 8])], &[]),
        wrong(SYS_read, 1)
    );
    assert_eq!(call(SYS_close, &[Seg(0)], &[out(8)], &[]), wrong(SYS_close, 0));
    assert_eq!(call(SYS_close, &[Value(1), Value(1)], &[], &[]), wrong(SYS_close, 1));
    let short = call(SYS_read, &[Value(0), Seg(0), Value(9)], &[out(8)], &[]);
    assert_eq!(
        short,
        Err(CallError::TooShort {
            segment: 0,
            have: 8,
            needed: 9
        })
    );
    assert_eq!(
        call(SYS_open, &[Seg(0)], &[Segment::In(b"/etc".to_vec())], &[]),
        wrong(SYS_open, 0)
    );
    assert_eq!(
        call(SYS_read, &[Value(0), Seg(3), Value(8)], &[out(8)], &[]),
        Err(CallError::NoSegment(3))
    );
    for number in [
        SYS_mmap,
        SYS_execve,
        SYS_brk,
        SYS_ptrace,
        SYS_fork,
        SYS_io_uring_setup,
        470,
        400,
    ] {
        assert_eq!(call(number, &[], &[], &[]), Err(CallError::NotForwarded(number as u32)));
    }
    let command = [Value(0), Value(TCGETS), Value(0x10000)];
    assert_eq!(call(SYS_ioctl, &command, &[], &[]), wrong(SYS_ioctl, 2));
    let masked = [Value(0), Value(0), Value(0), Seg(0), Value(8)];
    assert_eq!(call(SYS_ppoll, &masked, &[out(8)], &[]), wrong(SYS_ppoll, 3));

    // A name whose length says more than there is.
    let name = |said: i32| {
        let keep = Keep::Counted { segment: 1, offset: 0 };
        let room = Segment::InOut {
            bytes: vec![0; 16],
            keep,
        };
        let said = Segment::InOut {
            bytes: said.to_le_bytes().to_vec(),
            keep: Keep::All,
        };
        call(SYS_getsockname, &[Value(0), Seg(0), Seg(1)], &[room, said], &[])
    };
    assert_eq!(name(16), Ok(()));
    assert_eq!(
        name(17),
        Err(CallError::TooShort {
            segment: 0,
            have: 16,
            needed: 17
        })
    );

    // Headers: a raw address, a vector that is too long, a stray or doubled pointer.
    let header = |raw: u64, count: u64| {
        let words = [0, 0, raw, count, 0, 0, 0];
        Segment::In(words.iter().flat_map(|word: &u64| word.to_le_bytes()).collect())
    };
    let vector = |length: u64| Segment::In([0, length].iter().flat_map(|word| word.to_le_bytes()).collect());
    let send = |segments: &[Segment], pointers: &[Pointer]| call(SYS_sendmsg, &[Value(0), Seg(0)], segments, pointers);
    let data = Segment::In(vec![0; 10]);
    let good = [at(0, 16, 1), at(1, 0, 2)];
    assert_eq!(send(&[header(0, 1), vector(10), data.clone()], &good), Ok(()));
    let raw = send(&[header(0x10000, 1), vector(10), data.clone()], &[]);
    assert_eq!(raw, Err(CallError::BadPlace { segment: 0, offset: 16 }));
    let long = send(&[header(0, 1), vector(11), data.clone()], &good);
    assert_eq!(
        long,
        Err(CallError::TooShort {
            segment: 2,
            have: 10,
            needed: 11
        })
    );
    let many = send(&[header(0, 2), vector(10), data.clone()], &good);
    assert_eq!(many, Err(CallError::BadPlace { segment: 1, offset: 24 }));
    let stray = send(
        &[header(0, 1), vector(10), data.clone()],
        &[good[0], good[1], at(1, 8, 2)],
    );
    assert_eq!(stray, Err(CallError::StrayPointer));
    let twice = send(&[header(0, 1), vector(10), data.clone()], &[good[0], good[1], good[1]]);
    assert_eq!(twice, Err(CallError::StrayPointer));
    let crooked = send(&[header(0, 1), vector(10), data.clone()], &[at(0, 12, 1)]);
    assert_eq!(crooked, Err(CallError::BadPlace { segment: 0, offset: 12 }));

    let large = call(SYS_read, &[Value(0), Seg(0), Value(8)], &[out(u32::MAX)], &[]);
    assert!(matches!(large, Err(CallError::TooLarge { .. })));
    assert_eq!(
        call(SYS_sync, &[], &vec![out(1); 65], &[]),
        Err(CallError::TooManySegments(65))
    );
}

#[test]
fn a_reply_to_another_call_is_not_believed() {
    let mut room = [7u8; 8];
    for forge in [
        (|reply| reply.id += 1) as fn(&mut Reply),
        |reply| reply.outputs[0].segment = 9,
        |reply| reply.outputs[0].bytes = vec![1; 9],
        |reply| reply.outputs.push(reply.outputs[0].clone()),
    ] {
        let read = pending(
            SYS_read,
            &[fd(&fs::File::open("/dev/zero").unwrap()), at_mut(&mut room), 8],
        );
        let output = vrun_remote_io::call::Output {
            segment: 0,
            bytes: vec![1; 8],
        };
        let mut reply = Reply {
            id: read.call().id,
            result: 8,
            outputs: vec![output],
        };
        forge(&mut reply);
        assert!(matches!(read.finish(reply, &Own), Ok(Outcome::Done(-5))));
        assert_eq!(room, [7; 8]);
    }
}

#[test]
fn waits_can_be_given_another_timeout() {
    let epoll = raw(SYS_epoll_create1, [0; 6]) as u64;
    let (mut events, time, long) = ([0u8; 12], [3u64, 250_000_000], u64::from(u32::MAX) >> 1);
    let seconds = Duration::from_secs;
    let waits: [(i64, Vec<u64>, Option<Duration>); 9] = [
        (SYS_poll, vec![0, 0, 1500], Some(Duration::from_millis(1500))),
        (SYS_poll, vec![0, 0, u64::from(u32::MAX)], None),
        (
            SYS_epoll_wait,
            vec![epoll, at_mut(&mut events), 1, 7000],
            Some(seconds(7)),
        ),
        (
            SYS_epoll_pwait,
            vec![epoll, at_mut(&mut events), 1, long, 0, 8],
            Some(Duration::from_millis(long)),
        ),
        (
            SYS_epoll_pwait2,
            vec![epoll, at_mut(&mut events), 1, at(&time), 0, 8],
            Some(Duration::new(3, 250_000_000)),
        ),
        (SYS_epoll_pwait2, vec![epoll, at_mut(&mut events), 1, 0, 0, 8], None),
        (SYS_ppoll, vec![0, 0, at(&time), 0, 8], None),
        (SYS_pselect6, vec![0, 0, 0, 0, 0, 0], None),
        (SYS_select, vec![0, 0, 0, 0, at(&time)], None),
    ];
    for (number, arguments, fixed) in waits {
        let mut wait = pending(number, &arguments);
        assert_eq!(wait.fixed_timeout(), fixed, "call {number}");
        let began = Instant::now();
        wait.set_timeout(Duration::from_micros(1500));
        let reply = execute(wait.call());
        assert!(began.elapsed() >= Duration::from_micros(1500), "call {number}");
        assert!(
            matches!(wait.finish(reply, &Own), Ok(Outcome::Done(0))),
            "call {number}"
        );
    }
    raw(SYS_close, [epoll, 0, 0, 0, 0, 0]);
}
