//! The protocol: who says what, in which phase. This is its only specification.
//!
//! Two parties. The **origin** is the supervisor of a job, on the host where the job was started; the **host** is a
//! session of the daemon at the destination. The origin always dials, and one connection carries one job, so that
//! nothing needs a job number. All messages travel in [frames](crate::frame) through an encrypted, mutually
//! authenticated [channel](crate::channel); the number of a message is the kind of its frame.
//!
//! ```text
//!      origin                                                       host
//!        │                                                           │
//!        │  ════════════════ TLS, keys pinned both ways ═══════════  │
//!        │  ◄──────────────────────────────────────────────  Welcome │  your key is trusted (said by the channel)
//!        │  Hello{Move|Store|Query} ─────────────────────────────►   │
//!        │  ◄──────────────────────────────────────────────── Hello  │  same purpose, its own names
//!        │                                                           │
//!  OFFER │  Offer ───────────────────────────────────────────────►   │  what the job is and needs
//!        │  ◄──────────────────────────────────── Accept or Refuse   │  after Refuse, or Accept of a dry run: Bye
//!        │                                                           │
//!  IMAGE │  ImageData… ImageEnd ─────────────────────────────────►   │
//!        │  ◄──────────────────────────────────────────── Prepared   │  Move: the guest is built and stopped
//!        │  ◄────────────────────────────────────────────── Stored   │  Store: it is on disk; then Bye
//!        │  ◄────────────────────────────────────────────── Failed   │  either: nothing is left here; then Bye
//!        │                                                           │
//!        │      before this line any failure, on either side or of the connection, leaves the job at its origin
//! COMMIT │  Commit ──────────────────────────────────────────────►   │  from here on only the guest may run
//!        │  ◄───────────────────────────────────────────── Running   │
//!        │                                                           │
//!  AWAY  │  ◄────────────────────────────────── Call, Cancel{call}   │  a system call to be made at the origin
//!        │  Reply ───────────────────────────────────────────────►   │  exactly one for each Call, in any order
//!        │  Memory ◄──────────────────────────────────────► Memory   │  what has changed in memory shared with files
//!        │  Signal, Kill ────────────────────────────────────────►   │  a deputy was sent a signal; end the whole job
//!        │  DeputyStopped ───────────────────────────────────────►   │  a deputy was stopped: stop its process
//!        │  ◄───────────────────────── GuestStopped, GuestContinued  │  the job control of a process, for its deputy
//!        │  ◄─────────────────────────────────────────────── GoHome  │  please recall: this cannot be done away
//!        │  ◄─────────────────────────────────────────────── Exited  │  a process has ended; after the last one Bye
//!        │                                                           │
//!  HOME  │  Recall ──────────────────────────────────────────────►   │  freeze the guest and send it
//!        │  ◄───────────────────────────────── ImageData… ImageEnd   │  (or Exited, if all ended first; or Failed: it
//!        │                                                           │   goes on running there)
//!        │      before this line any failure leaves the job at the host
//!        │  Release ─────────────────────────────────────────────►   │  it runs at home: end the guest; then Bye
//!        │  Resume ──────────────────────────────────────────────►   │  it could not be restored: go on, back to AWAY
//!        │                                                           │
//! QUERY │  Examine ─────────────────────────────────────────────►   │  any number of times; then Bye
//!        │  ◄────────────────────────────────────────────── Examined │
//!        │                                                           │
//!        │  Ping ◄────────────────────────────────────────► Pong     │  at any time, both ways: the token comes back
//!        │  Bye  ◄────────────────────────────────────────► Bye      │  nothing more will be said by the speaker
//! ```
//!
//! Rules that the picture does not show:
//! - A message that does not belong to the phase is a protocol error: the receiver closes the connection. Messages that
//!   cross on the wire are not: `Call`, `Cancel`, `Memory`, `GuestStopped`, `GuestContinued`, `GoHome` and `Exited` may still
//!   arrive after `Recall` was sent, and `Signal`, `Kill`, `DeputyStopped` and `Reply` after `Exited` was sent.
//! - If the connection breaks before `Commit` arrives, the host ends the guest it has built. If it breaks between `Commit`
//!   and `Running`, the origin lets its own copy go on: everything that a guest does outside of its memory is a `Call` on
//!   this connection, none has been made, and none can be any more. A host that loses the connection ends its guest.
//! - After `Recall` the guest stays frozen until the host hears `Release` or `Resume`. The origin says `Release` before the
//!   first instruction at home.
//! - Who hears `Bye` answers it, and who has said and heard it closes the connection. Until then it reads on, because
//!   closing with something unread resets the connection and may take with it what the other has not read yet.
//! - A job is one or more processes of one or more threads. Processes and threads are named by their numbers in the
//!   job's own PID namespace. `Call`, `Signal`, `DeputyStopped`, `GuestStopped`, `GuestContinued` and `Exited` are about
//!   one process; all else is about the whole job. A process that has ended is in no later image. A `Signal` or
//!   `DeputyStopped` for a process or thread that has ended crosses with its end, and is passed over.
//! - Calls of different threads are under way at the same time; a thread makes one at a time. Signals and replies for one
//!   process arrive in the order in which they happened at the origin.
//! - Memory that is shared with files of the origin is kept in step: both sides tell what they find changed, at the latest
//!   before the next `Call`, `Reply`, `Signal`, `GuestStopped`, `Exited` or `ImageData` of theirs. The origin says what comes first: of bytes
//!   that both have changed, the host drops what was said before its own had been taken.
//! - A process whose deputy was killed at the origin is sent that as a `Signal`: `SIGKILL`.
//! - Every `Call` is answered by exactly one `Reply`, even a cancelled one; a `Cancel` for a call that has been
//!   answered is ignored. Ids of calls are never reused in a connection and 0 is invalid.
//! - `ImageData` is a bulk kind: raw bytes of an image stream, cut anywhere; `ImageEnd` says how many there were.
//! - Numbers are explicit, never reused, and 0 is invalid. Payloads are bincode without schema evolution: a change of
//!   one is a new number or a new [`PROTOCOL`]. `Hello` is the same in all versions. Peers of different versions say
//!   `Bye` after it.
//! - Every payload is checked when it is decoded (and, to find our own mistakes early, when it is encoded): lengths
//!   of texts and lists, ranges of signals and statuses. What a peer says is never used before that.

