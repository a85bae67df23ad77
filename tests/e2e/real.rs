//! Programs that people run, each driven by its own client or by keystrokes, moved and saved in the middle of its work, and
//! compared with a plain run of the same script.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;

use crate::harness::host::BIN;
use crate::harness::{Cmd, Host, Running, Status, Streams, User, World, programs};
use crate::jobs::{HERE, PLAIN, as_job, ready_trial, words};

/// What happens to a program at the moments of its script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Nothing, and without us: what the others are compared with.
    Plain,
    /// Nothing, as a job.
    Unmoved,
    /// It goes away, or home if it is not there.
    Moved,
    /// It is saved, which ends it, and restored.
    Saved,
}

/// A script for a program: what it gives has to be the same whatever the way.
type Script = fn(&World, Way) -> Result<String>;

pub(crate) fn trials() -> Vec<Trial> {
    use Way::{Moved, Saved};
    let rows: [(&str, Script, &[Way]); 12] = [
        ("bash", bash, &[Moved, Saved]),
        ("python_threads", python_threads, &[Moved, Saved]),
        ("python_processes", python_processes, &[Moved, Saved]),
        ("numpy", numpy, &[Moved, Saved]),
        (
            "sqlite_journal",
            |world, way| sqlite(world, way, "delete"),
            &[Moved, Saved],
        ),
        ("sqlite_wal", |world, way| sqlite(world, way, "wal"), &[Moved, Saved]),
        ("make", make, &[Moved, Saved]),
        ("vim", vim, &[Moved, Saved]),
        ("redis", redis, &[Moved, Saved]),
        ("go", go, &[Moved, Saved]),
        ("tokio", tokio_server, &[Moved, Saved]),
        ("unmoved", unmoved, &[Way::Unmoved]),
    ];
    let mut all = Vec::new();
    for (name, script, ways) in rows {
        for &way in ways {
            let name = format!("real::{name}::{way:?}").to_lowercase();
            all.push(ready_trial(&name, User::Ordinary, move |world| {
                let plain = script(world, Way::Plain).context("the plain run")?;
                let found = script(world, way)?;
                ensure!(found == plain, "{way:?}:\n{found}\nthe plain run:\n{plain}");
                Ok(())
            }));
        }
    }
    all
}

/// Every script as a job to which nothing happens.
fn unmoved(world: &World, way: Way) -> Result<String> {
    let scripts: [(&str, Script); 5] = [
        ("bash", bash),
        ("python_processes", python_processes),
        ("redis", redis),
        ("go", go),
        ("tokio", tokio_server),
    ];
    let results = scripts.map(|(name, script)| script(world, way).with_context(|| name.to_owned()));
    results.into_iter().collect::<Result<Vec<_>>>().map(|all| all.concat())
}

/// A program that plays its script.
struct Play<'w> {
    world: &'w World,
    way: Way,
    run: Running,
    streams: Streams,
    /// What it printed before it was restored for the last time.
    before: String,
    /// As much of its output was waited for already.
    seen: usize,
    /// How often it has left home, or was restored.
    moments: usize,
}

/// The working directory of a script.
fn dir(way: Way) -> &'static str {
    if way == Way::Plain { PLAIN } else { HERE }
}

/// The image of a job that is saved.
const IMAGE: &str = "/tmp/home/job.img";

impl<'w> Play<'w> {
    fn start(world: &'w World, way: Way, command: &Cmd) -> Result<Self> {
        let a = &world.a;
        a.mkdir(dir(way))?;
        let run = match way {
            Way::Plain => a.start(&command.clone().cwd(PLAIN))?,
            _ => a.start(&as_job(command))?,
        };
        Ok(Self {
            world,
            way,
            run,
            streams: command.streams,
            before: String::new(),
            seen: 0,
            moments: 0,
        })
    }

    /// Everything it printed so far.
    fn said(&self) -> String {
        self.before.clone() + &self.run.stdout()
    }

    /// Waits until it prints this, behind what was waited for before.
    fn expect(&mut self, text: &str) -> Result<()> {
        let whole = |now: &str| self.before.clone() + now;
        let find = |now: &str| whole(now).get(self.seen..).and_then(|rest| rest.find(text));
        self.run.wait_for(&format!("{text:?}"), |now| find(now).is_some())?;
        self.seen += find(&self.run.stdout()).context("it was there")? + text.len();
        Ok(())
    }

