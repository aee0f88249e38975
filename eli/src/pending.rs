//! Pending and in-service interrupts of a local APIC in software, where interrupts exit
//! (SDM "Handling Interrupts", "Interrupt, Task, and Processor Priority").

use arch::Vector;
use arch::interrupt::{InterruptRegisters, TriggerMode};

/// Pending and in-service interrupts, and what comes next of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Pending {
    /// IRR, ISR, TMR and TPR. While the guest runs, the CPU may keep some of them.
    pub registers: InterruptRegisters,
}

impl Pending {
    /// Takes an interrupt in.
    pub fn accept(&mut self, vector: Vector, trigger: TriggerMode) {
        self.registers.irr.insert(vector);
        match trigger {
            TriggerMode::Edge => self.registers.tmr.remove(vector),
            TriggerMode::Level => self.registers.tmr.insert(vector),
        };
    }

    /// Processor-priority register.
    #[must_use]
    pub fn ppr(&self) -> u8 {
        let in_service = self.registers.isr.highest().map_or(0, |vector| vector.0 & 0xf0);
        if self.registers.tpr & 0xf0 >= in_service { self.registers.tpr } else { in_service }
    }

    /// The interrupt to inject next: the highest requested, if its class is above the processor's
    /// priority.
    #[must_use]
    pub fn next(&self) -> Option<Vector> {
        self.registers.irr.highest().filter(|vector| vector.0 >> 4 > self.ppr() >> 4)
    }

    /// The class of the highest requested interrupt, if TPR alone holds it back; else 0.
    #[must_use]
    pub fn held_back_by_tpr(&self) -> u8 {
        let class = self.registers.irr.highest().map_or(0, |vector| vector.0 >> 4);
        let served = self.registers.isr.highest().map_or(0, |vector| vector.0 >> 4);
        if class > served && class <= self.registers.tpr >> 4 { class } else { 0 }
    }

    /// The guest has got `vector`: it is in service now. To be called at injection; an injection
    /// that an exit undid is injected again and needs no second call.
    pub fn injected(&mut self, vector: Vector) {
        self.registers.irr.remove(vector);
        self.registers.isr.insert(vector);
    }

    /// End of interrupt: the highest in service is done.
    pub fn eoi(&mut self) -> Option<(Vector, TriggerMode)> {
        let vector = self.registers.isr.highest()?;
        self.registers.isr.remove(vector);
        let level = self.registers.tmr.contains(vector);
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
                        ours.registers.tpr = value;
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
