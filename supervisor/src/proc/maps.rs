//! The address space: `/proc/PID/maps` and `smaps`.

use std::ops::BitOr;

use super::{Malformed, hex, lines, number, words};

macro_rules! vm_flags {
    ($($name:ident $code:literal $doc:literal),* $(,)?) => {
        /// One flag of an area (`VmFlags:` of smaps).
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum VmFlag { $(#[doc = $doc] $name),* }

        /// The two letters of each flag: `show_smap_vma_flags()` in `fs/proc/task_mmu.c`.
        const CODES: &[(&[u8; 2], VmFlag)] = &[$(($code, VmFlag::$name)),*];
    };
}

vm_flags! {
    Read b"rd" "Readable.",
    Write b"wr" "Writable.",
    Execute b"ex" "Executable.",
    Shared b"sh" "Shared, and writable so.",
    MayRead b"mr" "May be made readable.",
    MayWrite b"mw" "May be made writable.",
    MayExecute b"me" "May be made executable.",
    MayShare b"ms" "Mapped with `MAP_SHARED`.",
    GrowsDown b"gd" "A stack that the kernel extends.",
    PfnMapped b"pf" "Page frames without `struct page`: device memory.",
    Locked b"lo" "`mlock`ed.",
    Io b"io" "Memory-mapped I/O.",
    Sequential b"sr" "`MADV_SEQUENTIAL`.",
    Random b"rr" "`MADV_RANDOM`.",
    DontCopy b"dc" "`MADV_DONTFORK`.",
    DontExpand b"de" "Cannot be extended with `mremap`.",
    LockOnFault b"lf" "Locked as its pages come (`MLOCK_ONFAULT`).",
    Account b"ac" "Counts against the overcommit limit.",
    NoReserve b"nr" "`MAP_NORESERVE`.",
    HugeTlb b"ht" "Of hugetlbfs.",
    Synchronous b"sf" "`MAP_SYNC`.",
    Architecture b"ar" "Meaning depends on the architecture.",
    WipeOnFork b"wf" "`MADV_WIPEONFORK`.",
    DontDump b"dd" "`MADV_DONTDUMP`.",
    SoftDirty b"sd" "Soft-dirty.",
    Mixed b"mm" "Page frames with and without `struct page`.",
    HugePage b"hg" "`MADV_HUGEPAGE`.",
    NoHugePage b"nh" "`MADV_NOHUGEPAGE`.",
    Mergeable b"mg" "`MADV_MERGEABLE`.",
    UffdMissing b"um" "A userfaultfd handles missing pages.",
    UffdWriteProtect b"uw" "A userfaultfd handles write protection.",
    UffdMinor b"ui" "A userfaultfd handles minor faults.",
    ShadowStack b"ss" "A shadow stack.",
    Sealed b"sl" "`mseal`ed.",
    Droppable b"dp" "`MAP_DROPPABLE`: the kernel may drop its pages, and the program expects that.",
    Unknown b"??" "A flag that this version does not know.",
}

/// A set of [`VmFlag`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VmFlags(u64);

impl VmFlags {
    /// Whether `flag` is in it.
    pub fn contains(self, flag: VmFlag) -> bool {
        self.0 & 1 << flag as u32 != 0
    }

    fn parse(codes: &[u8]) -> Self {
        let flag = |code| {
            CODES
                .iter()
                .find(|(known, _)| *known == code)
                .map_or(VmFlag::Unknown, |(_, flag)| *flag)
        };
        words(codes).fold(Self::default(), |flags, code| flags | flag(code))
    }
}

impl BitOr<VmFlag> for VmFlags {
    type Output = Self;

    fn bitor(self, flag: VmFlag) -> Self {
        Self(self.0 | 1 << flag as u32)
    }
}

/// One area of memory, as the kernel lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapsEntry {
    pub start: u64,
    /// Exclusive.
    pub end: u64,
    /// `PROT_READ | PROT_WRITE | PROT_EXEC`.
    pub protection: u32,
    /// `MAP_SHARED`.
    pub shared: bool,
    /// In bytes.
    pub offset: u64,
    /// As `st_dev` has it; on file systems with subvolumes (btrfs) it is not the one that `stat` reports.
    pub device: u64,
    /// 0 if no file is mapped.
    pub inode: u64,
    /// A path, or a name in brackets, or nothing. The kernel's `\012` for a newline is undone (a name that holds
    /// these four characters itself looks the same), and ` (deleted)` is taken off.
    pub path: Vec<u8>,
    /// The path ended in ` (deleted)`. A file's name may do so too: compare the inode where it matters.
    pub deleted: bool,
    /// Empty if it was read from `maps`.
    pub flags: VmFlags,
    /// Bytes of the kernel's pages (`KernelPageSize`); 0 if it was read from `maps`.
    pub page_size: u64,
    /// `ProtectionKey`; 0 where the CPU has none.
    pub key: u32,
}

/// What an area is made of, which says how it is dumped and rebuilt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Private memory; also a private mapping of `/dev/zero`, and huge pages without a file.
    Anonymous,
    /// The `brk` area.
    Heap,
    /// The initial thread's stack.
    Stack,
    /// Shared memory without a name (`MAP_SHARED | MAP_ANONYMOUS`).
    SharedAnonymous,
    /// A memfd.
    Memfd,
    /// A System V shared memory segment; its identifier is [`MapsEntry::inode`].
    SystemV,
    /// Any other file.
    File,
    /// The kernel's code in the process.
    Vdso,
    /// The kernel's data beside it.
    Vvar,
    /// The page at the top of the address space, the same in every process.
    Vsyscall,
    /// Something else that the kernel put there (`[uprobes]`, …).
    Special,
}

