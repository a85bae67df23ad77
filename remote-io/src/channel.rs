//! The one authenticated connection between two hosts: TLS 1.3 over TCP, with raw Ed25519 public keys (RFC 7250) that
//! are pinned in the [`TrustStore`], and [frames](crate::frame) inside.
//!
//! ```text
//!     client (dial)                                  server (accept)
//!       ClientHello ────────────────────────────────►
//!       ◄──────────────── ServerHello, key, signature     is it the key pinned for the host that is dialled?
//!       key, signature ─────────────────────────────►     is it the key of any peer? then that is who it is
//!       ◄──────────────────────────────────── Welcome     so that the client knows it, before it says anything
//! ```
//!
//! Until the handshake is done, a stranger can make us read [`HANDSHAKE_MAX`] bytes and wait until the deadline, no
//! more. There is no resumption, no early data, no certificate and no older version.
//!
//! After it, a connection is a [`Sender`] (any number of clones, in any threads) and a [`Receiver`] (one thread).
//! Blocking sockets, and the calling thread does the work: a small message costs one `write(2)` and no hand-over.
//!
//! # Locks
//! rustls has one state for both directions, under the lock `tls`. **It is never held while anything blocks on the
//! socket**: otherwise, when both ends write more than the socket buffers take, neither could read and both would
//! wait forever.
//!
//! ```text
//!   send:  writer ─ lock ────────────────────────────────── unlock        writer before tls, never the other way
//!             tls ─── lock, encrypt to a buffer, unlock
//!          socket ────────────────────────────────── write
//!   recv:  socket ─ read (only one thread reads: no lock)
//!             tls ──────── lock, decrypt, unlock
//! ```
//!
//! The writer lock is taken first so that records reach the socket in the order of their encryption. What rustls
//! itself wants to send while receiving (the answer to a key update) goes out with the next frame.
//!
//! # Silence
//! A peer that is gone is noticed after [`SILENCE`], by keepalive when nothing is being sent and by
//! `TCP_USER_TIMEOUT` when something is (tcp(7)). The latter also ends a connection whose receiver does not read for
//! that long while its window is closed: whoever holds a `Receiver` must keep reading.

use std::{
    fmt,
    io::{self, BufRead, IoSlice, Read, Write},
    net::{IpAddr, Shutdown, TcpStream, ToSocketAddrs},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::{SendFlags, sockopt},
};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, ClientConnection, Connection, DigitallySignedStruct,
    DistinguishedName, Error as TlsError, ServerConfig, ServerConnection, SignatureScheme,
    client::{
        AlwaysResolvesClientRawPublicKeys, Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature_with_raw_key},
    pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime},
    server::{
        AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
    version::TLS13,
};

use crate::{
    frame::{BULK, Decoder, FrameError, Header},
    keys::{Identity, Peer, PublicKey, TrustStore},
    message::{BulkKind, Message, MessageError},
};

/// The port of the daemon.
pub const PORT: u16 = 12092;
/// Most bytes that are read of a peer before its key is known to be trusted. A handshake needs about 2 KiB.
pub const HANDSHAKE_MAX: usize = 16 << 10;
/// How long a peer can be out of reach before the channel is given up.
pub const SILENCE: Duration = Duration::from_secs(30);
/// How long a link may be broken under a job that is away.
pub const PATIENCE: Duration = Duration::from_secs(15 * 60);

/// Plaintext encrypted at a time, in bytes: bounds the buffer and the time the lock `tls` is held, and lets a large
/// bulk frame be encrypted while its front is already on the way.
const CHUNK: usize = 256 << 10;
/// Size of a read in bytes.
const READ: usize = 256 << 10;
/// Largest buffer for an outgoing message that is kept for the next one, in bytes.
const KEPT: usize = 256 << 10;
/// Application protocol (RFC 7301): keeps us from talking to another service that has our key.
const ALPN: &[u8] = b"vrun";

/// Why there is no channel, or no channel any more.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// No TCP connection.
    #[error("cannot reach {address}: {source}; is `vrund` listening there?")]
    Unreachable {
        /// What was dialled.
        address: String,
        /// What the system says.
        source: io::Error,
    },
    /// The peer has shown a key that is not pinned (here).
    #[error("{}", not_trusted(peer, shown, pinned.as_ref()))]
    NotTrusted {
        /// The name that was dialled, or the address that called.
        peer: String,
        /// Its key.
        shown: PublicKey,
        /// The key that it should have shown, when it was dialled.
        pinned: Option<PublicKey>,
    },
    /// The peer has not pinned our key.
    #[error("{peer} does not trust this host: say there `vctl trust NAME '{own}'`")]
    NotTrustedByPeer {
        /// Its name or address.
        peer: String,
        /// The key that it would have to pin.
        own: PublicKey,
    },
    /// The deadline of the caller has passed, or the peer has been silent for too long.
    #[error("{peer}: timed out {during}")]
    TimedOut {
        /// Its name or address.
        peer: String,
        /// While doing what.
        during: &'static str,
    },
    /// The peer does not keep to the protocol.
    #[error("{peer} does not speak our protocol: {what}")]
    Protocol {
        /// Its name or address.
        peer: String,
        /// What it did.
        what: String,
    },
    /// The connection has ended.
    #[error("the connection to {peer} is closed: {how}")]
    Closed {
        /// Its name or address.
        peer: String,
        /// By whom or by what.
        how: String,
    },
    /// What is to be sent is not valid; nothing was sent, and the channel is as it was.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// What is to be sent is too large; nothing was sent, and the channel is as it was.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// This machine cannot make a channel.
    #[error("cannot set up a channel: {0}")]
    Setup(String),
}

fn not_trusted(peer: &str, shown: &PublicKey, pinned: Option<&PublicKey>) -> String {
    match pinned {
        Some(pinned) => format!(
            "{peer} shows the key {}, but {} is pinned: somebody may be in between, or it was set up anew; if its \
             `vctl key` prints `{shown}`, say `vctl trust {peer} '{shown}'`",
            shown.fingerprint(),
            pinned.fingerprint(),
        ),
        None => format!("{peer} is not trusted here: if it is yours, say `vctl trust NAME '{shown}'`"),
    }
}

