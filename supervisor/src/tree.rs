//! The processes of a job, made anew with their numbers, parents, sessions and groups.
//!
//! ```text
//!   plan    which process makes which, and when it begins its session: pure, from the image
//!   grow    the plan carried out by injected calls, from the one fresh process: all are its forks, still empty
//! ```
//!
//! A process begins in the session of who made it, and only a leader can begin another. So a child that stayed in its
//! parent's former session is made before the parent's `setsid`. Helpers stand in for what is gone: one in each session
//! in which there are orphans makes these and ends, so that they go to the keeper, which is who reaps them (PID 1); one
//! with the number of a leader that has ended begins its session or group. What has ended and was not waited for
//! is made like the others and ends as it did.
//!
//! Groups are entered when everybody is there: up to then a process is in the group that came with its session, 0 for the
//! one from which the job is restored.

use crate::restore::clone_step;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use vrun_image::state::Job;
use vrun_shim::{Injection, Script, TraceError, Tracee, area};

#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    #[error(transparent)]
    Trace(#[from] TraceError),
    #[error("{0}")]
    Impossible(String),
}

type Result<T> = std::result::Result<T, TreeError>;

/// One step of a plan. Processes go by their numbers in the job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Fork {
        by: i32,
        pid: i32,
        exit_signal: i32,
    },
    Session {
        of: i32,
    },
    Group {
        of: i32,
        group: i32,
    },
    /// Job control stops it.
    Stop {
        of: i32,
        signal: i32,
    },
    /// It waits for the stop of its child.
    See {
        by: i32,
        child: i32,
    },
    /// It ends, with this wait status.
    End {
        of: i32,
        status: i32,
    },
    /// A helper ends, and its maker waits for it.
    Retire {
        of: i32,
        by: i32,
    },
    /// A signal that children have sent by their end is to be known of no more.
    Forget {
        of: i32,
        signal: i32,
    },
}

struct Node {
    pid: i32,
    parent: i32,
    group: i32,
    session: i32,
    exit_signal: i32,
    /// The signal of job control, else 0, and whether the parent knows.
    stopped: (i32, bool),
    /// Of one that has ended.
    status: Option<i32>,
}

struct Planner {
    /// The first is the one that is there.
    nodes: Vec<Node>,
    /// Indices of a process's children.
    children: HashMap<i32, Vec<usize>>,
    acts: Vec<Act>,
    /// The session and the group that a process is in so far.
    place: HashMap<i32, (i32, i32)>,
    /// Of a session, who makes things there.
    helpers: BTreeMap<i32, i32>,
    /// Helpers and their makers, in the order in which they were made.
    retire: Vec<(i32, i32)>,
    /// Numbers that the job has not.
    free: i32,
    taken: BTreeSet<i32>,
}

fn impossible<T>(reason: impl Into<String>) -> Result<T> {
    Err(TreeError::Impossible(reason.into()))
}

fn plan(job: &Job) -> Result<Vec<Act>> {
    let processes = job.processes.iter().map(|process| Node {
        pid: process.pid,
        parent: process.parent,
        group: process.group,
        session: process.session,
        exit_signal: process.exit_signal,
        stopped: (process.stopped, process.stop_seen),
        status: None,
    });
    let zombies = job.zombies.iter().map(|zombie| Node {
        pid: zombie.pid,
        parent: zombie.parent,
        group: zombie.group,
        session: zombie.session,
        exit_signal: zombie.exit_signal,
        stopped: (0, false),
        status: Some(zombie.status),
    });
    let threads = job.processes.iter().flat_map(|process| &process.threads);
    planned(
        processes.chain(zombies).collect(),
        threads.map(|thread| thread.tid).collect(),
    )
}

/// `taken` are numbers that no helper may have.
fn planned(nodes: Vec<Node>, mut taken: BTreeSet<i32>) -> Result<Vec<Act>> {
    taken.extend(nodes.iter().flat_map(|node| [node.group, node.session]));
    let mut pids = BTreeSet::new();
    let mut children: HashMap<i32, Vec<usize>> = HashMap::new();
    for (index, node) in nodes.iter().enumerate() {
        if !pids.insert(node.pid) {
            return impossible(format!("two of its processes have the number {}", node.pid));
        }
        if node.parent != 0 && !pids.contains(&node.parent) {
            return impossible(format!("the parent of its process {} is missing", node.pid));
        }
        children.entry(node.parent).or_default().push(index);
    }
    taken.extend(&pids);
    let mut planner = Planner {
        nodes,
        children,
        acts: Vec::new(),
        place: HashMap::new(),
        helpers: BTreeMap::new(),
        retire: Vec::new(),
        free: 1,
        taken,
    };
    planner.all()?;
    Ok(planner.acts)
}

