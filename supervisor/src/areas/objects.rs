//! What areas show: files, memfds, shared anonymous memory. One object may be shown by many areas of many processes, and
//! stays one.
//!
//! ```text
//!   Catalogue::new    every mapping that shows the same inode shows the same object
//!   Catalogue::dump   each page of an object once, from the first area that shows it as it is; then the processes' own
//!   ────────────────
//!   Objects::create   in the first process, before any other is made from it: a *window* through which an object can
//!                     be filled and mapped again (`mremap` with an old length of 0), or a descriptor
//!   Objects::heir     the same in a process that was cloned from it
//!   map_area          from the window or the descriptor
//!   ────────────────
//!   Kept              the windows that a deputy keeps of what it shared, for the return
//! ```
//!
//! A file that is found again unchanged is mapped again; else a memfd with the contents of the image stands in for it. That of
//! a file which is mapped shared and writable, by a job that moves, is kept in step with it ([`crate::mirror`]).

use super::{MADV_GUARD_REMOVE, area_of, huge_flags, reason};
use crate::ipc::memory::attach;
use crate::memory::{self, MemoryError, PAGE, TargetMemory};
use crate::proc::{Backing, MapsEntry, ProcDir, ProcError, VmFlag};
use crate::restore::find_hole;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::Metadata;
use std::io;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vrun_image::state::{Area, AreaKind, FileMapping, MIRRORED_MAX, SharedKind, SharedMemory, Slot};
use vrun_shim::{Expect, Injection, Script, TraceError, area};

#[derive(Debug, thiserror::Error)]
pub enum AreaError {
    /// What cannot be captured or restored, as a sentence.
    #[error("{0}")]
    Unsupported(String),
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error(transparent)]
    Proc(#[from] ProcError),
    #[error(transparent)]
    Trace(#[from] TraceError),
}

type Result<T> = std::result::Result<T, AreaError>;

fn unsupported<T>(reason: impl Into<String>) -> Result<T> {
    Err(AreaError::Unsupported(reason.into()))
}

/// What the areas are captured for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Descriptors are captured too, and the files are there again.
    Save,
    /// Descriptors and files stay at home.
    Move,
}

/// A stopped process whose areas are captured.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    pub pid: i32,
    /// From smaps.
    pub maps: &'a [MapsEntry],
    /// Its descriptors, if they are captured.
    pub slots: &'a [Slot],
    /// Areas in there are not the program's.
    pub hidden: &'a [Range<u64>],
}

/// The objects of a job that was restored here and goes on elsewhere: they keep their numbers and their kinds.
#[derive(Clone, Debug, Default)]
pub struct Known {
    pub shared: Vec<SharedMemory>,
    /// Device and inode that each has here, if it has any.
    pub identities: Vec<Option<(u64, u64)>>,
}

/// A file that a process of a job that moves has mapped shared and writable: [`SharedKind::Mirrored`].
#[derive(Clone, Debug)]
pub struct Original {
    pub object: u32,
    /// Who has it mapped, and as what.
    pub pid: i32,
    pub path: Vec<u8>,
    pub device: u64,
    pub inode: u64,
    /// Where the areas that show it end in it.
    pub end: u64,
}

/// Room behind that end for a file to grow, in bytes.
pub const ROOM: u64 = 16 << 20;

/// An area and what it shows.
#[derive(Debug)]
struct Shows {
    entry: MapsEntry,
    /// Object, and the offset in it.
    object: Option<(u32, u64)>,
}

/// The areas of a job's processes.
#[derive(Debug)]
pub struct Catalogue {
    pub shared: Vec<SharedMemory>,
    /// Of each process.
    pub areas: Vec<Vec<Area>>,
    shows: Vec<(i32, Vec<Shows>)>,
    purpose: Purpose,
    /// So many objects were known before.
    known: usize,
}

