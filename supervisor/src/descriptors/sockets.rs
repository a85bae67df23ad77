//! Sockets: Unix ones whose other end is in the job, with everything that is in their queues, and Internet ones that are
//! not connected to anybody, or to each other ([`super::tcp`]).
//!
//! *Capture.* What waits in a queue is peeked at (`MSG_PEEK` at an `SO_PEEK_OFF` that is put back), which also gives
//! copies of passed descriptors. Who is connected to whom is asked of the kernel ([`super::diag`]).
//!
//! *Restore.* A connection without names is a `socketpair`. The accepting end of any other has its listener's name, so it
//! is made through a listener of that name: the job's, or one for the purpose. Then come the connections that nobody
//! has accepted. Queues are filled from the other end, and at last what was shut down or closed is so again.
//!
//! Datagrams in the queue of a UDP socket are not kept: the network may lose them too.

use rustix::fs::{CWD, FileType, Mode, OFlags};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use vrun_image::state::{Connection, FileKind, OpenFile, Socket, SocketMessage, SocketOption, SocketPlace};

use super::diag::{self, UnixSocket};
use super::tables::{Description, Tables, cannot};
use super::{DescriptorError, Result, failed, kernel, show, tcp};

const UNIX: i32 = libc::AF_UNIX;
/// `SIOCOUTQ`: bytes sent and not received.
const UNSENT: libc::Ioctl = 0x5411;
/// `SO_GET_FILTER`: asked with no room, it gives the filter's length.
const FILTER: i32 = 26;

/// The options that are kept: level and name. Buffer sizes are given back doubled (socket(7)).
const OPTIONS: [(i32, i32); 38] = {
    use libc::{
        IP_FREEBIND, IP_MTU_DISCOVER, IP_MULTICAST_LOOP, IP_MULTICAST_TTL, IP_PKTINFO, IP_RECVERR, IP_RECVTTL, IP_TOS,
        IP_TTL, IPPROTO_IP, IPPROTO_IPV6, IPPROTO_TCP, IPV6_MULTICAST_HOPS, IPV6_MULTICAST_LOOP, IPV6_RECVPKTINFO,
        IPV6_TCLASS, IPV6_UNICAST_HOPS, IPV6_V6ONLY, SO_BROADCAST, SO_DONTROUTE, SO_KEEPALIVE, SO_LINGER, SO_OOBINLINE,
        SO_PASSCRED, SO_PRIORITY, SO_RCVBUF, SO_RCVLOWAT, SO_RCVTIMEO, SO_REUSEADDR, SO_REUSEPORT, SO_SNDBUF,
        SO_SNDTIMEO, SOL_SOCKET, TCP_DEFER_ACCEPT, TCP_KEEPCNT, TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_NODELAY,
        TCP_USER_TIMEOUT,
    };
    [
        (SOL_SOCKET, SO_REUSEADDR),
        (SOL_SOCKET, SO_REUSEPORT),
        (SOL_SOCKET, SO_BROADCAST),
        (SOL_SOCKET, SO_DONTROUTE),
        (SOL_SOCKET, SO_KEEPALIVE),
        (SOL_SOCKET, SO_LINGER),
        (SOL_SOCKET, SO_OOBINLINE),
        (SOL_SOCKET, SO_PASSCRED),
        (SOL_SOCKET, SO_PRIORITY),
        (SOL_SOCKET, SO_SNDBUF),
        (SOL_SOCKET, SO_RCVBUF),
        (SOL_SOCKET, tcp::BUFFERS_LOCK),
        (SOL_SOCKET, SO_RCVLOWAT),
        (SOL_SOCKET, SO_RCVTIMEO),
        (SOL_SOCKET, SO_SNDTIMEO),
        (SOL_SOCKET, libc::SO_PEEK_OFF),
        (IPPROTO_IP, IP_TOS),
        (IPPROTO_IP, IP_TTL),
        (IPPROTO_IP, IP_FREEBIND),
        (IPPROTO_IP, IP_RECVTTL),
        (IPPROTO_IP, IP_PKTINFO),
        (IPPROTO_IP, IP_MTU_DISCOVER),
        (IPPROTO_IP, IP_RECVERR),
        (IPPROTO_IP, IP_MULTICAST_TTL),
        (IPPROTO_IP, IP_MULTICAST_LOOP),
        (IPPROTO_IPV6, IPV6_V6ONLY),
        (IPPROTO_IPV6, IPV6_UNICAST_HOPS),
        (IPPROTO_IPV6, IPV6_TCLASS),
        (IPPROTO_IPV6, IPV6_RECVPKTINFO),
        (IPPROTO_IPV6, IPV6_MULTICAST_HOPS),
        (IPPROTO_IPV6, IPV6_MULTICAST_LOOP),
        (IPPROTO_TCP, TCP_NODELAY),
        (IPPROTO_TCP, TCP_KEEPIDLE),
        (IPPROTO_TCP, TCP_KEEPINTVL),
        (IPPROTO_TCP, TCP_KEEPCNT),
        (IPPROTO_TCP, TCP_DEFER_ACCEPT),
        (IPPROTO_TCP, TCP_USER_TIMEOUT),
        (libc::SOL_UDP, libc::UDP_CORK),
    ]
};

