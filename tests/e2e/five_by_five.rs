//! Five programs by five ways, each compared with a plain run: what it printed, what it wrote, how it ended.

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;

use crate::harness::{Cmd, Host, Running, Status, User, World, copy};
use crate::jobs::{HERE, PLAIN, migrate, ready_trial, start, start_plain, text, words};

/// A program, and when it is in the middle of its work.
#[derive(Clone, Copy, Debug)]
struct Program {
    name: &'static str,
    /// Command lines in C and in Python.
    c: &'static str,
    py: &'static str,
    middle: Middle,
    /// The file it writes, if it writes one.
    writes: Option<&'static str>,
}

#[derive(Clone, Copy, Debug)]
enum Middle {
    /// After that many lines of output, and that many more after a restart.
    Lines(usize),
    /// After that many clock ticks of CPU time.
    Ticks(u64),
}

const PROGRAMS: [Program; 5] = {
    use Middle::{Lines, Ticks};
    const fn row(name: &'static str, c: &'static str, py: &'static str, middle: Middle) -> Program {
        Program {
            name,
            c,
            py,
            middle,
            writes: None,
        }
    }
    [
        row("compute", "c:compute 1500000000", "py:compute 6000000", Ticks(30)),
        row("count", "c:count 80", "py:count 80", Lines(10)),
        row("recurse", "c:recurse 400", "py:recurse 400", Lines(20)),
        row("lines", "c:lines in.txt", "py:lines in.txt", Lines(10)),
        Program {
            writes: Some("out.txt"),
            ..row("copy", "c:copy in.txt out.txt", "py:copy in.txt out.txt", Lines(10))
        },
    ]
};

/// How it goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Saved and restored at home: by file, then by stored id.
    Local,
    /// The image carried as a file to the other host, where the same files are.
    Carried,
    /// Sent to the other host's daemon, restored there.
    Sent,
    /// `vmigrate` while it runs.
    Moved,
    /// As a file to the other host with the contents of the open files in it; the host has none of them.
    WithFiles,
}

const WAYS: [(&str, Way); 5] = [
    ("local", Way::Local),
    ("carried", Way::Carried),
    ("sent", Way::Sent),
    ("moved", Way::Moved),
    ("with_files", Way::WithFiles),
];

pub(crate) fn trials() -> Vec<Trial> {
    let mut all = Vec::new();
    for program in PROGRAMS {
        for (name, way) in WAYS {
            for (language, line) in [("c", program.c), ("py", program.py)] {
                // Root is a representative subset: every program moved, and every way once.
                let also_root = way == Way::Moved && language == "py" || program.name == "copy" && language == "c";
                for user in [User::Ordinary, User::Root] {
                    if user == User::Ordinary || also_root {
                        let name = format!("five_by_five::{}::{language}::{name}", program.name);
                        all.push(ready_trial(&name, user, move |world| check(world, program, line, way)));
                    }
                }
            }
        }
    }
    all
}

/// What is left of a run.
struct End {
    stdout: String,
    status: Status,
    written: Option<Vec<u8>>,
}

fn check(world: &World, program: Program, line: &str, way: Way) -> Result<()> {
    let a = &world.a;
    let command = words(line);
    for dir in [HERE, PLAIN] {
        a.put(&format!("{dir}/in.txt"), text(80))?;
    }
    let plain = start_plain(a, &command)?;
    if matches!(program.middle, Middle::Ticks(_)) {
        // The job is told from the plain run by its command line alone.
        plain.wait()?;
    }
    let job = start(a, &command)?;
    wait_middle(a, &command, &job, program.middle)?;
    let end = go(world, program, &command, way, job)?;

    let plain = plain.finish()?;
    ensure!(
        end.stdout == plain.stdout,
        "it printed:\n{}\nthe plain run:\n{}",
        end.stdout,
        plain.stdout
    );
    ensure!(
        end.status.as_shell() == plain.status.as_shell(),
        "ended with {:?}, not {:?}",
        end.status,
        plain.status
    );
    if let Some(name) = program.writes {
        let (found, expected) = (end.written, a.get(&format!("{PLAIN}/{name}"))?);
        ensure!(
            found.as_ref() == Some(&expected),
            "it wrote {:?}",
            found.map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        );
    }
    Ok(())
}

