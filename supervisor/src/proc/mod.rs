//! What the kernel says of a target in `/proc/PID`, read so that the target cannot blind or crash us.
//!
//! ```text
//!   ProcDir ─┬─ stat, status, limits, …     stat.rs   one process or thread in numbers
//!            ├─ maps, smaps                 maps.rs   its address space
//!            └─ fd, fdinfo, kcmp            fds.rs    its descriptors, and which of them are one open file
//! ```
//!
//! A target chooses its name, its paths and the names of its mappings, in any bytes. So everything is parsed as bytes,
//! what the target chose stays bytes, and a line that is not understood is an error that names it, never a panic.
//! The `procfs` crate is not used here for that reason: it wants UTF-8, and panics on some names.
//!
//! Source: proc(5) and its parts, `fs/proc/` of the kernel.

pub mod fds;
pub mod maps;
pub mod stat;

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::str::FromStr;

use rustix::fs::{AtFlags, Dir, Mode, OFlags};
use rustix::io::Errno;

pub use fds::{Descriptor, FdDetails, FdInfo};
pub use maps::{Backing, MapsEntry, VmFlag, VmFlags};
pub use stat::{Stat, Status, SyscallState, TimerInfo};

/// Why something about a process could not be found out.
#[derive(Debug, thiserror::Error)]
pub enum ProcError {
    /// It has ended and was reaped: an event, not a failure.
    #[error("process {0} is gone")]
    Gone(i32),
    /// The kernel refused.
    #[error("cannot read {file} of process {pid} in /proc: {source}")]
    Read {
        /// Whose.
        pid: i32,
        /// Below `/proc/PID`.
        file: String,
        /// As the kernel gave it; `EACCES` and `EPERM` mean that we may not trace it.
        source: io::Error,
    },
    /// The kernel said something that this version does not know.
    #[error("{malformed} (process {pid}); a newer version of vrun may know this kernel")]
    Malformed {
        /// Whose.
        pid: i32,
        /// Where and what.
        malformed: Malformed,
    },
}

/// A line of a `/proc` file that is not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{line:?} in /proc file {file} is not understood")]
pub struct Malformed {
    /// Below `/proc/PID`.
    pub file: &'static str,
    /// The line, cut to a readable length.
    pub line: String,
}

impl Malformed {
    fn new(file: &'static str, line: &[u8]) -> Self {
        Self {
            file,
            line: String::from_utf8_lossy(&line[..line.len().min(200)]).into_owned(),
        }
    }
}

/// `/proc/PID`, or `/proc/PID/task/TID`, held open: it stays the same process even if the number is used again.
#[derive(Debug)]
pub struct ProcDir {
    pid: i32,
    directory: OwnedFd,
}

impl ProcDir {
    /// Opens the directory of a process.
    ///
    /// # Errors
    /// [`ProcError::Gone`] if there is none.
    pub fn open(pid: i32) -> Result<Self, ProcError> {
        Self::open_at(rustix::fs::CWD, &format!("/proc/{pid}"), pid)
    }

    /// The directory of the thread `tid` of this process: it has the same files, of which `stat`, `status`, `syscall`
    /// and `comm` are the thread's own.
    ///
    /// # Errors
    /// [`ProcError::Gone`] if there is no such thread any more.
    pub fn thread(&self, tid: i32) -> Result<Self, ProcError> {
        Self::open_at(self.directory.as_fd(), &format!("task/{tid}"), tid)
    }

