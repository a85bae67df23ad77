//! `sendmsg`, `recvmsg`, `sendmmsg` and `recvmmsg`.
//!
//! ```text
//!   segment 0    the headers: struct msghdr (56 bytes), or struct mmsghdr (64) one after the other
//!   then each    struct iovec (always one) · data · name · control, the last two if there are any
//! ```
//!
//! Descriptors in control messages (`SCM_RIGHTS`) need no care: they are the deputy's numbers on both sides. What does
//! not fit into one call takes several rounds, like a [transfer](super::transfer).

use std::collections::VecDeque;

use super::transfer::{Flaw, gather, read_vector, rest_of_message};
use super::{
    Argument, Builder, CHUNK, Gone, Keep, MAX_NAME, Memory, Outcome, Pending, Place, Reply, Segment, Stop, Then,
    i32_at, literally, spread, u64_at,
};
use crate::call::{FAULT, MAX_SEGMENTS};
use crate::syscalls::Arg;

/// `struct msghdr`: size, and where its members are.
const HEADER: usize = 56;
const NAME: usize = 0;
const NAME_LENGTH: usize = 8;
const VECTOR: usize = 16;
const VECTOR_COUNT: usize = 24;
const CONTROL: usize = 32;
const CONTROL_LENGTH: usize = 40;
const FLAGS: usize = 48;
/// `struct mmsghdr`: a header and msg_len.
const PLURAL_HEADER: usize = 64;
const MESSAGE_LENGTH: usize = 56;
/// The longest socket address (`struct sockaddr_storage`); the kernel takes longer ones for this.
const MAX_ADDRESS: i32 = 128;
/// Messages of one round.
const MAX_MESSAGES: usize = (MAX_SEGMENTS - 2) / 4;

/// Messages under way.
#[derive(Debug)]
pub(super) struct Messages {
    number: u32,
    args: [u64; 6],
    /// Messages finished in earlier rounds (plural calls only).
    done: u64,
    /// The messages of this round.
    round: Vec<Message>,
}

/// Where one message goes in the guest.
#[derive(Debug)]
struct Message {
    /// Of its header.
    address: u64,
    ranges: Vec<(u64, u64)>,
    /// Its segment; none if it is no memory.
    data: Option<u16>,
    /// Bytes of data in this round.
    length: u64,
    /// Segment and address.
    name: Option<(u16, u64)>,
    control: Option<(u16, u64)>,
    has_name: bool,
}

pub(super) fn begin(pid: i32, number: u32, mut args: [u64; 6], memory: &dyn Memory) -> Result<Pending, Stop> {
    let plural = is_plural(number);
    args[2] = if plural {
        u64::from(args[2] as u32).min(libc::UIO_MAXIOV as u64)
    } else {
        args[2]
    };
    let nothing = if args[1] == 0 {
        Argument::Value(0)
    } else {
        Argument::Fault
    };
    if args[1] == 0 || plural && args[2] == 0 {
        return Ok(literally(pid, number, args, nothing, memory));
    }
    // The errors of the descriptor come before those of the first header: so a header with the same flaw crosses.
    let mut header = vec![0; PLURAL_HEADER];
    match round(
        pid,
        Messages {
            number,
            args,
            done: 0,
            round: Vec::new(),
        },
        memory,
    )? {
        Ok(pending) => return Ok(pending),
        Err(Flaw::Fault) => return Ok(literally(pid, number, args, Argument::Fault, memory)),
        Err(Flaw::Count) => put_u64(&mut header, VECTOR_COUNT, libc::UIO_MAXIOV as u64 + 1),
        Err(Flaw::Length) => {
            put_u64(&mut header, NAME, FAULT);
            put_u64(&mut header, NAME_LENGTH, u32::MAX.into());
        }
    }
    let mut pending = literally(pid, number, args, Argument::Segment(0), memory);
    if plural {
        pending.call.arguments[2] = Argument::Value(1);
    }
    pending.call.segments.push(Segment::In(header));
    pending.places.push(Place::Nowhere);
    Ok(pending)
}

