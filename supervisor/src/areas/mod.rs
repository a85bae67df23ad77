//! Areas of memory: what can be taken along, what they are made from, and how they are made again.
//!
//! ```text
//!   reason           what cannot be captured, by name
//!   Catalogue        the areas of all processes of a job, and what they show      ── objects
//!   Extent           what else the kernel keeps of an address space
//!   ────────────────
//!   Objects          what areas show, made again                                  ── objects
//!   map_steps        areas with their final protection, still without contents of their own
//!   property_steps   once the contents are in: advice, guards, locks, seals
//!   boundary_steps   brk, arguments, auxiliary vector, executable
//! ```

mod objects;

pub use objects::{AreaError, Catalogue, Kept, Known, Objects, Origin, Original, Purpose, ROOM, View};

use crate::proc::{Backing, MapsEntry, VmFlag};
use vrun_image::state::{Area, AreaKind, Layout, Memory};
use vrun_shim::{Expect, Injection, Script, TraceError, area};

/// `MLOCK_ONFAULT` (`mlock2(2)`).
const MLOCK_ONFAULT: u64 = 1;
/// `madvise(2)`, since 6.13.
const MADV_GUARD_INSTALL: u64 = 102;
const MADV_GUARD_REMOVE: u64 = 103;
/// `mmap(2)`, since 6.11: a type of its own, beside `MAP_PRIVATE` and `MAP_SHARED`.
const MAP_DROPPABLE: i32 = 8;
/// `mseal(2)`, since 6.10.
const SYS_MSEAL: i64 = 462;
/// Protection keys of x86; 0 is the one that all memory has.
const KEYS: std::ops::Range<u64> = 1..16;

/// Why an area cannot be captured.
pub fn reason(entry: &MapsEntry) -> Option<String> {
    let name = String::from_utf8_lossy(&entry.path);
    let at = format!("{:#x}-{:#x}", entry.start, entry.end);
    let has = |flag| entry.flags.contains(flag);
    let file = entry.backing() == Backing::File;
    if has(VmFlag::Io) || has(VmFlag::PfnMapped) {
        // The kernel's own areas are of this kind too.
        return file.then(|| format!("it has the device {name} mapped at {at}"));
    }
    if has(VmFlag::UffdMissing) || has(VmFlag::UffdWriteProtect) || has(VmFlag::UffdMinor) {
        return Some(format!("it handles its own page faults (userfaultfd) at {at}"));
    }
    if has(VmFlag::ShadowStack) {
        return Some(format!("it has a shadow stack at {at}"));
    }
    if !file {
        return None;
    }
    if has(VmFlag::HugeTlb) {
        return Some(format!("it has {name}, a file of huge pages, mapped at {at}"));
    }
    let internal = entry.deleted && libc::major(entry.device) == 0;
    match &entry.path[..] {
        b"/secretmem" if internal => Some(format!("it has secret memory (memfd_secret) at {at}")),
        b"/[aio]" if internal => Some("it uses asynchronous I/O (io_setup)".to_owned()),
        path if !path.starts_with(b"/") => Some(format!("it has {name} mapped at {at}")),
        _ => None,
    }
}

/// Whether the memory of a process could leave its host now: the early verdict.
pub fn leaves(pid: i32, maps: &[MapsEntry]) -> Result<(), AreaError> {
    let view = View {
        pid,
        maps,
        slots: &[],
        hidden: &[],
    };
    Catalogue::new(&[view], Purpose::Move, &Known::default()).map(|_| ())
}

/// What an area is by itself. What it shows is found by the [`Catalogue`].
fn area_of(entry: &MapsEntry, kind: AreaKind, guards: Vec<(u64, u64)>) -> Area {
    let has = |flag| entry.flags.contains(flag);
    let droppable = has(VmFlag::Droppable);
    let advice = [
        (VmFlag::Sequential, libc::MADV_SEQUENTIAL),
        (VmFlag::Random, libc::MADV_RANDOM),
        (VmFlag::DontCopy, libc::MADV_DONTFORK),
        (VmFlag::Mergeable, libc::MADV_MERGEABLE),
        (VmFlag::HugePage, libc::MADV_HUGEPAGE),
        (VmFlag::NoHugePage, libc::MADV_NOHUGEPAGE),
        (VmFlag::DontDump, libc::MADV_DONTDUMP),
        // Droppable memory is wiped on fork. Where it has to become ordinary memory, that must be told.
        (VmFlag::WipeOnFork, libc::MADV_WIPEONFORK),
    ];
    let name = ["[anon:", "[anon_shmem:"]
        .iter()
        .find_map(|prefix| entry.path.strip_prefix(prefix.as_bytes())?.strip_suffix(b"]"));
    Area {
        start: entry.start,
        end: entry.end,
        protection: entry.protection,
        kind,
        shared: entry.shared,
        grows_down: has(VmFlag::GrowsDown),
        no_reserve: has(VmFlag::NoReserve) && !droppable,
        locked: has(VmFlag::Locked),
        locked_on_fault: has(VmFlag::LockOnFault),
        advice: advice
            .iter()
            .filter(|(flag, _)| has(*flag))
            .map(|(_, advice)| *advice)
            .collect(),
        guards,
        huge_page: if has(VmFlag::HugeTlb) { entry.page_size } else { 0 },
        key: entry.key,
        name: name.map(|name| String::from_utf8_lossy(name).into_owned()),
        droppable,
        sealed: has(VmFlag::Sealed),
    }
}

