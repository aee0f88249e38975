//! The run loop: enter the guest, handle the exit, again. Between two exits nothing here runs.

use arch::Exit;
use arch::vcpu::Vcpu;
use guest::counters::Counter;
use guest::vm::{Context, Next, Outcome};

use crate::backend::Backend;
use crate::bring_up::Hardware;
use crate::console::{self, logln};
use crate::partition::{Edge, Partition};
use crate::{power, watchdog};

/// Runs the guest until it ends; reports, and switches the machine off.
pub(crate) fn run<B: Backend>(hardware: &Hardware, mut partition: Partition<B>) -> ! {
    let outcome = loop {
        let exit = partition.vcpu.run();
        let inside = partition.vcpu.take_handled_inside();
        partition.cpu.counters.add(Counter::ControlRegister, inside);
        watchdog::look_after(hardware, &exit.reason);
        if let Next::End(outcome) = partition.handle(&exit) {
            break outcome;
        }
        if partition.machine.take_nested_changed() {
            partition.vcpu.flush_nested();
        }
    };
    watchdog::last_look(hardware);
    partition.finish(hardware, outcome);
    logln!("all guests have ended");
    power::off(hardware.soft_off)
}

impl<B: Backend> Partition<B> {
    fn handle(&mut self, exit: &Exit) -> Next {
        let mut context: Context<'_, Edge<B>> = Context {
            vm: &mut self.vm,
            cpu: &mut self.cpu,
            vcpu: &mut self.vcpu,
            machine: &mut self.machine,
            memory: &mut self.ram,
            config: &mut self.config,
        };
        context.handle(exit)
    }

    /// Takes the devices back and reports.
    fn finish(&mut self, hardware: &Hardware, outcome: Outcome) {
        let mut nobody = |_| None;
        let mut host = guest::pci::Host {
            machine: &mut self.machine,
            config: &mut self.config,
            target: &mut nobody,
        };
        self.vm.bus.detach(&mut host);
        self.machine.routes().revoke_all();
        let (name, key) = (&self.vm.name, outcome.key());
        let own = hardware.cpus.iter().position(|id| *id == hardware.apic.id());
        let cpu = own.unwrap_or(0) as u32;
        logln!("guest {name}: {key} after {} exits", self.cpu.counters.total());
        console::report(format_args!(
            "{{\"guest\":{{\"name\":\"{}\",\"outcome\":\"{key}\",\"vcpus\":[{}]}}}}",
            name.escape_default(),
            self.cpu.counters.report(cpu)
        ));
    }
}