impl Catalogue {
    /// Looks at all processes of a job, which are stopped.
    ///
    /// # Errors
    /// [`AreaError::Unsupported`] names what cannot be captured for this purpose.
    pub fn new(views: &[View<'_>], purpose: Purpose, known: &Known) -> Result<Self> {
        let mut finder = Finder {
            purpose,
            views,
            numbers: HashMap::new(),
            shared: known.shared.clone(),
            open: None,
        };
        for (number, identity) in known.identities.iter().enumerate() {
            finder
                .numbers
                .extend(identity.map(|identity| (identity, number as u32)));
        }
        let known = finder.shared.len();
        let (mut areas, mut shows) = (Vec::new(), Vec::new());
        for view in views {
            let (own, shown) = finder.process(view, known)?;
            areas.push(own);
            shows.push((view.pid, shown));
        }
        let mut catalogue = Self {
            shared: finder.shared,
            areas,
            shows,
            purpose,
            known,
        };
        catalogue.check_mirrored()?;
        Ok(catalogue)
    }

    fn is_mirrored(&self, object: u32) -> bool {
        matches!(self.shared[object as usize].kind, SharedKind::Mirrored { .. })
    }

    /// Whether all that has to be kept in step with files can be, and mapped again.
    fn check_mirrored(&mut self) -> Result<()> {
        let originals = self.originals();
        for original in &originals {
            let size = &mut self.shared[original.object as usize].size;
            *size = original.end.min(*size);
        }
        let total = originals.iter().map(|original| original.end).sum::<u64>();
        if total > MIRRORED_MAX
            && let Some(largest) = originals.iter().max_by_key(|original| original.end)
        {
            return unsupported(format!(
                "it has {} mapped shared and writable, up to {} MiB (of all such files {} MiB, and {} can be kept in step)",
                String::from_utf8_lossy(&largest.path),
                largest.end.div_ceil(1 << 20),
                total.div_ceil(1 << 20),
                MIRRORED_MAX >> 20
            ));
        }
        for (original, (_, shows)) in originals
            .iter()
            .flat_map(|one| self.shows.iter().map(move |own| (one, own)))
        {
            let shown = shows.iter().filter_map(|shows| match shows.object {
                Some((object, offset)) if object == original.object && shows.entry.shared => {
                    Some((offset, shows.entry.flags.contains(VmFlag::MayWrite)))
                }
                _ => None,
            });
            let first = shown.clone().min_by_key(|(offset, writable)| (*offset, !writable));
            if shown.clone().any(|(_, writable)| writable) && first.is_some_and(|(_, writable)| !writable) {
                let name = String::from_utf8_lossy(&original.path);
                return unsupported(format!(
                    "it has {name} mapped shared and writable, and its front for reading only"
                ));
            }
        }
        Ok(())
    }

    /// The files that are to be kept in step.
    pub fn originals(&self) -> Vec<Original> {
        let all = || {
            self.shows
                .iter()
                .flat_map(|(pid, shows)| shows.iter().map(|shows| (*pid, shows)))
        };
        let mirrored = (self.known as u32..self.shared.len() as u32).filter(|object| self.is_mirrored(*object));
        let original = |object: u32| {
            let own = |shows: &Shows| shows.object.filter(|(number, _)| *number == object);
            let (pid, first) = all().find(|(_, shows)| own(shows).is_some())?;
            let end = |(_, shows): (i32, &Shows)| Some(own(shows)?.1 + (shows.entry.end - shows.entry.start));
            Some(Original {
                object,
                pid,
                path: first.entry.path.clone(),
                device: first.entry.device,
                inode: first.entry.inode,
                end: all().filter_map(end).max().unwrap_or(0),
            })
        };
        mirrored.filter_map(original).collect()
    }

    /// Sends all contents to `sink`: the process's number and an address, or for objects, whose numbers follow those of
    /// the processes, an offset; whole pages, at most [`memory::RUN`] bytes each.
    ///
    /// # Errors
    /// [`MemoryError`], and what `sink` returns.
    pub fn dump<E: From<MemoryError>>(
        &self,
        mut sink: impl FnMut(u32, u64, &[u8]) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let mut done: Vec<Vec<Range<u64>>> = vec![Vec::new(); self.shared.len()];
        let processes = self.shows.len() as u32;
        for (number, (pid, shows)) in self.shows.iter().enumerate() {
            let memory = TargetMemory::open(*pid)?;
            for Shows { entry, object } in shows {
                memory::dump_own(&memory, entry, |start, bytes| sink(number as u32, start, bytes))?;
                let Some((object, offset)) = *object else { continue };
                let kind = &self.shared[object as usize].kind;
                // Segments are saved as a whole (`ipc::memory::dump`).
                let apart = self.purpose == Purpose::Save && matches!(kind, SharedKind::SystemV { .. });
                // Of a guest that goes home: the file is there.
                let in_step = (object as usize) < self.known && self.is_mirrored(object);
                if apart || in_step || !kind.is_stored() {
                    continue;
                }
                // Addresses of this area, less what an earlier one has shown.
                let done = &mut done[object as usize];
                let to_address = |range: &Range<u64>| {
                    let address = |at: u64| at.clamp(offset, offset + (entry.end - entry.start)) - offset + entry.start;
                    address(range.start)..address(range.end)
                };
                let seen: Vec<_> = done.iter().map(to_address).filter(|range| !range.is_empty()).collect();
                let wanted = memory::without(std::slice::from_ref(&(entry.start..entry.end)), &seen);
                let ranges = memory::shown(&memory, entry, &wanted)?;
                memory::dump_shown(&memory, entry, &ranges, |start, bytes| {
                    sink(processes + object, start - entry.start + offset, bytes)
                })?;
                let to_offset = |at: u64| at - entry.start + offset;
                done.extend(ranges.iter().map(|range| to_offset(range.start)..to_offset(range.end)));
                memory::join(done);
            }
        }
        Ok(())
    }
}

struct Finder<'a> {
    purpose: Purpose,
    views: &'a [View<'a>],
    /// Objects by device and inode.
    numbers: HashMap<(u64, u64), u32>,
    shared: Vec<SharedMemory>,
    /// What descriptors of the job lead to: device, inode, and the open file if it is captured.
    open: Option<HashMap<(u64, u64), Option<u32>>>,
}

