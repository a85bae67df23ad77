//! The envelope of everything that is sent, and the codec of what is in it.
//!
//! ```text
//!   0        2        4                 8
//!   ├────────┼────────┼─────────────────┼───────────────────────────┤
//!   │ magic  │  kind  │ length of body  │ body …                    │     integers little-endian
//!   └────────┴────────┴─────────────────┴───────────────────────────┘
//! ```
//!
//! | kind | body | cap |
//! |---|---|---|
//! | 0 | invalid | |
//! | 1 … 0x7fff | a message: bincode 1.3 of its payload, fixed-width integers, no trailing bytes | [`MESSAGE_MAX`] |
//! | 0x8000 … 0xffff | bulk: raw bytes that never go through serde | [`BULK_MAX`] |
//!
//! The cap is checked when the header is complete and before anything is allocated for the body. What the kinds mean
//! is told in [`crate::message`].

use bincode::Options;
use serde::{Serialize, de::DeserializeOwned};

/// The first two bytes of a frame: `vr`.
pub const MAGIC: u16 = u16::from_le_bytes(*b"vr");
/// Size of a header in bytes.
pub const HEADER: usize = 8;
/// Largest body of a message in bytes. A forwarded call carries at most a few segments of data, so this is generous.
pub const MESSAGE_MAX: usize = 4 << 20;
/// Largest body of a bulk frame in bytes: 1 MiB of data and a page for what describes it.
pub const BULK_MAX: usize = (1 << 20) + 4096;
/// First kind that is bulk.
pub const BULK: u16 = 0x8000;

/// How much body space a decoder keeps between frames, in bytes: enough that a bulk stream never allocates.
const KEPT: usize = BULK_MAX;

/// What is wrong with a frame.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The stream is not ours, or has lost its place.
    #[error("a frame begins with {0:#06x} instead of {MAGIC:#06x}: the stream is not one of vrun's or is damaged")]
    Magic(u16),
    /// Kind 0.
    #[error("a frame has kind 0, which is invalid")]
    Kind,
    /// The header announces (or the sender has) more than the cap of its kind.
    #[error("a frame of kind {kind:#x} has {length} bytes, the most is {limit}")]
    TooLarge {
        /// The kind of frame.
        kind: u16,
        /// Bytes that its body would have.
        length: usize,
        /// Bytes that it may have.
        limit: usize,
    },
    /// The body is not what its kind says.
    #[error("the body of a frame cannot be {verb}: {source}")]
    Codec {
        /// "encoded" or "decoded".
        verb: &'static str,
        /// What the codec says.
        source: bincode::Error,
    },
}

/// The largest body of a frame of `kind`, in bytes; `None` for the invalid kind 0.
pub fn limit(kind: u16) -> Option<usize> {
    match kind {
        0 => None,
        BULK.. => Some(BULK_MAX),
        _ => Some(MESSAGE_MAX),
    }
}

/// A checked header: `length` is within the cap of `kind`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    kind: u16,
    length: u32,
}

impl Header {
    /// A header for a body of `length` bytes.
    pub fn new(kind: u16, length: usize) -> Result<Header, FrameError> {
        let limit = limit(kind).ok_or(FrameError::Kind)?;
        match u32::try_from(length) {
            Ok(narrow) if length <= limit => Ok(Header { kind, length: narrow }),
            _ => Err(FrameError::TooLarge { kind, length, limit }),
        }
    }

    /// The kind of frame.
    pub fn kind(&self) -> u16 {
        self.kind
    }

    /// Length of the body in bytes.
    pub fn length(&self) -> usize {
        self.length as usize
    }

    /// As it is sent.
    pub fn encode(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[0..2].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[2..4].copy_from_slice(&self.kind.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.length.to_le_bytes());
        bytes
    }

    /// From what was received.
    pub fn decode(bytes: &[u8; HEADER]) -> Result<Header, FrameError> {
        let [m0, m1, k0, k1, l0, l1, l2, l3] = *bytes;
        let magic = u16::from_le_bytes([m0, m1]);
        if magic != MAGIC {
            return Err(FrameError::Magic(magic));
        }
        Header::new(
            u16::from_le_bytes([k0, k1]),
            u32::from_le_bytes([l0, l1, l2, l3]) as usize,
        )
    }
}

fn options() -> impl Options {
    bincode::DefaultOptions::new()
        .with_fixint_encoding()
        .with_little_endian()
        .with_limit(MESSAGE_MAX as u64)
        .reject_trailing_bytes()
}

/// Appends the bytes of a message's payload to `out`.
///
/// Errors: [`FrameError::Codec`] if they are more than [`MESSAGE_MAX`]; `out` then has its old length.
pub fn encode_payload(payload: &impl Serialize, out: &mut Vec<u8>) -> Result<(), FrameError> {
    let start = out.len();
    options().serialize_into(&mut *out, payload).map_err(|source| {
        out.truncate(start);
        FrameError::Codec {
            verb: "encoded",
            source,
        }
    })
}

/// A message's payload from all of `bytes`.
pub fn decode_payload<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, FrameError> {
    options().deserialize(bytes).map_err(|source| FrameError::Codec {
        verb: "decoded",
        source,
    })
}

