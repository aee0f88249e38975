//! CR8 in the exiting mode: the CPU keeps the guest's TPR in the virtual-APIC page ("TPR shadow") and exits when it falls
//! below a threshold (SDM "TPR Virtualization").

use crate::field;
use crate::vcpu::VmxVcpu;

/// TPR in the page, whose words have 4 bytes (SDM "Virtual APIC State").
const TPR: usize = 0x80 / 4;

impl VmxVcpu {
    /// The TPR in the page; `None` where CR8 is the physical one's.
    pub(crate) fn shown_priority(&self) -> Option<u8> {
        let page = self.virtual_apic?.page.as_u64() as *const u32;
        // SAFETY: a word of the page that the caller of `new` gave away, identity-mapped; the guest does not run.
        Some(unsafe { page.wrapping_add(TPR).read() } as u8)
    }

    /// Shows the TPR and sets the threshold: a class that it holds back, or 0 for no exit. So the threshold is never
    /// above TPR, as the CPU wants it (SDM "Checks on VM-Execution Control Fields").
    #[inline]
    pub(crate) fn show_priority(&mut self, priority: u8, awaited: u8) {
        let Some(page) = self.apic_page() else { return };
        if let Some(word) = page.get_mut(TPR) {
            *word = priority.into();
        }
        if self.tpr_threshold != awaited {
            self.tpr_threshold = awaited;
            self.vmcs.write(field::TPR_THRESHOLD, awaited.into());
        }
    }
}
