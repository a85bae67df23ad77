//! Memory that is shared with files of the origin, while its job is away: both ends of keeping it in step.
//!
//! ```text
//!      origin                                           host
//!      the file: read, written, mapped by others        the stand-in: mapped by all processes of the guest
//!          │ look: what is not as in `base`                 │
//!          ▼                                                ▼
//!      base ───────────────── Memory ──────────────────► take: into the stand-in and `base`
//!      take: into the file and `base` ◄── Memory ─────── base
//! ```
//!
//! **When.** Nobody at the origin can tell when a guest has written to its memory but by what it does there, its calls; and it
//! cannot tell when they have written but by what comes of its calls. So each side tells what it finds changed before a
//! call, a reply, a signal, an end; and, for those who look without a call, now and then ([`Line::tick`]). What one thread
//! finds and says is said in the order in which it was found (`order`); who takes waits for nobody who speaks.
//!
//! **What.** Single bytes, not pages: what the two sides write side by side stays. Bytes that both have written become the
//! guest's: the origin makes them so when they arrive, and the guest passes over what the origin has said before that
//! (`pending`). So both end with the same.
//!
//! **In which order.** What is in front of a file mostly tells of what follows it, and programs write it last: it is looked at
//! first, and comes last.

use crate::areas::{Original, ROOM};
use crate::memory::{PAGE, Window, join, without};
use crate::proc::ProcDir;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use vrun_image::state::MIRRORED_MAX;
use vrun_remote_io::channel::{ChannelError, Sender};
use vrun_remote_io::message::{CHANGED_MAX, Changes, Extent, Message, RUNS_MAX, Run};

/// Bytes that are compared at a time.
const CHUNK: usize = 64 << 10;
/// How often it is looked without an occasion.
const TICK: Duration = Duration::from_millis(100);
/// Looking takes at most one part in that many of the time.
const SHARE: u32 = 20;

/// Where the contents of an object are.
#[derive(Debug)]
enum Place {
    /// At the origin. Read through a descriptor, which makes no pages in its holes.
    Original {
        file: File,
        window: Window,
        /// How much of it is of interest.
        wanted: u64,
        /// How much of it can be.
        most: u64,
    },
    /// At the host.
    StandIn(File),
}

/// A file, or what stands in for it.
#[derive(Debug)]
pub struct Object {
    place: Place,
    /// What both sides have agreed on, in whole pages.
    base: Vec<u8>,
}

impl Object {
    /// The stand-in of a guest that has not run yet.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn stand_in(file: File) -> io::Result<Self> {
        let mut base = vec![0; file.metadata()?.len() as usize];
        file.read_exact_at(&mut base, 0)?;
        Ok(Self {
            place: Place::StandIn(file),
            base,
        })
    }

    /// A file that a process of a frozen job has mapped.
    ///
    /// # Errors
    /// A sentence that says why it cannot be opened so.
    pub fn original(of: &Original) -> Result<Self, String> {
        let name = String::from_utf8_lossy(&of.path);
        let mut why = io::Error::from_raw_os_error(libc::ENOENT);
        for path in of.candidates() {
            match of.open(&path) {
                Ok((file, window)) => {
                    let place = Place::Original {
                        file,
                        wanted: of.end,
                        most: window.length(),
                        window,
                    };
                    let base = Vec::new();
                    return Ok(Self { place, base });
                }
                Err(error) => why = error,
            }
        }
        Err(format!(
            "it has {name} mapped shared and writable, which cannot be opened to be kept in step: {why}"
        ))
    }

    /// What the other side will have been given: at first, zeroes.
    pub fn given(&mut self, offset: u64, bytes: &[u8]) {
        let end = offset as usize + bytes.len();
        self.base.resize(self.base.len().max(end), 0);
        self.base[offset as usize..end].copy_from_slice(bytes);
    }

    /// The end of that: its size.
    pub fn given_all(&mut self, size: u64) {
        self.base.resize(size as usize, 0);
    }

    /// How large it can become as things are.
    fn most(&self) -> u64 {
        match self.place {
            Place::Original { wanted, .. } => wanted,
            Place::StandIn(_) => self.base.len() as u64,
        }
    }

    /// What is there now; behind the end of the file it is as it was.
    fn read(&self, range: Range<usize>, buffer: &mut Vec<u8>) {
        let (Place::Original { file, .. } | Place::StandIn(file)) = &self.place;
        buffer.resize(range.len(), 0);
        let mut done = 0;
        while let Ok(count @ 1..) = file.read_at(&mut buffer[done..], (range.start + done) as u64) {
            done += count;
        }
        buffer[done..].copy_from_slice(&self.base[range][done..]);
    }

    /// Follows the size of the file; the new one if it is another.
    fn follow(&mut self) -> Option<u64> {
        let Place::Original { file, wanted, .. } = &self.place else {
            return None;
        };
        let size = file.metadata().ok()?.len().next_multiple_of(PAGE).min(*wanted);
        (size != self.base.len() as u64).then(|| {
            self.base.resize(size as usize, 0);
            size
        })
    }

    /// Hands out what has changed, which then has not.
    fn look(&mut self, buffer: &mut Vec<u8>, mut found: impl FnMut(u64, &[u8])) {
        for start in (0..self.base.len()).step_by(CHUNK) {
            let end = self.base.len().min(start + CHUNK);
            self.read(start..end, buffer);
            if buffer[..] == self.base[start..end] {
                continue;
            }
            for range in differences(buffer, &self.base[start..end]) {
                found((start + range.start) as u64, &buffer[range]);
            }
            self.base[start..end].copy_from_slice(buffer);
        }
    }
}

