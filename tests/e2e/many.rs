//! Jobs of many threads and processes that move.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;

use crate::harness::{Cmd, Host, Options, Running, Status, Streams, User, World};
use crate::jobs::{Body, migrate, ready_trial, same_end, start, start_plain, words};

pub(crate) fn trials() -> Vec<Trial> {
    let rows: [(&str, Body); 8] = [
        ("threads", |world| there_and_back(world, "c:crowd 100")),
        ("family", |world| there_and_back(world, "c:family 60")),
        ("ticker", |world| there_and_back(world, "c:ticker")),
        ("stopped_one", stopped_one),
        ("stopped_all", stopped_all),
        ("stopped_on_the_way", stopped_on_the_way),
        ("killed_one", killed_one),
        ("killed_with_threads", killed_with_threads),
    ];
    let users = [User::Ordinary, User::Root];
    let both = rows.into_iter().flat_map(|(name, body)| {
        users.map(|user| {
            let options = Options {
                hosts: if name == "stopped_all" {
                    vec!["a", "b", "c"]
                } else {
                    vec!["a", "b"]
                },
                ..user.into()
            };
            ready_trial(&format!("many::{name}"), options, body)
        })
    });
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

/// Ends the child of a job of `watched` by a signal; its parent is told, and ends well.
fn ended_by(host: &Host, job: Running, child: i32, signal: i32) -> Result<()> {
    host.signal(child, signal)?;
    let end = job.finish()?;
    let last = format!("ended by {signal}\n");
    ensure!(end.status == Status::Exit(0) && end.stdout.ends_with(&last), "{end:?}");
    Ok(())
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
    ended_by(a, job, child, libc::SIGTERM)
}

/// A job that a shell has stopped stays so wherever it goes, and is stopped and continued in each place.
fn stopped_all(world: &World) -> Result<()> {
    let a = &world.a;
    // Without line editing there is nothing but text around what the program prints.
    let bash = Cmd::new(["bash", "--norc", "--noediting", "-i"]).env("PS1", "> ");
    let mut shell = a.start(&bash.streams(Streams::Terminal(200, 50)))?;
    shell.wait_text("> ")?;
    let command = words("c:family 60");
    shell.type_in(b"vrun -n job -- /tmp/programs/family 60\n")?;
    shell.wait_more_lines(3)?;
    for (round, to) in ["b", "c", "home", "b"].into_iter().enumerate() {
        shell.type_in(b"\x1a")?;
        let stopped = |text: &str| text.matches("Stopped ").count() == round + 1;
        shell.wait_for("the shell's word", stopped)?;
        migrate(a, to)?;
        let listed = a.ok(["vctl", "ps"])?;
        ensure!(listed.contains("stopped"), "{listed}");
        let stopped = |pid: &i32| a.proc(*pid, "status").contains("State:\tT");
        a.wait_until("the stop of all processes", || {
            let mut pids = a.pids().into_iter();
            pids.all(|pid| a.command_line(pid) != command.to_string() || stopped(&pid))
                .then_some(())
        })?;
        shell.type_in(b"fg\n")?;
        shell.wait_more_lines(4)?;
    }
    shell.wait_text("\nqueued 72\r\n")?;
    shell.type_in(b"echo status $?\n")?;
    shell.wait_text("status 0\r\n")?;
    shell.type_in(b"exit\n")?;
    shell.wait()?;
    Ok(())
}

/// Stops and continuations of a child while the job is under way are neither lost nor doubled.
fn stopped_on_the_way(world: &World) -> Result<()> {
    let a = &world.a;
    let command = words("c:watched");
    let job = start(a, &command)?;
    job.wait_lines(3)?;
    let child = child_of(a, &command)?;
    for round in 0..8 {
        let client = a.start(&Cmd::new([
            "vmigrate",
            "job",
            if round % 2 == 0 { "b" } else { "home" },
        ]))?;
        // Some before, some in the middle, some behind.
        thread::sleep(Duration::from_millis(25 * round));
        a.signal(child, libc::SIGSTOP)?;
        let told = |what: &str, times: u64| {
            let what = format!("{what}\n");
            job.wait_for(&what, |text| text.matches(what.as_str()).count() as u64 == times)
        };
        told("stopped by 19", round + 1)?;
        if round % 3 == 0 {
            client.finish()?;
            a.signal(child, libc::SIGCONT)?;
        } else {
            a.signal(child, libc::SIGCONT)?;
            client.finish()?;
        }
        told("continued", round + 1)?;
        job.wait_more_lines(3)?;
    }
    ended_by(a, job, child, libc::SIGTERM)
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
    ended_by(a, job, child, libc::SIGKILL)?;
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
