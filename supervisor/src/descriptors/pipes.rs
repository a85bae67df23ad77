//! Pipes and FIFOs, with what was written and not read.
//!
//! A pipe is one object with ends: the open files of one inode. `tee(2)` copies what is in it without taking it. Made
//! again, it is filled before anybody has it. Packets (`O_DIRECT`) stay packets.
//!
//! A FIFO is found by its path. What is in it then counts more than what was: someone else may have kept it open.

use rustix::fs::{FileType, Mode, OFlags};
use rustix::pipe::{PipeFlags, SpliceFlags};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use vrun_image::state::{FileKind, OpenFile, PipeEnd};

use super::streams::is_abandoned;
use super::tables::{Description, Tables, cannot};
use super::{DELETED, DescriptorError, Result, failed, kernel, show};

/// Flags that `F_SETFL` can set on a pipe.
const DIRECT: u32 = libc::O_DIRECT.cast_unsigned();

fn access(flags: u32) -> i32 {
    flags.cast_signed() & libc::O_ACCMODE
}

/// What an end is, and the bytes in the pipe if it is the first one. `first`: index of that one in the image.
pub(super) fn capture(tables: &Tables, end: usize, first: u32, is_first: bool) -> Result<(FileKind, Vec<u8>)> {
    let description = &tables.descriptions[end];
    let mut pipe = PipeEnd {
        pipe: first,
        path: Vec::new(),
        capacity: 0,
        packets: Vec::new(),
    };
    let target = &description.slot.target;
    let is_fifo = target.starts_with(b"/");
    if is_fifo {
        let stat = &description.slot.stat;
        let leads_there =
            rustix::fs::stat(&target[..]).is_ok_and(|there| (there.st_dev, there.st_ino) == (stat.st_dev, stat.st_ino));
        if !leads_there || target.ends_with(DELETED) {
            return description.refuse(
                tables,
                format!("is the FIFO {}, which has no name any more", show(target)),
            );
        }
    }
    if !is_first {
        return Ok((FileKind::Pipe(pipe), Vec::new()));
    }
    let inode = description.inode_of(FileType::Fifo);
    let ends: Vec<&Description> = tables
        .descriptions
        .iter()
        .filter(|other| other.inode_of(FileType::Fifo) == inode)
        .collect();
    let reads = ends.iter().find(|end| access(end.slot.info.flags) != libc::O_WRONLY);
    let writes = ends.iter().find(|end| access(end.slot.info.flags) != libc::O_RDONLY);
    if is_fifo {
        pipe.path.clone_from(target);
    } else if reads.is_none() && !is_abandoned(description) {
        return description.refuse(
            tables,
            "is a pipe that a process outside of the job reads: close it or use vmigrate",
        );
    } else if writes.is_none() && !is_abandoned(description) {
        return description.refuse(
            tables,
            "is a pipe that a process outside of the job writes: close it or use vmigrate",
        );
    }
    let refused = cannot("look into", description);
    let fd = description.fetch()?;
    pipe.capacity = rustix::pipe::fcntl_getpipe_size(&fd).map_err(|errno| refused(errno.into()))? as u32;
    let length = kernel::ioctl_int(fd.as_fd(), libc::FIONREAD).map_err(&refused)? as usize;
    let Some(reads) = reads.filter(|_| length != 0) else {
        return Ok((FileKind::Pipe(pipe), Vec::new()));
    };
    let packets = ends.iter().any(|end| end.slot.info.flags & DIRECT != 0);
    let content = copy(&reads.fetch()?, pipe.capacity, length, packets).map_err(&refused)?;
    pipe.packets = content.iter().map(|packet| packet.len() as u32).collect();
    Ok((FileKind::Pipe(pipe), content.concat()))
}

/// The packets in a pipe, or all of its bytes as one.
fn copy(pipe: &OwnedFd, capacity: u32, length: usize, packets: bool) -> io::Result<Vec<Vec<u8>>> {
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    if rustix::pipe::fcntl_getpipe_size(&writer)? != capacity as usize {
        rustix::pipe::fcntl_setpipe_size(&writer, capacity as usize)?;
    }
    let copied = rustix::pipe::tee(pipe, &writer, capacity as usize, SpliceFlags::NONBLOCK)?;
    if copied != length {
        return Err(io::Error::other(format!("{copied} of {length} bytes could be copied")));
    }
    let mut content: Vec<Vec<u8>> = Vec::new();
    let mut left = length;
    while left != 0 {
        let mut packet = vec![0; left];
        let read = rustix::io::read(&reader, &mut packet)?;
        packet.truncate(read);
        left -= read;
        match content.last_mut().filter(|_| !packets) {
            Some(all) => all.extend(packet),
            None => content.push(packet),
        }
    }
    Ok(content)
}

