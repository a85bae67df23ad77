//! The inside of a world: the processes that make the hosts and are their PID 1.
//!
//! ```text
//!   test process ──(stdin of `--world`, a Line)── keeper of the world: own user namespace if the user is not root
//!        │                                           │ clone(NEWNET NEWNS NEWPID NEWUTS NEWIPC), PR_SET_PDEATHSIG
//!        ├──────────── Line ────────── init of a ────┤      a: the machine's files, own /tmp /run /dev/pts
//!        └──────────── Line ────────── init of b ────┘      b: bare root, our binaries and what they link to
//! ```
//!
//! When the test process dies, in whatever way, the keeper sees the end of its stdin and exits, its death kills every init, and
//! an init's death kills everything in its PID namespace. Nothing has a name outside, so nothing is left behind.
#![allow(
    unsafe_code,
    reason = "clone(2), terminal ioctls, and the steps between fork and exec"
)]

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{Pid, chdir, pivot_root, sethostname};
use serde::{Deserialize, Serialize};

use super::wire::Line;

/// The first argument that makes this executable the keeper of a world instead of a test.
const WORLD: &str = "--world";
/// Where every host keeps what belongs to the tests; a tmpfs of its own on each.
pub(crate) const HOME: &str = "/tmp/home";
/// Our four binaries, on every host.
pub(crate) const BIN: &str = "/tmp/bin";
/// The test programs, on hosts that have the machine's file system.
pub(crate) const PROGRAMS: &str = "/tmp/programs";
/// `VRUN_HOME`, `VRUN_RUNTIME`, `VRUN_STATE` are below it, on every host.
pub(crate) const VRUN: &str = "/tmp/vrun";

/// What to make.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct WorldSpec {
    /// In the order of their addresses, 10.77.0.1 first.
    pub(crate) hosts: Vec<HostSpec>,
    /// Whether commands run as uid 1000 without any capability, or as root.
    pub(crate) ordinary: bool,
}

/// One host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct HostSpec {
    /// Host name, unique in its world.
    pub(crate) name: String,
    /// A root that holds nothing but `files`, or the machine's.
    pub(crate) bare: bool,
    /// Size of the file system of `VRUN_STATE`, as `mount -o size=` takes it.
    pub(crate) state_size: String,
    /// Files and directories of the machine that this host sees: (there, here).
    pub(crate) files: Vec<(PathBuf, PathBuf)>,
}

/// A test's request to an init; each is answered by exactly one [`Say`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Ask {
    /// Start a command; three descriptors come with it. `tty`: the first is to be its controlling terminal.
    Spawn {
        argv: Vec<String>,
        env: Vec<(String, String)>,
        cwd: String,
        tty: bool,
    },
    /// Open a terminal of this size (columns, rows); master and slave come with the answer.
    Pty(u16, u16),
    /// Send a signal to a PID of this host.
    Kill(i32, i32),
}

/// What an init says: answers in the order of the requests, and `Exited` whenever it happens.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Say {
    /// The host is complete.
    Ready,
    /// The request failed.
    Failed(String),
    /// PID in this host.
    Spawned(i32),
    /// Done; descriptors beside it if some were asked for.
    Done,
    /// A process ended: its PID here and its raw wait status.
    Exited(i32, i32),
}

/// The keeper's one message to the test: the PID of each init; its connection comes beside it.
pub(crate) type Made = Result<Vec<i32>, String>;

/// To be called first in `main`: becomes the keeper of a world if this process was started as one.
pub(crate) fn become_keeper_if_asked() {
    let mut args = std::env::args().skip(1);
    if args.next().as_deref() == Some(WORLD) {
        let line = Line(
            io::stdin()
                .as_fd()
                .try_clone_to_owned()
                .expect("stdin is the connection to the test"),
        );
        let made = serde_json::from_str(&args.next().unwrap_or_default())
            .map_err(Into::into)
            .and_then(|s| keep(&s, &line));
        if let Err(error) = made {
            let _ = line.send(&Made::Err(format!("{error:#}")), &[]);
        }
        std::process::exit(0);
    }
    // What the test runner was given by its own surroundings is nothing that a job on a fresh host would find open.
    // SAFETY: marks descriptors close-on-exec; none is closed here.
    unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, CLOSE_RANGE_CLOEXEC) };
}

