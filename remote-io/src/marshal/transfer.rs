//! Bytes into and out of one descriptor: `read`, `write`, their positioned and vector forms, `sendto`, `recvfrom`.
//!
//! A vector becomes one buffer: files, pipes and sockets cannot tell. More than [`CHUNK`] bytes take several rounds, and
//! the next one is only begun where the kernel too would have gone on: after a whole chunk written, or read from a file
//! that is not a stream (a stream returns what is there).

use std::collections::VecDeque;

use super::{
    Argument, Builder, CHUNK, Gone, Keep, MAX_TRANSFER, Memory, Outcome, Pending, Place, Pointer, Reply, Segment, Stop,
    Then, USER_END, i32_at, literally, spread, u64_at,
};
use crate::syscalls::{Arg, Size};

/// `RWF_*` of `preadv2`, or `MSG_*`, and what goes with them.
#[derive(Debug, Clone, Copy)]
enum Form {
    /// `read`, `write`, and with a position `pread64`, `pwrite64`.
    Plain,
    /// `preadv2`, `pwritev2`: their flags.
    Flagged(u64),
    /// `recvfrom`, `sendto`: flags, and the address of the peer (pointer, length) in the first round.
    Socket { flags: u64, peer: (u64, u64) },
}

/// A transfer under way.
#[derive(Debug)]
pub(super) struct Transfer {
    form: Form,
    write: bool,
    descriptor: u64,
    /// Where it goes on in the file, unless at the description's own offset.
    position: Option<u64>,
    /// What is still to be moved: address and bytes.
    rest: VecDeque<(u64, u64)>,
    /// Bytes moved so far.
    done: u64,
    /// Bytes asked for in this round.
    asked: u64,
    /// Whether a whole chunk read means that there may be more to read without waiting.
    goes_on: bool,
}

pub(super) fn begin(pid: i32, number: u32, args: [u64; 6], memory: &dyn Memory) -> Result<Pending, Stop> {
    let (form, write, vector, position) = match i64::from(number) {
        libc::SYS_read => (Form::Plain, false, false, None),
        libc::SYS_write => (Form::Plain, true, false, None),
        libc::SYS_pread64 => (Form::Plain, false, false, Some(args[3])),
        libc::SYS_pwrite64 => (Form::Plain, true, false, Some(args[3])),
        libc::SYS_readv => (Form::Plain, false, true, None),
        libc::SYS_writev => (Form::Plain, true, true, None),
        libc::SYS_preadv => (Form::Plain, false, true, Some(args[3])),
        libc::SYS_pwritev => (Form::Plain, true, true, Some(args[3])),
        libc::SYS_preadv2 | libc::SYS_pwritev2 => {
            let form = if args[5] as i32 == 0 {
                Form::Plain
            } else {
                Form::Flagged(args[5])
            };
            // -1 means the description's own offset.
            (
                form,
                number == libc::SYS_pwritev2 as u32,
                true,
                (args[3] as i64 != -1).then_some(args[3]),
            )
        }
        libc::SYS_sendto => (
            Form::Socket {
                flags: args[3],
                peer: (args[4], args[5]),
            },
            true,
            false,
            None,
        ),
        _ => (
            Form::Socket {
                flags: args[3],
                peer: (args[4], args[5]),
            },
            false,
            false,
            None,
        ),
    };
    // Kernel order: the descriptor first, then the vector; so what is wrong with the latter is left to the origin's.
    let literal = |argument| Ok(literally(pid, number, args, argument, memory));
    let mut rest = VecDeque::new();
    if vector {
        if args[2] == 0 {
            return literal(Argument::Value(0));
        }
        match read_vector(args[1], args[2], memory)? {
            Ok(vector) => rest.extend(vector),
            Err(Flaw::Fault) => return literal(Argument::Fault),
            // Another way to be told EINVAL.
            Err(Flaw::Count | Flaw::Length) => {
                let mut args = args;
                args[2] = libc::UIO_MAXIOV as u64 + 1;
                return Ok(literally(pid, number, args, Argument::Fault, memory));
            }
        }
        if rest.is_empty() {
            // Nothing is moved, and unlike with one empty buffer no empty datagram is sent.
            return Ok(literally(
                pid,
                number,
                [args[0], 0, 0, args[3], args[4], args[5]],
                Argument::Value(0),
                memory,
            ));
        }
    } else {
        let (address, count) = (args[1], args[2]);
        match address {
            // An empty datagram needs no address; else the origin's kernel finds that there is none.
            0 if count > 0 => return literal(Argument::Value(0)),
            _ if address.checked_add(count).is_none_or(|end| end > USER_END) => return literal(Argument::Fault),
            _ => rest.push_back((address, count.min(MAX_TRANSFER))),
        }
    }
    let goes_on = write || position.is_some() || waits_for_all(form);
    let transfer = Transfer {
        form,
        write,
        descriptor: args[0],
        position,
        rest,
        done: 0,
        asked: 0,
        goes_on,
    };
    match transfer.round(pid, memory)? {
        Ok(pending) => Ok(pending),
        // No byte of it is memory.
        Err(_) => literal(Argument::Fault),
    }
}

