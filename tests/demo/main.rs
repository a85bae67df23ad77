//! The main job as a story: a Python program in the middle of its work goes to another host and comes home again.
//!
//! `make demo` runs it with `story`; without that it is a test like the others, so that the demo cannot rot.

#[path = "../harness/mod.rs"]
mod harness;

use std::time::Instant;

use anyhow::{Result, ensure};
use libtest_mimic::Arguments;

use harness::host::become_keeper_if_asked;
use harness::{Cmd, Host, Options, Output, Running, Status, User, World};

/// A text that every Debian has.
const TEXT: &str = "/usr/share/common-licenses/GPL-3";

fn main() {
    become_keeper_if_asked();
    if std::env::args().nth(1).as_deref() == Some("story") {
        let told = World::new(User::Ordinary).and_then(|world| {
            harness::report::judge("demo", &world, || story(&world, true)).map_err(anyhow::Error::msg)
        });
        if let Err(error) = told {
            eprintln!("\nNot as it should be: {error:#}");
            std::process::exit(1);
        }
        return;
    }
    let trial = harness::trial("demo", Options::from(User::Ordinary), |world| story(world, false));
    libtest_mimic::run(&Arguments::from_args(), vec![trial]).exit();
}

/// Tells the story, aloud or not.
struct Teller {
    aloud: bool,
    start: Instant,
}

impl Teller {
    /// A sentence of the story.
    fn say(&self, text: &str) {
        if self.aloud {
            println!("\n\x1b[1m{text}\x1b[0m");
        }
    }

    /// A line with the time since the start.
    fn line(&self, host: &Host, text: &str) {
        if self.aloud {
            println!("{:6.2} s  {}  {text}", self.start.elapsed().as_secs_f64(), host.name());
        }
    }

    /// Something that a program on a host has printed.
    fn printed(&self, host: &Host, text: &str) {
        text.lines().for_each(|line| self.line(host, &format!("    {line}")));
    }

    /// Runs a command on a host, which must succeed.
    fn run(&self, host: &Host, command: &str) -> Result<Output> {
        self.line(host, &format!("\x1b[36m$ {command}\x1b[0m"));
        let before = Instant::now();
        let output = host.run(command.split(' '))?;
        self.printed(host, &output.stdout);
        self.printed(host, &output.stderr);
        if command.starts_with("vmigrate") {
            self.line(
                host,
                &format!("    (the command took {:.0} ms)", before.elapsed().as_secs_f64() * 1e3),
            );
        }
        ensure!(
            output.status == Status::Exit(0),
            "`{command}` on {} ended with {:?}",
            host.name(),
            output.status
        );
        Ok(output)
    }

    /// Starts a command on a host.
    fn start(&self, host: &Host, command: &str) -> Result<Running> {
        self.line(host, &format!("\x1b[36m$ {command} &\x1b[0m"));
        host.start(&Cmd::new(command.split(' ')))
    }

    /// Waits for a line of the program and shows the last one.
    fn watch(&self, host: &Host, job: &Running, lines: usize) -> Result<()> {
        job.wait_lines(lines)?;
        self.printed(host, job.stdout().lines().last().unwrap_or_default());
        Ok(())
    }
}