impl Planner {
    fn all(&mut self) -> Result<()> {
        let first = self.nodes[0].pid;
        let needs = self.needs();
        if needs[0].is_some_and(|session| session != 0) {
            return impossible("its first process is in a session that another one began");
        }
        let lives = |pid: i32| self.nodes.iter().any(|node| node.pid == pid);
        let is_led = |session: i32| session == 0 || lives(session);
        // Where helpers are needed: for orphans, and for leaders that have ended.
        let orphans: Vec<usize> = (1..self.nodes.len())
            .filter(|index| self.nodes[*index].parent == 0)
            .collect();
        let mut wanted: BTreeSet<i32> = orphans.iter().map(|index| needs[*index].unwrap_or(0)).collect();
        let mut lost_groups = BTreeMap::new();
        for node in &self.nodes {
            if !is_led(node.session) {
                wanted.insert(node.session);
            }
            if node.group != 0 && node.group != node.session && !lives(node.group) {
                wanted.insert(node.session);
                lost_groups.insert(node.group, node.session);
            }
        }
        let lost_sessions: Vec<i32> = wanted.iter().copied().filter(|session| !is_led(*session)).collect();

        self.place.insert(first, (0, 0));
        if wanted.contains(&0) {
            let helper = self.number()?;
            self.helper(first, 0, helper);
        }
        for session in lost_sessions {
            self.helper(first, session, session);
            self.session(session);
        }
        let mut waiting = orphans;
        let mut queue = VecDeque::from([0]);
        loop {
            while let Some(index) = queue.pop_front() {
                self.grow(index, &needs, &wanted, &mut queue)?;
            }
            let ready = |index: &usize| self.helpers.contains_key(&needs[*index].unwrap_or(0));
            let Some(next) = waiting.iter().position(ready) else {
                break;
            };
            let index = waiting.remove(next);
            let helper = self.helpers[&needs[index].unwrap_or(0)];
            self.fork(helper, index);
            queue.push_back(index);
        }
        if let Some(index) = waiting.first() {
            let node = &self.nodes[*index];
            let (pid, session) = (node.pid, node.session);
            return impossible(format!("its process {pid} cannot be brought into session {session}"));
        }
        self.groups(&lost_groups)?;
        self.ends();
        Ok(())
    }

    /// In which session each has to be made; nothing: in any, it begins its own.
    fn needs(&self) -> Vec<Option<i32>> {
        let mut needs: Vec<Option<i32>> = vec![None; self.nodes.len()];
        // Children come after their parents.
        for index in (0..self.nodes.len()).rev() {
            let node = &self.nodes[index];
            needs[index] = if node.session == node.pid {
                let children = self.children.get(&node.pid).into_iter().flatten();
                let mut former = children.filter_map(|child| needs[*child]);
                former.find(|session| *session != node.pid)
            } else {
                Some(node.session)
            };
        }
        needs
    }

    /// A process that is there begins its session, if it has one, and makes its children.
    fn grow(
        &mut self,
        index: usize,
        needs: &[Option<i32>],
        wanted: &BTreeSet<i32>,
        queue: &mut VecDeque<usize>,
    ) -> Result<()> {
        let (pid, session) = (self.nodes[index].pid, self.nodes[index].session);
        let born = self.place[&pid].0;
        if session != pid && session != born {
            return impossible(format!("its process {pid} cannot be brought into session {session}"));
        }
        let children = match self.nodes[index].status {
            // The helper of its session may be its child for a while.
            Some(_) => Vec::new(),
            None => self.children.get(&pid).cloned().unwrap_or_default(),
        };
        let (late, early): (Vec<usize>, Vec<usize>) = children
            .into_iter()
            .partition(|child| needs[*child].is_none_or(|needed| needed == session));
        for child in early {
            if needs[child] != Some(born) {
                let (child, session) = (self.nodes[child].pid, self.nodes[child].session);
                return impossible(format!("its process {child} cannot be brought into session {session}"));
            }
            self.fork(pid, child);
            queue.push_back(child);
        }
        if session == pid {
            self.session(pid);
            if wanted.contains(&session) {
                let helper = self.number()?;
                self.helper(pid, session, helper);
            }
        }
        for child in late {
            self.fork(pid, child);
            queue.push_back(child);
        }
        Ok(())
    }

