//! gdb at a guest: from the first packet, for which the guest stops, to the last, with which it goes on as before.
//!
//! Invariant: as long as nobody has sent a whole packet, nothing is asked of the guest.

use alloc::format;
use alloc::vec::Vec;
use core::convert::Infallible;

use arch::Gpa;
use arch::machine::GuestMemory;
use gdbstub::common::Signal;
use gdbstub::conn::Connection;
use gdbstub::stub::MultiThreadStopReason;
use gdbstub::stub::state_machine::GdbStubStateMachine;
use gdbstub::stub::{BaseStopReason, GdbStubBuilder};
use gdbstub::target::ext::breakpoints::WatchKind;

use crate::breakpoints::{Breakpoint, Kind};
use crate::frame::{Event, Framer, MAX_PACKET};
use crate::mailbox::{DebugMailbox, Stop};
use crate::target::{Debugged, thread};

/// The guest, as the machine has it.
pub trait Guest {
    /// Its RAM.
    type Memory: GuestMemory;
    /// How many virtual CPUs it has: at most 64.
    fn cpus(&self) -> usize;
    /// Has `work` see the mailbox of one.
    fn mailbox<T>(&mut self, cpu: usize, work: impl FnOnce(&mut DebugMailbox) -> T) -> Option<T>;
    /// Has each of its CPUs look at its mailbox.
    fn call(&mut self);
    /// Its RAM.
    fn memory(&mut self) -> &mut Self::Memory;
    /// Where that is, and how much.
    fn ram(&mut self) -> Vec<(Gpa, u64)>;
    /// Another number for each RAM that was loaded anew.
    fn generation(&self) -> u32;
}

/// The line to gdb. Writing never fails: what nobody takes is lost.
pub trait Line: Clone {
    /// Sends a byte.
    fn send(&mut self, byte: u8);
}

/// Sends, and remembers the last answer for a gdb that has not understood it.
struct Answers<L> {
    line: L,
    last: Vec<u8>,
}

impl<L: Line> Connection for Answers<L> {
    type Error = Infallible;

    fn write(&mut self, byte: u8) -> Result<(), Infallible> {
        if byte == b'$' {
            self.last.clear();
        }
        if byte == b'$' || !self.last.is_empty() {
            self.last.push(byte);
        }
        self.line.send(byte);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Infallible> {
        Ok(())
    }
}

type Stub<G, L> = GdbStubStateMachine<'static, Debugged<G>, Answers<L>>;

/// What is waited for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// A packet of a gdb that nobody knows yet.
    Alone,
    /// That the guest stands, for the first packet.
    Attaching,
    /// The next packet; the guest stands.
    Standing,
    /// That a CPU stands, or that gdb wants it to; the guest runs.
    Running,
    /// That all CPUs stand, as one does or gdb wants it.
    Stopping,
}

/// One guest's.
pub struct Session<G: Guest, L: Line> {
    guest: Debugged<G>,
    line: L,
    framer: Framer,
    /// The last whole packet.
    packet: Vec<u8>,
    phase: Phase,
    stub: Option<Stub<G, L>>,
    /// gdb wants the guest to stop, and was not told yet that it has for that.
    interrupted: bool,
}

/// To a gdb that comes when no CPU of the guest runs: the remote protocol's error with a text.
const NOT_RUNNING: &str = "E.the guest does not run: start it first";

impl<G: Guest, L: Line> Session<G, L> {
    /// With nobody attached.
    pub fn new(guest: G, line: L) -> Self {
        let guest = Debugged::new(guest);
        let (framer, packet) = (Framer::new(), Vec::new());
        Self { guest, line, framer, packet, phase: Phase::Alone, stub: None, interrupted: false }
    }

