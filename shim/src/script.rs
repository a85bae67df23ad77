//! Scripts: straight-line machine code that makes a list of system calls in a target, assembled for one purpose and one
//! address with dynasmrt.
//!
//! Everything that is injected is a script: what a capture asks the kernel from inside the process, what turns a process
//! into a deputy, and the restorer. All decisions are taken outside, while the list is made; the code only executes it,
//! checks every result and stops (`int3`) at its end or at the first step that failed, with the step's index in `r14` and
//! the result in `rax`. So a failure names its step.
//!
//! ```text
//!         mov  r15, GATE                 the filter lets calls from the gate page pass
//! step i: mov  r14d, i
//!         mov  rdi.. r9, arguments
//!         mov  eax, number
//!         call r15                       syscall; ret
//!         cmp  rax, -4095 ; jae failed   (or: must equal, or: is kept whatever it is)
//!         mov  [results + 8 i], rax
//!  ...
//!         xor  ebx, ebx ; int3           done
//! failed: mov  ebx, 1   ; int3
//! ```

use crate::area;
use dynasmrt::{DynasmApi, DynasmLabelApi, VecAssembler, dynasm, x64::X64Relocation};
use std::fmt::Display;

/// What a step's result must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Not an error.
    Success,
    /// Exactly this (an address that was asked for).
    Exactly(u64),
    /// Anything: the result is kept for the caller to judge.
    Anything,
}

/// One system call of a script.
#[derive(Clone, Debug)]
pub struct Step {
    /// What it does, for the error message: "map 7f0000000000-7f0000021000 r-x".
    pub what: String,
    pub number: i64,
    pub arguments: [u64; 6],
    pub expect: Expect,
}

/// A list of system calls and the data they point to.
///
/// The data lies in front of the results, the results in front of the stack:
/// `data_base: [data][results: 8 bytes a step][stack]`.
#[derive(Clone, Debug)]
pub struct Script {
    steps: Vec<Step>,
    data: Vec<u8>,
    data_base: u64,
}

/// Bytes kept for the stack: the script only ever pushes a return address.
const STACK: u64 = 512;

impl Script {
    /// A script whose data will be written at `data_base`.
    pub fn new(data_base: u64) -> Self {
        Self {
            steps: Vec::new(),
            data: Vec::new(),
            data_base,
        }
    }

    /// Adds bytes to the data and gives the address that they will have. Aligned to 64 bytes, which is enough for
    /// every structure of the kernel's.
    pub fn data(&mut self, bytes: &[u8]) -> u64 {
        self.data.resize(self.data.len().next_multiple_of(64), 0);
        let address = self.data_base + self.data.len() as u64;
        self.data.extend_from_slice(bytes);
        address
    }

    /// Reserves zeroed bytes in the data for a call to write to.
    pub fn reserve(&mut self, length: usize) -> u64 {
        self.data(&vec![0; length])
    }

    /// Adds a call that must not fail; gives its index.
    pub fn call(&mut self, what: impl Display, number: i64, arguments: &[u64]) -> usize {
        self.step(what, number, arguments, Expect::Success)
    }

    /// Adds a call with its own rule for the result; gives its index.
    pub fn step(&mut self, what: impl Display, number: i64, arguments: &[u64], expect: Expect) -> usize {
        let mut padded = [0; 6];
        padded[..arguments.len()].copy_from_slice(arguments);
        self.steps.push(Step {
            what: what.to_string(),
            number,
            arguments: padded,
            expect,
        });
        self.steps.len() - 1
    }

    /// The steps, in order.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Address of the first result.
    pub(crate) fn results(&self) -> u64 {
        self.data_base + (self.data.len() as u64).next_multiple_of(64)
    }

    /// Where the stack begins (it grows down).
    pub(crate) fn stack_top(&self) -> u64 {
        (self.results() + 8 * self.steps.len() as u64 + STACK).next_multiple_of(64)
    }

    /// Bytes of data, results and stack together.
    pub fn data_length(&self) -> u64 {
        self.stack_top() - self.data_base
    }

    /// Address of the data.
    pub fn data_base(&self) -> u64 {
        self.data_base
    }

    /// The data's bytes.
    pub(crate) fn data_bytes(&self) -> &[u8] {
        &self.data
    }

    /// An upper bound of the code's length, for whoever has to find room before the base address is known.
    pub fn code_bound(&self) -> u64 {
        // A step is at most: 6 (index) + 6×10 (arguments) + 5 (number) + 3 (call) + 10+3+6 (check) + 10+3 (result).
        128 * (self.steps.len() as u64 + 1)
    }

    /// The code. It contains no reference to its own position but relative jumps, so `base` is only where it will run.
    pub(crate) fn assemble(&self, base: u64) -> Vec<u8> {
        let mut ops = VecAssembler::<X64Relocation>::new(base as usize);
        dynasm!(ops ; .arch x64 ; mov r15, QWORD area::GATE as i64);
        for (index, step) in self.steps.iter().enumerate() {
            let [a, b, c, d, e, f] = step.arguments.map(|value| value as i64);
            dynasm!(ops
                ; .arch x64
                ; mov r14d, index as i32
                ; mov rdi, QWORD a
                ; mov rsi, QWORD b
                ; mov rdx, QWORD c
                ; mov r10, QWORD d
                ; mov r8, QWORD e
                ; mov r9, QWORD f
                ; mov eax, step.number as i32
                ; call r15
            );
            match step.expect {
                Expect::Success => dynasm!(ops ; .arch x64 ; cmp rax, -4095 ; jae >failed),
                Expect::Exactly(value) => {
                    dynasm!(ops ; .arch x64 ; mov rcx, QWORD value as i64 ; cmp rax, rcx ; jne >failed);
                }
                Expect::Anything => {}
            }
            let result = self.results() + 8 * index as u64;
            dynasm!(ops
                ; .arch x64
                ; mov rcx, QWORD result as i64
                ; mov [rcx], rax
                ; jmp >next
                ; failed:
                ; mov ebx, 1
                ; int3
                ; next:
            );
        }
        dynasm!(ops ; .arch x64 ; xor ebx, ebx ; int3);
        // Every label above is defined in the same block, so nothing can be left unresolved.
        ops.finalize().expect("labels of a script are local and complete")
    }
}

/// The gate page: `syscall; ret`.
pub fn gate_page() -> Vec<u8> {
    let mut ops = VecAssembler::<X64Relocation>::new(area::GATE as usize);
    dynasm!(ops ; .arch x64 ; syscall ; ret);
    ops.finalize().expect("the gate has no labels")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_stays_within_its_bound() {
        let mut script = Script::new(area::DATA.start);
        for index in 0..1000 {
            script.step(index, 9, &[u64::MAX; 6], Expect::Exactly(u64::MAX));
        }
        assert!(script.assemble(area::CODE.start).len() as u64 <= script.code_bound());
    }

    #[test]
    fn data_results_and_stack_do_not_overlap() {
        let mut script = Script::new(0x1000);
        let first = script.data(b"abc");
        let second = script.reserve(100);
        script.call("x", 39, &[]);
        assert_eq!((first, second), (0x1000, 0x1040));
        assert!(script.results() >= second + 100);
        assert!(script.stack_top() >= script.results() + 8 + STACK);
    }

    #[test]
    fn the_gate_is_syscall_and_return() {
        assert_eq!(gate_page(), [0x0f, 0x05, 0xc3]);
    }
}