impl Finder<'_> {
    fn process(&mut self, view: &View<'_>, known: usize) -> Result<(Vec<Area>, Vec<Shows>)> {
        let memory = TargetMemory::open(view.pid)?;
        let guards = memory
            .guards(0, area::USER_END)
            .collect::<std::result::Result<Vec<_>, _>>()?;
        let (mut areas, mut shows) = (Vec::new(), Vec::new());
        let ours = area::START..area::END;
        for entry in view.maps {
            let hidden = ours.contains(&entry.start) || view.hidden.iter().any(|range| range.contains(&entry.start));
            if hidden || entry.kernels() {
                continue;
            }
            if let Some(reason) = reason(entry) {
                return unsupported(reason);
            }
            if self.purpose == Purpose::Move && entry.flags.contains(VmFlag::Sealed) {
                let (start, end) = (entry.start, entry.end);
                return unsupported(format!(
                    "it has sealed memory (mseal) at {start:#x}-{end:#x}, which cannot leave"
                ));
            }
            let object = self.object(view, &memory, entry, known)?;
            let kind = match (object, entry.backing()) {
                (Some((object, offset)), Backing::SharedAnonymous | Backing::SystemV) => {
                    AreaKind::Shared { object, offset }
                }
                (Some((object, offset)), _) => AreaKind::File(FileMapping {
                    path: entry.path.clone(),
                    offset,
                    device: entry.device,
                    inode: entry.inode,
                    object,
                }),
                (None, Backing::Heap) => AreaKind::Heap,
                (None, Backing::Stack) => AreaKind::Stack,
                (None, _) => AreaKind::Anonymous,
            };
            let inside = guards
                .iter()
                .map(|guard| (guard.start.max(entry.start), guard.end.min(entry.end)))
                .filter(|(start, end)| start < end);
            areas.push(area_of(entry, kind, inside.collect()));
            shows.push(Shows {
                entry: entry.clone(),
                object,
            });
        }
        Ok((areas, shows))
    }

    /// The object that an area shows, and the offset.
    fn object(
        &mut self,
        view: &View<'_>,
        memory: &TargetMemory,
        entry: &MapsEntry,
        known: usize,
    ) -> Result<Option<(u32, u64)>> {
        if matches!(entry.backing(), Backing::Anonymous | Backing::Heap | Backing::Stack) {
            return Ok(None);
        }
        let identity = (entry.device, entry.inode);
        let number = match self.numbers.get(&identity) {
            Some(number) => *number,
            None => {
                let kind = self.kind(view, entry)?;
                let number = self.shared.len() as u32;
                self.shared.push(SharedMemory { size: 0, kind });
                self.numbers.insert(identity, number);
                number
            }
        };
        if number as usize >= known {
            let written = entry.shared && entry.flags.contains(VmFlag::MayWrite);
            self.widen(number as usize, view, memory, entry, written)?;
        }
        Ok(Some((number, entry.offset)))
    }

    fn kind(&mut self, view: &View<'_>, entry: &MapsEntry) -> Result<SharedKind> {
        let huge_page = match entry.flags.contains(VmFlag::HugeTlb) {
            true => entry.page_size,
            false => 0,
        };
        if entry.backing() == Backing::SystemV {
            // The inode has the number of the segment (ipc/shm.c).
            let id = entry.inode as i32;
            return match huge_page {
                0 => Ok(SharedKind::SystemV { id }),
                _ => unsupported(format!(
                    "the System V shared memory {id} is of huge pages (SHM_HUGETLB)"
                )),
            };
        }
        if entry.backing() == Backing::SharedAnonymous {
            if huge_page != 0 && self.purpose == Purpose::Move {
                let (start, end) = (entry.start, entry.end);
                return unsupported(format!("it shares huge pages (hugetlb) at {start:#x}-{end:#x}"));
            }
            return Ok(SharedKind::Anonymous { huge_page });
        }
        if entry.backing() == Backing::File
            && !entry.deleted
            && let Some(metadata) = metadata_in(view.pid, &entry.path)
            && metadata.ino() == entry.inode
        {
            return Ok(SharedKind::File {
                path: entry.path.clone(),
                modified: modified(&metadata),
                written: false,
            });
        }
        if self.purpose == Purpose::Save
            && let Some(Some(file)) = self.open()?.get(&(entry.device, entry.inode))
        {
            return Ok(SharedKind::Open { file: *file });
        }
        let name = entry.path.strip_prefix(b"/memfd:").unwrap_or(&entry.path);
        Ok(SharedKind::Unnamed {
            name: name.to_vec(),
            huge_page,
        })
    }

    /// Lets an object be as large, and as changeable, as an area shows it.
    fn widen(
        &mut self,
        number: usize,
        view: &View<'_>,
        memory: &TargetMemory,
        entry: &MapsEntry,
        write: bool,
    ) -> Result<()> {
        let name = String::from_utf8_lossy(&entry.path);
        let at = format!("{:#x}-{:#x}", entry.start, entry.end);
        let end = entry.offset + (entry.end - entry.start);
        if write && self.purpose == Purpose::Move {
            let open = self.open()?.contains_key(&(entry.device, entry.inode));
            let huge = match self.shared[number].kind {
                SharedKind::File { .. } => Some(0),
                SharedKind::Unnamed { huge_page, .. } if open => Some(huge_page),
                _ => None,
            };
            match huge {
                Some(0) => {
                    let memory = &mut self.shared[number];
                    memory.kind = SharedKind::Mirrored {
                        name: entry.path.strip_prefix(b"/memfd:").unwrap_or(&entry.path).to_vec(),
                    };
                    memory.size = memory.size.next_multiple_of(PAGE);
                }
                Some(_) => {
                    return unsupported(format!(
                        "it has {name}, huge pages, open and mapped shared and writable at {at}"
                    ));
                }
                None => {}
            }
        }
        match &mut self.shared[number].kind {
            SharedKind::File { written, .. } => {
                *written |= write;
                let size = metadata_in(view.pid, &entry.path).map_or(end, |metadata| metadata.len());
                self.shared[number].size = size;
            }
            SharedKind::Unnamed { .. } | SharedKind::Mirrored { .. } => {
                let end = entry.offset + (readable_end(memory, entry)? - entry.start);
                let size = &mut self.shared[number].size;
                *size = end.max(*size);
            }
            SharedKind::Anonymous { .. } | SharedKind::Open { .. } | SharedKind::SystemV { .. } => {
                let size = &mut self.shared[number].size;
                *size = end.max(*size);
            }
        }
        Ok(())
    }

    /// What descriptors of the job lead to.
    fn open(&mut self) -> Result<&HashMap<(u64, u64), Option<u32>>> {
        if self.open.is_none() {
            let mut open = HashMap::new();
            for view in self.views {
                for number in ProcDir::open(view.pid)?.list("fd")? {
                    // It may be one that nobody may look at.
                    let Ok(metadata) = std::fs::metadata(format!("/proc/{}/fd/{number}", view.pid)) else {
                        continue;
                    };
                    let slot = view.slots.iter().find(|slot| slot.number == number);
                    let file: &mut Option<u32> = open.entry((metadata.dev(), metadata.ino())).or_default();
                    *file = file.or(slot.map(|slot| slot.file));
                }
            }
            self.open = Some(open);
        }
        Ok(self.open.as_ref().expect("it was just made"))
    }
}

