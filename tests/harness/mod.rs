//! Hosts that share nothing, on one machine.
//!
//! A [`World`] has hosts `a`, `b` and, when asked for, more: each a network, mount, PID, UTS and IPC namespace with a loopback
//! of its own, joined by veth pairs (10.77.0.1, 10.77.0.2, …). Host `a`, and every host after `b`, sees the machine's files and has
//! its own `/tmp`, `/run` and terminals. Host `b`, the destination, has a **bare root**: our four binaries, what `ldd` says they
//! link to (at another path than at `a`), `/proc`, a minimal `/dev`, and nothing else: no file of any program.
//!
//! Worlds know nothing of each other, so tests run side by side. They need either root or user namespaces for ordinary users;
//! [`User`] says who runs the commands *inside*, and is independent of that.
//!
//! | file | subject |
//! |---|---|
//! | `host` | the inside: namespaces, file systems, the PID 1 of each host |
//! | `wire` | the connection between a test and such a PID 1 |
//! | `running` | a command on a host: its streams, its end, deadlines |
//! | `programs` | the test programs, compiled once |
//! | `report` | what must not be left behind, and what a failure leaves to be understood |
#![allow(
    dead_code,
    reason = "each of the test binaries and benches that include the harness uses its own part of it"
)]

pub(crate) mod host;
pub(crate) mod programs;
pub(crate) mod report;
pub(crate) mod running;
mod wire;

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use libtest_mimic::{Failed, Trial};

use host::{Ask, BIN, HOME, HostSpec, Made, PROGRAMS, Say, VRUN, WorldSpec};
#[allow(unused_imports, reason = "as above")]
pub(crate) use running::{Cmd, Output, Running, Status, Streams};
use wire::Line;

/// No wait is longer than this.
pub(crate) const PATIENCE: Duration = Duration::from_secs(40);

/// The TCP port of `vrund`.
pub(crate) const PORT: u16 = 12092;

/// Who runs the commands on the hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum User {
    /// uid 0 with every capability the world has.
    Root,
    /// uid 1000 without any capability.
    Ordinary,
}

impl User {
    /// As a part of a test's name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Ordinary => "ordinary",
        }
    }
}

/// What a world is to have; the defaults are two hosts with room enough.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) user: User,
    /// Host names, in the order of their addresses; `b` is bare.
    pub(crate) hosts: Vec<&'static str>,
    /// Size of `a`'s file system for stored images, as `mount -o size=` takes it.
    pub(crate) state_of_a: &'static str,
    /// Size of `b`'s file system for stored images, as `mount -o size=` takes it.
    pub(crate) state_of_b: &'static str,
}

impl From<User> for Options {
    fn from(user: User) -> Self {
        Self {
            user,
            hosts: vec!["a", "b"],
            state_of_a: "1g",
            state_of_b: "1g",
        }
    }
}

/// Some hosts, and their end: dropping it ends every process in them.
pub(crate) struct World {
    pub(crate) a: Host,
    pub(crate) b: Host,
    /// The hosts after `b`.
    pub(crate) others: Vec<Host>,
    keeper: Child,
    line: Option<Line>,
}

impl World {
    /// Makes the hosts; returns when all are complete.
    pub(crate) fn new(options: impl Into<Options>) -> Result<Self> {
        let options = options.into();
        let programs = programs::build()?;
        let spec = WorldSpec {
            ordinary: options.user == User::Ordinary,
            hosts: options
                .hosts
                .iter()
                .map(|name| host_spec(name, &options, programs))
                .collect::<Result<_>>()?,
        };
        let (line, its) = Line::pair()?;
        let mut keeper = host::keeper(&spec, its)?.spawn()?;
        let made = line.receive::<Made>()?.context("the keeper of the world ended");
        let (pids, lines) = match made {
            Ok((Ok(pids), lines)) => (pids, lines),
            Ok((Err(why), _)) => bail!("cannot make a world: {why} ({:?})", keeper.wait()),
            Err(error) => bail!("cannot make a world: {error}"),
        };
        let parts = spec.hosts.iter().zip(pids).zip(lines).enumerate();
        let hosts =
            parts.map(|(i, ((spec, pid), fd))| Host::open(&spec.name, host::address(i), pid, Line(fd), options.user));
        let mut hosts = hosts.collect::<Result<Vec<_>>>()?;
        let others = hosts.split_off(2);
        let (b, a) = (hosts.pop().context("host b")?, hosts.pop().context("host a")?);
        Ok(Self {
            a,
            b,
            others,
            keeper,
            line: Some(line),
        })
    }

    /// Every host.
    pub(crate) fn hosts(&self) -> impl Iterator<Item = &Host> {
        [&self.a, &self.b].into_iter().chain(&self.others)
    }