use std::fmt;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    call::{Call, Reply},
    frame::{self, BULK, FrameError},
};

/// Version of this protocol, as said in [`Hello`].
pub const PROTOCOL: u32 = 3;
/// Longest name, id, version or kernel release, in bytes.
pub const NAME_MAX: usize = 256;
/// Longest reason, in bytes. Longer ones are to be [`clip`]ped.
pub const REASON_MAX: usize = 4096;
/// Longest command line, in bytes.
pub const COMMAND_MAX: usize = 64 << 10;
/// Most CPU flags in an [`Offer`].
pub const FLAGS_MAX: usize = 4096;

/// What is wrong with a message.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// This number is not that of any message.
    #[error("there is no message number {0:#x}")]
    Unknown(u16),
    /// A value is out of its range.
    #[error("a message {message} is invalid: {what}")]
    Invalid {
        /// Name of the message.
        message: &'static str,
        /// What is wrong with it.
        what: String,
    },
    /// The payload is too large to be sent, or is not what its number says.
    #[error("a message {message} is damaged: {source}")]
    Damaged {
        /// Name of the message.
        message: &'static str,
        /// What the codec says.
        source: FrameError,
    },
}

/// What the payload of a message must satisfy beyond its shape.
trait Payload: Serialize + DeserializeOwned {
    /// What is wrong with it, as part of a sentence.
    fn check(&self) -> Result<(), String>;
}

fn short(what: &str, text: &str, most: usize) -> Result<(), String> {
    match text.len() {
        length if length > most => Err(format!("its {what} has {length} bytes, the most is {most}")),
        _ if text.contains('\0') => Err(format!("its {what} has a NUL byte in it")),
        _ => Ok(()),
    }
}

fn pid(number: i32) -> Result<(), String> {
    if number > 0 {
        Ok(())
    } else {
        Err(format!("{number} is not a PID"))
    }
}

fn signal(number: i32) -> Result<(), String> {
    if (1..=64).contains(&number) {
        Ok(())
    } else {
        Err(format!("{number} is not a signal"))
    }
}

/// The front of `reason` that is no longer than [`REASON_MAX`].
pub fn clip(mut reason: String) -> String {
    let end = (0..=REASON_MAX.min(reason.len()))
        .rev()
        .find(|&end| reason.is_char_boundary(end));
    reason.truncate(end.unwrap_or(0));
    reason
}

