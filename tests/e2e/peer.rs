//! A host that does not behave: the real protocol, spoken wrongly. It is this test executable, started inside a host.
//!
//! ```text
//!   peer destination ADDRESS ACT…   serves a connection for each act, in order, as a daemon that is broken in that way
//!   peer origin PEER IMAGE ACT      sends a saved image to the daemon of PEER, as a supervisor that is broken in that way
//! ```
//!
//! It prints a line for each thing that a test waits for or compares.

use std::io::Cursor;
use std::net::TcpListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use vrun_image::state::{Area, AreaKind, Job};
use vrun_image::{Reader, Record, Writer};
use vrun_remote_io::call::{Argument, Call, Keep, Reply, Segment};
use vrun_remote_io::channel::{self, Frame, Receiver, Sender};
use vrun_remote_io::keys::{Identity, TrustStore};
use vrun_remote_io::message::{
    BulkKind, Cancel, Hello, ImageEnd, Message, Offer, PROTOCOL, Purpose, Reason, Refuse, RefuseCode, Running, Token,
};

/// The first argument that makes this executable a peer.
const PEER: &str = "--peer";
/// Longer than any wait of a test, shorter than for ever.
const PATIENCE: Duration = Duration::from_secs(40);
/// Bytes of a frame of image data.
const FRAME: usize = 1 << 20;

/// To be called first in `main`: becomes a peer if this process was started as one.
pub(crate) fn become_peer_if_asked() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        [PEER, "destination", address, acts @ ..] => destination(address, acts),
        [PEER, "origin", peer, image, act] => origin(peer, image, act),
        _ => return,
    };
    if let Err(error) = &result {
        eprintln!("peer: {error:#}");
    }
    std::process::exit(i32::from(result.is_err()));
}

fn home() -> Result<PathBuf> {
    Ok(std::env::var_os("VRUN_HOME").context("VRUN_HOME")?.into())
}

fn hello(purpose: Purpose, protocol: u32) -> Message {
    let (software, host) = ("a test".to_owned(), "peer".to_owned());
    Message::Hello(Hello {
        protocol,
        software,
        host,
        purpose,
    })
}

/// One connection, with what is said on it.
struct Line {
    sender: Sender,
    receiver: Receiver,
}

impl Line {
    /// The next message that is not about a signal.
    fn hear(&mut self) -> Result<Message> {
        loop {
            match self.receiver.recv_deadline(Instant::now() + PATIENCE)? {
                Frame::Message(Message::Signal(_) | Message::DeputyStopped(_)) => {}
                Frame::Message(message) => return Ok(message),
                Frame::Bulk { .. } => bail!("image data instead of a message"),
            }
        }
    }

    fn say(&self, message: Message) -> Result<()> {
        Ok(self.sender.send(&message)?)
    }

    /// Reads until the other end has closed, and says nothing.
    fn endure(&mut self) {
        let until = Instant::now() + PATIENCE;
        while self.receiver.recv_deadline(until).is_ok() {}
    }

    /// The next image, all of it.
    fn image(&mut self) -> Result<Vec<u8>> {
        let mut image = Vec::new();
        loop {
            match self.receiver.recv_deadline(Instant::now() + PATIENCE)? {
                Frame::Bulk { bytes, .. } => image.extend_from_slice(bytes),
                Frame::Message(Message::ImageEnd(end)) if end.bytes == image.len() as u64 => return Ok(image),
                Frame::Message(other) => bail!("{} in an image", other.name()),
            }
        }
    }

    fn data(&self, bytes: &[u8]) -> Result<()> {
        for chunk in bytes.chunks(FRAME) {
            self.sender.send_bulk(BulkKind::ImageData, chunk)?;
        }
        Ok(())
    }

    fn send_image(&self, bytes: &[u8]) -> Result<()> {
        self.data(bytes)?;
        let bytes = bytes.len() as u64;
        self.say(Message::ImageEnd(ImageEnd { bytes }))
    }
}

/// A broken daemon.
fn destination(address: &str, acts: &[&str]) -> Result<()> {
    let (identity, trust) = (Identity::open(&home()?)?, TrustStore::load(&home()?)?);
    let listener = TcpListener::bind((address, channel::PORT))?;
    println!("ready");
    for act in acts {
        let (stream, _) = listener.accept()?;
        let (_, sender, receiver) = channel::accept(stream, &identity, &trust, PATIENCE)?;
        let line = Line { sender, receiver };
        // That the other end does not put up with it is the point.
        match play(line, act) {
            Ok(()) => println!("played {act}"),
            Err(error) => println!("played {act}: {error:#}"),
        }
    }
    Ok(())
}

