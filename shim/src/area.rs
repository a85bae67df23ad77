//! The vrun area: the one range of a target's address space that is ours.
//!
//! It is mapped on demand, at the same address in every target, because the notification filter (which is chosen when
//! the program starts and can never be removed) must know where the gate is.
//!
//! ```text
//! 0x20000  gate     r-x  `syscall; ret`: calls from this page pass the filter
//! 0x21000  deputy   r-x  the loops of a deputy's threads
//! 0x40000  code     r-x  injected scripts
//! 0x50000  data     rw-  their data
//! 0x60000  end
//! ```
//!
//! Below it is `vm.mmap_min_addr` (64 KiB), above it the lowest address at which linkers place a program (2 MiB). The
//! gate is a speed path and no wall: a program that jumps there makes system calls that nobody tracked, of itself, with
//! its own rights. (At the destination the walls are the namespaces.)

use std::ops::Range;

/// First address of the area.
pub const START: u64 = 0x2_0000;
/// First address after the area.
pub const END: u64 = 0x6_0000;
/// `syscall; ret`.
pub const GATE: u64 = START;
/// The gate page: what the filter's prologue lets through.
pub const GATE_PAGE: Range<u64> = START..START + PAGE;
/// The deputy's code page.
pub const DEPUTY: u64 = 0x2_1000;
/// First address after the gate and the deputy's page, which may be executed.
pub const DEPUTY_END: u64 = DEPUTY + PAGE;
/// Code of injected scripts.
pub const CODE: Range<u64> = 0x4_0000..0x5_0000;
/// Data and stack of injected scripts.
pub const DATA: Range<u64> = 0x5_0000..0x6_0000;

/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// The end of user space with four-level page tables.
pub const USER_END: u64 = 0x7fff_ffff_f000;

/// The reserved call by which an executor asks for work: `VRUN_NEXT(result of the last call, request block)`. It returns 0
/// when the request block holds a call, [`EXECUTOR_EXIT`] when the thread is to end, [`EXECUTOR_AGAIN`] when it is to ask
/// again.
pub const VRUN_NEXT: u32 = 0x7672;
/// The reserved call by which a deputy's parked thread hands over a signal: `VRUN_SIGNAL(number or -errno, siginfo)`.
pub const VRUN_SIGNAL: u32 = 0x7673;
/// Answer to [`VRUN_NEXT`]: leave.
pub const EXECUTOR_EXIT: i64 = 1;
/// Answer to [`VRUN_NEXT`]: ask again.
pub const EXECUTOR_AGAIN: i64 = 2;
