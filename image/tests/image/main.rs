//! The image crate from outside: what is written is read back, and nothing else is accepted.

mod format;
mod hostile;
mod inspect;
mod jobs;
mod validate;
