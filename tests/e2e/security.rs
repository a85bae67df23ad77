//! After a move nothing that the program does reaches a file, a network or a name of the destination.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;

use crate::harness::report::listing;
use crate::harness::{Cmd, User, World};
use crate::jobs::{Body, HERE, migrate, ready_trial, start, text, words};

pub(crate) fn trials() -> Vec<Trial> {
    let rows: [(&str, Body); 4] = [
        ("paths", paths),
        ("identity", identity),
        ("network", network),
        ("nothing_written", nothing_written),
    ];
    let users = [User::Ordinary, User::Root];
    rows.into_iter()
        .flat_map(|(name, body)| users.map(|user| ready_trial(&format!("security::{name}"), user, body)))
        .collect()
}

/// The same path at both hosts, and one that only the destination has.
fn paths(world: &World) -> Result<()> {
    let World { a, b, .. } = world;
    for (path, of_a) in [
        ("/tmp/home/both", Some("of a")),
        ("/tmp/home/only-b", None),
        ("/tmp/vrun/home/x", Some("x of a")),
    ] {
        if let Some(text) = of_a {
            a.put(path, text)?;
        }
        b.put(path, "SECRET OF B")?;
        let job = start(a, &words(&format!("c:read_again {path}")))?;
        job.wait_lines(5)?;
        migrate(a, "b")?;
        let end = job.finish()?;
        let expected = of_a.unwrap_or("No such file or directory");
        let lines: String = (1..=40).map(|n| format!("{n} {expected}\n")).collect();
        ensure!(end.stdout == lines, "{path}: {}", end.stdout);
    }
    Ok(())
}

/// PIDs, users, names, interfaces, directories: the same before, away, and home again.
fn identity(world: &World) -> Result<()> {
    let job = start(&world.a, &words("py:identity"))?;
    job.wait_lines(5)?;
    migrate(&world.a, "b")?;
    job.wait_more_lines(5)?;
    migrate(&world.a, "home")?;
    let end = job.finish()?;
    let different: BTreeSet<&str> = end.stdout.lines().collect();
    ensure!(
        end.stdout.lines().count() == 40 && different.len() == 1,
        "{}: {different:#?}",
        end.stderr
    );
    Ok(())
}

/// 127.0.0.1 is the origin's.
fn network(world: &World) -> Result<()> {
    let World { a, b, .. } = world;
    let server = a.start(&words("c:echo_server 127.0.0.1 7000 30"))?;
    server.wait_text("listening\n")?;
    // The destination has a server at the same address, which must never hear anything.
    crate::harness::copy(a, "/tmp/programs/echo_server", b, "/tmp/home/echo_server")?;
    b.make_executable("/tmp/home/echo_server")?;
    let trap = b.start(&Cmd::new(["/tmp/home/echo_server", "127.0.0.1", "7000", "1"]))?;
    trap.wait_text("listening\n")?;
    let job = start(a, &words("py:connect_again 127.0.0.1 7000 30"))?;
    job.wait_lines(5)?;
    migrate(a, "b")?;
    let end = job.finish()?;
    ensure!(end.stdout.lines().count() == 30, "{end:?}");
    let log = server.finish()?.stdout;
    ensure!(
        log.matches("client 127.0.0.1\n1 lines\n").count() == 30,
        "the server at home: {log}"
    );
    ensure!(
        trap.stdout() == "listening\n",
        "the job reached a server of the destination: {}",
        trap.stdout()
    );
    trap.signal(libc::SIGKILL)?;
    trap.wait()?;
    Ok(())
}

/// A program that writes leaves no file at the destination.
fn nothing_written(world: &World) -> Result<()> {
    let World { a, b, .. } = world;
    let all = || ["/tmp", "/run", "/etc", "/dev/shm"].map(|dir| listing(&b.path(dir)));
    let before = all().into_iter().collect::<Result<Vec<_>, _>>()?;
    a.put(&format!("{HERE}/in.txt"), text(40))?;
    let job = start(a, &words("py:copy in.txt out.txt"))?;
    job.wait_lines(5)?;
    migrate(a, "b")?;
    job.finish()?;
    b.wait_until("the files as they were", || {
        all()
            .into_iter()
            .collect::<Result<Vec<_>, _>>()
            .is_ok_and(|now| now == before)
            .then_some(())
    })
}