/// `CLOSE_RANGE_CLOEXEC` (`linux/close_range.h`).
const CLOSE_RANGE_CLOEXEC: u32 = 4;

/// The command that starts a keeper.
pub(crate) fn keeper(spec: &WorldSpec, line: Line) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .arg(WORLD)
        .arg(serde_json::to_string(spec)?)
        .stdin(Stdio::from(line.0))
        .stdout(Stdio::null());
    Ok(command)
}

/// Makes the hosts, hands their connections to the test, and lives as long as the test.
fn keep(spec: &WorldSpec, line: &Line) -> Result<()> {
    let nested = !nix::unistd::geteuid().is_root();
    if nested {
        let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
        unshare(CloneFlags::CLONE_NEWUSER).context("user namespaces for ordinary users are needed (or run as root)")?;
        fs::write("/proc/self/setgroups", "deny")?;
        fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
        fs::write("/proc/self/gid_map", format!("0 {gid} 1"))?;
    }
    // The veth pairs are born from here, not from the machine's network namespace.
    unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;

    let mut inits = Vec::new();
    for index in 0..spec.hosts.len() {
        let (ours, its) = Line::pair()?;
        let flags =
            libc::CLONE_NEWNET | libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC;
        // SAFETY: a clone without CLONE_VM is a fork; this process has one thread, so the child may go on as usual.
        match unsafe { libc::syscall(libc::SYS_clone, i64::from(flags | libc::SIGCHLD), 0, 0, 0, 0) } {
            0 => {
                drop((ours, std::mem::take(&mut inits)));
                let lived = be_init(spec, index, &its, nested);
                if let Err(error) = lived {
                    let _ = its.send(&Say::Failed(format!("host {}: {error:#}", spec.hosts[index].name)), &[]);
                }
                std::process::exit(0);
            }
            -1 => bail!("cannot make the namespaces of a host: {}", io::Error::last_os_error()),
            pid => inits.push((i32::try_from(pid)?, ours)),
        }
    }
    for (i, (pid, _)) in inits.iter().enumerate() {
        for (j, (other, _)) in inits.iter().enumerate().skip(i + 1) {
            let (to, back) = (link(spec, j), link(spec, i));
            let text = format!("link add {to} netns {pid} type veth peer name {back} netns {other}\n");
            ip(&text).context("cannot join two hosts by a veth pair")?;
        }
    }
    for (_, host) in &inits {
        host.send(&(), &[])?;
    }
    let pids = inits.iter().map(|(pid, _)| *pid).collect();
    let ends: Vec<BorrowedFd<'_>> = inits.iter().map(|(_, line)| line.0.as_fd()).collect();
    line.send(&Made::Ok(pids), &ends)?;
    let pids: Vec<i32> = inits.into_iter().map(|(pid, _)| pid).collect();
    while line.receive::<()>()?.is_some() {}
    for pid in pids {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        // SAFETY: plain waitpid(2) for a child of ours. It returns when the whole PID namespace is empty.
        unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
    }
    Ok(())
}

/// Name, in every other host, of the link to host `index`.
fn link(spec: &WorldSpec, index: usize) -> String {
    format!("to-{}", spec.hosts[index].name)
}

/// Address of host `index`.
pub(crate) fn address(index: usize) -> String {
    format!("10.77.0.{}", index + 1)
}

/// Runs a batch of `ip(8)` commands in the present network namespace.
fn ip(batch: &str) -> Result<()> {
    let mut child = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .context("iproute2 is needed")?;
    child
        .stdin
        .take()
        .context("stdin was asked for")?
        .write_all(batch.as_bytes())?;
    ensure!(child.wait()?.success(), "`ip` failed on: {batch}");
    Ok(())
}

