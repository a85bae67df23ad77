//! Message queues of System V: copied message by message (`MSG_COPY`, Linux 3.8), which takes none out.

use super::{Found, IPC_SET, Kind, STEPS, Scratch, about, refuse};
use crate::capture::CaptureError;
use crate::memory::PAGE;
use crate::restore::RestoreError;
use vrun_image::state::{Message, MessageQueue};
use vrun_shim::{Expect, Injection, Script, area};

/// `msg.h`.
const MSG_COPY: i32 = 0o40000;
/// Bytes in front of a message's: its type.
const TYPE: usize = 8;

pub(super) fn capture(injection: &Injection, found: &Found) -> Result<MessageQueue, CaptureError> {
    let id = found.object.id;
    // struct msqid64_ds: bytes, messages, room, who sent last.
    let (bytes, count, room, last) = (found.long(72), found.long(80), found.long(88), found.word(96));
    let buffer = Scratch::map(injection, bytes + TYPE as u64)?;
    let mut messages = Vec::new();
    for index in 0..count {
        let mut script = Script::new(area::DATA.start);
        let flags = MSG_COPY | libc::IPC_NOWAIT;
        let arguments = [id as u64, buffer.range.start, bytes, index, flags as u64];
        script.step("copy a message", libc::SYS_msgrcv, &arguments, Expect::Anything);
        let length = injection.run(&script)?[0];
        if length < 0 {
            let error = std::io::Error::from_raw_os_error(-length as i32);
            return refuse(format!(
                "the messages of the System V message queue {id} cannot be copied: {error}"
            ));
        }
        let mut message = vec![0; TYPE + length as usize];
        injection.read(buffer.range.start, &mut message)?;
        let (kind, bytes) = message.split_at(TYPE);
        messages.push(Message {
            kind: i64::from_le_bytes(kind.try_into().expect("8 bytes")),
            bytes: bytes.to_vec(),
        });
    }
    let mut object = found.object;
    object.mode &= 0o777;
    Ok(MessageQueue {
        object,
        room,
        last: last.cast_signed(),
        messages,
    })
}

/// `by` gives the process of a number, or the first one.
pub(super) fn finish<'a>(by: &dyn Fn(i32) -> &'a Injection, queues: &[MessageQueue]) -> Result<(), RestoreError> {
    for queue in queues {
        let id = queue.object.id;
        // Before the messages, which may need it; but a queue may hold more than it has room for now.
        let mut script = Script::new(area::DATA.start);
        let mut bytes = about(&queue.object);
        bytes[88..96].copy_from_slice(&queue.room.to_le_bytes());
        let room = script.data(&bytes);
        let arguments = Kind::Messages.command(id as u64, IPC_SET, room);
        let what = format!(
            "give the System V message queue {id} room for {} bytes (kernel.msgmnb)",
            queue.room
        );
        script.call(what, libc::SYS_msgctl, &arguments);
        let held: u64 = queue.messages.iter().map(|message| message.bytes.len() as u64).sum();
        if held <= queue.room {
            by(0).run(&script)?;
        }
        if let Some((last, before)) = queue.messages.split_last() {
            send(by(0), id, before)?;
            send(by(queue.last), id, std::slice::from_ref(last))?;
        }
        if held > queue.room {
            by(0).run(&script)?;
        }
    }
    Ok(())
}

fn send(injection: &Injection, id: i32, messages: &[Message]) -> Result<(), RestoreError> {
    let length = |message: &Message| (TYPE + message.bytes.len()).next_multiple_of(TYPE);
    for messages in messages.chunks(STEPS) {
        let buffer = Scratch::map(injection, messages.iter().map(length).sum::<usize>() as u64)?;
        let mut bytes = Vec::new();
        let mut script = Script::new(area::DATA.start);
        for message in messages {
            let address = buffer.range.start + bytes.len() as u64;
            let arguments = [id as u64, address, message.bytes.len() as u64, libc::IPC_NOWAIT as u64];
            script.call(
                format_args!("send a message to queue {id}"),
                libc::SYS_msgsnd,
                &arguments,
            );
            bytes.extend(message.kind.to_le_bytes());
            bytes.extend(&message.bytes);
            bytes.resize(bytes.len().next_multiple_of(TYPE), 0);
        }
        debug_assert!(bytes.len() as u64 <= (buffer.range.end - buffer.range.start).max(PAGE));
        injection.write(buffer.range.start, &bytes)?;
        injection.run(&script)?;
    }
    Ok(())
}
