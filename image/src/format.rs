//! The image: a job as bytes, the same on disk and on the wire. This documentation is its specification.
//!
//! ```text
//!  ┌────────────┬─────┬───────┬───────┬─ ─ ─┬──────┬─ ─ ─┬─────┐
//!  │   header   │ Job │ Pages │ Pages │  …  │ File │  …  │ End │     Job first and once; then Pages and File in any
//!  └────────────┴─────┴───────┴───────┴─ ─ ─┴──────┴─ ─ ─┴─────┘     order; End last and once. Nothing may follow it
//!                                                                    in a file; on a wire the next message does.
//!
//!                0           8             12
//!  header        │ VRUNIMG\0 │ VERSION u32 │                                12 bytes
//!
//!                0          2             4            8            16
//!  section       │ kind u16 │ version u16 │ CRC-32 u32 │ length u64 │ body  16 + length bytes
//!
//!  Job           │ bincode of state::Job                                    at most 64 MiB
//!
//!                0             4           12
//!  Pages         │ process u32 │ start u64 │ content                        1 to 256 pages of 4096 bytes
//!
//!                0          4              8            16
//!  File          │ file u32 │ reserved u32 │ offset u64 │ content           1 byte to 1 MiB
//!
//!  PackedPages and PackedFile are the same with their content as one zstd frame (RFC 8878)
//!
//!                0              8                16               24
//!  End           │ sections u64 │ page bytes u64 │ file bytes u64 │         sections before End, sums of content
//! ```
//!
//! - All integers are little-endian. The CRC-32 is IEEE 802.3's (zlib's), over the section's first four bytes, its
//!   `length` and its body. It finds accidents; authenticity is the business of the connection or of who owns the file.
//! - The numbers are those of [`Kind`]: 0 is invalid, none is ever used again for something else. Nothing in an image
//!   is optional: a reader refuses a kind or a section version that it does not know. A change of [`crate::state`] or
//!   of a body is a new version of that section; a change of this envelope is a new [`VERSION`].
//! - The Job's encoding is bincode 1.3 with fixed-width little-endian integers, without trailing bytes. bincode sees
//!   nothing but the Job: the content of pages and files is raw.
//! - Reserved bytes are zero. `process` is an index into [`Job::processes`]; the numbers behind them are those of
//!   [`Job::shared`], and `start` is an offset then. `file` is an index into [`Job::files`]. A run of pages is page-aligned and lies wholly inside one
//!   area; a run of a file belongs to one that is marked as stored and lies inside its size. What is stored twice is as
//!   it was stored last. What is not stored is zero, or, in a mapping of a file, as in that file.
//! - A section's length is checked against its cap before anything is allocated, its CRC before its body is looked at,
//!   and the Job with [`Job::validate`] before it is handed out.

use std::fmt;
use std::io::{self, Read, Write};
use std::mem;

use bincode::Options;
use crc32fast::Hasher;

use crate::state::{Job, OpenFile, Process};
use crate::validate::{Invalid, ensure};

/// The first bytes of every image.
pub const MAGIC: [u8; 8] = *b"VRUNIMG\0";
/// Version of the envelope: the header and the layout of a section.
pub const VERSION: u32 = 1;
/// Bytes in a page of memory. x86_64 knows no other base size.
pub const PAGE: u64 = 4096;
/// The most bytes of content in one Pages or File section.
pub const MAX_RUN: usize = 1 << 20;
/// The most bytes in a Job section: hundreds of thousands of areas fit.
pub const MAX_JOB: u64 = 64 << 20;

const HEADER: usize = 12;
const SECTION: usize = 16;
const PAGES_PREFIX: usize = 12;
const FILE_PREFIX: usize = 16;
const END_BODY: usize = 24;
/// The longest body of a run, and the step in which a reader's buffer grows.
const STEP: usize = FILE_PREFIX + MAX_RUN;

