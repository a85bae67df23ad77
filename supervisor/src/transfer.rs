//! An image on its way through the channel: `ImageData*`, `ImageEnd`.
//!
//! Both ends see a plain byte stream, so that the image crate's writer and reader work over it as over a file. What else the
//! peer says in the middle of an image ends the stream and is kept for the caller.

use std::io::{self, Read, Write};
use std::time::Instant;
use vrun_remote_io::channel::{ChannelError, Frame, Receiver, Sender};
use vrun_remote_io::message::{BulkKind, ImageEnd, Message};

/// Bytes of one frame.
const CHUNK: usize = 1 << 20;

/// The sending end.
#[derive(Debug)]
pub struct ImageSink {
    sender: Sender,
    buffer: Vec<u8>,
    sent: u64,
}

impl ImageSink {
    pub fn new(sender: Sender) -> Self {
        Self {
            sender,
            buffer: Vec::with_capacity(CHUNK),
            sent: 0,
        }
    }

    fn flush_buffer(&mut self) -> io::Result<()> {
        if !self.buffer.is_empty() {
            self.sender
                .send_bulk(BulkKind::ImageData, &self.buffer)
                .map_err(io::Error::other)?;
            self.sent += self.buffer.len() as u64;
            self.buffer.clear();
        }
        Ok(())
    }

    /// Sends the rest and the end; gives the number of bytes sent.
    pub fn finish(mut self) -> io::Result<u64> {
        self.flush_buffer()?;
        self.sender
            .send(&Message::ImageEnd(ImageEnd { bytes: self.sent }))
            .map_err(io::Error::other)?;
        Ok(self.sent)
    }
}

impl Write for ImageSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(CHUNK - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..taken]);
        if self.buffer.len() == CHUNK {
            self.flush_buffer()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.flush_buffer()
    }
}

/// What arrives.
#[derive(Debug)]
pub enum Piece {
    Data(Vec<u8>),
    Said(Message),
}

impl From<Frame<'_>> for Piece {
    fn from(frame: Frame<'_>) -> Self {
        match frame {
            Frame::Bulk {
                kind: BulkKind::ImageData,
                bytes,
            } => Self::Data(bytes.to_vec()),
            Frame::Message(message) => Self::Said(message),
        }
    }
}

impl Piece {
    /// The next one of a channel.
    pub fn receive(receiver: &mut Receiver) -> Result<Self, ChannelError> {
        receiver.recv().map(Self::from)
    }

    /// The next one of a channel, if it comes before then.
    pub fn receive_by(receiver: &mut Receiver, until: Instant) -> Result<Self, ChannelError> {
        receiver.recv_deadline(until).map(Self::from)
    }
}

/// The receiving end; `next` gives the pieces in order.
#[derive(Debug)]
pub struct ImageStream<F> {
    next: F,
    buffer: Vec<u8>,
    at: usize,
    received: u64,
    ended: bool,
    /// What was said instead of the next piece.
    pub interruption: Option<Message>,
}

impl<F: FnMut() -> io::Result<Piece>> ImageStream<F> {
    pub fn new(next: F) -> Self {
        Self {
            next,
            buffer: Vec::new(),
            at: 0,
            received: 0,
            ended: false,
            interruption: None,
        }
    }

    /// Bytes so far.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Reads up to the end, which must follow at once: the image was complete.
    pub fn expect_end(&mut self) -> io::Result<()> {
        let mut byte = [0];
        match self.read(&mut byte)? {
            0 => Ok(()),
            _ => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "bytes follow the end of the image",
            )),
        }
    }
}

impl<F: FnMut() -> io::Result<Piece>> Read for ImageStream<F> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.at == self.buffer.len() && !self.ended {
            match (self.next)()? {
                Piece::Data(bytes) => {
                    self.received += bytes.len() as u64;
                    (self.buffer, self.at) = (bytes, 0);
                }
                Piece::Said(Message::ImageEnd(end)) if end.bytes == self.received => self.ended = true,
                Piece::Said(Message::ImageEnd(_)) => {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "parts of the image are missing",
                    ));
                }
                Piece::Said(message) => {
                    let said = format!("the other host said {} in the middle of an image", message.name());
                    self.interruption = Some(message);
                    return Err(io::Error::other(said));
                }
            }
        }
        let taken = out.len().min(self.buffer.len() - self.at);
        out[..taken].copy_from_slice(&self.buffer[self.at..self.at + taken]);
        self.at += taken;
        Ok(taken)
    }
}
