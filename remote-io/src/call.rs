//! A system call as it crosses the channel: numbers, and the memory that its pointers meant.
//!
//! ```text
//!   guest memory            Call                             deputy's scratch memory
//!   read(3, 0x7f.., 512) →  read, [3, →segment 0, 512]    →  read(3, scratch, 512)
//!                           segments: [Out 512, Returned]
//!   0x7f..: "hello"      ←  Reply 5, [segment 0: "hello"] ←  scratch: "hello…"
//! ```
//!
//! No address of either side is ever sent: a pointer is the index of a [`Segment`], and a pointer *inside* a segment
//! (`iovec`, `msghdr`) is a [`Pointer`] that the executor patches.

use serde::{Deserialize, Serialize};

/// Segments a call may have.
pub const MAX_SEGMENTS: usize = 64;
/// Bytes that all segments of a call may have together.
pub const MAX_BYTES: usize = 2 << 20;
/// Pointers a call may have inside its segments.
pub const MAX_POINTERS: usize = 256;
/// An address that no process can have (the first of the kernel's half): the kernel answers `EFAULT` for it, in its own
/// order among the other errors (`EBADF` before `EFAULT`, and the like). Only the few calls that compare an address with
/// the end of user memory before anything else (`epoll_wait`) say `EFAULT` earlier than for an unmapped page.
pub const FAULT: u64 = 0xffff_8000_0000_0000;

/// One system call that the guest made and the deputy is to execute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// Names the call in its [`Reply`]; chosen by the guest's side.
    pub id: u64,
    /// PID of the calling process.
    pub process: i32,
    /// TID of the calling thread: a signal that the call raises (`SIGPIPE`) is for it. 0: for none in particular.
    pub thread: i32,
    /// x86_64 system call number.
    pub number: u32,
    /// The six argument registers.
    pub arguments: [Argument; 6],
    /// The memory the arguments point to, at most [`MAX_SEGMENTS`] and [`MAX_BYTES`].
    pub segments: Vec<Segment>,
    /// The addresses inside segments, at most [`MAX_POINTERS`].
    pub pointers: Vec<Pointer>,
    /// The thread blocks `SIGTTOU` or ignores it: a change of the terminal from the background does not stop it.
    pub unstoppable: bool,
}

/// One argument register of a [`Call`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Argument {
    /// A number as it is, also the null pointer.
    Value(u64),
    /// The address of that segment.
    Segment(u16),
    /// A pointer that the guest itself cannot follow; executed as [`FAULT`].
    Fault,
}

/// A run of memory that a [`Call`] reads or writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Segment {
    /// Read by the call.
    In(#[serde(with = "serde_bytes")] Vec<u8>),
    /// Written by the call.
    Out {
        /// Bytes the call may write.
        len: u32,
        /// Which of them come back.
        keep: Keep,
    },
    /// Read and written, or perhaps written: comes back only if it changed.
    InOut {
        /// What the guest has there.
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
        /// Which of them come back.
        keep: Keep,
    },
}

/// How much of an output segment is worth sending back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Keep {
    /// All of it.
    All,
    /// As many bytes as the call returned.
    Returned,
    /// As many items of this size as the call returned, such as 12 for `epoll_wait`.
    ReturnedTimes(u32),
    /// As many bytes as the `u32` at this place says after the call (`socklen_t`, `msg_controllen`).
    Counted {
        /// The segment that holds the count; not an input only.
        segment: u16,
        /// Where in it, in bytes.
        offset: u32,
    },
}

/// Eight bytes inside a segment that are the address of another segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pointer {
    /// The segment that holds the address; not an output only.
    pub segment: u16,
    /// Where in it, in bytes, a multiple of 8.
    pub offset: u32,
    /// The segment whose address it is.
    pub target: u16,
}

/// What the deputy's kernel answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// The [`Call::id`].
    pub id: u64,
    /// Raw: the result, or a negated errno, also the kernel's own restart codes -512 to -516.
    pub result: i64,
    /// What it wrote, in rising order of segments.
    pub outputs: Vec<Output>,
}

/// The beginning of an output segment after the call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Output {
    /// Index in [`Call::segments`].
    pub segment: u16,
    /// Its bytes, from its start; no more than the segment has.
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
}

