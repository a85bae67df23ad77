#![allow(unsafe_code)] // kcmp(2) has no safe wrapper anywhere
//! Descriptors: what each slot of the table leads to, and which slots lead to the same open file.

use rustix::fs::Stat;

use super::{Malformed, hex, key_value, lines, number, octal, words};

/// One slot of a descriptor table.
#[derive(Clone, Debug)]
pub struct Descriptor {
    pub number: i32,
    /// Where `/proc/PID/fd/N` leads: a path, `socket:[INODE]`, `pipe:[INODE]`, `anon_inode:…`, `/memfd:…`.
    pub target: Vec<u8>,
    /// Of the open file itself, not of what its path leads to.
    pub stat: Stat,
    pub info: FdInfo,
}

/// `/proc/PID/fdinfo/N`, proc_pid_fdinfo(5).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FdInfo {
    /// The file offset.
    pub position: i64,
    /// `O_*`, the access mode included, without `O_CLOEXEC`: what belongs to the open file.
    pub flags: u32,
    /// `O_CLOEXEC`: what belongs to the slot.
    pub close_on_exec: bool,
    pub mount: Option<i32>,
    pub inode: Option<u64>,
    /// Record locks and leases held through it.
    pub locks: Vec<Lock>,
    pub details: FdDetails,
}

/// A lock on a file (`/proc/locks` form).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lock {
    /// `POSIX`, `FLOCK`, `OFDLCK`, `LEASE`, `DELEG`.
    pub kind: Vec<u8>,
    /// `READ`, `WRITE`, `UNLCK`.
    pub mode: Vec<u8>,
    /// Who holds it; -1 for `OFDLCK`, which belongs to the open file.
    pub pid: i32,
    pub start: u64,
    /// Inclusive; none: to the end of the file.
    pub end: Option<u64>,
}

/// What fdinfo has beyond that for some kinds of descriptors.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum FdDetails {
    /// Nothing: a file, a pipe, a socket.
    #[default]
    Plain,
    Eventfd {
        count: u64,
        /// `EFD_SEMAPHORE`.
        semaphore: bool,
    },
    /// What is watched.
    Epoll(Vec<EpollEntry>),
    Signalfd {
        /// Bit 0 is signal 1.
        mask: u64,
    },
    Timerfd(Timerfd),
    Inotify(Vec<InotifyWatch>),
    Pidfd {
        /// In our PID namespace; -1 if the process was reaped, 0 if it is not in our namespace.
        pid: i32,
    },
}

/// One registration with an epoll instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpollEntry {
    /// The number under which it was registered: the file may be open elsewhere, or nowhere, by now.
    pub number: i32,
    /// `EPOLL*`.
    pub events: u32,
    pub data: u64,
    pub inode: u64,
}

/// A timerfd's state. Times in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timerfd {
    /// `CLOCK_*`.
    pub clock: i32,
    /// Expirations that were not read yet.
    pub ticks: u64,
    /// `TFD_TIMER_*`.
    pub set_flags: u32,
    /// Until the next expiration; 0 if disarmed.
    pub value: u64,
    pub interval: u64,
}

/// One watch of an inotify instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InotifyWatch {
    pub descriptor: i32,
    pub inode: u64,
    /// The kernel's own encoding: 12 bits major, 20 bits minor.
    pub device: u64,
    /// `IN_*`.
    pub mask: u32,
}