    /// Waits for that many more lines.
    fn lines(&mut self, n: usize) -> Result<()> {
        (0..n).try_for_each(|_| self.expect("\n"))
    }

    /// Types a line.
    fn line(&mut self, text: &str) -> Result<()> {
        self.run.type_in(format!("{text}\n").as_bytes())
    }

    /// Here something happens to it.
    fn moment(&mut self) -> Result<()> {
        let a = &self.world.a;
        match self.way {
            Way::Plain | Way::Unmoved => return Ok(()),
            Way::Moved => travel(a)?,
            Way::Saved => {
                // A server may not have noticed yet that its last client has gone, and a connection is not saved.
                a.wait_until("the save", || save(a).ok())?;
                self.run.wait()?;
                self.before = self.said();
                let restore = Cmd::new(["vctl", "restore", "--with-files", IMAGE]);
                self.run = a.start(&restore.streams(self.streams))?;
                restored(a)?;
            }
        }
        self.moments += 1;
        Ok(())
    }

    /// Its end: all that it printed, and its exit status.
    fn end(self) -> Result<String> {
        ensure!(
            self.moments >= 2 || matches!(self.way, Way::Plain | Way::Unmoved),
            "only {} moments",
            self.moments
        );
        let end = self.run.finish()?;
        // What vctl tells of files that it made again is no word of the program.
        let own = end.stderr.lines().find(|line| !line.starts_with("vctl: "));
        ensure!(own.is_none(), "on stderr: {}", end.stderr);
        Ok(format!(
            "{}{}status {}\n",
            self.before,
            end.stdout,
            end.status.as_shell()
        ))
    }
}

/// Where the job `job` is, as its origin lists it; `None` if it is at home.
fn place(a: &Host) -> Result<Option<String>> {
    let listed = a.ok(["vctl", "ps", "--json"])?;
    let listed: serde_json::Value = serde_json::from_str(&listed)?;
    let jobs = listed["jobs"].as_array().context("jobs")?;
    let job = jobs
        .iter()
        .find(|job| job["name"] == "job")
        .with_context(|| format!("no job: {listed}"))?;
    Ok(job["host"].as_str().map(str::to_owned))
}

/// Moves the job away, or home. What it does itself may bring it home at any time, so that it may just have come.
fn travel(a: &Host) -> Result<()> {
    let to = if place(a)?.is_none() { "b" } else { "home" };
    let moved = a.run(["vmigrate", "job", to])?;
    let came = to == "home" && moved.status == Status::Exit(1) && moved.stderr.contains("the job is at home");
    ensure!(moved.status == Status::Exit(0) || came, "vmigrate job {to}: {moved:?}");
    Ok(())
}

/// Saves the job to a file, which ends it.
fn save(a: &Host) -> Result<()> {
    a.ok(["vctl", "save", "job", "--with-files", "-o", IMAGE]).map(drop)
}

/// Waits until the job that was saved is one again.
fn restored(a: &Host) -> Result<()> {
    a.wait_until("the restored job", || place(a).ok().map(drop))
}

