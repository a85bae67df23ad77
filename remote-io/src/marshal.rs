//! The guest's side of a forwarded call: from six registers and the guest's memory to a [`Call`], and from the [`Reply`]
//! back into that memory.
//!
//! ```text
//!   begin(pid, number, registers, memory) → Step::Forward(pending) ─ pending.call() ─→ channel
//!                                           Step::…: nothing to send                     │
//!   Outcome::Done(result) ←─ pending.finish(reply, memory) ←─────────────────────────────┘
//!   Outcome::Again(pending): another round, for what does not fit in one call
//! ```
//!
//! The table in [`syscalls`] says what each argument is; here is how each kind is read and written.
//! A pointer that the guest cannot follow crosses as [`Argument::Fault`], so that the origin's kernel finds it at the
//! point, and after the other errors, where the guest's kernel would have.

mod messages;
mod transfer;

use std::borrow::Cow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::call::{Argument, Call, Keep, Pointer, Reply, Segment};
use crate::syscalls::{self, Arg, Away, Decision, Size, Special};
use messages::Messages;
use transfer::Transfer;

/// Bytes that one call carries in one direction at most; longer ones take several rounds, or come back short where the
/// kernel may do that too.
pub const CHUNK: u64 = 1 << 20;
/// What the kernel makes of a larger count (`MAX_RW_COUNT`).
const MAX_TRANSFER: u64 = 0x7fff_f000;
/// No process has memory from here on, not even with five levels of page tables.
const USER_END: u64 = 0x00ff_ffff_ffff_f000;
/// The largest value of a socket option or address that is asked for; larger rooms are said to be this large.
const MAX_NAME: usize = 1 << 16;

/// The memory of the guest.
pub trait Memory {
    /// Reads from `address` on; returns how many bytes could be read before a page that cannot.
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Gone>;
    /// Writes to `address` on; returns how many bytes could be written before a page that cannot, where pages that the
    /// guest itself may not write count as such.
    fn write(&self, address: u64, bytes: &[u8]) -> Result<usize, Gone>;
}

/// The process ended: nothing is to be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the process has ended")]
pub struct Gone;

/// What is to be done with a call of the guest.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "made once per call, on its way to a thread that waits"
)]
pub enum Step {
    /// Send [`Pending::call`] and finish with the reply.
    Forward(Pending),
    /// Let it run in the guest's kernel.
    Local,
    /// Answer it: a result or a negated errno.
    Answer(i64),
    /// Take the job home and do it there, because of this.
    Home(Cow<'static, str>),
    /// Map a file of the origin.
    Mmap(MmapRequest),
    /// Bring what is mapped here to the disk of the origin.
    Msync {
        /// Where it is mapped, and how many bytes.
        address: u64,
        length: u64,
    },
    /// Open a file of `/proc` that is about the guest's own memory or state.
    OwnProc {
        /// Below `/proc/self`, such as `maps` or `task/12/stat`.
        path: String,
        /// As given to `open`.
        flags: u64,
    },
}

/// The arguments of an `mmap` of a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MmapRequest {
    /// Where, or a hint, or 0.
    pub address: u64,
    /// Bytes, as given.
    pub length: u64,
    /// `PROT_*`.
    pub protection: i32,
    /// `MAP_*`, without `MAP_ANONYMOUS`.
    pub flags: i32,
    /// The deputy's descriptor.
    pub descriptor: i32,
    /// In the file, bytes.
    pub offset: u64,
}

/// A call that waits for its reply.
#[derive(Debug)]
pub struct Pending {
    call: Call,
    temporary_mask: Option<u64>,
    places: Vec<Place>,
    /// Segments whose content was made smaller than what the guest has, which an unchanged one must tell it.
    reduced: Vec<u16>,
    then: Then,
}

