//! LGDT, LIDT, SGDT, SIDT: the hypervisor must know the IDT's address, so that it can put the shadow
//! in its place. The values that the guest loads and stores are unchanged.
//!
//! Before a guest's first interrupt nothing needs the shadow, and operating systems write hundreds of gates.
//! Until then the guest's own table is in place, limited to the gates of exceptions: any other
//! vector raises #GP, which exits, and the handler puts the shadow in place (decision 0030).
//!
//! The shadow covers the pages of the IDT at that moment or, later, at LIDT. If the guest then maps other pages at the
//! same linear address, the CPU uses the guest's own table, without closed gates, until the next LIDT. The same holds if
//! the guest loads its IDT before it switches to protected mode. DMA to a page of the IDT reaches only the real page.
//!
//! A table for real mode has no gates, and a guest on its way there loads it while it still is in protected mode: it is
//! known by its place (decision 0071).

use arch::address::PAGE_SIZE;
use arch::gate::GateFormat;
use arch::machine::{GuestMemory, Machine};
use arch::register::{Cr0, Cr4, Efer};
use arch::segment::{DescriptorTable, DescriptorTableRegister};
use arch::vcpu::{Event, Vcpu, exception};
use arch::{Gpa, Gva, Vector};
use eli::ShadowIdt;
use insn::{Access, Instruction, Operation, PseudoDescriptor};

use super::access::{self, Refused};
use super::system_segment;
use crate::vm::{Context, Next, Platform};

/// Where real mode has its table after a reset.
const REAL_MODE: DescriptorTable = DescriptorTable { base: Gva::new(0), limit: 0x3ff };