/// Why a [`Call`] is not executed, or a [`Reply`] not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// More segments than [`MAX_SEGMENTS`].
    #[error("the call has {0} segments; at most {MAX_SEGMENTS} are allowed")]
    TooManySegments(usize),
    /// More pointers than [`MAX_POINTERS`].
    #[error("the call has {0} pointers inside segments; at most {MAX_POINTERS} are allowed")]
    TooManyPointers(usize),
    /// More bytes than [`MAX_BYTES`] or than the scratch memory has.
    #[error("the call's segments need {needed} bytes; at most {room} are allowed")]
    TooLarge {
        /// Bytes needed.
        needed: usize,
        /// Bytes there are.
        room: usize,
    },
    /// An index of a segment that is not there.
    #[error("the call names segment {0}, which it does not have")]
    NoSegment(u16),
    /// A count or pointer that lies outside its segment, in one of the wrong direction, or not aligned.
    #[error("the place at {offset} in segment {segment} cannot hold what the call says it holds")]
    BadPlace {
        /// Index of the segment.
        segment: u16,
        /// Offset in bytes.
        offset: u32,
    },
    /// The table says that this call is not executed for a guest.
    #[error("system call {0} is not one that a deputy executes")]
    NotForwarded(u32),
    /// An argument is a number where an address belongs, or the other way round, or must be null.
    #[error("argument {position} of system call {number} is not of the kind that the table says")]
    WrongArgument {
        /// The system call.
        number: u32,
        /// Which argument, from 0.
        position: usize,
    },
    /// A segment is smaller than what the call would read or write there.
    #[error("segment {segment} has {have} bytes, and the call would use {needed}")]
    TooShort {
        /// Index of the segment.
        segment: u16,
        /// Its size.
        have: usize,
        /// The size needed.
        needed: u64,
    },
    /// A pointer inside a segment that no structure of this call has.
    #[error("the call has pointers inside its segments where none belong")]
    StrayPointer,
    /// A reply that answers another call or brings bytes for a segment that takes none.
    #[error("the reply does not fit the call {0}")]
    WrongReply(u64),
}

impl Segment {
    /// Its size in bytes.
    pub fn size(&self) -> usize {
        match self {
            Segment::In(bytes) | Segment::InOut { bytes, .. } => bytes.len(),
            Segment::Out { len, .. } => *len as usize,
        }
    }

    /// What the call reads there; `None` for an output only.
    pub fn input(&self) -> Option<&[u8]> {
        match self {
            Segment::In(bytes) | Segment::InOut { bytes, .. } => Some(bytes),
            Segment::Out { .. } => None,
        }
    }

    /// Which part comes back; `None` for an input only.
    pub fn keep(&self) -> Option<Keep> {
        match self {
            Segment::In(_) => None,
            Segment::Out { keep, .. } | Segment::InOut { keep, .. } => Some(*keep),
        }
    }
}

/// Requests for which the kernel stops a process in the background (`tty_check_change`, `drivers/tty/tty_io.c`).
const TERMINAL_CHANGES: [u64; 15] = [
    libc::TIOCSPGRP,
    libc::TIOCSETD,
    libc::TCSETS,
    libc::TCSETSW,
    libc::TCSETSF,
    libc::TCSETS2,
    libc::TCSETSW2,
    libc::TCSETSF2,
    libc::TCSETA,
    libc::TCSETAW,
    libc::TCSETAF,
    libc::TCFLSH,
    libc::TCXONC,
    libc::TCSBRK,
    libc::TCSBRKP,
];

impl Call {
    /// Whether `SIGTTOU` may stop it.
    pub fn changes_terminal(&self) -> bool {
        // The kernel takes a request as an `unsigned int`.
        let request = |value: u64| TERMINAL_CHANGES.contains(&(value & 0xffff_ffff));
        i64::from(self.number) == libc::SYS_ioctl
            && matches!(self.arguments[1], Argument::Value(value) if request(value))
    }

    /// The segment with that index.
    pub fn segment(&self, index: u16) -> Result<&Segment, CallError> {
        self.segments.get(usize::from(index)).ok_or(CallError::NoSegment(index))
    }

    /// Checks counts, sizes and indices against the caps above. It does not look at what the system call is: that is the
    /// executor's part.
    pub fn validate(&self) -> Result<(), CallError> {
        if self.segments.len() > MAX_SEGMENTS {
            return Err(CallError::TooManySegments(self.segments.len()));
        }
        if self.pointers.len() > MAX_POINTERS {
            return Err(CallError::TooManyPointers(self.pointers.len()));
        }
        let needed = self.segments.iter().map(Segment::size).fold(0, usize::saturating_add);
        if needed > MAX_BYTES {
            return Err(CallError::TooLarge {
                needed,
                room: MAX_BYTES,
            });
        }
        for argument in self.arguments {
            if let Argument::Segment(index) = argument {
                self.segment(index)?;
            }
        }
        for segment in &self.segments {
            if let Some(Keep::Counted { segment, offset }) = segment.keep() {
                let counter = self.segment(segment)?;
                if counter.keep().is_none() || offset as usize + 4 > counter.size() {
                    return Err(CallError::BadPlace { segment, offset });
                }
            }
        }
        for &Pointer {
            segment,
            offset,
            target,
        } in &self.pointers
        {
            self.segment(target)?;
            let holder = self.segment(segment)?;
            if holder.input().is_none() || offset % 8 != 0 || offset as usize + 8 > holder.size() {
                return Err(CallError::BadPlace { segment, offset });
            }
        }
        Ok(())
    }
}

impl Reply {
    /// Checks that this is an answer to `call`: its id, and outputs in rising order, each for an output segment and no
    /// larger than it.
    pub fn validate(&self, call: &Call) -> Result<(), CallError> {
        let wrong = CallError::WrongReply(call.id);
        if self.id != call.id || !self.outputs.is_sorted_by(|a, b| a.segment < b.segment) {
            return Err(wrong);
        }
        for output in &self.outputs {
            let segment = call.segment(output.segment)?;
            if segment.keep().is_none() || output.bytes.len() > segment.size() {
                return Err(wrong);
            }
        }
        Ok(())
    }
}