/// A socket's queue as it was found: its messages, the descriptions that they pass, and all of the bytes.
#[derive(Debug, Default)]
pub(super) struct Queue {
    messages: Vec<(SocketMessage, Vec<usize>)>,
    bytes: Vec<u8>,
}

/// Puts back what peeking changes of a socket.
struct Looked<'a> {
    fd: BorrowedFd<'a>,
    offset: i32,
    credentials: i32,
}

impl<'a> Looked<'a> {
    fn begin(fd: BorrowedFd<'a>) -> io::Result<Self> {
        let offset = kernel::int_option(fd, libc::SO_PEEK_OFF)?;
        let credentials = kernel::int_option(fd, libc::SO_PASSCRED)?;
        let looked = Self {
            fd,
            offset,
            credentials,
        };
        kernel::set_int_option(fd, libc::SO_PEEK_OFF, 0)?;
        // Only a message has credentials: this tells an empty one from the end.
        kernel::set_int_option(fd, libc::SO_PASSCRED, 1)?;
        Ok(looked)
    }
}

impl Drop for Looked<'_> {
    fn drop(&mut self) {
        for (option, value) in [(libc::SO_PEEK_OFF, self.offset), (libc::SO_PASSCRED, self.credentials)] {
            if let Err(error) = kernel::set_int_option(self.fd, option, value) {
                tracing::warn!(option, %error, "cannot put back an option of a socket");
            }
        }
    }
}

/// What waits in a Unix socket's queue. Passed descriptors are entered into the tables.
pub(super) fn look(tables: &mut Tables, index: usize) -> Result<Queue> {
    let description = &tables.descriptions[index];
    let refused = cannot("look into", description);
    let fd = description.fetch()?;
    let mut queue = Queue::default();
    if rustix::net::sockopt::socket_acceptconn(&fd).map_err(|errno| refused(errno.into()))? {
        return Ok(queue);
    }
    let kind = kernel::int_option(fd.as_fd(), libc::SO_TYPE).map_err(&refused)?;
    let looked = Looked::begin(fd.as_fd()).map_err(&refused)?;
    let mut buffer = vec![0_u8; 256 << 10];
    loop {
        let mut found = match kernel::peek(fd.as_fd(), &mut buffer).map_err(&refused)? {
            Some(found) if found.is_message => found,
            _ => break,
        };
        if kind == libc::SOCK_STREAM {
            if found.length == 0 {
                break;
            }
            // Descriptors come with the first byte of what they were sent with, and a peek does not say where that is.
            if !found.descriptors.is_empty() {
                let start = queue.bytes.len();
                set_offset(fd.as_fd(), start).map_err(&refused)?;
                let before = kernel::peek_whole(fd.as_fd(), found.length - 1).map_err(&refused)?;
                set_offset(fd.as_fd(), start).map_err(&refused)?;
                let most = if before == 0 { found.length } else { before };
                found = kernel::peek(fd.as_fd(), &mut buffer[..most])
                    .map_err(&refused)?
                    .ok_or_else(|| refused(io::Error::other("what was there is gone")))?;
                if before != 0 {
                    // They are those of what comes behind.
                    found.descriptors.clear();
                }
            }
        } else if found.length > buffer.len() {
            // The offset went forward by what fitted.
            let offset = kernel::int_option(fd.as_fd(), libc::SO_PEEK_OFF).map_err(&refused)? as usize;
            set_offset(fd.as_fd(), offset.saturating_sub(buffer.len())).map_err(&refused)?;
            buffer.resize(found.length, 0);
            continue;
        }
        queue.bytes.extend_from_slice(&buffer[..found.length]);
        let wanted = looked.credentials != 0;
        let credentials = found.credentials.filter(|_| wanted).map(|[pid, uid, gid]| {
            let inner = tables.inner_pid(pid.cast_signed()).unwrap_or(0);
            [inner.cast_unsigned(), uid, gid]
        });
        let descriptors: Result<Vec<usize>> = found.descriptors.into_iter().map(|fd| tables.add_passed(fd)).collect();
        let message = SocketMessage {
            length: found.length as u32,
            files: Vec::new(),
            credentials,
            from: if kind == libc::SOCK_DGRAM {
                found.from
            } else {
                Vec::new()
            },
        };
        queue.messages.push((message, descriptors?));
    }
    drop(looked);
    Ok(queue)
}

fn set_offset(fd: BorrowedFd<'_>, offset: usize) -> io::Result<()> {
    kernel::set_int_option(fd, libc::SO_PEEK_OFF, offset as i32)
}

