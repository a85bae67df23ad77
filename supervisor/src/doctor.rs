//! `vctl doctor`: what a host, another one, and the two together can and cannot do, and how to change it.
//!
//! ```text
//!  diagnose ─┬─ examine         here: every check is tried, in a child of its own where it would change this process
//!            ├─ Examine ─▶ attend ─▶ examine ─▶ Examined       the same there, by that host's daemon
//!            └─ pair            keys, protocol, round trip, CPU features of one that the other lacks
//! ```
//!
//! Unsafe code: children that are forked for a check. To be called while this process has one thread.
#![allow(unsafe_code)]

use crate::config::{self, Config};
use crate::control::{ControlError, ErrorCode};
use crate::deliver;
use crate::filter;
use crate::memory::TargetMemory;
use crate::peers;
use crate::sys;
use crate::vessel::{Specification, Vessel, VesselError, World};
use serde_json::json;
use std::fmt::{self, Display, Formatter};
use std::fs;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};
use vrun_image::state::CpuFeatures;
use vrun_remote_io::channel::{Frame, Receiver, Sender};
use vrun_remote_io::keys::{Identity, TrustStore};
use vrun_remote_io::message::{Examination, Finding, Grade, Message, PROTOCOL, Purpose, Token, clip};

/// The PID that the checks choose: any that is not 1.
const SOME_PID: i32 = 4711;
/// Less free memory than this is worth a word.
const LITTLE_MEMORY: u64 = 256 << 20;
/// A longer round trip makes programs that read and write much slow.
const LONG_TRIP: Duration = Duration::from_millis(20);
/// A clock that is read in more than this is not read in the vDSO.
const SLOW_CLOCK: Duration = Duration::from_nanos(400);

fn ok(check: &str, says: impl Into<String>) -> Finding {
    finding(check, Grade::Ok, says, "")
}

fn limited(check: &str, says: impl Into<String>, advice: impl Into<String>) -> Finding {
    finding(check, Grade::Limited, says, advice)
}

fn missing(check: &str, says: impl Into<String>, advice: impl Into<String>) -> Finding {
    finding(check, Grade::Missing, says, advice)
}

fn finding(check: &str, grade: Grade, says: impl Into<String>, advice: impl Into<String>) -> Finding {
    Finding {
        check: check.to_owned(),
        grade,
        says: clip(says.into()),
        advice: clip(advice.into()),
    }
}

/// A host that was examined.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Patient {
    name: String,
    findings: Vec<Finding>,
}

/// All that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnosis {
    here: Patient,
    /// The other host, and what concerns both.
    there: Option<(Patient, Vec<Finding>)>,
}

/// Examines this host, and if `host` is given that one and the pair.
pub fn diagnose(config: &Config, host: Option<&str>) -> Diagnosis {
    // First, while there is one thread and no connection.
    let examined = examine(config);
    let there = host.map(|host| match consult(config, host, &examined.cpu_flags) {
        Ok((there, pair)) => (there, pair),
        Err(error) => {
            let name = host.to_owned();
            let advice = match error.code {
                ErrorCode::Unreachable | ErrorCode::TimedOut => {
                    "there: run `vrund`, and let its port through; both ways: `vctl trust` with the other's `vctl key`"
                }
                ErrorCode::Incompatible => "install the same version on both",
                _ => "",
            };
            let findings = Vec::new();
            (
                Patient { name, findings },
                vec![missing("connection", error.message, advice)],
            )
        }
    });
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    Diagnosis {
        here: Patient {
            name,
            findings: examined.findings,
        },
        there,
    }
}

impl Diagnosis {
    /// Whether nothing is missing.
    pub fn is_well(&self) -> bool {
        self.parts()
            .iter()
            .all(|(_, findings)| findings.iter().all(|finding| finding.grade != Grade::Missing))
    }

    fn parts(&self) -> Vec<(String, &[Finding])> {
        let mut parts = vec![(self.here.name.clone(), &self.here.findings[..])];
        if let Some((there, pair)) = &self.there {
            if !there.findings.is_empty() {
                parts.push((there.name.clone(), &there.findings));
            }
            parts.push((format!("{} and {}", self.here.name, there.name), pair));
        }
        parts
    }