fn play(mut line: Line, act: &str) -> Result<()> {
    if act == "mute" {
        line.endure();
        return Ok(());
    }
    let Message::Hello(Hello { purpose, .. }) = line.hear()? else {
        bail!("no Hello");
    };
    line.say(hello(purpose, if act == "future" { PROTOCOL + 1 } else { PROTOCOL }))?;
    let reason = || Reason {
        reason: "of a test".to_owned(),
    };
    let Message::Offer(offer) = line.hear()? else {
        bail!("no Offer");
    };
    match act {
        "silent" => line.endure(),
        "close" => {}
        "running" => line.say(Message::Running(Running { elapsed_ns: 1 }))?,
        "data" => line.data(&[7; 5000])?,
        "refuse" => {
            let (code, reason) = (RefuseCode::Busy, "not today".to_owned());
            line.say(Message::Refuse(Refuse { code, reason }))?;
            line.endure();
        }
        _ => {
            line.say(Message::Accept)?;
            return take_in(line, act, &offer, reason);
        }
    }
    Ok(())
}

/// From the acceptance on.
fn take_in(mut line: Line, act: &str, offer: &Offer, reason: impl Fn() -> Reason) -> Result<()> {
    match act {
        "accept-close" => return Ok(()),
        "accept-silent" => {
            line.endure();
            return Ok(());
        }
        "accept-failed" => {
            line.say(Message::Failed(reason()))?;
            line.endure();
            return Ok(());
        }
        "accept-pings" => {
            for number in 0..10_000 {
                line.say(Message::Ping(Token { token: number }))?;
            }
            return Ok(());
        }
        _ => {}
    }
    let image = line.image()?;
    match act {
        "image-close" => return Ok(()),
        "image-silent" => {
            line.endure();
            return Ok(());
        }
        "image-failed" => {
            line.say(Message::Failed(reason()))?;
            line.endure();
            return Ok(());
        }
        "image-running" => return line.say(Message::Running(Running { elapsed_ns: 1 })),
        "image-call" => return line.say(Message::Call(write_call(1, offer.pid, b"FORGED\n"))),
        _ => {}
    }
    line.say(Message::Prepared)?;
    ensure!(line.hear()? == Message::Commit, "no Commit");
    match act {
        "prepared-close" => return Ok(()),
        "prepared-silent" => {
            line.endure();
            return Ok(());
        }
        "prepared-failed" => {
            line.say(Message::Failed(reason()))?;
            line.endure();
            return Ok(());
        }
        "prepared-call" => return line.say(Message::Call(write_call(1, offer.pid, b"FORGED\n"))),
        _ => {}
    }
    line.say(Message::Running(Running { elapsed_ns: 1 }))?;
    println!("away");
    keep(line, act, offer, &image)
}

/// With the job: what a guest's host could do to its origin.
fn keep(mut line: Line, act: &str, offer: &Offer, image: &[u8]) -> Result<()> {
    match act {
        "calls" => forge_calls(&mut line, offer.pid)?,
        "flood" => {
            // A call that does not return (nothing ever comes from that pipe), and ever more behind it.
            for id in 1.. {
                let sent = line.say(Message::Call(read_call(id, offer.pid)));
                if sent.is_err() {
                    return Ok(());
                }
            }
        }
        "cancels" => {
            line.say(Message::Call(read_call(1, offer.pid)))?;
            for _ in 0..5000 {
                line.say(Message::Cancel(Cancel { call: 1 }))?;
            }
            loop {
                if let Message::Reply(Reply { id: 1, result, .. }) = line.hear()? {
                    ensure!(result == -512, "the cancelled call gave {result}");
                    println!("cancelled");
                    break;
                }
            }
        }
        "ended" => {
            let status = vrun_remote_io::message::ExitStatus::Code(7);
            line.say(Message::Exited(vrun_remote_io::message::Exited {
                process: offer.pid,
                status,
                user_us: 0,
                system_us: 0,
            }))?;
            line.endure();
            return Ok(());
        }
        _ => {}
    }
    // Every image but the last is bad; the origin asks again each time that it is told to.
    for bad in bad_homecomings(image)? {
        wait_for(&mut line, &Message::Recall)?;
        println!("recall {}", bad.0);
        (bad.1)(&line, false)?;
        match line.hear()? {
            Message::Resume(Reason { reason }) => println!("resume {}: {reason}", bad.0),
            other => bail!("{} after {}", other.name(), bad.0),
        }
        (bad.1)(&line, true)?;
    }
    wait_for(&mut line, &Message::Recall)?;
    line.send_image(image)?;
    wait_for(&mut line, &Message::Release)?;
    line.say(Message::Bye)?;
    line.endure();
    Ok(())
}