/// Connects to `address` (`HOST` or `HOST:PORT`, [`PORT`] if it says none), proves to be `identity` and makes sure that
/// `expected` is there and trusts us; all within `deadline` from now (except for what the system's resolver takes).
///
/// Errors: all of [`ChannelError`].
pub fn dial(
    address: &str,
    identity: &Identity,
    expected: &Peer,
    deadline: Duration,
) -> Result<(Sender, Receiver), ChannelError> {
    let until = Instant::now() + deadline;
    let socket = connect(address, &expected.name, until)?;
    let provider = provider();
    let verifier = Verifier::new(&provider, vec![expected.clone()]);
    let name = ServerName::try_from("vrun").map_err(|error| ChannelError::Setup(error.to_string()))?;
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(setup)?
        .dangerous()
        .with_custom_certificate_verifier(verifier.clone())
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(certified(identity))));
    config.resumption = Resumption::disabled();
    // The name says nothing, so nobody needs to hear it.
    config.enable_sni = false;
    config.alpn_protocols = vec![ALPN.into()];
    let tls = ClientConnection::new(Arc::new(config), name).map_err(setup)?;

    let own = identity.public();
    let (socket, tls, ciphertext) = handshake(socket, tls.into(), until)
        .map_err(|error| error.explain(expected.name.clone(), own, verifier.refused(), Some(expected.key)))?;
    let (sender, mut receiver) = pair(socket, tls, ciphertext, expected.clone(), own)?;
    match receiver.recv_deadline(until)? {
        Frame::Message(Message::Welcome) => Ok((sender, receiver)),
        other => Err(sender.shared.protocol(format!("it says {other:?} instead of Welcome"))),
    }
}

/// Serves a connection that was accepted: finds out which of the peers in `trust` it is, and proves to be `identity`;
/// within `deadline` from now.
///
/// Errors: [`ChannelError::NotTrusted`] with the key that would have to be pinned, and the others except `Unreachable`.
pub fn accept(
    stream: TcpStream,
    identity: &Identity,
    trust: &TrustStore,
    deadline: Duration,
) -> Result<(Peer, Sender, Receiver), ChannelError> {
    let until = Instant::now() + deadline;
    let caller = match stream.peer_addr() {
        Ok(address) => address.to_string(),
        Err(error) => {
            return Err(ChannelError::Closed {
                peer: "a caller".into(),
                how: error.to_string(),
            });
        }
    };
    // A listener of an asynchronous runtime gives non-blocking sockets.
    stream.set_nonblocking(false).map_err(setup)?;
    let provider = provider();
    let verifier = Verifier::new(&provider, trust.iter().cloned().collect());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(setup)?
        .with_client_cert_verifier(verifier.clone())
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(certified(identity))));
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.alpn_protocols = vec![ALPN.into()];
    let tls = ServerConnection::new(Arc::new(config)).map_err(setup)?;

    let own = identity.public();
    let (socket, tls, ciphertext) = handshake(stream, tls.into(), until)
        .map_err(|error| error.explain(caller.clone(), own, verifier.refused(), None))?;
    let peer = tls
        .peer_certificates()
        .and_then(|keys| verifier.peer(keys.first()?))
        .ok_or_else(|| ChannelError::Protocol {
            peer: caller,
            what: "it has no key".into(),
        })?;
    let (sender, receiver) = pair(socket, tls, ciphertext, peer.clone(), own)?;
    sender.send(&Message::Welcome)?;
    Ok((peer, sender, receiver))
}

fn setup(error: impl fmt::Display) -> ChannelError {
    ChannelError::Setup(error.to_string())
}

/// AES-128-GCM first, because it is several times faster than the others where there is AES-NI; and a key exchange
/// that is not undone by a later quantum computer, because images hold secrets that outlive a connection.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
            aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups: vec![aws_lc_rs::kx_group::X25519MLKEM768, aws_lc_rs::kx_group::X25519],
        ..aws_lc_rs::default_provider()
    })
}

fn certified(identity: &Identity) -> Arc<CertifiedKey> {
    // RFC 7250: the certificate message carries the SubjectPublicKeyInfo in place of a certificate.
    let spki = CertificateDer::from(identity.public().to_spki());
    Arc::new(CertifiedKey::new(vec![spki], identity.signing_key()))
}

/// Accepts the raw public keys of certain peers and nothing else, and remembers a key that it refused.
#[derive(Debug)]
struct Verifier {
    peers: Vec<Peer>,
    provider: Arc<CryptoProvider>,
    refused: Mutex<Option<PublicKey>>,
}

impl Verifier {
    fn new(provider: &Arc<CryptoProvider>, peers: Vec<Peer>) -> Arc<Verifier> {
        Arc::new(Verifier {
            peers,
            provider: provider.clone(),
            refused: Mutex::new(None),
        })
    }

    fn peer(&self, key: &CertificateDer<'_>) -> Option<Peer> {
        let key = PublicKey::from_spki(key)?;
        self.peers.iter().find(|peer| peer.key == key).cloned()
    }

    fn refused(&self) -> Option<PublicKey> {
        *self.refused.lock().ok()?
    }

    fn verify(&self, key: &CertificateDer<'_>, more: &[CertificateDer<'_>]) -> Result<(), TlsError> {
        if more.is_empty() && self.peer(key).is_some() {
            return Ok(());
        }
        if let Ok(mut refused) = self.refused.lock() {
            *refused = PublicKey::from_spki(key);
        }
        // Told to the peer as the alert access_denied, which nothing else causes.
        Err(CertificateError::ApplicationVerificationFailure.into())
    }

    fn verify_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let key = SubjectPublicKeyInfoDer::from(key.as_ref());
        verify_tls13_signature_with_raw_key(
            message,
            &key,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }
}