impl MapsEntry {
    /// What it is made of, by the names that the kernel gives (`get_vma_name()` in `fs/proc/task_mmu.c`, `ksys_mmap`
    /// and `shmem_kernel_file_setup` users). A file of the program's cannot pose as one of them by its name alone: the
    /// kernel's own have no directory in front, or are on a device without a number.
    pub fn backing(&self) -> Backing {
        let internal = self.deleted && libc::major(self.device) == 0;
        match &self.path[..] {
            b"" => Backing::Anonymous,
            b"[heap]" => Backing::Heap,
            b"[stack]" => Backing::Stack,
            b"[vdso]" => Backing::Vdso,
            b"[vvar]" | b"[vvar_vclock]" => Backing::Vvar,
            b"[vsyscall]" => Backing::Vsyscall,
            b"/dev/zero" if !self.shared && !self.deleted => Backing::Anonymous,
            b"/dev/zero" if internal => Backing::SharedAnonymous,
            b"/anon_hugepage" if internal && !self.shared => Backing::Anonymous,
            b"/anon_hugepage" if internal => Backing::SharedAnonymous,
            path if path.starts_with(b"[anon:") => Backing::Anonymous,
            path if path.starts_with(b"[anon_shmem:") => Backing::SharedAnonymous,
            path if path.starts_with(b"[") => Backing::Special,
            path if path.starts_with(b"/memfd:") && internal => Backing::Memfd,
            path if path.starts_with(b"/SYSV") && internal => Backing::SystemV,
            _ => Backing::File,
        }
    }

    /// Whether it is the kernel's own: [`Backing::Vdso`] and what follows it.
    pub fn kernels(&self) -> bool {
        use Backing::{Special, Vdso, Vsyscall, Vvar};
        matches!(self.backing(), Vdso | Vvar | Vsyscall | Special)
    }

    fn parse(line: &[u8]) -> Option<Self> {
        // start-end perms offset major:minor inode, each followed by one space; then padding, then the path, which
        // may hold anything but starts with neither space.
        let mut rest = line;
        let mut field = || {
            let space = rest.iter().position(|byte| *byte == b' ').unwrap_or(rest.len());
            let (field, after) = rest.split_at(space);
            rest = after.get(1..).unwrap_or_default();
            field
        };
        let (range, permissions, offset, device, inode) = (field(), field(), field(), field(), field());
        let [read, write, execute, share] = permissions.try_into().ok()?;
        let split = |bytes: &[u8], by: u8| -> Option<(u64, u64)> {
            let middle = bytes.iter().position(|byte| *byte == by)?;
            Some((hex(&bytes[..middle])?, hex(&bytes[middle + 1..])?))
        };
        let (start, end) = split(range, b'-')?;
        let (major, minor) = split(device, b':')?;
        let bit = |byte, letter, bit: i32| if byte == letter { bit.cast_unsigned() } else { 0 };
        let path = unescaped(rest.trim_ascii_start());
        let whole = path.strip_suffix(b" (deleted)");
        Some(Self {
            start,
            end: (end > start).then_some(end)?,
            protection: bit(read, b'r', libc::PROT_READ)
                | bit(write, b'w', libc::PROT_WRITE)
                | bit(execute, b'x', libc::PROT_EXEC),
            shared: share == b's',
            offset: hex(offset)?,
            device: libc::makedev(u32::try_from(major).ok()?, u32::try_from(minor).ok()?),
            inode: number(inode)?,
            deleted: whole.is_some(),
            path: whole.map(<[u8]>::to_vec).unwrap_or(path),
            flags: VmFlags::default(),
            page_size: 0,
            key: 0,
        })
    }
}

/// Parses `/proc/PID/maps` or `/proc/PID/smaps`: the areas, ascending as the kernel lists them.
///
/// # Errors
/// [`Malformed`].
pub fn parse(bytes: &[u8]) -> Result<Vec<MapsEntry>, Malformed> {
    let mut entries: Vec<MapsEntry> = Vec::new();
    for line in lines(bytes) {
        // The lines that smaps adds start with a capital letter, an area's with its address in lower case.
        if !line[0].is_ascii_uppercase() {
            entries.push(MapsEntry::parse(line).ok_or_else(|| Malformed::new("smaps", line))?);
        } else if let Some(entry) = entries.last_mut() {
            if let Some(codes) = line.strip_prefix(b"VmFlags:") {
                entry.flags = VmFlags::parse(codes);
            } else if let Some(size) = line.strip_prefix(b"KernelPageSize:") {
                entry.page_size = words(size).next().and_then(number).unwrap_or(0) << 10;
            } else if let Some(key) = line.strip_prefix(b"ProtectionKey:") {
                entry.key = words(key).next().and_then(number).unwrap_or(0);
            }
        }
    }
    Ok(entries)
}