fn wait_for(line: &mut Line, wanted: &Message) -> Result<()> {
    let heard = line.hear()?;
    ensure!(heard == *wanted, "{} instead of {}", heard.name(), wanted.name());
    Ok(())
}

fn call(id: u64, process: i32, number: i64, arguments: [Argument; 3], segments: Vec<Segment>) -> Call {
    let zero = Argument::Value(0);
    let [first, second, third] = arguments;
    Call {
        id,
        process,
        thread: process,
        number: number as u32,
        arguments: [first, second, third, zero, zero, zero],
        segments,
        pointers: Vec::new(),
        unstoppable: false,
    }
}

fn write_call(id: u64, process: i32, text: &[u8]) -> Call {
    let arguments = [
        Argument::Value(1),
        Argument::Segment(0),
        Argument::Value(text.len() as u64),
    ];
    call(
        id,
        process,
        libc::SYS_write,
        arguments,
        vec![Segment::In(text.to_vec())],
    )
}

/// Reads the job's standard input.
fn read_call(id: u64, process: i32) -> Call {
    let arguments = [Argument::Value(0), Argument::Segment(0), Argument::Value(16)];
    let segment = Segment::Out {
        len: 16,
        keep: Keep::Returned,
    };
    call(id, process, libc::SYS_read, arguments, vec![segment])
}

/// Calls that no guest makes, each to be answered with an error and to change nothing.
fn forge_calls(line: &mut Line, pid: i32) -> Result<()> {
    use Argument::{Segment as At, Value};
    let zero = Value(0);
    let out = |len| Segment::Out {
        len,
        keep: Keep::Returned,
    };
    let invalid = i64::from(-libc::EINVAL);
    let bad = [
        ("an unknown number", call(1, pid, 0x7fff_ffff, [zero; 3], vec![])),
        ("one of ours", call(2, pid, 0x7672, [zero; 3], vec![])),
        (
            "execve",
            call(
                3,
                pid,
                libc::SYS_execve,
                [At(0), zero, zero],
                vec![Segment::In(b"/bin/true\0".to_vec())],
            ),
        ),
        ("fork", call(4, pid, libc::SYS_fork, [zero; 3], vec![])),
        ("exit_group", call(5, pid, libc::SYS_exit_group, [zero; 3], vec![])),
        (
            "munmap",
            call(6, pid, libc::SYS_munmap, [zero, Value(1 << 47), zero], vec![]),
        ),
        ("ptrace", call(7, pid, libc::SYS_ptrace, [zero; 3], vec![])),
        (
            "a raw pointer",
            call(8, pid, libc::SYS_read, [zero, Value(0x2_0000), Value(64)], vec![]),
        ),
        (
            "a short segment",
            call(9, pid, libc::SYS_read, [zero, At(0), Value(1 << 20)], vec![out(16)]),
        ),
        (
            "a segment for a number",
            call(10, pid, libc::SYS_close, [At(0), zero, zero], vec![out(16)]),
        ),
        ("another process", write_call(11, pid + 1, b"FORGED\n")),
        ("a duplicate id", call(1, pid, 0x7fff_ffff, [zero; 3], vec![])),
    ];
    for (what, call) in bad {
        let id = call.id;
        line.say(Message::Call(call))?;
        match line.hear()? {
            Message::Reply(reply) => {
                ensure!(reply.id == id && reply.result == invalid, "{what}: {reply:?}");
            }
            other => bail!("{} after {what}", other.name()),
        }
    }
    line.say(Message::Cancel(Cancel { call: 4711 }))?;
    // What is right is done all the same.
    line.say(Message::Call(call(
        12,
        pid,
        libc::SYS_umask,
        [Value(0o22), zero, zero],
        vec![],
    )))?;
    match line.hear()? {
        Message::Reply(Reply { id: 12, result, .. }) if result >= 0 => {}
        other => bail!("umask: {other:?}"),
    }
    println!("forged");
    Ok(())
}

/// Said after a Recall, and once more after the Resume that follows.
type Answer = Box<dyn Fn(&Line, bool) -> Result<()>>;

