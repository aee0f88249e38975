//! What other CPUs ask of a virtual CPU, in one word: so INIT, start-up IPI and NMI are seen in their order, however many
//! have come when the CPU looks.
//!
//! Who asks then brings the CPU out of the guest (by an NMI; the kernel does that). Asking and taking are one atomic
//! operation each, so whatever CPUs do at once comes to some sequence of these.

use arch::machine::CpuRequest;
use arch::sync::{AtomicU32, Ordering};

/// What may be asked of a virtual CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Request {
    /// Another of the guest's CPUs signals it.
    Signal(CpuRequest),
    /// The nested table has changed: drop what is cached of it.
    Flush,
    /// The guest has ended: leave it for good.
    Stop,
    /// Say what it holds.
    Look,
    /// What the guest has said waits for the serial line, and is its to send.
    Send,
    /// A debugger wants it to look at its mailbox.
    Debugger,
    /// No more than to exit: the guest's devices have an interrupt for it.
    Exit,
}

const FLUSH: u32 = 1 << 0;
const STOP: u32 = 1 << 1;
const LOOK: u32 = 1 << 2;
const SEND: u32 = 1 << 3;
const DEBUGGER: u32 = 1 << 4;
const INIT: u32 = 1 << 5;
/// A start-up IPI, with its vector in the top byte.
const START: u32 = 1 << 6;
const NMI: u32 = 1 << 7;
/// One that came behind the start-up IPI.
const NMI_BEHIND_START: u32 = 1 << 8;
const EXIT: u32 = 1 << 9;
const VECTOR: u32 = 24;

const fn bit(request: Request) -> u32 {
    match request {
        Request::Flush => FLUSH,
        Request::Stop => STOP,
        Request::Look => LOOK,
        Request::Send => SEND,
        Request::Debugger => DEBUGGER,
        Request::Exit => EXIT,
        Request::Signal(CpuRequest::Init) => INIT,
        Request::Signal(CpuRequest::Start(_)) => START,
        Request::Signal(CpuRequest::Nmi) => NMI,
    }
}

/// The word once `request` has come, too.
const fn with(word: u32, request: Request) -> u32 {
    const OTHERS: u32 = FLUSH | STOP | LOOK | SEND | DEBUGGER | EXIT;
    let Request::Signal(signal) = request else { return word | bit(request) };
    let starts = word & START != 0;
    match signal {
        // Nothing that was signalled before an INIT is left behind it.
        CpuRequest::Init => word & OTHERS | INIT,
        // The first one counts: the CPU runs then, and takes no notice of another.
        CpuRequest::Start(_) if starts => word,
        CpuRequest::Start(vector) => word | START | (vector as u32) << VECTOR,
        CpuRequest::Nmi if starts => word | NMI | NMI_BEHIND_START,
        CpuRequest::Nmi => word | NMI,
    }
}

/// What is asked of a virtual CPU.
#[derive(Debug, Default)]
pub struct RequestWord(AtomicU32);

impl RequestWord {
    /// Asks for something, then has the CPU exit: what it was called for it finds.
    pub fn ask(&self, request: Request, bring_out: impl FnOnce()) {
        let change = |word| Some(with(word, request));
        let _ = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, change);
        bring_out();
    }

    /// Whether anything was asked since the last call of [`Self::take`].
    #[inline]
    #[must_use]
    pub fn asked(&self) -> bool {
        self.0.load(Ordering::Relaxed) != 0
    }

    /// What was asked since the last call.
    #[must_use]
    pub fn take(&self) -> Requests {
        Requests(self.0.swap(0, Ordering::AcqRel))
    }

    /// What would be taken.
    #[must_use]
    pub fn look(&self) -> Requests {
        Requests(self.0.load(Ordering::Acquire))
    }
}

/// What was asked of a virtual CPU since it last looked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Requests(u32);

/// What signals come to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Signals {
    /// First of all the CPU is reset, and waits for a start-up IPI.
    pub init: bool,
    /// Then it starts, with this vector.
    pub start: Option<u8>,
    /// Then it gets an NMI.
    pub nmi: bool,
}

impl Requests {
    /// Whether this was asked.
    #[must_use]
    pub const fn has(self, request: Request) -> bool {
        self.0 & bit(request) != 0
    }