    /// For `--json`, without the schema.
    pub fn to_json(&self) -> serde_json::Value {
        let patient = |patient: &Patient| json!({ "host": patient.name, "findings": findings_json(&patient.findings) });
        let hosts: Vec<_> = std::iter::once(&self.here)
            .chain(self.there.as_ref().map(|(there, _)| there))
            .map(patient)
            .collect();
        let pair = self.there.as_ref().map(|(_, pair)| findings_json(pair));
        json!({ "well": self.is_well(), "hosts": hosts, "pair": pair })
    }
}

fn findings_json(findings: &[Finding]) -> serde_json::Value {
    let one = |finding: &Finding| {
        let advice = Some(&finding.advice).filter(|advice| !advice.is_empty());
        json!({ "check": finding.check, "grade": finding.grade, "says": finding.says, "advice": advice })
    };
    findings.iter().map(one).collect()
}

/// A heading for each host and for the pair; a line for each finding, and one for how to change it.
impl Display for Diagnosis {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let visible = |text: &str| text.replace(char::is_control, " ");
        let parts = self.parts();
        let checks = parts.iter().flat_map(|(_, findings)| findings.iter());
        let width = checks.map(|finding| finding.check.len()).max().unwrap_or(0);
        for (number, (title, findings)) in parts.iter().enumerate() {
            if number > 0 {
                writeln!(f)?;
            }
            writeln!(f, "{}", visible(title))?;
            for finding in *findings {
                let grade = match finding.grade {
                    Grade::Ok => "ok",
                    Grade::Limited => "limited",
                    Grade::Missing => "missing",
                };
                let check = visible(&finding.check).replace('_', " ");
                writeln!(f, "  {grade:<7}  {check:<width$}  {}", visible(&finding.says))?;
                if !finding.advice.is_empty() {
                    writeln!(f, "  {:<7}  {:<width$}  → {}", "", "", visible(&finding.advice))?;
                }
            }
        }
        Ok(())
    }
}

/// Serves a query: the daemon's part.
///
/// # Errors
/// The connection's.
pub fn attend(config: &Config, sender: &Sender, receiver: &mut Receiver) -> Result<(), ControlError> {
    loop {
        match receiver.recv_deadline(Instant::now() + config.timeouts.answer)? {
            Frame::Message(Message::Examine) => {
                let mut examined = examine(config);
                // It has just answered.
                for finding in examined.findings.iter_mut().filter(|finding| finding.check == "daemon") {
                    *finding = ok("daemon", "answers");
                }
                sender.send(&Message::Examined(examined))?;
            }
            Frame::Message(Message::Ping(token)) => sender.send(&Message::Pong(token))?,
            Frame::Message(Message::Bye) => {
                let _ = sender.send(&Message::Bye);
                sender.shutdown();
                return Ok(());
            }
            other => return Err(peers::out_of_place("the peer", &other)),
        }
    }
}

/// Asks another host, and compares.
fn consult(config: &Config, host: &str, flags_here: &[String]) -> Result<(Patient, Vec<Finding>), ControlError> {
    let (sender, mut receiver, hello) = peers::connect(config, host, Purpose::Query)?;
    let until = || Instant::now() + config.timeouts.answer;
    // The first ones warm up what is cold on the way.
    let mut trips = Vec::new();
    for token in 0..8 {
        let asked = Instant::now();
        sender.send(&Message::Ping(Token { token }))?;
        match receiver.recv_deadline(until())? {
            Frame::Message(Message::Pong(answer)) if answer.token == token => trips.push(asked.elapsed()),
            other => return Err(peers::out_of_place(host, &other)),
        }
    }
    sender.send(&Message::Examine)?;
    let there = match receiver.recv_deadline(until())? {
        Frame::Message(Message::Examined(there)) => there,
        other => return Err(peers::out_of_place(host, &other)),
    };
    deliver::say_bye(config, &sender, &mut receiver);

    let mut pair = vec![
        ok("keys", "each has pinned the key of the other"),
        ok(
            "protocol",
            format!("both speak {PROTOCOL}; there it is {}", hello.software),
        ),
    ];
    let trip = trips.iter().min().copied().unwrap_or_default();
    let said = format!("a round trip takes {}", microseconds(trip));
    pair.push(match trip > LONG_TRIP {
        true => limited(
            "round_trip",
            format!("{said}: a program that reads and writes much will be slow away"),
            "move such programs to a host that is near",
        ),
        false => ok("round_trip", said),
    });
    pair.extend(compare_cpus(host, flags_here, &there.cpu_flags));
    let patient = Patient {
        name: host.to_owned(),
        findings: there.findings,
    };
    Ok((patient, pair))
}