/// What a section holds. The discriminants are the numbers in the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Kind {
    /// The structured part: [`Job`].
    Job = 1,
    /// A run of memory pages.
    Pages = 2,
    /// A run of a stored file's content.
    File = 3,
    /// The totals, and the proof that nothing is missing.
    End = 4,
    /// [`Kind::Pages`], compressed.
    PackedPages = 5,
    /// [`Kind::File`], compressed.
    PackedFile = 6,
}

impl Kind {
    fn from_number(number: u16) -> Option<Kind> {
        use Kind::{End, File, Job, PackedFile, PackedPages, Pages};
        [Job, Pages, File, End, PackedPages, PackedFile]
            .into_iter()
            .find(|kind| *kind as u16 == number)
    }

    /// The version of this kind's body that is written, and the only one that is read.
    pub const fn version(self) -> u16 {
        match self {
            Kind::Job => 5,
            Kind::Pages | Kind::File | Kind::End | Kind::PackedPages | Kind::PackedFile => 1,
        }
    }

    /// The most bytes that a body of this kind may have.
    const fn cap(self) -> u64 {
        match self {
            Kind::Job => MAX_JOB,
            Kind::Pages | Kind::PackedPages => (PAGES_PREFIX + MAX_RUN) as u64,
            Kind::File | Kind::PackedFile => (FILE_PREFIX + MAX_RUN) as u64,
            Kind::End => END_BODY as u64,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Job => "Job",
            Kind::Pages => "Pages",
            Kind::File => "File",
            Kind::End => "End",
            Kind::PackedPages => "PackedPages",
            Kind::PackedFile => "PackedFile",
        })
    }
}

/// Why an image cannot be read or written. Sections are counted from 1; offsets are bytes from the image's start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The first bytes are not [`MAGIC`].
    #[error("this is not a vrun image: it does not begin with VRUNIMG; name a file that `vctl save` wrote")]
    NotAnImage,
    /// The envelope's version is not [`VERSION`].
    #[error("the image has format version {found}, this vrun reads version {VERSION}; use the vrun that wrote it")]
    OtherVersion { found: u32 },
    /// A section of a known kind in a version that is not known.
    #[error(
        "section {section} ({kind}) has version {found}, this vrun reads {known}; use the vrun that wrote the image"
    )]
    OtherSectionVersion {
        section: u64,
        kind: Kind,
        found: u16,
        known: u16,
    },
    /// A kind that is invalid (0) or of a newer writer.
    #[error(
        "section {section} at byte {offset} has the unknown kind {found}: the image is damaged, or of a newer vrun"
    )]
    UnknownKind { section: u64, offset: u64, found: u16 },
    /// The input ended before the [`Kind::End`] section did. Section 0 is the header.
    #[error("the image is cut off: it ends in or before section {section} at byte {offset}; copy or save it again")]
    Truncated { section: u64, offset: u64 },
    /// The checksum does not match.
    #[error(
        "section {section} ({kind}) at byte {offset} is damaged: its checksum does not match; copy the image again"
    )]
    Corrupt { section: u64, kind: Kind, offset: u64 },
    /// A length above the cap of its kind; nothing of that length was allocated.
    #[error(
        "section {section} ({kind}) has {length} bytes and may have {cap}: the image is damaged, or the job too big"
    )]
    Oversized {
        section: u64,
        kind: Kind,
        length: u64,
        cap: u64,
    },
    /// Intact, but not what an image may say; also a wrong use of [`Writer`] or [`Reader`].
    #[error("the image is invalid: {0}")]
    Invalid(Invalid),
    /// The file or connection failed; its own error is the source (`ENOSPC`, a time-out, a reset).
    #[error("the image could not be read or written")]
    Io(#[source] io::Error),
}

impl From<Invalid> for Error {
    fn from(invalid: Invalid) -> Error {
        Error::Invalid(invalid)
    }
}

/// What the End section says of the sections before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// The Job and all runs; not End itself.
    pub sections: u64,
    /// Bytes of content in Pages sections.
    pub page_bytes: u64,
    /// Bytes of content in File sections.
    pub file_bytes: u64,
}