    fn fork(&mut self, by: i32, index: usize) {
        let Node { pid, exit_signal, .. } = self.nodes[index];
        self.acts.push(Act::Fork { by, pid, exit_signal });
        self.place.insert(pid, self.place[&by]);
    }

    fn session(&mut self, of: i32) {
        self.acts.push(Act::Session { of });
        self.place.insert(of, (of, of));
    }

    /// Makes a helper, which says nothing to its maker when it ends.
    fn helper(&mut self, by: i32, session: i32, pid: i32) {
        self.acts.push(Act::Fork {
            by,
            pid,
            exit_signal: 0,
        });
        self.place.insert(pid, self.place[&by]);
        self.helpers.insert(session, pid);
        self.retire.push((pid, by));
    }

    /// A number that is free. 1 is the keeper's.
    fn number(&mut self) -> Result<i32> {
        let free = (self.free + 1..i32::MAX).find(|number| !self.taken.contains(number));
        self.free = free.ok_or_else(|| TreeError::Impossible("no process number is free".to_owned()))?;
        Ok(self.free)
    }

    fn groups(&mut self, lost: &BTreeMap<i32, i32>) -> Result<()> {
        for (group, session) in lost {
            let maker = self.helpers[session];
            self.acts.push(Act::Fork {
                by: maker,
                pid: *group,
                exit_signal: 0,
            });
            self.retire.push((*group, maker));
            self.acts.push(Act::Group {
                of: *group,
                group: *group,
            });
        }
        // The leaders before those that follow them.
        for leaders in [true, false] {
            for node in self.nodes.iter().filter(|node| (node.pid == node.group) == leaders) {
                let group = self.place[&node.pid].1;
                if group == node.group {
                    continue;
                }
                if node.group == 0 || node.session == node.pid {
                    return impossible(format!("its process {} is in no group of its session", node.pid));
                }
                let (of, group) = (node.pid, node.group);
                self.acts.push(Act::Group { of, group });
            }
        }
        Ok(())
    }

    fn ends(&mut self) {
        let mut forget = BTreeSet::new();
        for node in &self.nodes {
            let (signal, seen) = node.stopped;
            if signal != 0 {
                self.acts.push(Act::Stop { of: node.pid, signal });
                forget.insert((node.parent, libc::SIGCHLD));
            }
            if signal != 0 && seen && node.parent != 0 {
                let (by, child) = (node.parent, node.pid);
                self.acts.push(Act::See { by, child });
            }
            if let Some(status) = node.status {
                self.acts.push(Act::End { of: node.pid, status });
                forget.insert((node.parent, node.exit_signal));
            }
        }
        for (of, by) in self.retire.drain(..).rev() {
            self.acts.push(Act::Retire { of, by });
        }
        let forget = forget
            .into_iter()
            .filter(|(parent, signal)| *parent != 0 && *signal != 0);
        self.acts.extend(forget.map(|(of, signal)| Act::Forget { of, signal }));
    }
}