/// What the kernel keeps of an address space beside its areas, and tells nobody outside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// [`Memory::lock_future`].
    pub lock_future: u32,
    /// [`Memory::keys`].
    pub keys: u16,
}

impl Extent {
    /// Asks a frozen process, by calls that change nothing.
    pub fn of(injection: &Injection) -> Result<Self, TraceError> {
        let mut script = Script::new(area::DATA.start);
        let (probe, length) = (area::END, area::PAGE);
        let protection = (libc::PROT_READ | libc::PROT_WRITE) as u64;
        let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE) as u64;
        let arguments = [probe, length, protection, flags, u64::MAX, 0];
        let mapped = script.step("map a page", libc::SYS_mmap, &arguments, Expect::Anything);
        let residence = script.reserve(8);
        let advise = [probe, length, libc::MADV_DONTNEED as u64];
        let resident = [probe, length, residence];
        script.step("see if it is resident", libc::SYS_mincore, &resident, Expect::Anything);
        // Locked memory cannot be given up so: EINVAL.
        let given_up = script.step("see if it is locked", libc::SYS_madvise, &advise, Expect::Anything);
        // The page below `mmap_min_addr` is never mapped: ENOMEM, but EINVAL for a key that is not allocated. The key that
        // the kernel took for memory that is only executed counts as not allocated.
        let asked: Vec<(u64, usize)> = KEYS
            .map(|key| {
                let arguments = [0, area::PAGE, 0, key];
                let what = format!("ask for protection key {key}");
                (
                    key,
                    script.step(what, libc::SYS_pkey_mprotect, &arguments, Expect::Anything),
                )
            })
            .collect();
        let results = injection.run(&script)?;
        let mut extent = Self::default();
        for (key, step) in asked {
            if results[step] == -i64::from(libc::ENOMEM) {
                extent.keys |= 1 << key;
            }
        }
        if results[mapped] == probe as i64 {
            let mut bytes = [0; 8];
            injection.read(residence, &mut bytes)?;
            extent.lock_future = match (results[given_up], bytes[0] & 1) {
                (0.., _) => 0,
                (_, 1) => libc::MCL_FUTURE as u32,
                _ => (libc::MCL_FUTURE | libc::MCL_ONFAULT) as u32,
            };
            let mut script = Script::new(area::DATA.start);
            script.call("unmap the page", libc::SYS_munmap, &[probe, length]);
            injection.run(&script)?;
        } else if results[mapped] == -i64::from(libc::EAGAIN) {
            // What is mapped is to be locked, and no more may be.
            extent.lock_future = libc::MCL_FUTURE as u32;
        }
        Ok(extent)
    }
}

/// Maps areas. Contents that are not in `objects` are still missing. The descriptors and windows that the process has
/// for this are given back.
pub fn map_steps(script: &mut Script, memory: &Memory, objects: &Objects) {
    // A deputy's address space is older than what is put into it.
    script.call("lock no memory", libc::SYS_munlockall, &[]);
    key_steps(script, memory);
    for area in &memory.areas {
        map_area(script, area, objects);
        if area.key != 0 && !only_executed(area) {
            let arguments = [
                area.start,
                area.end - area.start,
                u64::from(area.protection),
                u64::from(area.key),
            ];
            let what = format!("protect {:#x}-{:#x} with a key", area.start, area.end);
            script.call(what, libc::SYS_pkey_mprotect, &arguments);
        }
    }
    objects.leave_steps(script);
}

/// Whether the kernel gives the area a key of its own accord (`execute_only_pkey`, `arch/x86/mm/pkeys.c`).
fn only_executed(area: &Area) -> bool {
    area.protection as i32 == libc::PROT_EXEC
}

/// Allocates the protection keys that were.
fn key_steps(script: &mut Script, memory: &Memory) {
    let kernels = memory.areas.iter().find(|area| area.key != 0 && only_executed(area));
    let kernels_key = kernels.map_or(0, |area| u64::from(area.key));
    let wanted = |key: u64| memory.keys & 1 << key != 0;
    let Some(last) = KEYS.rev().find(|key| wanted(*key) || *key == kernels_key) else {
        return;
    };
    let free = |script: &mut Script, key| {
        let what = format!("free protection key {key}");
        script.step(what, libc::SYS_pkey_free, &[key], Expect::Anything);
    };
    KEYS.for_each(|key| free(script, key));
    // The kernel gives the lowest that is free.
    for key in 1..=last {
        if let Some(area) = kernels
            && key == kernels_key
        {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
            let arguments = [
                area.start,
                area::PAGE,
                libc::PROT_EXEC as u64,
                flags as u64,
                u64::MAX,
                0,
            ];
            script.call("map a page that is only executed", libc::SYS_mmap, &arguments);
            script.call("unmap it", libc::SYS_munmap, &[area.start, area::PAGE]);
        } else {
            let what = format!("allocate protection key {key}");
            script.step(what, libc::SYS_pkey_alloc, &[0, 0], Expect::Exactly(key));
        }
    }
    (1..=last)
        .filter(|key| !wanted(*key) && *key != kernels_key)
        .for_each(|key| free(script, key));
}

