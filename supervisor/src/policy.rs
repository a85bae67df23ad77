//! The early verdict: what a process holds, or is under, that can go to no other host and into no image, each with its
//! reason. Asked of /proc when somebody wants to know (`vctl ps`, `vmigrate`), and again when the process stands still.
//!
//! ```text
//!  verdict ─┬─ surroundings   namespaces, root, filters: compared with those that the job began with
//!           └─ held           descriptors ── DESCRIPTORS by what /proc says they are, devices, sockets by family
//!  executable                 a program that is about to be executed: 32-bit ones are turned away
//! ```
//!
//! Mapped devices and what else memory can be are judged where areas are ([`crate::areas`]). Not seen from outside, and so
//! not refused: Landlock rules in force, and the tracing of a process that is not of the job.

use crate::memory::TargetMemory;
use crate::notify::{AnswerError, Listener, Notification};
use crate::proc::{Descriptor, ProcDir};
use crate::sys;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Kinds of descriptors that stay where they are: how `/proc/PID/fd` names them, what they are, why, and what to do.
const DESCRIPTORS: &[(&[u8], &str, &str)] = &[
    (
        b"anon_inode:[io_uring]",
        "an io_uring",
        "its rings bypass every system call; without --allow-io-uring programs fall back",
    ),
    (
        b"anon_inode:[userfaultfd]",
        "a userfaultfd",
        "page faults would have to be handled across the network",
    ),
    (
        b"anon_inode:[perf_event]",
        "a perf event",
        "it counts on the CPUs of one host",
    ),
    (b"anon_inode:bpf", "a BPF object", "it lives in the kernel of one host"),
    (
        b"anon_inode:[fanotify]",
        "a fanotify group",
        "it watches the files of a whole host",
    ),
    (
        b"anon_inode:[landlock-ruleset]",
        "a Landlock ruleset",
        "rules in force cannot be read back",
    ),
    (
        b"anon_inode:seccomp notify",
        "a seccomp listener",
        "the calls of other processes wait at it",
    ),
    (
        b"anon_inode:kvm-",
        "a virtual machine",
        "it lives in the kernel of one host",
    ),
    (
        b"anon_inode:[vfio",
        "a device of its own (VFIO)",
        "the device is in one host",
    ),
    (
        b"anon_inode:sync_file",
        "a fence of a device",
        "the device is in one host",
    ),
    (b"/dmabuf:", "memory of a device", "the device is in one host"),
    (
        b"/secretmem",
        "secret memory",
        "nobody but the program itself can read its contents",
    ),
    (
        b"anon_inode:[fscontext]",
        "a file system that is being mounted",
        "mounts are a host's own",
    ),
];

/// Namespaces of a process, as links below `/proc/PID/ns`.
const NAMESPACES: [(&str, &str); 8] = [
    ("user", "user"),
    ("pid_for_children", "PID"),
    ("mnt", "mount"),
    ("net", "network"),
    ("uts", "host name (UTS)"),
    ("ipc", "IPC"),
    ("cgroup", "cgroup"),
    ("time_for_children", "time"),
];

/// What a job began with: what its processes have beyond that is their own doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Surroundings {
    namespaces: [Option<Vec<u8>>; 8],
    root: Option<Vec<u8>>,
    /// `Seccomp_filters` of `/proc/PID/status`, with ours.
    filters: Option<u32>,
}

impl Surroundings {
    /// Those of a process. `ours_to_come`: our filter is not installed yet.
    pub fn of(pid: i32, ours_to_come: bool) -> Self {
        match ProcDir::open(pid) {
            Ok(directory) => Self::read(&directory, ours_to_come),
            Err(_) => Self {
                namespaces: Default::default(),
                root: None,
                filters: None,
            },
        }
    }

    fn read(directory: &ProcDir, ours_to_come: bool) -> Self {
        Self {
            namespaces: NAMESPACES.map(|(file, _)| directory.read_link(&format!("ns/{file}")).ok()),
            root: directory.read_link("root").ok(),
            filters: filters(directory).map(|count| count + u32::from(ours_to_come)),
        }
    }

    /// What of `other` is not as here: a sentence. What could not be read counts for nothing.
    fn changed(&self, other: &Self) -> Option<String> {
        let differs = |here: &Option<Vec<u8>>, there: &Option<Vec<u8>>| match (here, there) {
            (Some(here), Some(there)) => here != there,
            _ => false,
        };
        for ((_, name), (here, there)) in NAMESPACES.iter().zip(self.namespaces.iter().zip(&other.namespaces)) {
            if differs(here, there) {
                return Some(format!(
                    "it is in a {name} namespace of its own, or makes children there, which only its host has"
                ));
            }
        }
        if differs(&self.root, &other.root) {
            let root = String::from_utf8_lossy(other.root.as_deref().unwrap_or_default()).into_owned();
            return Some(format!("it has a root directory of its own (chroot to {root})"));
        }
        match (self.filters, other.filters) {
            (Some(here), Some(there)) if there > here => Some(format!(
                "it has {} of its own, which cannot be read back; switch the program's sandbox off, if it can be",
                match there - here {
                    1 => "a seccomp filter".to_owned(),
                    more => format!("{more} seccomp filters"),
                }
            )),
            _ => None,
        }
    }
}

