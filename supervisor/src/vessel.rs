//! A vessel: a fresh process with the right PID, clocks, user and (for a guest) an empty world, ready to be filled.
//!
//! ```text
//! we ── clone3(user, pid, mount [, ipc] [, net, uts]) ──► keeper (PID 1 there)
//!                                                       │ uid map, host name, time offsets, root
//!                                                       └─ clone3(set_tid = the job's PID) ──► vessel: waits in pause(2)
//! ```
//!
//! PIDs can only be chosen by someone with rights over the PID namespace, so the vessel gets one of its own, in a user
//! namespace of its own, which any user may make. The keeper reaps whatever is orphaned there, tells us how the vessel
//! stops and ends, and dies with us.
//!
//! Unsafe code: `clone3` without a new stack behaves as `fork`; the caller is single-threaded or the child makes only
//! async-signal-safe calls, which all of the code after [`clone`] in this file does (raw libc calls on stack data that
//! was prepared before).
#![allow(unsafe_code)]

use crate::sys;
use rustix::process::getuid;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use vrun_image::state::{Job, Process};

/// How the fresh process is to be.
#[derive(Clone, Debug)]
pub struct Specification {
    /// Its PID inside its namespace.
    pub pid: i32,
    pub uid: u32,
    pub gid: u32,
    /// What to add to this host's `CLOCK_MONOTONIC` and `CLOCK_BOOTTIME`, in nanoseconds.
    pub monotonic_offset: i128,
    pub boottime_offset: i128,
    pub world: World,
}

impl Specification {
    /// A vessel for a job's process, whose clocks go on from where they were.
    pub fn of(job: &Job, process: &Process, world: World) -> Self {
        let ahead = |saved: u64, clock| i128::from(saved) - i128::from(sys::clock(clock));
        Self {
            pid: process.pid,
            uid: process.credentials.uid[1],
            gid: process.credentials.gid[1],
            monotonic_offset: ahead(job.clocks.monotonic, libc::CLOCK_MONOTONIC),
            boottime_offset: ahead(job.clocks.boottime, libc::CLOCK_BOOTTIME),
            world,
        }
    }
}

/// What the process can reach.
#[derive(Clone, Debug)]
pub enum World {
    /// This host, as its user can: a restored job.
    Host {
        /// Descriptors to hold: (ours, number there, close-on-exec). Those that keep their number stay as they are, and
        /// no other may get the number of one of them.
        descriptors: Vec<(RawFd, i32, bool)>,
        working_directory: CString,
        umask: u32,
        /// It has an IPC namespace of its own: only there can the identifiers of its objects be chosen.
        own_ipc: bool,
    },
    /// Nothing: a guest, whose world is its origin.
    Nothing { host_name: String },
}