impl FdInfo {
    /// Parses the file's bytes. Lines that only some drivers add are passed over.
    ///
    /// # Errors
    /// [`Malformed`]: a known line with an unknown form, or `flags` is missing.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut info = Self::default();
        let mut flags = None;
        for line in lines(bytes) {
            info.take(line, &mut flags)
                .ok_or_else(|| Malformed::new("fdinfo", line))?;
        }
        let flags = flags.ok_or_else(|| Malformed::new("fdinfo", bytes))?;
        info.close_on_exec = flags & libc::O_CLOEXEC.cast_unsigned() != 0;
        info.flags = flags & !libc::O_CLOEXEC.cast_unsigned();
        Ok(info)
    }

    fn take(&mut self, line: &[u8], flags: &mut Option<u32>) -> Option<()> {
        if let Some(watch) = line.strip_prefix(b"inotify ") {
            let watch = InotifyWatch::parse(watch)?;
            match &mut self.details {
                FdDetails::Inotify(watches) => watches.push(watch),
                details => *details = FdDetails::Inotify(vec![watch]),
            }
            return Some(());
        }
        let Some((key, value)) = key_value(line) else {
            return Some(());
        };
        match key {
            b"pos" => self.position = number(value)?,
            b"flags" => *flags = Some(octal(value)?),
            b"mnt_id" => self.mount = Some(number(value)?),
            b"ino" => self.inode = Some(number(value)?),
            b"lock" => self.locks.push(Lock::parse(value)?),
            b"eventfd-count" => {
                self.details = FdDetails::Eventfd {
                    count: hex(value)?,
                    semaphore: false,
                }
            }
            b"eventfd-semaphore" => {
                if let FdDetails::Eventfd { semaphore, .. } = &mut self.details {
                    *semaphore = number::<u32>(value)? != 0;
                }
            }
            b"tfd" => {
                let entry = EpollEntry::parse(value)?;
                match &mut self.details {
                    FdDetails::Epoll(entries) => entries.push(entry),
                    details => *details = FdDetails::Epoll(vec![entry]),
                }
            }
            b"sigmask" => self.details = FdDetails::Signalfd { mask: hex(value)? },
            b"Pid" => self.details = FdDetails::Pidfd { pid: number(value)? },
            b"clockid" => self.timer().clock = number(value)?,
            b"ticks" => self.timer().ticks = number(value)?,
            b"settime flags" => self.timer().set_flags = octal(value)?,
            b"it_value" => self.timer().value = nanoseconds(value)?,
            b"it_interval" => self.timer().interval = nanoseconds(value)?,
            _ => {}
        }
        Some(())
    }

    fn timer(&mut self) -> &mut Timerfd {
        if !matches!(self.details, FdDetails::Timerfd(_)) {
            self.details = FdDetails::Timerfd(Timerfd::default());
        }
        match &mut self.details {
            FdDetails::Timerfd(timer) => timer,
            _ => unreachable!("made one above"),
        }
    }
}

impl Lock {
    /// `1: POSIX  ADVISORY  WRITE 11418 fe:00:10010844 0 EOF`
    fn parse(line: &[u8]) -> Option<Self> {
        let fields: Vec<&[u8]> = words(line).filter(|word| *word != b"->").collect();
        let [_, kind, _, mode, pid, _, start, end] = fields[..] else {
            return None;
        };
        let end = if end == b"EOF" { None } else { Some(number(end)?) };
        Some(Self {
            kind: kind.to_vec(),
            mode: mode.to_vec(),
            pid: number(pid)?,
            start: number(start)?,
            end,
        })
    }
}

impl EpollEntry {
    /// `       3 events:       19 data:                3  pos:0 ino:40e sdev:10`
    fn parse(line: &[u8]) -> Option<Self> {
        // The number after a key may be padded with spaces, so a key alone is followed by its value.
        let mut words = words(line);
        let number = number(words.next()?)?;
        let (mut events, mut data, mut inode) = (None, None, None);
        while let Some(word) = words.next() {
            let (key, value) = key_value(word)?;
            let value = if value.is_empty() { words.next()? } else { value };
            match key {
                b"events" => events = Some(u32::try_from(hex(value)?).ok()?),
                b"data" => data = Some(hex(value)?),
                b"ino" => inode = Some(hex(value)?),
                _ => {}
            }
        }
        Some(Self {
            number,
            events: events?,
            data: data?,
            inode: inode.unwrap_or(0),
        })
    }
}

impl InotifyWatch {
    /// `wd:1 ino:3c4a7 sdev:fe00000 mask:2 ignored_mask:0 fhandle-bytes:8 …`
    fn parse(line: &[u8]) -> Option<Self> {
        let value = |wanted: &[u8]| hex(words(line).filter_map(key_value).find(|(key, _)| *key == wanted)?.1);
        Some(Self {
            descriptor: i32::try_from(value(b"wd")?).ok()?,
            inode: value(b"ino")?,
            device: value(b"sdev")?,
            mask: u32::try_from(value(b"mask")?).ok()?,
        })
    }
}

