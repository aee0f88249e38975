//! Pending and in-service interrupts of a local APIC in software: the classic mode
//! (SDM "Handling Interrupts", "Interrupt, Task, and Processor Priority").

use arch::Vector;
use arch::interrupt::TriggerMode;
use arch::vcpu::{ApicPage, VirtualInterrupts};

use crate::vectors::VectorSet;

/// Places of registers in a page, 16 bytes to each (SDM "Local APIC Register Address Map").
const TPR: usize = 0x08;
const ISR: usize = 0x10;
const TMR: usize = 0x18;
const IRR: usize = 0x20;

fn register(page: &ApicPage, place: usize) -> u32 {
    page[4 * place % page.len()]
}

/// IRR, ISR, TMR and TPR. PPR follows from them. TPR is CR8, too: the CPU keeps it while the guest runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Pending {
    /// Interrupt request register.
    pub irr: VectorSet,
    /// In-service register.
    pub isr: VectorSet,
    /// Trigger mode register: set for level.
    pub tmr: VectorSet,
    /// Task-priority register.
    pub tpr: u8,
}

impl Pending {
    /// Takes an interrupt in.
    pub fn accept(&mut self, vector: Vector, trigger: TriggerMode) {
        self.irr.insert(vector);
        match trigger {
            TriggerMode::Edge => self.tmr.remove(vector),
            TriggerMode::Level => self.tmr.insert(vector),
        };
    }

    /// Processor-priority register.
    #[must_use]
    pub fn ppr(&self) -> u8 {
        let in_service = self.isr.highest().map_or(0, |vector| vector.0 & 0xf0);
        if self.tpr & 0xf0 >= in_service { self.tpr } else { in_service }
    }

    /// The interrupt to inject next: the highest requested, if its class is above the processor's
    /// priority.
    #[must_use]
    pub fn next(&self) -> Option<Vector> {
        self.irr.highest().filter(|vector| vector.0 >> 4 > self.ppr() >> 4)
    }

    /// The class of the highest requested interrupt, if TPR alone holds it back; else 0.
    #[must_use]
    pub fn held_back_by_tpr(&self) -> u8 {
        let class = self.irr.highest().map_or(0, |vector| vector.0 >> 4);
        let served = self.isr.highest().map_or(0, |vector| vector.0 >> 4);
        if class > served && class <= self.tpr >> 4 { class } else { 0 }
    }

    /// The guest has got `vector`: it is in service now. To be called at injection; an injection
    /// that an exit undid is injected again and needs no second call.
    pub fn injected(&mut self, vector: Vector) {
        self.irr.remove(vector);
        self.isr.insert(vector);
    }

    /// What the CPU has made of TPR, IRR and ISR while the guest ran (posted mode). TMR is ours.
    pub fn load(&mut self, page: &ApicPage) {
        let set = |first| {
            VectorSet::from_words(core::array::from_fn(|word| register(page, first + word)))
        };
        (self.isr, self.irr) = (set(ISR), set(IRR));
        self.tpr = register(page, TPR) as u8;
    }

    /// Shows the CPU what the hypervisor has made of them.
    pub fn store(&self, page: &mut ApicPage) -> VirtualInterrupts {
        for (first, set) in [(ISR, self.isr), (TMR, self.tmr), (IRR, self.irr)] {
            for (word, bits) in set.words().into_iter().enumerate() {
                page[4 * (first + word)] = bits;
            }
        }
        page[4 * TPR] = self.tpr.into();
        let number = |vector: Option<Vector>| vector.map_or(0, |vector| vector.0);
        VirtualInterrupts {
            requesting: number(self.irr.highest()),
            in_service: number(self.isr.highest()),
            eoi_exits: self.tmr.words(),
        }
    }

