//! TCP connections both of whose ends are the job's.
//!
//! ```text
//!  capture   two sockets, each with the other's name; all that one has sent is in the queue of the other, and peeked at
//!  reset     the job ends here: its connections too, at once, because an orderly end keeps their names for a minute
//!  connect   something listens at the name of one end for the other one, before the job's own listeners are there
//!  finish    what was only so for that: SO_REUSEADDR, sizes of buffers that nobody chose; half of it is shut down again
//! ```
//!
//! What is still with its sender, because the receiver's queue is full, only `TCP_REPAIR` could read, a privilege over the
//! network. Such a connection is refused by name, as is one that is just being opened or closed.

use rustix::fs::FileType;
use rustix::net::RecvFlags;
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use vrun_image::state::{Connection, Socket, SocketMessage, SocketOption};

use super::kernel;
use super::sockets;
use super::tables::{Description, Tables};

/// States of a connection (`net/tcp_states.h`).
const ESTABLISHED: u8 = 1;
const FIN_WAIT1: u8 = 4;
const FIN_WAIT2: u8 = 5;
const CLOSE_WAIT: u8 = 8;
/// `SO_BUF_LOCK` (`asm-generic/socket.h`, since 5.16): which buffers have a size that somebody chose.
pub(super) const BUFFERS_LOCK: i32 = 72;
/// `FIONREAD`, `SIOCINQ`: bytes that can be read.
const UNREAD: libc::Ioctl = 0x541B;

/// An address and a port. Both families' addresses as those of IPv6.
type Endpoint = ([u8; 16], u16);

/// Of a `struct sockaddr_in` or `sockaddr_in6`.
fn endpoint(name: &[u8]) -> Option<Endpoint> {
    let family = i32::from(u16::from_le_bytes(*name.first_chunk()?));
    let port = u16::from_be_bytes(*name.get(2..)?.first_chunk()?);
    let address = match family {
        libc::AF_INET => {
            let [a, b, c, d] = *name.get(4..)?.first_chunk()?;
            std::net::Ipv4Addr::new(a, b, c, d).to_ipv6_mapped().octets()
        }
        libc::AF_INET6 => *name.get(8..)?.first_chunk()?,
        _ => return None,
    };
    Some((address, port))
}

/// An end's name for a person.
pub(super) fn show(name: &[u8]) -> Option<String> {
    let (address, port) = endpoint(name)?;
    let address = std::net::Ipv6Addr::from(address).to_canonical();
    Some(std::net::SocketAddr::from((address, port)).to_string())
}

pub(super) fn same_port(one: &Socket, other: &Socket) -> bool {
    let port = |socket: &Socket| endpoint(&socket.name).map(|(_, port)| port);
    port(one).is_some() && port(one) == port(other)
}

/// The job's connected TCP sockets, by description: a copy of each, and the other end if that is the job's too.
pub(super) struct Ends(HashMap<usize, (OwnedFd, Option<usize>)>);

impl Ends {
    pub(super) fn find(tables: &Tables) -> Self {
        let mut found = Vec::new();
        let mut by_names = HashMap::new();
        for (index, description) in tables.descriptions.iter().enumerate() {
            if let Some((fd, own, other)) = connected(description) {
                by_names.insert((own, other), index);
                found.push((index, fd, (other, own)));
            }
        }
        let ends = found.into_iter().map(|(index, fd, names)| {
            let other = by_names.get(&names).copied().filter(|other| *other != index);
            (index, (fd, other))
        });
        Self(ends.collect())
    }

    /// An end of a connection and the other one, with its description.
    pub(super) fn pair(&self, index: usize) -> Option<(BorrowedFd<'_>, BorrowedFd<'_>, usize)> {
        let (fd, other) = self.0.get(&index)?;
        let other = (*other)?;
        Some((fd.as_fd(), self.0.get(&other)?.0.as_fd(), other))
    }

    /// For [`reset`].
    pub(super) fn into_copies(self) -> Vec<OwnedFd> {
        self.0.into_values().map(|(fd, _)| fd).collect()
    }
}

