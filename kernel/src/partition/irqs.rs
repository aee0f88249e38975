//! What the monitor's `irqs` says of a guest: which vectors are its own, and who raises them.
//!
//! Invariant: text is made under the guest's lock and goes out after it, so that a slow serial line
//! never holds up a guest's exit.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use arch::interrupt::TriggerMode;
use arch::machine::InterruptLine;
use arch::vcpu::InterruptMode;
use arch::{ApicId, Vector};
use eli::grants::{Grants, Reason};
use guest::counters::Counter;
use guest::vm::Vm;

use super::Partition;
use crate::backend::Backend;
use crate::console::logln;
use crate::routes::Routes;

impl<B: Backend> Partition<B> {
    /// Logs the guest's vectors, in order, each with what raises it.
    pub(crate) fn log_irqs(&self) {
        let mut sources = self.sources();
        sources.sort_unstable();
        let sum = |counter| -> u64 {
            self.slots().iter().map(|slot| slot.counters.lock().get(counter)).sum()
        };
        let (taken, ended) = (sum(Counter::ExternalInterrupt), sum(Counter::Eoi));
        let name = &self.plan.guest.name;
        let mode = self.plan.guest.interrupts;
        match mode {
            InterruptMode::Exitless => logln!(
                "{name}: exitless: interrupts go past the hypervisor, which cannot count them; exits by \
                 them: {taken} external_interrupt, {ended} eoi, {} shadow_gate",
                sum(Counter::ShadowGate)
            ),
            InterruptMode::Exiting | InterruptMode::Posted => {
                logln!(
                    "{name}: {}: {taken} interrupts and {ended} ends of interrupt have exited",
                    if mode == InterruptMode::Posted { "posted" } else { "exiting" }
                );
            }
        }
        for (vector, source) in sources {
            logln!("{name}: vector {vector:#04x}: {source}");
        }
    }

    /// What raises its vectors in this generation.
    fn sources(&self) -> Vec<(u8, String)> {
        // Held meanwhile: only its CPUs may have it when it is given back.
        let instance = self.instance.lock();
        let Some(instance) = instance.as_deref() else { return Vec::new() };
        let vm = instance.vm.lock();
        let mut sources = self.physical(&instance.tables().lock().routes);
        sources.extend(virtual_lines(&vm));
        sources.extend(other_grants(&instance.policy.grants, &sources));
        sources
    }

    fn physical(&self, routes: &Routes) -> Vec<(u8, String)> {
        let mut sources = Vec::new();
        routes.each(|line, target, entry| {
            let what = match (line, target.trigger) {
                (InterruptLine::Message { function, index }, _) => {
                    format!("message {index} of {function}")
                }
                (InterruptLine::Gsi(gsi), TriggerMode::Edge) => format!("line {gsi}, edge"),
                (InterruptLine::Gsi(gsi), TriggerMode::Level) => format!("line {gsi}, level"),
            };
            let entry =
                entry.map_or_else(String::new, |entry| format!(", remapping entry {entry}"));
            let cpu = self.cpu(target.destination);
            sources.push((target.vector.0, format!("{what}, to CPU {cpu}{entry}")));
        });
        sources
    }

    /// The number of a processor in the guest.
    fn cpu(&self, processor: ApicId) -> usize {
        self.slots().iter().position(|slot| slot.processor == processor).unwrap_or_default()
    }
}

/// The inputs of the I/O APIC that virtual devices drive.
fn virtual_lines(vm: &Vm) -> impl Iterator<Item = (u8, String)> + '_ {
    let inputs = (0..).map_while(|input| Some((input, vm.io_apic.entry(input)?)));
    let physical = |input| vm.lines.iter().any(|line| line.input == input);
    let live = inputs.filter(move |(input, entry)| !entry.masked() && !physical(*input));
    live.map(|(input, entry)| (entry.vector().0, format!("line {input}, of a virtual device")))
}

/// What was granted for another reason than a device that is in `listed`.
fn other_grants(given: &Grants, listed: &[(u8, String)]) -> Vec<(u8, String)> {
    let mut grants = Vec::new();
    for vector in 32..=u8::MAX {
        for why in given.reasons(Vector(vector)) {
            if why != Reason::Device {
                grants.push((vector, format!("{why}")));
            } else if !listed.iter().any(|(other, _)| *other == vector) {
                grants.push((vector, "a virtual device's message, or a device's no longer".into()));
            }
        }
    }
    grants
}
