//! Jobs of many threads and processes that move.

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;

use crate::harness::{Cmd, Host, Status, User, World};
use crate::jobs::{Body, migrate, ready_trial, same_end, start, start_plain, words};

pub(crate) fn trials() -> Vec<Trial> {
    let rows: [(&str, Body); 6] = [
        ("threads", |world| there_and_back(world, "c:crowd 100")),
        ("family", |world| there_and_back(world, "c:family 60")),
        ("ticker", |world| there_and_back(world, "c:ticker")),
        ("stopped_one", stopped_one),
        ("killed_one", killed_one),
        ("killed_with_threads", killed_with_threads),
    ];
    let users = [User::Ordinary, User::Root];
    let both = rows
        .into_iter()
        .flat_map(|(name, body)| users.map(|user| ready_trial(&format!("many::{name}"), user, body)));
    both.collect()
}

/// Away, home and away again; its output is a plain run's.
fn there_and_back(world: &World, line: &str) -> Result<()> {
    let command = words(line);
    let (job, plain) = (start(&world.a, &command)?, start_plain(&world.a, &command)?);
    job.wait_lines(3)?;
    for to in ["b", "home", "b"] {
        migrate(&world.a, to)?;
        job.wait_more_lines(3)?;
    }
    same_end(job, plain)
}

/// The processes of this host with the job's command line whose parent is one of them.
fn child_of(host: &Host, command: &Cmd) -> Result<i32> {
    let parent = host.find(command).context("the program")?;
    let line = host.command_line(parent);
    let parent_of = |pid: i32| {
        let status = host.proc(pid, "status");
        let field = status.lines().find_map(|line| line.strip_prefix("PPid:"));
        field.and_then(|pid| pid.trim().parse::<i32>().ok())
    };
    let same = |pid: &i32| host.command_line(*pid) == line;
    let pids: Vec<i32> = host.pids().into_iter().filter(same).collect();
    let child = pids
        .iter()
        .find(|pid| parent_of(**pid).is_some_and(|parent| pids.contains(&parent)));
    child.copied().context("its child")
}

/// One of several processes is stopped, goes on and is ended from outside, at home and away; its parent is told as ever.
fn stopped_one(world: &World) -> Result<()> {
    let a = &world.a;
    let command = words("c:watched");
    let job = start(a, &command)?;
    job.wait_lines(3)?;
    let child = child_of(a, &command)?;
    for (round, to) in ["b", "home", "b"].into_iter().enumerate() {
        migrate(a, to)?;
        job.wait_more_lines(3)?;
        a.signal(child, libc::SIGSTOP)?;
        let told = |what: &str| {
            let what = format!("{what}\n");
            job.wait_for(&what, |text| text.matches(what.as_str()).count() == round + 1)
        };
        told("stopped by 19")?;
        a.signal(child, libc::SIGCONT)?;
        told("continued")?;
        job.wait_more_lines(3)?;
    }
    a.signal(child, libc::SIGTERM)?;
    let end = job.finish()?;
    ensure!(
        end.status == Status::Exit(0) && end.stdout.ends_with("ended by 15\n"),
        "{end:?}"
    );
    Ok(())
}

/// SIGKILL for a child at home ends it where it is; the parent lives on and is told.
fn killed_one(world: &World) -> Result<()> {
    let a = &world.a;
    let command = words("c:watched");
    let job = start(a, &command)?;
    job.wait_lines(3)?;
    let child = child_of(a, &command)?;
    migrate(a, "b")?;
    job.wait_more_lines(3)?;
    a.signal(child, libc::SIGKILL)?;
    let end = job.finish()?;
    ensure!(
        end.status == Status::Exit(0) && end.stdout.ends_with("ended by 9\n"),
        "{end:?}"
    );
    world.b.wait_until("the end of the guest", || {
        world.b.find(&command).is_none().then_some(())
    })
}

/// A job of many threads is ended from outside while it is away.
fn killed_with_threads(world: &World) -> Result<()> {
    let World { a, b, .. } = world;
    let command = words("c:crowd 100");
    for (signal, status) in [(libc::SIGKILL, 137), (libc::SIGTERM, 143)] {
        let job = start(a, &command)?;
        job.wait_lines(2)?;
        let pid = a.find(&command).context("the program")?;
        migrate(a, "b")?;
        job.wait_more_lines(2)?;
        a.signal(pid, signal)?;
        ensure!(
            job.wait()? == Status::Exit(status),
            "status of vrun after signal {signal}"
        );
        b.wait_until("the end of the guest", || b.find(&command).is_none().then_some(()))?;
    }
    Ok(())
}