/// Makes every pipe of the image again; gives its ends by their index.
pub(super) fn restore(files: &[OpenFile], contents: &HashMap<u32, Vec<u8>>) -> Result<Vec<(usize, OwnedFd)>> {
    let mut pipes: HashMap<u32, Vec<usize>> = HashMap::new();
    for (index, file) in files.iter().enumerate() {
        if let FileKind::Pipe(end) = &file.kind {
            pipes.entry(end.pipe).or_default().push(index);
        }
    }
    let mut restored = Vec::new();
    for (first, ends) in pipes {
        let Some(FileKind::Pipe(pipe)) = files.get(first as usize).map(|file| &file.kind) else {
            return Err(DescriptorError::Changed(
                "the image has a pipe without its first end".to_owned(),
            ));
        };
        let what = if pipe.path.is_empty() {
            &b"a pipe"[..]
        } else {
            &pipe.path
        };
        let content = contents.get(&first).map_or(&[][..], Vec::as_slice);
        let make = if pipe.path.is_empty() { make_pipe } else { make_fifo };
        let made = make(files, pipe, &ends, content).map_err(|error| failed("make again", what, error))?;
        restored.extend(ends.into_iter().zip(made));
    }
    Ok(restored)
}

fn make_pipe(files: &[OpenFile], pipe: &PipeEnd, ends: &[usize], content: &[u8]) -> io::Result<Vec<OwnedFd>> {
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    fill(&writer, pipe, in_packets(files, ends), content)?;
    let opened_anew = |file: &OpenFile| file.flags & super::LARGEFILE != 0 || access(file.flags) == libc::O_RDWR;
    let (mut reader, mut writer) = (Some(reader), Some(writer));
    // Any descriptor of it leads to the pipe.
    let anchor = rustix::io::fcntl_dupfd_cloexec(reader.as_ref().expect("made above"), 0)?;
    let mut made = Vec::new();
    for file in ends.iter().map(|index| &files[*index]) {
        let own = match access(file.flags) {
            libc::O_RDONLY if !opened_anew(file) => reader.take(),
            libc::O_WRONLY if !opened_anew(file) => writer.take(),
            _ => None,
        };
        made.push(match own {
            Some(fd) => fd,
            None => open(&format!("/proc/self/fd/{}", anchor.as_raw_fd()), file.flags)?,
        });
    }
    Ok(made)
}

fn make_fifo(files: &[OpenFile], pipe: &PipeEnd, ends: &[usize], content: &[u8]) -> io::Result<Vec<OwnedFd>> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::OsStr::from_bytes(&pipe.path);
    let stat = rustix::fs::stat(path)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Fifo {
        return Err(io::Error::other("it is not a FIFO here"));
    }
    let path = path.to_str().ok_or_else(|| io::Error::other("its name is not text"))?;
    // With both ends in one hand no open waits for the other.
    let keeper = open(path, libc::O_RDWR.cast_unsigned())?;
    if kernel::ioctl_int(keeper.as_fd(), libc::FIONREAD)? == 0 {
        fill(&keeper, pipe, in_packets(files, ends), content)?;
    }
    ends.iter().map(|index| open(path, files[*index].flags)).collect()
}

/// Never waits; the status flags are set by the caller, for all kinds of open files.
fn open(path: &str, flags: u32) -> io::Result<OwnedFd> {
    let flags = OFlags::from_bits_retain(access(flags).cast_unsigned()) | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

fn in_packets(files: &[OpenFile], ends: &[usize]) -> bool {
    ends.iter().any(|index| files[*index].flags & DIRECT != 0)
}

fn fill(writer: &OwnedFd, pipe: &PipeEnd, in_packets: bool, content: &[u8]) -> io::Result<()> {
    if pipe.capacity != 0 && rustix::pipe::fcntl_getpipe_size(writer)? != pipe.capacity as usize {
        rustix::pipe::fcntl_setpipe_size(writer, pipe.capacity as usize)?;
    }
    let flags = rustix::fs::fcntl_getfl(writer)?;
    if in_packets {
        rustix::fs::fcntl_setfl(writer, flags | OFlags::DIRECT)?;
    }
    let mut rest = content;
    for length in &pipe.packets {
        let (packet, next) = rest
            .split_at_checked(*length as usize)
            .ok_or_else(|| io::Error::other("the image lacks what was in it"))?;
        let mut packet = packet;
        while !packet.is_empty() {
            let written = rustix::io::write(writer, packet)?;
            packet = &packet[written..];
        }
        rest = next;
    }
    rustix::fs::fcntl_setfl(writer, flags)?;
    Ok(())
}