fn never_tls12() -> Result<HandshakeSignatureValid, TlsError> {
    Err(TlsError::General("TLS 1.2 is not spoken here".into()))
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        key: &CertificateDer<'_>,
        more: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        self.verify(key, more).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _key: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        never_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.verify_signature(message, key, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        key: &CertificateDer<'_>,
        more: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, TlsError> {
        self.verify(key, more).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _key: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        never_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.verify_signature(message, key, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// `HOST`, `HOST:PORT`, `[IPV6]:PORT` or a bare IPv6 address, as a host for the resolver and a port.
fn split(address: &str) -> (&str, u16) {
    if let Ok(IpAddr::V6(_)) = address.parse() {
        return (address, PORT);
    }
    let (host, port) = match address.rsplit_once(':').map(|(host, port)| (host, port.parse())) {
        Some((host, Ok(port))) => (host, port),
        _ => (address, PORT),
    };
    (
        host.strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host),
        port,
    )
}

fn connect(address: &str, peer: &str, until: Instant) -> Result<TcpStream, ChannelError> {
    let unreachable = |source| ChannelError::Unreachable {
        address: address.into(),
        source,
    };
    let mut last = io::Error::new(io::ErrorKind::NotFound, "it has no address");
    for address in split(address).to_socket_addrs().map_err(unreachable)? {
        let Some(left) = left(until) else { break };
        match TcpStream::connect_timeout(&address, left) {
            Ok(socket) => return Ok(socket),
            Err(error) => last = error,
        }
    }
    match left(until) {
        None => Err(ChannelError::TimedOut {
            peer: peer.into(),
            during: "while connecting",
        }),
        Some(_) => Err(unreachable(last)),
    }
}

/// The time until then; `None` if it has passed.
fn left(until: Instant) -> Option<Duration> {
    Some(until.saturating_duration_since(Instant::now())).filter(|left| !left.is_zero())
}

/// Waits until `socket` has something to read (an end or an error, too); errors with `TimedOut`. Looks once, even if
/// the time has passed.
fn wait_readable(socket: &TcpStream, until: Instant) -> io::Result<()> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(|_| io::ErrorKind::InvalidInput)?;
        match poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&timeout)) {
            Ok(0) if left.is_zero() => return Err(io::ErrorKind::TimedOut.into()),
            Ok(0) | Err(rustix::io::Errno::INTR) => continue,
            Ok(_) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

fn read(mut socket: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match socket.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => return other,
        }
    }
}

/// Why a handshake did not succeed.
enum HandshakeError {
    Io(io::Error),
    Tls(TlsError),
    TooLong,
}

impl From<io::Error> for HandshakeError {
    fn from(error: io::Error) -> HandshakeError {
        HandshakeError::Io(error)
    }
}

impl HandshakeError {
    fn explain(
        self,
        peer: String,
        own: PublicKey,
        refused: Option<PublicKey>,
        pinned: Option<PublicKey>,
    ) -> ChannelError {
        match self {
            HandshakeError::TooLong => ChannelError::Protocol {
                peer,
                what: format!("its handshake has more than {HANDSHAKE_MAX} bytes"),
            },
            HandshakeError::Io(error) => io_error(peer, error, "during the handshake"),
            HandshakeError::Tls(error) => match (error, refused) {
                (TlsError::InvalidCertificate(_), Some(shown)) => ChannelError::NotTrusted { peer, shown, pinned },
                (error, _) => tls_error(peer, error, own),
            },
        }
    }
}

fn io_error(peer: String, error: io::Error, during: &'static str) -> ChannelError {
    match error.kind() {
        // WouldBlock is what SO_SNDTIMEO gives.
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => ChannelError::TimedOut { peer, during },
        io::ErrorKind::UnexpectedEof => ChannelError::Closed {
            peer,
            how: "it has ended without a word".into(),
        },
        _ => ChannelError::Closed {
            peer,
            how: error.to_string(),
        },
    }
}

fn tls_error(peer: String, error: TlsError, own: PublicKey) -> ChannelError {
    match error {
        TlsError::AlertReceived(AlertDescription::AccessDenied) => ChannelError::NotTrustedByPeer { peer, own },
        error => ChannelError::Protocol {
            peer,
            what: error.to_string(),
        },
    }
}

/// Ciphertext that was read and not yet decrypted: `bytes[start..end]`.
struct Ciphertext {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Ciphertext {
    fn new() -> Ciphertext {
        Ciphertext {
            bytes: vec![0; READ].into(),
            start: 0,
            end: 0,
        }
    }

    fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Reads at most `most` bytes into the empty buffer; an end of the stream is an error.
    fn fill(&mut self, socket: &TcpStream, most: usize) -> io::Result<usize> {
        (self.start, self.end) = (0, 0);
        self.end = read(socket, &mut self.bytes[..most.min(READ)])?;
        if self.end == 0 {
            Err(io::ErrorKind::UnexpectedEof.into())
        } else {
            Ok(self.end)
        }
    }

