//! What the kernel tells of Unix sockets by inode (sock_diag(7), `net/unix/diag.c`): above all, who is connected to whom.
//!
//! It tells any user of all sockets of the network namespace, which is the job's too: a job that runs here, or was
//! restored here, has none of its own.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd;

use super::kernel;

const NETLINK_SOCK_DIAG: i32 = 4;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// `NLM_F_REQUEST | NLM_F_DUMP`
const DUMP: u16 = 1 | 0x300;
/// `UDIAG_SHOW_VFS | _PEER | _ICONS | _RQLEN` (`linux/unix_diag.h`).
const SHOW: u32 = 2 | 4 | 8 | 0x10;

/// `TCP_LISTEN` of `net/tcp_states.h`, which Unix sockets use too.
pub(super) const LISTEN: u8 = 10;
pub(super) const ESTABLISHED: u8 = 1;

/// A Unix socket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct UnixSocket {
    pub state: u8,
    /// The inode of the other end; 0 if it was closed, or not accepted yet.
    pub peer: Option<u64>,
    /// Of a listener: the inodes of those who have connected, in order.
    pub waiting: Vec<u64>,
    /// Of a listener: how many may wait.
    pub backlog: u32,
    /// Bit 0: nothing more will be received; bit 1: nothing more can be sent.
    pub shutdown: u8,
    /// Inode (its lower half) and device (the kernel's encoding) of its path.
    pub place: Option<(u32, u32)>,
}

/// All Unix sockets, by inode.
pub(super) fn unix_sockets() -> io::Result<HashMap<u64, UnixSocket>> {
    let socket = kernel::socket(libc::AF_NETLINK, libc::SOCK_DGRAM, NETLINK_SOCK_DIAG)?;
    // struct nlmsghdr, struct unix_diag_req: all states, no inode, no cookie.
    let mut request = Vec::new();
    request.extend_from_slice(&40_u32.to_le_bytes());
    request.extend_from_slice(&SOCK_DIAG_BY_FAMILY.to_le_bytes());
    request.extend_from_slice(&DUMP.to_le_bytes());
    request.extend_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0]);
    request.extend_from_slice(&[libc::AF_UNIX as u8, 0, 0, 0]);
    for word in [u32::MAX, 0, SHOW, u32::MAX, u32::MAX] {
        request.extend_from_slice(&word.to_le_bytes());
    }
    kernel::send(socket.as_fd(), &request, &[], &[])?;
    let mut sockets = HashMap::new();
    let mut buffer = vec![0_u8; 64 << 10];
    // A dump is made piece by piece while it is read, and each piece is there when the one before was taken.
    loop {
        let length = rustix::io::read(&socket, &mut buffer)?;
        let mut rest = &buffer[..length];
        while let Some((kind, body, next)) = message(rest) {
            match kind {
                NLMSG_DONE => return Ok(sockets),
                NLMSG_ERROR => return Err(error(body)),
                _ => sockets.extend(parse(body)),
            }
            rest = next;
        }
    }
}

/// Type and body of the first netlink message, and what follows it.
fn message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_le_bytes(*bytes.first_chunk()?) as usize;
    let kind = u16::from_le_bytes(*bytes.get(4..)?.first_chunk()?);
    let body = bytes.get(16..length)?;
    Some((kind, body, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

fn error(body: &[u8]) -> io::Error {
    let code = body.first_chunk().map_or(0, |bytes| i32::from_le_bytes(*bytes));
    io::Error::from_raw_os_error(-code)
}

/// `struct unix_diag_msg` and its attributes.
fn parse(body: &[u8]) -> Option<(u64, UnixSocket)> {
    let word = |bytes: &[u8], at: usize| bytes.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
    let mut socket = UnixSocket {
        state: *body.get(2)?,
        ..UnixSocket::default()
    };
    let inode = word(body, 4)?;
    let mut rest = body.get(16..)?;
    while let Some(header) = rest.first_chunk::<4>() {
        let length = usize::from(u16::from_le_bytes([header[0], header[1]]));
        let value = rest.get(4..length)?;
        match u16::from_le_bytes([header[2], header[3]]) {
            1 => socket.place = Some((word(value, 0)?, word(value, 4)?)),
            2 => socket.peer = Some(word(value, 0)?.into()),
            3 => {
                let inodes = value.chunks_exact(4).filter_map(|inode| word(inode, 0));
                socket.waiting = inodes.map(u64::from).collect();
            }
            4 => socket.backlog = word(value, 4)?,
            6 => socket.shutdown = *value.first()?,
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Some((inode.into(), socket))
}

#[cfg(test)]
mod tests {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

    use super::*;

    fn inode(fd: impl AsFd) -> u64 {
        rustix::fs::fstat(fd).unwrap().st_ino
    }

    #[test]
    fn peers_and_waiting_connections_are_known() {
        let (one, two) = UnixStream::pair().unwrap();
        one.shutdown(std::net::Shutdown::Write).unwrap();
        let address = SocketAddr::from_abstract_name(format!("vrun-diag-{}", std::process::id())).unwrap();
        let listener = UnixListener::bind_addr(&address).unwrap();
        let client = UnixStream::connect_addr(&address).unwrap();
        let sockets = unix_sockets().unwrap();
        let of = |fd: u64| sockets[&fd].clone();
        assert_eq!(of(inode(&one)).peer, Some(inode(&two)));
        assert_eq!((of(inode(&one)).shutdown, of(inode(&two)).shutdown), (2, 1));
        assert_eq!(of(inode(&listener)).state, LISTEN);
        assert_eq!(of(inode(&listener)).waiting, [inode(&client)]);
        assert_eq!(
            (of(inode(&client)).state, of(inode(&client)).peer),
            (ESTABLISHED, Some(0))
        );
        drop(two);
        assert_eq!(unix_sockets().unwrap()[&inode(&one)].peer, Some(0));
    }
}