    /// Makes every host know and trust every host, itself too, by `vctl key` and `vctl trust`.
    pub(crate) fn trust_all(&self) -> Result<()> {
        for of in self.hosts() {
            let key = of.key()?;
            for at in self.hosts() {
                at.ok(["vctl", "trust", of.name(), &key, "--address", of.address()])?;
            }
        }
        Ok(())
    }

    /// Forgets what the commands that have ended so far have printed: the next report is about what comes now.
    pub(crate) fn forget_logs(&self) {
        for host in self.hosts() {
            let daemons = host.0.daemons.lock().map(|daemons| daemons.clone()).unwrap_or_default();
            if let Ok(mut logs) = host.0.logs.lock() {
                logs.retain(|log| daemons.contains(&log.pid));
            }
        }
    }

    /// Trust and a daemon everywhere: what most tests start from.
    pub(crate) fn ready(&self) -> Result<()> {
        self.trust_all()?;
        self.hosts().try_for_each(|host| host.daemon().map(drop))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.line = None;
        let _ = self.keeper.wait();
    }
}

/// The plan of one host.
fn host_spec(name: &str, options: &Options, programs: &Path) -> Result<HostSpec> {
    let bare = name == "b";
    let mut files = Vec::new();
    let mut libraries = BTreeSet::new();
    for binary in ["vrun", "vmigrate", "vctl", "vrund"] {
        let path = binaries()?.join(binary);
        ensure!(path.exists(), "{} is not there: `cargo build` makes it", path.display());
        libraries.extend(programs::links_to(&path)?);
        files.push((path, Path::new(BIN).join(binary)));
    }
    if bare {
        for library in libraries {
            // Found by the dynamic linker's defaults, and not where `a` has them: a path of a's libc leads nowhere here.
            let name = library.file_name().context("a library has a name")?;
            let interpreter = library.starts_with("/lib64");
            let here = if interpreter {
                library.clone()
            } else {
                Path::new("/usr/lib").join(name)
            };
            files.push((library, here));
        }
    } else {
        files.push((programs.to_owned(), PROGRAMS.into()));
        // This executable can itself be a program of a test.
        files.push((std::env::current_exe()?, Path::new(BIN).join("peer")));
    }
    let state_size = match name {
        "a" => options.state_of_a,
        "b" => options.state_of_b,
        _ => "1g",
    };
    Ok(HostSpec {
        name: name.to_owned(),
        bare,
        state_size: state_size.to_owned(),
        files,
    })
}

/// Where Cargo has put our binaries: next to the `deps` directory of this executable.
fn binaries() -> Result<PathBuf> {
    let here = std::env::current_exe()?;
    Ok(here
        .ancestors()
        .nth(2)
        .context("a test executable lies in target/PROFILE/deps")?
        .to_owned())
}

/// One host; a handle that can be cloned.
#[derive(Clone)]
pub(crate) struct Host(Arc<Inner>);

struct Inner {
    name: String,
    address: String,
    /// PID of its init in the test's own namespace: the door to its `/proc` and its files.
    init: i32,
    user: User,
    line: Line,
    answers: Mutex<Receiver<(Say, Vec<std::os::fd::OwnedFd>)>>,
    exits: Arc<(Mutex<HashMap<i32, i32>>, Condvar)>,
    logs: Mutex<Vec<report::Log>>,
    daemons: Mutex<Vec<i32>>,
    /// What `VRUN_RUNTIME` held when the daemon had just started.
    at_rest: Mutex<BTreeSet<String>>,
}

impl Host {
    /// Waits until the host is complete and starts listening to its init.
    fn open(name: &str, address: String, init: i32, line: Line, user: User) -> Result<Self> {
        match line.receive::<Say>()? {
            Some((Say::Ready, _)) => {}
            Some((Say::Failed(why), _)) => bail!("{why}"),
            other => bail!("host {name} ended while it was made: {other:?}"),
        }
        let (sender, receiver) = channel();
        let exits = Arc::new((Mutex::new(HashMap::new()), Condvar::new()));
        let inner = Arc::new(Inner {
            name: name.to_owned(),
            address,
            init,
            user,
            line: Line(line.0.try_clone()?),
            answers: Mutex::new(receiver),
            exits: Arc::clone(&exits),
            logs: Mutex::default(),
            daemons: Mutex::default(),
            at_rest: Mutex::default(),
        });
        thread::spawn(move || {
            while let Ok(Some((said, fds))) = line.receive::<Say>() {
                if let Say::Exited(pid, status) = said {
                    exits.0.lock().expect("no panic under this lock").insert(pid, status);
                    exits.1.notify_all();
                } else if sender.send((said, fds)).is_err() {
                    return;
                }
            }
        });
        Ok(Self(inner))
    }

    /// Its name, in the world and as a peer.
    pub(crate) fn name(&self) -> &str {
        &self.0.name
    }