/// Since Linux 5.9.
fn filters(directory: &ProcDir) -> Option<u32> {
    let status = String::from_utf8_lossy(&directory.read("status").ok()?).into_owned();
    let line = status.lines().find_map(|line| line.strip_prefix("Seccomp_filters:"))?;
    line.trim().parse().ok()
}

/// Why these processes cannot be moved or saved now, or nothing. It names the process if there are several.
pub fn verdict(processes: &[i32], began: &Surroundings) -> Result<(), String> {
    for pid in processes {
        let reason = match ProcDir::open(*pid) {
            Ok(directory) => began
                .changed(&Surroundings::read(&directory, false))
                .or_else(|| held(*pid, &directory.descriptors().ok()?)),
            // One that has ended holds nothing.
            Err(_) => None,
        };
        if let Some(reason) = reason {
            return Err(match processes.len() {
                1 => reason,
                _ => format!("process {pid}: {reason}"),
            });
        }
    }
    Ok(())
}

/// The first descriptor of a process that cannot go elsewhere: a sentence that names it.
pub fn held(pid: i32, descriptors: &[Descriptor]) -> Option<String> {
    descriptors.iter().find_map(|descriptor| {
        let (what, why) = unmovable(pid, descriptor)?;
        Some(format!("descriptor {} is {what}: {why}", descriptor.number))
    })
}

fn unmovable(pid: i32, descriptor: &Descriptor) -> Option<(String, &'static str)> {
    if descriptor.info.flags & libc::O_PATH.cast_unsigned() != 0 {
        return None;
    }
    let target = descriptor.target.as_slice();
    let name = || String::from_utf8_lossy(target).into_owned();
    if let Some((_, what, why)) = DESCRIPTORS.iter().find(|(prefix, ..)| target.starts_with(prefix)) {
        return Some(((*what).to_owned(), why));
    }
    match descriptor.stat.st_mode & libc::S_IFMT {
        libc::S_IFCHR if !is_everywhere(descriptor.stat.st_rdev) => {
            Some((format!("the device {}", name()), "the device is in one host"))
        }
        libc::S_IFBLK => Some((format!("the device {}", name()), "the device is in one host")),
        libc::S_IFSOCK => {
            let socket = sys::descriptor_of(pid, descriptor.number).ok()?;
            let family = rustix::net::sockopt::socket_domain(&socket).ok()?.as_raw();
            let kind = rustix::net::sockopt::socket_type(&socket).ok()?.as_raw();
            match (i32::from(family), kind as i32) {
                (libc::AF_PACKET | libc::AF_XDP, _) => {
                    Some(("a packet socket".to_owned(), "it sees the packets of one host"))
                }
                (libc::AF_INET | libc::AF_INET6, libc::SOCK_RAW) => {
                    Some(("a raw socket".to_owned(), "it sees the packets of one host"))
                }
                _ => None,
            }
        }
        _ => None,
    }
}

/// Devices without a state of their own, and terminals (`Documentation/admin-guide/devices.txt`).
fn is_everywhere(device: u64) -> bool {
    match (libc::major(device), libc::minor(device)) {
        // null, zero, full, random, urandom
        (1, 3 | 5 | 7 | 8 | 9) => true,
        // tty*, tty and console and ptmx, pts
        (4 | 5 | 136..=143, _) => true,
        _ => false,
    }
}

/// Answers a call that would execute a program which cannot run in a job. False: it is for somebody else to answer.
///
/// Not with `ENOEXEC`: execvp(3) would hand the file to a shell.
///
/// A courtesy, since the path may lead elsewhere a moment later: the filter kills what makes 32-bit calls.
///
/// # Errors
/// As for [`Listener::fail`].
pub fn answer(listener: &Listener, notification: &Notification) -> Result<bool, AnswerError> {
    let Some(path) = executed(notification) else {
        return Ok(false);
    };
    match executable(&path) {
        Err(what) if listener.is_valid(notification.id) => {
            let path = path.display();
            tracing::warn!("{path} was not executed: it is {what}, and only 64-bit x86 programs can be run");
            listener.fail(notification.id, libc::EPERM).map(|()| true)
        }
        _ => Ok(false),
    }
}

