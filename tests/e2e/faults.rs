//! What breaks in the middle: any failure before the hand-over leaves the job running at its origin, there are never two of it,
//! and nothing is left behind. The other host is a real one that is killed, or [`crate::peer`], which misbehaves on purpose.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;

use crate::harness::host::BIN;
use crate::harness::{Cmd, Host, Options, Output, Running, Status, Streams, User, World, copy, trial};
use crate::jobs::{Body, HERE, as_job, migrate, ready_trial, refused, start, start_plain, text, words};

/// Answers of peers are not waited for longer than that, in seconds.
const IMPATIENT: &str = "[timeouts]\nanswer = 0.6\nhandshake = 1.5\n";
/// Where `a` has little room.
const SMALL: &str = "/tmp/vrun/state";

pub(crate) fn trials() -> Vec<Trial> {
    let user = User::Ordinary;
    // What the front says at the end goes to a pipe of the test's user.
    let root: [(&str, Body); 2] = [("supervisor_killed", supervisor_killed), ("saved_twice", saved_twice)];
    let root = root.map(|(name, body)| ready_trial(&format!("faults::{name}"), User::Root, body));
    let ready: [(&str, Body); 14] = [
        ("session_killed_before", session_killed_before),
        ("session_killed_after", session_killed_after),
        ("daemon_killed", daemon_killed),
        ("client_killed", client_killed),
        ("many_at_once", many_at_once),
        ("home_from_both", home_from_both),
        ("ends_meanwhile", ends_meanwhile),
        ("to_itself", to_itself),
        ("not_now", not_now),
        ("interrupted", interrupted),
        ("ball_c", |world| ball(world, "c:ball 64 sequence")),
        ("ball_py", |world| ball(world, "py:ball sequence")),
        ("features", features),
        ("away_and_unreachable", away_and_unreachable),
    ];
    let ready = ready.map(|(name, body)| ready_trial(&format!("faults::{name}"), user, body));
    let three = || Options {
        hosts: vec!["a", "b", "c"],
        ..user.into()
    };
    let small = Options {
        user: User::Root,
        state_of_a: "2m",
        ..three()
    };
    ready
        .into_iter()
        .chain(root)
        .chain([
            trial("faults::destination_before", three(), destination_before),
            trial("faults::destination_after", three(), destination_after),
            trial("faults::origin", three(), origin),
            trial("faults::no_memory", three(), no_memory),
            ready_trial("faults::stored", small, stored),
        ])
        .collect()
}

/// Lines of a ball: all the numbers from 1, then `done`. That no number is missing or there twice says that there never
/// were two of it, and that nothing it did was lost.
fn sound(text: &str) -> Result<usize> {
    let numbers = text.strip_suffix("done\n").context("a ball that ends well")?;
    for (expected, line) in (1..).zip(numbers.lines()) {
        ensure!(line == format!("{expected}"), "{line:?} instead of {expected}");
    }
    Ok(numbers.lines().count())
}

/// Ends a ball, and finds both of its sequences whole.
fn catch(host: &Host, job: Running) -> Result<()> {
    host.ok(["vctl", "kill", "job"])?;
    let end = job.finish()?;
    ensure!(end.status == Status::Exit(0) && end.stderr.is_empty(), "{end:?}");
    sound(&end.stdout)?;
    let file = host.text(&format!("{HERE}/sequence"))?;
    ensure!(
        format!("{file}done\n") == end.stdout,
        "the file differs from the pipe: {file}"
    );
    Ok(())
}

/// The processes of this host whose command line begins so.
fn named(host: &Host, name: &str) -> Vec<i32> {
    let pids = host.pids().into_iter();
    pids.filter(|pid| host.command_line(*pid).starts_with(name)).collect()
}

