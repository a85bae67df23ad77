//! Connecting to another host's daemon by the name under which its key is pinned.

use crate::config::Config;
use crate::control::{ControlError, ErrorCode};
use std::time::Instant;
use vrun_remote_io::channel::{self, ChannelError, Frame, Receiver, Sender};
use vrun_remote_io::keys::{Identity, Peer, TrustStore};
use vrun_remote_io::message::{Hello, Message, Offer, PROTOCOL, Purpose, Refuse, RefuseCode};

impl From<ChannelError> for ControlError {
    fn from(error: ChannelError) -> ControlError {
        let code = match error {
            ChannelError::TimedOut { .. } => ErrorCode::TimedOut,
            ChannelError::Message(_) | ChannelError::Frame(_) | ChannelError::Setup(_) => ErrorCode::Refused,
            _ => ErrorCode::Unreachable,
        };
        ControlError::new(code, error.to_string())
    }
}

/// What this host says of itself.
pub fn hello(purpose: Purpose) -> Hello {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    Hello {
        protocol: PROTOCOL,
        software: format!("vrun {}", env!("CARGO_PKG_VERSION")),
        host,
        purpose,
    }
}

/// Connects to `host` (`NAME` or address, with a port or without) and exchanges greetings.
pub fn connect(config: &Config, host: &str, purpose: Purpose) -> Result<(Sender, Receiver, Hello), ControlError> {
    let home = config.home_directory()?;
    let identity = Identity::open(home)?;
    let (peer, address) = resolve(&TrustStore::load(home)?, host).ok_or_else(|| {
        let hint = format!("say `vctl trust {host} KEY` with the key that `vctl key` prints there");
        ControlError::new(ErrorCode::Unreachable, format!("no key is pinned for {host}: {hint}"))
    })?;
    let deadline = config.timeouts.connect + config.timeouts.handshake;
    let (sender, mut receiver) = channel::dial(&address, &identity, &peer, deadline)?;
    sender.send(&Message::Hello(hello(purpose)))?;
    match receiver.recv_deadline(Instant::now() + config.timeouts.handshake)? {
        Frame::Message(Message::Hello(hello)) if hello.protocol == PROTOCOL => Ok((sender, receiver, hello)),
        Frame::Message(Message::Hello(Hello { software, protocol, .. })) => Err(ControlError::new(
            ErrorCode::Incompatible,
            format!(
                "{host} has {software} with protocol {protocol}, this host speaks {PROTOCOL}: install the same version"
            ),
        )),
        other => Err(out_of_place(host, &other)),
    }
}

/// Offers a job to `host` and waits until it is accepted.
pub fn offer(config: &Config, host: &str, purpose: Purpose, offer: Offer) -> Result<(Sender, Receiver), ControlError> {
    let (sender, mut receiver, _) = connect(config, host, purpose)?;
    // Asked of who is there, not of the key that is pinned for it, which may be a mistake.
    if purpose == Purpose::Move && receiver.peer().key == Identity::open(config.home_directory()?)?.public() {
        let advice = format!("{host} is this host: name another, or `home` to bring a job back");
        return Err(ControlError::refused(advice));
    }
    sender.send(&Message::Offer(offer))?;
    match receiver.recv_deadline(Instant::now() + config.timeouts.answer)? {
        Frame::Message(Message::Accept) => {}
        Frame::Message(Message::Refuse(refusal)) => return Err(refused(host, &refusal)),
        other => return Err(out_of_place(host, &other)),
    }
    Ok((sender, receiver))
}

/// A refusal, with the exit status that belongs to its code.
fn refused(host: &str, refusal: &Refuse) -> ControlError {
    let code = match refusal.code {
        RefuseCode::Incompatible => ErrorCode::Incompatible,
        RefuseCode::Busy | RefuseCode::Unsupported | RefuseCode::Full | RefuseCode::Denied => ErrorCode::Refused,
    };
    ControlError::new(code, format!("{host} refuses: {}", refusal.reason))
}

/// The peer said something that does not belong there.
pub fn out_of_place(host: &str, frame: &Frame<'_>) -> ControlError {
    let said = match frame {
        Frame::Message(message) => message.name(),
        Frame::Bulk { .. } => "image data",
    };
    ControlError::new(
        ErrorCode::Unreachable,
        format!("{host} does not keep to the protocol: unexpected {said}"),
    )
}

/// The pinned peer that `host` means, and where to dial it.
fn resolve(trust: &TrustStore, host: &str) -> Option<(Peer, String)> {
    let known = |text: &str| {
        let by_address = || {
            trust
                .iter()
                .find(|peer| peer.address() == text || split_port(peer.address()).0 == text)
        };
        trust.by_name(text).or_else(by_address)
    };
    if let Some(peer) = known(host) {
        return Some((peer.clone(), peer.address().to_owned()));
    }
    let (base, port) = split_port(host);
    let peer = known(base).filter(|_| port.is_some())?;
    Some((peer.clone(), format!("{}:{}", split_port(peer.address()).0, port?)))
}

/// `HOST:PORT` in two; a bare IPv6 address has no port.
fn split_port(text: &str) -> (&str, Option<u16>) {
    match text.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => match port.parse() {
            Ok(port) => (host, Some(port)),
            Err(_) => (text, None),
        },
        _ => (text, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_by_name_and_address() {
        let directory = tempfile::tempdir().unwrap();
        let home = directory.path().join("home");
        let key = Identity::open(&home).unwrap().public();
        let mut trust = TrustStore::load(&home).unwrap();
        trust.add("beta", key, Some("10.0.0.2:700")).unwrap();
        trust.add("10.0.0.3", key, None).unwrap();
        for (host, wanted) in [
            ("beta", "10.0.0.2:700"),
            ("beta:8", "10.0.0.2:8"),
            ("10.0.0.2", "10.0.0.2:700"),
            ("10.0.0.2:700", "10.0.0.2:700"),
            ("10.0.0.3", "10.0.0.3"),
            ("10.0.0.3:9", "10.0.0.3:9"),
        ] {
            assert_eq!(
                resolve(&trust, host).map(|(_, address)| address).as_deref(),
                Some(wanted),
                "{host}"
            );
        }
        assert_eq!(resolve(&trust, "gamma"), None);
        assert_eq!(split_port("::1"), ("::1", None));
        assert_eq!(split_port("[::1]:7"), ("[::1]", Some(7)));
    }
}