#[derive(Debug, thiserror::Error)]
pub enum VesselError {
    #[error("this host lets its users create no {0}: {1}; an administrator can allow them (user.max_user_namespaces)")]
    Namespace(&'static str, io::Error),
    #[error("cannot {0} for the new process: {1}")]
    Step(&'static str, io::Error),
    #[error("the new process ended while it was being set up")]
    Vanished,
}

/// A fresh process, waiting. Dropping it kills it and its keeper.
#[derive(Debug)]
pub struct Vessel {
    /// Host PID of the process.
    pub pid: i32,
    /// Host PID of its keeper (our child).
    pub keeper: i32,
    /// The process's descriptor of the socket to us, which it leaves open: when it is stopped it may have come anywhere.
    pub socket: i32,
    /// Where the keeper reports [`Report`]s.
    pub reports: OwnedFd,
    armed: bool,
}

/// A wait status of the vessel that the keeper saw (raw `waitpid` word).
#[derive(Clone, Copy, Debug)]
pub struct Report {
    pub raw_status: i32,
    pub user_microseconds: u64,
    pub system_microseconds: u64,
}

const READY: u8 = b'R';
const FAILED: u8 = b'F';
const STATUS: u8 = b'S';
const GO: u8 = b'G';
/// A message: kind, step or status, errno or user time, system time.
const MESSAGE: usize = 25;

/// Steps of the keeper and the vessel, by number, for the error message.
const STEPS: [&str; 11] = [
    "wait for the user map",
    "take the job's user id",
    "set the host name",
    "create a time namespace",
    "set the clocks",
    "make an empty root",
    "mount /proc",
    "take the job's process id",
    "enter the working directory",
    "place the descriptors",
    "report",
];

impl Vessel {
    /// Makes one. Call it while this process has one thread.
    pub fn create(specification: &Specification) -> Result<Self, VesselError> {
        let (ours, theirs) = socket_pair().map_err(|error| VesselError::Step("make a socket", error))?;
        let prepared = Prepared::new(specification, theirs.as_raw_fd());
        let flags = libc::CLONE_NEWUSER
            | libc::CLONE_NEWPID
            | libc::CLONE_NEWNS
            | match specification.world {
                World::Host { own_ipc: false, .. } => 0,
                World::Host { own_ipc: true, .. } => libc::CLONE_NEWIPC,
                World::Nothing { .. } => libc::CLONE_NEWNET | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC,
            };
        // SAFETY: see the module's note; `prepared` is a copy in the child.
        let keeper = unsafe { clone(flags as u64, 0) }.map_err(|error| match error.raw_os_error() {
            Some(libc::EPERM | libc::ENOSPC | libc::EINVAL) => VesselError::Namespace("user namespaces", error),
            _ => VesselError::Step("create namespaces", error),
        })?;
        if keeper == 0 {
            prepared.keeper();
        }
        drop(theirs);
        let mut vessel = Self {
            pid: 0,
            keeper,
            socket: -1,
            reports: ours,
            armed: true,
        };
        write_maps(keeper, specification).map_err(|error| VesselError::Step("map the user id", error))?;
        send(vessel.reports.as_raw_fd(), &[GO]).map_err(|error| VesselError::Step("start the keeper", error))?;
        (vessel.pid, vessel.socket) = vessel.wait_ready()?;
        Ok(vessel)
    }

    /// Its PID and [`Vessel::socket`].
    fn wait_ready(&self) -> Result<(i32, i32), VesselError> {
        let mut message = [0; MESSAGE];
        match receive(self.reports.as_raw_fd(), &mut message) {
            Ok((sender, length)) if length > 0 && message[0] == READY => Ok((
                sender,
                i32::from_le_bytes([message[1], message[2], message[3], message[4]]),
            )),
            Ok((_, length)) if length > 0 && message[0] == FAILED => {
                let step = STEPS
                    .get(usize::from(message[1]))
                    .copied()
                    .unwrap_or("do an unknown step");
                let errno = i32::from_le_bytes([message[2], message[3], message[4], message[5]]);
                let error = io::Error::from_raw_os_error(errno);
                Err(if step == "create a time namespace" {
                    VesselError::Namespace("time namespaces", error)
                } else {
                    VesselError::Step(step, error)
                })
            }
            Ok(_) => Err(VesselError::Vanished),
            Err(error) => Err(VesselError::Step("hear from the keeper", error)),
        }
    }

    /// The next report, if one is there. `None` at the end too: the keeper has gone.
    pub fn report(reports: BorrowedFd<'_>) -> Option<Report> {
        let mut message = [0; MESSAGE];
        match receive(reports.as_raw_fd(), &mut message) {
            Ok((_, MESSAGE)) if message[0] == STATUS => {
                let word = |at: usize| u64::from_le_bytes(message[at..at + 8].try_into().expect("8 bytes"));
                Some(Report {
                    raw_status: word(1) as i32,
                    user_microseconds: word(9),
                    system_microseconds: word(17),
                })
            }
            _ => None,
        }
    }

    /// From now on the process lives as long as its keeper; dropping the vessel does not end it.
    pub fn launch(mut self) -> Self {
        self.armed = false;
        self
    }
}

impl Drop for Vessel {
    fn drop(&mut self) {
        if self.armed {
            // The keeper is our child and not reaped, so the PID is its own. The end of PID 1 ends every process of its
            // namespace, and is complete only when they are reaped: those that we trace, by us.
            let _ = sys::kill(self.keeper, libc::SIGKILL);
            let keeps = |(pid, status): (i32, vrun_shim::Status)| pid != self.keeper || !status.is_end();
            while matches!(vrun_shim::tracee::wait(-1, 0), Ok(Some(report)) if keeps(report)) {}
        }
    }
}

/// Everything that the children need, allocated before they exist.
struct Prepared {
    socket: RawFd,
    pid: i32,
    uid: u32,
    gid: u32,
    offsets: Vec<u8>,
    isolated: bool,
    host_name: Vec<u8>,
    descriptors: Vec<(RawFd, i32, bool)>,
    /// The numbers of those that keep them, ascending.
    kept: Vec<RawFd>,
    working_directory: CString,
    umask: u32,
}

impl Prepared {
    fn new(specification: &Specification, socket: RawFd) -> Self {
        let offset = |nanoseconds: i128| {
            (
                nanoseconds.div_euclid(1_000_000_000),
                nanoseconds.rem_euclid(1_000_000_000),
            )
        };
        let (monotonic, monotonic_rest) = offset(specification.monotonic_offset);
        let (boottime, boottime_rest) = offset(specification.boottime_offset);
        let offsets = format!("1 {monotonic} {monotonic_rest}\n7 {boottime} {boottime_rest}\n").into_bytes();
        let mut prepared = Self {
            socket,
            pid: specification.pid,
            uid: specification.uid,
            gid: specification.gid,
            offsets,
            isolated: false,
            host_name: Vec::new(),
            descriptors: Vec::new(),
            kept: Vec::new(),
            working_directory: CString::default(),
            umask: 0o022,
        };
        match &specification.world {
            World::Host {
                descriptors,
                working_directory,
                umask,
                own_ipc: _,
            } => {
                prepared.descriptors.clone_from(descriptors);
                let kept = descriptors.iter().filter(|item| item.0 == item.1).map(|item| item.0);
                prepared.kept = kept.collect();
                prepared.kept.sort_unstable();
                prepared.working_directory.clone_from(working_directory);
                prepared.umask = *umask;
            }
            World::Nothing { host_name } => {
                prepared.isolated = true;
                prepared.host_name = host_name.clone().into_bytes();
            }
        }
        prepared
    }

    /// PID 1 of the new namespace.
    fn keeper(&self) -> ! {
        // SAFETY: async-signal-safe calls on data that lives in this copy of the address space.
        unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            let mut go = [0_u8; 1];
            self.check(0, libc::recv(self.socket, go.as_mut_ptr().cast(), 1, 0) - 1);
            self.take_identity();
            if self.isolated {
                self.check(
                    2,
                    libc::sethostname(self.host_name.as_ptr().cast(), self.host_name.len()) as isize,
                );
            }
            self.check(3, libc::unshare(CLONE_NEWTIME) as isize);
            self.check(4, write_file(c"/proc/self/timens_offsets", &self.offsets));
            if self.isolated {
                self.empty_root();
            } else {
                // A failure is bearable: the old /proc still resolves /proc/self through the host's numbers.
                let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
                libc::mount(
                    c"none".as_ptr(),
                    c"/".as_ptr(),
                    std::ptr::null(),
                    libc::MS_REC | libc::MS_SLAVE,
                    std::ptr::null(),
                );
                libc::mount(
                    c"proc".as_ptr(),
                    c"/proc".as_ptr(),
                    c"proc".as_ptr(),
                    flags,
                    std::ptr::null(),
                );
            }
            let vessel = match clone(0, self.pid) {
                Ok(pid) => pid,
                Err(error) => self.fail(7, error.raw_os_error().unwrap_or(0)),
            };
            if vessel == 0 {
                self.vessel();
            }
            self.close_all_but_socket();
            self.reap()
        }
    }

    /// Becomes the job's user inside the namespace, with every capability there kept.
    unsafe fn take_identity(&self) {
        // SAFETY: as in `keeper`.
        unsafe {
            if libc::getuid() == self.uid && libc::getgid() == self.gid {
                return;
            }
            libc::prctl(libc::PR_SET_KEEPCAPS, 1);
            self.check(
                1,
                libc::syscall(libc::SYS_setresgid, self.gid, self.gid, self.gid) as isize,
            );
            self.check(
                1,
                libc::syscall(libc::SYS_setresuid, self.uid, self.uid, self.uid) as isize,
            );
            let header = [0x2008_0522_u32, 0];
            let mut data = [0_u32; 6];
            self.check(
                1,
                libc::syscall(libc::SYS_capget, header.as_ptr(), data.as_mut_ptr()) as isize,
            );
            (data[0], data[3]) = (data[1], data[4]);
            self.check(
                1,
                libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) as isize,
            );
            // A change of user makes a process undumpable, and then untraceable for us.
            libc::prctl(libc::PR_SET_DUMPABLE, 1);
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        }
    }

