//! `vrun`: starts a job.

use crate::config::JobId;
use crate::front::{self, RunOptions};
use crate::job::{self, Start};
use crate::launch::ProgramSpec;
use clap::Parser;
use clap::builder::FalseyValueParser;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

/// Runs a program so that it can be moved, running, to another host, saved and brought back.
///
/// Exits as the program does, with 128+N if signal N ended it; 125 if vrun itself failed, 126 if the program cannot be
/// run, 127 if it was not found.
#[derive(Debug, Parser)]
#[command(name = "vrun", version, about, verbatim_doc_comment)]
pub(super) struct Arguments {
    /// A name for the job, to be used in place of its id
    #[arg(short, long, value_name = "NAME", env = "VRUN_NAME", value_parser = name)]
    name: Option<String>,
    /// Print the job's id and return when the program runs. Its input is /dev/null, and so is an output that is a pipe
    #[arg(short, long, env = "VRUN_DETACH", value_parser = FalseyValueParser::new())]
    detach: bool,
    /// Write the job's id to this file once the program runs
    #[arg(long, value_name = "FILE", env = "VRUN_ID_FILE")]
    id_file: Option<PathBuf>,
    /// Let the program use io_uring, which it otherwise does not find; it cannot move while it does
    #[arg(long, env = "VRUN_ALLOW_IO_URING", value_parser = FalseyValueParser::new())]
    allow_io_uring: bool,
    /// Tell on standard error what the supervisor does
    #[arg(short, long, env = "VRUN_VERBOSE", value_parser = FalseyValueParser::new())]
    verbose: bool,
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "PROGRAM")]
    program: Vec<OsString>,
}

/// Short enough for a table, and neither a PID nor a path.
fn name(text: &str) -> Result<String, String> {
    let good = |letter: char| letter.is_ascii_alphanumeric() || "._-".contains(letter);
    let fits = (1..=64).contains(&text.len()) && text.chars().all(good) && !text.starts_with('-');
    if fits && text.parse::<u64>().is_err() {
        Ok(text.to_owned())
    } else {
        Err("a name has 1 to 64 letters, digits, dots, dashes and underscores, and not only digits".into())
    }
}

/// Runs `vrun`.
pub fn main() -> ExitCode {
    let (arguments, config) = match super::parse::<Arguments>("vrun", front::FAILED) {
        Ok(parsed) => parsed,
        Err(status) => return status,
    };
    let id = match JobId::generate() {
        Ok(id) => id,
        Err(error) => {
            eprintln!("vrun: cannot make an id for the job: {error}");
            return ExitCode::from(front::FAILED);
        }
    };
    let Arguments {
        name,
        detach,
        id_file,
        allow_io_uring,
        verbose,
        program,
    } = arguments;
    let mut words = program.into_iter();
    let program = words.next().unwrap_or_default();
    let spec = ProgramSpec {
        program,
        args: words.collect(),
        detach,
        io_uring: allow_io_uring,
    };
    let options = RunOptions {
        command: "vrun",
        id,
        name,
        detach,
        id_file,
        verbose,
        config,
    };
    front::run(options, move |side| job::supervise(Start::Program(spec), side))
}