fn story(world: &World, aloud: bool) -> Result<()> {
    let World { a, b, .. } = world;
    let teller = Teller {
        aloud,
        start: Instant::now(),
    };
    let program = |result: &str| {
        format!(
            "/usr/bin/python3 -SE /tmp/programs/demo.py {TEXT} {result} {} 7000",
            a.address()
        )
    };
    let server = format!("/tmp/programs/echo_server {} 7000 2", a.address());
    let lines = a.get(TEXT)?.iter().filter(|byte| **byte == b'\n').count();

    teller.say(
        "Two hosts that share nothing but a network cable. `b` has our four programs and what they link to; no Python.",
    );
    teller.line(
        a,
        &format!("{}, a Debian with Python and {TEXT}, {lines} lines", a.address()),
    );
    let here = ["/usr/bin/python3", TEXT, "/usr/lib/x86_64-linux-gnu/libc.so.6"];
    let have = |host: &Host| {
        here.map(|path| format!("{path}: {}", if host.exists(path) { "yes" } else { "no" }))
            .join(", ")
    };
    teller.line(a, &have(a));
    teller.line(b, &have(b));
    ensure!(
        here.iter().all(|path| a.exists(path) && !b.exists(path)),
        "the hosts are not what they should be"
    );

    teller.say("They learn each other's keys, and a daemon runs on each.");
    world.trust_all()?;
    for host in [a, b] {
        teller.line(host, &format!("\x1b[36m$ vrund --listen {} &\x1b[0m", host.address()));
        host.daemon()?;
        teller.printed(host, "ready");
    }

    teller.say("First a plain run, to compare with; it talks to a server over one TCP connection all the time.");
    let server = teller.start(a, &server)?;
    server.wait_lines(1)?;
    let before = Instant::now();
    let command = program("/tmp/home/plain.txt");
    teller.line(a, &format!("\x1b[36m$ {command}\x1b[0m"));
    let plain = a.run(command.split(' '))?;
    teller.printed(a, plain.stdout.lines().last().unwrap_or_default());
    let alone = before.elapsed();
    ensure!(plain.status == Status::Exit(0), "the plain run failed: {plain:?}");

    teller.say("Now the same as a job.");
    let before = Instant::now();
    let job = teller.start(a, &format!("vrun -n demo -- {}", program("/tmp/home/moved.txt")))?;
    teller.watch(a, &job, 3)?;
    teller.run(a, "vctl ps")?;

    teller.say("In the middle of its work it goes to b.");
    teller.run(a, "vmigrate demo b")?;
    teller.watch(b, &job, 6)?;
    let away = Cmd::new(program("/tmp/home/moved.txt").split(' '));
    let pid = b.find(&away);
    ensure!(pid.is_some(), "no process of the program is at b");
    let pid = pid.unwrap_or_default();
    teller.line(b, &format!("process {pid} of b: {}", b.command_line(pid)));
    for host in [a, b] {
        teller.run(host, "vctl ps")?;
    }
    teller.watch(b, &job, 8)?;

    teller.say("And home again.");
    teller.run(a, "vmigrate demo home")?;
    teller.watch(a, &job, 10)?;
    teller.run(a, "vctl ps")?;
    let end = job.finish()?;
    teller.printed(a, end.stdout.lines().last().unwrap_or_default());
    let moved = before.elapsed();

    teller.say("Is anything different from the plain run?");
    let log = server.finish()?.stdout;
    let clients: Vec<&str> = log.lines().skip(1).collect();
    let (first, second) = clients.split_at(clients.len() / 2);
    let written = (a.get("/tmp/home/plain.txt")?, a.get("/tmp/home/moved.txt")?);
    let verdicts = [
        (
            "its output",
            format!("{} bytes", end.stdout.len()),
            end.stdout == plain.stdout,
        ),
        (
            "its errors",
            format!("{} bytes", end.stderr.len()),
            end.stderr == plain.stderr,
        ),
        (
            "its exit status",
            format!("{:?}", end.status),
            end.status == plain.status,
        ),
        (
            "the file it wrote",
            format!("{} bytes", written.1.len()),
            written.0 == written.1 && !written.1.is_empty(),
        ),
        (
            "the server's log",
            second.join(", "),
            first == second && !first.is_empty(),
        ),
        ("its files at b", "none".to_owned(), !b.exists("/tmp/home/moved.txt")),
    ];
    for (what, value, same) in &verdicts {
        teller.line(
            a,
            &format!(
                "{} {what:18} {value}",
                if *same {
                    "\x1b[32msame\x1b[0m     "
                } else {
                    "\x1b[31mDIFFERENT\x1b[0m"
                }
            ),
        );
    }
    let times = format!(
        "{:.2} s alone, {:.2} s with two moves",
        alone.as_secs_f64(),
        moved.as_secs_f64()
    );
    ensure!(
        verdicts.iter().all(|(_, _, same)| *same),
        "the moved run differs from the plain one ({times})"
    );
    teller.say(&format!("Nothing differs. {times}."));
    Ok(())
}
