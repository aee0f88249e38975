//! LGDT, LIDT, SGDT, SIDT: the hypervisor must learn where the IDT is, so that it can put the shadow
//! in its place. What the guest loads and stores is its own, unchanged.

use arch::address::PAGE_SIZE;
use arch::gate::GateFormat;
use arch::machine::{GuestMemory, Machine};
use arch::register::{Cr0, Efer};
use arch::segment::{DescriptorTable, DescriptorTableRegister};
use arch::vcpu::{InterruptMode, Vcpu};
use arch::{Gpa, Gva};
use eli::ShadowIdt;
use insn::{Access, Instruction, Operation, PseudoDescriptor};

use super::access;
use crate::vm::{Context, Next, Platform};

impl<P: Platform> Context<'_, P> {
    pub(super) fn descriptor_table(&mut self) -> Next {
        let instruction = match access::fetch(self.vcpu, self.memory) {
            Ok(instruction) => instruction,
            Err(refused) => return self.refused(refused),
        };
        match instruction.operation {
            Operation::DescriptorTable { register, store: true, form } => {
                self.store_table(&instruction, register, form)
            }
            Operation::DescriptorTable { register, store: false, form } => {
                self.load_table(&instruction, register, form)
            }
            _ => self.system_segment(&instruction),
        }
    }

    fn store_table(
        &mut self,
        instruction: &Instruction,
        register: DescriptorTableRegister,
        form: PseudoDescriptor,
    ) -> Next {
        let bytes = form.encode(self.vcpu.descriptor_table(register));
        let bytes = bytes.get(..form.bytes()).unwrap_or(&bytes);
        let (at, access) = (instruction.linear_address(self.vcpu), Access::write(self.vcpu));
        match insn::write_linear(self.vcpu, self.memory, at, access, bytes) {
            Ok(()) => self.vcpu.skip_instruction(instruction.length),
            Err(fault) => return self.refused(fault.into()),
        }
        Next::Resume
    }

    fn load_table(
        &mut self,
        instruction: &Instruction,
        register: DescriptorTableRegister,
        form: PseudoDescriptor,
    ) -> Next {
        let mut bytes = [0; 10];
        let part = bytes.get_mut(..form.bytes()).unwrap_or_default();
        let (at, access) = (instruction.linear_address(self.vcpu), Access::read(self.vcpu));
        if let Err(fault) = insn::read_linear(self.vcpu, self.memory, at, access, part) {
            return self.refused(fault.into());
        }
        let table = form.parse(bytes);
        self.vcpu.set_descriptor_table(register, table);
        self.vcpu.skip_instruction(instruction.length);
        if register == DescriptorTableRegister::Idtr && self.vm.mode == InterruptMode::Exitless {
            self.shadow_table(table);
        }
        Next::Resume
    }

    /// Puts the shadow of `table` where the guest has its IDT. A real-mode table has no present bits
    /// and is left as it is.
    fn shadow_table(&mut self, table: DescriptorTable) {
        let protected = self.vcpu.cr0() & Cr0::PE.bits() != 0;
        let shadow = protected.then(|| {
            let long = self.vcpu.efer() & Efer::LMA.bits() != 0;
            let format = if long { GateFormat::Bits64 } else { GateFormat::Bits32 };
            let first = Gva::new(table.base.as_u64()).page();
            let pages = [first, first.wrapping_add(PAGE_SIZE)].map(|page| self.page_behind(page));
            ShadowIdt::new(table, format, pages)
        });
        for slot in [0, 1] {
            self.machine.set_shadow_page(slot, None);
        }
        self.cpu.shadow = shadow;
        self.exception_intercepts();
        let Some(idt) = shadow else { return };
        for (slot, page) in idt.pages().into_iter().enumerate() {
            let Some(page) = page else { continue };
            let mut real = [0; PAGE_SIZE as usize];
            if self.memory.read(page, &mut real).is_ok() {
                let shadow = self.machine.shadow_page(slot);
                idt.derive(slot, 0, &real, &self.cpu.grants, shadow);
                self.machine.set_shadow_page(slot, Some(page));
            }
        }
    }

    /// The guest-physical page behind a linear one, as the CPU itself would read its IDT.
    fn page_behind(&self, page: Gva) -> Option<Gpa> {
        let access = Access { write: false, fetch: false, user: false };
        insn::translate(self.vcpu, self.memory, page, access).ok()
    }
}
