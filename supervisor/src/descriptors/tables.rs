//! The descriptor tables of all processes of a job, and the open file descriptions that their slots lead to.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::FileType;
use vrun_image::state::{FileLock, LockHolder};

use super::{DescriptorError, Result, failed, file_type, is_path_only, show};
use crate::proc::fds::{Lock, OpenFiles, same_open_file};
use crate::proc::{Descriptor, FdInfo, ProcDir};
use crate::sys;

/// An open file description, and one of the slots that lead to it.
#[derive(Debug)]
pub(super) struct Description {
    /// Who has it: a process of the job, or we.
    pub pid: i32,
    pub slot: Descriptor,
    /// Ours, if it was only found in a message.
    pub passed: Option<OwnedFd>,
    /// flock(2) and `F_OFD_SETLK`, and of all processes `F_SETLK`.
    pub locks: Vec<FileLock>,
}

/// A slot that is in use.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub number: i32,
    pub close_on_exec: bool,
    /// Index into [`Tables::descriptions`].
    pub description: usize,
}

/// All of it.
#[derive(Debug, Default)]
pub(super) struct Tables {
    /// Host PIDs.
    pub pids: Vec<i32>,
    /// The number that a process (by its host PID) has in its own namespace.
    pub inner: HashMap<i32, i32>,
    /// Of each process, ascending by number.
    pub entries: Vec<Vec<Entry>>,
    pub descriptions: Vec<Description>,
    /// Device numbers of the controlling terminals; 0: none.
    pub controlling: Vec<u64>,
    /// By what tells most open files apart without asking the kernel: device, inode, flags, position.
    known: HashMap<(u64, u64, u32, i64), OpenFiles>,
}

impl Description {
    /// For [`crate::proc::fds`] and kcmp(2).
    pub(super) fn place(&self) -> (i32, i32) {
        (self.pid, self.slot.number)
    }

    /// A descriptor of ours for the same description: what is done to it is done to the job's.
    pub(super) fn fetch(&self) -> Result<OwnedFd> {
        let fetched = match &self.passed {
            Some(fd) => fd.try_clone(),
            None => sys::descriptor_of(self.pid, self.slot.number),
        };
        fetched.map_err(|error| failed("get a copy of", &self.slot.target, error))
    }

    /// By this path it can be opened anew.
    pub(super) fn magic(&self) -> String {
        format!("/proc/{}/fd/{}", self.pid, self.slot.number)
    }

    /// What people know it by.
    pub(super) fn called(&self, tables: &Tables) -> String {
        let number = self.slot.number;
        match tables.inner.get(&self.pid) {
            None => "a descriptor that is passed in a message".to_owned(),
            Some(inner) if tables.pids.len() > 1 => format!("descriptor {number} of process {inner}"),
            Some(_) => format!("descriptor {number}"),
        }
    }

    pub(super) fn refuse<T>(&self, tables: &Tables, what: impl std::fmt::Display) -> Result<T> {
        Err(DescriptorError::Unsupported(format!("{} {what}", self.called(tables))))
    }

    /// Its inode number, if it is of this type and more than a label for it (`O_PATH`).
    pub(super) fn inode_of(&self, kind: FileType) -> Option<u64> {
        let is = file_type(&self.slot.stat) == kind && !is_path_only(self.slot.info.flags);
        is.then_some(self.slot.stat.st_ino)
    }
}

