//! A virtual CPU's slot on its physical processor: what other processors may ask of it.
//!
//! A request is a bit here and an NMI there: the NMI makes the guest exit, whatever it does, and the
//! run loop looks at the bits before it enters again. A start-up IPI is in the same word as the INIT
//! before it, so that the two are seen in their order.

use core::sync::atomic::{AtomicU32, Ordering};

use arch::machine::CpuRequest;
use arch::{ApicId, Vector};
use cpu::instructions::tsc;
use cpu::local_apic::LocalApic;
use guest::counters::ExitCounters;
use spin::Mutex;

use crate::backend::Inbox;

/// The nested table changed.
pub(crate) const FLUSH: u32 = 1 << 0;
/// INIT arrived.
pub(crate) const INIT: u32 = 1 << 1;
/// A non-maskable interrupt for the guest.
pub(crate) const NMI: u32 = 1 << 2;
/// The guest has ended.
pub(crate) const STOP: u32 = 1 << 3;
/// The monitor wants to see its registers.
pub(crate) const REGISTERS: u32 = 1 << 4;
/// A start-up IPI came after the last INIT; its vector is in the top byte.
const START: u32 = 1 << 5;
/// What the guest has said waits for the serial line, and is its to send.
pub(crate) const SEND: u32 = 1 << 6;
/// A debugger wants it to look at its mailbox.
pub(crate) const DEBUGGER: u32 = 1 << 7;
const START_VECTOR: u32 = 24;

/// One virtual CPU's slot.
pub(crate) struct VcpuSlot {
    /// The processor.
    pub(crate) processor: ApicId,
    /// Its number in the configuration.
    pub(crate) number: u32,
    /// How other CPUs of its guest interrupt it.
    pub(crate) inbox: Inbox,
    requests: AtomicU32,
    /// Its exits, as of the watchdog's last call or, once it has left, all of them.
    pub(crate) counters: Mutex<ExitCounters>,
    /// What the monitor showed of them last, and the TSC then.
    pub(crate) shown: Mutex<(u64, ExitCounters)>,
}

/// What was asked of a virtual CPU since it last looked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Requests(u32);

impl Requests {
    /// Whether this was asked.
    pub(crate) fn has(self, what: u32) -> bool {
        self.0 & what != 0
    }
    /// The vector of a start-up IPI that came after an INIT.
    pub(crate) fn startup_vector(self) -> Option<u8> {
        self.has(START).then_some((self.0 >> START_VECTOR) as u8)
    }
}

impl VcpuSlot {
    pub(crate) fn new(processor: ApicId, number: u32, inbox: Inbox) -> Self {
        Self {
            processor,
            number,
            inbox,
            requests: AtomicU32::new(0),
            counters: Mutex::new(ExitCounters::new()),
            shown: Mutex::new((tsc(), ExitCounters::new())),
        }
    }

    /// Clears requests and counters: the guest restarts.
    pub(crate) fn forget_requests(&self) {
        self.requests.store(0, Ordering::Release);
        *self.counters.lock() = ExitCounters::new();
        *self.shown.lock() = (tsc(), ExitCounters::new());
    }

    /// Whether anything was asked since the last call of [`Self::take_requests`].
    #[inline]
    pub(crate) fn asked(&self) -> bool {
        self.requests.load(Ordering::Relaxed) != 0
    }

    /// What was asked since the last call.
    pub(crate) fn take_requests(&self) -> Requests {
        Requests(self.requests.swap(0, Ordering::AcqRel))
    }

    /// Sends it a guest's vector, from the processor with `own`.
    pub(crate) fn interrupt(&self, own: LocalApic, vector: Vector) {
        self.inbox.deliver(own, self.processor, vector);
    }

    /// Asks for `what`, from the processor with `own`.
    pub(crate) fn ask(&self, own: LocalApic, what: CpuRequest) {
        match what {
            CpuRequest::Init => self.kick(own, START | 0xff << START_VECTOR, INIT),
            CpuRequest::Start(vector) => {
                let bits = START | u32::from(vector) << START_VECTOR;
                self.kick(own, 0xff << START_VECTOR, bits);
            }
            CpuRequest::Nmi => self.kick(own, 0, NMI),
        }
    }

    /// Has it drop what it has cached of the nested table.
    pub(crate) fn ask_to_flush(&self, own: LocalApic) {
        self.kick(own, 0, FLUSH);
    }

    /// Has it log its registers.
    pub(crate) fn ask_for_registers(&self, own: LocalApic) {
        self.kick(own, 0, REGISTERS);
    }

    /// Has it look at its mailbox (`gdb`).
    pub(crate) fn ask_to_its_desk(&self, own: LocalApic) {
        self.kick(own, 0, DEBUGGER);
    }

    /// Whether it shall leave the guest for good.
    pub(crate) fn shall_stop(&self) -> bool {
        self.requests.load(Ordering::Acquire) & STOP != 0
    }

    /// Has it see out what the guest has said.
    pub(crate) fn ask_to_send(&self, own: LocalApic) {
        self.kick(own, 0, SEND);
    }

    /// Has it leave the guest for good.
    pub(crate) fn ask_to_stop(&self, own: LocalApic) {
        self.kick(own, 0, STOP);
    }

    /// Takes `clear` out of the requests, puts `set` in, and kicks the processor.
    fn kick(&self, own: LocalApic, clear: u32, set: u32) {
        let change = |requests: u32| Some(requests & !clear | set);
        let _ = self.requests.fetch_update(Ordering::AcqRel, Ordering::Acquire, change);
        if self.processor != own.id() {
            own.send_nmi(self.processor);
        }
    }
}