/// Undoes what `seq_file_path()` does to newlines in paths.
fn unescaped(path: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(path.len());
    let mut rest = path;
    while let [first, after @ ..] = rest {
        if let Some(after) = rest.strip_prefix(b"\\012") {
            plain.push(b'\n');
            rest = after;
        } else {
            plain.push(*first);
            rest = after;
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(line: &[u8]) -> MapsEntry {
        parse(line).unwrap().remove(0)
    }

    #[test]
    fn a_line_of_maps() {
        let entry = one(b"7f00-7fff r-xs 00001000 fe:02 1234                       /tmp/a  b\\012c\xff (deleted) \n");
        assert_eq!(
            (entry.start, entry.end, entry.offset, entry.inode),
            (0x7f00, 0x7fff, 0x1000, 1234)
        );
        assert_eq!(entry.protection, (libc::PROT_READ | libc::PROT_EXEC).cast_unsigned());
        assert_eq!((entry.shared, entry.device), (true, libc::makedev(0xfe, 2)));
        assert_eq!(
            (&entry.path[..], entry.deleted),
            (&b"/tmp/a  b\nc\xff (deleted) "[..], false)
        );
        assert_eq!(one(b"1000-2000 ---p 00000000 00:00 0 \n").path, b"");
        for bad in [
            "x",
            "1000-2000",
            "1000 r--p 0 0:0 0",
            "2000-1000 r--p 0 0:0 0",
            "1000-2000 r--pp 0 0:0 0 ",
        ] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_areas_are_made_of() {
        let backing = |permissions: &str, device: &str, name: &str| {
            one(format!("1000-2000 {permissions} 00000000 {device} 5   {name}\n").as_bytes()).backing()
        };
        for (permissions, device, name, expected) in [
            ("rw-p", "00:00", "", Backing::Anonymous),
            ("rw-p", "00:00", "[heap]", Backing::Heap),
            ("rw-p", "00:00", "[stack]", Backing::Stack),
            ("r-xp", "00:00", "[vdso]", Backing::Vdso),
            ("r--p", "00:00", "[vvar]", Backing::Vvar),
            ("r--p", "00:00", "[vvar_vclock]", Backing::Vvar),
            ("--xp", "00:00", "[vsyscall]", Backing::Vsyscall),
            ("--xp", "00:00", "[uprobes]", Backing::Special),
            ("rw-p", "00:00", "[anon:name]", Backing::Anonymous),
            ("rw-s", "00:01", "[anon_shmem:name]", Backing::SharedAnonymous),
            ("rw-s", "00:01", "/dev/zero (deleted)", Backing::SharedAnonymous),
            ("rw-p", "00:05", "/dev/zero", Backing::Anonymous),
            ("rw-s", "00:01", "/memfd:x y (deleted)", Backing::Memfd),
            ("rw-s", "fe:00", "/memfd:x (deleted)", Backing::File),
            ("rw-s", "00:01", "/SYSV00000000 (deleted)", Backing::SystemV),
            ("rw-s", "fe:00", "/SYSVx", Backing::File),
            ("rw-p", "00:0f", "/anon_hugepage (deleted)", Backing::Anonymous),
            ("rw-s", "00:0f", "/anon_hugepage (deleted)", Backing::SharedAnonymous),
            ("r--p", "fe:00", "/lib/[heap]", Backing::File),
            ("rw-s", "00:0e", "anon_inode:[perf_event]", Backing::File),
        ] {
            assert_eq!(backing(permissions, device, name), expected, "{name}");
        }
    }

    #[test]
    fn flags() {
        let sample = b"1000-3000 rw-p 00000000 00:00 0                          [stack]\nSize:   8 kB\n\
            ProtectionKey:  0\nVmFlags: rd wr mr mw me gd ac wf dd lo zz \n\
            4000-5000 r--p 00002000 fe:00 77                         /lib/x\nVmFlags: rd mr nh\n\
            7000-9000 r-xp 00000000 00:00 0                          [vdso]\nVmFlags: rd ex\n";
        let entries = parse(sample).unwrap();
        assert_eq!(entries.len(), 3);
        assert!(entries[0].flags.contains(VmFlag::Unknown) && !entries[1].flags.contains(VmFlag::Unknown));
        assert!(!entries[0].flags.contains(VmFlag::Execute));
        assert!(!entries[1].kernels() && entries[2].kernels());
    }

    #[test]
    fn every_code_stands_for_one_flag() {
        assert!(CODES.len() <= 64);
        for (index, (code, flag)) in CODES.iter().enumerate() {
            assert_eq!(*flag as usize, index);
            assert!(CODES.iter().skip(index + 1).all(|(other, _)| other != code));
        }
    }
}
