//! Areas of memory: what can be taken along, what they are made from, and how they are made again.
//!
//! ```text
//!   reason           what cannot be captured, by name
//!   capture          an area as an image keeps it
//!   ────────────────
//!   map_steps        mapped with their final protection, still empty
//!   property_steps   once the contents are in: advice, locks
//!   boundary_steps   brk, arguments, auxiliary vector, executable
//! ```

use crate::proc::{Backing, MapsEntry, VmFlag};
use vrun_image::state::{Area, AreaKind, FileMapping, Layout, Memory};
use vrun_shim::{Expect, Script};

/// Why an area cannot be captured.
pub fn reason(entry: &MapsEntry) -> Option<String> {
    let name = String::from_utf8_lossy(&entry.path);
    let at = format!("{:#x}-{:#x}", entry.start, entry.end);
    let has = |flag| entry.flags.contains(flag);
    if has(VmFlag::Io) || has(VmFlag::PfnMapped) {
        // The kernel's own areas are of this kind too.
        return (entry.backing() == Backing::File).then(|| format!("it has the device {name} mapped at {at}"));
    }
    if has(VmFlag::HugeTlb) {
        return Some(format!("it uses huge pages (hugetlb) at {at}"));
    }
    if has(VmFlag::UffdMissing) || has(VmFlag::UffdWriteProtect) || has(VmFlag::UffdMinor) {
        return Some(format!("it handles its own page faults (userfaultfd) at {at}"));
    }
    if has(VmFlag::ShadowStack) {
        return Some(format!("it has a shadow stack at {at}"));
    }
    match entry.backing() {
        Backing::SystemV => Some(format!("it has System V shared memory attached at {at}")),
        Backing::File | Backing::Memfd if entry.shared && has(VmFlag::MayWrite) => {
            Some(format!("it has {name} mapped shared and writable at {at}"))
        }
        _ => None,
    }
}

/// An area as an image keeps it; none if it is the kernel's own. A shared read-only mapping of a file becomes a private
/// copy.
pub fn capture(entry: &MapsEntry) -> Option<Area> {
    let mut area = area_of(entry)?;
    area.shared = entry.backing() == Backing::SharedAnonymous;
    Some(area)
}

/// The area as an image keeps it; none if it is the kernel's own ([`MapsEntry::kernels`]).
///
/// Shared memory without a path in the file system becomes a file mapping (memfd, System V) or shared anonymous
/// memory: whether it can go along is for the caller to decide, who knows who else has it.
fn area_of(entry: &MapsEntry) -> Option<Area> {
    let kind = match entry.backing() {
        Backing::Anonymous | Backing::SharedAnonymous => AreaKind::Anonymous,
        Backing::Heap => AreaKind::Heap,
        Backing::Stack => AreaKind::Stack,
        Backing::File | Backing::Memfd | Backing::SystemV => AreaKind::File(FileMapping {
            path: entry.path.clone(),
            offset: entry.offset,
            device: entry.device,
            inode: entry.inode,
            object: 0,
        }),
        Backing::Vdso | Backing::Vvar | Backing::Vsyscall | Backing::Special => return None,
    };
    let advice = [
        (VmFlag::Sequential, libc::MADV_SEQUENTIAL),
        (VmFlag::Random, libc::MADV_RANDOM),
        (VmFlag::DontCopy, libc::MADV_DONTFORK),
        (VmFlag::Mergeable, libc::MADV_MERGEABLE),
        (VmFlag::HugePage, libc::MADV_HUGEPAGE),
        (VmFlag::NoHugePage, libc::MADV_NOHUGEPAGE),
        (VmFlag::DontDump, libc::MADV_DONTDUMP),
        // The kernel wipes droppable memory on fork; rebuilt as ordinary memory it must be told to.
        (VmFlag::WipeOnFork, libc::MADV_WIPEONFORK),
    ];
    Some(Area {
        start: entry.start,
        end: entry.end,
        protection: entry.protection,
        kind,
        shared: entry.shared,
        grows_down: entry.flags.contains(VmFlag::GrowsDown),
        no_reserve: entry.flags.contains(VmFlag::NoReserve),
        locked: entry.flags.contains(VmFlag::Locked),
        advice: advice
            .iter()
            .filter(|(flag, _)| entry.flags.contains(*flag))
            .map(|(_, advice)| *advice)
            .collect(),
        locked_on_fault: false,
        guards: Vec::new(),
        huge_page: 0,
        key: 0,
        name: None,
        droppable: false,
        sealed: false,
    })
}

/// Maps areas, still empty.
pub fn map_steps(script: &mut Script, areas: &[Area]) {
    areas.iter().for_each(|area| map_area(script, area));
}

/// Maps private or shared memory without a file.
pub fn map(script: &mut Script, what: &str, start: u64, length: u64, protection: i32, flags: i32) {
    let sharing = if flags & libc::MAP_SHARED != 0 {
        0
    } else {
        libc::MAP_PRIVATE
    };
    let flags = flags | sharing | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    let arguments = [start, length, protection as u64, flags as u64, u64::MAX, 0];
    let what = format!("map {what} at {start:#x}, {length} bytes");
    script.step(what, libc::SYS_mmap, &arguments, Expect::Exactly(start));
}