/// Makes all processes of a job out of its first one, which has the vrun area and nothing of its image yet. They stand
/// still, in the order of the image.
pub fn grow(first: Injection, job: &Job) -> Result<Vec<Tracee>> {
    let options = libc::PTRACE_O_EXITKILL | libc::PTRACE_O_TRACEFORK | libc::PTRACE_O_TRACECLONE;
    first.tracee().set_options(options)?;
    let mut held = HashMap::from([(job.processes[0].pid, first)]);
    for act in plan(job)? {
        let mut script = Script::new(area::DATA.start);
        match act {
            Act::Fork { by, pid, exit_signal } => {
                clone_step(&mut script, "create process", 0, pid, exit_signal);
                let (_, born) = at(&held, by)?.run_births(&script, area::CODE.start)?;
                for child in born {
                    held.insert(pid, Injection::begin(child)?);
                }
            }
            Act::Session { of } => {
                script.call(format_args!("begin session {of}"), libc::SYS_setsid, &[]);
                at(&held, of)?.run(&script)?;
            }
            Act::Group { of, group } => {
                let what = format_args!("enter group {group}");
                script.call(what, libc::SYS_setpgid, &[0, group as u64]);
                at(&held, of)?.run(&script)?;
            }
            Act::Stop { of, signal } => {
                // It goes on making injected calls: the stop takes effect when it is let go.
                let tracee = at(&held, of)?.tracee();
                tracee.stop_process(tracee.tid(), signal)?;
            }
            Act::See { by, child } => {
                let info = script.reserve(128);
                let flags = libc::WSTOPPED | libc::__WALL;
                let arguments = [libc::P_PID.into(), child as u64, info, flags as u64, 0];
                script.call(format_args!("see the stop of {child}"), libc::SYS_waitid, &arguments);
                at(&held, by)?.run(&script)?;
            }
            Act::End { of, status } => {
                end_steps(&mut script, of, status);
                take(&mut held, of)?.end_by(&script)?;
            }
            Act::Retire { of, by } => {
                end_steps(&mut script, of, 0);
                take(&mut held, of)?.end_by(&script)?;
                let mut script = Script::new(area::DATA.start);
                let arguments = [of as u64, 0, libc::__WALL as u64, 0];
                script.call(format_args!("wait for helper {of}"), libc::SYS_wait4, &arguments);
                at(&held, by)?.run(&script)?;
            }
            Act::Forget { of, signal } => {
                // An action that ignores a signal takes it out of the queue (sigaction(2)).
                for handler in [libc::SIG_IGN, libc::SIG_DFL] {
                    let mut action = [0; 32];
                    action[..8].copy_from_slice(&(handler as u64).to_le_bytes());
                    let arguments = [signal as u64, script.data(&action), 0, 8];
                    let what = format_args!("forget signal {signal} of children");
                    script.call(what, libc::SYS_rt_sigaction, &arguments);
                }
                at(&held, of)?.run(&script)?;
            }
        }
    }
    let mut grown = Vec::with_capacity(job.processes.len());
    for process in &job.processes {
        let tracee = take(&mut held, process.pid)?.keep();
        tracee.set_options(libc::PTRACE_O_EXITKILL)?;
        grown.push(tracee);
    }
    Ok(grown)
}

/// Makes the other processes of a job beside the first one, with the same parent: a guest's, whose relations are at home.
pub fn beside(first: Injection, job: &Job) -> Result<Vec<Tracee>> {
    let leader = first.tracee();
    leader.set_options(libc::PTRACE_O_EXITKILL | libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_TRACEFORK)?;
    let mut made = vec![leader];
    for process in &job.processes[1..] {
        let mut script = Script::new(area::DATA.start);
        let parent = libc::CLONE_PARENT as u64;
        clone_step(&mut script, "create process", parent, process.pid, 0);
        made.extend(first.run_births(&script, area::CODE.start)?.1);
    }
    first.keep();
    for tracee in &made {
        tracee.set_options(libc::PTRACE_O_EXITKILL)?;
    }
    Ok(made)
}

fn at(held: &HashMap<i32, Injection>, pid: i32) -> Result<&Injection> {
    held.get(&pid).ok_or_else(|| TraceError::Gone(pid).into())
}

fn take(held: &mut HashMap<i32, Injection>, pid: i32) -> Result<Injection> {
    held.remove(&pid).ok_or_else(|| TraceError::Gone(pid).into())
}