fn is_plural(number: u32) -> bool {
    matches!(i64::from(number), libc::SYS_sendmmsg | libc::SYS_recvmmsg)
}

fn is_send(number: u32) -> bool {
    matches!(i64::from(number), libc::SYS_sendmsg | libc::SYS_sendmmsg)
}

/// Makes the next call, or says what is wrong with the first of its messages.
fn round(pid: i32, mut messages: Messages, memory: &dyn Memory) -> Result<Result<Pending, Flaw>, Stop> {
    let Messages { number, args, done, .. } = messages;
    let (plural, send) = (is_plural(number), is_send(number));
    let size = if plural { PLURAL_HEADER } else { HEADER };
    let mut builder = Builder::new(memory, args);
    let headers = builder.add(Segment::In(Vec::new()), Place::Nowhere);
    let mut image = Vec::new();
    let mut room = CHUNK;
    let count = if plural {
        (args[2] - done).min(MAX_MESSAGES as u64)
    } else {
        1
    };
    messages.round.clear();
    for index in 0..count {
        let address = args[1].wrapping_add((done + index) * size as u64);
        let Some(header) = builder.read(address, size as u64)? else {
            if messages.round.is_empty() {
                return Ok(Err(Flaw::Fault));
            }
            break;
        };
        match message(&mut builder, (send, plural), address, header, &mut image, room)? {
            Ok(Some(message)) => {
                room -= message.length;
                messages.round.push(message);
            }
            Err(flaw) if messages.round.is_empty() => return Ok(Err(flaw)),
            // What is before it goes first; a flaw is found when its message is the first.
            Ok(None) | Err(_) => break,
        }
        if room == 0 {
            break;
        }
    }
    let keep = Keep::All;
    builder.segments[0] = if send && !plural {
        Segment::In(image)
    } else {
        Segment::InOut { bytes: image, keep }
    };
    let mut list = [Arg::Unused; 6];
    if number == libc::SYS_recvmmsg as u32 {
        list[4] = Arg::Timeout(16);
    }
    builder.marshal(&list)?;
    let third = if plural { messages.round.len() as u64 } else { args[2] };
    let numbers = [
        Argument::Value(args[0]),
        Argument::Segment(headers),
        Argument::Value(third),
    ];
    builder.arguments[..3].copy_from_slice(&numbers);
    if plural {
        builder.arguments[3] = Argument::Value(args[3]);
    }
    Ok(Ok(builder.pending(pid, number, Then::Messages(messages))))
}

