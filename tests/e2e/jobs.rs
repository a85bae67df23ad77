//! What the tests of jobs have in common: starting one, moving it, and what a refusal must look like.

use anyhow::{Result, ensure};

use crate::harness::{Cmd, Host, Options, Output, Running, Status, World, trial};
use libtest_mimic::Trial;

/// What a test does in its world.
pub(crate) type Body = fn(&World) -> Result<()>;

/// The working directory of jobs.
pub(crate) const HERE: &str = "/tmp/home/job";
/// The working directory of the plain runs they are compared with.
pub(crate) const PLAIN: &str = "/tmp/home/plain";

/// A command from its words; `py:NAME` and `c:NAME` stand for test programs.
pub(crate) fn words(line: &str) -> Cmd {
    let words = line.split_whitespace().flat_map(|word| match word.split_once(':') {
        Some(("py", name)) => vec![
            "/usr/bin/python3".into(),
            "-SE".into(),
            format!("/tmp/programs/{name}.py"),
        ],
        Some(("c", name)) => vec![format!("/tmp/programs/{name}")],
        _ => vec![word.to_owned()],
    });
    Cmd::new(words.collect::<Vec<_>>())
}

/// The same command as the job named `job`.
pub(crate) fn as_job(command: &Cmd) -> Cmd {
    Cmd {
        argv: Cmd::new(["vrun", "-n", "job", "--"]).args(&command.argv).argv,
        ..command.clone()
    }
    .cwd(HERE)
}

/// Starts a command as the job named `job`.
pub(crate) fn start(host: &Host, command: &Cmd) -> Result<Running> {
    host.mkdir(HERE)?;
    host.start(&as_job(command))
}

/// Starts a command without us, in a directory of its own.
pub(crate) fn start_plain(host: &Host, command: &Cmd) -> Result<Running> {
    host.mkdir(PLAIN)?;
    host.start(&command.clone().cwd(PLAIN))
}

/// `vmigrate job TO`, said on `host`; must succeed and say what it did.
pub(crate) fn migrate(host: &Host, to: &str) -> Result<()> {
    let output = host.run(["vmigrate", "job", to])?;
    let last = output.stderr.lines().last().unwrap_or_default();
    ensure!(
        output.status == Status::Exit(0),
        "vmigrate job {to} on {}: {output:?}",
        host.name()
    );
    ensure!(
        last.starts_with("moved ") && last.contains(", downtime "),
        "the last line of vmigrate is {last:?}"
    );
    Ok(())
}

/// A command that must fail with one of these exit statuses, one line on stderr that names all of `names`, and no output.
pub(crate) fn refused(host: &Host, command: &str, statuses: &[i32], names: &[&str]) -> Result<()> {
    let Output { status, stdout, stderr } = host.start(&words(command))?.finish()?;
    let said = stderr.to_lowercase();
    ensure!(
        matches!(status, Status::Exit(code) if statuses.contains(&code)),
        "`{command}`: {status:?}, said: {stderr}"
    );
    ensure!(
        stderr.lines().count() == 1 && stdout.is_empty(),
        "`{command}` should say one line: {stdout}{stderr}"
    );
    for name in names {
        ensure!(
            said.contains(&name.to_lowercase()),
            "`{command}` does not name {name:?}: {stderr}"
        );
    }
    Ok(())
}

/// The job must end exactly as the plain run of the same command does.
pub(crate) fn same_end(job: Running, plain: Running) -> Result<()> {
    let (job, plain) = (job.finish()?, plain.finish()?);
    ensure!(
        job.stdout == plain.stdout,
        "stdout of the job:\n{}\nof the plain run:\n{}",
        job.stdout,
        plain.stdout
    );
    ensure!(
        job.stderr == plain.stderr,
        "stderr of the job:\n{}\nof the plain run:\n{}",
        job.stderr,
        plain.stderr
    );
    let expected = Status::Exit(plain.status.as_shell());
    ensure!(
        job.status == expected,
        "the job ended with {:?}, the plain run with {:?}",
        job.status,
        plain.status
    );
    Ok(())
}

/// A trial in a world with trust and daemons everywhere.
pub(crate) fn ready_trial(
    name: &str,
    options: impl Into<Options>,
    body: impl FnOnce(&World) -> Result<()> + Send + 'static,
) -> Trial {
    trial(name, options, move |world| world.ready().and_then(|()| body(world)))
}

/// A text with this many lines, each different.
pub(crate) fn text(lines: usize) -> String {
    (1..=lines)
        .map(|n| format!("This is line {n} of the file, and {} is its square.\n", n * n))
        .collect()
}
