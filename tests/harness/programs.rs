//! The test programs: the C ones compiled once a run, all of them in one directory that hosts can be shown.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};

/// The `target` directory.
pub(crate) fn target() -> &'static Path {
    static TARGET: OnceLock<PathBuf> = OnceLock::new();
    TARGET.get_or_init(|| {
        // target/PROFILE/deps/TEST
        let here = std::env::current_exe().unwrap_or_default();
        here.ancestors().nth(3).unwrap_or(Path::new("target")).to_owned()
    })
}

/// Compiles and copies what is newer than what is there, and gives the directory. `count` also comes as `count-static`,
/// `count-stripped` and `count-static-stripped`.
pub(crate) fn build() -> Result<&'static Path> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| build_now().map_err(|error| format!("{error:#}")));
    built.as_deref().map_err(|error| anyhow!("{error}"))
}

fn build_now() -> Result<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs");
    let out = target().join("e2e-programs");
    fs::create_dir_all(&out)?;
    // Several test processes start at the same time.
    let lock = File::create(out.join(".lock"))?;
    lock.lock()?;
    for entry in fs::read_dir(&source)? {
        let path = entry?.path();
        let (name, stem) = (
            path.file_name().context("a file name")?,
            path.file_stem().context("a file name")?,
        );
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("py") => make(&path, &out.join(name), |from, to| Ok(fs::copy(from, to).map(drop)?))?,
            Some("c") => {
                make(&path, &out.join(stem), |from, to| compile(from, to, &[]))?;
                if stem == "count" {
                    for (kind, flags) in [
                        ("static", &["-static"][..]),
                        ("stripped", &["-s"]),
                        ("static-stripped", &["-static", "-s"]),
                    ] {
                        make(&path, &out.join(format!("count-{kind}")), |from, to| {
                            compile(from, to, flags)
                        })?;
                    }
                }
            }
            _ => {}
        }
    }
    build_rows(&source.join("rows"), &out.join("rows"))?;
    Ok(out)
}

/// The programs of the matrix, several at a time; one whose name begins with `static_` is linked so.
fn build_rows(source: &Path, out: &Path) -> Result<()> {
    fs::create_dir_all(out)?;
    let paths = fs::read_dir(source)?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<_>>>()?;
    let next = AtomicUsize::new(0);
    let work = || -> Result<()> {
        while let Some(path) = paths.get(next.fetch_add(1, Ordering::Relaxed)) {
            let stem = path.file_stem().context("a file name")?;
            if path.extension().is_some_and(|extension| extension == "c") {
                let linked: &[&str] = match stem.to_string_lossy().starts_with("static_") {
                    true => &["-static"],
                    false => &[],
                };
                make(path, &out.join(stem), |from, to| compile(from, to, linked))?;
            }
        }
        Ok(())
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..thread::available_parallelism().map_or(1, usize::from))
            .map(|_| scope.spawn(work))
            .collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().map_err(|_| anyhow!("a compiler thread panicked"))?)
    })
}

/// Makes `to` from `from` (and the C programs' common headers) if it is not there or older; it appears complete or not at all.
fn make(from: &Path, to: &Path, how: impl FnOnce(&Path, &Path) -> Result<()>) -> Result<()> {
    let changed = |path: &Path| fs::metadata(path).and_then(|data| data.modified());
    let mut source = changed(from)?;
    for header in ["pause.h", "../pause.h", "rows.h"] {
        source = source.max(changed(&from.with_file_name(header)).unwrap_or(source));
    }
    if changed(to).is_ok_and(|made| source <= made) {
        return Ok(());
    }
    let part = to.with_extension("part");
    how(from, &part)?;
    Ok(fs::rename(part, to)?)
}

fn compile(from: &Path, to: &Path, flags: &[&str]) -> Result<()> {
    let mut command = Command::new("cc");
    command
        .args(["-O1", "-Wall", "-Werror", "-o"])
        .args([to, from])
        .args(flags)
        .args(["-pthread", "-lm"]);
    ensure!(
        command.status().context("a C compiler is needed")?.success(),
        "failed: {command:?}"
    );
    Ok(())
}

/// Compiles a Go program, next to the others. Only for tests that need it: it takes long the first time.
pub(crate) fn build_go(name: &str) -> Result<()> {
    let out = build()?;
    let lock = File::create(out.join(".lock-go"))?;
    lock.lock()?;
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/programs/{name}.go"));
    make(&source, &out.join(name), |from, to| {
        let mut command = Command::new("go");
        command.args(["build", "-o"]).args([to, from]);
        command
            .env("GOCACHE", target().join("e2e-go"))
            .env("GOTOOLCHAIN", "local");
        command.env("CGO_ENABLED", "0").env("GO111MODULE", "off");
        ensure!(
            command
                .status()
                .context("Go is needed: apt-get install golang-go")?
                .success(),
            "failed: {command:?}"
        );
        Ok(())
    })
}

/// What `ldd` says an executable links to; nothing if it is static.
pub(crate) fn links_to(executable: &Path) -> Result<BTreeSet<PathBuf>> {
    let said = Command::new("ldd").arg(executable).output().context("ldd")?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    Ok(said
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(PathBuf::from)
        .collect())
}