    /// End of interrupt: the highest in service is done.
    pub fn eoi(&mut self) -> Option<(Vector, TriggerMode)> {
        let vector = self.isr.highest()?;
        self.isr.remove(vector);
        let level = self.tmr.contains(vector);
        Some((vector, if level { TriggerMode::Level } else { TriggerMode::Edge }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Step {
        Accept(u8, bool),
        Inject,
        Eoi,
        Tpr(u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (16_u8.., any::<bool>()).prop_map(|(vector, level)| Step::Accept(vector, level)),
            3 => Just(Step::Inject),
            2 => Just(Step::Eoi),
            1 => any::<u8>().prop_map(Step::Tpr),
        ]
    }

    /// The definition on plain lists: requested (vector, level), in service (same, as a stack).
    #[derive(Default)]
    struct Naive {
        requested: Vec<u8>,
        in_service: Vec<u8>,
        tpr: u8,
    }

    impl Naive {
        fn next(&self) -> Option<u8> {
            let highest = *self.requested.iter().max()?;
            let served = self.in_service.iter().max().map_or(0, |v| v / 16);
            (highest / 16 > served && highest / 16 > self.tpr / 16).then_some(highest)
        }
    }

    proptest! {
        #[test]
        fn a_page_gives_back_what_was_stored_in_it(irr: [u32; 8], isr: [u32; 8], tmr: [u32; 8], tpr: u8) {
            let [irr, isr, tmr] = [irr, isr, tmr].map(VectorSet::from_words);
            let ours = Pending { irr, isr, tmr, tpr };
            let mut page = [0; 1024];
            let shown = ours.store(&mut page);
            prop_assert_eq!(shown.requesting, irr.highest().map_or(0, |vector| vector.0));
            prop_assert_eq!(shown.in_service, isr.highest().map_or(0, |vector| vector.0));
            prop_assert_eq!((shown.eoi_exits, page[0x80 / 4]), (tmr.words(), tpr.into()));
            // SDM "Local APIC Register Address Map": IRR 63:32 is at 0x210, ISR 255:224 at 0x170.
            prop_assert_eq!((page[0x210 / 4], page[0x170 / 4]), (irr.word(1), isr.word(7)));
            let mut back = Pending { tmr, ..Pending::default() };
            back.load(&page);
            prop_assert_eq!(back, ours);
        }

        #[test]
        fn priorities_follow_the_definition(steps in proptest::collection::vec(step(), 0..200)) {
            let mut ours = Pending::default();
            let mut naive = Naive::default();
            let mut level = [false; 256];
            for step in steps {
                match step {
                    Step::Accept(vector, is_level) => {
                        let trigger = if is_level { TriggerMode::Level } else { TriggerMode::Edge };
                        ours.accept(Vector(vector), trigger);
                        level[usize::from(vector)] = is_level;
                        if !naive.requested.contains(&vector) {
                            naive.requested.push(vector);
                        }
                    }
                    Step::Inject => {
                        let next = ours.next();
                        prop_assert_eq!(next, naive.next().map(Vector));
                        if let Some(vector) = next {
                            ours.injected(vector);
                            naive.requested.retain(|v| *v != vector.0);
                            naive.in_service.push(vector.0);
                        }
                    }
                    Step::Eoi => {
                        let done = naive.in_service.iter().copied().max();
                        naive.in_service.retain(|v| Some(*v) != done);
                        let expected = done.map(|v| {
                            let is_level = level[usize::from(v)];
                            (Vector(v), if is_level { TriggerMode::Level } else { TriggerMode::Edge })
                        });
                        prop_assert_eq!(ours.eoi(), expected);
                    }
                    Step::Tpr(value) => {
                        ours.tpr = value;
                        naive.tpr = value;
                    }
                }
                let served = naive.in_service.iter().max().map_or(0, |v| v & 0xf0);
                let ppr = if naive.tpr / 16 >= served / 16 { naive.tpr } else { served };
                prop_assert_eq!(ours.ppr(), ppr);
                let with_tpr_0 = Naive { tpr: 0, requested: naive.requested.clone(),
                    in_service: naive.in_service.clone() };
                let held = if naive.next().is_some() { None } else { with_tpr_0.next() };
                prop_assert_eq!(ours.held_back_by_tpr(), held.map_or(0, |vector| vector >> 4));
            }
        }
    }
}
