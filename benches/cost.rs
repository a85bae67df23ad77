//! What vrun costs: one run, one table, everything beside what it has to be compared with.
//!
//! | part | the figure | beside |
//! |---|---|---|
//! | at home | a loop of one thing, under `vrun` | the same program without it |
//! | a move | 64 MiB of random bytes that go on being written, away and home again | the same bytes over a plain TCP connection |
//! | away | `pread` of 4 KiB of a file at home | the same call at home; a round trip of as many bytes over plain TCP |
//!
//! Two hosts of `tests/harness`, joined by a veth pair; the ordinary user. What is compared is measured in turns, round
//! by round, so that whatever else the machine does falls on both. A figure is the median of the rounds; a ratio is the
//! median of the rounds' ratios, with the smallest and the largest. `make bench` runs it.

#[path = "../tests/harness/mod.rs"]
mod harness;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use harness::host::become_keeper_if_asked;
use harness::{Cmd, Host, Running, Status, Streams, User, World};

/// Rounds of what is compared.
const ROUNDS: usize = 7;
/// Moves away, and as many home.
const MOVES: usize = 5;
/// Memory of the job that moves.
const MIB: u64 = 64;
/// Calls in one measurement of calls away from home.
const CALLS: usize = 1000;
/// Where the programs are, on both hosts.
const HERE: &str = "/tmp/home";
const PORT: &str = "7000";

fn main() {
    become_keeper_if_asked();
    let measured = World::new(User::Ordinary)
        .and_then(|world| harness::report::judge("cost", &world, || measure(&world)).map_err(anyhow::Error::msg));
    if let Err(error) = measured {
        eprintln!("cost: {error:#}");
        std::process::exit(1);
    }
}

fn measure(world: &World) -> Result<()> {
    println!("{}", machine()?);
    world.ready()?;
    install(&["loops", "dirty", "reads", "tcp"], &world.a)?;
    install(&["tcp"], &world.b)?;
    let server = world.b.start(&program("tcp", &["serve", PORT]))?;
    server.wait_text("listening\n")?;

    at_home(&world.a)?;
    a_move(world)?;
    calls_away(world)?;
    println!("\n{}", load()?);
    server.signal(libc::SIGKILL)?;
    server.wait()?;
    Ok(())
}

/// Programs that run at home, with and without us.
fn at_home(a: &Host) -> Result<()> {
    println!("\nAt home, {ROUNDS} rounds in turns           without vrun     under vrun   ratio");
    a.put(&format!("{HERE}/file"), "something")?;
    let file = format!("{HERE}/file");
    for (what, arguments) in [
        ("a step of a computation", vec!["compute", "100000000"]),
        ("getppid, a call that is not tracked", vec!["getppid", "1000000"]),
        ("open + close", vec!["open", "20000", &file]),
        ("fork + exec + wait", vec!["spawn", "100"]),
    ] {
        let plain = program("loops", &arguments);
        let pairs = rounds(|| Ok((number(&a.ok(&plain.argv)?)?, number(&a.ok(&under_vrun(&plain).argv)?)?)))?;
        compare(what, &pairs);
    }
    let nothing = program("loops", &["nothing", "0"]);
    let elapsed = |command: &Cmd| {
        let start = Instant::now();
        a.ok(&command.argv).map(|_| start.elapsed().as_secs_f64() * 1e9)
    };
    let pairs = rounds(|| Ok((elapsed(&nothing)?, elapsed(&under_vrun(&nothing))?)))?;
    compare("start and end of a program", &pairs);
    Ok(())
}

/// What `vmigrate --json` says, and what the program has seen.
struct Moved {
    bytes: f64,
    total: f64,
    downtime: f64,
    pause: f64,
}

/// A job of 64 MiB that goes away and comes home.
fn a_move(world: &World) -> Result<()> {
    let World { a, b, .. } = world;
    let mib = MIB.to_string();
    let command = program("dirty", &[&mib]);
    let job = a.start(&under_vrun(&command))?;
    job.wait_text("ready\n")?;
    let (mut away, mut home, mut plain) = (Vec::new(), Vec::new(), Vec::new());
    let bytes = (MIB << 20).to_string();
    for _ in 0..MOVES {
        plain.push(number(
            &a.ok(program("tcp", &["ask", b.address(), PORT, "1", &bytes]).argv)?,
        )?);
        away.push(migrate(a, &job, "b")?);
        home.push(migrate(a, &job, "home")?);
    }
    a.ok(["vctl", "kill", "job"])?;
    ensure!(
        job.wait()? == Status::Exit(0),
        "the job found its memory changed: {:?}",
        job.stderr()
    );

    println!(
        "\nA job of {MIB} MiB, {MOVES} moves each way          downtime     the program's pause          total          sent"
    );
    for (what, moves) in [("away", &away), ("home", &home)] {
        let of = |figure: fn(&Moved) -> f64| median(moves.iter().map(figure).collect());
        println!(
            "  {what:<36} {:>13} {:>23} {:>14} {:>9.1} MiB",
            time(of(|moved| moved.downtime)),
            time(of(|moved| moved.pause)),
            time(of(|moved| moved.total)),
            of(|moved| moved.bytes) / f64::from(1 << 20),
        );
    }
    println!(
        "  {:<36} {:>53}",
        "as much over a plain TCP connection",
        time(median(plain))
    );
    Ok(())
}

