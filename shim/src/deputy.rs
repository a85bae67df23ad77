//! The deputy's code: what runs in a process whose body has moved.
//!
//! ```text
//! the process's own threads, parked          foreman and executors
//!   forget rseq, robust list, child-tid        loop:
//!   loop:                                        next = VRUN_NEXT(result, block)       notified: the supervisor
//!     rt_sigtimedwait(mask, info, ∞)  gate       exit if told so                       answers when there is work
//!     VRUN_SIGNAL(result, info)       notified   result = block.number(block.arguments)   gate
//! ```
//!
//! Without a supervisor, which answers every call for work, there is nothing left to be: the process exits with 125.
//!
//! The process's own threads keep their TIDs, which nobody could get for them again, and fetch signals: all are blocked in
//! them, so nothing is delivered here, and what anybody sends to this process reaches the guest with its `siginfo`. Each
//! has a [`Slot`](SLOT) of memory. The calls are made by other threads, so that these can be confined for life while
//! the program's own must be able to become the program again. Each of those has a *station*: one page, the request block
//! at its start (the number and six arguments of the next call, 8 bytes each), its stack at its end.

use crate::area;
use dynasmrt::{DynasmApi, DynasmLabelApi, VecAssembler, dynasm, x64::X64Relocation};

/// Bytes of a parked thread's memory: its `siginfo_t`, the mask of what it waits for, its stack.
pub const SLOT: u64 = 256;
/// Where in it the `siginfo_t` is.
pub const SLOT_INFO: u64 = 0;
/// Where in it the mask is.
pub const SLOT_MASK: u64 = 128;

/// The code page of a deputy and its entries.
#[derive(Clone, Debug)]
pub struct DeputyCode {
    pub bytes: Vec<u8>,
    /// Entry of a thread that is to be parked, with what unregisters its rseq in `rdi` (0: it has none), `rsi`, `rdx` and
    /// `r10`, and `rsp` at the end of its slot. It stops by `int3` when the kernel has no pointer of it left, and then
    /// goes on to fetch signals.
    pub forget: u64,
    /// Entry of a foreman or executor, with `rsp` at the end of its station: where a cloned child continues.
    pub executor: u64,
    /// From here (a request was accepted) to [`DeputyCode::returned`] the requested call has not been made yet, unless
    /// the thread is at the gate behind its `syscall`.
    pub accepted: u64,
    /// Where the executor goes on after the requested call, its result in `rax`.
    pub returned: u64,
    /// Where a thread ends itself.
    pub leave: u64,
}

/// Assembles the code for [`area::DEPUTY`].
pub fn assemble() -> DeputyCode {
    let mut ops = VecAssembler::<X64Relocation>::new(area::DEPUTY as usize);
    let here = |ops: &VecAssembler<X64Relocation>| area::DEPUTY + ops.offset().0 as u64;
    let forget = here(&ops);
    // Calls that no filter of ours looks at, made without a stack.
    dynasm!(ops
        ; .arch x64
        ; test rdi, rdi
        ; jz >others
        ; mov eax, libc::SYS_rseq as i32
        ; syscall
        ; others:
        ; xor edi, edi
        ; mov esi, 24
        ; mov eax, libc::SYS_set_robust_list as i32
        ; syscall
        ; xor edi, edi
        ; mov eax, libc::SYS_set_tid_address as i32
        ; syscall
        ; int3
        ; lea r14, [rsp - SLOT as i32]
        ; mov r15, QWORD area::GATE as i64
        ; again:
        ; lea rdi, [r14 + SLOT_MASK as i32]
        ; lea rsi, [r14 + SLOT_INFO as i32]
        ; xor edx, edx
        ; mov r10d, 8
        ; mov eax, libc::SYS_rt_sigtimedwait as i32
        ; call r15
        ; mov rdi, rax
        ; lea rsi, [r14 + SLOT_INFO as i32]
        ; mov eax, area::VRUN_SIGNAL as i32
        ; syscall
        ; jmp <again
    );
    let executor = here(&ops);
    dynasm!(ops
        ; .arch x64
        ; lea r14, [rsp - area::PAGE as i32]
        ; mov r15, QWORD area::GATE as i64
        ; xor edi, edi
        ; again:
        ; mov rsi, r14
        ; mov eax, area::VRUN_NEXT as i32
        ; syscall
    );
    let accepted = here(&ops);
    dynasm!(ops
        ; .arch x64
        ; test rax, rax
        ; js >orphaned
        ; jz >work
        ; cmp rax, area::EXECUTOR_EXIT as i32
        ; jne <again
        ; jmp >leave
        ; work:
        ; mov rax, [r14]
        ; mov rdi, [r14 + 8]
        ; mov rsi, [r14 + 16]
        ; mov rdx, [r14 + 24]
        ; mov r10, [r14 + 32]
        ; mov r8, [r14 + 40]
        ; mov r9, [r14 + 48]
        ; call r15
    );
    let returned = here(&ops);
    dynasm!(ops
        ; .arch x64
        ; mov rdi, rax
        ; jmp <again
        ; leave:
    );
    let leave = here(&ops);
    dynasm!(ops
        ; .arch x64
        ; xor edi, edi
        ; mov eax, libc::SYS_exit as i32
        ; syscall
        ; int3
        ; orphaned:
        ; mov edi, 125
        ; mov eax, libc::SYS_exit_group as i32
        ; syscall
        ; int3
    );
    DeputyCode {
        bytes: ops.finalize().expect("labels of the deputy are complete"),
        forget,
        executor,
        accepted,
        returned,
        leave,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fits_its_page() {
        let code = assemble();
        assert!(code.bytes.len() <= area::PAGE as usize);
        assert_eq!(code.forget, area::DEPUTY);
        assert!(code.executor > code.forget && code.leave > code.returned);
    }
}
