//! What a program can ask the kernel, asked after a move: each program waits to be moved, tries one subject, and prints every
//! result; away, and at home again, it must print what a plain run prints.

use std::fs;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use vrun_image::{Reader, Record, Writer};

use crate::harness::{Cmd, Running, Status, Streams, User, World};
use crate::jobs::{Body, HERE, PLAIN, migrate, ready_trial, same_end, start, start_plain, words};

pub(crate) fn trials() -> Vec<Trial> {
    let rows: [(&str, Body); 16] = [
        ("files", |world| every_way(world, &["c:opens", "c:bulk", "c:names"])),
        ("mappings", |world| every_way(world, &["c:maps"])),
        ("errors", |world| every_way(world, &["c:faults"])),
        ("itself", |world| every_way(world, &["c:self with arguments"])),
        ("imports", |world| every_way(world, &["py:imports"])),
        ("sockets", |world| {
            every_way(world, &["c:tcp", "c:events", "c:messages", "py:network"])
        }),
        ("interrupted", |world| every_way(world, &["c:interrupted"])),
        ("masks", |world| every_way(world, &["c:masks"])),
        ("timeouts", |world| every_way(world, &["c:timeouts"])),
        ("storm", |world| every_way(world, &["c:storm"])),
        ("locks", locks),
        ("received", received),
        ("ends", ends),
        ("homes", homes),
        ("reads", reads),
        ("another_kernel", another_kernel),
    ];
    // Root is a representative subset.
    let of_root = ["files", "itself", "sockets", "masks", "homes"];
    let root = rows.into_iter().filter(|(name, _)| of_root.contains(name));
    let all = rows.into_iter().map(|row| (User::Ordinary, row));
    all.chain(root.map(|row| (User::Root, row)))
        .map(|(user, (name, body))| ready_trial(&format!("calls::{name}"), user, body))
        .collect()
}

/// Where a job is when it makes its calls.
const WAYS: [&[&str]; 2] = [&["b"], &["b", "home"]];

/// A program that has said `ready` and waits for a line.
fn at_its_moment(world: &World, line: &str, to: Option<&[&str]>) -> Result<Running> {
    let command = words(line).streams(Streams::Input);
    let run = match to {
        Some(_) => start(&world.a, &command)?,
        None => start_plain(&world.a, &command)?,
    };
    run.wait_text("ready\n")?;
    for host in to.unwrap_or_default() {
        migrate(&world.a, host)?;
    }
    Ok(run)
}

fn empty(world: &World) -> Result<()> {
    for dir in [HERE, PLAIN] {
        let path = world.a.path(dir);
        if path.exists() {
            fs::remove_dir_all(path)?;
        }
    }
    Ok(())
}

/// Each program by every way, compared with a plain run.
fn every_way(world: &World, lines: &[&str]) -> Result<()> {
    for line in lines {
        for way in WAYS {
            empty(world)?;
            let mut job = at_its_moment(world, line, Some(way))?;
            let mut plain = at_its_moment(world, line, None)?;
            job.type_in(b"go\n")?;
            plain.type_in(b"go\n")?;
            same_end(job, plain).with_context(|| format!("{line}, moved to {way:?}"))?;
        }
    }
    Ok(())
}

/// A lock taken away from home keeps others out at home, until it is given back.
fn locks(world: &World) -> Result<()> {
    let flock = |wait: &str, file: &str| words(&format!("flock {wait} {file} true")).cwd(HERE);
    let record = format!(
        "import fcntl, sys; fcntl.lockf(open('{HERE}/' + sys.argv[1], 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB, 3, 11)"
    );
    let python = |file: &str| Cmd::new(["/usr/bin/python3", "-SEc", &record, file]);
    for way in WAYS {
        empty(world)?;
        let (mut job, mut plain) = (
            at_its_moment(world, "c:locks", Some(way))?,
            at_its_moment(world, "c:locks", None)?,
        );
        for run in [&mut job, &mut plain] {
            run.type_in(b"take\n")?;
            run.wait_text("locked\nready\n")?;
        }
        for attempt in [flock("-n", "whole"), python("record"), python("description")] {
            let status = world.a.start(&attempt)?.finish()?.status;
            ensure!(status == Status::Exit(1), "`{attempt}` was not kept out: {status:?}");
        }
        let waiting = world.a.start(&flock("-x", "whole"))?;
        for run in [&mut job, &mut plain] {
            run.type_in(b"give back\n")?;
        }
        ensure!(
            waiting.finish()?.status == Status::Exit(0),
            "the lock was not given back"
        );
        same_end(job, plain)?;
    }
    Ok(())
}