/// What else is needed to describe a socket.
pub(super) struct Surroundings<'a> {
    pub tables: &'a Tables,
    pub unix: &'a HashMap<u64, UnixSocket>,
    pub tcp: &'a tcp::Ends,
    /// Index of a description in the image.
    pub file: &'a dyn Fn(usize) -> Option<u32>,
    /// Index in the image of the job's socket with this inode.
    pub by_inode: &'a dyn Fn(u64) -> Option<u32>,
}

/// What a socket is, and the bytes in its queue.
pub(super) fn capture(around: &Surroundings<'_>, index: usize, queue: Option<Queue>) -> Result<(FileKind, Vec<u8>)> {
    let description = &around.tables.descriptions[index];
    let refused = cannot("look into", description);
    let fd = description.fetch()?;
    let refuse = |what: &str| {
        let socket = super::describe(description);
        description.refuse(around.tables, format!("is {socket}{what}"))
    };
    let option = |name| kernel::int_option(fd.as_fd(), name).map_err(&refused);
    let mut socket = Socket {
        family: option(libc::SO_DOMAIN)?,
        kind: option(libc::SO_TYPE)?,
        protocol: option(libc::SO_PROTOCOL)?,
        name: kernel::name_of(fd.as_fd()).map_err(&refused)?,
        place: None,
        connection: Connection::None,
        shutdown: 0,
        options: Vec::new(),
        received: Vec::new(),
    };
    let simple = [libc::SOCK_STREAM, libc::SOCK_DGRAM].contains(&socket.kind)
        && [0, libc::IPPROTO_TCP, libc::IPPROTO_UDP].contains(&socket.protocol);
    if kernel::option(fd.as_fd(), libc::SOL_SOCKET, FILTER).is_ok_and(|filter| !filter.is_empty()) {
        return refuse(" with a filter program, which cannot be kept in a file: close it or use vmigrate");
    }
    let mut bytes = Vec::new();
    match socket.family {
        UNIX => {
            let Some(known) = around.unix.get(&description.slot.stat.st_ino) else {
                return refuse(" of another network namespace, which cannot be kept in a file");
            };
            socket.shutdown = known.shutdown & 3;
            socket.place = place(around.tables, &socket.name, known);
            socket.connection = match unix_connection(around, description, &fd, socket.kind, known)? {
                Ok(connection) => connection,
                Err(why) => return refuse(why),
            };
            let queue = queue.unwrap_or_default();
            for (mut message, passed) in queue.messages {
                let files: Option<Vec<u32>> = passed
                    .into_iter()
                    .map(|description| (around.file)(description))
                    .collect();
                message.files = files.ok_or_else(|| refused(io::Error::other("a passed descriptor is unknown")))?;
                socket.received.push(message);
            }
            bytes = queue.bytes;
        }
        libc::AF_INET | libc::AF_INET6 if simple => {
            let pair = around.tcp.pair(index);
            let inside = pair.and_then(|(own, other, at)| Some((own, other, (around.file)(at)?)));
            socket.connection = match inside {
                Some((own, other, file)) => match tcp::capture(own, other).map_err(&refused)? {
                    Ok((unread, ended)) => {
                        (bytes, socket.shutdown) = (unread, if ended { 2 } else { 0 });
                        socket.received = tcp::messages(&bytes);
                        Connection::Peer { file }
                    }
                    Err(why) => return refuse(why),
                },
                None => match internet_connection(&fd, socket.kind).map_err(&refused)? {
                    Ok(connection) => connection,
                    Err(why) => return refuse(why),
                },
            };
            if socket.connection == Connection::None && is_any(&socket.name) {
                socket.name.clear();
            }
        }
        _ => return refuse(", which cannot be kept in a file: close it or use vmigrate"),
    }
    socket.options = options(&socket, fd.as_fd()).map_err(&refused)?;
    Ok((FileKind::Socket(Box::new(socket)), bytes))
}

/// An Internet address without a port: the socket was not bound.
fn is_any(name: &[u8]) -> bool {
    name.get(2..4) == Some(&[0, 0])
}

/// Options that are not as in a new socket.
fn options(socket: &Socket, fd: BorrowedFd<'_>) -> io::Result<Vec<SocketOption>> {
    let fresh = kernel::socket(socket.family, socket.kind, socket.protocol)?;
    // What a stream says of these is of no use, and cannot be set (`do_ip_setsockopt`, `net/ipv4/ip_sockglue.c`).
    const MULTICAST: [(i32, i32); 4] = [
        (libc::IPPROTO_IP, libc::IP_MULTICAST_TTL),
        (libc::IPPROTO_IP, libc::IP_MULTICAST_LOOP),
        (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_HOPS),
        (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_LOOP),
    ];
    let differs = |(level, name): (i32, i32)| {
        if socket.kind == libc::SOCK_STREAM && MULTICAST.contains(&(level, name)) {
            return None;
        }
        let value = kernel::option(fd, level, name).ok()?;
        let default = kernel::option(fresh.as_fd(), level, name).ok()?;
        (value != default).then_some(SocketOption { level, name, value })
    };
    Ok(OPTIONS.into_iter().filter_map(differs).collect())
}

