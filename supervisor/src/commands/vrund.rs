//! `vrund`: the daemon.

use super::parse;
use crate::config;
use crate::daemon;
use clap::Parser;
use std::process::ExitCode;

/// Takes in jobs and images of hosts whose keys are pinned.
///
/// Runs in the foreground and prints `ready` when it accepts connections. No privilege is needed.
#[derive(Debug, Parser)]
#[command(name = "vrund", version, about, verbatim_doc_comment)]
pub(super) struct Arguments {
    /// The address to listen on
    #[arg(
        long,
        value_name = "ADDR[:PORT]",
        env = "VRUN_LISTEN",
        default_value = "127.0.0.1:12092"
    )]
    listen: String,
    /// Serve one connection: said by the daemon to the processes that it starts
    #[arg(long, hide = true)]
    session: bool,
}

/// Runs `vrund`.
pub fn main() -> ExitCode {
    let (arguments, config) = match parse::<Arguments>("vrund", 2) {
        Ok(parsed) => parsed,
        Err(status) => return status,
    };
    if arguments.session {
        return daemon::session(config);
    }
    let served = config::parse_listen(&arguments.listen)
        .map_err(|error| (2, error.to_string()))
        .and_then(|address| daemon::run(address, &config).map_err(|error| (1, error.to_string())));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err((status, message)) => {
            eprintln!("vrund: {message}");
            ExitCode::from(status)
        }
    }
}
