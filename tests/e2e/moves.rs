//! Jobs that go away and come back: what they hold at home stays theirs.

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;

use crate::harness::{Cmd, Options, Running, Status, Streams, User, World};
use crate::jobs::{Body, HERE, migrate, ready_trial, same_end, start, start_plain, words};

pub(crate) fn trials() -> Vec<Trial> {
    let rows: [(&str, Body); 13] = [
        ("again_and_again", again_and_again),
        ("files", files),
        ("standard_input", standard_input),
        ("client_tcp_c", |world| {
            client(world, "c:echo_client 127.0.0.1 7000 60", "127.0.0.1")
        }),
        ("client_tcp_py", |world| {
            client(world, "py:echo_client 127.0.0.1 7000 60", "127.0.0.1")
        }),
        ("client_unix", |world| {
            client(world, "c:echo_client /tmp/home/socket 0 60", "/tmp/home/socket")
        }),
        ("terminal", terminal),
        ("signals", signals),
        ("killed_away", killed_away),
        ("vector_registers", |world| simple(world, "c:vectors 4000000000")),
        ("clocks", |world| simple(world, "c:clocks 30")),
        ("listed", listed),
        ("mapped_file", mapped_file),
    ];
    let users = [User::Ordinary, User::Root];
    let two = rows
        .into_iter()
        .flat_map(|(name, body)| users.map(|user| ready_trial(&format!("moves::{name}"), user, body)));
    let three = Options {
        hosts: vec!["a", "b", "c"],
        ..User::Ordinary.into()
    };
    two.chain([ready_trial("moves::server", three, server)]).collect()
}

/// Away in the middle, and the rest there.
fn simple(world: &World, line: &str) -> Result<()> {
    let command = words(line);
    let (job, plain) = (start(&world.a, &command)?, start_plain(&world.a, &command)?);
    job.wait_lines(1)?;
    world.a.wait_ticks(&command, 20)?;
    migrate(&world.a, "b")?;
    same_end(job, plain)
}

/// The job and a program that is none of it, at the origin, work on one mapped file. What the job has written right before it is
/// killed is there, too.
fn mapped_file(world: &World) -> Result<()> {
    let World { a, b, .. } = world;
    let command = words("c:exchange 0").streams(Streams::Input);
    let mut job = start(a, &command)?;
    job.wait_text("ready")?;
    let mut other = a.start(&words("c:exchange 1").cwd(HERE).streams(Streams::Input))?;
    other.wait_text("ready")?;
    migrate(a, "b")?;
    for mapped in ["1\nready\n", ""] {
        for program in [&mut job, &mut other] {
            program.type_in(b"go\n")?;
        }
        [&job, &other]
            .iter()
            .try_for_each(|program| program.wait_text(mapped))?;
        ensure!(
            mapped.is_empty() || b.find(&command).is_some(),
            "it came home to map the file anew"
        );
    }
    let (job, other) = (job.finish()?, other.finish()?);
    for output in [&job, &other] {
        ensure!(output.stdout == "ready\n1\nready\nwrong: 0\n", "{output:?}");
    }
    ensure!(
        (job.status, other.status) == (Status::Exit(128 + libc::SIGKILL), Status::Exit(0)),
        "{job:?} {other:?}"
    );
    let bytes = std::fs::read(a.path(&format!("{HERE}/exchanged")))?;
    ensure!(bytes[4160] == 7 && bytes[4164] == 7, "{:?}", &bytes[4160..4168]);
    Ok(())
}

/// Away and home five times, the way home said on either host.
fn again_and_again(world: &World) -> Result<()> {
    let World { a, b, .. } = world;
    let command = words("py:count 160");
    let (job, plain) = (start(a, &command)?, start_plain(a, &command)?);
    job.wait_lines(3)?;
    for round in 0..5 {
        migrate(a, "b")?;
        job.wait_more_lines(2)?;
        ensure!(b.find(&command).is_some(), "round {round}: it is not at b");
        migrate(if round % 2 == 0 { a } else { b }, "home")?;
        job.wait_more_lines(2)?;
        b.wait_until("nothing of it at b", || b.find(&command).is_none().then_some(()))?;
        ensure!(a.find(&command).is_some(), "round {round}: it is not at home");
    }
    same_end(job, plain)
}

