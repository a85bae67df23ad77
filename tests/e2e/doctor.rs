//! What cannot be: told early, by name, and without harm; and what `vctl doctor` says of hosts.

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::harness::{Cmd, Host, Status, Streams, User, World, trial};
use crate::jobs::{Body, HERE, as_job, ready_trial, refused, words};

pub(crate) fn trials() -> Vec<Trial> {
    let users = [User::Ordinary, User::Root];
    let both: [(&str, Body); 4] = [
        ("doctor::hosts", hosts),
        ("doctor::unreachable", unreachable),
        ("policy::held", held),
        ("policy::surroundings", surroundings),
    ];
    let mut all: Vec<Trial> = both
        .into_iter()
        .flat_map(|(name, body)| users.map(|user| ready_trial(name, user, body)))
        .collect();
    all.push(trial("doctor::restricted", User::Ordinary, restricted));
    all.push(ready_trial("policy::held_by_root", User::Root, held_by_root));
    all.push(trial("policy::io_uring", User::Ordinary, io_uring));
    all.push(trial("policy::small_programs", User::Ordinary, small_programs));
    all
}

/// What `vctl doctor … --json` printed, and its exit status.
fn examine(host: &Host, rest: &[&str]) -> Result<(Value, Status)> {
    let output = host.run(["vctl", "doctor", "--json"].iter().chain(rest))?;
    ensure!(output.stderr.is_empty(), "vctl doctor: {output:?}");
    let json = serde_json::from_str(&output.stdout).with_context(|| format!("{output:?}"))?;
    Ok((json, output.status))
}

/// Two hosts without a fault.
fn hosts(world: &World) -> Result<()> {
    let World { a, .. } = world;
    let (json, status) = examine(a, &["b"])?;
    ensure!(status == Status::Exit(0), "{status:?}: {json:#}");
    ensure!(json["schema"] == 1 && json["well"] == true, "{json:#}");
    let names: Vec<_> = json["hosts"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|host| &host["host"])
        .collect();
    ensure!(names == ["a", "b"], "{json:#}");
    for check in [
        "user_namespaces",
        "pid_setting",
        "time_namespaces",
        "guests",
        "ptrace",
        "seccomp",
        "pagemap_scan",
    ] {
        for host in 0..2 {
            let findings = json["hosts"][host]["findings"].as_array().into_iter().flatten();
            let grades: Vec<_> = findings
                .filter(|one| one["check"] == check)
                .map(|one| &one["grade"])
                .collect();
            ensure!(grades == ["ok"], "{check} of host {host}: {json:#}");
        }
    }
    let pair: Vec<_> = json["pair"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|one| &one["check"])
        .collect();
    ensure!(
        pair == ["keys", "protocol", "round_trip", "cpu_there", "cpu_here"],
        "{json:#}"
    );

    let text = a.ok(["vctl", "doctor", "b"])?;
    for line in ["a\n  ok ", "\nb\n  ok ", "\na and b\n  ok       keys "] {
        ensure!(text.contains(line), "no {line:?} in:\n{text}");
    }
    Ok(())
}

/// A host that is not trusted, and one whose CPU has more than ours says.
fn unreachable(world: &World) -> Result<()> {
    let World { a, .. } = world;
    let (json, status) = examine(a, &["nowhere"])?;
    ensure!(status == Status::Exit(1) && json["well"] == false, "{json:#}");
    let said = json["pair"][0]["says"].as_str().unwrap_or_default();
    ensure!(said.contains("no key is pinned for nowhere"), "{json:#}");

    a.put("/tmp/vrun/home/config.toml", "hide_cpu_features = [\"sse2\"]\n")?;
    let (json, status) = examine(a, &["b"])?;
    ensure!(status == Status::Exit(0), "{json:#}");
    let here = &json["pair"][4];
    ensure!(here["grade"] == "limited", "{json:#}");
    ensure!(
        here["says"].as_str().is_some_and(|says| says.contains("lacks sse2")),
        "{json:#}"
    );
    Ok(())
}

/// An administrator who allows no namespaces.
fn restricted(world: &World) -> Result<()> {
    let script = "echo 0 > /proc/sys/user/max_user_namespaces && exec vctl doctor";
    let output = world
        .a
        .run(["unshare", "--user", "--map-root-user", "sh", "-c", script])?;
    ensure!(output.status == Status::Exit(1), "{output:?}");
    for words in [
        "missing  user namespaces",
        "user.max_user_namespaces is 0: as root, `sysctl -w user.max_user_namespaces=…`",
    ] {
        ensure!(output.stdout.contains(words), "no {words:?} in:\n{}", output.stdout);
    }
    Ok(())
}

