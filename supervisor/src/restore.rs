//! Restore: turning a stopped process into the saved one. The other half of [`crate::capture`].
//!
//! ```text
//!  begin    find room for the restorer that no area covers; move our own vDSO aside; unmap everything else;
//!           put a vDSO where the program expects it; map every area            (script "clear and map")
//!  pages    contents, as they arrive
//!  finish   the other threads; boundaries, signal dispositions, limits, …      (script "finish")
//!           what each thread has for itself                                    (a script for each)
//!           the restorer's own memory is unmapped; registers and masks are set → Restored, still stopped
//! ```
//!
//! The restorer's code and data lie in a range of their own, chosen here, outside of every area of the image and of the
//! process as it is; what unmaps them is a script in the vrun area. Areas are mapped with their final protection at
//! once: contents are written through `/proc/PID/mem`, which may write to private memory whatever its protection.

use crate::areas::{self, AreaError, Kept, Objects, Origin, map};
use crate::attributes;
use crate::proc::{self, ProcDir};
use crate::registers;
use std::ops::Range;
use vrun_image::state::{Area, Job, Process, Thread, Vdso};
use vrun_shim::tracee::RseqConfiguration;
use vrun_shim::{Expect, Injection, Script, TraceError, Tracee, area, vdso, xstate};

/// Where the restored process lives, which decides what of its state is to be rebuilt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home {
    /// A fresh process on this host: everything.
    Here {
        /// Descriptor of the executable in the process, if the host has it, for `/proc/PID/exe`.
        executable: Option<i32>,
    },
    /// A guest: descriptors, relations and the timer of real time stay at its origin.
    Away,
    /// The deputy of the same process: it kept all of that, and its own vDSO.
    Deputy,
}