/// Ends the process that runs it as `status` says (wait(2)), without a core file.
fn end_steps(script: &mut Script, pid: i32, status: i32) {
    let signal = libc::WTERMSIG(status);
    if libc::WIFSIGNALED(status) && signal != 0 {
        let none = script.reserve(16);
        let arguments = [0, libc::RLIMIT_CORE.into(), none, 0];
        script.call("leave no core file", libc::SYS_prlimit64, &arguments);
        script.call("raise the signal", libc::SYS_kill, &[pid as u64, signal as u64]);
        let others = script.data(&(!(1_u64 << (signal - 1))).to_le_bytes());
        let arguments = [libc::SIG_SETMASK as u64, others, 0, 8];
        script.call("let it in", libc::SYS_rt_sigprocmask, &arguments);
    } else {
        let code = libc::WEXITSTATUS(status) as u64;
        script.call("exit", libc::SYS_exit_group, &[code]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(pid: i32, parent: i32, group: i32, session: i32) -> Node {
        Node {
            pid,
            parent,
            group,
            session,
            exit_signal: libc::SIGCHLD,
            stopped: (0, false),
            status: None,
        }
    }

    /// Carries a plan out on paper, as the kernel would; gives parent, group and session of each process that is left.
    fn carried_out(nodes: Vec<Node>) -> BTreeMap<i32, (i32, i32, i32)> {
        let first = nodes[0].pid;
        let acts = planned(nodes, BTreeSet::new()).expect("a plan");
        let mut there = BTreeMap::from([(first, (0, 0, 0))]);
        for act in acts {
            match act {
                Act::Fork { by, pid, .. } => {
                    let (_, group, session) = there[&by];
                    assert!(there.insert(pid, (by, group, session)).is_none(), "{pid} is there");
                }
                Act::Session { of } => {
                    assert!(there.values().all(|(_, group, _)| *group != of), "{of} leads a group");
                    there.insert(of, (there[&of].0, of, of));
                }
                Act::Group { of, group } => {
                    let (parent, _, session) = there[&of];
                    let exists = |place: &(i32, i32, i32)| (place.1, place.2) == (group, session);
                    assert!(of != session && (of == group || there.values().any(exists)), "{act:?}");
                    there.insert(of, (parent, group, session));
                }
                Act::End { of, .. } => assert!(there.values().all(|(parent, ..)| *parent != of)),
                Act::Retire { of, by } => {
                    assert_eq!(there.remove(&of).expect("it is there").0, by);
                    for (parent, ..) in there.values_mut().filter(|(parent, ..)| *parent == of) {
                        *parent = 0;
                    }
                }
                Act::Stop { .. } | Act::See { .. } | Act::Forget { .. } => {}
            }
        }
        there
    }

    fn rebuilds(nodes: &[(i32, i32, i32, i32)]) {
        let wanted = nodes
            .iter()
            .map(|&(pid, parent, group, session)| (pid, (parent, group, session)));
        let wanted: BTreeMap<_, _> = wanted.collect();
        let nodes = nodes
            .iter()
            .map(|&(pid, parent, group, session)| node(pid, parent, group, session));
        assert_eq!(carried_out(nodes.collect()), wanted);
    }

    #[test]
    fn trees() {
        rebuilds(&[(10, 0, 0, 0)]);
        // A shell with job control and two pipelines, of one of which the leader has ended.
        rebuilds(&[
            (10, 0, 10, 0),
            (11, 10, 11, 0),
            (12, 10, 11, 0),
            (14, 10, 13, 0),
            (15, 14, 13, 0),
        ]);
        // A child that began a session, and one that stayed behind when its parent did.
        rebuilds(&[
            (10, 0, 0, 0),
            (11, 10, 11, 11),
            (12, 11, 11, 11),
            (13, 11, 0, 0),
            (14, 13, 0, 0),
        ]);
        // The first process leads a session and left a child in the old one.
        rebuilds(&[(10, 0, 10, 10), (11, 10, 0, 0), (12, 10, 12, 10)]);
    }

    #[test]
    fn orphans() {
        rebuilds(&[(10, 0, 0, 0), (20, 0, 0, 0), (21, 20, 21, 21)]);
        // A daemon: who began its session has ended.
        rebuilds(&[
            (10, 0, 0, 0),
            (20, 0, 19, 19),
            (21, 20, 19, 19),
            (30, 0, 30, 30),
            (31, 0, 30, 30),
        ]);
        // An orphan in a session that another orphan leads, in a group whose leader has ended.
        rebuilds(&[(10, 0, 10, 10), (11, 0, 0, 0), (30, 0, 30, 30), (31, 0, 32, 30)]);
    }

    #[test]
    fn what_no_kernel_could_have_made_is_refused() {
        for nodes in [
            vec![node(10, 0, 9, 9)],
            vec![node(10, 0, 0, 0), node(11, 10, 12, 12), node(12, 10, 12, 12)],
            vec![node(10, 0, 0, 0), node(11, 10, 0, 9)],
        ] {
            assert!(planned(nodes, BTreeSet::new()).is_err());
        }
    }
}