/// Defines [`Message`] from one table of numbers, names and payloads.
macro_rules! messages {
    ($($(#[$doc:meta])* $number:literal $name:ident $(($payload:ty))?,)*) => {
        /// Everything that is said, except bulk. The number of each is in [`Message::NUMBERS`].
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum Message {
            $($(#[$doc])* $name $(($payload))?,)*
        }

        impl Message {
            /// The number and the name of every message.
            pub const NUMBERS: &[(u16, &str)] = &[$(($number, stringify!($name)),)*];

            /// Its number: the kind of its frame.
            pub fn number(&self) -> u16 {
                match self {
                    $(Message::$name { .. } => $number,)*
                }
            }

            /// Its name, for people.
            pub fn name(&self) -> &'static str {
                match self {
                    $(Message::$name { .. } => stringify!($name),)*
                }
            }

            /// Appends the body of its frame to `out`.
            ///
            /// Errors: [`MessageError::Invalid`], [`MessageError::Damaged`] if it is too large; `out` is then as it
            /// was.
            pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), MessageError> {
                match self {
                    $(messages!(@pattern $name payload $(($payload))?) => {
                        messages!(@encode $name payload out $(($payload))?)
                    })*
                }
            }

            /// The message of this number from all of the `body` of its frame.
            pub fn decode(number: u16, body: &[u8]) -> Result<Message, MessageError> {
                match number {
                    $($number => messages!(@decode $name body $(($payload))?),)*
                    other => Err(MessageError::Unknown(other)),
                }
            }
        }
    };
    // Messages without a payload have an empty body.
    (@pattern $name:ident $payload:ident) => { Message::$name };
    (@pattern $name:ident $payload:ident ($type:ty)) => { Message::$name($payload) };
    (@encode $name:ident $payload:ident $out:ident) => { Ok(()) };
    (@encode $name:ident $payload:ident $out:ident ($type:ty)) => { encode(stringify!($name), $payload, $out) };
    (@decode $name:ident $body:ident) => { decode::<Empty>(stringify!($name), $body).map(|Empty| Message::$name) };
    (@decode $name:ident $body:ident ($type:ty)) => { decode(stringify!($name), $body).map(Message::$name) };
}

fn encode(message: &'static str, payload: &impl Payload, out: &mut Vec<u8>) -> Result<(), MessageError> {
    payload
        .check()
        .map_err(|what| MessageError::Invalid { message, what })?;
    frame::encode_payload(payload, out).map_err(|source| MessageError::Damaged { message, source })
}

fn decode<T: Payload>(message: &'static str, body: &[u8]) -> Result<T, MessageError> {
    let payload: T = frame::decode_payload(body).map_err(|source| MessageError::Damaged { message, source })?;
    payload
        .check()
        .map_err(|what| MessageError::Invalid { message, what })?;
    Ok(payload)
}

/// What a message without a payload carries.
#[derive(Serialize, Deserialize)]
struct Empty;

messages! {
    /// host → origin: the host trusts the key that it was shown. The channel says and hears it; nobody else sees it.
    1 Welcome,
    /// Both ways: who I am and what this connection is for.
    2 Hello(Hello),
    /// origin → host: what the job is and needs.
    3 Offer(Offer),
    /// host → origin: send it (or, for a dry run: you could send it).
    4 Accept,
    /// host → origin: do not send it.
    5 Refuse(Refuse),
    /// After the last `ImageData`.
    6 ImageEnd(ImageEnd),
    /// host → origin: the guest is built and stopped before its first instruction.
    7 Prepared,
    /// host → origin: what was asked for could not be done, and nothing has changed here.
    8 Failed(Reason),
    /// origin → host: the guest is the job now; run it.
    9 Commit,
    /// host → origin: it runs.
    10 Running(Running),
    /// host → origin: the image is on disk.
    11 Stored(Stored),
    /// host → origin: make this system call.
    12 Call(Call),
    /// origin → host: what came of it.
    13 Reply(Reply),
    /// host → origin: interrupt this call.
    14 Cancel(Cancel),
    /// origin → host: a deputy was sent this signal.
    15 Signal(Signal),
    /// host → origin: a process was stopped by this signal.
    16 GuestStopped(Stopped),
    /// host → origin: a process goes on after a stop.
    17 GuestContinued(Continued),
    /// origin → host: a deputy was stopped by this signal.
    18 DeputyStopped(Stopped),
    /// host → origin: a process has ended.
    19 Exited(Exited),
    /// origin → host: freeze the guest and send it home.
    20 Recall,
    /// host → origin: please recall it, because of this.
    21 GoHome(Reason),
    /// origin → host: it is restored at home; end the frozen guest.
    22 Release,
    /// origin → host: it could not be restored; let the frozen guest go on.
    23 Resume(Reason),
    /// origin → host: the job was killed; end the guest.
    24 Kill,
    /// Both ways: are you there?
    25 Ping(Token),
    /// Both ways: the answer.
    26 Pong(Token),
    /// Both ways: nothing more will be said.
    27 Bye,
    /// Both ways: what has changed in memory that is shared with files of the origin.
    30 Memory(Changes),
    /// origin → host, of a Query: try what this host can do.
    40 Examine,
    /// host → origin: what came of it.
    41 Examined(Examination),
}

/// Kinds of bulk frame: bodies of raw bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum BulkKind {
    /// Bytes of an image stream, cut anywhere.
    ImageData = BULK | 1,
}

impl BulkKind {
    /// Its number: the kind of its frame.
    pub fn number(self) -> u16 {
        self as u16
    }

    /// The kind of this number, if there is one.
    pub fn from_number(number: u16) -> Option<BulkKind> {
        (number == BulkKind::ImageData.number()).then_some(BulkKind::ImageData)
    }
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Purpose {
    /// To move a running job.
    Move,
    /// To store an image.
    Store,
    /// To ask whether a job could be moved, or who is there.
    Query,
}

/// The first thing that each says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`PROTOCOL`] of the speaker.
    pub protocol: u32,
    /// Program and version of the speaker, for people.
    pub software: String,
    /// Host name of the speaker, for people.
    pub host: String,
    /// What the origin wants; the host repeats it.
    pub purpose: Purpose,
}

impl Payload for Hello {
    fn check(&self) -> Result<(), String> {
        short("software", &self.software, NAME_MAX)?;
        short("host", &self.host, NAME_MAX)
    }
}

/// What a job is and needs, for the host to judge before any of it is sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// Its id at its origin.
    pub job: String,
    /// Its name there.
    pub name: Option<String>,
    /// Its command line, for people.
    pub command: String,
    /// Number of processes.
    pub processes: u32,
    /// Number of threads of all processes.
    pub threads: u32,
    /// Memory in use, in bytes.
    pub memory: u64,
    /// The CPU features it may have chosen to use, as named in /proc/cpuinfo.
    pub cpu_flags: Vec<String>,
    /// Release of the kernel it runs on (`uname -r`).
    pub kernel: String,
    /// Machine it runs on (`uname -m`).
    pub architecture: String,
    /// PID of its first process at its origin, which the guest will have too.
    pub pid: i32,
    /// Only judge.
    pub dry_run: bool,
}