/// One section, decoded and checked. Runs borrow the reader's buffer.
#[derive(Debug)]
pub enum Record<'a> {
    /// Valid in the sense of [`Job::validate`].
    Job(Box<Job>),
    /// Memory of `processes[process]` from address `start`: whole pages inside one area.
    Pages { process: u32, start: u64, bytes: &'a [u8] },
    /// Content of `files[file]` from byte `offset`.
    File { file: u32, offset: u64, bytes: &'a [u8] },
    /// The image is complete.
    End(Totals),
}

fn codec() -> impl Options {
    bincode::DefaultOptions::new()
        .with_fixint_encoding()
        .with_little_endian()
        .with_limit(MAX_JOB)
}

fn checksum(kind_and_version: &[u8], length: &[u8], body: [&[u8]; 2]) -> u32 {
    let mut hasher = Hasher::new();
    for part in [kind_and_version, length, body[0], body[1]] {
        hasher.update(part);
    }
    hasher.finalize()
}

/// The body of a plain run; that of a packed one is made in `unpacked`, of at most [`MAX_RUN`] bytes of content.
fn content<'a>(packed: bool, body: &'a [u8], unpacked: &'a mut Vec<u8>, prefix: usize) -> Result<&'a [u8], Invalid> {
    if !packed {
        return Ok(body);
    }
    unpacked.resize(prefix + MAX_RUN, 0);
    unpacked[..prefix].copy_from_slice(&body[..prefix]);
    let length = zstd::bulk::decompress_to_buffer(&body[prefix..], &mut unpacked[prefix..])
        .map_err(|error| Invalid::new(format_args!("a packed run cannot be unpacked: {error}")))?;
    Ok(&unpacked[..prefix + length])
}

/// `N` little-endian bytes at `at`. The caller has checked the length of `bytes`.
fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}

/// What of a job its runs are checked against, in the writer as in the reader.
#[derive(Debug)]
struct Manifest {
    /// The areas of each process: (start, end), ascending. Then each shared memory as one.
    processes: Vec<Vec<(u64, u64)>>,
    /// The size of each file that is stored, `None` for the others.
    files: Vec<Option<u64>>,
}

impl Manifest {
    fn of(job: &Job) -> Manifest {
        let areas = |process: &Process| process.memory.areas.iter().map(|area| (area.start, area.end)).collect();
        let shared = job.shared.iter().map(|memory| match memory.kind.is_stored() {
            true => vec![(0, memory.size.next_multiple_of(PAGE))],
            false => Vec::new(),
        });
        Manifest {
            processes: job.processes.iter().map(areas).chain(shared).collect(),
            files: job.files.iter().map(OpenFile::content).collect(),
        }
    }

    fn check_pages(&self, process: u32, start: u64, length: usize) -> Result<(), Invalid> {
        let areas = self.processes.get(process as usize);
        let areas = areas.ok_or_else(|| {
            Invalid::new(format_args!(
                "a run is of process {process}, which the job does not have"
            ))
        })?;
        ensure!(
            start.is_multiple_of(PAGE),
            "a run of pages of process {process} begins inside a page, at {start:#x}"
        );
        ensure!(
            length != 0 && (length as u64).is_multiple_of(PAGE),
            "the run of pages of process {process} at {start:#x} has {length} bytes, not a number of whole pages"
        );
        let area = areas[..areas.partition_point(|area| area.0 <= start)].last();
        ensure!(
            area.is_some_and(|&(_, end)| start < end && length as u64 <= end - start),
            "the run of {length} bytes of process {process} at {start:#x} does not lie inside one area"
        );
        Ok(())
    }

    fn check_file(&self, file: u32, offset: u64, length: usize) -> Result<(), Invalid> {
        let size = self.files.get(file as usize).copied().flatten();
        let size = size.ok_or_else(|| {
            let what = "which is not marked as stored";
            Invalid::new(format_args!("there is content for file {file}, {what}"))
        })?;
        ensure!(length != 0, "a run of file {file} is empty");
        ensure!(
            offset <= size && length as u64 <= size - offset,
            "the run of {length} bytes of file {file} at byte {offset} is not in its {size} bytes"
        );
        Ok(())
    }
}