/// What [`Pending::finish`] leads to.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "made once per call, on its way to a thread that waits"
)]
pub enum Outcome {
    /// The result to give to the guest: raw, also -512 to -516.
    Done(i64),
    /// Another round. A reply with any error ends it with what was done so far.
    Again(Pending),
    /// The origin has done it; now the guest's kernel is to do it too, and its answer counts.
    Local,
}

/// Where an output goes in the guest.
#[derive(Debug)]
enum Place {
    Nowhere,
    At(u64),
    /// There, and if it cannot be written nobody minds.
    Perhaps(u64),
    /// One after the other: address and bytes.
    Spread(Vec<(u64, u64)>),
}

/// What follows a reply.
#[derive(Debug)]
enum Then {
    Done,
    Local,
    Transfer(Transfer),
    /// The reply tells what kind of file the transfer's descriptor is.
    Kind(Transfer),
    Messages(Messages),
}

/// Why no call was made.
enum Stop {
    Gone,
    Errno(i32),
}

impl From<Gone> for Stop {
    fn from(_: Gone) -> Self {
        Stop::Gone
    }
}

/// Decides what becomes of the call `number` with these registers (rdi, rsi, rdx, r10, r8, r9) of process `pid`.
///
/// # Errors
/// [`Gone`] if the process ended meanwhile. Errors that the program made are answers.
pub fn begin(pid: i32, number: u32, args: [u64; 6], memory: &dyn Memory) -> Result<Step, Gone> {
    match try_begin(pid, number, args, memory) {
        Ok(step) => Ok(step),
        Err(Stop::Gone) => Err(Gone),
        Err(Stop::Errno(errno)) => Ok(Step::Answer(-i64::from(errno))),
    }
}

fn try_begin(pid: i32, number: u32, args: [u64; 6], memory: &dyn Memory) -> Result<Step, Stop> {
    let Some(row) = syscalls::row(number) else {
        return Ok(Step::Home(format!("system call {number} is not known").into()));
    };
    let (list, then) = match syscalls::decide(row, pid, &args) {
        Decision::Local => return Ok(Step::Local),
        Decision::Refuse(errno) => return Err(Stop::Errno(errno)),
        Decision::Home(why) => return Ok(Step::Home(why)),
        Decision::Mmap => {
            let [address, length, protection, flags, descriptor, offset] = args;
            let (protection, flags, descriptor) = (protection as i32, flags as i32, descriptor as i32);
            return Ok(Step::Mmap(MmapRequest {
                address,
                length,
                protection,
                flags,
                descriptor,
                offset,
            }));
        }
        Decision::Msync => {
            let [address, length, ..] = args;
            return Ok(Step::Msync { address, length });
        }
        Decision::Forward(list) => (list, Then::Done),
        Decision::Both(list) => (list, Then::Local),
    };
    let special = match row.away {
        Away::Special(special, _) => Some(special),
        _ => None,
    };
    match special {
        Some(Special::Transfer) => return transfer::begin(pid, number, args, memory).map(Step::Forward),
        Some(Special::Messages) => return messages::begin(pid, number, args, memory).map(Step::Forward),
        _ => {}
    }
    let mut builder = Builder::new(memory, args);
    builder.marshal(&list)?;
    let pending = builder.pending(pid, number, then);
    if special == Some(Special::Open)
        && let Some(path) = pending.path().and_then(|path| own_proc(pid, path))
    {
        if path == "task" {
            // The deputy has a thread more.
            return Ok(Step::Home("it lists its own threads".into()));
        }
        return Ok(Step::OwnProc {
            path,
            flags: pending.open_flags(),
        });
    }
    Ok(Step::Forward(pending))
}

/// What a call needs to know of how its arguments are laid out, while it is made.
struct Builder<'m> {
    memory: &'m dyn Memory,
    /// The registers; lengths among them are reduced to what is forwarded.
    values: [u64; 6],
    arguments: [Argument; 6],
    segments: Vec<Segment>,
    pointers: Vec<Pointer>,
    places: Vec<Place>,
    reduced: Vec<u16>,
    temporary_mask: Option<u64>,
}