    fn open_at(at: BorrowedFd<'_>, path: &str, pid: i32) -> Result<Self, ProcError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::openat(at, path, flags, Mode::empty()) {
            Ok(directory) => Ok(Self { pid, directory }),
            Err(Errno::NOENT | Errno::SRCH) => Err(ProcError::Gone(pid)),
            Err(errno) => Err(ProcError::Read {
                pid,
                file: ".".to_owned(),
                source: errno.into(),
            }),
        }
    }

    /// The process or thread that this is about.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The directory, for `*at` calls. An `O_PATH` descriptor.
    pub fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// The whole file at `file`, below the directory.
    ///
    /// # Errors
    /// [`ProcError::Gone`], [`ProcError::Read`].
    pub fn read(&self, file: &str) -> Result<Vec<u8>, ProcError> {
        let mut bytes = Vec::new();
        rustix::fs::openat(&self.directory, file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(io::Error::from)
            .and_then(|file| std::fs::File::from(file).read_to_end(&mut bytes))
            .map_err(|error| self.failed(file, error))?;
        Ok(bytes)
    }

    /// Where the link at `file` leads, as the kernel prints it.
    ///
    /// # Errors
    /// [`ProcError::Gone`], [`ProcError::Read`].
    pub fn read_link(&self, file: &str) -> Result<Vec<u8>, ProcError> {
        rustix::fs::readlinkat(&self.directory, file, Vec::new())
            .map(std::ffi::CString::into_bytes)
            .map_err(|errno| self.failed(file, errno.into()))
    }

    /// The numbers that name the entries of the directory at `file`, ascending: `fd`, `task`.
    ///
    /// # Errors
    /// [`ProcError::Gone`], [`ProcError::Read`].
    pub fn list(&self, file: &str) -> Result<Vec<i32>, ProcError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut numbers = Vec::new();
        let mut read = || -> rustix::io::Result<()> {
            let directory = rustix::fs::openat(&self.directory, file, flags, Mode::empty())?;
            for entry in Dir::new(directory)? {
                numbers.extend(number::<i32>(entry?.file_name().to_bytes()));
            }
            Ok(())
        };
        read().map_err(|errno| self.failed(file, errno.into()))?;
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// `/proc/PID/stat`.
    ///
    /// # Errors
    /// [`ProcError`]; so all below.
    pub fn stat(&self) -> Result<Stat, ProcError> {
        self.parsed(Stat::parse(&self.read("stat")?))
    }

    /// `/proc/PID/status`.
    pub fn status(&self) -> Result<Status, ProcError> {
        self.parsed(Status::parse(&self.read("status")?))
    }

    /// The address space, without flags ([`MapsEntry::flags`] is empty). Cheaper than [`ProcDir::smaps`].
    pub fn maps(&self) -> Result<Vec<MapsEntry>, ProcError> {
        self.parsed(maps::parse(&self.read("maps")?))
    }

    /// The address space with the flags of each area. The kernel visits every page table entry for it.
    pub fn smaps(&self) -> Result<Vec<MapsEntry>, ProcError> {
        self.parsed(maps::parse(&self.read("smaps")?))
    }

    /// The resource limits, `RLIMIT_*` in numeric order.
    pub fn limits(&self) -> Result<Vec<vrun_image::state::Limit>, ProcError> {
        self.parsed(stat::parse_limits(&self.read("limits")?))
    }

    /// The system call that a thread is in.
    pub fn syscall(&self) -> Result<SyscallState, ProcError> {
        self.parsed(SyscallState::parse(&self.read("syscall")?))
    }

    /// The execution domain and its flags (`ADDR_NO_RANDOMIZE`, …).
    pub fn personality(&self) -> Result<u64, ProcError> {
        let bytes = self.read("personality")?;
        self.parsed(hex(trim(&bytes)).ok_or_else(|| Malformed::new("personality", &bytes)))
    }

    /// The timers of `timer_create(2)`, the newest first.
    pub fn timers(&self) -> Result<Vec<TimerInfo>, ProcError> {
        self.parsed(TimerInfo::parse(&self.read("timers")?))
    }

    /// The CPU time of a thread, in nanoseconds: the first number of `schedstat` (`CONFIG_SCHED_INFO`).
    pub fn run_time(&self) -> Result<u64, ProcError> {
        let bytes = self.read("schedstat")?;
        let time = words(&bytes).next().and_then(number);
        self.parsed(time.ok_or_else(|| Malformed::new("schedstat", &bytes)))
    }

    /// Bytes that were read from and written to storage for it (`io`, proc_pid_io(5)).
    pub fn transferred(&self) -> Result<[u64; 2], ProcError> {
        let bytes = self.read("io")?;
        let find = |key: &[u8]| lines(&bytes).find_map(|line| number(key_value(line).filter(|pair| pair.0 == key)?.1));
        let found = [b"read_bytes".as_slice(), b"write_bytes"].map(|key| find(key).unwrap_or(0));
        Ok(found)
    }

    /// `/proc/PID/coredump_filter`, core(5).
    pub fn core_filter(&self) -> Result<u32, ProcError> {
        let bytes = self.read("coredump_filter")?;
        let filter = hex(trim(&bytes)).and_then(|filter| u32::try_from(filter).ok());
        self.parsed(filter.ok_or_else(|| Malformed::new("coredump_filter", &bytes)))
    }

    /// `/proc/PID/oom_score_adj`.
    pub fn oom_score(&self) -> Result<i32, ProcError> {
        let bytes = self.read("oom_score_adj")?;
        self.parsed(number(trim(&bytes)).ok_or_else(|| Malformed::new("oom_score_adj", &bytes)))
    }

    /// The auxiliary vector, as it lies in memory.
    pub fn auxv(&self) -> Result<Vec<u8>, ProcError> {
        self.read("auxv")
    }

    /// The arguments. What the program made of the area where they were: it may hold anything.
    pub fn command_line(&self) -> Result<Vec<Vec<u8>>, ProcError> {
        let bytes = self.read("cmdline")?;
        let bytes = bytes.strip_suffix(b"\0").unwrap_or(&bytes);
        if bytes.is_empty() {
            Ok(Vec::new())
        } else {
            Ok(bytes.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect())
        }
    }

    /// The thread's name, at most 15 bytes.
    pub fn name(&self) -> Result<Vec<u8>, ProcError> {
        let mut bytes = self.read("comm")?;
        // The kernel adds one newline; the name may have had others.
        bytes.pop_if(|byte| *byte == b'\n');
        Ok(bytes)
    }

    /// Where `exe` leads; ends in ` (deleted)` if the file was.
    pub fn executable(&self) -> Result<Vec<u8>, ProcError> {
        self.read_link("exe")
    }

    /// Where `cwd` leads; ends in ` (deleted)` if the directory was.
    pub fn working_directory(&self) -> Result<Vec<u8>, ProcError> {
        self.read_link("cwd")
    }

    /// The threads, ascending.
    pub fn threads(&self) -> Result<Vec<i32>, ProcError> {
        self.list("task")
    }

    /// The children of every thread, ascending. Complete only while the process is stopped.
    pub fn children(&self) -> Result<Vec<i32>, ProcError> {
        let mut children = Vec::new();
        for tid in self.threads()? {
            let bytes = match self.thread(tid).and_then(|thread| thread.read("children")) {
                Err(ProcError::Gone(_)) => continue,
                other => other?,
            };
            children.extend(words(&bytes).filter_map(number::<i32>));
        }
        children.sort_unstable();
        Ok(children)
    }

    /// The descriptor table, ascending by number. A slot that is closed meanwhile is left out.
    pub fn descriptors(&self) -> Result<Vec<Descriptor>, ProcError> {
        let mut descriptors = Vec::new();
        for number in self.list("fd")? {
            match self.descriptor(number) {
                Err(ProcError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                other => descriptors.push(other?),
            }
        }
        Ok(descriptors)
    }

    /// One descriptor.
    ///
    /// # Errors
    /// [`ProcError::Read`] with `ENOENT` if the slot is empty.
    pub fn descriptor(&self, number: i32) -> Result<Descriptor, ProcError> {
        let path = format!("fd/{number}");
        let target = self.read_link(&path)?;
        // Through the magic link: the open file itself, whatever its path leads to by now.
        let stat = rustix::fs::statat(&self.directory, &path, AtFlags::empty())
            .map_err(|errno| self.failed(&path, errno.into()))?;
        let info = self.parsed(FdInfo::parse(&self.read(&format!("fdinfo/{number}"))?))?;
        Ok(Descriptor {
            number,
            target,
            stat,
            info,
        })
    }

    fn parsed<T>(&self, result: Result<T, Malformed>) -> Result<T, ProcError> {
        result.map_err(|malformed| ProcError::Malformed {
            pid: self.pid,
            malformed,
        })
    }

    /// A file of a process that has ended fails with ESRCH or, looked up by name, with ENOENT; the latter may as well
    /// be a file that this kernel does not have, so ask after one that always exists.
    fn failed(&self, file: &str, source: io::Error) -> ProcError {
        let gone = match source.raw_os_error() {
            Some(libc::ESRCH) => true,
            Some(libc::ENOENT) => rustix::fs::statat(&self.directory, "stat", AtFlags::empty()).is_err(),
            _ => false,
        };
        if gone {
            ProcError::Gone(self.pid)
        } else {
            ProcError::Read {
                pid: self.pid,
                file: file.to_owned(),
                source,
            }
        }
    }
}

/// The lines of a file, without their ends.
fn lines(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty())
}

