//! What shares lines and screens.

use std::cell::RefCell;
use std::rc::Rc;

use debug::mailbox::{DebugMailbox, Stop};
use debug::registers::Registers;
use debug::session::{self, Session};
use guest::fake::FakeMemory;
use mux::queue::{Owner, Queue};
use mux::{MARK, Mux};
use screen::{Geometry, Pixels, Screen};

use crate::input::Input;

pub(super) fn console(input: &[u8]) {
    let mut input = Input(input);
    let mut mux = Mux::new();
    let guests = 1 + usize::from(input.byte() & 3);
    (0..guests).for_each(|guest| mux.add_guest(format!("g{guest}")));
    let mut sent = Vec::new();
    while !input.is_empty() {
        let kind = input.byte();
        let guest = usize::from(kind >> 4) % guests;
        let length = usize::from(input.byte() & 31);
        let bytes = input.bytes(length);
        let mut sink = |byte| sent.push(byte);
        match kind % 6 {
            0 | 1 => bytes.iter().for_each(|byte| mux.guest_output(guest, *byte, &mut sink)),
            2 => bytes.iter().for_each(|byte| _ = mux.typed(*byte, &mut sink)),
            3 => mux.log_line(format_args!("{}", String::from_utf8_lossy(bytes)), &mut sink),
            4 => mux.flush(guest, &mut sink),
            _ => mux.report_line(format_args!("{}", String::from_utf8_lossy(bytes)), &mut sink),
        }
    }
    let text = String::from_utf8_lossy(&sent);
    for (at, _) in text.match_indices(char::from(MARK)) {
        // A reader skips the carriage returns that a guest without a label may send there.
        let before = text[..at].trim_end_matches('\r');
        assert!(before.is_empty() || before.ends_with('\n'), "a mark within a line: {text:?}");
        let line = &text[at + 1..];
        let own = ["nexit: ", "nexit-report: ", "nexit> "];
        assert!(own.iter().any(|own| line.starts_with(own)), "{line:?}");
    }
}

pub(super) fn queue(input: &[u8]) {
    let mut input = Input(input);
    let mut queue = Queue::new();
    let guests = usize::from(input.byte() & 7);
    (0..guests).for_each(|_| queue.add_guest());
    let (mut pushed, mut taken, mut lost) = (0, 0, 0);
    while !input.is_empty() {
        let kind = input.byte();
        let guest = usize::from(kind >> 3 & 7);
        let owner = if guest < guests { Owner::Guest(guest) } else { Owner::Hypervisor };
        let count = usize::from(input.byte()) << (kind >> 6 << 1);
        match kind & 7 {
            0..=2 => {
                (0..count).for_each(|_| queue.push(owner, kind));
                pushed += count as u64;
            }
            3 | 4 => taken += queue.take(&mut vec![0; count]) as u64,
            5 => lost += queue.take_loss().map_or(0, |(_, bytes)| bytes),
            6 => _ = queue.turn(Some(owner)),
            _ => {
                let _ = (queue.turn(None), queue.has_room(owner));
            }
        }
    }
    loop {
        let count = queue.take(&mut [0; 64]);
        taken += count as u64;
        if count == 0 {
            break;
        }
    }
    assert!(queue.is_empty());
    while let Some((_, bytes)) = queue.take_loss() {
        lost += bytes;
    }
    assert_eq!(pushed, taken + lost);
}

/// Registers that answer by the input, and count.
struct Liar<'a> {
    input: Input<'a>,
    accesses: u64,
    last: u8,
}

impl mux::uart::Registers for Liar<'_> {
    fn read(&mut self, _: u16) -> u8 {
        self.accesses += 1;
        if !self.input.is_empty() {
            self.last = self.input.byte();
        }
        self.last
    }
    fn write(&mut self, _: u16, _: u8) {
        self.accesses += 1;
    }
}

impl Drop for Liar<'_> {
    fn drop(&mut self) {
        assert!(self.accesses < 20_000_000 || std::thread::panicking());
    }
}

pub(super) fn uart(input: &[u8]) {
    let mut input = Input(input);
    let divisor = input.bit().then_some(input.word());
    let sends = input.byte() & 3;
    mux::uart::answers(&mut Liar { input, accesses: 0, last: 0 });
    let mut line = mux::line::Line::new(Liar { input, accesses: 0, last: 0 }, divisor);
    for _ in 0..sends {
        let room = line.wait_for_room();
        assert!(room <= mux::line::PIECE);
        line.send(&[b'x'; mux::line::PIECE][..room]);
    }
    line.drain();
    let mut keys = mux::line::Keys::new(Liar { input, accesses: 0, last: 0 });
    (0..16).for_each(|_| _ = keys.receive());
}

