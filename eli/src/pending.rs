//! Pending and in-service interrupts of a local APIC in software: the classic mode
//! (SDM "Handling Interrupts", "Interrupt, Task, and Processor Priority").

use arch::Vector;
use arch::interrupt::TriggerMode;

use crate::vectors::VectorSet;

/// IRR, ISR, TMR and TPR. PPR follows from them.
///
/// The guest's CR8 is not seen: where it moves, the physical TPR holds interrupts back before they
/// get here.
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

    /// The guest has got `vector`: it is in service now. To be called at injection; an injection
    /// that an exit undid is injected again and needs no second call.
    pub fn injected(&mut self, vector: Vector) {
        self.irr.remove(vector);
        self.isr.insert(vector);
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
            }
        }
    }
}