/// Goes on where a message of more than a chunk left off.
pub(super) fn rest_of_message(
    (pid, descriptor, flags, write): (i32, u64, u64, bool),
    rest: VecDeque<(u64, u64)>,
    done: u64,
    memory: &dyn Memory,
) -> Result<Outcome, Gone> {
    let form = Form::Socket { flags, peer: (0, 0) };
    let goes_on = write || waits_for_all(form);
    let transfer = Transfer {
        form,
        write,
        descriptor,
        position: None,
        rest,
        done,
        asked: 0,
        goes_on,
    };
    if goes_on {
        transfer.again(pid, memory)
    } else {
        Ok(Outcome::Done(done as i64))
    }
}

fn waits_for_all(form: Form) -> bool {
    match form {
        Form::Socket { flags, .. } => flags as i32 & (libc::MSG_WAITALL | libc::MSG_PEEK) == libc::MSG_WAITALL,
        _ => false,
    }
}

/// What is wrong with a vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flaw {
    /// More than `UIO_MAXIOV` ranges.
    Count,
    /// A negative length.
    Length,
    /// It, or a range, is no memory of a process.
    Fault,
}

/// The non-empty ranges of a vector, cut to what the kernel moves at once (`lib/iov_iter.c`).
pub(super) fn read_vector(
    address: u64,
    count: u64,
    memory: &dyn Memory,
) -> Result<Result<Vec<(u64, u64)>, Flaw>, Gone> {
    if count > libc::UIO_MAXIOV as u64 {
        return Ok(Err(Flaw::Count));
    }
    let Some(bytes) = Builder::new(memory, [0; 6]).read(address, count * 16)? else {
        return Ok(Err(Flaw::Fault));
    };
    let mut room = MAX_TRANSFER;
    let mut ranges = Vec::new();
    for item in bytes.chunks_exact(16) {
        let (base, length) = (u64_at(item, 0), u64_at(item, 8));
        if (length as i64) < 0 {
            return Ok(Err(Flaw::Length));
        }
        if base.checked_add(length).is_none_or(|end| end > USER_END) {
            return Ok(Err(Flaw::Fault));
        }
        let length = length.min(room);
        room -= length;
        if length > 0 {
            ranges.push((base, length));
        }
    }
    Ok(Ok(ranges))
}

/// The bytes of ranges, at most `limit`, up to the first that cannot be read; and how many were wanted.
pub(super) fn gather<'a>(
    ranges: impl IntoIterator<Item = &'a (u64, u64)>,
    limit: u64,
    memory: &dyn Memory,
) -> Result<(Vec<u8>, u64), Gone> {
    let (mut bytes, mut wanted, mut whole) = (Vec::new(), 0, true);
    for &(address, length) in ranges {
        let length = length.min(limit - wanted);
        wanted += length;
        if length > 0 && whole {
            let start = bytes.len();
            bytes.resize(start + length as usize, 0);
            let readable = memory.read(address, &mut bytes[start..])?;
            bytes.truncate(start + readable);
            whole = readable as u64 == length;
        }
    }
    Ok((bytes, wanted))
}