    /// Its IPv4 address.
    pub(crate) fn address(&self) -> &str {
        &self.0.address
    }

    /// Who runs commands here.
    pub(crate) fn user(&self) -> User {
        self.0.user
    }

    /// Asks its init for something and waits for the answer.
    pub(crate) fn ask(
        &self,
        ask: &Ask,
        fds: &[std::os::fd::BorrowedFd<'_>],
    ) -> Result<(Say, Vec<std::os::fd::OwnedFd>)> {
        // One at a time: answers come in the order of the requests.
        let answers = self
            .0
            .answers
            .lock()
            .map_err(|_| anyhow!("an earlier request panicked"))?;
        self.0.line.send(ask, fds)?;
        match answers.recv_timeout(PATIENCE) {
            Ok((Say::Failed(why), _)) => bail!("host {}: {why}", self.name()),
            Ok(answer) => Ok(answer),
            Err(error) => bail!("the init of host {} does not answer: {error}", self.name()),
        }
    }

    /// The environment of every command here.
    pub(crate) fn environment(&self) -> Vec<(String, String)> {
        let user = if self.0.user == User::Root { "root" } else { "user" };
        let fixed = [
            ("PATH", format!("{BIN}:/usr/bin:/bin:/usr/sbin:/sbin")),
            ("HOME", HOME.into()),
        ];
        let named = [
            ("USER", user),
            ("LOGNAME", user),
            ("TERM", "xterm-256color"),
            ("LANG", "C.UTF-8"),
        ];
        let dirs =
            ["home", "runtime", "state"].map(|dir| (format!("VRUN_{}", dir.to_uppercase()), format!("{VRUN}/{dir}")));
        let fixed = fixed.into_iter().map(|(name, value)| (name.to_owned(), value));
        fixed
            .chain(named.map(|(name, value)| (name.to_owned(), value.to_owned())))
            .chain(dirs)
            .collect()
    }

    /// Starts a command.
    pub(crate) fn start(&self, command: &Cmd) -> Result<Running> {
        Running::start(self, command)
    }

    /// Runs a command to its end.
    pub(crate) fn run<S: AsRef<str>>(&self, argv: impl IntoIterator<Item = S>) -> Result<Output> {
        self.start(&Cmd::new(argv))?.finish()
    }

    /// Runs a command that must succeed and gives what it printed on stdout.
    pub(crate) fn ok<S: AsRef<str>>(&self, argv: impl IntoIterator<Item = S>) -> Result<String> {
        let command = Cmd::new(argv);
        let output = self.start(&command)?.finish()?;
        ensure!(
            output.status == Status::Exit(0),
            "`{command}` on {}: {output:?}",
            self.name()
        );
        Ok(output.stdout)
    }

    /// This host's public key.
    pub(crate) fn key(&self) -> Result<String> {
        Ok(self.ok(["vctl", "key"])?.trim().to_owned())
    }

    /// Starts `vrund` on this host's address and waits until it is ready. It ends with the world.
    pub(crate) fn daemon(&self) -> Result<Running> {
        let daemon = self.start(&Cmd::new(["vrund", "--listen", self.address()]))?;
        daemon.wait_text("ready\n")?;
        self.0.daemons.lock().map_err(|_| anyhow!("poisoned"))?.push(daemon.pid);
        *self.0.at_rest.lock().map_err(|_| anyhow!("poisoned"))? =
            report::listing(&self.path(&format!("{VRUN}/runtime")))?;
        Ok(daemon)
    }

    /// Sends a signal to a PID of this host.
    pub(crate) fn signal(&self, pid: i32, signal: i32) -> Result<()> {
        self.ask(&Ask::Kill(pid, signal), &[]).map(drop)
    }

    /// Waits for the end of a PID that was started here.
    fn exit_of(&self, pid: i32, patience: Duration) -> Option<Status> {
        let exits = self.0.exits.0.lock().expect("no panic under this lock");
        let ended = self
            .0
            .exits
            .1
            .wait_timeout_while(exits, patience, |exits| !exits.contains_key(&pid));
        ended
            .expect("no panic under this lock")
            .0
            .get(&pid)
            .map(|raw| Status::from_raw(*raw))
    }

    /// A path of this host as the test process reaches it. Symbolic links to absolute paths lead out of the host.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        Path::new(&format!("/proc/{}/root", self.0.init)).join(path.trim_start_matches('/'))
    }

    /// Whether this host has such a file.
    pub(crate) fn exists(&self, path: &str) -> bool {
        self.path(path).symlink_metadata().is_ok()
    }

    /// The contents of a file of this host.
    pub(crate) fn get(&self, path: &str) -> Result<Vec<u8>> {
        fs::read(self.path(path)).with_context(|| format!("{path} on host {}", self.name()))
    }

