//! No length in an image makes a reader allocate: only bytes that have arrived do.
//!
//! An allocator that remembers its largest request needs `unsafe`; it only adds that to the system's own.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use proptest::prelude::*;
use vrun_image::format::{MAGIC, MAX_JOB};
use vrun_image::{Error, Kind, MAX_RUN, Reader, Record, VERSION};

/// The system's allocator, with the size of each thread's largest request.
struct Watched;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call goes to `System` with the arguments unchanged, so its guarantees are ours. `LARGEST` is made
// by a constant and has no destructor, so that touching it never allocates.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.with(|largest| largest.set(largest.get().max(layout.size())));
        // SAFETY: the caller's promises about `layout` are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: `pointer` came from `System`, as all of ours do.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static WATCHED: Watched = Watched;

/// Reads the image to its error and gives that and the largest allocation on the way.
fn read(image: &[u8]) -> (Error, usize) {
    let run = || -> Result<(), Error> {
        let mut reader = Reader::new(image)?;
        while !matches!(reader.next()?, Record::End(_)) {}
        Ok(())
    };
    LARGEST.set(0);
    let error = run().expect_err("this is not an image");
    (error, LARGEST.get())
}

/// An image that begins with a section of this kind, length and body.
fn image(kind: u16, length: u64, body: &[u8]) -> Vec<u8> {
    let version = if kind == Kind::Job as u16 {
        Kind::Job.version()
    } else {
        1
    };
    let head = [kind.to_le_bytes(), version.to_le_bytes()].concat();
    let crc = crc32fast::hash(&[&head, &length.to_le_bytes()[..], body].concat());
    let header = [&MAGIC[..], &VERSION.to_le_bytes()].concat();
    [&header[..], &head, &crc.to_le_bytes(), &length.to_le_bytes(), body].concat()
}

#[test]
fn an_oversized_length_is_not_allocated() {
    for kind in 1..=4 {
        let (error, largest) = read(&image(kind, u64::MAX, b""));
        assert!(matches!(error, Error::Oversized { .. }), "{error:?}");
        assert!(largest < 1024, "{largest} bytes were allocated for kind {kind}");
    }
}

#[test]
fn an_announced_length_is_allocated_as_it_arrives() {
    let (error, largest) = read(&image(1, MAX_JOB, &[0; 100]));
    assert!(matches!(error, Error::Truncated { .. }), "{error:?}");
    assert!(largest <= MAX_RUN + 16, "{largest} bytes were allocated for 100");
}

proptest! {
    /// Inner lengths reach the decoder's own limits: serde reserves at most 1 MiB on a length's word.
    #[test]
    fn noise_allocates_little(mut body in prop::collection::vec(any::<u8>(), 8..2000), length in any::<u64>()) {
        // The first length is the id's.
        body[..8].copy_from_slice(&length.to_le_bytes());
        let (_, largest) = read(&image(1, body.len() as u64, &body));
        prop_assert!(largest <= 2 * MAX_RUN, "{} bytes were allocated", largest);
    }
}
