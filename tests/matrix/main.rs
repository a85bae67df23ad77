//! The matrix: every row of [`survival`] by every way, for an ordinary user and for root.
//!
//! A row's program (`tests/programs/rows`) sets something up, says "ready", waits for a line, and then checks itself. Each
//! trial takes one row as one user through all ways side by side, in one world of three hosts; what each prints, and how it
//! ends, must be what a plain run does, or the refusal must be the one that the table tells. Worlds are used again and
//! again, unless a trial failed in it.
//!
//! | way     | between "ready" and the line                          |
//! |---------|-------------------------------------------------------|
//! | plain   | nothing, and no vrun either: what the others must be  |
//! | vrun    | nothing                                               |
//! | saved   | `vctl save`, then `vctl restore` of the image         |
//! | moved   | `vmigrate` to b                                       |
//! | twice   | to b, then to c                                       |
//! | back    | to b, then home                                       |
//!
//! `cargo test --test matrix -- ROW` runs some rows. The table of all results comes after the last trial.

#[path = "../harness/mod.rs"]
mod harness;
mod table;

use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use harness::{Cmd, Host, Options, Running, Status, Streams, User, World, report};
use libtest_mimic::{Arguments, Failed, Trial};
use table::{Outcome, Table};
use vrun_supervisor::survival::{self, Fate, Row};

/// No program takes longer from the line to its end.
const PATIENCE: Duration = Duration::from_secs(25);
/// No image of a row is larger: what holds no data is not stored. That of 100 processes holds 100 C libraries.
const IMAGE_MAX: u64 = 64 << 20;
const LARGE: [(&str, u64); 1] = [("hundred_processes", 400 << 20)];
/// Rows whose standard streams are their controlling terminal.
const TERMINAL: [&str; 2] = ["controlling_terminal", "foreground_group"];
/// Rows that hold files without a name: their contents travel in the image.
const WITH_FILES: [&str; 3] = ["deleted_file", "renamed_file", "file_mapped_deleted"];

/// How a job is treated at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Plain,
    Vrun,
    Saved,
    Moved,
    Twice,
    Back,
}

impl Way {
    pub(crate) const ALL: [Self; 6] = [
        Self::Plain,
        Self::Vrun,
        Self::Saved,
        Self::Moved,
        Self::Twice,
        Self::Back,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Vrun => "vrun",
            Self::Saved => "saved",
            Self::Moved => "moved",
            Self::Twice => "twice",
            Self::Back => "back",
        }
    }

    /// Where `vmigrate` is told to go, in order.
    fn journey(self) -> &'static [&'static str] {
        match self {
            Self::Plain | Self::Vrun | Self::Saved => &[],
            Self::Moved => &["b"],
            Self::Twice => &["b", "c"],
            Self::Back => &["b", "home"],
        }
    }
}

fn main() {
    harness::host::become_keeper_if_asked();
    let arguments = Arguments::from_args();
    let trials = survival::ROWS
        .iter()
        .flat_map(|row| [User::Ordinary, User::Root].map(|user| (row, user)))
        .map(|(row, user)| {
            Trial::test(format!("{}::{}", row.id, user.name()), move || {
                trial(row, user).map_err(Failed::from)
            })
        })
        .collect::<Vec<_>>();
    let chosen = trials.iter().filter(|trial| !arguments.is_filtered_out(trial)).count();
    TABLE.lock().unwrap_or_else(PoisonError::into_inner).expect(chosen);
    let conclusion = libtest_mimic::run(&arguments, trials);
    POOL.lock().unwrap_or_else(PoisonError::into_inner).clear();
    conclusion.exit();
}

static TABLE: Mutex<Table> = Mutex::new(Table::new());

/// Worlds that nobody uses now.
static POOL: Mutex<Vec<(User, World)>> = Mutex::new(Vec::new());

/// A world with trust and daemons everywhere, with nothing of another row in it.
fn borrow_world(user: User) -> Result<World> {
    let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(index) = pool.iter().position(|(its, _)| *its == user) {
        return Ok(pool.swap_remove(index).1);
    }
    drop(pool);
    let world = World::new(Options {
        hosts: vec!["a", "b", "c"],
        ..user.into()
    })?;
    world.ready()?;
    Ok(world)
}

