//! The command lines of the four programs: `supervisor/bin/*.rs` hold nothing but a call to one of these.
//!
//! | module | program |
//! |---|---|
//! | [`vrun`] | starts a job |
//! | [`vmigrate`] | moves a running one |
//! | [`vctl`] | lists, saves, restores, sends, looks |
//! | [`vrund`] | the daemon |
//!
//! Each long flag can also be given by its environment variable (shown by `--help`) and by a line of `config.toml`, in
//! the table of the command; flag before environment before file. Errors are one line on standard error.

pub mod vctl;
pub mod vmigrate;
pub mod vrun;
pub mod vrund;

use crate::config::{Config, ConfigError};
use crate::control::{ControlError, ErrorCode, Outcome, Progress};
use clap::error::ErrorKind;
use clap::{ArgAction, Command, CommandFactory, FromArgMatches};
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Parses the command line, with what the configuration file says as the defaults. `Err` is the exit status: help was
/// shown, or an error of usage said, which exits with `usage`.
fn parse<T: CommandFactory + FromArgMatches>(name: &'static str, usage: u8) -> Result<(T, Config), ExitCode> {
    let fail = |message: &dyn std::fmt::Display| {
        eprintln!("{name}: {message}");
        ExitCode::from(usage)
    };
    let config = Config::load().map_err(|error| fail(&error))?;
    let mut command = T::command();
    if let Some(table) = config.file.get(name) {
        command = with_defaults(command, table, name, &config).map_err(|error| fail(&error))?;
    }
    let matches = command.try_get_matches().map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let _ = error.print();
            ExitCode::SUCCESS
        }
        _ => fail(&first_line(&error)),
    })?;
    let parsed = T::from_arg_matches(&matches).map_err(|error| fail(&first_line(&error)))?;
    Ok((parsed, config))
}

/// clap's errors take several lines; the first says it, and the names of what is missing follow it.
fn first_line(error: &clap::Error) -> String {
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return "no command given; `--help` lists them".into();
    }
    let text = error.to_string();
    let mut lines = text.lines().map(str::trim).take_while(|line| !line.is_empty());
    let first = lines
        .next()
        .unwrap_or("bad usage")
        .trim_start_matches("error: ")
        .to_owned();
    let more: Vec<&str> = lines.collect();
    let separator = if more.is_empty() { "" } else { " " };
    format!("{first}{separator}{}; see `--help`", more.join(", "))
}

/// Makes the lines of one table of the file the defaults of the flags with those names; tables are subcommands.
fn with_defaults(
    mut command: Command,
    table: &toml::Value,
    path: &str,
    config: &Config,
) -> Result<Command, ConfigError> {
    let wrong = |message: String| ConfigError::Parse {
        path: config.home.join("config.toml"),
        message,
    };
    let table = table
        .as_table()
        .ok_or_else(|| wrong(format!("`{path}` must be a table")))?;
    for (key, value) in table {
        let id = key.replace('-', "_");
        if value.is_table() && command.find_subcommand(key).is_some() {
            let mut inner = Ok(());
            command = command.mut_subcommand(key, |subcommand| {
                let unchanged = subcommand.clone();
                with_defaults(subcommand, value, &format!("{path}.{key}"), config).unwrap_or_else(|error| {
                    inner = Err(error);
                    unchanged
                })
            });
            inner?;
            continue;
        }
        let known = command
            .get_arguments()
            .find(|argument| argument.get_id() == id.as_str() && !argument.is_positional());
        let Some(argument) = known else {
            return Err(wrong(format!("`{path}.{key}` is no setting")));
        };
        let is_flag = matches!(argument.get_action(), ArgAction::SetTrue);
        let text = match value {
            toml::Value::String(text) if !is_flag => text.clone(),
            toml::Value::Integer(number) if !is_flag => number.to_string(),
            toml::Value::Boolean(on) if is_flag => on.to_string(),
            _ => {
                return Err(wrong(format!(
                    "`{path}.{key}` must be {}",
                    if is_flag { "true or false" } else { "a text" }
                )));
            }
        };
        // clap keeps defaults for the life of the process, which is one parse long.
        let text: &'static str = Box::leak(text.into_boxed_str());
        command = command.mut_arg(&id, |argument| argument.default_value(text));
    }
    Ok(command)
}

/// What a command of `vctl` or `vmigrate` came to.
type Done = Result<ExitCode, ControlError>;

/// Says the error and gives the exit status of the contract.
fn finish(name: &str, done: Done) -> ExitCode {
    done.unwrap_or_else(|error| {
        eprintln!("{name}: {}", one_line(&error.message));
        ExitCode::from(error.code as u8)
    })
}