impl Payload for Offer {
    fn check(&self) -> Result<(), String> {
        short("job", &self.job, NAME_MAX)?;
        short("name", self.name.as_deref().unwrap_or_default(), NAME_MAX)?;
        short("command", &self.command, COMMAND_MAX)?;
        short("kernel", &self.kernel, NAME_MAX)?;
        short("architecture", &self.architecture, NAME_MAX)?;
        if self.cpu_flags.len() > FLAGS_MAX {
            return Err(format!(
                "it has {} CPU flags, the most is {FLAGS_MAX}",
                self.cpu_flags.len()
            ));
        }
        self.cpu_flags
            .iter()
            .try_for_each(|flag| short("CPU flag", flag, NAME_MAX))?;
        match self {
            Offer { pid: ..=0, .. } => Err(format!("{} is not a PID", self.pid)),
            Offer { processes: 0, .. } | Offer { threads: 0, .. } => Err("it has no process or no thread".into()),
            _ => Ok(()),
        }
    }
}

/// Why an offer is refused, for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RefuseCode {
    /// The job needs what this machine or kernel does not have.
    Incompatible,
    /// Not now; later perhaps.
    Busy,
    /// This version cannot do it.
    Unsupported,
    /// No room in memory or on disk.
    Full,
    /// The configuration forbids it.
    Denied,
}

/// An offer is refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refuse {
    /// For programs.
    pub code: RefuseCode,
    /// A sentence for people.
    pub reason: String,
}

impl Payload for Refuse {
    fn check(&self) -> Result<(), String> {
        short("reason", &self.reason, REASON_MAX)
    }
}

/// The image is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageEnd {
    /// Sum of the lengths of all `ImageData` since the last `ImageEnd`.
    pub bytes: u64,
}

/// Why something failed, is asked for or is given up: a sentence for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// At most [`REASON_MAX`] bytes; see [`clip`].
    pub reason: String,
}