/// PID 1 of a host: furnishes it, then serves the test until that closes the connection.
fn be_init(spec: &WorldSpec, index: usize, line: &Line, nested: bool) -> Result<()> {
    let host = &spec.hosts[index];
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    if line.receive::<()>()?.is_none() {
        return Ok(());
    }
    sethostname(&host.name)?;
    let mut batch = "link set lo up\n".to_owned();
    for other in (0..spec.hosts.len()).filter(|other| *other != index) {
        let (dev, here, there) = (link(spec, other), address(index), address(other));
        batch += &format!("address add {here} peer {there} dev {dev}\nlink set {dev} up\n");
    }
    ip(&batch)?;

    // What uid 1000 of a host is here: with one id in our own user namespace it is that one, renamed by a namespace inside.
    let uid = if spec.ordinary && !nested { 1000 } else { 0 };
    furnish(host, uid)?;
    let inner = (spec.ordinary && nested).then(ordinary_namespace).transpose()?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));

    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    mask.thread_block()?;
    let children = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    line.send(&Say::Ready, &[])?;
    loop {
        let mut ready = [
            PollFd::new(line.0.as_fd(), PollFlags::POLLIN),
            PollFd::new(children.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut ready, PollTimeout::NONE) {
            Err(nix::Error::EINTR) => continue,
            other => other?,
        };
        let asked = ready[0].any().unwrap_or(false);
        while children.read_signal()?.is_some() {}
        reap(line)?;
        if asked {
            let Some((ask, fds)) = line.receive::<Ask>()? else {
                return Ok(());
            };
            let answer = match ask {
                Ask::Spawn { argv, env, cwd, tty } => spawn(&argv, &env, &cwd, tty, fds, uid, inner.as_ref()),
                Ask::Pty(cols, rows) => match terminal(cols, rows, uid) {
                    Ok((master, slave)) => {
                        line.send(&Say::Done, &[master.as_fd(), slave.as_fd()])?;
                        continue;
                    }
                    Err(error) => Err(error),
                },
                // No nix here: it does not know real-time signals.
                // SAFETY: plain kill(2).
                Ask::Kill(pid, signal) => match unsafe { libc::kill(pid, signal) } {
                    0 => Ok(Say::Done),
                    _ => Err(io::Error::last_os_error().into()),
                },
            };
            line.send(&answer.unwrap_or_else(|error| Say::Failed(format!("{error:#}"))), &[])?;
        }
    }
}

/// Collects every ended child, orphans too, and tells the test.
fn reap(line: &Line) -> Result<()> {
    let mut status = 0;
    loop {
        // SAFETY: plain waitpid(2); nix loses children that were ended by a real-time signal.
        match unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) } {
            pid if pid > 0 => line.send(&Say::Exited(pid, status), &[])?,
            _ => return Ok(()),
        }
    }
}

/// Starts a command as the host's user, in a session of its own.
fn spawn(
    argv: &[String],
    env: &[(String, String)],
    cwd: &str,
    tty: bool,
    fds: Vec<OwnedFd>,
    uid: u32,
    inner: Option<&File>,
) -> Result<Say> {
    let [stdin, stdout, stderr] =
        <[OwnedFd; 3]>::try_from(fds).map_err(|_| anyhow::anyhow!("three descriptors are needed"))?;
    let mut command = Command::new(argv.first().context("an empty command")?);
    command
        .args(&argv[1..])
        .env_clear()
        .envs(env.iter().cloned())
        .current_dir(cwd);
    command.stdin(stdin).stdout(stdout).stderr(stderr);
    let inner = inner.map(AsRawFd::as_raw_fd);
    let become_user = move || {
        let check = |result: libc::c_int| {
            if result == -1 {
                Err(io::Error::last_os_error())
            } else {
                Ok(())
            }
        };
        // SAFETY: only system calls, on numbers and descriptors that live until exec.
        unsafe {
            // What init blocks for its signalfd is inherited over exec.
            let none = std::mem::zeroed::<libc::sigset_t>();
            check(libc::sigprocmask(
                libc::SIG_SETMASK,
                &raw const none,
                std::ptr::null_mut(),
            ))?;
            check(libc::setsid())?;
            if tty {
                check(libc::ioctl(0, libc::TIOCSCTTY, 0))?;
            }
            if let Some(inner) = inner {
                check(libc::setns(inner, libc::CLONE_NEWUSER))?;
            }
            if uid != 0 {
                check(libc::setgroups(0, std::ptr::null()))?;
                check(libc::setgid(uid))?;
                check(libc::setuid(uid))?;
            }
        }
        Ok(())
    };
    // SAFETY: the closure makes async-signal-safe calls only.
    unsafe { command.pre_exec(become_user) };
    let child = command.spawn().with_context(|| format!("cannot start {argv:?}"))?;
    Ok(Say::Spawned(i32::try_from(child.id())?))
}