/// `(seconds, nanoseconds)`
fn nanoseconds(value: &[u8]) -> Option<u64> {
    let inner = value.strip_prefix(b"(")?.strip_suffix(b")")?;
    let comma = inner.iter().position(|byte| *byte == b',')?;
    let (seconds, rest) = (
        number::<u64>(&inner[..comma])?,
        number::<u64>(inner[comma + 1..].trim_ascii())?,
    );
    seconds.checked_mul(1_000_000_000)?.checked_add(rest)
}

/// Open files in the kernel's order, to find which slots lead to the same one.
///
/// Two slots that `dup`, `fork` or a passed descriptor made from one `open` share offset and flags, and must do so
/// again when rebuilt. Only the kernel can tell them from two `open`s of one file: `KCMP_FILE` gives an order on open
/// files (kcmp(2)), by which this needs log n comparisons for each. The processes must be stopped.
#[derive(Debug, Default)]
pub struct OpenFiles {
    /// One slot (process, number) of each open file, and the file's index.
    known: Vec<((i32, i32), usize)>,
}

impl OpenFiles {
    /// The index of the open file that a slot leads to; of one that was not seen before, `next`. A slot that may not be
    /// compared counts as separate.
    pub fn index(&mut self, slot: (i32, i32), next: usize) -> usize {
        let (mut low, mut high) = (0, self.known.len());
        while low < high {
            let middle = low + (high - low) / 2;
            match kcmp_file(slot, self.known[middle].0) {
                Some(std::cmp::Ordering::Equal) => return self.known[middle].1,
                Some(std::cmp::Ordering::Less) => high = middle,
                Some(std::cmp::Ordering::Greater) => low = middle + 1,
                None => return next,
            }
        }
        self.known.insert(low, (slot, next));
        next
    }
}

/// Whether two slots (process, number) lead to the same open file.
pub fn same_open_file(a: (i32, i32), b: (i32, i32)) -> bool {
    kcmp_file(a, b) == Some(std::cmp::Ordering::Equal)
}