/// Writes an image: [`job`](Writer::job), then runs, then [`finish`](Writer::finish).
///
/// Everything is checked as a [`Reader`] would, so that no image is written that cannot be read. Content is not copied:
/// each run is one small `write_all` and one of the content, so wrap a file in a `BufWriter` if runs are small. An
/// image that was not finished, for an error or a lost writer, has no End and is refused by every reader.
#[derive(Debug)]
pub struct Writer<W: Write> {
    inner: W,
    manifest: Option<Manifest>,
    totals: Totals,
    packer: Option<Packer>,
}

/// Compresses runs.
struct Packer {
    compressor: zstd::bulk::Compressor<'static>,
    packed: Vec<u8>,
}

impl fmt::Debug for Packer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Packer").finish_non_exhaustive()
    }
}

impl Packer {
    /// What is to be written of a run: nothing if it would not become smaller.
    fn pack(&mut self, bytes: &[u8]) -> Option<&[u8]> {
        self.packed.clear();
        self.packed.reserve(bytes.len());
        // One byte less than the run, or it is an error, which says just that.
        self.packed.resize(bytes.len().saturating_sub(1), 0);
        let length = self.compressor.compress_to_buffer(bytes, &mut self.packed[..]).ok()?;
        Some(&self.packed[..length])
    }
}

impl<W: Write> Writer<W> {
    /// Writes the header. Fails with [`Error::Io`] only.
    pub fn new(mut inner: W) -> Result<Self, Error> {
        let mut header = [0; HEADER];
        header[..8].copy_from_slice(&MAGIC);
        header[8..].copy_from_slice(&VERSION.to_le_bytes());
        inner.write_all(&header).map_err(Error::Io)?;
        Ok(Writer {
            inner,
            manifest: None,
            totals: Totals::default(),
            packer: None,
        })
    }

    /// From now on runs are compressed with zstd at this level (1 is fast, 19 is slow, negative ones are faster still),
    /// where that makes them smaller. Fails with [`Error::Io`] only.
    pub fn compress(&mut self, level: i32) -> Result<(), Error> {
        let compressor = zstd::bulk::Compressor::new(level).map_err(Error::Io)?;
        self.packer = Some(Packer {
            compressor,
            packed: Vec::new(),
        });
        Ok(())
    }

    /// Writes the job, first and once.
    ///
    /// # Errors
    /// [`Error::Invalid`] if it is not the first section or [`Job::validate`] refuses it, [`Error::Oversized`] above
    /// [`MAX_JOB`], [`Error::Io`].
    pub fn job(&mut self, job: &Job) -> Result<(), Error> {
        ensure!(
            self.manifest.is_none(),
            "an image has one Job section, this is a second one"
        );
        job.validate()?;
        let undecodable = |error| Invalid::new(format_args!("the job cannot be encoded: {error}"));
        let length = codec().with_no_limit().serialized_size(job).map_err(undecodable)?;
        self.check_cap(Kind::Job, length)?;
        let body = codec().serialize(job).map_err(undecodable)?;
        self.section(Kind::Job, &[], &body)?;
        self.manifest = Some(Manifest::of(job));
        Ok(())
    }

    /// Writes memory of `processes[process]`: from the page-aligned `start`, 1 to 256 whole pages inside one area.
    ///
    /// # Errors
    /// [`Error::Invalid`] if that is not so or there was no job yet, [`Error::Oversized`] above [`MAX_RUN`],
    /// [`Error::Io`].
    pub fn pages(&mut self, process: u32, start: u64, bytes: &[u8]) -> Result<(), Error> {
        self.check_cap(Kind::Pages, (PAGES_PREFIX + bytes.len()) as u64)?;
        self.manifest()?.check_pages(process, start, bytes.len())?;
        let mut prefix = [0; PAGES_PREFIX];
        prefix[..4].copy_from_slice(&process.to_le_bytes());
        prefix[4..].copy_from_slice(&start.to_le_bytes());
        self.run([Kind::Pages, Kind::PackedPages], &prefix, bytes)?;
        self.totals.page_bytes += bytes.len() as u64;
        Ok(())
    }

