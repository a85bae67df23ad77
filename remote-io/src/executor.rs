//! The origin's side of a forwarded call: lays it out in a deputy's scratch memory.
//!
//! ```text
//!   Call ── plan ──→ Plan { number, arguments, image }      write image at the scratch base, make the system call
//!   Reply ←─ Plan::reply(result, read scratch) ←──────────  its result
//! ```
//!
//! A call is only planned if the table forwards it, if it has segments exactly where the table has pointers, and if each
//! is as large as what the kernel will read or write there. So whatever a guest's side sends, the deputy's kernel is
//! never given an address outside the scratch memory, nor a length beyond a segment's end.

use std::collections::HashMap;

use crate::call::{Argument, Call, CallError, FAULT, Keep, MAX_BYTES, Output, Pointer, Reply};
use crate::syscalls::{self, Arg, Away, Decision, Special};

/// Where segments begin: what the strictest structure of the kernel may want.
const ALIGNMENT: usize = 16;

/// A system call ready for a deputy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The system call.
    pub number: u32,
    /// Its registers (rdi, rsi, rdx, r10, r8, r9).
    pub arguments: [u64; 6],
    /// The bytes to write at the start of the scratch memory.
    pub image: Vec<u8>,
    id: u64,
    /// Where each segment begins in the scratch memory.
    offsets: Vec<usize>,
    /// The segments that come back: index, size, part, and for those sent too, that they may be left out if unchanged.
    outputs: Vec<(u16, usize, Keep, bool)>,
}

/// Lays out `call` for scratch memory of `scratch_len` bytes at `scratch_base`.
///
/// # Errors
/// [`CallError`] if the call is not one to be executed as it is, or does not fit.
pub fn plan(call: &Call, scratch_base: u64, scratch_len: usize) -> Result<Plan, CallError> {
    call.validate()?;
    Check::new(call).arguments()?;

    // Inputs first, so that the image ends with them.
    let mut offsets = vec![0; call.segments.len()];
    let mut end = 0usize;
    let mut inputs_end = 0;
    for inputs in [true, false] {
        for (offset, segment) in offsets.iter_mut().zip(&call.segments) {
            if segment.input().is_some() == inputs {
                *offset = end;
                end = (end + segment.size()).next_multiple_of(ALIGNMENT);
            }
        }
        if inputs {
            inputs_end = end;
        }
    }
    if end > scratch_len {
        return Err(CallError::TooLarge {
            needed: end,
            room: scratch_len,
        });
    }
    let address = |segment: u16| scratch_base + offsets[usize::from(segment)] as u64;
    let mut image = vec![0; inputs_end];
    for (&offset, segment) in offsets.iter().zip(&call.segments) {
        if let Some(bytes) = segment.input() {
            image[offset..offset + bytes.len()].copy_from_slice(bytes);
        }
    }
    for &Pointer {
        segment,
        offset,
        target,
    } in &call.pointers
    {
        let at = offsets[usize::from(segment)] + offset as usize;
        image[at..at + 8].copy_from_slice(&address(target).to_le_bytes());
    }
    let arguments = call.arguments.map(|argument| match argument {
        Argument::Value(value) => value,
        Argument::Segment(segment) => address(segment),
        Argument::Fault => FAULT,
    });
    let outputs = (0u16..)
        .zip(&call.segments)
        .filter_map(|(index, s)| s.keep().map(|keep| (index, s.size(), keep, s.input().is_some())))
        .collect();
    Ok(Plan {
        number: call.number,
        arguments,
        image,
        id: call.id,
        offsets,
        outputs,
    })
}

impl Plan {
    /// Scratch memory that any call fits into, in bytes.
    pub const SCRATCH: usize = MAX_BYTES + crate::call::MAX_SEGMENTS * ALIGNMENT;