    /// Gives some bytes to rustls and lets it decrypt what is complete. Once the peer has closed, the rest is dropped.
    fn feed(&mut self, tls: &mut Connection) -> Result<(), TlsError> {
        let taken = tls.read_tls(&mut &self.bytes[self.start..self.end]);
        match taken.map_err(|error| TlsError::General(error.to_string()))? {
            0 => self.start = self.end,
            taken => self.start += taken,
        }
        tls.process_new_packets().map(drop)
    }
}

/// Writes what rustls has to send.
fn flush(mut socket: &TcpStream, tls: &mut Connection, until: Instant) -> io::Result<()> {
    let mut bytes = Vec::new();
    while tls.wants_write() {
        tls.write_tls(&mut bytes)?;
    }
    socket.set_write_timeout(Some(left(until).ok_or(io::ErrorKind::TimedOut)?))?;
    socket.write_all(&bytes)
}

/// Does the handshake; gives what was read beyond it, too.
fn handshake(
    socket: TcpStream,
    mut tls: Connection,
    until: Instant,
) -> Result<(TcpStream, Connection, Ciphertext), HandshakeError> {
    tune(&socket)?;
    let mut ciphertext = Ciphertext::new();
    let mut total = 0;
    loop {
        flush(&socket, &mut tls, until)?;
        if !tls.is_handshaking() {
            break;
        }
        if total == HANDSHAKE_MAX {
            return Err(HandshakeError::TooLong);
        }
        wait_readable(&socket, until)?;
        total += ciphertext.fill(&socket, HANDSHAKE_MAX - total)?;
        while !ciphertext.is_empty() && tls.is_handshaking() {
            if let Err(error) = ciphertext.feed(&mut tls) {
                tell_and_leave(&socket, &mut tls, until);
                return Err(HandshakeError::Tls(error));
            }
        }
    }
    socket.set_write_timeout(None)?;
    // Encryption goes straight to our own buffer, so nothing is ever refused for want of room.
    tls.set_buffer_limit(None);
    Ok((socket, tls, ciphertext))
}

/// Sends the alert that tells the peer what is wrong, and makes sure that it arrives: closing a socket with unread
/// bytes in it sends a reset (RFC 1122, 4.2.2.13), which makes the peer drop what it has not read yet. So its last
/// bytes are read first.
fn tell_and_leave(socket: &TcpStream, tls: &mut Connection, until: Instant) {
    let until = until.min(Instant::now() + Duration::from_secs(1));
    if flush(socket, tls, until).is_err() || socket.shutdown(Shutdown::Write).is_err() {
        return;
    }
    let mut rest = [0; 4096];
    for _ in 0..HANDSHAKE_MAX / rest.len() {
        if wait_readable(socket, until).is_err() || matches!(read(socket, &mut rest), Ok(0) | Err(_)) {
            return;
        }
    }
}

/// Sets what makes the connection fast and its loss noticed. The sizes of the socket buffers are left to the kernel,
/// which grows them to `tcp_wmem[2]` and `tcp_rmem[2]` (megabytes) as the path needs it; setting them would stop that
/// and bound them by `wmem_max` and `rmem_max`, which are smaller (tcp(7), socket(7)).
fn tune(socket: &TcpStream) -> io::Result<()> {
    sockopt::set_tcp_nodelay(socket, true)?;
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, Duration::from_secs(15))?;
    sockopt::set_tcp_keepintvl(socket, Duration::from_secs(5))?;
    sockopt::set_tcp_keepcnt(socket, 3)?;
    sockopt::set_tcp_user_timeout(socket, SILENCE.as_millis() as u32)?;
    Ok(())
}

/// What the two halves of a channel share.
struct Shared {
    socket: TcpStream,
    /// Never held while anything blocks on the socket; see the module's documentation.
    tls: Mutex<Connection>,
    writer: Mutex<Writer>,
    peer: Peer,
    own: PublicKey,
    sent: AtomicU64,
    received: AtomicU64,
}

/// Buffers of whoever writes.
#[derive(Default)]
struct Writer {
    /// A message before encryption.
    message: Vec<u8>,
    /// Records to be written.
    records: Vec<u8>,
}

impl Shared {
    fn tls(&self) -> Result<MutexGuard<'_, Connection>, ChannelError> {
        self.tls
            .lock()
            .map_err(|_| self.closed("a thread has failed while using it"))
    }

    fn writer(&self) -> Result<MutexGuard<'_, Writer>, ChannelError> {
        self.writer
            .lock()
            .map_err(|_| self.closed("a thread has failed while using it"))
    }

    fn closed(&self, how: &str) -> ChannelError {
        ChannelError::Closed {
            peer: self.peer.name.clone(),
            how: how.into(),
        }
    }

    fn protocol(&self, what: impl fmt::Display) -> ChannelError {
        ChannelError::Protocol {
            peer: self.peer.name.clone(),
            what: what.to_string(),
        }
    }

    fn io(&self, error: io::Error, during: &'static str) -> ChannelError {
        io_error(self.peer.name.clone(), error, during)
    }

    /// Sends a frame; `records` is the buffer of the writer, whose lock the caller holds.
    fn write(&self, records: &mut Vec<u8>, header: Header, body: &[u8]) -> Result<(), ChannelError> {
        let header = header.encode();
        let (mut front, mut body) = (&header[..], body);
        while !front.is_empty() || !body.is_empty() {
            let (now, later) = body.split_at(body.len().min(CHUNK));
            records.clear();
            self.encrypt(&[IoSlice::new(front), IoSlice::new(now)], records)?;
            if let Err(error) = (&self.socket).write_all(records) {
                // Part of a record may be out: nobody can go on from here.
                self.abort();
                return Err(self.io(error, "while sending"));
            }
            self.sent.fetch_add(records.len() as u64, Ordering::Relaxed);
            (front, body) = (&[], later);
        }
        Ok(())
    }

    /// Appends to `records` all that rustls has to send, `plaintext` last.
    fn encrypt(&self, plaintext: &[IoSlice<'_>], records: &mut Vec<u8>) -> Result<(), ChannelError> {
        let mut tls = self.tls()?;
        // Without a buffer limit rustls takes all of it.
        let mut encrypted = tls.writer().write_vectored(plaintext).map(drop);
        while encrypted.is_ok() && tls.wants_write() {
            encrypted = tls.write_tls(records).map(drop);
        }
        // Only an earlier fatal error of the connection comes here.
        encrypted.map_err(|error| self.closed(&error.to_string()))
    }

    /// Ends the connection both ways. An error means that it has ended already.
    fn abort(&self) {
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

/// Bytes on the wire, in both directions, since the handshake.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Written to the socket.
    pub sent: u64,
    /// Read from it.
    pub received: u64,
}

/// The sending half: clones send on the same channel, from any thread.
#[derive(Clone)]
pub struct Sender {
    shared: Arc<Shared>,
}

impl Sender {
    /// Sends a message; returns when the kernel has it.
    ///
    /// Errors: [`ChannelError::Message`] and [`ChannelError::Frame`] if it is not valid (nothing was sent), `Closed`,
    /// `TimedOut`.
    pub fn send(&self, message: &Message) -> Result<(), ChannelError> {
        let mut writer = self.shared.writer()?;
        let Writer {
            message: bytes,
            records,
        } = &mut *writer;
        bytes.clear();
        bytes.shrink_to(KEPT);
        message.encode(bytes)?;
        self.shared
            .write(records, Header::new(message.number(), bytes.len())?, bytes)
    }

    /// Sends raw bytes, at most [`BULK_MAX`](crate::frame::BULK_MAX), without going through the codec.
    ///
    /// Errors: [`ChannelError::Frame`] if they are too many (nothing was sent), `Closed`, `TimedOut`.
    pub fn send_bulk(&self, kind: BulkKind, bytes: &[u8]) -> Result<(), ChannelError> {
        let header = Header::new(kind.number(), bytes.len())?;
        self.shared.write(&mut self.shared.writer()?.records, header, bytes)
    }

    /// Ends the connection both ways at once; a receiver that waits, here or there, wakes up with `Closed`. What was
    /// sent before still arrives, unless something that came from there is never read here: the kernel then resets
    /// the connection. So, for an orderly end, first wait for the other's [`Bye`](Message::Bye).
    pub fn shutdown(&self) {
        // Says that this is the end and not an accident, unless somebody is in the middle of a record.
        if let (Ok(_writer), Ok(mut tls)) = (self.shared.writer.try_lock(), self.shared.tls.lock()) {
            let mut records = Vec::new();
            tls.send_close_notify();
            while tls.wants_write() && tls.write_tls(&mut records).is_ok() {}
            drop(tls);
            let _ = rustix::net::send(&self.shared.socket, &records, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        }
        self.shared.abort();
    }

    /// From now on a connection that carries nothing is kept for [`PATIENCE`]: behind it a program waits, which would be
    /// lost with it. TCP itself sends again what is missing when the link is back.
    pub fn be_patient(&self) -> Result<(), ChannelError> {
        sockopt::set_tcp_user_timeout(&self.shared.socket, PATIENCE.as_millis() as u32)
            .map_err(|error| ChannelError::Setup(error.to_string()))
    }

    /// Who is at the other end.
    pub fn peer(&self) -> &Peer {
        &self.shared.peer
    }

    /// Traffic so far.
    pub fn counters(&self) -> Counters {
        Counters {
            sent: self.shared.sent.load(Ordering::Relaxed),
            received: self.shared.received.load(Ordering::Relaxed),
        }
    }
}

impl fmt::Debug for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender")
            .field("peer", &self.shared.peer.name)
            .finish_non_exhaustive()
    }
}

