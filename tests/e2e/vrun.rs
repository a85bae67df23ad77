//! Programs under `vrun` without any move: nobody notices.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;

use crate::harness::{Cmd, Running, Status, Streams, User, World, trial};
use crate::jobs::{Body, HERE, as_job, same_end, start, start_plain, words};

pub(crate) fn trials() -> Vec<Trial> {
    let rows: [(&str, Body); 9] = [
        ("statuses", statuses),
        ("own_failures", own_failures),
        ("kinds", kinds),
        ("transparent", transparent),
        ("terminal", terminal),
        ("keys", keys),
        ("job_control", job_control),
        ("daemonises", daemonises),
        ("detached", detached),
    ];
    let users = [User::Ordinary, User::Root];
    rows.into_iter()
        .flat_map(|(name, body)| users.map(|user| trial(&format!("vrun::{name}"), user, body)))
        .collect()
}

/// The program's own exit status, or 128+N.
fn statuses(world: &World) -> Result<()> {
    for (script, status) in [
        ("exit 0", 0),
        ("exit 1", 1),
        ("exit 255", 255),
        ("kill -9 $$", 137),
        ("kill -TERM $$", 143),
    ] {
        let output = world.a.run(["vrun", "--", "sh", "-c", script])?;
        ensure!(output.status == Status::Exit(status), "`{script}`: {output:?}");
        ensure!(
            output.stdout.is_empty() && output.stderr.is_empty(),
            "`{script}` should be silent: {output:?}"
        );
    }
    Ok(())
}

/// 125, 126 and 127 with one line.
fn own_failures(world: &World) -> Result<()> {
    world.a.put("/tmp/home/plain-text", "no program\n")?;
    let rows = [
        (&["vrun", "--", "no-such-program"][..], 127, "no-such-program"),
        (&["vrun", "--", "/no/such/program"], 127, "/no/such/program"),
        (&["vrun", "--", "/tmp/home/plain-text"], 126, "/tmp/home/plain-text"),
        (&["vrun", "--", "/tmp/home"], 126, "/tmp/home"),
    ];
    for (argv, status, named) in rows {
        let output = world.a.run(argv)?;
        ensure!(output.status == Status::Exit(status), "{argv:?}: {output:?}");
        ensure!(
            output.stderr.lines().count() == 1 && output.stderr.contains(named),
            "{argv:?}: {output:?}"
        );
    }
    for argv in [&["vrun"][..], &["vrun", "--no-such-flag", "true"]] {
        ensure!(world.a.run(argv)?.status == Status::Exit(125), "{argv:?}");
    }
    Ok(())
}

/// Static, dynamic, stripped, interpreted.
fn kinds(world: &World) -> Result<()> {
    for line in [
        "c:count",
        "c:count-static",
        "c:count-stripped",
        "c:count-static-stripped",
        "py:count",
    ] {
        let command = words(line).args(["5"]);
        same_end(start(&world.a, &command)?, start_plain(&world.a, &command)?)?;
    }
    Ok(())
}

/// Environment, arguments, input, descriptors, children: as without us.
fn transparent(world: &World) -> Result<()> {
    let scripts = [
        "env | grep -v ^PWD | sort",
        "printf '<%s>' 'a b' '' 'c\\d' \"$0\"",
        "ls -l /proc/self/fd | wc -l",
        "umask; ulimit -n; nice; cat /proc/self/oom_score_adj",
        "grep -E '^Sig(Blk|Ign)' /proc/self/status",
        "cat /proc/self/comm; cat | tr a-z A-Z | sort | uniq -c",
        "(sleep 0.05; echo late) & wait; echo $?",
        "trap 'echo caught; exit 9' TERM; kill -TERM $$",
    ];
    for script in scripts {
        let command = Cmd::new(["sh", "-c", script]);
        same_end(start(&world.a, &command)?, start_plain(&world.a, &command)?)?;
    }
    let command = Cmd::new(["cat"]).streams(Streams::Input);
    let (mut job, mut plain) = (start(&world.a, &command)?, start_plain(&world.a, &command)?);
    for run in [&mut job, &mut plain] {
        run.type_in(b"some\ninput")?;
    }
    same_end(job, plain)
}

/// isatty, colours, raw mode, window size.
fn terminal(world: &World) -> Result<()> {
    let list = Cmd::new(["ls", "--color=auto", "-C", "/usr"]).streams(Streams::Terminal(60, 20));
    let (job, plain) = (start(&world.a, &list)?, start_plain(&world.a, &list)?);
    plain.wait_text("\x1b[")?;
    same_end(job, plain)?;

    let command = words("c:terminal").streams(Streams::Terminal(60, 20));
    let play = |mut run: Running| -> Result<Running> {
        run.wait_text("60 x 20")?;
        run.type_in(b"x")?;
        run.wait_text("key 120")?;
        run.resize(90, 33)?;
        run.wait_text("90 x 33")?;
        run.type_in(b"\x03")?;
        run.wait_text("key 3\r")?;
        run.type_in(b"q")?;
        Ok(run)
    };
    same_end(
        play(start(&world.a, &command)?)?,
        play(start_plain(&world.a, &command)?)?,
    )
}