    /// Collects the answer. `result` is what the kernel returned; `read` reads the scratch memory, from that offset on,
    /// and fills the buffer. After an error only what changed comes back, since the kernel may leave outputs as they were.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn reply<E>(&self, result: i64, mut read: impl FnMut(usize, &mut [u8]) -> Result<(), E>) -> Result<Reply, E> {
        let mut outputs = Vec::new();
        let returned = usize::try_from(result).unwrap_or(0);
        for &(segment, size, keep, was_sent) in &self.outputs {
            if result < 0 && !was_sent {
                continue;
            }
            let kept = match keep {
                Keep::All => size,
                // After an error nothing was counted.
                _ if result < 0 => 0,
                Keep::Returned => returned,
                Keep::ReturnedTimes(item) => returned.saturating_mul(item as usize),
                Keep::Counted { segment, offset } => {
                    let mut count = [0; 4];
                    read(self.offsets[usize::from(segment)] + offset as usize, &mut count)?;
                    u32::from_le_bytes(count) as usize
                }
            };
            let offset = self.offsets[usize::from(segment)];
            let mut bytes = vec![0; kept.min(size)];
            if bytes.is_empty() {
                continue;
            }
            read(offset, &mut bytes)?;
            if !was_sent || bytes != self.image[offset..offset + bytes.len()] {
                outputs.push(Output { segment, bytes });
            }
        }
        Ok(Reply {
            id: self.id,
            result,
            outputs,
        })
    }
}

/// The comparison of a call with the table.
struct Check<'c> {
    call: &'c Call,
    /// The registers as far as they are numbers; 1 for addresses.
    values: [u64; 6],
    /// Pointers inside segments by their place, which structures of the call take out.
    pointers: HashMap<(u16, u32), u16>,
}

impl<'c> Check<'c> {
    fn new(call: &'c Call) -> Self {
        let values = call.arguments.map(|argument| match argument {
            Argument::Value(value) => value,
            Argument::Segment(_) | Argument::Fault => 1,
        });
        let pointers = call
            .pointers
            .iter()
            .map(|p| ((p.segment, p.offset), p.target))
            .collect();
        Check { call, values, pointers }
    }

    fn arguments(mut self) -> Result<(), CallError> {
        let number = self.call.number;
        let row = syscalls::row(number).ok_or(CallError::NotForwarded(number))?;
        // What a process reads from descriptors here, it sends itself from here.
        let process = match row.away {
            Away::Special(Special::Signal, _) => syscalls::NOBODY,
            _ => self.call.process,
        };
        let list = match syscalls::decide(row, process, &self.values) {
            Decision::Forward(list) | Decision::Both(list) => list,
            _ => return Err(CallError::NotForwarded(number)),
        };
        // Two pointers at one place, or one where no structure has it, would be left over.
        if self.pointers.len() != self.call.pointers.len() {
            return Err(CallError::StrayPointer);
        }
        for (position, (arg, argument)) in list.into_iter().zip(self.call.arguments).enumerate() {
            let wrong = CallError::WrongArgument { number, position };
            match (arg, argument) {
                (Arg::Value, Argument::Value(_)) | (Arg::Unused, Argument::Value(0)) => {}
                (Arg::Value | Arg::Unused, _) => return Err(wrong),
                (_, Argument::Value(0)) => {}
                (Arg::Mask(_) | Arg::MaskPair, _) | (_, Argument::Value(_)) => return Err(wrong),
                (_, Argument::Fault) => {}
                (arg, Argument::Segment(index)) => self.pointer(arg, index).map_err(|error| error.unwrap_or(wrong))?,
            }
        }
        if self.pointers.is_empty() {
            Ok(())
        } else {
            Err(CallError::StrayPointer)
        }
    }

    /// Checks one pointer argument; `None` as the error if it is not of the kind that belongs there.
    fn pointer(&mut self, arg: Arg, index: u16) -> Result<(), Option<CallError>> {
        let segment = self.call.segment(index)?;
        let (input, output) = (segment.input(), segment.keep().is_some());
        let (size, reads, writes) = match arg {
            Arg::In(size) => (size.bytes(&self.values), true, false),
            Arg::Out(size) | Arg::Got(size) => (size.bytes(&self.values), false, true),
            Arg::InOut(size) => (size.bytes(&self.values), true, true),
            Arg::Timeout(size) => (Some(size.into()), true, true),
            Arg::Events(count) => (syscalls::Size::Times(count, 12).bytes(&self.values), false, true),
            Arg::Name(at) => (Some(self.room_said(usize::from(at))?), false, false),
            Arg::Path => return string(input, libc::PATH_MAX as usize),
            Arg::Text(max) => return string(input, max.into()),
            Arg::Vector => return Ok(self.vector(index, 0, self.values[2])?),
            Arg::Message => return Ok(self.message(index, 0)?),
            Arg::Batch(count) => {
                let count = self.values[usize::from(count)] as u32;
                return Ok((0..count).try_for_each(|at| self.message(index, at.saturating_mul(64)))?);
            }
            Arg::Value | Arg::Unused | Arg::Mask(_) | Arg::MaskPair => return Err(None),
        };
        if reads && input.is_none() || writes && !output {
            return Err(None);
        }
        Ok(self.fits(index, size.ok_or(None)?)?)
    }