/// Everything that names or uses a file, said from away.
fn files(world: &World) -> Result<()> {
    let command = words("c:files dir").streams(Streams::Input);
    let (mut job, mut plain) = (start(&world.a, &command)?, start_plain(&world.a, &command)?);
    job.wait_text("ready\n")?;
    migrate(&world.a, "b")?;
    for run in [&mut job, &mut plain] {
        run.type_in(b"go\n")?;
    }
    same_end(job, plain)?;
    for file in ["held", "dir/log.1"] {
        let of = |dir| world.a.get(&format!("{dir}/{file}"));
        ensure!(of(crate::jobs::HERE)? == of(crate::jobs::PLAIN)?, "{file} differs");
        ensure!(
            !world.b.exists(&format!("{}/{file}", crate::jobs::HERE)),
            "{file} is at b"
        );
    }
    Ok(())
}

/// A read from a pipe that waits while the job moves, and end of file.
fn standard_input(world: &World) -> Result<()> {
    let command = Cmd::new(["cat"]).streams(Streams::Input);
    let mut job = start(&world.a, &command)?;
    job.type_in(b"at home\n")?;
    job.wait_text("at home\n")?;
    migrate(&world.a, "b")?;
    job.type_in(b"away\n")?;
    job.wait_text("away\n")?;
    migrate(&world.a, "home")?;
    job.type_in(b"home again")?;
    let end = job.finish()?;
    ensure!(
        end.stdout == "at home\naway\nhome again" && end.status == Status::Exit(0),
        "{end:?}"
    );
    Ok(())
}

/// A connection that stays open while its owner goes away, comes back, and goes away; the server's log is as if it had not.
fn client(world: &World, line: &str, listen: &str) -> Result<()> {
    let a = &world.a;
    let command = words(line);
    let server = a.start(&Cmd::new(["/tmp/programs/echo_server", listen, "7000", "2"]))?;
    server.wait_text("listening\n")?;
    let job = start(a, &command)?;
    job.wait_lines(5)?;
    for to in ["b", "home", "b"] {
        migrate(a, to)?;
        job.wait_more_lines(5)?;
    }
    let job = job.finish()?;
    let plain = start_plain(a, &command)?.finish()?;
    ensure!(job == plain, "the job: {job:?}\nthe plain run: {plain:?}");
    let log = server.finish()?.stdout;
    let (_, clients) = log.split_once('\n').context("a first line")?;
    let (first, second) = clients.split_at(clients.len() / 2);
    ensure!(first == second, "the server's log: {log}");
    Ok(())
}

/// A listening server moves; clients of a third host connect before and after and notice nothing.
fn server(world: &World) -> Result<()> {
    let World { a, others, .. } = world;
    let c = others.first().context("host c")?;
    let job = start(a, &words(&format!("c:echo_server {} 7000 3", a.address())))?;
    job.wait_text("listening\n")?;
    let client = words(&format!("c:echo_client {} 7000 20", a.address()));
    let expected = c.start(&client)?.finish()?;
    ensure!(expected.status == Status::Exit(0), "before the move: {expected:?}");
    let during = c.start(&client)?;
    during.wait_lines(5)?;
    migrate(a, "b")?;
    ensure!(during.finish()? == expected, "a client's output changed over the move");
    ensure!(
        c.start(&client)?.finish()? == expected,
        "a client's output changed after the move"
    );
    let log = job.finish()?;
    ensure!(
        log.stdout == format!("listening\n{}", "client 10.77.0.3\n20 lines\n".repeat(3)),
        "the server's log: {log:?}"
    );
    Ok(())
}

