//! The end of a test: nothing may be left behind, and a failure leaves what is needed to understand it.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;

use super::host::VRUN;
use super::running::Tap;
use super::{Host, World};

/// What a command has printed, kept for the report.
pub(crate) struct Log {
    pub(crate) pid: i32,
    pub(crate) command: String,
    pub(crate) out: Arc<Tap>,
    pub(crate) err: Arc<Tap>,
}

/// Runs a test; when it fails or panics, writes the state of its world to `target/e2e-failures/TEST/` and says so.
pub(crate) fn judge(test: &str, world: &World, body: impl FnOnce() -> Result<()>) -> Result<(), String> {
    let why = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(error)) => format!("{error:#}"),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            text.or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("panicked")
                .to_owned()
        }
    };
    let at = match write(test, world, &why) {
        Ok(dir) => dir.display().to_string(),
        Err(error) => format!("(could not be written: {error})"),
    };
    Err(format!("{why}\nlogs and /proc of every host: {at}"))
}

/// Writes the report.
fn write(test: &str, world: &World, why: &str) -> io::Result<PathBuf> {
    let dir = super::programs::target()
        .join("e2e-failures")
        .join(test.replace("::", "-"));
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir)?;
    fs::write(dir.join("why"), format!("{why}\n"))?;
    let binary = std::env::current_exe()?;
    let binary = binary.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let binary = binary.split('-').next().unwrap_or_default();
    fs::write(
        dir.join("repeat"),
        format!("cargo test --test {binary} -- --exact {test}\n"),
    )?;
    for host in world.hosts() {
        let dir = dir.join(host.name());
        fs::create_dir_all(&dir)?;
        for log in host
            .0
            .logs
            .lock()
            .into_iter()
            .flat_map(|logs| logs.iter().map(Log::text).collect::<Vec<_>>())
        {
            fs::write(dir.join(log.0), log.1)?;
        }
        fs::write(
            dir.join("files"),
            listing(&host.path("/tmp"))?.into_iter().collect::<Vec<_>>().join("\n"),
        )?;
        for pid in host.pids() {
            fs::write(dir.join(format!("proc-{pid}")), process(host, pid))?;
        }
        let runtime = host.path(&format!("{VRUN}/runtime"));
        for log in listing(&runtime)?.iter().filter(|file| file.ends_with(".log")) {
            fs::copy(runtime.join(log), dir.join(log.replace('/', "-")))?;
        }
    }
    Ok(dir)
}

impl Log {
    /// File name and contents.
    fn text(&self) -> (String, String) {
        let program = self.command.split([' ', '/']).next().unwrap_or_default();
        let name = format!("log-{}-{program}", self.pid);
        (
            name,
            format!(
                "$ {}\n--- stdout\n{}\n--- stderr\n{}\n",
                self.command,
                self.out.text(),
                self.err.text()
            ),
        )
    }
}

/// What `/proc` says about a process: enough to see where it hangs and what it holds.
fn process(host: &Host, pid: i32) -> String {
    let mut text = format!("{}\n", host.command_line(pid));
    for file in ["status", "wchan", "syscall", "stack", "maps"] {
        let _ = writeln!(text, "\n--- {file}\n{}", host.proc(pid, file));
    }
    for (dir, is_link) in [("fd", true), ("fdinfo", false), ("task", false)] {
        let entries = fs::read_dir(host.path(&format!("/proc/{pid}/{dir}")))
            .into_iter()
            .flatten()
            .flatten();
        for entry in entries {
            let said = match (is_link, dir) {
                (true, _) => fs::read_link(entry.path()).map(|to| to.display().to_string()),
                (false, "task") => fs::read_to_string(entry.path().join("wchan")),
                (false, _) => fs::read_to_string(entry.path()),
            };
            let _ = writeln!(
                text,
                "--- {dir}/{}\n{}",
                entry.file_name().display(),
                said.unwrap_or_default()
            );
        }
    }
    text
}

/// After the jobs have ended: no process but the daemons, no file in `VRUN_RUNTIME` but theirs.
pub(crate) fn nothing_left(world: &World) -> Result<()> {
    for host in world.hosts() {
        let daemons = host.0.daemons.lock().map(|daemons| daemons.clone()).unwrap_or_default();
        let extra = || {
            host.pids()
                .into_iter()
                .filter(|pid| !daemons.contains(pid))
                .collect::<Vec<_>>()
        };
        host.wait_until("the end of everything but the daemons", || {
            extra().is_empty().then_some(())
        })
        .map_err(|error| {
            let names = extra()
                .iter()
                .map(|pid| format!("{pid} `{}`", host.command_line(*pid)))
                .collect::<Vec<_>>();
            error.context(format!("left behind: {}", names.join(", ")))
        })?;
        let runtime = host.path(&format!("{VRUN}/runtime"));
        let at_rest = host.0.at_rest.lock().map(|files| files.clone()).unwrap_or_default();
        let files = || {
            listing(&runtime)
                .map(|now| now.difference(&at_rest).cloned().collect::<Vec<_>>())
                .unwrap_or_default()
        };
        host.wait_until("an empty VRUN_RUNTIME", || files().is_empty().then_some(()))
            .map_err(|error| error.context(format!("files left behind: {:?}", files())))?;
    }
    Ok(())
}

/// Every file below a directory that is no directory itself, by its path from there; nothing if it does not exist.
pub(crate) fn listing(dir: &Path) -> io::Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(at) = todo.pop() {
        for entry in fs::read_dir(&at).into_iter().flatten() {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                todo.push(entry.path());
            } else {
                let path = entry.path();
                found.insert(path.strip_prefix(dir).unwrap_or(&path).display().to_string());
            }
        }
    }
    Ok(found)
}
