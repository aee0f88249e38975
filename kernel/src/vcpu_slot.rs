//! A virtual CPU's slot on its physical processor: what other processors may ask of it.
//!
//! A request is a bit here ([`guest::requests`]) and an NMI there: the NMI makes the guest exit, whatever it does, and
//! the run loop looks at the bits before it enters again.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use arch::{ApicId, Vector};
use cpu::instructions::tsc;
use cpu::local_apic::LocalApic;
use guest::counters::ExitCounters;
use guest::recent::RecentExits;
use guest::requests::{Request, RequestWord, Requests};
use spin::Mutex;
use view::registers::Snapshot;

use crate::backend::Inbox;

/// One virtual CPU's slot.
pub(crate) struct VcpuSlot {
    pub(crate) processor: ApicId,
    /// Its number in the configuration.
    pub(crate) number: u32,
    /// How other CPUs of its guest interrupt it.
    pub(crate) inbox: Inbox,
    requests: RequestWord,
    /// Its exits, as of the watchdog's last call or, once it has left, all of them.
    pub(crate) counters: Mutex<ExitCounters>,
    /// TSC when they were so many.
    pub(crate) counted_at: AtomicU64,
    /// What the monitor showed of them last, and the TSC then.
    pub(crate) shown: Mutex<(u64, ExitCounters)>,
    /// What it has said of itself since it was last asked.
    pub(crate) look: Mutex<Option<Look>>,
    /// The processor that has asked.
    asker: AtomicU32,
}

/// What a virtual CPU says of itself.
#[derive(Clone, Debug)]
pub(crate) struct Look {
    pub(crate) registers: Snapshot,
    pub(crate) recent: RecentExits,
    /// It waits for a start-up IPI.
    pub(crate) waiting: bool,
}

impl VcpuSlot {
    pub(crate) fn new(processor: ApicId, number: u32, inbox: Inbox) -> Self {
        Self {
            processor,
            number,
            inbox,
            requests: RequestWord::default(),
            counters: Mutex::new(ExitCounters::new()),
            counted_at: AtomicU64::new(tsc()),
            shown: Mutex::new((tsc(), ExitCounters::new())),
            look: Mutex::new(None),
            asker: AtomicU32::new(0),
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

    /// Has it say what it holds, and call the processor with `own` then.
    pub(crate) fn ask_for_a_look(&self, own: LocalApic) {
        self.asker.store(own.id().0, Ordering::Release);
        self.ask(own, Request::Look);
    }

    /// Leaves it for who has asked: the processor that is given back.
    pub(crate) fn show(&self, look: Look) -> ApicId {
        *self.look.lock() = Some(look);
        ApicId(self.asker.load(Ordering::Acquire))
    }

    /// So many exits it has had until now.
    pub(crate) fn count(&self, counters: &ExitCounters) {
        *self.counters.lock() = *counters;
        self.counted_at.store(tsc(), Ordering::Release);
    }

    /// Asks for something, and brings the CPU out of the guest, from the processor with `own`.
    pub(crate) fn ask(&self, own: LocalApic, request: Request) {
        self.requests.ask(request, || {
            if self.processor != own.id() {
                own.send_nmi(self.processor);
            }
        });
    }
}