/// A user namespace in which our only id is called 1000; everything that runs as the ordinary user of this host joins it,
/// so that all of it is in the same one (processes of sister namespaces may not trace each other).
fn ordinary_namespace() -> Result<File> {
    let (here, there) = Line::pair()?;
    // SAFETY: one thread; the child makes one system call, waits, and leaves.
    match unsafe { libc::fork() } {
        0 => {
            drop(here);
            let made = unshare(CloneFlags::CLONE_NEWUSER).is_ok();
            let _ = there.send(&made, &[]);
            let _ = there.receive::<()>();
            std::process::exit(0);
        }
        -1 => bail!("fork: {}", io::Error::last_os_error()),
        child => {
            drop(there);
            ensure!(
                here.receive::<bool>()?.is_some_and(|(made, _)| made),
                "cannot make the user namespace of uid 1000"
            );
            fs::write(format!("/proc/{child}/setgroups"), "deny")?;
            fs::write(format!("/proc/{child}/uid_map"), "1000 0 1")?;
            fs::write(format!("/proc/{child}/gid_map"), "1000 0 1")?;
            let namespace = File::open(format!("/proc/{child}/ns/user"))?;
            drop(here);
            // SAFETY: plain waitpid(2) for the child above, which leaves when our end is closed.
            unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
            Ok(namespace)
        }
    }
}

/// A terminal of this host's own devpts: (master, slave).
fn terminal(cols: u16, rows: u16, uid: u32) -> Result<(OwnedFd, OwnedFd)> {
    let mut open = OpenOptions::new();
    open.read(true).write(true).custom_flags(libc::O_NOCTTY);
    let master = open.open("/dev/pts/ptmx").context("/dev/pts/ptmx")?;
    let (unlock, mut number): (libc::c_int, libc::c_uint) = (0, 0);
    // SAFETY: the three ioctls read or write one integer each, which lives here (ioctl_tty(2)).
    let slave = unsafe {
        ensure!(
            libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlock) == 0,
            "TIOCSPTLCK"
        );
        ensure!(
            libc::ioctl(master.as_raw_fd(), libc::TIOCGPTN, &raw mut number) == 0,
            "TIOCGPTN"
        );
        let fd = libc::ioctl(
            master.as_raw_fd(),
            libc::TIOCGPTPEER,
            libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC,
        );
        ensure!(fd >= 0, "TIOCGPTPEER: {}", io::Error::last_os_error());
        OwnedFd::from_raw_fd(fd)
    };
    chown(format!("/dev/pts/{number}"), Some(uid), None)?;
    resize(master.as_fd(), cols, rows)?;
    Ok((master.into(), slave))
}