/// What was received.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// A message, checked.
    Message(Message),
    /// Raw bytes.
    Bulk {
        /// Of what.
        kind: BulkKind,
        /// Valid until the next call of the receiver.
        bytes: &'a [u8],
    },
}

/// The receiving half. After an error other than `TimedOut` from [`recv_deadline`](Receiver::recv_deadline) the channel
/// is of no use any more.
pub struct Receiver {
    shared: Arc<Shared>,
    ciphertext: Ciphertext,
    decoder: Decoder,
    /// The frame in `decoder` was given to the caller.
    given: bool,
}

impl Receiver {
    /// Waits for the next frame.
    ///
    /// Errors: `Closed`, `TimedOut` if the peer is out of reach for [`SILENCE`], `Protocol`.
    pub fn recv(&mut self) -> Result<Frame<'_>, ChannelError> {
        self.next(None)
    }

    /// Like [`recv`](Receiver::recv), but not beyond that time: `TimedOut` then, and what has arrived of a frame is
    /// kept for the next call.
    pub fn recv_deadline(&mut self, until: Instant) -> Result<Frame<'_>, ChannelError> {
        self.next(Some(until))
    }

    /// Who is at the other end.
    pub fn peer(&self) -> &Peer {
        &self.shared.peer
    }

    fn next(&mut self, until: Option<Instant>) -> Result<Frame<'_>, ChannelError> {
        if std::mem::take(&mut self.given) {
            self.decoder.advance();
        }
        let header = loop {
            if let Some(header) = self.decrypt()? {
                break header;
            }
            if let Some(until) = until {
                wait_readable(&self.shared.socket, until).map_err(|error| self.shared.io(error, "waiting for it"))?;
            }
            let filled = self.ciphertext.fill(&self.shared.socket, READ);
            let filled = filled.map_err(|error| self.shared.io(error, "because it is out of reach"))?;
            self.shared.received.fetch_add(filled as u64, Ordering::Relaxed);
        };
        self.given = true;
        let bytes = self.decoder.body();
        if header.kind() < BULK {
            return Message::decode(header.kind(), bytes)
                .map(Frame::Message)
                .map_err(|error| self.shared.protocol(error));
        }
        match BulkKind::from_number(header.kind()) {
            Some(kind) => Ok(Frame::Bulk { kind, bytes }),
            None => Err(self
                .shared
                .protocol(format!("there is no bulk of kind {:#x}", header.kind()))),
        }
    }

    /// Takes the next frame from what has been read, if it is all there.
    fn decrypt(&mut self) -> Result<Option<Header>, ChannelError> {
        let shared = &self.shared;
        let mut tls = shared.tls()?;
        loop {
            let mut reader = tls.reader();
            match reader.fill_buf() {
                Ok([]) => return Err(shared.closed("the other end has closed it")),
                Ok(plaintext) => {
                    let (taken, complete) = self.decoder.push(plaintext).map_err(|error| shared.protocol(error))?;
                    reader.consume(taken);
                    if complete.is_some() {
                        return Ok(complete);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.ciphertext.is_empty() {
                        return Ok(None);
                    }
                    self.ciphertext
                        .feed(&mut tls)
                        .map_err(|error| tls_error(shared.peer.name.clone(), error, shared.own))?;
                }
                Err(error) => return Err(shared.io(error, "while receiving")),
            }
        }
    }
}

impl fmt::Debug for Receiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver")
            .field("peer", &self.shared.peer.name)
            .finish_non_exhaustive()
    }
}

fn pair(
    socket: TcpStream,
    tls: Connection,
    ciphertext: Ciphertext,
    peer: Peer,
    own: PublicKey,
) -> Result<(Sender, Receiver), ChannelError> {
    let shared = Arc::new(Shared {
        socket,
        tls: Mutex::new(tls),
        writer: Mutex::default(),
        peer,
        own,
        sent: AtomicU64::new(0),
        received: AtomicU64::new(0),
    });
    let sender = Sender { shared: shared.clone() };
    Ok((
        sender,
        Receiver {
            shared,
            ciphertext,
            decoder: Decoder::default(),
            given: false,
        },
    ))
}

