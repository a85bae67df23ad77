//! What runs inside a target: injected system calls, the deputy's loops, the restorer's code. No policy, no network.
//!
//! ```text
//!  supervisor                         target (stopped under ptrace)
//!  ──────────                         ─────────────────────────────
//!  Injection::begin ───────────────►  registers and mask saved, signals blocked
//!  ensure_area ────────────────────►  the vrun area (area): gate, code, data
//!  Script (a list of calls) ──run──►  straight-line code, int3 at the end or at the failed step
//!  Injection::finish ──────────────►  as before
//! ```
//!
//! [`xstate`] brings extended registers from one CPU's layout into another's, [`vdso`] makes the pointers that a program
//! keeps into its old vDSO work under another kernel.

pub mod area;
pub mod deputy;
pub mod inject;
pub mod script;
pub mod tracee;
pub mod vdso;
pub mod xstate;

pub use inject::Injection;
pub use script::{Expect, Script};
pub use tracee::{Status, TraceError, Tracee};