impl Payload for Reason {
    fn check(&self) -> Result<(), String> {
        short("reason", &self.reason, REASON_MAX)
    }
}

/// The guest runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// Time that the host spent between `ImageEnd` and the first instruction, waiting for `Commit` included, in
    /// nanoseconds of its monotonic clock. A duration, because the clocks of two hosts cannot be compared.
    pub elapsed_ns: u64,
}

/// The image is on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// What it is called there.
    pub id: String,
}

impl Payload for Stored {
    fn check(&self) -> Result<(), String> {
        short("id", &self.id, NAME_MAX)
    }
}

/// Interrupt a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cancel {
    /// The id of the [`Call`].
    pub call: u64,
}

/// Size of the kernel's `siginfo_t` in bytes (include/uapi/asm-generic/siginfo.h, `SI_MAX_SIZE`).
pub const SIGINFO: usize = 128;

/// A signal that a deputy was sent.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signal {
    /// PID of the process.
    pub process: i32,
    /// TID of the one thread that it is for; 0: the process as a whole.
    pub thread: i32,
    /// The kernel's `siginfo_t`, [`SIGINFO`] bytes.
    #[serde(with = "serde_bytes")]
    info: Vec<u8>,
}

impl Signal {
    /// From a `siginfo_t`, whose first field is the signal's number.
    pub fn new(process: i32, thread: i32, info: [u8; SIGINFO]) -> Signal {
        Signal {
            process,
            thread,
            info: info.into(),
        }
    }

    /// `SIGKILL` for a process, from the kernel.
    pub fn kill(process: i32) -> Signal {
        let mut info = [0; SIGINFO];
        info[..4].copy_from_slice(&9_i32.to_le_bytes());
        Signal::new(process, 0, info)
    }

    /// The `siginfo_t`. All zero for a value that never was a valid message.
    pub fn info(&self) -> [u8; SIGINFO] {
        self.info.as_slice().try_into().unwrap_or([0; SIGINFO])
    }

    /// `si_signo`: the signal's number.
    pub fn number(&self) -> i32 {
        let [b0, b1, b2, b3, ..] = self.info();
        i32::from_le_bytes([b0, b1, b2, b3])
    }
}

impl fmt::Debug for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signal")
            .field("process", &self.process)
            .field("thread", &self.thread)
            .field("number", &self.number())
            .finish_non_exhaustive()
    }
}

impl Payload for Signal {
    fn check(&self) -> Result<(), String> {
        if self.info.len() != SIGINFO {
            return Err(format!(
                "its siginfo has {} bytes instead of {SIGINFO}",
                self.info.len()
            ));
        }
        pid(self.process)?;
        if self.thread < 0 {
            return Err(format!("{} is not a thread", self.thread));
        }
        signal(self.number())
    }
}

/// A process was stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stopped {
    /// Its PID.
    pub process: i32,
    /// The number of the signal that did it.
    pub signal: i32,
}

impl Payload for Stopped {
    fn check(&self) -> Result<(), String> {
        pid(self.process)?;
        signal(self.signal)
    }
}

/// A process goes on after a stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Continued {
    /// Its PID.
    pub process: i32,
}

impl Payload for Continued {
    fn check(&self) -> Result<(), String> {
        pid(self.process)
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitStatus {
    /// It called exit: 0 to 255.
    Code(i32),
    /// A signal ended it.
    Signal {
        /// Which one.
        number: i32,
        /// With a core dump.
        core: bool,
    },
}

/// A process has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exited {
    /// Its PID.
    pub process: i32,
    /// How.
    pub status: ExitStatus,
    /// CPU time at this host in user mode, in microseconds.
    pub user_us: u64,
    /// CPU time at this host in the kernel, in microseconds.
    pub system_us: u64,
}

impl Payload for Exited {
    fn check(&self) -> Result<(), String> {
        pid(self.process)?;
        match self.status {
            ExitStatus::Code(0..=255) => Ok(()),
            ExitStatus::Code(code) => Err(format!("{code} is not an exit status")),
            ExitStatus::Signal { number, .. } => signal(number),
        }
    }
}

/// Most runs and extents in one [`Changes`].
pub const RUNS_MAX: usize = 64 << 10;
/// Most bytes that all runs of one have.
pub const CHANGED_MAX: usize = 1 << 20;

/// What has changed in the objects of the job's image that are kept in step with files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    /// How many of the other side's had been taken when this was found.
    pub seen: u64,
    /// Comes before the runs.
    pub extents: Vec<Extent>,
    /// To be made in this order.
    pub runs: Vec<Run>,
}

