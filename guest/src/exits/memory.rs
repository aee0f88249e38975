//! Accesses that the nested page table stopped: pages of the IDT, device registers, nothing at all.

use arch::address::PAGE_SIZE;
use arch::exit::NestedPageFault;
use arch::interrupt::{DeliveryMode, InterruptTarget};
use arch::machine::{GuestMemory, InterruptLine, Machine};
use arch::vcpu::{InterruptMode, Vcpu};
use arch::{Gpa, Width};
use eli::xapic::IllegalRegister;
use eli::{ApicAction, ApicRead, Reason};
use pci::GuestInterrupt;

use super::access::{self, Refused};
use super::interrupt::addressee;
use crate::devices::ioapic::{self, RedirectionEntry};
use crate::devices::{pit, uart};
use crate::pci::{Host, VirtualBus};
use crate::vm::{Context, Next, Platform};

impl<P: Platform> Context<'_, P> {
    pub(super) fn nested_page_fault(&mut self, fault: NestedPageFault) -> Next {
        let gpa = fault.gpa;
        // The access was the CPU's own, for the delivery of an event (the stack, a descriptor), and not that of the
        // instruction at RIP.
        let delivering = self.vcpu.vectoring().is_some();
        if !(fault.fetch || fault.table_walk || delivering) {
            match self.access() {
                Ok(()) => {
                    self.trap_behind();
                    return Next::Resume;
                }
                Err(refused @ Refused::Fault(..)) => return self.refused(refused),
                Err(_) => {}
            }
        }
        if self.vm.shadows.covers(gpa) {
            self.show_real_table(gpa)
        } else if self.memory.read(gpa, &mut [0]).is_ok() {
            // RAM by now, as another CPU of the guest has changed the table.
            Next::Resume
        } else {
            self.begin_step(fault, delivering)
        }
    }

    /// Carries out the instruction at RIP, which the CPU could not.
    fn access(&mut self) -> Result<(), Refused> {
        let instruction = access::fetch(self.vcpu, self.memory)?;
        self.begin_instruction();
        if instruction.operation.is_of_table() {
            self.table_instruction(&instruction)
        } else {
            access::carry_out(self, &instruction)
        }
    }
}

impl<P: Platform> Context<'_, P> {
    /// Runs `work`, an access to the PCI bus, and returns whether the bus took it. For each message that the
    /// guest enabled by it: finds its CPU, grants the vector, and only then lets the device raise it.
    pub(super) fn with_bus(
        &mut self,
        work: impl FnOnce(&mut VirtualBus, &mut Host<'_, P::Machine, P::Config>) -> bool,
    ) -> bool {
        let (bus, mut host) = self.bus();
        let taken = work(bus, &mut host);
        loop {
            let (bus, mut host) = self.bus();
            let Some(wanted) = bus.next_wanted(&mut host) else { return taken };
            let target = self.message_target(wanted.interrupt);
            if let Some(target) = target {
                self.grant(target.vector, Reason::Device);
            }
            let (bus, mut host) = self.bus();
            bus.program(&mut host, &wanted, target);
        }
    }

    fn bus(&mut self) -> (&mut VirtualBus, Host<'_, P::Machine, P::Config>) {
        (&mut self.vm.bus, Host { machine: self.machine, config: self.config })
    }

    /// Where an interrupt that the guest programs into its device really goes; `None`: to no CPU of
    /// this guest.
    fn message_target(&self, interrupt: GuestInterrupt) -> Option<InterruptTarget> {
        let cpu = addressee(self.guest, interrupt.destination, interrupt.logical)?;
        self.guest.cpus.get(cpu).map(|cpu| interrupt.target(*cpu))
    }

    /// Raises one of the I/O APIC's inputs that a virtual device drives.
    pub(super) fn raise_line(&mut self, gsi: u32) {
        let Some(entry) = self.vm.io_apic.entry(gsi) else { return };
        if let Some(cpu) = self.receiver(entry) {
            self.deliver_to(cpu, entry.vector());
        }
    }

    fn io_apic_write(&mut self, offset: u64, value: u32) {
        if let Some((input, entry)) = self.vm.io_apic.write(offset, value) {
            self.redirect(input, entry);
        }
    }

    /// The guest programmed an input of its I/O APIC: a physical line is routed, a virtual device's
    /// vector is granted.
    fn redirect(&mut self, input: u32, entry: RedirectionEntry) {
        let cpu = self.receiver(entry);
        let destination = cpu.and_then(|cpu| self.guest.cpus.get(cpu).copied());
        let target = destination.map(|destination| InterruptTarget {
            vector: entry.vector(),
            destination,
            trigger: entry.trigger(),
            delivery: DeliveryMode::Fixed,
        });
        if target.is_some() {
            self.grant(entry.vector(), Reason::Device);
        }
        if input == pit::GSI {
            // Its ticks go where this says, whoever had them.
            self.vm.legacy.lose_line();
        }
        if let Some(line) = self.vm.lines.iter().find(|line| line.input == input)
            && let Err(refused) = self.machine.route(InterruptLine::Gsi(line.gsi), target)
        {
            self.log_limited(format_args!("line {input} stays masked: {}", refused.0));
        }
        if input == uart::GSI && target.is_some() && self.vm.uart_line {
            self.raise_line(input);
        }
        if input == pit::GSI && target.is_none() {
            self.serve_8259s();
        }
    }

    fn apic_page_read(&mut self, offset: u16) -> u64 {
        let value = match self.cpu.apic.read_page(offset) {
            Ok(ApicRead::Value(value)) => value,
            Ok(ApicRead::Physical(msr)) => self.machine.read_msr(msr).unwrap_or(0),
            Err(IllegalRegister) => {
                let action = self.cpu.apic.note_illegal_register();
                self.granted_apic_action(action);
                0
            }
        };
        value >> (8 * (offset & 3))
    }

    /// What an access to the page comes to. Only an allowed value reaches a physical register: a refused one is dropped.
    fn granted_apic_action(&mut self, action: ApicAction) {
        if let Some((vector, why)) = action.vector() {
            self.grant(vector, why);
        }
        self.apic_action(action);
    }

    fn apic_page_write(&mut self, offset: u16, width: Width, value: u64) {
        const EOI: u16 = 0xb0;
        const SVR: u16 = 0xf0;
        const LINT0: u16 = 0x350;
        const ICR: u16 = 0x300;
        let action = self.cpu.apic.write_page(offset, width, value as u32);
        self.publish_addressing();
        self.granted_apic_action(action);
        if matches!(offset, SVR | LINT0) {
            self.serve_8259s();
        }
        let first = matches!(offset, EOI | ICR) && !self.vm.xapic_said;
        if first && self.guest.mode == InterruptMode::Exitless {
            self.vm.xapic_said = true;
            let name = &self.guest.name;
            self.machine.log(format_args!(
                "guest {name}: it uses its local APIC in xAPIC mode: each EOI and each IPI exits; \
                 have it use x2APIC mode (Linux: without nox2apic) for none at EOIs"
            ));
        }
    }

    fn stray(&mut self, gpa: Gpa, write: bool) {
        let kind = if write { "wrote to" } else { "read from" };
        self.log_limited(format_args!("it {kind} {gpa}, which is unused"));
    }
}