#[cfg(test)]
mod tests {
    use std::{
        net::TcpListener,
        thread::{self, ScopedJoinHandle},
    };

    use tempfile::TempDir;

    use super::*;
    use crate::{
        frame::{BULK_MAX, MAGIC},
        message::{Cancel, Hello, PROTOCOL, Purpose, Token},
    };

    /// Long enough for a busy machine; nothing waits for it in a run that succeeds.
    const LONG: Duration = Duration::from_secs(20);

    struct Host {
        _home: TempDir,
        identity: Identity,
        trust: TrustStore,
    }

    impl Host {
        fn new() -> Host {
            let home = tempfile::tempdir().unwrap();
            let identity = Identity::open(home.path()).unwrap();
            let trust = TrustStore::load(home.path()).unwrap();
            Host {
                _home: home,
                identity,
                trust,
            }
        }

        fn pin(&mut self, name: &str, other: &Host) {
            self.trust.add(name, other.identity.public(), None).unwrap();
        }
    }

    /// Two hosts that trust each other: `a` dials, `b` accepts.
    fn hosts() -> (Host, Host) {
        let (mut a, mut b) = (Host::new(), Host::new());
        a.pin("b", &b);
        b.pin("a", &a);
        (a, b)
    }

    type Dialled = Result<(Sender, Receiver), ChannelError>;
    type Accepted = Result<(Peer, Sender, Receiver), ChannelError>;