/// Where two runs of the same length differ, ascending.
fn differences(a: &[u8], b: &[u8]) -> Vec<Range<usize>> {
    let mut found: Vec<Range<usize>> = Vec::new();
    let size = PAGE as usize;
    for (page, (a, b)) in a.chunks(size).zip(b.chunks(size)).enumerate() {
        if a == b {
            continue;
        }
        for (at, _) in a.iter().zip(b).enumerate().filter(|(_, (a, b))| a != b) {
            let at = page * size + at;
            match found.last_mut() {
                Some(last) if last.end == at => last.end += 1,
                _ => found.push(at..at + 1),
            }
        }
    }
    found
}

impl Original {
    /// By its name, and by the descriptors of the process that may lead to it.
    fn candidates(&self) -> Vec<PathBuf> {
        let process = PathBuf::from(format!("/proc/{}", self.pid));
        let named = self
            .path
            .strip_prefix(b"/")
            .map(|path| process.join("root").join(OsStr::from_bytes(path)));
        let numbers = ProcDir::open(self.pid)
            .and_then(|directory| directory.list("fd"))
            .unwrap_or_default();
        let descriptors = numbers.iter().map(|number| process.join(format!("fd/{number}")));
        let same =
            |path: &PathBuf| std::fs::metadata(path).is_ok_and(|file| file.is_file() && file.ino() == self.inode);
        named.into_iter().chain(descriptors).filter(same).collect()
    }

    /// Opens what must be the file that is mapped.
    fn open(&self, path: &Path) -> io::Result<(File, Window)> {
        // Whatever it is now, nobody waits for it.
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
        let file = File::options().read(true).write(true).custom_flags(flags).open(path)?;
        let window = Window::new(&file, self.end.saturating_add(ROOM))?;
        let own = ProcDir::open(std::process::id() as i32).and_then(|directory| directory.maps());
        let same = own.is_ok_and(|maps| {
            let is = (window.address(), self.device, self.inode);
            maps.iter().any(|entry| (entry.start, entry.device, entry.inode) == is)
        });
        match same {
            true => Ok((file, window)),
            false => Err(io::Error::other("another file is found there")),
        }
    }
}

#[derive(Debug, Default)]
struct State {
    objects: BTreeMap<u32, Object>,
    /// Messages of the other side.
    taken: u64,
    /// As the other side knows it.
    told: u64,
    sent: u64,
    /// At the host: what was sent, in which message, and may not have been taken yet.
    pending: Vec<(u64, u32, Range<u64>)>,
    /// At the host: what it has to ask for.
    wants: Vec<Extent>,
    over: bool,
    buffer: Vec<u8>,
}

