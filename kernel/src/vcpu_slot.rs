//! A virtual CPU's slot on its physical processor: what other processors may ask of it.
//!
//! A request is a bit here ([`guest::requests`]) and an NMI there: the NMI makes the guest exit, whatever it does, and
//! the run loop looks at the bits before it enters again.

use arch::{ApicId, Vector};
use cpu::instructions::tsc;
use cpu::local_apic::LocalApic;
use guest::counters::ExitCounters;
use guest::requests::{Request, RequestWord, Requests};
use spin::Mutex;

use crate::backend::Inbox;

/// One virtual CPU's slot.
pub(crate) struct VcpuSlot {
    /// The processor.
    pub(crate) processor: ApicId,
    /// Its number in the configuration.
    pub(crate) number: u32,
    /// How other CPUs of its guest interrupt it.
    pub(crate) inbox: Inbox,
    requests: RequestWord,
    /// Its exits, as of the watchdog's last call or, once it has left, all of them.
    pub(crate) counters: Mutex<ExitCounters>,
    /// What the monitor showed of them last, and the TSC then.
    pub(crate) shown: Mutex<(u64, ExitCounters)>,
}

impl VcpuSlot {
    pub(crate) fn new(processor: ApicId, number: u32, inbox: Inbox) -> Self {
        Self {
            processor,
            number,
            inbox,
            requests: RequestWord::default(),
            counters: Mutex::new(ExitCounters::new()),
            shown: Mutex::new((tsc(), ExitCounters::new())),
        }
    }

    /// Clears requests and counters: the guest restarts.
    pub(crate) fn forget_requests(&self) {
        let _ = self.requests.take();
        *self.counters.lock() = ExitCounters::new();
        *self.shown.lock() = (tsc(), ExitCounters::new());
    }

    /// Whether anything was asked since the last call of [`Self::take_requests`].
    #[inline]
    pub(crate) fn asked(&self) -> bool {
        self.requests.asked()
    }

    /// What was asked since the last call.
    pub(crate) fn take_requests(&self) -> Requests {
        self.requests.take()
    }

    /// Whether it shall leave the guest for good.
    pub(crate) fn shall_stop(&self) -> bool {
        self.requests.look().has(Request::Stop)
    }

    /// Sends it a guest's vector, from the processor with `own`.
    pub(crate) fn interrupt(&self, own: LocalApic, vector: Vector) {
        self.inbox.deliver(own, self.processor, vector);
    }

    /// Asks for something, and brings the CPU out of the guest, from the processor with `own`.
    pub(crate) fn ask(&self, own: LocalApic, request: Request) {
        self.requests.ask(request);
        if self.processor != own.id() {
            own.send_nmi(self.processor);
        }
    }
}
