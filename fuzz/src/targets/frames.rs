//! Frames of a debugger between any other bytes of the line.

use mux::frame::{Channel, Kind, MAX_PAYLOAD, Splitter, encode};
use mux::{ESCAPE, MARK};

use crate::input::Input;

/// Pieces of a line: bytes that are anything, and frames behind the end of a line.
pub(super) fn frames(input: &[u8]) {
    let mut input = Input(input);
    let start = if input.bit() { ESCAPE } else { MARK };
    let (mut line, mut other, mut sent) = (Vec::new(), Vec::new(), Vec::new());
    while !input.is_empty() {
        let head = input.byte();
        let length = usize::from(input.byte());
        let bytes = input.bytes(length);
        if head & 1 == 0 {
            line.extend_from_slice(bytes);
            other.extend_from_slice(bytes);
            continue;
        }
        line.extend_from_slice(b"\r\n");
        other.extend_from_slice(b"\r\n");
        let kind = if head & 2 == 0 { Kind::Names } else { Kind::Gdb };
        let channel = Channel { kind, guest: head >> 4 };
        encode(start, channel, bytes, &mut |byte| line.push(byte));
        sent.push((channel, bytes[..bytes.len().min(MAX_PAYLOAD)].to_vec()));
    }
    let (mut rest, mut found) = (Vec::new(), Vec::new());
    let mut splitter = Splitter::new(start);
    for byte in &line {
        splitter.push(*byte, &mut |byte| rest.push(byte), &mut |channel, payload| {
            found.push((channel, payload.to_vec()));
        });
    }
    // Any bytes may be a frame, too.
    assert!(is_within(&sent, &found), "sent {sent:x?}, found {found:x?}");
    assert!(is_within(&rest, &other), "of {other:x?} came {rest:x?}");
    let text = |bytes: &[u8]| -> Vec<u8> {
        bytes.iter().copied().filter(|byte| *byte < 0x80 && *byte != start).collect()
    };
    assert_eq!(text(&rest), text(&other), "text is never a frame's");
}

/// Whether all of `few` is in `many`, in this order.
fn is_within<T: PartialEq>(few: &[T], many: &[T]) -> bool {
    let mut many = many.iter();
    few.iter().all(|wanted| many.any(|one| one == wanted))
}