/// The address in an area behind which the file that it shows has ended.
fn readable_end(memory: &TargetMemory, entry: &MapsEntry) -> std::result::Result<u64, MemoryError> {
    let readable = |page: u64| Ok::<_, MemoryError>(memory.read_forced(entry.start + page * PAGE, &mut [0])? == 1);
    let (mut low, mut high) = (0, (entry.end - entry.start) / PAGE);
    if readable(high - 1)? {
        return Ok(entry.end);
    }
    while low < high {
        let middle = low + (high - low) / 2;
        if readable(middle)? {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    Ok(entry.start + low * PAGE)
}

/// A file as a process would find it under a path.
fn metadata_in(pid: i32, path: &[u8]) -> Option<Metadata> {
    let mut inside = PathBuf::from(format!("/proc/{pid}/root"));
    inside.push(OsStr::from_bytes(path.strip_prefix(b"/")?));
    std::fs::metadata(inside).ok().filter(Metadata::is_file)
}

/// Nanoseconds since the epoch.
fn modified(metadata: &Metadata) -> i64 {
    metadata
        .mtime()
        .saturating_mul(1_000_000_000)
        .saturating_add(metadata.mtime_nsec())
}

/// Where the process lives that objects are made in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Where its files are.
    Files,
    /// A guest: it has no files.
    Nowhere,
}

/// How an object can be mapped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Source {
    /// A shared mapping of the object, from `offset` on.
    window: Option<(u64, u64)>,
    descriptor: Option<i32>,
    /// The contents are those of the image, through the window.
    filled: bool,
    /// The descriptor is none of the job's.
    ours: bool,
}

/// What areas of a process under construction are mapped from.
#[derive(Debug, Default)]
pub struct Objects {
    sources: Vec<Source>,
    /// Private mappings that a deputy has kept: object, where, and the offset that it begins at.
    private: Vec<(u32, Range<u64>, u64)>,
    /// All windows lie in these.
    windows: Vec<Range<u64>>,
    /// The windows stay until the contents are in.
    first: bool,
}

impl Objects {
    /// Makes the objects of a job, in a process that all others will be cloned from. `occupied` is what the address spaces
    /// of all processes use or will use; what is taken here is added. `open` gives the process's descriptor of an open
    /// file of the job.
    ///
    /// # Errors
    /// [`AreaError::Unsupported`] names a file that is not as it was.
    pub fn create(
        injection: &Injection,
        occupied: &mut Vec<Range<u64>>,
        shared: &[SharedMemory],
        areas: &[&[Area]],
        origin: Origin,
        open: &dyn Fn(u32) -> Option<i32>,
    ) -> Result<Self> {
        let mut objects = Self {
            first: true,
            ..Self::default()
        };
        for (number, memory) in shared.iter().enumerate() {
            let mut shows = areas.iter().copied().flatten().filter(|area| shows(area, number));
            let source = match shows.next() {
                Some(area) => {
                    let no_reserve = area.no_reserve || shows.any(|area| area.no_reserve);
                    objects.make(injection, occupied, memory, no_reserve, origin, open)?
                }
                None if matches!(memory.kind, SharedKind::SystemV { .. }) => {
                    objects.make(injection, occupied, memory, false, origin, open)?
                }
                None => Source::default(),
            };
            objects.sources.push(source);
        }
        Ok(objects)
    }