    unsafe fn empty_root(&self) {
        // /proc exists everywhere, so it serves as the place to mount on.
        // SAFETY: as in `keeper`.
        unsafe {
            let none = std::ptr::null();
            let flags = libc::MS_REC | libc::MS_PRIVATE;
            self.check(
                5,
                libc::mount(c"none".as_ptr(), c"/".as_ptr(), none, flags, none.cast()) as isize,
            );
            let options = c"size=16k,nr_inodes=4,mode=755";
            let tmpfs = c"tmpfs".as_ptr();
            let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
            self.check(
                5,
                libc::mount(tmpfs, c"/proc".as_ptr(), tmpfs, flags, options.as_ptr().cast()) as isize,
            );
            self.check(5, libc::chdir(c"/proc".as_ptr()) as isize);
            // pivot_root(".", ".") stacks the old root over the new one (pivot_root(2)).
            self.check(
                5,
                libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) as isize,
            );
            self.check(5, libc::umount2(c".".as_ptr(), libc::MNT_DETACH) as isize);
            self.check(5, libc::chdir(c"/".as_ptr()) as isize);
            let flags = libc::MS_REMOUNT | libc::MS_RDONLY | flags;
            self.check(5, libc::mount(none, c"/".as_ptr(), none, flags, none.cast()) as isize);
        }
    }

    /// The process that the image will be put into.
    fn vessel(&self) -> ! {
        // SAFETY: as in `keeper`.
        unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            let mut socket = self.socket;
            if !self.isolated {
                self.check(8, libc::chdir(self.working_directory.as_ptr()) as isize);
                libc::umask(self.umask);
                socket = self.place_descriptors();
            } else {
                self.close_all_but_socket();
            }
            let mut ready = [0; MESSAGE];
            ready[0] = READY;
            ready[1..5].copy_from_slice(&socket.to_le_bytes());
            if send(socket, &ready).is_err() {
                libc::_exit(125);
            }
            loop {
                libc::pause();
            }
        }
    }

    /// Puts the descriptors at their numbers and closes all others; gives the socket's new number.
    unsafe fn place_descriptors(&self) -> RawFd {
        // SAFETY: as in `keeper`.
        unsafe {
            let highest = self
                .descriptors
                .iter()
                .fold(self.socket, |high, item| high.max(item.0).max(item.1));
            // Sources first go above every number that is wanted, so that no placement overwrites a source.
            let socket = libc::fcntl(self.socket, libc::F_DUPFD, highest + 1);
            self.check(9, socket as isize);
            for (copy, (ours, _, _)) in (socket + 1..).zip(self.moved()) {
                self.check(9, libc::fcntl(*ours, libc::F_DUPFD, copy) as isize);
            }
            let mut next = 0;
            for kept in self.kept.iter().copied().chain([socket]) {
                if next < kept {
                    libc::syscall(libc::SYS_close_range, next, kept - 1, 0);
                }
                next = kept + 1;
            }
            for (index, (_, number, close_on_exec)) in self.moved().enumerate() {
                let flags = if *close_on_exec { libc::O_CLOEXEC } else { 0 };
                let copy = socket + 1 + index as i32;
                self.check(9, libc::dup3(copy, *number, flags) as isize);
            }
            libc::syscall(libc::SYS_close_range, socket + 1, u32::MAX, 0);
            socket
        }
    }

    /// The descriptors that get another number.
    fn moved(&self) -> impl Iterator<Item = &(RawFd, i32, bool)> {
        self.descriptors.iter().filter(|item| item.0 != item.1)
    }

    unsafe fn close_all_but_socket(&self) {
        // SAFETY: as in `keeper`.
        unsafe {
            if self.socket > 0 {
                libc::syscall(libc::SYS_close_range, 0, self.socket - 1, 0);
            }
            libc::syscall(libc::SYS_close_range, self.socket + 1, u32::MAX, 0);
        }
    }

    /// Reaps until nobody is left, reporting what happens to the vessel.
    unsafe fn reap(&self) -> ! {
        // SAFETY: as in `keeper`.
        unsafe {
            let mut all: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&raw mut all);
            libc::sigprocmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut());
            loop {
                let mut status = 0;
                let mut usage: libc::rusage = std::mem::zeroed();
                let flags = libc::WUNTRACED | libc::WCONTINUED | libc::__WALL;
                let pid = libc::wait4(-1, &raw mut status, flags, &raw mut usage);
                if pid == self.pid {
                    let mut message = [0; MESSAGE];
                    message[0] = STATUS;
                    let micros = |time: libc::timeval| (time.tv_sec * 1_000_000 + time.tv_usec).to_le_bytes();
                    message[1..9].copy_from_slice(&i64::from(status).to_le_bytes());
                    message[9..17].copy_from_slice(&micros(usage.ru_utime));
                    message[17..25].copy_from_slice(&micros(usage.ru_stime));
                    let _ = send(self.socket, &message);
                } else if pid == -1 && *libc::__errno_location() == libc::ECHILD {
                    libc::_exit(0);
                }
            }
        }
    }

    /// Ends this process with a report when `result` is an error of a libc call.
    unsafe fn check(&self, step: u8, result: isize) {
        if result < 0 {
            // SAFETY: errno of this thread.
            self.fail(step, unsafe { *libc::__errno_location() });
        }
    }

    fn fail(&self, step: u8, errno: i32) -> ! {
        let mut message = [0; MESSAGE];
        message[0] = FAILED;
        message[1] = step;
        message[2..6].copy_from_slice(&errno.to_le_bytes());
        let _ = send(self.socket, &message);
        // SAFETY: ends this child at once, without running our destructors.
        unsafe { libc::_exit(125) }
    }
}