/// Pipelines in the background and in the foreground, Ctrl-Z, bg, fg, wait, kill, at an interactive shell.
fn bash(world: &World, way: Way) -> Result<String> {
    let command = Cmd::new(["bash", "--norc", "--noprofile", "-i"])
        .env("PS1", "> ")
        .env("PS2", "")
        .env("HISTFILE", "")
        .streams(Streams::Terminal(80, 24));
    let mut play = Play::start(world, way, &command)?;
    play.expect("> ")?;
    play.line("bind 'set enable-bracketed-paste off'; set -o pipefail; x=1")?;
    play.expect("> ")?;
    play.moment()?;
    play.line("mkfifo gate; (echo 1; cat gate; echo 3) | tac | tee out.txt &")?;
    play.expect("[1] ")?;
    play.expect("> ")?;
    play.moment()?;
    play.line("jobs; x=$((x + 1)); echo x is $x; fg")?;
    play.expect("Running")?;
    play.expect("x is 2")?;
    play.expect("tee out.txt\r\n")?;
    play.moment()?;
    world.a.ok(["sh", "-c", &format!("echo 2 > {}/gate", dir(way))])?;
    play.expect("3\r\n2\r\n1\r\n> ")?;
    play.moment()?;
    play.line("sleep 1000 | cat")?;
    let sleep = Cmd::new(["sleep", "1000"]);
    world.a.wait_until("the sleep", || world.a.find(&sleep))?;
    play.run.type_in(b"\x1a")?;
    play.expect("Stopped ")?;
    play.moment()?;
    play.line("jobs -s; bg; jobs -r")?;
    play.expect("Stopped ")?;
    play.expect("Running")?;
    play.moment()?;
    play.line("kill %1; wait %1; echo status $?")?;
    play.expect("status 143")?;
    play.line("sleep 1000")?;
    world.a.wait_until("the sleep", || world.a.find(&sleep))?;
    play.moment()?;
    play.run.type_in(b"\x03")?;
    play.expect("^C")?;
    play.line("echo status $?; cat out.txt; trap 'echo bye' EXIT; exit 7")?;
    play.expect("status 130")?;
    play.expect("bye")?;
    let said = play.end()?;
    Ok(said.lines().last().unwrap_or_default().to_owned() + &world.a.text(&format!("{}/out.txt", dir(way)))?)
}

/// Plays a Python program that prints lines until its input ends, with moments in between, and compares them with as many of a
/// plain run: so it works on whatever the speed of the machine, and no line but the last two depends on when it ended.
fn python(world: &World, way: Way, name: &str) -> Result<String> {
    let line = format!("/usr/bin/python3 -E /tmp/programs/{name}.py");
    if way == Way::Plain {
        return Ok(String::new());
    }
    let mut play = Play::start(world, way, &words(&line).streams(Streams::Input))?;
    play.lines(3)?;
    for _ in 0..4 {
        play.moment()?;
        play.seen = play.said().len();
        play.lines(3)?;
    }
    let said = play.end()?;
    let numbered = |line: &&str| line.starts_with(|first: char| first.is_ascii_digit());
    let count = said.lines().filter(numbered).count();
    let plain = Play::start(world, Way::Plain, &words(&format!("{line} {count}")))?.end()?;
    ensure!(said == plain, "{way:?}:\n{said}\nthe plain run:\n{plain}");
    Ok(String::new())
}

/// Locks, queues, thread-local storage and timers of threads that compute.
fn python_threads(world: &World, way: Way) -> Result<String> {
    python(world, way, "real_threads")
}

/// Processes of `multiprocessing`: a pool, pipes, semaphores, shared memory.
fn python_processes(world: &World, way: Way) -> Result<String> {
    python(world, way, "real_processes")
}

fn numpy(world: &World, way: Way) -> Result<String> {
    python(world, way, "real_numpy")
}

/// Transactions that are open while something happens: one is committed, one rolled back, and a second connection looks on.
fn sqlite(world: &World, way: Way, journal: &str) -> Result<String> {
    let a = &world.a;
    let mut play = Play::start(world, way, &words("sqlite3 -batch data.db").streams(Streams::Input))?;
    let rows = |from: usize| {
        format!(
            "with recursive n(i) as (values({from}) union all select i + 1 from n where i < {}) \
             insert into t select i, hex(zeroblob(i % 300)) from n;",
            from + 1999
        )
    };
    play.line(&format!("pragma cache_size = 20; pragma journal_mode = {journal};"))?;
    play.expect(&format!("{journal}\n"))?;
    play.line("create table t(i integer primary key, x); create index by_x on t(x);")?;
    for round in 0..4 {
        play.line("begin;")?;
        play.line(&rows(round * 2000))?;
        play.line("select count(*) from t;")?;
        play.lines(1)?;
        play.moment()?;
        // Another connection sees nothing of it, and cannot write.
        let other = a.run([
            "sqlite3",
            &format!("{}/data.db", dir(way)),
            "pragma busy_timeout = 0; insert into t values(-1, '')",
        ])?;
        ensure!(other.stderr.contains("database is locked"), "{other:?}");
        play.line(&format!("delete from t where i % 7 = {round};"))?;
        play.line(if round == 2 { "rollback;" } else { "commit;" })?;
        play.line("select count(*), sum(length(x)) from t; pragma integrity_check;")?;
        play.lines(2)?;
        ensure!(
            way != Way::Moved || place(a)?.is_some(),
            "round {round}: it came home by itself"
        );
        play.moment()?;
    }
    play.line(".quit")?;
    let said = play.end()?;
    let dump = a.ok(["sqlite3", &format!("{}/data.db", dir(way)), ".dump"])?;
    Ok(said + &dump)
}