    /// What the signals come to for a CPU that is `waiting` for a start-up IPI, or runs. One that waits takes notice of
    /// nothing else (SDM "MP Initialization Protocol", "Guest Non-Register State": wait-for-SIPI).
    #[must_use]
    pub const fn signals(self, waiting: bool) -> Signals {
        let init = self.0 & INIT != 0;
        let waits = waiting || init;
        let starts = waits && self.0 & START != 0;
        let heard = if starts { NMI_BEHIND_START } else { NMI };
        Signals {
            init,
            start: if starts { Some((self.0 >> VECTOR) as u8) } else { None },
            nmi: (starts || !waits) && self.0 & heard != 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A CPU on its own: it hears each signal when it comes.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    enum Cpu {
        Waits,
        Runs { from: u8, nmi: bool },
    }

    impl Cpu {
        fn hear(self, signal: CpuRequest) -> Self {
            match (signal, self) {
                (CpuRequest::Init, _) => Self::Waits,
                (CpuRequest::Start(from), Self::Waits) => Self::Runs { from, nmi: false },
                (CpuRequest::Nmi, Self::Runs { from, .. }) => Self::Runs { from, nmi: true },
                (_, same) => same,
            }
        }

        /// As the run loop does.
        fn look(self, requests: Requests) -> Self {
            let mut cpu = self;
            let Signals { init, start, nmi } = requests.signals(cpu == Self::Waits);
            if init {
                cpu = Self::Waits;
            }
            if let Some(from) = start {
                assert_eq!(cpu, Self::Waits);
                cpu = Self::Runs { from, nmi: false };
            }
            if nmi {
                let Self::Runs { from, .. } = cpu else { panic!("an NMI to a CPU that waits") };
                cpu = Self::Runs { from, nmi: true };
            }
            cpu
        }
    }

    /// Every sequence of this many signals, each with a look behind it or none.
    #[test]
    fn whenever_it_looks_a_cpu_comes_to_where_one_is_that_heard_each_signal_at_once() {
        const LENGTH: u32 = 6;
        const SIGNALS: [CpuRequest; 4] =
            [CpuRequest::Init, CpuRequest::Start(7), CpuRequest::Start(9), CpuRequest::Nmi];
        for number in 0..8_u32.pow(LENGTH) {
            let steps = (0..LENGTH).map(|place| (number >> (3 * place)) as usize & 7);
            let steps = steps.map(|step| (SIGNALS[step % 4], step >= 4));
            for start in [Cpu::Waits, Cpu::Runs { from: 1, nmi: false }] {
                let word = RequestWord::default();
                let (mut heard, mut looked) = (start, start);
                for (signal, looks) in steps.clone() {
                    heard = heard.hear(signal);
                    word.ask(Request::Signal(signal), || {});
                    assert!(word.asked());
                    if looks {
                        looked = looked.look(word.take());
                        assert_eq!(looked, heard, "{:?} from {start:?}", steps.collect::<Vec<_>>());
                    }
                }
                looked = looked.look(word.take());
                assert_eq!(looked, heard, "{:?} from {start:?}", steps.collect::<Vec<_>>());
                assert!(!word.asked());
            }
        }
    }

    #[test]
    fn what_else_is_asked_is_taken_once_and_no_signal_takes_it_away() {
        let others =
            [Request::Flush, Request::Stop, Request::Look, Request::Send, Request::Debugger];
        for request in others {
            for signal in [CpuRequest::Init, CpuRequest::Start(0xff), CpuRequest::Nmi] {
                for signal_first in [true, false] {
                    let word = RequestWord::default();
                    let mut order = [request, Request::Signal(signal)];
                    if signal_first {
                        order.reverse();
                    }
                    order.iter().for_each(|request| word.ask(*request, || {}));
                    let taken = word.take();
                    assert_eq!(word.look(), Requests(0));
                    for other in others {
                        assert_eq!(taken.has(other), other == request, "{other:?} of {order:?}");
                    }
                    assert!(taken.has(Request::Signal(signal)), "{order:?}");
                }
            }
        }
    }
}

#[cfg(all(test, loom))]
mod model {
    use super::*;
    use arch::sync::AtomicBool;
    use loom::sync::Arc;
    use loom::thread;

    #[derive(Default)]
    struct Shared {
        word: RequestWord,
        /// An NMI that waits for the CPU; it exits for it, or takes it when it enters.
        nmi: AtomicBool,
        /// What each other CPU changed before it asked, a nested table for example.
        changed: [AtomicBool; 2],
    }

    const ASKED: [Request; 2] = [Request::Flush, Request::Stop];

    /// As the run loop does before it enters.
    fn look(shared: &Shared, heard: &mut [bool; 2]) {
        let requests = shared.word.take();
        for (number, heard) in heard.iter_mut().enumerate() {
            if requests.has(ASKED[number]) {
                assert!(!core::mem::replace(heard, true), "it is heard once");
                assert!(
                    shared.changed[number].load(Ordering::Relaxed),
                    "after what came before it"
                );
            }
        }
    }

    #[test]
    fn model_what_two_cpus_ask_at_once_is_heard_once_with_all_that_they_did_before() {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(3);
        builder.check(|| {
            let shared = Arc::new(Shared::default());
            let others = [0, 1].map(|number| {
                let shared = shared.clone();
                thread::spawn(move || {
                    shared.changed[number].store(true, Ordering::Relaxed);
                    let bring_out = || {
                        let _ = shared.nmi.swap(true, Ordering::Release);
                    };
                    shared.word.ask(ASKED[number], bring_out);
                })
            });
            let (mut heard, mut called) = ([false; 2], true);
            for _ in 0..2 {
                if called {
                    look(&shared, &mut heard);
                }
                called = shared.nmi.swap(false, Ordering::Acquire);
            }
            others.into_iter().for_each(|other| other.join().unwrap());
            if called | shared.nmi.swap(false, Ordering::Acquire) {
                look(&shared, &mut heard);
            }
            assert_eq!(heard, [true; 2], "nothing stays asked of a CPU that stays in its guest");
        });
    }
}