    /// The contents of a text file of this host.
    pub(crate) fn text(&self, path: &str) -> Result<String> {
        Ok(String::from_utf8(self.get(path)?)?)
    }

    /// Writes a file of this host's user, and the directories that lead to it.
    pub(crate) fn put(&self, path: &str, bytes: impl AsRef<[u8]>) -> Result<()> {
        let at = self.path(path);
        self.mkdir(path.rsplit_once('/').context("an absolute path")?.0)?;
        fs::write(&at, bytes).with_context(|| format!("{path} on host {}", self.name()))?;
        self.give(&at)
    }

    /// Makes a directory of this host's user, and those that lead to it.
    pub(crate) fn mkdir(&self, path: &str) -> Result<()> {
        let mut at = self.path("/");
        for part in Path::new(path.trim_start_matches('/')) {
            at.push(part);
            if !at.exists() {
                fs::create_dir(&at).with_context(|| format!("{path} on host {}", self.name()))?;
                self.give(&at)?;
            }
        }
        Ok(())
    }

    /// Makes a file executable.
    pub(crate) fn make_executable(&self, path: &str) -> Result<()> {
        Ok(fs::set_permissions(self.path(path), fs::Permissions::from_mode(0o755))?)
    }

    /// Hands a file to the owner of this host's home directory, who is the host's user.
    fn give(&self, at: &Path) -> Result<()> {
        use std::os::unix::fs::MetadataExt;
        let home = fs::metadata(self.path(HOME))?;
        Ok(chown(at, Some(home.uid()), Some(home.gid()))?)
    }

    /// The PIDs of this host, its init not among them.
    pub(crate) fn pids(&self) -> Vec<i32> {
        let entries = fs::read_dir(self.path("/proc")).into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_string_lossy().parse().ok());
        pids.filter(|pid| *pid != 1).collect()
    }

    /// A file of a process of this host, as text; empty if it is not readable or the process is gone.
    pub(crate) fn proc(&self, pid: i32, file: &str) -> String {
        let bytes = fs::read(self.path(&format!("/proc/{pid}/{file}"))).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The command line of a process, its words separated by spaces.
    pub(crate) fn command_line(&self, pid: i32) -> String {
        self.proc(pid, "cmdline").trim_end_matches('\0').replace('\0', " ")
    }

    /// The process with exactly this command line that has memory of its own, as a deputy has not.
    pub(crate) fn find(&self, command: &Cmd) -> Option<i32> {
        let wanted = command.to_string();
        self.pids().into_iter().find(|pid| self.command_line(*pid) == wanted)
    }

    /// Waits until the process with this command line has used that many clock ticks (of 10 ms) of CPU in user mode.
    pub(crate) fn wait_ticks(&self, command: &Cmd, ticks: u64) -> Result<i32> {
        self.wait_until(&format!("`{command}` to compute"), || {
            self.find(command).filter(|pid| self.ticks(*pid) >= ticks)
        })
    }

    /// CPU time in user mode, in clock ticks of 10 ms (proc_pid_stat(5), field 14).
    pub(crate) fn ticks(&self, pid: i32) -> u64 {
        let stat = self.proc(pid, "stat");
        let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
        fields
            .split_whitespace()
            .nth(11)
            .and_then(|field| field.parse().ok())
            .unwrap_or(0)
    }

    /// Polls for something in `/proc` or a directory, which nobody announces.
    pub(crate) fn wait_until<T>(&self, what: &str, look: impl Fn() -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = look() {
                return Ok(found);
            }
            ensure!(
                Instant::now() < deadline,
                "host {}: waited in vain for {what}",
                self.name()
            );
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn log(&self, pid: i32, command: String, out: &Arc<running::Tap>, err: &Arc<running::Tap>) {
        let log = report::Log {
            pid,
            command,
            out: Arc::clone(out),
            err: Arc::clone(err),
        };
        self.0.logs.lock().expect("no panic under this lock").push(log);
    }
}

/// Copies a file between hosts "by any means".
pub(crate) fn copy(from: &Host, path: &str, to: &Host, there: &str) -> Result<()> {
    to.put(there, from.get(path)?)
}

/// A test in a world of its own: makes it, runs `body`, and looks for what is left behind. Its name ends with the user's.
pub(crate) fn trial(
    name: &str,
    options: impl Into<Options>,
    body: impl FnOnce(&World) -> Result<()> + Send + 'static,
) -> Trial {
    let options = options.into();
    let name = format!("{name}::{}", options.user.name());
    let known = name.clone();
    Trial::test(name, move || {
        let world = World::new(options).map_err(|error| Failed::from(format!("{error:#}")))?;
        report::judge(&known, &world, || {
            body(&world).and_then(|()| report::nothing_left(&world))
        })
        .map_err(Failed::from)
    })
}