    /// Those of a deputy: what it has kept, and the rest made again. `known` is how many objects the job left with.
    ///
    /// # Errors
    /// As [`Self::create`]; and if it shares memory that it did not leave with.
    pub fn create_in_deputy(
        injection: &Injection,
        occupied: &mut Vec<Range<u64>>,
        shared: &[SharedMemory],
        areas: &[&[Area]],
        process: usize,
        kept: &Kept,
    ) -> Result<Self> {
        let mut objects = Self {
            first: true,
            ..Self::default()
        };
        for (number, window, offset) in on(&kept.private).iter_mut() {
            if !areas[process].iter().any(|area| shows(area, *number as usize)) {
                continue;
            }
            let start = objects.clear_of(injection, occupied, window.clone(), areas[process])?;
            *window = start..start + (window.end - window.start);
            objects.private.push((*number, window.clone(), *offset));
        }
        let mut windows = on(&kept.windows);
        let maps = ProcDir::open(injection.tracee().tid())?.maps()?;
        let writable = |window: &Range<u64>| {
            let write = libc::PROT_WRITE.cast_unsigned();
            let mut found = maps
                .iter()
                .filter(|entry| entry.start <= window.start && window.start < entry.end);
            found.all(|entry| entry.protection & write != 0)
        };
        for (number, memory) in shared.iter().enumerate() {
            // An area whose private mapping was kept needs nothing else.
            let needs = |area: &Area| shows(area, number) && objects.private_page(area, number as u32).is_none();
            let needed = areas[process].iter().any(needs);
            let found = windows.iter_mut().find(|(object, ..)| *object as usize == number);
            let source = match (needed, found) {
                (false, None) => Source::default(),
                // Its contents are what the private mappings show, too.
                (false, Some(_)) if !areas[process].iter().any(|area| shows(area, number)) => Source::default(),
                (_, Some((_, window, offset))) => {
                    let filled = writable(window) && !matches!(memory.kind, SharedKind::Mirrored { .. });
                    let start = objects.clear_of(injection, occupied, window.clone(), areas[process])?;
                    *window = start..start + (window.end - window.start);
                    Source {
                        window: Some((start, *offset)),
                        filled,
                        ..Source::default()
                    }
                }
                (true, None) => {
                    let nowhere = |_| None;
                    objects.make(injection, occupied, memory, false, Origin::Files, &nowhere)?
                }
            };
            objects.sources.push(source);
        }
        // Windows of what the process does not show any more.
        let unused = windows.iter().filter(|(_, window, _)| !occupied.contains(window));
        objects.windows.extend(unused.map(|(_, window, _)| window.clone()));
        Ok(objects)
    }

    /// The same in a process that was cloned from the first.
    pub fn heir(&self) -> Self {
        Self {
            sources: self.sources.clone(),
            private: self.private.clone(),
            windows: self.windows.clone(),
            first: false,
        }
    }

    /// What must stay mapped until [`super::map_steps`].
    pub fn windows(&self) -> &[Range<u64>] {
        &self.windows
    }

    /// The descriptor of an object in the process, until that maps its areas.
    pub fn descriptor(&self, object: u32) -> Option<i32> {
        self.sources.get(object as usize)?.descriptor
    }

    /// Device and inode of each object, for a job that goes on from here.
    ///
    /// # Errors
    /// [`ProcError`].
    pub fn identities(&self, pid: i32) -> std::result::Result<Vec<Option<(u64, u64)>>, ProcError> {
        let maps = ProcDir::open(pid)?.maps()?;
        let identity = |source: &Source| {
            let (window, _) = source.window?;
            let entry = maps.iter().find(|entry| entry.start == window)?;
            Some((entry.device, entry.inode))
        };
        Ok(self.sources.iter().map(identity).collect())
    }

    /// Puts contents into an object; nothing if it has its own.
    ///
    /// # Errors
    /// [`TraceError`].
    pub fn write(
        &self,
        injection: &Injection,
        object: u32,
        offset: u64,
        bytes: &[u8],
    ) -> std::result::Result<(), TraceError> {
        match self.sources.get(object as usize) {
            Some(Source {
                window: Some((window, from)),
                filled: true,
                ..
            }) if self.first && offset >= *from => injection.write(window + (offset - from), bytes),
            _ => Ok(()),
        }
    }

