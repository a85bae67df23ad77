//! `vctl`: lists, saves, restores, sends and looks.

use super::{Done, ask, finish, parse, print_json, print_text, size, unexpected};
use crate::config::{Config, JobId};
use crate::control::{self, Content, ControlError, ErrorCode, Outcome, Request, Status};
use crate::doctor;
use crate::front::{self, RunOptions};
use crate::job::{self, ImageSource, Start};
use crate::store::{self, StoreError, Stored};
use clap::builder::FalseyValueParser;
use clap::{Args, Parser, Subcommand, value_parser};
use comfy_table::{CellAlignment, Column, ContentArrangement, Table, presets};
use std::fs::File;
use std::io::{BufReader, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};
use vrun_remote_io::keys::{Identity, KeyError, PublicKey, TrustStore};

/// Lists, saves, restores, sends and looks at the jobs of this host.
///
/// Exits with 0 when it is done; 1 refused, the job is untouched; 2 wrong usage; 3 failed, the job runs where it was;
/// 5 the host is unreachable or not trusted; 6 timed out; 7 incompatible host or image. `restore` and `receive` exit as
/// the program does.
#[derive(Debug, Parser)]
#[command(name = "vctl", version, about, verbatim_doc_comment)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List the jobs started here and the guests running here
    Ps(Ps),
    /// Save a job to a file; it ends here, as if killed
    Save(Save),
    /// Continue a saved job in this terminal
    Restore(Restore),
    /// Store a job or an image in the daemon of another host
    Send(Send),
    /// Take a stored image and continue it in this terminal
    Receive(Receive),
    /// Delete a stored image
    Rm {
        #[arg(value_name = "STORED-ID")]
        id: String,
    },
    /// Print what is in an image
    Inspect {
        #[arg(value_name = "FILE")]
        file: PathBuf,
        #[command(flatten)]
        json: Json,
    },
    /// Print what has been counted about a job
    Stats {
        #[arg(value_name = "ID")]
        job: String,
        #[command(flatten)]
        json: Json,
    },
    /// Try what this host, and another one, can and cannot do
    Doctor {
        /// A name given with `vctl trust`
        #[arg(value_name = "HOST")]
        host: Option<String>,
        #[command(flatten)]
        json: Json,
    },
    /// Send a signal to a job's first process, wherever it runs
    Kill {
        /// The signal's name or number
        #[arg(short, long, value_name = "SIGNAL", default_value = "TERM", env = "VRUN_SIGNAL", value_parser = signal)]
        signal: i32,
        #[arg(value_name = "ID")]
        job: String,
    },
    /// Print this host's public key
    Key,
    /// Pin the key of another host, for both directions
    Trust {
        /// What to call it in other commands
        name: String,
        /// What `vctl key` prints there: two words, or one quoted
        #[arg(required = true, num_args = 1..=2)]
        key: Vec<String>,
        /// Where its daemon listens, if NAME is not its address
        #[arg(long, value_name = "HOST[:PORT]", env = "VRUN_ADDRESS")]
        address: Option<String>,
    },
}

#[derive(Debug, Args)]
struct Json {
    /// Print JSON
    #[arg(long, env = "VRUN_JSON", value_parser = FalseyValueParser::new())]
    json: bool,
}

#[derive(Debug, Args)]
struct Ps {
    /// Guests from other hosts too, and stored images
    #[arg(short, long, env = "VRUN_ALL", value_parser = FalseyValueParser::new())]
    all: bool,
    /// Only the ids
    #[arg(short, long, env = "VRUN_QUIET", value_parser = FalseyValueParser::new())]
    quiet: bool,
    /// The images stored here instead
    #[arg(long, env = "VRUN_STORED", value_parser = FalseyValueParser::new())]
    stored: bool,
    #[command(flatten)]
    json: Json,
}

#[derive(Debug, Args)]
struct Save {
    /// The job: its id, its name or the PID of one of its processes
    #[arg(value_name = "ID")]
    job: String,
    /// The file to write
    #[arg(short, long, value_name = "FILE", env = "VRUN_OUTPUT")]
    output: PathBuf,
    /// Let the job run on
    #[arg(long, env = "VRUN_KEEP_RUNNING", value_parser = FalseyValueParser::new())]
    keep_running: bool,
    /// Put the contents of its open files into the image
    #[arg(long, env = "VRUN_WITH_FILES", value_parser = FalseyValueParser::new())]
    with_files: bool,
    /// Compress with zstd: 1 is fast, 19 is small
    #[arg(long, value_name = "LEVEL", env = "VRUN_COMPRESS", num_args = 0..=1, require_equals = true,
        default_missing_value = "1", value_parser = value_parser!(i32).range(-7..=19))]
    compress: Option<i32>,
}