/// The parts of ranges that are memory, at most `limit` bytes, up to the first that is not; and how many were wanted.
pub(super) fn room<'a>(
    ranges: impl IntoIterator<Item = &'a (u64, u64)>,
    limit: u64,
    memory: &dyn Memory,
) -> Result<(Vec<(u64, u64)>, u64), Gone> {
    let probe = Builder::new(memory, [0; 6]);
    let (mut parts, mut wanted, mut whole) = (Vec::new(), 0, true);
    for &(address, length) in ranges {
        let length = length.min(limit - wanted);
        wanted += length;
        if length == 0 || !whole {
            continue;
        }
        let mut there = length;
        if !probe.reaches(address, length)? {
            whole = false;
            // Page by page up to the first that is not there.
            there = 0;
            while there < length && probe.is_memory(address + there)? {
                there = (((address + there) | 0xfff) + 1 - address).min(length);
            }
        }
        if there > 0 {
            parts.push((address, there));
        }
    }
    Ok((parts, wanted))
}

impl Transfer {
    /// The next round; or the transfer itself, if the next byte is not memory.
    fn round(mut self, pid: i32, memory: &dyn Memory) -> Result<Result<Pending, Transfer>, Gone> {
        let mut builder = Builder::new(memory, [0; 6]);
        let (segment, place, wanted) = if self.write {
            let (bytes, wanted) = gather(&self.rest, CHUNK, memory)?;
            (Segment::In(bytes), Place::Nowhere, wanted)
        } else {
            let (parts, wanted) = room(&self.rest, CHUNK, memory)?;
            let len = parts.iter().map(|(_, length)| *length as u32).sum();
            (
                Segment::Out {
                    len,
                    keep: Keep::Returned,
                },
                Place::Spread(parts),
                wanted,
            )
        };
        self.asked = segment.size() as u64;
        // A message is sent as a whole or not at all.
        let cut_message = matches!(self.form, Form::Socket { .. }) && self.write && self.asked < wanted;
        if wanted > 0 && self.asked == 0 || cut_message {
            return Ok(Err(self));
        }
        let data = builder.add(segment, place);
        let (descriptor, data_argument) = (Argument::Value(self.descriptor), Argument::Segment(data));
        let asked = Argument::Value(self.asked);
        let zero = Argument::Value(0);
        let number = match (self.form, self.write, self.position) {
            (Form::Plain, write, Some(position)) => {
                builder.arguments = [descriptor, data_argument, asked, Argument::Value(position), zero, zero];
                if write { libc::SYS_pwrite64 } else { libc::SYS_pread64 }
            }
            (Form::Plain, write, None) => {
                builder.arguments = [descriptor, data_argument, asked, zero, zero, zero];
                if write { libc::SYS_write } else { libc::SYS_read }
            }
            (Form::Flagged(flags), write, position) => {
                let mut vector = vec![0; 8];
                vector.extend_from_slice(&self.asked.to_le_bytes());
                let vector = builder.add(Segment::In(vector), Place::Nowhere);
                builder.pointers.push(Pointer {
                    segment: vector,
                    offset: 0,
                    target: data,
                });
                let [position, flags] = [position.unwrap_or(u64::MAX), flags].map(Argument::Value);
                builder.arguments = [
                    descriptor,
                    Argument::Segment(vector),
                    Argument::Value(1),
                    position,
                    zero,
                    flags,
                ];
                if write { libc::SYS_pwritev2 } else { libc::SYS_preadv2 }
            }
            (
                Form::Socket {
                    flags,
                    peer: (address, length),
                },
                write,
                _,
            ) => {
                builder.values = [0, 0, 0, 0, address, length];
                let (name, length) = if write {
                    (Arg::In(Size::Int(5)), Arg::Value)
                } else {
                    (Arg::Name(5), Arg::InOut(Size::Is(4)))
                };
                // Neither kind stops the call: what cannot be followed crosses as a fault.
                let marshalled = builder.marshal(&[Arg::Value, Arg::Value, Arg::Value, Arg::Value, name, length]);
                if let Err(Stop::Gone) = marshalled {
                    return Err(Gone);
                }
                builder.arguments[..4].copy_from_slice(&[descriptor, data_argument, asked, Argument::Value(flags)]);
                self.form = Form::Socket { flags, peer: (0, 0) };
                if write { libc::SYS_sendto } else { libc::SYS_recvfrom }
            }
        };
        Ok(Ok(builder.pending(pid, number as u32, Then::Transfer(self))))
    }