/// A guest for gdb, and what was sent to it.
struct World {
    mailboxes: Vec<DebugMailbox>,
    sent: Vec<u8>,
}

struct Occupant {
    world: Rc<RefCell<World>>,
    memory: FakeMemory,
}

impl session::Guest for Occupant {
    type Memory = FakeMemory;

    fn cpus(&self) -> usize {
        self.world.borrow().mailboxes.len()
    }
    fn mailbox<T>(&mut self, cpu: usize, work: impl FnOnce(&mut DebugMailbox) -> T) -> Option<T> {
        self.world.borrow_mut().mailboxes.get_mut(cpu).map(work)
    }
    fn call(&mut self) {}
    fn memory(&mut self) -> &mut FakeMemory {
        &mut self.memory
    }
    fn ram(&mut self) -> Vec<(arch::Gpa, u64)> {
        vec![(arch::Gpa::new(0), self.memory.0.len() as u64)]
    }
    fn generation(&self) -> u32 {
        0
    }
}

#[derive(Clone)]
struct Wire(Rc<RefCell<World>>);

impl session::Line for Wire {
    fn send(&mut self, byte: u8) {
        self.0.borrow_mut().sent.push(byte);
    }
}

/// A packet is framed here, as no mutation finds a checksum; other bytes go as they are.
pub(super) fn gdb(input: &[u8]) {
    let mut input = Input(input);
    let mut mailboxes = vec![DebugMailbox::new(), DebugMailbox::new()];
    mailboxes.iter_mut().for_each(|mailbox| _ = mailbox.arrive());
    let world = Rc::new(RefCell::new(World { mailboxes, sent: Vec::new() }));
    let occupant = Occupant { world: world.clone(), memory: FakeMemory(vec![0x90; 0x4000]) };
    let mut session = Session::new(occupant, Wire(world.clone()));
    while !input.is_empty() {
        let kind = input.byte();
        let length = usize::from(kind & 0x3f);
        let bytes = input.bytes(length);
        match kind >> 6 {
            0 => bytes.iter().for_each(|byte| session.receive(*byte)),
            3 => {
                for (cpu, mailbox) in world.borrow_mut().mailboxes.iter_mut().enumerate() {
                    if mailbox.wanted() {
                        let rip = u64::from(kind) << 4 | cpu as u64;
                        mailbox.stand(Stop::Asked, Registers { rip, ..Registers::default() });
                    }
                }
                session.work();
            }
            _ => {
                let sum = bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
                let packet = [b"$", bytes, format!("#{sum:02x}").as_bytes()].concat();
                packet.iter().for_each(|byte| session.receive(*byte));
                session.work();
            }
        }
    }
    check_packets(&world.borrow().sent);
}

/// Behind each `$` is a packet with a right sum, or the beginning of one.
fn check_packets(sent: &[u8]) {
    for packet in sent.split(|byte| *byte == b'$').skip(1) {
        let mut parts = packet.splitn(2, |byte| *byte == b'#');
        let (Some(body), Some(&[high, low, ..])) = (parts.next(), parts.next()) else { continue };
        let sum = body.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
        assert_eq!(
            format!("{sum:02x}").as_bytes(),
            [high, low],
            "{}",
            String::from_utf8_lossy(packet)
        );
    }
}

struct Framebuffer(usize);

impl Pixels for Framebuffer {
    fn write(&mut self, offset: usize, bytes: &[u8]) {
        assert!(offset.checked_add(bytes.len()).is_some_and(|end| end <= self.0));
    }
}

pub(super) fn screen(input: &[u8]) {
    let mut input = Input(input);
    let geometry = Geometry {
        width: u32::from(input.word() & 0x3ff),
        height: u32::from(input.word() & 0x1ff),
        pitch: u32::from(input.word() & 0x1fff),
        bytes_per_pixel: input.byte() & 7,
    };
    let Some(mut screen) = Screen::new(geometry) else { return };
    let mut pixels = Framebuffer(geometry.pitch as usize * geometry.height as usize);
    screen.clear(&mut pixels);
    input.0.iter().for_each(|byte| screen.put(*byte, &mut pixels));
}