/// How much there is of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// Index in the image's shared memory.
    pub object: u32,
    /// In bytes. From the origin: what can be had of it; from the host: what it wants of it at most.
    pub size: u64,
}

/// Bytes of an object that are new.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Index in the image's shared memory.
    pub object: u32,
    /// Where they are in it.
    pub offset: u64,
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
}

impl Payload for Changes {
    fn check(&self) -> Result<(), String> {
        if self.runs.len() + self.extents.len() > RUNS_MAX {
            return Err(format!("it has more than {RUNS_MAX} runs and extents"));
        }
        let bytes = self.runs.iter().map(|run| run.bytes.len()).sum::<usize>();
        if bytes > CHANGED_MAX {
            return Err(format!("its runs have {bytes} bytes, the most is {CHANGED_MAX}"));
        }
        let ends = |run: &Run| run.offset.checked_add(run.bytes.len() as u64).is_some();
        if !self.runs.iter().all(ends) {
            return Err("a run goes beyond every file".into());
        }
        Ok(())
    }
}

/// Most findings in an [`Examination`].
pub const FINDINGS_MAX: usize = 256;

/// Whether a host can do something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Grade {
    Ok,
    /// Something less than all will work.
    Limited,
    /// Something will not work.
    Missing,
}

/// What came of one check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What was checked: a name in snake case, for programs.
    pub check: String,
    pub grade: Grade,
    /// What was found, and what follows from it: a sentence for people.
    pub says: String,
    /// How to change it; empty if nothing needs to be.
    pub advice: String,
}

/// What a host can do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Examination {
    /// The CPU features that it offers, as named in /proc/cpuinfo.
    pub cpu_flags: Vec<String>,
    pub findings: Vec<Finding>,
}

impl Payload for Examination {
    fn check(&self) -> Result<(), String> {
        if self.cpu_flags.len() > FLAGS_MAX || self.findings.len() > FINDINGS_MAX {
            return Err("it has too many CPU flags or findings".into());
        }
        self.cpu_flags
            .iter()
            .try_for_each(|flag| short("CPU flag", flag, NAME_MAX))?;
        self.findings.iter().try_for_each(|finding| {
            short("check", &finding.check, NAME_MAX)?;
            short("finding", &finding.says, REASON_MAX)?;
            short("advice", &finding.advice, REASON_MAX)
        })
    }
}

/// Comes back as it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// Any number.
    pub token: u64,
}

/// Payloads of which every value is valid.
macro_rules! always_valid {
    ($($payload:ty),*) => {
        $(impl Payload for $payload {
            fn check(&self) -> Result<(), String> {
                Ok(())
            }
        })*
    };
}

always_valid!(Empty, ImageEnd, Running, Token);

fn call_id(id: u64) -> Result<(), String> {
    if id == 0 {
        Err("a call has the id 0".into())
    } else {
        Ok(())
    }
}

impl Payload for Cancel {
    fn check(&self) -> Result<(), String> {
        call_id(self.call)
    }
}

impl Payload for Call {
    fn check(&self) -> Result<(), String> {
        call_id(self.id)?;
        self.validate().map_err(|error| error.to_string())
    }
}