/// `cannot WHAT` as a job: it is told by these words at once, refused, and runs on.
fn cannot(world: &World, flags: &[&str], what: &str, named: &str, until_closed: bool) -> Result<()> {
    let World { a, .. } = world;
    let mut command = as_job(&words(&format!("c:cannot {what}")));
    command.argv.splice(1..1, flags.iter().map(|flag| (*flag).to_owned()));
    a.mkdir(HERE)?;
    let mut job = a.start(&command.streams(Streams::Input))?;
    job.wait_text("ready\n")?;
    let reason = || -> Result<Option<String>> {
        let json: Value = serde_json::from_str(&a.ok(["vctl", "ps", "--json"])?)?;
        Ok(json["jobs"][0]["not_migratable"].as_str().map(str::to_owned))
    };
    let told = reason()?.unwrap_or_default();
    ensure!(told.contains(named), "{what}: vctl ps says {told:?}, not {named:?}");
    refused(a, "vctl save job -o /tmp/home/image", &[1], &[named])?;
    refused(a, "vmigrate job b", &[1], &[named])?;
    job.type_in(b"\n")?;
    job.wait_text("free\n")?;
    if until_closed {
        ensure!(reason()?.is_none(), "{what}: {:?} when it was closed", reason()?);
    }
    job.end_input();
    ensure!(
        job.finish()?.status == Status::Exit(0),
        "{what}: the job did not run on"
    );
    Ok(())
}

fn held(world: &World) -> Result<()> {
    cannot(world, &[], "userfaultfd", "a userfaultfd", true)
}

fn held_by_root(world: &World) -> Result<()> {
    cannot(world, &[], "raw", "a raw socket", true)?;
    cannot(world, &[], "packet", "a packet socket", true)
}

fn surroundings(world: &World) -> Result<()> {
    cannot(world, &[], "namespace", "a user namespace of its own", false)?;
    cannot(world, &[], "filter", "a seccomp filter of its own", false)
}

/// Absent unless it is asked for, and then told.
fn io_uring(world: &World) -> Result<()> {
    world.ready()?;
    let command = words("c:cannot io_uring");
    let none = world.a.run(
        ["vrun", "--"]
            .iter()
            .copied()
            .chain(command.argv.iter().map(String::as_str)),
    )?;
    ensure!(none.status == Status::Exit(3), "{none:?}");
    ensure!(none.stdout == "none: Function not implemented\n", "{none:?}");
    // The machine may forbid it too (kernel.io_uring_disabled).
    let plain = world.a.start(&Cmd::new(command.argv.clone()))?.finish()?;
    if plain.status == Status::Exit(3) {
        return Ok(());
    }
    cannot(world, &["--allow-io-uring"], "io_uring", "an io_uring", true)
}

/// The smallest program of 32 bits: exit(0).
fn elf32() -> Vec<u8> {
    const CODE: &[u8] = &[0x31, 0xdb, 0x31, 0xc0, 0x40, 0xcd, 0x80]; // xor ebx, ebx; xor eax, eax; inc eax; int 0x80
    const BASE: u32 = 0x0804_8000;
    let half = |numbers: &[u16]| {
        numbers
            .iter()
            .flat_map(|number| number.to_le_bytes())
            .collect::<Vec<_>>()
    };
    let word = |numbers: &[u32]| {
        numbers
            .iter()
            .flat_map(|number| number.to_le_bytes())
            .collect::<Vec<_>>()
    };
    let size = 84 + CODE.len() as u32;
    [
        b"\x7fELF\x01\x01\x01".to_vec(),
        vec![0; 9],
        half(&[2, 3]),
        word(&[1, BASE + 84, 52, 0, 0]),
        half(&[52, 32, 1, 0, 0, 0]),
        word(&[1, 0, BASE, BASE, size, size, 5, 4096]),
        CODE.to_vec(),
    ]
    .concat()
}

/// Programs of 32 bits are refused with a sentence, also behind a `#!`, and also when the job executes one later.
fn small_programs(world: &World) -> Result<()> {
    let World { a, .. } = world;
    a.put("/tmp/home/small", elf32())?;
    a.put("/tmp/home/script", "#!/tmp/home/small\n")?;
    for name in ["small", "script"] {
        let path = format!("/tmp/home/{name}");
        a.make_executable(&path)?;
        let output = a.run(["vrun", "--", &path])?;
        ensure!(output.status == Status::Exit(126), "{name}: {output:?}");
        ensure!(
            output.stderr.lines().count() == 1 && output.stderr.contains("32-bit program"),
            "{name}: {output:?}"
        );
        let later = a.run(["vrun", "-v", "--", "env", &path])?;
        ensure!(later.status == Status::Exit(126), "{name}, later: {later:?}");
        ensure!(
            later.stderr.contains("Operation not permitted"),
            "{name}, later: {later:?}"
        );
        ensure!(
            later.stderr.contains("was not executed: it is a 32-bit program"),
            "{name}, later: {later:?}"
        );
    }
    Ok(())
}