impl<'m> Builder<'m> {
    fn new(memory: &'m dyn Memory, values: [u64; 6]) -> Self {
        Builder {
            memory,
            values,
            arguments: [Argument::Value(0); 6],
            segments: Vec::new(),
            pointers: Vec::new(),
            places: Vec::new(),
            reduced: Vec::new(),
            temporary_mask: None,
        }
    }

    fn add(&mut self, segment: Segment, place: Place) -> u16 {
        self.segments.push(segment);
        self.places.push(place);
        // A call has six arguments, or as many messages as fit: far below 2^16 segments.
        (self.segments.len() - 1) as u16
    }

    /// Adds a segment whose address is at `offset` in the segment `holder`.
    fn add_pointed(&mut self, holder: u16, offset: usize, segment: Segment) -> u16 {
        let target = self.add(segment, Place::Nowhere);
        self.pointers.push(Pointer {
            segment: holder,
            offset: offset as u32,
            target,
        });
        target
    }

    fn pending(self, process: i32, number: u32, then: Then) -> Pending {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let Builder {
            arguments,
            segments,
            pointers,
            places,
            reduced,
            temporary_mask,
            ..
        } = self;
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let call = Call {
            id,
            process,
            thread: 0,
            number,
            arguments,
            segments,
            pointers,
            unstoppable: false,
        };
        Pending {
            call,
            temporary_mask,
            places,
            reduced,
            then,
        }
    }

    /// Fills the arguments as the list says: pointers first, then names, whose room another pointer tells, and numbers
    /// last, since lengths may have been reduced.
    fn marshal(&mut self, list: &[Arg; 6]) -> Result<(), Stop> {
        let rank = |arg: &Arg| match arg {
            Arg::Value => 2,
            Arg::Name(_) => 1,
            _ => 0,
        };
        for pass in 0..3 {
            for (position, arg) in list.iter().enumerate().filter(|(_, arg)| rank(arg) == pass) {
                self.arguments[position] = self.argument(position, *arg)?;
            }
        }
        Ok(())
    }

    fn argument(&mut self, position: usize, arg: Arg) -> Result<Argument, Stop> {
        let address = self.values[position];
        let made = match arg {
            Arg::Value => return Ok(Argument::Value(address)),
            Arg::Unused => return Ok(Argument::Value(0)),
            _ if address == 0 => return Ok(Argument::Value(0)),
            Arg::Mask(size) => {
                self.keep_mask(address, self.values[usize::from(size)])?;
                return Ok(Argument::Value(0));
            }
            Arg::MaskPair => {
                let pair = self.read(address, 16)?.ok_or(Stop::Errno(libc::EFAULT))?;
                if u64_at(&pair, 0) != 0 {
                    self.keep_mask(u64_at(&pair, 0), u64_at(&pair, 8))?;
                }
                return Ok(Argument::Value(0));
            }
            Arg::Path => self
                .text(address, libc::PATH_MAX as usize)?
                .map(|text| (Segment::In(text), Place::Nowhere)),
            Arg::Text(max) => self
                .text(address, max.into())?
                .map(|text| (Segment::In(text), Place::Nowhere)),
            Arg::In(size) => match self.length(size, false) {
                Some(length) => self
                    .read(address, length)?
                    .map(|bytes| (Segment::In(bytes), Place::Nowhere)),
                None => None,
            },
            Arg::InOut(size) => self.in_out(address, self.length_of(size), Place::At(address))?,
            Arg::Timeout(size) => self.in_out(address, Some(u64::from(size)), Place::Perhaps(address))?,
            Arg::Out(size) => match self.length(size, true) {
                Some(length) if self.reaches(address, length)? => Some((length, Keep::All)),
                _ => None,
            }
            .map(|(len, keep)| (Segment::Out { len: len as u32, keep }, Place::At(address))),
            Arg::Got(size) => self.out_by_result(address, size, Keep::Returned)?,
            Arg::Events(count) => self.out_by_result(address, Size::Times(count, 12), Keep::ReturnedTimes(12))?,
            Arg::Name(length) => self.name(address, usize::from(length))?,
            // Those of whole calls are not made here.
            Arg::Vector | Arg::Message | Arg::Batch(_) => None,
        };
        Ok(match made {
            Some((segment, place)) => Argument::Segment(self.add(segment, place)),
            None => Argument::Fault,
        })
    }

