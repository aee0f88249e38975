//! Fault records (VT-d specification "Fault Recording Registers" and "Fault Conditions").

use arch::Bdf;
use arch::iommu::Fault;

/// F, in the high half: the record holds a fault. Writing 1 frees the record.
pub(super) const FAULT: u64 = 1 << 63;
/// T1, in the high half: a read (or atomic) request.
const READ: u64 = 1 << 62;

/// Decodes a record; `None` where it holds no fault.
pub(super) fn decode(low: u64, high: u64) -> Option<Fault> {
    if high & FAULT == 0 {
        return None;
    }
    let reason = (high >> 32) as u8;
    let interrupt = (0x20..0x30).contains(&reason);
    Some(Fault {
        source: Bdf::from_requester_id(high as u16),
        address: if interrupt { low >> 48 } else { low & !0xfff },
        write: interrupt || high & READ == 0,
        interrupt,
        reason,
        meaning: meaning(reason),
    })
}

/// The specification's text, shortened.
const fn meaning(reason: u8) -> &'static str {
    match reason {
        0x01 => "the root entry is not present",
        0x02 => "the function is attached to no domain (context entry not present)",
        0x03 => "the context entry is programmed wrongly",
        0x04 => "the address is beyond the domain's address width",
        0x05 => "the domain does not map the address for writing",
        0x06 => "the domain does not map the address for reading",
        0x07 => "the unit could not read a paging entry",
        0x08 => "the unit could not read the root table",
        0x09 => "the unit could not read the context table",
        0x0a => "a reserved field of the root entry is set",
        0x0b => "a reserved field of the context entry is set",
        0x0c => "a reserved field of a paging entry is set",
        0x0d => "the context entry does not allow translated or translation requests",
        0x20 => "a reserved field of the interrupt request is set",
        0x21 => "the index is beyond the interrupt-remapping table",
        0x22 => "the interrupt-remapping entry is not present",
        0x23 => "the unit could not read the interrupt-remapping entry",
        0x24 => "a reserved field of the interrupt-remapping entry is set",
        0x25 => "the interrupt request is in compatibility format",
        0x26 => "the interrupt-remapping entry belongs to another source",
        _ => "see the VT-d specification, \"Fault Conditions\"",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dma_fault_names_source_address_and_direction() {
        let fault = decode(0xdead_b000, FAULT | 0x05 << 32 | 0x0020).unwrap();
        assert_eq!((fault.source, fault.address), (Bdf::new(0, 4, 0), 0xdead_b000));
        assert!(fault.write && !fault.interrupt);
        assert_eq!(
            fault.to_string(),
            "00:04.0: DMA write to 0xdeadb000 refused: the domain does not map the address for \
             writing (reason 0x05)"
        );
        assert!(!decode(0, FAULT | READ | 0x06 << 32).unwrap().write);
    }

    #[test]
    fn an_interrupt_fault_names_the_index() {
        let fault = decode(0x0123 << 48, FAULT | 0x26 << 32 | 0x0028).unwrap();
        assert_eq!((fault.interrupt, fault.address), (true, 0x123));
    }

    #[test]
    fn an_empty_record_is_no_fault() {
        assert_eq!(decode(u64::MAX, !FAULT), None);
    }
}