/// `CLONE_NEWTIME` (`linux/sched.h`); libc has it only as a flag of clone3.
const CLONE_NEWTIME: i32 = 0x80;

/// `clone3(2)` as a fork, into new namespaces (`flags`) or with a chosen PID (0: any).
///
/// # Safety
/// As for `fork`: in a process with several threads the child may only make async-signal-safe calls.
unsafe fn clone(flags: u64, set_tid: i32) -> io::Result<i32> {
    let mut arguments = libc::clone_args {
        flags,
        pidfd: 0,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: libc::SIGCHLD as u64,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: 0,
    };
    if set_tid != 0 {
        arguments.set_tid = &raw const set_tid as u64;
        arguments.set_tid_size = 1;
    }
    // SAFETY: `arguments` and `set_tid` outlive the call; the rest is the caller's promise.
    match unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<libc::clone_args>()) } {
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(pid as i32),
    }
}

/// Maps the job's user and group to ours. As root the job's own ids are tried first, so that its files stay its own.
fn write_maps(keeper: i32, specification: &Specification) -> io::Result<()> {
    let (uid, gid) = (specification.uid, specification.gid);
    let (our_uid, our_gid) = (getuid().as_raw(), rustix::process::getgid().as_raw());
    let host = matches!(specification.world, World::Host { .. });
    let candidates = |inside: u32, ours: u32| {
        let mut maps = Vec::new();
        if getuid().is_root() && host {
            maps.push("0 0 4294967295".to_owned());
        }
        if getuid().is_root() {
            maps.push(format!("{inside} {inside} 1"));
        }
        maps.push(format!("{inside} {ours} 1"));
        maps
    };
    let write = |file: &str, maps: Vec<String>| {
        let mut result = Ok(());
        for map in maps {
            result = std::fs::write(format!("/proc/{keeper}/{file}"), map);
            if result.is_ok() {
                break;
            }
        }
        result
    };
    // Without CAP_SETGID a group map needs this first (user_namespaces(7)).
    if !getuid().is_root() {
        std::fs::write(format!("/proc/{keeper}/setgroups"), "deny")?;
    }
    write("uid_map", candidates(uid, our_uid))?;
    write("gid_map", candidates(gid, our_gid)).or_else(|_| {
        std::fs::write(format!("/proc/{keeper}/setgroups"), "deny")?;
        write("gid_map", candidates(gid, our_gid))
    })
}