    fn make(
        &mut self,
        injection: &Injection,
        occupied: &mut Vec<Range<u64>>,
        memory: &SharedMemory,
        no_reserve: bool,
        origin: Origin,
        open: &dyn Fn(u32) -> Option<i32>,
    ) -> Result<Source> {
        let filled = |window, descriptor| Source {
            window: Some((window, 0)),
            descriptor,
            filled: true,
            ours: true,
        };
        match &memory.kind {
            SharedKind::SystemV { id } if origin == Origin::Files => {
                let window = attach(injection, occupied, *id)?;
                self.windows.push(window.clone());
                Ok(filled(window.start, None))
            }
            SharedKind::Anonymous { huge_page: 0 } | SharedKind::SystemV { .. } => {
                let window = self.window(occupied, memory.size, PAGE)?;
                let mut script = Script::new(area::DATA.start);
                let flags = if no_reserve { libc::MAP_NORESERVE } else { 0 };
                show(&mut script, &window, flags | libc::MAP_ANONYMOUS, -1);
                injection.run(&script)?;
                Ok(filled(window.start, None))
            }
            SharedKind::Anonymous { huge_page } => {
                let window = self.window(occupied, memory.size, *huge_page)?;
                let descriptor = create_memfd(injection, b"", &window, memory.size, *huge_page)?;
                Ok(filled(window.start, Some(descriptor)))
            }
            SharedKind::Unnamed { name, huge_page } => {
                let window = self.window(occupied, memory.size, (*huge_page).max(PAGE))?;
                let descriptor = create_memfd(injection, name, &window, memory.size, *huge_page)?;
                Ok(filled(window.start, Some(descriptor)))
            }
            SharedKind::Open { file } => match open(*file) {
                Some(descriptor) => Ok(Source {
                    descriptor: Some(descriptor),
                    ..Source::default()
                }),
                None => unsupported(format!("open file {file}, which is mapped too, is not there")),
            },
            SharedKind::File {
                path,
                modified,
                written,
            } => {
                let descriptor = match origin {
                    Origin::Files => open_file(injection, path, memory.size, *modified, *written)?,
                    Origin::Nowhere => None,
                };
                if descriptor.is_some() {
                    return Ok(Source {
                        descriptor,
                        ours: true,
                        ..Source::default()
                    });
                }
                if *written {
                    let name = String::from_utf8_lossy(path);
                    return unsupported(format!(
                        "{name}, which the program has mapped to write to it, is not as it was; put it back"
                    ));
                }
                let window = self.window(occupied, memory.size, PAGE)?;
                let descriptor = create_memfd(injection, path, &window, memory.size, 0)?;
                Ok(filled(window.start, Some(descriptor)))
            }
            SharedKind::Mirrored { name } if origin == Origin::Nowhere => {
                let window = self.window(occupied, memory.size, PAGE)?;
                let descriptor = create_memfd(injection, name, &window, memory.size, 0)?;
                Ok(filled(window.start, Some(descriptor)))
            }
            SharedKind::Mirrored { name } => {
                let name = String::from_utf8_lossy(name);
                unsupported(format!(
                    "{name}, which the program has mapped to write to it, was not mapped here"
                ))
            }
        }
    }

    /// Finds room for a window.
    fn window(&mut self, occupied: &mut Vec<Range<u64>>, size: u64, page: u64) -> Result<Range<u64>> {
        let length = size.max(1).next_multiple_of(page);
        // Room to align it in.
        let hole =
            find_hole(occupied, length + page - PAGE).map_err(|error| AreaError::Unsupported(error.to_string()))?;
        let start = hole.start.next_multiple_of(page);
        self.windows.push(start..start + length);
        Ok(start..start + length)
    }

    /// Moves a window out of the way of areas that are to come.
    fn clear_of(
        &mut self,
        injection: &Injection,
        occupied: &mut Vec<Range<u64>>,
        window: Range<u64>,
        areas: &[Area],
    ) -> Result<u64> {
        if !areas
            .iter()
            .any(|area| area.start < window.end && window.start < area.end)
        {
            occupied.push(window.clone());
            self.windows.push(window.clone());
            return Ok(window.start);
        }
        let length = window.end - window.start;
        let target = self.window(occupied, length, PAGE)?;
        let mut script = Script::new(area::DATA.start);
        move_mapping(&mut script, "move a window", window.start, length, &target);
        injection.run(&script)?;
        Ok(target.start)
    }

    /// Maps an area from what it shows.
    pub(super) fn map_area(&self, script: &mut Script, area: &Area, object: u32, offset: u64, flags: i32) {
        let source = self.sources.get(object as usize).copied().unwrap_or_default();
        let (start, length) = (area.start, area.end - area.start);
        let what = format!("map {} at {start:#x}, {length} bytes", name(area));
        if let (None, Some((window, from)), true) = (source.descriptor, source.window, area.shared) {
            let target = start..area.end;
            move_mapping(script, &what, window + (offset - from), 0, &target);
            let arguments = [start, length, u64::from(area.protection)];
            script.call(format_args!("protect {start:#x}"), libc::SYS_mprotect, &arguments);
            return;
        }
        if let Some(page) = self.private_page(area, object) {
            // What stays behind is wanted again if the job does not come home after all.
            let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED | libc::MREMAP_DONTUNMAP) as u64;
            let arguments = [page, PAGE, PAGE, flags, start];
            script.step(&what, libc::SYS_mremap, &arguments, Expect::Exactly(start));
            if length > PAGE {
                let arguments = [start, PAGE, length, 0];
                script.step(&what, libc::SYS_mremap, &arguments, Expect::Exactly(start));
            }
            let arguments = [start, length, u64::from(area.protection)];
            script.call(format_args!("protect {start:#x}"), libc::SYS_mprotect, &arguments);
            return;
        }
        let sharing = if area.shared {
            libc::MAP_SHARED
        } else {
            libc::MAP_PRIVATE
        };
        let flags = flags | sharing | libc::MAP_FIXED_NOREPLACE;
        // Without a source the call fails, and says what for.
        let descriptor = i64::from(source.descriptor.unwrap_or(-1));
        let arguments = [
            start,
            length,
            u64::from(area.protection),
            flags as u64,
            descriptor as u64,
            offset,
        ];
        script.step(what, libc::SYS_mmap, &arguments, Expect::Exactly(start));
    }

    /// Where a kept private mapping shows what a private area begins with.
    fn private_page(&self, area: &Area, object: u32) -> Option<u64> {
        let wanted = offset(area);
        let page = |(number, window, from): &(u32, Range<u64>, u64)| {
            let page = window.start + wanted.checked_sub(*from)?;
            (*number == object && window.contains(&page)).then_some(page)
        };
        self.private.iter().filter(|_| !area.shared).find_map(page)
    }

    /// Gives back what was needed for mapping; the windows through which contents come stay.
    pub(super) fn leave_steps(&self, script: &mut Script) {
        let ours = self.sources.iter().filter(|source| source.ours);
        for descriptor in ours.filter_map(|source| source.descriptor) {
            script.call("close a mapped file", libc::SYS_close, &[descriptor as u64]);
        }
        if !self.first {
            self.close_steps(script);
        }
    }

    /// Closes the windows: the contents are in.
    pub(super) fn fill_steps(&self, script: &mut Script) {
        if self.first {
            self.close_steps(script);
        }
    }

    fn close_steps(&self, script: &mut Script) {
        for window in &self.windows {
            let arguments = [window.start, window.end - window.start];
            script.call("close a window", libc::SYS_munmap, &arguments);
        }
    }
}