/// Waits until the process of `command` on `host`, whose output is `job`'s, has worked for a while.
fn wait_middle(host: &Host, command: &Cmd, job: &Running, middle: Middle) -> Result<()> {
    match middle {
        Middle::Lines(n) => job.wait_lines(n),
        Middle::Ticks(n) => host.wait_ticks(command, n).map(drop),
    }
}

/// Takes the job that way to its end.
fn go(world: &World, program: Program, command: &Cmd, way: Way, first: Running) -> Result<End> {
    let World { a, b, .. } = world;
    let image = "/tmp/home/job.img";
    let files = || {
        ["in.txt"]
            .into_iter()
            .chain(program.writes)
            .map(|name| format!("{HERE}/{name}"))
    };
    let at_home = |host: &Host| {
        program
            .writes
            .map(|name| host.get(&format!("{HERE}/{name}")))
            .transpose()
    };
    match way {
        Way::Local => {
            a.ok(["vctl", "save", "job", "-o", image])?;
            first.wait()?;
            if matches!(program.middle, Middle::Ticks(_)) {
                // `vrun` ends a moment before the process does, and the next one has the same command line.
                a.wait_until("the end of what was saved", || a.find(command).is_none().then_some(()))?;
            }
            let second = a.start(&Cmd::new(["vctl", "restore", image]))?;
            wait_middle(a, command, &second, program.middle)?;
            a.ok(["vctl", "send", "job", "a"])?;
            second.wait()?;
            let third = a.start(&Cmd::new(["vctl", "restore", &stored(a)?]))?.finish()?;
            let stdout = first.stdout() + &second.stdout() + &third.stdout;
            Ok(End {
                stdout,
                status: third.status,
                written: at_home(a)?,
            })
        }
        Way::Carried | Way::Sent => {
            let what = if way == Way::Carried {
                a.ok(["vctl", "save", "job", "-o", image])?;
                copy(a, image, b, image)?;
                image.to_owned()
            } else {
                a.ok(["vctl", "send", "job", "b"])?;
                stored(b)?
            };
            first.wait()?;
            b.mkdir(HERE)?;
            for file in files().filter(|file| a.exists(file)) {
                copy(a, &file, b, &file)?;
            }
            let second = b.start(&Cmd::new(["vctl", "restore", &what]))?.finish()?;
            Ok(End {
                stdout: first.stdout() + &second.stdout,
                status: second.status,
                written: at_home(b)?,
            })
        }
        Way::Moved => {
            migrate(a, "b")?;
            match program.middle {
                Middle::Lines(_) => first.wait_more_lines(3)?,
                Middle::Ticks(_) => {}
            }
            ensure!(
                b.find(command).is_some() || !first.is_running(),
                "after the move no process of it is at b"
            );
            let end = first.finish()?;
            ensure!(end.stderr.is_empty(), "vrun should be silent: {}", end.stderr);
            for file in files() {
                ensure!(!b.exists(&file), "{file} was made at b");
            }
            Ok(End {
                stdout: end.stdout,
                status: end.status,
                written: at_home(a)?,
            })
        }
        Way::WithFiles => {
            a.ok(["vctl", "save", "job", "--with-files", "--compress=3", "-o", image])?;
            first.wait()?;
            copy(a, image, b, image)?;
            let second = b
                .start(&Cmd::new(["vctl", "restore", "--with-files", image]))?
                .finish()?;
            // "saying which file went where": its place is named on stderr, if it is not the old one.
            let written = program.writes.map(|name| {
                let old = format!("{HERE}/{name}");
                let named = second
                    .stderr
                    .split_whitespace()
                    .filter(|word| word.starts_with('/') && word.contains(name));
                let mut places = named
                    .map(|word| word.trim_end_matches([',', '.', ':', ';']))
                    .chain([old.as_str()]);
                let place = places
                    .find(|place| b.exists(place))
                    .with_context(|| format!("where is it? {}", second.stderr))?;
                b.get(place)
            });
            Ok(End {
                stdout: first.stdout() + &second.stdout,
                status: second.status,
                written: written.transpose()?,
            })
        }
    }
}

/// The id of the one image that a host's daemon has stored.
fn stored(host: &Host) -> Result<String> {
    let ids = host.ok(["vctl", "ps", "--stored", "-q"])?;
    let mut ids = ids.split_whitespace();
    let id = ids.next().context("nothing is stored")?.to_owned();
    ensure!(ids.next().is_none(), "more than one image is stored");
    Ok(id)
}
