//! The images that a daemon keeps: `$VRUN_STATE/images/ID.vimg`.
//!
//! A file appears under its name only when it is complete (write to [`Incoming`], then [`Incoming::finish`]), so a list
//! never shows half an image, and one that was broken off leaves nothing.

use crate::config::{Config, ConfigError, JobId};
use rustix::fs::inotify;
use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::time::SystemTime;

/// Why the store cannot do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("no stored image `{0}` here: `vctl ps --stored` lists them")]
    Unknown(String),
    #[error("cannot {what} {}: {error}", path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        error: io::Error,
    },
}

/// A stored image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    pub id: JobId,
    pub path: PathBuf,
    pub bytes: u64,
    /// When it was complete.
    pub arrived: SystemTime,
}

/// All stored images, oldest first.
pub fn list(config: &Config) -> Result<Vec<Stored>, StoreError> {
    let directory = config.images_directory()?;
    let failed = |error| StoreError::Io {
        what: "read",
        path: directory.clone(),
        error,
    };
    let mut images = Vec::new();
    for entry in fs::read_dir(&directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let Some(id) = name
            .to_str()
            .and_then(|name| name.strip_suffix(".vimg"))
            .and_then(JobId::parse)
        else {
            continue;
        };
        // One that was removed in between is not in the list.
        let Ok(metadata) = entry.metadata() else { continue };
        let arrived = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        images.push(Stored {
            id,
            path: entry.path(),
            bytes: metadata.len(),
            arrived,
        });
    }
    images.sort_by(|one, other| (one.arrived, &one.id).cmp(&(other.arrived, &other.id)));
    Ok(images)
}

/// Where the image with this id is.
pub fn path_of(config: &Config, id: &str) -> Result<PathBuf, StoreError> {
    let known = JobId::parse(id).ok_or_else(|| StoreError::Unknown(id.to_owned()))?;
    let path = config.images_directory()?.join(format!("{known}.vimg"));
    if path.is_file() {
        Ok(path)
    } else {
        Err(StoreError::Unknown(id.to_owned()))
    }
}

/// Deletes a stored image.
pub fn remove(config: &Config, id: &str) -> Result<(), StoreError> {
    let path = path_of(config, id)?;
    fs::remove_file(&path).map_err(|error| StoreError::Io {
        what: "remove",
        path,
        error,
    })
}

/// An image that is still arriving; dropped unfinished, it is gone.
#[derive(Debug)]
pub struct Incoming {
    file: tempfile::NamedTempFile,
    path: PathBuf,
}

impl Incoming {
    /// Makes room for an image of the job `id`; one that is stored under this id will be replaced.
    pub fn new(config: &Config, id: &JobId) -> Result<Incoming, StoreError> {
        let directory = config.images_directory()?;
        let file = tempfile::Builder::new()
            .prefix(".incoming-")
            .tempfile_in(&directory)
            .map_err(|error| StoreError::Io {
                what: "write into",
                path: directory.clone(),
                error,
            })?;
        Ok(Incoming {
            file,
            path: directory.join(format!("{id}.vimg")),
        })
    }

    pub fn file(&mut self) -> &mut File {
        self.file.as_file_mut()
    }

    /// Makes it durable and gives it its name.
    pub fn finish(self) -> Result<PathBuf, StoreError> {
        let failed = |error| StoreError::Io {
            what: "write",
            path: self.path.clone(),
            error,
        };
        self.file.as_file().sync_all().map_err(failed)?;
        self.file.persist(&self.path).map_err(|error| failed(error.error))?;
        Ok(self.path)
    }
}

/// Waits for the next image to be complete.
pub fn wait_for_arrival(config: &Config) -> Result<Stored, StoreError> {
    let directory = config.images_directory()?;
    let failed = |error: rustix::io::Errno| StoreError::Io {
        what: "watch",
        path: directory.clone(),
        error: error.into(),
    };
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC).map_err(failed)?;
    inotify::add_watch(&watch, &directory, inotify::WatchFlags::MOVED_TO).map_err(failed)?;
    let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
    let mut reader = inotify::Reader::new(watch, &mut buffer);
    loop {
        let name = match reader.next() {
            Ok(event) => event.file_name().map(|name| name.to_string_lossy().into_owned()),
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(failed(error)),
        };
        let arrived = list(config)?
            .into_iter()
            .find(|image| Some(format!("{}.vimg", image.id)) == name);
        if let Some(image) = arrived {
            return Ok(image);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Timeouts;
    use std::io::Write;
    use std::time::Duration;

    #[test]
    fn shows_only_complete_images() {
        let directory = tempfile::tempdir().unwrap();
        let base = directory.path().to_owned();
        let second = Duration::from_secs(1);
        let timeouts = Timeouts {
            connect: second,
            handshake: second,
            answer: second,
        };
        let config = Config {
            home: base.clone(),
            runtime: base.clone(),
            state: base,
            timeouts,
            file: toml::Table::new(),
        };
        let id = JobId::generate().unwrap();
        let mut incoming = Incoming::new(&config, &id).unwrap();
        incoming.file().write_all(b"image").unwrap();
        assert!(list(&config).unwrap().is_empty());
        incoming.finish().unwrap();
        drop(Incoming::new(&config, &JobId::generate().unwrap()).unwrap());
        let images = list(&config).unwrap();
        assert_eq!((images.len(), images[0].bytes, &images[0].id), (1, 5, &id));
        assert!(path_of(&config, "../../etc/passwd").is_err());
        remove(&config, id.as_str()).unwrap();
        assert!(matches!(remove(&config, id.as_str()), Err(StoreError::Unknown(_))));
    }
}
