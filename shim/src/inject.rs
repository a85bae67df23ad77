//! Running scripts in a stopped target: a scope that undoes itself.
//!
//! [`Injection::begin`] saves the registers and blocks every signal; [`Injection::finish`] (or a drop) puts both back, with
//! the system call that was interrupted still pending restart exactly as the kernel left it: `orig_rax` and the
//! kernel's restart code in `rax` are part of what is saved, and the thread's hidden restart block is not touched by
//! any call that a script makes.
//!
//! **Traps.** A script ends with one, and a call is stepped over with one, while `SIGTRAP` is blocked like every other
//! signal. The kernel then lets it in, and takes away what the process has chosen for it (`force_sig_info_to_task`,
//! `kernel/signal.c`). So that is asked for before, without a trap, and put back.

use crate::area;
use crate::script::{self, Script};
use crate::tracee::{Result, Status, TraceError, Tracee};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, OnceLock};

/// A target that is ours for a while.
#[derive(Debug)]
pub struct Injection {
    tracee: Tracee,
    process: Arc<Target>,
    /// It is the one that was begun first.
    first: bool,
    saved: Option<(libc::user_regs_struct, u64)>,
}

/// One for all threads of a process.
#[derive(Debug)]
struct Target {
    memory: File,
    /// Whether the process catches SIGTRAP or ignores it.
    minds_traps: OnceLock<bool>,
    /// What it does about it, once a script was run.
    trap: OnceLock<Action>,
}

/// A `struct kernel_sigaction` of x86_64: handler, flags, restorer, mask.
pub type Action = [u64; 4];

impl Injection {
    /// Takes over a stopped thread.
    pub fn begin(tracee: Tracee) -> Result<Self> {
        let tid = tracee.tid();
        // /proc/PID/mem writes also where the process itself may not (FOLL_FORCE): code pages are r-x there.
        let memory = OpenOptions::new()
            .read(true)
            .write(true)
            .open(format!("/proc/{tid}/mem"))
            .map_err(|source| TraceError::Os {
                what: "open the memory of",
                tid,
                source,
            })?;
        let process = Target {
            memory,
            minds_traps: OnceLock::new(),
            trap: OnceLock::new(),
        };
        Self::with(tracee, Arc::new(process), true)
    }

    /// Takes over another stopped thread of the same process.
    pub fn beside(&self, tracee: Tracee) -> Result<Self> {
        Self::with(tracee, Arc::clone(&self.process), false)
    }

    fn with(tracee: Tracee, process: Arc<Target>, first: bool) -> Result<Self> {
        let saved = Some((tracee.registers()?, tracee.blocked()?));
        tracee.set_blocked(u64::MAX)?;
        Ok(Self {
            tracee,
            process,
            first,
            saved,
        })
    }

    /// The thread.
    pub fn tracee(&self) -> Tracee {
        self.tracee
    }

    /// The registers that it will go on with.
    pub fn saved_registers(&self) -> Option<&libc::user_regs_struct> {
        self.saved.as_ref().map(|(registers, _)| registers)
    }

    /// The blocked mask that it will go on with.
    pub fn saved_blocked(&self) -> Option<u64> {
        self.saved.as_ref().map(|(_, blocked)| *blocked)
    }

    /// What the process does about SIGTRAP, if that is not the default and a script was run.
    pub fn trap_action(&self) -> Option<Action> {
        self.process.trap.get().copied()
    }

    /// Sets what the process does about SIGTRAP, after the last script. The vrun area must be there.
    pub fn set_trap_action(&self, action: Action) -> Result<()> {
        self.write(area::DATA.start, action.map(u64::to_le_bytes).as_flattened())?;
        self.trap_call([area::DATA.start, 0])
    }

    /// Asks for what the first trap in the process would take away.
    fn keep_trap_action(&self) -> Result<()> {
        if self.minds_traps() && self.trap_action().is_none() {
            self.trap_call([0, area::DATA.start])?;
            let mut bytes = [0; 32];
            self.read(area::DATA.start, &mut bytes)?;
            let word = |at: usize| u64::from_le_bytes(bytes[8 * at..][..8].try_into().expect("8 bytes"));
            let _ = self.process.trap.set(std::array::from_fn(word));
        }
        Ok(())
    }

    /// `rt_sigaction(2)` without a trap.
    fn trap_call(&self, [new, old]: [u64; 2]) -> Result<()> {
        let arguments = [libc::SIGTRAP as u64, new, old, 8, 0, 0];
        self.prepare_call(area::GATE, libc::SYS_rt_sigaction, arguments)?;
        self.tracee.make_call()?;
        match self.tracee.registers()?.rax as i64 {
            0 => Ok(()),
            error => Err(os("ask for an action of", self.tracee.tid(), error)),
        }
    }