    /// One connection from `a`, which takes `b` for `expected`.
    fn meet(a: &Host, b: &Host, expected: &Peer) -> (Dialled, Accepted) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        thread::scope(|scope| {
            let accepted = scope.spawn(|| accept(listener.accept().unwrap().0, &b.identity, &b.trust, LONG));
            let dialled = dial(&address, &a.identity, expected, LONG);
            (dialled, accepted.join().unwrap())
        })
    }

    /// The two ends of a channel: of the one that dialled and of the one that accepted.
    fn channel() -> ((Sender, Receiver), (Sender, Receiver)) {
        let (a, b) = hosts();
        let (dialled, accepted) = meet(&a, &b, a.trust.by_name("b").unwrap());
        let (peer, sender, receiver) = accepted.unwrap();
        assert_eq!(peer.name, "a");
        (dialled.unwrap(), (sender, receiver))
    }

    /// What `accept` says to a caller that does `talk` and is not us.
    fn accept_stranger(deadline: Duration, talk: impl FnOnce(TcpStream) + Send) -> (ChannelError, Duration) {
        let (_, b) = hosts();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::scope(|scope| {
            let stranger = scope.spawn(move || talk(TcpStream::connect(address).unwrap()));
            let (stream, _) = listener.accept().unwrap();
            let start = Instant::now();
            let error = accept(stream, &b.identity, &b.trust, deadline).unwrap_err();
            let elapsed = start.elapsed();
            stranger.join().unwrap();
            (error, elapsed)
        })
    }

    fn soon() -> Instant {
        Instant::now() + LONG
    }

    #[test]
    fn messages_and_bulk_cross_both_ways_in_order() {
        let ((a, mut from_b), (b, mut from_a)) = channel();
        let hello = Message::Hello(Hello {
            protocol: PROTOCOL,
            software: "test".into(),
            host: "a".into(),
            purpose: Purpose::Move,
        });
        let bulk: Vec<u8> = (0..BULK_MAX).map(|n| (n % 251) as u8).collect();
        a.send(&hello).unwrap();
        a.send_bulk(BulkKind::ImageData, &bulk).unwrap();
        a.send_bulk(BulkKind::ImageData, b"").unwrap();
        a.send(&Message::Bye).unwrap();
        assert_eq!(from_a.recv_deadline(soon()).unwrap(), Frame::Message(hello));
        assert!(
            from_a.recv_deadline(soon()).unwrap()
                == Frame::Bulk {
                    kind: BulkKind::ImageData,
                    bytes: &bulk
                }
        );
        assert_eq!(
            from_a.recv().unwrap(),
            Frame::Bulk {
                kind: BulkKind::ImageData,
                bytes: b""
            }
        );
        assert_eq!(from_a.recv().unwrap(), Frame::Message(Message::Bye));
        b.send(&Message::Accept).unwrap();
        assert_eq!(from_b.recv_deadline(soon()).unwrap(), Frame::Message(Message::Accept));
        assert_eq!(a.counters().sent, b.counters().received);
        assert!(a.counters().sent > BULK_MAX as u64);
    }

    #[test]
    fn what_is_invalid_is_not_sent_and_the_channel_goes_on() {
        let ((a, _from_b), (_b, mut from_a)) = channel();
        assert!(matches!(
            a.send(&Message::Cancel(Cancel { call: 0 })),
            Err(ChannelError::Message(_))
        ));
        let too_much = vec![0; BULK_MAX + 1];
        assert!(matches!(
            a.send_bulk(BulkKind::ImageData, &too_much),
            Err(ChannelError::Frame(_))
        ));
        a.send(&Message::Recall).unwrap();
        assert_eq!(from_a.recv_deadline(soon()).unwrap(), Frame::Message(Message::Recall));
    }

    #[test]
    fn an_unknown_client_is_refused_and_told_so() {
        let (mut a, b) = (Host::new(), Host::new());
        a.pin("b", &b);
        let (dialled, accepted) = meet(&a, &b, a.trust.by_name("b").unwrap());
        let theirs = dialled.unwrap_err();
        assert!(matches!(&theirs, ChannelError::NotTrustedByPeer { own, .. } if *own == a.identity.public()));
        assert!(
            theirs
                .to_string()
                .contains(&format!("vctl trust NAME '{}'", a.identity.public())),
            "{theirs}"
        );
        let ours = accepted.unwrap_err();
        assert!(matches!(&ours, ChannelError::NotTrusted { shown, pinned: None, .. } if *shown == a.identity.public()));
        assert!(
            ours.to_string()
                .contains(&format!("vctl trust NAME '{}'", a.identity.public())),
            "{ours}"
        );
    }

    #[test]
    fn a_server_with_another_key_is_refused_and_told_so() {
        let (mut a, mut b) = (Host::new(), Host::new());
        b.pin("a", &a);
        // The key pinned for `b` is that of another trusted host: being trusted is not enough.
        let c = Host::new();
        a.pin("b", &c);
        a.pin("real-b", &b);
        let (dialled, accepted) = meet(&a, &b, a.trust.by_name("b").unwrap());
        let ours = dialled.unwrap_err();
        assert!(matches!(
            &ours,
            ChannelError::NotTrusted { shown, pinned: Some(pinned), .. }
                if *shown == b.identity.public() && *pinned == c.identity.public()
        ));
        assert!(
            ours.to_string()
                .contains(&format!("vctl trust b '{}'", b.identity.public())),
            "{ours}"
        );
        assert!(matches!(accepted.unwrap_err(), ChannelError::NotTrustedByPeer { .. }));
    }

    #[test]
    fn a_server_that_cannot_prove_its_key_is_refused() {
        let (a, b) = hosts();
        // Shows the key of `b` and signs with its own.
        let thief = Host::new();
        let provider = provider();
        let verifier = Verifier::new(&provider, b.trust.iter().cloned().collect());
        let stolen = CertificateDer::from(b.identity.public().to_spki());
        let key = Arc::new(CertifiedKey::new(vec![stolen], thief.identity.signing_key()));
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(key)));
        config.alpn_protocols = vec![ALPN.into()];
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        thread::scope(|scope| {
            scope.spawn(move || {
                let tls = ServerConnection::new(Arc::new(config)).unwrap();
                handshake(listener.accept().unwrap().0, tls.into(), soon()).is_ok()
            });
            let error = dial(&address, &a.identity, a.trust.by_name("b").unwrap(), LONG).unwrap_err();
            assert!(matches!(error, ChannelError::Protocol { .. }), "{error}");
        });
    }

    #[test]
    fn garbage_is_refused() {
        for garbage in ["GET / HTTP/1.1\r\nHost: b\r\n\r\n".as_bytes(), &[0; 600], &[0x16; 600]] {
            let (error, _) = accept_stranger(LONG, |mut socket| {
                socket.write_all(garbage).unwrap();
                let _ = socket.read_to_end(&mut Vec::new());
            });
            assert!(matches!(error, ChannelError::Protocol { .. }), "{error}");
        }
    }

    #[test]
    fn a_long_handshake_is_refused() {
        let (error, _) = accept_stranger(LONG, |mut socket| {
            // Whole records that always announce that the ClientHello goes on.
            let mut record = vec![0x16, 3, 1, 0, 64];
            record.extend([1, 0, 0xff, 0xff]);
            record.resize(5 + 64, 0);
            while socket.write_all(&record).is_ok() {
                record[5..9].fill(0);
            }
        });
        assert!(
            matches!(&error, ChannelError::Protocol { what, .. } if what.contains("16384")),
            "{error}"
        );
    }

    #[test]
    fn a_slow_client_meets_the_deadline() {
        let deadline = Duration::from_millis(300);
        let (error, elapsed) = accept_stranger(deadline, |mut socket| {
            // One byte at a time of a record that never ends, for as long as it is heard.
            socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
            for byte in [0x16, 3, 1, 2, 0, 1, 0, 1, 0xf0]
                .into_iter()
                .chain(std::iter::repeat(0))
            {
                if socket.write_all(&[byte]).is_err() || matches!(socket.read(&mut [0]), Ok(0)) {
                    break;
                }
            }
        });
        assert!(matches!(error, ChannelError::TimedOut { .. }), "{error}");
        assert!(elapsed >= deadline && elapsed < LONG, "{elapsed:?}");
    }

    #[test]
    fn a_caller_that_leaves_is_closed() {
        let (error, _) = accept_stranger(LONG, drop);
        assert!(matches!(error, ChannelError::Closed { .. }), "{error}");
    }

    #[test]
    fn a_silent_server_meets_the_deadline_and_an_absent_one_is_unreachable() {
        let (a, _b) = hosts();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let b = a.trust.by_name("b").unwrap();
        let error = dial(&address, &a.identity, b, Duration::from_millis(200)).unwrap_err();
        assert!(matches!(error, ChannelError::TimedOut { .. }), "{error}");
        drop(listener);
        let error = dial(&address, &a.identity, b, LONG).unwrap_err();
        assert!(matches!(error, ChannelError::Unreachable { .. }), "{error}");
    }

    #[test]
    fn an_oversized_frame_is_refused_before_allocation() {
        let ((a, _from_b), (_b, mut from_a)) = channel();
        let mut frame = Header::new(BulkKind::ImageData.number(), 0).unwrap().encode();
        frame[4..].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(frame[..2], MAGIC.to_le_bytes());
        let mut records = Vec::new();
        a.shared.encrypt(&[IoSlice::new(&frame)], &mut records).unwrap();
        (&a.shared.socket).write_all(&records).unwrap();
        let error = from_a.recv_deadline(soon()).unwrap_err();
        assert!(
            matches!(&error, ChannelError::Protocol { what, .. } if what.contains("4294967295")),
            "{error}"
        );
        assert_eq!(from_a.decoder.body().len(), 0);
    }

    #[test]
    fn damaged_records_are_refused() {
        let ((a, _from_b), (_b, mut from_a)) = channel();
        let mut records = Vec::new();
        a.shared.encrypt(&[IoSlice::new(b"x")], &mut records).unwrap();
        *records.last_mut().unwrap() ^= 1;
        (&a.shared.socket).write_all(&records).unwrap();
        assert!(matches!(
            from_a.recv_deadline(soon()),
            Err(ChannelError::Protocol { .. })
        ));
    }

    #[test]
    fn a_deadline_in_the_middle_of_a_frame_loses_nothing() {
        let ((a, _from_b), (_b, mut from_a)) = channel();
        let early = from_a.recv_deadline(Instant::now()).unwrap_err();
        assert!(matches!(early, ChannelError::TimedOut { .. }), "{early}");
        let frame = [&Header::new(25, 8).unwrap().encode()[..], &7u64.to_le_bytes()].concat();
        for (half, last) in [(&frame[..11], false), (&frame[11..], true)] {
            let mut records = Vec::new();
            a.shared.encrypt(&[IoSlice::new(half)], &mut records).unwrap();
            (&a.shared.socket).write_all(&records).unwrap();
            match from_a.recv_deadline(if last {
                soon()
            } else {
                Instant::now() + Duration::from_millis(50)
            }) {
                Err(ChannelError::TimedOut { .. }) => assert!(!last),
                other => assert_eq!(other.unwrap(), Frame::Message(Message::Ping(Token { token: 7 }))),
            }
        }
    }

    #[test]
    fn shutdown_wakes_both_receivers_after_what_was_sent() {
        let ((a, mut from_b), (_b, mut from_a)) = channel();
        thread::scope(|scope| {
            let here = scope.spawn(move || from_b.recv().map(drop));
            a.send(&Message::Bye).unwrap();
            a.shutdown();
            assert!(matches!(here.join().unwrap(), Err(ChannelError::Closed { .. })));
        });
        assert_eq!(from_a.recv_deadline(soon()).unwrap(), Frame::Message(Message::Bye));
        let error = from_a.recv_deadline(soon()).unwrap_err();
        assert!(
            matches!(&error, ChannelError::Closed { how, .. } if how.contains("the other end")),
            "{error}"
        );
        assert!(a.send(&Message::Bye).is_err());
    }

    #[test]
    fn shutdown_wakes_a_sender_that_is_stuck() {
        let ((a, _from_b), (_b, _from_a)) = channel();
        thread::scope(|scope| {
            let sender = a.clone();
            let stuck = scope.spawn(move || {
                loop {
                    if let Err(error) = sender.send_bulk(BulkKind::ImageData, &[0; BULK_MAX]) {
                        return error;
                    }
                }
            });
            // Nobody reads, so it gets stuck once the buffers of both sockets are full.
            let mut last = a.counters().sent;
            let mut quiet = 0;
            while quiet < 5 {
                thread::park_timeout(Duration::from_millis(20));
                let now = a.counters().sent;
                quiet = if now == last && now > 0 { quiet + 1 } else { 0 };
                last = now;
            }
            a.shutdown();
            assert!(matches!(stuck.join().unwrap(), ChannelError::Closed { .. }));
        });
    }

    /// Sends `count` bulk frames and a Bye, each frame with its number in front.
    fn pour(sender: &Sender, count: u64) {
        let mut bytes = vec![0xa5; 1 << 20];
        for n in 0..count {
            bytes[..8].copy_from_slice(&n.to_le_bytes());
            sender.send_bulk(BulkKind::ImageData, &bytes).unwrap();
        }
        sender.send(&Message::Bye).unwrap();
    }

    /// Receives what `pour` sends.
    fn drain(receiver: &mut Receiver, count: u64) {
        for n in 0..count {
            match receiver.recv_deadline(soon()).unwrap() {
                Frame::Bulk { bytes, .. } => assert_eq!((&bytes[..8], bytes.len()), (&n.to_le_bytes()[..], 1 << 20)),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(receiver.recv_deadline(soon()).unwrap(), Frame::Message(Message::Bye));
    }

    #[test]
    fn both_ends_can_send_much_at_once() {
        let ((a, mut from_b), (b, mut from_a)) = channel();
        thread::scope(|scope| {
            let threads: [ScopedJoinHandle<'_, ()>; 3] = [
                scope.spawn(|| pour(&a, 64)),
                scope.spawn(|| pour(&b, 64)),
                scope.spawn(|| drain(&mut from_a, 64)),
            ];
            drain(&mut from_b, 64);
            threads.into_iter().for_each(|thread| thread.join().unwrap());
        });
    }

    #[test]
    fn messages_of_many_threads_arrive_whole_and_in_each_ones_order() {
        let ((a, _from_b), (_b, mut from_a)) = channel();
        const EACH: u64 = 500;
        thread::scope(|scope| {
            for thread in 0..4u64 {
                let sender = a.clone();
                scope.spawn(move || {
                    (0..EACH).for_each(|n| {
                        sender
                            .send(&Message::Ping(Token {
                                token: thread << 32 | n,
                            }))
                            .unwrap()
                    });
                });
            }
            let mut next = [0; 4];
            for _ in 0..4 * EACH {
                match from_a.recv_deadline(soon()).unwrap() {
                    Frame::Message(Message::Ping(Token { token })) => {
                        let next = &mut next[(token >> 32) as usize];
                        assert_eq!(token as u32 as u64, *next);
                        *next += 1;
                    }
                    other => panic!("{other:?}"),
                }
            }
        });
    }

    #[test]
    fn addresses_have_a_host_and_perhaps_a_port() {
        for (address, expected) in [
            ("b", ("b", PORT)),
            ("b:99", ("b", 99)),
            ("10.0.0.2", ("10.0.0.2", PORT)),
            ("10.0.0.2:99", ("10.0.0.2", 99)),
            ("::1", ("::1", PORT)),
            ("[::1]", ("::1", PORT)),
            ("[::1]:99", ("::1", 99)),
        ] {
            assert_eq!(split(address), expected, "{address}");
        }
    }

    /// Run with `cargo test --release -p vrun-remote-io -- --ignored --nocapture measure`.
    #[test]
    #[ignore = "a measurement, not a test"]
    fn measure() {
        let ((a, mut from_b), (b, mut from_a)) = channel();
        const FRAMES: u64 = 2048;
        thread::scope(|scope| {
            let start = Instant::now();
            scope.spawn(|| pour(&a, FRAMES));
            drain(&mut from_a, FRAMES);
            println!(
                "bulk: {:.2} GiB/s",
                FRAMES as f64 / 1024.0 / start.elapsed().as_secs_f64()
            );
        });
        const ROUNDS: u32 = 20_000;
        thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..ROUNDS {
                    from_a.recv_deadline(soon()).unwrap();
                    b.send(&Message::Prepared).unwrap();
                }
            });
            let start = Instant::now();
            for _ in 0..ROUNDS {
                a.send(&Message::Commit).unwrap();
                from_b.recv_deadline(soon()).unwrap();
            }
            println!("round trip: {:?}", start.elapsed() / ROUNDS);
        });
    }
}