/// Sets a terminal's window size; whoever has it in the foreground gets SIGWINCH.
pub(crate) fn resize(terminal: BorrowedFd<'_>, cols: u16, rows: u16) -> Result<()> {
    let size = libc::winsize {
        ws_row: rows,
        ws_col: cols,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCSWINSZ reads one winsize, which lives here.
    let done = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    ensure!(done == 0, "TIOCSWINSZ: {}", io::Error::last_os_error());
    Ok(())
}

/// Gives the host its files.
fn furnish(host: &HostSpec, uid: u32) -> Result<()> {
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("cannot make mounts private")?;
    // Opened before anything is covered: the files may well be under /tmp.
    let files = host.files.iter().map(|(there, here)| {
        let flags = libc::O_PATH | libc::O_CLOEXEC;
        let fd = OpenOptions::new()
            .read(true)
            .custom_flags(flags)
            .open(there)
            .with_context(|| there.display().to_string());
        Ok((fd?, here))
    });
    let files = files.collect::<Result<Vec<_>>>()?;

    // The bare root grows in /tmp, the other one stays where it is.
    tmpfs("/tmp", if host.bare { "mode=755" } else { "mode=1777" })?;
    let root = Path::new(if host.bare { "/tmp" } else { "/" });
    let at = |path: &str| root.join(path.trim_start_matches('/'));
    if host.bare {
        for dir in ["proc", "dev/pts", "dev/shm", "tmp", "etc", "run"] {
            fs::create_dir_all(root.join(dir))?;
        }
        for device in ["null", "zero", "full", "random", "urandom", "tty"] {
            bind(Path::new("/dev").join(device), &root.join("dev").join(device))?;
        }
        std::os::unix::fs::symlink("pts/ptmx", at("/dev/ptmx"))?;
        for (link, target) in [("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")] {
            std::os::unix::fs::symlink(format!("/proc/self/fd{target}"), at("/dev").join(link))?;
        }
        fs::write(at("/etc/hosts"), format!("127.0.0.1 localhost {}\n", host.name))?;
        fs::write(
            at("/etc/passwd"),
            format!("root:x:0:0::{HOME}:/bin/sh\nuser:x:1000:1000::{HOME}:/bin/sh\n"),
        )?;
        fs::write(at("/etc/group"), "root:x:0:\nuser:x:1000:\n")?;
        fs::set_permissions(at("/tmp"), fs::Permissions::from_mode(0o1777))?;
    } else {
        tmpfs("/run", "mode=755")?;
    }
    tmpfs(at("/dev/shm"), "mode=1777")?;
    let pts = "newinstance,ptmxmode=0666,mode=0620";
    mount(
        Some("devpts"),
        &at("/dev/pts"),
        Some("devpts"),
        MsFlags::MS_NOSUID,
        Some(pts),
    )
    .context("cannot mount devpts")?;
    if !host.bare {
        bind("/dev/pts/ptmx", Path::new("/dev/ptmx"))?;
    }
    for (fd, here) in &files {
        bind(
            format!("/proc/self/fd/{}", fd.as_raw_fd()),
            &at(&here.to_string_lossy()),
        )?;
    }
    mount(Some("proc"), &at("/proc"), Some("proc"), MsFlags::empty(), none).context("cannot mount /proc")?;
    for dir in ["home", "runtime", "state"] {
        fs::create_dir_all(at(VRUN).join(dir))?;
    }
    tmpfs(
        at(VRUN).join("state"),
        &format!("mode=700,uid={uid},size={}", host.state_size),
    )?;
    fs::create_dir_all(at(HOME))?;
    for dir in [at(HOME), at(VRUN).join("home"), at(VRUN).join("runtime")] {
        chown(&dir, Some(uid), Some(uid))?;
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700))?;
    }
    if host.bare {
        // pivot_root(2), "pivot_root(".", ".")": the old root ends up on top of the new one and is taken off.
        chdir(root)?;
        pivot_root(".", ".").context("cannot pivot_root")?;
        umount2(".", MntFlags::MNT_DETACH)?;
    }
    chdir("/")?;
    Ok(())
}

/// An empty file system in memory.
fn tmpfs(at: impl AsRef<Path>, options: &str) -> Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let at = at.as_ref();
    mount(Some("tmpfs"), at, Some("tmpfs"), flags, Some(options))
        .with_context(|| format!("cannot mount a tmpfs on {at:?}"))
}

/// Shows a file or directory at another place as well, which is made.
fn bind(from: impl AsRef<Path>, to: &Path) -> Result<()> {
    let from = from.as_ref();
    if fs::metadata(from).with_context(|| format!("{from:?}"))?.is_dir() {
        fs::create_dir_all(to)?;
    } else if !to.exists() {
        fs::create_dir_all(to.parent().context("a path below /")?)?;
        File::create(to)?;
    }
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    let from = CString::new(from.to_string_lossy().as_bytes())?;
    mount(Some(from.as_c_str()), to, None::<&str>, flags, None::<&str>)
        .with_context(|| format!("cannot bind {from:?} on {to:?}"))
}