    fn again(self, pid: i32, memory: &dyn Memory) -> Result<Outcome, Gone> {
        Ok(match self.round(pid, memory)? {
            Ok(pending) => Outcome::Again(pending),
            Err(transfer) => transfer.ends(-i64::from(libc::EFAULT)),
        })
    }

    /// The end, when nothing more is moved, with that result.
    fn ends(&self, result: i64) -> Outcome {
        Outcome::Done(if self.done > 0 { self.done as i64 } else { result })
    }

    pub(super) fn finish(mut self, pending: Pending, reply: &Reply, memory: &dyn Memory) -> Result<Outcome, Gone> {
        if reply.result < 0 {
            pending.deliver(reply, memory)?;
            return Ok(self.ends(reply.result));
        }
        let moved = (reply.result as u64).min(self.asked);
        let mut written = moved;
        if let Some(Place::Spread(ranges)) = pending.places.first() {
            let bytes = pending.after(reply, 0);
            written = spread(ranges, &bytes[..bytes.len().min(moved as usize)], memory)? as u64;
        }
        self.done += written;
        if written < moved {
            return Ok(self.ends(-i64::from(libc::EFAULT)));
        }
        let faulty = pending.deliver_names(reply, memory)?;
        // A datagram may be longer than the room for it, and MSG_TRUNC asks how long.
        if reply.result as u64 > moved || faulty {
            return Ok(if faulty {
                self.ends_with_fault()
            } else {
                Outcome::Done(reply.result)
            });
        }
        self.position = self.position.map(|position| position.wrapping_add(moved));
        self.consume(moved);
        if moved < self.asked || self.rest.is_empty() {
            return Ok(Outcome::Done(self.done as i64));
        }
        if self.goes_on {
            return self.again(pending.call.process, memory);
        }
        if let Form::Socket { .. } = self.form {
            return Ok(Outcome::Done(self.done as i64));
        }
        // The first whole chunk from a descriptor of which nothing is known: ask what it is.
        let mut builder = Builder::new(memory, [0; 6]);
        let stat = builder.add(
            Segment::Out {
                len: 144,
                keep: Keep::All,
            },
            Place::Nowhere,
        );
        builder.arguments[..2].copy_from_slice(&[Argument::Value(self.descriptor), Argument::Segment(stat)]);
        Ok(Outcome::Again(builder.pending(
            pending.call.process,
            libc::SYS_fstat as u32,
            Then::Kind(self),
        )))
    }

    /// The reply is that of `fstat`: st_mode is at 24 in struct stat, st_rdev at 40.
    pub(super) fn finish_kind(mut self, pending: Pending, reply: &Reply, memory: &dyn Memory) -> Result<Outcome, Gone> {
        const MEMORY_DEVICES: u32 = 1; // /dev/zero and its kin
        let stat = pending.after(reply, 0);
        self.goes_on = match i32_at(stat, 24) as u32 & libc::S_IFMT {
            libc::S_IFREG | libc::S_IFBLK => true,
            libc::S_IFCHR => libc::major(u64_at(stat, 40)) == MEMORY_DEVICES,
            _ => false,
        };
        if reply.result < 0 || !self.goes_on {
            return Ok(Outcome::Done(self.done as i64));
        }
        self.again(pending.call.process, memory)
    }

    fn ends_with_fault(&self) -> Outcome {
        Outcome::Done(-i64::from(libc::EFAULT))
    }

    fn consume(&mut self, mut bytes: u64) {
        while let Some((address, length)) = self.rest.pop_front() {
            if length > bytes {
                self.rest.push_front((address + bytes, length - bytes));
                return;
            }
            bytes -= length;
        }
    }
}

impl Pending {
    /// The outputs beside the bytes themselves: the peer's address and its length. True if one cannot be written.
    fn deliver_names(&self, reply: &Reply, memory: &dyn Memory) -> Result<bool, Gone> {
        let names = Reply {
            id: reply.id,
            result: 0,
            outputs: reply
                .outputs
                .iter()
                .filter(|output| output.segment != 0)
                .cloned()
                .collect(),
        };
        Ok(self.deliver(&names, memory)? < 0)
    }
}