/// C code that has a build of its own: what the `zstd` crate brings.
fn c_project() -> Result<PathBuf> {
    let said = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--offline", "--locked"])
        // What other systems would need is not here.
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()?;
    ensure!(
        said.status.success(),
        "cargo metadata: {}",
        String::from_utf8_lossy(&said.stderr)
    );
    let said: serde_json::Value = serde_json::from_slice(&said.stdout)?;
    let packages = said["packages"].as_array().context("packages")?;
    let package = packages.iter().find(|package| package["name"] == "zstd-sys");
    let manifest = package.and_then(|package| package["manifest_path"].as_str());
    Ok(Path::new(manifest.context("no zstd-sys")?).with_file_name("zstd/lib"))
}

const MAKEFILE: &str = "\
SOURCES := $(sort $(wildcard common/*.c decompress/*.c) use.c)
OBJECTS := $(SOURCES:.c=.o)
use: $(OBJECTS)
\t@ar rcsD libzstd.a $(filter-out use.o,$(OBJECTS)) && $(CC) -o $@ use.o libzstd.a && echo linked
%.o: %.c
\t@$(CC) -O1 -I. -DZSTD_DISABLE_ASM -MMD -c -o $@ $< && echo compiled $<
";

const USE: &str = "\
#include <stdio.h>
#include <zstd.h>
int main(void) {
    printf(\"%u %zu\\n\", ZSTD_versionNumber(), ZSTD_DStreamInSize());
    return 0;
}
";

/// `make -j2` with gcc: what is built has to be the same to the bit, and to run.
fn make(world: &World, way: Way) -> Result<String> {
    let (a, here) = (&world.a, dir(way));
    let from = c_project()?;
    for directory in ["", "common", "compress", "decompress"] {
        for entry in fs::read_dir(from.join(directory))? {
            let path = entry?.path();
            if path
                .extension()
                .is_some_and(|extension| extension == "c" || extension == "h")
            {
                let name = path.strip_prefix(&from)?.to_string_lossy().into_owned();
                a.put(&format!("{here}/{name}"), fs::read(&path)?)?;
            }
        }
    }
    a.put(&format!("{here}/Makefile"), MAKEFILE)?;
    a.put(&format!("{here}/use.c"), USE)?;
    let mut play = Play::start(world, way, &words("make -j2"))?;
    play.lines(1)?;
    for _ in 0..4 {
        play.moment()?;
        play.lines(2)?;
    }
    let mut said: Vec<String> = play.end()?.lines().map(str::to_owned).collect();
    said.sort();
    let used = a.ok([&format!("{here}/use")])?;
    let built = a.ok([
        "sh",
        "-c",
        &format!("cd {here} && find . -type f | sort | xargs sha256sum"),
    ])?;
    Ok(format!("{}\n{used}{built}", said.join("\n")))
}

/// Real keystrokes to an editor in tmux: what the screen shows after each step, and the file.
fn vim(world: &World, way: Way) -> Result<String> {
    let (a, here) = (&world.a, dir(way));
    a.put(&format!("{here}/file.txt"), "first line\n")?;
    let tmux = |words: &[&str]| {
        a.ok(
            ["tmux", "-L", here.rsplit('/').next().unwrap_or(here), "-f", "/dev/null"]
                .iter()
                .chain(words),
        )
    };
    let screen = || tmux(&["capture-pane", "-p", "-t", "vim"]);
    let shows = |text: &str| -> Result<String> {
        a.wait_until(&format!("{text:?} on the screen"), || {
            screen().ok().filter(|screen| screen.contains(text))
        })
    };
    let vim = "vim -u NONE -i NONE -N --cmd 'set ruler showmode updatecount=1' file.txt";
    let vim = if way == Way::Plain {
        vim.to_owned()
    } else {
        format!("vrun -n job -- {vim}")
    };
    tmux(&[
        "new-session",
        "-d",
        "-s",
        "vim",
        "-x",
        "80",
        "-y",
        "24",
        "-c",
        here,
        &vim,
    ])?;
    tmux(&["set-option", "-g", "remain-on-exit", "on"])?;
    let mut screens = shows("first line")?;
    let steps: [&[&str]; 6] = [
        &["G", "o", "typed at home", "Escape", ":r !echo by a child", "Enter"],
        &["O", "typed after it", "Escape", ":w", "Enter"],
        &[
            "i",
            "in the middle of an insertion",
            "Escape",
            "yyp",
            ":s/middle/end/",
            "Enter",
        ],
        &["u", ":set number", "Enter"],
        &[":%!sort -r", "Enter", "gg"],
        &[
            ":new other.txt",
            "Enter",
            "i",
            "a second file",
            "Escape",
            ":wall",
            "Enter",
        ],
    ];
    for (n, keys) in steps.iter().enumerate() {
        // The last line says this when all that came before is done, and never as a part of what is typed.
        let (settled, echo) = (format!("\nsettled {n}"), format!(":redraw | echo 'settled {n}'"));
        tmux(&[&["send-keys", "-t", "vim"], *keys, &[&echo, "Enter"]].concat())?;
        screens += &shows(&settled)?;
        match way {
            Way::Plain | Way::Unmoved => {}
            Way::Moved => travel(a)?,
            Way::Saved => {
                save(a)?;
                tmux(&[
                    "respawn-pane",
                    "-k",
                    "-t",
                    "vim",
                    "-c",
                    here,
                    &format!("vctl restore {IMAGE}"),
                ])?;
                restored(a)?;
                tmux(&["send-keys", "-t", "vim", "C-l"])?;
            }
        }
    }
    tmux(&["send-keys", "-t", "vim", ":wqall", "Enter"])?;
    let dead = || tmux(&["list-panes", "-t", "vim", "-F", "#{pane_dead}"]);
    a.wait_until("the end of vim", || dead().ok().filter(|dead| dead == "1\n"))?;
    tmux(&["kill-server"])?;
    for name in ["file.txt", "other.txt"] {
        screens += &a.text(&format!("{here}/{name}"))?;
    }
    ensure!(!a.exists(&format!("{here}/.file.txt.swp")), "a swap file is left");
    Ok(screens)
}

/// Clients work, one after the other; meanwhile something happens to their server, or in between if connections would not
/// survive it. Gives what they print.
fn under_load(play: &mut Play<'_>, client: &Cmd) -> Result<String> {
    let mut said = String::new();
    for visit in 0..2 {
        let client = play.world.a.start(client)?;
        if play.way == Way::Saved {
            client.wait()?;
        }
        for moment in 0..2 {
            ensure!(
                client.is_running() || matches!(play.way, Way::Plain | Way::Saved),
                "client {visit} was through after {moment} moments"
            );
            play.moment()?;
        }
        let end = client.finish()?;
        ensure!(
            end.status == Status::Exit(0) && !end.stdout.contains("rror") && end.stderr.is_empty(),
            "{end:?}"
        );
        said += &end.stdout;
    }
    Ok(said)
}

/// A database server with both kinds of persistence, under its own benchmark, whose connections stay open.
fn redis(world: &World, way: Way) -> Result<String> {
    const N: usize = 10_000;
    let a = &world.a;
    let options = "--port 6390 --bind 127.0.0.1 --appendonly yes --appendfsync everysec --enable-debug-command yes";
    let server = words(&format!("redis-server {options}"));
    let mut play = Play::start(world, way, &server)?;
    play.expect("Ready to accept connections")?;
    let benchmark = words(&format!(
        "redis-benchmark -p 6390 -c 8 -n {N} -t set,get,incr,lpush,hset,zadd -q"
    ));
    // What it tells of the speed is not the same twice.
    under_load(&mut play, &benchmark)?;
    let cli = |words: &[&str]| a.ok(["redis-cli", "-p", "6390"].iter().chain(words));
    cli(&["mset", "one", "1", "two", "2"])?;
    let figures = || -> Result<String> {
        let asked: [&[&str]; 5] = [
            &["get", "counter:__rand_int__"],
            &["llen", "mylist"],
            &["dbsize"],
            &["mget", "one", "two"],
            &["debug", "digest"],
        ];
        asked.iter().map(|words| cli(words)).collect()
    };
    play.moment()?;
    let mut said = figures()?;
    // Both make a process, which writes what the memory was when it began.
    for (command, sign) in [
        ("bgsave", "rdb_bgsave_in_progress:0"),
        ("bgrewriteaof", "aof_rewrite_in_progress:0"),
    ] {
        play.moment()?;
        cli(&[command])?;
        a.wait_until(command, || {
            let info = cli(&["info", "persistence"]).ok()?;
            (info.contains(sign) && info.contains("rdb_last_bgsave_status:ok")).then_some(())
        })?;
    }
    said += &figures()?;
    play.moment()?;
    a.run(["redis-cli", "-p", "6390", "shutdown"])?;
    let end = play.end()?;
    ensure!(end.ends_with("status 0\n") && end.contains("bye bye"), "{end}");
    // What it wrote is read by a plain one.
    let mut again = a.start(&server.clone().cwd(dir(way)))?;
    again.wait_text("Ready to accept connections")?;
    said += &figures()?;
    a.run(["redis-cli", "-p", "6390", "shutdown"])?;
    again.end_input();
    ensure!(again.wait()? == Status::Exit(0), "the plain server: {}", again.stdout());
    Ok(said)
}

/// A server of a program that has a runtime with threads of its own, and a client with one connection.
fn serve(world: &World, way: Way, server: &str, client: &str) -> Result<String> {
    let a = &world.a;
    let mut play = Play::start(world, way, &words(server))?;
    play.expect("listening")?;
    let said = under_load(&mut play, &words(client))?;
    match way {
        Way::Plain => play.run.signal(libc::SIGTERM)?,
        _ => a.ok(["vctl", "kill", "job"]).map(drop)?,
    }
    Ok(said + &play.end()?)
}

/// Goroutines, channels, timers, garbage collection and the runtime's poller.
fn go(world: &World, way: Way) -> Result<String> {
    programs::build_go("real_go")?;
    let client = "/usr/bin/python3 -SE /tmp/programs/real_client.py http 127.0.0.1 7000 30";
    serve(world, way, "/tmp/programs/real_go 127.0.0.1:7000", client)
}

/// The name by which this executable becomes the tokio program.
const TOKIO: &str = "real-tokio";

/// A runtime with several threads: listener, connections, timers, blocking tasks.
fn tokio_server(world: &World, way: Way) -> Result<String> {
    let client = "/usr/bin/python3 -SE /tmp/programs/real_client.py echo 127.0.0.1 7000 6000";
    serve(world, way, &format!("{BIN}/peer {TOKIO} 127.0.0.1:7000"), client)
}

/// With these arguments this process is the tokio program.
pub(crate) fn become_tokio_if_asked() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, address] = arguments.as_slice() else { return };
    if name == TOKIO {
        let served = serve_lines(address);
        if let Err(error) = &served {
            eprintln!("{error:#}");
        }
        std::process::exit(i32::from(served.is_err()));
    }
}