/// What a call of execve(2) or execveat(2) would execute, as a path that leads there from here.
fn executed(notification: &Notification) -> Option<PathBuf> {
    let [first, second, .., flags, _] = notification.args;
    let (directory, pointer, flags) = match i64::from(notification.number) {
        libc::SYS_execve => (libc::AT_FDCWD, first, 0),
        libc::SYS_execveat => (first as i32, second, flags),
        _ => return None,
    };
    let mut bytes = vec![0; libc::PATH_MAX as usize];
    let memory = TargetMemory::open(notification.pid).ok()?;
    let length = memory.read(pointer, &mut bytes).ok()?;
    let path = Path::new(OsStr::from_bytes(bytes[..length].split(|byte| *byte == 0).next()?));
    let own = PathBuf::from(format!("/proc/{}", notification.pid));
    let base = match directory {
        libc::AT_FDCWD => own.join("cwd"),
        descriptor => own.join("fd").join(descriptor.to_string()),
    };
    match path.strip_prefix("/") {
        Ok(below) => Some(own.join("root").join(below)),
        Err(_) if path.as_os_str().is_empty() => (flags & libc::AT_EMPTY_PATH as u64 != 0).then_some(base),
        Err(_) => Some(base.join(path)),
    }
}

/// What a file that is to be executed is: nothing to be said against it, or what it is instead of a program for x86_64 in
/// 64 bits. Follows the interpreter of a script once, as far as that can be told.
pub fn executable(path: &Path) -> Result<(), &'static str> {
    let mut path = path.to_owned();
    // The kernel follows five (`BINPRM_MAX_RECURSION`, fs/exec.c).
    for _ in 0..5 {
        let mut head = Vec::new();
        // A FIFO or device is for the kernel to refuse, and would block us.
        let regular = fs::metadata(&path).is_ok_and(|metadata| metadata.is_file());
        let Some(file) = regular.then(|| File::open(&path).ok()).flatten() else {
            return Ok(());
        };
        if file.take(256).read_to_end(&mut head).is_err() {
            return Ok(());
        }
        match interpreter(&head) {
            Some(next) => path = next,
            None => return class(&head),
        }
    }
    Ok(())
}

/// The word behind `#!`, if that is how the file begins.
fn interpreter(head: &[u8]) -> Option<PathBuf> {
    let line = head.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    let word = line
        .split(|byte| byte.is_ascii_whitespace())
        .find(|word| !word.is_empty())?;
    Some(OsStr::from_bytes(word).into())
}

/// `e_ident[EI_CLASS]` and, at offset 18, `e_machine`: elf(5).
fn class(head: &[u8]) -> Result<(), &'static str> {
    const CLASS_32: u8 = 1;
    const X86: u16 = 3;
    const X86_64: u16 = 62;
    if !head.starts_with(b"\x7fELF") {
        return Ok(());
    }
    let machine = head.get(18..20).map(|bytes| u16::from_le_bytes([bytes[0], bytes[1]]));
    match (head.get(4), machine) {
        (Some(&CLASS_32), Some(X86)) => Err("a 32-bit program"),
        (Some(&CLASS_32), Some(X86_64)) => Err("an x32 program"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_test_holds_can_go_anywhere() {
        let me = std::process::id() as i32;
        let began = Surroundings::of(me, false);
        assert_eq!(verdict(&[me], &began), Ok(()));
        assert!(began.namespaces.iter().all(Option::is_some) && began.filters.is_some());
    }

    #[test]
    fn what_changed_is_named() {
        let began = Surroundings::of(std::process::id() as i32, false);
        let with = |change: &dyn Fn(&mut Surroundings)| {
            let mut now = began.clone();
            change(&mut now);
            began.changed(&now).unwrap_or_default()
        };
        assert_eq!(with(&|_| {}), "");
        assert!(with(&|now| now.namespaces[3] = Some(b"net:[1]".to_vec())).contains("network namespace"));
        assert!(with(&|now| now.root = Some(b"/srv/jail".to_vec())).contains("chroot to /srv/jail"));
        assert!(with(&|now| now.filters = now.filters.map(|count| count + 1)).contains("a seccomp filter"));
        assert_eq!(with(&|now| now.root = None), "");
    }

    #[test]
    fn programs_of_32_bits_are_told() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, bytes: &[u8]| {
            let path = directory.path().join(name);
            fs::write(&path, bytes).unwrap();
            path
        };
        let elf = |class: u8, machine: u8| [b"\x7fELF", &[class; 1][..], &[0; 13], &[machine, 0]].concat();
        let small = file("small", &elf(1, 3));
        assert_eq!(executable(&small), Err("a 32-bit program"));
        assert_eq!(executable(&file("x32", &elf(1, 62))), Err("an x32 program"));
        assert_eq!(executable(&file("usual", &elf(2, 62))), Ok(()));
        let script = file("script", format!("#! {} -x\n", small.display()).as_bytes());
        assert_eq!(executable(&script), Err("a 32-bit program"));
        let circle = directory.path().join("circle");
        fs::write(&circle, format!("#!{}\n", circle.display())).unwrap();
        assert_eq!(executable(&circle), Ok(()));
        assert_eq!(executable(&directory.path().join("none")), Ok(()));
        assert_eq!(executable(Path::new("/dev/null")), Ok(()));
    }
}