    fn fits(&self, index: u16, needed: u64) -> Result<(), CallError> {
        let have = self.call.segment(index)?.size();
        if (have as u64) < needed {
            Err(CallError::TooShort {
                segment: index,
                have,
                needed,
            })
        } else {
            Ok(())
        }
    }

    /// What the length behind argument `at` says; the kernel refuses negative ones, and writes nothing without one.
    fn room_said(&self, at: usize) -> Result<u64, CallError> {
        let Argument::Segment(index) = self.call.arguments[at] else {
            return Ok(0);
        };
        let said = self.number::<4>(index, 0)?;
        Ok(i32::from_le_bytes(said).try_into().unwrap_or(0))
    }

    /// A number inside an input.
    fn number<const N: usize>(&self, segment: u16, offset: u32) -> Result<[u8; N], CallError> {
        let bad = CallError::BadPlace { segment, offset };
        let bytes = self.call.segment(segment)?.input().ok_or(bad)?;
        bytes
            .get(offset as usize..)
            .and_then(|rest| rest.first_chunk::<N>())
            .copied()
            .ok_or(bad)
    }

    /// The target of the pointer at this place, taken out; `None` if nothing is pointed to.
    fn target(&mut self, segment: u16, offset: u32) -> Result<Option<u16>, CallError> {
        let raw = u64::from_le_bytes(self.number(segment, offset)?);
        match self.pointers.remove(&(segment, offset)) {
            Some(target) => Ok(Some(target)),
            None if raw == 0 || raw == FAULT => Ok(None),
            None => Err(CallError::BadPlace { segment, offset }),
        }
    }

    /// `struct iovec`s: an address and a length each.
    fn vector(&mut self, segment: u16, start: u32, count: u64) -> Result<(), CallError> {
        // More than that the kernel does not look at.
        for index in 0..count.min(libc::UIO_MAXIOV as u64 + 1) as u32 {
            let offset = start + index * 16;
            let length = u64::from_le_bytes(self.number(segment, offset + 8)?);
            if let Some(target) = self.target(segment, offset)? {
                self.fits(target, length)?;
            }
        }
        Ok(())
    }

    /// `struct msghdr`: name and its length (int), vector and its count, control and its length.
    fn message(&mut self, segment: u16, start: u32) -> Result<(), CallError> {
        let at = |offset: u32| start.saturating_add(offset);
        let name_length = i32::from_le_bytes(self.number(segment, at(8))?);
        let vector_count = u64::from_le_bytes(self.number(segment, at(24))?);
        let control_length = u64::from_le_bytes(self.number(segment, at(40))?);
        self.number::<8>(segment, at(48))?;
        if let Some(name) = self.target(segment, at(0))? {
            self.fits(name, name_length.try_into().unwrap_or(0))?;
        }
        if let Some(vector) = self.target(segment, at(16))? {
            self.vector(vector, 0, vector_count)?;
        }
        if let Some(control) = self.target(segment, at(32))? {
            self.fits(control, control_length)?;
        }
        Ok(())
    }
}

/// A string must end where the kernel stops looking: with a NUL, or with the longest that it reads.
fn string(input: Option<&[u8]>, max: usize) -> Result<(), Option<CallError>> {
    let bytes = input.ok_or(None)?;
    if bytes.len() >= max || bytes.contains(&0) {
        Ok(())
    } else {
        Err(None)
    }
}
