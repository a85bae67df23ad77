//! `vmigrate`: moves a running job.

use super::{Done, ask, duration, finish, parse, print_json, size, unexpected};
use crate::control::{Moved, Outcome, Request};
use clap::Parser;
use clap::builder::FalseyValueParser;
use std::process::ExitCode;

/// Moves a running job to another host, or home.
///
/// Exits with 0 when it runs there; 1 refused, the job is untouched; 2 wrong usage; 3 failed, the job runs where it
/// was; 5 the host is unreachable or not trusted; 6 timed out; 7 the host cannot run the job.
#[derive(Debug, Parser)]
#[command(name = "vmigrate", version, about, verbatim_doc_comment)]
pub(super) struct Arguments {
    /// Only find out whether the job could be moved
    #[arg(long, env = "VRUN_CHECK", value_parser = FalseyValueParser::new())]
    check: bool,
    /// Print the figures as JSON on standard output
    #[arg(long, env = "VRUN_JSON", value_parser = FalseyValueParser::new())]
    json: bool,
    /// Start at the destination before all memory is there
    #[arg(long, env = "VRUN_POST_COPY", value_parser = FalseyValueParser::new())]
    post_copy: bool,
    /// The job: its id, its name or the PID of one of its processes
    #[arg(value_name = "ID")]
    job: String,
    /// Where to: a name given with `vctl trust`, or `home`
    #[arg(value_name = "HOST[:PORT]")]
    host: String,
}

/// Runs `vmigrate`.
pub fn main() -> ExitCode {
    match parse::<Arguments>("vmigrate", 2) {
        Ok((arguments, config)) => finish("vmigrate", run(&arguments, &config)),
        Err(status) => status,
    }
}

fn run(arguments: &Arguments, config: &crate::config::Config) -> Done {
    let Arguments {
        check,
        json,
        post_copy,
        job,
        host,
    } = arguments;
    let request = match host.as_str() {
        "home" if !check => Request::Home,
        _ => Request::Migrate {
            host: host.clone(),
            check: *check,
            post_copy: *post_copy,
        },
    };
    match ask(config, job, &request)? {
        Outcome::Moved(moved) => {
            let Moved {
                bytes,
                total_us,
                downtime_us,
            } = moved;
            if *json {
                let figures = serde_json::json!({
                    "job": job, "host": host, "bytes": bytes, "total_us": total_us, "downtime_us": downtime_us,
                });
                print_json(figures)?;
            }
            eprintln!(
                "moved {} in {}, downtime {}",
                size(bytes),
                duration(total_us),
                duration(downtime_us)
            );
        }
        Outcome::Checked(findings) => {
            if *json {
                print_json(serde_json::json!({ "job": job, "host": host, "migratable": true, "findings": findings }))?;
            }
        }
        other => return Err(unexpected(&other)),
    }
    Ok(ExitCode::SUCCESS)
}