    /// From `/proc/PID/status`.
    fn minds_traps(&self) -> bool {
        *self.process.minds_traps.get_or_init(|| {
            let status = std::fs::read_to_string(format!("/proc/{}/status", self.tracee.tid())).unwrap_or_default();
            let masks = status.lines().filter_map(|line| {
                let line = line.strip_prefix("SigIgn:").or_else(|| line.strip_prefix("SigCgt:"))?;
                u64::from_str_radix(line.trim(), 16).ok()
            });
            masks.fold(0, |all, mask| all | mask) & 1 << (libc::SIGTRAP - 1) != 0
        })
    }

    /// Makes one system call at `instruction`, the address of a `syscall` instruction, by stepping over it.
    pub fn call_at(&self, instruction: u64, number: i64, arguments: [u64; 6]) -> Result<i64> {
        self.prepare_call(instruction, number, arguments)?;
        match self.minds_traps() {
            true => self.tracee.make_call()?,
            false => {
                self.tracee.single_step()?;
                self.tracee.set_blocked(u64::MAX)?;
            }
        }
        Ok(self.tracee.registers()?.rax as i64)
    }

    fn prepare_call(&self, instruction: u64, number: i64, arguments: [u64; 6]) -> Result<()> {
        let mut registers = self.tracee.registers()?;
        let [rdi, rsi, rdx, r10, r8, r9] = arguments;
        registers.rip = instruction;
        registers.rax = number as u64;
        registers.orig_rax = u64::MAX; // not in a system call: the kernel must not restart anything
        (registers.rdi, registers.rsi, registers.rdx) = (rdi, rsi, rdx);
        (registers.r10, registers.r8, registers.r9) = (r10, r8, r9);
        self.tracee.set_registers(&registers)
    }

    /// Maps the vrun area unless it is there already. `instruction` is the address of any `syscall` instruction.
    pub fn ensure_area(&self, instruction: u64) -> Result<()> {
        let tid = self.tracee.tid();
        let gate = script::gate_page();
        let mut present = vec![0; gate.len()];
        if self.process.memory.read_exact_at(&mut present, area::GATE).is_ok() && present == gate {
            return Ok(());
        }
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        // Executable from the start: a program may have forbidden that memory becomes so (PR_SET_MDWE).
        let protection = libc::PROT_READ | libc::PROT_EXEC;
        let length = area::END - area::START;
        let taken = TraceError::AreaTaken {
            tid,
            start: area::START,
            end: area::END,
        };
        let arguments = [area::START, length, protection as u64, flags as u64, u64::MAX, 0];
        match self.call_at(instruction, libc::SYS_mmap, arguments)? {
            address if address as u64 == area::START => {}
            error if error == -i64::from(libc::EEXIST) => return Err(taken),
            error => return Err(os("map the vrun area in", tid, error)),
        }
        self.write(area::GATE, &gate)?;
        let writable = (libc::PROT_READ | libc::PROT_WRITE) as u64;
        for (start, end) in [(area::DEPUTY_END, area::CODE.start), (area::DATA.start, area::DATA.end)] {
            let result = self.call_at(instruction, libc::SYS_mprotect, [start, end - start, writable, 0, 0, 0])?;
            if result != 0 {
                return Err(os("protect the vrun area in", tid, result));
            }
        }
        Ok(())
    }

    /// Runs a script in the vrun area; gives the results of its steps.
    pub fn run(&self, script: &Script) -> Result<Vec<i64>> {
        self.run_at(script, area::CODE.start)
    }

    /// Runs a script with its code at `code_base`; the code and the data must lie in mapped memory of the target.
    pub fn run_at(&self, script: &Script, code_base: u64) -> Result<Vec<i64>> {
        Ok(self.run_births(script, code_base)?.0)
    }

    /// Like [`Injection::run_at`] for a script that makes threads or processes of a thread with `PTRACE_O_TRACECLONE` or
    /// `PTRACE_O_TRACEFORK`; gives these too, in their order, stopped before their first instruction.
    pub fn run_births(&self, script: &Script, code_base: u64) -> Result<(Vec<i64>, Vec<Tracee>)> {
        let tid = self.tracee.tid();
        self.keep_trap_action()?;
        self.load(script, code_base)?;
        let mut born = Vec::new();
        let signal = self.go(&mut born)?;
        let registers = self.tracee.registers()?;
        let failed = |source: io::Error| {
            let index = registers.r14 as usize;
            let what = script
                .steps()
                .get(index)
                .map_or_else(String::new, |step| step.what.clone());
            TraceError::Step {
                tid,
                index,
                what,
                source,
            }
        };
        if signal != libc::SIGTRAP {
            return Err(failed(io::Error::other(format!(
                "signal {signal} at {:#x}",
                registers.rip
            ))));
        }
        if registers.rbx != 0 {
            return Err(failed(match registers.rax as i64 {
                error @ -4095..=-1 => io::Error::from_raw_os_error(-error as i32),
                other => io::Error::other(format!("unexpected result {other:#x}")),
            }));
        }
        let mut bytes = vec![0; 8 * script.steps().len()];
        self.read(script.results(), &mut bytes)?;
        let results = bytes
            .chunks_exact(8)
            .map(|word| i64::from_le_bytes(word.try_into().expect("8 bytes")));
        for child in &born {
            child.wait_interrupted()?;
        }
        Ok((results.collect(), born))
    }