    /// Writes content of `files[file]`, which is marked as stored, from byte `offset`; `bytes` are not empty and end
    /// inside its size.
    ///
    /// # Errors
    /// As for [`Writer::pages`].
    pub fn file(&mut self, file: u32, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        self.check_cap(Kind::File, (FILE_PREFIX + bytes.len()) as u64)?;
        self.manifest()?.check_file(file, offset, bytes.len())?;
        let mut prefix = [0; FILE_PREFIX];
        prefix[..4].copy_from_slice(&file.to_le_bytes());
        prefix[8..].copy_from_slice(&offset.to_le_bytes());
        self.run([Kind::File, Kind::PackedFile], &prefix, bytes)?;
        self.totals.file_bytes += bytes.len() as u64;
        Ok(())
    }

    /// Writes End, flushes, and gives the output back. To make a file durable is left to the caller.
    ///
    /// # Errors
    /// [`Error::Invalid`] if there was no job, [`Error::Io`].
    pub fn finish(mut self) -> Result<(W, Totals), Error> {
        self.manifest()?;
        let totals = self.totals;
        let mut body = [0; END_BODY];
        body[..8].copy_from_slice(&totals.sections.to_le_bytes());
        body[8..16].copy_from_slice(&totals.page_bytes.to_le_bytes());
        body[16..].copy_from_slice(&totals.file_bytes.to_le_bytes());
        self.section(Kind::End, &body, &[])?;
        self.inner.flush().map_err(Error::Io)?;
        Ok((self.inner, totals))
    }

    fn manifest(&self) -> Result<&Manifest, Invalid> {
        self.manifest
            .as_ref()
            .ok_or_else(|| Invalid::new(format_args!("the first section must be the Job")))
    }

    fn check_cap(&self, kind: Kind, length: u64) -> Result<(), Error> {
        let cap = kind.cap();
        if length > cap {
            return Err(Error::Oversized {
                section: self.totals.sections + 1,
                kind,
                length,
                cap,
            });
        }
        Ok(())
    }

    /// A section with content, as it is or packed.
    fn run(&mut self, [plain, packed]: [Kind; 2], prefix: &[u8], bytes: &[u8]) -> Result<(), Error> {
        let Some(mut packer) = self.packer.take() else {
            return self.section(plain, prefix, bytes);
        };
        let written = match packer.pack(bytes) {
            Some(content) => self.section(packed, prefix, content),
            None => self.section(plain, prefix, bytes),
        };
        self.packer = Some(packer);
        written
    }

    fn section(&mut self, kind: Kind, prefix: &[u8], content: &[u8]) -> Result<(), Error> {
        let mut head = [0; SECTION + END_BODY];
        head[..2].copy_from_slice(&(kind as u16).to_le_bytes());
        head[2..4].copy_from_slice(&kind.version().to_le_bytes());
        head[8..16].copy_from_slice(&((prefix.len() + content.len()) as u64).to_le_bytes());
        let crc = checksum(&head[..4], &head[8..16], [prefix, content]);
        head[4..8].copy_from_slice(&crc.to_le_bytes());
        let head = &mut head[..SECTION + prefix.len()];
        head[SECTION..].copy_from_slice(prefix);
        self.inner.write_all(head).map_err(Error::Io)?;
        self.inner.write_all(content).map_err(Error::Io)?;
        self.totals.sections += 1;
        Ok(())
    }
}

/// Reads an image and believes none of it: [`next`](Reader::next) until [`Record::End`].
///
/// It never reads beyond End, so that a connection can go on after the image, and asks its input for a section in two
/// reads, head and body: wrap a file in a `BufReader` if runs may be small. Memory: one buffer, at most [`MAX_RUN`]
/// plus what has arrived of a Job, and 16 bytes for each area and file of the job.
#[derive(Debug)]
pub struct Reader<R: Read> {
    inner: R,
    buffer: Vec<u8>,
    /// A run that was packed: prefix and content as in a plain section.
    unpacked: Vec<u8>,
    /// Of the sections read so far.
    totals: Totals,
    position: u64,
    stage: Stage,
}

