//! Messages between a test and the hosts of its world: one JSON value per datagram of a `SOCK_SEQPACKET` pair, with
//! descriptors beside it (`unix(7)`, `SCM_RIGHTS`), so that pipes and terminals cross namespaces as they are.
#![allow(unsafe_code, reason = "descriptors that arrive with a message are ours from then on")]

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use anyhow::{Context, Result};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, socketpair,
};
use serde::{Serialize, de::DeserializeOwned};

/// No message is longer than this, in bytes: arguments and environment of one command.
const LONGEST: usize = 128 << 10;

/// One end of a connection.
#[derive(Debug)]
pub(crate) struct Line(pub(crate) OwnedFd);

impl Line {
    /// Two ends, both close-on-exec.
    pub(crate) fn pair() -> Result<(Self, Self)> {
        let (a, b) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        Ok((Self(a), Self(b)))
    }

    /// Sends one value and copies of the descriptors. A closed other end is an error, not a signal.
    pub(crate) fn send(&self, value: &impl Serialize, fds: &[BorrowedFd<'_>]) -> Result<()> {
        let bytes = serde_json::to_vec(value)?;
        let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let beside = if raw.is_empty() { &[][..] } else { &rights[..] };
        sendmsg::<()>(
            self.0.as_raw_fd(),
            &[IoSlice::new(&bytes)],
            beside,
            MsgFlags::MSG_NOSIGNAL,
            None,
        )
        .context("the other end of a test connection is gone")?;
        Ok(())
    }

    /// Waits for one value; `None` when the other end is closed.
    pub(crate) fn receive<T: DeserializeOwned>(&self) -> Result<Option<(T, Vec<OwnedFd>)>> {
        let mut bytes = vec![0; LONGEST];
        let mut space = nix::cmsg_space!([RawFd; 8]);
        let (len, raw) = {
            let mut into = [IoSliceMut::new(&mut bytes)];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            let got = loop {
                match recvmsg::<()>(self.0.as_raw_fd(), &mut into, Some(&mut space), flags) {
                    Err(nix::Error::EINTR) => {}
                    Err(nix::Error::ECONNRESET) => return Ok(None),
                    other => break other?,
                }
            };
            let mut raw = Vec::new();
            for message in got.cmsgs()? {
                if let ControlMessageOwned::ScmRights(fds) = message {
                    raw.extend(fds);
                }
            }
            (got.bytes, raw)
        };
        // SAFETY: the kernel has just installed these numbers in this process for this message; nobody else has them.
        let fds = raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).collect();
        if len == 0 {
            return Ok(None);
        }
        Ok(Some((serde_json::from_slice(&bytes[..len])?, fds)))
    }
}
