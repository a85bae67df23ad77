//! What must be refused: one clear sentence, a documented exit status, and the job goes on running where it was.

use anyhow::{Result, ensure};
use libtest_mimic::Trial;

use crate::harness::{Cmd, Options, Status, User, World, copy, trial};
use crate::jobs::{HERE, migrate, ready_trial, refused, same_end, start, start_plain, text, words};

pub(crate) fn trials() -> Vec<Trial> {
    let user = User::Ordinary;
    let small = Options {
        state_of_b: "64k",
        ..user.into()
    };
    vec![
        ready_trial("bad_input::images", user, images),
        ready_trial("bad_input::missing_file", user, missing_file),
        ready_trial("bad_input::names", user, names),
        ready_trial("bad_input::unreachable", user, unreachable),
        trial("bad_input::keys", user, keys),
        ready_trial("bad_input::noise", user, noise),
        ready_trial("bad_input::full_disk", small, full_disk),
    ]
}

/// Images that are cut, changed, empty, something else.
fn images(world: &World) -> Result<()> {
    let a = &world.a;
    let job = start(a, &words("c:count 1000"))?;
    job.wait_lines(2)?;
    a.ok(["vctl", "save", "job", "-o", "/tmp/home/good"])?;
    job.wait()?;
    let good = a.get("/tmp/home/good")?;
    ensure!(
        a.ok(["vctl", "inspect", "/tmp/home/good"])?.contains("count"),
        "inspect does not name the program"
    );
    let json: serde_json::Value = serde_json::from_str(&a.ok(["vctl", "inspect", "--json", "/tmp/home/good"])?)?;
    ensure!(json["schema"] == 1, "inspect --json: {json}");

    let changed = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 0x40;
        bytes
    };
    let mut bad = vec![Vec::new(), b"#!/bin/sh\n".to_vec(), vec![0xff; 1 << 16]];
    bad.extend([1, 7, 8, 64, good.len() / 2, good.len() - 1].map(|len| good[..len].to_vec()));
    bad.extend([0, 8, 12, 20, 100, good.len() / 2, good.len() - 1].map(changed));
    for bytes in bad {
        a.put("/tmp/home/bad", bytes)?;
        refused(a, "vctl restore /tmp/home/bad", &[1, 7], &["/tmp/home/bad"])?;
        refused(a, "vctl send /tmp/home/bad b", &[1, 7], &["/tmp/home/bad"])?;
    }
    refused(a, "vctl restore /tmp/home/none", &[1], &["/tmp/home/none"])?;
    refused(a, "vctl inspect /tmp/home/bad", &[1, 7], &["/tmp/home/bad"])?;
    ensure!(
        world.b.ok(["vctl", "ps", "--stored", "-q"])?.is_empty(),
        "a bad image was stored"
    );
    Ok(())
}

/// Without `--with-files` a file that is not there is named before anything starts.
fn missing_file(world: &World) -> Result<()> {
    let World { a, b, .. } = world;
    let file = format!("{HERE}/in.txt");
    a.put(&file, text(40))?;
    let job = start(a, &words("c:lines in.txt"))?;
    job.wait_lines(3)?;
    a.ok(["vctl", "save", "job", "-o", "/tmp/home/job.img"])?;
    job.wait()?;
    copy(a, "/tmp/home/job.img", b, "/tmp/home/job.img")?;
    refused(b, "vctl restore /tmp/home/job.img", &[1, 7], &[&file])
}

/// IDs that nobody has, usage errors.
fn names(world: &World) -> Result<()> {
    let a = &world.a;
    let rows = [
        "vmigrate nobody b",
        "vmigrate nobody home",
        "vctl save nobody -o /tmp/home/x",
        "vctl send nobody b",
        "vctl kill nobody",
        "vctl stats nobody",
        "vctl rm nobody",
        "vctl restore nobody",
    ];
    for row in rows {
        refused(a, row, &[1], &["nobody"])?;
    }
    for row in [
        "vmigrate",
        "vmigrate job",
        "vctl",
        "vctl no-such-verb",
        "vctl save job",
        "vctl kill -s NOSIG job",
    ] {
        let output = a.start(&words(row))?.finish()?;
        ensure!(output.status == Status::Exit(2), "`{row}`: {output:?}");
    }
    Ok(())
}

