//! Where things are and how long to wait: directories, the configuration file, addresses, job ids.
//!
//! ```text
//! VRUN_HOME     keys, peers, config.toml     $XDG_CONFIG_HOME/vrun, ~/.config/vrun
//! VRUN_RUNTIME  jobs/ID.sock, jobs/ID.log    $XDG_RUNTIME_DIR/vrun, /tmp/vrun-UID
//! VRUN_STATE    images/ID.vimg               $XDG_STATE_HOME/vrun, ~/.local/state/vrun
//! ```
//!
//! All three are 0700 and made on demand. A setting is looked for in a flag, then in the environment, then in the
//! configuration file; the flags of the commands find their environment variables and their lines in the file through
//! [`crate::commands`]. The file has one table for each command, with the long names of its flags, and `[timeouts]`:
//!
//! ```toml
//! [vrund]
//! listen = "0.0.0.0:12092"
//!
//! [vctl.ps]
//! all = true
//!
//! [timeouts]            # seconds
//! connect = 5.0
//! handshake = 10.0
//! answer = 30.0
//! ```

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The port of `vrund` when none is given.
pub const DEFAULT_PORT: u16 = 12092;

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot find a home directory: set {variable} to the directory to use")]
    NoHome { variable: &'static str },
    #[error("cannot make the directory {}: {error}; set {variable} to another one", path.display())]
    Create {
        path: PathBuf,
        variable: &'static str,
        error: io::Error,
    },
    #[error("{} belongs to another user or others may enter it: remove it or set VRUN_RUNTIME", path.display())]
    Foreign { path: PathBuf },
    #[error("cannot read {}: {error}", path.display())]
    Read { path: PathBuf, error: io::Error },
    #[error("{}: {message}", path.display())]
    Parse { path: PathBuf, message: String },
    #[error("{what} is `{text}`, which is not {wanted}")]
    Value {
        what: String,
        text: String,
        wanted: &'static str,
    },
}

/// How long to wait for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// For a TCP connection to a daemon.
    pub connect: Duration,
    /// For a peer to prove who it is.
    pub handshake: Duration,
    /// For one answer of a peer that is at work.
    pub answer: Duration,
}

/// Everything that a command needs to know about its surroundings.
#[derive(Clone, Debug)]
pub struct Config {
    /// `VRUN_HOME`.
    pub home: PathBuf,
    /// `VRUN_RUNTIME`.
    pub runtime: PathBuf,
    /// `VRUN_STATE`.
    pub state: PathBuf,
    pub timeouts: Timeouts,
    /// The whole configuration file, for the flags of the commands.
    pub file: toml::Table,
}

impl Config {
    /// `hide_cpu_features = ["avx512f", …]`: instruction sets that jobs of this host are not to count on, and that it does
    /// not offer to guests; names as in `/proc/cpuinfo`. For a group of hosts whose CPUs differ.
    pub fn hidden_cpu_features(&self) -> Vec<String> {
        let list = self.file.get("hide_cpu_features").and_then(toml::Value::as_array);
        list.into_iter()
            .flatten()
            .filter_map(|name| Some(name.as_str()?.to_owned()))
            .collect()
    }

    /// Reads the environment and `$VRUN_HOME/config.toml`, if there is one. Makes no directory yet.
    pub fn load() -> Result<Config, ConfigError> {
        let home = directory("VRUN_HOME", "XDG_CONFIG_HOME", ".config")?;
        let state = directory("VRUN_STATE", "XDG_STATE_HOME", ".local/state")?;
        let runtime = match variable("VRUN_RUNTIME") {
            Some(path) => absolute(path.into()),
            None => match variable("XDG_RUNTIME_DIR")
                .map(PathBuf::from)
                .filter(|path| path.is_dir())
            {
                Some(path) => path.join("vrun"),
                None => PathBuf::from(format!("/tmp/vrun-{}", rustix::process::geteuid().as_raw())),
            },
        };
        let file = read_file(&home.join("config.toml"))?;
        let timeouts = Timeouts {
            connect: timeout(&file, "connect", 5.0)?,
            handshake: timeout(&file, "handshake", 10.0)?,
            answer: timeout(&file, "answer", 30.0)?,
        };
        Ok(Config {
            home,
            runtime,
            state,
            timeouts,
            file,
        })
    }

    /// Where keys and peers are kept; made if it is missing.
    pub fn home_directory(&self) -> Result<&Path, ConfigError> {
        make_private(&self.home, "VRUN_HOME")?;
        Ok(&self.home)
    }

    /// Where each job has its socket and log; made if it is missing.
    ///
    /// Whoever can put a socket there can speak for a job, so a directory that others own or may enter is refused.
    pub fn jobs_directory(&self) -> Result<PathBuf, ConfigError> {
        make_private(&self.runtime, "VRUN_RUNTIME")?;
        let metadata = fs::symlink_metadata(&self.runtime).map_err(|error| ConfigError::Read {
            path: self.runtime.clone(),
            error,
        })?;
        let ours = metadata.uid() == rustix::process::geteuid().as_raw();
        if !metadata.is_dir() || !ours || metadata.mode() & 0o077 != 0 {
            return Err(ConfigError::Foreign {
                path: self.runtime.clone(),
            });
        }
        let jobs = self.runtime.join("jobs");
        make_private(&jobs, "VRUN_RUNTIME")?;
        Ok(jobs)
    }

    /// Where stored images are; made if it is missing.
    pub fn images_directory(&self) -> Result<PathBuf, ConfigError> {
        let images = self.state.join("images");
        make_private(&images, "VRUN_STATE")?;
        Ok(images)
    }
}

fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// Absolute, because a supervisor leaves the directory in which it was started.
fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
}

fn directory(own: &'static str, xdg: &str, under_home: &str) -> Result<PathBuf, ConfigError> {
    if let Some(path) = variable(own) {
        return Ok(absolute(path.into()));
    }
    // The XDG specification tells to ignore relative paths.
    if let Some(path) = variable(xdg).map(PathBuf::from).filter(|path| path.is_absolute()) {
        return Ok(path.join("vrun"));
    }
    let home = std::env::home_dir()
        .filter(|home| home.is_absolute())
        .ok_or(ConfigError::NoHome { variable: own })?;
    Ok(home.join(under_home).join("vrun"))
}

fn make_private(path: &Path, variable: &'static str) -> Result<(), ConfigError> {
    if path.is_dir() {
        return Ok(());
    }
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| ConfigError::Create {
            path: path.to_owned(),
            variable,
            error,
        })
}

fn read_file(path: &Path) -> Result<toml::Table, ConfigError> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(toml::Table::new()),
        Err(error) => {
            return Err(ConfigError::Read {
                path: path.to_owned(),
                error,
            });
        }
    };
    text.parse().map_err(|error: toml::de::Error| {
        let line = error
            .span()
            .map_or(1, |span| 1 + text[..span.start].matches('\n').count());
        ConfigError::Parse {
            path: path.to_owned(),
            message: format!("line {line}: {}", error.message()),
        }
    })
}

/// `VRUN_<NAME>_TIMEOUT` before `[timeouts] name`, in seconds.
fn timeout(file: &toml::Table, name: &str, default: f64) -> Result<Duration, ConfigError> {
    let environment = format!("VRUN_{}_TIMEOUT", name.to_uppercase());
    let wrong = |what: String, text: String| ConfigError::Value {
        what,
        text,
        wanted: "a number of seconds above 0",
    };
    let (what, text) = match std::env::var(&environment) {
        Ok(text) => (environment, text),
        Err(_) => match file.get("timeouts").and_then(|timeouts| timeouts.get(name)) {
            Some(value) => (format!("timeouts.{name} in config.toml"), value.to_string()),
            None => return Ok(Duration::from_secs_f64(default)),
        },
    };
    match text
        .parse::<f64>()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
    {
        Some(duration) if !duration.is_zero() => Ok(duration),
        _ => Err(wrong(what, text)),
    }
}

/// `ADDR[:PORT]`, the daemon's listen address: an IPv4 or IPv6 address, `[…]` around IPv6 if a port follows.
pub fn parse_listen(text: &str) -> Result<SocketAddr, ConfigError> {
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    text.parse::<SocketAddr>()
        .or_else(|_| {
            bare.parse::<IpAddr>()
                .map(|address| SocketAddr::new(address, DEFAULT_PORT))
        })
        .map_err(|_| ConfigError::Value {
            what: "the listen address".into(),
            text: text.into(),
            wanted: "ADDR[:PORT] with a numeric address, such as 0.0.0.0:12092",
        })
}

/// A job's id: eight characters, a letter first so that it is never taken for a PID.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobId(String);

impl JobId {
    /// A new one from the kernel's random numbers. 26 · 36⁷ values: two jobs of one host do not meet.
    pub fn generate() -> io::Result<JobId> {
        let mut random = [0; 8];
        let got = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
        if got != random.len() {
            return Err(io::Error::other("getrandom returned too little"));
        }
        let mut value = u64::from_le_bytes(random);
        let mut text = String::with_capacity(8);
        for position in 0..8 {
            let alphabet: &[u8] = if position == 0 { &ALPHABET[..26] } else { ALPHABET };
            text.push(char::from(alphabet[(value % alphabet.len() as u64) as usize]));
            value /= alphabet.len() as u64;
        }
        Ok(JobId(text))
    }

    /// Whether `text` is written like an id, so that it may be part of a path.
    pub fn parse(text: &str) -> Option<JobId> {
        let bytes = text.as_bytes();
        let good =
            bytes.len() == 8 && bytes[0].is_ascii_lowercase() && bytes.iter().all(|byte| ALPHABET.contains(byte));
        good.then(|| JobId(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_ids() {
        for _ in 0..100 {
            let id = JobId::generate().unwrap();
            assert_eq!(JobId::parse(id.as_str()), Some(id));
        }
        for text in ["", "../../etc", "1abcdefg", "abcdefghi", "Abcdefgh"] {
            assert_eq!(JobId::parse(text), None, "{text}");
        }
    }

    #[test]
    fn listen_addresses() {
        for (text, wanted) in [
            ("127.0.0.1", "127.0.0.1:12092"),
            ("0.0.0.0:7", "0.0.0.0:7"),
            ("::1", "[::1]:12092"),
            ("[::1]", "[::1]:12092"),
            ("[::1]:7", "[::1]:7"),
        ] {
            assert_eq!(parse_listen(text).unwrap().to_string(), wanted);
        }
        assert!(parse_listen("everywhere").is_err());
    }

    #[test]
    fn runtime_of_another_mode_is_refused() {
        let base = tempfile::tempdir().unwrap();
        let runtime = base.path().join("open");
        fs::DirBuilder::new().mode(0o755).create(&runtime).unwrap();
        let second = Duration::from_secs(1);
        let config = Config {
            home: base.path().into(),
            runtime,
            state: base.path().into(),
            timeouts: Timeouts {
                connect: second,
                handshake: second,
                answer: second,
            },
            file: toml::Table::new(),
        };
        assert!(matches!(config.jobs_directory(), Err(ConfigError::Foreign { .. })));
    }
}