/// The order of two open files; none if the kernel does not tell.
fn kcmp_file(a: (i32, i32), b: (i32, i32)) -> Option<std::cmp::Ordering> {
    const KCMP_FILE: i32 = 0;
    // SAFETY: kcmp takes five numbers and touches no memory of ours.
    match unsafe { libc::syscall(libc::SYS_kcmp, a.0, b.0, KCMP_FILE, a.1, b.1) } {
        0 => Some(std::cmp::Ordering::Equal),
        1 => Some(std::cmp::Ordering::Less),
        2 => Some(std::cmp::Ordering::Greater),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::super::{ProcDir, ProcError};
    use super::*;

    #[test]
    fn kinds_of_descriptors() {
        let parse = |rest: &str| FdInfo::parse(format!("pos:\t12\nflags:\t02100001\nmnt_id:\t27\n{rest}").as_bytes());
        let plain = parse("ino:\t99\n").unwrap();
        assert_eq!((plain.position, plain.mount, plain.inode), (12, Some(27), Some(99)));
        assert_eq!(
            (plain.flags, plain.close_on_exec, &plain.details),
            (0o100_001, true, &FdDetails::Plain)
        );

        let details = |rest: &str| parse(rest).unwrap().details;
        let eventfd = "eventfd-count:               1f\neventfd-id: 1\neventfd-semaphore: 1\n";
        assert_eq!(
            details(eventfd),
            FdDetails::Eventfd {
                count: 31,
                semaphore: true
            }
        );
        let entry = "tfd:        3 events:       19 data:               ff  pos:0 ino:40e sdev:10\n";
        let expected = EpollEntry {
            number: 3,
            events: 0x19,
            data: 255,
            inode: 0x40e,
        };
        assert_eq!(details(&entry.repeat(2)), FdDetails::Epoll(vec![expected; 2]));
        assert_eq!(
            details("sigmask:\t0000000000000204\n"),
            FdDetails::Signalfd { mask: 0x204 }
        );
        assert_eq!(details("Pid:\t-1\nNSpid:\t0\n"), FdDetails::Pidfd { pid: -1 });
        assert_eq!(
            details("clockid: 1\nticks: 4\nsettime flags: 01\nit_value: (99, 5)\nit_interval: (3, 7)\n"),
            FdDetails::Timerfd(Timerfd {
                clock: 1,
                ticks: 4,
                set_flags: 1,
                value: 99_000_000_005,
                interval: 3_000_000_007
            })
        );
        let watch =
            "inotify wd:a ino:3c4a7 sdev:fe00000 mask:2 ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:a7\n";
        let expected = InotifyWatch {
            descriptor: 10,
            inode: 0x3c4a7,
            device: 0xfe0_0000,
            mask: 2,
        };
        assert_eq!(details(watch), FdDetails::Inotify(vec![expected]));

        let locked = parse(
            "lock:\t1: POSIX  ADVISORY  WRITE 11418 fe:00:10 0 EOF\nlock:\t2: FLOCK  ADVISORY  READ -1 fe:00:10 5 9\n",
        );
        let locks = locked.unwrap().locks;
        assert_eq!(
            (&locks[0].kind[..], &locks[0].mode[..], locks[0].pid),
            (&b"POSIX"[..], &b"WRITE"[..], 11418)
        );
        assert_eq!(
            (locks[0].start, locks[0].end, locks[1].start, locks[1].end),
            (0, None, 5, Some(9))
        );

        for bad in [
            "tfd: x\n",
            "it_value: (99)\n",
            "lock:\t1:\n",
            "inotify wd:1\n",
            "flags:\t9\n",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert!(FdInfo::parse(b"pos:\t0\n").is_err());
    }

    #[test]
    fn descriptors_of_a_real_table() {
        let me = ProcDir::open(std::process::id().cast_signed()).unwrap();
        let mut file = tempfile::Builder::new().prefix("a\nb").tempfile().unwrap();
        std::io::Write::write_all(&mut file, b"hello").unwrap();
        let number = file.as_file().as_raw_fd();
        let descriptor = me.descriptor(number).unwrap();
        assert_eq!(descriptor.target, file.path().as_os_str().as_encoded_bytes());
        assert_eq!((descriptor.info.position, descriptor.stat.st_size), (5, 5));
        assert!(descriptor.info.close_on_exec);
        assert_eq!(descriptor.info.inode, Some(descriptor.stat.st_ino));
        let all = me.descriptors().unwrap();
        assert!(all.iter().any(|other| other.number == number));
        assert!(all.is_sorted_by_key(|descriptor| descriptor.number));
        assert!(matches!(me.descriptor(1 << 20), Err(ProcError::Read { .. })));
    }

    fn indices(slots: &[(i32, i32)]) -> Vec<usize> {
        let (mut files, mut count) = (OpenFiles::default(), 0);
        let index = |slot: &(i32, i32)| {
            let index = files.index(*slot, count);
            count = count.max(index + 1);
            index
        };
        slots.iter().map(index).collect()
    }

    #[test]
    fn open_files_are_told_apart() {
        let file = tempfile::tempfile().unwrap();
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let again: Vec<_> = (0..20).map(|_| std::fs::File::open(&path).unwrap()).collect();
        let copies: Vec<_> = again.iter().rev().map(|file| file.try_clone().unwrap()).collect();
        let pid = std::process::id().cast_signed();
        let slots: Vec<_> = again
            .iter()
            .chain(&copies)
            .map(|file| (pid, file.as_raw_fd()))
            .collect();
        let files = indices(&slots);
        assert_eq!(files[..20], (0..20).collect::<Vec<_>>());
        assert_eq!(files[20..], (0..20).rev().collect::<Vec<_>>());
        assert_eq!(
            indices(&[(-1, 0), (-1, 0), slots[0]]),
            [0, 1, 2],
            "what cannot be compared is separate"
        );
    }
}