/// What may come next. An error leaves [`Stage::Over`] behind: after one nothing more is believed.
#[derive(Debug)]
enum Stage {
    First,
    Runs(Manifest),
    Over,
}

impl<R: Read> Reader<R> {
    /// Reads the header.
    ///
    /// # Errors
    /// [`Error::NotAnImage`], [`Error::OtherVersion`], [`Error::Truncated`], [`Error::Io`].
    pub fn new(mut inner: R) -> Result<Self, Error> {
        let mut header = Vec::with_capacity(HEADER);
        inner
            .by_ref()
            .take(HEADER as u64)
            .read_to_end(&mut header)
            .map_err(Error::Io)?;
        if !header.iter().zip(&MAGIC).all(|(found, magic)| found == magic) {
            return Err(Error::NotAnImage);
        }
        if header.len() < HEADER {
            return Err(Error::Truncated { section: 0, offset: 0 });
        }
        let found = u32::from_le_bytes(field(&header, 8));
        if found != VERSION {
            return Err(Error::OtherVersion { found });
        }
        let (totals, position) = (Totals::default(), HEADER as u64);
        Ok(Reader {
            inner,
            buffer: Vec::new(),
            unpacked: Vec::new(),
            totals,
            position,
            stage: Stage::First,
        })
    }