/// Adds one message to the call; `None` if it does not fit any more. The checks are those of `copy_msghdr_from_user` in
/// `net/socket.c`.
fn message(
    builder: &mut Builder,
    (send, plural): (bool, bool),
    address: u64,
    mut header: Vec<u8>,
    image: &mut Vec<u8>,
    room: u64,
) -> Result<Result<Option<Message>, Flaw>, Stop> {
    let memory = builder.memory;
    let base = image.len();
    let (name_at, mut name_length) = (u64_at(&header, NAME), i32_at(&header, NAME_LENGTH));
    let (control_at, control_length) = (u64_at(&header, CONTROL), u64_at(&header, CONTROL_LENGTH));
    if name_at != 0 {
        if name_length < 0 {
            return Ok(Err(Flaw::Length));
        }
        name_length = name_length.min(MAX_ADDRESS);
    }
    let ranges = match read_vector(u64_at(&header, VECTOR), u64_at(&header, VECTOR_COUNT), memory)? {
        Ok(ranges) => ranges,
        Err(flaw) => return Ok(Err(flaw)),
    };
    // Only a whole message is worth putting beside others.
    let total: u64 = ranges.iter().map(|(_, length)| length).sum();
    if total > room && base > 0 {
        return Ok(Ok(None));
    }
    // Pointers that are not patched: null, or one that faults as the guest's does.
    for field in [NAME, VECTOR, CONTROL] {
        header[field..field + 8].fill(0);
    }
    let counted = |offset: usize| Keep::Counted {
        segment: 0,
        offset: (base + offset) as u32,
    };

    // Data, through a vector of one.
    let mut vector = vec![0; 16];
    let (data, length) = if send {
        let (bytes, wanted) = gather(&ranges, room, memory)?;
        let whole = bytes.len() as u64 == wanted;
        (whole.then_some(Segment::In(bytes)), wanted)
    } else {
        let length = total.min(room);
        let there = match ranges.first() {
            Some(&(address, _)) => builder.is_memory(address)?,
            None => true,
        };
        let keep = if plural {
            counted(MESSAGE_LENGTH)
        } else {
            Keep::Returned
        };
        (
            there.then_some(Segment::Out {
                len: length as u32,
                keep,
            }),
            length,
        )
    };
    put_u64(&mut vector, 8, length);
    if data.is_none() {
        put_u64(&mut vector, 0, FAULT);
    }
    let vector = builder.add_pointed(0, base + VECTOR, Segment::In(vector));
    put_u64(&mut header, VECTOR_COUNT, 1);
    let data = data.map(|segment| builder.add_pointed(vector, 0, segment));

    // Name and control: what is there is sent even for a receive, so that gaps come back as they were.
    let mut side = |builder: &mut Builder, field: usize, address: u64, length: u64, keep: Keep| {
        if address == 0 || length == 0 {
            // The kernel tells an address without room from none.
            put_u64(&mut header, field, if address == 0 { 0 } else { FAULT });
            return Ok::<_, Stop>(None);
        }
        match builder.read(address, length)? {
            Some(bytes) => {
                let segment = if send {
                    Segment::In(bytes)
                } else {
                    Segment::InOut { bytes, keep }
                };
                Ok(Some((builder.add_pointed(0, base + field, segment), address)))
            }
            None => {
                put_u64(&mut header, field, FAULT);
                Ok(None)
            }
        }
    };
    let name = side(builder, NAME, name_at, name_length.max(0) as u64, counted(NAME_LENGTH))?;
    let mut said = control_length;
    let control = if send && control_length > MAX_NAME as u64 {
        // The kernel refuses it by its length.
        put_u64(&mut header, CONTROL, FAULT);
        None
    } else {
        said = control_length.min(MAX_NAME as u64);
        side(builder, CONTROL, control_at, said, counted(CONTROL_LENGTH))?
    };
    header[NAME_LENGTH..NAME_LENGTH + 4].copy_from_slice(&name_length.to_le_bytes());
    put_u64(&mut header, CONTROL_LENGTH, said);
    if plural {
        header[MESSAGE_LENGTH..].fill(0);
    }
    image.extend_from_slice(&header);
    Ok(Ok(Some(Message {
        address,
        ranges,
        data,
        length,
        name,
        control,
        has_name: name_at != 0,
    })))
}