impl<P: Platform> Context<'_, P> {
    /// An intercepted LGDT, LIDT, SGDT, SIDT, LLDT, LTR, SLDT or STR.
    pub(super) fn descriptor_table(&mut self) -> Next {
        let fetched = access::fetch(self.vcpu, self.memory);
        self.begin_instruction();
        let done = fetched.and_then(|instruction| {
            let of_table = instruction.operation.is_of_table();
            if of_table { self.table_instruction(&instruction) } else { Err(Refused::Another) }
        });
        if done.is_ok() {
            self.trap_behind();
        }
        self.done(done)
    }

    /// Carries out one of these instructions and moves on, or says why not.
    pub(super) fn table_instruction(&mut self, instruction: &Instruction) -> Result<(), Refused> {
        if let Operation::DescriptorTable { register, store: false, form } = instruction.operation {
            return self.load_table(instruction, register, form);
        }
        if let Operation::DescriptorTable { register, store: true, form } = instruction.operation {
            self.check_umip()?;
            let bytes = form.encode(self.guest_table(register));
            let bytes = bytes.get(..form.bytes()).unwrap_or(&bytes);
            access::store_bytes(self, instruction, bytes)?;
            self.vcpu.skip_instruction(instruction.length);
        } else {
            self.system_segment(instruction)?;
        }
        // The stored bytes, or the TSS that was marked busy, may share the IDT's page.
        self.refresh_shadow();
        Ok(())
    }

    /// User-mode instruction prevention: not every CPU looks before the exit.
    pub(super) fn check_umip(&self) -> Result<(), Refused> {
        const UMIP: u64 = 1 << 11;
        let prevented = self.vcpu.cpl() != 0 && self.vcpu.cr4() & UMIP != 0;
        if prevented { Err(system_segment::fault(exception::GP, Some(0))) } else { Ok(()) }
    }

    fn load_table(
        &mut self,
        instruction: &Instruction,
        register: DescriptorTableRegister,
        form: PseudoDescriptor,
    ) -> Result<(), Refused> {
        let general_protection = system_segment::fault(exception::GP, Some(0));
        if self.vcpu.cpl() != 0 {
            return Err(general_protection);
        }
        let mut bytes = [0; 10];
        let part = bytes.get_mut(..form.bytes()).unwrap_or_default();
        access::load_bytes(self, instruction, part)?;
        let table = form.parse(bytes);
        let five_levels = self.vcpu.cr4() & Cr4::LA57.bits() != 0;
        if !insn::canonical(table.base.as_u64(), five_levels) {
            return Err(general_protection);
        }
        self.vcpu.set_descriptor_table(register, table);
        self.vcpu.skip_instruction(instruction.length);
        if register == DescriptorTableRegister::Idtr && self.guest.mode.is_exitless() {
            self.load_idt(table);
        }
        Ok(())
    }

    /// The table that the guest has loaded: the CPU's IDTR may be shortened.
    pub(super) fn guest_table(&self, register: DescriptorTableRegister) -> DescriptorTable {
        let table = self.vcpu.descriptor_table(register);
        let limit = self.cpu.idt_limit.filter(|_| register == DescriptorTableRegister::Idtr);
        DescriptorTable { limit: limit.unwrap_or(table.limit), ..table }
    }

    /// The guest has loaded `table`. Before its first interrupt the table stays in place, limited to the gates of
    /// exceptions.
    fn load_idt(&mut self, table: DescriptorTable) {
        self.cpu.idt_limit = None;
        match self.gate_format(table) {
            Some(format) if !self.vm.interrupted => {
                self.cpu.idt_limit = Some(table.limit);
                let limit = table.limit.min(32 * format.size() as u16 - 1);
                let table = DescriptorTable { limit, ..table };
                self.vcpu.set_descriptor_table(DescriptorTableRegister::Idtr, table);
                self.place_shadow(None);
            }
            _ => self.place_shadow(self.shadow_of(table)),
        }
    }

    /// An exception of a CPU with a shortened IDTR: `true` if that caused it, or may have caused it.
    /// The table is then complete and shadowed, and the event is delivered again.
    pub(super) fn first_interrupt(&mut self, event: Event) -> bool {
        if self.cpu.idt_limit.is_none() || event.vector != Vector(exception::GP) {
            return false;
        }
        self.forget_the_fault();
        self.vm.interrupted = true;
        let table = self.guest_table(DescriptorTableRegister::Idtr);
        self.vcpu.set_descriptor_table(DescriptorTableRegister::Idtr, table);
        self.load_idt(table);
        self.deliver_again();
        true
    }

    /// `None` in real mode, and on the way there.
    fn gate_format(&self, table: DescriptorTable) -> Option<GateFormat> {
        let long = self.vcpu.efer() & Efer::LMA.bits() != 0;
        let format = if long { GateFormat::Bits64 } else { GateFormat::Bits32 };
        (self.vcpu.cr0() & Cr0::PE.bits() != 0 && table != REAL_MODE).then_some(format)
    }

    /// The shadow of `table`. A real-mode table has no present bits and is left as it is.
    pub(super) fn shadow_of(&self, table: DescriptorTable) -> Option<ShadowIdt> {
        let format = self.gate_format(table)?;
        let first = table.base.page();
        let pages = [first, first.wrapping_add(PAGE_SIZE)].map(|page| self.page_behind(page));
        Some(ShadowIdt::new(table, format, pages))
    }

    /// Releases the pages of this CPU's previous shadow, unless another CPU also uses it, and puts
    /// `shadow` in place of the guest's IDT.
    pub(super) fn place_shadow(&mut self, shadow: Option<ShadowIdt>) {
        let change = self.vm.shadows.load(self.cpu.index, shadow);
        if let Some(place) = change.freed {
            self.clear_place(place);
        }
        self.exception_intercepts();
        if let (Some(place), Some(idt)) = (change.taken, shadow) {
            for (page, gpa) in self.derive_pages(place, idt).into_iter().enumerate() {
                self.machine.set_shadow_page(2 * place + page, gpa);
            }
        }
    }

    fn clear_place(&mut self, place: usize) {
        for slot in [2 * place, 2 * place + 1] {
            self.machine.set_shadow_page(slot, None);
        }
    }

    /// Another CPU has changed the nested table. Until now this one could write to a page that had got a shadow, and what it
    /// wrote is in no shadow yet.
    #[cold]
    #[inline(never)]
    pub fn table_changed(&mut self) {
        self.vcpu.flush_nested();
        self.refresh_shadow();
    }

    /// Derives every shadow again: the guest's memory was written to, and not by what derives.
    pub(super) fn refresh_shadow(&mut self) {
        for place in 0..self.guest.cpus.len() {
            if let Some(idt) = self.vm.shadows.table(place) {
                self.derive_pages(place, idt);
            }
        }
    }

    /// Derives the shadow pages of a table; those that are the guest's RAM.
    fn derive_pages(&mut self, place: usize, idt: ShadowIdt) -> [Option<Gpa>; 2] {
        // A part at a time: the stack is small.
        const PART: usize = 256;
        let mut pages = idt.pages();
        for (page, gpa) in pages.iter_mut().enumerate() {
            for offset in (0..PAGE_SIZE as usize).step_by(PART) {
                let mut real = [0; PART];
                let read = |gpa: &Gpa| {
                    let at = gpa.wrapping_add(offset as u64);
                    self.memory.read(at, &mut real).is_ok()
                };
                *gpa = gpa.filter(read);
                if gpa.is_some() {
                    let grants = &self.guest.grants;
                    self.machine.with_shadow_page(2 * place + page, |shadow| {
                        idt.derive(page, offset, &real, grants, shadow);
                    });
                }
            }
        }
        pages
    }

    /// A page of the IDT is written in a way that cannot be emulated: it holds the stack,
    /// or a GDT in which the CPU marks a segment. The CPU uses the guest's own table, as before
    /// its first LIDT: the host depends on none of its gates.
    pub(super) fn show_real_table(&mut self, gpa: Gpa) -> Next {
        self.log_limited(format_args!(
            "the page of its IDT at {gpa} is its stack or GDT, too: no gate is closed any more"
        ));
        for place in 0..self.guest.cpus.len() {
            if self.vm.shadows.forget(place, gpa) {
                self.clear_place(place);
            }
        }
        self.exception_intercepts();
        Next::Resume
    }

    /// The guest-physical page of a linear one, translated as the CPU translates IDT reads.
    fn page_behind(&self, page: Gva) -> Option<Gpa> {
        let access = Access { write: false, fetch: false, user: false };
        insn::translate(self.vcpu, self.memory, page, access).ok()
    }
}