/// One row as one user by all ways.
fn trial(row: &'static Row, user: User) -> Result<(), String> {
    let name = format!("{}::{}", row.id, user.name());
    let mut outcomes = Way::ALL.map(|_| Outcome::Failed("there was no world for it".to_owned()));
    let judged = borrow_world(user)
        .map_err(|error| format!("{error:#}"))
        .and_then(|world| {
            world.forget_logs();
            report::judge(&name, &world, || {
                outcomes = all_ways(&world, row);
                let failures = Way::ALL
                    .iter()
                    .zip(&outcomes)
                    .filter_map(|(way, outcome)| match outcome {
                        Outcome::Failed(why) => Some(format!("{}: {why}", way.name())),
                        _ => None,
                    });
                let failures = failures.collect::<Vec<_>>();
                ensure!(failures.is_empty(), "{}", failures.join("\n\n"));
                report::nothing_left(&world)
            })?;
            POOL.lock().unwrap_or_else(PoisonError::into_inner).push((user, world));
            Ok(())
        });
    let mut table = TABLE.lock().unwrap_or_else(PoisonError::into_inner);
    table.add(row, user, outcomes, judged.is_ok());
    judged
}

/// All ways at the same time.
fn all_ways(world: &World, row: &Row) -> [Outcome; 6] {
    let place = format!("/tmp/home/{}", row.id);
    if let Err(error) = Way::ALL
        .iter()
        .try_for_each(|way| world.a.mkdir(&format!("{place}/{}", way.name())))
    {
        return Way::ALL.map(|_| Outcome::Failed(format!("{error:#}")));
    }
    let runs = thread::scope(|scope| {
        let threads = Way::ALL.map(|way| scope.spawn(move || go(world, row, way)));
        threads.map(|thread| thread.join().unwrap_or_else(|_| Err(anyhow::anyhow!("panicked"))))
    });
    let plain = match &runs[0] {
        Ok((end, _)) => end.clone(),
        Err(error) => return Way::ALL.map(|_| Outcome::Failed(format!("the plain run: {error:#}"))),
    };
    let mut ways = Way::ALL.into_iter();
    runs.map(|run| {
        let fate = ways.next().map(|way| fate(row, way, world.a.user()));
        let (end, refused) = match run {
            Ok(run) => run,
            Err(error) => return Outcome::Failed(format!("{error:#}")),
        };
        match (fate, refused) {
            // It has to come to its end; what it sees is another thing.
            (Some(Fate::Changes(what)), _) if end.status == plain.status => Outcome::Changed(what),
            _ if end != plain => Outcome::Failed(format!("it ended so:\n{end}\nand the plain run so:\n{plain}")),
            _ if !end.is_well() => Outcome::Failed(format!("the row is wrong in itself:\n{end}")),
            (_, Some(reason)) => Outcome::Refused(reason),
            (_, None) => Outcome::Passed,
        }
    })
}

/// What a run has printed, and its end as a shell sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct End {
    stdout: String,
    status: i32,
}

impl End {
    /// Nothing that it checked was otherwise than it should be.
    fn is_well(&self) -> bool {
        self.status == 0 && self.stdout.contains("ready") && !self.stdout.contains(": NO")
    }
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}(status {})", self.stdout, self.status)
    }
}

/// What the table says of a row by a way.
fn fate(row: &Row, way: Way, user: User) -> Fate {
    match (way, if way == Way::Saved { row.saved } else { row.moved }) {
        (Way::Plain | Way::Vrun, _) => Fate::Survives,
        (_, Fate::RefusedUnlessRoot(reason)) if user == User::Ordinary => Fate::Refused(reason),
        (_, Fate::RefusedUnlessRoot(_)) => Fate::Survives,
        (_, fate) => fate,
    }
}