    fn keep_mask(&mut self, address: u64, size: u64) -> Result<(), Stop> {
        if size != 8 {
            return Err(Stop::Errno(libc::EINVAL));
        }
        let mask = self.read(address, 8)?.ok_or(Stop::Errno(libc::EFAULT))?;
        self.temporary_mask = Some(u64_at(&mask, 0));
        Ok(())
    }

    fn in_out(&self, address: u64, length: Option<u64>, place: Place) -> Result<Option<(Segment, Place)>, Gone> {
        let Some(length) = length else { return Ok(None) };
        let bytes = self.read(address, length)?;
        Ok(bytes.map(|bytes| (Segment::InOut { bytes, keep: Keep::All }, place)))
    }

    /// Memory that the kernel fills from its start as far as it needs: its end may be no memory at all.
    fn out_by_result(&mut self, address: u64, size: Size, keep: Keep) -> Result<Option<(Segment, Place)>, Gone> {
        let Some(length) = self.length(size, true) else {
            return Ok(None);
        };
        if !self.reaches(address, length.min(1))? {
            return Ok(None);
        }
        Ok(Some((
            Segment::Out {
                len: length as u32,
                keep,
            },
            Place::At(address),
        )))
    }

    /// A socket address or option: its room is in the segment of the argument `at`.
    fn name(&mut self, address: u64, at: usize) -> Result<Option<(Segment, Place)>, Gone> {
        let counter = match self.arguments[at] {
            Argument::Segment(index) => index,
            // Without a length the kernel writes nothing.
            _ => return Ok(Some((Segment::In(Vec::new()), Place::Nowhere))),
        };
        let said = self.segments[usize::from(counter)]
            .input()
            .map_or(0, |bytes| i32_at(bytes, 0));
        // A negative one is the kernel's to refuse.
        let mut bytes = vec![0; usize::try_from(said).unwrap_or(0).min(MAX_NAME)];
        let readable = self.memory.read(address, &mut bytes)?;
        if readable == 0 && !bytes.is_empty() {
            return Ok(None);
        }
        bytes.truncate(readable);
        if said > 0 && readable < said as usize {
            if let Segment::InOut { bytes, .. } = &mut self.segments[usize::from(counter)] {
                bytes[..4].copy_from_slice(&(readable as u32).to_le_bytes());
            }
            self.reduced.push(counter);
        }
        let keep = Keep::Counted {
            segment: counter,
            offset: 0,
        };
        Ok(Some((Segment::InOut { bytes, keep }, Place::At(address))))
    }

    /// Bytes that `size` means now; `None` if negative or more than a call carries.
    fn length_of(&self, size: Size) -> Option<u64> {
        size.bytes(&self.values).filter(|&length| length <= CHUNK)
    }

    /// Like [`length_of`](Self::length_of), but a length that is only room is reduced to what a call carries.
    fn length(&mut self, size: Size, room: bool) -> Option<u64> {
        let length = size.bytes(&self.values)?;
        if length <= CHUNK {
            return Some(length);
        }
        match size {
            Size::Long(at) | Size::Int(at) if room => self.values[usize::from(at)] = CHUNK,
            // A count for which the bytes exceed an int is refused by the kernel as it is.
            Size::Times(at, item) if room && length <= i32::MAX as u64 => {
                self.values[usize::from(at)] = CHUNK / u64::from(item);
                return Some(CHUNK / u64::from(item) * u64::from(item));
            }
            _ => return None,
        }
        Some(CHUNK)
    }