fn microseconds(time: Duration) -> String {
    match time.as_micros() {
        us @ 0..1000 => format!("{us} µs"),
        us => format!("{:.1} ms", us as f64 / 1000.0),
    }
}

/// What programs of each of the two hosts may count on and would not find at the other.
fn compare_cpus(host: &str, here: &[String], there: &[String]) -> Vec<Finding> {
    let features = |flags: &[String]| CpuFeatures {
        flags: flags.to_vec(),
        ..CpuFeatures::default()
    };
    let lacking_there = crate::cpu::missing(&features(here), &features(there));
    let lacking_here = crate::cpu::missing(&features(there), &features(here));
    let advice = |list: &[String], whose: &str| {
        let quoted: Vec<_> = list.iter().map(|flag| format!("\"{flag}\"")).collect();
        format!(
            "if programs {whose} do not use them: hide_cpu_features = [{}] in config.toml {whose}",
            quoted.join(", ")
        )
    };
    let mut found = Vec::new();
    found.push(match lacking_there.as_slice() {
        [] => ok("cpu_there", format!("{host} has every CPU feature of this host")),
        list => missing(
            "cpu_there",
            format!(
                "programs from here cannot move to {host}, which lacks {}",
                list.join(", ")
            ),
            advice(list, "here"),
        ),
    });
    found.push(match lacking_here.as_slice() {
        [] => ok("cpu_here", format!("this host has every CPU feature of {host}")),
        list => limited(
            "cpu_here",
            format!("programs from {host} cannot move here, which lacks {}", list.join(", ")),
            advice(list, "there"),
        ),
    });
    found
}

/// Tries all that this host can do. Call it while this process has one thread.
pub fn examine(config: &Config) -> Examination {
    let cpu = crate::cpu::features(&config.hidden_cpu_features());
    let mut findings = vec![kernel(), user_namespaces(), pid_setting(), time_namespaces()];
    findings.push(vessel());
    findings.extend([
        capability(),
        ptrace(),
        seccomp(),
        pagemap_scan(),
        userfaultfd(),
        match &cpu {
            Ok(cpu) => ok(
                "cpu",
                format!("{}, {} features that programs can use", cpu.model, cpu.flags.len()),
            ),
            Err(error) => missing("cpu", format!("/proc/cpuinfo cannot be read: {error}"), "mount /proc"),
        },
        memory(),
        clock(),
        core_pattern(),
    ]);
    findings.extend(directories(config));
    findings.push(keys(config));
    findings.push(daemon(config));
    Examination {
        cpu_flags: cpu.map(|cpu| cpu.flags).unwrap_or_default(),
        findings,
    }
}

fn kernel() -> Finding {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|number| number.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= (6, 7) {
        ok("kernel", format!("Linux {release}"))
    } else {
        missing(
            "kernel",
            format!("Linux {release} is too old"),
            "install Linux 6.7 or newer",
        )
    }
}

/// Runs `check` in a child: its error, or none. What it changes is lost with the child.
fn in_child(check: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    // SAFETY: this process has one thread, so the child may do what we may; it leaves without running our destructors.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let code = match check() {
                Ok(()) => 0,
                Err(error) => error.raw_os_error().unwrap_or(libc::EIO),
            };
            // SAFETY: as above.
            unsafe { libc::_exit(code) }
        }
        child => wait(child),
    }
}

/// The end of a child that exits with an errno.
fn wait(child: i32) -> io::Result<()> {
    let mut status = 0;
    // SAFETY: waitpid(2) writes one int; the child is ours.
    while unsafe { libc::waitpid(child, &raw mut status, 0) } < 0 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    match libc::WIFEXITED(status) {
        true if libc::WEXITSTATUS(status) == 0 => Ok(()),
        true => Err(io::Error::from_raw_os_error(libc::WEXITSTATUS(status))),
        false => Err(io::Error::other(format!(
            "the check was ended by signal {}",
            libc::WTERMSIG(status)
        ))),
    }
}