/// Of which directory a path is, and whether it still leads to its socket.
fn place(tables: &Tables, name: &[u8], known: &UnixSocket) -> Option<SocketPlace> {
    let path = path_of(name)?;
    let (inode, device) = known.place?;
    let leads = |directory: &[u8]| {
        let stat = rustix::fs::stat(Path::new(std::ffi::OsStr::from_bytes(directory)).join(path)).ok()?;
        let there = (
            stat.st_ino as u32,
            rustix::fs::major(stat.st_dev) << 20 | rustix::fs::minor(stat.st_dev),
        );
        (there == (inode, device)).then_some(stat.st_mode)
    };
    let directories: Vec<Vec<u8>> = if path.is_absolute() {
        vec![b"/".to_vec()]
    } else {
        let directory = |pid: &i32| crate::proc::ProcDir::open(*pid)?.working_directory();
        tables.pids.iter().filter_map(|pid| directory(pid).ok()).collect()
    };
    let found = directories
        .iter()
        .find_map(|directory| Some((directory.clone(), leads(directory)?)));
    let (directory, mode) = found.or_else(|| Some((directories.first()?.clone(), 0)))?;
    Some(SocketPlace { directory, mode })
}

/// The path of a Unix socket's name; none if it has none, or an abstract one.
fn path_of(name: &[u8]) -> Option<&Path> {
    let path = name.get(2..)?.split(|byte| *byte == 0).next()?;
    (!path.is_empty()).then(|| Path::new(std::ffi::OsStr::from_bytes(path)))
}

type Judged = std::result::Result<Connection, &'static str>;

fn unix_connection(
    around: &Surroundings<'_>,
    description: &Description,
    fd: &OwnedFd,
    kind: i32,
    known: &UnixSocket,
) -> Result<Judged> {
    const OUTSIDE: &str = ", whose other end is outside of the job: close it or use vmigrate";
    let refused = cannot("look into", description);
    if known.state == diag::LISTEN {
        let mut waiting = Vec::new();
        for inode in &known.waiting {
            let Some(file) = (around.by_inode)(*inode) else {
                return Ok(Err(
                    ", at which a connection from outside of the job waits: use vmigrate",
                ));
            };
            waiting.push(file);
        }
        let backlog = known.backlog;
        return Ok(Ok(Connection::Listening { backlog, waiting }));
    }
    Ok(match known.peer {
        None if kind == libc::SOCK_DGRAM || known.state != diag::ESTABLISHED => Ok(Connection::None),
        Some(peer) if peer != 0 => match (around.by_inode)(peer) {
            Some(file) => Ok(Connection::Peer { file }),
            None => Err(OUTSIDE),
        },
        _ => {
            let inode = description.slot.stat.st_ino;
            let waits = around.unix.values().any(|listener| listener.waiting.contains(&inode));
            let by_us = |inode: &u64| (around.by_inode)(*inode).is_some();
            let ours = around
                .unix
                .iter()
                .any(|(listener, socket)| by_us(listener) && socket.waiting.contains(&inode));
            if waits && !ours {
                Err(OUTSIDE)
            } else if waits {
                match kernel::ioctl_int(fd.as_fd(), UNSENT).map_err(refused)? {
                    0 => Ok(Connection::Waiting),
                    _ => Err(", which was not accepted yet and has sent something: it cannot be kept in a file"),
                }
            } else {
                // A pending error is told by POLLERR without being taken.
                let reset = kernel::readiness(fd.as_fd()) & libc::POLLERR != 0;
                Ok(Connection::Closed { reset })
            }
        }
    })
}

fn internet_connection(fd: &OwnedFd, kind: i32) -> io::Result<Judged> {
    let peer = kernel::peer_of(fd.as_fd());
    if kind == libc::SOCK_DGRAM {
        return Ok(Ok(peer.map_or(Connection::None, Connection::Address)));
    }
    // struct tcp_info (linux/tcp.h): the state first; of a listener, how many wait at 24 and how many may at 28.
    let info = kernel::option(fd.as_fd(), libc::IPPROTO_TCP, libc::TCP_INFO)?;
    let word = |at: usize| {
        info.get(at..)
            .and_then(|rest| rest.first_chunk())
            .map_or(0, |word| u32::from_le_bytes(*word))
    };
    const CLOSE: u8 = 7;
    Ok(match info.first() {
        Some(&diag::LISTEN) if word(24) != 0 => {
            Err(", at which a connection waits to be accepted: it cannot be kept in a file, use vmigrate")
        }
        Some(&diag::LISTEN) => Ok(Connection::Listening {
            backlog: word(28),
            waiting: Vec::new(),
        }),
        Some(&CLOSE) => Ok(Connection::None),
        _ => Err(", which cannot be kept in a file: close it or use vmigrate"),
    })
}