    /// Takes a byte that has come over the line.
    pub fn receive(&mut self, byte: u8) {
        let Some(event) = self.framer.push(byte) else { return };
        match (self.phase, event) {
            (Phase::Alone, Event::Packet) => self.meet(),
            // The last one counts: gdb sends again what nobody has answered.
            (Phase::Attaching, Event::Packet) => self.keep_packet(),
            (Phase::Alone | Phase::Attaching, _) => {}
            (Phase::Standing, Event::Packet) => {
                self.keep_packet();
                self.feed();
            }
            (Phase::Running | Phase::Stopping, Event::Packet) => {
                // Whoever waits for the guest sends its last packet once more, if anything: else another gdb has come, and
                // the one before went without a word.
                if self.packet == self.framer.packet() {
                    return self.line.send(b'+');
                }
                (self.stub, self.interrupted) = (None, false);
                self.guest.release();
                self.meet();
            }
            // One that comes before the guest goes on is for when it does (GDB's manual, "Interrupts"): gdb sends it as
            // soon as its user types Ctrl-C, at what is not yet on its way, and then waits for the guest to stop.
            (Phase::Standing, Event::Interrupt) => self.interrupted = true,
            (Phase::Running | Phase::Stopping, Event::Interrupt) => self.interrupt(),
            (_, Event::Damaged) => self.line.send(b'-'),
            (Phase::Standing, Event::Again) => self.answer_again(),
            // The last answer is not what is waited for.
            (Phase::Running | Phase::Stopping, Event::Again) => {}
        }
    }

    fn keep_packet(&mut self) {
        self.packet.clear();
        self.packet.extend_from_slice(self.framer.packet());
    }

    /// A gdb that nobody knows has sent its first packet.
    fn meet(&mut self) {
        self.keep_packet();
        self.guest.call();
        self.phase = Phase::Attaching;
    }

    /// Goes on where something was waited for. Whether somebody is attached.
    pub fn work(&mut self) -> bool {
        match self.phase {
            Phase::Alone | Phase::Standing => {}
            Phase::Attaching => match self.guest.all_stand() {
                Some(true) => self.attach(),
                Some(false) => self.guest.call_again(),
                None => {
                    self.phase = Phase::Alone;
                    self.refuse();
                }
            },
            Phase::Running => {
                if self.guest.stopped().is_some() {
                    self.guest.call();
                    self.phase = Phase::Stopping;
                }
            }
            Phase::Stopping => match self.guest.all_stand() {
                Some(true) => {
                    let why = self.guest.stopped();
                    let asked = BaseStopReason::Signal(Signal::SIGINT);
                    let reason = why.map_or(asked, |why| self.reason(why));
                    self.report(reason);
                }
                Some(false) => self.guest.call_again(),
                None => self.report(BaseStopReason::Exited(0)),
            },
        }
        self.phase != Phase::Alone
    }

    fn attach(&mut self) {
        self.guest.meet();
        let answers = Answers { line: self.line.clone(), last: Vec::new() };
        let built = GdbStubBuilder::new(answers).packet_buffer_size(MAX_PACKET).build();
        let stub = built.ok().map(|stub| stub.run_state_machine(&mut self.guest));
        self.stub = stub.and_then(Result::ok);
        self.phase = Phase::Standing;
        self.feed();
    }

    /// Gives the stub the packet that has come.
    fn feed(&mut self) {
        for at in 0..self.packet.len() {
            if let Some(byte) = self.packet.get(at) {
                self.feed_byte(*byte);
            }
        }
        if self.interrupted && self.phase == Phase::Running {
            self.interrupt();
        }
    }

    /// gdb wants the guest, which runs, to stop.
    fn interrupt(&mut self) {
        const INTERRUPT: u8 = 3;
        self.interrupted = true;
        self.feed_byte(INTERRUPT);
    }

    /// There is nobody to talk about.
    fn refuse(&mut self) {
        let sum = NOT_RUNNING.bytes().fold(0_u8, u8::wrapping_add);
        let answer = format!("+${NOT_RUNNING}#{sum:02x}");
        answer.bytes().for_each(|byte| self.line.send(byte));
    }