fn cvt(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Into new namespaces, as the same user there.
fn unshare(flags: i32) -> io::Result<()> {
    // SAFETY: plain numbers.
    let (uid, gid) = unsafe { (libc::getuid(), libc::getgid()) };
    // SAFETY: as above; this is a child that is made for it.
    cvt(unsafe { libc::unshare(flags) }.into())?;
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
    fs::write("/proc/self/gid_map", format!("{gid} {gid} 1"))
}

fn sysctl(name: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/sys/{}", name.replace('.', "/"))).ok()?;
    Some(text.trim().to_owned())
}

/// What an administrator may have set so that users can make no namespaces, by name.
fn namespace_settings() -> String {
    let settings = [
        ("user.max_user_namespaces", "0", "a number above 0, such as 15000"),
        ("kernel.unprivileged_userns_clone", "0", "1"),
        ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),
        ("user.max_pid_namespaces", "0", "a number above 0, such as 15000"),
        ("user.max_time_namespaces", "0", "a number above 0, such as 15000"),
    ];
    let wrong: Vec<_> = settings
        .into_iter()
        .filter(|(name, value, _)| sysctl(name).as_deref() == Some(value))
        .map(|(name, value, wanted)| format!("{name} is {value}: as root, `sysctl -w {name}=…` with {wanted}"))
        .collect();
    match wrong.is_empty() {
        true => "look at user.max_user_namespaces, and at what a container or a security module forbids".to_owned(),
        false => wrong.join("; "),
    }
}

fn user_namespaces() -> Finding {
    match in_child(|| unshare(libc::CLONE_NEWUSER)) {
        Ok(()) => ok("user_namespaces", "a user can make one"),
        Err(error) => missing(
            "user_namespaces",
            format!("none can be made ({error}): nothing can be restored here, and no guest taken in"),
            namespace_settings(),
        ),
    }
}

/// `clone3` with `set_tid`, by the first process of a PID namespace.
fn pid_setting() -> Finding {
    let choose = || {
        unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWPID)?;
        in_child(|| {
            let pid = SOME_PID;
            // SAFETY: all zeroes is a value of this plain struct.
            let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
            arguments.exit_signal = libc::SIGCHLD as u64;
            arguments.set_tid = &raw const pid as u64;
            arguments.set_tid_size = 1;
            // SAFETY: as fork; `arguments` and `pid` outlive the call. The child ends at once.
            let child =
                cvt(unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<libc::clone_args>()) })?;
            match child {
                // SAFETY: ends this child at once.
                0 => unsafe { libc::_exit(0) },
                child if child == libc::c_long::from(SOME_PID) => wait(SOME_PID),
                _ => Err(io::Error::from_raw_os_error(libc::ERANGE)),
            }
        })
    };
    match in_child(choose) {
        Ok(()) => ok("pid_setting", "a process can be given the PID that it had"),
        Err(error) => missing(
            "pid_setting",
            format!("a PID cannot be chosen in a namespace of its own ({error}): nothing can be restored here"),
            namespace_settings(),
        ),
    }
}

/// `CLONE_NEWTIME` (`linux/sched.h`).
const NEW_TIME: i32 = 0x80;

fn time_namespaces() -> Finding {
    let shift = || {
        unshare(libc::CLONE_NEWUSER | NEW_TIME)?;
        fs::write("/proc/self/timens_offsets", "monotonic 1000 0\nboottime 1000 0\n")?;
        let before = sys::clock(libc::CLOCK_MONOTONIC);
        // The next child is in it.
        in_child(|| {
            let ahead = sys::clock(libc::CLOCK_MONOTONIC).saturating_sub(before);
            if ahead >= 1_000_000_000_000 {
                Ok(())
            } else {
                Err(io::Error::from_raw_os_error(libc::ERANGE))
            }
        })
    };
    match in_child(shift) {
        Ok(()) => ok("time_namespaces", "a monotonic clock can go on where it was"),
        Err(error) => missing(
            "time_namespaces",
            format!("none can be made ({error}): the clocks of what is restored here would jump"),
            namespace_settings(),
        ),
    }
}