    /// Reads and checks the next section. Not to be called after [`Record::End`] or an error: it then gives an error.
    ///
    /// # Errors
    /// Every variant of [`Error`] but `NotAnImage` and `OtherVersion`.
    #[expect(
        clippy::should_implement_trait,
        reason = "an Iterator's items cannot borrow the iterator's buffer"
    )]
    pub fn next(&mut self) -> Result<Record<'_>, Error> {
        let stage = mem::replace(&mut self.stage, Stage::Over);
        ensure!(
            !matches!(stage, Stage::Over),
            "the reader was asked for more after the end or an error"
        );
        let (kind, length) = self.section()?;
        match (kind, stage) {
            (Kind::Job, Stage::First) => {
                let undecodable = |error| Invalid::new(format_args!("the job cannot be decoded: {error}"));
                let job: Box<Job> = codec().deserialize(&self.buffer[..length]).map_err(undecodable)?;
                // Its bytes may be many, and a run needs 1 MiB only.
                self.buffer = Vec::new();
                job.validate()?;
                self.totals.sections += 1;
                self.stage = Stage::Runs(Manifest::of(&job));
                Ok(Record::Job(job))
            }
            (Kind::Pages | Kind::PackedPages, Stage::Runs(manifest)) => {
                ensure!(
                    length >= PAGES_PREFIX,
                    "a {kind} section is too short to name its process and address"
                );
                let packed = kind == Kind::PackedPages;
                let body = content(packed, &self.buffer[..length], &mut self.unpacked, PAGES_PREFIX)?;
                let (process, start) = (u32::from_le_bytes(field(body, 0)), u64::from_le_bytes(field(body, 4)));
                let bytes = &body[PAGES_PREFIX..];
                manifest.check_pages(process, start, bytes.len())?;
                self.totals.sections += 1;
                self.totals.page_bytes += bytes.len() as u64;
                self.stage = Stage::Runs(manifest);
                Ok(Record::Pages { process, start, bytes })
            }
            (Kind::File | Kind::PackedFile, Stage::Runs(manifest)) => {
                ensure!(
                    length >= FILE_PREFIX,
                    "a {kind} section is too short to name its file and offset"
                );
                let packed = kind == Kind::PackedFile;
                let body = content(packed, &self.buffer[..length], &mut self.unpacked, FILE_PREFIX)?;
                let file = u32::from_le_bytes(field(body, 0));
                ensure!(
                    field(body, 4) == [0; 4],
                    "the reserved bytes of a run of file {file} are not zero"
                );
                let offset = u64::from_le_bytes(field(body, 8));
                let bytes = &body[FILE_PREFIX..];
                manifest.check_file(file, offset, bytes.len())?;
                self.totals.sections += 1;
                self.totals.file_bytes += bytes.len() as u64;
                self.stage = Stage::Runs(manifest);
                Ok(Record::File { file, offset, bytes })
            }
            (Kind::End, Stage::Runs(_)) => {
                ensure!(
                    length == END_BODY,
                    "the End section has {length} bytes instead of {END_BODY}"
                );
                let body = &self.buffer[..length];
                let [sections, page_bytes, file_bytes] = [0, 8, 16].map(|at| u64::from_le_bytes(field(body, at)));
                let found = Totals {
                    sections,
                    page_bytes,
                    file_bytes,
                };
                ensure!(
                    found == self.totals,
                    "its End section counts {found:?}, but what came before is {:?}: a section was lost or added",
                    self.totals
                );
                Ok(Record::End(found))
            }
            (kind, Stage::First) => {
                Err(Invalid::new(format_args!("its first section is {kind} instead of Job")).into())
            }
            (kind, _) => Err(Invalid::new(format_args!("it has a second {kind} section")).into()),
        }
    }

    /// After [`Record::End`] of an image in a file: checks that nothing follows, and gives the input back.
    ///
    /// # Errors
    /// [`Error::Invalid`] if something does, or if the image has not been read to its end; [`Error::Io`].
    pub fn expect_eof(mut self) -> Result<R, Error> {
        ensure!(
            matches!(self.stage, Stage::Over),
            "its end was asked for before its End section was read"
        );
        self.buffer.clear();
        let extra = self
            .inner
            .by_ref()
            .take(1)
            .read_to_end(&mut self.buffer)
            .map_err(Error::Io)?;
        ensure!(
            extra == 0,
            "something follows its End section, at byte {}",
            self.position
        );
        Ok(self.inner)
    }

    /// Bytes of the image that were read so far: after [`Record::End`], its size.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Gives the input back, at [`Reader::position`].
    pub fn into_inner(self) -> R {
        self.inner
    }

    /// Reads one section into the buffer and checks all that can be without knowing what it means.
    fn section(&mut self) -> Result<(Kind, usize), Error> {
        let (section, offset) = (self.totals.sections + 1, self.position);
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::UnexpectedEof => Error::Truncated { section, offset },
            _ => Error::Io(error),
        };
        let mut head = [0; SECTION];
        self.inner.read_exact(&mut head).map_err(failed)?;
        let found = u16::from_le_bytes(field(&head, 0));
        let kind = Kind::from_number(found).ok_or(Error::UnknownKind { section, offset, found })?;
        let (found, known) = (u16::from_le_bytes(field(&head, 2)), kind.version());
        if found != known {
            return Err(Error::OtherSectionVersion {
                section,
                kind,
                found,
                known,
            });
        }
        let (length, cap) = (u64::from_le_bytes(field(&head, 8)), kind.cap());
        if length > cap {
            return Err(Error::Oversized {
                section,
                kind,
                length,
                cap,
            });
        }
        let length = length as usize;
        // The buffer grows with what has arrived, not with what was announced, and never shrinks for a shorter body:
        // it is zeroed once and then only overwritten.
        let mut filled = 0;
        while filled < length {
            let end = length.min(filled + STEP);
            if self.buffer.len() < end {
                self.buffer.resize(end, 0);
            }
            self.inner.read_exact(&mut self.buffer[filled..end]).map_err(failed)?;
            filled = end;
        }
        if checksum(&head[..4], &head[8..], [&self.buffer[..length], &[]]) != u32::from_le_bytes(field(&head, 4)) {
            return Err(Error::Corrupt { section, kind, offset });
        }
        self.position += (SECTION + length) as u64;
        Ok((kind, length))
    }
}