fn map_area(script: &mut Script, area: &Area) {
    let mut flags = 0;
    let mut protection = area.protection as i32;
    if area.grows_down {
        flags |= libc::MAP_GROWSDOWN;
    }
    if area.no_reserve {
        flags |= libc::MAP_NORESERVE;
    }
    if area.shared {
        flags |= libc::MAP_SHARED;
        protection |= libc::PROT_WRITE; // shared memory is written only where it is writable; see property_steps
    }
    let what = match &area.kind {
        AreaKind::Anonymous => "memory".to_owned(),
        AreaKind::Heap => "the heap".to_owned(),
        AreaKind::Stack => "the stack".to_owned(),
        AreaKind::Shared { .. } => "shared memory".to_owned(),
        AreaKind::File(file) => String::from_utf8_lossy(&file.path).into_owned(),
    };
    map(script, &what, area.start, area.end - area.start, protection, flags);
}

/// What areas have beside their contents, which are in.
pub fn property_steps(script: &mut Script, areas: &[Area]) {
    for area in areas {
        let (start, length) = (area.start, area.end - area.start);
        let at = format!("{start:#x}-{:#x}", area.end);
        if area.shared && area.protection as i32 & libc::PROT_WRITE == 0 {
            let arguments = [start, length, u64::from(area.protection)];
            script.call(format_args!("protect {at}"), libc::SYS_mprotect, &arguments);
        }
        for advice in &area.advice {
            // Advice is a wish: another kernel may not know it.
            let arguments = [start, length, *advice as u64];
            script.step(
                format_args!("advise on {at}"),
                libc::SYS_madvise,
                &arguments,
                Expect::Anything,
            );
        }
        if area.locked {
            script.call(format_args!("lock {at}"), libc::SYS_mlock, &[start, length]);
        }
    }
}

/// The boundaries of a process, its auxiliary vector, and what `/proc/PID/exe` shows: `executable` is a descriptor of the
/// process, closed after that.
pub fn boundary_steps(script: &mut Script, memory: &Memory, executable: Option<i32>) {
    let auxv = script.data(&memory.auxv);
    let set = |script: &mut Script, executable: i32, expect: Expect| {
        let map = mm_map(&memory.layout, auxv, memory.auxv.len(), executable);
        let (address, length) = (script.data(&map), map.len() as u64);
        let arguments = [libc::PR_SET_MM as u64, libc::PR_SET_MM_MAP as u64, address, length];
        script.step("set the boundaries of memory", libc::SYS_prctl, &arguments, expect);
    };
    set(script, -1, Expect::Success);
    if let Some(descriptor) = executable {
        // Needs CAP_CHECKPOINT_RESTORE in our namespace and an executable file; only /proc/PID/exe depends on it.
        set(script, descriptor, Expect::Anything);
        script.call("close the executable", libc::SYS_close, &[descriptor as u64]);
    }
}

/// `struct prctl_mm_map` (`linux/prctl.h`).
fn mm_map(layout: &Layout, auxv: u64, auxv_length: usize, executable: i32) -> Vec<u8> {
    let words = [
        layout.start_code,
        layout.end_code,
        layout.start_data,
        layout.end_data,
        layout.start_brk,
        layout.brk,
        layout.start_stack,
        layout.arg_start,
        layout.arg_end,
        layout.env_start,
        layout.env_end,
        auxv,
        auxv_length as u64 | u64::from(executable as u32) << 32,
    ];
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc::maps;

    #[test]
    fn areas_of_entries() {
        let sample = b"1000-3000 rw-p 00000000 00:00 0                          [stack]\nSize:   8 kB\n\
            ProtectionKey:  0\nVmFlags: rd wr mr mw me gd ac wf dd lo \n\
            4000-5000 r--p 00002000 fe:00 77                         /lib/x\nVmFlags: rd mr nh\n\
            7000-9000 r-xp 00000000 00:00 0                          [vdso]\nVmFlags: rd ex\n";
        let entries = maps::parse(sample).unwrap();
        let stack = capture(&entries[0]).unwrap();
        assert_eq!((stack.start, stack.end, stack.kind), (0x1000, 0x3000, AreaKind::Stack));
        assert!(stack.grows_down && stack.locked && !stack.shared && !stack.no_reserve);
        assert_eq!(stack.advice, [libc::MADV_DONTDUMP, libc::MADV_WIPEONFORK]);
        let file = capture(&entries[1]).unwrap();
        assert_eq!(file.advice, [libc::MADV_NOHUGEPAGE]);
        let AreaKind::File(mapping) = file.kind else {
            panic!("not a file")
        };
        assert_eq!(
            (&mapping.path[..], mapping.offset, mapping.inode),
            (&b"/lib/x"[..], 0x2000, 77)
        );
        assert_eq!(capture(&entries[2]), None);
    }
}