/// What to say to a Recall instead of the image, or too late.
fn bad_homecomings(image: &[u8]) -> Result<Vec<(&'static str, Answer)>> {
    let whole = |bytes: Vec<u8>| -> Answer {
        Box::new(move |line, resumed| if resumed { Ok(()) } else { line.send_image(&bytes) })
    };
    let counted = |bytes: Vec<u8>, claimed: u64| -> Answer {
        Box::new(move |line, resumed| {
            if !resumed {
                line.data(&bytes)?;
                line.say(Message::ImageEnd(ImageEnd { bytes: claimed }))?;
            }
            Ok(())
        })
    };
    let message = |message: Message| -> Answer {
        Box::new(move |line, resumed| if resumed { Ok(()) } else { line.say(message.clone()) })
    };
    let late = |front: usize| -> Answer {
        let image = image.to_vec();
        Box::new(move |line, resumed| {
            if !resumed {
                return line.data(&image[..front]);
            }
            line.data(&image[front..])?;
            let bytes = image.len() as u64;
            line.say(Message::ImageEnd(ImageEnd { bytes }))
        })
    };
    let mut flipped = image.to_vec();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    let vdso = job_of(image)?.processes[0]
        .memory
        .vdso
        .as_ref()
        .map(|vdso| (vdso.start, vdso.start + vdso.code.len() as u64))
        .context("the job has a vDSO")?;
    let area = |start, end| {
        change(image, |job| {
            job.processes[0].memory.vdso = None;
            let areas = &mut job.processes[0].memory.areas;
            areas.push(plain_area(start, end));
            areas.sort_by_key(|area| area.start);
        })
    };
    Ok(vec![
        ("nothing", whole(Vec::new())),
        ("noise", whole(vec![0x55; 70_000])),
        ("half", whole(image[..image.len() / 2].to_vec())),
        ("all but the end", whole(image[..image.len() - 1].to_vec())),
        ("more than all", whole([image, image].concat())),
        (
            "lost frames",
            counted(image[..image.len() / 2].to_vec(), image.len() as u64),
        ),
        ("a changed byte", whole(flipped)),
        (
            "another pid",
            whole(change(image, |job| {
                job.processes[0].pid += 1;
                job.processes[0].threads[0].tid += 1;
            })?),
        ),
        (
            "another job",
            whole(change(image, |job| job.id = "zzzzzzzz".to_owned())?),
        ),
        (
            "two processes",
            whole(change(image, |job| {
                let mut second = job.processes[0].clone();
                second.pid += 1;
                second.threads[0].tid += 1;
                job.processes.push(second);
            })?),
        ),
        ("memory over ours", whole(area(0x2_0000, 0x6_0000)?)),
        ("memory over the vDSO", whole(area(vdso.0, vdso.1)?)),
        ("everything", whole(area(0x1000_0000_0000, 0x5000_0000_0000)?)),
        (
            "a failure",
            message(Message::Failed(Reason {
                reason: "of a test".to_owned(),
            })),
        ),
        ("a late image", late(0)),
        ("half an image in time", late(image.len() / 2)),
    ])
}

fn job_of(image: &[u8]) -> Result<Job> {
    match Reader::new(image)?.next()? {
        Record::Job(job) => Ok(*job),
        _ => bail!("the image does not begin with a job"),
    }
}

/// Anonymous private memory to be read and written.
fn plain_area(start: u64, end: u64) -> Area {
    Area {
        start,
        end,
        protection: 3,
        kind: AreaKind::Anonymous,
        shared: false,
        grows_down: false,
        no_reserve: false,
        locked: false,
        locked_on_fault: false,
        advice: Vec::new(),
        guards: Vec::new(),
        huge_page: 0,
        key: 0,
        name: None,
        droppable: false,
        sealed: false,
    }
}

/// The same image with another description.
fn change(image: &[u8], edit: impl Fn(&mut Job)) -> Result<Vec<u8>> {
    let mut reader = Reader::new(image)?;
    let mut writer = Writer::new(Cursor::new(Vec::new()))?;
    // What is shared is counted on from the processes.
    let (mut before, mut now) = (0, 0);
    loop {
        match reader.next()? {
            Record::Job(mut job) => {
                before = job.processes.len() as u32;
                edit(&mut job);
                now = job.processes.len() as u32;
                writer.job(&job)?;
            }
            Record::Pages { process, start, bytes } if process >= before => {
                writer.pages(process - before + now, start, bytes)?;
            }
            Record::Pages { process, start, bytes } => writer.pages(process, start, bytes)?,
            Record::File { file, offset, bytes } => writer.file(file, offset, bytes)?,
            Record::End(_) => return Ok(writer.finish()?.0.into_inner()),
        }
    }
}