impl Tables {
    /// Reads the tables of stopped processes, parents first.
    pub(super) fn read(pids: &[i32]) -> Result<Self> {
        let mut tables = Self {
            pids: pids.to_vec(),
            ..Self::default()
        };
        for (process, pid) in pids.iter().enumerate() {
            let directory = ProcDir::open(*pid)?;
            let (stat, status) = (directory.stat()?, directory.status()?);
            let inner = status.namespace_pids.last().copied().unwrap_or(*pid);
            tables.inner.insert(*pid, inner);
            tables.controlling.push(u64::from(stat.terminal.cast_unsigned()));
            // A child's table is mostly a copy of its parent's.
            let parent = pids[..process].iter().position(|other| *other == stat.parent);
            let mut entries = Vec::new();
            for number in directory.list("fd")? {
                let inherited = parent.and_then(|parent| tables.inherited(parent, (*pid, number)));
                let entry = match inherited {
                    Some(description) => {
                        let bytes = directory.read(&format!("fdinfo/{number}"))?;
                        let info = FdInfo::parse(&bytes)
                            .map_err(|malformed| crate::proc::ProcError::Malformed { pid: *pid, malformed })?;
                        let close_on_exec = info.close_on_exec;
                        tables.add_locks(description, inner, &info.locks)?;
                        Entry {
                            number,
                            close_on_exec,
                            description,
                        }
                    }
                    None => {
                        let slot = directory.descriptor(number)?;
                        let (close_on_exec, locks) = (slot.info.close_on_exec, slot.info.locks.clone());
                        let description = tables.index(*pid, slot, None);
                        tables.add_locks(description, inner, &locks)?;
                        Entry {
                            number,
                            close_on_exec,
                            description,
                        }
                    }
                };
                entries.push(entry);
            }
            tables.entries.push(entries);
        }
        Ok(tables)
    }

    /// The description that a slot has from the parent.
    fn inherited(&self, parent: usize, slot: (i32, i32)) -> Option<usize> {
        let entries = &self.entries[parent];
        let at = entries.binary_search_by_key(&slot.1, |entry| entry.number).ok()?;
        same_open_file((self.pids[parent], slot.1), slot).then_some(entries[at].description)
    }

    /// The description that a slot leads to, entered if it is new.
    fn index(&mut self, pid: i32, slot: Descriptor, passed: Option<OwnedFd>) -> usize {
        let key = (slot.stat.st_dev, slot.stat.st_ino, slot.info.flags, slot.info.position);
        let next = self.descriptions.len();
        let index = self.known.entry(key).or_default().index((pid, slot.number), next);
        if index == next {
            self.descriptions.push(Description {
                pid,
                slot,
                passed,
                locks: Vec::new(),
            });
        }
        index
    }

    /// The description that a descriptor of ours shares with the job.
    pub(super) fn add_passed(&mut self, fd: OwnedFd) -> Result<usize> {
        let me = std::process::id().cast_signed();
        let slot = ProcDir::open(me)?.descriptor(fd.as_raw_fd())?;
        let locks = slot.info.locks.clone();
        let index = self.index(me, slot, Some(fd));
        self.add_locks(index, 0, &locks)?;
        Ok(index)
    }

    fn add_locks(&mut self, description: usize, inner: i32, locks: &[Lock]) -> Result<()> {
        for lock in locks {
            let holder = match &lock.kind[..] {
                b"FLOCK" => LockHolder::Whole,
                b"OFDLCK" => LockHolder::Description,
                b"POSIX" => LockHolder::Process(inner),
                kind => {
                    let (kind, description) = (show(kind), &self.descriptions[description]);
                    let path = show(&description.slot.target);
                    return description.refuse(
                        self,
                        format!("holds a {kind} on {path}, which cannot be kept in a file"),
                    );
                }
            };
            let lock = FileLock {
                holder,
                write: lock.mode == b"WRITE",
                start: lock.start,
                end: lock.end,
            };
            let locks = &mut self.descriptions[description].locks;
            // Every slot of a description shows the locks that belong to it.
            if !locks.contains(&lock) {
                locks.push(lock);
            }
        }
        Ok(())
    }

    /// A job's process, by its PID on this host.
    pub(super) fn inner_pid(&self, pid: i32) -> Option<i32> {
        self.inner.get(&pid).copied()
    }
}

/// For messages about a failing call on a description of the job.
pub(super) fn cannot(what: &'static str, description: &Description) -> impl Fn(io::Error) -> DescriptorError + use<> {
    let target = description.slot.target.clone();
    move |error| failed(what, &target, error)
}