/// Whether it fits its call is for the one to say who knows the call.
impl Payload for Reply {
    fn check(&self) -> Result<(), String> {
        call_id(self.id)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::call::Argument;

    fn stopped(signal: i32) -> Stopped {
        let process = 4711;
        Stopped { process, signal }
    }

    /// One of each, in the order of their numbers.
    fn samples() -> Vec<Message> {
        let reason = || Reason {
            reason: "it holds /dev/nvidia0".into(),
        };
        let offer = Offer {
            job: "k3f9".into(),
            name: Some("sum".into()),
            command: "./sum --all".into(),
            processes: 1,
            threads: 1,
            memory: 1 << 30,
            cpu_flags: vec!["sse2".into(), "avx2".into()],
            kernel: "6.18.0".into(),
            architecture: "x86_64".into(),
            pid: 4711,
            dry_run: false,
        };
        let hello = Hello {
            protocol: PROTOCOL,
            software: "vrun 0.1".into(),
            host: "a".into(),
            purpose: Purpose::Move,
        };
        let arguments = [Argument::Value(0); 6];
        let call = Call {
            id: 1,
            process: 4711,
            thread: 4712,
            number: 39,
            arguments,
            segments: vec![],
            pointers: vec![],
            unstoppable: false,
        };
        let status = ExitStatus::Signal { number: 11, core: true };
        let mut info = [0; SIGINFO];
        info[0] = 15;
        vec![
            Message::Welcome,
            Message::Hello(hello),
            Message::Offer(offer),
            Message::Accept,
            Message::Refuse(Refuse {
                code: RefuseCode::Busy,
                reason: "it is full".into(),
            }),
            Message::ImageEnd(ImageEnd { bytes: 1 << 40 }),
            Message::Prepared,
            Message::Failed(reason()),
            Message::Commit,
            Message::Running(Running { elapsed_ns: 17_000_000 }),
            Message::Stored(Stored { id: "s1".into() }),
            Message::Call(call),
            Message::Reply(Reply {
                id: 1,
                result: 4711,
                outputs: vec![],
            }),
            Message::Cancel(Cancel { call: 1 }),
            Message::Signal(Signal::new(4711, 0, info)),
            Message::GuestStopped(stopped(19)),
            Message::GuestContinued(Continued { process: 4711 }),
            Message::DeputyStopped(stopped(20)),
            Message::Exited(Exited {
                process: 4711,
                status,
                user_us: 1,
                system_us: 2,
            }),
            Message::Recall,
            Message::GoHome(reason()),
            Message::Release,
            Message::Resume(reason()),
            Message::Kill,
            Message::Ping(Token { token: u64::MAX }),
            Message::Pong(Token { token: 0 }),
            Message::Bye,
            Message::Memory(Changes {
                seen: 1,
                extents: vec![Extent { object: 3, size: 8192 }],
                runs: vec![Run {
                    object: 3,
                    offset: 4097,
                    bytes: b"new".to_vec(),
                }],
            }),
            Message::Examine,
            Message::Examined(Examination {
                cpu_flags: vec!["sse2".into()],
                findings: vec![Finding {
                    check: "user_namespaces".into(),
                    grade: Grade::Missing,
                    says: "none may be made".into(),
                    advice: "set user.max_user_namespaces".into(),
                }],
            }),
        ]
    }

    fn encoded(message: &Message) -> Vec<u8> {
        let mut bytes = Vec::new();
        message.encode(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn the_numbers_are_the_ones_of_protocol_3() {
        let expected = [
            (1, "Welcome"),
            (2, "Hello"),
            (3, "Offer"),
            (4, "Accept"),
            (5, "Refuse"),
            (6, "ImageEnd"),
            (7, "Prepared"),
            (8, "Failed"),
            (9, "Commit"),
            (10, "Running"),
            (11, "Stored"),
            (12, "Call"),
            (13, "Reply"),
            (14, "Cancel"),
            (15, "Signal"),
            (16, "GuestStopped"),
            (17, "GuestContinued"),
            (18, "DeputyStopped"),
            (19, "Exited"),
            (20, "Recall"),
            (21, "GoHome"),
            (22, "Release"),
            (23, "Resume"),
            (24, "Kill"),
            (25, "Ping"),
            (26, "Pong"),
            (27, "Bye"),
            (30, "Memory"),
            (40, "Examine"),
            (41, "Examined"),
        ];
        assert_eq!(Message::NUMBERS, expected);
        assert!(Message::NUMBERS.iter().all(|(number, _)| (1..BULK).contains(number)));
        assert_eq!(BulkKind::ImageData.number(), 0x8001);
        assert_eq!(BulkKind::from_number(0x8001), Some(BulkKind::ImageData));
        assert_eq!(BulkKind::from_number(0x8002), None);
    }

    #[test]
    fn every_message_comes_back_as_it_was() {
        let samples = samples();
        assert!(
            samples
                .iter()
                .map(|m| (m.number(), m.name()))
                .eq(Message::NUMBERS.iter().copied())
        );
        for message in samples {
            let mut bytes = encoded(&message);
            assert_eq!(Message::decode(message.number(), &bytes).unwrap(), message);
            bytes.push(0);
            assert!(
                Message::decode(message.number(), &bytes).is_err(),
                "{message:?} with a trailing byte"
            );
        }
        assert!(matches!(Message::decode(0, &[]), Err(MessageError::Unknown(0))));
        assert!(matches!(Message::decode(28, &[]), Err(MessageError::Unknown(28))));
    }

    #[test]
    fn the_bytes_are_those_of_protocol_3() {
        assert_eq!(encoded(&Message::Bye), b"");
        assert_eq!(
            encoded(&Message::Ping(Token { token: 0x0102 })),
            [2, 1, 0, 0, 0, 0, 0, 0]
        );
        let refuse = Message::Refuse(Refuse {
            code: RefuseCode::Denied,
            reason: "no".into(),
        });
        assert_eq!(encoded(&refuse), b"\x04\0\0\0\x02\0\0\0\0\0\0\0no");
        assert_eq!(encoded(&samples()[14]).len(), 4 + 4 + 8 + SIGINFO);
    }

    #[test]
    fn what_is_out_of_range_is_neither_sent_nor_taken() {
        fn wrong<T: Payload>(number: u16, payload: T, message: impl Fn(T) -> Message) {
            let mut bytes = Vec::new();
            frame::encode_payload(&payload, &mut bytes).unwrap();
            let decoded = Message::decode(number, &bytes);
            assert!(matches!(decoded, Err(MessageError::Invalid { .. })), "{decoded:?}");
            let mut out = b"x".to_vec();
            assert!(matches!(
                message(payload).encode(&mut out),
                Err(MessageError::Invalid { .. })
            ));
            assert_eq!(out, b"x");
        }
        wrong(16, stopped(0), Message::GuestStopped);
        wrong(16, stopped(65), Message::GuestStopped);
        wrong(16, Stopped { process: 0, signal: 19 }, Message::GuestStopped);
        wrong(17, Continued { process: -1 }, Message::GuestContinued);
        let (process, thread) = (1, 0);
        let info = vec![1; 127];
        wrong(15, Signal { process, thread, info }, Message::Signal);
        wrong(15, Signal::new(1, 0, [0; SIGINFO]), Message::Signal);
        for (process, thread) in [(0, 0), (1, -1)] {
            let kill = Signal::kill(1);
            wrong(
                15,
                Signal {
                    process,
                    thread,
                    ..kill
                },
                Message::Signal,
            );
        }
        wrong(14, Cancel { call: 0 }, Message::Cancel);
        let run = |offset, bytes| Run {
            object: 0,
            offset,
            bytes,
        };
        for runs in [
            vec![run(0, vec![]); RUNS_MAX + 1],
            vec![run(0, vec![0; CHANGED_MAX / 2 + 1]); 2],
            vec![run(u64::MAX, vec![0])],
        ] {
            let changes = Changes {
                runs,
                ..Changes::default()
            };
            wrong(30, changes, Message::Memory);
        }
        wrong(
            11,
            Stored {
                id: "x".repeat(NAME_MAX + 1),
            },
            Message::Stored,
        );
        wrong(11, Stored { id: "a\0b".into() }, Message::Stored);
        wrong(
            8,
            Reason {
                reason: "x".repeat(REASON_MAX + 1),
            },
            Message::Failed,
        );
        for status in [
            ExitStatus::Code(256),
            ExitStatus::Code(-1),
            ExitStatus::Signal { number: 0, core: false },
        ] {
            wrong(
                19,
                Exited {
                    process: 1,
                    status,
                    user_us: 0,
                    system_us: 0,
                },
                Message::Exited,
            );
        }
        let Message::Offer(offer) = &samples()[2] else {
            panic!("the third sample is an offer")
        };
        for change in [
            (|offer| offer.pid = 0) as fn(&mut Offer),
            |offer| offer.processes = 0,
            |offer| offer.cpu_flags = vec!["x".into(); FLAGS_MAX + 1],
            |offer| offer.command = "x".repeat(COMMAND_MAX + 1),
        ] {
            let mut offer = offer.clone();
            change(&mut offer);
            wrong(3, offer, Message::Offer);
        }
    }

    #[test]
    fn reasons_are_clipped_between_characters() {
        assert_eq!(clip("short".into()), "short");
        let long = clip("ä".repeat(REASON_MAX));
        assert_eq!(long.len(), REASON_MAX);
        assert_eq!(clip(format!("x{}", "ä".repeat(REASON_MAX))).len(), REASON_MAX - 1);
    }

    proptest! {
        #[test]
        fn random_bodies_never_panic(number in 0u16..32, body in prop::collection::vec(any::<u8>(), 0..256)) {
            let _ = Message::decode(number, &body);
        }

        #[test]
        fn damaged_messages_never_panic(index in 0usize..27, at: prop::sample::Index, byte: u8) {
            let message = &samples()[index];
            let mut bytes = encoded(message);
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            let _ = Message::decode(message.number(), &bytes);
        }
    }
}
