//! One connection of a peer, in a process of its own: what the daemon starts for each.
//!
//! ```text
//! accept (keys) ─▶ Hello ─▶ Move  ─▶ crate::host: this process becomes the guest's supervisor
//!                      ├──▶ Store ─▶ crate::deliver
//!                      └──▶ Query ─▶ (Examine ─▶ Examined)* ─▶ Bye
//! ```

use crate::config::Config;
use crate::control::ControlError;
use crate::deliver;
use crate::doctor;
use crate::peers;
use std::net::TcpStream;
use std::process::ExitCode;
use std::time::Instant;
use vrun_remote_io::channel::{self, Frame};
use vrun_remote_io::keys::{Identity, TrustStore};
use vrun_remote_io::message::{Message, PROTOCOL, Purpose};

/// Serves a connection until its end. `authenticated` is called once the peer has proved to be one whose key is pinned;
/// before that nothing that it says is looked at.
pub fn serve(stream: TcpStream, config: Config, authenticated: impl FnOnce()) -> ExitCode {
    match talk(stream, &config, authenticated) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::warn!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn talk(stream: TcpStream, config: &Config, authenticated: impl FnOnce()) -> Result<(), ControlError> {
    let home = config.home_directory()?;
    let (peer, sender, mut receiver) = channel::accept(
        stream,
        &Identity::open(home)?,
        &TrustStore::load(home)?,
        config.timeouts.handshake,
    )?;
    authenticated();
    let hello = match receiver.recv_deadline(Instant::now() + config.timeouts.handshake)? {
        Frame::Message(Message::Hello(hello)) => hello,
        other => return Err(peers::out_of_place(&peer.name, &other)),
    };
    tracing::info!(peer = peer.name, software = hello.software, purpose = ?hello.purpose, "connected");
    sender.send(&Message::Hello(peers::hello(hello.purpose)))?;
    match hello.purpose {
        _ if hello.protocol != PROTOCOL => {}
        Purpose::Store => return deliver::receive_image(config, &sender, &mut receiver),
        Purpose::Query => return doctor::attend(config, &sender, &mut receiver),
        Purpose::Move => return crate::host::receive_job(config, sender, receiver),
    }
    deliver::say_bye(config, &sender, &mut receiver);
    Ok(())
}