/// An error is one line, whatever a peer or a file had to say.
fn one_line(text: &str) -> String {
    text.chars()
        .map(|letter| if letter.is_control() { ' ' } else { letter })
        .collect()
}

/// Shows progress to a person: on a terminal, on one line that is overwritten; nothing elsewhere.
struct ProgressLine {
    shown: bool,
}

impl ProgressLine {
    fn new() -> ProgressLine {
        ProgressLine { shown: false }
    }

    fn show(&mut self, progress: &Progress) {
        if io::stderr().is_terminal() {
            let _ = write!(io::stderr(), "\r\x1b[K{}", one_line(&progress.text));
            self.shown = true;
        }
    }
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        if self.shown {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

/// Asks the job that `what` names, showing progress.
fn ask(config: &Config, what: &str, request: &crate::control::Request) -> Result<Outcome, ControlError> {
    let (client, _) = crate::control::find(config, what)?;
    let mut line = ProgressLine::new();
    client.request(request, &mut |progress| line.show(&progress))
}

/// A peer or a job answered something else than was asked for.
fn unexpected(outcome: &Outcome) -> ControlError {
    ControlError::refused(format!("the job gave an answer to another question: {outcome:?}"))
}

/// Prints an object with `"schema": 1` in front of its fields.
fn print_json(fields: serde_json::Value) -> Result<(), ControlError> {
    let mut object = serde_json::json!({ "schema": 1 });
    if let (Some(object), serde_json::Value::Object(fields)) = (object.as_object_mut(), fields) {
        object.extend(fields);
    }
    print_text(&format!("{object}\n"))
}

/// Prints to standard output. A reader that has gone (`| head`) is no error.
fn print_text(text: &str) -> Result<(), ControlError> {
    match io::stdout()
        .write_all(text.as_bytes())
        .and_then(|()| io::stdout().flush())
    {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(ControlError::refused(format!(
            "cannot write to standard output: {error}"
        ))),
        _ => Ok(()),
    }
}

fn absolute(path: &Path) -> Result<PathBuf, ControlError> {
    std::path::absolute(path)
        .map_err(|error| ControlError::new(ErrorCode::Usage, format!("{}: {error}", path.display())))
}

/// `1.24 GiB`, `512 B`.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    match (unit, value) {
        (0, _) => format!("{bytes} B"),
        (_, 100.0..) => format!("{value:.0} {}", UNITS[unit]),
        (_, 10.0..) => format!("{value:.1} {}", UNITS[unit]),
        _ => format!("{value:.2} {}", UNITS[unit]),
    }
}

/// `18 ms`, `1.9 s`, `340 µs`.
fn duration(microseconds: u64) -> String {
    match microseconds {
        0..1_000 => format!("{microseconds} µs"),
        1_000..10_000 => format!("{:.1} ms", microseconds as f64 / 1e3),
        10_000..1_000_000 => format!("{:.0} ms", microseconds as f64 / 1e3),
        _ => format!("{:.1} s", microseconds as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_for_people() {
        let sizes = [0, 999, 1_048_576, 1_331_439_862, 64 << 20].map(size);
        assert_eq!(sizes, ["0 B", "999 B", "1.00 MiB", "1.24 GiB", "64.0 MiB"]);
        assert_eq!(
            [340, 1_500, 18_000, 1_900_000].map(duration),
            ["340 µs", "1.5 ms", "18 ms", "1.9 s"]
        );
    }

    #[test]
    fn command_lines_are_sound() {
        vrun::Arguments::command().debug_assert();
        vmigrate::Arguments::command().debug_assert();
        vctl::Arguments::command().debug_assert();
        vrund::Arguments::command().debug_assert();
    }

    #[test]
    fn the_file_gives_defaults() {
        let directory = tempfile::tempdir().unwrap();
        let second = std::time::Duration::from_secs(1);
        let config = Config {
            home: directory.path().into(),
            runtime: directory.path().into(),
            state: directory.path().into(),
            timeouts: crate::config::Timeouts {
                connect: second,
                handshake: second,
                answer: second,
            },
            file: toml::Table::new(),
        };
        let table = |text: &str| toml::Value::Table(text.parse().unwrap());
        let command = vctl::Arguments::command();
        let command = with_defaults(command, &table("[ps]\nall = true"), "vctl", &config).unwrap();
        let matches = command.try_get_matches_from(["vctl", "ps"]).unwrap();
        assert!(matches.subcommand_matches("ps").unwrap().get_flag("all"));
        for wrong in ["[ps]\nevery = true", "[ps]\nall = 7", "colour = true"] {
            assert!(
                with_defaults(vctl::Arguments::command(), &table(wrong), "vctl", &config).is_err(),
                "{wrong}"
            );
        }
    }
}
