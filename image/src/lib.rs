//! What a process is, as bytes. Knows no ptrace, no network and no file system: it turns plain data into an image and
//! an image into plain data, and believes nothing that it has not checked.
//!
//! ```text
//!            Writer ──▶ ┌──────────── image ────────────┐ ──▶ Reader ──▶ restore
//!  capture ─▶ Job       │ header Job Pages… File… … End │      Job, Pages, File, End
//!             runs      └───────────────────────────────┘ ──▶ inspect ──▶ Report (text, JSON)
//!                            a file or a connection
//! ```
//!
//! - [`state`]: the types: a [`state::Job`] with its processes, areas, descriptors, threads.
//! - [`mod@format`]: the image, the same on disk and on the wire; its specification is that module's documentation.
//! - [`validate`]: what a job must satisfy before anything else may rely on it.
//! - [`mod@inspect`]: an image for a person, or as JSON for a program.

pub mod format;
pub mod inspect;
pub mod state;
pub mod validate;

pub use format::{Error, Kind, MAX_RUN, PAGE, Reader, Record, Totals, VERSION, Writer};
pub use inspect::{Report, inspect};
pub use validate::Invalid;
