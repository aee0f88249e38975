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
use arch::{ApicId, Bdf, Vector};
use eli::grants::{Grants, Reason};
use guest::counters::Counter;
use guest::vm::Vm;
use view::{Column, Lines, Table};

use super::Partition;
use crate::backend::Backend;
use crate::routes::Routes;

/// What raises a vector.
struct Source {
    what: String,
    /// The CPU of the guest that it goes to, where that is known.
    cpu: Option<u64>,
    /// Its remapping entry, where it has one.
    entry: Option<u64>,
}

impl Source {
    const fn of(what: String) -> Self {
        Self { what, cpu: None, entry: None }
    }
}

impl<B: Backend> Partition<B> {
    /// The guest's vectors, in order, each with what raises it.
    pub(crate) fn irqs(&self) -> Lines {
        let sources = self.sources();
        let sum = |counter| -> u64 {
            self.slots().iter().map(|slot| slot.counters.lock().get(counter)).sum()
        };
        let (taken, ended) = (sum(Counter::ExternalInterrupt), sum(Counter::Eoi));
        let name = &self.plan.guest.name;
        let mode = match self.plan.guest.interrupts {
            InterruptMode::Exitless => format!(
                "exitless: interrupts go past the hypervisor, which cannot count them; exits by \
                 them: {taken} external_interrupt, {ended} eoi, {} shadow_gate",
                sum(Counter::ShadowGate)
            ),
            InterruptMode::Exiting => {
                format!("exiting: {taken} interrupts and {ended} ends of interrupt have exited")
            }
            InterruptMode::Posted => {
                format!("posted: {taken} interrupts and {ended} ends of interrupt have exited")
            }
        };
        let mut lines = Vec::from([format!("{name}: {mode}")]);
        let mut table = Table::new(&[
            Column::Left("  vector"),
            Column::Left("raised by"),
            Column::Left("to CPU"),
            Column::Right("remapping entry"),
        ]);
        let text = |number: Option<u64>| number.map_or_else(|| "-".into(), |it| format!("{it}"));
        for vector in 0..=u8::MAX {
            for (_, source) in sources.iter().filter(|(other, _)| *other == vector) {
                let Source { what, cpu, entry } = source;
                table.row([format!("  {vector:#04x}"), what.clone(), text(*cpu), text(*entry)]);
            }
        }
        lines.extend(table.lines());
        lines
    }

    /// What raises its vectors in this generation.
    fn sources(&self) -> Vec<(u8, Source)> {
        // Held meanwhile: only its CPUs may have it when it is given back.
        let instance = self.instance.lock();
        let Some(instance) = instance.as_deref() else { return Vec::new() };
        let vm = instance.vm.lock();
        let mut sources = self.physical(&instance.tables().lock().routes);
        sources.extend(virtual_lines(&vm));
        sources.extend(other_grants(&instance.policy.grants, &sources));
        sources
    }

    fn physical(&self, routes: &Routes) -> Vec<(u8, Source)> {
        let mut sources = Vec::new();
        routes.each(|line, target, entry| {
            let what = match (line, target.trigger) {
                (InterruptLine::Message { function, index }, _) => {
                    format!("message {index} of {}", self.function(function))
                }
                (InterruptLine::Gsi(gsi), TriggerMode::Edge) => format!("line {gsi}, edge"),
                (InterruptLine::Gsi(gsi), TriggerMode::Level) => format!("line {gsi}, level"),
            };
            let cpu = Some(self.cpu(target.destination) as u64);
            sources.push((target.vector.0, Source { what, cpu, entry: entry.map(u64::from) }));
        });
        sources
    }

    /// A function with what it is.
    fn function(&self, bdf: Bdf) -> String {
        let functions = &self.plan.hardware.functions;
        let known = functions.iter().find(|function| function.bdf == bdf);
        let known = known.map(|it| format!(" ({:04x}:{:04x})", it.vendor, it.device));
        format!("{bdf}{}", known.unwrap_or_default())
    }

    /// Why a vector may reach the guest directly; empty where it may not.
    pub(crate) fn granted(&self, vector: Vector) -> String {
        let instance = self.instance.lock();
        let Some(instance) = instance.as_deref() else { return String::new() };
        let reasons = instance.policy.grants.reasons(vector);
        reasons.map(|why| format!("{why}")).collect::<Vec<_>>().join(", ")
    }

    /// The number of a processor in the guest.
    fn cpu(&self, processor: ApicId) -> usize {
        self.slots().iter().position(|slot| slot.processor == processor).unwrap_or_default()
    }
}

/// The inputs of the I/O APIC that virtual devices drive.
fn virtual_lines(vm: &Vm) -> impl Iterator<Item = (u8, Source)> + '_ {
    let inputs = (0..).map_while(|input| Some((input, vm.io_apic.entry(input)?)));
    let physical = |input| vm.lines.iter().any(|line| line.input == input);
    let live = inputs.filter(move |(input, entry)| !entry.masked() && !physical(*input));
    let what = |input| Source::of(format!("line {input}, of a virtual device"));
    live.map(move |(input, entry)| (entry.vector().0, what(input)))
}

/// What was granted for another reason than a device that is in `listed`.
fn other_grants(given: &Grants, listed: &[(u8, Source)]) -> Vec<(u8, Source)> {
    let mut grants = Vec::new();
    for vector in 32..=u8::MAX {
        for why in given.reasons(Vector(vector)) {
            if why != Reason::Device {
                grants.push((vector, Source::of(format!("{why}"))));
            } else if !listed.iter().any(|(other, _)| *other == vector) {
                let what = "a virtual device's message, or a device's no longer";
                grants.push((vector, Source::of(what.into())));
            }
        }
    }
    grants
}