/// All of it together, as for a guest.
fn vessel() -> Finding {
    // SAFETY: plain numbers.
    let (uid, gid) = unsafe { (libc::getuid(), libc::getgid()) };
    let specification = Specification {
        pid: SOME_PID,
        uid,
        gid,
        monotonic_offset: 1_000_000_000,
        boottime_offset: 1_000_000_000,
        world: World::Nothing {
            host_name: "elsewhere".to_owned(),
        },
    };
    match Vessel::create(&specification) {
        Ok(_) => ok("guests", "a process with nothing of this host can be made for one"),
        Err(error @ VesselError::Namespace(..)) => missing("guests", error.to_string(), namespace_settings()),
        Err(error) => missing(
            "guests",
            error.to_string(),
            "see what a container or a security module forbids",
        ),
    }
}

/// `CAP_CHECKPOINT_RESTORE` is 40 (capabilities(7)).
fn capability() -> Finding {
    let held = || {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
        line.and_then(|set| u64::from_str_radix(set.trim(), 16).ok())
            .is_some_and(|set| set >> 40 & 1 == 1)
    };
    let inside = in_child(|| {
        unshare(libc::CLONE_NEWUSER)?;
        if held() {
            Ok(())
        } else {
            Err(io::Error::from_raw_os_error(libc::EPERM))
        }
    });
    match inside {
        Ok(()) if held() => ok("checkpoint_restore", "CAP_CHECKPOINT_RESTORE is held"),
        Ok(()) => ok(
            "checkpoint_restore",
            "CAP_CHECKPOINT_RESTORE is held in a user namespace, which is enough",
        ),
        Err(error) => missing(
            "checkpoint_restore",
            format!("CAP_CHECKPOINT_RESTORE cannot be had in a user namespace ({error})"),
            namespace_settings(),
        ),
    }
}

/// A child and its child, as processes of a job are.
fn ptrace() -> Finding {
    let scope = sysctl("kernel.yama.ptrace_scope");
    let said = scope
        .as_ref()
        .map_or_else(String::new, |scope| format!(" (kernel.yama.ptrace_scope is {scope})"));
    let trace = || {
        // SAFETY: as in `in_child`; the child waits until it is killed by our end or by us.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // SAFETY: plain numbers.
            unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                libc::pause();
                libc::_exit(0);
            }
        }
        cvt(child.into())?;
        let seized = vrun_shim::Tracee::seize(child, 0).map(drop);
        let descriptor = sys::descriptor_of(child, 0).map(drop);
        // SAFETY: a child of ours that was not waited for; waitpid writes one int.
        unsafe {
            libc::kill(child, libc::SIGKILL);
            libc::waitpid(child, std::ptr::null_mut(), libc::__WALL);
        }
        seized.map_err(|_| io::Error::from_raw_os_error(libc::EPERM))?;
        match descriptor {
            Err(error) if error.raw_os_error() != Some(libc::EBADF) => Err(error),
            _ => Ok(()),
        }
    };
    match in_child(trace) {
        Ok(()) => ok("ptrace", format!("a program's parent can trace it{said}")),
        Err(error) => missing(
            "ptrace",
            format!("a program's parent cannot trace it: {error}{said}; nothing can be frozen"),
            "as root, `sysctl -w kernel.yama.ptrace_scope=1`, or see what a container forbids",
        ),
    }
}

fn seccomp() -> Finding {
    let install = || {
        let program = filter::native(false).map_err(|_| io::Error::from_raw_os_error(libc::ENOSYS))?;
        filter::install(&program).map(drop)
    };
    match in_child(install) {
        Ok(()) => ok("seccomp", "calls can be notified of, and wait killable"),
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => missing(
            "seccomp",
            "this command runs under a listener already: inside a job, or in a container that uses one",
            "run it outside",
        ),
        Err(error) => missing(
            "seccomp",
            format!("calls cannot be notified of ({error}): no job can be started here"),
            "install Linux 5.19 or newer with CONFIG_SECCOMP_FILTER, or see what a container forbids",
        ),
    }
}