    /// All of it, or nothing.
    fn read(&self, address: u64, length: u64) -> Result<Option<Vec<u8>>, Gone> {
        let mut bytes = vec![0; length as usize];
        let whole = length == 0 || self.memory.read(address, &mut bytes)? == bytes.len();
        Ok(whole.then_some(bytes))
    }

    /// A string with its NUL, or `max` bytes without one: then the kernel too finds it too long.
    fn text(&self, address: u64, max: usize) -> Result<Option<Vec<u8>>, Gone> {
        let mut bytes = Vec::new();
        // Most are short.
        for end in [max.min(256), max] {
            let start = bytes.len();
            bytes.resize(end, 0);
            let readable = self
                .memory
                .read(address.wrapping_add(start as u64), &mut bytes[start..])?;
            if let Some(nul) = bytes[start..start + readable].iter().position(|&byte| byte == 0) {
                bytes.truncate(start + nul + 1);
                return Ok(Some(bytes));
            }
            if start + readable < end {
                return Ok(None);
            }
        }
        Ok(Some(bytes))
    }

    /// Whether the first and the last of these bytes are memory: what can be told without writing.
    fn reaches(&self, address: u64, length: u64) -> Result<bool, Gone> {
        if length == 0 {
            return Ok(true);
        }
        match address.checked_add(length - 1) {
            Some(last) if last < USER_END => Ok(self.is_memory(address)? && self.is_memory(last)?),
            _ => Ok(false),
        }
    }

    fn is_memory(&self, address: u64) -> Result<bool, Gone> {
        Ok(self.memory.read(address, &mut [0])? == 1)
    }
}

impl Size {
    /// Bytes, given the registers; `None` if they are negative.
    pub(crate) fn bytes(self, values: &[u64; 6]) -> Option<u64> {
        let int = |at: u8| u64::try_from(values[usize::from(at)] as i32).ok();
        match self {
            Size::Is(bytes) => Some(bytes.into()),
            Size::Long(at) => Some(values[usize::from(at)]),
            Size::Int(at) => int(at),
            Size::Times(at, item) => int(at).map(|count| count * u64::from(item)),
            Size::Bits(at) => int(at).map(|count| count.div_ceil(64) * 8),
        }
    }
}

impl Pending {
    /// The call to send.
    pub fn call(&self) -> &Call {
        &self.call
    }

    /// The signal mask that the call has for its time (`ppoll` and its kin): signals are delivered in the guest, so it
    /// is for the caller to heed and not part of the call.
    pub fn temporary_mask(&self) -> Option<u64> {
        self.temporary_mask
    }

    /// The timeout of a call which the kernel leaves as it is, so that it begins anew when the call is made again.
    pub fn fixed_timeout(&self) -> Option<Duration> {
        match (i64::from(self.call.number), self.call.arguments) {
            (libc::SYS_poll, [_, _, Argument::Value(ms), ..])
            | (libc::SYS_epoll_wait | libc::SYS_epoll_pwait, [_, _, _, Argument::Value(ms), ..]) => {
                u64::try_from(ms as i32).ok().map(Duration::from_millis)
            }
            (libc::SYS_epoll_pwait2, _) => self.input(3).and_then(|time| {
                let nanoseconds = u32::try_from(u64_at(time, 8)).ok()?;
                Some(Duration::new(u64_at(time, 0), nanoseconds)).filter(|_| nanoseconds < 1_000_000_000)
            }),
            _ => None,
        }
    }

