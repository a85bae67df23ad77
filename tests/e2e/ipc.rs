//! System V IPC and POSIX message queues: what a job has made goes with it and leaves nothing, what others have stays.

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;

use crate::harness::{Cmd, Host, Running, Status, Streams, User, World, copy};
use crate::jobs::{HERE, migrate, ready_trial, refused, start, start_plain, words};

pub(crate) fn trials() -> Vec<Trial> {
    let mut all = Vec::new();
    for row in ["sysv_memory", "sysv_semaphores", "sysv_messages", "posix_queue"] {
        let name = format!("ipc::{row}_from_image_to_image");
        all.push(ready_trial(&name, User::Ordinary, move |world| {
            from_image_to_image(world, row)
        }));
    }
    all.push(ready_trial("ipc::of_others", User::Ordinary, of_others));
    all.push(ready_trial(
        "ipc::what_is_written_away_stays",
        User::Ordinary,
        written_away,
    ));
    all
}

/// What a row of the matrix says when its line has come.
fn rest(mut run: Running) -> Result<String> {
    run.type_in(b"go\n")?;
    let end = run.finish()?;
    ensure!(end.status == Status::Exit(0), "{end:?}");
    let (_, rest) = end.stdout.split_once("ready\n").unwrap_or(("", &end.stdout));
    ensure!(!rest.contains(": NO"), "{rest}");
    Ok(rest.to_owned())
}

/// A host, which has ordinary programs, has no object of its own.
fn has_none(host: &Host) -> Result<()> {
    for table in ["shm", "sem", "msg"] {
        let lines = host.ok(["cat", &format!("/proc/sysvipc/{table}")])?;
        ensure!(lines.lines().count() == 1, "{table}:\n{lines}");
    }
    Ok(())
}

/// Saved while it goes on, saved for good, saved again from its own namespace, and restored elsewhere.
fn from_image_to_image(world: &World, row: &str) -> Result<()> {
    let World { a, b, .. } = world;
    let command = Cmd::new([format!("/tmp/programs/rows/{row}")]).streams(Streams::Input);
    let plain = start_plain(a, &command)?;
    plain.wait_text("ready\n")?;
    let plain = rest(plain)?;

    let job = start(a, &command)?;
    job.wait_text("ready\n")?;
    a.ok(["vctl", "save", "job", "--keep-running", "-o", "/tmp/home/first"])?;
    ensure!(rest(job)? == plain, "it was disturbed");

    let job = start(a, &command)?;
    job.wait_text("ready\n")?;
    a.ok(["vctl", "save", "job", "-o", "/tmp/home/second"])?;
    ensure!(job.wait()? == Status::Exit(137), "status of vrun");
    has_none(a)?;

    let restore = |host: &Host, image: &str| {
        let command = Cmd::new(["vctl", "restore", image, "--id-file", "/tmp/home/id"]);
        let run = host.start(&command.cwd(HERE).streams(Streams::Input))?;
        host.wait_until("the restored job", || host.text("/tmp/home/id").ok())?;
        Ok::<_, anyhow::Error>(run)
    };
    let again = restore(a, "/tmp/home/second")?;
    has_none(a)?;
    let id = a.text("/tmp/home/id")?;
    a.ok(["vctl", "save", id.trim(), "-o", "/tmp/home/third"])?;
    ensure!(again.wait()? == Status::Exit(137), "status of vctl restore");
    b.mkdir(HERE)?;
    copy(a, "/tmp/home/third", b, "/tmp/home/third")?;
    for (host, image) in [(b, "/tmp/home/third"), (a, "/tmp/home/first"), (a, "/tmp/home/second")] {
        let said = rest(restore(host, image)?).with_context(|| format!("{image} at {}", host.name()))?;
        ensure!(said == plain, "{image} at {}: {said}", host.name());
    }
    has_none(a)
}

/// A segment is there when the job that wrote to it has ended, away.
fn written_away(world: &World) -> Result<()> {
    let a = &world.a;
    let job = start(a, &words("c:shares segment 76 written").streams(Streams::Input))?;
    job.wait_text("ready\n")?;
    migrate(a, "b")?;
    ensure!(rest(job)? == "done\n", "the job was disturbed");
    let later = start_plain(a, &words("c:shares segment 76").streams(Streams::Input))?;
    later.wait_text("ready\n")?;
    ensure!(later.stdout().contains("found written\n"), "{}", later.stdout());
    rest(later).map(drop)
}

/// Objects that others have made or use keep a job from being saved; shared memory that others have attached keeps it
/// from being moved, too. The job goes on.
fn of_others(world: &World) -> Result<()> {
    let a = &world.a;
    let save = "vctl save job --keep-running -o /tmp/home/image";
    // What both have, and what is said when the job has not made it. When it has: others use it, too.
    let cases = [
        ("segment", "77", "not of the job"),
        ("set", "78", "which it has not made"),
        ("queue", "/q", "which it has not made"),
    ];
    for (kind, name, not_made) in cases {
        for other_first in [true, false] {
            let name = format!("{name}{}", i32::from(other_first));
            let command = words(&format!("c:shares {kind} {name}")).streams(Streams::Input);
            let ready = |run: Result<Running>| run.and_then(|run| run.wait_text("ready\n").map(|()| run));
            let first = other_first.then(|| ready(start_plain(a, &command))).transpose()?;
            let job = ready(start(a, &command))?;
            let other = first.map_or_else(|| ready(start_plain(a, &command)), Ok)?;
            let said = if other_first { not_made } else { "not of the job" };
            refused(a, save, &[1], &[said])?;
            if kind == "segment" {
                refused(a, "vmigrate job b", &[1], &["not of the job"])?;
            }
            ensure!(rest(other)? == "done\n", "the other process was disturbed");
            if other_first {
                refused(a, save, &[1], &["which it has not made"])?;
            } else {
                a.ok(save.split(' '))?;
            }
            migrate(a, "b")?;
            ensure!(rest(job)? == "done\n", "the job was disturbed");
        }
    }
    Ok(())
}