fn pagemap_scan() -> Finding {
    let page = Box::new([1_u8; 8192]);
    let address = (page.as_ptr() as u64).next_multiple_of(4096);
    let look = || {
        let memory = TargetMemory::open(std::process::id() as i32).map_err(|error| error.to_string())?;
        match memory.populated(address, address + 4096).next() {
            Some(Ok(_)) => Ok(()),
            Some(Err(error)) => Err(error.to_string()),
            None => Err("a page in use is said to be empty".to_owned()),
        }
    };
    match look() {
        Ok(()) => ok("pagemap_scan", "pages in use can be found"),
        Err(error) => missing(
            "pagemap_scan",
            format!("pages in use cannot be found ({error}): nothing can be saved or moved from here"),
            "install Linux 6.7 or newer",
        ),
    }
}

fn userfaultfd() -> Finding {
    // UFFD_USER_MODE_ONLY, linux/userfaultfd.h.
    let open = |flags: i32| {
        in_child(|| {
            // SAFETY: plain numbers; the descriptor ends with this child.
            cvt(unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | flags) }).map(drop)
        })
    };
    match (open(0), open(1)) {
        (Ok(()), _) => ok("userfaultfd", "faults of programs and of the kernel can be handled"),
        (Err(_), Ok(())) => ok(
            "userfaultfd",
            "faults of programs can be handled, those of the kernel not (vm.unprivileged_userfaultfd is 0); \
             a move sends all memory first and needs neither",
        ),
        (_, Err(error)) => limited(
            "userfaultfd",
            format!("there is none ({error}); a move sends all memory first and does not need it"),
            "as root, `sysctl -w vm.unprivileged_userfaultfd=1`, or a kernel with CONFIG_USERFAULTFD",
        ),
    }
}

fn memory() -> Finding {
    use procfs::Current;
    let available = procfs::Meminfo::current().ok().and_then(|memory| memory.mem_available);
    match available {
        None => limited("memory", "how much is free cannot be told", "mount /proc"),
        Some(free) if free < LITTLE_MEMORY => limited(
            "memory",
            format!("only {} MiB are free: larger jobs are refused", free >> 20),
            "end something, or add memory",
        ),
        Some(free) => ok("memory", format!("{} MiB are free", free >> 20)),
    }
}

/// The time that one reading takes, the fastest of some.
fn clock() -> Finding {
    let source = fs::read_to_string("/sys/devices/system/clocksource/clocksource0/current_clocksource");
    let source = source.map_or_else(|_| "of unknown source".to_owned(), |name| name.trim().to_owned());
    let reading = || {
        const TIMES: u32 = 1000;
        let begin = Instant::now();
        for _ in 0..TIMES {
            std::hint::black_box(sys::clock(libc::CLOCK_MONOTONIC));
        }
        begin.elapsed() / TIMES
    };
    let cost = (0..5).map(|_| reading()).min().unwrap_or_default();
    let says = format!("{source}, read in {} ns", cost.as_nanos());
    if cost < SLOW_CLOCK {
        ok("clock", says)
    } else {
        limited(
            "clock",
            format!("{says}: by a system call, which slows programs down that read it often"),
            "a source that the vDSO can read, if the machine has one (tsc): see clocksource= of the kernel",
        )
    }
}

fn core_pattern() -> Finding {
    match sysctl("kernel.core_pattern") {
        Some(pattern) if pattern.starts_with('|') => ok(
            "core_pattern",
            format!(
                "a core goes to {}, of the host where the program is at home",
                pattern[1..].trim()
            ),
        ),
        Some(pattern) => ok("core_pattern", format!("a core is the file {pattern}")),
        None => limited("core_pattern", "where a core goes cannot be told", ""),
    }
}

fn directories(config: &Config) -> Vec<Finding> {
    let says = |check: &str, variable: &str, result: Result<std::path::PathBuf, config::ConfigError>| match result {
        Ok(path) => {
            // Tried: a directory of a file system without room, or read-only, is of no use.
            match tempfile::Builder::new().prefix(".doctor-").tempfile_in(&path) {
                Ok(_) => ok(check, path.display().to_string()),
                Err(error) => missing(
                    check,
                    format!("nothing can be written in {}: {error}", path.display()),
                    format!("set {variable} to another directory"),
                ),
            }
        }
        Err(error) => missing(check, error.to_string(), ""),
    };
    vec![
        says("home", "VRUN_HOME", config.home_directory().map(Into::into)),
        says("runtime", "VRUN_RUNTIME", config.jobs_directory()),
        says("state", "VRUN_STATE", config.images_directory()),
    ]
}