/// A number of `/proc/PID/status`.
fn status(host: &Host, pid: i32, field: &str) -> i32 {
    let status = host.proc(pid, "status");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// Waits until a guest is being built on `host`: its keeper has a child that has been emptied. Gives the session.
fn building(host: &Host) -> Result<i32> {
    host.wait_until("a guest that is being built", || {
        let vessel = host.pids().into_iter().find(|pid| {
            let parent = host.command_line(status(host, *pid, "PPid"));
            parent.starts_with("vrund --session") && host.command_line(*pid).is_empty()
        })?;
        Some(status(host, status(host, vessel, "PPid"), "PPid")).filter(|session| *session > 1)
    })
}

/// The session that has the guest with this command line.
fn session_of(host: &Host, command: &Cmd) -> Result<i32> {
    let guest = host.find(command).context("a guest")?;
    Ok(status(host, status(host, guest, "PPid"), "PPid"))
}

/// One line of `vctl ps` about the job.
fn listed(host: &Host) -> Result<String> {
    let all = host.ok(["vctl", "ps"])?;
    let row = all.lines().find(|row| row.contains("job"));
    Ok(row.with_context(|| format!("the job is not listed: {all}"))?.to_owned())
}

/// One line, one of these exit statuses.
fn one_line(output: &Output, statuses: &[i32]) -> Result<()> {
    ensure!(
        matches!(output.status, Status::Exit(code) if statuses.contains(&code)),
        "{output:?}"
    );
    // What a move that succeeds says on its last line may follow its progress.
    ensure!(
        output.status == Status::Exit(0) || output.stderr.lines().count() == 1,
        "more than one line: {output:?}"
    );
    Ok(())
}

/// Takes away the logs that jobs leave in which something went wrong.
fn forget_logs(host: &Host) -> Result<()> {
    for entry in std::fs::read_dir(host.path("/tmp/vrun/runtime/jobs"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "log") {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// A ball in the air.
fn throw(host: &Host, command: &Cmd) -> Result<Running> {
    let job = start(host, command)?;
    job.wait_lines(2)?;
    Ok(job)
}

/// The destination's session is killed while it builds.
fn session_killed_before(world: &World) -> Result<()> {
    let World { a, b, .. } = world;
    let job = throw(a, &words("c:ball 128 sequence"))?;
    for _ in 0..3 {
        let migrate = a.start(&Cmd::new(["vmigrate", "job", "b"]))?;
        b.signal(building(b)?, libc::SIGKILL)?;
        one_line(&migrate.finish()?, &[3])?;
        job.wait_more_lines(2)?;
        b.wait_until("nothing of it at b", || {
            named(b, "vrund --session").is_empty().then_some(())
        })?;
        ensure!(listed(a)?.contains("running"), "{}", listed(a)?);
    }
    migrate(a, "b")?;
    catch(a, job)
}

/// The destination's session is killed while the guest runs: the job is lost, which is said, and what is left of it can be
/// ended.
fn session_killed_after(world: &World) -> Result<()> {
    let World { a, b, .. } = world;
    let command = words("c:ball 1 sequence");
    for (signal, status) in [("TERM", 143), ("INT", 130), ("KILL", 137)] {
        let job = throw(a, &command)?;
        migrate(a, "b")?;
        job.wait_more_lines(2)?;
        b.signal(session_of(b, &command)?, libc::SIGKILL)?;
        a.wait_until("the job to be listed as lost", || {
            listed(a).is_ok_and(|row| row.contains("lost")).then_some(())
        })?;
        refused(a, "vmigrate job home", &[5], &["lost", "b"])?;
        refused(a, "vmigrate job b", &[1, 5], &["lost"])?;
        refused(a, "vctl save job -o /tmp/home/x", &[1, 5], &["b"])?;
        ensure!(job.is_running(), "the job's PID is gone");
        refused(a, "vctl kill -s USR1 job", &[1], &["lost", "vctl kill"])?;
        a.ok(["vctl", "kill", "-s", signal, "job"])?;
        ensure!(job.wait()? == Status::Exit(status), "status after SIG{signal}");
    }
    // What a dead session leaves there, the next client takes away.
    ensure!(b.ok(["vctl", "ps", "-q"])?.is_empty(), "a guest is listed at b");
    forget_logs(a)
}

/// `vrund` is killed; its guests live on, go home, and a new daemon takes them again.
fn daemon_killed(world: &World) -> Result<()> {
    let World { a, b, .. } = world;
    let job = throw(a, &words("c:ball 1 sequence"))?;
    migrate(a, "b")?;
    let daemon = *named(b, "vrund --listen").first().context("the daemon")?;
    b.signal(daemon, libc::SIGKILL)?;
    b.wait_until("the end of the daemon", || {
        named(b, "vrund --listen").is_empty().then_some(())
    })?;
    job.wait_more_lines(5)?;
    migrate(b, "home")?;
    job.wait_more_lines(2)?;
    refused(a, "vmigrate job b", &[5], &[b.address()])?;
    b.daemon()?;
    migrate(a, "b")?;
    job.wait_more_lines(2)?;
    catch(a, job)
}

/// Whoever asked for a move is killed in the middle of it: the move goes on.
fn client_killed(world: &World) -> Result<()> {
    let World { a, b, .. } = world;
    let command = words("c:ball 128 sequence");
    let job = throw(a, &command)?;
    let client = a.start(&Cmd::new(["vmigrate", "job", "b"]))?;
    building(b)?;
    client.signal(libc::SIGKILL)?;
    b.wait_until("the guest", || b.find(&command))?;
    job.wait_more_lines(2)?;
    let client = a.start(&Cmd::new(["vmigrate", "job", "home"]))?;
    client.signal(libc::SIGKILL)?;
    job.wait_more_lines(2)?;
    catch(a, job)
}

/// Without its supervisor a program at home has nobody who answers its calls, and one that is away ends on both hosts.
fn supervisor_killed(world: &World) -> Result<()> {
    let World { a, b, .. } = world;
    let command = words("c:ball 1 sequence");
    for away in [false, true] {
        let job = throw(a, &command)?;
        let program = a.find(&command).context("the program")?;
        if away {
            migrate(a, "b")?;
            job.wait_more_lines(2)?;
        }
        a.signal(status(a, program, "PPid"), libc::SIGKILL)?;
        ensure!(job.wait()? == Status::Exit(125), "status of vrun");
        // A reader that has seen the end of the deputy's stream may have stopped listening.
        let said = job.stderr();
        ensure!(
            away || said.contains("ended unexpectedly (SIGKILL)"),
            "vrun says: {said}"
        );
        if away {
            b.wait_until("the end of the guest", || b.find(&command).is_none().then_some(()))?;
            a.wait_until("the end of the deputy", || a.find(&command).is_none().then_some(()))?;
        } else {
            a.signal(program, libc::SIGKILL)?;
        }
        ensure!(a.ok(["vctl", "ps", "-q"])?.is_empty(), "it is still listed");
    }
    Ok(())
}

/// Several things are asked of one job at the same time.
fn many_at_once(world: &World) -> Result<()> {
    let a = &world.a;
    let command = words("c:ball 16 sequence");
    let job = throw(a, &command)?;
    for round in 0..4 {
        let asked = [
            "vmigrate job b",
            "vmigrate job b",
            "vctl save job --keep-running -o /tmp/home/image",
            "vmigrate job home",
            "vctl ps",
        ];
        let asked: Vec<Running> = asked.iter().map(|line| a.start(&words(line))).collect::<Result<_>>()?;
        let mut moved = 0;
        for client in asked {
            let end = client.finish()?;
            one_line(&end, &[0, 1])?;
            moved += usize::from(end.stderr.contains("moved "));
            ensure!(!end.stderr.contains("thread"), "round {round}: {end:?}");
        }
        ensure!(moved > 0, "round {round}: none of them moved it");
        job.wait_more_lines(2)?;
    }
    catch(a, job)
}

/// The way home is said on both hosts at once.
fn home_from_both(world: &World) -> Result<()> {
    let World { a, b, .. } = world;
    let command = words("c:ball 16 sequence");
    let job = throw(a, &command)?;
    for round in 0..4 {
        migrate(a, "b")?;
        job.wait_more_lines(1)?;
        let clients = [a, b].map(|host| host.start(&Cmd::new(["vmigrate", "job", "home"])));
        let mut done = 0;
        for client in clients {
            let end = client?.finish()?;
            one_line(&end, &[0, 1])?;
            done += usize::from(end.status == Status::Exit(0));
        }
        ensure!(done > 0, "round {round}: neither brought it home");
        ensure!(listed(a)?.contains("running"), "round {round}: {}", listed(a)?);
        b.wait_until("nothing of it at b", || b.find(&command).is_none().then_some(()))?;
    }
    catch(a, job)
}

/// Programs that end at about the time at which they are moved.
fn ends_meanwhile(world: &World) -> Result<()> {
    let a = &world.a;
    let (mut went, mut late) = (0, 0);
    for round in 0..12 {
        // Some of these end before a move, some in the middle of it, some after it.
        let n = 1 + round % 6 * 40;
        let command = words(&format!("c:steps {n}"));
        let job = start(a, &command)?;
        job.wait_lines(1)?;
        let client = a.run(["vmigrate", "job", "b"])?;
        one_line(&client, &[0, 1])?;
        match client.status {
            Status::Exit(0) => went += 1,
            _ => late += 1,
        }
        let end = job.finish()?;
        let lines: String = (1..=n).map(|i| format!("{i}\n")).collect();
        ensure!(
            end.stdout == lines && end.status == Status::Exit(5) && end.stderr.is_empty(),
            "round {round}: {end:?} after {client:?}"
        );
    }
    ensure!(
        went > 0 && late > 0,
        "{went} went, {late} were too late: nothing was shown"
    );
    Ok(())
}

/// A job is not moved to where it is.
fn to_itself(world: &World) -> Result<()> {
    let a = &world.a;
    let job = throw(a, &words("c:ball 1 sequence"))?;
    refused(a, "vmigrate job a", &[1], &["this host"])?;
    refused(a, "vmigrate --check job 10.77.0.1", &[1], &["this host"])?;
    refused(a, "vmigrate job home", &[1], &["at home"])?;
    migrate(a, "b")?;
    refused(a, "vmigrate job a", &[1], &["home"])?;
    job.wait_more_lines(2)?;
    catch(a, job)
}

/// What has left only a daemon is refused by name.
fn not_now(world: &World) -> Result<()> {
    let a = &world.a;
    let job = start(a, &words("c:daemonise /tmp/home/log"))?;
    ensure!(job.wait()? == Status::Exit(4), "status of the first process");
    refused(a, "vmigrate job b", &[1], &["first process has ended"])?;
    refused(a, "vctl save job -o /tmp/home/x", &[1], &["first process has ended"])?;
    a.wait_until("the daemon's work", || {
        a.text("/tmp/home/log")
            .is_ok_and(|log| log.lines().count() == 10)
            .then_some(())
    })
}

/// Ctrl-C at the terminal while the job is on its way, and while it is away.
fn interrupted(world: &World) -> Result<()> {
    let World { a, b, .. } = world;
    let command = words("c:ball 128 sequence").streams(Streams::Terminal(80, 24));
    for away in [false, true] {
        let mut job = throw(a, &command)?;
        let client = a.start(&Cmd::new(["vmigrate", "job", "b"]))?;
        if away {
            one_line(&client.finish()?, &[0])?;
            job.wait_more_lines(2)?;
            job.type_in(b"\x03")?;
        } else {
            building(b)?;
            job.type_in(b"\x03")?;
            one_line(&client.finish()?, &[0, 1])?;
        }
        ensure!(job.wait()? == Status::Exit(130), "away {away}: {}", job.stdout());
    }
    Ok(())
}

/// Away and home fifteen times each.
fn ball(world: &World, line: &str) -> Result<()> {
    let World { a, b, .. } = world;
    let command = words(line);
    let job = throw(a, &command)?;
    for round in 0..15 {
        migrate(a, "b")?;
        job.wait_more_lines(2)?;
        ensure!(b.find(&command).is_some(), "round {round}: it is not at b");
        migrate(a, "home")?;
        job.wait_more_lines(2)?;
    }
    catch(a, job)
}

/// CPU features that the destination lacks are named, and nothing has happened to the job.
fn features(world: &World) -> Result<()> {
    let World { a, b, .. } = world;
    let job = throw(a, &words("c:ball 1 sequence"))?;
    b.put(
        "/tmp/vrun/home/config.toml",
        "hide_cpu_features = [\"sse2\", \"cx16\"]\n",
    )?;
    refused(a, "vmigrate job b", &[7], &["sse2", "cx16", "b"])?;
    refused(a, "vmigrate --check job b", &[7], &["sse2", "cx16"])?;
    a.ok(["vctl", "save", "job", "--keep-running", "-o", "/tmp/home/image"])?;
    copy(a, "/tmp/home/image", b, "/tmp/home/image")?;
    refused(b, "vctl restore /tmp/home/image", &[7], &["sse2", "cx16"])?;
    b.put("/tmp/vrun/home/config.toml", "")?;
    migrate(a, "b")?;
    catch(a, job)
}

/// A job that is away stays where it is when the next host cannot be reached, refuses it, or is only asked.
fn away_and_unreachable(world: &World) -> Result<()> {
    let World { a, b, .. } = world;
    let command = words("c:ball 1 sequence");
    let job = throw(a, &command)?;
    migrate(a, "b")?;
    for (line, statuses) in [
        ("vmigrate job 10.77.0.2:9", &[5][..]),
        ("vmigrate job nowhere.invalid", &[5]),
        ("vctl send job 10.77.0.2:9", &[1, 5]),
    ] {
        refused(a, line, statuses, &[])?;
        ensure!(b.find(&command).is_some(), "after `{line}` it is not at b any more");
    }
    a.ok(["vmigrate", "--check", "job", "b"])?;
    ensure!(b.find(&command).is_some(), "after a check it is not at b any more");
    job.wait_more_lines(2)?;
    catch(a, job)
}

/// One image is restored twice, detached, with an id file; each is a job of its own.
fn saved_twice(world: &World) -> Result<()> {
    let a = &world.a;
    let command = words("c:count 40");
    let job = start(a, &command)?;
    job.wait_lines(3)?;
    a.ok(["vctl", "save", "job", "-o", "/tmp/home/image"])?;
    ensure!(job.wait()? == Status::Exit(137), "status of vrun");
    ensure!(job.stderr().contains("/tmp/home/image"), "{}", job.stderr());
    let plain = start_plain(a, &command)?.finish()?;

    let twice = [0, 1].map(|number| {
        let id_file = format!("/tmp/home/id-{number}");
        a.start(&Cmd::new(["vctl", "restore", "/tmp/home/image", "--id-file", &id_file]))
    });
    let twice = twice.into_iter().collect::<Result<Vec<_>>>()?;
    for (number, one) in twice.iter().enumerate() {
        one.wait_lines(1)?;
        let id = a.text(&format!("/tmp/home/id-{number}"))?;
        ensure!(a.ok(["vctl", "ps", "-q"])?.contains(id.trim()), "{id} is not listed");
    }
    for one in twice {
        let end = one.finish()?;
        ensure!(
            format!("{}{}", job.stdout(), end.stdout) == plain.stdout && end.status == plain.status,
            "{} and {end:?}",
            job.stdout()
        );
    }

    let detached = a.ok(["vctl", "restore", "-d", "/tmp/home/image"])?;
    ensure!(
        a.ok(["vctl", "ps", "-q"])?.contains(detached.trim()),
        "{detached} is not listed"
    );
    a.ok(["vctl", "kill", detached.trim()])?;
    a.wait_until("its end", || {
        a.ok(["vctl", "ps", "-q"]).is_ok_and(|ids| ids.is_empty()).then_some(())
    })
}

/// A misbehaving daemon at `host`, and what to call it in a failure.
fn misbehave(host: &Host, acts: &[&str]) -> Result<Running> {
    let peer = format!("{BIN}/peer");
    let mut argv = vec![peer.as_str(), "--peer", "destination", host.address()];
    argv.extend(acts);
    let peer = host.start(&Cmd::new(argv))?;
    peer.wait_text("ready\n")?;
    Ok(peer)
}

/// Every way in which a destination can fail before the hand-over, and in it.
fn destination_before(world: &World) -> Result<()> {
    let World { a, b, others, .. } = world;
    let c = others.first().context("host c")?;
    world.trust_all()?;
    b.daemon()?;
    a.put("/tmp/vrun/home/config.toml", IMPATIENT)?;
    let job = throw(a, &words("c:ball 1 sequence"))?;
    let acts: [(&str, &[i32]); 20] = [
        ("mute", &[6]),
        ("future", &[7]),
        ("silent", &[6]),
        ("close", &[5]),
        ("running", &[5]),
        ("data", &[5]),
        ("refuse", &[1]),
        ("accept-close", &[3]),
        ("accept-silent", &[3, 6]),
        ("accept-failed", &[3]),
        ("accept-pings", &[3]),
        ("image-close", &[3]),
        ("image-silent", &[3, 6]),
        ("image-failed", &[3]),
        ("image-running", &[3]),
        ("image-call", &[3]),
        ("prepared-close", &[3]),
        ("prepared-silent", &[3, 6]),
        ("prepared-failed", &[3]),
        ("prepared-call", &[3]),
    ];
    let peer = misbehave(c, &acts.map(|(act, _)| act))?;
    for (act, statuses) in acts {
        let named = if act == "refuse" { "not today" } else { "c" };
        refused(a, "vmigrate job c", statuses, &[named]).with_context(|| act.to_owned())?;
        job.wait_more_lines(1).with_context(|| act.to_owned())?;
        ensure!(listed(a)?.contains("running"), "{act}: {}", listed(a)?);
        peer.wait_text(&format!("played {act}"))?;
    }
    migrate(a, "b")?;
    catch(a, job)
}

/// What a destination can do that has the job: the origin goes on serving it, and takes it back when it is whole.
fn destination_after(world: &World) -> Result<()> {
    let World { a, others, .. } = world;
    let c = others.first().context("host c")?;
    world.trust_all()?;
    a.put("/tmp/vrun/home/config.toml", IMPATIENT)?;
    let command = words("c:ball 1 sequence").streams(Streams::Input);

    // Forged calls and a host's every bad image, then the good one.
    let peer = misbehave(c, &["calls", "cancels", "flood", "ended"])?;
    for (act, ready) in [("calls", "forged\n"), ("cancels", "cancelled\n")] {
        let job = throw(a, &command)?;
        migrate(a, "c")?;
        peer.wait_text(ready)?;
        let mut answers = BTreeMap::new();
        let home = loop {
            let end = a.run(["vmigrate", "job", "home"])?;
            if end.status == Status::Exit(0) {
                break end;
            }
            one_line(&end, &[3, 6])?;
            ensure!(listed(a)?.contains("away"), "{}: {end:?}", listed(a)?);
            ensure!(answers.len() < 40, "it does not come home: {end:?}");
            answers.insert(answers.len(), end.stderr);
        };
        ensure!(home.stderr.contains("moved "), "{home:?}");
        ensure!(answers.len() == 16, "{answers:#?}\n{}", peer.stdout());
        job.wait_more_lines(2)?;
        catch(a, job)?;
        peer.wait_text(&format!("played {act}\n"))?;
    }

    // More calls than any guest makes: the connection ends, the supervisor does not.
    let job = throw(a, &command)?;
    migrate(a, "c")?;
    peer.wait_text("played flood\n")?;
    a.wait_until("the job to be listed as lost", || {
        listed(a).is_ok_and(|row| row.contains("lost")).then_some(())
    })?;
    a.ok(["vctl", "kill", "job"])?;
    ensure!(job.wait()? == Status::Exit(143), "status of vrun after a flood");

    // The word of the host that has it counts.
    let job = throw(a, &command)?;
    migrate(a, "c")?;
    ensure!(
        job.wait()? == Status::Exit(7),
        "status of a guest that is said to have ended"
    );
    peer.wait()?;
    forget_logs(a)
}

/// What an origin can do wrong: the daemon refuses it or ends what it has built, and serves the next.
fn origin(world: &World) -> Result<()> {
    let World { a, b, others, .. } = world;
    let c = others.first().context("host c")?;
    world.trust_all()?;
    b.put("/tmp/vrun/home/config.toml", IMPATIENT)?;
    b.daemon()?;
    let job = throw(a, &words("c:ball 1 sequence"))?;
    a.ok(["vctl", "save", "job", "--keep-running", "-o", "/tmp/home/image"])?;
    copy(a, "/tmp/home/image", c, "/tmp/home/image")?;
    let peer = format!("{BIN}/peer");
    let rows = [
        ("early", &[""][..]),
        ("future", &["protocol", "bye"]),
        ("query", &["protocol", "bye"]),
        ("large", &["refused Full", "MiB"]),
        ("endless", &["refused Full", "MiB"]),
        ("foreign", &["refused Incompatible", "riscv64"]),
        ("flags", &["refused Incompatible", "warp_drive"]),
        ("pid", &["failed", "offered"]),
        ("other", &["failed", "offered"]),
        ("half-close", &[""]),
        ("half-silent", &["ended"]),
        ("half-end", &["failed", "cut off"]),
        ("half-commit", &["failed", "Commit"]),
        ("changed", &["failed", "checksum"]),
        ("trailing", &["failed", "bytes follow"]),
        ("over-ours", &["failed", "0x20000"]),
        ("overlong", &["failed", "map memory at 0x100000000000"]),
        ("no-commit", &["prepared", "ended"]),
        ("commit-close", &["commit"]),
        ("commit-twice", &["commit", "ended"]),
        ("replies", &["commit", "ended"]),
        ("flood", &["commit", "ended"]),
        ("kill", &["commit", "ended"]),
    ];
    for (act, expected) in rows {
        let end = c.run([&peer, "--peer", "origin", "b", "/tmp/home/image", act])?;
        for text in expected {
            ensure!(
                end.stdout.to_lowercase().contains(&text.to_lowercase()),
                "{act}: {text:?} in {end:?}"
            );
        }
        b.wait_until("the end of the session", || {
            named(b, "vrund --session").is_empty().then_some(())
        })
        .with_context(|| act.to_owned())?;
    }
    migrate(a, "b")?;
    job.wait_more_lines(2)?;
    catch(a, job)
}

/// A destination without memory for the job fails at a step that it names.
fn no_memory(world: &World) -> Result<()> {
    let World { a, others, .. } = world;
    let c = others.first().context("host c")?;
    world.trust_all()?;
    let limited = format!("ulimit -v 700000; exec vrund --listen {}", c.address());
    let daemon = c.start(&Cmd::new(["/bin/sh", "-c", &limited]))?;
    daemon.wait_text("ready\n")?;
    let job = throw(a, &words("c:ball 1 sequence"))?;
    refused(
        a,
        "vmigrate job c",
        &[3],
        &["c could not build", "map memory at", "memory"],
    )?;
    job.wait_more_lines(2)?;
    catch(a, job)?;
    daemon.signal(libc::SIGTERM)?;
    daemon.wait()?;
    Ok(())
}

/// Images that cannot be written where they should go, and where they end up when they can.
fn stored(world: &World) -> Result<()> {
    let World { a, others, .. } = world;
    let c = others.first().context("host c")?;
    let small = || crate::harness::report::listing(&a.path(SMALL));
    let before = small()?;
    let command = words("py:lines in.txt");
    for host in [a, c] {
        host.mkdir(HERE)?;
    }
    for dir in [HERE, crate::jobs::PLAIN] {
        a.put(&format!("{dir}/in.txt"), text(40))?;
    }
    let (job, plain) = (start(a, &command)?, start_plain(a, &command)?);
    job.wait_lines(2)?;
    refused(a, &format!("vctl save job -o {SMALL}/image"), &[3], &["space"])?;
    ensure!(small()? == before, "half an image was left: {:?}", small()?);
    refused(a, "vctl save job -o /proc/image", &[1, 3], &["/proc/image"])?;
    refused(
        a,
        "vctl save job -o /tmp/home/none/image",
        &[1, 3],
        &["/tmp/home/none/image"],
    )?;
    refused(a, "vctl save job -o /tmp/home", &[1, 3], &["/tmp/home"])?;
    job.wait_more_lines(1)?;

    // Its file is made again where it is not, and that is said; what it printed before is not printed again.
    a.ok(["vctl", "save", "job", "--with-files", "-o", "/tmp/home/image"])?;
    job.wait()?;
    copy(a, "/tmp/home/image", c, "/tmp/home/image")?;
    refused(c, "vctl restore /tmp/home/image", &[1, 7], &["/tmp/home/job/in.txt"])?;
    let end = c.run(["vctl", "restore", "--with-files", "/tmp/home/image"])?;
    let plain = plain.finish()?;
    ensure!(
        format!("{}{}", job.stdout(), end.stdout) == plain.stdout && end.status == plain.status,
        "{end:?}"
    );
    ensure!(
        end.stderr.contains("/tmp/home/job/in.txt"),
        "where the file is: {}",
        end.stderr
    );

    // A waiting receiver runs what comes next.
    let waiting = c.start(&Cmd::new(["vctl", "receive"]))?;
    let command = words("c:count 30");
    let job = a.start(&as_job(&command))?;
    job.wait_lines(3)?;
    a.ok(["vctl", "send", "job", "c"])?;
    ensure!(
        job.wait()? == Status::Exit(137) && job.stderr().contains("stored at c"),
        "{}",
        job.stderr()
    );
    let (end, plain) = (waiting.finish()?, start_plain(a, &command)?.finish()?);
    ensure!(
        format!("{}{}", job.stdout(), end.stdout) == plain.stdout && end.status == plain.status,
        "{end:?}"
    );
    ensure!(
        c.ok(["vctl", "ps", "--stored", "-q"])?.is_empty(),
        "the image is still stored"
    );
    Ok(())
}
