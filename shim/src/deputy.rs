//! The deputy's code: what runs in a process whose body has moved.
//!
//! ```text
//! first thread (keeps the PID)              executor thread
//!   loop:                                     loop:
//!     rt_sigtimedwait(all, info, ∞)  gate       next = VRUN_NEXT(result)      notified: the supervisor
//!     VRUN_SIGNAL(result, info)      notified   exit if told so               answers when there is work
//!                                               result = block.number(block.arguments)   gate
//! ```
//!
//! Without a supervisor, which answers every call for work, there is nothing left to be: the process exits with 125.
//!
//! The first thread only fetches signals: all are blocked in it, so nothing is delivered here, and what anybody sends to
//! this PID reaches the guest with its `siginfo`. The executor makes the system calls. It is a thread of its own so
//! that it can be confined for life, while the first thread must be able to become the program again.

use crate::area;
use dynasmrt::{DynasmApi, DynasmLabelApi, VecAssembler, dynasm, x64::X64Relocation};

/// The code page of a deputy and its entries.
#[derive(Clone, Debug)]
pub struct DeputyCode {
    pub bytes: Vec<u8>,
    /// Entry of the first thread.
    pub signals: u64,
    /// Entry of the executor: where a cloned child continues.
    pub executor: u64,
    /// From here (a request was accepted) to [`DeputyCode::returned`] the requested call has not been made yet, unless
    /// the thread is at the gate behind its `syscall`.
    pub accepted: u64,
    /// Where the executor goes on after the requested call, its result in `rax`.
    pub returned: u64,
}

/// Assembles the code for [`area::DEPUTY`].
pub fn assemble() -> DeputyCode {
    let mut ops = VecAssembler::<X64Relocation>::new(area::DEPUTY as usize);
    let signals = area::DEPUTY + ops.offset().0 as u64;
    dynasm!(ops
        ; .arch x64
        ; mov rsp, QWORD area::SIGNAL_STACK_TOP as i64
        ; mov r15, QWORD area::GATE as i64
        ; again:
        ; mov rdi, QWORD area::SIGNAL_MASK as i64
        ; mov rsi, QWORD area::SIGNAL_INFO as i64
        ; xor edx, edx
        ; mov r10d, 8
        ; mov eax, libc::SYS_rt_sigtimedwait as i32
        ; call r15
        ; mov rdi, rax
        ; mov rsi, QWORD area::SIGNAL_INFO as i64
        ; mov eax, area::VRUN_SIGNAL as i32
        ; syscall
        ; jmp <again
    );
    let executor = area::DEPUTY + ops.offset().0 as u64;
    dynasm!(ops
        ; .arch x64
        ; mov rsp, QWORD area::EXECUTOR_STACK_TOP as i64
        ; mov r15, QWORD area::GATE as i64
        ; mov r14, QWORD area::REQUEST as i64
        ; xor edi, edi
        ; again:
        ; mov eax, area::VRUN_NEXT as i32
        ; syscall
    );
    let accepted = area::DEPUTY + ops.offset().0 as u64;
    dynasm!(ops
        ; .arch x64
        ; test rax, rax
        ; js >orphaned
        ; jnz >leave
        ; mov rax, [r14]
        ; mov rdi, [r14 + 8]
        ; mov rsi, [r14 + 16]
        ; mov rdx, [r14 + 24]
        ; mov r10, [r14 + 32]
        ; mov r8, [r14 + 40]
        ; mov r9, [r14 + 48]
        ; call r15
    );
    let returned = area::DEPUTY + ops.offset().0 as u64;
    dynasm!(ops
        ; .arch x64
        ; mov rdi, rax
        ; jmp <again
        ; leave:
        ; xor edi, edi
        ; mov eax, libc::SYS_exit as i32
        ; call r15
        ; orphaned:
        ; mov edi, 125
        ; mov eax, libc::SYS_exit_group as i32
        ; call r15
        ; int3
    );
    DeputyCode {
        bytes: ops.finalize().expect("labels of the deputy are complete"),
        signals,
        executor,
        accepted,
        returned,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fits_its_page() {
        let code = assemble();
        assert!(code.bytes.len() <= area::PAGE as usize);
        assert_eq!(code.signals, area::DEPUTY);
        assert!(code.executor > code.signals);
    }
}