/// A channel on which all is said after what has changed before it.
pub struct Line {
    pub sender: Sender,
    /// `None`: there is no such memory, and nothing to be done.
    mirror: Option<Mirror>,
}

struct Mirror {
    /// Held by who looks until it is said. The other lock is not held while anything waits for the channel.
    order: Mutex<()>,
    state: Mutex<State>,
}

impl std::fmt::Debug for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Line").finish_non_exhaustive()
    }
}

impl Line {
    /// `objects` by their numbers in the job's image.
    pub fn new(sender: Sender, objects: BTreeMap<u32, Object>) -> Arc<Self> {
        let state = State {
            objects,
            ..State::default()
        };
        let mirror = (!state.objects.is_empty()).then(|| Mirror {
            order: Mutex::default(),
            state: Mutex::new(state),
        });
        Arc::new(Self { sender, mirror })
    }

    /// Says what has changed, and then this.
    ///
    /// # Errors
    /// Of the channel.
    pub fn send(&self, message: &Message) -> Result<(), ChannelError> {
        match &self.mirror {
            Some(mirror) => mirror.speak(&self.sender, Some(message)),
            None => self.sender.send(message),
        }
    }

    /// Says what has changed.
    ///
    /// # Errors
    /// Of the channel.
    pub fn flush(&self) -> Result<(), ChannelError> {
        self.mirror
            .iter()
            .try_for_each(|mirror| mirror.speak(&self.sender, None))
    }

    /// What the other side has said.
    pub fn take(&self, changes: &Changes) {
        if let Some(mirror) = &self.mirror {
            mirror.lock().take(changes);
        }
    }

    /// Looks now and then, as long as somebody has the line.
    ///
    /// # Errors
    /// There is no thread for it.
    pub fn tick(self: &Arc<Self>) -> io::Result<()> {
        if self.mirror.is_none() {
            return Ok(());
        }
        let line = Arc::downgrade(self);
        thread::Builder::new().name("mirror".into()).spawn(move || {
            let mut pause = TICK;
            loop {
                thread::sleep(pause);
                let Some(line) = line.upgrade() else { return };
                let started = Instant::now();
                if line.flush().is_err() {
                    return;
                }
                pause = TICK.max(started.elapsed() * SHARE);
            }
        })?;
        Ok(())
    }

    /// From now on nothing is looked at, nor taken.
    pub fn close(&self) {
        if let Some(mirror) = &self.mirror {
            mirror.lock().over = true;
        }
    }

    /// More than this of an object is not of interest: it could not be mapped again.
    pub fn bound(&self, object: u32, end: u64) {
        if let Some(mirror) = &self.mirror
            && let Some(Place::Original { most, .. }) = mirror.lock().objects.get_mut(&object).map(|one| &mut one.place)
        {
            *most = end.min(*most);
        }
    }

    /// Whether there is any such memory.
    pub fn has_objects(&self) -> bool {
        self.mirror.is_some()
    }

    /// Asks for so much of an object; what there is of it is here with the answer to the next call.
    pub fn want(&self, object: u32, size: u64) {
        if let Some(mirror) = &self.mirror {
            let mut state = mirror.lock();
            let has = |object: &Object| object.base.len() as u64;
            if state.objects.get(&object).is_some_and(|object| has(object) < size) {
                state.wants.push(Extent { object, size });
            }
        }
    }

    /// What stands in for an object here, if so much of it is there.
    pub fn file(&self, object: u32, size: u64) -> Option<File> {
        let state = self.mirror.as_ref()?.lock();
        let object = state.objects.get(&object)?;
        let (Place::Original { file, .. } | Place::StandIn(file)) = &object.place;
        let whole = object.base.len() as u64 >= size;
        whole.then(|| file.as_fd().try_clone_to_owned().ok().map(File::from))?
    }