/// One move; the pause is the longest that the program has seen since it was asked for.
fn migrate(a: &Host, job: &Running, to: &str) -> Result<Moved> {
    let before = job.stdout().lines().count();
    let json: serde_json::Value = serde_json::from_str(&a.ok(["vmigrate", "--json", "job", to])?)?;
    let figure = |name: &str| json[name].as_f64().with_context(|| format!("{name} in {json}"));
    let moved = (
        figure("bytes")?,
        figure("total_us")? * 1e3,
        figure("downtime_us")? * 1e3,
    );
    // It prints one line for each pause of more than 5 ms; that of the move is the longest.
    job.wait_lines(before + 1)?;
    let pauses = job
        .stdout()
        .lines()
        .skip(before)
        .map(number)
        .collect::<Result<Vec<_>>>()?;
    let pause = pauses.into_iter().fold(0.0, f64::max) * 1e6;
    Ok(Moved {
        bytes: moved.0,
        total: moved.1,
        downtime: moved.2,
        pause,
    })
}

/// System calls that go home, beside plain round trips over the same link.
fn calls_away(world: &World) -> Result<()> {
    let World { a, b, .. } = world;
    a.put(&format!("{HERE}/page"), vec![7; 4096])?;
    let calls = CALLS.to_string();
    let command = program("reads", &[&format!("{HERE}/page"), &calls]);
    let mut job = a.start(&under_vrun(&command).streams(Streams::Input))?;
    let mut lines = 0;
    let mut once = |job: &mut Running| -> Result<f64> {
        job.type_in(b"go\n")?;
        lines += 1;
        job.wait_lines(lines)?;
        number(job.stdout().lines().last().unwrap_or_default())
    };
    let home = rounds(|| once(&mut job))?;
    a.ok(["vmigrate", "job", "b"])?;
    let tcp = program("tcp", &["ask", b.address(), PORT, &calls, "4096"]);
    let pairs = rounds(|| Ok((number(&a.ok(&tcp.argv)?)?, once(&mut job)?)))?;
    ensure!(job.finish()?.status == Status::Exit(0), "the job failed");

    println!("\nAway, {ROUNDS} rounds of {CALLS} in turns           plain TCP           away   ratio");
    compare("pread of 4 KiB, a round trip each", &pairs);
    println!("  {:<36} {:>13}", "the same pread before, at home", time(median(home)));
    Ok(())
}

/// A program of ours with its arguments.
fn program(name: &str, arguments: &[&str]) -> Cmd {
    Cmd::new([format!("{HERE}/{name}")]).args(arguments)
}

/// The same as a job.
fn under_vrun(command: &Cmd) -> Cmd {
    Cmd::new(["vrun", "-n", "job", "--"]).args(&command.argv)
}

/// Compiles programs and puts them on a host.
fn install(names: &[&str], host: &Host) -> Result<()> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/programs");
    let out = harness::programs::target().join("bench-programs");
    fs::create_dir_all(&out)?;
    for name in names {
        let (to, there) = (out.join(name), format!("{HERE}/{name}"));
        let mut compiler = Command::new("cc");
        compiler
            .args(["-O2", "-Wall", "-Werror", "-o"])
            .args([&to, &source.join(format!("{name}.c"))]);
        ensure!(
            compiler.status().context("a C compiler is needed")?.success(),
            "failed: {compiler:?}"
        );
        host.put(&there, fs::read(to)?)?;
        host.make_executable(&there)?;
    }
    Ok(())
}

/// What was measured in each round.
fn rounds<T>(mut round: impl FnMut() -> Result<T>) -> Result<Vec<T>> {
    (0..ROUNDS).map(|_| round()).collect()
}

/// One line: both medians and the ratios of the pairs.
fn compare(what: &str, pairs: &[(f64, f64)]) {
    let medians = [0, 1].map(|side| {
        median(
            pairs
                .iter()
                .map(|pair| if side == 0 { pair.0 } else { pair.1 })
                .collect(),
        )
    });
    let mut ratios: Vec<f64> = pairs.iter().map(|(first, second)| second / first).collect();
    ratios.sort_by(f64::total_cmp);
    println!(
        "  {what:<36} {:>13} {:>14}   {:.2} ({:.2} to {:.2})",
        time(medians[0]),
        time(medians[1]),
        median(ratios.clone()),
        ratios[0],
        ratios[ratios.len() - 1],
    );
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A number that a program has printed.
fn number(text: &str) -> Result<f64> {
    text.trim().parse().with_context(|| format!("not a number: {text:?}"))
}

/// Nanoseconds for people.
fn time(nanoseconds: f64) -> String {
    match nanoseconds {
        ..1e3 => format!("{nanoseconds:.2} ns"),
        1e3..1e6 => format!("{:.2} µs", nanoseconds / 1e3),
        1e6..1e9 => format!("{:.1} ms", nanoseconds / 1e6),
        _ => format!("{:.2} s", nanoseconds / 1e9),
    }
}

/// What all this was measured on, and when.
fn machine() -> Result<String> {
    let date = Command::new("date").arg("+%F").output()?.stdout;
    let cpu = fs::read_to_string("/proc/cpuinfo")?;
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .context("a model")?
        .1;
    let cpus = cpu.lines().filter(|line| line.starts_with("processor")).count();
    let virtual_machine = if cpu.contains(" hypervisor ") {
        ", a virtual machine"
    } else {
        ""
    };
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let kernel = kernel.split('-').next().unwrap_or_default().trim();
    let date = String::from_utf8(date)?;
    Ok(format!(
        "{}: {cpus} × {model}{virtual_machine}, Linux {kernel}; {}",
        date.trim(),
        load()?
    ))
}

/// How busy the machine was.
fn load() -> Result<String> {
    let load = fs::read_to_string("/proc/loadavg")?;
    Ok(format!("load {}", load.split(' ').next().unwrap_or_default()))
}
