//! The virtual-APIC page: what the CPU and the hypervisor hand each other of the guest's local APIC (SDM "Virtual APIC
//! State").
//!
//! In the exiting mode that is TPR, with a threshold below which the CPU exits ("TPR Virtualization"). In the posted
//! mode it is IRR and ISR, too: the CPU delivers and ends, and takes in what other CPUs post ([`crate::posted`]).

use arch::address::PAGE_SIZE;
use arch::interrupt::InterruptRegisters;
use arch::{Hpa, VcpuSetup, Vector, VectorSet};
use cpu::local_apic::LocalApic;

use crate::field;
use crate::posted::Posting;
use crate::vcpu::VmxVcpu;

/// Places of registers in the page, 16 bytes to each (SDM "Local APIC Register Address Map").
const TPR: usize = 0x08;
const ISR: usize = 0x10;
const TMR: usize = 0x18;
const IRR: usize = 0x20;
/// The MSR of the page's first register in x2APIC mode.
const FIRST_MSR: u32 = 0x800;

/// The page, in words of 4 bytes.
#[derive(Clone, Debug)]
#[repr(transparent)]
pub(crate) struct Page([u32; 1024]);

impl Page {
    const fn register(&self, place: usize) -> u32 {
        self.0[4 * place % 1024]
    }

    const fn register_mut(&mut self, place: usize) -> &mut u32 {
        &mut self.0[4 * place % 1024]
    }

    fn set(&self, first: usize) -> VectorSet {
        VectorSet::from_words(core::array::from_fn(|word| self.register(first + word)))
    }

    const fn tpr(&self) -> u8 {
        self.register(TPR) as u8
    }

    /// What the CPU has made of TPR, IRR and ISR while the guest ran. TMR is ours.
    fn load(&self, registers: &mut InterruptRegisters) {
        (registers.isr, registers.irr, registers.tpr) = (self.set(ISR), self.set(IRR), self.tpr());
    }

    /// Shows the CPU what the hypervisor has made of them.
    fn store(&mut self, InterruptRegisters { irr, isr, tmr, tpr }: &InterruptRegisters) {
        for (first, set) in [(ISR, isr), (TMR, tmr), (IRR, irr)] {
            for (place, bits) in (first..).zip(set.words()) {
                *self.register_mut(place) = bits;
            }
        }
        *self.register_mut(TPR) = u32::from(*tpr);
    }

    /// Requests these vectors, 32 to a word.
    fn request(&mut self, vectors: [u32; 8]) {
        for (place, bits) in (IRR..).zip(vectors) {
            *self.register_mut(place) |= bits;
        }
    }

    /// The register at this offset, by its MSR, and its value: 64 bits, as WRMSR writes them.
    fn written(&self, offset: u16) -> (u32, u64) {
        let word = |at: u16| self.0.get(usize::from(at / 4)).map_or(0, |word| u64::from(*word));
        let value = word(offset.wrapping_add(4)) << 32 | word(offset);
        (FIRST_MSR + u32::from(offset >> 4), value)
    }
}

/// What a virtual CPU has where interrupts exit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct VirtualApic {
    pub(crate) page: Hpa,
    /// In the posted mode: how other CPUs post to it.
    pub(crate) posting: Option<Posting>,
}

impl VirtualApic {
    /// That of a virtual CPU, if it has one.
    pub(crate) fn of(setup: &VcpuSetup, posting: Option<Posting>) -> Option<Self> {
        let page = setup.memory.wrapping_add(2 * PAGE_SIZE);
        (!setup.mode.is_exitless()).then_some(Self { page, posting })
    }
}

impl VmxVcpu {
    pub(crate) fn posting(&self) -> Option<&Posting> {
        self.virtual_apic.as_ref()?.posting.as_ref()
    }

    fn page(&self) -> Option<&Page> {
        let page = self.virtual_apic?.page.as_u64() as *const Page;
        // SAFETY: the caller of `new` gave the page away, identity-mapped; the CPU uses it only in the guest,
        // and `self` is borrowed for as long as the reference lives.
        Some(unsafe { &*page })
    }

    fn page_mut(&mut self) -> Option<&mut Page> {
        let page = self.virtual_apic?.page.as_u64() as *mut Page;
        // SAFETY: as above.
        Some(unsafe { &mut *page })
    }

    /// The register at this offset of the page, by its MSR, and its value.
    pub(crate) fn written_register(&self, offset: u16) -> (u32, u64) {
        self.page().map_or((FIRST_MSR, 0), |page| page.written(offset))
    }