/// Sockets of the image under construction. Paths that were bound are removed again when dropped, unless kept.
#[derive(Debug, Default)]
pub(super) struct Restored {
    /// By index in the image.
    made: HashMap<u32, OwnedFd>,
    /// The other end of those whose peer was closed, and listeners that only served to make a connection.
    others: HashMap<u32, OwnedFd>,
    listeners: HashMap<Vec<u8>, OwnedFd>,
    bound: Vec<PathBuf>,
    /// Paths that led to nothing any more.
    unlinked: Vec<PathBuf>,
    pub keep: bool,
}

impl Drop for Restored {
    fn drop(&mut self) {
        for path in self.bound.iter().filter(|_| !self.keep) {
            if let Err(error) = std::fs::remove_file(path) {
                tracing::warn!(path = %path.display(), %error, "cannot remove the socket that was made");
            }
        }
    }
}

/// A message that only a process of the job can send again: it bears the credentials of one.
#[derive(Debug)]
pub(super) struct Deferred {
    /// Number of the sending socket among our descriptors.
    pub sender: RawFd,
    pub bytes: Vec<u8>,
    /// Indices in the image.
    pub files: Vec<u32>,
    pub credentials: [u32; 3],
    /// Empty if the sender is connected.
    pub to: Vec<u8>,
}

/// Makes all sockets of the image, with nothing in their queues yet.
pub(super) fn restore(files: &[OpenFile]) -> Result<Restored> {
    let mut restored = Restored::default();
    let sockets: Vec<(u32, &Socket)> = (0..)
        .zip(files)
        .filter_map(|(index, file)| match &file.kind {
            FileKind::Socket(socket) => Some((index, &**socket)),
            _ => None,
        })
        .collect();
    let named = |socket: &Socket| match (tcp::show(&socket.name), path_of(&socket.name)) {
        (Some(name), _) => name.into_bytes(),
        (_, Some(path)) => path.as_os_str().as_bytes().to_vec(),
        _ => b"a socket".to_vec(),
    };
    let broken = || DescriptorError::Changed("the image has a socket whose peer is none".to_owned());
    // While these are made, something else listens where the job's listeners will.
    for (index, socket) in sockets.iter().filter(|(_, socket)| socket.family != UNIX) {
        let Connection::Peer { file } = socket.connection else {
            continue;
        };
        if restored.made.contains_key(index) {
            continue;
        }
        let peer = sockets.iter().find(|(other, _)| *other == file).ok_or_else(broken)?.1;
        if !tcp::is(socket)
            || !tcp::is(peer)
            || peer.connection != (Connection::Peer { file: *index })
            || file == *index
        {
            return Err(broken());
        }
        let listens = |(_, other): &(u32, &Socket)| {
            matches!(other.connection, Connection::Listening { .. }) && tcp::same_port(other, socket)
        };
        let (client, server, to) = match sockets.iter().any(listens) {
            true => (peer, *socket, [file, *index]),
            false => (*socket, peer, [*index, file]),
        };
        let made = tcp::connect(client, server).map_err(|error| failed("connect again", &named(server), error))?;
        restored.made.extend(to.into_iter().zip([made.0, made.1]));
    }
    // First what others connect to.
    for (index, socket) in &sockets {
        let free = matches!(
            socket.connection,
            Connection::None | Connection::Listening { .. } | Connection::Address(_)
        );
        let named_datagram = socket.kind == libc::SOCK_DGRAM && !is_pair(&sockets, *index) && socket.family == UNIX;
        if free || named_datagram {
            let made = restored
                .free(socket)
                .map_err(|error| failed("make the socket", &named(socket), error))?;
            restored.made.insert(*index, made);
        }
    }
    for (index, socket) in &sockets {
        if restored.made.contains_key(index) && (socket.kind != libc::SOCK_DGRAM || is_pair(&sockets, *index)) {
            continue;
        }
        let cannot = |error| failed("connect the socket", &named(socket), error);
        match &socket.connection {
            Connection::Peer { file } if restored.made.contains_key(index) => {
                let peer = sockets.iter().find(|(other, _)| other == file).ok_or_else(broken)?.1;
                restored.connect(&restored.made[index], peer).map_err(cannot)?;
            }
            Connection::Peer { file } => {
                let peer = sockets.iter().find(|(other, _)| other == file).ok_or_else(broken)?.1;
                if peer.connection != (Connection::Peer { file: *index }) || file == index {
                    return Err(broken());
                }
                let (one, two) = restored.pair(socket, peer).map_err(cannot)?;
                restored.made.insert(*index, one);
                restored.made.insert(*file, two);
            }
            Connection::Closed { .. } if !restored.made.contains_key(index) => {
                let (one, other) = restored.orphan(socket).map_err(cannot)?;
                restored.made.insert(*index, one);
                restored.others.insert(*index, other);
            }
            _ => {}
        }
    }
    for (_, listener) in &sockets {
        let Connection::Listening { waiting, .. } = &listener.connection else {
            continue;
        };
        for index in waiting {
            let client = sockets.iter().find(|(other, _)| other == index).ok_or_else(broken)?.1;
            let cannot = |error| failed("connect the socket", &named(client), error);
            let fd = restored.bound(client).map_err(cannot)?;
            restored.connect(&fd, listener).map_err(cannot)?;
            restored.made.insert(*index, fd);
        }
    }
    if sockets.iter().any(|(index, _)| !restored.made.contains_key(index)) {
        return Err(broken());
    }
    Ok(restored)
}