/// One run; with the reason if it was refused as the table says.
fn go(world: &World, row: &Row, way: Way) -> Result<(End, Option<&'static str>)> {
    let a = &world.a;
    let home = format!("/tmp/home/{}/{}", row.id, way.name());
    let program = format!("/tmp/programs/rows/{}", row.id);
    let command = match way {
        Way::Plain => Cmd::new([program]),
        _ => Cmd::new(["vrun", "-n", way.name(), "--", &program]),
    };
    let streams = match TERMINAL.contains(&row.id) {
        true => Streams::Terminal(80, 24),
        false => Streams::Input,
    };
    let mut run = a.start(&command.cwd(&home).streams(streams))?;
    run.wait_for("ready", |text| text.lines().any(|line| line == "ready"))?;
    let fate = fate(row, way, a.user());
    let mut refused = None;
    let mut said = String::new();
    match (way, fate) {
        (Way::Plain | Way::Vrun, _) => {}
        (Way::Saved, Fate::Refused(reason)) => {
            refusal(a, &["vctl", "save", way.name(), "-o", "image"], reason)?;
            refused = Some(reason);
        }
        (_, Fate::Refused(reason)) => {
            refusal(a, &["vmigrate", way.name(), "b"], reason)?;
            refused = Some(reason);
        }
        (Way::Saved, _) => {
            let image = format!("/tmp/home/{}/image", row.id);
            let with_files = WITH_FILES.contains(&row.id).then_some("--with-files");
            let save = Cmd::new(["vctl", "save", way.name(), "-o", &image]).args(with_files);
            done(a, &save)?;
            run.wait_within(PATIENCE)?;
            let bytes = a.path(&image).metadata()?.len();
            let most = LARGE
                .iter()
                .find(|(id, _)| *id == row.id)
                .map_or(IMAGE_MAX, |(_, most)| *most);
            ensure!(bytes <= most, "the image has {bytes} bytes");
            said = run.stdout();
            // The first terminal stays as long as the second.
            let restore = Cmd::new(["vctl", "restore", &image])
                .args(with_files)
                .cwd(&home)
                .streams(streams);
            let before = std::mem::replace(&mut run, a.start(&restore)?);
            return finish(run, said, way).map(|end| (end, None)).inspect(|_| drop(before));
        }
        (_, _) => {
            for to in way.journey() {
                let moved = done(a, &Cmd::new(["vmigrate", way.name(), to]));
                // It may have come home before it was told to.
                match moved {
                    Err(error) if (fate, *to) == (Fate::Home, "home") => {
                        ensure!(format!("{error}").contains("the job is at home"), "{error}");
                    }
                    moved => moved?,
                }
            }
        }
    }
    Ok((finish(run, std::mem::take(&mut said), way)?, refused))
}

/// Says the line and waits for the end; `said` was printed before.
fn finish(mut run: Running, said: String, way: Way) -> Result<End> {
    // A program that has ended already has no reader: its output tells.
    let typed = run.type_in(b"go\n");
    run.end_input();
    let status = run
        .wait_within(PATIENCE)
        .with_context(|| format!("printed before: {said}"))?;
    let of_vrun = |line: &&str| !line.starts_with("vrun: ") && !line.starts_with("vctl: ");
    let all = said + &run.stdout();
    let stdout = all.split_inclusive('\n').filter(of_vrun).collect::<String>();
    if typed.is_err() || (way != Way::Saved && !run.is_terminal() && !run.stderr().is_empty()) {
        bail!("it ended with {status:?} and said:\n{stdout}{}", run.stderr());
    }
    // vctl restore says on standard error why it could not start the program.
    ensure!(
        status == Status::Exit(0) || run.stderr().is_empty(),
        "{status:?}: {}{}",
        stdout,
        run.stderr()
    );
    Ok(End {
        stdout,
        status: status.as_shell(),
    })
}

/// A command of ours that has to succeed.
fn done(host: &Host, command: &Cmd) -> Result<()> {
    let output = host.start(command)?;
    let status = output.wait_within(PATIENCE)?;
    ensure!(
        status == Status::Exit(0),
        "`{command}`: {status:?}: {}",
        output.stderr().trim()
    );
    Ok(())
}

/// A command of ours that has to be refused, with this reason, and to leave the job as it was.
fn refusal(host: &Host, argv: &[&str], reason: &str) -> Result<()> {
    let command = Cmd::new(argv);
    let output = host.run(argv)?;
    ensure!(
        output.status == Status::Exit(1) && output.stderr.contains(reason) && output.stderr.lines().count() == 1,
        "`{command}` should be refused ({reason}): {output:?}"
    );
    Ok(())
}