/// The guest-physical address space, as an instruction that is carried out here sees it.
impl<P: Platform> Context<'_, P> {
    /// Reads RAM or a device. What nobody has reads as all ones.
    pub(super) fn memory_read(&mut self, gpa: Gpa, width: Width) -> u64 {
        let mut bytes = [0; 8];
        let part = bytes.get_mut(..usize::from(width.bytes())).unwrap_or_default();
        if self.memory.read(gpa, part).is_ok() {
            return u64::from_le_bytes(bytes);
        }
        self.device_read(gpa, width).unwrap_or_else(|| {
            self.stray(gpa, false);
            width.mask()
        })
    }

    /// Reads a device's register; `None` where there is none.
    pub(super) fn device_read(&mut self, gpa: Gpa, width: Width) -> Option<u64> {
        if let Some(offset) = self.cpu.apic.page_offset(gpa) {
            return Some(self.apic_page_read(offset) & width.mask());
        }
        if gpa.page() == Gpa::new(ioapic::BASE) {
            return Some(self.vm.io_apic.read(gpa.page_offset()).into());
        }
        let (bus, mut host) = self.bus();
        bus.mmio_read(&mut host, gpa, width)
    }

    /// Writes RAM or a device. What nobody has swallows it.
    pub(super) fn memory_write(&mut self, gpa: Gpa, width: Width, value: u64) {
        if let Some(offset) = self.cpu.apic.page_offset(gpa) {
            return self.apic_page_write(offset, width, value);
        }
        let bytes = value.to_le_bytes();
        let part = bytes.get(..usize::from(width.bytes())).unwrap_or(&bytes);
        if self.memory.write(gpa, part).is_ok() {
            return self.rederive(gpa, part);
        }
        if gpa.page() == Gpa::new(ioapic::BASE) {
            return self.io_apic_write(gpa.page_offset(), value as u32);
        }
        if !self.with_bus(|bus, host| bus.mmio_write(host, gpa, width, value)) {
            self.stray(gpa, true);
        }
    }

    /// The guest wrote `bytes` at `gpa`: the shadow of a page of its IDT follows.
    fn rederive(&mut self, gpa: Gpa, bytes: &[u8]) {
        let offset = gpa.page_offset() as usize;
        let within = PAGE_SIZE as usize - offset;
        let bytes = bytes.get(..within).unwrap_or(bytes);
        for (place, idt) in self.vm.shadows.tables() {
            if let Some(page) = idt.page_of(gpa) {
                let grants = &self.guest.grants;
                self.machine.with_shadow_page(2 * place + page, |shadow| {
                    idt.derive(page, offset, bytes, grants, shadow);
                });
            }
        }
    }
}