/// Whether a datagram socket and its peer are connected to each other, or it was to one that is gone.
fn is_pair(sockets: &[(u32, &Socket)], index: u32) -> bool {
    let connection = |index: u32| {
        sockets
            .iter()
            .find(|(other, _)| *other == index)
            .map(|(_, socket)| &socket.connection)
    };
    match connection(index) {
        Some(Connection::Peer { file }) => connection(*file) == Some(&Connection::Peer { file: index }),
        Some(Connection::Closed { .. }) => true,
        _ => false,
    }
}

impl Restored {
    /// A socket that is connected to nobody, or only by an address.
    fn free(&mut self, socket: &Socket) -> io::Result<OwnedFd> {
        let fd = self.bound(socket)?;
        match &socket.connection {
            Connection::Listening { backlog, .. } => {
                // Unix sockets count what waits up to and with this number, TCP below it; both say the number itself.
                rustix::net::listen(&fd, backlog.cast_signed().max(0))?;
                if socket.family == UNIX {
                    self.listeners.insert(socket.name.clone(), fd.try_clone()?);
                }
            }
            Connection::Address(address) => kernel::connect(fd.as_fd(), address)?,
            _ => {}
        }
        Ok(fd)
    }

    /// A socket with its options and name.
    fn bound(&mut self, socket: &Socket) -> io::Result<OwnedFd> {
        let fd = kernel::socket(socket.family, socket.kind, socket.protocol)?;
        set_options(fd.as_fd(), socket)?;
        if tcp::is(socket) {
            tcp::share_port(fd.as_fd())?;
        }
        self.name(&fd, socket)?;
        Ok(fd)
    }

    fn name(&mut self, fd: &OwnedFd, socket: &Socket) -> io::Result<()> {
        if socket.name.is_empty() {
            return Ok(());
        }
        let Some((path, place)) = path_of(&socket.name).zip(socket.place.as_ref()) else {
            return kernel::bind(fd.as_fd(), &socket.name);
        };
        let whole = Path::new(std::ffi::OsStr::from_bytes(&place.directory)).join(path);
        in_directory(&place.directory, || {
            if let Ok(stat) = rustix::fs::stat(&whole) {
                // What is left of the socket that was saved answers nobody.
                let probe = kernel::socket(UNIX, socket.kind, 0)?;
                let dead = kernel::connect(probe.as_fd(), &socket.name)
                    .is_err_and(|error| error.raw_os_error() == Some(libc::ECONNREFUSED));
                if FileType::from_raw_mode(stat.st_mode) != FileType::Socket || !dead {
                    return Err(io::Error::from_raw_os_error(libc::EADDRINUSE));
                }
                std::fs::remove_file(&whole)?;
            }
            kernel::bind(fd.as_fd(), &socket.name)
        })?;
        if place.mode == 0 {
            self.unlinked.push(whole);
        } else {
            let mode = Mode::from_raw_mode(place.mode & 0o7777);
            rustix::fs::chmodat(CWD, &whole, mode, rustix::fs::AtFlags::empty())?;
            self.bound.push(whole);
        }
        Ok(())
    }

    fn connect(&self, fd: &OwnedFd, to: &Socket) -> io::Result<()> {
        let directory = to.place.as_ref().map_or(&b"/"[..], |place| &place.directory);
        in_directory(directory, || kernel::connect(fd.as_fd(), &to.name))
    }

    /// Two that are connected to each other.
    fn pair(&mut self, one: &Socket, two: &Socket) -> io::Result<(OwnedFd, OwnedFd)> {
        let unnamed = one.name.is_empty() && two.name.is_empty();
        if unnamed || one.kind == libc::SOCK_DGRAM {
            let (first, second) = socket_pair(one.kind)?;
            for (fd, socket) in [(&first, one), (&second, two)] {
                set_options(fd.as_fd(), socket)?;
                self.name(fd, socket)?;
            }
            return Ok((first, second));
        }
        // The accepting end has its listener's name. If both have one, it is that of a listener which is still there.
        let accepts = |socket: &Socket| self.listeners.contains_key(&socket.name);
        let second_accepts = one.name.is_empty() || (!two.name.is_empty() && accepts(two) && !accepts(one));
        let (client, server) = if second_accepts { (one, two) } else { (two, one) };
        let (connected, accepted) = self.through_listener(client, server)?;
        Ok(if second_accepts {
            (connected, accepted)
        } else {
            (accepted, connected)
        })
    }