/// Puts frames together from a stream cut anywhere. Holds one frame at a time.
///
/// After an error the stream has no known place any more, and the decoder must not be used again.
#[derive(Debug, Default)]
pub struct Decoder {
    header: [u8; HEADER],
    /// How much of `header` is there.
    have: usize,
    /// Set once the header is complete and checked.
    current: Option<Header>,
    body: Vec<u8>,
}

impl Decoder {
    /// Takes what belongs to the current frame from the front of `input` and says how many bytes that were; the header
    /// is given once the frame is complete, and its body can then be read with [`body`](Decoder::body) until
    /// [`advance`](Decoder::advance). Takes nothing from `input` while a complete frame is there.
    pub fn push(&mut self, input: &[u8]) -> Result<(usize, Option<Header>), FrameError> {
        let mut taken = 0;
        let header = match self.current {
            Some(header) => header,
            None => {
                taken = input.len().min(HEADER - self.have);
                self.header[self.have..self.have + taken].copy_from_slice(&input[..taken]);
                self.have += taken;
                if self.have < HEADER {
                    return Ok((taken, None));
                }
                let header = Header::decode(&self.header)?;
                self.body.reserve_exact(header.length());
                *self.current.insert(header)
            }
        };
        let wanted = (header.length() - self.body.len()).min(input.len() - taken);
        self.body.extend_from_slice(&input[taken..taken + wanted]);
        Ok((taken + wanted, (self.body.len() == header.length()).then_some(header)))
    }

    /// The bytes of the current frame's body that are there so far.
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// Forgets the current frame, to go on with the next one.
    pub fn advance(&mut self) {
        self.have = 0;
        self.current = None;
        self.body.clear();
        self.body.shrink_to(KEPT);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut bytes = Header::new(kind, body.len()).unwrap().encode().to_vec();
        bytes.extend_from_slice(body);
        bytes
    }

    #[test]
    fn the_layout_is_fixed() {
        assert_eq!(frame(0x8001, b"ab"), b"vr\x01\x80\x02\0\0\0ab");
    }

    #[test]
    fn an_oversized_frame_is_refused_before_anything_is_allocated() {
        for (kind, length) in [(1, MESSAGE_MAX + 1), (0x8001, BULK_MAX + 1), (7, u32::MAX as usize)] {
            let mut bytes = frame(kind, b"");
            bytes[4..8].copy_from_slice(&(length as u32).to_le_bytes());
            let mut decoder = Decoder::default();
            assert!(
                matches!(decoder.push(&bytes), Err(FrameError::TooLarge { .. })),
                "{kind:#x} {length}"
            );
            assert_eq!(decoder.body.capacity(), 0);
        }
        assert!(Header::new(0x8001, BULK_MAX + 1).is_err());
    }

    #[test]
    fn strange_headers_are_refused() {
        assert!(matches!(
            Decoder::default().push(b"GET / HTTP/1.1"),
            Err(FrameError::Magic(_))
        ));
        assert!(matches!(
            Decoder::default().push(b"vr\0\0\0\0\0\0"),
            Err(FrameError::Kind)
        ));
    }

    #[test]
    fn payloads_with_trailing_bytes_are_refused() {
        let mut bytes = Vec::new();
        encode_payload(&7u32, &mut bytes).unwrap();
        assert_eq!(decode_payload::<u32>(&bytes).unwrap(), 7);
        bytes.push(0);
        assert!(decode_payload::<u32>(&bytes).is_err());
    }

    #[test]
    fn a_payload_that_is_too_large_leaves_the_buffer_as_it_was() {
        let mut bytes = b"before".to_vec();
        assert!(encode_payload(&serde_bytes::Bytes::new(&vec![0; MESSAGE_MAX]), &mut bytes).is_err());
        assert_eq!(bytes, b"before");
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic_and_allocation_is_bounded(
            mut bytes in prop::collection::vec(any::<u8>(), 0..64),
            right_magic: bool,
            cut in 1usize..16,
        ) {
            if right_magic && bytes.len() >= 2 {
                bytes[..2].copy_from_slice(&MAGIC.to_le_bytes());
            }
            let mut decoder = Decoder::default();
            'all: for piece in bytes.chunks(cut) {
                let mut piece = piece;
                while !piece.is_empty() {
                    match decoder.push(piece) {
                        Ok((taken, complete)) => {
                            prop_assert!(taken > 0 && taken <= piece.len());
                            piece = &piece[taken..];
                            if complete.is_some() {
                                decoder.advance();
                            }
                        }
                        Err(_) => break 'all,
                    }
                }
                prop_assert!(decoder.body.capacity() <= MESSAGE_MAX);
            }
        }

        #[test]
        fn frames_come_out_as_they_went_in_however_they_are_cut(
            frames in prop::collection::vec((1u16.., prop::collection::vec(any::<u8>(), 0..200)), 1..8),
            cut in 1usize..300,
        ) {
            let stream: Vec<u8> = frames.iter().flat_map(|(kind, body)| frame(*kind, body)).collect();
            let mut decoder = Decoder::default();
            let mut seen = Vec::new();
            for mut piece in stream.chunks(cut) {
                while !piece.is_empty() {
                    let (taken, complete) = decoder.push(piece).unwrap();
                    piece = &piece[taken..];
                    if let Some(header) = complete {
                        seen.push((header.kind(), decoder.body().to_vec()));
                        decoder.advance();
                    }
                }
            }
            prop_assert_eq!(seen, frames);
        }
    }
}