/// What white space separates.
fn words(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty())
}

/// `key: value` → (`key`, `value` without white space around it).
fn key_value(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    Some((&line[..colon], trim(&line[colon + 1..])))
}

fn trim(bytes: &[u8]) -> &[u8] {
    bytes.trim_ascii()
}

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

/// A decimal number.
fn number<T: FromStr>(bytes: &[u8]) -> Option<T> {
    text(bytes)?.parse().ok()
}

/// A hexadecimal number, with or without `0x`.
fn hex(bytes: &[u8]) -> Option<u64> {
    u64::from_str_radix(text(bytes.strip_prefix(b"0x").unwrap_or(bytes))?, 16).ok()
}

/// An octal number.
fn octal(bytes: &[u8]) -> Option<u32> {
    u32::from_str_radix(text(bytes)?, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_itself() {
        let me = ProcDir::open(std::process::id().cast_signed()).unwrap();
        let (stat, status) = (me.stat().unwrap(), me.status().unwrap());
        assert_eq!((stat.pid, stat.parent), (me.pid(), status.parent));
        assert!(stat.threads >= 1 && me.threads().unwrap().contains(&me.pid()));
        assert_eq!(
            me.executable().unwrap(),
            std::env::current_exe().unwrap().into_os_string().into_encoded_bytes()
        );
        assert_eq!(me.command_line().unwrap().len(), std::env::args().len());
        assert_eq!(me.auxv().unwrap().len() % 16, 0);
        assert!(me.timers().unwrap().is_empty());
        assert!(!me.name().unwrap().is_empty());
        me.personality().unwrap();
        let limits = me.limits().unwrap();
        let files = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        assert_eq!(
            limits[libc::RLIMIT_NOFILE as usize].soft,
            files.current.unwrap_or(u64::MAX)
        );
        let (maps, smaps) = (me.maps().unwrap(), me.smaps().unwrap());
        assert!(maps.iter().any(|entry| entry.backing() == Backing::Stack));
        assert!(
            smaps
                .iter()
                .any(|entry| entry.backing() == Backing::Vdso && entry.flags.contains(VmFlag::MayRead))
        );
        let tid = rustix::thread::gettid().as_raw_nonzero().get();
        assert_eq!(
            me.thread(tid).unwrap().syscall().unwrap().number(),
            Some(libc::SYS_read)
        );
    }

    #[test]
    fn a_process_that_ended_is_gone() {
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let directory = ProcDir::open(child.id().cast_signed()).unwrap();
        assert_eq!(directory.status().unwrap().parent, std::process::id().cast_signed());
        assert!(
            ProcDir::open(std::process::id().cast_signed())
                .unwrap()
                .children()
                .unwrap()
                .contains(&directory.pid())
        );
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(matches!(directory.stat(), Err(ProcError::Gone(_))));
        assert!(matches!(directory.read_link("exe"), Err(ProcError::Gone(_))));
        assert!(matches!(directory.descriptors(), Err(ProcError::Gone(_))));
        assert!(matches!(ProcDir::open(directory.pid()), Err(ProcError::Gone(_))));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_a_parser_panic(bytes: Vec<u8>) {
            parse_all(&bytes);
        }

        /// Damaged real files get further into the parsers than noise does.
        #[test]
        fn no_damage_makes_a_parser_panic(file in 0_usize..8, place: usize, cut: usize, byte: u8) {
            let names = ["stat", "status", "smaps", "limits", "syscall", "fdinfo/0", "maps", "fdinfo/1"];
            let mut bytes = std::fs::read(format!("/proc/self/{}", names[file])).unwrap();
            let length = bytes.len();
            bytes[place % length] = byte;
            parse_all(&bytes);
            parse_all(&bytes[..cut % length]);
            parse_all(&bytes[cut % length..]);
        }
    }

    fn parse_all(bytes: &[u8]) {
        let _ = Stat::parse(bytes);
        let _ = Status::parse(bytes);
        let _ = stat::parse_limits(bytes);
        let _ = SyscallState::parse(bytes);
        let _ = FdInfo::parse(bytes);
        for entry in maps::parse(bytes).into_iter().flatten() {
            let _ = (entry.backing(), crate::areas::reason(&entry));
        }
    }
}