/// Maps private memory without a file.
pub fn map(script: &mut Script, what: &str, start: u64, length: u64, protection: i32, flags: i32) {
    let flags = flags | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    let flags = match flags & MAP_DROPPABLE {
        0 => flags | libc::MAP_PRIVATE,
        _ => flags,
    };
    let arguments = [start, length, protection as u64, flags as u64, u64::MAX, 0];
    let what = format!("map {what} at {start:#x}, {length} bytes");
    script.step(what, libc::SYS_mmap, &arguments, Expect::Exactly(start));
}

/// The flags by which `mmap` and `memfd_create` are asked for huge pages of a size.
fn huge_flags(huge_page: u64, flag: u32) -> u64 {
    match huge_page.checked_ilog2() {
        Some(logarithm) => u64::from(flag) | u64::from(logarithm) << 26, // MAP_HUGE_SHIFT
        None => 0,
    }
}

fn map_area(script: &mut Script, area: &Area, objects: &Objects) {
    let mut flags = 0;
    if area.grows_down {
        flags |= libc::MAP_GROWSDOWN;
    }
    if area.no_reserve {
        flags |= libc::MAP_NORESERVE;
    }
    if area.droppable && has_droppable() {
        flags |= MAP_DROPPABLE;
    }
    let what = match &area.kind {
        AreaKind::Anonymous => match area.huge_page {
            0 => "memory".to_owned(),
            bytes => format!("huge pages of {} KiB (vm.nr_hugepages)", bytes >> 10),
        },
        AreaKind::Heap => "the heap".to_owned(),
        AreaKind::Stack => "the stack".to_owned(),
        AreaKind::Shared { object, offset } => {
            return objects.map_area(script, area, *object, *offset, flags);
        }
        AreaKind::File(file) => return objects.map_area(script, area, file.object, file.offset, flags),
    };
    flags |= huge_flags(area.huge_page, libc::MAP_HUGETLB as u32) as i32;
    map(
        script,
        &what,
        area.start,
        area.end - area.start,
        area.protection as i32,
        flags,
    );
}

/// Whether this kernel has `MAP_DROPPABLE`, by its version.
fn has_droppable() -> bool {
    let system = rustix::system::uname();
    let release = system.release().to_string_lossy().into_owned();
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit());
    let mut number = || numbers.next().and_then(|word| word.parse::<u32>().ok()).unwrap_or(0);
    (number(), number()) >= (6, 11)
}

/// What areas have beside their contents, which are in.
pub fn property_steps(script: &mut Script, memory: &Memory, objects: &Objects) {
    objects.fill_steps(script);
    for area in &memory.areas {
        let (start, length) = (area.start, area.end - area.start);
        let at = format!("{start:#x}-{:#x}", area.end);
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
        for &(start, end) in &area.guards {
            let arguments = [start, end - start, MADV_GUARD_INSTALL];
            script.call(format_args!("guard {start:#x}-{end:#x}"), libc::SYS_madvise, &arguments);
        }
        if let Some(name) = &area.name {
            const PR_SET_VMA: u64 = 0x53_56_4d_41;
            let name = script.data(&[name.as_bytes(), &[0]].concat());
            let arguments = [PR_SET_VMA, 0, start, length, name];
            // Only with CONFIG_ANON_VMA_NAME.
            script.step(format_args!("name {at}"), libc::SYS_prctl, &arguments, Expect::Anything);
        }
        if area.locked {
            // Pages that are locked are made present, where that is possible; the area is locked in any case.
            let whole = area.protection as i32 & libc::PROT_READ != 0
                && area.guards.is_empty()
                && !matches!(area.kind, AreaKind::File(_) | AreaKind::Shared { .. });
            let expect = if whole { Expect::Success } else { Expect::Anything };
            let flags = if area.locked_on_fault { MLOCK_ONFAULT } else { 0 };
            let arguments = [start, length, flags];
            script.step(format_args!("lock {at}"), libc::SYS_mlock2, &arguments, expect);
        }
    }
    // Nothing can be done to a sealed area any more.
    for area in memory.areas.iter().filter(|area| area.sealed) {
        let arguments = [area.start, area.end - area.start, 0];
        let what = format!("seal {:#x}-{:#x}", area.start, area.end);
        script.call(what, SYS_MSEAL, &arguments);
    }
    if memory.lock_future != 0 {
        let flags = [u64::from(memory.lock_future)];
        script.call("lock memory to come", libc::SYS_mlockall, &flags);
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