    /// Gives a call that waits for descriptors another timeout.
    pub fn set_timeout(&mut self, timeout: Duration) {
        // In whole milliseconds, and never too early.
        let ms = Argument::Value(timeout.as_nanos().div_ceil(1_000_000).min(i32::MAX as u128) as u64);
        let (position, fraction, keep) = match i64::from(self.call.number) {
            libc::SYS_poll => return self.call.arguments[2] = ms,
            libc::SYS_epoll_wait | libc::SYS_epoll_pwait => return self.call.arguments[3] = ms,
            libc::SYS_ppoll => (2, timeout.subsec_nanos(), true),
            libc::SYS_pselect6 => (4, timeout.subsec_nanos(), true),
            libc::SYS_select => (4, timeout.subsec_micros(), true),
            libc::SYS_epoll_pwait2 => (3, timeout.subsec_nanos(), false),
            _ => return,
        };
        let time = [timeout.as_secs().to_le_bytes(), u64::from(fraction).to_le_bytes()].concat();
        match self.call.arguments[position] {
            Argument::Segment(index) => match &mut self.call.segments[usize::from(index)] {
                Segment::In(bytes) | Segment::InOut { bytes, .. } => *bytes = time,
                Segment::Out { .. } => {}
            },
            // It had none, and has nowhere to be told what is left.
            Argument::Value(0) => {
                let segment = match keep {
                    true => Segment::InOut {
                        bytes: time,
                        keep: Keep::All,
                    },
                    false => Segment::In(time),
                };
                self.call.arguments[position] = Argument::Segment(self.call.segments.len() as u16);
                self.call.segments.push(segment);
                self.places.push(Place::Nowhere);
            }
            _ => {}
        }
    }

    /// Writes what the reply brings into the guest. A reply to another call is answered `EIO`.
    ///
    /// # Errors
    /// [`Gone`] if the process ended meanwhile.
    pub fn finish(mut self, reply: Reply, memory: &dyn Memory) -> Result<Outcome, Gone> {
        if reply.validate(&self.call).is_err() {
            return Ok(Outcome::Done(-i64::from(libc::EIO)));
        }
        match std::mem::replace(&mut self.then, Then::Done) {
            Then::Done => Ok(Outcome::Done(self.deliver(&reply, memory)?)),
            Then::Local => Ok(match self.deliver(&reply, memory)? {
                result if result < 0 => Outcome::Done(result),
                _ => Outcome::Local,
            }),
            Then::Transfer(transfer) => transfer.finish(self, &reply, memory),
            Then::Kind(transfer) => transfer.finish_kind(self, &reply, memory),
            Then::Messages(messages) => messages.finish(self, &reply, memory),
        }
    }

    /// Writes all outputs to their places; the result, or `-EFAULT` if one cannot be written.
    fn deliver(&self, reply: &Reply, memory: &dyn Memory) -> Result<i64, Gone> {
        let failed = reply.result < 0;
        let mut fault = false;
        for (index, place) in self.places.iter().enumerate() {
            let bytes = match reply.outputs.iter().find(|output| usize::from(output.segment) == index) {
                Some(output) => output.bytes.as_slice(),
                None if !failed && self.reduced.contains(&(index as u16)) => {
                    self.call.segments[index].input().unwrap_or_default()
                }
                None => continue,
            };
            let written = match place {
                Place::Nowhere | Place::Perhaps(0) => continue,
                Place::Perhaps(address) => {
                    memory.write(*address, bytes)?;
                    continue;
                }
                Place::At(address) => memory.write(*address, bytes)?,
                Place::Spread(ranges) => spread(ranges, bytes, memory)?,
            };
            fault |= written < bytes.len();
        }
        Ok(if fault && !failed {
            -i64::from(libc::EFAULT)
        } else {
            reply.result
        })
    }

    /// The bytes of a segment after the call: what came back, or what was sent if it did not change.
    fn after<'a>(&'a self, reply: &'a Reply, index: u16) -> &'a [u8] {
        match reply.outputs.iter().find(|output| output.segment == index) {
            Some(output) => &output.bytes,
            None => self
                .call
                .segments
                .get(usize::from(index))
                .and_then(Segment::input)
                .unwrap_or_default(),
        }
    }