/// A broken supervisor.
fn origin(peer: &str, image: &str, act: &str) -> Result<()> {
    let (identity, trust) = (Identity::open(&home()?)?, TrustStore::load(&home()?)?);
    let peer = trust.by_name(peer).context("a known peer")?;
    let (sender, receiver) = channel::dial(peer.address(), &identity, peer, PATIENCE)?;
    let mut line = Line { sender, receiver };
    let image = std::fs::read(image)?;
    let job = job_of(&image)?;
    if act == "early" {
        line.say(Message::Commit)?;
        line.endure();
        return Ok(());
    }
    let protocol = if act == "future" { PROTOCOL + 1 } else { PROTOCOL };
    let purpose = if act == "query" { Purpose::Query } else { Purpose::Move };
    line.say(hello(purpose, protocol))?;
    let Message::Hello(answer) = line.hear()? else {
        bail!("no Hello");
    };
    println!("protocol {}", answer.protocol);
    if matches!(act, "future" | "query") {
        // Who asks ends it; who cannot be understood is told.
        let asks = act == "query";
        if asks {
            line.say(Message::Bye)?;
        }
        ensure!(line.hear()? == Message::Bye, "no Bye");
        println!("bye");
        return if asks { Ok(()) } else { line.say(Message::Bye) };
    }
    let mut offer = Offer {
        job: job.id.clone(),
        name: None,
        command: "a test".to_owned(),
        processes: 1,
        threads: 1,
        memory: 1 << 20,
        cpu_flags: Vec::new(),
        kernel: String::new(),
        architecture: "x86_64".to_owned(),
        pid: job.processes[0].pid,
        dry_run: false,
    };
    match act {
        "large" => offer.memory = 1 << 50,
        "endless" => offer.memory = u64::MAX,
        "foreign" => offer.architecture = "riscv64".to_owned(),
        "flags" => offer.cpu_flags = vec!["warp_drive".to_owned()],
        "pid" => offer.pid += 1,
        "other" => offer.job = "zzzzzzzz".to_owned(),
        _ => {}
    }
    line.say(Message::Offer(offer))?;
    match line.hear()? {
        Message::Accept => {}
        Message::Refuse(refusal) => {
            println!("refused {:?}: {}", refusal.code, refusal.reason);
            line.say(Message::Bye)?;
            line.endure();
            return Ok(());
        }
        other => bail!("{} after the offer", other.name()),
    }
    let middle = image.len() / 2;
    match act {
        "half-close" => return line.data(&image[..middle]),
        "half-silent" => {
            line.data(&image[..middle])?;
            line.endure();
            println!("ended");
            return Ok(());
        }
        "half-end" => line.send_image(&image[..middle])?,
        "half-commit" => {
            line.data(&image[..middle])?;
            line.say(Message::Commit)?;
        }
        "changed" => {
            let mut changed = image.clone();
            changed[middle] ^= 1;
            line.send_image(&changed)?;
        }
        "trailing" => line.send_image(&[image.as_slice(), b"more"].concat())?,
        "over-ours" | "overlong" => {
            let (start, end) = if act == "over-ours" {
                (0x2_0000, 0x6_0000)
            } else {
                (0x1000_0000_0000, 0x5000_0000_0000)
            };
            line.send_image(&change(&image, |job| {
                job.processes[0].memory.areas.push(plain_area(start, end));
                job.processes[0].memory.areas.sort_by_key(|area| area.start);
            })?)?;
        }
        _ => line.send_image(&image)?,
    }
    match line.hear()? {
        Message::Prepared => println!("prepared"),
        Message::Failed(Reason { reason }) => {
            println!("failed: {reason}");
            line.say(Message::Bye)?;
            line.endure();
            return Ok(());
        }
        other => bail!("{} after the image", other.name()),
    }
    if act == "no-commit" {
        line.endure();
        println!("ended");
        return Ok(());
    }
    line.say(Message::Commit)?;
    println!("commit");
    match act {
        "commit-close" => return Ok(()),
        "commit-twice" => line.say(Message::Commit)?,
        "flood" => {
            for number in 0..20_000 {
                if line.say(Message::Ping(Token { token: number })).is_err() {
                    break;
                }
            }
        }
        "replies" => {
            for id in 1..1000 {
                line.say(Message::Reply(Reply {
                    id,
                    result: 1 << 40,
                    outputs: Vec::new(),
                }))?;
            }
        }
        _ => {}
    }
    line.say(Message::Kill)?;
    line.endure();
    println!("ended");
    Ok(())
}