fn socket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut pair = [0; 2];
    let on: libc::c_int = 1;
    // SAFETY: `pair` has room for two descriptors, which are ours afterwards; `on` is a live int.
    unsafe {
        if libc::socketpair(
            libc::AF_UNIX,
            libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC,
            0,
            pair.as_mut_ptr(),
        ) < 0
        {
            return Err(io::Error::last_os_error());
        }
        let (ours, theirs) = (OwnedFd::from_raw_fd(pair[0]), OwnedFd::from_raw_fd(pair[1]));
        // With this the kernel tells us the sender's PID in our own namespace.
        let length = size_of::<libc::c_int>() as u32;
        if libc::setsockopt(
            pair[0],
            libc::SOL_SOCKET,
            libc::SO_PASSCRED,
            (&raw const on).cast(),
            length,
        ) < 0
        {
            return Err(io::Error::last_os_error());
        }
        Ok((ours, theirs))
    }
}

fn send(socket: RawFd, bytes: &[u8]) -> io::Result<()> {
    // SAFETY: `bytes` is a live buffer.
    match unsafe { libc::send(socket, bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Receives a message: the sender's PID as we see it, and the length.
fn receive(socket: RawFd, buffer: &mut [u8]) -> io::Result<(i32, usize)> {
    #[repr(align(8))]
    struct Control([u8; 64]);
    let mut control = Control([0; 64]);
    let mut vector = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: all zeroes is a valid msghdr; it then points to live locals. The control buffer is aligned for cmsghdr,
    // and the kernel's lengths say what of it is filled.
    unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut vector;
        message.msg_iovlen = 1;
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = control.0.len();
        let length = loop {
            match libc::recvmsg(socket, &raw mut message, libc::MSG_CMSG_CLOEXEC) {
                -1 if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
                -1 => return Err(io::Error::last_os_error()),
                length => break length as usize,
            }
        };
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        if header.is_null() || (*header).cmsg_type != libc::SCM_CREDENTIALS {
            return Ok((0, length));
        }
        let credentials: libc::ucred = std::ptr::read_unaligned(libc::CMSG_DATA(header).cast());
        Ok((credentials.pid, length))
    }
}

/// Writes a small file of /proc in one call.
///
/// # Safety
/// None beyond the calls': it is `unsafe` only because it is meant for the window between fork and exec.
unsafe fn write_file(path: &std::ffi::CStr, bytes: &[u8]) -> isize {
    // SAFETY: live arguments.
    unsafe {
        let file = libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        if file < 0 {
            return -1;
        }
        let written = libc::write(file, bytes.as_ptr().cast(), bytes.len());
        libc::close(file);
        written
    }
}