fn shows(area: &Area, number: usize) -> bool {
    match &area.kind {
        AreaKind::File(FileMapping { object, .. }) | AreaKind::Shared { object, .. } => *object as usize == number,
        AreaKind::Anonymous | AreaKind::Heap | AreaKind::Stack => false,
    }
}

fn name(area: &Area) -> String {
    match &area.kind {
        AreaKind::File(file) => String::from_utf8_lossy(&file.path).into_owned(),
        _ => "shared memory".to_owned(),
    }
}

/// Maps an object to be filled.
fn show(script: &mut Script, window: &Range<u64>, flags: i32, descriptor: i32) {
    let protection = (libc::PROT_READ | libc::PROT_WRITE) as u64;
    let flags = (flags | libc::MAP_SHARED | libc::MAP_FIXED_NOREPLACE) as u64;
    let length = window.end - window.start;
    let arguments = [window.start, length, protection, flags, i64::from(descriptor) as u64, 0];
    let what = format!("map {length} bytes of shared memory");
    script.step(what, libc::SYS_mmap, &arguments, Expect::Exactly(window.start));
}

/// Moves a mapping, or (from a length of 0, for shared ones) maps the same once more.
fn move_mapping(script: &mut Script, what: &str, from: u64, length: u64, target: &Range<u64>) {
    let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
    let arguments = [from, length, target.end - target.start, flags, target.start];
    script.step(what, libc::SYS_mremap, &arguments, Expect::Exactly(target.start));
}

/// Makes a memfd in the process and maps it; gives its number there.
fn create_memfd(injection: &Injection, name: &[u8], window: &Range<u64>, size: u64, huge_page: u64) -> Result<i32> {
    const MFD_EXEC: u64 = 0x10;
    // What memfd_create(2) allows.
    let name = &name[..name.len().min(249)];
    let mut script = Script::new(area::DATA.start);
    let name = script.data(&[name, &[0]].concat());
    let flags = u64::from(libc::MFD_CLOEXEC) | MFD_EXEC | huge_flags(huge_page, libc::MFD_HUGETLB);
    let create = script.call("create a memfd", libc::SYS_memfd_create, &[name, flags]);
    let descriptor = injection.run(&script)?[create] as i32;
    let mut script = Script::new(area::DATA.start);
    let size = size.next_multiple_of(huge_page.max(1));
    script.call("size a memfd", libc::SYS_ftruncate, &[descriptor as u64, size]);
    if size != 0 {
        show(&mut script, window, 0, descriptor);
    }
    injection.run(&script)?;
    Ok(descriptor)
}

/// Opens a file in the process if it is as it was; gives its number there.
fn open_file(injection: &Injection, path: &[u8], size: u64, time: i64, write: bool) -> Result<Option<i32>> {
    let pid = injection.tracee().tid();
    let same = |metadata: &Metadata| metadata.len() == size && (write || modified(metadata) == time);
    if !metadata_in(pid, path).is_some_and(|metadata| same(&metadata)) {
        return Ok(None);
    }
    let access = if write { libc::O_RDWR } else { libc::O_RDONLY };
    let flags = access | libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY;
    let mut script = Script::new(area::DATA.start);
    let path = script.data(&[path, &[0]].concat());
    let arguments = [libc::AT_FDCWD as u64, path, flags as u64, 0];
    let open = script.step("open a mapped file", libc::SYS_openat, &arguments, Expect::Anything);
    let descriptor = injection.run(&script)?[open];
    if descriptor < 0 {
        let error = io::Error::from_raw_os_error(-descriptor as i32);
        tracing::debug!("a mapped file cannot be opened again: {error}");
        return Ok(None);
    }
    let opened = std::fs::metadata(format!("/proc/{pid}/fd/{descriptor}"));
    if opened.is_ok_and(|metadata| metadata.is_file() && same(&metadata)) {
        return Ok(Some(descriptor as i32));
    }
    let mut script = Script::new(area::DATA.start);
    script.call("close another file", libc::SYS_close, &[descriptor as u64]);
    injection.run(&script)?;
    Ok(None)
}

/// What a deputy keeps of the memory that it shared, and of files without a name that it had mapped, empty, so that they
/// are the same when it comes back; and of files that what is away is kept in step with.
///
/// Copies are of the same windows: one that had to make room for a program that then did not come back is where it is now
/// for the next try.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    windows: Shelf,
    /// The same of private mappings, which nothing else can be mapped again from.
    private: Shelf,
}