/// Nobody there, nobody listening, no such name.
fn unreachable(world: &World) -> Result<()> {
    let a = &world.a;
    let command = words("c:count 40");
    let (job, plain) = (start(a, &command)?, start_plain(a, &command)?);
    job.wait_lines(2)?;
    for host in ["10.77.0.2:9", "10.77.0.77", "no-such-host.invalid", "a:70000"] {
        refused(a, &format!("vmigrate job {host}"), &[2, 5], &[host])?;
        refused(a, &format!("vctl send job {host}"), &[2, 5], &[host])?;
    }
    same_end(job, plain)
}

/// A peer that one side does not know, or knows by another key.
fn keys(world: &World) -> Result<()> {
    let World { a, b, .. } = world;
    a.daemon()?;
    b.daemon()?;
    let command = words("c:count 60");
    let (job, plain) = (start(a, &command)?, start_plain(a, &command)?);
    job.wait_lines(2)?;
    refused(a, "vmigrate job 10.77.0.2", &[5], &["10.77.0.2"])?;
    a.ok(["vctl", "trust", "b", &b.key()?, "--address", b.address()])?;
    refused(a, "vmigrate job b", &[5], &["b"])?;
    b.ok(["vctl", "trust", "a", &a.key()?, "--address", a.address()])?;
    let key = Cmd::new(["vctl", "key"]).env("VRUN_HOME", "/tmp/home/other");
    let nobodys = a.start(&key)?.finish()?.stdout;
    a.ok(["vctl", "trust", "b", nobodys.trim(), "--address", b.address()])?;
    refused(a, "vmigrate job b", &[5], &["b"])?;
    refused(a, "vctl trust b no-key", &[1, 2], &["no-key"])?;
    ensure!(a.find(&command).is_some(), "the job is gone");
    // And with the right keys, all the same daemons, it goes.
    a.ok(["vctl", "trust", "b", &b.key()?, "--address", b.address()])?;
    migrate(a, "b")?;
    same_end(job, plain)
}

/// Bytes from anybody, before authentication, do nothing to the daemon.
fn noise(world: &World) -> Result<()> {
    let World { a, b, .. } = world;
    let script = "import os, socket, sys\n\
        held = []\n\
        for size in (0, 1, 5, 100, 1 << 16, 1 << 20):\n\
        \x20   s = socket.create_connection((sys.argv[1], 12092)); held.append(s)\n\
        \x20   try: s.sendall(os.urandom(size)); s.sendall(b'\\x16\\x03\\x01\\xff\\xff' * 100)\n\
        \x20   except OSError: pass\n";
    for _ in 0..3 {
        a.ok(["/usr/bin/python3", "-SEc", script, b.address()])?;
    }
    let command = words("c:count 40");
    let (job, plain) = (start(a, &command)?, start_plain(a, &command)?);
    job.wait_lines(2)?;
    migrate(a, "b")?;
    same_end(job, plain)
}

/// No room for the image at the destination: nothing is left of it there.
fn full_disk(world: &World) -> Result<()> {
    let World { a, b, .. } = world;
    let command = words("py:count 40");
    let (job, plain) = (start(a, &command)?, start_plain(a, &command)?);
    job.wait_lines(2)?;
    refused(a, "vctl send job b", &[1, 3], &["space"])?;
    ensure!(
        b.ok(["vctl", "ps", "--stored", "-q"])?.is_empty(),
        "half an image is listed"
    );
    same_end(job, plain)
}