    fn through_listener(&mut self, client: &Socket, server: &Socket) -> io::Result<(OwnedFd, OwnedFd)> {
        if !self.listeners.contains_key(&server.name) {
            let fd = kernel::socket(UNIX, server.kind, 0)?;
            self.name(&fd, server)?;
            rustix::net::listen(&fd, 1)?;
            self.listeners.insert(server.name.clone(), fd);
        }
        let connected = self.bound(client)?;
        self.connect(&connected, server)?;
        let listener = &self.listeners[&server.name];
        let flags = rustix::net::SocketFlags::CLOEXEC | rustix::net::SocketFlags::NONBLOCK;
        let accepted = rustix::net::accept_with(listener, flags)?;
        set_options(accepted.as_fd(), server)?;
        Ok((connected, accepted))
    }

    /// One whose other end is gone, and that end, which is closed when the queue was filled from it.
    fn orphan(&mut self, socket: &Socket) -> io::Result<(OwnedFd, OwnedFd)> {
        let other = Socket {
            name: Vec::new(),
            place: None,
            options: Vec::new(),
            ..socket.clone()
        };
        let through = !socket.name.is_empty() && socket.kind != libc::SOCK_DGRAM;
        if through {
            let (client, server) = self.through_listener(&other, socket)?;
            return Ok((server, client));
        }
        self.pair(socket, &other)
    }

    /// A socket by its index in the image.
    pub(super) fn get(&self, index: u32) -> Option<&OwnedFd> {
        self.made.get(&index)
    }

    /// Fills the queue of a socket. `number` gives our descriptor of an open file of the image.
    pub(super) fn fill(
        &self,
        files: &[OpenFile],
        index: u32,
        content: &[u8],
        number: &dyn Fn(u32) -> RawFd,
    ) -> io::Result<(Vec<Deferred>, Vec<OwnedFd>)> {
        let (mut deferred, mut senders) = (Vec::new(), Vec::new());
        let FileKind::Socket(socket) = &files[index as usize].kind else {
            return Ok((deferred, senders));
        };
        // Also where one message bears none: the order counts.
        let by_process = socket
            .received
            .iter()
            .any(|message| message.credentials.is_some_and(|who| who[0] != 0))
            && socket.received.iter().all(|message| message.length <= MOST_INJECTED);
        let mut rest = content;
        for message in &socket.received {
            let (bytes, next) = rest
                .split_at_checked(message.length as usize)
                .ok_or_else(|| io::Error::other("the image lacks what was in its queue"))?;
            rest = next;
            let (sender, to) = self.sender(files, index, socket, message, &mut senders)?;
            if by_process {
                deferred.push(Deferred {
                    sender,
                    bytes: bytes.to_vec(),
                    files: message.files.clone(),
                    credentials: message.credentials.unwrap_or_default(),
                    to,
                });
                continue;
            }
            if socket.family != UNIX {
                tcp::send(borrow(self, &senders, sender)?, bytes)?;
                continue;
            }
            let passed: Vec<RawFd> = message.files.iter().map(|file| number(*file)).collect();
            let sent = kernel::send(borrow(self, &senders, sender)?, bytes, &passed, &to)?;
            if sent != bytes.len() {
                return Err(io::Error::other("its queue has no room for what was in it"));
            }
        }
        Ok((deferred, senders))
    }

    /// Our descriptor from which a message came, and the address that it needs.
    fn sender(
        &self,
        files: &[OpenFile],
        index: u32,
        socket: &Socket,
        message: &SocketMessage,
        senders: &mut Vec<OwnedFd>,
    ) -> io::Result<(RawFd, Vec<u8>)> {
        if let Some(other) = self.others.get(&index) {
            return Ok((other.as_raw_fd(), Vec::new()));
        }
        if let Connection::Peer { file } = socket.connection {
            let peer = self
                .made
                .get(&file)
                .ok_or_else(|| io::Error::other("its peer is not there"))?;
            let mutual = matches!(&files[file as usize].kind, FileKind::Socket(peer) if peer.connection == Connection::Peer { file: index });
            let to = if mutual { Vec::new() } else { socket.name.clone() };
            return Ok((peer.as_raw_fd(), to));
        }
        // A datagram to a socket that takes them from anybody.
        let from = (0..).zip(files).find_map(|(other, file)| match &file.kind {
            FileKind::Socket(sender)
                if sender.kind == socket.kind && !message.from.is_empty() && sender.name == message.from =>
            {
                self.made.get(&other)
            }
            FileKind::Socket(sender)
                if message.from.is_empty()
                    && sender.name.is_empty()
                    && sender.connection == Connection::Peer { file: index } =>
            {
                self.made.get(&other)
            }
            _ => None,
        });
        if let Some(from) = from {
            return Ok((from.as_raw_fd(), socket.name.clone()));
        }
        let fd = kernel::socket(UNIX, socket.kind, 0)?;
        if message.from.get(2) == Some(&0) {
            kernel::bind(fd.as_fd(), &message.from)?;
        }
        let number = fd.as_raw_fd();
        senders.push(fd);
        Ok((number, socket.name.clone()))
    }