    /// Lets the process run a script, in the vrun area, that ends it, and waits for that end: it is then its parent's to
    /// wait for.
    pub fn end_by(mut self, script: &Script) -> Result<()> {
        self.load(script, area::CODE.start)?;
        self.saved = None;
        self.tracee.resume(0)?;
        loop {
            match self.tracee.wait()? {
                status if status.is_end() => return Ok(()),
                Status::Stopped(signal) => self.tracee.resume(signal)?,
                _ => self.tracee.resume(0)?,
            }
        }
    }

    /// Lets the process go with a script, in the vrun area, that ends it.
    pub fn end_with(mut self, script: &Script) -> Result<()> {
        self.load(script, area::CODE.start)?;
        self.saved = None;
        self.tracee.detach(0)
    }

    fn load(&self, script: &Script, code_base: u64) -> Result<()> {
        self.write(code_base, &script.assemble(code_base))?;
        self.write(script.data_base(), script.data_bytes())?;
        let mut registers = self.tracee.registers()?;
        registers.rip = code_base;
        registers.rsp = script.stack_top();
        registers.orig_rax = u64::MAX;
        registers.eflags &= !0x400; // direction flag
        self.tracee.set_registers(&registers)
    }

    /// Continues until the `int3` of a script, or another signal of its own making; gives the signal, and in `born` what
    /// it made.
    fn go(&self, born: &mut Vec<Tracee>) -> Result<i32> {
        self.tracee.resume(0)?;
        loop {
            match self.tracee.wait_stop()? {
                // A stop of job control that began meanwhile, which nobody can block: a thread that is traced goes on.
                Status::Stopped(signal @ (libc::SIGSTOP | libc::SIGTTIN | libc::SIGTTOU)) => {
                    self.tracee.resume(signal)?;
                }
                Status::Stopped(signal) => {
                    // The trap has let its own signal in, and one of these may wait.
                    self.tracee.set_blocked(u64::MAX)?;
                    return Ok(signal);
                }
                Status::Event {
                    event: libc::PTRACE_EVENT_CLONE | libc::PTRACE_EVENT_FORK,
                    ..
                } => {
                    born.push(Tracee::attached(self.tracee.event_message()? as i32));
                    self.tracee.resume(0)?;
                }
                // An interrupt that was sent before the thread stopped for something else: it is stopped already.
                Status::Event {
                    event: libc::PTRACE_EVENT_STOP,
                    ..
                } => self.tracee.resume(0)?,
                status => {
                    return Err(TraceError::Unexpected {
                        tid: self.tracee.tid(),
                        status,
                    });
                }
            }
        }
    }

    /// Writes to the target, whatever the protection of private memory there.
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<()> {
        self.process
            .memory
            .write_all_at(bytes, address)
            .map_err(|source| self.memory_error("write to the memory of", source))
    }

    /// Reads from the target, whatever the protection.
    pub fn read(&self, address: u64, bytes: &mut [u8]) -> Result<()> {
        self.process
            .memory
            .read_exact_at(bytes, address)
            .map_err(|source| self.memory_error("read the memory of", source))
    }

    fn memory_error(&self, what: &'static str, source: io::Error) -> TraceError {
        TraceError::Os {
            what,
            tid: self.tracee.tid(),
            source,
        }
    }

    /// Gives the thread back as it was, still stopped.
    pub fn finish(mut self) -> Result<Tracee> {
        self.restore()?;
        Ok(self.tracee)
    }

    /// Keeps what the scripts made of it: the saved state is dropped.
    pub fn keep(mut self) -> Tracee {
        self.saved = None;
        self.tracee
    }

    fn restore(&mut self) -> Result<()> {
        if let Some((registers, blocked)) = self.saved.take() {
            if let Some(action) = self.trap_action().filter(|_| self.first) {
                self.set_trap_action(action)?;
            }
            self.tracee.set_registers(&registers)?;
            self.tracee.set_blocked(blocked)?;
        }
        Ok(())
    }
}

impl Drop for Injection {
    fn drop(&mut self) {
        // Nothing can be done about a failure here: the thread is gone or about to be.
        let _ = self.restore();
    }
}

fn os(what: &'static str, tid: i32, result: i64) -> TraceError {
    TraceError::Os {
        what,
        tid,
        source: io::Error::from_raw_os_error(-result as i32),
    }
}