/// Sends every line back, through a blocking task and after a short sleep now and then; ends on SIGTERM.
fn serve_lines(address: &str) -> Result<()> {
    use std::time::{Duration, Instant};
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(3)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(address).await?;
        let mut end = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        let ticks = tokio::spawn(async {
            let mut interval = tokio::time::interval(Duration::from_millis(5));
            let mut last = Instant::now();
            for n in 0_u64.. {
                interval.tick().await;
                let now = Instant::now();
                assert!(now >= last, "the clock went back after {n} ticks");
                last = now;
            }
        });
        println!("listening");
        loop {
            let (stream, _) = tokio::select! {
                accepted = listener.accept() => accepted?,
                _ = end.recv() => break,
            };
            tokio::spawn(async move {
                let (from, mut to) = stream.into_split();
                let mut lines = BufReader::new(from).lines();
                for n in 0_u64.. {
                    let Some(line) = lines.next_line().await? else { break };
                    let back = tokio::task::spawn_blocking(move || line + "\n").await?;
                    if n % 16 == 0 {
                        tokio::time::sleep(Duration::from_millis(3)).await;
                    }
                    to.write_all(back.as_bytes()).await?;
                }
                anyhow::Ok(())
            });
        }
        ensure!(!ticks.is_finished(), "the timer's task has ended");
        println!("bye");
        Ok(())
    })
}