impl Messages {
    pub(super) fn finish(mut self, pending: Pending, reply: &Reply, memory: &dyn Memory) -> Result<Outcome, Gone> {
        let (plural, send) = (is_plural(self.number), is_send(self.number));
        // The timeout of recvmmsg; nothing else has a place of its own.
        pending.deliver(reply, memory)?;
        if reply.result < 0 {
            return Ok(Outcome::Done(if self.done > 0 {
                self.done as i64
            } else {
                reply.result
            }));
        }
        let size = if plural { PLURAL_HEADER } else { HEADER };
        let headers = pending.after(reply, 0);
        let finished = if plural {
            (reply.result as usize).min(self.round.len())
        } else {
            1
        };
        for (header, message) in headers.chunks_exact(size).zip(&self.round).take(finished) {
            if !message.deliver(reply, header, (send, plural), memory)? {
                let fault = -i64::from(libc::EFAULT);
                return Ok(Outcome::Done(if self.done > 0 { self.done as i64 } else { fault }));
            }
        }
        let (pid, done) = (pending.call.process, reply.result as u64);
        if !plural {
            let message = &self.round[0];
            let total: u64 = message.ranges.iter().map(|(_, length)| length).sum();
            if done != message.length || total == message.length {
                return Ok(Outcome::Done(reply.result));
            }
            let mut rest: VecDeque<(u64, u64)> = message.ranges.iter().copied().collect();
            skip(&mut rest, done);
            return rest_of_message((pid, self.args[0], self.args[2], send), rest, done, memory);
        }
        self.done += finished as u64;
        let waits_for_one = self.args[3] as i32 & libc::MSG_WAITFORONE != 0;
        if finished < self.round.len() || self.done == self.args[2] || self.time_is_over(memory)? {
            return Ok(Outcome::Done(self.done as i64));
        }
        if !send && waits_for_one {
            self.args[3] |= libc::MSG_DONTWAIT as u64;
        }
        let done = self.done as i64;
        match round(pid, self, memory) {
            Ok(Ok(pending)) => Ok(Outcome::Again(pending)),
            Ok(Err(_)) | Err(Stop::Errno(_)) => Ok(Outcome::Done(done)),
            Err(Stop::Gone) => Err(Gone),
        }
    }

    /// Whether `recvmmsg` had a timeout and nothing of it remains.
    fn time_is_over(&self, memory: &dyn Memory) -> Result<bool, Gone> {
        if self.number != libc::SYS_recvmmsg as u32 || self.args[4] == 0 {
            return Ok(false);
        }
        let mut remaining = [0; 16];
        memory.read(self.args[4], &mut remaining)?;
        Ok(remaining == [0; 16])
    }
}

impl Message {
    /// Writes one message and what its header says of it; false if that is not possible.
    fn deliver(
        &self,
        reply: &Reply,
        header: &[u8],
        (send, plural): (bool, bool),
        memory: &dyn Memory,
    ) -> Result<bool, Gone> {
        let mut whole = true;
        let mut put = |address: u64, bytes: &[u8]| {
            whole &= memory.write(address, bytes)? == bytes.len();
            Ok::<(), Gone>(())
        };
        if plural {
            put(
                self.address + MESSAGE_LENGTH as u64,
                &header[MESSAGE_LENGTH..MESSAGE_LENGTH + 4],
            )?;
        }
        if !send {
            for (segment, address) in [self.name, self.control].into_iter().flatten() {
                // Unchanged bytes need no writing.
                if let Some(output) = reply.outputs.iter().find(|output| output.segment == segment) {
                    put(address, &output.bytes)?;
                }
            }
            if self.has_name {
                put(self.address + NAME_LENGTH as u64, &header[NAME_LENGTH..NAME_LENGTH + 4])?;
            }
            put(
                self.address + CONTROL_LENGTH as u64,
                &header[CONTROL_LENGTH..CONTROL_LENGTH + 8],
            )?;
            put(self.address + FLAGS as u64, &header[FLAGS..FLAGS + 4])?;
            if let Some(output) = reply.outputs.iter().find(|output| Some(output.segment) == self.data) {
                whole &= spread(&self.ranges, &output.bytes, memory)? == output.bytes.len();
            }
        }
        Ok(whole)
    }
}

/// Drops that many bytes from the front.
fn skip(ranges: &mut VecDeque<(u64, u64)>, mut bytes: u64) {
    while let Some((address, length)) = ranges.pop_front() {
        if length > bytes {
            ranges.push_front((address + bytes, length - bytes));
            return;
        }
        bytes -= length;
    }
}

fn put_u64(bytes: &mut [u8], offset: usize, value: u64) {
    bytes[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
}