/// Object, window, and the offset that the window begins at.
type Shelf = Arc<Mutex<Vec<(u32, Range<u64>, u64)>>>;

fn on(shelf: &Shelf) -> MutexGuard<'_, Vec<(u32, Range<u64>, u64)>> {
    shelf.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Kept {
    /// Maps once more, in a process whose memory has left, what it shares with others. `originals` are of all processes.
    ///
    /// # Errors
    /// [`AreaError::Trace`].
    pub fn keep(
        injection: &Injection,
        occupied: &mut Vec<Range<u64>>,
        areas: &[Area],
        shared: &[SharedMemory],
        originals: &[Original],
    ) -> Result<Self> {
        let kept = Self::default();
        for (number, memory) in shared.iter().enumerate() {
            // What is in a segment stays: it may outlive the job.
            if let SharedKind::SystemV { id } = memory.kind
                && areas.iter().any(|area| shows(area, number))
            {
                let window = attach(injection, occupied, id)?;
                on(&kept.windows).push((number as u32, window, 0));
                continue;
            }
            let original = originals.iter().find(|original| original.object as usize == number);
            let unnamed = matches!(
                memory.kind,
                SharedKind::Anonymous { huge_page: 0 } | SharedKind::Unnamed { huge_page: 0, .. }
            );
            let written = |area: &Area| area.protection as i32 & libc::PROT_WRITE != 0;
            let from = areas
                .iter()
                .filter(|area| (unnamed || original.is_some()) && area.shared && shows(area, number))
                .min_by_key(|area| (offset(area), !written(area)));
            let Some(area) = from else { continue };
            // A mapping can be had again from where it begins; the program could get at no more of it either.
            let end = original.map_or(memory.size, |original| original.end);
            let mut length = end.saturating_sub(offset(area)).next_multiple_of(PAGE);
            if length == 0 {
                continue;
            }
            let room = if original.is_some() { ROOM } else { 0 };
            let mut window =
                find_hole(occupied, length + room).map_err(|error| AreaError::Unsupported(error.to_string()))?;
            let mut script = Script::new(area::DATA.start);
            let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
            let arguments = [area.start, 0, length + room, flags, window.start];
            let with_room = script.step(
                "keep shared memory with room",
                libc::SYS_mremap,
                &arguments,
                Expect::Anything,
            );
            let with_room = injection.run(&script)?[with_room] == window.start as i64;
            let mut script = Script::new(area::DATA.start);
            if with_room {
                length += room;
            } else {
                // Its address space is limited (RLIMIT_AS).
                window.end -= room;
                move_mapping(&mut script, "keep shared memory", area.start, 0, &window);
            }
            script.call("unlock it", libc::SYS_munlock, &[window.start, length]);
            if original.is_none() {
                // It has left; what is mapped read-only may be given up in another process.
                let arguments = [window.start, length, libc::MADV_REMOVE as u64];
                script.step("give it up", libc::SYS_madvise, &arguments, Expect::Anything);
            }
            injection.run(&script)?;
            on(&kept.windows).push((number as u32, window, offset(area)));
        }
        for area in areas.iter().filter(|area| !area.shared) {
            let AreaKind::File(FileMapping { object, offset, .. }) = area.kind else {
                continue;
            };
            let unnamed = |memory: &SharedMemory| {
                matches!(
                    memory.kind,
                    SharedKind::Unnamed { huge_page: 0, .. } | SharedKind::Mirrored { .. }
                )
            };
            if !shared.get(object as usize).is_some_and(unnamed) {
                continue;
            }
            let length = area.end - area.start;
            let window = find_hole(occupied, length).map_err(|error| AreaError::Unsupported(error.to_string()))?;
            let mut script = Script::new(area::DATA.start);
            move_mapping(&mut script, "keep a private mapping", area.start, length, &window);
            script.call("unlock it", libc::SYS_munlock, &[window.start, length]);
            let mut advise = |what, advice| {
                let arguments = [window.start, length, advice];
                script.step(what, libc::SYS_madvise, &arguments, Expect::Anything);
            };
            advise("forget its guards", MADV_GUARD_REMOVE);
            advise("give its own pages up", libc::MADV_DONTNEED as u64);
            injection.run(&script)?;
            on(&kept.private).push((object, window, offset));
        }
        Ok(kept)
    }

    /// Up to where an object can be mapped again.
    pub fn reach(&self, object: u32) -> Option<u64> {
        let windows = on(&self.windows);
        let (_, window, offset) = windows.iter().find(|(number, ..)| *number == object)?;
        Some(offset + (window.end - window.start))
    }

    /// What must stay mapped.
    pub fn windows(&self) -> Vec<Range<u64>> {
        let of = |shelf| {
            on(shelf)
                .iter()
                .map(|(_, window, _)| window.clone())
                .collect::<Vec<_>>()
        };
        [of(&self.windows), of(&self.private)].concat()
    }
}

fn offset(area: &Area) -> u64 {
    match &area.kind {
        AreaKind::File(FileMapping { offset, .. }) | AreaKind::Shared { offset, .. } => *offset,
        AreaKind::Anonymous | AreaKind::Heap | AreaKind::Stack => 0,
    }
}