/// Signals from home with all that comes with them, in the order they were sent; a stop and a continuation in between.
fn received(world: &World) -> Result<()> {
    let a = &world.a;
    let play = |mut run: Running| -> Result<Running> {
        let pid = a.find(&words("c:received")).context("the program")?;
        let queue = |signal: i32, value: i32| {
            a.ok([
                "/tmp/programs/queue",
                &pid.to_string(),
                &signal.to_string(),
                &value.to_string(),
            ])
        };
        run.type_in(b"go\n")?;
        run.wait_text("reading\n")?;
        let said = |signal: i32, value: i32, how: &str| {
            queue(signal, value)?;
            run.wait_text(&format!("{how} {signal} code -1 value {value} by me\n"))
        };
        said(libc::SIGRTMIN() + 5, 12345, "handler")?;
        said(libc::SIGRTMIN(), -7, "handler")?;
        said(libc::SIGUSR1, 99, "handler")?;
        a.signal(pid, libc::SIGSTOP)?;
        queue(libc::SIGRTMIN(), 1)?;
        queue(libc::SIGRTMIN(), 2)?;
        a.signal(pid, libc::SIGCONT)?;
        run.wait_text("value 2 by me\n")?;
        run.type_in(b"text\n")?;
        run.wait_text("waiting\n")?;
        for value in [3, 4, 5] {
            queue(libc::SIGRTMIN() + 1, value)?;
        }
        Ok(run)
    };
    for way in WAYS {
        empty(world)?;
        let plain = play(at_its_moment(world, "c:received", None)?)?.finish()?;
        let job = play(at_its_moment(world, "c:received", Some(way))?)?.finish()?;
        ensure!(job == plain, "the job: {job:?}\nthe plain run: {plain:?}");
    }
    Ok(())
}

/// Exit statuses and signals, as its parent sees them.
fn ends(world: &World) -> Result<()> {
    (0..10).try_for_each(|how| every_way(world, &[&format!("c:ends {how}")]))
}

/// What cannot be done away is done at home, and the job is listed there again.
fn homes(world: &World) -> Result<()> {
    every_way(world, &["py:network home"])?;
    for how in 0..9 {
        empty(world)?;
        let line = format!("c:homes {how}");
        let (mut job, mut plain) = (
            at_its_moment(world, &line, Some(&["b"]))?,
            at_its_moment(world, &line, None)?,
        );
        for run in [&mut job, &mut plain] {
            run.type_in(b"go\n")?;
        }
        // Another program has taken its place in one of them.
        if how != 2 {
            job.wait_for("the second ready", |text| text.matches("ready\n").count() == 2)?;
            let listed = world.a.ok(["vctl", "ps"])?;
            ensure!(
                !listed.split_whitespace().any(|word| word == "b"),
                "{line} is not at home: {listed}"
            );
            // It is told after the program runs at home again.
            world.b.wait_until("the end of the guest", || {
                let listed = world.b.ok(["vctl", "ps"]).unwrap_or_default();
                (!listed.contains("job")).then_some(())
            })?;
            for run in [&mut job, &mut plain] {
                run.type_in(b"go\n")?;
            }
        }
        same_end(job, plain).context(line)?;
    }
    Ok(())
}

/// Signals that are read from a descriptor: what can be done away with them, and what brings the job home.
fn reads(world: &World) -> Result<()> {
    for how in [0, 1, 2, 3, 4, 5, 6, 10, 11, 12, 13, 14, 15, 16] {
        empty(world)?;
        let line = format!("c:reads {how}");
        let (mut job, mut plain) = (
            at_its_moment(world, &line, Some(&["b"]))?,
            at_its_moment(world, &line, None)?,
        );
        for run in [&mut job, &mut plain] {
            run.type_in(b"go\n")?;
        }
        job.wait_for("the second ready", |text| text.matches("ready\n").count() == 2)?;
        let listed = world.a.ok(["vctl", "ps"])?;
        ensure!(
            listed.split_whitespace().any(|word| word == "b") == (how < 10),
            "{line} is not where it should be: {listed}"
        );
        for run in [&mut job, &mut plain] {
            run.type_in(b"go\n")?;
        }
        same_end(job, plain).context(line)?;
    }
    Ok(())
}

/// The vDSO of another kernel: an image whose vDSO is not the one here. The pointers that libc has kept lead to clocks that go
/// on, here, away, and at home again.
fn another_kernel(world: &World) -> Result<()> {
    let a = &world.a;
    let command = words("c:clocks 25");
    let (job, plain) = (start(a, &command)?, start_plain(a, &command)?);
    job.wait_text("at 5\n")?;
    a.ok(["vctl", "save", "job", "-o", "/tmp/home/saved"])?;
    let before = job.finish()?.stdout;
    // Time passes that its clocks must not know of, wherever it goes.
    let plain = plain.finish()?;
    a.put("/tmp/home/other", with_another_vdso(&a.get("/tmp/home/saved")?)?)?;
    let job = a.start(&Cmd::new(["vctl", "restore", "/tmp/home/other"]).cwd(HERE))?;
    job.wait_text("at 10\n")?;
    migrate(a, "b")?;
    job.wait_text("at 15\n")?;
    migrate(a, "home")?;
    let after = job.finish()?;
    ensure!(
        before.clone() + &after.stdout == plain.stdout && after.status == plain.status,
        "{before}{after:?}"
    );
    Ok(())
}

/// An image with one byte changed in the padding behind the vDSO's code.
fn with_another_vdso(image: &[u8]) -> Result<Vec<u8>> {
    let (mut reader, mut writer) = (Reader::new(image)?, Writer::new(Vec::new())?);
    loop {
        match reader.next()? {
            Record::Job(mut job) => {
                let vdso = job
                    .processes
                    .first_mut()
                    .and_then(|process| process.memory.vdso.as_mut());
                let code = &mut vdso.context("a vDSO")?.code;
                let end = code.iter().rposition(|byte| *byte != 0).context("some code")?;
                *code.get_mut(end + 1).context("padding")? = 1;
                writer.job(&job)?;
            }
            Record::Pages { process, start, bytes } => writer.pages(process, start, bytes)?,
            Record::File { file, offset, bytes } => writer.file(file, offset, bytes)?,
            Record::End(_) => return Ok(writer.finish()?.0),
        }
    }
}