    /// Whether a mapping of this device and inode shows one of the objects.
    pub fn shows(&self, device: u64, inode: u64) -> bool {
        let is = |object: &Object| {
            let (Place::Original { file, .. } | Place::StandIn(file)) = &object.place;
            file.metadata()
                .is_ok_and(|file| (file.dev(), file.ino()) == (device, inode))
        };
        self.mirror
            .as_ref()
            .is_some_and(|mirror| mirror.lock().objects.values().any(is))
    }
}

impl Mirror {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn speak(&self, sender: &Sender, message: Option<&Message>) -> Result<(), ChannelError> {
        let _order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        // A statement of its own: the lock is let go before anything is said.
        let found = self.lock().look();
        for changes in found {
            sender.send(&Message::Memory(changes))?;
        }
        message.map_or(Ok(()), |message| sender.send(message))
    }
}

impl State {
    /// Everything that is to be said, in order.
    fn look(&mut self) -> Vec<Changes> {
        if self.over {
            return Vec::new();
        }
        let mut extents = std::mem::take(&mut self.wants);
        let mut runs = Vec::new();
        let mut buffer = std::mem::take(&mut self.buffer);
        for (number, object) in &mut self.objects {
            let number = *number;
            extents.extend(object.follow().map(|size| Extent { object: number, size }));
            object.look(&mut buffer, |offset, bytes| {
                runs.push(Run {
                    object: number,
                    offset,
                    bytes: bytes.to_vec(),
                });
            });
        }
        self.buffer = buffer;
        let at_origin = |object: &Object| matches!(object.place, Place::Original { .. });
        let is_origin = self.objects.values().any(at_origin);
        // The guest waits to be told what was taken of it.
        if extents.is_empty() && runs.is_empty() && (self.told == self.taken || !is_origin) {
            return Vec::new();
        }
        self.told = self.taken;
        let mut all = vec![Changes {
            seen: self.taken,
            extents,
            runs: Vec::new(),
        }];
        let mut bytes = 0;
        for run in runs.into_iter().rev() {
            bytes += run.bytes.len();
            if bytes > CHANGED_MAX
                || all
                    .last()
                    .is_some_and(|last| last.runs.len() + last.extents.len() >= RUNS_MAX)
            {
                bytes = run.bytes.len();
                all.push(Changes {
                    seen: self.taken,
                    ..Changes::default()
                });
            }
            let last = all.len() - 1;
            if !is_origin {
                let range = run.offset..run.offset + run.bytes.len() as u64;
                self.pending.push((self.sent + last as u64 + 1, run.object, range));
            }
            all[last].runs.push(run);
        }
        self.sent += all.len() as u64;
        all
    }

    fn take(&mut self, changes: &Changes) {
        if self.over {
            return;
        }
        self.taken += 1;
        self.pending.retain(|(message, ..)| *message > changes.seen);
        for extent in &changes.extents {
            self.resize(extent);
        }
        let mut own: BTreeMap<u32, Vec<Range<u64>>> = BTreeMap::new();
        for (_, object, range) in &self.pending {
            own.entry(*object).or_default().push(range.clone());
        }
        own.values_mut().for_each(join);
        for runs in changes.runs.chunk_by(|one, next| one.object == next.object) {
            let Some(object) = self.objects.get_mut(&runs[0].object) else {
                continue;
            };
            let own = own.get(&runs[0].object).map(Vec::as_slice).unwrap_or_default();
            object.take(runs, own);
        }
    }

    /// At the host as much as there is; at the origin as much as is wanted, as far as that can be.
    fn resize(&mut self, extent: &Extent) {
        let size = extent.size.next_multiple_of(PAGE);
        let others = self.objects.iter().filter(|(number, _)| **number != extent.object);
        let others = others.map(|(_, object)| object.most()).sum::<u64>();
        if size.saturating_add(others) > MIRRORED_MAX {
            return;
        }
        let Some(object) = self.objects.get_mut(&extent.object) else {
            return;
        };
        match &mut object.place {
            Place::Original { wanted, most, .. } => *wanted = (*wanted).max(size.min(*most)),
            Place::StandIn(file) => {
                if file.set_len(size).is_ok() {
                    object.base.resize(size as usize, 0);
                }
            }
        }
    }
}