#[derive(Debug, Args)]
struct Restore {
    /// A file, or the id of a stored image
    #[arg(value_name = "FILE or STORED-ID")]
    image: PathBuf,
    #[command(flatten)]
    how: RestoreOptions,
}

#[derive(Debug, Args)]
struct RestoreOptions {
    /// Where a file of the job is missing, make it from the image
    #[arg(long, env = "VRUN_WITH_FILES", value_parser = FalseyValueParser::new())]
    with_files: bool,
    /// Print the job's id and return when it runs
    #[arg(short, long, env = "VRUN_DETACH", value_parser = FalseyValueParser::new())]
    detach: bool,
    /// Write the job's id to this file once it runs
    #[arg(long, value_name = "FILE", env = "VRUN_ID_FILE")]
    id_file: Option<PathBuf>,
    /// Tell on standard error what the supervisor does
    #[arg(short, long, env = "VRUN_VERBOSE", value_parser = FalseyValueParser::new())]
    verbose: bool,
}

#[derive(Debug, Args)]
struct Send {
    /// A job, or the file of an image
    #[arg(value_name = "ID or FILE")]
    what: String,
    /// A name given with `vctl trust`
    #[arg(value_name = "HOST")]
    host: String,
    #[command(flatten)]
    json: Json,
}

#[derive(Debug, Args)]
struct Receive {
    /// Which one; without it, the next to arrive
    #[arg(value_name = "STORED-ID")]
    id: Option<String>,
    #[command(flatten)]
    how: RestoreOptions,
}

/// `TERM`, `SIGTERM`, `15`, `RTMIN+3`.
fn signal(text: &str) -> Result<i32, String> {
    let upper = text.to_uppercase();
    let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
    let number = match (bare.parse::<i32>(), bare.strip_prefix("RTMIN+")) {
        (Ok(number), _) => Some(number),
        (_, Some(offset)) => offset.parse::<i32>().ok().map(|offset| libc::SIGRTMIN() + offset),
        _ => format!("SIG{bare}")
            .parse::<nix::sys::signal::Signal>()
            .ok()
            .map(|signal| signal as i32),
    };
    number
        .filter(|number| (0..=64).contains(number))
        .ok_or_else(|| "no such signal".to_owned())
}

impl From<StoreError> for ControlError {
    fn from(error: StoreError) -> ControlError {
        ControlError::refused(error.to_string())
    }
}

impl From<KeyError> for ControlError {
    fn from(error: KeyError) -> ControlError {
        ControlError::refused(error.to_string())
    }
}

/// Runs `vctl`.
pub fn main() -> ExitCode {
    match parse::<Arguments>("vctl", ErrorCode::Usage as u8) {
        Ok((arguments, config)) => finish("vctl", run(arguments.command, config)),
        Err(status) => status,
    }
}