    /// [`arch::vcpu::Vcpu::take_interrupts`].
    pub(crate) fn take(&self, registers: &mut InterruptRegisters) {
        match self.page() {
            Some(page) if self.posting().is_some() => page.load(registers),
            Some(page) => registers.tpr = page.tpr(),
            None => {}
        }
    }

    /// [`arch::vcpu::Vcpu::show_interrupts`].
    pub(crate) fn show(&mut self, registers: &InterruptRegisters, awaited: u8) {
        let posted = self.posting().is_some();
        let Some(page) = self.page_mut() else { return };
        if !posted {
            *page.register_mut(TPR) = registers.tpr.into();
            return self.set_tpr_threshold(awaited);
        }
        page.store(registers);
        let number = |set: &VectorSet| set.highest().map_or(0, |vector| u16::from(vector.0));
        let status = number(&registers.isr) << 8 | number(&registers.irr);
        self.vmcs.write(field::GUEST_INTERRUPT_STATUS, status);
        for (index, pair) in (0..).zip(registers.tmr.words().as_chunks::<2>().0) {
            let [low, high] = pair.map(u64::from);
            self.vmcs.write(field::EOI_EXIT_BITMAP_0.nth(index), high << 32 | low);
        }
    }

    /// A class that TPR holds back, or 0 for no exit. So the threshold is never above TPR, as the CPU wants it (SDM
    /// "Checks on VM-Execution Control Fields").
    #[inline]
    fn set_tpr_threshold(&mut self, class: u8) {
        if self.tpr_threshold != class {
            self.tpr_threshold = class;
            self.vmcs.write(field::TPR_THRESHOLD, class.into());
        }
    }

    /// Nothing is requested, in service or posted.
    pub(crate) fn reset_virtual_apic(&mut self) {
        if let Some(page) = self.page_mut() {
            page.0.fill(0);
            self.show(&InterruptRegisters::default(), 0);
        }
        if let Some(posting) = self.posting() {
            posting.reset();
        }
    }

    /// Where `vector`, which has exited and is in service, only says that something is posted: takes that in, and ends
    /// it. The CPU does so by itself, with no exit; a hypervisor beneath may not.
    pub(crate) fn take_posted(&mut self, vector: Vector) -> bool {
        let Some(posted) = self.posting().and_then(|posting| posting.take(vector)) else {
            return false;
        };
        LocalApic::current().eoi();
        if let Some(page) = self.page_mut() {
            page.request(posted);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_page_gives_back_what_was_stored_in_it(
            irr: [u32; 8], isr: [u32; 8], tmr: [u32; 8], tpr: u8, posted: [u32; 8],
        ) {
            let [irr, isr, tmr] = [irr, isr, tmr].map(VectorSet::from_words);
            let ours = InterruptRegisters { irr, isr, tmr, tpr };
            let mut page = Page([0; 1024]);
            page.store(&ours);
            // SDM "Local APIC Register Address Map": TPR is at 0x80, ISR 255:224 at 0x170, TMR 31:0 at 0x180, IRR 63:32
            // at 0x210.
            let at = |offset: usize| page.0[offset / 4];
            prop_assert_eq!((at(0x80), at(0x170)), (tpr.into(), isr.word(7)));
            prop_assert_eq!((at(0x180), at(0x210)), (tmr.word(0), irr.word(1)));
            let mut back = InterruptRegisters { tmr, ..InterruptRegisters::default() };
            page.load(&mut back);
            prop_assert_eq!(back, ours);
            // What is posted is requested besides, and nothing else changes.
            page.request(posted);
            page.load(&mut back);
            let irr = core::array::from_fn(|word| irr.word(word) | posted[word]);
            prop_assert_eq!(back, InterruptRegisters { irr: VectorSet::from_words(irr), ..ours });
        }
    }

    #[test]
    fn a_write_is_told_by_its_msr_with_all_its_bits_and_none_is_past_the_page() {
        let mut page = Page([0; 1024]);
        // ICR, whose 64 bits are two registers of xAPIC mode but one write.
        (page.0[0x300 / 4], page.0[0x304 / 4]) = (0x4051, 2);
        assert_eq!(page.written(0x300), (arch::msr::IA32_X2APIC_ICR, 2 << 32 | 0x4051));
        page.0[0x3f0 / 4] = 5;
        assert_eq!(page.written(0x3f0), (arch::msr::IA32_X2APIC_SELF_IPI, 5));
        for offset in 0..=0xfff {
            assert!((0x800..=0x8ff).contains(&page.written(offset).0), "{offset:#x}");
        }
    }
}