impl Object {
    /// Takes what is new but for what comes after it: what is `own`, and what has changed here and was not said yet.
    fn take(&mut self, runs: &[Run], own: &[Range<u64>]) {
        let mut taken = Vec::with_capacity(runs.len());
        let mut now = Vec::new();
        for run in runs {
            // What was cut off meanwhile is lost to the other side too.
            let end = (run.offset + run.bytes.len() as u64).min(self.base.len() as u64);
            if run.offset >= end {
                continue;
            }
            let first = own.partition_point(|range| range.end <= run.offset);
            let ours = &own[first..first + own[first..].partition_point(|range| range.start < end)];
            for range in without(std::slice::from_ref(&(run.offset..end)), ours) {
                let bytes = &run.bytes[(range.start - run.offset) as usize..(range.end - run.offset) as usize];
                let place = range.start as usize..range.end as usize;
                if let Place::StandIn(file) = &self.place {
                    self.read(place.clone(), &mut now);
                    let unsaid = differences(&now, &self.base[place.clone()]);
                    let unsaid = unsaid.iter().map(|hole| hole.start as u64..hole.end as u64);
                    for part in without(std::slice::from_ref(&(0..bytes.len() as u64)), &Vec::from_iter(unsaid)) {
                        let part_bytes = &bytes[part.start as usize..part.end as usize];
                        if let Err(error) = file.write_all_at(part_bytes, range.start + part.start) {
                            tracing::error!("memory that is shared with a file of the origin is not written: {error}");
                        }
                    }
                } else {
                    taken.push((range.start, bytes));
                }
                self.base[place].copy_from_slice(bytes);
            }
        }
        if let Place::Original { window, .. } = &self.place {
            window.write(&taken);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    const SIZE: u64 = 3 * PAGE;

    fn state(place: Place) -> State {
        let base = vec![0; SIZE as usize];
        State {
            objects: BTreeMap::from([(4, Object { place, base })]),
            ..State::default()
        }
    }

    fn file() -> File {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(SIZE).expect("a longer file");
        file
    }

    /// The two ends, and what is on its way from the origin and to it.
    struct Pair {
        file: File,
        origin: State,
        stand_in: File,
        host: State,
        away: VecDeque<Changes>,
        home: VecDeque<Changes>,
    }

    impl Pair {
        fn new() -> Self {
            let (file, stand_in) = (file(), file());
            let place = Place::Original {
                file: file.try_clone().expect("a descriptor"),
                window: Window::new(&file, SIZE + PAGE).expect("a mapping"),
                wanted: SIZE,
                most: SIZE + PAGE,
            };
            Self {
                origin: state(place),
                host: state(Place::StandIn(stand_in.try_clone().expect("a descriptor"))),
                file,
                stand_in,
                away: VecDeque::new(),
                home: VecDeque::new(),
            }
        }

        fn look(&mut self, at_origin: bool) {
            match at_origin {
                true => self.away.extend(self.origin.look()),
                false => self.home.extend(self.host.look()),
            }
        }

        /// One message arrives; false: none is on its way there.
        fn arrive(&mut self, at_origin: bool) -> bool {
            let (state, queue) = match at_origin {
                true => (&mut self.origin, &mut self.home),
                false => (&mut self.host, &mut self.away),
            };
            queue.pop_front().inspect(|changes| state.take(changes)).is_some()
        }

        fn settle(&mut self) {
            loop {
                self.look(true);
                self.look(false);
                let (to_host, to_origin) = (self.arrive(false), self.arrive(true));
                if !to_host && !to_origin {
                    return;
                }
            }
        }

        fn contents(&self) -> [Vec<u8>; 2] {
            [&self.file, &self.stand_in].map(|mut file| {
                use std::io::{Read, Seek};
                let mut bytes = Vec::new();
                file.rewind().expect("its start");
                file.read_to_end(&mut bytes).expect("its contents");
                bytes
            })
        }
    }

    #[test]
    fn what_both_write_side_by_side_stays() {
        let mut pair = Pair::new();
        pair.file.write_all_at(b"a.c.", 100).unwrap();
        pair.stand_in.write_all_at(b".b.d", 100).unwrap();
        pair.file.write_all_at(&[7; 5000], 4000).unwrap();
        pair.settle();
        pair.file.write_all_at(b"A", 100).unwrap();
        pair.stand_in.write_all_at(b"B", 101).unwrap();
        pair.settle();
        let [file, stand_in] = pair.contents();
        assert!(file == stand_in);
        assert_eq!((&file[100..104], &file[4000..4002]), (&b"AB.d"[..], &[7, 7][..]));
    }

    #[test]
    fn of_what_crosses_the_guests_stays() {
        let mut pair = Pair::new();
        pair.file.write_all_at(b"origin", 0).unwrap();
        pair.stand_in.write_all_at(b"g", 0).unwrap();
        pair.look(true);
        pair.look(false);
        // Not said yet when the origin's comes.
        pair.stand_in.write_all_at(b"G", 5).unwrap();
        pair.settle();
        assert!(pair.contents().iter().all(|contents| contents.starts_with(b"grigiG")));
        assert!(pair.host.pending.is_empty(), "all was told to have been taken");
    }

    #[test]
    fn in_front_comes_last() {
        let mut pair = Pair::new();
        pair.stand_in.write_all_at(b"front", 0).unwrap();
        pair.stand_in.write_all_at(b"rest", 9000).unwrap();
        let offsets: Vec<_> = pair
            .host
            .look()
            .iter()
            .flat_map(|all| &all.runs)
            .map(|run| run.offset)
            .collect();
        assert_eq!(offsets, [9000, 0]);
    }

    #[test]
    fn a_file_that_is_cut_is_not_made_longer() {
        let mut pair = Pair::new();
        pair.file.set_len(10).unwrap();
        pair.stand_in.write_all_at(b"beyond", PAGE).unwrap();
        pair.look(false);
        assert!(pair.arrive(true));
        assert_eq!(pair.file.metadata().unwrap().len(), 10);
        pair.settle();
        assert_eq!(pair.stand_in.metadata().unwrap().len(), PAGE);
        pair.file.set_len(SIZE + PAGE).unwrap();
        pair.settle();
        assert_eq!(pair.stand_in.metadata().unwrap().len(), SIZE, "no more than is wanted");
        pair.host.wants.push(Extent {
            object: 4,
            size: SIZE + PAGE,
        });
        pair.settle();
        assert_eq!(pair.stand_in.metadata().unwrap().len(), SIZE + PAGE);
    }

    #[test]
    fn no_message_is_too_large() {
        let mut pair = Pair::new();
        let odd: Vec<u8> = (0..SIZE).map(|at| (at % 2) as u8).collect();
        pair.stand_in.write_all_at(&odd, 0).unwrap();
        let all = pair.host.look();
        assert!(
            all.iter()
                .all(|changes| Message::Memory(changes.clone()).encode(&mut Vec::new()).is_ok())
        );
        pair.home.extend(all);
        pair.settle();
        let [file, stand_in] = pair.contents();
        assert!(file == odd && stand_in == odd);
    }

    proptest! {
        #[test]
        fn both_end_with_the_same(steps in proptest::collection::vec((0..7_u8, 0..40_u64, 1..255_u8), 1..200)) {
            let mut pair = Pair::new();
            for (step, at, value) in steps {
                let at = PAGE - 20 + at;
                match step {
                    0 => pair.file.write_all_at(&[value, value], at).unwrap(),
                    1 => pair.stand_in.write_all_at(&[value, value], at).unwrap(),
                    2 | 3 => pair.look(step == 2),
                    4 | 5 => drop(pair.arrive(step == 4)),
                    // As a page that is written beyond the end of its file; the size stays that of whole pages.
                    _ => pair.file.set_len(SIZE - at / PAGE * PAGE).unwrap(),
                }
            }
            pair.settle();
            let [file, stand_in] = pair.contents();
            prop_assert!(file == stand_in);
            for state in [&pair.origin, &pair.host] {
                prop_assert!(state.objects[&4].base == file);
            }
        }
    }
}
