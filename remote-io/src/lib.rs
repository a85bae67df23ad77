//! What crosses between hosts: who may talk (keys), how (channel), what is said (messages), and how a system call of a
//! guest is described, carried and executed at its origin.
//!
//! ```text
//!            origin                                                   host (destination)
//!   executor ─ marshal ─┐                                       ┌─ marshal ─ the guest's supervisor
//!                  call │                                       │ call
//!                    message ── the protocol: numbers, payloads, phases ── message
//!                     frame  ── header, caps before allocation, codec ──── frame
//!                    channel ══ TLS 1.3, raw public keys, one TCP ════════ channel
//!                      keys  ── identity and pinned peers, like ssh ────── keys
//! ```
//!
//! This crate does not know what an image contains, how a process is stopped or when a job moves: it knows neither
//! the image crate nor the shim nor ptrace. Everything in it can be tested over loopback without privilege.
//!
//! | module | has |
//! |---|---|
//! | [`keys`] | this host's [`Identity`](keys::Identity) and the [`TrustStore`](keys::TrustStore) of pinned peers |
//! | [`channel`] | the authenticated connection: [`dial`](channel::dial), [`accept`](channel::accept) |
//! | [`frame`] | the envelope of everything sent, and the codec of its bodies |
//! | [`message`] | the specification of the protocol |
//! | [`syscalls`], [`marshal`], [`call`], [`executor`] | system calls away from home |

pub mod call;
pub mod channel;
pub mod executor;
pub mod frame;
pub mod keys;
pub mod marshal;
pub mod message;
pub mod syscalls;