    fn feed_byte(&mut self, byte: u8) {
        let guest = &mut self.guest;
        let next = match self.stub.take() {
            Some(Stub::Idle(stub)) => stub.incoming_data(guest, byte),
            Some(Stub::Running(stub)) => stub.incoming_data(guest, byte),
            Some(other) => Ok(other),
            None => return,
        };
        self.settle(next.ok());
    }

    /// The stub is in this state now; `None` where it has failed.
    fn settle(&mut self, stub: Option<Stub<G, L>>) {
        let next = match stub {
            Some(stub @ Stub::Idle(_)) => (Phase::Standing, Some(stub)),
            Some(stub @ Stub::Running(_)) => (Phase::Running, Some(stub)),
            Some(stub @ Stub::CtrlCInterrupt(_)) => {
                self.guest.call();
                (Phase::Stopping, Some(stub))
            }
            Some(Stub::Disconnected(_)) | None => (Phase::Alone, None),
        };
        (self.phase, self.stub) = next;
        if self.stub.is_none() {
            (self.phase, self.interrupted) = (Phase::Alone, false);
            self.guest.release();
        }
    }

    /// Says why the guest stands, or that it is not there any more.
    fn report(&mut self, reason: MultiThreadStopReason<u64>) {
        let guest = &mut self.guest;
        let next = match self.stub.take() {
            Some(Stub::Running(stub)) => stub.report_stop(guest, reason),
            Some(Stub::CtrlCInterrupt(stub)) => stub.interrupt_handled(guest, Some(reason)),
            Some(other) => Ok(other),
            None => return,
        };
        self.settle(next.ok());
    }

    /// As gdb is told. A breakpoint comes before gdb's wish to stop, which stays: gdb may go on by itself, behind a condition
    /// that does not hold. A step does not, for then gdb would step on and on.
    fn reason(&mut self, (cpu, why): (usize, Stop)) -> MultiThreadStopReason<u64> {
        let tid = thread(cpu);
        if matches!(why, Stop::Asked | Stop::Step) && core::mem::take(&mut self.interrupted) {
            return BaseStopReason::SignalWithThread { tid, signal: Signal::SIGINT };
        }
        let signal = |signal| BaseStopReason::SignalWithThread { tid, signal };
        let slots = match why {
            Stop::Breakpoint(slots) => slots,
            Stop::Patch => return BaseStopReason::SwBreak(tid),
            Stop::Asked => return signal(Signal::SIGINT),
            Stop::Crashed => return signal(Signal::SIGABRT),
            Stop::Step => return signal(Signal::SIGTRAP),
        };
        match self.guest.met(slots) {
            Some(Breakpoint { kind: Kind::Execute { software: true }, .. }) => {
                BaseStopReason::SwBreak(tid)
            }
            Some(Breakpoint { kind: Kind::Execute { software: false }, .. }) => {
                BaseStopReason::HwBreak(tid)
            }
            Some(Breakpoint { address: addr, kind, .. }) => {
                let kind = match kind {
                    Kind::Access { read: true } => WatchKind::Read,
                    Kind::Access { read: false } => WatchKind::ReadWrite,
                    Kind::Write | Kind::Execute { .. } => WatchKind::Write,
                };
                BaseStopReason::Watch { tid, kind, addr }
            }
            None => signal(Signal::SIGTRAP),
        }
    }

    fn answer_again(&mut self) {
        let answers = match &mut self.stub {
            Some(Stub::Idle(stub)) => stub.borrow_conn(),
            Some(Stub::Running(stub)) => stub.borrow_conn(),
            Some(Stub::CtrlCInterrupt(stub)) => stub.borrow_conn(),
            Some(Stub::Disconnected(stub)) => stub.borrow_conn(),
            None => return,
        };
        for byte in answers.last.iter() {
            self.line.send(*byte);
        }
    }
}