fn keys(config: &Config) -> Finding {
    let read = || -> Result<usize, ControlError> {
        let home = config.home_directory()?;
        Identity::open(home)?;
        Ok(TrustStore::load(home)?.iter().count())
    };
    match read() {
        Ok(0) => limited(
            "keys",
            "no host is trusted: jobs can neither leave nor come",
            "`vctl trust NAME KEY` with the key that `vctl key` prints there, and the same there",
        ),
        Ok(count) => ok("keys", format!("{count} pinned")),
        Err(error) => missing("keys", error.message, ""),
    }
}

/// Whether something listens where our daemon would.
fn daemon(config: &Config) -> Finding {
    let setting = config.file.get("vrund").and_then(|table| table.get("listen"));
    let text = std::env::var("VRUN_LISTEN")
        .ok()
        .or_else(|| setting.and_then(toml::Value::as_str).map(str::to_owned))
        .unwrap_or_else(|| "127.0.0.1".to_owned());
    let address = match config::parse_listen(&text) {
        Ok(address) => address,
        Err(error) => return missing("daemon", error.to_string(), ""),
    };
    let reach = match address {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => ([127, 0, 0, 1], v4.port()).into(),
        other => other,
    };
    match TcpStream::connect_timeout(&reach, config.timeouts.connect) {
        Ok(_) => ok("daemon", format!("something listens on {address}")),
        Err(error) => limited(
            "daemon",
            format!("nothing listens on {address} ({error}): jobs can leave, none can come"),
            "run `vrund`, with --listen if others are to reach it",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Diagnosis {
        Diagnosis {
            here: Patient {
                name: "alpha".into(),
                findings: vec![
                    ok("kernel", "Linux 6.18"),
                    missing("user_namespaces", "none can be made (EPERM)", "set the\nsysctl"),
                ],
            },
            there: Some((
                Patient {
                    name: "beta".into(),
                    findings: vec![ok("kernel", "Linux 6.12\x1b[2J")],
                },
                vec![limited("round_trip", "a round trip takes 30 ms", "")],
            )),
        }
    }

    #[test]
    fn a_line_for_each_finding_and_one_for_what_to_do() {
        let wanted = "alpha\n\
            \x20 ok       kernel           Linux 6.18\n\
            \x20 missing  user namespaces  none can be made (EPERM)\n\
            \x20                           → set the sysctl\n\
            \n\
            beta\n\
            \x20 ok       kernel           Linux 6.12 [2J\n\
            \n\
            alpha and beta\n\
            \x20 limited  round trip       a round trip takes 30 ms\n";
        assert_eq!(sample().to_string(), wanted);
    }

    #[test]
    fn only_what_is_missing_is_not_well() {
        let mut diagnosis = sample();
        assert!(!diagnosis.is_well());
        let json = diagnosis.to_json();
        assert_eq!(json["hosts"][0]["findings"][1]["grade"], "missing");
        assert_eq!(json["hosts"][1]["host"], "beta");
        assert_eq!(json["pair"][0]["check"], "round_trip");
        assert!(json["pair"][0]["advice"].is_null());
        diagnosis.here.findings.remove(1);
        assert!(diagnosis.is_well());
        diagnosis.there = None;
        assert!(diagnosis.to_json()["pair"].is_null());
    }

    #[test]
    fn cpus_are_compared_both_ways() {
        let flags = |list: &[&str]| list.iter().map(|flag| (*flag).to_owned()).collect::<Vec<_>>();
        let found = compare_cpus("beta", &flags(&["avx", "sse2"]), &flags(&["sha_ni", "sse2"]));
        assert_eq!(
            found.iter().map(|finding| finding.grade).collect::<Vec<_>>(),
            [Grade::Missing, Grade::Limited]
        );
        assert!(found[0].says.contains("lacks avx") && found[0].advice.contains("[\"avx\"]"));
        assert!(found[1].says.contains("lacks sha_ni") && found[1].advice.ends_with("there"));
    }

    #[test]
    fn a_check_in_a_child_gives_its_error() {
        assert!(in_child(|| Ok(())).is_ok());
        let error = in_child(|| Err(io::Error::from_raw_os_error(libc::ENOSPC))).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    }
}