#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error(transparent)]
    Trace(#[from] TraceError),
    #[error("cannot look at the new process: {0}")]
    Proc(#[from] proc::ProcError),
    #[error("there is no room for the restorer ({0} bytes) beside the program's areas")]
    NoRoom(u64),
    #[error("the new process has no vDSO to work with")]
    NoVdso,
    #[error("the program's vDSO cannot be served by this kernel: {0}")]
    Vdso(#[from] vdso::VdsoError),
    #[error(transparent)]
    Areas(#[from] AreaError),
    #[error(transparent)]
    Xstate(#[from] xstate::XstateError),
    #[error("cannot set the OOM score of the new process: {0}")]
    Outside(std::io::Error),
}

type Result<T> = std::result::Result<T, RestoreError>;

/// A process under construction.
#[derive(Debug)]
pub struct Restorer {
    injection: Injection,
    region: Range<u64>,
    code_length: u64,
    home: Home,
    objects: Objects,
    /// Where this host's own vDSO is now, if the program does not know of it.
    pub foreign_vdso: Option<Range<u64>>,
}

/// A process that is complete and waits at the tail. See [`Restored::run`].
#[derive(Debug)]
pub struct Restored {
    threads: Vec<Tracee>,
}

impl Restored {
    /// The threads, still stopped, the thread group leader first.
    pub fn threads(&self) -> &[Tracee] {
        &self.threads
    }

    /// Lets it run, still traced.
    pub fn run(self) -> std::result::Result<Vec<Tracee>, TraceError> {
        self.threads.iter().try_for_each(|thread| thread.resume(0))?;
        Ok(self.threads)
    }

    /// Lets it run on its own.
    pub fn release(self) -> std::result::Result<(), TraceError> {
        let first = self.threads[0].let_go();
        let others = self.threads[1..].iter().map(|thread| thread.detach(0));
        std::iter::once(first)
            .chain(others)
            .try_for_each(|released| match released {
                // What runs already may have ended it.
                Err(TraceError::Gone(_)) => Ok(()),
                result => result,
            })
    }
}

/// The kernel's areas of a process.
struct Special {
    /// `[vvar]`, `[vvar_vclock]`, `[vdso]`, ascending.
    parts: Vec<Range<u64>>,
    vdso: Range<u64>,
}

impl Special {
    fn of(maps: &[proc::MapsEntry]) -> Option<Self> {
        let range = |entry: &proc::MapsEntry| entry.start..entry.end;
        let parts = maps
            .iter()
            .filter(|entry| entry.path.starts_with(b"[vvar") || entry.path == b"[vdso]");
        let vdso = range(maps.iter().find(|entry| entry.path == b"[vdso]")?);
        Some(Self {
            parts: parts.map(range).collect(),
            vdso,
        })
    }

    fn whole(&self) -> Range<u64> {
        self.parts[0].start..self.parts.last().expect("the vDSO is one of them").end
    }
}

impl Restorer {
    /// Clears the stopped process and gives it the image's address space, still empty.
    pub fn begin(tracee: Tracee, process: &Process, home: Home, objects: Objects) -> Result<Self> {
        let maps = ProcDir::open(tracee.tid())?.maps()?;
        let special = Special::of(&maps).ok_or(RestoreError::NoVdso)?;
        let injection = Injection::begin(tracee)?;
        injection.ensure_area(crate::capture::syscall_instruction(&injection, &maps)?)?;

        let mut here = vec![0; (special.vdso.end - special.vdso.start) as usize];
        injection.read(special.vdso.start, &mut here)?;
        let in_place = home == Home::Deputy
            || process
                .memory
                .vdso
                .as_ref()
                .is_some_and(|image| image.code == here && same_shape(image, &special));

        // Everything that is or will be in use; holes between are free for the restorer and for our vDSO.
        let mut occupied = occupied(&maps, std::slice::from_ref(process));
        let whole = special.whole();
        let aside = find_hole(&mut occupied, whole.end - whole.start)?;

        let plan = Plan {
            process,
            home,
            rseq: tracee.rseq()?,
            special: &special,
            aside: &aside,
            in_place,
            objects: &objects,
        };
        // The scripts' sizes do not depend on where they lie: drafts tell how much room they need.
        let own = process
            .threads
            .iter()
            .map(|thread| thread_script(process, thread, home, 0));
        let drafts = [plan.clear_and_map(0..0, 0), finish_script(process, home, &objects, 0)];
        let (mut code_length, mut data_length) = (0, 0);
        for draft in drafts.into_iter().chain(own) {
            code_length = draft.code_bound().max(code_length).next_multiple_of(area::PAGE);
            data_length = draft.data_length().max(data_length).next_multiple_of(area::PAGE);
        }
        let region = find_hole(&mut occupied, code_length + data_length)?;
        map_region(&injection, &region, code_length)?;

        let script = plan.clear_and_map(region.clone(), region.start + code_length);
        injection.run_at(&script, region.start)?;
        if !in_place && let Some(image) = &process.memory.vdso {
            let code = vdso::redirect(
                &image.code,
                &vdso::parse(&here)?,
                aside.start + (special.vdso.start - whole.start),
            )?;
            injection.write(image.start, &code)?;
        }
        let foreign_vdso = (!in_place).then_some(aside);
        Ok(Self {
            injection,
            region,
            code_length,
            home,
            objects,
            foreign_vdso,
        })
    }

    /// The process, for calls of its own while it is built.
    pub fn injection(&self) -> &Injection {
        &self.injection
    }

    /// Puts contents in place.
    pub fn pages(&self, start: u64, bytes: &[u8]) -> Result<()> {
        Ok(self.injection.write(start, bytes)?)
    }

    /// Puts contents of what areas show in place. Only the restorer of the first process takes them.
    pub fn object(&self, number: u32, offset: u64, bytes: &[u8]) -> Result<()> {
        Ok(self.objects.write(&self.injection, number, offset, bytes)?)
    }

    /// Restores everything else and holds the process just before its first instruction. `parked` are the other threads of
    /// a deputy, in the image's order; those of another process are made here.
    pub fn finish(self, process: &Process, parked: &[Tracee]) -> Result<Restored> {
        let made;
        let others = match self.home {
            Home::Deputy => parked,
            Home::Here { .. } | Home::Away => {
                made = self.make_threads(process)?;
                &made
            }
        };
        let mut threads = Vec::with_capacity(process.threads.len());
        for tracee in others {
            threads.push(self.injection.beside(*tracee)?);
        }
        let data = self.region.start + self.code_length;
        let script = finish_script(process, self.home, &self.objects, data);
        self.injection.run_at(&script, self.region.start)?;
        // The leader last: the others may need the rights that it gives up in the end.
        let leader = (&self.injection, &process.threads[0]);
        let others = threads.iter().zip(&process.threads[1..]);
        for (injection, thread) in others.chain([leader]) {
            let script = thread_script(process, thread, self.home, data);
            injection.run_at(&script, self.region.start)?;
        }
        let pid = self.injection.tracee().tid();
        attributes::identity::from_outside(pid, process, self.home).map_err(RestoreError::Outside)?;
        if self.home != Home::Deputy {
            attributes::usage::remember(pid, process)?;
        }
        let mut script = Script::new(area::DATA.start);
        let arguments = [self.region.start, self.region.end - self.region.start];
        script.call("unmap the restorer", libc::SYS_munmap, &arguments);
        self.injection.run(&script)?;
        let trap = attributes::signals::action(process, libc::SIGTRAP);
        if trap != [0; 4] {
            self.injection.set_trap_action(trap)?;
        }
        threads.insert(0, self.injection);
        let threads = threads.into_iter().zip(&process.threads).map(|(injection, thread)| {
            let tracee = injection.keep();
            // PTRACE_SETREGSET wants all of what this host has.
            let mut state = xstate::adapt(&thread.xstate)?;
            state.resize(tracee.xstate()?.len(), 0);
            tracee.set_xstate(&state)?;
            tracee.set_registers(&registers::to_user(&thread.registers))?;
            tracee.set_blocked(thread.blocked)?;
            Ok(tracee)
        });
        Ok(Restored {
            threads: threads.collect::<Result<_>>()?,
        })
    }

    /// Makes the threads beside the leader, in the image's order.
    fn make_threads(&self, process: &Process) -> Result<Vec<Tracee>> {
        const BATCH: usize = 64;
        let leader = self.injection.tracee();
        leader.set_options(libc::PTRACE_O_EXITKILL | libc::PTRACE_O_TRACECLONE)?;
        let mut made = Vec::new();
        for batch in process.threads[1..].chunks(BATCH) {
            let mut script = Script::new(area::DATA.start);
            for thread in batch {
                let flags = libc::CLONE_VM
                    | libc::CLONE_FS
                    | libc::CLONE_FILES
                    | libc::CLONE_SIGHAND
                    | libc::CLONE_THREAD
                    | libc::CLONE_SYSVSEM;
                clone_step(&mut script, "create thread", flags as u64, thread.tid, 0);
            }
            made.extend(self.injection.run_births(&script, area::CODE.start)?.1);
        }
        for tracee in made.iter().chain([&leader]) {
            tracee.set_options(libc::PTRACE_O_EXITKILL)?;
        }
        Ok(made)
    }
}

/// `clone3(2)` with a chosen number, without a stack: what it makes is stopped before its first instruction, and gets
/// registers from outside.
pub(crate) fn clone_step(script: &mut Script, what: &str, flags: u64, pid: i32, exit_signal: i32) {
    let number = script.data(&pid.to_le_bytes());
    // struct clone_args: flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size, cgroup.
    let arguments = [flags, 0, 0, 0, exit_signal as u64, 0, 0, 0, number, 1, 0].map(u64::to_le_bytes);
    let address = script.data(arguments.as_flattened());
    let length = size_of_val(&arguments) as u64;
    let expect = Expect::Exactly(pid as u64);
    script.step(
        format_args!("{what} {pid}"),
        libc::SYS_clone3,
        &[address, length],
        expect,
    );
}

/// What the first script is made from.
struct Plan<'a> {
    process: &'a Process,
    home: Home,
    special: &'a Special,
    /// Where our own vDSO waits while the process is cleared, and stays if the program's is another one.
    aside: &'a Range<u64>,
    in_place: bool,
    objects: &'a Objects,
    /// What our own libc registered.
    rseq: Option<RseqConfiguration>,
}

impl Plan<'_> {
    fn clear_and_map(&self, region: Range<u64>, data_base: u64) -> Script {
        let mut script = Script::new(data_base);
        attributes::identity::before_mapping(&mut script);
        forget_pointers(&mut script, self.rseq);
        let mut keep = vec![area::START..area::END, region];
        keep.extend(self.objects.windows().iter().cloned());
        let whole = self.special.whole();
        if self.home == Home::Deputy {
            keep.extend(self.special.parts.iter().cloned());
        } else {
            self.special.shift(&mut script, whole.start, self.aside.start);
            keep.push(self.aside.clone());
        }
        clear(&mut script, keep);
        if let (Some(image), true) = (&self.process.memory.vdso, self.home != Home::Deputy) {
            if self.in_place {
                let moved = self.special.at(self.aside.start);
                moved.shift(&mut script, self.aside.start, vdso_range(image).start);
            } else {
                let length = image.code.len() as u64;
                map(
                    &mut script,
                    "the program's vDSO",
                    image.start,
                    length,
                    libc::PROT_READ | libc::PROT_EXEC,
                    0,
                );
            }
        }
        areas::map_steps(&mut script, &self.process.memory, self.objects);
        script
    }
}

impl Special {
    /// The same areas, the first of them at `start`.
    fn at(&self, start: u64) -> Self {
        let whole = self.whole().start;
        let moved = |range: &Range<u64>| range.start - whole + start..range.end - whole + start;
        Self {
            parts: self.parts.iter().map(moved).collect(),
            vdso: moved(&self.vdso),
        }
    }

    /// Moves all of them by the same distance. The kernel's code addresses its data relatively, so they stay together;
    /// each is a mapping of its own and has to be moved by itself.
    fn shift(&self, script: &mut Script, from: u64, to: u64) {
        for part in &self.parts {
            let length = part.end - part.start;
            let target = part.start - from + to;
            let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
            let arguments = [part.start, length, length, flags, target];
            let what = format!("move the vDSO's {:#x} to {target:#x}", part.start);
            script.step(what, libc::SYS_mremap, &arguments, Expect::Exactly(target));
        }
    }
}

/// Whether the image's vDSO had its data areas where ours has them, so that ours can take its place.
fn same_shape(image: &Vdso, special: &Special) -> bool {
    let mut parts: Vec<Range<u64>> = image.data.iter().map(|&(start, end)| start..end).collect();
    parts.push(image.start..image.start + image.code.len() as u64);
    parts.sort_by_key(|part| part.start);
    let relative = |parts: &[Range<u64>]| -> Vec<_> {
        parts
            .iter()
            .map(|part| (part.start.wrapping_sub(parts[0].start), part.end - part.start))
            .collect()
    };
    relative(&parts) == relative(&special.parts)
}

fn vdso_range(image: &Vdso) -> Range<u64> {
    let start = image
        .data
        .iter()
        .map(|&(start, _)| start)
        .min()
        .unwrap_or(image.start)
        .min(image.start);
    start..image.start + image.code.len() as u64
}

/// What the address spaces of processes use, and will use, and what is ours there.
pub(crate) fn occupied(maps: &[proc::MapsEntry], processes: &[Process]) -> Vec<Range<u64>> {
    let mut occupied: Vec<Range<u64>> = maps.iter().map(|entry| entry.start..entry.end).collect();
    for process in processes {
        occupied.extend(process.memory.areas.iter().map(|area| area.start..area.end));
        occupied.extend(process.memory.vdso.iter().map(vdso_range));
    }
    occupied.push(area::START..area::END);
    occupied.push(crate::deputy::SCRATCH_AREA);
    occupied
}

/// Makes what the areas of a job show, in the process that all others will be cloned from. `open` gives that process's
/// descriptor of one of the job's open files.
pub fn objects(injection: &Injection, job: &Job, origin: Origin, open: &dyn Fn(u32) -> Option<i32>) -> Result<Objects> {
    let maps = ProcDir::open(injection.tracee().tid())?.maps()?;
    let mut occupied = occupied(&maps, &job.processes);
    let areas = areas_of(job);
    Ok(Objects::create(
        injection,
        &mut occupied,
        &job.shared,
        &areas,
        origin,
        open,
    )?)
}

/// The same in a deputy, of what the process `index` shows. Its leader is left as it was.
pub fn deputy_objects(tracee: Tracee, job: &Job, index: usize, kept: &Kept) -> Result<Objects> {
    let maps = ProcDir::open(tracee.tid())?.maps()?;
    let injection = Injection::begin(tracee)?;
    injection.ensure_area(crate::capture::syscall_instruction(&injection, &maps)?)?;
    let mut occupied = occupied(&maps, &job.processes);
    let areas = areas_of(job);
    let objects = Objects::create_in_deputy(&injection, &mut occupied, &job.shared, &areas, index, kept);
    injection.finish()?;
    Ok(objects?)
}

fn areas_of(job: &Job) -> Vec<&[Area]> {
    job.processes.iter().map(|process| &process.memory.areas[..]).collect()
}

/// Finds `length` free bytes and takes them. The search starts far from where kernels put stacks (which grow into the
/// holes below them), the heap and libraries.
pub(crate) fn find_hole(occupied: &mut Vec<Range<u64>>, length: u64) -> Result<Range<u64>> {
    const FROM: u64 = 0x1000_0000_0000;
    occupied.sort_by_key(|range| range.start);
    let mut start = FROM;
    for range in occupied.iter() {
        // A page between neighbours, so that an overrun faults instead of doing harm.
        if range.start < start.saturating_add(length + area::PAGE) {
            start = start.max(range.end.saturating_add(area::PAGE));
        } else {
            break;
        }
    }
    let hole = start..start + length;
    if hole.end > area::USER_END {
        return Err(RestoreError::NoRoom(length));
    }
    occupied.push(hole.clone());
    Ok(hole)
}

/// Maps the restorer's own memory: code, then data.
fn map_region(injection: &Injection, region: &Range<u64>, code_length: u64) -> Result<()> {
    let mut script = Script::new(area::DATA.start);
    let (read_write, read_execute) = (libc::PROT_READ | libc::PROT_WRITE, libc::PROT_READ | libc::PROT_EXEC);
    let data = region.start + code_length;
    map(
        &mut script,
        "the restorer's code",
        region.start,
        code_length,
        read_execute,
        0,
    );
    map(
        &mut script,
        "the restorer's data",
        data,
        region.end - data,
        read_write,
        0,
    );
    injection.run(&script)?;
    Ok(())
}

/// Ends everything by which the kernel would write to memory that goes away: a write that it cannot make is fatal.
pub(crate) fn forget_pointers(script: &mut Script, rseq: Option<RseqConfiguration>) {
    if let Some(rseq) = rseq {
        const UNREGISTER: u64 = 1; // RSEQ_FLAG_UNREGISTER, linux/rseq.h
        let arguments = [rseq.address, rseq.size.into(), UNREGISTER, rseq.signature.into()];
        script.call("unregister rseq", libc::SYS_rseq, &arguments);
    }
    script.call("forget the robust list", libc::SYS_set_robust_list, &[0, 24]);
    script.call("forget the child-tid address", libc::SYS_set_tid_address, &[0]);
}

/// Unmaps all of user space but these ranges.
pub(crate) fn clear(script: &mut Script, mut keep: Vec<Range<u64>>) {
    keep.retain(|range| !range.is_empty());
    keep.sort_by_key(|range| range.start);
    let starts = keep.iter().map(|range| range.start).chain([area::USER_END]);
    let ends = [0].into_iter().chain(keep.iter().map(|range| range.end));
    for (from, to) in ends.zip(starts).filter(|(from, to)| from < to) {
        script.call(
            format_args!("unmap {from:#x}-{to:#x}"),
            libc::SYS_munmap,
            &[from, to - from],
        );
    }
}

/// What the leader does for the whole process between the contents and the registers. All signals are blocked.
fn finish_script(process: &Process, home: Home, objects: &Objects, data_base: u64) -> Script {
    let mut script = Script::new(data_base);
    areas::property_steps(&mut script, &process.memory, objects);
    let executable = match home {
        Home::Here { executable } => executable,
        Home::Away | Home::Deputy => None,
    };
    areas::boundary_steps(&mut script, &process.memory, executable);
    attributes::process_steps(&mut script, process, home);
    script
}

/// What each thread does for itself.
fn thread_script(process: &Process, thread: &Thread, home: Home, data_base: u64) -> Script {
    let mut script = Script::new(data_base);
    attributes::thread_steps(&mut script, process, thread, home);
    script
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hole_touches_nothing() {
        let mut occupied = vec![0x1000_0000_0000..0x1000_0000_5000, 0x1000_0000_7000..0x1000_0001_0000];
        let hole = find_hole(&mut occupied, 0x2000).expect("there is room");
        assert_eq!(hole, 0x1000_0001_1000..0x1000_0001_3000);
        let next = find_hole(&mut occupied, 0x2000).expect("there is room");
        assert!(next.start > hole.end);
    }

    #[test]
    fn clearing_spares_what_is_kept() {
        let mut script = Script::new(0);
        clear(&mut script, vec![0x5000..0x6000, 0x2000..0x3000, 0..0]);
        let ranges: Vec<_> = script
            .steps()
            .iter()
            .map(|step| (step.arguments[0], step.arguments[1]))
            .collect();
        assert_eq!(
            ranges,
            [(0, 0x2000), (0x3000, 0x2000), (0x6000, area::USER_END - 0x6000)]
        );
    }
}
