//! A virtual CPU's seat on its physical processor: what other processors may ask of it.
//!
//! A request is a bit here and an NMI there: the NMI makes the guest exit, whatever it does, and the
//! run loop looks at the bits before it enters again.

use core::sync::atomic::{AtomicU32, Ordering};

use arch::ApicId;
use arch::machine::CpuRequest;
use cpu::instructions::tsc;
use cpu::local_apic::LocalApic;
use guest::counters::ExitCounters;
use spin::Mutex;

const FLUSH: u32 = 1 << 0;
const INIT: u32 = 1 << 1;
const NMI: u32 = 1 << 2;
const STOP: u32 = 1 << 3;
const REGISTERS: u32 = 1 << 4;
/// In `start`: no start-up IPI has come.
const NO_START: u32 = u32::MAX;

/// One virtual CPU's seat.
pub(crate) struct Seat {
    /// The processor.
    pub(crate) processor: ApicId,
    /// Its number in the configuration.
    pub(crate) number: u32,
    requests: AtomicU32,
    start: AtomicU32,
    /// Its exits, as of the watchdog's last call or, once it has left, all of them.
    pub(crate) counters: Mutex<ExitCounters>,
    /// What the monitor showed of them last, and the TSC then.
    pub(crate) shown: Mutex<(u64, ExitCounters)>,
}

/// What was asked of a virtual CPU since it last looked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Requests(u32);

impl Requests {
    /// The nested table changed.
    pub(crate) fn flush(self) -> bool {
        self.0 & FLUSH != 0
    }
    /// INIT arrived.
    pub(crate) fn init(self) -> bool {
        self.0 & INIT != 0
    }
    /// A non-maskable interrupt for the guest.
    pub(crate) fn nmi(self) -> bool {
        self.0 & NMI != 0
    }
    /// The monitor wants to see its registers.
    pub(crate) fn registers(self) -> bool {
        self.0 & REGISTERS != 0
    }
    /// The guest has ended.
    pub(crate) fn stop(self) -> bool {
        self.0 & STOP != 0
    }
}

impl Seat {
    pub(crate) fn new(processor: ApicId, number: u32) -> Self {
        Self {
            processor,
            number,
            requests: AtomicU32::new(0),
            start: AtomicU32::new(NO_START),
            counters: Mutex::new(ExitCounters::new()),
            shown: Mutex::new((tsc(), ExitCounters::new())),
        }
    }

    /// Forgets what was asked and counted: the guest begins anew.
    pub(crate) fn forget_requests(&self) {
        self.requests.store(0, Ordering::Release);
        self.start.store(NO_START, Ordering::Release);
        *self.counters.lock() = ExitCounters::new();
        *self.shown.lock() = (tsc(), ExitCounters::new());
    }

    /// What was asked since the last call.
    #[inline]
    pub(crate) fn take_requests(&self) -> Requests {
        // Most of the time there is nothing, and a load is cheap.
        if self.requests.load(Ordering::Relaxed) == 0 {
            return Requests(0);
        }
        Requests(self.requests.swap(0, Ordering::AcqRel))
    }

    /// The vector of a start-up IPI that came since the last INIT.
    pub(crate) fn take_start(&self) -> Option<u8> {
        let vector = self.start.swap(NO_START, Ordering::AcqRel);
        (vector != NO_START).then_some(vector as u8)
    }

    /// Asks for `what`, from the processor with `own`.
    pub(crate) fn ask(&self, own: LocalApic, what: CpuRequest) {
        match what {
            CpuRequest::Init => {
                self.start.store(NO_START, Ordering::Release);
                self.call(own, INIT);
            }
            CpuRequest::Start(vector) => {
                self.start.store(u32::from(vector), Ordering::Release);
                self.call(own, 0);
            }
            CpuRequest::Nmi => self.call(own, NMI),
        }
    }

    /// Has it drop what it has cached of the nested table.
    pub(crate) fn ask_to_flush(&self, own: LocalApic) {
        self.call(own, FLUSH);
    }

    /// Has it log its registers.
    pub(crate) fn ask_for_registers(&self, own: LocalApic) {
        self.call(own, REGISTERS);
    }

    /// Has it leave the guest for good.
    pub(crate) fn ask_to_stop(&self, own: LocalApic) {
        self.call(own, STOP);
    }

    fn call(&self, own: LocalApic, bit: u32) {
        self.requests.fetch_or(bit, Ordering::AcqRel);
        if self.processor != own.id() {
            own.send_nmi(self.processor);
        }
    }
}