fn run(action: Action, config: Config) -> Done {
    match action {
        Action::Ps(options) => ps(&options, &config)?,
        Action::Save(Save {
            job,
            output,
            keep_running,
            with_files,
            compress,
        }) => {
            let request = Request::Save {
                path: super::absolute(&output)?,
                keep_running,
                content: Content { with_files, compress },
            };
            match ask(&config, &job, &request)? {
                Outcome::Saved { .. } => {}
                other => return Err(unexpected(&other)),
            }
        }
        Action::Restore(Restore { image, how }) => return restore(find_image(&config, image)?, false, how, config),
        Action::Receive(Receive { id, how }) => {
            let path = match id {
                Some(id) => store::path_of(&config, &id)?,
                None => store::wait_for_arrival(&config)?.path,
            };
            return restore(path, true, how, config);
        }
        Action::Send(options) => send(&options, &config)?,
        Action::Rm { id } => store::remove(&config, &id)?,
        Action::Inspect { file, json } => inspect(&file, json.json)?,
        Action::Stats { job, json } => match ask(&config, &job, &Request::Stats)? {
            Outcome::Stats(figures) if json.json => print_json(figures)?,
            Outcome::Stats(figures) => print_text(&plain(&figures))?,
            other => return Err(unexpected(&other)),
        },
        Action::Doctor { host, json } => {
            let diagnosis = doctor::diagnose(&config, host.as_deref());
            if json.json {
                print_json(diagnosis.to_json())?;
            } else {
                print_text(&diagnosis.to_string())?;
            }
            if !diagnosis.is_well() {
                return Ok(ExitCode::FAILURE);
            }
        }
        Action::Kill { signal, job } => match ask(&config, &job, &Request::Kill { signal })? {
            Outcome::Done => {}
            other => return Err(unexpected(&other)),
        },
        Action::Key => print_text(&format!("{}\n", Identity::open(config.home_directory()?)?.public()))?,
        Action::Trust { name, key, address } => {
            let key: PublicKey = key
                .join(" ")
                .parse()
                .map_err(|error: KeyError| ControlError::new(ErrorCode::Usage, error.to_string()))?;
            TrustStore::load(config.home_directory()?)?.add(&name, key, address.as_deref())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn ps(options: &Ps, config: &Config) -> Result<(), ControlError> {
    let jobs = if options.stored {
        Vec::new()
    } else {
        control::list(config)?
    };
    let jobs: Vec<Status> = jobs.into_iter().map(|(_, status)| status).collect();
    let stored = if options.stored || options.all {
        store::list(config)?
    } else {
        Vec::new()
    };
    if options.json.json {
        let mut fields = serde_json::Map::new();
        if !options.stored {
            fields.insert("jobs".into(), jobs.iter().map(job_json).collect());
        }
        if options.stored || options.all {
            fields.insert("stored".into(), stored.iter().map(stored_json).collect());
        }
        return print_json(fields.into());
    }
    if options.quiet {
        let ids = jobs
            .iter()
            .map(|job| job.id.as_str())
            .chain(stored.iter().map(|image| image.id.as_str()));
        return print_text(&ids.map(|id| format!("{id}\n")).collect::<String>());
    }
    let mut text = String::new();
    if !options.stored {
        text += &job_table(&jobs);
    }
    if options.stored || !stored.is_empty() {
        text += if text.is_empty() { "" } else { "\n" };
        text += &stored_table(&stored);
    }
    print_text(&text)
}

fn job_json(job: &Status) -> serde_json::Value {
    serde_json::json!({
        "id": job.id,
        "name": job.name,
        "command": job.command,
        "role": job.role,
        "state": job.state,
        "host": job.host,
        "pid": job.pid,
        "pids": job.pids,
        "memory_bytes": job.memory_bytes,
        "descriptors": job.descriptors,
        "started": job.started,
        "migratable": job.not_migratable.is_none(),
        "not_migratable": job.not_migratable,
    })
}

fn stored_json(image: &Stored) -> serde_json::Value {
    let arrived = image
        .arrived
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs());
    serde_json::json!({ "id": image.id.as_str(), "bytes": image.bytes, "arrived": arrived, "path": image.path })
}

fn job_table(jobs: &[Status]) -> String {
    let header = [
        "ID",
        "NAME",
        "STATE",
        "WHERE",
        "PID",
        "MEMORY",
        "FDS",
        "AGE",
        "MIGRATABLE",
        "COMMAND",
    ];
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs());
    let rows = jobs.iter().map(|job| {
        let state = match job.role {
            control::Role::Guest => format!("guest, {}", job.state.as_str()),
            control::Role::Job => job.state.as_str().to_owned(),
        };
        let migratable = job
            .not_migratable
            .as_ref()
            .map_or("yes".into(), |reason| format!("no ({reason})"));
        vec![
            job.id.clone(),
            job.name.clone().unwrap_or_default(),
            state,
            job.host.clone().unwrap_or_else(|| "here".into()),
            job.pid.to_string(),
            size(job.memory_bytes),
            job.descriptors.to_string(),
            age(now.saturating_sub(job.started)),
            migratable,
            super::one_line(&job.command),
        ]
    });
    table(&header, &[4, 5, 6], rows)
}

fn stored_table(images: &[Stored]) -> String {
    let rows = images.iter().map(|image| {
        let waiting = image.arrived.elapsed().map_or(0, |time| time.as_secs());
        vec![image.id.to_string(), size(image.bytes), age(waiting)]
    });
    table(&["STORED", "SIZE", "AGE"], &[1], rows)
}

/// Without borders; cut to the width of a terminal at the last column, whole elsewhere.
fn table<const N: usize>(header: &[&str; N], right: &[usize], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.iter().copied());
    table.set_content_arrangement(ContentArrangement::Disabled);
    for row in rows {
        table.add_row(row);
    }
    for (position, column) in table.column_iter_mut().enumerate() {
        let column: &mut Column = column;
        column.set_padding((0, 2));
        if right.contains(&position) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let width = terminal_width();
    table
        .lines()
        .map(|line| line.trim_end().chars().take(width).collect::<String>() + "\n")
        .collect()
}

fn terminal_width() -> usize {
    let out = std::io::stdout();
    match rustix::termios::tcgetwinsize(&out) {
        Ok(size) if out.is_terminal() && size.ws_col > 0 => usize::from(size.ws_col),
        _ => usize::MAX,
    }
}

/// `12 s`, `5 min`, `3 h`, `9 d`.
fn age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// An object of figures, one line for each.
fn plain(figures: &serde_json::Value) -> String {
    match figures {
        serde_json::Value::Object(fields) => {
            let width = fields.keys().map(String::len).max().unwrap_or(0);
            fields
                .iter()
                .map(|(name, value)| format!("{name:width$}  {value}\n"))
                .collect()
        }
        other => format!("{other}\n"),
    }
}

fn inspect(path: &std::path::Path, json: bool) -> Result<(), ControlError> {
    let bad = |error: &dyn std::fmt::Display| {
        ControlError::new(ErrorCode::Incompatible, format!("{}: {error}", path.display()))
    };
    let file = File::open(path).map_err(|error| ControlError::refused(format!("{}: {error}", path.display())))?;
    let report = vrun_image::inspect::inspect(BufReader::new(file)).map_err(|error| bad(&error))?;
    if json {
        let value = serde_json::to_value(&report).map_err(|error| bad(&error))?;
        return print_json(value);
    }
    print_text(&report.to_string())
}

fn send(options: &Send, config: &Config) -> Result<(), ControlError> {
    let path = PathBuf::from(&options.what);
    let outcome = if path.is_file() {
        let mut line = super::ProgressLine::new();
        crate::deliver::send_image(config, &path, &options.host, &mut |progress| line.show(&progress))?
    } else {
        ask(
            config,
            &options.what,
            &Request::Send {
                host: options.host.clone(),
            },
        )?
    };
    match outcome {
        Outcome::Stored { id, bytes } if options.json.json => {
            print_json(serde_json::json!({ "stored": id, "host": options.host, "bytes": bytes }))
        }
        Outcome::Stored { id, .. } => print_text(&format!("{id}\n")),
        other => Err(unexpected(&other)),
    }
}

/// A file of that name, or else a stored image of that id.
fn find_image(config: &Config, image: PathBuf) -> Result<PathBuf, ControlError> {
    if image.is_file() {
        return super::absolute(&image);
    }
    image
        .to_str()
        .and_then(|id| store::path_of(config, id).ok())
        .ok_or_else(|| {
            ControlError::refused(format!(
                "{}: no such file, and no stored image with this id",
                image.display()
            ))
        })
}

fn restore(path: PathBuf, consume: bool, how: RestoreOptions, config: Config) -> Done {
    let RestoreOptions {
        with_files,
        detach,
        id_file,
        verbose,
    } = how;
    let id = JobId::generate().map_err(|error| ControlError::refused(format!("cannot make an id: {error}")))?;
    let source = ImageSource {
        path,
        with_files,
        detach,
        consume,
    };
    let options = RunOptions {
        command: "vctl",
        id,
        name: None,
        detach,
        id_file,
        verbose,
        config,
    };
    Ok(front::run(options, move |side| {
        job::supervise(Start::Image(source), side)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{Role, State};

    #[test]
    fn signals_by_name_and_number() {
        assert_eq!(
            ["TERM", "sigkill", "9", "RTMIN+2"].map(|text| signal(text).unwrap()),
            [15, 9, 9, 36]
        );
        assert!(signal("NOTHING").is_err() && signal("65").is_err());
    }

    #[test]
    fn table_has_one_line_for_each_job() {
        let job = Status {
            id: "abcdefgh".into(),
            name: Some("night".into()),
            command: "./a\nb".into(),
            state: State::Away,
            role: Role::Job,
            host: Some("beta".into()),
            pid: 7,
            pids: vec![7],
            memory_bytes: 1 << 20,
            descriptors: 3,
            started: 0,
            not_migratable: Some("2 threads".into()),
        };
        let text = job_table(&[job]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(lines[0].starts_with("ID ") && lines[0].ends_with("COMMAND"), "{text}");
        assert!(
            lines[1].contains("1.00 MiB") && lines[1].contains("no (2 threads)"),
            "{text}"
        );
    }
}