    /// Hands out the sockets, by index in the image.
    pub(super) fn take(&mut self) -> Vec<(u32, OwnedFd)> {
        self.made.drain().collect()
    }

    /// Shuts down and closes what was, once all queues are filled. `ours`: descriptors of all open files.
    pub(super) fn finish(&mut self, files: &[OpenFile], ours: &[OwnedFd]) -> io::Result<()> {
        for (file, fd) in files.iter().zip(ours) {
            let FileKind::Socket(socket) = &file.kind else { continue };
            if let Connection::Closed { reset } = socket.connection {
                if reset && socket.kind != libc::SOCK_DGRAM {
                    // Closing an end with something unread in its queue is what makes the error.
                    kernel::send(fd.as_fd(), b"\0", &[], &[])?;
                }
                continue;
            }
            if tcp::is(socket) {
                tcp::finish(fd, socket)?;
            }
            if socket.family != UNIX {
                continue;
            }
            let how = match socket.shutdown {
                1 => rustix::net::Shutdown::Read,
                2 => rustix::net::Shutdown::Write,
                3 => rustix::net::Shutdown::Both,
                _ => continue,
            };
            rustix::net::shutdown(fd, how)?;
        }
        self.others.clear();
        self.listeners.clear();
        self.unlinked.drain(..).try_for_each(std::fs::remove_file)
    }
}

/// The largest message that is sent from inside a process.
const MOST_INJECTED: u32 = 16 << 10;

fn borrow<'a>(restored: &'a Restored, senders: &'a [OwnedFd], number: RawFd) -> io::Result<BorrowedFd<'a>> {
    let all = restored.made.values().chain(restored.others.values()).chain(senders);
    let found = all.into_iter().find(|fd| fd.as_raw_fd() == number);
    found
        .map(AsFd::as_fd)
        .ok_or_else(|| io::Error::other("its sender is not there"))
}

fn socket_pair(kind: i32) -> io::Result<(OwnedFd, OwnedFd)> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType};
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::from_raw(kind as u32),
        flags,
        None,
    )?)
}

pub(super) fn set_options(fd: BorrowedFd<'_>, socket: &Socket) -> io::Result<()> {
    for option in &socket.options {
        let key = (option.level, option.name);
        if !OPTIONS.contains(&key) {
            return Err(io::Error::other(format!("the option {key:?} is not known here")));
        }
        let buffer = match key {
            (libc::SOL_SOCKET, libc::SO_SNDBUF) => Some(libc::SO_SNDBUFFORCE),
            (libc::SOL_SOCKET, libc::SO_RCVBUF) => Some(libc::SO_RCVBUFFORCE),
            _ => None,
        };
        match buffer {
            None => kernel::set_option(fd, option.level, option.name, &option.value)?,
            Some(force) => {
                let size = option.value.first_chunk().map_or(0, |bytes| i32::from_le_bytes(*bytes)) / 2;
                kernel::set_int_option(fd, force, size).or_else(|_| kernel::set_int_option(fd, option.name, size))?;
            }
        }
    }
    Ok(())
}

/// Does something while this directory is the current one: a relative path of a socket counts from there.
fn in_directory<T>(directory: &[u8], act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let here = rustix::fs::open(".", flags, Mode::empty())?;
    rustix::process::chdir(directory)?;
    let done = act();
    rustix::process::fchdir(&here)?;
    done
}

/// What a socket is, for a person.
pub(super) fn describe(fd: &OwnedFd) -> io::Result<String> {
    use rustix::net::{AddressFamily, SocketAddr, SocketAddrUnix, SocketType, sockopt};
    let (family, kind) = (sockopt::socket_domain(fd)?, sockopt::socket_type(fd)?);
    let listening = sockopt::socket_acceptconn(fd)?;
    let name = match (family, kind) {
        (AddressFamily::INET | AddressFamily::INET6, SocketType::STREAM) => "TCP",
        (AddressFamily::INET | AddressFamily::INET6, SocketType::DGRAM) => "UDP",
        (AddressFamily::UNIX, _) => "Unix",
        (AddressFamily::NETLINK, _) => "netlink",
        _ => "network",
    };
    let address = if listening {
        rustix::net::getsockname(fd).ok()
    } else {
        rustix::net::getpeername(fd).unwrap_or(None)
    };
    let connected = kernel::peer_of(fd.as_fd()).is_some();
    let address = match address {
        None => None,
        Some(address) => match SocketAddr::try_from(address.clone()) {
            Ok(address) => Some(address.to_string()),
            Err(_) => {
                let unix = SocketAddrUnix::try_from(address).ok();
                unix.and_then(|unix| unix.path().map(|path| show(path.to_bytes())))
            }
        },
    };
    Ok(match (listening, address) {
        (true, Some(address)) => format!("a {name} socket listening on {address}"),
        (true, None) => format!("a listening {name} socket"),
        (false, Some(address)) => format!("a {name} connection to {address}"),
        (false, None) if connected => format!("a {name} connection"),
        (false, None) => format!("a {name} socket"),
    })
}
