//! The hosts themselves, tried with ordinary programs: do they share what they must not, does a command get what it should?

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;

use crate::harness::{Cmd, Options, Status, Streams, User, World, copy, trial};

pub(crate) fn trials() -> Vec<Trial> {
    let both =
        |name: &str, body: fn(&World) -> Result<()>| [User::Ordinary, User::Root].map(|user| trial(name, user, body));
    let mut all = Vec::new();
    all.extend(both("hosts::are_apart", are_apart));
    all.extend(both("hosts::talk_by_tcp", talk_by_tcp));
    all.extend(both("hosts::commands", commands));
    all.extend(both("hosts::terminal", terminal));
    let three = Options {
        hosts: vec!["a", "b", "c"],
        state_of_b: "64k",
        ..User::Ordinary.into()
    };
    all.push(trial("hosts::three", three, three_hosts));
    all
}

/// Files, PIDs, names and users are a host's own; the destination has no file of any program.
fn are_apart(world: &World) -> Result<()> {
    let World { a, b, .. } = world;
    a.put("/tmp/home/file", "of a")?;
    ensure!(
        a.exists("/tmp/home/file") && !b.exists("/tmp/home/file"),
        "a file of a is at b"
    );
    for path in [
        "/usr/bin",
        "/lib/x86_64-linux-gnu",
        "/usr/lib/x86_64-linux-gnu",
        "/tmp/programs",
        "/home",
        "/sys",
    ] {
        ensure!(!b.exists(path), "{path} is at b");
    }
    ensure!(a.ok(["hostname"])? == "a\n", "host name");
    let pids = a.ok(["sh", "-c", "echo /proc/[0-9]*"])?;
    ensure!(pids.split_whitespace().count() <= 3, "PIDs of others at a: {pids}");
    let uid = if a.user() == User::Root { "0" } else { "1000" };
    ensure!(a.ok(["id", "-u"])?.trim() == uid, "uid at a");
    let caps = a.ok(["grep", "CapEff", "/proc/self/status"])?;
    ensure!(
        caps.contains("0000000000000000") == (a.user() == User::Ordinary),
        "capabilities of the user: {caps}"
    );
    ensure!(
        a.ok(["stat", "-c", "%U", "/tmp/home/file"])?.trim() != "nobody",
        "owner"
    );
    let made = a.run([
        "unshare",
        "--user",
        "--map-root-user",
        "--mount",
        "--pid",
        "--fork",
        "mount",
        "-t",
        "proc",
        "p",
        "/proc",
    ])?;
    ensure!(made.status == Status::Exit(0), "namespaces inside a host: {made:?}");
    Ok(())
}

/// A server in the bare root, a client at `a`.
fn talk_by_tcp(world: &World) -> Result<()> {
    let World { a, b, .. } = world;
    copy(a, "/tmp/programs/echo_server", b, "/tmp/home/echo_server")?;
    b.make_executable("/tmp/home/echo_server")?;
    let server = b.start(&Cmd::new(["/tmp/home/echo_server", b.address(), "7000", "1"]))?;
    server.wait_text("listening\n")?;
    let client = a.run([
        "python3",
        "-SE",
        "/tmp/programs/echo_client.py",
        b.address(),
        "7000",
        "3",
    ])?;
    ensure!(client.status == Status::Exit(0), "client: {client:?}");
    ensure!(client.stdout.contains("3 line 3 sum "), "client: {client:?}");
    let server = server.finish()?;
    ensure!(
        server.status == Status::Exit(0) && server.stdout.contains("10.77.0.1"),
        "server: {server:?}"
    );
    Ok(())
}

/// Exit statuses, signals, streams.
fn commands(world: &World) -> Result<()> {
    let a = &world.a;
    ensure!(a.run(["true"])?.status == Status::Exit(0), "true");
    ensure!(a.run(["sh", "-c", "exit 7"])?.status == Status::Exit(7), "exit");
    ensure!(a.run(["no-such-program"]).is_err(), "a missing program");
    let sleeper = a.start(&Cmd::new(["sleep", "1000"]))?;
    sleeper.signal(40)?;
    ensure!(sleeper.wait()? == Status::Signal(40), "a real-time signal");
    let mut cat = a.start(&Cmd::new(["cat"]).streams(Streams::Input))?;
    cat.type_in(b"there\n")?;
    cat.wait_text("there\n")?;
    ensure!(cat.is_running(), "it ended before its input");
    ensure!(cat.finish()?.status == Status::Exit(0), "cat");
    let out = a.run(["sh", "-c", "echo out; echo err >&2; pwd"])?;
    ensure!(out.stdout == "out\n/tmp/home\n" && out.stderr == "err\n", "{out:?}");
    let many = a.run(["seq", "100000"])?;
    ensure!(many.stdout.lines().last() == Some("100000"), "a long output was cut");
    Ok(())
}

/// A command in a terminal of its host: size, name, keys.
fn terminal(world: &World) -> Result<()> {
    let mut shell = world.a.start(
        &Cmd::new(["bash", "--norc"])
            .env("PS1", "> ")
            .streams(Streams::Terminal(100, 30)),
    )?;
    shell.wait_text("> ")?;
    shell.type_in(b"stty size; tty\n")?;
    shell.wait_text("30 100\r\n/dev/pts/0\r\n")?;
    shell.resize(80, 24)?;
    shell.type_in(b"stty size\n")?;
    shell.wait_text("24 80\r\n")?;
    shell.type_in(b"sleep 1000\n")?;
    let sleep = Cmd::new(["sleep", "1000"]);
    world.a.wait_until("sleep", || world.a.find(&sleep))?;
    shell.type_in(b"\x03")?;
    shell.wait_text("^C")?;
    shell.type_in(b"exit 5\n")?;
    ensure!(shell.finish()?.status == Status::Exit(5), "exit status of the shell");
    Ok(())
}

/// A third host has the machine's files; the size of a host's store is its own.
fn three_hosts(world: &World) -> Result<()> {
    let c = world.others.first().context("host c")?;
    let server = c.start(&Cmd::new(["/tmp/programs/echo_server", c.address(), "7000", "1"]))?;
    server.wait_text("listening\n")?;
    let client = world.a.run(["/tmp/programs/echo_client", c.address(), "7000", "2"])?;
    ensure!(client.status == Status::Exit(0), "client: {client:?}");
    ensure!(server.finish()?.status == Status::Exit(0), "server");
    let full = world.b.put("/tmp/vrun/state/big", vec![0; 1 << 20]);
    ensure!(full.is_err(), "a store of 64 KiB took 1 MiB");
    Ok(())
}