    /// The path of an `open` or `openat`, without its NUL.
    fn path(&self) -> Option<&[u8]> {
        let position = if self.call.number == libc::SYS_open as u32 {
            0
        } else {
            1
        };
        self.input(position)?.split_last().map(|(_, path)| path)
    }

    fn open_flags(&self) -> u64 {
        match (i64::from(self.call.number), self.call.arguments) {
            (libc::SYS_open, [_, Argument::Value(flags), ..]) => flags,
            (libc::SYS_openat, [_, _, Argument::Value(flags), ..]) => flags,
            // openat2: the first member of struct open_how.
            _ => self
                .input(2)
                .filter(|how| how.len() >= 8)
                .map_or(0, |how| u64_at(how, 0)),
        }
    }

    fn input(&self, position: usize) -> Option<&[u8]> {
        match self.call.arguments[position] {
            Argument::Segment(index) => self.call.segments[usize::from(index)].input(),
            _ => None,
        }
    }
}

/// The call with its numbers as they are, its second argument replaced and no other pointers: for a call that comes to
/// nothing, but whose errors are to be found by the origin's kernel in its order.
fn literally(pid: i32, number: u32, args: [u64; 6], second: Argument, memory: &dyn Memory) -> Pending {
    let mut builder = Builder::new(memory, args);
    if let Some(Away::Special(_, list)) = syscalls::row(number).map(|row| row.away) {
        for (position, _) in list.iter().enumerate().filter(|(_, arg)| **arg == Arg::Value) {
            builder.arguments[position] = Argument::Value(args[position]);
        }
    }
    builder.arguments[1] = second;
    builder.pending(pid, number, Then::Done)
}

/// What of `/proc` is about the process's memory and state, which are with the guest: the path below `/proc/self`.
/// All else there (descriptors, directories, mounts, limits of the host) is the deputy's.
fn own_proc(pid: i32, path: &[u8]) -> Option<String> {
    const OWN: [&str; 17] = [
        "auxv",
        "clear_refs",
        "cmdline",
        "environ",
        "maps",
        "mem",
        "numa_maps",
        "pagemap",
        "sched",
        "schedstat",
        "smaps",
        "smaps_rollup",
        "stat",
        "statm",
        "status",
        "syscall",
        "wchan",
    ];
    let path = std::str::from_utf8(path).ok()?;
    let mut parts = path
        .strip_prefix('/')?
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".");
    if parts.next()? != "proc" {
        return None;
    }
    let who = parts.next()?;
    if who != "self" && who != "thread-self" && who.parse() != Ok(pid) {
        return None;
    }
    let rest: Vec<&str> = parts.collect();
    match rest.as_slice() {
        ["task"] => {}
        ["task", thread, name] if thread.parse::<u32>().is_ok() && OWN.contains(name) => {}
        [name] if OWN.contains(name) => {}
        _ => return None,
    }
    Some(rest.join("/"))
}

/// Writes bytes over ranges, in order; returns how many were written before one could not be.
fn spread(ranges: &[(u64, u64)], bytes: &[u8], memory: &dyn Memory) -> Result<usize, Gone> {
    let mut done = 0;
    for &(address, length) in ranges {
        let part = &bytes[done..bytes.len().min(done + length as usize)];
        if part.is_empty() {
            continue;
        }
        let written = memory.write(address, part)?;
        done += written;
        if written < part.len() {
            break;
        }
    }
    Ok(done)
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|i| bytes.get(offset + i).copied().unwrap_or(0)))
}

fn i32_at(bytes: &[u8], offset: usize) -> i32 {
    i32::from_le_bytes(std::array::from_fn(|i| bytes.get(offset + i).copied().unwrap_or(0)))
}