/// The terminal of the origin: size, raw mode, keys, the foreground.
fn terminal(world: &World) -> Result<()> {
    let command = words("c:terminal").streams(Streams::Terminal(60, 20));
    let play = |mut run: Running, moves: bool| -> Result<Running> {
        run.wait_text("60 x 20")?;
        for (to, key, size) in [("b", b'x', 90), ("home", b'y', 91), ("b", b'z', 92)] {
            if moves {
                migrate(&world.a, to)?;
            }
            run.type_in(&[key])?;
            run.wait_text(&format!("key {key}\r"))?;
            run.resize(size, 33)?;
            run.wait_text(&format!("{size} x 33"))?;
        }
        run.type_in(b"q")?;
        Ok(run)
    };
    same_end(
        play(start(&world.a, &command)?, true)?,
        play(start_plain(&world.a, &command)?, false)?,
    )
}

/// Signals sent to its PID at home: handled, queued, blocked; its timer goes on.
fn signals(world: &World) -> Result<()> {
    let a = &world.a;
    let command = words("c:signals");
    let job = start(a, &command)?;
    job.wait_text("ready\n")?;
    let pid = a.find(&command).context("the program")?;
    for (round, to) in ["b", "home", "b"].into_iter().enumerate() {
        a.signal(pid, libc::SIGUSR1)?;
        job.wait_text(&format!("usr1 {} rt {round}\n", round * 2 + 1))?;
        migrate(a, to)?;
        a.signal(pid, libc::SIGUSR1)?;
        job.wait_text(&format!("usr1 {} rt {round}\n", round * 2 + 2))?;
        a.signal(pid, libc::SIGRTMIN() + 3)?;
        job.wait_text(&format!("usr1 {} rt {}\n", round * 2 + 2, round + 1))?;
    }
    job.wait_text("ten alarms\n")?;
    a.signal(pid, libc::SIGUSR2)?;
    a.signal(pid, libc::SIGTERM)?;
    let end = job.finish()?;
    ensure!(
        end.status == Status::Exit(0) && end.stdout.ends_with("usr2 pending\n"),
        "{end:?}"
    );
    Ok(())
}

/// SIGKILL for its PID at home ends it wherever it is.
fn killed_away(world: &World) -> Result<()> {
    let World { a, b, .. } = world;
    let command = words("py:count 1000");
    let job = start(a, &command)?;
    job.wait_lines(2)?;
    let pid = a.find(&command).context("the program")?;
    migrate(a, "b")?;
    job.wait_more_lines(2)?;
    a.signal(pid, libc::SIGKILL)?;
    ensure!(job.wait()? == Status::Exit(137), "status of vrun");
    b.wait_until("the end of the guest", || b.find(&command).is_none().then_some(()))
}

/// `vctl ps` tells where it is, on both hosts; `--check` moves nothing.
fn listed(world: &World) -> Result<()> {
    let World { a, b, .. } = world;
    let command = words("c:count 40");
    let (job, plain) = (start(a, &command)?, start_plain(a, &command)?);
    job.wait_lines(2)?;
    a.ok(["vmigrate", "--check", "job", "b"])?;
    ensure!(
        a.find(&command).is_some() && b.find(&command).is_none(),
        "--check moved it"
    );
    ensure!(
        !b.ok(["vctl", "ps"])?.contains("job"),
        "it is listed at b before it is there"
    );
    migrate(a, "b")?;
    for (host, place) in [(a, "b"), (b, "job")] {
        let listed = host.ok(["vctl", "ps"])?;
        let row = listed.lines().find(|row| row.contains("job")).unwrap_or_default();
        ensure!(
            row.split_whitespace().any(|word| word == place),
            "ps on {}: {listed}",
            host.name()
        );
    }
    migrate(b, "home")?;
    ensure!(!b.ok(["vctl", "ps"])?.contains("job"), "it is still listed at b");
    same_end(job, plain)
}