/// A copy of a connected TCP socket, its own name and the other one.
fn connected(description: &Description) -> Option<(OwnedFd, Endpoint, Endpoint)> {
    description.inode_of(FileType::Socket)?;
    let fd = description.fetch().ok()?;
    let is_tcp = kernel::int_option(fd.as_fd(), libc::SO_PROTOCOL).is_ok_and(|it| it == libc::IPPROTO_TCP);
    let own = endpoint(&kernel::name_of(fd.as_fd()).ok()?)?;
    let other = endpoint(&kernel::peer_of(fd.as_fd())?)?;
    is_tcp.then_some((fd, own, other))
}

/// What `TCP_INFO` says (`struct tcp_info`, `linux/tcp.h`).
struct Info {
    state: u8,
    /// Bytes that it received, and counts of their end.
    received: u64,
    /// Bytes that have not left it yet.
    unsent: u32,
    /// Bytes that it has sent, each once.
    sent: u64,
}

impl Info {
    fn of(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let info = kernel::option(fd, libc::IPPROTO_TCP, libc::TCP_INFO)?;
        let word = |at: usize| {
            let bytes = info.get(at..).and_then(|rest| rest.first_chunk());
            bytes
                .map(|bytes| u64::from_le_bytes(*bytes))
                .ok_or_else(|| io::Error::other("this kernel does not count what a connection has sent"))
        };
        Ok(Self {
            state: info.first().copied().unwrap_or(0),
            received: word(128)?,
            unsent: word(144)? as u32,
            sent: word(200)? - word(208)?,
        })
    }

    /// It can send no more.
    fn has_ended(&self) -> bool {
        matches!(self.state, FIN_WAIT1 | FIN_WAIT2)
    }
}

/// What is in the queue of `fd`, an end of a connection whose other end is `other`, and whether `fd` can send no more; or
/// why it cannot be kept.
pub(super) fn capture(
    fd: BorrowedFd<'_>,
    other: BorrowedFd<'_>,
) -> io::Result<std::result::Result<(Vec<u8>, bool), &'static str>> {
    let (own, its) = (Info::of(fd)?, Info::of(other)?);
    let stable = |info: &Info| matches!(info.state, ESTABLISHED | FIN_WAIT1 | FIN_WAIT2 | CLOSE_WAIT);
    if !stable(&own) || !stable(&its) || (own.has_ended() && its.has_ended()) {
        return Ok(Err(", which is just being closed: it cannot be kept in a file"));
    }
    // The end counts as a byte.
    if its.unsent != 0 || its.sent + u64::from(its.has_ended()) != own.received {
        return Ok(Err(
            ", which has more on the way than its receiver has room for: it cannot be kept in a file, use vmigrate",
        ));
    }
    let urgent = rustix::net::recv(fd, &mut [0; 1], RecvFlags::OOB | RecvFlags::PEEK | RecvFlags::DONTWAIT);
    if !matches!(urgent, Err(rustix::io::Errno::INVAL)) {
        return Ok(Err(
            ", which has urgent data: it cannot be kept in a file, use vmigrate",
        ));
    }
    let mut bytes = vec![0; usize::try_from(kernel::ioctl_int(fd, UNREAD)?).unwrap_or(0)];
    if !bytes.is_empty() {
        let offset = kernel::int_option(fd, libc::SO_PEEK_OFF).unwrap_or(-1);
        if offset >= 0 {
            kernel::set_int_option(fd, libc::SO_PEEK_OFF, 0)?;
        }
        let peeked = rustix::net::recv(fd, &mut bytes[..], RecvFlags::PEEK | RecvFlags::DONTWAIT);
        if offset >= 0 {
            kernel::set_int_option(fd, libc::SO_PEEK_OFF, offset)?;
        }
        if peeked?.0 != bytes.len() {
            return Err(io::Error::other("what was there is gone"));
        }
    }
    Ok(Ok((bytes, own.has_ended())))
}

/// As an image has it.
pub(super) fn messages(bytes: &[u8]) -> Vec<SocketMessage> {
    let whole = SocketMessage {
        length: bytes.len() as u32,
        files: Vec::new(),
        credentials: None,
        from: Vec::new(),
    };
    Some(whole).filter(|whole| whole.length > 0).into_iter().collect()
}

/// Lets connections end by a reset when they are closed for the last time: the job goes on elsewhere, under the same names.
pub fn reset(ends: &[OwnedFd]) {
    for fd in ends {
        let done = rustix::net::sockopt::set_socket_linger(fd, Some(std::time::Duration::ZERO));
        if let Err(error) = done {
            tracing::warn!("a connection ends slowly, and its name is taken for a minute: {error}");
        }
    }
}