/// Ctrl-C and Ctrl-\ end the program, whose status says so.
fn keys(world: &World) -> Result<()> {
    for (key, signal) in [(3, libc::SIGINT), (0x1c, libc::SIGQUIT)] {
        let command = Cmd::new(["sleep", "1000"]).streams(Streams::Terminal(80, 24));
        let mut job = start(&world.a, &command)?;
        world.a.wait_until("the program", || world.a.find(&command))?;
        job.type_in(&[key])?;
        let status = job.wait()?;
        ensure!(status.as_shell() == 128 + signal, "after the key {key}: {status:?}");
    }
    Ok(())
}

/// Ctrl-Z, `fg`, `bg` and `$?` in a real shell.
fn job_control(world: &World) -> Result<()> {
    // Without line editing there is nothing but text around what the program prints.
    let bash = Cmd::new(["bash", "--norc", "--noediting", "-i"]).env("PS1", "> ");
    let mut shell = world.a.start(&bash.streams(Streams::Terminal(200, 50)))?;
    shell.wait_text("> ")?;
    shell.type_in(b"vrun -- /tmp/programs/count 40\n")?;
    shell.wait_text("\n5\r\n")?;
    shell.type_in(b"\x1a")?;
    shell.wait_text("Stopped")?;
    let count = words("c:count 40");
    let pid = world.a.find(&count).context("the program is gone")?;
    ensure!(
        world.a.proc(pid, "status").contains("State:\tT"),
        "the program is not stopped"
    );
    shell.type_in(b"fg\n")?;
    shell.wait_text("\n40\r\n")?;
    shell.type_in(b"echo status $?\n")?;
    shell.wait_text("status 3\r\n")?;
    let lines: Vec<i32> = shell
        .stdout()
        .lines()
        .filter_map(|line| line.trim().parse().ok())
        .collect();
    ensure!(
        lines == (1..=40).collect::<Vec<_>>(),
        "the numbers that came: {lines:?}"
    );
    shell.type_in(b"exit\n")?;
    shell.wait()?;
    Ok(())
}

/// `vrun` returns the first process's status at once, and the job lives on.
fn daemonises(world: &World) -> Result<()> {
    let job = start(&world.a, &words("c:daemonise out"))?;
    ensure!(
        job.wait_within(Duration::from_secs(10))? == Status::Exit(4),
        "status of the first process"
    );
    let written = || world.a.text(&format!("{HERE}/out")).unwrap_or_default();
    ensure!(written().lines().count() < 10, "vrun waited for the daemon");
    let listed = world.a.ok(["vctl", "ps"])?;
    ensure!(listed.contains("job"), "the job is not listed any more: {listed}");
    world.a.wait_until("the daemon's last line", || {
        (written().lines().last() == Some("10")).then_some(())
    })
}

/// `-d` prints the ID, `--id-file` writes it, `ps`, `ps -q` and `kill` know it by ID, name and PID.
fn detached(world: &World) -> Result<()> {
    let a = &world.a;
    let command = Cmd::new(["sleep", "1000"]);
    let printed = a.ok(as_job(&command)
        .argv
        .iter()
        .map(String::as_str)
        .map(|word| if word == "--" { "-d" } else { word }))?;
    let id = printed.trim();
    ensure!(printed.lines().count() == 1 && !id.is_empty(), "it printed {printed:?}");
    ensure!(a.ok(["vctl", "ps", "-q"])?.trim() == id, "ps -q does not print {id}");
    let listed = a.ok(["vctl", "ps"])?;
    ensure!(listed.contains(id) && listed.contains("job"), "ps: {listed}");
    let json: serde_json::Value = serde_json::from_str(&a.ok(["vctl", "ps", "--json"])?)?;
    ensure!(json["schema"] == 1, "ps --json: {json}");
    let pid = a.wait_until("the program", || a.find(&command))?;
    a.ok(["vctl", "kill", "-s", "0", &pid.to_string()])?;
    a.ok(["vctl", "kill", "job"])?;
    a.wait_until("its end", || a.find(&command).is_none().then_some(()))?;

    let second = a.start(&Cmd::new(["vrun", "--id-file", "/tmp/home/id", "--"]).args(&command.argv))?;
    let id = a.wait_until("the ID", || a.text("/tmp/home/id").ok().filter(|id| id.ends_with('\n')))?;
    a.ok(["vctl", "kill", "-s", "TERM", id.trim()])?;
    ensure!(second.wait()? == Status::Exit(143), "status after TERM");
    Ok(())
}