pub(super) fn is(socket: &Socket) -> bool {
    socket.family != libc::AF_UNIX && socket.kind == libc::SOCK_STREAM
}

/// A port may be a listener's, and of the connections that it has accepted; until [`finish`].
pub(super) fn share_port(fd: BorrowedFd<'_>) -> io::Result<()> {
    kernel::set_int_option(fd, libc::SO_REUSEADDR, 1)
}

/// Connects two new sockets under their names, `client` to `server`.
pub(super) fn connect(client: &Socket, server: &Socket) -> io::Result<(OwnedFd, OwnedFd)> {
    let make = |socket: &Socket| {
        let fd = kernel::socket(socket.family, socket.kind, socket.protocol)?;
        sockets::set_options(fd.as_fd(), socket)?;
        share_port(fd.as_fd())?;
        kernel::bind(fd.as_fd(), &socket.name)?;
        Ok::<_, io::Error>(fd)
    };
    let listener = make(server)?;
    rustix::net::listen(&listener, 1)?;
    let connected = make(client)?;
    match kernel::connect(connected.as_fd(), &server.name) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
        _ => {}
    }
    let name = endpoint(&client.name);
    loop {
        let mut waits = [rustix::event::PollFd::new(&listener, rustix::event::PollFlags::IN)];
        if rustix::event::poll(&mut waits, Some(&PATIENCE))? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let flags = rustix::net::SocketFlags::CLOEXEC | rustix::net::SocketFlags::NONBLOCK;
        let accepted = rustix::net::accept_with(&listener, flags)?;
        // Anybody may connect to a listener.
        if kernel::peer_of(accepted.as_fd()).is_some_and(|peer| endpoint(&peer) == name) {
            let mut server = server.clone();
            // As its listener had it: with a name it cannot be set.
            server
                .options
                .retain(|option| (option.level, option.name) != (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY));
            sockets::set_options(accepted.as_fd(), &server)?;
            return Ok((connected, accepted));
        }
    }
}

/// For what happens on a connection of a host with itself.
const PATIENCE: rustix::event::Timespec = rustix::event::Timespec { tv_sec: 5, tv_nsec: 0 };

/// Sends bytes into the queue of the other end; what has no room there waits at this one.
pub(super) fn send(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match kernel::send(fd, bytes, &[], &[]) {
            Ok(sent) => bytes = &bytes[sent..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let mut room = [rustix::event::PollFd::from_borrowed_fd(
                    fd,
                    rustix::event::PollFlags::OUT,
                )];
                if rustix::event::poll(&mut room, Some(&PATIENCE))? == 0 {
                    return Err(io::Error::other("its queue has no room for what was in it"));
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Once everything listens and all queues are full.
pub(super) fn finish(fd: &OwnedFd, socket: &Socket) -> io::Result<()> {
    let saved = |name: i32| {
        let is = |option: &&SocketOption| (option.level, option.name) == (libc::SOL_SOCKET, name);
        let option = socket.options.iter().find(is);
        option
            .and_then(|option| option.value.first_chunk())
            .map_or(0, |bytes| i32::from_le_bytes(*bytes))
    };
    kernel::set_int_option(fd.as_fd(), libc::SO_REUSEADDR, saved(libc::SO_REUSEADDR))?;
    if !matches!(socket.connection, Connection::Peer { .. }) {
        return Ok(());
    }
    // Older kernels go on with the sizes that there are.
    let _ = kernel::set_int_option(fd.as_fd(), BUFFERS_LOCK, saved(BUFFERS_LOCK));
    if socket.shutdown & 2 != 0 {
        rustix::net::shutdown(fd, rustix::net::Shutdown::Write)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_have_one_name() {
        let four = endpoint(&[2, 0, 0x1f, 0x90, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
        let mut six = [0; 28];
        six[..4].copy_from_slice(&[10, 0, 0x1f, 0x90]);
        six[18..24].copy_from_slice(&[0xff, 0xff, 127, 0, 0, 1]);
        assert_eq!(endpoint(&six), four);
        assert_eq!(four.map(|(_, port)| port), Some(8080));
        assert_eq!(endpoint(&[1, 0, b'/', b'x']), None);
        assert_eq!(endpoint(&[2, 0, 0]), None);
    }
}
